use std::collections::HashMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Container;
use serde_json::{Value, json};

use super::*;
use crate::given::Given;
use crate::snapshot::{ContainerInfo, PodSnapshot, SandboxInfo};
use crate::status::{Readiness, Waiting};
use crate::testing::{condition, pod, typed};

struct Says {
    started: bool,
    ready: bool,
}

impl Readiness for Says {
    fn started(&self, _: &Container, _: &ContainerInfo) -> bool {
        self.started
    }

    fn ready(&self, _: &Container, _: &ContainerInfo) -> bool {
        self.ready
    }
}

struct Case {
    pod: Pod,
    old: PodStatus,
    snapshot: PodSnapshot,
    waiting: HashMap<String, Waiting>,
    says: Says,
    pod_is_over: bool,
}

const START_NS: i64 = 1_800_000_000_500_000_000;

fn info(name: &str, state: RunState, exit_code: i32) -> ContainerInfo {
    ContainerInfo {
        id: format!("{name}1"),
        name: name.into(),
        runtime: "runc".into(),
        image: "app:1".into(),
        image_ref: "app@sha256:1".into(),
        state,
        exit_code,
        created_at_ns: START_NS,
        started_at_ns: START_NS,
        finished_at_ns: if state == RunState::Exited { START_NS } else { 0 },
        ..ContainerInfo::default()
    }
}

fn case(spec: Value, containers: Vec<ContainerInfo>) -> Case {
    let pod = typed(pod("p", spec));
    let sandbox =
        SandboxInfo { id: "s".into(), ready: true, ips: vec!["10.1.0.2".into()], ..SandboxInfo::default() };
    Case {
        old: pod.status.clone().unwrap_or_default(),
        pod,
        snapshot: PodSnapshot { sandboxes: vec![sandbox], containers },
        waiting: HashMap::new(),
        says: Says { started: true, ready: true },
        pod_is_over: false,
    }
}

impl Case {
    fn status(&self) -> Value {
        let node_ips: [IpAddr; 1] = ["10.0.0.1".parse().unwrap()];
        let inputs = StatusInputs {
            pod: &self.pod,
            old: &self.old,
            snapshot: &self.snapshot,
            waiting: &self.waiting,
            readiness: &self.says,
            pod_is_over: self.pod_is_over,
            past_deadline: false,
            evicted: None,
            given: &Given::of_spec(&self.pod),
            pending: None,
            resizing: None,
            node_ips: &node_ips,
            now: Timestamp::from_second(1_800_000_010).unwrap(),
        };
        serde_json::to_value(generate(&inputs)).unwrap()
    }
}

#[test]
fn a_running_pod_is_shown_as_upstream_shows_it() {
    let status = case(json!({}), vec![info("app", RunState::Running, 0)]).status();
    let expected = json!({
        "phase": "Running",
        "qosClass": "BestEffort",
        "observedGeneration": 1,
        "startTime": "2027-01-15T08:00:10Z",
        "hostIP": "10.0.0.1",
        "hostIPs": [{ "ip": "10.0.0.1" }],
        "podIP": "10.1.0.2",
        "podIPs": [{ "ip": "10.1.0.2" }],
        "containerStatuses": [{
            "name": "app",
            "state": { "running": { "startedAt": "2027-01-15T08:00:00Z" } },
            "lastState": {},
            "ready": true,
            "started": true,
            "restartCount": 0,
            "image": "app:1",
            "imageID": "app@sha256:1",
            "containerID": "runc://app1",
            "resources": {},
        }],
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&status[key], value, "{key}");
    }
    let types: Vec<&str> =
        status["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
    assert_eq!(
        types,
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
    );
    assert!(status["conditions"].as_array().unwrap().iter().all(|c| c["status"] == "True"));
}

#[test]
fn a_pod_that_is_being_made_waits_for_its_containers() {
    let status = case(json!({}), Vec::new()).status();
    assert_eq!(status["phase"], "Pending");
    assert_eq!(
        status["containerStatuses"][0]["state"],
        json!({ "waiting": { "reason": "ContainerCreating" } })
    );
    let ready = condition(&status, "Ready");
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("ContainersNotReady")));
    assert_eq!(ready["message"], "containers with unready status: [app]");
}

#[test]
fn a_failing_container_shows_why_and_how_it_ended_before() {
    let mut case = case(json!({}), vec![info("app", RunState::Exited, 3)]);
    let waiting = Waiting { reason: "CrashLoopBackOff".into(), message: "back-off 10s".into() };
    case.waiting.insert("app".into(), waiting);
    let status = case.status();
    assert_eq!(status["phase"], "Running");
    let container = &status["containerStatuses"][0];
    assert_eq!(
        container["state"],
        json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 10s" } })
    );
    let ended = &container["lastState"]["terminated"];
    assert_eq!(
        (&ended["exitCode"], &ended["reason"], &ended["containerID"]),
        (&json!(3), &json!("Error"), &json!("runc://app1"))
    );
    assert_eq!((&container["ready"], &container["started"]), (&json!(false), &json!(false)));
}

#[test]
fn a_pod_that_ends_succeeds_or_fails() {
    let of = |policy: &str, code: i32| {
        case(json!({ "restartPolicy": policy }), vec![info("app", RunState::Exited, code)]).status()
    };
    let succeeded = of("Never", 0);
    assert_eq!(succeeded["phase"], "Succeeded");
    assert_eq!(condition(&succeeded, "Ready")["reason"], "PodCompleted");
    assert_eq!(condition(&succeeded, "Initialized")["reason"], "PodCompleted");
    let failed = of("Never", 1);
    assert_eq!(failed["phase"], "Failed");
    assert_eq!(condition(&failed, "ContainersReady")["reason"], "PodFailed");
    assert_eq!(of("OnFailure", 1)["phase"], "Running");
    assert_eq!(of("Always", 0)["phase"], "Running");
}

#[test]
fn a_last_phase_is_never_left() {
    let mut case = case(json!({}), vec![info("app", RunState::Running, 0)]);
    case.pod.status.as_mut().unwrap().phase = Some("Failed".into());
    assert_eq!(case.status()["phase"], "Failed");
}

#[test]
fn init_containers_hold_the_pod_back() {
    let spec = json!({ "initContainers": [{ "name": "init", "image": "app:1" }] });
    let running = case(spec.clone(), vec![info("init", RunState::Running, 0)]).status();
    assert_eq!(running["phase"], "Pending");
    assert_eq!(running["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    let initialized = condition(&running, "Initialized");
    assert_eq!(initialized["reason"], "ContainersNotInitialized");
    assert_eq!(initialized["message"], "containers with incomplete status: [init]");
    let done =
        case(spec, vec![info("app", RunState::Running, 0), info("init", RunState::Exited, 0)]).status();
    assert_eq!(done["phase"], "Running");
    assert_eq!(done["initContainerStatuses"][0]["ready"], true);
}

#[test]
fn readiness_gates_close_the_pod_until_their_conditions_hold() {
    let gate = json!({ "readinessGates": [{ "conditionType": "mine.example/gate" }] });
    let mut case = case(gate, vec![info("app", RunState::Running, 0)]);
    let status = case.status();
    let ready = condition(&status, "Ready");
    assert_eq!(ready["reason"], "ReadinessGatesNotReady");
    assert_eq!(
        ready["message"],
        "corresponding condition of pod readiness gate \"mine.example/gate\" does not exist."
    );
    let open =
        PodCondition { type_: "mine.example/gate".into(), status: "True".into(), ..Default::default() };
    case.pod.status.as_mut().unwrap().conditions = Some(vec![open]);
    assert_eq!(condition(&case.status(), "Ready")["status"], "True");
}

#[test]
fn conditions_keep_their_time_while_they_keep_their_status() {
    let mut case = case(json!({}), vec![info("app", RunState::Running, 0)]);
    let mut earlier: PodStatus = serde_json::from_value(case.status()).unwrap();
    for condition in earlier.conditions.iter_mut().flatten() {
        condition.last_transition_time = Some(Time(Timestamp::from_second(1).unwrap()));
    }
    case.old = earlier;
    case.says.ready = false;
    let status = case.status();
    assert_eq!(condition(&status, "Initialized")["lastTransitionTime"], "1970-01-01T00:00:01Z");
    assert_eq!(condition(&status, "Ready")["lastTransitionTime"], "2027-01-15T08:00:10Z");
}

#[test]
fn a_container_that_vanished_counts_as_ended() {
    let mut case = case(json!({}), Vec::new());
    case.old = serde_json::from_value(json!({
        "phase": "Running",
        "containerStatuses": [{ "name": "app", "image": "app:1", "imageID": "x", "ready": true, "restartCount": 1,
            "state": { "running": {} }, "containerID": "runc://old" }],
    }))
    .unwrap();
    let status = case.status();
    assert_eq!(status["phase"], "Running");
    let container = &status["containerStatuses"][0];
    assert_eq!(container["lastState"]["terminated"]["reason"], "ContainerStatusUnknown");
    assert_eq!(container["restartCount"], 2);
}

#[test]
fn a_container_of_which_nothing_is_known_counts_as_killed_wherever_it_ran() {
    let killed = |state: &Value| {
        let ended = &state["terminated"];
        (ended["reason"].as_str(), ended["exitCode"].as_i64()) == (Some("ContainerStatusUnknown"), Some(137))
    };
    let newer = ContainerInfo { id: "app2".into(), restart_count: 1, ..info("app", RunState::Running, 0) };
    let mut case = case(json!({}), vec![newer, info("app", RunState::Unknown, 0)]);
    let container = &case.status()["containerStatuses"][0];
    assert!(killed(&container["lastState"]), "{container}");
    assert!(container["state"]["running"].is_object());

    case.snapshot.containers.remove(0);
    case.old = serde_json::from_value(
        json!({ "containerStatuses": [{ "name": "app", "image": "app:1", "imageID": "x",
        "ready": true, "restartCount": 0, "state": { "running": {} }, "containerID": "runc://app1" }] }),
    )
    .unwrap();
    let container = &case.status()["containerStatuses"][0];
    assert!(killed(&container["state"]), "{container}");
}

#[test]
fn a_terminal_phase_is_held_back_while_something_runs() {
    let api = PodStatus { phase: Some("Running".into()), ..PodStatus::default() };
    let fresh = PodStatus {
        phase: Some("Failed".into()),
        reason: Some("DeadlineExceeded".into()),
        ..PodStatus::default()
    };
    let shown = hold_back_terminal(fresh, Some(&api));
    assert_eq!((shown.phase.as_deref(), shown.reason), (Some("Running"), None));
}
