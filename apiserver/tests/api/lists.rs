//! Lists, watches, tables.

use serde_json::{Value, json};

use crate::fixture::{Client, Cluster, config_map};

const MAPS: &str = "/api/v1/namespaces/a/configmaps";

async fn create_maps(admin: &Client, count: usize) {
    for n in 0..count {
        admin.post(MAPS, config_map(&format!("m{n}"), "1")).await.created();
    }
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("items");
    items.iter().map(|item| item["metadata"]["name"].as_str().expect("a name")).collect()
}

#[tokio::test]
async fn a_list_is_paged_over_one_revision() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    create_maps(&admin, 5).await;
    let first = admin.get(&format!("{MAPS}?limit=2")).await.ok();
    assert_eq!(names(&first), ["m0", "m1"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    admin.delete(&format!("{MAPS}/m2")).await.ok();
    admin.post(MAPS, config_map("m3a", "1")).await.created();
    let token = first["metadata"]["continue"].as_str().expect("a token").to_owned();
    let second = admin.get(&format!("{MAPS}?limit=2&continue={token}")).await.ok();
    assert_eq!(names(&second), ["m2", "m3"], "as of the first page's revision");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().expect("a token").to_owned();
    let last = admin.get(&format!("{MAPS}?limit=2&continue={token}")).await.ok();
    assert_eq!(names(&last), ["m4"]);
    assert!(last["metadata"]["continue"].is_null());
    admin.get(&format!("{MAPS}?continue=nonsense")).await.refused(400, "BadRequest");
}

#[tokio::test]
async fn an_expired_page_says_how_to_go_on() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    create_maps(&admin, 3).await;
    let old: u64 = {
        let list = admin.get(MAPS).await.ok();
        list["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).expect("a revision")
    };
    admin.patch(&format!("{MAPS}/m0"), "merge", json!({"data": {"k": "2"}})).await.ok();
    admin.patch(&format!("{MAPS}/m0"), "merge", json!({"data": {"k": "3"}})).await.ok();
    let newest = cluster.store.revision().await.expect("a revision");
    let exact = admin.get(&format!("{MAPS}?resourceVersion={old}&resourceVersionMatch=Exact")).await.ok();
    assert_eq!(exact["items"][0]["data"]["k"], "1", "the past can be read");
    cluster.store.compact(newest).await.expect("compacts");
    use base64::Engine;
    let token = json!({"v": "meta.k8s.io/v1", "rv": old, "start": "a/m0\u{0}"}).to_string();
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token);
    let expired = admin.get(&format!("{MAPS}?limit=1&continue={token}")).await;
    let message = expired.refused(410, "Expired");
    assert!(message.starts_with("The provided continue parameter is too old"), "{message}");
    let token = expired.json()["metadata"]["continue"].as_str().expect("a token").to_owned();
    let rest = admin.get(&format!("{MAPS}?continue={token}")).await.ok();
    assert_eq!(names(&rest), ["m1", "m2"]);
    let exact = admin.get(&format!("{MAPS}?resourceVersion={old}&resourceVersionMatch=Exact")).await;
    exact.refused(410, "Expired");
}

#[tokio::test]
async fn selectors_choose_and_unknown_fields_are_refused() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    create_maps(&admin, 3).await;
    admin.patch(&format!("{MAPS}/m1"), "merge", json!({"metadata": {"labels": {"app": "web"}}})).await.ok();
    assert_eq!(names(&admin.get(&format!("{MAPS}?labelSelector=app%3Dweb")).await.ok()), ["m1"]);
    assert_eq!(names(&admin.get(&format!("{MAPS}?labelSelector=%21app")).await.ok()), ["m0", "m2"]);
    assert_eq!(names(&admin.get(&format!("{MAPS}?fieldSelector=metadata.name%3Dm2")).await.ok()), ["m2"]);
    let message = admin.get(&format!("{MAPS}?fieldSelector=data.k%3D1")).await.refused(400, "BadRequest");
    assert_eq!(
        message,
        "\"data.k\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
    );
    let message = admin.get("/api/v1/pods?fieldSelector=spec.foo%3D1").await.refused(400, "BadRequest");
    assert_eq!(message, "field label not supported: spec.foo");
    let ahead = cluster.store.revision().await.expect("a revision") + 1000;
    let message = admin.get(&format!("{MAPS}?resourceVersion={ahead}")).await.refused(504, "Timeout");
    assert!(message.contains("Too large resource version"), "{message}");
    admin.get(&format!("{MAPS}?resourceVersionMatch=Exact")).await.refused(422, "Invalid");
}

#[tokio::test]
async fn a_watch_follows_from_its_version() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    create_maps(&admin, 1).await;
    let version =
        admin.get(MAPS).await.ok()["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    let mut events = admin.watch(&format!("{MAPS}?watch=true&resourceVersion={version}")).await;
    assert_eq!(events.code, 200);
    admin.post(MAPS, config_map("new", "1")).await.created();
    admin.patch(&format!("{MAPS}/new"), "merge", json!({"data": {"k": "2"}})).await.ok();
    admin.delete(&format!("{MAPS}/new")).await.ok();
    for kind in ["ADDED", "MODIFIED", "DELETED"] {
        assert_eq!(events.named().await, (kind.to_owned(), "new".to_owned()));
    }
    let mut from_start = admin.watch(&format!("{MAPS}?watch=true")).await;
    assert_eq!(from_start.named().await, ("ADDED".to_owned(), "m0".to_owned()));
    let restarted = cluster.restart().await.admin();
    // As upstream, the refusal is an event of the watch, which informers take as the word to list again.
    let mut refused = restarted.watch(&format!("{MAPS}?watch=true&resourceVersion=1")).await;
    assert_eq!(refused.code, 200);
    let (kind, status) = refused.next().await.expect("an event");
    assert_eq!(kind, "ERROR");
    assert_eq!((&status["code"], &status["reason"]), (&json!(410), &json!("Expired")));
    let message = status["message"].as_str().expect("a message");
    assert!(message.starts_with("too old resource version: 1 ("), "{message}");
    assert!(refused.next().await.is_none(), "the watch goes on after its refusal");
    let mut short =
        admin.watch(&format!("{MAPS}?watch=true&resourceVersion={version}&timeoutSeconds=1")).await;
    while short.next().await.is_some() {}
}

#[tokio::test]
async fn initial_events_end_with_an_annotated_bookmark() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    create_maps(&admin, 2).await;
    let url = format!(
        "{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let mut events = admin.watch(&url).await;
    assert_eq!(events.named().await, ("ADDED".to_owned(), "m0".to_owned()));
    assert_eq!(events.named().await, ("ADDED".to_owned(), "m1".to_owned()));
    let (kind, bookmark) = events.next().await.expect("a bookmark");
    assert_eq!((kind.as_str(), &bookmark["kind"]), ("BOOKMARK", &json!("ConfigMap")));
    assert_eq!(bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let revision = cluster.store.revision().await.expect("a revision");
    assert_eq!(bookmark["metadata"]["resourceVersion"], revision.to_string());
    admin.get(&format!("{MAPS}?watch=true&sendInitialEvents=true")).await.refused(422, "Invalid");
}

#[tokio::test]
async fn tables_and_metadata_are_made_for_get_list_and_watch() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    create_maps(&admin, 2).await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let list = admin.get_as(MAPS, table).await.ok();
    assert_eq!(list["kind"], "Table");
    let columns: Vec<_> =
        list["columnDefinitions"].as_array().expect("columns").iter().map(|c| c["name"].clone()).collect();
    assert_eq!(columns, ["Name", "Data", "Age"]);
    assert_eq!((&list["rows"][1]["cells"][0], &list["rows"][1]["cells"][1]), (&json!("m1"), &json!(1)));
    assert_eq!(list["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let one = admin.get_as(&format!("{MAPS}/m0"), table).await.ok();
    assert_eq!(one["rows"].as_array().map(Vec::len), Some(1));
    let mut events = admin.watch_as(&format!("{MAPS}?watch=true"), table).await;
    let (_, first) = events.next().await.expect("an event");
    let (_, second) = events.next().await.expect("an event");
    assert!(first["columnDefinitions"].as_array().is_some_and(|c| !c.is_empty()));
    assert_eq!(second["columnDefinitions"], json!([]));

    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let list = admin.get_as(MAPS, partial).await.ok();
    assert_eq!(
        (&list["kind"], &list["items"][0]["kind"]),
        (&json!("PartialObjectMetadataList"), &json!("PartialObjectMetadata"))
    );
    assert!(list["items"][0]["data"].is_null());
    admin.get_as(MAPS, "application/cbor").await.refused(406, "NotAcceptable");
    admin.get_as(MAPS, "application/cbor,application/json").await.ok();
}

#[tokio::test]
async fn a_large_list_is_compressed_for_who_accepts_it() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    for n in 0..30 {
        admin.post(MAPS, config_map(&format!("m{n:02}"), &"x".repeat(10_000))).await.created();
    }
    let answer = admin.send(http::Method::GET, MAPS, &[("accept-encoding", "gzip")], "").await;
    assert_eq!(answer.headers["content-encoding"], "gzip");
    assert!(answer.bytes.len() < 50_000, "{} bytes", answer.bytes.len());
    let mut json = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&*answer.bytes), &mut json)
        .expect("gzip");
    let list: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(names(&list).len(), 30);
    let plain = admin.get(MAPS).await;
    assert!(!plain.headers.contains_key("content-encoding"));
    assert_eq!(names(&plain.ok()).len(), 30);
}

#[tokio::test]
async fn no_bookmark_hides_what_a_watch_that_was_too_slow_did_not_get() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a/configmaps";
    let created = admin.post(url, config_map("x", "0")).await.created();
    let version = created["metadata"]["resourceVersion"].as_str().expect("a version");
    let mut watch =
        admin.watch(&format!("{url}?watch=1&allowWatchBookmarks=true&resourceVersion={version}")).await;
    for n in 1..=1100 {
        admin.put(&format!("{url}/x"), config_map("x", &n.to_string())).await.ok();
    }
    // A bookmark has long been due when the client reads on.
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(70)).await;
    let mut seen = 0;
    while let Some((kind, _)) = watch.try_next().await {
        assert_eq!(kind, "MODIFIED", "after {seen} events");
        seen += 1;
    }
    assert!((1024..1100).contains(&seen), "{seen} events, and the end");
}

#[tokio::test]
async fn informers_in_the_process_are_told_everything_but_managers() {
    const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let cluster = Cluster::start().await;
    let (admin, lean) = (cluster.namespace("shop").await, cluster.admin().without_managers());
    let map = json!({"metadata": {"name": "m", "labels": {"a": "b"}}, "data": {"managedFields": "mine"}});
    let url = "/api/v1/namespaces/shop/configmaps";
    let mut whole = admin.post(url, map).await.created();
    let fields = whole["metadata"].as_object_mut().unwrap().remove("managedFields");
    assert!(fields.is_some_and(|fields| fields[0]["fieldsV1"]["f:data"].is_object()));
    for (name, value) in lean.get(&format!("{url}/m")).await.ok()["metadata"].as_object().unwrap() {
        assert!(
            name == "managedFields" || *value == whole["metadata"][name],
            "what is read is written back: it is whole"
        );
    }
    let listed = lean.get(url).await.ok();
    let item = &listed["items"][0];
    assert_eq!((&item["metadata"], &item["data"]), (&whole["metadata"], &whole["data"]));
    assert_eq!(lean.watch(&format!("{url}?watch=true")).await.next().await.unwrap().1, whole);
    let of_metadata = lean.get_as(url, METADATA).await.ok();
    assert_eq!(of_metadata["items"][0]["metadata"], whole["metadata"]);
    let (_, event) = lean.watch_as(&format!("{url}?watch=true"), METADATA).await.next().await.unwrap();
    assert_eq!((&event["kind"], &event["metadata"]), (&json!("PartialObjectMetadata"), &whole["metadata"]));
    let others = admin.get_as(url, METADATA).await.ok();
    assert!(others["items"][0]["metadata"]["managedFields"].is_array());
}
