//! PodDisruptionBudgets, as far as preemption minds them: it rather takes pods that a budget can spare, but does not let
//! budgets stop it.
//!
//! Source: upstream's `filterPodsWithPDBViolation`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use skiff_api::LabelSelector;
use skiff_client::ObjectKey;

use crate::affinity::{matches, selector};
use crate::cluster::Tenant;

#[derive(Debug, Default)]
pub(crate) struct Budgets(BTreeMap<ObjectKey, Budget>);

#[derive(Debug)]
struct Budget {
    selector: LabelSelector,
    /// So many of its pods may go now.
    n_allowed: i32,
    /// Pods that the API server has already counted as going.
    disrupted: BTreeSet<String>,
}

impl Budget {
    fn of(budget: &PodDisruptionBudget) -> Budget {
        let wanted = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
        let status = budget.status.as_ref();
        let disrupted = status.and_then(|s| s.disrupted_pods.as_ref());
        Budget {
            selector: selector(&serde_json::to_value(wanted).unwrap_or_default(), Vec::new()),
            n_allowed: status.and_then(|s| s.disruptions_allowed).unwrap_or_default(),
            disrupted: disrupted.into_iter().flatten().map(|(name, _)| name.clone()).collect(),
        }
    }

    /// Here a selector that is empty selects nothing, other than for whom budgets are made for.
    fn covers(&self, pod: &Tenant) -> bool {
        let labels = &pod.traits.labels;
        !labels.is_empty()
            && !self.selector.is_empty()
            && matches(&self.selector, Some(labels))
            && !self.disrupted.contains(&pod.key.name)
    }
}

impl Budgets {
    /// What the API says of a budget now; `None` if it is gone.
    pub(crate) fn set(&mut self, key: &ObjectKey, budget: Option<&PodDisruptionBudget>) {
        match budget {
            Some(budget) => drop(self.0.insert(key.clone(), Budget::of(budget))),
            None => drop(self.0.remove(key)),
        }
    }

    /// Of each pod, whether a budget is overdrawn if it goes after all before it.
    pub(crate) fn overdrawn(&self, pods: &[&Tenant]) -> Vec<bool> {
        if self.0.is_empty() {
            return vec![false; pods.len()];
        }
        let mut left: HashMap<&ObjectKey, i32> = HashMap::new();
        let mut is_overdrawn = |pod: &Tenant| {
            let first = ObjectKey::new(&*pod.key.namespace, "");
            let there = self.0.range(first..).take_while(|(key, _)| key.namespace == pod.key.namespace);
            let mut overdrawn = false;
            for (key, budget) in there.filter(|(_, budget)| budget.covers(pod)) {
                let left = left.entry(key).or_insert(budget.n_allowed);
                *left = left.saturating_sub(1);
                overdrawn |= *left < 0;
            }
            overdrawn
        };
        pods.iter().map(|pod| is_overdrawn(pod)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::PodInfo;

    fn pod(namespace: &str, name: &str, labels: Value) -> Tenant {
        let pod = json!({"metadata": {"name": name, "namespace": namespace, "labels": labels}});
        let info = PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap()));
        Tenant::of(&ObjectKey::new(namespace, name), &info)
    }

    #[track_caller]
    fn check(budget: Value, pods: &[Tenant], wanted: &[bool]) {
        let mut budgets = Budgets::default();
        let key = ObjectKey::new("d", "b");
        budgets.set(&key, Some(&serde_json::from_value(budget).unwrap()));
        let pods: Vec<&Tenant> = pods.iter().collect();
        assert_eq!(budgets.overdrawn(&pods), wanted);
        budgets.set(&key, None);
        assert_eq!(budgets.overdrawn(&pods), vec![false; pods.len()]);
    }

    fn of_web(n_allowed: i32, disrupted: Value) -> Value {
        json!({"spec": {"selector": {"matchLabels": {"app": "web"}}},
            "status": {"disruptionsAllowed": n_allowed, "disruptedPods": disrupted,
                       "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}})
    }

    #[test]
    fn a_budget_spares_as_many_of_its_pods_as_it_allows() {
        let web = |name| pod("d", name, json!({"app": "web"}));
        let pods =
            [web("a"), pod("d", "b", json!({"app": "db"})), web("c"), pod("e", "d", json!({"app": "web"}))];
        check(of_web(0, json!({})), &pods, &[true, false, true, false]);
        check(of_web(1, json!({})), &pods, &[false, false, true, false]);
        check(of_web(2, json!({})), &pods, &[false; 4]);
        check(of_web(1, json!({"a": "2026-01-01T00:00:00Z"})), &pods, &[false; 4]);
    }

    #[test]
    fn a_budget_that_selects_nothing_covers_no_pod() {
        let pods = [pod("d", "a", json!({"app": "web"})), pod("d", "b", json!({}))];
        for selector in [json!({}), Value::Null] {
            check(json!({"spec": {"selector": selector}}), &pods, &[false; 2]);
        }
        let unlike = json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]});
        check(json!({"spec": {"selector": unlike}}), &pods, &[false; 2]);
    }
}
