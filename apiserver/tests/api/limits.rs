//! LimitRanges and ResourceQuotas at the door.

use serde_json::{Value, json};

use crate::fixture::{Client, Cluster, config_map, pod};

const PODS: &str = "/api/v1/namespaces/a/pods";
const QUOTAS: &str = "/api/v1/namespaces/a/resourcequotas";

fn asking(name: &str, cpu: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["containers"][0]["resources"]["requests"] = json!({"cpu": cpu});
    pod
}

/// A quota whose use is known, as the controller would have found it: nothing.
async fn quota(admin: &Client, name: &str, spec: Value) {
    let created = admin.post(QUOTAS, json!({"metadata": {"name": name}, "spec": spec})).await.created();
    let hard = created["spec"]["hard"].as_object().expect("hard").clone();
    let used: serde_json::Map<String, Value> = hard.keys().map(|name| (name.clone(), "0".into())).collect();
    let status = json!({"status": {"hard": hard, "used": used}});
    admin.patch(&format!("{QUOTAS}/{name}/status"), "merge", status).await.ok();
}

async fn used(admin: &Client, name: &str) -> Value {
    admin.get(&format!("{QUOTAS}/{name}")).await.ok()["status"]["used"].clone()
}

#[tokio::test]
async fn a_pod_gets_the_limits_of_its_namespace_and_is_held_to_them() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let limit = json!({"type": "Container", "min": {"cpu": "50m"}, "max": {"cpu": "500m"},
        "defaultRequest": {"cpu": "100m"}});
    let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [limit]}});
    let range = admin.post("/api/v1/namespaces/a/limitranges", range).await.created();
    assert_eq!(range["spec"]["limits"][0]["default"], json!({"cpu": "500m"}), "the maximum is the default");
    let made = admin.post(PODS, pod("p")).await.created();
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m"}})
    );
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    assert_eq!(made["status"]["qosClass"], "Burstable", "what was filled in counts");
    let message = admin.post(PODS, asking("small", "10m")).await.refused(403, "Forbidden");
    assert_eq!(
        message,
        "pods \"small\" is forbidden: minimum cpu usage per Container is 50m, but request is 10m"
    );
    let message = admin.post(PODS, asking("large", "600m")).await.refused(422, "Invalid");
    assert!(message.contains("must be less than or equal to cpu limit"), "{message}");
}

#[tokio::test]
async fn what_exceeds_a_quota_is_refused_and_costs_nothing() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    quota(&admin, "q", json!({"hard": {"pods": "2", "requests.cpu": "1", "count/configmaps": "1"}})).await;
    admin.post(PODS, asking("one", "600m")).await.created();
    assert_eq!(
        used(&admin, "q").await,
        json!({"count/configmaps": "0", "pods": "1", "requests.cpu": "600m"})
    );
    let message = admin.post(PODS, asking("two", "500m")).await.refused(403, "Forbidden");
    assert_eq!(
        message,
        "pods \"two\" is forbidden: exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"
    );
    let message = admin.post(PODS, pod("two")).await.refused(403, "Forbidden");
    assert_eq!(message, "pods \"two\" is forbidden: failed quota: q: must specify requests.cpu for: c");
    admin.post(&format!("{PODS}?dryRun=All"), asking("two", "400m")).await.created();
    admin.post(PODS, asking("one", "100m")).await.refused(409, "AlreadyExists");
    assert_eq!(used(&admin, "q").await["requests.cpu"], "600m", "neither a dry run nor a failure is charged");
    admin.post(PODS, asking("two", "400m")).await.created();
    let maps = "/api/v1/namespaces/a/configmaps";
    admin.post(maps, config_map("x", "1")).await.created();
    let message = admin.post(maps, config_map("y", "1")).await.refused(403, "Forbidden");
    assert!(message.contains("requested: count/configmaps=1, used: count/configmaps=1"), "{message}");
}

#[tokio::test]
async fn of_many_at_once_only_as_many_as_fit_are_let_in() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    quota(&admin, "q", json!({"hard": {"count/configmaps": "5"}})).await;
    let all =
        (0..40).map(|n| {
            let admin = admin.clone();
            async move {
                admin.post("/api/v1/namespaces/a/configmaps", config_map(&format!("c{n}"), "1")).await.code
            }
        });
    let codes = futures::future::join_all(all).await;
    assert_eq!(codes.iter().filter(|code| **code == 201).count(), 5, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 403).count(), 35, "{codes:?}");
    assert_eq!(used(&admin, "q").await, json!({"count/configmaps": "5"}));
}

#[tokio::test]
async fn a_quota_that_is_not_counted_yet_lets_nothing_in_and_one_without_status_everything() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let spec = json!({"hard": {"pods": "1"}});
    admin.post(QUOTAS, json!({"metadata": {"name": "q"}, "spec": spec})).await.created();
    admin.post(PODS, pod("early")).await.created();
    admin
        .patch(&format!("{QUOTAS}/q/status"), "merge", json!({"status": {"hard": {"pods": "1"}}}))
        .await
        .ok();
    let message = admin.post(PODS, pod("p")).await.refused(403, "Forbidden");
    assert_eq!(message, "pods \"p\" is forbidden: status unknown for quota: q, resources: pods");
}

#[tokio::test]
async fn scopes_and_updates_are_charged_where_they_belong() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    quota(&admin, "short", json!({"hard": {"pods": "1"}, "scopes": ["Terminating"]})).await;
    quota(&admin, "long", json!({"hard": {"pods": "1"}, "scopes": ["NotTerminating"]})).await;
    admin.post(PODS, pod("p")).await.created();
    assert_eq!(
        (used(&admin, "short").await, used(&admin, "long").await),
        (json!({"pods": "0"}), json!({"pods": "1"}))
    );
    let deadline = json!({"spec": {"activeDeadlineSeconds": 60}});
    admin.patch(&format!("{PODS}/p"), "merge", deadline).await.ok();
    assert_eq!(used(&admin, "short").await, json!({"pods": "1"}));

    quota(&admin, "ports", json!({"hard": {"services.nodeports": "1"}})).await;
    let services = "/api/v1/namespaces/a/services";
    let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
    admin.post(services, json!({"metadata": {"name": "s"}, "spec": {"ports": ports}})).await.created();
    let message = admin.patch(&format!("{services}/s"), "merge", json!({"spec": {"type": "NodePort"}})).await;
    let message = message.refused(403, "Forbidden");
    assert!(message.contains("exceeded quota: ports, requested: services.nodeports=2"), "{message}");
    let one = json!({"spec": {"type": "NodePort", "ports": [{"name": "a", "port": 80}]}});
    admin.patch(&format!("{services}/s"), "merge", one).await.ok();
    assert_eq!(used(&admin, "ports").await, json!({"services.nodeports": "1"}));
}

#[tokio::test]
async fn a_claim_asks_for_more_only_once_it_is_bound_and_where_its_class_lets_volumes_grow() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    for (name, grows) in [("fixed", Value::Null), ("growing", true.into())] {
        let class =
            json!({"metadata": {"name": name}, "provisioner": "p.example", "allowVolumeExpansion": grows});
        admin.post("/apis/storage.k8s.io/v1/storageclasses", class).await.created();
    }
    const CLAIMS: &str = "/api/v1/namespaces/a/persistentvolumeclaims";
    let claim = async |name: &str, class: &str| {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": class, "volumeName": "v",
            "resources": {"requests": {"storage": "1Gi"}}});
        admin.post(CLAIMS, json!({"metadata": {"name": name}, "spec": spec})).await.created();
        let status = json!({"status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}});
        admin.patch(&format!("{CLAIMS}/{name}/status"), "merge", status).await.ok();
    };
    let grow = async |name: &str| {
        let more = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
        admin.patch(&format!("{CLAIMS}/{name}"), "merge", more).await
    };
    claim("one", "growing").await;
    grow("one").await.ok();
    for (name, class) in [("two", "fixed"), ("three", "missing")] {
        claim(name, class).await;
        let message = grow(name).await.refused(403, "Forbidden");
        assert!(
            message.contains("the storageclass that provisions the pvc must support resize"),
            "{message}"
        );
    }
}
