//! Webhooks: what they are told of requests, and what becomes of those.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use base64::Engine as _;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::custom::{DEFINITIONS, FOOS, definition, establish, foo};
use crate::fixture::{Client, Cluster, config_map, pod};
use crate::proxy::tls_of;

pub(crate) const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// A webhook, and the reviews that it was asked.
pub(crate) struct Hook {
    pub(crate) port: u16,
    pub(crate) asked: Arc<Mutex<Vec<Value>>>,
}

impl Hook {
    /// `answer` makes the `response` of a review, without its `uid`.
    async fn start(cluster: &Cluster, answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Hook {
        let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (noted, answer) = (asked.clone(), Arc::new(answer));
        let handler = move |body: Bytes| {
            let mut review: Value = serde_json::from_slice(&body).expect("a review");
            let request = review["request"].take();
            let mut response = answer(&request);
            response["uid"] = request["uid"].clone();
            noted.lock().push(request);
            review["response"] = response;
            std::future::ready(axum::Json(review))
        };
        let app = Router::new().fallback(post(handler));
        let pair = cluster.pki.issue("webhook", &[]);
        let acceptor = tls_of(&pair.certificate_pem, &pair.key_pem);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, app) = (acceptor.clone(), app.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper_util::service::TowerToHyperService::new(app);
                    let io = hyper_util::rt::TokioIo::new(stream);
                    _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                });
            }
        });
        Hook { port, asked }
    }

    fn client_config(&self, cluster: &Cluster) -> Value {
        let bundle = base64::engine::general_purpose::STANDARD.encode(cluster.pki.ca_pem());
        json!({"url": format!("https://127.0.0.1:{}/hook", self.port), "caBundle": bundle})
    }

    /// Registers it for some operations on a resource.
    pub(crate) async fn register(
        &self,
        cluster: &Cluster,
        list: &str,
        resource: (&str, &str),
        operations: &[&str],
        more: Value,
    ) {
        let kind =
            if list == MUTATING { "MutatingWebhookConfiguration" } else { "ValidatingWebhookConfiguration" };
        let mut webhook = json!({
            "name": "hook.example.com", "clientConfig": self.client_config(cluster), "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "rules": [{"operations": operations, "apiGroups": [resource.0], "apiVersions": ["*"], "resources": [resource.1]}],
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            webhook[field] = value.clone();
        }
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "hooks"},
            "webhooks": [webhook],
        });
        cluster.admin().post(list, configuration).await.created();
    }

    fn asked(&self) -> Vec<Value> {
        self.asked.lock().clone()
    }
}

fn patch(operations: &Value) -> Value {
    let encoded = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    json!({"allowed": true, "patchType": "JSONPatch", "patch": encoded})
}

fn denied(why: &str) -> Value {
    json!({"allowed": false, "status": {"message": why}, "warnings": ["think again"]})
}

const MAPS: &str = "/api/v1/namespaces/a/configmaps";

#[tokio::test]
async fn a_validating_webhook_is_told_of_creations_updates_and_deletions_and_may_refuse_them() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    let hook = Hook::start(&cluster, |request| {
        let object =
            if request["operation"] == "DELETE" { &request["oldObject"] } else { &request["object"] };
        if object["data"]["k"] == "bad" {
            denied("bad data")
        } else {
            json!({"allowed": true, "warnings": ["noted"]})
        }
    })
    .await;
    client.post(MAPS, config_map("old", "bad")).await.created();
    hook.register(&cluster, VALIDATING, ("", "configmaps"), &["CREATE", "UPDATE", "DELETE"], json!({})).await;

    let why = client.post(MAPS, config_map("new", "bad")).await.refused(400, "");
    assert_eq!(why, "admission webhook \"hook.example.com\" denied the request: bad data");
    let created = client.post(MAPS, config_map("new", "good")).await;
    assert_eq!(created.headers["warning"], "299 - \"noted\"");
    created.created();
    client.patch(&format!("{MAPS}/new"), "merge", json!({"data": {"k": "bad"}})).await.refused(400, "");
    assert_eq!(client.get(&format!("{MAPS}/new")).await.ok()["data"]["k"], "good", "nothing was written");
    client.delete(&format!("{MAPS}/old")).await.refused(400, "");
    client.delete(&format!("{MAPS}/new?dryRun=All")).await.ok();
    client.delete(&format!("{MAPS}/new")).await.ok();

    let asked = hook.asked();
    let told: Vec<(&str, bool, bool, bool)> = asked
        .iter()
        .map(|r| {
            (
                r["operation"].as_str().expect("text"),
                r["object"].is_object(),
                r["oldObject"].is_object(),
                r["dryRun"] == true,
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("CREATE", true, false, false),
            ("CREATE", true, false, false),
            ("UPDATE", true, true, false),
            ("DELETE", false, true, false),
            ("DELETE", false, true, true),
            ("DELETE", false, true, false),
        ]
    );
    assert_eq!(asked[2]["oldObject"]["data"]["k"], "good");
    assert_eq!(asked[2]["options"]["kind"], "PatchOptions");
    assert_eq!(asked[0]["userInfo"]["username"], "admin");
}

#[tokio::test]
async fn a_mutating_webhook_changes_what_is_stored_and_not_what_nobody_may_change() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    let hook = Hook::start(&cluster, |request| {
        let path = if request["object"]["data"].is_object() { "/data/added" } else { "/data" };
        patch(&json!([
            {"op": "add", "path": path, "value": "by the webhook"},
            {"op": "replace", "path": "/metadata/uid", "value": "mine"},
        ]))
    })
    .await;
    hook.register(&cluster, MUTATING, ("", "configmaps"), &["CREATE", "UPDATE"], json!({})).await;
    let created = client.post(MAPS, config_map("new", "v")).await.created();
    assert_eq!(created["data"], json!({"k": "v", "added": "by the webhook"}));
    assert_ne!(created["metadata"]["uid"], "mine");
    let mut named = config_map("", "v");
    named["metadata"] = json!({"generateName": "some-"});
    client.post(MAPS, named).await.created();
    assert_eq!(hook.asked()[1]["name"], Value::Null, "a name is generated afterwards");
}

#[tokio::test]
async fn a_mutating_webhook_changes_no_more_of_an_update_than_a_request_may() {
    const CONTROLLERS: &str = "/api/v1/namespaces/a/replicationcontrollers";
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    let controller = json!({
        "metadata": {"name": "c"},
        "spec": {"replicas": 1, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]},
        }},
    });
    let created = client.post(CONTROLLERS, controller).await.created();
    let calls = std::sync::atomic::AtomicU64::new(1);
    let hook = Hook::start(&cluster, move |_| {
        let nth = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        patch(&json!([
            {"op": "replace", "path": "/status", "value": {"replicas": 7}},
            {"op": "replace", "path": "/metadata/generation", "value": 70},
            {"op": "replace", "path": "/spec/replicas", "value": 10 * nth},
        ]))
    })
    .await;
    // What the second changes, the first is shown: its change is the last.
    let rule = ("", "replicationcontrollers");
    hook.register(&cluster, MUTATING, rule, &["UPDATE"], json!({"reinvocationPolicy": "IfNeeded"})).await;
    let first = client.get(&format!("{MUTATING}/hooks")).await.ok()["webhooks"][0].clone();
    let mut second = first.clone();
    (second["name"], second["reinvocationPolicy"]) = ("second.example.com".into(), "Never".into());
    client.patch(&format!("{MUTATING}/hooks"), "merge", json!({"webhooks": [first, second]})).await.ok();
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    let updated = client.patch(&format!("{CONTROLLERS}/c"), "merge", label).await.ok();
    assert_eq!((hook.asked().len(), &updated["spec"]["replicas"]), (3, &json!(30)));
    assert_eq!(updated["status"], created["status"]);
    assert_eq!(updated["metadata"]["generation"], 2, "raised for what the webhooks changed");
}

#[tokio::test]
async fn a_webhook_that_is_away_fails_the_request_or_is_ignored_as_it_says() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    let nowhere = Hook { port: 1, asked: Arc::default() };
    nowhere
        .register(&cluster, VALIDATING, ("", "configmaps"), &["CREATE"], json!({"failurePolicy": "Fail"}))
        .await;
    let why = client.post(MAPS, config_map("a", "v")).await.refused(500, "InternalError");
    assert!(why.contains("failed calling webhook \"hook.example.com\": failed to call webhook: Post \"https://127.0.0.1:1/hook?timeout=10s\""), "{why}");
    let ignore = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]);
    cluster.admin().patch(&format!("{VALIDATING}/hooks"), "json", ignore).await.ok();
    client.post(MAPS, config_map("a", "v")).await.created();
}

#[tokio::test]
async fn a_server_starts_and_cleans_up_though_a_webhook_for_everything_is_away() {
    const KUBERNETES: &str = "/api/v1/namespaces/default/services/kubernetes";
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    establish(&client, &definition()).await;
    client.post(FOOS, foo("one", json!({}))).await.created();
    let nowhere = Hook { port: 1, asked: Arc::default() };
    client.delete(KUBERNETES).await.ok();
    for list in [MUTATING, VALIDATING] {
        nowhere.register(&cluster, list, ("*", "*/*"), &["*"], json!({})).await;
    }
    client.post(MAPS, config_map("a", "v")).await.refused(500, "InternalError");
    let cluster = cluster.restart().await;
    let client = cluster.admin();
    assert_eq!(client.get(&format!("{FOOS}/one")).await.code, 200);
    assert_eq!(client.get(KUBERNETES).await.code, 200, "the server made it again");
    for list in [MUTATING, VALIDATING] {
        client.delete(&format!("{list}/hooks")).await.ok();
    }
    client.delete(&format!("{DEFINITIONS}/foos.example.com")).await.ok();
}

#[tokio::test]
async fn what_connects_to_a_pod_is_shown_to_webhooks() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    client.post("/api/v1/namespaces/a/pods", pod("p")).await.created();
    let hook = Hook::start(&cluster, |_| denied("no attaching")).await;
    hook.register(&cluster, VALIDATING, ("", "pods/attach"), &["CONNECT"], json!({})).await;
    let why = client.get("/api/v1/namespaces/a/pods/p/attach?container=c&stdin=true").await.refused(400, "");
    assert_eq!(why, "admission webhook \"hook.example.com\" denied the request: no attaching");
    let asked = hook.asked();
    assert_eq!(
        (&asked[0]["kind"]["kind"], &asked[0]["object"]["container"]),
        (&json!("PodAttachOptions"), &json!("c"))
    );
}

/// A definition of two versions, between which a webhook converts.
fn converted_definition(hook: &Hook, cluster: &Cluster) -> Value {
    let mut definition = definition();
    let mut second = definition["spec"]["versions"][0].clone();
    second["name"] = "v2".into();
    second["storage"] = false.into();
    let spec = &mut second["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let colour = spec["color"].clone();
    spec.as_object_mut().expect("properties").remove("color");
    spec["colour"] = colour;
    second["selectableFields"] = json!([{"jsonPath": ".spec.colour"}]);
    second["additionalPrinterColumns"][0]["jsonPath"] = ".spec.colour".into();
    definition["spec"]["versions"].as_array_mut().expect("versions").push(second);
    definition["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {
        "clientConfig": hook.client_config(cluster), "conversionReviewVersions": ["v1"],
    }});
    definition
}

/// `color` of `v1` is `colour` of `v2`.
fn convert(request: &Value) -> Value {
    let to = &request["desiredAPIVersion"];
    let objects: Vec<Value> = request["objects"]
        .as_array()
        .expect("objects")
        .iter()
        .map(|object| {
            let mut object = object.clone();
            object["apiVersion"] = to.clone();
            let spec = object["spec"].as_object_mut().expect("a spec");
            let (from, to) = if to == "example.com/v2" { ("color", "colour") } else { ("colour", "color") };
            if let Some(value) = spec.remove(from) {
                spec.insert(to.to_owned(), value);
            }
            object
        })
        .collect();
    json!({"convertedObjects": objects, "result": {"status": "Success"}})
}

#[tokio::test]
async fn objects_are_converted_by_a_webhook_wherever_another_version_is_asked_for() {
    const SECOND: &str = "/apis/example.com/v2/namespaces/a/foos";
    let cluster = Cluster::start().await;
    let client: Client = cluster.namespace("a").await;
    let hook = Hook::start(&cluster, convert).await;
    establish(&client, &converted_definition(&hook, &cluster)).await;
    client.post(FOOS, foo("one", json!({"color": "blue"}))).await.created();
    let mut two = foo("two", json!({"colour": "red"}));
    two["apiVersion"] = "example.com/v2".into();
    let created = client.post(SECOND, two).await.created();
    assert_eq!(
        (&created["spec"], &created["apiVersion"]),
        (&json!({"colour": "red"}), &json!("example.com/v2"))
    );
    assert_eq!(client.get(&format!("{FOOS}/two")).await.ok()["spec"], json!({"color": "red"}));
    assert_eq!(client.get(&format!("{SECOND}/one")).await.ok()["spec"], json!({"colour": "blue"}));
    let list = client.get(SECOND).await.ok();
    let colours: Vec<&Value> =
        list["items"].as_array().expect("items").iter().map(|i| &i["spec"]["colour"]).collect();
    assert_eq!(colours, ["blue", "red"]);
    let table = client.get_as(SECOND, "application/json;as=Table;g=meta.k8s.io;v=v1").await.ok();
    assert_eq!(table["rows"][0]["cells"][1], "blue");
    let mut watch = client.watch(&format!("{SECOND}?watch=true&resourceVersion=0")).await;
    assert_eq!(watch.next().await.expect("an event").1["spec"]["colour"], "blue");
    assert_eq!(watch.next().await.expect("an event").1["spec"]["colour"], "red");
    let changed = json!({"spec": {"colour": "blue"}});
    client.patch(&format!("{SECOND}/two"), "merge", changed).await.ok();
    assert_eq!(watch.next().await.expect("an event").1["spec"]["colour"], "blue");
    assert_eq!(client.get(&format!("{FOOS}/two")).await.ok()["spec"], json!({"color": "blue"}));

    let blue = format!("{SECOND}?fieldSelector=spec.colour%3Dblue");
    assert_eq!(client.get(&blue).await.ok()["items"].as_array().expect("items").len(), 2);
    let mut blue = client.watch(&format!("{blue}&watch=true")).await;
    assert_eq!(
        (blue.named().await, blue.named().await),
        (("ADDED".into(), "one".into()), ("ADDED".into(), "two".into()))
    );
    client.patch(&format!("{FOOS}/one"), "merge", json!({"spec": {"color": "red"}})).await.ok();
    assert_eq!(blue.named().await, ("DELETED".into(), "one".into()));
    client.delete(&format!("{SECOND}?fieldSelector=spec.colour%3Dblue")).await.ok();
    assert_eq!(blue.named().await, ("DELETED".into(), "two".into()));
    assert_eq!(client.get(FOOS).await.ok()["items"].as_array().expect("items").len(), 1);
}

#[tokio::test]
async fn what_was_stored_in_another_version_is_read_in_that_of_today() {
    const SECOND: &str = "/apis/example.com/v2/namespaces/a/foos";
    let cluster = Cluster::start().await;
    let client: Client = cluster.namespace("a").await;
    let hook = Hook::start(&cluster, convert).await;
    let definition = converted_definition(&hook, &cluster);
    establish(&client, &definition).await;
    client.post(FOOS, foo("one", json!({"color": "blue"}))).await.created();
    let swap = json!([
        {"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true},
    ]);
    let mut old = client.watch(&format!("{FOOS}?watch=true&resourceVersion=0")).await;
    assert_eq!(old.named().await.0, "ADDED");
    client.patch(&format!("{DEFINITIONS}/foos.example.com"), "json", swap).await.ok();
    // Its objects are read anew.
    assert!(old.try_next().await.is_none());
    for (list, field) in [(SECOND, "colour"), (FOOS, "color")] {
        let items = client.get(list).await.ok()["items"].clone();
        assert_eq!(items[0]["spec"], json!({ field: "blue" }), "{list}");
        assert_eq!(client.get(&format!("{list}/one")).await.ok()["spec"], json!({ field: "blue" }));
    }
    client.patch(&format!("{SECOND}/one"), "merge", json!({"spec": {"colour": "red"}})).await.ok();
    assert_eq!(client.get(&format!("{FOOS}/one")).await.ok()["spec"], json!({"color": "red"}));
}

#[tokio::test]
async fn a_converter_that_lies_costs_only_who_asks_for_another_version() {
    const SECOND: &str = "/apis/example.com/v2/namespaces/a/foos";
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    let hook =
        Hook::start(&cluster, |_| json!({"convertedObjects": [], "result": {"status": "Success"}})).await;
    establish(&client, &converted_definition(&hook, &cluster)).await;
    client.post(FOOS, foo("one", json!({}))).await.created();
    let why = client.get(&format!("{SECOND}/one")).await.refused(500, "");
    assert_eq!(why, "conversion webhook for example.com/v1, Kind=Foo returned 0 objects, expected 1");
    client.get(SECOND).await.refused(500, "");
    client.get(FOOS).await.ok();
    let mut watch = client.watch(&format!("{SECOND}?watch=true&resourceVersion=0")).await;
    assert_eq!(watch.next().await.expect("an event").0, "ERROR");
    assert!(watch.try_next().await.is_none());
}
