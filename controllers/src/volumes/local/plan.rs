//! What the local provisioner is to do about a claim, or a volume. Pure.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;
use skiff_api::volumes::{
    BOUND_BY_CONTROLLER, PROVISIONED_BY, PROVISIONER, SELECTED_NODE, VOLUME_PROTECTION, access_modes,
    annotation, class_of_claim, delays_binding, is_bound_to, reference_to, topology_allows, volume_of,
};

use super::super::expansion::wants_more;
use super::super::{has_finalizer, phase_of_volume};
use super::{FINALIZER, HOSTNAME, LIMIT, Made, NODE, PROVISIONER_NAME, is_ours, storage};
use crate::objects::uid;

#[derive(Debug, PartialEq)]
pub(super) enum ClaimStep {
    Nothing,
    /// What it asks for is not built.
    Refuse(String),
    /// Any node will do, and none was chosen yet.
    ChooseNode,
    Make {
        node: String,
        class: Box<StorageClass>,
    },
    /// Its volume is to be as large as it asks for.
    Expand(Box<PersistentVolume>),
    RefuseExpansion(String),
}

pub(super) fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", uid(&claim.metadata))
}

/// `volume` is the one that the claim names.
pub(super) fn claim_step(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    volume: Option<&PersistentVolume>,
) -> ClaimStep {
    if claim.metadata.deletion_timestamp.is_some() {
        return ClaimStep::Nothing;
    }
    if !volume_of(claim).is_empty() {
        let own = volume.filter(|volume| is_ours(volume) && is_bound_to(volume, claim));
        return own.map_or(ClaimStep::Nothing, |volume| expansion(claim, class, volume));
    }
    // Marked by the binder, which found nothing that is there already.
    let is_asked = annotation(&claim.metadata, PROVISIONER) == Some(PROVISIONER_NAME);
    let Some(class) = class.filter(|class| is_asked && class.provisioner == PROVISIONER_NAME) else {
        return ClaimStep::Nothing;
    };
    let node = annotation(&claim.metadata, SELECTED_NODE).filter(|node| !node.is_empty());
    if node.is_none() && delays_binding(class) {
        return ClaimStep::Nothing;
    }
    if let Some(why) = refusal(claim, class) {
        return ClaimStep::Refuse(why);
    }
    match node {
        None => ClaimStep::ChooseNode,
        Some(node) => ClaimStep::Make { node: node.to_owned(), class: Box::new(class.clone()) },
    }
}

/// What of a claim, or its class, no volume of this kind can be.
fn refusal(claim: &PersistentVolumeClaim, class: &StorageClass) -> Option<String> {
    let spec = claim.spec.as_ref();
    if spec.and_then(|spec| spec.volume_mode.as_deref()) == Some("Block") {
        return Some("volumeMode Block is not supported: ask for Filesystem".into());
    }
    let is_known = |mode: &&String| !matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod");
    if let Some(mode) = access_modes(claim).iter().find(is_known) {
        return Some(format!(
            "access mode {mode} is not supported, a volume is on one node: ask for ReadWriteOnce or ReadWriteOncePod"
        ));
    }
    if spec.is_some_and(|spec| spec.selector.is_some()) {
        return Some("claim Selector is not supported".into());
    }
    if spec.is_some_and(|spec| spec.data_source.is_some() || spec.data_source_ref.is_some()) {
        return Some("a dataSource is not supported: volumes begin empty".into());
    }
    if let Some(name) = class.parameters.iter().flatten().map(|(name, _)| name).next() {
        return Some(format!("parameter {name:?} of the class is not supported: there are none"));
    }
    if class.mount_options.as_ref().is_some_and(|options| !options.is_empty()) {
        return Some("mountOptions of the class are not supported".into());
    }
    None
}

fn expansion(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    volume: &PersistentVolume,
) -> ClaimStep {
    if !wants_more(claim) {
        return ClaimStep::Nothing;
    }
    if class.is_none_or(|class| class.allow_volume_expansion != Some(true)) {
        let name = class_of_claim(claim);
        return ClaimStep::RefuseExpansion(format!(
            "storage class {name:?} does not allow that volumes are expanded (allowVolumeExpansion)"
        ));
    }
    ClaimStep::Expand(Box::new(volume.clone()))
}

/// A node for a claim that any will do for: of those that are ready and take pods, for each claim another. Every failure
/// moves on to the next.
pub(super) fn any_node<'n>(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    nodes: &'n [Arc<Node>],
    n_failures: u32,
) -> Option<&'n str> {
    let terms = class.and_then(|class| class.allowed_topologies.as_deref()).unwrap_or_default();
    let fit =
        nodes.iter().filter(|node| is_fit(node) && topology_allows(terms, node.metadata.labels.as_ref()));
    let mut names: Vec<&str> = fit.filter_map(|node| node.metadata.name.as_deref()).collect();
    names.sort_unstable();
    let mut hasher = DefaultHasher::new();
    uid(&claim.metadata).hash(&mut hasher);
    let at = hasher.finish().wrapping_add(u64::from(n_failures));
    let n_names = u64::try_from(names.len()).ok().filter(|n| *n > 0)?;
    names.get(usize::try_from(at % n_names).ok()?).copied()
}

fn is_fit(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    let is_cordoned = spec.is_some_and(|spec| spec.unschedulable == Some(true));
    let mut taints = spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let is_tainted = taints.any(|taint| taint.effect != "PreferNoSchedule");
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let is_ready = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
    is_ready && !is_cordoned && !is_tainted
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VolumeStep {
    Nothing,
    /// It is in use: its node had better be there.
    Watch,
    /// The directory goes, and then the object.
    Remove,
    /// The object goes, and the directory stays.
    LetGo,
}

pub(super) fn volume_step(volume: &PersistentVolume) -> VolumeStep {
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let goes = policy == Some("Delete");
    let is_deleted =
        volume.metadata.deletion_timestamp.is_some() && has_finalizer(&volume.metadata, FINALIZER);
    match phase_of_volume(volume) {
        "Bound" => VolumeStep::Watch,
        "Released" | "Failed" if goes => VolumeStep::Remove,
        // One that is kept for a claim may be bound any moment; that it is deleted is what counts.
        _ if is_deleted && goes => VolumeStep::Remove,
        _ if is_deleted => VolumeStep::LetGo,
        _ => VolumeStep::Nothing,
    }
}

/// The object for a directory.
pub(super) fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
    made: &Made,
    capacity: Quantity,
) -> PersistentVolume {
    let node_name = node.metadata.name.as_deref().unwrap_or_default();
    let labels = node.metadata.labels.as_ref();
    let hostname = labels.and_then(|labels| labels.get(HOSTNAME)).map_or(node_name, String::as_str);
    let is_here = json!({"key": HOSTNAME, "operator": "In", "values": [hostname]});
    let policy = class.reclaim_policy.as_deref().unwrap_or("Delete");
    let volume = json!({
        "metadata": {
            "name": volume_name(claim),
            "annotations": {
                PROVISIONED_BY: PROVISIONER_NAME, BOUND_BY_CONTROLLER: "yes", NODE: node_name, LIMIT: made.limit,
            },
            "finalizers": [VOLUME_PROTECTION, FINALIZER],
        },
        "spec": {
            "accessModes": access_modes(claim),
            "capacity": storage(capacity),
            "claimRef": reference_to(claim),
            "local": {"path": made.path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [is_here]}]}},
            "persistentVolumeReclaimPolicy": policy,
            "storageClassName": class_of_claim(claim),
            "volumeMode": "Filesystem",
        },
    });
    // All of it is of the types that it is read as.
    serde_json::from_value(volume).unwrap_or_default()
}

#[cfg(test)]
mod tests;
