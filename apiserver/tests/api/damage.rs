//! A stored value that is not what was written, or no object: it stops who asks, and is never left out.

use serde_json::{Value, json};
use skiff_apiserver::store::Write;

use crate::fixture::{Client, Cluster, config_map};

/// A cluster whose config map `a/damaged` was changed on disk by one byte, so that it is still JSON.
async fn damaged() -> (Cluster, Client) {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    admin.post("/api/v1/namespaces", json!({"metadata": {"name": "b"}})).await.created();
    for (namespace, name) in [("a", "damaged"), ("a", "sound"), ("b", "elsewhere")] {
        let url = format!("/api/v1/namespaces/{namespace}/configmaps");
        admin.post(&url, config_map(name, "value")).await.created();
    }
    let cluster = cluster.reopened(|database| {
        let connection = rusqlite::Connection::open(database).expect("opens");
        let flip =
            "UPDATE kv SET value = CAST(replace(CAST(value AS TEXT), '\"value\"', '\"valuf\"') AS BLOB)
                    WHERE key = '/registry/configmaps/a/damaged'";
        assert_eq!(connection.execute(flip, []).expect("writes"), 1);
    });
    let cluster = cluster.await;
    let admin = cluster.admin();
    (cluster, admin)
}

#[tokio::test]
async fn a_list_that_would_miss_something_fails_and_says_what() {
    let (_cluster, admin) = damaged().await;
    for url in ["/api/v1/namespaces/a/configmaps", "/api/v1/configmaps", "/api/v1/configmaps?limit=1"] {
        let answer = admin.get(url).await;
        answer.refused(500, "StorageReadError");
        let field = &answer.json()["details"]["causes"][0]["field"];
        assert_eq!(field, "/registry/configmaps/a/damaged", "{url}");
    }
    for url in ["/api/v1/configmaps?watch=1", "/api/v1/namespaces/a/configmaps?watch=1&resourceVersion=0"] {
        admin.get(url).await.refused(500, "StorageReadError");
    }
    let elsewhere = admin.get("/api/v1/namespaces/b/configmaps").await.ok();
    assert_eq!(elsewhere["items"][0]["metadata"]["name"], "elsewhere");
    admin.get("/api/v1/namespaces/a/configmaps/sound").await.ok();
}

#[tokio::test]
async fn a_damaged_object_is_not_taken_for_gone() {
    let (_cluster, admin) = damaged().await;
    let url = "/api/v1/namespaces/a/configmaps/damaged";
    admin.get(url).await.refused(500, "StorageReadError");
    admin.put(url, config_map("damaged", "new")).await.refused(500, "StorageReadError");
    admin.patch(url, "merge", json!({"data": {"k": "new"}})).await.refused(500, "StorageReadError");
    admin.delete(url).await.refused(500, "StorageReadError");
    let again = admin.post("/api/v1/namespaces/a/configmaps", config_map("damaged", "new")).await;
    again.refused(409, "AlreadyExists");
    admin.delete("/api/v1/namespaces/a/configmaps").await.refused(500, "StorageReadError");
}

#[tokio::test]
async fn an_event_says_which_object_is_damaged() {
    let (_cluster, admin) = damaged().await;
    let events = admin.get("/api/v1/namespaces/a/events").await.ok();
    let event = &events["items"][0];
    assert_eq!(
        (&event["reason"], &event["involvedObject"]["name"]),
        (&json!("StorageReadError"), &json!("damaged"))
    );
    assert!(
        event["message"].as_str().is_some_and(|m| m.contains("/registry/configmaps/a/damaged")),
        "{event}"
    );
}

#[tokio::test]
async fn what_cannot_be_read_can_be_deleted_by_who_says_so() {
    let (_cluster, admin) = damaged().await;
    let option = "ignoreStoreReadErrorWithClusterBreakingPotential=true";
    let url = "/api/v1/namespaces/a/configmaps";
    admin.delete(&format!("{url}/sound?{option}")).await.refused(422, "Invalid");
    admin.delete(&format!("{url}?{option}")).await.refused(422, "Invalid");
    let grace = admin.delete(&format!("{url}/damaged?{option}&gracePeriodSeconds=1")).await;
    assert!(grace.refused(422, "Invalid").contains("cannot be set together with .gracePeriodSeconds"));
    admin.delete(&format!("{url}/damaged?{option}")).await.ok();
    let list = admin.get(url).await.ok();
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    admin.post(url, config_map("damaged", "new")).await.created();
    admin.get(&format!("{url}/damaged")).await.ok();
}

#[tokio::test]
async fn a_value_that_is_no_object_is_an_error_too() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let mut watch = admin.watch("/api/v1/namespaces/a/configmaps?watch=1").await;
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    for (name, value) in
        [("text", "no JSON".to_owned()), ("deep", deep), ("other", config_map("x", "v").to_string())]
    {
        let key = format!("/registry/configmaps/a/{name}");
        cluster.store.write(Write::create(key, value)).await.expect("writes");
        let url = format!("/api/v1/namespaces/a/configmaps/{name}");
        admin.get(&url).await.refused(500, "StorageReadError");
        admin.get("/api/v1/namespaces/a/configmaps").await.refused(500, "StorageReadError");
        admin.delete(&format!("{url}?ignoreStoreReadErrorWithClusterBreakingPotential=true")).await.ok();
    }
    admin.get("/api/v1/namespaces/a/configmaps").await.ok();
    assert!(watch.next().await.is_none(), "who watched has to ask again");
}

#[tokio::test]
async fn a_server_starts_whatever_is_damaged() {
    let cluster = Cluster::start().await;
    let cluster = cluster
        .reopened(|database| {
            let connection = rusqlite::Connection::open(database).expect("opens");
            let all = connection.execute("UPDATE kv SET value = CAST('{}' AS BLOB)", []).expect("writes");
            assert!(all > 5);
        })
        .await;
    cluster.admin().get("/api/v1/namespaces").await.refused(500, "StorageReadError");
    cluster.admin().get("/livez").await;
}

#[tokio::test]
async fn no_port_is_given_away_while_a_service_that_may_have_it_cannot_be_read() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a/services";
    let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let node_port = |name: &str, more: Value| {
        let mut port = json!({"port": 80});
        port.as_object_mut()
            .into_iter()
            .for_each(|port| port.extend(more.as_object().cloned().unwrap_or_default()));
        service(name, json!({"type": "NodePort", "ports": [port]}))
    };
    admin.post(url, node_port("early", json!({}))).await.created();
    cluster
        .store
        .write(Write::create("/registry/services/specs/a/damaged", "no JSON"))
        .await
        .expect("writes");
    admin.get(&format!("{url}/damaged")).await.refused(500, "StorageReadError");
    admin.post(url, node_port("chosen", json!({"nodePort": 30123}))).await.refused(500, "StorageReadError");
    admin.post(url, node_port("any", json!({}))).await.refused(500, "StorageReadError");
    let balancer = service("b", json!({"type": "LoadBalancer", "ports": [{"port": 80}]}));
    admin.post(url, balancer).await.refused(500, "StorageReadError");
    // What needs no port, and who has one already, goes on.
    admin.post(url, service("plain", json!({"ports": [{"port": 80}]}))).await.created();
    let early = admin.get(&format!("{url}/early")).await.ok();
    admin.put(&format!("{url}/early"), early).await.ok();

    let option = "ignoreStoreReadErrorWithClusterBreakingPotential=true";
    admin.delete(&format!("{url}/damaged?{option}")).await.ok();
    admin.get(url).await.ok();
    admin.post(url, node_port("chosen", json!({"nodePort": 30123}))).await.created();
}
