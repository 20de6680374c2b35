//! One decision: filter the nodes, score what is left, choose the best. Pure.
//!
//! Source: upstream's scheduling framework; plugin names, weights and reasons are kube-scheduler's.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::cluster::NodeInfo;
use crate::plugins;

/// Lets a node pass, or says why not.
pub(crate) type Filter = fn(&Pod, &NodeInfo) -> Result<(), String>;

/// Raw marks for nodes; the framework scales them to 0..=100.
pub(crate) struct Score {
    pub(crate) weight: i64,
    pub(crate) score: fn(&Pod, &NodeInfo) -> i64,
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

const MAX_SCORE: i64 = 100;

/// Why no node fits, worded as upstream words it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unschedulable {
    pub(crate) message: String,
}

/// The node for a pod. Among equals, `pick` chooses: it gets their number and answers an index.
pub(crate) fn decide<'n>(
    pod: &Pod,
    nodes: &'n [NodeInfo],
    pick: impl FnOnce(usize) -> usize,
) -> Result<&'n NodeInfo, Unschedulable> {
    if let Some(reason) = plugins::unsupported(pod) {
        return Err(Unschedulable { message: reason });
    }
    let mut feasible = Vec::new();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for node in nodes {
        match filter(pod, node) {
            Ok(()) => feasible.push(node),
            Err(why) => why.into_iter().for_each(|reason| *reasons.entry(reason).or_default() += 1),
        }
    }
    if feasible.is_empty() {
        return Err(Unschedulable { message: message(nodes.len(), &reasons) });
    }
    let totals = totals(pod, &feasible);
    let best = totals.iter().copied().max().unwrap_or_default();
    let candidates: Vec<&NodeInfo> =
        feasible.into_iter().zip(&totals).filter(|(_, total)| **total == best).map(|(n, _)| n).collect();
    let at = pick(candidates.len()).min(candidates.len() - 1);
    Ok(candidates[at])
}

/// The first filter that refuses ends the look at a node; resources name all that is lacking.
fn filter(pod: &Pod, node: &NodeInfo) -> Result<(), Vec<String>> {
    for filter in plugins::FILTERS {
        filter(pod, node).map_err(|reason| vec![reason])?;
    }
    let lacking = plugins::lacking_resources(pod, node);
    if lacking.is_empty() { Ok(()) } else { Err(lacking) }
}

fn totals(pod: &Pod, nodes: &[&NodeInfo]) -> Vec<i64> {
    let mut totals = vec![0; nodes.len()];
    for plugin in plugins::SCORES {
        let mut marks: Vec<i64> = nodes.iter().map(|node| (plugin.score)(pod, node)).collect();
        let highest = marks.iter().copied().max().unwrap_or_default();
        for mark in &mut marks {
            *mark = match plugin.scale {
                Scale::None => *mark,
                Scale::Highest if highest == 0 => 0,
                Scale::Highest => *mark * MAX_SCORE / highest,
                Scale::HighestIsWorst if highest == 0 => MAX_SCORE,
                Scale::HighestIsWorst => MAX_SCORE - *mark * MAX_SCORE / highest,
            };
        }
        totals.iter_mut().zip(marks).for_each(|(total, mark)| *total += mark * plugin.weight);
    }
    totals
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s). no preemption…`
fn message(n_nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    if n_nodes == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut parts: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort();
    format!(
        "0/{n_nodes} nodes are available: {}. preemption: 0/{n_nodes} nodes are available: {n_nodes} Preemption is \
         not helpful for scheduling.",
        parts.join(", ")
    )
}

#[cfg(test)]
mod tests;
