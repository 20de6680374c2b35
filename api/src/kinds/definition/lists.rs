//! How lists and maps are taken apart by their owners, and by what keys.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::faults::{invalid_shown, invalid_text, not_supported};
use super::open_api::pointer;
use super::options::Options;
use super::shown;
use super::view::at;
use crate::kinds::builtin::rules::path::{Faults, Path, has, is_true, list, text};

const LIST: &str = "x-kubernetes-list-type";
const MAP: &str = "x-kubernetes-map-type";
const KEYS: &str = "x-kubernetes-list-map-keys";

pub(super) fn check(faults: &mut Faults, schema: &Value, options: &Options<'_>, path: &Path<'_>) {
    let (list_type, map_type) = (at(schema, LIST).as_str(), at(schema, MAP).as_str());
    if let Some(map_type) = map_type {
        of_type(faults, schema, "object", "must be object if x-kubernetes-map-type is specified", path);
        if !matches!(map_type, "atomic" | "granular") {
            not_supported(faults, &path.child(MAP), map_type, &["atomic", "granular"]);
        }
    }
    let items = at(schema, "items");
    if let Some(list_type) = list_type {
        if !of_type(faults, schema, "array", "must be array if x-kubernetes-list-type is specified", path) {
        } else if options.atomic_sets && list_type == "set" && items.is_object() {
            item_of_set(faults, items, &path.child("items"));
        }
        if !matches!(list_type, "atomic" | "set" | "map") {
            not_supported(faults, &path.child(LIST), list_type, &["atomic", "set", "map"]);
        }
    }
    let keys_said = list(schema, KEYS);
    if !keys_said.is_empty() {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list_type {
            None => faults.required(&path.child(LIST), why),
            Some("map") => {}
            Some(other) => invalid_text(faults, &path.child(LIST), other, why),
        }
    }
    if list_type == Some("map") {
        map(faults, schema, keys_said, path);
    }
    if options.list_keys {
        keys(faults, schema, path);
    }
}

/// Whether a schema is of the type that what it says is for.
fn of_type(faults: &mut Faults, schema: &Value, wanted: &str, why: &str, path: &Path<'_>) -> bool {
    let (type_, field) = (text(schema, "type"), path.child("type"));
    match type_ {
        "" => faults.required(&field, why),
        _ if type_ == wanted => return true,
        _ => invalid_text(faults, &field, type_, why),
    }
    false
}

fn item_of_set(faults: &mut Faults, items: &Value, path: &Path<'_>) {
    let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
    // Upstream shows the list type in both cases.
    let shown = pointer(items, LIST);
    match text(items, "type") {
        "array" if has(items, LIST) && text(items, LIST) != "atomic" => {
            invalid_shown(faults, &path.child(LIST), &shown, why);
        }
        "object" if text(items, MAP) != "atomic" => invalid_shown(faults, &path.child(MAP), &shown, why),
        _ => {}
    }
}

fn map(faults: &mut Faults, schema: &Value, keys: &[Value], path: &Path<'_>) {
    let items = at(schema, "items");
    let (field, keys_at) = (path.child("items"), path.child(KEYS));
    if keys.is_empty() {
        faults.required(&keys_at, "must not be empty if x-kubernetes-list-type is map");
    }
    if items.is_null() {
        faults.required(&field, "must have a schema if x-kubernetes-list-type is map");
    }
    if items.is_array() {
        let why = "must only have a single schema if x-kubernetes-list-type is map";
        invalid_shown(faults, &field, &shown::schema_or_array(items), why);
    }
    if !items.is_object() {
        return;
    }
    let type_ = text(items, "type");
    if type_ != "object" {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        return invalid_text(faults, &field.child("type"), type_, why);
    }
    let (fields, properties) = (at(items, "properties"), field.child("properties"));
    let shown = shown::json(&json!(keys));
    let mut seen = HashSet::new();
    for key in keys {
        let key = key.as_str().unwrap_or_default();
        match fields.get(key) {
            Some(of_key) if matches!(text(of_key, "type"), "array" | "object") => {
                let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                invalid_text(faults, &properties.key(key).child("type"), type_, why);
            }
            Some(_) => {}
            None => invalid_shown(faults, &keys_at, &shown, "entries must all be names of item properties"),
        }
        if !seen.insert(key) {
            invalid_shown(faults, &keys_at, &shown, "must not contain duplicate entries");
        }
    }
}

/// Items of sets and keyed lists, and their keys, must be there.
pub(super) fn keys(faults: &mut Faults, schema: &Value, path: &Path<'_>) {
    let (items, list_type) = (at(schema, "items"), text(schema, LIST));
    if !items.is_object() || !matches!(list_type, "set" | "map") {
        return;
    }
    let field = path.child("items");
    if is_true(items, "nullable") {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        faults.forbidden(&field.child("nullable"), &why);
    }
    if list_type != "map" {
        return;
    }
    let required: HashSet<&str> = list(items, "required").iter().filter_map(Value::as_str).collect();
    let properties = field.child("properties");
    for key in list(schema, KEYS) {
        let key = key.as_str().unwrap_or_default();
        let Some(of_key) = at(items, "properties").get(key) else { continue };
        let path = properties.key(key);
        if !required.contains(key) && !has(of_key, "default") {
            let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            faults.required(&path.child("default"), why);
        }
        if is_true(of_key, "nullable") {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            faults.forbidden(&path.child("nullable"), why);
        }
    }
}
