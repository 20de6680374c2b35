//! Which volume is one for a claim, and from which nodes it can be reached: what the binder of volumes and the scheduler must
//! agree on. Pure.
//!
//! Source: upstream's `component-helpers/storage/volume`.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, TopologySelectorTerm,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::LabelSelector;
use crate::placement::{NodeFacts, any_term_holds};
use crate::quantity::{Quantity, Suffixes};

/// On a claim: both sides were written.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or a volume: its other side was chosen by the cluster, not by whoever made it.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim: the node that the scheduler has chosen for its first pod.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a volume: who made it, and is to remove it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: who is to make its volume.
pub const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
pub const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// A class of this provisioner is of volumes that people make.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// What keeps claims and volumes that are in use.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// An older way to name a class, which counts before the field.
const CLASS_BETA: &str = "volume.beta.kubernetes.io/storage-class";

pub fn annotation<'m>(meta: &'m ObjectMeta, name: &str) -> Option<&'m str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

pub fn has_class(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata, CLASS_BETA).is_some()
        || claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name.is_some())
}

/// The class that a claim asks for, `""` for none.
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let field = || claim.spec.as_ref()?.storage_class_name.as_deref();
    annotation(&claim.metadata, CLASS_BETA).or_else(field).unwrap_or_default()
}

/// The class of a volume, `""` for none.
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let field = || volume.spec.as_ref()?.storage_class_name.as_deref();
    annotation(&volume.metadata, CLASS_BETA).or_else(field).unwrap_or_default()
}

/// Whether claims of a class wait until a pod that uses them has a node.
pub fn delays_binding(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// The volume that a claim names, `""` for none.
pub fn volume_of(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

/// The claim that a volume names.
pub fn claim_of(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// Both sides are written, as far as the claim says.
pub fn is_fully_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_of(claim).is_empty() && annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

/// Whether a volume is bound to this claim, or is kept for one of its name.
pub fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = claim_of(volume) else { return false };
    let uid = reference.uid.as_deref().unwrap_or_default();
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (uid.is_empty() || claim.metadata.uid.as_deref() == Some(uid))
}

/// How a volume refers to its claim.
pub fn reference_to(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// The volume as it is when it is bound to a claim; `None` if it is.
pub fn bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<PersistentVolume> {
    let by_controller = !is_bound_to(volume, claim);
    let is_whole = !by_controller && claim_of(volume).is_some_and(|r| r.uid == claim.metadata.uid);
    if is_whole {
        return None;
    }
    let mut bound = volume.clone();
    bound.spec.get_or_insert_default().claim_ref = Some(reference_to(claim));
    if by_controller {
        annotate(&mut bound.metadata, BOUND_BY_CONTROLLER, "yes");
    }
    Some(bound)
}

/// Sets an annotation. Answers whether it was another.
pub fn annotate(meta: &mut ObjectMeta, name: &str, value: &str) -> bool {
    let before = meta.annotations.get_or_insert_default().insert(name.to_owned(), value.to_owned());
    before.as_deref() != Some(value)
}

fn amount(text: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>) -> Quantity {
    let none = Quantity::from_units(0, Suffixes::Binary);
    text.and_then(|text| text.0.parse().ok()).unwrap_or(none)
}

/// How much storage a claim asks for.
pub fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    amount(requests.and_then(|requests| requests.get("storage")))
}

/// How much a claim was given.
pub fn given(claim: &PersistentVolumeClaim) -> Quantity {
    let capacity = claim.status.as_ref().and_then(|status| status.capacity.as_ref());
    amount(capacity.and_then(|capacity| capacity.get("storage")))
}

pub fn capacity(volume: &PersistentVolume) -> Quantity {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    amount(capacity.and_then(|capacity| capacity.get("storage")))
}

/// Whether both are of the same mode: a file system, or a block device.
pub fn modes_match(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of = |mode: Option<&String>| mode.is_none_or(|mode| mode == "Filesystem");
    let (has, wants) = (volume.spec.as_ref(), claim.spec.as_ref());
    of(has.and_then(|spec| spec.volume_mode.as_ref())) == of(wants.and_then(|spec| spec.volume_mode.as_ref()))
}

pub fn access_modes(claim: &PersistentVolumeClaim) -> &[String] {
    claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default()
}

fn offered(spec: Option<&PersistentVolumeSpec>) -> &[String] {
    spec.and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default()
}

fn has_access_modes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    access_modes(claim).iter().all(|mode| offered(volume.spec.as_ref()).contains(mode))
}

fn same_attributes_class(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let has = volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let wants = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    has.unwrap_or_default() == wants.unwrap_or_default()
}

/// Why a volume is not one for the claim that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    Deleted(String),
    TooSmall,
    Class,
    AttributesClass,
    Mode,
    Access,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfit::Deleted(name) => write!(f, "the volume is marked for deletion {name:?}"),
            Misfit::TooSmall => f.write_str("requested PV is too small"),
            Misfit::Class => f.write_str("storageClassName does not match"),
            Misfit::AttributesClass => f.write_str("volumeAttributesClassName does not match"),
            Misfit::Mode => f.write_str("incompatible volumeMode"),
            Misfit::Access => f.write_str("incompatible accessMode"),
        }
    }
}

/// What a volume that a claim asks for by name lacks, if anything.
pub fn misfit(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Misfit> {
    if volume.metadata.deletion_timestamp.is_some() {
        return Some(Misfit::Deleted(volume.metadata.name.clone().unwrap_or_default()));
    }
    let faults = [
        (capacity(volume) < requested(claim), Misfit::TooSmall),
        (class_of_volume(volume) != class_of_claim(claim), Misfit::Class),
        (!same_attributes_class(volume, claim), Misfit::AttributesClass),
        (!modes_match(volume, claim), Misfit::Mode),
        (!has_access_modes(volume, claim), Misfit::Access),
    ];
    faults.into_iter().find_map(|(is_so, fault)| is_so.then_some(fault))
}

/// Where a volume is to be bound.
#[derive(Clone, Copy, Debug)]
pub enum Binding<'n> {
    /// On any node.
    Immediate,
    /// Only what is kept for the claim: everything else waits for its pod.
    Delayed,
    /// For a pod that is to be on this node.
    On(NodeFacts<'n>),
}

/// Of the volumes, which must be of the claim's class or kept for it, the one that a claim gets: what is kept for it, else the
/// smallest that is large enough, of those with the fewest ways of access.
pub fn find_match<'v>(
    claim: &PersistentVolumeClaim,
    volumes: impl Iterator<Item = &'v PersistentVolume>,
    binding: Binding<'_>,
    is_taken: impl Fn(&str) -> bool,
) -> Option<&'v PersistentVolume> {
    let wanted = requested(claim);
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let selector =
        match selector.map(|s| LabelSelector::from_json(&serde_json::to_value(s).unwrap_or_default())) {
            Some(Ok(selector)) => Some(selector),
            // Validation refuses it.
            Some(Err(_)) => return None,
            None => None,
        };
    let selected = |volume: &PersistentVolume| {
        let labels = volume.metadata.labels.as_ref();
        let get = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
        selector.as_ref().is_none_or(|selector| selector.matches(get))
    };
    let mut best: Option<(Rank<'v>, &'v PersistentVolume)> = None;
    for volume in volumes {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let is_kept = is_bound_to(volume, claim);
        let is_fit = !is_taken(name)
            && (claim_of(volume).is_none() || is_kept)
            && capacity(volume) >= wanted
            && modes_match(volume, claim)
            && same_attributes_class(volume, claim)
            && volume.metadata.deletion_timestamp.is_none()
            && has_access_modes(volume, claim);
        if !is_fit {
            continue;
        }
        let is_reached = match binding {
            Binding::On(node) => is_reached_from(volume, &node),
            Binding::Immediate | Binding::Delayed => true,
        };
        if is_kept {
            return is_reached.then_some(volume);
        }
        let is_available = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available");
        if matches!(binding, Binding::Delayed)
            || !is_available
            || !selected(volume)
            || class_of_volume(volume) != class_of_claim(claim)
            || !is_reached
        {
            continue;
        }
        let rank = Rank { n_modes: offered(volume.spec.as_ref()).len(), capacity: capacity(volume), name };
        if best.as_ref().is_none_or(|(least, _)| rank.is_before(least)) {
            best = Some((rank, volume));
        }
    }
    best.map(|(_, volume)| volume)
}

/// What is taken first: volumes that can do less, then smaller ones, then by name so that the choice is the same each time.
struct Rank<'v> {
    n_modes: usize,
    capacity: Quantity,
    name: &'v str,
}

impl Rank<'_> {
    fn is_before(&self, other: &Rank<'_>) -> bool {
        if self.n_modes != other.n_modes {
            return self.n_modes < other.n_modes;
        }
        self.capacity < other.capacity || (self.capacity <= other.capacity && self.name < other.name)
    }
}

/// Whether pods of a node can use a volume.
pub fn is_reached_from(volume: &PersistentVolume, node: &NodeFacts<'_>) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    required.is_none_or(|required| any_term_holds(&required.node_selector_terms, node))
}

/// Whether volumes of a class with these topologies may be made for a node. No terms allow any.
pub fn topology_allows(terms: &[TopologySelectorTerm], labels: Option<&BTreeMap<String, String>>) -> bool {
    let holds = |term: &TopologySelectorTerm| {
        let expressions = term.match_label_expressions.as_deref().unwrap_or_default();
        let has = |key: &str| labels.and_then(|labels| labels.get(key));
        !expressions.is_empty()
            && expressions.iter().all(|e| has(&e.key).is_some_and(|v| e.values.contains(v)))
    };
    terms.is_empty() || terms.iter().any(holds)
}

/// The name of the claim that is made for a volume of a pod.
pub fn ephemeral_claim(pod: &str, volume: &str) -> String {
    format!("{pod}-{volume}")
}

/// Whether a claim was made for a volume of this very pod.
pub fn is_claim_for(claim: &PersistentVolumeClaim, pod: &ObjectMeta) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    claim.metadata.namespace == pod.namespace
        && owners.any(|owner| owner.controller == Some(true) && Some(&owner.uid) == pod.uid.as_ref())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(change: impl FnOnce(&mut Value)) -> PersistentVolumeClaim {
        let mut claim = json!({
            "metadata": {"name": "c", "namespace": "d", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "slow",
                "resources": {"requests": {"storage": "1Gi"}}},
        });
        change(&mut claim);
        serde_json::from_value(claim).unwrap()
    }

    fn volume(name: &str, size: &str, change: impl FnOnce(&mut Value)) -> PersistentVolume {
        let mut volume = json!({
            "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "slow", "capacity": {"storage": size}},
            "status": {"phase": "Available"},
        });
        change(&mut volume);
        serde_json::from_value(volume).unwrap()
    }

    fn plain(name: &str, size: &str) -> PersistentVolume {
        volume(name, size, |_| {})
    }

    #[track_caller]
    fn check(
        claim: &PersistentVolumeClaim,
        volumes: &[PersistentVolume],
        binding: Binding<'_>,
        wanted: Option<&str>,
    ) {
        let found = find_match(claim, volumes.iter(), binding, |name| name == "taken");
        assert_eq!(found.and_then(|volume| volume.metadata.name.as_deref()), wanted);
    }

    #[test]
    fn a_claim_gets_the_smallest_volume_that_is_large_enough_and_can_the_least() {
        let wide =
            volume("wide", "1Gi", |v| v["spec"]["accessModes"] = json!(["ReadWriteOnce", "ReadOnlyMany"]));
        let all =
            [plain("b", "2Gi"), plain("small", "1023Mi"), plain("c", "5Gi"), plain("a", "2048Mi"), wide];
        let any = claim(|_| {});
        check(&any, &all, Binding::Immediate, Some("a"));
        check(&any, &all[4..], Binding::Immediate, Some("wide"));
        check(&any, &all[1..2], Binding::Immediate, None);
        check(&any, &[plain("taken", "1Gi")], Binding::Immediate, None);
        check(&any, &all, Binding::Delayed, None);
    }

    #[test]
    fn a_volume_that_is_not_as_a_claim_asks_is_not_given_to_it() {
        let unfit: [fn(&mut Value); 8] = [
            |v| v["spec"]["storageClassName"] = "fast".into(),
            |v| v["spec"]["accessModes"] = json!(["ReadOnlyMany"]),
            |v| v["spec"]["volumeMode"] = "Block".into(),
            |v| v["status"]["phase"] = "Released".into(),
            |v| v["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into(),
            |v| v["spec"]["claimRef"] = json!({"namespace": "d", "name": "other"}),
            |v| v["spec"]["claimRef"] = json!({"namespace": "d", "name": "c", "uid": "earlier"}),
            |v| v["spec"]["volumeAttributesClassName"] = "gold".into(),
        ];
        for change in unfit {
            check(&claim(|_| {}), &[volume("v", "1Gi", change)], Binding::Immediate, None);
        }
        let choosy = claim(|c| c["spec"]["selector"] = json!({"matchLabels": {"disk": "ssd"}}));
        check(&choosy, &[plain("v", "1Gi")], Binding::Immediate, None);
        let ssd = volume("v", "1Gi", |v| v["metadata"]["labels"] = json!({"disk": "ssd"}));
        check(&choosy, &[ssd], Binding::Immediate, Some("v"));
    }

    #[test]
    fn what_is_kept_for_a_claim_is_its_own_before_anything_smaller() {
        let kept = volume("kept", "9Gi", |v| v["spec"]["claimRef"] = json!({"namespace": "d", "name": "c"}));
        let all = [plain("a", "1Gi"), kept];
        for binding in [Binding::Immediate, Binding::Delayed] {
            check(&claim(|_| {}), &all, binding, Some("kept"));
        }
        let bound = bound_to(&all[1], &claim(|_| {})).expect("the uid is missing");
        assert_eq!(claim_of(&bound).and_then(|r| r.uid.as_deref()), Some("u"));
        assert_eq!(annotation(&bound.metadata, BOUND_BY_CONTROLLER), None, "it was kept by whoever made it");
        assert_eq!(bound_to(&bound, &claim(|_| {})), None);
        let chosen = bound_to(&all[0], &claim(|_| {})).expect("nobody has it");
        assert_eq!(annotation(&chosen.metadata, BOUND_BY_CONTROLLER), Some("yes"));
    }

    #[test]
    fn a_volume_of_another_node_is_none_for_a_pod_of_this_one() {
        let on = |node: &str| {
            let terms = json!([{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]);
            volume(node, "1Gi", |v| {
                v["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": terms}})
            })
        };
        let labels = BTreeMap::from([("kubernetes.io/hostname".to_owned(), "b".to_owned())]);
        let node = NodeFacts { name: "b", labels: Some(&labels) };
        check(&claim(|_| {}), &[on("a"), on("b")], Binding::On(node), Some("b"));
        check(&claim(|_| {}), &[on("a")], Binding::On(node), None);
    }

    #[test]
    fn what_a_volume_that_is_asked_for_by_name_lacks_is_said_as_upstream_says_it() {
        let says = |volume: &PersistentVolume| misfit(volume, &claim(|_| {})).map(|why| why.to_string());
        assert_eq!(says(&plain("v", "1Gi")), None);
        assert_eq!(says(&plain("v", "1")).as_deref(), Some("requested PV is too small"));
        let fast = volume("v", "1Gi", |v| v["spec"]["storageClassName"] = "fast".into());
        assert_eq!(says(&fast).as_deref(), Some("storageClassName does not match"));
        let block = volume("v", "1Gi", |v| v["spec"]["volumeMode"] = "Block".into());
        assert_eq!(says(&block).as_deref(), Some("incompatible volumeMode"));
    }

    #[test]
    fn a_class_without_topologies_is_for_any_node() {
        let terms: Vec<TopologySelectorTerm> =
            serde_json::from_value(json!([{"matchLabelExpressions": [{"key": "zone", "values": ["a"]}]}]))
                .unwrap();
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        assert!(topology_allows(&[], None) && topology_allows(&terms, Some(&labels)));
        assert!(!topology_allows(&terms, None));
    }
}
