//! One at a time: of several processes that could do a job, the one that holds a Lease of `kube-system` does it.
//!
//! ```text
//!            the Lease is free, ours, or was not renewed for its duration
//!   waiting ──────────────────────────────────────────────────────────────▶ leading: `run`, renewed every 2 s
//!      ▲                                                                       │
//!      └───────── taken by another, or not renewed for 8 s: `run` is stopped ──┤
//!                           shutdown: `run` is stopped, the Lease is given back ┴─▶ end
//! ```
//!
//! Fields and events are those of client-go's `tools/leaderelection`, so that upstream's components and ours take turns. A
//! Lease lasts 12 s where upstream's lasts 15, and who waits looks every second: one that was killed is replaced within 15 s
//! of its death. Whether another has let its Lease run out is measured from when it was seen to change, by this process's own
//! monotonic clock: what time the Lease names does not matter.
//!
//! # Assumptions
//! No two processes that run at a time have the same identity. One that starts with the identity of one that died takes up its
//! Lease at once.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{EventRecorder, EventType};

const NAMESPACE: &str = "kube-system";
/// What a Lease says that it lasts, unless it is renewed.
const LEASE_DURATION: Duration = Duration::from_secs(12);
/// Who leads stops if it could not renew for so long. With the period before it this is less than the Lease lasts.
const RENEW_DEADLINE: Duration = Duration::from_secs(8);
const RETRY_PERIOD: Duration = Duration::from_secs(2);
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// Those who wait do not all ask at once: up to so many periods more.
const JITTER: f64 = 0.5;

/// Somebody who could do a job.
pub struct Candidate {
    pub client: Client,
    /// The Lease's name, such as `kube-scheduler`.
    pub name: &'static str,
    pub identity: String,
}

/// Waits until this candidate leads and runs `run` for as long as it does, again and again until `shutdown`. `run` is to end
/// soon after its token is cancelled; nobody else begins before it has, unless it takes longer than the Lease lasts.
pub async fn lead<F: Future<Output = ()>>(
    candidate: Candidate,
    shutdown: CancellationToken,
    mut run: impl FnMut(CancellationToken) -> F,
) {
    let mut election = Election::new(candidate);
    loop {
        // Dropped while it waits: whoever it was that took the Lease meanwhile, it runs out.
        if shutdown.run_until_cancelled(election.won()).await.is_none() {
            return;
        }
        election.tell("became leader");
        let term = shutdown.child_token();
        let work = run(term.clone());
        tokio::pin!(work);
        let ended = tokio::select! {
            () = &mut work => true,
            () = election.lost() => false,
            () = shutdown.cancelled() => false,
        };
        term.cancel();
        if !ended {
            work.await;
        }
        election.tell("stopped leading");
        if ended || shutdown.is_cancelled() {
            return election.give_back().await;
        }
    }
}

struct Election {
    leases: Api<Lease>,
    name: &'static str,
    identity: String,
    events: EventRecorder,
    /// The Lease as it was last seen, and since when it is like that.
    seen: Option<(Lease, Instant)>,
}

impl Election {
    fn new(Candidate { client, name, identity }: Candidate) -> Election {
        let events = EventRecorder::new(client.clone(), name, "");
        Election { leases: Api::namespaced(client, NAMESPACE), name, identity, events, seen: None }
    }

    /// Returns once this candidate holds the Lease.
    async fn won(&mut self) {
        let mut is_told = false;
        loop {
            match timeout(RENEW_DEADLINE, self.hold()).await {
                Ok(Ok(true)) => {
                    info!(lease = self.name, identity = self.identity, "leading");
                    return;
                }
                Ok(Ok(false)) => {
                    if !std::mem::replace(&mut is_told, true) {
                        let holder = self.holder().unwrap_or_default();
                        info!(lease = self.name, holder, "another one leads; waiting for its end");
                    }
                }
                Ok(Err(error)) => warn!(lease = self.name, %error, "cannot ask for the lead; trying again"),
                Err(_) => warn!(lease = self.name, "the API does not answer who leads; trying again"),
            }
            sleep(self.until_next_look()).await;
        }
    }

    /// A period, or less if the Lease runs out before.
    fn until_next_look(&self) -> Duration {
        let period = LOOK_PERIOD.mul_f64(1.0 + rand::random::<f64>() * JITTER);
        match &self.seen {
            Some((Lease { spec: Some(spec), .. }, since)) => {
                let left = lasts(spec).saturating_sub(since.elapsed());
                if left.is_zero() { period } else { period.min(left) }
            }
            _ => period,
        }
    }

    /// Renews the Lease; returns once it is another's, or could not be renewed in time.
    async fn lost(&mut self) {
        loop {
            sleep(RETRY_PERIOD).await;
            let renewed = timeout(RENEW_DEADLINE, async {
                loop {
                    match self.hold().await {
                        Ok(held) => return held,
                        Err(error) => warn!(lease = self.name, %error, "cannot renew; trying again"),
                    }
                    sleep(RETRY_PERIOD).await;
                }
            });
            match renewed.await {
                Ok(true) => {}
                Ok(false) => {
                    return warn!(lease = self.name, holder = self.holder(), "another one leads now");
                }
                Err(_) => {
                    return warn!(lease = self.name, "could not renew in time, and does not lead any more");
                }
            }
        }
    }

    /// Takes or renews the Lease, if nobody else holds it; answers whether this candidate does.
    async fn hold(&mut self) -> Result<bool, kube::Error> {
        if self.holder() == Some(self.identity.as_str())
            && let Some((seen, _)) = &self.seen
            && let Some(renewed) = self.write(self.taken(seen)).await?
        {
            self.see(renewed);
            return Ok(true);
        }
        let Some(lease) = self.leases.get_opt(self.name).await? else { return self.create().await };
        self.see(lease.clone());
        if !self.is_free() {
            return Ok(false);
        }
        match self.write(self.taken(&lease)).await? {
            Some(taken) => {
                self.see(taken);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    async fn create(&mut self) -> Result<bool, kube::Error> {
        let metadata = ObjectMeta {
            name: Some(self.name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        };
        let lease = self.taken(&Lease { metadata, spec: None });
        match self.leases.create(&PostParams::default(), &lease).await {
            Ok(created) => {
                self.see(created);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `None` if somebody else was faster, or has deleted it.
    async fn write(&self, lease: Lease) -> Result<Option<Lease>, kube::Error> {
        match self.leases.replace(self.name, &PostParams::default(), &lease).await {
            Ok(written) => Ok(Some(written)),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same Lease, held by this candidate from now on.
    fn taken(&self, lease: &Lease) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        let mut taken = lease.clone();
        let old = lease.spec.clone();
        let is_ours = old.as_ref().and_then(holder_of) == Some(self.identity.as_str());
        let transitions = old.as_ref().and_then(|old| old.lease_transitions).unwrap_or(0);
        taken.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: old
                .as_ref()
                .filter(|_| is_ours)
                .and_then(|old| old.acquire_time.clone())
                .or(now.clone()),
            renew_time: now,
            lease_transitions: Some(match old {
                Some(_) if !is_ours => transitions.saturating_add(1),
                _ => transitions,
            }),
            ..old.unwrap_or_default()
        });
        taken
    }

    fn see(&mut self, lease: Lease) {
        let since = match &self.seen {
            Some((seen, since)) if seen.spec == lease.spec => *since,
            _ => Instant::now(),
        };
        self.seen = Some((lease, since));
    }

    fn holder(&self) -> Option<&str> {
        holder_of(self.seen.as_ref()?.0.spec.as_ref()?)
    }

    fn is_free(&self) -> bool {
        let Some((Lease { spec: Some(spec), .. }, since)) = &self.seen else { return true };
        match holder_of(spec) {
            Some(holder) => holder == self.identity || since.elapsed() >= lasts(spec),
            None => true,
        }
    }

    /// So that the next one need not wait for it to run out.
    async fn give_back(&mut self) {
        let given = timeout(RENEW_DEADLINE, async {
            let Some(mut lease) = self.leases.get_opt(self.name).await? else { return Ok(()) };
            let Some(spec) =
                lease.spec.as_ref().filter(|spec| holder_of(spec) == Some(self.identity.as_str()))
            else {
                return Ok(());
            };
            let now = MicroTime(Timestamp::now());
            lease.spec = Some(LeaseSpec {
                lease_duration_seconds: Some(1),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_transitions: spec.lease_transitions,
                ..LeaseSpec::default()
            });
            self.write(lease).await.map(drop)
        });
        match given.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(lease = self.name, %error, "cannot give the lead back; it runs out"),
            Err(_) => warn!(lease = self.name, "cannot give the lead back in time; it runs out"),
        }
    }

    fn tell(&self, what: &str) {
        let Some((lease, _)) = &self.seen else { return };
        let message = format!("{} {what}", self.identity);
        self.events.event(lease, EventType::Normal, "LeaderElection", &message);
    }
}

fn lasts(spec: &LeaseSpec) -> Duration {
    Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0))
}

fn holder_of(spec: &LeaseSpec) -> Option<&str> {
    spec.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

#[cfg(test)]
mod tests;
