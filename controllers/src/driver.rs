//! The one loop that all controllers run in.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use skiff_client::{ObjectKey, WorkQueue};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// What a pass came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing is left to do until something changes.
    Done,
    /// Look again after this long, whatever happens.
    After(Duration),
}

/// One controller: a queue that its informers fill, and a pass over one key.
pub(crate) trait Controller: Send + Sync + 'static {
    const NAME: &'static str;
    /// Passes at a time. One key is never in two.
    const WORKERS: usize = 2;

    fn queue(&self) -> &WorkQueue<ObjectKey>;

    /// Returns once the informers are complete.
    fn synced(&self) -> impl Future<Output = ()> + Send;

    /// Re-reads everything about a key and brings it a step closer to what it should be.
    fn reconcile(&self, key: &ObjectKey) -> impl Future<Output = Result<Outcome, kube::Error>> + Send;
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
    shutdown.cancelled().await;
    controller.queue().close();
    while workers.join_next().await.is_some() {}
}

async fn work<C: Controller>(controller: Arc<C>, shutdown: CancellationToken) {
    let queue = controller.queue().clone();
    while let Some(key) = queue.get().await {
        let outcome = tokio::select! {
            // A pass that is dropped half-way is begun again by the next process.
            outcome = controller.reconcile(&key) => outcome,
            () = shutdown.cancelled() => return,
        };
        match outcome {
            Ok(outcome) => {
                queue.forget(&key);
                if let Outcome::After(delay) = outcome {
                    queue.add_after(key.clone(), delay);
                }
            }
            Err(error) => {
                if is_conflict(&error) {
                    debug!(controller = C::NAME, %key, "somebody else was faster; looking again");
                } else {
                    warn!(controller = C::NAME, %key, %error, "a pass failed; trying again");
                }
                queue.retry(key.clone());
            }
        }
        queue.done(&key);
    }
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

/// What is gone already needs no deleting.
pub(crate) fn gone_is_fine<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if code(&error) == 404 => Ok(()),
        other => other.map(drop),
    }
}

/// What is there already needs no making.
pub(crate) fn exists_is_fine<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if code(&error) == 409 => Ok(()),
        other => other.map(drop),
    }
}

/// Whether the namespace is on its way out, so that nothing more can be made in it.
pub(crate) fn is_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|d| &d.causes);
    status.code == 403 && causes.into_iter().any(|c| c.reason == "NamespaceTerminating")
}
