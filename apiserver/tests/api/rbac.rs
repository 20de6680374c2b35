//! Roles, bindings, and that nobody grants what they do not have.

use serde_json::{Value, json};

use crate::fixture::{Client, Cluster, pod};

const GROUP: &str = "/apis/rbac.authorization.k8s.io/v1";

fn rule(verbs: &[&str], resources: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": [""], "resources": resources})
}

pub(crate) fn role(name: &str, rules: &Value) -> Value {
    json!({"metadata": {"name": name}, "rules": rules})
}

pub(crate) fn binding(name: &str, kind: &str, role: &str, subject: &Value) -> Value {
    json!({
        "metadata": {"name": name}, "subjects": [subject],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
    })
}

pub(crate) fn user(name: &str) -> Value {
    json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name})
}

/// Waits until what was written before counts: a read of the newest state sees to it.
pub(crate) async fn settle(admin: &Client) {
    admin.get(&format!("{GROUP}/rolebindings")).await.ok();
    admin.get(&format!("{GROUP}/clusterrolebindings")).await.ok();
}

#[tokio::test]
async fn a_service_account_may_what_is_bound_to_it_in_its_namespace() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    cluster.namespace("b").await;
    let roles = format!("{GROUP}/namespaces/a/roles");
    admin.post(&roles, role("reader", &json!([rule(&["get", "list", "watch"], &["pods"])]))).await.created();
    let account = json!({"kind": "ServiceAccount", "name": "app", "namespace": "a"});
    let bindings = format!("{GROUP}/namespaces/a/rolebindings");
    let bound = admin.post(&bindings, binding("reader", "Role", "reader", &account)).await.created();
    assert_eq!(bound["subjects"][0]["kind"], "ServiceAccount");
    settle(&admin).await;

    let app = cluster.client("system:serviceaccount:a:app", &["system:serviceaccounts"]);
    app.get("/api/v1/namespaces/a/pods").await.ok();
    app.get("/api/v1/namespaces/b/pods").await.refused(403, "Forbidden");
    app.get("/api/v1/pods").await.refused(403, "Forbidden");
    app.post("/api/v1/namespaces/a/pods", pod("p")).await.refused(403, "Forbidden");
    app.get("/api/v1/namespaces/a/secrets").await.refused(403, "Forbidden");

    admin.delete(&format!("{bindings}/reader")).await.ok();
    settle(&admin).await;
    app.get("/api/v1/namespaces/a/pods").await.refused(403, "Forbidden");
}

#[tokio::test]
async fn reviews_tell_by_which_binding() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let edit = binding("jane-edits", "ClusterRole", "system:aggregate-to-edit", &user("jane"));
    admin.post(&format!("{GROUP}/namespaces/a/rolebindings"), edit).await.created();
    settle(&admin).await;
    let jane = cluster.client("jane", &[]);
    let can = async |verb: &str, resource: &str, namespace: &str| {
        let what = json!({"verb": verb, "resource": resource, "namespace": namespace});
        let review = json!({"spec": {"resourceAttributes": what}});
        let url = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        jane.post(url, review).await.created()["status"].clone()
    };
    assert_eq!(
        can("create", "pods", "a").await,
        json!({
            "allowed": true,
            "reason": "RBAC: allowed by RoleBinding \"jane-edits/a\" of ClusterRole \"system:aggregate-to-edit\" to User \"jane\"",
        })
    );
    assert_eq!(can("create", "pods", "default").await, json!({"allowed": false}));
    let url = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let rules = jane.post(url, json!({"spec": {"namespace": "a"}})).await.created()["status"].clone();
    assert_eq!(rules["incomplete"], false);
    let has = |wanted: &Value| rules["resourceRules"].as_array().is_some_and(|all| all.contains(wanted));
    assert!(has(&json!({"verbs": ["create"], "apiGroups": [""], "resources": ["pods/eviction"]})), "{rules}");
    let missing = binding("lost", "Role", "gone", &user("joe"));
    admin.post(&format!("{GROUP}/namespaces/a/rolebindings"), missing).await.created();
    settle(&admin).await;
    let joe = cluster.client("joe", &[]);
    assert_eq!(
        joe.get("/api/v1/namespaces/a/pods").await.refused(403, "Forbidden"),
        "pods is forbidden: User \"joe\" cannot list resource \"pods\" in API group \"\" in the namespace \"a\": rbac: RBAC: role.rbac.authorization.k8s.io \"gone\" not found"
    );
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_have() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let all_roles = json!({
        "verbs": ["create", "update", "patch", "get"], "apiGroups": ["rbac.authorization.k8s.io"],
        "resources": ["roles", "rolebindings", "clusterroles", "clusterrolebindings"],
    });
    let held = json!([all_roles, rule(&["get", "list"], &["pods"])]);
    admin.post(&format!("{GROUP}/clusterroles"), role("keeper", &held)).await.created();
    let keeper = binding("keeper", "ClusterRole", "keeper", &user("jane"));
    admin.post(&format!("{GROUP}/clusterrolebindings"), keeper).await.created();
    settle(&admin).await;
    let jane = cluster.client("jane", &["devs"]);

    // A role.
    let roles = format!("{GROUP}/namespaces/a/roles");
    jane.post(&roles, role("fine", &json!([rule(&["get"], &["pods"])]))).await.created();
    let more = json!([rule(&["get", "delete"], &["pods", "secrets"])]);
    assert_eq!(
        jane.post(&roles, role("more", &more)).await.refused(403, "Forbidden"),
        "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"jane\" (groups=[\"devs\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"delete\"]}"
    );
    let url = format!("{roles}/fine");
    jane.patch(&url, "merge", json!({"rules": more})).await.refused(403, "Forbidden");
    jane.put(&url, role("fine", &more)).await.refused(403, "Forbidden");
    let apply = async |name: &str, rules: &Value| {
        let document = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules,
        });
        let url = format!("{roles}/{name}?fieldManager=m&force=true");
        let headers = [("content-type", "application/apply-patch+yaml")];
        jane.send(http::Method::PATCH, &url, &headers, document.to_string()).await
    };
    apply("fine", &more).await.refused(403, "Forbidden");
    apply("new", &more).await.refused(403, "Forbidden");
    assert_eq!(apply("new", &json!([rule(&["get"], &["pods"])])).await.code, 201);
    // What the garbage collector does grants nothing.
    admin.patch(&url, "merge", json!({"rules": more})).await.ok();
    let metadata = json!({"metadata": {"finalizers": ["example.com/held"]}});
    jane.patch(&url, "merge", metadata).await.ok();
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    jane.patch(&url, "merge", label).await.refused(403, "Forbidden");

    // A binding.
    let bindings = format!("{GROUP}/namespaces/a/rolebindings");
    let to = |role: &str| binding(role, "ClusterRole", role, &user("joe"));
    jane.post(&bindings, to("keeper")).await.created();
    let refused = jane.post(&bindings, to("cluster-admin")).await.refused(403, "Forbidden");
    assert!(refused.contains("{APIGroups:[\"*\"], Resources:[\"*\"], Verbs:[\"*\"]}"), "{refused}");
    assert!(refused.contains("{NonResourceURLs:[\"*\"], Verbs:[\"*\"]}"), "{refused}");
    jane.post(&bindings, to("gone")).await.refused(404, "NotFound");
    let everywhere = format!("{GROUP}/clusterrolebindings");
    jane.post(&everywhere, to("cluster-admin")).await.refused(403, "Forbidden");
    // Dry runs are no way around.
    jane.post(&format!("{everywhere}?dryRun=All"), to("cluster-admin")).await.refused(403, "Forbidden");

    // Whoever aggregates may come to have anything.
    let mut whole = role("whole", &json!([]));
    whole["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"x": "y"}}]});
    assert_eq!(
        jane.post(&format!("{GROUP}/clusterroles"), whole.clone()).await.refused(403, "Forbidden"),
        "clusterroles.rbac.authorization.k8s.io \"whole\" is forbidden: must have cluster-admin privileges to use the aggregationRule"
    );
    admin.post(&format!("{GROUP}/clusterroles"), whole).await.created();
}

#[tokio::test]
async fn escalate_and_bind_are_rights_of_their_own() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let on = |verbs: &[&str], resource: &str, names: &[&str]| {
        json!({
            "verbs": verbs, "apiGroups": ["rbac.authorization.k8s.io"], "resources": [resource],
            "resourceNames": names,
        })
    };
    let held = json!([
        on(&["create"], "roles", &[]),
        on(&["create"], "rolebindings", &[]),
        on(&["escalate"], "roles", &[]),
        on(&["bind"], "clusterroles", &["view", "system:node"]),
    ]);
    admin.post(&format!("{GROUP}/namespaces/a/roles"), role("keeper", &held)).await.created();
    let keeper = binding("keeper", "Role", "keeper", &user("jane"));
    admin.post(&format!("{GROUP}/namespaces/a/rolebindings"), keeper).await.created();
    settle(&admin).await;
    let jane = cluster.client("jane", &[]);
    let any = role("any", &json!([rule(&["*"], &["*"])]));
    jane.post(&format!("{GROUP}/namespaces/a/roles"), any).await.created();
    let bindings = format!("{GROUP}/namespaces/a/rolebindings");
    let to = |role: &str| binding(&role.replace(':', "-"), "ClusterRole", role, &user("joe"));
    jane.post(&bindings, to("system:node")).await.created();
    jane.post(&bindings, to("cluster-admin")).await.refused(403, "Forbidden");
}

#[tokio::test]
async fn the_roles_of_every_cluster_come_back_with_a_start() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let (roles, bindings) = (format!("{GROUP}/clusterroles"), format!("{GROUP}/clusterrolebindings"));
    let view = admin.get(&format!("{roles}/system:aggregate-to-view")).await.ok();
    assert_eq!(view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"], "true");
    admin.delete(&format!("{roles}/system:discovery")).await.ok();
    admin.patch(&format!("{roles}/system:basic-user"), "merge", json!({"rules": []})).await.ok();
    let kept = json!({"rules": [], "metadata": {"annotations": {"rbac.authorization.kubernetes.io/autoupdate": "false"}}});
    admin.patch(&format!("{roles}/view"), "merge", kept.clone()).await.ok();
    admin.patch(&format!("{roles}/system:monitoring"), "merge", kept).await.ok();
    // A binding that leads elsewhere.
    admin.delete(&format!("{bindings}/system:discovery")).await.ok();
    let other = binding("system:discovery", "ClusterRole", "view", &user("jane"));
    admin.post(&bindings, other).await.created();

    let cluster = cluster.restart().await;
    let admin = cluster.admin();
    let discovery = admin.get(&format!("{roles}/system:discovery")).await.ok();
    assert!(!discovery["rules"][0]["nonResourceURLs"].is_null());
    let basic = admin.get(&format!("{roles}/system:basic-user")).await.ok();
    assert!(basic["rules"].as_array().is_some_and(|rules| !rules.is_empty()));
    assert_eq!(
        admin.get(&format!("{roles}/system:monitoring")).await.ok()["rules"],
        Value::Null,
        "its owner's"
    );
    let bound = admin.get(&format!("{bindings}/system:discovery")).await.ok();
    assert_eq!(bound["roleRef"]["name"], "system:discovery");
    assert_eq!(bound["subjects"][0]["name"], "system:authenticated");
}

#[tokio::test]
async fn whoever_may_only_update_creates_nothing() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let rules = json!([{"verbs": ["get", "update", "patch"], "apiGroups": [""], "resources": ["limitranges", "configmaps"]}]);
    admin.post(&format!("{GROUP}/namespaces/a/roles"), role("writer", &rules)).await.created();
    let writer = binding("writer", "Role", "writer", &user("jane"));
    admin.post(&format!("{GROUP}/namespaces/a/rolebindings"), writer).await.created();
    settle(&admin).await;
    let jane = cluster.client("jane", &[]);
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": []}});
    let url = "/api/v1/namespaces/a/limitranges";
    let refused = jane.put(&format!("{url}/r"), range.clone()).await.refused(403, "Forbidden");
    assert!(refused.contains("cannot create resource \"limitranges\""), "{refused}");
    admin.post(url, range.clone()).await.created();
    jane.put(&format!("{url}/r"), range).await.ok();
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    let headers = [("content-type", "application/apply-patch+yaml")];
    let applied = "/api/v1/namespaces/a/configmaps/m?fieldManager=m";
    jane.send(http::Method::PATCH, applied, &headers, map.to_string()).await.refused(403, "Forbidden");
}
