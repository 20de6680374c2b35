//! The cache of one resource: snapshot, recent events, watchers.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use imbl::OrdMap;
use parking_lot::Mutex;
use skiff_api::{Kind, Status};
use tokio::sync::mpsc;

use super::Entry;
use super::watcher::{Change, ChangeKind, Filter, Happened, Watcher};
use crate::store::Revision;

/// All objects by key, as of one revision. Cloning it shares it.
pub(crate) type Snapshot = OrdMap<Arc<str>, Arc<Entry>>;

/// Recent events are kept up to this many and this many bytes, whichever is reached first.
const RING_EVENTS: usize = 4096;
const RING_BYTES: usize = 4 << 20;
/// Changes that may wait for one watcher before it counts as too slow.
const WATCHER_CHANGES: usize = 1024;
/// Snapshots kept for the next pages of lists.
const KEPT_SNAPSHOTS: usize = 8;
const KEEP_SNAPSHOT: Duration = Duration::from_secs(75);

pub(crate) struct ResourceCache {
    kind: Arc<Kind>,
    state: Mutex<State>,
}

struct State {
    objects: Snapshot,
    /// The revision that `objects` was last changed or filled at.
    revision: Revision,
    ring: VecDeque<Arc<Happened>>,
    ring_bytes: usize,
    /// Events after this revision are all in the ring.
    ring_after: Revision,
    snapshots: VecDeque<(Instant, Revision, Snapshot)>,
    watchers: Watchers,
}

impl ResourceCache {
    pub(super) fn new(kind: Arc<Kind>) -> ResourceCache {
        let state = State {
            objects: Snapshot::new(),
            revision: 0,
            ring: VecDeque::new(),
            ring_bytes: 0,
            ring_after: 0,
            snapshots: VecDeque::new(),
            watchers: Watchers::default(),
        };
        ResourceCache { kind, state: Mutex::new(state) }
    }

    /// The kind in whose version the objects are stored.
    pub(crate) fn kind(&self) -> &Arc<Kind> {
        &self.kind
    }

    pub(super) fn folder(&self) -> &str {
        &self.kind.registry_folder
    }

    pub(crate) fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.state.lock().objects.get(key).cloned()
    }

    /// All objects, and the revision of the last change among them.
    pub(crate) fn snapshot(&self) -> (Revision, Snapshot) {
        let state = self.state.lock();
        (state.revision, state.objects.clone())
    }

    /// Keeps the snapshot of a list that has more pages.
    pub(crate) fn keep_snapshot(&self, revision: Revision, snapshot: Snapshot) {
        let mut state = self.state.lock();
        state.drop_old_snapshots();
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
        state.drop_old_snapshots();
        state.snapshots.iter().find(|(_, at, _)| *at == revision).map(|(_, _, snapshot)| snapshot.clone())
    }

    pub(crate) fn decode(&self, key: &str, value: &Bytes, mod_revision: Revision) -> Option<Entry> {
        let entry = Entry::decode(&self.kind, key, value, mod_revision);
        if entry.is_none() {
            tracing::error!(key, folder = self.folder(), "the stored value is no object; it is left out");
        }
        entry
    }

    /// Starts over from `entries`. Every watcher is dropped: it may have missed something.
    pub(super) fn reset(&self, entries: Vec<Entry>, revision: Revision) {
        let mut state = self.state.lock();
        state.objects = entries.into_iter().map(|e| (e.key.clone(), Arc::new(e))).collect();
        state.revision = revision;
        state.ring.clear();
        state.ring_bytes = 0;
        state.ring_after = revision;
        state.snapshots.clear();
        state.watchers = Watchers::default();
    }

    /// Applies one change of the store and hands it to the watchers.
    pub(super) fn apply(&self, key: &str, value: Option<&Bytes>, revision: Revision) {
        let entry = match value {
            Some(value) => match self.decode(key, value, revision) {
                Some(entry) => Some(Arc::new(entry)),
                None => return,
            },
            None => None,
        };
        let mut state = self.state.lock();
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
        let happened = Arc::new(Happened { revision, change, previous, left, entered });
        let kind = self.kind.clone();
        state.watchers.send(&happened, &kind);
        state.remember(happened);
    }

    /// A watch of what happens after `after`; `None` starts with all present objects, in order of their keys.
    ///
    /// # Errors
    /// 410 if events after `after` are no longer known.
    pub(crate) fn watch(&self, filter: Filter, after: Option<Revision>) -> Result<Watcher, Status> {
        let mut state = self.state.lock();
        let backlog = match after {
            None => {
                let matching = state.objects.values().filter(|entry| filter.matches(entry));
                matching.map(|entry| Change::new(ChangeKind::Added, entry.clone())).collect()
            }
            Some(after) if after < state.ring_after => {
                let oldest = state.ring_after;
                return Err(Status::expired(format!("too old resource version: {after} ({oldest})")));
            }
            Some(after) => {
                let from = state.ring.partition_point(|happened| happened.revision <= after);
                state.ring.range(from..).filter_map(|happened| seen(happened, &filter, &self.kind)).collect()
            }
        };
        let (sender, changes) = mpsc::channel(WATCHER_CHANGES);
        // A watch from the future waits for what comes after it.
        let (revision, after) = (state.revision, after.unwrap_or(state.revision));
        let single_key = filter.single_key(self.kind.is_namespaced());
        state.watchers.add(single_key, Registered { filter, after, sender });
        Ok(Watcher { changes, backlog, revision })
    }
}

impl State {
    fn remember(&mut self, happened: Arc<Happened>) {
        self.ring_bytes += happened.change.entry.json.len();
        self.ring.push_back(happened);
        while self.ring.len() > RING_EVENTS || self.ring_bytes > RING_BYTES {
            let Some(oldest) = self.ring.pop_front() else { return };
            self.ring_bytes -= oldest.change.entry.json.len();
            self.ring_after = oldest.revision;
        }
    }

    fn drop_old_snapshots(&mut self) {
        while self.snapshots.front().is_some_and(|(at, _, _)| at.elapsed() > KEEP_SNAPSHOT) {
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
}

impl Watchers {
    fn add(&mut self, single_key: Option<String>, watcher: Registered) {
        self.sweep();
        if let Some(key) = single_key {
            self.by_key.entry(key).or_default().push(watcher);
        } else if let Some(node) = watcher.filter.node_name() {
            self.by_node.entry(node.to_owned()).or_default().push(watcher);
        } else {
            self.others.push(watcher);
        }
    }

    /// Forgets watchers whose clients have gone and whose objects never change.
    fn sweep(&mut self) {
        let retain = |list: &mut Vec<Registered>| {
            list.retain(|w| !w.sender.is_closed());
            !list.is_empty()
        };
        self.by_key.retain(|_, list| retain(list));
        self.by_node.retain(|_, list| retain(list));
        retain(&mut self.others);
    }

    fn send(&mut self, happened: &Happened, kind: &Kind) {
        let entry = &happened.change.entry;
        send_to(&mut self.others, happened, kind);
        if let Some(list) = self.by_key.get_mut(&*entry.key) {
            send_to(list, happened, kind);
        }
        let node = entry.field("spec.nodeName");
        if let Some(list) = self.by_node.get_mut(node) {
            send_to(list, happened, kind);
        }
        let previous = happened.previous.as_ref().map_or("", |p| p.field("spec.nodeName"));
        if previous != node
            && let Some(list) = self.by_node.get_mut(previous)
        {
            send_to(list, happened, kind);
        }
    }
}

/// Sends to all that see the change, and forgets those that are gone or too slow.
fn send_to(watchers: &mut Vec<Registered>, happened: &Happened, kind: &Kind) {
    watchers.retain(|watcher| {
        if happened.revision <= watcher.after {
            return true;
        }
        match seen(happened, &watcher.filter, kind) {
            Some(change) => watcher.sender.try_send(change).is_ok(),
            None => true,
        }
    });
}
