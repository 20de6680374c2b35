//! StatefulSets: pods that are somebody, each with a name, a number and storage of its own.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use skiff_client::view::Pod;
use skiff_client::{Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine};
use crate::history::{self, Histories, Made};
use crate::making::{Making, batches};
use crate::objects::status_patch;
use crate::owned_pods::{OwnedPods, PodOwner};

mod claims;
mod identity;
mod plan;
mod pods;
mod waiting;

use identity::{Revision, is_member};
use plan::{Facts, Plan, Step};
use pods::{StatefulPods, StepError};
use waiting::Waiting;

/// When to look again for a claim that has to go.
const CLAIM_MAY_BE_GONE: Duration = Duration::from_secs(5);
/// How many revisions whose names other templates have taken are tried one after the other.
const MAX_COLLISIONS: i32 = 100;

impl PodOwner for StatefulSet {
    const COMPONENT: &'static str = "statefulset-controller";
    const REVISION_LABEL: &'static str = "controller.kubernetes.io/hash";

    fn selector(&self) -> Option<Cow<'_, LabelSelector>> {
        Some(Cow::Borrowed(&self.spec.selector))
    }

    fn may_own(&self, pod: &Pod) -> bool {
        is_member(self, pod)
    }
}

pub(crate) struct StatefulSets {
    client: Client,
    sets: Informer<StatefulSet>,
    claims: Informer<PersistentVolumeClaim>,
    pods: StatefulPods,
    histories: Histories,
    making: Making,
    waiting: Arc<Waiting>,
    queue: WorkQueue<ObjectKey>,
}

/// The revision that pods come from, the one that they come to, and all that were known before.
struct Revisions {
    current: Arc<ControllerRevision>,
    update: Arc<ControllerRevision>,
    all: Vec<Arc<ControllerRevision>>,
    n_collisions: i32,
}

impl StatefulSets {
    pub(crate) fn new(context: &Context) -> Self {
        let (sets, queue) = (context.informers.of::<StatefulSet>(), WorkQueue::default());
        let wake = queue.clone();
        sets.on_change(move |change| {
            if let Some(set) = change.object() {
                wake.add(key_of(&**set));
            }
        });
        let claims = context.informers.of::<PersistentVolumeClaim>();
        let waiting = Arc::new(Waiting::default());
        let (wake, waits) = (queue.clone(), waiting.clone());
        claims.on_change(move |change| {
            if let Some(claim) = change.object() {
                waits.take(&key_of(&**claim)).into_iter().for_each(|set| wake.add(set));
            }
        });
        let pods = StatefulPods::new(context, &sets, &claims, &queue);
        let histories = Histories::new(context);
        let (client, making) = (context.client.clone(), context.making.clone());
        StatefulSets { client, sets, claims, pods, histories, making, waiting, queue }
    }

    /// `None` where a set on its way out has none of its own left.
    async fn revisions(
        &self,
        set: &StatefulSet,
        spec: &StatefulSetSpec,
    ) -> Result<Option<Revisions>, kube::Error> {
        let snapshot = history::snapshot(&spec.template);
        let all = self.histories.of(set).await?;
        let last = all.last();
        let next = last.and_then(|revision| revision.revision).unwrap_or(0).saturating_add(1);
        let mut n_collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let same = all.iter().rfind(|revision| history::is_of(revision, &snapshot));
        let unchanged = last.filter(|last| history::is_of(last, &snapshot));
        let rewritten = last.filter(|last| plan::means_the_same(last, &snapshot));
        let update = match (unchanged, same, rewritten) {
            (Some(unchanged), _, _) => unchanged.clone(),
            (None, Some(same), _) => self.histories.renumber(set, same, next).await?,
            (None, None, Some(rewritten)) => rewritten.clone(),
            (None, None, None) if set.metadata.deletion_timestamp.is_some() => return Ok(None),
            (None, None, None) => loop {
                match self.histories.make(set, &spec.template, n_collisions, next).await? {
                    Made::Revision(made) => break made,
                    Made::Collision(error) if n_collisions >= MAX_COLLISIONS => return Err(error),
                    Made::Collision(_) => n_collisions += 1,
                }
            },
        };
        let current = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
        let is_current = |revision: &&Arc<ControllerRevision>| revision.metadata.name.as_deref() == current;
        let current = all.iter().find(is_current).unwrap_or(&update).clone();
        Ok(Some(Revisions { current, update, all, n_collisions }))
    }

    /// Does what was planned. Answers how many of the outdated pods are deleted, and what ended it before all was
    /// done.
    async fn apply(
        &self,
        set: &StatefulSet,
        plan: &Plan,
        is_parallel: bool,
    ) -> (usize, Result<(), StepError>) {
        let done = self.apply_but_rollout(set, plan, is_parallel).await;
        if done.is_err() {
            return (0, done);
        }
        for (n_gone, pod) in plan.outdated.iter().enumerate() {
            if let Err(error) = self.pods.delete(set, pod).await {
                return (n_gone, Err(error));
            }
        }
        (plan.outdated.len(), Ok(()))
    }

    async fn apply_but_rollout(
        &self,
        set: &StatefulSet,
        plan: &Plan,
        is_parallel: bool,
    ) -> Result<(), StepError> {
        let wanted = plan.wanted.iter().map(|steps| self.take_all(set, steps)).collect();
        self.each(wanted, is_parallel).await?;
        let disowned = plan.disowned.iter().map(|pod| self.pods.settle_claims(set, pod)).collect();
        self.each(disowned, is_parallel).await?;
        let surplus = plan.surplus.iter().map(|pod| self.pods.delete(set, pod)).collect();
        self.each(surplus, is_parallel).await
    }

    async fn take_all(&self, set: &StatefulSet, steps: &[Step]) -> Result<(), StepError> {
        for step in steps {
            self.pods.take(set, step).await?;
        }
        Ok(())
    }

    /// One after the other; in parallel sets in batches that double. The first failure ends it.
    async fn each<F>(&self, calls: Vec<F>, is_parallel: bool) -> Result<(), StepError>
    where
        F: Future<Output = Result<(), StepError>>,
    {
        let sizes: Vec<usize> = match is_parallel {
            true => batches(calls.len()).collect(),
            false => vec![1; calls.len()],
        };
        let mut calls = calls.into_iter();
        for size in sizes {
            let batch: Vec<F> = calls.by_ref().take(size).collect();
            self.making.all(batch).await.into_iter().collect::<Result<(), StepError>>()?;
        }
        Ok(())
    }

    /// Wakes the set when one of the claims has gone, or has changed.
    fn await_claims(&self, set: &ObjectKey, claims: &[String]) {
        self.waiting.forget(set);
        for claim in claims {
            let claim = ObjectKey::new(&set.namespace, claim);
            self.waiting.add(claim.clone(), set.clone());
            if self.claims.get(&claim).is_none() {
                self.queue.add(set.clone());
            }
        }
    }

    async fn write_status(&self, set: &StatefulSet, status: &StatefulSetStatus) -> Result<(), kube::Error> {
        if !plan::is_news(status, set.status.as_ref()) {
            return Ok(());
        }
        let key = key_of(set);
        let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = status_patch(&set.metadata, status, set.status.as_ref());
        gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await)
    }

    async fn clean_up(
        &self,
        set: &StatefulSet,
        revisions: &Revisions,
        pods: &[Arc<Pod>],
    ) -> Result<(), kube::Error> {
        let live = [&revisions.current, &revisions.update].map(|revision| identity::name(&revision.metadata));
        for revision in plan::surplus_revisions(set, &revisions.all, pods, live) {
            self.histories.delete(set, &revision).await?;
        }
        Ok(())
    }
}

impl Controller for StatefulSets {
    const NAME: &'static str = "statefulset";
    const WORKERS: usize = 5;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.sets.synced().await;
        self.claims.synced().await;
        self.pods.owned().synced().await;
        self.histories.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(set) = self.sets.get(key) else {
            self.pods.owned().forget(key);
            self.waiting.forget(key);
            return Ok(Outcome::Done);
        };
        if !self.pods.owned().is_settled(key) {
            return Ok(Outcome::After(OwnedPods::<StatefulSet>::PATIENCE));
        }
        let spec = &set.spec;
        let Some(revisions) = self.revisions(&set, spec).await? else { return Ok(Outcome::Done) };
        let pods = self.pods.owned().claim(&set).await?;
        let claim = |name: &str| self.pods.claim(&set, name);
        let facts = Facts {
            set: &set,
            current: &Revision::new(&set, &revisions.current),
            update: &Revision::new(&set, &revisions.update),
            n_collisions: revisions.n_collisions,
            pods: &pods,
            claims: &claim,
            now: Timestamp::now(),
        };
        // A set on its way out only counts its pods.
        let plan = match set.metadata.deletion_timestamp {
            Some(_) => Plan::default(),
            None => facts.plan(),
        };
        self.await_claims(key, &plan.awaited);
        let (n_outdated_gone, applied) = self.apply(&set, &plan, facts.is_parallel()).await;
        let status = facts.status(n_outdated_gone);
        let written = self.write_status(&set, &status).await;
        let cleaned = self.clean_up(&set, &revisions, &pods).await;
        // One that began to go during the pass was not waited for.
        let awaits_claim = applied.as_ref().is_err_and(StepError::awaits_claim).then_some(CLAIM_MAY_BE_GONE);
        if let Some(error) = applied.err().and_then(StepError::retry) {
            return Err(error);
        }
        written.and(cleaned)?;
        let next = facts.look_again_in_s(&status).and_then(|s| u64::try_from(s).ok());
        let next = next.map(|seconds| Duration::from_secs(seconds.max(1)));
        Ok([next, awaits_claim].into_iter().flatten().min().map_or(Outcome::Done, Outcome::After))
    }
}
