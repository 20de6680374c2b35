//! Requests for resources: a call is made of each, and handed to the verbs or to a subresource.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use parking_lot::Mutex;
use skiff_api::kinds::Storage;
use skiff_api::{Kind, Status};

use super::Pipeline;
use super::entry::Head;
use crate::aggregation::priorities::METRICS_GROUP;
use crate::answer;
use crate::auth::UserInfo;
use crate::call::{Call, key_of};
use crate::discovery;
use crate::failure::method_not_allowed;
use crate::heavy::{self, HEAVY_BYTES};
use crate::live::Table;
use crate::negotiate::Encoding;
use crate::request::{Query, RequestInfo};
use crate::respond::Response;

/// Whether a small patch can be much work: each copy of JSON patch may double what is there.
fn may_grow(head: &Head, body: &[u8]) -> bool {
    let content_type = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    // A name may be written with escapes.
    content_type.starts_with(b"application/json-patch+json")
        && (memchr::memchr(b'\\', body).is_some() || memchr::memmem::find(body, b"\"copy\"").is_some())
}

impl Pipeline {
    /// Handles a mutation in a task of its own, which goes on if the client does not wait for it: what was given out, charged
    /// and written belongs together.
    pub(super) async fn to_its_end(
        self: &Arc<Self>,
        user: UserInfo,
        info: RequestInfo,
        query: Query,
        head: Head,
        body: Bytes,
        encoding: Encoding,
    ) -> Result<Response, Status> {
        let pipeline = self.clone();
        let is_heavy =
            body.len().max(self.stored_bytes(&head.table, &info)) >= HEAVY_BYTES || may_grow(&head, &body);
        let heavy = is_heavy.then(|| self.heavy.of(&user));
        let body = Body::from(body);
        let work = Box::pin(async move { pipeline.resource(user, info, query, head, body, encoding).await });
        if let Some(heavy) = heavy {
            return heavy.drive(work).await?;
        }
        tokio::spawn(work).await.unwrap_or_else(|error| Err(heavy::failure(&error)))
    }

    /// How large the object is that a request is about.
    fn stored_bytes(&self, table: &Table, info: &RequestInfo) -> usize {
        let kind = table.kinds.by_resource(&info.group, &info.version, &info.resource);
        let cache = kind.and_then(|kind| Some((kind, self.lister().caches.of(kind).ok()?)));
        let entry = cache.and_then(|(kind, cache)| {
            let key = key_of(kind, &info.namespace, &info.name);
            cache.get(&key).ok().flatten()
        });
        entry.map_or(0, |entry| entry.size())
    }

    pub(super) async fn resource(
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
        let printed = self.lister().printed_kind(&kind);
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
            return self.subresources.handle(call).await;
        }
        let offered = discovery::verbs_of(&call.kind).contains(&call.info.verb.as_str());
        if !offered {
            return Err(method_not_allowed());
        }
        match (call.kind.storage, call.info.verb.as_str()) {
            (Storage::Virtual, "create") => self.reviews.create(call).await,
            (Storage::Virtual, "get" | "list") if call.kind.group == METRICS_GROUP => {
                self.usage.answer(&call).await
            }
            (Storage::Virtual, "get" | "list") => self.computed(&call).await,
            (Storage::Virtual, _) => Err(method_not_allowed()),
            _ => self.registry.handle(call).await,
        }
    }

    /// Objects that are nowhere stored: component statuses.
    async fn computed(&self, call: &Call) -> Result<Response, Status> {
        let items = self.health.component_statuses().await;
        if call.info.verb == "get" {
            let found = items.into_iter().find(|item| item["metadata"]["name"] == call.info.name.as_str());
            return Ok(call.object(200, found.ok_or_else(|| call.not_found())?));
        }
        Ok(answer::list(call, items))
    }
}

/// Paths that name an object where there can be none: the wrong scope.
fn check_scope(kind: &Kind, info: &RequestInfo) -> Result<(), Status> {
    if !kind.is_namespaced() && !info.namespace.is_empty() && !info.is_of_namespaces() {
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
