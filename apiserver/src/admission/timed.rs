//! How long plug-ins take, under upstream's names. Of one that is not concerned nothing is told.

use std::time::Instant;

use skiff_api::Status;
use skiff_webhook::admission::Operation;

use crate::metrics::Metrics;

/// Whose time is measured.
pub(super) struct Timed<'m> {
    pub(super) metrics: &'m Metrics,
    pub(super) operation: Operation,
    /// `admit` or `validate`.
    pub(super) type_: &'static str,
}

impl Timed<'_> {
    pub(super) async fn of<T>(
        &self,
        plugin: &'static str,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let started = Instant::now();
        let outcome = work.await;
        self.tell(plugin, started, outcome.is_err());
        outcome
    }

    pub(super) fn at_once<T>(
        &self,
        plugin: &'static str,
        work: impl FnOnce() -> Result<T, Status>,
    ) -> Result<T, Status> {
        let started = Instant::now();
        let outcome = work();
        self.tell(plugin, started, outcome.is_err());
        outcome
    }

    fn tell(&self, plugin: &'static str, started: Instant, is_rejected: bool) {
        let operation = self.operation.as_str();
        self.metrics.admitted((plugin, self.type_), operation, is_rejected, started.elapsed());
    }
}
