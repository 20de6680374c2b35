//! One step of a path: how a part is found in what holds it.
//!
//! ```text
//! f:spec                             a field of an object, an entry of a map
//! k:{"port":80,"protocol":"TCP"}     the item of a list that has these keys
//! v:"a"                              the item of a set that is this value
//! i:0                                an item by its place
//! ```
//!
//! Source: `fieldpath/element.go` and `serialize-pe.go` of structured-merge-diff.

use std::cmp::Ordering;
use std::fmt;

use serde_json::{Map, Number, Value};

#[derive(Clone, Debug)]
pub enum Element {
    Field(Box<str>),
    /// Ordered by name.
    Key(Box<[(Box<str>, Value)]>),
    Value(Value),
    Index(i64),
}

/// A step of a stored path that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{0:?} is no step of a path: a letter and a colon come first")]
    NoType(String),
    #[error("{text:?} has no JSON after the colon: {source}")]
    Json { text: String, source: serde_json::Error },
    #[error("{0:?} has no whole number after the colon")]
    Index(String),
}

impl Element {
    pub fn field(name: &str) -> Element {
        Element::Field(name.into())
    }

    /// Reads a step as it stands in `FieldsV1`; `None` for kinds of steps that are not known here.
    pub fn read(text: &str) -> Result<Option<Element>, ReadError> {
        let json = |source| ReadError::Json { text: text.to_owned(), source };
        let Some((kind @ ("f" | "k" | "v" | "i"), rest)) = text.split_once(':') else {
            let is_step = text.as_bytes().get(1) == Some(&b':');
            return if is_step { Ok(None) } else { Err(ReadError::NoType(text.to_owned())) };
        };
        Ok(Some(match kind {
            "f" => Element::field(rest),
            "k" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).map_err(json)?;
                Element::Key(keys.into_iter().map(|(name, value)| (name.into(), value)).collect())
            }
            "v" => Element::Value(serde_json::from_str(rest).map_err(json)?),
            _ => Element::Index(rest.parse().map_err(|_| ReadError::Index(text.to_owned()))?),
        }))
    }

    /// The step as it stands in `FieldsV1`.
    pub fn text(&self) -> String {
        match self {
            Element::Field(name) => format!("f:{name}"),
            Element::Key(keys) => {
                let pairs: Vec<String> = keys
                    .iter()
                    .map(|(name, value)| format!("{}:{}", Value::from(&**name), go_json(value)))
                    .collect();
                format!("k:{{{}}}", pairs.join(","))
            }
            Element::Value(value) => format!("v:{}", go_json(value)),
            Element::Index(at) => format!("i:{at}"),
        }
    }
}

/// JSON as Go writes it by default, which is safe to stand in HTML.
pub(super) fn go_json(value: &Value) -> String {
    let mut escaped = String::new();
    for c in value.to_string().chars() {
        // None of these can be outside of a string.
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => escaped.push(c),
        }
    }
    escaped
}

/// `.spec`, `[port=80,protocol="TCP"]`, `[="a"]`, `[0]`: as conflicts show it.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Field(name) => write!(f, ".{name}"),
            Element::Key(keys) => {
                f.write_str("[")?;
                for (at, (name, value)) in keys.iter().enumerate() {
                    let comma = if at == 0 { "" } else { "," };
                    write!(f, "{comma}{name}={}", shown(value))?;
                }
                f.write_str("]")
            }
            Element::Value(value) => write!(f, "[={}]", shown(value)),
            Element::Index(at) => write!(f, "[{at}]"),
        }
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

impl PartialEq for Element {
    fn eq(&self, other: &Element) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Element {}

impl PartialOrd for Element {
    fn partial_cmp(&self, other: &Element) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Fields, keys, values, places; each kind by what it holds.
impl Ord for Element {
    fn cmp(&self, other: &Element) -> Ordering {
        match (self, other) {
            (Element::Field(a), Element::Field(b)) => a.cmp(b),
            (Element::Key(a), Element::Key(b)) => compare_keys(a, b),
            (Element::Value(a), Element::Value(b)) => compare_values(a, b),
            (Element::Index(a), Element::Index(b)) => a.cmp(b),
            (a, b) => a.rank().cmp(&b.rank()),
        }
    }
}

impl Element {
    fn rank(&self) -> u8 {
        match self {
            Element::Field(_) => 0,
            Element::Key(_) => 1,
            Element::Value(_) => 2,
            Element::Index(_) => 3,
        }
    }
}

fn compare_keys(a: &[(Box<str>, Value)], b: &[(Box<str>, Value)]) -> Ordering {
    let pairs = a.iter().zip(b);
    pairs
        .map(|((name, value), (other_name, other))| {
            name.cmp(other_name).then_with(|| compare_values(value, other))
        })
        .find(|order| order.is_ne())
        .unwrap_or_else(|| a.len().cmp(&b.len()))
}

/// A total order of values: numbers, texts, booleans, lists, objects, null.
pub(super) fn compare_values(a: &Value, b: &Value) -> Ordering {
    let rank = |value: &Value| match value {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    };
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare_numbers(a, b),
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let first = a.iter().zip(b).map(|(a, b)| compare_values(a, b)).find(|order| order.is_ne());
            first.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Object(a), Value::Object(b)) => {
            let pairs = a.iter().zip(b).map(|(a, b)| a.0.cmp(b.0).then_with(|| compare_values(a.1, b.1)));
            pairs.into_iter().find(|order| order.is_ne()).unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (a, b) => rank(a).cmp(&rank(b)),
    }
}

/// By what they are worth: 1 is 1.0.
fn compare_numbers(a: &Number, b: &Number) -> Ordering {
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        // What is not whole is small enough to be told from any whole number.
        _ => {
            let float = |number: &Number| number.as_f64().unwrap_or_default();
            float(a).total_cmp(&float(b))
        }
    }
}

fn whole(number: &Number) -> Option<i128> {
    /// From here on floats are not all within `i128`.
    const LIMIT: f64 = 1e38;
    if let Some(integer) = number.as_i128() {
        return Some(integer);
    }
    let float = number.as_f64()?;
    (float.fract() == 0.0 && float.abs() < LIMIT).then_some(float as i128)
}

/// Whether two values are worth the same: 1 is 1.0.
pub(super) fn same_value(a: &Value, b: &Value) -> bool {
    compare_values(a, b).is_eq()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_written_as_they_were_read() {
        for text in [
            "f:",
            "f:spec",
            "f: spaces  ",
            "i:12",
            "v:null",
            "v:\"a\"",
            "v:1234",
            "v:{\"some\":\"json\"}",
            "k:{\"name\":\"c\"}",
            "k:{\"port\":8080,\"protocol\":\"TCP\"}",
            "k:{\"name\":\"app-\u{1f680}\"}",
            "k:{\"name\":\"a\\u003cb\"}",
        ] {
            let element = Element::read(text).unwrap().unwrap();
            assert_eq!(element.text(), text);
        }
        let keys = Element::read(r#"k:{ "protocol":"TCP", "port": 80 }"#).unwrap().unwrap();
        assert_eq!(keys.text(), r#"k:{"port":80,"protocol":"TCP"}"#, "keys are sorted");
    }

    #[test]
    fn what_is_no_step_is_told_from_what_is_not_known() {
        assert!(Element::read("r:later").unwrap().is_none());
        for text in ["", "x", "no-colon", "i:", "i:1.2", "v:", "k:1", "k:{\"a\":b}"] {
            assert!(Element::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn steps_have_an_order_in_which_numbers_are_worth_what_they_are() {
        let order = [
            "f:a",
            "f:b",
            r#"k:{"a":2}"#,
            r#"k:{"a":10}"#,
            r#"k:{"a":"1"}"#,
            "v:1",
            "v:\"a\"",
            "v:true",
            "i:0",
        ];
        let read: Vec<Element> = order.iter().map(|text| Element::read(text).unwrap().unwrap()).collect();
        let mut sorted = read.clone();
        sorted.reverse();
        sorted.sort();
        assert_eq!(sorted, read);
        assert_eq!(Element::read("v:1.0").unwrap(), Element::read("v:1").unwrap());
        let (large, larger) =
            (Element::read("v:9007199254740992.0").unwrap(), Element::read("v:9007199254740993").unwrap());
        assert!(large < larger, "a float and an integer that no float is");
    }

    #[test]
    fn steps_are_shown_as_conflicts_show_them() {
        let shown = |text: &str| Element::read(text).unwrap().unwrap().to_string();
        assert_eq!(shown("f:spec"), ".spec");
        assert_eq!(shown(r#"k:{"port":80,"protocol":"TCP"}"#), r#"[port=80,protocol="TCP"]"#);
        assert_eq!(shown("v:\"a\""), r#"[="a"]"#);
        assert_eq!(shown("i:3"), "[3]");
    }
}
