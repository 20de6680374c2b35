//! A node that joins: bootstrap tokens, what anonymous callers may read, and what a node with its certificate may.

use axum::body::Body;
use http::Method;
use serde_json::{Value, json};

use crate::certificates::{KUBELET_CLIENT, REQUESTS, request};
use crate::fixture::{Client, Cluster, pod};
use crate::network::{get, listen};

const TOKEN: &str = "abcdef.0123456789abcdef";

fn token_secret(id: &str, secret: &str, expiration: &str) -> Value {
    json!({
        "metadata": {"name": format!("bootstrap-token-{id}")}, "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "token-id": id, "token-secret": secret, "expiration": expiration,
            "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        },
    })
}

async fn with_token(cluster: &Cluster, id: &str, secret: &str, expiration: &str) {
    let url = "/api/v1/namespaces/kube-system/secrets";
    cluster.admin().post(url, token_secret(id, secret, expiration)).await.created();
}

async fn review(cluster: &Cluster, token: &str) -> Value {
    let url = "/apis/authentication.k8s.io/v1/tokenreviews";
    cluster.admin().post(url, json!({"spec": {"token": token}})).await.created()["status"].clone()
}

/// A cluster with a pod on node `one` and one on `two`, each with a secret and a config map of its own.
async fn two_nodes() -> (Cluster, Client, Client) {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    for node in ["one", "two"] {
        let user = cluster.client(&format!("system:node:{node}"), &["system:nodes"]);
        user.post("/api/v1/nodes", json!({"metadata": {"name": node}})).await.created();
        let mut bound = pod(&format!("of-{node}"));
        bound["spec"]["nodeName"] = node.into();
        bound["spec"]["volumes"] = json!([
            {"name": "s", "secret": {"secretName": format!("of-{node}")}},
            {"name": "c", "configMap": {"name": format!("of-{node}")}},
        ]);
        admin.post("/api/v1/namespaces/a/pods", bound).await.created();
        for plural in ["secrets", "configmaps"] {
            let object = json!({"metadata": {"name": format!("of-{node}")}});
            admin.post(&format!("/api/v1/namespaces/a/{plural}"), object).await.created();
        }
    }
    let one = cluster.client("system:node:one", &["system:nodes"]);
    (cluster, admin, one)
}

#[tokio::test]
async fn a_bootstrap_token_is_good_over_tls_only_as_it_was_made_and_until_it_expires() {
    let cluster = Cluster::start().await;
    with_token(&cluster, "abcdef", "0123456789abcdef", "2999-01-01T00:00:00Z").await;
    with_token(&cluster, "expire", "0123456789abcdef", "2020-01-01T00:00:00Z").await;
    let (address, shutdown, task) = listen(&cluster).await;
    let ask = async |url: &str, token: &str| {
        let (status, body) = get(&cluster, address, None, "h2", url, Some(token)).await;
        (status.as_u16(), body)
    };
    assert_eq!(ask(REQUESTS, TOKEN).await.0, 200);
    let (code, refusal) = ask("/api/v1/nodes", TOKEN).await;
    assert_eq!(code, 403);
    let message = refusal["message"].as_str().expect("a message");
    assert!(message.contains("User \"system:bootstrap:abcdef\" cannot list resource \"nodes\""), "{message}");
    for refused in
        ["abcdef.0123456789abcdee", "expire.0123456789abcdef", "nobody.0123456789abcdef", "abcdef.", "."]
    {
        let (code, status) = ask("/version", refused).await;
        assert_eq!((code, &status["reason"]), (401, &json!("Unauthorized")), "{refused}");
    }
    let url = "/api/v1/namespaces/kube-system/secrets/bootstrap-token-abcdef";
    cluster.admin().delete(url).await.ok();
    assert!(review(&cluster, TOKEN).await["authenticated"].is_null(), "a deleted token is none");
    shutdown.cancel();
    task.await.expect("ends");
}

#[tokio::test]
async fn a_bootstrap_token_is_a_user_of_its_groups() {
    let cluster = Cluster::start().await;
    with_token(&cluster, "abcdef", "0123456789abcdef", "2999-01-01T00:00:00Z").await;
    let status = review(&cluster, TOKEN).await;
    assert_eq!(status["user"]["username"], "system:bootstrap:abcdef");
    assert_eq!(
        status["user"]["groups"],
        json!([
            "system:bootstrappers",
            "system:bootstrappers:kubeadm:default-node-token",
            "system:authenticated"
        ])
    );
}

#[tokio::test]
async fn anonymous_callers_read_health_version_and_how_to_join() {
    let cluster = Cluster::start().await;
    let info = json!({"metadata": {"name": "cluster-info"}, "data": {"kubeconfig": "x"}});
    let maps = "/api/v1/namespaces/kube-public/configmaps";
    cluster.admin().post(maps, info).await.created();
    let anonymous = cluster.anonymous();
    for url in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(anonymous.get(url).await.code, 200, "{url}");
    }
    let read = anonymous.get(&format!("{maps}/cluster-info")).await.ok();
    assert_eq!(read["data"]["kubeconfig"], "x");
    for url in [
        maps,
        "/api/v1/namespaces/kube-public/configmaps/other",
        "/api/v1/namespaces/kube-system/configmaps/cluster-info",
        "/api/v1/namespaces/kube-public/secrets/cluster-info",
        "/api",
        "/metrics",
    ] {
        anonymous.get(url).await.refused(403, "Forbidden");
    }
    let message =
        anonymous.post(REQUESTS, request("r", KUBELET_CLIENT, "system:node:x", "system:nodes")).await;
    let message = message.refused(403, "Forbidden");
    assert!(message.contains("User \"system:anonymous\" cannot create resource"), "{message}");
    anonymous
        .send(Method::DELETE, &format!("{maps}/cluster-info"), &[], Body::empty())
        .await
        .refused(403, "Forbidden");
}

#[tokio::test]
async fn who_joins_may_ask_for_a_certificate_and_nothing_else() {
    let cluster = Cluster::start().await;
    let joining = cluster.client("system:bootstrap:abcdef", &["system:bootstrappers"]);
    let asked = request("r", KUBELET_CLIENT, "system:node:x", "system:nodes");
    let created = joining.post(REQUESTS, asked).await.created();
    assert_eq!(created["spec"]["username"], "system:bootstrap:abcdef");
    joining.get(&format!("{REQUESTS}/r")).await.ok();
    joining.delete(&format!("{REQUESTS}/r")).await.refused(403, "Forbidden");
    let approve = json!({"status": {"conditions": [{"type": "Approved", "status": "True"}]}});
    joining.patch(&format!("{REQUESTS}/r/approval"), "merge", approve).await.refused(403, "Forbidden");
    joining.post("/api/v1/nodes", json!({"metadata": {"name": "x"}})).await.refused(403, "Forbidden");
    joining.get("/api/v1/namespaces/kube-system/secrets").await.refused(403, "Forbidden");
    let may = async |user: Value, subresource: &str| {
        let mut spec = user;
        spec["resourceAttributes"] = json!({"group": "certificates.k8s.io", "verb": "create",
            "resource": "certificatesigningrequests", "subresource": subresource});
        let url = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        cluster.admin().post(url, json!({"spec": spec})).await.created()["status"]["allowed"] == true
    };
    let bootstrapper = json!({"user": "system:bootstrap:abcdef", "groups": ["system:bootstrappers"]});
    let node = json!({"user": "system:node:x", "groups": ["system:nodes"]});
    assert!(may(bootstrapper.clone(), "nodeclient").await);
    assert!(!may(bootstrapper, "selfnodeclient").await);
    assert!(may(node.clone(), "selfnodeclient").await);
    assert!(!may(node, "nodeclient").await);
    assert!(!may(json!({"user": "jane", "groups": ["system:authenticated"]}), "nodeclient").await);
}

#[tokio::test]
async fn a_node_asks_for_certificates_of_its_own_name_only() {
    let (_cluster, _, one) = two_nodes().await;
    let own = request("own", KUBELET_CLIENT, "system:node:one", "system:nodes");
    one.post(REQUESTS, own).await.created();
    let other = request("other", KUBELET_CLIENT, "system:node:two", "system:nodes");
    let message = one.post(REQUESTS, other).await.refused(403, "Forbidden");
    assert!(message.ends_with("can only create a node CSR with CN=system:node:one"), "{message}");
}

#[tokio::test]
async fn a_node_that_comes_over_tls_reads_only_what_its_pods_need() {
    let (cluster, _, _) = two_nodes().await;
    let (address, shutdown, task) = listen(&cluster).await;
    let identity = cluster.pki.issue("system:node:one", &["system:nodes"]);
    let code = async |url: &str| get(&cluster, address, Some(&identity), "h2", url, None).await.0.as_u16();
    for url in [
        "/api/v1/namespaces/a/secrets/of-one",
        "/api/v1/namespaces/a/configmaps?fieldSelector=metadata.name%3Dof-one",
        "/api/v1/namespaces/a/pods/of-one",
        "/api/v1/pods?fieldSelector=spec.nodeName%3Done",
        "/api/v1/nodes/one",
        "/api/v1/services",
        "/apis/discovery.k8s.io/v1/endpointslices",
        "/apis/node.k8s.io/v1/runtimeclasses",
    ] {
        assert_eq!(code(url).await, 200, "{url}");
    }
    for url in [
        "/api/v1/namespaces/a/secrets/of-two",
        "/api/v1/namespaces/a/secrets",
        "/api/v1/secrets?fieldSelector=metadata.name%3Dof-one",
        "/api/v1/namespaces/a/configmaps/of-two",
        "/api/v1/namespaces/a/configmaps?fieldSelector=metadata.name%3Dof-two",
        "/api/v1/namespaces/a/pods/of-two",
        "/api/v1/pods",
        "/api/v1/pods?fieldSelector=spec.nodeName%3Dtwo",
        "/api/v1/pods?fieldSelector=spec.nodeName!%3Done",
        "/api/v1/namespaces/a/serviceaccounts",
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/two",
        "/apis/storage.k8s.io/v1/csinodes/two",
        "/apis/apps/v1/deployments",
        "/metrics",
    ] {
        assert_eq!(code(url).await, 403, "{url}");
    }
    shutdown.cancel();
    task.await.expect("ends");
}

#[tokio::test]
async fn refusals_of_a_node_are_worded_as_upstream() {
    let (_cluster, _, one) = two_nodes().await;
    let message = one.get("/api/v1/namespaces/a/secrets/of-two").await.refused(403, "Forbidden");
    assert_eq!(
        message,
        "secrets \"of-two\" is forbidden: User \"system:node:one\" cannot get resource \"secrets\" in API group \"\" in the namespace \"a\": node: no relationship found between node 'one' and this object"
    );
    let message = one.get("/api/v1/namespaces/a/secrets").await.refused(403, "Forbidden");
    assert!(message.ends_with(": No Object name found"), "{message}");
    let message = one.get("/api/v1/pods").await.refused(403, "Forbidden");
    assert!(message.ends_with(": can only list/watch pods with spec.nodeName field selector"), "{message}");
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let message = one.get(&format!("{leases}/two")).await.refused(403, "Forbidden");
    assert!(
        message.ends_with(": can only access node lease with the same name as the requesting node"),
        "{message}"
    );
    let message = one.post(leases, json!({"metadata": {"name": "two"}})).await.refused(403, "Forbidden");
    assert!(
        message.ends_with(": can only access node lease with the same name as the requesting node"),
        "{message}"
    );
    let message = one.delete("/api/v1/namespaces/a/pods/of-two").await.refused(403, "Forbidden");
    assert!(
        message.ends_with(": node \"one\" can only delete pods with spec.nodeName set to itself"),
        "{message}"
    );
    let patch = json!({"metadata": {"labels": {"node-restriction.kubernetes.io/b": "1", "a.k8s.io/x": "2"}}});
    let message = one.patch("/api/v1/nodes/one", "merge", patch).await.refused(403, "Forbidden");
    let end = ": is not allowed to modify labels: a.k8s.io/x, node-restriction.kubernetes.io/b";
    assert!(message.ends_with(end), "{message}");
    let patch = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
    let message = one.patch("/api/v1/nodes/one", "merge", patch).await.refused(403, "Forbidden");
    assert!(message.ends_with(": node \"one\" is not allowed to modify taints"), "{message}");
    let patch = json!({"status": {"phase": "Running"}});
    let message = one.patch("/api/v1/nodes/two/status", "merge", patch).await.refused(403, "Forbidden");
    assert!(message.ends_with(": node \"one\" is not allowed to modify node \"two\""), "{message}");
    one.delete("/api/v1/nodes/one").await.refused(403, "Forbidden");
}

#[tokio::test]
async fn a_mirror_pod_gives_a_node_nothing() {
    let (_cluster, admin, one) = two_nodes().await;
    let uid = admin.get("/api/v1/nodes/one").await.ok()["metadata"]["uid"].clone();
    let mirror = |name: &str| {
        let mut mirror = pod(name);
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        mirror["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "Node", "name": "one", "uid": uid, "controller": true}]);
        mirror["spec"]["nodeName"] = "one".into();
        mirror
    };
    let pods = "/api/v1/namespaces/a/pods";
    one.post(pods, mirror("plain")).await.created();
    let refused = async |change: fn(&mut Value)| {
        let mut other = mirror("other");
        change(&mut other);
        one.post(pods, other).await.refused(403, "Forbidden")
    };
    let message = refused(|pod| pod["metadata"]["ownerReferences"] = json!([])).await;
    assert!(message.ends_with("can only create pods with an owner reference set to itself"), "{message}");
    let message = refused(|pod| pod["metadata"]["ownerReferences"][0]["uid"] = "other".into()).await;
    assert!(message.contains("UID mismatch: expected other got"), "{message}");
    let message = refused(|pod| {
        pod["spec"]["containers"][0]["env"] =
            json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "of-two", "key": "k"}}}]);
    })
    .await;
    assert!(message.ends_with("node \"one\" can not create pods that reference secrets"), "{message}");
    let message = refused(|pod| pod["spec"]["imagePullSecrets"] = json!([{"name": "of-two"}])).await;
    assert!(message.ends_with("node \"one\" can not create pods that reference secrets"), "{message}");
    // An administrator's mirror pod that names a secret gives it to no node either.
    let mut forced = mirror("forced");
    forced["spec"]["imagePullSecrets"] = json!([{"name": "of-two"}]);
    admin.post(pods, forced).await.created();
    one.get("/api/v1/namespaces/a/secrets/of-two").await.refused(403, "Forbidden");
}

#[tokio::test]
async fn a_node_gets_tokens_only_for_its_pods_and_their_audiences() {
    let (_cluster, admin, one) = two_nodes().await;
    let url = "/api/v1/namespaces/a/serviceaccounts/default/token";
    let bound = async |name: &str, audiences: Value| {
        let uid =
            admin.get(&format!("/api/v1/namespaces/a/pods/{name}")).await.ok()["metadata"]["uid"].clone();
        let reference = json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid});
        json!({"spec": {"audiences": audiences, "boundObjectRef": reference}})
    };
    one.post(url, bound("of-one", json!([])).await).await.created();
    let message = one.post(url, bound("of-two", json!([])).await).await.refused(403, "Forbidden");
    assert!(
        message.ends_with("node requested token bound to a pod scheduled on a different node"),
        "{message}"
    );
    let message = one.post(url, bound("of-one", json!(["vault"])).await).await.refused(403, "Forbidden");
    assert!(message.contains("audience \"vault\" not found in pod spec volume"), "{message}");
    let message = one.post(url, json!({"spec": {}})).await.refused(403, "Forbidden");
    assert!(message.ends_with("node requested token not bound to a pod"), "{message}");
}
