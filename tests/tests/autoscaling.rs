//! What is used, and scaled by what is used, with stock kubectl: a Deployment of Linux containers and one of Wasm components.

use anyhow::{Context as _, Result, ensure};
use skiff_tests::{TestCluster, has};

const SAMPLE: &str = "../samples/autoscaling";
const BOTH: [&str; 2] = ["busy", "answers"];

/// Names of the pods of an app.
fn pods(cluster: &TestCluster, app: &str) -> Result<Vec<String>> {
    Ok(cluster.pods(&format!("app={app}"))?.into_iter().map(|pod| pod.name).collect())
}

fn until_replicas(cluster: &TestCluster, name: &str, replicas: u8) -> Result<()> {
    for field in ["{.spec.replicas}", "{.status.readyReplicas}"] {
        let condition = format!("--for=jsonpath={field}={replicas}");
        let waited = cluster.kubectl(&["wait", &condition, &format!("deployment/{name}"), "--timeout=240s"]);
        waited.with_context(|| cluster.kubectl(&["describe", "hpa", name]).unwrap_or_default())?;
    }
    Ok(())
}

#[test]
fn top_shows_what_pods_use_and_autoscalers_follow_it_up_and_down() -> Result<()> {
    let cluster = TestCluster::start("story-autoscaling")?;
    cluster.kubectl(&["apply", "-f", SAMPLE])?;
    for name in BOTH {
        cluster.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout=90s"])?;
    }
    let group = cluster.kubectl(&["api-resources", "--api-group=metrics.k8s.io"])?;
    has(&group, &["NodeMetrics", "PodMetrics"])?;
    let local = cluster.kubectl(&["get", "apiservice", "v1beta1.metrics.k8s.io"])?;
    has(&local, &["Local", "True"])?;

    let nodes = cluster.kubectl(&["top", "nodes", "--no-headers"])?;
    let columns: Vec<&str> = nodes.split_whitespace().collect();
    ensure!(columns.len() == 5 && columns[1].ends_with('m') && columns[3].ends_with("Mi"), "{nodes}");
    let shown = cluster.wait_for("figures of all pods", || {
        let shown = cluster.kubectl(&["top", "pods", "--containers", "--no-headers"]).unwrap_or_default();
        Ok(["busy-", "answers-", "asks"].iter().all(|name| shown.contains(name)).then_some(shown))
    })?;
    for line in shown.lines() {
        let columns: Vec<&str> = line.split_whitespace().collect();
        ensure!(columns.len() == 4 && columns[2].ends_with('m') && columns[3].ends_with("Mi"), "{line}");
    }
    has(&cluster.kubectl(&["get", "podmetrics"])?, &["NAME", "CPU", "MEMORY", "WINDOW", "asks"])?;

    for name in BOTH {
        let deployment = format!("deployment/{name}");
        cluster.kubectl(&["autoscale", &deployment, "--cpu-percent=50", "--min=1", "--max=2"])?;
        // Five minutes before pods go are long for a test.
        let at_once = r#"{"spec":{"behavior":{"scaleDown":{"stabilizationWindowSeconds":0}}}}"#;
        cluster.kubectl(&["patch", "hpa", name, "--type=merge", "-p", at_once])?;
    }
    cluster.kubectl(&["exec", "deployment/busy", "--", "touch", "/tmp/busy"])?;
    cluster.kubectl(&["exec", "asks", "--", "touch", "/tmp/go"])?;
    for name in BOTH {
        until_replicas(&cluster, name, 2)?;
        let described = cluster.kubectl(&["describe", "hpa", name])?;
        let why = "New size: 2; reason: cpu resource utilization (percentage of request) above target";
        has(&described, &["AbleToScale", "ScalingActive", "ValidMetricFound", "SuccessfulRescale", why])?;
    }
    has(&cluster.kubectl(&["get", "hpa"])?, &["Deployment/busy", "Deployment/answers", "%/50%"])?;

    for pod in pods(&cluster, "busy")? {
        cluster.kubectl(&["exec", &pod, "--", "rm", "-f", "/tmp/busy"])?;
    }
    cluster.kubectl(&["exec", "asks", "--", "rm", "/tmp/go"])?;
    for name in BOTH {
        until_replicas(&cluster, name, 1)?;
        let described = cluster.kubectl(&["describe", "hpa", name])?;
        has(&described, &["New size: 1; reason: All metrics below target"])?;
        cluster.kubectl(&["delete", "hpa", name])?;
    }
    cluster.kubectl(&["delete", "-f", SAMPLE, "--timeout=60s"])?;
    cluster.stop()
}
