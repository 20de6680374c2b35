//! Stored objects: read from the cache in the version that is asked for, written by compare and swap.

mod heartbeat;
mod modify;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use skiff_api::encode::Ordered;
use skiff_api::meta::Meta;
use skiff_api::{Kind, Object, Status, default, depth};

use crate::cache::Entry;
use crate::convert::{asks_webhook, convert, is_same_version};
use crate::lister::Lister;
use crate::metrics::Metrics;
use crate::store::{KeyValue, Store};

pub(crate) use modify::{Current, MAX_ATTEMPTS, Next, Outcome, Swapped};

/// The one way to what the store holds of objects. Nothing here admits, checks or completes.
pub(crate) struct Objects {
    pub(crate) lister: Lister,
    pub(crate) store: Arc<dyn Store>,
    /// How long events are kept.
    pub(crate) event_ttl: Duration,
    pub(crate) metrics: Arc<Metrics>,
}

impl Objects {
    /// An entry as an object of `kind`, which may be another version than the stored one.
    pub(crate) async fn parsed(&self, kind: &Kind, entry: &Entry) -> Result<Object, Status> {
        let cache = self.lister.caches.of(kind)?;
        self.converted(cache.kind(), kind, entry.parse()).await
    }

    async fn parsed_stored(&self, kind: &Kind, kv: &KeyValue) -> Result<Object, Status> {
        let cache = self.lister.caches.of(kind)?;
        let mut object: Object = serde_json::from_slice(&kv.value)
            .map_err(|e| Status::internal(format!("stored value of {} is no JSON: {e}", kv.key)))?;
        cache.kind().refresh(&mut object);
        object.set_meta("resourceVersion", kv.mod_revision.to_string());
        self.converted(cache.kind(), kind, object).await
    }

    async fn in_stored_version(&self, kind: &Kind, object: Object) -> Result<Object, Status> {
        let cache = self.lister.caches.of(kind)?;
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
        let cache = self.lister.caches.of(kind)?;
        self.converted(cache.kind(), kind, object).await
    }

    /// The bytes to store for an object of `kind`: in the storage version, without `resourceVersion`.
    pub(crate) async fn encode_stored(&self, kind: &Kind, object: &Object) -> Result<Vec<u8>, Status> {
        let is_as_stored = is_same_version(kind, self.lister.caches.of(kind)?.kind());
        let object = if is_as_stored && object.meta()["resourceVersion"].is_null() {
            Cow::Borrowed(object)
        } else {
            let mut object = self.in_stored_version(kind, object.clone()).await?;
            object.meta_mut().remove("resourceVersion");
            Cow::Owned(object)
        };
        // What nests deeper could never be read again.
        depth::check(&object)?;
        serde_json::to_vec(&Ordered(&object)).map_err(Status::internal)
    }

    /// The object as of kind `to`; both kinds are versions of one resource.
    ///
    /// # Errors
    /// If the webhook that converts it does not.
    pub(crate) async fn converted(&self, from: &Kind, to: &Kind, object: Object) -> Result<Object, Status> {
        if !asks_webhook(to) {
            return Ok(convert(from, to, object));
        }
        // What was stored before the version of the store changed says another than `from`.
        let version = to.api_version();
        if object["apiVersion"] == version {
            return Ok(object);
        }
        Ok(self.lister.table().converter(to)?.convert(object, &version).await?)
    }

    /// The same of the items of a list, which a webhook is asked for together.
    pub(crate) async fn all_converted(
        &self,
        from: &Kind,
        to: &Kind,
        objects: Vec<Object>,
    ) -> Result<Vec<Object>, Status> {
        if !asks_webhook(to) {
            return Ok(objects.into_iter().map(|object| convert(from, to, object)).collect());
        }
        let (version, list) = (from.api_version(), from.list_kind());
        let converter = self.lister.table().converter(to)?;
        Ok(converter.convert_list((&version, &list), objects, &to.api_version()).await?)
    }
}
