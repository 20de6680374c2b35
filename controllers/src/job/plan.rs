//! What a job comes to next. Pure.
//!
//! ```text
//!  pods end ─▶ status.uncountedTerminatedPods ─(written)─▶ finalizers go ─▶ counters ─▶ Complete or Failed
//! ```
//!
//! A pod keeps its finalizer until it is noted, and is counted only once it has lost it: so each is counted once,
//! whenever the controller ends.
//!
//! Source: upstream's job controller; KEP-2307, KEP-3329, KEP-3850, KEP-3939, KEP-3998.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use skiff_client::EventType;
use skiff_client::view::Pod;

use super::indexes::Indexes;
use super::policy::{self, Verdict};
use crate::objects::{has_ended, is_active, is_ready, uid};

pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
pub(super) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
pub(super) const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// As upstream.
const BACKOFF_FIRST_S: i64 = 10;
const BACKOFF_MAX_S: i64 = 600;
const MAX_UNCOUNTED: usize = 500;
const MAX_MADE: usize = 500;

/// How pods of a job have failed since the last one that did not. Kept in memory: it only delays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    n_failures: u32,
    last_failure: Option<Timestamp>,
}

/// A pod to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NewPod {
    pub(super) index: Option<i32>,
    /// How often its index has failed, counted and ignored, where limits are per index.
    pub(super) failures: Option<(i32, i32)>,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    /// To be written before finalizers go.
    pub(super) status: JobStatus,
    /// Pods, by their place in the snapshot: to be deleted, …
    pub(super) end: Vec<usize>,
    /// … to be deleted without being counted, …
    pub(super) discard: Vec<usize>,
    /// … to lose their finalizer once the status is written.
    pub(super) untrack: Vec<usize>,
    pub(super) make: Vec<NewPod>,
    /// How the job ends, as soon as nothing of it is left to count.
    pub(super) finished: Option<JobCondition>,
    /// There is more to count than one status should hold.
    pub(super) has_more: bool,
    pub(super) backoff: Backoff,
    pub(super) again_s: Option<u64>,
    pub(super) events: Vec<(EventType, &'static str, &'static str)>,
}

/// A job, its pods, and what is read off them.
struct View<'v> {
    job: &'v Job,
    spec: &'v JobSpec,
    pods: &'v [Pod],
    now: Timestamp,
}

pub(super) fn is_finished(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")
}

pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn annotation(pod: &Pod, name: &str) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(name)).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && !has_ended(pod)
}

/// When a pod came to its end, as far as it says.
fn ended_at(pod: &Pod) -> Timestamp {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ends: Option<Vec<Timestamp>> = containers
        .map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|at| at.0))
        .collect();
    let latest = ends.and_then(|ends| ends.into_iter().max());
    let unready = crate::objects::pod_condition(pod, "Ready").filter(|c| c.status == "False");
    let unready = || unready.and_then(|c| c.last_transition_time.as_ref()).map(|at| at.0);
    let meta = &pod.metadata;
    latest
        .or_else(unready)
        .or_else(|| meta.deletion_timestamp.as_ref().map(|at| at.0))
        .or_else(|| meta.creation_timestamp.as_ref().map(|at| at.0))
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// When a pod came to its end, to reckon a wait by. That is said by a node's clock; where it is ahead, or ours was set back, the
/// wait is reckoned from when the pod was made: from now it would begin anew at every look.
fn ended_by(pod: &Pod, now: Timestamp) -> Timestamp {
    let ended = ended_at(pod);
    let made = pod.metadata.creation_timestamp.as_ref().map(|at| at.0);
    if ended <= now { ended } else { made.unwrap_or(ended) }
}

impl Backoff {
    /// A node whose clock is ahead ends its pods in the future; what is counted now is over now at the latest.
    fn after(self, succeeded: &[&Pod], failed: &[&Pod], now: Timestamp) -> Backoff {
        let last_success = succeeded.iter().map(|pod| ended_at(pod)).max();
        let failures: Vec<Timestamp> = failed
            .iter()
            .map(|pod| ended_at(pod))
            .filter(|at| last_success.is_none_or(|success| *at > success))
            .collect();
        let before = if last_success.is_some() { Backoff::default() } else { self };
        let n_new = u32::try_from(failures.len()).unwrap_or(u32::MAX);
        Backoff {
            n_failures: before.n_failures.saturating_add(n_new),
            last_failure: failures.into_iter().max().map(|at| at.min(now)).or(before.last_failure),
        }
    }
}

/// How long until the next attempt after so many failures. A last one that is in the future was counted before the clock was
/// set back: by how much, nobody knows, and nothing is to stand still for that long.
fn remaining_s(n_failures: u32, last_failure: Option<Timestamp>, now: Timestamp) -> u64 {
    let (Some(last), 1..) = (last_failure, n_failures) else { return 0 };
    if last > now {
        return 0;
    }
    let wait_s = BACKOFF_FIRST_S.saturating_mul(1 << (n_failures - 1).min(10)).min(BACKOFF_MAX_S);
    u64::try_from(wait_s - (now.as_second() - last.as_second())).unwrap_or(0)
}

impl<'v> View<'v> {
    fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    fn completions(&self) -> i32 {
        self.spec.completions.unwrap_or(1)
    }

    fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    /// A pod is replaced only once it has failed, not already when it is being deleted.
    fn replaces_failed_only(&self) -> bool {
        self.spec.pod_failure_policy.is_some()
            || self.spec.pod_replacement_policy.as_deref() == Some("Failed")
    }

    fn has_failed(&self, pod: &Pod) -> bool {
        phase(pod) == "Failed"
            || (!self.replaces_failed_only()
                && pod.metadata.deletion_timestamp.is_some()
                && phase(pod) != "Succeeded")
    }

    /// `None` of a pod whose completion does not count: of no index, or of one that is not of the job any more.
    fn index(&self, pod: &Pod) -> Option<i32> {
        let annotations = pod.metadata.annotations.as_ref()?;
        let index = annotations.get(INDEX)?.parse().ok()?;
        (0..self.completions()).contains(&index).then_some(index)
    }

    /// Pods that were not counted before, that count, and that are as `wanted`.
    fn uncounted(&self, noted: &[String], wanted: impl Fn(&Pod) -> bool) -> Vec<&'v Pod> {
        let pods =
            self.pods.iter().filter(|pod| is_tracked(pod) && !noted.iter().any(|n| n == uid(&pod.metadata)));
        pods.filter(|pod| (!self.is_indexed() || self.index(pod).is_some()) && wanted(pod)).collect()
    }

    fn condition(&self, type_: &str, reason: &str, message: &str) -> JobCondition {
        let now = Time(Timestamp::from_second(self.now.as_second()).unwrap_or(self.now));
        JobCondition {
            type_: type_.to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()).filter(|text| !text.is_empty()),
            message: Some(message.to_owned()).filter(|text| !text.is_empty()),
            last_probe_time: Some(now.clone()),
            last_transition_time: Some(now),
        }
    }

    fn found(&self, type_: &str) -> Option<&'v JobCondition> {
        let conditions = self.job.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|c| c.type_ == type_ && c.status == "True")
    }

    fn failure(&self, reason: &str, message: &str) -> Option<JobCondition> {
        Some(self.condition("FailureTarget", reason, message))
    }

    /// What was decided before, or what a failed pod decides.
    fn end_so_far(&self) -> Option<JobCondition> {
        if let Some(met) = self.found("SuccessCriteriaMet") {
            return Some(met.clone());
        }
        if let Some(target) = self.found("FailureTarget") {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            return Some(self.condition("Failed", &text(&target.reason), &text(&target.message)));
        }
        let failed = self.pods.iter().filter(|pod| self.has_failed(pod));
        failed.map(|pod| policy::verdict(self.job, pod)).find_map(|verdict| match verdict {
            Verdict::FailsJob(message) => self.failure("PodFailurePolicy", &message),
            _ => None,
        })
    }

    fn n_restarts(&self) -> i32 {
        let running = self.pods.iter().filter(|pod| matches!(phase(pod), "Running" | "Pending"));
        let statuses = running.filter_map(|pod| pod.status.as_ref()).flat_map(|status| {
            status.container_statuses.iter().chain(&status.init_container_statuses).flatten()
        });
        statuses.fold(0, |sum: i32, container| sum.saturating_add(container.restart_count))
    }

    fn is_past_limit(&self, failed: i32) -> bool {
        let limit = self.spec.backoff_limit.unwrap_or(6);
        let restarts_in_place = self
            .spec
            .template
            .spec
            .as_ref()
            .is_some_and(|s| s.restart_policy.as_deref() == Some("OnFailure"));
        let n_restarts = self.n_restarts();
        failed > limit || (restarts_in_place && if limit == 0 { n_restarts > 0 } else { n_restarts >= limit })
    }

    /// Seconds until the job has been active for too long.
    fn deadline_s(&self, start: Option<&Time>) -> Option<i64> {
        let (limit, start) = (self.spec.active_deadline_seconds?, start?);
        (!self.is_suspended()).then(|| limit - (self.now.as_second() - start.0.as_second()))
    }

    fn failed_indexes(&self, before: &str, limit: i32) -> Indexes {
        let mut failed = Indexes::parse(before, self.completions());
        for pod in self.pods.iter().filter(|pod| is_tracked(pod) && self.has_failed(pod)) {
            let Some(index) = self.index(pod) else { continue };
            match policy::verdict(self.job, pod) {
                Verdict::FailsIndex => _ = failed.insert(index),
                verdict if verdict.is_counted() && annotation(pod, FAILURES) >= limit => {
                    failed.insert(index);
                }
                _ => {}
            }
        }
        failed
    }

    /// Of each index that waits for its next attempt the last pod that failed: it stays until its successor has
    /// taken over its count.
    fn last_failures(&self, succeeded: &Indexes, failed: &Indexes) -> BTreeMap<i32, &'v Pod> {
        let active: HashSet<i32> =
            self.pods.iter().filter(|pod| is_active(pod)).filter_map(|pod| self.index(pod)).collect();
        let attempts =
            |pod: &Pod| annotation(pod, FAILURES).saturating_add(annotation(pod, IGNORED_FAILURES));
        let mut last: BTreeMap<i32, &Pod> = BTreeMap::new();
        for pod in self.pods.iter().filter(|pod| is_tracked(pod) && self.has_failed(pod)) {
            let Some(index) = self.index(pod) else { continue };
            if active.contains(&index) || succeeded.has(index) || failed.has(index) {
                continue;
            }
            let newer = |than: &&Pod| (attempts(pod), ended_at(pod)) >= (attempts(than), ended_at(than));
            if last.get(&index).is_none_or(newer) {
                last.insert(index, pod);
            }
        }
        last
    }
}

/// Everything that is worked out before pods are made or deleted.
struct Tally<'v> {
    active: Vec<usize>,
    n_active: i32,
    ready: i32,
    terminating: i32,
    succeeded: i32,
    /// Of a job with indexes.
    succeeded_indexes: Indexes,
    /// Of a job with limits per index.
    failed_indexes: Option<Indexes>,
    last_failures: BTreeMap<i32, &'v Pod>,
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

pub(super) fn plan(job: &Job, pods: &[Pod], backoff: Backoff, now: Timestamp) -> Plan {
    let Some(spec) = &job.spec else { return Plan::default() };
    let view = View { job, spec, pods, now };
    let mut status = job.status.clone().unwrap_or_default();
    let noted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let (noted_succeeded, noted_failed) =
        (noted.succeeded.unwrap_or_default(), noted.failed.unwrap_or_default());
    let new_succeeded = view.uncounted(&noted_succeeded, |pod| phase(pod) == "Succeeded");
    let new_failed = view.uncounted(&noted_failed, |pod| view.has_failed(pod));
    let n_failed = new_failed.iter().filter(|pod| policy::verdict(job, pod).is_counted()).count();
    let failed = status.failed.unwrap_or(0) + count(n_failed) + count(noted_failed.len());

    let mut plan = Plan { backoff: backoff.after(&new_succeeded, &new_failed, now), ..Plan::default() };
    if status.start_time.is_none() && !view.is_suspended() {
        status.start_time = view.condition("", "", "").last_transition_time;
    }
    let active: Vec<usize> = (0..pods.len()).filter(|at| is_active(&pods[*at])).collect();
    let mut tally = Tally {
        n_active: count(active.len()),
        ready: count(active.iter().filter(|at| is_ready(&pods[**at])).count()),
        terminating: count(pods.iter().filter(|pod| is_going(pod)).count()),
        active,
        succeeded: status.succeeded.unwrap_or(0) + count(new_succeeded.len()) + count(noted_succeeded.len()),
        succeeded_indexes: Indexes::default(),
        failed_indexes: None,
        last_failures: BTreeMap::new(),
    };
    plan.finished = view.end_so_far();
    if plan.finished.is_none() {
        let deadline_s = view.deadline_s(status.start_time.as_ref());
        if view.is_past_limit(failed) {
            plan.finished =
                view.failure("BackoffLimitExceeded", "Job has reached the specified backoff limit");
        } else if deadline_s.is_some_and(|left_s| left_s <= 0) {
            plan.finished = view.failure("DeadlineExceeded", "Job was active longer than specified deadline");
        } else {
            plan.again_s = deadline_s.and_then(|left_s| u64::try_from(left_s).ok());
        }
    }
    if view.is_indexed() {
        look_at_indexes(&view, &status, &mut tally, &mut plan);
    }
    if plan.finished.is_some() {
        plan.end.clone_from(&tally.active);
        tally.terminating += tally.n_active;
        (tally.n_active, tally.ready) = (0, 0);
    } else {
        go_on(&view, &mut status, &mut tally, &mut plan);
    }
    status.active = Some(tally.n_active).filter(|n| *n > 0);
    status.ready = Some(tally.ready);
    status.terminating = Some(tally.terminating);
    track(&view, &tally, &mut status, &mut plan);
    plan.status = status;
    plan
}

fn look_at_indexes<'v>(view: &View<'v>, status: &JobStatus, tally: &mut Tally<'v>, plan: &mut Plan) {
    let completed = status.completed_indexes.as_deref().unwrap_or_default();
    tally.succeeded_indexes = Indexes::parse(completed, view.completions());
    for pod in view.pods.iter().filter(|pod| is_tracked(pod) && phase(pod) == "Succeeded") {
        if let Some(index) = view.index(pod) {
            tally.succeeded_indexes.insert(index);
        }
    }
    tally.succeeded = tally.succeeded_indexes.len();
    if let Some(limit) = view.spec.backoff_limit_per_index {
        let failed = view.failed_indexes(status.failed_indexes.as_deref().unwrap_or_default(), limit);
        let n_failed = failed.len();
        if plan.finished.is_none() {
            if view.spec.max_failed_indexes.is_some_and(|most| n_failed > most) {
                let why = "Job has exceeded the specified maximal number of failed indexes";
                plan.finished = view.failure("MaxFailedIndexesExceeded", why);
            } else if n_failed > 0 && n_failed.saturating_add(tally.succeeded) >= view.completions() {
                plan.finished = view.failure("FailedIndexes", "Job has failed indexes");
            }
        }
        tally.last_failures = view.last_failures(&tally.succeeded_indexes, &failed);
        tally.failed_indexes = Some(failed);
    }
    if plan.finished.is_none() {
        let rule =
            policy::success(view.spec.success_policy.as_ref(), view.completions(), &tally.succeeded_indexes);
        plan.finished = rule.map(|rule| view.condition("SuccessCriteriaMet", "SuccessPolicy", &rule));
    }
}

/// Makes or deletes pods of a job that has not come to its end, or finds that it has.
fn go_on(view: &View<'_>, status: &mut JobStatus, tally: &mut Tally<'_>, plan: &mut Plan) {
    let managed = view.job.metadata.deletion_timestamp.is_none();
    if managed {
        manage(view, tally, plan);
    }
    let is_complete = match view.spec.completions {
        None => tally.succeeded > 0 && tally.n_active == 0,
        Some(completions) => tally.succeeded >= completions && tally.n_active == 0,
    };
    if is_complete {
        let message = "Reached expected number of succeeded pods";
        plan.finished = Some(view.condition("SuccessCriteriaMet", "CompletionsReached", message));
    } else if managed {
        let conditions = status.conditions.get_or_insert_default();
        let before = conditions.iter().position(|c| c.type_ == "Suspended");
        let was = before.is_some_and(|at| conditions[at].status == "True");
        let (is_true, reason, message) = if view.is_suspended() {
            ("True", "JobSuspended", "Job suspended")
        } else {
            ("False", "JobResumed", "Job resumed")
        };
        let condition =
            JobCondition { status: is_true.to_owned(), ..view.condition("Suspended", reason, message) };
        match (view.is_suspended(), was) {
            (true, false) => {
                conditions.retain(|c| c.type_ != "Suspended");
                conditions.push(condition);
                status.start_time = None;
                plan.events.push((EventType::Normal, "Suspended", "Job suspended"));
            }
            (false, true) => {
                if let Some(at) = before {
                    conditions[at] = condition;
                }
                status.start_time = view.condition("", "", "").last_transition_time;
                plan.events.push((EventType::Normal, "Resumed", "Job resumed"));
            }
            _ => {}
        }
    }
}

fn manage(view: &View<'_>, tally: &mut Tally<'_>, plan: &mut Plan) {
    let parallelism = view.spec.parallelism.unwrap_or(1);
    let wanted = match view.spec.completions {
        _ if view.is_suspended() => 0,
        None if tally.succeeded > 0 => tally.n_active,
        None => parallelism,
        Some(completions) => (completions - tally.succeeded).min(parallelism).max(0),
    };
    plan.discard = surplus(view, tally, (tally.n_active - wanted).max(0));
    if !plan.discard.is_empty() {
        let n_ready = plan.discard.iter().filter(|at| is_ready(&view.pods[**at])).count();
        tally.n_active -= count(plan.discard.len());
        tally.terminating += count(plan.discard.len());
        tally.ready -= count(n_ready);
        return;
    }
    let going = if view.replaces_failed_only() { tally.terminating } else { 0 };
    let Ok(missing @ 1..) = usize::try_from(wanted - going - tally.n_active) else { return };
    let wait_s = match view.spec.backoff_limit_per_index {
        None => remaining_s(plan.backoff.n_failures, plan.backoff.last_failure, view.now),
        Some(_) => 0,
    };
    if wait_s > 0 {
        plan.again_s = Some(plan.again_s.map_or(wait_s, |before| before.min(wait_s)));
        return;
    }
    let missing = missing.min(MAX_MADE);
    if view.is_indexed() {
        make_indexes(view, tally, plan, missing);
    } else {
        plan.make = vec![NewPod::default(); missing];
    }
    tally.n_active += count(plan.make.len());
}

/// The pods that are too many: duplicates and strays first, then those that are missed least.
fn surplus(view: &View<'_>, tally: &Tally<'_>, at_least: i32) -> Vec<usize> {
    let mut left = tally.active.clone();
    // The youngest that is not ready goes first.
    left.sort_by_key(|at| {
        let pod = &view.pods[*at];
        let created = pod.metadata.creation_timestamp.as_ref().map(|at| at.0);
        (is_ready(pod), std::cmp::Reverse(created), *at)
    });
    let mut gone = Vec::new();
    if view.is_indexed() {
        let mut kept = HashSet::new();
        // Of several of one index the oldest stays.
        for at in left.iter().rev() {
            if view.index(&view.pods[*at]).is_none_or(|index| !kept.insert(index)) {
                gone.push(*at);
            }
        }
        left.retain(|at| !gone.contains(at));
    }
    let more = usize::try_from(at_least).unwrap_or(0).saturating_sub(gone.len());
    gone.extend(left.into_iter().take(more));
    gone.truncate(MAX_MADE);
    gone
}

fn make_indexes(view: &View<'_>, tally: &Tally<'_>, plan: &mut Plan, missing: usize) {
    let going = |pod: &Pod| view.replaces_failed_only() && is_going(pod);
    let taken: HashSet<i32> = view
        .pods
        .iter()
        .filter(|pod| is_active(pod) || going(pod))
        .filter_map(|pod| view.index(pod))
        .collect();
    let done = match &tally.failed_indexes {
        Some(failed) => tally.succeeded_indexes.and(failed),
        None => tally.succeeded_indexes.clone(),
    };
    let pending = done.missing(view.completions()).filter(|index| !taken.contains(index));
    for index in pending.take(missing) {
        let Some(_) = view.spec.backoff_limit_per_index else {
            plan.make.push(NewPod { index: Some(index), failures: None });
            continue;
        };
        let last = tally.last_failures.get(&index);
        let before =
            last.map_or((0, 0), |pod| (annotation(pod, FAILURES), annotation(pod, IGNORED_FAILURES)));
        let (mut failures, mut ignored) = before;
        if let Some(pod) = last {
            if policy::verdict(view.job, pod).is_counted() {
                failures += 1;
            } else {
                ignored += 1;
            }
        }
        let attempts = u32::try_from(failures + ignored).unwrap_or(0);
        let ended = last.map(|pod| ended_by(pod, view.now));
        let wait_s = remaining_s(attempts, ended, view.now);
        if wait_s > 0 {
            plan.again_s = Some(plan.again_s.map_or(wait_s, |before| before.min(wait_s)));
        } else {
            plan.make.push(NewPod { index: Some(index), failures: Some((failures, ignored)) });
        }
    }
}

/// Notes the pods that have ended, and which finalizers may go for it.
fn track(view: &View<'_>, tally: &Tally<'_>, status: &mut JobStatus, plan: &mut Plan) {
    let tracked: HashSet<&str> =
        view.pods.iter().filter(|pod| is_tracked(pod)).map(|pod| uid(&pod.metadata)).collect();
    let noted = status.uncounted_terminated_pods.get_or_insert_default();
    let was_failed: HashSet<String> = noted.failed.iter().flatten().cloned().collect();
    let was_succeeded: HashSet<String> = noted.succeeded.iter().flatten().cloned().collect();
    count_untracked(status, |uid| tracked.contains(uid));
    let has_failed_whole = plan.finished.as_ref().is_some_and(|c| c.type_ != "SuccessCriteriaMet");
    let mut completed =
        Indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), view.completions());
    let mut n_noted = 0;
    for (at, pod) in view.pods.iter().enumerate().filter(|(_, pod)| is_tracked(pod)) {
        let failed = view.has_failed(pod);
        if plan.discard.contains(&at) || !may_untrack(view, tally, plan, pod, failed) {
            continue;
        }
        plan.untrack.push(at);
        let uid = uid(&pod.metadata).to_owned();
        let noted = status.uncounted_terminated_pods.get_or_insert_default();
        if phase(pod) == "Succeeded" && !was_failed.contains(&uid) {
            if view.is_indexed() {
                if let Some(index) = view.index(pod) {
                    n_noted += usize::from(completed.insert(index));
                }
            } else if !was_succeeded.contains(&uid) {
                noted.succeeded.get_or_insert_default().push(uid);
                n_noted += 1;
            }
        } else if (failed || has_failed_whole)
            && !was_failed.contains(&uid)
            && (!view.is_indexed() || view.index(pod).is_some())
            && policy::verdict(view.job, pod).is_counted()
        {
            noted.failed.get_or_insert_default().push(uid);
            n_noted += 1;
        }
        if n_noted >= MAX_UNCOUNTED {
            plan.has_more = true;
            break;
        }
    }
    if view.is_indexed() {
        status.succeeded = Some(completed.len()).filter(|n| *n > 0);
        status.completed_indexes = Some(completed.to_string()).filter(|text| !text.is_empty());
        if let Some(failed) = &tally.failed_indexes {
            status.failed_indexes = Some(failed.to_string());
        }
    }
    note_end(view, status, plan);
}

/// The first condition says that the end has come, the second that nothing is left to do.
fn note_end(view: &View<'_>, status: &mut JobStatus, plan: &mut Plan) {
    let Some(decided) = plan.finished.take() else { return };
    let last = match decided.type_.as_str() {
        "SuccessCriteriaMet" => "Complete",
        _ => "Failed",
    };
    if decided.type_ != "Failed" {
        let conditions = status.conditions.get_or_insert_default();
        if !conditions.iter().any(|c| c.type_ == decided.type_ && c.status == "True") {
            conditions.push(decided.clone());
        }
    }
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    plan.finished = Some(view.condition(last, &text(&decided.reason), &text(&decided.message)));
}

fn may_untrack(view: &View<'_>, tally: &Tally<'_>, plan: &Plan, pod: &Pod, failed: bool) -> bool {
    if view.job.metadata.deletion_timestamp.is_some() || plan.finished.is_some() || phase(pod) == "Succeeded"
    {
        return true;
    }
    let waits = || {
        let last = view.index(pod).and_then(|index| tally.last_failures.get(&index));
        view.spec.backoff_limit_per_index.is_some()
            && last.is_some_and(|last| uid(&last.metadata) == uid(&pod.metadata))
    };
    failed && !waits()
}

/// Counts what was noted and has lost its finalizer.
pub(super) fn count_untracked(status: &mut JobStatus, is_tracked: impl Fn(&str) -> bool) {
    let noted = status.uncounted_terminated_pods.get_or_insert_default();
    let taken = |list: &mut Option<Vec<String>>| {
        let all = list.take().unwrap_or_default();
        let n_all = all.len();
        let left: Vec<String> = all.into_iter().filter(|uid| is_tracked(uid)).collect();
        let n_taken = count(n_all - left.len());
        *list = Some(left).filter(|left| !left.is_empty());
        n_taken
    };
    let UncountedTerminatedPods { succeeded, failed } = noted;
    let (n_succeeded, n_failed) = (taken(succeeded), taken(failed));
    let add = |to: &mut Option<i32>, more: i32| {
        if more > 0 {
            *to = Some(to.unwrap_or(0) + more);
        }
    };
    add(&mut status.succeeded, n_succeeded);
    add(&mut status.failed, n_failed);
}

/// Ends the job if nothing of it is left to count or to wait for; answers whether it did.
pub(super) fn finish(status: &mut JobStatus, finished: Option<&JobCondition>) -> bool {
    let Some(condition) = finished else { return false };
    let noted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let is_open = noted.succeeded.is_some() || noted.failed.is_some() || status.terminating.unwrap_or(0) > 0;
    if is_open {
        return false;
    }
    status.conditions.get_or_insert_default().push(condition.clone());
    if condition.type_ == "Complete" {
        status.completion_time.clone_from(&condition.last_transition_time);
    }
    true
}

/// How long until a finished job is to be deleted.
pub(super) fn ttl(job: &Job, now: Timestamp) -> Option<Duration> {
    let ttl_s = i64::from(job.spec.as_ref()?.ttl_seconds_after_finished?);
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let finished = conditions
        .iter()
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?;
    let at = finished.last_transition_time.as_ref()?.0.as_second();
    Some(Duration::from_secs(u64::try_from(at + ttl_s - now.as_second()).unwrap_or(0)))
}

#[cfg(test)]
mod tests;
