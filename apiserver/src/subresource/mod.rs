//! Subresources: what is asked of one object besides itself.

pub(crate) mod binding;
mod document;
mod eviction;
mod scale;
mod token;

use std::sync::Arc;

use skiff_api::{Object, Status};

use crate::auth::authenticate::Authenticator;
use crate::call::Call;
use crate::proxy::Proxies;
use crate::registry::Registry;
use crate::respond::Response;

/// What subresources work with.
pub(crate) struct Subresources {
    pub(crate) registry: Arc<Registry>,
    pub(crate) proxies: Proxies,
    pub(crate) authenticator: Arc<Authenticator>,
}

impl Subresources {
    pub(crate) async fn handle(&self, mut call: Call) -> Result<Response, Status> {
        let (resource, subresource) = (call.kind.plural.clone(), call.info.subresource.clone());
        let verb = call.info.verb.clone();
        if is_connection(&resource, &subresource) {
            self.registry.admission.dynamic.admit_connection(&mut call).await?;
        }
        match (resource.as_str(), subresource.as_str(), verb.as_str()) {
            ("pods", "log", "get") => self.proxies.pod_log(call).await,
            ("pods", "exec", "get" | "create") => {
                // A WebSocket's handshake is a GET, and what it starts is more than reading.
                self.registry.authorizer.check_may_create(&call.user, &call.info).await?;
                self.proxies.pod_exec(call).await
            }
            ("pods", "attach", "get" | "create") => {
                self.registry.authorizer.check_may_create(&call.user, &call.info).await?;
                self.proxies.pod_attach(call).await
            }
            ("pods", "portforward", "get" | "create") => {
                self.registry.authorizer.check_may_create(&call.user, &call.info).await?;
                self.proxies.pod_port_forward(call).await
            }
            ("pods" | "services" | "nodes", "proxy", _) => self.proxies.proxy(call).await,
            ("pods", "binding", "create") => self.bind_pod(call).await,
            ("pods", "eviction", "create") => self.evict_pod(call).await,
            ("serviceaccounts", "token", "create") => self.create_token(call).await,
            (_, "scale", "get" | "update" | "patch") => self.scale(call).await,
            ("namespaces", "finalize", "update") => self.registry.update(call).await,
            (_, "status", _)
            | ("certificatesigningrequests", "approval", _)
            | ("pods", "ephemeralcontainers" | "resize", _)
                if matches!(verb.as_str(), "get" | "update" | "patch") =>
            {
                match verb.as_str() {
                    "get" => self.get_whole(call).await,
                    "update" => self.registry.update(call).await,
                    _ => self.registry.patch(call).await,
                }
            }
            _ => {
                let path = format!("{resource}/{subresource}");
                Err(Status::method_not_allowed(&call.kind.group, &path, &verb))
            }
        }
    }

    /// GET of a part that is read with the whole.
    async fn get_whole(&self, call: Call) -> Result<Response, Status> {
        self.registry.objects.lister.caches.wait_for_newest().await?;
        let object = self.object_of(&call).await?;
        Ok(call.object(200, object))
    }

    /// The call's object as it stands in the cache.
    async fn object_of(&self, call: &Call) -> Result<Object, Status> {
        let entry = self
            .registry
            .objects
            .lister
            .caches
            .of(&call.kind)?
            .get(&call.key())?
            .ok_or_else(|| call.not_found())?;
        self.registry.objects.parsed(&call.kind, &entry).await
    }
}

/// What upstream calls CONNECT.
fn is_connection(resource: &str, subresource: &str) -> bool {
    matches!(
        (resource, subresource),
        ("pods", "exec" | "attach" | "portforward") | ("pods" | "services" | "nodes", "proxy")
    )
}
