//! What other servers give out and take back.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use skiff_api::Object;

use super::allocator::{Held, held_by};
use crate::cache::Observer;

/// Keeps what this server takes for given out up to date with what other servers do.
#[derive(Default)]
pub(crate) struct Seen {
    held: Arc<Mutex<HashMap<Held, String>>>,
    /// What each Service had when it was last seen.
    by_owner: Mutex<HashMap<String, HashSet<Held>>>,
}

impl Seen {
    pub(crate) fn held(&self) -> Arc<Mutex<HashMap<Held, String>>> {
        self.held.clone()
    }
}

impl Observer for Seen {
    fn changed(&self, key: &str, object: Option<&Object>) {
        let now = object.map(held_by).unwrap_or_default();
        let mut by_owner = self.by_owner.lock();
        let before = by_owner.remove(key).unwrap_or_default();
        let mut held = self.held.lock();
        for gone in before.difference(&now) {
            if held.get(gone).is_some_and(|owner| owner == key) {
                held.remove(gone);
            }
        }
        for one in &now {
            held.insert(*one, key.to_owned());
        }
        if !now.is_empty() {
            by_owner.insert(key.to_owned(), now);
        }
    }

    fn cleared(&self) {
        let mut held = self.held.lock();
        for (owner, had) in self.by_owner.lock().drain() {
            for one in had {
                if held.get(&one) == Some(&owner) {
                    held.remove(&one);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_other_servers_give_out_and_take_back_is_known() {
        let seen = Seen::default();
        let held = seen.held();
        let service = |ip: &str| json!({"spec": {"clusterIP": ip}});
        let ip = |text: &str| Held::Ip(text.parse().expect("an address"));
        seen.changed("a/s", Some(&service("10.0.0.1")));
        assert_eq!(held.lock().get(&ip("10.0.0.1")).map(String::as_str), Some("a/s"));
        seen.changed("a/s", Some(&service("10.0.0.2")));
        // Given out here meanwhile to another, which has not been seen yet.
        held.lock().insert(ip("10.0.0.2"), "a/t".into());
        seen.changed("a/s", None);
        assert_eq!(held.lock().len(), 1);
        assert_eq!(held.lock().get(&ip("10.0.0.2")).map(String::as_str), Some("a/t"));
        seen.changed("a/t", Some(&service("10.0.0.2")));
        seen.cleared();
        assert!(held.lock().is_empty());
    }
}
