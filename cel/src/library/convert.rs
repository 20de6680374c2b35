//! From one type to another.

use super::print::double;
use super::{Function, Host, Library, no_overload, time};
use crate::fault::Fault;
use crate::plan::Call;
use crate::run::Run;
use crate::types::Type;
use crate::value::{Timestamp, Value};

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "type" => type_of,
        "dyn" => |_, args, _| args.first().cloned().ok_or(Fault::NoSuchOverload),
        "bool" | "bytes" | "double" | "duration" | "int" | "string" | "timestamp" | "uint" => convert,
        _ => return None,
    })
}

fn type_of<'a>(_: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    args.first().map(|value| Value::Type(value.type_of())).ok_or(Fault::NoSuchOverload)
}

fn convert<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let [value] = args else { return Err(Fault::NoSuchOverload) };
    let converted = match &*call.name {
        "bool" => to_bool(value),
        "bytes" => to_bytes(value),
        "double" => to_double(value),
        "duration" => to_duration(value),
        "int" => to_int(value),
        "string" => to_text(value),
        "timestamp" => to_timestamp(value),
        _ => to_uint(value),
    };
    converted?.ok_or_else(|| {
        if !matches!(value, Value::Text(_)) {
            return no_overload(call, args);
        }
        let to = match &*call.name {
            "duration" => Type::Duration.name().to_string(),
            "timestamp" => Type::Timestamp.name().to_string(),
            name => name.to_string(),
        };
        Fault::conversion(value.type_of().name(), &to)
    })
}

/// `None` is what cannot be converted, without more to be said.
type Converted<'a> = Result<Option<Value<'a>>, Fault>;

fn to_bool<'a>(value: &Value<'a>) -> Converted<'a> {
    Ok(match value {
        Value::Bool(value) => Some(Value::Bool(*value)),
        Value::Text(text) => match &**text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(Value::Bool(true)),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(Value::Bool(false)),
            _ => None,
        },
        _ => None,
    })
}

fn to_bytes<'a>(value: &Value<'a>) -> Converted<'a> {
    Ok(match value {
        Value::Bytes(_) => Some(value.clone()),
        Value::Text(text) => Some(Value::Bytes(text.as_bytes().into())),
        _ => None,
    })
}

fn to_double<'a>(value: &Value<'a>) -> Converted<'a> {
    Ok(match value {
        Value::Double(_) => Some(value.clone()),
        Value::Int(value) => Some(Value::Double(*value as f64)),
        Value::Uint(value) => Some(Value::Double(*value as f64)),
        Value::Text(text) => match text.parse::<f64>() {
            // Digits beyond what there is are refused; a word for infinity is not.
            Ok(number) if number.is_finite() || !text.contains(|c: char| c.is_ascii_digit()) => {
                Some(Value::Double(number))
            }
            _ => None,
        },
        _ => None,
    })
}

fn to_duration<'a>(value: &Value<'a>) -> Converted<'a> {
    Ok(match value {
        Value::Duration(_) => Some(value.clone()),
        // Upstream declares this, and cannot do it.
        Value::Int(_) => return Err(Fault::conversion(Type::Int.name(), Type::Duration.name())),
        Value::Text(text) => time::duration(text).map(Value::Duration),
        _ => None,
    })
}

fn to_int<'a>(value: &Value<'a>) -> Converted<'a> {
    const OVERFLOW: Fault = Fault::Overflow("integer");
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    Ok(match value {
        Value::Int(_) => Some(value.clone()),
        Value::Double(number) if *number > -LIMIT && *number < LIMIT => Some(Value::Int(*number as i64)),
        Value::Double(_) => return Err(OVERFLOW),
        Value::Uint(number) => Some(Value::Int(i64::try_from(*number).map_err(|_| OVERFLOW)?)),
        Value::Duration(nanos) => Some(Value::Int(*nanos)),
        Value::Timestamp(time) => Some(Value::Int(time.nanos.div_euclid(1_000_000_000) as i64)),
        Value::Text(text) => text.parse().ok().map(Value::Int),
        _ => None,
    })
}

fn to_uint<'a>(value: &Value<'a>) -> Converted<'a> {
    const OVERFLOW: Fault = Fault::Overflow("unsigned integer");
    const LIMIT: f64 = 18_446_744_073_709_551_616.0;
    Ok(match value {
        Value::Uint(_) => Some(value.clone()),
        Value::Double(number) if *number >= 0.0 && *number < LIMIT => Some(Value::Uint(*number as u64)),
        Value::Double(_) => return Err(OVERFLOW),
        Value::Int(number) => Some(Value::Uint(u64::try_from(*number).map_err(|_| OVERFLOW)?)),
        Value::Text(text) if !text.starts_with('+') => text.parse().ok().map(Value::Uint),
        _ => None,
    })
}

pub(super) fn to_text<'a>(value: &Value<'a>) -> Converted<'a> {
    Ok(Some(match value {
        Value::Text(_) => value.clone(),
        Value::Bool(value) => Value::text(value.to_string()),
        Value::Int(value) => Value::text(value.to_string()),
        Value::Uint(value) => Value::text(value.to_string()),
        Value::Double(value) => Value::text(double(*value)),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Value::text(text),
            Err(_) => return Err(Fault::other("invalid UTF-8 in bytes, cannot convert to string")),
        },
        Value::Duration(nanos) => Value::text(time::duration_text(*nanos)),
        Value::Timestamp(at) => Value::text(time::timestamp_text(*at)),
        Value::Type(type_) => Value::text(type_.name()),
        Value::Library(Library::Ip(ip)) => Value::text(ip.to_string()),
        Value::Library(Library::Cidr(cidr)) => Value::text(cidr.to_string()),
        _ => return Ok(None),
    }))
}

fn to_timestamp<'a>(value: &Value<'a>) -> Converted<'a> {
    Ok(match value {
        Value::Timestamp(_) => Some(value.clone()),
        Value::Int(seconds) => {
            let nanos = i128::from(*seconds) * 1_000_000_000;
            Some(Value::Timestamp(time::in_range(Timestamp { nanos, offset_seconds: 0 })?))
        }
        Value::Text(text) => match time::timestamp(text) {
            Ok(time) => Some(Value::Timestamp(time)),
            Err(Some(fault)) => return Err(fault),
            Err(None) => None,
        },
        _ => None,
    })
}
