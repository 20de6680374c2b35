//! Which pod is next.
//!
//! ```text
//!  add ─► active (by priority, then age) ─► being decided ─► bound
//!            ▲   ▲                              │ nothing fits, or binding failed
//!            │   └── backing off ◄──┐           ▼
//!            │                      └─────── waiting (until a change may help it)
//!            └──────── five minutes ────────────┘
//! ```
//!
//! A pod that is removed leaves nothing behind, also when that happens while it is being decided: what then becomes of
//! the decision is no longer asked.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use skiff_client::ObjectKey;
use skiff_client::view::Pod;
use tokio::time::Instant;

use crate::cluster::{NodeInfo, PodInfo, priority};
use crate::plugins;

/// Upstream's figures.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
const MAX_WAIT: Duration = Duration::from_secs(300);

/// Something happened to the cluster that may let pods in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event<'c> {
    /// A node has come, or is another than it was.
    Node(&'c NodeInfo),
    NodeGone,
    /// A pod has left a node.
    Room(&'c NodeInfo),
    /// A pod has come to a node, or its labels have changed; or those of a namespace.
    Others,
    /// A claim has come, or is another than it was.
    Claim(&'c ObjectKey),
    /// The same of a volume, or a class.
    Volumes,
}

/// Why a pod waits.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) info: Arc<PodInfo>,
    /// Pods on other nodes had to do with it.
    pub(crate) minds_others: bool,
}

impl Waiting {
    /// Source: the idea of upstream's queueing hints (KEP-4247), by kind of event.
    fn is_helped_by(&self, event: Event<'_>) -> bool {
        match event {
            // What is counted over a topology changes with the nodes in it, on this node or any other.
            Event::Node(node) | Event::Room(node) => self.minds_others || plugins::may_fit(&self.info, node),
            Event::NodeGone | Event::Others => self.minds_others,
            Event::Claim(key) => {
                key.namespace == self.info.traits.namespace
                    && self.info.claims.iter().any(|claim| claim.name == key.name)
            }
            Event::Volumes => !self.info.claims.is_empty(),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    pods: HashMap<ObjectKey, Pending>,
    /// With entries for pods that are no longer active; `pop` passes them over.
    active: BinaryHeap<(i32, Reverse<u64>, ObjectKey)>,
    /// Those that wait or back off, by when they are active again if nothing else happens.
    due: BTreeSet<(Instant, ObjectKey)>,
    /// Those that events may help.
    waiting: BTreeSet<ObjectKey>,
    next: u64,
}

#[derive(Debug)]
struct Pending {
    /// As it was last heard of.
    pod: Arc<Pod>,
    attempts: u32,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Under this number.
    Active(u64),
    /// Taken out by `pop`.
    Deciding,
    Waiting {
        due: Instant,
        tried: Instant,
        why: Waiting,
    },
    BackingOff {
        due: Instant,
    },
}

impl Queue {
    /// A pod that has no node. One that is known is looked at again only if it asks for something else than before: a
    /// change of its status, such as our own report, is no reason to.
    pub(crate) fn add(&mut self, key: &ObjectKey, pod: Arc<Pod>) {
        match self.pods.get_mut(key) {
            Some(pending) => {
                let before = std::mem::replace(&mut pending.pod, pod);
                if is_same(&before, &pending.pod) {
                    return;
                }
                if before.metadata.uid != pending.pod.metadata.uid {
                    pending.attempts = 0;
                }
            }
            None => {
                // The stage is set by `activate`.
                let pending = Pending { pod, attempts: 0, stage: Stage::Deciding };
                self.pods.insert(key.clone(), pending);
            }
        }
        self.activate(key);
    }

    fn activate(&mut self, key: &ObjectKey) {
        self.leave(key);
        let Some(pending) = self.pods.get_mut(key) else { return };
        if matches!(pending.stage, Stage::Active(_)) {
            return;
        }
        self.next += 1;
        pending.stage = Stage::Active(self.next);
        self.active.push((priority(&pending.pod), Reverse(self.next), key.clone()));
    }

    /// Takes a pod out of what it waits in.
    fn leave(&mut self, key: &ObjectKey) {
        let due = match self.pods.get(key).map(|pending| &pending.stage) {
            Some(Stage::Waiting { due, .. } | Stage::BackingOff { due }) => *due,
            _ => return,
        };
        self.due.remove(&(due, key.clone()));
        self.waiting.remove(key);
    }

    /// The pod is bound, or gone.
    pub(crate) fn remove(&mut self, key: &ObjectKey) {
        self.leave(key);
        self.pods.remove(key);
    }

    /// Nothing fits now.
    pub(crate) fn put_off(&mut self, key: &ObjectKey, why: Waiting, now: Instant) {
        let due = now + MAX_WAIT;
        if self.failed(key, |_| Stage::Waiting { due, tried: now, why }) {
            self.due.insert((due, key.clone()));
            self.waiting.insert(key.clone());
        }
    }

    /// The binding of a pod failed: try again after a while, whatever the cluster does. Another pod of the same name may
    /// have come since.
    pub(crate) fn retry(&mut self, key: &ObjectKey, uid: &str, now: Instant) {
        let is_it = |pending: &Pending| pending.pod.metadata.uid.as_deref().unwrap_or_default() == uid;
        if !self.pods.get(key).is_some_and(is_it) {
            return;
        }
        let mut at = now;
        let back_off = |attempts| {
            at = now + backoff(attempts);
            Stage::BackingOff { due: at }
        };
        if self.failed(key, back_off) {
            self.due.insert((at, key.clone()));
        }
    }

    /// Counts an attempt; `false` if the pod is not to wait: it has been removed, or changed, since it was taken out.
    fn failed(&mut self, key: &ObjectKey, stage: impl FnOnce(u32) -> Stage) -> bool {
        let Some(pending) = self.pods.get_mut(key) else { return false };
        if !matches!(pending.stage, Stage::Deciding) {
            return false;
        }
        pending.attempts = pending.attempts.saturating_add(1);
        pending.stage = stage(pending.attempts);
        true
    }

    /// Those whom it may help are due once their back-off is over.
    pub(crate) fn happened(&mut self, event: Event<'_>, now: Instant) {
        let mut helped = Vec::new();
        for key in &self.waiting {
            if let Some(Pending { attempts, stage: Stage::Waiting { due, tried, why }, .. }) =
                self.pods.get(key)
                && why.is_helped_by(event)
            {
                helped.push((key.clone(), *due, (*tried + backoff(*attempts)).max(now)));
            }
        }
        for (key, was, due) in helped {
            self.back_off(key, was, due);
        }
    }

    /// One that waits is due once its back-off is over, whatever it waits for.
    pub(crate) fn hurry(&mut self, key: &ObjectKey, now: Instant) {
        if let Some(Pending { attempts, stage: Stage::Waiting { due, tried, .. }, .. }) = self.pods.get(key) {
            let (was, due) = (*due, (*tried + backoff(*attempts)).max(now));
            self.back_off(key.clone(), was, due);
        }
    }

    fn back_off(&mut self, key: ObjectKey, was: Instant, due: Instant) {
        self.waiting.remove(&key);
        self.due.remove(&(was, key.clone()));
        if let Some(pending) = self.pods.get_mut(&key) {
            pending.stage = Stage::BackingOff { due };
        }
        self.due.insert((due, key));
    }

    /// A pod as it was last heard of.
    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Arc<Pod>> {
        self.pods.get(key).map(|pending| &pending.pod)
    }

    /// Takes out the next pod, or says when to ask again.
    pub(crate) fn pop(&mut self, now: Instant) -> Result<(ObjectKey, Arc<Pod>), Option<Instant>> {
        while let Some((at, key)) = self.due.first().filter(|(at, _)| *at <= now).cloned() {
            self.activate(&key);
            // `activate` has done so, unless the two disagree.
            self.due.remove(&(at, key));
        }
        while let Some((_, Reverse(number), key)) = self.active.pop() {
            if let Some(pending) = self.pods.get_mut(&key)
                && matches!(pending.stage, Stage::Active(at) if at == number)
            {
                pending.stage = Stage::Deciding;
                return Ok((key, pending.pod.clone()));
            }
        }
        Err(self.due.first().map(|(at, _)| *at))
    }
}

/// Whether the same pod asks for the same.
fn is_same(old: &Pod, new: &Pod) -> bool {
    old.metadata.uid == new.metadata.uid && old.spec == new.spec && old.metadata.labels == new.metadata.labels
}

fn backoff(attempts: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::{Cluster, NodeChange};

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("d", name)
    }

    fn pod(name: &str, spec: Value) -> Arc<Pod> {
        let mut spec = spec;
        spec["containers"] =
            json!([{"name": "c", "resources": {"requests": {"cpu": spec["cpu"].as_str().unwrap_or("1")}}}]);
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
    }

    fn add(queue: &mut Queue, name: &str, spec: Value) {
        queue.add(&key(name), pod(name, spec));
    }

    fn popped(queue: &mut Queue, now: Instant) -> Result<String, Option<Instant>> {
        queue.pop(now).map(|(key, _)| key.name)
    }

    fn alone(name: &str) -> Waiting {
        Waiting { info: Arc::new(PodInfo::new(pod(name, json!({})))), minds_others: false }
    }

    fn minding(name: &str) -> Waiting {
        Waiting { minds_others: true, ..alone(name) }
    }

    /// A node of so much CPU.
    fn node(cluster: &mut Cluster, cpu: &str) -> NodeInfo {
        let node = json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": cpu, "pods": "9"}}});
        let node = Arc::new(serde_json::from_value(node).unwrap());
        let NodeChange::Other(id) = cluster.node_changed("n", Some(&node)) else { panic!("a node") };
        cluster.node(id).clone()
    }

    #[test]
    fn the_highest_priority_goes_first_then_the_oldest() {
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 0), ("c", 10)] {
            add(&mut queue, name, json!({"priority": priority}));
        }
        let now = Instant::now();
        let order: Vec<String> = std::iter::from_fn(|| popped(&mut queue, now).ok()).collect();
        assert_eq!(order, ["c", "a", "b"]);
    }

    #[test]
    fn a_pod_that_fits_nowhere_waits_for_a_change_and_its_back_off() {
        let mut queue = Queue::default();
        let start = Instant::now();
        add(&mut queue, "a", json!({}));
        assert_eq!(popped(&mut queue, start).as_deref(), Ok("a"));
        queue.put_off(&key("a"), minding("a"), start);
        assert_eq!(popped(&mut queue, start), Err(Some(start + MAX_WAIT)));
        queue.happened(Event::Others, start);
        assert_eq!(popped(&mut queue, start), Err(Some(start + FIRST_BACKOFF)));
        assert_eq!(popped(&mut queue, start + FIRST_BACKOFF).as_deref(), Ok("a"));
        let later = start + FIRST_BACKOFF;
        queue.put_off(&key("a"), minding("a"), later);
        assert_eq!(popped(&mut queue, later + MAX_WAIT).as_deref(), Ok("a"), "or for five minutes");
        let again = later + MAX_WAIT;
        queue.put_off(&key("a"), minding("a"), again);
        let late = again + MAX_BACKOFF;
        queue.happened(Event::Others, late);
        assert_eq!(popped(&mut queue, late).as_deref(), Ok("a"), "its back-off was over long ago");
    }

    #[test]
    fn what_cannot_help_a_pod_does_not_wake_it() {
        let (mut queue, mut cluster) = (Queue::default(), Cluster::default());
        let now = Instant::now();
        let small = node(&mut cluster, "500m");
        let large = node(&mut cluster, "2");
        let is_waiting = |queue: &mut Queue| popped(queue, now) == Err(Some(now + MAX_WAIT));
        add(&mut queue, "a", json!({}));
        queue.pop(now).unwrap();
        queue.put_off(&key("a"), alone("a"), now);
        for event in [Event::Node(&small), Event::Room(&small), Event::NodeGone, Event::Others] {
            queue.happened(event, now);
            assert!(is_waiting(&mut queue), "{event:?}");
        }
        queue.happened(Event::Room(&large), now);
        assert!(!is_waiting(&mut queue), "there is room");
        for event in [Event::Node(&small), Event::Room(&small), Event::NodeGone, Event::Others] {
            let mut queue = Queue::default();
            add(&mut queue, "a", json!({}));
            queue.pop(now).unwrap();
            queue.put_off(&key("a"), minding("a"), now);
            queue.happened(event, now);
            assert!(!is_waiting(&mut queue), "others count for it: {event:?}");
        }
    }

    #[test]
    fn a_pod_in_a_hurry_is_due_once_its_back_off_is_over_whatever_it_waits_for() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.hurry(&key("a"), now);
        add(&mut queue, "a", json!({}));
        queue.pop(now).unwrap();
        queue.hurry(&key("a"), now);
        assert_eq!(popped(&mut queue, now), Err(None), "it is being decided about");
        queue.put_off(&key("a"), alone("a"), now);
        queue.hurry(&key("a"), now);
        assert_eq!(popped(&mut queue, now), Err(Some(now + FIRST_BACKOFF)));
        assert_eq!(popped(&mut queue, now + FIRST_BACKOFF).as_deref(), Ok("a"));
        assert!(queue.due.is_empty() && queue.waiting.is_empty());
    }

    #[test]
    fn a_removed_pod_is_not_handed_out() {
        let mut queue = Queue::default();
        add(&mut queue, "a", json!({}));
        queue.remove(&key("a"));
        assert_eq!(popped(&mut queue, Instant::now()), Err(None));
    }

    #[test]
    fn a_pod_that_is_removed_leaves_nothing_behind() {
        let now = Instant::now();
        let put_off = |queue: &mut Queue| queue.put_off(&key("a"), alone("a"), now);
        let retry = |queue: &mut Queue| queue.retry(&key("a"), "", now);
        let failing: [&dyn Fn(&mut Queue); 2] = [&put_off, &retry];
        for fail in failing {
            for while_deciding in [true, false] {
                let mut queue = Queue::default();
                add(&mut queue, "a", json!({}));
                queue.pop(now).unwrap();
                if while_deciding {
                    queue.remove(&key("a"));
                    fail(&mut queue);
                } else {
                    fail(&mut queue);
                    queue.remove(&key("a"));
                }
                assert_eq!(popped(&mut queue, now), Err(None), "it came back");
                assert!(queue.pods.is_empty() && queue.due.is_empty() && queue.waiting.is_empty());
            }
        }
    }

    #[test]
    fn a_pod_that_changes_while_it_is_decided_is_decided_again_at_once() {
        let mut queue = Queue::default();
        let now = Instant::now();
        add(&mut queue, "a", json!({}));
        queue.pop(now).unwrap();
        add(&mut queue, "a", json!({"nodeSelector": {"a": "b"}}));
        queue.put_off(&key("a"), alone("a"), now);
        assert_eq!(popped(&mut queue, now).as_deref(), Ok("a"));
        assert_eq!(popped(&mut queue, now), Err(None), "and only once");
    }

    #[test]
    fn a_pod_of_which_only_the_status_changes_goes_on_waiting() {
        let mut queue = Queue::default();
        let now = Instant::now();
        add(&mut queue, "a", json!({}));
        queue.pop(now).unwrap();
        queue.put_off(&key("a"), alone("a"), now);
        add(&mut queue, "a", json!({}));
        assert_eq!(popped(&mut queue, now), Err(Some(now + MAX_WAIT)));
        add(&mut queue, "a", json!({"cpu": "2"}));
        assert_eq!(popped(&mut queue, now).as_deref(), Ok("a"), "what it asks for matters");
    }
}
