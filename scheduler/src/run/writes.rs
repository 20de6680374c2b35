//! What the scheduler asks of the API. Each runs beside the decisions and holds a place for as long as it does, writing one
//! thing after the other.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Binding, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};
use skiff_client::view::{Pod, PodCondition};
use skiff_client::{EventType, ObjectKey, key_of, reference};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, warn};

use super::Scheduler;
use crate::cluster::{DISRUPTION_TARGET, PREEMPTED, Tenant, has_ended, nominated_node, uid_of};
use crate::desk::{NAME, is_ours};
use crate::framework::Nomination;
use crate::preemption::Preemption;
use crate::volumes::Bindings;

/// A report is of what a pod was when it was decided about; so many times it may have changed.
const MAX_REPORT_ATTEMPTS: u32 = 4;
const REPORT_AGAIN: Duration = Duration::from_millis(100);

/// Why a pod is not scheduled, and what the node it waits for has become.
pub(super) struct Report {
    key: ObjectKey,
    uid: String,
    message: String,
    /// `None` where it stays as it is, `""` where there is none any longer.
    nominated: Option<String>,
}

impl Report {
    pub(super) fn new(pod: &Pod, message: String, nomination: &Nomination) -> Report {
        let nominated = match nomination {
            Nomination::Keep => None,
            Nomination::Clear => Some(String::new()),
            Nomination::Node(preemption) => Some(preemption.node.clone()),
        };
        Report { key: key_of(pod), uid: uid_of(pod).to_owned(), message, nominated }
    }

    /// What of a pod's status is to be written; `None` if it says all of it already.
    pub(super) fn status(&self, pod: &Pod) -> Option<Value> {
        let mut status = serde_json::Map::new();
        if let Some(condition) = condition(pod, "PodScheduled", "False", "Unschedulable", &self.message) {
            status.insert("conditions".into(), json!([condition]));
        }
        let nominated = self.nominated.as_deref();
        if let Some(node) = nominated.filter(|node| *node != nominated_node(pod).unwrap_or_default()) {
            let node = if node.is_empty() { Value::Null } else { node.into() };
            status.insert("nominatedNodeName".into(), node);
        }
        (!status.is_empty()).then_some(status.into())
    }
}

/// A condition of a pod as it is to be; `None` if it is so.
fn condition(pod: &Pod, type_: &str, status: &str, reason: &str, message: &str) -> Option<Value> {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let old: Option<&PodCondition> = conditions.into_iter().find(|c| c.type_ == type_);
    let same_status = old.filter(|c| c.status == status);
    let is_so = |c: &PodCondition| {
        c.reason.as_deref() == Some(reason)
            && c.message.as_deref() == Some(message)
            && c.observed_generation == pod.metadata.generation
    };
    if same_status.is_some_and(is_so) {
        return None;
    }
    let since = same_status.and_then(|c| json!(c.last_transition_time).as_str().map(str::to_owned));
    let now = || jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    Some(json!({
        "type": type_, "status": status, "reason": reason, "message": message,
        "observedGeneration": pod.metadata.generation,
        "lastTransitionTime": since.unwrap_or_else(now),
    }))
}

/// The API answers that there is no such object.
fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

impl Scheduler {
    pub(super) async fn bind(
        self: Arc<Self>,
        pod: Arc<Pod>,
        key: ObjectKey,
        node: String,
        bindings: Bindings,
        place: OwnedSemaphorePermit,
    ) {
        let place = match self.bind_volumes(&pod, &key, &node, bindings, place).await {
            Ok(place) => place,
            Err(why) => {
                let message = format!("running PreBind plugin \"VolumeBinding\": {why}");
                let (reason, action) = ("FailedScheduling", "Scheduling");
                self.events.event(&*pod, None, EventType::Warning, reason, action, &message);
                return self.not_bound(key, &pod);
            }
        };
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(key.name.clone()),
                namespace: Some(key.namespace.clone()),
                uid: pod.metadata.uid.clone(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.clone()),
                ..ObjectReference::default()
            },
        };
        let bound: Result<Value, _> = self
            .pods_in(&key)
            .create_subresource("binding", &key.name, &PostParams::default(), &binding)
            .await;
        match bound {
            Ok(_) => {
                let message = format!("Successfully assigned {key} to {node}");
                self.events.event(&*pod, None, EventType::Normal, "Scheduled", "Binding", &message);
            }
            Err(error) => {
                debug!(pod = %key, node, %error, "a binding failed");
                if !is_missing(&error) {
                    self.clear_nomination(&key, uid_of(&pod)).await;
                }
                self.not_bound(key, &pod);
            }
        }
        drop(place);
    }

    fn not_bound(&self, key: ObjectKey, pod: &Pod) {
        let mut inbox = self.inbox.lock();
        // What the pod has become meanwhile is looked at after that.
        inbox.pods.insert(key.clone());
        inbox.failed.push((key, uid_of(pod).to_owned()));
        drop(inbox);
        self.wake.notify_one();
    }

    pub(super) async fn report(self: Arc<Self>, report: Report, place: OwnedSemaphorePermit) {
        self.write(&report).await;
        drop(place);
    }

    /// Writes a report of a version that waits: not over what has become of the pod meanwhile.
    async fn write(&self, report: &Report) {
        let Report { key, uid, .. } = report;
        for attempt in 0..MAX_REPORT_ATTEMPTS {
            tokio::time::sleep(REPORT_AGAIN * attempt).await;
            let Some(pod) = self.pod(key, uid).filter(|pod| is_ours(pod)) else { return };
            let Some(status) = report.status(&pod) else { return };
            let patch = json!({
                "metadata": {"uid": uid, "resourceVersion": pod.metadata.resource_version},
                "status": status,
            });
            match self.patch_status(key, patch).await {
                // The copy is not as new as the pod.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return warn!(pod = %key, %error, "cannot write why a pod is not scheduled"),
                Ok(()) => return,
            }
        }
        debug!(pod = %key, "a pod changes too often to write why it is not scheduled");
    }

    /// Makes room for a pod, and says so.
    pub(super) async fn preempt(
        self: Arc<Self>,
        pod: Arc<Pod>,
        report: Report,
        preemption: Preemption,
        place: OwnedSemaphorePermit,
    ) {
        self.write(&report).await;
        for displaced in &preemption.displaced {
            self.clear_nomination(&displaced.key, &displaced.uid).await;
        }
        let Preemption { node, mut victims, .. } = preemption;
        if let Err((n_evicted, error)) = self.evict_all(&victims, &report, &pod, &node).await {
            if let Some(error) = error {
                warn!(pod = %report.key, node, %error, "cannot make room for a pod");
            }
            // Those that go, go.
            victims.drain(..n_evicted);
            self.inbox.lock().spared.push((report.key, victims));
            self.wake.notify_one();
        }
        drop(place);
    }

    /// Answers how many were evicted when it ended early, and what ended it if not that nobody needs the room any more.
    async fn evict_all(
        &self,
        victims: &[Arc<Tenant>],
        report: &Report,
        preemptor: &Pod,
        node: &str,
    ) -> Result<(), (usize, Option<kube::Error>)> {
        for (n_evicted, victim) in victims.iter().enumerate() {
            if self.pod(&report.key, &report.uid).is_none_or(|pod| !is_ours(&pod)) {
                return Err((n_evicted, None));
            }
            self.evict(victim, preemptor, node).await.map_err(|error| (n_evicted, Some(error)))?;
        }
        Ok(())
    }

    /// Deletes a pod to make room for another, unless it has ended or is on its way out already.
    async fn evict(&self, victim: &Tenant, preemptor: &Pod, node: &str) -> Result<(), kube::Error> {
        let pod = self.pod(&victim.key, &victim.uid);
        let is_there = |pod: &Arc<Pod>| pod.metadata.deletion_timestamp.is_none() && !has_ended(pod);
        let Some(pod) = pod.filter(is_there) else { return Ok(()) };
        let scheduler = preemptor.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or(NAME);
        let message = format!("{scheduler}: preempting to accommodate a higher priority pod");
        if let Some(condition) = condition(&pod, DISRUPTION_TARGET, "True", PREEMPTED, &message) {
            let patch = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [condition]}});
            match self.patch_status(&victim.key, patch).await {
                Err(error) if is_missing(&error) => return Ok(()),
                written => written?,
            }
        }
        // Another may have come under its name.
        let it = Preconditions { uid: Some(victim.uid.clone()), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(it), ..DeleteParams::default() };
        match self.pods_in(&victim.key).delete(&victim.key.name, &params).await {
            Err(error) if is_missing(&error) => return Ok(()),
            deleted => drop(deleted?),
        }
        let message = format!("Preempted by pod {} on node {node}", uid_of(preemptor));
        let related = Some(reference(preemptor));
        self.events.event(&*pod, related, EventType::Normal, "Preempted", "Preempting", &message);
        Ok(())
    }

    /// Has a pod wait for no node any longer.
    async fn clear_nomination(&self, key: &ObjectKey, uid: &str) {
        if self.pod(key, uid).is_none_or(|pod| nominated_node(&pod).is_none()) {
            return;
        }
        let patch = json!({"metadata": {"uid": uid}, "status": {"nominatedNodeName": null}});
        if let Err(error) = self.patch_status(key, patch).await {
            warn!(pod = %key, %error, "cannot clear the nominated node of a pod");
        }
    }

    async fn patch_status(&self, key: &ObjectKey, patch: Value) -> Result<(), kube::Error> {
        let patch = Patch::Strategic(patch);
        self.pods_in(key).patch_status(&key.name, &PatchParams::default(), &patch).await.map(drop)
    }

    /// This very pod, as it was last heard of.
    pub(super) fn pod(&self, key: &ObjectKey, uid: &str) -> Option<Arc<Pod>> {
        self.pods.get(key).filter(|pod| uid_of(pod) == uid)
    }

    fn pods_in(&self, key: &ObjectKey) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }
}
