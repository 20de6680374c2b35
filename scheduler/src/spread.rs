//! Pods that want to be spread evenly over the cluster's zones, nodes, or whatever a label says.
//!
//! Source: upstream's PodTopologySpread plugin; KEP-895, KEP-3094, KEP-3243.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use skiff_api::LabelSelector;
use skiff_client::view::Pod;

use crate::affinity::{key_requirements, matches, selector};
use crate::alike::{Class, Traits};
use crate::cluster::{Cluster, NodeInfo, PodInfo, Tenant};
use crate::framework::{MAX_SCORE, Reason, Refusal};
use crate::plugins::{Wants, bears_taints};
use crate::topology::{Column, NodeId};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

#[derive(Debug)]
struct Constraint {
    max_skew: i64,
    topology_key: String,
    selector: LabelSelector,
    min_domains: usize,
    /// Count only nodes that the pod's node affinity lets it on.
    honors_affinity: bool,
    /// Count only nodes whose taints the pod bears.
    honors_taints: bool,
}

impl Constraint {
    fn new(constraint: &TopologySpreadConstraint, pod: &Pod) -> Constraint {
        let json = serde_json::to_value(&constraint.label_selector).unwrap_or_default();
        let extra = key_requirements(constraint.match_label_keys.as_ref(), "In", pod);
        let honors =
            |policy: &Option<String>, by_default: &str| policy.as_deref().unwrap_or(by_default) == "Honor";
        Constraint {
            max_skew: i64::from(constraint.max_skew),
            topology_key: constraint.topology_key.clone(),
            selector: selector(&json, extra),
            min_domains: usize::try_from(constraint.min_domains.unwrap_or(1)).unwrap_or(1),
            honors_affinity: honors(&constraint.node_affinity_policy, "Honor"),
            honors_taints: honors(&constraint.node_taints_policy, "Ignore"),
        }
    }

    /// What upstream gives pods that say nothing, by the selector of what they belong to.
    fn default(topology_key: &str, max_skew: i64, selector: &LabelSelector) -> Constraint {
        Constraint {
            max_skew,
            topology_key: topology_key.into(),
            selector: selector.clone(),
            min_domains: 1,
            honors_affinity: true,
            honors_taints: false,
        }
    }

    /// Whether any node that has its labels counts.
    fn counts_all(&self, wants: &Wants<'_>) -> bool {
        (!self.honors_affinity || wants.labels.is_any()) && !self.honors_taints
    }

    fn counts_node(&self, wants: &Wants<'_>, node: &NodeInfo) -> bool {
        (!self.honors_affinity || wants.labels.hold(node))
            && (!self.honors_taints || bears_taints(&wants.pod.pod, node))
    }

    /// Whether it spreads pods of such traits along with this one.
    fn counts_pods(&self, pod: &PodInfo, traits: &Traits) -> bool {
        !traits.going
            && traits.namespace == pod.traits.namespace
            && !self.selector.is_empty()
            && matches(&self.selector, Some(&traits.labels))
    }
}

fn of_action(pod: &Pod, action: &str) -> Vec<Constraint> {
    let constraints = pod.spec.iter().flat_map(|s| s.topology_spread_constraints.iter().flatten());
    constraints.filter(|c| c.when_unsatisfiable == action).map(|c| Constraint::new(c, pod)).collect()
}

fn columns(constraints: &[Constraint], cluster: &Cluster) -> Vec<Arc<Column>> {
    constraints.iter().map(|c| cluster.column(&c.topology_key)).collect()
}

fn has_all(columns: &[Arc<Column>], node: &NodeInfo) -> bool {
    columns.iter().all(|column| column.value(node.id).is_some())
}

/// The matching pods of each value of a constraint's key.
#[derive(Debug)]
struct Domains {
    constraint: Constraint,
    column: Arc<Column>,
    /// `None` where no node counts that has the value.
    counts: Vec<Option<i64>>,
    /// By node: whether it counts.
    counted: Vec<bool>,
    /// Whether the pod itself is one of them.
    itself: i64,
    least: i64,
    /// There are fewer domains than are wanted: those that are missing count as empty ones.
    is_short: bool,
    /// How many values have each count; empty until a pod is shifted.
    n_at: BTreeMap<i64, usize>,
}

impl Domains {
    fn new(
        constraint: Constraint,
        wants: &Wants<'_>,
        columns: &[Arc<Column>],
        column: &Arc<Column>,
        cluster: &Cluster,
    ) -> Domains {
        let classes = cluster.classes().iter();
        let matching: Vec<&Class> =
            classes.filter(|c| constraint.counts_pods(wants.pod, &c.traits)).collect();
        let mut domains = Domains {
            counts: vec![None; column.n_values()],
            counted: vec![false; cluster.n_ids()],
            itself: i64::from(matches(&constraint.selector, Some(&wants.pod.traits.labels))),
            least: 0,
            is_short: false,
            n_at: BTreeMap::new(),
            column: column.clone(),
            constraint,
        };
        let all = domains.constraint.counts_all(wants);
        for node in cluster.nodes().filter(|node| has_all(columns, node)) {
            if let Some(value) = column.value(node.id)
                && (all || domains.constraint.counts_node(wants, node))
            {
                domains.counted[node.id.index()] = true;
                domains.counts[value].get_or_insert(0);
            }
        }
        for (node, n) in matching.iter().flat_map(|class| &class.on) {
            if let Some(count) = domains.count_of(*node) {
                *count += i64::from(*n);
            }
        }
        let there = || domains.counts.iter().flatten();
        let (n_domains, least) = (there().count(), there().copied().min().unwrap_or(i64::MAX));
        domains.is_short = n_domains < domains.constraint.min_domains;
        domains.least = if domains.is_short { 0 } else { least };
        domains
    }

    /// That of a node's value, if the node counts.
    fn count_of(&mut self, node: NodeId) -> Option<&mut i64> {
        let value = self.column.value(node).filter(|_| self.counted[node.index()])?;
        self.counts[value].as_mut()
    }

    /// Each node may be a domain, and many pods are shifted while victims are looked for: the least is not searched for.
    fn shift(&mut self, node: NodeId, by: i64) {
        let Some(count) = self.count_of(node) else { return };
        let old = *count;
        *count += by;
        let new = *count;
        if self.n_at.is_empty() {
            self.counts.iter().flatten().for_each(|count| *self.n_at.entry(*count).or_default() += 1);
        } else {
            *self.n_at.entry(new).or_default() += 1;
            if let Some(n) = self.n_at.get_mut(&old) {
                *n -= 1;
                if *n == 0 {
                    self.n_at.remove(&old);
                }
            }
        }
        if !self.is_short {
            self.least = self.n_at.first_key_value().map_or(i64::MAX, |(least, _)| *least);
        }
    }

    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let Some(value) = self.column.value(node.id) else {
            return Err(Refusal::for_good(Reason::NoTopology));
        };
        let here = self.counts[value].unwrap_or(0);
        if (here + self.itself).saturating_sub(self.least) > self.constraint.max_skew {
            return Err(Refusal::for_now(Reason::Uneven));
        }
        Ok(())
    }
}

/// What the cluster means for the constraints that a pod insists on, counted once a decision.
#[derive(Debug)]
pub(crate) struct Spread {
    domains: Vec<Domains>,
}

impl Spread {
    pub(crate) fn of(wants: &Wants<'_>, cluster: &Cluster) -> Spread {
        let constraints = of_action(&wants.pod.pod, "DoNotSchedule");
        let columns = columns(&constraints, cluster);
        let domains = constraints.into_iter().zip(&columns);
        Spread {
            domains: domains.map(|(c, column)| Domains::new(c, wants, &columns, column, cluster)).collect(),
        }
    }

    /// A pod has come to a node, or gone from it: `by` is 1 or -1.
    pub(crate) fn shift(&mut self, pod: &PodInfo, tenant: &Tenant, node: NodeId, by: i64) {
        for domains in self.domains.iter_mut().filter(|d| d.constraint.counts_pods(pod, &tenant.traits)) {
            domains.shift(node, by);
        }
    }

    pub(crate) fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        self.domains.iter().try_for_each(|domains| domains.filter(node))
    }
}

/// 0 to 100 for each node, the more the fewer of the pod's like it holds; `None` where no constraint says anything.
/// `siblings` selects what the pod belongs together with, if it says nothing itself.
pub(crate) fn scores(
    wants: &Wants<'_>,
    cluster: &Cluster,
    nodes: &[&NodeInfo],
    siblings: Option<&LabelSelector>,
) -> Option<Vec<i64>> {
    let pod = &wants.pod.pod;
    let says =
        pod.spec.as_ref().is_some_and(|s| s.topology_spread_constraints.iter().flatten().next().is_some());
    let constraints = match siblings.filter(|s| !says && !s.is_empty()) {
        Some(s) => vec![Constraint::default(HOSTNAME, 3, s), Constraint::default(ZONE, 5, s)],
        None => of_action(pod, "ScheduleAnyway"),
    };
    if constraints.is_empty() {
        return None;
    }
    let columns = columns(&constraints, cluster);
    // By default a node without a zone is spread over all the same.
    let is_scored = |node: &NodeInfo| !says || has_all(&columns, node);
    let n_scored = nodes.iter().filter(|node| is_scored(node)).count();
    let mut marks = vec![0.0; nodes.len()];
    for (constraint, column) in constraints.iter().zip(&columns) {
        let by_host = constraint.topology_key == HOSTNAME;
        // By value, or by node. `None` where no node has it that the pod may go to.
        let mut counts: Vec<Option<i64>> = if by_host {
            vec![Some(0); cluster.n_ids()]
        } else {
            let mut counts = vec![None; column.n_values()];
            let there = nodes.iter().filter(|node| is_scored(node));
            there.filter_map(|node| column.value(node.id)).for_each(|value| counts[value] = Some(0));
            counts
        };
        let n_domains = if by_host { n_scored } else { counts.iter().flatten().count() };
        // A cluster without zones: there is nothing to count on any node.
        if n_domains == 0 {
            continue;
        }
        let place = |node: NodeId| if by_host { Some(node.index()) } else { column.value(node) };
        for class in cluster.classes().iter().filter(|class| constraint.counts_pods(wants.pod, &class.traits))
        {
            for (id, n) in &class.on {
                let node = cluster.node(*id);
                if let Some(Some(count)) = place(*id).and_then(|at| counts.get_mut(at))
                    && (by_host || (is_scored(node) && constraint.counts_node(wants, node)))
                {
                    *count += i64::from(*n);
                }
            }
        }
        // Small topologies are not watered down by large ones.
        let weight = ((n_domains + 2) as f64).ln();
        for (mark, node) in marks.iter_mut().zip(nodes) {
            if column.value(node.id).is_none() || !is_scored(node) {
                continue;
            }
            let count = place(node.id).and_then(|at| counts[at]).unwrap_or(0);
            *mark += count as f64 * weight + (constraint.max_skew - 1) as f64;
        }
    }
    let marks: Vec<Option<i64>> =
        marks.iter().zip(nodes).map(|(m, node)| is_scored(node).then_some(m.round() as i64)).collect();
    let most = marks.iter().flatten().copied().max().unwrap_or(0);
    let least = marks.iter().flatten().copied().min().unwrap_or(0);
    let scaled = |mark: i64| if most == 0 { MAX_SCORE } else { MAX_SCORE * (most + least - mark) / most };
    Some(marks.into_iter().map(|mark| mark.map_or(0, scaled)).collect())
}
