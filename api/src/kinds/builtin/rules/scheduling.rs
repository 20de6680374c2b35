//! Where a pod may run.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::format::Format;
use super::labels;
use super::path::{Faults, Path, has, list, number, text};
use super::walk::{Below, Walk};

pub(super) fn node_selector<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    if list(value, "nodeSelectorTerms").is_empty() {
        walk.faults.required(&path.child("nodeSelectorTerms"), "must have at least one node selector term");
    }
    Below::All
}

/// The values of a preference are never refused, those of a requirement are.
pub(super) fn node_selector_term<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let is_preference = path.to_string().ends_with(".preference");
    let expressions = path.child("matchExpressions");
    for (at, expression) in list(value, "matchExpressions").iter().enumerate() {
        let path = expressions.index(at);
        let (values, field) = (list(expression, "values"), path.child("values"));
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                walk.faults.required(&field, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                walk.faults.forbidden(&field, why);
            }
            "Gt" | "Lt" if values.len() != 1 => {
                walk.faults
                    .required(&field, "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => {
                walk.faults.invalid(&path.child("operator"), &other.into(), "not a valid selector operator");
            }
        }
        labels::key(walk, text(expression, "key"), &path.child("key"));
        if !is_preference {
            labels::label_values(walk, values, &field);
        }
    }
    match_fields(&mut walk.faults, value, &path.child("matchFields"));
    Below::Nothing
}

fn match_fields(faults: &mut Faults, term: &Value, path: &Path<'_>) {
    for (at, field) in list(term, "matchFields").iter().enumerate() {
        let path = path.index(at);
        let values = list(field, "values");
        match text(field, "operator") {
            "In" | "NotIn" if values.len() != 1 => {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                faults.required(&path.child("values"), why);
            }
            "In" | "NotIn" => {}
            other => faults.invalid(&path.child("operator"), &other.into(), "not a valid selector operator"),
        }
        if text(field, "key") != "metadata.name" {
            faults.invalid(&path.child("key"), &text(field, "key").into(), "not a valid field selector key");
            continue;
        }
        for (at, value) in values.iter().enumerate() {
            if let Some(fault) = Format::Subdomain.fault(value.as_str().unwrap_or_default()) {
                faults.invalid(&path.child("values").index(at), value, &fault);
            }
        }
    }
}

pub(super) fn weighted<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let weight = number(value, "weight");
    if !(1..=100).contains(&weight) {
        walk.faults.invalid(&path.child("weight"), &json!(weight), "must be in the range 1-100");
    }
    Below::All
}

pub(super) fn affinity_term<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    for namespace in list(value, "namespaces") {
        if let Some(fault) = Format::Label.fault(namespace.as_str().unwrap_or_default()) {
            walk.faults.invalid(&path.child("namespace"), namespace, &fault);
        }
    }
    label_keys(walk, value, path);
    let key = text(value, "topologyKey");
    if key.is_empty() {
        walk.faults.required(&path.child("topologyKey"), "can not be empty");
    }
    labels::key(walk, key, &path.child("topologyKey"));
    Below::All
}

/// `matchLabelKeys` and `mismatchLabelKeys`, which add to a selector.
fn label_keys(walk: &mut Walk<'_>, value: &Value, path: &Path<'_>) {
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let (keys, path) = (list(value, field), path.child(field));
        if !keys.is_empty() && !has(value, "labelSelector") {
            walk.faults.forbidden(&path, "must not be specified when labelSelector is not set");
            continue;
        }
        for (at, key) in keys.iter().enumerate() {
            labels::key(walk, key.as_str().unwrap_or_default(), &path.index(at));
        }
    }
    let selector = &value["labelSelector"];
    let mut seen: HashSet<&str> =
        selector["matchLabels"].as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    let keys = list(value, "matchLabelKeys");
    for expression in list(selector, "matchExpressions") {
        let key = text(expression, "key");
        if let Some(at) = keys.iter().rposition(|k| k == key)
            && seen.contains(key)
        {
            walk.faults.invalid(
                &path.index(at),
                &key.into(),
                "exists in both matchLabelKeys and labelSelector",
            );
        }
        seen.insert(key);
    }
    let others: HashSet<&str> = list(value, "mismatchLabelKeys").iter().filter_map(Value::as_str).collect();
    for (at, key) in keys.iter().enumerate() {
        if key.as_str().is_some_and(|key| others.contains(key)) {
            let why = "exists in both matchLabelKeys and mismatchLabelKeys";
            walk.faults.invalid(&path.child("matchLabelKeys").index(at), key, why);
        }
    }
}

pub(super) fn spread<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    label_keys(walk, value, path);
    let action = text(value, "whenUnsatisfiable");
    if has(value, "minDomains") && action != "DoNotSchedule" {
        let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
        walk.faults.invalid(&path.child("minDomains"), &value["minDomains"], &why);
    }
    Below::All
}

/// No two constraints may spread over the same thing in the same way.
pub(super) fn spreads(faults: &mut Faults, constraints: &[Value], path: &Path<'_>) {
    let mut seen = HashSet::new();
    // The first of two is the one that is named, which is seen from the end.
    for (at, constraint) in constraints.iter().enumerate().rev() {
        let (key, action) = (text(constraint, "topologyKey"), text(constraint, "whenUnsatisfiable"));
        if !seen.insert((key, action)) {
            let field = path.index(at);
            faults.duplicate(
                &field.child("{topologyKey, whenUnsatisfiable}"),
                &json!(format!("{{{key}, {action}}}")),
            );
        }
    }
}

pub(super) fn toleration<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let (key, operator) = (text(value, "key"), text(value, "operator"));
    let field = path.child("operator");
    if !key.is_empty() {
        labels::key(walk, key, &path.child("key"));
    } else if operator != "Exists" {
        let why =
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        walk.faults.invalid(&field, &operator.into(), why);
    }
    let effect = text(value, "effect");
    if has(value, "tolerationSeconds") && effect != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        walk.faults.invalid(&path.child("effect"), &effect.into(), why);
    }
    let given = text(value, "value");
    match operator {
        "Equal" | "" => {
            if let Some(fault) = Format::LabelValue.fault(given) {
                walk.faults.invalid(&field, &given.into(), &fault);
            }
        }
        "Exists" if !given.is_empty() => {
            walk.faults.invalid(&field, &given.into(), "value must be empty when `operator` is 'Exists'");
        }
        "Exists" => {}
        _ => walk.faults.not_supported(&field, &operator.into(), &["Equal", "Exists"]),
    }
    const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        walk.faults.not_supported(&path.child("effect"), &effect.into(), &EFFECTS);
    }
    Below::Nothing
}
