//! ReplicaSets: as many pods as the spec says.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;
use skiff_client::{EventRecorder, EventType, Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine, is_not_found, is_terminating, text};
use crate::objects::{
    Selector, controller_key, controller_of, controller_reference, is_active, selects, uid,
};

mod index;
mod pending;
mod plan;

use index::Index;
use pending::Pending;
use plan::Failure;

/// Pods made or deleted in one pass: upstream's burst.
const BURST: usize = 500;

pub(crate) struct ReplicaSets {
    client: Client,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
    pending: Arc<Pending>,
    index: Arc<Index>,
}

impl ReplicaSets {
    pub(crate) fn new(context: &Context) -> Self {
        let (sets, pods) = (context.informers.of::<ReplicaSet>(), context.informers.of::<Pod>());
        let queue = WorkQueue::default();
        let (pending, index) = (Arc::new(Pending::default()), Arc::new(Index::default()));
        let wake = queue.clone();
        sets.on_change(move |change| {
            if let Some(set) = change.object() {
                wake.add(key_of(&**set));
            }
        });
        let (wake, seen, all) = (queue.clone(), pending.clone(), sets.clone());
        let placed = index.clone();
        pods.on_change(move |change| {
            placed.follow(change);
            let newest = change.object().and_then(|pod| controller_key(&pod.metadata, "ReplicaSet"));
            if let Some(set) = newest {
                seen.seen(&set, change);
            }
            for pod in [&change.old, &change.new].into_iter().flatten() {
                if let Some(set) = controller_key(&pod.metadata, "ReplicaSet") {
                    wake.add(set);
                } else if controller_of(&pod.metadata).is_none() {
                    // An orphan may be for any set that selects it.
                    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
                    let candidates = all.filter(|key, set| {
                        key.namespace == namespace
                            && set.spec.as_ref().is_some_and(|s| selects(&s.selector, &pod.metadata))
                    });
                    candidates.iter().for_each(|set| wake.add(key_of(&**set)));
                }
            }
        });
        ReplicaSets {
            client: context.client.clone(),
            sets,
            pods,
            events: context.events("replicaset-controller"),
            queue,
            pending,
            index,
        }
    }

    /// The set's pods: those it controls, and orphans that it adopts. Those that no longer match are let go.
    async fn claim(&self, set: &ReplicaSet) -> Result<Vec<Arc<Pod>>, kube::Error> {
        let Some(spec) = &set.spec else { return Ok(Vec::new()) };
        let namespace = set.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let selector = Selector::new(&spec.selector);
        let mut owned = Vec::new();
        for key in self.index.candidates(&key_of(set)) {
            let Some(pod) = self.pods.get(&key) else { continue };
            let matches = selector.selects(&pod.metadata);
            let name = pod.metadata.name.clone().unwrap_or_default();
            match controller_of(&pod.metadata) {
                Some(owner) if owner.uid == uid(&set.metadata) => {
                    if matches || set.metadata.deletion_timestamp.is_some() {
                        owned.push(pod);
                        continue;
                    }
                    let release = json!({"metadata": {"uid": pod.metadata.uid,
                        "ownerReferences": [{"$patch": "delete", "uid": owner.uid}]}});
                    gone_is_fine(
                        api.patch(&name, &PatchParams::default(), &Patch::Strategic(release)).await,
                    )?;
                }
                None if matches && is_active(&pod) && set.metadata.deletion_timestamp.is_none() => {
                    if !self.may_adopt(&namespace, set).await? {
                        continue;
                    }
                    let adopt = json!({"metadata": {"uid": pod.metadata.uid,
                        "ownerReferences": [controller_reference(set)]}});
                    gone_is_fine(api.patch(&name, &PatchParams::default(), &Patch::Strategic(adopt)).await)?;
                    owned.push(pod);
                }
                _ => {}
            }
        }
        Ok(owned)
    }

    /// Whether the set is still there and stays. The informer may not know yet: one that is being deleted would take
    /// back the pods that the garbage collector has just made it let go of.
    async fn may_adopt(&self, namespace: &str, set: &ReplicaSet) -> Result<bool, kube::Error> {
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), namespace);
        let live = api.get_opt(set.metadata.name.as_deref().unwrap_or_default()).await?;
        Ok(live.is_some_and(|s| {
            uid(&s.metadata) == uid(&set.metadata) && s.metadata.deletion_timestamp.is_none()
        }))
    }

    /// Makes or deletes pods. Answers the first failure.
    async fn manage(&self, key: &ObjectKey, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Option<Failure> {
        let wanted = usize::try_from(replicas(set)).unwrap_or(0);
        let active: Vec<&Arc<Pod>> = pods.iter().filter(|p| is_active(p)).collect();
        if active.len() < wanted {
            let error = self.make(key, set, (wanted - active.len()).min(BURST)).await?;
            return Some(Failure { reason: "FailedCreate", error });
        }
        let surplus = (active.len() - wanted).min(BURST);
        let mut first = None;
        for pod in plan::to_delete(&active, surplus, Timestamp::now()) {
            if let Err(error) = self.delete(key, set, pod).await {
                first = first.or(Some(Failure { reason: "FailedDelete", error }));
            }
        }
        first
    }

    async fn delete(&self, key: &ObjectKey, set: &ReplicaSet, pod: &Pod) -> Result<(), kube::Error> {
        let (name, uid) = (pod.metadata.name.as_deref().unwrap_or_default(), uid(&pod.metadata));
        self.pending.expect_end(key, uid);
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        match api.delete(name, &params).await {
            Ok(_) => {
                let message = format!("Deleted pod: {name}");
                self.events.event(set, EventType::Normal, "SuccessfulDelete", &message);
                Ok(())
            }
            Err(error) => {
                self.pending.end_failed(key, uid);
                if is_not_found(&error) {
                    return Ok(());
                }
                let message = format!("Error deleting: {}", text(&error));
                self.events.event(set, EventType::Warning, "FailedDelete", &message);
                Err(error)
            }
        }
    }

    /// In batches that double, so that a set whose pods are refused does not flood the API.
    async fn make(&self, key: &ObjectKey, set: &ReplicaSet, count: usize) -> Option<kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let now = batch.min(left);
            // Before they are asked for: the watch may be faster than the answer.
            self.pending.expect_pods(key, now);
            let params = PostParams::default();
            let made = futures::future::join_all((0..now).map(|_| {
                let (api, pod, params) = (&api, new_pod(set), &params);
                async move { api.create(params, &pod).await }
            }))
            .await;
            let mut failed = None;
            for result in made {
                match result {
                    Ok(pod) => {
                        let name = pod.metadata.name.unwrap_or_default();
                        let message = format!("Created pod: {name}");
                        self.events.event(set, EventType::Normal, "SuccessfulCreate", &message);
                    }
                    Err(error) => {
                        self.pending.pod_failed(key);
                        failed = Some(error);
                    }
                }
            }
            if let Some(error) = failed {
                if !is_terminating(&error) {
                    let message = format!("Error creating: {}", text(&error));
                    self.events.event(set, EventType::Warning, "FailedCreate", &message);
                }
                return Some(error);
            }
            left -= now;
            batch *= 2;
        }
        None
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        set: &ReplicaSet,
        pods: &[Arc<Pod>],
        failure: Option<&Failure>,
    ) -> Result<Outcome, kube::Error> {
        let now = Timestamp::now();
        let status = plan::status(set, pods, failure, now);
        if set.status.as_ref() != Some(&status.status) {
            let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.namespace);
            let patch = json!({"metadata": {"uid": set.metadata.uid}, "status": status.status});
            // A field that is no longer there must go, which a merge does not do by itself.
            let patch = plan::with_nulls(patch, set.status.as_ref());
            gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
        }
        Ok(match status.next_available_s {
            Some(seconds) => Outcome::After(Duration::from_secs(seconds.max(1))),
            None => Outcome::Done,
        })
    }
}

impl Controller for ReplicaSets {
    const NAME: &'static str = "replicaset";
    const WORKERS: usize = 5;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.sets.synced().await;
        self.pods.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(set) = self.sets.get(key) else {
            self.pending.forget(key);
            return Ok(Outcome::Done);
        };
        let pods = self.claim(&set).await?;
        let mut failure = None;
        let settled = self.pending.is_settled(key);
        if settled && set.metadata.deletion_timestamp.is_none() {
            failure = self.manage(key, &set, &pods).await;
        }
        let outcome = self.write_status(key, &set, &pods, failure.as_ref()).await?;
        match failure {
            Some(failure) if !is_terminating(&failure.error) => Err(failure.error),
            _ if !settled => Ok(Outcome::After(pending::PATIENCE)),
            _ => Ok(outcome),
        }
    }
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// A pod of the set's template.
fn new_pod(set: &ReplicaSet) -> Pod {
    let template = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.metadata.name.as_deref().unwrap_or_default())),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}
