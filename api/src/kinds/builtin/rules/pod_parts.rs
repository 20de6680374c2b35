//! What is written of a running pod through subresources of its own: the containers that somebody looks into it with
//! (`ephemeralcontainers`), and what its containers are given (`resize`).
//!
//! Source: kubernetes' `pkg/registry/core/pod/strategy.go`, `ValidatePodEphemeralContainersUpdate` and `ValidatePodResize`.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::super::pod::qos_class;
use super::super::same_spec;
use super::path::{Faults, Path, has, list, text};
use crate::Cause;

const SPEC: &str = "io.k8s.api.core.v1.PodSpec";
const CONTAINER: &str = "io.k8s.api.core.v1.Container";
const REQUIREMENTS: &str = "io.k8s.api.core.v1.ResourceRequirements";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The lists of containers whose resources may change.
const LISTS: [&str; 2] = ["containers", "initContainers"];
const SIDES: [&str; 2] = ["requests", "limits"];
/// What may change of them.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Takes over the ephemeral containers.
pub(in super::super) fn take_ephemeral(pod: &mut Value, written: &Value) {
    take(&mut pod["spec"], &written["spec"], "ephemeralContainers");
}

fn take(to: &mut Value, from: &Value, field: &str) {
    let Some(to) = to.as_object_mut() else { return };
    match from.get(field) {
        Some(value) if !value.is_null() => _ = to.insert(field.into(), value.clone()),
        _ => _ = to.remove(field),
    }
}

/// Takes over what the containers and the whole pod are given. Lists whose containers are not those that stand are taken as
/// they are, to be refused.
pub(in super::super) fn take_resources(pod: &mut Value, written: &Value) {
    let (spec, written) = (&mut pod["spec"], &written["spec"]);
    // Upstream leaves everything as it was written if the number of containers differs.
    if LISTS.iter().any(|field| list(spec, field).len() != list(written, field).len()) {
        *spec = written.clone();
        return;
    }
    for field in LISTS {
        let are_same = list(spec, field)
            .iter()
            .zip(list(written, field))
            .all(|(own, new)| text(own, "name") == text(new, "name"));
        if !are_same {
            take(spec, written, field);
            continue;
        }
        let containers = spec.get_mut(field).and_then(Value::as_array_mut);
        for (own, new) in containers.into_iter().flatten().zip(list(written, field)) {
            take(own, new, "resources");
            take(own, new, "resizePolicy");
        }
    }
    // Clients that do not know of the pod's own resources take nothing from it.
    if has(written, "resources") {
        take(spec, written, "resources");
    }
}

/// What is wrong with ephemeral containers as they follow others: they come, and never change or go.
pub(in super::super) fn check_ephemeral(new: &Value, old: &Value) -> Vec<Cause> {
    let mut faults = Faults::default();
    if is_static(old) {
        faults.forbidden(&Path::ROOT, "static pods do not support ephemeral containers");
        return faults.causes;
    }
    let spec = Path::ROOT.child("spec");
    let path = spec.child("ephemeralContainers");
    let now: HashMap<&str, &Value> =
        list(&new["spec"], "ephemeralContainers").iter().map(|c| (text(c, "name"), c)).collect();
    for was in list(&old["spec"], "ephemeralContainers") {
        let name = text(was, "name");
        match now.get(name) {
            None => {
                faults.forbidden(
                    &path,
                    &format!("existing ephemeral containers {name:?} may not be removed\n"),
                );
            }
            Some(is) if !same_spec("io.k8s.api.core.v1.EphemeralContainer", is, was) => {
                faults.forbidden(
                    &path,
                    &format!("existing ephemeral containers {name:?} may not be changed\n"),
                );
            }
            Some(_) => {}
        }
    }
    faults.causes
}

fn is_static(pod: &Value) -> bool {
    has(&pod["metadata"]["annotations"], MIRROR)
}

/// What is wrong with what the containers of a pod are to be given from now on.
pub(in super::super) fn check_resize(new: &Value, old: &Value) -> Vec<Cause> {
    let mut faults = Faults::default();
    let (is, was, spec) = (&new["spec"], &old["spec"], Path::ROOT.child("spec"));
    if is_static(old) {
        faults.forbidden(&Path::ROOT, "static pods cannot be resized");
        return faults.causes;
    }
    if text(&was["os"], "name") == "windows" {
        faults.forbidden(&Path::ROOT, "windows pods cannot be resized");
        return faults.causes;
    }
    if qos_class(was) != qos_class(is) {
        let why = "Pod QOS Class may not change as a result of resizing";
        faults.invalid(&spec, &qos_class(was).into(), why);
    }
    let running = list(&old["status"], "containerStatuses").iter().find(|c| has(&c["state"], "running"));
    if running.is_some_and(|container| !has(container, "resources")) {
        faults.forbidden(&spec, "Pod running on node without support for resize");
    }
    let mut munged = is.clone();
    whole(&mut faults, &mut munged, was, &spec);
    if !same_containers(&mut faults, is, was, &spec) {
        return faults.causes;
    }
    for field in LISTS {
        containers(&mut faults, &mut munged, (is, was), field, &spec);
    }
    if faults.is_empty() && !same_spec(SPEC, &munged, was) {
        faults.forbidden(&spec, "only cpu and memory resources are mutable");
    }
    faults.causes
}

/// What the pod as a whole is given. Makes in `munged` the same what may differ.
fn whole(faults: &mut Faults, munged: &mut Value, was: &Value, spec: &Path<'_>) {
    let (before, path) = (&was["resources"], spec.child("resources"));
    let is_said = |spec: &Value| {
        SIDES.iter().any(|side| spec["resources"][side].as_object().is_some_and(|s| !s.is_empty()))
    };
    if !is_said(was) && !is_said(munged) {
        return;
    }
    if !before.is_null() && munged["resources"].is_null() {
        return faults.forbidden(&path, "pod-level resources cannot be removed");
    }
    for side in SIDES {
        if !before.is_null() && has_lost(&munged["resources"][side], &before[side]) {
            faults.forbidden(&path.child(side), &format!("pod-level resource {side} cannot be removed"));
        }
    }
    let mut resources = munged["resources"].take();
    keep_resizable(&mut resources, before);
    if before.is_null() && resources.as_object().is_some_and(Map::is_empty) {
        resources = Value::Null;
    }
    if !same_spec(REQUIREMENTS, &resources, before) {
        faults.forbidden(spec, "only cpu and memory resources are mutable at pod-level");
    }
    munged["resources"] = resources;
}

fn same_containers(faults: &mut Faults, is: &Value, was: &Value, spec: &Path<'_>) -> bool {
    for field in LISTS {
        let (new, old, path) = (list(is, field), list(was, field), spec.child(field));
        if new.len() != old.len() {
            faults.forbidden(&path, &format!("{field} may not be added or removed on resize"));
            continue;
        }
        for (at, (new, old)) in new.iter().zip(old).enumerate() {
            if text(new, "name") != text(old, "name") {
                let why = format!("{field} may not be renamed or reordered on resize");
                faults.forbidden(&path.index(at).child("name"), &why);
            }
        }
    }
    faults.causes.iter().all(|cause| !cause.message.ends_with("on resize"))
}

/// What each container is given. Makes in `munged` the same what may differ.
fn containers(
    faults: &mut Faults,
    munged: &mut Value,
    (is, was): (&Value, &Value),
    field: &str,
    spec: &Path<'_>,
) {
    let path = spec.child(field);
    for (at, (new, old)) in list(is, field).iter().zip(list(was, field)).enumerate() {
        let (path, mut kept) = (path.index(at), new.clone());
        let resources = path.child("resources");
        for side in SIDES {
            if has_lost(&new["resources"][side], &old["resources"][side]) {
                faults.forbidden(&resources.child(side), &format!("resource {side} cannot be removed"));
            }
        }
        let is_same = same_spec(CONTAINER, new, old);
        let mut given = kept["resources"].take();
        if given.is_null() && !old["resources"].is_null() {
            given = Value::Object(Map::new());
        }
        keep_resizable(&mut given, &old["resources"]);
        kept["resources"] = given;
        let is_init = field == "initContainers";
        if !same_spec(CONTAINER, &kept, old) {
            match is_init {
                false => faults.forbidden(spec, "only cpu and memory resources are mutable"),
                true => faults.forbidden(
                    &path,
                    "only cpu and memory resources for init or sidecar containers are mutable",
                ),
            }
        }
        let restarts =
            list(new, "resizePolicy").iter().any(|p| text(p, "restartPolicy") == "RestartContainer");
        if is_init && !is_same && text(new, "restartPolicy") != "Always" && restarts {
            let why =
                "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
            faults.forbidden(&path, why);
        }
        if let Some(container) = munged[field].get_mut(at) {
            *container = kept;
        }
    }
}

/// Whether amounts that stood are no longer said.
fn has_lost(now: &Value, before: &Value) -> bool {
    before.as_object().into_iter().flatten().any(|(name, _)| now.get(name).is_none())
}

/// Puts back the amounts that may change.
fn keep_resizable(resources: &mut Value, before: &Value) {
    let Some(resources) = resources.as_object_mut() else { return };
    for side in SIDES {
        let mut amounts = resources.remove(side).and_then(|side| match side {
            Value::Object(amounts) => Some(amounts),
            _ => None,
        });
        for name in RESIZABLE {
            match before[side].get(name) {
                Some(amount) => {
                    amounts.get_or_insert_default().insert(name.into(), amount.clone());
                }
                None => _ = amounts.as_mut().map(|amounts| amounts.remove(name)),
            }
        }
        if let Some(amounts) = amounts.filter(|amounts| !amounts.is_empty()) {
            resources.insert(side.into(), Value::Object(amounts));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(containers: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": containers}})
    }

    fn fields(causes: &[Cause]) -> Vec<&str> {
        causes.iter().map(|cause| cause.field.as_str()).collect()
    }

    #[test]
    fn ephemeral_containers_come_and_neither_change_nor_go() {
        let with = |ephemeral: Value| {
            let mut pod = pod(json!([{"name": "c", "image": "i"}]));
            pod["spec"]["ephemeralContainers"] = ephemeral;
            pod
        };
        let (one, changed) = (json!({"name": "d", "image": "i"}), json!({"name": "d", "image": "j"}));
        let old = with(json!([one]));
        assert!(check_ephemeral(&with(json!([{"name": "e", "image": "i"}, one])), &old).is_empty());
        for (now, what) in [(json!([]), "removed"), (json!([changed]), "changed")] {
            let causes = check_ephemeral(&with(now), &old);
            assert_eq!(fields(&causes), ["spec.ephemeralContainers"]);
            assert!(causes[0].message.contains(what), "{}", causes[0].message);
        }
    }

    #[test]
    fn only_ephemeral_containers_are_taken_over() {
        let mut stands = pod(json!([{"name": "c", "image": "i"}]));
        let mut written = pod(json!([{"name": "c", "image": "other"}]));
        written["spec"]["ephemeralContainers"] = json!([{"name": "d"}]);
        written["metadata"]["labels"] = json!({"a": "b"});
        take_ephemeral(&mut stands, &written);
        assert_eq!(stands["spec"]["containers"][0]["image"], "i");
        assert_eq!(stands["spec"]["ephemeralContainers"][0]["name"], "d");
        assert!(stands["metadata"]["labels"].is_null());
    }

    fn given(resources: Value) -> Value {
        pod(json!([{"name": "c", "image": "i", "resources": resources}]))
    }

    #[track_caller]
    fn resized(was: Value, is: Value) -> Vec<String> {
        let old = given(was);
        let (mut new, written) = (old.clone(), given(is));
        take_resources(&mut new, &written);
        check_resize(&new, &old)
            .into_iter()
            .map(|cause| format!("{} {}", cause.field, cause.message))
            .collect()
    }

    #[test]
    fn processors_and_memory_are_resized_and_nothing_else_is() {
        let was = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "ephemeral-storage": "1Gi"}});
        let more = json!({"requests": {"cpu": "150m"}, "limits": {"cpu": "1", "ephemeral-storage": "1Gi"}});
        assert!(resized(was.clone(), more).is_empty());
        let added = json!({"requests": {"cpu": "100m", "memory": "1Mi"},
            "limits": {"cpu": "200m", "memory": "2Mi", "ephemeral-storage": "1Gi"}});
        assert!(resized(was.clone(), added).is_empty());
        let storage =
            json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "ephemeral-storage": "2Gi"}});
        assert_eq!(
            resized(was.clone(), storage),
            ["spec Forbidden: only cpu and memory resources are mutable"]
        );
        let gone = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}});
        assert_eq!(
            resized(was, gone)[0],
            "spec.containers[0].resources.limits Forbidden: resource limits cannot be removed"
        );
    }

    #[test]
    fn a_class_of_service_stays() {
        let was =
            json!({"requests": {"cpu": "100m", "memory": "1Mi"}, "limits": {"cpu": "100m", "memory": "1Mi"}});
        let is =
            json!({"requests": {"cpu": "50m", "memory": "1Mi"}, "limits": {"cpu": "100m", "memory": "1Mi"}});
        let wanted =
            "spec Invalid value: \"Guaranteed\": Pod QOS Class may not change as a result of resizing";
        assert_eq!(resized(was, is), [wanted]);
    }

    #[test]
    fn containers_are_neither_added_nor_renamed_by_a_resize() {
        let old = pod(json!([{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]));
        for (written, field) in [
            (pod(json!([{"name": "a", "image": "i"}])), "spec.containers"),
            (
                pod(json!([{"name": "b", "image": "i"}, {"name": "a", "image": "i"}])),
                "spec.containers[0].name",
            ),
        ] {
            let mut new = old.clone();
            take_resources(&mut new, &written);
            assert_eq!(fields(&check_resize(&new, &old))[0], field);
        }
    }
}
