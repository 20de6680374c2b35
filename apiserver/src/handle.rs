//! The pipeline of one request: who asks, may they, is there room, and then what it is about.
//!
//! ```text
//! parse ─ authenticate ─ impersonate ─ authorize ─ classify ─┬─ body ─ seat ─┬─ resource ─ registry or subresource
//!                                                            │               └─ discovery, health, metrics, openapi, version
//!                                                            └─ other API server
//! ```
//!
//! # Guarantees
//! - What is authorized is what is served: all of it is read from one [`RequestInfo`].
//! - A mutation that was begun runs to its end, whatever becomes of the connection.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use bytes::Bytes;
use futures::FutureExt;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Request};
use http_body::Frame;
use parking_lot::Mutex;
use skiff_api::kinds::Storage;
use skiff_api::{Kind, Status};
use skiff_flow::{Classified, Seat};
use tokio::sync::OwnedSemaphorePermit;

use crate::aggregation::Asked;
use crate::api::{Api, Call, key_of};
use crate::auth::UserInfo;
use crate::auth::authenticate::PeerAddress;
use crate::auth::authorize::Attributes;
use crate::discovery;
use crate::heavy::{self, HEAVY_BYTES, Heavy};
use crate::limits;
use crate::limits::REQUEST_TIMEOUT;
use crate::limits::connections::Connection;
use crate::live::Table;
use crate::metrics::Measured;
use crate::negotiate::Offer;
use crate::registry::store_failure;
use crate::request::{Query, RequestInfo, duration};
use crate::respond::{self, Encoding, Response};
use crate::threads::Class;

/// The place of a watch or stream among the others, held for as long as anything of it goes on.
#[derive(Clone)]
pub(crate) struct Place(#[expect(dead_code, reason = "held, not read")] Option<Arc<OwnedSemaphorePermit>>);

/// What a request holds while it is answered; a watch only until it has begun.
struct Admission {
    place: Place,
    /// Held for whoever handles the request.
    held: Held,
}

/// Seats, and the room of a body.
struct Held {
    #[expect(dead_code, reason = "held, not read")]
    seat: Option<Seat>,
    #[expect(dead_code, reason = "held, not read")]
    room: Vec<OwnedSemaphorePermit>,
}

/// The body of a request that is admitted.
enum Entered {
    /// Of a mutation.
    Whole(Bytes),
    /// Of everything else; most have none.
    Stream(Body),
}

/// Whether a small patch can be much work: each copy of JSON patch may double what is there.
fn may_grow(head: &Head, body: &[u8]) -> bool {
    let content_type = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    // A name may be written with escapes.
    content_type.starts_with(b"application/json-patch+json")
        && (memchr::memchr(b'\\', body).is_some() || memchr::memmem::find(body, b"\"copy\"").is_some())
}

/// What is left of a request's head once it is understood.
struct Head {
    method: http::Method,
    uri: http::Uri,
    headers: http::HeaderMap,
    extensions: http::Extensions,
    table: Arc<Table>,
    held: Held,
}

impl Api {
    /// Answers one request. Never fails: every error is a `Status`.
    pub(crate) async fn serve(self: &Arc<Self>, request: Request<Body>) -> Response {
        let started = Instant::now();
        let _in_flight = self.metrics.begin();
        let (parts, body) = request.into_parts();
        let is_head = parts.method == http::Method::HEAD;
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let info = RequestInfo::parse(parts.method.as_str(), parts.uri.path(), &query);
        let table = self.live.table();
        let measured = measured(&table, &info);
        let long_running = measured.long_running;
        let limit = match query.non_empty("timeout").map(duration).transpose() {
            _ if long_running => REQUEST_TIMEOUT,
            Ok(asked) => {
                asked.filter(|asked| !asked.is_zero()).map_or(REQUEST_TIMEOUT, |at| at.min(REQUEST_TIMEOUT))
            }
            Err(why) => {
                let why = format!("invalid timeout specified in the request URL - {why}");
                let response = respond::failure(&Encoding::plain(), &Status::bad_request(why));
                self.metrics.observe(measured, response.status().as_u16(), started.elapsed());
                return response;
            }
        };
        let handled = AssertUnwindSafe(Box::pin(self.pass(table, parts, body, query, info)));
        let handled = async {
            match handled.catch_unwind().await {
                Ok(response) => response,
                // The panic's own message is in the log already.
                Err(_) => {
                    respond::failure(&Encoding::plain(), &Status::internal("the request handler panicked"))
                }
            }
        };
        let response = if long_running {
            handled.await
        } else {
            tokio::time::timeout(limit, handled).await.unwrap_or_else(|_| {
                let why = "Timeout: request did not complete within the allotted timeout";
                respond::failure(&Encoding::plain(), &Status::timeout(why))
            })
        };
        self.metrics.observe(measured, response.status().as_u16(), started.elapsed());
        // HTTP/1 leaves it out by itself; HTTP/2 would send it.
        if is_head { response.map(|_| Body::empty()) } else { response }
    }

    async fn pass(
        self: &Arc<Self>,
        table: Arc<Table>,
        parts: http::request::Parts,
        body: Body,
        query: Query,
        info: RequestInfo,
    ) -> Response {
        let http::request::Parts { method, uri, headers, extensions, .. } = parts;
        let streams =
            matches!(info.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy");
        let documents = Encoding::of_documents(&headers, &query);
        // Who calls in process is one of the cluster's own.
        let class = extensions.get::<Class>().copied().unwrap_or(Class::Own);
        let turn = if info.verb == "watch" { self.limits.turn(class).await } else { None };
        let user = match self.identify(&headers, &extensions, &info) {
            Ok(checked) => checked,
            Err(status) => return respond::failure(&documents, &status),
        };
        drop(turn);
        let path = info.path.as_str();
        if let Some(remote) = table.aggregated.serving(path).or_else(|| table.aggregated.describing(path)) {
            let remote = remote.clone();
            let classified = self.limits.classify(&user, &info);
            let levels = classified.clone();
            let asked = Asked { user, classified, info, method, uri, headers, extensions, body };
            return with_levels(self.forward(&remote, asked).await, &levels);
        }
        let encoding = match Encoding::negotiate(&headers, &query, offer(&table, &info)) {
            _ if !info.is_resource => documents,
            Ok(encoding) if info.verb == "watch" => encoding.of_stream(),
            Ok(encoding) => encoding,
            Err(_) if streams => documents,
            Err(status) => return respond::failure(&documents, &status),
        };
        let long_running = info.is_long_running();
        let classified = self.limits.classify(&user, &info);
        let admitted = self.enter(&classified, &table, &info, &query, body).await;
        let (Admission { place, held }, body) = match admitted {
            Ok(admitted) => admitted,
            Err(status) => return with_levels(respond::failure(&documents, &status), &classified),
        };
        let result = if info.is_resource {
            let mut extensions = extensions;
            extensions.insert(place.clone());
            let head = Head { method, uri, headers, extensions, table, held };
            match body {
                Entered::Whole(body) => self.to_its_end(user, info, query, head, body, encoding).await,
                Entered::Stream(body) => self.resource(user, info, query, head, body, encoding).await,
            }
        } else {
            let answered = self.path(&table, &info, &query, &headers, &encoding).await;
            drop(held);
            answered
        };
        let response = match result {
            // A watch keeps its place until its last byte.
            Ok(response) if long_running => response.map(|body| Body::new(Placed { body, _place: place })),
            Ok(response) => response,
            Err(status) => respond::failure(&documents, &status),
        };
        with_levels(response, &classified)
    }

    /// Who asks, and whether they may.
    fn identify(
        &self,
        headers: &http::HeaderMap,
        extensions: &http::Extensions,
        info: &RequestInfo,
    ) -> Result<UserInfo, Status> {
        let user = match self.authenticator.authenticate(headers, extensions) {
            Ok(user) => user,
            Err(refused) => self.lapsed_node(extensions, info).ok_or(refused)?,
        };
        if let Some(connection) = extensions.get::<Arc<Connection>>() {
            connection.identify(&user)?;
        }
        if let (Some(node), Some(PeerAddress(peer))) = (user.node_name(), extensions.get()) {
            self.kubelet.heard_from(node, peer.ip());
        }
        // As upstream: who acts as somebody else takes that one's seats.
        let user = self.impersonated(user, headers)?;
        let attributes = Attributes::of(&user, info);
        let decision = self.authorizer.authorize(&attributes);
        if !decision.is_allowed() {
            let refusal = attributes.forbidden(&decision.reason);
            // Most clients try again without a word; the cluster's own are not meant to be refused.
            if user.is_component() {
                tracing::debug!(why = refusal.message, "a component was refused");
            }
            return Err(refusal);
        }
        Ok(user)
    }

    /// Waits for room. The body of a mutation is there before it takes a seat: one that is slow holds up nobody.
    async fn enter(
        &self,
        classified: &Classified,
        table: &Table,
        info: &RequestInfo,
        query: &Query,
        body: Body,
    ) -> Result<(Admission, Entered), Status> {
        let is_long = info.is_long_running();
        let is_mutation = info.is_resource && !is_long && !matches!(info.verb.as_str(), "get" | "list");
        let (body, room) = if is_mutation {
            let received = self.limits.receive(classified, body).await?;
            (Entered::Whole(received.bytes), received.room)
        } else {
            (Entered::Stream(body), Vec::new())
        };
        let place = if is_long { Some(Arc::new(self.limits.long_running()?)) } else { None };
        // As upstream: streams that are no watches take no seats.
        let seat = if is_long && info.verb != "watch" {
            None
        } else {
            Some(self.limits.seat(classified, self.work_of(table, info, query, classified)).await?)
        };
        Ok((Admission { place: Place(place), held: Held { seat, room } }, body))
    }

    /// Handles a mutation in a task of its own, which goes on if the client does not wait for it: what was given out, charged
    /// and written belongs together.
    async fn to_its_end(
        self: &Arc<Self>,
        user: UserInfo,
        info: RequestInfo,
        query: Query,
        head: Head,
        body: Bytes,
        encoding: Encoding,
    ) -> Result<Response, Status> {
        let api = self.clone();
        let is_heavy =
            body.len().max(self.stored_bytes(&head.table, &info)) >= HEAVY_BYTES || may_grow(&head, &body);
        let heavy = is_heavy.then(|| self.heavy_of(&user));
        let body = Body::from(body);
        let work = Box::pin(async move { api.resource(user, info, query, head, body, encoding).await });
        if let Some(heavy) = heavy {
            return heavy.drive(work).await?;
        }
        tokio::spawn(work).await.unwrap_or_else(|error| Err(heavy::failure(&error)))
    }

    /// How large the object is that a request is about.
    fn stored_bytes(&self, table: &Table, info: &RequestInfo) -> usize {
        let kind = table.kinds.by_resource(&info.group, &info.version, &info.resource);
        let cache = kind.and_then(|kind| Some((kind, self.caches.of(kind).ok()?)));
        let entry = cache.and_then(|(kind, cache)| {
            let key = key_of(kind, &info.namespace, &info.name);
            cache.get(&key).ok().flatten()
        });
        entry.map_or(0, |entry| entry.json.len())
    }

    /// The threads for heavy work of a user's kind: the cluster's own do not wait for those of others.
    pub(crate) fn heavy_of(&self, user: &UserInfo) -> &Heavy {
        &self.heavy[usize::from(Class::of(Some(user)) == Class::Own)]
    }

    async fn resource(
        &self,
        user: UserInfo,
        info: RequestInfo,
        query: Query,
        head: Head,
        body: Body,
        encoding: Encoding,
    ) -> Result<Response, Status> {
        let Head { method, uri, headers, extensions, table, held: _held } = head;
        let kind = table.kinds.by_resource(&info.group, &info.version, &info.resource);
        let kind = kind.ok_or_else(Status::no_such_path)?.clone();
        check_scope(&kind, &info)?;
        let printed = self.printed_kind(&kind);
        let deprecation = kind.custom().and_then(|custom| custom.deprecation.clone());
        let (body, warnings) = (Mutex::new(body), deprecation.into_iter().collect());
        let call = Call {
            user,
            info,
            method,
            uri,
            query,
            headers,
            extensions,
            body,
            kind,
            printed,
            table,
            encoding,
            warnings,
            is_own: false,
        };
        if !call.info.subresource.is_empty() {
            // A subresource below `/watch/` would be authorized as a watch and served as something else.
            if call.info.verb == "watch" || !call.kind.has_subresource(&call.info.subresource) {
                return Err(Status::no_such_path());
            }
            return self.handle_subresource(call).await;
        }
        if call.kind.kind == "ComponentStatus" && matches!(call.info.verb.as_str(), "get" | "list") {
            return self.answer_component_statuses(&call).await;
        }
        let offered = discovery::verbs_of(&call.kind).contains(&call.info.verb.as_str());
        if !offered || (call.kind.storage == Storage::Virtual && call.info.verb != "create") {
            return Err(method_not_allowed());
        }
        self.handle_resource(call).await
    }

    async fn answer_component_statuses(&self, call: &Call) -> Result<Response, Status> {
        let items = self.component_statuses().await;
        if call.info.verb == "get" {
            let found = items.into_iter().find(|item| item["metadata"]["name"] == call.info.name.as_str());
            return call.object(200, found.ok_or_else(|| call.not_found())?);
        }
        Ok(respond::list(call, items))
    }

    /// What is no resource.
    async fn path(
        &self,
        table: &Arc<Table>,
        info: &RequestInfo,
        query: &Query,
        headers: &http::HeaderMap,
        encoding: &Encoding,
    ) -> Result<Response, Status> {
        if !matches!(info.verb.as_str(), "get" | "head") {
            return Err(method_not_allowed());
        }
        let path = info.path.as_str();
        if let Some(response) = self.health(path, query).await {
            return Ok(response);
        }
        if let Some(response) = self.openid.answer(path) {
            return Ok(response);
        }
        if path.starts_with("/openapi/") {
            // A document that nobody has asked for yet is made of all kinds.
            let (table, path, query) = (table.clone(), path.to_owned(), query.clone());
            let (headers, encoding) = (headers.clone(), *encoding);
            let answer = move || {
                let (openapi, aggregated) = (&table.discovery.openapi, &table.aggregated);
                openapi.answer(aggregated, &table.merged, &path, &query, &headers, &encoding)
            };
            return self.heavy[0].run(answer).await?.unwrap_or_else(|| Err(Status::no_such_path()));
        }
        if let Some(response) = table.discovery.answer(&table.aggregated, path, headers, encoding) {
            return Ok(response);
        }
        match path {
            "/" => {
                Ok(respond::document_response(encoding, &[], 200, &table.discovery.paths(&table.aggregated)))
            }
            "/version" | "/version/" => {
                Ok(respond::document_response(encoding, &[], 200, &discovery::version()))
            }
            path if path.starts_with("/debug/api_priority_and_fairness/") => {
                let report = self.limits.report();
                limits::dump(path, &report)
                    .map(|text| respond::text(200, text))
                    .ok_or_else(Status::no_such_path)
            }
            "/metrics" => {
                let bytes = self.store.size_bytes().await.map_err(|e| store_failure(&e))?;
                let revision = self.store.revision().await.map_err(|e| store_failure(&e))?;
                let mut response = respond::text(200, self.metrics.render(bytes, revision));
                let text = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(text));
                Ok(response)
            }
            _ => Err(Status::no_such_path()),
        }
    }
}

/// What is answered and forgotten is not printed. Component statuses are looked up like what is stored.
fn offer(table: &Table, info: &RequestInfo) -> Offer {
    match table.kinds.by_resource(&info.group, &info.version, &info.resource) {
        Some(kind) if kind.custom().is_some() => Offer::Custom,
        Some(kind) if kind.storage == Storage::Virtual && kind.kind != "ComponentStatus" => Offer::NoTables,
        _ => Offer::Shapes,
    }
}

/// The labels of a request's metrics; what the server does not know is not named.
fn measured(table: &Table, info: &RequestInfo) -> Measured {
    const VERBS: &[&str] =
        &["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
    let verb = VERBS.iter().find(|verb| **verb == info.verb).copied().unwrap_or("other");
    let kind = table.kinds.by_resource(&info.group, &info.version, &info.resource);
    let known = kind.filter(|k| info.subresource.is_empty() || k.has_subresource(&info.subresource));
    let of = |text: &str| if known.is_some() { text.to_owned() } else { String::new() };
    Measured {
        verb,
        group: of(&info.group),
        version: of(&info.version),
        resource: of(&info.resource),
        subresource: of(&info.subresource),
        long_running: info.is_long_running(),
    }
}

fn method_not_allowed() -> Status {
    Status::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
}

/// Paths that name an object where there can be none: the wrong scope.
fn check_scope(kind: &Kind, info: &RequestInfo) -> Result<(), Status> {
    let is_namespace = kind.group.is_empty() && kind.kind == "Namespace";
    if !kind.is_namespaced() && !info.namespace.is_empty() && !is_namespace {
        return Err(Status::no_such_path());
    }
    if kind.is_namespaced() && info.namespace.is_empty() {
        return match info.verb.as_str() {
            "list" | "watch" => Ok(()),
            "create" | "deletecollection" => Err(method_not_allowed()),
            _ => Err(Status::no_such_path()),
        };
    }
    Ok(())
}

/// Tells in which level and by which schema a request was served or refused.
fn with_levels(mut response: Response, classified: &Classified) -> Response {
    let uids = [
        ("x-kubernetes-pf-flowschema-uid", classified.schema_uid()),
        ("x-kubernetes-pf-prioritylevel-uid", classified.level_uid()),
    ];
    for (name, uid) in uids {
        if let Ok(uid) = HeaderValue::from_str(uid) {
            response.headers_mut().insert(HeaderName::from_static(name), uid);
        }
    }
    response
}

/// A body that keeps its request's place.
struct Placed {
    body: Body,
    _place: Place,
}

impl http_body::Body for Placed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
