//! Create, update, patch, delete.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{Cluster, config_map};

const MAPS: &str = "/api/v1/namespaces/a/configmaps";

#[tokio::test]
async fn an_object_lives_from_create_to_delete() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let created = admin.post(MAPS, config_map("x", "1")).await.created();
    let meta = &created["metadata"];
    assert_eq!(meta["namespace"], "a");
    assert!(
        meta["uid"].is_string()
            && meta["creationTimestamp"].is_string()
            && meta["resourceVersion"].is_string()
    );
    let url = format!("{MAPS}/x");
    assert_eq!(admin.get(&url).await.ok(), created);

    let mut changed = created.clone();
    changed["data"]["k"] = "2".into();
    let updated = admin.put(&url, changed.clone()).await.ok();
    assert_ne!(updated["metadata"]["resourceVersion"], created["metadata"]["resourceVersion"]);
    let message = admin.put(&url, changed).await.refused(409, "Conflict");
    assert_eq!(
        message,
        "Operation cannot be fulfilled on configmaps \"x\": the object has been modified; please apply your changes to the latest version and try again"
    );
    let again = admin.put(&url, updated.clone()).await.ok();
    assert_eq!(again, updated, "an update that changes nothing writes nothing");

    let deleted = admin.delete(&url).await.ok();
    assert_eq!(deleted["status"], "Success");
    assert_eq!(
        deleted["details"],
        json!({"name": "x", "kind": "configmaps", "uid": created["metadata"]["uid"]})
    );
    let message = admin.get(&url).await.refused(404, "NotFound");
    assert_eq!(message, "configmaps \"x\" not found");
}

#[tokio::test]
async fn names_and_namespaces_are_checked() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    admin.post(MAPS, config_map("x", "1")).await.created();
    let message = admin.post(MAPS, config_map("x", "1")).await.refused(409, "AlreadyExists");
    assert_eq!(message, "configmaps \"x\" already exists");
    let message = admin.post(MAPS, config_map("Not_Valid", "1")).await.refused(422, "Invalid");
    assert!(message.starts_with("ConfigMap \"Not_Valid\" is invalid: metadata.name: Invalid value: \"Not_Valid\": a lowercase RFC 1123 subdomain"), "{message}");
    let message = admin.post(MAPS, json!({"metadata": {}})).await.refused(422, "Invalid");
    assert!(message.contains("name or generateName is required"), "{message}");
    let message = admin
        .post("/api/v1/namespaces/missing/configmaps", config_map("x", "1"))
        .await
        .refused(404, "NotFound");
    assert_eq!(message, "namespaces \"missing\" not found");
    let mut foreign = config_map("y", "1");
    foreign["metadata"]["namespace"] = "b".into();
    admin.post(MAPS, foreign).await.refused(400, "BadRequest");
    admin.put(&format!("{MAPS}/z"), config_map("x", "1")).await.refused(400, "BadRequest");
    let generated = admin.post(MAPS, json!({"metadata": {"generateName": "web-"}})).await.created();
    let name = generated["metadata"]["name"].as_str().expect("a name");
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
}

#[tokio::test]
async fn admission_is_asked_of_a_new_object_before_its_resource_version_is_refused() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let mut versioned = config_map("x", "1");
    versioned["metadata"]["resourceVersion"] = "5".into();
    let absent = admin.post("/api/v1/namespaces/absent/configmaps", versioned.clone()).await;
    absent.refused(404, "NotFound");
    let refused = admin.post(MAPS, versioned).await;
    assert_eq!(refused.code, 500);
    let text = String::from_utf8_lossy(&refused.bytes);
    assert!(text.contains("resourceVersion should not be set on objects to be created"), "{text}");
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let before = cluster.store.revision().await.expect("a revision");
    let created = admin.post(&format!("{MAPS}?dryRun=All"), config_map("x", "1")).await.created();
    assert!(created["metadata"]["uid"].is_string());
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    admin.post("/api/v1/namespaces/a/services?dryRun=All", service).await.created();
    assert_eq!(cluster.store.revision().await.expect("a revision"), before);
    admin.post(&format!("{MAPS}?dryRun=Some"), config_map("x", "1")).await.refused(422, "Invalid");
    admin.post(MAPS, config_map("x", "1")).await.created();
    admin.delete(&format!("{MAPS}/x?dryRun=All")).await.ok();
    admin.get(&format!("{MAPS}/x")).await.ok();
}

#[tokio::test]
async fn every_kind_of_patch_is_applied() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    admin.post(MAPS, config_map("x", "1")).await.created();
    let url = format!("{MAPS}/x");
    let patched =
        admin.patch(&url, "json", json!([{"op": "add", "path": "/data/j", "value": "j"}])).await.ok();
    assert_eq!(patched["data"], json!({"j": "j", "k": "1"}));
    let patched = admin.patch(&url, "merge", json!({"data": {"k": null}})).await.ok();
    assert_eq!(patched["data"], json!({"j": "j"}));
    let patched =
        admin.patch(&url, "strategic-merge", json!({"metadata": {"labels": {"l": "1"}}})).await.ok();
    assert_eq!(patched["metadata"]["labels"], json!({"l": "1"}));
    let stale = json!({"metadata": {"resourceVersion": "1"}, "data": {"k": "9"}});
    admin.patch(&url, "merge", stale).await.refused(409, "Conflict");
    admin.patch(&format!("{MAPS}/none"), "merge", json!({})).await.refused(404, "NotFound");
    let unknown = admin.send(http::Method::PATCH, &url, &[("content-type", "text/plain")], "{}").await;
    unknown.refused(415, "UnsupportedMediaType");
}

#[tokio::test]
async fn concurrent_patches_all_land() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    admin.post(MAPS, config_map("x", "1")).await.created();
    let patches = (0..20).map(|n| {
        let admin = admin.clone();
        tokio::spawn(async move {
            admin.patch(&format!("{MAPS}/x"), "merge", json!({"data": {format!("n{n}"): "1"}})).await.ok();
        })
    });
    for patch in patches.collect::<Vec<_>>() {
        patch.await.expect("patches");
    }
    let all = admin.get(&format!("{MAPS}/x")).await.ok();
    assert_eq!(all["data"].as_object().map(serde_json::Map::len), Some(21));
}

#[tokio::test]
async fn preconditions_guard_a_deletion() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let created = admin.post(MAPS, config_map("x", "1")).await.created();
    let delete = |body: serde_json::Value| {
        let admin = admin.clone();
        async move { admin.send(http::Method::DELETE, &format!("{MAPS}/x"), &[], body.to_string()).await }
    };
    let message = delete(json!({"preconditions": {"uid": "other"}})).await.refused(409, "Conflict");
    assert!(
        message.contains("the UID in the precondition (other) does not match the UID in record"),
        "{message}"
    );
    let message = delete(json!({"preconditions": {"resourceVersion": "1"}})).await.refused(409, "Conflict");
    assert!(message.contains("the ResourceVersion in the precondition (1) does not match"), "{message}");
    delete(json!({"preconditions": {"uid": created["metadata"]["uid"]}})).await.ok();
}

#[tokio::test]
async fn finalizers_hold_an_object_until_they_are_gone() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let mut map = config_map("x", "1");
    map["metadata"]["finalizers"] = json!(["example.com/hold"]);
    admin.post(MAPS, map).await.created();
    let url = format!("{MAPS}/x");
    let held = admin.delete(&url).await.ok();
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}});
    let message = admin.patch(&url, "merge", more).await.refused(422, "Invalid");
    assert!(message.contains("no new finalizers can be added if the object is being deleted"), "{message}");
    admin.patch(&url, "merge", json!({"metadata": {"finalizers": null}})).await.ok();
    admin.get(&url).await.refused(404, "NotFound");
}

#[tokio::test]
async fn propagation_sets_the_collectors_finalizers() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        admin.post(MAPS, config_map("x", "1")).await.created();
        let url = format!("{MAPS}/x");
        let held = admin.delete(&format!("{url}?propagationPolicy={policy}")).await.ok();
        assert_eq!(held["metadata"]["finalizers"], json!([finalizer]));
        admin.patch(&url, "merge", json!({"metadata": {"finalizers": null}})).await.ok();
    }
}

#[tokio::test]
async fn a_namespace_terminates_once_it_is_finalized() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a";
    assert_eq!(admin.get(url).await.ok()["status"]["phase"], "Active");
    let mut going = admin.delete(url).await.ok();
    assert_eq!(going["status"]["phase"], "Terminating");
    let refused = admin.post(MAPS, config_map("x", "1")).await;
    let message = refused.refused(403, "Forbidden");
    assert_eq!(
        message,
        "configmaps \"x\" is forbidden: unable to create new content in namespace a because it is being terminated"
    );
    assert_eq!(refused.json()["details"]["causes"][0]["reason"], "NamespaceTerminating");
    going["spec"]["finalizers"] = json!([]);
    admin.put(&format!("{url}/finalize"), going).await.ok();
    admin.get(url).await.refused(404, "NotFound");
    admin.delete("/api/v1/namespaces/kube-system").await.refused(403, "Forbidden");
}

#[tokio::test]
async fn a_client_that_writes_what_says_nothing_changes_nothing() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let url = "/apis/apps/v1/namespaces/a/deployments";
    let pod = json!({"hostNetwork": false, "nodeSelector": {"a": "1"}, "containers": [{"name": "c", "image": "nginx",
        "livenessProbe": {"exec": {"command": ["true"]}, "timeoutSeconds": 0}}]});
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": pod});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "template": template}});
    let mut read = admin.post(url, deployment).await.created();
    let spec = &read["spec"]["template"]["spec"];
    assert_eq!(spec["hostNetwork"], Value::Null, "it is left out, as upstream leaves it out");
    assert_eq!(
        spec["containers"][0]["livenessProbe"]["timeoutSeconds"], 1,
        "zero is not set, and has a default"
    );
    assert_eq!(read["spec"]["replicas"], 0, "here zero says something");

    let url = format!("{url}/web");
    let spec = &mut read["spec"]["template"]["spec"];
    (spec["hostPID"], spec["tolerations"]) = (json!(false), json!([]));
    let mut read = admin.put(&url, read).await.ok();
    assert_eq!(read["metadata"]["generation"], 1);
    read["spec"]["template"]["spec"]["nodeSelector"]["b"] = "".into();
    assert_eq!(admin.put(&url, read).await.ok()["metadata"]["generation"], 2);
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let url = "/apis/apps/v1/namespaces/a/deployments";
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template},
        "status": {"replicas": 7},
    });
    let created = admin.post(url, deployment).await.created();
    assert_ne!(created["status"]["replicas"], 7, "a client cannot create a status");
    assert_eq!(created["metadata"]["generation"], 1);
    let url = format!("{url}/web");
    let patch =
        json!({"spec": {"replicas": 9}, "status": {"replicas": 2}, "metadata": {"annotations": {"a": "b"}}});
    let patched = admin.patch(&format!("{url}/status"), "merge", patch).await.ok();
    assert_eq!((&patched["spec"]["replicas"], &patched["status"]["replicas"]), (&json!(2), &json!(2)));
    assert_eq!(patched["metadata"]["annotations"]["a"], "b");
    let patched = admin
        .patch(&url, "strategic-merge", json!({"spec": {"replicas": 3}, "status": {"replicas": 1}}))
        .await
        .ok();
    assert_eq!((&patched["metadata"]["generation"], &patched["status"]["replicas"]), (&json!(2), &json!(2)));

    let scale = admin.get(&format!("{url}/scale")).await.ok();
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!("Scale"), &json!(3), &json!("app=web"))
    );
    admin.patch(&format!("{url}/scale"), "merge", json!({"spec": {"replicas": 5}})).await.ok();
    assert_eq!(admin.get(&url).await.ok()["spec"]["replicas"], 5);
    admin
        .patch(&format!("{url}/scale"), "merge", json!({"spec": {"replicas": -1}}))
        .await
        .refused(422, "Invalid");
}

#[tokio::test]
async fn bodies_are_checked_for_type_size_and_unknown_fields() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let post = |content_type: &'static str, url: String, body: String| {
        let admin = admin.clone();
        async move { admin.send(http::Method::POST, &url, &[("content-type", content_type)], body).await }
    };
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: from-yaml}\ndata: {k: v}\n";
    post("application/yaml", MAPS.into(), yaml.into()).await.created();
    post("application/cbor", MAPS.into(), "x".into()).await.refused(415, "UnsupportedMediaType");
    let large = config_map("large", &"x".repeat(3 << 20)).to_string();
    post("application/json", MAPS.into(), large).await.refused(413, "RequestEntityTooLarge");
    post("application/json", MAPS.into(), "{not json".into()).await.refused(400, "BadRequest");

    let mut unknown = config_map("u", "1");
    unknown["spec"] = json!({"foo": 1});
    let strict =
        post("application/json", format!("{MAPS}?fieldValidation=Strict"), unknown.to_string()).await;
    let message = strict.refused(400, "BadRequest");
    assert!(message.contains("strict decoding error: unknown field \"spec\""), "{message}");
    let warned = post("application/json", MAPS.into(), unknown.to_string()).await;
    warned.created();
    assert_eq!(warned.headers["warning"], r#"299 - "unknown field \"spec\"""#);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    for n in 0..4 {
        let mut map = config_map(&format!("m{n}"), "1");
        map["metadata"]["labels"] = json!({"even": (n % 2 == 0).to_string()});
        admin.post(MAPS, map).await.created();
    }
    let deleted = admin.delete(&format!("{MAPS}?labelSelector=even%3Dtrue")).await.ok();
    assert_eq!(
        (&deleted["kind"], deleted["items"].as_array().map(Vec::len)),
        (&json!("ConfigMapList"), Some(2))
    );
    let (first, listed) = (&deleted["items"][0], &deleted["metadata"]["resourceVersion"]);
    assert_eq!((&first["metadata"]["name"], &first["data"]), (&json!("m0"), &config_map("m0", "1")["data"]));
    assert_ne!(&first["metadata"]["resourceVersion"], listed, "its deletion is a revision of its own");
    let left = admin.get(MAPS).await.ok();
    assert_eq!(left["items"].as_array().map(Vec::len), Some(2));
    admin.delete("/api/v1/namespaces").await.refused(405, "MethodNotAllowed");
}

#[tokio::test]
async fn a_lease_is_created_by_an_update() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let url = "/apis/coordination.k8s.io/v1/namespaces/a/leases/l";
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {}});
    admin.put(url, lease.clone()).await.created();
    let message = admin.put(url, lease).await.refused(422, "Invalid");
    assert!(
        message.ends_with("metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"),
        "{message}"
    );
    admin.put(&format!("{MAPS}/none"), config_map("none", "1")).await.refused(404, "NotFound");
}

#[tokio::test]
async fn options_in_the_query_are_checked_as_upstream_checks_them() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a/configmaps";
    let refused = admin.get(&format!("{url}?timeout=soon")).await.refused(400, "BadRequest");
    assert_eq!(
        refused,
        "invalid timeout specified in the request URL - time: invalid duration \"soon\"".to_owned()
    );
    let long = "m".repeat(129);
    let refused = admin.post(&format!("{url}?fieldManager={long}"), config_map("x", "v")).await;
    assert!(refused.refused(422, "Invalid").contains("fieldManager: Too long"), "{refused:?}");
    let refused = admin.post(&format!("{url}?fieldManager=a%01"), config_map("x", "v")).await;
    assert!(refused.refused(422, "Invalid").contains("invalid character U+0001 (at position 1)"));
    admin.post(&format!("{url}?fieldManager=me"), config_map("x", "v")).await.created();
    admin.post(url, config_map("y", "v")).await.created();
    let refused = admin.patch(&format!("{url}/x?force=true"), "merge", json!({})).await;
    assert!(refused.refused(422, "Invalid").contains("may not be specified for non-apply patch"));
    let page = admin.get(&format!("{url}?limit=1")).await.ok();
    let next = page["metadata"]["continue"].as_str().expect("more").to_owned();
    let both = format!("{url}?limit=1&continue={next}&resourceVersion=1");
    let why = admin.get(&both).await.refused(400, "BadRequest");
    assert_eq!(why, "specifying resource version is not allowed when using continue");
    admin.get(&format!("{url}?limit=1&continue={next}")).await.ok();
}

#[tokio::test]
async fn events_are_kept_as_long_as_the_flag_says() {
    let cluster = Cluster::keeping_events(Duration::from_millis(200)).await;
    let admin = cluster.admin();
    let event = json!({
        "metadata": {"name": "e", "namespace": "default"},
        "involvedObject": {"kind": "ConfigMap", "namespace": "default", "name": "m"},
    });
    let created = admin.post("/api/v1/namespaces/default/events", event).await.created();
    let version = created["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    let mut events = admin.watch(&format!("/api/v1/events?watch=true&resourceVersion={version}")).await;
    assert_eq!(events.named().await, ("DELETED".to_owned(), "e".to_owned()));
}

#[tokio::test]
async fn what_an_answer_is_comes_first_and_a_newline_last() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a/configmaps";
    admin.post(url, config_map("x", "v")).await.created();
    for (url, first) in [
        (format!("{url}/x"), r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"#),
        (url.to_owned(), r#"{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"#),
        (format!("{url}/none"), r#"{"kind":"Status","apiVersion":"v1","metadata":{"#),
        ("/api/v1".to_owned(), r#"{"kind":"APIResourceList""#),
    ] {
        let answer = admin.get(&url).await;
        let text = String::from_utf8_lossy(&answer.bytes).into_owned();
        assert!(text.starts_with(first) && text.ends_with("}\n"), "{url}: {text}");
    }
    let table = admin.get_as(url, "application/json;as=Table;v=v1beta1;g=meta.k8s.io").await.ok();
    assert_eq!(table["apiVersion"], "meta.k8s.io/v1beta1");
    assert_eq!(table["rows"][0]["object"]["apiVersion"], "meta.k8s.io/v1beta1");
    let head = admin.send(http::Method::HEAD, &format!("{url}/x"), &[], "").await;
    assert_eq!((head.code, head.bytes.len()), (200, 0));
}

#[tokio::test]
async fn what_nests_too_deep_is_refused_however_it_comes_and_the_object_stays_readable() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a/pods";
    admin.post(url, crate::fixture::pod("p")).await.created();
    let deep = |levels: usize| {
        let mut value = json!("bottom");
        for _ in 0..levels {
            value = json!({"a": value});
        }
        value
    };
    for (how, patch) in [
        ("merge", json!({"spec": {"overhead": deep(300)}})),
        ("strategic-merge", json!({"spec": {"overhead": deep(300)}})),
        ("json", json!([{"op": "add", "path": "/spec/overhead", "value": deep(300)}])),
    ] {
        let answer = admin.patch(&format!("{url}/p"), how, patch).await;
        assert!(matches!(answer.code, 400 | 422), "{how}: {answer:?}");
        admin.get(&format!("{url}/p")).await.ok();
    }
    let mut pod = crate::fixture::pod("q");
    pod["spec"]["overhead"] = deep(300);
    assert_eq!(admin.post(url, pod).await.code, 400);
    admin.get(url).await.ok();
    admin.delete(&format!("{url}/p?gracePeriodSeconds=0")).await.ok();
}

#[tokio::test]
async fn what_names_no_class_is_given_the_newest_default() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let claim = |name: &str, class: Value| {
        let mut spec =
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        if !class.is_null() {
            spec["storageClassName"] = class;
        }
        json!({"metadata": {"name": name}, "spec": spec})
    };
    let claims = "/api/v1/namespaces/a/persistentvolumeclaims";
    let made = async |name: &str, class: Value| {
        admin.post(claims, claim(name, class)).await.created()["spec"].clone()
    };
    assert!(made("none", Value::Null).await["storageClassName"].is_null());
    let mark = |mark: &str| json!({format!("{mark}.kubernetes.io/is-default-class"): "true"});
    for (name, annotations) in [("b", mark("storageclass")), ("a", mark("storageclass")), ("0", json!({}))] {
        let class =
            json!({"metadata": {"name": name, "annotations": annotations}, "provisioner": "example.com/p"});
        admin.post("/apis/storage.k8s.io/v1/storageclasses", class).await.created();
    }
    // Both are of the same second, or "a" is newer. What is the newest of all is no default.
    assert_eq!(made("unsaid", Value::Null).await["storageClassName"], "a");
    assert_eq!(made("said", json!("0")).await["storageClassName"], "0");
    assert_eq!(made("empty", json!("")).await["storageClassName"], "");
    let class = json!({"metadata": {"name": "i", "annotations": mark("ingressclass")}, "spec": {"controller": "example.com/c"}});
    admin.post("/apis/networking.k8s.io/v1/ingressclasses", class).await.created();
    let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
    let ingress = |name: &str, annotations: Value| json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"defaultBackend": backend}});
    let url = "/apis/networking.k8s.io/v1/namespaces/a/ingresses";
    assert_eq!(admin.post(url, ingress("new", json!({}))).await.created()["spec"]["ingressClassName"], "i");
    let old = admin.post(url, ingress("old", json!({"kubernetes.io/ingress.class": "x"}))).await.created();
    assert!(old["spec"]["ingressClassName"].is_null());
}

#[tokio::test]
async fn a_taint_of_devices_that_has_another_effect_is_there_since_now() {
    const URL: &str = "/apis/resource.k8s.io/v1/devicetaintrules";
    const BEFORE: &str = "2026-01-01T00:00:00Z";
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let taint = json!({"key": "example.com/k", "effect": "NoSchedule", "timeAdded": BEFORE});
    admin.post(URL, json!({"metadata": {"name": "t"}, "spec": {"taint": taint}})).await.created();
    let change = async |taint: Value| -> Value {
        let patch = json!({"spec": {"taint": taint}});
        admin.patch(&format!("{URL}/t"), "merge", patch).await.ok()["spec"]["taint"]["timeAdded"].clone()
    };
    assert_eq!(change(json!({"value": "v"})).await, BEFORE);
    let added = change(json!({"effect": "NoExecute"})).await;
    assert!(added.as_str().is_some_and(|at| at > BEFORE), "{added}");
    assert_eq!(change(json!({"effect": "NoSchedule", "timeAdded": BEFORE})).await, BEFORE);
}

#[tokio::test]
async fn of_several_default_classes_a_list_marks_the_one_that_counts() {
    const URL: &str = "/apis/storage.k8s.io/v1/storageclasses";
    const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let names = async |url: &str| -> Vec<Value> {
        let table = admin.get_as(url, TABLE).await.ok();
        table["rows"].as_array().expect("rows").iter().map(|row| row["cells"][0].clone()).collect()
    };
    let mark = |mark: &str| json!({format!("{mark}.kubernetes.io/is-default-class"): "true"});
    for (name, annotations) in
        [("b", mark("storageclass")), ("a", mark("storageclass.beta")), ("0", json!({}))]
    {
        let class =
            json!({"metadata": {"name": name, "annotations": annotations}, "provisioner": "example.com/p"});
        admin.post(URL, class).await.created();
    }
    // Both are of the same second, or "a" is newer.
    assert_eq!(names(URL).await, ["0", "a (default)", "b"]);
    let selected = format!("{URL}?fieldSelector=metadata.name%3Db");
    assert_eq!(names(&selected).await, ["b (default)"], "of those that are listed");
    assert_eq!(names(&format!("{URL}/a")).await, ["a"], "one that is asked for by name is not told");
}

#[tokio::test]
async fn who_reads_it_himself_gets_it_indented() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a";
    let as_agent = async |url: &str, agent: &str| {
        let answer = admin.send(http::Method::GET, url, &[("user-agent", agent)], String::new()).await;
        answer.ok();
        answer.bytes
    };
    assert!(as_agent(url, "curl/8.1").await.starts_with(b"{\n  \"kind\": \"Namespace\",\n"));
    assert!(as_agent(url, "kubectl/v1.37").await.starts_with(b"{\"kind\":\"Namespace\","));
    assert!(as_agent(&format!("{url}?pretty=false"), "curl/8.1").await.starts_with(b"{\"kind\""));
    assert!(as_agent(&format!("{url}?pretty=true"), "kubectl/v1.37").await.starts_with(b"{\n"));
    let all = as_agent("/api/v1/namespaces", "Mozilla/5.0 (X11)").await;
    assert!(all.starts_with(b"{\n  \"kind\": \"NamespaceList\",\n"), "{}", String::from_utf8_lossy(&all));
}

#[tokio::test]
async fn an_autoscaler_names_the_group_of_what_it_scales_unless_that_can_only_be_one() {
    const LIST: &str = "/apis/autoscaling/v2/namespaces/a/horizontalpodautoscalers";
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let scaling = |name: &str, kind: &str, version: &str| {
        json!({"metadata": {"name": name}, "spec": {
            "maxReplicas": 2, "scaleTargetRef": {"kind": kind, "name": "x", "apiVersion": version},
        }})
    };
    admin.post(LIST, scaling("one", "ReplicationController", "v1")).await.created();
    admin.post(LIST, scaling("two", "Deployment", "apps/v1")).await.created();
    for (kind, version, why) in [
        ("Deployment", "v1", "apiVersion must specify API group"),
        ("Deployment", "", "apiVersion must specify API group"),
        ("ReplicationController", "a/b/c", "unexpected GroupVersion string: a/b/c"),
    ] {
        let told = admin.post(LIST, scaling("three", kind, version)).await.refused(422, "Invalid");
        assert!(told.ends_with(why), "{told}");
    }
}

#[tokio::test]
async fn what_is_no_document_is_shown_as_it_begins() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let post = async |body: &str| {
        let headers = [("content-type", "application/json")];
        let answer = admin.send(http::Method::POST, "/api/v1/namespaces", &headers, body.to_owned()).await;
        answer.refused(400, "BadRequest")
    };
    let told = post("apiVersion: v1\nkind: Pod\nmetadata: {}\n").await;
    let begins = "the object provided is unrecognized (must be of type Namespace): couldn't get version/kind; json parse error: ";
    assert!(told.starts_with(begins), "{told}");
    assert!(told.ends_with("(61706956657273696f6e3a2076310a6b696e643a20506f640a6d65746164 ...)"), "{told}");
    assert!(post("{\"kind\": ").await.ends_with("({\"kind\": )"));
}
