//! What a claim, or a volume, is to become next. Pure.
//!
//! Source: upstream's `persistentvolume` controller, whose reasons and sentences these are.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use skiff_api::volumes::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, Binding, PROVISIONED_BY, PROVISIONER, PROVISIONER_BETA,
    SELECTED_NODE, annotation, class_of_claim, delays_binding, find_match, has_class, is_bound_to, misfit,
    modes_match, volume_of,
};
use skiff_client::EventType;

use super::super::{names, phase_of_volume};

/// Something to tell of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) type_: EventType,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

fn normal(reason: &'static str, message: impl Into<String>) -> Told {
    Told { type_: EventType::Normal, reason, message: message.into() }
}

fn warning(reason: &'static str, message: impl Into<String>) -> Told {
    Told { type_: EventType::Warning, reason, message: message.into() }
}

/// A claim, and what there is for it.
pub(super) struct ClaimSight<'s> {
    pub(super) claim: &'s PersistentVolumeClaim,
    /// The volume that it names, if that is there.
    pub(super) named: Option<&'s PersistentVolume>,
    /// Volumes of its class, and those that are kept for it.
    pub(super) candidates: &'s [Arc<PersistentVolume>],
    pub(super) class: Option<&'s StorageClass>,
    /// The class of claims that name none.
    pub(super) default_class: Option<&'s str>,
    /// Pods that use it and have no node yet.
    pub(super) unscheduled: &'s [String],
}

#[derive(Debug, PartialEq)]
pub(super) enum ClaimStep {
    Bind(Box<PersistentVolume>),
    /// It is pending, for what is told.
    Wait(Option<Told>),
    AssignClass(String),
    /// This provisioner is to make its volume.
    Provision(String),
    /// Nothing makes its volume.
    Tell(Told),
    /// What it was bound to is gone, or another's.
    Lose(Told),
}

pub(super) fn claim_step(sight: &ClaimSight<'_>) -> ClaimStep {
    match annotation(&sight.claim.metadata, BIND_COMPLETED) {
        None => unbound(sight),
        Some(_) => bound(sight),
    }
}

fn bind(volume: &PersistentVolume) -> ClaimStep {
    ClaimStep::Bind(Box::new(volume.clone()))
}

fn unbound(sight: &ClaimSight<'_>) -> ClaimStep {
    let claim = sight.claim;
    if volume_of(claim).is_empty() {
        return choose(sight);
    }
    let Some(volume) = sight.named else { return ClaimStep::Wait(None) };
    let (_, name) = names(&volume.metadata);
    if volume.spec.as_ref().is_none_or(|spec| spec.claim_ref.is_none()) {
        return match misfit(volume, claim) {
            None => bind(volume),
            Some(why) => {
                let message = format!("Cannot bind to requested volume {name:?}: {why}");
                ClaimStep::Wait(Some(warning("VolumeMismatch", message)))
            }
        };
    }
    if is_bound_to(volume, claim) {
        return bind(volume);
    }
    let message = format!("volume {name:?} already bound to a different claim.");
    ClaimStep::Wait(Some(warning("FailedBinding", message)))
}

/// For a claim that any volume will do for that is as it asks.
fn choose(sight: &ClaimSight<'_>) -> ClaimStep {
    let claim = sight.claim;
    let delays = sight.class.is_some_and(delays_binding);
    let binding = if delays { Binding::Delayed } else { Binding::Immediate };
    if let Some(volume) = find_match(claim, sight.candidates.iter().map(|v| &**v), binding, |_| false) {
        return bind(volume);
    }
    if let Some(class) = sight.default_class.filter(|_| !has_class(claim)) {
        return ClaimStep::AssignClass(class.to_owned());
    }
    if delays && annotation(&claim.metadata, SELECTED_NODE).is_none() {
        return ClaimStep::Wait(Some(first_consumer(sight.unscheduled)));
    }
    match (class_of_claim(claim), sight.class) {
        ("", _) => {
            let message = "no persistent volumes available for this claim and no storage class is set";
            ClaimStep::Wait(Some(normal("FailedBinding", message)))
        }
        (name, None) => {
            let message = format!("storageclass.storage.k8s.io {name:?} not found");
            ClaimStep::Tell(warning("ProvisioningFailed", message))
        }
        (_, Some(class)) if class.provisioner.starts_with("kubernetes.io/") => {
            let message = format!("no volume plugin matched name: {}", class.provisioner);
            ClaimStep::Tell(warning("ProvisioningFailed", message))
        }
        (_, Some(class)) => ClaimStep::Provision(class.provisioner.clone()),
    }
}

fn first_consumer(unscheduled: &[String]) -> Told {
    match unscheduled {
        [] => normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
        [pod] => normal("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
        pods => normal("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", pods.join(","))),
    }
}

fn bound(sight: &ClaimSight<'_>) -> ClaimStep {
    let claim = sight.claim;
    if volume_of(claim).is_empty() {
        let message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return ClaimStep::Lose(warning("ClaimLost", message));
    }
    let Some(volume) = sight.named else {
        let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        return ClaimStep::Lose(warning("ClaimLost", message));
    };
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if reference.is_none_or(|reference| reference.uid == claim.metadata.uid) {
        return bind(volume);
    }
    let message = "Two claims are bound to the same volume, this one is bound incorrectly";
    ClaimStep::Lose(warning("ClaimMisbound", message))
}

/// What is to be told of a claim when its provisioner was asked.
pub(super) fn external_provisioning(provisioner: &str) -> Told {
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system \
         administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
    );
    normal("ExternalProvisioning", message)
}

/// The marks by which a provisioner knows what it is asked for.
pub(super) const PROVISIONER_MARKS: [&str; 2] = [PROVISIONER_BETA, PROVISIONER];

#[derive(Debug, PartialEq)]
pub(super) enum VolumeStep {
    /// It is in this phase.
    Phase(&'static str),
    /// Its claim has to be looked at.
    WakeClaim,
    /// Its claim is of another mode: what is told of the volume, and of the claim.
    Mismatch(Told, Told),
    /// Its claim is gone, or has another volume that this one was made for in vain.
    Release,
    /// Its claim has another volume.
    Unbind,
}

/// `claim` is the one that the volume is bound to, if that is there.
pub(super) fn volume_step(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumeStep {
    let spec = volume.spec.as_ref();
    let uid = spec.and_then(|spec| spec.claim_ref.as_ref()?.uid.as_deref()).unwrap_or_default();
    if uid.is_empty() {
        return VolumeStep::Phase("Available");
    }
    let Some(claim) = claim.filter(|claim| claim.metadata.uid.as_deref() == Some(uid)) else {
        return VolumeStep::Release;
    };
    let ((_, name), (_, of)) = (names(&volume.metadata), names(&claim.metadata));
    match volume_of(claim) {
        "" if !modes_match(volume, claim) => {
            let here = format!(
                "Cannot bind PersistentVolume to requested PersistentVolumeClaim {of:?} due to incompatible volumeMode."
            );
            let there = format!(
                "Cannot bind PersistentVolume {name:?} to requested PersistentVolumeClaim due to incompatible volumeMode."
            );
            VolumeStep::Mismatch(warning("VolumeMismatch", here), warning("VolumeMismatch", there))
        }
        "" => VolumeStep::WakeClaim,
        bound if bound == name => VolumeStep::Phase("Bound"),
        _ => {
            let is_made = annotation(&volume.metadata, PROVISIONED_BY).is_some();
            let goes = spec.and_then(|s| s.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
            if is_made && goes { VolumeStep::Release } else { VolumeStep::Unbind }
        }
    }
}

/// Whether a volume was released before, whatever came of it.
pub(super) fn is_released(volume: &PersistentVolume) -> bool {
    matches!(phase_of_volume(volume), "Released" | "Failed")
}

/// Why a volume that is released cannot be what its policy says; nothing where that is somebody else's to do, or nobody's.
pub(super) fn cannot_reclaim(volume: &PersistentVolume) -> Option<Told> {
    let spec = volume.spec.as_ref();
    match spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain") {
        "Retain" => None,
        "Recycle" => Some(warning("VolumeFailedRecycle", "No recycler plugin found for the volume!")),
        "Delete" => {
            let maker = annotation(&volume.metadata, PROVISIONED_BY).filter(|by| !by.is_empty());
            let is_others = maker.is_some_and(|by| !by.starts_with("kubernetes.io/"))
                || maker.is_none() && spec.is_some_and(|spec| spec.csi.is_some());
            let (_, name) = names(&volume.metadata);
            let message = format!(
                "error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched"
            );
            (!is_others).then(|| warning("VolumeFailedDelete", message))
        }
        _ => {
            let message = "Volume has unrecognized PersistentVolumeReclaimPolicy";
            Some(warning("VolumeUnknownReclaimPolicy", message))
        }
    }
}

/// The volume without its claim: kept for one of its name, if whoever made it said so.
pub(super) fn unbound_volume(volume: &PersistentVolume) -> PersistentVolume {
    let mut volume = volume.clone();
    let annotations = volume.metadata.annotations.as_mut();
    let by_controller = annotations.is_some_and(|all| all.remove(BOUND_BY_CONTROLLER).is_some());
    if let Some(spec) = &mut volume.spec {
        if by_controller {
            spec.claim_ref = None;
        } else if let Some(reference) = &mut spec.claim_ref {
            reference.uid = None;
        }
    }
    volume
}

/// A claim's status in a phase; `None` if it says so already. What it was given is told once it is bound: later somebody may
/// have made the volume larger, and not yet what is on it.
pub(super) fn claim_status(
    claim: &PersistentVolumeClaim,
    phase: &str,
    volume: Option<&PersistentVolume>,
) -> Option<PersistentVolumeClaim> {
    let mut new = claim.clone();
    let status = new.status.get_or_insert_default();
    let has_changed = status.phase.as_deref() != Some(phase);
    let was_pending = status.phase.as_deref() == Some("Pending");
    status.phase = Some(phase.to_owned());
    match volume.and_then(|volume| volume.spec.as_ref()) {
        None => {
            status.access_modes = None;
            status.capacity = None;
            status.current_volume_attributes_class_name = None;
        }
        Some(spec) => {
            status.access_modes = spec.access_modes.clone();
            if has_changed {
                status.capacity = spec.capacity.clone();
            }
            if was_pending && phase == "Bound" {
                status.current_volume_attributes_class_name = spec.volume_attributes_class_name.clone();
            }
        }
    }
    (claim.status.as_ref() != new.status.as_ref()).then_some(new)
}

#[cfg(test)]
mod tests;
