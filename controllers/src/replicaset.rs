//! ReplicaSets, and ReplicationControllers, their forerunner: as many pods as the spec says.
//!
//! One engine runs both. It sees a ReplicationController as the ReplicaSet that it might be.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    ReplicationController, ReplicationControllerCondition, ReplicationControllerSpec,
    ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use skiff_client::view::Pod;
use skiff_client::{Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine, is_terminating};
use crate::objects::{is_active, says_same, status_patch};
use crate::owned_pods::{OwnedPods, PodOwner, new_pod};

mod plan;

use plan::Failure;

/// Pods made or deleted in one pass: upstream's burst.
const BURST: usize = 500;

/// What the engine runs.
pub(crate) trait Replicated: PodOwner {
    const NAME: &'static str;

    fn as_set(&self) -> Cow<'_, ReplicaSet>;

    /// Without what the kind's own status has no field for.
    fn own_status(status: ReplicaSetStatus) -> ReplicaSetStatus {
        status
    }
}

impl PodOwner for ReplicaSet {
    const COMPONENT: &'static str = "replicaset-controller";

    fn selector(&self) -> Option<Cow<'_, LabelSelector>> {
        Some(Cow::Borrowed(&self.spec.selector))
    }

    fn adopts(pod: &Pod) -> bool {
        is_active(pod)
    }
}

impl Replicated for ReplicaSet {
    const NAME: &'static str = "replicaset";

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }
}

impl PodOwner for ReplicationController {
    const COMPONENT: &'static str = "replication-controller";

    fn selector(&self) -> Option<Cow<'_, LabelSelector>> {
        let labels = self.spec.as_ref()?.selector.clone();
        Some(Cow::Owned(LabelSelector { match_labels: labels, match_expressions: None }))
    }

    fn adopts(pod: &Pod) -> bool {
        is_active(pod)
    }
}

impl Replicated for ReplicationController {
    const NAME: &'static str = "replicationcontroller";

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        let spec = |spec: &ReplicationControllerSpec| ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: spec.replicas,
            selector: LabelSelector { match_labels: spec.selector.clone(), match_expressions: None },
            template: spec.template.clone(),
        };
        Cow::Owned(ReplicaSet {
            metadata: self.metadata.clone(),
            spec: self.spec.as_ref().map(spec).unwrap_or_default(),
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
        status: Some(c.status.clone()),
        type_: Some(c.type_.clone()),
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
    pods: OwnedPods<K>,
    queue: WorkQueue<ObjectKey>,
}

impl<K: Replicated> ReplicaSets<K> {
    pub(crate) fn new(context: &Context) -> Self {
        let (sets, queue) = (context.informers.of::<K>(), WorkQueue::default());
        let wake = queue.clone();
        sets.on_change(move |change| {
            if let Some(set) = change.object() {
                wake.add(key_of(&**set));
            }
        });
        let pods = OwnedPods::new(context, &sets, &queue);
        ReplicaSets { client: context.client.clone(), sets, pods, queue }
    }

    /// Makes or deletes pods. Answers the first failure.
    async fn manage(&self, set: &K, pods: &[Arc<Pod>]) -> Option<Failure> {
        let as_set = set.as_set();
        let wanted = usize::try_from(replicas(&as_set)).unwrap_or(0);
        let active: Vec<&Arc<Pod>> = pods.iter().filter(|p| is_active(p)).collect();
        if active.len() < wanted {
            let template = as_set.spec.template.clone().unwrap_or_default();
            let pod = new_pod(set, template);
            let error = self.pods.make(set, (wanted - active.len()).min(BURST), |_| pod.clone()).await?;
            return Some(Failure { reason: "FailedCreate", error });
        }
        let surplus = (active.len() - wanted).min(BURST);
        let going: Vec<_> =
            plan::to_delete(&active, surplus, Timestamp::now()).into_iter().cloned().collect();
        let error = self.pods.delete(set, &going).await?;
        Some(Failure { reason: "FailedDelete", error })
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
        if !says_same::<ReplicaSet, _>(set.status.as_ref(), &status) {
            let api: Api<K> = Api::namespaced(self.client.clone(), &key.namespace);
            let patch = status_patch(&set.metadata, &status, set.status.as_ref());
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
        self.pods.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(set) = self.sets.get(key) else {
            self.pods.forget(key);
            return Ok(Outcome::Done);
        };
        let pods = self.pods.claim(&*set).await?;
        let mut failure = None;
        let settled = self.pods.is_settled(key);
        if settled && set.meta().deletion_timestamp.is_none() {
            failure = self.manage(&set, &pods).await;
        }
        let outcome = self.write_status(key, &set, &pods, failure.as_ref()).await?;
        match failure {
            Some(failure) if !is_terminating(&failure.error) => Err(failure.error),
            _ if !settled => Ok(Outcome::After(OwnedPods::<K>::PATIENCE)),
            _ => Ok(outcome),
        }
    }
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::testing::{Asked, ScriptedApi, discovery};

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
        let spec = &set.spec;
        assert_eq!(replicas(&set), 2);
        assert_eq!(Some(Cow::Borrowed(&spec.selector)), controller.selector());
        assert_eq!(spec.selector.match_labels.as_ref().unwrap()["app"], "a");
        assert_eq!(set.status.as_ref().unwrap().ready_replicas, Some(1));
        let pod = new_pod(&controller, spec.template.clone().unwrap());
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
        let sets = ReplicaSets::<ReplicaSet>::new(&Context::new(api.credentials(), informers, discovery()));
        shutdown.cancel();
        let set: ReplicaSet =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "d", "uid": "u"},
            "spec": {"replicas": 10_000, "selector": {"matchLabels": {"a": "1"}}}}))
            .unwrap();
        sets.manage(&set, &[]).await;
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
