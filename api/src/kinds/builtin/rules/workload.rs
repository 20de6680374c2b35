//! What keeps pods going.

use serde_json::Value;

use super::is_selector;
use super::path::{Path, has, number};
use super::walk::{Below, Walk};

/// A controller whose selector does not match its own template would make pods without end.
pub(super) fn replication_controller<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let selector = value["selector"].as_object().filter(|selector| !selector.is_empty());
    let template = path.child("template");
    match selector {
        None => walk.faults.required(&path.child("selector"), ""),
        Some(selector) if has(value, "template") => {
            let meta = &value["template"]["metadata"];
            if selector.iter().any(|(key, value)| meta["labels"].get(key) != Some(value)) {
                let why = "`selector` does not match template `labels`";
                let field = template.child("metadata");
                walk.faults.invalid(&field.child("labels"), &meta["labels"], why);
            }
        }
        Some(_) => {}
    }
    let (pod, spec) = (&value["template"]["spec"], template.child("spec"));
    if has(value, "template") && pod["restartPolicy"] != "Always" && has(pod, "restartPolicy") {
        walk.faults.not_supported(&spec.child("restartPolicy"), &pod["restartPolicy"], &["Always"]);
    }
    if has(pod, "activeDeadlineSeconds") {
        let why = "activeDeadlineSeconds in ReplicationController is not Supported";
        walk.faults.forbidden(&spec.child("activeDeadlineSeconds"), why);
    }
    Below::All
}

/// A deployment that counts as failed before it can count as done would never be.
pub(super) fn deployment<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let deadline = &value["progressDeadlineSeconds"];
    if deadline.as_i64().is_some_and(|deadline| deadline <= number(value, "minReadySeconds")) {
        let why = "must be greater than minReadySeconds";
        walk.faults.invalid(&path.child("progressDeadlineSeconds"), deadline, why);
    }
    replica_set(value)
}

/// The template is not looked at before the selector can be.
pub(super) fn replica_set(value: &Value) -> Below {
    if is_selector(&value["selector"]) { Below::All } else { Below::But(vec!["template"]) }
}

/// The claims cannot change, and were checked when they came.
pub(super) fn stateful_set(walk: &mut Walk<'_>, value: &Value) -> Below {
    let mut skipped = Vec::new();
    if walk.old.is_some() {
        skipped.push("volumeClaimTemplates");
    }
    if !is_selector(&value["selector"]) {
        skipped.push("template");
    }
    Below::But(skipped)
}

pub(super) fn revision<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    let root = Path::ROOT;
    if walk.old.is_none() {
        match value.get("data") {
            None | Some(Value::Null) => walk.faults.required(&root.child("data"), "data is mandatory"),
            Some(Value::Object(_)) => {}
            Some(_) => walk.faults.required(&root.child("data"), "data must be a valid JSON object"),
        }
    }
    Below::All
}
