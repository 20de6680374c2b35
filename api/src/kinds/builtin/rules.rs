//! What upstream's validation refuses, for objects as they are written and as they change.
//!
//! ```text
//!  table.txt ─ table ──┐ single fields, by type: required, enums, bounds, formats, unique keys
//!                      ├─ walk: the object beside its schema, wherever a type occurs ─ causes
//!  hooks ─ pod, … ─────┘ what depends on several fields, by type
//!  update              what may not change
//! ```
//!
//! # Guarantees
//! The work is linear in the object's size, its depth is bounded, and so is the number of causes.

use serde_json::Value;

use crate::{Cause, Kind, Object};

pub(in crate::kinds) mod path;

mod format;
mod table;

mod hooks;
mod walk;

mod amounts;
mod autoscaling;
mod certificates;
mod claim;
mod container;
mod devices;
mod flow;
mod labels;
mod network;
mod other;
mod pod;
pub(super) mod pod_parts;
pub(super) mod pod_update;
pub(in crate::kinds) mod registration;
mod scheduling;
mod service;
mod slices;
mod status;
mod storage;
mod volume;
mod workload;

mod update;
pub(crate) mod warnings;

use path::{Faults, Path};
use walk::Walk;

/// What is wrong with an object; `old` is what it replaces.
pub(crate) fn check(kind: &Kind, object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let Some(mut walk) = walked(kind, object, old) else { return Vec::new() };
    if kind.group.is_empty() && kind.kind == "Service" {
        service::annotations(&mut walk.faults, object);
    }
    if let Some(old) = old {
        update::check(kind, object, old, &mut walk.faults);
    }
    once_each(walk.faults)
}

/// What is wrong with an object as it stands, part of which replaces that of `old`.
pub(crate) fn check_part(kind: &Kind, object: &Object, old: &Object) -> Vec<Cause> {
    walked(kind, object, Some(old)).map(|walk| once_each(walk.faults)).unwrap_or_default()
}

fn walked<'v>(kind: &Kind, object: &'v Object, old: Option<&'v Object>) -> Option<Walk<'v>> {
    if !std::ptr::eq(&*kind.schema.schema, &**crate::schema::Schema::builtin()) {
        return None;
    }
    let is_pod = kind.group.is_empty() && kind.kind == "Pod";
    let mut walk = Walk::new(object, old, is_pod);
    walk.root(kind.schema.id);
    Some(walk)
}

/// What is wrong with what upstream looks at before all else, as it has to give something out: then it says nothing more.
pub(crate) fn check_first(kind: &Kind, object: &Object, old: Option<&Object>) -> Vec<Cause> {
    let mut faults = Faults::default();
    if kind.group.is_empty() && kind.kind == "Service" && object["spec"]["type"] != "ExternalName" {
        let (spec, was) = (&object["spec"], old.map(|old| &old["spec"]));
        service::addresses(&mut faults, spec, was, &Path::ROOT.child("spec"));
    }
    once_each(faults)
}

/// What is wrong with an object's `status`, which replaces that of `old`.
pub(crate) fn check_status(kind: &Kind, new: &Object, old: &Object) -> Vec<Cause> {
    let mut faults = Faults::default();
    status::check(kind, new, old, &mut faults);
    once_each(faults)
}

/// What is wrong with a pod template that lies at `path`.
pub(super) fn check_template(template: &Value, path: &str) -> Vec<Cause> {
    let mut walk = Walk::new(template, None, false);
    walk.value("core.v1.PodTemplateSpec", template, &Path::ROOT.child(path));
    once_each(walk.faults)
}

/// One fault may be found by a rule of a field and by that of a kind.
fn once_each(faults: Faults) -> Vec<Cause> {
    let mut seen = std::collections::HashSet::new();
    let mut causes = faults.causes;
    causes.retain(|cause| seen.insert((cause.reason, cause.field.clone(), cause.message.clone())));
    causes
}

/// Whether labels can be told by it; none tells nothing, but is fine.
pub(super) fn is_selector(selector: &Value) -> bool {
    let mut alone = walk::Walk::new(selector, None, false);
    labels::selector(&mut alone, selector, &path::Path::ROOT);
    selector.is_null() || alone.faults.is_empty()
}

#[cfg(test)]
mod tests;
