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
        let caches =
            Caches::start(&kinds, store.clone(), CancellationToken::new()).await.expect("the caches fill");
        Fixture { store, caches, kinds, _folder: folder }
    }

    fn pods(&self) -> &Arc<ResourceCache> {
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
    let frames: Vec<_> = changes.iter().map(|change| change.frame().as_ptr()).collect();
    assert!(frames.windows(2).all(|pair| pair[0] == pair[1]));
    let kind = f.pods().kind();
    let frames: Vec<_> = changes.iter().map(|change| change.protobuf_frame(kind).as_ptr()).collect();
    assert!(frames.windows(2).all(|pair| pair[0] == pair[1]), "protobuf too");
    let cached = f.pods().get("a/x").expect("the object");
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
async fn a_watch_from_before_the_ring_is_expired() {
    let f = Fixture::new().await;
    let revision = f.put("x", json!({"big": "x".repeat(60)}), "").await;
    let filled = Caches::start(&f.kinds, f.store.clone(), CancellationToken::new()).await.expect("fills");
    let kind = f.kinds.by_resource("", "v1", "pods").expect("pods");
    let refused = filled.of(kind).expect("cached").watch(Filter::default(), Some(revision - 1));
    let status = refused.map(|_| ()).expect_err("too old");
    assert_eq!((status.code, status.reason), (410, "Expired"));
    assert_eq!(status.message, format!("too old resource version: {} ({revision})", revision - 1));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_future_ends() {
    let caches =
        Caches { store: Arc::new(NoStore), by_folder: HashMap::new(), applied: watch::Sender::new(7) };
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
