//! Takes back that a pod is about to be disrupted, where nobody has deleted it after all.
//!
//! Source: upstream's disruption controller.

use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use skiff_client::view::Pod;
use skiff_client::{Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine};
use crate::objects::has_ended;

const DISRUPTION_TARGET: &str = "DisruptionTarget";
/// A kubelet that ends a pod may take its time.
const BY_KUBELET: &str = "TerminationByKubelet";
/// Who says that a pod is to go deletes it next.
const STALE_AFTER: Duration = Duration::from_mins(2);

pub(crate) struct StaleDisruptions {
    client: Client,
    pods: Informer<Pod>,
    queue: WorkQueue<ObjectKey>,
}

impl StaleDisruptions {
    pub(crate) fn new(context: &Context) -> Self {
        let (pods, queue) = (context.pods.all().clone(), WorkQueue::default());
        let wake: WorkQueue<ObjectKey> = queue.clone();
        pods.on_change(move |change| {
            let left = change.new.as_ref().and_then(|pod| stale_in(pod, Timestamp::now()));
            if let (Some(pod), Some(left)) = (&change.new, left) {
                wake.add_after(key_of(&**pod), left);
            }
        });
        StaleDisruptions { client: context.client.clone(), pods, queue }
    }
}

/// How long until nobody can be about to delete the pod any longer; `None` if nobody says so, or somebody did.
fn stale_in(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let told = conditions.iter().find(|c| c.type_ == DISRUPTION_TARGET && c.status == "True")?;
    let is_going = pod.metadata.deletion_timestamp.is_some() || has_ended(pod);
    if is_going || told.reason.as_deref() == Some(BY_KUBELET) {
        return None;
    }
    let since = told.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    Some(STALE_AFTER.saturating_sub(passed))
}

impl Controller for StaleDisruptions {
    const NAME: &'static str = "stale-disruption";
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.pods.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(pod) = self.pods.get(key) else { return Ok(Outcome::Done) };
        match stale_in(&pod, Timestamp::now()) {
            None => return Ok(Outcome::Done),
            Some(left) if !left.is_zero() => return Ok(Outcome::After(left)),
            Some(_) => {}
        }
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        // Whoever deletes it meanwhile says why anew.
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version},
            "status": {"conditions": [{"type": DISRUPTION_TARGET, "status": "False", "reason": null, "message": null,
                "lastTransitionTime": now, "observedGeneration": pod.metadata.generation}]}});
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A pod that was told so a minute ago, with changes.
    fn told(changes: Value) -> Option<Duration> {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let mut pod = json!({"metadata": {}, "status": {"phase": "Running", "conditions": [
            {"type": "DisruptionTarget", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        for (path, value) in changes.as_object().into_iter().flatten() {
            *pod.pointer_mut(path).unwrap() = value.clone();
        }
        stale_in(&serde_json::from_value(pod).unwrap(), now)
    }

    #[test]
    fn two_minutes_after_it_was_said_nobody_means_it_any_longer() {
        assert_eq!(told(json!({})), Some(Duration::from_secs(60)));
        let at = "/status/conditions/0/lastTransitionTime";
        assert_eq!(told(json!({at: "2025-12-31T23:00:00Z"})), Some(Duration::ZERO));
        assert_eq!(
            told(json!({at: "2026-01-01T00:05:00Z"})),
            Some(STALE_AFTER),
            "another's clock may be ahead"
        );
    }

    #[test]
    fn what_is_going_or_is_ended_by_its_kubelet_is_left_alone() {
        assert_eq!(told(json!({"/metadata": {"deletionTimestamp": "2026-01-01T00:00:30Z"}})), None);
        assert_eq!(told(json!({"/status/phase": "Failed"})), None);
        let condition = |status: &str, reason: &str| json!({"/status/conditions": [{"type": "DisruptionTarget", "status": status, "reason": reason}]});
        assert_eq!(told(condition("True", "TerminationByKubelet")), None);
        assert_eq!(told(condition("False", "")), None);
        assert_eq!(told(condition("True", "EvictionByEvictionAPI")), Some(Duration::ZERO));
    }
}
