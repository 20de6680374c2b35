//! Which pod is next.
//!
//! ```text
//!  add ─► active (by priority, then age) ─► being decided ─► bound
//!            ▲   ▲                              │ nothing fits
//!            │   └── back-off over ◄── waiting ◄┘ (until the cluster changes, or five minutes)
//!            └────── cluster changed ──────┘
//! ```
//!
//! A pod that is removed leaves nothing behind, also when that happens while it is being decided: what then becomes of
//! the decision is no longer asked.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::time::Duration;

use skiff_client::ObjectKey;
use tokio::time::Instant;

/// Upstream's figures.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
const MAX_WAIT: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
pub(crate) struct Queue {
    active: BinaryHeap<(i32, Reverse<u64>, ObjectKey)>,
    /// When a pod that fits nowhere is looked at again if nothing changes.
    waiting: BTreeMap<ObjectKey, Instant>,
    attempts: HashMap<ObjectKey, u32>,
    priorities: HashMap<ObjectKey, i32>,
    /// Queued now: a pod is in `active` at most once.
    queued: HashMap<ObjectKey, u64>,
    /// Taken out by `pop`, and not yet put off, bound or removed.
    being_decided: HashSet<ObjectKey>,
    next: u64,
}

impl Queue {
    pub(crate) fn add(&mut self, key: ObjectKey, priority: i32) {
        self.waiting.remove(&key);
        self.priorities.insert(key.clone(), priority);
        self.activate(key);
    }

    fn activate(&mut self, key: ObjectKey) {
        if self.queued.contains_key(&key) {
            return;
        }
        let priority = self.priorities.get(&key).copied().unwrap_or_default();
        self.next += 1;
        self.queued.insert(key.clone(), self.next);
        self.active.push((priority, Reverse(self.next), key));
    }

    /// The pod is bound, or gone.
    pub(crate) fn remove(&mut self, key: &ObjectKey) {
        self.waiting.remove(key);
        self.attempts.remove(key);
        self.priorities.remove(key);
        self.being_decided.remove(key);
        // Its entry in the heap is passed over by `pop`.
        self.queued.remove(key);
    }

    /// Nothing fits now.
    pub(crate) fn put_off(&mut self, key: ObjectKey, now: Instant) {
        if self.failed(&key).is_some() {
            self.waiting.insert(key, now + MAX_WAIT);
        }
    }

    /// A binding failed: try again after a while, whatever the cluster does.
    pub(crate) fn retry(&mut self, key: ObjectKey, now: Instant) {
        if let Some(attempts) = self.failed(&key) {
            self.waiting.insert(key, now + backoff(attempts));
        }
    }

    /// Counts an attempt; `None` if the pod is not to wait: it has been removed, or added again, since it was taken out.
    fn failed(&mut self, key: &ObjectKey) -> Option<u32> {
        if !self.being_decided.remove(key) {
            return None;
        }
        let attempts = self.attempts.entry(key.clone()).or_default();
        *attempts = attempts.saturating_add(1);
        (!self.queued.contains_key(key)).then_some(*attempts)
    }

    /// Something changed that may help those who wait: each is due once its back-off is over.
    pub(crate) fn cluster_changed(&mut self, now: Instant) {
        self.cluster_changed_for(now, |_| true);
    }

    /// The same, for some of them.
    pub(crate) fn cluster_changed_for(&mut self, now: Instant, may_help: impl Fn(&ObjectKey) -> bool) {
        for (key, due) in self.waiting.iter_mut().filter(|(key, _)| may_help(key)) {
            let attempts = self.attempts.get(key).copied().unwrap_or(1);
            *due = (*due).min(now + backoff(attempts));
        }
    }

    /// Takes out the next pod, or says when to ask again.
    pub(crate) fn pop(&mut self, now: Instant) -> Result<ObjectKey, Option<Instant>> {
        let due: Vec<ObjectKey> =
            self.waiting.iter().filter(|(_, at)| **at <= now).map(|(k, _)| k.clone()).collect();
        for key in due {
            self.waiting.remove(&key);
            self.activate(key);
        }
        while let Some((_, Reverse(number), key)) = self.active.pop() {
            if self.queued.get(&key) == Some(&number) {
                self.queued.remove(&key);
                self.being_decided.insert(key.clone());
                return Ok(key);
            }
        }
        Err(self.waiting.values().min().copied())
    }
}

fn backoff(attempts: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("d", name)
    }

    #[tokio::test(start_paused = true)]
    async fn the_highest_priority_goes_first_then_the_oldest() {
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 0), ("c", 10)] {
            queue.add(key(name), priority);
        }
        let now = Instant::now();
        let order: Vec<String> = std::iter::from_fn(|| queue.pop(now).ok()).map(|k| k.name).collect();
        assert_eq!(order, ["c", "a", "b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_fits_nowhere_waits_for_a_change_and_its_back_off() {
        let mut queue = Queue::default();
        let start = Instant::now();
        queue.add(key("a"), 0);
        assert_eq!(queue.pop(start), Ok(key("a")));
        queue.put_off(key("a"), start);
        assert_eq!(queue.pop(start), Err(Some(start + MAX_WAIT)));
        queue.cluster_changed_for(start, |_| false);
        assert_eq!(queue.pop(start), Err(Some(start + MAX_WAIT)), "what cannot help it");
        queue.cluster_changed(start);
        assert_eq!(queue.pop(start), Err(Some(start + FIRST_BACKOFF)));
        assert_eq!(queue.pop(start + FIRST_BACKOFF), Ok(key("a")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_pod_is_not_handed_out() {
        let mut queue = Queue::default();
        queue.add(key("a"), 0);
        queue.remove(&key("a"));
        assert_eq!(queue.pop(Instant::now()), Err(None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_removed_while_it_is_decided_leaves_nothing_behind() {
        let now = Instant::now();
        for failing in [Queue::put_off, Queue::retry] {
            let mut queue = Queue::default();
            queue.add(key("a"), 0);
            queue.pop(now).unwrap();
            queue.remove(&key("a"));
            failing(&mut queue, key("a"), now);
            assert_eq!(queue.pop(now), Err(None), "it came back");
            let left = (queue.attempts.len(), queue.priorities.len(), queue.being_decided.len());
            assert_eq!(left, (0, 0, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_changes_while_it_is_decided_is_decided_again_at_once() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.add(key("a"), 0);
        queue.pop(now).unwrap();
        queue.add(key("a"), 0);
        queue.put_off(key("a"), now);
        assert_eq!(queue.pop(now), Ok(key("a")));
        assert_eq!(queue.pop(now), Err(None), "and only once");
    }
}
