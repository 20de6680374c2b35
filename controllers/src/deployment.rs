//! Deployments: a ReplicaSet for each revision, and the move from one to the next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use skiff_client::view::Pod;
use skiff_client::{EventRecorder, EventType, Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::claiming::claim;
use crate::driver::{Controller, Outcome, gone_is_fine, is_conflict, is_terminating, text};
use crate::lookup::{Owned, Pods, Selecting};
use crate::objects::{
    Selector, controller_key, controller_of, has_ended, says_same, selects, status_patch, uid,
};

mod plan;
mod status;

const REVISION: &str = "deployment.kubernetes.io/revision";
/// Revisions that a set had before, as after a rollback.
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
const HASH: &str = "pod-template-hash";

pub(crate) struct Deployments {
    client: Client,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    owned: Owned<ReplicaSet>,
    pods: Pods,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
}

impl Deployments {
    pub(crate) fn new(context: &Context) -> Self {
        let informers = &context.informers;
        let (deployments, sets) = (informers.of::<Deployment>(), informers.of::<ReplicaSet>());
        let (queue, owned) = (WorkQueue::default(), Owned::new(&sets));
        let wake = queue.clone();
        deployments.on_change(move |change| {
            if let Some(deployment) = change.object() {
                wake.add(key_of(&**deployment));
            }
        });
        let selector_of = |d: &Deployment| Some(d.spec.selector.clone());
        let (wake, selecting) = (queue.clone(), Selecting::new(&deployments, selector_of));
        sets.on_change(move |change| {
            for set in [&change.old, &change.new].into_iter().flatten() {
                if let Some(key) = controller_key(&set.metadata, "Deployment") {
                    wake.add(key);
                } else if controller_of(&set.metadata).is_none() {
                    let selecting = selecting
                        .of(&set.metadata, |d| selector_of(d).is_some_and(|s| selects(&s, &set.metadata)));
                    selecting.iter().for_each(|d| wake.add(key_of(&**d)));
                }
            }
        });
        // `Recreate` waits for the last old pod to be gone.
        let (wake, owners) = (queue.clone(), sets.clone());
        context.pods.all().on_change(move |change| {
            let Some(old) = change.old.as_ref().filter(|_| change.new.as_ref().is_none_or(|p| has_ended(p)))
            else {
                return;
            };
            let set = controller_key(&old.metadata, "ReplicaSet").and_then(|key| owners.get(&key));
            if let Some(key) = set.and_then(|s| controller_key(&s.metadata, "Deployment")) {
                wake.add(key);
            }
        });
        let events = context.events("deployment-controller");
        let (client, pods) = (context.client.clone(), context.pods.clone());
        Deployments { client, deployments, sets, owned, pods, events, queue }
    }

    fn api(&self, key: &ObjectKey) -> Api<ReplicaSet> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    /// The Deployment's ReplicaSets, orphans that it selects adopted.
    async fn claim(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
    ) -> Result<Vec<Arc<ReplicaSet>>, kube::Error> {
        let asked = &deployment.spec.selector;
        let known = self.owned.of_controller("Deployment", key);
        let candidates = known.into_iter().chain(self.owned.orphans(&key.namespace, asked));
        let selector = Selector::new(asked);
        let adopts = |set: &ReplicaSet| set.metadata.deletion_timestamp.is_none();
        claim(&self.client, deployment, candidates, |set| selector.selects(&set.metadata), adopts).await
    }

    async fn create(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        new: ReplicaSet,
    ) -> Result<Arc<ReplicaSet>, kube::Error> {
        match self.api(key).create(&PostParams::default(), &new).await {
            Ok(made) => {
                self.scaled(deployment, &made, 0, plan::replicas(&made));
                Ok(Arc::new(made))
            }
            // The informer is behind, or two templates share a hash: the next pass sees which.
            Err(error) if is_conflict(&error) => {
                let name = new.metadata.name.clone().unwrap_or_default();
                let there = self.api(key).get(&name).await?;
                let is_ours =
                    controller_of(&there.metadata).is_some_and(|r| r.uid == uid(&deployment.metadata));
                if is_ours && plan::same_template(deployment, &there) {
                    return Ok(Arc::new(there));
                }
                let count = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
                let count = count.saturating_add(1);
                let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &key.namespace);
                let patch = json!({"status": {"collisionCount": count}});
                deployments.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
                Err(error)
            }
            Err(error) if is_terminating(&error) => Err(error),
            Err(error) => {
                self.create_failed(key, deployment, &new, &error).await?;
                Err(error)
            }
        }
    }

    async fn create_failed(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        new: &ReplicaSet,
        error: &kube::Error,
    ) -> Result<(), kube::Error> {
        let name = new.metadata.name.as_deref().unwrap_or_default();
        let message = format!("Failed to create new replica set {name:?}: {}", text(error));
        self.events.event(deployment, EventType::Warning, "ReplicaSetCreateError", &message);
        let Some(conditions) = status::create_failed(deployment, &message, Timestamp::now()) else {
            return Ok(());
        };
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch =
            json!({"metadata": {"uid": deployment.metadata.uid}, "status": {"conditions": conditions}});
        gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await)
    }

    fn scaled(&self, deployment: &Deployment, set: &ReplicaSet, from: i32, to: i32) {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
        if from != to {
            self.events.event(deployment, EventType::Normal, "ScalingReplicaSet", &message);
        }
    }

    async fn apply(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        changes: Vec<plan::SetChange>,
    ) -> Result<(), kube::Error> {
        for change in changes {
            let name = change.set.metadata.name.clone().unwrap_or_default();
            let mut patch = json!({"metadata": {"resourceVersion": change.set.metadata.resource_version}});
            if !change.annotations.is_empty() {
                patch["metadata"]["annotations"] = json!(change.annotations);
            }
            if let Some(replicas) = change.replicas {
                patch["spec"]["replicas"] = replicas.into();
            }
            if let Some(seconds) = change.min_ready_seconds {
                patch["spec"]["minReadySeconds"] = seconds.into();
            }
            self.api(key).patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            if let Some(replicas) = change.replicas {
                self.scaled(deployment, &change.set, plan::replicas(&change.set), replicas);
            }
        }
        Ok(())
    }

    async fn write_revision(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        revision: i64,
    ) -> Result<(), kube::Error> {
        let known = deployment.metadata.annotations.as_ref().and_then(|a| a.get(REVISION));
        if known.is_some_and(|r| *r == revision.to_string()) {
            return Ok(());
        }
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = json!({"metadata": {"annotations": {REVISION: revision.to_string()}}});
        gone_is_fine(api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await)
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        sets: &[Arc<ReplicaSet>],
        new: Option<&Arc<ReplicaSet>>,
        made: bool,
    ) -> Result<Outcome, kube::Error> {
        let next = status::status(deployment, sets, new, made, Timestamp::now());
        if !says_same::<Deployment, _>(deployment.status.as_ref(), &next.status) {
            let api: Api<Deployment> = Api::namespaced(self.client.clone(), &key.namespace);
            let patch = status_patch(&deployment.metadata, &next.status, deployment.status.as_ref());
            gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
        }
        Ok(next.look_again_s.map_or(Outcome::Done, |s| Outcome::After(Duration::from_secs(s.max(1)))))
    }

    async fn clean_up(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        old: &[Arc<ReplicaSet>],
    ) -> Result<(), kube::Error> {
        for set in plan::beyond_history(deployment, old) {
            let name = set.metadata.name.clone().unwrap_or_default();
            gone_is_fine(self.api(key).delete(&name, &DeleteParams::default()).await)?;
        }
        Ok(())
    }

    /// Whether pods of old revisions still run, which `Recreate` waits for.
    fn old_pods_run(&self, old: &[Arc<ReplicaSet>]) -> bool {
        old.iter().any(|set| {
            let is_owned =
                |pod: &Pod| controller_of(&pod.metadata).is_some_and(|r| r.uid == uid(&set.metadata));
            let pods = self.pods.of_controller("ReplicaSet", &key_of(&**set));
            pods.iter().any(|pod| is_owned(pod) && !has_ended(pod))
        })
    }
}

impl Controller for Deployments {
    const NAME: &'static str = "deployment";
    const WORKERS: usize = 5;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.deployments.synced().await;
        self.sets.synced().await;
        self.pods.all().synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(deployment) = self.deployments.get(key) else { return Ok(Outcome::Done) };
        let sets = self.claim(key, &deployment).await?;
        let new = plan::new_set(&deployment, &sets);
        let old: Vec<_> = sets
            .iter()
            .filter(|s| new.as_ref().is_none_or(|n| uid(&n.metadata) != uid(&s.metadata)))
            .cloned()
            .collect();
        if deployment.metadata.deletion_timestamp.is_some() {
            return self.write_status(key, &deployment, &sets, new.as_ref(), false).await;
        }
        let revision = plan::revision(&old, new.as_deref());
        let mut made = false;
        let new = match new {
            Some(new) => Some(new),
            None if plan::is_paused(&deployment) => None,
            None if plan::is_recreate(&deployment)
                && (self.old_pods_run(&old) || old.iter().any(|s| plan::replicas(s) > 0)) =>
            {
                None
            }
            None => {
                made = true;
                Some(self.create(key, &deployment, plan::make(&deployment, &old, revision)).await?)
            }
        };
        if let Some(new) = &new {
            self.write_revision(key, &deployment, revision).await?;
            let annotations = plan::annotate(&deployment, new, revision);
            let min_ready_seconds = plan::min_ready_change(&deployment, new);
            if !made && (!annotations.is_empty() || min_ready_seconds.is_some()) {
                let change = plan::SetChange { annotations, min_ready_seconds, ..plan::SetChange::of(new) };
                self.apply(key, &deployment, vec![change]).await?;
                // Its new version comes back through the informer.
                return self.write_status(key, &deployment, &sets, Some(new), made).await;
            }
        }
        let mut changes = plan::scale(&deployment, new.as_ref(), &old);
        if plan::is_recreate(&deployment) && self.old_pods_run(&old) {
            // A rollback finds its set there already; it waits for the others' pods all the same.
            changes.retain(|c| c.replicas.is_none_or(|n| n <= plan::replicas(&c.set)));
        }
        self.apply(key, &deployment, changes).await?;
        let mut all = old.clone();
        all.extend(new.clone());
        let outcome = self.write_status(key, &deployment, &all, new.as_ref(), made).await?;
        if status::is_complete(&deployment, &all, new.as_ref()) {
            self.clean_up(key, &deployment, &old).await?;
        }
        Ok(outcome)
    }
}

/// Annotations of the Deployment that its ReplicaSets carry too.
fn inherited(deployment: &Deployment) -> BTreeMap<String, String> {
    const OWN: [&str; 5] =
        ["kubectl.kubernetes.io/last-applied-configuration", REVISION, DESIRED, MAX, HISTORY];
    let all = deployment.metadata.annotations.clone().unwrap_or_default();
    all.into_iter().filter(|(name, _)| !OWN.contains(&name.as_str())).collect()
}
