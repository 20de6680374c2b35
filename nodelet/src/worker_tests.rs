//! Stories of pods on a node, against a runtime and an API server in memory.

use serde_json::json;

use crate::testing::{Node, condition, eventually, pod};

#[tokio::test]
async fn a_bound_pod_runs_and_tells_so() {
    let node = Node::started().await;
    node.api.put_pod(pod("web", json!({})));
    let status = node.phase("web", "Running").await;
    assert_eq!(status["podIP"], "10.1.0.1");
    assert_eq!(condition(&status, "Ready")["status"], "True");
    assert_eq!(status["containerStatuses"][0]["containerID"], "runc://container-2");
    assert_eq!(
        node.events.messages("Pulled"),
        ["Container image \"app:1\" already present on machine and can be accessed by the pod"]
    );
    assert_eq!(node.events.messages("Created"), ["Container created"]);
    assert_eq!(node.events.messages("Started"), ["Container started"]);
    let config = node.cri.config("container-2");
    assert!(config.mounts.iter().any(|m| m.container_path == "/etc/hosts"));
    assert_eq!(config.labels["io.kubernetes.pod.uid"], "uid-web");
}

#[tokio::test]
async fn the_node_is_ready_at_once() {
    let node = Node::started().await;
    let status = node.api.get("/api/v1/nodes/n1").unwrap();
    let conditions = status["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(
        (&ready["status"], &ready["message"]),
        (&json!("True"), &json!("kubelet is posting ready status"))
    );
    assert_eq!(status["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
    assert_eq!(status["status"]["capacity"]["pods"], "110");
    assert_eq!(node.events.messages("NodeReady"), ["Node n1 status is now: NodeReady"]);
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
    eventually("the lease", async || node.api.get(lease)).await;
}

#[tokio::test]
async fn a_deleted_pod_leaves_nothing_behind() {
    let node = Node::started().await;
    let volumes = json!({ "volumes": [{ "name": "data", "emptyDir": { "medium": "Memory" } }],
        "containers": [{ "name": "app", "image": "app:1", "volumeMounts": [{ "name": "data", "mountPath": "/data" }] }] });
    node.api.put_pod(pod("web", volumes));
    node.phase("web", "Running").await;
    assert!(node.pod_dir("uid-web").exists());
    node.api.delete_pod("web", 30);
    node.pod_gone("web").await;
    assert!(node.cri.is_empty());
    assert!(!node.pod_dir("uid-web").exists());
    assert_eq!(node.events.messages("Killing"), ["Stopping container app"]);
    let log = node.cri.log();
    assert_eq!(log.last().unwrap(), "stop app");
}

#[tokio::test]
async fn a_pod_forced_out_of_the_api_is_ended_too() {
    let node = Node::started().await;
    node.api.put_pod(pod("web", json!({})));
    node.phase("web", "Running").await;
    node.api.remove("/api/v1/namespaces/default/pods/web");
    eventually("an empty node", async || node.cri.is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_container_that_crashes_is_restarted_and_then_backs_off() {
    let node = Node::started().await;
    node.api.put_pod(pod("web", json!({})));
    node.phase("web", "Running").await;
    node.cri.exit("app", 1);
    node.pod_status("web", |s| s["containerStatuses"][0]["restartCount"] == 1).await;
    node.cri.exit("app", 1);
    let reason = |s: &serde_json::Value| s["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    let status = node.pod_status("web", |s| reason(s) == "CrashLoopBackOff").await;
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=app pod=web_default(uid-web)"
    );
    assert_eq!(status["phase"], "Running");
    assert_eq!(
        node.events.messages("BackOff"),
        ["Back-off restarting failed container app in pod web_default(uid-web)"]
    );
    // Of the dead ones, the last is kept for its log.
    assert_eq!(node.cri.ids("app").len(), 1);
}

#[tokio::test]
async fn a_pod_that_finishes_succeeds_and_gives_its_sandbox_back() {
    let node = Node::started().await;
    node.api.put_pod(pod("job", json!({ "restartPolicy": "Never" })));
    node.phase("job", "Running").await;
    node.cri.exit("app", 0);
    let status = node.phase("job", "Succeeded").await;
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    assert_eq!(status["podIP"], "10.1.0.1");
    assert_eq!(node.cri.ids("app").len(), 1);
    node.api.delete_pod("job", 30);
    node.pod_gone("job").await;
    assert!(node.cri.is_empty());
}

#[tokio::test]
async fn a_restarted_nodelet_takes_over_what_runs() {
    let mut node = Node::started().await;
    node.api.put_pod(pod("web", json!({})));
    node.api.put_pod(pod("doomed", json!({})));
    node.phase("web", "Running").await;
    node.phase("doomed", "Running").await;
    let before = node.cri.ids("app");
    let log = node.cri.log();
    node.stop().await;
    assert!(before.iter().all(|id| node.cri.is_running(id)));

    node.api.delete_pod("doomed", 30);
    node.cri.plant("orphan").await;
    let logs = ["default_gone_uid-gone", "default_web_uid-web", "no-pod", "a_b"];
    let logs = logs.map(|name| node.config.log_root.join(name));
    logs.iter().for_each(|path| std::fs::create_dir_all(path.join("app")).unwrap());
    node.start().await;
    node.pod_gone("doomed").await;
    eventually("the orphan's end", async || {
        (node.cri.ids("app").len() == 1 && node.cri.log().len() == log.len() + 2).then_some(())
    })
    .await;
    let status = node.phase("web", "Running").await;
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    assert!(before.contains(&node.cri.ids("app")[0]));
    assert!(!logs[0].exists(), "the logs of a pod that nobody knows");
    assert!(logs[1..].iter().all(|path| path.exists()), "those of others, and what is no pod's");
}

#[tokio::test]
async fn a_lost_sandbox_is_made_again() {
    let node = Node::started().await;
    node.api.put_pod(pod("web", json!({})));
    node.phase("web", "Running").await;
    node.cri.lose_sandbox();
    node.pod_status("web", |s| {
        s["podIP"] == "10.1.0.3" && s["containerStatuses"][0]["state"]["running"].is_object()
    })
    .await;
    assert_eq!(
        node.events.messages("SandboxChanged"),
        ["Pod sandbox changed, it will be killed and re-created."]
    );
}

#[tokio::test]
async fn after_a_loss_of_everything_the_pod_runs_again_and_the_dead_are_neither_stopped_aloud_nor_kept() {
    let node = Node::started().await;
    let hook = json!({ "preStop": { "exec": { "command": ["true"] } } });
    let spec = json!({ "containers": [{ "name": "app", "image": "app:1", "lifecycle": hook }] });
    node.api.put_pod(pod("web", spec));
    node.phase("web", "Running").await;
    for n_restarts in 1..=3 {
        node.cri.lose_everything();
        let status = node
            .pod_status("web", |s| {
                let container = &s["containerStatuses"][0];
                container["restartCount"] == n_restarts && container["state"]["running"].is_object()
            })
            .await;
        let last = &status["containerStatuses"][0]["lastState"]["terminated"];
        assert_eq!((&last["reason"], &last["exitCode"]), (&json!("ContainerStatusUnknown"), &json!(137)));
        eventually("an end of the dead", async || (node.cri.ids("app").len() == 2).then_some(())).await;
        eventually("an end of their sandboxes", async || (node.cri.n_sandboxes() == 2).then_some(())).await;
    }
    assert_eq!(node.events.messages("Killing"), [""; 0]);
    assert_eq!(node.events.messages("FailedPreStopHook"), [""; 0]);
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_says_so() {
    let node = Node::started().await;
    node.cri.break_image("gone:1", "manifest unknown");
    node.api.put_pod(pod("web", json!({ "containers": [{ "name": "app", "image": "gone:1" }] })));
    let waiting = |s: &serde_json::Value| s["containerStatuses"][0]["state"]["waiting"].clone();
    let status = node.pod_status("web", |s| waiting(s)["reason"] == "ErrImagePull").await;
    assert_eq!(condition(&status, "PodReadyToStartContainers")["status"], "True");
    assert_eq!(waiting(&status)["message"], "manifest unknown");
    assert_eq!(status["phase"], "Pending");
    assert_eq!(node.events.messages("Pulling"), ["Pulling image \"gone:1\""]);
    assert_eq!(
        node.events.messages("Failed"),
        ["Failed to pull image \"gone:1\": manifest unknown", "Error: ErrImagePull"]
    );
    node.api.delete_pod("web", 30);
    node.pod_gone("web").await;
}

#[tokio::test]
async fn an_image_that_must_not_be_pulled_or_has_no_name_is_refused() {
    let node = Node::started().await;
    let never = json!({ "containers": [{ "name": "app", "image": "absent:1", "imagePullPolicy": "Never" }] });
    node.api.put_pod(pod("never", never));
    node.api.put_pod(pod("bad", json!({ "containers": [{ "name": "app", "image": "NO SUCH" }] })));
    let reason = |s: &serde_json::Value| s["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    node.pod_status("never", |s| reason(s) == "ErrImageNeverPull").await;
    node.pod_status("bad", |s| reason(s) == "InvalidImageName").await;
}

#[tokio::test]
async fn a_missing_secret_keeps_the_pod_waiting_until_it_comes() {
    let node = Node::started().await;
    let spec = json!({ "containers": [{ "name": "app", "image": "app:1",
        "env": [{ "name": "X", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } }] }] });
    node.api.put_pod(pod("web", spec));
    let waiting = |s: &serde_json::Value| s["containerStatuses"][0]["state"]["waiting"].clone();
    let status = node.pod_status("web", |s| waiting(s)["reason"] == "CreateContainerConfigError").await;
    assert_eq!(waiting(&status)["message"], "secret \"s\" not found");
    node.api.put(
        "/api/v1/namespaces/default/secrets/s",
        json!({ "metadata": { "name": "s", "namespace": "default" }, "data": { "k": "dg==" } }),
    );
    node.phase("web", "Running").await;
    let id = node.cri.ids("app").pop().unwrap();
    assert!(node.cri.config(&id).envs.iter().any(|e| e.key == "X" && e.value == "v"));
}

fn n_logged(node: &Node, what: &str) -> usize {
    node.cri.log().iter().filter(|line| *line == what).count()
}

/// Wakes all workers and waits until one has looked again, twenty times.
async fn twenty_passes(node: &Node) {
    for _ in 0..20 {
        let before = node.cri.n_passes();
        node.cri.wake_all();
        eventually("a pass", async || (node.cri.n_passes() > before).then_some(())).await;
    }
}

#[tokio::test]
async fn a_container_that_cannot_be_created_is_not_tried_again_when_its_failure_wakes_the_worker() {
    let node = Node::started().await;
    node.cri.fail_create("app", Some("exec: no such file"));
    node.api.put_pod(pod("web", json!({})));
    let waiting = |s: &serde_json::Value| s["containerStatuses"][0]["state"]["waiting"].clone();
    let status = node.pod_status("web", |s| waiting(s)["reason"] == "CreateContainerError").await;
    assert_eq!(waiting(&status)["message"], "exec: no such file");
    twenty_passes(&node).await;
    assert_eq!(n_logged(&node, "create app"), 1);
    assert_eq!(node.events.messages("Failed"), ["Error: exec: no such file"]);
    // Another definition is another matter.
    node.cri.fail_create("app", None);
    let path = "/api/v1/namespaces/default/pods/web";
    let mut changed = node.api.get(path).unwrap();
    changed["spec"]["containers"][0]["image"] = json!("app:2");
    node.api.put(path, changed);
    node.phase("web", "Running").await;
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_made_is_not_tried_again_for_what_its_failure_reports() {
    let node = Node::started().await;
    node.cri.fail_sandboxes("no addresses left");
    node.api.put_pod(pod("web", json!({})));
    eventually("a try", async || (n_logged(&node, "no sandbox") > 0).then_some(())).await;
    twenty_passes(&node).await;
    let n_tries = n_logged(&node, "no sandbox");
    assert!(n_tries < 5, "{n_tries} tries");
}

#[tokio::test]
async fn a_missing_secret_is_told_once_a_period_and_used_as_soon_as_it_comes() {
    let node = Node::started().await;
    let spec = json!({ "containers": [{ "name": "app", "image": "app:1",
        "env": [{ "name": "X", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } }] }] });
    node.api.put_pod(pod("web", spec));
    let reason = |s: &serde_json::Value| s["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    node.pod_status("web", |s| reason(s) == "CreateContainerConfigError").await;
    twenty_passes(&node).await;
    assert_eq!(node.events.messages("Failed"), ["Error: secret \"s\" not found"]);
    node.api.put(
        "/api/v1/namespaces/default/secrets/s",
        json!({ "metadata": { "name": "s", "namespace": "default" }, "data": { "k": "dg==" } }),
    );
    node.phase("web", "Running").await;
}

#[tokio::test]
async fn a_conflict_does_not_end_the_writing_of_a_pods_status() {
    let node = Node::started().await;
    node.api.conflict(3);
    node.api.put_pod(pod("web", json!({})));
    node.phase("web", "Running").await;
    node.api.conflict(1);
    node.cri.exit("app", 1);
    node.pod_status("web", |s| s["containerStatuses"][0]["restartCount"] == 1).await;
}

#[tokio::test]
async fn a_pod_whose_volume_outgrows_its_limit_is_evicted() {
    let node = Node::started().await;
    let spec = json!({
        "volumes": [{ "name": "data", "emptyDir": { "sizeLimit": "64Ki" } }],
        "containers": [{ "name": "app", "image": "app:1", "volumeMounts": [{ "name": "data", "mountPath": "/data" }] }],
    });
    // What an earlier nodelet of this pod would have found there.
    let data = node.pod_dir("uid-web").join("volumes/kubernetes.io~empty-dir/data");
    std::fs::create_dir_all(data.join("deep/er")).unwrap();
    std::fs::write(data.join("deep/er/file"), vec![1; 100_000]).unwrap();
    node.api.put_pod(pod("web", spec));
    let status = node.phase("web", "Failed").await;
    let message = "Usage of EmptyDir volume \"data\" exceeds the limit \"64Ki\". ";
    assert_eq!((&status["reason"], &status["message"]), (&json!("Evicted"), &json!(message)));
    assert_eq!(node.events.messages("Evicted"), [message]);
    eventually("the volume's end", async || (!data.exists()).then_some(())).await;
}

#[tokio::test]
async fn a_worker_that_panicked_is_made_anew_without_any_event_of_the_api() {
    let node = Node::started().await;
    node.cri.panic_once();
    node.api.put_pod(pod("web", json!({})));
    node.phase("web", "Running").await;
    assert_eq!(n_logged(&node, "sandbox"), 1, "the new worker found the sandbox of the old one");
    node.api.delete_pod("web", 30);
    node.pod_gone("web").await;
    assert!(node.cri.is_empty());
}

#[tokio::test]
async fn volumes_follow_their_config_map() {
    let node = Node::started().await;
    let map = |value: &str| json!({ "metadata": { "name": "m", "namespace": "default" }, "data": { "key": value } });
    let spec = json!({
        "volumes": [
            { "name": "conf", "configMap": { "name": "m" } },
            { "name": "api", "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } },
        ],
        "containers": [{ "name": "app", "image": "app:1", "volumeMounts": [
            { "name": "conf", "mountPath": "/conf" },
            { "name": "api", "mountPath": "/var/run/secrets" },
        ] }],
    });
    node.api.put_pod(pod("web", spec));
    eventually("a FailedMount", async || (!node.events.messages("FailedMount").is_empty()).then_some(()))
        .await;
    assert_eq!(
        node.events.messages("FailedMount")[0],
        "MountVolume.SetUp failed for volume \"conf\" : configmap \"m\" not found"
    );

    node.api.put("/api/v1/namespaces/default/configmaps/m", map("one"));
    node.phase("web", "Running").await;
    let volumes = node.pod_dir("uid-web").join("volumes");
    let file = volumes.join("kubernetes.io~configmap/conf/key");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "one");
    assert_eq!(
        std::fs::read_to_string(volumes.join("kubernetes.io~projected/api/token")).unwrap(),
        "the-token"
    );
    let config = node.cri.config(&node.cri.ids("app")[0]);
    assert!(config.mounts.iter().find(|m| m.container_path == "/conf").unwrap().readonly);

    node.api.put("/api/v1/namespaces/default/configmaps/m", map("two"));
    eventually("the new content", async || (std::fs::read_to_string(&file).ok()? == "two").then_some(()))
        .await;
    assert_eq!(node.cri.ids("app").len(), 1);
    node.api.delete_pod("web", 30);
    node.pod_gone("web").await;
    assert!(!node.pod_dir("uid-web").exists());
}

#[tokio::test]
async fn a_claim_is_mounted_once_it_is_bound_to_a_volume_that_is_bound_to_it() {
    let node = Node::started().await;
    let disk = tempfile::tempdir().unwrap();
    let claim = "/api/v1/namespaces/default/persistentvolumeclaims/c";
    let told = async |words: &str| {
        eventually(words, async || {
            node.events.messages("FailedMount").iter().any(|message| message.contains(words)).then_some(())
        })
        .await;
    };
    let spec = json!({
        "volumes": [{ "name": "disk", "persistentVolumeClaim": { "claimName": "c", "readOnly": true } }],
        "containers": [{ "name": "app", "image": "app:1", "volumeMounts": [{ "name": "disk", "mountPath": "/d" }] }],
    });
    node.api.put_pod(pod("web", spec));
    told("error processing PVC default/c: failed to fetch PVC from API server").await;
    let bound = |phase: &str| {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "c", "namespace": "default", "uid": "u" },
            "spec": { "volumeName": "v" }, "status": { "phase": phase },
        })
    };
    let volume = |uid: &str| {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "v" },
            "spec": { "local": { "path": disk.path() }, "claimRef": { "name": "c", "namespace": "default", "uid": uid } },
        })
    };
    node.api.put("/api/v1/persistentvolumes/v", volume("another"));
    node.api.put(claim, bound("Pending"));
    told("PVC is not bound").await;
    node.api.put(claim, bound("Bound"));
    told("PV v is bound to another PVC").await;
    node.api.put("/api/v1/persistentvolumes/v", volume("u"));
    node.phase("web", "Running").await;
    let config = node.cri.config(&node.cri.ids("app")[0]);
    let mount = config.mounts.iter().find(|mount| mount.container_path == "/d").unwrap();
    assert!(mount.readonly);
    std::fs::write(disk.path().join("file"), "of the volume").unwrap();
    let seen = std::fs::read_to_string(std::path::Path::new(&mount.host_path).join("file")).unwrap();
    assert_eq!(seen, "of the volume");
    node.api.delete_pod("web", 0);
    node.pod_gone("web").await;
    assert!(!node.pod_dir("uid-web").exists());
    assert!(disk.path().join("file").exists(), "what is in a volume outlives the pod");
}

#[tokio::test]
async fn volumes_of_other_kinds_are_refused_by_name() {
    let node = Node::started().await;
    let volumes = json!({ "volumes": [{ "name": "disk", "nfs": { "server": "s", "path": "/" } }] });
    node.api.put_pod(pod("web", volumes));
    eventually("a FailedMount", async || (!node.events.messages("FailedMount").is_empty()).then_some(()))
        .await;
    assert_eq!(
        node.events.messages("FailedMount")[0],
        "MountVolume.SetUp failed for volume \"disk\" : volume type nfs is not supported by this node"
    );
    node.pod_status("web", |s| {
        s["containerStatuses"][0]["state"]["waiting"]["reason"] == "ContainerCreating"
    })
    .await;
}

#[tokio::test]
async fn init_containers_come_first() {
    let node = Node::started().await;
    node.api.put_pod(pod("web", json!({ "initContainers": [{ "name": "init", "image": "app:1" }] })));
    node.pod_status("web", |s| s["initContainerStatuses"][0]["state"]["running"].is_object()).await;
    assert!(node.cri.ids("app").is_empty());
    node.cri.exit("init", 0);
    node.phase("web", "Running").await;
    assert_eq!(node.cri.log(), ["sandbox", "create init", "create app"]);
}

#[tokio::test]
async fn sidecars_end_after_the_containers_they_serve() {
    let node = Node::started().await;
    let spec = json!({ "initContainers": [
        { "name": "s1", "image": "app:1", "restartPolicy": "Always" },
        { "name": "s2", "image": "app:1", "restartPolicy": "Always" },
    ] });
    node.api.put_pod(pod("web", spec));
    node.phase("web", "Running").await;
    node.api.delete_pod("web", 30);
    node.pod_gone("web").await;
    let stops: Vec<String> = node.cri.log().into_iter().filter(|l| l.starts_with("stop")).collect();
    assert_eq!(stops, ["stop app", "stop s2", "stop s1"]);
}

#[tokio::test]
async fn a_failing_readiness_probe_keeps_the_pod_out_of_service() {
    let node = Node::started().await;
    node.cri.fail_exec("app", 1);
    let probe = json!({ "exec": { "command": ["check"] }, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1, "successThreshold": 1 });
    node.api.put_pod(pod(
        "web",
        json!({ "containers": [{ "name": "app", "image": "app:1", "readinessProbe": probe }] }),
    ));
    let status = node.phase("web", "Running").await;
    assert_eq!(condition(&status, "Ready")["message"], "containers with unready status: [app]");
    eventually("an Unhealthy", async || (!node.events.messages("Unhealthy").is_empty()).then_some(())).await;
    assert_eq!(node.events.messages("Unhealthy")[0], "Readiness probe failed: exit 1");
    node.cri.fail_exec("app", 0);
    node.pod_status("web", |s| condition(s, "Ready")["status"] == "True").await;
}

#[tokio::test]
async fn a_failed_liveness_probe_restarts_the_container() {
    let node = Node::started().await;
    let probe = json!({ "exec": { "command": ["check"] }, "periodSeconds": 1, "failureThreshold": 1 });
    node.api.put_pod(pod(
        "web",
        json!({ "containers": [{ "name": "app", "image": "app:1", "livenessProbe": probe }] }),
    ));
    node.phase("web", "Running").await;
    node.cri.fail_exec("app", 1);
    node.pod_status("web", |s| s["containerStatuses"][0]["restartCount"] == 1).await;
    assert_eq!(node.events.messages("Killing"), ["Container app failed liveness probe, will be restarted"]);
}

#[tokio::test]
async fn a_changed_image_replaces_the_container() {
    let node = Node::started().await;
    node.api.put_pod(pod("web", json!({})));
    node.phase("web", "Running").await;
    let path = "/api/v1/namespaces/default/pods/web";
    let mut changed = node.api.get(path).unwrap();
    changed["spec"]["containers"][0]["image"] = json!("app:2");
    node.api.put(path, changed);
    node.pod_status("web", |s| s["containerStatuses"][0]["image"] == "app:2").await;
    assert_eq!(node.events.messages("Killing"), ["Container app definition changed, will be restarted"]);
}

#[tokio::test]
async fn a_pod_past_its_deadline_fails() {
    let node = Node::started().await;
    node.api.put_pod(pod("web", json!({ "activeDeadlineSeconds": 1 })));
    node.phase("web", "Running").await;
    let status = node.phase("web", "Failed").await;
    assert_eq!(status["reason"], "DeadlineExceeded");
    assert_eq!(node.events.messages("DeadlineExceeded").len(), 1);
    assert!(!node.cri.is_running(&node.cri.ids("app")[0]));
}

#[tokio::test]
async fn a_pod_may_want_a_label_that_the_node_was_given_a_moment_ago() {
    let node = Node::started().await;
    let mut object = node.api.get("/api/v1/nodes/n1").unwrap();
    object["metadata"]["labels"]["disk"] = "ssd".into();
    node.api.put("/api/v1/nodes/n1", object);
    node.api.put_pod(pod("fits", json!({"nodeSelector": {"disk": "ssd"}})));
    node.phase("fits", "Running").await;
    node.api.put_pod(pod("strays", json!({"nodeSelector": {"disk": "hdd"}})));
    let status = node.phase("strays", "Failed").await;
    assert_eq!(status["reason"], "NodeAffinity");
}

#[tokio::test]
async fn a_pod_that_finds_no_room_is_rejected() {
    let node = Node::started().await;
    let spec = json!({ "containers": [{ "name": "app", "image": "app:1", "resources": { "requests": { "cpu": "9999" } } }] });
    node.api.put_pod(pod("big", spec));
    let status = node.phase("big", "Failed").await;
    assert_eq!(status["reason"], "OutOfcpu");
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .starts_with("Pod was rejected: Node didn't have enough resource: cpu, requested: 9999000")
    );
    assert!(node.cri.is_empty());
    node.api.delete_pod("big", 30);
    node.pod_gone("big").await;
}

#[tokio::test]
async fn the_group_of_burstable_pods_weighs_what_they_ask_for_as_they_come_and_go() {
    let groups = std::sync::Arc::new(crate::testing::Groups::default());
    let mut node = Node::new();
    node.config.pod_cgroups = Some(groups.clone());
    node.start().await;
    let weighs = async |shares| {
        let weight = || groups.0.lock().get("skiff/kubepods/burstable").map(|(shares, _)| *shares);
        eventually("the weight", async || (weight() == Some(shares)).then_some(())).await;
    };
    weighs(2).await;
    let asks = |cpu: &str| {
        json!({ "restartPolicy": "Never", "containers": [{ "name": cpu, "image": "app:1",
        "resources": { "requests": { "cpu": cpu } } }] })
    };
    node.api.put_pod(pod("a", asks("100m")));
    weighs(102).await;
    node.api.put_pod(pod("b", asks("400m")));
    weighs(512).await;
    node.phase("b", "Running").await;
    node.cri.exit("400m", 0);
    node.phase("b", "Succeeded").await;
    weighs(102).await;
    node.api.delete_pod("a", 30);
    node.pod_gone("a").await;
    weighs(2).await;
    let set = groups.0.lock().clone();
    assert_eq!(set["skiff/kubepods/besteffort"], (2, None));
    let allocatable = node.api.get("/api/v1/nodes/n1").unwrap()["status"]["allocatable"]["memory"].clone();
    let memory = set["skiff/kubepods"].1.unwrap();
    assert_eq!(allocatable, format!("{}Ki", memory / 1024));
    assert_eq!(set["skiff"], (set["skiff/kubepods"].0, None));
}

#[tokio::test]
async fn an_idle_pod_asks_nothing_of_the_api() {
    let node = Node::started().await;
    node.api.put_pod(pod("web", json!({})));
    node.phase("web", "Running").await;
    let settled = async || {
        let before = node.api.requests().len();
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        (node.api.requests().len() == before).then_some(())
    };
    eventually("silence", settled).await;
}

#[tokio::test]
async fn a_nodelet_that_dies_between_init_and_app_goes_on_where_it_was() {
    let mut node = Node::started().await;
    node.api.put_pod(pod(
        "web",
        json!({ "restartPolicy": "Never", "initContainers": [{ "name": "init", "image": "app:1" }] }),
    ));
    node.pod_status("web", |s| s["initContainerStatuses"][0]["state"]["running"].is_object()).await;
    node.stop().await;
    node.cri.exit("init", 0);
    node.start().await;
    node.phase("web", "Running").await;
    assert_eq!(node.cri.log(), ["sandbox", "create init", "create app"]);
}

#[tokio::test]
async fn a_pod_gets_the_resolvers_that_the_host_has_when_it_starts() {
    let mut node = Node::new();
    node.config.resolv_conf = node.config.root_dir.with_file_name("resolv.conf");
    for (name, server) in [("before", "192.0.2.1"), ("after", "198.51.100.1")] {
        std::fs::write(&node.config.resolv_conf, format!("nameserver {server}\n")).unwrap();
        if name == "before" {
            node.start().await;
        }
        node.api.put_pod(pod(name, json!({ "dnsPolicy": "Default" })));
        node.phase(name, "Running").await;
    }
    assert_eq!(node.cri.resolvers(), [["192.0.2.1"], ["198.51.100.1"]]);
}

#[tokio::test]
async fn an_ephemeral_container_starts_once_and_holds_nothing_up() {
    let node = Node::started().await;
    node.api.put_pod(pod("web", json!({})));
    node.phase("web", "Running").await;
    let mut web = node.api.get("/api/v1/namespaces/default/pods/web").unwrap();
    web["spec"]["ephemeralContainers"] =
        json!([{ "name": "debug", "image": "app:1", "targetContainerName": "app", "stdin": true }]);
    node.api.put_pod(web);
    let state = |s: &serde_json::Value| s["ephemeralContainerStatuses"][0]["state"].clone();
    node.pod_status("web", |s| !state(s)["running"].is_null()).await;
    let config = node.cri.config(&node.cri.ids("debug")[0]);
    let namespaces = config.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
    assert_eq!(namespaces.pid, skiff_cri::v1::NamespaceMode::Target as i32);
    assert_eq!(namespaces.target_id, node.cri.ids("app")[0]);
    node.cri.exit("debug", 3);
    let status = node.pod_status("web", |s| state(s)["terminated"]["exitCode"] == 3).await;
    assert_eq!(
        (&status["phase"], &condition(&status, "Ready")["status"]),
        (&json!("Running"), &json!("True"))
    );
    assert_eq!(status["ephemeralContainerStatuses"][0]["restartCount"], 0);
    assert_eq!(node.cri.ids("debug").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_short_of_memory_has_the_least_important_pod_go() {
    let mut node = Node::new();
    node.config.eviction_hard = "memory.available<99%".parse().unwrap();
    node.start().await;
    let pod = |name: &str, priority: i32| {
        let resources = json!({ "requests": { "memory": "1Mi" } });
        let containers = json!([{ "name": "app", "image": "app:1", "resources": resources }]);
        pod(name, json!({ "priority": priority, "containers": containers }))
    };
    for (name, priority) in [("high", 5), ("low", -1), ("system", 2_000_000_000)] {
        node.api.put_pod(pod(name, priority));
        node.phase(name, "Running").await;
    }
    node.cri.use_memory(3 << 20);
    node.api.put_pod(crate::testing::pod("late", json!({})));
    let refused = node.phase("late", "Failed").await;
    assert_eq!(refused["message"], "Pod was rejected: The node had condition: [MemoryPressure]. ");
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    let status = node.phase("low", "Failed").await;
    assert_eq!(status["reason"], "Evicted");
    let message = status["message"].as_str().unwrap();
    assert!(message.starts_with("The node was low on resource: memory. Threshold quantity: "), "{message}");
    assert!(
        message.ends_with("Container app was using 3Mi, request is 1Mi, has larger consumption of memory. ")
    );
    let condition = condition(&status, "DisruptionTarget");
    assert_eq!(
        (&condition["reason"], &condition["message"]),
        (&json!("TerminationByKubelet"), &status["message"])
    );
    assert_eq!(node.api.get("/api/v1/namespaces/default/pods/high").unwrap()["status"]["phase"], "Running");
    assert_eq!(node.events.messages("EvictionThresholdMet")[0], "Attempting to reclaim memory");
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    node.phase("high", "Failed").await;
    assert_eq!(node.api.get("/api/v1/namespaces/default/pods/system").unwrap()["status"]["phase"], "Running");
}

#[tokio::test]
async fn what_the_runtime_tells_of_a_container_is_an_event_of_its_pod() {
    let node = Node::started().await;
    node.api.put_pod(pod("web", json!({})));
    node.phase("web", "Running").await;
    let notice = skiff_cri::Notice {
        sandbox_id: "sandbox-1".to_owned(),
        container_id: node.cri.ids("app")[0].clone(),
        reason: "Compiling",
        message: "Compiling a module".to_owned(),
    };
    eventually("the event", async || {
        // Nobody may listen yet.
        let _heard = node.cri.notices.send(notice.clone());
        node.events.messages("Compiling").first().map(|message| assert_eq!(message, "Compiling a module"))
    })
    .await;
}
