//! Leases of etcd, shared by what expires at about the same time.
//!
//! A lease costs every member memory and work, so that objects that are written within a window share one: each lives at least as
//! long as it was to, and at most a window longer. Source: upstream's `lease_manager.go`, with its numbers.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::connection::{Cluster, Fault, Repeat};
use super::wire::{LEASE_GRANT, LeaseGrantRequest, LeaseGrantResponse};

/// The window: this share of the time to live, and at most so many seconds.
const WINDOW_PERCENT: i64 = 5;
const MAX_WINDOW_S: i64 = 60;
/// All objects of a lease are deleted in one step.
const MAX_OBJECTS: usize = 1000;

#[derive(Default)]
pub(super) struct Leases {
    /// Held while a lease is granted, so that those who wait share it.
    last: Mutex<Option<Lease>>,
}

struct Lease {
    id: i64,
    ends: Instant,
    n_objects: usize,
}

impl Leases {
    /// A lease that is good for at least `ttl` from now on.
    pub(super) async fn lease(&self, cluster: &Cluster, ttl: Duration) -> Result<i64, Fault> {
        let (ttl_s, now) = (seconds(ttl), Instant::now());
        let mut last = self.last.lock().await;
        if let Some(lease) = last.as_mut()
            && lease.takes(ttl_s, now)
        {
            lease.n_objects += 1;
            return Ok(lease.id);
        }
        let asked_s = ttl_s + window_s(ttl_s);
        // One that nobody uses ends by itself.
        let granted: LeaseGrantResponse =
            cluster.call(LEASE_GRANT, LeaseGrantRequest { ttl_s: asked_s }, Repeat::Harmless).await?;
        // etcd may give more, never less; it began to count after `now`.
        let ends = now + Duration::from_secs(granted.ttl_s.max(asked_s).unsigned_abs());
        *last = Some(Lease { id: granted.id, ends, n_objects: 1 });
        Ok(granted.id)
    }

    /// Forgets a lease that etcd does not know any more.
    pub(super) async fn forget(&self, id: i64) {
        let mut last = self.last.lock().await;
        if last.as_ref().is_some_and(|lease| lease.id == id) {
            *last = None;
        }
    }
}

impl Lease {
    fn takes(&self, ttl_s: i64, now: Instant) -> bool {
        let at_least = now + Duration::from_secs(ttl_s.unsigned_abs());
        let at_most = at_least + Duration::from_secs(window_s(ttl_s).unsigned_abs());
        at_least < self.ends && self.ends <= at_most && self.n_objects < MAX_OBJECTS
    }
}

fn window_s(ttl_s: i64) -> i64 {
    (ttl_s * WINDOW_PERCENT / 100).min(MAX_WINDOW_S)
}

/// etcd counts whole seconds, and has no lease of none.
fn seconds(ttl: Duration) -> i64 {
    let whole = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    i64::try_from(whole).unwrap_or(i64::MAX / 200).clamp(1, i64::MAX / 200)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_shared_within_its_window_and_up_to_its_number_of_objects() {
        let now = Instant::now();
        let after = |s| now + Duration::from_secs(s);
        let mut lease = Lease { id: 1, ends: after(3660), n_objects: 1 };
        assert_eq!(window_s(3600), 60);
        assert!(lease.takes(3600, now) && lease.takes(3600, after(59)));
        assert!(!lease.takes(3600, after(61)), "it would end too early");
        assert!(!lease.takes(60, now), "it would end too late");
        lease.n_objects = MAX_OBJECTS;
        assert!(!lease.takes(3600, now));
        assert_eq!((seconds(Duration::from_millis(30)), seconds(Duration::from_millis(1500))), (1, 2));
    }
}
