use serde_json::{Value, json};

use super::*;

fn deployment(replicas: i32, strategy: Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "d", "uid": "u"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "strategy": strategy,
                 "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v2"}]}}},
    }))
    .unwrap()
}

fn rolling(surge: Value, unavailable: Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

fn set(name: &str, image: &str, replicas: i32, available: i32, desired: i32) -> Arc<ReplicaSet> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": {DESIRED: desired.to_string(), MAX: desired.to_string(), REVISION: "1"},
                         "creationTimestamp": format!("2026-01-01T00:00:0{}Z", name.len())},
            "spec": {"replicas": replicas, "selector": {},
                     "template": {"metadata": {"labels": {"app": "web", HASH: name}}, "spec": {"containers": [{"name": "c", "image": image}]}}},
            "status": {"replicas": replicas, "availableReplicas": available},
        }))
        .unwrap(),
    )
}

#[track_caller]
fn check(changes: &[SetChange], wanted: &[(&str, i32)]) {
    let found: Vec<(&str, i32)> =
        changes.iter().map(|c| (c.set.metadata.name.as_deref().unwrap(), c.replicas.unwrap())).collect();
    assert_eq!(found, wanted);
}

#[test]
fn the_new_set_is_recognised_by_its_template_whatever_its_hash() {
    let deployment = deployment(3, rolling(json!(1), json!(0)));
    let sets = [set("old", "v1", 3, 3, 3), set("new", "v2", 0, 0, 3)];
    assert_eq!(new_set(&deployment, &sets).unwrap().metadata.name.as_deref(), Some("new"));
}

#[test]
fn a_rollout_first_surges_and_then_takes_away_what_is_spare() {
    let deployment = deployment(3, rolling(json!(1), json!(0)));
    let old = set("old", "v1", 3, 3, 3);
    check(&scale(&deployment, Some(&set("new", "v2", 0, 0, 3)), std::slice::from_ref(&old)), &[("new", 1)]);
    check(&scale(&deployment, Some(&set("new", "v2", 1, 0, 3)), std::slice::from_ref(&old)), &[]);
    check(&scale(&deployment, Some(&set("new", "v2", 1, 1, 3)), &[old]), &[("old", 2)]);
}

#[test]
fn unhealthy_pods_of_old_sets_go_first() {
    let deployment = deployment(4, rolling(json!(0), json!(2)));
    let old = [set("o", "v0", 2, 0, 4), set("old", "v1", 2, 2, 4)];
    check(&scale(&deployment, Some(&set("new", "v2", 0, 0, 4)), &old), &[("o", 0)]);
}

#[test]
fn recreate_takes_all_old_pods_away_before_it_makes_new_ones() {
    let deployment = deployment(3, json!({"type": "Recreate"}));
    check(&scale(&deployment, None, &[set("old", "v1", 3, 3, 3)]), &[("old", 0)]);
    check(&scale(&deployment, Some(&set("new", "v2", 0, 0, 3)), &[set("old", "v1", 0, 0, 3)]), &[("new", 3)]);
}

#[test]
fn a_change_of_scale_is_shared_in_the_middle_of_a_rollout() {
    let deployment = deployment(10, rolling(json!(0), json!(1)));
    let old = set("old", "v1", 4, 4, 5);
    let new = set("new", "v2", 1, 1, 5);
    let changes = scale(&deployment, Some(&new), &[old]);
    let total: i32 = changes.iter().map(|c| c.replicas.unwrap()).sum();
    assert_eq!(total, 10);
    check(&changes, &[("old", 8), ("new", 2)]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut deployment = deployment(5, rolling(json!(1), json!(0)));
    deployment.spec.paused = Some(true);
    check(&scale(&deployment, None, &[set("old", "v1", 3, 3, 3)]), &[("old", 5)]);
}

#[test]
fn percentages_round_so_that_a_rollout_always_moves() {
    let quarter = || rolling(json!("25%"), json!("25%"));
    assert_eq!(surge_and_unavailable(&deployment(3, quarter())), (1, 0));
    assert_eq!(surge_and_unavailable(&deployment(10, quarter())), (3, 2));
    assert_eq!(surge_and_unavailable(&deployment(3, rolling(json!("0%"), json!("1%")))), (0, 1));
}

#[test]
fn revisions_count_up_and_a_rollback_moves_its_set_to_the_front() {
    let old = set("old", "v1", 0, 0, 3);
    assert_eq!(revision(&[], None), 1);
    assert_eq!(revision(std::slice::from_ref(&old), None), 2);
    assert_eq!(revision(std::slice::from_ref(&old), Some(&old)), 2);
    assert_eq!(revision(&[], Some(&old)), 1);
}

#[test]
fn a_set_that_comes_back_notes_the_revisions_that_it_had() {
    let deployment = deployment(1, json!({}));
    let back = |revision: &str, history: &str, now: i64| {
        let mut set = (*set("a", "i", 1, 1, 1)).clone();
        let annotations = set.metadata.annotations.get_or_insert_default();
        annotations.insert(REVISION.to_owned(), revision.to_owned());
        if !history.is_empty() {
            annotations.insert(HISTORY.to_owned(), history.to_owned());
        }
        annotate(&deployment, &set, now).get(HISTORY).cloned()
    };
    assert_eq!(back("1", "", 3).as_deref(), Some("1"));
    assert_eq!(back("3", "1", 5).as_deref(), Some("1,3"));
    assert_eq!(back("3", "1", 3), None, "it is still the same");
    let long = vec!["100000"; 285].join(",");
    let kept = back("300000", &long, 300_001).expect("a history");
    assert!(kept.len() <= 2000 && kept.len() > 1990 && kept.ends_with(",100000,300000"), "{}", kept.len());
}

#[test]
fn history_is_kept_to_its_limit() {
    let mut deployment = deployment(3, rolling(json!(1), json!(0)));
    deployment.spec.revision_history_limit = Some(1);
    let old = [set("a", "v0", 0, 0, 3), set("bb", "v1", 0, 0, 3)];
    assert_eq!(beyond_history(&deployment, &old).len(), 1);
    let busy = [set("a", "v0", 1, 1, 3), set("bb", "v1", 0, 0, 3)];
    assert!(beyond_history(&deployment, &busy).is_empty(), "a set with pods was thrown away");
}

#[test]
fn the_largest_numbers_there_are_neither_panic_nor_wrap() {
    for surge in [json!(1), json!("100%"), json!(i32::MAX)] {
        let deployment = deployment(i32::MAX, rolling(surge, json!(0)));
        assert_eq!(counts(&deployment)[MAX], i32::MAX.to_string());
        let old = [set("old", "v1", i32::MAX, i32::MAX, i32::MAX), set("older", "v0", i32::MAX, 0, i32::MAX)];
        let new = set("new", "v2", 1, 1, i32::MAX);
        let sane = |c: &SetChange| c.replicas.is_some_and(|n| n >= 0);
        assert!(scale(&deployment, Some(&new), &old).iter().all(sane));
        assert_eq!(make(&deployment, &[], 1).spec.replicas, Some(i32::MAX));
        let rescaled = [set("old", "v1", i32::MAX, 0, 1), set("older", "v0", 2, 0, 1)];
        assert!(scale(&deployment, Some(&new), &rescaled).iter().all(sane));
    }
    let mut newest = (*set("old", "v1", 0, 0, 3)).clone();
    let last = BTreeMap::from([(REVISION.to_owned(), i64::MAX.to_string())]);
    newest.metadata.annotations = Some(last);
    assert_eq!(revision(&[Arc::new(newest)], None), i64::MAX);
}
