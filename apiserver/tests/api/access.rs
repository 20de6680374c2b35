//! Who may do what, discovery, health.

use serde_json::{Value, json};
use skiff_apiserver::store::{Expect, Write};

use crate::fixture::{Cluster, Pki, config_map, pod};

#[tokio::test]
async fn whoever_is_not_known_is_denied() {
    let cluster = Cluster::start().await;
    cluster.namespace("a").await;
    let nobody = cluster.client("jane", &[]);
    let message = nobody.get("/api/v1/namespaces/default/pods").await.refused(403, "Forbidden");
    assert_eq!(
        message,
        "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let message = nobody.get("/apis/apps/v1/deployments").await.refused(403, "Forbidden");
    assert_eq!(
        message,
        "deployments.apps is forbidden: User \"jane\" cannot list resource \"deployments\" in API group \"apps\" at the cluster scope"
    );
    let message = nobody.get("/api/v1/namespaces/a/pods/p/log").await.refused(403, "Forbidden");
    assert_eq!(
        message,
        "pods \"p\" is forbidden: User \"jane\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"a\""
    );
    nobody.get("/metrics").await.refused(403, "Forbidden");
    nobody.get("/api").await.ok();
    nobody.get("/version").await.ok();
    let review = nobody.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})).await.created();
    assert_eq!(review["status"]["userInfo"]["username"], "jane");

    let anonymous = cluster.anonymous();
    let message = anonymous.get("/api").await.refused(403, "Forbidden");
    assert_eq!(message, "forbidden: User \"system:anonymous\" cannot get path \"/api\"");
    anonymous.get("/version").await.ok();
    assert_eq!(anonymous.get("/readyz").await.bytes.as_ref(), b"ok");
}

#[tokio::test]
async fn components_get_what_they_need_and_no_more() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let scheduler = cluster.client("system:kube-scheduler", &[]);
    scheduler.get("/api/v1/pods").await.ok();
    scheduler.get("/api/v1/secrets").await.refused(403, "Forbidden");
    let controllers = cluster.client("system:kube-controller-manager", &[]);
    controllers.get("/apis/apps/v1/deployments").await.ok();
    controllers.post("/api/v1/namespaces/a/pods", pod("p")).await.refused(403, "Forbidden");
    let replicas = cluster.client("system:serviceaccount:kube-system:replicaset-controller", &[]);
    replicas.post("/api/v1/namespaces/a/pods", pod("p")).await.created();
    replicas.post("/api/v1/namespaces/a/configmaps", config_map("x", "1")).await.refused(403, "Forbidden");
    let proxy = cluster.client("system:kube-proxy", &[]);
    proxy.get("/apis/discovery.k8s.io/v1/endpointslices").await.ok();
    proxy.post("/api/v1/namespaces/a/configmaps", config_map("x", "1")).await.refused(403, "Forbidden");
    admin.get("/api/v1/namespaces/a/pods/p").await.ok();
}

#[tokio::test]
async fn an_administrator_may_act_as_another_and_nobody_else_may() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    const REVIEW: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let whoami = |client: crate::fixture::Client, headers: &'static [(&'static str, &'static str)]| async move {
        client.send(http::Method::POST, REVIEW, headers, "{}").await
    };
    let headers = &[
        ("impersonate-user", "jane"),
        ("impersonate-group", "developers"),
        ("impersonate-uid", "u-1"),
        ("impersonate-extra-example.com%2fscope", "read"),
    ];
    let jane = whoami(admin.clone(), headers).await.created();
    assert_eq!(
        jane["status"]["userInfo"],
        json!({
            "username": "jane", "uid": "u-1", "groups": ["developers", "system:authenticated"],
            "extra": {"example.com/scope": ["read"]},
        })
    );
    let pods = "/api/v1/namespaces/a/pods";
    let as_jane = admin.send(http::Method::GET, pods, &[("impersonate-user", "jane")], "").await;
    let message = as_jane.refused(403, "Forbidden");
    assert!(message.contains("User \"jane\" cannot list resource \"pods\""), "{message}");
    let as_admin = &[("impersonate-user", "jane"), ("impersonate-group", "system:masters")];
    admin.send(http::Method::GET, pods, as_admin, "").await.ok();

    let nobody = cluster.client("joe", &[]);
    let message = whoami(nobody.clone(), &[("impersonate-user", "jane")]).await.refused(403, "Forbidden");
    assert_eq!(
        message,
        "users \"jane\" is forbidden: User \"joe\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
    let account = &[("impersonate-user", "system:serviceaccount:a:default")];
    let message = whoami(nobody.clone(), account).await.refused(403, "Forbidden");
    assert!(message.contains("resource \"serviceaccounts\"") && message.contains("in the namespace \"a\""));
    for component in ["system:kube-controller-manager", "system:apiserver", "system:kube-scheduler"] {
        let component = cluster.client(component, &[]);
        whoami(component, &[("impersonate-user", "admin")]).await.refused(403, "Forbidden");
    }
    whoami(admin, &[("impersonate-group", "developers")]).await.refused(400, "BadRequest");
}

#[tokio::test]
async fn a_review_has_no_table() {
    let cluster = Cluster::start().await;
    let url = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let review = json!({"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}}).to_string();
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let answer = cluster.admin().send(http::Method::POST, url, &accept, review).await;
    assert_eq!(
        answer.refused(406, "NotAcceptable"),
        "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
    );
}

#[tokio::test]
async fn access_reviews_tell_what_would_happen() {
    let cluster = Cluster::start().await;
    let nobody = cluster.client("jane", &[]);
    let url = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let ask = json!({"spec": {"resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "a"}}});
    assert_eq!(nobody.post(url, ask.clone()).await.created()["status"]["allowed"], false);
    assert_eq!(cluster.admin().post(url, ask).await.created()["status"]["allowed"], true);
    let url = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let ask = json!({"spec": {"user": "system:kube-scheduler", "resourceAttributes": {"verb": "list", "resource": "pods"}}});
    assert_eq!(cluster.admin().post(url, ask.clone()).await.created()["status"]["allowed"], true);
    nobody.post(url, ask).await.refused(403, "Forbidden");
}

#[tokio::test]
async fn a_token_is_an_identity_for_as_long_as_what_it_is_bound_to() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let created = admin.post("/api/v1/namespaces/a/pods", pod("p")).await.created();
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": created["metadata"]["uid"]});
    let request = json!({"spec": {"expirationSeconds": 3600, "boundObjectRef": bound}});
    let url = "/api/v1/namespaces/a/serviceaccounts/default/token";
    let answer = admin.post(url, request).await.created();
    let token = answer["status"]["token"].as_str().expect("a token").to_owned();
    let review = |audiences: Value| {
        let (admin, token) = (admin.clone(), token.clone());
        async move {
            let spec = json!({"token": token, "audiences": audiences});
            admin.post("/apis/authentication.k8s.io/v1/tokenreviews", json!({"spec": spec})).await.created()
        }
    };
    let valid = review(json!([])).await;
    assert_eq!(valid["status"]["authenticated"], true, "{valid}");
    let user = &valid["status"]["user"];
    assert_eq!(user["username"], "system:serviceaccount:a:default");
    assert_eq!(user["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    assert!(review(json!(["other"])).await["status"]["authenticated"].is_null());
    let short = admin.post(url, json!({"spec": {"expirationSeconds": 1}})).await.refused(422, "Invalid");
    assert!(short.contains("may not specify a duration less than 10 minutes"), "{short}");
    admin.delete("/api/v1/namespaces/a/pods/p?gracePeriodSeconds=0").await.ok();
    assert!(review(json!([])).await["status"]["authenticated"].is_null(), "the token died with its pod");
}

#[tokio::test]
async fn a_node_touches_itself_and_its_pods_only() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let one = cluster.client("system:node:one", &["system:nodes"]);
    let node = |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    one.post("/api/v1/nodes", node("one")).await.created();
    one.post("/api/v1/nodes", node("two")).await.refused(403, "Forbidden");
    let label = json!({"metadata": {"labels": {"node-restriction.kubernetes.io/x": "y"}}});
    one.patch("/api/v1/nodes/one", "merge", label).await.refused(403, "Forbidden");
    for (name, on) in [("mine", "one"), ("other", "two")] {
        let mut bound = pod(name);
        bound["spec"]["nodeName"] = on.into();
        bound["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": format!("of-{on}")}}]);
        admin.post("/api/v1/namespaces/a/pods", bound).await.created();
        let secret = json!({"metadata": {"name": format!("of-{on}")}});
        admin.post("/api/v1/namespaces/a/secrets", secret).await.created();
    }
    let running = json!({"status": {"phase": "Running"}});
    one.patch("/api/v1/namespaces/a/pods/mine/status", "merge", running.clone()).await.ok();
    one.patch("/api/v1/namespaces/a/pods/other/status", "merge", running).await.refused(403, "Forbidden");
    one.get("/api/v1/namespaces/a/secrets/of-one").await.ok();
    one.get("/api/v1/namespaces/a/secrets/of-two").await.refused(403, "Forbidden");
    one.get("/api/v1/namespaces/a/secrets").await.refused(403, "Forbidden");
    one.post("/api/v1/namespaces/a/pods", pod("new")).await.refused(403, "Forbidden");
}

#[tokio::test]
async fn a_node_sees_of_other_nodes_pods_what_network_policies_need() {
    const PODS: &str = "/skiff/node/pods";
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let one = cluster.client("system:node:one", &["system:nodes"]);
    let secret = |name: &str| {
        let mut pod = pod(name);
        pod["metadata"]["labels"] = json!({"l": "1"});
        pod["metadata"]["annotations"] = json!({"a": "hidden"});
        pod["spec"]["nodeName"] = "two".into();
        pod["spec"]["containers"][0]["env"] = json!([{"name": "PASSWORD", "value": "hidden"}]);
        pod["spec"]["containers"][0]["ports"] = json!([{"name": "web", "containerPort": 80}]);
        pod
    };
    admin.post("/api/v1/namespaces/a/pods", secret("p")).await.created();
    one.get("/api/v1/pods").await.refused(403, "Forbidden");
    cluster.client("jane", &[]).get(PODS).await.refused(403, "Forbidden");

    let list = one.get(PODS).await.ok();
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("PodList"), &json!("v1")));
    let seen = &list["items"][0];
    assert_eq!(seen["metadata"]["labels"], json!({"l": "1"}));
    assert_eq!(
        seen["spec"],
        json!({"nodeName": "two",
            "containers": [{"ports": [{"name": "web", "containerPort": 80, "protocol": "TCP"}]}]})
    );
    assert!(!list.to_string().contains("hidden"), "{list}");

    // As informers read: all there is, that this is all, and then what changes.
    let query =
        "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = one.watch(&format!("{PODS}?{query}")).await;
    assert_eq!(events.named().await, ("ADDED".into(), "p".into()));
    let (kind, end) = events.next().await.expect("a bookmark");
    assert_eq!(kind, "BOOKMARK");
    assert_eq!(end["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    admin.post("/api/v1/namespaces/a/pods", secret("q")).await.created();
    let (kind, added) = events.next().await.expect("an event");
    assert_eq!((kind.as_str(), &added["metadata"]["name"]), ("ADDED", &json!("q")));
    assert!(!added.to_string().contains("hidden"), "{added}");
    admin.delete("/api/v1/namespaces/a/pods/q?gracePeriodSeconds=0").await.ok();
    let deleted = loop {
        let (kind, object) = events.next().await.expect("an event");
        assert!(!object.to_string().contains("hidden"), "{object}");
        if kind == "DELETED" {
            break object;
        }
    };
    assert_eq!(deleted["metadata"]["name"], "q");
    let from = list["metadata"]["resourceVersion"].as_str().expect("a version");
    let mut rest = one.watch(&format!("{PODS}?watch=true&resourceVersion={from}")).await;
    assert_eq!(rest.named().await, ("ADDED".into(), "q".into()));

    // Nothing else can be had there, in no other form, and nothing be found out by selecting.
    let message = one.get(&format!("{PODS}?fieldSelector=spec.serviceAccountName%3Ddefault")).await;
    message.refused(400, "BadRequest");
    for accept in [
        "application/vnd.kubernetes.protobuf",
        "application/json;as=Table;v=v1;g=meta.k8s.io",
        "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
        "application/yaml",
    ] {
        let answer = one.get_as(PODS, accept).await;
        let text = String::from_utf8_lossy(&answer.bytes).into_owned();
        assert!(!text.contains("hidden"), "{accept}: {text}");
    }
    one.get("/skiff/node").await.refused(403, "Forbidden");
    one.post(PODS, secret("r")).await.refused(403, "Forbidden");
    admin.post(PODS, secret("r")).await.refused(405, "MethodNotAllowed");
    one.get(&format!("{PODS}?labelSelector=l%3D2")).await.ok()["items"]
        .as_array()
        .expect("items")
        .is_empty()
        .then_some(())
        .expect("it selects");
}

#[tokio::test]
async fn discovery_tells_the_same_plain_and_aggregated() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    assert_eq!(admin.get("/api").await.ok()["versions"], json!(["v1"]));
    let apps = admin.get("/apis/apps/v1").await.ok();
    let resources = apps["resources"].as_array().expect("resources");
    let deployment = resources.iter().find(|r| r["name"] == "deployments").expect("deployments");
    assert_eq!(deployment["shortNames"], json!(["deploy"]));
    assert_eq!(deployment["singularName"], "deployment");
    assert_eq!(deployment["categories"], json!(["all"]));
    assert_eq!(
        deployment["verbs"],
        json!(["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"])
    );
    let scale = resources.iter().find(|r| r["name"] == "deployments/scale").expect("its scale");
    assert_eq!((&scale["kind"], &scale["group"]), (&json!("Scale"), &json!("autoscaling")));
    let groups = admin.get("/apis").await.ok();
    assert!(groups["groups"].as_array().is_some_and(|g| g.iter().any(|g| g["name"] == "apps")));
    assert_eq!(admin.get("/apis/apps").await.ok()["preferredVersion"]["groupVersion"], "apps/v1");
    admin.get("/apis/none/v1").await.refused(404, "NotFound");
    admin.get("/apis/none/v1/things").await.refused(404, "NotFound");

    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let answer = admin.get_as("/apis", accept).await;
    assert_eq!(
        answer.headers["content-type"],
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    let document = answer.ok();
    let apps = document["items"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|g| g["metadata"]["name"] == "apps")
        .expect("apps");
    let found = apps["versions"][0]["resources"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|r| r["resource"] == "deployments");
    assert_eq!(found.expect("deployments")["responseKind"]["kind"], "Deployment");
    let tag = answer.headers["etag"].to_str().expect("a tag").to_owned();
    let again =
        admin.send(http::Method::GET, "/apis", &[("accept", accept), ("if-none-match", &tag)], "").await;
    assert_eq!((again.code, again.bytes.len()), (304, 0));
    let core = admin.get_as("/api", accept).await.ok();
    assert!(core["items"][0]["versions"][0]["resources"].as_array().is_some_and(|r| r.len() > 10));
}

#[tokio::test]
async fn openapi_tells_what_types_and_fields_are_for_in_both_versions() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let v2 = admin.get("/openapi/v2").await.ok();
    let definitions = v2["definitions"].as_object().expect("definitions");
    let (mut n_fields, mut n_described) = (0, 0);
    for definition in definitions.values() {
        for property in definition["properties"].as_object().into_iter().flatten().map(|(_, p)| p) {
            n_fields += 1;
            n_described += usize::from(property["description"].as_str().is_some_and(|text| !text.is_empty()));
        }
    }
    assert!(n_described * 100 >= n_fields * 95, "{n_described} of {n_fields} fields are described");
    assert_eq!(
        definitions["io.k8s.api.core.v1.ServiceList"]["properties"]["items"]["description"],
        "List of services"
    );
    assert!(v2["parameters"]["watch"]["description"].is_string());
    // The same words whichever version is asked, of a field that is a reference too.
    let v3 = admin.get("/openapi/v3/api/v1").await.ok();
    let of_v3 = &v3["components"]["schemas"]["io.k8s.api.core.v1.Pod"];
    let of_v2 = &definitions["io.k8s.api.core.v1.Pod"];
    for part in ["/description", "/properties/spec/description", "/properties/kind/description"] {
        let text = of_v3.pointer(part).and_then(Value::as_str).expect("a description");
        assert!(!text.is_empty());
        assert_eq!(of_v2.pointer(part), Some(&json!(text)), "{part}");
    }
    assert!(of_v3["properties"]["spec"]["allOf"].is_array(), "{}", of_v3["properties"]["spec"]);
}

#[tokio::test]
async fn openapi_version_and_health_are_served() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    assert_eq!(admin.get("/version").await.ok()["gitVersion"], skiff_api::kubernetes::VERSION);
    let index = admin.get("/openapi/v3").await.ok();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("a URL").to_owned();
    assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash="), "{url}");
    let document = admin.get(&url).await.ok();
    assert!(document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"].is_object());
    admin.get("/openapi/v2").await.ok();
    let verbose = admin.get("/readyz?verbose").await;
    let text = String::from_utf8_lossy(&verbose.bytes).into_owned();
    assert!(text.contains("[+]etcd ok\n") && text.ends_with("readyz check passed\n"), "{text}");
    assert_eq!(admin.get("/livez/ping").await.bytes.as_ref(), b"ok");
    let metrics = admin.get("/metrics").await;
    assert!(String::from_utf8_lossy(&metrics.bytes).contains("apiserver_request_total"));
}

/// Those that upstream's suite looks for.
#[tokio::test]
async fn what_a_start_has_done_is_told_under_upstreams_names() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let names = [
        "start-apiserver-admission-initializer",
        "generic-apiserver-start-informers",
        "start-apiextensions-informers",
        "start-apiextensions-controllers",
        "crd-informer-synced",
        "bootstrap-controller",
        "start-system-namespaces-controller",
        "start-service-ip-repair-controllers",
        "scheduling/bootstrap-system-priority-classes",
        "start-cluster-authentication-info-controller",
        "start-kube-aggregator-informers",
        "apiservice-registration-controller",
        "apiservice-status-local-available-controller",
        "apiservice-status-remote-available-controller",
        "kube-apiserver-autoregistration",
        "apiservice-openapi-controller",
        "storage-readiness",
    ];
    for endpoint in ["healthz", "livez", "readyz"] {
        let told = admin.get(&format!("/{endpoint}?verbose=1")).await;
        let told = String::from_utf8_lossy(&told.bytes).into_owned();
        let lines: Vec<&str> = told.lines().collect();
        for name in names {
            assert!(lines.contains(&format!("[+]poststarthook/{name} ok").as_str()), "{name} in {told}");
        }
        assert!(lines.contains(&"[+]autoregister-completion ok"), "{told}");
        assert_eq!(lines.contains(&"[+]informer-sync ok"), endpoint == "readyz", "{told}");
    }
    assert_eq!(admin.get("/livez/poststarthook/bootstrap-controller").await.bytes.as_ref(), b"ok");
    assert_eq!(admin.get("/livez/poststarthook/no-such").await.code, 404);
}

#[tokio::test]
async fn the_clusters_first_objects_are_there_and_stay_over_a_restart() {
    let cluster = Cluster::start().await;
    let before = cluster.store.revision().await.expect("a revision");
    let cluster = cluster.restart().await;
    assert_eq!(cluster.store.revision().await.expect("a revision"), before, "nothing is written again");
    let admin = cluster.admin();
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        admin.get(&format!("/api/v1/namespaces/{name}")).await.ok();
    }
    let service = admin.get("/api/v1/namespaces/default/services/kubernetes").await.ok();
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    let slice =
        admin.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await.ok();
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.1"]));
    let class = admin.get("/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical").await.ok();
    assert_eq!(class["value"], 2_000_001_000);
}

#[tokio::test]
async fn a_token_ends_a_minute_after_what_it_is_bound_to_was_due_to_go() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "v"}});
    admin.post("/api/v1/namespaces/a/secrets", secret).await.created();
    admin.post("/api/v1/namespaces/a/pods", pod("p")).await.created();
    let token = async |kind: &str, name: &str| {
        let bound = json!({"kind": kind, "apiVersion": "v1", "name": name});
        let url = "/api/v1/namespaces/a/serviceaccounts/default/token";
        let answer = admin.post(url, json!({"spec": {"boundObjectRef": bound}})).await.created();
        answer["status"]["token"].as_str().expect("a token").to_owned()
    };
    let (of_pod, of_secret) = (token("Pod", "p").await, token("Secret", "s").await);
    let is_valid = async |token: &str| {
        let review = json!({"spec": {"token": token}});
        let answer = admin.post("/apis/authentication.k8s.io/v1/tokenreviews", review).await.created();
        answer["status"]["authenticated"] == true
    };
    // As if a finalizer had held it for so long.
    let due = async |plural: &str, name: &str, ago_s: i64| {
        let url = format!("/api/v1/namespaces/a/{plural}/{name}");
        let mut object = admin.get(&url).await.ok();
        let at = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(ago_s);
        object["metadata"]["deletionTimestamp"] = at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        object["metadata"]["finalizers"] = json!(["example.com/held"]);
        let key = format!("/registry/{plural}/a/{name}");
        cluster.store.write(Write::put(key, object.to_string(), Expect::Any)).await.expect("writes");
        admin.get(&url).await.ok();
    };
    for (plural, name, bound) in [("pods", "p", &of_pod), ("secrets", "s", &of_secret)] {
        due(plural, name, 30).await;
        assert!(is_valid(bound).await, "{plural}: not yet");
        due(plural, name, 62).await;
        assert!(!is_valid(bound).await, "{plural}: for longer than a minute");
    }
    let account = admin.post("/api/v1/namespaces/a/serviceaccounts/default/token", json!({"spec": {}})).await;
    let of_account = account.created()["status"]["token"].as_str().expect("a token").to_owned();
    due("serviceaccounts", "default", 30).await;
    assert!(is_valid(&of_account).await);
    due("serviceaccounts", "default", 62).await;
    assert!(!is_valid(&of_account).await, "with its account too");
}

#[tokio::test]
async fn components_are_healthy_while_their_leader_renews_its_lease() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let statuses = async || {
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
        let table = admin.get_as("/api/v1/componentstatuses", accept).await.ok();
        let rows = table["rows"].as_array().expect("rows").clone();
        rows.iter().map(|row| row["cells"].clone()).collect::<Vec<_>>()
    };
    let nobody = |lease: &str| format!("nobody has taken the Lease kube-system/{lease}");
    assert_eq!(
        statuses().await,
        [
            json!(["scheduler", "Unhealthy", "", nobody("kube-scheduler")]),
            json!(["controller-manager", "Unhealthy", "", nobody("kube-controller-manager")]),
            json!(["etcd-0", "Healthy", "ok", ""]),
        ]
    );
    let url = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
    let lease = |name: &str, ago_s: i64| {
        let at = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(ago_s);
        json!({
            "metadata": {"name": name},
            "spec": {"holderIdentity": "n", "leaseDurationSeconds": 15, "renewTime": format!("{at:.6}")},
        })
    };
    admin.post(url, lease("kube-scheduler", 5)).await.created();
    admin.post(url, lease("kube-controller-manager", 16)).await.created();
    let now = statuses().await;
    assert_eq!(now[0], json!(["scheduler", "Healthy", "ok", ""]));
    assert_eq!(now[1][1], "Unhealthy");
    assert!(now[1][3].as_str().is_some_and(|why| why.contains("is good for 15 s and was last renewed at")));
    let one = admin.get("/api/v1/componentstatuses/scheduler").await.ok();
    assert_eq!(one["conditions"][0]["status"], "True");
}

#[tokio::test]
async fn extensions_learn_whose_certificates_count() {
    let cluster = Cluster::start().await;
    let url = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let map = cluster.admin().get(url).await.ok();
    let mut expected = json!({
        "client-ca-file": cluster.pki.ca_pem(),
        "requestheader-client-ca-file": cluster.pki.front_proxy_ca_pem(),
        "requestheader-allowed-names": "[\"front-proxy-client\"]",
        "requestheader-username-headers": "[\"X-Remote-User\"]",
        "requestheader-uid-headers": "[\"X-Remote-Uid\"]",
        "requestheader-group-headers": "[\"X-Remote-Group\"]",
        "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
    });
    assert_eq!(map["data"], expected);
    // What others wrote beside it stays, such as another server's authority for front proxies.
    let other = Pki::new();
    let patch = json!({"data": {
        "client-ca-file": "old", "mine": "x", "requestheader-client-ca-file": other.front_proxy_ca_pem(),
        "requestheader-allowed-names": "[\"other\"]",
        "requestheader-group-headers": "no list",
    }});
    cluster.admin().patch(url, "merge", patch).await.ok();
    let cluster = cluster.restart().await;
    let map = cluster.admin().get(url).await.ok();
    expected["mine"] = "x".into();
    let both = format!("{}{}", cluster.pki.front_proxy_ca_pem(), other.front_proxy_ca_pem());
    expected["requestheader-client-ca-file"] = both.into();
    expected["requestheader-allowed-names"] = "[\"other\",\"front-proxy-client\"]".into();
    assert_eq!(map["data"], expected);
}
