//! Pods: admission, binding, graceful deletion, eviction; Services and their addresses; Events.

use serde_json::{Value, json};

use crate::fixture::{Cluster, pod};

const PODS: &str = "/api/v1/namespaces/a/pods";

#[tokio::test]
async fn a_pod_is_completed_as_upstream_does() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let created = admin.post(PODS, pod("p")).await.created();
    let spec = &created["spec"];
    assert_eq!(
        (&spec["serviceAccountName"], &spec["serviceAccount"]),
        (&json!("default"), &json!("default"))
    );
    assert_eq!((&spec["priority"], &spec["preemptionPolicy"]), (&json!(0), &json!("PreemptLowerPriority")));
    let tolerations = spec["tolerations"].as_array().expect("tolerations");
    assert_eq!(tolerations.len(), 2);
    assert_eq!(tolerations[0]["tolerationSeconds"], 300);
    let volume = &spec["volumes"][0];
    assert!(volume["name"].as_str().is_some_and(|name| name.starts_with("kube-api-access-")));
    assert_eq!(volume["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"], 3607);
    let mount = &spec["containers"][0]["volumeMounts"][0];
    assert_eq!(mount["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!(created["status"]["phase"], "Pending");
    assert_eq!(created["status"]["qosClass"], "BestEffort");

    let mut other = pod("q");
    other["spec"]["serviceAccountName"] = "missing".into();
    let message = admin.post(PODS, other).await.refused(403, "Forbidden");
    assert_eq!(
        message,
        "pods \"q\" is forbidden: error looking up service account a/missing: serviceaccount \"missing\" not found"
    );
    let mut critical = pod("r");
    critical["spec"]["priorityClassName"] = "system-node-critical".into();
    assert_eq!(admin.post(PODS, critical).await.created()["spec"]["priority"], 2_000_001_000);
    let mut unknown = pod("s");
    unknown["spec"]["priorityClassName"] = "none".into();
    let message = admin.post(PODS, unknown).await.refused(403, "Forbidden");
    assert_eq!(message, "pods \"s\" is forbidden: no PriorityClass with name none was found");
}

#[tokio::test]
async fn a_pods_runtime_class_must_exist_and_brings_its_overhead_and_nodes() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let mut wasm = pod("p");
    wasm["spec"]["runtimeClassName"] = "wasm".into();
    let message = admin.post(PODS, wasm.clone()).await.refused(403, "Forbidden");
    assert_eq!(message, "pods \"p\" is forbidden: pod rejected: RuntimeClass \"wasm\" not found");
    let class = json!({
        "metadata": {"name": "wasm"},
        "handler": "wasmtime",
        "overhead": {"podFixed": {"memory": "1Mi"}},
        "scheduling": {"nodeSelector": {"wasm": "yes"}, "tolerations": [{"key": "wasm", "operator": "Exists"}]},
    });
    admin.post("/apis/node.k8s.io/v1/runtimeclasses", class).await.created();
    let mut elsewhere = wasm.clone();
    elsewhere["spec"]["nodeSelector"] = json!({"wasm": "no"});
    admin.post(PODS, elsewhere).await.refused(403, "Forbidden");
    let mut heavy = wasm.clone();
    heavy["spec"]["overhead"] = json!({"memory": "2Mi"});
    let message = admin.post(PODS, heavy).await.refused(403, "Forbidden");
    assert!(message.ends_with("Pod's Overhead doesn't match RuntimeClass's defined Overhead"), "{message}");
    let created = admin.post(PODS, wasm).await.created();
    let spec = &created["spec"];
    assert_eq!(spec["overhead"], json!({"memory": "1Mi"}));
    assert_eq!(spec["nodeSelector"], json!({"wasm": "yes"}));
    assert!(spec["tolerations"].as_array().expect("tolerations").iter().any(|t| t["key"] == "wasm"));
    let mut plain = pod("q");
    plain["spec"]["overhead"] = json!({"memory": "1Mi"});
    admin.post(PODS, plain).await.refused(403, "Forbidden");
}

#[tokio::test]
async fn a_pod_is_bound_once_and_deleted_gracefully() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    admin.post(PODS, pod("p")).await.created();
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "one"}});
    admin.post(&format!("{PODS}/p/binding"), binding.clone()).await.created();
    let bound = admin.get(&format!("{PODS}/p")).await.ok();
    assert_eq!(bound["spec"]["nodeName"], "one");
    let conditions = bound["status"]["conditions"].as_array().expect("conditions");
    assert!(conditions.iter().any(|c| c["type"] == "PodScheduled" && c["status"] == "True"));
    let message = admin.post(&format!("{PODS}/p/binding"), binding).await.refused(409, "Conflict");
    assert!(message.ends_with("pod p is already assigned to node \"one\""), "{message}");

    let going = admin.delete(&format!("{PODS}/p")).await.ok();
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(admin.delete(&format!("{PODS}/p")).await.ok(), going, "a second deletion changes nothing");
    let gone = admin.delete(&format!("{PODS}/p?gracePeriodSeconds=0")).await.ok();
    assert_eq!(gone["kind"], "Pod");
    admin.get(&format!("{PODS}/p")).await.refused(404, "NotFound");

    admin.post(PODS, pod("q")).await.created();
    admin.delete(&format!("{PODS}/q")).await.ok();
    admin.get(&format!("{PODS}/q")).await.refused(404, "NotFound");
}

#[tokio::test]
async fn a_pod_on_a_node_says_where_it_is_and_waits_for_no_other() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let zone = json!({"topology.kubernetes.io/zone": "z", "kubernetes.io/hostname": "one"});
    admin.post("/api/v1/nodes", json!({"metadata": {"name": "one", "labels": zone}})).await.created();
    admin.post(PODS, pod("p")).await.created();
    let mut waiting = admin.get(&format!("{PODS}/p")).await.ok();
    waiting["status"]["nominatedNodeName"] = "two".into();
    admin.put(&format!("{PODS}/p/status"), waiting).await.ok();
    let binding = json!({"metadata": {"name": "p", "labels": {"by": "binding"}}, "target": {"kind": "Node", "name": "one"}});
    admin.post(&format!("{PODS}/p/binding"), binding).await.created();
    let bound = admin.get(&format!("{PODS}/p")).await.ok();
    assert_eq!(bound["metadata"]["labels"], json!({"by": "binding", "topology.kubernetes.io/zone": "z"}));
    assert_eq!(bound["status"]["nominatedNodeName"], Value::Null);

    let mut placed = pod("q");
    placed["spec"]["nodeName"] = "one".into();
    let placed = admin.post(PODS, placed).await.created();
    assert_eq!(placed["metadata"]["labels"], json!({"topology.kubernetes.io/zone": "z"}));
}

#[tokio::test]
async fn an_eviction_asks_the_budget() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let mut labelled = pod("p");
    labelled["metadata"]["labels"] = json!({"app": "web"});
    admin.post(PODS, labelled).await.created();
    let running =
        json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    admin.patch(&format!("{PODS}/p/status"), "merge", running).await.ok();
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    let url = "/apis/policy/v1/namespaces/a/poddisruptionbudgets";
    admin.post(url, budget).await.created();
    let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 0, "desiredHealthy": 1, "currentHealthy": 1, "expectedPods": 1}});
    admin.patch(&format!("{url}/b/status"), "merge", status).await.ok();
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let message =
        admin.post(&format!("{PODS}/p/eviction"), eviction.clone()).await.refused(429, "TooManyRequests");
    assert_eq!(message, "Cannot evict pod as it would violate the pod's disruption budget.");
    admin.patch(&format!("{url}/b/status"), "merge", json!({"status": {"disruptionsAllowed": 1}})).await.ok();
    let hold = json!({"metadata": {"finalizers": ["example.org/hold"]}});
    admin.patch(&format!("{PODS}/p"), "merge", hold).await.ok();
    let mut other = eviction.clone();
    other["deleteOptions"] = json!({"preconditions": {"uid": "another"}});
    admin.post(&format!("{PODS}/p/eviction?dryRun=All"), eviction.clone()).await.created();
    assert!(admin.get(&format!("{PODS}/p")).await.ok()["metadata"]["deletionTimestamp"].is_null());
    admin.post(&format!("{PODS}/p/eviction"), eviction).await.created();
    let charged = admin.get(&format!("{url}/b")).await.ok();
    assert_eq!(charged["status"]["disruptionsAllowed"], 0);
    assert!(charged["status"]["disruptedPods"]["p"].is_string(), "{charged}");
    let evicted = admin.get(&format!("{PODS}/p")).await.ok();
    let conditions = evicted["status"]["conditions"].as_array().expect("conditions");
    let why = conditions.iter().find(|c| c["type"] == "DisruptionTarget").expect("why it goes");
    assert_eq!(why["reason"], "EvictionByEvictionAPI");
    assert!(evicted["metadata"]["deletionTimestamp"].is_string());
    admin.post(&format!("{PODS}/p/eviction"), other).await.refused(409, "Conflict");
}

#[tokio::test]
async fn a_service_gets_an_address_and_gives_it_back() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a/services";
    let service = |ip: Option<&str>| {
        let mut service =
            json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}});
        if let Some(ip) = ip {
            service["spec"]["clusterIP"] = ip.into();
        }
        service
    };
    let created = admin.post(url, service(None)).await.created();
    let ip = created["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    assert!(created["spec"]["ports"][0]["nodePort"].as_u64().is_some_and(|port| port >= 30000));
    let without =
        json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}});
    let updated = admin.put(&format!("{url}/s"), without).await.ok();
    assert_eq!(updated["spec"], created["spec"], "an update that leaves out what was allocated keeps it");
    let mut other = service(Some(&ip));
    other["metadata"]["name"] = "t".into();
    let message = admin.post(url, other.clone()).await.refused(422, "Invalid");
    assert!(message.contains("provided IP is already allocated"), "{message}");
    admin.delete(&format!("{url}/s")).await.ok();
    admin.post(url, other).await.created();
    let mut external = service(None);
    external["spec"]["externalIPs"] = json!(["203.0.113.7"]);
    admin.post(url, external).await.refused(403, "Forbidden");
}

#[tokio::test]
async fn a_pod_is_replaced_by_its_own_manifest_and_may_get_other_tolerations() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a/pods";
    let mut manifest = pod("p");
    manifest["spec"]["serviceAccountName"] = "default".into();
    manifest["spec"]["automountServiceAccountToken"] = false.into();
    admin.post(url, manifest.clone()).await.created();
    manifest["metadata"]["labels"] = json!({"a": "c"});
    let replaced = admin.put(&format!("{url}/p"), manifest).await.ok();
    assert_eq!(replaced["spec"]["priority"], 0);
    assert_eq!(replaced["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
    assert_eq!(replaced["metadata"]["generation"], 1, "nothing of the spec has changed");
    let mut other = replaced.clone();
    other["spec"]["tolerations"] = json!([{"key": "x", "operator": "Exists"}]);
    let other = admin.put(&format!("{url}/p"), other).await.ok();
    assert_eq!(other["spec"]["tolerations"].as_array().map(Vec::len), Some(3));
    assert_eq!(other["metadata"]["generation"], 2);
}

#[tokio::test]
async fn a_status_that_gives_a_pods_address_in_one_field_gives_it_in_both() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    admin.post(PODS, pod("p")).await.created();
    let (url, status) = (format!("{PODS}/p"), format!("{PODS}/p/status"));
    let ips = |pod: &Value| (pod["status"]["podIP"].clone(), pod["status"]["podIPs"].clone());
    let with = |ip: &str| (json!(ip), json!([{"ip": ip}]));
    let patch = json!({"status": {"podIP": "10.42.0.7", "hostIP": "192.0.2.1"}});
    let patched = admin.patch(&status, "merge", patch).await.ok();
    assert_eq!(ips(&patched), with("10.42.0.7"));
    assert!(patched["status"]["hostIPs"].is_null(), "the addresses of its node are written as they are");
    // Where both are there and differ, the old field leads.
    let patched =
        admin.patch(&status, "strategic-merge", json!({"status": {"podIP": "10.42.0.8"}})).await.ok();
    assert_eq!(ips(&patched), with("10.42.0.8"));
    let both = json!({"status": {"podIP": null, "podIPs": [{"ip": "10.42.0.9"}, {"ip": "fd00::9"}]}});
    let patched = admin.patch(&status, "merge", both).await.ok();
    assert_eq!(ips(&patched), (json!("10.42.0.9"), json!([{"ip": "10.42.0.9"}, {"ip": "fd00::9"}])));
    assert_eq!(ips(&admin.get(&url).await.ok()), ips(&patched));
    let wrong = json!({"status": {"podIP": null, "podIPs": [{"ip": "nowhere"}]}});
    admin.patch(&status, "merge", wrong).await.refused(422, "Invalid");
}

#[tokio::test]
async fn a_status_that_is_taken_away_leaves_what_the_server_keeps_and_no_phase() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    admin.post(PODS, pod("p")).await.created();
    let status = format!("{PODS}/p/status");
    let condition = |type_: &str| json!({"type": type_, "status": "True", "observedGeneration": 3});
    let patch = json!({"status": {
        "phase": "Running", "observedGeneration": 3, "conditions": [condition("Ready"), condition("Initialized")],
        "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
            "volumeMounts": [{"name": "v", "mountPath": "/v", "volumeStatus": {}}]}],
    }});
    let patched = admin.patch(&status, "merge", patch).await.ok();
    assert!(
        patched["status"]["containerStatuses"][0]["volumeMounts"][0]["volumeStatus"].is_null(),
        "{patched}"
    );
    // Whoever does not know the generation says nothing of it, and takes nothing away.
    let mut old = patched.clone();
    old["status"]["conditions"] =
        json!([{"type": "Initialized", "status": "True"}, {"type": "New", "status": "True"}]);
    old["status"]["observedGeneration"] = Value::Null;
    let written = admin.put(&status, old).await.ok();
    assert_eq!(written["status"]["observedGeneration"], 3);
    assert_eq!(written["status"]["conditions"][0]["observedGeneration"], 3);
    assert!(written["status"]["conditions"][1]["observedGeneration"].is_null());
    let mut bare = written.clone();
    bare.as_object_mut().expect("an object").remove("status");
    let written = admin.put(&status, bare).await.ok();
    assert_eq!(written["status"], json!({"qosClass": "BestEffort", "observedGeneration": 3}));
}

#[tokio::test]
async fn the_status_of_a_daemon_set_does_not_lose_what_its_template_counts() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let sets = "/apis/apps/v1/namespaces/a/daemonsets";
    let template = json!({"metadata": {"labels": {"app": "d"}}, "spec": pod("p")["spec"]});
    let set = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "d"}}, "template": template}});
    let mut created = admin.post(sets, set).await.created();
    created["metadata"]["annotations"] = json!({"k": "v"});
    let written = admin.put(&format!("{sets}/d/status"), created).await.ok();
    let wanted = json!({"k": "v", "deprecated.daemonset.template.generation": "1"});
    assert_eq!(written["metadata"]["annotations"], wanted);
}
