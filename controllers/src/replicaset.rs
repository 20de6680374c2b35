//! ReplicaSets, and ReplicationControllers, their forerunner: as many pods as the spec says.
//!
//! One engine runs both. It sees a ReplicationController as the ReplicaSet that it might be.

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    Pod, ReplicationController, ReplicationControllerCondition, ReplicationControllerSpec,
    ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource};
use serde_json::json;
use skiff_client::{EventRecorder, EventType, Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine, is_not_found, is_terminating, text};
use crate::lookup::{Pods, Selecting};
use crate::making::{Making, batches};
use crate::objects::{
    Selector, controller_key, controller_of, controller_reference, is_active, selects, uid,
};

mod pending;
mod plan;

use pending::Pending;
use plan::Failure;

/// Pods made or deleted in one pass: upstream's burst.
const BURST: usize = 500;

/// What the engine runs.
pub(crate) trait Replicated:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    const NAME: &'static str;
    /// Who its events are from.
    const COMPONENT: &'static str;

    fn selector(&self) -> Option<Cow<'_, LabelSelector>>;
    fn as_set(&self) -> Cow<'_, ReplicaSet>;

    /// Without what the kind's own status has no field for.
    fn own_status(status: ReplicaSetStatus) -> ReplicaSetStatus {
        status
    }
}

impl Replicated for ReplicaSet {
    const NAME: &'static str = "replicaset";
    const COMPONENT: &'static str = "replicaset-controller";

    fn selector(&self) -> Option<Cow<'_, LabelSelector>> {
        self.spec.as_ref().map(|spec| Cow::Borrowed(&spec.selector))
    }

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }
}

impl Replicated for ReplicationController {
    const NAME: &'static str = "replicationcontroller";
    const COMPONENT: &'static str = "replication-controller";

    fn selector(&self) -> Option<Cow<'_, LabelSelector>> {
        let labels = self.spec.as_ref()?.selector.clone();
        Some(Cow::Owned(LabelSelector { match_labels: labels, match_expressions: None }))
    }

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        let spec = |spec: &ReplicationControllerSpec| ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: spec.replicas,
            selector: LabelSelector { match_labels: spec.selector.clone(), match_expressions: None },
            template: spec.template.clone(),
        };
        Cow::Owned(ReplicaSet {
            metadata: self.metadata.clone(),
            spec: self.spec.as_ref().map(spec),
            status: self.status.as_ref().map(set_status),
        })
    }

    fn own_status(status: ReplicaSetStatus) -> ReplicaSetStatus {
        ReplicaSetStatus { terminating_replicas: None, ..status }
    }
}

fn set_status(status: &ReplicationControllerStatus) -> ReplicaSetStatus {
    let condition = |c: &ReplicationControllerCondition| ReplicaSetCondition {
        last_transition_time: c.last_transition_time.clone(),
        message: c.message.clone(),
        reason: c.reason.clone(),
        status: c.status.clone(),
        type_: c.type_.clone(),
    };
    ReplicaSetStatus {
        available_replicas: status.available_replicas,
        conditions: status.conditions.as_ref().map(|all| all.iter().map(condition).collect()),
        fully_labeled_replicas: status.fully_labeled_replicas,
        observed_generation: status.observed_generation,
        ready_replicas: status.ready_replicas,
        replicas: status.replicas,
        terminating_replicas: None,
    }
}

pub(crate) struct ReplicaSets<K> {
    client: Client,
    sets: Informer<K>,
    pods: Pods,
    making: Making,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
    pending: Arc<Pending>,
}

impl<K: Replicated> ReplicaSets<K> {
    pub(crate) fn new(context: &Context) -> Self {
        let sets = context.informers.of::<K>();
        let (queue, pending) = (WorkQueue::default(), Arc::new(Pending::default()));
        let kind = K::kind(&()).into_owned();
        let wake = queue.clone();
        sets.on_change(move |change| {
            if let Some(set) = change.object() {
                wake.add(key_of(&**set));
            }
        });
        let selecting = Selecting::new(&sets, |set: &K| set.selector().map(Cow::into_owned));
        let (wake, seen) = (queue.clone(), pending.clone());
        context.pods.all().on_change(move |change| {
            let newest = change.object().and_then(|pod| controller_key(&pod.metadata, &kind));
            if let Some(set) = newest {
                seen.seen(&set, change);
            }
            for pod in [&change.old, &change.new].into_iter().flatten() {
                if let Some(set) = controller_key(&pod.metadata, &kind) {
                    wake.add(set);
                } else if controller_of(&pod.metadata).is_none() {
                    // An orphan may be for any set that selects it.
                    let selects = |set: &K| set.selector().is_some_and(|s| selects(&s, &pod.metadata));
                    let candidates = selecting.of(&pod.metadata, selects);
                    candidates.iter().for_each(|set| wake.add(key_of(&**set)));
                }
            }
        });
        ReplicaSets {
            client: context.client.clone(),
            sets,
            pods: context.pods.clone(),
            making: context.making.clone(),
            events: context.events(K::COMPONENT),
            queue,
            pending,
        }
    }

    /// The set's pods: those it controls, and orphans that it adopts. Those that no longer match are let go.
    async fn claim(&self, set: &K) -> Result<Vec<Arc<Pod>>, kube::Error> {
        let Some(asked) = set.selector() else { return Ok(Vec::new()) };
        let is_going = set.meta().deletion_timestamp.is_some();
        let namespace = set.meta().namespace.clone().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let selector = Selector::new(&asked);
        let mut owned = Vec::new();
        let own = self.pods.of_controller(&K::kind(&()), &key_of(set));
        for pod in own.into_iter().chain(self.pods.orphans(&namespace, &asked)) {
            let matches = selector.selects(&pod.metadata);
            let name = pod.metadata.name.clone().unwrap_or_default();
            match controller_of(&pod.metadata) {
                Some(owner) if owner.uid == uid(set.meta()) => {
                    if matches || is_going {
                        owned.push(pod);
                        continue;
                    }
                    let release = json!({"metadata": {"uid": pod.metadata.uid,
                        "ownerReferences": [{"$patch": "delete", "uid": owner.uid}]}});
                    gone_is_fine(
                        api.patch(&name, &PatchParams::default(), &Patch::Strategic(release)).await,
                    )?;
                }
                None if matches && is_active(&pod) && !is_going => {
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
    async fn may_adopt(&self, namespace: &str, set: &K) -> Result<bool, kube::Error> {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let live = api.get_opt(set.meta().name.as_deref().unwrap_or_default()).await?;
        Ok(live.is_some_and(|s| uid(s.meta()) == uid(set.meta()) && s.meta().deletion_timestamp.is_none()))
    }

    /// Makes or deletes pods. Answers the first failure.
    async fn manage(&self, key: &ObjectKey, set: &K, pods: &[Arc<Pod>]) -> Option<Failure> {
        let wanted = usize::try_from(replicas(&set.as_set())).unwrap_or(0);
        let active: Vec<&Arc<Pod>> = pods.iter().filter(|p| is_active(p)).collect();
        if active.len() < wanted {
            let error = self.make(key, set, (wanted - active.len()).min(BURST)).await?;
            return Some(Failure { reason: "FailedCreate", error });
        }
        let surplus = (active.len() - wanted).min(BURST);
        let going = plan::to_delete(&active, surplus, Timestamp::now());
        let deletions: Vec<_> = going.into_iter().map(|pod| self.delete(key, set, pod)).collect();
        let deleted = self.making.all(deletions).await;
        let error = deleted.into_iter().find_map(Result::err)?;
        Some(Failure { reason: "FailedDelete", error })
    }

    async fn delete(&self, key: &ObjectKey, set: &K, pod: &Pod) -> Result<(), kube::Error> {
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
    async fn make(&self, key: &ObjectKey, set: &K, count: usize) -> Option<kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let pod = new_pod(&set.as_set(), controller_reference(set));
        let params = PostParams::default();
        for batch in batches(count) {
            // Before they are asked for: the watch may be faster than the answer.
            self.pending.expect_pods(key, batch);
            let made = self.making.all((0..batch).map(|_| api.create(&params, &pod)).collect()).await;
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
        }
        None
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        set: &K,
        pods: &[Arc<Pod>],
        failure: Option<&Failure>,
    ) -> Result<Outcome, kube::Error> {
        let set = set.as_set();
        let counted = plan::status(&set, pods, failure, Timestamp::now());
        let status = K::own_status(counted.status);
        if set.status.as_ref() != Some(&status) {
            let api: Api<K> = Api::namespaced(self.client.clone(), &key.namespace);
            let patch = json!({"metadata": {"uid": set.metadata.uid}, "status": status});
            // A field that is no longer there must go, which a merge does not do by itself.
            let patch = plan::with_nulls(patch, set.status.as_ref());
            gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
        }
        Ok(match counted.next_available_s {
            Some(seconds) => Outcome::After(Duration::from_secs(seconds.max(1))),
            None => Outcome::Done,
        })
    }
}

impl<K: Replicated> Controller for ReplicaSets<K> {
    const NAME: &'static str = K::NAME;
    const WORKERS: usize = 5;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.sets.synced().await;
        self.pods.all().synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(set) = self.sets.get(key) else {
            self.pending.forget(key);
            return Ok(Outcome::Done);
        };
        let pods = self.claim(&set).await?;
        let mut failure = None;
        let settled = self.pending.is_settled(key);
        if settled && set.meta().deletion_timestamp.is_none() {
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
fn new_pod(set: &ReplicaSet, owner: OwnerReference) -> Pod {
    let template = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.metadata.name.as_deref().unwrap_or_default())),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::testing::{Asked, ScriptedApi};

    fn controller() -> ReplicationController {
        let controller = json!({
            "metadata": {"name": "rc", "namespace": "d", "uid": "u"},
            "spec": {"replicas": 2, "selector": {"app": "a"}, "template": {"metadata": {"labels": {"app": "a"}}}},
            "status": {"replicas": 2, "readyReplicas": 1},
        });
        serde_json::from_value(controller).unwrap()
    }

    #[test]
    fn a_replication_controller_is_run_as_the_set_that_it_might_be() {
        let controller = controller();
        let set = controller.as_set();
        let spec = set.spec.as_ref().unwrap();
        assert_eq!(replicas(&set), 2);
        assert_eq!(Some(Cow::Borrowed(&spec.selector)), controller.selector());
        assert_eq!(spec.selector.match_labels.as_ref().unwrap()["app"], "a");
        assert_eq!(set.status.as_ref().unwrap().ready_replicas, Some(1));
        let pod = new_pod(&set, controller_reference(&controller));
        let owner = &pod.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.api_version.as_str(), owner.kind.as_str()), ("v1", "ReplicationController"));
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("rc-"));
    }

    #[test]
    fn a_status_that_is_as_it_was_is_not_written_again_of_either_kind() {
        let controller = controller();
        let counted = plan::status(&controller.as_set(), &[], None, Timestamp::now());
        let written = ReplicationController::own_status(counted.status);
        assert_eq!(written.terminating_replicas, None, "the old kind has no such field");
        let stored: ReplicationControllerStatus =
            serde_json::from_value(serde_json::to_value(&written).unwrap()).unwrap();
        assert_eq!(set_status(&stored), written);
    }

    /// How many pods are asked for in one pass of a set of ten thousand.
    async fn asked_for(
        answer: impl Fn(&Asked) -> Option<serde_json::Value> + Send + Sync + 'static,
    ) -> usize {
        let api = ScriptedApi::new(answer);
        let shutdown = CancellationToken::new();
        let informers = skiff_client::Informers::new(api.client(), shutdown.clone());
        let sets = ReplicaSets::<ReplicaSet>::new(&Context::new(api.client(), informers));
        shutdown.cancel();
        let set: ReplicaSet =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "d", "uid": "u"},
            "spec": {"replicas": 10_000, "selector": {"matchLabels": {"a": "1"}}}}))
            .unwrap();
        sets.manage(&key_of(&set), &set, &[]).await;
        api.written().iter().filter(|asked| asked.path == "/api/v1/namespaces/d/pods").count()
    }

    #[tokio::test]
    async fn a_set_of_very_many_pods_asks_for_no_more_than_a_burst_in_a_pass() {
        assert_eq!(asked_for(|_| Some(json!({"metadata": {"name": "p"}}))).await, BURST);
    }

    #[tokio::test]
    async fn a_set_whose_pods_are_refused_asks_once() {
        assert_eq!(asked_for(|_| None).await, 1);
    }
}
