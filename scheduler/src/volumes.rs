//! Which nodes a pod's claims let it be on, and what has to be bound or made for it there. Pure.
//!
//! Claims that are bound say where their volumes are. Of claims that wait for their first pod, each gets a volume that is
//! there and reached from the node, or one that is made for it. From the decision on both count as taken.
//!
//! Source: upstream's plugins VolumeRestrictions, VolumeBinding and VolumeZone, whose sentences these are.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use skiff_api::placement::NodeFacts;
use skiff_api::volumes::{
    Binding, NO_PROVISIONER, SELECTED_NODE, access_modes, annotation, class_of_claim, class_of_volume,
    delays_binding, find_match, is_claim_for, is_fully_bound, is_reached_from, requested, topology_allows,
    volume_of,
};
use skiff_client::{ObjectKey, key_of};

use crate::cluster::{Cluster, NodeInfo, PodInfo, Tenant};
use crate::framework::{Reason, Refusal};

/// What a volume's labels say of where it is: the keys, and the newer name of each.
const ZONES: [(&str, &str); 4] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/region"),
];
/// Between the zones of a volume that has several.
const ZONE_SEPARATOR: &str = "__";

/// All claims, volumes and classes, as far as the one task that schedules has heard, and what was decided about them since.
#[derive(Debug, Default)]
pub(crate) struct Storage {
    claims: HashMap<ObjectKey, Arc<PersistentVolumeClaim>>,
    volumes: HashMap<String, Arc<PersistentVolume>>,
    /// Names of volumes by class.
    by_class: HashMap<String, BTreeSet<String>>,
    classes: HashMap<String, Arc<StorageClass>>,
    /// How many pods with a node use each claim.
    users: HashMap<ObjectKey, usize>,
    /// What is being bound and made, by the pod that it is for.
    assumed: HashMap<ObjectKey, Bindings>,
}

/// What has to be bound and made for a pod before it can be on its node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bindings {
    pub(crate) to_bind: Vec<(Arc<PersistentVolumeClaim>, Arc<PersistentVolume>)>,
    /// Claims whose volumes are made on the node.
    pub(crate) to_make: Vec<Arc<PersistentVolumeClaim>>,
    node: String,
}

impl Bindings {
    pub(crate) fn is_empty(&self) -> bool {
        self.to_bind.is_empty() && self.to_make.is_empty()
    }
}

impl Storage {
    pub(crate) fn set_claim(&mut self, key: &ObjectKey, claim: Option<&Arc<PersistentVolumeClaim>>) {
        match claim {
            Some(claim) => _ = self.claims.insert(key.clone(), claim.clone()),
            None => _ = self.claims.remove(key),
        }
    }

    pub(crate) fn set_volume(&mut self, name: &str, volume: Option<&Arc<PersistentVolume>>) {
        if let Some(old) = self.volumes.remove(name)
            && let Some(names) = self.by_class.get_mut(class_of_volume(&old))
        {
            names.remove(name);
            if names.is_empty() {
                self.by_class.remove(class_of_volume(&old));
            }
        }
        let Some(volume) = volume else { return };
        self.by_class.entry(class_of_volume(volume).to_owned()).or_default().insert(name.to_owned());
        self.volumes.insert(name.to_owned(), volume.clone());
    }

    pub(crate) fn set_class(&mut self, name: &str, class: Option<&Arc<StorageClass>>) {
        match class {
            Some(class) => _ = self.classes.insert(name.to_owned(), class.clone()),
            None => _ = self.classes.remove(name),
        }
    }

    /// A pod has come to a node.
    pub(crate) fn used_by(&mut self, tenant: &Tenant) {
        for claim in tenant.claim_keys() {
            *self.users.entry(claim).or_default() += 1;
        }
    }

    /// A pod has left its node.
    pub(crate) fn left_by(&mut self, tenant: &Tenant) {
        for claim in tenant.claim_keys() {
            if let Some(count) = self.users.get_mut(&claim) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.users.remove(&claim);
                }
            }
        }
    }

    /// Counts as done what is to be done for a pod.
    pub(crate) fn assume(&mut self, pod: &ObjectKey, bindings: Bindings) {
        if !bindings.is_empty() {
            self.assumed.insert(pod.clone(), bindings);
        }
    }

    /// What the API says counts again.
    pub(crate) fn forget(&mut self, pod: &ObjectKey) {
        self.assumed.remove(pod);
    }

    fn of_class(&self, class: &str) -> impl Iterator<Item = &PersistentVolume> {
        let names = self.by_class.get(class).into_iter().flatten();
        names.filter_map(|name| self.volumes.get(name)).map(|volume| &**volume)
    }

    /// The volume that a claim is being bound to.
    fn assumed_volume(&self, claim: &ObjectKey) -> Option<&Arc<PersistentVolume>> {
        let mut bound = self.assumed.values().flat_map(|bindings| &bindings.to_bind);
        bound.find(|(other, _)| key_of(&**other) == *claim).map(|(_, volume)| volume)
    }

    /// Whether a volume is being bound to a claim.
    fn is_assumed(&self, volume: &str) -> bool {
        let mut bound = self.assumed.values().flat_map(|bindings| &bindings.to_bind);
        bound.any(|(_, other)| other.metadata.name.as_deref() == Some(volume))
    }

    /// The node that a claim's volume is made on, as far as is decided.
    fn chosen_node<'s>(&'s self, claim: &'s PersistentVolumeClaim) -> Option<&'s str> {
        let is_made = |bindings: &&Bindings| {
            bindings.to_make.iter().any(|other| other.metadata.uid == claim.metadata.uid)
        };
        let assumed = self.assumed.values().find(is_made).map(|bindings| bindings.node.as_str());
        assumed.or_else(|| annotation(&claim.metadata, SELECTED_NODE))
    }
}

/// What a pod's claims ask of a node: made once a decision.
#[derive(Debug, Default)]
pub(crate) struct PodVolumes<'c> {
    /// Why no node is one for the pod.
    unmet: Option<String>,
    bound: Vec<&'c PersistentVolume>,
    /// Claims that wait for their first pod, the smallest first.
    delayed: Vec<&'c Arc<PersistentVolumeClaim>>,
    /// Where volumes are: a label and what it may be.
    zones: Vec<(&'static str, &'static str, Vec<&'c str>)>,
    /// Claims that one pod may have, and how many others do.
    exclusive: Vec<(&'c str, i64)>,
}

impl<'c> PodVolumes<'c> {
    pub(crate) fn of(pod: &'c PodInfo, cluster: &'c Cluster) -> PodVolumes<'c> {
        let mut volumes = PodVolumes::default();
        if pod.claims.is_empty() {
            return volumes;
        }
        if let Err(why) = volumes.read(pod, &cluster.storage) {
            volumes.unmet = Some(why);
        }
        volumes
    }

    /// In the order in which upstream's plugins look.
    fn read(&mut self, pod: &'c PodInfo, storage: &'c Storage) -> Result<(), String> {
        let key = |name: &str| ObjectKey::new(&pod.traits.namespace, name);
        for claim in pod.claims.iter().filter(|claim| !claim.is_own) {
            let name = claim.name.as_str();
            let found = storage.claims.get(&key(name));
            let found = found.ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
            if access_modes(found).iter().any(|mode| mode == "ReadWriteOncePod") {
                let n_users = storage.users.get(&key(name)).copied().unwrap_or_default();
                self.exclusive.push((name, i64::try_from(n_users).unwrap_or(i64::MAX)));
            }
        }
        let mut claims = Vec::new();
        for claim in &pod.claims {
            let name = claim.name.as_str();
            let found = storage.claims.get(&key(name)).ok_or_else(|| {
                format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                )
            })?;
            usable(found)?;
            if claim.is_own && !is_claim_for(found, &pod.pod.metadata) {
                let (of, pod) = (key_of(&**found), key_of(&*pod.pod));
                return Err(format!("PVC {of} was not created for pod {pod} (pod is not owner)"));
            }
            claims.push(found);
        }
        let mut has_immediate = false;
        for claim in claims {
            if is_fully_bound(claim) {
                let name = volume_of(claim);
                let volume = storage.volumes.get(name);
                self.bound.push(volume.ok_or_else(|| format!("persistentvolume {name:?} not found"))?);
                continue;
            }
            let class = storage.classes.get(class_of_claim(claim));
            if volume_of(claim).is_empty() && class.is_some_and(|class| delays_binding(class)) {
                self.delayed.push(claim);
            } else {
                has_immediate = true;
            }
        }
        if has_immediate {
            return Err("pod has unbound immediate PersistentVolumeClaims".into());
        }
        self.delayed.sort_by(|a, b| {
            let order = requested(a).partial_cmp(&requested(b)).unwrap_or(std::cmp::Ordering::Equal);
            order.then_with(|| a.metadata.name.cmp(&b.metadata.name))
        });
        self.zones = self.bound.iter().flat_map(|volume| zones(volume)).collect();
        Ok(())
    }

    /// Why the pod is for no node, whatever is on it.
    pub(crate) fn unmet(&self) -> Option<&str> {
        self.unmet.as_deref()
    }

    /// Another pod comes to a node, or leaves one: `by` is 1 or -1.
    pub(crate) fn shift(&mut self, pod: &PodInfo, tenant: &Tenant, by: i64) {
        if self.exclusive.is_empty() || tenant.traits.namespace != pod.traits.namespace {
            return;
        }
        for (claim, n_users) in &mut self.exclusive {
            if tenant.claims.iter().any(|other| other == claim) {
                *n_users += by;
            }
        }
    }

    pub(crate) fn filter(&self, node: &NodeInfo, storage: &Storage) -> Result<(), Refusal> {
        if self.exclusive.iter().any(|(_, n_users)| *n_users > 0) {
            return Err(Refusal::for_now(Reason::ClaimInUse));
        }
        if self.bound.is_empty() && self.delayed.is_empty() {
            return Ok(());
        }
        let is_near = self.bound.iter().all(|volume| is_reached_from(volume, &facts(node)));
        let can_bind = self.delayed.is_empty() || self.bindings(node, storage).is_some();
        let mut reasons = [(is_near, Reason::VolumeElsewhere), (can_bind, Reason::NoVolume)]
            .into_iter()
            .filter_map(|(holds, reason)| (!holds).then_some(reason));
        if let Some(first) = reasons.next() {
            return Err(Refusal { first, more: reasons.collect(), for_good: true });
        }
        if self.is_in_other_zone(node) {
            return Err(Refusal::for_good(Reason::VolumeZone));
        }
        Ok(())
    }

    fn is_in_other_zone(&self, node: &NodeInfo) -> bool {
        let has_zone = ZONES.iter().any(|(key, _)| node.label(key).is_some());
        has_zone
            && self.zones.iter().any(|(key, newer, allowed)| {
                let value = node.label(key).or_else(|| node.label(newer));
                value.is_none_or(|value| !allowed.contains(&value.as_str()))
            })
    }

    /// What has to be bound and made if the pod is to be on a node; `None` if it cannot be.
    pub(crate) fn bindings(&self, node: &NodeInfo, storage: &Storage) -> Option<Bindings> {
        let mut bindings = Bindings { node: node.name().to_owned(), ..Bindings::default() };
        let mut taken: BTreeSet<String> = BTreeSet::new();
        for claim in &self.delayed {
            if let Some(chosen) = storage.chosen_node(claim) {
                if chosen != node.name() {
                    return None;
                }
                bindings.to_make.push((*claim).clone());
                continue;
            }
            if let Some(volume) = storage.assumed_volume(&key_of(&***claim)) {
                if !is_reached_from(volume, &facts(node)) {
                    return None;
                }
                bindings.to_bind.push(((*claim).clone(), volume.clone()));
                continue;
            }
            let is_taken = |name: &str| taken.contains(name) || storage.is_assumed(name);
            let class = class_of_claim(claim);
            let found = find_match(claim, storage.of_class(class), Binding::On(facts(node)), is_taken);
            let name = found.and_then(|volume| volume.metadata.name.as_deref());
            match name.and_then(|name| storage.volumes.get(name).map(|volume| (name, volume))) {
                Some((name, volume)) => {
                    taken.insert(name.to_owned());
                    bindings.to_bind.push(((*claim).clone(), volume.clone()));
                }
                None if can_be_made(claim, node, storage) => bindings.to_make.push((*claim).clone()),
                None => return None,
            }
        }
        let can_all = bindings.to_make.iter().all(|claim| can_be_made(claim, node, storage));
        can_all.then_some(bindings)
    }
}

fn can_be_made(claim: &PersistentVolumeClaim, node: &NodeInfo, storage: &Storage) -> bool {
    storage.classes.get(class_of_claim(claim)).is_some_and(|class| {
        let terms = class.allowed_topologies.as_deref().unwrap_or_default();
        !class.provisioner.is_empty()
            && class.provisioner != NO_PROVISIONER
            && topology_allows(terms, node.node.metadata.labels.as_ref())
    })
}

fn facts(node: &NodeInfo) -> NodeFacts<'_> {
    NodeFacts { name: node.name(), labels: node.node.metadata.labels.as_ref() }
}

/// Whether a pod can use a claim, whatever node it is on.
fn usable(claim: &PersistentVolumeClaim) -> Result<(), String> {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
        let volume = volume_of(claim);
        return Err(format!(
            "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
        ));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
    }
    Ok(())
}

fn zones(volume: &PersistentVolume) -> Vec<(&'static str, &'static str, Vec<&str>)> {
    let labels = volume.metadata.labels.as_ref();
    let of = |key: &str| labels.and_then(|labels| labels.get(key));
    let zones = ZONES.iter().filter_map(|(key, newer)| {
        of(key).map(|value| (*key, *newer, value.split(ZONE_SEPARATOR).collect::<Vec<&str>>()))
    });
    zones.collect()
}

#[cfg(test)]
mod tests;
