//! DaemonSets: one pod on every node that the set is for.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::view::Pod;
use skiff_client::{Change, EventType, Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine, is_terminating};
use crate::history::{self, Histories, Made, REVISION_HASH, hash_of};
use crate::lookup::Pods;
use crate::objects::{controller_key, says_same, status_patch};
use crate::owned_pods::{OwnedPods, PodOwner, new_pod};

mod backoff;
mod plan;

use backoff::Backoffs;
use plan::{Changes, Facts, Verdict};

/// Pods made, and pods deleted, in one pass: upstream's burst.
const BURST: usize = 250;

impl PodOwner for DaemonSet {
    const COMPONENT: &'static str = "daemonset-controller";

    fn selector(&self) -> Option<Cow<'_, LabelSelector>> {
        Some(Cow::Borrowed(&self.spec.selector))
    }
}

pub(crate) struct DaemonSets {
    client: Client,
    sets: Informer<DaemonSet>,
    nodes: Informer<Node>,
    pods: OwnedPods<DaemonSet>,
    histories: Histories,
    queue: WorkQueue<ObjectKey>,
    backoffs: Mutex<HashMap<ObjectKey, Backoffs>>,
}

/// The revision that is current, and the others.
struct Revisions {
    current: Arc<ControllerRevision>,
    old: Vec<Arc<ControllerRevision>>,
}

impl DaemonSets {
    pub(crate) fn new(context: &Context) -> Self {
        let (sets, nodes) = (context.informers.of::<DaemonSet>(), context.informers.of::<Node>());
        let queue = WorkQueue::default();
        let wake = queue.clone();
        sets.on_change(move |change| {
            if let Some(set) = change.object() {
                wake.add(key_of(&**set));
            }
        });
        let pods = OwnedPods::new(context, &sets, &queue);
        let (wake, all, known) = (queue.clone(), pods.all().clone(), sets.clone());
        nodes.on_change(move |change| {
            if is_of_interest(&change.old, &change.new) {
                concerned(change, &known, &all).into_iter().for_each(|set| wake.add(set));
            }
        });
        let histories = Histories::new(context);
        let client = context.client.clone();
        DaemonSets { client, sets, nodes, pods, histories, queue, backoffs: Mutex::default() }
    }

    /// The revision of the set's template, made if there is none, and the others.
    async fn revisions(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        template: &PodTemplateSpec,
    ) -> Result<Revisions, kube::Error> {
        let snapshot = history::snapshot(template);
        let all = self.histories.of(set).await?;
        let (mut same, old): (Vec<_>, Vec<_>) = all.into_iter().partition(|r| history::is_of(r, &snapshot));
        let number = old.iter().filter_map(|revision| revision.revision).max().unwrap_or(0).saturating_add(1);
        let Some(current) = same.pop() else {
            let n_collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
            return match self.histories.make(set, template, n_collisions, number).await? {
                Made::Revision(current) => Ok(Revisions { current, old }),
                Made::Collision(error) => {
                    let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), &key.namespace);
                    let patch = json!({"metadata": {"resourceVersion": set.metadata.resource_version},
                        "status": {"collisionCount": n_collisions.saturating_add(1)}});
                    sets.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
                    Err(error)
                }
            };
        };
        if !same.is_empty() {
            self.relabel(set, hash_of(&current)).await?;
        }
        for duplicate in same {
            self.histories.delete(set, &duplicate).await?;
        }
        let current = match current.revision.unwrap_or(0) < number {
            true => self.histories.renumber(set, &current, number).await?,
            false => current,
        };
        Ok(Revisions { current, old })
    }

    /// Makes all pods those of one of several revisions of the same template.
    async fn relabel(&self, set: &DaemonSet, hash: &str) -> Result<(), kube::Error> {
        let key = key_of(set);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        for pod in self.pods.claim(set).await? {
            let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_HASH));
            if label.is_none_or(|label| label != hash) {
                let patch = json!({"metadata": {"uid": pod.metadata.uid, "labels": {REVISION_HASH: hash}}});
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                gone_is_fine(api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
            }
        }
        Ok(())
    }

    /// Makes and deletes pods, and answers the first failure.
    async fn apply(
        &self,
        set: &DaemonSet,
        template: &PodTemplateSpec,
        hash: &str,
        changes: &Changes,
    ) -> Result<(), kube::Error> {
        for (kind, reason, message) in &changes.events {
            self.pods.events().event(set, *kind, reason, message);
        }
        let make = &changes.make[..changes.make.len().min(BURST)];
        let pod = |at: usize| new_pod(set, plan::template_for(template, set, hash, &make[at]));
        let made = self.pods.make(set, make.len(), pod).await;
        let delete = &changes.delete[..changes.delete.len().min(BURST)];
        let deleted = self.pods.delete(set, delete).await;
        made.filter(|error| !is_terminating(error)).or(deleted).map_or(Ok(()), Err)
    }

    /// Deletes the oldest revisions that no pod is of, as far as there are more than the history keeps.
    async fn clean_up(
        &self,
        set: &DaemonSet,
        old: &[Arc<ControllerRevision>],
        pods: &[Arc<Pod>],
    ) -> Result<(), kube::Error> {
        let keep = set.spec.revision_history_limit.unwrap_or(10);
        let n_surplus = old.len().saturating_sub(usize::try_from(keep).unwrap_or(0));
        let label = |pod: &Arc<Pod>| pod.metadata.labels.as_ref()?.get(REVISION_HASH).cloned();
        let live: HashSet<String> = pods.iter().filter_map(label).collect();
        for revision in old.iter().filter(|revision| !live.contains(hash_of(revision))).take(n_surplus) {
            self.histories.delete(set, revision).await?;
        }
        Ok(())
    }

    async fn write_status(
        &self,
        facts: &Facts<'_>,
        is_processed: bool,
    ) -> Result<Option<Duration>, kube::Error> {
        let (status, next_available_s) = facts.status(is_processed);
        if !says_same::<DaemonSet, _>(facts.set.status.as_ref(), &status) {
            let key = key_of(facts.set);
            let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), &key.namespace);
            let patch = status_patch(&facts.set.metadata, &status, facts.set.status.as_ref());
            gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
        }
        Ok(next_available_s.map(|seconds| Duration::from_secs(seconds.max(1))))
    }

    fn manage(&self, key: &ObjectKey, facts: &Facts<'_>) -> Changes {
        let mut all = self.backoffs.lock();
        let backoffs = all.entry(key.clone()).or_default();
        backoffs.refresh(facts.set.metadata.generation);
        facts.manage(backoffs)
    }
}

/// Whether a set may be for a node now for which it was not before, or the other way round.
fn is_of_interest(old: &Option<Arc<Node>>, new: &Option<Arc<Node>>) -> bool {
    let facts = |node: &Arc<Node>| {
        (node.metadata.labels.clone(), node.spec.as_ref().and_then(|spec| spec.taints.clone()))
    };
    old.as_ref().map(facts) != new.as_ref().map(facts)
}

/// The sets that must look at a node that has come, gone or changed.
fn concerned(change: &Change<Node>, sets: &Informer<DaemonSet>, pods: &Pods) -> Vec<ObjectKey> {
    let name = change.object().and_then(|node| node.metadata.name.as_deref()).unwrap_or_default();
    let on_it = pods.on_node(name);
    let there: HashSet<ObjectKey> =
        on_it.iter().filter_map(|pod| controller_key(&pod.metadata, "DaemonSet")).collect();
    let thinks_otherwise = |set: &DaemonSet| {
        let template = plan::template(set).spec.unwrap_or_default();
        let verdict = |node: &Option<Arc<Node>>| node.as_ref().map(|node| plan::verdict(&template, node));
        verdict(&change.old) != verdict(&change.new)
    };
    let sets = sets.filter(|key, set| there.contains(key) || thinks_otherwise(set));
    sets.iter().map(|set| key_of(&**set)).collect()
}

impl Controller for DaemonSets {
    const NAME: &'static str = "daemonset";
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.sets.synced().await;
        self.nodes.synced().await;
        self.pods.synced().await;
        self.histories.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(set) = self.sets.get(key) else {
            self.pods.forget(key);
            self.backoffs.lock().remove(key);
            return Ok(Outcome::Done);
        };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let spec = &set.spec;
        if spec.selector == LabelSelector::default() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.pods.events().event(&*set, EventType::Warning, "SelectingAll", message);
            return Ok(Outcome::Done);
        }
        let Revisions { current, old } = self.revisions(key, &set, &spec.template).await?;
        let hash = hash_of(&current);
        let template = plan::template(&set);
        let pod = template.spec.as_ref();
        let verdict = |node: &Node| pod.map_or(Verdict::No, |spec| plan::verdict(spec, node));
        let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
        let nodes: BTreeMap<String, Verdict> =
            self.nodes.list().iter().map(|node| (name(node), verdict(node))).collect();

        let is_settled = self.pods.is_settled(key);
        let mut pods = self.pods.claim(&set).await?;
        let mut by_node = plan::by_node(&pods);
        let now = Timestamp::now();
        let (mut applied, mut look_again) = (Ok(()), None);
        if is_settled {
            let changes = self.manage(key, &Facts { set: &set, hash, nodes: &nodes, pods: &by_node, now });
            look_again = changes.look_again;
            applied = self.apply(&set, &template, hash, &changes).await;
            if applied.is_ok() && self.pods.is_settled(key) {
                pods = self.pods.claim(&set).await?;
                by_node = plan::by_node(&pods);
                let facts = Facts { set: &set, hash, nodes: &nodes, pods: &by_node, now };
                applied = self.apply(&set, &template, hash, &facts.roll()).await;
            }
            if applied.is_ok() {
                applied = self.clean_up(&set, &old, &pods).await;
            }
        }
        let facts = Facts { set: &set, hash, nodes: &nodes, pods: &by_node, now };
        let next_available = self.write_status(&facts, is_settled).await?;
        applied?;
        let patience = (!is_settled).then_some(OwnedPods::<DaemonSet>::PATIENCE);
        let next = [look_again, next_available, patience].into_iter().flatten().min();
        Ok(next.map_or(Outcome::Done, Outcome::After))
    }
}
