//! Pods of one kind of owner: found, taken, let go, made and deleted. What was done and is not yet seen is kept in mind.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{self as core, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, Resource};
use skiff_client::view::Pod;
use skiff_client::{EventRecorder, EventType, Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::claiming::{self, Namespaced};
use crate::driver::{is_not_found, is_terminating, text};
use crate::history::REVISION_HASH;
use crate::lookup::{Pods, Selecting};
use crate::making::{Making, batches};
use crate::objects::{Selector, controller_key, controller_of, controller_reference, selects, uid};

mod pending;

use pending::Pending;

/// What owns pods.
pub(crate) trait PodOwner: Namespaced {
    /// Who its events are from.
    const COMPONENT: &'static str;

    /// The label of its revisions that has their hash, if it keeps any.
    const REVISION_LABEL: &'static str = REVISION_HASH;

    /// `None` where it owns nothing.
    fn selector(&self) -> Option<Cow<'_, LabelSelector>>;

    /// Whether a pod that it selects can be its own.
    fn may_own(&self, _pod: &Pod) -> bool {
        true
    }

    /// Whether it takes a pod that it selects and that nobody controls.
    fn adopts(pod: &Pod) -> bool {
        pod.metadata.deletion_timestamp.is_none()
    }
}

pub(crate) struct OwnedPods<K> {
    client: Client,
    pods: Pods,
    making: Making,
    events: EventRecorder,
    pending: Arc<Pending>,
    of: PhantomData<fn(K)>,
}

impl<K: PodOwner> OwnedPods<K> {
    /// How long to wait for what was done to be seen.
    pub(crate) const PATIENCE: Duration = pending::PATIENCE;

    /// Puts an owner into `queue` whenever a pod changes that is its own or that it may take.
    pub(crate) fn new(context: &Context, owners: &Informer<K>, queue: &WorkQueue<ObjectKey>) -> Self {
        let pending = Arc::new(Pending::default());
        let kind = K::kind(&()).into_owned();
        let selecting = Selecting::new(owners, |owner: &K| owner.selector().map(Cow::into_owned));
        let (wake, seen) = (queue.clone(), pending.clone());
        context.pods.all().on_change(move |change| {
            let newest = change.object().and_then(|pod| controller_key(&pod.metadata, &kind));
            if let Some(owner) = newest {
                seen.seen(&owner, change);
            }
            for pod in [&change.old, &change.new].into_iter().flatten() {
                if let Some(owner) = controller_key(&pod.metadata, &kind) {
                    wake.add(owner);
                } else if controller_of(&pod.metadata).is_none() {
                    // An orphan may be for any owner that selects it.
                    let selects = |owner: &K| owner.selector().is_some_and(|s| selects(&s, &pod.metadata));
                    let candidates = selecting.of(&pod.metadata, selects);
                    candidates.iter().for_each(|owner| wake.add(key_of(&**owner)));
                }
            }
        });
        OwnedPods {
            client: context.client.clone(),
            pods: context.pods.clone(),
            making: context.making.clone(),
            events: context.events(K::COMPONENT),
            pending,
            of: PhantomData,
        }
    }

    pub(crate) async fn synced(&self) {
        self.pods.all().synced().await;
    }

    pub(crate) fn all(&self) -> &Pods {
        &self.pods
    }

    pub(crate) fn events(&self) -> &EventRecorder {
        &self.events
    }

    /// Whether everything that was done has been seen: until then, counting pods counts wrong.
    pub(crate) fn is_settled(&self, owner: &ObjectKey) -> bool {
        self.pending.is_settled(owner)
    }

    /// The owner is gone.
    pub(crate) fn forget(&self, owner: &ObjectKey) {
        self.pending.forget(owner);
    }

    /// The owner's pods: those it controls, and orphans that it adopts. Those that match no more are let go.
    pub(crate) async fn claim(&self, owner: &K) -> Result<Vec<Arc<Pod>>, kube::Error> {
        let Some(asked) = owner.selector() else { return Ok(Vec::new()) };
        let key = key_of(owner);
        let selector = Selector::new(&asked);
        let own = self.pods.of_controller(&K::kind(&()), &key);
        let candidates = own.into_iter().chain(self.pods.orphans(&key.namespace, &asked));
        let is_its_own = |pod: &Pod| selector.selects(&pod.metadata) && owner.may_own(pod);
        claiming::claim(&self.client, owner, candidates, is_its_own, K::adopts).await
    }

    /// Deletes pods, and answers the first failure.
    pub(crate) async fn delete(&self, owner: &K, pods: &[Arc<Pod>]) -> Option<kube::Error> {
        let deletions: Vec<_> = pods.iter().map(|pod| self.delete_one(owner, pod)).collect();
        self.making.all(deletions).await.into_iter().find_map(Result::err)
    }

    async fn delete_one(&self, owner: &K, pod: &Pod) -> Result<(), kube::Error> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match self.end(owner, pod).await {
            Ok(()) => {
                let message = format!("Deleted pod: {name}");
                self.events.event(owner, EventType::Normal, "SuccessfulDelete", &message);
                Ok(())
            }
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => {
                let message = format!("Error deleting: {}", text(&error));
                self.events.event(owner, EventType::Warning, "FailedDelete", &message);
                Err(error)
            }
        }
    }

    /// Deletes one pod, and leaves it to the caller to tell of it.
    pub(crate) async fn end(&self, owner: &K, pod: &Pod) -> Result<(), kube::Error> {
        let key = key_of(owner);
        let (name, uid) = (pod.metadata.name.as_deref().unwrap_or_default(), uid(&pod.metadata));
        self.pending.expect_end(&key, uid);
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let ended = self.api(&key).delete(name, &params).await;
        if ended.is_err() {
            self.pending.end_failed(&key, uid);
        }
        ended.map(drop)
    }

    /// Makes one pod, and leaves it to the caller to tell of it.
    pub(crate) async fn make_one(&self, owner: &K, pod: &core::Pod) -> Result<(), kube::Error> {
        let key = key_of(owner);
        self.pending.expect_pods(&key, 1);
        let made = self.new_in(&key).create(&PostParams::default(), pod).await;
        if made.is_err() {
            self.pending.pod_failed(&key);
        }
        made.map(drop)
    }

    fn api(&self, owner: &ObjectKey) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &owner.namespace)
    }

    fn new_in(&self, owner: &ObjectKey) -> Api<core::Pod> {
        Api::namespaced(self.client.clone(), &owner.namespace)
    }

    /// Makes so many pods, the n-th as `pod` says, in batches that double, so that an owner whose pods are refused does
    /// not flood the API. Answers the failure that ended it.
    pub(crate) async fn make(
        &self,
        owner: &K,
        count: usize,
        pod: impl Fn(usize) -> core::Pod,
    ) -> Option<kube::Error> {
        let key = key_of(owner);
        let api = self.new_in(&key);
        let params = PostParams::default();
        let mut from = 0;
        for batch in batches(count) {
            // Before they are asked for: the watch may be faster than the answer.
            self.pending.expect_pods(&key, batch);
            let pods: Vec<core::Pod> = (from..from + batch).map(&pod).collect();
            from += batch;
            let made = self.making.all(pods.iter().map(|pod| api.create(&params, pod)).collect()).await;
            let mut failed = None;
            for result in made {
                match result {
                    Ok(pod) => {
                        let message = format!("Created pod: {}", pod.metadata.name.unwrap_or_default());
                        self.events.event(owner, EventType::Normal, "SuccessfulCreate", &message);
                    }
                    Err(error) => {
                        self.pending.pod_failed(&key);
                        failed = Some(error);
                    }
                }
            }
            if let Some(error) = failed {
                if !is_terminating(&error) {
                    let message = format!("Error creating: {}", text(&error));
                    self.events.event(owner, EventType::Warning, "FailedCreate", &message);
                }
                return Some(error);
            }
        }
        None
    }
}

/// A pod of an owner's template.
pub(crate) fn new_pod<K: Resource<DynamicType = ()>>(owner: &K, template: PodTemplateSpec) -> core::Pod {
    let meta = template.metadata.unwrap_or_default();
    core::Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.meta().name.as_deref().unwrap_or_default())),
            namespace: owner.meta().namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}
