//! How strictly a definition is looked at: what was wrong with it when it was stored stays allowed.
//!
//! Source: `validationOptions` of apiextensions-apiserver's validation.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use serde_json::Value;

use super::view::{Spec, any_schema, at, same};
use super::{conversion, open_api, structural};
use crate::kinds::builtin::rules::path::text;

/// What is required. Each holds for a new definition.
#[derive(Clone)]
pub(super) struct Options<'o> {
    /// `conversionReviewVersions` must have one that is known.
    pub(super) known_review_version: bool,
    /// All versions have a schema.
    pub(super) schemas: bool,
    /// Types are those of OpenAPI.
    pub(super) types: bool,
    pub(super) structural: bool,
    /// Defaults have no unknown fields.
    pub(super) pruned_defaults: bool,
    /// Items of sets are atomic.
    pub(super) atomic_sets: bool,
    /// Keys of lists are there and not null.
    pub(super) list_keys: bool,
    /// Certificates can be read. Not of what serves nobody yet.
    pub(super) certificates: bool,
    /// A rule may cost more than rules may: set for the schema that is looked at, if it is what it was.
    pub(super) dear_rules: bool,
    /// Versions whose schema is what it was.
    kept_schemas: Rc<HashSet<&'o str>>,
    /// Versions, or with `None` all of them, that had too many selectable fields and still have the same.
    many_selectable: Rc<HashSet<Option<&'o str>>>,
}

impl<'o> Options<'o> {
    pub(super) fn of_new() -> Options<'o> {
        Options {
            known_review_version: true,
            schemas: true,
            types: true,
            structural: true,
            pruned_defaults: true,
            atomic_sets: true,
            list_keys: true,
            certificates: false,
            dear_rules: false,
            kept_schemas: Rc::default(),
            many_selectable: Rc::default(),
        }
    }

    pub(super) fn of_update(new: &Spec<'o>, old: &Spec<'o>, is_established: bool) -> Options<'o> {
        let of_all = at(old.for_all("schema"), "openAPIV3Schema");
        let has_schema = |version| !at(old.of_one(version, "schema"), "openAPIV3Schema").is_null();
        let any = |mut is: fn(&Value) -> bool| old.schemas().any(|schema| any_schema(schema, &mut is));
        Options {
            known_review_version: conversion::had_known_version(at(old.value, "conversion")),
            schemas: !of_all.is_null() || old.versions.iter().all(has_schema),
            types: !any(open_api::has_odd_type),
            structural: !old.schemas().any(|schema| !structural::is_structural(schema)),
            pruned_defaults: !old.schemas().any(super::defaults::has_unpruned),
            atomic_sets: !any(open_api::is_set_of_parts),
            list_keys: !any(open_api::has_odd_keys),
            certificates: is_established && conversion::had_certificates(at(old.value, "conversion")),
            dear_rules: false,
            kept_schemas: Rc::new(kept_schemas(new, old)),
            many_selectable: Rc::new(many_selectable(new, old)),
        }
    }

    /// The same for the schema of a version.
    pub(super) fn for_version(&self, name: &str) -> Options<'o> {
        Options { dear_rules: self.kept_schemas.contains(name), ..self.clone() }
    }

    pub(super) fn may_have_many_selectable(&self, version: Option<&str>) -> bool {
        self.many_selectable.contains(&version)
    }
}

fn kept_schemas<'o>(new: &Spec<'o>, old: &Spec<'o>) -> HashSet<&'o str> {
    // Of two of one name, the first is meant.
    let before = old.versions.iter().rev().map(|version| (text(version, "name"), version));
    let before: HashMap<&str, &Value> = before.collect();
    let is_kept = |version: &&'o Value| {
        let before = before.get(text(version, "name"));
        before.is_some_and(|before| same(at(version, "schema"), at(before, "schema")))
    };
    new.versions.iter().filter(is_kept).map(|version| text(version, "name")).collect()
}

fn many_selectable<'o>(new: &Spec<'o>, old: &Spec<'o>) -> HashSet<Option<&'o str>> {
    use super::fields::MAX_SELECTABLE;
    let is_kept = |new: &Value, old: &Value| {
        old.as_array().is_some_and(|fields| fields.len() > MAX_SELECTABLE) && same(new, old)
    };
    let mut kept = HashSet::new();
    if is_kept(new.for_all("selectableFields"), old.for_all("selectableFields")) {
        kept.insert(None);
    }
    // Of two of one name, upstream looks at the last.
    let before = old.versions.iter().map(|version| (text(version, "name"), version));
    let before: HashMap<&str, &Value> = before.collect();
    let own = |spec: &Spec<'o>, version: &'o Value| spec.of_one(version, "selectableFields");
    for version in new.versions {
        let name = text(version, "name");
        if before.get(name).is_some_and(|before| is_kept(own(new, version), own(old, before))) {
            kept.insert(Some(name));
        }
    }
    kept
}
