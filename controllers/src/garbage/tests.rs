use http::Method;

use super::*;
use crate::testing::{Asked, ScriptedApi, discovery};

fn reference(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": name, "blockOwnerDeletion": true})
}

fn meta(kind: &str, name: &str, change: Value) -> Meta {
    let mut object = json!({"apiVersion": "v1", "kind": kind,
        "metadata": {"name": name, "namespace": "d", "uid": name, "resourceVersion": "7"}});
    for (field, value) in change.as_object().unwrap() {
        object["metadata"][field] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn served(group: &str, plural: &str) -> Arc<ServedResource> {
    let resources = discovery().now().unwrap();
    resources.preferred().find(|r| r.group == group && r.plural == plural).unwrap().clone()
}

fn without(uid: &str, owner: &str) -> Value {
    Change::LetGo(vec![owner.into()]).strategic(uid, &[])
}

struct Cluster {
    api: ScriptedApi,
    collector: Collector,
}

/// A collector that has seen these objects, on an API that holds them.
fn cluster(objects: Vec<(&str, Meta)>) -> Cluster {
    let seen = Arc::new(Seen {
        graph: Mutex::default(),
        deletions: Deletions::default(),
        queue: WorkQueue::default(),
        unlisted: watch_channel::Sender::default(),
    });
    for (plural, object) in &objects {
        let group = if *plural == "pods" { "" } else { "apps" };
        let kind = served(group, plural);
        seen.put(&kind, object);
    }
    let held: Vec<(String, Value)> = objects
        .iter()
        .map(|(plural, object)| {
            let base = if *plural == "pods" { "/api/v1" } else { "/apis/apps/v1" };
            let path = format!("{base}/namespaces/d/{plural}/{}", object.name_any());
            (path, serde_json::to_value(object).unwrap())
        })
        .collect();
    let api = ScriptedApi::new(move |asked: &Asked| {
        let found = held.iter().find(|(path, _)| *path == asked.path).map(|(_, object)| object.clone());
        if asked.method == Method::GET { found } else { found.map(|_| json!({"metadata": {"name": "x"}})) }
    });
    let events = EventRecorder::new(api.client(), "garbage-collector-controller", "");
    Cluster { collector: Collector { client: api.client(), discovery: discovery(), seen, events }, api }
}

fn foreground(name: &str) -> Meta {
    let going = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FOREGROUND]});
    meta("ReplicaSet", name, going)
}

#[tokio::test]
async fn a_dependent_of_a_solid_and_a_waiting_owner_lets_go_of_the_latter_and_is_not_deleted() {
    let owners = json!({"ownerReferences": [reference("solid"), reference("waiting")]});
    let cluster = cluster(vec![
        ("replicasets", meta("ReplicaSet", "solid", json!({}))),
        ("replicasets", foreground("waiting")),
        ("pods", meta("Pod", "pod", owners)),
    ]);
    cluster.collector.reconcile(&"pod".into()).await.unwrap();
    let written = cluster.api.written();
    assert_eq!(written.len(), 1, "{written:?}");
    assert_eq!(written[0].method, Method::PATCH);
    assert_eq!(written[0].content_type, "application/strategic-merge-patch+json");
    assert_eq!(written[0].body, without("pod", "waiting"));
}

#[tokio::test]
async fn an_object_is_deleted_in_the_version_in_which_its_owner_was_seen_to_be_gone() {
    let cluster =
        cluster(vec![("pods", meta("Pod", "pod", json!({"ownerReferences": [reference("gone")]})))]);
    cluster.collector.reconcile(&"pod".into()).await.unwrap();
    let written = cluster.api.written();
    assert_eq!(written.len(), 1, "{written:?}");
    assert_eq!(written[0].method, Method::DELETE);
    assert_eq!(written[0].body["preconditions"], json!({"uid": "pod", "resourceVersion": "7"}));
    assert_eq!(written[0].body["propagationPolicy"], "Background");
}

#[tokio::test]
async fn orphans_forget_their_owner_by_its_uid_before_its_finalizer_goes() {
    let owner = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["mine", ORPHAN]});
    let cluster = cluster(vec![
        ("replicasets", meta("ReplicaSet", "owner", owner)),
        ("pods", meta("Pod", "pod", json!({"ownerReferences": [reference("owner"), reference("other")]}))),
    ]);
    cluster.collector.reconcile(&"owner".into()).await.unwrap();
    let written = cluster.api.written();
    assert_eq!(written.len(), 2, "{written:?}");
    assert_eq!(written[0].body, without("pod", "owner"));
    assert_eq!(written[1].body["metadata"]["finalizers"], json!(["mine"]));
    assert_eq!(written[1].body["metadata"]["resourceVersion"], "7");
}

#[tokio::test]
async fn an_owner_waits_for_the_dependents_that_block_it_and_for_every_kind_to_be_listed() {
    let objects = || {
        vec![
            ("replicasets", foreground("owner")),
            ("pods", meta("Pod", "pod", json!({"ownerReferences": [reference("owner")]}))),
        ]
    };
    let blocked = cluster(objects());
    blocked.collector.reconcile(&"owner".into()).await.unwrap();
    assert!(blocked.api.written().is_empty());
    let free = cluster(objects());
    free.collector.seen.remove("pod");
    free.collector.seen.unlisted.send_replace(BTreeSet::from(["Pod".into()]));
    assert_eq!(free.collector.reconcile(&"owner".into()).await.unwrap(), Outcome::After(LOOK_AGAIN));
    free.collector.seen.unlisted.send_replace(BTreeSet::new());
    free.collector.reconcile(&"owner".into()).await.unwrap();
    assert_eq!(free.api.written()[0].body["metadata"]["finalizers"], json!([]));
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_cannot_be_listed_does_not_hold_up_collection_for_ever() {
    let cluster = cluster(Vec::new());
    cluster.collector.seen.unlisted.send_replace(BTreeSet::from(["Pod".into()]));
    tokio::time::timeout(FIRST_LISTS * 2, cluster.collector.synced()).await.expect("it waits for ever");
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_its_own_server_does_not_list_is_waited_for_no_longer_than_the_first_lists() {
    let began = tokio::time::Instant::now();
    let seen = cluster(Vec::new()).collector.seen;
    let watching = Watching {
        client: ScriptedApi::refusing(|_| Err(503)).client(),
        seen: seen.clone(),
        shutdown: CancellationToken::new(),
    };
    watching.watch(served("apps", "replicasets"), watching.shutdown.child_token());
    assert_eq!(seen.unlisted.borrow().len(), 1);
    let mut unlisted = seen.unlisted.subscribe();
    let all = tokio::time::timeout(FIRST_LISTS * 10, unlisted.wait_for(BTreeSet::is_empty)).await;
    drop(all.expect("it is waited for without end").unwrap());
    assert!(began.elapsed() >= FIRST_LISTS, "it is not waited for at all");
    watching.shutdown.cancel();
}

#[tokio::test]
async fn what_was_seen_of_a_kind_stays_while_its_server_is_away() {
    let cluster = cluster(vec![("replicasets", meta("ReplicaSet", "r", json!({})))]);
    let resources = |stale: &[&str]| {
        let kept = |r: &&Arc<ServedResource>| !stale.contains(&r.api_version().as_str());
        let all = discovery().now().unwrap();
        let served = all.preferred().filter(kept).map(|r| (**r).clone()).collect();
        skiff_client::Resources::new(served).with_stale(stale.iter().map(|s| (*s).to_owned()).collect())
    };
    let key = ("apps".to_owned(), "replicasets".to_owned());
    let replicasets = cluster.collector.seen.graph.lock().get("r").unwrap().kind.clone();
    let mut watched = HashMap::from([(key.clone(), (replicasets, CancellationToken::new()))]);
    let seen = &cluster.collector.seen;
    seen.forget_unserved(&resources(&["apps/v1"]), &mut watched);
    assert!(watched.contains_key(&key) && seen.graph.lock().get("r").is_some());
    let without = skiff_client::Resources::default();
    seen.forget_unserved(&without, &mut watched);
    assert!(watched.is_empty() && seen.graph.lock().get("r").is_none());
}

#[tokio::test]
async fn an_object_of_the_cluster_is_not_deleted_for_an_owner_that_no_namespace_is_given_for() {
    let cluster = cluster(Vec::new());
    let node = served("", "nodes");
    let mut object = meta("Node", "node", json!({"ownerReferences": [reference("rs")]}));
    object.metadata.namespace = None;
    cluster.collector.seen.put(&node, &object);
    cluster.collector.reconcile(&"node".into()).await.unwrap();
    assert!(cluster.api.written().is_empty());
}

#[tokio::test]
async fn an_owner_of_another_namespace_is_told_of() {
    let cluster =
        cluster(vec![("pods", meta("Pod", "pod", json!({"ownerReferences": [reference("elsewhere")]})))]);
    let sets = served("apps", "replicasets");
    cluster.collector.seen.put(&sets, &meta("ReplicaSet", "elsewhere", json!({"namespace": "other"})));
    cluster.collector.reconcile(&"pod".into()).await.unwrap();
    let told = async {
        loop {
            let written = cluster.api.written();
            if let Some(event) = written.iter().find(|w| w.body["reason"] == "OwnerRefInvalidNamespace") {
                break event.body.clone();
            }
            tokio::task::yield_now().await;
        }
    };
    let event = tokio::time::timeout(Duration::from_secs(20), told).await.expect("an event");
    assert_eq!(
        event["message"],
        "ownerRef [apps/v1/ReplicaSet, namespace: d, name: elsewhere, uid: elsewhere] does not exist in namespace \"d\""
    );
}

#[tokio::test]
async fn a_kind_without_strategic_patches_is_changed_by_a_merge_of_all_its_owners() {
    let owner = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [ORPHAN]});
    let mut cluster = cluster(vec![
        ("replicasets", meta("ReplicaSet", "owner", owner)),
        ("pods", meta("Pod", "pod", json!({"ownerReferences": [reference("owner"), reference("other")]}))),
    ]);
    let holds = cluster.api.clone();
    let api = ScriptedApi::refusing(move |asked: &Asked| {
        if asked.content_type == "application/strategic-merge-patch+json" {
            return Err(415);
        }
        holds.answered(asked).ok_or(404)
    });
    cluster.collector.client = api.client();
    cluster.collector.reconcile(&"owner".into()).await.unwrap();
    let written = api.written();
    assert_eq!(written[1].content_type, "application/merge-patch+json", "{written:?}");
    assert_eq!(written[1].body["metadata"]["ownerReferences"], json!([reference("other")]));
    assert_eq!(written[1].body["metadata"]["resourceVersion"], "7");
}
