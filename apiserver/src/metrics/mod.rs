//! `/metrics`: requests, who may ask, admission, watches, the store, the process; under upstream's names, with upstream's labels.
//!
//! What counts is counted where it happens, through handles of [`Metrics`]; what only is (objects, seats, memory) is read when somebody
//! asks. No label holds what a client makes up: resources that there are not count as none.
//!
//! Source: `k8s.io/apiserver/pkg/endpoints/metrics` and its siblings; buckets are upstream's.

pub(crate) mod authorization;
mod collected;
mod health;
mod instruments;
mod process;
mod text;
mod webhooks;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use skiff_api::Kind;
use skiff_webhook::admission::Called;

use crate::cache::Caches;
use crate::limits::Collected;
use authorization::AuthorizationMetrics;
use collected::Objects;
use health::HealthMetrics;
use instruments::{Histograms, Level};
use process::Process;
use webhooks::WebhookCalls;

pub(crate) use instruments::Count;
pub(crate) use text::Format;

/// What a request was about, in words that cannot be made up by clients: unknown resources count as none.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Subject {
    /// As upstream calls it: `GET`, `LIST`, `WATCH`, `POST`, `APPLY`, `CONNECT`, …
    pub(crate) verb: &'static str,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    /// `resource`, `namespace` or `cluster`; empty of what is no resource.
    pub(crate) scope: &'static str,
    pub(crate) component: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    /// `All` or empty.
    dry_run: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DurationLabels {
    verb: &'static str,
    dry_run: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindOfRequest {
    request_kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Stored {
    operation: &'static str,
    group: String,
    resource: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Watched {
    group: String,
    version: String,
    resource: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Admitted {
    name: &'static str,
    operation: &'static str,
    /// `true` or `false`.
    rejected: &'static str,
    /// `admit` or `validate`.
    r#type: &'static str,
}

/// Handles of all that is counted.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Count>,
    durations: Family<DurationLabels, Histogram>,
    in_flight: Family<KindOfRequest, Level>,
    long_running: Family<Subject, Level>,
    authentications: Family<Outcome, Count>,
    authorizations: Family<Outcome, Count>,
    admissions: Family<Admitted, Histogram>,
    /// Calls of admission webhooks.
    webhooks: WebhookCalls,
    /// How health checks end, for a page of their own.
    pub(crate) health: HealthMetrics,
    /// Who decides, and how webhooks do.
    pub(crate) authorization: AuthorizationMetrics,
    store: Family<Stored, Histogram>,
    watch_events: Family<Watched, Count>,
    store_bytes: Level,
    revision: Level,
}

const REQUEST_BUCKETS_S: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
const STORE_BUCKETS_S: [f64; 19] =
    [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 15.0, 20.0, 30.0, 60.0];
const ADMISSION_BUCKETS_S: [f64; 6] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5];

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics {
            registry: Mutex::default(),
            requests: Family::default(),
            durations: Family::new_with_constructor((|| Histogram::new(REQUEST_BUCKETS_S)) as Histograms),
            in_flight: Family::default(),
            long_running: Family::default(),
            authentications: Family::default(),
            authorizations: Family::default(),
            webhooks: WebhookCalls::register(&mut registry),
            health: HealthMetrics::default(),
            authorization: AuthorizationMetrics::register(&mut registry),
            admissions: Family::new_with_constructor((|| Histogram::new(ADMISSION_BUCKETS_S)) as Histograms),
            store: Family::new_with_constructor((|| Histogram::new(STORE_BUCKETS_S)) as Histograms),
            watch_events: Family::default(),
            store_bytes: Level::default(),
            revision: Level::default(),
        };
        registry.register(
            "apiserver_request",
            "Requests by verb, resource, scope and code",
            metrics.requests.clone(),
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Time to answer, watches and streams excluded",
            metrics.durations.clone(),
        );
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests being answered, those that go on for long excluded",
            metrics.in_flight.clone(),
        );
        registry.register(
            "apiserver_longrunning_requests",
            "Watches and streams that go on",
            metrics.long_running.clone(),
        );
        registry.register(
            "authentication_attempts",
            "Requests by whether it was found out who asks",
            metrics.authentications.clone(),
        );
        registry.register(
            "authorization_attempts",
            "Requests by whether their user may ask them",
            metrics.authorizations.clone(),
        );
        registry.register(
            "apiserver_admission_controller_admission_duration_seconds",
            "Time of the plug-ins of admission that are concerned",
            metrics.admissions.clone(),
        );
        registry.register(
            "etcd_request_duration_seconds",
            "Time of writes to the store, whichever it is",
            metrics.store.clone(),
        );
        registry.register(
            "apiserver_watch_events",
            "Events that were sent to watchers",
            metrics.watch_events.clone(),
        );
        registry.register(
            "apiserver_storage_size_bytes",
            "What the store takes on disk",
            metrics.store_bytes.clone(),
        );
        registry.register(
            "skiff_store_revision",
            "The newest revision of the store",
            metrics.revision.clone(),
        );
        registry.register_collector(Box::new(Process));
        Metrics { registry: Mutex::new(registry), ..metrics }
    }
}

impl Metrics {
    /// Has what others know told as well.
    pub(crate) fn tell_of(
        &self,
        levels: Collected,
        caches: Arc<Caches>,
        version: Vec<(&'static str, String)>,
    ) {
        let mut registry = self.registry.lock();
        registry.register_collector(Box::new(levels));
        registry.register_collector(Box::new(Objects(caches)));
        registry.register("kubernetes_build", "The version that is served", Info::new(version));
    }

    /// Counts a request until the guard is dropped.
    pub(crate) fn begin(&self, subject: &Subject, is_long: bool) -> Counted {
        let level = if is_long {
            self.long_running.get_or_create_owned(subject)
        } else {
            let request_kind =
                if matches!(subject.verb, "GET" | "LIST" | "WATCH") { "readOnly" } else { "mutating" };
            self.in_flight.get_or_create_owned(&KindOfRequest { request_kind })
        };
        level.inc();
        Counted(level)
    }

    /// Counts a request that was answered; of one that goes on for long its time says nothing.
    pub(crate) fn observe(&self, subject: Subject, dry_run: bool, code: u16, took: Option<Duration>) {
        let dry_run = if dry_run { "All" } else { "" };
        let Subject { verb, group, version, resource, subresource, scope, component } = subject;
        if let Some(took) = took {
            let labels = DurationLabels {
                verb,
                dry_run,
                group: group.clone(),
                version: version.clone(),
                resource: resource.clone(),
                subresource: subresource.clone(),
                scope,
                component,
            };
            self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        }
        let labels =
            RequestLabels { verb, dry_run, group, version, resource, subresource, scope, component, code };
        self.requests.get_or_create(&labels).inc();
    }

    pub(crate) fn authenticated(&self, is_known: bool) {
        let result = if is_known { "success" } else { "failure" };
        self.authentications.get_or_create(&Outcome { result }).inc();
    }

    /// `result` in upstream's words: `allowed`, `denied`, `no-opinion`.
    pub(crate) fn authorized(&self, result: &'static str) {
        self.authorizations.get_or_create(&Outcome { result }).inc();
    }

    pub(crate) fn admitted(
        &self,
        (name, r#type): (&'static str, &'static str),
        operation: &'static str,
        is_rejected: bool,
        took: Duration,
    ) {
        let rejected = if is_rejected { "true" } else { "false" };
        let labels = Admitted { name, operation, rejected, r#type };
        self.admissions.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// An admission webhook was called.
    pub(crate) fn called(&self, call: &Called<'_>) {
        self.webhooks.called(call);
    }

    /// A write of an object, whatever came of it.
    pub(crate) fn wrote(&self, operation: &'static str, kind: &Kind, took: Duration) {
        let labels = Stored { operation, group: kind.group.clone(), resource: kind.plural.clone() };
        self.store.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts the events of a watch.
    pub(crate) fn watch_events(&self, kind: &Kind) -> Count {
        self.watch_events.get_or_create_owned(&Watched {
            group: kind.group.clone(),
            version: kind.version.clone(),
            resource: kind.plural.clone(),
        })
    }

    pub(crate) fn render(&self, format: Format, store_bytes: u64, revision: u64) -> String {
        self.store_bytes.set(i64::try_from(store_bytes).unwrap_or(i64::MAX));
        self.revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
        format.encode(&self.registry.lock())
    }
}

/// A request that is counted as going on.
pub(crate) struct Counted(Level);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
