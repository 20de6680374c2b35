//! Reading and writing `metadata` of an object.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::{Cause, Object, name};

pub(crate) const MAX_ANNOTATIONS_BYTES: usize = 256 << 10;

/// Labels that lie at `field`.
pub fn validate_labels(labels: &Value, field: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        if let Some(fault) = name::qualified_name_fault(key) {
            causes.push(Cause::invalid(field, &json!(key), &fault));
        }
        let value = value.as_str().unwrap_or_default();
        if let Some(fault) = name::label_value_fault(value) {
            causes.push(Cause::invalid(field, &json!(value), &fault));
        }
    }
    causes
}

/// Annotations that lie at `field`.
pub fn validate_annotations(annotations: &Value, field: &str) -> Vec<Cause> {
    let (mut causes, mut bytes) = (Vec::new(), 0);
    for (key, value) in annotations.as_object().into_iter().flatten() {
        if let Some(fault) = name::qualified_name_fault(&key.to_lowercase()) {
            causes.push(Cause::invalid(field, &json!(key), &fault));
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > MAX_ANNOTATIONS_BYTES {
        causes.push(Cause::too_long(field, MAX_ANNOTATIONS_BYTES));
    }
    causes
}

/// The version of an `apiVersion`; none where it is no such thing.
fn version_of(api_version: &str) -> &str {
    let mut parts = api_version.split('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(version), None, _) | (Some(_), Some(version), None) => version,
        _ => "",
    }
}

/// Owners that lie at `field`.
pub fn validate_owners(owners: &Value, field: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut controller: Option<String> = None;
    for (at, owner) in owners.as_array().into_iter().flatten().enumerate() {
        let text = |name: &str| owner[name].as_str().unwrap_or_default();
        let at = format!("{field}[{at}]");
        let mut required = |name: &str| {
            if text(name).is_empty() {
                causes.push(Cause::required(format!("{at}.{name}"), "must not be empty"));
            }
        };
        ["apiVersion", "kind", "name", "uid"].into_iter().for_each(&mut required);
        let version = text("apiVersion");
        if !version.is_empty() && version_of(version).is_empty() {
            let why = "must be <group>/<version> or <version>";
            causes.push(Cause::invalid(format!("{at}.apiVersion"), &owner["apiVersion"], why));
        }
        if (version, text("kind")) == ("v1", "Event") {
            causes.push(Cause::invalid(&at, owner, "/v1, Kind=Event is disallowed from being an owner"));
        }
        if owner["controller"] == true {
            let name = format!("{}/{}", text("kind"), text("name"));
            match &controller {
                None => controller = Some(name),
                Some(first) => {
                    let only = "Only one reference can have Controller set to true";
                    let why = format!("{only}. Found \"true\" in references for {first} and {name}");
                    causes.push(Cause::invalid(field, owners, &why));
                }
            }
        }
    }
    causes
}

/// When owners that stand twice were met, which the warning says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// In what the client sent.
    Before,
    /// In what mutating admission made of it, or a patch.
    After,
}

/// Leaves each of an object's `ownerReferences` once; the sentence for a `Warning` header if there was one more often.
/// References are the same if all their fields are. Upstream does so before mutating admission and after it; of a patch only after.
///
/// Source: `dedupOwnerReferencesAndAddWarning` of apiserver's `endpoints/handlers/rest.go`.
pub fn merge_owner_references(object: &mut Object, admission: Admission) -> Option<String> {
    let references = object.get_mut("metadata")?.get_mut("ownerReferences")?.as_array_mut()?;
    let (mut met, mut duplicates) = (HashSet::new(), Vec::new());
    references.retain(|reference| {
        let is_new = met.insert(reference.to_string());
        if !is_new {
            duplicates.push(reference["uid"].as_str().unwrap_or_default().to_owned());
        }
        is_new
    });
    if duplicates.is_empty() {
        return None;
    }
    let when = match admission {
        Admission::Before => "",
        Admission::After => " after mutating admission happens",
    };
    Some(format!(
        ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and may \
         reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
        duplicates.join(", ")
    ))
}

/// Borrowed access to the metadata of an object. Missing fields read as empty.
pub trait Meta {
    fn meta(&self) -> &Value;
    fn meta_mut(&mut self) -> &mut serde_json::Map<String, Value>;
    fn meta_str(&self, field: &str) -> &str;

    fn name(&self) -> &str {
        self.meta_str("name")
    }
    fn namespace(&self) -> &str {
        self.meta_str("namespace")
    }
    fn uid(&self) -> &str {
        self.meta_str("uid")
    }
    fn resource_version(&self) -> &str {
        self.meta_str("resourceVersion")
    }
    fn is_being_deleted(&self) -> bool {
        !self.meta()["deletionTimestamp"].is_null()
    }
    fn set_meta(&mut self, field: &str, value: impl Into<Value>) {
        self.meta_mut().insert(field.into(), value.into());
    }
    fn finalizers(&self) -> Vec<&str> {
        strings(&self.meta()["finalizers"])
    }
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().map(|a| a.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

impl Meta for Object {
    fn meta(&self) -> &Value {
        &self["metadata"]
    }

    fn meta_mut(&mut self) -> &mut serde_json::Map<String, Value> {
        if !self.is_object() {
            *self = Value::Object(serde_json::Map::new());
        }
        let Value::Object(root) = self else { unreachable!("just made an object") };
        let meta = root.entry("metadata").or_insert_with(|| Value::Object(serde_json::Map::new()));
        if !meta.is_object() {
            *meta = Value::Object(serde_json::Map::new());
        }
        let Value::Object(meta) = meta else { unreachable!("just made an object") };
        meta
    }

    fn meta_str(&self, field: &str) -> &str {
        self["metadata"][field].as_str().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_that_stand_twice_are_merged_with_a_warning() {
        let owner =
            |uid: &str, name: &str| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid});
        let owners = [owner("1", "a"), owner("2", "b"), owner("1", "a"), owner("1", "c"), owner("2", "b")];
        let mut object = json!({"metadata": {"ownerReferences": owners}});
        let warning = merge_owner_references(&mut object, Admission::Before).unwrap();
        assert!(
            warning.starts_with(".metadata.ownerReferences contains duplicate entries; API server"),
            "{warning}"
        );
        assert!(warning.ends_with("duplicate UID(s) observed: 1, 2"), "{warning}");
        let left = [owner("1", "a"), owner("2", "b"), owner("1", "c")];
        assert_eq!(
            object["metadata"]["ownerReferences"],
            json!(left),
            "one of another name is another owner"
        );
        assert_eq!(merge_owner_references(&mut object, Admission::After), None);
        assert_eq!(merge_owner_references(&mut json!({"metadata": {}}), Admission::After), None);
    }

    #[test]
    fn a_hundred_thousand_owners_are_merged_at_once() {
        let owners: Vec<Value> =
            (0..100_000).map(|n| json!({"uid": "same", "name": n.to_string()})).collect();
        let mut object = json!({"metadata": {"ownerReferences": owners}});
        assert_eq!(merge_owner_references(&mut object, Admission::Before), None);
    }
}
