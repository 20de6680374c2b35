//! Answers that go on, as the messages of a WebSocket: watches and logs for those that cannot read an endless body.
//!
//! As upstream: the client says nothing, its end is the end, and each message is an event or a piece of a log.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, Stream, StreamExt};
use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{HeaderMap, HeaderValue};
use skiff_api::Status;
use tokio_util::sync::CancellationToken;

use crate::call::Call;
use crate::place::Place;
use crate::proxy::headers::without_token;
use crate::proxy::upgrade::{MAX_STREAM, client_of, requested};
use crate::respond::Response;

/// What a client may say, which is not read.
const MAX_RECEIVED_BYTES: usize = 4 << 10;
/// How long a client that was told the end may take to hang up.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// Of logs.
const BINARY: &str = "binary.k8s.io";
const BASE64: &str = "base64.binary.k8s.io";

/// What messages are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Messages {
    Text,
    Binary,
    Base64,
}

impl Messages {
    fn of(self, piece: Bytes) -> Message {
        match self {
            Messages::Text => {
                Utf8Bytes::try_from(piece.clone()).map_or(Message::Binary(piece), Message::Text)
            }
            Messages::Binary => Message::Binary(piece),
            Messages::Base64 => Message::Text(STANDARD.encode(&piece).into()),
        }
    }
}

/// The WebSocket that a request asks for.
pub(crate) struct Socket {
    upgrade: WebSocketUpgrade,
    /// What the client offers, what it likes best first.
    protocols: Vec<HeaderValue>,
    place: Option<Place>,
    shutdown: CancellationToken,
}

impl Socket {
    /// `None` if the request asks for none. Whatever is wrong with it otherwise is said before the answer begins.
    pub(crate) async fn asked_for(
        call: &mut Call,
        shutdown: &CancellationToken,
    ) -> Result<Option<Socket>, Status> {
        if requested(&call.headers) != Some("websocket") {
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
        let upgrade = upgrade
            .read_buffer_size(MAX_RECEIVED_BYTES)
            .max_frame_size(MAX_RECEIVED_BYTES)
            .max_message_size(MAX_RECEIVED_BYTES)
            .write_buffer_size(0);
        Ok(Some(Socket { upgrade, protocols: offered(&call.headers), place, shutdown: shutdown.clone() }))
    }

    /// Events. Whoever offers one protocol is answered with it: browsers would hang up otherwise.
    pub(crate) fn events<S>(mut self, messages: Messages, events: S) -> Response
    where
        S: Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static,
    {
        if let [only] = &*self.protocols {
            self.upgrade.set_selected_protocol(only.clone());
        }
        self.answer(messages, events)
    }

    /// A log, after an empty message, which tells the client that it begins.
    pub(crate) fn log<S, E>(mut self, log: S) -> Result<Response, Status>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let known = |protocol: &&HeaderValue| *protocol == BINARY || *protocol == BASE64;
        let chosen = self.protocols.iter().find(known).cloned();
        if chosen.is_none() && !self.protocols.is_empty() {
            return Err(Status::new(
                403,
                "Forbidden",
                format!(
                    "none of the requested protocols is supported; logs are sent as {BINARY} or {BASE64}"
                ),
            ));
        }
        let is_base64 = chosen.as_ref().is_some_and(|protocol| protocol == BASE64);
        let messages = if is_base64 { Messages::Base64 } else { Messages::Binary };
        if let Some(chosen) = chosen {
            self.upgrade.set_selected_protocol(chosen);
        }
        Ok(self.answer(messages, futures::stream::iter([Ok(Bytes::new())]).chain(log)))
    }

    fn answer<S, E>(self, messages: Messages, pieces: S) -> Response
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let Socket { upgrade, place, shutdown, .. } = self;
        // A client that reads is told the end; one that does not is left.
        let pieces = pieces.take_until(tokio::time::sleep(MAX_STREAM));
        upgrade.on_upgrade(async move |socket| {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(MAX_STREAM + CLOSE_WAIT) => {}
                () = send(socket, messages, pieces) => {}
            }
            drop(place);
        })
    }
}

/// The protocols of a handshake in their order. A token that travels as one is none.
pub(crate) fn offered(headers: &HeaderMap) -> Vec<HeaderValue> {
    let mut protocols = Vec::new();
    for value in headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(without_token) {
        let names = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        protocols
            .extend(names.filter(|name| !name.is_empty()).filter_map(|n| HeaderValue::from_bytes(n).ok()));
    }
    protocols
}

/// Sends piece after piece, until there are no more or the client is gone.
async fn send<E: std::fmt::Display>(
    socket: WebSocket,
    messages: Messages,
    pieces: impl Stream<Item = Result<Bytes, E>>,
) {
    let (mut sink, source) = socket.split();
    // Reading is what answers pings.
    let gone = source.take_while(|received| futures::future::ready(received.is_ok())).for_each(async |_| ());
    let mut gone = std::pin::pin!(gone);
    let sent = async {
        let mut pieces = std::pin::pin!(pieces);
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(piece) => sink.send(messages.of(piece)).await?,
                Err(error) => {
                    // Without a last word: what was cut off must not look whole.
                    tracing::debug!(%error, "what a WebSocket is to be sent");
                    return Ok(false);
                }
            }
        }
        let end = CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::default() };
        sink.send(Message::Close(Some(end))).await?;
        Ok::<bool, axum::Error>(true)
    };
    let sent = tokio::select! {
        () = &mut gone => return,
        sent = sent => sent,
    };
    match sent {
        Ok(true) => {
            // A connection that is dropped with something unread takes with it what the client has not read.
            let _ = tokio::time::timeout(CLOSE_WAIT, gone).await;
        }
        Ok(false) => {}
        Err(error) => tracing::debug!(%error, "sending to a WebSocket"),
    }
}
