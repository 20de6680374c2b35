//! `metadata` of custom resources and of the objects that are embedded in them: the Go type, whatever else the schema says.
//!
//! Source: `pkg/apiserver/schema/objectmeta` of apiextensions-apiserver; the words are those of Go's decoder.

use serde_json::{Map, Number, Value};

use super::part::OBJECT_META;
use super::prune::Unknown;
use crate::schema::{Field, Presence, Schema, Shape, TypeId};
use crate::time::{Moment, Precision};

/// The document as Go reads and writes it: without unknown fields, which are noted under the name that `named` gives them.
pub(super) fn coerce(
    mut metadata: Value,
    named: &dyn Fn(&str) -> String,
    unknown: &mut Unknown,
) -> Result<Value, String> {
    let schema = Schema::builtin();
    let Some(id) = schema.find(OBJECT_META) else { return Ok(metadata) };
    if metadata.is_null() {
        return Ok(Value::Object(Map::new()));
    }
    let mut walk = Walk { schema, named, unknown };
    walk.object(id, &mut metadata, &Path::Root)?;
    Ok(metadata)
}

enum Path<'p> {
    Root,
    Field(&'p Path<'p>, &'p str),
    Item(&'p Path<'p>, usize),
}

impl Path<'_> {
    /// With the places in lists, or only the fields, as Go names them.
    fn text(&self, with_items: bool) -> String {
        match self {
            Path::Root => String::new(),
            Path::Field(Path::Root, name) => (*name).into(),
            Path::Field(around, name) => format!("{}.{name}", around.text(with_items)),
            Path::Item(around, at) if with_items => format!("{}[{at}]", around.text(true)),
            Path::Item(around, _) => around.text(false),
        }
    }
}

struct Walk<'w> {
    schema: &'w Schema,
    named: &'w dyn Fn(&str) -> String,
    unknown: &'w mut Unknown,
}

impl Walk<'_> {
    fn object(&mut self, id: TypeId, value: &mut Value, path: &Path<'_>) -> Result<(), String> {
        let schema = self.schema;
        let type_ = schema.get(id);
        let Value::Object(map) = value else {
            return Err(match path {
                Path::Root => {
                    format!(
                        "json: cannot unmarshal {} into Go value of type v1.{}",
                        found(value),
                        type_.short_name()
                    )
                }
                path => mismatch(value, "ObjectMeta", path, &format!("v1.{}", type_.short_name())),
            });
        };
        let mut failed = None;
        map.retain(|name, value| {
            if failed.is_some() {
                return true;
            }
            let path = &Path::Field(path, name);
            let Some(field) = type_.field(name) else {
                self.unknown.note(|| (self.named)(&path.text(true)));
                return false;
            };
            if value.is_null() {
                return false;
            }
            match self.value(&field.node.shape, value, (type_.short_name(), field), path) {
                Ok(()) => !is_left_out(field, value),
                Err(error) => {
                    failed = Some(error);
                    true
                }
            }
        });
        for field in type_.fields.iter().filter(|field| field.required) {
            if !map.contains_key(&*field.name) {
                map.insert(field.name.to_string(), field.node.shape.zero());
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn value(
        &mut self,
        shape: &Shape,
        value: &mut Value,
        of: (&str, &Field),
        path: &Path<'_>,
    ) -> Result<(), String> {
        let wrong =
            |value: &Value| Err(mismatch(value, of.0, path, &go_type(shape, self.schema, &of.1.name)));
        match (shape, &mut *value) {
            (Shape::Object(id), value) => self.object(*id, value, path),
            (Shape::List(inner), Value::Array(items)) => {
                for (at, item) in items.iter_mut().enumerate() {
                    if item.is_null() {
                        *item = inner.shape.zero();
                    }
                    self.value(&inner.shape, item, of, &Path::Item(path, at))?;
                }
                Ok(())
            }
            (Shape::Map(inner), Value::Object(map)) => {
                for item in map.values_mut() {
                    if item.is_null() {
                        *item = inner.shape.zero();
                    }
                    self.value(&inner.shape, item, of, path)?;
                }
                Ok(())
            }
            (Shape::Time, Value::String(text)) => {
                let at = Moment::parse(text, Precision::Seconds).map_err(|error| error.to_string())?;
                *value = at.to_text(Precision::Seconds).into();
                Ok(())
            }
            (Shape::Time, other) => {
                Err(format!("json: cannot unmarshal {} into Go value of type string", found(other)))
            }
            (Shape::Int64, Value::Number(number)) => match whole(number) {
                Some(number) => {
                    *value = number.into();
                    Ok(())
                }
                None => wrong(value),
            },
            (Shape::String, Value::String(_)) | (Shape::Bool, Value::Bool(_)) | (Shape::Any, _) => Ok(()),
            (_, other) => wrong(other),
        }
    }
}

fn whole(number: &Number) -> Option<i64> {
    number.as_i64()
}

/// What Go leaves out of JSON.
fn is_left_out(field: &Field, value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty() && matches!(field.node.shape, Shape::Map(_)),
        Value::String(text) if field.node.shape == Shape::Time && field.presence == Presence::Value => {
            Moment::parse(text, Precision::Seconds).is_ok_and(Moment::is_zero)
        }
        value => field.omits(value),
    }
}

fn go_type(shape: &Shape, schema: &Schema, field: &str) -> String {
    match shape {
        Shape::List(inner) => format!("[]{}", go_type(&inner.shape, schema, field)),
        Shape::Map(inner) => format!("map[string]{}", go_type(&inner.shape, schema, field)),
        Shape::Object(id) => format!("v1.{}", schema.get(*id).short_name()),
        Shape::Bool => "bool".into(),
        Shape::Int64 => "int64".into(),
        _ if field == "uid" => "types.UID".into(),
        _ if field == "operation" => "v1.ManagedFieldsOperationType".into(),
        _ => "string".into(),
    }
}

fn mismatch(value: &Value, owner: &str, path: &Path<'_>, go_type: &str) -> String {
    let found = match value {
        Value::Number(number) if go_type == "int64" => {
            format!("number {}", super::words::json(&number.clone().into()))
        }
        other => found(other).into(),
    };
    format!(
        "json: cannot unmarshal {found} into Go struct field {owner}.{} of type {go_type}",
        path.text(false)
    )
}

fn found(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
