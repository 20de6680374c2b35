//! The definitions of custom resources: what their authors wrote, with what all objects have.
//!
//! Version 2 of OpenAPI cannot say all of that, and kubectl misreads some of what it can: that is left out, as upstream does.
//!
//! Source: apiextensions-apiserver's `pkg/controller/openapi/builder` and `pkg/controller/openapi/v2`.

use serde_json::{Map, Value, json};

use super::{ANY_KIND, Maker, OBJECT_META, Version};
use crate::{Kind, kinds};

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";

/// `com.example.stable.v1.CronTab` of the group `stable.example.com`.
pub(super) fn name(kind: &Kind) -> String {
    let mut parts: Vec<&str> = kind.group.rsplit('.').collect();
    parts.extend([kind.version.as_str(), kind.kind.as_str()]);
    parts.join(".")
}

/// The definition of a custom kind. Schemas nest no deeper than any object.
pub(super) fn definition(kind: &Kind, custom: &kinds::Custom, maker: Maker<'_>) -> Value {
    let gvk = json!([{"group": kind.group, "version": kind.version, "kind": kind.kind}]);
    let mut schema = (*custom.open_api).clone();
    // With any property said, kubectl would take all others for unknown.
    if matches!(maker.version, Version::V2) && schema[PRESERVE] == true {
        return json!({"type": "object", "x-kubernetes-group-version-kind": gvk});
    }
    adapt(&mut schema, maker);
    if !schema.is_object() {
        schema = json!({"type": "object"});
    }
    add_properties(&mut schema, maker);
    schema["x-kubernetes-group-version-kind"] = gvk;
    schema
}

/// What every object has.
fn add_properties(schema: &mut Value, maker: Maker<'_>) {
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    let common = [
        ("apiVersion", json!({"type": "string"})),
        ("kind", json!({"type": "string"})),
        ("metadata", maker.version.reference(OBJECT_META)),
    ];
    for (name, mut property) in common {
        maker.describe(&mut property, maker.texts.of_field(ANY_KIND, name));
        schema["properties"][name] = property;
    }
}

fn adapt(schema: &mut Value, maker: Maker<'_>) {
    let Some(map) = schema.as_object_mut() else { return };
    if matches!(maker.version, Version::V2) {
        simplify(map);
    }
    for (name, below) in map.iter_mut() {
        match (name.as_str(), below) {
            ("properties", Value::Object(properties)) => {
                properties.values_mut().for_each(|property| adapt(property, maker));
            }
            ("items" | "additionalProperties", below) => adapt(below, maker),
            _ => {}
        }
    }
    let is_embedded = map.get(EMBEDDED).is_some_and(|is| *is == true);
    let is_open = map.get(PRESERVE).is_some_and(|is| *is == true);
    if is_embedded && !(is_open && matches!(maker.version, Version::V2)) {
        add_properties(schema, maker);
    }
}

/// To what version 2 can say.
fn simplify(map: &mut Map<String, Value>) {
    for junctor in ["allOf", "anyOf", "oneOf", "not"] {
        map.remove(junctor);
    }
    let is = |map: &Map<String, Value>, field: &str| map.get(field).is_some_and(|value| *value == true);
    let (is_nullable, is_open) = (is(map, "nullable"), is(map, PRESERVE));
    map.remove("nullable");
    if is_nullable || is_open {
        map.remove("items");
        map.remove("properties");
    }
    let type_ = map.get("type").and_then(Value::as_str).unwrap_or_default();
    let is_bare_list = type_ == "array" && !map.contains_key("items");
    if is_nullable || is_bare_list || (is_open && type_ == "object") {
        map.remove("type");
    }
    let nullable: Vec<String> = map
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, property)| property["nullable"] == true)
        .map(|(name, _)| name.clone())
        .collect();
    let holds_null = map.get("additionalProperties").is_some_and(|values| values["nullable"] == true);
    if let Some(Value::Array(required)) = map.get_mut("required") {
        required.retain(|name| !holds_null && !nullable.iter().any(|nullable| *name == **nullable));
        if required.is_empty() {
            map.remove("required");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_says_less_so_that_kubectl_takes_nothing_for_unknown() {
        let mut schema = json!({"type": "object", "required": ["a", "b"], "properties": {
            "a": {"type": "string", "nullable": true},
            "b": {"type": "array", "items": {"type": "object", PRESERVE: true, "properties": {"c": {"type": "string"}}}},
            "d": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true},
            "e": {"type": "object", EMBEDDED: true, PRESERVE: true},
        }});
        let full = schema.clone();
        adapt(&mut schema, Maker { version: Version::V2, texts: &() });
        assert_eq!(
            schema,
            json!({"type": "object", "required": ["b"], "properties": {
                "a": {},
                "b": {"type": "array", "items": {PRESERVE: true}},
                "d": {"x-kubernetes-int-or-string": true},
                "e": {EMBEDDED: true, PRESERVE: true},
            }})
        );
        let mut same = full.clone();
        adapt(&mut same, Maker { version: Version::V3, texts: &() });
        assert_eq!(same["properties"]["e"]["properties"]["kind"]["type"], "string");
        assert_eq!(same["properties"]["d"], full["properties"]["d"]);
    }
}
