//! Which nodes a DaemonSet is for, what must change on them, and what the status says. Pure.
//!
//! Source: upstream's daemon set controller.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, PodTemplateSpec, Toleration,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skiff_api::placement::{NodeFacts, selects_node, tolerates_all};
use skiff_client::EventType;
use skiff_client::view::Pod;

use super::backoff::Backoffs;
use crate::history::REVISION_HASH;
use crate::objects::{available_in_s, has_ended, is_ready};

/// Of a pod: how often the template had changed when it was made. Clients older than `apps/v1` know pods by it.
const TEMPLATE_GENERATION: &str = "pod-template-generation";
const TEMPLATE_GENERATION_OF_SET: &str = "deprecated.daemonset.template.generation";

/// What daemons bear that other pods do not: they are what makes a node well, or watches it being ill.
const BORNE: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// Borne by daemons in the node's own network.
const NO_NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// The set's template, with what daemons bear.
pub(super) fn template(set: &DaemonSet) -> PodTemplateSpec {
    let mut template = set.spec.template.clone();
    let spec = template.spec.get_or_insert_default();
    let has_no_network = (spec.host_network == Some(true)).then_some(NO_NETWORK);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in BORNE.into_iter().chain(has_no_network) {
        let borne = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        let is_same = |t: &Toleration| Toleration { toleration_seconds: None, ..t.clone() } == borne;
        match tolerations.iter_mut().find(|t| is_same(t)) {
            Some(known) => *known = borne,
            None => tolerations.push(borne),
        }
    }
    template
}

/// The template for a pod of one node, and of one revision.
pub(super) fn template_for(
    template: &PodTemplateSpec,
    set: &DaemonSet,
    hash: &str,
    node: &str,
) -> PodTemplateSpec {
    let mut template = template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(REVISION_HASH.into(), hash.into());
    if let Some(generation) = template_generation(set) {
        labels.insert(TEMPLATE_GENERATION.into(), generation.to_string());
    }
    let only_there = NodeSelectorTerm {
        match_expressions: None,
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".into(),
            operator: "In".into(),
            values: Some(vec![node.into()]),
        }]),
    };
    let affinity = template.spec.get_or_insert_default().affinity.get_or_insert_default();
    affinity.node_affinity.get_or_insert_default().required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![only_there] });
    template
}

fn template_generation(set: &DaemonSet) -> Option<i64> {
    set.metadata.annotations.as_ref()?.get(TEMPLATE_GENERATION_OF_SET)?.parse().ok()
}

/// Whether a set is for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Run,
    /// A pod that is there stays; none is made.
    Keep,
    No,
}

/// `pod` is of the set's [`template`].
pub(super) fn verdict(pod: &PodSpec, node: &Node) -> Verdict {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let wanted = pod.node_name.as_deref().filter(|wanted| !wanted.is_empty());
    let facts = NodeFacts { name, labels: node.metadata.labels.as_ref() };
    if wanted.is_some_and(|wanted| wanted != name) || !selects_node(pod, &facts) {
        return Verdict::No;
    }
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    if tolerates_all(pod, taints, &["NoSchedule", "NoExecute"]) {
        Verdict::Run
    } else if tolerates_all(pod, taints, &["NoExecute"]) {
        Verdict::Keep
    } else {
        Verdict::No
    }
}

/// The node that a pod is on, or is to be on.
fn target(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = spec.node_name.as_deref().filter(|name| !name.is_empty()) {
        return Some(name);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let mut named = fields.filter(|field| field.key == "metadata.name" && field.operator == "In");
    match named.next()?.values.as_deref() {
        Some([name]) => Some(name),
        _ => None,
    }
}

type OnNode = Vec<Arc<Pod>>;

/// The new pod of a node, and the old one.
type Pair<'p> = (Option<&'p Arc<Pod>>, Option<&'p Arc<Pod>>);

/// Pods by node, the oldest first, and what has a node before what has none. What has ended and is on its way out is
/// left to others.
pub(super) fn by_node(pods: &[Arc<Pod>]) -> BTreeMap<String, OnNode> {
    let mut nodes: BTreeMap<String, OnNode> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !(has_ended(pod) && is_going(pod))) {
        if let Some(node) = target(pod) {
            nodes.entry(node.to_owned()).or_default().push(pod.clone());
        }
    }
    let age = |pod: &Arc<Pod>| {
        (!is_bound(pod), pod.metadata.creation_timestamp.as_ref().map(|t| t.0), pod.metadata.name.clone())
    };
    nodes.values_mut().for_each(|pods| pods.sort_by_cached_key(age));
    nodes
}

fn is_bound(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|name| !name.is_empty())
}

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// What is looked at in one pass.
pub(super) struct Facts<'f> {
    pub(super) set: &'f DaemonSet,
    pub(super) hash: &'f str,
    pub(super) nodes: &'f BTreeMap<String, Verdict>,
    pub(super) pods: &'f BTreeMap<String, OnNode>,
    pub(super) now: Timestamp,
}

/// What must change.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Nodes that need a pod.
    pub(super) make: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Kind, reason and message.
    pub(super) events: Vec<(EventType, &'static str, String)>,
    /// When a pod that failed may be replaced.
    pub(super) look_again: Option<Duration>,
}

impl Facts<'_> {
    fn rolling(&self) -> Option<&RollingUpdateDaemonSet> {
        let strategy = self.set.spec.update_strategy.as_ref()?;
        strategy.rolling_update.as_ref().filter(|_| strategy.type_.as_deref() == Some("RollingUpdate"))
    }

    /// How many more pods than nodes there may be, and how many fewer.
    fn surge_and_unavailable(&self, n_nodes: usize) -> (usize, usize) {
        let of = |value: Option<&IntOrString>| resolve(value, n_nodes);
        let surge = of(self.rolling().and_then(|r| r.max_surge.as_ref()));
        let unavailable = of(self.rolling().and_then(|r| r.max_unavailable.as_ref()));
        // Both 0, as percentages may come to, would never get anywhere.
        (surge, if surge == 0 && n_nodes > 0 { unavailable.max(1) } else { unavailable })
    }

    fn allows_surge(&self) -> bool {
        resolve(self.rolling().and_then(|r| r.max_surge.as_ref()), 1) > 0
    }

    fn is_current(&self, pod: &Pod) -> bool {
        let label = |name: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(name));
        let generation = template_generation(self.set).map(|generation| generation.to_string());
        label(REVISION_HASH).is_some_and(|hash| hash == self.hash)
            || generation.is_some_and(|generation| label(TEMPLATE_GENERATION) == Some(&generation))
    }

    fn is_available(&self, pod: &Pod) -> bool {
        available_in_s(pod, self.min_ready_s(), self.now) == Some(0)
    }

    fn min_ready_s(&self) -> i64 {
        self.set.spec.min_ready_seconds.unwrap_or(0).into()
    }

    fn verdict(&self, node: &str) -> Verdict {
        self.nodes.get(node).copied().unwrap_or(Verdict::No)
    }

    fn on_node(&self, node: &str) -> &[Arc<Pod>] {
        self.pods.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    /// A pod for every node that needs one, and none where none is to be.
    pub(super) fn manage(&self, backoffs: &mut Backoffs) -> Changes {
        let mut changes = Changes::default();
        for (node, verdict) in self.nodes {
            let pods = self.on_node(node);
            match verdict {
                Verdict::Run if pods.is_empty() => changes.make.push(node.clone()),
                Verdict::No => changes.delete.extend(pods.iter().filter(|pod| !is_going(pod)).cloned()),
                Verdict::Run | Verdict::Keep => self.keep(node, *verdict, pods, backoffs, &mut changes),
            }
        }
        // Nobody else deletes what waits for a node that is gone.
        let homeless = self.pods.iter().filter(|(node, _)| !self.nodes.contains_key(*node));
        changes.delete.extend(
            homeless.flat_map(|(_, pods)| pods).filter(|pod| !is_bound(pod) && !is_going(pod)).cloned(),
        );
        changes
    }

    fn keep(
        &self,
        node: &str,
        verdict: Verdict,
        pods: &[Arc<Pod>],
        backoffs: &mut Backoffs,
        changes: &mut Changes,
    ) {
        let mut running = Vec::new();
        for pod in pods.iter().filter(|pod| !is_going(pod)) {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
                Some("Failed") => match backoffs.attempt(node) {
                    // A node may refuse pods as fast as they are made.
                    Err(wait) => {
                        changes.look_again = Some(changes.look_again.map_or(wait, |other| other.min(wait)));
                    }
                    Ok(()) => {
                        let message = format!(
                            "Found failed daemon pod {namespace}/{name} on node {node}, will try to kill it"
                        );
                        changes.events.push((EventType::Warning, "FailedDaemonPod", message));
                        changes.delete.push(pod.clone());
                    }
                },
                Some("Succeeded") => {
                    let message = format!(
                        "Found succeeded daemon pod {namespace}/{name} on node {node}, will try to delete it"
                    );
                    changes.events.push((EventType::Normal, "SucceededDaemonPod", message));
                    changes.delete.push(pod.clone());
                }
                _ => running.push(pod),
            }
        }
        if !self.allows_surge() {
            changes.delete.extend(running.into_iter().skip(1).cloned());
        } else if running.is_empty() && verdict == Verdict::Run {
            changes.make.push(node.to_owned());
        } else if running.len() > 1 {
            changes.delete.extend(self.surplus(&running));
        }
    }

    /// Where there may be more pods than one: an old one that is ready, until a new one has been for long enough. All
    /// others go.
    fn surplus(&self, running: &[&Arc<Pod>]) -> Vec<Arc<Pod>> {
        let (new, old): (Vec<_>, Vec<_>) = running.iter().copied().partition(|pod| self.is_of_revision(pod));
        let mut going: Vec<Arc<Pod>> =
            new.iter().skip(1).chain(old.iter().skip(1)).map(|pod| (*pod).clone()).collect();
        if let ([new, ..], [old, ..]) = (new.as_slice(), old.as_slice())
            && (!is_ready(old) || self.is_available(new))
        {
            going.push((*old).clone());
        }
        going
    }

    fn is_of_revision(&self, pod: &Pod) -> bool {
        pod.metadata.labels.as_ref().and_then(|l| l.get(REVISION_HASH)).is_some_and(|hash| hash == self.hash)
    }

    /// The one new and the one old pod of a node; `None` if there are more, which [`Facts::manage`] sees to.
    fn new_and_old<'p>(&self, pods: &'p [Arc<Pod>]) -> Option<Pair<'p>> {
        let staying = pods.iter().filter(|pod| !is_going(pod));
        let (new, old): (Vec<_>, Vec<_>) = staying.partition(|pod| self.is_current(pod));
        (new.len() <= 1 && old.len() <= 1).then(|| (new.first().copied(), old.first().copied()))
    }

    /// The next step from old pods to new ones.
    pub(super) fn roll(&self) -> Changes {
        if self.rolling().is_none() {
            return Changes::default();
        }
        let wanted = self.nodes.iter().filter(|(_, verdict)| **verdict == Verdict::Run).map(|(node, _)| node);
        let n_wanted = wanted.clone().count();
        let mut nodes: BTreeMap<&String, &[Arc<Pod>]> = wanted.map(|node| (node, &[] as &[_])).collect();
        nodes.extend(self.pods.iter().map(|(node, pods)| (node, pods.as_slice())));
        match self.surge_and_unavailable(n_wanted) {
            (0, unavailable) => self.roll_down_first(&nodes, unavailable),
            (surge, _) => self.roll_up_first(&nodes, surge, n_wanted),
        }
    }

    /// Old pods go, as many at a time as may be missing; [`Facts::manage`] makes the new ones.
    fn roll_down_first(&self, nodes: &BTreeMap<&String, &[Arc<Pod>]>, most: usize) -> Changes {
        let (mut n_unavailable, mut delete, mut candidates) = (0, Vec::new(), Vec::new());
        for pods in nodes.values() {
            match self.new_and_old(pods) {
                Some((None, Some(old))) if self.is_available(old) => candidates.push(old.clone()),
                Some((None, Some(old))) => {
                    delete.push(old.clone());
                    n_unavailable += 1;
                }
                Some((Some(new), None)) if self.is_available(new) => {}
                _ => n_unavailable += 1,
            }
        }
        delete.extend(candidates.into_iter().take(most.saturating_sub(n_unavailable)));
        Changes { delete, ..Changes::default() }
    }

    /// New pods come beside the old ones, so many at a time; an old one goes once its new one is available.
    fn roll_up_first(&self, nodes: &BTreeMap<&String, &[Arc<Pod>]>, most: usize, n_wanted: usize) -> Changes {
        let (mut n_surge, mut n_available) = (0, 0);
        let (mut make, mut candidates, mut delete, mut misplaced) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (node, pods) in nodes {
            let Some((new, old)) = self.new_and_old(pods) else {
                n_surge += 1;
                continue;
            };
            n_available += usize::from(old.or(new).is_some_and(|pod| self.is_available(pod)));
            let runs = self.verdict(node) == Verdict::Run;
            match (new, old) {
                (_, None) => {}
                (Some(new), Some(old)) if self.is_available(new) => delete.push(old.clone()),
                (Some(_), Some(_)) => n_surge += 1,
                (None, Some(old)) => match (self.is_available(old), runs) {
                    (true, true) => candidates.push((*node).clone()),
                    (true, false) => misplaced.push(old.clone()),
                    (false, true) => make.push((*node).clone()),
                    (false, false) => delete.push(old.clone()),
                },
            }
        }
        make.extend(candidates.into_iter().take(most.saturating_sub(n_surge)));
        // A pod where none is to be any more goes only once one is available where it is to be.
        delete.extend(misplaced.into_iter().take(n_available.saturating_sub(n_wanted)));
        Changes { make, delete, ..Changes::default() }
    }

    /// What the status is to say, and when the next ready pod will have been ready for long enough. `is_processed` says
    /// whether the set has been acted on as it now is.
    pub(super) fn status(&self, is_processed: bool) -> (DaemonSetStatus, Option<u64>) {
        let mut status = self.set.status.clone().unwrap_or_default();
        let (mut desired, mut current, mut misplaced, mut ready, mut updated, mut available) =
            (0, 0, 0, 0, 0, 0);
        let mut next_available_s: Option<u64> = None;
        for (node, verdict) in self.nodes {
            let oldest = self.on_node(node).first();
            if *verdict != Verdict::Run {
                misplaced += i32::from(oldest.is_some());
                continue;
            }
            desired += 1;
            let Some(pod) = oldest else { continue };
            current += 1;
            updated += i32::from(self.is_current(pod));
            ready += i32::from(is_ready(pod));
            match available_in_s(pod, self.min_ready_s(), self.now) {
                Some(0) => available += 1,
                Some(seconds) => {
                    let seconds = u64::try_from(seconds).unwrap_or(0);
                    next_available_s = Some(next_available_s.map_or(seconds, |other| other.min(seconds)));
                }
                None => {}
            }
        }
        let some = |count: i32| Some(count).filter(|count| *count > 0);
        status.desired_number_scheduled = desired;
        status.current_number_scheduled = current;
        status.number_misscheduled = misplaced;
        status.number_ready = ready;
        status.updated_number_scheduled = some(updated);
        status.number_available = some(available);
        status.number_unavailable = some(desired - available);
        if is_processed {
            status.observed_generation = self.set.metadata.generation;
        }
        (status, next_available_s)
    }
}

/// A count, or a share of so many, rounded up.
fn resolve(value: Option<&IntOrString>, of: usize) -> usize {
    match value {
        Some(IntOrString::Int(count)) => usize::try_from(*count).unwrap_or(0),
        Some(IntOrString::String(text)) => {
            let percent: usize = text.trim_end_matches('%').parse().unwrap_or(0);
            percent.saturating_mul(of).div_ceil(100)
        }
        None => 0,
    }
}

#[cfg(test)]
mod tests;
