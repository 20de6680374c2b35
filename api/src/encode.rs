//! Documents as they are sent: what they are comes first, as people and some clients expect, and a newline last.
//!
//! Source: the order of fields in upstream's types; apimachinery's JSON serializer, which ends each document with a newline.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

/// What stands in front of all other fields.
const FIRST: [&str; 3] = ["kind", "apiVersion", "metadata"];

/// A document that is written with `kind` and `apiVersion` first, then its `metadata`.
pub struct Ordered<'v>(pub &'v Value);

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Value::Object(map) = self.0 else { return self.0.serialize(serializer) };
        let mut out = serializer.serialize_map(Some(map.len()))?;
        for name in FIRST {
            if let Some(value) = map.get(name) {
                out.serialize_entry(name, value)?;
            }
        }
        for (name, value) in map.iter().filter(|(name, _)| !FIRST.contains(&name.as_str())) {
            out.serialize_entry(name, value)?;
        }
        out.end()
    }
}

/// One document as JSON, with its newline.
pub fn json(document: &Value) -> Vec<u8> {
    // Writing a `Value` to memory cannot fail.
    let mut bytes = serde_json::to_vec(&Ordered(document)).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// The same for people: indented by two, as `?pretty=true` wants it.
pub fn pretty_json(document: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(&Ordered(document)).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_document_is_comes_first_and_a_newline_last() {
        let object =
            json!({"apiVersion": "v1", "data": {"a": "b"}, "kind": "ConfigMap", "metadata": {"name": "x"}});
        assert_eq!(
            String::from_utf8(json(&object)).unwrap(),
            "{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"x\"},\"data\":{\"a\":\"b\"}}\n"
        );
        let list = json!({"apiVersion": "v1", "items": [], "kind": "PodList", "metadata": {}});
        assert!(json(&list).starts_with(br#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items""#));
        assert!(pretty_json(&list).starts_with(b"{\n  \"kind\": \"PodList\",\n  \"apiVersion\""));
        assert_eq!(json(&json!([1])), b"[1]\n");
    }
}
