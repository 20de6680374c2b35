//! The loop around decisions: informers in, bindings out.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use skiff_api::LabelSelector;
use skiff_client::{Change, EventRecorder, EventType, Informer, Informers, ObjectKey, key_of};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::cluster::{Cluster, PodInfo, has_ended, node_of};
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
        namespaces: informers.of::<Namespace>(),
        services: informers.of::<Service>(),
        sets: informers.of::<ReplicaSet>(),
        events: EventRecorder::new(client.clone(), NAME, ""),
        client,
        state: Mutex::default(),
        wake: Notify::new(),
    });
    scheduler.clone().listen();
    tokio::select! {
        // Both only wait.
        () = scheduler.synced() => {}
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
    namespaces: Informer<Namespace>,
    services: Informer<Service>,
    sets: Informer<ReplicaSet>,
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
        self.namespaces.on_change(move |change| {
            let mut state = to.state.lock();
            state.cluster.namespace_changed(change);
            let labels = |n: &Option<Arc<Namespace>>| n.as_ref().map(|n| n.metadata.labels.clone());
            // Terms may select namespaces.
            if labels(&change.old) != labels(&change.new) {
                state.queue.cluster_changed(Instant::now());
                to.wake.notify_one();
            }
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

    async fn synced(&self) {
        self.nodes.synced().await;
        self.pods.synced().await;
        self.namespaces.synced().await;
        self.services.synced().await;
        self.sets.synced().await;
    }

    /// Selects the pods that belong together with one: those of its Services and its ReplicaSet.
    fn siblings(&self, pod: &Pod) -> Option<LabelSelector> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let labels = pod.metadata.labels.as_ref();
        let mut all = BTreeMap::new();
        for service in self.services.list_in(namespace) {
            let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
            let Some(selector) = selector.filter(|s| !s.is_empty()) else { continue };
            if selector.iter().all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value)) {
                all.extend(selector.clone());
            }
        }
        let owners = pod.metadata.owner_references.iter().flatten();
        let owner = owners.into_iter().find(|r| r.controller == Some(true) && r.kind == "ReplicaSet");
        let set = owner.and_then(|owner| self.sets.get(&ObjectKey::new(namespace, &owner.name)));
        let of_set = set.and_then(|s| s.spec.as_ref().map(|s| s.selector.clone())).unwrap_or_default();
        all.extend(of_set.match_labels.unwrap_or_default());
        let selector = json!({"matchLabels": all, "matchExpressions": of_set.match_expressions});
        LabelSelector::from_json(&selector).ok()
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
                } else if placement_changed(change) {
                    // It may be one that others want to be near, or spread evenly with.
                    let minds = |key: &ObjectKey| self.pods.get(key).is_some_and(|p| minds_others(&p));
                    state.queue.cluster_changed_for(Instant::now(), minds);
                }
            }
        }
    }

    async fn schedule(self: Arc<Self>, key: ObjectKey) {
        let Some(pod) = self.pods.get(&key).filter(|p| is_ours(p)) else {
            self.state.lock().queue.remove(&key);
            return;
        };
        let siblings = self.siblings(&pod);
        let info = Arc::new(PodInfo::new(pod.clone()));
        let decision = {
            let mut state = self.state.lock();
            let snapshot = state.cluster.snapshot();
            let decision = decide(&info, &snapshot, siblings.as_ref(), pick);
            let n_looked_at = decision.as_ref().map_or(0, |d| d.n_looked_at);
            state.cluster.go_on_after(n_looked_at);
            let decision = decision.map(|d| d.node.name().to_owned());
            match &decision {
                Ok(node) => state.cluster.assume(info, node),
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
                state.cluster.forget(&pod);
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
            "observedGeneration": pod.metadata.generation,
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

/// Whether it depends on other pods where this one may go.
fn minds_others(pod: &Pod) -> bool {
    let spreads = |s: &k8s_openapi::api::core::v1::PodSpec| {
        s.topology_spread_constraints.as_ref().is_some_and(|c| !c.is_empty())
    };
    pod.spec.as_ref().is_some_and(|s| s.affinity.is_some() || spreads(s))
}

/// Whether what others are placed by has changed about a pod that is on a node.
fn placement_changed(change: &Change<Pod>) -> bool {
    let seen = |pod: &Option<Arc<Pod>>| {
        let pod = pod.as_deref()?;
        let meta = &pod.metadata;
        Some((node_of(pod)?.to_owned(), meta.labels.clone(), meta.deletion_timestamp.is_some()))
    };
    seen(&change.old) != seen(&change.new)
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
