//! Streams that take over a connection: WebSocket and SPDY, passed through byte by byte.
//!
//! # Guarantees
//! The backend's connection becomes the client's only after the backend answered 101; otherwise it is closed
//! with its answer (CVE-2018-1002105).

use std::time::Duration;

use axum::body::Body;
use http::header::{CONNECTION, HeaderName, UPGRADE};
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use skiff_api::Status;
use tokio_util::sync::CancellationToken;

use super::headers::{strip, without_token};
use super::kubelet::{Kubelet, NodeAddress, kubelet_error};
use crate::call::Call;
use crate::place::Place;
use crate::respond::Response;

const BUFFER_BYTES: usize = 16 << 10;
/// Upstream's `--streaming-connection-idle-timeout`, here for the whole stream.
pub(crate) const MAX_STREAM: Duration = Duration::from_secs(4 * 3600);

/// Headers of the handshake that are passed on, either way; nothing else is, no credentials in particular.
const HANDSHAKE: &[&str] = &[
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-extensions",
    "sec-websocket-accept",
    "x-stream-protocol-version",
];

pub(super) async fn pass_through(
    kubelet: &Kubelet,
    to: NodeAddress,
    path: &str,
    call: &mut Call,
    shutdown: CancellationToken,
) -> Result<Response, Status> {
    let protocol = requested(&call.headers)
        .ok_or_else(|| Status::bad_request("unable to upgrade: missing upgrade headers in request"))?;
    let client = client_of(call)?;
    // A WebSocket handshake is a GET; SPDY clients use either.
    let method = if protocol == "websocket" { "GET" } else { "POST" };
    let mut request =
        http::Request::builder().method(method).uri(path).body(Body::empty()).map_err(Status::internal)?;
    copy_handshake(&call.headers, request.headers_mut());
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));

    let answer = kubelet.send(to, request).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(kubelet_error(answer).await);
    }
    let mut headers = HeaderMap::new();
    copy_handshake(answer.headers(), &mut headers);
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
    Ok(join(call.extensions.get::<Place>().cloned(), client, answer, headers, shutdown))
}

/// The client's side of a connection that is to be taken over.
pub(crate) fn client_of(call: &mut Call) -> Result<OnUpgrade, Status> {
    taken(&mut call.extensions)
}

/// The same, of a request that is about no kind.
pub(crate) fn taken(extensions: &mut http::Extensions) -> Result<OnUpgrade, Status> {
    extensions.remove::<OnUpgrade>().ok_or_else(|| {
        Status::bad_request("unable to upgrade: this connection cannot be upgraded, use HTTP/1.1")
    })
}

/// What came of asking a backend to switch protocols.
pub(crate) enum Switched {
    /// The two connections are one stream.
    Joined(Response),
    /// The backend's own refusal.
    Refused(Response),
    /// It did neither.
    Neither(StatusCode),
}

/// Makes one stream of the client's connection and the backend's, if that has answered 101. `place` is held until the stream ends.
pub(crate) fn switch(
    answer: http::Response<Incoming>,
    client: OnUpgrade,
    protocol: &'static str,
    place: impl Send + 'static,
    shutdown: CancellationToken,
) -> Switched {
    match answer.status() {
        StatusCode::SWITCHING_PROTOCOLS => {
            let mut headers = answer.headers().clone();
            strip(&mut headers);
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static(protocol));
            Switched::Joined(join(place, client, answer, headers, shutdown))
        }
        refused if refused.as_u16() >= 400 => {
            let mut response = answer.map(Body::new);
            strip(response.headers_mut());
            Switched::Refused(response)
        }
        other => Switched::Neither(other),
    }
}

/// Makes one stream of the client's connection and that of a backend which has answered 101; what the client
/// is answered, with `headers`.
fn join(
    place: impl Send + 'static,
    client: OnUpgrade,
    mut answer: http::Response<Incoming>,
    headers: HeaderMap,
    shutdown: CancellationToken,
) -> Response {
    let backend = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        copy(client, backend, shutdown).await;
        drop(place);
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    response
}

async fn copy(client: OnUpgrade, backend: OnUpgrade, shutdown: CancellationToken) {
    let copied = async {
        let (client, backend) = tokio::try_join!(client, backend).map_err(std::io::Error::other)?;
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut backend, BUFFER_BYTES, BUFFER_BYTES).await
    };
    // Whichever ends first, both connections close by being dropped.
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(MAX_STREAM) => {}
        result = copied => {
            if let Err(error) = result {
                tracing::debug!(%error, "stream to a backend");
            }
        }
    }
}

/// The protocol that a client asks to switch to, if it is one that is passed through.
pub(crate) fn requested(headers: &HeaderMap) -> Option<&'static str> {
    let connection = headers.get_all(CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let upgrades = connection.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(UPGRADE)?.to_str().ok()?;
    ["websocket", "SPDY/3.1"].into_iter().find(|known| upgrades && protocol.eq_ignore_ascii_case(known))
}

fn copy_handshake(from: &HeaderMap, to: &mut HeaderMap) {
    for name in HANDSHAKE {
        let name = HeaderName::from_static(name);
        for value in from.get_all(&name) {
            // A token may travel as a subprotocol; it is for this server only.
            let carries_token = value.to_str().is_ok_and(|v| v.contains("base64url.bearer."));
            if carries_token {
                if let Some(rest) = without_token(value) {
                    to.append(name.clone(), rest);
                }
            } else {
                to.append(name.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn only_websocket_and_spdy_are_passed_through() {
        assert_eq!(
            requested(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")])),
            Some("websocket")
        );
        assert_eq!(
            requested(&headers(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")])),
            Some("SPDY/3.1")
        );
        assert_eq!(requested(&headers(&[("connection", "Upgrade"), ("upgrade", "h2c")])), None);
        assert_eq!(requested(&headers(&[("upgrade", "websocket")])), None);
    }

    #[test]
    fn no_credentials_reach_the_node() {
        let from = headers(&[
            ("authorization", "Bearer x"),
            ("cookie", "y"),
            ("sec-websocket-protocol", "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.eA"),
        ]);
        let mut to = HeaderMap::new();
        copy_handshake(&from, &mut to);
        assert_eq!(to.len(), 1);
        assert_eq!(to["sec-websocket-protocol"], "v5.channel.k8s.io");
    }
}
