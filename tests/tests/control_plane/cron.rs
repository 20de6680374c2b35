//! CronJobs: Jobs at the times that they are for.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::plane::list;
use crate::{ControlPlane, create, is_bound, until};

fn cron(more: Value) -> Value {
    let job = json!({"spec": {"template": {"spec": {"restartPolicy": "Never",
        "containers": [{"name": "c", "image": "image:1"}]}}}});
    let mut cron = json!({"metadata": {"name": "tick"}, "spec": {"schedule": "@yearly", "timeZone": "Etc/UTC",
        "suspend": true, "jobTemplate": job}});
    if let (Some(spec), Value::Object(more)) = (cron["spec"].as_object_mut(), more) {
        spec.extend(more);
    }
    cron
}

/// Lets the last new year count as a time that has come since the last Job was started.
async fn make_due(plane: &ControlPlane) -> Result<()> {
    let (crons, params) = (plane.api::<CronJob>(), PatchParams::default());
    let status = json!({"status": {"lastScheduleTime": "2025-06-01T00:00:00Z"}});
    crons.patch_status("tick", &params, &Patch::Merge(status)).await?;
    crons.patch("tick", &params, &Patch::Merge(json!({"spec": {"suspend": false}}))).await?;
    Ok(())
}

async fn started(plane: &ControlPlane) -> Result<Job> {
    until("a job", async || Ok(list(&plane.api::<Job>()).await?.pop())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_started_for_the_time_that_has_come_and_followed_to_its_end() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let crons = plane.api::<CronJob>();
    create(&crons, cron(json!({}))).await?;
    make_due(&plane).await?;

    let job = started(&plane).await?;
    let (name, meta) = (job.metadata.name.clone().context("no name")?, job.metadata);
    let time =
        &meta.annotations.context("no annotations")?["batch.kubernetes.io/cronjob-scheduled-timestamp"];
    ensure!(time.ends_with("-01-01T00:00:00Z"), "{time}");
    let owner = meta.owner_references.unwrap_or_default().pop().context("no owner")?;
    ensure!((owner.kind.as_str(), owner.name.as_str(), owner.controller) == ("CronJob", "tick", Some(true)));
    ensure!(plane.event("tick", "SuccessfulCreate").await? == format!("Created job {name}"));
    let status = async || crons.get("tick").await?.status.context("no status");
    until("the job is active", async || {
        let active = status().await?.active.unwrap_or_default();
        Ok((active.len() == 1 && active[0].name.as_ref() == Some(&name)).then_some(()))
    })
    .await?;
    let minutes: i64 = name.rsplit_once('-').context("no time in the name")?.1.parse()?;
    let scheduled = status().await?.last_schedule_time.context("no last time")?;
    ensure!(scheduled.0.as_second() == minutes * 60, "{scheduled:?}");

    let pod = until("a pod", async || Ok(plane.pods().await?.into_iter().find(is_bound))).await?;
    let done = json!({"status": {"phase": "Succeeded"}});
    let pod = pod.metadata.name.context("no name")?;
    plane.api::<Pod>().patch_status(&pod, &PatchParams::default(), &Patch::Merge(done)).await?;
    until("the job is over", async || {
        let status = status().await?;
        let is_over = status.active.is_none() && status.last_successful_time.is_some();
        Ok(is_over.then_some(()))
    })
    .await?;
    let message = plane.event("tick", "SawCompletedJob").await?;
    ensure!(message == format!("Saw completed job: {name}, condition: Complete"), "{message}");
    ensure!(list(&plane.api::<Job>()).await?.len() == 1, "one time is one job");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_ended_goes_when_the_history_does_not_keep_it() -> Result<()> {
    let plane = ControlPlane::start().await?;
    create(&plane.api::<CronJob>(), cron(json!({"successfulJobsHistoryLimit": 0}))).await?;
    make_due(&plane).await?;
    let name = started(&plane).await?.metadata.name.context("no name")?;
    until("no job any more", async || {
        let done = json!({"status": {"phase": "Succeeded"}});
        for pod in plane.pods().await?.into_iter().filter(is_bound) {
            let pod = pod.metadata.name.context("no name")?;
            plane.api::<Pod>().patch_status(&pod, &PatchParams::default(), &Patch::Merge(&done)).await?;
        }
        Ok(plane.api::<Job>().get_opt(&name).await?.is_none().then_some(()))
    })
    .await?;
    ensure!(plane.event("tick", "SuccessfulDelete").await? == format!("Deleted job {name}"));
    plane.stop().await
}
