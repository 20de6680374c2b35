//! Whose a claim is: what its set says of claims when it goes, or when it gets smaller. Pure.
//!
//! The garbage collector deletes a claim whose owners are gone. So a claim that is to go with its set is owned by the set,
//! and one that is to go because the set got smaller is owned by the pod that goes.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use skiff_client::view::Pod;

use super::identity::{is_wanted, name, ordinal};
use crate::objects::{controller_reference, uid};

/// Who is to own a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owners {
    set: bool,
    pod: bool,
}

/// Whether claims go when the set goes, and when it gets smaller.
fn policy(set: &StatefulSet) -> (bool, bool) {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
    let is_delete = |when: Option<&String>| when.is_some_and(|when| when == "Delete");
    policy.map_or((false, false), |policy| {
        (is_delete(policy.when_deleted.as_ref()), is_delete(policy.when_scaled.as_ref()))
    })
}

fn owners(set: &StatefulSet, pod: &Pod) -> Owners {
    let (with_set, with_pod) = policy(set);
    let is_surplus = ordinal(pod).is_none_or(|ordinal| !is_wanted(set, ordinal));
    let pod = with_pod && is_surplus;
    Owners { set: with_set && !pod, pod }
}

/// Whether a reference speaks of an object of this kind and name, whichever object that was.
fn names<K: Resource<DynamicType = ()>>(reference: &OwnerReference, object: &K) -> bool {
    reference.api_version == K::api_version(&())
        && reference.kind == K::kind(&())
        && reference.name == name(object.meta())
}

fn references(claim: &PersistentVolumeClaim) -> &[OwnerReference] {
    claim.metadata.owner_references.as_deref().unwrap_or_default()
}

fn is_owned_by(claim: &PersistentVolumeClaim, owner: &ObjectMeta) -> bool {
    references(claim).iter().any(|reference| reference.uid == uid(owner))
}

/// Whether a claim is owned by an earlier object of the same name.
fn is_stale<K: Resource<DynamicType = ()>>(claim: &PersistentVolumeClaim, object: &K) -> bool {
    let reference = references(claim).iter().find(|reference| names(reference, object));
    reference.is_some_and(|reference| reference.uid != uid(object.meta()))
}

/// Whether somebody else manages a claim that the set would have to.
pub(super) fn is_contested(claim: &PersistentVolumeClaim, set: &StatefulSet, pod: &Pod) -> bool {
    let is_other = |reference: &OwnerReference| {
        if names(reference, set) {
            reference.uid != uid(&set.metadata)
        } else if names(reference, pod) {
            reference.uid != uid(&pod.metadata)
        } else {
            reference.controller == Some(true)
        }
    };
    policy(set) != (false, false) && references(claim).iter().any(is_other)
}

/// Whether a claim is owned as the set's policy says, or is in a state in which it is better left alone.
pub(super) fn is_settled(claim: &PersistentVolumeClaim, set: &StatefulSet, pod: &Pod) -> bool {
    if is_stale(claim, set) || is_stale(claim, pod) {
        return true;
    }
    let is = Owners { set: is_owned_by(claim, &set.metadata), pod: is_owned_by(claim, &pod.metadata) };
    if is_contested(claim, set, pod) {
        return !is.set && !is.pod;
    }
    let is_ours = |r: &OwnerReference| r.uid == uid(&set.metadata) || r.uid == uid(&pod.metadata);
    let manage = |r: &OwnerReference| r.controller == Some(true);
    references(claim).iter().all(|r| !is_ours(r) || manage(r)) && is == owners(set, pod)
}

/// The owners that a claim is to have.
pub(super) fn settled(claim: &PersistentVolumeClaim, set: &StatefulSet, pod: &Pod) -> Vec<OwnerReference> {
    let others = references(claim).iter().filter(|r| !names(r, set) && !names(r, pod)).cloned();
    let mut settled: Vec<_> = others.collect();
    if !is_contested(claim, set, pod) {
        let owners = owners(set, pod);
        settled.extend(owners.pod.then(|| controller_reference(pod)));
        settled.extend(owners.set.then(|| controller_reference(set)));
    }
    settled
}

/// Whether a claim is still that of a pod that went because the set was smaller: it goes too, and the new pod must not
/// take what is about to be deleted.
pub(super) fn is_of_earlier(claim: &PersistentVolumeClaim, set: &StatefulSet, pod: &Pod) -> bool {
    policy(set).1 && is_stale(claim, pod)
}
