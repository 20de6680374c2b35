//! The rules of `metadata`, the same for all kinds.
//!
//! Source: apimachinery's `ValidateObjectMeta` and `ValidateObjectMetaUpdate`.

use std::collections::HashSet;

use rand::Rng;
use serde_json::{Value, json};
use skiff_api::kinds::{Generation, Names, Prefix};
use skiff_api::meta::{self, Meta};
use skiff_api::{Cause, Kind, Object, Status, name};

use crate::call::Call;
use crate::clock::now;

/// Puts the request's namespace in, or refuses an object of another.
pub(crate) fn match_namespace(call: &Call, object: &mut Object) -> Result<(), Status> {
    if !call.kind.is_namespaced() {
        if !object.namespace().is_empty() {
            // Namespaces of cluster-scoped objects are dropped, as upstream does since 1.20.
            object.meta_mut().remove("namespace");
        }
        return Ok(());
    }
    let requested = call.info.namespace.as_str();
    if requested.is_empty() {
        return Err(Status::bad_request("an empty namespace may not be set during creation"));
    }
    match object.namespace() {
        "" => object.set_meta("namespace", requested),
        namespace if namespace == requested => {}
        _ => {
            let why = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Status::bad_request(why));
        }
    }
    Ok(())
}

/// Refuses an object of another name than the path's; takes the path's where it has none.
pub(crate) fn match_name(call: &Call, object: &mut Object) -> Result<(), Status> {
    let requested = call.info.name.as_str();
    match object.name() {
        "" => {
            return Err(Status::bad_request(format!(
                "the name of the object ({requested} based on URL) was undeterminable: name must be provided"
            )));
        }
        name if name == requested => {}
        name => {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({requested})"
            )));
        }
    }
    Ok(())
}

/// A generated name, if one is asked for.
pub(crate) fn generate_name(kind: &Kind, object: &mut Object) -> bool {
    let prefix = object.meta_str("generateName").to_owned();
    if !object.name().is_empty() || prefix.is_empty() {
        if object.name().is_empty() && kind.traits.is_named_by_server {
            object.set_meta("name", uuid::Uuid::new_v4().to_string());
        }
        return false;
    }
    let mut random = rand::rng();
    object.set_meta("name", name::generate(&prefix, || random.random()));
    true
}

/// What the server alone decides about a new object.
pub(crate) fn prepare_create(kind: &Kind, object: &mut Object) {
    let counts = match kind.traits.generation {
        Generation::None | Generation::Changes => false,
        Generation::Spec => !object["spec"].is_null(),
        Generation::One | Generation::Content => true,
    };
    let meta = object.meta_mut();
    for field in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        meta.remove(field);
    }
    // Where there are no generations, the author's number stays.
    if counts || meta.get("generation") == Some(&0.into()) {
        meta.remove("generation");
    }
    meta.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    meta.insert("creationTimestamp".into(), now());
    if counts {
        meta.insert("generation".into(), 1.into());
    }
    prune(meta);
}

/// Empty maps and lists say the same as none.
fn prune(meta: &mut serde_json::Map<String, Value>) {
    meta.retain(|_, value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    });
}

/// Carries over what an update may leave out, or may not change.
pub(crate) fn prepare_update(new: &mut Object, old: &Object) {
    let old_meta = old.meta();
    let meta = new.meta_mut();
    meta.remove("selfLink");
    for field in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"]
    {
        let keep = matches!(field, "creationTimestamp" | "generation");
        if keep || meta.get(field).is_none_or(|v| v.is_null() || v == "") {
            match old_meta.get(field) {
                Some(value) => meta.insert(field.into(), value.clone()),
                None => meta.remove(field),
            };
        }
    }
    if let Some(generated) = old_meta.get("generateName") {
        meta.insert("generateName".into(), generated.clone());
    }
    prune(meta);
}

pub(crate) fn raise_generation(kind: &Kind, new: &mut Object, old: &Object) {
    let generation = old.meta()["generation"].as_i64().unwrap_or(0);
    let part = |object: &Object| match kind.traits.generation {
        Generation::Content => {
            let mut content = object.clone();
            if let Some(content) = content.as_object_mut() {
                content.remove("metadata");
                if kind.has_subresource("status") {
                    content.remove("status");
                }
            }
            content
        }
        _ => json!({"spec": object["spec"]}),
    };
    let part = |object: &Object| {
        let mut part = part(object);
        if let Some(field) = kind.traits.counts_metadata {
            part["metadata"] = json!({ field: object.meta()[field] });
        }
        part
    };
    let counts = match kind.traits.generation {
        Generation::None | Generation::One => false,
        Generation::Spec | Generation::Content => generation > 0,
        Generation::Changes => true,
    };
    if counts && !kind.says_the_same(&part(new), &part(old)) {
        new.set_meta("generation", generation + 1);
    }
}

/// Whether an object is made, or replaces another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Create,
    Update,
}

pub(crate) fn validate(kind: &Kind, object: &Object, write: Write) -> Vec<Cause> {
    let mut causes = Vec::new();
    let meta = object.meta();
    let name = object.name();
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if let Some(fault) = name_fault(kind, name) {
        causes.push(Cause::invalid("metadata.name", &json!(name), &fault));
    }
    if meta["generation"].as_i64().is_some_and(|generation| generation < 0) {
        let why = "must be greater than or equal to 0";
        causes.push(Cause::invalid("metadata.generation", &meta["generation"], why));
    }
    let prefix = object.meta_str("generateName");
    if !prefix.is_empty()
        && let Some(fault) = prefix_fault(kind, prefix, write)
    {
        causes.push(Cause::invalid("metadata.generateName", &json!(prefix), &fault));
    }
    if kind.is_namespaced()
        && let Some(fault) = name::dns_label_fault(object.namespace())
    {
        causes.push(Cause::invalid("metadata.namespace", &json!(object.namespace()), &fault));
    }
    causes.extend(meta::validate_labels(&meta["labels"], "metadata.labels"));
    causes.extend(meta::validate_annotations(&meta["annotations"], "metadata.annotations"));
    causes.extend(meta::validate_owners(&meta["ownerReferences"], "metadata.ownerReferences"));
    for (at, finalizer) in object.finalizers().iter().enumerate() {
        let field = format!("metadata.finalizers[{at}]");
        if let Some(fault) = name::qualified_name_fault(finalizer) {
            causes.push(Cause::invalid("metadata.finalizers", &json!(finalizer), &fault));
        }
        if !finalizer.contains('/') && !is_standard_finalizer(finalizer) && !kind.traits.takes_any_finalizer {
            let fault = "name is neither a standard finalizer name nor is it fully qualified";
            causes.push(Cause::invalid(field, &json!(finalizer), fault));
        }
    }
    causes
}

fn is_standard_finalizer(finalizer: &str) -> bool {
    matches!(finalizer, "kubernetes" | "orphan" | "foregroundDeletion")
}

/// What is wrong with an object's name.
fn name_fault(kind: &Kind, text: &str) -> Option<String> {
    match kind.traits.names {
        Names::Subdomain => name::dns_subdomain_fault(text),
        Names::Label => name::dns_label_fault(text),
        Names::PathSegment => name::path_segment_fault(text),
        Names::IpAddress => name::ip_address_fault(text),
        Names::Any => None,
    }
}

/// What is wrong with what names are generated from.
fn prefix_fault(kind: &Kind, prefix: &str, write: Write) -> Option<String> {
    let is_by_name = match kind.traits.prefix {
        Prefix::AsNames => true,
        Prefix::AsNamesOnCreate => write == Write::Create,
        Prefix::PathSegment => false,
    };
    if !is_by_name {
        return prefix.contains(['/', '%']).then(|| "may not contain '/' or '%'".into());
    }
    name_fault(kind, prefix.strip_suffix('-').filter(|rest| !rest.is_empty()).unwrap_or(prefix))
}

pub(crate) fn validate_update(new: &Object, old: &Object) -> Vec<Cause> {
    let mut causes = Vec::new();
    for field in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        if new.meta()[field] != old.meta()[field] {
            causes.push(Cause::invalid(
                format!("metadata.{field}"),
                &new.meta()[field],
                "field is immutable",
            ));
        }
    }
    if old.is_being_deleted() {
        let before: HashSet<&str> = old.finalizers().into_iter().collect();
        let added: Vec<String> =
            new.finalizers().iter().filter(|f| !before.contains(**f)).map(|f| format!("{f:?}")).collect();
        if !added.is_empty() {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            causes.push(Cause::forbidden("metadata.finalizers", &why));
        }
    }
    causes
}
