//! `PersistentVolumeClaimResize`: a claim asks for more only where its class says that volumes can grow.
//!
//! Source: upstream's admission of the same name.

use skiff_api::meta::Meta;
use skiff_api::quantity::Quantity;
use skiff_api::{Kind, Object, Status};

use crate::lister::Lister;

const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const REFUSED: &str = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";

/// # Errors
/// 403 for a claim that may not grow.
pub(super) fn check(lister: &Lister, kind: &Kind, new: &Object, old: &Object) -> Result<(), Status> {
    let size = |claim: &Object| -> Option<Quantity> {
        claim["spec"]["resources"]["requests"]["storage"].as_str()?.parse().ok()
    };
    if size(new) <= size(old) {
        return Ok(());
    }
    let forbid = |why: &str| Err(Status::forbidden(&kind.group, &kind.plural, new.name(), why));
    if old["status"]["phase"] != "Bound" {
        return forbid("Only bound persistent volume claims can be expanded");
    }
    let (class, before) = (class_of(new), class_of(old));
    if class.is_empty() || class != before {
        return forbid(REFUSED);
    }
    let found = lister.cache("storage.k8s.io", "v1", "storageclasses")?.get(class)?;
    match found.map(|entry| entry.parse()) {
        Some(class) if class["allowVolumeExpansion"] == true => Ok(()),
        _ => forbid(REFUSED),
    }
}

/// The annotation came first, and still counts.
fn class_of(claim: &Object) -> &str {
    let annotation = claim["metadata"]["annotations"][CLASS].as_str();
    annotation.or_else(|| claim["spec"]["storageClassName"].as_str()).unwrap_or_default()
}
