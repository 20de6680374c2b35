//! A container's memory: one budget over all its instances.
//!
//! What counts is what instances touch, as the kernel would count it, and not what their modules declare: a page that
//! nobody wrote to is nobody's memory. What a guest asks for with `memory.grow` or `table.grow` counts at once, for it is
//! about to be touched; past the limit it is told -1, and nothing else happens to it.
//!
//! ```text
//!  reserve ─▶ admitted ──touches, grows──▶ charged = max(reserve, grown, touched) ──▶ dropped: given back
//!     ▲                                         │
//!     └──── the most that was seen ◀────────────┘
//! ```
//!
//! A server's instance is let in only if there is room for as much as any one before it has needed. Those that find no room
//! wait. So a container that has seen what its requests need never meets its limit, however many come.
//!
//! # Caveats
//! Touched pages are told from the page faults of the thread that runs the guest, up to what the instance declares. They
//! are counted when the guest yields, every 10 ms at the latest: for so long a container may be above its limit. A page that
//! is read before it is written to may count twice, and pages that the host itself is given while it works for the guest
//! count, too. What the host holds for it, [`super::heap`], counts on top of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use wasmtime::ResourceLimiter;

use super::heap::{self, Counter, Held};

/// What a table takes an element.
const ELEMENT_BYTES: usize = size_of::<usize>();
/// What an instance takes at least besides its memories and tables: what the host holds for it, a stack that is hardly used.
pub(crate) const INSTANCE_BYTES: usize = 64 << 10;
/// What it may touch of its stack: as deep as guests may call, unless the engine is told otherwise.
const STACK_BYTES: usize = 512 << 10;
/// Before any instance was seen, each is given this part of the limit.
const UNSEEN_PART: usize = 4;
/// An instance that needed less than the most that was seen lowers that by this part of the difference.
const FORGET_PART: usize = 64;
/// No memory grows by more at once: it would not fit into a process's addresses, and the sums of many such would not fit
/// into a number.
const MAX_GROWTH_BYTES: usize = 1 << 46;
/// Memories of a container's instances at once. A process may have some 65,000 mappings, and each memory takes up to four of
/// them: one container has no more than a sixteenth.
const MAX_MEMORIES: usize = 1024;
/// Memories, tables and core instances of one instance.
const MAX_MEMORIES_EACH: usize = 100;
const MAX_TABLES_EACH: usize = 1000;
const MAX_INSTANCES_EACH: usize = 1000;

/// The instance touched more than there is.
#[derive(Debug, thiserror::Error)]
#[error("the container's memory limit is reached")]
pub(crate) struct LimitReached;

/// The container's instances have as many memories as they may have.
#[derive(Debug, thiserror::Error)]
#[error("the container's instances have {MAX_MEMORIES} memories already")]
pub(crate) struct TooManyMemories;

/// Bytes that a container's instances have and may have.
///
/// Those of one pod may have a budget together, [`Budget::in_pod`].
pub(crate) struct Budget {
    pod: Option<Arc<Budget>>,
    limit: AtomicUsize,
    /// What instances were given.
    used: AtomicUsize,
    /// Of `used`, what they have touched by now.
    touched: AtomicUsize,
    /// The most that one instance was seen to need; 0 until one was.
    seen: AtomicUsize,
    n_memories: AtomicUsize,
    freed: Notify,
    /// What the container's threads hold on the host's heap.
    pub(crate) heap: Arc<Counter>,
}

impl Budget {
    #[cfg(test)]
    pub(crate) fn new(limit: usize) -> Arc<Budget> {
        Budget::in_pod(Some(limit as u64), None)
    }

    /// Without a limit of its own a container may have what its pod may have, or the node.
    pub(crate) fn in_pod(limit: Option<u64>, pod: Option<Arc<Budget>>) -> Arc<Budget> {
        let budget = Budget {
            pod,
            limit: AtomicUsize::new(usize::MAX),
            used: AtomicUsize::new(0),
            touched: AtomicUsize::new(0),
            seen: AtomicUsize::new(0),
            n_memories: AtomicUsize::new(0),
            freed: Notify::new(),
            heap: Arc::default(),
        };
        if let Some(limit) = limit {
            budget.set_limit(limit);
        }
        Arc::new(budget)
    }

    pub(crate) fn set_limit(&self, limit: u64) {
        self.limit.store(usize::try_from(limit).unwrap_or(usize::MAX), Ordering::Relaxed);
        self.freed.notify_waiters();
    }

    /// What the container's memory is by now.
    pub(crate) fn touched(&self) -> usize {
        self.touched.load(Ordering::Relaxed)
    }

    /// The least of the container's limit and its pod's.
    pub(crate) fn limit(&self) -> usize {
        let own = self.limit.load(Ordering::Relaxed);
        self.pod.as_ref().map_or(own, |pod| own.min(pod.limit()))
    }

    /// What an instance is to be given before it starts.
    fn reserve(&self) -> usize {
        let limit = self.limit();
        let seen = self.seen.load(Ordering::Relaxed);
        let wanted = match (seen, limit) {
            (0, usize::MAX) => INSTANCE_BYTES,
            (0, limit) => limit / UNSEEN_PART,
            (seen, _) => seen,
        };
        // One that needs all there is, is let in when it is alone.
        wanted.min(limit)
    }

    /// An instance that is not done needs so much by now. The first ones say little by that: they are at their beginning. But
    /// who needs more than was kept for him says something.
    fn saw(&self, need: usize) {
        let (limit, unseen) = (self.limit(), self.reserve());
        let raise = |seen: usize| {
            let is_more = if seen == 0 { need > unseen } else { need > seen };
            // What can never be had is no reason to keep as much for others.
            (is_more && need <= limit).then_some(need)
        };
        _ = self.seen.fetch_update(Ordering::Relaxed, Ordering::Relaxed, raise);
    }

    /// An instance has shown what it needs. The most that was seen is forgotten slowly: a container whose requests become
    /// small again admits more of them again.
    fn learn(&self, need: usize) {
        let limit = self.limit();
        let learn = |seen: usize| match seen {
            _ if need > limit => None,
            0 => Some(need),
            seen if need < seen => Some(seen - (seen - need).div_ceil(FORGET_PART)),
            seen => (need > seen).then_some(need),
        };
        _ = self.seen.fetch_update(Ordering::Relaxed, Ordering::Relaxed, learn);
    }

    /// Nobody has been let in for long: as much as was seen may never be free again, for those who are there may stay.
    pub(crate) fn ask_for_less(&self) {
        let reserve = self.reserve();
        self.seen.store((reserve / 2).max(INSTANCE_BYTES), Ordering::Relaxed);
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

    /// What is touched is taken, whatever the limit says.
    fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        if let Some(pod) = &self.pod {
            pod.take(bytes);
        }
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.freed.notify_waiters();
        if let Some(pod) = &self.pod {
            pod.give_back(bytes);
        }
    }

    /// Ends when something has been given back, to this budget or to the pod's, after this was called.
    pub(crate) fn freed(&self) -> impl Future<Output = ()> + Send + '_ {
        let own: Notified<'_> = self.freed.notified();
        let of_pod = self.pod.as_ref().map(|pod| pod.freed.notified());
        async move {
            match of_pod {
                None => own.await,
                Some(of_pod) => {
                    tokio::pin!(own, of_pod);
                    futures::future::select(own, of_pod).await;
                }
            }
        }
    }
}

/// One instance's part of the budget, given back when it is dropped.
pub(crate) struct Part {
    budget: Arc<Budget>,
    charged: AtomicUsize,
    /// All its memories and tables, whoever made them that large.
    declared: AtomicUsize,
    /// What it asked for beyond what its module declares.
    grown: AtomicUsize,
    /// Bytes of the pages that were given to its thread while it ran.
    faulted: AtomicUsize,
    /// What of the budget's `touched` is its own.
    touched: AtomicUsize,
    /// Whether all that the container's threads hold is held for it.
    is_alone: bool,
    /// What the host holds for it, and the most that it was.
    pub(crate) held: Arc<Held>,
    most_held: AtomicUsize,
    n_memories: AtomicUsize,
    has_started: AtomicBool,
    was_refused: AtomicBool,
}

impl Part {
    /// For an instance that is the container's only one: it takes as it goes.
    pub(crate) fn alone(budget: &Arc<Budget>) -> Arc<Part> {
        Part::with(budget, 0, true)
    }

    /// For one of many; `None` while there is no room for what it may need.
    pub(crate) fn admitted(budget: &Arc<Budget>) -> Option<Arc<Part>> {
        let reserve = budget.reserve();
        budget.try_take(reserve).then(|| Part::with(budget, reserve, false))
    }

    fn with(budget: &Arc<Budget>, charged: usize, is_alone: bool) -> Arc<Part> {
        Arc::new(Part {
            budget: budget.clone(),
            charged: AtomicUsize::new(charged),
            declared: AtomicUsize::new(0),
            grown: AtomicUsize::new(0),
            faulted: AtomicUsize::new(0),
            touched: AtomicUsize::new(0),
            is_alone,
            held: Arc::default(),
            most_held: AtomicUsize::new(0),
            n_memories: AtomicUsize::new(0),
            has_started: AtomicBool::new(false),
            was_refused: AtomicBool::new(false),
        })
    }

    /// The instance is made: memories that come from now on were asked for.
    pub(crate) fn started(&self) {
        self.has_started.store(true, Ordering::Relaxed);
    }

    /// What was made of the instance so far is gone, and it is made once more.
    pub(crate) fn made_anew(&self) {
        self.declared.store(0, Ordering::Relaxed);
        self.give_back_memories();
    }

    fn give_back_memories(&self) {
        let n = self.n_memories.swap(0, Ordering::Relaxed);
        self.budget.n_memories.fetch_sub(n, Ordering::Relaxed);
    }

    /// One more memory; all of them are given back with the instance.
    fn add_memory(&self) -> Result<(), TooManyMemories> {
        if self.n_memories.load(Ordering::Relaxed) == MAX_MEMORIES_EACH {
            return Ok(());
        }
        let more = |n: usize| (n < MAX_MEMORIES).then_some(n + 1);
        let is_given = self.budget.n_memories.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        is_given.map_err(|_| TooManyMemories)?;
        self.n_memories.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the guest was told that there is no more memory.
    pub(crate) fn was_refused(&self) -> bool {
        self.was_refused.load(Ordering::Relaxed)
    }

    fn touches(&self) -> usize {
        let most = self.declared.load(Ordering::Relaxed).saturating_add(STACK_BYTES);
        self.faulted.load(Ordering::Relaxed).min(most)
    }

    /// What the host holds for it, and no less than [`INSTANCE_BYTES`].
    fn hosted(&self) -> usize {
        let all = self.budget.heap.bytes();
        let held = if self.is_alone { all } else { self.held.bytes().min(all) };
        self.most_held.fetch_max(held, Ordering::Relaxed);
        held.max(INSTANCE_BYTES)
    }

    fn need(&self) -> usize {
        self.grown.load(Ordering::Relaxed).max(self.touches()) + self.hosted()
    }

    /// Runs `poll`, and counts what the host holds for the instance after it that it did not hold before.
    pub(crate) fn count_held<T>(&self, poll: impl FnOnce() -> T) -> T {
        let polled = self.held.count(&self.budget.heap, poll);
        self.budget.heap.looked();
        polled
    }

    /// Counts pages that the kernel gave while the instance ran. Fails if the container has more than it may have now.
    pub(crate) fn touch(&self, bytes: usize) -> Result<(), LimitReached> {
        if bytes > 0 {
            self.faulted.fetch_add(bytes, Ordering::Relaxed);
        }
        let touched = self.touches() + self.hosted();
        let before = self.touched.swap(touched, Ordering::Relaxed);
        self.budget.touched.fetch_add(touched, Ordering::Relaxed);
        self.budget.touched.fetch_sub(before, Ordering::Relaxed);
        let need = self.need();
        self.budget.saw(need);
        if self.charge(need) {
            return Ok(());
        }
        let missing = need - self.charged.load(Ordering::Relaxed);
        self.budget.take(missing);
        self.charged.fetch_add(missing, Ordering::Relaxed);
        Err(LimitReached)
    }

    #[cfg(test)]
    pub(crate) fn pretend_to_need(&self, bytes: usize) {
        self.declared.store(bytes, Ordering::Relaxed);
        self.started();
        self.touch(bytes - INSTANCE_BYTES).unwrap();
    }

    /// Whether it has `wanted` now, or had it before.
    fn charge(&self, wanted: usize) -> bool {
        let missing = wanted.saturating_sub(self.charged.load(Ordering::Relaxed));
        let is_given = missing == 0 || self.budget.try_take(missing);
        if is_given {
            self.charged.fetch_add(missing, Ordering::Relaxed);
        }
        is_given
    }

    /// Gives back most of what was reserved and not needed: whoever has run for long and needed little does not keep others
    /// out. It keeps room to double.
    pub(crate) fn settle(&self) {
        let need = self.need();
        if self.has_started.load(Ordering::Relaxed) {
            self.budget.learn(need);
        }
        let charged = self.charged.load(Ordering::Relaxed);
        let kept = charged.min(need.saturating_mul(2));
        self.charged.store(kept, Ordering::Relaxed);
        self.budget.give_back(charged - kept);
    }

    /// What was given stays so until the instance ends, also if the growth then fails: an engine says that one has failed
    /// for growths, too, that it never asked for, and a guest could have taken back what it has.
    fn grow(&self, bytes: usize) -> bool {
        if bytes > MAX_GROWTH_BYTES {
            return false;
        }
        if !self.has_started.load(Ordering::Relaxed) {
            self.declared.fetch_add(bytes, Ordering::Relaxed);
            return true;
        }
        let held = self.grown.load(Ordering::Relaxed).max(self.touches());
        let is_given = held
            .checked_add(bytes)
            .and_then(|held| held.checked_add(self.hosted()))
            .is_some_and(|wanted| self.charge(wanted));
        if is_given {
            self.declared.fetch_add(bytes, Ordering::Relaxed);
            self.grown.fetch_add(bytes, Ordering::Relaxed);
        } else {
            self.was_refused.store(true, Ordering::Relaxed);
        }
        is_given
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // One that never ran says nothing of what others will need.
        if *self.has_started.get_mut() {
            self.budget.learn(self.need());
        }
        self.give_back_memories();
        heap::trim(*self.most_held.get_mut());
        self.budget.touched.fetch_sub(*self.touched.get_mut(), Ordering::Relaxed);
        self.budget.give_back(*self.charged.get_mut());
    }
}

/// The part as its store asks it.
pub(crate) struct Share {
    pub(crate) part: Arc<Part>,
}

impl Share {
    pub(crate) fn of(part: Arc<Part>) -> Share {
        Share { part }
    }

    fn grow(&self, bytes: usize, is_within_its_own: bool) -> bool {
        is_within_its_own && self.part.grow(bytes)
    }
}

impl ResourceLimiter for Share {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // One that is empty looks new each time that it is to grow; so a memory may count more than once, but an instance
        // has no more of them than the engine makes for it.
        if current == 0 {
            self.part.add_memory()?;
        }
        Ok(self.grow(desired.saturating_sub(current), maximum.is_none_or(|maximum| desired <= maximum)))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let bytes = desired.saturating_sub(current).saturating_mul(ELEMENT_BYTES);
        Ok(self.grow(bytes, maximum.is_none_or(|maximum| desired <= maximum)))
    }

    fn instances(&self) -> usize {
        MAX_INSTANCES_EACH
    }

    fn tables(&self) -> usize {
        MAX_TABLES_EACH
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES_EACH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// One that declares `declared`, touches `touched` of it and has asked for `grown` more.
    fn instance(budget: &Arc<Budget>, declared: usize, touched: usize, grown: usize) -> Option<Share> {
        let mut share = Share::of(Part::admitted(budget)?);
        assert!(share.memory_growing(0, declared, None).unwrap());
        share.part.started();
        assert!(share.memory_growing(declared, declared + grown, None).unwrap());
        share.part.touch(touched).unwrap();
        Some(share)
    }

    #[test]
    fn what_is_declared_and_not_touched_costs_nothing() {
        let budget = Budget::new(8 * MIB);
        drop(instance(&budget, 64 * MIB, MIB / 8, 0));
        let instances: Vec<_> = (0..20).map(|_| instance(&budget, 64 * MIB, MIB / 8, 0)).collect();
        assert!(instances.iter().all(Option::is_some));
        assert_eq!(budget.touched(), 20 * (MIB / 8 + INSTANCE_BYTES));
        drop(instances);
        assert_eq!((budget.touched(), budget.used.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn who_finds_no_room_for_the_most_that_was_seen_is_not_let_in() {
        let budget = Budget::new(10 * MIB);
        let first = instance(&budget, MIB, MIB, 3 * MIB - INSTANCE_BYTES).unwrap();
        let others: Vec<_> = std::iter::from_fn(|| Part::admitted(&budget)).collect();
        assert_eq!(others.len(), 2);
        drop(first);
        assert!(Part::admitted(&budget).is_some());
        // As ever smaller ones come, there is room for more of them.
        drop(others);
        for _ in 0..1000 {
            drop(instance(&budget, MIB, MIB / 2, 0));
        }
        assert!(std::iter::from_fn(|| Part::admitted(&budget)).take(100).collect::<Vec<_>>().len() > 15);
    }

    #[test]
    fn the_first_ones_say_what_is_needed_at_their_end_and_not_before() {
        let budget = Budget::new(8 * MIB);
        let first = instance(&budget, 4 * MIB, MIB / 8, 0).unwrap();
        // It has hardly begun: a quarter is kept for each.
        assert_eq!(std::iter::from_fn(|| Part::admitted(&budget)).collect::<Vec<_>>().len(), 3);
        first.part.touch(3 * MIB).unwrap();
        assert_eq!(std::iter::from_fn(|| Part::admitted(&budget)).collect::<Vec<_>>().len(), 1);
    }

    #[test]
    fn what_can_never_be_had_is_kept_for_nobody() {
        let budget = Budget::new(8 * MIB);
        drop(instance(&budget, MIB, MIB - INSTANCE_BYTES, 0));
        let greedy = Share::of(Part::admitted(&budget).unwrap());
        greedy.part.declared.store(64 * MIB, Ordering::Relaxed);
        greedy.part.started();
        greedy.part.touch(32 * MIB).unwrap_err();
        drop(greedy);
        assert_eq!(std::iter::from_fn(|| Part::admitted(&budget)).collect::<Vec<_>>().len(), 8);
    }

    #[test]
    fn those_who_stay_do_not_keep_all_others_out_after_one_that_needed_nearly_all() {
        let budget = Budget::new(8 * MIB);
        drop(instance(&budget, 8 * MIB, 7 * MIB, 0));
        let stays = Share::of(Part::alone(&budget));
        assert!(stays.part.charge(2 * MIB));
        assert!(Part::admitted(&budget).is_none());
        budget.ask_for_less();
        assert!(Part::admitted(&budget).is_some());
    }

    #[test]
    fn a_growth_that_failed_gives_nothing_back_that_others_gave() {
        let budget = Budget::new(4 * MIB);
        let mut share = Share::of(Part::alone(&budget));
        share.part.started();
        assert!(share.memory_growing(0, 3 * MIB, None).unwrap());
        // An engine says so, unasked, of a table that is to have more elements than there are numbers.
        share.table_grow_failed(wasmtime::Error::msg("overflow")).unwrap();
        assert!(!share.memory_growing(3 * MIB, 6 * MIB, None).unwrap());
        assert!(!share.memory_growing(3 * MIB, 1 << 60, None).unwrap());
    }

    #[test]
    fn a_container_has_a_bounded_number_of_memories() {
        let budget = Budget::in_pod(None, None);
        let mut shares = Vec::new();
        let mut share = || {
            let mut share = Share::of(Part::alone(&budget));
            let made =
                (0..MAX_MEMORIES_EACH + 5).try_for_each(|_| share.memory_growing(0, 1, None).map(drop));
            shares.push(share);
            made
        };
        for _ in 0..MAX_MEMORIES / MAX_MEMORIES_EACH {
            share().unwrap();
        }
        assert!(share().unwrap_err().is::<TooManyMemories>());
        shares[0].part.made_anew();
        drop(shares);
        assert_eq!(budget.n_memories.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_that_needs_all_is_let_in_alone() {
        let budget = Budget::new(MIB);
        let share = instance(&budget, 4 * MIB, MIB - INSTANCE_BYTES, 0).unwrap();
        assert!(Part::admitted(&budget).is_none());
        drop(share);
        assert!(Part::admitted(&budget).is_some());
    }

    #[test]
    fn one_that_hangs_keeps_no_more_than_it_may_need() {
        let budget = Budget::new(10 * MIB);
        drop(instance(&budget, 8 * MIB, 8 * MIB - INSTANCE_BYTES, 0));
        let hanging = instance(&budget, 8 * MIB, MIB / 2 - INSTANCE_BYTES, 0).unwrap();
        assert!(Part::admitted(&budget).is_none());
        hanging.part.settle();
        assert!(Part::admitted(&budget).is_some());
        assert_eq!(budget.used.load(Ordering::Relaxed), MIB);
    }

    #[test]
    fn growth_past_the_limit_is_refused_and_counts_nothing() {
        let budget = Budget::new(MIB);
        let mut share = Share::of(Part::alone(&budget));
        share.part.started();
        assert!(share.memory_growing(0, MIB / 2, None).unwrap());
        assert!(!share.memory_growing(MIB / 2, 2 * MIB, None).unwrap() && share.part.was_refused());
        assert!(!share.table_growing(0, MIB, None).unwrap());
        assert!(!share.memory_growing(MIB / 2, usize::MAX, None).unwrap());
        assert!(share.memory_growing(MIB / 2, MIB / 2 + 1024, None).unwrap());
        share.part.touch(MIB / 2).unwrap();
    }

    #[test]
    fn a_growth_past_the_memorys_own_maximum_is_no_want_of_memory() {
        let budget = Budget::new(MIB);
        let mut share = Share::of(Part::alone(&budget));
        assert!(!share.memory_growing(0, 200, Some(150)).unwrap());
        assert!(!share.part.was_refused());
    }

    #[test]
    fn who_touches_more_than_there_is_is_told_so() {
        let budget = Budget::new(MIB);
        let mut share = Share::of(Part::alone(&budget));
        assert!(share.memory_growing(0, 64 * MIB, None).unwrap());
        share.part.started();
        share.part.touch(MIB / 2).unwrap();
        share.part.touch(MIB).unwrap_err();
        // What cannot be undone is counted.
        assert!(Part::admitted(&budget).is_none());
        drop(share);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn containers_of_a_pod_have_no_more_together_than_it_may_have() {
        let pod = Budget::new(10 * MIB);
        let of = |limit: usize| Budget::in_pod(Some(limit as u64), Some(pod.clone()));
        let (first, second) = (of(8 * MIB), of(8 * MIB));
        let held = instance(&first, 7 * MIB, 7 * MIB, 0).unwrap();
        let mut share = Share::of(Part::alone(&second));
        share.part.started();
        assert!(!share.memory_growing(0, 4 * MIB, None).unwrap());
        assert_eq!(second.used.load(Ordering::Relaxed), 0);
        let mut freed = watches(&second);
        assert!(!freed());
        drop(held);
        assert!(freed());
        assert!(share.memory_growing(0, 4 * MIB, None).unwrap());
    }

    /// Whether something has been given back since this was called.
    fn watches(budget: &Arc<Budget>) -> impl FnMut() -> bool {
        let budget = budget.clone();
        let freed = Box::pin(async move { budget.freed().await });
        let mut freed = freed;
        move || {
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            freed.as_mut().poll(&mut context).is_ready()
        }
    }

    #[test]
    fn a_container_without_a_limit_has_none() {
        let budget = Budget::in_pod(None, None);
        let held: Vec<_> = (0..4).map(|_| instance(&budget, 0, 0, 2048 * MIB)).collect();
        assert!(held.iter().all(Option::is_some));
    }
}
