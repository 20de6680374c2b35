//! Lists, and lists as sets.

use std::cmp::Ordering;

use super::numbers::sum;
use super::{Function, Host, no_overload};
use crate::compare::{equal, order};
use crate::fault::Fault;
use crate::plan::Call;
use crate::run::Run;
use crate::types::Type;
use crate::value::{List, Value, has_room_for_items};

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "isSorted" => is_sorted,
        "sum" => total,
        "min" => |call, args, _| extreme(call, args, Ordering::Greater),
        "max" => |call, args, _| extreme(call, args, Ordering::Less),
        "sets.contains" => |call, args, _| sets(call, args, contains),
        "sets.equivalent" => |call, args, _| sets(call, args, |a, b| contains(a, b) && contains(b, a)),
        "sets.intersects" => |call, args, _| sets(call, args, |a, b| a.iter().any(|item| has(b, &item))),
        "slice" => slice,
        "flatten" => flatten,
        "sort" => |call, args, _| sort(call, args.first(), args.first(), args),
        "@sortByAssociatedKeys" => |call, args, _| sort(call, args.first(), args.get(1), args),
        "lists.range" => range,
        "reverse" => reverse,
        "distinct" => distinct,
        _ => return None,
    })
}

fn is_sorted<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let [Value::List(list)] = args else { return Err(no_overload(call, args)) };
    let mut last: Option<Value<'a>> = None;
    for item in list.iter() {
        if let Some(last) = &last
            && order(last, &item)?.is_gt()
        {
            return Ok(Value::Bool(false));
        }
        last = Some(item);
    }
    Ok(Value::Bool(true))
}

fn total<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let [Value::List(list)] = args else { return Err(no_overload(call, args)) };
    let zero = match call.overload {
        Some("list_uint_sum_uint") => Value::Uint(0),
        Some("list_double_sum_double") => Value::Double(0.0),
        Some("list_duration_sum_duration") => Value::Duration(0),
        Some(_) => Value::Int(0),
        None => match list.get(0) {
            Some(Value::Uint(_)) => Value::Uint(0),
            Some(Value::Double(_)) => Value::Double(0.0),
            Some(Value::Duration(_)) => Value::Duration(0),
            Some(Value::Int(_)) | None => Value::Int(0),
            _ => return Err(no_overload(call, args)),
        },
    };
    list.iter().try_fold(zero, |sum_so_far, item| sum(&sum_so_far, &item))
}

/// The item that all others stand so to.
fn extreme<'a>(call: &Call, args: &[Value<'a>], worse: Ordering) -> Run<'a> {
    let [Value::List(list)] = args else { return Err(no_overload(call, args)) };
    let mut best: Option<Value<'a>> = None;
    for item in list.iter() {
        best = match best {
            Some(best) if order(&best, &item)? != worse => Some(best),
            _ => Some(item),
        };
    }
    best.ok_or_else(|| Fault::other(format!("{} called on empty list", call.name)))
}

fn has(list: &List<'_>, wanted: &Value<'_>) -> bool {
    list.iter().any(|item| equal(&item, wanted))
}

fn contains(list: &List<'_>, part: &List<'_>) -> bool {
    part.iter().all(|item| has(list, &item))
}

fn sets<'a>(call: &Call, args: &[Value<'a>], test: fn(&List<'_>, &List<'_>) -> bool) -> Run<'a> {
    match args {
        [Value::List(a), Value::List(b)] => Ok(Value::Bool(test(a, b))),
        _ => Err(no_overload(call, args)),
    }
}

fn slice<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let [Value::List(list), Value::Int(start), Value::Int(end)] = args else {
        return Err(no_overload(call, args));
    };
    let refused = |why: String| Err(Fault::other(format!("cannot slice({start}, {end}), {why}")));
    let (Ok(from), Ok(to)) = (usize::try_from(*start), usize::try_from(*end)) else {
        return refused("negative indexes not supported".to_string());
    };
    if from > to {
        return refused("start index must be less than or equal to end index".to_string());
    }
    if list.len() < to {
        return refused(format!("list is length {}", list.len()));
    }
    Ok(Value::list((from..to).filter_map(|at| list.get(at)).collect()))
}

fn flatten<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let (list, depth) = match args {
        [Value::List(list)] => (list, 1),
        [Value::List(list), Value::Int(depth)] => (list, *depth),
        _ => return Err(no_overload(call, args)),
    };
    if depth < 0 {
        return Err(Fault::other("level must be non-negative"));
    }
    let mut items = Vec::new();
    // What is still to be looked at: a list, the next place in it, and how many more levels are opened.
    let mut open = vec![(list.clone(), 0, depth)];
    while let Some((list, at, depth)) = open.pop() {
        let Some(item) = list.get(at) else { continue };
        open.push((list, at + 1, depth));
        match item {
            Value::List(inner) if depth > 0 => open.push((inner, 0, depth - 1)),
            other => {
                has_room_for_items(items.len() + 1)?;
                items.push(other);
            }
        }
    }
    Ok(Value::list(items))
}

fn sort<'a>(call: &Call, list: Option<&Value<'a>>, keys: Option<&Value<'a>>, args: &[Value<'a>]) -> Run<'a> {
    let (Some(Value::List(list)), Some(Value::List(keys))) = (list, keys) else {
        return Err(no_overload(call, args));
    };
    if list.len() != keys.len() {
        return Err(Fault::other(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list, but got {} and {} \
             elements respectively",
            list.len(),
            keys.len()
        )));
    }
    let mut pairs: Vec<(Value<'a>, Value<'a>)> = keys.iter().zip(list.iter()).collect();
    let type_of = |value: &Value<'a>| value.type_of();
    if let Some((first, _)) = pairs.first() {
        let wanted = type_of(first);
        if matches!(wanted, Type::List(_) | Type::Map(_) | Type::Null | Type::Optional(_) | Type::AnyType) {
            return Err(Fault::other("list elements must be comparable"));
        }
        if pairs.iter().any(|(key, _)| type_of(key) != wanted) {
            return Err(Fault::other("list elements must have the same type"));
        }
    }
    pairs.sort_by(|(a, _), (b, _)| order(a, b).unwrap_or(Ordering::Equal));
    Ok(Value::list(pairs.into_iter().map(|(_, item)| item).collect()))
}

/// What one call makes at most.
const MAX_RANGE: i64 = 1_000_000;

fn range<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    match args {
        [Value::Int(end)] => {
            if *end < 0 {
                let message = format!("lists.range: size must be non-negative, got {end}");
                return Err(Fault::other(message));
            }
            if *end > MAX_RANGE {
                let message = format!("lists.range: size {end} exceeds maximum allowed ({MAX_RANGE})");
                return Err(Fault::other(message));
            }
            has_room_for_items(usize::try_from(*end).unwrap_or_default())?;
            Ok(Value::list((0..*end).map(Value::Int).collect()))
        }
        _ => Err(no_overload(call, args)),
    }
}

fn reverse<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    match args {
        [Value::List(list)] => Ok(Value::list((0..list.len()).rev().filter_map(|at| list.get(at)).collect())),
        _ => Err(no_overload(call, args)),
    }
}

fn distinct<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let [Value::List(list)] = args else { return Err(no_overload(call, args)) };
    let mut items: Vec<Value<'a>> = Vec::new();
    for item in list.iter() {
        if !items.iter().any(|seen| equal(seen, &item)) {
            items.push(item);
        }
    }
    Ok(Value::list(items))
}
