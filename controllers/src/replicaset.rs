//! ReplicaSets: as many pods as the spec says.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::{Change, EventRecorder, EventType, Informer, ObjectKey, WorkQueue, key_of};
use std::sync::Arc;

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine, is_terminating};
use crate::objects::{controller_key, controller_of, controller_reference, is_active, selects, uid};

mod plan;

pub(crate) struct ReplicaSets {
    client: Client,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
    pending: Arc<Pending>,
}

/// Pods that were made or deleted, but of which the informer does not yet know: until it does, counting pods would
/// count wrong.
#[derive(Default)]
struct Pending(Mutex<HashMap<ObjectKey, Expected>>);

#[derive(Default)]
struct Expected {
    made: HashSet<ObjectKey>,
    deleted: HashSet<String>,
    since: Option<Instant>,
}

/// After this an event that never came is no longer waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pods made or deleted in one pass: upstream's burst.
const BURST: usize = 500;

impl Pending {
    fn of_set(&self, set: &ObjectKey, change: impl FnOnce(&mut Expected)) {
        let mut all = self.0.lock();
        let expected = all.entry(set.clone()).or_default();
        change(expected);
        expected.since.get_or_insert_with(Instant::now);
    }

    fn seen(&self, set: &ObjectKey, change: &Change<Pod>) {
        let mut all = self.0.lock();
        let Some(expected) = all.get_mut(set) else { return };
        if let Some(pod) = change.object() {
            expected.made.remove(&key_of(&**pod));
            let going = change.new.as_ref().is_none_or(|p| p.metadata.deletion_timestamp.is_some());
            if going {
                expected.deleted.remove(uid(&pod.metadata));
            }
        }
        if expected.made.is_empty() && expected.deleted.is_empty() {
            all.remove(set);
        }
    }

    /// Whether everything that was done has been seen.
    fn is_settled(&self, set: &ObjectKey) -> bool {
        let mut all = self.0.lock();
        let stale = all.get(set).is_some_and(|e| e.since.is_some_and(|at| at.elapsed() > PATIENCE));
        if stale {
            all.remove(set);
        }
        !all.contains_key(set)
    }
}

impl ReplicaSets {
    pub(crate) fn new(context: &Context) -> Self {
        let (sets, pods) = (context.informers.of::<ReplicaSet>(), context.informers.of::<Pod>());
        let queue = WorkQueue::default();
        let pending = Arc::new(Pending::default());
        let wake = queue.clone();
        sets.on_change(move |change| {
            if let Some(set) = change.object() {
                wake.add(key_of(&**set));
            }
        });
        let (wake, seen, all) = (queue.clone(), pending.clone(), sets.clone());
        pods.on_change(move |change| {
            for pod in [&change.old, &change.new].into_iter().flatten() {
                if let Some(set) = controller_key(&pod.metadata, "ReplicaSet") {
                    seen.seen(&set, change);
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
        }
    }

    /// The set's pods: those it controls, and orphans that it adopts. Those that no longer match are let go.
    async fn claim(&self, set: &ReplicaSet) -> Result<Vec<Arc<Pod>>, kube::Error> {
        let Some(spec) = &set.spec else { return Ok(Vec::new()) };
        let namespace = set.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let mut owned = Vec::new();
        for pod in self.pods.list_in(&namespace) {
            let matches = selects(&spec.selector, &pod.metadata);
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

    /// Makes or deletes pods. Answers the error of the first one that could not be made.
    async fn manage(
        &self,
        key: &ObjectKey,
        set: &ReplicaSet,
        pods: &[Arc<Pod>],
    ) -> Result<Option<kube::Error>, kube::Error> {
        let wanted = usize::try_from(replicas(set)).unwrap_or(0);
        let active: Vec<&Arc<Pod>> = pods.iter().filter(|p| is_active(p)).collect();
        if active.len() < wanted {
            return Ok(self.make(key, set, (wanted - active.len()).min(BURST)).await);
        }
        let surplus = (active.len() - wanted).min(BURST);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        for pod in plan::to_delete(&active, surplus) {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let uid = uid(&pod.metadata).to_owned();
            self.pending.of_set(key, |e| {
                e.deleted.insert(uid.clone());
            });
            let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            match api.delete(&name, &params).await {
                Ok(_) => {
                    let message = format!("Deleted pod: {name}");
                    self.events.event(set, EventType::Normal, "SuccessfulDelete", &message);
                }
                Err(error) => {
                    self.pending.of_set(key, |e| {
                        e.deleted.remove(&uid);
                    });
                    self.pending.seen(key, &Change { old: Some(pod.clone()), new: None });
                    gone_is_fine::<()>(Err(error))?;
                }
            }
        }
        Ok(None)
    }

    /// In batches that double, so that a set whose pods are refused does not flood the API.
    async fn make(&self, key: &ObjectKey, set: &ReplicaSet, count: usize) -> Option<kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let now = batch.min(left);
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
                        let pod_key = key_of(&pod);
                        if self.pods.get(&pod_key).is_none() {
                            self.pending.of_set(key, |e| {
                                e.made.insert(pod_key.clone());
                            });
                        }
                        let message = format!("Created pod: {}", pod_key.name);
                        self.events.event(set, EventType::Normal, "SuccessfulCreate", &message);
                    }
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(error) = failed {
                if !is_terminating(&error) {
                    let message = format!("Error creating: {}", plan::text(&error));
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
        failure: Option<&kube::Error>,
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

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.sets.synced().await;
        self.pods.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(set) = self.sets.get(key) else {
            self.pending.0.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let pods = self.claim(&set).await?;
        let mut failure = None;
        let settled = self.pending.is_settled(key);
        if settled && set.metadata.deletion_timestamp.is_none() {
            failure = self.manage(key, &set, &pods).await?;
        }
        let outcome = self.write_status(key, &set, &pods, failure.as_ref()).await?;
        match failure {
            Some(error) if !is_terminating(&error) => Err(error),
            _ if !settled => Ok(Outcome::After(PATIENCE)),
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
