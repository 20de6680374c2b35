//! `pods/eviction`: a deletion that a disruption budget may refuse.
//!
//! Source: upstream's `EvictionREST`.

use serde_json::{Value, json};
use skiff_api::meta::Meta;
use skiff_api::{Cause, LabelSelector, Object, Status};
use skiff_webhook::admission::Operation;

use super::Subresources;
use super::document::read_document;
use crate::call::Call;
use crate::clock::now;
use crate::objects::Next;
use crate::registry::options::{DeleteOptions, WriteOptions};
use crate::respond::Response;

/// How often a pod that changes under an eviction is looked at anew.
const MAX_ATTEMPTS: usize = 8;
/// How many evictions may be waiting to be confirmed by the controller.
const MAX_DISRUPTED_PODS: usize = 2000;
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// On what terms a pod may go.
enum Permit {
    AsItIs,
    /// Only as long as it stays unhealthy: of the budget, which has not been charged.
    WhileUnhealthy(String),
}

impl Subresources {
    pub(super) async fn evict_pod(&self, mut call: Call) -> Result<Response, Status> {
        let write = WriteOptions::parse(&call)?;
        let eviction = read_document(&mut call, "policy/v1", "Eviction").await?;
        let mut options = DeleteOptions::from_json(&eviction["deleteOptions"])?;
        options.dry_run |= write.dry_run;
        self.registry
            .admission
            .dynamic
            .admit_document(&mut call, Operation::Create, eviction, options.dry_run)
            .await?;
        self.registry.admission.restrict_node_eviction(&call).await?;
        self.evict(&call, &options).await?;
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(call.document(201, &status))
    }

    async fn evict(&self, call: &Call, asked: &DeleteOptions) -> Result<(), Status> {
        for attempt in 1.. {
            self.registry.objects.lister.caches.wait_for_newest().await?;
            let pod = self.object_of(call).await?;
            let guarded = counts_against_budget(&pod);
            let permit = if guarded { self.ask_budget(&pod, asked.dry_run).await? } else { Permit::AsItIs };
            let mut options = asked.clone();
            // A pod that does not count may have become one that does; what has ended never does.
            let may_change = matches!(permit, Permit::WhileUnhealthy(_)) || (!guarded && !has_ended(&pod));
            if may_change && options.resource_version.is_none() {
                options.resource_version = Some(pod.resource_version().to_owned());
            }
            let gone = self.mark_and_delete(call, &mut options).await;
            match (gone, permit) {
                (Err(status), Permit::WhileUnhealthy(budget))
                    if status.code == 409 && asked.resource_version.is_none() =>
                {
                    return Err(being_processed(&budget));
                }
                (Err(status), _)
                    if status.code == 409
                        && !guarded
                        && asked.resource_version.is_none()
                        && attempt < MAX_ATTEMPTS => {}
                (gone, _) => return gone,
            }
        }
        Ok(())
    }

    /// Notes on the pod why it goes, and deletes it.
    async fn mark_and_delete(&self, call: &Call, options: &mut DeleteOptions) -> Result<(), Status> {
        let (namespace, name) = (&call.info.namespace, &call.info.name);
        if !options.dry_run {
            let mut is_meant = false;
            let marked = self.registry.objects.modify(&call.kind, namespace, name, false, |current| {
                let pod = &current.object;
                is_meant = options.uid.as_ref().is_none_or(|uid| uid == pod.uid())
                    && options.resource_version.as_ref().is_none_or(|v| v == pod.resource_version());
                // Another pod, or another version, is refused by the deletion itself.
                Ok(Next::Put(if is_meant { marked(pod) } else { pod.clone() }))
            });
            let marked = marked.await?.object;
            if is_meant && options.resource_version.is_some() {
                options.resource_version = Some(marked.resource_version().to_owned());
            }
        }
        self.registry.delete_object(call, namespace, name, options).await.map(drop)
    }

    /// Asks the budget that selects the pod, and charges it.
    async fn ask_budget(&self, pod: &Object, dry_run: bool) -> Result<Permit, Status> {
        let kind = self.registry.objects.lister.kind("policy", "v1", "poddisruptionbudgets")?;
        let (_, all) = self.registry.objects.lister.caches.of(&kind)?.snapshot_of(Some(pod.namespace()))?;
        let mut matching = Vec::new();
        for entry in all.values().filter(|entry| entry.namespace() == pod.namespace()) {
            let budget = entry.parse();
            if selects(&budget, pod)? {
                matching.push(budget);
            }
        }
        let budget = match matching.as_slice() {
            [] => return Ok(Permit::AsItIs),
            [budget] => budget,
            _ => {
                return Err(Status::new(
                    500,
                    "",
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        };
        if !is_ready(pod) {
            let (healthy, wanted) = (number(budget, "currentHealthy"), number(budget, "desiredHealthy"));
            let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
            if always || (healthy >= wanted && wanted > 0) {
                return Ok(Permit::WhileUnhealthy(budget.name().to_owned()));
            }
        }
        let charged =
            self.registry.objects.modify(&kind, pod.namespace(), budget.name(), dry_run, |current| {
                charged(&current.object, pod.name()).map(Next::Put)
            });
        match charged.await {
            // Whatever it forbade is allowed since it is gone.
            Err(status) if status.code == 404 => Ok(Permit::AsItIs),
            other => other.map(|_| Permit::AsItIs),
        }
    }
}

fn selects(budget: &Object, pod: &Object) -> Result<bool, Status> {
    let selector = &budget["spec"]["selector"];
    if selector.is_null() {
        return Ok(false);
    }
    let labels = &pod.meta()["labels"];
    Ok(LabelSelector::from_json(selector)?.matches(|key| labels[key].as_str()))
}

fn has_ended(pod: &Object) -> bool {
    pod.is_being_deleted() || matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// Pods that have ended or are not running yet may go at any time.
fn counts_against_budget(pod: &Object) -> bool {
    !has_ended(pod) && pod["status"]["phase"] != "Pending"
}

fn condition<'p>(object: &'p Object, kind: &str) -> Option<&'p Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn is_ready(pod: &Object) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition["status"] == "True")
}

fn is_marked(pod: &Object) -> bool {
    condition(pod, "DisruptionTarget").is_some_and(|condition| condition["status"] == "True")
}

fn marked(pod: &Object) -> Object {
    let mut pod = pod.clone();
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let since = condition(&pod, "DisruptionTarget").filter(|_| is_marked(&pod));
    let since = since.map_or_else(now, |condition| condition["lastTransitionTime"].clone());
    conditions.retain(|condition| condition["type"] != "DisruptionTarget");
    conditions.push(json!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": since,
    }));
    pod["status"]["conditions"] = conditions.into();
    pod
}

fn number(budget: &Object, field: &str) -> i64 {
    budget["status"][field].as_i64().unwrap_or(0)
}

fn refusal(retry_s: u32, cause: String) -> Status {
    let mut status = Status::too_many_requests(REFUSED, retry_s);
    if let Some(details) = &mut status.details {
        details.causes = vec![Cause { reason: "DisruptionBudget", message: cause, field: String::new() }];
    }
    status
}

fn being_processed(name: &str) -> Status {
    refusal(10, format!("The disruption budget {name} is still being processed by the server."))
}

/// The budget with one disruption less, and the pod noted as on its way out.
fn charged(budget: &Object, pod: &str) -> Result<Object, Status> {
    let name = budget.name();
    if number(budget, "observedGeneration") < budget.meta()["generation"].as_i64().unwrap_or(0) {
        return Err(being_processed(name));
    }
    let forbid = |why: &str| Status::forbidden("policy", "poddisruptionbudget", name, why);
    let allowed = number(budget, "disruptionsAllowed");
    if allowed < 0 {
        return Err(forbid("pdb disruptions allowed is negative"));
    }
    if budget["status"]["disruptedPods"].as_object().map_or(0, serde_json::Map::len) > MAX_DISRUPTED_PODS {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(forbid(why));
    }
    if allowed == 0 {
        return Err(refusal(0, why_none(budget)));
    }
    let mut budget = budget.clone();
    budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
    budget["status"]["disruptedPods"][pod] = now();
    if allowed == 1 {
        let mut conditions = budget["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|condition| condition["type"] != "DisruptionAllowed");
        conditions.push(json!({
            "type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
            "lastTransitionTime": now(), "observedGeneration": budget["status"]["observedGeneration"],
        }));
        budget["status"]["conditions"] = conditions.into();
    }
    Ok(budget)
}

fn why_none(budget: &Object) -> String {
    let name = budget.name();
    let of = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    let said = condition(budget, "DisruptionAllowed")
        .filter(|condition| condition["status"] == "False" && !of(condition, "message").is_empty())
        .map(|condition| (of(condition, "reason"), of(condition, "message")));
    let (healthy, wanted) = (number(budget, "currentHealthy"), number(budget, "desiredHealthy"));
    match said {
        Some((reason, message)) if reason == "SyncFailed" => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {message}"
        ),
        _ if healthy <= wanted => {
            format!("The disruption budget {name} needs {wanted} healthy pods and has {healthy} currently")
        }
        Some((reason, message)) => {
            format!(
                "The disruption budget {name} does not allow evicting pods currently ({reason}): {message}"
            )
        }
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(status: Value) -> Object {
        json!({"metadata": {"name": "b", "generation": 2}, "status": status})
    }

    #[test]
    fn a_disruption_is_charged_and_the_last_one_says_so() {
        let charged = charged(&budget(json!({"observedGeneration": 2, "disruptionsAllowed": 1})), "p");
        let status = charged.expect("allowed")["status"].clone();
        assert_eq!(status["disruptionsAllowed"], 0);
        assert!(status["disruptedPods"]["p"].is_string());
        assert_eq!(status["conditions"][0]["reason"], "InsufficientPods");
    }

    #[test]
    fn a_refusal_says_why() {
        let why = |status: Value| {
            let status = charged(&budget(status), "p").expect_err("refused");
            let details = status.details.expect("details");
            (details.causes[0].message.clone(), details.retry_after_seconds)
        };
        assert_eq!(
            why(json!({"observedGeneration": 1, "disruptionsAllowed": 1})),
            ("The disruption budget b is still being processed by the server.".to_owned(), 10)
        );
        let (message, retry_s) =
            why(json!({"observedGeneration": 2, "desiredHealthy": 3, "currentHealthy": 2}));
        assert_eq!(message, "The disruption budget b needs 3 healthy pods and has 2 currently");
        assert_eq!(retry_s, 0);
        let failed = json!([{"type": "DisruptionAllowed", "status": "False", "reason": "SyncFailed", "message": "oh"}]);
        let (message, _) = why(json!({"observedGeneration": 2, "conditions": failed}));
        assert!(message.ends_with("because it failed sync: oh"), "{message}");
    }
}
