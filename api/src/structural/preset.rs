//! Whether a default is a value of the schema that has it.
//!
//! Source: apiextensions-apiserver's `pkg/apiserver/schema/defaulting/validation.go`.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::check::Checker;
use super::embedded;
use super::old::Old;
use super::part::Part;
use super::place::Place;
use super::prune::{coerce_value, prune_value};
use super::rules;
use crate::Cause;
use crate::schema::Schema;

/// Whether a value has fields that its schema does not know, or its metadata such that no metadata has.
pub(crate) fn has_unknown(schema: &Schema, value: &Value) -> bool {
    prune_value(schema, &mut value.clone())
}

pub(crate) fn has_unknown_metadata(schema: &Schema, value: &Value) -> bool {
    coerce_value(schema, &mut value.clone()).unwrap_or_default()
}

/// What is wrong with a value that lies at `base`. The first kind of fault hides the others.
pub(crate) fn check(schema: &Schema, value: &Value, base: &str) -> Vec<Cause> {
    let mut value = value.clone();
    if let Err(fault) = coerce_value(schema, &mut value) {
        let (field, message) = fault.split_once(": ").unwrap_or(("", &fault));
        return vec![Cause {
            reason: "FieldValueInvalid",
            field: joined(base, field),
            message: message.to_owned(),
        }];
    }
    let mut causes = embedded::check_value(schema, &value);
    if !causes.is_empty() {
        causes.iter_mut().for_each(|cause| cause.field = joined(base, &cause.field));
        return causes;
    }
    check_values(schema, &value, base)
}

/// The same, but for metadata.
pub(crate) fn check_values(schema: &Schema, value: &Value, base: &str) -> Vec<Cause> {
    let Some(root) = schema.root() else { return Vec::new() };
    let part = Part::Node(schema, root);
    let found = Checker { schema }.value(part, value, None, &Place::Root);
    let causes: Vec<Cause> = found.faults.into_iter().map(|fault| fault.into_cause(Some(base))).collect();
    let Some(rules) = schema.compiled().rules(schema).filter(|_| causes.is_empty()) else { return causes };
    // A default must do where it was there before, and where it is new.
    let mut causes = rules::run(rules, value, Some((value, Old::new(part, value)))).causes;
    if causes.is_empty() {
        causes = rules::run(rules, value, None).causes;
    }
    causes.iter_mut().for_each(|cause| cause.field = joined(base, &cause.field));
    causes
}

/// What is wrong with the metadata of an object of which it is all that matters.
pub(crate) fn metadata_fault(object: &Value) -> Option<String> {
    static RESOURCE: LazyLock<Option<Schema>> = LazyLock::new(|| {
        let schema = json!({
            "type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true,
        });
        Schema::of_part(&schema).ok()
    });
    let schema = RESOURCE.as_ref()?;
    let mut object = object.clone();
    if let Err(fault) = coerce_value(schema, &mut object) {
        return Some(fault);
    }
    let mut faults: Vec<String> = Vec::new();
    for cause in embedded::check_value(schema, &object) {
        let fault = format!("{}: {}", cause.field, cause.message);
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    }
    match &faults[..] {
        [] => None,
        [one] => Some(one.clone()),
        many => Some(format!("[{}]", many.join(", "))),
    }
}

fn joined(base: &str, field: &str) -> String {
    match field {
        "" | "<nil>" => base.to_owned(),
        field if field.starts_with('[') => format!("{base}{field}"),
        field => format!("{base}.{field}"),
    }
}
