//! Values as text, and texts with clauses that values are put into.
//!
//! Source: cel-go's `ext/formatting.go`; numbers as Go's `fmt` writes them, in American grouping where upstream does.

use crate::types::Type;
use crate::value::{List, Map, Value};

use super::convert::to_text;
use super::time;

/// Digits behind the point, if a clause does not say.
const PRECISION: usize = 6;
/// A fault shows no more of a text.
const MAX_SHOWN_BYTES: usize = 1_024;
/// No clause writes more digits.
const MAX_PRECISION: usize = 1_000;

/// A value as upstream shows it within an error.
pub(crate) fn shown(value: &Value<'_>) -> String {
    match value {
        Value::Null => "null".to_string(),
        Value::Text(text) if text.len() > MAX_SHOWN_BYTES => {
            let end = (0..=MAX_SHOWN_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
            format!("{}…", &text[..end])
        }
        other => match to_text(other) {
            Ok(Some(Value::Text(text))) => text.to_string(),
            _ => other.type_of().name().to_string(),
        },
    }
}

/// A text as Go quotes it, though only as far as CEL needs it.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A number with as many digits as it needs, with an exponent where it is large or small.
pub(super) fn double(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_string();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf" } else { "-Inf" }.to_string();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    // Go's `%g` at its shortest writes an exponent from a million on.
    if number == 0.0 || (-4..6).contains(&exponent) {
        return format!("{number}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// One clause of a text: what a value becomes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clause {
    Text,
    Decimal,
    Fixed(usize),
    Scientific(usize),
    Binary,
    Hex { is_upper: bool },
    Octal,
}

/// A text with what `put` makes of each clause in its place.
pub(crate) fn clauses(
    text: &str,
    mut put: impl FnMut(Result<Clause, String>) -> Result<String, String>,
) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        if rest.is_empty() {
            put(Err("unexpected end of string".to_string()))?;
        }
        let (clause, after) = match clause(rest) {
            Ok((clause, after)) => (Ok(clause), after),
            Err(message) => (Err(format!("could not parse formatting clause: {message}")), ""),
        };
        out.push_str(&put(clause)?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn clause(text: &str) -> Result<(Clause, &str), String> {
    let (precision, rest) = match text.strip_prefix('.') {
        None => (PRECISION, text),
        Some(rest) => {
            let n_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if n_digits == rest.len() {
                return Err(
                    "error while parsing precision: could not find end of precision specifier".to_string()
                );
            }
            let (digits, rest) = rest.split_at(n_digits);
            let precision = digits.parse().map_err(|_| {
                format!(
                    "error while parsing precision: error while converting precision to integer: strconv.Atoi: \
                     parsing \"{digits}\": invalid syntax"
                )
            })?;
            (precision, rest)
        }
    };
    let precision = precision.min(MAX_PRECISION);
    let Some(letter) = rest.chars().next() else { return Err("unexpected end of string".to_string()) };
    let clause = match letter {
        's' => Clause::Text,
        'd' => Clause::Decimal,
        'f' => Clause::Fixed(precision),
        'e' => Clause::Scientific(precision),
        'b' => Clause::Binary,
        'x' | 'X' => Clause::Hex { is_upper: letter == 'X' },
        'o' => Clause::Octal,
        other => return Err(format!("unrecognized formatting clause \"{other}\"")),
    };
    Ok((clause, &rest[1..]))
}

impl Clause {
    pub(crate) fn print(self, value: &Value<'_>) -> Result<String, String> {
        self.printed(value).map_err(|message| format!("error during formatting: {message}"))
    }

    fn printed(self, value: &Value<'_>) -> Result<String, String> {
        let refused = || self.refusal(value.type_of().name());
        Ok(match (self, value) {
            (Clause::Text, Value::List(_) | Value::Map(_)) => nested(value)?,
            (Clause::Text, Value::Null) => "null".to_string(),
            (Clause::Text, Value::Optional(_) | Value::Library(_) | Value::Fault(_)) => return Err(refused()),
            (Clause::Text, value) => match to_text(value) {
                Ok(Some(Value::Text(text))) => text.to_string(),
                Err(fault) => return Err(fault.to_string()),
                _ => return Err(refused()),
            },
            (Clause::Decimal, Value::Int(number)) => number.to_string(),
            (Clause::Decimal, Value::Uint(number)) => number.to_string(),
            (Clause::Fixed(precision), value) => fixed(float(value).ok_or_else(refused)?, precision),
            (Clause::Scientific(precision), value) => {
                scientific(float(value).ok_or_else(refused)?, precision)
            }
            (Clause::Binary, Value::Bool(value)) => u8::from(*value).to_string(),
            (_, Value::Int(number)) if self != Clause::Decimal => {
                let sign = if *number < 0 { "-" } else { "" };
                format!("{sign}{}", self.digits(number.unsigned_abs()))
            }
            (Clause::Binary | Clause::Hex { .. } | Clause::Octal, Value::Uint(number)) => {
                self.digits(*number)
            }
            (Clause::Hex { is_upper }, Value::Text(text)) => hex(text.as_bytes(), is_upper),
            (Clause::Hex { is_upper }, Value::Bytes(bytes)) => hex(bytes, is_upper),
            _ => return Err(refused()),
        })
    }

    fn digits(self, number: u64) -> String {
        match self {
            Clause::Binary => format!("{number:b}"),
            Clause::Hex { is_upper: true } => format!("{number:X}"),
            Clause::Hex { is_upper: false } => format!("{number:x}"),
            Clause::Octal => format!("{number:o}"),
            _ => number.to_string(),
        }
    }

    /// What is said of a value that does not fit.
    pub(crate) fn refusal(self, type_name: &str) -> String {
        let wants = match self {
            Clause::Text => {
                "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, \
                 durations, and timestamps"
            }
            Clause::Decimal => "decimal clause can only be used on integers",
            Clause::Fixed(_) => "fixed-point clause can only be used on doubles",
            Clause::Scientific(_) => "scientific clause can only be used on doubles",
            Clause::Binary => "only integers and bools can be formatted as binary",
            Clause::Hex { .. } => "only integers, byte buffers, and strings can be formatted as hex",
            Clause::Octal => "octal clause can only be used on integers",
        };
        format!("{wants}, was given {type_name}")
    }

    /// Whether a value of this type may fit.
    pub(crate) fn takes(self, type_: &Type) -> bool {
        match self {
            _ if *type_ == Type::Dyn => true,
            Clause::Text => !matches!(type_, Type::Optional(_) | Type::Opaque(_) | Type::Object(_)),
            Clause::Decimal | Clause::Octal => matches!(type_, Type::Int | Type::Uint),
            Clause::Fixed(_) | Clause::Scientific(_) => matches!(type_, Type::Double | Type::String),
            Clause::Binary => matches!(type_, Type::Int | Type::Uint | Type::Bool),
            Clause::Hex { .. } => matches!(type_, Type::Int | Type::Uint | Type::String | Type::Bytes),
        }
    }
}

fn hex(bytes: &[u8], is_upper: bool) -> String {
    bytes.iter().map(|byte| if is_upper { format!("{byte:02X}") } else { format!("{byte:02x}") }).collect()
}

/// A number, or the word for one that has no digits.
fn float(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Double(number) => Some(*number),
        Value::Text(text) => match &**text {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// What has no digits, as American English writes it.
fn no_digits(number: f64) -> Option<&'static str> {
    match number {
        _ if number.is_nan() => Some("NaN"),
        _ if number == f64::INFINITY => Some("∞"),
        _ if number == f64::NEG_INFINITY => Some("-∞"),
        _ => None,
    }
}

fn fixed(number: f64, precision: usize) -> String {
    if let Some(word) = no_digits(number) {
        return word.to_string();
    }
    let plain = format!("{number:.precision$}");
    let (sign, digits) = plain.strip_prefix('-').map_or(("", plain.as_str()), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mut grouped = String::from(sign);
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if precision > 0 {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    grouped
}

/// Upstream takes what is said of the digits for a least width.
fn scientific(number: f64, width: usize) -> String {
    if let Some(word) = no_digits(number) {
        return word.to_string();
    }
    let plain = format!("{number:.PRECISION$e}");
    let (digits, exponent) = plain.split_once('e').unwrap_or((&plain, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let raised: String = format!("{}{:02}", if exponent < 0 { "-" } else { "" }, exponent.abs())
        .chars()
        .map(|c| match c {
            '-' => '\u{207b}',
            '1' => '\u{b9}',
            '2' => '\u{b2}',
            '3' => '\u{b3}',
            digit => char::from_u32(0x2070 + digit.to_digit(10).unwrap_or_default()).unwrap_or(digit),
        })
        .collect();
    let text = format!("{digits}×10{raised}");
    format!("{text:>width$}")
}

/// A value within a list or a map.
fn nested(value: &Value<'_>) -> Result<String, String> {
    Ok(match value {
        Value::List(list) => list_text(list)?,
        Value::Map(map) => map_text(map)?,
        Value::Text(text) => quoted(text),
        Value::Bytes(bytes) => format!("b{}", quoted(&String::from_utf8_lossy(bytes))),
        Value::Double(number) => match no_digits(*number) {
            Some(_) => quoted(&double(*number)),
            None => format!("{number:.PRECISION$}"),
        },
        Value::Duration(nanos) => format!("duration({})", quoted(&time::duration_text(*nanos))),
        Value::Timestamp(at) => format!("timestamp({})", quoted(&time::timestamp_text(*at))),
        Value::Optional(_) | Value::Library(_) | Value::Fault(_) => {
            return Err(format!("no formatting function for {}", value.type_of().name()));
        }
        other => shown(other),
    })
}

fn list_text(list: &List<'_>) -> Result<String, String> {
    let items: Vec<String> = list.iter().map(|item| nested(&item)).collect::<Result<_, _>>()?;
    Ok(format!("[{}]", items.join(", ")))
}

fn map_text(map: &Map<'_>) -> Result<String, String> {
    let mut entries: Vec<(String, String)> =
        map.iter().map(|(key, value)| Ok((nested(&key)?, nested(&value)?))).collect::<Result<_, String>>()?;
    entries.sort();
    let shown: Vec<String> = entries.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
    Ok(format!("{{{}}}", shown.join(", ")))
}
