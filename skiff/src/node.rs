//! One node: container runtime, nodelet, service proxy, DNS and the routes to other nodes. The same in a server and in an
//! agent; they differ in who its clients are.
//!
//! The node's address may become another while it runs. Proxy and routes follow it; the nodelet listens on it, and begins anew.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use async_trait::async_trait;
use clap::Args;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use serde::{Deserialize, Serialize};
use skiff_client::{EventRecorder, Informers};
use skiff_cri::{ContainerRuntime, Cri};
use skiff_images::{Images, Registries};
use skiff_network::{
    Changes, ClusterDns, DnsConfig, LOOK_EVERY, LocalPods, PeerRoutes, PeersConfig, PodNetwork,
    PodNetworkConfig, PodSource, PolicyConfig, PolicyEnforcer, ProxyConfig, ServiceProxy, Uplink,
};
use skiff_nodelet::{EvictionHard, ImageGcPolicy, Nodelet, ServerTls};
use skiff_runtime::{NodeRuntime, RuntimeConfig};
use skiff_runtime_oci::{OciConfig, OciRuntime};
use skiff_runtime_wasm::{WasmConfig, WasmRuntime};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::address::Follow;
use crate::bridges::{Events, Network, PodGroups, identity};
use crate::complaint::Complaint;
use crate::identity::Identity;
use crate::layout::Layout;
use crate::pki::write_private;
use crate::role::Role;
use crate::{dns_address, open_files};

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
    /// The least that must be free: below it the node is under pressure, takes no pods, and has some give way
    #[arg(long, default_value_t)]
    pub(crate) eviction_hard: EvictionHard,
    /// How long the node tells of a pressure, and takes no pods, after it was last there
    #[arg(long, default_value = "5m", value_parser = skiff_apiserver::duration)]
    pub(crate) eviction_pressure_transition_period: Duration,
    /// From how many percent of its disk on images that nobody uses are removed; at 100 none is
    #[arg(long, default_value_t = 85, value_parser = clap::value_parser!(u8).range(..=100))]
    pub(crate) image_gc_high_threshold: u8,
    /// Until how many percent; never more than the high threshold
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u8).range(..=100))]
    pub(crate) image_gc_low_threshold: u8,
    /// The program that runs Linux containers
    #[arg(long, default_value = "runc")]
    pub(crate) runc: PathBuf,
    /// Resolver configuration for names outside the cluster
    #[arg(long, default_value = "/etc/resolv.conf")]
    pub(crate) resolv_conf: PathBuf,
}

/// What all nodes of a cluster have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// What the proxy, the DNS and the routes of a node are made from.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) args: NodeArgs,
    pub(crate) name: String,
    /// Of the moment; told here when it becomes another.
    pub(crate) ip: watch::Sender<Ipv4Addr>,
    pub(crate) network: ClusterNetwork,
    /// This node's part of the cluster's range.
    pub(crate) pod_cidr: String,
    /// Whether it says so in its Node. Else the cluster gave it the range, and may give it another one.
    pub(crate) claims_range: bool,
    /// Ports that the node itself listens on, and that no Service may take.
    pub(crate) own_ports: Vec<u16>,
    /// By which the proxy, the DNS and the routes see the cluster.
    pub(crate) informers: Informers,
    /// Where network policies see the cluster's pods.
    pub(crate) pod_source: PodSource,
    /// Keeps pods from the network until network policies have been heard.
    pub(crate) policies: Arc<LocalPods>,
}

/// A node that is about to start.
pub(crate) struct NodeSetup {
    pub(crate) site: Site,
    /// Whether its proxy, DNS and routes run already, by what was last known.
    pub(crate) services: Services,
    /// Told before the node serves at another address.
    pub(crate) moving: Arc<dyn Moving>,
    /// The node's own client.
    pub(crate) client: Client,
    /// What the node API shows.
    pub(crate) serving: Arc<Identity>,
    pub(crate) ca_pem: String,
}

/// What has to be done about a node that has another address, besides the node itself.
#[async_trait]
pub(crate) trait Moving: Send + Sync {
    /// Tells the cluster, and has a serving certificate for the address.
    async fn moved(&self, ip: Ipv4Addr) -> Result<()>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Services {
    Start,
    Run,
}

impl Site {
    fn ip(&self) -> Ipv4Addr {
        *self.ip.borrow()
    }
}

/// What tearing a node down must know, as it was when the node last started.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    network: NetworkRecord,
    runc: PathBuf,
    /// Not in records of earlier versions.
    #[serde(default)]
    node: Option<String>,
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
const BETWEEN_STARTS: Duration = Duration::from_secs(2);

/// The parts of a running node or server: each ends with its name when told to.
pub(crate) type Parts = JoinSet<Result<&'static str>>;

/// Starts all parts of the node. Its Node is ready when this returns.
pub(crate) async fn start(setup: NodeSetup, shutdown: &CancellationToken, parts: &mut Parts) -> Result<()> {
    let site = &setup.site;
    let Site { args, network, .. } = site;
    let last = read_record(&args.layout)?.map(|record| record.network.pod_cidr);
    if let Some(last) = last.filter(|last| *last != site.pod_cidr) {
        info!(
            last,
            now = site.pod_cidr,
            "the node has other pod addresses than before; its pods are made anew"
        );
        tear_down(&args.layout).await.context("removing what has the last pod addresses")?;
    }
    let record = Record {
        network: NetworkRecord {
            bridge: args.bridge.clone(),
            vxlan_device: args.vxlan_device.clone(),
            pod_cidr: site.pod_cidr.clone(),
            cluster_cidr: network.cluster_cidr.clone(),
            service_cidr: network.service_cidr.clone(),
            mtu: mtu(args, site.ip()).await,
        },
        runc: args.runc.clone(),
        node: Some(site.name.clone()),
    };
    write_private(&args.layout.node_record(), &serde_json::to_string(&record)?)?;
    let Opened { runtime, network, .. } = open_runtime(&args.layout, &record, site.policies.clone()).await?;
    let nodelet = nodelet_as_soon_as_it_is_taken(&setup, &runtime).await?;
    if setup.services == Services::Start {
        start_services(&setup.site, shutdown, parts).await?;
    }
    let stop = shutdown.clone();
    let mtu = setup.site.args.mtu;
    parts.spawn(mend_pod_network(network, setup.site.ip.subscribe(), mtu, shutdown.clone()));
    parts.spawn(async move { keep_nodelet(setup, runtime, nodelet, stop).await });
    Ok(())
}

/// The nodelet, registered. A server that goes away while its agents start is waited for like one that was never there.
async fn nodelet_as_soon_as_it_is_taken(setup: &NodeSetup, runtime: &Arc<NodeRuntime>) -> Result<Nodelet> {
    let mut complaint = Complaint::default();
    loop {
        match start_nodelet(setup, runtime.clone()).await {
            Err(error) if is_not_taken(&error) && !setup.site.claims_range => {
                if complaint.is_due() {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "the cluster does not take this node yet; trying again");
                }
            }
            started => return started.context("starting the nodelet"),
        }
        tokio::time::sleep(BETWEEN_STARTS).await;
    }
}

/// Runs the nodelet until `shutdown`, at whatever address the node has.
async fn keep_nodelet(
    setup: NodeSetup,
    runtime: Arc<NodeRuntime>,
    mut nodelet: Nodelet,
    shutdown: CancellationToken,
) -> Result<&'static str> {
    let site = setup.site.clone();
    let mut follow = Follow::from(&site.args, site.ip());
    loop {
        let stop = shutdown.child_token();
        let mut running = std::pin::pin!(nodelet.run(stop.clone()));
        let ip = tokio::select! {
            // Both only wait.
            ended = running.as_mut() => {
                return ended.context("running the nodelet").map(|()| "nodelet");
            }
            ip = follow.next() => ip,
        };
        info!(last = %site.ip(), now = %ip, "the node has another address; its nodelet begins anew there");
        stop.cancel();
        if let Err(error) = running.await {
            let error = format!("{:#}", anyhow!(error));
            tracing::warn!(error, "the nodelet at the last address did not end well");
        }
        site.ip.send_replace(ip);
        let moved = shutdown.run_until_cancelled(nodelet_at(&setup, &runtime, ip, &mut follow)).await;
        nodelet = match moved {
            Some(nodelet) => nodelet,
            None => return Ok("nodelet"),
        };
    }
}

/// A nodelet at another address, as soon as that can be. Should the address change once more meanwhile, at that one.
async fn nodelet_at(
    setup: &NodeSetup,
    runtime: &Arc<NodeRuntime>,
    mut ip: Ipv4Addr,
    follow: &mut Follow,
) -> Nodelet {
    let mut complaint = Complaint::default();
    loop {
        let started = async {
            setup.moving.moved(ip).await?;
            start_nodelet(setup, runtime.clone()).await.context("starting the nodelet")
        };
        match started.await {
            Ok(nodelet) => return nodelet,
            Err(error) if complaint.is_due() => {
                tracing::warn!(%ip, error = format!("{error:#}"), "the node cannot serve at its new address yet; trying again");
            }
            Err(_) => {}
        }
        if let Ok(next) = tokio::time::timeout(BETWEEN_STARTS, follow.next()).await {
            ip = next;
            setup.site.ip.send_replace(ip);
        }
    }
}

/// Undoes what others do to the links and routes that pods need.
async fn mend_pod_network(
    network: Arc<Network>,
    ip: watch::Receiver<Ipv4Addr>,
    mtu: Option<u32>,
    shutdown: CancellationToken,
) -> Result<&'static str> {
    let (mut changes, mut complaint) = (Changes::listen(), Complaint::default());
    loop {
        tokio::select! {
            // Both only wait.
            () = changes.next() => {}
            () = shutdown.cancelled() => return Ok("look at the pod network"),
        }
        let ip = *ip.borrow();
        if mtu.is_none()
            && let Ok(uplink) = Uplink::of(ip).await
        {
            network.pods.set_mtu(uplink.mtu);
        }
        if let Err(error) = network.pods.mend().await
            && complaint.is_due()
        {
            tracing::warn!(
                error = format!("{:#}", anyhow!(error)),
                "the pod network is not right; trying again"
            );
        }
    }
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

fn is_not_taken(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(skiff_nodelet::Error::Register { .. }))
}

async fn start_nodelet(setup: &NodeSetup, runtime: Arc<NodeRuntime>) -> Result<Nodelet> {
    let site = &setup.site;
    let Site { args, network, .. } = site;
    let mut config = skiff_nodelet::Config::new(&site.name, site.ip().into());
    config.root_dir = args.layout.nodelet();
    config.log_root = args.layout.log_dir.clone();
    config.cgroup_root = args.layout.cgroup_root.clone();
    config.pod_cgroups = Some(Arc::new(PodGroups(skiff_cgroup::Cgroups::detect()?)));
    config.cluster_dns = vec![network.cluster_dns.into()];
    config.cluster_domain = network.cluster_domain.clone();
    config.port = args.kubelet_port;
    config.max_pods = args.max_pods;
    config.eviction_hard = args.eviction_hard;
    config.pressure_transition = args.eviction_pressure_transition_period;
    config.image_gc = ImageGcPolicy {
        high_percent: args.image_gc_high_threshold,
        low_percent: args.image_gc_low_threshold.min(args.image_gc_high_threshold),
    };
    config.pod_cidr = Some(site.pod_cidr.clone()).filter(|_| site.claims_range);
    config.resolv_conf = args.resolv_conf.clone();
    config.tls = Some(ServerTls {
        certificate: setup.serving.clone(),
        client_ca_pem: setup.ca_pem.clone().into_bytes(),
    });
    let events = EventRecorder::new(setup.client.clone(), "kubelet", &site.name);
    Ok(Nodelet::start(config, setup.client.clone(), runtime, Arc::new(Events(events))).await?)
}

/// The service proxy, network policies, the cluster's DNS and the routes to other nodes.
pub(crate) async fn start_services(
    site: &Site,
    shutdown: &CancellationToken,
    parts: &mut Parts,
) -> Result<()> {
    let Site { args, network, informers, .. } = site;
    let config = ProxyConfig {
        node_name: site.name.clone(),
        node_ips: vec![site.ip()],
        cluster_cidr: network.cluster_cidr.clone(),
        pod_cidr: site.pod_cidr.clone(),
    };
    if !site.claims_range {
        let changed = range_changed(site, informers);
        let stop = shutdown.clone();
        parts.spawn(async move {
            match stop.run_until_cancelled(changed).await {
                Some(error) => Err(error),
                None => Ok("look at the node's range"),
            }
        });
    }
    let proxy = ServiceProxy::new(config, informers)
        .with_own_ports(site.own_ports.iter().copied())
        .following(site.ip.subscribe());
    let stop = shutdown.clone();
    parts.spawn(async move {
        proxy.run(stop).await;
        Ok("service proxy")
    });
    let config = PolicyConfig {
        pod_cidr: site.pod_cidr.clone(),
        cluster_dns: network.cluster_dns,
        pods: site.pod_source,
    };
    let policies = PolicyEnforcer::new(config, informers, site.policies.clone());
    let stop = shutdown.clone();
    parts.spawn(async move {
        policies.run(stop).await;
        Ok("network policies")
    });
    let config = PeersConfig {
        node_name: site.name.clone(),
        node_ip: site.ip(),
        pod_cidr: site.pod_cidr.clone(),
        cluster_cidr: network.cluster_cidr.clone(),
        vxlan_device: args.vxlan_device.clone(),
        vxlan_port: args.vxlan_port,
    };
    let routes = PeerRoutes::new(config, informers).following(site.ip.subscribe());
    let stop = shutdown.clone();
    parts.spawn(async move {
        routes.run(stop).await;
        Ok("routes to other nodes")
    });
    dns_address::claim(network.cluster_dns).context("giving this node the cluster's DNS address")?;
    let kept = dns_address::keep(network.cluster_dns, shutdown.clone());
    parts.spawn(async move {
        kept.await;
        Ok("look at the cluster's DNS address")
    });
    let config = DnsConfig {
        bind: SocketAddr::new(network.cluster_dns.into(), 53),
        domain: network.cluster_domain.clone(),
        upstreams: follow_upstreams(args, network, shutdown, parts),
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
fn range_changed(site: &Site, informers: &Informers) -> impl Future<Output = anyhow::Error> + use<> {
    let (name, has) = (site.name.clone(), site.pod_cidr.clone());
    let (found, mut other) = watch::channel(None);
    informers.of::<Node>().on_change(move |change| {
        let node = change.new.as_deref().filter(|node| node.metadata.name.as_deref() == Some(&name));
        let range = node.and_then(|node| node.spec.as_ref()?.pod_cidr.clone());
        if range.as_ref().is_some_and(|range| *range != has) {
            found.send_replace(range);
        }
    });
    let has = site.pod_cidr.clone();
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

/// The host's resolvers of the moment: a machine that moves to another network gets others.
fn follow_upstreams(
    args: &NodeArgs,
    network: &ClusterNetwork,
    shutdown: &CancellationToken,
    parts: &mut Parts,
) -> watch::Receiver<Vec<SocketAddr>> {
    let (known, followed) = watch::channel(upstreams(args, network).unwrap_or_default());
    let (args, network, stop) = (args.clone(), network.clone(), shutdown.clone());
    parts.spawn(async move {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                // Both only wait.
                _ = looks.tick() => {}
                () = stop.cancelled() => return Ok("look at the host's resolvers"),
            }
            // While it is written anew, the last one counts.
            let Some(now) = upstreams(&args, &network) else { continue };
            known.send_if_modified(|last| {
                let is_other = *last != now;
                *last = now;
                is_other
            });
        }
    });
    followed
}

/// The host's resolvers, without those that only the host itself can reach.
fn upstreams(args: &NodeArgs, network: &ClusterNetwork) -> Option<Vec<SocketAddr>> {
    let text = std::fs::read_to_string(&args.resolv_conf).ok()?;
    let found = text
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok())
        .filter(|ip| *ip != IpAddr::V4(network.cluster_dns))
        .map(|ip| SocketAddr::new(ip, 53));
    Some(found.take(3).collect())
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

async fn open_runtime(layout: &Layout, record: &Record, policies: Arc<LocalPods>) -> Result<Opened> {
    let images = images_beside(layout, &record.network)?;
    let NetworkRecord { bridge, pod_cidr, cluster_cidr, service_cidr, mtu, .. } = record.network.clone();
    let state_directory = layout.addresses();
    let config = PodNetworkConfig { bridge, pod_cidr, cluster_cidr, service_cidr, mtu, state_directory };
    let pods = PodNetwork::open(config).await.context("setting up the pod network")?;
    let network = Arc::new(Network { pods, policies });
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

/// Gives back addresses whose sandboxes are no more: of those that a crash took the records of. Whose the others are is recalled.
async fn release_addresses(runtime: &NodeRuntime, network: &Network) -> Result<()> {
    let sandboxes = runtime.list_pod_sandbox(Default::default()).await?.items;
    let known = sandboxes.iter().filter_map(|sandbox| {
        let address = network.pods.address(&sandbox.id)?;
        Some((sandbox.id.clone(), address, identity(sandbox.metadata.as_ref(), &sandbox.labels)))
    });
    network.policies.recall(known);
    for id in network.pods.sandboxes() {
        if !sandboxes.iter().any(|s| s.id == id) {
            info!(sandbox = id, "giving back the address of a sandbox that is gone");
            network.pods.detach(&id).await.with_context(|| format!("detaching sandbox {id}"))?;
        }
    }
    Ok(())
}

/// Sees to it that groups can be made, before anything else is: without them every pod would fail instead.
pub(crate) fn prepare_cgroups() -> Result<()> {
    let prepared = skiff_cgroup::Cgroups::detect().and_then(|cgroups| cgroups.prepare());
    prepared.context("this machine's control groups are not fit for pods; `skiff check` says what it lacks")
}

/// Two nodes of one machine would share a range of addresses, and the second end the first's pods.
pub(crate) fn require_name(layout: &Layout, name: &str) -> Result<()> {
    let last = read_record(layout)?.and_then(|record| record.node);
    match last.filter(|last| last != name) {
        None => Ok(()),
        Some(last) => Err(anyhow!(
            "this machine is node {last:?} of its cluster and cannot be {name:?}; give --node-name {last}, or remove {} first to \
             make it another node",
            layout.data_dir.display()
        )),
    }
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
        let opened = open_runtime(layout, &record, Arc::default()).await?;
        let sandboxes = opened.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items;
        for sandbox in sandboxes {
            let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            let removed = opened.runtime.remove_pod_sandbox(request).await;
            removed.with_context(|| format!("removing sandbox {}", sandbox.id))?;
        }
        opened.wasm.shutdown_hosts().await.map_err(|e| anyhow!(e).context("ending the Wasm hosts"))?;
        ServiceProxy::remove_rules().await.context("removing the service rules")?;
        PolicyEnforcer::remove_rules().await.context("removing the rules of network policies")?;
        PeerRoutes::remove(&record.network.vxlan_device)
            .await
            .context("removing the routes to other nodes")?;
        opened.network.pods.close().await.context("removing the pod network")?;
    }
    remove_groups(layout)
}

/// Ends what is left in the control groups of a node's pods, and removes them.
pub(crate) fn remove_groups(layout: &Layout) -> Result<()> {
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
    let runtime = open_runtime(layout, &record, Arc::default()).await?.runtime;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_was_renamed_is_not_another_node_of_its_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let mut layout = Layout::of_cluster("test", std::path::Path::new("/none"));
        layout.data_dir = directory.path().to_owned();
        require_name(&layout, "a").unwrap();
        let network = serde_json::json!({"bridge": "b", "vxlan_device": "v", "pod_cidr": "10.42.0.0/24",
            "cluster_cidr": "10.42.0.0/16", "service_cidr": "10.43.0.0/16", "mtu": 1500});
        let mut record = serde_json::json!({"network": network, "runc": "runc"});
        write_private(&layout.node_record(), &record.to_string()).unwrap();
        require_name(&layout, "a").unwrap();
        record["node"] = "a".into();
        write_private(&layout.node_record(), &record.to_string()).unwrap();
        require_name(&layout, "a").unwrap();
        let refused = require_name(&layout, "b").unwrap_err().to_string();
        assert!(refused.contains("is node \"a\"") && refused.contains("--node-name a"), "{refused}");
    }
}
