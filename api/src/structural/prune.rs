//! What decoding makes of an object of a custom resource: fields that its schema does not have go, and nulls where none may be.
//!
//! Source: `pkg/apiserver/schema/pruning`, `defaulting/prunenulls.go` and `objectmeta/algorithm.go` of apiextensions-apiserver.

use serde_json::Value;

use super::metadata;
use super::part::{custom, declared, is_metadata, items, said, values};
use super::place::Place;
use crate::Object;
use crate::schema::{Node, Schema, Shape};

/// The names of unknown fields, as many as are worth saying.
#[derive(Default)]
pub(super) struct Unknown {
    names: Vec<String>,
    bytes: usize,
}

impl Unknown {
    const MAX_NAMES: usize = 100;
    /// Names may be as long as the body. The first is kept whatever its length.
    const MAX_BYTES: usize = 64 << 10;

    pub(super) fn note(&mut self, name: impl FnOnce() -> String) {
        if self.names.len() < Self::MAX_NAMES && self.bytes < Self::MAX_BYTES {
            let name = name();
            self.bytes += name.len();
            self.names.push(name);
        }
    }
}

/// Brings an object into the shape of its schema; the paths of the fields that went, in the order in which upstream tells them.
///
/// # Errors
/// What no object can be without, in upstream's words: `apiVersion` and `kind` that are no texts, `metadata` that is none; at the
/// root and in every embedded object.
pub fn prune(schema: &Schema, object: &mut Object) -> Result<Vec<String>, String> {
    let Some(root) = schema.root() else { return Ok(Vec::new()) };
    let Value::Object(fields) = object else { return Ok(Vec::new()) };
    let mut unknown = Unknown::default();
    let metadata = match fields.remove("metadata") {
        Some(value) => Some(metadata::coerce(value, &|name| format!("metadata.{name}"), &mut unknown)?),
        None => None,
    };
    let mut walk = Walk { schema, unknown: Unknown::default() };
    walk.prune(Some(root), object, IsRoot::Yes, &Place::Root);
    let mut pruned = walk.unknown.names;
    pruned.sort();
    drop_nulls(schema, root, object);
    let mut embedded = Unknown::default();
    coerce(schema, root, object, IsRoot::Yes, &Place::Root, &mut embedded)?;
    embedded.names.sort();
    if let (Some(metadata), Value::Object(fields)) = (metadata, object) {
        fields.insert("metadata".into(), metadata);
    }
    let mut names = unknown.names;
    names.append(&mut pruned);
    names.append(&mut embedded.names);
    Ok(names)
}

/// Prunes a value that may be an embedded object, but is none by itself; whether anything went.
pub(super) fn prune_value(schema: &Schema, value: &mut Value) -> bool {
    let mut walk = Walk { schema, unknown: Unknown::default() };
    walk.prune(schema.root(), value, IsRoot::No, &Place::Root);
    !walk.unknown.names.is_empty()
}

/// Brings the metadata of a value and of what is embedded in it into its form; whether anything went.
///
/// # Errors
/// The first fault, in upstream's words.
pub(super) fn coerce_value(schema: &Schema, value: &mut Value) -> Result<bool, String> {
    let mut unknown = Unknown::default();
    if let Some(root) = schema.root() {
        coerce(schema, root, value, IsRoot::No, &Place::Root, &mut unknown)?;
    }
    Ok(!unknown.names.is_empty())
}

/// The root is an object with `metadata` of its own, whatever its schema says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum IsRoot {
    Yes,
    No,
}

fn is_resource(node: &Node, is_root: IsRoot) -> bool {
    is_root == IsRoot::Yes || custom(node).embedded
}

pub(super) fn is_meta(name: &str) -> bool {
    matches!(name, "apiVersion" | "kind" | "metadata")
}

struct Walk<'s> {
    schema: &'s Schema,
    unknown: Unknown,
}

impl Walk<'_> {
    /// Without a node nothing is known, so that all fields of objects go.
    fn prune(&mut self, node: Option<&Node>, value: &mut Value, is_root: IsRoot, place: &Place<'_>) {
        let schema = self.schema;
        let keeps = node.is_some_and(|node| custom(node).preserve);
        match value {
            Value::Object(map) => map.retain(|name, value| {
                let place = &Place::Field(place, name);
                let known = match node {
                    Some(node) if is_resource(node, is_root) && is_meta(name) => return true,
                    Some(node) => declared_of(schema, node, name).map(Some),
                    None => None,
                };
                // The values of a map are known, even if nothing is known of them.
                let known = known.or_else(|| node.and_then(values).map(said));
                match known {
                    Some(node) => self.prune(node, value, IsRoot::No, place),
                    None if keeps => {}
                    None => self.unknown.note(|| place.dotted()),
                }
                known.is_some() || keeps
            }),
            Value::Array(values) => {
                let items = node.and_then(items);
                for (at, value) in values.iter_mut().enumerate() {
                    let place = &Place::Item(place, at);
                    match items {
                        Some(items) if keeps => self.keep(items, value, place),
                        None if keeps => {}
                        items => self.prune(items, value, IsRoot::No, place),
                    }
                }
            }
            _ => {}
        }
    }

    /// Within what is preserved: unknown fields stay, known ones are what their schemas say.
    fn keep(&mut self, node: &Node, value: &mut Value, place: &Place<'_>) {
        let schema = self.schema;
        match value {
            Value::Object(map) => {
                for (name, value) in map.iter_mut() {
                    if custom(node).embedded && is_meta(name) {
                        continue;
                    }
                    let place = &Place::Field(place, name);
                    if let Some(node) = declared_of(schema, node, name) {
                        self.prune(Some(node), value, IsRoot::No, place);
                    } else if let Some(values) = values(node) {
                        self.prune(said(values), value, IsRoot::No, place);
                    }
                }
            }
            Value::Array(values) => {
                if let Some(items) = items(node) {
                    for (at, value) in values.iter_mut().enumerate() {
                        self.keep(items, value, &Place::Item(place, at));
                    }
                }
            }
            _ => {}
        }
    }
}

/// What the schema says of a field; of metadata it may say what no node has.
fn declared_of<'s>(schema: &'s Schema, node: &'s Node, name: &str) -> Option<&'s Node> {
    declared(schema, node, name).filter(|field| !is_metadata(schema, field))
}

/// Nulls go where none may be and no default takes their place.
fn drop_nulls(schema: &Schema, node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => map.retain(|name, value| {
            let Some(node) = declared(schema, node, name).or_else(|| values(node).and_then(said)) else {
                return true;
            };
            if value.is_null() && !custom(node).nullable && node.default.is_none() {
                return false;
            }
            if !is_metadata(schema, node) {
                drop_nulls(schema, node, value);
            }
            true
        }),
        Value::Array(values) => {
            if let Some(items) = items(node) {
                values.iter_mut().for_each(|value| drop_nulls(schema, items, value));
            }
        }
        _ => {}
    }
}

/// `apiVersion`, `kind` and `metadata` of embedded objects become what those of all objects are.
fn coerce(
    schema: &Schema,
    node: &Node,
    value: &mut Value,
    is_root: IsRoot,
    place: &Place<'_>,
    unknown: &mut Unknown,
) -> Result<(), String> {
    match value {
        Value::Object(map) => {
            let is_embedded = is_root == IsRoot::No && custom(node).embedded;
            for (name, value) in map.iter_mut() {
                if is_embedded && is_meta(name) {
                    meta_field(value, &Place::Field(place, name), unknown)?;
                }
                if let Some(node) = declared_of(schema, node, name) {
                    coerce(schema, node, value, IsRoot::No, &Place::Field(place, name), unknown)?;
                } else if let Some(values) = values(node).and_then(said) {
                    coerce(schema, values, value, IsRoot::No, &Place::Key(place, name), unknown)?;
                }
            }
        }
        Value::Array(values) => {
            if let Some(items) = items(node) {
                for (at, value) in values.iter_mut().enumerate() {
                    coerce(schema, items, value, IsRoot::No, &Place::Item(place, at), unknown)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

fn meta_field(value: &mut Value, place: &Place<'_>, unknown: &mut Unknown) -> Result<(), String> {
    let Place::Field(_, name) = place else { return Ok(()) };
    if *name != "metadata" {
        return match value {
            Value::String(_) => Ok(()),
            other => Err(format!(
                "{}: Invalid value: {}: must be a string",
                place.field(),
                super::words::shown(other)
            )),
        };
    }
    let before = value.clone();
    match metadata::coerce(value.take(), &|name| format!("{}.{name}", place.field()), unknown) {
        Ok(metadata) => *value = metadata,
        Err(error) => {
            let shown = super::words::shown(&before);
            return Err(format!("{}: Invalid value: {shown}: {error}", place.field()));
        }
    }
    Ok(())
}

/// Whether a node is an object of its own kind.
pub(super) fn is_embedded(node: &Node) -> bool {
    custom(node).embedded && matches!(node.shape, Shape::Object(_))
}
