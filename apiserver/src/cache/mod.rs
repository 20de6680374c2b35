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
//! - What cannot be read fails whoever would have got it: nothing is left out of a list.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skiff_api::{Kind, Kinds, Status};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::unreadable::Damaged;
use crate::store::{Batch, Range, Revision, Store, StoreError};

mod entry;
mod resource;
mod unreadable;
mod watcher;

pub(crate) use entry::Entry;
pub(crate) use resource::{Observer, ResourceCache, Snapshot};
pub(crate) use watcher::{Change, Filter, Watcher, frame};

const ROOT: &str = "/registry/";
/// How long a read waits for the cache to reach a revision, as upstream.
const FRESHNESS_TIMEOUT: Duration = Duration::from_secs(3);
const FILL_PAGE: usize = 500;
/// How often caches let go of what they kept for a while.
const TEND_EVERY: Duration = Duration::from_secs(15);
const RESYNC_DELAY_MIN: Duration = Duration::from_millis(50);
const RESYNC_DELAY_MAX: Duration = Duration::from_secs(10);

pub(crate) struct Caches {
    store: Arc<dyn Store>,
    /// By the folder under `/registry/`.
    by_folder: HashMap<String, Arc<ResourceCache>>,
    applied: watch::Sender<Revision>,
}

impl Caches {
    /// Fills every cache from the store and starts the dispatcher, which runs until `shutdown`. Observers are given by the
    /// folder of their resource.
    pub(crate) async fn start(
        kinds: &Kinds,
        store: Arc<dyn Store>,
        observers: &[(&str, Arc<dyn Observer>)],
        shutdown: CancellationToken,
    ) -> Result<Arc<Caches>, StoreError> {
        let mut by_folder = HashMap::new();
        for kind in kinds.stored() {
            let folder = kind.registry_folder.clone();
            let mut cache = ResourceCache::new(kind);
            if let Some((_, observer)) = observers.iter().find(|(of, _)| *of == folder) {
                cache = cache.observed_by(observer.clone());
            }
            by_folder.insert(folder, Arc::new(cache));
        }
        let caches = Arc::new(Caches { store, by_folder, applied: watch::Sender::new(0) });
        caches.fill().await?;
        tokio::spawn(caches.clone().tend(shutdown.clone()));
        tokio::spawn(caches.clone().dispatch(shutdown));
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

    /// The keys in the store whose values cannot be read, and why.
    pub(crate) fn damaged(&self) -> Vec<(Arc<ResourceCache>, Arc<str>, Arc<str>)> {
        let mut all = Vec::new();
        for cache in self.by_folder.values() {
            all.extend(cache.damaged().into_iter().map(|(key, damage)| (cache.clone(), key, damage.why)));
        }
        all
    }

    /// Reads everything at one revision, replacing what the caches hold.
    async fn fill(&self) -> Result<Revision, StoreError> {
        let revision = self.store.revision().await?;
        let mut found: HashMap<&str, Vec<Entry>> = HashMap::new();
        let mut damaged: HashMap<&str, Damaged> = HashMap::new();
        let mut start = None;
        loop {
            let range =
                Range { prefix: ROOT.into(), start, revision: Some(revision), limit: Some(FILL_PAGE) };
            let page = self.store.range(range).await?;
            start = page.items.last().map(|last| format!("{}\0", last.key));
            for kv in page.items {
                let Some((cache, key)) = self.route(&kv.key) else { continue };
                match cache.decode(key, &kv.value, kv.integrity, kv.mod_revision) {
                    Ok((entry, _)) => found.entry(cache.folder()).or_default().push(entry),
                    Err(damage) => {
                        damaged.entry(cache.folder()).or_default().insert(key.into(), damage);
                    }
                }
            }
            if !page.more {
                break;
            }
        }
        for (folder, cache) in &self.by_folder {
            let entries = found.remove(folder.as_str()).unwrap_or_default();
            cache.reset(entries, damaged.remove(folder.as_str()).unwrap_or_default(), revision);
        }
        self.applied.send_replace(revision);
        Ok(revision)
    }

    async fn tend(self: Arc<Self>, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(TEND_EVERY)).await.is_some() {
            for cache in self.by_folder.values() {
                cache.tend(Instant::now());
            }
        }
    }

    /// Follows the store. A watch that broke is taken up where it ended, so that clients notice nothing; only if what it
    /// missed is compacted, everything is read anew.
    async fn dispatch(self: Arc<Self>, shutdown: CancellationToken) {
        let mut delay = RESYNC_DELAY_MIN;
        loop {
            let before = self.applied();
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.follow() => ended,
            };
            let Err(error) = ended else { return };
            if self.applied() > before {
                delay = RESYNC_DELAY_MIN;
            }
            tracing::warn!(error = &error as &dyn std::error::Error, "the watch of the store broke");
            let refill = matches!(error, StoreError::Compacted { .. } | StoreError::Future { .. });
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(delay) => {}
                }
                delay = (delay * 2).min(RESYNC_DELAY_MAX);
                if !refill {
                    break;
                }
                // Nothing is followed before all is read: the caches would go back to what was.
                match self.fill().await {
                    Ok(_) => {
                        delay = RESYNC_DELAY_MIN;
                        break;
                    }
                    Err(StoreError::Closed) => return,
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "cannot read the store");
                    }
                }
            }
        }
    }

    /// Applies changes until the store closes.
    async fn follow(&self) -> Result<(), StoreError> {
        let mut watch = self.store.watch(ROOT, self.applied()).await?;
        while let Some(batch) = watch.next().await {
            self.apply(batch?);
        }
        Ok(())
    }

    fn apply(&self, batch: Batch) {
        for event in batch.events {
            if let Some((cache, key)) = self.route(&event.key) {
                let value = event.value.as_ref().map(|value| (value, event.integrity));
                cache.apply(key, value, event.mod_revision);
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
