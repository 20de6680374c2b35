//! What an autoscaler looks at.

use serde_json::Value;

use super::amounts;
use super::path::{Faults, Path, has, list, text};
use super::walk::{Below, Walk};

/// What a metric's type is called, and the field that says more of it; in upstream's order.
const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];
const TYPES: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];

pub(super) fn autoscaler<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    version_of_target(walk, value, path);
    let scales_to_zero = value["minReplicas"] == 0;
    let has_outside =
        list(value, "metrics").iter().any(|metric| matches!(text(metric, "type"), "Object" | "External"));
    if scales_to_zero && !has_outside {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        walk.faults.forbidden(&path.child("metrics"), why);
    }
    Below::All
}

/// The first version: one metric, the use of CPU, which is checked as what it is in the second.
pub(super) fn first_version<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    version_of_target(walk, value, path);
    if value["minReplicas"] == 0 {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        walk.faults.forbidden(&path.child("metrics"), why);
    }
    let target = &value["targetCPUUtilizationPercentage"];
    if target.as_i64().is_some_and(|percentage| percentage <= 0) {
        let (metrics, why) = (path.child("metrics"), "must be greater than 0");
        let metric = metrics.index(0);
        let (resource, field) = (metric.child("resource"), "averageUtilization");
        walk.faults.invalid(&resource.child("target").child(field), target, why);
    }
    Below::All
}

fn version_of_target(walk: &mut Walk<'_>, value: &Value, path: &Path<'_>) {
    let target = &value["scaleTargetRef"];
    let same = |field: &str, old: &Value| text(&old["spec"]["scaleTargetRef"], field) == text(target, field);
    // What stays as it was may be wrong.
    if walk.old.is_some_and(|old| same("apiVersion", old) && same("kind", old)) {
        return;
    }
    let version = text(target, "apiVersion");
    let why = match version.split('/').collect::<Vec<_>>()[..] {
        [_] | ["", _] if text(target, "kind") != "ReplicationController" => {
            "apiVersion must specify API group".to_owned()
        }
        [_] | [_, _] => return,
        _ => format!("unexpected GroupVersion string: {version}"),
    };
    walk.faults.invalid(&path.child("scaleTargetRef").child("apiVersion"), &version.into(), &why);
}

pub(super) fn metric<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let faults = &mut walk.faults;
    let (type_, field) = (text(value, "type"), path.child("type"));
    if type_.is_empty() {
        faults.required(&field, "must specify a metric source type");
    }
    if !TYPES.contains(&type_) {
        faults.not_supported(&field, &type_.into(), &TYPES);
    }
    let expected = SOURCES.iter().find(|(name, _)| *name == type_).map(|(_, field)| *field);
    if let Some(expected) = expected.filter(|expected| !has(value, expected)) {
        faults.required(&path.child(expected), "must populate information for the given metric source");
    }
    let given: Vec<&'static str> =
        SOURCES.iter().map(|(_, field)| *field).filter(|field| has(value, field)).collect();
    if given.len() != 1 {
        for other in given.iter().filter(|field| Some(**field) != expected) {
            faults.forbidden(&path.child(other), "must populate the given metric source only");
        }
    }
    let Some((first, others)) = given.split_first() else { return Below::All };
    source(faults, first, &value[*first], &path.child(first));
    Below::But(others.to_vec())
}

/// Which targets a kind of metric may have.
fn source(faults: &mut Faults, kind: &str, value: &Value, path: &Path<'_>) {
    let (target, field) = (&value["target"], path.child("target"));
    let has_target = |name: &str| has(target, name);
    match kind {
        "pods" if !has_target("averageValue") => {
            faults.required(&field.child("averageValue"), "must specify a positive target averageValue");
        }
        "object" | "external" if !has_target("value") && !has_target("averageValue") => {
            faults.required(&field.child("averageValue"), "must set either a target value or averageValue");
        }
        "external" if has_target("value") && has_target("averageValue") => {
            let why = "may not set both a target value for metric and a per-pod target";
            faults.forbidden(&field.child("value"), why);
        }
        "resource" | "containerResource" => {
            match (has_target("averageUtilization"), has_target("averageValue")) {
                (false, false) => {
                    let why = "must set either a target raw value or a target utilization";
                    faults.required(&field.child("averageUtilization"), why);
                }
                (true, true) => {
                    let why = "may not set both a target raw value and a target utilization";
                    faults.forbidden(&field.child("averageValue"), why);
                }
                _ => {}
            }
        }
        _ => {}
    }
    let name = text(value, "name");
    if kind == "containerResource" && !name.is_empty() {
        amounts::container_resource_name(name, &path.child("name"), faults);
    }
}

pub(super) fn target<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let (type_, field) = (text(value, "type"), path.child("type"));
    if type_.is_empty() {
        walk.faults.required(&field, "must specify a metric target type");
    }
    if !matches!(type_, "Utilization" | "Value" | "AverageValue") {
        walk.faults.invalid(&field, &type_.into(), "must be either Utilization, Value, or AverageValue");
    }
    Below::All
}
