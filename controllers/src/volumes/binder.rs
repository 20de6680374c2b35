//! Binds claims and volumes to each other, and says of both what phase they are in.
//!
//! ```text
//!  claim:   Pending ─► Bound ─► Lost          volume:  Available ─► Bound ─► Released ─► Failed
//!                                                          ▲                    │
//!                                                          └─ claimRef cleared ─┘
//! ```
//!
//! The volume is written first, then the claim: a volume names one claim, so that of two which want it one is refused.
//! Whoever ends in between is begun again where it was.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use skiff_api::volumes::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, annotate, annotation, bound_to, claim_of, class_of_claim,
    class_of_volume, is_fully_bound, volume_of,
};
use skiff_client::view::Pod;
use skiff_client::{EventRecorder, Index, Informer, ObjectKey, WorkQueue, key_of};

use super::{Writer, names, phase_of_claim, phase_of_volume};
use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine};
use crate::lookup::Pods;
use crate::objects::has_ended;

mod plan;

use plan::{ClaimSight, ClaimStep, Told, VolumeStep};

/// Marks of the class of claims that name none.
const DEFAULT_MARKS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

pub(crate) struct Binder {
    writer: Writer,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Pods,
    found: Found,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
}

/// What finds claims and volumes without a look at all of them.
#[derive(Clone)]
struct Found {
    /// Claims without a volume, by their class.
    pending: Index<PersistentVolumeClaim, String>,
    /// By the volume that they name.
    claims: Index<PersistentVolumeClaim, String>,
    /// Volumes that are nobody's, by their class.
    free: Index<PersistentVolume, String>,
    /// By the claim that they name.
    volumes: Index<PersistentVolume, ObjectKey>,
}

/// Claims are in namespaces, volumes are not.
fn volume_key(name: &str) -> ObjectKey {
    ObjectKey::new("", name)
}

fn named_claim(volume: &PersistentVolume) -> Option<ObjectKey> {
    let reference = claim_of(volume)?;
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    Some(ObjectKey::new(part(&reference.namespace), part(&reference.name)))
}

fn is_default(class: &StorageClass) -> bool {
    DEFAULT_MARKS.iter().any(|mark| annotation(&class.metadata, mark) == Some("true"))
}

/// The newest of those that are marked; of several of one second the first by name.
pub(super) fn default_class(classes: &[Arc<StorageClass>]) -> Option<&str> {
    let marked = classes.iter().filter(|class| is_default(class));
    let newest = marked.min_by_key(|class| {
        let since = class.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (std::cmp::Reverse(since), class.metadata.name.clone())
    });
    newest.and_then(|class| class.metadata.name.as_deref())
}

impl Binder {
    pub(crate) fn new(context: &Context) -> Self {
        let informers = &context.informers;
        let claims = informers.of::<PersistentVolumeClaim>();
        let volumes = informers.of::<PersistentVolume>();
        let classes = informers.of::<StorageClass>();
        let found = Found {
            pending: claims.index(|claim| match is_fully_bound(claim) {
                false => vec![class_of_claim(claim).to_owned()],
                true => Vec::new(),
            }),
            claims: claims.index(|claim| match volume_of(claim) {
                "" => Vec::new(),
                name => vec![name.to_owned()],
            }),
            free: volumes.index(|volume| match claim_of(volume) {
                None => vec![class_of_volume(volume).to_owned()],
                Some(_) => Vec::new(),
            }),
            volumes: volumes.index(|volume| named_claim(volume).into_iter().collect()),
        };
        let binder = Binder {
            writer: Writer(context.client.clone()),
            claims,
            volumes,
            classes,
            pods: context.pods.clone(),
            found,
            events: context.events("persistentvolume-controller"),
            queue: WorkQueue::default(),
        };
        binder.listen();
        binder
    }

    fn listen(&self) {
        let (wake, found) = (self.queue.clone(), self.found.clone());
        self.claims.on_change(move |change| {
            for claim in [&change.old, &change.new].into_iter().flatten() {
                if !volume_of(claim).is_empty() {
                    wake.add(volume_key(volume_of(claim)));
                }
            }
            let Some(key) = change.object().map(|claim| key_of(&**claim)) else { return };
            found.volumes.get(&key).iter().for_each(|volume| wake.add(key_of(&**volume)));
            wake.add(key);
        });
        let (wake, found) = (self.queue.clone(), self.found.clone());
        self.volumes.on_change(move |change| {
            for volume in [&change.old, &change.new].into_iter().flatten() {
                named_claim(volume).into_iter().for_each(|claim| wake.add(claim));
            }
            let Some(volume) = change.object() else { return };
            let key = key_of(&**volume);
            found.claims.get(&key.name).iter().for_each(|claim| wake.add(key_of(&**claim)));
            let is_free =
                |v: &Arc<PersistentVolume>| claim_of(v).is_none() && phase_of_volume(v) == "Available";
            if change.new.as_ref().is_some_and(is_free) && !change.old.as_ref().is_some_and(is_free) {
                let wanting = found.pending.get(&class_of_volume(volume).to_owned());
                wanting.iter().for_each(|claim| wake.add(key_of(&**claim)));
            }
            wake.add(key);
        });
        let (wake, found) = (self.queue.clone(), self.found.clone());
        self.classes.on_change(move |change| {
            let Some(class) = change.object() else { return };
            let name = class.metadata.name.clone().unwrap_or_default();
            found.pending.get(&name).iter().for_each(|claim| wake.add(key_of(&**claim)));
            if change.new.as_ref().is_some_and(|class| is_default(class)) {
                let without = found.pending.get(&String::new());
                without.iter().for_each(|claim| wake.add(key_of(&**claim)));
            }
        });
        let (wake, claims) = (self.queue.clone(), self.claims.clone());
        self.pods.all().on_change(move |change| {
            let (None, Some(pod)) = (&change.old, &change.new) else { return };
            for key in claims_of(pod) {
                if claims.get(&key).is_some_and(|claim| !is_fully_bound(&claim)) {
                    wake.add(key);
                }
            }
        });
    }

    fn told_claim(&self, claim: &PersistentVolumeClaim, told: &Told) {
        self.events.event(claim, told.type_, told.reason, &told.message);
    }

    fn told_volume(&self, volume: &PersistentVolume, told: &Told) {
        self.events.event(volume, told.type_, told.reason, &told.message);
    }

    /// Pods that wait for a node, and for the claim.
    fn unscheduled(&self, key: &ObjectKey) -> Vec<String> {
        let waits = |pod: &Arc<Pod>| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
            node.is_empty() && !has_ended(pod)
        };
        let pods = self.pods.using_claim(key);
        let mut names: Vec<String> =
            pods.iter().filter(|pod| waits(pod)).filter_map(|pod| pod.metadata.name.clone()).collect();
        names.sort_unstable();
        names.truncate(MAX_NAMED_PODS);
        names
    }

    fn step_of(
        &self,
        key: &ObjectKey,
        claim: &PersistentVolumeClaim,
        named: Option<&PersistentVolume>,
    ) -> ClaimStep {
        let class_name = class_of_claim(claim);
        let class = self.classes.get(&ObjectKey::new("", class_name));
        let mut candidates = self.found.free.get(&class_name.to_owned());
        candidates.extend(self.found.volumes.get(key));
        let classes = self.classes.list();
        plan::claim_step(&ClaimSight {
            claim,
            named,
            candidates: &candidates,
            class: class.as_deref(),
            default_class: default_class(&classes),
            unscheduled: &self.unscheduled(key),
        })
    }

    async fn sync_claim(
        &self,
        key: &ObjectKey,
        claim: Arc<PersistentVolumeClaim>,
    ) -> Result<(), kube::Error> {
        let named = self.volumes.get(&volume_key(volume_of(&claim)));
        match self.step_of(key, &claim, named.as_deref()) {
            ClaimStep::Bind(volume) => Box::pin(self.bind(*volume, (*claim).clone())).await,
            ClaimStep::Wait(told) => {
                if let Some(told) = told {
                    self.told_claim(&claim, &told);
                }
                self.put_status(&claim, "Pending", None).await.map(drop)
            }
            ClaimStep::AssignClass(class) => {
                let mut new = (*claim).clone();
                new.spec.get_or_insert_default().storage_class_name = Some(class);
                self.writer.put_claim(&new).await.map(drop)
            }
            ClaimStep::Provision(provisioner) => self.ask(&claim, &provisioner).await,
            ClaimStep::Tell(told) => {
                self.told_claim(&claim, &told);
                Ok(())
            }
            ClaimStep::Lose(_) => self.lose(key).await,
        }
    }

    /// The API is asked itself: what the copy does not have yet is not lost.
    async fn lose(&self, key: &ObjectKey) -> Result<(), kube::Error> {
        let Some(claim) = self.writer.claim(key).await? else { return Ok(()) };
        let named = match volume_of(&claim) {
            "" => None,
            name => self.writer.volume(name).await?,
        };
        let ClaimStep::Lose(told) = self.step_of(key, &claim, named.as_ref()) else {
            self.queue.add_after(key.clone(), LOOK_AGAIN);
            return Ok(());
        };
        if phase_of_claim(&claim) != "Lost" {
            self.put_status(&claim, "Lost", None).await?;
            self.told_claim(&claim, &told);
        }
        Ok(())
    }

    /// Marks a claim for the provisioner of its class.
    async fn ask(&self, claim: &PersistentVolumeClaim, provisioner: &str) -> Result<(), kube::Error> {
        let mut new = claim.clone();
        let set = plan::PROVISIONER_MARKS.map(|mark| annotate(&mut new.metadata, mark, provisioner));
        if set.contains(&true) {
            self.writer.put_claim(&new).await?;
        }
        self.told_claim(claim, &plan::external_provisioning(provisioner));
        Ok(())
    }

    /// Both sides and both statuses, those first that others look at last.
    async fn bind(
        &self,
        mut volume: PersistentVolume,
        mut claim: PersistentVolumeClaim,
    ) -> Result<(), kube::Error> {
        if let Some(bound) = bound_to(&volume, &claim) {
            volume = self.writer.put_volume(&bound).await?;
        }
        volume = self.put_phase(volume, "Bound", None).await?;
        let (_, name) = names(&volume.metadata);
        let mut has_changed = false;
        if volume_of(&claim) != name {
            claim.spec.get_or_insert_default().volume_name = Some(name.to_owned());
            has_changed = true;
            annotate(&mut claim.metadata, BOUND_BY_CONTROLLER, "yes");
        }
        if annotation(&claim.metadata, BIND_COMPLETED).is_none() {
            has_changed |= annotate(&mut claim.metadata, BIND_COMPLETED, "yes");
        }
        if has_changed {
            claim = self.writer.put_claim(&claim).await?;
        }
        self.put_status(&claim, "Bound", Some(&volume)).await.map(drop)
    }

    async fn put_status(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<(), kube::Error> {
        match plan::claim_status(claim, phase, volume) {
            Some(new) => self.writer.put_claim_status(&new).await.map(drop),
            None => Ok(()),
        }
    }

    async fn put_phase(
        &self,
        mut volume: PersistentVolume,
        phase: &str,
        why: Option<&Told>,
    ) -> Result<PersistentVolume, kube::Error> {
        if phase_of_volume(&volume) == phase {
            return Ok(volume);
        }
        let status = volume.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        status.message = why.map(|told| told.message.clone());
        let volume = self.writer.put_volume_status(&volume).await?;
        if let Some(told) = why {
            self.told_volume(&volume, told);
        }
        Ok(volume)
    }

    async fn sync_volume(&self, volume: Arc<PersistentVolume>) -> Result<(), kube::Error> {
        let key = named_claim(&volume);
        let claim = key.as_ref().and_then(|key| self.claims.get(key));
        let step = plan::volume_step(&volume, claim.as_deref());
        let step = match (step, &key) {
            // The copy may not have the claim yet, or not this one of its name.
            (VolumeStep::Release, Some(key)) if !plan::is_released(&volume) => {
                plan::volume_step(&volume, self.writer.claim(key).await?.as_ref())
            }
            (step, _) => step,
        };
        match (step, key) {
            (VolumeStep::Phase(phase), _) => self.put_phase((*volume).clone(), phase, None).await.map(drop),
            (VolumeStep::WakeClaim, Some(key)) => {
                self.queue.add(key);
                Ok(())
            }
            (VolumeStep::Mismatch(here, there), _) => {
                self.told_volume(&volume, &here);
                claim.iter().for_each(|claim| self.told_claim(claim, &there));
                Ok(())
            }
            (VolumeStep::Release, _) => self.release(&volume).await,
            (VolumeStep::Unbind, _) => {
                let unbound = self.writer.put_volume(&plan::unbound_volume(&volume)).await?;
                self.put_phase(unbound, "Available", None).await.map(drop)
            }
            (VolumeStep::WakeClaim, None) => Ok(()),
        }
    }

    async fn release(&self, volume: &PersistentVolume) -> Result<(), kube::Error> {
        let mut volume = volume.clone();
        if !plan::is_released(&volume) {
            volume = self.put_phase(volume, "Released", None).await?;
        }
        match plan::cannot_reclaim(&volume) {
            Some(why) => self.put_phase(volume, "Failed", Some(&why)).await.map(drop),
            None => Ok(()),
        }
    }
}

/// How long the copy is given to have what the API says.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Pods that an event names at most.
const MAX_NAMED_PODS: usize = 10;

fn claims_of(pod: &Pod) -> Vec<ObjectKey> {
    let (namespace, _) = names(&pod.metadata);
    pod.claims().map(|claim| ObjectKey::new(namespace, claim.name)).collect()
}

impl Controller for Binder {
    const NAME: &'static str = "persistentvolume-binder";
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.pods.all().synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let done = if key.namespace.is_empty() {
            let Some(volume) = self.volumes.get(key) else { return Ok(Outcome::Done) };
            Box::pin(self.sync_volume(volume)).await
        } else {
            let Some(claim) = self.claims.get(key) else { return Ok(Outcome::Done) };
            Box::pin(self.sync_claim(key, claim)).await
        };
        gone_is_fine(done)?;
        Ok(Outcome::Done)
    }
}
