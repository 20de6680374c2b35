//! The one loop that all controllers run in.
//!
//! # Guarantees
//! - One key is never in two passes at a time.
//! - A pass that fails, or panics, is taken again after a back-off: a bug in one costs no other key its controller.

use std::any::Any;
use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use skiff_client::WorkQueue;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

/// The longest that a key waits for a time to come. How long it is until then was read off the wall clock, which may be set
/// meanwhile; a pass that comes too early reads it again and waits on.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// What a pass came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing is left to do until something changes.
    Done,
    /// Look again after this long, or a minute if that is less, whatever happens.
    After(Duration),
}

/// One controller: a queue that its informers fill, and a pass over one key.
pub(crate) trait Controller: Send + Sync + 'static {
    const NAME: &'static str;
    /// Passes at a time. One key is never in two.
    const WORKERS: usize = 2;

    /// What its objects are known by: mostly namespace and name.
    type Key: Clone + Eq + Hash + Display + Send + Sync + 'static;

    fn queue(&self) -> &WorkQueue<Self::Key>;

    /// Returns once the informers are complete.
    fn synced(&self) -> impl Future<Output = ()> + Send;

    /// Re-reads everything about a key and brings it a step closer to what it should be.
    fn reconcile(&self, key: &Self::Key) -> impl Future<Output = Result<Outcome, kube::Error>> + Send;
}

/// Runs a controller until `shutdown`.
pub(crate) async fn run<C: Controller>(controller: C, shutdown: CancellationToken) {
    let controller = Arc::new(controller);
    tokio::select! {
        // Both only wait.
        () = controller.synced() => {}
        () = shutdown.cancelled() => return,
    }
    let mut workers = JoinSet::new();
    for _ in 0..C::WORKERS {
        workers.spawn(work(controller.clone(), shutdown.clone()));
    }
    loop {
        let ended = tokio::select! {
            // Both only wait; a worker's end stays in the set until it is taken out.
            Some(ended) = workers.join_next() => ended,
            () = shutdown.cancelled() => break,
        };
        if let Err(failed) = ended {
            error!(controller = C::NAME, %failed, "a worker ended by itself; another takes its place");
            workers.spawn(work(controller.clone(), shutdown.clone()));
        }
    }
    controller.queue().close();
    while workers.join_next().await.is_some() {}
}

async fn work<C: Controller>(controller: Arc<C>, shutdown: CancellationToken) {
    let queue = controller.queue().clone();
    while let Some(key) = queue.get().await {
        let outcome = tokio::select! {
            // A pass that is dropped half-way is begun again by the next process.
            outcome = AssertUnwindSafe(controller.reconcile(&key)).catch_unwind() => outcome,
            () = shutdown.cancelled() => return,
        };
        match outcome {
            Ok(Ok(outcome)) => {
                queue.forget(&key);
                if let Outcome::After(delay) = outcome {
                    queue.add_after(key.clone(), delay.min(MAX_WAIT));
                }
            }
            Ok(Err(error)) => {
                if is_conflict(&error) {
                    debug!(controller = C::NAME, %key, "somebody else was faster; looking again");
                } else {
                    warn!(controller = C::NAME, %key, %error, "a pass failed; trying again");
                }
                queue.retry(key.clone());
            }
            Err(panic) => {
                let message = panic_message(panic.as_ref());
                error!(controller = C::NAME, %key, message, "a pass panicked; trying again");
                queue.retry(key.clone());
            }
        }
        queue.done(&key);
    }
}

/// How long a part that panicked rests before it begins again.
const REST: Duration = Duration::from_secs(1);

/// Runs what is meant to run until `shutdown`, again and again should it panic.
pub(crate) async fn restarted<F: Future<Output = ()>>(
    name: &'static str,
    shutdown: CancellationToken,
    make: impl Fn() -> F,
) {
    while let Err(panic) = AssertUnwindSafe(make()).catch_unwind().await {
        let message = panic_message(panic.as_ref());
        error!(controller = name, message, "a part panicked; beginning it again");
        tokio::select! {
            // Both only wait.
            () = tokio::time::sleep(REST) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// What `panic!` was given.
fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    code(error) == 409
}

pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    code(error) == 404
}

/// What was sent is of a type that the kind does not take.
pub(crate) fn is_unsupported(error: &kube::Error) -> bool {
    code(error) == 415
}

/// What is gone already needs no deleting.
pub(crate) fn gone_is_fine<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if is_not_found(&error) => Ok(()),
        other => other.map(drop),
    }
}

/// What is there already needs no making.
pub(crate) fn exists_is_fine<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if is_conflict(&error) => Ok(()),
        other => other.map(drop),
    }
}

/// Whether the namespace is on its way out, so that nothing more can be made in it.
pub(crate) fn is_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|d| &d.causes);
    status.code == 403 && causes.into_iter().any(|c| c.reason == "NamespaceTerminating")
}

/// What the API server said, without the client's wrapping.
pub(crate) fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use parking_lot::Mutex;
    use tokio::sync::Notify;

    use super::*;

    /// Panics at its first pass over `bad`.
    #[derive(Default)]
    struct Clumsy {
        queue: WorkQueue<String>,
        passes: Arc<Mutex<HashMap<String, u32>>>,
        passed: Arc<Notify>,
    }

    impl Controller for Clumsy {
        const NAME: &'static str = "clumsy";
        const WORKERS: usize = 1;
        type Key = String;

        fn queue(&self) -> &WorkQueue<String> {
            &self.queue
        }

        async fn synced(&self) {}

        async fn reconcile(&self, key: &String) -> Result<Outcome, kube::Error> {
            let pass = {
                let mut passes = self.passes.lock();
                let pass = passes.entry(key.clone()).or_default();
                *pass += 1;
                *pass
            };
            assert!(key != "bad" || pass > 1, "the first pass over {key} fails");
            self.passed.notify_one();
            Ok(Outcome::Done)
        }
    }

    /// Waits for what is a year away by a clock that will be set.
    #[derive(Default)]
    struct Patient {
        queue: WorkQueue<String>,
        n_passes: Arc<Mutex<u32>>,
    }

    impl Controller for Patient {
        const NAME: &'static str = "patient";
        type Key = String;

        fn queue(&self) -> &WorkQueue<String> {
            &self.queue
        }

        async fn synced(&self) {}

        async fn reconcile(&self, _: &String) -> Result<Outcome, kube::Error> {
            *self.n_passes.lock() += 1;
            Ok(Outcome::After(Duration::from_secs(365 * 86_400)))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_a_time_looks_at_the_clock_every_minute() {
        let patient = Patient::default();
        let (queue, n_passes) = (patient.queue.clone(), patient.n_passes.clone());
        let shutdown = CancellationToken::new();
        let running = run(patient, shutdown);
        queue.add("one".to_owned());
        assert!(tokio::time::timeout(Duration::from_secs(290), running).await.is_err());
        assert_eq!(*n_passes.lock(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pass_that_panics_is_taken_again_and_costs_no_other_key_its_pass() {
        let clumsy = Clumsy::default();
        let (queue, passes, passed) = (clumsy.queue.clone(), clumsy.passes.clone(), clumsy.passed.clone());
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(run(clumsy, shutdown.clone()));
        for key in ["bad", "good"] {
            queue.add(key.to_owned());
        }
        let both = async {
            while passes.lock().len() < 2 || passes.lock()["bad"] < 2 {
                passed.notified().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("a panic ended the controller");
        assert_eq!(*passes.lock(), HashMap::from([("bad".into(), 2), ("good".into(), 1)]));
        shutdown.cancel();
        running.await.unwrap();
    }
}
