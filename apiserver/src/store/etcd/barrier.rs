//! How far the store is, asked by many at once.
//!
//! ```text
//!  asked ─▶ waiting ─┬─▶ one read ─▶ all who waited when it began
//!  asked ─▶ waiting ─┘        │
//!  asked ─────────────▶ waiting ─▶ the next read
//! ```
//!
//! # Guarantees
//! Who asks is answered by a read that began after it asked: everything that was acknowledged before, by any server, is at or
//! below the answer. At most one read is on its way.

use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::super::contract::{Revision, StoreError};

type Answer = Result<Revision, StoreError>;

pub(super) struct Barrier {
    /// Where reads run: who asks may be on threads that end before others.
    runtime: Handle,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    waiting: Vec<oneshot::Sender<Answer>>,
    is_reading: bool,
}

impl Barrier {
    pub(super) fn new(runtime: Handle) -> Barrier {
        Barrier { runtime, state: Arc::default() }
    }

    pub(super) async fn pass<F, R>(&self, read: F) -> Answer
    where
        F: Fn() -> R + Send + 'static,
        R: Future<Output = Answer> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let begins = {
            let mut state = self.state.lock();
            state.waiting.push(answer);
            !std::mem::replace(&mut state.is_reading, true)
        };
        if begins {
            self.runtime.spawn(read_until_nobody_waits(self.state.clone(), read));
        }
        answered.await.unwrap_or(Err(StoreError::Closed))
    }
}

async fn read_until_nobody_waits<F, R>(state: Arc<Mutex<State>>, read: F)
where
    F: Fn() -> R,
    R: Future<Output = Answer>,
{
    loop {
        let waiting = {
            let mut state = state.lock();
            if state.waiting.is_empty() {
                state.is_reading = false;
                return;
            }
            std::mem::take(&mut state.waiting)
        };
        let answer = read().await;
        for one in waiting {
            // Who has gone is not told.
            let _ = one.send(answer.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn many_who_ask_at_once_share_a_read_that_began_after_they_asked() {
        let barrier = Arc::new(Barrier::new(Handle::current()));
        let (reads, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let ask = || {
            let (barrier, reads, gate) = (barrier.clone(), reads.clone(), gate.clone());
            tokio::spawn(async move {
                let read = move || {
                    let (reads, gate) = (reads.clone(), gate.clone());
                    async move {
                        let number = reads.fetch_add(1, Ordering::SeqCst) + 1;
                        gate.acquire()
                            .await
                            .map(tokio::sync::SemaphorePermit::forget)
                            .map_err(|_| StoreError::Closed)?;
                        Ok(number)
                    }
                };
                barrier.pass(read).await
            })
        };
        let first = ask();
        while reads.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        // The first read is on its way: these are not to be answered by it.
        let others: Vec<_> = (0..100).map(|_| ask()).collect();
        while barrier.state.lock().waiting.len() < 100 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(1);
        assert_eq!(first.await.expect("joins").expect("answers"), 1);
        gate.add_permits(1);
        for other in others {
            assert_eq!(other.await.expect("joins").expect("answers"), 2);
        }
        assert_eq!(reads.load(Ordering::SeqCst), 2);
    }
}
