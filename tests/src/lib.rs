//! A real cluster for a test: `skiff up` in namespaces of its own, driven with stock kubectl.
//!
//! A test reads as a story: [`TestCluster::start`], [`TestCluster::kubectl`], [`TestCluster::wait_for`],
//! [`http_get`]. [`TestCluster::stop`] deletes what the story made and runs the whole-cluster checker, twice: nothing of it
//! may be left in the cluster, and when the cluster is gone, nothing on the machine.
//!
//! [`drills`] are the faults that a story may bring about, [`rounds`] drills that are repeated and counted.
//!
//! `cargo xtask test` names the program and the registry in `SKIFF_BIN` and `SKIFF_TEST_REGISTRIES`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

pub mod drills;
mod inventory;
mod leaks;
mod nodes;
pub mod rounds;
mod terminal;
pub mod writers;

use inventory::Inventory;
pub use nodes::NodePaths;
pub use terminal::Terminal;

/// One throw-away cluster.
pub struct TestCluster {
    name: String,
    program: PathBuf,
    registries: PathBuf,
    shape: Shape,
    /// What there was when it was new.
    fresh: Option<Inventory>,
    stopped: bool,
}

#[derive(Clone, Copy)]
struct Shape {
    n_nodes: u8,
    is_routed: bool,
}

/// What stories make, and delete by hand; all else must go with its owner.
const MADE: &str = "deployments,pods,services,configmaps,secrets,endpoints";

/// How long a story waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const MAX_THROWN_AWAY: usize = 5;

impl TestCluster {
    /// Starts a cluster of the program and the registry that the environment names.
    pub fn start(name: &str) -> Result<TestCluster> {
        TestCluster::start_prepared(name, |_| Ok(())).map(|(cluster, ())| cluster)
    }

    /// The same, of a cluster whose data directory was made ready for it: with a small disk mounted there, say.
    pub fn start_prepared<T>(
        name: &str,
        prepare: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<(TestCluster, T)> {
        TestCluster::begin(name, Shape { n_nodes: 1, is_routed: false }, prepare)
    }

    /// The same, of a cluster with several nodes.
    pub fn start_nodes(name: &str, n_nodes: u8) -> Result<TestCluster> {
        let shape = Shape { n_nodes, is_routed: false };
        TestCluster::begin(name, shape, |_| Ok(())).map(|(cluster, ())| cluster)
    }

    /// The same, with a router between the nodes.
    pub fn start_routed(name: &str, n_nodes: u8) -> Result<TestCluster> {
        let shape = Shape { n_nodes, is_routed: true };
        TestCluster::begin(name, shape, |_| Ok(())).map(|(cluster, ())| cluster)
    }

    fn begin<T>(
        name: &str,
        shape: Shape,
        prepare: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<(TestCluster, T)> {
        let named = |variable: &str| {
            std::env::var(variable)
                .with_context(|| format!("{variable} is not set; run the stories with: cargo xtask test"))
        };
        let (program, registries) = (named("SKIFF_BIN")?, named("SKIFF_TEST_REGISTRIES")?);
        let mut cluster = TestCluster {
            name: name.into(),
            program: program.into(),
            registries: registries.into(),
            shape,
            fresh: None,
            stopped: false,
        };
        // What an earlier run that was killed has left, by its own record.
        let _ = cluster.skiff(&["down", "--name", name]);
        let prepared = prepare(&cluster.data_dir())?;
        cluster.up()?;
        // What a new cluster makes of itself comes within moments; then it is still.
        let mut last = None;
        let still = cluster.wait_for("a quiet cluster", || {
            let now = Inventory::take(&cluster)?;
            let settled = now.has_accounts() && last.as_ref() == Some(&now);
            let found = settled.then(|| last.take()).flatten();
            last = Some(now);
            Ok(found)
        })?;
        cluster.fresh = Some(still);
        Ok((cluster, prepared))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Starts what of the cluster does not run.
    pub fn up(&self) -> Result<()> {
        self.up_with(&[])
    }

    /// The same, with more in the environment of what it starts.
    pub fn up_with(&self, environment: &[(&str, &str)]) -> Result<()> {
        let registries = self.registries.to_string_lossy().into_owned();
        let nodes = self.shape.n_nodes.to_string();
        let mut args = vec!["up", "--name", &self.name, "--registries", &registries, "--nodes", &nodes];
        args.extend(self.shape.is_routed.then_some("--routed"));
        let mut command = Command::new(&self.program);
        command.args(&args).envs(environment.iter().copied());
        printed(command.output().context("running skiff")?, "skiff", &args).map(drop)
    }

    /// Runs the program; answers what it printed.
    pub fn skiff(&self, args: &[&str]) -> Result<String> {
        printed(Command::new(&self.program).args(args).output().context("running skiff")?, "skiff", args)
    }

    /// Where the cluster's node keeps its state.
    pub fn data_dir(&self) -> PathBuf {
        PathBuf::from("/var/lib/skiff/clusters").join(&self.name)
    }

    /// What `skiff up` writes of the cluster.
    pub fn record(&self) -> PathBuf {
        PathBuf::from("/var/lib/skiff/clusters").join(format!("{}.json", self.name))
    }

    /// The network namespace that the cluster's node is in.
    pub fn netns(&self) -> PathBuf {
        PathBuf::from("/run/skiff/clusters").join(&self.name).join("net")
    }

    /// Runs something on a thread within the network namespace of the cluster's first node.
    pub fn inside<T: Send>(&self, run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        within(&self.netns(), run)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("kubeconfig")
    }

    /// The administrator's client.
    pub async fn client(&self) -> Result<kube::Client> {
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        let kubeconfig = kube::config::Kubeconfig::read_from(self.kubeconfig())?;
        let options = kube::config::KubeConfigOptions::default();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        config.proxy_url = None;
        Ok(kube::Client::try_from(config)?)
    }

    /// A kubectl that is about to run against this cluster.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(args)
            .env("KUBECONFIG", self.kubeconfig())
            .env_remove("HTTPS_PROXY")
            .env_remove("https_proxy");
        command
    }

    /// Runs kubectl; answers what it printed.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let run = || self.kubectl_command(args).output().context("running kubectl");
        let mut output = run()?;
        // Older kubectl listens before it knows its streams, and then says that it threw away what came first.
        for _ in 0..MAX_THROWN_AWAY {
            if !String::from_utf8_lossy(&output.stderr).contains("Unknown stream id") {
                break;
            }
            output = run()?;
        }
        printed(output, "kubectl", args)
    }

    /// A kubectl on the first node itself, which needs no forwarder.
    pub fn kubectl_inside(&self, args: &[&str]) -> Result<String> {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.netns().display()))
            .arg("kubectl")
            .arg(format!("--kubeconfig={}", self.data_dir().join("kubeconfig.inside").display()))
            .args(args)
            .env_remove("HTTPS_PROXY")
            .env_remove("https_proxy")
            .output()
            .context("running kubectl within the cluster")?;
        printed(output, "kubectl (on the node)", args)
    }

    /// Runs a kubectl that must fail; answers its error.
    pub fn kubectl_fails(&self, args: &[&str]) -> Result<String> {
        let output = self.kubectl_command(args).output().context("running kubectl")?;
        ensure!(!output.status.success(), "kubectl {} succeeded", args.join(" "));
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn apply(&self, manifest: &str) -> Result<Output> {
        let mut kubectl = self
            .kubectl_command(&["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("running kubectl apply")?;
        kubectl.stdin.take().context("no input")?.write_all(manifest.as_bytes())?;
        Ok(kubectl.wait_with_output()?)
    }

    /// Applies a manifest.
    pub fn apply_text(&self, manifest: &str) -> Result<String> {
        printed(self.apply(manifest)?, "kubectl", &["apply"])
    }

    /// Applies a manifest that must be refused; answers the error.
    pub fn apply_text_fails(&self, manifest: &str) -> Result<String> {
        let output = self.apply(manifest)?;
        ensure!(!output.status.success(), "the manifest was taken");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        Ok(serde_json::from_str(&self.kubectl(&all)?)?)
    }

    /// Looks until `look` finds what it is looking for.
    pub fn wait_for<T>(&self, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let last = look();
            if let Ok(Some(found)) = last {
                return Ok(found);
            }
            if Instant::now() > deadline {
                let pods = self.kubectl(&["get", "pods", "-A", "-o", "wide"]).unwrap_or_default();
                let events = self.kubectl(&["get", "events", "-A"]).unwrap_or_default();
                let why = last.err().map(|e| format!(" ({e:#})")).unwrap_or_default();
                bail!("{what} has not come true{why}\n{pods}\n{events}");
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// The names, IPs and container IDs of the pods that a selector finds, by name.
    pub fn pods(&self, selector: &str) -> Result<Vec<PodSummary>> {
        let list = self.get(&["pods", "-l", selector])?;
        let mut pods: Vec<PodSummary> =
            list["items"].as_array().into_iter().flatten().map(PodSummary::of).collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(pods)
    }

    /// The published address of a Service.
    pub fn address(&self, service: &str) -> Result<String> {
        self.wait_for(&format!("an address of {service}"), || {
            let service = self.get(&["service", service])?;
            Ok(service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned))
        })
    }

    /// The pid of the cluster's server.
    pub fn server_pid(&self) -> Result<i32> {
        let record = std::fs::read(self.record())?;
        let record: Value = serde_json::from_slice(&record)?;
        let pid = record["server"]["pid"].as_i64().context("the cluster has no server")?;
        Ok(i32::try_from(pid)?)
    }

    /// Kills the server at once and starts it again.
    pub fn kill_server(&self) -> Result<()> {
        self.server()?.kill()?;
        self.up()
    }

    /// The cluster's server, to do something to.
    pub fn server(&self) -> Result<drills::Process> {
        drills::Process::open(self.server_pid()?)
    }

    /// What publishes the cluster on the loopback, to do something to.
    pub fn forwarder(&self) -> Result<drills::Process> {
        let record: Value = serde_json::from_slice(&std::fs::read(self.record())?)?;
        let pid = record["forwarder"]["pid"].as_i64().context("the cluster has no forwarder")?;
        drills::Process::open(i32::try_from(pid)?)
    }

    /// Deletes all that was made since the cluster was new, and fails if anything of it is left.
    fn empty(&self) -> Result<()> {
        let Some(fresh) = &self.fresh else { return Ok(()) };
        let made = self.get(&[MADE])?;
        for item in made["items"].as_array().into_iter().flatten() {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            let (kind, name) = (text(&item["kind"]), text(&item["metadata"]["name"]));
            let namespace = text(&item["metadata"]["namespace"]);
            let is_owned = item["metadata"]["ownerReferences"].is_array();
            if !is_owned && !fresh.objects.contains(&format!("{namespace} {kind}/{name}")) {
                self.kubectl(&["delete", &kind, &name, "--ignore-not-found", "--grace-period=2"])?;
            }
        }
        let mut changes = Vec::new();
        let back = self.wait_for("the end of all that the story made", || {
            changes = Inventory::take(self)?.changes_since(fresh);
            Ok(changes.is_empty().then_some(()))
        });
        back.with_context(|| format!("changed since the cluster was new:\n  {}", changes.join("\n  ")))
    }

    /// The same, of a cluster that is not what it was when it was new, and need not become so again.
    pub fn stop_changed(mut self) -> Result<()> {
        self.fresh = None;
        self.stop()
    }

    /// Deletes what the story made, ends the cluster, and fails if anything of either is left.
    pub fn stop(mut self) -> Result<()> {
        self.empty()?;
        self.stopped = true;
        self.skiff(&["down", "--name", &self.name])?;
        leaks::check(&self.name)
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        // A story that failed half-way: clean up, and leave its own error to speak.
        if !self.stopped {
            let log = format!("/var/lib/skiff/clusters/{}/server.log", self.name);
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- server log\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            let _ = self.skiff(&["down", "--name", &self.name]);
        }
    }
}

/// What of a pod must stay the same while it is not concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSummary {
    pub name: String,
    pub ip: String,
    pub container_ids: Vec<String>,
    pub ready: bool,
}

impl PodSummary {
    fn of(pod: &Value) -> PodSummary {
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        PodSummary {
            name: pod["metadata"]["name"].as_str().unwrap_or_default().into(),
            ip: pod["status"]["podIP"].as_str().unwrap_or_default().into(),
            container_ids: statuses
                .iter()
                .filter_map(|s| s["containerID"].as_str().map(str::to_owned))
                .collect(),
            ready: conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"),
        }
    }
}

/// Runs something on a thread within a network namespace.
pub fn within<T: Send>(netns: &Path, run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    use nix::sched::{CloneFlags, setns};
    let namespace = std::fs::File::open(netns).with_context(|| format!("opening {}", netns.display()))?;
    let enter = || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
        run()
    };
    std::thread::scope(|scope| scope.spawn(enter).join())
        .map_err(|_| anyhow::anyhow!("what ran within {} panicked", netns.display()))?
}

/// Fails unless a text holds all of the words.
#[track_caller]
pub fn has(text: &str, wanted: &[&str]) -> Result<()> {
    let place = std::panic::Location::caller();
    for word in wanted {
        ensure!(text.contains(word), "{place}: {word:?} is missing in:\n{text}");
    }
    Ok(())
}

fn printed(output: Output, program: &str, args: &[&str]) -> Result<String> {
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{program} {} failed: {}{}", args.join(" "), out, error);
    Ok(out.into_owned())
}

/// The body of a page on loopback.
pub fn http_get(host: &str, port: u16) -> Result<String> {
    let address: SocketAddr = format!("{host}:{port}").parse()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}
