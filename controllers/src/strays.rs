//! Pods that nobody else will ever delete: their node is gone, or they were deleted before they had one; and the oldest
//! of too many that have ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_client::view::Pod;
use skiff_client::{Informer, ObjectKey, WorkQueue, key_of};
use tokio::time::Instant;
use tracing::info;

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine};
use crate::lookup::Pods;
use crate::objects::has_ended;

mod plan;

use plan::Verdict;

/// A node may be missing because it is being registered again: upstream's figure.
const QUARANTINE: Duration = Duration::from_secs(40);

/// Between two looks at the pods that have ended: upstream's `gcCheckPeriod`.
const SWEEP_EVERY: Duration = Duration::from_secs(20);

pub(crate) struct Strays {
    client: Client,
    pods: Pods,
    nodes: Informer<Node>,
    queue: WorkQueue<ObjectKey>,
    /// When each pod's node was first found to be missing.
    missing_since: Mutex<HashMap<ObjectKey, Instant>>,
}

/// The key under which ended pods are counted; no pod has it.
fn sweep() -> ObjectKey {
    ObjectKey::default()
}

impl Strays {
    pub(crate) fn new(context: &Context) -> Self {
        let (pods, nodes) = (context.pods.clone(), context.informers.of::<Node>());
        let queue = WorkQueue::default();
        let (wake, known, all) = (queue.clone(), nodes.clone(), pods.clone());
        pods.all().on_change(move |change| {
            let Some(pod) = change.object() else { return };
            let node = plan::node_name(pod).and_then(|name| known.get(&ObjectKey::new("", name)));
            // One that is gone is forgotten.
            if change.new.is_none() || plan::verdict(pod, node.as_deref()) != Verdict::Keep {
                wake.add(key_of(&**pod));
            }
            let ended = |p: &Option<Arc<Pod>>| p.as_ref().is_some_and(|p| has_ended(p));
            if ended(&change.new) && !ended(&change.old) && all.n_ended() > plan::MAX_ENDED {
                wake.add_after(sweep(), SWEEP_EVERY);
            }
        });
        let (wake, all) = (queue.clone(), pods.clone());
        nodes.on_change(move |change| {
            let Some(node) = change.object() else { return };
            if change.new.is_none() || plan::is_out_of_service(node) {
                let on_it = all.on_node(node.metadata.name.as_deref().unwrap_or_default());
                on_it.iter().for_each(|pod| wake.add(key_of(&**pod)));
            }
        });
        Strays { client: context.client.clone(), pods, nodes, queue, missing_since: Mutex::default() }
    }

    /// How much longer a pod whose node is missing is left alone.
    fn quarantine_left(&self, key: &ObjectKey) -> Option<Duration> {
        let since = *self.missing_since.lock().entry(key.clone()).or_insert_with(Instant::now);
        QUARANTINE.checked_sub(since.elapsed()).filter(|left| !left.is_zero())
    }

    /// Nobody is left to say how the pod ended, so it has failed; and nobody to end it, so it goes at once.
    async fn delete(&self, pod: &Pod, condition: Option<Value>) -> Result<(), kube::Error> {
        let key = key_of(pod);
        info!(pod = %key, "deleting a pod that no node will end");
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        if !has_ended(pod) {
            let mut status = json!({"phase": "Failed", "observedGeneration": pod.metadata.generation});
            if let Some(condition) = condition {
                status["conditions"] = json!([condition]);
            }
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
            let patched =
                api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            gone_is_fine(patched)?;
        }
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        gone_is_fine(api.delete(&key.name, &params).await)
    }

    async fn delete_surplus(&self) -> Result<(), kube::Error> {
        for pod in plan::surplus(&self.pods.ended(), plan::MAX_ENDED) {
            self.delete(pod, None).await?;
        }
        Ok(())
    }
}

impl Controller for Strays {
    const NAME: &'static str = "pod-garbage-collector";
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.pods.all().synced().await;
        self.nodes.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        if *key == sweep() {
            self.delete_surplus().await?;
            return Ok(Outcome::Done);
        }
        let pod = self.pods.all().get(key);
        let node_name = pod.as_ref().and_then(|pod| plan::node_name(pod));
        let node = node_name.and_then(|name| self.nodes.get(&ObjectKey::new("", name)));
        let verdict = pod.as_ref().map_or(Verdict::Keep, |pod| plan::verdict(pod, node.as_deref()));
        if verdict != Verdict::NodeIsMissing {
            self.missing_since.lock().remove(key);
        }
        match (verdict, &pod, node_name) {
            (Verdict::Delete, Some(pod), _) => self.delete(pod, None).await?,
            (Verdict::NodeIsMissing, Some(pod), Some(name)) => {
                if let Some(left) = self.quarantine_left(key) {
                    return Ok(Outcome::After(left));
                }
                let nodes: Api<Node> = Api::all(self.client.clone());
                match nodes.get_opt(name).await? {
                    None => self.delete(pod, Some(node_gone(pod))).await?,
                    Some(_) => drop(self.missing_since.lock().remove(key)),
                }
            }
            _ => {}
        }
        Ok(Outcome::Done)
    }
}

fn node_gone(pod: &Pod) -> Value {
    json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
        "message": "PodGC: node no longer exists", "observedGeneration": pod.metadata.generation,
        "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()})
}

#[cfg(test)]
mod tests {
    use http::Method;
    use skiff_client::Informers;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::testing::{ScriptedApi, discovery};

    #[tokio::test]
    async fn a_pod_whose_node_is_gone_has_failed_before_it_goes_at_once() {
        let api = ScriptedApi::new(|asked| {
            (asked.path == "/api/v1/namespaces/d/pods/p" || asked.path.ends_with("/status"))
                .then(|| json!({"metadata": {"name": "p"}}))
        });
        let shutdown = CancellationToken::new();
        let informers = Informers::new(api.client(), shutdown.clone());
        let strays = Strays::new(&Context::new(api.credentials(), informers, discovery()));
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"nodeName": "n", "containers": []}, "status": {"phase": "Running"}}))
            .unwrap();
        strays.delete(&pod, Some(node_gone(&pod))).await.unwrap();
        shutdown.cancel();
        let written = api.written();
        assert_eq!(written.iter().map(|w| &w.method).collect::<Vec<_>>(), [Method::PATCH, Method::DELETE]);
        let status = &written[0].body["status"];
        assert_eq!(
            (&status["phase"], &status["conditions"][0]["reason"]),
            (&json!("Failed"), &json!("DeletionByPodGC"))
        );
        assert_eq!(written[1].body["gracePeriodSeconds"], 0);
        assert_eq!(written[1].body["preconditions"]["uid"], "u");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_missing_only_for_a_while_costs_no_pod() {
        let api = ScriptedApi::new(|_| None);
        let shutdown = CancellationToken::new();
        let informers = Informers::new(api.client(), shutdown.clone());
        let strays = Strays::new(&Context::new(api.credentials(), informers, discovery()));
        shutdown.cancel();
        let key = ObjectKey::new("d", "p");
        assert_eq!(strays.quarantine_left(&key), Some(QUARANTINE));
        tokio::time::advance(QUARANTINE / 2).await;
        assert_eq!(strays.quarantine_left(&key), Some(QUARANTINE / 2));
        tokio::time::advance(QUARANTINE / 2).await;
        assert_eq!(strays.quarantine_left(&key), None);
        strays.reconcile(&key).await.unwrap();
        assert!(strays.missing_since.lock().is_empty(), "a pod that is gone was remembered");
    }
}
