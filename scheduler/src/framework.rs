//! One decision: filter the nodes, score what is left, choose the best. Pure.
//!
//! Source: upstream's scheduling framework; plugin names, weights and reasons are kube-scheduler's.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use skiff_api::LabelSelector;

use crate::affinity::Affinity;
use crate::cluster::{NodeInfo, PodInfo, Snapshot};
use crate::plugins;
use crate::spread::{self, Spread};

/// Lets a node pass, or says why not.
pub(crate) struct Filter {
    pub(crate) check: fn(&Pod, &NodeInfo) -> Result<(), &'static str>,
    /// Whether the pods on the node have nothing to do with it.
    pub(crate) for_good: bool,
}

/// Why a node is not for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reasons: Vec<String>,
    /// The node would not do without any of its pods, either.
    pub(crate) for_good: bool,
}

impl Refusal {
    pub(crate) fn for_good(reason: &str) -> Refusal {
        Refusal { reasons: vec![reason.to_owned()], for_good: true }
    }

    pub(crate) fn for_now(reason: &str) -> Refusal {
        Refusal { reasons: vec![reason.to_owned()], for_good: false }
    }
}

/// Raw marks for nodes; the framework scales them to 0..=100.
pub(crate) struct Score {
    pub(crate) weight: i64,
    pub(crate) score: fn(&PodInfo, &NodeInfo) -> i64,
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

/// Why no node fits, worded as upstream words it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unschedulable {
    pub(crate) message: String,
}

/// One pod, and what of the cluster was counted for it.
struct Cycle<'s> {
    pod: &'s PodInfo,
    snapshot: &'s Snapshot,
    affinity: Affinity<'s>,
    spread: Spread,
}

/// What was decided.
#[derive(Debug)]
pub(crate) struct Decision<'n> {
    pub(crate) node: &'n NodeInfo,
    /// Nodes that were looked at: the next decision goes on after them.
    pub(crate) n_looked_at: usize,
}

/// The node for a pod. `siblings` selects what belongs together with it: it is spread among them if it does not say how.
/// Among equals, `pick` chooses: it gets their number and answers an index.
pub(crate) fn decide<'n>(
    pod: &PodInfo,
    snapshot: &'n Snapshot,
    siblings: Option<&LabelSelector>,
    pick: impl FnOnce(usize) -> usize,
) -> Result<Decision<'n>, Unschedulable> {
    let cycle = Cycle::new(pod, snapshot);
    let (mut feasible, mut refused) = (Vec::new(), Vec::new());
    let n_nodes = snapshot.nodes.len();
    for at in 0..n_nodes {
        let node = &*snapshot.nodes[(snapshot.first + at) % n_nodes];
        match cycle.filter(node) {
            Ok(()) => feasible.push(node),
            Err(why) => refused.push((node, why)),
        }
        if feasible.len() == n_enough(n_nodes) {
            break;
        }
    }
    let n_looked_at = feasible.len() + refused.len();
    if feasible.is_empty() {
        return Err(Unschedulable { message: cycle.message(&refused) });
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

impl<'s> Cycle<'s> {
    fn new(pod: &'s PodInfo, snapshot: &'s Snapshot) -> Cycle<'s> {
        Cycle { pod, snapshot, affinity: Affinity::of(pod, snapshot), spread: Spread::of(&pod.pod, snapshot) }
    }

    /// The first filter that refuses ends the look at a node; resources name all that is lacking.
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        for filter in plugins::FILTERS {
            (filter.check)(&self.pod.pod, node)
                .map_err(|reason| Refusal { reasons: vec![reason.to_owned()], for_good: filter.for_good })?;
        }
        plugins::resources(self.pod, node)?;
        self.spread.filter(&self.pod.pod, node)?;
        self.affinity.filter(node)
    }

    fn totals(&self, nodes: &[&NodeInfo], siblings: Option<&LabelSelector>) -> Vec<i64> {
        let mut totals = vec![0; nodes.len()];
        let mut add = |marks: Vec<i64>, weight: i64| {
            totals.iter_mut().zip(marks).for_each(|(total, mark)| *total += mark * weight);
        };
        for plugin in plugins::SCORES {
            let marks: Vec<i64> = nodes.iter().map(|node| (plugin.score)(self.pod, node)).collect();
            add(scaled(marks, plugin.scale), plugin.weight);
        }
        if let Some(marks) = spread::scores(&self.pod.pod, self.snapshot, nodes, siblings) {
            add(marks, SPREAD_WEIGHT);
        }
        if let Some(marks) = self.affinity.scores(&self.pod.pod, self.snapshot, nodes) {
            add(marks, AFFINITY_WEIGHT);
        }
        totals
    }

    /// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s). preemption: …`
    fn message(&self, refused: &[(&NodeInfo, Refusal)]) -> String {
        if refused.is_empty() {
            return "no nodes available to schedule pods".into();
        }
        let reasons = refused.iter().flat_map(|(_, why)| why.reasons.iter().cloned());
        let message = counted(refused.len(), reasons);
        let never =
            self.pod.pod.spec.as_ref().is_some_and(|s| s.preemption_policy.as_deref() == Some("Never"));
        if never {
            return format!("{message} preemption: not eligible due to preemptionPolicy=Never.");
        }
        let preempted = refused.iter().flat_map(|(node, why)| self.without_victims(node, why));
        format!("{message} preemption: {}", counted(refused.len(), preempted))
    }

    /// Why a node does not do without the pods of lower priority on it, either.
    fn without_victims(&self, node: &NodeInfo, why: &Refusal) -> Vec<String> {
        let mine = self.pod.priority();
        if why.for_good {
            return vec!["Preemption is not helpful for scheduling".into()];
        }
        if node.pods.iter().all(|other| other.priority() >= mine) {
            return vec!["No preemption victims found for incoming pod".into()];
        }
        let emptied = Arc::new(node.with_pods(|other| other.priority() >= mine));
        let mut snapshot = self.snapshot.clone();
        for other in &mut snapshot.nodes {
            if other.name() == node.name() {
                *other = emptied.clone();
            }
        }
        match Cycle::new(self.pod, &snapshot).filter(&emptied) {
            Err(why) => why.reasons,
            // Upstream would delete them. What is not built says so.
            Ok(()) => vec!["Preemption is not supported by this scheduler".into()],
        }
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

/// How many nodes each reason holds for, in the order of the text, as upstream sorts it.
fn counted(n_nodes: usize, reasons: impl Iterator<Item = String>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    reasons.for_each(|reason| *counts.entry(reason).or_default() += 1);
    let mut parts: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{n_nodes} nodes are available: {}.", parts.join(", "))
}

#[cfg(test)]
mod tests;
