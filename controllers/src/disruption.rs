//! PodDisruptionBudgets: how many of their pods may go. [`stale`] looks after pods that were to go and did not.
//!
//! The API server takes from what is written here when it evicts, and notes the pod in `disruptedPods`; the write of
//! either fails if the other was faster.
//!
//! Source: upstream's disruption controller.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::{Api, Client};
use skiff_client::view::Pod;
use skiff_client::{Discovery, EventRecorder, EventType, Informer, ObjectKey, Read, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine, is_not_found, text};
use crate::lookup::{Pods, Selecting, required};
use crate::objects::{Selector, controller_of, says_same, uid};

mod plan;
pub(crate) mod stale;

use plan::Scale;

pub(crate) struct Budgets {
    client: Client,
    budgets: Informer<PodDisruptionBudget>,
    pods: Pods,
    sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    discovery: Discovery,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
}

/// Why there is no telling how many pods there should be.
#[derive(Debug, thiserror::Error)]
enum CountError {
    #[error("found no controllers for pod {0:?}")]
    NoController(String),
    #[error("{0} does not implement the scale subresource")]
    NoScale(String),
    #[error("{}", text(.0))]
    Api(#[from] kube::Error),
}

impl Budgets {
    pub(crate) fn new(context: &Context) -> Self {
        let informers = &context.informers;
        let budgets = informers.of::<PodDisruptionBudget>();
        let queue = WorkQueue::default();
        let wake = queue.clone();
        budgets.on_change(move |change| {
            if let Some(budget) = &change.new {
                wake.add(key_of(&**budget));
            }
        });
        let selecting = Selecting::new(&budgets, |budget| plan::selector(budget).cloned());
        let wake = queue.clone();
        context.pods.all().on_change(move |change| {
            if change.old.as_deref().map(plan::seen) == change.new.as_deref().map(plan::seen) {
                return;
            }
            for pod in [&change.old, &change.new].into_iter().flatten() {
                let matching = selecting.of(&pod.metadata, |budget| plan::selects(budget, &pod.metadata));
                matching.iter().for_each(|budget| wake.add(key_of(&**budget)));
            }
        });
        Budgets {
            client: context.client.clone(),
            budgets,
            pods: context.pods.clone(),
            sets: informers.of(),
            deployments: informers.of(),
            discovery: context.discovery.clone(),
            events: context.events("controllermanager"),
            queue,
        }
    }

    /// How many pods those that control these should have, together; and the pods that nothing controls.
    async fn scale_of(&self, namespace: &str, pods: &[Arc<Pod>]) -> Result<Scale, CountError> {
        let mut scale = Scale::default();
        let mut by_controller: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let Some(owner) = controller_of(&pod.metadata) else {
                scale.unmanaged.push(name);
                continue;
            };
            if by_controller.contains_key(&owner.uid) {
                continue;
            }
            let found = self.replicas_of(namespace, owner).await?;
            let (uid, replicas) = found.ok_or(CountError::NoController(name))?;
            by_controller.insert(owner.uid.clone(), 0);
            // A Deployment stands for all of its ReplicaSets, and is counted once.
            by_controller.insert(uid, replicas);
        }
        scale.expected = by_controller.values().fold(0, |sum: i32, replicas| sum.saturating_add(*replicas));
        Ok(scale)
    }

    /// The uid and size of what controls a pod, or of what controls that in turn; `None` if it is not there.
    async fn replicas_of(
        &self,
        namespace: &str,
        owner: &OwnerReference,
    ) -> Result<Option<(String, i32)>, CountError> {
        let key = |name: &str| ObjectKey::new(namespace, name);
        let (group, _) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => {
                let set = self.sets.get(&key(&owner.name)).filter(|set| uid(&set.metadata) == owner.uid);
                let Some(set) = set else { return Ok(None) };
                let above = controller_of(&set.metadata).filter(|o| o.kind == "Deployment");
                if let Some(above) = above {
                    let deployment = self.deployments.get(&key(&above.name));
                    let deployment = deployment.filter(|d| uid(&d.metadata) == above.uid);
                    return Ok(deployment.map(|d| (above.uid.clone(), d.spec.replicas.unwrap_or(1))));
                }
                Ok(Some((owner.uid.clone(), set.spec.replicas.unwrap_or(1))))
            }
            ("", "ReplicationController") => {
                let api: Api<ReplicationController> = Api::namespaced(self.client.clone(), namespace);
                let found = api.get_opt(&owner.name).await?.filter(|c| uid(&c.metadata) == owner.uid);
                Ok(found.map(|c| (owner.uid.clone(), c.spec.and_then(|s| s.replicas).unwrap_or(1))))
            }
            ("apps", "StatefulSet") => {
                let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), namespace);
                let found = api.get_opt(&owner.name).await?.filter(|s| uid(&s.metadata) == owner.uid);
                Ok(found.map(|s| (owner.uid.clone(), s.spec.replicas.unwrap_or(1))))
            }
            _ => self.scale_subresource_of(namespace, owner).await,
        }
    }

    async fn scale_subresource_of(
        &self,
        namespace: &str,
        owner: &OwnerReference,
    ) -> Result<Option<(String, i32)>, CountError> {
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        let resources = self.discovery.known().await;
        let Some(kind) = resources.by_kind(group, version, &owner.kind) else { return Ok(None) };
        if !kind.has_subresource("scale") {
            let dot = if group.is_empty() { "" } else { "." };
            return Err(CountError::NoScale(format!("{}{dot}{group}", kind.plural)));
        }
        let described: ApiResource = kind.described();
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &described);
        match api.get_scale(&owner.name).await {
            Ok(scale) => {
                let replicas = scale.spec.and_then(|s| s.replicas).unwrap_or(0);
                Ok((scale.metadata.uid.as_deref() == Some(&owner.uid)).then(|| (owner.uid.clone(), replicas)))
            }
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn tell(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>], scale: &Scale) {
        if pods.is_empty() {
            self.events.event(budget, EventType::Normal, "NoPods", "No matching pods found");
        }
        if !scale.unmanaged.is_empty() {
            let message = "Pods selected by this PodDisruptionBudget were found to be unmanaged. As a result, the \
                           status of the PDB cannot be calculated correctly, which may result in undefined behavior. \
                           To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer \
                           value.";
            self.events.event(budget, EventType::Warning, "UnmanagedPods", message);
        }
    }
}

impl Controller for Budgets {
    const NAME: &'static str = "disruption";
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.budgets.synced().await;
        self.pods.all().synced().await;
        self.sets.synced().await;
        self.deployments.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(budget) = self.budgets.get(key) else { return Ok(Outcome::Done) };
        let pods = match plan::selector(&budget) {
            Some(asked) => {
                let selector = Selector::or_all(asked);
                let selects = |pod: &Pod| selector.selects(&pod.metadata);
                self.pods.labelled(&key.namespace, &required(asked), selects)
            }
            None => Vec::new(),
        };
        let counted = if plan::needs_scale(&budget) {
            self.scale_of(&key.namespace, &pods).await
        } else {
            Ok(Scale { expected: i32::try_from(pods.len()).unwrap_or(i32::MAX), unmanaged: Vec::new() })
        };
        let now = Timestamp::now();
        let (status, recheck_s) = match &counted {
            Ok(scale) => {
                self.tell(&budget, &pods, scale);
                plan::status(&budget, &pods, scale.expected, now)
            }
            Err(error) => {
                let message = format!("Failed to calculate the number of expected pods: {error}");
                self.events.event(&*budget, EventType::Warning, "CalculateExpectedPodCountFailed", &message);
                (plan::failed(&budget, &error.to_string(), now), None)
            }
        };
        if !says_same::<PodDisruptionBudget, _>(budget.status.as_ref(), &status) {
            let api: Api<Read<PodDisruptionBudget>> = Api::namespaced(self.client.clone(), &key.namespace);
            let written = Read(PodDisruptionBudget { status: Some(status), ..(*budget).clone() });
            gone_is_fine(api.replace_status(&key.name, &PostParams::default(), &written).await)?;
        }
        match (counted, recheck_s) {
            (Err(CountError::Api(error)), _) => Err(error),
            (_, Some(seconds)) => Ok(Outcome::After(Duration::from_secs(seconds.max(1)))),
            _ => Ok(Outcome::Done),
        }
    }
}
