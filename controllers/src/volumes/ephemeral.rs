//! Claims for volumes of pods that ask for one of their own: `POD-VOLUME`, which goes with the pod.
//!
//! Source: upstream's `ephemeral`.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod as WholePod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use skiff_api::volumes::{ephemeral_claim, is_claim_for};
use skiff_client::view::Pod;
use skiff_client::{EventRecorder, EventType, Informer, ObjectKey, Read, WorkQueue, key_of};
use thiserror::Error;

use super::names;
use crate::Context;
use crate::driver::{Controller, Outcome, is_terminating, text};
use crate::lookup::Pods;
use crate::objects::{controller_reference, uid};

#[derive(Debug, Error)]
enum ClaimError {
    #[error("PVC {claim} was not created for pod {pod} (pod is not owner)")]
    Foreign { claim: ObjectKey, pod: ObjectKey },
    #[error("create PVC {claim}: {}", text(.error))]
    Make { claim: String, error: kube::Error },
}

pub(crate) struct EphemeralVolumes {
    client: Client,
    pods: Pods,
    claims: Informer<PersistentVolumeClaim>,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
}

fn wants_claims(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && pod.claims().any(|claim| claim.is_own)
}

impl EphemeralVolumes {
    pub(crate) fn new(context: &Context) -> Self {
        let (pods, queue) = (context.pods.clone(), WorkQueue::default());
        let claims = context.informers.of::<PersistentVolumeClaim>();
        let wake: WorkQueue<ObjectKey> = queue.clone();
        pods.all().on_change(move |change| {
            let is_new = change.old.as_ref().map(|old| uid(&old.metadata).to_owned())
                != change.new.as_ref().map(|new| uid(&new.metadata).to_owned());
            if let Some(pod) = change.new.as_ref().filter(|pod| is_new && wants_claims(pod)) {
                wake.add(key_of(&**pod));
            }
        });
        let (wake, users) = (queue.clone(), pods.clone());
        claims.on_change(move |change| {
            let (Some(claim), None) = (&change.old, &change.new) else { return };
            let pods = users.using_claim(&key_of(&**claim));
            pods.iter().filter(|pod| wants_claims(pod)).for_each(|pod| wake.add(key_of(&**pod)));
        });
        let events = context.events("ephemeral_volume");
        EphemeralVolumes { client: context.client.clone(), pods, claims, events, queue }
    }

    /// The claims of a pod that are there are its own; answers whether any is missing.
    fn lacks_claims(&self, key: &ObjectKey, pod: &Pod) -> bool {
        let mut own = pod.claims().filter(|claim| claim.is_own);
        own.any(|claim| {
            let claim = self.claims.get(&ObjectKey::new(&key.namespace, claim.name));
            claim.is_none_or(|claim| !is_claim_for(&claim, &pod.metadata))
        })
    }

    async fn ensure(
        &self,
        pod: &WholePod,
        volume: &str,
        new: PersistentVolumeClaim,
    ) -> Result<(), ClaimError> {
        let (namespace, name) = names(&pod.metadata);
        let claim = ephemeral_claim(name, volume);
        if let Some(found) = self.claims.get(&ObjectKey::new(namespace, &claim)) {
            return if is_claim_for(&found, &pod.metadata) {
                Ok(())
            } else {
                Err(ClaimError::Foreign { claim: key_of(&*found), pod: key_of(pod) })
            };
        }
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        match api.create(&PostParams::default(), &new).await {
            Ok(_) => Ok(()),
            Err(error) => Err(ClaimError::Make { claim, error }),
        }
    }
}

/// The claims that a pod asks for, by the names of its volumes.
fn new_claims(pod: &WholePod) -> Vec<(String, PersistentVolumeClaim)> {
    let (_, pod_name) = names(&pod.metadata);
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let templates = volumes.filter_map(|volume| {
        let template = volume.ephemeral.as_ref()?.volume_claim_template.clone()?;
        Some((volume.name.clone(), template))
    });
    templates
        .map(|(volume, template)| {
            let given = template.metadata.unwrap_or_default();
            let metadata = ObjectMeta {
                name: Some(ephemeral_claim(pod_name, &volume)),
                labels: given.labels,
                annotations: given.annotations,
                owner_references: Some(vec![controller_reference(pod)]),
                ..ObjectMeta::default()
            };
            (volume, PersistentVolumeClaim { metadata, spec: Some(template.spec), status: None })
        })
        .collect()
}

impl Controller for EphemeralVolumes {
    const NAME: &'static str = "ephemeral-volume-controller";
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.pods.all().synced().await;
        self.claims.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let seen = self.pods.all().get(key).filter(|pod| wants_claims(pod));
        let Some(seen) = seen.filter(|pod| self.lacks_claims(key, pod)) else { return Ok(Outcome::Done) };
        // What the claims are to be like is read here alone: the copy does not have it.
        let api: Api<Read<WholePod>> = Api::namespaced(self.client.clone(), &key.namespace);
        let Some(Read(pod)) = api.get_opt(&key.name).await? else { return Ok(Outcome::Done) };
        if pod.metadata.uid != seen.metadata.uid || pod.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        for (volume, claim) in new_claims(&pod) {
            let Err(error) = self.ensure(&pod, &volume, claim).await else { continue };
            let message = format!("ephemeral volume {volume}: {error}");
            self.events.event(&pod, EventType::Warning, "FailedBinding", &message);
            match error {
                // Its end wakes the pod.
                ClaimError::Foreign { .. } => return Ok(Outcome::Done),
                ClaimError::Make { error, .. } if is_terminating(&error) => return Ok(Outcome::Done),
                ClaimError::Make { error, .. } => return Err(error),
            }
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_that_a_pod_asks_for_is_the_pods_own() {
        let template = json!({"metadata": {"labels": {"l": "1"}, "annotations": {"a": "2"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        let pod: WholePod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"containers": [], "volumes": [
                {"name": "data", "ephemeral": {"volumeClaimTemplate": template}}, {"name": "none", "emptyDir": {}}]},
        }))
        .unwrap();
        let claims = new_claims(&pod);
        let [(volume, claim)] = claims.as_slice() else { panic!("{claims:?}") };
        assert_eq!((volume.as_str(), claim.metadata.name.as_deref()), ("data", Some("p-data")));
        assert_eq!(claim.metadata.labels.as_ref().unwrap()["l"], "1");
        assert_eq!(claim.metadata.annotations.as_ref().unwrap()["a"], "2");
        let owner = &claim.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("Pod", "u", Some(true)));
        let mut there = claim.clone();
        there.metadata.namespace = Some("d".into());
        assert!(is_claim_for(&there, &pod.metadata));
    }
}
