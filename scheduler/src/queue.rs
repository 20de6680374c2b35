//! Which pod is next.
//!
//! ```text
//!  add ─► active (by priority, then age) ─► being decided ─► bound
//!            ▲   ▲                              │ nothing fits
//!            │   └── back-off over ◄── waiting ◄┘ (until the cluster changes, or five minutes)
//!            └────── cluster changed ──────┘
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
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
        // Its entry in the heap is passed over by `pop`.
        self.queued.remove(key);
    }

    /// Nothing fits now.
    pub(crate) fn put_off(&mut self, key: ObjectKey, now: Instant) {
        *self.attempts.entry(key.clone()).or_default() += 1;
        self.waiting.insert(key, now + MAX_WAIT);
    }

    /// A binding failed: try again after a while, whatever the cluster does.
    pub(crate) fn retry(&mut self, key: ObjectKey, now: Instant) {
        let attempts = self.attempts.entry(key.clone()).or_default();
        *attempts += 1;
        let at = now + backoff(*attempts);
        self.waiting.insert(key, at);
    }

    /// Something changed that may help those who wait: each is due once its back-off is over.
    pub(crate) fn cluster_changed(&mut self, now: Instant) {
        for (key, due) in &mut self.waiting {
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
        queue.put_off(key("a"), start);
        assert_eq!(queue.pop(start), Err(Some(start + MAX_WAIT)));
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
}
