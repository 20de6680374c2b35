use std::time::Duration;

use http::Method;
use serde_json::Value;
use skiff_client::Informers;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::testing::{Asked, ScriptedApi, discovery};

fn set() -> StatefulSet {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "n", "uid": "set"},
        "spec": {"replicas": 1, "serviceName": "svc", "selector": {"matchLabels": {"a": "1"}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
            "template": {"metadata": {"labels": {"a": "1"}}, "spec": {"containers": []}}}}))
    .unwrap()
}

fn pod<P: k8s_openapi::serde::de::DeserializeOwned>(name: &str) -> P {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n", "uid": "pod"}})).unwrap()
}

/// The pod as the API has it, with more than informers hold of it.
fn whole(uid: &str) -> Value {
    json!({"metadata": {"name": "web-0", "namespace": "n", "uid": uid, "resourceVersion": "7"},
        "spec": {"containers": [], "volumes": [{"name": "data", "emptyDir": {}}, {"name": "own", "configMap": {"name": "c"}}]}})
}

/// What a pass did to pods and claims, in order, and what it told of it.
struct Done {
    result: Result<(), StepError>,
    written: Vec<Asked>,
    told: Vec<String>,
}

impl Done {
    fn words(&self) -> Vec<String> {
        let name = |asked: &Asked| asked.path.rsplit('/').next().unwrap_or_default().to_owned();
        self.written.iter().map(|asked| format!("{} {}", asked.method, name(asked))).collect()
    }
}

/// Takes a step with an API that makes and changes whatever is asked, but for paths that end in `refused`.
async fn take(step: &Step, refused: &'static str, n_told: usize) -> Done {
    let api = ScriptedApi::new(move |asked: &Asked| match asked.method {
        Method::GET if asked.path.ends_with("/pods/web-0") => Some(whole("pod")),
        Method::GET => None,
        _ if asked.path.ends_with(refused) => None,
        _ => Some(match asked.body["metadata"].is_object() {
            true => asked.body.clone(),
            false => json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 200}),
        }),
    });
    let shutdown = CancellationToken::new();
    let context =
        Context::new(api.credentials(), Informers::new(api.client(), shutdown.clone()), discovery());
    let (sets, claims) =
        (context.informers.of::<StatefulSet>(), context.informers.of::<PersistentVolumeClaim>());
    let pods = StatefulPods::new(&context, &sets, &claims, &WorkQueue::default());
    let result = pods.take(&set(), step).await;
    let is_event = |asked: &Asked| asked.path.ends_with("/events");
    let events = || api.written().into_iter().filter(is_event).collect::<Vec<_>>();
    let all_told = async {
        while events().len() < n_told {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all_told).await.expect("events are missing");
    shutdown.cancel();
    let words = |event: &Asked| {
        let text = |field: &str| event.body[field].as_str().unwrap_or_default().to_owned();
        format!("{}: {}", text("reason"), text("message"))
    };
    let told = events().iter().map(words).collect();
    let written = api.written().into_iter().filter(|asked| !is_event(asked)).collect();
    Done { result, written, told }
}

#[tokio::test]
async fn a_pod_is_made_after_its_claims_which_then_get_their_owner() {
    let done = take(&Step::Make(Box::new(pod("web-0"))), "nothing", 2).await;
    assert!(done.result.is_ok(), "{:?}", done.result);
    assert_eq!(done.words(), ["POST persistentvolumeclaims", "POST pods", "PATCH data-web-0"]);
    let owner: &Value = &done.written[2].body["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["uid"], &owner["controller"]),
        (&json!("StatefulSet"), &json!("set"), &json!(true))
    );
    let wanted = [
        "SuccessfulCreate: Create Claim data-web-0 Pod web-0 in StatefulSet web success",
        "SuccessfulCreate: Create Pod web-0 in StatefulSet web successful",
    ];
    assert_eq!(done.told, wanted);
}

#[tokio::test]
async fn no_pod_is_made_without_its_claims() {
    let done = take(&Step::Make(Box::new(pod("web-0"))), "persistentvolumeclaims", 2).await;
    assert_eq!(done.words(), ["POST persistentvolumeclaims"]);
    let wanted = [
        "FailedCreate: Create Claim data-web-0 for Pod web-0 in StatefulSet web failed error: not found",
        "FailedCreate: Create Pod web-0 in StatefulSet web failed error: failed to create PVC data-web-0: not found",
    ];
    assert_eq!(done.told, wanted);
    assert!(done.result.unwrap_err().retry().is_some(), "it is tried again");
}

#[tokio::test]
async fn a_pod_that_has_gone_already_counts_as_deleted() {
    for refused in ["nothing", "web-0"] {
        let done = take(&Step::Delete(Arc::new(pod("web-0"))), refused, 1).await;
        assert!(done.result.is_ok(), "{:?}", done.result);
        assert_eq!(done.written[0].body["preconditions"]["uid"], "pod", "no other pod of that name is meant");
        assert_eq!(done.told, ["SuccessfulDelete: Delete Pod web-0 in StatefulSet web successful"]);
    }
}

#[tokio::test]
async fn a_pod_gets_its_identity_back() {
    let done = take(&Step::Repair(Arc::new(pod("web-0"))), "nothing", 2).await;
    assert!(done.result.is_ok(), "{:?}", done.result);
    assert_eq!(done.words(), ["POST persistentvolumeclaims", "PATCH web-0"]);
    assert_eq!(
        done.written[1].body["spec"]["volumes"],
        json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}},
            {"name": "own", "configMap": {"name": "c"}}]),
        "the pod's own volumes stay as they are"
    );
    assert_eq!(done.written[1].body["metadata"]["resourceVersion"], "7");
    let labels = &done.written[1].body["metadata"]["labels"];
    assert_eq!(
        labels,
        &json!({"apps.kubernetes.io/pod-index": "0", "statefulset.kubernetes.io/pod-name": "web-0"})
    );
    assert_eq!(done.told[1], "SuccessfulUpdate: Update Pod web-0 in StatefulSet web successful");
}

#[tokio::test]
async fn what_waits_for_a_claim_to_go_is_not_tried_over_and_over() {
    assert!(StepError::Going("data-web-0".into()).retry().is_none());
    let both = StepError::of(vec![StepError::Going("a".into()), StepError::Going("b".into())]).unwrap_err();
    assert_eq!(both.to_string(), "[pvc a is being deleted, pvc b is being deleted]");
}
