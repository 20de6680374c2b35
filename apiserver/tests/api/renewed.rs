//! What a server shows of itself that outlives what it was started with: certificates and its address.

use std::time::Duration;

use rustls_pki_types::ServerName;
use serde_json::json;
use skiff_apiserver::store::{Expect, Write};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::certificates::{KUBELET_CLIENT, REQUESTS, request};
use crate::fixture::{Cluster, Pair, pod};
use crate::network::{client_tls, get, listen, post};

/// The subject of the certificate that a new connection is shown.
async fn shown(cluster: &Cluster, to: std::net::SocketAddr) -> String {
    let connector = tokio_rustls::TlsConnector::from(client_tls(cluster, None, "http/1.1"));
    let stream = TcpStream::connect(to).await.expect("connects");
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    let stream = connector.connect(name, stream).await.expect("a handshake");
    let chain = stream.get_ref().1.peer_certificates().expect("a certificate");
    let (_, certificate) = x509_parser::parse_x509_certificate(&chain[0]).expect("a certificate");
    certificate.subject().to_string()
}

#[tokio::test]
async fn a_certificate_that_is_renewed_is_the_one_that_the_next_connection_is_shown() {
    let cluster = Cluster::start().await;
    let (address, shutdown, task) = listen(&cluster).await;
    assert_eq!(shown(&cluster, address).await, "CN=skiff-apiserver");
    let (next, other) = (cluster.pki.issue("next", &[]), cluster.pki.issue("other", &[]));
    cluster.server.renew_serving(next.certificate_pem.as_bytes(), next.key_pem.as_bytes()).expect("renewed");
    assert_eq!(shown(&cluster, address).await, "CN=next");
    let mixed = cluster.server.renew_serving(other.certificate_pem.as_bytes(), next.key_pem.as_bytes());
    assert!(mixed.is_err(), "another's key");
    assert_eq!(shown(&cluster, address).await, "CN=next", "what cannot be used leaves what there is");
    shutdown.cancel();
    task.await.expect("ends");
}

#[tokio::test]
async fn an_answer_has_the_time_of_the_servers_clock_once() {
    let cluster = Cluster::start().await;
    let (address, shutdown, task) = listen(&cluster).await;
    let connector = tokio_rustls::TlsConnector::from(client_tls(&cluster, None, "http/1.1"));
    let stream = TcpStream::connect(address).await.expect("connects");
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    let mut stream = connector.connect(name, stream).await.expect("a handshake");
    let before = jiff::Timestamp::now().as_second();
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.expect("asks");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer);
    let dates: Vec<&str> = answer.lines().filter_map(|line| line.strip_prefix("date: ")).collect();
    let [date] = dates[..] else { panic!("not one date: {answer}") };
    let date = jiff::fmt::rfc2822::parse(date).expect("a date").timestamp().as_second();
    assert!((before..before + 60).contains(&date), "{date} is not {before}");
    shutdown.cancel();
    task.await.expect("ends");
}

#[tokio::test]
async fn endpoints_and_discovery_of_the_api_follow_the_address_of_its_machine() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    cluster.server.advertise("198.51.100.7".parse().expect("an address")).await.expect("written");
    let endpoints = admin.get("/api/v1/namespaces/default/endpoints/kubernetes").await.ok();
    assert_eq!(endpoints["subsets"][0]["addresses"], json!([{"ip": "198.51.100.7"}]));
    let slice =
        admin.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await.ok();
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["198.51.100.7"]));
    // And so do those documents that say where to go.
    let versions = admin.get("/api").await.ok();
    assert_eq!(versions["serverAddressByClientCIDRs"][0]["serverAddress"], "198.51.100.7:6443");
    let openid = admin.get("/.well-known/openid-configuration").await.ok();
    assert_eq!(openid["jwks_uri"], "https://198.51.100.7:6443/openid/v1/jwks");
}

#[tokio::test]
async fn a_node_that_reports_from_elsewhere_is_said_to_be_behind_nat_where_it_cannot_be_reached() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    // Nobody listens there once it is dropped.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    admin.post("/api/v1/nodes", json!({"metadata": {"name": "far"}})).await.created();
    let status = json!({"metadata": {"name": "far"}, "status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.9"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }});
    admin.put("/api/v1/nodes/far/status", status).await.ok();
    let mut pod = pod("p");
    pod["spec"]["nodeName"] = "far".into();
    admin.post("/api/v1/namespaces/a/pods", pod).await.created();
    let logs = || async { admin.get("/api/v1/namespaces/a/pods/p/log").await.refused(500, "InternalError") };
    let said = logs().await;
    assert!(said.contains(&format!("dial tcp 127.0.0.9:{port}")) && !said.contains("NAT"), "{said}");

    let (address, shutdown, task) = listen(&cluster).await;
    let node = cluster.pki.issue("system:node:far", &["system:nodes"]);
    let (code, _) = get(&cluster, address, Some(&node), "http/1.1", "/api/v1/nodes/far", None).await;
    assert_eq!(code, 200);
    let said = logs().await;
    assert!(said.contains("from 127.0.0.1: it is behind NAT"), "{said}");
    let proxied = admin.get("/api/v1/nodes/far/proxy/metrics").await.refused(503, "ServiceUnavailable");
    assert!(proxied.contains("from 127.0.0.1: it is behind NAT"), "{proxied}");
    shutdown.cancel();
    task.await.expect("ends");
}

/// The code that a node gets whose certificate ended in 2020, for asking for the next one in the name of a node.
async fn asks(cluster: &Cluster, node: &Pair, subject: &str) -> u16 {
    let (address, shutdown, task) = listen(cluster).await;
    let asked = request(&format!("csr-{}", rand::random::<u32>()), KUBELET_CLIENT, subject, "system:nodes");
    let (code, _) = post(cluster, address, node, REQUESTS, &asked).await;
    shutdown.cancel();
    task.await.expect("ends");
    code.as_u16()
}

#[tokio::test]
async fn a_node_that_was_off_for_long_may_ask_for_its_next_certificate_within_the_grace_and_for_nothing_else()
{
    const FAR: &str = "system:node:far";
    let (short, long) = (Duration::from_secs(86_400), Duration::from_secs(100 * 366 * 86_400));
    let strict = Cluster::start().await;
    let node = strict.pki.issue_between(FAR, &["system:nodes"], 2019, 2020);
    let admin = strict.pki.issue_between("admin", &["system:masters"], 2019, 2020);
    let object = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "far", "uid": "u", "creationTimestamp": "2019-01-01T00:00:00Z"}});
    let key = "/registry/minions/far";
    let write = Write::put(key, object.to_string(), Expect::Any);
    assert_eq!(asks(&strict.restart_with_grace(long).await, &node, FAR).await, 401, "there is no such Node");
    strict.store.write(write).await.expect("written");
    assert_eq!(asks(&strict, &node, FAR).await, 401, "there is no grace unless it is asked for");
    assert_eq!(asks(&strict.restart_with_grace(short).await, &node, FAR).await, 401, "it is too late");

    let lenient = strict.restart_with_grace(long).await;
    assert_eq!(asks(&lenient, &node, FAR).await, 201);
    assert_eq!(asks(&lenient, &node, "system:node:other").await, 403, "in another's name");
    assert_eq!(asks(&lenient, &admin, FAR).await, 401, "it is no node");
    let (address, shutdown, task) = listen(&lenient).await;
    for (url, wanted) in
        [(REQUESTS, 200), ("/api/v1/nodes/far", 401), ("/api/v1/services", 401), ("/api", 401)]
    {
        let (code, _) = get(&lenient, address, Some(&node), "http/1.1", url, None).await;
        assert_eq!(code.as_u16(), wanted, "{url}");
    }
    shutdown.cancel();
    task.await.expect("ends");
}
