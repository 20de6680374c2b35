use serde_json::{Value, json};

use super::*;

const START_S: i64 = 1_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn job(spec: Value, status: Value) -> Job {
    let mut job = json!({"metadata": {"name": "j", "namespace": "d", "uid": "j"}, "spec": spec});
    job["spec"]["template"] = json!({"spec": {"containers": [], "restartPolicy": "Never"}});
    job["status"] = if status.is_null() { json!({}) } else { status };
    serde_json::from_value(job).unwrap()
}

fn pod(name: &str, phase: &str, change: Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": name, "uid": name, "namespace": "d", "finalizers": [FINALIZER],
            "creationTimestamp": at(START_S).to_string()},
        "status": {"phase": phase},
    });
    for (field, value) in change.as_object().unwrap() {
        pod["metadata"][field] = value.clone();
    }
    serde_json::from_value(pod).unwrap()
}

fn of_index(name: &str, phase: &str, index: i32) -> Pod {
    pod(name, phase, json!({"annotations": {INDEX: index.to_string()}}))
}

fn planned(job: &Job, pods: &[Pod]) -> Plan {
    plan(job, pods, Backoff::default(), at(START_S))
}

fn reasons(status: &JobStatus) -> Vec<(String, String)> {
    let conditions = status.conditions.iter().flatten();
    conditions.map(|c| (c.type_.clone(), c.reason.clone().unwrap_or_default())).collect()
}

/// Carries a plan out as the controller does, all going well.
fn settled(plan: &Plan, pods: &[Pod]) -> JobStatus {
    let mut status = plan.status.clone();
    let untracked: Vec<&str> = plan.untrack.iter().map(|at| uid(&pods[*at].metadata)).collect();
    count_untracked(&mut status, |of| {
        pods.iter().any(|pod| uid(&pod.metadata) == of && is_tracked(pod)) && !untracked.contains(&of)
    });
    finish(&mut status, plan.finished.as_ref());
    status
}

#[test]
fn as_many_pods_are_made_as_may_run_and_are_still_wanted() {
    let fresh = job(json!({"completions": 5, "parallelism": 3}), Value::Null);
    let first = planned(&fresh, &[]);
    assert_eq!((first.make.len(), first.status.active), (3, Some(3)));
    assert_eq!(first.status.start_time.as_ref().map(|t| t.0), Some(at(START_S)));
    let later = job(json!({"completions": 5, "parallelism": 3}), json!({"succeeded": 4}));
    assert_eq!(planned(&later, &[]).make.len(), 1);
    let running = [pod("a", "Running", json!({})), pod("b", "Pending", json!({}))];
    let shrunk = job(json!({"completions": 5, "parallelism": 1}), Value::Null);
    let plan = planned(&shrunk, &running);
    assert_eq!((plan.discard.len(), plan.make.len(), plan.status.active), (1, 0, Some(1)));
}

#[test]
fn a_pod_is_noted_before_it_is_counted_and_counted_once() {
    let job_ = job(json!({"completions": 2, "parallelism": 1}), Value::Null);
    let pods = [pod("a", "Succeeded", json!({}))];
    let plan = planned(&job_, &pods);
    let noted = plan.status.uncounted_terminated_pods.clone().unwrap();
    assert_eq!((noted.succeeded, plan.status.succeeded), (Some(vec!["a".to_owned()]), None));
    assert_eq!((plan.untrack.as_slice(), plan.make.len()), ([0].as_slice(), 1));
    // The controller ends here: the next pass finds the note, and the pod with or without its finalizer.
    let noted = job(json!({"completions": 2, "parallelism": 1}), serde_json::to_value(&plan.status).unwrap());
    let again = planned(&noted, &pods);
    assert_eq!(settled(&again, &pods).succeeded, Some(1));
    let gone = [pod("a", "Succeeded", json!({"finalizers": []}))];
    let again = planned(&noted, &gone);
    assert_eq!(again.status.succeeded, Some(1));
    assert_eq!(again.make.len(), 1, "one is still wanted");
}

#[test]
fn a_job_is_complete_once_all_is_counted() {
    let job_ = job(json!({"completions": 1, "parallelism": 1}), json!({"startTime": at(1).to_string()}));
    let pods = [pod("a", "Succeeded", json!({}))];
    let plan = planned(&job_, &pods);
    assert_eq!(reasons(&plan.status), [("SuccessCriteriaMet".to_owned(), "CompletionsReached".to_owned())]);
    let status = settled(&plan, &pods);
    assert_eq!(reasons(&status)[1], ("Complete".to_owned(), "CompletionsReached".to_owned()));
    assert_eq!((status.succeeded, status.completion_time.map(|t| t.0)), (Some(1), Some(at(START_S))));
    assert!(is_finished(&job(json!({}), json!({"conditions": [{"type": "Complete", "status": "True"}]}))));
}

#[test]
fn too_many_failures_end_a_job_and_its_pods() {
    let spec = json!({"completions": 2, "parallelism": 2, "backoffLimit": 0});
    let pods = [pod("a", "Failed", json!({})), pod("b", "Running", json!({}))];
    let plan = planned(&job(spec.clone(), Value::Null), &pods);
    assert_eq!(reasons(&plan.status), [("FailureTarget".to_owned(), "BackoffLimitExceeded".to_owned())]);
    assert_eq!((plan.end.as_slice(), plan.untrack.len()), ([1].as_slice(), 2));
    let status = settled(&plan, &pods);
    assert_eq!((status.failed, reasons(&status).len()), (Some(2), 1), "it waits for the pod to be gone");
    let after = job(spec, serde_json::to_value(&status).unwrap());
    let status = settled(&planned(&after, &[]), &[]);
    assert_eq!(reasons(&status)[1], ("Failed".to_owned(), "BackoffLimitExceeded".to_owned()));
    assert_eq!(status.terminating, Some(0));
}

#[test]
fn failures_are_followed_by_growing_waits() {
    let job_ = job(json!({"completions": 1, "parallelism": 1, "backoffLimit": 6}), Value::Null);
    let first = planned(&job_, &[pod("a", "Failed", json!({}))]);
    assert_eq!((first.make.len(), first.again_s), (0, Some(10)));
    let later =
        plan(&job_, &[pod("a", "Failed", json!({"finalizers": []}))], first.backoff, at(START_S + 10));
    assert_eq!(later.make.len(), 1);
    assert_eq!(remaining_s(3, Some(at(0)), at(1)), 39);
    assert_eq!(remaining_s(30, Some(at(0)), at(0)), 600);
    assert_eq!(remaining_s(0, Some(at(0)), at(0)), 0);
}

#[test]
fn a_back_off_does_not_stand_still_when_the_clock_is_set_back_and_is_kept_where_a_nodes_clock_is_ahead() {
    let day_s = 86_400;
    let failed = pod("p", "Failed", json!({"creationTimestamp": at(START_S + day_s).to_string()}));
    let backoff = Backoff::default().after(&[], &[&failed], at(START_S));
    assert_eq!(remaining_s(backoff.n_failures, backoff.last_failure, at(START_S)), 10, "a node a day ahead");
    assert_eq!(
        remaining_s(backoff.n_failures, backoff.last_failure, at(START_S - day_s)),
        0,
        "set back a day"
    );
}

#[test]
fn a_pod_failure_policy_ends_a_job_or_lets_failures_pass() {
    let rules = |action: &str| {
        json!({"completions": 1, "backoffLimit": 0, "podFailurePolicy": {"rules": [
            {"action": action, "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]}})
    };
    let mut evicted = pod("a", "Failed", json!({}));
    let condition = json!({"type": "DisruptionTarget", "status": "True"});
    evicted.status.as_mut().unwrap().conditions = Some(vec![serde_json::from_value(condition).unwrap()]);
    let pods = [evicted];
    let failed = planned(&job(rules("FailJob"), Value::Null), &pods);
    assert_eq!(reasons(&failed.status), [("FailureTarget".to_owned(), "PodFailurePolicy".to_owned())]);
    let ignored = planned(&job(rules("Ignore"), Value::Null), &pods);
    assert!(ignored.finished.is_none() && reasons(&ignored.status).is_empty());
    assert_eq!(settled(&ignored, &pods).failed, None);
    assert_eq!(ignored.untrack, [0]);
}

#[test]
fn each_index_runs_until_it_has_succeeded() {
    let spec = json!({"completions": 4, "parallelism": 2, "completionMode": "Indexed"});
    let indexes = |plan: &Plan| plan.make.iter().filter_map(|new| new.index).collect::<Vec<_>>();
    assert_eq!(indexes(&planned(&job(spec.clone(), Value::Null), &[])), [0, 1]);
    let pods = [of_index("a", "Succeeded", 0), of_index("b", "Running", 1), of_index("x", "Running", 9)];
    let plan = planned(&job(spec.clone(), Value::Null), &pods);
    assert_eq!(plan.discard, [2], "what is of no index goes first");
    let pods = &pods[..2];
    let plan = planned(&job(spec.clone(), Value::Null), pods);
    assert_eq!(indexes(&plan), [2]);
    assert_eq!((plan.status.completed_indexes.as_deref(), plan.status.succeeded), (Some("0"), Some(1)));
    let done = job(spec, json!({"completedIndexes": "0-2", "succeeded": 3}));
    let pods = [of_index("d", "Succeeded", 3)];
    let status = settled(&planned(&done, &pods), &pods);
    assert_eq!(status.completed_indexes.as_deref(), Some("0-3"));
    assert_eq!(reasons(&status)[1].0, "Complete");
}

#[test]
fn an_index_fails_by_itself_where_limits_are_per_index() {
    let spec = json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1,
        "backoffLimit": i32::MAX});
    let first = [of_index("a", "Failed", 0), of_index("b", "Running", 1)];
    let plan = plan(&job(spec.clone(), Value::Null), &first, Backoff::default(), at(START_S + 10));
    assert_eq!(plan.make, [NewPod { index: Some(0), failures: Some((1, 0)) }]);
    assert!(plan.untrack.is_empty(), "it stays until its successor knows of its failure");
    let mut second = of_index("c", "Failed", 0);
    second.metadata.annotations.as_mut().unwrap().insert(FAILURES.into(), "1".into());
    let pods = [first[0].clone(), second, of_index("b", "Succeeded", 1)];
    let plan = planned(&job(spec, Value::Null), &pods);
    assert_eq!(plan.status.failed_indexes.as_deref(), Some("0"));
    assert_eq!(reasons(&plan.status), [("FailureTarget".to_owned(), "FailedIndexes".to_owned())]);
    let status = settled(&plan, &pods);
    assert_eq!((status.failed, status.succeeded), (Some(2), Some(1)));
    assert_eq!(reasons(&status)[1], ("Failed".to_owned(), "FailedIndexes".to_owned()));
}

#[test]
fn the_back_off_of_an_index_ends_though_its_node_is_a_day_ahead() {
    let spec = json!({"completions": 1, "parallelism": 1, "completionMode": "Indexed", "backoffLimitPerIndex": 5,
        "backoffLimit": i32::MAX});
    let job_ = job(spec, Value::Null);
    let mut failed = of_index("a", "Failed", 0);
    failed.metadata.creation_timestamp = Some(Time(at(START_S)));
    let ahead = json!([{"name": "c", "state": {"terminated": {"exitCode": 1, "finishedAt": at(START_S + 86_400).to_string()}}}]);
    failed.status.as_mut().unwrap().container_statuses = Some(serde_json::from_value(ahead).unwrap());
    let pods = [failed];
    let early = plan(&job_, &pods, Backoff::default(), at(START_S + 4));
    assert_eq!((early.make.len(), early.again_s), (0, Some(6)));
    assert_eq!(plan(&job_, &pods, Backoff::default(), at(START_S + 10)).make.len(), 1);
}

#[test]
fn a_success_policy_ends_a_job_that_still_runs() {
    let spec = json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed",
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]}});
    let pods = [of_index("a", "Succeeded", 0), of_index("b", "Running", 1)];
    let plan = planned(&job(spec, Value::Null), &pods);
    assert_eq!(reasons(&plan.status), [("SuccessCriteriaMet".to_owned(), "SuccessPolicy".to_owned())]);
    assert_eq!(plan.end, [1]);
    assert_eq!(settled(&plan, &pods).failed, None, "what was still running has not failed");
}

#[test]
fn a_suspended_job_has_no_pods_and_begins_anew() {
    let spec = json!({"completions": 1, "parallelism": 1, "suspend": true});
    let pods = [pod("a", "Running", json!({}))];
    let plan_ = planned(&job(spec, json!({"startTime": at(1).to_string()})), &pods);
    assert_eq!((plan_.discard.as_slice(), plan_.status.start_time.is_none()), ([0].as_slice(), true));
    assert_eq!(reasons(&plan_.status), [("Suspended".to_owned(), "JobSuspended".to_owned())]);
    let resumed =
        job(json!({"completions": 1, "parallelism": 1}), serde_json::to_value(&plan_.status).unwrap());
    let plan_ = planned(&resumed, &[]);
    assert_eq!((plan_.make.len(), reasons(&plan_.status)[0].1.as_str()), (1, "JobResumed"));
    assert!(plan_.status.start_time.is_some());
}

#[test]
fn time_ends_a_job_and_then_deletes_it() {
    let spec = json!({"completions": 1, "activeDeadlineSeconds": 60});
    let job_ = job(spec.clone(), json!({"startTime": at(START_S - 20).to_string()}));
    assert_eq!(planned(&job_, &[]).again_s, Some(40));
    let late = job(spec, json!({"startTime": at(START_S - 60).to_string()}));
    assert_eq!(reasons(&planned(&late, &[]).status)[0].1, "DeadlineExceeded");
    let ended = json!({"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": at(100).to_string()}]});
    let ended = job(json!({"ttlSecondsAfterFinished": 30}), ended);
    assert_eq!(ttl(&ended, at(110)), Some(Duration::from_secs(20)));
    assert_eq!(ttl(&ended, at(140)), Some(Duration::ZERO));
    assert_eq!(ttl(&job_, at(140)), None);
}
