//! What may change of a pod: images, a deadline that comes nearer, more tolerations, fewer gates; and, while it is gated, where it
//! may run, in the direction of fewer places.

use serde_json::{Value, json};

use super::super::same_spec;
use super::path::{Faults, Path, entries, has, list, text};
use crate::Cause;

const SPEC: &str = "io.k8s.api.core.v1.PodSpec";
const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
     `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
     existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
     previously negative)";

pub(in super::super) fn check(new: &Value, old: &Value) -> Vec<Cause> {
    let (mut faults, path) = (Faults::default(), Path::ROOT.child("spec"));
    let (is, was) = (&new["spec"], &old["spec"]);
    for field in ["containers", "initContainers"] {
        if !same_length(&mut faults, is, was, field, &path) {
            return faults.causes;
        }
    }
    if !deadline(&mut faults, &is["activeDeadlineSeconds"], &was["activeDeadlineSeconds"], &path) {
        return faults.causes;
    }
    tolerations(&mut faults, is, was, &path.child("tolerations"));
    gates(&mut faults, is, was, &path.child("schedulingGates"));
    if same_spec(SPEC, is, was) {
        return faults.causes;
    }
    let mut munged = is.clone();
    take_over(&mut munged, was);
    if !list(was, "schedulingGates").is_empty() {
        placement(&mut faults, &mut munged, was, &path);
    }
    if !same_spec(SPEC, &munged, was) {
        faults.forbidden(&path, UPDATABLE);
    }
    faults.causes
}

/// Whether the rest can be compared at all.
fn same_length(faults: &mut Faults, is: &Value, was: &Value, field: &str, path: &Path<'_>) -> bool {
    let (containers, path) = (list(is, field), path.child(field));
    if containers.len() != list(was, field).len() {
        faults.forbidden(&path, "pod updates may not add or remove containers");
        return false;
    }
    for (at, container) in containers.iter().enumerate() {
        let (image, path) = (text(container, "image"), path.index(at));
        if image.is_empty() {
            faults.required(&path.child("image"), "");
        }
        if image.trim() != image {
            let why = "must not have leading or trailing whitespace";
            faults.invalid(&path.child("image"), &image.into(), why);
        }
    }
    true
}

fn deadline(faults: &mut Faults, is: &Value, was: &Value, path: &Path<'_>) -> bool {
    let path = path.child("activeDeadlineSeconds");
    match (is.as_i64(), was.as_i64()) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            faults.invalid(&path, is, "must be between 0 and 2147483647, inclusive");
            false
        }
        (Some(new), Some(old)) if old < new => {
            faults.invalid(&path, is, "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            faults.invalid(&path, &Value::Null, "must not update from a positive integer to nil value");
            true
        }
        _ => true,
    }
}

fn tolerations(faults: &mut Faults, is: &Value, was: &Value, path: &Path<'_>) {
    let bare = |toleration: &Value| {
        let mut bare = toleration.clone();
        _ = bare.as_object_mut().map(|bare| bare.remove("tolerationSeconds"));
        bare.to_string()
    };
    let present: std::collections::HashSet<String> = list(is, "tolerations").iter().map(bare).collect();
    if !list(was, "tolerations").iter().all(|old| present.contains(&bare(old))) {
        faults.forbidden(path, "existing toleration can not be modified except its tolerationSeconds");
    }
}

fn gates(faults: &mut Faults, is: &Value, was: &Value, path: &Path<'_>) {
    let before: std::collections::HashSet<&str> =
        list(was, "schedulingGates").iter().map(|gate| text(gate, "name")).collect();
    for (at, gate) in list(is, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        if !before.contains(name) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            faults.forbidden(&path.index(at).child("name"), &why);
        }
    }
}

/// Makes what may differ the same.
fn take_over(munged: &mut Value, was: &Value) {
    for field in ["containers", "initContainers"] {
        for (at, old) in list(was, field).iter().enumerate() {
            if let Some(container) = munged[field].get_mut(at).filter(|container| container.is_object()) {
                container["image"] = old["image"].clone();
            }
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        keep(munged, was, field);
    }
    let (is, before) = (&munged["terminationGracePeriodSeconds"], &was["terminationGracePeriodSeconds"]);
    if before.as_i64().is_some_and(|seconds| seconds < 0) && is == 1 {
        keep(munged, was, "terminationGracePeriodSeconds");
    }
}

fn keep(munged: &mut Value, was: &Value, field: &str) {
    let Some(map) = munged.as_object_mut() else { return };
    match was.get(field) {
        Some(value) => _ = map.insert(field.into(), value.clone()),
        None => _ = map.remove(field),
    }
}

fn placement(faults: &mut Faults, munged: &mut Value, was: &Value, path: &Path<'_>) {
    if entries(was, "nodeSelector").any(|(key, value)| munged["nodeSelector"].get(key) != Some(value)) {
        let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        faults.invalid(&path.child("nodeSelector"), &munged["nodeSelector"], why);
    }
    keep(munged, was, "nodeSelector");
    let (is, before) = (munged["affinity"]["nodeAffinity"].clone(), &was["affinity"]["nodeAffinity"]);
    if is != *before {
        let affinity = path.child("affinity");
        node_terms(faults, &is, before, &affinity.child("nodeAffinity"));
    }
    match (has(was, "affinity"), munged.get_mut("affinity").and_then(Value::as_object_mut)) {
        (_, Some(affinity)) => {
            if before.is_null() {
                affinity.remove("nodeAffinity");
            } else {
                affinity.insert("nodeAffinity".into(), before.clone());
            }
            let is_bare = affinity.values().all(Value::is_null);
            if is_bare && !has(was, "affinity") {
                _ = munged.as_object_mut().map(|munged| munged.remove("affinity"));
            }
        }
        (true, None) if !before.is_null() => munged["affinity"] = json!({"nodeAffinity": before}),
        _ => {}
    }
}

/// Terms are alternatives, so none may be added or taken away; what one demands may only become more.
fn node_terms(faults: &mut Faults, is: &Value, was: &Value, path: &Path<'_>) {
    const FIELD: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let (old, new) = (list(&was[FIELD], "nodeSelectorTerms"), list(&is[FIELD], "nodeSelectorTerms"));
    let field = path.child(FIELD);
    let field = field.child("nodeSelectorTerms");
    if !old.is_empty() && old.len() != new.len() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return faults.invalid(&field, &is[FIELD]["nodeSelectorTerms"], why);
    }
    for (at, (old, new)) in old.iter().zip(new).enumerate() {
        let parts = ["matchExpressions", "matchFields"];
        let was_empty = parts.iter().all(|part| list(old, part).is_empty());
        let is_empty = parts.iter().all(|part| list(new, part).is_empty());
        let only_more = parts.iter().all(|part| list(new, part).starts_with(list(old, part)));
        if !only_more || (was_empty && !is_empty) {
            faults.invalid(&field.index(at), new, "only additions are allowed (no mutations or deletions)");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(change: Value) -> Value {
        let mut spec = json!({"containers": [{"name": "c", "image": "i"}], "activeDeadlineSeconds": 10,
            "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]});
        for (field, value) in change.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        json!({"spec": spec})
    }

    #[track_caller]
    fn refused(was: Value, is: Value, fields: &[&str]) {
        let found: Vec<String> = check(&pod(is), &pod(was)).into_iter().map(|cause| cause.field).collect();
        assert_eq!(found, fields);
    }

    #[test]
    fn a_deadline_comes_nearer_and_does_not_go() {
        refused(json!({}), json!({"activeDeadlineSeconds": 5}), &[]);
        refused(json!({}), json!({"activeDeadlineSeconds": 50}), &["spec.activeDeadlineSeconds"]);
        refused(json!({}), json!({"activeDeadlineSeconds": null}), &["spec.activeDeadlineSeconds"]);
    }

    #[test]
    fn tolerations_are_added_and_last_longer_or_shorter() {
        let first = json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9});
        refused(json!({}), json!({"tolerations": [first, {"operator": "Exists"}]}), &[]);
        refused(json!({}), json!({"tolerations": []}), &["spec.tolerations"]);
    }

    #[test]
    fn containers_neither_come_nor_go_and_only_their_image_changes() {
        refused(json!({}), json!({"containers": [{"name": "c", "image": "j"}]}), &[]);
        refused(json!({}), json!({"containers": [{"name": "d", "image": "i"}]}), &["spec"]);
        refused(json!({}), json!({"containers": []}), &["spec.containers"]);
    }

    #[test]
    fn a_gated_pod_may_be_told_to_run_in_fewer_places() {
        let gated = json!({"schedulingGates": [{"name": "g"}], "nodeSelector": {"a": "b"}});
        refused(
            gated.clone(),
            json!({"schedulingGates": [{"name": "g"}], "nodeSelector": {"a": "b", "c": "d"}}),
            &[],
        );
        refused(gated.clone(), json!({"schedulingGates": [{"name": "g"}]}), &["spec.nodeSelector"]);
        refused(gated, json!({"nodeSelector": {"a": "b"}}), &[]);
        refused(json!({}), json!({"nodeSelector": {"a": "b"}}), &["spec"]);
        refused(json!({}), json!({"schedulingGates": [{"name": "g"}]}), &["spec.schedulingGates[0].name"]);
    }
}
