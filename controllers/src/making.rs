//! Pods that controllers make and delete: a bounded number at a time.
//!
//! The API server lets in a limited number of writes at a time. One owner of ten thousand pods must leave some to other
//! owners, and all owners together must leave some to everybody else.

use std::future::Future;
use std::sync::Arc;

use futures::StreamExt as _;
use tokio::sync::Semaphore;

/// Requests of one pass that are on their way at a time.
const MAX_OF_ONE: usize = 32;
/// Requests of all passes that are on their way at a time.
const MAX_TOGETHER: usize = 64;

/// The places of requests that are on their way. Cloning shares them.
#[derive(Clone)]
pub(crate) struct Making {
    places: Arc<Semaphore>,
}

impl Default for Making {
    fn default() -> Self {
        Making { places: Arc::new(Semaphore::new(MAX_TOGETHER)) }
    }
}

impl Making {
    /// Makes all calls, as many at a time as there are places for. Answers come in the order in which they ended.
    pub(crate) async fn all<F: Future>(&self, calls: Vec<F>) -> Vec<F::Output> {
        let placed: Vec<_> = calls.into_iter().map(|call| self.placed(call)).collect();
        futures::stream::iter(placed).buffer_unordered(MAX_OF_ONE).collect().await
    }

    async fn placed<F: Future>(&self, call: F) -> F::Output {
        // Places are never closed; without one the call would still be one of few.
        let _place = self.places.acquire().await.ok();
        call.await
    }
}

/// `count` in batches that double: what would be refused ten thousand times is refused once.
///
/// Source: upstream's `slowStartBatch`.
pub(crate) fn batches(count: usize) -> impl Iterator<Item = usize> {
    let (mut left, mut next) = (count, 1);
    std::iter::from_fn(move || {
        let batch = left.min(next);
        left -= batch;
        next = batch.saturating_mul(2);
        (batch > 0).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn batches_double_until_all_is_asked_for() {
        for (count, wanted) in
            [(0, vec![]), (1, vec![1]), (6, vec![1, 2, 3]), (500, vec![1, 2, 4, 8, 16, 32, 64, 128, 245])]
        {
            assert_eq!(batches(count).collect::<Vec<_>>(), wanted);
        }
    }

    /// How many calls were on their way at most, of so many passes of so many calls each.
    async fn most_at_a_time(n_passes: usize, n_calls: usize) -> (usize, usize) {
        let (making, now) = (Making::default(), AtomicUsize::new(0));
        let (most, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let call = async || {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            now.fetch_sub(1, Ordering::Relaxed);
            done.fetch_add(1, Ordering::Relaxed);
        };
        let passes = (0..n_passes).map(|_| making.all((0..n_calls).map(|_| call()).collect()));
        futures::future::join_all(passes).await;
        (most.into_inner(), done.into_inner())
    }

    #[tokio::test]
    async fn one_owner_of_very_many_pods_leaves_places_to_others() {
        assert_eq!(most_at_a_time(1, 1000).await, (MAX_OF_ONE, 1000));
    }

    #[tokio::test]
    async fn all_owners_together_leave_places_to_everybody_else() {
        assert_eq!(most_at_a_time(10, 100).await, (MAX_TOGETHER, 1000));
    }
}
