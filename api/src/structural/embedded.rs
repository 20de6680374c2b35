//! `apiVersion`, `kind` and `metadata` of objects that are embedded in custom resources.
//!
//! Source: `pkg/apiserver/schema/objectmeta/validation.go` of apiextensions-apiserver, apimachinery's `ValidateObjectMeta`. Upstream
//! goes through fields in any order; here it is that of their names.

use serde_json::{Map, Value};

use super::fault::MAX_FAULTS;
use super::part::{declared, is_metadata, items, said, values};
use super::place::Place;
use super::prune::{self, Unknown};
use super::{metadata, words};
use crate::meta::{validate_annotations, validate_labels, validate_owners};
use crate::schema::{Node, Schema};
use crate::{Cause, Object, name};

/// What is wrong with the embedded objects of an object.
pub(super) fn check(schema: &Schema, object: &Object) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let Some(root) = schema.root() {
        walk(schema, root, object, &Place::Root, &mut causes);
    }
    causes
}

/// The same of a value that may be an embedded object itself.
pub(super) fn check_value(schema: &Schema, value: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let (Some(root), Value::Object(map)) = (schema.root(), value)
        && prune::is_embedded(root)
    {
        resource(map, &Place::Root, &mut causes);
    }
    causes.extend(check(schema, value));
    causes
}

fn walk(schema: &Schema, node: &Node, value: &Value, place: &Place<'_>, causes: &mut Vec<Cause>) {
    if causes.len() >= MAX_FAULTS {
        return;
    }
    match value {
        Value::Object(map) => {
            let is_root = matches!(place, Place::Root);
            if !is_root && prune::is_embedded(node) {
                resource(map, place, causes);
            }
            for (name, value) in map {
                if let Some(field) = declared(schema, node, name) {
                    if !is_metadata(schema, field) {
                        walk(schema, field, value, &Place::Field(place, name), causes);
                    }
                } else if let Some(values) = values(node).and_then(said) {
                    walk(schema, values, value, &Place::Key(place, name), causes);
                }
            }
        }
        Value::Array(all) => {
            if let Some(items) = items(node) {
                for (at, value) in all.iter().enumerate() {
                    walk(schema, items, value, &Place::Item(place, at), causes);
                }
            }
        }
        _ => {}
    }
}

fn resource(map: &Map<String, Value>, place: &Place<'_>, causes: &mut Vec<Cause>) {
    for name in ["apiVersion", "kind"] {
        if !map.contains_key(name) {
            causes.push(Cause::required(Place::Field(place, name).field(), ""));
        }
    }
    for (name, value) in map.iter().filter(|(name, _)| prune::is_meta(name)) {
        let at = Place::Field(place, name);
        if name == "metadata" {
            of_metadata(value, &at, causes);
            continue;
        }
        let fault = match value {
            Value::String(text) if text.is_empty() => Some("must not be empty".to_owned()),
            Value::String(text) if name == "apiVersion" => {
                (text.matches('/').count() > 1).then(|| format!("unexpected GroupVersion string: {text}"))
            }
            Value::String(text) => name::dns1035_label_fault(&text.to_lowercase())
                .map(|fault| format!("may have mixed case, but should otherwise match: {fault}")),
            _ => Some("must be a string".to_owned()),
        };
        if let Some(fault) = fault {
            causes.push(invalid(&at, value, &fault));
        }
    }
}

fn invalid(place: &Place<'_>, value: &Value, fault: &str) -> Cause {
    Cause::new("FieldValueInvalid", place.field(), format!("Invalid value: {}: {fault}", words::shown(value)))
}

fn of_metadata(value: &Value, place: &Place<'_>, causes: &mut Vec<Cause>) {
    if let Err(fault) = metadata::coerce(value.clone(), &str::to_owned, &mut Unknown::default()) {
        causes.push(invalid(place, value, &fault));
        return;
    }
    let mut fault = |field: &str, fault: Option<String>| {
        if let Some(fault) = fault {
            causes.push(invalid(&Place::Field(place, field), &value[field], &fault));
        }
    };
    let text = |field: &str| value[field].as_str().filter(|text| !text.is_empty());
    for field in ["generateName", "name"] {
        let Some(text) = text(field) else { continue };
        if field == "name" && matches!(text, "." | "..") {
            fault(field, name::path_segment_fault(text));
        } else {
            for c in ['/', '%'] {
                fault(field, text.contains(c).then(|| format!("may not contain '{c}'")));
            }
        }
    }
    fault("namespace", text("namespace").and_then(name::dns_label_fault));
    let is_negative = value["generation"].as_i64().is_some_and(|generation| generation < 0);
    fault("generation", is_negative.then(|| "must be greater than or equal to 0".to_owned()));
    let at = |field: &str| Place::Field(place, field).field();
    causes.extend(validate_labels(&value["labels"], &at("labels")));
    causes.extend(validate_annotations(&value["annotations"], &at("annotations")));
    causes.extend(validate_owners(&value["ownerReferences"], &at("ownerReferences")));
    finalizers(&value["finalizers"], &Place::Field(place, "finalizers"), causes);
    managers(&value["managedFields"], &Place::Field(place, "managedFields"), causes);
}

fn finalizers(finalizers: &Value, place: &Place<'_>, causes: &mut Vec<Cause>) {
    const BOTH: [&str; 2] = ["orphan", "foregroundDeletion"];
    let all = finalizers.as_array().map(Vec::as_slice).unwrap_or_default();
    for finalizer in all {
        if let Some(fault) = name::qualified_name_fault(finalizer.as_str().unwrap_or_default()) {
            causes.push(invalid(place, finalizer, &fault));
        }
    }
    if BOTH.iter().all(|one| all.iter().any(|finalizer| finalizer == one)) {
        let fault = format!("finalizer {} and {} cannot be both set", BOTH[0], BOTH[1]);
        causes.push(invalid(place, finalizers, &fault));
    }
}

const MAX_SUBRESOURCE_BYTES: usize = 256;
const MAX_MANAGER_BYTES: usize = 128;

fn managers(managers: &Value, place: &Place<'_>, causes: &mut Vec<Cause>) {
    for (at, manager) in managers.as_array().into_iter().flatten().enumerate() {
        let place = &Place::Item(place, at);
        let text = |field: &str| manager[field].as_str().unwrap_or_default();
        let at = Place::Field(place, "operation").field();
        match text("operation") {
            "" => causes.push(Cause::required(at, "must not be empty")),
            "Apply" | "Update" => {}
            other => causes.push(Cause::not_supported(at, &other.into(), &["Apply", "Update"])),
        }
        if !matches!(text("fieldsType"), "" | "FieldsV1") {
            causes.push(invalid(
                &Place::Field(place, "fieldsType"),
                &manager["fieldsType"],
                "must be `FieldsV1`",
            ));
        }
        if text("manager").len() > MAX_MANAGER_BYTES {
            causes.push(Cause::too_long(Place::Field(place, "manager").field(), MAX_MANAGER_BYTES));
        }
        if text("subresource").len() > MAX_SUBRESOURCE_BYTES {
            causes.push(Cause::too_long(Place::Field(place, "subresource").field(), MAX_SUBRESOURCE_BYTES));
        }
    }
}
