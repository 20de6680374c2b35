//! `proxy` of pods, services and nodes: any request, passed on as it is but for what is between client and
//! server only, and answered as the backend answers.
//!
//! # Guarantees
//! - Bodies are streamed either way; nothing is held but what rewriting a link needs.
//! - Credentials for this server never reach the backend.
//! - A backend gets the client's connection only after it has answered 101 (CVE-2018-1002105).
//!
//! Source: apimachinery's `util/proxy`.

use axum::body::Body;
use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, LOCATION, UPGRADE,
};
use http::{HeaderValue, Method, StatusCode};
use hyper::body::Incoming;
use skiff_api::Status;

use super::Proxies;
use super::connect::{Backend, SendError};
use super::headers::{CORS, add_forwarded, strip, without_credentials};
use super::rewrite::{self, Links};
use super::upgrade::{self, Switched};
use crate::call::Call;
use crate::place::Place;
use crate::respond::Response;

const METHODS: [Method; 7] =
    [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD, Method::OPTIONS];

impl Proxies {
    pub(crate) async fn proxy(&self, mut call: Call) -> Result<Response, Status> {
        if call.query.get("dryRun").is_some() {
            return Err(Status::bad_request("dryRun is not supported"));
        }
        if !METHODS.contains(&call.method) {
            let path = format!("{}/proxy", call.kind.plural);
            return Err(Status::method_not_allowed(&call.kind.group, &path, call.method.as_str()));
        }
        let protocol = upgrade::requested(&call.headers);
        if protocol.is_some() && call.kind.plural == "nodes" {
            // A stream to a kubelet may be one to a process in any of its pods.
            self.authorizer.check_may_create(&call.user, &call.info).await?;
        }
        let backend = self.destinations.of(&call).await?;
        let path = Path::split(call.uri.path(), call.kind.is_namespaced());
        let query = call.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        if protocol.is_none() && path.rest.is_empty() && matches!(call.method, Method::GET | Method::HEAD) {
            return redirect(&format!("{}/{query}", path.prefix));
        }
        let links = Links {
            prefix: path.prefix.to_owned(),
            backend: backend.address.to_string(),
            host: host_of(&call).unwrap_or_default().to_owned(),
        };
        let request = request(&call, &backend, &path, &query)?;
        match protocol {
            Some(protocol) => self.proxy_stream(&mut call, &backend, request, protocol).await,
            None => {
                let (head, ()) = request.into_parts();
                let request = http::Request::from_parts(head, call.take_body());
                let answer = backend.send(request).await.map_err(|error| unreachable(&backend, &error))?;
                passed_back(answer, links, &call.method)
            }
        }
    }

    async fn proxy_stream(
        &self,
        call: &mut Call,
        backend: &Backend,
        request: http::Request<()>,
        protocol: &'static str,
    ) -> Result<Response, Status> {
        let client = upgrade::client_of(call)?;
        let mut request = request.map(|()| Body::empty());
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        request.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
        let answer = backend.send(request).await.map_err(|error| unreachable(backend, &error))?;
        let place = call.extensions.get::<Place>().cloned();
        match upgrade::switch(answer, client, protocol, place, self.shutdown.clone()) {
            Switched::Joined(response) | Switched::Refused(response) => Ok(response),
            Switched::Neither(code) => {
                let why = format!("invalid upgrade response: status code {}", code.as_u16());
                Err(Status::internal(why))
            }
        }
    }
}

/// The path of a proxied request, as it was sent: up to the subresource, and what follows.
#[derive(Debug, PartialEq, Eq)]
struct Path<'p> {
    /// `/api/v1/namespaces/<ns>/pods/<id>/proxy`. Made of names that exist, and so of no character that would
    /// mean anything in a header or in HTML.
    prefix: &'p str,
    /// Empty, or from a slash on.
    rest: &'p str,
}

impl Path<'_> {
    fn split(path: &str, is_namespaced: bool) -> Path<'_> {
        let n_segments = if is_namespaced { 7 } else { 5 };
        let start = path.len() - path.trim_start_matches('/').len();
        let mut slashes = path[start..].match_indices('/').map(|(at, _)| start + at);
        let end = slashes.nth(n_segments - 1).unwrap_or(path.len());
        let (prefix, rest) = path.split_at(end);
        Path { prefix, rest }
    }
}

/// A relative link on a page of the proxied root only works with a slash at the end of the page's own URL.
fn redirect(to: &str) -> Result<Response, Status> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(LOCATION, HeaderValue::from_str(to).map_err(Status::internal)?);
    Ok(response)
}

fn host_of(call: &Call) -> Option<&str> {
    let header = call.headers.get(HOST).and_then(|host| host.to_str().ok());
    header.or_else(|| call.uri.authority().map(http::uri::Authority::as_str))
}

/// The request as the backend gets it, without its body.
fn request(
    call: &Call,
    backend: &Backend,
    path: &Path<'_>,
    query: &str,
) -> Result<http::Request<()>, Status> {
    let rest = if path.rest.is_empty() { "/" } else { path.rest };
    let uri = format!("{rest}{query}");
    let mut request = http::Request::builder()
        .method(call.method.clone())
        .uri(uri)
        .body(())
        .map_err(|e| Status::bad_request(format!("the path cannot be passed on: {e}")))?;
    let value = |text: &str| HeaderValue::from_str(text).map_err(Status::internal);
    let mut headers = without_credentials(&call.headers);
    strip(&mut headers);
    let host = host_of(call).map_or_else(|| backend.address.to_string(), str::to_owned);
    headers.insert(HOST, value(&host)?);
    headers.insert("x-forwarded-uri", value(&format!("{}{rest}", path.prefix))?);
    add_forwarded(&mut headers, &call.extensions);
    *request.headers_mut() = headers;
    Ok(request)
}

fn unreachable(backend: &Backend, error: &SendError) -> Status {
    Status::unavailable(format!("error trying to reach service: {}", backend.explain(error)))
}

/// The backend's answer, with its links leading through the proxy.
fn passed_back(answer: http::Response<Incoming>, links: Links, method: &Method) -> Result<Response, Status> {
    let (mut head, body) = answer.into_parts();
    strip(&mut head.headers);
    for name in &CORS {
        head.headers.remove(name);
    }
    if let Some(to) = head.headers.get(LOCATION).and_then(|to| to.to_str().ok()) {
        let to = HeaderValue::from_str(&links.rewritten(to)).map_err(Status::internal)?;
        head.headers.insert(LOCATION, to);
        return Ok(Response::from_parts(head, Body::new(body)));
    }
    let text = |name: HeaderName| head.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let is_html = text(CONTENT_TYPE).split(';').next().unwrap_or_default().trim() == "text/html";
    let encoding = match text(CONTENT_ENCODING) {
        "" => Some(rewrite::Encoding::Plain),
        "gzip" => Some(rewrite::Encoding::Gzip),
        // Not understood, and so not looked at.
        _ => None,
    };
    match encoding {
        Some(encoding) if is_html && *method != Method::HEAD => {
            head.headers.remove(CONTENT_LENGTH);
            Ok(Response::from_parts(head, rewrite::body(Body::new(body), links, encoding)))
        }
        _ => Ok(Response::from_parts(head, Body::new(body))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_behind_the_subresource_and_otherwise_left_as_it_is() {
        let split = |path: &'static str, is_namespaced| {
            let Path { prefix, rest } = Path::split(path, is_namespaced);
            (prefix, rest)
        };
        let prefix = "/api/v1/namespaces/a/pods/https:p:443/proxy";
        assert_eq!(split("/api/v1/namespaces/a/pods/https:p:443/proxy", true), (prefix, ""));
        assert_eq!(split("/api/v1/namespaces/a/pods/https:p:443/proxy/", true), (prefix, "/"));
        assert_eq!(
            split("/api/v1/namespaces/a/pods/https:p:443/proxy/x%2Fy//z/", true),
            (prefix, "/x%2Fy//z/")
        );
        assert_eq!(
            split("/api/v1/nodes/n:10250/proxy/logs/", false),
            ("/api/v1/nodes/n:10250/proxy", "/logs/")
        );
    }
}
