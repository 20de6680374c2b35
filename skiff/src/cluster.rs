//! Throw-away clusters: `skiff up` and `skiff down`.
//!
//! What a cluster is made of lies beside its data and outlives the machine's restart: `skiff up` then starts all of it again.
//!
//! Each node lives in a network namespace of its own, so that nothing of the host's network changes. Its one link, `eth0`,
//! leads to a bridge in another namespace that plays the LAN, or to a router there, and no further; a forwarder on the host
//! publishes the API and LoadBalancer Services on loopback addresses, and lets the node fetch images as if from the host.
//!
//! ```text
//!  host: 127.64.0.1:6443 ─┐                   ┌─ NAME-1 ──────────────┐   ┌─ LAN ──┐   ┌─ NAME-2 ──────────┐
//!        127.64.1.1:80   ─┼─ skiff forward ═══┤ skiff server, pods, … ├───┤ bridge ├───┤ skiff agent, pods │
//!        registries     ◄─┘                   └───────────────────────┘   └────────┘   └───────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use skiff_network::netns;

use crate::agent;
use crate::layout::Layout;
use crate::node::remove_groups;
use crate::pki::{Clock, Pair, Pki, write_private};
use crate::process::Started;
use crate::progress::Steps;
use crate::token;

mod lan;
pub(crate) mod logs;

/// A cluster as it is written to a file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Cluster {
    pub(crate) name: String,
    /// Its number on this machine, which gives it loopback addresses of its own.
    pub(crate) index: u8,
    pub(crate) registries: PathBuf,
    /// What the node's own processes show the forwarder: a pod on the node's network must not pass as one of them.
    egress_password: String,
    server: Option<Started>,
    forwarder: Option<Started>,
    /// Of the second node and those after it.
    #[serde(default)]
    agents: Vec<Option<Started>>,
    /// Whether each node is on a segment of its own, with a router between them.
    #[serde(default)]
    is_routed: bool,
}

/// One file a cluster; no cluster's name has a dot.
const RECORDS: &str = "/var/lib/skiff/clusters";
/// What a restart of the machine ends.
const CLUSTERS: &str = "/run/skiff/clusters";
/// 127.64.0.0/16 for the first cluster, up to 127.127.0.0/16.
const FIRST_LOOPBACK: u8 = 64;
const MAX_CLUSTERS: u8 = 64;
pub(crate) const API_PORT: u16 = 6443;
/// The first node's address on the LAN.
pub(crate) const NODE_IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const MAX_NODES: u8 = 100;
/// Where the forwarder lets the node's own processes reach registries.
pub(crate) const EGRESS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 3128);
/// A throw-away cluster takes what the machine has: one that has 9 % of a large disk left is no reason to take no pods.
const EVICTION_HARD: &str = "memory.available<100Mi,nodefs.available<1%,nodefs.inodesFree<1%";
const START_TIMEOUT: Duration = Duration::from_secs(60);
const TOKEN_TTL: SignedDuration = SignedDuration::from_mins(10);
const STOP_GRACE: Duration = Duration::from_secs(30);

impl Cluster {
    pub(crate) fn open(name: &str) -> Result<Cluster> {
        Cluster::find(name)?
            .ok_or_else(|| anyhow!("there is no cluster {name:?}; start one with: skiff up --name {name}"))
    }

    /// None if there is no cluster of this name.
    fn find(name: &str) -> Result<Option<Cluster>> {
        for path in [record(name), former_record(name)] {
            let reading = || format!("reading {}", path.display());
            match fs::read(&path) {
                Ok(bytes) => return serde_json::from_slice(&bytes).map(Some).with_context(reading),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(reading),
            }
        }
        Ok(None)
    }

    fn save(&self) -> Result<()> {
        fs::create_dir_all(RECORDS).with_context(|| format!("creating {RECORDS}"))?;
        // Whole or not at all: others read it to see which numbers are taken.
        write_private(&record(&self.name), &serde_json::to_string(self)?)
    }

    /// All clusters of this machine.
    fn all() -> Vec<Cluster> {
        let entries =
            [RECORDS, CLUSTERS].into_iter().flat_map(|d| fs::read_dir(d).into_iter().flatten().flatten());
        let names: BTreeSet<String> = entries
            .filter_map(|e| e.file_name().to_str().map(|name| name.trim_end_matches(".json").to_owned()))
            .collect();
        names.iter().filter_map(|name| Cluster::find(name).ok().flatten()).collect()
    }

    /// Of the first node, the server's.
    pub(crate) fn layout(&self) -> Layout {
        Layout::of_cluster(&self.name, &self.registries)
    }

    pub(crate) fn nodes(&self) -> Vec<ClusterNode> {
        let n_nodes = u8::try_from(self.agents.len()).unwrap_or(MAX_NODES).saturating_add(1);
        (1..=n_nodes).map(|number| self.node(number)).collect()
    }

    /// Nodes are counted from 1.
    fn node(&self, number: u8) -> ClusterNode {
        let first = self.layout();
        let layout = match number {
            1 => first,
            _ => first.of_node(number),
        };
        ClusterNode {
            name: format!("{}-{number}", self.name),
            number,
            ip: Ipv4Addr::from_bits(NODE_IP.to_bits() + u32::from(number) - 1),
            netns: layout.run_dir.join("net"),
            layout,
        }
    }

    /// The namespace whose bridge or router joins the nodes.
    fn lan(&self) -> PathBuf {
        self.layout().run_dir.join("lan")
    }

    /// The first node's namespace.
    pub(crate) fn netns(&self) -> PathBuf {
        self.node(1).netns
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.layout().data_dir.join("kubeconfig")
    }

    pub(crate) fn pki(&self) -> Result<Pki> {
        Pki::open(&self.layout().pki(), Clock::Checked)
    }

    pub(crate) fn server_url(&self) -> String {
        format!("https://{}:{API_PORT}", self.api_address())
    }

    pub(crate) fn write_kubeconfig(&self, pki: &Pki, admin: &Pair) -> Result<()> {
        let kubeconfig = pki.kubeconfig(admin, &format!("skiff-{}", self.name), &self.server_url())?;
        write_private(&self.kubeconfig(), &kubeconfig)
    }

    /// An address of this cluster on the host's loopback.
    pub(crate) fn loopback(&self, third: u8, fourth: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, FIRST_LOOPBACK + self.index, third, fourth)
    }

    pub(crate) fn api_address(&self) -> Ipv4Addr {
        self.loopback(0, 1)
    }

    /// User and password for the way out.
    pub(crate) fn egress_credentials(&self) -> String {
        format!("node:{}", self.egress_password)
    }

    fn log(&self, part: &str) -> PathBuf {
        self.layout().data_dir.join(format!("{part}.log"))
    }

    /// Those of all its processes.
    pub(crate) fn logs(&self) -> Vec<PathBuf> {
        let agents = self.nodes().into_iter().skip(1).map(|node| node.log());
        [self.log("server"), self.log("forward")].into_iter().chain(agents).collect()
    }

    fn server_args(&self) -> Vec<String> {
        let mut args = vec!["server".to_owned()];
        args.extend(self.node(1).args());
        let more = [
            ("--tls-san", self.api_address().to_string()),
            ("--service-lb", "false".into()),
            ("--write-kubeconfig", text(&self.layout().data_dir.join("kubeconfig.inside"))),
        ];
        args.extend(more.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
        args
    }

    /// Starts this program in the background, in a node's namespace or on the host.
    fn spawn(&self, log: &Path, args: &[String], inside: Option<&Path>) -> Result<Started> {
        let log = logs::open(log).with_context(|| format!("opening {}", log.display()))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
        let namespace = inside.map(File::open).transpose().context("opening the node's namespace")?;
        if inside.is_some() {
            let proxy = format!("http://{}@{}:{}", self.egress_credentials(), EGRESS.0, EGRESS.1);
            command.env("HTTP_PROXY", &proxy).env("HTTPS_PROXY", &proxy).env_remove("NO_PROXY");
            command.env_remove("no_proxy").env_remove("http_proxy").env_remove("https_proxy");
        }
        // SAFETY: between fork and exec only the system calls `setsid` and `setns` are made; nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::setsid()?;
                if let Some(namespace) = &namespace {
                    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                }
                Ok(())
            });
        }
        let what = args.first().cloned().unwrap_or_default();
        let child = command.spawn().with_context(|| format!("starting skiff {what}"))?;
        Started::of(child.id())
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// One node of a cluster.
pub(crate) struct ClusterNode {
    pub(crate) name: String,
    number: u8,
    ip: Ipv4Addr,
    pub(crate) layout: Layout,
    pub(crate) netns: PathBuf,
}

impl ClusterNode {
    /// What its server or agent is started with.
    fn args(&self) -> Vec<String> {
        let mut args = self.layout_args();
        args.extend([
            "--node-name".to_owned(),
            self.name.clone(),
            "--node-ip".to_owned(),
            self.ip.to_string(),
            "--eviction-hard".to_owned(),
            EVICTION_HARD.to_owned(),
            "--eviction-pressure-transition-period".to_owned(),
            "10s".to_owned(),
            // What was imported for later stays, however full the machine is.
            "--image-gc-high-threshold".to_owned(),
            "100".to_owned(),
        ]);
        args
    }

    /// Also what its teardown is started with.
    fn layout_args(&self) -> Vec<String> {
        let layout = &self.layout;
        [
            ("--data-dir", text(&layout.data_dir)),
            ("--run-dir", text(&layout.run_dir)),
            ("--log-dir", text(&layout.log_dir)),
            ("--registries", text(&layout.registries)),
            ("--cgroup-root", layout.cgroup_root.clone()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    fn log(&self) -> PathBuf {
        self.layout.data_dir.join("agent.log")
    }

    /// Where the token that it joins with lies until it has joined.
    fn token(&self) -> PathBuf {
        self.layout.data_dir.join("token")
    }
}

fn record(name: &str) -> PathBuf {
    Path::new(RECORDS).join(format!("{name}.json"))
}

/// Where earlier versions kept it: gone after a restart of the machine.
fn former_record(name: &str) -> PathBuf {
    Path::new(CLUSTERS).join(name).join("cluster.json")
}

/// Starts a cluster, or makes sure that it runs, with as many nodes as asked for.
pub(crate) async fn up(
    name: &str,
    registries: &Path,
    n_nodes: Option<u8>,
    is_routed: bool,
    clock: Clock,
) -> Result<()> {
    ensure!(
        skiff_api::name::dns_label_fault(name).is_none() && name.len() <= 20,
        "{name:?} cannot be a cluster's name: use up to 20 lower-case letters, digits and '-'"
    );
    let steps = Steps::new();
    let lock = lock(name)?;
    let mut cluster = match Cluster::find(name)? {
        Some(cluster) => cluster,
        None => create(name, registries, is_routed).inspect_err(|_| forget(name))?,
    };
    ensure!(
        cluster.is_routed || !is_routed,
        "the nodes of the cluster {name:?} share a segment; start anew with: skiff down --name {name}"
    );
    let has_grown = cluster.grow(n_nodes)?;
    cluster.forget_ended();
    let mut started = Starts::default();
    // Each time: the last one may have ended half-way.
    prepare(&cluster, clock)?;
    if has_grown && let Some(forwarder) = cluster.forwarder.take() {
        // It lets each node's processes out, and must know of all.
        forwarder.end(STOP_GRACE)?;
    }
    if !cluster.forwarder.is_some_and(|f| f.runs()) {
        steps.begin("publishing the cluster on the loopback");
        let args = ["forward", "--name", name].map(str::to_owned);
        cluster.forwarder = Some(cluster.spawn(&cluster.log("forward"), &args, None)?);
        cluster.save()?;
    }
    if !cluster.server.is_some_and(|s| s.runs()) {
        steps.begin("starting the server");
        let args = cluster.server_args();
        started.note(&cluster.node(1).name);
        cluster.server = Some(cluster.spawn(&cluster.log("server"), &args, Some(&cluster.netns()))?);
        cluster.save()?;
    }
    start_agents(&mut cluster, &mut started, &steps).await?;
    drop(lock);
    steps.begin("waiting for the nodes to be ready");
    let all: Vec<String> = cluster.nodes().into_iter().map(|n| n.name).collect();
    wait_ready(&cluster, &all, &started).await?;
    for node in cluster.nodes() {
        // Joined: what it joined with has done its work.
        let _missing_mostly = fs::remove_file(node.token());
    }
    steps.done();
    println!("The cluster {name:?} is ready: {}", cluster.server_url());
    println!("  export KUBECONFIG={}", cluster.kubeconfig().display());
    println!("  kubectl get nodes");
    println!("To remove it: skiff down --name {name}");
    Ok(())
}

/// When this command started which nodes. What one of them said before is of no account.
#[derive(Default)]
struct Starts(BTreeMap<String, Timestamp>);

impl Starts {
    fn note(&mut self, node: &str) {
        self.0.insert(node.to_owned(), Timestamp::now());
    }

    /// Whether the node is ready, and says so since it was started.
    fn is_ready(&self, node: &Node) -> bool {
        let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let mut ready = conditions.filter(|c| c.type_ == "Ready" && c.status == "True");
        let started = node.metadata.name.as_ref().and_then(|name| self.0.get(name));
        ready.any(|condition| {
            let said = condition.last_heartbeat_time.as_ref().map(|time| time.0.as_second());
            // What the API shows has whole seconds.
            started.is_none_or(|started| said.is_some_and(|said| said >= started.as_second()))
        })
    }
}

impl Cluster {
    /// Those that have ended are as if they had never been: they are started again, and nobody waits for them meanwhile.
    fn forget_ended(&mut self) {
        let all = self.agents.iter_mut().chain([&mut self.server, &mut self.forwarder]);
        for process in all.filter(|process| !process.is_some_and(|started| started.runs())) {
            *process = None;
        }
    }

    /// Answers whether it has more nodes than before.
    fn grow(&mut self, n_nodes: Option<u8>) -> Result<bool> {
        let Some(n_nodes) = n_nodes else { return Ok(false) };
        ensure!(
            (1..=MAX_NODES).contains(&n_nodes),
            "--nodes {n_nodes}: a cluster has 1 to {MAX_NODES} nodes"
        );
        let (wanted, has) = (usize::from(n_nodes) - 1, self.agents.len());
        ensure!(
            wanted >= has,
            "the cluster {:?} has {} nodes, and none is taken away; start anew with: skiff down --name {}",
            self.name,
            has + 1,
            self.name
        );
        self.agents.resize(wanted, None);
        self.save()?;
        Ok(wanted > has)
    }
}

/// Starts the agents that do not run, with a token if they have not joined yet.
async fn start_agents(cluster: &mut Cluster, started: &mut Starts, steps: &Steps) -> Result<()> {
    let is_down = |agent: &Option<Started>| !agent.is_some_and(|a| a.runs());
    if !cluster.agents.iter().any(is_down) {
        return Ok(());
    }
    steps.begin("waiting for the server");
    wait_ready(cluster, &[cluster.node(1).name], started).await?;
    steps.begin("starting the agents");
    let kube = client(&cluster.kubeconfig()).await?;
    let mut token = None;
    let server = format!("https://{NODE_IP}:{API_PORT}");
    for node in cluster.nodes().into_iter().skip(1) {
        let slot = usize::from(node.number) - 2;
        if !is_down(&cluster.agents[slot]) {
            continue;
        }
        let mut args = vec!["agent".to_owned(), "--server".into(), server.clone()];
        args.extend(node.args());
        if !node.layout.agent().join(agent::MEMBERSHIP).exists() {
            if token.is_none() {
                let authority = cluster.pki()?.ca_pem();
                let made = token::create(&kube, authority.as_bytes(), Some(TOKEN_TTL), "skiff up").await?;
                token = Some(made);
            }
            let token = token.as_ref().map(token::Token::reveal).unwrap_or_default();
            // Not an argument: others on this machine can read those.
            write_private(&node.token(), &token)?;
            args.extend(["--token-file".to_owned(), text(&node.token())]);
        }
        started.note(&node.name);
        cluster.agents[slot] = Some(cluster.spawn(&node.log(), &args, Some(&node.netns))?);
        cluster.save()?;
    }
    Ok(())
}

/// Held while a cluster of this name is made, started or removed. What is locked is its directory.
fn lock(name: &str) -> Result<File> {
    let directory = Path::new(CLUSTERS).join(name);
    loop {
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let lock = lock_directory(&directory)?;
        let identity = |m: fs::Metadata| (m.dev(), m.ino());
        let here = fs::metadata(&directory).map(identity).ok();
        if here.is_some() && here == lock.metadata().map(identity).ok() {
            return Ok(lock);
        }
        // Who held it before has removed the cluster.
    }
}

/// Removes the directory that was locked, if there is no cluster in it after all.
fn forget(name: &str) {
    let _not_empty = fs::remove_dir(Path::new(CLUSTERS).join(name));
}

fn lock_directory(path: &Path) -> Result<File> {
    let lock = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .with_context(|| format!("locking {}", path.display()))?;
    Ok(lock)
}

fn create(name: &str, registries: &Path, is_routed: bool) -> Result<Cluster> {
    // Two clusters that start at a time must not take the same number.
    let _lock = lock_directory(Path::new(CLUSTERS))?;
    let taken: Vec<u8> = Cluster::all().iter().map(|c| c.index).collect();
    let index = (0..MAX_CLUSTERS).find(|i| !taken.contains(i)).ok_or_else(|| {
        anyhow!("{MAX_CLUSTERS} clusters run already; remove one with: skiff down --name NAME")
    })?;
    let registries = registries.to_owned();
    let egress_password = format!("{:032x}", rand::random::<u128>());
    let cluster = Cluster {
        name: name.into(),
        index,
        registries,
        egress_password,
        server: None,
        forwarder: None,
        agents: Vec::new(),
        is_routed,
    };
    // From here on `down` finds and removes whatever there is.
    cluster.save()?;
    Ok(cluster)
}

/// Makes what the cluster's processes need: directories, network, kubeconfig.
fn prepare(cluster: &Cluster, clock: Clock) -> Result<()> {
    let nodes = cluster.nodes();
    for directory in nodes.iter().flat_map(|n| [&n.layout.data_dir, &n.layout.run_dir]) {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    let shape = if cluster.is_routed { lan::Shape::Router } else { lan::Shape::Bridge };
    lan::make(&cluster.lan(), shape, &nodes).context("making the cluster's network namespaces")?;
    // The server finds the authority that is made here.
    let pki = Pki::open(&cluster.layout().pki(), clock)?;
    cluster.write_kubeconfig(&pki, &pki.administrator()?)
}

/// Waits until the nodes of these names are ready.
async fn wait_ready(cluster: &Cluster, names: &[String], started: &Starts) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    let client = client(&cluster.kubeconfig()).await?;
    let nodes: Api<Node> = Api::all(client);
    loop {
        let listed = nodes.list(&kube::api::ListParams::default()).await;
        let ready: Vec<String> = listed
            .iter()
            .flatten()
            .filter(|n| started.is_ready(n))
            .filter_map(|n| n.metadata.name.clone())
            .collect();
        let missing: Vec<&str> = names.iter().filter(|n| !ready.contains(n)).map(String::as_str).collect();
        if missing.is_empty() {
            return Ok(());
        }
        for (part, started, log) in cluster.processes() {
            if !started.is_some_and(|s| s.runs()) {
                bail!("the {part} ended:\n{}", tail(&log));
            }
        }
        if Instant::now() > deadline {
            let logs = cluster.processes().into_iter().map(|(_, _, log)| log);
            let logs: Vec<String> = logs.map(|log| format!("{}:\n{}", log.display(), tail(&log))).collect();
            bail!(
                "not ready after {} s: {}; see {}",
                START_TIMEOUT.as_secs(),
                missing.join(", "),
                logs.join("\n")
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Cluster {
    /// Those that were started, with their logs.
    fn processes(&self) -> Vec<(String, Option<Started>, PathBuf)> {
        let mut all = vec![
            ("server".to_owned(), self.server, self.log("server")),
            ("forwarder".to_owned(), self.forwarder, self.log("forward")),
        ];
        let agents = self.nodes().into_iter().skip(1).zip(&self.agents).filter(|(_, agent)| agent.is_some());
        all.extend(agents.map(|(node, agent)| (format!("agent of {}", node.name), *agent, node.log())));
        all
    }
}

fn tail(path: &Path) -> String {
    const LINES: usize = 20;
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// A client of the cluster that a kubeconfig names.
pub(crate) async fn client(kubeconfig: &Path) -> Result<Client> {
    let text = fs::read_to_string(kubeconfig).with_context(|| format!("reading {}", kubeconfig.display()))?;
    let parsed = kube::config::Kubeconfig::from_yaml(&text)
        .with_context(|| format!("{} is no kubeconfig", kubeconfig.display()))?;
    let mut config =
        kube::Config::from_custom_kubeconfig(parsed, &kube::config::KubeConfigOptions::default())
            .await
            .with_context(|| format!("{} cannot be used", kubeconfig.display()))?;
    // A cluster on this machine is never behind a proxy.
    config.proxy_url = None;
    Ok(Client::try_from(config)?)
}

/// Ends a cluster and removes every trace of it.
pub(crate) async fn down(name: &str) -> Result<()> {
    // Asked first: the lock would make the directory of a cluster that is not.
    Cluster::open(name)?;
    let _lock = lock(name)?;
    // Another `down` may have been faster.
    let cluster = Cluster::open(name).inspect_err(|_| forget(name))?;
    let layout = cluster.layout();
    let steps = Steps::new();
    steps.begin("ending the server and the agents");
    for process in cluster.agents.iter().chain([&cluster.server]).flatten() {
        process.end(STOP_GRACE)?;
    }
    steps.begin("removing the pods");
    for node in cluster.nodes() {
        let mut args = vec!["teardown".to_owned()];
        args.extend(node.layout_args());
        let removed = if netns::exists(&node.netns) {
            run_inside(&node.netns, &args)
        } else {
            // Its links, rules and mounts have gone with the namespace; groups stand for themselves.
            remove_groups(&node.layout)
        };
        removed.with_context(|| format!("node {}", node.name))?;
    }
    steps.begin("removing the cluster");
    if let Some(forwarder) = cluster.forwarder {
        forwarder.end(STOP_GRACE)?;
    }
    unmount_below(&layout.data_dir)?;
    unmount_below(&layout.run_dir)?;
    for namespace in cluster.nodes().into_iter().map(|n| n.netns).chain([cluster.lan()]) {
        netns::remove(&namespace)?;
    }
    for directory in [&layout.data_dir, &layout.run_dir] {
        skiff_tree::remove(directory).with_context(|| format!("removing {}", directory.display()))?;
    }
    // Last: a `down` that was ended half-way is begun again by the next.
    if let Err(error) = fs::remove_file(record(name))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("removing {}", record(name).display()));
    }
    steps.done();
    println!("The cluster {name:?} is gone.");
    Ok(())
}

/// Runs this program in a namespace and waits for it.
fn run_inside(namespace: &Path, args: &[String]) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(args).stdin(Stdio::null());
    let namespace = File::open(namespace)?;
    // SAFETY: between fork and exec only the system call `setns` is made; nothing is allocated.
    unsafe {
        command.pre_exec(move || Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?));
    }
    let output = command.output().context("starting the teardown")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the teardown failed: {}", error.trim());
    Ok(())
}

/// Takes away what is still mounted below a directory that is about to be removed, the deepest first.
fn unmount_below(directory: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
    let mut below: Vec<&str> = mounts
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .filter(|m| Path::new(m).starts_with(directory))
        .collect();
    below.sort_unstable();
    for mount in below.into_iter().rev() {
        match nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(error).with_context(|| format!("unmounting {mount}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_that_was_ready_before_it_was_started_is_not_ready_for_that() {
        let now = Timestamp::now();
        let node = |name: &str, heartbeat: Timestamp| -> Node {
            let heartbeat = heartbeat.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let ready = json!({"type": "Ready", "status": "True", "lastHeartbeatTime": heartbeat});
            serde_json::from_value(json!({"metadata": {"name": name}, "status": {"conditions": [ready]}}))
                .unwrap()
        };
        let mut started = Starts::default();
        started.note("a");
        let before = now - SignedDuration::from_mins(4);
        assert!(!started.is_ready(&node("a", before)), "from before the restart");
        assert!(started.is_ready(&node("a", Timestamp::now())));
        assert!(started.is_ready(&node("b", before)), "one that has run all the time");
    }
}
