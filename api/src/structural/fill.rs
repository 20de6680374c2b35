//! Defaults of custom resources.
//!
//! Source: `pkg/apiserver/schema/defaulting/algorithm.go` of apiextensions-apiserver.

use serde_json::Value;

use super::part::{custom, declared, is_metadata, items, said, values};
use crate::Object;
use crate::schema::{Node, Schema, Shape};

/// Fills in what the schema has defaults for: where their parents are, and in place of nulls that may not be.
pub fn default(schema: &Schema, object: &mut Object) {
    if let Some(root) = schema.root() {
        fill(schema, root, object);
    }
}

/// Parents before children, so that a default that is an object gets defaults of its own.
fn fill(schema: &Schema, node: &Node, value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Shape::Object(id) = node.shape {
                for field in &schema.get(id).fields {
                    let Some(default) = &field.node.default else { continue };
                    let is_wanted = map
                        .get(&*field.name)
                        .is_none_or(|value| value.is_null() && !custom(&field.node).nullable);
                    if is_wanted {
                        map.insert(field.name.to_string(), default.clone());
                    }
                }
            }
            for (name, value) in map.iter_mut() {
                if let Some(field) = declared(schema, node, name) {
                    if !is_metadata(schema, field) {
                        fill(schema, field, value);
                    }
                } else if let Some(values) = values(node).and_then(said) {
                    fill_null(schema, values, value);
                }
            }
        }
        Value::Array(all) => {
            if let Some(items) = items(node) {
                all.iter_mut().for_each(|value| fill_null(schema, items, value));
            }
        }
        _ => {}
    }
}

/// In a list or map a default only stands for null.
fn fill_null(schema: &Schema, node: &Node, value: &mut Value) {
    if value.is_null() && !custom(node).nullable {
        *value = node.default.clone().unwrap_or_default();
    }
    fill(schema, node, value);
}
