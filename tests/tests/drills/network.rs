//! A bad way between people, with the forwarder that stands for them, and the API.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use skiff_tests::drills::Link;
use skiff_tests::{TestCluster, has, http_get};

/// What the forwarder connects to, and another address of the same server, which the way to the first does not touch.
const API: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 99, 0, 2), 6443);
const API_LOOPBACK: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 6443);

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: far}
spec:
  replicas: 2
  selector: {matchLabels: {app: far}}
  template:
    metadata: {labels: {app: far}}
    spec: {containers: [{name: web, image: nginx:alpine}]}
"#;

#[test]
fn a_slow_way_that_loses_packets_is_slow_and_loses_nothing() -> Result<()> {
    let cluster = TestCluster::start("drill-slow")?;
    let link = Link::of(&cluster.netns());
    let delay = link.delay(API, API_LOOPBACK, Duration::from_millis(100))?;
    let loss = link.lose(API, 5)?;
    cluster.apply_text(WEB)?;
    cluster.kubectl(&["rollout", "status", "deployment/far", "--timeout=60s"])?;
    let pods = cluster.pods("app=far")?;
    ensure!(pods.len() == 2 && pods.iter().all(|pod| pod.ready), "{pods:?}");
    let pod = pods.first().context("no pod")?.name.clone();
    let lines = cluster.kubectl(&[
        "exec",
        &pod,
        "--",
        "sh",
        "-c",
        "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done",
    ])?;
    ensure!(
        lines.lines().count() == 2000 && lines.ends_with("line 1999\n"),
        "{} lines came",
        lines.lines().count()
    );
    let failed = cluster.kubectl_fails(&["exec", &pod, "--", "sh", "-c", "exit 3"])?;
    has(&failed, &["exit code 3"])?;
    cluster.kubectl(&["scale", "deployment/far", "--replicas=1"])?;
    cluster.kubectl(&["wait", "--for=jsonpath={.status.replicas}=1", "deployment/far", "--timeout=60s"])?;
    ensure!(delay.n_connections() > 5, "only {} connections went the slow way", delay.n_connections());
    drop((delay, loss));
    cluster.stop()
}

#[test]
fn a_way_that_was_cut_says_so_and_what_happened_behind_it_is_caught_up_with() -> Result<()> {
    let cluster = TestCluster::start("drill-cut")?;
    cluster.apply_text(WEB)?;
    cluster.kubectl(&["rollout", "status", "deployment/far", "--timeout=60s"])?;
    let before = cluster.pods("app=far")?;

    let partition = Link::of(&cluster.netns()).partition(*API.ip(), Some(API.port()))?;
    let error = cluster.kubectl_fails(&["get", "--raw=/readyz", "--request-timeout=3s"])?;
    ensure!(error.to_lowercase().contains("timeout") || error.contains("deadline"), "{error}");
    // The cluster itself knows nothing of it.
    has(&cluster.kubectl_inside(&["get", "nodes"])?, &[" Ready "])?;
    cluster.kubectl_inside(&["expose", "deployment", "far", "--port=80", "--type=LoadBalancer"])?;
    cluster.kubectl_inside(&["scale", "deployment", "far", "--replicas=3"])?;
    cluster.kubectl_inside(&["rollout", "status", "deployment/far", "--timeout=60s"])?;
    drop(partition);

    // The forwarder's own watch was cut, too: it hears of the Service only now.
    let address = cluster.address("far")?;
    let page = cluster.wait_for("the page", || Ok(http_get(&address, 80).ok()))?;
    has(&page.to_lowercase(), &["nginx"])?;
    let after = cluster.pods("app=far")?;
    ensure!(after.len() == 3 && before.iter().all(|pod| after.contains(pod)), "{before:?} became {after:?}");
    cluster.stop()
}
