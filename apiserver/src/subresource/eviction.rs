//! `pods/eviction`: a deletion that a disruption budget may refuse.

use serde_json::{Value, json};
use skiff_api::meta::Meta;
use skiff_api::{Cause, LabelSelector, Object, Status};

use super::read_document;
use crate::api::{Api, Call};
use crate::registry::{DeleteOptions, WriteOptions};
use crate::respond::{self, Response};

impl Api {
    pub(super) async fn evict_pod(&self, mut call: Call) -> Result<Response, Status> {
        let write = WriteOptions::parse(&call)?;
        let eviction = read_document(&mut call, "policy/v1", "Eviction").await?;
        self.caches.wait_for_newest().await?;
        let pod = self.object_of(&call)?;
        self.restrict_node_eviction(&call)?;
        if counts_against_budget(&pod) {
            self.ask_budgets(&pod)?;
        }
        let mut options = DeleteOptions::from_json(&eviction["deleteOptions"])?;
        options.dry_run |= write.dry_run;
        self.delete_object(&call, &call.info.namespace, &call.info.name, &options).await?;
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(respond::document_response(&call.encoding, &call.warnings, 201, &status))
    }

    /// Refuses while a budget that selects the pod allows no disruption.
    fn ask_budgets(&self, pod: &Object) -> Result<(), Status> {
        let Some(kind) = self.kinds.by_resource("policy", "v1", "poddisruptionbudgets") else {
            return Ok(());
        };
        let (_, budgets) = self.caches.of(kind)?.snapshot();
        let labels = &pod.meta()["labels"];
        let mut matching = Vec::new();
        for entry in budgets.values().filter(|entry| entry.namespace() == pod.namespace()) {
            let budget = entry.parse();
            let selector = LabelSelector::from_json(&budget["spec"]["selector"])?;
            if selector.matches(|key| labels[key].as_str()) {
                matching.push(budget);
            }
        }
        match matching.as_slice() {
            [] => Ok(()),
            [budget] => ask(budget),
            _ => Err(Status::new(
                500,
                "",
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            )),
        }
    }
}

/// Pods that have ended or are not running yet may go at any time.
fn counts_against_budget(pod: &Object) -> bool {
    !pod.is_being_deleted()
        && !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"))
}

fn ask(budget: &Value) -> Result<(), Status> {
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    let observed = budget["status"]["observedGeneration"].as_i64().unwrap_or(0);
    let current = budget["metadata"]["generation"].as_i64().unwrap_or(0);
    let refuse = |retry_s: u32, cause: String| {
        let message = "Cannot evict pod as it would violate the pod's disruption budget.";
        let mut status = Status::too_many_requests(message, retry_s);
        if let Some(details) = &mut status.details {
            details.causes = vec![Cause { reason: "DisruptionBudget", message: cause, field: String::new() }];
        }
        Err(status)
    };
    let name = budget.name();
    if observed < current {
        return refuse(10, format!("The disruption budget {name} is still being processed by the server."));
    }
    if number("disruptionsAllowed") > 0 {
        return Ok(());
    }
    refuse(
        0,
        format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("desiredHealthy"),
            number("currentHealthy")
        ),
    )
}
