//! Work that keeps a processor busy, away from the threads that serve everybody: parsing, patching and encoding what is large.
//!
//! Only as many such pieces run at once as there are processors; the others wait, and light requests pass them by. Each has a
//! thread of its own, and of a lower priority than those that serve: else the kernel would let a light request wait for its
//! turn behind them.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use skiff_api::Status;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::auth::UserInfo;
use crate::threads::Class;

/// How much the kernel prefers the threads that serve: with 10, about nine times.
const NICENESS: i32 = 10;

/// From this size on a body, or a stored object that is changed, is heavy: some milliseconds of work.
pub(crate) const HEAVY_BYTES: usize = 64 << 10;

pub(crate) struct Heavy {
    permits: Arc<Semaphore>,
    prepare: fn(),
}

impl Heavy {
    /// `prepare` is what each of its threads calls first.
    pub(crate) fn new(prepare: fn()) -> Heavy {
        let n = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Heavy { permits: Arc::new(Semaphore::new(n)), prepare }
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.permits.clone().acquire_owned().await.map_err(Status::internal)
    }

    /// Runs a piece of work. It goes on if nobody waits for it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let permit = self.permit().await?;
        let (done, result) = oneshot::channel();
        let (prepare, runtime) = (self.prepare, Handle::current());
        let piece = move || {
            // What it begins for later, such as letting go of what is kept for a while, has a place to run.
            let _entered = runtime.enter();
            prepare();
            // Everybody may lower it; where it fails all the same, the work is only less considerate.
            _ = rustix::process::setpriority_process(None, NICENESS);
            let outcome = std::panic::catch_unwind(AssertUnwindSafe(work));
            drop(permit);
            _ = done.send(outcome);
        };
        std::thread::Builder::new().name("heavy".into()).spawn(piece).map_err(Status::internal)?;
        match result.await {
            Ok(Ok(value)) => Ok(value),
            _ => Err(Status::internal(PANICKED)),
        }
    }

    /// Drives a future to its end on a thread of its own. It goes on if nobody waits for it.
    pub(crate) async fn drive<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Status> {
        let runtime = Handle::current();
        self.run(move || runtime.block_on(work)).await
    }
}

/// The threads for heavy work: those of the cluster's own, who do not wait for others, and everybody else's.
pub(crate) struct HeavyWork {
    own: Heavy,
    others: Heavy,
}

impl HeavyWork {
    pub(crate) fn new(prepare: fn()) -> HeavyWork {
        HeavyWork { own: Heavy::new(prepare), others: Heavy::new(prepare) }
    }

    pub(crate) fn of(&self, user: &UserInfo) -> &Heavy {
        if Class::of(Some(user)) == Class::Own { &self.own } else { &self.others }
    }

    pub(crate) fn own(&self) -> &Heavy {
        &self.own
    }

    pub(crate) fn others(&self) -> &Heavy {
        &self.others
    }
}

const PANICKED: &str = "the request handler panicked";

/// What is said of a task that did not end as it should.
pub(crate) fn failure(error: &tokio::task::JoinError) -> Status {
    let why = if error.is_panic() { PANICKED } else { "the server is shutting down" };
    Status::internal(why)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn no_more_than_there_are_processors_work_at_once() {
        let heavy = Heavy::new(|| ());
        let n = heavy.permits.available_permits();
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let work = |_| {
            let (running, most) = (running.clone(), most.clone());
            heavy.run(move || {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
            })
        };
        let all = futures::future::join_all((0..40 * n).map(work)).await;
        assert!(all.iter().all(Result::is_ok) && most.load(Ordering::SeqCst) <= n);
    }

    #[tokio::test]
    async fn work_may_begin_something_that_goes_on_without_it() {
        let heavy = Heavy::new(|| ());
        let begun = heavy.run(|| Handle::try_current().map(|runtime| runtime.spawn(async { 1 }))).await;
        assert_eq!(begun.expect("runs").expect("has a runtime").await.expect("goes on"), 1);
    }

    #[tokio::test]
    async fn the_thread_that_serves_goes_on_meanwhile() {
        let heavy = Heavy::new(|| ());
        let (start, started) = std::sync::mpsc::channel::<()>();
        // This never ends unless something else runs on the one thread of this test's runtime.
        let work = heavy.run(move || started.recv().is_ok());
        let (ended, ()) = tokio::join!(work, async move { start.send(()).expect("it waits") });
        assert!(ended.expect("ends"));
        let panicked = heavy.run(|| panic!("on purpose")).await.expect_err("says so");
        assert_eq!((panicked.code, heavy.drive(async { 1 }).await.expect("goes on")), (500, 1));
    }
}
