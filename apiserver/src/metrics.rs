//! `/metrics`: how many requests, how long they took, what the store and the caches hold.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::limits::Collected;

/// Named as upstream's `apiserver_request_total`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DurationLabels {
    verb: String,
    group: String,
    resource: String,
}

/// What a request was about, in words that cannot be made up by clients: unknown resources count as none.
pub(crate) struct Measured {
    pub(crate) verb: &'static str,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    pub(crate) long_running: bool,
}

pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter<u64, AtomicU64>>,
    durations: Family<DurationLabels, Histogram>,
    inflight: Gauge<i64, AtomicI64>,
    store_bytes: Gauge<i64, AtomicI64>,
    revision: Gauge<i64, AtomicI64>,
}

const BUCKETS_S: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

impl Metrics {
    pub(crate) fn new(levels: Collected) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(levels));
        let requests = Family::default();
        let durations = Family::new_with_constructor((|| Histogram::new(BUCKETS_S)) as fn() -> Histogram);
        let (inflight, store_bytes, revision) = (Gauge::default(), Gauge::default(), Gauge::default());
        registry.register(
            "apiserver_request",
            "Requests by verb, group, version, resource, subresource and code",
            Family::clone(&requests),
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Time to answer, watches and streams excluded",
            Family::clone(&durations),
        );
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests being answered",
            Gauge::clone(&inflight),
        );
        registry.register(
            "apiserver_storage_size_bytes",
            "What the store takes on disk",
            Gauge::clone(&store_bytes),
        );
        registry.register(
            "skiff_store_revision",
            "The newest revision of the store",
            Gauge::clone(&revision),
        );
        Metrics { registry: Mutex::new(registry), requests, durations, inflight, store_bytes, revision }
    }

    /// Counts a request as in flight until the guard is dropped.
    pub(crate) fn begin(&self) -> InFlight {
        self.inflight.inc();
        InFlight(self.inflight.clone())
    }

    pub(crate) fn observe(&self, measured: Measured, code: u16, took: Duration) {
        let Measured { verb, group, version, resource, subresource, long_running } = measured;
        if !long_running {
            let labels =
                DurationLabels { verb: verb.into(), group: group.clone(), resource: resource.clone() };
            self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        }
        let labels = RequestLabels { verb: verb.into(), group, version, resource, subresource, code };
        self.requests.get_or_create(&labels).inc();
    }

    pub(crate) fn render(&self, store_bytes: u64, revision: u64) -> String {
        self.store_bytes.set(i64::try_from(store_bytes).unwrap_or(i64::MAX));
        self.revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut out, &self.registry.lock());
        out
    }
}

pub(crate) struct InFlight(Gauge<i64, AtomicI64>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
