//! `/healthz`, `/livez`, `/readyz`, each whole or check by check, and component statuses.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::Status;
use tokio_util::sync::CancellationToken;

use crate::lister::Lister;
use crate::metrics::Metrics;
use crate::request::Query;
use crate::respond::{self, Response};
use crate::store::Store;

/// Upstream's, of which those called `poststarthook` tell of what it begins once it listens. Here all of that is done, or its task
/// runs, before anybody is answered; what upstream has and is not built here is not listed.
const CHECKS: &[&str] = &[
    "ping",
    "log",
    "etcd",
    "informer-sync",
    "poststarthook/start-apiserver-admission-initializer",
    "poststarthook/generic-apiserver-start-informers",
    "poststarthook/priority-and-fairness-config-consumer",
    "poststarthook/priority-and-fairness-filter",
    "poststarthook/start-apiextensions-informers",
    "poststarthook/start-apiextensions-controllers",
    "poststarthook/crd-informer-synced",
    "poststarthook/start-system-namespaces-controller",
    "poststarthook/start-cluster-authentication-info-controller",
    "poststarthook/bootstrap-controller",
    "poststarthook/start-kubernetes-service-cidr-controller",
    "poststarthook/start-service-ip-repair-controllers",
    "poststarthook/storage-readiness",
    "poststarthook/rbac/bootstrap-roles",
    "poststarthook/scheduling/bootstrap-system-priority-classes",
    "poststarthook/priority-and-fairness-config-producer",
    "poststarthook/start-kube-aggregator-informers",
    "poststarthook/apiservice-status-local-available-controller",
    "poststarthook/apiservice-status-remote-available-controller",
    "poststarthook/apiservice-registration-controller",
    "poststarthook/apiservice-discovery-controller",
    "poststarthook/kube-apiserver-autoregistration",
    "autoregister-completion",
    "poststarthook/apiservice-openapi-controller",
    "poststarthook/apiservice-openapiv3-controller",
    "shutdown",
];

/// What health is told by.
pub(crate) struct Health {
    pub(crate) lister: Lister,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) shutdown: CancellationToken,
}

impl Health {
    /// The answer to a health path; `None` if it is none.
    pub(crate) async fn answer(&self, path: &str, query: &Query) -> Option<Response> {
        let path = path.trim_end_matches('/');
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let endpoint = parts.next()?;
        let endpoint = ["healthz", "livez", "readyz"].into_iter().find(|known| *known == endpoint)?;
        let only_ready = |check: &str| matches!(check, "shutdown" | "informer-sync");
        let offered = CHECKS.iter().filter(|check| endpoint == "readyz" || !only_ready(check));
        if let Some(one) = parts.next() {
            let check = offered.into_iter().find(|check| **check == one)?;
            return Some(match self.check(check).await {
                Ok(()) => respond::text(200, "ok"),
                Err(why) => respond::text(500, format!("internal server error: {why}\n")),
            });
        }
        let excluded: Vec<&str> = query.all("exclude").collect();
        let (mut report, mut failed) = (String::new(), Vec::new());
        for check in offered {
            if excluded.contains(check) {
                report.push_str(&format!("[+]{check} excluded: ok\n"));
                continue;
            }
            let outcome = self.check(check).await;
            self.metrics.health.checked(check, endpoint, outcome.is_ok());
            match outcome {
                Ok(()) => report.push_str(&format!("[+]{check} ok\n")),
                Err(why) => {
                    tracing::warn!(check, why, "health check failed");
                    report.push_str(&format!("[-]{check} failed: reason withheld\n"));
                    failed.push(*check);
                }
            }
        }
        Some(if !failed.is_empty() {
            respond::text(500, format!("{report}{endpoint} check failed\n"))
        } else if query.flag("verbose") {
            respond::text(200, format!("{report}{endpoint} check passed\n"))
        } else {
            respond::text(200, "ok")
        })
    }

    async fn check(&self, check: &str) -> Result<(), String> {
        match check {
            "etcd" => self.store.compacted().await.map(|_| ()).map_err(|e| e.to_string()),
            "informer-sync" if self.lister.caches.applied() == 0 => {
                Err("the caches are not filled yet".into())
            }
            "shutdown" if self.shutdown.is_cancelled() => Err("process is shutting down".into()),
            _ => Ok(()),
        }
    }

    /// The legacy `componentstatuses`. Scheduler and controllers may run anywhere: what tells of them is their leader's Lease.
    pub(crate) async fn component_statuses(&self) -> Vec<Value> {
        vec![
            component_status("scheduler", self.is_led("kube-scheduler")),
            component_status("controller-manager", self.is_led("kube-controller-manager")),
            component_status("etcd-0", self.check("etcd").await),
        ]
    }

    /// # Errors
    /// Where nobody leads who has renewed the Lease in time.
    fn is_led(&self, component: &str) -> Result<(), String> {
        let leases = self.lister.cache("coordination.k8s.io", "v1", "leases");
        let entry = leases.map_err(|status| status.message)?.get(&format!("kube-system/{component}"));
        let entry = entry.map_err(|unreadable| Status::from(unreadable).message)?;
        let Some(entry) = entry else {
            return Err(format!("nobody has taken the Lease kube-system/{component}"));
        };
        let lease = entry.parse();
        let held_s = lease["spec"]["leaseDurationSeconds"].as_i64().unwrap_or_default();
        let renewed = lease["spec"]["renewTime"].as_str().unwrap_or_default();
        let age = renewed.parse::<Timestamp>().map(|at| Timestamp::now().duration_since(at));
        if age.is_ok_and(|age| age.as_secs() <= held_s) {
            return Ok(());
        }
        Err(format!(
            "the Lease kube-system/{component} is good for {held_s} s and was last renewed at {renewed:?}"
        ))
    }
}

fn component_status(name: &str, health: Result<(), String>) -> Value {
    let mut healthy = json!({"type": "Healthy", "status": "True", "message": "ok"});
    if let Err(why) = health {
        healthy = json!({"type": "Healthy", "status": "False", "message": "", "error": why});
    }
    json!({
        "kind": "ComponentStatus", "apiVersion": "v1",
        "metadata": {"name": name, "creationTimestamp": null}, "conditions": [healthy],
    })
}
