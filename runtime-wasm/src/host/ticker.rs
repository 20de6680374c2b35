//! The ticker: an OS thread that advances the engine's epoch while a guest runs, and sleeps while none
//! does, so that an idle host costs nothing.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread::{self, Thread};
use std::time::Duration;

use wasmtime::Engine;

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
    pub(crate) fn start(engine: Engine) -> std::io::Result<Ticker> {
        let shared = Arc::new(Shared::default());
        let ours = shared.clone();
        let handle =
            thread::Builder::new().name("ticker".to_owned()).stack_size(64 << 10).spawn(move || {
                let mut n_idle = 0;
                loop {
                    thread::park_timeout(TICK);
                    engine.increment_epoch();
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

    /// Ticks while `guest` is being polled.
    pub(crate) fn watch<F: Future>(&self, guest: F) -> Watched<F> {
        Watched { ticker: self.clone(), guest: Box::pin(guest) }
    }
}

pub(crate) struct Watched<F> {
    ticker: Ticker,
    guest: Pin<Box<F>>,
}

/// Counts a guest as running, also when its poll panics.
struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.n_running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let ticker = self.ticker.clone();
        ticker.shared.n_running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(&ticker.shared);
        if ticker.shared.parked.load(Ordering::SeqCst) {
            ticker.thread.unpark();
        }
        self.guest.as_mut().poll(context)
    }
}
