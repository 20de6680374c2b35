//! How far each pod of a run has come: created, bound, running, gone; and when.
//!
//! Times are those at which this process saw the change, so they include the way of a watch event.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_client::ObjectKey;
use tokio::sync::watch;

use crate::latency::Histogram;
use crate::pod::Pod;

/// A label of the pods that are counted.
pub const RUN_LABEL: &str = "hollow.skiff.dev/run";

/// How many pods there are, by how far they have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub pending: usize,
    pub bound: usize,
    pub running: usize,
    pub ended: usize,
}

impl Counts {
    pub fn all(&self) -> usize {
        self.pending + self.bound + self.running + self.ended
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Pending,
    Bound,
    Running,
    Ended,
}

#[derive(Debug)]
struct Tracked {
    uid: String,
    stage: Stage,
    seen_at: Instant,
    bound_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    pods: HashMap<ObjectKey, Tracked>,
    counts: Counts,
    /// From when a pod was first seen.
    to_bound: Histogram,
    to_running: Histogram,
    bound_to_running: Histogram,
    /// When the first and the last was bound, and how many each second from then on.
    first_bound: Option<Instant>,
    last_bound: Option<Instant>,
    bound_per_s: Vec<u32>,
    n_lists: u64,
}

/// A run longer than this is not drawn second by second.
const MAX_SECONDS: usize = 24 * 3600;

/// Counts the pods that carry [`RUN_LABEL`].
#[derive(Debug)]
pub struct Census {
    run: String,
    state: Mutex<State>,
    changed: watch::Sender<Counts>,
}

fn stage(pod: &Pod) -> Stage {
    match pod.status.phase.as_str() {
        "Succeeded" | "Failed" => Stage::Ended,
        "Running" if pod.is_ready() => Stage::Running,
        _ if pod.spec.node_name.is_empty() => Stage::Pending,
        _ => Stage::Bound,
    }
}

impl Census {
    pub fn new(run: &str) -> Census {
        Census { run: run.to_owned(), state: Mutex::default(), changed: watch::Sender::default() }
    }

    /// The counts as they are now and as they become.
    pub fn counts(&self) -> watch::Receiver<Counts> {
        self.changed.subscribe()
    }

    pub(crate) fn listed(&self) {
        self.state.lock().n_lists += 1;
    }

    /// A pod as a watch shows it.
    pub(crate) fn seen(&self, key: &ObjectKey, pod: &Pod, now: Instant) {
        if pod.label(RUN_LABEL) != Some(self.run.as_str()) {
            return;
        }
        let mut state = self.state.lock();
        state.apply(key, pod, now);
        self.changed.send_replace(state.counts);
    }

    pub(crate) fn gone(&self, key: &ObjectKey) {
        let mut state = self.state.lock();
        if let Some(tracked) = state.pods.remove(key) {
            *state.counts.of(tracked.stage) -= 1;
            self.changed.send_replace(state.counts);
        }
    }

    /// All pods that are counted.
    pub(crate) fn keys(&self) -> Vec<ObjectKey> {
        self.state.lock().pods.keys().cloned().collect()
    }

    pub fn document(&self) -> Value {
        let state = self.state.lock();
        let taken = state.first_bound.zip(state.last_bound).map(|(first, last)| last - first);
        let taken_s = taken.unwrap_or_default().max(Duration::from_millis(1)).as_secs_f64();
        let rate = state.to_bound.n() as f64 / taken_s;
        json!({
            "bound": state.to_bound.n(),
            "bound_per_s": {"mean": rate.round(), "peak": state.bound_per_s.iter().max(), "by_second": state.bound_per_s},
            "seen_to_bound": state.to_bound.document(),
            "bound_to_running": state.bound_to_running.document(),
            "seen_to_running": state.to_running.document(),
            "watch_lists": state.n_lists,
        })
    }
}

impl Counts {
    fn of(&mut self, stage: Stage) -> &mut usize {
        match stage {
            Stage::Pending => &mut self.pending,
            Stage::Bound => &mut self.bound,
            Stage::Running => &mut self.running,
            Stage::Ended => &mut self.ended,
        }
    }
}

impl State {
    fn apply(&mut self, key: &ObjectKey, pod: &Pod, now: Instant) {
        let stage = stage(pod);
        let known = self.pods.get(key).filter(|tracked| tracked.uid == pod.uid());
        let (before, seen_at, mut bound_at) = match known {
            Some(tracked) => (Some(tracked.stage), tracked.seen_at, tracked.bound_at),
            None => {
                if let Some(other) = self.pods.get(key) {
                    *self.counts.of(other.stage) -= 1;
                }
                (None, now, None)
            }
        };
        if let Some(before) = before {
            *self.counts.of(before) -= 1;
        }
        *self.counts.of(stage) += 1;
        // A pod that is further when it is first seen has no time of its own.
        let advanced = |to: Stage| before.is_some_and(|before| before < to) && stage >= to;
        if advanced(Stage::Bound) {
            bound_at = Some(now);
            self.bound(now, now - seen_at);
        }
        if advanced(Stage::Running) && stage == Stage::Running {
            self.to_running.record(now - seen_at);
            if let Some(bound_at) = bound_at {
                self.bound_to_running.record(now - bound_at);
            }
        }
        let uid = pod.uid().to_owned();
        self.pods.insert(key.clone(), Tracked { uid, stage, seen_at, bound_at });
    }

    fn bound(&mut self, now: Instant, took: Duration) {
        self.to_bound.record(took);
        let first = *self.first_bound.get_or_insert(now);
        self.last_bound = Some(now);
        let second = usize::try_from((now - first).as_secs()).unwrap_or(usize::MAX);
        if second < MAX_SECONDS {
            if self.bound_per_s.len() <= second {
                self.bound_per_s.resize(second + 1, 0);
            }
            self.bound_per_s[second] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, node: &str, phase: &str) -> Pod {
        let ready = json!([{"type": "Ready", "status": if phase == "Running" { "True" } else { "False" }}]);
        serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "d", "uid": uid, "labels": {RUN_LABEL: "r"}},
            "spec": {"nodeName": node}, "status": {"phase": phase, "conditions": ready},
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_is_counted_once_at_the_stage_it_has_reached_and_timed_between_them() {
        let census = Census::new("r");
        let (start, key) = (Instant::now(), ObjectKey::new("d", "a"));
        let at = |ms| start + Duration::from_millis(ms);
        census.seen(&key, &pod("1", "", "Pending"), at(0));
        census.seen(&key, &pod("1", "n", "Pending"), at(100));
        census.seen(&key, &pod("1", "n", "Pending"), at(150));
        census.seen(&key, &pod("1", "n", "Running"), at(400));
        assert_eq!(*census.counts().borrow(), Counts { running: 1, ..Counts::default() });
        let document = census.document();
        assert_eq!(document["seen_to_bound"]["max_ms"], 100.0);
        assert_eq!(document["bound_to_running"]["max_ms"], 300.0);
        assert_eq!(document["seen_to_running"]["max_ms"], 400.0);
        assert_eq!(document["bound_per_s"]["by_second"], json!([1]));
        census.gone(&key);
        census.gone(&key);
        assert_eq!(*census.counts().borrow(), Counts::default());
    }

    #[test]
    fn another_pod_of_the_name_takes_the_place_and_one_of_another_run_none() {
        let census = Census::new("r");
        let (now, key) = (Instant::now(), ObjectKey::new("d", "a"));
        census.seen(&key, &pod("1", "n", "Running"), now);
        census.seen(&key, &pod("2", "", "Pending"), now);
        assert_eq!(*census.counts().borrow(), Counts { pending: 1, ..Counts::default() });
        assert_eq!(census.document()["seen_to_running"]["n"], 0, "nobody saw it become running");
        Census::new("other").seen(&key, &pod("3", "n", "Running"), now);
        assert_eq!(census.counts().borrow().all(), 1);
    }
}
