//! Every way to name an object, against every verb: what is authorized by a name is what is served.

use http::Method;
use serde_json::json;

use crate::fixture::{Client, Cluster, pod};

/// A node with a pod that refers to the secret `related`, beside the secret `other`.
async fn node_with_a_secret() -> (Cluster, Client) {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    for name in ["related", "other"] {
        let data = json!({"metadata": {"name": name}, "stringData": {"key": format!("contents-of-{name}")}});
        admin.post("/api/v1/namespaces/a/secrets", data).await.created();
    }
    admin.post("/api/v1/nodes", json!({"metadata": {"name": "n"}})).await.created();
    let mut pod = pod("p");
    pod["spec"]["nodeName"] = "n".into();
    pod["spec"]["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "related"}}]);
    admin.post("/api/v1/namespaces/a/pods", pod).await.created();
    let node = cluster.client("system:node:n", &["system:nodes"]);
    (cluster, node)
}

/// What a node is answered, as far as it comes within one event.
async fn answered(node: &Client, method: &Method, url: &str) -> (u16, String) {
    let is_watch = url.contains("/watch/") || url.contains("watch=");
    if is_watch && method == Method::GET {
        let url = format!("{url}{}timeoutSeconds=1", if url.contains('?') { '&' } else { '?' });
        let answer = node.get(&url).await;
        return (answer.code, String::from_utf8_lossy(&answer.bytes).into_owned());
    }
    let answer = node.send(method.clone(), url, &[], "").await;
    (answer.code, String::from_utf8_lossy(&answer.bytes).into_owned())
}

#[tokio::test]
async fn however_an_object_is_named_a_node_gets_only_what_its_pods_refer_to() {
    let (cluster, node) = node_with_a_secret().await;
    let base = "/api/v1/namespaces/a/secrets";
    let watch = "/api/v1/watch/namespaces/a/secrets";
    let other = "fieldSelector=metadata.name%3Dother";
    let urls = [
        format!("{base}/other"),
        format!("{base}?{other}"),
        format!("{base}?{other}&watch=1"),
        format!("{base}?fieldSelector=metadata.name%3Drelated&{other}&watch=1"),
        format!("{base}?{other}&fieldSelector=metadata.name%3Drelated"),
        format!("{base}?fieldSelector=metadata.name!%3Drelated"),
        format!("{base}?fieldSelector=metadata.name%3Drelated,metadata.name%3Dother"),
        format!("{base}/related?{other}"),
        format!("{base}/related?{other}&watch=true"),
        format!("{base}/related/other"),
        format!("{base}/related%2F..%2Fother"),
        format!("{watch}/related?{other}"),
        format!("{watch}/related?fieldSelector=metadata.name!%3Drelated"),
        format!("{watch}/related?fieldSelector=type%3DOpaque"),
        format!("{watch}/other?fieldSelector=metadata.name%3Drelated"),
        format!("{watch}/other"),
        format!("{watch}?{other}"),
        watch.to_owned(),
        base.to_owned(),
        format!("/api/v1/secrets?{other}"),
        format!("/api/v1/watch/secrets?{other}"),
        format!("/api/v1/watch/namespaces/a/secrets/related/status?{other}"),
    ];
    for url in &urls {
        for method in [Method::GET, Method::HEAD, Method::PUT, Method::PATCH, Method::POST, Method::DELETE] {
            let (code, body) = answered(&node, &method, url).await;
            assert!(!body.contains("Y29udGVudHMtb2Ytb3RoZXI"), "{method} {url}: {code} {body}");
            let kept = cluster.admin().get(&format!("{base}/other")).await;
            assert_eq!(kept.code, 200, "{method} {url} took it away");
        }
    }
    // What it may have, it gets: the table above does not pass because all is refused.
    for url in [
        format!("{base}/related"),
        format!("{watch}/related"),
        format!("{base}?fieldSelector=metadata.name%3Drelated"),
    ] {
        let (code, body) = answered(&node, &Method::GET, &url).await;
        assert!(code == 200 && body.contains("Y29udGVudHMtb2YtcmVsYXRlZA"), "{url}: {code} {body}");
    }
}

#[tokio::test]
async fn a_selector_beside_a_watched_name_must_name_the_same() {
    let (cluster, _node) = node_with_a_secret().await;
    let admin = cluster.admin();
    // One that is not refused would go on: it ends, so that the test does.
    let url =
        "/api/v1/watch/namespaces/a/secrets/related?fieldSelector=metadata.name%3Dother&timeoutSeconds=1";
    let answer = admin.get(url).await;
    assert_eq!(answer.code, 400, "{answer:?}");
    let why = answer.refused(400, "BadRequest");
    assert_eq!(why, "fieldSelector metadata.name doesn't match requested name");
    let same = "/api/v1/watch/namespaces/a/secrets/related?fieldSelector=metadata.name%3Drelated";
    assert_eq!(admin.watch(same).await.named().await, ("ADDED".to_owned(), "related".to_owned()));
    // A subresource is not watched: it would be authorized as a watch, and be something else.
    let under = admin.get("/api/v1/watch/namespaces/a/pods/p/log").await;
    assert_eq!(under.code, 404);
    assert_eq!(admin.get("/api/v1/watch/namespaces/a/pods/p/proxy/").await.code, 404);
}

#[tokio::test]
async fn who_may_delete_one_object_may_not_delete_a_collection_by_its_name() {
    let (cluster, _node) = node_with_a_secret().await;
    let admin = cluster.admin();
    let review = |resource: serde_json::Value| json!({"spec": {"user": "system:node:n", "groups": ["system:nodes"], "resourceAttributes": resource}});
    let lease = json!({
        "group": "coordination.k8s.io", "resource": "leases", "namespace": "kube-node-lease", "verb": "delete", "name": "n",
    });
    let url = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    assert_eq!(admin.post(url, review(lease)).await.created()["status"]["allowed"], true);
    let node = cluster.client("system:node:n", &["system:nodes"]);
    let collection =
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases?fieldSelector=metadata.name%3Dn";
    assert_eq!(node.delete(collection).await.code, 403);
}

#[tokio::test]
async fn a_node_turns_no_pod_into_a_mirror_of_its_own() {
    let (cluster, node) = node_with_a_secret().await;
    let status = "/api/v1/namespaces/a/pods/p/status";
    let patch = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}});
    let why = node.patch(status, "merge", patch).await.refused(403, "Forbidden");
    assert!(why.contains("config.mirror"), "{why}");
    let mut whole = cluster.admin().get("/api/v1/namespaces/a/pods/p").await.ok();
    whole["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    node.put(status, whole).await.refused(403, "Forbidden");
    let other = json!({"metadata": {"annotations": {"example.com/x": "y"}}, "status": {"phase": "Running"}});
    node.patch(status, "merge", other).await.ok();
}

#[tokio::test]
async fn a_node_claims_no_address_of_another_that_lives() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for (name, ip) in [("n", "192.0.2.1"), ("dead", "192.0.2.2"), ("m", "192.0.2.3")] {
        let status = json!({"addresses": [{"type": "InternalIP", "address": ip}]});
        admin.post("/api/v1/nodes", json!({"metadata": {"name": name}, "status": status})).await.created();
    }
    let lease = |name: &str, renewed: &str| {
        json!({
            "metadata": {"name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": renewed},
        })
    };
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    admin.post(leases, lease("n", &now)).await.created();
    admin.post(leases, lease("dead", "2020-01-01T00:00:00.000000Z")).await.created();
    let other = cluster.client("system:node:m", &["system:nodes"]);
    let claim = |kind: &str, ip: &str| json!({"status": {"addresses": [{"type": kind, "address": ip}]}});
    for kind in ["ExternalIP", "InternalIP"] {
        let refused =
            other.patch("/api/v1/nodes/m/status", "strategic-merge", claim(kind, "192.0.2.1")).await;
        assert!(refused.refused(403, "Forbidden").contains("192.0.2.1"));
    }
    other.patch("/api/v1/nodes/m/status", "merge", claim("InternalIP", "192.0.2.2")).await.ok();
}
