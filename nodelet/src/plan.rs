//! Decides what to do about one pod: a snapshot in, actions out, no IO.
//!
//! ```text
//!  no sandbox, or not ready ──▶ kill what is left ──▶ create sandbox ─┐
//!                                                                     ▼
//!        init containers, one after the other; sidecars stay up ──▶ app containers
//!                                                                     │
//!              nothing runs and nothing is to start ◀─────────────────┘
//!                        └──▶ kill the pod (its phase says how it ended)
//! ```
//!
//! The rules are upstream's `computePodActions`, to the message of each kill.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};

use crate::given::Given;
use crate::pod::{
    PodExt, as_container, containers, ephemeral_containers, hash_container, init_containers, is_sidecar,
    restarts_on_failure, should_restart,
};
use crate::snapshot::{ContainerInfo, PodSnapshot, RunState};

/// What a probe last said about a container, once it said anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Success,
    Failure,
}

/// What the probes of a pod say. Answers `None` while there is no verdict.
pub(crate) trait Verdicts {
    fn liveness(&self, container_id: &str) -> Option<Verdict>;
    fn startup(&self, container_id: &str) -> Option<Verdict>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KillReason {
    LivenessProbe,
    StartupProbe,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kill {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) message: String,
    pub(crate) reason: KillReason,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Actions {
    /// Stop every container and the sandbox: to make a new one, or for good.
    pub(crate) kill_pod: bool,
    /// Then create a sandbox, with this attempt.
    pub(crate) create_sandbox: bool,
    pub(crate) attempt: u32,
    /// The sandbox to start containers in, where none is created.
    pub(crate) sandbox_id: Option<String>,
    pub(crate) kill: Vec<Kill>,
    /// Indexes into `spec.ephemeralContainers`, in order. These start once, whatever else the pod waits for.
    pub(crate) start_ephemeral: Vec<usize>,
    /// Indexes into `spec.initContainers`, in order.
    pub(crate) start_init: Vec<usize>,
    /// Indexes into `spec.containers`, in order.
    pub(crate) start: Vec<usize>,
}

/// The plan for a pod that should run.
pub(crate) fn plan(pod: &Pod, snapshot: &PodSnapshot, verdicts: &dyn Verdicts, given: &Given) -> Actions {
    let (create, attempt, sandbox_id) = sandbox_changed(pod, snapshot);
    let mut actions =
        Actions { kill_pod: create, create_sandbox: create, attempt, sandbox_id, ..Actions::default() };
    if create {
        plan_new_sandbox(pod, snapshot, &mut actions);
        return actions;
    }
    let is_new = |c: &EphemeralContainer| snapshot.container(&c.name).is_none();
    actions.start_ephemeral = places(ephemeral_containers(pod), is_new);
    let initialized = plan_init(pod, snapshot, verdicts, given, &mut actions);
    if actions.kill_pod || !initialized {
        return actions;
    }
    plan_containers(pod, snapshot, verdicts, given, &mut actions);
    actions
}

/// Whether the pod needs a new sandbox, with which attempt, and else which sandbox it has.
pub(crate) fn sandbox_changed(pod: &Pod, snapshot: &PodSnapshot) -> (bool, u32, Option<String>) {
    let Some(newest) = snapshot.sandboxes.first() else { return (true, 0, None) };
    let n_ready = snapshot.sandboxes.iter().filter(|s| s.ready).count();
    let unusable = n_ready != 1
        || !newest.ready
        || newest.host_network != pod.is_host_network()
        || (!pod.is_host_network() && newest.ips.is_empty());
    match unusable {
        true => (true, newest.attempt + 1, None),
        false => (false, newest.attempt, Some(newest.id.clone())),
    }
}

fn plan_new_sandbox(pod: &Pod, snapshot: &PodSnapshot, actions: &mut Actions) {
    let never = pod.restart_policy() == "Never";
    if never && actions.attempt != 0 && !snapshot.containers.is_empty() {
        actions.create_sandbox = false;
        return;
    }
    let succeeded = |c: &Container| {
        snapshot.container(&c.name).is_some_and(|s| s.state == RunState::Exited && s.exit_code == 0)
    };
    let runs_once =
        |c: &Container| c.restart_policy.as_deref().unwrap_or(pod.restart_policy()) == "OnFailure";
    let start: Vec<usize> = places(containers(pod), |c| !(runs_once(c) && succeeded(c)));
    if start.is_empty() && any_regular_created(pod, snapshot) {
        actions.create_sandbox = false;
        return;
    }
    match init_containers(pod).is_empty() {
        true => actions.start = start,
        false => actions.start_init = vec![0],
    }
}

fn places<T>(list: &[T], keep: impl Fn(&T) -> bool) -> Vec<usize> {
    list.iter().enumerate().filter(|(_, c)| keep(c)).map(|(i, _)| i).collect()
}

/// An app container exists, so the init containers have all run once.
pub(crate) fn any_regular_created(pod: &Pod, snapshot: &PodSnapshot) -> bool {
    containers(pod).iter().filter_map(|c| snapshot.container(&c.name)).any(|c| c.state != RunState::Unknown)
}

/// What one init container asks for.
enum InitStep {
    /// Nothing, but those before it have run.
    Wait,
    Start,
    KillAndStart(Kill),
    /// It is done (or, a sidecar, up): go on with the next.
    Next,
    /// It is up, but is replaced; those after it may go on.
    NextAndReplace(Kill),
    /// It failed for good.
    FailPod,
}

/// Plans the init containers, and answers whether the app containers may run.
fn plan_init(
    pod: &Pod,
    snapshot: &PodSnapshot,
    verdicts: &dyn Verdicts,
    given: &Given,
    actions: &mut Actions,
) -> bool {
    let list = init_containers(pod);
    if list.is_empty() {
        return true;
    }
    let mut initialized = containers(pod)
        .iter()
        .filter_map(|c| snapshot.container(&c.name))
        .any(|c| matches!(c.state, RunState::Created | RunState::Running));
    let mut seen_later = initialized;
    let mut start = Vec::new();
    // From the last one back: finished init containers may have been cleaned up, so the furthest one
    // that left a trace tells how far the pod has come.
    for (index, container) in list.iter().enumerate().rev() {
        let Some(status) = snapshot.container(&container.name) else {
            if seen_later && is_sidecar(container) {
                start.push(index);
            }
            continue;
        };
        if seen_later && !is_sidecar(container) {
            continue;
        }
        let step = match is_sidecar(container) {
            true => sidecar_step(container, status, verdicts, given.needs_restart(pod, container)),
            false => init_step(container, pod, status),
        };
        let mut next = || match index + 1 == list.len() {
            true => initialized = true,
            false if !seen_later => start.push(index + 1),
            false => {}
        };
        match step {
            InitStep::Wait => {}
            InitStep::Start => start.push(index),
            InitStep::KillAndStart(kill) => {
                actions.kill.push(kill);
                start.push(index);
            }
            InitStep::Next => next(),
            InitStep::NextAndReplace(kill) => {
                next();
                actions.kill.push(kill);
                start.push(index);
            }
            InitStep::FailPod => {
                actions.kill_pod = true;
                actions.start_ephemeral.clear();
                return false;
            }
        }
        seen_later = true;
    }
    if !seen_later {
        start.push(0);
    }
    start.reverse();
    actions.start_init = start;
    initialized
}

fn init_step(container: &Container, pod: &Pod, status: &ContainerInfo) -> InitStep {
    match status.state {
        // Created and not started: the start failed, or nodelet died in between.
        RunState::Created => InitStep::Start,
        RunState::Running => InitStep::Wait,
        RunState::Exited if status.exit_code == 0 => InitStep::Next,
        RunState::Exited if should_restart(container, pod, status.exit_code) => InitStep::Start,
        RunState::Unknown if restarts_on_failure(container, pod) => {
            InitStep::KillAndStart(unknown_kill("Init container", status))
        }
        RunState::Exited | RunState::Unknown => InitStep::FailPod,
    }
}

fn sidecar_step(
    container: &Container,
    status: &ContainerInfo,
    verdicts: &dyn Verdicts,
    is_resized: bool,
) -> InitStep {
    let kill = |what: &str, reason| Kill {
        id: status.id.clone(),
        name: status.name.clone(),
        message: format!("Init container {} {what}", status.name),
        reason,
    };
    match status.state {
        RunState::Created | RunState::Exited => return InitStep::Start,
        RunState::Unknown => return InitStep::KillAndStart(unknown_kill("Init container", status)),
        RunState::Running => {}
    }
    if container.startup_probe.is_some() {
        match verdicts.startup(&status.id) {
            None => return InitStep::Wait,
            Some(Verdict::Failure) => {
                return InitStep::KillAndStart(kill("failed startup probe", KillReason::StartupProbe));
            }
            Some(Verdict::Success) => {}
        }
    }
    if status.hash != hash_container(container) {
        return InitStep::NextAndReplace(kill("definition changed", KillReason::Other));
    }
    if is_resized {
        return InitStep::NextAndReplace(Kill {
            message: resize_message(&status.name),
            ..kill("", KillReason::Other)
        });
    }
    match container.liveness_probe.is_some().then(|| verdicts.liveness(&status.id)).flatten() {
        Some(Verdict::Failure) => {
            InitStep::NextAndReplace(kill("failed liveness probe", KillReason::LivenessProbe))
        }
        _ => InitStep::Next,
    }
}

fn unknown_kill(what: &str, status: &ContainerInfo) -> Kill {
    Kill {
        id: status.id.clone(),
        name: status.name.clone(),
        message: format!("{what} is in \"unknown\" state, try killing it before restart"),
        reason: KillReason::Other,
    }
}

fn resize_message(name: &str) -> String {
    format!("Container {name} resize requires restart")
}

fn plan_containers(
    pod: &Pod,
    snapshot: &PodSnapshot,
    verdicts: &dyn Verdicts,
    given: &Given,
    actions: &mut Actions,
) {
    let mut n_kept = 0;
    for (index, container) in containers(pod).iter().enumerate() {
        let status = match snapshot.container(&container.name) {
            Some(status) if status.state == RunState::Running => status,
            other => {
                if needs_start(pod, container, other) {
                    actions.start.push(index);
                    actions.kill.extend(
                        other.filter(|s| s.state == RunState::Unknown).map(|s| unknown_kill("Container", s)),
                    );
                }
                continue;
            }
        };
        match why_kill(container, status, verdicts) {
            None if given.needs_restart(pod, container) => {
                actions.start.push(index);
                actions.kill.push(Kill {
                    id: status.id.clone(),
                    name: container.name.clone(),
                    message: resize_message(&container.name),
                    reason: KillReason::Other,
                });
            }
            None => n_kept += 1,
            Some((what, reason)) => {
                let restart = reason == KillReason::Other || restarts_on_failure(container, pod);
                let suffix = if restart { ", will be restarted" } else { "" };
                if restart {
                    actions.start.push(index);
                }
                let message = format!("Container {} {what}{suffix}", container.name);
                actions.kill.push(Kill {
                    id: status.id.clone(),
                    name: container.name.clone(),
                    message,
                    reason,
                });
            }
        }
    }
    if n_kept == 0 && actions.start.is_empty() {
        // The pod has ended; its sidecars must not keep it alive.
        actions.kill_pod = true;
        actions.start_init.clear();
        actions.start_ephemeral.clear();
    }
}

impl Actions {
    /// The containers to start, in their order.
    pub(crate) fn to_start<'p>(&self, pod: &'p Pod) -> Vec<Starting<'p>> {
        let ephemeral = self.start_ephemeral.iter().filter_map(|at| ephemeral_containers(pod).get(*at));
        let ephemeral = ephemeral.map(|c| Starting {
            container: Cow::Owned(as_container(c)),
            is_init: false,
            target: c.target_container_name.as_deref().filter(|name| !name.is_empty()),
        });
        let lasting =
            |container, is_init| Starting { container: Cow::Borrowed(container), is_init, target: None };
        let init = self.start_init.iter().filter_map(|at| init_containers(pod).get(*at));
        let regular = self.start.iter().filter_map(|at| containers(pod).get(*at));
        ephemeral.chain(init.map(|c| lasting(c, true))).chain(regular.map(|c| lasting(c, false))).collect()
    }
}

/// A container that is to be started.
pub(crate) struct Starting<'p> {
    pub(crate) container: Cow<'p, Container>,
    pub(crate) is_init: bool,
    /// The container whose processes this one is to see.
    pub(crate) target: Option<&'p str>,
}

fn why_kill(
    container: &Container,
    status: &ContainerInfo,
    verdicts: &dyn Verdicts,
) -> Option<(&'static str, KillReason)> {
    if status.hash != hash_container(container) {
        Some(("definition changed", KillReason::Other))
    } else if verdicts.liveness(&status.id) == Some(Verdict::Failure) {
        Some(("failed liveness probe", KillReason::LivenessProbe))
    } else if verdicts.startup(&status.id) == Some(Verdict::Failure) {
        Some(("failed startup probe", KillReason::StartupProbe))
    } else {
        None
    }
}

/// Whether a container that is not running should be: also decides what its status shows as waiting.
pub(crate) fn needs_start(pod: &Pod, container: &Container, status: Option<&ContainerInfo>) -> bool {
    if pod.is_deleting() {
        return false;
    }
    match status {
        None => true,
        Some(status) => match status.state {
            RunState::Running => false,
            RunState::Created | RunState::Unknown => true,
            RunState::Exited => should_restart(container, pod, status.exit_code),
        },
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
