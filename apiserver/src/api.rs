//! What every request handler shares, and one request as handlers see it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, Method, Uri};
use parking_lot::Mutex;
use skiff_api::{Kind, Kinds, Object, Status};
use tokio_util::sync::CancellationToken;

use crate::admission::quota::Turns;
use crate::auth::UserInfo;
use crate::auth::authenticate::Authenticator;
use crate::auth::authorize::Authorization;
use crate::auth::token::TokenKeys;
use crate::cache::{Caches, Entry};
use crate::discovery::Discovery;
use crate::heavy::Heavy;
use crate::lapsed::Grace;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::openid::OpenId;
use crate::proxy::{Kubelet, PodProxy};
use crate::request::{Query, RequestInfo};
use crate::respond::{Encoding, Response};
use crate::services::ServiceAllocator;
use crate::store::Store;

/// The server's state: all of it shared, none of it per request.
pub(crate) struct Api {
    pub(crate) kinds: Arc<Kinds>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) caches: Arc<Caches>,
    pub(crate) authenticator: Authenticator,
    /// For nodes whose certificate has ended.
    pub(crate) grace: Grace,
    pub(crate) authorizer: Authorization,
    pub(crate) tokens: Arc<TokenKeys>,
    pub(crate) services: ServiceAllocator,
    pub(crate) discovery: Discovery,
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
    pub(crate) fn kind(&self, group: &str, version: &str, plural: &str) -> Result<&Arc<Kind>, Status> {
        self.kinds.by_resource(group, version, plural).ok_or_else(Status::no_such_path)
    }

    /// The version of a kind that is stored; of one that is not stored, the kind itself.
    pub(crate) fn stored_kind(&self, kind: &Arc<Kind>) -> Arc<Kind> {
        self.caches.of(kind).map_or_else(|_| kind.clone(), |cache| cache.kind().clone())
    }

    /// An object of the core group out of the cache.
    pub(crate) fn cached(&self, plural: &str, key: &str) -> Result<Option<Arc<Entry>>, Status> {
        Ok(self.caches.of(self.kind("", "v1", plural)?)?.get(key)?)
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
    /// The version of `kind` that is stored, and that rows of tables are printed of.
    pub(crate) stored: Arc<Kind>,
    pub(crate) encoding: Encoding,
    /// Sentences for `Warning` headers.
    pub(crate) warnings: Vec<String>,
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
