//! SPDY within a WebSocket: what kubectl opens for `port-forward`, so that what stands between lets it through. The node is
//! asked in SPDY alone; bytes are taken out of messages on the way there, and put into messages on the way back.
//!
//! The client's connection is answered only after the node has answered 101.

use std::time::Duration;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use bytes::BytesMut;
use futures::{SinkExt, StreamExt};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderName, HeaderValue, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use skiff_api::Status;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::kubelet::{Kubelet, NodeAddress, kubelet_error};
use super::upgrade::{MAX_STREAM, client_of, requested};
use crate::call::Call;
use crate::place::Place;
use crate::respond::Response;
use crate::websocket::offered;

const PREFIX: &str = "SPDY/3.1+";
const SUFFIX: &str = ".k8s.io";
const SPDY: HeaderValue = HeaderValue::from_static("SPDY/3.1");
const VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const BUFFER: usize = 32 << 10;
/// Of a message; clients send what they read at once.
const MAX_MESSAGE: usize = 1 << 20;
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// A client that wants one.
pub(super) struct Tunnel {
    upgrade: WebSocketUpgrade,
    /// Protocols of SPDY streams, as the client offers them.
    protocols: Vec<String>,
    place: Option<Place>,
    shutdown: CancellationToken,
}

impl Tunnel {
    /// `None` if the request asks for something else.
    pub(super) async fn asked_for(
        call: &mut Call,
        shutdown: &CancellationToken,
    ) -> Result<Option<Tunnel>, Status> {
        if requested(&call.headers) != Some("websocket") {
            return Ok(None);
        }
        let offered = offered(&call.headers);
        let inner = |protocol: &HeaderValue| {
            let protocol = protocol.to_str().ok()?.strip_prefix(PREFIX)?;
            protocol.ends_with(SUFFIX).then(|| protocol.to_owned())
        };
        let protocols: Vec<String> = offered.iter().filter_map(inner).collect();
        if protocols.is_empty() {
            return Ok(None);
        }
        let place = call.extensions.get::<Place>().cloned();
        let mut request = http::Request::new(());
        *request.method_mut() = call.method.clone();
        *request.headers_mut() = call.headers.clone();
        request.extensions_mut().insert(client_of(call)?);
        let (mut parts, ()) = request.into_parts();
        let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
        let upgrade = upgrade.map_err(|e| Status::bad_request(format!("unable to upgrade: {e}")))?;
        Ok(Some(Tunnel { upgrade, protocols, place, shutdown: shutdown.clone() }))
    }

    /// Asks the node, and answers the client as the node does.
    pub(super) async fn open(
        self,
        kubelet: &Kubelet,
        to: NodeAddress,
        path: &str,
    ) -> Result<Response, Status> {
        let Tunnel { mut upgrade, protocols, place, shutdown } = self;
        let mut request = http::Request::post(path).body(Body::empty()).map_err(Status::internal)?;
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, SPDY);
        for protocol in &protocols {
            headers.append(VERSION, HeaderValue::from_str(protocol).map_err(Status::internal)?);
        }
        let mut answer = kubelet.send(to, request).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(kubelet_error(answer).await);
        }
        let chosen = answer.headers().get(&VERSION).and_then(|value| value.to_str().ok());
        if let Some(chosen) = chosen.filter(|chosen| protocols.iter().any(|one| one == chosen)) {
            let outer = HeaderValue::from_str(&format!("{PREFIX}{chosen}")).map_err(Status::internal)?;
            upgrade.set_selected_protocol(outer);
        }
        let backend = hyper::upgrade::on(&mut answer);
        let upgrade =
            upgrade.read_buffer_size(BUFFER).max_frame_size(MAX_MESSAGE).max_message_size(MAX_MESSAGE);
        Ok(upgrade.on_upgrade(async move |client| {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(MAX_STREAM) => {}
                result = carry(client, backend) => {
                    if let Err(error) = result {
                        tracing::debug!(error, "a tunnel to a node");
                    }
                }
            }
            drop(place);
        }))
    }
}

async fn carry(client: WebSocket, backend: OnUpgrade) -> Result<(), String> {
    let backend = TokioIo::new(backend.await.map_err(|error| error.to_string())?);
    let (mut from_node, mut to_node) = tokio::io::split(backend);
    let (mut to_client, mut from_client) = client.split();
    let up = async {
        while let Some(message) = from_client.next().await {
            match message.map_err(|error| error.to_string())? {
                Message::Binary(data) => to_node.write_all(&data).await.map_err(|error| error.to_string())?,
                // Reading on sends the answer to a Close, and to a Ping.
                Message::Close(_) | Message::Ping(_) | Message::Pong(_) => {}
                Message::Text(_) => return Err("the client sends text".to_owned()),
            }
        }
        to_node.shutdown().await.map_err(|error| error.to_string())
    };
    let down = async {
        let mut buffer = BytesMut::with_capacity(BUFFER);
        while from_node.read_buf(&mut buffer).await.map_err(|error| error.to_string())? > 0 {
            let piece = Message::Binary(buffer.split().freeze());
            to_client.send(piece).await.map_err(|error| error.to_string())?;
            buffer.reserve(BUFFER);
        }
        let normal = CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::default() };
        to_client.send(Message::Close(Some(normal))).await.map_err(|error| error.to_string())
    };
    let mut up = std::pin::pin!(up);
    tokio::select! {
        // Nothing of the node's is wanted any more.
        ended = &mut up => ended,
        ended = down => {
            ended?;
            // A connection that is dropped with something unread takes with it what the client has not read.
            tokio::time::timeout(CLOSE_WAIT, up).await.unwrap_or(Ok(()))
        }
    }
}
