use std::sync::Arc;

use serde_json::{Value, json};
use skiff_api::{FieldSelector, Kinds, LabelSelector};
use tokio_util::sync::CancellationToken;

use super::watcher::ChangeKind;
use super::*;
use crate::store::{Expect, SqliteOptions, SqliteStore, Write, Written};

struct Fixture {
    store: Arc<dyn Store>,
    caches: Arc<Caches>,
    kinds: Kinds,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Fixture {
        let folder = tempfile::tempdir().expect("a folder");
        let store = SqliteStore::open(SqliteOptions::new(folder.path().join("state.db"))).expect("opens");
        let store: Arc<dyn Store> = Arc::new(store);
        let kinds = Kinds::builtin();
        let caches = Caches::start(&kinds, store.clone(), &[], CancellationToken::new())
            .await
            .expect("the caches fill");
        Fixture { store, caches, kinds, _folder: folder }
    }

    fn pods(&self) -> Arc<ResourceCache> {
        let kind = self.kinds.by_resource("", "v1", "pods").expect("pods are known");
        self.caches.of(kind).expect("pods are cached")
    }

    async fn put(&self, name: &str, labels: Value, node: &str) -> Revision {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "a", "labels": labels},
            "spec": {"nodeName": node},
        });
        let write = Write::put(format!("/registry/pods/a/{name}"), pod.to_string(), Expect::Any);
        self.applied(self.store.write(write).await.expect("writes")).await
    }

    async fn delete(&self, name: &str) -> Revision {
        let write = Write::delete(format!("/registry/pods/a/{name}"), Expect::Any);
        self.applied(self.store.write(write).await.expect("deletes")).await
    }

    async fn applied(&self, written: Written) -> Revision {
        let Written::Done { revision } = written else { panic!("{written:?}") };
        self.caches.wait_for(revision).await.expect("the cache follows");
        revision
    }
}

fn labelled(selector: &str) -> Filter {
    Filter { labels: LabelSelector::parse(selector).expect("a selector"), ..Filter::default() }
}

fn fields(selector: &str) -> Filter {
    Filter { fields: FieldSelector::parse(selector).expect("a selector"), ..Filter::default() }
}

fn drain(watcher: &mut Watcher) -> Vec<(ChangeKind, String, Revision)> {
    let mut seen: Vec<Change> = std::mem::take(&mut watcher.backlog);
    while let Ok(change) = watcher.changes.try_recv() {
        seen.push(change);
    }
    seen.iter().map(|c| (c.kind, c.entry.name().to_owned(), c.entry.mod_revision)).collect()
}

#[tokio::test]
async fn an_object_that_starts_to_match_is_added_and_one_that_stops_is_deleted() {
    use ChangeKind::{Added, Deleted, Modified};
    let f = Fixture::new().await;
    let start = f.put("x", json!({"app": "other"}), "").await;
    let mut live = f.pods().watch(labelled("app=web"), Some(start)).expect("watches");
    let entered = f.put("x", json!({"app": "web"}), "").await;
    let changed = f.put("x", json!({"app": "web", "more": "1"}), "").await;
    let left = f.put("x", json!({"app": "other"}), "").await;
    f.delete("x").await;
    let expected =
        [(Added, "x".to_owned(), entered), (Modified, "x".into(), changed), (Deleted, "x".into(), left)];
    assert_eq!(drain(&mut live), expected);
    // The same out of the ring.
    let mut replayed = f.pods().watch(labelled("app=web"), Some(start)).expect("watches");
    assert_eq!(drain(&mut replayed), expected);
}

#[tokio::test]
async fn a_deleted_object_is_sent_as_it_last_was_with_the_deletions_revision() {
    let f = Fixture::new().await;
    let start = f.put("x", json!({"app": "web"}), "").await;
    let mut watcher = f.pods().watch(Filter::default(), Some(start)).expect("watches");
    let deleted = f.delete("x").await;
    let change = watcher.changes.try_recv().expect("an event");
    assert_eq!(change.kind, ChangeKind::Deleted);
    let object = change.entry.parse();
    assert_eq!(object["metadata"]["resourceVersion"], deleted.to_string());
    assert_eq!(object["metadata"]["labels"]["app"], "web");
}

#[tokio::test]
async fn all_watchers_share_one_encoded_event() {
    let f = Fixture::new().await;
    let start = f.put("y", json!({}), "").await;
    let mut watchers: Vec<_> =
        (0..3).map(|_| f.pods().watch(Filter::default(), Some(start)).expect("watches")).collect();
    f.put("x", json!({}), "").await;
    let changes: Vec<_> = watchers.iter_mut().map(|w| w.changes.try_recv().expect("an event")).collect();
    let frames: Vec<_> = changes.iter().map(|change| change.frame(Detail::Whole).as_ptr()).collect();
    assert!(frames.windows(2).all(|pair| pair[0] == pair[1]));
    let pods = f.pods();
    let kind = pods.kind();
    let frames: Vec<_> = changes.iter().map(|change| change.protobuf_frame(kind).as_ptr()).collect();
    assert!(frames.windows(2).all(|pair| pair[0] == pair[1]), "protobuf too");
    let cached = f.pods().get("a/x").expect("is readable").expect("the object");
    assert_eq!(cached.protobuf(kind).as_ptr(), changes[0].entry.protobuf(kind).as_ptr(), "lists too");
}

#[tokio::test]
async fn a_node_sees_a_pod_from_its_binding_on() {
    let f = Fixture::new().await;
    let start = f.put("x", json!({}), "").await;
    let mut one = f.pods().watch(fields("spec.nodeName=one"), Some(start)).expect("watches");
    let mut two = f.pods().watch(fields("spec.nodeName=two"), Some(start)).expect("watches");
    let bound = f.put("x", json!({}), "one").await;
    let deleted = f.delete("x").await;
    assert_eq!(
        drain(&mut one),
        [(ChangeKind::Added, "x".to_owned(), bound), (ChangeKind::Deleted, "x".into(), deleted)]
    );
    assert_eq!(drain(&mut two), []);
}

#[tokio::test]
async fn a_watch_of_one_object_sees_only_that() {
    let f = Fixture::new().await;
    let start = f.put("y", json!({}), "").await;
    let filter = Filter { namespace: Some("a".into()), ..fields("metadata.name=x") };
    let mut watcher = f.pods().watch(filter, Some(start)).expect("watches");
    let revision = f.put("x", json!({}), "").await;
    f.put("y", json!({"changed": "1"}), "").await;
    assert_eq!(drain(&mut watcher), [(ChangeKind::Added, "x".to_owned(), revision)]);
}

#[tokio::test]
async fn a_watcher_that_is_too_slow_is_dropped_and_others_are_not() {
    let f = Fixture::new().await;
    let start = f.put("x", json!({}), "").await;
    let mut slow = f.pods().watch(Filter::default(), Some(start)).expect("watches");
    let mut last = start;
    for n in 0..1100 {
        let pod = json!({"metadata": {"name": "x", "namespace": "a", "labels": {"n": n.to_string()}}});
        let write = Write::put("/registry/pods/a/x", pod.to_string(), Expect::Any);
        let Written::Done { revision } = f.store.write(write).await.expect("writes") else { panic!("no") };
        last = revision;
    }
    f.caches.wait_for(last).await.expect("the cache follows");
    assert_eq!(drain(&mut slow).len(), 1024);
    assert!(slow.changes.is_closed());
    let mut again = f.pods().watch(Filter::default(), Some(start)).expect("may watch again");
    assert_eq!(drain(&mut again).len(), 1100);
}

#[tokio::test]
async fn what_was_kept_for_a_while_goes_though_nothing_happens() {
    let f = Fixture::new().await;
    let large = "x".repeat(1 << 20);
    for name in ["a", "b", "c", "d", "e", "f"] {
        f.put(name, json!({}), &large).await;
    }
    let (revision, snapshot) = f.pods().snapshot().expect("readable");
    f.pods().keep_snapshot(revision, snapshot);
    let (kept, pods) = (f.pods().kept(), f.pods());
    assert!(kept.0 == 1 && kept.1 == 6 && kept.2 > 6 << 20, "{kept:?}");
    pods.tend(Instant::now() + Duration::from_secs(60));
    assert_eq!(pods.kept(), kept, "too early");
    pods.tend(Instant::now() + Duration::from_secs(80));
    let (snapshots, events, bytes) = pods.kept();
    assert!(snapshots == 0 && events == 3 && bytes < 4 << 20, "{snapshots} {events} {bytes}");
}

#[tokio::test]
async fn the_ring_counts_the_former_state_too() {
    let f = Fixture::new().await;
    f.put("x", json!({}), &"x".repeat(1 << 20)).await;
    let (_, _, before) = f.pods().kept();
    f.put("x", json!({}), "small").await;
    let (_, _, after) = f.pods().kept();
    assert!(after - before > 1 << 20, "{before} {after}");
}

#[tokio::test]
async fn a_watch_from_before_the_ring_is_expired() {
    let f = Fixture::new().await;
    let revision = f.put("x", json!({"big": "x".repeat(60)}), "").await;
    let filled =
        Caches::start(&f.kinds, f.store.clone(), &[], CancellationToken::new()).await.expect("fills");
    let kind = f.kinds.by_resource("", "v1", "pods").expect("pods");
    let refused = filled.of(kind).expect("cached").watch(Filter::default(), Some(revision - 1));
    let status = refused.map(|_| ()).expect_err("too old");
    assert_eq!((status.code, status.reason), (410, "Expired"));
    assert_eq!(status.message, format!("too old resource version: {} ({revision})", revision - 1));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_future_ends() {
    let caches = Caches {
        store: Arc::new(NoStore),
        folders: RwLock::default(),
        fills: tokio::sync::Mutex::default(),
        applied: watch::Sender::new(7),
    };
    let status = caches.wait_for(9).await.expect_err("never comes");
    assert_eq!(status.code, 504);
    assert!(status.message.contains("Too large resource version: 9, current: 7"), "{}", status.message);
}

/// For what needs a store and never asks it.
struct NoStore;

#[async_trait::async_trait]
impl Store for NoStore {
    async fn revision(&self) -> Result<Revision, StoreError> {
        Err(StoreError::Closed)
    }
    async fn compacted(&self) -> Result<Revision, StoreError> {
        Err(StoreError::Closed)
    }
    async fn get(&self, _: &str) -> Result<Option<crate::store::KeyValue>, StoreError> {
        Err(StoreError::Closed)
    }
    async fn range(&self, _: Range) -> Result<crate::store::Ranged, StoreError> {
        Err(StoreError::Closed)
    }
    async fn write(&self, _: Write) -> Result<Written, StoreError> {
        Err(StoreError::Closed)
    }
    async fn watch(&self, _: &str, _: Revision) -> Result<crate::store::Watch, StoreError> {
        Err(StoreError::Closed)
    }
    async fn compact(&self, _: Revision) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    async fn size_bytes(&self) -> Result<u64, StoreError> {
        Err(StoreError::Closed)
    }
    async fn close(&self) {}
}

/// A store whose watches break, and whose ranges fail, when told to.
struct Breaking {
    inner: SqliteStore,
    /// What the running watch is told to end with.
    breaks: tokio::sync::broadcast::Sender<StoreError>,
    /// Where each watch began.
    began: parking_lot::Mutex<Vec<Revision>>,
    failing_ranges: std::sync::atomic::AtomicUsize,
}

#[async_trait::async_trait]
impl Store for Breaking {
    async fn revision(&self) -> Result<Revision, StoreError> {
        self.inner.revision().await
    }
    async fn compacted(&self) -> Result<Revision, StoreError> {
        self.inner.compacted().await
    }
    async fn get(&self, key: &str) -> Result<Option<crate::store::KeyValue>, StoreError> {
        self.inner.get(key).await
    }
    async fn range(&self, range: Range) -> Result<crate::store::Ranged, StoreError> {
        use std::sync::atomic::Ordering::SeqCst;
        if self.failing_ranges.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(StoreError::Overloaded);
        }
        self.inner.range(range).await
    }
    async fn write(&self, write: Write) -> Result<Written, StoreError> {
        self.inner.write(write).await
    }
    async fn watch(&self, prefix: &str, after: Revision) -> Result<crate::store::Watch, StoreError> {
        self.began.lock().push(after);
        let (mut watch, mut breaks) = (self.inner.watch(prefix, after).await?, self.breaks.subscribe());
        let (out, batches) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                let item = tokio::select! {
                    item = watch.next() => item,
                    broken = breaks.recv() => broken.ok().map(Err),
                };
                let Some(item) = item else { return };
                let ends = item.is_err();
                if out.send(item).await.is_err() || ends {
                    return;
                }
            }
        });
        Ok(crate::store::Watch { batches })
    }
    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.inner.compact(revision).await
    }
    async fn size_bytes(&self) -> Result<u64, StoreError> {
        self.inner.size_bytes().await
    }
    async fn close(&self) {
        self.inner.close().await;
    }
}

async fn breaking() -> (Fixture, Arc<Breaking>) {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = SqliteStore::open(SqliteOptions::new(folder.path().join("state.db"))).expect("opens");
    let (breaks, _) = tokio::sync::broadcast::channel(4);
    let (began, failing_ranges) = Default::default();
    let breaking = Arc::new(Breaking { inner, breaks, began, failing_ranges });
    let (store, kinds) = (breaking.clone() as Arc<dyn Store>, Kinds::builtin());
    let caches = Caches::start(&kinds, store.clone(), &[], CancellationToken::new()).await.expect("fills");
    (Fixture { store, caches, kinds, _folder: folder }, breaking)
}

#[tokio::test]
async fn a_broken_watch_of_the_store_is_taken_up_where_it_ended() {
    let (f, breaking) = breaking().await;
    let first = f.put("x", json!({}), "").await;
    let mut watcher = f.pods().watch(Filter::default(), Some(first)).expect("watches");
    for _ in 0..3 {
        breaking.breaks.send(StoreError::Overloaded).expect("a watch runs");
        f.put("x", json!({"again": "1"}), "").await;
    }
    let seen = drain(&mut watcher);
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(seen.windows(2).all(|pair| pair[0].2 < pair[1].2), "each once and in order: {seen:?}");
    assert!(!watcher.changes.is_closed(), "nobody has to watch again");
    assert!(breaking.began.lock()[1..].iter().all(|after| *after >= first));
}

#[tokio::test]
async fn a_cache_never_goes_back_while_it_cannot_be_filled_anew() {
    let (f, breaking) = breaking().await;
    f.put("x", json!({"n": "1"}), "").await;
    let last = f.put("x", json!({"n": "2"}), "").await;
    breaking.failing_ranges.store(2, std::sync::atomic::Ordering::SeqCst);
    breaking.breaks.send(StoreError::Compacted { requested: 1, compacted: 2 }).expect("a watch runs");
    // What is written meanwhile is there once the cache is filled.
    let newer = f.put("y", json!({}), "").await;
    let began = breaking.began.lock().clone();
    assert_eq!(began.len(), 2, "no watch before all was read: {began:?}");
    assert!(began[1] >= last && newer > last);
    let x = f.pods().get("a/x").expect("readable").expect("is there");
    assert_eq!(x.label("n"), Some("2"));
}

#[tokio::test]
async fn a_client_that_comes_back_soon_finds_what_it_missed_however_large() {
    let f = Fixture::new().await;
    let start = f.put("x", json!({}), "").await;
    let big = json!({"big": "x".repeat(100_000)});
    for _ in 0..60 {
        f.put("x", big.clone(), "").await;
    }
    let mut again = f.pods().watch(Filter::default(), Some(start)).expect("is not too late");
    assert_eq!(drain(&mut again).len(), 60);
}

#[tokio::test]
async fn watchers_that_left_are_forgotten_without_looking_at_all_each_time() {
    let f = Fixture::new().await;
    let start = f.put("x", json!({}), "").await;
    let stay: Vec<_> =
        (0..200).map(|_| f.pods().watch(Filter::default(), Some(start)).expect("watches")).collect();
    for _ in 0..5000 {
        drop(f.pods().watch(Filter::default(), Some(start)).expect("watches"));
    }
    let (held, sweeps) = f.pods().watchers();
    assert!(held <= 2 * stay.len() + 64, "{held} are held");
    assert!(sweeps <= 40, "{sweeps} times all were looked at");
}
