//! Claims that ask for more than they were given: says that somebody else makes their volumes larger.
//!
//! No volume of this cluster's own is made larger here: those of [`super::local`] are by their provisioner.
//!
//! Source: upstream's `expand`, as it is where there is no plug-in for a volume.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use skiff_api::volumes::{PROVISIONED_BY, annotation, claim_of, given, requested, volume_of};
use skiff_client::{EventRecorder, EventType, Informer, ObjectKey, WorkQueue, key_of};

use super::local::PROVISIONER_NAME;
use super::phase_of_claim;
use crate::Context;
use crate::driver::{Controller, Outcome};

pub(crate) struct Expansion {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
}

/// Whether a claim asks for more than it has.
pub(super) fn wants_more(claim: &PersistentVolumeClaim) -> bool {
    phase_of_claim(claim) == "Bound" && requested(claim) > given(claim)
}

impl Expansion {
    pub(crate) fn new(context: &Context) -> Self {
        let claims = context.informers.of::<PersistentVolumeClaim>();
        let volumes = context.informers.of::<PersistentVolume>();
        let queue = WorkQueue::default();
        let wake: WorkQueue<ObjectKey> = queue.clone();
        claims.on_change(move |change| {
            // One that is new to us was told of by whoever was here before.
            let (Some(old), Some(new)) = (&change.old, &change.new) else { return };
            if requested(new) > requested(old) && wants_more(new) {
                wake.add(key_of(&**new));
            }
        });
        Expansion { claims, volumes, events: context.events("volume_expand"), queue }
    }
}

impl Controller for Expansion {
    const NAME: &'static str = "persistentvolume-expander";
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.claims.synced().await;
        self.volumes.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(claim) = self.claims.get(key).filter(|claim| wants_more(claim)) else {
            return Ok(Outcome::Done);
        };
        let volume = self.volumes.get(&ObjectKey::new("", volume_of(&claim)));
        let is_its = |v: &PersistentVolume| claim_of(v).is_some_and(|r| r.uid == claim.metadata.uid);
        let Some(volume) = volume.filter(|volume| is_its(volume)) else { return Ok(Outcome::Done) };
        if annotation(&volume.metadata, PROVISIONED_BY) != Some(PROVISIONER_NAME) {
            // Upstream's kind of event where a volume has no plug-in, and where it has one that cannot do it.
            let is_csi = volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some());
            let type_ = if is_csi { EventType::Normal } else { EventType::Warning };
            let message = "waiting for an external controller to expand this PVC";
            self.events.event(&*claim, type_, "ExternalExpanding", message);
        }
        Ok(Outcome::Done)
    }
}
