//! What a call costs when it runs.
//!
//! Source: cel-go's `interpreter/runtimecost.go` and `ext`, Kubernetes' `pkg/cel/library/cost.go`.

use crate::fault::Fault;
use crate::library::Library;
use crate::plan::{Call, Equality};
use crate::run::Run;
use crate::value::Value;

/// A part of a text that is gone through costs this.
pub(crate) const TRAVERSAL: f64 = 0.1;
/// A part of a regular expression costs this.
pub(crate) const PATTERN: f64 = 0.25;

fn traversed(size: u64, times: f64) -> u64 {
    (size as f64 * times * TRAVERSAL).ceil() as u64
}

/// What `value` counts where two are compared; of an optional value what it holds.
fn size(value: &Value<'_>) -> u64 {
    match value {
        Value::Optional(Some(inner)) => size(inner),
        other => other.size(),
    }
}

pub(crate) fn equality(equality: Equality, sides: &[Run<'_>; 2]) -> u64 {
    // Kubernetes' own values are compared at once, though not where they shall differ.
    if equality == Equality::Equal && matches!(sides[0], Ok(Value::Library(_))) {
        return 1;
    }
    let size = |side: &Run<'_>| side.as_ref().map_or(1, size);
    traversed(size(&sides[0]).min(size(&sides[1])), 1.0)
}

pub(crate) fn call(call: &Call, args: &[Value<'_>], result: &Run<'_>) -> u64 {
    let overload = call.overload.unwrap_or_default();
    of_extension(overload, args, result)
        .or_else(|| of_kubernetes(&call.name, overload, args, result))
        .unwrap_or_else(|| of_standard(overload, args))
}

/// What a call will cost that takes longer than its arguments are large, so that it is not begun where that is too much.
pub(crate) fn ahead(call: &Call, args: &[Value<'_>]) -> Option<u64> {
    let overload = call.overload.filter(|id| *id == "list_distinct" || id.starts_with("list_sets_"))?;
    of_extension(overload, args, &Err(Fault::NoSuchOverload))
}

/// Lists and sets of cel-go's `ext`.
fn of_extension(overload: &str, args: &[Value<'_>], result: &Run<'_>) -> Option<u64> {
    let list = |factor: f64, size: u64| (size as f64 * factor) as u64 + 1 + 10;
    let made = || result.as_ref().map_or(1, Value::size);
    let at = |n: usize| args.get(n).map_or(1, Value::size);
    let squared = |n: usize| {
        let first = args.get(n).and_then(|arg| if let Value::List(list) = arg { list.get(0) } else { None });
        let is_text = matches!(first, Some(Value::Text(_) | Value::Bytes(_)));
        list(if is_text { 2.0 + TRAVERSAL } else { 2.0 }, at(n).saturating_mul(at(n)))
    };
    Some(match overload {
        "list_sets_contains_list" | "list_sets_intersects_list" => 1 + at(0).saturating_mul(at(1)),
        "list_sets_equivalent_list" => 1 + at(0).saturating_mul(at(1)).saturating_mul(2),
        "list_slice" | "lists_range" | "list_reverse" => list(1.0, made()),
        "list_flatten" => list(1.0, at(0)),
        "list_flatten_int" => match args.get(1) {
            Some(Value::Int(depth)) => list((*depth).max(0) as f64, at(0)),
            _ => list(1.0, at(0)),
        },
        "list_distinct" => squared(0),
        _ if overload.starts_with("list_") && overload.ends_with("_sort") => squared(0),
        _ if overload.ends_with("_sortByAssociatedKeys") => squared(1),
        _ => return None,
    })
}

fn of_kubernetes(name: &str, overload: &str, args: &[Value<'_>], result: &Run<'_>) -> Option<u64> {
    let at = |n: usize| args.get(n).map_or(1, Value::size);
    Some(match name {
        "check" => 350_000,
        "serviceAccount" | "path" | "group" | "resource" | "subresource" | "namespace" | "name"
        | "allowed" | "reason" | "error" | "errored" => 1,
        "fieldSelector" | "labelSelector" => {
            let size = at(1) as f64;
            let requirements = (size * 0.5).ceil();
            10 + (size * TRAVERSAL).ceil() as u64 + (requirements * 50.0).ceil() as u64
        }
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => args.first().map_or(0, all_of),
        "url" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "cidr" | "isIP" | "isCIDR"
        | "quantity" | "isQuantity" | "semver" | "isSemver" => traversed(at(0), 1.0),
        "replace" | "split" | "ip.isCanonical" => traversed(at(0), 2.0),
        "join" => traversed(result.as_ref().map_or(1, Value::size), 2.0),
        "find" | "findAll" => matched(at(0), at(1)),
        "ip" if overload == "cidr_ip" => 1,
        "ip" => traversed(at(0), 1.0),
        "masked"
        | "prefixLength"
        | "family"
        | "isUnspecified"
        | "isLoopback"
        | "isLinkLocalMulticast"
        | "isLinkLocalUnicast"
        | "isGlobalUnicast" => 1,
        "containsIP" => {
            let again = if overload == "cidr_contains_ip_string" { traversed(at(1), 1.0) } else { 0 };
            traversed(at(0) * 2, 1.0) + again
        }
        "containsCIDR" => {
            let again = if overload == "cidr_contains_cidr_string" { traversed(at(1), 1.0) } else { 0 };
            traversed(at(0) * 2, 1.0) + traversed(at(0), 1.0) + 1 + again
        }
        "validate" => match args.first() {
            Some(Value::Library(Library::Format(format))) => {
                let pattern = (format.pattern_size as f64 * PATTERN).ceil() as u64;
                ((1.0 + at(1) as f64) * TRAVERSAL).ceil() as u64 * pattern
            }
            _ => return None,
        },
        "format.named" | "sign" | "asInteger" | "isInteger" | "asApproximateFloat" | "isGreaterThan"
        | "isLessThan" | "compareTo" | "add" | "sub" | "major" | "minor" | "patch" | "getScheme"
        | "getHostname" | "getHost" | "getPort" | "getEscapedPath" | "getQuery" => 1,
        _ => return None,
    })
}

fn of_standard(overload: &str, args: &[Value<'_>]) -> u64 {
    let at = |n: usize| args.get(n).map_or(1, size);
    match overload {
        // By the part, as it is all that is compared.
        "starts_with_string" | "ends_with_string" => traversed(at(1), 1.0),
        "string_to_bytes" | "bytes_to_string" | "strings_quote" | "string_format" => traversed(at(0), 1.0),
        "in_list" => at(1),
        "less_string"
        | "less_equals_string"
        | "greater_string"
        | "greater_equals_string"
        | "less_bytes"
        | "less_equals_bytes"
        | "greater_bytes"
        | "greater_equals_bytes" => traversed(at(0).min(at(1)), 1.0),
        "add_string" | "add_bytes" => traversed(at(0).saturating_add(at(1)), 1.0),
        "matches_string" => matched(at(0), at(1)),
        "contains_string" => traversed(at(0), 1.0).saturating_mul(traversed(at(1), 1.0)),
        _ => 1,
    }
}

fn matched(text: u64, pattern: u64) -> u64 {
    let text = ((1.0 + text as f64) * TRAVERSAL).ceil() as u64;
    text.saturating_mul((pattern as f64 * PATTERN).ceil() as u64)
}

/// What going through all of a value costs.
fn all_of(value: &Value<'_>) -> u64 {
    match value {
        Value::Text(text) => (text.len() as f64 * TRAVERSAL) as u64,
        Value::Bytes(bytes) => (bytes.len() as f64 * TRAVERSAL) as u64,
        Value::List(list) => list.iter().map(|item| all_of(&item)).sum(),
        Value::Map(map) => map.iter().map(|(key, value)| all_of(&key) + all_of(&value)).sum(),
        _ => 1,
    }
}
