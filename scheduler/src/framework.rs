//! One decision: filter the nodes, score what is left, choose the best. Pure.
//!
//! Source: upstream's scheduling framework; plugin names, weights and reasons are kube-scheduler's.

use std::collections::{BTreeMap, HashMap};

use skiff_api::LabelSelector;
use skiff_client::key_of;

use crate::affinity::{self, Affinity};
use crate::cluster::{Cluster, Load, NodeInfo, PodInfo, Tenant, uid_of};
use crate::plugins::{self, Wants};
use crate::preemption::{self, Plan, Preemption};
use crate::spread::{self, Spread};
use crate::topology::NodeId;
use crate::volumes::{Bindings, PodVolumes};

/// What of a node, or beside it, is against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    Cordoned,
    NodeName,
    Taints,
    NodeAffinity,
    Ports,
    TooManyPods,
    /// Of this one of the pod's requests.
    Insufficient(u16),
    /// Of another pod, and for one alone.
    ClaimInUse,
    VolumeElsewhere,
    NoVolume,
    VolumeZone,
    Uneven,
    /// A label that the pod is to be spread by is missing.
    NoTopology,
    Affinity,
    AntiAffinity,
    ExistingAntiAffinity,
}

impl Reason {
    fn text(self, pod: &PodInfo) -> String {
        let text = match self {
            Reason::Cordoned => "node(s) were unschedulable",
            Reason::NodeName => "node(s) didn't match the requested node name",
            Reason::Taints => "node(s) had untolerated taint(s)",
            Reason::NodeAffinity => "node(s) didn't match Pod's node affinity/selector",
            Reason::Ports => "node(s) didn't have free ports for the requested pod ports",
            Reason::TooManyPods => "Too many pods",
            Reason::Insufficient(which) => return format!("Insufficient {}", pod.requests.name(which)),
            Reason::ClaimInUse => {
                "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by \
                 another pod"
            }
            Reason::VolumeElsewhere => "node(s) didn't match PersistentVolume's node affinity",
            Reason::NoVolume => "node(s) didn't find available persistent volumes to bind",
            Reason::VolumeZone => "node(s) had no available volume zone",
            Reason::Uneven => "node(s) didn't match pod topology spread constraints",
            Reason::NoTopology => {
                "node(s) didn't match pod topology spread constraints (missing required label)"
            }
            Reason::Affinity => "node(s) didn't match pod affinity rules",
            Reason::AntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Reason::ExistingAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules",
        };
        text.to_owned()
    }

    /// It is about pods on other nodes too.
    pub(crate) fn minds_others(self) -> bool {
        self == Reason::ClaimInUse || self >= Reason::Uneven
    }
}

/// Why a node is not for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) first: Reason,
    pub(crate) more: Vec<Reason>,
    /// The node would not do without any of its pods, either.
    pub(crate) for_good: bool,
}

impl Refusal {
    pub(crate) fn for_good(reason: Reason) -> Refusal {
        Refusal { first: reason, more: Vec::new(), for_good: true }
    }

    pub(crate) fn for_now(reason: Reason) -> Refusal {
        Refusal { first: reason, more: Vec::new(), for_good: false }
    }

    pub(crate) fn reasons(&self) -> impl Iterator<Item = Reason> {
        std::iter::once(self.first).chain(self.more.iter().copied())
    }
}

/// Raw marks for nodes; the framework scales them to 0..=100.
pub(crate) struct Score {
    pub(crate) weight: i64,
    pub(crate) score: fn(&Wants<'_>, &NodeInfo) -> i64,
    pub(crate) scale: Scale,
}

/// How raw marks become 0..=100.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Scale {
    /// They are already.
    None,
    /// The highest becomes 100.
    Highest,
    /// The highest becomes 0: marks count what is against a node.
    HighestIsWorst,
}

pub(crate) const MAX_SCORE: i64 = 100;
/// What spreading and affinity to other pods weigh.
const SPREAD_WEIGHT: i64 = 2;
const AFFINITY_WEIGHT: i64 = 2;

/// Why no node fits.
#[derive(Debug)]
pub(crate) struct Unschedulable {
    /// Worded as upstream words it.
    pub(crate) message: String,
    /// Pods on other nodes had to do with it: when they change it may fit.
    pub(crate) minds_others: bool,
    pub(crate) nomination: Nomination,
}

/// What becomes of the node that a pod waits for.
#[derive(Debug)]
pub(crate) enum Nomination {
    /// That, or none, as before.
    Keep,
    /// It waits for none.
    Clear,
    /// For this one, once it is made free.
    Node(Preemption),
}

/// One pod, and what of the cluster was counted for it.
pub(crate) struct Cycle<'c> {
    wants: Wants<'c>,
    pub(crate) cluster: &'c Cluster,
    affinity: Affinity<'c>,
    spread: Spread,
    volumes: PodVolumes<'c>,
    /// Pods that wait for a node, whom this one leaves the room.
    nominated: HashMap<NodeId, Vec<&'c Tenant>>,
}

/// What was decided.
#[derive(Debug)]
pub(crate) struct Decision<'c> {
    pub(crate) node: &'c NodeInfo,
    /// What has to be done for its claims first.
    pub(crate) bindings: Bindings,
    /// Nodes that were looked at: the next decision goes on after them.
    pub(crate) n_looked_at: usize,
}

/// The node for a pod. `siblings` selects what belongs together with it: it is spread among them if it does not say how.
/// Among equals, `pick` chooses: it gets their number and answers an index.
pub(crate) fn decide<'c>(
    pod: &'c PodInfo,
    cluster: &'c Cluster,
    siblings: Option<&LabelSelector>,
    pick: impl Fn(usize) -> usize,
) -> Result<Decision<'c>, Unschedulable> {
    let mut cycle = Cycle::new(pod, cluster);
    if let Some(why) = cycle.volumes.unmet().map(str::to_owned) {
        return Err(cycle.unmet(&why, pick));
    }
    // What was made free for it is most likely what fits, and is to be used.
    if let Some(node) = cycle.nominated_node()
        && cycle.filter(node, &node.load).is_ok()
    {
        return Ok(cycle.decision(node, 0));
    }
    let (mut feasible, mut refused) = (Vec::new(), Vec::new());
    let n_enough = n_enough(cluster.n_nodes());
    for node in cluster.nodes() {
        match cycle.filter(node, &node.load) {
            Ok(()) => feasible.push(node),
            Err(why) => refused.push((node, why)),
        }
        if feasible.len() == n_enough {
            break;
        }
    }
    let n_looked_at = feasible.len() + refused.len();
    if feasible.is_empty() {
        return Err(cycle.unschedulable(&refused, pick));
    }
    let totals = cycle.totals(&feasible, siblings);
    let best = totals.iter().copied().max().unwrap_or_default();
    let candidates: Vec<&NodeInfo> =
        feasible.into_iter().zip(&totals).filter(|(_, total)| **total == best).map(|(n, _)| n).collect();
    let at = pick(candidates.len()).min(candidates.len() - 1);
    Ok(cycle.decision(candidates[at], n_looked_at))
}

/// How many nodes that fit are enough to choose from: in a large cluster the best of many is as good as the best of all.
///
/// Source: upstream's `numFeasibleNodesToFind`.
fn n_enough(n_nodes: usize) -> usize {
    const LEAST: usize = 100;
    let percent = 50_usize.saturating_sub(n_nodes / 125).max(5);
    if n_nodes < LEAST { n_nodes } else { (n_nodes * percent / 100).max(LEAST) }
}

impl<'c> Cycle<'c> {
    pub(crate) fn new(pod: &'c PodInfo, cluster: &'c Cluster) -> Cycle<'c> {
        let wants = Wants::of(pod, cluster);
        let spread = Spread::of(&wants, cluster);
        let affinity = Affinity::of(pod, cluster);
        let mut nominated = HashMap::new();
        let is_minded = |t: &Tenant| t.priority >= pod.priority() && t.uid != uid_of(&pod.pod);
        for (node, tenants) in cluster.nominations.iter() {
            let minded: Vec<&Tenant> = tenants.iter().map(|t| &**t).filter(|t| is_minded(t)).collect();
            if let Some(node) = cluster.find(node).filter(|_| !minded.is_empty()) {
                nominated.insert(node.id, minded);
            }
        }
        let volumes = PodVolumes::of(pod, cluster);
        Cycle { wants, cluster, affinity, spread, volumes, nominated }
    }

    fn decision(&self, node: &'c NodeInfo, n_looked_at: usize) -> Decision<'c> {
        // It was not refused, so there is a way.
        let bindings = self.volumes.bindings(node, &self.cluster.storage).unwrap_or_default();
        Decision { node, bindings, n_looked_at }
    }

    pub(crate) fn pod(&self) -> &'c PodInfo {
        self.wants.pod
    }

    pub(crate) fn priority(&self) -> i32 {
        self.wants.pod.priority()
    }

    /// The node that the pod waits for, if it is there.
    pub(crate) fn nominated_node(&self) -> Option<&'c NodeInfo> {
        let nominations = &self.cluster.nominations;
        self.cluster.find(nominations.node_of(&key_of(&*self.wants.pod.pod))?)
    }

    /// Whether a node that holds so much is one for the pod: both if those come that wait for it, whom the pod leaves the
    /// room, and if they do not, whom it may want to be near.
    pub(crate) fn filter(&mut self, node: &NodeInfo, load: &Load) -> Result<(), Refusal> {
        if let Some(nominated) = self.nominated.get(&node.id).cloned() {
            let mut with = load.clone();
            for tenant in &nominated {
                with.add(tenant);
                self.shift(tenant, node.id, 1);
            }
            let answer = self.filter_as_is(node, &with);
            nominated.iter().for_each(|tenant| self.shift(tenant, node.id, -1));
            answer?;
        }
        self.filter_as_is(node, load)
    }

    fn filter_as_is(&self, node: &NodeInfo, load: &Load) -> Result<(), Refusal> {
        self.wants.filter(node, load)?;
        self.volumes.filter(node, &self.cluster.storage)?;
        self.spread.filter(node)?;
        self.affinity.filter(node)
    }

    /// Puts a pod on a node into what was counted, or takes it out: `by` is 1 or -1.
    pub(crate) fn shift(&mut self, tenant: &Tenant, node: NodeId, by: i64) {
        self.affinity.shift(tenant, node, by, self.cluster);
        self.spread.shift(self.wants.pod, tenant, node, by);
        self.volumes.shift(self.wants.pod, tenant, by);
    }

    fn totals(&self, nodes: &[&NodeInfo], siblings: Option<&LabelSelector>) -> Vec<i64> {
        let mut totals = vec![0; nodes.len()];
        let mut add = |marks: Vec<i64>, weight: i64| {
            totals.iter_mut().zip(marks).for_each(|(total, mark)| *total += mark * weight);
        };
        for plugin in plugins::SCORES {
            let marks: Vec<i64> = nodes.iter().map(|node| (plugin.score)(&self.wants, node)).collect();
            add(scaled(marks, plugin.scale), plugin.weight);
        }
        if let Some(marks) = spread::scores(&self.wants, self.cluster, nodes, siblings) {
            add(marks, SPREAD_WEIGHT);
        }
        if let Some(marks) = affinity::scores(self.wants.pod, self.cluster, nodes) {
            add(marks, AFFINITY_WEIGHT);
        }
        totals
    }

    /// Nothing of a node is against the pod, but something of the pod itself against all of them.
    fn unmet(self, why: &str, pick: impl Fn(usize) -> usize) -> Unschedulable {
        let refusal = || Refusal::for_good(Reason::NoVolume);
        let refused: Vec<(&NodeInfo, Refusal)> = self.cluster.nodes().map(|node| (node, refusal())).collect();
        let message = format!("0/{} nodes are available: {why}.", refused.len());
        self.told(message, &refused, pick)
    }

    /// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s). preemption: …`
    fn unschedulable(
        self,
        refused: &[(&'c NodeInfo, Refusal)],
        pick: impl Fn(usize) -> usize,
    ) -> Unschedulable {
        let mut reasons = Counted::default();
        refused.iter().flat_map(|(_, why)| why.reasons()).for_each(|reason| reasons.add(Why::Is(reason), 1));
        let message = reasons.text(refused.len(), self.wants.pod);
        self.told(message, refused, pick)
    }

    fn told(
        mut self,
        message: String,
        refused: &[(&'c NodeInfo, Refusal)],
        pick: impl Fn(usize) -> usize,
    ) -> Unschedulable {
        if refused.is_empty() {
            let message = "no nodes available to schedule pods".into();
            return Unschedulable { message, minds_others: false, nomination: Nomination::Clear };
        }
        let minds_others = refused.iter().any(|(_, why)| why.reasons().any(Reason::minds_others));
        let (message, nomination) = match preemption::plan(&mut self, refused, pick) {
            Plan::NotEligible(why) => (format!("{message} preemption: {why}"), Nomination::Keep),
            Plan::NoCandidate(counted) => {
                let why = counted.text(refused.len(), self.wants.pod);
                (format!("{message} preemption: {why}"), Nomination::Clear)
            }
            Plan::Preempt(preemption) => (message, Nomination::Node(preemption)),
        };
        Unschedulable { message, minds_others, nomination }
    }
}

/// What a message says of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    Is(Reason),
    Says(&'static str),
}

/// How many nodes each reason holds for.
#[derive(Default)]
pub(crate) struct Counted(BTreeMap<Why, usize>);

impl Counted {
    pub(crate) fn add(&mut self, why: Why, n_nodes: usize) {
        if n_nodes > 0 {
            *self.0.entry(why).or_default() += n_nodes;
        }
    }

    /// In the order of the text, as upstream sorts it.
    fn text(&self, n_nodes: usize, pod: &PodInfo) -> String {
        let text = |why: &Why| match why {
            Why::Is(reason) => reason.text(pod),
            Why::Says(text) => (*text).to_owned(),
        };
        let mut parts: Vec<String> =
            self.0.iter().map(|(why, count)| format!("{count} {}", text(why))).collect();
        parts.sort();
        format!("0/{n_nodes} nodes are available: {}.", parts.join(", "))
    }
}

fn scaled(mut marks: Vec<i64>, scale: Scale) -> Vec<i64> {
    let highest = marks.iter().copied().max().unwrap_or_default();
    for mark in &mut marks {
        *mark = match scale {
            Scale::None => *mark,
            Scale::Highest if highest == 0 => 0,
            Scale::Highest => *mark * MAX_SCORE / highest,
            Scale::HighestIsWorst if highest == 0 => MAX_SCORE,
            Scale::HighestIsWorst => MAX_SCORE - *mark * MAX_SCORE / highest,
        };
    }
    marks
}

#[cfg(test)]
pub(crate) mod tests;
