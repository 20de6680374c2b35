//! The kinds table: one declaration a kind.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use crate::schema::{Schema, TypeRef};
use crate::strategy::Strategy;
use crate::table::Column;
use crate::{Cause, Object};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// Where a kind's objects live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In the store, under `/registry/`.
    Stored,
    /// Nowhere: created, answered and forgotten, like `TokenReview`.
    Virtual,
}

/// What `metadata.generation` counts of a kind's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// They have none.
    None,
    /// It is 1 for good.
    One,
    /// Changes of `spec`.
    Spec,
    /// The same, but a new object has none.
    Changes,
    /// Changes of anything but `metadata` and `status`.
    Content,
}

/// One kind of object in one version, as everything but its own rules needs to know it.
pub struct Kind {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub scope: Scope,
    pub storage: Storage,
    /// Names of its subresources: `status`, `scale`, `log`, `exec`, …
    pub subresources: Vec<String>,
    /// The folder under `/registry/`, as upstream lays it out: `services/specs`, `minions`, `pods`.
    pub registry_folder: String,
    pub schema: TypeRef,
    pub columns: Vec<Column>,
    /// Fields besides `metadata.name` and `metadata.namespace` that field selectors may use.
    pub selectable: &'static [&'static str],
    pub strategy: &'static dyn Strategy,
}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    pub fn has_subresource(&self, name: &str) -> bool {
        self.subresources.iter().any(|s| s == name)
    }

    fn is_stored_version(&self) -> bool {
        matches!(
            (self.group.as_str(), self.version.as_str(), self.plural.as_str()),
            ("", "v1", "events") | ("autoscaling", "v2", "horizontalpodautoscalers")
        )
    }

    /// The store's key of one object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.is_namespaced() {
            format!("/registry/{}/{namespace}/{name}", self.registry_folder)
        } else {
            format!("/registry/{}/{name}", self.registry_folder)
        }
    }

    /// The prefix of the keys of all objects, or of those of one namespace; ends in `/`.
    pub fn prefix(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) if self.is_namespaced() => {
                format!("/registry/{}/{namespace}/", self.registry_folder)
            }
            _ => format!("/registry/{}/", self.registry_folder),
        }
    }

    /// Brings an object into the form in which it is stored and answered.
    pub fn write(&self, object: &mut Object) {
        if std::ptr::eq(&*self.schema.schema, &**Schema::builtin()) {
            written::write(&self.schema.schema, self.schema.id, object, written::Off::Dropped);
        }
    }

    /// The same before it is compared with what it replaces.
    pub(crate) fn write_early(&self, object: &mut Object) {
        let off = if matches!(self.kind.as_str(), "ResourceSlice" | "EndpointSlice") {
            written::Off::Kept
        } else {
            written::Off::Dropped
        };
        if std::ptr::eq(&*self.schema.schema, &**Schema::builtin()) {
            written::write(&self.schema.schema, self.schema.id, object, off);
        }
    }

    /// What its `metadata.generation` counts.
    pub fn generation(&self) -> Generation {
        builtin::generation(self)
    }

    /// What is wrong with an object's name and the rest of its `metadata`, and with the object itself, in upstream's order: some of
    /// it hides the rest.
    pub fn faults(&self, object: &Object, old: Option<&Object>, metadata: Vec<Cause>) -> Vec<Cause> {
        let first = builtin::rules::check_first(self, object, old);
        if !first.is_empty() {
            return first;
        }
        let own = self.validate(object, old);
        // The rules of this kind do not look at its metadata, those of all kinds do, which come last.
        if self.kind == "PodDisruptionBudget" && old.is_none() && !own.is_empty() {
            return own;
        }
        metadata.into_iter().chain(own).collect()
    }

    /// What is wrong with a new object, or with one that replaces `old`: the rules of its types and those of its kind.
    pub fn validate(&self, object: &Object, old: Option<&Object>) -> Vec<Cause> {
        let mut causes = builtin::rules::check(self, object, old);
        causes.extend(self.strategy.validate(object));
        match old {
            Some(old) => causes.extend(self.strategy.validate_update(object, old)),
            None => causes.extend(self.strategy.validate_create(object)),
        }
        let mut seen = HashSet::new();
        causes.retain(|cause| seen.insert((cause.reason, cause.field.clone())));
        causes
    }

    /// What is wrong with the `status` of an object that replaces that of `old`.
    pub fn validate_status(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let mut causes = builtin::rules::check_status(self, new, old);
        causes.extend(self.strategy.validate_status_update(new, old));
        causes
    }

    /// What an object that was just written most likely does not mean; `old` is what it replaces.
    pub fn warnings(&self, object: &Object, old: Option<&Object>) -> Vec<String> {
        builtin::rules::warnings::of(self, object, old)
    }

    /// The value of a selectable field of an object, `""` where it is unset; `None` if the kind does not
    /// offer the field.
    pub fn selectable_field(&self, object: &Object, field: &str) -> Option<String> {
        let offered =
            matches!(field, "metadata.name" | "metadata.namespace") || self.selectable.contains(&field);
        offered.then(|| self.strategy.field(object, field))
    }
}

/// `Scale`, which is no resource of its own: what the `scale` of others reads and takes.
pub fn scale() -> &'static Kind {
    static SCALE: LazyLock<Kind> = LazyLock::new(builtin::scale);
    &SCALE
}

/// All kinds that a server knows. Built-in kinds never change; CRDs will make a new table.
#[derive(Clone, Default)]
pub struct Kinds {
    kinds: Vec<Arc<Kind>>,
    by_resource: HashMap<(String, String, String), usize>,
    by_kind: HashMap<(String, String, String), usize>,
}

impl Kinds {
    /// Every GA built-in kind of v1.36.
    pub fn builtin() -> Kinds {
        let mut kinds = Kinds::default();
        for kind in builtin::declarations() {
            kinds.insert(kind);
        }
        kinds
    }

    pub fn insert(&mut self, kind: Kind) {
        let at = self.kinds.len();
        self.by_resource.insert((kind.group.clone(), kind.version.clone(), kind.plural.clone()), at);
        self.by_kind.insert((kind.group.clone(), kind.version.clone(), kind.kind.clone()), at);
        self.kinds.push(Arc::new(kind));
    }

    /// In the order of declaration, which within a group is that of discovery.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.kinds.iter()
    }

    /// The kinds in whose version objects are stored, one for all versions of a resource: the first declared, but
    /// for those that upstream stores in another.
    pub fn stored(&self) -> Vec<Arc<Kind>> {
        let mut by_folder: HashMap<&str, usize> = HashMap::new();
        let mut chosen: Vec<Arc<Kind>> = Vec::new();
        for kind in self.kinds.iter().filter(|k| k.storage == Storage::Stored) {
            match by_folder.get(kind.registry_folder.as_str()) {
                None => {
                    by_folder.insert(&kind.registry_folder, chosen.len());
                    chosen.push(kind.clone());
                }
                Some(&at) if kind.is_stored_version() => chosen[at] = kind.clone(),
                Some(_) => {}
            }
        }
        chosen
    }

    pub fn by_resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        let key = (group.to_owned(), version.to_owned(), plural.to_owned());
        self.by_resource.get(&key).map(|&at| &self.kinds[at])
    }

    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let key = (group.to_owned(), version.to_owned(), kind.to_owned());
        self.by_kind.get(&key).map(|&at| &self.kinds[at])
    }
}

pub use builtin::autoscaling;
pub(crate) use builtin::package;
pub(crate) use builtin::qos_class;

mod builtin;
mod written;
