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
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use clap::Args;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use skiff_apiserver::{
    AdmissionPlugin, ApiServer, FrontProxyConfig, KubeletConfig, ServiceAccountConfig, ServiceCidr,
    TlsConfig, UserInfo,
};
use skiff_client::Informers;
use skiff_controllers::{Reached, Selection};
use skiff_network::PodSource;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::complaint::Complaint;
use crate::identity::{Identity, Validity};
use crate::layout::Layout;
use crate::node::{self, ClusterNetwork, Moving, NodeArgs, NodeSetup, Parts, SSH_PORT, Services, Site};
use crate::pki::{self, Clock, Pair, Pki, write_private};
use crate::turns;
use crate::upkeep::Certificates;
use crate::{address, memory, open_files};

mod authorization;
mod control_plane;
mod datastore;

use authorization::AuthorizationArgs;
use control_plane::Component;
use datastore::DatastoreArgs;

#[derive(Args, Clone, Debug)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) datastore: DatastoreArgs,
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
    /// Name of the StorageClass of volumes that are directories of nodes, made where there is none of that name; '' for none
    #[arg(long, value_name = "NAME", default_value = "local")]
    pub(crate) local_storage_class: String,
    /// Controllers to run, by the names of kube-controller-manager: '*' all, 'foo' also foo, '-foo' not foo
    #[arg(long, value_name = "NAMES", default_value = "*", allow_hyphen_values = true)]
    pub(crate) controllers: Selection,
    /// Components that are not to run here, because something else does their work
    #[arg(long, value_name = "COMPONENT", value_delimiter = ',')]
    pub(crate) disable: Vec<Component>,
    /// How long events are kept
    #[arg(long, env = "SKIFF_EVENT_TTL", default_value = "1h", value_parser = skiff_apiserver::duration)]
    pub(crate) event_ttl: Duration,
    /// How long after its end the certificate of a node that was off still lets it ask for the next one, such as 9600h, if its
    /// Node is still there; 0: not at all
    #[arg(long, default_value = "0", value_parser = skiff_apiserver::duration)]
    pub(crate) node_certificate_grace: Duration,
    /// Do without these plug-ins of admission: `ServiceAccount`, `DefaultTolerationSeconds`
    #[arg(long, value_name = "PLUG-INS", value_delimiter = ',')]
    pub(crate) disable_admission_plugins: Vec<AdmissionPlugin>,
    #[command(flatten)]
    pub(crate) authorization: AuthorizationArgs,
    /// Where to write the administrator's kubeconfig
    #[arg(long, default_value = "/etc/skiff/skiff.yaml")]
    pub(crate) write_kubeconfig: PathBuf,
    /// Make the cluster's authority, which lasts ten years, though this machine's clock shows a time before this program was
    /// built
    #[arg(long)]
    pub(crate) accept_clock: bool,
}

/// What of the arguments had to be found out.
#[derive(Clone)]
struct Node {
    name: String,
    ip: Ipv4Addr,
}

/// Runs until SIGINT or SIGTERM.
pub(crate) async fn run(args: ServerArgs) -> Result<()> {
    memory::prepare();
    open_files::raise()?;
    node::prepare_cgroups()?;
    let name = node::node_name(&args.node)?;
    for directory in [&args.node.layout.data_dir, &args.node.layout.run_dir] {
        std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    if !args.datastore.is_shared() {
        require_database(&args.node.layout)?;
    }
    node::require_name(&args.node.layout, &name)?;
    let node = Node { name, ip: address::wait(&args.node).await? };
    let clock = Clock::of(args.accept_clock);
    wait_for_clock(&args.node.layout.pki(), clock).await;
    let pki = Arc::new(Pki::open(&args.node.layout.pki(), clock)?);
    let api = start_api(&args, &node, &pki).await?;
    let listener = TcpListener::bind((args.bind, args.port)).await.with_context(|| {
        format!("listening on {}:{}; is another server running? choose another --port", args.bind, args.port)
    })?;
    write_kubeconfig(&args, &pki)?;
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
    let serving = Identity::fixed(&node_certificate(&pki, &node.name, node.ip)?)?;
    let ip = watch::Sender::new(node.ip);
    let reached = watch::Sender::new(reached(&args, node.ip)?);
    let authority = watch::Sender::new(());
    let server = Server { args, node, pki, api, informers, serving, ip, reached, authority, shutdown };
    server.keep_certificates(&mut parts);
    server.publish_authority(&mut parts);
    server.start_control_plane(&mut parts).await?;
    server.publish_network().await?;
    server.start_node(&mut parts).await?;
    info!(node = server.node.name, "the node is ready");

    let outcome = node::run_until_stopped(parts, &server.shutdown).await;
    server.api.close().await;
    outcome
}

/// An authority that a wrong clock makes is wrong for as long as the cluster lives.
async fn wait_for_clock(pki: &Path, clock: Clock) {
    const LOOK_EVERY: Duration = Duration::from_secs(1);
    let are_made = pki::authority_files(pki).iter().all(|(authority, _)| authority.exists());
    if clock == Clock::Accepted || are_made {
        return;
    }
    let mut complaint = Complaint::default();
    while let Some(fault) = pki::clock_fault(Timestamp::now()) {
        if complaint.is_due() {
            warn!("waiting for the clock: {fault}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A server that has keys and a node had a cluster as well. Without its database it would begin an empty one, and end
/// whatever runs.
fn require_database(layout: &Layout) -> Result<()> {
    let database = layout.database();
    let length_bytes = match std::fs::metadata(&database) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error).with_context(|| format!("looking at {}", database.display())),
    };
    let (authority, record) = (pki::authority_file(&layout.pki()), layout.node_record());
    if length_bytes > 0 || !authority.exists() || !record.exists() {
        return Ok(());
    }
    bail!(
        "{} is missing or empty, though a cluster was kept here ({} and {} are there): mount its disk, restore a backup of it, or \
         name its --datastore if it had one; to begin an empty cluster in its place, remove {} and {} first",
        database.display(),
        authority.display(),
        record.display(),
        layout.pki().display(),
        record.display()
    )
}

async fn start_api(args: &ServerArgs, node: &Node, pki: &Pki) -> Result<ApiServer> {
    let store = args.datastore.open(&args.node.layout, &pki.ca_pem()).await?;
    let serving = api_certificate(args, pki, node.ip)?;
    let kubelet_client = kubelet_client_certificate(pki)?;
    ApiServer::start(skiff_apiserver::Config {
        store,
        tls: Some(TlsConfig {
            certificate_chain_pem: serving.certificate_pem.into(),
            key_pem: serving.key_pem.into(),
            client_ca_pem: pki.ca_pem().into(),
        }),
        front_proxy: Some(front_proxy(pki)?),
        advertise: node.ip.into(),
        port: args.port,
        service_cidr: service_cidr(args)?,
        cluster_domain: args.cluster_domain.clone(),
        event_ttl: args.event_ttl,
        kinds: skiff_apiserver::Kinds::builtin(),
        node_certificate_grace: args.node_certificate_grace,
        disabled_admission: args.disable_admission_plugins.clone(),
        authorization: args.authorization.options()?,
        on_long_thread: turns::be_usual,
        service_account: ServiceAccountConfig {
            private_key_pem: pki.service_account_private_pem.clone().into(),
            public_key_pem: pki.service_account_public_pem.clone().into(),
            issuer: None,
        },
        kubelet: KubeletConfig {
            certificate_pem: kubelet_client.certificate_pem.into(),
            key_pem: kubelet_client.key_pem.into(),
            ca_pem: pki.ca_pem().into(),
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
fn serving_names(args: &ServerArgs, ip: Ipv4Addr) -> Result<(Vec<String>, Vec<IpAddr>)> {
    let mut names = vec![
        "kubernetes".to_owned(),
        "kubernetes.default".into(),
        "kubernetes.default.svc".into(),
        format!("kubernetes.default.svc.{}", args.cluster_domain),
        "localhost".into(),
    ];
    let mut ips: Vec<IpAddr> =
        vec![Ipv4Addr::LOCALHOST.into(), ip.into(), service_cidr(args)?.first().into()];
    for san in &args.tls_sans {
        match san.parse() {
            Ok(ip) => ips.push(ip),
            Err(_) => names.push(san.clone()),
        }
    }
    Ok((names, ips))
}

/// How nodes reach the API when the server is at an address.
fn reached(args: &ServerArgs, ip: Ipv4Addr) -> Result<Reached> {
    let (_, ips) = serving_names(args, ip)?;
    Ok(Reached { server: format!("https://{}", SocketAddr::new(ip.into(), args.port)), ips })
}

/// A server whose node has another address is reached there, and says so to whoever asks the cluster.
struct Move {
    args: ServerArgs,
    api: ApiServer,
    reached: watch::Sender<Reached>,
}

#[async_trait]
impl Moving for Move {
    async fn moved(&self, ip: Ipv4Addr) -> Result<()> {
        self.reached.send_replace(reached(&self.args, ip)?);
        self.api.advertise(ip.into()).await.context("writing the endpoints of the API")
    }
}

/// The one that the API shows.
fn api_certificate(args: &ServerArgs, pki: &Pki, ip: Ipv4Addr) -> Result<Pair> {
    let (names, ips) = serving_names(args, ip)?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    pki.server("kube-apiserver", None, &names, &ips)
}

/// The one that nodes are shown.
fn kubelet_client_certificate(pki: &Pki) -> Result<Pair> {
    pki.client("kube-apiserver-kubelet-client", Some("system:masters"))
}

/// The one that API servers behind this one are shown, and who may stand before it.
fn front_proxy(pki: &Pki) -> Result<FrontProxyConfig> {
    let pair = pki.front_proxy()?;
    Ok(FrontProxyConfig {
        certificate_pem: pair.certificate_pem.into(),
        key_pem: pair.key_pem.into(),
        ca_pem: pki.front_proxy_ca_pem().into(),
        allowed_names: vec![pki::FRONT_PROXY_NAME.into()],
    })
}

/// The one that the server's own node shows.
fn node_certificate(pki: &Pki, name: &str, ip: Ipv4Addr) -> Result<Pair> {
    pki.server(&format!("system:node:{name}"), Some("system:nodes"), &[name], &[ip.into()])
}

/// Answers how long it is good.
fn write_kubeconfig(args: &ServerArgs, pki: &Pki) -> Result<Validity> {
    let path = &args.write_kubeconfig;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    let host = if args.bind.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { args.bind };
    let server = format!("https://{}", SocketAddr::new(host, args.port));
    tracing::debug!(path = %path.display(), "writing the kubeconfig");
    let admin = pki.administrator()?;
    write_private(path, &pki.kubeconfig(&admin, "skiff", &server)?)?;
    pki.shows("administrator", &admin)
}

fn client(api: &ApiServer, user: &str, groups: &[&str]) -> Client {
    Client::new(api.service_for(UserInfo::new(user, groups)).without_managers(), "default")
}

/// The server itself, where no component may.
fn administrator(api: &ApiServer) -> Client {
    client(api, "system:apiserver", &["system:masters"])
}

/// A server whose API answers, and what its other parts are made from.
struct Server {
    args: ServerArgs,
    node: Node,
    pki: Arc<Pki>,
    api: ApiServer,
    informers: Informers,
    /// What its node shows.
    serving: Arc<Identity>,
    /// The node's address of the moment.
    ip: watch::Sender<Ipv4Addr>,
    /// How nodes reach it.
    reached: watch::Sender<Reached>,
    /// Tells that the authority has been given another certificate.
    authority: watch::Sender<()>,
    shutdown: CancellationToken,
}

impl Server {
    /// Sees to it that what the server shows, and the administrator's kubeconfig, are good at any time.
    fn keep_certificates(&self, parts: &mut Parts) {
        let mut certificates = Certificates::default();
        let authority = self.authority.clone();
        certificates.signed_by(self.pki.clone(), move || authority.send_replace(()));
        let (pki, api, args) = (self.pki.clone(), self.api.clone(), self.args.clone());
        certificates.add("API server", move |ip| {
            let pair = api_certificate(&args, &pki, ip)?;
            api.renew_serving(pair.certificate_pem.as_bytes(), pair.key_pem.as_bytes())?;
            pki.shows("api-server", &pair)
        });
        let (pki, api) = (self.pki.clone(), self.api.clone());
        certificates.add("API server towards nodes", move |_| {
            let pair = kubelet_client_certificate(&pki)?;
            api.renew_kubelet_client(pair.certificate_pem.as_bytes(), pair.key_pem.as_bytes())?;
            pki.shows("api-server-to-nodes", &pair)
        });
        let (pki, api) = (self.pki.clone(), self.api.clone());
        certificates.add("API server towards other API servers", move |_| {
            let pair = pki.front_proxy()?;
            api.renew_front_proxy(pair.certificate_pem.as_bytes(), pair.key_pem.as_bytes())?;
            pki.shows("front-proxy", &pair)
        });
        let (pki, serving, name) = (self.pki.clone(), self.serving.clone(), self.node.name.clone());
        certificates.add("node API", move |ip| {
            let pair = node_certificate(&pki, &name, ip)?;
            serving.renew(&pair)?;
            pki.shows("node-api", &pair)
        });
        let (pki, args) = (self.pki.clone(), self.args.clone());
        certificates.add("administrator", move |_| write_kubeconfig(&args, &pki));
        let kept = certificates.keep(self.ip.subscribe(), self.shutdown.clone());
        parts.spawn(async move {
            kept.await;
            Ok("upkeep of certificates")
        });
    }

    /// Those that read whose certificates count learn of another certificate of the authority.
    fn publish_authority(&self, parts: &mut Parts) {
        let (pki, api, stop) = (self.pki.clone(), self.api.clone(), self.shutdown.clone());
        let mut changed = self.authority.subscribe();
        parts.spawn(async move {
            while let Some(Ok(())) = stop.run_until_cancelled(changed.changed()).await {
                let published = match front_proxy(&pki) {
                    Ok(proxy) => {
                        api.publish_authorities(&pki.ca_pem(), Some(&proxy)).await.map_err(Into::into)
                    }
                    Err(error) => Err(error),
                };
                if let Err(error) = published {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "cannot publish the certificates of the authorities");
                }
            }
            Ok("publication of the authority")
        });
    }

    /// The server's own node: its clients need no certificates, its range is the first.
    async fn start_node(&self, parts: &mut Parts) -> Result<()> {
        let Server { args, node, pki, api, .. } = self;
        if args.datastore.is_shared() {
            require_range(&client(api, "system:apiserver", &["system:masters"]), &node.name, &args.pod_cidr)
                .await?;
        }
        let user = format!("system:node:{}", node.name);
        let site = Site {
            args: args.node.clone(),
            name: node.name.clone(),
            ip: self.ip.clone(),
            network: network(args),
            pod_cidr: args.pod_cidr.clone(),
            claims_range: true,
            own_ports: vec![SSH_PORT, args.port, args.node.kubelet_port],
            informers: self.informers.clone(),
            pod_source: PodSource::ControlPlane,
            policies: Arc::default(),
        };
        let setup = NodeSetup {
            site,
            services: Services::Start,
            moving: Arc::new(Move { args: args.clone(), api: api.clone(), reached: self.reached.clone() }),
            client: client(api, &user, &["system:nodes"]),
            serving: self.serving.clone(),
            ca_pem: pki.ca_pem(),
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

/// Each server's node has a part of the pods' range that it was told of.
async fn require_range(client: &Client, name: &str, pod_cidr: &str) -> Result<()> {
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client.clone());
    let nodes = nodes.list(&ListParams::default()).await.context("listing the nodes")?;
    let has_it = |node: &k8s_openapi::api::core::v1::Node| {
        node.spec.as_ref().and_then(|spec| spec.pod_cidr.as_deref()) == Some(pod_cidr)
    };
    let other = nodes.items.iter().find(|node| has_it(node) && node.metadata.name.as_deref() != Some(name));
    if let Some(other) = other.and_then(|node| node.metadata.name.as_deref()) {
        bail!(
            "node {other} has the range {pod_cidr}: give this server another part of the cluster's range by --pod-cidr"
        );
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_is_missing_or_empty_beside_keys_and_a_node_is_no_new_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let mut layout = Layout::of_cluster("test", Path::new("/none"));
        layout.data_dir = directory.path().to_owned();
        require_database(&layout).unwrap();
        Pki::open(&layout.pki(), Clock::Checked).unwrap();
        // The first start ended before its node was there.
        require_database(&layout).unwrap();
        write_private(&layout.node_record(), "{}").unwrap();
        let missing = require_database(&layout).unwrap_err().to_string();
        assert!(missing.contains("is missing or empty") && missing.contains("restore a backup"), "{missing}");
        std::fs::write(layout.database(), "").unwrap();
        require_database(&layout).unwrap_err();
        std::fs::write(layout.database(), "some").unwrap();
        require_database(&layout).unwrap();
    }
}
