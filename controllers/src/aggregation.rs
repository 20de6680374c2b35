//! The rules of ClusterRoles that are made of others: all rules of those with a label, each once, in the order of their names.
//!
//! Source: upstream's clusterrole-aggregation controller.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::PostParams;
use kube::{Api, Client};
use skiff_client::{Informer, WorkQueue};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine};
use crate::objects::selects;

pub(crate) struct Aggregates {
    client: Client,
    roles: Informer<ClusterRole>,
    /// There is one key: any role may be part of any.
    queue: WorkQueue<&'static str>,
}

impl Aggregates {
    pub(crate) fn new(context: &Context) -> Self {
        let (roles, queue) = (context.informers.of::<ClusterRole>(), WorkQueue::default());
        let wake = queue.clone();
        roles.on_change(move |_| wake.add("all"));
        Aggregates { client: context.client.clone(), roles, queue }
    }
}

fn aggregates(role: &ClusterRole) -> bool {
    role.aggregation_rule.is_some()
}

/// In the order of the selectors, and of the names of what each selects.
fn rules(whole: &ClusterRole, all: &[Arc<ClusterRole>]) -> Vec<PolicyRule> {
    let (mut rules, mut known) = (Vec::new(), HashSet::new());
    let selectors = whole.aggregation_rule.as_ref().and_then(|rule| rule.cluster_role_selectors.as_ref());
    for selector in selectors.into_iter().flatten() {
        let mut parts: Vec<&Arc<ClusterRole>> = all
            .iter()
            .filter(|part| part.metadata.name != whole.metadata.name)
            .filter(|part| selects(selector, &part.metadata))
            .collect();
        parts.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        for rule in parts.into_iter().flat_map(|part| part.rules.iter().flatten()) {
            // Rules have no hash.
            if known.insert(format!("{rule:?}")) {
                rules.push(rule.clone());
            }
        }
    }
    rules
}

impl Controller for Aggregates {
    const NAME: &'static str = "clusterrole-aggregation";
    const WORKERS: usize = 1;
    type Key = &'static str;

    fn queue(&self) -> &WorkQueue<&'static str> {
        &self.queue
    }

    async fn synced(&self) {
        self.roles.synced().await;
    }

    async fn reconcile(&self, _: &&'static str) -> Result<Outcome, kube::Error> {
        let all = self.roles.list();
        let api: Api<ClusterRole> = Api::all(self.client.clone());
        let mut failed = Ok(Outcome::Done);
        for role in all.iter().filter(|role| aggregates(role)) {
            let wanted = rules(role, &all);
            if role.rules.as_deref().unwrap_or_default() == wanted {
                continue;
            }
            let mut new = ClusterRole::clone(role);
            new.rules = Some(wanted);
            let name = new.metadata.name.clone().unwrap_or_default();
            if let Err(error) = gone_is_fine(api.replace(&name, &PostParams::default(), &new).await) {
                failed = Err(error);
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn role(name: &str, labels: serde_json::Value, rest: serde_json::Value) -> Arc<ClusterRole> {
        let mut role = json!({"metadata": {"name": name, "labels": labels}});
        role.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        Arc::new(serde_json::from_value(role).unwrap())
    }

    fn reads(resource: &str) -> serde_json::Value {
        json!({"verbs": ["get"], "apiGroups": [""], "resources": [resource]})
    }

    #[test]
    fn a_role_has_the_rules_of_all_that_it_selects_each_once() {
        let by = |label: &str| json!({"matchLabels": {label: "true"}});
        let rule = json!({"aggregationRule": {"clusterRoleSelectors": [by("b"), by("a")]}});
        let whole = role("whole", json!({"a": "true"}), rule);
        let all = [
            whole.clone(),
            role("z", json!({"a": "true"}), json!({"rules": [reads("pods"), reads("nodes")]})),
            role("y", json!({"a": "true"}), json!({"rules": [reads("services")]})),
            role("x", json!({"b": "true"}), json!({"rules": [reads("nodes")]})),
            role("w", json!({}), json!({"rules": [reads("secrets")]})),
        ];
        let resources: Vec<String> =
            rules(&whole, &all).into_iter().flat_map(|rule| rule.resources.unwrap_or_default()).collect();
        assert_eq!(resources, ["nodes", "services", "pods"]);
    }
}
