//! Probes: one task for each probe of each running container.
//!
//! ```text
//!  container runs ──▶ startup probe ──success──▶ liveness and readiness probes
//!                          │failure                   │failure        │either
//!                          ▼                          ▼               ▼
//!                     restarted by the plan      restarted      shown as ready or not
//! ```
//!
//! A task records a verdict once as many results in a row agree as the probe's threshold asks for, and
//! wakes the pod's worker. A nodelet that restarts takes over what the API says of a container that
//! still runs, so that nothing becomes unready by that.

pub(crate) mod check;
pub(crate) mod grpc;
pub(crate) mod http;
mod url;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodStatus, Probe};
use parking_lot::Mutex;
use skiff_api::kubernetes;
use skiff_cri::Cri;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::event::{EventType, PodEvents};
use crate::plan::{Verdict, Verdicts};
use crate::pod::find_container;
use crate::since::Since;
use crate::snapshot::{ContainerInfo, PodSnapshot};
use crate::status::Readiness;
use check::Outcome;

/// What upstream's kubelet calls itself where it asks a container: `kube-probe/1.37`.
fn agent(purpose: &str) -> String {
    format!("kube-{purpose}/{}.{}", kubernetes::MAJOR, kubernetes::MINOR)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }

    fn spec(self, container: &Container) -> Option<&Probe> {
        match self {
            Kind::Startup => container.startup_probe.as_ref(),
            Kind::Liveness => container.liveness_probe.as_ref(),
            Kind::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

type Key = (String, Kind);
type Results = Arc<Mutex<HashMap<Key, Verdict>>>;

/// The probes of one pod.
pub(crate) struct Probes {
    cri: Arc<dyn Cri>,
    events: PodEvents,
    wake: Arc<Notify>,
    results: Results,
    tasks: HashMap<Key, DropGuard>,
}

impl Probes {
    pub(crate) fn new(cri: Arc<dyn Cri>, events: PodEvents, wake: Arc<Notify>) -> Probes {
        Probes { cri, events, wake, results: Results::default(), tasks: HashMap::new() }
    }

    /// Starts the probes of what runs, and ends those of what does not.
    pub(crate) fn sync(&mut self, pod: &Arc<Pod>, snapshot: &PodSnapshot, pod_ip: &str, earlier: &PodStatus) {
        let is_running = |id: &str| snapshot.running().any(|c| c.id == id);
        self.tasks.retain(|(id, _), _| is_running(id));
        self.results.lock().retain(|(id, _), _| is_running(id));
        for info in snapshot.running() {
            let Some(container) = find_container(pod, &info.name) else { continue };
            let container = &*container;
            self.seed(info, earlier);
            let kinds = match self.started(container, info) {
                false => vec![Kind::Startup],
                true => vec![Kind::Liveness, Kind::Readiness],
            };
            self.tasks.retain(|(id, kind), _| *id != info.id || kinds.contains(kind));
            for kind in kinds {
                self.start(kind, pod, container, info, pod_ip);
            }
        }
    }

    /// Takes over what was known of a container that ran before this nodelet did.
    fn seed(&self, info: &ContainerInfo, earlier: &PodStatus) {
        let all = earlier
            .container_statuses
            .iter()
            .flatten()
            .chain(earlier.init_container_statuses.iter().flatten());
        let same = |s: &&ContainerStatus| s.container_id.as_deref() == Some(info.full_id().as_str());
        let Some(status) = all.into_iter().find(same) else { return };
        let mut results = self.results.lock();
        if status.started == Some(true) {
            results.entry((info.id.clone(), Kind::Startup)).or_insert(Verdict::Success);
        }
        if status.ready {
            results.entry((info.id.clone(), Kind::Readiness)).or_insert(Verdict::Success);
        }
    }

    fn start(
        &mut self,
        kind: Kind,
        pod: &Arc<Pod>,
        container: &Container,
        info: &ContainerInfo,
        pod_ip: &str,
    ) {
        let key = (info.id.clone(), kind);
        let Some(spec) = kind.spec(container) else { return };
        // A failed liveness or startup probe has had its say: the container is about to be replaced.
        let settled = kind != Kind::Readiness && self.results.lock().get(&key) == Some(&Verdict::Failure);
        if settled || self.tasks.contains_key(&key) {
            return;
        }
        let task = ProbeTask {
            kind,
            spec: spec.clone(),
            pod: pod.clone(),
            container: container.clone(),
            container_id: info.id.clone(),
            pod_ip: pod_ip.to_owned(),
            started: Since::new(
                Timestamp::from_nanosecond(i128::from(info.started_at_ns)).unwrap_or_default(),
            ),
            cri: self.cri.clone(),
            events: self.events.clone(),
            results: self.results.clone(),
            wake: self.wake.clone(),
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        // Boxed: a probe may be an HTTP exchange, and most of the time it only waits.
        tokio::spawn(async move { stopped.run_until_cancelled(Box::pin(task.run())).await });
        self.tasks.insert(key, stop.drop_guard());
    }

    /// The pod is ending: only its readiness still matters.
    pub(crate) fn stop_liveness_and_startup(&mut self) {
        self.tasks.retain(|(_, kind), _| *kind == Kind::Readiness);
    }

    pub(crate) fn stop(&mut self) {
        self.tasks.clear();
    }

    fn verdict(&self, id: &str, kind: Kind) -> Option<Verdict> {
        self.results.lock().get(&(id.to_owned(), kind)).copied()
    }
}

impl Verdicts for Probes {
    fn liveness(&self, container_id: &str) -> Option<Verdict> {
        self.verdict(container_id, Kind::Liveness)
    }

    fn startup(&self, container_id: &str) -> Option<Verdict> {
        self.verdict(container_id, Kind::Startup)
    }
}

impl Readiness for Probes {
    fn started(&self, spec: &Container, status: &ContainerInfo) -> bool {
        spec.startup_probe.is_none() || self.verdict(&status.id, Kind::Startup) == Some(Verdict::Success)
    }

    fn ready(&self, spec: &Container, status: &ContainerInfo) -> bool {
        spec.readiness_probe.is_none() || self.verdict(&status.id, Kind::Readiness) == Some(Verdict::Success)
    }
}

/// A container that has just started is looked at more often than its period says, for this long:
/// most are ready within it, and the period's first tick may be ten seconds away.
const WARM_UP: Duration = Duration::from_secs(1);
const WARM_UP_FIRST: Duration = Duration::from_millis(25);

struct ProbeTask {
    kind: Kind,
    spec: Probe,
    pod: Arc<Pod>,
    container: Container,
    container_id: String,
    pod_ip: String,
    started: Since,
    cri: Arc<dyn Cri>,
    events: PodEvents,
    results: Results,
    wake: Arc<Notify>,
}

fn seconds(value: Option<i32>, default: u32) -> Duration {
    Duration::from_secs(u64::from(value.map_or(default, i32::unsigned_abs)))
}

impl ProbeTask {
    fn age(&self) -> Duration {
        self.started.age()
    }

    async fn run(self) {
        let period = seconds(self.spec.period_seconds, 10).max(Duration::from_secs(1));
        let delay = seconds(self.spec.initial_delay_seconds, 0);
        tokio::time::sleep(delay.saturating_sub(self.age())).await;
        let mut first = None;
        if self.kind == Kind::Liveness {
            // As upstream: the first look at a container's life is a period after its start.
            tokio::time::sleep(period.saturating_sub(self.age())).await;
        } else if delay.is_zero() {
            first = self.warm_up().await;
        }
        let (mut last, mut run) = (None, 0);
        // A probe that takes longer than its period does not run twice in a row for it.
        let mut ticker = tokio::time::interval(period);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticker.tick().await;
            let outcome = match first.take() {
                Some(outcome) => outcome,
                None => self.probe_recorded().await,
            };
            let Some(verdict) = outcome else { continue };
            run = if last == Some(verdict) { run + 1 } else { 1 };
            last = Some(verdict);
            let threshold = match verdict {
                Verdict::Success => self.spec.success_threshold.unwrap_or(1),
                Verdict::Failure => self.spec.failure_threshold.unwrap_or(3),
            };
            if run < threshold.max(1) {
                continue;
            }
            self.record(verdict);
            if self.kind == Kind::Startup || (self.kind == Kind::Liveness && verdict == Verdict::Failure) {
                return;
            }
        }
    }

    fn record(&self, verdict: Verdict) {
        let before = self.results.lock().insert((self.container_id.clone(), self.kind), verdict);
        if before != Some(verdict) {
            self.wake.notify_one();
        }
    }

    /// Looks often while the container is young. Failures then count for nothing; a success counts.
    async fn warm_up(&self) -> Option<Option<Verdict>> {
        let mut pause = WARM_UP_FIRST;
        while self.age() < WARM_UP {
            if let Ok(Outcome::Success) =
                check::run(&*self.cri, &self.pod_ip, &self.container, &self.container_id, &self.spec).await
            {
                return Some(Some(Verdict::Success));
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        None
    }

    /// One result, with its event. `None` if the probe itself could not run.
    async fn probe_recorded(&self) -> Option<Verdict> {
        let mut result = Ok(Outcome::Success);
        for _ in 0..3 {
            result =
                check::run(&*self.cri, &self.pod_ip, &self.container, &self.container_id, &self.spec).await;
            if result.is_ok() {
                break;
            }
        }
        let name = self.kind.name();
        let event = |reason: &str, message: String| {
            self.events.container(&self.pod, &self.container, EventType::Warning, reason, &message);
        };
        match result {
            Ok(Outcome::Success) => Some(Verdict::Success),
            Ok(Outcome::Warning(output)) => {
                event("ProbeWarning", format!("{name} probe warning: {output}"));
                Some(Verdict::Success)
            }
            Ok(Outcome::Failure(output)) => {
                event("Unhealthy", format!("{name} probe failed: {output}"));
                Some(Verdict::Failure)
            }
            Err(error) => {
                event("Unhealthy", format!("{name} probe errored and resulted in unknown state: {error}"));
                None
            }
        }
    }
}
