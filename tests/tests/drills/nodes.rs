//! Nodes that are cut off from the others.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use skiff_tests::drills::Link;
use skiff_tests::{TestCluster, has, http_get};

/// The server's node, by its address on the segment that plays the LAN.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// Pods that leave a node a second after it stopped answering, in place of five minutes.
const PODS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: parted}
spec:
  replicas: 2
  selector: {matchLabels: {app: parted}}
  template:
    metadata: {labels: {app: parted}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector: {matchLabels: {app: parted}}
      containers: [{name: web, image: nginx:alpine}]
"#;

/// Node and address of a pod, if it is still there.
fn place(cluster: &TestCluster, pod: &str) -> Result<Option<(String, String)>> {
    let found = cluster.get(&["pods", "--field-selector", &format!("metadata.name={pod}")])?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let pod = &found["items"][0];
    Ok(pod.is_object().then(|| (text(&pod["spec"]["nodeName"]), text(&pod["status"]["podIP"]))))
}

fn ready(cluster: &TestCluster, node: &str) -> Result<String> {
    let node = cluster.get(&["node", node])?;
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().find(|c| c["type"] == "Ready").context("no condition Ready")?;
    Ok(ready["status"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_node_that_is_cut_off_runs_its_pods_until_it_hears_that_others_do() -> Result<()> {
    let cluster = TestCluster::start_nodes("drill-parted", 2)?;
    cluster.apply_text(PODS)?;
    cluster.kubectl(&["rollout", "status", "deployment/parted", "--timeout=60s"])?;
    let before = cluster.pods("app=parted")?;
    let mut lost = None;
    for pod in &before {
        let (node, ip) = place(&cluster, &pod.name)?.context("a pod has gone")?;
        if node == "drill-parted-2" {
            lost = Some((pod.clone(), ip));
        }
    }
    let (lost, ip) = lost.context("no pod is on the second node")?;

    let second = cluster.node(2);
    let page = || skiff_tests::within(&second.netns, || http_get(&ip, 80));
    has(&page()?.to_lowercase(), &["nginx"])?;
    let partition = Link::of(&second.netns).partition(SERVER, None)?;
    cluster.wait_for("the node to be missed", || {
        Ok((ready(&cluster, "drill-parted-2")? == "Unknown").then_some(()))
    })?;
    let healed = cluster.wait_for("another pod in place of the one that is lost", || {
        let pods = cluster.pods("app=parted")?;
        let others: Vec<_> = pods.into_iter().filter(|pod| pod.name != lost.name).collect();
        Ok((others.len() == 2 && others.iter().all(|pod| pod.ready)).then_some(others))
    })?;
    // Its object stays: nobody can say that its containers have ended, and they have not.
    ensure!(place(&cluster, &lost.name)?.is_some(), "a pod was taken for ended that was not");
    has(&page()?.to_lowercase(), &["nginx"])?;

    drop(partition);
    cluster.wait_for("the node to be back", || {
        Ok((ready(&cluster, "drill-parted-2")? == "True").then_some(()))
    })?;
    cluster.wait_for("the lost pod's end", || Ok(place(&cluster, &lost.name)?.is_none().then_some(())))?;
    ensure!(page().is_err(), "the containers of a pod that is gone still answer");
    ensure!(cluster.pods("app=parted")? == healed, "{healed:?} became {:?}", cluster.pods("app=parted")?);
    cluster.stop()
}

#[test]
fn an_agent_that_stood_still_for_seconds_goes_on_and_its_node_was_never_missed() -> Result<()> {
    let cluster = TestCluster::start_nodes("drill-agent", 2)?;
    cluster.apply_text(PODS)?;
    cluster.kubectl(&["rollout", "status", "deployment/parted", "--timeout=60s"])?;
    let before = cluster.pods("app=parted")?;
    let agent = cluster.agent(2)?;
    let stopped = agent.stop()?;
    // What happens meanwhile waits for it: it is no fault of the pods.
    ensure!(!agent.ends_within(Duration::from_secs(8))?, "the agent has ended");
    cluster.kubectl(&["scale", "deployment/parted", "--replicas=4"])?;
    drop(stopped);
    cluster.kubectl(&["rollout", "status", "deployment/parted", "--timeout=60s"])?;
    let after = cluster.pods("app=parted")?;
    ensure!(after.len() == 4 && before.iter().all(|pod| after.contains(pod)), "{before:?} became {after:?}");
    let events = cluster.kubectl(&["get", "events"])?;
    ensure!(!events.contains("NodeNotReady"), "{events}");
    cluster.stop()
}
