//! The server on the network: TLS, client certificates, tokens, both HTTP versions.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::fixture::{Cluster, Pair};

pub(crate) async fn listen(
    cluster: &Cluster,
) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let shutdown = CancellationToken::new();
    let (server, stop) = (cluster.server.clone(), shutdown.clone());
    let task = tokio::spawn(async move { server.serve(listener, stop).await.expect("serves") });
    (address, shutdown, task)
}

pub(crate) fn client_tls(
    cluster: &Cluster,
    identity: Option<&Pair>,
    alpn: &str,
) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(cluster.pki.ca_pem().as_bytes()).expect("PEM")).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(pair) => {
            let chain = vec![CertificateDer::from_pem_slice(pair.certificate_pem.as_bytes()).expect("PEM")];
            let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(chain, key).expect("an identity")
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    Arc::new(config)
}

pub(crate) async fn get(
    cluster: &Cluster,
    to: SocketAddr,
    identity: Option<&Pair>,
    alpn: &str,
    url: &str,
    token: Option<&str>,
) -> (StatusCode, Value) {
    let mut request = Request::builder().uri(format!("https://{to}{url}")).header("host", to.to_string());
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    exchange(cluster, to, identity, alpn, request.body(Body::empty()).expect("a request")).await
}

/// Creates an object.
pub(crate) async fn post(
    cluster: &Cluster,
    to: SocketAddr,
    identity: &Pair,
    url: &str,
    object: &Value,
) -> (StatusCode, Value) {
    let request = Request::post(format!("https://{to}{url}"))
        .header("host", to.to_string())
        .header("content-type", "application/json")
        .body(Body::from(object.to_string()))
        .expect("a request");
    exchange(cluster, to, Some(identity), "http/1.1", request).await
}

pub(crate) async fn exchange(
    cluster: &Cluster,
    to: SocketAddr,
    identity: Option<&Pair>,
    alpn: &str,
    request: Request<Body>,
) -> (StatusCode, Value) {
    let connector = tokio_rustls::TlsConnector::from(client_tls(cluster, identity, alpn));
    let tcp = TcpStream::connect(to).await.expect("connects");
    let tls = connector.connect(ServerName::IpAddress(to.ip().into()), tcp).await.expect("TLS");
    let response = if alpn == "h2" {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.expect("h2");
        tokio::spawn(connection);
        sender.send_request(request).await.expect("an answer")
    } else {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.expect("http/1.1");
        tokio::spawn(connection);
        sender.send_request(request).await.expect("an answer")
    };
    let status = response.status();
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

#[tokio::test]
async fn a_client_certificate_is_an_identity_over_both_http_versions() {
    let cluster = Cluster::start().await;
    let (address, shutdown, task) = listen(&cluster).await;
    let admin = cluster.pki.issue("admin", &["system:masters"]);
    for alpn in ["h2", "http/1.1"] {
        let (status, list) = get(&cluster, address, Some(&admin), alpn, "/api/v1/namespaces", None).await;
        assert_eq!((status.as_u16(), &list["kind"]), (200, &json!("NamespaceList")));
        let (status, refusal) = get(&cluster, address, None, alpn, "/api/v1/namespaces", None).await;
        assert_eq!(status.as_u16(), 403);
        assert!(
            refusal["message"].as_str().is_some_and(|m| m.contains("User \"system:anonymous\" cannot list"))
        );
    }
    let (status, _) = get(&cluster, address, None, "h2", "/api/v1/namespaces", Some("not.a.token")).await;
    assert_eq!(status.as_u16(), 401);

    let token = {
        let client = cluster.namespace("a").await;
        let answer = client
            .post("/api/v1/namespaces/a/serviceaccounts/default/token", json!({"spec": {}}))
            .await
            .created();
        answer["status"]["token"].as_str().expect("a token").to_owned()
    };
    let (status, refusal) = get(&cluster, address, None, "h2", "/api/v1/namespaces", Some(&token)).await;
    assert_eq!(status.as_u16(), 403);
    assert!(
        refusal["message"].as_str().is_some_and(|m| m.contains("system:serviceaccount:a:default")),
        "{refusal}"
    );
    shutdown.cancel();
    task.await.expect("ends");
}

#[tokio::test]
async fn a_client_certificate_outside_its_time_is_unauthorized_unless_a_token_is_beside_it() {
    let cluster = Cluster::start().await;
    let (address, shutdown, task) = listen(&cluster).await;
    cluster.namespace("a").await;
    let url = "/api/v1/namespaces/a/serviceaccounts/default/token";
    let answer = cluster.admin().post(url, json!({"spec": {}})).await.created();
    let token = answer["status"]["token"].as_str().expect("a token");
    for (from, to) in [(2001, 2002), (2900, 2901)] {
        let identity = cluster.pki.issue_between("admin", &["system:masters"], from, to);
        for (alpn, url) in [("h2", "/api/v1/namespaces"), ("http/1.1", "/version")] {
            let (status, refusal) = get(&cluster, address, Some(&identity), alpn, url, None).await;
            assert_eq!(status.as_u16(), 401, "{from} {url}");
            assert_eq!((&refusal["kind"], &refusal["reason"]), (&json!("Status"), &json!("Unauthorized")));
            assert_eq!(refusal["message"], "Unauthorized");
        }
        let (status, who) =
            get(&cluster, address, Some(&identity), "h2", "/api/v1/namespaces", Some(token)).await;
        assert_eq!(status.as_u16(), 403);
        assert!(who["message"].as_str().is_some_and(|m| m.contains("serviceaccount:a:default")), "{who}");
    }
    shutdown.cancel();
    task.await.expect("ends");
}

#[tokio::test]
async fn a_client_certificate_of_another_authority_ends_the_handshake_whatever_its_time() {
    let (cluster, stranger) = (Cluster::start().await, Cluster::start().await);
    let (address, shutdown, task) = listen(&cluster).await;
    for (from, to) in [(1975, 4096), (2001, 2002), (2900, 2901)] {
        let forged = stranger.pki.issue_between("admin", &["system:masters"], from, to);
        let connector = tokio_rustls::TlsConnector::from(client_tls(&cluster, Some(&forged), "http/1.1"));
        let tcp = TcpStream::connect(address).await.expect("connects");
        let name = ServerName::IpAddress(address.ip().into());
        // With TLS 1.3 a client hears of its refusal when it reads.
        let Ok(tls) = connector.connect(name, tcp).await else { continue };
        let answered = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(tls)).await?;
            tokio::spawn(connection);
            let request = Request::builder().uri("/version").body(Body::empty()).expect("a request");
            sender.send_request(request).await
        };
        assert!(answered.await.is_err(), "{from}");
    }
    shutdown.cancel();
    task.await.expect("ends");
}

#[tokio::test]
async fn a_stopped_server_ends_its_watches() {
    let cluster = Cluster::start().await;
    let (_, shutdown, task) = listen(&cluster).await;
    let mut events = cluster.admin().watch("/api/v1/pods?watch=true").await;
    shutdown.cancel();
    task.await.expect("ends");
    assert!(events.next().await.is_none());
    assert_eq!(cluster.admin().get("/readyz").await.code, 500);
}

/// A connection after its handshake.
async fn connected(
    cluster: &Cluster,
    to: SocketAddr,
    alpn: &str,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let connector = tokio_rustls::TlsConnector::from(client_tls(cluster, None, alpn));
    let tcp = TcpStream::connect(to).await.expect("connects");
    connector.connect(ServerName::IpAddress(to.ip().into()), tcp).await.expect("TLS")
}

#[tokio::test]
async fn a_connection_that_asks_nothing_is_ended() {
    let cluster = Cluster::start().await;
    let (address, shutdown, task) = listen(&cluster).await;
    let mut silent = connected(&cluster, address, "http/1.1").await;
    let mut half = connected(&cluster, address, "h2").await;
    half.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("writes the preface, and no SETTINGS");
    let mut begun = connected(&cluster, address, "http/1.1").await;
    begun.write_all(b"GET /version HT").await.expect("writes part of a line");
    // The server has runtimes of its own, whose time is the world's.
    for stream in [&mut silent, &mut half, &mut begun] {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(std::time::Duration::from_secs(25), stream.read_to_end(&mut rest));
        // With or without a goodbye, it is over.
        let _ = ended.await.expect("the server ends it");
    }
    shutdown.cancel();
    task.await.expect("ends");
}
