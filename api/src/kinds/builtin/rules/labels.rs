//! Selectors of labels.

use serde_json::Value;

use super::format::Format;
use super::path::{Path, list, text};
use super::walk::{Below, Walk};
use crate::meta;

pub(super) fn selector<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let field = path.child("matchLabels").to_string();
    // One of a template of jobs may not be given at all, so that upstream does not look into it.
    if field == "spec.jobTemplate.spec.selector.matchLabels" {
        return Below::Nothing;
    }
    meta::validate_labels(&value["matchLabels"], &field)
        .into_iter()
        .for_each(|cause| walk.faults.push(cause));
    let expressions = path.child("matchExpressions");
    for (at, expression) in list(value, "matchExpressions").iter().enumerate() {
        let path = expressions.index(at);
        let values = list(expression, "values");
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                walk.faults
                    .required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                walk.faults.forbidden(&path.child("values"), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                walk.faults.invalid(&path.child("operator"), &other.into(), "not a valid selector operator");
            }
        }
        key(walk, text(expression, "key"), &path.child("key"));
        label_values(walk, values, &path.child("values"));
    }
    Below::Nothing
}

/// A label's key.
pub(super) fn key(walk: &mut Walk<'_>, key: &str, path: &Path<'_>) {
    if let Some(fault) = Format::Qualified.fault(key) {
        walk.faults.invalid(path, &key.into(), &fault);
    }
}

pub(super) fn label_values(walk: &mut Walk<'_>, values: &[Value], path: &Path<'_>) {
    for (at, value) in values.iter().enumerate() {
        if let Some(fault) = Format::LabelValue.fault(value.as_str().unwrap_or_default()) {
            walk.faults.invalid(&path.index(at), value, &fault);
        }
    }
}
