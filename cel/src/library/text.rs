//! Texts. Places in them are counted in characters.

use super::print::quoted;
use super::{Function, Host, no_overload, print, slice, texts};
use crate::compare::equal;
use crate::fault::Fault;
use crate::plan::Call;
use crate::run::Run;
use crate::value::{Text, Value, has_room_for_text};

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "contains" => |_, args, _| holds(args, |text, part| text.contains(part)),
        "startsWith" => |_, args, _| holds(args, |text, part| text.starts_with(part)),
        "endsWith" => |_, args, _| holds(args, |text, part| text.ends_with(part)),
        "charAt" => char_at,
        "indexOf" => index_of,
        "lastIndexOf" => last_index_of,
        "lowerAscii" => |call, args, _| mapped(call, args, str::to_ascii_lowercase),
        "upperAscii" => |call, args, _| mapped(call, args, str::to_ascii_uppercase),
        "trim" => |call, args, _| mapped(call, args, |text| text.trim().to_string()),
        "strings.quote" => |call, args, _| mapped(call, args, quoted),
        "jsonpatch.escapeKey" => {
            |call, args, _| mapped(call, args, |text| text.replace('~', "~0").replace('/', "~1"))
        }
        "replace" => replace,
        "split" => split,
        "substring" => substring,
        "join" => join,
        "format" => format,
        _ => return None,
    })
}

fn out_of_range(at: i64) -> Fault {
    Fault::other(format!("index out of range: {at}"))
}

fn holds<'a>(args: &[Value<'a>], test: fn(&str, &str) -> bool) -> Run<'a> {
    match args {
        [Value::Text(text), Value::Text(part)] => Ok(Value::Bool(test(text, part))),
        _ => Err(Fault::NoSuchOverload),
    }
}

fn mapped<'a>(call: &Call, args: &[Value<'a>], map: fn(&str) -> String) -> Run<'a> {
    match args {
        [Value::Text(text)] => Ok(Value::text(map(text))),
        _ => Err(no_overload(call, args)),
    }
}

/// Where the nth character begins; the end is one past the last.
fn byte_at(text: &str, n: i64) -> Option<usize> {
    let n = usize::try_from(n).ok()?;
    text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(n)
}

fn char_at<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let [Value::Text(text), Value::Int(at)] = args else { return Err(no_overload(call, args)) };
    let start = byte_at(text, *at).ok_or_else(|| out_of_range(*at))?;
    let n_bytes = text[start..].chars().next().map_or(0, char::len_utf8);
    Ok(slice(text, start, start + n_bytes))
}

fn index_of<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let (text, part, offset) = match args {
        [Value::List(list), wanted] => {
            let found = list.iter().position(|item| equal(&item, wanted));
            return Ok(Value::Int(found.map_or(-1, |at| at as i64)));
        }
        [Value::Text(text), Value::Text(part)] => (text, part, 0),
        [Value::Text(text), Value::Text(part), Value::Int(offset)] => (text, part, *offset),
        _ => return Err(no_overload(call, args)),
    };
    if part.is_empty() {
        return Ok(Value::Int(offset));
    }
    if offset < 0 {
        return Err(out_of_range(offset));
    }
    let found = byte_at(text, offset).and_then(|start| text[start..].find(&**part).map(|at| start + at));
    Ok(Value::Int(found.map_or(-1, |at| text[..at].chars().count() as i64)))
}

fn last_index_of<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let (text, part, offset) = match args {
        [Value::List(list), wanted] => {
            let found =
                (0..list.len()).rev().find(|at| list.get(*at).is_some_and(|item| equal(&item, wanted)));
            return Ok(Value::Int(found.map_or(-1, |at| at as i64)));
        }
        [Value::Text(text), Value::Text(part)] => (text, part, None),
        [Value::Text(text), Value::Text(part), Value::Int(offset)] => (text, part, Some(*offset)),
        _ => return Err(no_overload(call, args)),
    };
    let n_chars = text.chars().count() as i64;
    if part.is_empty() {
        return Ok(Value::Int(offset.unwrap_or(n_chars)));
    }
    let last = match offset {
        None if text.len() < part.len() => return Ok(Value::Int(-1)),
        None => n_chars - 1,
        Some(offset) if offset < 0 => return Err(out_of_range(offset)),
        Some(offset) if offset >= n_chars => return Ok(Value::Int(-1)),
        Some(offset) => offset,
    };
    // What is found may begin at the last place, so it may end as far behind as it is long.
    let end = byte_at(text, last).map_or(text.len(), |at| (at + part.len()).min(text.len()));
    let end = (0..=end).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    let found = text[..end].rfind(&**part);
    Ok(Value::Int(found.map_or(-1, |at| text[..at].chars().count() as i64)))
}

fn replace<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let (text, old, new, limit) = match args {
        [Value::Text(text), Value::Text(old), Value::Text(new)] => (text, old, new, -1),
        [Value::Text(text), Value::Text(old), Value::Text(new), Value::Int(limit)] => {
            (text, old, new, *limit)
        }
        _ => return Err(no_overload(call, args)),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let n_found = text.matches(&**old).take(limit).count();
    has_room_for_text(text.len().saturating_add(n_found.saturating_mul(new.len())))?;
    Ok(Value::text(text.replacen(&**old, new, limit)))
}

fn split<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let (text, separator, limit) = match args {
        [Value::Text(text), Value::Text(separator)] => (text, separator, -1),
        [Value::Text(text), Value::Text(separator), Value::Int(limit)] => (text, separator, *limit),
        _ => return Err(no_overload(call, args)),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if limit == 0 {
        return Ok(Value::list(Vec::new()));
    }
    if !separator.is_empty() {
        return texts(text.splitn(limit, &**separator));
    }
    // Into characters, the last one with all that is left.
    let mut rest: &str = text;
    let mut parts = Vec::new();
    while let Some(first) = rest.chars().next() {
        if parts.len() + 1 == limit {
            parts.push(rest);
            break;
        }
        let (part, after) = rest.split_at(first.len_utf8());
        parts.push(part);
        rest = after;
    }
    texts(parts.into_iter())
}

fn substring<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let (text, start, end) = match args {
        [Value::Text(text), Value::Int(start)] => (text, *start, None),
        [Value::Text(text), Value::Int(start), Value::Int(end)] => (text, *start, Some(*end)),
        _ => return Err(no_overload(call, args)),
    };
    if let Some(end) = end.filter(|end| start > *end) {
        return Err(Fault::other(format!("invalid substring range. start: {start}, end: {end}")));
    }
    let from = byte_at(text, start).ok_or_else(|| out_of_range(start))?;
    let to = match end {
        Some(end) => byte_at(text, end).ok_or_else(|| out_of_range(end))?,
        None => text.len(),
    };
    Ok(slice(text, from, to))
}

fn join<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let (list, separator) = match args {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::Text(separator)] => (list, &**separator),
        _ => return Err(no_overload(call, args)),
    };
    if list.get(0).is_some_and(|first| !matches!(first, Value::Text(_))) {
        return Err(no_overload(call, args));
    }
    let mut joined = String::new();
    for (at, item) in list.iter().enumerate() {
        let Value::Text(text) = item else {
            return Err(Fault::other(format!("join: invalid input: {}", print::shown(&item))));
        };
        has_room_for_text(joined.len() + separator.len() + text.len())?;
        if at > 0 {
            joined.push_str(separator);
        }
        joined.push_str(&text);
    }
    Ok(Value::Text(Text::from(joined)))
}

fn format<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    match args {
        [Value::Text(text), Value::List(list)] => {
            let mut at = 0;
            let mut n_bytes = 0;
            let made = print::clauses(text, |clause| {
                let value = list.get(at).ok_or_else(|| format!("index {at} out of range"))?;
                at += 1;
                let printed = clause?.print(&value)?;
                n_bytes += printed.len();
                has_room_for_text(n_bytes).map(|()| printed).map_err(|fault| fault.to_string())
            });
            made.map(Value::text).map_err(Fault::other)
        }
        _ => Err(no_overload(call, args)),
    }
}
