//! Claims and volumes: bound, made, made larger, kept and removed. Nodes that make volumes are played by [`FakeNodes`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};
use http::{Method, Request, Response, StatusCode};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::client::Body;
use kube::{Api, Client};
use serde_json::{Value, json};
use skiff_apiserver::ApiService;
use tower::Service as _;

use crate::{ControlPlane, create, is_bound, is_ending, node, pod, until};

/// Nodes as far as their volumes go.
#[derive(Clone, Default)]
pub(crate) struct FakeNodes(Arc<Mutex<Volumes>>);

#[derive(Default)]
struct Volumes {
    /// Bytes by node and name.
    made: BTreeMap<(String, String), u64>,
    /// How many are refused from here on.
    n_refusals: usize,
}

impl FakeNodes {
    /// Everything but nodes' volumes is asked of the server.
    pub(crate) fn client_over(&self, server: ApiService) -> Client {
        let nodes = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (mut server, nodes) = (server.clone(), nodes.clone());
            async move {
                let path = request.uri().path().to_owned();
                let Some((node, volume)) = asked_of(&path) else { return server.call(request).await };
                let method = request.method().clone();
                let body = request.into_body().collect_bytes().await.unwrap_or_default();
                let (status, document) = nodes.answer(&method, node, volume, &body);
                let mut response = Response::new(document.to_string().into());
                *response.status_mut() = status;
                Ok(response)
            }
        });
        Client::new(service, "default")
    }

    fn volumes(&self) -> MutexGuard<'_, Volumes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, method: &Method, node: &str, volume: &str, body: &[u8]) -> (StatusCode, Value) {
        let mut volumes = self.volumes();
        let key = (node.to_owned(), volume.to_owned());
        if *method == Method::DELETE {
            volumes.made.remove(&key);
            return (StatusCode::OK, json!({}));
        }
        if volumes.n_refusals > 0 {
            volumes.n_refusals -= 1;
            let refusal = json!({"kind": "Status", "message": "the disk is full"});
            return (StatusCode::INSUFFICIENT_STORAGE, refusal);
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let bytes = body["capacityBytes"].as_u64().unwrap_or_default();
        volumes.made.insert(key, bytes);
        let path = format!("/volumes/{volume}");
        (StatusCode::OK, json!({"path": path, "capacityBytes": bytes, "limit": "None"}))
    }

    fn refuse(&self, n: usize) {
        self.volumes().n_refusals = n;
    }

    fn bytes(&self, node: &str, volume: &str) -> Option<u64> {
        self.volumes().made.get(&(node.to_owned(), volume.to_owned())).copied()
    }
}

/// `/api/v1/nodes/NODE/proxy/volumes/VOLUME`
fn asked_of(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix("/api/v1/nodes/")?.split_once("/proxy/volumes/")
}

fn claim(name: &str, more: Value) -> Value {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

fn volume(name: &str, class: &str, more: Value) -> Value {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "2Gi"},
        "storageClassName": class, "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/data"}});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

fn using(claim: &str) -> Value {
    json!({"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]})
}

fn at<T: serde::Serialize>(object: &T, pointer: &str) -> String {
    let value = serde_json::to_value(object).unwrap_or_default();
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

async fn claim_is(plane: &ControlPlane, name: &str, phase: &str) -> Result<PersistentVolumeClaim> {
    let claims = plane.api::<PersistentVolumeClaim>();
    until(&format!("claim {name} {phase}"), async || {
        let claim = claims.get(name).await?;
        let is = at(&claim, "/status/phase");
        ensure!(is == phase, "it is {is}");
        Ok(Some(claim))
    })
    .await
}

async fn volume_is(plane: &ControlPlane, name: &str, phase: &str) -> Result<PersistentVolume> {
    let volumes = plane.all::<PersistentVolume>();
    until(&format!("volume {name} {phase}"), async || {
        let volume = volumes.get(name).await?;
        let is = at(&volume, "/status/phase");
        ensure!(is == phase, "it is {is}");
        Ok(Some(volume))
    })
    .await
}

async fn is_gone<K>(api: &Api<K>, name: &str) -> Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    until(&format!("{name} gone"), async || Ok(api.get_opt(name).await?.is_none().then_some(()))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_gets_a_volume_that_is_there_keeps_it_while_it_is_used_and_leaves_it_to_the_next()
-> Result<()> {
    let plane = ControlPlane::start().await?;
    let (claims, volumes) = (plane.api::<PersistentVolumeClaim>(), plane.all::<PersistentVolume>());
    create(&volumes, volume("large", "manual", json!({"capacity": {"storage": "9Gi"}}))).await?;
    create(&volumes, volume("small", "manual", json!({}))).await?;
    volume_is(&plane, "small", "Available").await?;
    volume_is(&plane, "large", "Available").await?;
    create(&claims, claim("c", json!({"storageClassName": "manual"}))).await?;
    let bound = claim_is(&plane, "c", "Bound").await?;
    ensure!(at(&bound, "/spec/volumeName") == "small", "{bound:?}");
    ensure!(at(&bound, "/status/capacity/storage") == "2Gi", "{bound:?}");
    ensure!(at(&bound, "/metadata/annotations/pv.kubernetes.io~1bind-completed") == "yes", "{bound:?}");
    let its = volume_is(&plane, "small", "Bound").await?;
    ensure!(at(&its, "/spec/claimRef/name") == "c", "{its:?}");
    create(&plane.api::<Pod>(), pod("user", "user", using("c"))).await?;
    plane.node_of("user").await?;

    claims.delete("c", &DeleteParams::default()).await?;
    plane.run_pods().await?;
    let kept = claims.get("c").await?;
    ensure!(is_ending(&kept), "{kept:?}");
    volumes.delete("small", &DeleteParams::default()).await?;
    plane.end_pod("user").await?;
    is_gone(&claims, "c").await?;
    is_gone(&volumes, "small").await?;

    create(&volumes, volume("next", "manual", json!({}))).await?;
    create(&claims, claim("first", json!({"storageClassName": "manual", "volumeName": "next"}))).await?;
    claim_is(&plane, "first", "Bound").await?;
    claims.delete("first", &DeleteParams::default()).await?;
    volume_is(&plane, "next", "Released").await?;
    create(&claims, claim("second", json!({"storageClassName": "manual", "volumeName": "next"}))).await?;
    let why = plane.event("second", "FailedBinding").await?;
    ensure!(why == "volume \"next\" already bound to a different claim.", "{why}");
    let cleared = Patch::Merge(json!({"spec": {"claimRef": null}}));
    volumes.patch("next", &PatchParams::default(), &cleared).await?;
    claim_is(&plane, "second", "Bound").await?;
    volumes.delete("next", &DeleteParams::default()).await?;
    let held = volumes.get("next").await?;
    ensure!(is_ending(&held), "a volume that is bound has gone");
    plane.stop().await
}

fn on_node(name: &str) -> Value {
    let here = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [name]});
    json!({"hostPath": null, "local": {"path": "/disk"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_waits_for_its_pod_gets_the_volume_of_the_pods_node() -> Result<()> {
    let plane = ControlPlane::start().await?;
    plane.add_node(node("n2")).await?;
    let (claims, volumes) = (plane.api::<PersistentVolumeClaim>(), plane.all::<PersistentVolume>());
    let class = json!({"metadata": {"name": "disks"}, "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer"});
    create(&plane.all::<StorageClass>(), class).await?;
    for name in ["n1", "n2"] {
        create(&volumes, volume(&format!("of-{name}"), "disks", on_node(name))).await?;
        volume_is(&plane, &format!("of-{name}"), "Available").await?;
    }
    create(&claims, claim("c", json!({"storageClassName": "disks"}))).await?;
    let why = plane.event("c", "WaitForFirstConsumer").await?;
    ensure!(why == "waiting for first consumer to be created before binding", "{why}");
    let mut spec = using("c");
    spec["nodeSelector"] = json!({"kubernetes.io/hostname": "n2"});
    create(&plane.api::<Pod>(), pod("user", "user", spec)).await?;
    ensure!(plane.node_of("user").await? == "n2");
    let bound = claim_is(&plane, "c", "Bound").await?;
    ensure!(at(&bound, "/spec/volumeName") == "of-n2", "{bound:?}");

    // Bound, it binds its pods to the node.
    let mut spec = using("c");
    spec["nodeSelector"] = json!({"kubernetes.io/hostname": "n1"});
    create(&plane.api::<Pod>(), pod("far", "far", spec)).await?;
    let why = plane.event("far", "FailedScheduling").await?;
    ensure!(why.contains("1 node(s) didn't match PersistentVolume's node affinity"), "{why}");
    create(&claims, claim("too-many", json!({"storageClassName": "disks"}))).await?;
    let mut spec = using("too-many");
    spec["nodeSelector"] = json!({"kubernetes.io/hostname": "n2"});
    create(&plane.api::<Pod>(), pod("late", "late", spec)).await?;
    let why = plane.event("late", "FailedScheduling").await?;
    ensure!(why.contains("1 node(s) didn't find available persistent volumes to bind"), "{why}");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_claim_is_missing_or_unbound_waits_for_it_and_for_a_claim_of_one_pod_alone() -> Result<()>
{
    let plane = ControlPlane::start().await?;
    let (claims, volumes) = (plane.api::<PersistentVolumeClaim>(), plane.all::<PersistentVolume>());
    let pods = plane.api::<Pod>();
    create(&pods, pod("early", "early", using("c"))).await?;
    let why = plane.event("early", "FailedScheduling").await?;
    let wanted = "0/1 nodes are available: persistentvolumeclaim \"c\" not found. \
                  preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    ensure!(why == wanted, "{why}");
    let once = json!({"storageClassName": "manual", "accessModes": ["ReadWriteOncePod"]});
    create(&claims, claim("c", once)).await?;
    let unbound = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. \
                   preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    until("the other reason", async || {
        let pod = pods.get("early").await?;
        let conditions = pod.status.and_then(|s| s.conditions).unwrap_or_default();
        Ok(conditions.iter().any(|c| c.message.as_deref() == Some(unbound)).then_some(()))
    })
    .await?;
    create(&volumes, volume("v", "manual", json!({"accessModes": ["ReadWriteOncePod"]}))).await?;
    plane.node_of("early").await?;
    create(&pods, pod("second", "second", using("c"))).await?;
    let why = plane.event("second", "FailedScheduling").await?;
    ensure!(why.contains("ReadWriteOncePod access mode already in-use by another pod"), "{why}");
    plane.end_pod("early").await?;
    plane.node_of("second").await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_made_on_the_node_of_the_first_pod_made_larger_and_removed_with_its_claim() -> Result<()>
{
    let nodes = FakeNodes::default();
    let plane = ControlPlane::start_with_volumes(&nodes).await?;
    let (claims, volumes) = (plane.api::<PersistentVolumeClaim>(), plane.all::<PersistentVolume>());
    until("the class", async || Ok(plane.all::<StorageClass>().get_opt("local").await?)).await?;
    for verb in ["update", "delete"] {
        let attributes = json!({"verb": verb, "resource": "nodes", "subresource": "proxy"});
        let user = "system:serviceaccount:kube-system:local-volume-provisioner";
        let review = json!({"metadata": {}, "spec": {"user": user, "resourceAttributes": attributes}});
        let answer = create(&plane.all::<SubjectAccessReview>(), review).await?;
        ensure!(answer.status.context("no status")?.allowed, "it may not {verb} through nodes");
    }
    nodes.refuse(1);
    let made = create(&claims, claim("c", json!({}))).await?;
    ensure!(at(&made, "/spec/storageClassName") == "local", "{made:?}");
    let name = format!("pvc-{}", made.metadata.uid.context("no uid")?);
    create(&plane.api::<Pod>(), pod("user", "user", using("c"))).await?;
    let why = plane.event("c", "ProvisioningFailed").await?;
    ensure!(why.contains("\"n1\" refused: the disk is full"), "{why}");
    // The scheduler tries again, and there is room now.
    ensure!(plane.node_of("user").await? == "n1");
    claim_is(&plane, "c", "Bound").await?;
    let volume = volume_is(&plane, &name, "Bound").await?;
    ensure!(at(&volume, "/spec/local/path") == format!("/volumes/{name}"), "{volume:?}");
    ensure!(nodes.bytes("n1", &name) == Some(1 << 30), "n1 has no such volume");

    let more = Patch::Merge(json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}}));
    claims.patch("c", &PatchParams::default(), &more).await?;
    plane.event("c", "VolumeResizeSuccessful").await?;
    let larger = claims.get("c").await?;
    ensure!(at(&larger, "/status/capacity/storage") == "3Gi", "{larger:?}");
    ensure!(at(&volumes.get(&name).await?, "/spec/capacity/storage") == "3Gi");
    ensure!(nodes.bytes("n1", &name) == Some(3 << 30), "the node was not told");

    plane.end_pod("user").await?;
    claims.delete("c", &DeleteParams::default()).await?;
    is_gone(&volumes, &name).await?;
    ensure!(nodes.bytes("n1", &name).is_none(), "the directory is still there");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_asks_for_a_volume_of_its_own_gets_a_claim_that_goes_with_it() -> Result<()> {
    let nodes = FakeNodes::default();
    let plane = ControlPlane::start_with_volumes(&nodes).await?;
    let (claims, volumes) = (plane.api::<PersistentVolumeClaim>(), plane.all::<PersistentVolume>());
    until("the class", async || Ok(plane.all::<StorageClass>().get_opt("local").await?)).await?;
    let own = || {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        let template = json!({"metadata": {"labels": {"made": "so"}}, "spec": spec});
        json!({"volumes": [{"name": "data", "ephemeral": {"volumeClaimTemplate": template}}]})
    };
    create(&plane.api::<Pod>(), pod("p", "p", own())).await?;
    plane.node_of("p").await?;
    let made = claim_is(&plane, "p-data", "Bound").await?;
    ensure!(
        at(&made, "/metadata/labels/made") == "so" && at(&made, "/metadata/ownerReferences/0/name") == "p"
    );
    plane.end_pod("p").await?;
    is_gone(&claims, "p-data").await?;
    is_gone(&volumes, &at(&made, "/spec/volumeName")).await?;

    create(&claims, claim("q-data", json!({}))).await?;
    create(&plane.api::<Pod>(), pod("q", "q", own())).await?;
    let why = plane.event("q", "FailedBinding").await?;
    let wanted =
        "ephemeral volume data: PVC default/q-data was not created for pod default/q (pod is not owner)";
    ensure!(why == wanted, "{why}");
    ensure!(!is_bound(&plane.api::<Pod>().get("q").await?), "it has the claim of another");
    plane.stop().await
}
