//! The cache of one resource: snapshot, recent events, watchers.

use std::collections::{HashMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use imbl::OrdMap;
use parking_lot::Mutex;
use skiff_api::{Kind, Object, Status};
use tokio::sync::mpsc::{self, error::TrySendError};

use super::Entry;
use super::packed::Bases;
use super::unreadable::{self, Damage, Damaged, Unreadable};
use super::watcher::{Change, ChangeKind, Filter, Happened, Watcher};
use crate::store::{Integrity, Revision};

/// All objects by key, as of one revision. Cloning it shares it.
pub(crate) type Snapshot = OrdMap<Arc<str>, Arc<Entry>>;

/// Recent events are kept: so many of them at most; past the smaller number of bytes only those that are as young as
/// upstream's cache keeps them, so that clients find what they missed; past the larger one none.
const RING_EVENTS: usize = 16_384;
const RING_BYTES: usize = 4 << 20;
const RING_BYTES_MAX: usize = 64 << 20;
const RING_FRESH: Duration = Duration::from_secs(75);
/// Changes that may wait for one watcher before it counts as too slow.
const WATCHER_CHANGES: usize = 1024;
/// Snapshots kept for the next pages of lists.
const KEPT_SNAPSHOTS: usize = 8;
const KEEP_SNAPSHOT: Duration = Duration::from_secs(75);

pub(crate) struct ResourceCache {
    kind: Arc<Kind>,
    observer: Option<Arc<dyn Observer>>,
    state: Mutex<State>,
    bases: Mutex<Bases>,
    /// Watchers that were too slow.
    dropped: AtomicU64,
}

struct State {
    objects: Snapshot,
    /// The revision that `objects` was last changed or filled at.
    revision: Revision,
    /// Everything up to here was there when it was filled.
    filled: Revision,
    ring: VecDeque<Arc<Happened>>,
    ring_bytes: usize,
    /// Events after this revision are all in the ring.
    ring_after: Revision,
    snapshots: VecDeque<(Instant, Revision, Snapshot)>,
    watchers: Watchers,
    damaged: Damaged,
    /// What happened since the objects began to be read for the first time; `None` once they were.
    since: Option<Vec<Late>>,
}

/// A change that came before what it changes.
struct Late {
    key: Arc<str>,
    value: Option<(Bytes, Integrity)>,
    revision: Revision,
}

/// Told of every change of a resource, in order, before it counts as applied.
pub(crate) trait Observer: Send + Sync + 'static {
    /// `None` where it was deleted.
    fn changed(&self, key: &str, object: Option<&Object>);
    /// Everything is to be seen anew.
    fn cleared(&self);
}

impl ResourceCache {
    pub(super) fn new(kind: Arc<Kind>) -> ResourceCache {
        let state = State {
            objects: Snapshot::new(),
            revision: 0,
            filled: 0,
            ring: VecDeque::new(),
            ring_bytes: 0,
            ring_after: 0,
            snapshots: VecDeque::new(),
            watchers: Watchers::default(),
            damaged: Damaged::new(),
            since: None,
        };
        ResourceCache {
            kind,
            observer: None,
            state: Mutex::new(state),
            bases: Mutex::default(),
            dropped: AtomicU64::new(0),
        }
    }

    /// A cache whose objects are still to come, by [`ResourceCache::reset`]; changes may be told before.
    pub(super) fn filling(kind: Arc<Kind>) -> ResourceCache {
        let cache = ResourceCache::new(kind);
        cache.state.lock().since = Some(Vec::new());
        cache
    }

    pub(super) fn observed_by(self, observer: Arc<dyn Observer>) -> ResourceCache {
        ResourceCache { observer: Some(observer), ..self }
    }

    /// The kind in whose version the objects are stored.
    pub(crate) fn kind(&self) -> &Arc<Kind> {
        &self.kind
    }

    /// Watchers that were dropped because they were too slow.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn folder(&self) -> &str {
        &self.kind.registry_folder
    }

    /// # Errors
    /// If it is stored and cannot be read: whoever takes that for gone would do harm.
    pub(crate) fn get(&self, key: &str) -> Result<Option<Arc<Entry>>, Unreadable> {
        let state = self.state.lock();
        if let Some(damage) = state.damaged.get_key_value(key) {
            return Err(Unreadable::new(&self.kind, std::iter::once(damage)));
        }
        Ok(state.objects.get(key).cloned())
    }

    /// All objects, and the revision of the last change among them.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub(crate) fn snapshot(&self) -> Result<(Revision, Snapshot), Unreadable> {
        self.snapshot_of(None)
    }

    /// The same, for who looks at one namespace only.
    pub(crate) fn snapshot_of(&self, namespace: Option<&str>) -> Result<(Revision, Snapshot), Unreadable> {
        let state = self.state.lock();
        self.check(&state, namespace)?;
        Ok((state.revision, state.objects.clone()))
    }

    /// How many objects there are, and about how large one is: the first stands for all.
    pub(crate) fn size(&self) -> (usize, usize) {
        let state = self.state.lock();
        let first = state.objects.values().next().map_or(0, |entry| entry.size());
        (state.objects.len(), first)
    }

    /// How many watchers are told of a change of any object.
    pub(crate) fn watching(&self) -> usize {
        self.state.lock().watchers.others.len()
    }

    /// The revision of the last change.
    pub(crate) fn revision(&self) -> Revision {
        self.state.lock().revision
    }

    /// What can be read, for who knows that it may not be all.
    pub(crate) fn readable(&self) -> Snapshot {
        self.state.lock().objects.clone()
    }

    pub(crate) fn damaged(&self) -> Damaged {
        self.state.lock().damaged.clone()
    }

    /// The refusal for one value.
    pub(crate) fn unreadable(&self, key: &str, damage: Damage) -> Unreadable {
        Unreadable::new(&self.kind, std::iter::once((&Arc::from(key), &damage)))
    }

    fn check(&self, state: &State, namespace: Option<&str>) -> Result<(), Unreadable> {
        let mut damaged = unreadable::within(&state.damaged, namespace).peekable();
        match damaged.peek() {
            None => Ok(()),
            Some(_) => Err(Unreadable::new(&self.kind, damaged)),
        }
    }

    /// Keeps the snapshot of a list that has more pages.
    pub(crate) fn keep_snapshot(&self, revision: Revision, snapshot: Snapshot) {
        let mut state = self.state.lock();
        state.drop_old_snapshots(Instant::now());
        if state.snapshots.iter().any(|(_, at, _)| *at == revision) {
            return;
        }
        if state.snapshots.len() == KEPT_SNAPSHOTS {
            state.snapshots.pop_front();
        }
        state.snapshots.push_back((Instant::now(), revision, snapshot));
    }

    pub(crate) fn kept_snapshot(&self, revision: Revision) -> Option<Snapshot> {
        let mut state = self.state.lock();
        state.drop_old_snapshots(Instant::now());
        state.snapshots.iter().find(|(_, at, _)| *at == revision).map(|(_, _, snapshot)| snapshot.clone())
    }

    /// Lets go of what was kept for a while and is not wanted any more, whether or not anything happens here.
    pub(super) fn tend(&self, now: Instant) {
        let mut state = self.state.lock();
        state.drop_old_snapshots(now);
        state.drop_old_events(now);
    }

    pub(crate) fn decode(
        &self,
        key: &str,
        value: &Bytes,
        integrity: Integrity,
        mod_revision: Revision,
    ) -> Result<(Entry, Object), Damage> {
        let entry = match integrity {
            Integrity::Sound => {
                let decoded = Entry::decode(&self.kind, key, value, mod_revision);
                decoded.map(|(entry, object)| (entry.packed(&self.bases), object))
            }
            Integrity::Damaged => Err("it is not what was written".to_owned()),
        };
        entry.map_err(|why| {
            tracing::error!(
                key = format!("{}{key}", self.kind.prefix(None)), why,
                "a stored value cannot be read; restore a backup, or delete it with ignoreStoreReadErrorWithClusterBreakingPotential"
            );
            Damage { mod_revision, why: why.into() }
        })
    }

    /// Starts over from `entries`. Every watcher is dropped: it may have missed something.
    pub(super) fn reset(&self, entries: Vec<Entry>, damaged: Damaged, revision: Revision) {
        let mut state = self.state.lock();
        if let Some(observer) = &self.observer {
            observer.cleared();
            entries.iter().for_each(|entry| observer.changed(&entry.key, Some(&entry.parse())));
        }
        state.objects = entries.into_iter().map(|e| (e.key.clone(), Arc::new(e))).collect();
        state.damaged = damaged;
        state.revision = revision;
        state.filled = revision;
        state.ring.clear();
        state.ring_bytes = 0;
        state.ring_after = revision;
        state.snapshots.clear();
        state.watchers = Watchers::default();
        for late in state.since.take().into_iter().flatten().filter(|late| late.revision > revision) {
            let value = late.value.as_ref().map(|(value, integrity)| (value, *integrity));
            let decoded = value
                .map(|(value, integrity)| self.decode(&late.key, value, integrity, late.revision))
                .transpose();
            self.take_in(&mut state, &late.key, decoded, late.revision);
        }
    }

    /// Applies one change of the store and hands it to the watchers.
    pub(super) fn apply(&self, key: &str, value: Option<(&Bytes, Integrity)>, revision: Revision) {
        let mut state = self.state.lock();
        if let Some(since) = &mut state.since {
            let value = value.map(|(value, integrity)| (value.clone(), integrity));
            return since.push(Late { key: key.into(), value, revision });
        }
        if revision <= state.filled {
            return;
        }
        drop(state);
        let decoded =
            value.map(|(value, integrity)| self.decode(key, value, integrity, revision)).transpose();
        self.take_in(&mut self.state.lock(), key, decoded, revision);
    }

    fn take_in(
        &self,
        state: &mut State,
        key: &str,
        decoded: Result<Option<(Entry, Object)>, Damage>,
        revision: Revision,
    ) {
        let (entry, object) = match decoded {
            Ok(decoded) => decoded.map(|(entry, object)| (Arc::new(entry), object)).unzip(),
            Err(damage) => return self.lose(state, key, damage),
        };
        state.damaged.remove(key);
        if let Some(observer) = &self.observer {
            observer.changed(key, object.as_ref());
        }
        let previous = state.objects.get(key).cloned();
        let change = match (entry, &previous) {
            (Some(entry), None) => Change::new(ChangeKind::Added, entry),
            (Some(entry), Some(_)) => Change::new(ChangeKind::Modified, entry),
            (None, Some(previous)) => {
                Change::new(ChangeKind::Deleted, Arc::new(previous.at_revision(&self.kind, revision)))
            }
            (None, None) => return,
        };
        match change.kind {
            ChangeKind::Deleted => state.objects.remove(key),
            _ => state.objects.insert(change.entry.key.clone(), change.entry.clone()),
        };
        state.revision = revision;
        let (left, entered) = (OnceLock::new(), OnceLock::new());
        let happened = Arc::new(Happened { revision, at: Instant::now(), change, previous, left, entered });
        let kind = self.kind.clone();
        let n_dropped = state.watchers.send(&happened, &kind);
        self.dropped.fetch_add(n_dropped, Ordering::Relaxed);
        state.remember(happened);
    }

    /// Notes that a value can no longer be read. Who watches asks again, and is told.
    fn lose(&self, state: &mut State, key: &str, damage: Damage) {
        state.revision = damage.mod_revision;
        state.objects.remove(key);
        state.ring.clear();
        state.ring_bytes = 0;
        state.ring_after = damage.mod_revision;
        state.watchers = Watchers::default();
        state.damaged.insert(key.into(), damage);
        if let Some(observer) = &self.observer {
            observer.changed(key, None);
        }
    }

    /// A watch of what happens after `after`; `None` starts with all present objects, in order of their keys.
    ///
    /// # Errors
    /// 410 if events after `after` are no longer known; 500 if something that it would begin with cannot be read.
    pub(crate) fn watch(&self, filter: Filter, after: Option<Revision>) -> Result<Watcher, Status> {
        let (sender, changes) = mpsc::channel(WATCHER_CHANGES);
        let mut state = self.state.lock();
        let begins = match after {
            None => {
                self.check(&state, filter.namespace.as_deref())?;
                Begins::With(state.objects.clone())
            }
            Some(after) if after < state.ring_after => {
                let oldest = state.ring_after;
                return Err(Status::expired(format!("too old resource version: {after} ({oldest})")));
            }
            Some(after) => {
                let from = state.ring.partition_point(|happened| happened.revision <= after);
                Begins::After(state.ring.range(from..).cloned().collect())
            }
        };
        // A watch from the future waits for what comes after it.
        let (revision, after) = (state.revision, after.unwrap_or(state.revision));
        let single_key = filter.single_key(self.kind.is_namespaced());
        state.watchers.add(single_key, Registered { filter: filter.clone(), after, sender });
        drop(state);
        // Filtered only now: thousands that come back at once are not to hold up what happens.
        let backlog = match begins {
            Begins::With(objects) => {
                let of_namespace = filter.namespace.as_ref().map(|namespace| format!("{namespace}/"));
                let from = of_namespace.as_deref().unwrap_or_default();
                let within = objects.range::<_, str>((Bound::Included(from), Bound::Unbounded));
                let within = within.map(|(_, entry)| entry).take_while(|entry| entry.key.starts_with(from));
                let matching = within.filter(|entry| filter.matches(entry));
                matching.map(|entry| Change::new(ChangeKind::Added, entry.clone())).collect()
            }
            Begins::After(ring) => {
                ring.iter().filter_map(|happened| seen(happened, &filter, &self.kind)).collect()
            }
        };
        Ok(Watcher { changes, backlog, revision })
    }
}

#[cfg(test)]
impl ResourceCache {
    /// How many watchers are held that have no index, and how often all were looked at.
    pub(super) fn watchers(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.watchers.others.len(), state.watchers.n_sweeps)
    }

    /// How many snapshots and events are kept, and what the events take.
    pub(super) fn kept(&self) -> (usize, usize, usize) {
        let state = self.state.lock();
        (state.snapshots.len(), state.ring.len(), state.ring_bytes)
    }
}

/// What a watch begins with.
enum Begins {
    With(Snapshot),
    After(Vec<Arc<Happened>>),
}

impl State {
    fn remember(&mut self, happened: Arc<Happened>) {
        let now = happened.at;
        self.ring_bytes += happened.bytes();
        self.ring.push_back(happened);
        self.drop_old_events(now);
    }

    fn drop_old_events(&mut self, now: Instant) {
        while let Some(oldest) = self.ring.front() {
            let is_fresh = now.saturating_duration_since(oldest.at) < RING_FRESH;
            let keep = self.ring.len() <= RING_EVENTS
                && self.ring_bytes <= if is_fresh { RING_BYTES_MAX } else { RING_BYTES };
            if keep {
                return;
            }
            self.ring_bytes -= oldest.bytes();
            self.ring_after = oldest.revision;
            self.ring.pop_front();
        }
    }

    fn drop_old_snapshots(&mut self, now: Instant) {
        let is_old = |at: Instant| now.saturating_duration_since(at) > KEEP_SNAPSHOT;
        while self.snapshots.front().is_some_and(|(at, _, _)| is_old(*at)) {
            self.snapshots.pop_front();
        }
    }
}

/// What a change is to someone who only sees what matches: an object that starts to match is added, one that
/// stops is deleted.
fn seen(happened: &Happened, filter: &Filter, kind: &Kind) -> Option<Change> {
    let change = &happened.change;
    let before = happened.previous.as_deref().is_some_and(|previous| filter.matches(previous));
    let after = change.kind != ChangeKind::Deleted && filter.matches(&change.entry);
    match (before, after) {
        (false, false) => None,
        (true, true) => Some(change.clone()),
        (false, true) if change.kind == ChangeKind::Added => Some(change.clone()),
        (false, true) => {
            let entered = || Change::new(ChangeKind::Added, change.entry.clone());
            Some(happened.entered.get_or_init(entered).clone())
        }
        (true, false) if change.kind == ChangeKind::Deleted => Some(change.clone()),
        (true, false) => {
            let previous = happened.previous.as_ref()?;
            let left = || {
                let old = previous.at_revision(kind, happened.revision);
                Change::new(ChangeKind::Deleted, Arc::new(old))
            };
            Some(happened.left.get_or_init(left).clone())
        }
    }
}

struct Registered {
    filter: Filter,
    /// Nothing up to this revision is sent.
    after: Revision,
    sender: mpsc::Sender<Change>,
}

/// The watchers, indexed by what they ask for, so that a pod's change does not visit every node's watch.
#[derive(Default)]
struct Watchers {
    by_key: HashMap<String, Vec<Registered>>,
    by_node: HashMap<String, Vec<Registered>>,
    others: Vec<Registered>,
    /// How many may still be added before those that are gone are looked for.
    until_sweep: usize,
    #[cfg(test)]
    n_sweeps: usize,
}

impl Watchers {
    fn add(&mut self, single_key: Option<String>, watcher: Registered) {
        match self.until_sweep.checked_sub(1) {
            Some(left) => self.until_sweep = left,
            // As many as there are: each that is added pays for looking at one.
            None => self.until_sweep = self.sweep().max(64),
        }
        if let Some(key) = single_key {
            self.by_key.entry(key).or_default().push(watcher);
        } else if let Some(node) = watcher.filter.node_name() {
            self.by_node.entry(node.to_owned()).or_default().push(watcher);
        } else {
            self.others.push(watcher);
        }
    }

    /// Forgets watchers whose clients have gone and whose objects never change. How many are left.
    fn sweep(&mut self) -> usize {
        #[cfg(test)]
        {
            self.n_sweeps += 1;
        }
        let mut left = 0;
        let mut retain = |list: &mut Vec<Registered>| {
            list.retain(|w| !w.sender.is_closed());
            left += list.len();
            !list.is_empty()
        };
        self.by_key.retain(|_, list| retain(list));
        self.by_node.retain(|_, list| retain(list));
        retain(&mut self.others);
        left
    }

    /// How many were dropped because they were too slow.
    fn send(&mut self, happened: &Happened, kind: &Kind) -> u64 {
        let entry = &happened.change.entry;
        let mut n_dropped = send_to(&mut self.others, happened, kind);
        if let Some(list) = self.by_key.get_mut(&*entry.key) {
            n_dropped += send_to(list, happened, kind);
        }
        let node = entry.field("spec.nodeName");
        if let Some(list) = self.by_node.get_mut(node) {
            n_dropped += send_to(list, happened, kind);
        }
        let previous = happened.previous.as_ref().map_or("", |p| p.field("spec.nodeName"));
        if previous != node
            && let Some(list) = self.by_node.get_mut(previous)
        {
            n_dropped += send_to(list, happened, kind);
        }
        n_dropped
    }
}

/// Sends to all that see the change, and forgets those that are gone or too slow; how many were the latter.
fn send_to(watchers: &mut Vec<Registered>, happened: &Happened, kind: &Kind) -> u64 {
    let mut n_dropped = 0;
    watchers.retain(|watcher| {
        if happened.revision <= watcher.after {
            return true;
        }
        match seen(happened, &watcher.filter, kind) {
            Some(change) => match watcher.sender.try_send(change) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    n_dropped += 1;
                    false
                }
                Err(TrySendError::Closed(_)) => false,
            },
            None => true,
        }
    });
    n_dropped
}
