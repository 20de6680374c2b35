//! Who a pod of a StatefulSet is: its name, its number, its storage. Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{
    self as core, PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use skiff_client::view::Pod;

use crate::history::{self, REVISION_HASH};
use crate::owned_pods::new_pod;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// A template that pods are made of.
pub(super) struct Revision {
    pub(super) name: String,
    template: PodTemplateSpec,
}

impl Revision {
    /// A revision that somebody else wrote, and that says nothing of the template, leaves it as it is in the set.
    pub(super) fn new(set: &StatefulSet, revision: &ControllerRevision) -> Revision {
        let name = revision.metadata.name.clone().unwrap_or_default();
        let of_set = || Some(set.spec.template.clone());
        let template = history::template_of(revision).or_else(of_set).unwrap_or_default();
        Revision { name, template }
    }
}

pub(super) fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// The set that a pod's name speaks of, and the pod's number in it, unless that is too large for one.
fn parent_and_ordinal(pod: &Pod) -> Option<(&str, Option<i32>)> {
    let (parent, digits) = name(&pod.metadata).rsplit_once('-')?;
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| (parent, digits.parse().ok()))
}

pub(super) fn is_member(set: &StatefulSet, pod: &Pod) -> bool {
    parent_and_ordinal(pod).is_some_and(|(parent, _)| parent == name(&set.metadata))
}

pub(super) fn ordinal(pod: &Pod) -> Option<i64> {
    parent_and_ordinal(pod)?.1.map(i64::from)
}

/// The number of the set's first pod.
pub(super) fn start(set: &StatefulSet) -> i64 {
    let ordinals = set.spec.ordinals.as_ref();
    ordinals.and_then(|ordinals| ordinals.start).unwrap_or(0).into()
}

/// How many pods the set is to have.
pub(super) fn n_replicas(set: &StatefulSet) -> i64 {
    set.spec.replicas.unwrap_or(1).max(0).into()
}

/// Whether the set is to have a pod of this number.
pub(super) fn is_wanted(set: &StatefulSet, ordinal: i64) -> bool {
    (start(set)..start(set).saturating_add(n_replicas(set))).contains(&ordinal)
}

fn pod_name(set: &StatefulSet, ordinal: i64) -> String {
    format!("{}-{ordinal}", name(&set.metadata))
}

/// The revision that a pod says it is of.
pub(super) fn revision_of(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_HASH)).map_or("", String::as_str)
}

/// The set's pod of a number, as it is to be made.
pub(super) fn new_stateful_pod(set: &StatefulSet, revision: &Revision, ordinal: i64) -> core::Pod {
    let mut pod = new_pod(set, revision.template.clone());
    set_identity(set, &mut pod.metadata, ordinal);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_HASH.into(), revision.name.clone());
    let service = set.spec.service_name.clone();
    let spec = pod.spec.get_or_insert_default();
    // Neither may change once the pod is there.
    spec.hostname = pod.metadata.name.clone();
    spec.subdomain = service.filter(|name| !name.is_empty());
    set_storage(set, spec, ordinal);
    pod
}

pub(super) fn set_identity(set: &StatefulSet, meta: &mut ObjectMeta, ordinal: i64) {
    let name = pod_name(set, ordinal);
    meta.name = Some(name.clone());
    meta.namespace = set.metadata.namespace.clone();
    let labels = meta.labels.get_or_insert_default();
    labels.insert(POD_NAME.into(), name);
    labels.insert(POD_INDEX.into(), ordinal.to_string());
}

pub(super) fn has_identity(set: &StatefulSet, pod: &Pod) -> bool {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(POD_NAME));
    ordinal(pod).is_some_and(|ordinal| name(&pod.metadata) == pod_name(set, ordinal))
        && label == pod.metadata.name.as_ref()
}

fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.volume_claim_templates.as_deref().unwrap_or_default()
}

fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i64) -> String {
    format!("{}-{}-{ordinal}", name(&template.metadata), name(&set.metadata))
}

/// The names of the claims of the set's pod of a number.
pub(super) fn claim_names(set: &StatefulSet, ordinal: i64) -> impl Iterator<Item = String> {
    templates(set).iter().map(move |template| claim_name(set, template, ordinal))
}

/// The claims of the set's pod of a number, as they are to be made.
pub(super) fn new_claims(set: &StatefulSet, ordinal: i64) -> Vec<PersistentVolumeClaim> {
    let selected = set.spec.selector.match_labels.clone();
    let claim = |template: &PersistentVolumeClaim| {
        let mut claim = PersistentVolumeClaim { status: None, ..template.clone() };
        claim.metadata.name = Some(claim_name(set, template, ordinal));
        claim.metadata.namespace = set.metadata.namespace.clone();
        if let Some(selected) = &selected {
            claim.metadata.labels.get_or_insert_default().extend(selected.clone());
        }
        claim
    };
    templates(set).iter().map(claim).collect()
}

/// The pod's volumes with those of its claims, which take the place of others of the same name.
pub(super) fn set_storage(set: &StatefulSet, pod: &mut core::PodSpec, ordinal: i64) {
    let templates = templates(set);
    if templates.is_empty() {
        return;
    }
    let volume = |template: &PersistentVolumeClaim| Volume {
        name: name(&template.metadata).to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(set, template, ordinal),
            read_only: None,
        }),
        ..Volume::default()
    };
    let is_claimed = |volume: &Volume| templates.iter().any(|t| name(&t.metadata) == volume.name);
    let volumes = pod.volumes.get_or_insert_default();
    volumes.retain(|volume| !is_claimed(volume));
    volumes.splice(0..0, templates.iter().map(volume));
}

pub(super) fn has_storage(set: &StatefulSet, pod: &Pod) -> bool {
    let Some(ordinal) = ordinal(pod) else { return false };
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    templates(set).iter().all(|template| {
        let volume = volumes.iter().find(|volume| volume.name == name(&template.metadata));
        let source = volume.and_then(|volume| volume.persistent_volume_claim.as_ref());
        source.is_some_and(|source| source.claim_name == claim_name(set, template, ordinal))
    })
}

/// What a pass knows of claims.
pub(super) type Claims<'c> = &'c (dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>> + Sync);
