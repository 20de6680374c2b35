//! `/metrics/slis`: how each health check ended that somebody asked for with all others.
//!
//! Source: `metrics/prometheus/slis` of component-base.

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::instruments::{Count, Level};
use super::process::Process;
use super::text::Format;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Checked {
    name: &'static str,
    /// `healthz`, `livez` or `readyz`.
    r#type: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    name: &'static str,
    r#type: &'static str,
    /// `success` or `error`.
    status: &'static str,
}

pub(crate) struct HealthMetrics {
    registry: Mutex<Registry>,
    last: Family<Checked, Level>,
    all: Family<Ended, Count>,
}

impl Default for HealthMetrics {
    fn default() -> Self {
        let (mut registry, last, all) = (Registry::default(), Family::default(), Family::default());
        registry.register("kubernetes_healthcheck", "How a health check ended last", last.clone());
        registry.register("kubernetes_healthchecks", "How health checks ended", all.clone());
        registry.register_collector(Box::new(Process));
        HealthMetrics { registry: Mutex::new(registry), last, all }
    }
}

impl HealthMetrics {
    pub(crate) fn checked(&self, name: &'static str, r#type: &'static str, is_ok: bool) {
        self.last.get_or_create(&Checked { name, r#type }).set(i64::from(is_ok));
        let status = if is_ok { "success" } else { "error" };
        self.all.get_or_create(&Ended { name, r#type, status }).inc();
    }

    pub(crate) fn render(&self, format: Format) -> String {
        format.encode(&self.registry.lock())
    }
}
