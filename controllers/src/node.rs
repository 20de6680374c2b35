//! Nodes that stop reporting: marked, tainted, and their pods evicted.
//!
//! A node reports by renewing its lease. Whether it is late is judged by this process's own clock: by when the lease
//! was last seen to change, not by the time written in it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::{EventRecorder, EventType, Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine};
use crate::objects::{has_ended, uid};

/// Upstream's `node-monitor-grace-period`.
const GRACE: Duration = Duration::from_secs(50);
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const LEASES: &str = "kube-node-lease";

pub(crate) struct Nodes {
    client: Client,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
    /// When each node's lease was last seen to change.
    seen: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Nodes {
    pub(crate) fn new(context: &Context) -> Self {
        let informers = &context.informers;
        let (nodes, leases) = (informers.of::<Node>(), informers.of::<Lease>());
        let pods = informers.of::<Pod>();
        let queue = WorkQueue::default();
        let seen: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
        let wake = queue.clone();
        nodes.on_change(move |change| {
            if let Some(node) = change.object() {
                wake.add(key_of(&**node));
            }
        });
        let (wake, times) = (queue.clone(), seen.clone());
        leases.on_change(move |change| {
            let Some(lease) = change.object().filter(|l| l.metadata.namespace.as_deref() == Some(LEASES))
            else {
                return;
            };
            let name = lease.metadata.name.clone().unwrap_or_default();
            let first = times.lock().insert(name.clone(), Instant::now()).is_none();
            // Renewals come every ten seconds and change nothing; one that was late does.
            if first {
                wake.add(ObjectKey::new("", name));
            }
        });
        // A pod bound to a node that is already tainted has a deadline too.
        let wake = queue.clone();
        pods.on_change(move |change| {
            let node = |p: &Option<Arc<Pod>>| p.as_ref().and_then(|p| p.spec.as_ref()?.node_name.clone());
            if let Some(name) = node(&change.new).filter(|n| node(&change.old).as_ref() != Some(n)) {
                wake.add(ObjectKey::new("", name));
            }
        });
        let events = context.events("node-controller");
        Nodes { client: context.client.clone(), nodes, leases, pods, events, queue, seen }
    }

    /// How long until the node is late; `None` if it is.
    fn time_left(&self, name: &str) -> Option<Duration> {
        let seen = *self.seen.lock().entry(name.to_owned()).or_insert_with(Instant::now);
        GRACE.checked_sub(seen.elapsed())
    }

    /// Every condition of a node that no longer reports is unknown.
    async fn mark_unknown(&self, node: &Node) -> Result<(), kube::Error> {
        let name = node.metadata.name.clone().unwrap_or_default();
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let conditions: Vec<_> = node
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .filter(|c| {
                matches!(c.type_.as_str(), "Ready" | "MemoryPressure" | "DiskPressure" | "PIDPressure")
            })
            .filter(|c| c.status != "Unknown")
            .map(|c| {
                json!({"type": c.type_, "status": "Unknown", "reason": "NodeStatusUnknown",
                       "message": "Kubelet stopped posting node status.", "lastTransitionTime": now})
            })
            .collect();
        if conditions.is_empty() {
            return Ok(());
        }
        let patch = json!({"status": {"conditions": conditions}});
        let api: Api<Node> = Api::all(self.client.clone());
        gone_is_fine(api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        let message = format!("Node {name} status is now: NodeNotReady");
        self.events.event(node, EventType::Normal, "NodeNotReady", &message);
        Ok(())
    }

    /// Nobody can say any more that these pods are ready, so that Services stop leading to them.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<(), kube::Error> {
        for pod in self.pods_on(node) {
            let ready = crate::objects::pod_condition(&pod, "Ready").is_some_and(|c| c.status == "True");
            if !ready {
                continue;
            }
            let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [
                {"type": "Ready", "status": "False", "lastTransitionTime": now}]}});
            let key = key_of(&*pod);
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
            gone_is_fine(
                api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await,
            )?;
        }
        Ok(())
    }

    fn pods_on(&self, node: &str) -> Vec<Arc<Pod>> {
        self.pods.filter(|_, pod| pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node))
    }

    /// Brings the taints in line with the Ready condition.
    async fn taint(&self, node: &Node) -> Result<Vec<Taint>, kube::Error> {
        let have: Vec<Taint> = node.spec.iter().flat_map(|s| s.taints.clone().unwrap_or_default()).collect();
        let wanted = wanted_taints(node, &have, Timestamp::now());
        if have != wanted {
            let name = node.metadata.name.clone().unwrap_or_default();
            let patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version}, "spec": {"taints": wanted}});
            let api: Api<Node> = Api::all(self.client.clone());
            api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        Ok(wanted)
    }

    /// Deletes the pods that do not bear the node's taints any longer; answers when the next one is due.
    async fn evict(&self, node: &str, taints: &[Taint]) -> Result<Option<Duration>, kube::Error> {
        let mut next: Option<Duration> = None;
        for pod in self.pods_on(node) {
            if pod.metadata.deletion_timestamp.is_some() || has_ended(&pod) {
                continue;
            }
            match bears_for(&pod, taints, Timestamp::now()) {
                Bears::Forever => {}
                Bears::For(left) if !left.is_zero() => next = Some(next.map_or(left, |n| n.min(left))),
                Bears::For(_) => self.delete(&pod).await?,
            }
        }
        Ok(next)
    }

    async fn delete(&self, pod: &Pod) -> Result<(), kube::Error> {
        let key = key_of(pod);
        let message = format!("Marking for deletion Pod {key}");
        self.events.event(pod, EventType::Normal, "TaintManagerEviction", &message);
        let preconditions = Preconditions { uid: Some(uid(&pod.metadata).into()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        gone_is_fine(api.delete(&key.name, &params).await)
    }
}

fn ready_status(node: &Node) -> &str {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().find(|c| c.type_ == "Ready").map_or("Unknown", |c| c.status.as_str())
}

/// The node's taints, with those of the two keys that are ours as the Ready condition wants them.
fn wanted_taints(node: &Node, have: &[Taint], now: Timestamp) -> Vec<Taint> {
    let key = match ready_status(node) {
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    let ours = |taint: &Taint| taint.key == NOT_READY || taint.key == UNREACHABLE;
    let mut wanted: Vec<Taint> =
        have.iter().filter(|t| !ours(t) || Some(t.key.as_str()) == key).cloned().collect();
    for effect in ["NoSchedule", "NoExecute"] {
        let Some(key) = key else { break };
        if !wanted.iter().any(|t| t.key == key && t.effect == effect) {
            let time_added =
                (effect == "NoExecute").then_some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
            wanted.push(Taint { key: key.into(), effect: effect.into(), value: None, time_added });
        }
    }
    wanted
}

#[derive(Debug, PartialEq)]
enum Bears {
    Forever,
    For(Duration),
}

/// How long a pod bears the `NoExecute` taints of its node.
fn bears_for(pod: &Pod, taints: &[Taint], now: Timestamp) -> Bears {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let mut least: Option<Duration> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let bearing: Vec<_> = tolerations
            .iter()
            .filter(|t| t.effect.as_deref().is_none_or(|e| e.is_empty() || e == taint.effect))
            .filter(|t| t.key.as_deref().is_none_or(|k| k.is_empty() || k == taint.key))
            .filter(|t| {
                t.operator.as_deref() == Some("Exists")
                    || (t.key.is_some()
                        && t.value.as_deref().unwrap_or_default()
                            == taint.value.as_deref().unwrap_or_default())
            })
            .collect();
        if bearing.is_empty() {
            return Bears::For(Duration::ZERO);
        }
        let Some(seconds) = bearing.iter().filter_map(|t| t.toleration_seconds).min() else { continue };
        let since = taint.time_added.as_ref().map_or(now, |t| t.0);
        let left = since.as_second() + seconds.max(0) - now.as_second();
        let left = Duration::from_secs(u64::try_from(left).unwrap_or(0));
        least = Some(least.map_or(left, |l| l.min(left)));
    }
    least.map_or(Bears::Forever, Bears::For)
}

impl Controller for Nodes {
    const NAME: &'static str = "node-lifecycle";

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.nodes.synced().await;
        self.leases.synced().await;
        self.pods.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(node) = self.nodes.get(key) else {
            self.seen.lock().remove(&key.name);
            return Ok(Outcome::Done);
        };
        let left = self.time_left(&key.name);
        if left.is_none() {
            // The change comes back through the informer, and with it the taints.
            self.mark_unknown(&node).await?;
        }
        if ready_status(&node) != "True" {
            self.mark_pods_not_ready(&key.name).await?;
        }
        let taints = self.taint(&node).await?;
        let due = self.evict(&key.name, &taints).await?;
        // One that is late is looked at until it reports again.
        let left = left.unwrap_or(Duration::from_secs(5));
        Ok(Outcome::After(due.map_or(left, |d| d.min(left)).max(Duration::from_millis(100))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": [
            {"type": "Ready", "status": ready}]}}))
        .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn taints_follow_the_ready_condition_and_leave_others_alone() {
        let own = Taint { key: "k".into(), effect: "NoSchedule".into(), ..Taint::default() };
        let keys = |ready: &str, have: &[Taint]| {
            wanted_taints(&node(ready), have, at(0))
                .iter()
                .map(|t| format!("{}:{}", t.key, t.effect))
                .collect::<Vec<_>>()
        };
        assert_eq!(keys("True", std::slice::from_ref(&own)), ["k:NoSchedule"]);
        let unreachable = wanted_taints(&node("Unknown"), &[own], at(0));
        assert_eq!(unreachable.len(), 3);
        assert_eq!(keys("Unknown", &unreachable).len(), 3, "a second pass changes nothing");
        assert_eq!(keys("True", &unreachable), ["k:NoSchedule"]);
    }

    #[test]
    fn a_pod_bears_a_taint_for_as_long_as_it_tolerates_it() {
        let taints = wanted_taints(&node("Unknown"), &[], at(100));
        let pod = |toleration: serde_json::Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {}, "spec": {"containers": [], "tolerations": [toleration]}}),
            )
            .unwrap()
        };
        let five_minutes = json!({"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        assert_eq!(
            bears_for(&pod(five_minutes.clone()), &taints, at(150)),
            Bears::For(Duration::from_secs(250))
        );
        assert_eq!(bears_for(&pod(five_minutes), &taints, at(500)), Bears::For(Duration::ZERO));
        assert_eq!(bears_for(&pod(json!({"operator": "Exists"})), &taints, at(500)), Bears::Forever);
        assert_eq!(bears_for(&pod(json!({"key": "other"})), &taints, at(100)), Bears::For(Duration::ZERO));
    }
}
