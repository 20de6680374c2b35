//! Type checks against those of upstream's plug-in: `types.jsonl.gz`, which `xtask/policies` records.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use skiff_api::schema::{Schema, Shape, TypeRef};
use skiff_policy::{kinds_to_check, type_check};
use skiff_webhook::admission::{GroupVersionKind, GroupVersionResource};

use crate::world::unpacked;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    name: String,
    policy: Value,
    warnings: Option<Vec<Value>>,
}

/// Cases that are told otherwise, and why, by the beginning of their names.
const KNOWN: &[(&str, &str)] = &[
    ("39 ", "upstream forgets to declare `authorizer.requestResource`, and warns of all who use it"),
    ("50 ", "here every object has all of its metadata, as upstream's server says it in what it publishes"),
];

/// The gadgets and limits of `xtask/policies`.
const SCHEMA: &str = r#"{"type": "object", "properties": {
    "apiVersion": {"type": "string"}, "kind": {"type": "string"},
    "metadata": {"type": "object", "properties": {"name": {"type": "string"}, "generateName": {"type": "string"}}},
    "max": {"type": "integer", "format": "int64"},
    "spec": {"type": "object", "properties": {
        "n": {"type": "integer", "format": "int64"}, "name": {"type": "string"}, "flag": {"type": "boolean"}, "real": {"type": "number"},
        "when": {"type": "string", "format": "date-time"}, "day": {"type": "string", "format": "date"}, "time": {"type": "string", "format": "duration"},
        "bytes": {"type": "string", "format": "byte"}, "port": {"x-kubernetes-int-or-string": true}, "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "any": {"x-kubernetes-preserve-unknown-fields": true}, "a-b": {"type": "string"}, "if": {"type": "string"},
        "list": {"type": "array", "items": {"type": "integer"}}, "map": {"type": "object", "additionalProperties": {"type": "string"}},
        "parts": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}},
        "byName": {"type": "object", "additionalProperties": {"type": "object", "properties": {"y": {"type": "integer"}}}},
        "inner": {"type": "object", "properties": {"z": {"type": "object", "properties": {"w": {"type": "string"}}}}}}}}}"#;

fn kinds_for(resource: &GroupVersionResource) -> Vec<GroupVersionKind> {
    let kind = match (resource.resource.as_str(), resource.version.as_str()) {
        ("gadgets", "v1" | "v2") => "Gadget",
        ("untypeds", "v1") => "Untyped",
        _ => return Vec::new(),
    };
    if resource.group != "example.com" {
        return Vec::new();
    }
    vec![GroupVersionKind::new(&format!("{}/{}", resource.group, resource.version), kind)]
}

#[test]
fn expressions_are_held_against_types_as_upstream_does() {
    let schema = Schema::of_custom(&serde_json::from_str(SCHEMA).expect("JSON")).expect("a schema");
    let Some(Shape::Object(id)) = schema.root().map(|root| root.shape.clone()) else {
        panic!("gadgets are objects");
    };
    let gadget = TypeRef { schema: Arc::new(schema), id };
    let schema_of =
        |kind: &GroupVersionKind| matches!(kind.kind.as_str(), "Gadget" | "Limit").then(|| gadget.clone());
    let (mut faults, mut n_cases, mut n_known) = (Vec::new(), 0, 0);
    for line in unpacked(include_bytes!("types.jsonl.gz")).lines() {
        let case: Case = serde_json::from_str(line).expect(line);
        let kinds = kinds_to_check(&case.policy, &kinds_for);
        let found: Vec<Value> = type_check(&case.policy, &kinds, &schema_of)
            .into_iter()
            .map(|warning| {
                let told = warning.warning.replace("Gadget0", "Gadget#").replace("Limit1", "Limit#");
                json!({"fieldRef": warning.field_ref, "warning": told})
            })
            .collect();
        let wanted = case.warnings.unwrap_or_default();
        n_cases += 1;
        if KNOWN.iter().any(|(name, _)| case.name.starts_with(name)) {
            assert_ne!(found, wanted, "{} is the same by now", case.name);
            n_known += 1;
        } else if found != wanted {
            faults.push(format!("{}\n   found {found:?}\n  wanted {wanted:?}", case.name));
        }
    }
    assert!(faults.is_empty(), "{} of {n_cases}:\n{}", faults.len(), faults.join("\n"));
    assert!(n_cases > 400, "{n_cases}");
    assert!(n_known >= KNOWN.len());
}
