//! Label and field selectors.
//!
//! Source: apimachinery's `labels` and `fields` packages.

use serde_json::Value;

use crate::{Status, name};

/// A parsed label selector: all requirements must hold. The empty selector matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    /// Set for the `null` object selector, which matches nothing.
    nothing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    Exists,
    DoesNotExist,
    In(Values),
    NotIn(Values),
    GreaterThan(i64),
    LessThan(i64),
}

/// Values in order, so that looking one up does not depend on how many a selector lists.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Values(Vec<String>);

impl Values {
    fn new(mut values: Vec<String>) -> Values {
        values.sort_unstable();
        values.dedup();
        Values(values)
    }

    fn has(&self, value: &str) -> bool {
        self.0.binary_search_by(|have| have.as_str().cmp(value)).is_ok()
    }
}

impl LabelSelector {
    /// Parses the query form: `app=web,tier in (a,b),!legacy`.
    pub fn parse(text: &str) -> Result<LabelSelector, Status> {
        let mut lexer = Lexer { rest: text };
        let mut requirements = Vec::new();
        let bad = |why: String| Status::bad_request(format!("unable to parse requirement: {why}"));
        while !lexer.peek().is_empty() {
            requirements.push(lexer.requirement().map_err(bad)?);
            match lexer.next() {
                "" => break,
                "," if !lexer.peek().is_empty() => {}
                found => return Err(bad(format!("found {found:?}, expected: ',' or 'end of string'"))),
            }
        }
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// Reads the object form, `{matchLabels, matchExpressions}`; `Null` selects nothing, `{}` everything.
    pub fn from_json(selector: &Value) -> Result<LabelSelector, Status> {
        if selector.is_null() {
            return Ok(LabelSelector { requirements: Vec::new(), nothing: true });
        }
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements
                .push(Requirement { key: key.clone(), operator: Operator::In(Values::new(vec![value])) });
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let key = expression["key"].as_str().unwrap_or_default().to_owned();
            let values: Vec<String> = expression["values"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect();
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In(Values::new(values)),
                "NotIn" => Operator::NotIn(Values::new(values)),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(Status::bad_request(format!(
                        "{other:?} is not a valid label selector operator"
                    )));
                }
            };
            requirements.push(Requirement { key, operator });
        }
        Ok(LabelSelector { requirements, nothing: false })
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Key, operator and values of each requirement in the object form, by key. What compares numbers has no such form, and is
    /// left out.
    pub fn requirements(&self) -> Vec<(&str, &'static str, &[String])> {
        let written = self.requirements.iter().filter_map(|requirement| {
            let (operator, values): (_, &[String]) = match &requirement.operator {
                Operator::Exists => ("Exists", &[]),
                Operator::DoesNotExist => ("DoesNotExist", &[]),
                Operator::In(Values(values)) => ("In", values),
                Operator::NotIn(Values(values)) => ("NotIn", values),
                Operator::GreaterThan(_) | Operator::LessThan(_) => return None,
            };
            Some((requirement.key.as_str(), operator, values))
        });
        let mut written: Vec<_> = written.collect();
        written.sort_by_key(|(key, ..)| *key);
        written
    }

    /// `get` looks a label up.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.operator.holds(get(&r.key)))
    }
}

impl Operator {
    fn holds(&self, label: Option<&str>) -> bool {
        let number = || label.and_then(|l| l.parse::<i64>().ok());
        match self {
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::In(values) => label.is_some_and(|l| values.has(l)),
            // A label that is absent is not in any list.
            Operator::NotIn(values) => label.is_none_or(|l| !values.has(l)),
            Operator::GreaterThan(bound) => number().is_some_and(|n| n > *bound),
            Operator::LessThan(bound) => number().is_some_and(|n| n < *bound),
        }
    }
}

/// Words and symbols of the query form.
struct Lexer<'t> {
    rest: &'t str,
}

impl<'t> Lexer<'t> {
    fn next(&mut self) -> &'t str {
        let (token, rest) = Lexer::split(self.rest);
        self.rest = rest;
        token
    }

    fn peek(&self) -> &'t str {
        Lexer::split(self.rest).0
    }

    fn split(text: &'t str) -> (&'t str, &'t str) {
        let text = text.trim_start();
        let symbol = |c: char| matches!(c, '=' | '!' | '(' | ')' | ',' | '<' | '>');
        let Some(first) = text.chars().next() else { return ("", "") };
        let end = if symbol(first) {
            ["==", "!="].iter().find(|s| text.starts_with(**s)).map_or(1, |s| s.len())
        } else {
            text.find(|c: char| symbol(c) || c.is_whitespace()).unwrap_or(text.len())
        };
        text.split_at(end)
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        if self.peek() == "!" {
            self.next();
            let key = self.key()?;
            return Ok(Requirement { key, operator: Operator::DoesNotExist });
        }
        let key = self.key()?;
        let operator = match self.peek() {
            "" | "," => Operator::Exists,
            symbol => {
                self.next();
                self.operator(symbol)?
            }
        };
        Ok(Requirement { key, operator })
    }

    fn operator(&mut self, symbol: &str) -> Result<Operator, String> {
        let number = |text: &str| {
            text.parse::<i64>()
                .map_err(|_| format!("for 'Gt', 'Lt' operators, the value must be an integer: {text:?}"))
        };
        Ok(match symbol {
            "=" | "==" => Operator::In(Values::new(vec![self.value()?])),
            "!=" => Operator::NotIn(Values::new(vec![self.value()?])),
            "in" => Operator::In(Values::new(self.values()?)),
            "notin" => Operator::NotIn(Values::new(self.values()?)),
            ">" => Operator::GreaterThan(number(&self.value()?)?),
            "<" => Operator::LessThan(number(&self.value()?)?),
            found => {
                return Err(format!(
                    "found {found:?}, expected: in, notin, =, ==, !=, gt, lt, or end of string"
                ));
            }
        })
    }

    fn key(&mut self) -> Result<String, String> {
        let key = self.next();
        name::qualified_name_fault(key)
            .map_or(Ok(key.to_owned()), |why| Err(format!("<nil>: Invalid value: {key:?}: {why}")))
    }

    /// One value; nothing, before a `,` or the end, is the empty string.
    fn value(&mut self) -> Result<String, String> {
        if matches!(self.peek(), "" | "," | ")") {
            return Ok(String::new());
        }
        let value = self.next();
        name::label_value_fault(value)
            .map_or(Ok(value.to_owned()), |why| Err(format!("values[0]: Invalid value: {value:?}: {why}")))
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        let found = self.next();
        if found != "(" {
            return Err(format!("found {found:?}, expected: '('"));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value()?);
            match self.next() {
                "," => {}
                ")" => return Ok(values),
                found => return Err(format!("found {found:?}, expected: ',' or ')'")),
            }
        }
    }
}

/// A parsed field selector: `metadata.name=x,status.phase!=Running`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// (field, must be equal, value), in the order given.
    pub terms: Vec<(String, bool, String)>,
}

impl FieldSelector {
    pub fn parse(text: &str) -> Result<FieldSelector, Status> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let found = ["!=", "==", "="].iter().find_map(|op| {
                let (field, value) = term.split_once(op)?;
                // `a=b!=c` splits at its first operator, whichever that is.
                (!field.contains(['=', '!'])).then_some((field, *op, value))
            });
            let Some((field, operator, value)) = found else {
                return Err(Status::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{term}'"
                )));
            };
            terms.push((field.to_owned(), operator != "!=", unescape(value)));
        }
        Ok(FieldSelector { terms })
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// `get` looks a field up, `""` where it is unset.
    pub fn matches(&self, get: impl Fn(&str) -> String) -> bool {
        self.terms.iter().all(|(field, equal, value)| (get(field) == *value) == *equal)
    }

    /// The value that a field must have, if the selector requires one.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|(f, equal, _)| f == field && *equal).map(|(_, _, v)| v.as_str())
    }
}

/// Splits at commas that no backslash escapes.
fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            '\\' if !escaped => escaped = true,
            ',' if !escaped => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => escaped = false,
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn matches(selector: &str, labels: &[(&str, &'static str)]) -> bool {
        LabelSelector::parse(selector)
            .unwrap()
            .matches(|key| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v))
    }

    #[test]
    fn requirements_hold_as_upstream_says() {
        let labels = [("app", "web"), ("n", "5")];
        for (selector, wanted) in [
            ("", true),
            ("app=web", true),
            ("app==web,n=5", true),
            ("app!=web", false),
            ("absent!=web", true),
            ("app in (a, web)", true),
            ("app notin (a,b)", true),
            ("app", true),
            ("!app", false),
            ("!absent", true),
            ("n>4,n<6", true),
            ("app=", false),
        ] {
            assert_eq!(matches(selector, &labels), wanted, "{selector}");
        }
    }

    #[test]
    fn a_malformed_selector_is_a_bad_request() {
        for selector in ["app in web", "app=web,", "a b", "=x", "app in (a", "-x=1"] {
            assert_eq!(LabelSelector::parse(selector).unwrap_err().code, 400, "{selector}");
        }
    }

    #[test]
    fn the_null_selector_matches_nothing_and_the_empty_one_everything() {
        assert!(!LabelSelector::from_json(&Value::Null).unwrap().matches(|_| None));
        assert!(LabelSelector::from_json(&json!({})).unwrap().matches(|_| None));
        let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "DoesNotExist"}]});
        assert!(LabelSelector::from_json(&selector).unwrap().matches(|k| (k == "a").then_some("b")));
    }

    #[test]
    fn a_selector_of_very_many_values_is_matched_as_fast_as_one_of_few() {
        let names: Vec<String> = (0..200_000).map(|n| format!("v{n}")).collect();
        let selector = json!({"matchExpressions": [{"key": "a", "operator": "In", "values": names}]});
        let selector = LabelSelector::from_json(&selector).unwrap();
        assert!(names.iter().all(|name| selector.matches(|_| Some("v0").filter(|_| !name.is_empty()))));
        assert!(!names.iter().any(|_| selector.matches(|_| Some("w"))));
    }

    #[test]
    fn field_selectors_split_at_unescaped_commas() {
        let selector = FieldSelector::parse(r"metadata.name=a\,b,status.phase!=Running").unwrap();
        assert_eq!(selector.required("metadata.name"), Some("a,b"));
        assert!(!selector.terms[1].1);
        assert_eq!(FieldSelector::parse("nonsense").unwrap_err().code, 400);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }
    }
}
