//! Taking over a connection, for a WebSocket or for SPDY.

use axum::extract::FromRequestParts;
use axum::extract::ws::WebSocketUpgrade;
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use skiff_spdy::Session;

use super::exchange::Client;
use super::query::StreamQuery;
use super::spdy::{self, Wanted};
use super::websocket;

const SPDY: &str = "SPDY/3.1";
const VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What a client wants its connection to become.
pub(super) enum Upgrade {
    WebSocket(WebSocketUpgrade),
    Spdy(SpdyUpgrade),
}

/// A connection that will speak SPDY.
pub(super) struct SpdyUpgrade {
    client: OnUpgrade,
    offered: Vec<String>,
}

impl Upgrade {
    /// What the request asks for, or what it is told that asks for nothing.
    pub(super) async fn of(parts: &mut Parts) -> Result<Upgrade, Response> {
        if is_spdy(&parts.headers) {
            let offered = offered(&parts.headers);
            if offered.is_empty() {
                return Err(bad(
                    "unable to upgrade: header X-Stream-Protocol-Version does not exist in request\n",
                ));
            }
            return match parts.extensions.remove::<OnUpgrade>() {
                Some(client) => Ok(Upgrade::Spdy(SpdyUpgrade { client, offered })),
                None => Err(bad("unable to upgrade: ask over HTTP/1.1\n")),
            };
        }
        WebSocketUpgrade::from_request_parts(parts, &())
            .await
            .map(Upgrade::WebSocket)
            .map_err(|_| bad("you must ask for an upgrade to a WebSocket or to SPDY/3.1\n"))
    }
}

impl SpdyUpgrade {
    /// Answers with the first protocol of the client's that is known, and has `work` done with the connection afterwards.
    pub(super) fn run<W>(
        self,
        known: &'static [&'static str],
        work: impl FnOnce(Session, &'static str) -> W + Send + 'static,
    ) -> Response
    where
        W: Future<Output = ()> + Send,
    {
        let SpdyUpgrade { client, offered } = self;
        let chosen = offered.iter().find_map(|one| known.iter().find(|known| *known == one));
        let Some(chosen) = chosen.copied() else {
            let message = format!(
                "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]\n",
                offered.join(" "),
                known.join(" ")
            );
            let mut response = (StatusCode::FORBIDDEN, message).into_response();
            for one in known {
                response.headers_mut().append(ACCEPTED, HeaderValue::from_static(one));
            }
            return response;
        };
        tokio::spawn(async move {
            match client.await {
                Ok(connection) => work(Session::new(TokioIo::new(connection)), chosen).await,
                Err(error) => tracing::debug!(%error, "a connection was not handed over for SPDY"),
            }
        });
        let headers = [
            (CONNECTION, HeaderValue::from_static("Upgrade")),
            (UPGRADE, HeaderValue::from_static(SPDY)),
            (VERSION, HeaderValue::from_static(chosen)),
        ];
        (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
    }
}

/// Takes the connection over, and has `work` done with the client and what it asked for.
pub(super) fn accept<W>(
    upgrade: Upgrade,
    query: StreamQuery,
    work: impl FnOnce(Client, StreamQuery) -> W + Send + 'static,
) -> Response
where
    W: Future<Output = ()> + Send,
{
    match upgrade {
        Upgrade::WebSocket(upgrade) => {
            let first = match &query {
                StreamQuery { stdout: true, .. } => websocket::STDOUT,
                StreamQuery { stderr: true, .. } => websocket::STDERR,
                _ => websocket::ERROR,
            };
            websocket::accept(upgrade, first, move |client| work(client, query))
        }
        Upgrade::Spdy(upgrade) => {
            spdy::accept(upgrade, Wanted::of(&query), move |client| work(client, query))
        }
    }
}

fn is_spdy(headers: &HeaderMap) -> bool {
    let has = |name, token: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|one| one.trim().eq_ignore_ascii_case(token)))
    };
    has(CONNECTION, "upgrade") && has(UPGRADE, SPDY)
}

fn offered(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(VERSION).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|one| one.trim().to_owned())
        .filter(|one| !one.is_empty())
        .collect()
}

pub(super) fn bad(message: &str) -> Response {
    (StatusCode::BAD_REQUEST, message.to_owned()).into_response()
}
