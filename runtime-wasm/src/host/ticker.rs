//! The ticker: an OS thread that advances the engines' epochs while a guest runs, and sleeps while none
//! does, so that an idle host costs nothing. What runs under it has its memory counted, too.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread::{self, Thread};
use std::time::Duration;

use crate::engine::Engines;

use super::budget::Part;

/// How long a guest runs before it must let others of its thread have a turn.
const TICK: Duration = Duration::from_millis(10);
/// Ticks after the last guest stopped running, lest every request wakes the thread.
const LINGER_TICKS: u32 = 10;

#[derive(Default)]
struct Shared {
    /// Guests that are being polled right now.
    n_running: AtomicUsize,
    parked: AtomicBool,
}

#[derive(Clone)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

impl Ticker {
    pub(crate) fn start(engines: Engines) -> std::io::Result<Ticker> {
        let shared = Arc::new(Shared::default());
        let ours = shared.clone();
        let handle =
            thread::Builder::new().name("ticker".to_owned()).stack_size(64 << 10).spawn(move || {
                let mut n_idle = 0;
                loop {
                    thread::park_timeout(TICK);
                    engines.pooled.increment_epoch();
                    engines.on_demand.increment_epoch();
                    n_idle = if ours.n_running.load(Ordering::SeqCst) == 0 { n_idle + 1 } else { 0 };
                    if n_idle > LINGER_TICKS {
                        ours.parked.store(true, Ordering::SeqCst);
                        // Asked again after the flag was raised: whoever starts now sees the flag.
                        while ours.n_running.load(Ordering::SeqCst) == 0 {
                            thread::park();
                        }
                        ours.parked.store(false, Ordering::SeqCst);
                        n_idle = 0;
                    }
                }
            })?;
        Ok(Ticker { shared, thread: handle.thread().clone() })
    }

    /// Ticks while `guest` is being polled, and counts to `part` the memory that its thread is given meanwhile. A guest that
    /// has touched, or made its host hold, more than its container may have fails with [`super::budget::LimitReached`].
    pub(crate) fn watch<F: Future>(&self, part: Arc<Part>, guest: F) -> Watched<F> {
        Watched { ticker: self.clone(), part, guest: Box::pin(guest) }
    }
}

pub(crate) struct Watched<F> {
    ticker: Ticker,
    part: Arc<Part>,
    guest: Pin<Box<F>>,
}

/// Counts a guest as running, also when its poll panics.
struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.n_running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<T, F: Future<Output = wasmtime::Result<T>>> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let ticker = self.ticker.clone();
        ticker.shared.n_running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(&ticker.shared);
        if ticker.shared.parked.load(Ordering::SeqCst) {
            ticker.thread.unpark();
        }
        let before = pages_given();
        let part = self.part.clone();
        let polled = part.count_held(|| self.guest.as_mut().poll(context));
        let n_pages = pages_given().saturating_sub(before);
        match self.part.touch(n_pages.saturating_mul(rustix::param::page_size())) {
            Err(reached) if polled.is_pending() => Poll::Ready(Err(reached.into())),
            _ => polled,
        }
    }
}

/// Pages that the kernel has given to this thread since it began, as it was about to touch them. The host has no huge pages.
fn pages_given() -> usize {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one `rusage` to where the pointer says, and there is room for one.
    _ = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    // SAFETY: zeroes are a valid `rusage`, and so is what the kernel writes.
    let usage = unsafe { usage.assume_init() };
    usize::try_from(usage.ru_minflt).unwrap_or_default()
}
