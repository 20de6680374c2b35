//! Storage.

use serde_json::Value;

use super::kind;
use crate::table::Column;
use crate::table::cell::{NONE, UNSET, bool, count, items_at, joined, str_at, text, text_or};
use crate::{Kind, Object};

pub(super) fn kinds() -> Vec<Kind> {
    let storage = |name: &str, plural: &str| kind("storage.k8s.io", "v1", name, plural);
    vec![
        storage("CSIDriver", "csidrivers").cluster().columns(vec![
            Column::name(),
            Column::new("AttachRequired", "boolean", |o, _| bool(o, "/spec/attachRequired")),
            Column::new("PodInfoOnMount", "boolean", |o, _| bool(o, "/spec/podInfoOnMount")),
            Column::new("StorageCapacity", "boolean", |o, _| bool(o, "/spec/storageCapacity")),
            Column::new("TokenRequests", "string", |o, _| {
                joined(items_at(o, "/spec/tokenRequests").iter().map(|t| str_at(t, "/audience")), UNSET)
                    .into()
            }),
            Column::new("RequiresRepublish", "boolean", |o, _| bool(o, "/spec/requiresRepublish")),
            Column::new("Modes", "string", |o, _| {
                joined(items_at(o, "/spec/volumeLifecycleModes").iter().filter_map(Value::as_str), NONE)
                    .into()
            }),
            Column::age(),
        ]),
        storage("CSINode", "csinodes").cluster().columns(vec![
            Column::name(),
            Column::new("Drivers", "integer", |o, _| count(o, "/spec/drivers").into()),
            Column::age(),
        ]),
        storage("CSIStorageCapacity", "csistoragecapacities")
            .columns(vec![Column::name(), Column::created_at()]),
        storage("StorageClass", "storageclasses").cluster().short(&["sc"]).columns(vec![
            Column::name(),
            Column::new("Provisioner", "string", |o, _| text(o, "/provisioner")),
            Column::new("ReclaimPolicy", "string", |o, _| text_or(o, "/reclaimPolicy", "Delete")),
            Column::new("VolumeBindingMode", "string", |o, _| text_or(o, "/volumeBindingMode", "Immediate")),
            Column::new("AllowVolumeExpansion", "string", |o, _| bool(o, "/allowVolumeExpansion")),
            Column::age(),
        ]),
        storage("VolumeAttachment", "volumeattachments").cluster().subresources(&["status"]).columns(vec![
            Column::name(),
            Column {
                format: "name".into(),
                ..Column::new("Attacher", "string", |o, _| text(o, "/spec/attacher"))
            },
            Column::new("PV", "string", |o, _| text(o, "/spec/source/persistentVolumeName")),
            Column::new("Node", "string", |o, _| text(o, "/spec/nodeName")),
            Column::new("Attached", "boolean", |o, _| bool(o, "/status/attached")),
            Column::age(),
        ]),
        storage("VolumeAttributesClass", "volumeattributesclasses").cluster().short(&["vac"]).columns(vec![
            Column::name(),
            Column::new("DriverName", "string", |o, _| text(o, "/driverName")),
            Column::age(),
        ]),
        kind("storagemigration.k8s.io", "v1", "StorageVersionMigration", "storageversionmigrations")
            .cluster()
            .subresources(&["status"])
            .columns(vec![
                Column::new("Name", "string", |o, _| text(o, "/metadata/name")),
                Column::new("Resource", "string", |o, _| migrated(o).into()),
                Column::new("Status", "string", |o, _| migration_state(o).into()),
            ]),
    ]
}

/// `deployments.apps`
fn migrated(migration: &Object) -> String {
    let (name, group) =
        (str_at(migration, "/spec/resource/resource"), str_at(migration, "/spec/resource/group"));
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

fn migration_state(migration: &Object) -> &str {
    let conditions = items_at(migration, "/status/conditions").iter().filter(|c| c["status"] == "True");
    let types = conditions.map(|c| str_at(c, "/type"));
    let told = |type_: &&str| matches!(*type_, "Running" | "Failed" | "Succeeded");
    types.rev().find(told).unwrap_or("Unknown")
}
