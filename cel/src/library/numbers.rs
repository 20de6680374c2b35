//! Operators: sums, differences, and what comes first.

use std::cmp::Ordering;

use super::{Function, Host, time};
use crate::compare::{is_among, order};
use crate::fault::Fault;
use crate::plan::Call;
use crate::run::Run;
use crate::value::{List, Value, has_room_for_text};

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "_+_" => add,
        "_-_" => subtract,
        "_*_" => multiply,
        "_/_" => divide,
        "_%_" => modulo,
        "-_" => negate,
        "!_" => not,
        "_<_" => |call, args, _| compare(call, args, Ordering::is_lt),
        "_<=_" => |call, args, _| compare(call, args, Ordering::is_le),
        "_>_" => |call, args, _| compare(call, args, Ordering::is_gt),
        "_>=_" => |call, args, _| compare(call, args, Ordering::is_ge),
        "@in" => contains,
        "size" => size,
        _ => return None,
    })
}

const INT: Fault = Fault::Overflow("integer");
const UINT: Fault = Fault::Overflow("unsigned integer");

/// What an operator says that its first side does not know, or not together with the second.
fn operands(call: &Call, args: &[Value<'_>]) -> Fault {
    let is_known = match (args.first(), &*call.name) {
        (Some(Value::Text(_) | Value::Duration(_) | Value::Timestamp(_)), _) => true,
        (Some(Value::Int(_)), "size" | "!_") => false,
        (Some(Value::Int(_)), _) => true,
        (Some(Value::Uint(_) | Value::Double(_)), "_%_" | "-_" | "size" | "!_") => false,
        (Some(Value::Uint(_) | Value::Double(_)), _) => true,
        (Some(Value::Bytes(_) | Value::List(_)), "_+_") => true,
        (Some(Value::Bool(_) | Value::Bytes(_)), "_<_" | "_<=_" | "_>_" | "_>=_" | "-_" | "!_") => true,
        (_, "@in") => true,
        _ => false,
    };
    if is_known { Fault::NoSuchOverload } else { Fault::NoOverloadOf(call.name.clone()) }
}

pub(super) fn sum<'a>(a: &Value<'a>, b: &Value<'a>) -> Run<'a> {
    Ok(match (a, b) {
        (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_add(*b).ok_or(INT)?),
        (Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_add(*b).ok_or(UINT)?),
        (Value::Double(a), Value::Double(b)) => Value::Double(a + b),
        (Value::Text(a), Value::Text(b)) => {
            has_room_for_text(a.len() + b.len())?;
            Value::text([&**a, &**b].concat())
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            has_room_for_text(a.len() + b.len())?;
            Value::Bytes([&**a, &**b].concat().into())
        }
        (Value::List(a), Value::List(b)) => Value::List(List::joined(a.clone(), b.clone())?),
        (Value::Duration(a), Value::Duration(b)) => Value::Duration(a.checked_add(*b).ok_or(INT)?),
        (Value::Timestamp(at), Value::Duration(by)) | (Value::Duration(by), Value::Timestamp(at)) => {
            Value::Timestamp(time::moved(*at, i128::from(*by))?)
        }
        _ => return Err(Fault::NoSuchOverload),
    })
}

fn add<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let [a, b] = args else { return Err(operands(call, args)) };
    sum(a, b).map_err(|fault| if fault == Fault::NoSuchOverload { operands(call, args) } else { fault })
}

fn subtract<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    Ok(match args {
        [Value::Int(a), Value::Int(b)] => Value::Int(a.checked_sub(*b).ok_or(INT)?),
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(a.checked_sub(*b).ok_or(UINT)?),
        [Value::Double(a), Value::Double(b)] => Value::Double(a - b),
        [Value::Duration(a), Value::Duration(b)] => Value::Duration(a.checked_sub(*b).ok_or(INT)?),
        [Value::Timestamp(at), Value::Duration(by)] => Value::Timestamp(time::moved(*at, -i128::from(*by))?),
        [Value::Timestamp(a), Value::Timestamp(b)] => {
            Value::Duration(i64::try_from(a.nanos - b.nanos).map_err(|_| INT)?)
        }
        _ => return Err(operands(call, args)),
    })
}

fn multiply<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    Ok(match args {
        [Value::Int(a), Value::Int(b)] => Value::Int(a.checked_mul(*b).ok_or(INT)?),
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(a.checked_mul(*b).ok_or(UINT)?),
        [Value::Double(a), Value::Double(b)] => Value::Double(a * b),
        _ => return Err(operands(call, args)),
    })
}

fn divide<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    Ok(match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            return Err(Fault::DivisionByZero);
        }
        [Value::Int(a), Value::Int(b)] => Value::Int(a.checked_div(*b).ok_or(INT)?),
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(a / b),
        [Value::Double(a), Value::Double(b)] => Value::Double(a / b),
        _ => return Err(operands(call, args)),
    })
}

fn modulo<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    Ok(match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            return Err(Fault::ModulusByZero);
        }
        [Value::Int(a), Value::Int(b)] => Value::Int(a.checked_rem(*b).ok_or(INT)?),
        [Value::Uint(a), Value::Uint(b)] => Value::Uint(a % b),
        _ => return Err(operands(call, args)),
    })
}

fn negate<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    Ok(match args {
        [Value::Int(a)] => Value::Int(a.checked_neg().ok_or(INT)?),
        [Value::Double(a)] => Value::Double(-a),
        [Value::Duration(a)] => Value::Duration(a.checked_neg().ok_or(INT)?),
        _ => return Err(operands(call, args)),
    })
}

fn not<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    match args {
        [Value::Bool(value)] => Ok(Value::Bool(!value)),
        _ => Err(operands(call, args)),
    }
}

fn compare<'a>(call: &Call, args: &[Value<'a>], holds: fn(Ordering) -> bool) -> Run<'a> {
    match args {
        [a, b] => match order(a, b) {
            Err(Fault::NoSuchOverload) => Err(operands(call, args)),
            order => Ok(Value::Bool(holds(order?))),
        },
        _ => Err(operands(call, args)),
    }
}

fn contains<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    Ok(Value::Bool(match args {
        [value, Value::List(list)] => is_among(value, list)?,
        [key, Value::Map(map)] => map.find(key).map(Value::checked).transpose()?.is_some(),
        _ => return Err(operands(call, args)),
    }))
}

fn size<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    match args {
        [value @ (Value::Text(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_))] => {
            Ok(Value::Int(i64::try_from(value.size()).unwrap_or(i64::MAX)))
        }
        _ => Err(operands(call, args)),
    }
}
