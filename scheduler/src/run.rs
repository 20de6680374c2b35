//! The loop around decisions: informers in, bindings out.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::{Change, EventRecorder, EventType, Informer, Informers, ObjectKey, key_of};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::cluster::{Cluster, has_ended, node_of};
use crate::framework::{Unschedulable, decide};
use crate::queue::Queue;

/// The name in a pod's `spec.schedulerName`, and the component in its events.
const NAME: &str = "default-scheduler";

/// Schedules pods until `shutdown`.
pub async fn run(client: Client, shutdown: CancellationToken) {
    let informers = Informers::new(client.clone(), shutdown.clone());
    let scheduler = Arc::new(Scheduler {
        pods: informers.of::<Pod>(),
        nodes: informers.of::<Node>(),
        events: EventRecorder::new(client.clone(), NAME, ""),
        client,
        state: Mutex::default(),
        wake: Notify::new(),
    });
    scheduler.clone().listen();
    tokio::select! {
        () = async { scheduler.nodes.synced().await; scheduler.pods.synced().await; } => {}
        () = shutdown.cancelled() => return,
    }
    loop {
        let next = scheduler.state.lock().queue.pop(Instant::now());
        match next {
            Ok(key) => scheduler.clone().schedule(key).await,
            Err(until) => {
                let due = async {
                    match until {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    // All arms only wait.
                    () = scheduler.wake.notified() => {}
                    () = due => {}
                    () = shutdown.cancelled() => return,
                }
            }
        }
    }
}

struct Scheduler {
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    events: EventRecorder,
    client: Client,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    cluster: Cluster,
    queue: Queue,
}

impl Scheduler {
    fn listen(self: Arc<Self>) {
        let to = self.clone();
        self.pods.on_change(move |change| {
            to.pod_changed(change);
            to.wake.notify_one();
        });
        let to = self.clone();
        self.nodes.on_change(move |change| {
            let mut state = to.state.lock();
            state.cluster.node_changed(change);
            // Leases and heartbeats do not change what fits.
            if fits_otherwise(change) {
                state.queue.cluster_changed(Instant::now());
                to.wake.notify_one();
            }
        });
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let mut state = self.state.lock();
        state.cluster.pod_changed(change);
        let Some(pod) = change.object() else { return };
        let key = key_of(&**pod);
        match &change.new {
            Some(new) if is_ours(new) => {
                if !state.cluster.is_placed(&key) && spec_changed(change) {
                    state.queue.add(key, new.spec.as_ref().and_then(|s| s.priority).unwrap_or_default());
                }
            }
            new => {
                state.queue.remove(&key);
                let room_was_made = new.as_ref().is_none_or(|p| has_ended(p));
                if room_was_made {
                    state.queue.cluster_changed(Instant::now());
                }
            }
        }
    }

    async fn schedule(self: Arc<Self>, key: ObjectKey) {
        let Some(pod) = self.pods.get(&key).filter(|p| is_ours(p)) else { return };
        let decision = {
            let mut state = self.state.lock();
            let nodes = state.cluster.snapshot();
            let decision = decide(&pod, &nodes, pick).map(|node| node.name().to_owned());
            match &decision {
                Ok(node) => state.cluster.assume(&pod, node),
                Err(_) => state.queue.put_off(key.clone(), Instant::now()),
            }
            decision
        };
        match decision {
            // Bindings run beside the next decision; the assumption keeps the room.
            Ok(node) => drop(tokio::spawn(self.bind(pod, key, node))),
            Err(why) => self.report(&pod, why).await,
        }
    }

    async fn bind(self: Arc<Self>, pod: Arc<Pod>, key: ObjectKey, node: String) {
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
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let bound: Result<serde_json::Value, _> =
            pods.create_subresource("binding", &key.name, &PostParams::default(), &binding).await;
        match bound {
            Ok(_) => {
                let message = format!("Successfully assigned {key} to {node}");
                self.events.event(&*pod, EventType::Normal, "Scheduled", &message);
            }
            Err(error) => {
                debug!(pod = %key, node, %error, "a binding failed");
                let mut state = self.state.lock();
                state.cluster.forget(&key);
                // One that is gone, or bound by another, leaves the queue by its own event.
                state.queue.retry(key, Instant::now());
                drop(state);
                self.wake.notify_one();
            }
        }
    }

    async fn report(&self, pod: &Pod, why: Unschedulable) {
        self.events.event(pod, EventType::Warning, "FailedScheduling", &why.message);
        let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let known = conditions.into_iter().any(|c| {
            c.type_ == "PodScheduled"
                && c.status == "False"
                && c.message.as_deref() == Some(why.message.as_str())
        });
        if known {
            return;
        }
        let key = key_of(pod);
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why.message,
            "lastTransitionTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        });
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        if let Err(error) =
            pods.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await
        {
            warn!(pod = %key, %error, "cannot write why a pod is not scheduled");
        }
    }
}

/// Among equals any will do; the clock's lowest digits spread them.
fn pick(n: usize) -> usize {
    let nanos = jiff::Timestamp::now().subsec_nanosecond().unsigned_abs();
    nanos as usize / 100 % n.max(1)
}

/// Waits for this scheduler.
fn is_ours(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    node_of(pod).is_none()
        && pod.metadata.deletion_timestamp.is_none()
        && !has_ended(pod)
        && spec.scheduler_name.as_deref().is_none_or(|n| n == NAME)
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

/// A change of a waiting pod's status, such as our own report, is no reason to look again.
fn spec_changed(change: &Change<Pod>) -> bool {
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => old.spec != new.spec || old.metadata.labels != new.metadata.labels,
        _ => true,
    }
}

fn fits_otherwise(change: &Change<Node>) -> bool {
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => {
            let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
            old.spec != new.spec
                || old.metadata.labels != new.metadata.labels
                || allocatable(old) != allocatable(new)
        }
        _ => true,
    }
}
