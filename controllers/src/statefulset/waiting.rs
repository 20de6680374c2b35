//! Sets that can do nothing before a claim has gone.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use skiff_client::ObjectKey;

/// Sets by the claims that they wait for.
#[derive(Default)]
pub(super) struct Waiting(Mutex<HashMap<ObjectKey, HashSet<ObjectKey>>>);

impl Waiting {
    pub(super) fn add(&self, claim: ObjectKey, set: ObjectKey) {
        self.0.lock().entry(claim).or_default().insert(set);
    }

    /// The sets that have waited for a claim, and no longer do.
    pub(super) fn take(&self, claim: &ObjectKey) -> HashSet<ObjectKey> {
        self.0.lock().remove(claim).unwrap_or_default()
    }

    /// The set waits for nothing any more.
    pub(super) fn forget(&self, set: &ObjectKey) {
        self.0.lock().retain(|_, sets| {
            sets.remove(set);
            !sets.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("d", name)
    }

    #[test]
    fn a_claim_wakes_once_those_that_wait_for_it() {
        let waiting = Waiting::default();
        for set in ["a", "b", "c"] {
            waiting.add(key("claim"), key(set));
        }
        waiting.add(key("other"), key("a"));
        waiting.forget(&key("c"));
        assert_eq!(waiting.take(&key("claim")), HashSet::from([key("a"), key("b")]));
        assert_eq!(waiting.take(&key("claim")), HashSet::new());
        waiting.forget(&key("a"));
        assert!(waiting.0.lock().is_empty());
    }
}
