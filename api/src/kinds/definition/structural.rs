//! Whether a schema is structural: whether it says of each value, once, what shape it has, and elsewhere nothing but checks.
//!
//! Source: apiextensions-apiserver's `pkg/apiserver/schema`.

use serde_json::{Map, Value};

use super::faults::{invalid, invalid_text};
use super::pattern;
use super::view::at;
use crate::Cause;
use crate::kinds::builtin::rules::path::{Faults, Path, entries, has, is_true, list, text};

/// Whether a schema has none of the fields that structural schemas cannot have at all.
///
/// # Errors
/// Names the first such field.
pub(super) fn read(schema: &Value) -> Result<(), String> {
    const UNSUPPORTED: [(&str, &str); 7] = [
        ("id", "id"),
        ("$schema", "schema"),
        ("$ref", "$ref"),
        ("patternProperties", "patternProperties"),
        ("dependencies", "dependencies"),
        ("additionalItems", "additionalItems"),
        ("definitions", "definitions"),
    ];
    if schema.is_null() {
        return Ok(());
    }
    let is_said = |name: &str| match at(schema, name) {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Object(map) => !map.is_empty() || name == "additionalItems",
        _ => true,
    };
    if let Some((_, shown)) = UNSUPPORTED.into_iter().find(|(name, _)| is_said(name)) {
        return Err(format!("OpenAPIV3Schema '{shown}' is not supported"));
    }
    read(at(schema, "not"))?;
    for name in ["allOf", "anyOf", "oneOf"] {
        list(schema, name).iter().try_for_each(read)?;
    }
    if at(schema, "x-kubernetes-preserve-unknown-fields") == &Value::Bool(false) {
        return Err("internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined".into());
    }
    match at(schema, "items") {
        Value::Array(items) if !items.is_empty() => {
            return Err("OpenAPIV3Schema 'items' must be a schema, but is an array".into());
        }
        Value::Array(_) => {}
        one => read(one)?,
    }
    entries(schema, "properties").try_for_each(|(_, field)| read(field))?;
    match at(schema, "additionalProperties") {
        values @ Value::Object(_) => read(values),
        _ => Ok(()),
    }
}

pub(super) fn is_structural(schema: &Value) -> bool {
    read(schema).is_ok() && check(schema, &Path::ROOT).is_empty()
}

/// What is wrong with a schema that can be read, in the order of upstream's sentences.
pub(super) fn check(schema: &Value, path: &Path<'_>) -> Vec<Cause> {
    let mut faults = Faults::default();
    invariants(&mut faults, schema, Level::Root, path);
    completeness(&mut faults, schema, Some(schema), path, path);
    let mut causes = faults.causes;
    causes.sort_by_cached_key(|cause| format!("{}: {}", cause.field, cause.message));
    causes
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

pub(super) fn has_fields(schema: &Value) -> bool {
    at(schema, "properties").as_object().is_some_and(|fields| !fields.is_empty())
}

/// The schema of items, if it is one.
fn items(schema: &Value) -> Option<&Value> {
    Some(at(schema, "items")).filter(|items| items.is_object())
}

fn invariants(faults: &mut Faults, schema: &Value, level: Level, path: &Path<'_>) {
    let (type_, is_embedded) = (text(schema, "type"), is_true(schema, "x-kubernetes-embedded-resource"));
    match items(schema) {
        Some(items) => invariants(faults, items, Level::Item, &path.child("items")),
        None if type_ == "array" => faults.required(&path.child("items"), "must be specified"),
        None => {}
    }
    let properties = path.child("properties");
    for (name, field) in entries(schema, "properties") {
        invariants(faults, field, Level::Field, &properties.key(name));
    }
    let values = at(schema, "additionalProperties");
    let values_at = path.child("additionalProperties");
    if !values.is_null() && level == Level::Root {
        faults.forbidden(&values_at, "must not be used at the root");
    }
    if values.is_object() {
        invariants(faults, values, Level::Field, &values_at);
    }
    int_or_string(faults, schema, path);
    let (any_of, all_of) = (is_int_or_string(schema), all_of_is_int_or_string(schema));
    checks(faults, schema, any_of, all_of, path);
    types(faults, schema, level, path);
    if is_embedded && !values.is_null() {
        faults.forbidden(&values_at, "must not be used if x-kubernetes-embedded-resource is set");
    }
    if level == Level::Root && !type_.is_empty() && type_ != "object" {
        invalid_text(faults, &path.child("type"), type_, "must be object at the root");
    }
    resource(faults, schema, level, path);
    let preserves = is_true(schema, "x-kubernetes-preserve-unknown-fields");
    if is_embedded && !preserves && !has_fields(schema) {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        faults.required(&properties, why);
    }
}

fn types(faults: &mut Faults, schema: &Value, level: Level, path: &Path<'_>) {
    let (type_, field) = (text(schema, "type"), path.child("type"));
    if is_true(schema, "x-kubernetes-embedded-resource") && type_ != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        match type_ {
            "" => faults.required(&field, why),
            _ => invalid_text(faults, &field, type_, why),
        }
        return;
    }
    let needs_none = ["x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"];
    if type_.is_empty() && !needs_none.iter().any(|name| is_true(schema, name)) {
        faults.required(
            &field,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        );
    }
}

fn int_or_string(faults: &mut Faults, schema: &Value, path: &Path<'_>) {
    if !is_true(schema, "x-kubernetes-int-or-string") {
        return;
    }
    for name in ["x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"] {
        if is_true(schema, name) {
            let why = "must be false if x-kubernetes-int-or-string is true";
            invalid(faults, &path.child(name), &Value::Bool(true), why);
        }
    }
}

/// Of a resource, `metadata` is known.
fn resource(faults: &mut Faults, schema: &Value, level: Level, path: &Path<'_>) {
    let is_resource = level == Level::Root || is_true(schema, "x-kubernetes-embedded-resource");
    let (fields, properties) = (at(schema, "properties"), path.child("properties"));
    for name in ["kind", "apiVersion"] {
        let Some(field) = fields.get(name).filter(|_| is_resource) else { continue };
        if text(field, "type") != "string" {
            let (path, type_) = (properties.key(name), text(field, "type"));
            invalid_text(faults, &path.child("type"), type_, "must be string");
        }
    }
    let Some(metadata) = fields.get("metadata") else { return };
    let path = properties.key("metadata");
    if is_resource && text(metadata, "type") != "object" {
        invalid_text(faults, &path.child("type"), text(metadata, "type"), "must be object");
    }
    if level == Level::Root && !restricts_names_only(metadata) {
        let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        faults.forbidden(&path, why);
    }
}

/// What is empty says nothing, but for lists that Go can tell from none.
fn restricts_names_only(metadata: &Value) -> bool {
    let says_nothing = |(name, value): (&String, &Value)| match name.as_str() {
        "type" | "default" => true,
        "properties" => {
            let fields = value.as_object();
            fields.is_none_or(|fields| fields.keys().all(|name| name == "name" || name == "generateName"))
        }
        "allOf" | "anyOf" | "oneOf" | "enum" => value.as_array().is_none_or(Vec::is_empty),
        "patternProperties" | "dependencies" | "definitions" => true,
        "additionalProperties" => value.is_null(),
        _ => matches!(value, Value::Null | Value::Bool(false)) || value == "",
    };
    metadata.as_object().is_some_and(|map| map.iter().all(says_nothing))
}

/// Whether `anyOf` says `integer` or `string`, and nothing else.
fn is_int_or_string(schema: &Value) -> bool {
    let is_just = |schema: &Value, type_: &str| {
        let is_zero = |value: &Value| matches!(value, Value::Null | Value::Bool(false)) || value == "";
        let says = |(name, value): (&String, &Value)| name == "type" || is_zero(value);
        text(schema, "type") == type_ && schema.as_object().is_some_and(|map| map.iter().all(says))
    };
    matches!(list(schema, "anyOf"), [one, other] if is_just(one, "integer") && is_just(other, "string"))
}

fn all_of_is_int_or_string(schema: &Value) -> bool {
    list(schema, "allOf").first().is_some_and(is_int_or_string)
}

/// The checks of a schema. Some of them say types all the same.
fn checks(faults: &mut Faults, schema: &Value, skip_any_of: bool, skip_first_all_of: bool, path: &Path<'_>) {
    let each = |faults: &mut Faults, name: &str, skips: &dyn Fn(usize) -> bool| {
        let field = path.child(name);
        for (index, part) in list(schema, name).iter().enumerate() {
            nested(faults, part, skips(index), &field.index(index));
        }
    };
    if !skip_any_of {
        each(faults, "anyOf", &|_| false);
    }
    each(faults, "allOf", &|index| skip_first_all_of && index == 0);
    each(faults, "oneOf", &|_| false);
    if has(schema, "not") {
        nested(faults, at(schema, "not"), false, &path.child("not"));
    }
    let expression = text(schema, "pattern");
    if let Err(why) = pattern::check(expression) {
        let why = format!("must be a valid regular expression, but isn't: {why}");
        invalid_text(faults, &path.child("pattern"), expression, &why);
    }
}

fn nested(faults: &mut Faults, schema: &Value, skip_any_of: bool, path: &Path<'_>) {
    const EMPTY: &str = "must be empty to be structural";
    const UNDEFINED: &str = "must be undefined to be structural";
    const FALSE: &str = "must be false to be structural";
    checks(faults, schema, skip_any_of, false, path);
    if let Some(items) = items(schema) {
        nested(faults, items, false, &path.child("items"));
    }
    let properties = path.child("properties");
    for (name, field) in entries(schema, "properties") {
        nested(faults, field, false, &properties.key(name));
    }
    let forbid = |faults: &mut Faults, name: &str, is_said: bool, why: &str| {
        if is_said {
            faults.forbidden(&path.child(name), why);
        }
    };
    let is_text = |name: &str| !text(schema, name).is_empty();
    let is_listed = |name: &str| !list(schema, name).is_empty();
    forbid(faults, "type", is_text("type"), EMPTY);
    let values = at(schema, "additionalProperties");
    forbid(faults, "additionalProperties", values.is_object() || values == &Value::Bool(true), UNDEFINED);
    forbid(faults, "default", has(schema, "default"), UNDEFINED);
    forbid(faults, "title", is_text("title"), EMPTY);
    forbid(faults, "description", is_text("description"), EMPTY);
    for name in [
        "nullable",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-int-or-string",
    ] {
        forbid(faults, name, is_true(schema, name), FALSE);
    }
    forbid(faults, "x-kubernetes-list-map-keys", is_listed("x-kubernetes-list-map-keys"), EMPTY);
    for name in ["x-kubernetes-list-type", "x-kubernetes-map-type"] {
        forbid(faults, name, has(schema, name), UNDEFINED);
    }
    forbid(faults, "x-kubernetes-validations", is_listed("x-kubernetes-validations"), EMPTY);
    if at(schema, "properties").get("metadata").is_some() {
        faults.forbidden(&properties.key("metadata"), "must not be specified in a nested context");
    }
}

/// What checks say something of must be there. `said_at` is where they stand.
fn completeness(
    faults: &mut Faults,
    checks: &Value,
    structure: Option<&Value>,
    path: &Path<'_>,
    said_at: &Path<'_>,
) {
    if has(checks, "not") {
        nested_completeness(faults, at(checks, "not"), structure, path, &said_at.child("not"));
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        let field = said_at.child(name);
        for (index, part) in list(checks, name).iter().enumerate() {
            nested_completeness(faults, part, structure, path, &field.index(index));
        }
    }
}

fn nested_completeness(
    faults: &mut Faults,
    checks: &Value,
    structure: Option<&Value>,
    path: &Path<'_>,
    said_at: &Path<'_>,
) {
    let Some(structure) = structure else {
        return faults.required(path, &format!("because it is defined in {said_at}"));
    };
    completeness(faults, checks, Some(structure), path, said_at);
    if let Some(inner) = items(checks) {
        nested_completeness(faults, inner, items(structure), &path.child("items"), &said_at.child("items"));
    }
    let nothing = Map::new();
    let fields = at(structure, "properties").as_object().unwrap_or(&nothing);
    let (properties, said_properties) = (path.child("properties"), said_at.child("properties"));
    for (name, inner) in entries(checks, "properties") {
        let field = Some(fields).and_then(|fields| fields.get(name));
        nested_completeness(faults, inner, field, &properties.key(name), &said_properties.key(name));
    }
}
