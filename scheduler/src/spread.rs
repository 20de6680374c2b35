//! Pods that want to be spread evenly over the cluster's zones, nodes, or whatever a label says.
//!
//! Source: upstream's PodTopologySpread plugin; KEP-895, KEP-3094, KEP-3243.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Pod, TopologySpreadConstraint};
use skiff_api::LabelSelector;

use crate::affinity::{key_requirements, matches, selector};
use crate::cluster::{NodeInfo, Snapshot};
use crate::framework::{MAX_SCORE, Refusal};
use crate::plugins;

const UNEVEN: &str = "node(s) didn't match pod topology spread constraints";
const NO_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";
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

    fn counts_node(&self, pod: &Pod, node: &NodeInfo) -> bool {
        (!self.honors_affinity || plugins::node_affinity(pod, node).is_ok())
            && (!self.honors_taints || plugins::taints(pod, node).is_ok())
    }

    /// Pods of the namespace on a node that the constraint spreads.
    fn n_matching(&self, namespace: Option<&str>, node: &NodeInfo) -> i64 {
        if self.selector.is_empty() {
            return 0;
        }
        let counts = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            meta.deletion_timestamp.is_none()
                && meta.namespace.as_deref() == namespace
                && matches(&self.selector, meta.labels.as_ref())
        };
        node.pods.iter().filter(|other| counts(&other.pod.metadata)).count() as i64
    }
}

fn of_action(pod: &Pod, action: &str) -> Vec<Constraint> {
    let constraints = pod.spec.iter().flat_map(|s| s.topology_spread_constraints.iter().flatten());
    constraints.filter(|c| c.when_unsatisfiable == action).map(|c| Constraint::new(c, pod)).collect()
}

fn has_all_keys(constraints: &[Constraint], node: &NodeInfo) -> bool {
    constraints.iter().all(|c| node.label(&c.topology_key).is_some())
}

/// What the cluster means for the constraints that a pod insists on, counted once a decision.
#[derive(Debug, Default)]
pub(crate) struct Spread {
    /// With the matching pods of each value of its key.
    constraints: Vec<(Constraint, HashMap<String, i64>)>,
}

impl Spread {
    pub(crate) fn of(pod: &Pod, snapshot: &Snapshot) -> Spread {
        let constraints = of_action(pod, "DoNotSchedule");
        let mut counts: Vec<HashMap<String, i64>> = constraints.iter().map(|_| HashMap::new()).collect();
        let namespace = pod.metadata.namespace.as_deref();
        for node in snapshot.nodes.iter().filter(|node| has_all_keys(&constraints, node)) {
            for (constraint, counts) in constraints.iter().zip(&mut counts) {
                let value = node.label(&constraint.topology_key);
                if let Some(value) = value.filter(|_| constraint.counts_node(pod, node)) {
                    *counts.entry(value.clone()).or_default() += constraint.n_matching(namespace, node);
                }
            }
        }
        Spread { constraints: constraints.into_iter().zip(counts).collect() }
    }

    pub(crate) fn filter(&self, pod: &Pod, node: &NodeInfo) -> Result<(), Refusal> {
        for (constraint, counts) in &self.constraints {
            let Some(value) = node.label(&constraint.topology_key) else {
                return Err(Refusal::for_good(NO_LABEL));
            };
            // Domains that are still missing count as empty ones.
            let least = if counts.len() < constraint.min_domains {
                0
            } else {
                counts.values().copied().min().unwrap_or(i64::MAX)
            };
            let itself = i64::from(matches(&constraint.selector, pod.metadata.labels.as_ref()));
            let here = counts.get(value).copied().unwrap_or(0);
            if (here + itself).saturating_sub(least) > constraint.max_skew {
                return Err(Refusal::for_now(UNEVEN));
            }
        }
        Ok(())
    }
}

/// 0 to 100 for each node, the more the fewer of the pod's like it holds; `None` where no constraint says anything.
/// `siblings` selects what the pod belongs together with, if it says nothing itself.
pub(crate) fn scores(
    pod: &Pod,
    snapshot: &Snapshot,
    nodes: &[&NodeInfo],
    siblings: Option<&LabelSelector>,
) -> Option<Vec<i64>> {
    let says =
        pod.spec.as_ref().is_some_and(|s| s.topology_spread_constraints.iter().flatten().next().is_some());
    let constraints = match siblings.filter(|s| !says && !s.is_empty()) {
        Some(s) => vec![Constraint::default(HOSTNAME, 3, s), Constraint::default(ZONE, 5, s)],
        None => of_action(pod, "ScheduleAnyway"),
    };
    if constraints.is_empty() {
        return None;
    }
    // By default a node without a zone is spread over all the same.
    let is_scored = |node: &NodeInfo| !says || has_all_keys(&constraints, node);
    let n_scored = nodes.iter().filter(|node| is_scored(node)).count();
    let namespace = pod.metadata.namespace.as_deref();
    let mut marks = vec![0.0; nodes.len()];
    for constraint in &constraints {
        let mut counts: HashMap<&str, i64> = HashMap::new();
        if constraint.topology_key != HOSTNAME {
            let values = nodes.iter().filter(|node| is_scored(node));
            counts = values.filter_map(|n| Some((n.label(&constraint.topology_key)?.as_str(), 0))).collect();
            // A cluster without zones: there is nothing to count on any node.
            if counts.is_empty() {
                continue;
            }
            for node in snapshot.nodes.iter().filter(|n| is_scored(n) && constraint.counts_node(pod, n)) {
                let value = node.label(&constraint.topology_key);
                if let Some(count) = value.and_then(|v| counts.get_mut(v.as_str())) {
                    *count += constraint.n_matching(namespace, node);
                }
            }
        }
        // Small topologies are not watered down by large ones.
        let n_domains = if constraint.topology_key == HOSTNAME { n_scored } else { counts.len() };
        let weight = ((n_domains + 2) as f64).ln();
        for (mark, node) in marks.iter_mut().zip(nodes) {
            let Some(value) = node.label(&constraint.topology_key).filter(|_| is_scored(node)) else {
                continue;
            };
            let count = if constraint.topology_key == HOSTNAME {
                constraint.n_matching(namespace, node)
            } else {
                counts.get(value.as_str()).copied().unwrap_or(0)
            };
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
