//! `fieldPath` of rules: which field a rule is about, relative to where it stands.
//!
//! Source: `ValidFieldPath` of apiextensions-apiserver's `pkg/apiserver/schema/cel`.

use super::super::part::Part;

/// Why a path is none of a schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::structural) enum PathError {
    #[error("does not refer to a valid field")]
    NoField,
    #[error("unexpected end of JSON path")]
    End,
    #[error("expected single quoted string but got {0}")]
    NotQuoted(String),
    #[error("invalid string literal: invalid escape char {0}")]
    Escape(String),
    #[error("expected ] but got {0}")]
    NoBracket(String),
    #[error("expected [ or . but got: {0}")]
    NoStep(String),
}

/// The path as causes have it: `.a['b-c']` is `a.b-c`, and of a map `a[b-c]`.
pub(in crate::structural) fn normalized(path: &str, part: Part<'_>) -> Result<String, PathError> {
    let (mut rest, mut part, mut out) = (path, Some(part), String::new());
    while let Some(token) = next(&mut rest) {
        let name = match token {
            "[" => {
                let quoted = next(&mut rest).ok_or(PathError::End)?;
                let inner = quoted.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
                let inner = inner.ok_or_else(|| PathError::NotQuoted(quoted.to_owned()))?;
                unescaped(inner)?
            }
            "." => next(&mut rest).ok_or(PathError::End)?.to_owned(),
            other => return Err(PathError::NoStep(other.to_owned())),
        };
        let around = part.ok_or(PathError::NoField)?;
        if around.has_fields() {
            part = Some(around.field(&name).ok_or(PathError::NoField)?);
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(&name);
        } else if around.is_map() {
            part = around.values();
            out.push_str(&format!("[{name}]"));
        } else {
            return Err(PathError::NoField);
        }
        if token == "[" {
            match next(&mut rest) {
                Some("]") => {}
                Some(other) => return Err(PathError::NoBracket(other.to_owned())),
                None => return Err(PathError::End),
            }
        }
    }
    Ok(out)
}

/// A sign, a text in quotes, or what stands before the next sign.
fn next<'p>(rest: &mut &'p str) -> Option<&'p str> {
    let text = *rest;
    let first = text.chars().next()?;
    let end = if first == '\'' {
        let bytes = text.as_bytes();
        let close = (1..bytes.len()).find(|at| bytes[*at] == b'\'' && bytes[*at - 1] != b'\\');
        close.map_or(text.len(), |at| at + 1)
    } else {
        match text.find(['.', '[', ']']) {
            Some(0) => 1,
            Some(at) => at,
            None => text.len(),
        }
    };
    let (token, after) = text.split_at(end);
    *rest = after;
    Some(token)
}

fn unescaped(text: &str) -> Result<String, PathError> {
    let (mut out, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next() {
            Some('a') => '\u{7}',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\u{b}',
            Some(same @ ('\'' | '\\')) => same,
            Some(other) => return Err(PathError::Escape(format!("\\{other}"))),
            None => '\\',
        });
    }
    Ok(out)
}
