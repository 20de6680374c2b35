use serde_json::{Value, json};

use super::*;

fn behavior(json: Value) -> HorizontalPodAutoscalerBehavior {
    serde_json::from_value(json).expect("a behavior")
}

fn policy(type_: &str, value: i32, period_s: i32) -> Value {
    json!({"type": type_, "value": value, "periodSeconds": period_s})
}

/// Decides as often as proposals are given, of a number of pods that follows each decision; each with the second when.
#[track_caller]
fn check(behavior: Option<&HorizontalPodAutoscalerBehavior>, begin: i32, steps: &[(u64, i32, i32)]) {
    let (mut history, start) = (History::default(), Instant::now());
    let mut current = begin;
    history.begin(begin, start);
    for &(second, proposed, wanted) in steps {
        let now = start + Duration::from_secs(second);
        let bounds = Bounds { min: 1, max: 100, current };
        let replicas = history.decide(proposed, bounds, behavior, now).replicas;
        assert_eq!(replicas, wanted, "{proposed} at {second} s of {current}");
        if replicas != current {
            history.scaled(current, replicas, behavior, now);
        }
        current = replicas;
    }
}

#[test]
fn without_a_behavior_pods_double_and_go_after_five_minutes() {
    check(None, 1, &[(0, 50, 4), (15, 50, 8), (30, 50, 16), (45, 17, 32)]);
    check(None, 10, &[(0, 2, 10), (150, 4, 10), (299, 3, 10), (301, 2, 4), (450, 2, 3), (600, 2, 2)]);
}

#[test]
fn a_window_takes_the_least_going_up_and_the_most_going_down() {
    let both = behavior(json!({
        "scaleUp": {"stabilizationWindowSeconds": 60, "selectPolicy": "Max", "policies": [policy("Percent", 900, 15)]},
        "scaleDown": {"stabilizationWindowSeconds": 60, "selectPolicy": "Max", "policies": [policy("Percent", 100, 15)]},
    }));
    check(Some(&both), 5, &[(0, 8, 5), (30, 9, 5), (61, 7, 7), (70, 20, 7)]);
    check(Some(&both), 5, &[(0, 2, 5), (30, 3, 5), (61, 1, 3), (92, 1, 1)]);
    let at_once = behavior(json!({
        "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [policy("Pods", 50, 15)]},
        "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [policy("Pods", 50, 15)]},
    }));
    check(Some(&at_once), 5, &[(0, 9, 9), (1, 2, 2)]);
    // Who says nothing of going down waits as those without a behavior.
    let up_only = behavior(json!({
        "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [policy("Pods", 50, 15)]},
        "scaleDown": {"selectPolicy": "Max", "policies": [policy("Percent", 100, 15)]},
    }));
    check(Some(&up_only), 5, &[(0, 2, 5), (299, 2, 5), (301, 2, 2)]);
}

fn going(way: &str, select: &str, policies: &[Value]) -> HorizontalPodAutoscalerBehavior {
    behavior(json!({way: {"stabilizationWindowSeconds": 0, "selectPolicy": select, "policies": policies}}))
}

#[test]
fn policies_count_from_what_there_was_when_their_period_began() {
    let up = going("scaleUp", "Max", &[policy("Pods", 4, 60)]);
    check(Some(&up), 2, &[(0, 50, 6), (15, 50, 6), (59, 50, 6), (60, 50, 10)]);
    let up = going("scaleUp", "Max", &[policy("Percent", 50, 60)]);
    check(Some(&up), 3, &[(0, 50, 5), (30, 50, 5), (61, 50, 8)]);
    let mut down = going("scaleDown", "Max", &[policy("Pods", 4, 60)]);
    check(Some(&down), 20, &[(0, 1, 16), (30, 1, 16), (61, 1, 12)]);
    down = going("scaleDown", "Max", &[policy("Percent", 10, 60)]);
    check(Some(&down), 20, &[(0, 1, 18), (61, 1, 16)]);
}

#[test]
fn of_several_policies_the_one_that_is_selected_counts() {
    let two = [policy("Pods", 2, 60), policy("Percent", 100, 60)];
    let first = |way: &str, select: &str, proposed| {
        let (mut history, now) = (History::default(), Instant::now());
        let behavior = going(way, select, &two);
        let bounds = Bounds { min: 1, max: 100, current: 10 };
        history.decide(proposed, bounds, Some(&behavior), now).replicas
    };
    assert_eq!(["Max", "Min", "Disabled"].map(|select| first("scaleUp", select, 50)), [20, 12, 10]);
    assert_eq!(["Max", "Min", "Disabled"].map(|select| first("scaleDown", select, 1)), [1, 8, 10]);
}

#[test]
fn what_limits_is_told_in_upstreams_words() {
    let told = |proposed, min, max, current, behavior: Option<&HorizontalPodAutoscalerBehavior>| {
        let (mut history, now) = (History::default(), Instant::now());
        let decision = history.decide(proposed, Bounds { min, max, current }, behavior, now);
        (decision.replicas, decision.limited.0, decision.limited.1)
    };
    assert_eq!(told(5, 1, 10, 4, None), (5, false, "DesiredWithinRange"));
    assert_eq!(told(50, 1, 10, 8, None), (10, true, "TooManyReplicas"));
    assert_eq!(told(50, 1, 100, 8, None), (16, true, "ScaleUpLimit"));
    assert_eq!(told(1, 2, 10, 8, None), (2, true, "TooFewReplicas"));
    let both = behavior(json!({
        "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [policy("Pods", 2, 60)]},
        "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [policy("Pods", 2, 60)]},
    }));
    assert_eq!(told(50, 1, 9, 8, Some(&both)), (9, true, "TooManyReplicas"));
    assert_eq!(told(50, 1, 100, 8, Some(&both)), (10, true, "ScaleUpLimit"));
    assert_eq!(told(1, 7, 100, 8, Some(&both)), (7, true, "TooFewReplicas"));
    assert_eq!(told(1, 1, 100, 8, Some(&both)), (6, true, "ScaleDownLimit"));
    assert_eq!(told(8, 1, 100, 8, Some(&both)), (8, false, "DesiredWithinRange"));

    let (mut history, now) = (History::default(), Instant::now());
    history.begin(8, now);
    let bounds = Bounds { min: 1, max: 10, current: 8 };
    assert_eq!(history.decide(3, bounds, None, now).able, DOWN_STABILIZED);
    assert_eq!(history.decide(8, bounds, None, now).able, READY);
}

#[test]
fn what_is_remembered_is_bounded() {
    let (mut history, now) = (History::default(), Instant::now());
    let bounds = Bounds { min: 1, max: 10, current: 8 };
    for _ in 0..2 * MAX_REMEMBERED {
        history.decide(8, bounds, None, now);
    }
    assert_eq!(history.proposals.len(), MAX_REMEMBERED);
    history.decide(8, bounds, None, now + DOWN_WINDOW);
    assert_eq!(history.proposals.len(), 1);
}
