//! Stories about claims and the volumes that nodes make for them.

use anyhow::{Context as _, Result, ensure};
use skiff_tests::{TestCluster, has};

const MEBIBYTE: u64 = 1 << 20;

fn claim(name: &str, size: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{accessModes: [ReadWriteOnce], \
         resources: {{requests: {{storage: {size}}}}}}}\n---\n"
    )
}

/// A pod that has a claim at `/data`.
fn pod(name: &str, claim: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {{runAsUser: 1000, fsGroup: 2000}}
  containers:
  - name: c
    image: busybox:1.36
    command: [sh, -c, "trap exit TERM; sleep 3600 & wait"]
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]
---
"#
    )
}

const SET: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: busybox:1.36
        command: [sh, -c, "hostname >> /data/name; trap exit TERM; sleep 3600 & wait"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 32Mi}}}
"#;

#[test]
fn a_claim_gets_a_volume_of_its_size_that_outlives_pods_and_the_server_and_goes_with_the_claim() -> Result<()>
{
    let cluster = TestCluster::start("story-volumes")?;
    cluster.apply_text(&claim("data", "32Mi"))?;
    // Nothing is made before somebody needs it.
    cluster.wait_for("the claim to say what it waits for", || {
        let events = cluster.kubectl(&["get", "events", "--field-selector=involvedObject.name=data"])?;
        Ok(events.contains("WaitForFirstConsumer").then_some(()))
    })?;
    cluster.apply_text(&pod("first", "data"))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/first", "--timeout=60s"])?;
    let volume =
        cluster.get(&["pvc", "data"])?["spec"]["volumeName"].as_str().context("not bound")?.to_owned();
    let found = cluster.get(&["pv", &volume])?;
    let path = found["spec"]["local"]["path"].as_str().context("no path")?.to_owned();
    ensure!(found["status"]["phase"] == "Bound" && found["spec"]["storageClassName"] == "local", "{found}");

    let inside = |pod: &str, script: &str| cluster.kubectl(&["exec", pod, "--", "sh", "-c", script]);
    inside("first", "echo kept > /data/file")?;
    has(&inside("first", "stat -c '%u %g' /data/file")?, &["1000 2000"])?;
    let full = cluster.kubectl_fails(&[
        "exec",
        "first",
        "--",
        "dd",
        "if=/dev/zero",
        "of=/data/large",
        "bs=1M",
        "count=64",
    ])?;
    has(&full, &["No space left on device"])?;
    // The node tells how full the claim is, as statistics and as metrics.
    let node = cluster.get(&["pod", "first"])?["spec"]["nodeName"].as_str().context("no node")?.to_owned();
    let page = |page: &str| cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/{page}")]);
    let summary: serde_json::Value = serde_json::from_str(&page("stats/summary")?)?;
    let pods = summary["pods"].as_array().context("no pods")?;
    let told = pods.iter().find_map(|pod| pod["volume"].as_array()?.first()).context("no volume")?;
    ensure!(told["pvcRef"]["name"] == "data" && told["name"] == "data", "{told}");
    let of = |field: &str| told[field].as_u64().unwrap_or_default();
    ensure!(of("capacityBytes") <= 32 * MEBIBYTE && of("usedBytes") > of("capacityBytes") / 2, "{told}");
    let used = "kubelet_volume_stats_used_bytes{namespace=\"default\",persistentvolumeclaim=\"data\"}";
    has(&page("metrics")?, &[used])?;
    inside("first", "rm /data/large")?;

    // Another pod, another server process: the same files.
    cluster.kubectl(&["delete", "pod", "first"])?;
    cluster.kill_server()?;
    cluster.up()?;
    cluster.apply_text(&pod("second", "data"))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/second", "--timeout=60s"])?;
    has(&inside("second", "cat /data/file")?, &["kept"])?;

    // A claim that a pod uses is protected; it goes with the pod, its volume and the files go with it.
    cluster.kubectl(&["delete", "pvc", "data", "--wait=false"])?;
    let claim_now = cluster.get(&["pvc", "data"])?;
    has(&claim_now["metadata"]["finalizers"].to_string(), &["kubernetes.io/pvc-protection"])?;
    has(&inside("second", "cat /data/file")?, &["kept"])?;
    cluster.kubectl(&["delete", "pod", "second"])?;
    cluster.kubectl(&["wait", "--for=delete", "pvc/data", "--timeout=60s"])?;
    cluster.kubectl(&["wait", "--for=delete", &format!("pv/{volume}"), "--timeout=60s"])?;
    ensure!(!std::path::Path::new(&path).exists(), "{path} is still there");
    cluster.stop()
}

#[test]
fn a_claim_that_nobody_uses_grows_and_a_stateful_set_has_a_volume_for_each_pod() -> Result<()> {
    let cluster = TestCluster::start("story-volume-set")?;
    cluster.apply_text(SET)?;
    cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=90s"])?;
    let name = |pod: &str| cluster.kubectl(&["exec", pod, "--", "cat", "/data/name"]);
    ensure!(name("db-0")? == "db-0\n" && name("db-1")? == "db-1\n", "each has its own");
    cluster.kubectl(&["delete", "pod", "db-0"])?;
    cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=90s"])?;
    cluster.wait_for("the pod on the volume that it had", || {
        Ok((name("db-0").unwrap_or_default() == "db-0\ndb-0\n").then_some(()))
    })?;

    cluster.kubectl(&["scale", "statefulset/db", "--replicas=1"])?;
    cluster.kubectl(&["wait", "--for=delete", "pod/db-1", "--timeout=60s"])?;
    let wanted = r#"{"spec": {"resources": {"requests": {"storage": "64Mi"}}}}"#;
    cluster.kubectl(&["patch", "pvc", "data-db-1", "-p", wanted])?;
    cluster.wait_for("the claim to have grown", || {
        Ok((cluster.get(&["pvc", "data-db-1"])?["status"]["capacity"]["storage"] == "64Mi").then_some(()))
    })?;
    cluster.kubectl(&["scale", "statefulset/db", "--replicas=2"])?;
    cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=90s"])?;
    let blocks = cluster.kubectl(&["exec", "db-1", "--", "stat", "-f", "-c", "%b %S", "/data"])?;
    let numbers: Vec<u64> = blocks.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [n_blocks, size] = numbers[..] else { anyhow::bail!("{blocks:?}") };
    ensure!(n_blocks * size > 40 * MEBIBYTE, "{} MiB", n_blocks * size / MEBIBYTE);
    has(&name("db-1")?, &["db-1\ndb-1\n"])?;

    cluster.kubectl(&["delete", "statefulset", "db"])?;
    cluster.wait_for("the claims and volumes to be gone", || {
        let left = cluster.kubectl(&["get", "pvc,pv", "-o", "name"])?;
        Ok(left.trim().is_empty().then_some(()))
    })?;
    cluster.stop()
}
