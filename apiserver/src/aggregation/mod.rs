//! Aggregation: APIServices, of what this server serves itself and of what others do, which stand behind it.
//!
//! ```text
//!  cache of APIServices ─ changed ─▶ one task ─┬─ those of this server's own groups: kept (register.rs, pure)
//!         table of kinds ─ changed ─▶          ├─ a peer and a keeper for each of the others: started, ended
//!  keepers ─ have heard something ─▶           └─ what is known of the others: published with the table
//!
//!  keeper, one for each of the others ─ now and then, and when its Service changes ─▶ is it there (check.rs), what has it (told.rs)
//!
//!  request ─ authenticated, authorized ─▶ forward.rs ─ who asks, as headers ─ front proxy's certificate ─▶ other server
//! ```
//!
//! # Guarantees
//! - A server that is away, slow, lying or endless costs its own requests, its own keeper and a bounded answer.
//! - It is believed only what is about the group and version of its APIService.
//! - What it is asked for is authorized here first.
//!
//! # Caveats
//! - All of the core group (`v1.`) cannot be served by another. An APIService without a CA bundle has no server: there are no roots
//!   of the host. A server that has OpenAPI of version 2 only has none of version 3.
//!
//! Source: `k8s.io/kube-aggregator`.

mod check;
mod forward;
pub(crate) mod identity;
mod keeper;
pub(crate) mod priorities;
mod reach;
mod register;
pub(crate) mod told;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use serde_json::json;
use skiff_api::decode::FieldValidation;
use skiff_api::{Kind, Object, Status, decode, default};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::cache::{Filter, Watcher};
use crate::registry::{DeleteOptions, Next};
use crate::request::decoded;
use crate::tls::Shown;

pub(crate) use forward::Asked;
use keeper::Keepers;
pub(crate) use priorities::Priority;
use reach::{Outward, Peer};
use register::{Action, Registered};
pub(crate) use told::{Discovered, Told};

/// Where APIServices are.
pub(crate) const API_SERVICES: (&str, &str, &str) = ("apiregistration.k8s.io", "v1", "apiservices");
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// APIServices that are written at the same time.
const WRITTEN_TOGETHER: usize = 32;

/// What others serve, at one moment.
#[derive(Default)]
pub(crate) struct Aggregated {
    /// By group and version.
    remotes: BTreeMap<(String, String), Arc<Remote>>,
}

/// A group and version that another server serves.
pub(crate) struct Remote {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) priority: Priority,
    pub(crate) told: Arc<Told>,
    is_available: bool,
    peer: Arc<Peer>,
}

impl Remote {
    fn says_the_same(&self, other: &Remote) -> bool {
        let is_same = Arc::ptr_eq(&self.told, &other.told) && Arc::ptr_eq(&self.peer, &other.peer);
        is_same && self.priority == other.priority && self.is_available == other.is_available
    }
}

impl Aggregated {
    fn says_the_same(&self, other: &Aggregated) -> bool {
        let mut both = self.remotes.values().zip(other.remotes.values());
        self.remotes.keys().eq(other.remotes.keys()) && both.all(|(a, b)| a.says_the_same(b))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.remotes.is_empty()
    }

    pub(crate) fn remotes(&self) -> impl Iterator<Item = &Arc<Remote>> {
        self.remotes.values()
    }

    pub(crate) fn has(&self, group: &str, version: &str) -> bool {
        !self.is_empty() && self.remotes.contains_key(&(group.to_owned(), version.to_owned()))
    }

    /// Who serves a path, if it is another server.
    pub(crate) fn serving(&self, path: &str) -> Option<&Arc<Remote>> {
        if self.is_empty() {
            return None;
        }
        let mut steps = path.trim_start_matches('/').split('/');
        let mut step = || steps.next().map(decoded);
        if step()? != "apis" {
            return None;
        }
        self.remotes.get(&(step()?, step()?))
    }

    /// Who serves the OpenAPI document of version 3 at a path.
    pub(crate) fn describing(&self, path: &str) -> Option<&Arc<Remote>> {
        self.serving(path.strip_prefix("/openapi/v3")?)
    }
}

/// What the server needs for aggregation.
pub(crate) struct Aggregator {
    outward: Outward,
    /// Rung when something is to be published.
    heard: Notify,
    keepers: Mutex<Keepers>,
    /// Held by one pass at a time.
    registered: tokio::sync::Mutex<Registered>,
}

impl Aggregator {
    pub(crate) fn new(shown: Option<Arc<Shown>>, allow_loopback: bool) -> Aggregator {
        Aggregator {
            outward: Outward::new(shown, allow_loopback),
            heard: Notify::new(),
            keepers: Mutex::default(),
            registered: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn lead_to(&self, api: &Arc<Api>) {
        self.outward.lead_to(api);
    }

    fn tell(&self) {
        self.heard.notify_one();
    }
}

impl Api {
    /// Keeps APIServices, and what is known of those that others serve, until `shutdown`.
    pub(crate) async fn follow_api_services(self: Arc<Self>, shutdown: CancellationToken) {
        let mut retry = RETRY_MIN;
        while !shutdown.is_cancelled() {
            let ended = tokio::select! {
                () = shutdown.cancelled() => break,
                ended = self.follow_api_services_once(&shutdown, &mut retry) => ended,
            };
            if let Err(status) = ended {
                tracing::warn!(%status, "cannot follow the APIServices; trying again");
            }
            // Cancelled only where everything ends.
            _ = shutdown.run_until_cancelled(tokio::time::sleep(retry)).await;
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    async fn follow_api_services_once(
        self: &Arc<Self>,
        shutdown: &CancellationToken,
        retry: &mut Duration,
    ) -> Result<(), Status> {
        let kind = self.kind(API_SERVICES.0, API_SERVICES.1, API_SERVICES.2)?;
        let Watcher { mut changes, .. } = self.caches.of(&kind)?.watch(Filter::default(), None)?;
        loop {
            self.keep_api_services(shutdown).await?;
            *retry = RETRY_MIN;
            tokio::select! {
                // Each only waits, and loses nothing: the next pass looks at everything.
                change = changes.recv() => if change.is_none() { return Ok(()) },
                () = self.live.published() => {}
                () = self.aggregator.heard.notified() => {}
            }
            while changes.try_recv().is_ok() {}
        }
    }

    /// One pass: the APIServices of this server's groups are as they are to be, and what is known of the others is published.
    ///
    /// # Errors
    /// The first failure: another pass may do better.
    pub(crate) async fn keep_api_services(
        self: &Arc<Self>,
        shutdown: &CancellationToken,
    ) -> Result<(), Status> {
        let kind = self.kind(API_SERVICES.0, API_SERVICES.1, API_SERVICES.2)?;
        let mut registered = self.aggregator.registered.lock().await;
        let services = self.api_services(&kind)?;
        self.publish_remotes(&services, shutdown);
        let actions = registered.plan(&self.live.table().kinds, &services);
        let mut outcome = Ok(());
        if !actions.is_empty() {
            let all: Vec<_> = actions.iter().map(|action| self.carry_out(&kind, action)).collect();
            let mut done = stream::iter(all).buffered(WRITTEN_TOGETHER);
            let mut names = actions.iter().map(Action::name);
            while let (Some(done), Some(name)) = (done.next().await, names.next()) {
                if done.is_ok() {
                    registered.done(name);
                }
                outcome = outcome.and(done);
            }
            // What was written is in the cache once that has come so far.
            outcome = outcome.and(self.caches.wait_for_newest().await.map(drop));
        }
        let services = self.api_services(&kind)?;
        let finding = check::Finding::local();
        let mut told = Vec::new();
        for service in services.values() {
            if reach::ServicePort::of(service).is_none() && !finding.is_told_by(service) {
                told.push(self.tell_available(&kind, service, &finding));
            }
        }
        let mut told = stream::iter(told).buffer_unordered(WRITTEN_TOGETHER);
        while let Some(told) = told.next().await {
            outcome = outcome.and(told);
        }
        outcome
    }

    fn api_services(&self, kind: &Kind) -> Result<BTreeMap<String, Object>, Status> {
        let stored = self.caches.of(kind)?.readable();
        Ok(stored.iter().map(|(name, entry)| (name.to_string(), entry.parse())).collect())
    }

    async fn carry_out(&self, kind: &Arc<Kind>, action: &Action) -> Result<(), Status> {
        let name = action.name();
        let done = match action {
            Action::Create(service) => {
                let mut service = service.clone();
                service["apiVersion"] = kind.api_version().into();
                service["kind"] = kind.kind.as_str().into();
                let mut service = decode::conform(kind, service, FieldValidation::Strict)?.object;
                default::apply(kind, &mut service);
                let mut call = self.own_call(kind.clone(), "create", "", name);
                self.create_object(&mut call, service, false).await.map(drop)
            }
            Action::Set { spec, .. } => {
                let set = self.modify(kind, "", name, false, |current| {
                    let mut service = current.object.clone();
                    service["spec"] = spec.clone();
                    Ok(Next::Put(service))
                });
                set.await.map(drop)
            }
            Action::Delete { uid, .. } => {
                let call = self.own_call(kind.clone(), "delete", "", name);
                let options = DeleteOptions::from_json(&json!({"preconditions": {"uid": uid}}))?;
                self.delete_object(&call, "", name, &options).await.map(drop)
            }
        };
        match done {
            // It has changed meanwhile: another pass looks at it.
            Err(status) if matches!(status.code, 404 | 409) => Ok(()),
            done => done,
        }
    }

    /// Starts and ends keepers, and publishes what is known.
    fn publish_remotes(self: &Arc<Self>, services: &BTreeMap<String, Object>, shutdown: &CancellationToken) {
        let mut keepers = self.aggregator.keepers.lock();
        keepers.retain(|name| services.contains_key(name));
        let mut remotes = BTreeMap::new();
        for (name, service) in services {
            let Some(known) = keepers.keep(self, name, service, shutdown) else { continue };
            let text = |field: &str| service["spec"][field].as_str().unwrap_or_default().to_owned();
            let number = |field: &str| service["spec"][field].as_i64().unwrap_or_default();
            let (group, version) = (text("group"), text("version"));
            if group.is_empty() {
                tracing::debug!(name, "the core group cannot be served by another server");
                continue;
            }
            let remote = Remote {
                group: group.clone(),
                version: version.clone(),
                priority: Priority {
                    group: number("groupPriorityMinimum"),
                    version: number("versionPriority"),
                },
                told: known.told,
                is_available: check::is_available(service),
                peer: known.peer,
            };
            remotes.insert((group, version), Arc::new(remote));
        }
        drop(keepers);
        let new = Aggregated { remotes };
        if !new.says_the_same(&self.live.table().aggregated) {
            self.live.publish_aggregated(new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_anothers_by_its_first_three_steps() {
        let service = json!({"spec": {"service": {"namespace": "a", "name": "s"}}});
        let outward = Outward::new(None, false);
        let to = reach::ServicePort::of(&service).expect("a Service");
        let peer = Arc::new(Peer::new(to, reach::Trust::Anybody, &outward));
        let priority = Priority { group: 1, version: 1 };
        let (group, version, told) = ("g.example".to_owned(), "v1".to_owned(), Arc::default());
        let remote = Arc::new(Remote {
            group: group.clone(),
            version: version.clone(),
            priority,
            told,
            is_available: true,
            peer,
        });
        let all = Aggregated { remotes: BTreeMap::from([((group, version), remote)]) };
        for theirs in [
            "/apis/g.example/v1",
            "/apis/g.example/v1/",
            "//apis/g.example/v1/foos/a",
            "/apis/g%2Eexample/v1/x",
        ] {
            assert!(all.serving(theirs).is_some(), "{theirs}");
        }
        for ours in
            ["/apis/g.example", "/apis/g.example/v12/x", "/api/g.example/v1", "/apis/other/v1", "/", ""]
        {
            assert!(all.serving(ours).is_none(), "{ours}");
        }
        assert!(all.describing("/openapi/v3/apis/g.example/v1").is_some());
        assert!(all.describing("/openapi/v2/apis/g.example/v1").is_none());
    }
}
