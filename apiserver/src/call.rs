//! One request for a resource, as the verbs see it.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, Method, Uri};
use parking_lot::Mutex;
use skiff_api::{Kind, Status};

use crate::auth::{MASTERS, UserInfo};
use crate::cache::Detail;
use crate::lister::Lister;
use crate::live::Table;
use crate::negotiate::Encoding;
use crate::request::{Query, RequestInfo};

/// One authenticated and authorized request for a resource.
pub(crate) struct Call {
    pub(crate) user: UserInfo,
    pub(crate) info: RequestInfo,
    /// As they were sent; `info` and `query` are what they mean.
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) extensions: http::Extensions,
    /// Behind a lock only because a body cannot be shared and a call is.
    pub(crate) body: Mutex<Body>,
    pub(crate) kind: Arc<Kind>,
    /// The version of `kind` that rows of tables are printed of: of built-in kinds the one that is stored.
    pub(crate) printed: Arc<Kind>,
    /// The kinds that there are for this request.
    pub(crate) table: Arc<Table>,
    pub(crate) encoding: Encoding,
    /// Sentences for `Warning` headers.
    pub(crate) warnings: Vec<String>,
    /// The server itself calls. Webhooks are not asked: one that is away must not keep the server from starting or from cleaning up.
    pub(crate) is_own: bool,
}

impl Call {
    /// Whether who calls has a use for who manages what.
    pub(crate) fn detail(&self) -> Detail {
        self.extensions.get::<Detail>().copied().unwrap_or_default()
    }

    /// A call of the server itself.
    pub(crate) fn of_server(
        lister: &Lister,
        kind: Arc<Kind>,
        verb: &str,
        namespace: &str,
        name: &str,
    ) -> Call {
        let info = RequestInfo {
            is_resource: true,
            verb: verb.into(),
            group: kind.group.clone(),
            version: kind.version.clone(),
            namespace: namespace.into(),
            resource: kind.plural.clone(),
            name: name.into(),
            ..RequestInfo::default()
        };
        Call {
            user: UserInfo::new("system:apiserver", &[MASTERS]),
            info,
            method: Method::POST,
            uri: Uri::default(),
            query: Query::default(),
            headers: HeaderMap::new(),
            extensions: http::Extensions::new(),
            body: Mutex::new(Body::empty()),
            printed: lister.printed_kind(&kind),
            table: lister.table(),
            kind,
            encoding: Encoding::plain(),
            warnings: Vec::new(),
            is_own: true,
        }
    }

    /// `<ns>/<name>` or `<name>`: the key within the resource's cache.
    pub(crate) fn key(&self) -> String {
        key_of(&self.kind, &self.info.namespace, &self.info.name)
    }

    /// The body; empty after the first time.
    pub(crate) fn take_body(&self) -> Body {
        std::mem::take(&mut *self.body.lock())
    }

    pub(crate) fn not_found(&self) -> Status {
        Status::not_found(&self.kind.group, &self.kind.plural, &self.info.name)
    }
}

pub(crate) fn key_of(kind: &Kind, namespace: &str, name: &str) -> String {
    if kind.is_namespaced() { format!("{namespace}/{name}") } else { name.to_owned() }
}

pub(crate) fn is_core(kind: &Kind, name: &str) -> bool {
    kind.group.is_empty() && kind.kind == name
}

/// Which part of an object a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Main,
    Status,
    /// `spec.finalizers` of a namespace.
    Finalize,
    /// The conditions that approve or deny a signing request.
    Approval,
    /// Of a pod, the containers that somebody looks into it with.
    EphemeralContainers,
    /// Of a pod, what its containers are given.
    Resize,
}

impl Part {
    pub(crate) fn of(subresource: &str) -> Part {
        match subresource {
            "" => Part::Main,
            "status" => Part::Status,
            "finalize" => Part::Finalize,
            "ephemeralcontainers" => Part::EphemeralContainers,
            "resize" => Part::Resize,
            _ => Part::Approval,
        }
    }
}
