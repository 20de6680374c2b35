//! CronJobs: a schedule and the template of a Job.

use serde_json::Value;

use super::{job, not_negative};
use crate::schedule::{Schedule, time_zone};
use crate::strategy::Strategy;
use crate::table::cell::str_at;
use crate::{Cause, Object};

pub(super) struct CronJobs;

/// Longer names would not fit into those of the Jobs, which end in the time that they are for.
const MAX_NAME_BYTES: usize = 52;

impl Strategy for CronJobs {
    fn validate(&self, object: &Object) -> Vec<Cause> {
        let spec = &object["spec"];
        let mut causes = Vec::new();
        match (str_at(spec, "/schedule"), &spec["schedule"]) {
            ("", _) => causes.push(Cause::required("spec.schedule", "")),
            (text, schedule) => {
                if let Err(fault) = Schedule::parse(text) {
                    causes.push(Cause::invalid("spec.schedule", schedule, &fault.to_string()));
                }
            }
        }
        causes.extend(not_negative(spec, "spec", &["startingDeadlineSeconds"]));
        let concurrency = &spec["concurrencyPolicy"];
        match str_at(concurrency, "") {
            "Allow" | "Forbid" | "Replace" => {}
            "" => causes.push(Cause::required("spec.concurrencyPolicy", "")),
            _ => {
                let known = ["Allow", "Forbid", "Replace"];
                causes.push(Cause::not_supported("spec.concurrencyPolicy", concurrency, &known));
            }
        }
        causes.extend(validate_template(&spec["jobTemplate"]["spec"], "spec.jobTemplate.spec"));
        let limits = ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"];
        causes.extend(not_negative(spec, "spec", &limits));
        causes
    }

    fn validate_create(&self, object: &Object) -> Vec<Cause> {
        let (spec, name) = (&object["spec"], &object["metadata"]["name"]);
        let mut causes = Vec::new();
        if str_at(spec, "/schedule").contains("TZ") {
            causes.push(Cause::invalid("spec.schedule", &spec["schedule"], NO_ZONE_IN_SCHEDULE));
        }
        causes.extend(validate_zone(&spec["timeZone"]));
        if name.as_str().is_some_and(|name| name.len() > MAX_NAME_BYTES) {
            causes.push(Cause::invalid("metadata.name", name, "must be no more than 52 characters"));
        }
        causes
    }

    /// What was written before schedules were forbidden to have a zone may keep it.
    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let (spec, old) = (&new["spec"], &old["spec"]);
        let has_zone = |spec: &Value| str_at(spec, "/schedule").contains("TZ");
        let mut causes = Vec::new();
        let why = match (has_zone(old), has_zone(spec)) {
            (true, true) if !spec["timeZone"].is_null() => {
                Some("cannot use both timeZone field and TZ or CRON_TZ in schedule")
            }
            (false, true) => Some(NO_ZONE_IN_SCHEDULE),
            _ => None,
        };
        causes.extend(why.map(|why| Cause::invalid("spec.schedule", &spec["schedule"], why)));
        if spec["timeZone"] != old["timeZone"] {
            causes.extend(validate_zone(&spec["timeZone"]));
        }
        causes
    }
}

const NO_ZONE_IN_SCHEDULE: &str = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";

fn validate_zone(zone: &Value) -> Option<Cause> {
    let name = zone.as_str()?;
    let why = match name {
        "" => "timeZone must be nil or non-empty string".to_owned(),
        _ if name.eq_ignore_ascii_case("Local") => {
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".to_owned()
        }
        _ if time_zone(name).is_none() => format!("unknown time zone {name}"),
        _ => return None,
    };
    Some(Cause::invalid("spec.timeZone", zone, &why))
}

fn validate_template(spec: &Value, path: &str) -> Vec<Cause> {
    let mut causes = job::validate_spec(spec, path);
    if !spec["selector"].is_null() {
        let why = "`selector` will be auto-generated";
        causes.push(Cause::invalid(format!("{path}.selector"), &spec["selector"], why));
    }
    if spec["manualSelector"] == true {
        let field = format!("{path}.manualSelector");
        causes.push(Cause::not_supported(field, &spec["manualSelector"], &["nil", "false"]));
    }
    causes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cron(change: Value) -> Object {
        let container = json!({"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"});
        let pod = json!({"restartPolicy": "Never", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
            "containers": [container]});
        let mut cron = json!({"metadata": {"name": "c"}, "spec": {"schedule": "*/5 * * * *",
            "concurrencyPolicy": "Allow", "jobTemplate": {"spec": {"template": {"spec": pod}}}}});
        for (path, value) in change.as_object().into_iter().flatten() {
            let (parent, field) = path.rsplit_once('/').unwrap_or(("", path));
            cron["spec"].pointer_mut(parent).unwrap()[field] = value.clone();
        }
        cron
    }

    /// What a CronJob with such a change is refused for: field and words.
    #[track_caller]
    fn check(change: Value, refused: &[(&str, &str)]) {
        let cron = cron(change);
        let causes = [CronJobs.validate(&cron), CronJobs.validate_create(&cron)].concat();
        assert_eq!(causes.len(), refused.len(), "{causes:?}");
        for (cause, (field, words)) in causes.iter().zip(refused) {
            assert!(cause.field == *field && cause.message.contains(words), "{field}: {words}: {cause:?}");
        }
    }

    #[test]
    fn a_cron_job_is_refused_for_what_would_never_run_as_meant() {
        check(json!({"schedule": "@hourly", "timeZone": "Europe/Zurich"}), &[]);
        check(json!({"schedule": ""}), &[("spec.schedule", "Required value")]);
        check(json!({"schedule": "* *"}), &[("spec.schedule", "expected exactly 5 fields, found 2: [* *]")]);
        check(json!({"schedule": "TZ=UTC * * * * *"}), &[("spec.schedule", NO_ZONE_IN_SCHEDULE)]);
        check(json!({"timeZone": "Mars/Phobos"}), &[("spec.timeZone", "unknown time zone Mars/Phobos")]);
        check(json!({"timeZone": "local"}), &[("spec.timeZone", "must be an explicit time zone")]);
        check(json!({"timeZone": ""}), &[("spec.timeZone", "must be nil or non-empty string")]);
        check(
            json!({"concurrencyPolicy": "Maybe"}),
            &[("spec.concurrencyPolicy", "supported values: \"Allow\", \"Forbid\", \"Replace\"")],
        );
        check(
            json!({"startingDeadlineSeconds": -1}),
            &[("spec.startingDeadlineSeconds", "must be greater than or equal to 0")],
        );
        let policy = "spec.jobTemplate.spec.template.spec.restartPolicy";
        check(
            json!({"/jobTemplate/spec/template/spec/restartPolicy": "Always"}),
            &[(policy, "valid values: \"OnFailure\", \"Never\"")],
        );
        check(
            json!({"/jobTemplate/spec/selector": {}}),
            &[("spec.jobTemplate.spec.selector", "`selector` will be auto-generated")],
        );
        let mut long = cron(json!({}));
        long["metadata"]["name"] = "n".repeat(53).into();
        let causes = CronJobs.validate_create(&long);
        assert!(causes[0].message.contains("must be no more than 52 characters"), "{causes:?}");
    }

    #[test]
    fn a_schedule_that_had_a_zone_may_keep_it() {
        let (zoned, plain) = (cron(json!({"schedule": "TZ=UTC * * * * *"})), cron(json!({})));
        let both = cron(json!({"schedule": "TZ=UTC * * * * *", "timeZone": "Asia/Tokyo"}));
        let refused =
            |new: &Object, old: &Object| CronJobs.validate_update(new, old).first().map(|c| c.field.clone());
        assert_eq!(refused(&zoned, &zoned), None);
        assert_eq!(refused(&plain, &zoned), None);
        assert_eq!(refused(&zoned, &plain).as_deref(), Some("spec.schedule"));
        assert_eq!(refused(&both, &zoned).as_deref(), Some("spec.schedule"));
        let unknown = cron(json!({"timeZone": "Mars/Phobos"}));
        assert_eq!(refused(&unknown, &plain).as_deref(), Some("spec.timeZone"));
        assert_eq!(refused(&unknown, &unknown), None, "zones come and go");
    }
}
