//! A queue of keys.
//!
//! ```text
//!            add                     get                    done
//!  (absent) ────► ready ──────────────────► processing ──────────► (absent)
//!                  ▲                         │   ▲  add: remember
//!                  └── delay ◄── add_after ──┘   └─ done: back to ready
//! ```
//!
//! # Guarantees
//! - A key waits at most once, however often it is added.
//! - A key that is being processed is handed out again only after `done`.
//! - `retry` delays grow per key until `forget`.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long to wait before the n-th retry of a key.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub max: Duration,
}

impl Default for Backoff {
    /// Upstream's controllers start at 5 ms and double; they stop at 1,000 s, we at a minute.
    fn default() -> Self {
        Backoff { first: Duration::from_millis(5), max: Duration::from_secs(60) }
    }
}

impl Backoff {
    fn delay(&self, n_failures: u32) -> Duration {
        self.first.saturating_mul(1 << n_failures.min(20)).min(self.max)
    }
}

/// See the module's documentation. Cloning shares the queue.
#[derive(Debug)]
pub struct WorkQueue<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        WorkQueue { inner: self.inner.clone() }
    }
}

#[derive(Debug)]
struct Inner<K> {
    state: Mutex<State<K>>,
    changed: Notify,
    backoff: Backoff,
}

#[derive(Debug)]
struct State<K> {
    ready: VecDeque<K>,
    /// Everything in `ready`, and what was added while being processed.
    wanted: HashSet<K>,
    processing: HashSet<K>,
    /// Keys to add later; a key is here at most once, at its earliest time.
    delayed: BTreeSet<(Instant, u64)>,
    delayed_keys: HashMap<u64, K>,
    delayed_at: HashMap<K, (Instant, u64)>,
    next_delay: u64,
    failures: HashMap<K, u32>,
    closed: bool,
}

impl<K: Clone + Eq + Hash + Send + 'static> Default for WorkQueue<K> {
    fn default() -> Self {
        WorkQueue::new(Backoff::default())
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> WorkQueue<K> {
    pub fn new(backoff: Backoff) -> Self {
        let state = State {
            ready: VecDeque::new(),
            wanted: HashSet::new(),
            processing: HashSet::new(),
            delayed: BTreeSet::new(),
            delayed_keys: HashMap::new(),
            delayed_at: HashMap::new(),
            next_delay: 0,
            failures: HashMap::new(),
            closed: false,
        };
        WorkQueue { inner: Arc::new(Inner { state: Mutex::new(state), changed: Notify::new(), backoff }) }
    }

    /// Asks for a key to be looked at.
    pub fn add(&self, key: K) {
        let mut state = self.inner.state.lock();
        if state.closed {
            return;
        }
        state.add(key);
        drop(state);
        self.inner.changed.notify_one();
    }

    /// Asks for a key to be looked at once `delay` has passed, or earlier if it is already due earlier.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let mut state = self.inner.state.lock();
        if state.closed {
            return;
        }
        state.add_at(key, Instant::now() + delay);
        drop(state);
        self.inner.changed.notify_one();
    }

    /// Asks for a key to be looked at again after a failure; each failure doubles the delay.
    pub fn retry(&self, key: K) {
        let mut state = self.inner.state.lock();
        if state.closed {
            return;
        }
        let failures = state.failures.entry(key.clone()).or_insert(0);
        let delay = self.inner.backoff.delay(*failures);
        *failures = failures.saturating_add(1);
        state.add_at(key, Instant::now() + delay);
        drop(state);
        self.inner.changed.notify_one();
    }

    /// How often a key has failed since it was last forgotten.
    pub fn n_failures(&self, key: &K) -> u32 {
        self.inner.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Resets the back-off of a key.
    pub fn forget(&self, key: &K) {
        self.inner.state.lock().failures.remove(key);
    }

    /// The next key; `None` once the queue is closed. The caller must call [`WorkQueue::done`] with it.
    ///
    /// Cancel-safe: a key is taken out only when it is returned.
    pub async fn get(&self) -> Option<K> {
        loop {
            let changed = self.inner.changed.notified();
            let next_due = {
                let mut state = self.inner.state.lock();
                if state.closed {
                    return None;
                }
                state.promote(Instant::now());
                if let Some(key) = state.take() {
                    // Others may wait for what is left.
                    if !state.ready.is_empty() {
                        self.inner.changed.notify_one();
                    }
                    return Some(key);
                }
                state.delayed.first().map(|(at, _)| *at)
            };
            match next_due {
                Some(at) => tokio::select! {
                    // Both only wait.
                    () = changed => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => changed.await,
            }
        }
    }

    /// Says that the worker is through with a key.
    pub fn done(&self, key: &K) {
        let mut state = self.inner.state.lock();
        state.processing.remove(key);
        if state.wanted.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.inner.changed.notify_one();
        }
    }

    /// Ends every `get`. What waits is let go, and nothing is taken any more: informers outlive who listened to them.
    pub fn close(&self) {
        let mut state = self.inner.state.lock();
        state.closed = true;
        state.ready.clear();
        state.wanted.clear();
        state.delayed.clear();
        state.delayed_keys.clear();
        state.delayed_at.clear();
        state.failures.clear();
        drop(state);
        self.inner.changed.notify_waiters();
        // One that is between its look and its wait finds this permit.
        self.inner.changed.notify_one();
    }

    /// Keys that wait to be handed out now.
    pub fn len(&self) -> usize {
        self.inner.state.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K) {
        if !self.wanted.insert(key.clone()) {
            return;
        }
        if !self.processing.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn add_at(&mut self, key: K, at: Instant) {
        if let Some(&(earlier, id)) = self.delayed_at.get(&key) {
            if earlier <= at {
                return;
            }
            self.delayed.remove(&(earlier, id));
            self.delayed_keys.remove(&id);
        }
        let id = self.next_delay;
        self.next_delay += 1;
        self.delayed.insert((at, id));
        self.delayed_keys.insert(id, key.clone());
        self.delayed_at.insert(key, (at, id));
    }

    fn promote(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.delayed.first() {
            if at > now {
                return;
            }
            self.delayed.pop_first();
            if let Some(key) = self.delayed_keys.remove(&id) {
                self.delayed_at.remove(&key);
                self.add(key);
            }
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.wanted.remove(&key);
        self.processing.insert(key.clone());
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_added_twice_is_handed_out_once() {
        let queue = WorkQueue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.get().await, Some("a"));
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_while_it_is_processed_comes_back_after_done_and_not_before() {
        let queue = WorkQueue::default();
        queue.add("a");
        let key = queue.get().await.unwrap();
        queue.add("a");
        let early = tokio::time::timeout(Duration::from_secs(1), queue.get()).await;
        assert!(early.is_err(), "handed out twice at a time");
        queue.done(&key);
        assert_eq!(queue.get().await, Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn retries_double_until_the_key_is_forgotten() {
        let queue = WorkQueue::new(Backoff { first: Duration::from_secs(1), max: Duration::from_secs(3) });
        for wanted_s in [1, 2, 3, 3] {
            let start = Instant::now();
            queue.retry("a");
            let key = queue.get().await.unwrap();
            assert_eq!(start.elapsed().as_secs(), wanted_s);
            queue.done(&key);
        }
        queue.forget(&"a");
        assert_eq!(queue.n_failures(&"a"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_of_two_delays_counts() {
        let queue = WorkQueue::default();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(60));
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(30));
        queue.get().await;
        assert_eq!(start.elapsed().as_secs(), 5);
        queue.done(&"a");
        let again = tokio::time::timeout(Duration::from_secs(100), queue.get()).await;
        assert!(again.is_err(), "a delay that was superseded still fired");
    }

    #[tokio::test(start_paused = true)]
    async fn close_ends_every_waiting_get() {
        let queue: WorkQueue<u8> = WorkQueue::default();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.get().await })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.close();
        for task in waiting {
            assert_eq!(task.await.unwrap(), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_queue_holds_nothing_whoever_still_adds_to_it() {
        let queue = WorkQueue::default();
        queue.add("before");
        queue.close();
        queue.add("a");
        queue.retry("b");
        queue.add_after("c", Duration::from_secs(1));
        let state = queue.inner.state.lock();
        assert!(state.wanted.is_empty() && state.delayed_keys.is_empty() && state.failures.is_empty());
    }
}
