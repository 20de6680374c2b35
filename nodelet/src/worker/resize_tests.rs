use serde_json::{Value, json};

use crate::testing::{Node, condition, pod};

fn sized(name: &str, memory: &str, policy: &str) -> Value {
    let resources = json!({ "requests": { "memory": memory }, "limits": { "memory": memory } });
    pod(
        name,
        json!({ "containers": [{ "name": "app", "image": "app:1", "resources": resources,
            "resizePolicy": [{ "resourceName": "memory", "restartPolicy": policy }] }] }),
    )
}

/// The pod as it stands, asking for something else.
async fn ask(node: &Node, name: &str, memory: &str) {
    let mut pod = node.api.get(&format!("/api/v1/namespaces/default/pods/{name}")).unwrap();
    for side in ["requests", "limits"] {
        pod["spec"]["containers"][0]["resources"][side]["memory"] = memory.into();
    }
    pod["metadata"]["generation"] = (pod["metadata"]["generation"].as_i64().unwrap() + 1).into();
    node.api.put_pod(pod);
}

fn in_force(status: &Value) -> &Value {
    &status["containerStatuses"][0]["resources"]["limits"]["memory"]
}

fn is_done(status: &Value, memory: &str) -> bool {
    in_force(status) == memory && condition(status, "PodResizeInProgress").is_null()
}

#[tokio::test]
async fn a_container_is_given_more_while_it_runs_and_its_pod_before_it() {
    let node = Node::started().await;
    node.api.put_pod(sized("web", "64Mi", "NotRequired"));
    node.phase("web", "Running").await;
    ask(&node, "web", "128Mi").await;
    let status = node.pod_status("web", |s| is_done(s, "128Mi")).await;
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(status["containerStatuses"][0]["allocatedResources"]["memory"], "128Mi");
    assert_eq!(status["observedGeneration"], 2);
    let resizes: Vec<_> = node.cri.log().into_iter().filter(|line| line.starts_with("resize")).collect();
    assert_eq!(resizes, ["resize sandbox to 134217728 bytes", "resize container-2 to 134217728 bytes"]);
    assert_eq!(node.events.messages("ResizeStarted").len(), 1);
    assert!(node.events.messages("ResizeCompleted")[0].ends_with(r#""generation":2}"#));
}

#[tokio::test]
async fn a_limit_below_what_is_in_use_is_not_set_before_it_is() {
    let node = Node::started().await;
    node.api.put_pod(sized("web", "64Mi", "NotRequired"));
    node.phase("web", "Running").await;
    node.cri.use_memory(50 << 20);
    ask(&node, "web", "32Mi").await;
    let refused = |s: &Value| condition(s, "PodResizeInProgress")["reason"] == "Error";
    let status = node.pod_status("web", refused).await;
    assert_eq!(
        condition(&status, "PodResizeInProgress")["message"],
        "cannot decrease memory limits: [attempting to set pod memory limit (33554432) below current usage \
         (52428800), attempting to set container \"app\" memory limit (33554432) below current usage (52428800)]"
    );
    assert_eq!(in_force(&status), "64Mi");
    assert!(!node.cri.log().iter().any(|line| line.starts_with("resize")));
    assert_eq!(node.events.messages("ResizeError").len(), 1);
    // Whoever asks for the old again is done at once.
    ask(&node, "web", "64Mi").await;
    node.pod_status("web", |s| is_done(s, "64Mi")).await;
}

#[tokio::test]
async fn a_container_whose_policy_says_so_is_restarted() {
    let node = Node::started().await;
    node.api.put_pod(sized("web", "64Mi", "RestartContainer"));
    node.phase("web", "Running").await;
    ask(&node, "web", "128Mi").await;
    let restarted = |s: &Value| s["containerStatuses"][0]["restartCount"] == 1 && is_done(s, "128Mi");
    node.pod_status("web", restarted).await;
    assert_eq!(node.events.messages("Killing"), ["Container app resize requires restart"]);
    let newest = node.cri.ids("app").pop().unwrap();
    let config = node.cri.config(&newest);
    assert_eq!(config.linux.unwrap().resources.unwrap().memory_limit_in_bytes, 128 << 20);
}

#[tokio::test]
async fn what_does_not_fit_waits_until_another_pod_has_gone() {
    let node = Node::started().await;
    let all = node.api.get("/api/v1/nodes/n1").unwrap()["status"]["allocatable"]["memory"].clone();
    let kib: u64 = all.as_str().unwrap().strip_suffix("Ki").unwrap().parse().unwrap();
    let (large, small) = (format!("{}Ki", kib * 3 / 4), format!("{}Ki", kib / 8));
    node.api.put_pod(sized("large", &large, "NotRequired"));
    node.api.put_pod(sized("small", &small, "NotRequired"));
    node.phase("large", "Running").await;
    node.phase("small", "Running").await;
    let half = format!("{}Ki", kib / 2);
    ask(&node, "small", &half).await;
    let deferred = |s: &Value| condition(s, "PodResizePending")["reason"] == "Deferred";
    let status = node.pod_status("small", deferred).await;
    let message = condition(&status, "PodResizePending")["message"].as_str().unwrap();
    assert!(message.starts_with("Node didn't have enough resource: memory, requested:"), "{message}");
    assert_eq!(in_force(&status), small.as_str());
    assert_eq!(node.events.messages("ResizeDeferred").len(), 1);
    node.api.delete_pod("large", 0);
    let status = node.pod_status("small", |s| is_done(s, &half)).await;
    assert!(condition(&status, "PodResizePending").is_null());
}

#[tokio::test]
async fn a_restarted_nodelet_goes_on_with_what_was_in_force() {
    let mut node = Node::started().await;
    node.api.put_pod(sized("web", "64Mi", "NotRequired"));
    node.pod_status("web", |s| is_done(s, "64Mi")).await;
    node.stop().await;
    ask(&node, "web", "128Mi").await;
    node.start().await;
    node.pod_status("web", |s| is_done(s, "128Mi")).await;
    assert!(node.cri.log().contains(&"resize container-2 to 134217728 bytes".to_owned()));
}
