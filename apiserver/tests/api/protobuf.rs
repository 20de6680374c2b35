//! Protobuf in and out. The bytes themselves are held against upstream's in `skiff-api`.

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use skiff_api::decode::{self, Format};
use skiff_api::protobuf;

use crate::fixture::{Answer, Client, Cluster, config_map, pod};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const MAPS: &str = "/api/v1/namespaces/a/configmaps";

/// What client-go sends with: its body and `Accept` in protobuf, with JSON as the fallback.
async fn send(admin: &Client, method: Method, url: &str, document: &Value) -> Answer {
    let headers =
        [("content-type", PROTOBUF), ("accept", "application/vnd.kubernetes.protobuf,application/json")];
    let body = if document.is_null() { Bytes::new() } else { protobuf::document(document).expect("a type") };
    admin.send(method, url, &headers, body).await
}

/// The document of an answer in protobuf; its code.
#[track_caller]
fn read(answer: &Answer) -> (u16, Value) {
    assert_eq!(answer.headers["content-type"], PROTOBUF, "{answer:?}");
    (answer.code, decoded(&answer.bytes))
}

#[track_caller]
fn decoded(bytes: &[u8]) -> Value {
    decode::document(bytes, Format::Protobuf, "", "").unwrap_or_else(|e| panic!("{e}: {bytes:?}"))
}

async fn get(admin: &Client, url: &str) -> (u16, Value) {
    read(&admin.get_as(url, PROTOBUF).await)
}

/// A frame of a watch: what `WatchEvent` says, and its object.
fn event(frame: &[u8]) -> (String, Value) {
    let (field, rest) = frame.split_at(1);
    assert_eq!(field, [0x0a], "the type comes first");
    let (length, rest) = (usize::from(rest[0]), &rest[1..]);
    let (kind, rest) = rest.split_at(length);
    let start = rest.windows(4).position(|four| four == protobuf::MAGIC).expect("an envelope");
    (String::from_utf8(kind.to_vec()).expect("text"), decoded(&rest[start..]))
}

struct Frames {
    body: Body,
    rest: Vec<u8>,
}

impl Frames {
    async fn of(admin: &Client, url: &str) -> Frames {
        let accept = "application/vnd.kubernetes.protobuf;stream=watch,application/json;stream=watch";
        let request = Request::builder().uri(url).header("accept", accept);
        let response = admin.raw(request.body(Body::empty()).expect("a request")).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/vnd.kubernetes.protobuf;stream=watch");
        Frames { body: response.into_body(), rest: Vec::new() }
    }

    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(length) = self.rest.first_chunk::<4>() {
                let end = 4 + u32::from_be_bytes(*length) as usize;
                if self.rest.len() >= end {
                    let frame: Vec<u8> = self.rest.drain(..end).skip(4).collect();
                    return Some(event(&frame));
                }
            }
            let frame = tokio::time::timeout(std::time::Duration::from_secs(20), self.body.frame());
            let frame = frame.await.expect("an event in time")?.expect("the stream goes on");
            self.rest.extend_from_slice(frame.data_ref().expect("data"));
        }
    }

    async fn named(&mut self) -> (String, String) {
        let (kind, object) = self.next().await.expect("an event");
        (kind, object["metadata"]["name"].as_str().unwrap_or_default().to_owned())
    }
}

#[tokio::test]
async fn an_object_lives_in_protobuf_as_it_does_in_json() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let (code, created) = read(&send(&admin, Method::POST, MAPS, &config_map("x", "1")).await);
    assert_eq!((code, &created["data"]["k"]), (201, &json!("1")));
    let url = format!("{MAPS}/x");
    let as_json = admin.get(&url).await.ok();
    assert_eq!(get(&admin, &url).await, (200, as_json.clone()));
    assert_eq!(created, as_json);

    let mut changed = created.clone();
    changed["data"]["k"] = "2".into();
    let (code, updated) = read(&send(&admin, Method::PUT, &url, &changed).await);
    assert_eq!((code, &updated["data"]["k"]), (200, &json!("2")));
    let (code, status) = read(&send(&admin, Method::PUT, &url, &changed).await);
    assert_eq!((code, &status["kind"], &status["reason"]), (409, &json!("Status"), &json!("Conflict")));
    assert_eq!((&status["details"]["name"], &status["code"]), (&json!("x"), &json!(409)));

    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": "other"}});
    let (code, status) = read(&send(&admin, Method::DELETE, &url, &options).await);
    assert_eq!(code, 409, "the options were read: {status}");
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
    let (code, status) = read(&send(&admin, Method::DELETE, &url, &options).await);
    assert_eq!(
        (code, &status["status"], &status["details"]["kind"]),
        (200, &json!("Success"), &json!("configmaps"))
    );
    assert_eq!(get(&admin, &url).await.0, 404);
}

#[tokio::test]
async fn what_is_read_from_protobuf_is_defaulted_and_checked_like_json() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let pods = "/api/v1/namespaces/a/pods";
    let (code, created) = read(&send(&admin, Method::POST, pods, &pod("p")).await);
    assert_eq!((code, &created["spec"]["restartPolicy"]), (201, &json!("Always")));
    let twin = admin.post(pods, pod("q")).await.created();
    let (mut spec, mut other) = (created["spec"].clone(), twin["spec"].clone());
    for spec in [&mut spec, &mut other] {
        // The names of the token volumes are generated.
        spec["volumes"].take();
        spec["containers"][0]["volumeMounts"].take();
    }
    assert_eq!(spec, other);
    let mut bad = pod("bad");
    bad["spec"]["containers"] = json!([]);
    let (code, status) = read(&send(&admin, Method::POST, pods, &bad).await);
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")), "{status}");
    let (code, status) = read(&send(&admin, Method::POST, MAPS, &pod("p")).await);
    let message = status["message"].as_str().expect("a message");
    assert_eq!(code, 400);
    assert!(message.contains("the object provided is unrecognized (must be of type ConfigMap)"), "{message}");
    let headers = [("content-type", PROTOBUF)];
    let garbage = admin.send(Method::POST, MAPS, &headers, "{}").await;
    assert_eq!(
        garbage.refused(400, "BadRequest"),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    );
}

#[tokio::test]
async fn bodies_that_are_no_objects_of_the_kind_may_be_protobuf() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    assert_eq!(read(&send(&admin, Method::POST, "/api/v1/nodes", &node).await).0, 201);
    let pods = "/api/v1/namespaces/a/pods";
    admin.post(pods, pod("p")).await.created();
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"},
    });
    let (code, status) = read(&send(&admin, Method::POST, &format!("{pods}/p/binding"), &binding).await);
    assert_eq!((code, &status["status"]), (201, &json!("Success")), "{status}");
    assert_eq!(get(&admin, &format!("{pods}/p")).await.1["spec"]["nodeName"], "n");
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"},
        "deleteOptions": {"gracePeriodSeconds": 0},
    });
    let (code, status) = read(&send(&admin, Method::POST, &format!("{pods}/p/eviction"), &eviction).await);
    assert_eq!((code, &status["status"]), (201, &json!("Success")), "{status}");
    assert_eq!(get(&admin, &format!("{pods}/p")).await.0, 404);

    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]});
    let set = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "s"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template},
    });
    let sets = "/apis/apps/v1/namespaces/a/replicasets";
    assert_eq!(read(&send(&admin, Method::POST, sets, &set).await).0, 201);
    let scale = json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "s", "namespace": "a"},
        "spec": {"replicas": 3},
    });
    let (code, scale) = read(&send(&admin, Method::PUT, &format!("{sets}/s/scale"), &scale).await);
    assert_eq!((code, &scale["kind"], &scale["spec"]["replicas"]), (200, &json!("Scale"), &json!(3)));

    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600},
    });
    let url = "/api/v1/namespaces/a/serviceaccounts/default/token";
    let (code, token) = read(&send(&admin, Method::POST, url, &request).await);
    assert_eq!((code, &token["kind"]), (201, &json!("TokenRequest")));
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token["status"]["token"]},
    });
    let url = "/apis/authentication.k8s.io/v1/tokenreviews";
    let (code, review) = read(&send(&admin, Method::POST, url, &review).await);
    assert_eq!((code, &review["status"]["authenticated"]), (201, &json!(true)));
    assert_eq!(review["status"]["user"]["username"], "system:serviceaccount:a:default");
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": "u", "extra": {"scope": ["x", "y"]}, "resourceAttributes": {"verb": "get", "resource": "pods"}},
    });
    let url = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let (code, answer) = read(&send(&admin, Method::POST, url, &review).await);
    assert_eq!((code, &answer["status"]["allowed"]), (201, &json!(false)));
    assert_eq!(answer["spec"]["extra"], review["spec"]["extra"]);
}

#[tokio::test]
async fn lists_are_the_same_in_protobuf_however_large() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let empty = admin.get_as(MAPS, PROTOBUF).await;
    assert_eq!(list_of(&empty)["items"], json!([]));
    for n in 0..4 {
        let large = config_map(&format!("m{n}"), &"x".repeat(50_000));
        assert_eq!(read(&send(&admin, Method::POST, MAPS, &large).await).0, 201);
    }
    // Items carry their kind in JSON of ours, and nowhere in protobuf.
    let mut as_json = admin.get(MAPS).await.ok();
    for item in as_json["items"].as_array_mut().expect("items") {
        let item = item.as_object_mut().expect("an object");
        item.remove("kind");
        item.remove("apiVersion");
    }
    assert_eq!(list_of(&admin.get_as(MAPS, PROTOBUF).await), as_json);
    let page = list_of(&admin.get_as(&format!("{MAPS}?limit=1"), PROTOBUF).await);
    assert_eq!(page["metadata"]["remainingItemCount"], 3);
    let token = page["metadata"]["continue"].as_str().expect("a token");
    let page = list_of(&admin.get_as(&format!("{MAPS}?limit=1&continue={token}"), PROTOBUF).await);
    assert_eq!(page["items"][0]["metadata"]["name"], "m1");

    let headers = [("accept", PROTOBUF), ("accept-encoding", "gzip")];
    let packed = admin.send(Method::GET, MAPS, &headers, Body::empty()).await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*packed.bytes), &mut bytes).expect("gzip");
    let plain = admin.get_as(MAPS, PROTOBUF).await;
    assert_eq!(bytes, plain.bytes);

    let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let (_, list) = read(&admin.get_as(MAPS, metadata).await);
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][3]["metadata"]["name"], "m3");
    assert!(list["items"][3]["data"].is_null());
}

/// Lists are never read by the server: here their messages are cut up by hand.
#[track_caller]
fn list_of(answer: &Answer) -> Value {
    assert_eq!(
        (answer.code, &answer.headers["content-type"]),
        (200, &http::HeaderValue::from_static(PROTOBUF))
    );
    let fields = |bytes: &[u8]| -> Vec<(u8, Vec<u8>)> {
        let (mut at, mut out) = (0, Vec::new());
        while at < bytes.len() {
            let (tag, mut length, mut shift) = (bytes[at], 0, 0);
            loop {
                at += 1;
                length |= usize::from(bytes[at] & 0x7f) << shift;
                shift += 7;
                if bytes[at] < 0x80 {
                    break;
                }
            }
            at += 1;
            out.push((tag >> 3, bytes[at..at + length].to_vec()));
            at += length;
        }
        out
    };
    let envelope = fields(answer.bytes.strip_prefix(&protobuf::MAGIC).expect("an envelope"));
    let type_meta = fields(&envelope[0].1);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let (api_version, kind) = (text(&type_meta[0].1), text(&type_meta[1].1));
    let item = kind.strip_suffix("List").expect("a list");
    let (mut metadata, mut items) = (Value::Null, Vec::new());
    for (number, bytes) in fields(&envelope[1].1) {
        if number == 1 {
            // `ListMeta` and the metadata of a partial list are the same.
            let list = [&[0x0a, bytes.len() as u8][..], &bytes].concat();
            let list = protobuf::envelope("meta.k8s.io/v1", "PartialObjectMetadataList", &list);
            metadata = decoded(&list)["metadata"].take();
        } else {
            let mut item = decoded(&protobuf::envelope(&api_version, item, &bytes));
            let object = item.as_object_mut().expect("an object");
            object.remove("kind");
            object.remove("apiVersion");
            items.push(item);
        }
    }
    json!({"kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items})
}

#[tokio::test]
async fn a_watch_in_protobuf_sees_what_a_watch_in_json_sees() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    admin.post(MAPS, config_map("m0", "1")).await.created();
    let url = format!(
        "{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let mut frames = Frames::of(&admin, &url).await;
    assert_eq!(frames.named().await, ("ADDED".to_owned(), "m0".to_owned()));
    let (kind, bookmark) = frames.next().await.expect("an event");
    assert_eq!((kind.as_str(), &bookmark["kind"]), ("BOOKMARK", &json!("ConfigMap")));
    assert_eq!(bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let mut lines = admin
        .watch(&format!(
            "{MAPS}?watch=true&resourceVersion={}",
            bookmark["metadata"]["resourceVersion"].as_str().expect("a version")
        ))
        .await;
    admin.post(MAPS, config_map("new", "1")).await.created();
    admin.patch(&format!("{MAPS}/new"), "merge", json!({"data": {"k": "2"}})).await.ok();
    admin.delete(&format!("{MAPS}/new")).await.ok();
    for _ in 0..3 {
        assert_eq!(frames.next().await, lines.next().await);
    }
    let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let request = Request::builder().uri(format!("{MAPS}?watch=true")).header("accept", metadata);
    let response = admin.raw(request.body(Body::empty()).expect("a request")).await;
    let mut frames = Frames { body: response.into_body(), rest: Vec::new() };
    let (_, object) = frames.next().await.expect("an event");
    assert_eq!((&object["kind"], &object["data"]), (&json!("PartialObjectMetadata"), &Value::Null));

    let restarted = cluster.restart().await.admin();
    let mut expired = Frames::of(&restarted, &format!("{MAPS}?watch=true&resourceVersion=1")).await;
    let (kind, status) = expired.next().await.expect("an event");
    assert_eq!(
        (kind.as_str(), &status["code"], &status["reason"]),
        ("ERROR", &json!(410), &json!("Expired"))
    );
    assert!(expired.next().await.is_none());
}

#[tokio::test]
async fn both_versions_of_an_event_are_watched_in_protobuf() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "a"},
        "eventTime": "2026-01-01T00:00:00.000001Z", "type": "Normal", "reportingController": "c",
        "reportingInstance": "c-0", "action": "Run", "reason": "Ran", "regarding": {"namespace": "a"},
    });
    let events = "/apis/events.k8s.io/v1/namespaces/a/events";
    let mut new = Frames::of(&admin, &format!("{events}?watch=true")).await;
    let mut core = Frames::of(&admin, "/api/v1/namespaces/a/events?watch=true").await;
    let (code, created) = read(&send(&admin, Method::POST, events, &event).await);
    assert_eq!((code, &created["eventTime"]), (201, &event["eventTime"]));
    let (_, seen) = new.next().await.expect("an event");
    assert_eq!((&seen["apiVersion"], &seen["regarding"]), (&json!("events.k8s.io/v1"), &event["regarding"]));
    let (_, seen) = core.next().await.expect("an event");
    assert_eq!((&seen["apiVersion"], &seen["involvedObject"]), (&json!("v1"), &event["regarding"]));
    let list = list_of(&admin.get_as(events, PROTOBUF).await);
    assert_eq!(
        (&list["apiVersion"], &list["items"][0]["reportingController"]),
        (&json!("events.k8s.io/v1"), &json!("c"))
    );
}

#[tokio::test]
async fn where_protobuf_does_not_apply_it_is_refused_or_json() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    admin.post(MAPS, config_map("x", "1")).await.created();
    let url = format!("{MAPS}/x");
    let headers = [("content-type", PROTOBUF), ("accept", "application/json")];
    let message = admin.send(Method::PATCH, &url, &headers, "x").await.refused(415, "UnsupportedMediaType");
    assert!(message.contains("application/strategic-merge-patch+json"), "{message}");
    let headers = [("content-type", "application/cbor")];
    let message = admin.send(Method::POST, MAPS, &headers, "x").await.refused(415, "UnsupportedMediaType");
    assert_eq!(
        message,
        "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"
    );
    let headers = [("content-type", "application/merge-patch+json"), ("accept", PROTOBUF)];
    let patch = json!({"data": {"k": "2"}}).to_string();
    let (code, patched) = read(&admin.send(Method::PATCH, &url, &headers, patch).await);
    assert_eq!((code, &patched["data"]["k"]), (200, &json!("2")));

    let table = "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1";
    let message = admin.get_as(MAPS, table).await.refused(406, "NotAcceptable");
    assert_eq!(
        message,
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
    );
    let both = format!("{table},application/json;as=Table;g=meta.k8s.io;v=v1");
    assert_eq!(admin.get_as(MAPS, &both).await.ok()["kind"], "Table");
    let yaml = admin.get_as(&format!("{MAPS}?watch=true"), "application/yaml").await;
    assert_eq!(yaml.code, 406, "there are no streams of YAML");
    let text = String::from_utf8_lossy(&yaml.bytes).into_owned();
    assert!(text.contains("application/vnd.kubernetes.protobuf;stream=watch"), "{text}");

    for (path, kind) in [
        ("/api", "APIVersions"),
        ("/api/v1", "APIResourceList"),
        ("/apis", "APIGroupList"),
        ("/apis/apps", "APIGroup"),
        ("/apis/apps/v1", "APIResourceList"),
    ] {
        let (code, document) = get(&admin, path).await;
        assert_eq!((code, &document["kind"]), (200, &json!(kind)));
        let mut as_json = admin.get(path).await.ok();
        as_json["apiVersion"] = document["apiVersion"].clone();
        assert_eq!(document, as_json, "{path}");
    }
    let version = admin.get_as("/version", PROTOBUF).await;
    assert_eq!(version.headers["content-type"], "application/json", "there is no such message");
    assert_eq!(version.ok()["major"], "1");
    let openapi = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let answer = admin.get_as("/openapi/v2", openapi).await;
    assert_eq!(answer.code, 200);
    assert_eq!(answer.headers["content-type"], "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
    assert!(answer.bytes.starts_with(b"\x0a\x032.0"), "{:?}", &answer.bytes[..16]);
    assert_ne!(answer.headers["etag"], admin.get("/openapi/v2").await.headers["etag"]);
    let other = admin.get_as("/openapi/v3", openapi).await;
    assert_eq!(other.code, 406, "that is of version 2");
    let nobody = cluster.client("u", &[]).get_as(MAPS, PROTOBUF).await;
    let (code, status) = read(&nobody);
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")));
}
