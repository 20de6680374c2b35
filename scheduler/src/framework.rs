//! One decision: filter the nodes, score what is left, choose the best. Pure.
//!
//! Source: upstream's scheduling framework; plugin names, weights and reasons are kube-scheduler's.

use std::collections::BTreeMap;

use skiff_api::LabelSelector;

use crate::affinity::{self, Affinity};
use crate::cluster::{Cluster, NodeInfo, PodInfo};
use crate::plugins::{self, Wants};
use crate::spread::{self, Spread};

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
        self >= Reason::Uneven
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

    fn reasons(&self) -> impl Iterator<Item = Reason> {
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
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unschedulable {
    /// Worded as upstream words it.
    pub(crate) message: String,
    /// Pods on other nodes had to do with it: when they change it may fit.
    pub(crate) minds_others: bool,
}

/// One pod, and what of the cluster was counted for it.
struct Cycle<'c> {
    wants: Wants<'c>,
    cluster: &'c Cluster,
    affinity: Affinity<'c>,
    spread: Spread,
}

/// What was decided.
#[derive(Debug)]
pub(crate) struct Decision<'c> {
    pub(crate) node: &'c NodeInfo,
    /// Nodes that were looked at: the next decision goes on after them.
    pub(crate) n_looked_at: usize,
}

/// The node for a pod. `siblings` selects what belongs together with it: it is spread among them if it does not say how.
/// Among equals, `pick` chooses: it gets their number and answers an index.
pub(crate) fn decide<'c>(
    pod: &'c PodInfo,
    cluster: &'c Cluster,
    siblings: Option<&LabelSelector>,
    pick: impl FnOnce(usize) -> usize,
) -> Result<Decision<'c>, Unschedulable> {
    let mut cycle = Cycle::new(pod, cluster);
    let (mut feasible, mut refused) = (Vec::new(), Vec::new());
    let n_enough = n_enough(cluster.n_nodes());
    for node in cluster.nodes() {
        match cycle.filter(node) {
            Ok(()) => feasible.push(node),
            Err(why) => refused.push((node, why)),
        }
        if feasible.len() == n_enough {
            break;
        }
    }
    let n_looked_at = feasible.len() + refused.len();
    if feasible.is_empty() {
        let minds_others = refused.iter().any(|(_, why)| why.reasons().any(Reason::minds_others));
        return Err(Unschedulable { message: cycle.message(&refused), minds_others });
    }
    let totals = cycle.totals(&feasible, siblings);
    let best = totals.iter().copied().max().unwrap_or_default();
    let candidates: Vec<&NodeInfo> =
        feasible.into_iter().zip(&totals).filter(|(_, total)| **total == best).map(|(n, _)| n).collect();
    let at = pick(candidates.len()).min(candidates.len() - 1);
    Ok(Decision { node: candidates[at], n_looked_at })
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
    fn new(pod: &'c PodInfo, cluster: &'c Cluster) -> Cycle<'c> {
        let wants = Wants::of(pod, cluster);
        let spread = Spread::of(&wants, cluster);
        Cycle { wants, cluster, affinity: Affinity::of(pod, cluster), spread }
    }

    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        self.wants.filter(node)?;
        self.spread.filter(node)?;
        self.affinity.filter(node)
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

    /// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s). preemption: …`
    fn message(&mut self, refused: &[(&NodeInfo, Refusal)]) -> String {
        if refused.is_empty() {
            return "no nodes available to schedule pods".into();
        }
        let pod = self.wants.pod;
        let mut reasons = Counted::default();
        refused.iter().flat_map(|(_, why)| why.reasons()).for_each(|reason| reasons.add(Why::Is(reason)));
        let message = reasons.text(refused.len(), pod);
        let never = pod.pod.spec.as_ref().is_some_and(|s| s.preemption_policy.as_deref() == Some("Never"));
        if never {
            return format!("{message} preemption: not eligible due to preemptionPolicy=Never.");
        }
        let mut preempted = Counted::default();
        for (node, why) in refused {
            self.without_victims(node, why, &mut preempted);
        }
        format!("{message} preemption: {}", preempted.text(refused.len(), pod))
    }

    /// Why a node does not do without the pods of lower priority on it, either.
    fn without_victims(&mut self, node: &NodeInfo, why: &Refusal, counted: &mut Counted) {
        let mine = self.wants.pod.priority();
        if why.for_good {
            return counted.add(Why::Says("Preemption is not helpful for scheduling"));
        }
        if node.tenants.iter().all(|other| other.priority >= mine) {
            return counted.add(Why::Says("No preemption victims found for incoming pod"));
        }
        let emptied = node.with_tenants(|other| other.priority >= mine);
        self.shift(node, -1);
        let refused = self.filter(&emptied);
        self.shift(node, 1);
        match refused {
            Err(why) => why.reasons().for_each(|reason| counted.add(Why::Is(reason))),
            // Upstream would delete them. What is not built says so.
            Ok(()) => counted.add(Why::Says("Preemption is not supported by this scheduler")),
        }
    }

    /// Takes the pods of lower priority on a node out of what was counted, or puts them back.
    fn shift(&mut self, node: &NodeInfo, by: i64) {
        let (pod, cluster) = (self.wants.pod, self.cluster);
        let victims = node.tenants.iter().filter(|other| other.priority < pod.priority());
        for class in victims.filter_map(|other| cluster.classes().get(other.class)) {
            self.affinity.shift(class, node.id, by, cluster);
            self.spread.shift(pod, class, node.id, by);
        }
    }
}

/// What a message says of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    Is(Reason),
    Says(&'static str),
}

/// How many nodes each reason holds for.
#[derive(Default)]
struct Counted(BTreeMap<Why, usize>);

impl Counted {
    fn add(&mut self, why: Why) {
        *self.0.entry(why).or_default() += 1;
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
mod tests;
