//! What is written for a pod's claims before the pod gets its node, and how long that is waited for.
//!
//! Source: upstream's `BindPodVolumes`, whose sentences these are.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Api;
use kube::api::PostParams;
use skiff_api::placement::NodeFacts;
use skiff_api::volumes::{
    SELECTED_NODE, annotate, annotation, bound_to, claim_of, is_fully_bound, is_reached_from, volume_of,
};
use skiff_client::view::Pod;
use skiff_client::{ObjectKey, key_of};
use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::Scheduler;
use crate::cluster::uid_of;
use crate::desk::is_ours;
use crate::volumes::Bindings;

/// Upstream's `bindTimeoutSeconds`.
const BIND_TIMEOUT: Duration = Duration::from_mins(10);
/// How often a wait looks whether its pod is still there.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug, Error)]
pub(super) enum VolumesError {
    #[error("{0}")]
    Write(kube::Error),
    #[error("binding volumes: context deadline exceeded")]
    TimedOut,
    #[error("binding volumes: pod does not exist any more")]
    PodGone,
    #[error("binding volumes: node {0:?} not found")]
    NodeGone(String),
    #[error("binding volumes: provisioning failed for PVC {0:?}")]
    NotMade(String),
    #[error("binding volumes: {0:?} is gone")]
    Gone(String),
    #[error("binding volumes: ClaimRef got reset for pv {0:?}")]
    Reset(String),
    #[error("binding volumes: pv {volume:?} node affinity doesn't match node {node:?}")]
    Elsewhere { volume: String, node: String },
    #[error("binding volumes: too many pods wait for volumes")]
    TooMany,
}

/// What was written, as the API has it.
#[derive(Default)]
struct Written {
    bound: Vec<(ObjectKey, PersistentVolume)>,
    to_make: Vec<PersistentVolumeClaim>,
}

impl Scheduler {
    /// Has the pod's claims bound, or their volumes made, and waits for that without the place, which others may need.
    pub(super) async fn bind_volumes(
        &self,
        pod: &Pod,
        key: &ObjectKey,
        node: &str,
        bindings: Bindings,
        place: OwnedSemaphorePermit,
    ) -> Result<OwnedSemaphorePermit, VolumesError> {
        if bindings.is_empty() {
            return Ok(place);
        }
        let _wait = self.volume_waits.try_acquire().map_err(|_| VolumesError::TooMany)?;
        let written = self.write_volumes(node, bindings).await.map_err(VolumesError::Write)?;
        drop(place);
        self.until_bound(pod, key, node, &written).await?;
        // It is closed by nobody.
        self.places.clone().acquire_owned().await.map_err(|_| VolumesError::TimedOut)
    }

    async fn write_volumes(&self, node: &str, bindings: Bindings) -> Result<Written, kube::Error> {
        let mut written = Written::default();
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        for (claim, volume) in bindings.to_bind {
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            let volume = match bound_to(&volume, &claim) {
                Some(bound) => volumes.replace(name, &PostParams::default(), &bound).await?,
                None => (*volume).clone(),
            };
            written.bound.push((key_of(&*claim), volume));
        }
        for claim in bindings.to_make {
            let key = key_of(&*claim);
            let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.namespace);
            let mut chosen = (*claim).clone();
            if annotate(&mut chosen.metadata, SELECTED_NODE, node) {
                chosen = api.replace(&key.name, &PostParams::default(), &chosen).await?;
            }
            written.to_make.push(chosen);
        }
        Ok(written)
    }

    async fn until_bound(
        &self,
        pod: &Pod,
        key: &ObjectKey,
        node: &str,
        written: &Written,
    ) -> Result<(), VolumesError> {
        let deadline = Instant::now() + BIND_TIMEOUT;
        let mut changed = self.storage_changed.subscribe();
        loop {
            changed.borrow_and_update();
            if self.pod(key, uid_of(pod)).is_none_or(|pod| !is_ours(&pod)) {
                return Err(VolumesError::PodGone);
            }
            if self.are_bound(node, written)? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(VolumesError::TimedOut);
            }
            tokio::select! {
                // Both only wait.
                _ = changed.changed() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Whether all of it is bound as far as was heard; an error if it will not be.
    fn are_bound(&self, node_name: &str, written: &Written) -> Result<bool, VolumesError> {
        let node = self.nodes.get(&ObjectKey::new("", node_name));
        let node = node.ok_or_else(|| VolumesError::NodeGone(node_name.to_owned()))?;
        let facts = NodeFacts { name: node_name, labels: node.metadata.labels.as_ref() };
        let check_place = |volume: &PersistentVolume| match is_reached_from(volume, &facts) {
            true => Ok(()),
            false => Err(VolumesError::Elsewhere {
                volume: volume.metadata.name.clone().unwrap_or_default(),
                node: node_name.to_owned(),
            }),
        };
        let mut all = true;
        for (claim, ours) in &written.bound {
            let name = ours.metadata.name.clone().unwrap_or_default();
            let volume = self.volumes.get(&ObjectKey::new("", &name));
            let volume = volume.ok_or_else(|| VolumesError::Gone(name.clone()))?;
            if version(&volume.metadata) < version(&ours.metadata) {
                all = false;
                continue;
            }
            check_place(&volume)?;
            if claim_of(&volume)
                .is_none_or(|reference| reference.uid.as_deref().unwrap_or_default().is_empty())
            {
                return Err(VolumesError::Reset(name));
            }
            let claim = self.claims.get(claim).ok_or_else(|| VolumesError::Gone(claim.name.clone()))?;
            all &= is_fully_bound(&claim);
        }
        for ours in &written.to_make {
            let key = key_of(ours);
            let claim = self.claims.get(&key).ok_or_else(|| VolumesError::Gone(key.name.clone()))?;
            if version(&claim.metadata) < version(&ours.metadata) {
                all = false;
                continue;
            }
            if annotation(&claim.metadata, SELECTED_NODE) != Some(node_name) {
                return Err(VolumesError::NotMade(key.name));
            }
            if !volume_of(&claim).is_empty() {
                match self.volumes.get(&ObjectKey::new("", volume_of(&claim))) {
                    Some(volume) => check_place(&volume)?,
                    // It is heard of next.
                    None => all = false,
                }
            }
            all &= is_fully_bound(&claim);
        }
        Ok(all)
    }
}

/// Versions of objects of one server are numbers that grow.
fn version(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}
