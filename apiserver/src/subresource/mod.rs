//! Subresources: what is asked of one object besides itself.

mod binding;
mod eviction;
mod scale;
mod token;

use serde_json::Value;
use skiff_api::meta::Meta;
use skiff_api::{Object, Status, decode};

use crate::api::{Api, Call};
use crate::auth::authorize::Attributes;
use crate::limits::read_body;
use crate::negotiate::body_format;
use crate::respond::Response;

impl Api {
    pub(crate) async fn handle_subresource(&self, mut call: Call) -> Result<Response, Status> {
        let (resource, subresource) = (call.kind.plural.clone(), call.info.subresource.clone());
        let verb = call.info.verb.clone();
        if is_connection(&resource, &subresource) {
            self.admit_connection(&mut call).await?;
        }
        match (resource.as_str(), subresource.as_str(), verb.as_str()) {
            ("pods", "log", "get") => self.pod_log(call).await,
            ("pods", "exec", "get" | "create") => {
                // A WebSocket's handshake is a GET, and what it starts is more than reading.
                self.check_may_create(&call)?;
                self.pod_exec(call).await
            }
            ("pods" | "services" | "nodes", "proxy", _) => self.proxy(call).await,
            ("pods", "binding", "create") => self.bind_pod(call).await,
            ("pods", "eviction", "create") => self.evict_pod(call).await,
            ("serviceaccounts", "token", "create") => self.create_token(call).await,
            (_, "scale", "get" | "update" | "patch") => self.scale(call).await,
            ("namespaces", "finalize", "update") => self.update(call).await,
            ("certificatesigningrequests", "approval", "get") | (_, "status", "get") => {
                self.get_whole(call).await
            }
            (_, "status", "update") => self.update(call).await,
            (_, "status", "patch") => self.patch(call).await,
            ("certificatesigningrequests", "approval", "update") => self.update(call).await,
            ("certificatesigningrequests", "approval", "patch") => self.patch(call).await,
            ("pods", "attach" | "portforward" | "ephemeralcontainers" | "resize", _) => {
                Err(Status::not_implemented(format!(
                    "{subresource} of {resource} is not supported by this server yet"
                )))
            }
            _ => {
                let path = format!("{resource}/{subresource}");
                Err(Status::method_not_allowed(&call.kind.group, &path, &verb))
            }
        }
    }

    /// GET of a part that is read with the whole.
    async fn get_whole(&self, call: Call) -> Result<Response, Status> {
        self.caches.wait_for_newest().await?;
        let object = self.object_of(&call).await?;
        call.object(200, object)
    }

    /// Asks for the verb `create` on top of that of the request's method.
    pub(crate) fn check_may_create(&self, call: &Call) -> Result<(), Status> {
        let attributes = Attributes { verb: "create", ..Attributes::of(&call.user, &call.info) };
        let decision = self.authorizer.authorize(&attributes);
        if decision.is_allowed() { Ok(()) } else { Err(attributes.forbidden(&decision.reason)) }
    }

    /// The call's object as it stands in the cache.
    async fn object_of(&self, call: &Call) -> Result<Object, Status> {
        let entry = self.caches.of(&call.kind)?.get(&call.key())?.ok_or_else(|| call.not_found())?;
        self.parsed(&call.kind, &entry).await
    }
}

/// What upstream calls CONNECT.
fn is_connection(resource: &str, subresource: &str) -> bool {
    matches!(
        (resource, subresource),
        ("pods", "exec" | "attach" | "portforward") | ("pods" | "services" | "nodes", "proxy")
    )
}

/// Reads a body of another kind than the call's, such as a `Binding`.
async fn read_document(call: &mut Call, api_version: &str, kind: &str) -> Result<Value, Status> {
    let format = body_format(&call.headers)?;
    let bytes = read_body(call.take_body()).await?;
    let document = decode::document(&bytes, format, api_version, kind)?;
    let found = document["kind"].as_str().unwrap_or_default();
    if !found.is_empty() && found != kind {
        return Err(Status::bad_request(format!("expected a {kind}, got a {found}")));
    }
    let name = document.name();
    if !name.is_empty() && !call.info.name.is_empty() && name != call.info.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.info.name
        )));
    }
    Ok(document)
}
