//! `skiff-suite`: the server that upstream's command suite of kubectl is run against.
//!
//! It has what that suite expects of a cluster: an API server and controllers, no scheduler and no kubelet, Services from
//! 10.0.0.0/24, one static token, and everybody may do everything. Skiff has no static tokens, so a small front ends TLS,
//! takes the one token for the administrator, and refuses every other.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::body::Body;
use clap::Parser;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use kube::Client;
use rustls::server::WebPkiClientVerifier;
use serde_json::json;
use skiff_apiserver::store::{SqliteOptions, SqliteStore};
use skiff_apiserver::{
    AdmissionPlugin, ApiServer, ApiService, Config, KubeletConfig, ServiceAccountConfig, UserInfo,
};
use skiff_client::Informers;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

/// The token of the suite's administrator.
const TOKEN: &str = "Bearer admin-token";
/// Where nothing is: no node of this cluster is reached.
const ADDRESS: &str = "192.0.2.1";

#[derive(Parser)]
struct Options {
    /// Its certificate (`apiserver.crt`) is written here, and its port (`port`) once it answers
    #[arg(long)]
    folder: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    // Where several providers are linked, none is the default.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir()?;
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    // The name that the suite looks for among those that client certificates may be of.
    params.distinguished_name.push(rcgen::DnType::CommonName, "127.0.0.1");
    let certificate = params.self_signed(&key)?;
    let server = ApiServer::start(config(&folder, &certificate.pem(), &key)?).await?;
    let client = |user: UserInfo| Client::new(server.service_for(user), "default");
    let shutdown = CancellationToken::new();
    let manager = client(UserInfo::new("system:kube-controller-manager", &[]));
    let informers = Informers::new(manager, shutdown.clone());
    let own = server.clone();
    let credentials = skiff_controllers::Credentials::new(move |user, groups| {
        Client::new(own.service_for(UserInfo::new(user, groups)), "default")
    });
    let selection = skiff_controllers::Selection::default();
    let controllers =
        skiff_controllers::Config { credentials, service_lb: false, local_storage_class: None, selection };
    tokio::spawn(skiff_controllers::run(controllers, None, certificate.pem(), informers, shutdown));

    let acceptor = acceptor(&certificate, &key)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let admin = server.service_for(UserInfo::new("admin", &["system:masters"]));
    let port = listener.local_addr()?.port();
    std::fs::write(options.folder.join("apiserver.crt"), certificate.pem())
        .context("writing the certificate")?;
    // Whole at once: it is waited for.
    let partial = options.folder.join("port.partial");
    std::fs::write(&partial, port.to_string()).context("writing the port")?;
    std::fs::rename(&partial, options.folder.join("port")).context("writing the port")?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, admin) = (acceptor.clone(), admin.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service =
                hyper::service::service_fn(move |request: Request<Incoming>| answer(admin.clone(), request));
            // A connection that breaks is its client's business.
            _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn config(folder: &tempfile::TempDir, certificate_pem: &str, key: &rcgen::KeyPair) -> Result<Config> {
    let signing = rcgen::KeyPair::generate()?;
    Ok(Config {
        store: Arc::new(SqliteStore::open(SqliteOptions::new(folder.path().join("state.db")))?),
        tls: None,
        front_proxy: None,
        advertise: ADDRESS.parse()?,
        port: 6443,
        service_cidr: "10.0.0.0/24".parse()?,
        cluster_domain: "cluster.local".into(),
        event_ttl: skiff_apiserver::EVENT_TTL,
        kinds: skiff_apiserver::Kinds::builtin(),
        node_certificate_grace: std::time::Duration::ZERO,
        // As upstream runs the suite: pods are stored as they were written, and can be replaced.
        disabled_admission: vec![AdmissionPlugin::ServiceAccount, AdmissionPlugin::DefaultTolerationSeconds],
        authorization: skiff_apiserver::AuthorizationOptions::default(),
        on_long_thread: || (),
        service_account: ServiceAccountConfig {
            private_key_pem: signing.serialize_pem().into(),
            public_key_pem: signing.public_key_pem().into(),
            issuer: None,
        },
        kubelet: KubeletConfig {
            ca_pem: certificate_pem.into(),
            certificate_pem: certificate_pem.into(),
            key_pem: key.serialize_pem().into(),
            allow_loopback: true,
        },
    })
}

fn acceptor(certificate: &rcgen::Certificate, key: &rcgen::KeyPair) -> Result<TlsAcceptor> {
    let der = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der());
    let der = der.map_err(|why| anyhow::anyhow!("the key: {why}"))?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone())?;
    let clients = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build()?;
    let mut tls = rustls::ServerConfig::builder()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate.der().clone()], der)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

async fn answer(mut admin: ApiService, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    match request.headers_mut().remove(AUTHORIZATION) {
        Some(token) if token == TOKEN => admin.call(request.map(Body::new)).await,
        _ => Ok(unauthorized()),
    }
}

fn unauthorized() -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "Unauthorized",
        "reason": "Unauthorized", "code": 401,
    });
    let mut response = Response::new(Body::from(status.to_string()));
    *response.status_mut() = http::StatusCode::UNAUTHORIZED;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
