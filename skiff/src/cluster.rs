//! Throw-away clusters: `skiff up` and `skiff down`.
//!
//! A cluster lives in a network namespace of its own, so that nothing of the host's network changes. Its one link,
//! `eth0`, leads nowhere; a forwarder on the host publishes the API and LoadBalancer Services on loopback addresses,
//! and lets the node fetch images as if from the host.
//!
//! ```text
//!  host: 127.64.0.1:6443 ─┐                        ┌─ namespace ──────────────┐
//!        127.64.1.1:80   ─┼─ skiff forward ════════┤ skiff server, pods, …    │
//!        registries     ◄─┘                        └──────────────────────────┘
//! ```

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use skiff_network::netns;

use crate::layout::Layout;
use crate::pki::{Pki, write_private};
use crate::process::Started;
use crate::progress::Steps;

/// A cluster as it is written to its directory.
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
}

const CLUSTERS: &str = "/run/skiff/clusters";
/// 127.64.0.0/16 for the first cluster, up to 127.127.0.0/16.
const FIRST_LOOPBACK: u8 = 64;
const MAX_CLUSTERS: u8 = 64;
pub(crate) const API_PORT: u16 = 6443;
/// The node's address within its namespace.
pub(crate) const NODE_IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// Where the forwarder lets the node's own processes reach registries.
pub(crate) const EGRESS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 3128);
const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_GRACE: Duration = Duration::from_secs(30);

impl Cluster {
    pub(crate) fn open(name: &str) -> Result<Cluster> {
        let path = record(name);
        let bytes = fs::read(&path)
            .map_err(|_| anyhow!("there is no cluster {name:?}; start one with: skiff up --name {name}"))?;
        serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))
    }

    fn save(&self) -> Result<()> {
        // Whole or not at all: others read it to see which numbers are taken.
        write_private(&record(&self.name), &serde_json::to_string(self)?)
    }

    /// All clusters of this machine.
    fn all() -> Vec<Cluster> {
        let entries = fs::read_dir(CLUSTERS).into_iter().flatten().flatten();
        entries.filter_map(|e| Cluster::open(e.file_name().to_str()?).ok()).collect()
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout::of_cluster(&self.name, &self.registries)
    }

    pub(crate) fn netns(&self) -> PathBuf {
        self.layout().run_dir.join("net")
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.layout().data_dir.join("kubeconfig")
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

    /// What the server is started with, which is also what a teardown must know.
    fn server_args(&self) -> Vec<String> {
        let layout = self.layout();
        let path = |p: &Path| p.to_string_lossy().into_owned();
        [
            ("--data-dir", path(&layout.data_dir)),
            ("--run-dir", path(&layout.run_dir)),
            ("--log-dir", path(&layout.log_dir)),
            ("--registries", path(&layout.registries)),
            ("--cgroup-root", layout.cgroup_root.clone()),
            ("--node-name", format!("{}-1", self.name)),
            ("--node-ip", NODE_IP.to_string()),
            ("--tls-san", self.api_address().to_string()),
            ("--service-lb", "false".into()),
            ("--write-kubeconfig", path(&layout.data_dir.join("kubeconfig.inside"))),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
    }

    /// Starts this program in the background.
    fn spawn(&self, part: &str, args: &[String], inside: bool) -> Result<Started> {
        let log = File::create(self.log(part)).with_context(|| format!("creating the log of the {part}"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
        let namespace = inside.then(|| File::open(self.netns())).transpose()?;
        if inside {
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
        let child = command.spawn().with_context(|| format!("starting the {part}"))?;
        Started::of(child.id())
    }
}

fn record(name: &str) -> PathBuf {
    Path::new(CLUSTERS).join(name).join("cluster.json")
}

/// Starts a cluster, or makes sure that it runs.
pub(crate) async fn up(name: &str, registries: &Path) -> Result<()> {
    ensure!(
        skiff_api::name::dns_label_fault(name).is_none() && name.len() <= 20,
        "{name:?} cannot be a cluster's name: use up to 20 lower-case letters, digits and '-'"
    );
    let steps = Steps::new();
    let lock = lock(name)?;
    let mut cluster = match Cluster::open(name) {
        Ok(cluster) => cluster,
        Err(_) => create(name, registries).inspect_err(|_| forget(name))?,
    };
    // Each time: the last one may have ended half-way.
    prepare(&cluster)?;
    if !cluster.forwarder.is_some_and(|f| f.runs()) {
        steps.begin("publishing the cluster on the loopback");
        let args = ["forward", "--name", name].map(str::to_owned);
        cluster.forwarder = Some(cluster.spawn("forward", &args, false)?);
        cluster.save()?;
    }
    if !cluster.server.is_some_and(|s| s.runs()) {
        steps.begin("starting the server");
        let mut args = vec!["server".to_owned()];
        args.extend(cluster.server_args());
        cluster.server = Some(cluster.spawn("server", &args, true)?);
        cluster.save()?;
    }
    drop(lock);
    steps.begin("waiting for the node to be ready");
    wait_ready(&cluster).await?;
    steps.done();
    println!("The cluster {name:?} is ready: https://{}:{API_PORT}", cluster.api_address());
    println!("  export KUBECONFIG={}", cluster.kubeconfig().display());
    println!("  kubectl get nodes");
    println!("To remove it: skiff down --name {name}");
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

fn create(name: &str, registries: &Path) -> Result<Cluster> {
    // Two clusters that start at a time must not take the same number.
    let _lock = lock_directory(Path::new(CLUSTERS))?;
    let taken: Vec<u8> = Cluster::all().iter().map(|c| c.index).collect();
    let index = (0..MAX_CLUSTERS).find(|i| !taken.contains(i)).ok_or_else(|| {
        anyhow!("{MAX_CLUSTERS} clusters run already; remove one with: skiff down --name NAME")
    })?;
    let registries = registries.to_owned();
    let egress_password = format!("{:032x}", rand::random::<u128>());
    let cluster =
        Cluster { name: name.into(), index, registries, egress_password, server: None, forwarder: None };
    // From here on `down` finds and removes whatever there is.
    cluster.save()?;
    Ok(cluster)
}

/// Makes what the cluster's processes need: directories, network, kubeconfig.
fn prepare(cluster: &Cluster) -> Result<()> {
    let layout = cluster.layout();
    for directory in [&layout.data_dir, &layout.run_dir] {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    make_network(&cluster.netns()).context("making the cluster's network namespace")?;
    let pki = Pki::open(&layout.pki())?;
    let server = format!("https://{}:{API_PORT}", cluster.api_address());
    write_private(&cluster.kubeconfig(), &pki.kubeconfig(&format!("skiff-{}", cluster.name), &server))
}

/// Both ends of the uplink are inside: what is sent to it arrives nowhere.
fn make_network(path: &Path) -> Result<()> {
    if !netns::exists(path) {
        netns::create(path)?;
    }
    let node = format!("{NODE_IP}/24");
    let commands: [&[&str]; 6] = [
        &["link", "set", "lo", "up"],
        &["link", "add", "eth0", "type", "veth", "peer", "name", "lan0"],
        &["link", "set", "lan0", "up"],
        &["link", "set", "eth0", "up"],
        &["address", "replace", &node, "dev", "eth0"],
        &["route", "replace", "default", "via", "10.99.0.1", "dev", "eth0"],
    ];
    let commands: Vec<Vec<String>> =
        commands.iter().map(|c| c.iter().map(|w| (*w).to_owned()).collect()).collect();
    netns::within(path, move || -> Result<()> {
        let has_link = nix::net::if_::if_nametoindex("eth0").is_ok();
        for args in commands {
            if has_link && args.starts_with(&["link".to_owned(), "add".to_owned()]) {
                continue;
            }
            let output = Command::new("ip")
                .args(&args)
                .output()
                .context("running ip; install the package iproute2")?;
            let error = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "ip {}: {}", args.join(" "), error.trim());
        }
        Ok(())
    })?
}

async fn wait_ready(cluster: &Cluster) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    let client = client(&cluster.kubeconfig()).await?;
    let nodes: Api<Node> = Api::all(client);
    loop {
        let listed = nodes.list(&kube::api::ListParams::default()).await;
        let ready = listed.iter().flatten().any(is_ready);
        if ready {
            return Ok(());
        }
        for (part, started) in [("server", cluster.server), ("forward", cluster.forwarder)] {
            if !started.is_some_and(|s| s.runs()) {
                bail!("the {part} ended:\n{}", tail(&cluster.log(part)));
            }
        }
        if Instant::now() > deadline {
            let log = cluster.log("server");
            bail!(
                "the node is not ready after {} s; see {}:\n{}",
                START_TIMEOUT.as_secs(),
                log.display(),
                tail(&log)
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
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
    steps.begin("ending the server");
    if let Some(server) = cluster.server {
        server.end(STOP_GRACE)?;
    }
    if netns::exists(&cluster.netns()) {
        steps.begin("removing the pods");
        let mut args = vec!["teardown".to_owned()];
        args.extend(cluster.server_args());
        run_inside(&cluster, &args)?;
    }
    steps.begin("removing the cluster");
    if let Some(forwarder) = cluster.forwarder {
        forwarder.end(STOP_GRACE)?;
    }
    unmount_below(&layout.data_dir)?;
    unmount_below(&layout.run_dir)?;
    netns::remove(&cluster.netns())?;
    for directory in [&layout.data_dir, &layout.run_dir] {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", directory.display()));
            }
            _ => {}
        }
    }
    steps.done();
    println!("The cluster {name:?} is gone.");
    Ok(())
}

/// Runs this program in the cluster's namespace and waits for it.
fn run_inside(cluster: &Cluster, args: &[String]) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(args).stdin(Stdio::null());
    let namespace = File::open(cluster.netns())?;
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
