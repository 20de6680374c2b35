use serde_json::{Value, json};

use super::*;

const NOW_S: i64 = 100_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

/// A pod that has been ready for long, of one container that asks for 100m.
fn pod(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "d"},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m", "memory": "1Mi"}}}]},
        "status": {
            "phase": "Running", "startTime": at(0).to_string(),
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at(60).to_string()}],
        },
    })
}

fn pods(all: &[Value]) -> Vec<Arc<Pod>> {
    let pod = |pod: &Value| Arc::new(serde_json::from_value(pod.clone()).expect("a pod"));
    all.iter().map(pod).collect()
}

/// Ready pods `p0`, `p1`, and so on.
fn ready(n: usize) -> Vec<Value> {
    (0..n).map(|n| pod(&format!("p{n}"))).collect()
}

/// What `p0`, `p1` and so on use.
fn samples(values: &[i64]) -> Samples {
    let sample = |value| Sample { at: at(NOW_S - 10), window: SignedDuration::from_secs(15), value };
    values.iter().enumerate().map(|(n, value)| (format!("p{n}"), sample(*value))).collect()
}

fn scaled(pods: &[Arc<Pod>], current: i32) -> Scaled<'_> {
    Scaled { pods, current, tolerances: Tolerances { down: 0.1, up: 0.1 }, now: at(NOW_S) }
}

/// How many pods of 100m each there should be, and what percentage they use.
#[track_caller]
fn check(all: &[Value], values: &[i64], target: i32, wanted: (i32, i32)) {
    let (all, current) = (pods(all), i32::try_from(all.len()).expect("a count"));
    let proposal = scaled(&all, current).by_utilization(samples(values), "cpu", None, target);
    let proposal = proposal.expect("a proposal");
    assert_eq!((proposal.replicas, proposal.utilization), (wanted.0, Some(wanted.1)));
}

fn with(mut pod: Value, pointer: &str, value: Value) -> Value {
    let (at, field) = pointer.rsplit_once('/').expect("a pointer");
    pod.pointer_mut(at).expect("it is there")[field] = value;
    pod
}

#[test]
fn the_number_of_pods_follows_their_use_but_not_the_little_that_is_tolerated() {
    check(&ready(3), &[50, 50, 50], 50, (3, 50));
    check(&ready(3), &[54, 55, 56], 50, (3, 55));
    check(&ready(3), &[57, 57, 57], 50, (4, 57));
    check(&ready(3), &[100, 100, 100], 50, (6, 100));
    check(&ready(4), &[10, 10, 10, 10], 50, (1, 10));
    check(&ready(4), &[45, 45, 46, 46], 50, (4, 45));
    check(&ready(2), &[0, 0], 50, (0, 0));
}

#[test]
fn a_tolerance_may_differ_by_the_way() {
    let all = pods(&ready(10));
    let of = |down, up, each: i64| {
        let scaled = Scaled { tolerances: Tolerances { down, up }, ..scaled(&all, 10) };
        scaled.by_average(samples(&[each; 10]), "cpu", 100).expect("a proposal").replicas
    };
    assert_eq!([of(0.3, 0.0, 75), of(0.2, 0.0, 75)], [10, 8]);
    assert_eq!([of(0.0, 0.3, 125), of(0.0, 0.2, 125)], [10, 13]);
}

#[test]
fn of_a_pod_that_does_not_tell_the_smallest_change_is_assumed() {
    // Up: 160 of 200 asked for, and nothing of the third: 53 % of 300.
    check(&ready(3), &[80, 80], 50, (3, 80));
    check(&ready(3), &[100, 100], 50, (4, 100));
    // Down: the third uses all of its request.
    check(&ready(3), &[10, 10], 50, (3, 10));
    check(&ready(4), &[10, 10, 10], 50, (3, 10));
    // With a target of more than everything it uses as much.
    check(&ready(2), &[10], 200, (2, 10));
}

#[test]
fn pods_that_are_not_ready_count_as_idle_going_up_and_not_at_all_going_down() {
    let pending = with(pod("p2"), "/status/phase", json!("Pending"));
    let all = [&ready(2)[..], &[pending]].concat();
    check(&all, &[200, 200], 50, (8, 200));
    check(&all, &[60, 60], 50, (3, 60));
    check(&all, &[20, 20], 50, (1, 20));
}

#[test]
fn pods_that_have_failed_or_are_going_are_left_out() {
    let failed = with(pod("p2"), "/status/phase", json!("Failed"));
    let going = with(pod("p3"), "/metadata/deletionTimestamp", json!(at(NOW_S).to_string()));
    let all = [&ready(2)[..], &[failed, going]].concat();
    check(&all, &[100, 100, 900, 900], 50, (4, 100));
}

#[test]
fn the_cpu_of_a_pod_counts_from_when_it_was_ready_for_a_whole_window() {
    let started = |s: i64| with(pod("p0"), "/status/startTime", json!(at(NOW_S - s).to_string()));
    let since = |pod, status: &str, s: i64| {
        let condition =
            json!({"type": "Ready", "status": status, "lastTransitionTime": at(NOW_S - s).to_string()});
        with(pod, "/status/conditions", json!([condition]))
    };
    let is_starting = |pod: Value| {
        let groups = group(&pods(&[pod]), &samples(&[100]), "cpu", at(NOW_S));
        assert_eq!(groups.n_ready + groups.unready.len(), 1);
        groups.n_ready == 0
    };
    // The sample is ten seconds old, and of fifteen seconds.
    assert!(!is_starting(since(started(60), "True", 26)));
    assert!(is_starting(since(started(60), "True", 24)));
    assert!(is_starting(since(started(60), "False", 50)));
    // Later, what was ready once is not taken for one that starts.
    assert!(is_starting(since(started(400), "False", 380)));
    assert!(!is_starting(since(started(400), "False", 60)));
    assert!(!is_starting(since(started(400), "True", 5)));
    assert!(is_starting(with(pod("p0"), "/status/startTime", Value::Null)));
    assert!(is_starting(with(pod("p0"), "/status/conditions", Value::Null)));
    // Of other things the beginning tells as much as the rest.
    let young = pods(&[since(started(60), "False", 50)]);
    assert_eq!(group(&young, &samples(&[1]), "memory", at(NOW_S)).n_ready, 1);
}

#[test]
fn an_average_is_over_the_pods_whatever_they_ask_for() {
    let all = pods(&ready(3));
    let of = |values: &[i64], target| {
        let proposal = scaled(&all, 3).by_average(samples(values), "", target).expect("a proposal");
        (proposal.replicas, proposal.average)
    };
    assert_eq!(of(&[20_000, 10_000, 30_000], 10_000), (6, 20_000));
    assert_eq!(of(&[10_000, 10_000, 10_500], 10_000), (3, 10_166));
    // Who does not tell has what is wanted going down, and nothing going up.
    assert_eq!(of(&[1000, 1000], 10_000), (2, 1000));
    assert_eq!(of(&[20_000, 20_000], 10_000), (4, 20_000));
    assert_eq!(of(&[12_000, 12_000], 10_000), (3, 12_000), "it would turn around");
}

#[test]
fn a_ratio_is_of_the_pods_that_are_ready_and_of_one_where_there_are_none() {
    let unready = with(pod("p2"), "/status/conditions/0/status", json!("False"));
    let all = pods(&[&ready(2)[..], &[unready]].concat());
    assert_eq!(scaled(&all, 3).by_ratio(2.0), Ok(4));
    assert_eq!(scaled(&all, 3).by_ratio(1.05), Ok(3));
    assert_eq!(scaled(&all, 3).by_ratio(1e12), Ok(i32::MAX));
    assert_eq!(scaled(&[], 0).by_ratio(2.5), Ok(3));
    assert_eq!(scaled(&[], 0).by_ratio(0.0), Ok(0));
    assert_eq!(scaled(&[], 2).by_ratio(2.0), Err(CountError::NoPods));
}

#[test]
fn so_much_for_each_pod_makes_as_many_as_it_takes() {
    let tolerances = Tolerances { down: 0.1, up: 0.1 };
    assert_eq!(per_pod(3, 60_000, 10_000, tolerances), (6, 20_000));
    assert_eq!(per_pod(3, 31_000, 10_000, tolerances), (3, 10_334));
    assert_eq!(per_pod(3, 5000, 10_000, tolerances), (1, 1667));
    assert_eq!(per_pod(0, 25_000, 10_000, tolerances), (3, 25_000));
    assert_eq!(per_pod(1, i64::MAX, 1, tolerances).0, i32::MAX);
}

#[test]
fn what_a_pod_asks_for_is_its_own_request_or_that_of_its_containers() {
    let request = |cpu: &str| json!({"requests": {"cpu": cpu}});
    let spec = json!({
        "containers": [{"name": "a", "resources": request("100m")}, {"name": "b", "resources": request("50m")}],
        "initContainers": [
            {"name": "once", "resources": request("5")},
            {"name": "side", "restartPolicy": "Always", "resources": request("10m")},
        ],
    });
    let of = |spec: &Value, container| {
        let all = pods(&[json!({"metadata": {"name": "p"}, "spec": spec})]);
        requests(&all, container, "cpu").map(|requests| requests["p"])
    };
    assert_eq!(of(&spec, None), Ok(160));
    assert_eq!([of(&spec, Some("b")), of(&spec, Some("side"))], [Ok(50), Ok(10)]);
    let missing = |container: &str| CountError::NoContainer { container: container.into(), pod: "p".into() };
    assert_eq!(of(&spec, Some("once")), Err(missing("once")));
    let whole = with(spec.clone(), "/resources", request("1"));
    assert_eq!([of(&whole, None), of(&whole, Some("a"))], [Ok(1000), Ok(100)]);
    let overhead = with(whole, "/overhead", json!({"cpu": "20m"}));
    assert_eq!(of(&overhead, None), Ok(1020));
    let bare = with(spec, "/containers/1/resources", json!({}));
    let error = of(&bare, None).expect_err("b asks for nothing").to_string();
    assert_eq!(error, "missing request for cpu in container b of Pod p");
    assert_eq!(of(&bare, Some("a")), Ok(100));
}

#[test]
fn where_nothing_is_known_nothing_is_proposed() {
    let of = |all: &[Value], values: &[i64]| {
        scaled(&pods(all), 1).by_utilization(samples(values), "cpu", None, 50).expect_err("an error")
    };
    assert_eq!(of(&[], &[1]), CountError::NoPods);
    let pending = with(pod("p0"), "/status/phase", json!("Pending"));
    assert_eq!(of(&[pending], &[1]), CountError::NoSamples);
    assert_eq!(of(&[pod("other")], &[1]), CountError::NoneKnown);
}
