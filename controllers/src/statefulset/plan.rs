//! What a StatefulSet needs next, and what its status says. Pure.
//!
//! In order, unless the set is of [`PARALLEL`] management: no pod is made before all that come before it are available,
//! and none is taken away before all that come after it are gone.
//!
//! Source: upstream's stateful set controller.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    ControllerRevision, RollingUpdateStatefulSetStrategy, StatefulSet, StatefulSetStatus,
};
use k8s_openapi::api::core::v1::{self as core, PersistentVolumeClaim};
use serde_json::Value;
use skiff_client::view::Pod;

use super::claims;
use super::identity::{
    Claims, Revision, claim_names, has_identity, has_storage, is_wanted, n_replicas, new_stateful_pod,
    ordinal, revision_of, start,
};
use crate::history;
use crate::objects::{available_in_s, has_ended, is_ready, scaled_down};

const PARALLEL: &str = "Parallel";
/// Pods made in one pass.
const BURST: usize = 500;

/// What is looked at in one pass.
pub(super) struct Facts<'f> {
    pub(super) set: &'f StatefulSet,
    /// The revision that pods come from and the one that they come to; often the same.
    pub(super) current: &'f Revision,
    pub(super) update: &'f Revision,
    pub(super) n_collisions: i32,
    pub(super) pods: &'f [Arc<Pod>],
    pub(super) claims: Claims<'f>,
    pub(super) now: Timestamp,
}

/// One thing to do for one pod.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// With its claims.
    Make(Box<core::Pod>),
    Delete(Arc<Pod>),
    /// A pod waits for claims that it lacks, or that are not owned as they should be.
    Claims(Arc<Pod>),
    /// A pod is not who it should be, has not the storage that it should have, or its claims have not the owners.
    Repair(Arc<Pod>),
}

/// What to do, in this order; what fails ends it.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// For the pods that the set is to have: of each what is to be done with it.
    pub(super) wanted: Vec<Vec<Step>>,
    /// Pods that the set is no longer to have and whose claims must know it.
    pub(super) disowned: Vec<Arc<Pod>>,
    /// Pods that the set is no longer to have, and of which it is the turn.
    pub(super) surplus: Vec<Arc<Pod>>,
    /// The pods whose turn it is to go so that ones of the new template take their places.
    pub(super) outdated: Vec<Arc<Pod>>,
    /// Claims on their way out, or about to be, in whose way nothing can be done.
    pub(super) awaited: Vec<String>,
}

/// The set's pods by number, and those that are numbered too high or too low for it, the highest first.
struct Sorted {
    wanted: BTreeMap<i64, Arc<Pod>>,
    surplus: Vec<Arc<Pod>>,
}

impl Facts<'_> {
    pub(super) fn is_parallel(&self) -> bool {
        let policy = self.set.spec.pod_management_policy.as_deref();
        policy == Some(PARALLEL)
    }

    fn sorted(&self) -> Sorted {
        let mut sorted = Sorted { wanted: BTreeMap::new(), surplus: Vec::new() };
        for pod in self.pods {
            match ordinal(pod) {
                Some(ordinal) if is_wanted(self.set, ordinal) => {
                    sorted.wanted.insert(ordinal, pod.clone());
                }
                Some(_) => sorted.surplus.push(pod.clone()),
                None => {}
            }
        }
        sorted.surplus.sort_by_key(|pod| std::cmp::Reverse(ordinal(pod)));
        sorted
    }

    fn rolling(&self) -> Option<&RollingUpdateStatefulSetStrategy> {
        self.set.spec.update_strategy.as_ref()?.rolling_update.as_ref()
    }

    fn strategy(&self) -> &str {
        let strategy = self.set.spec.update_strategy.as_ref();
        strategy.and_then(|strategy| strategy.type_.as_deref()).unwrap_or_default()
    }

    /// How many of the first pods keep the template that they have.
    fn partition(&self) -> i64 {
        self.rolling().and_then(|rolling| rolling.partition).unwrap_or(0).into()
    }

    /// Of which revision a pod is to be made.
    fn revision_for(&self, ordinal: i64) -> &Revision {
        let n_current = match self.rolling() {
            Some(_) => self.partition(),
            None if self.strategy() == "RollingUpdate" => {
                self.set.status.as_ref().and_then(|status| status.current_replicas).unwrap_or(0).into()
            }
            None => 0,
        };
        if ordinal < start(self.set).saturating_add(n_current) { self.current } else { self.update }
    }

    fn min_ready_s(&self) -> i64 {
        self.set.spec.min_ready_seconds.unwrap_or(0).into()
    }

    fn is_available(&self, pod: &Pod) -> bool {
        available_in_s(pod, self.min_ready_s(), self.now) == Some(0)
    }

    /// Available, and there to stay.
    fn is_well(&self, pod: &Pod) -> bool {
        self.is_available(pod) && !is_going(pod)
    }

    /// The claims that there are of the set's pod of a number.
    fn claims_of(&self, ordinal: i64) -> impl Iterator<Item = Arc<PersistentVolumeClaim>> {
        claim_names(self.set, ordinal).filter_map(|name| (self.claims)(&name))
    }

    fn are_claims_settled(&self, pod: &Pod) -> bool {
        let mut claims = ordinal(pod).into_iter().flat_map(|ordinal| self.claims_of(ordinal));
        claims.all(|claim| claims::is_settled(&claim, self.set, pod))
    }

    pub(super) fn plan(&self) -> Plan {
        let Sorted { wanted, surplus } = self.sorted();
        let mut plan = Plan::default();
        let is_done = match self.is_parallel() {
            true => self.plan_at_once(&wanted, &mut plan),
            false => self.plan_in_order(&wanted, &mut plan),
        };
        if !is_done {
            return plan;
        }
        plan.disowned = surplus.iter().filter(|pod| !self.are_claims_settled(pod)).cloned().collect();
        if self.is_parallel() {
            plan.surplus = surplus.into_iter().filter(|pod| !is_going(pod)).collect();
        } else if !surplus.is_empty() {
            plan.surplus = self.next_surplus(&surplus).into_iter().collect();
            return plan;
        }
        plan.outdated = self.outdated(&wanted);
        plan
    }

    /// Answers whether all pods that are wanted are there and available.
    fn plan_in_order(&self, wanted: &BTreeMap<i64, Arc<Pod>>, plan: &mut Plan) -> bool {
        for place in 0..n_replicas(self.set) {
            let ordinal = start(self.set).saturating_add(place);
            let Some(pod) = wanted.get(&ordinal) else {
                plan.wanted.extend(self.make(ordinal, &mut plan.awaited));
                return false;
            };
            let steps = self.keep(pod, &mut plan.awaited);
            if !steps.is_empty() {
                plan.wanted.push(steps);
            }
            if is_going(pod) || !is_running_and_ready(pod) || !self.is_available(pod) {
                return false;
            }
        }
        true
    }

    /// Answers `true`: nothing waits for anything else.
    fn plan_at_once(&self, wanted: &BTreeMap<i64, Arc<Pod>>, plan: &mut Plan) -> bool {
        for pod in wanted.values() {
            let steps = self.keep(pod, &mut plan.awaited);
            if !steps.is_empty() {
                plan.wanted.push(steps);
            }
        }
        let ordinals = (0..n_replicas(self.set)).map(|place| start(self.set).saturating_add(place));
        for ordinal in ordinals.filter(|ordinal| !wanted.contains_key(ordinal)).take(BURST) {
            plan.wanted.extend(self.make(ordinal, &mut plan.awaited));
        }
        true
    }

    /// What a pod that is missing needs: nothing, as long as a claim is in its way.
    fn make(&self, ordinal: i64, awaited: &mut Vec<String>) -> Option<Vec<Step>> {
        let pod = new_stateful_pod(self.set, self.revision_for(ordinal), ordinal);
        let known = Pod::of(pod.metadata.clone());
        let is_in_the_way = |claim: &PersistentVolumeClaim| claims::is_of_earlier(claim, self.set, &known);
        let is_stale = self.await_claims(ordinal, awaited, is_in_the_way);
        self.await_claims(ordinal, awaited, |claim| claim.metadata.deletion_timestamp.is_some());
        (!is_stale).then(|| vec![Step::Make(Box::new(pod))])
    }

    /// Notes the claims that are in the way, and answers whether there are any.
    fn await_claims(
        &self,
        ordinal: i64,
        awaited: &mut Vec<String>,
        is_in_the_way: impl Fn(&PersistentVolumeClaim) -> bool,
    ) -> bool {
        let n_before = awaited.len();
        let names = self.claims_of(ordinal).filter(|claim| is_in_the_way(claim));
        awaited.extend(names.filter_map(|claim| claim.metadata.name.clone()));
        awaited.len() > n_before
    }

    /// What a pod that is there needs.
    fn keep(&self, pod: &Arc<Pod>, awaited: &mut Vec<String>) -> Vec<Step> {
        if has_ended(pod) {
            return if is_going(pod) { Vec::new() } else { vec![Step::Delete(pod.clone())] };
        }
        let mut steps = Vec::new();
        if phase(pod) == "Pending" {
            let ordinal = ordinal(pod).unwrap_or(0);
            let is_lacking = claim_names(self.set, ordinal).any(|name| (self.claims)(&name).is_none());
            let is_going =
                self.await_claims(ordinal, awaited, |claim| claim.metadata.deletion_timestamp.is_some());
            if is_lacking || is_going || !self.are_claims_settled(pod) {
                steps.push(Step::Claims(pod.clone()));
            }
        }
        let is_waited_for = is_going(pod) || !is_running_and_ready(pod) || !self.is_available(pod);
        if is_waited_for && !self.is_parallel() {
            return steps;
        }
        let is_disowned = steps.is_empty() && !self.are_claims_settled(pod);
        if is_disowned || !has_identity(self.set, pod) || !has_storage(self.set, pod) {
            steps.push(Step::Repair(pod.clone()));
        }
        steps
    }

    /// In order, the last pod goes first, and only if all others are well or it is itself the first that is not.
    fn next_surplus(&self, surplus: &[Arc<Pod>]) -> Option<Arc<Pod>> {
        let last = surplus.first().filter(|pod| !is_going(pod))?;
        let first_unwell = surplus.iter().rfind(|pod| !self.is_well(pod));
        let is_first_unwell = first_unwell.is_some_and(|pod| Arc::ptr_eq(pod, last));
        let is_well = is_running_and_ready(last) && self.is_available(last);
        (is_well || is_first_unwell).then(|| last.clone())
    }

    /// From the last pod on, as many as may be missing at once besides those that are not well. Where nothing waits for anything
    /// else, those that are not well go first, however many.
    fn outdated(&self, wanted: &BTreeMap<i64, Arc<Pod>>) -> Vec<Arc<Pod>> {
        if self.strategy() == "OnDelete" {
            return Vec::new();
        }
        let is_well = |pod: &Pod| is_running_and_ready(pod) && self.is_well(pod);
        // A set may want two thousand million pods: those that are not there are counted, and not gone through.
        let n_pods = usize::try_from(n_replicas(self.set)).unwrap_or(usize::MAX);
        let n_well = wanted.values().filter(|pod| is_well(pod)).count();
        let n_unwell = n_pods.saturating_sub(n_well);
        let budget = self.max_unavailable(n_pods).saturating_sub(n_unwell);
        let first = start(self.set).saturating_add(self.partition().max(0));
        let outdated = wanted.range(first..).rev().map(|(_, pod)| pod);
        let outdated =
            outdated.filter(|pod| revision_of(pod) != self.update.name && !is_going(pod) && !has_ended(pod));
        if !self.is_parallel() {
            return outdated.take(budget).cloned().collect();
        }
        let (well, unwell): (Vec<_>, Vec<_>) = outdated.cloned().partition(|pod| is_well(pod));
        unwell.into_iter().chain(well.into_iter().take(budget)).collect()
    }

    /// How many of so many pods may be missing during a rollout: one at least.
    fn max_unavailable(&self, n_pods: usize) -> usize {
        let most = self.rolling().and_then(|rolling| rolling.max_unavailable.as_ref());
        let most = most.map_or(1, |most| scaled_down(most, i32::try_from(n_pods).unwrap_or(i32::MAX)));
        usize::try_from(most).unwrap_or(0).max(1)
    }

    /// `n_outdated_gone`: how many of [`Plan::outdated`] have been deleted in this pass.
    pub(super) fn status(&self, n_outdated_gone: usize) -> StatefulSetStatus {
        let is_leaving = self.set.metadata.deletion_timestamp.is_some();
        let counted = self.pods.iter().filter(|pod| is_leaving || ordinal(pod).is_some());
        let counted: Vec<&Pod> = counted.map(|pod| &**pod).collect();
        let count = |is: &dyn Fn(&Pod) -> bool| {
            i32::try_from(counted.iter().filter(|pod| is(pod)).count()).unwrap_or(i32::MAX)
        };
        let is_made = |pod: &Pod| !phase(pod).is_empty();
        let is_of = |pod: &Pod, revision: &Revision| {
            is_made(pod) && !is_going(pod) && revision_of(pod) == revision.name
        };
        let replicas = count(&is_made);
        let ready = count(&is_running_and_ready);
        let available = count(&|pod| is_running_and_ready(pod) && self.is_available(pod));
        let updated = count(&|pod| is_of(pod, self.update));
        let mut current = (count(&|pod| is_of(pod, self.current))
            - i32::try_from(n_outdated_gone).unwrap_or(i32::MAX))
        .max(0);
        let mut current_revision = &self.current.name;
        let wanted = n_replicas(self.set);
        if self.strategy() == "RollingUpdate" && [updated, ready, replicas].map(i64::from) == [wanted; 3] {
            (current, current_revision) = (updated, &self.update.name);
        }
        let some = |count: i32| (count != 0).then_some(count);
        StatefulSetStatus {
            observed_generation: self.set.metadata.generation,
            replicas,
            ready_replicas: some(ready),
            available_replicas: Some(available),
            current_replicas: some(current),
            updated_replicas: some(updated),
            current_revision: Some(current_revision.clone()),
            update_revision: Some(self.update.name.clone()),
            collision_count: Some(self.n_collisions),
            conditions: None,
        }
    }

    /// In how many seconds another pod may have become available.
    pub(super) fn look_again_in_s(&self, status: &StatefulSetStatus) -> Option<i64> {
        let all_are = status.ready_replicas.unwrap_or(0) == status.available_replicas.unwrap_or(0);
        if self.min_ready_s() == 0 || all_are {
            return None;
        }
        let waits = self.pods.iter().filter_map(|pod| available_in_s(pod, self.min_ready_s(), self.now));
        Some(waits.filter(|wait| *wait > 0).min().unwrap_or(self.min_ready_s()))
    }
}

/// Whether a status says anything that the old one does not. Conditions, and collisions alone, are not worth a write.
pub(super) fn is_news(new: &StatefulSetStatus, old: Option<&StatefulSetStatus>) -> bool {
    let facts = |status: &StatefulSetStatus| {
        let counts = [
            status.current_replicas,
            status.ready_replicas,
            status.updated_replicas,
            status.available_replicas,
        ];
        let revisions = [status.current_revision.clone(), status.update_revision.clone()];
        (status.replicas, counts.map(|count| count.unwrap_or(0)), revisions.map(Option::unwrap_or_default))
    };
    let nothing = StatefulSetStatus::default();
    let old = old.unwrap_or(&nothing);
    new.observed_generation.unwrap_or(0) > old.observed_generation.unwrap_or(0) || facts(new) != facts(old)
}

/// Whether a revision brings back what a snapshot says, though it is written otherwise.
pub(super) fn means_the_same(revision: &ControllerRevision, snapshot: &Value) -> bool {
    history::template_of(revision).is_some_and(|template| history::snapshot(&template) == *snapshot)
}

/// The oldest of the revisions that neither the set nor a pod is of, as far as there are more than the history keeps.
pub(super) fn surplus_revisions(
    set: &StatefulSet,
    all: &[Arc<ControllerRevision>],
    pods: &[Arc<Pod>],
    live: [&str; 2],
) -> Vec<Arc<ControllerRevision>> {
    let keep = set.spec.revision_history_limit.unwrap_or(10);
    let Ok(keep) = usize::try_from(keep) else { return Vec::new() };
    let is_live = |name: &str| live.contains(&name) || pods.iter().any(|pod| revision_of(pod) == name);
    let name = |revision: &ControllerRevision| revision.metadata.name.clone().unwrap_or_default();
    let mut past: Vec<_> = all.iter().filter(|revision| !is_live(&name(revision))).cloned().collect();
    past.truncate(past.len().saturating_sub(keep));
    past
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn is_running_and_ready(pod: &Pod) -> bool {
    phase(pod) == "Running" && is_ready(pod)
}

#[cfg(test)]
mod tests;
