//! Tasks that follow something, and begin anew where that breaks off.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use skiff_api::Status;
use tokio_util::sync::CancellationToken;

const RETRY_MIN: Duration = Duration::from_millis(50);
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(30);

/// How long it is to the next try: twice as long each time, unless one has worked.
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn worked(&mut self) {
        self.0 = RETRY_MIN;
    }

    fn next(&mut self) -> Duration {
        let next = self.0;
        self.0 = (next * 2).min(RETRY_MAX);
        next
    }
}

/// What a task of its own does for as long as the server runs.
#[async_trait]
pub(crate) trait Follow: Send + Sync + 'static {
    /// What cannot be done where it fails, for the log: `follow …`.
    const WHAT: &'static str;

    /// Only ends where it fails, or where what it follows breaks off.
    async fn once(&self, shutdown: &CancellationToken, backoff: &mut Backoff) -> Result<(), Status>;
}

/// Does it again and again, until `shutdown`.
pub(crate) async fn follow<F: Follow>(task: Arc<F>, shutdown: CancellationToken) {
    let mut backoff = Backoff(RETRY_MIN);
    // Dropped in between only where everything ends.
    while let Some(ended) = shutdown.run_until_cancelled(task.once(&shutdown, &mut backoff)).await {
        if let Err(status) = ended {
            tracing::warn!(%status, "cannot {}; trying again", F::WHAT);
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(backoff.next())).await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use tokio::time::Instant;

    use super::*;

    struct Fails {
        begun: Instant,
        tried: Mutex<Vec<u128>>,
    }

    #[async_trait]
    impl Follow for Fails {
        const WHAT: &'static str = "do it";

        async fn once(&self, shutdown: &CancellationToken, backoff: &mut Backoff) -> Result<(), Status> {
            let mut tried = self.tried.lock();
            tried.push(self.begun.elapsed().as_millis());
            match tried.len() {
                3 => backoff.worked(),
                5 => shutdown.cancel(),
                _ => {}
            }
            Err(Status::internal("on purpose"))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_later_each_time_until_it_works() {
        let task = Arc::new(Fails { begun: Instant::now(), tried: Mutex::default() });
        follow(task.clone(), CancellationToken::new()).await;
        assert_eq!(*task.tried.lock(), [0, 50, 150, 200, 300]);
    }
}
