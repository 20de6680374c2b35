//! CustomResourceDefinitions: their defaults, what becomes of them as they are written, and what is wrong with them.
//!
//! ```text
//!  Spec (view) ─┬ spec ─┬ names, group, versions, deprecation
//!               │       ├ conversion, columns, selectable fields, scale (fields)
//!               │       └ open_api ─ structural ─ defaults ─ rules    each schema
//!               └ options: what was wrong before stays allowed
//! ```
//!
//! What all versions say alike is checked once, and called `spec.validation`, `spec.subresources` and so on: so upstream has it.
//!
//! # Guarantees
//! Linear in the definition, but for logarithms and the length of paths in faults, of which there is a limit; recursion as deep as
//! the document, which is checked before ([`crate::depth`]).

use std::collections::HashSet;

use serde_json::json;

use crate::kinds::builtin::rules::path::{Faults, Path, is_true, list, text};
use crate::meta::Meta;
use crate::strategy::Strategy;
use crate::{Cause, Object};

mod view;

mod conversion;
mod defaults;
mod fields;
mod lists;
mod open_api;
mod spec;
mod structural;

mod options;

mod faults;
mod pattern;
mod shown;

use options::Options;
use view::{Spec, at};

pub(super) struct Definitions;

impl Strategy for Definitions {
    fn default(&self, object: &mut Object) {
        let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) else { return };
        let names = at(spec, "names");
        let kind = text(names, "kind").to_owned();
        let is_unnamed = |name: &str| text(names, name).is_empty();
        let (no_singular, no_list) = (is_unnamed("singular"), is_unnamed("listKind"));
        if !kind.is_empty() {
            if no_singular {
                spec["names"]["singular"] = kind.to_lowercase().into();
            }
            if no_list {
                spec["names"]["listKind"] = format!("{kind}List").into();
            }
        }
        if at(spec, "conversion").is_null() {
            spec["conversion"] = json!({"strategy": "None"});
        }
        let service = spec.pointer_mut("/conversion/webhook/clientConfig/service");
        if let Some(service) = service.filter(|service| service.is_object() && at(service, "port").is_null())
        {
            service["port"] = 443.into();
        }
        store_first(object);
    }

    fn prepare_create(&self, object: &mut Object) {
        if let Some(map) = object.as_object_mut() {
            map.remove("status");
        }
        object["metadata"]["generation"] = 1.into();
        store(object);
    }

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        match old.get("status") {
            Some(status) => new["status"] = status.clone(),
            None => _ = new.as_object_mut().and_then(|map| map.remove("status")),
        }
        store(new);
    }

    /// What it declares goes first.
    fn prepare_delete(&self, object: &mut Object, now: &str) {
        const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
        let mut finalizers: Vec<String> = object.finalizers().into_iter().map(str::to_owned).collect();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
            object.set_meta("finalizers", finalizers);
        }
        let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
        let condition = json!({
            "type": "Terminating", "status": "True", "reason": "InstanceDeletionPending", "message": message,
            "lastTransitionTime": now,
        });
        if !object["status"]["conditions"].is_array() {
            object["status"]["conditions"] = json!([]);
        }
        if let Some(conditions) = object["status"]["conditions"].as_array_mut() {
            conditions.retain(|condition| condition["type"] != "Terminating");
            conditions.push(condition);
        }
    }

    fn validate_create(&self, object: &Object) -> Vec<Cause> {
        let mut faults = Faults::default();
        let (meta, wanted) = (at(object, "metadata"), plural_and_group(object));
        if text(meta, "name") != wanted {
            let root = Path::ROOT;
            let why = "must be spec.names.plural+\".\"+spec.group";
            let metadata = root.child("metadata");
            faults::invalid_text(&mut faults, &metadata.child("name"), text(meta, "name"), why);
        }
        let spec = Spec::of(object);
        spec::check(&mut faults, &spec, &Options::of_new());
        status(&mut faults, object, &spec);
        spec::approval(&mut faults, object, None);
        spec::preserve(&mut faults, &spec, None);
        faults.causes
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let mut faults = Faults::default();
        let (spec, before) = (Spec::of(new), Spec::of(old));
        let is_established = is_established(old);
        spec::check(&mut faults, &spec, &Options::of_update(&spec, &before, is_established));
        spec::immutable(&mut faults, spec.value, before.value, is_established);
        status(&mut faults, new, &spec);
        spec::approval(&mut faults, new, Some(old));
        spec::preserve(&mut faults, &spec, Some(&before));
        faults.causes
    }

    fn validate_status_update(&self, new: &Object, _: &Object) -> Vec<Cause> {
        let mut faults = Faults::default();
        accepted_names(&mut faults, new);
        faults.causes
    }
}

fn plural_and_group(object: &Object) -> String {
    let spec = at(object, "spec");
    format!("{}.{}", text(at(spec, "names"), "plural"), text(spec, "group"))
}

fn status(faults: &mut Faults, object: &Object, spec: &Spec<'_>) {
    accepted_names(faults, object);
    spec::stored_versions(faults, at(object, "status"), spec);
}

fn accepted_names(faults: &mut Faults, object: &Object) {
    let root = Path::ROOT;
    let path = root.child("status");
    spec::names(faults, at(at(object, "status"), "acceptedNames"), &path.child("acceptedNames"));
}

fn is_established(object: &Object) -> bool {
    let conditions = list(at(object, "status"), "conditions");
    conditions.iter().any(|one| text(one, "type") == "Established" && text(one, "status") == "True")
}

fn storage_version(object: &Object) -> Option<String> {
    let versions = list(at(object, "spec"), "versions");
    versions
        .iter()
        .find(|version| is_true(version, "storage"))
        .map(|version| text(version, "name").to_owned())
}

/// Where nothing says in which versions objects lie in the store, they can lie in one only.
fn store_first(object: &mut Object) {
    if list(at(object, "status"), "storedVersions").is_empty() {
        store(object);
    }
}

/// From now on objects may lie in the store in the version that is stored.
fn store(object: &mut Object) {
    let Some(version) = storage_version(object) else { return };
    let stored = &mut object["status"]["storedVersions"];
    match stored.as_array_mut() {
        Some(stored) if stored.iter().any(|known| *known == version) => {}
        Some(stored) => stored.push(version.into()),
        None => *stored = json!([version]),
    }
}

/// What a definition says and nobody heeds: formats that are not known, and sets of what is compared by no one. What was said
/// before is not told again.
pub(super) fn warnings(object: &Object, old: Option<&Object>) -> Vec<String> {
    let (mut found, mut before) = (open_api::Unheeded::default(), open_api::Unheeded::default());
    Spec::of(object).schemas().for_each(|schema| found.look_at(schema));
    if let Some(old) = old {
        Spec::of(old).schemas().for_each(|schema| before.look_at(schema));
    }
    let known: HashSet<&String> = before.formats.iter().collect();
    let formats = found.formats.iter().filter(|format| !known.contains(format));
    let formats = formats.map(|format| format!("unrecognized format {format:?}"));
    let sets = found.sets_of.difference(&before.sets_of).map(|of| {
        let kind = "x-kubernetes-list-type: set";
        format!(
            "{kind} for items of type {of:?} is not supported by server-side apply or CEL validation rules"
        )
    });
    formats.chain(sets).collect()
}
