//! Which pods go first, and what the status says. Pure.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use skiff_client::view::Pod;

use crate::driver::text;
use crate::objects::{available_in_s, has_ended, is_active, is_ready, pod_condition};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The pods that are missed least: not on a node, not running, not ready, cheap to delete, beside most others of their
/// set, ready and there for the shortest time, most restarted. Times count by their order of magnitude, so that it is
/// not always the pods of the last rollout that go.
///
/// Source: upstream's `ActivePodsWithRanks`; KEP-2185.
pub(super) fn to_delete<'p>(pods: &[&'p Arc<Pod>], count: usize, now: Timestamp) -> Vec<&'p Arc<Pod>> {
    fn node(pod: &Pod) -> Option<&str> {
        pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
    }
    let mut n_on_node: HashMap<&str, usize> = HashMap::new();
    for name in pods.iter().filter_map(|pod| node(pod)) {
        *n_on_node.entry(name).or_default() += 1;
    }
    let magnitude = |since: Option<Timestamp>| {
        let passed = since.map_or(0, |at| now.duration_since(at).as_nanos());
        u128::try_from(passed).ok().and_then(u128::checked_ilog2)
    };
    let rank = |pod: &Pod| {
        let phase = match pod.status.as_ref().and_then(|s| s.phase.as_deref()) {
            Some("Running") => 2,
            Some("Unknown") => 1,
            _ => 0,
        };
        let annotations = pod.metadata.annotations.as_ref();
        let cost: i32 =
            annotations.and_then(|a| a.get(DELETION_COST)).and_then(|c| c.parse().ok()).unwrap_or(0);
        let beside = node(pod).and_then(|name| n_on_node.get(name)).copied().unwrap_or(0);
        let ready = pod_condition(pod, "Ready").filter(|c| c.status == "True");
        let ready_since = ready.and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
        let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        let restarts = statuses.map(|s| s.restart_count).max().unwrap_or(0);
        let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (
            (node(pod).is_some(), phase, ready.is_some(), cost, Reverse(beside)),
            (magnitude(ready_since), Reverse(restarts), magnitude(created), pod.metadata.uid.clone()),
        )
    };
    let mut sorted = pods.to_vec();
    sorted.sort_by_cached_key(|pod| rank(pod));
    sorted.truncate(count);
    sorted
}

/// Why there are too few pods, or too many.
pub(super) struct Failure {
    pub(super) reason: &'static str,
    pub(super) error: kube::Error,
}

pub(super) struct Counted {
    pub(super) status: ReplicaSetStatus,
    /// When the next ready pod will have been ready for long enough.
    pub(super) next_available_s: Option<u64>,
}

pub(super) fn status(
    set: &ReplicaSet,
    pods: &[Arc<Pod>],
    failure: Option<&Failure>,
    now: Timestamp,
) -> Counted {
    let spec = &set.spec;
    let min_ready_s = i64::from(spec.min_ready_seconds.unwrap_or(0));
    let template = spec.template.as_ref().and_then(|t| t.metadata.as_ref());
    let labels = template.and_then(|m| m.labels.clone()).unwrap_or_default();
    let (mut total, mut labelled, mut ready, mut available) = (0, 0, 0, 0);
    let mut next_available_s = None;
    for pod in pods.iter().filter(|p| is_active(p)) {
        total += 1;
        let of_pod = pod.metadata.labels.as_ref();
        labelled += i32::from(labels.iter().all(|(k, v)| of_pod.and_then(|l| l.get(k)) == Some(v)));
        ready += i32::from(is_ready(pod));
        match available_in_s(pod, min_ready_s, now) {
            Some(0) => available += 1,
            Some(seconds) => {
                let seconds = u64::try_from(seconds).unwrap_or(0);
                next_available_s = Some(next_available_s.map_or(seconds, |n: u64| n.min(seconds)));
            }
            None => {}
        }
    }
    let terminating =
        pods.iter().filter(|p| p.metadata.deletion_timestamp.is_some() && !has_ended(p)).count();
    let old = set.status.clone().unwrap_or_default();
    let positive = |count: i32| (count > 0).then_some(count);
    let status = ReplicaSetStatus {
        replicas: total,
        fully_labeled_replicas: positive(labelled),
        ready_replicas: positive(ready),
        available_replicas: positive(available),
        observed_generation: set.metadata.generation,
        conditions: conditions(&old, failure, now),
        terminating_replicas: Some(i32::try_from(terminating).unwrap_or(i32::MAX)),
    };
    Counted { status, next_available_s }
}

const FAILURE: &str = "ReplicaFailure";

fn conditions(
    old: &ReplicaSetStatus,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = old.conditions.clone().unwrap_or_default();
    match failure {
        None => conditions.retain(|c| c.type_.as_deref() != Some(FAILURE)),
        Some(_) if conditions.iter().any(|c| c.type_.as_deref() == Some(FAILURE)) => {}
        Some(failure) => conditions.push(ReplicaSetCondition {
            type_: Some(FAILURE.into()),
            status: Some("True".into()),
            reason: Some(failure.reason.into()),
            message: Some(text(&failure.error)),
            last_transition_time: Some(Time(now)),
        }),
    }
    Some(conditions).filter(|c| !c.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, phase: &str, ready: bool, created_s: i64) -> Arc<Pod> {
        let created = Timestamp::from_second(created_s).unwrap();
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "creationTimestamp": created.to_string()},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" },
                    "lastTransitionTime": created.to_string()}]},
            }))
            .unwrap(),
        )
    }

    #[test]
    fn the_pod_that_is_missed_least_goes_first() {
        let pods = [
            pod("old", "n", "Running", true, 100),
            pod("young", "n", "Running", true, 200),
            pod("unready", "n", "Running", false, 100),
            pod("pending", "n", "Pending", false, 100),
            pod("unbound", "", "Pending", false, 100),
        ];
        let pods: Vec<&Arc<Pod>> = pods.iter().collect();
        let order: Vec<&str> = to_delete(&pods, 5, Timestamp::from_second(300).unwrap())
            .iter()
            .map(|p| p.metadata.name.as_deref().unwrap())
            .collect();
        assert_eq!(order, ["unbound", "pending", "unready", "young", "old"]);
        let crowded = [
            pod("alone", "m", "Running", true, 250),
            pod("beside", "n", "Running", true, 100),
            pod("another", "n", "Running", true, 100),
        ];
        let pods: Vec<&Arc<Pod>> = crowded.iter().collect();
        let first = to_delete(&pods, 1, Timestamp::from_second(300).unwrap());
        assert_ne!(first[0].metadata.name.as_deref(), Some("alone"), "nodes are kept even");
    }

    #[test]
    fn a_pod_is_available_once_it_has_been_ready_for_long_enough() {
        let set: ReplicaSet = serde_json::from_value(json!({"metadata": {"generation": 3},
            "spec": {"minReadySeconds": 10, "selector": {}}}))
        .unwrap();
        let pods = [pod("a", "n", "Running", true, 100), pod("b", "n", "Running", true, 95)];
        let counted = status(&set, &pods, None, Timestamp::from_second(105).unwrap());
        assert_eq!(counted.status.ready_replicas, Some(2));
        assert_eq!(counted.status.available_replicas, Some(1));
        assert_eq!(counted.next_available_s, Some(5));
        assert_eq!(counted.status.observed_generation, Some(3));
        assert_eq!(counted.status.terminating_replicas, Some(0));
    }

    #[test]
    fn pods_on_their_way_out_are_counted_apart_until_they_have_ended() {
        let set: ReplicaSet =
            serde_json::from_value(json!({"metadata": {}, "spec": {"selector": {}}})).unwrap();
        let going = |phase: &str| {
            let mut pod = (*pod("a", "n", phase, true, 100)).clone();
            pod.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(101).unwrap()));
            Arc::new(pod)
        };
        let pods = [going("Running"), going("Succeeded"), pod("b", "n", "Running", true, 95)];
        let counted = status(&set, &pods, None, Timestamp::from_second(105).unwrap());
        assert_eq!((counted.status.replicas, counted.status.terminating_replicas), (1, Some(1)));
    }
}
