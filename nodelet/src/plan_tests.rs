use std::collections::HashMap;

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::*;
use crate::snapshot::SandboxInfo;
use crate::testing::{pod, typed};

#[derive(Default)]
struct Says(HashMap<&'static str, Verdict>);

impl Verdicts for Says {
    fn liveness(&self, id: &str) -> Option<Verdict> {
        self.0.get(format!("{id} liveness").as_str()).copied()
    }

    fn startup(&self, id: &str) -> Option<Verdict> {
        self.0.get(format!("{id} startup").as_str()).copied()
    }
}

fn sandbox(attempt: u32, ready: bool) -> SandboxInfo {
    SandboxInfo {
        id: format!("s{attempt}"),
        attempt,
        ready,
        ips: vec!["10.1.0.2".into()],
        ..SandboxInfo::default()
    }
}

/// `running`, `created`, `unknown`, or an exit code.
fn container(pod: &Pod, name: &str, state: &str) -> ContainerInfo {
    let spec = crate::pod::find_container(pod, name).unwrap();
    let state_of = |s: &str| match s {
        "running" => RunState::Running,
        "created" => RunState::Created,
        "unknown" => RunState::Unknown,
        _ => RunState::Exited,
    };
    ContainerInfo {
        id: format!("{name}-id"),
        name: name.into(),
        hash: hash_container(&spec),
        state: state_of(state),
        exit_code: state.parse().unwrap_or(0),
        ..ContainerInfo::default()
    }
}

struct Case {
    pod: Pod,
    snapshot: PodSnapshot,
    says: Says,
}

fn case(spec: Value, sandboxes: &[SandboxInfo], containers: &[(&str, &str)]) -> Case {
    let pod = typed(pod("p", spec));
    let containers = containers.iter().map(|(name, state)| container(&pod, name, state)).collect();
    Case { snapshot: PodSnapshot { sandboxes: sandboxes.to_vec(), containers }, pod, says: Says::default() }
}

impl Case {
    fn says(mut self, what: &'static str, verdict: Verdict) -> Case {
        self.says.0.insert(what, verdict);
        self
    }

    /// The plan in a line: what is killed, made and started.
    fn check(&self, expected: Expect) {
        let actions = plan(&self.pod, &self.snapshot, &self.says, &Given::of_spec(&self.pod));
        let mut parts = Vec::new();
        if actions.kill_pod {
            parts.push("kill pod".to_owned());
        }
        if actions.create_sandbox {
            parts.push(format!("sandbox {}", actions.attempt));
        }
        parts.extend(actions.kill.iter().map(|k| format!("kill {} ({})", k.name, k.message)));
        let name = |list: &[Container], index: usize| list[index].name.clone();
        parts.extend(
            actions.start_init.iter().map(|i| format!("start init {}", name(init_containers(&self.pod), *i))),
        );
        parts.extend(actions.start.iter().map(|i| format!("start {}", name(containers(&self.pod), *i))));
        expected.assert_eq(&parts.join("; "));
    }
}

fn two() -> Value {
    json!({ "containers": [{ "name": "a", "image": "app:1" }, { "name": "b", "image": "app:1" }] })
}

fn with_init(policy: &str) -> Value {
    json!({
        "restartPolicy": policy,
        "initContainers": [
            { "name": "i1", "image": "app:1" },
            { "name": "side", "image": "app:1", "restartPolicy": "Always", "startupProbe": { "exec": { "command": ["x"] } } },
            { "name": "i2", "image": "app:1" },
        ],
        "containers": [{ "name": "a", "image": "app:1" }],
    })
}

#[test]
fn a_new_pod_gets_a_sandbox_and_all_its_containers() {
    case(two(), &[], &[]).check(expect!["kill pod; sandbox 0; start a; start b"]);
}

#[test]
fn a_running_pod_is_left_alone() {
    case(two(), &[sandbox(0, true)], &[("a", "running"), ("b", "running")]).check(expect![""]);
}

#[test]
fn a_dead_sandbox_is_replaced_with_everything_in_it() {
    case(two(), &[sandbox(3, false)], &[("a", "137"), ("b", "137")])
        .check(expect!["kill pod; sandbox 4; start a; start b"]);
}

#[test]
fn a_sandbox_without_an_address_is_replaced() {
    let no_ip = SandboxInfo { ips: Vec::new(), ..sandbox(0, true) };
    case(two(), &[no_ip], &[]).check(expect!["kill pod; sandbox 1; start a; start b"]);
}

#[test]
fn a_pod_that_never_restarts_does_not_get_a_second_sandbox() {
    let mut spec = two();
    spec["restartPolicy"] = json!("Never");
    case(spec, &[sandbox(0, false)], &[("a", "0"), ("b", "0")]).check(expect!["kill pod"]);
}

#[test]
fn on_failure_what_succeeded_is_not_run_again_in_a_new_sandbox() {
    let mut spec = two();
    spec["restartPolicy"] = json!("OnFailure");
    case(spec.clone(), &[sandbox(0, false)], &[("a", "0"), ("b", "1")])
        .check(expect!["kill pod; sandbox 1; start b"]);
    case(spec, &[sandbox(0, false)], &[("a", "0"), ("b", "0")]).check(expect!["kill pod"]);
}

#[test]
fn containers_that_end_are_restarted_as_the_policy_says() {
    let of = |policy: &str, code: &'static str| {
        let mut spec = two();
        spec["restartPolicy"] = json!(policy);
        case(spec, &[sandbox(0, true)], &[("a", code), ("b", "running")])
    };
    of("Always", "0").check(expect!["start a"]);
    of("OnFailure", "0").check(expect![""]);
    of("OnFailure", "2").check(expect!["start a"]);
    of("Never", "2").check(expect![""]);
}

#[test]
fn a_containers_own_rules_come_before_the_pods_policy() {
    let of = |code: &'static str| {
        let rule = json!({ "action": "Restart", "exitCodes": { "operator": "In", "values": [42] } });
        let a =
            json!({ "name": "a", "image": "app:1", "restartPolicy": "Never", "restartPolicyRules": [rule] });
        let spec = json!({ "containers": [a, { "name": "b", "image": "app:1" }] });
        case(spec, &[sandbox(0, true)], &[("a", code), ("b", "running")])
    };
    of("42").check(expect!["start a"]);
    of("1").check(expect![""]);
}

#[test]
fn a_pod_of_which_all_ended_for_good_is_ended() {
    let mut spec = two();
    spec["restartPolicy"] = json!("Never");
    case(spec, &[sandbox(0, true)], &[("a", "0"), ("b", "1")]).check(expect!["kill pod"]);
}

#[test]
fn a_changed_image_restarts_the_container() {
    let mut changed = case(two(), &[sandbox(0, true)], &[("a", "running"), ("b", "running")]);
    changed.snapshot.containers[0].hash = 1;
    changed.check(expect!["kill a (Container a definition changed, will be restarted); start a"]);
}

#[test]
fn failed_probes_restart_or_end_a_container() {
    let of = |policy: &str| {
        let mut spec = two();
        spec["restartPolicy"] = json!(policy);
        case(spec, &[sandbox(0, true)], &[("a", "running"), ("b", "running")])
    };
    of("Always")
        .says("a-id liveness", Verdict::Failure)
        .check(expect!["kill a (Container a failed liveness probe, will be restarted); start a"]);
    of("Always")
        .says("b-id startup", Verdict::Failure)
        .check(expect!["kill b (Container b failed startup probe, will be restarted); start b"]);
    of("Never")
        .says("a-id liveness", Verdict::Failure)
        .check(expect!["kill a (Container a failed liveness probe)"]);
}

#[test]
fn a_container_nobody_knows_the_state_of_is_killed_before_it_is_started() {
    case(two(), &[sandbox(0, true)], &[("a", "unknown"), ("b", "running")]).check(expect![[
        r#"kill a (Container is in "unknown" state, try killing it before restart); start a"#
    ]]);
}

#[test]
fn init_containers_run_one_after_the_other() {
    let of = |containers: &[(&str, &str)]| case(with_init("Always"), &[sandbox(0, true)], containers);
    case(with_init("Always"), &[], &[]).check(expect!["kill pod; sandbox 0; start init i1"]);
    of(&[]).check(expect!["start init i1"]);
    of(&[("i1", "running")]).check(expect![""]);
    of(&[("i1", "0")]).check(expect!["start init side"]);
    of(&[("i1", "1")]).check(expect!["start init i1"]);
    of(&[("i1", "created")]).check(expect!["start init i1"]);
    of(&[("i1", "0"), ("side", "running"), ("i2", "running")]).check(expect![""]);
    of(&[("i1", "0"), ("side", "running"), ("i2", "0")]).check(expect!["start a"]);
}

#[test]
fn a_sidecar_lets_the_next_one_start_once_it_has_started() {
    let of = || case(with_init("Always"), &[sandbox(0, true)], &[("i1", "0"), ("side", "running")]);
    of().check(expect![""]);
    of().says("side-id startup", Verdict::Success).check(expect!["start init i2"]);
    of().says("side-id startup", Verdict::Failure)
        .check(expect!["kill side (Init container side failed startup probe); start init side"]);
}

#[test]
fn a_sidecar_is_restarted_while_the_pod_runs_and_not_once_it_ends() {
    let of = |a: &'static str| {
        case(with_init("OnFailure"), &[sandbox(0, true)], &[("i2", "0"), ("side", "1"), ("a", a)])
    };
    of("running").check(expect!["start init side"]);
    of("0").check(expect!["kill pod"]);
}

#[test]
fn an_init_container_that_fails_for_good_ends_the_pod() {
    case(with_init("Never"), &[sandbox(0, true)], &[("i1", "1")]).check(expect!["kill pod"]);
}

#[test]
fn finished_init_containers_that_were_cleaned_up_do_not_run_again() {
    case(with_init("Always"), &[sandbox(0, true)], &[("a", "running")]).check(expect!["start init side"]);
}

#[test]
fn ephemeral_containers_start_beside_whatever_the_pod_waits_for_and_only_once() {
    let mut spec = with_init("Always");
    spec["ephemeralContainers"] =
        json!([{ "name": "e1", "image": "app:1" }, { "name": "e2", "image": "app:1" }]);
    let starts = |containers: &[(&str, &str)]| {
        let case = case(spec.clone(), &[sandbox(0, true)], containers);
        let actions = plan(&case.pod, &case.snapshot, &case.says, &Given::of_spec(&case.pod));
        let names = actions.to_start(&case.pod).iter().map(|s| s.container.name.clone()).collect::<Vec<_>>();
        names.join(" ")
    };
    assert_eq!(starts(&[]), "e1 e2 i1");
    assert_eq!(starts(&[("i1", "running"), ("e1", "1")]), "e2");
}
