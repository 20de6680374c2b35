//! Who owns what after a change, and what an applied document makes of an object.
//!
//! Source: `merge/update.go` of structured-merge-diff.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

use super::Versions;
use super::conflict::{Conflict, Conflicts};
use super::form::Type;
use super::managers::{Manager, Managers, Owned};
use super::merge::merged;
use super::set::Set;
use super::walk::{Comparison, fields, fits, reconciled, remove, with_named_fields};
use crate::Object;
use crate::schema::TypeRef;

/// Whether an applier takes from others what it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    No,
    Yes,
}

/// The rules of one version of a kind.
pub(super) struct Updater<'k> {
    pub(super) api_version: &'k str,
    pub(super) schema: &'k TypeRef,
    pub(super) versions: &'k dyn Versions,
    /// What a change through this resource cannot touch.
    pub(super) reset: &'k Set,
}

impl Updater<'_> {
    fn type_(&self) -> Type<'_> {
        Type::of_object(&self.schema.schema, self.schema.id)
    }

    /// The object in a version; none where there is no such version of the kind.
    fn in_version<'o>(&self, object: &'o Object, api_version: &str) -> Option<(Cow<'o, Object>, TypeRef)> {
        let own = object["apiVersion"].as_str().unwrap_or(self.api_version);
        if own == api_version && own == self.api_version {
            return Some((Cow::Borrowed(object), self.schema.clone()));
        }
        self.versions.in_version(object, api_version).map(|(object, schema)| (Cow::Owned(object), schema))
    }

    /// `new` took the place of `live`: what it changed is `manager`'s now, and of nobody else.
    pub(super) fn update(
        &self,
        live: &Object,
        new: &Object,
        managers: Managers,
        manager: &Manager,
        now: &str,
    ) -> Managers {
        let mut managers = self.reconcile(live, managers);
        let (compared, _) = self.take(live, new, &mut managers, None);
        let taken = compared.modified.union(compared.added);
        let taken = taken.recursive_difference(self.reset).difference(&UNOWNED);
        if !taken.is_empty() {
            let before = managers.0.remove(manager).map(|owned| owned.set).unwrap_or_default();
            let api_version = self.api_version.to_owned();
            managers.0.insert(
                manager.clone(),
                Owned { set: before.union(taken), api_version, time: now.to_owned() },
            );
        }
        managers
    }

    /// What the applied document makes of `live`, and who owns what then.
    ///
    /// # Errors
    /// What it would change although others own it, unless it is forced.
    pub(super) fn apply(
        &self,
        live: &Object,
        applied: &Object,
        managers: Managers,
        manager: &Manager,
        force: Force,
    ) -> Result<(Object, Managers), Conflicts> {
        let mut managers = self.reconcile(live, managers);
        let merged = merged(self.type_(), live, applied);
        let before = managers.0.remove(manager);
        let owned = Owned {
            set: fields(self.type_(), applied).recursive_difference(self.reset),
            api_version: self.api_version.to_owned(),
            time: before.as_ref().map(|owned| owned.time.clone()).unwrap_or_default(),
        };
        managers.0.insert(manager.clone(), owned);
        let new = match before {
            Some(before) if !before.set.is_empty() => self.pruned(&merged, &managers, &before),
            _ => merged,
        };
        let (_, conflicts) = self.take(live, &new, &mut managers, Some(manager));
        if force == Force::No && !conflicts.is_empty() {
            return Err(conflicts);
        }
        // Only now, as conflicts are told of what was owned before.
        if let Some(owned) = managers.0.get_mut(manager) {
            owned.set = std::mem::take(&mut owned.set).difference(&UNOWNED);
        }
        managers.prune();
        Ok((new, managers))
    }

    /// What changed from `live` to `new`, which is taken from all managers but `except`; with what was taken from whom.
    fn take(
        &self,
        live: &Object,
        new: &Object,
        managers: &mut Managers,
        except: Option<&Manager>,
    ) -> (Comparison, Conflicts) {
        let compared = Comparison::of(self.type_(), live, new).without(self.reset);
        let mut in_versions: BTreeMap<String, Option<Changed>> = BTreeMap::new();
        let mut conflicts = Conflicts::default();
        managers.0.retain(|manager, owned| {
            if except == Some(manager) {
                return true;
            }
            let changed = in_versions.entry(owned.api_version.clone()).or_insert_with(|| {
                if owned.api_version == self.api_version {
                    return Some(Changed::of(&compared));
                }
                self.changed_in(live, new, &owned.api_version)
            });
            let Some(changed) = changed else { return false };
            let conflict = owned.set.intersection(&changed.set);
            if !conflict.is_empty() {
                conflicts.add(manager, &conflict);
                owned.set = std::mem::take(&mut owned.set).difference(&conflict);
            }
            owned.set = std::mem::take(&mut owned.set).difference(&changed.removed);
            true
        });
        managers.prune();
        (compared, conflicts)
    }

    fn changed_in(&self, live: &Object, new: &Object, api_version: &str) -> Option<Changed> {
        let (live, schema) = self.in_version(live, api_version)?;
        let (new, _) = self.in_version(new, api_version)?;
        let type_ = Type::of_object(&schema.schema, schema.id);
        Some(Changed::of(&Comparison::of(type_, &live, &new).without(self.reset)))
    }

    /// Without what the manager applied before and does not any more, unless somebody else owns it.
    fn pruned(&self, merged: &Object, managers: &Managers, before: &Owned) -> Object {
        let Some((of_before, schema)) = self.in_version(merged, &before.api_version) else {
            return merged.clone();
        };
        let of_before = &*of_before;
        let type_ = Type::of_object(&schema.schema, schema.id);
        let last = with_named_fields(Some(type_), &before.set);
        let pruned = remove(type_, of_before, &last);
        let pruned = self.with_owned_items(of_before, pruned, managers, &before.api_version);
        let Some((pruned, _)) = self.in_version(&pruned, &before.api_version) else { return merged.clone() };
        // What was nobody's, or only changed by updates, is not the manager's to remove.
        let kept = with_named_fields(Some(type_), &fields(type_, &pruned));
        let all = with_named_fields(Some(type_), &fields(type_, of_before));
        let pruned = remove(type_, of_before, &all.difference(&kept).intersection(&last));
        let pruned = self.in_version(&pruned, self.api_version).map(|(pruned, _)| pruned.into_owned());
        pruned.unwrap_or_else(|| merged.clone())
    }

    /// `pruned` with what of `merged` anybody owns, in whatever version.
    fn with_owned_items(&self, merged: &Object, pruned: Object, managers: &Managers, first: &str) -> Object {
        let mut owned: BTreeMap<&str, Set> = BTreeMap::new();
        for of_manager in managers.0.values() {
            let set = owned.entry(&of_manager.api_version).or_default();
            *set = std::mem::take(set).union(of_manager.set.clone());
        }
        // That of the pruned object comes first: others may need its fields to be made from it.
        let first_owned = owned.remove(first).map(|set| (first, set));
        let (mut merged, mut pruned) = (Cow::Borrowed(merged), pruned);
        for (version, set) in first_owned.into_iter().chain(owned) {
            let of_merged = self.in_version(&merged, version);
            let (Some((of_merged, schema)), Some((of_pruned, _))) =
                (of_merged, self.in_version(&pruned, version))
            else {
                continue;
            };
            let type_ = Type::of_object(&schema.schema, schema.id);
            let named = |set: &Set| with_named_fields(Some(type_), set);
            let kept = named(&fields(type_, &of_pruned)).union(named(&set));
            pruned = remove(type_, &of_merged, &named(&fields(type_, &of_merged)).difference(&kept));
            merged = Cow::Owned(of_merged.into_owned());
        }
        pruned
    }

    /// Managers as the schema of today has them. Those of versions that are gone are forgotten.
    fn reconcile(&self, live: &Object, mut managers: Managers) -> Managers {
        managers.0.retain(|_, owned| {
            let schema = if owned.api_version == self.api_version {
                self.schema.clone()
            } else {
                let Some((_, schema)) = self.in_version(live, &owned.api_version) else { return false };
                schema
            };
            let type_ = Type::of_object(&schema.schema, schema.id);
            if !fits(type_, &owned.set) {
                owned.set = reconciled(type_, &owned.set);
            }
            true
        });
        managers
    }

    /// What of `document` stands in `live` as it is.
    pub(super) fn agreeing(&self, document: &Value, live: &Object) -> Set {
        let compared = Comparison::of(self.type_(), document, live);
        let changed = compared.modified.union(compared.added).union(compared.removed);
        fields(self.type_(), document).difference(&changed)
    }
}

/// What owners lose by a change.
struct Changed {
    /// What is new or different.
    set: Set,
    removed: Set,
}

impl Changed {
    fn of(compared: &Comparison) -> Changed {
        Changed {
            set: compared.modified.clone().union(compared.added.clone()),
            removed: compared.removed.clone(),
        }
    }
}

impl Conflicts {
    fn add(&mut self, manager: &Manager, set: &Set) {
        let of_manager = set.paths().into_iter();
        self.0.extend(of_manager.map(|path| Conflict { manager: manager.clone(), path }));
    }
}

/// What of an object is never anybody's: what it is, and what the server keeps of it.
///
/// Source: `internal/stripmeta.go` of apimachinery's `util/managedfields`.
static UNOWNED: LazyLock<Set> = LazyLock::new(|| {
    Set::of_fields(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
});
