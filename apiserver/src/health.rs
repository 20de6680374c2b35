//! `/healthz`, `/livez`, `/readyz`, each whole or check by check, and component statuses.

use serde_json::{Value, json};

use crate::api::Api;
use crate::request::Query;
use crate::respond::{self, Response};

const CHECKS: &[&str] = &["ping", "log", "etcd", "informer-sync", "shutdown"];

impl Api {
    /// The answer to a health path; `None` if it is none.
    pub(crate) async fn health(&self, path: &str, query: &Query) -> Option<Response> {
        let path = path.trim_end_matches('/');
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let endpoint = parts.next().filter(|e| matches!(*e, "healthz" | "livez" | "readyz"))?;
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
            match self.check(check).await {
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
            "informer-sync" if self.caches.applied() == 0 => Err("the caches are not filled yet".into()),
            "shutdown" if self.shutdown.is_cancelled() => Err("process is shutting down".into()),
            _ => Ok(()),
        }
    }

    /// The legacy `componentstatuses`: the store is the one component that the server knows of.
    pub(crate) async fn component_statuses(&self) -> Vec<Value> {
        let (status, message) = match self.check("etcd").await {
            Ok(()) => ("True", "ok".to_owned()),
            Err(why) => ("False", why),
        };
        vec![json!({
            "kind": "ComponentStatus", "apiVersion": "v1",
            "metadata": {"name": "etcd-0", "creationTimestamp": null},
            "conditions": [{"type": "Healthy", "status": status, "message": message}],
        })]
    }
}
