//! What the schema of a custom resource is to expressions: types, and how large values may be.
//!
//! Source: `SchemaDeclType` of apiserver's `pkg/cel/common`.

use std::sync::Arc;

use serde_json::Value;
use skiff_cel::{Shape, Type, Uniqueness};

use super::super::part::{Part, custom, is_metadata, said};
use crate::schema::{Checks, ListType, Node, Schema, Shape as Form};

/// As much may be in a request.
const MAX_REQUEST_BYTES: u64 = 3 << 20;
/// Without the quotes, brackets or braces around it.
const MAX_INNER_BYTES: u64 = MAX_REQUEST_BYTES - 2;
const MIN_TEXT_BYTES: u64 = 2;
const DATE_BYTES: u64 = 12;
const MIN_DATE_TIME_BYTES: u64 = 21;
const MIN_DURATION_BYTES: u64 = 3;
const MAX_TIME_BYTES: u64 = 32;
/// A code point may take as many.
const MAX_CHAR_BYTES: u64 = 4;

/// How often a value may stand in an object, if nothing else says so.
pub(super) fn max_cardinality(shape: &Shape) -> u64 {
    MAX_REQUEST_BYTES / (shape.min_bytes() + 1)
}

pub(super) fn limit(most: i64) -> u64 {
    u64::try_from(most).unwrap_or_default()
}

pub(super) fn of(schema: &Schema, node: &Node, is_resource: bool) -> Arc<Shape> {
    Arc::new(unshared(schema, node, is_resource).nullable(custom(node).nullable))
}

fn unshared(schema: &Schema, node: &Node, is_resource: bool) -> Shape {
    let said_here = custom(node);
    if node.shape == Form::IntOrString {
        let max = said_here.checks.max_length.map_or(MAX_INNER_BYTES, |most| limit(most) * MAX_CHAR_BYTES);
        return Shape::scalar(Type::Dyn, max, 1);
    }
    let checks = &said_here.checks;
    match (said_here.type_.as_deref(), &node.shape) {
        (Some("array"), Form::List(items)) if said(items).is_some() => {
            let shape = of(schema, items, custom(items).embedded);
            let max = checks.max_items.map_or(MAX_INNER_BYTES / (shape.min_bytes() + 1), limit);
            let uniqueness = match node.list {
                ListType::Atomic => Uniqueness::Ordered,
                ListType::Set => Uniqueness::Set,
                ListType::Map => Uniqueness::Keys(node.keys.clone()),
            };
            Shape::list(shape, uniqueness, max)
        }
        (Some("object"), Form::Map(values)) if said(values).is_some() => {
            let shape = of(schema, values, custom(values).embedded);
            // Besides the value there are at least the quotes of the key, a colon and a comma, and two bytes of the key.
            let max = checks.max_properties.map_or(MAX_INNER_BYTES / (shape.min_bytes() + 6), limit);
            Shape::map(shape, max)
        }
        (Some("object"), Form::Object(_)) => object(schema, node, is_resource),
        (Some("object"), _) => Shape::object([], 2),
        (type_, _) => scalar(type_.unwrap_or_default(), checks),
    }
}

fn scalar(type_: &str, checks: &Checks) -> Shape {
    let longest = checks.max_length.map(limit);
    match (type_, checks.format.as_deref()) {
        ("boolean", _) => Shape::scalar(Type::Bool, 0, 4),
        ("number", _) => Shape::scalar(Type::Double, 0, 1),
        ("integer", _) => Shape::scalar(Type::Int, 0, 1),
        ("string", Some("byte")) => {
            Shape::scalar(Type::Bytes, longest.unwrap_or(MAX_INNER_BYTES), MIN_TEXT_BYTES)
        }
        ("string", Some("duration")) => Shape::scalar(Type::Duration, MAX_TIME_BYTES, MIN_DURATION_BYTES),
        ("string", Some("date")) => Shape::day(DATE_BYTES),
        ("string", Some("date-time")) => Shape::scalar(Type::Timestamp, MAX_TIME_BYTES, MIN_DATE_TIME_BYTES),
        ("string", _) => {
            let of_values =
                || checks.one_of_values.iter().filter_map(Value::as_str).map(|text| text.len() as u64).max();
            let max = match longest {
                Some(longest) => longest.saturating_mul(MAX_CHAR_BYTES),
                None if checks.one_of_values.is_empty() => MAX_INNER_BYTES,
                None => of_values().unwrap_or_default(),
            };
            Shape::scalar(Type::String, max, MIN_TEXT_BYTES)
        }
        _ => Shape::unknown(),
    }
}

fn object(schema: &Schema, node: &Node, is_resource: bool) -> Shape {
    let Form::Object(id) = node.shape else { return Shape::unknown() };
    let all = &schema.get(id).fields;
    let has_own_meta = is_resource && says_all_of_meta(Part::Node(schema, node));
    let mut min_bytes = 2;
    let mut fields: Vec<(Box<str>, Arc<Shape>)> = Vec::with_capacity(all.len());
    for field in all {
        let is_implied = custom(&field.node).implied;
        let shape = match &*field.name {
            "apiVersion" | "kind" if is_resource && !has_own_meta => {
                Arc::new(scalar("string", &Checks::default()))
            }
            "metadata" if is_resource => metadata(Part::Node(schema, &field.node), has_own_meta),
            _ if is_implied && !is_resource => continue,
            _ => of(schema, &field.node, custom(&field.node).embedded),
        };
        if shape.is_seen() && field.required && field.node.default.is_none() {
            min_bytes += field.name.len() as u64 + shape.min_bytes() + 4;
        }
        fields.push((field.name.clone(), shape));
    }
    Shape::object(fields, min_bytes)
}

/// Whether the schema has all the fields that expressions see of `metadata` and its kind: then they are as it says.
fn says_all_of_meta(part: Part<'_>) -> bool {
    let is = |part: Option<Part<'_>>, type_: &str| {
        part.is_some_and(|part| matches!(part.types(), [t] if &**t == type_))
    };
    let metadata = part.field("metadata");
    is(part.field("kind"), "string")
        && is(part.field("apiVersion"), "string")
        && is(metadata, "object")
        && is(metadata.and_then(|metadata| metadata.field("name")), "string")
        && is(metadata.and_then(|metadata| metadata.field("generateName")), "string")
}

/// Of `metadata` expressions see the names.
fn metadata(part: Part<'_>, is_own: bool) -> Arc<Shape> {
    let nothing = Checks::default();
    let names = ["name", "generateName"].map(|name| {
        let own = if is_own { part.field(name) } else { None };
        (Box::from(name), Arc::new(scalar("string", own.map_or(&nothing, Part::checks))))
    });
    Arc::new(Shape::object(names, 2))
}

/// Of a part below `metadata`, which has no node of its own.
pub(super) fn of_part(part: Part<'_>, is_resource: bool) -> Arc<Shape> {
    match part {
        Part::Node(schema, node) if is_metadata(schema, node) => metadata(part, true),
        Part::Node(schema, node) => of(schema, node, is_resource),
        Part::Nested(nested) => Arc::new(scalar(nested.type_.as_deref().unwrap_or_default(), &nested.checks)),
    }
}
