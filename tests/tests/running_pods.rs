//! Stories about pods that run: looked into, given more, and sharing what they have.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use skiff_tests::{TestCluster, has};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: "nginx:alpine", resources: {requests: {cpu: 50m}, limits: {cpu: 100m, memory: 64Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: wasm}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "skiff/wasm-http:v1", ports: [{containerPort: 80}], resources: {limits: {memory: 32Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: together}
spec:
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 1
  containers:
  - {name: a, image: "busybox:1.36", command: [sleep, "4321"]}
  - {name: b, image: "busybox:1.36", command: [sleep, "1234"]}
  - {name: wasm, image: "skiff/wasm-http:v1"}
"#;

/// A file of the control group of a pod's container, whatever version the machine has.
fn group_file(cluster: &TestCluster, pod: &str, files: [&str; 2]) -> Result<String> {
    let id = "jsonpath={.status.containerStatuses[0].containerID}";
    let id = cluster.kubectl(&["get", "pod", pod, "-o", id])?;
    let id = id.trim().strip_prefix("runc://").context("no Linux container")?.to_owned();
    let find = |below: &Path| -> Option<PathBuf> {
        let mut open = vec![below.to_owned()];
        while let Some(directory) = open.pop() {
            if directory.file_name().is_some_and(|name| *name == *id) {
                return Some(directory);
            }
            let entries = std::fs::read_dir(&directory).ok()?.flatten().map(|entry| entry.path());
            open.extend(entries.filter(|path| path.is_dir()));
        }
        None
    };
    for (root, file) in
        [("/sys/fs/cgroup/memory", files[0]), ("/sys/fs/cgroup/cpu", files[0]), ("/sys/fs/cgroup", files[1])]
    {
        let found = find(Path::new(root)).map(|group| group.join(file)).filter(|path| path.is_file());
        if let Some(path) = found {
            return Ok(std::fs::read_to_string(path)?.trim().to_owned());
        }
    }
    anyhow::bail!("no group of {id} has {files:?}")
}

#[test]
fn a_pod_is_debugged_resized_and_shares_its_processes_with_stock_kubectl() -> Result<()> {
    let cluster = TestCluster::start("running")?;
    cluster.apply_text(PODS)?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s"])?;

    let debug = |pod: &str, name: &str, script: &str, more: &[&str]| -> Result<String> {
        let args = ["debug", pod, "--image=busybox:1.36", "-q", "-c", name];
        cluster.kubectl(&[&args[..], more, &["--", "sh", "-c", script]].concat())?;
        cluster.wait_for("the debugging container to end", || {
            let ended = cluster.kubectl(&[
                "get",
                "pod",
                pod,
                "-o",
                "jsonpath={.status.ephemeralContainerStatuses}",
            ])?;
            let ended: serde_json::Value = serde_json::from_str(&ended).unwrap_or_default();
            let own = ended.as_array().into_iter().flatten().find(|status| status["name"] == name);
            Ok(own.filter(|status| !status["state"]["terminated"].is_null()).map(|_| ()))
        })?;
        cluster.kubectl(&["logs", pod, "-c", name])
    };
    let seen = debug("web", "look", "ps; ls /proc/1/root/etc/nginx", &["--target=c", "--profile=sysadmin"])?;
    has(&seen, &["nginx", "nginx.conf"])?;
    // A Wasm container has a network and no processes.
    has(&debug("wasm", "ask", "wget -qO- http://127.0.0.1:80/", &[])?, &["hello from wasm"])?;
    has(&cluster.kubectl(&["get", "pods"])?, &["web", "wasm", "1/1", "Running"])?;

    let resize = |pod: &str, resources: &str| {
        let patch = format!(r#"{{"spec":{{"containers":[{{"name":"c","resources":{resources}}}]}}}}"#);
        cluster.kubectl(&["patch", "pod", pod, "--subresource", "resize", "--patch", &patch])
    };
    resize("web", r#"{"requests":{"cpu":"200m"},"limits":{"cpu":"500m","memory":"96Mi"}}"#)?;
    resize("wasm", r#"{"limits":{"memory":"48Mi"},"requests":{"memory":"48Mi"}}"#)?;
    for (pod, memory) in [("web", "96Mi"), ("wasm", "48Mi")] {
        cluster.wait_for("the resize to be in force", || {
            let pod = cluster.get(&["pod", pod])?;
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let waits = conditions
                .iter()
                .any(|c| c["type"].as_str().is_some_and(|type_| type_.starts_with("PodResize")));
            let container = &pod["status"]["containerStatuses"][0];
            ensure!(container["restartCount"] == 0, "{container}");
            Ok((container["resources"]["limits"]["memory"] == memory && !waits).then_some(()))
        })?;
    }
    ensure!(
        group_file(&cluster, "web", ["memory.limit_in_bytes", "memory.max"])? == (96_u64 << 20).to_string()
    );
    has(&cluster.kubectl(&["get", "events"])?, &["ResizeStarted", "ResizeCompleted"])?;

    let processes = cluster.kubectl(&["exec", "together", "-c", "a", "--", "ps"])?;
    has(&processes, &["1 65535", "/pause", "sleep 4321", "sleep 1234"])?;
    // It holds the namespace: what it has is not to be had through it.
    let taken = cluster.kubectl_fails(&["exec", "together", "-c", "a", "--", "ls", "/proc/1/root/"])?;
    has(&taken, &["Permission denied"])?;
    cluster.stop()
}
