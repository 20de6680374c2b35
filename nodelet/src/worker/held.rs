//! Containers that could not be made, and when it is tried again.
//!
//! The runtime reports what a failed creation leaves and removes, and each report wakes the worker: without this, one
//! container that cannot be made would be tried again as fast as it fails. Upstream's kubelet comes back to such a pod
//! after its back-off period; so does this.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::images::StartFailure;

/// As upstream's kubelet waits after a pass that failed.
pub(super) const RETRY: Duration = Duration::from_secs(10);

/// Whether the container's environment could be put together from the API's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sources {
    Complete,
    Missing,
}

struct Entry {
    until: Instant,
    /// Of the definition that failed: another one is tried at once.
    hash: u64,
    sources: Sources,
    failure: StartFailure,
}

/// By container name.
#[derive(Default)]
pub(super) struct Held(HashMap<String, Entry>);

impl Held {
    pub(super) fn hold(
        &mut self,
        (name, hash): (&str, u64),
        sources: Sources,
        failure: &StartFailure,
        now: Instant,
    ) {
        let until = now + RETRY;
        self.0.insert(name.to_owned(), Entry { until, hash, sources, failure: failure.clone() });
    }

    /// What kept the container from being made, if it is not to be tried again yet, and how its sources were then.
    pub(super) fn get(&self, (name, hash): (&str, u64), now: Instant) -> Option<(StartFailure, Sources)> {
        let entry = self.0.get(name).filter(|entry| entry.hash == hash)?;
        let left = entry.until.checked_duration_since(now).filter(|left| !left.is_zero())?;
        Some((StartFailure { retry_after: left, ..entry.failure.clone() }, entry.sources))
    }

    pub(super) fn release(&mut self, name: &str) {
        self.0.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_held_for_ten_seconds_unless_its_definition_changes() {
        let failure = StartFailure::new("CreateContainerError", "no such file");
        let mut held = Held::default();
        let begun = Instant::now();
        held.hold(("app", 1), Sources::Complete, &failure, begun);
        let later = begun + Duration::from_secs(4);
        let (told, sources) = held.get(("app", 1), later).unwrap();
        assert_eq!((told.retry_after, sources), (Duration::from_secs(6), Sources::Complete));
        assert_eq!((told.reason, told.message), (failure.reason, failure.message));
        assert!(held.get(("app", 2), later).is_none());
        assert!(held.get(("other", 1), later).is_none());
        assert!(held.get(("app", 1), begun + RETRY).is_none());
    }
}
