//! `skiff agent`: a node of a cluster whose server is elsewhere.
//!
//! A token lets it join once; what it gets for it, it keeps: the cluster's authority, and a client and a serving
//! certificate, each renewed with the last one before it ends. A restart needs no token.
//!
//! Nobody is at hand where a member stands. It does not end because its server is away, or does not take it, or because a clock
//! shows another time: it waits for as long as that lasts, says so every minute, and its containers go on.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use async_trait::async_trait;
use clap::Args;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, NodeSpec, NodeStatus, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::client::ConfigExt as _;
use kube::{Api, Client};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use skiff_client::Informers;
use skiff_network::{LocalPods, PodSource};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::complaint::Complaint;
use crate::identity::Identity;
use crate::join::{self, Purpose, Trusted};
use crate::node::{self, ClusterNetwork, Moving, NodeArgs, NodeSetup, Parts, SSH_PORT, Services, Site};
use crate::pki::write_private;
use crate::token::{Token, ca_hash};
use crate::{address, memory, open_files};

mod certificates;
mod connections;

use certificates::{Renewal, keep_authority, renew_ended, serving, wait_while_ended};
pub(crate) use connections::Connections;
use connections::Connector;

#[derive(Args, Clone, Debug)]
pub(crate) struct AgentArgs {
    /// The cluster's API, such as https://192.0.2.1:6443 [default: the one that this node joined]
    #[arg(long)]
    server: Option<http::Uri>,
    /// A token of the cluster, to join with; `skiff token create` makes one
    #[arg(long, env = "SKIFF_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file with the token
    #[arg(long, conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Renew certificates after this many seconds, in place of most of their life
    #[arg(long, hide = true)]
    renew_after: Option<u64>,
    #[command(flatten)]
    node: NodeArgs,
}

/// The cluster that this node has joined, as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Membership {
    server: String,
    node: String,
    /// What the cluster told when the node last took its place in it.
    #[serde(default)]
    last: Option<Told>,
}

/// What a node must know to serve its pods while the server is away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Told {
    network: ClusterNetwork,
    pod_cidr: String,
}

/// Written last of what joining leaves.
pub(crate) const MEMBERSHIP: &str = "membership.json";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that has vanished is noticed by what does not come back, as kubelets do it.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// For one answer of a server that may be away.
const PATIENCE: Duration = Duration::from_secs(30);
const BETWEEN_TRIES: Duration = Duration::from_millis(500);
/// What was last known is older than the rules that the kernel still has: where the server answers, it is asked instead.
const EARLY_AFTER: Duration = Duration::from_secs(3);

/// Runs until SIGINT or SIGTERM.
pub(crate) async fn run(args: AgentArgs) -> Result<()> {
    memory::prepare();
    open_files::raise()?;
    node::prepare_cgroups()?;
    let name = node::node_name(&args.node)?;
    let directory = args.node.layout.agent();
    for directory in [&directory, &args.node.layout.run_dir] {
        std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    let ip = address::wait(&args.node).await?;
    let (trusted, identity) = join_or_remember(&args, &name, &directory).await?;
    let connections = Connections::default();
    let client = client(&trusted, identity.clone(), &connections)?;
    let shutdown = CancellationToken::new();
    let (mut parts, ip) = (Parts::new(), watch::Sender::new(ip));
    let informers = informers(&client, &directory, &shutdown);
    let policies = Arc::<LocalPods>::default();
    let site = |told: &Told| Site {
        own_ports: vec![SSH_PORT, args.node.kubelet_port],
        args: args.node.clone(),
        name: name.clone(),
        ip: ip.clone(),
        network: told.network.clone(),
        pod_cidr: told.pod_cidr.clone(),
        claims_range: false,
        informers: informers.clone(),
        pod_source: PodSource::ForNodes,
        policies: policies.clone(),
    };
    let mut early = Early { by: None, parts: Parts::new(), stop: shutdown.child_token() };
    let Member { told, serving } = {
        let mut member = std::pin::pin!(become_member(&client, &trusted.server, &name, &ip, &directory));
        match tokio::time::timeout(EARLY_AFTER, member.as_mut()).await {
            Ok(member) => member,
            Err(_) => {
                early.start(last_told(&directory), &site).await;
                member.await
            }
        }
    };
    if let Err(error) = keep_membership(&trusted.server, &name, Some(&told), &directory) {
        // It is for the next start. A disk that is full is no reason not to be one now.
        warn!(error = format!("{error:#}"), "what the cluster has told is not kept");
    }
    let services = early.go_on_with(&told, &shutdown, &mut parts).await;
    let (pod_cidr, setup_site) = (&told.pod_cidr, site(&told));
    info!(node = name, pods = pod_cidr, server = %trusted.server, "this node is a member of the cluster");

    tokio::spawn(memory::give_back(shutdown.clone()));
    for (identity, serves_at) in [(identity, None), (serving.clone(), Some(ip.subscribe()))] {
        let renewal =
            Renewal { client: client.clone(), node: name.clone(), serves_at, after: args.renew_after };
        let stop = shutdown.clone();
        parts.spawn(async move {
            stop.run_until_cancelled(renewal.run(&identity)).await;
            Ok("renewal of certificates")
        });
    }
    {
        let (trusted, stop) = (trusted.clone(), shutdown.clone());
        parts.spawn(async move {
            stop.run_until_cancelled(keep_authority(trusted, directory)).await;
            Ok("upkeep of the authority's certificate")
        });
    }
    let setup = NodeSetup {
        site: setup_site,
        services,
        moving: Arc::new(Move {
            client: client.clone(),
            connections,
            node: name.clone(),
            serving: serving.clone(),
        }),
        client,
        serving,
        ca_pem: trusted.ca_pem,
    };
    node::start(setup, &shutdown, &mut parts).await?;
    info!(node = name, "the node is ready");
    node::run_until_stopped(parts, &shutdown).await
}

/// The token, if one is given. A member needs none: the file may be gone once it has done its work.
fn token(args: &AgentArgs, is_member: bool) -> Result<Option<Token>> {
    let text = match (&args.token, &args.token_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => match std::fs::read_to_string(path) {
            Err(error) if is_member && error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("reading {}", path.display()))?,
        },
        (None, None) => return Ok(None),
    };
    text.parse().map(Some)
}

/// The cluster and this node's certificate in it: those that are kept, or new ones for a token.
async fn join_or_remember(
    args: &AgentArgs,
    name: &str,
    directory: &Path,
) -> Result<(Trusted, Arc<Identity>)> {
    let token = token(args, directory.join(MEMBERSHIP).exists())?;
    if let Some((trusted, identity)) = remembered(args, name, token.as_ref(), directory)? {
        say_clock(&trusted.server).await;
        let joined = wait_while_ended(
            &identity,
            || renew_ended(&trusted, &identity, name),
            || join(args, token.as_ref(), name, directory),
        );
        return Ok(joined.await.unwrap_or((trusted, identity)));
    }
    join(args, token.as_ref(), name, directory).await
}

/// A new membership, for a token.
async fn join(
    args: &AgentArgs,
    token: Option<&Token>,
    name: &str,
    directory: &Path,
) -> Result<(Trusted, Arc<Identity>)> {
    let server = args
        .server
        .as_ref()
        .context("which cluster is this node to join? give --server https://ADDRESS:6443 and --token")?;
    ensure!(
        server.scheme_str() == Some("https") && server.host().is_some(),
        "--server {server}: write it as https://ADDRESS:6443"
    );
    let token =
        token.context("joining a cluster needs a --token, made on its server with: skiff token create")?;
    let trusted = join::discover(server, token).await?;
    let pair = join::first_certificate(&trusted, token, name).await?;
    write_private(&directory.join("ca.crt"), &trusted.ca_pem)?;
    let identity = Identity::create(&directory.join("client.pem"), &pair)?;
    // Last: a membership without its parts would be none.
    keep_membership(server, name, None, directory)?;
    Ok((trusted, identity))
}

/// By which the node's parts see the cluster: what the node needs of it for its pods is kept.
fn informers(client: &Client, directory: &Path, shutdown: &CancellationToken) -> Informers {
    let informers = Informers::new(client.clone(), shutdown.clone());
    let file = |name: &str| directory.join(format!("last-{name}.json"));
    informers.kept::<Service>(file("services"), Clone::clone);
    informers.kept::<EndpointSlice>(file("endpoints"), Clone::clone);
    // Names ask which there are, network policies for their labels.
    informers.kept(file("namespaces"), |namespace: &Namespace| Namespace {
        metadata: ObjectMeta {
            name: namespace.metadata.name.clone(),
            labels: namespace.metadata.labels.clone(),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    });
    // Nodes report every few seconds; where they and their pods are hardly ever changes.
    informers.kept(file("nodes"), |node: &Node| Node {
        metadata: ObjectMeta {
            name: node.metadata.name.clone(),
            creation_timestamp: node.metadata.creation_timestamp.clone(),
            ..ObjectMeta::default()
        },
        spec: node
            .spec
            .as_ref()
            .map(|spec| NodeSpec { pod_cidr: spec.pod_cidr.clone(), ..NodeSpec::default() }),
        status: node
            .status
            .as_ref()
            .map(|status| NodeStatus { addresses: status.addresses.clone(), ..NodeStatus::default() }),
    });
    informers
}

/// Services, DNS and routes of a node whose server has not answered yet.
struct Early {
    by: Option<Told>,
    parts: Parts,
    stop: CancellationToken,
}

impl Early {
    /// Starts them by what was last known, if anything was. Without them the node is no worse off than before.
    async fn start(&mut self, last: Option<Told>, site: &impl Fn(&Told) -> Site) {
        let Some(last) = last else { return };
        match node::start_services(&site(&last), &self.stop, &mut self.parts).await {
            Ok(()) => {
                info!("serving Services, DNS and routes by what was last known, until the server answers");
                self.by = Some(last);
            }
            Err(error) => {
                let error = format!("{error:#}");
                warn!(error, "Services, DNS and routes wait for the server");
                self.end().await;
            }
        }
    }

    /// They go on if the cluster says what it said last; else others have to take their place.
    async fn go_on_with(&mut self, told: &Told, shutdown: &CancellationToken, parts: &mut Parts) -> Services {
        if self.by.as_ref() != Some(told) {
            self.end().await;
            return Services::Start;
        }
        let (mut running, stop) = (std::mem::take(&mut self.parts), shutdown.clone());
        parts.spawn(async move {
            loop {
                match running.join_next().await {
                    // Told to end, they are all waited for.
                    Some(Ok(Ok(_))) if stop.is_cancelled() => {}
                    Some(ended) => return ended.context("a part of the node panicked")?,
                    None => return Ok("services of the node"),
                }
            }
        });
        Services::Run
    }

    async fn end(&mut self) {
        self.stop.cancel();
        while self.parts.join_next().await.is_some() {}
    }
}

/// What the cluster told last, if it ever did.
fn last_told(directory: &Path) -> Option<Told> {
    let bytes = std::fs::read(directory.join(MEMBERSHIP)).ok()?;
    serde_json::from_slice::<Membership>(&bytes).ok()?.last
}

/// Keeps where the server is that has answered, which from here on need not be told, and what it said.
fn keep_membership(server: &http::Uri, node: &str, last: Option<&Told>, directory: &Path) -> Result<()> {
    let path = directory.join(MEMBERSHIP);
    let membership = Membership { server: server.to_string(), node: node.to_owned(), last: last.cloned() };
    let text = serde_json::to_string(&membership)?;
    if std::fs::read_to_string(&path).is_ok_and(|kept| kept == text) {
        return Ok(());
    }
    write_private(&path, &text)
}

/// A member has its certificates; if they are good for nothing by the server's clock, the server says so.
async fn say_clock(server: &http::Uri) {
    match join::clock_ahead(server).await {
        Ok(ahead) => {
            if let Err(fault) = join::check_clock(ahead) {
                warn!("{fault:#}");
            }
        }
        Err(error) => warn!(error = format!("{error:#}"), "the server does not answer yet"),
    }
}

/// What this node knows from when it joined, if that is the cluster it is told of now.
fn remembered(
    args: &AgentArgs,
    name: &str,
    token: Option<&Token>,
    directory: &Path,
) -> Result<Option<(Trusted, Arc<Identity>)>> {
    let path = directory.join(MEMBERSHIP);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let membership: Membership =
        serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))?;
    let forget = || format!("to make it another node, remove {} first", args.node.layout.data_dir.display());
    ensure!(
        membership.node == name,
        "this machine is node {:?} of its cluster and cannot be {name:?}; {}",
        membership.node,
        forget()
    );
    let ca_path = directory.join("ca.crt");
    let ca_pem =
        std::fs::read_to_string(&ca_path).with_context(|| format!("reading {}", ca_path.display()))?;
    if let Some(token) = token {
        let kept = ca_hash(ca_pem.as_bytes())?;
        ensure!(
            kept == token.ca_hash,
            "this machine is a node of another cluster than the token's (its authority has the hash {kept}); {}",
            forget()
        );
    }
    let server = match &args.server {
        Some(server) => server.clone(),
        None => membership.server.parse().with_context(|| format!("reading {}", path.display()))?,
    };
    let Some(identity) = Identity::load(&directory.join("client.pem"))? else {
        bail!("{} is missing; {}", directory.join("client.pem").display(), forget())
    };
    Ok(Some((Trusted { server, ca_pem }, identity)))
}

/// A client that shows the certificate of the moment.
pub(crate) fn client(
    trusted: &Trusted,
    identity: Arc<Identity>,
    connections: &Connections,
) -> Result<Client> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(trusted.ca_pem.as_bytes()) {
        roots.add(authority.context("the cluster's authority is damaged")?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_cert_resolver(identity);
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_http1()
        .enable_http2()
        .wrap_connector(Connector { tcp, connections: connections.clone() });
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .build(connector);
    let config = kube::Config::new(trusted.server.clone());
    let service = tower::ServiceBuilder::new().layer(config.base_uri_layer()).service(http);
    Ok(Client::new(service, "default"))
}

/// What the cluster has told this node.
struct Member {
    told: Told,
    serving: Arc<Identity>,
}

/// Asks the cluster for what a node must know, until it is told all of it. Servers and nodes of a site start together when its
/// power comes back, the server may be away for days, and one whose clock is wrong takes no certificate.
async fn become_member(
    client: &Client,
    server: &http::Uri,
    name: &str,
    ip: &watch::Sender<Ipv4Addr>,
    directory: &Path,
) -> Member {
    let mut complaint = Complaint::default();
    loop {
        let ip = *ip.borrow();
        let asked = async {
            let answered = tokio::time::timeout(PATIENCE, client.apiserver_version()).await;
            let answered = answered.map_err(|_| anyhow!("{server} does not answer"))?;
            answered.map_err(|error| match error {
                // It answers, and does not like this node.
                kube::Error::Api(_) => anyhow!(error).context("the server refuses this node"),
                error => anyhow!(error).context(format!("cannot reach {server}")),
            })?;
            let pod_cidr = join::register(client, name, ip).await?;
            let serving = serving(client, name, ip, directory).await?;
            let told = Told { network: network(client).await?, pod_cidr };
            Ok::<_, anyhow::Error>(Member { told, serving })
        };
        match asked.await {
            Ok(member) => return member,
            Err(error) if complaint.is_due() => {
                warn!(
                    node = name,
                    error = format!("{error:#}"),
                    "this node cannot take its place in the cluster yet; its containers go on, and it tries again"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
}

/// What the nodes of the cluster have in common.
async fn network(client: &Client) -> Result<ClusterNetwork> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let reading = || format!("reading kube-system/{}", node::CONFIG_MAP);
    let map = maps.get(node::CONFIG_MAP).await.with_context(reading)?;
    let text = map.data.unwrap_or_default().remove("network");
    let text = text.ok_or_else(|| anyhow!("it has no key \"network\"; is the server a Skiff server?"));
    serde_json::from_str(&text.with_context(reading)?).with_context(reading)
}

/// A member that has another address says so in its Node, and then has a certificate for it.
struct Move {
    client: Client,
    /// The client's.
    connections: Connections,
    node: String,
    serving: Arc<Identity>,
}

#[async_trait]
impl Moving for Move {
    async fn moved(&self, ip: Ipv4Addr) -> Result<()> {
        self.connections.end();
        join::register(&self.client, &self.node, ip).await?;
        if self.serving.has_address(ip) {
            return Ok(());
        }
        let pair = join::certificate(&self.client, &self.node, &Purpose::Serving(ip)).await;
        self.serving.renew(&pair.context("the node API")?)
    }
}
