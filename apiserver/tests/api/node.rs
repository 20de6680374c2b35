//! Logs and exec, passed through to a kubelet that this test plays.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{Client, Cluster, pod};
use crate::network::{client_tls, listen};

/// A kubelet that echoes the path it is asked for, and over upgraded connections whatever it reads.
async fn kubelet(cluster: &Cluster) -> u16 {
    let pair = cluster.pki.issue("system:node:one", &["system:nodes"]);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(pair.certificate_pem.as_bytes()).expect("PEM")],
            PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).expect("PEM"),
        )
        .expect("a certificate");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await.expect("TLS");
                let service = hyper::service::service_fn(answer);
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                let _ = connection.await;
            });
        }
    });
    port
}

async fn answer(mut request: Request<hyper::body::Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().to_string();
    assert!(request.headers().get("authorization").is_none(), "credentials stay at the server");
    if path.contains("command=refuse") {
        let refusal = Response::builder().status(400).body(Body::from("no such container"));
        return Ok(refusal.expect("a response"));
    }
    if request.headers().contains_key("upgrade") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.expect("upgrades"));
            stream.write_all(path.as_bytes()).await.expect("writes");
            stream.write_all(b"\n").await.expect("writes");
            let mut buffer = [0; 64];
            while let Ok(read) = stream.read(&mut buffer).await {
                if read == 0 || stream.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
        });
        let switching = Response::builder()
            .status(101)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-protocol", "v5.channel.k8s.io")
            .body(Body::empty());
        return Ok(switching.expect("a response"));
    }
    Ok(Response::new(Body::from(path)))
}

pub(crate) async fn pod_on_node(cluster: &Cluster) -> Client {
    let port = kubelet(cluster).await;
    let admin = cluster.namespace("a").await;
    let node = json!({
        "metadata": {"name": "one"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        },
    });
    admin.post("/api/v1/nodes", node).await.created();
    let mut bound = pod("p");
    bound["spec"]["nodeName"] = "one".into();
    admin.post("/api/v1/namespaces/a/pods", bound).await.created();
    admin
}

#[tokio::test]
async fn logs_come_from_the_kubelet_of_the_pods_node() {
    let cluster = Cluster::start().await;
    let admin = pod_on_node(&cluster).await;
    let url = "/api/v1/namespaces/a/pods/p/log";
    let log = admin.get(&format!("{url}?tailLines=5&follow=true&unknown=1")).await;
    assert_eq!(log.code, 200, "{log:?}");
    assert_eq!(log.bytes.as_ref(), b"/containerLogs/a/p/c?follow=true&tailLines=5");
    let message = admin.get(&format!("{url}?container=x")).await.refused(400, "BadRequest");
    assert_eq!(message, "container x is not valid for pod p");
    admin.get(&format!("{url}?tailLines=-1")).await.refused(422, "Invalid");
    admin.get("/api/v1/namespaces/a/pods/none/log").await.refused(404, "NotFound");
}

#[tokio::test]
async fn an_exec_stream_is_passed_through_byte_by_byte() {
    let cluster = Cluster::start().await;
    pod_on_node(&cluster).await;
    let (address, shutdown, task) = listen(&cluster).await;
    let admin = cluster.pki.issue("admin", &["system:masters"]);
    let exec = |query: &'static str| {
        let tls = client_tls(&cluster, Some(&admin), "http/1.1");
        async move {
            let tcp = TcpStream::connect(address).await.expect("connects");
            let connector = tokio_rustls::TlsConnector::from(tls);
            let mut stream =
                connector.connect(ServerName::IpAddress(address.ip().into()), tcp).await.expect("TLS");
            let head = format!(
                "GET /api/v1/namespaces/a/pods/p/exec?{query} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
                 Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await.expect("writes");
            stream
        }
    };
    let mut stream = exec("command=sh&stdin=true&stdout=true").await;
    let mut seen = Vec::new();
    let mut buffer = [0; 512];
    let wanted = b"/exec/a/p/c?command=sh&input=1&output=1\n";
    while !seen.ends_with(wanted) {
        let read = stream.read(&mut buffer).await.expect("reads");
        assert!(read > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..read]);
    }
    let head = String::from_utf8_lossy(&seen).to_lowercase();
    assert!(
        head.starts_with("http/1.1 101 ") && head.contains("sec-websocket-protocol: v5.channel.k8s.io"),
        "{head}"
    );
    stream.write_all(b"\x81\x02hi").await.expect("writes");
    let mut echoed = [0; 4];
    stream.read_exact(&mut echoed).await.expect("reads");
    assert_eq!(&echoed, b"\x81\x02hi");
    drop(stream);

    let mut refused = exec("command=refuse&stdout=true").await;
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("no such container") {
        let read = refused.read(&mut buffer).await.expect("reads");
        assert!(read > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..read]);
    }
    assert!(seen.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&seen));
    shutdown.cancel();
    task.await.expect("ends");
}
