//! Defaults, as upstream sets them on decoding.

use serde_json::Value;

use crate::schema::{Schema, Shape};
use crate::{Kind, Object};

/// Fills in the defaults of `kind`: those that stand in the schema, then those of its strategy.
pub fn apply(kind: &Kind, object: &mut Object) {
    kind.write(object);
    walk(&kind.schema.schema, &Shape::Object(kind.schema.id), object);
    kind.strategy.default(object);
}

/// Parents before children, so that a default that is an object gets defaults of its own.
fn walk(schema: &Schema, shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Object(id), Value::Object(map)) => {
            for field in &schema.get(*id).fields {
                if let Some(default) = &field.default
                    && map.get(&*field.name).is_none_or(|value| field.is_unset(value))
                {
                    map.insert(field.name.as_ref().into(), default.clone());
                }
                if let Some(value) = map.get_mut(&*field.name) {
                    walk(schema, &field.shape, value);
                }
            }
        }
        (Shape::List(inner), Value::Array(items)) => items.iter_mut().for_each(|v| walk(schema, inner, v)),
        (Shape::Map(inner), Value::Object(map)) => map.values_mut().for_each(|v| walk(schema, inner, v)),
        _ => {}
    }
}
