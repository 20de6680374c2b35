//! Who decides about requests, how webhooks do that are asked, and how the configuration is read anew.
//!
//! Source: `authorization/metrics`, `authorization/cel`, `plugin/pkg/authorizer/webhook/metrics` and
//! `server/options/authorizationconfig/metrics` of apiserver.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use sha2::{Digest as _, Sha256};

use super::instruments::{Count, Histograms, Level};
use crate::auth::attributes::Opinion;
use crate::digest::hex_of;

/// Those of Prometheus' libraries.
const WEBHOOK_BUCKETS_S: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const CONDITION_BUCKETS_S: [f64; 7] = [0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Decided {
    r#type: &'static str,
    name: String,
    /// `allowed` or `denied`.
    decision: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Evaluated {
    name: String,
    /// `success`, `timeout`, `error`, `canceled`.
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Authorizer {
    r#type: &'static str,
    name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reloaded {
    /// `success` or `failure`.
    status: &'static str,
    apiserver_id_hash: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Applied {
    apiserver_id_hash: String,
    hash: String,
}

/// Handles of all of it. Cloning shares them.
#[derive(Clone)]
pub(crate) struct AuthorizationMetrics {
    decisions: Family<Decided, Count>,
    evaluations: Family<Evaluated, Count>,
    durations: Family<Evaluated, Histogram>,
    fail_open: Family<Evaluated, Count>,
    condition_errors: Family<Authorizer, Count>,
    condition_exclusions: Family<Authorizer, Count>,
    condition_durations: Family<Authorizer, Histogram>,
    reloads: Family<Reloaded, Count>,
    last_reloads: Family<Reloaded, Gauge<f64, AtomicU64>>,
    applied: Family<Applied, Level>,
}

impl AuthorizationMetrics {
    pub(super) fn register(registry: &mut Registry) -> AuthorizationMetrics {
        let metrics = AuthorizationMetrics {
            decisions: Family::default(),
            evaluations: Family::default(),
            durations: Family::new_with_constructor((|| Histogram::new(WEBHOOK_BUCKETS_S)) as Histograms),
            fail_open: Family::default(),
            condition_errors: Family::default(),
            condition_exclusions: Family::default(),
            condition_durations: Family::new_with_constructor(
                (|| Histogram::new(CONDITION_BUCKETS_S)) as Histograms,
            ),
            reloads: Family::default(),
            last_reloads: Family::default(),
            applied: Family::default(),
        };
        let of = |name: &str| format!("apiserver_authorization_{name}");
        registry.register(
            of("decisions"),
            "Opinions that decided, by who had them",
            metrics.decisions.clone(),
        );
        registry.register(
            of("webhook_evaluations"),
            "Calls of authorization webhooks",
            metrics.evaluations.clone(),
        );
        registry.register(
            of("webhook_duration_seconds"),
            "Time of calls of authorization webhooks",
            metrics.durations.clone(),
        );
        registry.register(
            of("webhook_evaluations_fail_open"),
            "Questions that a webhook did not answer, and that others decided",
            metrics.fail_open.clone(),
        );
        registry.register(
            of("match_condition_evaluation_errors"),
            "Questions about which match conditions failed",
            metrics.condition_errors.clone(),
        );
        registry.register(
            of("match_condition_exclusions"),
            "Questions that match conditions kept from a webhook",
            metrics.condition_exclusions.clone(),
        );
        registry.register(
            of("match_condition_evaluation_seconds"),
            "Time of match conditions",
            metrics.condition_durations.clone(),
        );
        registry.register(
            of("config_controller_automatic_reloads"),
            "Configurations of authorization that were found while the server ran",
            metrics.reloads.clone(),
        );
        registry.register(
            of("config_controller_automatic_reload_last_timestamp_seconds"),
            "When a configuration of authorization was last found while the server ran",
            metrics.last_reloads.clone(),
        );
        registry.register(
            of("config_controller_last_config_info"),
            "The configuration of authorization that counts",
            metrics.applied.clone(),
        );
        metrics
    }

    pub(crate) fn decisions(&self, r#type: &'static str, name: &str) -> Decisions {
        let labels = |decision| Decided { r#type, name: name.to_owned(), decision };
        Decisions { family: self.decisions.clone(), allowed: labels("allowed"), denied: labels("denied") }
    }

    pub(crate) fn of_webhook(&self, name: &str) -> WebhookMetrics {
        WebhookMetrics { all: self.clone(), name: name.to_owned() }
    }

    /// A configuration counts from here on.
    pub(crate) fn applied(&self, server: &str, configuration: &[u8]) {
        let labels = Applied { apiserver_id_hash: hash(server.as_bytes()), hash: hash(configuration) };
        self.applied.clear();
        self.applied.get_or_create(&labels).set(1);
    }

    /// A changed file was read, with success or without.
    pub(crate) fn reloaded(&self, server: &str, is_ok: bool) {
        let status = if is_ok { "success" } else { "failure" };
        let labels = Reloaded { status, apiserver_id_hash: hash(server.as_bytes()) };
        self.reloads.get_or_create(&labels).inc();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last_reloads.get_or_create(&labels).set(now.as_secs_f64());
    }
}

fn hash(text: &[u8]) -> String {
    if text.is_empty() { String::new() } else { format!("sha256:{}", hex_of(&Sha256::digest(text))) }
}

/// Counts the opinions of one authorizer that decide.
pub(crate) struct Decisions {
    family: Family<Decided, Count>,
    allowed: Decided,
    denied: Decided,
}

impl Decisions {
    pub(crate) fn count(&self, opinion: Opinion) {
        let labels = match opinion {
            Opinion::Allow => &self.allowed,
            Opinion::Deny => &self.denied,
            Opinion::None => return,
        };
        self.family.get_or_create(labels).inc();
    }
}

/// What is counted of one webhook.
pub(crate) struct WebhookMetrics {
    all: AuthorizationMetrics,
    name: String,
}

impl WebhookMetrics {
    fn authorizer(&self) -> Authorizer {
        Authorizer { r#type: "Webhook", name: self.name.clone() }
    }

    /// Begins to measure a call, which nobody waits for any more if this is dropped without a result.
    pub(crate) fn call(&self) -> Call<'_> {
        Call { metrics: self, begun: Instant::now(), result: "canceled" }
    }

    pub(crate) fn failed_open(&self, result: &'static str) {
        self.all.fail_open.get_or_create(&Evaluated { name: self.name.clone(), result }).inc();
    }

    pub(crate) fn conditions(&self, took: Duration, has_failed: bool, has_excluded: bool) {
        let labels = self.authorizer();
        self.all.condition_durations.get_or_create(&labels).observe(took.as_secs_f64());
        if has_failed {
            self.all.condition_errors.get_or_create(&labels).inc();
        }
        if has_excluded {
            self.all.condition_exclusions.get_or_create(&labels).inc();
        }
    }
}

/// A call that goes on.
pub(crate) struct Call<'m> {
    metrics: &'m WebhookMetrics,
    begun: Instant,
    result: &'static str,
}

impl Call<'_> {
    pub(crate) fn ended(mut self, result: &'static str) {
        self.result = result;
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let WebhookMetrics { all, name } = self.metrics;
        let labels = Evaluated { name: name.clone(), result: self.result };
        all.evaluations.get_or_create(&labels).inc();
        all.durations.get_or_create(&labels).observe(self.begun.elapsed().as_secs_f64());
    }
}
