//! `proxy` of pods, Services and nodes, to backends that this test plays.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use skiff_apiserver::store::{Expect, Write};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{Client, Cluster, pod};
use crate::network::{client_tls, listen};

/// What a backend was asked, as its answer: one JSON document, but for paths that say what to answer.
async fn answer(mut request: Request<hyper::body::Incoming>) -> Result<Response<Body>, Infallible> {
    if request.headers().contains_key("upgrade") {
        return Ok(upgraded(request));
    }
    let path = request.uri().to_string();
    let response = match path.as_str() {
        "/page" => Response::builder()
            .header("content-type", "text/html; charset=utf-8")
            .body(Body::from(r#"<a href="/rewriteme">test</a>"#)),
        "/moved" => Response::builder().status(302).header("location", "/there").body(Body::empty()),
        "/elsewhere" => {
            Response::builder().status(302).header("location", "https://example.org/x").body(Body::empty())
        }
        "/teapot" => Response::builder()
            .status(418)
            .header("x-own", "1")
            .header("keep-alive", "5")
            .body("short and stout".into()),
        _ => {
            let headers: serde_json::Map<String, Value> = request
                .headers()
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().into()))
                .collect();
            let method = request.method().to_string();
            let body = request.body_mut().collect().await.expect("a body").to_bytes();
            let said = json!({
                "method": method, "path": path, "headers": headers, "body": String::from_utf8_lossy(&body),
            });
            Response::builder().header("content-type", "application/json").body(Body::from(said.to_string()))
        }
    };
    Ok(response.expect("a response"))
}

fn upgraded(mut request: Request<hyper::body::Incoming>) -> Response<Body> {
    if request.uri().path() == "/refuse" {
        return Response::builder().status(403).body(Body::from("not you")).expect("a response");
    }
    assert!(request.headers().get("authorization").is_none(), "credentials stay at the server");
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.expect("upgrades"));
        let mut buffer = [0; 64];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..read]).await.expect("echoes");
        }
    });
    let switching =
        Response::builder().status(101).header("connection", "Upgrade").header("upgrade", "websocket");
    switching.header("sec-websocket-accept", "x").body(Body::empty()).expect("a response")
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = hyper::service::service_fn(answer);
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ = connection.with_upgrades().await;
}

/// A backend at a port of the loopback address.
async fn backend(tls: Option<tokio_rustls::TlsAcceptor>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            match tls.clone() {
                None => _ = tokio::spawn(serve(stream)),
                Some(tls) => {
                    tokio::spawn(async move {
                        if let Ok(stream) = tls.accept(stream).await {
                            serve(stream).await;
                        }
                    });
                }
            }
        }
    });
    port
}

/// TLS with a certificate of nobody's that is known to the server.
fn own_tls() -> tokio_rustls::TlsAcceptor {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec!["some.pod".to_owned()])
        .and_then(|params| params.self_signed(&key))
        .expect("a certificate");
    tls_of(&certificate.pem(), &key.serialize_pem())
}

pub(crate) fn tls_of(certificate_pem: &str, key_pem: &str) -> tokio_rustls::TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate_pem.as_bytes()).expect("PEM")],
            PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).expect("PEM"),
        )
        .expect("a certificate");
    tokio_rustls::TlsAcceptor::from(Arc::new(tls))
}

/// A pod `p` that has the loopback address, and a first port.
async fn with_pod(cluster: &Cluster, port: u16) -> Client {
    let admin = cluster.namespace("a").await;
    let mut running = pod("p");
    running["spec"]["containers"][0]["ports"] = json!([{"containerPort": port}]);
    admin.post("/api/v1/namespaces/a/pods", running).await.created();
    set_ip(&admin, "127.0.0.1").await;
    admin
}

async fn set_ip(admin: &Client, ip: &str) {
    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
    admin.patch("/api/v1/namespaces/a/pods/p/status", "merge", status).await.ok();
}

const POD: &str = "/api/v1/namespaces/a/pods/p/proxy";

#[tokio::test]
async fn every_verb_and_the_path_reach_the_pod_as_they_were_sent() {
    let cluster = Cluster::start().await;
    let admin = with_pod(&cluster, backend(None).await).await;
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let method: Method = method.parse().expect("a method");
        let url = format!("{POD}/some/path%2Fwith/{method}/?x=1&x=%20");
        let body = if method == Method::GET { "" } else { "payload" };
        let answer =
            admin.send(method.clone(), &url, &[("authorization", "Bearer t"), ("x-mine", "1")], body).await;
        let said = answer.ok();
        assert_eq!(said["method"], method.as_str());
        assert_eq!(said["path"], format!("/some/path%2Fwith/{method}/?x=1&x=%20"));
        assert_eq!(said["body"], body);
        assert_eq!(said["headers"]["x-mine"], "1");
        assert_eq!(said["headers"]["x-forwarded-uri"], format!("{POD}/some/path%2Fwith/{method}/"));
        assert!(said["headers"]["authorization"].is_null(), "{said}");
    }
    let head = admin.send(Method::HEAD, &format!("{POD}/x"), &[], "").await;
    assert_eq!((head.code, head.bytes.len()), (200, 0));
    let post = admin.send(Method::POST, &format!("{POD}?method=POST"), &[], "").await.ok();
    assert_eq!(post["path"], "/?method=POST");
    admin.send(Method::TRACE, &format!("{POD}/x"), &[], "").await.refused(405, "MethodNotAllowed");
    let teapot = admin.get(&format!("{POD}/teapot")).await;
    assert_eq!((teapot.code, teapot.bytes.as_ref()), (418, b"short and stout".as_slice()));
    assert!(teapot.headers.contains_key("x-own") && !teapot.headers.contains_key("keep-alive"));
}

#[tokio::test]
async fn a_root_without_a_slash_and_links_lead_through_the_proxy() {
    let cluster = Cluster::start().await;
    let admin = with_pod(&cluster, backend(None).await).await;
    for method in [Method::GET, Method::HEAD] {
        let moved = admin.send(method, &format!("{POD}?method=GET"), &[], "").await;
        assert_eq!(moved.code, 301);
        assert_eq!(moved.headers["location"], format!("{POD}/?method=GET"));
    }
    let page = admin.get(&format!("{POD}/page")).await;
    assert_eq!(String::from_utf8_lossy(&page.bytes), format!(r#"<a href="{POD}/rewriteme">test</a>"#));
    assert_eq!(admin.get(&format!("{POD}/moved")).await.headers["location"], format!("{POD}/there"));
    assert_eq!(admin.get(&format!("{POD}/elsewhere")).await.headers["location"], "https://example.org/x");
}

#[tokio::test]
async fn scheme_and_port_are_part_of_the_name() {
    let cluster = Cluster::start().await;
    let (plain, tls) = (backend(None).await, backend(Some(own_tls())).await);
    let admin = with_pod(&cluster, 1).await;
    let of = |id: String| {
        let admin = admin.clone();
        async move { admin.get(&format!("/api/v1/namespaces/a/pods/{id}/proxy/x")).await }
    };
    of(format!("p:{plain}")).await.ok();
    of(format!("http:p:{plain}")).await.ok();
    of(format!("https:p:{tls}")).await.ok();
    let message = of("p".to_owned()).await.refused(503, "ServiceUnavailable");
    assert!(message.starts_with("error trying to reach service: dial tcp 127.0.0.1:1: "), "{message}");
    assert_eq!(
        of("ftp:p:21".to_owned()).await.refused(400, "BadRequest"),
        "invalid pod request \"ftp:p:21\""
    );
    of(format!("p:{plain}x")).await.refused(503, "ServiceUnavailable");
    of("none".to_owned()).await.refused(404, "NotFound");
}

#[tokio::test]
async fn a_service_is_reached_at_a_pod_of_its_own_only() {
    let cluster = Cluster::start().await;
    let port = backend(None).await;
    let admin = with_pod(&cluster, 1).await;
    let ports = json!([{"name": "web", "port": 80, "targetPort": port}, {"name": "other", "port": 81}]);
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": ports}});
    admin.post("/api/v1/namespaces/a/services", service).await.created();
    let get = |id: &'static str| {
        let admin = admin.clone();
        async move { admin.get(&format!("/api/v1/namespaces/a/services/{id}/proxy/x")).await }
    };
    get("s:web").await.refused(404, "NotFound");
    let target = json!({"kind": "Pod", "namespace": "a", "name": "p"});
    // Below the API, which takes no address of this host: the one that answers here has no other.
    let endpoints = async |address: Value| {
        let subset = json!({"addresses": [address], "ports": [{"name": "web", "port": port}]});
        let endpoints = json!({
            "kind": "Endpoints", "apiVersion": "v1", "metadata": {"name": "s", "namespace": "a", "uid": "1"},
            "subsets": [subset],
        });
        let key = "/registry/services/endpoints/a/s";
        cluster.store.write(Write::put(key, endpoints.to_string(), Expect::Any)).await.expect("writes");
        admin.get("/api/v1/namespaces/a/endpoints/s").await.ok();
    };
    endpoints(json!({"ip": "127.0.0.1", "targetRef": target})).await;
    get("s:web").await.ok();
    get("s:80").await.ok();
    get("http:s:web").await.ok();
    let message = get("s:82").await.refused(503, "ServiceUnavailable");
    assert_eq!(message, "no service port 82 found for service \"s\"");
    let message = get("s:other").await.refused(503, "ServiceUnavailable");
    assert_eq!(message, "no endpoints available for service \"s:other\"");
    for foreign in [json!({"ip": "127.0.0.1"}), json!({"ip": "127.0.0.2", "targetRef": target})] {
        endpoints(foreign).await;
        get("s:web").await.refused(503, "ServiceUnavailable");
    }
}

#[tokio::test]
async fn nothing_is_sent_to_addresses_of_this_host_or_its_link() {
    let cluster = Cluster::start().await;
    let admin = with_pod(&cluster, 80).await;
    for ip in ["169.254.169.254", "0.0.0.0", "224.0.0.1"] {
        set_ip(&admin, ip).await;
        assert_eq!(admin.get(&format!("{POD}/x")).await.refused(400, "BadRequest"), "address not allowed");
    }
    let nobody = cluster.client("jane", &[]);
    let message = nobody.get(&format!("{POD}/x")).await.refused(403, "Forbidden");
    assert!(message.contains("cannot get resource \"pods/proxy\""), "{message}");
    cluster
        .client("system:node:one", &["system:nodes"])
        .get(&format!("{POD}/x"))
        .await
        .refused(403, "Forbidden");
}

#[tokio::test]
async fn a_node_is_reached_at_its_kubelets_port_only() {
    let cluster = Cluster::start().await;
    let pair = cluster.pki.issue("system:node:one", &["system:nodes"]);
    let port = backend(Some(tls_of(&pair.certificate_pem, &pair.key_pem))).await;
    let admin = cluster.admin();
    let node = json!({
        "metadata": {"name": "one"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        },
    });
    admin.post("/api/v1/nodes", node).await.created();
    assert_eq!(admin.get("/api/v1/nodes/one/proxy/logs/").await.ok()["path"], "/logs/");
    admin.get(&format!("/api/v1/nodes/one:{port}/proxy/x")).await.ok();
    admin.get("/api/v1/nodes/one:22/proxy/x").await.refused(400, "BadRequest");
    admin.get("/api/v1/nodes/none/proxy/x").await.refused(404, "NotFound");
}

async fn connect(
    cluster: &Cluster,
    to: SocketAddr,
    path: &str,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let admin = cluster.pki.issue("admin", &["system:masters"]);
    let connector = tokio_rustls::TlsConnector::from(client_tls(cluster, Some(&admin), "http/1.1"));
    let tcp = TcpStream::connect(to).await.expect("connects");
    let mut stream = connector.connect(ServerName::IpAddress(to.ip().into()), tcp).await.expect("TLS");
    let head = format!(
        "GET {POD}{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Authorization: Bearer x\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("writes");
    stream
}

pub(crate) async fn read_until(stream: &mut (impl AsyncRead + Unpin), wanted: &str) -> String {
    let (mut seen, mut buffer) = (Vec::new(), [0; 512]);
    while !String::from_utf8_lossy(&seen).contains(wanted) {
        let read = stream.read(&mut buffer).await.expect("reads");
        assert!(read > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

#[tokio::test]
async fn a_websocket_to_a_pod_is_passed_through_once_the_pod_agrees() {
    let cluster = Cluster::start().await;
    with_pod(&cluster, backend(None).await).await;
    let (address, shutdown, task) = listen(&cluster).await;
    let mut stream = connect(&cluster, address, "/ws").await;
    let head = read_until(&mut stream, "\r\n\r\n").await.to_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("sec-websocket-accept: x"), "{head}");
    stream.write_all(b"hello").await.expect("writes");
    assert_eq!(read_until(&mut stream, "hello").await, "hello");
    drop(stream);
    let mut refused = connect(&cluster, address, "/refuse").await;
    let answer = read_until(&mut refused, "not you").await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    shutdown.cancel();
    task.await.expect("ends");
}
