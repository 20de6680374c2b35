//! One pod's worker: a task that owns everything about the pod on this node.
//!
//! ```text
//!              ┌── woken by: the pod changed, a runtime event, a probe, a secret, a timer ──┐
//!              ▼                                                                            │
//!  Running: read runtime ─▶ status ─▶ volumes ─▶ plan ─▶ execute ─▶ status ─────────────────┤
//!              │ deleted, ended, past its deadline                                          │
//!              ▼                                                                            │
//!  Ending: stop containers, stop sandbox ─▶ last status                                     │
//!              ▼                                                                            │
//!  Ended: remove volumes; wait for the deletion ────────────────────────────────────────────┘
//!              ▼ deleted
//!  Removed: containers, sandbox, directories, logs gone ─▶ delete the API object ─▶ task ends
//! ```
//!
//! # Guarantees
//! - A pass takes nothing from the event that woke it: it reads the pod and the runtime again.
//! - A container is never started once the pod's deletion is known.
//! - A pod's last phase is not shown while a container of it runs.
//! - Nothing is kept that a restart of nodelet could not read again, except back-off.

mod end;
mod held;
mod resize;
mod start;

pub(crate) use end::end_orphan;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Client;
use skiff_cri::v1::{RemoveContainerRequest, RemovePodSandboxRequest};
use skiff_cri::{Cri, CriError};
use tokio::sync::{Notify, watch};

use crate::backoff::Backoff;
use crate::config::Config;
use crate::env::Downward;
use crate::event::{EventType, PodEvents};
use crate::eviction::{Evictions, Pressure};
use crate::given::{Given, InProgress, Resize};
use crate::images::PullHistory;
use crate::objects::Objects;
use crate::plan::plan;
use crate::pod::{PodExt, is_terminal};
use crate::probe::Probes;
use crate::since::Since;
use crate::snapshot::{self, PodSnapshot, RunState};
use crate::status::generate::is_own;
use crate::status::{self, StatusInputs, StatusWriter, Waiting};
use crate::storage;
use crate::volume::{MountedVolumes, Volumes};
use crate::wake::Wakers;
use held::Held;

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) client: Client,
    pub(crate) cri: Arc<dyn Cri>,
    pub(crate) events: PodEvents,
    pub(crate) objects: Arc<Objects>,
    pub(crate) volumes: Volumes,
    pub(crate) wakers: Arc<Wakers>,
    /// The name of the runtime where a container does not say: the scheme of container IDs.
    pub(crate) runtime_name: String,
    pub(crate) memory_capacity: i64,
    pub(crate) allocatable: BTreeMap<String, Quantity>,
    pub(crate) pressure: Arc<Pressure>,
    pub(crate) evictions: Evictions,
}

/// What a pod should be.
#[derive(Clone)]
pub(crate) struct Desired {
    pub(crate) pod: Arc<Pod>,
    /// It is (or was, at the last look) in the API.
    pub(crate) in_api: bool,
    /// Why this node does not take it: a reason and a message.
    pub(crate) rejection: Option<(String, String)>,
    /// What became of what it asked for while it ran.
    pub(crate) resize: Resize,
}

impl Desired {
    fn must_end(&self) -> bool {
        self.pod.is_deleting() || !self.in_api
    }

    /// Whether anything differs that a pass acts upon: all but this worker's own part of the status.
    fn asks_for_more_than(&self, seen: &Desired) -> bool {
        let others = |pod: &Pod| -> Vec<_> {
            let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
            conditions.filter(|c| !is_own(c)).cloned().collect()
        };
        let (new, old) = (&self.pod, &seen.pod);
        self.in_api != seen.in_api
            || self.resize != seen.resize
            || new.spec != old.spec
            || new.metadata.deletion_timestamp != old.metadata.deletion_timestamp
            || new.metadata.deletion_grace_period_seconds != old.metadata.deletion_grace_period_seconds
            || new.metadata.labels != old.metadata.labels
            || new.metadata.annotations != old.metadata.annotations
            || new.metadata.generation != old.metadata.generation
            || (new.phase() != old.phase() && is_terminal(new.phase()))
            || others(new) != others(old)
    }
}

/// What a pass leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Look again when something happens, or after this long.
    Wait(Duration),
    /// The pod is gone, here and in the API.
    Finished,
}

/// Secrets, tokens and directories are looked at again at least this often.
const RESYNC: Duration = Duration::from_secs(60);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

pub(crate) struct Worker {
    shared: Arc<Shared>,
    uid: String,
    desired: watch::Receiver<Desired>,
    wake: Arc<Notify>,
    writer: StatusWriter,
    /// The status generated last.
    status: Option<PodStatus>,
    probes: Probes,
    waiting: HashMap<String, Waiting>,
    held: Held,
    /// A sandbox that could not be made is not tried again before, whatever wakes this worker.
    no_sandbox_before: Option<tokio::time::Instant>,
    crashes: Backoff,
    pulls: PullHistory,
    /// Consecutive passes that failed, for a wait that grows.
    n_failures: u32,
    /// Nothing of the pod runs and nothing will.
    over: bool,
    /// Shared with admission: an ended pod no longer takes room.
    ended: Arc<AtomicBool>,
    deadline_told: bool,
    /// What the pod's start time means on the monotonic clock.
    started: Option<Since>,
    /// Why the pod was evicted, once it was.
    evicted: Option<String>,
    /// What the pod wrote is not measured before.
    measure_at: tokio::time::Instant,
    /// What the containers have been given.
    given: Given,
    resizing: Option<InProgress>,
    /// The generation whose change was taken up last.
    resized: Option<i64>,
}

impl Worker {
    pub(crate) fn new(
        shared: Arc<Shared>,
        desired: watch::Receiver<Desired>,
        ended: Arc<AtomicBool>,
    ) -> Worker {
        let pod = desired.borrow().pod.clone();
        let wake = shared.wakers.register(pod.uid());
        let given = Given::of_status(&pod);
        Worker {
            writer: StatusWriter::start(shared.client.clone(), &pod),
            probes: Probes::new(shared.cri.clone(), shared.events.clone(), wake.clone()),
            uid: pod.uid().to_owned(),
            shared,
            desired,
            wake,
            status: None,
            waiting: HashMap::new(),
            held: Held::default(),
            no_sandbox_before: None,
            crashes: Backoff::new(Duration::from_secs(10), Duration::from_secs(300)),
            pulls: PullHistory::default(),
            n_failures: 0,
            over: false,
            ended,
            deadline_told: false,
            started: None,
            evicted: None,
            measure_at: tokio::time::Instant::now(),
            given,
            resizing: None,
            resized: None,
        }
    }

    /// Works until the pod is gone. Dropping the future leaves all containers running.
    pub(crate) async fn run(mut self) {
        loop {
            let desired = self.desired.borrow_and_update().clone();
            self.writer.observe(&desired.pod);
            match self.pass(&desired).await {
                Next::Finished => break,
                Next::Wait(wait) => {
                    if !self.wait(&desired, wait).await {
                        return;
                    }
                }
            }
        }
        self.shared.objects.release(&self.uid);
        self.shared.wakers.unregister(&self.uid);
    }

    /// Waits for a reason to look again; `false` if the nodelet ends. A change of nothing but the status
    /// that this worker writes is none, or every pass would cause the next.
    async fn wait(&mut self, seen: &Desired, wait: Duration) -> bool {
        let due = tokio::time::Instant::now() + wait;
        loop {
            // All arms only wait, and what they wait for is read again by the next pass.
            tokio::select! {
                changed = self.desired.changed() => {
                    if changed.is_err() {
                        return false;
                    }
                    let desired = self.desired.borrow_and_update().clone();
                    self.writer.observe(&desired.pod);
                    if desired.asks_for_more_than(seen) {
                        return true;
                    }
                }
                () = self.wake.notified() => return true,
                () = tokio::time::sleep_until(due) => return true,
            }
        }
    }

    async fn pass(&mut self, desired: &Desired) -> Next {
        if let Some((reason, message)) = desired.rejection.as_ref().filter(|_| !self.over) {
            self.status = Some(status::rejected(&desired.pod, reason, message, Timestamp::now()));
            self.set_over();
            self.publish();
        }
        let before = self.n_failures;
        let outcome = match desired.must_end() || self.over {
            true => self.end(desired).await,
            false => self.sync(desired).await,
        };
        match outcome {
            Ok(next) => {
                // What failed within the pass was given its time there.
                if self.n_failures == before {
                    self.n_failures = 0;
                }
                next
            }
            Err(error) => {
                tracing::warn!(pod = %desired.pod.describe(), %error, "the pass failed, trying again");
                let message = format!("error determining status: {error}");
                self.shared.events.pod(&desired.pod, EventType::Warning, "FailedSync", &message);
                Next::Wait(self.next_retry())
            }
        }
    }

    fn next_retry(&mut self) -> Duration {
        let wait = RETRY_FIRST.saturating_mul(1 << self.n_failures.min(5)).min(RETRY_MAX);
        self.n_failures += 1;
        wait
    }

    /// Brings a pod that should run one step further.
    async fn sync(&mut self, desired: &Desired) -> Result<Next, CriError> {
        let pod = &desired.pod;
        let snapshot = self.read().await?;
        self.evict_if_over(pod).await;
        self.note_resize(desired, &snapshot);
        self.refresh_status(pod, &snapshot, false);
        if self.phase_is_terminal() {
            self.set_over();
            return self.end(desired).await;
        }
        self.publish();
        let volumes = match self.set_up_volumes(pod, &snapshot).await {
            Ok(volumes) => volumes,
            Err(retry) => return Ok(Next::Wait(retry)),
        };
        if self.desired.borrow().must_end() {
            return Ok(Next::Wait(Duration::ZERO));
        }
        let actions = plan(pod, &snapshot, &self.probes, &self.given);
        let is_idle = self.resizing.is_none()
            && actions.to_start(pod).is_empty()
            && actions.kill.is_empty()
            && !actions.kill_pod;
        let mut wait = self.execute(pod, &snapshot, &actions, &volumes).await?;
        if !is_idle {
            let snapshot = self.read().await?;
            self.note_resize(desired, &snapshot);
            self.refresh_status(pod, &snapshot, false);
            let is_terminal = self.phase_is_terminal();
            if !is_terminal {
                self.publish();
            }
            if is_terminal || self.has_more_to_start(pod, &snapshot) {
                wait = Duration::ZERO;
            }
            self.collect_garbage(&snapshot).await;
        }
        if let Some(left) = self.deadline_in(pod) {
            wait = wait.min(left);
        }
        if storage::has_limits(pod) {
            wait = wait.min(self.measure_at.saturating_duration_since(tokio::time::Instant::now()));
        }
        Ok(Next::Wait(wait))
    }

    /// Measures what the pod wrote, if it has limits and it is time.
    async fn evict_if_over(&mut self, pod: &Arc<Pod>) {
        if let Some(message) = self.shared.evictions.of(&self.uid).filter(|_| self.evicted.is_none()) {
            self.shared.events.pod(pod, EventType::Warning, "Evicted", &message);
            self.evicted = Some(message);
        }
        if self.evicted.is_some()
            || tokio::time::Instant::now() < self.measure_at
            || !storage::has_limits(pod)
        {
            return;
        }
        let mut desired = self.desired.clone();
        // A large tree takes its time; a pod that is to end does not wait for it. Both arms only wait.
        let excess = tokio::select! {
            excess = storage::excess(&self.shared, pod) => excess,
            _ = desired.wait_for(Desired::must_end) => None,
        };
        self.measure_at = tokio::time::Instant::now() + storage::PERIOD;
        if let Some(message) = excess {
            self.shared.events.pod(pod, EventType::Warning, "Evicted", &message);
            self.evicted = Some(message);
        }
    }

    /// What was done may be what the next step waited for: a sidecar that is up lets the next start.
    /// Containers that could not be started wait for their own time.
    fn has_more_to_start(&self, pod: &Pod, snapshot: &PodSnapshot) -> bool {
        let next = plan(pod, snapshot, &self.probes, &self.given);
        next.to_start(pod).iter().any(|next| !self.waiting.contains_key(&next.container.name))
    }

    async fn read(&self) -> Result<PodSnapshot, CriError> {
        let snapshot = snapshot::read(&*self.shared.cri, &self.shared.runtime_name, &self.uid).await?;
        for sandbox in &snapshot.sandboxes {
            self.shared.wakers.note_sandbox(&sandbox.id, &self.uid);
        }
        Ok(status::termination::add_messages(snapshot).await)
    }

    /// Brings probes in line with what runs, and makes the status from both.
    fn refresh_status(&mut self, pod: &Arc<Pod>, snapshot: &PodSnapshot, pod_is_over: bool) {
        let old = self.status.clone().or_else(|| pod.status.clone()).unwrap_or_default();
        if !pod_is_over {
            let ip = self.pod_ips(pod, snapshot).into_iter().next().unwrap_or_default();
            self.probes.sync(pod, snapshot, &ip, &old);
            if pod.is_deleting() {
                self.probes.stop_liveness_and_startup();
            }
        }
        let past_deadline = self.deadline_in(pod).is_some_and(|left| left.is_zero());
        let fresh = status::generate(&StatusInputs {
            pod,
            old: &old,
            snapshot,
            waiting: &self.waiting,
            readiness: &self.probes,
            pod_is_over,
            past_deadline,
            evicted: self.evicted.as_deref(),
            given: &self.given,
            pending: self.desired.borrow().resize.pending.as_ref(),
            resizing: self.resizing.as_ref(),
            node_ips: &self.shared.config.node_ips,
            now: Timestamp::now(),
        });
        if past_deadline && !self.deadline_told && fresh.reason.as_deref() == Some("DeadlineExceeded") {
            self.deadline_told = true;
            let message = fresh.message.as_deref().unwrap_or_default();
            self.shared.events.pod(pod, EventType::Normal, "DeadlineExceeded", message);
        }
        self.status = Some(fresh);
    }

    fn phase_is_terminal(&self) -> bool {
        is_terminal(self.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default())
    }

    fn publish(&self) {
        if let Some(status) = &self.status {
            self.writer.set(status);
        }
    }

    /// Shows the status, but not a last phase: something of the pod may still run.
    fn publish_unfinished(&self, pod: &Pod) {
        if let Some(status) = &self.status {
            self.writer.set(&status::hold_back_terminal(status.clone(), pod.status.as_ref()));
        }
    }

    fn set_over(&mut self) {
        self.over = true;
        self.ended.store(true, Ordering::Release);
    }

    fn pod_ips(&self, pod: &Pod, snapshot: &PodSnapshot) -> Vec<String> {
        match pod.is_host_network() {
            true => self.shared.config.node_ips.iter().map(ToString::to_string).collect(),
            false => snapshot.pod_ips(),
        }
    }

    /// The time left until the pod's active deadline; `None` if it has none.
    fn deadline_in(&mut self, pod: &Pod) -> Option<Duration> {
        let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
        let own = self.status.as_ref().and_then(|s| s.start_time.as_ref());
        let start = own.or_else(|| pod.status.as_ref().and_then(|s| s.start_time.as_ref()))?.0;
        let started = match self.started {
            Some(started) if started.is_of(start) => started,
            _ => *self.started.insert(Since::new(start)),
        };
        Some(Duration::from_secs(seconds.unsigned_abs()).saturating_sub(started.age()))
    }

    /// Makes and refreshes the volumes. Failing tells why, and when to try again.
    async fn set_up_volumes(
        &mut self,
        pod: &Arc<Pod>,
        snapshot: &PodSnapshot,
    ) -> Result<MountedVolumes, Duration> {
        let pod_ips = self.pod_ips(pod, snapshot);
        let downward = Downward {
            pod,
            pod_ips: &pod_ips,
            node_ips: &self.shared.config.node_ips,
            allocatable: &self.shared.allocatable,
        };
        match self.shared.volumes.set_up(pod, &downward).await {
            Ok(volumes) => Ok(volumes),
            Err(failures) => {
                for (name, error) in failures {
                    let message = format!("MountVolume.SetUp failed for volume {name:?} : {error}");
                    self.shared.events.pod(pod, EventType::Warning, "FailedMount", &message);
                }
                Err(self.next_retry())
            }
        }
    }

    /// Of each container, what runs and the last that does not are kept (for `logs --previous`); of the
    /// sandboxes, the newest and those that still hold a container that is kept.
    async fn collect_garbage(&self, snapshot: &PodSnapshot) {
        let mut kept: HashMap<&str, usize> = HashMap::new();
        let mut sandboxes_in_use: Vec<&str> = Vec::new();
        for container in &snapshot.containers {
            let n_ended = kept.entry(container.name.as_str()).or_default();
            let is_removable = container.state != RunState::Running && *n_ended >= 1;
            if container.state != RunState::Running {
                *n_ended += 1;
            }
            if !is_removable {
                sandboxes_in_use.push(&container.sandbox_id);
                continue;
            }
            let request = RemoveContainerRequest { container_id: container.id.clone() };
            if let Err(error) = self.shared.cri.remove_container(request).await {
                tracing::warn!(container = %container.id, %error, "cannot remove an old container");
                sandboxes_in_use.push(&container.sandbox_id);
            }
        }
        for sandbox in snapshot.sandboxes.iter().skip(1) {
            if sandbox.ready || sandboxes_in_use.contains(&sandbox.id.as_str()) {
                continue;
            }
            let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            if let Err(error) = self.shared.cri.remove_pod_sandbox(request).await {
                tracing::warn!(sandbox = %sandbox.id, %error, "cannot remove an old sandbox");
            }
        }
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
