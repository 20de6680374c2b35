//! What is equal, and what comes first.
//!
//! Source: the `Equal` and `Compare` of cel-go's types: numbers are compared by what they stand for.

use std::cmp::Ordering;

use crate::fault::Fault;
use crate::shape;
use crate::value::{List, Map, Value};

pub(crate) fn equal(a: &Value<'_>, b: &Value<'_>) -> bool {
    compared(a, b).unwrap_or(false)
}

/// The same, where what cannot be looked at is told: the first such part of `a`, if all before it is equal.
pub(crate) fn compared(a: &Value<'_>, b: &Value<'_>) -> Result<bool, Fault> {
    Ok(match (a, b) {
        (Value::Fault(fault), _) => return Err(fault.clone()),
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Text(a), Value::Text(b)) => a == b,
        (Value::Bytes(a), Value::Bytes(b)) => a == b,
        (Value::Duration(a), Value::Duration(b)) => a == b,
        (Value::Timestamp(a), Value::Timestamp(b)) => a.nanos == b.nanos,
        (Value::List(a), Value::List(b)) => return lists_compared(a, b),
        (Value::Map(a), Value::Map(b)) => return maps_compared(a, b),
        (Value::Optional(None), Value::Optional(None)) => true,
        (Value::Optional(Some(a)), Value::Optional(Some(b))) => return compared(a, b),
        (Value::Type(a), Value::Type(b)) => a.name() == b.name(),
        (Value::Library(a), Value::Library(b)) => a.equals(b),
        _ => numbers(a, b) == Some(Ordering::Equal),
    })
}

/// Whether all are; the first that is not, or cannot be told, decides.
pub(crate) fn all(mut parts: impl Iterator<Item = Result<bool, Fault>>) -> Result<bool, Fault> {
    parts.find(|part| !matches!(part, Ok(true))).unwrap_or(Ok(true))
}

/// Whether a value is one of a list. What cannot be told of an item matters only if it is none of the others.
pub(crate) fn is_among(value: &Value<'_>, list: &List<'_>) -> Result<bool, Fault> {
    let mut unknown = None;
    for item in list.iter() {
        match compared(&item, value) {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(fault) => _ = unknown.get_or_insert(fault),
        }
    }
    unknown.map_or(Ok(false), Err)
}

fn lists_compared(a: &List<'_>, b: &List<'_>) -> Result<bool, Fault> {
    if a.len() != b.len() {
        return Ok(false);
    }
    if let List::Shaped(items, shape) = a
        && let Some(is_same) = shape::same_elements(items, shape, b)
    {
        return is_same;
    }
    all(a.iter().zip(b.iter()).map(|(a, b)| compared(&a, &b)))
}

fn maps_compared(a: &Map<'_>, b: &Map<'_>) -> Result<bool, Fault> {
    if a.object() != b.object() || a.len() != b.len() {
        return Ok(false);
    }
    if let Map::Shaped(map, shape) = a {
        return shape::maps_compared(map, shape, b);
    }
    all(a.iter().map(|(key, value)| b.find(&key).map_or(Ok(false), |other| compared(&value, &other))))
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
