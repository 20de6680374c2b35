use k8s_openapi::api::batch::v1::JobSpec;
use serde_json::{Value, json};

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Made at midnight, for every half hour; of which a test changes what it is about.
fn cron(spec: Value) -> CronJob {
    let mut cron = json!({
        "metadata": {"name": "c", "namespace": "n", "uid": "cron", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"schedule": "*/30 * * * *", "concurrencyPolicy": "Allow", "suspend": false,
            "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1,
            "jobTemplate": {"metadata": {"labels": {"l": "1"}, "annotations": {"a": "1"}},
                "spec": {"backoffLimit": 3, "template": {"spec": {"containers": []}}}}}});
    for (field, value) in spec.as_object().into_iter().flatten() {
        cron["spec"][field] = value.clone();
    }
    serde_json::from_value(cron).unwrap()
}

fn status(status: Value) -> CronJobStatus {
    serde_json::from_value(status).unwrap()
}

fn decision(spec: Value, had: Value, now: &str) -> Decision {
    decide(&cron(spec), &status(had), at(now), &TimeZone::UTC)
}

fn reasons(decision: &Decision) -> Vec<&'static str> {
    decision.told.iter().map(|(_, reason, _)| *reason).collect()
}

/// What is done, what is told of it, and in how many seconds the next time is.
#[track_caller]
fn check(spec: Value, had: Value, now: &str, action: Action, told: &[&str], next_s: Option<u64>) {
    let decision = decision(spec, had, now);
    let next = next_s.map(|s| Duration::from_secs(s) + Duration::from_millis(100));
    assert_eq!((&decision.action, reasons(&decision), decision.next), (&action, told.to_vec(), next));
}

fn start(text: &str) -> Action {
    Action::Start(at(text))
}

fn running(job: &str) -> Value {
    json!([{"name": job, "namespace": "n", "uid": job}])
}

#[test]
fn a_job_is_started_when_its_time_has_come_and_once() {
    const HALF: &str = "2026-01-01T00:30:00Z";
    check(json!({}), json!({}), "2026-01-01T00:20:00Z", Action::Nothing, &[], Some(600));
    check(json!({}), json!({}), "2026-01-01T00:30:01Z", start(HALF), &[], Some(1799));
    let had = json!({"lastScheduleTime": HALF});
    check(json!({}), had, "2026-01-01T00:30:01Z", Action::Nothing, &[], Some(1799));
    let had = json!({"active": running(&job_name(&cron(json!({})), at(HALF)))});
    check(json!({}), had, "2026-01-01T00:30:01Z", Action::Nothing, &[], Some(1799));
}

#[test]
fn of_several_times_that_were_missed_the_last_one_counts() {
    check(json!({}), json!({}), "2026-01-01T02:10:00Z", start("2026-01-01T02:00:00Z"), &[], Some(1200));
    check(
        json!({}),
        json!({}),
        "2026-01-11T02:10:00Z",
        start("2026-01-11T02:00:00Z"),
        &["TooManyMissedTimes"],
        Some(1200),
    );
    let workdays = json!({"schedule": "30 6-16/4 * * 1-5"});
    check(
        workdays,
        json!({"lastScheduleTime": "2026-01-02T14:30:00Z"}),
        "2026-01-05T11:00:00Z",
        start("2026-01-05T10:30:00Z"),
        &[],
        Some(12_600),
    );
    let every = json!({"schedule": "@every 1h"});
    check(every, json!({}), "2026-01-01T05:10:00Z", start("2026-01-01T05:00:00Z"), &[], Some(3000));
}

#[test]
fn what_came_too_long_ago_is_not_started_any_more() {
    let in_time = json!({"startingDeadlineSeconds": 60});
    check(in_time.clone(), json!({}), "2026-01-01T00:30:40Z", start("2026-01-01T00:30:00Z"), &[], Some(1760));
    check(in_time, json!({}), "2026-01-01T00:31:40Z", Action::Nothing, &[], Some(1700));
    // Within the second that the deadline is counted in.
    let missed = decision(json!({"startingDeadlineSeconds": 0}), json!({}), "2026-01-01T00:30:00Z");
    assert_eq!(missed.action, Action::Nothing);
    check(
        json!({"startingDeadlineSeconds": i64::MAX}),
        json!({}),
        "2026-01-01T00:31:00Z",
        start("2026-01-01T00:30:00Z"),
        &[],
        Some(1740),
    );
}

#[test]
fn a_time_that_was_missed_is_told_of() {
    let (cron, now) = (cron(json!({"startingDeadlineSeconds": 5})), at("2026-01-01T00:30:06Z"));
    let mut decision = Decision { told: Vec::new(), action: Action::Nothing, next: None };
    decide_on(&cron, &CronJobStatus::default(), at("2026-01-01T00:30:00Z"), now, &mut decision);
    let message = "Missed scheduled time to start a job: Thu, 01 Jan 2026 00:30:00 +0000".to_owned();
    assert_eq!(decision.told, [(EventType::Warning, "MissSchedule", message)]);
}

#[test]
fn what_is_still_running_keeps_the_next_one_waiting_or_makes_way_for_it() {
    const NOW: &str = "2026-01-01T00:30:01Z";
    let (due, had) = (at("2026-01-01T00:30:00Z"), json!({"active": running("c-1")}));
    check(json!({}), had.clone(), NOW, Action::Start(due), &[], Some(1799));
    check(json!({"concurrencyPolicy": "Replace"}), had.clone(), NOW, Action::Replace(due), &[], Some(1799));
    check(
        json!({"concurrencyPolicy": "Forbid"}),
        had,
        NOW,
        Action::Nothing,
        &["JobAlreadyActive"],
        Some(1799),
    );
    check(json!({"concurrencyPolicy": "Forbid"}), json!({}), NOW, Action::Start(due), &[], Some(1799));
}

#[test]
fn what_is_suspended_or_makes_no_sense_starts_nothing() {
    const NOW: &str = "2026-01-01T00:30:01Z";
    for (spec, told) in [
        (json!({"suspend": true}), &[][..]),
        (json!({"timeZone": "Mars/Phobos"}), &["UnknownTimeZone"]),
        (json!({"schedule": "often"}), &["UnparseableSchedule"]),
        (json!({"schedule": "0 0 31 2 *"}), &["InvalidSchedule"]),
    ] {
        check(spec, json!({}), NOW, Action::Nothing, told, None);
    }
    let mut going = cron(json!({}));
    going.metadata.deletion_timestamp = Some(Time(at(NOW)));
    assert_eq!(decide(&going, &CronJobStatus::default(), at(NOW), &TimeZone::UTC).action, Action::Nothing);
}

#[test]
fn times_are_those_of_the_zone_that_is_named() {
    let tokyo = json!({"schedule": "0 9 * * *", "timeZone": "Asia/Tokyo"});
    check(tokyo.clone(), json!({}), "2026-01-02T00:01:00Z", start("2026-01-02T00:00:00Z"), &[], Some(86_340));
    let old = json!({"schedule": "TZ=Asia/Tokyo 0 9 * * *"});
    check(
        old,
        json!({}),
        "2026-01-02T00:01:00Z",
        start("2026-01-02T00:00:00Z"),
        &["UnsupportedSchedule"],
        Some(86_340),
    );
    let annotation = |spec: Value, at: Timestamp| {
        job(&cron(spec), at).metadata.annotations.unwrap()[SCHEDULED_TIMESTAMP].clone()
    };
    assert_eq!(annotation(tokyo, at("2026-01-02T00:00:00Z")), "2026-01-02T09:00:00+09:00");
    assert_eq!(annotation(json!({}), at("2026-01-02T00:00:00Z")), "2026-01-02T00:00:00Z");
}

#[test]
fn a_job_is_named_after_its_time_and_is_of_the_template() {
    let job = job(&cron(json!({})), at("2026-01-01T00:30:00Z"));
    assert_eq!(job.metadata.name.as_deref(), Some("c-29453790"));
    assert_eq!(job.metadata.labels.unwrap()["l"], "1");
    assert_eq!(job.metadata.annotations.unwrap()["a"], "1");
    let owner = &job.metadata.owner_references.unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("CronJob", "cron", Some(true)));
    assert_eq!(job.spec.and_then(|spec: JobSpec| spec.backoff_limit), Some(3));
}

/// A Job and how it ended, if it did, having started and completed at these seconds.
fn ended(name: &str, how: Option<&str>, start_s: i64) -> Arc<Job> {
    let time = |s: i64| Timestamp::from_second(s).unwrap().to_string();
    let condition = how.map(|how| json!({"type": how, "status": "True"}));
    let completed = (how == Some("Complete")).then(|| time(start_s + 5));
    let job = json!({"metadata": {"name": name, "namespace": "n", "uid": name},
        "status": {"startTime": time(start_s), "completionTime": completed,
            "conditions": condition.into_iter().collect::<Vec<_>>()}});
    Arc::new(serde_json::from_value(job).unwrap())
}

#[test]
fn the_status_follows_what_the_jobs_have_come_to() {
    let mut status = status(json!({"active": [
        {"name": "done", "uid": "done"}, {"name": "failed", "uid": "failed"}, {"name": "runs", "uid": "runs"},
        {"name": "gone", "uid": "gone"}]}));
    let jobs = [
        ended("done", Some("Complete"), 100),
        ended("earlier", Some("Complete"), 50),
        ended("failed", Some("Failed"), 200),
        ended("runs", None, 300),
        ended("stranger", None, 400),
    ];
    let told = observe(&mut status, &jobs);
    let told: Vec<_> = told.iter().map(|(_, reason, message)| (*reason, message.as_str())).collect();
    let wanted = [
        ("SawCompletedJob", "Saw completed job: done, condition: Complete"),
        ("SawCompletedJob", "Saw completed job: failed, condition: Failed"),
        ("UnexpectedJob", "Saw a job that the controller did not create or forgot: stranger"),
    ];
    assert_eq!(told, wanted);
    let active: Vec<_> = active(&status).iter().filter_map(|active| active.name.as_deref()).collect();
    assert_eq!(active, ["runs", "gone"]);
    assert_eq!(status.last_successful_time, Some(Time(Timestamp::from_second(105).unwrap())));
    assert_eq!(unknown(&status, &jobs)[0].name.as_deref(), Some("gone"));
    forget(&mut status, "runs");
    forget(&mut status, "gone");
    assert_eq!(status.active, None);
}

#[test]
fn the_oldest_jobs_go_that_the_history_does_not_keep() {
    let jobs = [
        ended("b", Some("Complete"), 20),
        ended("a", Some("Complete"), 10),
        ended("c", Some("Complete"), 30),
        ended("x", Some("Failed"), 1),
        ended("runs", None, 0),
    ];
    let gone = |spec: Value| {
        past(&cron(spec), &jobs).iter().map(|job| job.metadata.name.clone().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(gone(json!({})), ["a", "b"]);
    assert_eq!(gone(json!({"failedJobsHistoryLimit": 0})), ["a", "b", "x"]);
    assert_eq!(gone(json!({"successfulJobsHistoryLimit": null})), Vec::<String>::new());
}
