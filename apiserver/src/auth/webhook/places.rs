//! How many may ask a webhook at once: so many in all, and each user only some of them, so that a webhook that is slow about one user
//! is not so about all.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// So many questions may be on their way to one webhook. What is asked while a request is made out waits before the request has a
/// seat, so that nothing else bounds them.
const MAX_ASKING: usize = 1024;
/// So many of them may be about one user. It also ends a circle: a webhook that asks this server as a user about whom it is asked.
const MAX_OF_USER: usize = 128;

pub(super) struct Places {
    all: Semaphore,
    shares: Mutex<Shares>,
}

/// A share is there for as long as somebody holds a place of it, or waits for one.
struct Shares {
    by_user: HashMap<String, Weak<Semaphore>>,
    /// With as many entries those are looked for that nobody needs any more.
    sweep_at: usize,
}

/// Given back when it is dropped.
pub(super) struct Place<'p> {
    _of_user: Option<OwnedSemaphorePermit>,
    _of_all: Option<SemaphorePermit<'p>>,
}

impl Default for Places {
    fn default() -> Self {
        let shares = Shares { by_user: HashMap::new(), sweep_at: MAX_ASKING };
        Places { all: Semaphore::new(MAX_ASKING), shares: Mutex::new(shares) }
    }
}

impl Places {
    /// Waits for a place. Who waits for one of a user's own holds none of all.
    pub(super) async fn take(&self, user: &str) -> Place<'_> {
        let share = self.shares.lock().of(user);
        // Neither is ever closed.
        Place { _of_user: share.acquire_owned().await.ok(), _of_all: self.all.acquire().await.ok() }
    }
}

impl Shares {
    fn of(&mut self, user: &str) -> Arc<Semaphore> {
        if let Some(share) = self.by_user.get(user).and_then(Weak::upgrade) {
            return share;
        }
        if self.by_user.len() >= self.sweep_at {
            self.by_user.retain(|_, share| share.strong_count() > 0);
            self.sweep_at = MAX_ASKING.max(2 * self.by_user.len());
        }
        let share = Arc::new(Semaphore::new(MAX_OF_USER));
        self.by_user.insert(user.to_owned(), Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_user_takes_a_share_of_the_places_and_all_users_no_more_than_there_are() {
        let places = Places::default();
        let take = |user: &str| places.take(user).now_or_never();
        let mut of_ann: Vec<Place<'_>> = (0..MAX_OF_USER).filter_map(|_| take("ann")).collect();
        assert_eq!(of_ann.len(), MAX_OF_USER);
        assert!(take("ann").is_none());
        assert!(take("bob").is_some());
        of_ann.pop();
        assert!(take("ann").is_some());
        let others: Vec<Place<'_>> = (0..MAX_ASKING).filter_map(|n| take(&format!("user-{n}"))).collect();
        assert_eq!(of_ann.len() + others.len(), MAX_ASKING);
    }

    #[test]
    fn users_who_ask_no_more_are_forgotten() {
        let places = Places::default();
        let held = places.take("ann").now_or_never().expect("a place");
        for n in 0..3 * MAX_ASKING {
            assert!(places.take(&format!("user-{n}")).now_or_never().is_some());
        }
        let shares = places.shares.lock();
        assert!(shares.by_user.len() <= MAX_ASKING);
        assert!(shares.by_user["ann"].strong_count() > 0);
        drop(held);
    }
}
