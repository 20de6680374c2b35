//! Jobs: pods that run to their end, as often as the spec says.
//!
//! Every pass reads the job and its pods from the API itself, so that what an earlier pass has made, ended or counted
//! is never missed.
//!
//! # Caveats
//! The delay after failures is kept in memory; another process begins it anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::{self as core, EnvVar, EnvVarSource, ObjectFieldSelector, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::view::Pod;
use skiff_client::{EventRecorder, EventType, Informer, ObjectKey, Read, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine, is_terminating, text};
use crate::lookup::{Pods, Selecting};
use crate::making::{Making, batches};
use crate::objects::{
    Selector, controller_key, controller_of, controller_reference, says_same, selects, uid,
};

mod indexes;
mod plan;
mod policy;

use plan::{Backoff, FINALIZER, NewPod, Plan};

/// Who runs a job that does not say.
const MANAGER: &str = "kubernetes.io/job-controller";
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";

pub(crate) struct Jobs {
    client: Client,
    /// Who deletes Jobs that have ended is somebody else upstream.
    cleaner: Client,
    jobs: Informer<Job>,
    pods: Pods,
    making: Making,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
    backoffs: Mutex<HashMap<ObjectKey, Backoff>>,
}

impl Jobs {
    pub(crate) fn new(context: &Context) -> Self {
        let (jobs, queue) = (context.informers.of::<Job>(), WorkQueue::default());
        let wake = queue.clone();
        jobs.on_change(move |change| {
            if let Some(job) = change.object() {
                wake.add(key_of(&**job));
            }
        });
        let selector_of = |job: &Job| job.spec.as_ref().and_then(|spec| spec.selector.clone());
        let selecting = Selecting::new(&jobs, selector_of);
        let wake = queue.clone();
        context.pods.all().on_change(move |change| {
            for pod in [&change.old, &change.new].into_iter().flatten() {
                if let Some(job) = controller_key(&pod.metadata, "Job") {
                    wake.add(job);
                } else if controller_of(&pod.metadata).is_none() {
                    let selects = |job: &Job| selector_of(job).is_some_and(|s| selects(&s, &pod.metadata));
                    let candidates = selecting.of(&pod.metadata, selects);
                    candidates.iter().for_each(|job| wake.add(key_of(&**job)));
                }
            }
        });
        Jobs {
            client: context.client.clone(),
            cleaner: context.credentials.client("ttl-after-finished-controller"),
            jobs,
            pods: context.pods.clone(),
            making: context.making.clone(),
            events: context.events("job-controller"),
            queue,
            backoffs: Mutex::default(),
        }
    }

    fn pods_of(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The job's pods as they are now: those it controls and orphans that it adopts. Those that match no more are let
    /// go.
    async fn claim(&self, key: &ObjectKey, job: &Job) -> Result<Vec<Pod>, kube::Error> {
        let Some(selector) = job.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else {
            return Ok(Vec::new());
        };
        let api = self.pods_of(&key.namespace);
        let may_adopt = job.metadata.deletion_timestamp.is_none();
        let mut pods = Vec::new();
        let listed: Api<Read<Pod>> = Api::namespaced(self.client.clone(), &key.namespace);
        for Read(pod) in listed.list(&ListParams::default().labels(&query(selector))).await?.items {
            match controller_of(&pod.metadata) {
                Some(owner) if owner.uid == uid(&job.metadata) => pods.push(pod),
                None if may_adopt && pod.metadata.deletion_timestamp.is_none() => {
                    let adopt = json!({"metadata": {"uid": pod.metadata.uid,
                        "ownerReferences": [controller_reference(job)], "finalizers": [FINALIZER]}});
                    let name = pod.metadata.name.as_deref().unwrap_or_default();
                    pods.push(api.patch(name, &PatchParams::default(), &Patch::Strategic(adopt)).await?);
                }
                _ => {}
            }
        }
        let selector = Selector::new(selector);
        for pod in self.known(key, |pod| !selector.selects(&pod.metadata)) {
            let owner = controller_of(&pod.metadata).filter(|owner| owner.uid == uid(&job.metadata));
            if owner.is_some() && may_adopt {
                let release = json!({"metadata": {"uid": pod.metadata.uid,
                    "ownerReferences": [{"$patch": "delete", "uid": job.metadata.uid}],
                    "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                gone_is_fine(api.patch(name, &PatchParams::default(), &Patch::Strategic(release)).await)?;
            }
        }
        Ok(pods)
    }

    /// Pods that the informer knows to be of the job of this name.
    fn known(&self, key: &ObjectKey, wanted: impl Fn(&Pod) -> bool) -> Vec<Arc<Pod>> {
        let mut known = self.pods.of_controller("Job", key);
        known.retain(|pod| wanted(pod));
        known
    }

    /// Lets go of pods that nobody will count any more.
    async fn untrack_all(&self, key: &ObjectKey, job: Option<&Job>) -> Result<(), kube::Error> {
        let is_left = |pod: &Pod| {
            let owner = controller_of(&pod.metadata).map(|owner| owner.uid.as_str());
            plan::is_tracked(pod) && job.is_none_or(|job| owner == Some(uid(&job.metadata)))
        };
        for pod in self.known(key, is_left) {
            self.untrack(&key.namespace, &pod).await?;
        }
        Ok(())
    }

    async fn untrack(&self, namespace: &str, pod: &Pod) -> Result<(), kube::Error> {
        if !plan::is_tracked(pod) {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": pod.metadata.uid,
            "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        gone_is_fine(
            self.pods_of(namespace).patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await,
        )
    }

    async fn delete(&self, job: &Job, namespace: &str, pod: &Pod) -> Result<(), kube::Error> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let deleted = gone_is_fine(self.pods_of(namespace).delete(name, &params).await);
        let (kind, reason, message) = match &deleted {
            Ok(()) => (EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {name}")),
            Err(error) => (EventType::Warning, "FailedDelete", format!("Error deleting: {}", text(error))),
        };
        self.events.event(job, kind, reason, &message);
        deleted
    }

    /// In batches that double; answers how many could not be made, and why.
    async fn make(&self, job: &Job, namespace: &str, wanted: &[NewPod]) -> (usize, Option<kube::Error>) {
        let api: Api<core::Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams::default();
        let mut rest = wanted;
        for batch in batches(wanted.len()) {
            let (now, later) = rest.split_at(batch);
            let create = |new| {
                let (api, params) = (&api, &params);
                async move { api.create(params, &new_pod(job, new)).await }
            };
            let made = self.making.all(now.iter().map(create).collect()).await;
            let (mut n_failed, mut failed) = (0, None);
            for result in made {
                match result {
                    Ok(pod) => {
                        let message = format!("Created pod: {}", pod.metadata.name.unwrap_or_default());
                        self.events.event(job, EventType::Normal, "SuccessfulCreate", &message);
                    }
                    Err(error) => {
                        n_failed += 1;
                        failed = Some(error);
                    }
                }
            }
            if let Some(error) = failed {
                if !is_terminating(&error) {
                    let message = format!("Error creating: {}", text(&error));
                    self.events.event(job, EventType::Warning, "FailedCreate", &message);
                }
                return (n_failed + later.len(), Some(error));
            }
            rest = later;
        }
        (0, None)
    }

    async fn write(&self, key: &ObjectKey, job: &Job, status: &JobStatus) -> Result<Job, kube::Error> {
        let api: Api<Job> = Api::namespaced(self.client.clone(), &key.namespace);
        let written = Job { status: Some(status.clone()), ..job.clone() };
        api.replace_status(&key.name, &PostParams::default(), &written).await
    }

    async fn execute(
        &self,
        key: &ObjectKey,
        job: Job,
        pods: &[Pod],
        plan: Plan,
    ) -> Result<Outcome, kube::Error> {
        for at in &plan.end {
            self.delete(&job, &key.namespace, &pods[*at]).await?;
        }
        for at in &plan.discard {
            self.untrack(&key.namespace, &pods[*at]).await?;
            self.delete(&job, &key.namespace, &pods[*at]).await?;
        }
        let (n_failed, failed) = self.make(&job, &key.namespace, &plan.make).await;
        let mut status = plan.status;
        let n_active = status.active.unwrap_or(0) - i32::try_from(n_failed).unwrap_or(0);
        status.active = Some(n_active).filter(|n| *n > 0);
        let mut job = job;
        if !says_same::<Job, _>(job.status.as_ref(), &status) {
            job = self.write(key, &job, &status).await?;
            for (kind, reason, message) in &plan.events {
                self.events.event(&job, *kind, reason, message);
            }
        }
        self.backoffs.lock().insert(key.clone(), plan.backoff);
        for at in &plan.untrack {
            self.untrack(&key.namespace, &pods[*at]).await?;
        }
        let untracked: Vec<&str> = plan.untrack.iter().map(|at| uid(&pods[*at].metadata)).collect();
        let tracked = |of: &str| {
            pods.iter().any(|pod| uid(&pod.metadata) == of && plan::is_tracked(pod))
                && !untracked.contains(&of)
        };
        plan::count_untracked(&mut status, tracked);
        let is_over = !plan.has_more && plan::finish(&mut status, plan.finished.as_ref());
        if !says_same::<Job, _>(job.status.as_ref(), &status) {
            job = self.write(key, &job, &status).await?;
        }
        if let Some(condition) = plan.finished.as_ref().filter(|_| is_over) {
            let (reason, message) = (condition.reason.as_deref(), condition.message.as_deref());
            match condition.type_.as_str() {
                "Complete" => self.events.event(&job, EventType::Normal, "Completed", "Job completed"),
                _ => self.events.event(
                    &job,
                    EventType::Warning,
                    reason.unwrap_or_default(),
                    message.unwrap_or_default(),
                ),
            }
        }
        match (failed, plan.again_s) {
            (Some(error), _) if !is_terminating(&error) => Err(error),
            (_, Some(seconds)) => Ok(Outcome::After(Duration::from_secs(seconds.max(1)))),
            _ => Ok(Outcome::Done),
        }
    }

    /// Deletes a finished job whose time has come.
    async fn expire(&self, key: &ObjectKey, job: &Job) -> Result<Outcome, kube::Error> {
        let Some(left) = plan::ttl(job, Timestamp::now()) else { return Ok(Outcome::Done) };
        if job.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        if !left.is_zero() {
            return Ok(Outcome::After(left));
        }
        let api: Api<Job> = Api::namespaced(self.cleaner.clone(), &key.namespace);
        let preconditions = Preconditions {
            uid: job.metadata.uid.clone(),
            resource_version: job.metadata.resource_version.clone(),
        };
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        gone_is_fine(api.delete(&key.name, &params).await)?;
        Ok(Outcome::Done)
    }
}

/// A selector as a query has it.
fn query(selector: &LabelSelector) -> String {
    let equal = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.match_expressions.iter().flatten().map(|expression| {
        let (key, values) = (&expression.key, expression.values.clone().unwrap_or_default().join(","));
        match expression.operator.as_str() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.clone(),
        }
    });
    equal.chain(expressions).collect::<Vec<_>>().join(",")
}

/// A pod of the job's template, of an index if it has any.
fn new_pod(job: &Job, new: &NewPod) -> core::Pod {
    let template = job.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let mut finalizers = meta.finalizers.unwrap_or_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    let mut pod = core::Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: job.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: Some(finalizers),
            owner_references: Some(vec![controller_reference(job)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    };
    if let Some(index) = new.index {
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert(plan::INDEX.to_owned(), index.to_string());
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(plan::INDEX.to_owned(), index.to_string());
        if let Some((failures, ignored)) = new.failures {
            annotations.insert(plan::FAILURES.to_owned(), failures.to_string());
            if ignored > 0 {
                annotations.insert(plan::IGNORED_FAILURES.to_owned(), ignored.to_string());
            }
        }
        // The generated part must still fit behind the index.
        let suffix = format!("-{index}-");
        let kept: String = name.chars().take(58usize.saturating_sub(suffix.len())).collect();
        pod.metadata.generate_name = Some(format!("{kept}{suffix}"));
        if let Some(spec) = &mut pod.spec {
            spec.hostname = Some(format!("{name}-{index}"));
            tell_index(spec);
        }
    }
    pod
}

/// Gives each container the index as a variable, unless it has one of that name.
fn tell_index(spec: &mut PodSpec) {
    let field =
        ObjectFieldSelector { api_version: None, field_path: format!("metadata.labels['{}']", plan::INDEX) };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
    for container in containers {
        let variables = container.env.get_or_insert_default();
        if !variables.iter().any(|variable| variable.name == INDEX_VARIABLE) {
            variables.push(EnvVar {
                name: INDEX_VARIABLE.to_owned(),
                value: None,
                value_from: Some(source.clone()),
            });
        }
    }
}

impl Controller for Jobs {
    const NAME: &'static str = "job";
    const WORKERS: usize = 5;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.jobs.synced().await;
        self.pods.all().synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let api: Api<Job> = Api::namespaced(self.client.clone(), &key.namespace);
        let Some(job) = api.get_opt(&key.name).await? else {
            self.backoffs.lock().remove(key);
            self.untrack_all(key, None).await?;
            return Ok(Outcome::Done);
        };
        let manager = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
        if manager.is_some_and(|manager| manager != MANAGER) {
            return Ok(Outcome::Done);
        }
        if plan::is_finished(&job) {
            self.backoffs.lock().remove(key);
            self.untrack_all(key, Some(&job)).await?;
            return self.expire(key, &job).await;
        }
        let pods = self.claim(key, &job).await?;
        let backoff = self.backoffs.lock().get(key).copied().unwrap_or_default();
        let plan = plan::plan(&job, &pods, backoff, Timestamp::now());
        self.execute(key, job, &pods, plan).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_of_an_index_knows_it() {
        let job: Job = serde_json::from_value(json!({
            "metadata": {"name": "j", "namespace": "d", "uid": "u"},
            "spec": {"template": {"metadata": {"labels": {"app": "a"}},
                "spec": {"containers": [{"name": "c"}, {"name": "own", "env": [{"name": INDEX_VARIABLE, "value": "x"}]}]}}},
        }))
        .unwrap();
        let pod = new_pod(&job, &NewPod { index: Some(3), failures: Some((2, 0)) });
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("j-3-"));
        assert_eq!(pod.metadata.labels.as_ref().unwrap()[plan::INDEX], "3");
        assert_eq!(pod.metadata.annotations.as_ref().unwrap()[plan::FAILURES], "2");
        assert_eq!(pod.metadata.finalizers.as_deref(), Some([FINALIZER.to_owned()].as_slice()));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.hostname.as_deref(), Some("j-3"));
        assert!(spec.containers[0].env.as_ref().unwrap()[0].value_from.is_some());
        assert_eq!(spec.containers[1].env.as_ref().unwrap().len(), 1);
        let plain = new_pod(&job, &NewPod::default());
        assert_eq!(plain.metadata.generate_name.as_deref(), Some("j-"));
        assert!(plain.metadata.annotations.is_none());
    }

    #[test]
    fn a_selector_is_asked_for_as_it_is() {
        let selector = json!({"matchLabels": {"a": "1"}, "matchExpressions": [
            {"key": "b", "operator": "In", "values": ["x", "y"]}, {"key": "c", "operator": "DoesNotExist"}]});
        assert_eq!(query(&serde_json::from_value(selector).unwrap()), "a=1,b in (x,y),!c");
    }
}
