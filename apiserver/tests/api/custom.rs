//! Custom resources: kinds that come and go while the server runs.

use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Client, Cluster};

pub(crate) const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
pub(crate) const FOOS: &str = "/apis/example.com/v1/namespaces/a/foos";

pub(crate) fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList", "shortNames": ["fo"], "categories": ["all"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {
                    "status": {},
                    "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"},
                },
                "selectableFields": [{"jsonPath": ".spec.color"}],
                "additionalPrinterColumns": [
                    {"name": "Color", "type": "string", "jsonPath": ".spec.color", "description": "What it looks like"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                ],
                "schema": {"openAPIV3Schema": {
                    "type": "object", "description": "A foo",
                    "properties": {
                        "spec": {"type": "object", "properties": {
                            "color": {"type": "string", "default": "red", "enum": ["red", "blue"]},
                            "replicas": {"type": "integer", "minimum": 0},
                            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                                "items": {"type": "object", "required": ["port"], "properties": {
                                    "port": {"type": "integer"}, "name": {"type": "string"},
                                }}},
                        }},
                        "status": {"type": "object", "properties": {
                            "replicas": {"type": "integer"}, "selector": {"type": "string"},
                        }},
                    },
                }},
            }],
        },
    })
}

pub(crate) fn foo(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": name}, "spec": spec})
}

fn condition<'o>(object: &'o Value, type_: &str) -> &'o Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|c| c["type"] == type_).unwrap_or(&Value::Null)
}

/// The object once it is as it should be, or as it was when it was deleted.
pub(crate) async fn until(
    client: &Client,
    list: &str,
    name: &str,
    is: impl Fn(&str, &Value) -> bool,
) -> Value {
    let mut watch = client.watch(&format!("{list}?watch=true&fieldSelector=metadata.name%3D{name}")).await;
    while let Some((event, object)) = watch.next().await {
        if is(&event, &object) {
            return object;
        }
    }
    panic!("the watch of {name} ended");
}

/// Creates a definition and waits until what it declares is served.
pub(crate) async fn establish(client: &Client, definition: &Value) -> Value {
    client.post(DEFINITIONS, definition.clone()).await.created();
    let name = definition["metadata"]["name"].as_str().expect("a name");
    until(client, DEFINITIONS, name, |_, found| condition(found, "Established")["status"] == "True").await
}

/// Waits until nothing is served at a path.
async fn until_unserved(client: &Client, path: &str) {
    while client.get(path).await.code != 404 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_definition_makes_a_kind_that_is_served_like_any_other() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    assert_eq!(client.get(FOOS).await.code, 404);
    let found = establish(&client, &definition()).await;
    assert_eq!(found["status"]["acceptedNames"], found["spec"]["names"]);

    let created = client.post(FOOS, foo("one", json!({"replicas": 2}))).await.created();
    assert_eq!(created["spec"], json!({"replicas": 2, "color": "red"}));
    assert_eq!(created["metadata"]["generation"], 1);
    let list = client.get(FOOS).await.ok();
    assert_eq!(
        (list["kind"].as_str(), list["items"][0]["metadata"]["name"].as_str()),
        (Some("FooList"), Some("one"))
    );
    let table = client.get_as(FOOS, "application/json;as=Table;g=meta.k8s.io;v=v1").await.ok();
    assert_eq!(table["columnDefinitions"][1]["description"], "What it looks like");
    let cells = table["rows"][0]["cells"].as_array().expect("cells");
    assert_eq!(cells[..2], ["one", "red"]);
    let none = client.get(&format!("{FOOS}?fieldSelector=spec.color%3Dblue")).await.ok();
    assert_eq!(none["items"], json!([]));

    let scale = client.get(&format!("{FOOS}/one/scale")).await.ok();
    assert_eq!(scale["spec"]["replicas"], 2);
    let mut scale = scale;
    scale["spec"]["replicas"] = 5.into();
    client.put(&format!("{FOOS}/one/scale"), scale).await.ok();
    let mut one = client.get(&format!("{FOOS}/one")).await.ok();
    assert_eq!((&one["spec"]["replicas"], &one["metadata"]["generation"]), (&json!(5), &json!(2)));
    one["status"] = json!({"replicas": 5});
    one["spec"]["color"] = "blue".into();
    let written = client.put(&format!("{FOOS}/one/status"), one).await.ok();
    assert_eq!((&written["spec"]["color"], &written["status"]["replicas"]), (&json!("red"), &json!(5)));
    assert_eq!(written["metadata"]["generation"], 2);
}

#[tokio::test]
async fn discovery_and_openapi_tell_of_what_a_definition_declares() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    assert_eq!(client.get("/apis/example.com").await.code, 404);
    establish(&client, &definition()).await;
    let group = client.get("/apis/example.com").await.ok();
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let resources = client.get("/apis/example.com/v1").await.ok();
    let names: Vec<&str> = resources["resources"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|r| r["name"].as_str())
        .collect();
    assert_eq!(names, ["foos", "foos/scale", "foos/status"]);
    assert_eq!(resources["resources"][0]["shortNames"], json!(["fo"]));
    let openapi = client.get("/openapi/v3/apis/example.com/v1").await.ok();
    let schema = &openapi["components"]["schemas"]["com.example.v1.Foo"];
    assert_eq!(schema["description"], "A foo");
    // As of kinds that are built in.
    let pod = &client.get("/openapi/v3/api/v1").await.ok()["components"]["schemas"]["io.k8s.api.core.v1.Pod"];
    for field in ["apiVersion", "kind", "metadata"] {
        assert!(schema["properties"][field]["description"].is_string(), "{schema}");
        assert_eq!(
            schema["properties"][field]["description"], pod["properties"][field]["description"],
            "{field}"
        );
    }
    // What patches of custom objects kubectl makes is read from here.
    let path = |root: &str, plural: &str| format!("{root}/namespaces/{{namespace}}/{plural}/{{name}}");
    let taken = |document: &Value, path: String| -> Vec<String> {
        let content = &document["paths"][path]["patch"]["requestBody"]["content"];
        content.as_object().expect("types of patches").keys().cloned().collect()
    };
    let of_custom =
        ["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"];
    assert_eq!(taken(&openapi, path("/apis/example.com/v1", "foos")), of_custom);
    let core = client.get("/openapi/v3/api/v1").await.ok();
    assert!(
        taken(&core, path("/api/v1", "pods")).contains(&"application/strategic-merge-patch+json".to_owned())
    );
    let v2 = client.get("/openapi/v2").await.ok();
    assert!(v2["definitions"]["com.example.v1.Foo"].is_object());
}

#[tokio::test]
async fn a_definition_that_goes_takes_its_objects_with_it() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    establish(&client, &definition()).await;
    for n in 0..20 {
        client.post(FOOS, foo(&format!("f{n}"), json!({}))).await.created();
    }
    let mut held = foo("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/wait"]);
    client.post(FOOS, held).await.created();
    let path = format!("{DEFINITIONS}/foos.example.com");
    client.delete(&path).await.ok();
    until(&client, FOOS, "held", |_, held| held["metadata"]["deletionTimestamp"].is_string()).await;
    let going = client.get(&path).await.ok();
    assert_eq!(condition(&going, "Terminating")["status"], "True");
    let late = client.post(FOOS, foo("late", json!({}))).await.refused(403, "Forbidden");
    assert!(late.ends_with("create not allowed while custom resource definition is terminating"), "{late}");
    let release = json!({"metadata": {"finalizers": null}});
    let gone = until(&client, DEFINITIONS, "foos.example.com", |event, _| event == "DELETED");
    let held = format!("{FOOS}/held");
    let release = client.patch(&held, "merge", release);
    let (_, released) = tokio::join!(gone, release);
    released.ok();
    until_unserved(&client, FOOS).await;
    establish(&client, &definition()).await;
    assert_eq!(client.get(FOOS).await.ok()["items"], json!([]), "nothing is left");
}

#[tokio::test]
async fn what_is_served_is_served_again_after_a_restart() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    establish(&client, &definition()).await;
    client.post(FOOS, foo("one", json!({}))).await.created();
    let cluster = cluster.restart().await;
    assert_eq!(cluster.admin().get(&format!("{FOOS}/one")).await.ok()["spec"]["color"], "red");
}

#[tokio::test]
async fn watches_of_a_version_that_goes_end() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    establish(&client, &definition()).await;
    let mut watch = client.watch(&format!("{FOOS}?watch=true")).await;
    client.post(FOOS, foo("one", json!({}))).await.created();
    assert_eq!(watch.next().await.expect("an event").0, "ADDED");
    client.delete(&format!("{DEFINITIONS}/foos.example.com")).await.ok();
    assert_eq!(watch.next().await.expect("an event").0, "DELETED");
    assert!(watch.try_next().await.is_none(), "the watch ends");
}

#[tokio::test]
async fn what_custom_resources_cannot_be_is_refused_as_upstream_refuses_it() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    establish(&client, &definition()).await;
    client.post(FOOS, foo("one", json!({}))).await.created();
    let refused = client.patch(&format!("{FOOS}/one"), "strategic-merge", json!({})).await;
    assert_eq!(
        refused.refused(415, "UnsupportedMediaType"),
        "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
    );
    let protobuf = [("content-type", "application/vnd.kubernetes.protobuf")];
    client.send(Method::POST, FOOS, &protobuf, "k8s\0".to_owned()).await.refused(415, "UnsupportedMediaType");
    let update = client.put(&format!("{FOOS}/one"), foo("one", json!({"replicas": 1}))).await;
    let why = update.refused(422, "Invalid");
    assert!(
        why.contains("metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"),
        "{why}"
    );
}

#[tokio::test]
async fn what_an_older_schema_let_in_is_pruned_and_given_defaults_when_it_is_read() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    establish(&client, &definition()).await;
    client.post(FOOS, foo("one", json!({"replicas": 2}))).await.created();
    let mut watch = client.watch(&format!("{FOOS}?watch=true&resourceVersion=0")).await;
    assert_eq!(watch.named().await.0, "ADDED");
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let changed = json!([
        {"op": "add", "path": format!("{spec}/size"), "value": {"type": "string", "default": "large"}},
        {"op": "remove", "path": format!("{spec}/ports")},
    ]);
    client.patch(&format!("{DEFINITIONS}/foos.example.com"), "json", changed).await.ok();
    assert!(watch.try_next().await.is_none(), "its objects are read anew");
    let read = client.get(&format!("{FOOS}/one")).await.ok();
    assert_eq!(read["spec"], json!({"replicas": 2, "color": "red", "size": "large"}));
}

#[tokio::test]
async fn what_stands_twice_in_yaml_is_told_with_its_line() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    establish(&client, &definition()).await;
    let yaml =
        "apiVersion: example.com/v1\nkind: Foo\nmetadata:\n  name: one\nspec:\n  color: red\n  color: blue\n";
    let applied = |validation: &'static str| {
        let url = format!("{FOOS}/one?fieldManager=m&fieldValidation={validation}");
        let client = &client;
        async move {
            client.send(Method::PATCH, &url, &[("content-type", "application/apply-patch+yaml")], yaml).await
        }
    };
    let why = applied("Strict").await.refused(400, "BadRequest");
    assert!(why.contains("line 7: key \"color\" already set in map"), "{why}");
    assert_eq!(applied("Warn").await.created()["spec"]["color"], "blue", "the last counts");
}
