//! The JSONPath dialect of printer columns, and what they show.
//!
//! ```text
//! .status.conditions[?(@.type=="Ready")].status ─ parse ─ steps ─ find ─ values ─ cell
//! ```
//!
//! # Guarantees
//! A path has a bounded length, and looking at an object takes a bounded number of steps: past that the cell is empty.
//!
//! Source: `util/jsonpath` of client-go, and `tableconvertor.go` of apiextensions-apiserver. `range` and `end` are not known here; of
//! a text, its bytes are no values.

use std::cmp::Ordering;

use serde_json::Value;

use super::cell::duration;
use crate::Object;
use crate::time::{Moment, Precision};

mod parse;

pub use parse::PathError;
use parse::{Node, Operator};

/// A path that can be read.
#[derive(Debug)]
pub struct JsonPath {
    /// Each is a path of its own; of several, the first counts as long as the others make sense.
    actions: Vec<Vec<Node>>,
}

/// As many values are looked at.
const MAX_STEPS: usize = 100_000;

/// Why a path leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// A step makes no sense for a value. Upstream gives up, but where a filter asks whether there is something: there it goes by
    /// what it had until then, if that was anything.
    Nonsense {
        had_values: bool,
    },
    TooMuch,
}

const NONSENSE: Failure = Failure::Nonsense { had_values: true };

impl JsonPath {
    /// Reads a path such as `.spec.replicas`.
    ///
    /// # Errors
    /// If upstream could not read it either, or it is endlessly long.
    pub fn parse(text: &str) -> Result<JsonPath, PathError> {
        Ok(JsonPath { actions: parse::template(&format!("{{{text}}}"))? })
    }

    /// The values that the path leads to, none where it makes no sense for the object.
    pub fn find<'v>(&'v self, object: &'v Value) -> Vec<&'v Value> {
        let mut walk = Walk { steps_left: MAX_STEPS };
        let mut first = None;
        for action in &self.actions {
            match walk.list(vec![object], action) {
                Err(_) => return Vec::new(),
                Ok(found) => _ = first.get_or_insert(found),
            }
        }
        first.unwrap_or_default()
    }

    /// What a column of a type shows of an object. `now_s` is seconds since the epoch, for ages.
    pub fn cell(&self, type_: &str, object: &Object, now_s: i64) -> Value {
        match self.find(object).first() {
            None => Value::Null,
            // A number in the path itself is of another type in Go than those of objects.
            Some(_) if self.ends_in_whole_number() && type_ != "string" => Value::Null,
            Some(value) => shown(type_, value, now_s),
        }
    }

    fn ends_in_whole_number(&self) -> bool {
        let last = self.actions.first().and_then(|action| action.last());
        matches!(last, Some(Node::Scalar(Value::Number(number))) if number.is_i64())
    }
}

fn shown(type_: &str, value: &Value, now_s: i64) -> Value {
    match (type_, value) {
        ("string", value) => printed(value).into(),
        ("integer", Value::Number(number)) => match number.as_i64() {
            Some(whole) => whole.into(),
            None => number.as_f64().map_or(Value::Null, |float| whole_part(float).into()),
        },
        ("number", Value::Number(_)) => whole(value),
        ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) => age(text, now_s).into(),
        _ => Value::Null,
    }
}

/// What is out of range becomes the least number, as where upstream mostly runs.
fn whole_part(float: f64) -> i64 {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if (-LIMIT..LIMIT).contains(&float) { float as i64 } else { i64::MIN }
}

fn age(text: &str, now_s: i64) -> String {
    if matches!(text, "" | "null") {
        return "<unknown>".into();
    }
    match Moment::parse(text, Precision::Seconds) {
        Err(_) => "<invalid>".into(),
        Ok(moment) if moment.is_zero() => "<unknown>".into(),
        Ok(moment) => duration(now_s - moment.seconds()),
    }
}

fn printed(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".into(),
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => whole.to_string(),
            None => number.as_f64().map(float).unwrap_or_default(),
        },
        Value::Bool(yes) => yes.to_string(),
        Value::Array(_) | Value::Object(_) => {
            // As Go writes JSON: safe to stand in a page, and whole numbers without a point.
            let escape = |c: char| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
            whole(value).to_string().chars().fold(String::new(), |mut out, c| {
                if escape(c) {
                    out.push_str(&format!("\\u{:04x}", u32::from(c)));
                } else {
                    out.push(c);
                }
                out
            })
        }
    }
}

/// The same value, with whole numbers that have no point.
fn whole(value: &Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => match number.as_f64() {
            Some(float) if float.fract() == 0.0 && float.abs() < 1e15 => (float as i64).into(),
            _ => value.clone(),
        },
        Value::Array(items) => items.iter().map(whole).collect(),
        Value::Object(map) => map.iter().map(|(name, value)| (name.clone(), whole(value))).collect(),
        other => other.clone(),
    }
}

/// A number as Go's `%v` writes it: with an exponent if that is small or large.
fn float(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..21).contains(&exponent) {
        return value.to_string();
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

struct Walk {
    steps_left: usize,
}

type Found<'v> = Result<Vec<&'v Value>, Failure>;

impl Walk {
    fn step(&mut self) -> Result<(), Failure> {
        self.steps_left = self.steps_left.checked_sub(1).ok_or(Failure::TooMuch)?;
        Ok(())
    }

    fn list<'v>(&mut self, values: Vec<&'v Value>, nodes: &'v [Node]) -> Found<'v> {
        nodes.iter().try_fold(values, |values, node| self.node(values, node))
    }

    fn node<'v>(&mut self, values: Vec<&'v Value>, node: &'v Node) -> Found<'v> {
        match node {
            Node::Text(text) => return Ok(vec![text]),
            Node::Identifier => return Err(Failure::Nonsense { had_values: !values.is_empty() }),
            Node::Union(lists) => {
                let mut found = Vec::new();
                for list in lists {
                    let of_list = self.list(values.clone(), list);
                    found.extend(of_list.map_err(|failure| failure.after(!values.is_empty()))?);
                }
                return Ok(found);
            }
            _ => {}
        }
        let mut found = Vec::new();
        for value in values {
            self.step()?;
            match node {
                Node::Field(name) => found.extend(value.get(name).filter(|_| value.is_object())),
                Node::Wildcard => self.parts(value, &mut found)?,
                Node::Recursive => self.recurse(value, &mut found)?,
                Node::Slice(slice) if !value.is_null() => {
                    let items = value.as_array().ok_or(NONSENSE)?;
                    for item in slice.of(items).ok_or(NONSENSE)? {
                        self.step()?;
                        found.push(item);
                    }
                }
                Node::Filter(left, operator, right) => {
                    for item in value.as_array().ok_or(NONSENSE)? {
                        self.step()?;
                        let passes = self.passes(item, left, *operator, right, !found.is_empty());
                        if passes? {
                            found.push(item);
                        }
                    }
                }
                Node::Scalar(scalar) => found.push(scalar),
                Node::Slice(_) | Node::Text(_) | Node::Identifier | Node::Union(_) => {}
            }
        }
        Ok(found)
    }

    fn parts<'v>(&mut self, value: &'v Value, found: &mut Vec<&'v Value>) -> Result<(), Failure> {
        let before = found.len();
        match value {
            Value::Array(items) => found.extend(items),
            Value::Object(map) => found.extend(map.values()),
            _ => {}
        }
        self.steps_left = self.steps_left.checked_sub(found.len() - before).ok_or(Failure::TooMuch)?;
        Ok(())
    }

    /// A value and all in it that has parts itself, as deep as documents are.
    fn recurse<'v>(&mut self, value: &'v Value, found: &mut Vec<&'v Value>) -> Result<(), Failure> {
        self.step()?;
        if matches!(value, Value::String(text) if !text.is_empty()) {
            found.push(value);
            return Ok(());
        }
        let mut parts = Vec::new();
        self.parts(value, &mut parts)?;
        if !parts.is_empty() {
            found.push(value);
            for part in parts {
                self.recurse(part, found)?;
            }
        }
        Ok(())
    }

    fn passes(
        &mut self,
        item: &Value,
        left: &[Node],
        operator: Operator,
        right: &[Node],
        has_found: bool,
    ) -> Result<bool, Failure> {
        let lefts = self.list(vec![item], left);
        if operator == Operator::Exists {
            return match lefts {
                Ok(lefts) => Ok(!lefts.is_empty()),
                Err(Failure::Nonsense { had_values }) => Ok(had_values),
                Err(Failure::TooMuch) => Err(Failure::TooMuch),
            };
        }
        let left = match &lefts.map_err(|failure| failure.after(true))?[..] {
            [] => return Ok(false),
            [one] => *one,
            _ => return Err(NONSENSE),
        };
        let rights = self.list(vec![item], right);
        let right = match &rights.map_err(|failure| failure.after(true))?[..] {
            [] => return Ok(false),
            [one] => *one,
            _ => return Err(NONSENSE),
        };
        compare(left, operator, right).map_err(|failure| failure.after(has_found))
    }
}

impl Failure {
    /// The same, as seen from a step around it.
    fn after(self, had_values: bool) -> Failure {
        match self {
            Failure::Nonsense { .. } => Failure::Nonsense { had_values },
            Failure::TooMuch => Failure::TooMuch,
        }
    }
}

fn compare(left: &Value, operator: Operator, right: &Value) -> Result<bool, Failure> {
    let order = match (left, right) {
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        (Value::Number(left), Value::Number(right)) => match (left.as_i64(), right.as_i64()) {
            (Some(left), Some(right)) => Some(left.cmp(&right)),
            (None, None) => left.as_f64().partial_cmp(&right.as_f64()),
            // A whole number is not compared with one that is none.
            _ => return Err(NONSENSE),
        },
        (Value::Bool(left), Value::Bool(right)) => match operator {
            Operator::Equal => return Ok(left == right),
            Operator::NotEqual => return Ok(left != right),
            _ => return Err(NONSENSE),
        },
        _ => return Err(NONSENSE),
    };
    let order = order.ok_or(NONSENSE)?;
    match operator {
        Operator::Equal => Ok(order == Ordering::Equal),
        Operator::NotEqual => Ok(order != Ordering::Equal),
        Operator::Less => Ok(order == Ordering::Less),
        Operator::LessOrEqual => Ok(order != Ordering::Greater),
        Operator::Greater => Ok(order == Ordering::Greater),
        Operator::GreaterOrEqual => Ok(order != Ordering::Less),
        Operator::Exists | Operator::Unknown => Err(NONSENSE),
    }
}

#[cfg(test)]
mod tests;
