//! What is equal, and what comes first.
//!
//! Source: the `Equal` and `Compare` of cel-go's types: numbers are compared by what they stand for.

use std::cmp::Ordering;

use crate::fault::Fault;
use crate::shape;
use crate::value::{List, Map, Value};

pub(crate) fn equal(a: &Value<'_>, b: &Value<'_>) -> bool {
    match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Text(a), Value::Text(b)) => a == b,
        (Value::Bytes(a), Value::Bytes(b)) => a == b,
        (Value::Duration(a), Value::Duration(b)) => a == b,
        (Value::Timestamp(a), Value::Timestamp(b)) => a.nanos == b.nanos,
        (Value::List(a), Value::List(b)) => lists_equal(a, b),
        (Value::Map(a), Value::Map(b)) => maps_equal(a, b),
        (Value::Optional(None), Value::Optional(None)) => true,
        (Value::Optional(Some(a)), Value::Optional(Some(b))) => equal(a, b),
        (Value::Type(a), Value::Type(b)) => a.name() == b.name(),
        (Value::Library(a), Value::Library(b)) => a.equals(b),
        _ => numbers(a, b) == Some(Ordering::Equal),
    }
}

fn lists_equal(a: &List<'_>, b: &List<'_>) -> bool {
    if let List::Shaped(items, shape) = a
        && let Some(is_same) = shape::same_elements(items, shape, b)
    {
        return is_same;
    }
    a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| equal(&a, &b))
}

fn maps_equal(a: &Map<'_>, b: &Map<'_>) -> bool {
    if let Map::Shaped(map, shape) = a {
        return shape::maps_equal(map, shape, b);
    }
    a.len() == b.len() && a.iter().all(|(key, value)| b.find(&key).is_some_and(|other| equal(&value, &other)))
}

/// How two numbers stand to each other; `None` if one is no number, or not one that can be ordered.
fn numbers(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    Some(match (a, b) {
        (Value::Int(a), Value::Int(b)) => a.cmp(b),
        (Value::Uint(a), Value::Uint(b)) => a.cmp(b),
        (Value::Double(a), Value::Double(b)) => return a.partial_cmp(b),
        (Value::Int(a), Value::Uint(b)) => i128::from(*a).cmp(&i128::from(*b)),
        (Value::Uint(a), Value::Int(b)) => i128::from(*a).cmp(&i128::from(*b)),
        (Value::Double(a), Value::Int(b)) => return with_int(*a, *b),
        (Value::Int(a), Value::Double(b)) => return with_int(*b, *a).map(Ordering::reverse),
        (Value::Double(a), Value::Uint(b)) => return with_uint(*a, *b),
        (Value::Uint(a), Value::Double(b)) => return with_uint(*b, *a).map(Ordering::reverse),
        _ => return None,
    })
}

fn with_int(a: f64, b: i64) -> Option<Ordering> {
    match a {
        _ if a < i64::MIN as f64 => Some(Ordering::Less),
        _ if a > i64::MAX as f64 => Some(Ordering::Greater),
        _ => a.partial_cmp(&(b as f64)),
    }
}

fn with_uint(a: f64, b: u64) -> Option<Ordering> {
    match a {
        _ if a < 0.0 => Some(Ordering::Less),
        _ if a > u64::MAX as f64 => Some(Ordering::Greater),
        _ => a.partial_cmp(&(b as f64)),
    }
}

pub(crate) fn order(a: &Value<'_>, b: &Value<'_>) -> Result<Ordering, Fault> {
    let is_nan = |value: &Value<'_>| matches!(value, Value::Double(value) if value.is_nan());
    Ok(match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Text(a), Value::Text(b)) => a.cmp(b),
        (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
        (Value::Duration(a), Value::Duration(b)) => a.cmp(b),
        (Value::Timestamp(a), Value::Timestamp(b)) => a.nanos.cmp(&b.nanos),
        _ if is_nan(a) || is_nan(b) => return Err(Fault::other("NaN values cannot be ordered")),
        _ => return numbers(a, b).ok_or(Fault::NoSuchOverload),
    })
}
