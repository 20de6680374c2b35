//! What points into objects: columns, selectable fields, the paths of `scale`, and those of rules.

use std::collections::HashSet;

use serde_json::Value;

use super::faults::{duplicate, invalid_shown, invalid_text};
use super::shown;
use super::structural::has_fields;
use super::view::at;
use crate::kinds::builtin::rules::path::{Faults, Path, text};

pub(super) const MAX_SELECTABLE: usize = 8;

pub(super) fn column(faults: &mut Faults, column: &Value, path: &Path<'_>) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
    if text(column, "name").is_empty() {
        faults.required(&path.child("name"), "");
    }
    let must = |words: &[&str]| format!("must be one of {}", words.join(","));
    match text(column, "type") {
        "" => faults.required(&path.child("type"), &must(&TYPES)),
        type_ if !TYPES.contains(&type_) => invalid_text(faults, &path.child("type"), type_, &must(&TYPES)),
        _ => {}
    }
    let format = text(column, "format");
    if !format.is_empty() && !FORMATS.contains(&format) {
        invalid_text(faults, &path.child("format"), format, &must(&FORMATS));
    }
    let field = path.child("JSONPath");
    match text(column, "jsonPath") {
        "" => faults.required(&field, ""),
        json_path => _ = simple(faults, json_path, &field),
    }
}

/// Whether a path starts as one must; upstream looks no further.
fn simple(faults: &mut Faults, json_path: &str, path: &Path<'_>) -> bool {
    let is_simple = json_path.starts_with('.');
    if !is_simple {
        invalid_text(faults, path, json_path, "must be a simple json path starting with .");
    }
    is_simple
}

pub(super) fn subresources(faults: &mut Faults, subresources: &Value, path: &Path<'_>) {
    let scale = at(subresources, "scale");
    if scale.is_null() {
        return;
    }
    for (name, below) in [("specReplicasPath", ".spec"), ("statusReplicasPath", ".status")] {
        let (json_path, field) = (text(scale, name), format!("scale.{name}"));
        let field = path.child(&field);
        if json_path.is_empty() {
            faults.required(&field, "");
        } else if simple(faults, json_path, &field) && !json_path.starts_with(&format!("{below}.")) {
            invalid_text(faults, &field, json_path, &format!("should be a json path under {below}"));
        }
    }
    let (json_path, field) = (text(scale, "labelSelectorPath"), path.child("scale.labelSelectorPath"));
    let is_below = json_path.starts_with(".spec.") || json_path.starts_with(".status.");
    if !json_path.is_empty() && simple(faults, json_path, &field) && !is_below {
        let why = "should be a json path under either .spec or .status";
        invalid_shown(faults, &field, &shown::json(&json_path.into()), why);
    }
}

pub(super) fn selectable(
    faults: &mut Faults,
    fields: &[Value],
    schema: &Value,
    may_be_many: bool,
    path: &Path<'_>,
) {
    let mut seen = HashSet::new();
    for (index, field) in fields.iter().enumerate() {
        let item = path.index(index);
        let (json_path, field) = (text(field, "jsonPath"), item.child("jsonPath"));
        if json_path.is_empty() {
            faults.required(&field, "");
            continue;
        }
        let found = match resolve(json_path, schema, Notation::Dots) {
            Ok(found) => found,
            Err(why) => {
                invalid_text(faults, &field, json_path, &format!("is an invalid path: {why}"));
                continue;
            }
        };
        if found.steps.first().is_some_and(|step| step == "metadata") {
            invalid_text(faults, &field, json_path, "must not point to fields in metadata");
        }
        if !matches!(text(found.schema, "type"), "string" | "boolean" | "integer") {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats \
                       are allowed.";
            invalid_text(faults, &field, json_path, why);
        }
        if !seen.insert(found.steps) {
            duplicate(faults, &field, json_path);
        }
    }
    if seen.len() > MAX_SELECTABLE && !may_be_many {
        faults.too_many(path, seen.len(), MAX_SELECTABLE);
    }
}

/// How the steps of a path may be written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Notation {
    /// `.spec.a`
    Dots,
    /// `.spec['a']` as well.
    Any,
}

/// Where a path of field names leads to in a schema.
pub(super) struct Found<'s> {
    /// `spec`, `[key]`: fields and keys of maps.
    steps: Vec<String>,
    schema: &'s Value,
}

const NOWHERE: &str = "does not refer to a valid field";
const END: &str = "unexpected end of JSON path";

/// # Errors
/// Why it leads nowhere, in upstream's words.
pub(super) fn resolve<'s>(
    json_path: &str,
    schema: &'s Value,
    notation: Notation,
) -> Result<Found<'s>, String> {
    let mut tokens = Tokens(json_path);
    let mut found = Found { steps: Vec::new(), schema };
    while let Some(token) = tokens.next() {
        match token {
            "[" if notation == Notation::Dots => return Err("array notation is not allowed".into()),
            "[" => {
                let token = tokens.next().ok_or(END)?;
                let inner = token.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
                let inner = inner.ok_or_else(|| format!("expected single quoted string but got {token}"))?;
                found.step(&unescaped(inner)?)?;
                match tokens.next() {
                    None => return Err(END.into()),
                    Some("]") => {}
                    Some(other) => return Err(format!("expected ] but got {other}")),
                }
            }
            "." => found.step(tokens.next().ok_or(END)?)?,
            other => return Err(format!("expected [ or . but got: {other}")),
        }
    }
    Ok(found)
}

impl Found<'_> {
    fn step(&mut self, name: &str) -> Result<(), String> {
        let fields = at(self.schema, "properties");
        if has_fields(self.schema) {
            self.schema = fields.get(name).ok_or(NOWHERE)?;
            self.steps.push(name.into());
            return Ok(());
        }
        let values = at(self.schema, "additionalProperties");
        if values.is_null() {
            return Err(NOWHERE.into());
        }
        // Of values that may be anything there is no schema. Upstream fails where a path goes on from there.
        self.schema = if values.is_object() { values } else { &Value::Null };
        self.steps.push(format!("[{name}]"));
        Ok(())
    }
}

/// The delimiters `.`, `[` and `]`, and what is between them.
struct Tokens<'p>(&'p str);

impl<'p> Iterator for Tokens<'p> {
    type Item = &'p str;

    fn next(&mut self) -> Option<&'p str> {
        let text = self.0;
        let first = text.chars().next()?;
        let end = if first == '\'' {
            let bytes = text.as_bytes();
            let closes = |at: &usize| bytes[*at] == b'\'' && bytes[*at - 1] != b'\\';
            (1..text.len()).find(closes).map_or(text.len(), |at| at + 1)
        } else {
            text.find(['.', '[', ']']).map_or(text.len(), |at| at.max(1))
        };
        let (token, rest) = text.split_at(end);
        self.0 = rest;
        Some(token)
    }
}

fn unescaped(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('a') => out.push('\u{7}'),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('v') => out.push('\u{b}'),
            Some(c @ ('\'' | '\\')) => out.push(c),
            Some(c) => return Err(format!("invalid string literal: invalid escape char \\{c}")),
            None => out.push('\\'),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_is_followed_through_fields_and_maps() {
        let schema = json!({"properties": {"a": {"additionalProperties": {"type": "string"}}, "b.c": {"type": "integer"}}});
        let found = |path: &str| resolve(path, &schema, Notation::Any).map(|found| found.steps.join("/"));
        assert_eq!(found(".a.x"), Ok("a/[x]".into()));
        assert_eq!(found("['b.c']"), Ok("b.c".into()));
        assert_eq!(found(".a['x\\'y']"), Ok("a/[x'y]".into()));
        assert_eq!(found(".a.x.y"), Err(NOWHERE.into()));
        assert_eq!(found(".a['x'"), Err(END.into()));
        assert_eq!(found(".a[x]"), Err("expected single quoted string but got x".into()));
    }
}
