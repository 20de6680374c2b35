//! Two `skiff server --datastore` over one etcd, each with its node in a network namespace of its own.
//!
//! ```text
//!  lan 10.98.0.1: bridge, etcd ─┬─ a 10.98.0.2: skiff server
//!                               └─ b 10.98.0.3: skiff server
//! ```
//!
//! `cargo xtask test` names etcd in `SKIFF_TEST_ETCD`; without that the test says so and tests nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use skiff_tests::drills::Started;

const LAN: &str = "skiff-servers-lan";
const ETCD_IP: &str = "10.98.0.1";
/// For whatever a story waits for.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const LEASES: [&str; 2] = ["kube-scheduler", "kube-controller-manager"];

fn done(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `ip` with the words of a line.
fn ip(line: &str) -> Result<()> {
    done(Command::new("ip").args(line.split(' '))).map(drop)
}

fn netns(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        let last = look();
        if let Ok(Some(found)) = last {
            return Ok(found);
        }
        if Instant::now() > end {
            bail!("{what} has not come true{}", last.err().map(|e| format!(": {e:#}")).unwrap_or_default());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Network namespaces that are joined. Dropping them removes them.
struct Lan;

impl Lan {
    fn make() -> Result<Lan> {
        // What an earlier run that was killed has left.
        Lan::remove();
        let lan = Lan;
        ip(&format!("netns add {LAN}"))?;
        ip(&format!("-n {LAN} link set lo up"))?;
        ip(&format!("-n {LAN} link add br0 type bridge"))?;
        ip(&format!("-n {LAN} addr add {ETCD_IP}/24 dev br0"))?;
        ip(&format!("-n {LAN} link set br0 up"))?;
        for name in ["a", "b"] {
            let (node, port, address) = (node_netns(name), format!("to-{name}"), address(name));
            ip(&format!("netns add {node}"))?;
            ip(&format!("-n {node} link set lo up"))?;
            ip(&format!("-n {node} link add eth0 type veth peer name {port} netns {LAN}"))?;
            ip(&format!("-n {LAN} link set {port} master br0 up"))?;
            ip(&format!("-n {node} addr add {address}/24 dev eth0"))?;
            ip(&format!("-n {node} link set eth0 up"))?;
            ip(&format!("-n {node} route add default via {ETCD_IP}"))?;
        }
        Ok(lan)
    }

    fn remove() {
        for name in [LAN.to_owned(), node_netns("a"), node_netns("b")] {
            // Mostly there is none.
            let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        Lan::remove();
    }
}

fn node_netns(name: &str) -> String {
    format!("skiff-servers-{name}")
}

fn address(name: &str) -> &'static str {
    if name == "a" { "10.98.0.2" } else { "10.98.0.3" }
}

fn other(name: &str) -> &'static str {
    if name == "a" { "b" } else { "a" }
}

/// The story's programs and files.
struct Stage {
    // In the order in which they go: processes, networks, files.
    servers: [Option<Started>; 2],
    etcd: Option<Started>,
    _lan: Lan,
    folder: tempfile::TempDir,
    skiff: PathBuf,
    etcd_program: PathBuf,
}

impl Stage {
    /// `None`, with a word about it, where there is no etcd.
    fn make() -> Result<Option<Stage>> {
        let Some(etcd_program) = std::env::var_os("SKIFF_TEST_ETCD") else {
            println!("SKIFF_TEST_ETCD names no etcd: two servers were not started");
            return Ok(None);
        };
        let skiff = std::env::var_os("SKIFF_BIN").context("SKIFF_BIN is not set; run: cargo xtask test")?;
        Ok(Some(Stage {
            servers: [None, None],
            etcd: None,
            _lan: Lan::make()?,
            folder: tempfile::tempdir()?,
            skiff: skiff.into(),
            etcd_program: etcd_program.into(),
        }))
    }

    fn path(&self, name: &str, file: &str) -> PathBuf {
        self.folder.path().join(name).join(file)
    }

    fn text(&self, name: &str, file: &str) -> String {
        self.path(name, file).to_string_lossy().into_owned()
    }

    fn start_etcd(&mut self) -> Result<()> {
        let arguments = [
            self.etcd_program.to_string_lossy().into_owned(),
            format!("--data-dir={}", self.folder.path().join("etcd").display()),
            format!("--listen-client-urls=http://{ETCD_IP}:2379"),
            format!("--advertise-client-urls=http://{ETCD_IP}:2379"),
            "--log-level=error".to_owned(),
        ];
        let log = self.folder.path().join("etcd.log");
        self.etcd = Some(Started::like(&arguments, &netns(LAN), &log, &[])?);
        Ok(())
    }

    /// What names a server's directories, to the server itself and to a teardown.
    fn layout(&self, name: &str) -> Vec<String> {
        [
            ("--data-dir", self.text(name, "data")),
            ("--run-dir", self.text(name, "run")),
            ("--log-dir", self.text(name, "logs")),
            ("--cgroup-root", node_netns(name)),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    fn start(&mut self, name: &str) -> Result<()> {
        fs::create_dir_all(self.path(name, ""))?;
        let mut arguments = vec![self.skiff.to_string_lossy().into_owned(), "server".to_owned()];
        arguments.extend(self.layout(name));
        let pods = if name == "a" { "10.42.0.0/24" } else { "10.42.1.0/24" };
        let more = [
            ("--datastore", format!("http://{ETCD_IP}:2379")),
            ("--node-name", name.to_owned()),
            ("--node-ip", address(name).to_owned()),
            ("--pod-cidr", pods.to_owned()),
            ("--write-kubeconfig", self.text(name, "kubeconfig")),
            ("--eviction-hard", "memory.available<1Mi".to_owned()),
        ];
        arguments.extend(more.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
        let started = Started::like(&arguments, &netns(&node_netns(name)), &self.path(name, "log"), &[])?;
        *self.server(name) = Some(started);
        Ok(())
    }

    fn server(&mut self, name: &str) -> &mut Option<Started> {
        &mut self.servers[usize::from(name == "b")]
    }

    /// Without a warning.
    fn kill(&mut self, name: &str) {
        self.server(name).take();
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(name, "log")).unwrap_or_default()
    }

    fn waits_to_say(&mut self, name: &str, words: &str) -> Result<()> {
        let is_said = until(&format!("{name} to say {words:?}"), || {
            let runs = self.server(name).as_mut().context("it was not started")?.runs()?;
            Ok(if self.log(name).contains(words) { Some(true) } else { (!runs).then_some(false) })
        })?;
        ensure!(is_said, "{name} has ended before it said {words:?}:\n{}", self.log(name));
        Ok(())
    }

    fn kubectl(&self, name: &str, line: &str) -> Result<String> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", netns(&node_netns(name)).display())).arg("kubectl");
        command.env("KUBECONFIG", self.path(name, "kubeconfig"));
        command.env_remove("HTTPS_PROXY").env_remove("https_proxy");
        done(command.args(line.split(' ')))
    }

    fn get(&self, name: &str, line: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(name, &format!("get -o json {line}"))?)?)
    }

    /// A Lease of the elections, by a server.
    fn lease(&self, name: &str, lease: &str) -> Result<Held> {
        let spec = self.get(name, &format!("-n kube-system lease {lease}"))?["spec"].take();
        let text = |field: &str| spec[field].as_str().with_context(|| format!("no {field} in {spec}"));
        let holder = text("holderIdentity")?;
        let holder = holder.split_once('_').with_context(|| format!("the holder {holder:?}"))?.0;
        Ok(Held {
            holder: holder.to_owned(),
            acquired: text("acquireTime")?.parse()?,
            renewed: text("renewTime")?.parse()?,
            lasts: SignedDuration::from_secs(spec["leaseDurationSeconds"].as_i64().context("no duration")?),
            n_transitions: spec["leaseTransitions"].as_i64().unwrap_or_default(),
        })
    }

    /// The addresses where the Service `kubernetes` leads, by a server.
    fn endpoints(&self, name: &str) -> Result<Vec<String>> {
        let endpoints = self.get(name, "endpoints kubernetes")?;
        let addresses = endpoints["subsets"][0]["addresses"].as_array().cloned().unwrap_or_default();
        Ok(addresses.iter().filter_map(|address| address["ip"].as_str().map(str::to_owned)).collect())
    }

    /// Pods of a Deployment that nothing runs, by a server.
    fn n_pods(&self, name: &str) -> Result<usize> {
        let pods = self.get(name, "pods -l app=waiting")?;
        Ok(pods["items"].as_array().context("no list")?.len())
    }

    /// Ends all, and what is left of the nodes.
    fn stop(mut self) -> Result<()> {
        for name in ["a", "b"] {
            self.kill(name);
            let mut teardown = Command::new("nsenter");
            teardown.arg(format!("--net={}", netns(&node_netns(name)).display())).arg(&self.skiff);
            done(teardown.arg("teardown").args(self.layout(name)))?;
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() || self.servers.iter().any(Option::is_some) {
            // A story that failed half-way.
            for name in ["a", "b"] {
                let log = self.log(name);
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("--- the log of {name}\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            }
        }
    }
}

/// Who holds a Lease, and since when.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    holder: String,
    acquired: Timestamp,
    renewed: Timestamp,
    lasts: SignedDuration,
    n_transitions: i64,
}

const WAITING: &str = r#"{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "waiting"}, "spec": {
    "replicas": 2, "selector": {"matchLabels": {"app": "waiting"}},
    "template": {"metadata": {"labels": {"app": "waiting"}}, "spec": {
        "nodeSelector": {"there-is": "none"}, "containers": [{"name": "c", "image": "none"}]}}}}"#;

#[test]
fn two_servers_over_one_etcd_are_one_cluster_and_the_one_left_takes_over() -> Result<()> {
    let Some(mut stage) = Stage::make()? else { return Ok(()) };

    // A server whose etcd is away waits for it, and says so.
    stage.start("a")?;
    stage.waits_to_say("a", "waiting for the datastore")?;
    ensure!(!stage.log("a").contains("the API answers"), "it answers without its store");
    stage.start_etcd()?;
    stage.waits_to_say("a", "the node is ready")?;

    // One that has an authority of its own is told what to do, and is one of the cluster once that is done.
    stage.start("b")?;
    until("b to end", || Ok((!stage.servers[1].as_mut().context("b")?.runs()?).then_some(())))?;
    let refused = stage.log("b");
    ensure!(refused.contains("copy ca.crt and ca.key"), "{refused}");
    for file in ["data/pki/ca.crt", "data/pki/ca.key"] {
        fs::copy(stage.path("a", file), stage.path("b", file)).with_context(|| format!("copying {file}"))?;
    }
    stage.start("b")?;
    stage.waits_to_say("b", "the node is ready")?;

    // What is written to one is there at the other, at once.
    for name in ["a", "b"] {
        stage.kubectl(name, &format!("create configmap from-{name}"))?;
        stage.kubectl(other(name), &format!("get configmap from-{name}"))?;
    }
    for name in ["a", "b"] {
        until(&format!("both nodes to be ready, by {name}"), || {
            let nodes = stage.kubectl(name, "get nodes --no-headers")?;
            Ok((nodes.matches(" Ready ").count() == 2).then_some(()))
        })?;
        until(&format!("both endpoints, by {name}"), || {
            Ok((stage.endpoints(name)? == [address("a"), address("b")]).then_some(()))
        })?;
    }

    // One set of controllers works: that of the server which was first.
    for lease in LEASES {
        for name in ["a", "b"] {
            ensure!(stage.lease(name, lease)?.holder == "a", "{lease}: {:?}", stage.lease(name, lease)?);
        }
    }
    ensure!(stage.log("b").matches("another one leads").count() == LEASES.len(), "b:\n{}", stage.log("b"));
    let manifest = stage.path("b", "waiting.json");
    fs::write(&manifest, WAITING)?;
    stage.kubectl("b", &format!("apply -f {}", manifest.display()))?;
    for name in ["a", "b"] {
        until(&format!("the pods, by {name}"), || Ok((stage.n_pods(name)? == 2).then_some(())))?;
    }

    // The leader dies. Its Leases tell when it was last there, and when the other took over: not before they had run out.
    stage.kill("a");
    // Both are looked at before either can be taken over.
    let lasts = LEASES.map(|lease| stage.lease("b", lease));
    for (lease, last) in LEASES.into_iter().zip(lasts) {
        let last = last?;
        ensure!(last.holder == "a", "{lease}: {last:?}");
        let next = until(&format!("b to hold {lease}"), || {
            let held = stage.lease("b", lease)?;
            Ok((held.holder == "b").then_some(held))
        })?;
        ensure!(next.n_transitions == last.n_transitions + 1, "{lease}: {last:?}, {next:?}");
        let gap = next.acquired.duration_since(last.renewed);
        println!("{lease}: taken {gap:#} after it was last renewed");
        ensure!(gap >= last.lasts, "{lease}: taken after {gap}: {last:?}, {next:?}");
        ensure!(gap < SignedDuration::from_secs(15), "{lease}: taken after {gap}: {last:?}, {next:?}");
    }
    until("the endpoint of a to go with its lease", || {
        Ok((stage.endpoints("b")? == [address("b")]).then_some(()))
    })?;
    stage.kubectl("b", "scale deployment waiting --replicas=3")?;
    until("the pods that b's controllers made", || Ok((stage.n_pods("b")? == 3).then_some(())))?;

    // It comes back, and waits for its turn.
    stage.start("a")?;
    stage.waits_to_say("a", "the node is ready")?;
    until("the endpoint of a to come back", || {
        Ok((stage.endpoints("b")? == [address("a"), address("b")]).then_some(()))
    })?;
    for lease in LEASES {
        ensure!(stage.lease("a", lease)?.holder == "b", "{lease}: {:?}", stage.lease("a", lease)?);
    }
    ensure!(stage.n_pods("a")? == 3, "{} pods", stage.n_pods("a")?);
    stage.stop()
}
