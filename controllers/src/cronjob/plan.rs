//! What a CronJob's Jobs have come to, and whether it is time for another one. Pure.
//!
//! Source: upstream's CronJob controller.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job, JobCondition};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use skiff_api::schedule::{Schedule, ScheduleError, time_zone};
use skiff_client::EventType;
use thiserror::Error;

use crate::objects::{controller_reference, uid};

const SCHEDULED_TIMESTAMP: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Beyond so many times that were missed, something is wrong.
const MANY: i64 = 100;
/// Clocks differ: a little later is never too early.
const PADDING: SignedDuration = SignedDuration::from_millis(100);

/// Kind, reason and message.
pub(super) type Told = (EventType, &'static str, String);

/// The condition that says how a Job ended.
fn end(job: &Job) -> Option<&JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")
}

fn has_ended(job: &Job, how: &str) -> bool {
    end(job).is_some_and(|condition| condition.type_ == how)
}

/// The oldest Jobs that have ended, as far as there are more than the history keeps.
pub(super) fn past(cron: &CronJob, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let spec = &cron.spec;
    let limits =
        [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)];
    let start = |job: &Arc<Job>| {
        let start = job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
        (start.is_none(), start, job.metadata.name.clone())
    };
    let of = |(how, limit): (&str, Option<i32>)| {
        let keep = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(0));
        let mut ended: Vec<_> = jobs.iter().filter(|job| has_ended(job, how)).cloned().collect();
        ended.sort_by_cached_key(start);
        ended.truncate(ended.len().saturating_sub(keep));
        ended
    };
    limits.into_iter().flat_map(of).collect()
}

pub(super) fn active(status: &CronJobStatus) -> &[ObjectReference] {
    status.active.as_deref().unwrap_or_default()
}

fn is_active(status: &CronJobStatus, uid: &str) -> bool {
    active(status).iter().any(|active| active.uid.as_deref() == Some(uid))
}

pub(super) fn forget(status: &mut CronJobStatus, uid: &str) {
    let active = status.active.get_or_insert_default();
    active.retain(|active| active.uid.as_deref() != Some(uid));
    if active.is_empty() {
        status.active = None;
    }
}

/// Brings the status up to what the Jobs have come to. Answers what there is to tell of it.
pub(super) fn observe(status: &mut CronJobStatus, jobs: &[Arc<Job>]) -> Vec<Told> {
    let mut told = Vec::new();
    for job in jobs {
        let (uid, name) = (uid(&job.metadata), job.metadata.name.as_deref().unwrap_or_default());
        let is_active = is_active(status, uid);
        let Some(end) = end(job) else {
            if !is_active {
                let message = format!("Saw a job that the controller did not create or forgot: {name}");
                told.push((EventType::Warning, "UnexpectedJob", message));
            }
            continue;
        };
        if is_active {
            forget(status, uid);
            let message = format!("Saw completed job: {name}, condition: {}", end.type_);
            told.push((EventType::Normal, "SawCompletedJob", message));
        }
        let completed = job.status.as_ref().and_then(|status| status.completion_time.as_ref());
        if let Some(completed) = completed.filter(|_| end.type_ == "Complete")
            && status.last_successful_time.as_ref().is_none_or(|last| completed.0 > last.0)
        {
            status.last_successful_time = Some(completed.clone());
        }
    }
    told
}

/// What is active, but is not among the Jobs that are known.
pub(super) fn unknown(status: &CronJobStatus, jobs: &[Arc<Job>]) -> Vec<ObjectReference> {
    let is_known =
        |active: &&ObjectReference| jobs.iter().any(|job| active.uid.as_deref() == Some(uid(&job.metadata)));
    active(status).iter().filter(|active| !is_known(active)).cloned().collect()
}

/// What is to be done now.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    Nothing,
    /// Make the Job for this time.
    Start(Timestamp),
    /// The same, once those that are active are gone.
    Replace(Timestamp),
}

#[derive(Debug)]
pub(super) struct Decision {
    pub(super) told: Vec<Told>,
    pub(super) action: Action,
    /// When to decide again, if ever.
    pub(super) next: Option<Duration>,
}

/// Whether it is time for another Job, in `local` unless the CronJob names another zone.
pub(super) fn decide(cron: &CronJob, status: &CronJobStatus, now: Timestamp, local: &TimeZone) -> Decision {
    let mut decision = Decision { told: Vec::new(), action: Action::Nothing, next: None };
    let spec = &cron.spec;
    if cron.metadata.deletion_timestamp.is_some() {
        return decision;
    }
    if let Some(zone) = spec.time_zone.as_deref().filter(|zone| time_zone(zone).is_none()) {
        let message = format!("invalid timeZone: {zone:?}: unknown time zone {zone}");
        decision.told.push((EventType::Warning, "UnknownTimeZone", message));
        return decision;
    }
    if spec.suspend == Some(true) {
        return decision;
    }
    if spec.schedule.contains("TZ") {
        let message = format!(
            "CRON_TZ or TZ used in schedule {:?} is not officially supported, see \
             https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
            spec.schedule
        );
        decision.told.push((EventType::Warning, "UnsupportedSchedule", message));
    }
    let times = match Times::new(cron, status, now, local) {
        Ok(times) => times,
        Err(error) => {
            let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
            decision.told.push((EventType::Warning, "UnparseableSchedule", message));
            return decision;
        }
    };
    let due = match times.last(true) {
        Ok(due) => due,
        Err(error) => {
            let message = format!("invalid schedule: {} : {error}", spec.schedule);
            decision.told.push((EventType::Warning, "InvalidSchedule", message));
            return decision;
        }
    };
    decision.next = times.until_next();
    if let Some(scheduled) = due.last {
        if due.n_missed > MANY {
            let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            decision.told.push((EventType::Warning, "TooManyMissedTimes", message.to_owned()));
        }
        decide_on(cron, status, scheduled, now, &mut decision);
    }
    decision
}

/// A time has come.
fn decide_on(
    cron: &CronJob,
    status: &CronJobStatus,
    scheduled: Timestamp,
    now: Timestamp,
    decision: &mut Decision,
) {
    let spec = &cron.spec;
    let latest =
        spec.starting_deadline_seconds.map(|s| scheduled.saturating_add(SignedDuration::from_secs(s)));
    if latest.is_some_and(|latest| latest.is_ok_and(|latest| latest < now)) {
        let time = scheduled.strftime("%a, %d %b %Y %H:%M:%S +0000");
        let message = format!("Missed scheduled time to start a job: {time}");
        decision.told.push((EventType::Warning, "MissSchedule", message));
        return;
    }
    let name = job_name(cron, scheduled);
    let is_started = active(status).iter().any(|active| active.name.as_deref() == Some(&name))
        || status.last_schedule_time.as_ref().is_some_and(|last| last.0 == scheduled);
    if is_started {
        return;
    }
    decision.action = match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active(status).is_empty() => {
            let message =
                "Not starting job because prior execution is running and concurrency policy is Forbid";
            decision.told.push((EventType::Normal, "JobAlreadyActive", message.to_owned()));
            return;
        }
        Some("Replace") => Action::Replace(scheduled),
        _ => Action::Start(scheduled),
    };
}

fn job_name(cron: &CronJob, scheduled: Timestamp) -> String {
    let name = cron.metadata.name.as_deref().unwrap_or_default();
    format!("{name}-{}", scheduled.as_second().div_euclid(60))
}

/// The Job for a time. Its name is the time's, so that it is never made twice.
pub(super) fn job(cron: &CronJob, scheduled: Timestamp) -> Job {
    let template = cron.spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let zone = cron.spec.time_zone.as_deref().and_then(time_zone);
    let local = scheduled.to_zoned(zone.unwrap_or(TimeZone::UTC));
    let offset = if local.offset().is_zero() { "Z".to_owned() } else { local.strftime("%:z").to_string() };
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations
        .insert(SCHEDULED_TIMESTAMP.into(), format!("{}{offset}", local.strftime("%Y-%m-%dT%H:%M:%S")));
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron, scheduled)),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// A schedule that nothing can be made of, though it can be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("time difference between two schedules is less than 1 second")]
struct NeverError;

/// The times of a CronJob's schedule, as seen now.
pub(super) struct Times<'t> {
    schedule: Schedule,
    zone: TimeZone,
    spec: &'t CronJobSpec,
    /// Since when times count.
    since: Timestamp,
    now: Timestamp,
}

/// The last time that has come.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    since: Timestamp,
    last: Option<Timestamp>,
    /// Roughly.
    n_missed: i64,
}

impl<'t> Times<'t> {
    pub(super) fn new(
        cron: &'t CronJob,
        status: &CronJobStatus,
        now: Timestamp,
        local: &TimeZone,
    ) -> Result<Times<'t>, ScheduleError> {
        let spec = &cron.spec;
        let schedule = Schedule::parse(&spec.schedule)?;
        let zone = spec.time_zone.as_deref().and_then(time_zone).unwrap_or_else(|| local.clone());
        let time = |time: Option<&Time>| time.map(|time| time.0);
        let since =
            time(status.last_schedule_time.as_ref()).or(time(cron.metadata.creation_timestamp.as_ref()));
        Ok(Times { schedule, zone, spec, since: since.unwrap_or(now), now })
    }

    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        self.schedule.next(after, &self.zone)
    }

    /// `in_time`: what came too long ago to be started any more does not count.
    fn last(&self, in_time: bool) -> Result<Due, NeverError> {
        let mut since = self.since;
        if let Some(deadline_s) = self.spec.starting_deadline_seconds.filter(|_| in_time) {
            let deadline = self.now.checked_sub(SignedDuration::from_secs(deadline_s));
            since = since.max(deadline.unwrap_or(Timestamp::MIN));
        }
        let first = self.next(since).ok_or(NeverError)?;
        if self.now < first {
            return Ok(Due { since, last: None, n_missed: 0 });
        }
        let second = self.next(first).ok_or(NeverError)?;
        if self.now < second {
            return Ok(Due { since, last: Some(first), n_missed: 0 });
        }
        let interval_s = second.as_second() - first.as_second();
        if interval_s < 1 {
            return Err(NeverError);
        }
        let n_missed = self.now.duration_since(first).as_secs() / interval_s + 1;
        // Times are not all as far apart as the first two: from two of them back on, one after the other.
        let back = SignedDuration::from_secs((n_missed - 2).saturating_mul(interval_s));
        let mut last = None;
        let mut at = first.checked_add(back).ok().and_then(|from| self.next(from));
        while let Some(time) = at.filter(|time| *time <= self.now) {
            last = Some(time);
            at = self.next(time);
        }
        Ok(Due { since, last, n_missed })
    }

    /// How long until the next time.
    pub(super) fn until_next(&self) -> Option<Duration> {
        let from = match self.last(false) {
            Ok(Due { last: Some(last), .. }) => last,
            Ok(Due { since, n_missed: 0, .. }) => since,
            Ok(_) | Err(NeverError) => self.now,
        };
        let wait = self.next(from)?.duration_since(self.now) + PADDING;
        Some(Duration::try_from(wait).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
