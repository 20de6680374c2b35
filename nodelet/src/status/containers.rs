//! Container statuses, as upstream's `convertToAPIContainerStatuses` makes them.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, LinuxContainerUser, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::given;
use crate::plan::{any_regular_created, needs_start};
use crate::pod::{PodExt, init_containers, is_sidecar};
use crate::snapshot::{ContainerInfo, RunState};
use crate::status::StatusInputs;

pub(super) const CONTAINER_CREATING: &str = "ContainerCreating";
pub(super) const POD_INITIALIZING: &str = "PodInitializing";
const STATUS_UNKNOWN: &str = "ContainerStatusUnknown";
const NOT_LOCATED: &str = "The container could not be located when the pod was terminated";
/// A pod's termination messages together take no more than this (12 KiB), shared by its containers.
const MAX_MESSAGES_BYTES: usize = 12 * 1024;

/// The statuses of `specs`, in their order.
pub(super) fn container_statuses(
    inputs: &StatusInputs<'_>,
    specs: &[Container],
    old: &[ContainerStatus],
    are_init: bool,
) -> Vec<ContainerStatus> {
    let old: HashMap<&str, &ContainerStatus> = old.iter().map(|s| (s.name.as_str(), s)).collect();
    specs
        .iter()
        .map(|spec| container_status(inputs, spec, old.get(spec.name.as_str()).copied(), are_init))
        .collect()
}

fn container_status(
    inputs: &StatusInputs<'_>,
    spec: &Container,
    old: Option<&ContainerStatus>,
    is_init: bool,
) -> ContainerStatus {
    let mut found = inputs.snapshot.containers.iter().filter(|c| c.name == spec.name);
    let (newest, previous) = (found.next(), found.next());
    let mut status = match newest {
        Some(info) => {
            let mut status = found_status(spec, info, old);
            let in_force = inputs.given.of_container(&spec.name).filter(|_| info.state == RunState::Running);
            if let (Some(shown), Some(in_force)) = (&mut status.resources, in_force) {
                *shown = given::shown(shown, in_force);
            }
            if let Some(previous) = previous {
                status.last_state = Some(previous_state(previous));
            }
            status
        }
        None => missing_status(inputs, spec, old),
    };
    status.volume_mounts = volume_mounts(spec);
    if !(is_init && assume_completed(inputs, spec, newest, &mut status)) {
        show_waiting(inputs, spec, newest, &mut status);
    }
    probe_status(inputs, spec, newest, is_init, &mut status);
    trim_messages(inputs, &mut status);
    status
}

/// The status of a container that the runtime knows.
fn found_status(spec: &Container, info: &ContainerInfo, old: Option<&ContainerStatus>) -> ContainerStatus {
    let mut last_state = None;
    if let Some(old) = old {
        // Where the previous container is gone from the runtime, the API's memory of it serves.
        let ended = |s: &Option<ContainerState>| s.clone().filter(|s| s.terminated.is_some());
        last_state = match old.container_id.as_deref() == Some(info.full_id().as_str()) {
            true => ended(&old.last_state),
            false => ended(&old.state).or_else(|| ended(&old.last_state)),
        };
    }
    ContainerStatus {
        name: spec.name.clone(),
        restart_count: old.map_or(0, |o| o.restart_count).max(info.restart_count),
        image: info.image.clone(),
        image_id: info.image_ref.clone(),
        container_id: Some(info.full_id()),
        state: Some(container_state(info, old)),
        last_state: Some(last_state.unwrap_or_default()),
        allocated_resources: spec.resources.as_ref().and_then(|r| r.requests.clone()),
        resources: Some(spec.resources.clone().unwrap_or_default()),
        user: info.user.as_ref().map(|user| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: user.uid,
                gid: user.gid,
                supplemental_groups: Some(user.supplemental_groups.clone()).filter(|g| !g.is_empty()),
            }),
        }),
        ..ContainerStatus::default()
    }
}

fn container_state(info: &ContainerInfo, old: Option<&ContainerStatus>) -> ContainerState {
    let was_running = old.and_then(|o| o.state.as_ref()).is_some_and(|s| s.running.is_some());
    match info.state {
        RunState::Running => ContainerState {
            running: Some(ContainerStateRunning { started_at: time(info.started_at_ns) }),
            ..ContainerState::default()
        },
        RunState::Exited => {
            ContainerState { terminated: Some(terminated(info)), ..ContainerState::default() }
        }
        RunState::Unknown if was_running => unknown_state(NOT_LOCATED),
        RunState::Created | RunState::Unknown => waiting_state("", ""),
    }
}

/// The state of a container that another has followed: it does not run, whatever the runtime knows of it.
fn previous_state(info: &ContainerInfo) -> ContainerState {
    match info.state {
        RunState::Unknown => unknown_state(NOT_LOCATED),
        _ => container_state(info, None),
    }
}

fn terminated(info: &ContainerInfo) -> ContainerStateTerminated {
    let text = |s: &str| Some(s.to_owned()).filter(|s| !s.is_empty());
    ContainerStateTerminated {
        exit_code: info.exit_code,
        reason: text(&info.reason).or_else(|| text(if info.exit_code == 0 { "Completed" } else { "Error" })),
        message: text(&info.message),
        started_at: time(info.started_at_ns),
        finished_at: time(info.finished_at_ns),
        container_id: Some(info.full_id()),
        signal: None,
    }
}

pub(super) fn unknown_state(message: &str) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            reason: Some(STATUS_UNKNOWN.to_owned()),
            message: Some(message.to_owned()),
            exit_code: 137,
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

fn waiting_state(reason: &str, message: &str) -> ContainerState {
    let text = |s: &str| Some(s.to_owned()).filter(|s| !s.is_empty());
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: text(reason), message: text(message) }),
        ..ContainerState::default()
    }
}

/// The status of a container that the runtime does not know: not made yet, or gone.
fn missing_status(
    inputs: &StatusInputs<'_>,
    spec: &Container,
    old: Option<&ContainerStatus>,
) -> ContainerStatus {
    if let Some(old) = old.filter(|o| o.state.as_ref().is_some_and(|s| s.terminated.is_some())) {
        return old.clone();
    }
    let default_reason =
        if init_containers(inputs.pod).is_empty() { CONTAINER_CREATING } else { POD_INITIALIZING };
    let mut status = ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        state: Some(waiting_state(default_reason, "")),
        last_state: Some(ContainerState::default()),
        ..ContainerStatus::default()
    };
    let Some(old) = old else { return status };
    status.restart_count = old.restart_count;
    status.last_state = old.last_state.clone().or(status.last_state);
    let was_running = old.state.as_ref().is_some_and(|s| s.running.is_some());
    let remembers_end = status.last_state.as_ref().is_some_and(|s| s.terminated.is_some());
    if was_running && !remembers_end {
        // It ran and vanished: it counts as ended, or the pod would fall back to Pending.
        let message =
            "The container could not be located when the pod was deleted.  The container used to be Running";
        status.last_state = Some(unknown_state(message));
        status.restart_count += i32::from(!inputs.pod.is_deleting());
    }
    status
}

/// An init container that succeeded is not started again, and one whose record is lost is taken to
/// have succeeded once app containers exist. Answers whether that settles its status.
fn assume_completed(
    inputs: &StatusInputs<'_>,
    spec: &Container,
    newest: Option<&ContainerInfo>,
    status: &mut ContainerStatus,
) -> bool {
    match newest {
        Some(info) => info.state == RunState::Exited && info.exit_code == 0 && !is_sidecar(spec),
        None => {
            let is_waiting = status.state.as_ref().is_some_and(|s| s.waiting.is_some());
            if is_sidecar(spec) || !is_waiting || !any_regular_created(inputs.pod, inputs.snapshot) {
                return false;
            }
            let message = "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally";
            status.state = Some(ContainerState {
                terminated: Some(ContainerStateTerminated {
                    reason: Some("Completed".to_owned()),
                    message: Some(message.to_owned()),
                    ..ContainerStateTerminated::default()
                }),
                ..ContainerState::default()
            });
            true
        }
    }
}

/// A container that is to start, and could not, shows why.
fn show_waiting(
    inputs: &StatusInputs<'_>,
    spec: &Container,
    newest: Option<&ContainerInfo>,
    status: &mut ContainerStatus,
) {
    if inputs.pod_is_over || !needs_start(inputs.pod, spec, newest) {
        return;
    }
    let Some(waiting) = inputs.waiting.get(&spec.name) else { return };
    if let Some(ended) = status.state.take().filter(|s| s.terminated.is_some()) {
        status.last_state = Some(ended);
    }
    status.state = Some(waiting_state(&waiting.reason, &waiting.message));
}

fn probe_status(
    inputs: &StatusInputs<'_>,
    spec: &Container,
    newest: Option<&ContainerInfo>,
    is_init: bool,
    status: &mut ContainerStatus,
) {
    let running = newest.filter(|_| status.state.as_ref().is_some_and(|s| s.running.is_some()));
    let started = running.is_some_and(|info| inputs.readiness.started(spec, info));
    status.started = Some(started);
    status.ready = match is_init && !is_sidecar(spec) {
        true => status.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0),
        false => started && running.is_some_and(|info| inputs.readiness.ready(spec, info)),
    };
}

fn volume_mounts(spec: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = spec.volume_mounts.as_ref()?.iter().map(|mount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only.filter(|read_only| *read_only),
        recursive_read_only: mount.read_only.filter(|read_only| *read_only).map(|_| "Disabled".to_owned()),
        ..VolumeMountStatus::default()
    });
    Some(mounts.collect())
}

fn trim_messages(inputs: &StatusInputs<'_>, status: &mut ContainerStatus) {
    let n_containers =
        inputs.pod.spec.as_ref().map_or(1, |s| s.containers.len()) + init_containers(inputs.pod).len();
    let limit = MAX_MESSAGES_BYTES / n_containers.max(1);
    for state in [&mut status.state, &mut status.last_state].into_iter().flatten() {
        if let Some(message) = state.terminated.as_mut().and_then(|t| t.message.as_mut()) {
            let end =
                (0..=limit.min(message.len())).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
            message.truncate(end);
        }
    }
}

/// Kubernetes' times have whole seconds.
pub(super) fn time(ns: i64) -> Option<Time> {
    let seconds = ns.div_euclid(1_000_000_000);
    if ns == 0 { None } else { Timestamp::from_second(seconds).ok().map(Time) }
}
