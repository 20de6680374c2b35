//! What clients learn of the API before they use it.

use std::io::Read as _;

use flate2::read::GzDecoder;
use serde_json::{Value, json};

use crate::fixture::Cluster;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// What upstream's API server answers, without the spaces that it writes for `curl`: path and document. `#aggregated` stands for the
/// header that asks for that form.
fn golden() -> Vec<(String, String)> {
    let mut text = String::new();
    let packed: &[u8] = include_bytes!("../../../tests/reference/discovery.jsonl.gz");
    GzDecoder::new(packed).read_to_string(&mut text).expect("a gzipped file");
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let text = |field: &str| line[field].as_str().expect("text").to_owned();
        (text("path"), text("body"))
    };
    text.lines().map(line).collect()
}

/// A document without the last group, which metrics-server has.
fn without_metrics(document: &str) -> String {
    let heads = [r#",{"name":"metrics.k8s.io""#, r#",{"metadata":{"name":"metrics.k8s.io""#];
    match heads.iter().find_map(|head| document.find(head)) {
        Some(at) => format!("{}]}}", &document[..at]),
        None => document.to_owned(),
    }
}

#[tokio::test]
async fn discovery_is_upstreams_to_the_byte() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut wrong = Vec::new();
    for (path, wanted) in golden() {
        let answer = match path.split_once('#') {
            Some((path, _)) => admin.get_as(path, AGGREGATED).await,
            None => admin.get(&path).await,
        };
        let found = without_metrics(String::from_utf8_lossy(&answer.bytes).trim_end());
        if found != wanted {
            let at = found.bytes().zip(wanted.bytes()).take_while(|(a, b)| a == b).count();
            let around = |text: &str| text.chars().skip(at.saturating_sub(150)).take(400).collect::<String>();
            wrong.push(format!("{path}: {}\n  upstream: {}", around(&found), around(&wanted)));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn kinds_of_one_store_have_one_storage_version() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let hash = async |url: &str, name: &str| -> Value {
        let list = admin.get(url).await.ok();
        let resources = list["resources"].as_array().expect("resources").clone();
        let found = resources.into_iter().find(|resource| resource["name"] == name).expect("the resource");
        found["storageVersionHash"].clone()
    };
    let events = hash("/api/v1", "events").await;
    assert!(events.is_string());
    assert_eq!(hash("/apis/events.k8s.io/v1", "events").await, events);
    let scalers = hash("/apis/autoscaling/v2", "horizontalpodautoscalers").await;
    assert_eq!(hash("/apis/autoscaling/v1", "horizontalpodautoscalers").await, scalers);
    assert_ne!(events, scalers);
    for name in ["pods/status", "bindings", "componentstatuses"] {
        assert_eq!(hash("/api/v1", name).await, Value::Null, "{name}");
    }
}

#[tokio::test]
async fn components_are_listed_in_every_shape() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let url = "/api/v1/componentstatuses";
    let list = admin.get(url).await.ok();
    assert_eq!(
        (&list["kind"], &list["items"][0]["metadata"]["name"]),
        (&json!("ComponentStatusList"), &json!("scheduler"))
    );
    let table = admin.get_as(url, "application/json;as=Table;v=v1;g=meta.k8s.io").await.ok();
    assert_eq!(table["kind"], "Table");
    let names: Vec<&Value> =
        table["columnDefinitions"].as_array().expect("columns").iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["Name", "Status", "Message", "Error"]);
    assert_eq!(table["rows"][2]["cells"], json!(["etcd-0", "Healthy", "ok", ""]));
    assert!(table["columnDefinitions"][1]["description"].as_str().is_some_and(|text| !text.is_empty()));
    let one =
        admin.get_as(&format!("{url}/etcd-0"), "application/json;as=Table;v=v1;g=meta.k8s.io").await.ok();
    assert_eq!(one["rows"][0]["cells"][1], "Healthy");
}
