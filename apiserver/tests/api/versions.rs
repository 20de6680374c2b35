//! Kinds that are served in two versions: one stored object, seen through both.

use serde_json::{Value, json};

use crate::fixture::{Client, Cluster};

const CORE: &str = "/api/v1/namespaces/a/events";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/a/events";
const V1: &str = "/apis/autoscaling/v1/namespaces/a/horizontalpodautoscalers";
const V2: &str = "/apis/autoscaling/v2/namespaces/a/horizontalpodautoscalers";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

fn event(name: &str) -> Value {
    json!({
        "metadata": {"name": name}, "eventTime": "2026-01-01T00:00:00.123456Z", "type": "Normal",
        "reportingController": "example.com/c", "reportingInstance": "c-0", "action": "Run", "reason": "Ran",
        "regarding": {"kind": "Pod", "namespace": "a", "name": "p"}, "note": "it ran",
    })
}

async fn cells(admin: &Client, url: &str) -> Value {
    let table: Value = admin.get_as(url, TABLE).await.ok();
    table["rows"].as_array().expect("rows").iter().map(|row| row["cells"].clone()).collect()
}

#[tokio::test]
async fn an_event_is_one_object_in_two_groups() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let mut core_watch = admin.watch(&format!("{CORE}?watch=true")).await;
    let mut events_watch = admin.watch(&format!("{EVENTS}?watch=true")).await;

    let created = admin.post(EVENTS, event("e")).await.created();
    assert_eq!((&created["apiVersion"], &created["note"]), (&json!("events.k8s.io/v1"), &json!("it ran")));
    let core = admin.get(&format!("{CORE}/e")).await.ok();
    assert_eq!(core["apiVersion"], "v1");
    assert_eq!(core["involvedObject"]["name"], "p");
    assert_eq!(core["message"], "it ran");
    assert_eq!(core["reportingComponent"], "example.com/c");
    assert!(core["note"].is_null() && core["regarding"].is_null());
    assert_eq!(core["metadata"]["uid"], created["metadata"]["uid"]);

    let old = json!({
        "metadata": {"name": "Old.Style"}, "involvedObject": {"kind": "Pod", "namespace": "a", "name": "q"},
        "message": "m", "count": 2, "source": {"component": "kubelet", "host": "n"},
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:05Z", "reason": "r",
    });
    admin.post(CORE, old).await.created();
    let list = admin.get(EVENTS).await.ok();
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("EventList"), &json!("events.k8s.io/v1")));
    let seen = &list["items"][0];
    assert_eq!(seen["deprecatedCount"], 2);
    assert_eq!(seen["deprecatedSource"], json!({"component": "kubelet", "host": "n"}));
    assert_eq!(seen["deprecatedFirstTimestamp"], "2026-01-01T00:00:00Z");
    assert_eq!(seen["deprecatedLastTimestamp"], "2026-01-01T00:00:05Z");

    let patch = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:09.000000Z"}});
    admin.patch(&format!("{EVENTS}/e"), "strategic-merge", patch).await.ok();
    assert_eq!(admin.get(&format!("{CORE}/e")).await.ok()["series"]["count"], 2);
    admin.delete(&format!("{EVENTS}/e")).await.ok();
    admin.get(&format!("{CORE}/e")).await.refused(404, "NotFound");

    for expected in [("ADDED", "e"), ("ADDED", "Old.Style"), ("MODIFIED", "e"), ("DELETED", "e")] {
        let (kind, object) = core_watch.next().await.expect("an event");
        assert_eq!((kind.as_str(), object["metadata"]["name"].as_str()), (expected.0, Some(expected.1)));
        assert!(object["apiVersion"] == "v1" && object["involvedObject"].is_object());
        let (kind, object) = events_watch.next().await.expect("an event");
        assert_eq!((kind.as_str(), object["metadata"]["name"].as_str()), (expected.0, Some(expected.1)));
        assert!(object["apiVersion"] == "events.k8s.io/v1" && object["regarding"].is_object());
    }
}

#[tokio::test]
async fn events_are_held_to_the_rules_of_the_group_they_come_through() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let mut bad = event("e");
    for field in ["action", "reportingController", "reportingInstance"] {
        bad[field] = Value::Null;
    }
    bad["deprecatedCount"] = 1.into();
    let answer = admin.post(EVENTS, bad).await;
    let message = answer.refused(422, "Invalid");
    for part in [
        "reportingController: Required value",
        "reportingInstance: Required value",
        "action: Required value",
        "count: Invalid value: \"\": needs to be unset",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert_eq!(answer.json()["details"]["group"], "events.k8s.io");

    admin.post(EVENTS, event("e")).await.created();
    let url = format!("{EVENTS}/e");
    let message = admin.patch(&url, "merge", json!({"note": "other"})).await.refused(422, "Invalid");
    assert!(message.contains("message: Invalid value: \"other\": field is immutable"), "{message}");
    let through_core = admin.patch(&format!("{CORE}/e"), "merge", json!({"message": "other"})).await.ok();
    assert_eq!(through_core["message"], "other", "the core group never minded");
    let elsewhere = json!({"metadata": {"name": "x"}, "involvedObject": {"namespace": "b"}});
    let message = admin.post(CORE, elsewhere).await.refused(422, "Invalid");
    assert!(
        message.contains("involvedObject.namespace: Invalid value: \"b\": does not match event.namespace")
    );
}

#[tokio::test]
async fn events_are_selected_and_printed_alike_in_both_groups() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    admin.post(EVENTS, event("e")).await.created();
    let other = json!({
        "metadata": {"name": "f"}, "involvedObject": {"kind": "Node", "namespace": "a", "name": "n"},
        "source": {"component": "kubelet"},
    });
    admin.post(CORE, other).await.created();
    let count = async |url: String| admin.get(&url).await.ok()["items"].as_array().map(Vec::len);
    assert_eq!(count(format!("{EVENTS}?fieldSelector=regarding.kind%3DPod")).await, Some(1));
    assert_eq!(count(format!("{EVENTS}?fieldSelector=reportingController%3Dexample.com/c")).await, Some(1));
    assert_eq!(count(format!("{CORE}?fieldSelector=involvedObject.kind%3DPod")).await, Some(1));
    assert_eq!(count(format!("{CORE}?fieldSelector=source%3Dexample.com/c")).await, Some(1));
    assert_eq!(count(format!("{CORE}?fieldSelector=source%3Dkubelet")).await, Some(1));
    let url = format!("{EVENTS}?fieldSelector=involvedObject.kind%3DPod");
    let message = admin.get(&url).await.refused(400, "BadRequest");
    assert_eq!(message, "field label not supported: involvedObject.kind");
    let rows = cells(&admin, EVENTS).await;
    assert_eq!(rows, cells(&admin, CORE).await);
    assert_eq!(rows[0][3], "pod/p");
    assert_eq!(rows[0][6], "it ran");
    let table: Value = admin.get_as(EVENTS, TABLE).await.ok();
    let definitions = table["columnDefinitions"].as_array().expect("columns");
    let names: Vec<&str> = definitions.iter().filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(names[..4], ["Last Seen", "Type", "Reason", "Object"]);
}

#[tokio::test]
async fn an_autoscaler_is_stored_in_v2_and_served_in_both() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let target = json!({"kind": "Deployment", "name": "web", "apiVersion": "apps/v1"});
    let mut old = json!({"metadata": {"name": "old"}, "spec": {"scaleTargetRef": target, "maxReplicas": 3}});
    let created = admin.post(V1, old.clone()).await.created();
    assert_eq!(created["spec"]["minReplicas"], 1);
    assert_eq!(created["spec"]["targetCPUUtilizationPercentage"], 80, "as it will be read again");
    let new = admin.get(&format!("{V2}/old")).await.ok();
    assert_eq!(new["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
    assert_eq!(new["metadata"]["generation"], 1);
    let stored = cluster.store.range(range("/registry/horizontalpodautoscalers/a/")).await.expect("a range");
    let stored: Value = serde_json::from_slice(&stored.items[0].value).expect("JSON");
    assert_eq!(stored["apiVersion"], "autoscaling/v2");

    let metric = json!({"type": "Pods", "pods": {"metric": {"name": "m"},
        "target": {"type": "AverageValue", "averageValue": "5"}}});
    admin.patch(&format!("{V2}/old"), "merge", json!({"spec": {"metrics": [metric]}})).await.ok();
    let condition =
        json!({"type": "AbleToScale", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let status = json!({"status": {"currentReplicas": 2, "desiredReplicas": 2, "conditions": [condition]}});
    admin.patch(&format!("{V2}/old/status"), "merge", status).await.ok();
    let seen = admin.get(&format!("{V1}/old")).await.ok();
    let annotations = &seen["metadata"]["annotations"];
    assert!(annotations["autoscaling.alpha.kubernetes.io/metrics"].is_string(), "{seen}");
    assert!(annotations["autoscaling.alpha.kubernetes.io/conditions"].is_string(), "{seen}");

    // An update through v1 changes neither what it cannot say nor, by an annotation, the status.
    let mut update = seen.clone();
    update["spec"]["maxReplicas"] = 9.into();
    update["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/conditions"] = "[]".into();
    admin.put(&format!("{V1}/old"), update).await.ok();
    let new = admin.get(&format!("{V2}/old")).await.ok();
    assert_eq!(new["spec"]["maxReplicas"], 9);
    assert_eq!(new["spec"]["metrics"][0]["pods"]["metric"]["name"], "m");
    assert_eq!(new["status"]["conditions"][0]["type"], "AbleToScale");
    assert!(new["metadata"]["annotations"].is_null());

    let rows = cells(&admin, V1).await;
    assert_eq!(rows, cells(&admin, V2).await);
    let row = rows[0].as_array().expect("cells");
    assert_eq!(row[1..6], [json!("Deployment/web"), json!("<unknown>/5"), json!("1"), json!(9), json!(2)]);
    old["metadata"]["name"] = "bad".into();
    old["spec"]["minReplicas"] = (-1).into();
    old["spec"]["maxReplicas"] = 0.into();
    let message = admin.post(V1, old).await.refused(422, "Invalid");
    assert!(
        message.contains("spec.minReplicas: Invalid value: -1: must be greater than or equal to 0"),
        "{message}"
    );
    assert!(
        message.contains("spec.maxReplicas: Required value: must be set and greater than 0"),
        "{message}"
    );
}

#[tokio::test]
async fn discovery_and_openapi_tell_both_versions_and_which_is_preferred() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let groups = admin.get("/apis").await.ok();
    let names: Vec<&str> =
        groups["groups"].as_array().expect("groups").iter().filter_map(|g| g["name"].as_str()).collect();
    assert_eq!(
        names[..6],
        [
            "apiregistration.k8s.io",
            "apps",
            "events.k8s.io",
            "authentication.k8s.io",
            "authorization.k8s.io",
            "autoscaling"
        ]
    );
    let autoscaling = admin.get("/apis/autoscaling").await.ok();
    assert_eq!(autoscaling["preferredVersion"]["version"], "v2");
    let versions: Vec<&Value> =
        autoscaling["versions"].as_array().expect("versions").iter().map(|v| &v["version"]).collect();
    assert_eq!(versions, ["v2", "v1"]);
    let resources = admin.get("/apis/events.k8s.io/v1").await.ok();
    assert_eq!(resources["resources"][0]["name"], "events");
    assert_eq!(resources["resources"][0]["shortNames"], json!(["ev"]));
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let aggregated = admin.get_as("/apis", accept).await.ok();
    let group = aggregated["items"]
        .as_array()
        .expect("items")
        .iter()
        .find(|g| g["metadata"]["name"] == "autoscaling");
    let group = group.expect("the group");
    assert_eq!(group["versions"][0]["version"], "v2");
    assert_eq!(group["versions"][1]["version"], "v1");
    // Of the version itself nothing is said again.
    assert_eq!(group["versions"][1]["resources"][0]["responseKind"]["version"], "");
    for (path, name) in [
        ("/openapi/v3/apis/events.k8s.io/v1", "io.k8s.api.events.v1.Event"),
        ("/openapi/v3/apis/autoscaling/v1", "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler"),
        ("/openapi/v3/apis/autoscaling/v2", "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler"),
    ] {
        let document = admin.get(path).await.ok();
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
}

fn range(prefix: &str) -> skiff_apiserver::store::Range {
    skiff_apiserver::store::Range::prefix(prefix)
}
