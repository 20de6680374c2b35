//! Claims that pods use, and volumes that are bound, are not gone before that has ended: each carries a finalizer, which comes
//! off here.
//!
//! Source: upstream's `pvcprotection` and `pvprotection`.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::ListParams;
use kube::{Api, Client};
use skiff_api::volumes::{CLAIM_PROTECTION, VOLUME_PROTECTION, is_claim_for};
use skiff_client::view::Pod;
use skiff_client::{Informer, ObjectKey, Read, WorkQueue, key_of};

use super::{Meta, Writer, drop_finalizer, has_finalizer, names, phase_of_volume};
use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine};
use crate::lookup::Pods;
use crate::objects::has_ended;

/// Pods that are read at a time.
const PAGE: u32 = 500;

/// What is to become of a finalizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finalizer {
    Keep,
    Add,
    /// If nothing uses what it protects.
    Remove,
}

fn finalizer(meta: &Meta, name: &str) -> Finalizer {
    match (meta.deletion_timestamp.is_some(), has_finalizer(meta, name)) {
        (true, true) => Finalizer::Remove,
        (false, false) => Finalizer::Add,
        _ => Finalizer::Keep,
    }
}

/// Whether a pod keeps a claim from going. One without a node does not: no kubelet begins with a claim that is on its way out.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let (_, name) = names(&claim.metadata);
    let has_node =
        pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_ref().is_some_and(|n| !n.is_empty()));
    let is_shut_down = pod.metadata.deletion_timestamp.is_some()
        && pod.metadata.deletion_grace_period_seconds.is_some_and(|seconds| seconds == 0);
    let holds = |is_own: bool| !is_own || !is_shut_down && is_claim_for(claim, &pod.metadata);
    has_node && pod.claims().any(|one| one.name == name && holds(one.is_own))
}

pub(crate) struct ClaimProtection {
    client: Client,
    writer: Writer,
    claims: Informer<PersistentVolumeClaim>,
    pods: Pods,
    queue: WorkQueue<ObjectKey>,
}

impl ClaimProtection {
    pub(crate) fn new(context: &Context) -> Self {
        let claims = context.informers.of::<PersistentVolumeClaim>();
        let (queue, pods) = (WorkQueue::default(), context.pods.clone());
        let wake: WorkQueue<ObjectKey> = queue.clone();
        claims.on_change(move |change| {
            if let Some(claim) = &change.new
                && finalizer(&claim.metadata, CLAIM_PROTECTION) != Finalizer::Keep
            {
                wake.add(key_of(&**claim));
            }
        });
        let wake = queue.clone();
        pods.all().on_change(move |change| {
            let let_go = |pod: &Pod| {
                let (namespace, _) = names(&pod.metadata);
                pod.claims().for_each(|claim| wake.add(ObjectKey::new(namespace, claim.name)));
            };
            match (&change.old, &change.new) {
                (Some(old), None) => let_go(old),
                (Some(old), Some(new)) if old.metadata.uid != new.metadata.uid => let_go(old),
                (_, Some(new)) if has_ended(new) => let_go(new),
                _ => {}
            }
        });
        ClaimProtection {
            client: context.client.clone(),
            writer: Writer(context.client.clone()),
            claims,
            pods,
            queue,
        }
    }

    /// Asked of the API itself at last: the copy may not have a pod that has come just now.
    async fn is_used(&self, key: &ObjectKey, claim: &PersistentVolumeClaim) -> Result<bool, kube::Error> {
        if self.pods.using_claim(key).iter().any(|pod| uses(pod, claim)) {
            return Ok(true);
        }
        let api: Api<Read<Pod>> = Api::namespaced(self.client.clone(), &key.namespace);
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let pods = api.list(&page).await?;
            if pods.items.iter().any(|pod| uses(&pod.0, claim)) {
                return Ok(true);
            }
            match pods.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(false),
            }
        }
    }
}

impl Controller for ClaimProtection {
    const NAME: &'static str = "pvc-protection";
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.claims.synced().await;
        self.pods.all().synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(claim) = self.claims.get(key) else { return Ok(Outcome::Done) };
        let mut new = (*claim).clone();
        match finalizer(&claim.metadata, CLAIM_PROTECTION) {
            Finalizer::Keep => return Ok(Outcome::Done),
            Finalizer::Remove if self.is_used(key, &claim).await? => return Ok(Outcome::Done),
            Finalizer::Remove => drop_finalizer(&mut new.metadata, CLAIM_PROTECTION),
            Finalizer::Add => {
                new.metadata.finalizers.get_or_insert_default().push(CLAIM_PROTECTION.to_owned())
            }
        }
        gone_is_fine(self.writer.put_claim(&new).await)?;
        Ok(Outcome::Done)
    }
}

pub(crate) struct VolumeProtection {
    writer: Writer,
    volumes: Informer<PersistentVolume>,
    queue: WorkQueue<ObjectKey>,
}

impl VolumeProtection {
    pub(crate) fn new(context: &Context) -> Self {
        let volumes = context.informers.of::<PersistentVolume>();
        let queue = WorkQueue::default();
        let wake: WorkQueue<ObjectKey> = queue.clone();
        volumes.on_change(move |change| {
            if let Some(volume) = &change.new
                && finalizer(&volume.metadata, VOLUME_PROTECTION) != Finalizer::Keep
            {
                wake.add(key_of(&**volume));
            }
        });
        VolumeProtection { writer: Writer(context.client.clone()), volumes, queue }
    }
}

impl Controller for VolumeProtection {
    const NAME: &'static str = "pv-protection";
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.volumes.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(volume) = self.volumes.get(key) else { return Ok(Outcome::Done) };
        let mut new = (*volume).clone();
        match finalizer(&volume.metadata, VOLUME_PROTECTION) {
            Finalizer::Keep => return Ok(Outcome::Done),
            Finalizer::Remove if phase_of_volume(&volume) == "Bound" => return Ok(Outcome::Done),
            Finalizer::Remove => drop_finalizer(&mut new.metadata, VOLUME_PROTECTION),
            Finalizer::Add => {
                new.metadata.finalizers.get_or_insert_default().push(VOLUME_PROTECTION.to_owned());
            }
        }
        gone_is_fine(self.writer.put_volume(&new).await)?;
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(owner: Option<&str>) -> PersistentVolumeClaim {
        let owners: Vec<Value> = owner
            .iter()
            .map(
                |uid| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}),
            )
            .collect();
        serde_json::from_value(
            json!({"metadata": {"name": "p-data", "namespace": "d", "ownerReferences": owners}}),
        )
        .unwrap()
    }

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": {"nodeName": "n",
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "p-data"}}]}});
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_claim_is_used_by_pods_with_a_node_until_they_are_gone() {
        assert!(uses(&pod(|_| {}), &claim(None)));
        assert!(
            uses(&pod(|p| p["status"] = json!({"phase": "Succeeded"})), &claim(None)),
            "it may be looked at"
        );
        assert!(!uses(&pod(|p| p["spec"]["nodeName"] = "".into()), &claim(None)));
        assert!(!uses(&pod(|p| p["spec"]["volumes"] = json!([])), &claim(None)));
    }

    #[test]
    fn a_claim_that_was_made_for_a_pod_is_used_by_that_pod_alone() {
        let own = |p: &mut Value| p["spec"]["volumes"] = json!([{"name": "data", "ephemeral": {}}]);
        assert!(uses(&pod(own), &claim(Some("u"))));
        assert!(!uses(&pod(own), &claim(Some("earlier"))) && !uses(&pod(own), &claim(None)));
        let ending = |p: &mut Value| {
            own(p);
            p["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            p["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        };
        assert!(!uses(&pod(ending), &claim(Some("u"))), "it has ended, and waits for its claim");
    }

    #[test]
    fn a_finalizer_is_added_to_what_stays_and_taken_off_what_goes() {
        let meta = |value: Value| serde_json::from_value::<Meta>(value).unwrap();
        let going = "2026-01-01T00:00:00Z";
        for (value, wanted) in [
            (json!({}), Finalizer::Add),
            (json!({"finalizers": ["f"]}), Finalizer::Keep),
            (json!({"finalizers": ["f"], "deletionTimestamp": going}), Finalizer::Remove),
            (json!({"finalizers": ["other"], "deletionTimestamp": going}), Finalizer::Keep),
        ] {
            assert_eq!(finalizer(&meta(value.clone()), "f"), wanted, "{value}");
        }
    }
}
