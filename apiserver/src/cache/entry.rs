//! One object as the cache holds it.

use std::fmt;
use std::io::Write as _;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Map;
use serde_json::value::RawValue;
use skiff_api::encode::Ordered;
use skiff_api::meta::Meta;
use skiff_api::{FieldSelector, Kind, LabelSelector, Object, protobuf};

use super::for_nodes::for_nodes;
use super::packed::{Bases, Document};
use crate::store::Revision;

/// An encoded object with what selectors need of it already extracted.
pub(crate) struct Entry {
    /// `<namespace>/<name>`, or `<name>` of a cluster-scoped kind.
    pub(crate) key: Arc<str>,
    /// In its storage version, with `metadata.resourceVersion`.
    document: Document,
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

/// Of a document, what need not be read to be sent.
#[derive(Deserialize)]
struct Head<'d> {
    #[serde(borrow)]
    metadata: &'d RawValue,
}

/// How much of an object somebody is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Detail {
    #[default]
    Whole,
    /// All but who manages which fields.
    WithoutManagers,
    /// Of a pod, what every node may see.
    ForNodes,
}

#[derive(Deserialize)]
struct Managed<'d> {
    #[serde(borrow)]
    metadata: ManagedFields<'d>,
}

#[derive(Deserialize)]
struct ManagedFields<'d> {
    #[serde(borrow, rename = "managedFields")]
    fields: Option<&'d RawValue>,
}

/// A document as this server writes them, with `managedFields` behind the rest of the metadata; others stay as they are.
fn without_managers(document: Bytes) -> Bytes {
    const NAME: &[u8] = b",\"managedFields\":";
    let Ok(Managed { metadata: ManagedFields { fields: Some(fields) } }) = serde_json::from_slice(&document)
    else {
        return document;
    };
    let begin = (fields.get().as_ptr() as usize).saturating_sub(document.as_ptr() as usize);
    let (before, rest) = document.split_at(begin.min(document.len()));
    let (Some(before), Some(after)) = (before.strip_suffix(NAME), rest.get(fields.get().len()..)) else {
        return document;
    };
    [before, after].concat().into()
}

/// A document without `metadata.managedFields`, which are often half of it and nobody's business here.
struct Lean(Object);

impl<'de> Deserialize<'de> for Lean {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Lean, D::Error> {
        from.deserialize_any(Root).map(Lean)
    }
}

struct Root;

impl<'de> Visitor<'de> for Root {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Object, A::Error> {
        let mut root = Map::new();
        while let Some(name) = from.next_key::<String>()? {
            let value =
                if name == "metadata" { from.next_value::<Metadata>()?.0 } else { from.next_value()? };
            root.insert(name, value);
        }
        Ok(Object::Object(root))
    }
}

struct Metadata(Object);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Metadata, D::Error> {
        from.deserialize_any(Within)
    }
}

struct Within;

impl<'de> Visitor<'de> for Within {
    type Value = Metadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("metadata")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Metadata, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = from.next_key::<String>()? {
            if name == "managedFields" {
                from.next_value::<IgnoredAny>()?;
            } else {
                fields.insert(name, from.next_value()?);
            }
        }
        Ok(Metadata(Object::Object(fields)))
    }
}

/// A stored document with its revision in its place, behind the UID; `None` if it is not written as this server writes.
fn with_revision(kind: &Kind, object: &Object, document: &[u8], revision: Revision) -> Option<Vec<u8>> {
    if !object.meta()["resourceVersion"].is_null() {
        return None;
    }
    let head = format!(r#"{{"kind":"{}","apiVersion":"{}","metadata":{{"#, kind.kind, kind.api_version());
    let uid = format!(r#""uid":"{}""#, object.uid());
    let fields = document.strip_prefix(head.as_bytes())?;
    let at = memchr::memmem::find(fields, uid.as_bytes())?;
    // Before it are names alone: no map whose keys somebody chose.
    if fields[..at].contains(&b'{') {
        return None;
    }
    let end = head.len() + at + uid.len();
    let mut out = Vec::with_capacity(document.len() + 48);
    out.extend_from_slice(&document[..end]);
    // Writing to memory cannot fail.
    _ = write!(out, r#","resourceVersion":"{revision}""#);
    out.extend_from_slice(&document[end..]);
    Some(out)
}

impl Entry {
    /// Reads a stored value. The object that comes with it may be without `managedFields`.
    ///
    /// # Errors
    /// Why it is no object of this name.
    pub(crate) fn decode(
        kind: &Kind,
        key: &str,
        value: &[u8],
        mod_revision: Revision,
    ) -> Result<(Entry, Object), String> {
        let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
        let check = |object: &Object| match object["metadata"].is_object() && object.name() == name {
            true => Ok(()),
            false => Err("it is no object of this name".to_owned()),
        };
        let unread = |error: serde_json::Error| format!("it is no JSON that can be read: {error}");
        // Documents of custom kinds are brought into the shape of today.
        if kind.custom().is_none() {
            let Lean(mut object) = serde_json::from_slice(value).map_err(unread)?;
            check(&object)?;
            if let Some(document) = with_revision(kind, &object, value, mod_revision) {
                object.set_meta("resourceVersion", mod_revision.to_string());
                return Ok((Entry::of(kind, key.into(), &object, document, mod_revision), object));
            }
        }
        let mut object: Object = serde_json::from_slice(value).map_err(unread)?;
        check(&object)?;
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
        // Writing a `Value` to memory cannot fail.
        let document = serde_json::to_vec(&Ordered(&object)).unwrap_or_default();
        (Entry::of(kind, key, &object, document, mod_revision), object)
    }

    fn of(kind: &Kind, key: Arc<str>, object: &Object, document: Vec<u8>, mod_revision: Revision) -> Entry {
        let labels = object.meta()["labels"].as_object().map(|labels| {
            labels.iter().map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or_default().into())).collect()
        });
        let fields = kind
            .noted_fields()
            .iter()
            .map(|field| (field.clone(), kind.strategy.field(object, field).into_boxed_str()))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        let is_foreign = kind.custom().is_some() && object["apiVersion"] != kind.api_version();
        let deletion: Option<jiff::Timestamp> = object.meta_str("deletionTimestamp").parse().ok();
        Entry {
            key,
            uid: object.uid().into(),
            deletion_s: deletion.map(jiff::Timestamp::as_second),
            // A vector that grew has up to as much room to spare as it holds.
            document: Document::Plain(document.into_boxed_slice().into()),
            protobuf: OnceLock::new(),
            labels: labels.unwrap_or_default(),
            fields,
            mod_revision,
            is_foreign,
        }
    }

    /// The same object as of another revision: how a deleted object is sent.
    pub(crate) fn at_revision(&self, kind: &Kind, mod_revision: Revision) -> Entry {
        Entry::encode(kind, self.key.clone(), self.parse(), mod_revision).0
    }

    pub(crate) fn parse(&self) -> Object {
        // Entries are made of valid JSON only.
        serde_json::from_slice(&self.json()).unwrap_or_default()
    }

    /// The document as it is sent.
    pub(crate) fn json(&self) -> Bytes {
        self.document.bytes()
    }

    /// The document with as much of it as is sent.
    pub(crate) fn sent(&self, detail: Detail) -> Bytes {
        let document = self.json();
        match detail {
            Detail::Whole => document,
            Detail::WithoutManagers => without_managers(document),
            Detail::ForNodes => for_nodes(&document),
        }
    }

    /// The object's metadata alone, in a version of `meta.k8s.io`; `None` of custom kinds, whose documents have it in another order.
    pub(crate) fn metadata_json(&self, kind: &Kind, meta_version: &str, detail: Detail) -> Option<Bytes> {
        if kind.custom().is_some() {
            return None;
        }
        let document = self.sent(detail);
        let head: Head<'_> = serde_json::from_slice(&document).ok()?;
        let metadata = head.metadata.get();
        Some(
            format!(
                r#"{{"kind":"PartialObjectMetadata","apiVersion":"{meta_version}","metadata":{metadata}}}"#
            )
            .into(),
        )
    }

    /// How long the document is.
    pub(crate) fn size(&self) -> usize {
        self.document.len()
    }

    /// About how much memory it takes.
    pub(super) fn weight(&self) -> usize {
        size_of::<Entry>() + self.document.weight() + self.protobuf.get().map_or(0, Bytes::len)
    }

    /// The same in less memory, for who keeps it.
    pub(super) fn packed(mut self, bases: &Mutex<Bases>) -> Entry {
        if let Document::Plain(bytes) = &self.document {
            self.document = bases.lock().pack(&self.key, bytes.clone());
        }
        self
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

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_api::Kinds;

    use super::*;

    /// What is stored, and what it is sent as.
    fn check(stored: &str) {
        let kinds = Kinds::builtin();
        let kind = kinds.by_resource("", "v1", "configmaps").unwrap();
        let (entry, mut object) = Entry::decode(kind, "d/a", stored.as_bytes(), 7).unwrap();
        let whole: Object = serde_json::from_str(stored).unwrap();
        let (expected, mut of_expected) = Entry::encode(kind, "d/a".into(), whole, 7);
        assert_eq!(String::from_utf8_lossy(&entry.json()), String::from_utf8_lossy(&expected.json()));
        object.meta_mut().remove("managedFields");
        of_expected.meta_mut().remove("managedFields");
        assert_eq!(object, of_expected);
        assert_eq!(
            (&*entry.uid, entry.label("l"), entry.mod_revision),
            (&*expected.uid, expected.label("l"), 7)
        );
        let metadata = serde_json::from_slice::<Object>(
            &entry.metadata_json(kind, "meta.k8s.io/v1", Detail::Whole).unwrap(),
        )
        .unwrap();
        let mut whole = entry.parse();
        assert_eq!(metadata["metadata"], whole["metadata"]);
        whole.meta_mut().remove("managedFields");
        assert_eq!(serde_json::from_slice::<Object>(&entry.sent(Detail::WithoutManagers)).unwrap(), whole);
    }

    #[test]
    fn a_document_gets_its_revision_where_upstream_writes_it() {
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"uid": "u"}, "metadata": {
            "name": "a", "namespace": "d", "uid": "u", "labels": {"l": "1", "uid": "u"}, "creationTimestamp": null,
            "managedFields": [{"manager": "m", "fieldsV1": {"f:data": {}}}]}});
        check(&serde_json::to_string(&Ordered(&object)).unwrap());
    }

    #[test]
    fn a_document_that_another_wrote_gets_it_there_too() {
        for metadata in [
            r#""annotations":{"uid":"u"},"name":"a","namespace":"d","uid":"u""#,
            r#""name":"a","namespace":"d","resourceVersion":"3","uid":"u""#,
            r#""name":"a","namespace":"d","managedFields":[{"manager":"m"}]"#,
            r#""uid" : "u", "name":"a","namespace":"d""#,
        ] {
            check(&format!(r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{{metadata}}}}}"#));
            check(&format!(r#"{{"metadata":{{{metadata}}},"apiVersion":"v1","kind":"ConfigMap"}}"#));
        }
    }

    #[test]
    fn what_is_no_object_of_its_name_is_refused() {
        let kinds = Kinds::builtin();
        let kind = kinds.by_resource("", "v1", "configmaps").unwrap();
        for stored in [
            "",
            "[]",
            "{}",
            r#"{"metadata":1}"#,
            r#"{"metadata":{"name":"b"}}"#,
            r#"{"metadata":{"name":"a"}"#,
        ] {
            assert!(Entry::decode(kind, "d/a", stored.as_bytes(), 7).is_err(), "{stored}");
        }
    }
}
