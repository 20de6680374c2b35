//! Reads the text form of a schema.
//!
//! A line without indentation opens a type. An indented line is a field, in upstream's order: its name, its shape and facts:
//!
//! ```text
//! io.k8s.api.core.v1.Container
//!  env [].io.k8s.api.core.v1.EnvVar #7 list=map keys=name patch=merge merge-key=name
//!  name string #1 required
//! ```
//!
//! A shape is a word (`string`, `int32`, `any`, …), `.` and the name of a type, or `[]` (list of) or `{}`
//! (map of) before a shape. `#` gives the protobuf field number, `#2.19` one in an inlined message; `go=value`
//! and `go=omitempty` say that a field which is not set is on the wire as its zero value, and whether JSON then
//! has it too; `wrapped` that its list is a message of its own; `off` that the feature it belongs to is off.

use std::collections::HashMap;

use super::{Alternative, Field, ListType, Message, ObjectType, Presence, Schema, Shape, TypeId};

#[derive(Debug, thiserror::Error)]
#[error("schema line {line}: {what}")]
pub struct ParseError {
    line: usize,
    what: String,
}

pub(super) fn parse(text: &str) -> Result<Schema, ParseError> {
    let lines = || text.lines().enumerate().filter(|(_, l)| !l.is_empty() && !l.starts_with('#'));
    let mut by_name = HashMap::new();
    for (_, line) in lines().filter(|(_, l)| !l.starts_with(' ')) {
        let id = TypeId(by_name.len() as u32);
        by_name.insert(Box::from(line), id);
    }
    let mut types: Vec<(Box<str>, Vec<Field>)> = Vec::with_capacity(by_name.len());
    for (number, line) in lines() {
        let error = |what: String| ParseError { line: number + 1, what };
        if !line.starts_with(' ') {
            types.push((line.into(), Vec::new()));
            continue;
        }
        let Some((_, fields)) = types.last_mut() else { return Err(error("a field before any type".into())) };
        fields.push(field(line, &by_name).map_err(error)?);
    }
    let types = types
        .into_iter()
        .map(|(name, mut fields)| {
            let mut places: Vec<u16> = (0..).take(fields.len()).collect();
            places.sort_by(|a, b| fields[usize::from(*a)].name.cmp(&fields[usize::from(*b)].name));
            // Of each place in the text, where the field is once they are sorted.
            let mut order = vec![0; fields.len()];
            for (at, place) in (0..).zip(&places) {
                order[usize::from(*place)] = at;
            }
            fields.sort_by(|a, b| a.name.cmp(&b.name));
            let message = Message::of(&fields);
            ObjectType { name, atomic: false, fields: fields.into(), order: order.into(), message }
        })
        .collect();
    Ok(Schema { types, by_name, ..Schema::default() })
}

fn field(line: &str, by_name: &HashMap<Box<str>, TypeId>) -> Result<Field, String> {
    let mut words = line.split_whitespace();
    let name = words.next().ok_or("a field without a name")?;
    let shape = shape(words.next().ok_or("a field without a shape")?, by_name)?;
    let mut field = Field {
        name: name.into(),
        node: shape.into(),
        required: false,
        tag: Box::default(),
        presence: Presence::Optional,
        wrapped: false,
        off: false,
        patch_merge: false,
        patch_replace: false,
        patch_retain_keys: false,
        merge_key: None,
    };
    for word in words {
        fact(&mut field, word)?;
    }
    Ok(field)
}

fn fact(field: &mut Field, word: &str) -> Result<(), String> {
    if let Some(tags) = word.strip_prefix('#') {
        let numbers = tags.split('.').map(str::parse::<u16>).collect::<Result<Box<[u16]>, _>>();
        field.tag = numbers.map_err(|_| format!("a field number in {word:?}"))?;
        return Ok(());
    }
    match word.split_once('=') {
        None if word == "required" => field.required = true,
        None if word == "wrapped" => field.wrapped = true,
        None if word == "off" => field.off = true,
        Some(("go", "value")) => field.presence = Presence::Value,
        Some(("go", "omitempty")) => field.presence = Presence::OmitEmpty,
        Some(("list", kind)) => {
            field.node.list = match kind {
                "map" => ListType::Map,
                "set" => ListType::Set,
                "atomic" => ListType::Atomic,
                _ => return Err(format!("list type {kind:?}")),
            }
        }
        Some(("keys", keys)) => field.node.keys = keys.split(',').map(Box::from).collect(),
        Some(("patch", strategies)) => {
            for strategy in strategies.split(',') {
                match strategy {
                    "merge" => field.patch_merge = true,
                    "retainKeys" => field.patch_retain_keys = true,
                    "replace" => field.patch_replace = true,
                    _ => return Err(format!("patch strategy {strategy:?}")),
                }
            }
        }
        Some(("merge-key", key)) => field.merge_key = Some(key.into()),
        Some(("map", kind)) => field.node.atomic_map = kind == "atomic",
        Some(("default", value)) => {
            let value = serde_json::from_str(value).map_err(|e| format!("default {value:?}: {e}"))?;
            // What Go leaves out of its JSON is no default here.
            let omits_zero = field.presence == Presence::OmitEmpty;
            field.node.default = Some(value).filter(|v| *v != "" && !(omits_zero && *v == 0));
        }
        _ => return Err(format!("fact {word:?}")),
    }
    Ok(())
}

fn shape(text: &str, by_name: &HashMap<Box<str>, TypeId>) -> Result<Shape, String> {
    if let Some(inner) = text.strip_prefix("[]") {
        return Ok(Shape::List(Box::new(shape(inner, by_name)?.into())));
    }
    if let Some(inner) = text.strip_prefix("{}") {
        return Ok(Shape::Map(Box::new(shape(inner, by_name)?.into())));
    }
    if let Some(name) = text.strip_prefix('.') {
        return by_name.get(name).map(|id| Shape::Object(*id)).ok_or_else(|| format!("unknown type {name}"));
    }
    Ok(match text {
        "string" => Shape::String,
        "int32" => Shape::Int32,
        "int64" => Shape::Int64,
        "bool" => Shape::Bool,
        "double" => Shape::Double,
        "bytes" => Shape::Bytes,
        "quantity" => Shape::Quantity,
        "intstr" => Shape::IntOrString,
        "time" => Shape::Time,
        "microtime" => Shape::MicroTime,
        "duration" => Shape::Duration,
        "any" => Shape::Any,
        "schema-or-bool" => schema_or(Alternative::Bool, by_name)?,
        "schema-or-array" => schema_or(Alternative::Schemas, by_name)?,
        "schema-or-strings" => schema_or(Alternative::Strings, by_name)?,
        _ => return Err(format!("unknown shape {text:?}")),
    })
}

fn schema_or(alternative: Alternative, by_name: &HashMap<Box<str>, TypeId>) -> Result<Shape, String> {
    const SCHEMA: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
    by_name
        .get(SCHEMA)
        .map(|id| Shape::SchemaOr(alternative, *id))
        .ok_or_else(|| format!("unknown type {SCHEMA}"))
}
