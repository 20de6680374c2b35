//! What guests make their host hold: fields, bodies, pollables, streams, buffers. All of it is on the heap of this process,
//! and is counted there, by the thread that asks for it: a container's threads are its own.
//!
//! ```text
//!   container's thread, its threads for files ──▶ [`Counter`] of the container
//!                     while an instance is polled └──▶ [`Held`] of the instance
//! ```
//!
//! # Assumptions
//! - The program has [`CountingAllocator`] as its allocator; [`is_counted`] tells. Else nothing is counted here.
//!
//! # Caveats
//! - Of several instances at once each is taken to hold what was asked for and not given back while it was polled. What one
//!   task asks for and another gives back is told where most of it goes: in the bodies of requests and responses. An
//!   instance never counts for more than its container holds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::engine::Engines;

/// A container whose heap has grown by as much since anyone looked has its guests yield, and is looked at.
const LOOK_BYTES: isize = 1 << 20;
/// An instance that has held more gives it back to the kernel when it ends.
const TRIM_BYTES: usize = 4 << 20;

thread_local! {
    /// Of the container whose thread this is.
    static CURRENT: Cell<*const Counter> = const { Cell::new(ptr::null()) };
}

/// The system's allocator, which counts for the threads of containers what they hold.
pub struct CountingAllocator;

// SAFETY: all of it is the system's, which is asked with what was asked for.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        let given = unsafe { System.alloc(layout) };
        if !given.is_null() {
            count(size(layout.size()));
        }
        given
    }

    unsafe fn dealloc(&self, given: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(given, layout) };
        count(-size(layout.size()));
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        let given = unsafe { System.alloc_zeroed(layout) };
        if !given.is_null() {
            count(size(layout.size()));
        }
        given
    }

    unsafe fn realloc(&self, given: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's.
        let moved = unsafe { System.realloc(given, layout, new_size) };
        if !moved.is_null() {
            count(size(new_size) - size(layout.size()));
        }
        moved
    }
}

/// No allocation is larger than that.
fn size(bytes: usize) -> isize {
    bytes.cast_signed()
}

fn count(change: isize) {
    // A thread that is ending may have no such variable any more.
    let Ok(current) = CURRENT.try_with(Cell::get) else { return };
    // SAFETY: it is null, or of a counter that whoever put it there keeps until it has taken it away.
    if let Some(counter) = unsafe { current.as_ref() } {
        counter.change(change);
    }
}

/// What the threads of one container hold.
#[derive(Default)]
pub(crate) struct Counter {
    bytes: AtomicIsize,
    /// Where it is looked at next.
    look_at: AtomicIsize,
    engines: OnceLock<Engines>,
}

impl Counter {
    /// Nothing in here may allocate.
    fn change(&self, change: isize) {
        let now = self.bytes.fetch_add(change, Ordering::Relaxed) + change;
        if change > 0 && now > self.look_at.load(Ordering::Relaxed) {
            self.looked();
            if let Some(engines) = self.engines.get() {
                engines.pooled.increment_epoch();
                engines.on_demand.increment_epoch();
            }
        }
    }

    /// It is about to be looked at, or was.
    pub(crate) fn looked(&self) {
        let now = self.bytes.load(Ordering::Relaxed);
        self.look_at.store(now.saturating_add(LOOK_BYTES), Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed).max(0).cast_unsigned()
    }

    fn signed(&self) -> isize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whose guests yield when the heap grows.
    pub(crate) fn stops(&self, engines: &Engines) {
        // Its host has no other.
        _ = self.engines.set(engines.clone());
    }

    /// What this thread asks for and gives back is counted, until what is returned is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Entered {
        let before = CURRENT.replace(Arc::as_ptr(self));
        Entered { _counter: self.clone(), before, of_thread: PhantomData }
    }
}

/// Keeps the counter of a thread.
pub(crate) struct Entered {
    _counter: Arc<Counter>,
    before: *const Counter,
    of_thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

/// Until [`leave`], what this thread asks for and gives back is counted.
///
/// # Safety
/// The counter is kept until then.
pub(crate) unsafe fn enter_thread(counter: &Counter) {
    CURRENT.set(ptr::from_ref(counter));
}

/// Nothing that this thread does is counted from now on.
pub(crate) fn leave() {
    CURRENT.set(ptr::null());
}

/// What one instance of a container holds.
#[derive(Default)]
pub(crate) struct Held(AtomicIsize);

impl Held {
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed).max(0).cast_unsigned()
    }

    fn change(&self, change: isize) {
        let changed = |held: isize| Some(held.saturating_add(change).max(0));
        _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed);
    }

    /// It was given what others had asked for.
    pub(crate) fn came(&self, n_bytes: usize) {
        self.change(size(n_bytes));
    }

    /// Others have what it asked for.
    pub(crate) fn went(&self, n_bytes: usize) {
        self.change(-size(n_bytes));
    }

    /// Runs `poll` and counts what is held after it and was not before.
    pub(crate) fn count<T>(&self, counter: &Counter, poll: impl FnOnce() -> T) -> T {
        let before = counter.signed();
        let polled = poll();
        self.change(counter.signed() - before);
        polled
    }
}

/// What an instance has freed that held as much goes back to the kernel; a heap keeps it otherwise.
pub(crate) fn trim(most_held: usize) {
    if most_held > TRIM_BYTES {
        // SAFETY: asks the allocator to return what nobody uses.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Whether this program's allocator counts.
pub(crate) fn is_counted() -> bool {
    let counter = Arc::new(Counter::default());
    let entered = counter.enter();
    let some = std::hint::black_box(Box::new([0_u8; 64]));
    drop(entered);
    drop(some);
    counter.signed() >= 64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: CountingAllocator = CountingAllocator;

    #[test]
    fn what_a_thread_holds_is_counted_and_what_it_gives_back_is_not() {
        assert!(is_counted());
        let counter = Arc::new(Counter::default());
        let held = Held::default();
        let entered = counter.enter();
        let mut kept = held.count(&counter, || vec![1_u8; 100_000]);
        assert!((100_000..101_000).contains(&held.bytes()), "{}", held.bytes());
        held.count(&counter, || kept.resize(300_000, 1));
        assert!(counter.bytes() >= 300_000 && held.bytes() >= 300_000);
        held.went(100_000);
        assert!((200_000..201_000).contains(&held.bytes()), "{}", held.bytes());
        held.count(&counter, || drop(kept));
        assert_eq!(held.bytes(), 0);
        drop(entered);
        assert!(counter.bytes() < 1000, "{}", counter.bytes());
        let _not_counted = vec![1_u8; 100_000];
        assert!(counter.bytes() < 1000);
    }
}
