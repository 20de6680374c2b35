//! Requests for what another server serves: sent there as they are, with who asks instead of the credentials.
//!
//! # Guarantees
//! - Answers, and the bodies of what goes on for long, are streamed; other bodies are there before anything is sent on.
//! - Credentials for this server never reach another, and nobody says who he is but this one.
//! - No redirect is followed or passed on, and a server gets the client's connection only after it has answered 101.
//! - A request takes a place of its level at that server, and none here: one that is slow costs its own requests.
//!
//! Source: `handler_proxy.go` of kube-aggregator, apimachinery's `util/proxy`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderMap, LOCATION, UPGRADE};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body::Frame;
use hyper::body::Incoming;
use skiff_flow::Classified;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::identity;
use super::reach::Endpoints;
use super::remotes::Remote;
use crate::auth::UserInfo;
use crate::limits::{Limits, REQUEST_TIMEOUT};
use crate::proxy::headers::{CORS, add_forwarded, strip, without_credentials};
use crate::proxy::upgrade::{self, Switched};
use crate::request::RequestInfo;
use crate::respond::{self, Encoding, Response};

/// What only says what a server has is there at once.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Upstream waits without end for the head of an answer that goes on for long; this is for servers that never will.
const LONG_TIMEOUT: Duration = Duration::from_secs(600);
const REDIRECTED: &str = "the backend attempted to redirect this request, which is not permitted";

/// A request that was authenticated and authorized.
pub(crate) struct Asked {
    pub(crate) user: UserInfo,
    pub(crate) classified: Classified,
    pub(crate) info: RequestInfo,
    pub(crate) method: http::Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) extensions: http::Extensions,
    pub(crate) body: Body,
}

/// What is held for as long as anything of a request goes on.
type Held = (OwnedSemaphorePermit, Vec<OwnedSemaphorePermit>);

/// As upstream answers where the server could not be asked: text, whatever the client accepts.
fn told(code: u16, why: &str) -> Response {
    respond::text(code, format!("{why}\n"))
}

fn unreachable(why: &str) -> Response {
    told(503, &format!("error trying to reach service: {why}"))
}

/// Sends requests on.
pub(crate) struct Forwarder {
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) limits: Arc<Limits>,
    /// Ends streams.
    pub(crate) shutdown: CancellationToken,
}

impl Forwarder {
    /// Answers as the server does that a request is for.
    pub(crate) async fn forward(&self, remote: &Remote, asked: Asked) -> Response {
        let documents = Encoding::plain();
        if !remote.is_available {
            return told(503, "service unavailable");
        }
        let client = match remote.peer.client() {
            Ok(client) => client.clone(),
            Err(why) => return told(500, why),
        };
        let Ok(authority) = self.endpoints.shown_address(&remote.peer.to) else {
            return told(503, "service unavailable");
        };
        if has_hidden_slash(asked.uri.path()) {
            // What is authorized is what is served: to the other server it would be one step more.
            let status = skiff_api::Status::bad_request("a path to another API server may not hide a slash");
            return respond::failure(&documents, &status);
        }
        let started = Instant::now();
        let is_long = asked.info.is_long_running();
        let place = match remote.peer.admit(asked.classified.level(), is_long) {
            Ok(place) => place,
            Err(status) => return respond::failure(&documents, &status),
        };
        let Asked { user, classified, info, method, uri, headers, mut extensions, body } = asked;
        let protocol = upgrade::requested(&headers);
        let (body, room) = if is_long || protocol.is_some() {
            (body, Vec::new())
        } else {
            // One that trickles in holds up nobody but who sends it.
            match self.limits.receive(&classified, body).await {
                Ok(received) => (Body::from(received.bytes), received.room),
                Err(status) => return respond::failure(&documents, &status),
            }
        };
        let held: Arc<Held> = Arc::new((place, room));
        let head = Head {
            user: &user,
            authority: &authority,
            uri: &uri,
            headers: &headers,
            extensions: &extensions,
        };
        let request = match head.request(method, protocol) {
            Ok(request) => request,
            Err(why) => return told(500, &why),
        };
        let is_discovery = !info.is_resource && uri.path().trim_matches('/').split('/').count() == 3;
        let limit = match () {
            () if is_discovery => DISCOVERY_TIMEOUT,
            () if is_long || protocol.is_some() => LONG_TIMEOUT,
            () => REQUEST_TIMEOUT,
        };
        let stream = match protocol.map(|_| upgrade::taken(&mut extensions)).transpose() {
            Ok(stream) => stream,
            Err(status) => return respond::failure(&documents, &status),
        };
        let body = if protocol.is_some() { Body::empty() } else { body };
        let answer = tokio::time::timeout(limit, client.request(request.map(|()| body))).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return unreachable(&skiff_webhook::of_request(&error)),
            Err(_) => return unreachable("context deadline exceeded"),
        };
        match (stream, protocol) {
            (Some(client), Some(protocol)) => {
                let shutdown = self.shutdown.clone();
                match upgrade::switch(answer, client, protocol, held, shutdown) {
                    Switched::Joined(response) | Switched::Refused(response) => response,
                    Switched::Neither(code) => {
                        told(503, &format!("invalid upgrade response: status code {}", code.as_u16()))
                    }
                }
            }
            _ => {
                let until = (!is_long).then(|| started + REQUEST_TIMEOUT);
                passed_back(answer, held, until)
            }
        }
    }
}

/// Whether a step of a path has a slash in it, or is one that leads up.
fn has_hidden_slash(path: &str) -> bool {
    path.split('/').any(|step| {
        let step = crate::request::decoded(step);
        step.contains('/') || step == ".." || step == "."
    })
}

/// What a request is made of, but for its body.
struct Head<'a> {
    user: &'a UserInfo,
    authority: &'a str,
    uri: &'a Uri,
    headers: &'a HeaderMap,
    extensions: &'a http::Extensions,
}

impl Head<'_> {
    fn request(&self, method: http::Method, protocol: Option<&'static str>) -> Result<Request<()>, String> {
        let path = self.uri.path();
        let query = self.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let unsendable = |error: http::Error| format!("the path cannot be passed on: {error}");
        let url = format!("https://{}{path}{query}", self.authority);
        let mut request = Request::builder().method(method).uri(url).body(()).map_err(unsendable)?;
        let value = |text: &str| HeaderValue::from_str(text).map_err(|error| error.to_string());
        let mut headers = without_credentials(self.headers);
        strip(&mut headers);
        headers.insert(HOST, value(self.authority)?);
        add_forwarded(&mut headers, self.extensions);
        match protocol {
            Some(protocol) => {
                headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
                headers.insert(UPGRADE, HeaderValue::from_static(protocol));
            }
            None => {
                headers.insert("x-forwarded-uri", value(path)?);
                headers.insert("x-forwarded-host", value(self.authority)?);
                headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
            }
        }
        identity::tell(self.user, &mut headers);
        *request.headers_mut() = headers;
        Ok(request)
    }
}

fn passed_back(answer: http::Response<Incoming>, held: Arc<Held>, until: Option<Instant>) -> Response {
    let (mut head, body) = answer.into_parts();
    if head.status.is_redirection() && head.headers.get(LOCATION).is_some_and(|to| !to.is_empty()) {
        let mut response = Response::new(Body::from(REDIRECTED));
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        return response;
    }
    strip(&mut head.headers);
    for name in &CORS {
        head.headers.remove(name);
    }
    let until = until.map(|until| Box::pin(tokio::time::sleep_until(until)));
    Response::from_parts(head, Body::new(Answered { body, until, _held: held }))
}

/// The body of an answer, which keeps the place of its request, and ends in time if it is to.
struct Answered {
    body: Incoming,
    until: Option<Pin<Box<Sleep>>>,
    _held: Arc<Held>,
}

#[derive(Debug, thiserror::Error)]
enum AnswerError {
    #[error("the answer of the API server broke off")]
    Http(#[from] hyper::Error),
    #[error("the answer of the API server did not end in time")]
    Deadline,
}

impl http_body::Body for Answered {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        if let Some(until) = &mut self.until
            && until.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Some(Err(AnswerError::Deadline)));
        }
        Pin::new(&mut self.body).poll_frame(context).map_err(AnswerError::from)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_step_of_a_path_hides_another() {
        for fine in ["/apis/g/v1/foos", "/apis/g/v1//foos/", "/apis/g/v1/foos/a%20b", "/apis/g/v1/a...b"] {
            assert!(!has_hidden_slash(fine), "{fine}");
        }
        for hidden in [
            "/apis/g/v1/a%2Fb",
            "/apis/g/v1/%2f",
            "/apis/g/v1/../v2/x",
            "/apis/g/v1/%2e%2E/x",
            "/apis/g/v1/./x",
        ] {
            assert!(has_hidden_slash(hidden), "{hidden}");
        }
    }
}
