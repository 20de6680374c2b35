//! Values that may be missing.

use super::{Function, Host, no_overload};
use crate::fault::Fault;
use crate::plan::Call;
use crate::run::Run;
use crate::value::{List, Value};

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "optional.of" => |call, args, _| match args {
            [value] => Ok(Value::some(value.clone())),
            _ => Err(no_overload(call, args)),
        },
        "optional.ofNonZeroValue" => |call, args, _| match args {
            [value] if value.is_zero() => Ok(Value::Optional(None)),
            [value] => Ok(Value::some(value.clone())),
            _ => Err(no_overload(call, args)),
        },
        "optional.none" => |_, _, _| Ok(Value::Optional(None)),
        "value" => |call, args, _| match args {
            [Value::Optional(Some(value))] => Ok((**value).clone()),
            [Value::Optional(None)] => Err(Fault::other("optional.none() dereference")),
            _ => Err(no_overload(call, args)),
        },
        "hasValue" => |call, args, _| match args {
            [Value::Optional(value)] => Ok(Value::Bool(value.is_some())),
            _ => Err(no_overload(call, args)),
        },
        "first" => |call, args, _| end(call, args, |_| Some(0)),
        "last" => |call, args, _| end(call, args, |list| list.len().checked_sub(1)),
        "optional.unwrap" | "unwrapOpt" => unwrap,
        _ => return None,
    })
}

fn end<'a>(call: &Call, args: &[Value<'a>], at: fn(&List<'a>) -> Option<usize>) -> Run<'a> {
    match args {
        [Value::List(list)] => {
            let item = at(list).and_then(|at| list.get(at));
            Ok(item.map_or(Value::Optional(None), Value::some))
        }
        _ => Err(no_overload(call, args)),
    }
}

fn unwrap<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let [Value::List(list)] = args else { return Err(no_overload(call, args)) };
    let mut items = Vec::new();
    for item in list.iter() {
        match item {
            Value::Optional(inner) => items.extend(inner.map(|value| (*value).clone())),
            other => return Err(Fault::other(format!("value {} is not optional", super::shown(&other)))),
        }
    }
    Ok(Value::list(items))
}
