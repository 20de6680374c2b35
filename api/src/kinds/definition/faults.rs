//! Causes in upstream's words.

use serde_json::{Value, json};

use super::shown;
use crate::kinds::builtin::rules::path::{Faults, Path};
use crate::{Cause, name};

/// A cause that shows what is wrong, written as upstream writes it.
pub(super) fn invalid_shown(faults: &mut Faults, path: &Path<'_>, shown: &str, why: &str) {
    faults.push(Cause {
        reason: "FieldValueInvalid",
        message: format!("Invalid value: {shown}: {why}"),
        field: path.to_string(),
    });
}

pub(super) fn invalid(faults: &mut Faults, path: &Path<'_>, value: &Value, why: &str) {
    invalid_shown(faults, path, &shown::value(value), why);
}

pub(super) fn invalid_text(faults: &mut Faults, path: &Path<'_>, text: &str, why: &str) {
    invalid_shown(faults, path, &shown::quoted(text), why);
}

pub(super) fn not_supported(faults: &mut Faults, path: &Path<'_>, text: &str, supported: &[&str]) {
    let supported = supported.iter().map(|one| shown::quoted(one)).collect::<Vec<_>>().join(", ");
    faults.push(Cause {
        reason: "FieldValueNotSupported",
        message: format!("Unsupported value: {}: supported values: {supported}", shown::quoted(text)),
        field: path.to_string(),
    });
}

pub(super) fn duplicate(faults: &mut Faults, path: &Path<'_>, text: &str) {
    faults.duplicate(path, &json!(text));
}

/// One of a few words, of which one must be said.
pub(super) fn one_of(faults: &mut Faults, path: &Path<'_>, text: &str, words: &[&str]) {
    if text.is_empty() {
        faults.required(path, "");
    } else if !words.contains(&text) {
        not_supported(faults, path, text, words);
    }
}

/// All that is wrong with a label that starts with a letter. A name that is too long may be ill-formed as well.
pub(super) fn label(text: &str) -> Vec<String> {
    all(text, name::dns1035_label_fault, 63)
}

pub(super) fn subdomain(text: &str) -> Vec<String> {
    all(text, name::dns_subdomain_fault, 253)
}

fn all(text: &str, fault: fn(&str) -> Option<String>, longest: usize) -> Vec<String> {
    let mut found: Vec<String> = fault(text).into_iter().collect();
    if text.len() > longest {
        // Labels are checked byte by byte: a part shows a fault of the form if it has one, and what follows it another.
        let is_ill_formed = text.split('.').any(|part| {
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            part.is_empty() || !part.bytes().all(inner) || part.starts_with('-') || part.ends_with('-')
        });
        let starts = longest == 253 || text.starts_with(|c: char| c.is_ascii_lowercase());
        if is_ill_formed || !starts || (longest == 63 && text.contains('.')) {
            found.extend(fault("-"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_may_be_ill_formed_as_well() {
        assert_eq!(label(&"a".repeat(64)).len(), 1);
        assert_eq!(label(&"1".repeat(64)).len(), 2);
        assert_eq!(label(&"A".repeat(64)).len(), 2);
        assert_eq!(label("A").len(), 1);
        assert_eq!(subdomain(&format!("{}.b", "1".repeat(252))).len(), 1);
        assert_eq!(subdomain(&"A".repeat(254)).len(), 2);
    }
}
