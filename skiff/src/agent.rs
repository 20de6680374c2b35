//! `skiff agent`: a node of a cluster whose server is elsewhere.
//!
//! A token lets it join once; what it gets for it, it keeps: the cluster's authority, and a client and a serving
//! certificate, each renewed with the last one before it ends. A restart needs no token.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Args;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::ConfigExt as _;
use kube::{Api, Client};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use skiff_client::Informers;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::identity::Identity;
use crate::join::{self, Purpose, Trusted};
use crate::node::{self, ClusterNetwork, NodeArgs, NodeSetup, Parts, SSH_PORT};
use crate::pki::write_private;
use crate::token::{Token, ca_hash};
use crate::{memory, open_files};

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
}

/// Written last of what joining leaves.
pub(crate) const MEMBERSHIP: &str = "membership.json";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that has vanished is noticed by what does not come back, as kubelets do it.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
const RENEW_RETRY: Duration = Duration::from_secs(30);
/// The longest sleep at a time: a machine that was suspended wakes to a later time.
const RENEW_LOOK: Duration = Duration::from_secs(600);

/// Runs until SIGINT or SIGTERM.
pub(crate) async fn run(args: AgentArgs) -> Result<()> {
    memory::prepare();
    open_files::raise()?;
    let (name, ip) = (node::node_name(&args.node)?, node::node_ip(&args.node)?);
    let directory = args.node.layout.agent();
    for directory in [&directory, &args.node.layout.run_dir] {
        std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    let (trusted, identity) = join_or_remember(&args, &name, &directory).await?;
    let client = client(&trusted, identity.clone())?;
    wait_for_server(&client, &trusted.server).await?;
    let pod_cidr = join::register(&client, &name, ip).await?;
    let serving = serving(&client, &name, ip, &directory).await?;
    let network = network(&client).await?;
    info!(node = name, pods = pod_cidr, server = %trusted.server, "this node is a member of the cluster");

    let shutdown = CancellationToken::new();
    tokio::spawn(memory::give_back(shutdown.clone()));
    let mut parts = Parts::new();
    for (identity, purpose) in [(identity, Purpose::Client), (serving.clone(), Purpose::Serving(ip))] {
        let renewal =
            Renewal { client: client.clone(), node: name.clone(), purpose, after: args.renew_after };
        let stop = shutdown.clone();
        parts.spawn(async move {
            stop.run_until_cancelled(renewal.run(&identity)).await;
            Ok("renewal of certificates")
        });
    }
    let setup = NodeSetup {
        own_ports: vec![SSH_PORT, args.node.kubelet_port],
        args: args.node,
        name: name.clone(),
        ip,
        network,
        pod_cidr,
        claims_range: false,
        informers: Informers::new(client.clone(), shutdown.clone()),
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
        let until = identity.validity().until;
        if Timestamp::now() < until {
            match join::clock_ahead(&trusted.server).await {
                Ok(ahead) => join::check_clock(ahead)?,
                // Away for a moment, maybe: see `wait_for_server`.
                Err(error) => warn!(error = format!("{error:#}"), "the server does not answer yet"),
            }
            return Ok((trusted, identity));
        }
        ensure!(
            token.is_some(),
            "this node's certificate ended at {until}; give it a new --token to join again, made on the server with: \
             skiff token create"
        );
        info!(%until, "the node's certificate has ended; joining again");
    }
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
    let trusted = join::discover(server, &token).await?;
    let pair = join::first_certificate(&trusted, &token, name).await?;
    write_private(&directory.join("ca.crt"), &trusted.ca_pem)?;
    let identity = Identity::create(&directory.join("client.pem"), &pair)?;
    let membership = Membership { server: server.to_string(), node: name.to_owned() };
    // Last: a membership without its parts would be none.
    write_private(&directory.join(MEMBERSHIP), &serde_json::to_string(&membership)?)?;
    Ok((trusted, identity))
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

/// A client that shows the node's certificate of the moment.
fn client(trusted: &Trusted, identity: Arc<Identity>) -> Result<Client> {
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
        .wrap_connector(tcp);
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

/// Servers and nodes of a site start together when its power comes back.
async fn wait_for_server(client: &Client, server: &http::Uri) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(60);
    const BETWEEN_TRIES: Duration = Duration::from_millis(500);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match tokio::time::timeout_at(deadline, client.apiserver_version()).await {
            Ok(Ok(_)) => return Ok(()),
            // It answers, and does not like this node.
            Ok(Err(error @ kube::Error::Api(_))) => {
                return Err(error).context("the server refuses this node");
            }
            Ok(Err(error)) if tokio::time::Instant::now() + BETWEEN_TRIES > deadline => {
                return Err(error).with_context(|| format!("cannot reach {server}"));
            }
            Ok(Err(_)) => tokio::time::sleep(BETWEEN_TRIES).await,
            Err(_) => bail!("{server} does not answer"),
        }
    }
}

async fn serving(
    client: &Client,
    name: &str,
    ip: std::net::Ipv4Addr,
    directory: &Path,
) -> Result<Arc<Identity>> {
    let path = directory.join("serving.pem");
    let is_good = |identity: &Arc<Identity>| Timestamp::now() < identity.validity().renew_at(0.0);
    if let Some(kept) = Identity::load(&path)?.filter(is_good)
        && kept.has_address(ip)
    {
        return Ok(kept);
    }
    let pair = join::certificate(client, name, &Purpose::Serving(ip)).await.context("the node API")?;
    Identity::create(&path, &pair)
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

/// Keeps one certificate from ending.
struct Renewal {
    client: Client,
    node: String,
    purpose: Purpose,
    after: Option<u64>,
}

impl Renewal {
    async fn run(self, identity: &Identity) {
        let mut due = self.due(identity);
        loop {
            let left = due.duration_since(Timestamp::now());
            if left.is_positive() {
                tokio::time::sleep(left.unsigned_abs().min(RENEW_LOOK)).await;
                continue;
            }
            let renewed = async {
                let pair = join::certificate(&self.client, &self.node, &self.purpose).await?;
                identity.renew(&pair)
            };
            match renewed.await {
                Ok(()) => {
                    info!(purpose = ?self.purpose, until = %identity.validity().until, "a certificate was renewed");
                    due = self.due(identity);
                }
                Err(error) => {
                    let until = identity.validity().until;
                    warn!(purpose = ?self.purpose, %until, error = format!("{error:#}"), "a certificate cannot be renewed yet");
                    tokio::time::sleep(RENEW_RETRY).await;
                }
            }
        }
    }

    fn due(&self, identity: &Identity) -> Timestamp {
        match self.after.and_then(|s| i64::try_from(s).ok()) {
            Some(seconds) => Timestamp::now()
                .checked_add(jiff::SignedDuration::from_secs(seconds))
                .unwrap_or(Timestamp::MAX),
            None => identity.validity().renew_at(rand::random::<f64>()),
        }
    }
}
