use super::policies::count_indexes;
use super::*;

/// A Job as it is validated, with changes at paths within its spec.
fn job(changes: Value) -> Object {
    let container =
        json!({"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"});
    let pod = json!({"restartPolicy": "Never", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
        "containers": [container]});
    let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": pod}}});
    for (path, value) in changes.as_object().into_iter().flatten() {
        let (parent, field) = path.rsplit_once('/').unwrap_or(("", path));
        let mut at = &mut job["spec"];
        for part in parent.split('/').filter(|part| !part.is_empty()) {
            at = &mut at[part];
        }
        at[field] = value.clone();
    }
    Jobs.default(&mut job);
    Jobs.prepare_create(&mut job);
    job
}

/// What a Job with such changes is refused for: field and the end of the message.
#[track_caller]
fn check(changes: Value, refused: &[(&str, &str)]) {
    let causes = Jobs.validate(&job(changes));
    let found: Vec<_> = causes.iter().map(|c| (c.field.as_str(), c.message.as_str())).collect();
    assert_eq!(found.len(), refused.len(), "{found:?}");
    for ((field, message), (wanted, end)) in found.iter().zip(refused) {
        assert!(field == wanted && message.ends_with(end), "{field}: {message}, wanted {wanted}: {end}");
    }
}

#[test]
fn numbers_are_not_negative() {
    check(json!({}), &[]);
    let why = "must be greater than or equal to 0";
    check(
        json!({"parallelism": -1, "completions": -2}),
        &[("spec.parallelism", why), ("spec.completions", why)],
    );
    check(json!({"ttlSecondsAfterFinished": -1}), &[("spec.ttlSecondsAfterFinished", why)]);
}

#[test]
fn what_is_of_indexes_wants_a_job_with_indexes() {
    let why = "requires indexed completion mode";
    check(json!({"backoffLimitPerIndex": 1}), &[("spec.backoffLimitPerIndex", why)]);
    check(json!({"successPolicy": {"rules": []}}), &[("spec.successPolicy", why)]);
    check(
        json!({"completionMode": "Indexed", "parallelism": 2}),
        &[("spec.completions", "when completion mode is Indexed")],
    );
    let indexed = |changes: Value| {
        let mut all = json!({"completionMode": "Indexed", "completions": 3});
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        all
    };
    check(indexed(json!({"backoffLimitPerIndex": 1, "maxFailedIndexes": 3})), &[]);
    check(
        indexed(json!({"maxFailedIndexes": 4})),
        &[
            ("spec.backoffLimitPerIndex", "when maxFailedIndexes is specified"),
            ("spec.maxFailedIndexes", "must be less than or equal to completions"),
        ],
    );
    check(
        indexed(json!({"completions": 100_001, "backoffLimitPerIndex": 0, "parallelism": 10_001})),
        &[
            ("spec.maxFailedIndexes", "must be specified when completions is above 100000"),
            ("spec.parallelism", "used with backoff limit per index"),
        ],
    );
    check(
        json!({"completionMode": "Some", "completions": 1}),
        &[("spec.completionMode", r#"supported values: "NonIndexed", "Indexed""#)],
    );
}

#[test]
fn indexes_that_are_enough_are_numbers_and_ranges_in_order() {
    for (text, n) in [("", 0), ("0", 1), ("0,2-4", 4), ("1-2,4", 3)] {
        assert_eq!(count_indexes(text, 5), Ok(n), "{text}");
    }
    for (text, fault) in [
        ("5", r#"too large index: "5""#),
        ("a", r#"cannot convert string to integer for index: "a""#),
        ("-1", r#"cannot convert string to integer for index: """#),
        ("2-2", "non-increasing order, previous: 2, current: 2"),
        ("3,1", "non-increasing order, previous: 3, current: 1"),
    ] {
        assert_eq!(count_indexes(text, 5), Err(fault.to_owned()), "{text}");
    }
    assert!(count_indexes("1-2-3", 5).unwrap_err().contains("at most two parts separated by '-'"));
    let rules = json!([{"succeededIndexes": "0-1", "succeededCount": 3}, {}]);
    check(
        json!({"completionMode": "Indexed", "completions": 5, "successPolicy": {"rules": rules}}),
        &[
            ("spec.successPolicy.rules[0].succeededCount", "in the specified succeededIndexes field)"),
            ("spec.successPolicy.rules[1]", "succeededCount or succeededIndexes must be specified"),
        ],
    );
}

#[test]
fn rules_for_failures_say_when_and_what() {
    let rules = |rules: Value| json!({"podFailurePolicy": {"rules": rules}});
    let codes = json!({"operator": "In", "values": [1, 42], "containerName": "c"});
    check(rules(json!([{"action": "FailJob", "onExitCodes": codes}])), &[]);
    check(
        rules(json!([{"action": "FailIndex", "onExitCodes": codes}])),
        &[("spec.podFailurePolicy.rules[0].action", "requires the backoffLimitPerIndex to be set")],
    );
    let wrong = json!({"operator": "In", "values": [3, 0, 3], "containerName": "d"});
    check(
        rules(json!([{"onExitCodes": wrong}])),
        &[
            (
                "spec.podFailurePolicy.rules[0].action",
                r#"valid values: ["Count" "FailIndex" "FailJob" "Ignore"]"#,
            ),
            ("spec.podFailurePolicy.rules[0].onExitCodes.containerName", "names in the pod template"),
            ("spec.podFailurePolicy.rules[0].onExitCodes.values[1]", "must not be 0 for the In operator"),
            ("spec.podFailurePolicy.rules[0].onExitCodes.values[2]", "Duplicate value: 3"),
            ("spec.podFailurePolicy.rules[0].onExitCodes.values", "must be ordered"),
        ],
    );
    check(
        rules(
            json!([{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "Yes"}]},
            {"action": "Count"}]),
        ),
        &[
            ("spec.podFailurePolicy.rules[0].onPodConditions[0].status", r#""False", "True", "Unknown""#),
            (
                "spec.podFailurePolicy.rules[1]",
                "Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
            ),
        ],
    );
    let many = vec![json!({"action": "FailJob", "onExitCodes": codes}); 21];
    check(rules(many.into()), &[("spec.podFailurePolicy.rules", "Too many: 21: must have at most 20 items")]);
    let on_failure = json!({"template/spec/restartPolicy": "OnFailure", "podFailurePolicy": {"rules": []}});
    check(
        on_failure,
        &[("spec.template.spec.restartPolicy", "is supported when podFailurePolicy is specified")],
    );
}

#[test]
fn a_job_restarts_its_pods_never_or_on_failure() {
    let field = "spec.template.spec.restartPolicy";
    check(json!({"template/spec/restartPolicy": "OnFailure"}), &[]);
    let always = json!({"template/spec/restartPolicy": "Always"});
    check(always, &[(field, r#"Required value: valid values: "OnFailure", "Never""#)]);
}

#[test]
fn somebody_else_that_manages_a_job_has_a_domain() {
    check(json!({"managedBy": "acme.io/foo"}), &[]);
    check(json!({"managedBy": "acme"}), &[("spec.managedBy", r#"(such as "acme.io/foo")"#)]);
    check(json!({"managedBy": ""}), &[("spec.managedBy", "Required value")]);
    let long = format!("acme.io/{}", "f".repeat(60));
    check(json!({"managedBy": long}), &[("spec.managedBy", "may not be more than 63 bytes")]);
}

#[test]
fn labels_of_another_job_are_refused_unless_the_selector_is_the_clients() {
    let labels = json!({"controller-uid": "v"});
    check(
        json!({"template/metadata": {"labels": labels}}),
        &[("spec.template.metadata.labels[controller-uid]", "must be 'u'")],
    );
    let manual = json!({"manualSelector": true, "selector": {"matchLabels": {"a": "1"}},
        "template/metadata": {"labels": {"a": "1", "controller-uid": "v"}}});
    check(manual, &[]);
    check(
        json!({"manualSelector": true}),
        &[
            ("spec.selector", "Required value"),
            ("spec.template.metadata.labels", "does not match template `labels`"),
        ],
    );
}

#[test]
fn the_last_index_must_fit_into_a_host_name() {
    let mut long = job(json!({"completionMode": "Indexed", "completions": 11}));
    long["metadata"]["name"] = "n".repeat(61).into();
    let causes = Jobs.validate(&long);
    assert!(causes.iter().any(|c| c.field == "metadata.name" && c.message.ends_with("nnn-10")), "{causes:?}");
}

/// The field that an update is refused for.
fn refused(old: &Object, change: impl Fn(&mut Object)) -> Option<String> {
    let mut new = old.clone();
    change(&mut new);
    let causes = Jobs.validate_update(&new, old);
    assert!(causes.len() < 2, "{causes:?}");
    causes.into_iter().next().map(|cause| cause.field)
}

#[test]
fn completions_change_with_parallelism_in_a_job_with_indexes_only() {
    let plain = job(json!({}));
    assert_eq!(refused(&plain, |j| j["spec"]["parallelism"] = 4.into()), None);
    assert_eq!(refused(&plain, |j| j["spec"]["completions"] = 4.into()).as_deref(), Some("spec.completions"));
    let indexed = job(json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3}));
    let completions = |j: &mut Object| j["spec"]["completions"] = 4.into();
    assert_eq!(refused(&indexed, completions).as_deref(), Some("spec.completions"));
    let both = |j: &mut Object| {
        completions(j);
        j["spec"]["parallelism"] = 4.into();
    };
    assert_eq!(refused(&indexed, both), None);
    let policy = |j: &mut Object| j["spec"]["backoffLimitPerIndex"] = 1.into();
    assert_eq!(refused(&indexed, policy).as_deref(), Some("spec.backoffLimitPerIndex"));
}

#[test]
fn a_suspended_job_may_change_where_its_pods_go_and_what_they_need() {
    let going = job(json!({}));
    let selector = |j: &mut Object| j["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "1"});
    let image = |j: &mut Object| j["spec"]["template"]["spec"]["containers"][0]["image"] = "other".into();
    assert_eq!(refused(&going, selector).as_deref(), Some("spec.template"));
    let says_nothing = |j: &mut Object| {
        let spec = &mut j["spec"]["template"]["spec"];
        (spec["nodeSelector"], spec["hostNetwork"]) = (json!({}), json!(false));
    };
    assert_eq!(refused(&going, says_nothing), None);
    let an_empty_value = |j: &mut Object| j["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": ""});
    assert_eq!(refused(&going, an_empty_value).as_deref(), Some("spec.template"));
    let mut waiting = job(json!({"suspend": true}));
    let all = |j: &mut Object| {
        selector(j);
        let spec = &mut j["spec"]["template"]["spec"];
        spec["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": []}}});
        spec["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
    };
    for allowed in [&selector as &dyn Fn(&mut Object), &all] {
        assert_eq!(refused(&waiting, allowed), None);
    }
    let mut placed = waiting.clone();
    all(&mut placed);
    let anywhere = |j: &mut Object| j["spec"]["template"]["spec"]["affinity"] = Value::Null;
    assert_eq!(refused(&placed, anywhere), None);
    assert_eq!(refused(&waiting, image).as_deref(), Some("spec.template.spec"));
    let other_pods = |j: &mut Object| {
        j["spec"]["template"]["spec"]["affinity"] = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "z"}]}});
    };
    assert_eq!(refused(&waiting, other_pods).as_deref(), Some("spec.template.spec"));
    waiting["status"] = json!({"startTime": "2026-01-01T00:00:00Z", "active": 1});
    assert_eq!(refused(&waiting, selector).as_deref(), Some("spec.template"));
}
