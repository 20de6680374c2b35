use std::sync::Arc;

use http::Method;
use serde_json::json;
use skiff_client::Informers;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::testing::{Asked, ScriptedApi, discovery};

/// A node that answers the same to everything, and remembers what it was asked.
#[derive(Clone)]
struct FakeNode {
    answer: Answer,
    asked: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Yes,
    Full,
    Away,
}

impl FakeNode {
    fn answer(&self, node: &str, asked: String) -> Result<(), NodeError> {
        self.asked.lock().push(asked);
        let (node, why) = (node.to_owned(), "why".to_owned());
        match self.answer {
            Answer::Yes => Ok(()),
            Answer::Full => Err(NodeError::Refused { node, why }),
            Answer::Away => Err(NodeError::Unreachable { node, why }),
        }
    }
}

impl NodeVolumes for FakeNode {
    async fn make(&self, node: &str, volume: &str, bytes: u64) -> Result<Made, NodeError> {
        self.answer(node, format!("make {volume} on {node}"))?;
        Ok(Made { path: format!("/v/{volume}"), capacity_bytes: bytes, limit: "None".into() })
    }

    async fn remove(&self, node: &str, volume: &str) -> Result<(), NodeError> {
        self.answer(node, format!("remove {volume} from {node}"))
    }
}

struct Fixture {
    api: ScriptedApi,
    local: LocalVolumes<FakeNode>,
    node: FakeNode,
}

impl Fixture {
    /// There is a node `n1`, if any, and the volume of `pvc-u` is as `volume` says.
    fn new(answer: Answer, nodes: &[&str], volume: Option<PersistentVolume>) -> Fixture {
        let nodes: Vec<String> = nodes.iter().map(|name| format!("/api/v1/nodes/{name}")).collect();
        let volume = serde_json::to_value(volume).unwrap();
        let api = ScriptedApi::new(move |asked| match asked.path.as_str() {
            "/api/v1/persistentvolumes/pvc-u" if asked.method == Method::GET => {
                Some(volume.clone()).filter(|volume| !volume.is_null())
            }
            path if nodes.iter().any(|node| node == path) => Some(json!({"metadata": {"name": "n1"}})),
            _ => Some(asked.body.clone()).filter(|_| asked.method != Method::GET),
        });
        let shutdown = CancellationToken::new();
        let informers = Informers::new(api.client(), shutdown.clone());
        let context = Context::new(api.credentials(), informers, discovery());
        let node = FakeNode { answer, asked: Arc::default() };
        let local = LocalVolumes::with(&context, node.clone());
        // The copies stay empty.
        shutdown.cancel();
        Fixture { api, local, node }
    }

    /// What was written of claims and volumes, without events.
    fn written(&self) -> Vec<Asked> {
        let mut written = self.api.written();
        written.retain(|asked| !asked.path.contains("/events"));
        written
    }

    fn asked(&self) -> Vec<String> {
        self.node.asked.lock().clone()
    }
}

fn claim() -> PersistentVolumeClaim {
    serde_json::from_value(json!({
        "metadata": {"name": "c", "namespace": "d", "uid": "u", "resourceVersion": "7",
            "annotations": {PROVISIONER: PROVISIONER_NAME, SELECTED_NODE: "n1"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local",
            "resources": {"requests": {"storage": "1Gi"}}},
    }))
    .unwrap()
}

fn local_class(mode: &str) -> StorageClass {
    let class =
        json!({"metadata": {"name": "local"}, "provisioner": PROVISIONER_NAME, "volumeBindingMode": mode});
    serde_json::from_value(class).unwrap()
}

fn released() -> PersistentVolume {
    serde_json::from_value(json!({
        "metadata": {"name": "pvc-u", "uid": "v", "finalizers": ["kubernetes.io/pv-protection", FINALIZER],
            "annotations": {PROVISIONED_BY: PROVISIONER_NAME, NODE: "n1"}},
        "spec": {"persistentVolumeReclaimPolicy": "Delete"},
        "status": {"phase": "Released"},
    }))
    .unwrap()
}

const LATER: &str = "WaitForFirstConsumer";

#[tokio::test(start_paused = true)]
async fn a_volume_that_a_node_has_made_is_written_down() {
    let f = Fixture::new(Answer::Yes, &["n1"], None);
    let outcome = f.local.make(&claim(), "n1", &local_class(LATER)).await.unwrap();
    assert_eq!((outcome, f.asked()), (Outcome::Done, vec!["make pvc-u on n1".to_owned()]));
    let written = f.written();
    let [made] = written.as_slice() else { panic!("{written:?}") };
    assert_eq!((&made.method, made.path.as_str()), (&Method::POST, "/api/v1/persistentvolumes"));
    assert_eq!(made.body["spec"]["local"]["path"], "/v/pvc-u");
    assert_eq!(made.body["spec"]["capacity"]["storage"], "1Gi");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_refuses_is_given_back_and_one_that_is_away_is_asked_again() {
    let full = Fixture::new(Answer::Full, &["n1"], None);
    let outcome = full.local.make(&claim(), "n1", &local_class(LATER)).await.unwrap();
    assert_eq!(outcome, Outcome::Done, "the scheduler chooses another");
    let written = full.written();
    let [given_back] = written.as_slice() else { panic!("{written:?}") };
    assert_eq!(given_back.path, "/api/v1/namespaces/d/persistentvolumeclaims/c");
    assert_eq!(given_back.body["metadata"]["annotations"], json!({PROVISIONER: PROVISIONER_NAME}));
    assert_eq!(given_back.body["metadata"]["resourceVersion"], "7", "over what was decided about");
    full.local.make(&claim(), "n1", &local_class("Immediate")).await.expect_err("nobody else chooses");

    let away = Fixture::new(Answer::Away, &["n1"], None);
    away.local.make(&claim(), "n1", &local_class(LATER)).await.expect_err("it is to be asked again");
    assert_eq!(away.written(), []);

    let gone = Fixture::new(Answer::Yes, &[], None);
    gone.local.make(&claim(), "n1", &local_class(LATER)).await.unwrap();
    assert_eq!((gone.asked().len(), gone.written().len()), (0, 1), "there is no such node");
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_gone_before_its_volume() {
    let f = Fixture::new(Answer::Yes, &["n1"], Some(released()));
    Box::pin(f.local.sync_volume(&released())).await.unwrap();
    assert_eq!(f.asked(), ["remove pvc-u from n1"]);
    let written = f.written();
    assert_eq!(written.iter().map(|w| &w.method).collect::<Vec<_>>(), [Method::DELETE, Method::PUT]);
    assert_eq!(written[1].body["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));

    let away = Fixture::new(Answer::Away, &["n1"], Some(released()));
    Box::pin(away.local.sync_volume(&released())).await.expect_err("it is still there");
    assert_eq!(away.written(), []);
}

#[tokio::test(start_paused = true)]
async fn what_the_api_does_not_say_itself_removes_nothing() {
    let mut again = released();
    again.status.as_mut().unwrap().phase = Some("Bound".into());
    let f = Fixture::new(Answer::Yes, &["n1"], Some(again));
    Box::pin(f.local.sync_volume(&released())).await.unwrap();
    assert_eq!((f.asked().len(), f.written().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_volume_goes_with_its_node_once_that_has_been_away_for_a_while() {
    let f = Fixture::new(Answer::Yes, &[], Some(released()));
    assert_eq!(Box::pin(f.local.sync_volume(&released())).await.unwrap(), Outcome::After(QUARANTINE));
    assert_eq!(f.written(), []);
    tokio::time::advance(QUARANTINE).await;
    Box::pin(f.local.sync_volume(&released())).await.unwrap();
    assert_eq!(f.asked(), Vec::<String>::new());
    assert_eq!(f.written().iter().map(|w| &w.method).collect::<Vec<_>>(), [Method::DELETE, Method::PUT]);
}
