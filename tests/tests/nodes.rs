//! Stories of clusters with several nodes.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use skiff_tests::{NodePaths, TestCluster, has};

/// Pods that leave a node two seconds after it stopped answering, in place of five minutes.
fn deployment(name: &str, image: &str, n_replicas: u8) -> String {
    format!(
        r#"{{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {{"name": "{name}"}}, "spec": {{
            "replicas": {n_replicas}, "selector": {{"matchLabels": {{"app": "{name}"}}}},
            "template": {{"metadata": {{"labels": {{"app": "{name}"}}}}, "spec": {{
                "terminationGracePeriodSeconds": 1,
                "tolerations": [
                    {{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2}},
                    {{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2}}],
                "topologySpreadConstraints": [{{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {{"matchLabels": {{"app": "{name}"}}}}}}],
                "containers": [
                    {{"name": "c", "image": "{image}"}},
                    {{"name": "ask", "image": "busybox:1.36", "command": ["sleep", "3600"]}}]}}}}}}}}"#
    )
}

/// Name, node, address and containers of each pod.
fn placed(cluster: &TestCluster, app: &str) -> Result<Vec<[String; 4]>> {
    let list = cluster.get(&["pods", "-l", &format!("app={app}")])?;
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let living = items.iter().filter(|p| p["metadata"]["deletionTimestamp"].is_null());
    Ok(living
        .map(|p| {
            [
                text(&p["metadata"]["name"]),
                text(&p["spec"]["nodeName"]),
                text(&p["status"]["podIP"]),
                p["status"]["containerStatuses"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|c| text(&c["containerID"]))
                    .collect::<Vec<_>>()
                    .join(" "),
            ]
        })
        .collect())
}

fn nodes_of(pods: &[[String; 4]]) -> std::collections::BTreeSet<&str> {
    pods.iter().map(|p| p[1].as_str()).collect()
}

/// The page at an address, asked for on a node.
fn page(node: &NodePaths, url: &str) -> Result<String> {
    let output = Command::new("nsenter")
        .arg(format!("--net={}", node.netns.display()))
        .args(["curl", "--silent", "--show-error", "--fail", "--max-time", "5", "--noproxy", "*", url])
        .output()
        .context("running nsenter")?;
    ensure!(output.status.success(), "{url} from {}: {}", node.name, String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn ready(cluster: &TestCluster, node: &str) -> Result<String> {
    let node = cluster.get(&["node", node])?;
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().find(|c| c["type"] == "Ready").context("no condition Ready")?;
    Ok(ready["status"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn pods_spread_over_three_nodes_and_everything_reaches_everything() -> Result<()> {
    let cluster = TestCluster::start_nodes("nodes-three", 3)?;
    let listed = cluster.kubectl(&["get", "nodes", "-o", "wide"])?;
    has(
        &listed,
        &["nodes-three-1", "nodes-three-2", "nodes-three-3", "10.99.0.2", "10.99.0.3", "10.99.0.4"],
    )?;

    cluster.apply_text(&deployment("web", "nginx:alpine", 3))?;
    cluster.apply_text(&deployment("guest", "skiff/wasm-http:v1", 3))?;
    for app in ["web", "guest"] {
        cluster.kubectl(&["rollout", "status", &format!("deployment/{app}"), "--timeout=60s"])?;
        ensure!(nodes_of(&placed(&cluster, app)?).len() == 3, "{:?}", placed(&cluster, app)?);
    }
    cluster.kubectl(&["expose", "deployment", "web", "--port=80", "--type=NodePort"])?;
    cluster.kubectl(&["expose", "deployment", "guest", "--port=80", "--target-port=8080"])?;
    let service = cluster.get(&["service", "web"])?;
    let cluster_ip = service["spec"]["clusterIP"].as_str().context("no address")?.to_owned();
    let node_port = service["spec"]["ports"][0]["nodePort"].as_i64().context("no NodePort")?;

    // From each node: every pod, the Service, and its port on every node.
    let (web, guest) = (placed(&cluster, "web")?, placed(&cluster, "guest")?);
    let mut urls: Vec<String> = web.iter().map(|p| format!("http://{}", p[2])).collect();
    urls.push(format!("http://{cluster_ip}"));
    urls.extend((2..=4).map(|n| format!("http://10.99.0.{n}:{node_port}")));
    for node in cluster.nodes() {
        for url in &urls {
            cluster.wait_for(&format!("{url} from {}", node.name), || {
                Ok(page(&node, url).ok().filter(|p| p.contains("nginx")))
            })?;
        }
        for pod in &guest {
            has(&page(&node, &format!("http://{}:8080", pod[2]))?, &["wasm"])?;
        }
    }
    // From a pod on each node, by name: Linux asks Wasm, and Wasm asks Linux.
    for pod in &web {
        for _ in 0..6 {
            let fetch = ["exec", &pod[0], "-c", "ask", "--", "wget", "-qO-", "http://guest"];
            has(&cluster.kubectl(&fetch)?, &["wasm"])?;
        }
    }
    for pod in &guest {
        for _ in 0..6 {
            has(&page(&cluster.node(1), &format!("http://{}:8080/fetch/web", pod[2]))?, &["nginx"])?;
        }
    }
    // Every node's own API is behind logs and exec.
    for pod in &web {
        has(&cluster.kubectl(&["logs", &pod[0], "-c", "c"])?, &["GET / HTTP/1.1"])?;
    }

    // Drained, a node has none of them; and it takes some again.
    cluster.kubectl(&["drain", "nodes-three-3", "--timeout=60s"])?;
    cluster.wait_for("all pods on the other nodes", || {
        let pods = placed(&cluster, "web")?;
        let has_moved = pods.len() == 3 && !nodes_of(&pods).contains("nodes-three-3");
        Ok((has_moved && pods.iter().all(|p| !p[3].is_empty())).then_some(()))
    })?;
    has(&cluster.kubectl(&["get", "node", "nodes-three-3"])?, &["SchedulingDisabled"])?;
    cluster.kubectl(&["uncordon", "nodes-three-3"])?;
    cluster.kubectl(&["scale", "deployment/web", "--replicas=6"])?;
    cluster.wait_for("the node to have pods again", || {
        Ok(nodes_of(&placed(&cluster, "web")?).contains("nodes-three-3").then_some(()))
    })?;
    cluster.stop()
}

/// More than fits into any packet, so that its packets are as large as the path lets them be.
const LARGE: usize = 4 << 20;

#[test]
fn pods_of_nodes_with_a_router_between_them_meet_in_vxlan() -> Result<()> {
    let cluster = TestCluster::start_routed("nodes-routed", 2)?;
    cluster.apply_text(&deployment("web", "nginx:alpine", 2))?;
    cluster.apply_text(&deployment("guest", "skiff/wasm-http:v1", 2))?;
    for app in ["web", "guest"] {
        cluster.kubectl(&["rollout", "status", &format!("deployment/{app}"), "--timeout=60s"])?;
        ensure!(nodes_of(&placed(&cluster, app)?).len() == 2, "{:?}", placed(&cluster, app)?);
    }
    cluster.kubectl(&["expose", "deployment", "web", "--port=80"])?;
    for node in cluster.nodes() {
        let routes = Command::new("nsenter")
            .arg(format!("--net={}", node.netns.display()))
            .args(["ip", "route", "show", "root", "10.42.0.0/16", "dev", "skiff-vxlan"])
            .output()
            .context("running nsenter")?;
        let routes = String::from_utf8_lossy(&routes.stdout).into_owned();
        ensure!(routes.lines().count() == 1, "one other node, not: {routes}");
    }

    let (web, guest) = (placed(&cluster, "web")?, placed(&cluster, "guest")?);
    let directory = "/usr/share/nginx/html";
    for pod in &web {
        let make = format!("head -c {LARGE} /dev/zero > {directory}/large");
        cluster.kubectl(&["exec", &pod[0], "-c", "c", "--", "sh", "-c", &make])?;
    }
    for pod in &web {
        for other in web.iter().chain(&guest).filter(|other| other[1] != pod[1]) {
            let ask = |url: &str, filter: &str| {
                let command = format!("wget -qO- {url} | {filter}");
                cluster.kubectl(&["exec", &pod[0], "-c", "ask", "--", "sh", "-c", &command])
            };
            if guest.contains(other) {
                has(&ask(&format!("http://{}:8080", other[2]), "cat")?, &["wasm"])?;
            } else {
                let n_bytes = ask(&format!("http://{}/large", other[2]), "wc -c")?;
                ensure!(n_bytes.trim() == LARGE.to_string(), "{n_bytes} bytes came");
            }
        }
        // By name: the cluster's DNS may be on the other node.
        for _ in 0..6 {
            let fetch = ["exec", &pod[0], "-c", "ask", "--", "wget", "-qO-", "http://web"];
            has(&cluster.kubectl(&fetch)?, &["nginx"])?;
        }
    }
    for pod in &guest {
        for _ in 0..6 {
            let url = format!("http://{}:8080/fetch/web", pod[2]);
            has(&page(&cluster.node(1), &url)?, &["nginx"])?;
            has(&page(&cluster.node(2), &url)?, &["nginx"])?;
        }
    }
    cluster.stop()
}

#[test]
fn the_pods_of_a_dead_node_move_and_it_comes_back_cleanly() -> Result<()> {
    let cluster = TestCluster::start_nodes("nodes-dead", 3)?;
    cluster.apply_text(&deployment("web", "nginx:alpine", 3))?;
    cluster.apply_text(&deployment("guest", "skiff/wasm-http:v1", 3))?;
    for app in ["web", "guest"] {
        cluster.kubectl(&["rollout", "status", &format!("deployment/{app}"), "--timeout=60s"])?;
    }
    // A nodelet that is soon back changes nothing.
    let before = (placed(&cluster, "web")?, placed(&cluster, "guest")?);
    cluster.agent(3)?.kill()?;
    cluster.up()?;
    cluster.wait_for("the agent's pods to be seen ready", || {
        let pods = [cluster.pods("app=web")?, cluster.pods("app=guest")?].concat();
        Ok(pods.iter().all(|p| p.ready).then_some(()))
    })?;
    ensure!((placed(&cluster, "web")?, placed(&cluster, "guest")?) == before, "a pod was changed");

    // One that stays away loses its pods; the others keep theirs.
    cluster.agent(2)?.kill()?;
    cluster.wait_for("the node to be seen gone", || {
        Ok((ready(&cluster, "nodes-dead-2")? == "Unknown").then_some(()))
    })?;
    for (app, before) in [("web", &before.0), ("guest", &before.1)] {
        let now = cluster.wait_for(&format!("the pods of {app} on the other nodes"), || {
            let now = placed(&cluster, app)?;
            let is_whole = now.len() == 3 && now.iter().all(|p| !p[3].is_empty());
            Ok((is_whole && !nodes_of(&now).contains("nodes-dead-2")).then_some(now))
        })?;
        let kept = before.iter().filter(|p| p[1] != "nodes-dead-2");
        ensure!(kept.clone().count() == 2, "{before:?}");
        for pod in kept {
            ensure!(now.contains(pod), "{pod:?} was concerned: {now:?}");
        }
    }
    // What it ran meanwhile is ended when it is back, and it gets pods again.
    cluster.up()?;
    cluster.wait_for("the node to be ready", || {
        Ok((ready(&cluster, "nodes-dead-2")? == "True").then_some(()))
    })?;
    cluster.wait_for("the old pods' end", || {
        let all = cluster.get(&["pods"])?;
        let items = all["items"].as_array().context("no items")?;
        Ok(items.iter().all(|p| p["metadata"]["deletionTimestamp"].is_null()).then_some(()))
    })?;
    cluster.kubectl(&["scale", "deployment/web", "--replicas=6"])?;
    cluster.wait_for("the node to have pods again", || {
        Ok(nodes_of(&placed(&cluster, "web")?).contains("nodes-dead-2").then_some(()))
    })?;
    cluster.stop()
}

#[test]
fn a_deleted_node_that_lost_its_range_to_another_takes_a_new_one() -> Result<()> {
    let cluster = TestCluster::start_nodes("nodes-deleted", 2)?;
    cluster.apply_text(&deployment("web", "nginx:alpine", 2))?;
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    let range = |node: &str| -> Result<String> {
        let node = cluster.get(&["node", node])?;
        Ok(node["spec"]["podCIDR"].as_str().context("no range")?.to_owned())
    };
    let second = "nodes-deleted-2";
    let (lost, agent) = (range(second)?, cluster.agent(2)?);
    // It looks for its Node every ten seconds: until then the range is free.
    cluster.kubectl(&["delete", "node", second])?;
    let thief = format!(
        r#"{{"apiVersion": "v1", "kind": "Node", "metadata": {{"name": "thief"}}, "spec": {{"unschedulable": true,
            "podCIDR": "{lost}", "podCIDRs": ["{lost}"]}}}}"#
    );
    cluster.apply_text(&thief)?;
    let now = cluster.wait_for("the node to be back", || Ok(range(second).ok()))?;
    ensure!(now != lost, "two nodes have {lost}");
    ensure!(agent.ends_within(Duration::from_secs(30))?, "the agent goes on with another node's addresses");
    let log = std::fs::read_to_string(cluster.node(2).data.join("agent.log"))?;
    has(&log, &[&format!("the node's pod addresses are {now} and no longer {lost}"), "start it again"])?;

    cluster.up()?;
    cluster.kubectl(&["scale", "deployment/web", "--replicas=4"])?;
    let network = now.trim_end_matches("0/24");
    let pods = cluster.wait_for("pods with the new addresses", || {
        let pods = placed(&cluster, "web")?;
        let settled = pods.iter().all(|p| (p[1] == second) == p[2].starts_with(network));
        let moved = pods.len() == 4 && settled && nodes_of(&pods).contains(second);
        Ok((moved && cluster.pods("app=web")?.iter().all(|p| p.ready)).then_some(pods))
    })?;
    for pod in &pods {
        for node in cluster.nodes() {
            cluster.wait_for(&format!("{} from {}", pod[2], node.name), || {
                Ok(page(&node, &format!("http://{}", pod[2])).ok().filter(|page| page.contains("nginx")))
            })?;
        }
    }
    let addresses = Command::new("nsenter")
        .arg(format!("--net={}", cluster.node(2).netns.display()))
        .args(["ip", "-brief", "address"])
        .output()
        .context("running nsenter")?;
    let addresses = String::from_utf8_lossy(&addresses.stdout).into_owned();
    ensure!(!addresses.contains(lost.trim_end_matches("0/24")), "the lost range is still here: {addresses}");
    cluster.kubectl(&["delete", "node", "thief"])?;
    // The new node's own range and addresses are other than when the cluster was new.
    cluster.stop_changed()
}

/// An agent that a test starts by hand on the cluster's second node.
struct Agent {
    child: Child,
}

impl Agent {
    /// The command of an agent with a data directory of its own.
    fn command(cluster: &TestCluster, prefix: &[&str], args: &[&str]) -> Result<Command> {
        let node = cluster.node(2);
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", node.netns.display())).args(prefix);
        command.arg(std::env::var("SKIFF_BIN").context("SKIFF_BIN")?).arg("agent").args(args);
        command
            .stdin(Stdio::null())
            .env("SKIFF_LOG", "off")
            .env_remove("HTTPS_PROXY")
            .env_remove("https_proxy");
        Ok(command)
    }

    /// What an agent says that must not come to anything.
    fn refused(
        cluster: &TestCluster,
        prefix: &[&str],
        name: &str,
        server: &str,
        token: &str,
    ) -> Result<String> {
        let directory = tempfile::tempdir()?;
        let below = |what: &str| directory.path().join(what).to_string_lossy().into_owned();
        let args = [
            "--server",
            server,
            "--token",
            token,
            "--node-name",
            name,
            "--node-ip",
            "10.99.0.3",
            "--data-dir",
            &below("data"),
            "--run-dir",
            &below("run"),
            "--log-dir",
            &below("logs"),
            "--cgroup-root",
            "skiff-refused",
        ];
        let output = Agent::command(cluster, prefix, &args)?.output()?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "the agent has joined: {error}");
        ensure!(error.lines().count() == 1, "one clear message, not:\n{error}");
        ensure!(
            !error.contains(token.split(['.', '@']).nth(1).unwrap_or("?")),
            "the secret was told: {error}"
        );
        Ok(error)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SERVER: &str = "https://10.99.0.2:6443";

#[test]
fn only_a_good_token_at_the_right_time_makes_a_node() -> Result<()> {
    let cluster = TestCluster::start_nodes("nodes-token", 2)?;
    let skiff = |args: &[&str]| cluster.skiff(&[args, &["--name", "nodes-token"]].concat());
    let good = skiff(&["token", "create", "--description", "drill"])?.trim().to_owned();
    let id = good.split('.').next().context("no token")?.to_owned();
    has(&skiff(&["token", "list"])?, &[&id, "23h", "drill"])?;
    let join = skiff(&["token", "create", "--print-join-command"])?;
    has(&join, &["skiff agent --server https://10.99.0.2:6443 --token "])?;
    let refused = |name: &str, token: &str| Agent::refused(&cluster, &[], name, SERVER, token);

    has(&refused("new", "nonsense")?, &["has not the form ID.SECRET@sha256:HASH", "skiff token create"])?;
    let (bearer, hash) = good.split_once('@').context("no hash")?;
    let forged = format!("{id}.{}@{hash}", "0".repeat(16));
    has(&refused("new", &forged)?, &[&format!("the secret of token {id} is wrong")])?;
    let unknown = format!("zzzzzz.{}@{hash}", "0".repeat(16));
    has(&refused("new", &unknown)?, &["the server knows no token zzzzzz", "expired"])?;
    let elsewhere = format!("{bearer}@sha256:{}", "0a".repeat(32));
    has(&refused("new", &elsewhere)?, &["is not the cluster that the token is of", hash])?;
    has(
        &refused("nodes-token-1", &good)?,
        &["a node named \"nodes-token-1\" is a living member", "NodeNameInUse"],
    )?;
    let nobody = Agent::refused(&cluster, &[], "new", "https://10.99.0.2:7", &good)?;
    has(&nobody, &["cannot reach https://10.99.0.2:7"])?;
    // Only the wall clock: time-outs go by the other one.
    for (shift, side) in [("+1h", "ahead of"), ("-1h", "behind")] {
        let prefix = ["env", "FAKETIME_DONT_FAKE_MONOTONIC=1", "faketime", "-f", shift];
        let error = Agent::refused(&cluster, &prefix, "new", SERVER, &good)?;
        has(&error, &["this machine's clock is 3", &format!(" s {side} the server's")])?;
    }

    let short = skiff(&["token", "create", "--ttl", "1s"])?.trim().to_owned();
    let short_id = short.split('.').next().context("no token")?;
    // Until then it would let a node in.
    cluster.wait_for("the token to expire", || {
        Ok((!skiff(&["token", "list"])?.contains(short_id)).then_some(()))
    })?;
    has(&refused("new", &short)?, &[&format!("the server knows no token {short_id}")])?;
    has(&skiff(&["token", "delete", &id])?, &[&format!("token {id} deleted")])?;
    cluster.wait_for("the deleted token to be refused", || {
        has(&refused("new", &good)?, &["the server knows no token"]).map(Some)
    })?;
    let nodes = cluster.kubectl(&["get", "nodes", "-o", "name"])?;
    ensure!(nodes.lines().count() == 2, "somebody has joined: {nodes}");
    cluster.kubectl(&["delete", "csr", "--all"])?;
    let token =
        join.trim().rsplit(' ').next().and_then(|t| t.split('.').next()).context("no token")?.to_owned();
    skiff(&["token", "delete", &token])?;
    cluster.stop()
}

#[test]
fn certificates_are_renewed_while_they_are_in_use() -> Result<()> {
    let cluster = TestCluster::start_nodes("nodes-renew", 2)?;
    cluster.apply_text(&deployment("web", "nginx:alpine", 2))?;
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    let agent = cluster.agent(2)?;
    let args = agent.arguments()?;
    agent.kill()?;
    // The same agent again, in a hurry.
    let args: Vec<&str> = args.iter().skip(2).map(String::as_str).chain(["--renew-after", "1"]).collect();
    let child = Agent::command(&cluster, &[], &args)?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let agent = Agent { child };
    let kept =
        |file: &str| Ok::<_, anyhow::Error>(std::fs::read(cluster.node(2).data.join("agent").join(file))?);
    for file in ["client.pem", "serving.pem"] {
        for time in ["first", "second"] {
            let before = kept(file)?;
            cluster.wait_for(&format!("the {time} renewal of {file}"), || {
                Ok((kept(file)? != before).then_some(()))
            })?;
        }
    }
    // The node goes on under its new certificates, and the server believes the one that it shows.
    let pod =
        placed(&cluster, "web")?.into_iter().find(|p| p[1] == "nodes-renew-2").context("no pod there")?;
    cluster.wait_for("the node's API", || {
        Ok(cluster
            .kubectl(&["exec", &pod[0], "-c", "c", "--", "echo", "here"])
            .ok()
            .filter(|said| said.contains("here")))
    })?;
    let since =
        cluster.get(&["lease", "-n", "kube-node-lease", "nodes-renew-2"])?["spec"]["renewTime"].clone();
    cluster.wait_for("the node to renew its lease", || {
        let lease = cluster.get(&["lease", "-n", "kube-node-lease", "nodes-renew-2"])?;
        Ok((lease["spec"]["renewTime"] != since).then_some(()))
    })?;
    ensure!(placed(&cluster, "web")?.contains(&pod), "the pod was changed");
    drop(agent);
    cluster.up()?;
    cluster.kubectl(&["delete", "csr", "--all"])?;
    cluster.stop()
}

/// Pods of both kinds on each node, and one that only asks.
const POLICED: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: other}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: c, image: "nginx:alpine", ports: [{name: page, containerPort: 80}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: guest}
spec:
  selector: {matchLabels: {app: guest}}
  template:
    metadata: {labels: {app: guest}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: c, image: "skiff/wasm-http:v1", ports: [{name: page, containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: guest}
spec: {selector: {app: guest}, ports: [{port: 80, targetPort: page}]}
"#;

/// One that asks, with labels and in a namespace of the story's.
fn asker(name: &str, namespace: &str, labels: &str) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}", "namespace": "{namespace}", "labels": {labels}}},
            "spec": {{"terminationGracePeriodSeconds": 0,
                "containers": [{{"name": "c", "image": "busybox:1.36", "command": ["sleep", "3600"]}}]}}}}"#
    )
}

/// Whether a pod gets a page.
fn gets(cluster: &TestCluster, pod: (&str, &str), url: &str) -> bool {
    let (namespace, name) = pod;
    cluster.kubectl(&["exec", "-n", namespace, name, "--", "timeout", "3", "wget", "-qO-", url]).is_ok()
}

#[test]
fn network_policies_are_kept_for_linux_and_wasm_on_every_node() -> Result<()> {
    let cluster = TestCluster::start_nodes("nodes-policy", 2)?;
    cluster.apply_text(POLICED)?;
    cluster.apply_text(&asker("friend", "default", r#"{"role": "friend"}"#))?;
    cluster.apply_text(&asker("foe", "default", r#"{"role": "foe"}"#))?;
    cluster.wait_for("the other namespace's account", || {
        Ok(cluster.apply_text(&asker("stranger", "other", "{}")).ok())
    })?;
    for app in ["web", "guest"] {
        cluster.kubectl(&["rollout", "status", &format!("daemonset/{app}"), "--timeout=90s"])?;
    }
    let (friend, foe, stranger) = (("default", "friend"), ("default", "foe"), ("other", "stranger"));
    for (namespace, name) in [friend, foe, stranger] {
        let pod = format!("pod/{name}");
        cluster.kubectl(&["wait", "-n", namespace, "--for=condition=Ready", &pod, "--timeout=60s"])?;
    }
    let mut urls: Vec<String> = placed(&cluster, "web")?.iter().map(|p| format!("http://{}", p[2])).collect();
    urls.extend(placed(&cluster, "guest")?.iter().map(|p| format!("http://{}:8080", p[2])));
    urls.push("http://guest.default".to_owned());
    ensure!(urls.len() == 5, "{urls:?}");
    let expect = |what: &str, who: (&str, &str), wanted: bool| {
        for url in &urls {
            cluster.wait_for(&format!("{what}: {} to get {url}: {wanted}", who.1), || {
                Ok((gets(&cluster, who, url) == wanted).then_some(()))
            })?;
        }
        anyhow::Ok(())
    };
    for who in [friend, foe, stranger] {
        expect("no policy", who, true)?;
    }
    // The page's example (docs/network-policy.md), for pods of both kinds.
    cluster.kubectl(&["apply", "-f", "../samples/network-policy/deny.yaml"])?;
    for who in [friend, foe, stranger] {
        expect("deny", who, false)?;
    }
    cluster.kubectl(&["apply", "-f", "../samples/network-policy/allow.yaml"])?;
    expect("allow", friend, true)?;
    expect("allow", foe, false)?;
    expect("allow", stranger, false)?;
    // A label that comes lets in, one that goes shuts out; a namespace's too.
    cluster.kubectl(&["label", "pod", "foe", "role=friend", "--overwrite"])?;
    expect("a label came", foe, true)?;
    cluster.kubectl(&["label", "pod", "foe", "role=foe", "--overwrite"])?;
    expect("a label went", foe, false)?;
    cluster.kubectl(&["label", "namespace", "other", "team=friends"])?;
    expect("a namespace's label came", stranger, true)?;
    // A pod that comes later is closed from its first moment, on whichever node.
    cluster.kubectl(&["apply", "-f", "../samples/network-policy/egress.yaml"])?;
    cluster.apply_text(&asker("late", "default", r#"{"role": "friend", "egress": "dns"}"#))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/late", "--timeout=60s"])?;
    for url in &urls {
        ensure!(!gets(&cluster, ("default", "late"), url), "it reaches {url}");
    }
    let found = cluster.kubectl(&["exec", "late", "--", "nslookup", "guest.default.svc.cluster.local"])?;
    has(&found, &["guest.default"])?;
    // Killed, a server keeps the rules, and goes on with them.
    cluster.kill_server()?;
    expect("after a restart", friend, true)?;
    expect("after a restart", foe, false)?;
    for node in cluster.nodes() {
        let flushed = Command::new("nsenter")
            .arg(format!("--net={}", node.netns.display()))
            .args(["nft", "delete", "table", "ip", "skiff_policy"])
            .status()
            .context("running nsenter")?;
        ensure!(flushed.success(), "no table on {}", node.name);
    }
    expect("after a flush", foe, false)?;
    cluster.kubectl(&["delete", "-f", "../samples/network-policy"])?;
    expect("all policies gone", foe, true)?;
    cluster.kubectl(&["delete", "daemonset", "web", "guest"])?;
    cluster.kubectl(&["delete", "namespace", "other"])?;
    cluster.stop()
}
