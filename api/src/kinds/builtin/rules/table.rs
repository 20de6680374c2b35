//! `table.txt` and what its words mean.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::format::{Format, percent};
use super::path::{Faults, NOT_NEGATIVE, Path};
use crate::meta;
use crate::quantity::Quantity;
use crate::schema::{Schema, TypeId};

/// What one field must be.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Check {
    /// Absent or empty is a missing value, and ends the field's checks.
    Required(&'static str),
    /// The same where it is there and empty.
    RequiredIfSet,
    /// Zero is a missing value, and ends the field's checks.
    NonZero,
    /// One of these, where it is there.
    Enum(Vec<&'static str>),
    /// One of these; empty is a missing value.
    EnumOrRequired(Vec<&'static str>),
    /// One of these, where it is there; empty is a missing value.
    EnumOrEmpty(Vec<&'static str>),
    /// One of these; absent is none of them.
    MustEnum(Vec<&'static str>),
    /// Where it is not empty.
    Format(Format),
    /// Where it is there, and be it empty.
    FormatOfSet(Format),
    /// Always: absent is the empty text.
    FormatOfAll(Format),
    Each(Format),
    Range(i64, i64),
    Min(i64),
    Max(i64),
    /// Positive where it is there.
    Positive,
    /// Always positive: absent is zero.
    MustBePositive,
    NotNegative,
    /// A user or a group.
    Id,
    /// The bits of a file's mode.
    Mode,
    /// A port, where it is not zero.
    Port,
    /// A port; absent is zero.
    MustBePort,
    PortOrName,
    Percent,
    MaxPercent,
    Labels,
    MaxItems(usize),
    MaxBytes(usize),
    UniqueBy(&'static str),
    Unique,
    NotNegativeQuantity,
    PositiveQuantity,
    /// The name of a CSI driver.
    Driver,
    /// `example.com/path`.
    DomainPath,
}

/// The rules of one type's fields.
pub(super) type Fields = Vec<(&'static str, Vec<Check>)>;

/// All of them. A test makes sure that every word of the table is known.
pub(super) fn fields(id: TypeId) -> Option<&'static Fields> {
    static TABLE: LazyLock<HashMap<TypeId, Fields>> = LazyLock::new(|| parse(&mut |_| {}));
    TABLE.get(&id)
}

fn parse(unknown: &mut dyn FnMut(String)) -> HashMap<TypeId, Fields> {
    let (schema, mut table) = (Schema::builtin(), HashMap::new());
    let mut at: Option<TypeId> = None;
    for line in include_str!("table.txt").lines().filter(|line| !line.starts_with('#')) {
        let Some(rule) = line.strip_prefix(' ') else {
            at = schema.find(&format!("io.k8s.api.{line}"));
            if at.is_none() {
                unknown(line.to_owned());
            }
            continue;
        };
        let Some(id) = at else { continue };
        let mut words = rule.split(' ');
        let field = words.next().unwrap_or_default();
        if schema.get(id).field(field).is_none() {
            unknown(format!("{}.{field}", schema.get(id).name));
        }
        let mut checks = Vec::new();
        for word in words {
            match check(word) {
                Some(check) => checks.push(check),
                None => unknown(word.to_owned()),
            }
        }
        table.entry(id).or_insert_with(Fields::new).push((field, checks));
    }
    table
}

fn check(word: &'static str) -> Option<Check> {
    let (name, argument) = match word.split_once('(') {
        Some((name, rest)) => (name, rest.strip_suffix(')')?),
        None => (word, ""),
    };
    let values = || argument.split(',').collect();
    let number = || argument.parse().ok();
    Some(match name {
        "required" if argument == "can-not-be-empty" => Check::Required("can not be empty"),
        "required" => Check::Required(""),
        "required-if-set" => Check::RequiredIfSet,
        "nonzero" => Check::NonZero,
        "enum" => Check::Enum(values()),
        "enum-or-required" => Check::EnumOrRequired(values()),
        "enum-or-required?" => Check::EnumOrEmpty(values()),
        "must-enum" => Check::MustEnum(values()),
        "each" => Check::Each(Format::named(argument)?),
        "range" => {
            let (low, high) = argument.split_once(',')?;
            Check::Range(low.parse().ok()?, high.parse().ok()?)
        }
        "min" => Check::Min(number()?),
        "max" => Check::Max(number()?),
        "positive" => Check::Positive,
        "must-be-positive" => Check::MustBePositive,
        "not-negative" => Check::NotNegative,
        "id" => Check::Id,
        "mode" => Check::Mode,
        "port" | "port?" => Check::Port,
        "port!" => Check::MustBePort,
        "port-or-name" => Check::PortOrName,
        "percent" => Check::Percent,
        "max-percent" => Check::MaxPercent,
        "labels" => Check::Labels,
        "max-items" => Check::MaxItems(argument.parse().ok()?),
        "max-bytes" => Check::MaxBytes(argument.parse().ok()?),
        "unique" if argument.is_empty() => Check::Unique,
        "unique" => Check::UniqueBy(argument),
        "not-negative-quantity" => Check::NotNegativeQuantity,
        "positive-quantity" => Check::PositiveQuantity,
        "driver" => Check::Driver,
        "domain-path" => Check::DomainPath,
        other => match (other.strip_suffix('!'), other.strip_suffix("-or-invalid")) {
            (Some(format), _) => Check::FormatOfSet(Format::named(format)?),
            (_, Some(format)) => Check::FormatOfAll(Format::named(format)?),
            _ => Check::Format(Format::named(other)?),
        },
    })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Runs the checks of one field, whose value is `null` if it is not there.
pub(super) fn run(checks: &[Check], value: &Value, path: &Path<'_>, faults: &mut Faults) {
    for check in checks {
        if !one(check, value, path, faults) {
            return;
        }
    }
}

/// Whether the checks after this one still mean something.
fn one(check: &Check, value: &Value, path: &Path<'_>, faults: &mut Faults) -> bool {
    match check {
        Check::Required(detail) if is_empty(value) => {
            faults.required(path, detail);
            return false;
        }
        Check::RequiredIfSet if value == "" => {
            faults.required(path, "an empty string is disallowed");
            return false;
        }
        Check::NonZero if value.as_i64().unwrap_or_default() == 0 => {
            faults.required(path, "");
            return false;
        }
        Check::EnumOrEmpty(_) if value == "" => faults.required(path, ""),
        Check::EnumOrRequired(_) if is_empty(value) => {
            faults.required(path, "");
            return false;
        }
        Check::MustEnum(_) if value.is_null() => faults.not_supported(path, &json!(""), &values_of(check)),
        Check::Enum(values)
        | Check::EnumOrEmpty(values)
        | Check::EnumOrRequired(values)
        | Check::MustEnum(values) => {
            if value.as_str().is_some_and(|text| !values.contains(&text)) {
                faults.not_supported(path, value, values);
            }
        }
        Check::Format(format) => text(*format, value.as_str().filter(|text| !text.is_empty()), path, faults),
        Check::FormatOfSet(format) => text(*format, value.as_str(), path, faults),
        Check::FormatOfAll(format) => text(*format, Some(value.as_str().unwrap_or_default()), path, faults),
        Check::Each(format) => {
            for (at, item) in value.as_array().into_iter().flatten().enumerate() {
                text(*format, Some(item.as_str().unwrap_or_default()), &path.index(at), faults);
            }
        }
        Check::Labels => {
            meta::validate_labels(value, &path.to_string()).into_iter().for_each(|c| faults.push(c))
        }
        Check::Unique | Check::UniqueBy(_) => unique(check, value, path, faults),
        Check::MaxItems(most) => {
            let n = value.as_array().map_or(0, Vec::len);
            if n > *most {
                faults.too_many(path, n, *most);
            }
        }
        Check::MaxBytes(most) if value.as_str().is_some_and(|text| text.len() > *most) => {
            faults.too_long(path, *most);
        }
        Check::PortOrName => port_or_name(value, path, faults),
        Check::Percent | Check::MaxPercent => percentage(check, value, path, faults),
        Check::NotNegativeQuantity | Check::PositiveQuantity => amount(check, value, path, faults),
        Check::Driver => driver(value.as_str().unwrap_or_default(), value, path, faults),
        Check::DomainPath => domain_path(value, path, faults),
        _ => numeric(check, value, path, faults),
    }
    true
}

fn values_of(check: &Check) -> Vec<&'static str> {
    match check {
        Check::MustEnum(values) => values.clone(),
        _ => Vec::new(),
    }
}

fn text(format: Format, text: Option<&str>, path: &Path<'_>, faults: &mut Faults) {
    if let Some(text) = text
        && let Some(fault) = format.fault(text)
    {
        faults.invalid(path, &json!(text), &fault);
    }
}

pub(super) const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

pub(super) fn is_port(number: i64) -> bool {
    (1..=65_535).contains(&number)
}

fn numeric(check: &Check, value: &Value, path: &Path<'_>, faults: &mut Faults) {
    let found = value.as_i64();
    let number = found.unwrap_or_default();
    let fault = match check {
        Check::Range(low, high) if number < *low || number > *high => {
            format!("must be between {low} and {high}, inclusive")
        }
        Check::Min(low) if number < *low => format!("must be greater than or equal to {low} seconds"),
        Check::Max(high) if number > *high => format!("must be less than or equal to {high}"),
        Check::Positive if number <= 0 => "must be greater than 0".to_owned(),
        Check::NotNegative if number < 0 => NOT_NEGATIVE.to_owned(),
        Check::Id if !(0..=2_147_483_647).contains(&number) => {
            "must be between 0 and 2147483647, inclusive".to_owned()
        }
        Check::Mode if !(0..=0o777).contains(&number) => {
            "must be a number between 0 and 0777 (octal), both inclusive".to_owned()
        }
        Check::Port if number != 0 && !is_port(number) => PORT_RANGE.to_owned(),
        Check::MustBePort if !is_port(number) => return faults.invalid(path, &json!(number), PORT_RANGE),
        Check::MustBePositive if number <= 0 => {
            return faults.invalid(path, &json!(number), "must be greater than 0");
        }
        _ => return,
    };
    if found.is_some() {
        faults.invalid(path, value, &fault);
    }
}

pub(super) fn port_or_name(value: &Value, path: &Path<'_>, faults: &mut Faults) {
    match value {
        Value::String(name) => text(Format::PortName, Some(name), path, faults),
        other => {
            let number = other.as_i64().unwrap_or_default();
            if !is_port(number) {
                faults.invalid(path, &json!(number), PORT_RANGE);
            }
        }
    }
}

fn percentage(check: &Check, value: &Value, path: &Path<'_>, faults: &mut Faults) {
    let given = value.as_str().map(percent);
    match (check, given) {
        (Check::Percent, Some(None)) => {
            let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
                       regex used for validation is '[0-9]+%')";
            faults.invalid(path, value, why);
        }
        (Check::Percent, None) => faults.not_negative(path, value),
        (Check::MaxPercent, Some(Some(share))) if share > 100 => {
            faults.invalid(path, value, "must not be greater than 100%");
        }
        _ => {}
    }
}

/// A quantity, which decoding has made sure of.
pub(super) fn quantity(value: &Value) -> Option<Quantity> {
    value.as_str().and_then(|text| text.parse().ok())
}

fn amount(check: &Check, value: &Value, path: &Path<'_>, faults: &mut Faults) {
    let Some(amount) = quantity(value) else { return };
    match check {
        Check::NotNegativeQuantity if amount.is_negative() => faults.invalid(path, value, NOT_NEGATIVE),
        Check::PositiveQuantity if amount.is_negative() || amount.is_zero() => {
            faults.invalid(path, value, "must be positive");
        }
        _ => {}
    }
}

fn unique(check: &Check, list: &Value, path: &Path<'_>, faults: &mut Faults) {
    let mut seen = std::collections::HashSet::new();
    for (at, item) in list.as_array().into_iter().flatten().enumerate() {
        let path = path.index(at);
        match check {
            Check::UniqueBy(key) => {
                let value = item.get(*key).cloned().unwrap_or_else(|| json!(""));
                if !seen.insert(value.to_string()) {
                    faults.duplicate(&path.child(key), &value);
                }
            }
            _ if !seen.insert(item.to_string()) => faults.duplicate(&path, item),
            _ => {}
        }
    }
}

fn driver(name: &str, value: &Value, path: &Path<'_>, faults: &mut Faults) {
    const MAX_BYTES: usize = 63;
    if name.is_empty() {
        return faults.required(path, "");
    }
    if name.len() > MAX_BYTES {
        faults.too_long(path, MAX_BYTES);
    }
    if let Some(fault) = Format::SubdomainCaseless.fault(name) {
        faults.invalid(path, value, &fault);
    }
}

fn domain_path(value: &Value, path: &Path<'_>, faults: &mut Faults) {
    let given = value.as_str().unwrap_or_default();
    if given.is_empty() {
        return faults.required(path, "");
    }
    let parts = given.split_once('/').filter(|(host, rest)| !host.is_empty() && !rest.is_empty());
    let Some((host, rest)) = parts else {
        let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        return faults.invalid(path, value, why);
    };
    text(Format::Subdomain, Some(host), path, faults);
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
    if !rest.bytes().all(is_plain) {
        let why = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        faults.invalid(path, &json!(rest), why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_table_is_known() {
        let mut unknown = Vec::new();
        let table = parse(&mut |word| unknown.push(word));
        assert!(unknown.is_empty(), "{unknown:?}");
        assert!(table.len() > 100);
    }

    /// The fields and reasons of what a check has against a value.
    #[track_caller]
    fn refused(word: &'static str, value: Value, reasons: &[&str]) {
        let mut faults = Faults::default();
        run(&[check(word).unwrap()], &value, &Path::ROOT.child("f"), &mut faults);
        let found: Vec<&str> =
            faults.causes.iter().map(|cause| cause.reason.trim_start_matches("FieldValue")).collect();
        assert_eq!(found, reasons, "{word} {value}");
    }

    #[test]
    fn what_is_missing_is_not_what_is_wrong() {
        refused("required", json!(null), &["Required"]);
        refused("required", json!([]), &["Required"]);
        refused("enum(A,B)", json!(null), &[]);
        refused("enum(A,B)", json!("C"), &["NotSupported"]);
        refused("enum-or-required(A)", json!(""), &["Required"]);
        refused("must-enum(A)", json!(null), &["NotSupported"]);
        refused("label", json!(""), &[]);
        refused("label!", json!(""), &["Invalid"]);
        refused("label!", json!(null), &[]);
        refused("label-or-invalid", json!(null), &["Invalid"]);
    }

    #[test]
    fn numbers_have_their_bounds() {
        refused("range(1,3)", json!(4), &["Invalid"]);
        refused("range(1,3)", json!(null), &[]);
        refused("must-be-positive", json!(null), &["Invalid"]);
        refused("positive", json!(null), &[]);
        refused("port?", json!(0), &[]);
        refused("port!", json!(null), &["Invalid"]);
        refused("mode", json!(0o1000), &["Invalid"]);
        refused("percent", json!("5"), &["Invalid"]);
        refused("percent", json!(-1), &["Invalid"]);
        refused("max-percent", json!("101%"), &["Invalid"]);
    }

    #[test]
    fn entries_of_one_key_are_told_apart_and_paths_have_a_domain() {
        refused("unique(k)", json!([{"k": 1}, {"k": 2}, {"k": 1}]), &["Duplicate"]);
        refused("unique", json!(["a", "a", "b"]), &["Duplicate"]);
        refused("domain-path", json!("a.example.com/b"), &[]);
        refused("domain-path", json!("a.example.com"), &["Invalid"]);
        refused("driver", json!("X.example.com"), &[]);
        refused("driver", json!("x".repeat(64)), &["TooLong"]);
    }
}
