//! Which pods nobody else will ever delete. Pure.
//!
//! Source: upstream's pod garbage collector.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use skiff_client::view::Pod;

use crate::objects::has_ended;

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// Pods that have ended and are kept: upstream's default.
pub(super) const MAX_ENDED: usize = 12_500;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// On its way out, and nobody is there to end it.
    Delete,
    /// Its node is not known here. It may be that it is not known yet.
    NodeIsMissing,
}

pub(super) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

/// `node` is the pod's, if it is known.
pub(super) fn verdict(pod: &Pod, node: Option<&Node>) -> Verdict {
    let is_going = pod.metadata.deletion_timestamp.is_some();
    match (node_name(pod), node) {
        (None, _) if is_going => Verdict::Delete,
        (None, _) => Verdict::Keep,
        (Some(_), None) => Verdict::NodeIsMissing,
        (Some(_), Some(node)) if is_going && is_out_of_service(node) => Verdict::Delete,
        _ => Verdict::Keep,
    }
}

/// A person has said that the node is off, and it does not contradict.
pub(super) fn is_out_of_service(node: &Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let ready = conditions.any(|c| c.type_ == "Ready" && c.status == "True");
    !ready && taints.any(|t| t.key == OUT_OF_SERVICE)
}

/// The ended pods that are too many: evicted ones first, then the oldest.
pub(super) fn surplus(pods: &[Arc<Pod>], most: usize) -> Vec<&Arc<Pod>> {
    let mut ended: Vec<&Arc<Pod>> = pods.iter().filter(|p| has_ended(p)).collect();
    let n_surplus = ended.len().saturating_sub(most);
    if n_surplus == 0 {
        return Vec::new();
    }
    let evicted = |pod: &Pod| {
        let status = pod.status.as_ref();
        status.is_some_and(|s| s.phase.as_deref() == Some("Failed") && s.reason.as_deref() == Some("Evicted"))
    };
    ended.sort_by_cached_key(|pod| {
        let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (Reverse(evicted(pod)), created, pod.metadata.name.clone())
    });
    ended.truncate(n_surplus);
    ended
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(node: &str, is_going: bool) -> Pod {
        let going = if is_going { json!("2026-01-01T00:00:00Z") } else { Value::Null };
        serde_json::from_value(json!({"metadata": {"name": "p", "deletionTimestamp": going},
            "spec": {"nodeName": node, "containers": []}}))
        .unwrap()
    }

    fn node(ready: &str, taint: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"},
            "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
        .unwrap()
    }

    #[test]
    fn only_pods_that_no_node_will_end_are_taken() {
        let (up, off) = (node("True", "x"), node("Unknown", OUT_OF_SERVICE));
        let contradicting = node("True", OUT_OF_SERVICE);
        for (pod, node, wanted) in [
            (pod("", false), None, Verdict::Keep),
            (pod("", true), None, Verdict::Delete),
            (pod("n", false), None, Verdict::NodeIsMissing),
            (pod("n", true), Some(&up), Verdict::Keep),
            (pod("n", false), Some(&off), Verdict::Keep),
            (pod("n", true), Some(&off), Verdict::Delete),
            (pod("n", true), Some(&contradicting), Verdict::Keep),
        ] {
            assert_eq!(verdict(&pod, node), wanted, "{pod:?} on {node:?}");
        }
    }

    #[test]
    fn of_too_many_ended_pods_the_evicted_and_the_oldest_go() {
        let ended = |name: &str, second: u32, reason: &str| -> Arc<Pod> {
            let created = format!("2026-01-01T00:00:{second:02}Z");
            let pod = json!({"metadata": {"name": name, "creationTimestamp": created},
                "status": {"phase": "Failed", "reason": reason}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let pods = [
            ended("young", 9, ""),
            ended("old", 1, ""),
            ended("evicted", 8, "Evicted"),
            Arc::new(pod("n", false)),
        ];
        let names = |most: usize| -> Vec<String> {
            surplus(&pods, most).iter().map(|p| p.metadata.name.clone().unwrap()).collect()
        };
        assert_eq!(names(1), ["evicted", "old"]);
        assert!(names(3).is_empty());
    }
}
