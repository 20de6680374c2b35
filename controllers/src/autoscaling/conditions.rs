//! Conditions of an autoscaler, and what they decide. Pure.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::SCALED_TO_ZERO;

/// What is to be done about a number of pods, before anything is measured.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Somebody has scaled it to zero, which turns the autoscaler off.
    Leave,
    Set(i32, &'static str),
    Measure,
}

pub(super) fn first_step(
    hpa: &HorizontalPodAutoscaler,
    status: &HorizontalPodAutoscalerStatus,
    current: i32,
) -> Step {
    let (min, max) = (hpa.spec.min_replicas.unwrap_or(1), hpa.spec.max_replicas);
    match current {
        0 if has_condition(status, SCALED_TO_ZERO) && (min != 0 || may_reach_zero(hpa)) => Step::Measure,
        0 => Step::Leave,
        _ if current > max => Step::Set(max, "Current number of replicas above Spec.MaxReplicas"),
        _ if current < min => Step::Set(min, "Current number of replicas below Spec.MinReplicas"),
        _ => Step::Measure,
    }
}

/// Whether there is a metric that says something while there is no pod.
pub(super) fn may_reach_zero(hpa: &HorizontalPodAutoscaler) -> bool {
    let metrics = hpa.spec.metrics.as_deref().unwrap_or_default();
    metrics.iter().any(|metric| matches!(metric.type_.as_str(), "Object" | "External"))
}

pub(super) fn has_condition(status: &HorizontalPodAutoscalerStatus, type_: &str) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == type_ && condition.status == "True")
}

pub(super) fn set_condition(
    status: &mut HorizontalPodAutoscalerStatus,
    type_: &str,
    is_so: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let at = conditions.iter().position(|condition| condition.type_ == type_).unwrap_or_else(|| {
        let new = HorizontalPodAutoscalerCondition { type_: type_.to_owned(), ..Default::default() };
        conditions.push(new);
        conditions.len() - 1
    });
    let (condition, is_so) = (&mut conditions[at], if is_so { "True" } else { "False" });
    if condition.status != is_so {
        condition.last_transition_time = Some(Time(now));
        is_so.clone_into(&mut condition.status);
    }
    condition.reason = Some(reason.to_owned());
    condition.message = Some(message.to_owned());
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn hpa(min: Value, metric: &str) -> HorizontalPodAutoscaler {
        let spec = json!({
            "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "minReplicas": min, "maxReplicas": 10,
            "metrics": [{"type": metric}],
        });
        serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec})).expect("an autoscaler")
    }

    #[track_caller]
    fn check(min: Value, metric: &str, current: i32, is_scaled_to_zero: bool, wanted: &Step) {
        let mut status = HorizontalPodAutoscalerStatus::default();
        set_condition(&mut status, SCALED_TO_ZERO, is_scaled_to_zero, "r", "m", Timestamp::UNIX_EPOCH);
        assert_eq!(first_step(&hpa(min, metric), &status, current), *wanted);
    }

    #[test]
    fn what_is_outside_of_min_and_max_is_brought_back_and_all_else_measured() {
        check(
            json!(2),
            "Resource",
            1,
            false,
            &Step::Set(2, "Current number of replicas below Spec.MinReplicas"),
        );
        check(
            json!(2),
            "Resource",
            11,
            false,
            &Step::Set(10, "Current number of replicas above Spec.MaxReplicas"),
        );
        for current in [2, 10] {
            check(json!(2), "Resource", current, false, &Step::Measure);
        }
        check(json!(null), "Resource", 1, false, &Step::Measure);
    }

    #[test]
    fn zero_is_left_alone_unless_an_autoscaler_made_it() {
        check(json!(2), "Resource", 0, false, &Step::Leave);
        check(json!(0), "External", 0, false, &Step::Leave);
        check(json!(0), "External", 0, true, &Step::Measure);
        check(json!(0), "Resource", 0, true, &Step::Leave);
        check(json!(2), "Resource", 0, true, &Step::Measure);
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_is_the_same() {
        let mut status = HorizontalPodAutoscalerStatus::default();
        let at = |second| Timestamp::from_second(second).expect("a time");
        for (is_so, reason, second) in [(true, "A", 1), (true, "B", 2), (false, "C", 3)] {
            set_condition(&mut status, "T", is_so, reason, "m", at(second));
            let [condition] = status.conditions.as_deref().expect("conditions") else { panic!("one") };
            let since = condition.last_transition_time.as_ref().map(|time| time.0.as_second());
            assert_eq!(since, Some(if is_so { 1 } else { 3 }));
            assert_eq!(condition.reason.as_deref(), Some(reason));
        }
    }
}
