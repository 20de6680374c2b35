//! Merge patch, RFC 7386, as upstream's library reads it.
//!
//! Recursion is as deep as the patch, which was read under [`crate::depth::MAX_DEPTH`].
//!
//! Source: `gopkg.in/evanphx/json-patch.v4`, `merge.go`.

use serde_json::{Map, Value};

pub(super) fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (name, value) in patch {
        match (target.get_mut(name), value) {
            (_, Value::Null) => {
                target.remove(name);
            }
            (Some(Value::Object(target)), Value::Object(patch)) => merge(target, patch),
            // In place of an object, a list is taken as it is.
            (Some(Value::Object(_)), other) => {
                target.insert(name.clone(), other.clone());
            }
            (_, other) => {
                target.insert(name.clone(), without_nulls(other));
            }
        }
    }
}

/// Without the fields that are null, wherever they are. Items of lists stay.
pub(super) fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let set = map.iter().filter(|(_, value)| !value.is_null());
            Value::Object(set.map(|(name, value)| (name.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        scalar => scalar.clone(),
    }
}
