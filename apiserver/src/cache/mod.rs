//! The watch cache: what readers read, kept up by one watch of the store.
//!
//! ```text
//!  store.watch("/registry/") ─▶ dispatcher (one task) ─┬─▶ ResourceCache pods ──▶ watchers (bounded channels)
//!                                                      ├─▶ ResourceCache nodes
//!                                                      └─▶ …          then: `applied` = the batch's revision
//! ```
//!
//! # Guarantees
//! - Once [`Caches::wait_for`] returns, every change up to that revision is in the snapshots and in the
//!   watchers' channels.
//! - An object is encoded once, with its `resourceVersion`; all readers and watchers share those bytes.
//! - A watcher that is too slow is dropped, and must watch again; nothing waits for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use skiff_api::{Kind, Kinds, Status};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::{Batch, Range, Revision, Store, StoreError};

mod entry;
mod resource;
mod watcher;

pub(crate) use entry::Entry;
pub(crate) use resource::{ResourceCache, Snapshot};
pub(crate) use watcher::{Change, Filter, Watcher, frame};

const ROOT: &str = "/registry/";
/// How long a read waits for the cache to reach a revision, as upstream.
const FRESHNESS_TIMEOUT: Duration = Duration::from_secs(3);
const FILL_PAGE: usize = 500;
const RESYNC_DELAY_MAX: Duration = Duration::from_secs(10);

pub(crate) struct Caches {
    store: Arc<dyn Store>,
    /// By the folder under `/registry/`.
    by_folder: HashMap<String, Arc<ResourceCache>>,
    applied: watch::Sender<Revision>,
}

impl Caches {
    /// Fills every cache from the store and starts the dispatcher, which runs until `shutdown`.
    pub(crate) async fn start(
        kinds: &Kinds,
        store: Arc<dyn Store>,
        shutdown: CancellationToken,
    ) -> Result<Arc<Caches>, StoreError> {
        let mut by_folder = HashMap::new();
        for kind in kinds.stored() {
            by_folder.insert(kind.registry_folder.clone(), Arc::new(ResourceCache::new(kind)));
        }
        let caches = Arc::new(Caches { store, by_folder, applied: watch::Sender::new(0) });
        let revision = caches.fill().await?;
        tokio::spawn(caches.clone().dispatch(revision, shutdown));
        Ok(caches)
    }

    pub(crate) fn of(&self, kind: &Kind) -> Result<&Arc<ResourceCache>, Status> {
        self.by_folder
            .get(&kind.registry_folder)
            .ok_or_else(|| Status::internal(format!("no cache for {}", kind.registry_folder)))
    }

    pub(crate) fn applied(&self) -> Revision {
        *self.applied.borrow()
    }

    /// Waits until the caches hold everything that was acknowledged before the call.
    pub(crate) async fn wait_for_newest(&self) -> Result<Revision, Status> {
        let newest = self.store.revision().await.map_err(|e| crate::registry::store_failure(&e))?;
        self.wait_for(newest).await?;
        Ok(newest)
    }

    /// Waits, for a bounded time, until everything up to `revision` is applied.
    pub(crate) async fn wait_for(&self, revision: Revision) -> Result<(), Status> {
        let mut applied = self.applied.subscribe();
        let reached = applied.wait_for(|at| *at >= revision);
        match tokio::time::timeout(FRESHNESS_TIMEOUT, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Status::unavailable("the server is shutting down")),
            Err(_) => Err(too_large_resource_version(revision, self.applied())),
        }
    }

    /// Reads everything at one revision, replacing what the caches hold.
    async fn fill(&self) -> Result<Revision, StoreError> {
        let revision = self.store.revision().await?;
        let mut found: HashMap<&str, Vec<Entry>> = HashMap::new();
        let mut start = None;
        loop {
            let range =
                Range { prefix: ROOT.into(), start, revision: Some(revision), limit: Some(FILL_PAGE) };
            let page = self.store.range(range).await?;
            start = page.items.last().map(|last| format!("{}\0", last.key));
            for kv in page.items {
                if let Some((cache, key)) = self.route(&kv.key)
                    && let Some(entry) = cache.decode(key, &kv.value, kv.mod_revision)
                {
                    found.entry(cache.folder()).or_default().push(entry);
                }
            }
            if !page.more {
                break;
            }
        }
        for (folder, cache) in &self.by_folder {
            cache.reset(found.remove(folder.as_str()).unwrap_or_default(), revision);
        }
        self.applied.send_replace(revision);
        Ok(revision)
    }

    async fn dispatch(self: Arc<Self>, mut from: Revision, shutdown: CancellationToken) {
        let mut delay = Duration::from_millis(50);
        loop {
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.follow(from) => ended,
            };
            match ended {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%error, "the watch of the store broke; reading everything again")
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
            delay = (delay * 2).min(RESYNC_DELAY_MAX);
            match self.fill().await {
                Ok(revision) => from = revision,
                Err(error) => tracing::warn!(%error, "cannot read the store"),
            }
        }
    }

    /// Applies changes until the store closes.
    async fn follow(&self, from: Revision) -> Result<(), StoreError> {
        let mut watch = self.store.watch(ROOT, from).await?;
        while let Some(batch) = watch.next().await {
            self.apply(batch?);
        }
        Ok(())
    }

    fn apply(&self, batch: Batch) {
        for event in batch.events {
            if let Some((cache, key)) = self.route(&event.key) {
                cache.apply(key, event.value.as_ref(), event.mod_revision);
            }
        }
        self.applied.send_if_modified(|applied| {
            let newer = batch.revision > *applied;
            *applied = batch.revision.max(*applied);
            newer
        });
    }

    /// The cache of a key, and the key within it: `<ns>/<name>` or `<name>`. A folder may be of two parts, such
    /// as `services/specs`.
    fn route<'k>(&self, key: &'k str) -> Option<(&Arc<ResourceCache>, &'k str)> {
        let rest = key.strip_prefix(ROOT)?;
        let first = rest.find('/')?;
        let second = rest[first + 1..].find('/').map(|at| first + 1 + at);
        [second, Some(first)]
            .into_iter()
            .flatten()
            .find_map(|at| Some((self.by_folder.get(&rest[..at])?, &rest[at + 1..])))
    }
}

/// A revision that the cache did not reach in time.
fn too_large_resource_version(requested: Revision, current: Revision) -> Status {
    let message = format!("Too large resource version: {requested}, current: {current}");
    let mut status = Status::timeout(format!("Timeout: {message}"));
    status.details = Some(Box::new(skiff_api::status::Details {
        retry_after_seconds: 1,
        causes: vec![skiff_api::Cause {
            reason: "ResourceVersionTooLarge",
            message: "Too large resource version".into(),
            field: String::new(),
        }],
        ..Default::default()
    }));
    status
}

#[cfg(test)]
mod tests;
