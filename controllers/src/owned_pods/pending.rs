//! Pods that were made or deleted, but of which the informer does not yet know: until it does, counting pods would
//! count wrong.
//!
//! What is expected is noted before the API is asked, and crossed off by the informer's events, so that it does not
//! matter whether the event or the answer comes first.
//!
//! Source: upstream's `UIDTrackingControllerExpectations`.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use skiff_client::view::Pod;
use skiff_client::{Change, ObjectKey};
use tokio::time::Instant;

use crate::objects::uid;

/// After this an event that never came is no longer waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// By owner.
#[derive(Default)]
pub(super) struct Pending(Mutex<HashMap<ObjectKey, Expected>>);

struct Expected {
    /// Pods that will appear.
    n_made: usize,
    /// Uids of pods that will go.
    deleted: HashSet<String>,
    since: Instant,
}

impl Pending {
    pub(super) fn expect_pods(&self, set: &ObjectKey, count: usize) {
        self.change(set, |expected| expected.n_made += count);
    }

    /// A pod that was expected could not be made.
    pub(super) fn pod_failed(&self, set: &ObjectKey) {
        self.cross_off(set, |expected| expected.n_made = expected.n_made.saturating_sub(1));
    }

    pub(super) fn expect_end(&self, set: &ObjectKey, uid: &str) {
        self.change(set, |expected| {
            expected.deleted.insert(uid.to_owned());
        });
    }

    pub(super) fn end_failed(&self, set: &ObjectKey, uid: &str) {
        self.cross_off(set, |expected| {
            expected.deleted.remove(uid);
        });
    }

    /// Takes what the informer reports of a pod of the set.
    pub(super) fn seen(&self, set: &ObjectKey, change: &Change<Pod>) {
        let Some(pod) = change.object() else { return };
        let is_new = change.old.is_none();
        let is_going = change.new.as_ref().is_none_or(|p| p.metadata.deletion_timestamp.is_some());
        self.cross_off(set, |expected| {
            if is_new {
                expected.n_made = expected.n_made.saturating_sub(1);
            }
            if is_going {
                expected.deleted.remove(uid(&pod.metadata));
            }
        });
    }

    /// Whether everything that was done has been seen.
    pub(super) fn is_settled(&self, set: &ObjectKey) -> bool {
        let mut all = self.0.lock();
        if all.get(set).is_some_and(|expected| expected.since.elapsed() >= PATIENCE) {
            all.remove(set);
        }
        !all.contains_key(set)
    }

    /// The set is gone.
    pub(super) fn forget(&self, set: &ObjectKey) {
        self.0.lock().remove(set);
    }

    fn change(&self, set: &ObjectKey, change: impl FnOnce(&mut Expected)) {
        let mut all = self.0.lock();
        let nothing = || Expected { n_made: 0, deleted: HashSet::new(), since: Instant::now() };
        change(all.entry(set.clone()).or_insert_with(nothing));
    }

    fn cross_off(&self, set: &ObjectKey, change: impl FnOnce(&mut Expected)) {
        let mut all = self.0.lock();
        let Some(expected) = all.get_mut(set) else { return };
        change(expected);
        if expected.n_made == 0 && expected.deleted.is_empty() {
            all.remove(set);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn set() -> ObjectKey {
        ObjectKey::new("d", "web")
    }

    fn pod(name: &str) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(name.into());
        Arc::new(pod)
    }

    fn added(name: &str) -> Change<Pod> {
        Change { old: None, new: Some(pod(name)) }
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_the_watch_shows_before_the_create_is_answered_are_not_waited_for() {
        let pending = Pending::default();
        pending.expect_pods(&set(), 2);
        pending.seen(&set(), &added("a"));
        assert!(!pending.is_settled(&set()), "one is still to come");
        pending.seen(&set(), &Change { old: Some(pod("a")), new: Some(pod("a")) });
        assert!(!pending.is_settled(&set()), "a change of one is not the other");
        pending.seen(&set(), &added("b"));
        assert!(pending.is_settled(&set()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_refused_is_not_waited_for() {
        let pending = Pending::default();
        pending.expect_pods(&set(), 2);
        pending.pod_failed(&set());
        pending.seen(&set(), &added("a"));
        assert!(pending.is_settled(&set()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deletion_is_seen_once_the_pod_is_on_its_way_out() {
        let pending = Pending::default();
        pending.expect_end(&set(), "a");
        pending.expect_end(&set(), "b");
        pending.seen(&set(), &Change { old: Some(pod("a")), new: None });
        assert!(!pending.is_settled(&set()));
        pending.end_failed(&set(), "b");
        assert!(pending.is_settled(&set()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_never_comes_is_given_up_on() {
        let pending = Pending::default();
        pending.expect_pods(&set(), 1);
        tokio::time::advance(PATIENCE).await;
        assert!(pending.is_settled(&set()));
    }
}
