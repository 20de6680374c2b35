//! What `builtin.txt` does not say of how server-side apply takes values apart.
//!
//! Source: upstream's `+structType`, `+mapType` and `+listType` markers, of types and of fields.

use super::{ListType, Schema, TypeId};

/// Types that are one value wherever they stand.
const ATOMIC: [&str; 27] = [
    "io.k8s.api.admissionregistration.v1.MatchResources",
    "io.k8s.api.admissionregistration.v1.NamedRuleWithOperations",
    "io.k8s.api.admissionregistration.v1.ParamKind",
    "io.k8s.api.admissionregistration.v1.ParamRef",
    "io.k8s.api.admissionregistration.v1.Variable",
    "io.k8s.api.autoscaling.v1.CrossVersionObjectReference",
    "io.k8s.api.core.v1.ConfigMapKeySelector",
    "io.k8s.api.core.v1.EndpointAddress",
    "io.k8s.api.core.v1.EndpointPort",
    "io.k8s.api.core.v1.FileKeySelector",
    "io.k8s.api.core.v1.LocalObjectReference",
    "io.k8s.api.core.v1.NodeSelector",
    "io.k8s.api.core.v1.NodeSelectorTerm",
    "io.k8s.api.core.v1.ObjectFieldSelector",
    "io.k8s.api.core.v1.ObjectReference",
    "io.k8s.api.core.v1.ResourceFieldSelector",
    "io.k8s.api.core.v1.ScopeSelector",
    "io.k8s.api.core.v1.SecretKeySelector",
    "io.k8s.api.core.v1.SecretReference",
    "io.k8s.api.core.v1.TopologySelectorTerm",
    "io.k8s.api.core.v1.TypedLocalObjectReference",
    "io.k8s.api.discovery.v1.EndpointPort",
    "io.k8s.api.networking.v1.ServiceBackendPort",
    "io.k8s.api.rbac.v1.RoleRef",
    "io.k8s.api.rbac.v1.Subject",
    "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector",
    "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference",
];

/// Fields that take such a type apart all the same.
const GRANULAR: [(&str, &str); 1] = [("io.k8s.api.core.v1.PersistentVolumeSpec", "claimRef")];

/// Lists whose type and keys the markers say in other words.
const LISTS: [(&str, &str, ListType, &[&str]); 2] = [
    (
        "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicySpec",
        "matchConditions",
        ListType::Map,
        &["name"],
    ),
    ("io.k8s.api.core.v1.NodeAllocatableResourceClaimStatus", "containers", ListType::Set, &[]),
];

pub(super) fn add(schema: &mut Schema) {
    for name in ATOMIC {
        let id = schema.find(name);
        debug_assert!(id.is_some(), "no type {name}");
        if let Some(TypeId(id)) = id {
            schema.types[id as usize].atomic = true;
        }
    }
    for (type_name, name) in GRANULAR {
        change(schema, type_name, name, |field| field.node.granular = true);
    }
    for (type_name, name, list, keys) in LISTS {
        change(schema, type_name, name, |field| {
            field.node.list = list;
            field.node.keys = keys.iter().map(|key| Box::from(*key)).collect();
        });
    }
}

fn change(schema: &mut Schema, type_name: &str, name: &str, change: impl Fn(&mut super::Field)) {
    let id = schema.find(type_name);
    let field =
        id.and_then(|TypeId(id)| schema.types[id as usize].fields.iter_mut().find(|f| *f.name == *name));
    debug_assert!(field.is_some(), "no field {name} of {type_name}");
    if let Some(field) = field {
        change(field);
    }
}
