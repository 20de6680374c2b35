//! What makes a node fit for a pod, and what makes it a good one. Each function is one upstream plugin.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};
use skiff_api::placement::{NodeFacts, requirement_holds, selects_node, tolerates, tolerates_all};
use skiff_client::view::Pod;

use crate::cluster::{Cluster, HostPort, Load, NodeInfo, PodInfo, host_ports, node_of};
use crate::framework::{Reason, Refusal, Scale, Score};
use crate::resources::{CPU, MEMORY};
use crate::topology::Column;

pub(crate) const SCORES: &[Score] = &[
    Score { weight: 3, score: preferred_taints, scale: Scale::HighestIsWorst },
    Score { weight: 2, score: preferred_affinity, scale: Scale::Highest },
    Score { weight: 1, score: least_allocated, scale: Scale::None },
    Score { weight: 1, score: balanced, scale: Scale::None },
    Score { weight: 1, score: image_locality, scale: Scale::None },
];

const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// What a pod asks of a node by itself, whatever else is in the cluster: made once a decision.
#[derive(Debug)]
pub(crate) struct Wants<'p> {
    pub(crate) pod: &'p PodInfo,
    node_name: Option<&'p str>,
    bears_cordons: bool,
    pub(crate) labels: NodeLabels,
    preferred: Vec<(i64, Term)>,
    ports: Vec<HostPort>,
}

impl<'p> Wants<'p> {
    pub(crate) fn of(pod: &'p PodInfo, cluster: &Cluster) -> Wants<'p> {
        let cordon = cordon();
        let affinity = pod.pod.spec.as_ref().and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref());
        let preferred =
            affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        let preferred = preferred.into_iter().flatten();
        Wants {
            pod,
            node_name: node_of(&pod.pod),
            bears_cordons: tolerations(&pod.pod).iter().any(|t| tolerates(t, &cordon)),
            labels: NodeLabels::of(&pod.pod, cluster),
            preferred: preferred.map(|t| (i64::from(t.weight), Term::new(&t.preference, cluster))).collect(),
            ports: host_ports(&pod.pod).collect(),
        }
    }

    /// Whether a node that holds so much is one for the pod. The first that refuses ends the look at a node; resources name
    /// all that is lacking. In upstream's order; spreading and affinity to pods come after these.
    pub(crate) fn filter(&self, node: &NodeInfo, load: &Load) -> Result<(), Refusal> {
        if node.is_cordoned && !self.bears_cordons {
            return Err(Refusal::for_good(Reason::Cordoned));
        }
        if self.node_name.is_some_and(|name| name != node.name()) {
            return Err(Refusal::for_good(Reason::NodeName));
        }
        if !bears_taints(&self.pod.pod, node) {
            return Err(Refusal::for_good(Reason::Taints));
        }
        if !self.labels.hold(node) {
            return Err(Refusal::for_good(Reason::NodeAffinity));
        }
        if self.ports.iter().any(|port| is_taken(port, load)) {
            return Err(Refusal::for_now(Reason::Ports));
        }
        resources(self.pod, node, load)
    }
}

fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
}

/// What a cordoned node counts as having.
fn cordon() -> Taint {
    Taint { key: UNSCHEDULABLE_TAINT.into(), effect: "NoSchedule".into(), ..Taint::default() }
}

pub(crate) fn bears_taints(pod: &Pod, node: &NodeInfo) -> bool {
    if !node.has_taints {
        return true;
    }
    let taints = node.node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    pod.spec.as_ref().is_some_and(|spec| tolerates_all(spec, taints, &["NoSchedule", "NoExecute"]))
}

fn preferred_taints(wants: &Wants<'_>, node: &NodeInfo) -> i64 {
    if !node.has_soft_taints {
        return 0;
    }
    let taints = node.node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let soft = taints.filter(|t| t.effect == "PreferNoSchedule");
    soft.filter(|taint| !tolerations(&wants.pod.pod).iter().any(|t| tolerates(t, taint))).count() as i64
}

/// The node selector of a pod and its required node affinity.
#[derive(Debug)]
pub(crate) struct NodeLabels {
    selector: Vec<Holds>,
    /// Alternatives.
    required: Option<Vec<Term>>,
}

impl NodeLabels {
    fn of(pod: &Pod, cluster: &Cluster) -> NodeLabels {
        let spec = pod.spec.as_ref();
        let selector = spec.iter().flat_map(|s| s.node_selector.iter().flatten());
        let affinity = spec.and_then(|s| s.affinity.as_ref()?.node_affinity.as_ref());
        let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let terms = |terms: &[NodeSelectorTerm]| terms.iter().map(|t| Term::new(t, cluster)).collect();
        NodeLabels {
            selector: selector
                .map(|(key, value)| Holds::new(key, cluster, |found| found == Some(value.as_str())))
                .collect(),
            required: required.map(|r| terms(&r.node_selector_terms)),
        }
    }

    /// Whether any node will do.
    pub(crate) fn is_any(&self) -> bool {
        self.selector.is_empty() && self.required.is_none()
    }

    pub(crate) fn hold(&self, node: &NodeInfo) -> bool {
        self.selector.iter().all(|holds| holds.of(node))
            && self.required.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(node)))
    }
}

/// Whether a node by itself may be one for a pod: what [`Wants::filter`] says, asked once. With the pods that are on it, or
/// with those alone that it may not have deleted.
pub(crate) fn may_fit(pod: &PodInfo, node: &NodeInfo) -> bool {
    suits(pod, node)
        && (has_room(pod, node, &node.load)
            || pod.may_preempt()
                && node.load_from(pod.priority()).is_some_and(|load| has_room(pod, node, &load)))
}

fn suits(pod: &PodInfo, node: &NodeInfo) -> bool {
    let bears_cordons = || tolerations(&pod.pod).iter().any(|t| tolerates(t, &cordon()));
    let facts = NodeFacts { name: node.name(), labels: node.node.metadata.labels.as_ref() };
    (!node.is_cordoned || bears_cordons())
        && node_of(&pod.pod).is_none_or(|name| name == node.name())
        && bears_taints(&pod.pod, node)
        && pod.pod.spec.as_ref().is_some_and(|spec| selects_node(spec, &facts))
}

fn has_room(pod: &PodInfo, node: &NodeInfo, load: &Load) -> bool {
    !host_ports(&pod.pod).any(|port| is_taken(&port, load)) && resources(pod, node, load).is_ok()
}

fn field_holds(requirement: &NodeSelectorRequirement, node: &NodeInfo) -> bool {
    requirement.key == "metadata.name" && requirement_holds(requirement, Some(node.name()))
}

fn preferred_affinity(wants: &Wants<'_>, node: &NodeInfo) -> i64 {
    wants.preferred.iter().filter(|(_, term)| term.matches(node)).map(|(weight, _)| weight).sum()
}

/// One term of a node affinity.
#[derive(Debug)]
struct Term {
    labels: Vec<Holds>,
    fields: Vec<NodeSelectorRequirement>,
}

impl Term {
    fn new(term: &NodeSelectorTerm, cluster: &Cluster) -> Term {
        let expressions = term.match_expressions.iter().flatten();
        let holds =
            |r: &NodeSelectorRequirement| Holds::new(&r.key, cluster, |value| requirement_holds(r, value));
        Term {
            labels: expressions.map(holds).collect(),
            fields: term.match_fields.clone().unwrap_or_default(),
        }
    }

    /// An empty term matches nothing.
    fn matches(&self, node: &NodeInfo) -> bool {
        !(self.labels.is_empty() && self.fields.is_empty())
            && self.labels.iter().all(|holds| holds.of(node))
            && self.fields.iter().all(|r| field_holds(r, node))
    }
}

/// Whether something holds of a label, found out once for each value that nodes have.
#[derive(Debug)]
struct Holds {
    column: Arc<Column>,
    by_value: Vec<bool>,
    without: bool,
}

impl Holds {
    fn new(key: &str, cluster: &Cluster, test: impl Fn(Option<&str>) -> bool) -> Holds {
        let column = cluster.column(key);
        let mut by_value = vec![false; column.n_values()];
        column.values().for_each(|(value, number)| by_value[number] = test(Some(value)));
        Holds { by_value, without: test(None), column }
    }

    fn of(&self, node: &NodeInfo) -> bool {
        self.column.value(node.id).map_or(self.without, |value| self.by_value[value])
    }
}

fn is_taken((ip, protocol, port): &HostPort, load: &Load) -> bool {
    let any = |ip: &str| ip == "0.0.0.0";
    load.ports.iter().any(|(i, p, n)| n == port && p == protocol && (i == ip || any(i) || any(ip)))
}

/// Every resource that a node has too little of; for good, if it would have even if it were empty.
fn resources(pod: &PodInfo, node: &NodeInfo, load: &Load) -> Result<(), Refusal> {
    let is_full = load.n_pods >= node.allocatable.n_pods();
    let lacking = pod.requests.lacking(&node.allocatable, &load.requested);
    let for_good = lacking.iter().any(|(_, for_good)| *for_good);
    let lacking = lacking.into_iter().map(|(number, _)| Reason::Insufficient(number));
    let mut reasons = is_full.then_some(Reason::TooManyPods).into_iter().chain(lacking);
    match reasons.next() {
        None => Ok(()),
        Some(first) => Err(Refusal { first, more: reasons.collect(), for_good }),
    }
}

/// The share of CPU and memory in use if the pod came, each 0 to 1.
fn shares(pod: &PodInfo, node: &NodeInfo) -> [f64; 2] {
    [CPU, MEMORY].map(|which| {
        let capacity = node.allocatable.common(which);
        if capacity == 0 {
            return 1.0;
        }
        let taken = node.load.requested_for_scoring.common(which);
        (taken.saturating_add(pod.requests_for_scoring.common(which)) as f64 / capacity as f64).min(1.0)
    })
}

/// The more is left, the better.
fn least_allocated(wants: &Wants<'_>, node: &NodeInfo) -> i64 {
    let left: f64 = shares(wants.pod, node).iter().map(|share| (1.0 - share) * 100.0).sum();
    (left / 2.0) as i64
}

/// CPU and memory should fill up alike.
fn balanced(wants: &Wants<'_>, node: &NodeInfo) -> i64 {
    let [cpu, memory] = shares(wants.pod, node);
    ((1.0 - (cpu - memory).abs() / 2.0) * 100.0) as i64
}

/// A node that has the images already starts the pod sooner.
fn image_locality(wants: &Wants<'_>, node: &NodeInfo) -> i64 {
    const MIN_BYTES: i64 = 23 * 1024 * 1024;
    const MAX_BYTES_A_CONTAINER: i64 = 1000 * 1024 * 1024;
    let images = node.node.status.as_ref().and_then(|s| s.images.as_deref()).unwrap_or_default();
    if images.is_empty() {
        return 0;
    }
    let containers = wants.pod.pod.spec.iter().flat_map(|s| &s.containers);
    let (mut bytes, mut n_containers): (i64, i64) = (0, 0);
    for wanted in containers.filter_map(|c| c.image.as_deref()) {
        n_containers += 1;
        // A node names images in full.
        let named = |name: &String| {
            name.strip_suffix(wanted).is_some_and(|before| before.is_empty() || before.ends_with('/'))
        };
        let image = images.iter().find(|i| i.names.iter().flatten().any(named));
        bytes = bytes.saturating_add(image.and_then(|i| i.size_bytes).unwrap_or(0));
    }
    let max = MAX_BYTES_A_CONTAINER * n_containers.max(1);
    100 * (bytes.clamp(MIN_BYTES, max) - MIN_BYTES) / (max - MIN_BYTES)
}
