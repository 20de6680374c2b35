//! Reading and writing `metadata` of an object.

use serde_json::{Value, json};

use crate::{Cause, Object, name};

const MAX_ANNOTATIONS_BYTES: usize = 256 << 10;

/// Labels that lie at `field`.
pub fn validate_labels(labels: &Value, field: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        if let Some(fault) = name::qualified_name_fault(key) {
            causes.push(Cause::invalid(field, &json!(key), &fault));
        }
        let value = value.as_str().unwrap_or_default();
        if let Some(fault) = name::label_value_fault(value) {
            causes.push(Cause::invalid(field, &json!(value), &fault));
        }
    }
    causes
}

/// Annotations that lie at `field`.
pub fn validate_annotations(annotations: &Value, field: &str) -> Vec<Cause> {
    let (mut causes, mut bytes) = (Vec::new(), 0);
    for (key, value) in annotations.as_object().into_iter().flatten() {
        if let Some(fault) = name::qualified_name_fault(&key.to_lowercase()) {
            causes.push(Cause::invalid(field, &json!(key), &fault));
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > MAX_ANNOTATIONS_BYTES {
        causes.push(Cause::too_long(field, MAX_ANNOTATIONS_BYTES));
    }
    causes
}

/// Borrowed access to the metadata of an object. Missing fields read as empty.
pub trait Meta {
    fn meta(&self) -> &Value;
    fn meta_mut(&mut self) -> &mut serde_json::Map<String, Value>;
    fn meta_str(&self, field: &str) -> &str;

    fn name(&self) -> &str {
        self.meta_str("name")
    }
    fn namespace(&self) -> &str {
        self.meta_str("namespace")
    }
    fn uid(&self) -> &str {
        self.meta_str("uid")
    }
    fn resource_version(&self) -> &str {
        self.meta_str("resourceVersion")
    }
    fn is_being_deleted(&self) -> bool {
        !self.meta()["deletionTimestamp"].is_null()
    }
    fn set_meta(&mut self, field: &str, value: impl Into<Value>) {
        self.meta_mut().insert(field.into(), value.into());
    }
    fn finalizers(&self) -> Vec<&str> {
        strings(&self.meta()["finalizers"])
    }
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().map(|a| a.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

impl Meta for Object {
    fn meta(&self) -> &Value {
        &self["metadata"]
    }

    fn meta_mut(&mut self) -> &mut serde_json::Map<String, Value> {
        if !self.is_object() {
            *self = Value::Object(serde_json::Map::new());
        }
        let Value::Object(root) = self else { unreachable!("just made an object") };
        let meta = root.entry("metadata").or_insert_with(|| Value::Object(serde_json::Map::new()));
        if !meta.is_object() {
            *meta = Value::Object(serde_json::Map::new());
        }
        let Value::Object(meta) = meta else { unreachable!("just made an object") };
        meta
    }

    fn meta_str(&self, field: &str) -> &str {
        self["metadata"][field].as_str().unwrap_or_default()
    }
}
