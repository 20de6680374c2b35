//! What mutations make of an object.
//!
//! Source: `mutating/patch` of upstream's policy plug-in, `k8s.io/apiserver/pkg/cel/mutation`.

use serde_json::{Map as JsonMap, Number, Value as Json};
use skiff_cel::{List, Map, Value};

use crate::expression::{OBJECT_TYPE, PATCH_TYPE};

/// Whole numbers that are larger are told as texts where they are values of JSON patches.
const MAX_WHOLE: u64 = (1 << 53) - 1;

/// How numbers become JSON.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Numbers {
    AsTheyAre,
    /// All are of one type, in which not all whole numbers are.
    Doubles,
}

/// The operations of a list of `JSONPatch{…}`.
pub(crate) fn operations(value: &Value<'_>) -> Result<Vec<Json>, String> {
    let Value::List(list) = value else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array".into());
    };
    list.iter().map(|item| operation(&item)).collect()
}

fn operation(item: &Value<'_>) -> Result<Json, String> {
    let Value::Map(map) = item else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch".into());
    };
    let (mut operation, mut value) = (JsonMap::new(), None);
    for (key, field) in map.iter() {
        match (&key, field) {
            (Value::Text(name), Value::Text(text)) if matches!(&**name, "op" | "path" | "from") => {
                if **name != *"from" || !text.is_empty() {
                    operation.insert(name.to_string(), (*text).into());
                }
            }
            (Value::Text(name), field) if **name == *"value" => value = Some(field),
            _ => return Err(format!("unexpected {PATCH_TYPE}Type field")),
        }
    }
    for field in ["op", "path"] {
        operation.entry(field).or_insert_with(|| "".into());
    }
    if let Some(value) = value {
        if let Value::Map(map) = &value
            && let Some(name) = map.object()
        {
            check_names(&value, name)?;
        }
        let value = to_json(&value, Numbers::Doubles).map_err(|why| {
            format!("JSONPath valueExpression evaluated to a type that could not marshal to JSON: {why}")
        })?;
        operation.insert("value".into(), value);
    }
    Ok(Json::Object(operation))
}

/// The part of an object that an `Object{…}` is.
pub(crate) fn configuration(value: &Value<'_>) -> Result<Json, String> {
    if !matches!(value, Value::Map(map) if map.object().is_some()) {
        return Err("unsupported return type from ApplyConfiguration expression".into());
    }
    check_names(value, OBJECT_TYPE)?;
    to_json(value, Numbers::AsTheyAre)
}

/// Objects are of the types that their places name.
fn check_names(value: &Value<'_>, path: &str) -> Result<(), String> {
    let mut faults = Vec::new();
    collect_faults(value, path, &mut faults);
    if faults.is_empty() { Ok(()) } else { Err(format!("type mismatch: {}", faults.join("\n"))) }
}

/// As many are told.
const MAX_FAULTS: usize = 100;

fn collect_faults(value: &Value<'_>, path: &str, faults: &mut Vec<String>) {
    match value {
        Value::Map(map) => {
            let name = map.object();
            if let Some(name) = name.filter(|name| *name != path && faults.len() < MAX_FAULTS) {
                faults.push(format!(
                    "unexpected type name {name:?}, expected {path:?}, which matches field name path from root Object type"
                ));
            }
            // What comes from the request has no objects that expressions have made.
            if !matches!(map, Map::Owned(..)) {
                return;
            }
            for (key, value) in map.iter() {
                match (name, &key) {
                    (Some(_), Value::Text(field)) => {
                        collect_faults(&value, &format!("{path}.{}", &**field), faults);
                    }
                    _ => collect_faults(&value, path, faults),
                }
            }
        }
        Value::List(list) if matches!(list, List::Owned(..) | List::Joined(..)) => {
            for item in list.iter() {
                collect_faults(&item, path, faults);
            }
        }
        _ => {}
    }
}

/// A value as JSON has it. An expression nests no deeper than the parser lets it, and what it is given no deeper than objects are.
fn to_json(value: &Value<'_>, numbers: Numbers) -> Result<Json, String> {
    Ok(match value {
        Value::Null if numbers == Numbers::AsTheyAre => return Err("null cannot be applied".into()),
        Value::Null | Value::Optional(None) => Json::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) if numbers == Numbers::Doubles && value.unsigned_abs() > MAX_WHOLE => {
            value.to_string().into()
        }
        Value::Uint(value) if numbers == Numbers::Doubles && *value > MAX_WHOLE => value.to_string().into(),
        Value::Int(value) => (*value).into(),
        Value::Uint(value) => (*value).into(),
        Value::Double(value) if value.fract() == 0.0 && value.abs() <= MAX_WHOLE as f64 => {
            (*value as i64).into()
        }
        Value::Double(value) => {
            Number::from_f64(*value).ok_or_else(|| format!("{value} is no number of JSON"))?.into()
        }
        Value::Text(text) => (**text).into(),
        Value::List(list) => {
            Json::Array(list.iter().map(|item| to_json(&item, numbers)).collect::<Result<_, _>>()?)
        }
        Value::Map(map) => {
            let mut out = JsonMap::new();
            for (key, value) in map.iter() {
                let Value::Text(key) = key else { return Err("a map has a key that is not string".into()) };
                out.insert(key.to_string(), to_json(&value, numbers)?);
            }
            Json::Object(out)
        }
        Value::Optional(Some(inner)) => to_json(inner, numbers)?,
        Value::Fault(fault) => return Err(fault.to_string()),
        Value::Bytes(_) | Value::Duration(_) | Value::Timestamp(_) | Value::Type(_) | Value::Library(_) => {
            return Err("there is no JSON for it; make a string of it".into());
        }
    })
}
