//! How many pods of a budget may go. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skiff_client::view::Pod;

use crate::objects::{Selector, is_ready};

/// How long an eviction may take to show: upstream's figure.
const DELETION_TIMEOUT_S: i64 = 120;

/// How many pods there should be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scale {
    pub(super) expected: i32,
    /// Names of pods that nothing controls.
    pub(super) unmanaged: Vec<String>,
}

/// Which pods the budget takes in: an empty selector takes in all, none takes in none.
pub(super) fn selector(budget: &PodDisruptionBudget) -> Option<&LabelSelector> {
    budget.spec.as_ref()?.selector.as_ref()
}

pub(super) fn selects(budget: &PodDisruptionBudget, pod: &ObjectMeta) -> bool {
    selector(budget).is_some_and(|asked| Selector::or_all(asked).selects(pod))
}

/// What of a pod budgets depend on.
pub(super) fn seen(pod: &Pod) -> (Option<&BTreeMap<String, String>>, bool, bool) {
    (pod.metadata.labels.as_ref(), is_ready(pod), pod.metadata.deletion_timestamp.is_some())
}

/// Whether the budget is a share of the pods that there should be, rather than a number.
pub(super) fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.as_ref();
    spec.is_some_and(|s| {
        s.max_unavailable.is_some() || matches!(s.min_available, Some(IntOrString::String(_)))
    })
}

/// A number, or a percentage of `of` rounded up.
fn scaled(value: &IntOrString, of: i32) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            i32::try_from((percent * i64::from(of) + 99) / 100).unwrap_or(i32::MAX)
        }
    }
}

fn desired(budget: &PodDisruptionBudget, expected: i32) -> i32 {
    let spec = budget.spec.as_ref();
    let max = spec.and_then(|s| s.max_unavailable.as_ref());
    let min = spec.and_then(|s| s.min_available.as_ref());
    match (max, min) {
        (Some(max), _) => (expected - scaled(max, expected)).max(0),
        (None, Some(min)) => scaled(min, expected),
        (None, None) => 0,
    }
}

/// The status, and in how many seconds to look again.
pub(super) fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: i32,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<u64>) {
    let old = budget.status.clone().unwrap_or_default();
    let noted = old.disrupted_pods.clone().unwrap_or_default();
    let mut disrupted: BTreeMap<String, Time> = BTreeMap::new();
    let (mut healthy, mut recheck_s) = (0, None);
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let left_s = noted.get(&name).map(|at| at.0.as_second() + DELETION_TIMEOUT_S - now.as_second());
        // Evicted, and soon to be seen to be: it counts as gone.
        if let (Some(left_s @ 0..), Some(at)) = (left_s, noted.get(&name)) {
            let seconds = u64::try_from(left_s).unwrap_or(0);
            recheck_s = Some(recheck_s.map_or(seconds, |least: u64| least.min(seconds)));
            disrupted.insert(name, at.clone());
            continue;
        }
        healthy += i32::from(is_ready(pod));
    }
    let desired = desired(budget, expected);
    // A budget that matches nothing yet allows nothing, so that its first pods are not taken at once.
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
    let generation = budget.metadata.generation;
    let condition = condition(&old, allowed > 0, reason, "", generation, now);
    let status = PodDisruptionBudgetStatus {
        conditions: Some(with(&old, condition)),
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        disrupted_pods: Some(disrupted).filter(|pods| !pods.is_empty()),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        observed_generation: generation,
    };
    (status, recheck_s)
}

/// Nothing may go while it is not known how many there should be.
pub(super) fn failed(budget: &PodDisruptionBudget, why: &str, now: Timestamp) -> PodDisruptionBudgetStatus {
    let old = budget.status.clone().unwrap_or_default();
    let condition = condition(&old, false, "SyncFailed", why, old.observed_generation, now);
    PodDisruptionBudgetStatus { disruptions_allowed: Some(0), conditions: Some(with(&old, condition)), ..old }
}

fn condition(
    old: &PodDisruptionBudgetStatus,
    is_true: bool,
    reason: &str,
    message: &str,
    observed_generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let status = if is_true { "True" } else { "False" };
    let before = old.conditions.iter().flatten().find(|c| c.type_ == "DisruptionAllowed");
    let since = before.filter(|c| c.status == status).map(|c| c.last_transition_time.clone());
    Condition {
        last_transition_time: since.unwrap_or_else(|| Time(whole_seconds(now))),
        message: message.to_owned(),
        observed_generation,
        reason: reason.to_owned(),
        status: status.to_owned(),
        type_: "DisruptionAllowed".to_owned(),
    }
}

/// As it will be read again.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn with(old: &PodDisruptionBudgetStatus, condition: Condition) -> Vec<Condition> {
    let mut conditions = old.conditions.clone().unwrap_or_default();
    match conditions.iter_mut().find(|c| c.type_ == condition.type_) {
        Some(slot) => *slot = condition,
        None => conditions.push(condition),
    }
    conditions
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        let mut budget = json!({"metadata": {"name": "b", "generation": 3}, "spec": spec});
        budget["spec"]["selector"] = json!({});
        if !status.is_null() {
            budget["status"] = status;
        }
        serde_json::from_value(budget).unwrap()
    }

    fn pods(names: &[(&str, bool)]) -> Vec<Arc<Pod>> {
        let pod = |(name, ready): &(&str, bool)| {
            let status = if *ready { "True" } else { "False" };
            let pod = json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": status}]}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        names.iter().map(pod).collect()
    }

    fn allowed(spec: Value, ready: i32, expected: i32) -> (Option<i32>, Option<i32>) {
        let all: Vec<(&str, bool)> = (0..expected).map(|n| ("p", n < ready)).collect();
        let (status, _) = status(&budget(spec, Value::Null), &pods(&all), expected, at(0));
        (status.desired_healthy, status.disruptions_allowed)
    }

    #[test]
    fn as_many_may_go_as_are_healthy_beyond_what_is_wanted() {
        for (spec, ready, expected, desired, may_go) in [
            (json!({"minAvailable": 1}), 3, 3, 1, 2),
            (json!({"minAvailable": 3}), 3, 3, 3, 0),
            (json!({"minAvailable": "50%"}), 3, 3, 2, 1),
            (json!({"maxUnavailable": 1}), 2, 3, 2, 0),
            (json!({"maxUnavailable": "34%"}), 3, 3, 1, 2),
            (json!({"maxUnavailable": 5}), 3, 3, 0, 3),
            (json!({"minAvailable": 0}), 0, 0, 0, 0),
        ] {
            assert_eq!(allowed(spec.clone(), ready, expected), (Some(desired), Some(may_go)), "{spec}");
        }
    }

    #[test]
    fn an_evicted_pod_counts_as_gone_until_its_time_is_up() {
        let noted = json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0,
            "disruptedPods": {"a": "1970-01-01T00:01:40Z", "gone": "1970-01-01T00:01:40Z"}});
        let budget = budget(json!({"minAvailable": 1}), noted);
        let pods = pods(&[("a", true), ("b", true), ("c", true)]);
        let (early, recheck_s) = status(&budget, &pods, 3, at(110));
        assert_eq!(
            (early.current_healthy, early.disruptions_allowed, recheck_s),
            (Some(2), Some(1), Some(110))
        );
        assert_eq!(early.disrupted_pods.unwrap().into_keys().collect::<Vec<_>>(), ["a"]);
        let (late, recheck_s) = status(&budget, &pods, 3, at(300));
        assert_eq!((late.current_healthy, late.disrupted_pods, recheck_s), (Some(3), None, None));
    }

    #[test]
    fn a_status_that_is_written_and_read_again_is_the_same() {
        let first = budget(json!({"minAvailable": 1}), Value::Null);
        let pods = pods(&[("a", true), ("b", true)]);
        let (written, _) = status(&first, &pods, 2, Timestamp::new(5, 7).unwrap());
        assert_eq!(written.conditions.as_ref().unwrap()[0].reason, "SufficientPods");
        let stored = serde_json::to_value(&written).unwrap();
        let again = budget(json!({"minAvailable": 1}), stored);
        let (second, _) = status(&again, &pods, 2, at(50));
        assert_eq!(again.status, Some(second));
        let failed = failed(&again, "found no controllers for pod \"x\"", at(60));
        assert_eq!(failed.disruptions_allowed, Some(0));
        assert_eq!(failed.conditions.unwrap()[0].reason, "SyncFailed");
    }

    #[test]
    fn a_budget_without_a_selector_takes_in_nothing_and_an_empty_one_all() {
        let pod = ObjectMeta::default();
        assert!(selects(&budget(json!({}), Value::Null), &pod));
        assert!(!selects(&PodDisruptionBudget::default(), &pod));
    }
}
