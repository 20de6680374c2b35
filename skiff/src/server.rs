//! `skiff server`: the control plane and one node, in one process.
//!
//! ```text
//!  store ─ API server ─┬─ TLS on :6443
//!                      └─ in process ─┬─ scheduler      as system:kube-scheduler
//!                                     ├─ controllers    as system:kube-controller-manager
//!                                     ├─ proxy and DNS  as system:kube-proxy
//!                                     └─ nodelet        as system:node:<name>
//! ```
//!
//! Components come up in the order in which they need each other, and go down together. Containers are not among
//! them: shims and Wasm hosts are processes of their own, and go on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use kube::Client;
use skiff_apiserver::store::{SqliteOptions, SqliteStore};
use skiff_apiserver::{ApiServer, KubeletConfig, ServiceAccountConfig, ServiceCidr, TlsConfig, UserInfo};
use skiff_client::{EventRecorder, Informers};
use skiff_cri::{ContainerRuntime, Cri};
use skiff_images::{Images, Registries};
use skiff_network::{ClusterDns, DnsConfig, PodNetwork, PodNetworkConfig, ProxyConfig, ServiceProxy};
use skiff_nodelet::{Nodelet, ServerTls};
use skiff_runtime::{NodeRuntime, RuntimeConfig};
use skiff_runtime_oci::{OciConfig, OciRuntime};
use skiff_runtime_wasm::{WasmConfig, WasmRuntime};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::bridges::{Events, Network};
use crate::layout::Layout;
use crate::pki::{Pki, write_private};
use crate::role::Role;

#[derive(Args, Clone, Debug)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) layout: Layout,
    /// This node's name [default: the host name]
    #[arg(long)]
    pub(crate) node_name: Option<String>,
    /// This node's address, which other nodes and pods reach it by [default: that of the default route]
    #[arg(long)]
    pub(crate) node_ip: Option<Ipv4Addr>,
    /// Port of the Kubernetes API
    #[arg(long, default_value_t = 6443)]
    pub(crate) port: u16,
    /// Address that the Kubernetes API listens on
    #[arg(long, default_value = "0.0.0.0")]
    pub(crate) bind: IpAddr,
    /// More names and addresses that the API's certificate is to hold
    #[arg(long = "tls-san", value_name = "NAME")]
    pub(crate) tls_sans: Vec<String>,
    /// Port of the node API
    #[arg(long, default_value_t = 10250)]
    pub(crate) kubelet_port: u16,
    /// Range of the whole cluster's pods
    #[arg(long, default_value = "10.42.0.0/16")]
    pub(crate) cluster_cidr: String,
    /// Range of this node's pods
    #[arg(long, default_value = "10.42.0.0/24")]
    pub(crate) pod_cidr: String,
    /// Range of Services
    #[arg(long, default_value = "10.43.0.0/16")]
    pub(crate) service_cidr: String,
    /// Address of the cluster's DNS, within the range of Services
    #[arg(long, default_value = "10.43.0.10")]
    pub(crate) cluster_dns: Ipv4Addr,
    #[arg(long, default_value = "cluster.local")]
    pub(crate) cluster_domain: String,
    /// The bridge that pods are attached to
    #[arg(long, default_value = "skiff0")]
    pub(crate) bridge: String,
    /// Largest packet on the pod network
    #[arg(long, default_value_t = 1500)]
    pub(crate) mtu: u32,
    /// Most pods on this node
    #[arg(long, default_value_t = 110)]
    pub(crate) max_pods: u32,
    /// The program that runs Linux containers
    #[arg(long, default_value = "runc")]
    pub(crate) runc: PathBuf,
    /// Resolver configuration for names outside the cluster
    #[arg(long, default_value = "/etc/resolv.conf")]
    pub(crate) resolv_conf: PathBuf,
    /// Give Services of type LoadBalancer this node's address
    #[arg(long, default_value = "true", action = clap::ArgAction::Set)]
    pub(crate) service_lb: bool,
    /// Where to write the administrator's kubeconfig
    #[arg(long, default_value = "/etc/skiff/skiff.yaml")]
    pub(crate) write_kubeconfig: PathBuf,
}

/// Of the cluster's range, each node gets a part this long.
const NODE_PREFIX: u8 = 24;
/// What an administrator reaches the machine by: no Service takes it.
const SSH_PORT: u16 = 22;
/// How long parts may take to end once told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// What of the arguments had to be found out.
struct Node {
    name: String,
    ip: Ipv4Addr,
}

/// Runs until SIGINT or SIGTERM.
pub(crate) async fn run(args: ServerArgs) -> Result<()> {
    let node = Node { name: node_name(&args)?, ip: node_ip(&args)? };
    for directory in [&args.layout.data_dir, &args.layout.run_dir] {
        std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    let pki = Pki::open(&args.layout.pki())?;
    let api = start_api(&args, &node, &pki).await?;
    let listener = TcpListener::bind((args.bind, args.port)).await.with_context(|| {
        format!("listening on {}:{}; is another server running? choose another --port", args.bind, args.port)
    })?;
    write_kubeconfig(&args, &node, &pki)?;
    info!(address = %listener.local_addr()?, "the API answers");

    let shutdown = CancellationToken::new();
    let mut tasks: JoinSet<Result<&'static str>> = JoinSet::new();
    {
        let (api, shutdown) = (api.clone(), shutdown.clone());
        tasks.spawn(async move {
            api.serve(listener, shutdown).await.context("serving the API")?;
            Ok("API server")
        });
    }
    start_control_plane(&args, &node, &pki, &api, &shutdown, &mut tasks)?;
    start_node(&args, &node, &pki, &api, &shutdown, &mut tasks).await?;
    info!(node = node.name, "the node is ready");

    let outcome = tokio::select! {
        // Both only wait.
        () = stop_signal() => Ok(()),
        Some(ended) = tasks.join_next() => Err(match ended {
            Ok(Ok(part)) => anyhow!("the {part} ended by itself"),
            Ok(Err(error)) => error,
            Err(error) => anyhow!(error).context("a part of the server panicked"),
        }),
    };
    info!("stopping; containers go on");
    shutdown.cancel();
    let ended =
        tokio::time::timeout(STOP_TIMEOUT, async { while tasks.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::warn!("some parts did not end in time");
    }
    api.close().await;
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

async fn start_api(args: &ServerArgs, node: &Node, pki: &Pki) -> Result<ApiServer> {
    let store = SqliteStore::open(SqliteOptions::new(args.layout.database()))
        .context("opening the cluster's database")?;
    let (names, ips) = serving_names(args, node)?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let serving = pki.server("kube-apiserver", None, &names, &ips)?;
    let kubelet_client = pki.client("kube-apiserver-kubelet-client", Some("system:masters"))?;
    ApiServer::start(skiff_apiserver::Config {
        store: Arc::new(store),
        tls: Some(TlsConfig {
            certificate_chain_pem: serving.certificate_pem.into(),
            key_pem: serving.key_pem.into(),
            client_ca_pem: pki.ca_pem.clone().into(),
        }),
        advertise: node.ip.into(),
        port: args.port,
        service_cidr: service_cidr(args)?,
        cluster_domain: args.cluster_domain.clone(),
        service_account: ServiceAccountConfig {
            private_key_pem: pki.service_account_private_pem.clone().into(),
            public_key_pem: pki.service_account_public_pem.clone().into(),
            issuer: None,
        },
        kubelet: KubeletConfig {
            certificate_pem: kubelet_client.certificate_pem.into(),
            key_pem: kubelet_client.key_pem.into(),
            ca_pem: pki.ca_pem.clone().into(),
            allow_loopback: false,
        },
    })
    .await
    .context("starting the API server")
}

fn service_cidr(args: &ServerArgs) -> Result<ServiceCidr> {
    args.service_cidr.parse().context("--service-cidr")
}

/// The names and addresses that the API server answers to.
fn serving_names(args: &ServerArgs, node: &Node) -> Result<(Vec<String>, Vec<IpAddr>)> {
    let mut names = vec![
        "kubernetes".to_owned(),
        "kubernetes.default".into(),
        "kubernetes.default.svc".into(),
        format!("kubernetes.default.svc.{}", args.cluster_domain),
        "localhost".into(),
    ];
    let mut ips: Vec<IpAddr> =
        vec![Ipv4Addr::LOCALHOST.into(), node.ip.into(), service_cidr(args)?.first().into()];
    for san in &args.tls_sans {
        match san.parse() {
            Ok(ip) => ips.push(ip),
            Err(_) => names.push(san.clone()),
        }
    }
    Ok((names, ips))
}

fn write_kubeconfig(args: &ServerArgs, node: &Node, pki: &Pki) -> Result<()> {
    let path = &args.write_kubeconfig;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    let host = if args.bind.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { args.bind };
    let server = format!("https://{}", SocketAddr::new(host, args.port));
    tracing::debug!(node = node.name, path = %path.display(), "writing the kubeconfig");
    write_private(path, &pki.kubeconfig("skiff", &server))
}

fn client(api: &ApiServer, user: &str, groups: &[&str]) -> Client {
    Client::new(api.service_for(UserInfo::new(user, groups)), "default")
}

fn start_control_plane(
    args: &ServerArgs,
    node: &Node,
    pki: &Pki,
    api: &ApiServer,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<Result<&'static str>>,
) -> Result<()> {
    let scheduler = client(api, "system:kube-scheduler", &[]);
    let stop = shutdown.clone();
    tasks.spawn(async move {
        skiff_scheduler::run(scheduler, stop).await;
        Ok("scheduler")
    });
    let config = skiff_controllers::Config { service_lb: args.service_lb };
    let controllers = client(api, "system:kube-controller-manager", &[]);
    let (reserved_names, reserved_ips) = serving_names(args, node)?;
    let joining = skiff_controllers::Joining::new(skiff_controllers::JoiningOptions {
        server: &format!("https://{}", SocketAddr::new(node.ip.into(), args.port)),
        ca_pem: &pki.ca_pem,
        ca_key_pem: &pki.ca_key_pem,
        reserved_names,
        reserved_ips,
        cluster_cidr: &args.cluster_cidr,
        node_prefix: NODE_PREFIX,
        service_cidr: Some(&args.service_cidr),
    })
    .context("preparing for nodes to join")?;
    let (ca_pem, stop) = (pki.ca_pem.clone(), shutdown.clone());
    tasks.spawn(async move {
        skiff_controllers::run_joinable(config, joining, ca_pem, controllers, stop).await;
        Ok("controllers")
    });
    Ok(())
}

async fn start_node(
    args: &ServerArgs,
    node: &Node,
    pki: &Pki,
    api: &ApiServer,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<Result<&'static str>>,
) -> Result<()> {
    let runtime = open_runtime(args).await?.runtime;
    let user = format!("system:node:{}", node.name);
    let node_client = client(api, &user, &["system:nodes"]);
    let serving = pki.server(&user, Some("system:nodes"), &[&node.name], &[node.ip.into()])?;
    let mut config = skiff_nodelet::Config::new(&node.name, node.ip.into());
    config.root_dir = args.layout.nodelet();
    config.log_root = args.layout.log_dir.clone();
    config.cgroup_root = args.layout.cgroup_root.clone();
    config.cluster_dns = vec![args.cluster_dns.into()];
    config.cluster_domain = args.cluster_domain.clone();
    config.port = args.kubelet_port;
    config.max_pods = args.max_pods;
    config.pod_cidr = Some(args.pod_cidr.clone());
    config.resolv_conf = args.resolv_conf.clone();
    config.tls = Some(ServerTls {
        certificate_pem: serving.certificate_pem.into(),
        key_pem: serving.key_pem.into(),
        client_ca_pem: pki.ca_pem.clone().into(),
    });
    let events = EventRecorder::new(node_client.clone(), "kubelet", &node.name);
    let nodelet = Nodelet::start(config, node_client, runtime, Arc::new(Events(events)))
        .await
        .context("starting the nodelet")?;
    label_control_plane(api, &node.name).await?;
    let stop = shutdown.clone();
    tasks.spawn(async move {
        nodelet.run(stop).await.context("running the nodelet")?;
        Ok("nodelet")
    });
    start_services(args, node, api, shutdown, tasks).await
}

/// A node may not give itself a role; the server, whose node this is, may.
async fn label_control_plane(api: &ApiServer, node: &str) -> Result<()> {
    use kube::api::{Patch, PatchParams};
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> =
        kube::Api::all(client(api, "system:apiserver", &["system:masters"]));
    let patch = serde_json::json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}});
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await.context("labelling the node")?;
    Ok(())
}

/// The service proxy and the cluster's DNS.
async fn start_services(
    args: &ServerArgs,
    node: &Node,
    api: &ApiServer,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<Result<&'static str>>,
) -> Result<()> {
    let informers =
        Informers::new(client(api, "system:kube-proxy", &["system:node-proxier"]), shutdown.clone());
    let config = ProxyConfig {
        node_name: node.name.clone(),
        node_ips: vec![node.ip],
        cluster_cidr: args.cluster_cidr.clone(),
        pod_cidr: args.pod_cidr.clone(),
    };
    let proxy =
        ServiceProxy::new(config, &informers).with_own_ports([SSH_PORT, args.port, args.kubelet_port]);
    let stop = shutdown.clone();
    tasks.spawn(async move {
        proxy.run(stop).await;
        Ok("service proxy")
    });
    claim_address(args.cluster_dns).context("giving this node the cluster's DNS address")?;
    let config = DnsConfig {
        bind: SocketAddr::new(args.cluster_dns.into(), 53),
        domain: args.cluster_domain.clone(),
        upstreams: upstreams(args),
    };
    let dns = ClusterDns::start(config, &informers).await.context("starting the cluster's DNS")?;
    let stop = shutdown.clone();
    tasks.spawn(async move {
        dns.run(stop).await;
        Ok("cluster DNS")
    });
    Ok(())
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
fn upstreams(args: &ServerArgs) -> Vec<IpAddr> {
    let text = std::fs::read_to_string(&args.resolv_conf).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok())
        .filter(|ip| *ip != IpAddr::V4(args.cluster_dns))
        .take(3)
        .collect()
}

/// The node's runtime and the parts that only a teardown asks for.
pub(crate) struct NodeParts {
    pub(crate) runtime: Arc<NodeRuntime>,
    pub(crate) wasm: Arc<WasmRuntime>,
    pub(crate) network: Arc<Network>,
}

pub(crate) fn open_images(layout: &Layout) -> Result<Arc<Images>> {
    let registries = if layout.registries.exists() {
        Registries::load(&layout.registries).context("reading the registries file")?
    } else {
        Registries::default()
    };
    Images::open(&layout.images(), registries).context("opening the image store")
}

pub(crate) async fn open_runtime(args: &ServerArgs) -> Result<NodeParts> {
    let layout = &args.layout;
    let images = open_images(layout)?;
    let network = PodNetwork::open(PodNetworkConfig {
        bridge: args.bridge.clone(),
        pod_cidr: args.pod_cidr.clone(),
        cluster_cidr: args.cluster_cidr.clone(),
        service_cidr: args.service_cidr.clone(),
        mtu: args.mtu,
        state_directory: layout.addresses(),
    })
    .await
    .context("setting up the pod network")?;
    let network = Arc::new(Network(network));
    let oci = OciRuntime::open(OciConfig {
        name: "runc",
        runc: args.runc.clone(),
        root: layout.runc_root(),
        state_dir: layout.oci(),
        shim_command: Role::Shim.command()?,
        images: images.clone(),
        cgroups: skiff_cgroup::Cgroups::detect()?,
        pids_limit: None,
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
        default_handler: "runc".into(),
        wasm: wasm.clone(),
    })
    .await
    .map_err(|e| anyhow!(e).context("opening the container runtime"))?;
    release_addresses(&runtime, &network).await?;
    Ok(NodeParts { runtime, wasm, network })
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

/// Removes every pod of the node and all that the node made. What `skiff down` runs, after the server has ended.
pub(crate) async fn tear_down(args: &ServerArgs) -> Result<()> {
    use skiff_cri::v1::{ListPodSandboxRequest, RemovePodSandboxRequest};
    let parts = open_runtime(args).await?;
    let sandboxes = parts.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items;
    for sandbox in sandboxes {
        let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        parts
            .runtime
            .remove_pod_sandbox(request)
            .await
            .with_context(|| format!("removing sandbox {}", sandbox.id))?;
    }
    parts.wasm.shutdown_hosts().await.map_err(|e| anyhow!(e).context("ending the Wasm hosts"))?;
    ServiceProxy::remove_rules().await.context("removing the service rules")?;
    parts.network.0.close().await.context("removing the pod network")?;
    let cgroups = skiff_cgroup::Cgroups::detect()?;
    let group = cgroups.group(&args.layout.cgroup_root)?;
    if group.exists() {
        group.kill().and_then(|()| group.remove()).context("removing the pods' cgroup")?;
    }
    Ok(())
}

fn node_name(args: &ServerArgs) -> Result<String> {
    let name = match &args.node_name {
        Some(name) => name.clone(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname").context("reading the host name")?,
    };
    let name = name.trim().to_lowercase();
    match skiff_api::name::dns_subdomain_fault(&name) {
        None => Ok(name),
        Some(fault) => Err(anyhow!("{name:?} cannot be a node's name: {fault}; give --node-name")),
    }
}

/// The address that packets to elsewhere would leave with. No packet is sent: connecting a UDP socket only asks for
/// the route.
fn node_ip(args: &ServerArgs) -> Result<Ipv4Addr> {
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
