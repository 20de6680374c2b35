//! Server-side apply: who owns which parts of an object, and what applying a document makes of it.
//!
//! A [`FieldManager`] is what a kind knows of this through one resource or subresource. Every write goes through it:
//! [`FieldManager::update`] notes what a create, an update or a patch changed, [`FieldManager::apply`] merges a document that
//! says only what its author wants. Both keep `metadata.managedFields`.
//!
//! ```text
//! apply:  live + document ─ merge ─ prune what is not applied any more ─ compare with live ─ conflicts? ─ object + managers
//! update: live, new ─ compare ─ take what changed from its managers ─ managers
//! ```
//!
//! # Guarantees
//! - Linear in the objects, but for a logarithm; recursion as deep as the objects, which are checked before ([`crate::depth`]).
//! - An object whose managers cannot be read is written all the same: upstream drops them, and so do we.
//!
//! Source: structured-merge-diff, and `util/managedfields` of apimachinery.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::decode::{self, Decoded, FieldValidation, Numbers};
use crate::meta::Meta;
use crate::schema::TypeRef;
use crate::{Kind, Object, Status, default};

mod check;
mod configure;
mod conflict;
mod element;
mod form;
mod last_applied;
mod managers;
mod merge;
mod set;
mod updater;
mod walk;

pub use configure::{ConfigureError, configure};
pub use conflict::Conflicts;
pub use element::Element;
pub use managers::ManagersError;
pub use set::Set;
pub use updater::Force;

use form::Type;
use managers::{Manager, Managers, Operation, is_reset};
use updater::Updater;

/// What a document to apply is sent as. There is one of CBOR, too, which is not spoken here.
pub const MEDIA_TYPE: &str = "application/apply-patch+yaml";
/// The owner of all that was there when an object was applied to for the first time.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// The versions of a kind, between which its managers are compared.
pub trait Versions {
    /// The object in another version, with the type of that; `None` where the kind has no such version.
    fn in_version(&self, object: &Object, api_version: &str) -> Option<(Object, TypeRef)>;
}

/// A kind of one version.
pub struct OneVersion;

impl Versions for OneVersion {
    fn in_version(&self, _: &Object, _: &str) -> Option<(Object, TypeRef)> {
        None
    }
}

/// What a kind knows of its managers through one resource.
pub struct FieldManager<'k> {
    kind: &'k Kind,
    api_version: String,
    /// Empty for the resource itself.
    subresource: &'k str,
    reset: Set,
    versions: &'k dyn Versions,
}

/// Why a document cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("invalid object type: {0}")]
    OtherKind(String),
    #[error("metadata.managedFields must be nil")]
    ManagedFields,
    #[error("failed to decode managed fields: {0}")]
    Managers(#[source] ManagersError),
    #[error("failed to create typed patch object ({object}): {why}")]
    Untyped { object: String, why: String },
    #[error(
        "failed to convert new object ({object}) to proper version: unable to convert unstructured object to {kind}: {why}"
    )]
    Unshaped { object: String, kind: String, why: String },
    #[error("{0}")]
    Conflicts(Conflicts),
}

impl From<ApplyError> for Status {
    fn from(error: ApplyError) -> Status {
        match error {
            ApplyError::OtherKind(_) | ApplyError::ManagedFields => Status::bad_request(error.to_string()),
            // Upstream does not tell these from its own failures; neither may we, for its clients.
            ApplyError::Managers(_) | ApplyError::Untyped { .. } | ApplyError::Unshaped { .. } => {
                Status::new(500, "", error.to_string())
            }
            ApplyError::Conflicts(conflicts) => conflicts.into(),
        }
    }
}

/// Reads a document that is to be applied: YAML, of which JSON is most.
///
/// # Errors
/// 400 for what is no document, or has a field twice where `validation` is strict about that.
pub fn read(bytes: &[u8], validation: FieldValidation) -> Result<Decoded, Status> {
    let refused = |why: &str| Status::bad_request(format!("error decoding YAML: {why}"));
    let (object, faults) = match decode::parse_strictly(bytes) {
        Ok(parsed) => {
            let faults: Vec<String> = parsed.faults(None).iter().map(ToString::to_string).collect();
            (parsed.document, faults)
        }
        Err(_) => {
            let (object, twice) = decode::parse_yaml(bytes).map_err(|why| refused(&why))?;
            (
                object,
                twice.into_iter().map(|twice| format!("error converting YAML to JSON: {twice}")).collect(),
            )
        }
    };
    if !object.is_object() {
        return Err(refused("the document is no object: apply one that has apiVersion, kind and metadata"));
    }
    match validation {
        FieldValidation::Strict if !faults.is_empty() => {
            Err(Status::bad_request(format!("error strict decoding YAML: {}", faults.join(", "))))
        }
        FieldValidation::Warn => Ok(Decoded { object, warnings: faults }),
        FieldValidation::Strict | FieldValidation::Ignore => Ok(Decoded { object, warnings: Vec::new() }),
    }
}

impl<'k> FieldManager<'k> {
    /// `subresource` is empty for the resource itself.
    pub fn new(kind: &'k Kind, subresource: &'k str, versions: &'k dyn Versions) -> FieldManager<'k> {
        let reset = reset_fields(kind, subresource);
        FieldManager { kind, api_version: kind.api_version(), subresource, reset, versions }
    }

    fn updater(&self) -> Updater<'_> {
        Updater {
            api_version: &self.api_version,
            schema: &self.kind.schema,
            versions: self.versions,
            reset: &self.reset,
        }
    }

    /// Notes in `new` what `manager` changed. `live` is the object as it was, none where it is created; `now` is RFC 3339.
    ///
    /// Clients may say who the managers are, or that there are none; what makes no sense is not listened to.
    pub fn update(&self, live: Option<&Object>, new: &mut Object, manager: &str, now: &str) {
        let told = new.meta_mut().remove("managedFields").unwrap_or_default();
        let known = live.map_or(&Value::Null, |live| &live.meta()["managedFields"]);
        let managers = self.starting_managers(&told, known);
        drop_empty_metadata(new);
        // Once nobody's, an object is so until it is applied to.
        if live.is_some() && managers.is_empty() {
            return;
        }
        let live = live.map_or_else(|| Cow::Owned(self.nothing()), without_managers);
        let manager = self.manager(manager, Operation::Update);
        let mut managers = self.updater().update(&live, new, managers, &manager, now);
        managers.cap();
        set_managers(new, &managers);
    }

    fn starting_managers(&self, told: &Value, known: &Value) -> Managers {
        let of_live = || Managers::read(known).unwrap_or_default();
        if !self.subresource.is_empty() {
            return of_live();
        }
        if is_reset(told) {
            return Managers::default();
        }
        Managers::read(told).ok().filter(|managers| !managers.is_empty()).unwrap_or_else(of_live)
    }

    /// The object that applying a document makes of `live`, none where it is created: in its kind's shape, with its defaults,
    /// and who owns what. If nothing changed, it is `live`, and the times of its managers are as they were.
    ///
    /// # Errors
    /// For a document that is not of the kind, and what it would change although others own it.
    pub fn apply(
        &self,
        live: Option<&Object>,
        document: &Object,
        manager: &str,
        force: Force,
        now: &str,
    ) -> Result<Object, ApplyError> {
        self.check_document(document)?;
        let known = live.map_or(&Value::Null, |live| &live.meta()["managedFields"]);
        let mut managers = Managers::read(known).map_err(ApplyError::Managers)?;
        let live = live.map_or_else(|| Cow::Owned(self.nothing()), without_managers);
        if managers.is_empty() {
            let before = self.manager(BEFORE_FIRST_APPLY, Operation::Update);
            managers = self.updater().update(&self.nothing(), &live, managers, &before, now);
        }
        let (merged, mut managers) = self.merge(&live, document, managers, manager, force)?;
        let mut object = if element::same_value(&merged, &live) {
            live.into_owned()
        } else {
            if let Some(owned) = managers.0.get_mut(&self.manager(manager, Operation::Apply)) {
                now.clone_into(&mut owned.time);
            }
            self.shaped(merged, document)?
        };
        set_managers(&mut object, &managers);
        last_applied::keep(&mut object, document, manager);
        Ok(object)
    }

    fn merge(
        &self,
        live: &Object,
        document: &Object,
        managers: Managers,
        name: &str,
        force: Force,
    ) -> Result<(Object, Managers), ApplyError> {
        let (updater, manager) = (self.updater(), self.manager(name, Operation::Apply));
        let conflicts = match updater.apply(live, document, managers.clone(), &manager, force) {
            Ok(applied) => return Ok(applied),
            Err(conflicts) => conflicts,
        };
        // What kubectl applied itself until now is its own.
        let Some(own) = last_applied::owned(&updater, self.kind, live, name) else {
            return Err(ApplyError::Conflicts(conflicts));
        };
        let others = conflicts.outside(&own);
        if !others.is_empty() {
            return Err(ApplyError::Conflicts(others));
        }
        updater.apply(live, document, managers, &manager, Force::Yes).map_err(ApplyError::Conflicts)
    }

    fn check_document(&self, document: &Object) -> Result<(), ApplyError> {
        let text = |field: &str| document[field].as_str().unwrap_or_default();
        if text("apiVersion") != self.api_version || text("kind") != self.kind.kind {
            let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
            return Err(ApplyError::OtherKind(format!("{group}/{version}, Kind={}", text("kind"))));
        }
        if !document.meta()["managedFields"].is_null() {
            return Err(ApplyError::ManagedFields);
        }
        let type_ = Type::of_object(&self.kind.schema.schema, self.kind.schema.id);
        check::check(type_, document).map_err(|why| ApplyError::Untyped { object: self.shown(document), why })
    }

    /// What was merged, as an object of its kind.
    fn shaped(&self, merged: Object, document: &Object) -> Result<Object, ApplyError> {
        // A custom resource is a document and stays one: what does not fit its schema is for pruning and validation.
        let is_custom = self.kind.schema.schema.root().is_some();
        let mut object = if is_custom {
            merged
        } else {
            let shaped = decode::shape(self.kind, merged, Numbers::Converted).map_err(|why| {
                ApplyError::Unshaped { object: self.shown(document), kind: self.shown_kind(), why }
            })?;
            shaped.object
        };
        default::apply(self.kind, &mut object);
        drop_empty_metadata(&mut object);
        Ok(object)
    }

    /// An object of the kind of which nothing is said, as upstream has it.
    fn nothing(&self) -> Object {
        let mut object = json!({"apiVersion": self.api_version, "kind": self.kind.kind, "metadata": {}});
        self.kind.write(&mut object);
        object
    }

    fn manager(&self, name: &str, operation: Operation) -> Manager {
        let name = if name.is_empty() { "unknown" } else { name };
        Manager::new(name, operation, &self.api_version, self.subresource)
    }

    /// `default/web; apps/v1, Kind=Deployment`
    fn shown(&self, object: &Object) -> String {
        format!("{}/{}; {}", object.namespace(), object.name(), self.shown_kind())
    }

    fn shown_kind(&self) -> String {
        format!("{}/{}, Kind={}", self.kind.group, self.kind.version, self.kind.kind)
    }
}

/// Of metadata, what is empty is not there: nobody can own it.
fn drop_empty_metadata(object: &mut Object) {
    object.meta_mut().retain(|_, value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    });
}

fn without_managers(object: &Object) -> Cow<'_, Object> {
    if object.meta()["managedFields"].is_null() {
        return Cow::Borrowed(object);
    }
    let mut object = object.clone();
    object.meta_mut().remove("managedFields");
    Cow::Owned(object)
}

fn set_managers(object: &mut Object, managers: &Managers) {
    match managers.write() {
        Some(entries) => object.set_meta("managedFields", entries),
        None => _ = object.meta_mut().remove("managedFields"),
    }
}

/// What writes through a resource cannot touch, and nobody can own through it therefore.
///
/// Source: `GetResetFields` of the strategies in kubernetes' `pkg/registry`, and of apiextensions-apiserver's.
fn reset_fields(kind: &Kind, subresource: &str) -> Set {
    if subresource == "status" && kind.schema.schema.root().is_some() {
        return Set::of_fields(&[&["spec"], &["metadata"]]);
    }
    match (kind.group.as_str(), kind.kind.as_str(), subresource) {
        ("certificates.k8s.io", "CertificateSigningRequest", "") => Set::of_fields(&[&["spec"], &["status"]]),
        ("certificates.k8s.io", "CertificateSigningRequest", "status") => {
            Set::of_fields(&[&["spec"], &["status", "conditions"]])
        }
        (_, _, "approval") => Set::of_fields(&[&["spec"], &["status", "certificate"]]),
        ("apps", "Deployment", "status") => Set::of_fields(&[&["spec"], &["metadata", "labels"]]),
        ("", "Pod", "ephemeralcontainers") => all_of_a_pod_but(&["ephemeralContainers"]),
        ("", "Pod", "resize") => all_of_a_pod_but(&["containers", "initContainers", "resources"]),
        ("", "Pod", "status") => {
            Set::of_fields(&[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]])
        }
        (
            "admissionregistration.k8s.io"
            | "flowcontrol.apiserver.k8s.io"
            | "resource.k8s.io"
            | "storage.k8s.io"
            | "apiregistration.k8s.io",
            _,
            "status",
        )
        | ("networking.k8s.io", "ServiceCIDR", "status") => Set::of_fields(&[&["spec"], &["metadata"]]),
        (_, _, "status") => Set::of_fields(&[&["spec"]]),
        _ if kind.has_subresource("status") => Set::of_fields(&[&["status"]]),
        _ => Set::default(),
    }
}

fn all_of_a_pod_but(kept: &[&str]) -> Set {
    let spec = TypeRef::builtin("io.k8s.api.core.v1.PodSpec");
    let names = spec.iter().flat_map(|spec| spec.object_type().in_order()).map(|field| &*field.name);
    let fields: Vec<[&str; 2]> =
        names.filter(|name| !kept.contains(name)).map(|name| ["spec", name]).collect();
    let whole: [&[&str]; 2] = [&["metadata"], &["status"]];
    Set::of_fields(&fields.iter().map(|path| &path[..]).chain(whole).collect::<Vec<_>>())
}

/// `.spec.containers[name="c"].image`
fn shown_path(path: &[Element]) -> String {
    path.iter().map(Element::to_string).collect()
}

/// Whether two objects differ in nothing but the times of their managers and their `resourceVersion`.
pub fn differ_in_times_only(a: &Object, b: &Object) -> bool {
    let managers = match (&a.meta()["managedFields"], &b.meta()["managedFields"]) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_but(a, b, &["time"]))
        }
        (a, b) => a == b,
    };
    managers
        && same_but(a, b, &["metadata"])
        && same_but(a.meta(), b.meta(), &["resourceVersion", "managedFields"])
}

/// Whether two documents are the same but for some of their fields.
fn same_but(a: &Value, b: &Value, except: &[&str]) -> bool {
    let (Some(of_a), Some(of_b)) = (a.as_object(), b.as_object()) else { return a == b };
    let counts = |(name, _): &(&String, &Value)| !except.contains(&name.as_str());
    of_a.iter().filter(counts).eq(of_b.iter().filter(counts))
}

#[cfg(test)]
mod tests;
