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
//! - Resources come and go while the server runs ([`Caches::open`], [`Caches::close`]). A cache is read only once it has
//!   everything; the watches of one that goes end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use skiff_api::{Kind, Kinds, Status};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::unreadable::Damaged;
use crate::store::{Batch, Range, Revision, Store, StoreError};

mod entry;
mod for_nodes;
mod packed;
mod resource;
mod unreadable;
mod watcher;

pub(crate) use entry::{Detail, Entry};
pub(crate) use resource::{Observer, ResourceCache, Snapshot};
pub(crate) use watcher::{Change, ChangeKind, Filter, Watcher, frame};

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
    folders: RwLock<Folders>,
    /// Held while caches are filled: one that is filled alone must not miss what all others are read anew for.
    fills: tokio::sync::Mutex<()>,
    applied: watch::Sender<Revision>,
}

/// The caches by the folder of their resource under `/registry/`.
#[derive(Default)]
struct Folders {
    open: HashMap<String, Arc<ResourceCache>>,
    /// Those that are being filled: told of changes, and read by nobody.
    filling: HashMap<String, Arc<ResourceCache>>,
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
        let folders = Folders { open: by_folder, ..Folders::default() };
        let caches = Arc::new(Caches {
            store,
            folders: RwLock::new(folders),
            fills: tokio::sync::Mutex::default(),
            applied: watch::Sender::new(0),
        });
        caches.fill().await?;
        tokio::spawn(caches.clone().tend(shutdown.clone()));
        tokio::spawn(caches.clone().dispatch(shutdown));
        Ok(caches)
    }

    /// # Errors
    /// 404 if the resource is not served any more.
    pub(crate) fn of(&self, kind: &Kind) -> Result<Arc<ResourceCache>, Status> {
        self.folders.read().open.get(&kind.registry_folder).cloned().ok_or_else(Status::no_such_path)
    }

    /// Opens a cache for a resource, or replaces the one that it has: its objects are read anew, its watches end. `kind` is
    /// what they are stored as.
    ///
    /// Once this returns, all that was acknowledged before the call can be read.
    pub(crate) async fn open(&self, kind: Arc<Kind>) -> Result<(), StoreError> {
        let folder = kind.registry_folder.clone();
        let prefix = kind.prefix(None);
        let cache = Arc::new(ResourceCache::filling(kind));
        let _alone = self.fills.lock().await;
        self.folders.write().filling.insert(folder.clone(), cache.clone());
        let filled = self.fill_one(&cache, &prefix).await;
        let mut folders = self.folders.write();
        folders.filling.remove(&folder);
        filled?;
        folders.open.insert(folder, cache);
        Ok(())
    }

    /// Reads the objects of one resource at one revision, while the dispatcher tells of what changes.
    async fn fill_one(&self, cache: &ResourceCache, prefix: &str) -> Result<(), StoreError> {
        let revision = self.store.revision().await?;
        let (mut entries, mut damaged, mut start) = (Vec::new(), Damaged::new(), None);
        loop {
            let range =
                Range { prefix: prefix.into(), start, revision: Some(revision), limit: Some(FILL_PAGE) };
            let page = self.store.range(range).await?;
            start = page.items.last().map(|last| format!("{}\0", last.key));
            for kv in page.items {
                let Some(key) = kv.key.strip_prefix(prefix) else { continue };
                match cache.decode(key, &kv.value, kv.integrity, kv.mod_revision) {
                    Ok((entry, _)) => entries.push(entry),
                    Err(damage) => _ = damaged.insert(key.into(), damage),
                }
            }
            if !page.more {
                break;
            }
            // Decoding is work, and others wait for this thread.
            tokio::task::yield_now().await;
        }
        cache.reset(entries, damaged, revision);
        Ok(())
    }

    /// Forgets a resource, and ends its watches.
    pub(crate) fn close(&self, folder: &str) {
        self.folders.write().open.remove(folder);
    }

    pub(crate) fn all(&self) -> Vec<Arc<ResourceCache>> {
        self.folders.read().open.values().cloned().collect()
    }

    pub(crate) fn applied(&self) -> Revision {
        *self.applied.borrow()
    }

    /// Waits until the caches hold everything that was acknowledged before the call.
    pub(crate) async fn wait_for_newest(&self) -> Result<Revision, Status> {
        let newest = self.store.revision().await.map_err(|e| crate::failure::store_failure(&e))?;
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
        for cache in self.all() {
            all.extend(cache.damaged().into_iter().map(|(key, damage)| (cache.clone(), key, damage.why)));
        }
        all
    }

    /// Reads everything at one revision, replacing what the caches hold.
    async fn fill(&self) -> Result<Revision, StoreError> {
        let _alone = self.fills.lock().await;
        let revision = self.store.revision().await?;
        let caches = self.all();
        let mut found: HashMap<String, Vec<Entry>> = HashMap::new();
        let mut damaged: HashMap<String, Damaged> = HashMap::new();
        let mut start = None;
        loop {
            let range =
                Range { prefix: ROOT.into(), start, revision: Some(revision), limit: Some(FILL_PAGE) };
            let page = self.store.range(range).await?;
            start = page.items.last().map(|last| format!("{}\0", last.key));
            for kv in page.items {
                let Some((cache, _, key)) = self.route(&kv.key) else { continue };
                let Some(cache) = cache else { continue };
                match cache.decode(key, &kv.value, kv.integrity, kv.mod_revision) {
                    Ok((entry, _)) => found.entry(cache.folder().to_owned()).or_default().push(entry),
                    Err(damage) => {
                        damaged.entry(cache.folder().to_owned()).or_default().insert(key.into(), damage);
                    }
                }
            }
            if !page.more {
                break;
            }
        }
        for cache in caches {
            let entries = found.remove(cache.folder()).unwrap_or_default();
            cache.reset(entries, damaged.remove(cache.folder()).unwrap_or_default(), revision);
        }
        self.applied.send_replace(revision);
        Ok(revision)
    }

    async fn tend(self: Arc<Self>, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(TEND_EVERY)).await.is_some() {
            for cache in self.all() {
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
            if let Some((open, filling, key)) = self.route(&event.key) {
                for cache in [open, filling].into_iter().flatten() {
                    let value = event.value.as_ref().map(|value| (value, event.integrity));
                    cache.apply(key, value, event.mod_revision);
                }
            }
        }
        self.applied.send_if_modified(|applied| {
            let newer = batch.revision > *applied;
            *applied = batch.revision.max(*applied);
            newer
        });
    }

    /// The cache of a key, the one that is being filled, and the key within them: `<ns>/<name>` or `<name>`. A folder may be
    /// of two parts, such as `services/specs`.
    fn route<'k>(&self, key: &'k str) -> Option<Routed<'k>> {
        let rest = key.strip_prefix(ROOT)?;
        let folders = self.folders.read();
        let first = rest.find('/')?;
        let second = rest[first + 1..].find('/').map(|at| first + 1 + at);
        [second, Some(first)]
            .into_iter()
            .flatten()
            .map(|at| (folders.open.get(&rest[..at]), folders.filling.get(&rest[..at]), &rest[at + 1..]))
            .find(|(open, filling, _)| open.is_some() || filling.is_some())
            .map(|(open, filling, key)| (open.cloned(), filling.cloned(), key))
    }
}

/// The caches of a key, and the key within them.
type Routed<'k> = (Option<Arc<ResourceCache>>, Option<Arc<ResourceCache>>, &'k str);

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
