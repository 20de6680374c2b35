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

mod enter;
mod entry;
mod identify;
mod node_pods;
mod path;
mod resource;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use futures::FutureExt;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Request};
use skiff_api::kinds::Storage;
use skiff_api::{Kind, Status};
use skiff_flow::Classified;

use crate::aggregation::forward::{Asked, Forwarder};
use crate::auth::authenticate::Authenticator;
use crate::auth::authorize::Authorization;
use crate::discovery;
use crate::health::Health;
use crate::heavy::HeavyWork;
use crate::lapsed::Grace;
use crate::limits::{Limits, REQUEST_TIMEOUT};
use crate::lister::Lister;
use crate::live::Table;
use crate::metrics::{Counted, Metrics, Subject};
use crate::negotiate::{Encoding, Offer};
use crate::openid::OpenId;
use crate::registry::Registry;
use crate::request::{Query, RequestInfo, duration};
use crate::respond::{self, Response};
use crate::review::Reviews;
use crate::subresource::Subresources;
use crate::threads::Class;
use crate::usage::ResourceMetrics;
use entry::{Entered, Entry, Head, Placed};

/// What a request passes through, and what answers it.
pub(crate) struct Pipeline {
    pub(crate) authenticator: Arc<Authenticator>,
    /// For nodes whose certificate has ended.
    pub(crate) grace: Grace,
    pub(crate) limits: Arc<Limits>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) subresources: Subresources,
    pub(crate) reviews: Reviews,
    /// What nodes and pods use.
    pub(crate) usage: Arc<ResourceMetrics>,
    /// To other API servers.
    pub(crate) forwarder: Forwarder,
    pub(crate) health: Health,
    pub(crate) openid: OpenId,
    pub(crate) heavy: Arc<HeavyWork>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Pipeline {
    pub(crate) fn lister(&self) -> &Lister {
        &self.registry.objects.lister
    }

    fn authorizer(&self) -> &Authorization {
        &self.registry.authorizer
    }

    /// Answers one request. Never fails: every error is a `Status`.
    pub(crate) async fn serve(self: &Arc<Self>, request: Request<Body>) -> Response {
        let started = Instant::now();
        let (parts, body) = request.into_parts();
        let is_head = parts.method == http::Method::HEAD;
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let info = RequestInfo::parse(parts.method.as_str(), parts.uri.path(), &query);
        let table = self.lister().table();
        let subject = subject(&table, &info, &parts);
        let (long_running, dry_run) =
            (info.is_long_running(), query.all("dryRun").any(|value| value == "All"));
        let counted = Arc::new(self.metrics.begin(&subject, long_running));
        let limit = match query.non_empty("timeout").map(duration).transpose() {
            _ if long_running => REQUEST_TIMEOUT,
            Ok(asked) => {
                asked.filter(|asked| !asked.is_zero()).map_or(REQUEST_TIMEOUT, |at| at.min(REQUEST_TIMEOUT))
            }
            Err(why) => {
                let why = format!("invalid timeout specified in the request URL - {why}");
                let response = respond::failure(&Encoding::plain(), &Status::bad_request(why));
                self.metrics.observe(subject, dry_run, response.status().as_u16(), Some(started.elapsed()));
                return response;
            }
        };
        let handled = AssertUnwindSafe(Box::pin(self.pass(table, parts, body, query, info, counted.clone())));
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
        let took = (!long_running).then(|| started.elapsed());
        self.metrics.observe(subject, dry_run, response.status().as_u16(), took);
        drop(counted);
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
        counted: Arc<Counted>,
    ) -> Response {
        let http::request::Parts { method, uri, headers, extensions, .. } = parts;
        let streams =
            matches!(info.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy");
        let documents = Encoding::of_documents(&headers, &query);
        // Who calls in process is one of the cluster's own.
        let class = extensions.get::<Class>().copied().unwrap_or(Class::Own);
        let turn = if info.is_watch() { self.limits.turn(class).await } else { None };
        let user = match self.identify(&headers, &extensions, &info, turn).await {
            Ok(checked) => checked,
            Err(status) => return respond::failure(&documents, &status),
        };
        let path = info.path.as_str();
        if let Some(remote) = table.aggregated.serving(path).or_else(|| table.aggregated.describing(path)) {
            let remote = remote.clone();
            let classified = self.limits.classify(&user, &info);
            let levels = classified.clone();
            let asked = Asked { user, classified, info, method, uri, headers, extensions, body };
            return with_levels(self.forwarder.forward(&remote, asked).await, &levels);
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
        let admitted = self.enter(&classified, &table, &info, &query, body, counted).await;
        let (Entry { place, held }, body) = match admitted {
            Ok(admitted) => admitted,
            Err(status) => return with_levels(respond::failure(&documents, &status), &classified),
        };
        let result = if let Some(info) = info.of_node_pods() {
            let head = Head { method, uri, headers, extensions, table, held };
            self.node_pods(user, info, query, head, encoding).await
        } else if info.is_resource {
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
}

/// What is answered and forgotten is not printed.
fn offer(table: &Table, info: &RequestInfo) -> Offer {
    let is_read = |kind: &Kind| discovery::verbs_of(kind).contains(&"get");
    match table.kinds.by_resource(&info.group, &info.version, &info.resource) {
        Some(kind) if kind.custom().is_some() => Offer::Custom,
        Some(kind) if kind.storage == Storage::Virtual && !is_read(kind) => Offer::NoTables,
        _ => Offer::Shapes,
    }
}

/// What a request's metrics call it; what the server does not know is not named.
fn subject(table: &Table, info: &RequestInfo, head: &http::request::Parts) -> Subject {
    let kind = table.kinds.by_resource(&info.group, &info.version, &info.resource);
    let known = kind.filter(|k| info.subresource.is_empty() || k.has_subresource(&info.subresource));
    let of = |text: &str| if known.is_some() { text.to_owned() } else { String::new() };
    let is_applied = || {
        head.headers
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/apply-patch"))
    };
    let verb = match info.verb.as_str() {
        _ if matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy") => "CONNECT",
        "get" | "head" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" if is_applied() => "APPLY",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        _ => "other",
    };
    let scope = match () {
        () if known.is_none() => "",
        () if !info.name.is_empty() || info.verb == "create" => "resource",
        () if !info.namespace.is_empty() => "namespace",
        () => "cluster",
    };
    Subject {
        verb,
        group: of(&info.group),
        version: of(&info.version),
        resource: of(&info.resource),
        subresource: of(&info.subresource),
        scope,
        component: "apiserver",
    }
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
