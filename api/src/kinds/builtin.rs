//! The built-in kinds, a file a family of groups. Within a group the order is that of discovery.

use serde_json::{Value, json};

use super::{Kind, Origin, Scope, Storage, Traits};
use crate::schema::TypeRef;
use crate::strategy::{Plain, Strategy};
use crate::table::Column;
use crate::{Cause, protobuf};

mod apps;
mod auth;
pub mod autoscaling;
mod core;
mod cron;
mod events;
mod extension;
mod job;
mod limits;
mod metrics;
mod network;
mod node;
mod pod;
mod resource;
pub(super) mod rules;
mod service;
mod stateful;
mod storage;
mod traits;

pub(crate) use pod::qos_class;

pub(super) fn declarations() -> Vec<Kind> {
    [
        core::kinds(),
        extension::registrations(),
        apps::kinds(),
        vec![events::events()],
        autoscaling::kinds(),
        apps::batch(),
        auth::kinds(),
        network::kinds(),
        storage::kinds(),
        resource::kinds(),
        extension::kinds(),
        metrics::kinds(),
    ]
    .into_iter()
    .flatten()
    .map(|mut kind: Kind| {
        kind.traits = traits::of(&kind);
        kind
    })
    .collect()
}

/// Where the types of a built-in group lie.
pub(crate) fn package(group: &str) -> Option<&'static str> {
    Some(match group {
        "" => "io.k8s.api.core",
        "admissionregistration.k8s.io" => "io.k8s.api.admissionregistration",
        "apiextensions.k8s.io" => "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions",
        "apiregistration.k8s.io" => "io.k8s.kube-aggregator.pkg.apis.apiregistration",
        "apps" => "io.k8s.api.apps",
        "authentication.k8s.io" => "io.k8s.api.authentication",
        "authorization.k8s.io" => "io.k8s.api.authorization",
        "autoscaling" => "io.k8s.api.autoscaling",
        "batch" => "io.k8s.api.batch",
        "certificates.k8s.io" => "io.k8s.api.certificates",
        "coordination.k8s.io" => "io.k8s.api.coordination",
        "discovery.k8s.io" => "io.k8s.api.discovery",
        "events.k8s.io" => "io.k8s.api.events",
        "flowcontrol.apiserver.k8s.io" => "io.k8s.api.flowcontrol",
        "metrics.k8s.io" => "io.k8s.metrics.pkg.apis.metrics",
        "networking.k8s.io" => "io.k8s.api.networking",
        "node.k8s.io" => "io.k8s.api.node",
        "policy" => "io.k8s.api.policy",
        "rbac.authorization.k8s.io" => "io.k8s.api.rbac",
        "resource.k8s.io" => "io.k8s.api.resource",
        "scheduling.k8s.io" => "io.k8s.api.scheduling",
        "storage.k8s.io" => "io.k8s.api.storage",
        "storagemigration.k8s.io" => "io.k8s.api.storagemigration",
        _ => return None,
    })
}

/// Starts the declaration of a kind of this crate's, whose type is looked up by its name in the embedded schema: a test makes sure
/// that it has them all.
fn kind(group: &'static str, version: &'static str, kind: &str, plural: &str) -> Kind {
    let package = package(group).unwrap_or_else(|| unreachable!("no package is known for {group}"));
    let type_name = format!("{package}.{version}.{kind}");
    Kind::declared(group, version, kind, plural, &type_name)
        .unwrap_or_else(|| unreachable!("the embedded schema has no {type_name}"))
}

pub(super) fn scale() -> Kind {
    kind("autoscaling", "v1", "Scale", "scales").unstored()
}

/// Refuses negative numbers among some fields of `object`, which lies at `path`.
fn not_negative(object: &Value, path: &str, fields: &[&str]) -> Vec<Cause> {
    let negative = fields.iter().filter(|field| object[**field].as_i64().is_some_and(|n| n < 0));
    let why = "must be greater than or equal to 0";
    negative.map(|field| Cause::invalid(format!("{path}.{field}"), &object[*field], why)).collect()
}

/// Whether two specs of a built-in type say the same.
fn same_spec(type_name: &str, a: &Value, b: &Value) -> bool {
    TypeRef::builtin(type_name).map_or(a == b, |type_| protobuf::same(type_.id, a, b))
}

/// Whether they say the same in one field.
fn same_field(type_name: &str, field: &str, a: &Value, b: &Value) -> bool {
    same_spec(type_name, &json!({ field: a }), &json!({ field: b }))
}

/// The words of a declaration.
impl Kind {
    /// Starts the declaration of a namespaced, stored kind with the columns Name and Age; `None` if the embedded schema has no type of
    /// that name.
    pub fn declared(group: &str, version: &str, kind: &str, plural: &str, type_name: &str) -> Option<Kind> {
        Some(Kind {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            plural: plural.into(),
            singular: kind.to_lowercase(),
            short_names: Vec::new(),
            categories: Vec::new(),
            scope: Scope::Namespaced,
            storage: Storage::Stored,
            subresources: Vec::new(),
            registry_folder: plural.into(),
            schema: TypeRef::builtin(type_name)?,
            columns: vec![Column::name(), Column::age()],
            selectable: Vec::new(),
            traits: Traits::DEFAULT,
            strategy: &Plain,
            origin: Origin::Builtin,
        })
    }

    fn cluster(mut self) -> Self {
        self.scope = Scope::Cluster;
        self
    }

    fn unstored(mut self) -> Self {
        self.storage = Storage::Virtual;
        self
    }

    #[must_use]
    pub fn short(mut self, names: &[&str]) -> Self {
        self.short_names = names.iter().map(|n| (*n).to_owned()).collect();
        self
    }

    #[must_use]
    pub fn category(mut self, category: &str) -> Self {
        self.categories.push(category.into());
        self
    }

    #[must_use]
    pub fn subresources(mut self, names: &[&str]) -> Self {
        self.subresources = names.iter().map(|n| (*n).to_owned()).collect();
        self
    }

    #[must_use]
    pub fn folder(mut self, folder: &str) -> Self {
        self.registry_folder = folder.into();
        self
    }

    #[must_use]
    pub fn columns(mut self, columns: Vec<Column>) -> Self {
        self.columns = columns;
        self
    }

    #[must_use]
    pub fn fields(mut self, fields: &'static [&'static str]) -> Self {
        self.selectable = fields.iter().map(|field| (*field).into()).collect();
        self
    }

    #[must_use]
    pub fn strategy(mut self, strategy: &'static dyn Strategy) -> Self {
        self.strategy = strategy;
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use crate::Kinds;

    #[test]
    fn every_kind_is_found_by_its_resource_and_by_its_kind() {
        let kinds = Kinds::builtin();
        let mut folders = HashMap::new();
        let mut versions = HashSet::new();
        for kind in kinds.iter() {
            assert!(kinds.by_resource(&kind.group, &kind.version, &kind.plural).is_some(), "{}", kind.plural);
            assert!(kinds.by_kind(&kind.group, &kind.version, &kind.kind).is_some(), "{}", kind.kind);
            let version = (kind.registry_folder.clone(), kind.group.clone(), kind.version.clone());
            assert!(
                versions.insert(version),
                "two kinds of {} in {}",
                kind.api_version(),
                kind.registry_folder
            );
            // Two kinds share a folder only as two versions of one: whatever reads it converts between them.
            let resource = (kind.plural.clone(), kind.kind.clone(), kind.scope);
            let first = folders.entry(kind.registry_folder.clone()).or_insert_with(|| resource.clone());
            assert_eq!(*first, resource, "two kinds in {}", kind.registry_folder);
        }
        assert!(folders.len() > 60, "{} kinds", folders.len());
    }
}
