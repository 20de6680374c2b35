//! The range of Service addresses, and each address that is given out, as objects.

use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Client, Cluster};

const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

async fn names(client: &Client) -> Vec<String> {
    let list = client.get(ADDRESSES).await.ok();
    let items = list["items"].as_array().into_iter().flatten();
    items.map(|item| item["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect()
}

fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({"metadata": {"name": name}, "spec": spec});
    service["spec"]["ports"] = json!([{"port": 80}]);
    service
}

#[tokio::test]
async fn the_default_range_is_ready_and_stays() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let url = "/apis/networking.k8s.io/v1/servicecidrs/kubernetes";
    let range = admin.get(url).await.ok();
    assert_eq!(range["spec"]["cidrs"], json!(["10.96.0.0/16"]));
    let condition = &range["status"]["conditions"][0];
    assert_eq!((&condition["type"], &condition["status"]), (&json!("Ready"), &json!("True")));
    assert_eq!(condition["message"], "Kubernetes default Service CIDR is ready");
    assert_eq!(admin.get(&format!("{url}/status")).await.ok()["metadata"]["uid"], range["metadata"]["uid"]);
    let moved = json!({"spec": {"cidrs": ["10.97.0.0/16"]}});
    admin.patch(url, "merge", moved).await.refused(422, "Invalid");
    admin.delete(url).await.ok();
    assert!(admin.get(url).await.ok()["metadata"]["deletionTimestamp"].is_string(), "its finalizer holds it");
}

#[tokio::test]
async fn an_address_is_an_object_for_as_long_as_a_service_has_it() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    assert_eq!(names(&admin).await, ["10.96.0.1"], "that of the kubernetes Service");
    let services = "/api/v1/namespaces/a/services";
    admin.post(services, service("s", json!({"clusterIP": "10.96.7.7"}))).await.created();
    let address = admin.get(&format!("{ADDRESSES}/10.96.7.7")).await.ok();
    assert_eq!(
        address["spec"]["parentRef"],
        json!({"group": "", "resource": "services", "namespace": "a", "name": "s"})
    );
    assert_eq!(
        address["metadata"]["labels"],
        json!({"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"})
    );
    let dry = service("dry", json!({"clusterIP": "10.96.7.8"}));
    admin.post(&format!("{services}?dryRun=All"), dry).await.created();
    let external = json!({"spec": {"type": "ExternalName", "externalName": "x.org", "clusterIP": null, "clusterIPs": null}});
    admin.patch(&format!("{services}/s"), "merge", external).await.ok();
    assert_eq!(names(&admin).await, ["10.96.0.1"], "given back");
    let back = json!({"spec": {"type": "ClusterIP", "externalName": null}});
    let back = admin.patch(&format!("{services}/s"), "merge", back).await.ok();
    let ip = back["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    assert!(names(&admin).await.contains(&ip));
    admin.delete(&format!("{services}/s")).await.ok();
    assert_eq!(names(&admin).await, ["10.96.0.1"]);
}

#[tokio::test]
async fn an_address_that_belongs_to_something_else_is_not_given_out() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let gateway = json!({"group": "example.org", "resource": "gateways", "namespace": "a", "name": "g"});
    let address = |name: &str| json!({"metadata": {"name": name}, "spec": {"parentRef": gateway}});
    admin.post(ADDRESSES, address("10.96.7.7")).await.created();
    admin.post(ADDRESSES, address("fe80::42:1dff:fe84:f9e2")).await.created();
    admin.post(ADDRESSES, address("10.96.07.7")).await.refused(422, "Invalid");
    let services = "/api/v1/namespaces/a/services";
    let message = admin.post(services, service("s", json!({"clusterIP": "10.96.7.7"}))).await;
    let message = message.refused(422, "Invalid");
    assert!(message.contains("provided IP is already allocated"), "{message}");
}

#[tokio::test]
async fn a_restart_puts_right_what_was_interrupted() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let services = "/api/v1/namespaces/a/services";
    admin.post(services, service("s", json!({"clusterIP": "10.96.7.7"}))).await.created();
    admin.delete(&format!("{ADDRESSES}/10.96.7.7")).await.ok();
    let left = json!({
        "metadata": {"name": "10.96.9.9", "labels": {"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
        "spec": {"parentRef": {"resource": "services", "namespace": "a", "name": "gone"}},
    });
    admin.post(ADDRESSES, left).await.created();
    let cluster = cluster.restart().await;
    assert_eq!(names(&cluster.admin()).await, ["10.96.0.1", "10.96.7.7"]);
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = cluster.admin().send(Method::GET, ADDRESSES, &table, "").await.ok();
    assert_eq!(table["rows"][1]["cells"], json!(["10.96.7.7", "services/a/s"]));
}

#[tokio::test]
async fn a_service_that_its_last_finalizer_held_gives_back_what_it_had() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let list = "/api/v1/namespaces/a/services";
    let service = |name: &str| {
        json!({"metadata": {"name": name, "finalizers": ["example.com/held"]}, "spec": {
            "type": "NodePort", "clusterIP": "10.96.7.7", "ports": [{"port": 80, "nodePort": 30_777}],
        }})
    };
    admin.post(list, service("first")).await.created();
    admin.delete(&format!("{list}/first")).await.ok();
    admin.post(list, service("second")).await.refused(422, "Invalid");
    admin.patch(&format!("{list}/first"), "merge", json!({"metadata": {"finalizers": null}})).await.ok();
    assert_eq!(admin.get(&format!("{list}/first")).await.code, 404);
    admin.post(list, service("second")).await.created();
}
