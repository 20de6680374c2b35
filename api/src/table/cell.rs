//! What cells of several kinds share. Paths are JSON pointers.

use serde_json::Value;

use crate::Object;
use crate::time::{Moment, Precision};

pub(crate) const NONE: &str = "<none>";
pub(crate) const UNSET: &str = "<unset>";
const UNKNOWN: &str = "<unknown>";

/// The text at a path, `""` if there is none.
pub(crate) fn str_at<'o>(object: &'o Object, path: &str) -> &'o str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn int_at(object: &Object, path: &str) -> i64 {
    object.pointer(path).and_then(Value::as_i64).unwrap_or_default()
}

pub(crate) fn items_at<'o>(object: &'o Object, path: &str) -> &'o [Value] {
    object.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(crate) fn text(object: &Object, path: &str) -> Value {
    str_at(object, path).into()
}

pub(crate) fn int(object: &Object, path: &str) -> Value {
    int_at(object, path).into()
}

/// The text at a path, or `otherwise` where it is missing or empty.
pub(crate) fn text_or(object: &Object, path: &str, otherwise: &str) -> Value {
    match str_at(object, path) {
        "" => otherwise.into(),
        text => text.into(),
    }
}

/// A number or a percentage, `otherwise` if unset.
pub(crate) fn int_or_string(object: &Object, path: &str, otherwise: &str) -> String {
    match object.pointer(path) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => otherwise.into(),
    }
}

/// What is not set is false.
pub(crate) fn bool(object: &Object, path: &str) -> Value {
    object.pointer(path).and_then(Value::as_bool).unwrap_or_default().into()
}

/// How many entries the map or list at a path has.
pub(crate) fn count(object: &Object, path: &str) -> i64 {
    match object.pointer(path) {
        Some(Value::Array(items)) => items.len() as i64,
        Some(Value::Object(map)) => map.len() as i64,
        _ => 0,
    }
}

pub(crate) fn joined<'o>(texts: impl IntoIterator<Item = &'o str>, otherwise: &str) -> String {
    let joined = texts.into_iter().collect::<Vec<_>>().join(",");
    if joined.is_empty() { otherwise.into() } else { joined }
}

/// How long ago the time at a path was.
pub(crate) fn since(object: &Object, path: &str, now_s: i64) -> Value {
    since_text(str_at(object, path), now_s).into()
}

pub(crate) fn seconds(time: &str) -> Option<i64> {
    Moment::parse(time, Precision::Seconds).ok().map(Moment::seconds)
}

pub(crate) fn since_text(time: &str, now_s: i64) -> String {
    seconds(time).map_or_else(|| UNKNOWN.into(), |at| duration(now_s - at))
}

/// A duration in seconds, with as much precision as a person needs.
///
/// Source: apimachinery's `duration.HumanDuration`.
pub(crate) fn duration(seconds: i64) -> String {
    let pair = |big: i64, unit: char, small: i64, small_unit: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match seconds {
        ..=-2 => "<invalid>".into(),
        -1 => "0s".into(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => pair(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => pair(days, 'd', hours % 24, 'h'),
        _ if days < 730 => format!("{days}d"),
        _ if days < 8 * 365 => pair(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

/// `a=b,c=d` of the map at a path, or `<none>`.
pub(crate) fn labels(object: &Object, path: &str) -> Value {
    let map = object.pointer(path).and_then(Value::as_object);
    let pairs: Vec<String> =
        map.into_iter().flatten().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    if pairs.is_empty() { NONE.into() } else { pairs.join(",").into() }
}

/// The text form of the label selector at a path.
pub(crate) fn selector(object: &Object, path: &str) -> Value {
    let Some(selector) = object.pointer(path).filter(|s| !s.is_null()) else { return NONE.into() };
    let mut terms: Vec<(&str, String)> = selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), format!("{k}={}", v.as_str().unwrap_or_default())))
        .collect();
    for expression in items_at(selector, "/matchExpressions") {
        let key = str_at(expression, "/key");
        let mut values: Vec<&str> =
            items_at(expression, "/values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let term = match str_at(expression, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        terms.push((key, term));
    }
    terms.sort_by_key(|(key, _)| *key);
    let terms: Vec<String> = terms.into_iter().map(|(_, term)| term).collect();
    if terms.is_empty() { NONE.into() } else { terms.join(",").into() }
}

/// A field of each container of the pod spec at a path, joined by commas.
pub(crate) fn containers(object: &Object, pod_spec: &str, field: &str) -> Value {
    let containers = items_at(object, &format!("{pod_spec}/containers"));
    joined(containers.iter().filter_map(|c| c[field].as_str()), "").into()
}

/// The condition of a type in `status.conditions`.
pub(crate) fn condition<'o>(object: &'o Object, type_: &str) -> Option<&'o Value> {
    items_at(object, "/status/conditions").iter().find(|c| c["type"] == type_)
}

/// `RWO,RWX` out of the access modes at a path.
pub(crate) fn access_modes(object: &Object, path: &str) -> Value {
    let short = |mode: &str| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    joined(items_at(object, path).iter().filter_map(Value::as_str).map(short), "").into()
}
