//! A definition as upstream checks it: what all versions say alike is said once, for all of them, and its faults lie there.
//!
//! Source: `conversion.go` of apiextensions-apiserver's `v1`.

use std::collections::HashSet;

use serde_json::Value;

use crate::kinds::builtin::rules::path::{has, list, text};

/// What versions may say alike, and what it is called where it is said for all.
const SHARED: [(&str, &str); 4] = [
    ("subresources", "subresources"),
    ("schema", "validation"),
    ("additionalPrinterColumns", "additionalPrinterColumns"),
    ("selectableFields", "selectableFields"),
];

/// The `spec` of a definition.
#[derive(Clone, Copy)]
pub(super) struct Spec<'v> {
    pub(super) value: &'v Value,
    pub(super) versions: &'v [Value],
    shared: [bool; SHARED.len()],
}

static NOTHING: Value = Value::Null;

/// A field, null where there is none.
pub(super) fn at<'v>(value: &'v Value, name: &str) -> &'v Value {
    value.get(name).unwrap_or(&NOTHING)
}

impl<'v> Spec<'v> {
    pub(super) fn of(definition: &'v Value) -> Spec<'v> {
        let value = at(definition, "spec");
        let versions = list(value, "versions");
        let first = versions.first().unwrap_or(&NOTHING);
        let is_shared = |(name, _): (&str, &str)| {
            !versions.is_empty() && versions.iter().all(|one| same(at(one, name), at(first, name)))
        };
        Spec { value, versions, shared: SHARED.map(is_shared) }
    }

    pub(super) fn is_shared(&self, name: &str) -> bool {
        SHARED.iter().zip(self.shared).any(|((shared, _), is)| *shared == name && is)
    }

    /// What is said for all versions, null if they differ or say nothing.
    pub(super) fn for_all(&self, name: &str) -> &'v Value {
        match self.versions.first() {
            Some(first) if self.is_shared(name) => at(first, name),
            _ => &NOTHING,
        }
    }

    /// What a version says by itself.
    pub(super) fn of_one(&self, version: &'v Value, name: &str) -> &'v Value {
        if self.is_shared(name) { &NOTHING } else { at(version, name) }
    }

    /// The schemas that there are, in upstream's order.
    pub(super) fn schemas(self) -> impl Iterator<Item = &'v Value> {
        let of_versions = self.versions.iter().map(move |version| self.of_one(version, "schema"));
        let all = std::iter::once(self.for_all("schema")).chain(of_versions);
        all.map(|validation| at(validation, "openAPIV3Schema")).filter(|schema| !schema.is_null())
    }

    /// Which versions have a status of its own, by name. Two versions may have one name; then the first is meant.
    pub(super) fn with_status(&self) -> HashSet<&'v str> {
        let mut met = HashSet::new();
        let firsts = self.versions.iter().filter(|version| met.insert(text(version, "name")));
        firsts
            .filter(|version| has_status(at(version, "subresources")))
            .map(|version| text(version, "name"))
            .collect()
    }

    pub(super) fn preserves(&self) -> bool {
        at(self.value, "preserveUnknownFields") == &Value::Bool(true)
    }
}

pub(super) fn has_status(subresources: &Value) -> bool {
    has(subresources, "status")
}

/// Whether two parts of a definition say the same: for upstream, an empty list or map is none, and so is what is false.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let one = |(name, value): (&String, &Value), other: &serde_json::Map<String, Value>| {
                let other = other.get(name).unwrap_or(&NOTHING);
                match name.as_str() {
                    "default" | "example" | "enum" => value == other,
                    "nullable" | "uniqueItems" | "exclusiveMinimum" | "exclusiveMaximum" => {
                        value.as_bool().unwrap_or_default() == other.as_bool().unwrap_or_default()
                    }
                    "x-kubernetes-embedded-resource" | "x-kubernetes-int-or-string" => {
                        value.as_bool().unwrap_or_default() == other.as_bool().unwrap_or_default()
                    }
                    "properties" | "patternProperties" | "definitions" | "dependencies" => {
                        (is_empty(value) && is_empty(other)) || same(value, other)
                    }
                    _ => same(value, other),
                }
            };
            // What both have is compared once: twice on each level would be endless.
            let only_b = b.iter().filter(|(name, _)| !a.contains_key(*name));
            a.iter().all(|entry| one(entry, b)) && only_b.into_iter().all(|entry| one(entry, a))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Array(items), Value::Null) | (Value::Null, Value::Array(items)) => items.is_empty(),
        (Value::String(text), Value::Null) | (Value::Null, Value::String(text)) => text.is_empty(),
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_none_or(|map| map.is_empty())
}

/// Whether a schema, or one in it, is as `is` says; each is asked before those in it.
pub(super) fn any_schema(schema: &Value, is: &mut dyn FnMut(&Value) -> bool) -> bool {
    if !schema.is_object() {
        return false;
    }
    if is(schema) {
        return true;
    }
    let mut parts = Vec::new();
    match at(schema, "items") {
        Value::Array(items) => parts.extend(items),
        one => parts.push(one),
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        parts.extend(list(schema, name));
    }
    parts.push(at(schema, "not"));
    let named = |name: &str| at(schema, name).as_object().into_iter().flat_map(|map| map.values());
    parts.extend(named("properties"));
    parts.push(at(schema, "additionalProperties"));
    parts.extend(named("patternProperties"));
    parts.push(at(schema, "additionalItems"));
    parts.extend(named("definitions"));
    parts.extend(named("dependencies"));
    parts.into_iter().any(|part| any_schema(part, is))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn deep_schemas_are_compared_in_one_pass() {
        let mut deep = json!({"type": "string"});
        for _ in 0..50 {
            deep = json!({"type": "object", "properties": {"a": deep}});
        }
        assert!(same(&deep, &deep.clone()));
    }

    #[test]
    fn what_all_versions_say_is_said_once() {
        let definition = json!({"spec": {"versions": [
            {"name": "a", "schema": {"openAPIV3Schema": {"type": "object", "required": []}}, "subresources": {"status": {}}},
            {"name": "b", "schema": {"openAPIV3Schema": {"type": "object"}}, "subresources": {}},
        ]}});
        let spec = Spec::of(&definition);
        assert!(spec.is_shared("schema") && spec.is_shared("selectableFields"));
        assert!(!spec.is_shared("subresources"), "an object is not none");
        assert_eq!(spec.schemas().count(), 1);
        assert_eq!(spec.with_status().into_iter().collect::<Vec<_>>(), ["a"]);
    }
}
