//! One object as the cache holds it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use skiff_api::encode::Ordered;
use skiff_api::meta::Meta;
use skiff_api::{FieldSelector, Kind, LabelSelector, Object, protobuf};

use crate::store::Revision;

/// An encoded object with what selectors need of it already extracted.
pub(crate) struct Entry {
    /// `<namespace>/<name>`, or `<name>` of a cluster-scoped kind.
    pub(crate) key: Arc<str>,
    /// The document in its storage version, with `metadata.resourceVersion`.
    pub(crate) json: Bytes,
    /// The same as a protobuf message, made when the first client asks for it.
    protobuf: OnceLock<Bytes>,
    /// Sorted by key.
    labels: Box<[(Box<str>, Box<str>)]>,
    /// The selectable fields of its kind that are set, besides name and namespace.
    fields: Box<[(Arc<str>, Box<str>)]>,
    pub(crate) uid: Box<str>,
    /// Seconds of the epoch.
    pub(crate) deletion_s: Option<i64>,
    pub(crate) mod_revision: Revision,
    /// It was stored in another version than what is stored now, and only a webhook can convert it.
    pub(crate) is_foreign: bool,
}

impl Entry {
    /// Reads a stored value.
    ///
    /// # Errors
    /// Why it is no object of this name.
    pub(crate) fn decode(
        kind: &Kind,
        key: &str,
        value: &[u8],
        mod_revision: Revision,
    ) -> Result<(Entry, Object), String> {
        let object: Object = serde_json::from_slice(value)
            .map_err(|error| format!("it is no JSON that can be read: {error}"))?;
        let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
        if !object["metadata"].is_object() || object.name() != name {
            return Err("it is no object of this name".to_owned());
        }
        let mut object = object;
        kind.refresh(&mut object);
        Ok(Entry::encode(kind, key.into(), object, mod_revision))
    }

    /// An object in a version of its kind.
    pub(crate) fn encode(
        kind: &Kind,
        key: Arc<str>,
        mut object: Object,
        mod_revision: Revision,
    ) -> (Entry, Object) {
        object.set_meta("resourceVersion", mod_revision.to_string());
        let labels = object.meta()["labels"].as_object().map(|labels| {
            labels.iter().map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into())).collect()
        });
        let fields = kind
            .noted_fields()
            .iter()
            .map(|field| (field.clone(), kind.strategy.field(&object, field).into_boxed_str()))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        let is_foreign = kind.custom().is_some() && object["apiVersion"] != kind.api_version();
        let deletion: Option<jiff::Timestamp> = object.meta_str("deletionTimestamp").parse().ok();
        let entry = Entry {
            key,
            uid: object.uid().into(),
            deletion_s: deletion.map(jiff::Timestamp::as_second),
            // Writing a `Value` to memory cannot fail. A vector that grew has up to as much room to spare as it holds.
            json: serde_json::to_vec(&Ordered(&object)).unwrap_or_default().into_boxed_slice().into(),
            protobuf: OnceLock::new(),
            labels: labels.unwrap_or_default(),
            fields,
            mod_revision,
            is_foreign,
        };
        (entry, object)
    }

    /// The same object as of another revision: how a deleted object is sent.
    pub(crate) fn at_revision(&self, kind: &Kind, mod_revision: Revision) -> Entry {
        Entry::encode(kind, self.key.clone(), self.parse(), mod_revision).0
    }

    pub(crate) fn parse(&self) -> Object {
        // Entries are made of valid JSON only.
        serde_json::from_slice(&self.json).unwrap_or_default()
    }

    /// The message of the object, without its envelope. `kind` is the kind that is stored.
    pub(crate) fn protobuf(&self, kind: &Kind) -> Bytes {
        self.protobuf.get_or_init(|| protobuf::message(kind.schema.id, &self.parse())).clone()
    }

    pub(crate) fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub(crate) fn name(&self) -> &str {
        self.key.split_once('/').map_or(&self.key, |(_, name)| name)
    }

    pub(crate) fn field(&self, field: &str) -> &str {
        match field {
            "metadata.name" => self.name(),
            "metadata.namespace" => self.namespace(),
            _ => self.fields.iter().find(|(name, _)| **name == *field).map_or("", |(_, value)| value),
        }
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.labels[at].1)
    }

    pub(crate) fn matches(&self, labels: &LabelSelector, fields: &FieldSelector) -> bool {
        (labels.is_empty() || labels.matches(|key| self.label(key)))
            && (fields.is_empty() || fields.matches(|field| self.field(field).to_owned()))
    }
}
