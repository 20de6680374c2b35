//! Stories about ports, probes and terminals.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use skiff_tests::{Terminal, TestCluster, has, http_get};

/// The first node's address within its namespace.
const NODE_IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// Pods that run a program of the machine, with the machine's libraries.
fn udp_pods() -> Result<String> {
    let program = Path::new(env!("CARGO_BIN_EXE_udp"));
    let (folder, name) = (program.parent().context("no folder")?, program.file_name().context("no name")?);
    let (mut mounts, mut volumes) = (String::new(), String::new());
    let folders = [(folder, "/drill"), (Path::new("/lib"), "/lib"), (Path::new("/lib64"), "/lib64")];
    for (n, (path, at)) in folders.iter().filter(|(path, _)| path.exists()).enumerate() {
        mounts += &format!("        - {{name: v{n}, mountPath: {at}, readOnly: true}}\n");
        volumes += &format!("      - {{name: v{n}, hostPath: {{path: {:?}}}}}\n", path.display());
    }
    Ok(format!(
        r#"apiVersion: apps/v1
kind: Deployment
metadata: {{name: udp}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: udp}}}}
  template:
    metadata: {{labels: {{app: udp}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: busybox:1.36
        command: [/drill/{}, "5300"]
        ports: [{{containerPort: 5300, protocol: UDP}}]
        volumeMounts:
{mounts}      volumes:
{volumes}---
apiVersion: v1
kind: Service
metadata: {{name: udp}}
spec:
  type: NodePort
  selector: {{app: udp}}
  ports: [{{port: 53, targetPort: 5300, protocol: UDP}}]
"#,
        name.display()
    ))
}

/// Asks from one socket until there is an answer; answers who gave it.
fn ask(socket: &UdpSocket, at: SocketAddr) -> Result<Option<String>> {
    socket.send_to(b"who", at)?;
    let mut answer = [0; 1400];
    match socket.recv_from(&mut answer) {
        // From whom it was asked, or it would be no answer to a program.
        Ok((length, from)) if from == at => {
            let text = String::from_utf8_lossy(&answer[..length]).into_owned();
            Ok(text.split_once(' ').map(|(host, _)| host.to_owned()))
        }
        Ok((_, from)) => anyhow::bail!("asked {at}, and {from} answered"),
        Err(_) => Ok(None),
    }
}

fn number(value: &Value) -> Result<u16> {
    Ok(u16::try_from(value.as_u64().context("no number")?)?)
}

#[test]
fn a_udp_service_answers_at_every_address_and_a_client_outlives_its_endpoint() -> Result<()> {
    let cluster = TestCluster::start("story-udp")?;
    cluster.apply_text(&udp_pods()?)?;
    cluster.kubectl(&["rollout", "status", "deployment/udp", "--timeout=60s"])?;
    let service = cluster.get(&["service", "udp"])?;
    let cluster_ip: Ipv4Addr = service["spec"]["clusterIP"].as_str().context("no address")?.parse()?;
    let node_port = number(&service["spec"]["ports"][0]["nodePort"])?;
    for at in [SocketAddr::from((cluster_ip, 53)), SocketAddr::from((NODE_IP, node_port))] {
        let socket = cluster.inside(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let first = cluster.wait_for(&format!("an answer of {at}"), || ask(&socket, at))?;
        // The kernel remembers who answered this socket; when that one is gone, another must.
        cluster.kubectl(&["delete", "pod", &first])?;
        let other = cluster
            .wait_for("an answer of another pod", || Ok(ask(&socket, at)?.filter(|host| *host != first)))?;
        ensure!(cluster.pods("app=udp")?.iter().any(|pod| pod.name == other), "{other} is no pod");
        cluster.kubectl(&["rollout", "status", "deployment/udp", "--timeout=60s"])?;
    }
    cluster.stop()
}

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: nginx:alpine}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "busybox:1.36", command: [sh, -c, "trap exit TERM; sleep 3600 & wait"]}]
"#;

#[test]
fn a_node_port_is_open_on_the_node_for_it_and_its_pods_until_the_service_has_another_type() -> Result<()> {
    let cluster = TestCluster::start("story-nodeport")?;
    cluster.apply_text(WEB)?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    let service = cluster.get(&["service", "web"])?;
    let node_port = number(&service["spec"]["ports"][0]["nodePort"])?;
    ensure!((30000..=32767).contains(&node_port), "{node_port}");
    let from_node = || cluster.inside(|| http_get(&NODE_IP.to_string(), node_port));
    let page = cluster.wait_for("the page on the node", || Ok(from_node().ok()))?;
    has(&page.to_lowercase(), &["nginx"])?;
    let url = format!("http://{NODE_IP}:{node_port}/");
    let page = cluster.kubectl(&["exec", "client", "--", "wget", "-q", "-O", "-", &url])?;
    has(&page.to_lowercase(), &["nginx"])?;

    // A Service without endpoints refuses at once, and does not leave one waiting.
    cluster.kubectl(&["scale", "deployment/web", "--replicas=0"])?;
    cluster.wait_for("the port to refuse", || {
        let error = from_node().err().map(|e| format!("{e:#}")).unwrap_or_default();
        Ok(error.contains("refused").then_some(()))
    })?;
    cluster.kubectl(&["scale", "deployment/web", "--replicas=1"])?;
    cluster.wait_for("the page to be back", || Ok(from_node().ok()))?;

    let taken = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: other}}\nspec: {{type: NodePort, selector: {{app: web}}, \
         ports: [{{port: 80, nodePort: {node_port}}}]}}\n"
    );
    has(&cluster.apply_text_fails(&taken)?, &["provided port is already allocated"])?;
    cluster.kubectl(&[
        "patch",
        "service",
        "web",
        "--type=merge",
        "-p",
        r#"{"spec": {"type": "ClusterIP"}}"#,
    ])?;
    cluster.wait_for("the port to be closed", || Ok(from_node().is_err().then_some(())))?;
    cluster.apply_text(&taken)?;
    cluster.wait_for("the page of the other Service", || Ok(from_node().ok()))?;
    cluster.stop()
}

/// Each says through a file whether it is well.
const PROBED: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: moody, labels: {app: moody}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: busybox:1.36
    command: [sh, -c, "trap exit TERM; mkdir -p /www; touch /www/ready /www/alive; httpd -p 80 -h /www; sleep 3600 & wait"]
    readinessProbe: {httpGet: {path: /ready, port: 80}, periodSeconds: 1, failureThreshold: 1}
    livenessProbe: {exec: {command: [cat, /www/alive]}, periodSeconds: 1, failureThreshold: 2}
---
apiVersion: v1
kind: Service
metadata: {name: moody}
spec: {selector: {app: moody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: never}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: busybox:1.36
    command: [sh, -c, "trap exit TERM; sleep 3600 & wait"]
    startupProbe: {tcpSocket: {port: 81}, periodSeconds: 1, failureThreshold: 2}
    livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1}
"#;

fn ready_addresses(cluster: &TestCluster, service: &str) -> Result<usize> {
    let slices = cluster.get(&["endpointslices", "-l", &format!("kubernetes.io/service-name={service}")])?;
    let all = slices["items"].as_array().into_iter().flatten();
    let endpoints = all.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    Ok(endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true).count())
}

fn events_of(cluster: &TestCluster, pod: &str) -> Result<String> {
    cluster.kubectl(&["get", "events", "--field-selector", &format!("involvedObject.name={pod}")])
}

#[test]
fn probes_that_fail_take_a_pod_from_its_service_restart_it_and_say_why() -> Result<()> {
    let cluster = TestCluster::start("story-probes")?;
    cluster.apply_text(PROBED)?;
    cluster.wait_for("the pod to be in its Service", || {
        Ok((ready_addresses(&cluster, "moody")? == 1).then_some(()))
    })?;
    let container = |pod: &str| -> Result<Value> {
        Ok(cluster.get(&["pod", pod])?["status"]["containerStatuses"][0].clone())
    };

    cluster.kubectl(&["exec", "moody", "--", "rm", "/www/ready"])?;
    cluster.wait_for("the pod to leave its Service", || {
        Ok((ready_addresses(&cluster, "moody")? == 0).then_some(()))
    })?;
    ensure!(container("moody")?["restartCount"] == 0, "a readiness probe restarts nothing");
    has(
        &events_of(&cluster, "moody")?,
        &["Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404"],
    )?;
    cluster.kubectl(&["exec", "moody", "--", "touch", "/www/ready"])?;
    cluster
        .wait_for("the pod to come back", || Ok((ready_addresses(&cluster, "moody")? == 1).then_some(())))?;

    cluster.kubectl(&["exec", "moody", "--", "rm", "/www/alive"])?;
    let restarted = cluster.wait_for("the container to be restarted", || {
        Ok(Some(container("moody")?).filter(|c| c["restartCount"] == 1 && c["ready"] == true))
    })?;
    ensure!(restarted["lastState"]["terminated"].is_object(), "{restarted}");
    has(
        &events_of(&cluster, "moody")?,
        &[
            "Liveness probe failed: cat: can't open '/www/alive'",
            "Container c failed liveness probe, will be restarted",
        ],
    )?;

    // One that never starts is ended by its startup probe; the liveness probe is not asked before.
    cluster.wait_for("the other to be restarted", || {
        let status = container("never")?;
        Ok((status["restartCount"].as_u64() >= Some(1)).then_some(()))
    })?;
    let status = container("never")?;
    ensure!(status["started"] == false && status["ready"] == false, "{status}");
    let events = events_of(&cluster, "never")?;
    has(
        &events,
        &[
            "Startup probe failed: dial tcp",
            "connection refused",
            "Container c failed startup probe, will be restarted",
        ],
    )?;
    ensure!(!events.contains("Liveness probe failed"), "{events}");
    cluster.stop()
}

#[test]
fn a_terminal_that_is_resized_tells_the_program_in_the_pod() -> Result<()> {
    let cluster = TestCluster::start("story-terminal")?;
    cluster.apply_text(WEB)?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"])?;
    let shell = cluster.kubectl_command(&["exec", "-it", "client", "--", "sh"]);
    let terminal = Terminal::start(&shell, 40, 132)?;
    cluster.wait_for("a prompt", || Ok(terminal.shown().contains('#').then_some(())))?;
    let size = |wanted: &str| {
        cluster.wait_for(&format!("a terminal of {wanted}"), || {
            terminal.type_in("stty size\n")?;
            Ok(terminal.shown().contains(wanted).then_some(()))
        })
    };
    size("40 132")?;
    terminal.resize(50, 100)?;
    size("50 100")?;
    terminal.resize(24, 80)?;
    size("24 80")?;
    drop(terminal);
    cluster.stop()
}
