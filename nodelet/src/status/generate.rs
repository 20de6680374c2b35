//! Phase and conditions, as upstream's `getPhase` and `status/generate.go` make them.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::plan::sandbox_changed;
use crate::pod::{
    PodExt, as_container, containers, ephemeral_containers, init_containers, is_sidecar, is_terminal,
    should_restart,
};
use crate::resources::{ResourceList, pod_limits, pod_requests, qos_class};
use crate::snapshot::RunState;
use crate::status::StatusInputs;
use crate::status::containers::{container_statuses, unknown_state};

/// The conditions that the kubelet writes; all others are someone else's and stay as they are.
const OWNED_CONDITIONS: [&str; 7] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "PodResizePending",
    "PodResizeInProgress",
];

/// The pod's status.
pub(crate) fn generate(inputs: &StatusInputs<'_>) -> PodStatus {
    let (pod, old) = (inputs.pod, inputs.old);
    let old_list = |list: &Option<Vec<ContainerStatus>>| list.clone().unwrap_or_default();
    let mut regular = container_statuses(inputs, containers(pod), &old_list(&old.container_statuses), false);
    regular.sort_by(|a, b| a.name.cmp(&b.name));
    let init =
        container_statuses(inputs, init_containers(pod), &old_list(&old.init_container_statuses), true);

    let mut status = PodStatus {
        qos_class: Some(qos_class(pod).to_owned()),
        start_time: old.start_time.clone().or_else(|| Some(Time(whole_seconds(inputs.now)))),
        observed_generation: pod.metadata.generation.max(old.observed_generation),
        resource_claim_statuses: old.resource_claim_statuses.clone(),
        nominated_node_name: old.nominated_node_name.clone(),
        allocated_resources: Some(pod_requests(pod)).filter(|requests| !requests.is_empty()),
        resources: in_force(inputs),
        ..PodStatus::default()
    };
    set_phase(inputs, &init, &regular, &mut status);
    set_addresses(inputs, &mut status);
    let conditions = conditions(inputs, &init, &regular, status.phase.as_deref().unwrap_or_default());
    status.conditions = Some(conditions);
    status.container_statuses = Some(regular);
    let ephemeral: Vec<Container> = ephemeral_containers(pod).iter().map(as_container).collect();
    let mut ephemeral =
        container_statuses(inputs, &ephemeral, &old_list(&old.ephemeral_container_statuses), false);
    ephemeral.sort_by(|a, b| a.name.cmp(&b.name));
    status.ephemeral_container_statuses = Some(ephemeral).filter(|list| !list.is_empty());
    status.init_container_statuses = Some(init).filter(|list| !list.is_empty());
    status
}

/// What the pod as a whole has been given.
fn in_force(inputs: &StatusInputs<'_>) -> Option<ResourceRequirements> {
    let pod = inputs.given.in_place_of(inputs.pod);
    let said = |list: ResourceList| Some(list).filter(|list| !list.is_empty());
    let (requests, limits) = (said(pod_requests(&pod)), said(pod_limits(&pod)));
    let is_said = requests.is_some() || limits.is_some();
    is_said.then(|| ResourceRequirements { requests, limits, ..ResourceRequirements::default() })
}

fn set_phase(
    inputs: &StatusInputs<'_>,
    init: &[ContainerStatus],
    regular: &[ContainerStatus],
    status: &mut PodStatus,
) {
    let (pod, old) = (inputs.pod, inputs.old);
    let mut phase = phase(inputs, init, regular);
    // A pod never leaves its last phase.
    for earlier in [old.phase.as_deref().unwrap_or_default(), pod.phase()] {
        if is_terminal(earlier) && !is_terminal(phase) {
            phase = if earlier == "Failed" { "Failed" } else { "Succeeded" };
        }
    }
    if old.phase.as_deref() == Some(phase) {
        status.reason = old.reason.clone();
        status.message = old.message.clone();
    }
    if inputs.past_deadline && !is_terminal(pod.phase()) {
        phase = "Failed";
        status.reason = Some("DeadlineExceeded".to_owned());
        status.message = Some("Pod was active on the node longer than the specified deadline".to_owned());
    }
    if let Some(message) = inputs.evicted.filter(|_| !is_terminal(pod.phase())) {
        phase = "Failed";
        status.reason = Some("Evicted".to_owned());
        status.message = Some(message.to_owned());
    }
    status.phase = Some(phase.to_owned());
}

/// How far the containers of one list have come.
#[derive(Default)]
struct Counts {
    unknown: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    stopped_for_good: usize,
    succeeded: usize,
    pending_init: usize,
    pending_sidecars: usize,
    init_failed_for_good: usize,
}

/// The container's last end, where it is not running: now ended, or waiting to start again.
fn ended(status: &ContainerStatus) -> Option<i32> {
    let state = status.state.as_ref()?;
    let ended = match (&state.terminated, &state.waiting) {
        (Some(terminated), _) => Some(terminated),
        (None, Some(_)) => status.last_state.as_ref().and_then(|s| s.terminated.as_ref()),
        (None, None) => None,
    };
    ended.map(|t| t.exit_code)
}

fn count(inputs: &StatusInputs<'_>, init: &[ContainerStatus], regular: &[ContainerStatus]) -> Counts {
    let mut counts = Counts::default();
    let pairs =
        |specs: &[Container], statuses: &[ContainerStatus]| -> Vec<(Container, Option<ContainerStatus>)> {
            specs.iter().map(|c| (c.clone(), statuses.iter().find(|s| s.name == c.name).cloned())).collect()
        };
    for (spec, status) in pairs(init_containers(inputs.pod), init) {
        let is_running = status.as_ref().and_then(|s| s.state.as_ref()).is_some_and(|s| s.running.is_some());
        let end = status.as_ref().and_then(ended);
        match (is_sidecar(&spec), is_running, end) {
            (true, true, _) => {
                counts.running += 1;
                counts.pending_sidecars += usize::from(status.and_then(|s| s.started) != Some(true));
            }
            (true, false, Some(_)) => {}
            (true, false, None) => {
                counts.pending_sidecars += 1;
                counts.waiting += 1;
            }
            (false, _, Some(0)) => {}
            (false, false, Some(code)) => {
                counts.init_failed_for_good += usize::from(!should_restart(&spec, inputs.pod, code));
            }
            (false, _, _) => counts.pending_init += 1,
        }
    }
    for (spec, status) in pairs(containers(inputs.pod), regular) {
        let Some(status) = status else {
            counts.unknown += 1;
            continue;
        };
        let is_running = status.state.as_ref().is_some_and(|s| s.running.is_some());
        let is_terminated = status.state.as_ref().is_some_and(|s| s.terminated.is_some());
        match (is_running, ended(&status)) {
            (true, _) => counts.running += 1,
            (false, Some(code)) => {
                counts.stopped += 1;
                counts.stopped_for_good += usize::from(!should_restart(&spec, inputs.pod, code));
                counts.succeeded += usize::from(is_terminated && code == 0);
            }
            (false, None) => counts.waiting += 1,
        }
    }
    counts
}

fn phase(inputs: &StatusInputs<'_>, init: &[ContainerStatus], regular: &[ContainerStatus]) -> &'static str {
    let counts = count(inputs, init, regular);
    let any_regular_active = containers(inputs.pod)
        .iter()
        .filter_map(|c| inputs.snapshot.container(&c.name))
        .any(|c| c.started_at_ns != 0 && matches!(c.state, RunState::Running | RunState::Exited));
    if counts.init_failed_for_good > 0 {
        return "Failed";
    }
    let ended = |all_succeeded| if all_succeeded { "Succeeded" } else { "Failed" };
    if counts.pending_init > 0 || counts.pending_sidecars > 0 && !any_regular_active || counts.waiting > 0 {
        "Pending"
    } else if counts.running > 0 && counts.unknown == 0 {
        "Running"
    } else if counts.running == 0 && counts.stopped > 0 && counts.unknown == 0 {
        if inputs.pod_is_over || counts.stopped == counts.stopped_for_good {
            ended(counts.stopped == counts.succeeded)
        } else {
            "Running"
        }
    } else {
        "Pending"
    }
}

fn set_addresses(inputs: &StatusInputs<'_>, status: &mut PodStatus) {
    let host_ips: Vec<String> = inputs.node_ips.iter().take(2).map(IpAddr::to_string).collect();
    let mut pod_ips = primary_family_first(inputs.snapshot.pod_ips(), inputs.node_ips);
    if inputs.pod.is_host_network() {
        pod_ips.clone_from(&host_ips);
    } else if pod_ips.is_empty()
        && (inputs.pod_is_over || inputs.pod.is_deleting() || is_terminal(inputs.pod.phase()))
    {
        // The sandbox is gone for good; the address the pod had stays on record.
        pod_ips = inputs.old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
    }
    status.host_ip = host_ips.first().cloned();
    status.host_ips = Some(host_ips.into_iter().map(|ip| HostIP { ip }).collect());
    status.pod_ip = pod_ips.first().cloned();
    status.pod_ips =
        Some(pod_ips.into_iter().map(|ip| PodIP { ip }).collect()).filter(|ips: &Vec<_>| !ips.is_empty());
}

/// One address of each family, the node's own family first.
pub(crate) fn primary_family_first(ips: Vec<String>, node_ips: &[IpAddr]) -> Vec<String> {
    let prefer_v4 = node_ips.first().is_none_or(IpAddr::is_ipv4);
    let parsed: Vec<IpAddr> = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    let first_of = |v4: bool| parsed.iter().find(|ip| ip.is_ipv4() == v4).map(IpAddr::to_string);
    [first_of(prefer_v4), first_of(!prefer_v4)].into_iter().flatten().collect()
}

/// What a condition says, before times and generation are filled in.
struct Draft {
    type_: &'static str,
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Draft {
    fn yes(type_: &'static str) -> Draft {
        Draft { type_, status: true, reason: None, message: None }
    }

    fn no(type_: &'static str, reason: &'static str, message: Option<String>) -> Draft {
        Draft { type_, status: false, reason: Some(reason), message }
    }
}

fn conditions(
    inputs: &StatusInputs<'_>,
    init: &[ContainerStatus],
    regular: &[ContainerStatus],
    phase: &str,
) -> Vec<PodCondition> {
    let pod = inputs.pod;
    let foreign = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let mut conditions: Vec<PodCondition> =
        foreign.into_iter().filter(|c| !OWNED_CONDITIONS.contains(&c.type_.as_str())).collect();
    let all: Vec<&ContainerStatus> = init.iter().chain(regular).collect();
    let (needs_sandbox, ..) = sandbox_changed(pod, inputs.snapshot);
    let drafts = [
        Draft { type_: "PodReadyToStartContainers", status: !needs_sandbox, reason: None, message: None },
        initialized(inputs, &all, phase),
        ready(pod, &all, &conditions, phase),
        containers_ready("ContainersReady", pod, &all, phase),
        Draft::yes("PodScheduled"),
    ];
    conditions.extend(drafts.into_iter().map(|draft| finish(inputs, draft)));
    if !is_terminal(phase) {
        conditions.extend(resize_conditions(inputs));
    }
    if let Some(message) = inputs.evicted {
        conditions.retain(|c| c.type_ != DISRUPTION_TARGET);
        let known = inputs.old.conditions.iter().flatten().find(|c| is_evicted_by_node(c));
        conditions.push(known.cloned().unwrap_or_else(|| PodCondition {
            type_: DISRUPTION_TARGET.to_owned(),
            status: "True".to_owned(),
            reason: Some(TERMINATION_BY_NODE.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(Time(whole_seconds(inputs.now))),
            observed_generation: pod.metadata.generation,
            ..PodCondition::default()
        }));
    }
    conditions
}

const DISRUPTION_TARGET: &str = "DisruptionTarget";
const TERMINATION_BY_NODE: &str = "TerminationByKubelet";

/// Whether a condition says that this node had the pod go. Others may have it go, too, and say so in the same type of condition.
fn is_evicted_by_node(condition: &PodCondition) -> bool {
    condition.type_ == DISRUPTION_TARGET && condition.reason.as_deref() == Some(TERMINATION_BY_NODE)
}

/// Whether a condition is written by the node.
pub(crate) fn is_own(condition: &PodCondition) -> bool {
    OWNED_CONDITIONS.contains(&condition.type_.as_str()) || is_evicted_by_node(condition)
}

/// What is told of a pod whose containers are to be given something else.
fn resize_conditions(inputs: &StatusInputs<'_>) -> impl Iterator<Item = PodCondition> {
    let condition = |type_: &str, since: Timestamp, generation: Option<i64>| PodCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        last_probe_time: Some(Time(whole_seconds(since))),
        last_transition_time: Some(Time(whole_seconds(since))),
        observed_generation: generation,
        ..PodCondition::default()
    };
    let pending = inputs.pending.map(|pending| PodCondition {
        reason: Some("Deferred".to_owned()),
        message: Some(pending.message.clone()),
        ..condition("PodResizePending", pending.since, pending.generation)
    });
    let resizing = inputs.resizing.map(|resizing| PodCondition {
        reason: resizing.error.as_ref().map(|_| "Error".to_owned()),
        message: resizing.error.clone(),
        ..condition("PodResizeInProgress", resizing.since, resizing.generation)
    });
    pending.into_iter().chain(resizing)
}

fn finish(inputs: &StatusInputs<'_>, draft: Draft) -> PodCondition {
    let status = if draft.status { "True" } else { "False" };
    let old = inputs.old.conditions.iter().flatten().find(|c| c.type_ == draft.type_ && c.status == status);
    PodCondition {
        type_: draft.type_.to_owned(),
        status: status.to_owned(),
        reason: draft.reason.map(str::to_owned),
        message: draft.message,
        last_probe_time: None,
        last_transition_time: old
            .and_then(|c| c.last_transition_time.clone())
            .or_else(|| Some(Time(whole_seconds(inputs.now)))),
        observed_generation: inputs.pod.metadata.generation,
    }
}

/// Names as Go prints a slice: `[a b]`.
fn go_list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn unready_message(unknown: &[&str], unready: &[&str], word: &str) -> Option<String> {
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("containers with unknown status: {}", go_list(unknown)));
    }
    if !unready.is_empty() {
        parts.push(format!("containers with {word} status: {}", go_list(unready)));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn containers_ready(type_: &'static str, pod: &Pod, all: &[&ContainerStatus], phase: &str) -> Draft {
    let specs = init_containers(pod).iter().filter(|c| is_sidecar(c)).chain(containers(pod));
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    for spec in specs {
        match all.iter().find(|s| s.name == spec.name) {
            None => unknown.push(spec.name.as_str()),
            Some(status) if !status.ready => unready.push(spec.name.as_str()),
            Some(_) => {}
        }
    }
    match phase {
        "Succeeded" if unknown.is_empty() => Draft::no(type_, "PodCompleted", None),
        "Failed" => Draft::no(type_, "PodFailed", None),
        _ => match unready_message(&unknown, &unready, "unready") {
            Some(message) => Draft::no(type_, "ContainersNotReady", Some(message)),
            None => Draft::yes(type_),
        },
    }
}

fn ready(pod: &Pod, all: &[&ContainerStatus], conditions: &[PodCondition], phase: &str) -> Draft {
    let containers_ready = containers_ready("Ready", pod, all, phase);
    if !containers_ready.status {
        return containers_ready;
    }
    let gates = pod.spec.as_ref().and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
    let closed: Vec<String> = gates
        .iter()
        .filter_map(|gate| {
            let type_ = &gate.condition_type;
            match conditions.iter().find(|c| c.type_ == *type_) {
                None => {
                    Some(format!("corresponding condition of pod readiness gate {type_:?} does not exist."))
                }
                Some(c) if c.status != "True" => Some(format!(
                    "the status of pod readiness gate {type_:?} is not \"True\", but {}",
                    c.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    match closed.is_empty() {
        true => Draft::yes("Ready"),
        false => Draft::no("Ready", "ReadinessGatesNotReady", Some(closed.join(", "))),
    }
}

fn initialized(inputs: &StatusInputs<'_>, all: &[&ContainerStatus], phase: &str) -> Draft {
    const TYPE: &str = "Initialized";
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for spec in init_containers(inputs.pod) {
        match all.iter().find(|s| s.name == spec.name) {
            None => unknown.push(spec.name.as_str()),
            Some(status) => {
                let done = if is_sidecar(spec) { status.started == Some(true) } else { status.ready };
                if !done {
                    incomplete.push(spec.name.as_str());
                }
            }
        }
    }
    if phase == "Succeeded" && unknown.is_empty() {
        return Draft { reason: Some("PodCompleted"), ..Draft::yes(TYPE) };
    }
    let any_regular_started =
        containers(inputs.pod).iter().filter_map(|c| all.iter().find(|s| s.name == c.name)).any(|s| {
            let running = s.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some());
            running || s.last_state.as_ref().is_some_and(|s| s.terminated.is_some())
        });
    match unready_message(&unknown, &incomplete, "incomplete") {
        Some(message) if !any_regular_started => Draft::no(TYPE, "ContainersNotInitialized", Some(message)),
        _ => Draft::yes(TYPE),
    }
}

pub(crate) fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// What may be shown while containers could still run: a last phase is not announced before its time.
pub(crate) fn hold_back_terminal(mut status: PodStatus, api_status: Option<&PodStatus>) -> PodStatus {
    let shown = api_status.and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    if is_terminal(status.phase.as_deref().unwrap_or_default()) && !is_terminal(shown) {
        status.phase = Some(shown.to_owned());
        status.reason = api_status.and_then(|s| s.reason.clone());
        status.message = api_status.and_then(|s| s.message.clone());
    }
    status
}

/// The status of a pod that this node does not admit.
pub(crate) fn rejected(pod: &Pod, reason: &str, message: &str, now: Timestamp) -> PodStatus {
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(format!("Pod was rejected: {message}")),
        qos_class: Some(qos_class(pod).to_owned()),
        start_time: Some(Time(whole_seconds(now))),
        observed_generation: pod.metadata.generation,
        conditions: pod.status.as_ref().and_then(|s| s.conditions.clone()),
        ..PodStatus::default()
    }
}

/// The last word on a pod of which nothing runs any more: every phase becomes a terminal one.
pub(crate) fn terminate(mut status: PodStatus) -> PodStatus {
    let has_started = |list: &Option<Vec<ContainerStatus>>| {
        list.iter().flatten().any(|s| {
            s.state.as_ref().is_some_and(|s| s.waiting.is_none())
                || s.last_state.as_ref().is_some_and(|s| s.terminated.is_some())
        })
    };
    if has_started(&status.container_statuses) {
        for container in status.container_statuses.iter_mut().flatten() {
            if container.state.as_ref().is_none_or(|s| s.terminated.is_none()) {
                container.state =
                    Some(unknown_state("The container could not be located when the pod was terminated"));
            }
        }
    }
    if !is_terminal(status.phase.as_deref().unwrap_or_default()) {
        status.phase = Some("Failed".to_owned());
    }
    status
}

#[cfg(test)]
#[path = "generate_tests.rs"]
mod tests;
