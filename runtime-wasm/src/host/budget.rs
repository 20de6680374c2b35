//! A container's memory: one budget over all its instances.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;
use wasmtime::ResourceLimiter;

/// What a table takes an element.
const ELEMENT_BYTES: usize = size_of::<usize>();

#[derive(Debug, thiserror::Error)]
#[error("the container's memory limit is reached")]
struct LimitReached;

/// Bytes that a container's instances hold and may hold.
///
/// Those of one pod may have a budget together, [`Budget::in_pod`]. Who asks for more than that has is ended, as the kernel ends
/// who asks for a page that its pod's group may not have.
pub(crate) struct Budget {
    pod: Option<Arc<Budget>>,
    limit: AtomicUsize,
    used: AtomicUsize,
    exceeded: AtomicBool,
    exceeding: Notify,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Budget> {
        Budget::in_pod(limit, None)
    }

    pub(crate) fn in_pod(limit: u64, pod: Option<Arc<Budget>>) -> Arc<Budget> {
        let budget = Budget {
            pod,
            limit: AtomicUsize::new(0),
            used: AtomicUsize::new(0),
            exceeded: AtomicBool::new(false),
            exceeding: Notify::new(),
        };
        budget.set_limit(limit);
        Arc::new(budget)
    }

    pub(crate) fn set_limit(&self, limit: u64) {
        self.limit.store(usize::try_from(limit).unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn is_exceeded(&self) -> bool {
        self.exceeded.load(Ordering::Relaxed)
    }

    /// Returns once the limit was hit, at once if it has been.
    pub(crate) async fn exceeding(&self) {
        let hit = self.exceeding.notified();
        if !self.is_exceeded() {
            hit.await;
        }
    }

    fn take(&self, bytes: usize) -> Result<(), LimitReached> {
        if self.try_take(bytes) {
            return Ok(());
        }
        self.exceeded.store(true, Ordering::Relaxed);
        self.exceeding.notify_waiters();
        Err(LimitReached)
    }

    /// All or nothing, here and in the pod.
    fn try_take(&self, bytes: usize) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let grow = |used: usize| used.checked_add(bytes).filter(|new| *new <= limit);
        if self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).is_err() {
            return false;
        }
        let is_given = self.pod.as_ref().is_none_or(|pod| pod.try_take(bytes));
        if !is_given {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_given
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(pod) = &self.pod {
            pod.give_back(bytes);
        }
    }
}

/// One store's part of the budget, given back when the store is dropped.
pub(crate) struct Share {
    budget: Arc<Budget>,
    held: usize,
    /// Of `held`, what the growth under way took; it may yet fail.
    growing: usize,
}

impl Share {
    pub(crate) fn of(budget: &Arc<Budget>) -> Share {
        Share { budget: budget.clone(), held: 0, growing: 0 }
    }

    /// An error ends the guest: a container that hits its limit is `OOMKilled`, as a Linux one would be,
    /// rather than told that its allocation failed.
    fn grow(&mut self, bytes: usize) -> wasmtime::Result<bool> {
        self.budget.take(bytes)?;
        (self.held, self.growing) = (self.held + bytes, bytes);
        Ok(true)
    }

    fn undo(&mut self) {
        let bytes = std::mem::take(&mut self.growing);
        self.held -= bytes;
        self.budget.give_back(bytes);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.give_back(self.held);
    }
}

impl ResourceLimiter for Share {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.growing = 0;
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.grow(desired.saturating_sub(current))
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.undo();
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.growing = 0;
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.grow(desired.saturating_sub(current).saturating_mul(ELEMENT_BYTES))
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.undo();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_instances_share_one_budget_and_a_dropped_one_gives_back() {
        let budget = Budget::new(100);
        let (mut first, mut second) = (Share::of(&budget), Share::of(&budget));
        assert!(first.memory_growing(0, 60, None).unwrap());
        assert!(second.memory_growing(0, 40, None).unwrap());
        drop(first);
        assert_eq!(budget.used(), 40);
        assert!(second.memory_growing(40, 100, None).unwrap());
        assert!(!budget.is_exceeded());
        second.memory_growing(100, 101, None).unwrap_err();
        assert!(budget.is_exceeded());
    }

    #[test]
    fn containers_of_a_pod_have_no_more_together_than_it_may_have() {
        let pod = Budget::new(100);
        let (first, second) = (Budget::in_pod(80, Some(pod.clone())), Budget::in_pod(80, Some(pod.clone())));
        let (mut of_first, mut of_second) = (Share::of(&first), Share::of(&second));
        assert!(of_first.memory_growing(0, 60, None).unwrap());
        of_second.memory_growing(0, 60, None).unwrap_err();
        assert!(second.is_exceeded() && !first.is_exceeded());
        assert_eq!((second.used(), pod.used()), (0, 60));
        drop(of_first);
        assert_eq!(pod.used(), 0);
    }

    #[test]
    fn a_growth_past_the_memorys_own_maximum_fails_without_a_kill() {
        let budget = Budget::new(100);
        assert!(!Share::of(&budget).memory_growing(0, 200, Some(150)).unwrap());
        assert!(!budget.is_exceeded());
    }
}
