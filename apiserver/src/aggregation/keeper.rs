//! Who looks after the servers behind APIServices: one task for each, so that none waits for another.
//!
//! ```text
//!  at once ─▶ is it there? ─ status ─▶ there: what has it? ─ told ─▶ the follower publishes
//!               ▲                       away: what it has is stale
//!               └─ 30 s, soon again where it is away, or its Service, endpoints or APIService changed
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use skiff_api::meta::Meta;
use skiff_api::{Object, Status};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::check::{check_peer, tell_available};
use super::peer::{Peer, ServicePort, Trust};
use super::reach::{Outward, SERVICE_LABEL};
use super::told::{Discovered, OpenApi, Told, ask_discovery, ask_openapi};
use crate::cache::{Change, Filter};
use crate::heavy::HeavyWork;
use crate::objects::Objects;

/// Where APIServices are.
pub(super) const API_SERVICES: (&str, &str, &str) = ("apiregistration.k8s.io", "v1", "apiservices");

/// Upstream's periods.
const CHECK_EVERY: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_secs(60);
const CHECK_AGAIN_MIN: Duration = Duration::from_millis(100);
const ASK_AGAIN_MIN: Duration = Duration::from_millis(500);
const WATCH_AGAIN: Duration = Duration::from_secs(1);

/// All keepers, by the names of their APIServices.
#[derive(Default)]
pub(super) struct Keepers {
    all: HashMap<String, Keeper>,
    /// Whether Services and endpoints are watched: not before there is somebody to wake.
    is_watching: bool,
}

struct Keeper {
    shared: Arc<Shared>,
    /// Of the APIService that it was started, or woken last, for.
    uid: String,
    spec: serde_json::Value,
    stop: CancellationToken,
}

/// What a keeper and its task have in common.
struct Shared {
    name: String,
    group: String,
    version: String,
    peer: Arc<Peer>,
    told: Mutex<Arc<Told>>,
    wake: Notify,
}

/// What is known of a server.
pub(super) struct Known {
    pub(super) peer: Arc<Peer>,
    pub(super) told: Arc<Told>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Keepers {
    /// Ends those whose APIService is gone.
    pub(super) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.all.retain(|name, _| is_there(name));
    }

    /// Sees to it that an APIService has its keeper; what is known. `None` if this server serves it itself.
    pub(super) fn keep(
        &mut self,
        keeping: &Arc<Keeping>,
        name: &str,
        service: &Object,
        shutdown: &CancellationToken,
    ) -> Option<Known> {
        let Some(to) = ServicePort::of(service) else {
            self.all.remove(name);
            return None;
        };
        let trust = Trust::of(service);
        let is_same = |keeper: &Keeper| {
            let peer = &keeper.shared.peer;
            keeper.uid == service.uid() && peer.to == to && peer.trust == trust
        };
        if !self.all.get(name).is_some_and(is_same) {
            self.all.insert(name.to_owned(), start(keeping, name, service, to, trust, shutdown));
            self.watch(keeping, shutdown);
        }
        let keeper = self.all.get_mut(name)?;
        if keeper.spec != service["spec"] {
            keeper.spec = service["spec"].clone();
            keeper.shared.wake.notify_one();
        }
        Some(Known { peer: keeper.shared.peer.clone(), told: keeper.shared.told.lock().clone() })
    }

    fn watch(&mut self, keeping: &Arc<Keeping>, shutdown: &CancellationToken) {
        if std::mem::replace(&mut self.is_watching, true) {
            return;
        }
        let service = |change: &Change| Some(change.entry.key.to_string());
        let slice = |change: &Change| {
            let name = change.entry.label(SERVICE_LABEL)?;
            Some(format!("{}/{name}", change.entry.namespace()))
        };
        tokio::spawn(keeping.clone().wake_keepers(("", "services"), service, shutdown.clone()));
        let slices = ("discovery.k8s.io", "endpointslices");
        tokio::spawn(keeping.clone().wake_keepers(slices, slice, shutdown.clone()));
    }

    /// Wakes those whose server is behind a Service, or all.
    fn wake(&self, service: Option<&str>) {
        for keeper in self.all.values() {
            if service.is_none_or(|key| keeper.shared.peer.to.key() == key) {
                keeper.shared.wake.notify_one();
            }
        }
    }
}

fn start(
    keeping: &Arc<Keeping>,
    name: &str,
    service: &Object,
    to: ServicePort,
    trust: Trust,
    shutdown: &CancellationToken,
) -> Keeper {
    let text = |field: &str| service["spec"][field].as_str().unwrap_or_default().to_owned();
    let shared = Arc::new(Shared {
        name: name.to_owned(),
        group: text("group"),
        version: text("version"),
        peer: Arc::new(keeping.outward.peer(to, trust)),
        told: Mutex::default(),
        wake: Notify::new(),
    });
    let stop = shutdown.child_token();
    tokio::spawn(stop.clone().run_until_cancelled_owned(keeping.clone().look_after(shared.clone())));
    Keeper { shared, uid: service.uid().to_owned(), spec: service["spec"].clone(), stop }
}

/// A time that is doubled each time that something fails.
struct Again {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Again {
    fn new(min: Duration, max: Duration) -> Again {
        Again { min, max, next: min }
    }

    fn failed(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.max);
        now
    }

    fn succeeded(&mut self) {
        self.next = self.min;
    }
}

/// What keepers work with.
pub(super) struct Keeping {
    objects: Arc<Objects>,
    heavy: Arc<HeavyWork>,
    outward: Outward,
    /// Rung when something is to be published.
    pub(super) heard: Notify,
    pub(super) keepers: Mutex<Keepers>,
}

impl Keeping {
    pub(super) fn new(objects: Arc<Objects>, outward: Outward, heavy: Arc<HeavyWork>) -> Keeping {
        Keeping { objects, heavy, outward, heard: Notify::new(), keepers: Mutex::default() }
    }

    /// Wakes keepers when Services, or what is behind them, change.
    async fn wake_keepers(
        self: Arc<Self>,
        (group, plural): (&'static str, &'static str),
        service_of: impl Fn(&Change) -> Option<String> + Send + 'static,
        shutdown: CancellationToken,
    ) {
        let watch = async || -> Result<(), Status> {
            let cache = self.objects.lister.cache(group, "v1", plural)?;
            let mut watcher = cache.watch(Filter::default(), Some(cache.revision()))?;
            // What happened before this watch may have been missed.
            self.keepers.lock().wake(None);
            while let Some(change) = watcher.changes.recv().await {
                if let Some(service) = service_of(&change) {
                    self.keepers.lock().wake(Some(&service));
                }
            }
            Ok(())
        };
        loop {
            let ended = shutdown.run_until_cancelled(watch()).await;
            match ended {
                None => return,
                Some(Ok(())) => {}
                Some(Err(status)) => tracing::warn!(%status, plural, "cannot watch; trying again"),
            }
            _ = shutdown.run_until_cancelled(tokio::time::sleep(WATCH_AGAIN)).await;
        }
    }

    /// Looks after one server until it is cancelled, or its APIService is gone.
    async fn look_after(self: Arc<Self>, shared: Arc<Shared>) {
        let path = format!("/apis/{}/{}", shared.group, shared.version);
        let mut check_again = Again::new(CHECK_AGAIN_MIN, CHECK_EVERY);
        let mut ask_again = Again::new(ASK_AGAIN_MIN, ASK_EVERY);
        let (mut was_available, mut ask_at, mut openapi_at) = (false, Instant::now(), Instant::now());
        loop {
            let is_available = match self.look_once(&shared, &path).await {
                Ok(Some(is_available)) => is_available,
                Ok(None) => return,
                Err(status) => {
                    tracing::warn!(%status, name = shared.name, "cannot tell whether an API server is available");
                    false
                }
            };
            let mut next = Instant::now() + CHECK_EVERY;
            if is_available {
                check_again.succeeded();
            } else {
                next = Instant::now() + check_again.failed();
            }
            if !is_available {
                shared.tell(&self, |told| told.discovery = Some(Discovered::Stale));
            } else if !was_available || Instant::now() >= ask_at {
                let is_told = self.ask(&shared).await;
                ask_at = Instant::now() + if is_told { ASK_EVERY } else { ask_again.failed() };
                if is_told {
                    ask_again.succeeded();
                }
                if is_told && Instant::now() >= openapi_at {
                    let known = shared.told.lock().openapi.clone();
                    let openapi = ask_openapi(
                        self.heavy.others(),
                        &shared.peer,
                        &shared.group,
                        &shared.version,
                        &known,
                    )
                    .await;
                    shared.tell(&self, |told| told.openapi = openapi);
                    openapi_at = Instant::now() + ASK_EVERY;
                }
            }
            was_available = is_available;
            if is_available {
                next = next.min(ask_at);
            }
            let earliest = Instant::now() + CHECK_AGAIN_MIN;
            tokio::select! {
                // Both only wait. Who changes a Service all the time is not followed each time.
                () = shared.wake.notified() => tokio::time::sleep_until(earliest).await,
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Whether a server is there; `None` if its APIService is gone.
    async fn look_once(&self, shared: &Shared, path: &str) -> Result<Option<bool>, Status> {
        let kind = self.objects.lister.kind(API_SERVICES.0, API_SERVICES.1, API_SERVICES.2)?;
        let finding = check_peer(&self.outward.endpoints, &shared.peer, path).await?;
        let Some(entry) = self.objects.lister.caches.of(&kind)?.get(&shared.name)? else { return Ok(None) };
        let service = entry.parse();
        if ServicePort::of(&service).as_ref() != Some(&shared.peer.to) {
            return Ok(None);
        }
        tell_available(&self.objects, &kind, &service, &finding).await?;
        Ok(Some(finding.is_available()))
    }

    /// Asks what a server has; whether it told.
    async fn ask(&self, shared: &Shared) -> bool {
        match ask_discovery(self.heavy.others(), &shared.peer, &shared.group, &shared.version).await {
            Ok(resources) => {
                let found = Discovered::Current(Arc::new(resources));
                shared.tell(self, |told| told.discovery = Some(found));
                true
            }
            Err(error) => {
                tracing::info!(%error, name = shared.name, "an API server does not tell what it has");
                shared.tell(self, |told| told.discovery = Some(Discovered::Stale));
                false
            }
        }
    }
}

impl Shared {
    /// Changes what is known, and has that published if it is another.
    fn tell(&self, keeping: &Keeping, change: impl FnOnce(&mut Told)) {
        let mut told = self.told.lock();
        let mut new = (**told).clone();
        change(&mut new);
        if !new.says_the_same(&told) {
            *told = Arc::new(new);
            keeping.heard.notify_one();
        }
    }
}

impl Told {
    fn says_the_same(&self, other: &Told) -> bool {
        let OpenApi { v3, v2, .. } = &self.openapi;
        self.discovery == other.discovery && *v3 == other.openapi.v3 && *v2 == other.openapi.v2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_waits_twice_as_long_each_time_and_no_longer_than_the_longest() {
        let mut again = Again::new(Duration::from_secs(1), Duration::from_secs(5));
        let waits = [(); 5].map(|()| again.failed().as_secs());
        assert_eq!(waits, [1, 2, 4, 5, 5]);
        again.succeeded();
        assert_eq!(again.failed().as_secs(), 1);
    }
}
