//! The node API over real TLS on loopback.

use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use crate::ServerTls;
use crate::testing::{Node, pod};

struct Pki {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
}

impl Pki {
    fn new() -> Pki {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        let key = KeyPair::generate().unwrap();
        let ca_pem = params.self_signed(&key).unwrap().pem();
        Pki { issuer: Issuer::new(params, key), ca_pem }
    }

    fn issue(
        &self,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> (CertificateDer<'static>, String, KeyPair) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages.push(usage);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), certificate.pem(), key)
    }

    fn server(&self) -> ServerTls {
        let (certificate, _, key) = self.issue("n1", ExtendedKeyUsagePurpose::ServerAuth);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let certified = rustls::sign::CertifiedKey::from_der(vec![certificate], key, &provider).unwrap();
        ServerTls {
            certificate: Arc::new(rustls::sign::SingleCertAndKey::from(certified)),
            client_ca_pem: self.ca_pem.clone().into_bytes(),
        }
    }

    async fn connect(&self, port: u16, client: Option<&str>) -> std::io::Result<TlsStream<TcpStream>> {
        use rustls_pki_types::pem::PemObject;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let (certificate, _, key) = self.issue(name, ExtendedKeyUsagePurpose::ClientAuth);
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    async fn get(&self, port: u16, client: Option<&str>, path: &str) -> Result<(u16, String), String> {
        self.get_with(port, client, None, path).await
    }

    async fn get_with(
        &self,
        port: u16,
        client: Option<&str>,
        token: Option<&str>,
        path: &str,
    ) -> Result<(u16, String), String> {
        let stream = self.connect(port, client).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let mut request = http::Request::get(path).header("host", "localhost");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

const API_SERVER: Option<&str> = Some("kube-apiserver-kubelet-client");

async fn node() -> (Node, Pki, u16) {
    let pki = Pki::new();
    let mut node = Node::new();
    node.config.tls = Some(pki.server());
    node.config.port = 0;
    node.start().await;
    let status = node.api.get("/api/v1/nodes/n1").unwrap();
    let port = status["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap();
    (node, pki, u16::try_from(port).unwrap())
}

#[tokio::test]
async fn the_api_server_gets_in_and_who_has_no_name_does_not() {
    let (node, pki, port) = node().await;
    assert_eq!(pki.get(port, API_SERVER, "/healthz").await.unwrap(), (200, "ok".to_owned()));
    assert_eq!(pki.get(port, None, "/healthz").await.unwrap(), (401, "Unauthorized".to_owned()));
    assert_eq!(pki.get_with(port, None, Some("made-up"), "/pods").await.unwrap().0, 401);
    let stranger = Pki::new();
    let own = Pki { ca_pem: pki.ca_pem.clone(), issuer: stranger.issuer };
    assert!(own.get(port, API_SERVER, "/healthz").await.is_err());
    // What the API server asks is not asked of the API first.
    assert!(!node.api.requests().iter().any(|request| request.contains("subjectaccessreviews")));
}

#[tokio::test]
async fn others_may_what_the_api_says_and_are_asked_about_once() {
    let (node, pki, port) = node().await;
    node.api.know("scraper-token", "system:serviceaccount:kube-system:scraper");
    node.api.allow("system:serviceaccount:kube-system:scraper", "get", "metrics");
    node.api.allow("viewer", "get", "pods");
    let scraper = Some("scraper-token");
    for _ in 0..3 {
        let (code, page) = pki.get_with(port, None, scraper, "/metrics/resource").await.unwrap();
        assert_eq!(code, 200);
        assert!(page.contains("resource_scrape_error 0"), "{page}");
    }
    let asked = |what: &str| node.api.requests().iter().filter(|request| request.ends_with(what)).count();
    assert_eq!((asked("/tokenreviews"), asked("/subjectaccessreviews")), (1, 1));
    let refused = pki.get_with(port, None, scraper, "/pods").await.unwrap();
    let message = "Forbidden (user=system:serviceaccount:kube-system:scraper, verb=get, resource=nodes, \
                   subresource(s)=[pods proxy])\n";
    assert_eq!(refused, (403, message.to_owned()));
    assert_eq!(pki.get(port, Some("viewer"), "/pods").await.unwrap().0, 200);
    assert_eq!(pki.get(port, Some("viewer"), "/metrics").await.unwrap().0, 403);
    assert_eq!(pki.get(port, Some("viewer"), "/exec/default/web/app?command=ls").await.unwrap().0, 403);
    assert_eq!(pki.get(port, Some("system:node:n1"), "/nothing").await.unwrap().0, 403);
}

#[tokio::test]
async fn logs_are_those_of_the_container_that_is_named() {
    let (node, pki, port) = node().await;
    node.api.put_pod(pod("web", json!({})));
    let waiting = pki.get(port, API_SERVER, "/containerLogs/default/web/app").await.unwrap();
    assert!(waiting.0 == 400 || waiting.0 == 404 || waiting.0 == 500, "{waiting:?}");
    node.phase("web", "Running").await;
    let dir = node.config.pod_log_dir("default", "web", "uid-web").join("app");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(
        dir.join("0.log"),
        "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr F two\n",
    )
    .unwrap();
    let log = async |query: &str| {
        pki.get(port, API_SERVER, &format!("/containerLogs/default/web/app{query}")).await.unwrap()
    };
    assert_eq!(log("").await, (200, "one\ntwo\n".to_owned()));
    assert_eq!(log("?tailLines=1&timestamps=true").await.1, "2026-01-01T00:00:01Z two\n");
    assert_eq!(log("?stream=Stdout").await.1, "one\n");
    let (code, message) = log("?previous=true").await;
    assert_eq!(
        (code, message.as_str()),
        (400, "previous terminated container \"app\" in pod \"web\" not found")
    );
    assert_eq!(pki.get(port, API_SERVER, "/containerLogs/default/web/other").await.unwrap().0, 404);
    assert_eq!(pki.get(port, API_SERVER, "/containerLogs/default/none/app").await.unwrap().0, 404);
}

#[tokio::test]
async fn exec_speaks_the_channel_protocol_and_ends_with_the_exit_code() {
    let (node, pki, port) = node().await;
    node.api.put_pod(pod("web", json!({})));
    node.phase("web", "Running").await;
    let url = format!(
        "ws://localhost:{port}/exec/default/web/app?command=echo&command=hi&input=1&output=1&error=1"
    );
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().unwrap());
    let stream = pki.connect(port, API_SERVER).await.unwrap();
    let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    socket.send(Message::binary(b"\x04{\"Width\":80,\"Height\":24}".to_vec())).await.unwrap();
    socket.send(Message::binary(b"\x00 there".to_vec())).await.unwrap();
    socket.send(Message::binary(vec![255, 0])).await.unwrap();
    let (mut output, mut end) = (Vec::new(), String::new());
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(data) if data[0] == 1 => output.extend_from_slice(&data[1..]),
            Message::Binary(data) if data[0] == 3 => end = String::from_utf8_lossy(&data[1..]).into_owned(),
            _ => {}
        }
    }
    assert_eq!(String::from_utf8(output).unwrap(), "echo hi there");
    let end: serde_json::Value = serde_json::from_str(&end).unwrap();
    assert_eq!(
        (&end["reason"], &end["details"]["causes"][0]["message"]),
        (&json!("NonZeroExitCode"), &json!("7"))
    );
}

type Socket = tokio_tungstenite::WebSocketStream<TlsStream<TcpStream>>;

async fn exec(pki: &Pki, port: u16, path: &str) -> Socket {
    open(pki, port, &format!("exec/default/{path}"), "v5.channel.k8s.io").await
}

async fn open(pki: &Pki, port: u16, path: &str, protocol: &str) -> Socket {
    let mut request = format!("ws://localhost:{port}/{path}").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    let stream = pki.connect(port, API_SERVER).await.unwrap();
    tokio_tungstenite::client_async(request, stream).await.unwrap().0
}

/// What channel 3 says, and whether the server closed in order.
async fn end_of(mut socket: Socket) -> (serde_json::Value, bool) {
    let (mut end, mut closed) = (String::new(), false);
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(data) if data[0] == 3 => end = String::from_utf8_lossy(&data[1..]).into_owned(),
            Message::Close(frame) => closed = frame.is_some_and(|f| u16::from(f.code) == 1000),
            _ => {}
        }
    }
    (serde_json::from_str(&end).unwrap_or_default(), closed)
}

#[tokio::test]
async fn why_there_is_no_process_is_told_over_the_error_channel() {
    let (node, pki, port) = node().await;
    node.api.put_pod(pod("web", json!({ "initContainers": [{ "name": "early", "image": "app:1" }] })));
    node.pod_status("web", |s| s["initContainerStatuses"][0]["state"]["running"].is_object()).await;
    node.cri.exit("early", 0);
    node.phase("web", "Running").await;
    let told = async |path: &str| {
        let (end, closed) = end_of(exec(&pki, port, path).await).await;
        assert!(closed, "{path}");
        assert_eq!(
            (&end["status"], &end["reason"], &end["code"]),
            (&json!("Failure"), &json!("InternalError"), &json!(500))
        );
        end["message"].as_str().unwrap().to_owned()
    };
    node.cri.refuse_exec("exec: \"none\": executable file not found in $PATH");
    assert_eq!(
        told("web/app?command=none&output=1").await,
        "Internal error occurred: error executing command in container: exec: \"none\": executable file not found in $PATH"
    );
    let ended =
        "Internal error occurred: error executing command in container: container not found (\"early\")";
    assert_eq!(told("web/early?command=ls&output=1").await, ended);
    let missing = told("none/app?command=ls&output=1").await;
    assert!(missing.contains("pod \"none\" not found"), "{missing}");
}

#[tokio::test]
async fn a_client_that_closes_is_answered_and_its_process_gets_all_input_and_lives_on() {
    let (node, pki, port) = node().await;
    node.api.put_pod(pod("web", json!({})));
    node.phase("web", "Running").await;
    let mut socket = exec(&pki, port, "web/app?command=cat&input=1&output=1").await;
    // More than the process's pipes hold: it must not wait for a reader that has left.
    for _ in 0..50 {
        socket.send(Message::binary([&[0][..], &[b'x'; 1000]].concat())).await.unwrap();
    }
    socket.close(None).await.unwrap();
    let answered = async {
        while let Some(Ok(message)) = socket.next().await {
            if matches!(message, Message::Close(_)) {
                return true;
            }
        }
        false
    };
    let answered = tokio::time::timeout(std::time::Duration::from_secs(10), answered).await;
    assert_eq!(answered, Ok(true), "the Close was not answered");
    drop(socket);
    let read = crate::testing::eventually("the process's end", async || node.cri.finished_exec()).await;
    assert_eq!(read, 50_000);
}

/// All that comes over a channel until the end, in either form.
async fn all_of(mut socket: Socket, channel: u8) -> Vec<u8> {
    use base64::Engine as _;
    let mut seen = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(data) if data[0] == channel => seen.extend_from_slice(&data[1..]),
            Message::Text(text) if text.as_bytes()[0] == b'0' + channel => {
                seen.extend(base64::engine::general_purpose::STANDARD.decode(&text.as_bytes()[1..]).unwrap());
            }
            _ => {}
        }
    }
    seen
}

#[tokio::test]
async fn who_attaches_gets_the_containers_terminal_and_input_whatever_the_request_says() {
    let (node, pki, port) = node().await;
    let with = |field: serde_json::Value| {
        let mut container = json!({ "name": "app", "image": "app:1" });
        container.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
        json!({ "containers": [container] })
    };
    node.api.put_pod(pod("plain", with(json!({}))));
    node.api.put_pod(pod("term", with(json!({ "tty": true, "stdin": true }))));
    for name in ["plain", "term"] {
        node.phase(name, "Running").await;
    }
    for (name, protocol, expected) in [
        ("plain", "v4.base64.channel.k8s.io", "stdin=false tty=false stderr=true "),
        ("term", "v5.channel.k8s.io", "stdin=true tty=true stderr=false "),
    ] {
        let path = format!("attach/default/{name}/app?input=1&output=1&error=1");
        let mut socket = open(&pki, port, &path, protocol).await;
        let end =
            if protocol.contains("base64") { Message::text("0") } else { Message::binary(vec![255, 0]) };
        socket.send(end).await.unwrap();
        if protocol.contains("base64") {
            socket.close(None).await.unwrap();
        }
        let seen = String::from_utf8(all_of(socket, 1).await).unwrap();
        assert!(expected.starts_with(&seen) || seen == expected, "{name}: {seen}");
        assert!(protocol.contains("base64") || seen == expected, "{name}: {seen}");
    }
}

#[tokio::test]
async fn a_runtime_that_has_only_logs_refuses_input() {
    let (node, pki, port) = node().await;
    node.cri.have_only_logs();
    let spec = json!({ "containers": [{ "name": "app", "image": "app:1", "stdin": true }] });
    node.api.put_pod(pod("web", spec));
    node.phase("web", "Running").await;
    let socket = open(&pki, port, "attach/default/web/app?input=1&output=1", "v5.channel.k8s.io").await;
    let (end, closed) = end_of(socket).await;
    assert!(closed);
    assert_eq!(
        end["message"],
        "Internal error occurred: error attaching to container: there is nothing but a log"
    );
}

#[tokio::test]
async fn ports_are_forwarded_over_the_channels_of_a_websocket_each_begun_with_its_number() {
    let (node, pki, port) = node().await;
    node.api.put_pod(pod("web", json!({})));
    node.phase("web", "Running").await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let there = listener.local_addr().unwrap().port();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let echo = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = stream.try_clone().unwrap();
        std::io::copy(&mut reader, &mut stream).unwrap()
    });
    let path = format!("portForward/default/web?port={there}&port={nobody}");
    let mut socket = open(&pki, port, &path, "v4.channel.k8s.io").await;
    socket.send(Message::binary(b"\x00hello".to_vec())).await.unwrap();
    let mut seen: std::collections::BTreeMap<u8, Vec<u8>> = Default::default();
    while !(seen.get(&0).is_some_and(|data| data.len() == 7)
        && seen.get(&3).is_some_and(|data| data.len() > 2))
    {
        if let Message::Binary(data) = socket.next().await.unwrap().unwrap() {
            seen.entry(data[0]).or_default().extend_from_slice(&data[1..]);
        }
    }
    assert_eq!(seen[&0], [&there.to_le_bytes()[..], b"hello"].concat());
    assert_eq!(seen[&1], there.to_le_bytes());
    assert_eq!(seen[&2], nobody.to_le_bytes());
    let told = String::from_utf8_lossy(&seen[&3][2..]).into_owned();
    assert!(told.contains(&format!("error forwarding port {nobody} to pod web, uid uid-web")), "{told}");
    socket.close(None).await.unwrap();
    assert_eq!(echo.await.unwrap(), 5);
}

#[tokio::test]
async fn what_is_not_offered_is_refused_by_name() {
    let (node, pki, port) = node().await;
    node.api.put_pod(pod("web", json!({})));
    node.phase("web", "Running").await;
    let (code, message) =
        pki.get(port, API_SERVER, "/exec/default/web/app?command=ls&output=1").await.unwrap();
    assert_eq!(
        (code, message.as_str()),
        (400, "you must ask for an upgrade to a WebSocket or to SPDY/3.1\n")
    );
    for path in ["/attach/default/web/app?output=1", "/portForward/default/web?port=80"] {
        let (code, message) = pki.get(port, API_SERVER, path).await.unwrap();
        assert!(code == 400 && message.contains("upgrade"), "{path}: {code} {message}");
    }
    let pods = pki.get(port, API_SERVER, "/pods").await.unwrap().1;
    assert!(pods.contains("uid-web"));
    let metrics = pki.get(port, API_SERVER, "/metrics").await.unwrap().1;
    assert!(metrics.contains("kubelet_running_containers 1"), "{metrics}");
    let summary = pki.get(port, API_SERVER, "/stats/summary").await.unwrap().1;
    assert!(summary.contains("\"nodeName\":\"n1\""), "{summary}");
}
