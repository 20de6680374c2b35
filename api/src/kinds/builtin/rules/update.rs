//! What may not change.

use serde_json::Value;

use super::path::{Faults, Path, list, text};
use super::{claim, pod};
use crate::{Kind, Object};

/// Kind, field, and the path that the fault is reported at where upstream calls it otherwise.
const IMMUTABLE: [(&str, &str, &str); 17] = [
    ("apps/ControllerRevision", "data", ""),
    ("storage.k8s.io/StorageClass", "parameters", ""),
    ("storage.k8s.io/StorageClass", "provisioner", ""),
    ("storage.k8s.io/StorageClass", "reclaimPolicy", ""),
    ("storage.k8s.io/StorageClass", "volumeBindingMode", ""),
    ("storage.k8s.io/CSIDriver", "spec.attachRequired", "spec.attachedRequired"),
    ("storage.k8s.io/CSIDriver", "spec.volumeLifecycleModes", ""),
    ("storage.k8s.io/VolumeAttachment", "spec", ""),
    ("storage.k8s.io/CSIStorageCapacity", "nodeTopology", ""),
    ("storage.k8s.io/CSIStorageCapacity", "storageClassName", ""),
    ("node.k8s.io/RuntimeClass", "handler", ""),
    ("discovery.k8s.io/EndpointSlice", "addressType", ""),
    ("networking.k8s.io/IngressClass", "spec.controller", ""),
    ("certificates.k8s.io/PodCertificateRequest", "spec", ""),
    ("storagemigration.k8s.io/StorageVersionMigration", "spec", ""),
    ("resource.k8s.io/ResourceClaim", "spec", ""),
    ("resource.k8s.io/ResourceClaimTemplate", "spec", ""),
];

pub(super) fn check(kind: &Kind, new: &Object, old: &Object, faults: &mut Faults) {
    let name = format!("{}/{}", kind.group, kind.kind);
    for (of, field, shown) in IMMUTABLE.iter().filter(|(of, ..)| *of == name) {
        let pointer = format!("/{}", field.replace('.', "/"));
        let (is, was) = (new.pointer(&pointer), old.pointer(&pointer));
        if is != was && !(is_nothing(is) && is_nothing(was)) {
            let shown = if shown.is_empty() { field } else { shown };
            faults.invalid(&Path::ROOT.child(shown), is.unwrap_or(&Value::Null), "field is immutable");
        }
        debug_assert!(!of.is_empty());
    }
    if name == "storage.k8s.io/VolumeAttributesClass" {
        for field in ["driverName", "parameters"].into_iter().filter(|field| new[*field] != old[*field]) {
            faults.forbidden(&Path::ROOT.child(field), &format!("updates to {field} are forbidden."));
        }
    }
    if name == "storage.k8s.io/CSINode" {
        drivers(new, old, faults);
    }
    let causes = match name.as_str() {
        "/PersistentVolumeClaim" => claim::claim_update(new, old),
        "/PersistentVolume" => claim::volume_update(new, old),
        "/Pod" => pod::annotation_changes(new, old),
        _ => Vec::new(),
    };
    causes.into_iter().for_each(|cause| faults.push(cause));
}

/// A driver stays what it is; others may come and go, and how much it can take may change.
fn drivers(new: &Object, old: &Object, faults: &mut Faults) {
    let bare = |driver: &Value| {
        let mut bare = driver.clone();
        _ = bare.as_object_mut().map(|bare| bare.remove("allocatable"));
        bare
    };
    let before: std::collections::HashMap<&str, &Value> =
        list(&old["spec"], "drivers").iter().map(|driver| (text(driver, "name"), driver)).collect();
    for driver in list(&new["spec"], "drivers") {
        if before.get(text(driver, "name")).is_some_and(|old| bare(old) != bare(driver)) {
            let path = Path::ROOT.child("spec");
            faults.invalid(&path.child("drivers"), driver, "field is immutable");
        }
    }
}

fn is_nothing(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    }
}
