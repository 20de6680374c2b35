//! Calls of admission webhooks, by webhook.
//!
//! Source: `admission/metrics` of apiserver.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use skiff_webhook::admission::{CallEnd, Called, Phase};

use super::instruments::{Count, Histograms};

const BUCKETS_S: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
/// Larger codes, which webhooks make up, count as this.
const MAX_CODE: u16 = 600;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Took {
    name: String,
    operation: &'static str,
    rejected: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Asked {
    name: String,
    r#type: &'static str,
    operation: &'static str,
    code: u16,
    rejected: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Rejected {
    name: String,
    r#type: &'static str,
    operation: &'static str,
    error_type: &'static str,
    rejection_code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FailedOpen {
    name: String,
    r#type: &'static str,
}

pub(super) struct WebhookCalls {
    durations: Family<Took, Histogram>,
    requests: Family<Asked, Count>,
    rejections: Family<Rejected, Count>,
    fail_open: Family<FailedOpen, Count>,
}

impl WebhookCalls {
    pub(super) fn register(registry: &mut Registry) -> WebhookCalls {
        let calls = WebhookCalls {
            durations: Family::new_with_constructor((|| Histogram::new(BUCKETS_S)) as Histograms),
            requests: Family::default(),
            rejections: Family::default(),
            fail_open: Family::default(),
        };
        let of = |name: &str| format!("apiserver_admission_webhook_{name}");
        let help = "Time of calls of admission webhooks";
        registry.register(of("admission_duration_seconds"), help, calls.durations.clone());
        let help = "Calls of admission webhooks, by the code of the answer";
        registry.register(of("request"), help, calls.requests.clone());
        let help = "Requests that an admission webhook has refused, or failed to answer";
        registry.register(of("rejection_count"), help, calls.rejections.clone());
        let help = "Calls that failed, and that the request did not";
        registry.register(of("fail_open_count"), help, calls.fail_open.clone());
        calls
    }

    pub(super) fn called(&self, call: &Called<'_>) {
        let name = || call.webhook.to_owned();
        let operation = call.operation.as_str();
        let r#type = match call.phase {
            Phase::Mutating => "admit",
            Phase::Validating => "validating",
        };
        let code = call.code.min(MAX_CODE);
        let error_type = match call.end {
            CallEnd::Allowed | CallEnd::FailedOpen => None,
            CallEnd::Denied => Some("no_error"),
            CallEnd::Failed => Some("calling_webhook_error"),
            CallEnd::Internal => Some("apiserver_internal_error"),
        };
        let rejected = if error_type.is_some() { "true" } else { "false" };
        let took = Took { name: name(), operation, rejected, r#type };
        self.durations.get_or_create(&took).observe(Duration::as_secs_f64(&call.duration));
        self.requests.get_or_create(&Asked { name: name(), r#type, operation, code, rejected }).inc();
        if let Some(error_type) = error_type {
            let labels = Rejected { name: name(), r#type, operation, error_type, rejection_code: code };
            self.rejections.get_or_create(&labels).inc();
        }
        if call.end == CallEnd::FailedOpen {
            self.fail_open.get_or_create(&FailedOpen { name: name(), r#type }).inc();
        }
    }
}
