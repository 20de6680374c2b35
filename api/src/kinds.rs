//! The kinds table: one declaration a kind.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use crate::schema::{Schema, TypeRef};
use crate::strategy::Strategy;
use crate::table::Column;
use crate::{Cause, Object, protobuf, structural};

pub use custom::{Conversion, Custom, DefinitionError, Scaled, compare_versions, kinds_of};
pub use traits::{Beat, Names, Prefix, Traits};

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
    pub selectable: Vec<Arc<str>>,
    pub traits: Traits,
    pub strategy: &'static dyn Strategy,
    pub origin: Origin,
}

/// Who declares a kind.
pub enum Origin {
    Builtin,
    /// A CustomResourceDefinition.
    Custom(Box<Custom>),
}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    pub fn list_kind(&self) -> String {
        match &self.origin {
            Origin::Builtin => format!("{}List", self.kind),
            Origin::Custom(custom) => custom.list_kind.clone(),
        }
    }

    /// What only a kind of a CustomResourceDefinition has.
    pub fn custom(&self) -> Option<&Custom> {
        match &self.origin {
            Origin::Builtin => None,
            Origin::Custom(custom) => Some(custom),
        }
    }

    /// The fields that a cache notes of each object.
    pub fn noted_fields(&self) -> &[Arc<str>] {
        self.custom().map_or(&self.selectable, |custom| &custom.selectable)
    }

    /// Whether requests may name this version.
    pub fn is_served(&self) -> bool {
        self.custom().is_none_or(|custom| custom.is_served)
    }

    /// Whether two objects, or two documents with some of its fields, say the same.
    pub fn says_the_same(&self, a: &Object, b: &Object) -> bool {
        a == b || (self.custom().is_none() && protobuf::same(self.schema.id, a, b))
    }

    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    pub fn has_subresource(&self, name: &str) -> bool {
        self.subresources.iter().any(|s| s == name)
    }

    fn is_stored_version(&self) -> bool {
        match &self.origin {
            Origin::Builtin => self.traits.is_stored_version,
            Origin::Custom(custom) => custom.is_stored,
        }
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
        self.write_with(object, written::Off::Dropped);
    }

    /// The same before it is compared with what it replaces.
    pub(crate) fn write_early(&self, object: &mut Object) {
        let off = if self.traits.compares_off { written::Off::Kept } else { written::Off::Dropped };
        self.write_with(object, off);
    }

    /// Brings an object of a custom kind that was stored into the shape of today: what was written by an older schema is pruned and
    /// given defaults, and called by the version that is stored now, unless a webhook has to convert it.
    pub fn refresh(&self, object: &mut Object) {
        let Some(custom) = self.custom() else { return };
        if *custom.conversion == Conversion::None && object["apiVersion"] != self.api_version() {
            object["apiVersion"] = self.api_version().into();
        }
        if object["apiVersion"] != self.api_version() {
            return;
        }
        // What is no object of any schema stays as it is, and can be deleted.
        if structural::prune(&self.schema.schema, object).is_ok() {
            structural::default(&self.schema.schema, object);
        }
    }

    /// Custom resources are stored as they are.
    fn write_with(&self, object: &mut Object, off: written::Off) {
        if std::ptr::eq(&*self.schema.schema, &**Schema::builtin()) {
            written::write(&self.schema.schema, self.schema.id, object, off);
        }
    }

    /// What is wrong with an object's name and the rest of its `metadata`, and with the object itself, in upstream's order: some of
    /// it hides the rest.
    pub fn faults(&self, object: &Object, old: Option<&Object>, metadata: Vec<Cause>) -> Vec<Cause> {
        if let Some(custom) = self.custom() {
            return structural::judge_after(&self.schema, object, old, metadata, custom.scale.as_ref())
                .causes;
        }
        let first = builtin::rules::check_first(self, object, old);
        if !first.is_empty() {
            return first;
        }
        let own = self.validate(object, old);
        // The rules of such a kind do not look at its metadata, those of all kinds do, which come last.
        if self.traits.hides_metadata && old.is_none() && !own.is_empty() {
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

    /// What is wrong with an object of which one part was written, which `subresource` names.
    pub fn validate_part(&self, subresource: &str, new: &Object, old: &Object) -> Vec<Cause> {
        let mut causes = builtin::rules::check_part(self, new, old);
        causes.extend(self.strategy.validate_part_update(subresource, new, old));
        causes
    }

    /// What is wrong with the `status` of an object that replaces that of `old`.
    pub fn validate_status(&self, new: &Object, old: &Object) -> Vec<Cause> {
        if let Some(custom) = self.custom() {
            let scale = custom.scale.as_ref();
            return structural::judge_status_after(&self.schema, new, old, Vec::new(), scale).causes;
        }
        let mut causes = builtin::rules::check_status(self, new, old);
        causes.extend(self.strategy.validate_status_update(new, old));
        causes
    }

    /// What an object that was just written most likely does not mean; `old` is what it replaces.
    pub fn warnings(&self, object: &Object, old: Option<&Object>) -> Vec<String> {
        if self.custom().is_some() {
            return old.map_or_else(Vec::new, |old| structural::warnings(&self.schema, object, old));
        }
        builtin::rules::warnings::of(self, object, old)
    }

    /// The value of a selectable field of an object, `""` where it is unset; `None` if the kind does not
    /// offer the field.
    pub fn selectable_field(&self, object: &Object, field: &str) -> Option<String> {
        let offered = matches!(field, "metadata.name" | "metadata.namespace")
            || self.selectable.iter().any(|f| **f == *field);
        offered.then(|| self.strategy.field(object, field))
    }
}

/// `Scale`, which is no resource of its own: what the `scale` of others reads and takes.
pub fn scale() -> &'static Kind {
    static SCALE: LazyLock<Kind> = LazyLock::new(builtin::scale);
    &SCALE
}

/// All kinds that a server knows. A table never changes: who adds kinds makes another.
#[derive(Clone, Default)]
pub struct Kinds {
    kinds: Vec<Arc<Kind>>,
    by_resource: HashMap<(String, String, String), usize>,
    by_kind: HashMap<(String, String, String), usize>,
}

impl Kinds {
    /// Every kind that upstream serves by default.
    pub fn builtin() -> Kinds {
        let mut kinds = Kinds::default();
        for kind in builtin::declarations() {
            kinds.insert(kind);
        }
        kinds
    }

    /// Of two kinds of one name the first stays.
    pub fn insert(&mut self, kind: impl Into<Arc<Kind>>) {
        let (kind, at) = (kind.into(), self.kinds.len());
        if kind.is_served() {
            let by_resource = (kind.group.clone(), kind.version.clone(), kind.plural.clone());
            self.by_resource.entry(by_resource).or_insert(at);
            self.by_kind.entry((kind.group.clone(), kind.version.clone(), kind.kind.clone())).or_insert(at);
        }
        self.kinds.push(kind);
    }

    /// What requests may name, in the order of declaration, which within a group is that of discovery.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.kinds.iter().filter(|kind| kind.is_served())
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
mod custom;
mod definition;
mod traits;
mod written;
