//! Clients that go away in the middle of a request.

use std::collections::HashMap;

use axum::body::Body;
use futures::FutureExt;
use http::{Method, Request};
use serde_json::{Value, json};

use crate::fixture::{Client, Cluster, config_map};

/// How many steps a request takes at most.
const STEPS: usize = 24;

/// Sends a request and drops it after it was polled so many times; between two polls everything else goes on.
async fn dropped_after(client: &Client, steps: usize, method: Method, url: &str, body: Value) {
    let request = Request::builder().method(method).uri(url).body(Body::from(body.to_string()));
    let mut sent = Box::pin(client.raw(request.expect("a request")));
    for _ in 0..steps {
        if sent.as_mut().now_or_never().is_some() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Asks until something holds; the test's own time limit is what ends it.
async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let asked = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), asked).await.expect("it holds in time");
}

fn service(name: &str, port: usize) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30100 + port}]},
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_and_a_port_are_given_once_wherever_a_request_is_dropped() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a/services";
    for n in 0..STEPS {
        dropped_after(&admin, n, Method::POST, url, service(&format!("dropped-{n}"), n)).await;
    }
    // Whoever has the port of a dropped Service, it is one.
    for n in 0..STEPS {
        until(async || {
            let taken = admin.get(&format!("{url}/dropped-{n}")).await.code == 200;
            let answer = admin.post(url, service(&format!("next-{n}"), n)).await;
            matches!((taken, answer.code), (_, 201 | 409)) || (taken && answer.code == 422)
        })
        .await;
    }
    let list = admin.get(url).await.ok();
    let (mut ips, mut ports) = (HashMap::new(), HashMap::new());
    for service in list["items"].as_array().expect("items") {
        let name = service["metadata"]["name"].to_string();
        let twice = [
            ips.insert(service["spec"]["clusterIP"].to_string(), name.clone()),
            ports.insert(service["spec"]["ports"][0]["nodePort"].to_string(), name.clone()),
        ];
        assert_eq!(twice, [None, None], "{name} shares what it was given");
    }
    assert!(ports.len() >= STEPS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_is_charged_for_what_is_there_wherever_a_request_is_dropped() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"count/configmaps": "1000"}}});
    admin.post("/api/v1/namespaces/a/resourcequotas", quota).await.created();
    let status = json!({"status": {"hard": {"count/configmaps": "1000"}, "used": {"count/configmaps": "0"}}});
    admin.patch("/api/v1/namespaces/a/resourcequotas/q/status", "merge", status).await.ok();
    let url = "/api/v1/namespaces/a/configmaps";
    for n in 0..STEPS {
        dropped_after(&admin, n, Method::POST, url, config_map(&format!("dropped-{n}"), "v")).await;
        // One of the same name is refused, and must give back what it was charged.
        dropped_after(&admin, n, Method::POST, url, config_map("dropped-20", "v")).await;
    }
    until(async || {
        let there = admin.get(url).await.ok()["items"].as_array().map_or(0, Vec::len);
        let quota = admin.get("/api/v1/namespaces/a/resourcequotas/q").await.ok();
        quota["status"]["used"]["count/configmaps"].as_str() == Some(there.to_string().as_str())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_deleted_service_had_is_free_wherever_the_request_is_dropped() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a/services";
    for n in 0..STEPS {
        admin.post(url, service(&format!("s-{n}"), n)).await.created();
        dropped_after(&admin, n, Method::DELETE, &format!("{url}/s-{n}"), json!({})).await;
    }
    for n in 0..STEPS {
        until(async || {
            let there = admin.get(&format!("{url}/s-{n}")).await.code == 200;
            there || matches!(admin.post(url, service(&format!("next-{n}"), n)).await.code, 201 | 409)
        })
        .await;
    }
}
