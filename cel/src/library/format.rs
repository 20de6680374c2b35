//! Formats of names that can be asked for what is wrong with a text.
//!
//! Source: Kubernetes' `library/format.go` and apimachinery's validation, to their words.

use super::{Function, Host, Library, library, no_overload, time, url};
use crate::plan::Call;
use crate::run::Run;
use crate::value::Value;

#[derive(Debug)]
pub struct Format {
    pub(crate) name: &'static str,
    /// How long a regular expression is taken to be where costs are counted.
    pub(crate) pattern_size: u64,
    faults: fn(&str) -> Vec<String>,
}

/// Each by the name that expressions call it by.
static FORMATS: [(&str, Format); 13] = [
    ("byte", Format { name: "byte", pattern_size: 84, faults: byte }),
    ("date", Format { name: "date", pattern_size: 71, faults: date }),
    ("datetime", Format { name: "datetime", pattern_size: 71, faults: datetime }),
    ("dns1035Label", Format { name: "DNS1035Label", pattern_size: 30, faults: old_label }),
    (
        "dns1035LabelPrefix",
        Format { name: "DNS1035LabelPrefix", pattern_size: 30, faults: |text| old_label(&masked(text)) },
    ),
    ("dns1123Label", Format { name: "DNS1123Label", pattern_size: 30, faults: label }),
    (
        "dns1123LabelPrefix",
        Format { name: "DNS1123LabelPrefix", pattern_size: 30, faults: |text| label(&masked(text)) },
    ),
    ("dns1123Subdomain", Format { name: "DNS1123Subdomain", pattern_size: 60, faults: subdomain }),
    (
        "dns1123SubdomainPrefix",
        Format { name: "DNS1123SubdomainPrefix", pattern_size: 60, faults: |text| subdomain(&masked(text)) },
    ),
    ("labelValue", Format { name: "LabelValue", pattern_size: 40, faults: label_value }),
    ("qualifiedName", Format { name: "QualifiedName", pattern_size: 60, faults: qualified_name }),
    (
        "uri",
        Format {
            name: "URI",
            pattern_size: 1103,
            faults: |text| url::request_uri(text).err().into_iter().collect(),
        },
    ),
    ("uuid", Format { name: "uuid", pattern_size: 70, faults: uuid }),
];

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "format.named" => |call, args, _| match args {
            [Value::Text(name)] => Ok(named(name).map_or(Value::Optional(None), |format| {
                Value::some(Value::Library(Library::Format(format)))
            })),
            _ => Err(no_overload(call, args)),
        },
        "validate" => validate,
        _ => {
            named(name.strip_prefix("format.")?)?;
            |call, args, _| match named(call.name.strip_prefix("format.").unwrap_or_default()) {
                Some(format) => library(Library::Format(format)),
                None => Err(no_overload(call, args)),
            }
        }
    })
}

fn named(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|(known, _)| *known == name).map(|(_, format)| format)
}

fn validate<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let [Value::Library(Library::Format(format)), Value::Text(text)] = args else {
        return Err(no_overload(call, args));
    };
    let faults = (format.faults)(text);
    Ok(match faults.is_empty() {
        true => Value::Optional(None),
        false => Value::some(Value::list(faults.into_iter().map(Value::text).collect())),
    })
}

/// A text that something may be put behind: a dash at its end will not be at the end.
fn masked(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!("{rest}a"),
        _ => text.to_string(),
    }
}

fn too_long(most: usize) -> String {
    format!("must be no more than {most} bytes")
}

fn no_match(what: &str, pattern: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{what} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
}

/// Whether a text is of these bytes, begins with one that `first` takes and ends with a letter or a digit.
fn is_of(text: &str, first: fn(u8) -> bool, inside: fn(u8) -> bool, last: fn(u8) -> bool) -> bool {
    match text.as_bytes() {
        [] => false,
        [start, .., end] => first(*start) && last(*end) && text.bytes().all(inside),
        [only] => first(*only) && last(*only),
    }
}

fn is_small(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    is_of(text, is_small, |byte| is_small(byte) || byte == b'-', is_small)
}

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";

fn label(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > 63 {
        faults.push(too_long(63));
    }
    if !is_label(text) {
        let what = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                    start and end with an alphanumeric character";
        faults.push(match text.split('.').all(is_label) {
            true => "must not contain dots".to_string(),
            false => no_match(what, LABEL, &["my-name", "123-abc"]),
        });
    }
    faults
}

fn old_label(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > 63 {
        faults.push(too_long(63));
    }
    if !(is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase())) {
        let what = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                    alphabetic character, and end with an alphanumeric character";
        faults.push(no_match(what, "[a-z]([-a-z0-9]*[a-z0-9])?", &["my-name", "abc-123"]));
    }
    faults
}

fn subdomain(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > 253 {
        faults.push(too_long(253));
    }
    if !text.split('.').all(is_label) {
        let what = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                    and must start and end with an alphanumeric character";
        let pattern = format!("{LABEL}(\\.{LABEL})*");
        faults.push(no_match(what, &pattern, &["example.com"]));
    }
    faults
}

const KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

fn is_key(text: &str) -> bool {
    is_of(
        text,
        |byte| byte.is_ascii_alphanumeric(),
        |byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte),
        |byte| byte.is_ascii_alphanumeric(),
    )
}

fn label_value(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > 63 {
        faults.push(too_long(63));
    }
    if !text.is_empty() && !is_key(text) {
        let what = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
                    and must start and end with an alphanumeric character";
        faults.push(no_match(what, &format!("({KEY})?"), &["MyValue", "my_value", "12345"]));
    }
    faults
}

fn qualified_name(text: &str) -> Vec<String> {
    let what = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                alphanumeric character";
    let fault = no_match(what, KEY, &["MyName", "my.name", "123-abc"]);
    let parts: Vec<&str> = text.split('/').collect();
    let mut faults = Vec::new();
    let name = match parts.as_slice() {
        [name] => name,
        ["", name] => {
            faults.push("prefix part must be non-empty".to_string());
            name
        }
        [prefix, name] => {
            faults.extend(subdomain(prefix).into_iter().map(|fault| format!("prefix part {fault}")));
            name
        }
        _ => {
            return vec![format!(
                "a valid label key {fault} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    match name.len() {
        0 => faults.push("name part must be non-empty".to_string()),
        64.. => faults.push(format!("name part {}", too_long(63))),
        _ => {}
    }
    if !is_key(name) {
        faults.push(format!("name part {fault}"));
    }
    faults
}

fn unless(is_right: bool, fault: &str) -> Vec<String> {
    if is_right { Vec::new() } else { vec![fault.to_string()] }
}

fn uuid(text: &str) -> Vec<String> {
    const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
    let mut rest = text;
    let mut is_right = true;
    for (at, n_digits) in GROUPS.into_iter().enumerate() {
        rest = if at > 0 { rest.strip_prefix('-').unwrap_or(rest) } else { rest };
        let digits = rest.get(..n_digits).unwrap_or_default();
        is_right &= digits.len() == n_digits && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        rest = rest.get(n_digits..).unwrap_or_default();
    }
    unless(is_right && rest.is_empty(), "does not match the UUID format")
}

fn byte(text: &str) -> Vec<String> {
    let digits = text.trim_end_matches('=');
    let n_padding = text.len() - digits.len();
    let are_digits = digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte));
    unless(are_digits && n_padding <= 2 && text.len().is_multiple_of(4) && !text.is_empty(), "invalid base64")
}

fn date(text: &str) -> Vec<String> {
    unless(text.len() == 10 && time::timestamp(&format!("{text}T00:00:00Z")).is_ok(), "invalid date")
}

fn datetime(text: &str) -> Vec<String> {
    // The letters may be small; a leap second is none.
    let large = text.to_ascii_uppercase();
    unless(text.len() >= 4 && time::timestamp(&large).is_ok(), "invalid datetime")
}
