//! One node: container runtime, nodelet, service proxy, DNS and the routes to other nodes. The same in a server and in an
//! agent; they differ in who its clients are.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use serde::{Deserialize, Serialize};
use skiff_client::{EventRecorder, Informers};
use skiff_cri::{ContainerRuntime, Cri};
use skiff_images::{Images, Registries};
use skiff_network::{
    ClusterDns, DnsConfig, PeerRoutes, PeersConfig, PodNetwork, PodNetworkConfig, ProxyConfig, ServiceProxy,
    Uplink,
};
use skiff_nodelet::{EvictionHard, Nodelet, ServerTls};
use skiff_runtime::{NodeRuntime, RuntimeConfig};
use skiff_runtime_oci::{OciConfig, OciRuntime};
use skiff_runtime_wasm::{WasmConfig, WasmRuntime};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::bridges::{Events, Network, PodGroups};
use crate::identity::Identity;
use crate::layout::Layout;
use crate::open_files;
use crate::pki::write_private;
use crate::role::Role;

#[derive(Args, Clone, Debug)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    pub(crate) layout: Layout,
    /// This node's name [default: the host name]
    #[arg(long)]
    pub(crate) node_name: Option<String>,
    /// This node's address, which other nodes and pods reach it by [default: that of the default route]
    #[arg(long)]
    pub(crate) node_ip: Option<Ipv4Addr>,
    /// Port of the node API
    #[arg(long, default_value_t = 10250)]
    pub(crate) kubelet_port: u16,
    /// The bridge that pods are attached to
    #[arg(long, default_value = "skiff0")]
    pub(crate) bridge: String,
    /// Largest packet on the pod network [default: that of the interface with the node's address]
    #[arg(long)]
    pub(crate) mtu: Option<u32>,
    /// The tunnel to nodes that are behind a router
    #[arg(long, default_value = "skiff-vxlan")]
    pub(crate) vxlan_device: String,
    /// UDP port of the tunnel, the same on all nodes
    #[arg(long, default_value_t = 4789)]
    pub(crate) vxlan_port: u16,
    /// Most pods on this node
    #[arg(long, default_value_t = 110)]
    pub(crate) max_pods: u32,
    /// The least that must be free: below it the node is under pressure and takes no pods
    #[arg(long, default_value_t)]
    pub(crate) eviction_hard: EvictionHard,
    /// The program that runs Linux containers
    #[arg(long, default_value = "runc")]
    pub(crate) runc: PathBuf,
    /// Resolver configuration for names outside the cluster
    #[arg(long, default_value = "/etc/resolv.conf")]
    pub(crate) resolv_conf: PathBuf,
}

/// What all nodes of a cluster have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterNetwork {
    #[serde(rename = "clusterCIDR")]
    pub(crate) cluster_cidr: String,
    #[serde(rename = "serviceCIDR")]
    pub(crate) service_cidr: String,
    #[serde(rename = "clusterDNS")]
    pub(crate) cluster_dns: Ipv4Addr,
    pub(crate) cluster_domain: String,
}

/// In `kube-system`; where kubeadm tells kubelets about their cluster.
pub(crate) const CONFIG_MAP: &str = "kubelet-config";

/// The cluster's part of a kubelet's configuration, for people and programs that look for it.
pub(crate) fn kubelet_configuration(network: &ClusterNetwork) -> Result<String> {
    let configuration = serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "clusterDNS": [network.cluster_dns],
        "clusterDomain": network.cluster_domain,
        "rotateCertificates": true,
        "serverTLSBootstrap": true,
    });
    Ok(serde_json::to_string(&configuration)?)
}

/// A node that is about to start.
pub(crate) struct NodeSetup {
    pub(crate) args: NodeArgs,
    pub(crate) name: String,
    pub(crate) ip: Ipv4Addr,
    pub(crate) network: ClusterNetwork,
    /// This node's part of the cluster's range.
    pub(crate) pod_cidr: String,
    /// Whether it says so in its Node. Else the cluster gave it the range, and may give it another one.
    pub(crate) claims_range: bool,
    /// Ports that the node itself listens on, and that no Service may take.
    pub(crate) own_ports: Vec<u16>,
    /// The node's own client.
    pub(crate) client: Client,
    /// By which the proxy, the DNS and the routes see the cluster.
    pub(crate) informers: Informers,
    /// What the node API shows.
    pub(crate) serving: Arc<Identity>,
    pub(crate) ca_pem: String,
}

/// What tearing a node down must know, as it was when the node last started.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    network: NetworkRecord,
    runc: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct NetworkRecord {
    bridge: String,
    vxlan_device: String,
    pod_cidr: String,
    cluster_cidr: String,
    service_cidr: String,
    mtu: u32,
}

/// What an administrator reaches the machine by: no Service takes it.
pub(crate) const SSH_PORT: u16 = 22;
/// How long parts may take to end once told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
const FALLBACK_MTU: u32 = 1500;

/// The parts of a running node or server: each ends with its name when told to.
pub(crate) type Parts = JoinSet<Result<&'static str>>;

/// Starts all parts of the node. Its Node is ready when this returns.
pub(crate) async fn start(setup: NodeSetup, shutdown: &CancellationToken, parts: &mut Parts) -> Result<()> {
    let NodeSetup { args, network, .. } = &setup;
    let last = read_record(&args.layout)?.map(|record| record.network.pod_cidr);
    if let Some(last) = last.filter(|last| *last != setup.pod_cidr) {
        info!(
            last,
            now = setup.pod_cidr,
            "the node has other pod addresses than before; its pods are made anew"
        );
        tear_down(&args.layout).await.context("removing what has the last pod addresses")?;
    }
    let record = Record {
        network: NetworkRecord {
            bridge: args.bridge.clone(),
            vxlan_device: args.vxlan_device.clone(),
            pod_cidr: setup.pod_cidr.clone(),
            cluster_cidr: network.cluster_cidr.clone(),
            service_cidr: network.service_cidr.clone(),
            mtu: mtu(args, setup.ip).await,
        },
        runc: args.runc.clone(),
    };
    write_private(&args.layout.node_record(), &serde_json::to_string(&record)?)?;
    let runtime = open_runtime(&args.layout, &record).await?.runtime;
    start_nodelet(&setup, runtime, shutdown, parts).await?;
    start_services(&setup, shutdown, parts).await
}

/// Runs until SIGINT or SIGTERM, or until a part ends by itself; then ends the others. Containers go on.
pub(crate) async fn run_until_stopped(mut parts: Parts, shutdown: &CancellationToken) -> Result<()> {
    let outcome = tokio::select! {
        // Both only wait.
        () = stop_signal() => Ok(()),
        Some(ended) = parts.join_next() => Err(match ended {
            Ok(Ok(part)) => anyhow!("the {part} ended by itself"),
            Ok(Err(error)) => error,
            Err(error) => anyhow!(error).context("a part of the process panicked"),
        }),
    };
    info!("stopping; containers go on");
    shutdown.cancel();
    let ended =
        tokio::time::timeout(STOP_TIMEOUT, async { while parts.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::warn!("some parts did not end in time");
    }
    outcome
}

async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

async fn mtu(args: &NodeArgs, ip: Ipv4Addr) -> u32 {
    if let Some(mtu) = args.mtu {
        return mtu;
    }
    match Uplink::of(ip).await {
        Ok(uplink) => uplink.mtu,
        Err(error) => {
            tracing::warn!(%error, "taking {FALLBACK_MTU} for the pod network's largest packet; --mtu sets it");
            FALLBACK_MTU
        }
    }
}

async fn start_nodelet(
    setup: &NodeSetup,
    runtime: Arc<NodeRuntime>,
    shutdown: &CancellationToken,
    parts: &mut Parts,
) -> Result<()> {
    let NodeSetup { args, network, .. } = setup;
    let mut config = skiff_nodelet::Config::new(&setup.name, setup.ip.into());
    config.root_dir = args.layout.nodelet();
    config.log_root = args.layout.log_dir.clone();
    config.cgroup_root = args.layout.cgroup_root.clone();
    config.pod_cgroups = Some(Arc::new(PodGroups(skiff_cgroup::Cgroups::detect()?)));
    config.cluster_dns = vec![network.cluster_dns.into()];
    config.cluster_domain = network.cluster_domain.clone();
    config.port = args.kubelet_port;
    config.max_pods = args.max_pods;
    config.eviction_hard = args.eviction_hard;
    config.pod_cidr = Some(setup.pod_cidr.clone()).filter(|_| setup.claims_range);
    config.resolv_conf = args.resolv_conf.clone();
    config.tls = Some(ServerTls {
        certificate: setup.serving.clone(),
        client_ca_pem: setup.ca_pem.clone().into_bytes(),
    });
    let events = EventRecorder::new(setup.client.clone(), "kubelet", &setup.name);
    let nodelet = Nodelet::start(config, setup.client.clone(), runtime, Arc::new(Events(events)))
        .await
        .context("starting the nodelet")?;
    let stop = shutdown.clone();
    parts.spawn(async move {
        nodelet.run(stop).await.context("running the nodelet")?;
        Ok("nodelet")
    });
    Ok(())
}

/// The service proxy, the cluster's DNS and the routes to other nodes.
async fn start_services(setup: &NodeSetup, shutdown: &CancellationToken, parts: &mut Parts) -> Result<()> {
    let NodeSetup { args, network, informers, .. } = setup;
    let config = ProxyConfig {
        node_name: setup.name.clone(),
        node_ips: vec![setup.ip],
        cluster_cidr: network.cluster_cidr.clone(),
        pod_cidr: setup.pod_cidr.clone(),
    };
    if !setup.claims_range {
        let changed = range_changed(setup, informers);
        let stop = shutdown.clone();
        parts.spawn(async move {
            match stop.run_until_cancelled(changed).await {
                Some(error) => Err(error),
                None => Ok("look at the node's range"),
            }
        });
    }
    let proxy = ServiceProxy::new(config, informers).with_own_ports(setup.own_ports.iter().copied());
    let stop = shutdown.clone();
    parts.spawn(async move {
        proxy.run(stop).await;
        Ok("service proxy")
    });
    let config = PeersConfig {
        node_name: setup.name.clone(),
        node_ip: setup.ip,
        pod_cidr: setup.pod_cidr.clone(),
        cluster_cidr: network.cluster_cidr.clone(),
        vxlan_device: args.vxlan_device.clone(),
        vxlan_port: args.vxlan_port,
    };
    let routes = PeerRoutes::new(config, informers);
    let stop = shutdown.clone();
    parts.spawn(async move {
        routes.run(stop).await;
        Ok("routes to other nodes")
    });
    claim_address(network.cluster_dns).context("giving this node the cluster's DNS address")?;
    let config = DnsConfig {
        bind: SocketAddr::new(network.cluster_dns.into(), 53),
        domain: network.cluster_domain.clone(),
        upstreams: upstreams(args, network),
    };
    let dns = ClusterDns::start(config, informers).await.context("starting the cluster's DNS")?;
    let stop = shutdown.clone();
    parts.spawn(async move {
        dns.run(stop).await;
        Ok("cluster DNS")
    });
    Ok(())
}

/// Ends when the node has another range than this process works with: its Node was deleted, and has been given one anew
/// that need not be the last one, since that may be another node's by then.
fn range_changed(setup: &NodeSetup, informers: &Informers) -> impl Future<Output = anyhow::Error> + use<> {
    let (name, has) = (setup.name.clone(), setup.pod_cidr.clone());
    let (found, mut other) = watch::channel(None);
    informers.of::<Node>().on_change(move |change| {
        let node = change.new.as_deref().filter(|node| node.metadata.name.as_deref() == Some(&name));
        let range = node.and_then(|node| node.spec.as_ref()?.pod_cidr.clone());
        if range.as_ref().is_some_and(|range| *range != has) {
            found.send_replace(range);
        }
    });
    let has = setup.pod_cidr.clone();
    async move {
        match other.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(now)) => anyhow!(
                "the node's pod addresses are {now} and no longer {has}, since its Node was deleted; start it again, and \
                 it makes its pods anew"
            ),
            Ok(None) | Err(_) => anyhow!("nobody looks at the node's pod addresses any more"),
        }
    }
}

/// The DNS address belongs to the node itself: pods reach it like any address of their gateway.
fn claim_address(address: Ipv4Addr) -> Result<()> {
    let status = std::process::Command::new("ip")
        .args(["address", "replace", &format!("{address}/32"), "dev", "lo"])
        .status()
        .context("running ip; install the package iproute2")?;
    anyhow::ensure!(status.success(), "ip address replace {address}/32 dev lo failed");
    Ok(())
}

/// The host's resolvers, without those that only the host itself can reach.
fn upstreams(args: &NodeArgs, network: &ClusterNetwork) -> Vec<IpAddr> {
    let text = std::fs::read_to_string(&args.resolv_conf).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok())
        .filter(|ip| *ip != IpAddr::V4(network.cluster_dns))
        .take(3)
        .collect()
}

/// The node's runtime and the parts that only a teardown asks for.
struct Opened {
    runtime: Arc<NodeRuntime>,
    wasm: Arc<WasmRuntime>,
    network: Arc<Network>,
}

/// The images of a node that may not have been started yet.
pub(crate) fn open_images(layout: &Layout) -> Result<Arc<Images>> {
    match read_record(layout)? {
        Some(Record { network, .. }) => images_beside(layout, &network),
        None => images_apart(layout, Vec::new()),
    }
}

/// The same, with a network where no registry may lead a pull.
fn images_beside(layout: &Layout, network: &NetworkRecord) -> Result<Arc<Images>> {
    let ranges = [&network.pod_cidr, &network.cluster_cidr, &network.service_cidr];
    images_apart(layout, ranges.into_iter().filter_map(|range| skiff_images::Range::parse(range)).collect())
}

fn images_apart(layout: &Layout, own_ranges: Vec<skiff_images::Range>) -> Result<Arc<Images>> {
    let mut registries = if layout.registries.exists() {
        Registries::load(&layout.registries).context("reading the registries file")?
    } else {
        Registries::default()
    };
    registries.own_ranges = own_ranges;
    Images::open(&layout.images(), registries).context("opening the image store")
}

async fn open_runtime(layout: &Layout, record: &Record) -> Result<Opened> {
    let images = images_beside(layout, &record.network)?;
    let NetworkRecord { bridge, pod_cidr, cluster_cidr, service_cidr, mtu, .. } = record.network.clone();
    let state_directory = layout.addresses();
    let config = PodNetworkConfig { bridge, pod_cidr, cluster_cidr, service_cidr, mtu, state_directory };
    let network = Arc::new(Network(PodNetwork::open(config).await.context("setting up the pod network")?));
    let oci = OciRuntime::open(OciConfig {
        name: "runc",
        runc: record.runc.clone(),
        root: layout.runc_root(),
        state_dir: layout.oci(),
        shim_command: Role::Shim.command()?,
        images: images.clone(),
        cgroups: skiff_cgroup::Cgroups::detect()?,
        shim_cgroup: layout.shim_cgroup(),
        pids_limit: None,
        open_files: open_files::found(),
    })
    .await
    .context("opening the Linux runtime")?;
    let wasm = WasmRuntime::open(WasmConfig {
        state_dir: layout.wasm(),
        run_dir: layout.wasm_run(),
        images: images.clone(),
        host_command: Role::WasmHost.command()?,
        compile_command: Role::WasmCompile.command()?,
        cgroup_root: layout.cgroup_root.clone(),
    })
    .await
    .context("opening the Wasm runtime")?;
    let linux: Arc<dyn ContainerRuntime> = oci;
    let runtime = NodeRuntime::open(RuntimeConfig {
        root: layout.runtime(),
        run: layout.namespaces(),
        images,
        network: network.clone(),
        linux: [("runc".to_owned(), linux)].into(),
        cgroup_root: layout.cgroup_root.clone(),
        default_handler: "runc".into(),
        wasm: wasm.clone(),
    })
    .await
    .map_err(|e| anyhow!(e).context("opening the container runtime"))?;
    release_addresses(&runtime, &network).await?;
    Ok(Opened { runtime, wasm, network })
}

/// Gives back addresses whose sandboxes are no more: of those that a crash took the records of.
async fn release_addresses(runtime: &NodeRuntime, network: &Network) -> Result<()> {
    let sandboxes = runtime.list_pod_sandbox(Default::default()).await?.items;
    for id in network.0.sandboxes() {
        if !sandboxes.iter().any(|s| s.id == id) {
            info!(sandbox = id, "giving back the address of a sandbox that is gone");
            network.0.detach(&id).await.with_context(|| format!("detaching sandbox {id}"))?;
        }
    }
    Ok(())
}

/// None if the node never came so far as to have pods.
fn read_record(layout: &Layout) -> Result<Option<Record>> {
    let path = layout.node_record();
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Removes every pod of the node and all that the node made. What `skiff down` runs, after the node's process has ended.
pub(crate) async fn tear_down(layout: &Layout) -> Result<()> {
    use skiff_cri::v1::{ListPodSandboxRequest, RemovePodSandboxRequest};
    if let Some(record) = read_record(layout)? {
        let opened = open_runtime(layout, &record).await?;
        let sandboxes = opened.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items;
        for sandbox in sandboxes {
            let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            let removed = opened.runtime.remove_pod_sandbox(request).await;
            removed.with_context(|| format!("removing sandbox {}", sandbox.id))?;
        }
        opened.wasm.shutdown_hosts().await.map_err(|e| anyhow!(e).context("ending the Wasm hosts"))?;
        ServiceProxy::remove_rules().await.context("removing the service rules")?;
        PeerRoutes::remove(&record.network.vxlan_device)
            .await
            .context("removing the routes to other nodes")?;
        opened.network.0.close().await.context("removing the pod network")?;
    }
    let cgroups = skiff_cgroup::Cgroups::detect()?;
    let group = cgroups.group(&layout.cgroup_root)?;
    if group.exists() {
        group.kill().and_then(|()| group.remove()).context("removing the pods' cgroup")?;
    }
    Ok(())
}

/// Asks every container of the node to end, and ends those that have not by then. The node's process must have ended before,
/// for it would start them again. They start anew with the node's next start.
pub(crate) async fn stop_pods(layout: &Layout, grace: Duration) -> Result<()> {
    use skiff_cri::v1::{ListContainersRequest, StopContainerRequest};
    let Some(record) = read_record(layout)? else { return Ok(()) };
    let runtime = open_runtime(layout, &record).await?.runtime;
    let containers = runtime.list_containers(ListContainersRequest::default()).await?.containers;
    info!(n_containers = containers.len(), grace_s = grace.as_secs(), "ending this node's pods");
    let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
    let stops = containers.into_iter().map(|container| {
        let request = StopContainerRequest { container_id: container.id.clone(), timeout };
        let stopped = runtime.stop_container(request);
        async move { stopped.await.with_context(|| format!("ending container {}", container.id)) }
    });
    let failed = futures::future::join_all(stops).await.into_iter().filter_map(Result::err).next();
    failed.map_or(Ok(()), Err)
}

pub(crate) fn host_name() -> Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("reading the host name")?;
    Ok(name.trim().to_owned())
}

pub(crate) fn node_name(args: &NodeArgs) -> Result<String> {
    let name = match &args.node_name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    let name = name.trim().to_lowercase();
    match skiff_api::name::dns_subdomain_fault(&name) {
        None => Ok(name),
        Some(fault) => Err(anyhow!("{name:?} cannot be a node's name: {fault}; give --node-name")),
    }
}

/// The address that packets to elsewhere would leave with. No packet is sent: connecting a UDP socket only asks for
/// the route.
pub(crate) fn node_ip(args: &NodeArgs) -> Result<Ipv4Addr> {
    if let Some(ip) = args.node_ip {
        return Ok(ip);
    }
    let no_route = "this machine has no default route to take its address from; give --node-ip";
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("opening a socket")?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).context(no_route)?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(ip) if !ip.is_unspecified() && !ip.is_loopback() => Ok(ip),
        _ => Err(anyhow!(no_route)),
    }
}
