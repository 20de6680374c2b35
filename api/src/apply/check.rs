//! Whether an applied document is of its kind's type, in upstream's words.
//!
//! Source: `typed/validate.go` of structured-merge-diff.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::Value;

use super::element::Element;
use super::form::{Container, Form, Type};
use crate::schema::Shape;

/// As many faults are told; a document of faults alone has no more to say.
const MAX_FAULTS: usize = 100;

/// What is wrong with a document, one line a fault.
///
/// # Errors
/// Names each fault's place, such as `.spec.foo: field not declared in schema`.
pub(super) fn check(type_: Type<'_>, value: &Value) -> Result<(), String> {
    let mut walk = Check { faults: Vec::new(), path: Vec::new() };
    walk.value(type_, value);
    match &walk.faults[..] {
        [] => Ok(()),
        [fault] => Err(fault.clone()),
        faults => Err(faults.iter().fold("errors:".to_owned(), |mut text, fault| {
            _ = write!(text, "\n  {fault}");
            text
        })),
    }
}

struct Check {
    faults: Vec<String>,
    path: Vec<Element>,
}

impl Check {
    fn fault(&mut self, why: &str) {
        if self.faults.len() < MAX_FAULTS {
            let path = super::shown_path(&self.path);
            let colon = if path.is_empty() { "" } else { ": " };
            self.faults.push(format!("{path}{colon}{why}"));
        }
    }

    fn value(&mut self, type_: Type<'_>, value: &Value) {
        let form = type_.form(value);
        match (type_.container(), form, value) {
            // Null goes for anything, and what may be anything is not looked into.
            (_, _, Value::Null) => {}
            _ if type_.is_untyped() => {}
            (Container::Map, _, Value::Object(map)) => {
                for (name, value) in map {
                    let entry = type_.entry(name);
                    self.path.push(Element::field(name));
                    match entry {
                        Some(entry) => self.value(entry, value),
                        None => self.fault("field not declared in schema"),
                    }
                    self.path.pop();
                    if entry.is_none() {
                        break;
                    }
                }
            }
            (Container::List, Form::List, Value::Array(items)) => self.items(type_, items),
            (Container::List, _, Value::Array(items)) => {
                let Some(item_type) = type_.item() else { return };
                for (at, item) in items.iter().enumerate() {
                    self.path.push(Element::Index(i64::try_from(at).unwrap_or(i64::MAX)));
                    self.value(item_type, item);
                    self.path.pop();
                }
            }
            (Container::Map, _, other) => self.fault(&format!("expected map, got &{{{}}}", go_text(other))),
            (Container::List, _, other) => self.fault(&format!("expected list, got &{{{}}}", go_text(other))),
            (Container::None(shape), _, value) => self.scalar(shape, value),
        }
    }

    fn items(&mut self, type_: Type<'_>, items: &[Value]) {
        let Some(item_type) = type_.item() else { return };
        let mut met = BTreeSet::new();
        for (at, item) in items.iter().enumerate() {
            match type_.element(item) {
                Ok(element) => {
                    if met.contains(&element) {
                        self.fault(&format!("duplicate entries for key {element}"));
                    }
                    met.insert(element.clone());
                    self.path.push(element);
                    self.value(item_type, item);
                    self.path.pop();
                }
                Err(error) => {
                    self.fault(&format!("element {at}: {error}"));
                    return;
                }
            }
        }
    }

    fn scalar(&mut self, shape: &Shape, value: &Value) {
        let fault = match (shape, value) {
            (Shape::Int32 | Shape::Int64 | Shape::Double, Value::Number(_)) => return,
            (Shape::Int32 | Shape::Int64 | Shape::Double, other) => {
                format!("expected numeric (int or float), got {}", go_type(other))
            }
            (Shape::String | Shape::Bytes, Value::String(_)) | (Shape::Bool, Value::Bool(_)) => return,
            (Shape::String | Shape::Bytes, other) => {
                format!("expected string, got &value.valueUnstructured{{Value:{}}}", go_syntax(other))
            }
            (Shape::Bool, other) => format!("expected boolean, got &{{{}}}", go_text(other)),
            (_, Value::Number(_) | Value::String(_) | Value::Bool(_)) => return,
            (_, other) => format!("expected any scalar, got &{{{}}}", go_text(other)),
        };
        self.fault(&fault);
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A value as Go's `%#v` prints it.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_syntax).collect();
            format!("{}{{{}}}", go_type(value), items.join(", "))
        }
        Value::Object(map) => {
            let pairs: Vec<String> =
                map.iter().map(|(name, value)| format!("{name:?}:{}", go_syntax(value))).collect();
            format!("{}{{{}}}", go_type(value), pairs.join(", "))
        }
        Value::Null => "interface {}(nil)".into(),
        other => other.to_string(),
    }
}

/// A value as Go's `%v` prints it.
fn go_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let pairs: Vec<String> =
                map.iter().map(|(name, value)| format!("{name}:{}", go_text(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        Value::Null => "<nil>".into(),
        other => other.to_string(),
    }
}
