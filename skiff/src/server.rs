//! `skiff server`: the control plane and one node, in one process.
//!
//! ```text
//!  store ─ API server ─┬─ TLS on :6443
//!                      └─ in process ─┬─ informers      as system:kube-controller-manager
//!                                     │   ├─ scheduler  writes as system:kube-scheduler
//!                                     │   ├─ controllers
//!                                     │   └─ proxy, DNS and routes, which only read
//!                                     └─ nodelet        as system:node:<name>
//! ```
//!
//! Scheduler, controllers, proxy, DNS and routes see the cluster by the same informers: an object is decoded once, and there
//! once.
//!
//! Components come up in the order in which they need each other, and go down together. Containers are not among
//! them: shims and Wasm hosts are processes of their own, and go on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use skiff_apiserver::store::{SqliteOptions, SqliteStore};
use skiff_apiserver::{ApiServer, KubeletConfig, ServiceAccountConfig, ServiceCidr, TlsConfig, UserInfo};
use skiff_client::Informers;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::identity::Identity;
use crate::node::{self, ClusterNetwork, NodeArgs, NodeSetup, Parts, SSH_PORT};
use crate::pki::{Pki, write_private};
use crate::{memory, open_files};

#[derive(Args, Clone, Debug)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Port of the Kubernetes API
    #[arg(long, default_value_t = 6443)]
    pub(crate) port: u16,
    /// Address that the Kubernetes API listens on
    #[arg(long, default_value = "0.0.0.0")]
    pub(crate) bind: IpAddr,
    /// More names and addresses that the API's certificate is to hold
    #[arg(long = "tls-san", value_name = "NAME")]
    pub(crate) tls_sans: Vec<String>,
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
    /// Give Services of type LoadBalancer the addresses of all ready nodes
    #[arg(long, default_value = "true", action = clap::ArgAction::Set)]
    pub(crate) service_lb: bool,
    /// How long events are kept
    #[arg(long, env = "SKIFF_EVENT_TTL", default_value = "1h", value_parser = skiff_apiserver::duration)]
    pub(crate) event_ttl: Duration,
    /// Where to write the administrator's kubeconfig
    #[arg(long, default_value = "/etc/skiff/skiff.yaml")]
    pub(crate) write_kubeconfig: PathBuf,
}

/// Of the cluster's range, each node gets a part this long.
const NODE_PREFIX: u8 = 24;

/// What of the arguments had to be found out.
struct Node {
    name: String,
    ip: Ipv4Addr,
}

/// Runs until SIGINT or SIGTERM.
pub(crate) async fn run(args: ServerArgs) -> Result<()> {
    memory::prepare();
    open_files::raise()?;
    let node = Node { name: node::node_name(&args.node)?, ip: node::node_ip(&args.node)? };
    for directory in [&args.node.layout.data_dir, &args.node.layout.run_dir] {
        std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    let pki = Pki::open(&args.node.layout.pki())?;
    let api = start_api(&args, &node, &pki).await?;
    let listener = TcpListener::bind((args.bind, args.port)).await.with_context(|| {
        format!("listening on {}:{}; is another server running? choose another --port", args.bind, args.port)
    })?;
    write_kubeconfig(&args, &node, &pki)?;
    info!(address = %listener.local_addr()?, "the API answers");

    let shutdown = CancellationToken::new();
    tokio::spawn(memory::give_back(shutdown.clone()));
    let mut parts = Parts::new();
    {
        let (api, shutdown) = (api.clone(), shutdown.clone());
        parts.spawn(async move {
            api.serve(listener, shutdown).await.context("serving the API")?;
            Ok("API server")
        });
    }
    let informers = Informers::new(client(&api, "system:kube-controller-manager", &[]), shutdown.clone());
    let server = Server { args, node, pki, api, informers, shutdown };
    server.start_control_plane(&mut parts)?;
    server.publish_network().await?;
    server.start_node(&mut parts).await?;
    info!(node = server.node.name, "the node is ready");

    let outcome = node::run_until_stopped(parts, &server.shutdown).await;
    server.api.close().await;
    outcome
}

async fn start_api(args: &ServerArgs, node: &Node, pki: &Pki) -> Result<ApiServer> {
    let store = SqliteStore::open(SqliteOptions::new(args.node.layout.database()))
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
        event_ttl: args.event_ttl,
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
    write_private(path, &pki.kubeconfig("skiff", &server)?)
}

fn client(api: &ApiServer, user: &str, groups: &[&str]) -> Client {
    Client::new(api.service_for(UserInfo::new(user, groups)), "default")
}

/// The server itself, where no component may.
fn administrator(api: &ApiServer) -> Client {
    client(api, "system:apiserver", &["system:masters"])
}

/// A server whose API answers, and what its other parts are made from.
struct Server {
    args: ServerArgs,
    node: Node,
    pki: Pki,
    api: ApiServer,
    informers: Informers,
    shutdown: CancellationToken,
}

impl Server {
    fn start_control_plane(&self, parts: &mut Parts) -> Result<()> {
        let Server { args, node, pki, .. } = self;
        let scheduler = client(&self.api, "system:kube-scheduler", &[]);
        let (seen, host, stop) = (self.informers.clone(), node::host_name()?, self.shutdown.clone());
        parts.spawn(async move {
            skiff_scheduler::run(scheduler, seen, host, stop).await;
            Ok("scheduler")
        });
        let config = skiff_controllers::Config { service_lb: args.service_lb };
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
        let (ca_pem, seen, stop) = (pki.ca_pem.clone(), self.informers.clone(), self.shutdown.clone());
        parts.spawn(async move {
            skiff_controllers::run(config, Some(joining), ca_pem, seen, stop).await;
            Ok("controllers")
        });
        Ok(())
    }

    /// The server's own node: its clients need no certificates, its range is the first.
    async fn start_node(&self, parts: &mut Parts) -> Result<()> {
        let Server { args, node, pki, api, .. } = self;
        let user = format!("system:node:{}", node.name);
        let serving = pki.server(&user, Some("system:nodes"), &[&node.name], &[node.ip.into()])?;
        let setup = NodeSetup {
            args: args.node.clone(),
            name: node.name.clone(),
            ip: node.ip,
            network: network(args),
            pod_cidr: args.pod_cidr.clone(),
            claims_range: true,
            own_ports: vec![SSH_PORT, args.port, args.node.kubelet_port],
            client: client(api, &user, &["system:nodes"]),
            informers: self.informers.clone(),
            serving: Identity::fixed(&serving)?,
            ca_pem: pki.ca_pem.clone(),
        };
        node::start(setup, &self.shutdown, parts).await?;
        label_control_plane(api, &node.name).await
    }

    /// Tells nodes that join what they have in common with the others.
    async fn publish_network(&self) -> Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(administrator(&self.api), "kube-system");
        let network = network(&self.args);
        let map = serde_json::json!({
            "metadata": {"name": node::CONFIG_MAP},
            "data": {"kubelet": node::kubelet_configuration(&network)?, "network": serde_json::to_string(&network)?},
        });
        let map: ConfigMap = serde_json::from_value(map)?;
        let publish = async {
            match maps.create(&PostParams::default(), &map).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    let patch = Patch::Merge(serde_json::json!({"data": map.data}));
                    maps.patch(node::CONFIG_MAP, &PatchParams::default(), &patch).await
                }
                created => created,
            }
        };
        publish.await.map(drop).with_context(|| format!("writing kube-system/{}", node::CONFIG_MAP))
    }
}

fn network(args: &ServerArgs) -> ClusterNetwork {
    ClusterNetwork {
        cluster_cidr: args.cluster_cidr.clone(),
        service_cidr: args.service_cidr.clone(),
        cluster_dns: args.cluster_dns,
        cluster_domain: args.cluster_domain.clone(),
    }
}

/// A node may not give itself a role; the server, whose node this is, may.
async fn label_control_plane(api: &ApiServer, node: &str) -> Result<()> {
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(administrator(api));
    let patch = serde_json::json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}});
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await.context("labelling the node")?;
    Ok(())
}
