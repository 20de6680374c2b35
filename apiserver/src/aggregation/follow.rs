//! The one task that follows APIServices.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use serde_json::json;
use skiff_api::decode::FieldValidation;
use skiff_api::{Kind, Object, Status, decode, default};
use tokio_util::sync::CancellationToken;

use super::check;
use super::keeper::{API_SERVICES, Keeping};
use super::peer::ServicePort;
use super::priorities::Priority;
use super::reach::Outward;
use super::register::{Action, Registered};
use super::remotes::{Aggregated, Remote};
use crate::cache::{Filter, Watcher};
use crate::call::Call;
use crate::heavy::HeavyWork;
use crate::lister::Lister;
use crate::objects::Next;
use crate::registry::Registry;
use crate::registry::options::DeleteOptions;
use crate::retry::{Backoff, Follow};

/// APIServices that are written at the same time.
const WRITTEN_TOGETHER: usize = 32;

/// Keeps APIServices, and who looks after the servers behind them.
pub(crate) struct Aggregator {
    registry: Arc<Registry>,
    keeping: Arc<Keeping>,
    /// Held by one pass at a time.
    registered: tokio::sync::Mutex<Registered>,
}

#[async_trait]
impl Follow for Aggregator {
    const WHAT: &'static str = "follow the APIServices";

    async fn once(&self, shutdown: &CancellationToken, backoff: &mut Backoff) -> Result<(), Status> {
        let kind = self.lister().kind(API_SERVICES.0, API_SERVICES.1, API_SERVICES.2)?;
        let Watcher { mut changes, .. } = self.lister().caches.of(&kind)?.watch(Filter::default(), None)?;
        loop {
            self.keep(shutdown).await?;
            backoff.worked();
            tokio::select! {
                // Each only waits, and loses nothing: the next pass looks at everything.
                change = changes.recv() => if change.is_none() { return Ok(()) },
                () = self.lister().live.published() => {}
                () = self.keeping.heard.notified() => {}
            }
            while changes.try_recv().is_ok() {}
        }
    }
}

impl Aggregator {
    pub(crate) fn new(registry: Arc<Registry>, outward: Outward, heavy: Arc<HeavyWork>) -> Aggregator {
        let keeping = Arc::new(Keeping::new(registry.objects.clone(), outward, heavy));
        Aggregator { registry, keeping, registered: tokio::sync::Mutex::default() }
    }

    fn lister(&self) -> &Lister {
        &self.registry.objects.lister
    }

    /// One pass: the APIServices of this server's groups are as they are to be, and what is known of the others is published.
    ///
    /// # Errors
    /// The first failure: another pass may do better.
    pub(crate) async fn keep(&self, shutdown: &CancellationToken) -> Result<(), Status> {
        let kind = self.lister().kind(API_SERVICES.0, API_SERVICES.1, API_SERVICES.2)?;
        let mut registered = self.registered.lock().await;
        let services = self.api_services(&kind)?;
        self.publish_remotes(&services, shutdown);
        let actions = registered.plan(&self.lister().table().kinds, &services);
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
            outcome = outcome.and(self.lister().caches.wait_for_newest().await.map(drop));
        }
        let services = self.api_services(&kind)?;
        let finding = check::Finding::local();
        let mut told = Vec::new();
        for service in services.values() {
            if ServicePort::of(service).is_none() && !finding.is_told_by(service) {
                told.push(check::tell_available(&self.registry.objects, &kind, service, &finding));
            }
        }
        let mut told = stream::iter(told).buffer_unordered(WRITTEN_TOGETHER);
        while let Some(told) = told.next().await {
            outcome = outcome.and(told);
        }
        outcome
    }

    fn api_services(&self, kind: &Kind) -> Result<BTreeMap<String, Object>, Status> {
        let stored = self.lister().caches.of(kind)?.readable();
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
                let mut call = Call::of_server(self.lister(), kind.clone(), "create", "", name);
                self.registry.create_object(&mut call, service, false).await.map(drop)
            }
            Action::Set { spec, .. } => {
                let set = self.registry.objects.modify(kind, "", name, false, |current| {
                    let mut service = current.object.clone();
                    service["spec"] = spec.clone();
                    Ok(Next::Put(service))
                });
                set.await.map(drop)
            }
            Action::Delete { uid, .. } => {
                let call = Call::of_server(self.lister(), kind.clone(), "delete", "", name);
                let options = DeleteOptions::from_json(&json!({"preconditions": {"uid": uid}}))?;
                self.registry.delete_object(&call, "", name, &options).await.map(drop)
            }
        };
        match done {
            // It has changed meanwhile: another pass looks at it.
            Err(status) if matches!(status.code, 404 | 409) => Ok(()),
            done => done,
        }
    }

    /// Starts and ends keepers, and publishes what is known.
    fn publish_remotes(&self, services: &BTreeMap<String, Object>, shutdown: &CancellationToken) {
        let mut keepers = self.keeping.keepers.lock();
        keepers.retain(|name| services.contains_key(name));
        let mut remotes = BTreeMap::new();
        for (name, service) in services {
            let Some(known) = keepers.keep(&self.keeping, name, service, shutdown) else { continue };
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
        if !new.says_the_same(&self.lister().table().aggregated) {
            self.lister().live.publish_aggregated(new);
        }
    }
}
