//! The fields of an object that its `scale` is made of.
//!
//! Source: `ValidateScaleSpec` and `ValidateScaleStatus` of apiextensions-apiserver's `pkg/registry/customresource`, and the words of
//! apimachinery's `unstructured`.

use serde_json::Value;

use super::words;
use crate::kinds::Scaled;
use crate::{Cause, Object};

pub(super) fn of_spec(object: &Object, scale: &Scaled) -> Vec<Cause> {
    replicas(object, &scale.wanted).into_iter().collect()
}

pub(super) fn of_status(object: &Object, scale: &Scaled) -> Vec<Cause> {
    let selector = scale.selector.as_deref().and_then(|path| {
        let fault = match find(object, path) {
            Err(fault) => fault,
            Ok(None | Some(Value::String(_))) => return None,
            Ok(Some(other)) => mistaken(path, other, "string"),
        };
        Some(invalid(path, "\"\"", &fault))
    });
    replicas(object, &scale.counted).into_iter().chain(selector).collect()
}

fn replicas(object: &Object, path: &[Box<str>]) -> Option<Cause> {
    let found = match find(object, path) {
        Ok(found) => found?,
        Err(fault) => return Some(invalid(path, "0", &fault)),
    };
    match found.as_i64() {
        None => Some(invalid(path, "0", &mistaken(path, found, "int64"))),
        Some(n) if n < 0 => Some(invalid(path, &n.to_string(), "should be a non-negative integer")),
        Some(n) if n > i64::from(i32::MAX) => {
            Some(invalid(path, &n.to_string(), &format!("should be less than or equal to {}", i32::MAX)))
        }
        Some(_) => None,
    }
}

/// What lies at a path; nothing below null, a fault below what has no fields.
fn find<'o>(object: &'o Object, path: &[Box<str>]) -> Result<Option<&'o Value>, String> {
    let mut at = object;
    for (n, name) in path.iter().enumerate() {
        at = match at {
            Value::Null => return Ok(None),
            Value::Object(map) => match map.get(&**name) {
                Some(value) => value,
                None => return Ok(None),
            },
            other => return Err(mistaken(&path[..=n], other, "map[string]interface{}")),
        };
    }
    Ok(Some(at))
}

fn written(path: &[Box<str>]) -> String {
    format!(".{}", path.join("."))
}

fn mistaken(path: &[Box<str>], value: &Value, wanted: &str) -> String {
    let (text, type_) = (words::plain(value), words::go_type(value));
    format!("{} accessor error: {text} is of the type {type_}, expected {wanted}", written(path))
}

fn invalid(path: &[Box<str>], shown: &str, fault: &str) -> Cause {
    Cause::new("FieldValueInvalid", written(path), format!("Invalid value: {shown}: {fault}"))
}
