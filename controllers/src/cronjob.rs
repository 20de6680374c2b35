//! CronJobs: Jobs made when their time has come.
//!
//! Every pass reads the CronJob from the API itself, so that no Job that an earlier pass has made is missed.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use skiff_client::{Change, EventRecorder, EventType, Informer, ObjectKey, WorkQueue, key_of, reference};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine, is_not_found, is_terminating, text};
use crate::lookup::Owned;
use crate::objects::{controller_key, controller_of, status_patch, uid};

mod plan;

use plan::{Action, Times};

pub(crate) struct CronJobs {
    client: Client,
    crons: Informer<CronJob>,
    all_jobs: Informer<Job>,
    jobs: Owned<Job>,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
    /// Of schedules that name none.
    zone: TimeZone,
}

/// When a CronJob has to be looked at that has changed.
fn wake(queue: &WorkQueue<ObjectKey>, events: &EventRecorder, zone: &TimeZone, change: &Change<CronJob>) {
    let Some(cron) = change.object() else { return };
    let key = key_of(&**cron);
    let schedule = |cron: &Arc<CronJob>| (cron.spec.schedule.clone(), cron.spec.time_zone.clone());
    let is_rescheduled = match (&change.old, &change.new) {
        (Some(old), Some(new)) => schedule(old) != schedule(new),
        _ => false,
    };
    if !is_rescheduled {
        queue.add(key);
        return;
    }
    // Times of the new schedule that have passed already are not made up for.
    let status = cron.status.clone().unwrap_or_default();
    match Times::new(cron, &status, Timestamp::now(), zone) {
        Ok(times) => {
            if let Some(wait) = times.until_next() {
                queue.add_after(key, wait);
            }
        }
        Err(_) => {
            let message = format!("unparseable schedule for cronjob: {}", cron.spec.schedule);
            events.event(&**cron, EventType::Warning, "UnParseableCronJobSchedule", &message);
        }
    }
}

impl CronJobs {
    pub(crate) fn new(context: &Context) -> Self {
        let (crons, queue) = (context.informers.of::<CronJob>(), WorkQueue::default());
        let (events, zone) = (context.events("cronjob-controller"), TimeZone::system());
        let (woken, telling, local) = (queue.clone(), events.clone(), zone.clone());
        crons.on_change(move |change| wake(&woken, &telling, &local, change));
        let all_jobs = context.informers.of::<Job>();
        let woken = queue.clone();
        all_jobs.on_change(move |change| {
            let jobs = [&change.old, &change.new].into_iter().flatten();
            jobs.filter_map(|job| controller_key(&job.metadata, "CronJob")).for_each(|cron| woken.add(cron));
        });
        let jobs = Owned::new(&all_jobs);
        CronJobs { client: context.client.clone(), crons, all_jobs, jobs, events, queue, zone }
    }

    fn jobs_in(&self, namespace: &str) -> Api<Job> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Deletes a Job and its pods.
    async fn delete(
        &self,
        cron: &CronJob,
        status: &mut CronJobStatus,
        namespace: &str,
        job: &Job,
    ) -> Result<(), kube::Error> {
        let name = job.metadata.name.as_deref().unwrap_or_default();
        match self.jobs_in(namespace).delete(name, &DeleteParams::background()).await {
            Ok(_) => {
                let message = format!("Deleted job {name}");
                self.events.event(cron, EventType::Normal, "SuccessfulDelete", &message);
            }
            Err(error) if is_not_found(&error) => {}
            Err(error) => {
                let message = format!("Deleted job: {}", text(&error));
                self.events.event(cron, EventType::Warning, "FailedDelete", &message);
                return Err(error);
            }
        }
        plan::forget(status, uid(&job.metadata));
        Ok(())
    }

    /// Takes from the status what is active no more because it is gone.
    async fn forget_missing(
        &self,
        cron: &CronJob,
        status: &mut CronJobStatus,
        unknown: &[ObjectReference],
    ) -> Result<(), kube::Error> {
        for active in unknown {
            let name = active.name.as_deref().unwrap_or_default();
            // The informer may not know of it yet.
            if self.jobs_in(active.namespace.as_deref().unwrap_or_default()).get_opt(name).await?.is_none() {
                let message = format!("Active job went missing: {name}");
                self.events.event(cron, EventType::Normal, "MissingJob", &message);
                plan::forget(status, active.uid.as_deref().unwrap_or_default());
            }
        }
        Ok(())
    }

    async fn delete_active(
        &self,
        key: &ObjectKey,
        cron: &CronJob,
        status: &mut CronJobStatus,
    ) -> Result<(), kube::Error> {
        for active in plan::active(status).to_vec() {
            let name = active.name.as_deref().unwrap_or_default();
            match self.jobs_in(&key.namespace).get(name).await {
                Ok(job) => self.delete(cron, status, &key.namespace, &job).await?,
                Err(error) => {
                    let message = format!("Get job: {}", text(&error));
                    self.events.event(cron, EventType::Warning, "FailedGet", &message);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn start(
        &self,
        key: &ObjectKey,
        cron: &CronJob,
        status: &mut CronJobStatus,
        scheduled: Timestamp,
    ) -> Result<(), kube::Error> {
        let (new, jobs) = (plan::job(cron, scheduled), self.jobs_in(&key.namespace));
        let made = match jobs.create(&PostParams::default(), &new).await {
            Ok(made) => {
                let message = format!("Created job {}", made.metadata.name.as_deref().unwrap_or_default());
                self.events.event(cron, EventType::Normal, "SuccessfulCreate", &message);
                made
            }
            Err(error) if is_taken(&error) => {
                // Made by an earlier pass that could not say so, or by somebody else.
                let there = jobs.get(new.metadata.name.as_deref().unwrap_or_default()).await?;
                if controller_of(&there.metadata).is_none_or(|owner| owner.uid != uid(&cron.metadata)) {
                    return Ok(());
                }
                there
            }
            Err(error) if is_terminating(&error) => return Err(error),
            Err(error) => {
                let message = format!("Error creating job: {}", text(&error));
                self.events.event(cron, EventType::Warning, "FailedCreate", &message);
                return Err(error);
            }
        };
        status.active.get_or_insert_default().push(reference(&made));
        status.last_schedule_time = Some(Time(scheduled));
        Ok(())
    }

    /// Brings the status up to date, and makes the Job whose time has come.
    async fn sync(
        &self,
        key: &ObjectKey,
        cron: &CronJob,
        status: &mut CronJobStatus,
    ) -> Result<Outcome, kube::Error> {
        let jobs = self.jobs.of_controller("CronJob", key);
        for job in plan::past(cron, &jobs) {
            // What cannot be deleted now is tried again in the next pass; it must not keep others from starting.
            self.delete(cron, status, &key.namespace, &job).await.ok();
        }
        self.tell(cron, plan::observe(status, &jobs));
        self.forget_missing(cron, status, &plan::unknown(status, &jobs)).await?;
        let decision = plan::decide(cron, status, Timestamp::now(), &self.zone);
        self.tell(cron, decision.told);
        match decision.action {
            Action::Nothing => {}
            Action::Start(scheduled) => self.start(key, cron, status, scheduled).await?,
            Action::Replace(scheduled) => {
                self.delete_active(key, cron, status).await?;
                self.start(key, cron, status, scheduled).await?;
            }
        }
        Ok(decision.next.map_or(Outcome::Done, Outcome::After))
    }

    fn tell(&self, cron: &CronJob, told: Vec<plan::Told>) {
        for (kind, reason, message) in told {
            self.events.event(cron, kind, reason, &message);
        }
    }
}

fn is_taken(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.reason == "AlreadyExists")
}

impl Controller for CronJobs {
    const NAME: &'static str = "cronjob";
    const WORKERS: usize = 5;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.crons.synced().await;
        self.all_jobs.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let api: Api<CronJob> = Api::namespaced(self.client.clone(), &key.namespace);
        let Some(cron) = api.get_opt(&key.name).await? else { return Ok(Outcome::Done) };
        let mut status = cron.status.clone().unwrap_or_default();
        let synced = self.sync(key, &cron, &mut status).await;
        // Even of a pass that failed half-way: what it did is done.
        if status != cron.status.clone().unwrap_or_default() {
            let mut patch = status_patch(&cron.metadata, &status, cron.status.as_ref());
            patch["metadata"]["resourceVersion"] = cron.metadata.resource_version.clone().into();
            let patched = api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
            gone_is_fine(patched)?;
        }
        match synced {
            Err(error) if is_terminating(&error) => Ok(Outcome::Done),
            synced => synced,
        }
    }
}
