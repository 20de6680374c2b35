//! What a kubelet would do for a pod next, had it started or ended containers: statuses without the containers.
//!
//! Source: the kubelet's `status_manager` and `convertToAPIContainerStatuses`, which Skiff's nodelet follows too.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::pod::{Container, Pod};

/// Upstream's resource name in the message of a node that is full.
const PODS: &str = "pods";

/// The next step for a pod of a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// It is as it should be.
    Nothing,
    /// First show that containers are being made, then that they run. Takes an address.
    Start,
    /// Show again what is so: someone else has written that it is not ready.
    Repeat,
    /// There is no room for it.
    Refuse,
    /// Show that the containers have ended by themselves, well or not, as the pod says that they do.
    Finish(Outcome),
    /// Show that the containers have ended, then delete it for good.
    End,
    /// Its end was shown already: delete it for good.
    Remove,
}

/// How containers end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Succeeded,
    Failed,
}

/// `has_room` is whether the node may run one more.
pub(crate) fn next_step(pod: &Pod, has_room: bool) -> Step {
    if pod.is_deleting() {
        return if pod.has_ended() || !pod.any_running() { Step::Remove } else { Step::End };
    }
    match pod.status.phase.as_str() {
        "Succeeded" | "Failed" => Step::Nothing,
        "Running" if pod.is_ready() => pod.outcome().map_or(Step::Nothing, Step::Finish),
        "Running" => Step::Repeat,
        _ if pod.status.start_time.is_none() && !has_room => Step::Refuse,
        _ => Step::Start,
    }
}

/// Where a pod runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) host_ip: Ipv4Addr,
    pub(crate) pod_ip: Ipv4Addr,
}

fn now_text(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The time since when what is shown holds: kept where the pod says it already.
fn started_at(pod: &Pod, now: Timestamp) -> String {
    pod.status.start_time.as_ref().map_or_else(|| now_text(now), |time| now_text(time.0))
}

fn condition(pod: &Pod, type_: &str, holds: bool, why: Option<(&str, &str)>, now: Timestamp) -> Value {
    let mut condition = json!({
        "type": type_, "status": if holds { "True" } else { "False" }, "lastProbeTime": null,
        "lastTransitionTime": now_text(now), "observedGeneration": pod.metadata.generation,
        // Merged by type: what stood there of another status must go.
        "reason": null, "message": null,
    });
    if let Some((reason, message)) = why {
        condition["reason"] = reason.into();
        if !message.is_empty() {
            condition["message"] = message.into();
        }
    }
    condition
}

/// A patch of the status. The UID keeps it from another pod of the same name.
fn patch(pod: &Pod, mut status: Value) -> Value {
    status["observedGeneration"] = json!(pod.metadata.generation);
    json!({"metadata": {"uid": pod.uid()}, "status": status})
}

/// The first status: the sandbox is being made.
pub(crate) fn creating(pod: &Pod, host_ip: Ipv4Addr, now: Timestamp) -> Value {
    let not_ready = format!("containers with unready status: {}", names(&pod.spec.containers));
    let has_init = !pod.spec.init_containers.is_empty();
    let reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let waiting = |c: &Container| {
        json!({"name": c.name, "image": c.image, "imageID": "", "ready": false, "started": false,
               "restartCount": 0, "lastState": {}, "state": {"waiting": {"reason": reason}}})
    };
    let mut conditions = vec![
        condition(pod, "PodReadyToStartContainers", false, None, now),
        condition(pod, "Initialized", true, None, now),
        condition(pod, "Ready", false, Some(("ContainersNotReady", &not_ready)), now),
        condition(pod, "ContainersReady", false, Some(("ContainersNotReady", &not_ready)), now),
    ];
    let mut status = json!({
        "phase": "Pending", "hostIP": host_ip, "hostIPs": [{"ip": host_ip}], "startTime": now_text(now),
        "containerStatuses": pod.spec.containers.iter().map(waiting).collect::<Vec<_>>(),
    });
    if has_init {
        let incomplete = format!("containers with incomplete status: {}", names(&pod.spec.init_containers));
        let why = Some(("ContainersNotInitialized", incomplete.as_str()));
        conditions[1] = condition(pod, "Initialized", false, why, now);
        let init = pod.spec.init_containers.iter().map(waiting).collect::<Vec<_>>();
        status["initContainerStatuses"] = init.into();
    }
    status["conditions"] = conditions.into();
    patch(pod, status)
}

/// Names as Go prints a slice: `[a b]`.
fn names(containers: &[Container]) -> String {
    let names: Vec<&str> = containers.iter().map(|c| c.name.as_str()).collect();
    format!("[{}]", names.join(" "))
}

/// All containers run and are ready.
pub(crate) fn running(pod: &Pod, place: Place, now: Timestamp) -> Value {
    let started = started_at(pod, now);
    let mut status = json!({
        "phase": "Running", "hostIP": place.host_ip, "hostIPs": [{"ip": place.host_ip}],
        "podIP": place.pod_ip, "podIPs": [{"ip": place.pod_ip}], "startTime": started,
        "conditions": [
            condition(pod, "PodReadyToStartContainers", true, None, now),
            condition(pod, "Initialized", true, None, now),
            condition(pod, "Ready", true, None, now),
            condition(pod, "ContainersReady", true, None, now),
        ],
    });
    let run = |c: &Container, at: usize| {
        let mut shown = container(pod, c, at);
        shown["ready"] = true.into();
        shown["started"] = true.into();
        shown["state"] = json!({"running": {"startedAt": started}});
        shown
    };
    let containers = &pod.spec.containers;
    let shown: Vec<Value> = containers.iter().enumerate().map(|(at, c)| run(c, at)).collect();
    status["containerStatuses"] = shown.into();
    let init = pod.spec.init_containers.iter().enumerate().map(|(at, c)| {
        let at = at + containers.len();
        if c.restart_policy.as_deref() == Some("Always") {
            run(c, at)
        } else {
            completed(pod, c, at, &started, Outcome::Succeeded, true)
        }
    });
    let init: Vec<Value> = init.collect();
    if !init.is_empty() {
        status["initContainerStatuses"] = init.into();
    }
    patch(pod, status)
}

/// All containers have ended, by themselves or as they were asked to.
pub(crate) fn ended(pod: &Pod, outcome: Outcome, now: Timestamp) -> Value {
    let at = now_text(now);
    let done = |(n, c): (usize, &Container)| completed(pod, c, n, &at, outcome, false);
    let statuses: Vec<Value> = pod.spec.containers.iter().enumerate().map(done).collect();
    let (phase, reason) = match outcome {
        Outcome::Succeeded => ("Succeeded", "PodCompleted"),
        Outcome::Failed => ("Failed", "PodFailed"),
    };
    let why = Some((reason, ""));
    let initialized = why.filter(|_| outcome == Outcome::Succeeded);
    patch(
        pod,
        json!({
            "phase": phase, "containerStatuses": statuses,
            "conditions": [
                condition(pod, "PodReadyToStartContainers", false, None, now),
                condition(pod, "Initialized", true, initialized, now),
                condition(pod, "Ready", false, why, now),
                condition(pod, "ContainersReady", false, why, now),
            ],
        }),
    )
}

/// The node has no room: upstream's admission of the kubelet.
pub(crate) fn refused(pod: &Pod, used: usize, capacity: usize, now: Timestamp) -> Value {
    let message = format!(
        "Pod was rejected: Node didn't have enough resource: {PODS}, requested: 1, used: {used}, capacity: {capacity}"
    );
    let status = json!({
        "phase": "Failed", "reason": format!("OutOf{PODS}"), "message": message, "startTime": now_text(now),
    });
    patch(pod, status)
}

/// What is said of a container whatever its state.
fn container(pod: &Pod, container: &Container, at: usize) -> Value {
    // As unique as the pod, and as long as a runtime's own.
    let id = format!("{:0<32}{at:032x}", pod.uid().replace('-', ""));
    json!({
        "name": container.name, "image": container.image, "imageID": format!("hollow://{}", container.image),
        "containerID": format!("hollow://{id}"), "restartCount": 0, "lastState": {},
    })
}

fn completed(pod: &Pod, spec: &Container, at: usize, when: &str, outcome: Outcome, ready: bool) -> Value {
    let mut shown = container(pod, spec, at);
    shown["ready"] = ready.into();
    shown["started"] = false.into();
    let (code, reason) = match outcome {
        Outcome::Succeeded => (0, "Completed"),
        Outcome::Failed => (1, "Error"),
    };
    let terminated = json!({"exitCode": code, "reason": reason, "startedAt": when, "finishedAt": when,
                            "containerID": shown["containerID"]});
    shown["state"] = json!({"terminated": terminated});
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::ENDS;

    fn pod(json: Value) -> Pod {
        let mut whole = json!({"metadata": {"name": "a", "namespace": "d", "uid": "11-22", "generation": 1},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
        if let (Some(whole), Value::Object(more)) = (whole.as_object_mut(), json) {
            whole.extend(more);
        }
        serde_json::from_value(whole).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    const PLACE: Place =
        Place { host_ip: Ipv4Addr::new(198, 18, 0, 1), pod_ip: Ipv4Addr::new(10, 128, 0, 7) };

    /// The pod as the API shows it once a patch was written.
    fn with(pod: &Pod, patch: &Value) -> Pod {
        let mut whole = serde_json::to_value(pod).unwrap();
        let status = whole["status"].as_object_mut().unwrap();
        status.extend(patch["status"].as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn a_pod_is_started_once_and_then_left_alone() {
        let new = pod(json!({}));
        assert_eq!(next_step(&new, true), Step::Start);
        let creating = with(&new, &creating(&new, PLACE.host_ip, at(5)));
        assert_eq!(next_step(&creating, false), Step::Start, "it has its place already");
        let running = with(&creating, &running(&creating, PLACE, at(9)));
        assert_eq!(next_step(&running, false), Step::Nothing);
        assert_eq!(running.status.start_time.unwrap().0, at(5), "when it was first seen");
        assert_eq!(running.status.pod_ip.as_deref(), Some("10.128.0.7"));
    }

    #[test]
    fn a_pod_that_someone_called_not_ready_is_shown_ready_again() {
        let new = pod(json!({}));
        let mut shown = with(&new, &running(&new, PLACE, at(9)));
        shown.status.conditions.retain(|c| c.type_ != "Ready");
        assert_eq!(next_step(&shown, true), Step::Repeat);
    }

    #[test]
    fn a_pod_that_is_deleted_is_shown_ended_before_it_is_removed() {
        let new = pod(json!({}));
        let mut shown = with(&new, &running(&new, PLACE, at(9)));
        shown.metadata.deletion_timestamp = shown.status.start_time.clone();
        assert_eq!(next_step(&shown, true), Step::End);
        let ended = with(&shown, &ended(&shown, Outcome::Succeeded, at(12)));
        assert_eq!((next_step(&ended, true), ended.status.phase.as_str()), (Step::Remove, "Succeeded"));
        let mut never_ran = new;
        never_ran.metadata.deletion_timestamp = shown.metadata.deletion_timestamp;
        assert_eq!(next_step(&never_ran, false), Step::Remove);
    }

    #[test]
    fn a_pod_that_says_how_it_ends_runs_and_then_ends_so() {
        for (says, outcome, code) in [("Succeeded", Outcome::Succeeded, 0), ("Failed", Outcome::Failed, 1)] {
            let new = pod(json!({"metadata": {"name": "a", "uid": "1", "annotations": {ENDS: says}}}));
            assert_eq!(next_step(&new, true), Step::Start);
            let shown = with(&new, &running(&new, PLACE, at(9)));
            assert_eq!(next_step(&shown, true), Step::Finish(outcome));
            let patch = ended(&shown, outcome, at(12));
            assert_eq!(patch["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], code);
            let shown = with(&shown, &patch);
            assert_eq!((shown.status.phase.as_str(), next_step(&shown, true)), (says, Step::Nothing));
        }
    }

    #[test]
    fn a_full_node_refuses_as_the_kubelet_does() {
        let new = pod(json!({}));
        assert_eq!(next_step(&new, false), Step::Refuse);
        let refused = refused(&new, 110, 110, at(3));
        assert_eq!(refused["status"]["reason"], "OutOfpods");
        assert_eq!(next_step(&with(&new, &refused), true), Step::Nothing);
    }

    #[test]
    fn side_cars_run_and_other_init_containers_have_completed() {
        let pod = pod(json!({"spec": {"containers": [{"name": "c"}],
            "initContainers": [{"name": "once"}, {"name": "car", "restartPolicy": "Always"}]}}));
        let creating = creating(&pod, PLACE.host_ip, at(1));
        assert_eq!(creating["status"]["conditions"][1]["reason"], "ContainersNotInitialized");
        let running = running(&pod, PLACE, at(1));
        let init = &running["status"]["initContainerStatuses"];
        assert_eq!(init[0]["state"]["terminated"]["reason"], "Completed");
        assert!(init[1]["state"]["running"].is_object());
        let ids = [&running["status"]["containerStatuses"][0], &init[0], &init[1]].map(|s| &s["containerID"]);
        assert!(ids[0] != ids[1] && ids[1] != ids[2], "{ids:?}");
    }
}
