//! What is wrong with an expression, shown as upstream shows it: place, words, and the line with a mark under the place.
//!
//! Source: the layout of cel-go's `common.Error`.

use std::fmt::Write as _;

/// One fault of an expression, at a place of its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    pub stage: Stage,
    /// In bytes; `None` where the whole expression is meant.
    pub offset: Option<usize>,
    pub message: String,
}

/// What found the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Syntax,
    Types,
}

/// Why an expression cannot be used, with every fault that was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{shown}")]
pub struct Rejected {
    pub issues: Vec<Issue>,
    shown: String,
}

/// Lines that are longer are not repeated in a message.
const MAX_SHOWN_BYTES: usize = 16_384;
/// As many faults of one expression are told.
const MAX_TOLD: usize = 100;

impl Issue {
    pub(crate) fn syntax(offset: Option<usize>, message: impl Into<String>) -> Issue {
        Issue { stage: Stage::Syntax, offset, message: message.into() }
    }

    pub(crate) fn types(offset: usize, message: impl Into<String>) -> Issue {
        Issue { stage: Stage::Types, offset: Some(offset), message: message.into() }
    }
}

impl Rejected {
    pub(crate) fn new(source: &str, mut issues: Vec<Issue>) -> Rejected {
        issues.sort_by_key(|issue| issue.offset);
        issues.truncate(MAX_TOLD);
        let lines = Lines::new(source);
        let mut shown = String::new();
        for issue in &issues {
            if !shown.is_empty() {
                shown.push('\n');
            }
            lines.show(&mut shown, issue);
        }
        Rejected { issues, shown }
    }

    /// Whether the text is no expression at all, rather than one that means nothing.
    pub fn is_syntax(&self) -> bool {
        self.issues.iter().any(|issue| issue.stage == Stage::Syntax)
    }
}

/// A text with where its lines begin.
struct Lines<'s> {
    source: &'s str,
    starts: Vec<usize>,
}

impl<'s> Lines<'s> {
    fn new(source: &'s str) -> Lines<'s> {
        let ends = source.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Lines { source, starts: std::iter::once(0).chain(ends.map(|(at, _)| at + 1)).collect() }
    }

    fn show(&self, out: &mut String, issue: &Issue) {
        let Some(offset) = issue.offset else {
            _ = write!(out, "ERROR: <input>:-1:0: {}", issue.message);
            return;
        };
        if self.source.is_empty() {
            _ = write!(out, "ERROR: <input>:1:0: {}", issue.message);
            return;
        }
        let n_line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts[n_line.saturating_sub(1)];
        let text = self.source[start..].split('\n').next().unwrap_or_default();
        let before = self.source.get(start..offset).unwrap_or_default();
        _ = write!(out, "ERROR: <input>:{n_line}:{}: {}", before.chars().count() + 1, issue.message);
        if text.len() > MAX_SHOWN_BYTES {
            return;
        }
        let marks: String = before.chars().map(|c| if c.len_utf8() > 1 { '\u{ff0e}' } else { '.' }).collect();
        let at = text[before.len().min(text.len())..].chars().next();
        let mark = if at.is_some_and(|c| c.len_utf8() > 1) { '\u{ff3e}' } else { '^' };
        _ = write!(out, "\n | {}\n | {marks}{mark}", text.replace('\t', " "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_marked_under_its_line() {
        let rejected = Rejected::new("a &&\n  é.b", vec![Issue::types(9, "no b")]);
        assert_eq!(rejected.to_string(), "ERROR: <input>:2:4: no b\n |   é.b\n | ..．^");
        let rejected = Rejected::new("", vec![Issue::syntax(Some(0), "nothing")]);
        assert_eq!(rejected.to_string(), "ERROR: <input>:1:0: nothing");
    }
}
