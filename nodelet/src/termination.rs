//! Ends containers and pods: hooks, grace periods, order.
//!
//! ```text
//!  Killing event ─▶ preStop (within the grace period) ─▶ stop with what is left of it ─▶ exited
//! ```
//!
//! All containers of a pod end at the same time, but sidecars only after the containers they serve,
//! the last one first. A deletion that is made urgent meanwhile (`--grace-period=0`, `--force`) stops
//! them again with less time: the runtime takes the shorter one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod};
use skiff_cri::v1::StopContainerRequest;
use skiff_cri::{Code, Cri, CriError};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::event::{EventType, PodEvents};
use crate::hooks;
use crate::plan::KillReason;
use crate::pod::{containers, find_container, init_containers, is_sidecar};
use crate::worker::Desired;

/// Every container gets at least this long, even where deletion is forced.
const MINIMUM_GRACE_S: i64 = 2;

/// One container to end.
#[derive(Clone)]
pub(crate) struct Victim {
    pub(crate) pod: Arc<Pod>,
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) pod_ip: String,
    pub(crate) message: String,
    pub(crate) reason: KillReason,
    /// In place of what the pod says.
    pub(crate) grace_override_s: Option<i64>,
}

/// How long the container has, by what its pod says.
pub(crate) fn grace_seconds(pod: &Pod, container: Option<&Container>, reason: KillReason) -> i64 {
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        return seconds;
    }
    let probe = match reason {
        KillReason::LivenessProbe => container.and_then(|c| c.liveness_probe.as_ref()),
        KillReason::StartupProbe => container.and_then(|c| c.startup_probe.as_ref()),
        KillReason::Other => None,
    };
    let own = probe.and_then(|p| p.termination_grace_period_seconds);
    own.or_else(|| pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds))
        .unwrap_or(MINIMUM_GRACE_S)
}

/// Ends one container. `turn` delays the stop itself, within the grace period.
pub(crate) async fn kill(
    cri: Arc<dyn Cri>,
    events: PodEvents,
    victim: Victim,
    turn: Option<watch::Receiver<bool>>,
) -> Result<(), CriError> {
    let started = Instant::now();
    let container = find_container(&victim.pod, &victim.name);
    let container = container.as_deref();
    let grace = victim
        .grace_override_s
        .unwrap_or_else(|| grace_seconds(&victim.pod, container, victim.reason))
        .max(0);
    let total = Duration::from_secs(grace.unsigned_abs());
    let message = match victim.message.is_empty() {
        true => format!("Stopping container {}", victim.name),
        false => victim.message.clone(),
    };
    if let Some(container) = container {
        events.container(&victim.pod, container, EventType::Normal, "Killing", &message);
        pre_stop(&*cri, &events, &victim, container, total).await;
    }
    if let Some(mut turn) = turn {
        let left = total.saturating_sub(started.elapsed());
        // Out of time is out of turn: the container is stopped all the same.
        let _ = tokio::time::timeout(left, turn.wait_for(|go| *go)).await;
    }
    let left = total.saturating_sub(started.elapsed()).as_secs();
    let timeout = i64::try_from(left).unwrap_or(i64::MAX);
    stop(&*cri, &victim.id, timeout.max(MINIMUM_GRACE_S)).await
}

/// Stops a container; one that is gone already is stopped.
pub(crate) async fn stop(cri: &dyn Cri, id: &str, timeout_s: i64) -> Result<(), CriError> {
    match cri.stop_container(StopContainerRequest { container_id: id.to_owned(), timeout: timeout_s }).await {
        Err(error) if error.code != Code::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn pre_stop(
    cri: &dyn Cri,
    events: &PodEvents,
    victim: &Victim,
    container: &Container,
    grace: Duration,
) {
    let Some(handler) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) else { return };
    if grace.is_zero() {
        return;
    }
    let hook = hooks::run(cri, &victim.pod, container, &victim.id, &victim.pod_ip, handler);
    match tokio::time::timeout(grace, hook).await {
        Ok(Err(error)) => {
            tracing::warn!(container = %victim.name, %error, "preStop hook failed");
            events.container(
                &victim.pod,
                container,
                EventType::Warning,
                "FailedPreStopHook",
                "PreStopHook failed",
            );
        }
        Err(_) => tracing::info!(container = %victim.name, "preStop hook not completed in grace period"),
        Ok(Ok(())) => {}
    }
}

/// Ends all of these containers of one pod, and returns once every one of them has ended. `desired` shows
/// the pod as it changes, so that a shortened grace period takes effect.
pub(crate) async fn kill_all(
    cri: &Arc<dyn Cri>,
    events: &PodEvents,
    victims: Vec<Victim>,
    mut desired: watch::Receiver<Desired>,
) -> Result<(), CriError> {
    let Some(pod) = victims.first().map(|v| v.pod.clone()) else { return Ok(()) };
    let order = Order::new(&pod, &victims);
    let mut tasks = JoinSet::new();
    for victim in &victims {
        let (name, turn) = (victim.name.clone(), order.turn(&victim.name));
        let killing = kill(cri.clone(), events.clone(), victim.clone(), turn);
        tasks.spawn(async move { (name, killing.await) });
    }
    let mut result = Ok(());
    let mut shortest = desired.borrow_and_update().pod.metadata.deletion_grace_period_seconds;
    let mut listening = true;
    while !tasks.is_empty() {
        // Both arms only wait: a task that is joined is taken from the set in the same poll.
        tokio::select! {
            Some(joined) = tasks.join_next() => match joined {
                // An empty name is a repeated stop; the first one's task reports the end.
                Ok((name, outcome)) => {
                    if !name.is_empty() {
                        order.ended(&name);
                        result = result.and(outcome);
                    }
                }
                Err(error) => result = Err(CriError::unknown(error)),
            },
            changed = desired.changed(), if listening => {
                listening = changed.is_ok();
                let now = desired.borrow_and_update().pod.metadata.deletion_grace_period_seconds;
                if now.is_some_and(|now| shortest.is_none_or(|before| now < before)) {
                    shortest = now;
                    for victim in &victims {
                        let (cri, id, timeout) = (cri.clone(), victim.id.clone(), now.unwrap_or(0).max(MINIMUM_GRACE_S));
                        tasks.spawn(async move { (String::new(), stop(&*cri, &id, timeout).await) });
                    }
                }
            }
        }
    }
    result
}

/// Who waits for whom: sidecars for all app containers, and each for the sidecars after it.
struct Order {
    ranks: Vec<(String, usize)>,
    ended: watch::Sender<Vec<String>>,
}

impl Order {
    fn new(pod: &Pod, victims: &[Victim]) -> Order {
        let has_sidecars = init_containers(pod).iter().any(is_sidecar);
        let rank = |name: &str| -> usize {
            if !has_sidecars || containers(pod).iter().any(|c| c.name == name) {
                return 0;
            }
            let sidecars: Vec<&Container> = init_containers(pod).iter().filter(|c| is_sidecar(c)).collect();
            sidecars.iter().rev().position(|c| c.name == name).map_or(0, |p| p + 1)
        };
        let ranks = victims.iter().map(|v| (v.name.clone(), rank(&v.name))).collect();
        Order { ranks, ended: watch::channel(Vec::new()).0 }
    }

    fn rank(&self, name: &str) -> usize {
        self.ranks.iter().find(|(n, _)| n == name).map_or(0, |(_, rank)| *rank)
    }

    /// Turns true once all that must end before have ended; `None` if there is nothing to wait for.
    fn turn(&self, name: &str) -> Option<watch::Receiver<bool>> {
        let rank = self.rank(name);
        let before: Vec<String> =
            self.ranks.iter().filter(|(_, r)| *r < rank).map(|(n, _)| n.clone()).collect();
        if before.is_empty() {
            return None;
        }
        let (tx, rx) = watch::channel(false);
        let mut ended = self.ended.subscribe();
        tokio::spawn(async move {
            let all = |ended: &Vec<String>| before.iter().all(|name| ended.contains(name));
            if ended.wait_for(all).await.is_ok() {
                tx.send_replace(true);
            }
        });
        Some(rx)
    }

    fn ended(&self, name: &str) {
        self.ended.send_modify(|ended| ended.push(name.to_owned()));
    }
}
