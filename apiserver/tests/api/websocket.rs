//! Watches and logs as messages, over real connections.

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures::{SinkExt, StreamExt};
use http::HeaderValue;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::fixture::{Cluster, Pair};
use crate::network::{client_tls, listen};
use crate::node::pod_on_node;

type Socket = WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>;

const LOG: &str = "/api/v1/namespaces/a/pods/p/log?follow=true";
const WATCH: &str = "/api/v1/namespaces/a/configmaps?watch=true";

struct Server<'a> {
    cluster: &'a Cluster,
    address: SocketAddr,
    identity: Option<Pair>,
}

impl Server<'_> {
    /// The socket, and the protocol that the server chose.
    async fn open(
        &self,
        url: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(Socket, Option<HeaderValue>), Error> {
        let tls = client_tls(self.cluster, self.identity.as_ref(), "http/1.1");
        let tcp = TcpStream::connect(self.address).await.expect("connects");
        let name = ServerName::IpAddress(self.address.ip().into());
        let stream = tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await.expect("TLS");
        let mut request = format!("wss://{}{url}", self.address).into_client_request().expect("a request");
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().expect("a header"));
        }
        let (socket, response) = client_async(request, stream).await?;
        Ok((socket, response.headers().get("sec-websocket-protocol").cloned()))
    }
}

async fn next(socket: &mut Socket) -> Message {
    socket.next().await.expect("goes on").expect("a message")
}

async fn is_told_the_end(mut socket: Socket) {
    assert!(matches!(next(&mut socket).await, Message::Close(Some(end)) if end.code == CloseCode::Normal));
    // The server hangs up; whether TLS is told so is not said.
    assert!(!matches!(socket.next().await, Some(Ok(_))));
}

fn event(message: &Message) -> (String, String) {
    let event: Value = serde_json::from_str(message.to_text().expect("text")).expect("JSON");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
}

#[tokio::test]
async fn a_watch_is_a_message_for_each_event() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let (address, shutdown, task) = listen(&cluster).await;
    let identity = Some(cluster.pki.issue("admin", &["system:masters"]));
    let server = Server { cluster: &cluster, address, identity };
    let url = "/api/v1/namespaces/a/configmaps";
    admin.post(url, json!({"metadata": {"name": "one"}})).await.created();

    let (mut socket, protocol) = server.open(WATCH, &[]).await.expect("opens");
    assert_eq!(protocol, None);
    assert_eq!(event(&next(&mut socket).await), ("ADDED".into(), "one".into()));
    // Nothing that the client says is an answer or an end; pings are answered.
    socket.send(Message::text("hello")).await.expect("sends");
    socket.send(Message::Ping("here".into())).await.expect("sends");
    assert_eq!(next(&mut socket).await, Message::Pong("here".into()));
    admin.post(url, json!({"metadata": {"name": "two"}})).await.created();
    assert_eq!(event(&next(&mut socket).await), ("ADDED".into(), "two".into()));
    // Its end is the end.
    socket.close(None).await.expect("closes");
    assert!(matches!(next(&mut socket).await, Message::Close(_)));
    assert!(!matches!(socket.next().await, Some(Ok(_))));

    let ends = format!("{WATCH}&timeoutSeconds=1&resourceVersion=0&fieldSelector=metadata.name%3Dtwo");
    let (mut socket, protocol) =
        server.open(&ends, &[("sec-websocket-protocol", "chat")]).await.expect("opens");
    assert_eq!(protocol.expect("chosen"), "chat", "a browser hangs up if its one protocol is not taken");
    assert_eq!(event(&next(&mut socket).await), ("ADDED".into(), "two".into()));
    is_told_the_end(socket).await;

    let protobuf = "application/vnd.kubernetes.protobuf;stream=watch";
    let (mut socket, _) = server.open(WATCH, &[("accept", protobuf)]).await.expect("opens");
    for _ in ["one", "two"] {
        let message = next(&mut socket).await;
        assert!(message.is_binary());
        // Without the length of a stream's frame.
        assert!(message.into_data().starts_with(b"\x0a\x05ADDED\x12"));
    }

    let refused = server.open("/api/v1/namespaces/a/configmaps?watch=true&resourceVersion=x", &[]).await;
    assert!(matches!(refused, Err(Error::Http(answer)) if answer.status() == 422));
    // A server that stops ends its sockets.
    shutdown.cancel();
    assert!(!matches!(socket.next().await, Some(Ok(Message::Text(_) | Message::Binary(_)))));
    task.await.expect("ends");
}

#[tokio::test]
async fn a_log_is_messages_of_the_protocol_that_was_asked_for() {
    let cluster = Cluster::start().await;
    let admin = pod_on_node(&cluster).await;
    let (address, shutdown, task) = listen(&cluster).await;
    let identity = Some(cluster.pki.issue("admin", &["system:masters"]));
    let server = Server { cluster: &cluster, address, identity };
    let log = b"/containerLogs/a/p/c?follow=true";

    for (offered, chosen) in [
        ("", ""),
        ("binary.k8s.io", "binary.k8s.io"),
        ("chat, binary.k8s.io, base64.binary.k8s.io", "binary.k8s.io"),
    ] {
        let headers = [("sec-websocket-protocol", offered)];
        let headers = if offered.is_empty() { &[][..] } else { &headers };
        let (mut socket, protocol) = server.open(LOG, headers).await.expect("opens");
        assert_eq!(protocol.unwrap_or(HeaderValue::from_static("")), chosen);
        assert_eq!(next(&mut socket).await, Message::binary(""), "it begins");
        assert_eq!(next(&mut socket).await, Message::binary(&log[..]));
        is_told_the_end(socket).await;
    }

    let base64 = [("sec-websocket-protocol", "base64.binary.k8s.io, binary.k8s.io")];
    let (mut socket, protocol) = server.open(LOG, &base64).await.expect("opens");
    assert_eq!(protocol.expect("chosen"), "base64.binary.k8s.io");
    assert_eq!(next(&mut socket).await, Message::text(""));
    assert_eq!(next(&mut socket).await, Message::text(STANDARD.encode(log)));
    is_told_the_end(socket).await;

    let refused = server.open(LOG, &[("sec-websocket-protocol", "v5.channel.k8s.io")]).await;
    assert!(matches!(refused, Err(Error::Http(answer)) if answer.status() == 403));

    // A pod that is nowhere yet has no log.
    admin.post("/api/v1/namespaces/a/pods", crate::fixture::pod("waits")).await.created();
    let none = "/api/v1/namespaces/a/pods/waits/log";
    let refused = server.open(none, &[]).await;
    assert!(matches!(refused, Err(Error::Http(answer)) if answer.status() == 204));
    let plain = admin.get(none).await;
    assert_eq!((plain.code, plain.bytes.len()), (204, 0));
    shutdown.cancel();
    task.await.expect("ends");
}

#[tokio::test]
async fn a_token_among_the_protocols_is_not_one_of_them() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let (address, shutdown, task) = listen(&cluster).await;
    let account = "/api/v1/namespaces/a/serviceaccounts/default/token";
    let answer = admin.post(account, json!({"spec": {}})).await.created();
    let token = URL_SAFE_NO_PAD.encode(answer["status"]["token"].as_str().expect("a token"));
    let protocols = format!("base64url.bearer.authorization.k8s.io.{token}, binary.k8s.io");
    let anybody = Server { cluster: &cluster, address, identity: None };
    // It was read: the account may not watch, and nobody is let in with less than the whole of it.
    for (protocols, code) in [(protocols.clone(), 403), (protocols.replacen(&token, &token[..40], 1), 401)] {
        let refused = anybody.open(WATCH, &[("sec-websocket-protocol", &protocols)]).await;
        assert!(matches!(refused, Err(Error::Http(answer)) if answer.status() == code), "{code}");
    }
    // And what is left of the offer is what the server chooses from.
    let identity = Some(cluster.pki.issue("admin", &["system:masters"]));
    let server = Server { cluster: &cluster, address, identity };
    let (_, protocol) = server.open(WATCH, &[("sec-websocket-protocol", &protocols)]).await.expect("opens");
    assert_eq!(protocol.expect("chosen"), "binary.k8s.io");
    shutdown.cancel();
    task.await.expect("ends");
}
