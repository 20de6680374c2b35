//! What every request handler shares, and one request as handlers see it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, Method, Uri};
use parking_lot::Mutex;
use skiff_api::{Kind, Object, Status};
use tokio_util::sync::CancellationToken;

use crate::admission::AdmissionPlugin;
use crate::admission::dynamic::Dynamic;
use crate::admission::quota::Turns;
use crate::aggregation::Aggregator;
use crate::auth::authenticate::Authenticator;
use crate::auth::authorize::Authorization;
use crate::auth::token::TokenKeys;
use crate::auth::{MASTERS, UserInfo};
use crate::cache::{Caches, Entry};
use crate::heavy::Heavy;
use crate::lapsed::Grace;
use crate::limits::Limits;
use crate::live::{Live, Table};
use crate::metrics::Metrics;
use crate::openid::OpenId;
use crate::proxy::{Kubelet, PodProxy};
use crate::request::{Query, RequestInfo};
use crate::respond::{Encoding, Response};
use crate::services::ServiceAllocator;
use crate::store::Store;

/// The server's state: all of it shared, none of it per request.
pub(crate) struct Api {
    /// Which kinds there are.
    pub(crate) live: Live,
    /// Which others serve what.
    pub(crate) aggregator: Aggregator,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) caches: Arc<Caches>,
    pub(crate) authenticator: Authenticator,
    /// For nodes whose certificate has ended.
    pub(crate) grace: Grace,
    pub(crate) disabled_admission: Vec<AdmissionPlugin>,
    pub(crate) authorizer: Authorization,
    pub(crate) tokens: Arc<TokenKeys>,
    pub(crate) services: ServiceAllocator,
    pub(crate) dynamic: Dynamic,
    pub(crate) openid: OpenId,
    pub(crate) kubelet: Kubelet,
    pub(crate) pod_proxy: PodProxy,
    pub(crate) limits: Limits,
    pub(crate) event_ttl: Duration,
    /// For everybody, and for the cluster's own.
    pub(crate) heavy: [Heavy; 2],
    pub(crate) quota_turns: Turns,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: CancellationToken,
}

impl Api {
    pub(crate) fn kind(&self, group: &str, version: &str, plural: &str) -> Result<Arc<Kind>, Status> {
        let table = self.live.table();
        table.kinds.by_resource(group, version, plural).cloned().ok_or_else(Status::no_such_path)
    }

    /// The version of a kind that rows of tables are printed of.
    pub(crate) fn printed_kind(&self, kind: &Arc<Kind>) -> Arc<Kind> {
        if kind.custom().is_some() {
            return kind.clone();
        }
        self.caches.of(kind).map_or_else(|_| kind.clone(), |cache| cache.kind().clone())
    }

    /// A call of the server itself.
    pub(crate) fn own_call(&self, kind: Arc<Kind>, verb: &str, namespace: &str, name: &str) -> Call {
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
            printed: self.printed_kind(&kind),
            table: self.live.table(),
            kind,
            encoding: Encoding::plain(),
            warnings: Vec::new(),
            is_own: true,
        }
    }

    /// An object of the core group out of the cache.
    pub(crate) fn cached(&self, plural: &str, key: &str) -> Result<Option<Arc<Entry>>, Status> {
        Ok(self.caches.of(&*self.kind("", "v1", plural)?)?.get(key)?)
    }

    /// The same, but asks again with everything applied that was acknowledged before, if it is not there.
    pub(crate) async fn cached_or_newest(
        &self,
        plural: &str,
        key: &str,
    ) -> Result<Option<Arc<Entry>>, Status> {
        if let Some(entry) = self.cached(plural, key)? {
            return Ok(Some(entry));
        }
        self.caches.wait_for_newest().await?;
        self.cached(plural, key)
    }
}

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

    pub(crate) fn object(&self, code: u16, object: Object) -> Result<Response, Status> {
        crate::respond::object(self, code, object)
    }
}

pub(crate) fn key_of(kind: &Kind, namespace: &str, name: &str) -> String {
    if kind.is_namespaced() { format!("{namespace}/{name}") } else { name.to_owned() }
}

pub(crate) fn is_core(kind: &Kind, name: &str) -> bool {
    kind.group.is_empty() && kind.kind == name
}
