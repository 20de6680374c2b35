//! What makes a node fit for a pod, and what makes it a good one. Each function is one upstream plugin.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};

use crate::cluster::{NodeInfo, PodInfo, host_ports};
use crate::framework::{Filter, Refusal, Scale, Score};

/// In upstream's order. Resources, spreading and affinity come after these.
pub(crate) const FILTERS: &[Filter] = &[
    Filter { check: node_unschedulable, for_good: true },
    Filter { check: node_name, for_good: true },
    Filter { check: taints, for_good: true },
    Filter { check: node_affinity, for_good: true },
    Filter { check: node_ports, for_good: false },
];

pub(crate) const SCORES: &[Score] = &[
    Score { weight: 3, score: preferred_taints, scale: Scale::HighestIsWorst },
    Score { weight: 2, score: preferred_affinity, scale: Scale::Highest },
    Score { weight: 1, score: least_allocated, scale: Scale::None },
    Score { weight: 1, score: balanced, scale: Scale::None },
    Score { weight: 1, score: image_locality, scale: Scale::None },
];

const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        // An empty key with `Equal` matches no taint.
        "Equal" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

fn node_unschedulable(pod: &Pod, node: &NodeInfo) -> Result<(), &'static str> {
    let cordoned = node.node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true));
    let taint = Taint { key: UNSCHEDULABLE_TAINT.into(), effect: "NoSchedule".into(), ..Taint::default() };
    if !cordoned || tolerations(pod).iter().any(|t| tolerates(t, &taint)) {
        return Ok(());
    }
    Err("node(s) were unschedulable")
}

fn node_name(pod: &Pod, node: &NodeInfo) -> Result<(), &'static str> {
    match crate::cluster::node_of(pod) {
        Some(wanted) if wanted != node.name() => Err("node(s) didn't match the requested node name"),
        _ => Ok(()),
    }
}

pub(crate) fn taints(pod: &Pod, node: &NodeInfo) -> Result<(), &'static str> {
    let taints = node.node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let repelled = taints
        .filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"))
        .find(|taint| !tolerations(pod).iter().any(|t| tolerates(t, taint)));
    match repelled {
        None => Ok(()),
        Some(_) => Err("node(s) had untolerated taint(s)"),
    }
}

fn preferred_taints(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let taints = node.node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let soft = taints.filter(|t| t.effect == "PreferNoSchedule");
    soft.filter(|taint| !tolerations(&pod.pod).iter().any(|t| tolerates(t, taint))).count() as i64
}

pub(crate) fn node_affinity(pod: &Pod, node: &NodeInfo) -> Result<(), &'static str> {
    let refused = || Err("node(s) didn't match Pod's node affinity/selector");
    let Some(spec) = &pod.spec else { return Ok(()) };
    for (key, value) in spec.node_selector.iter().flatten() {
        if node.label(key) != Some(value) {
            return refused();
        }
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    match required {
        // Terms are alternatives.
        Some(selector) if !selector.node_selector_terms.iter().any(|t| term_matches(t, node)) => refused(),
        _ => Ok(()),
    }
}

fn preferred_affinity(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let affinity =
        pod.pod.spec.as_ref().and_then(|s| s.affinity.as_ref()).and_then(|a| a.node_affinity.as_ref());
    let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let terms = preferred.into_iter().flatten();
    terms.filter(|t| term_matches(&t.preference, node)).map(|t| i64::from(t.weight)).sum()
}

fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let (expressions, fields) = (
        term.match_expressions.as_deref().unwrap_or_default(),
        term.match_fields.as_deref().unwrap_or_default(),
    );
    // An empty term matches nothing.
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| requirement_holds(r, node.label(&r.key).map(String::as_str)))
        && fields.iter().all(|r| r.key == "metadata.name" && requirement_holds(r, Some(node.name())))
}

fn requirement_holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|v| values.iter().any(|w| w == v));
    let compare = |holds: fn(i64, i64) -> bool| {
        let bound = values.first().and_then(|v| v.parse().ok());
        value.and_then(|v| v.parse().ok()).zip(bound).is_some_and(|(v, b)| holds(v, b))
    };
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|v, b| v > b),
        "Lt" => compare(|v, b| v < b),
        _ => false,
    }
}

fn node_ports(pod: &Pod, node: &NodeInfo) -> Result<(), &'static str> {
    let any = |ip: &str| ip == "0.0.0.0";
    let taken = host_ports(pod).any(|(ip, protocol, port)| {
        node.ports.iter().any(|(i, p, n)| *n == port && *p == protocol && (*i == ip || any(i) || any(&ip)))
    });
    if taken { Err("node(s) didn't have free ports for the requested pod ports") } else { Ok(()) }
}

/// Every resource that a node has too little of; for good, if it would have even if it were empty.
pub(crate) fn resources(pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
    let mut refusal = Refusal { reasons: Vec::new(), for_good: false };
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= node.allocatable.get("pods") {
        refusal.reasons.push("Too many pods".into());
    }
    for (name, &wanted) in &pod.requests.0 {
        let allocatable = node.allocatable.get(name);
        if wanted > 0 && wanted > allocatable.saturating_sub(node.requested.get(name)) {
            refusal.reasons.push(format!("Insufficient {name}"));
            refusal.for_good |= wanted > allocatable;
        }
    }
    if refusal.reasons.is_empty() { Ok(()) } else { Err(refusal) }
}

/// The share of CPU and memory in use if the pod came, each 0 to 1.
fn shares(pod: &PodInfo, node: &NodeInfo) -> [f64; 2] {
    let wanted = &pod.requests_for_scoring;
    ["cpu", "memory"].map(|name| {
        let capacity = node.allocatable.get(name);
        if capacity == 0 {
            return 1.0;
        }
        (node.requested_for_scoring.get(name).saturating_add(wanted.get(name)) as f64 / capacity as f64)
            .min(1.0)
    })
}

/// The more is left, the better.
fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let left: f64 = shares(pod, node).iter().map(|share| (1.0 - share) * 100.0).sum();
    (left / 2.0) as i64
}

/// CPU and memory should fill up alike.
fn balanced(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let [cpu, memory] = shares(pod, node);
    ((1.0 - (cpu - memory).abs() / 2.0) * 100.0) as i64
}

/// A node that has the images already starts the pod sooner.
fn image_locality(pod: &PodInfo, node: &NodeInfo) -> i64 {
    const MIN_BYTES: i64 = 23 * 1024 * 1024;
    const MAX_BYTES_A_CONTAINER: i64 = 1000 * 1024 * 1024;
    let images = || node.node.status.iter().flat_map(|s| s.images.iter().flatten());
    let containers = pod.pod.spec.iter().flat_map(|s| &s.containers);
    let (mut bytes, mut n_containers): (i64, i64) = (0, 0);
    for image in containers.filter_map(|c| c.image.as_deref()) {
        n_containers += 1;
        let named = |name: &String| name == image || name.ends_with(&format!("/{image}"));
        let image = images().find(|i| i.names.iter().flatten().any(named));
        bytes = bytes.saturating_add(image.and_then(|i| i.size_bytes).unwrap_or(0));
    }
    let max = MAX_BYTES_A_CONTAINER * n_containers.max(1);
    100 * (bytes.clamp(MIN_BYTES, max) - MIN_BYTES) / (max - MIN_BYTES)
}
