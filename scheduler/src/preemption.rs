//! Who has to go so that a pod of higher priority can run, and from which node. Pure.
//!
//! Source: upstream's DefaultPreemption plugin and its preemption framework, whose sentences these are.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;

use crate::cluster::{NodeInfo, Tenant};
use crate::framework::{Counted, Cycle, Refusal, Why};

/// Of the nodes that may do, so many that do are enough to choose from: the larger of these.
const CANDIDATES_PERCENT: usize = 10;
const MIN_CANDIDATES: usize = 100;

/// What is said of a node on which nothing may be deleted, or it would not help.
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
const NO_HELP: &str = "Preemption is not helpful for scheduling";

/// Room that is to be made on a node.
#[derive(Debug)]
pub(crate) struct Preemption {
    pub(crate) node: String,
    /// The most important first. Some may be on their way out already.
    pub(crate) victims: Vec<Arc<Tenant>>,
    /// Pods of lower priority that waited for the node.
    pub(crate) displaced: Vec<Arc<Tenant>>,
}

/// What preemption can do for a pod.
pub(crate) enum Plan {
    /// It is not to be asked, or not now.
    NotEligible(&'static str),
    /// There is no node where it helps, counted by why.
    NoCandidate(Counted),
    Preempt(Preemption),
}

/// A node on which the pod fits once these are gone.
struct Candidate<'c> {
    node: &'c NodeInfo,
    /// The most important first.
    victims: Vec<&'c Arc<Tenant>>,
    /// Of those whose going would overdraw a budget.
    n_overdrawn: usize,
}

/// What to do for a pod that each node has refused. `pick` says where to begin among so many.
pub(crate) fn plan<'c>(
    cycle: &mut Cycle<'c>,
    refused: &[(&'c NodeInfo, Refusal)],
    pick: impl Fn(usize) -> usize,
) -> Plan {
    if let Some(why) = not_eligible(cycle, refused) {
        return Plan::NotEligible(why);
    }
    let nodes = refused.iter().filter(|(_, why)| !why.for_good);
    let nodes: Vec<&'c NodeInfo> = nodes.map(|(node, _)| *node).collect();
    let mut counted = Counted::default();
    counted.add(Why::Says(NO_HELP), refused.len() - nodes.len());
    if !cycle.cluster.has_lower_than(cycle.priority()) {
        // What a cluster of pods that are all as important costs.
        counted.add(Why::Says(NO_VICTIMS), nodes.len());
        return Plan::NoCandidate(counted);
    }
    let candidates = candidates(cycle, &nodes, &mut counted, pick);
    // Of those that are equal the first.
    match candidates.into_iter().min_by_key(Candidate::cost) {
        Some(candidate) => Plan::Preempt(candidate.preemption(cycle)),
        None => Plan::NoCandidate(counted),
    }
}

/// Why a pod may not have others deleted, if it may not.
fn not_eligible(cycle: &Cycle<'_>, refused: &[(&NodeInfo, Refusal)]) -> Option<&'static str> {
    if !cycle.pod().may_preempt() {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = cycle.nominated_node()?;
    let refusal = refused.iter().find(|(node, _)| node.id == nominated.id);
    if refusal.is_none_or(|(_, why)| why.for_good) {
        // It would wait there in vain.
        return None;
    }
    let is_awaited = |t: &Arc<Tenant>| t.priority < cycle.priority() && cycle.cluster.is_being_preempted(t);
    let waits = nominated.tenants.iter().any(is_awaited);
    waits.then_some("not eligible due to a terminating pod on the nominated node.")
}

/// Nodes that would do, those first that take no pod that a budget cannot spare; for others why not is counted.
fn candidates<'c>(
    cycle: &mut Cycle<'c>,
    nodes: &[&'c NodeInfo],
    counted: &mut Counted,
    pick: impl Fn(usize) -> usize,
) -> Vec<Candidate<'c>> {
    let n_enough = n_enough(nodes.len());
    let (before, after) = nodes.split_at(if nodes.is_empty() { 0 } else { pick(nodes.len()) % nodes.len() });
    let (mut good, mut overdrawing) = (Vec::new(), Vec::new());
    for node in after.iter().chain(before) {
        match candidate(cycle, node) {
            Ok(candidate) if candidate.n_overdrawn == 0 => good.push(candidate),
            Ok(candidate) => overdrawing.push(candidate),
            Err(None) => counted.add(Why::Says(NO_VICTIMS), 1),
            Err(Some(why)) => why.reasons().for_each(|reason| counted.add(Why::Is(reason), 1)),
        }
        if !good.is_empty() && good.len() + overdrawing.len() >= n_enough {
            break;
        }
    }
    good.append(&mut overdrawing);
    good
}

fn n_enough(n_nodes: usize) -> usize {
    (n_nodes * CANDIDATES_PERCENT / 100).max(MIN_CANDIDATES).min(n_nodes)
}

/// What has to go from a node. Else why the pod does not fit even without all that may; `None` where nothing may.
fn candidate<'c>(cycle: &mut Cycle<'c>, node: &'c NodeInfo) -> Result<Candidate<'c>, Option<Refusal>> {
    let priority = cycle.priority();
    let mut load = node.load_from(priority).ok_or(None)?;
    let mut lower: Vec<&'c Arc<Tenant>> =
        node.tenants.iter().filter(|tenant| tenant.priority < priority).collect();
    lower.iter().for_each(|tenant| cycle.shift(tenant, node.id, -1));
    if let Err(why) = cycle.filter(node, &load) {
        lower.iter().for_each(|tenant| cycle.shift(tenant, node.id, 1));
        return Err(Some(why));
    }
    lower.sort_by_key(|tenant| importance(tenant));
    let budgeted: Vec<&Tenant> = lower.iter().map(|tenant| &***tenant).collect();
    let overdrawn = cycle.cluster.budgets.overdrawn(&budgeted);
    let (mut victims, mut n_overdrawn) = (Vec::new(), 0);
    // Those that a budget cannot spare are the first to be let off.
    for is_overdrawn in [true, false] {
        for (tenant, _) in lower.iter().zip(&overdrawn).filter(|(_, is)| **is == is_overdrawn) {
            let mut with = load.clone();
            with.add(tenant);
            cycle.shift(tenant, node.id, 1);
            if cycle.filter(node, &with).is_ok() {
                load = with;
            } else {
                cycle.shift(tenant, node.id, -1);
                victims.push(*tenant);
                n_overdrawn += usize::from(is_overdrawn);
            }
        }
    }
    victims.iter().for_each(|tenant| cycle.shift(tenant, node.id, 1));
    victims.sort_by_key(|tenant| importance(tenant));
    // It was refused with all of them there, so it has some.
    if victims.is_empty() { Err(None) } else { Ok(Candidate { node, victims, n_overdrawn }) }
}

/// The less the more important: by priority, then by how long it has run.
fn importance(tenant: &Tenant) -> (Reverse<i32>, Timestamp) {
    (Reverse(tenant.priority), started(tenant))
}

/// What has not started yet starts later than all else.
fn started(tenant: &Tenant) -> Timestamp {
    tenant.started.unwrap_or(Timestamp::MAX)
}

impl Candidate<'_> {
    /// The less the better.
    fn cost(&self) -> (usize, i32, i64, usize, Reverse<Timestamp>) {
        let highest = self.victims.first().map_or(i32::MIN, |tenant| tenant.priority);
        // So that many of a negative priority are not less than one.
        let sum = self.victims.iter().map(|tenant| i64::from(tenant.priority) + (1 << 31)).sum();
        let of_highest = self.victims.iter().take_while(|tenant| tenant.priority == highest);
        let earliest = of_highest.map(|tenant| started(tenant)).min().unwrap_or(Timestamp::MAX);
        (self.n_overdrawn, highest, sum, self.victims.len(), Reverse(earliest))
    }

    fn preemption(&self, cycle: &Cycle<'_>) -> Preemption {
        let waiting = cycle.cluster.nominations.on(self.node.name()).iter();
        // Where all go already the others may find room beside the pod.
        let is_news = self.victims.iter().any(|tenant| !tenant.traits.going);
        Preemption {
            node: self.node.name().to_owned(),
            victims: self.victims.iter().map(|tenant| (*tenant).clone()).collect(),
            displaced: waiting.filter(|t| is_news && t.priority < cycle.priority()).cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests;
