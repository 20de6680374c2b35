//! A server that stands still: a machine that swaps, a debugger, a suspended guest.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::mpsc::channel;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use skiff_tests::{TestCluster, has, http_get};

/// Asked every second, so that several answers are due while nobody listens.
const PODS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: still}
spec:
  replicas: 2
  selector: {matchLabels: {app: still}}
  template:
    metadata: {labels: {app: still}}
    spec:
      containers:
      - name: web
        image: nginx:alpine
        livenessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: still}
spec:
  type: LoadBalancer
  selector: {app: still}
  ports: [{port: 80}]
"#;

fn node_ready_since(cluster: &TestCluster) -> Result<Value> {
    let nodes = cluster.get(&["nodes"])?;
    let conditions = nodes["items"][0]["status"]["conditions"].as_array().context("no conditions")?.clone();
    let ready = conditions.into_iter().find(|c| c["type"] == "Ready").context("the node does not say")?;
    ensure!(ready["status"] == "True", "{ready}");
    Ok(ready["lastTransitionTime"].clone())
}

fn renewed_at(cluster: &TestCluster) -> Result<String> {
    let leases = cluster.get(&["leases", "-n", "kube-node-lease"])?;
    let time = leases["items"][0]["spec"]["renewTime"].as_str().context("no lease was renewed")?;
    Ok(time.to_owned())
}

#[test]
fn a_server_that_stood_still_goes_on_where_it_was_and_no_pod_notices() -> Result<()> {
    let cluster = TestCluster::start("drill-still")?;
    cluster.apply_text(PODS)?;
    cluster.kubectl(&["rollout", "status", "deployment/still", "--timeout=60s"])?;
    let address = cluster.address("still")?;
    cluster.wait_for("the first answer", || Ok(http_get(&address, 80).ok()))?;
    let (before, ready_since) = (cluster.pods("app=still")?, node_ready_since(&cluster)?);
    let mut watching = cluster
        .kubectl_command(&["get", "pods", "-l", "app=still", "--watch-only", "-o", "name"])
        .stdout(Stdio::piped())
        .spawn()
        .context("running kubectl get --watch")?;
    let lines = BufReader::new(watching.stdout.take().context("no output")?).lines();
    let (seen, heard) = channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| seen.send(line)));
    // A kubectl that still shakes hands when the server is stopped gives up; one that has told something does not.
    let mut n_marks = 0;
    cluster.wait_for("the watch to tell of a mark", || {
        n_marks += 1;
        let mark = format!("mark={n_marks}");
        cluster.kubectl(&["annotate", "pods", "-l", "app=still", "--overwrite", &mark])?;
        Ok(heard.try_recv().ok())
    })?;
    let lease = renewed_at(&cluster)?;

    let server = cluster.server()?;
    let stopped = server.stop()?;
    // Longer than a lease's renewal takes to come, by the clock of those who ask in vain; one request each, since kubectl
    // itself gives up a watch that is silent for three quarters of a minute.
    for _ in 0..3 {
        let error = cluster.kubectl_fails(&["get", "--raw=/readyz", "--request-timeout=4s"])?;
        ensure!(error.to_lowercase().contains("timeout") || error.contains("deadline"), "{error}");
        http_get(&address, 80)?;
    }
    drop(stopped);

    has(&cluster.kubectl(&["get", "pods", "-l", "app=still"])?, &["1/1", "Running"])?;
    cluster.wait_for("the lease to be renewed", || Ok((renewed_at(&cluster)? > lease).then_some(())))?;
    ensure!(node_ready_since(&cluster)? == ready_since, "the node was not ready for a while");
    // The watch from before still tells of what happens.
    cluster.kubectl(&["scale", "deployment/still", "--replicas=3"])?;
    cluster.kubectl(&["rollout", "status", "deployment/still", "--timeout=60s"])?;
    let after = cluster.pods("app=still")?;
    let new = after.iter().find(|pod| !before.contains(pod)).context("no new pod")?;
    let mut told = Vec::new();
    cluster.wait_for("the watch to tell of the new pod", || {
        told.extend(heard.try_iter());
        Ok(told.iter().any(|line| line.ends_with(&new.name)).then_some(()))
    })?;
    watching.kill()?;
    watching.wait()?;
    for pod in &before {
        ensure!(after.contains(pod), "{pod:?} was changed: {after:?}");
    }
    let events = cluster.kubectl(&["get", "events"])?;
    ensure!(!events.contains("Killing") && !events.contains("NodeNotReady"), "{events}");
    cluster.stop()
}
