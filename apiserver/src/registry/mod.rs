//! The verbs, each written once for all kinds.

mod apply;
mod convert;
mod create;
mod delete;
mod heartbeat;
mod list;
mod managed;
pub(crate) mod metadata;
mod modify;
mod options;
mod patch;
mod update;
mod watch;

use serde_json::Value;
use skiff_api::encode::Ordered;
use skiff_api::meta::Meta;
use skiff_api::{Kind, Object, Status, default, depth, protobuf};

use crate::api::{Api, Call};
use crate::cache::Entry;
use crate::respond::{self, Response};
use crate::store::{KeyValue, StoreError};

use convert::{asks_webhook, needs_webhook};
pub(crate) use convert::{convert, is_same_version};
pub(crate) use modify::{MAX_ATTEMPTS, Next};
pub(crate) use options::{DeleteOptions, WriteOptions};
pub(crate) use patch::{Body, read_patch};
pub(crate) use update::Part;

impl Api {
    /// One request for a resource itself; subresources are elsewhere.
    pub(crate) async fn handle_resource(&self, call: Call) -> Result<Response, Status> {
        let unsupported =
            |verb: &str| Err(Status::method_not_allowed(&call.kind.group, &call.kind.plural, verb));
        match call.info.verb.as_str() {
            "get" => self.get(&call).await,
            "list" => self.list(call).await,
            "watch" => self.watch(call).await,
            "create" if call.info.name.is_empty() => self.create(call).await,
            "update" if !call.info.name.is_empty() => self.update(call).await,
            "patch" if !call.info.name.is_empty() => self.patch(call).await,
            "delete" => self.delete(call).await,
            "deletecollection" => self.delete_collection(call).await,
            "" => unsupported("the method"),
            verb => unsupported(verb),
        }
    }

    async fn get(&self, call: &Call) -> Result<Response, Status> {
        match call.query.non_empty("resourceVersion") {
            None => {
                self.caches.wait_for_newest().await?;
            }
            Some("0") => {}
            Some(version) => self.caches.wait_for(options::revision(version)?).await?,
        }
        let entry = self.caches.of(&call.kind)?.get(&call.key())?.ok_or_else(|| call.not_found())?;
        if is_stored_as(self, &call.kind)? && !entry.is_foreign {
            if call.encoding.is_plain() {
                return Ok(respond::encoded(call, 200, entry.json.clone()));
            }
            if call.encoding.is_protobuf() {
                let message = entry.protobuf(&call.kind);
                let object = protobuf::envelope(&call.kind.api_version(), &call.kind.kind, &message);
                return Ok(respond::encoded(call, 200, object));
            }
        }
        call.object(200, self.parsed(&call.kind, &entry).await?)
    }

    /// An entry as an object of `kind`, which may be another version than the stored one.
    pub(crate) async fn parsed(&self, kind: &Kind, entry: &Entry) -> Result<Object, Status> {
        let cache = self.caches.of(kind)?;
        self.converted(cache.kind(), kind, entry.parse()).await
    }

    async fn parsed_stored(&self, kind: &Kind, kv: &KeyValue) -> Result<Object, Status> {
        let cache = self.caches.of(kind)?;
        let mut object: Object = serde_json::from_slice(&kv.value)
            .map_err(|e| Status::internal(format!("stored value of {} is no JSON: {e}", kv.key)))?;
        cache.kind().refresh(&mut object);
        object.set_meta("resourceVersion", kv.mod_revision.to_string());
        self.converted(cache.kind(), kind, object).await
    }

    async fn in_stored_version(&self, kind: &Kind, object: Object) -> Result<Object, Status> {
        let cache = self.caches.of(kind)?;
        let stored = cache.kind();
        if is_same_version(kind, stored) {
            return Ok(object);
        }
        let mut object = self.converted(kind, stored, object).await?;
        default::apply(stored, &mut object);
        Ok(object)
    }

    /// An object as it will be read again: between versions, what is not said may come back as a default.
    async fn as_stored(&self, kind: &Kind, object: Object) -> Result<Object, Status> {
        let object = self.in_stored_version(kind, object).await?;
        let cache = self.caches.of(kind)?;
        self.converted(cache.kind(), kind, object).await
    }

    /// The bytes to store for an object of `kind`: in the storage version, without `resourceVersion`.
    pub(crate) async fn encode_stored(&self, kind: &Kind, object: &Object) -> Result<Vec<u8>, Status> {
        let mut object = self.in_stored_version(kind, object.clone()).await?;
        object.meta_mut().remove("resourceVersion");
        // What nests deeper could never be read again.
        depth::check(&object)?;
        serde_json::to_vec(&Ordered(&object)).map_err(Status::internal)
    }
}

/// Whether what the cache holds can be sent as it is.
fn is_stored_as(api: &Api, kind: &Kind) -> Result<bool, Status> {
    Ok(is_same_version(api.caches.of(kind)?.kind(), kind))
}

/// A failure of the store as the client is told it.
pub(crate) fn store_failure(error: &StoreError) -> Status {
    match error {
        StoreError::Compacted { .. } => {
            Status::expired("The resourceVersion for the provided list is too old.")
        }
        StoreError::Overloaded => {
            Status::too_many_requests("the store is overloaded, please try again later", 1)
        }
        StoreError::TooLarge { .. } => {
            Status::too_large(format!("Request entity too large: limit is {}", crate::store::MAX_VALUE_BYTES))
        }
        StoreError::Closed => Status::unavailable("the server is shutting down"),
        StoreError::Away { .. } | StoreError::TimedOut { .. } => {
            tracing::warn!(error = error as &dyn std::error::Error, "the datastore does not answer");
            match error {
                StoreError::Away { .. } => {
                    Status::unavailable("the datastore cannot be reached, please try again later")
                }
                _ => {
                    Status::timeout("the datastore did not answer in time; what was asked may have been done")
                }
            }
        }
        other => {
            tracing::error!(error = other as &dyn std::error::Error, "the store failed");
            Status::internal(other)
        }
    }
}

/// Seconds of time as the API writes them.
pub(crate) fn timestamp(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(crate) fn now() -> Value {
    timestamp(jiff::Timestamp::now()).into()
}
