//! Server-side apply, and who manages what.

use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Answer, Client, Cluster, config_map, pod};

const APPLY: &[(&str, &str)] = &[("content-type", "application/apply-patch+yaml")];

/// `query` is what comes after the question mark.
async fn apply(client: &Client, url: &str, query: &str, document: &Value) -> Answer {
    client.send(Method::PATCH, &format!("{url}?{query}"), APPLY, document.to_string()).await
}

/// Manager, operation and subresource of each entry, in their order.
fn managers(object: &Value) -> Vec<(String, String, String)> {
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let entries = object["metadata"]["managedFields"].as_array();
    let entries = entries.into_iter().flatten();
    entries
        .map(|entry| (text(entry, "manager"), text(entry, "operation"), text(entry, "subresource")))
        .collect()
}

fn entry(manager: &str, operation: &str, subresource: &str) -> (String, String, String) {
    (manager.to_owned(), operation.to_owned(), subresource.to_owned())
}

fn deployment(replicas: Option<u32>, image: &str) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image, "ports": [{"containerPort": 80}]}]},
            },
        },
    });
    if let Some(replicas) = replicas {
        object["spec"]["replicas"] = replicas.into();
    }
    object
}

const WEB: &str = "/apis/apps/v1/namespaces/a/deployments/web";

#[tokio::test]
async fn an_applied_object_is_created_then_kept_then_changed() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    let created = apply(&client, WEB, "fieldManager=m", &deployment(None, "i:1")).await.created();
    assert_eq!(managers(&created), [entry("m", "Apply", "")]);
    let fields = &created["metadata"]["managedFields"][0];
    assert_eq!(
        (fields["apiVersion"].as_str(), fields["fieldsType"].as_str()),
        (Some("apps/v1"), Some("FieldsV1"))
    );
    assert_eq!(
        fields["fieldsV1"],
        json!({
            "f:metadata": {"f:labels": {"f:app": {}}},
            "f:spec": {
                "f:selector": {},
                "f:template": {
                    "f:metadata": {"f:labels": {"f:app": {}}},
                    "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {
                        ".": {}, "f:image": {}, "f:name": {},
                        "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                    }}},
                },
            },
        })
    );
    let again = apply(&client, WEB, "fieldManager=m", &deployment(None, "i:1")).await.ok();
    assert_eq!(again, created, "nothing changed, not even the version");
    let changed = apply(&client, WEB, "fieldManager=m", &deployment(Some(3), "i:2")).await.ok();
    assert_eq!(changed["spec"]["replicas"], 3);
    assert_eq!(changed["metadata"]["generation"], 2);
    let without = apply(&client, WEB, "fieldManager=m", &deployment(None, "i:2")).await.ok();
    assert_eq!(without["spec"]["replicas"], 1, "what is not applied any more is what it is by default");
    assert_eq!(client.get(WEB).await.ok(), without);
}

#[tokio::test]
async fn a_conflict_is_told_with_its_causes_unless_it_is_forced() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    apply(&client, WEB, "fieldManager=m", &deployment(Some(1), "i:1")).await.created();
    let patch = json!({"spec": {"replicas": 5}});
    client
        .send(
            Method::PATCH,
            &format!("{WEB}?fieldManager=hpa"),
            &[("content-type", "application/merge-patch+json")],
            patch.to_string(),
        )
        .await
        .ok();
    let answer = apply(&client, WEB, "fieldManager=m", &deployment(Some(2), "i:1")).await;
    let message = answer.refused(409, "Conflict");
    assert_eq!(message, r#"Apply failed with 1 conflict: conflict with "hpa" using apps/v1: .spec.replicas"#);
    let causes = &answer.json()["details"]["causes"];
    assert_eq!(
        *causes,
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"hpa\" using apps/v1", "field": ".spec.replicas"}])
    );
    let forced = apply(&client, WEB, "fieldManager=m&force=true", &deployment(Some(2), "i:1")).await.ok();
    assert_eq!((&forced["spec"]["replicas"], managers(&forced)), (&json!(2), vec![entry("m", "Apply", "")]));
    let answer = apply(&client, WEB, "fieldManager=n&force=false", &deployment(Some(4), "i:2")).await;
    let message = answer.refused(409, "Conflict");
    assert!(
        message.starts_with("Apply failed with 2 conflicts: conflicts with \"m\":\n- .spec."),
        "{message}"
    );
}

#[tokio::test]
async fn every_write_tells_who_changed_what() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    let agent = ("user-agent", "kubectl/v1.37.2 (linux/amd64) kubernetes/abc");
    let created = client
        .send(
            Method::POST,
            "/apis/apps/v1/namespaces/a/deployments",
            &[agent],
            deployment(Some(1), "i:1").to_string(),
        )
        .await
        .created();
    assert_eq!(managers(&created), [entry("kubectl", "Update", "")]);
    let fields = &created["metadata"]["managedFields"][0]["fieldsV1"];
    assert_eq!(
        fields["f:spec"]["f:strategy"]["f:rollingUpdate"],
        json!({".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}})
    );
    assert_eq!(fields["f:spec"]["f:strategy"]["."], Value::Null, "upstream has one that is empty already");
    let status = json!({"status": {"replicas": 1}});
    let status_url = format!("{WEB}/status?fieldManager=kube-controller-manager");
    let patched = client
        .send(
            Method::PATCH,
            &status_url,
            &[("content-type", "application/merge-patch+json")],
            status.to_string(),
        )
        .await
        .ok();
    // In one second they stand by name.
    assert_eq!(managers(&patched).len(), 2);
    let entries = patched["metadata"]["managedFields"].as_array().expect("managers");
    let own = entries.iter().find(|entry| entry["subresource"] == "status").expect("an entry");
    assert_eq!(own["manager"], "kube-controller-manager");
    assert_eq!(own["fieldsV1"], json!({"f:status": {"f:replicas": {}}}));
    let scale = json!({"spec": {"replicas": 4}});
    let scale_url = format!("{WEB}/scale?fieldManager=scaler");
    client
        .send(
            Method::PATCH,
            &scale_url,
            &[("content-type", "application/merge-patch+json")],
            scale.to_string(),
        )
        .await
        .ok();
    let scaled = client.get(WEB).await.ok();
    assert!(managers(&scaled).contains(&entry("scaler", "Update", "scale")), "{:?}", managers(&scaled));
    let mut replaced = scaled.clone();
    replaced["metadata"]["labels"]["new"] = "1".into();
    let replaced = client.put(&format!("{WEB}?fieldManager=editor"), replaced).await.ok();
    assert!(managers(&replaced).contains(&entry("editor", "Update", "")));
    let again = client.put(&format!("{WEB}?fieldManager=somebody"), replaced.clone()).await.ok();
    assert_eq!(again, replaced, "who changes nothing is nobody");
}

#[tokio::test]
async fn a_status_is_applied_apart_from_the_rest() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    client.post("/api/v1/namespaces/a/pods", pod("p")).await.created();
    let condition = |status: &str| json!({"type": "example.com/x", "status": status});
    let document = |status: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "image": "other"}]}, "status": {"conditions": [condition(status)]},
        })
    };
    let url = "/api/v1/namespaces/a/pods/p/status";
    let applied = apply(&client, url, "fieldManager=m", &document("True")).await.ok();
    assert_eq!(applied["status"]["conditions"][0]["status"], "True");
    assert_eq!(applied["spec"]["containers"][0]["image"], "nginx", "a status has no image");
    let entries = applied["metadata"]["managedFields"].as_array().expect("managers");
    let own = entries.iter().find(|entry| entry["manager"] == "m").expect("an entry");
    assert_eq!(own["subresource"], "status");
    let fields = json!({"k:{\"type\":\"example.com/x\"}": {".": {}, "f:status": {}, "f:type": {}}});
    assert_eq!(own["fieldsV1"], json!({"f:status": {"f:conditions": fields}}));
    let missing = "/api/v1/namespaces/a/pods/missing/status";
    let mut other = document("True");
    other["metadata"]["name"] = "missing".into();
    apply(&client, missing, "fieldManager=m", &other).await.refused(404, "NotFound");
}

#[tokio::test]
async fn what_is_no_apply_is_refused() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a/configmaps/c";
    let document = config_map("c", "1");
    let message = apply(&client, url, "", &document).await.refused(422, "Invalid");
    assert_eq!(
        message,
        r#"PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch"#
    );
    let merge = client.patch(&format!("{url}?force=true"), "merge", json!({})).await;
    merge.refused(422, "Invalid");
    let cbor = [("content-type", "application/apply-patch+cbor")];
    for url in
        [url.to_owned(), format!("{url}?fieldManager=m&force=true"), format!("{url}?force=true&dryRun=x")]
    {
        // Whatever else is wrong.
        client.send(Method::PATCH, &url, &cbor, "").await.refused(415, "UnsupportedMediaType");
    }
    let scale = "/apis/apps/v1/namespaces/a/deployments/c/scale?force=true";
    client.send(Method::PATCH, scale, &cbor, "").await.refused(415, "UnsupportedMediaType");
    let manager = "fieldManager=m";
    let unknown = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "spec": 1});
    let message = apply(&client, url, manager, &unknown).await.refused(500, "");
    assert_eq!(
        message,
        "failed to create typed patch object (/c; /v1, Kind=ConfigMap): .spec: field not declared in schema"
    );
    let message = apply(&client, url, manager, &pod("c")).await.refused(400, "BadRequest");
    assert_eq!(message, "invalid object type: /v1, Kind=Pod");
    let mut managed = document.clone();
    managed["metadata"]["managedFields"] = json!([]);
    let message = apply(&client, url, manager, &managed).await.refused(400, "BadRequest");
    assert_eq!(message, "metadata.managedFields must be nil");
    apply(&client, url, manager, &config_map("other", "1")).await.refused(400, "BadRequest");
    let mut identified = document.clone();
    identified["metadata"]["uid"] = "u".into();
    apply(&client, url, manager, &identified).await.refused(409, "Conflict");
    client.send(Method::PATCH, &format!("{url}?{manager}"), APPLY, "- a").await.refused(400, "BadRequest");
    client.get(url).await.refused(404, "NotFound");
}

#[tokio::test]
async fn a_dry_run_tells_what_would_be_and_keeps_nothing() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a/configmaps/c";
    apply(&client, url, "fieldManager=m&dryRun=All", &config_map("c", "1")).await.created();
    client.get(url).await.refused(404, "NotFound");
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\ndata:\n  k: \"1\"\n";
    let created = client.send(Method::PATCH, &format!("{url}?fieldManager=m"), APPLY, yaml).await.created();
    let dry = apply(&client, url, "fieldManager=m&dryRun=All", &config_map("c", "2")).await.ok();
    assert_eq!(dry["data"]["k"], "2");
    assert_eq!(client.get(url).await.ok(), created);
}

#[tokio::test]
async fn managers_are_forgotten_if_a_client_asks_for_it() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a/configmaps/c";
    apply(&client, url, "fieldManager=m", &config_map("c", "1")).await.created();
    let patch = json!([{"op": "replace", "path": "/metadata/managedFields", "value": [{}]}]);
    let reset = client.patch(url, "json", patch).await.ok();
    assert_eq!(reset["metadata"]["managedFields"], Value::Null);
    let untracked = client.patch(url, "merge", json!({"data": {"x": "1"}})).await.ok();
    assert_eq!(managers(&untracked), []);
    let applied = apply(&client, url, "fieldManager=n", &config_map("c", "1")).await.ok();
    assert_eq!(managers(&applied), [entry("n", "Apply", ""), entry("before-first-apply", "Update", "")]);
    // Of what makes no sense nothing is taken.
    let mut nonsense = applied.clone();
    nonsense["metadata"]["managedFields"] = json!([{"manager": "x", "operation": "Steal"}]);
    assert_eq!(client.put(url, nonsense).await.ok(), applied);
}

#[tokio::test]
async fn an_object_of_which_only_a_managers_time_would_change_is_not_written() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a/configmaps/c";
    let mut document = config_map("c", "1");
    // Gone once it is read again, so that each time it is something new.
    document["binaryData"] = json!({});
    let mut told = apply(&client, url, "fieldManager=m", &document).await.created();
    told["metadata"]["managedFields"][0]["time"] = "2020-01-01T00:00:00Z".into();
    told["data"]["x"] = "1".into();
    let told = client.put(&format!("{url}?fieldManager=other"), told).await.ok();
    assert_eq!(told["metadata"]["managedFields"][0]["time"], "2020-01-01T00:00:00Z");
    assert_eq!(apply(&client, url, "fieldManager=m", &document).await.ok(), told);
}

#[tokio::test]
async fn managers_meet_in_whatever_version_they_apply() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    let document = |version: &str, most: u32| {
        json!({
            "apiVersion": format!("autoscaling/{version}"), "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": most, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}},
        })
    };
    let url = |version: &str| format!("/apis/autoscaling/{version}/namespaces/a/horizontalpodautoscalers/h");
    apply(&client, &url("v2"), "fieldManager=m", &document("v2", 3)).await.created();
    let message =
        apply(&client, &url("v1"), "fieldManager=n", &document("v1", 4)).await.refused(409, "Conflict");
    assert!(message.ends_with(r#"conflict with "m": .spec.maxReplicas"#), "{message}");
    let own = apply(&client, &url("v1"), "fieldManager=m", &document("v1", 4)).await.ok();
    assert_eq!(own["spec"]["maxReplicas"], 4, "an applier is the same in every version");
    assert_eq!(own["metadata"]["managedFields"][0]["apiVersion"], "autoscaling/v1");
}

#[tokio::test]
async fn kubectl_goes_over_from_its_own_apply_to_the_servers() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    let mut own = deployment(Some(1), "i:1");
    let annotation = own.to_string();
    own["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": annotation});
    let url = "/apis/apps/v1/namespaces/a/deployments?fieldManager=kubectl-client-side-apply";
    client.post(url, own).await.created();
    let wanted = deployment(Some(1), "i:2");
    apply(&client, WEB, "fieldManager=other", &wanted).await.refused(409, "Conflict");
    let applied = apply(&client, WEB, "fieldManager=kubectl", &wanted).await.ok();
    assert_eq!(applied["spec"]["template"]["spec"]["containers"][0]["image"], "i:2");
    let text = &applied["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
    let kept: Value = serde_json::from_str(text.as_str().expect("text")).expect("JSON");
    assert_eq!(kept, wanted);
}

#[tokio::test]
async fn managed_fields_are_the_same_in_protobuf() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    apply(&client, WEB, "fieldManager=m", &deployment(None, "i:1")).await.created();
    let protobuf = client.get_as(WEB, "application/vnd.kubernetes.protobuf").await;
    let headers = [("content-type", "application/vnd.kubernetes.protobuf"), ("accept", "application/json")];
    let before = client.get(WEB).await.ok();
    let put = client
        .send(Method::PUT, &format!("{WEB}?fieldManager=x"), &headers, protobuf.bytes.clone())
        .await
        .ok();
    assert_eq!(put, before);
}
