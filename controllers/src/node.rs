//! Nodes that stop reporting: marked, tainted, and their pods evicted.
//!
//! A node reports by renewing its lease. Whether it is late is judged by this process's own clock: by when the lease
//! was last seen to change, not by the time written in it.
//!
//! How fast pods are evicted depends on how many nodes are lost: see [`zones`].
//!
//! # Cost
//! A pass looks at one node and the pods on it. It comes when the node changes or is due to be late, not every few seconds;
//! what concerns all nodes is looked at when a count of [`zones`] passes a threshold.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Taint};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::view::Pod;
use skiff_client::{Change, EventRecorder, EventType, Informer, ObjectKey, WorkQueue, key_of, reference};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine};
use crate::lookup::Pods;
use crate::objects::{has_ended, is_ready, uid};

mod plan;
mod zones;

use plan::{Bears, Evicting, FirstSeen, Moment, bears_for, ready_status};
use zones::{Leave, Passed, Zone, Zones};

/// Upstream's `node-monitor-grace-period`.
const GRACE: Duration = Duration::from_secs(50);
/// The same for a node that has never said how it is: `node-startup-grace-period`.
const STARTUP_GRACE: Duration = Duration::from_secs(60);
/// How often a node that is late is looked at, and whether this process stands still: `node-monitor-period`.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Without a look for this long, it was this process that stood still, and no node can be called late for that.
const STOOD_STILL: Duration = Duration::from_secs(15);
const LEASES: &str = "kube-node-lease";

pub(crate) struct Nodes {
    client: Client,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Pods,
    events: EventRecorder,
    evictions: EventRecorder,
    queue: WorkQueue<ObjectKey>,
    zones: Arc<Mutex<Zones>>,
    /// When each node's lease or heartbeat was last seen to change.
    seen: Arc<Mutex<HashMap<String, Instant>>>,
    /// When any node was last looked at.
    looked: Mutex<Instant>,
    /// Of nodes with taints that evict.
    tainted: Mutex<HashMap<String, FirstSeen>>,
}

/// The key under which it is seen that this process goes on; no node has it.
fn pulse() -> ObjectKey {
    ObjectKey::default()
}

impl Nodes {
    pub(crate) fn new(context: &Context) -> Self {
        let informers = &context.informers;
        let (nodes, leases) = (informers.of::<Node>(), informers.of::<Lease>());
        let queue = WorkQueue::default();
        let seen: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
        let zones: Arc<Mutex<Zones>> = Arc::default();
        let events = context.events("node-controller");
        let (wake, counted, times) = (queue.clone(), zones.clone(), seen.clone());
        let teller = events.clone();
        nodes.on_change(move |change| {
            let Some(name) = change.object().and_then(|node| node.metadata.name.clone()) else { return };
            wake.add(ObjectKey::new("", &name));
            tell(&teller, &name, change);
            // A node that is back says so before it first renews its lease.
            if let (Some(old), Some(new)) = (&change.old, &change.new)
                && heartbeat(old) != heartbeat(new)
            {
                times.lock().insert(name.clone(), Instant::now());
            }
            let mut counted = counted.lock();
            match counted.follow(&name, change.new.as_deref()) {
                Passed::Nothing => {}
                Passed::Zone(names) => names.iter().for_each(|name| wake.add(ObjectKey::new("", name))),
                Passed::Cluster(names) => {
                    // The nodes could not reach this process, or it not them: each has its time anew.
                    if !counted.is_lost() {
                        let now = Instant::now();
                        times.lock().values_mut().for_each(|at| *at = now);
                    }
                    names.iter().for_each(|name| wake.add(ObjectKey::new("", name)));
                }
            }
        });
        let (wake, times) = (queue.clone(), seen.clone());
        leases.on_change(move |change| {
            let Some(lease) = change.new.as_ref().filter(|l| l.metadata.namespace.as_deref() == Some(LEASES))
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
        let (wake, known) = (queue.clone(), nodes.clone());
        context.pods.all().on_change(move |change| {
            let node = |p: &Option<Arc<Pod>>| p.as_ref().and_then(|p| p.spec.as_ref()?.node_name.clone());
            let Some(name) = node(&change.new).filter(|n| node(&change.old).as_ref() != Some(n)) else {
                return;
            };
            // Otherwise the change of the node that makes it matter wakes the node.
            let key = ObjectKey::new("", name);
            if known.get(&key).is_some_and(|node| plan::concerns_pods(&node)) {
                wake.add(key);
            }
        });
        queue.add_after(pulse(), LOOK_EVERY);
        let evictions = context.events("taint-eviction-controller");
        Nodes {
            client: context.client.clone(),
            nodes,
            leases,
            pods: context.pods.clone(),
            events,
            evictions,
            queue,
            zones,
            seen,
            looked: Mutex::new(Instant::now()),
            tainted: Mutex::default(),
        }
    }

    /// What nobody could have told while this process stood still does not count as silence.
    fn forgive(&self) {
        let gone = std::mem::replace(&mut *self.looked.lock(), Instant::now()).elapsed();
        if gone > STOOD_STILL {
            self.seen.lock().values_mut().for_each(|at| *at += gone);
        }
    }

    /// How long until the node is late; `None` if it is.
    fn time_left(&self, name: &str, node: &Node) -> Option<Duration> {
        let seen = *self.seen.lock().entry(name.to_owned()).or_insert_with(Instant::now);
        let grace = if ready_status(node).is_some() { GRACE } else { STARTUP_GRACE };
        grace.checked_sub(seen.elapsed())
    }

    /// Every condition of a node that no longer reports is unknown.
    async fn mark_unknown(&self, node: &Node) -> Result<(), kube::Error> {
        let conditions = plan::unknown_conditions(node, Timestamp::now());
        if conditions.is_empty() {
            return Ok(());
        }
        let name = node.metadata.name.clone().unwrap_or_default();
        let patch = json!({"metadata": {"uid": node.metadata.uid}, "status": {"conditions": conditions}});
        let api: Api<Node> = Api::all(self.client.clone());
        gone_is_fine(api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        if ready_status(node) == Some("True") {
            let message = format!("Node {name} status is now: NodeNotReady");
            self.events.event_about(bare(node), EventType::Normal, "NodeNotReady", &message);
        }
        Ok(())
    }

    /// Nobody can say any more that these pods are ready, so that Services stop leading to them.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<(), kube::Error> {
        for pod in self.pods.on_node(node) {
            if !is_ready(&pod) {
                continue;
            }
            let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [
                {"type": "Ready", "status": "False", "lastTransitionTime": now}]}});
            let key = key_of(&*pod);
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
            match api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {
                    self.events.event(&*pod, EventType::Warning, "NodeNotReady", "Node is not ready");
                }
                failed => gone_is_fine(failed)?,
            }
        }
        Ok(())
    }

    /// What becomes of the node's pods, and when to ask again if they have to wait for those of another.
    fn evicting(&self, name: &str, node: &Node) -> (Evicting, Option<Duration>) {
        let mut zones = self.zones.lock();
        if zones.is_lost() {
            return (Evicting::Stopped, None);
        }
        if !plan::waits_for_eviction(node) {
            return (Evicting::Unchanged, None);
        }
        match zones.may_evict(name, &Zone::of(node), Instant::now()) {
            Leave::Granted => (Evicting::Begun, None),
            Leave::In(left) => (Evicting::Unchanged, Some(left)),
            // It is woken when that changes.
            Leave::Withheld => (Evicting::Unchanged, None),
        }
    }

    /// Brings the taints in line with the conditions.
    async fn taint(&self, node: &Node, evicting: Evicting) -> Result<Vec<Taint>, kube::Error> {
        let wanted = plan::wanted_taints(node, evicting, Timestamp::now());
        let have = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
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
        let seen = self.first_seen(node, taints);
        if !taints.iter().any(|taint| taint.effect == "NoExecute") {
            return Ok(next);
        }
        for pod in self.pods.on_node(node) {
            if pod.metadata.deletion_timestamp.is_some() || has_ended(&pod) {
                continue;
            }
            match bears_for(&pod, taints, &seen, Moment::now()) {
                Bears::Forever => {}
                Bears::For(left) if !left.is_zero() => next = Some(next.map_or(left, |n| n.min(left))),
                Bears::For(_) => self.delete(&pod).await?,
            }
        }
        Ok(next)
    }

    /// Since when the node's taints are known. What a node no longer has is forgotten.
    fn first_seen(&self, node: &str, taints: &[Taint]) -> FirstSeen {
        let mut tainted = self.tainted.lock();
        let mut seen = tainted.remove(node).unwrap_or_default();
        seen.look(taints, Moment::now());
        if !seen.is_empty() {
            tainted.insert(node.to_owned(), seen.clone());
        }
        seen
    }

    async fn delete(&self, pod: &Pod) -> Result<(), kube::Error> {
        let key = key_of(pod);
        let message = format!("Marking for deletion Pod {key}");
        self.evictions.event(pod, EventType::Normal, "TaintManagerEviction", &message);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [
            {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
             "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": now,
             "observedGeneration": pod.metadata.generation}]}});
        gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        let preconditions = Preconditions { uid: Some(uid(&pod.metadata).into()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        gone_is_fine(api.delete(&key.name, &params).await)
    }
}

/// Events are about the node, not about a version of it.
fn bare(node: &Node) -> ObjectReference {
    ObjectReference { resource_version: None, ..reference(node) }
}

/// Says that a node has come or gone. As upstream, this process also says it of every node that it finds when it starts.
fn tell(events: &EventRecorder, name: &str, change: &Change<Node>) {
    let (node, reason, what) = match change {
        Change { old: None, new: Some(node) } => {
            (node, "RegisteredNode", format!("Registered Node {name} in Controller"))
        }
        Change { old: Some(node), new: None } => {
            (node, "RemovingNode", format!("Removing Node {name} from Controller"))
        }
        _ => return,
    };
    events.event_about(bare(node), EventType::Normal, reason, &format!("Node {name} event: {what}"));
}

/// When the node last said whether it is ready. Whoever else writes the condition leaves this as it is.
fn heartbeat(node: &Node) -> Option<Timestamp> {
    let conditions = node.status.as_ref()?.conditions.iter().flatten();
    let ready = conditions.into_iter().find(|c| c.type_ == "Ready")?;
    ready.last_heartbeat_time.as_ref().map(|t| t.0)
}

impl Controller for Nodes {
    const NAME: &'static str = "node-lifecycle";
    /// Upstream's: a rack of nodes that is lost has many pods to be marked.
    const WORKERS: usize = 8;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.nodes.synced().await;
        self.leases.synced().await;
        self.pods.all().synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        self.forgive();
        if *key == pulse() {
            return Ok(Outcome::After(LOOK_EVERY));
        }
        let Some(node) = self.nodes.get(key) else {
            self.seen.lock().remove(&key.name);
            self.tainted.lock().remove(&key.name);
            return Ok(Outcome::Done);
        };
        let left = self.time_left(&key.name, &node);
        if left.is_none() {
            // The change comes back through the informer, and with it the taints.
            self.mark_unknown(&node).await?;
        }
        if ready_status(&node).is_some_and(|status| status != "True") {
            self.mark_pods_not_ready(&key.name).await?;
        }
        let (evicting, again) = self.evicting(&key.name, &node);
        let taints = self.taint(&node, evicting).await?;
        let due = self.evict(&key.name, &taints).await?;
        // One that is late is looked at until it reports again.
        let left = left.unwrap_or(LOOK_EVERY);
        let next = [due, again].into_iter().flatten().fold(left, Duration::min);
        Ok(Outcome::After(next.max(Duration::from_millis(100))))
    }
}
