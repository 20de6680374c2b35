//! Workloads: apps and batch.

use serde_json::{Value, json};

use super::cron::CronJobs;
use super::job::Jobs;
use super::stateful::StatefulSets;
use super::{kind, not_negative, pod, rules};
use crate::strategy::Strategy;
use crate::table::Column;
use crate::table::cell::{
    self, condition, containers, count, duration, int, int_at, items_at, labels, seconds, selector, since,
    str_at, text, text_or,
};
use crate::{Cause, Kind, Object};

pub(super) fn kinds() -> Vec<Kind> {
    vec![
        kind("apps", "v1", "ControllerRevision", "controllerrevisions").columns(vec![
            Column::name(),
            Column::new("Controller", "string", |o, _| owner(o)),
            Column::new("Revision", "string", |o, _| int(o, "/revision")),
            Column::age(),
        ]),
        kind("apps", "v1", "DaemonSet", "daemonsets")
            .short(&["ds"])
            .category("all")
            .subresources(&["status"])
            .strategy(&Workload { name: "daemonset" })
            .columns(daemon_set_columns()),
        kind("apps", "v1", "Deployment", "deployments")
            .short(&["deploy"])
            .category("all")
            .subresources(&["scale", "status"])
            .strategy(&Workload { name: "deployment" })
            .columns(deployment_columns()),
        kind("apps", "v1", "ReplicaSet", "replicasets")
            .short(&["rs"])
            .category("all")
            .subresources(&["scale", "status"])
            .fields(&["status.replicas"])
            .strategy(&Workload { name: "replicaset" })
            .columns(replica_set_columns()),
        kind("apps", "v1", "StatefulSet", "statefulsets")
            .short(&["sts"])
            .category("all")
            .subresources(&["scale", "status"])
            .strategy(&StatefulSets)
            .columns(stateful_set_columns()),
    ]
}

pub(super) fn batch() -> Vec<Kind> {
    vec![
        kind("batch", "v1", "CronJob", "cronjobs")
            .short(&["cj"])
            .category("all")
            .subresources(&["status"])
            .strategy(&CronJobs)
            .columns(cron_job_columns()),
        kind("batch", "v1", "Job", "jobs")
            .category("all")
            .subresources(&["status"])
            .fields(&["status.successful"])
            .strategy(&Jobs)
            .columns(job_columns()),
    ]
}

const POD: &str = "/spec/template/spec";

/// The wide columns of everything with a pod template and a selector.
fn template_columns() -> [Column; 3] {
    [
        Column::new("Containers", "string", |o, _| containers(o, POD, "name")).wide(),
        Column::new("Images", "string", |o, _| containers(o, POD, "image")).wide(),
        Column::new("Selector", "string", |o, _| selector(o, "/spec/selector")).wide(),
    ]
}

fn with_template(mut columns: Vec<Column>) -> Vec<Column> {
    columns.extend(template_columns());
    columns
}

fn deployment_columns() -> Vec<Column> {
    with_template(vec![
        Column::name(),
        Column::new("Ready", "string", |o, _| ready_of_desired(o)),
        Column::new("Up-to-date", "string", |o, _| int(o, "/status/updatedReplicas")),
        Column::new("Available", "string", |o, _| int(o, "/status/availableReplicas")),
        Column::age(),
    ])
}

fn ready_of_desired(object: &Object) -> Value {
    format!("{}/{}", int_at(object, "/status/readyReplicas"), int_at(object, "/spec/replicas")).into()
}

fn replica_set_columns() -> Vec<Column> {
    with_template(vec![
        Column::name(),
        Column::new("Desired", "integer", |o, _| int(o, "/spec/replicas")),
        Column::new("Current", "integer", |o, _| int(o, "/status/replicas")),
        Column::new("Ready", "integer", |o, _| int(o, "/status/readyReplicas")),
        Column::age(),
    ])
}

fn daemon_set_columns() -> Vec<Column> {
    with_template(vec![
        Column::name(),
        Column::new("Desired", "integer", |o, _| int(o, "/status/desiredNumberScheduled")),
        Column::new("Current", "integer", |o, _| int(o, "/status/currentNumberScheduled")),
        Column::new("Ready", "integer", |o, _| int(o, "/status/numberReady")),
        Column::new("Up-to-date", "integer", |o, _| int(o, "/status/updatedNumberScheduled")),
        Column::new("Available", "integer", |o, _| int(o, "/status/numberAvailable")),
        Column::new("Node Selector", "string", |o, _| labels(o, "/spec/template/spec/nodeSelector")),
        Column::age(),
    ])
}

fn stateful_set_columns() -> Vec<Column> {
    let [containers, images, _] = template_columns();
    vec![
        Column::name(),
        Column::new("Ready", "string", |o, _| ready_of_desired(o)),
        Column::age(),
        containers,
        images,
    ]
}

fn job_columns() -> Vec<Column> {
    with_template(vec![
        Column::name(),
        Column::new("Status", "string", |o, _| job_status(o).into()),
        Column::new("Completions", "string", |o, _| completions(o).into()),
        Column::new("Duration", "string", job_duration),
        Column::age(),
    ])
}

fn job_status(job: &Object) -> &'static str {
    let holds = |type_| condition(job, type_).is_some_and(|c| c["status"] == "True");
    if holds("Complete") {
        "Complete"
    } else if holds("Failed") {
        "Failed"
    } else if !job["metadata"]["deletionTimestamp"].is_null() {
        "Terminating"
    } else if holds("Suspended") {
        "Suspended"
    } else if holds("FailureTarget") {
        "FailureTarget"
    } else if holds("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn completions(job: &Object) -> String {
    let succeeded = int_at(job, "/status/succeeded");
    match (job["spec"]["completions"].as_i64(), int_at(job, "/spec/parallelism")) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, parallelism @ 2..) => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn job_duration(job: &Object, now_s: i64) -> Value {
    let Some(start) = seconds(str_at(job, "/status/startTime")) else { return "".into() };
    duration(seconds(str_at(job, "/status/completionTime")).unwrap_or(now_s) - start).into()
}

fn cron_job_columns() -> Vec<Column> {
    const JOB_POD: &str = "/spec/jobTemplate/spec/template/spec";
    vec![
        Column::name(),
        Column::new("Schedule", "string", |o, _| text(o, "/spec/schedule")),
        Column::new("Timezone", "string", |o, _| text_or(o, "/spec/timeZone", cell::NONE)),
        Column::new("Suspend", "boolean", |o, _| {
            // A word all the same.
            if o["spec"]["suspend"] == true { "True" } else { "False" }.into()
        }),
        Column::new("Active", "integer", |o, _| count(o, "/status/active").into()),
        Column::new("Last Schedule", "string", |o, now| match str_at(o, "/status/lastScheduleTime") {
            "" => cell::NONE.into(),
            _ => since(o, "/status/lastScheduleTime", now),
        }),
        Column::age(),
        Column::new("Containers", "string", |o, _| containers(o, JOB_POD, "name")).wide(),
        Column::new("Images", "string", |o, _| containers(o, JOB_POD, "image")).wide(),
        Column::new("Selector", "string", |o, _| selector(o, "/spec/jobTemplate/spec/selector")).wide(),
    ]
}

fn owner(object: &Object) -> Value {
    let controller = items_at(object, "/metadata/ownerReferences").iter().find(|r| r["controller"] == true);
    let Some(reference) = controller else { return cell::NONE.into() };
    let group = str_at(reference, "/apiVersion").split_once('/').map_or("", |(group, _)| group);
    let kind = str_at(reference, "/kind").to_lowercase();
    let name = str_at(reference, "/name");
    if group.is_empty() { format!("{kind}/{name}").into() } else { format!("{kind}.{group}/{name}").into() }
}

/// Deployments, ReplicaSets and DaemonSets: a selector and a pod template.
struct Workload {
    name: &'static str,
}

impl Strategy for Workload {
    fn default(&self, object: &mut Object) {
        let strategy = match self.name {
            "deployment" => Some(("strategy", json!({"maxUnavailable": "25%", "maxSurge": "25%"}))),
            "daemonset" => Some(("updateStrategy", json!({"maxUnavailable": 1, "maxSurge": 0}))),
            _ => None,
        };
        if let Some((field, rolling)) = strategy
            && object["spec"][field]["type"] == "RollingUpdate"
        {
            for (key, value) in rolling.as_object().into_iter().flatten() {
                if object["spec"][field]["rollingUpdate"][key].is_null() {
                    object["spec"][field]["rollingUpdate"][key] = value.clone();
                }
            }
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        object["status"] = json!({});
        if self.name == "daemonset" {
            let generation = template_generation(object);
            set_template_generation(object, generation.max(1));
        }
    }

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        if self.name == "daemonset" {
            let has_changed = new["spec"]["template"] != old["spec"]["template"];
            let generation = template_generation(old).saturating_add(i64::from(has_changed));
            set_template_generation(new, generation);
        }
    }

    fn prepare_status_update(&self, new: &mut Object, old: &Object) {
        if self.name == "daemonset" {
            set_template_generation(new, template_generation(old));
        }
    }

    fn validate(&self, object: &Object) -> Vec<Cause> {
        let kind = if self.name == "daemonset" { "daemonset" } else { "deployment" };
        let mut causes = pod::validate_selector(object, kind);
        let spec = &object["spec"];
        let numbers = ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"];
        causes.extend(not_negative(spec, "spec", &numbers));
        if self.name == "daemonset" || rules::is_selector(&spec["selector"]) {
            causes.extend(self.validate_template(spec));
        }
        match self.name {
            "deployment" => causes.extend(validate_deployment_strategy(&spec["strategy"])),
            "daemonset" => causes.extend(validate_daemon_set(spec)),
            _ => {}
        }
        causes
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        pod::immutable_selector(new, old)
    }
}

impl Workload {
    fn validate_template(&self, spec: &Value) -> Vec<Cause> {
        let mut causes = pod::validate_template(&spec["template"], "spec.template");
        let policy = &spec["template"]["spec"]["restartPolicy"];
        if policy != "Always" && !policy.is_null() {
            let field = "spec.template.spec.restartPolicy";
            causes.push(Cause::not_supported(field, policy, &["Always"]));
        }
        if self.name != "daemonset" && !spec["template"]["spec"]["activeDeadlineSeconds"].is_null() {
            let field = "spec.template.spec.activeDeadlineSeconds";
            causes.push(Cause::forbidden(field, "activeDeadlineSeconds in ReplicaSet is not Supported"));
        }
        causes
    }
}

/// How often the template has changed, as clients of a version before `apps/v1` knew it.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn template_generation(object: &Object) -> i64 {
    let annotation = object["metadata"]["annotations"][TEMPLATE_GENERATION].as_str();
    annotation.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn set_template_generation(object: &mut Object, generation: i64) {
    object["metadata"]["annotations"][TEMPLATE_GENERATION] = generation.to_string().into();
}

fn validate_daemon_set(spec: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if !spec["template"]["spec"]["activeDeadlineSeconds"].is_null() {
        let field = "spec.template.spec.activeDeadlineSeconds";
        causes.push(Cause::forbidden(field, "activeDeadlineSeconds in DaemonSet is not Supported"));
    }
    let path = "spec.updateStrategy";
    let strategy = &spec["updateStrategy"];
    let rolling = &strategy["rollingUpdate"];
    match str_at(strategy, "/type") {
        "OnDelete" => {}
        "RollingUpdate" if rolling.is_null() => {
            causes.push(Cause::required(format!("{path}.rollingUpdate"), ""));
        }
        "RollingUpdate" => causes.extend(validate_daemon_rollout(rolling, &format!("{path}.rollingUpdate"))),
        _ => causes.push(Cause::not_supported(path, strategy, &["RollingUpdate", "OnDelete"])),
    }
    causes
}

/// Either so many fewer pods, or so many more, while a template is rolled out.
fn validate_daemon_rollout(rolling: &Value, path: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    for field in ["maxUnavailable", "maxSurge"] {
        let (value, field) = (&rolling[field], format!("{path}.{field}"));
        causes.extend(int_or_percent(value, &field));
        causes.extend(not_more_than_all(value, &field));
    }
    // A text that is no share counts as the number that it is, or as none.
    let is_some = |field: &str| match &rolling[field] {
        Value::Null => false,
        Value::String(text) => {
            let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
            digits.unwrap_or(text).parse::<i64>().is_ok_and(|number| number != 0)
        }
        number => number != 0,
    };
    match (is_some("maxUnavailable"), is_some("maxSurge")) {
        (true, true) => {
            let why = "may not be set when maxUnavailable is non-zero";
            causes.push(Cause::invalid(format!("{path}.maxSurge"), &rolling["maxSurge"], why));
        }
        (false, false) => {
            causes.push(Cause::required(format!("{path}.maxUnavailable"), "cannot be 0 when maxSurge is 0"));
        }
        _ => {}
    }
    causes
}

/// A count of pods, or a share of all.
pub(super) fn int_or_percent(value: &Value, field: &str) -> Option<Cause> {
    let Some(text) = value.as_str() else {
        let is_negative = value.as_i64().is_some_and(|n| n < 0);
        return is_negative.then(|| Cause::invalid(field, value, "must be greater than or equal to 0"));
    };
    let is_percent =
        text.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
               regex used for validation is '[0-9]+%')";
    (!is_percent).then(|| Cause::invalid(field, value, why))
}

pub(super) fn not_more_than_all(value: &Value, field: &str) -> Option<Cause> {
    let percent = value.as_str().and_then(|text| text.strip_suffix('%'));
    let is_more = percent.is_some_and(|n| n.parse().map_or(!n.is_empty(), |n: u64| n > 100));
    is_more.then(|| Cause::invalid(field, value, "must not be greater than 100%"))
}

pub(super) fn is_zero(int_or_percent: &Value) -> bool {
    int_or_percent == &json!(0) || int_or_percent == "0%"
}

fn validate_deployment_strategy(strategy: &Value) -> Vec<Cause> {
    let path = "spec.strategy";
    let rolling = &strategy["rollingUpdate"];
    match str_at(strategy, "/type") {
        "Recreate" if !rolling.is_null() => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            vec![Cause::forbidden(format!("{path}.rollingUpdate"), why)]
        }
        "RollingUpdate" => {
            let unavailable = format!("{path}.rollingUpdate.maxUnavailable");
            let mut causes = Vec::new();
            causes.extend(int_or_percent(&rolling["maxUnavailable"], &unavailable));
            causes.extend(int_or_percent(&rolling["maxSurge"], &format!("{path}.rollingUpdate.maxSurge")));
            if is_zero(&rolling["maxUnavailable"]) && is_zero(&rolling["maxSurge"]) {
                let why = "may not be 0 when `maxSurge` is 0";
                causes.push(Cause::invalid(&unavailable, &rolling["maxUnavailable"], why));
            }
            causes.extend(not_more_than_all(&rolling["maxUnavailable"], &unavailable));
            causes
        }
        "Recreate" => Vec::new(),
        _ => vec![Cause::not_supported(path, &strategy["type"], &["Recreate", "RollingUpdate"])],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAEMONS: Workload = Workload { name: "daemonset" };

    fn daemon_set(update_strategy: Value) -> Object {
        let pod = json!({"restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]});
        let template = json!({"metadata": {"labels": {"a": "1"}}, "spec": pod});
        json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "1"}}, "template": template,
            "updateStrategy": update_strategy}})
    }

    #[track_caller]
    fn check(rolling: Value, refused: &[(&str, &str)]) {
        let causes =
            DAEMONS.validate(&daemon_set(json!({"type": "RollingUpdate", "rollingUpdate": rolling})));
        let of = |field: &str| {
            causes.iter().find(|c| c.field == format!("spec.updateStrategy.rollingUpdate.{field}"))
        };
        assert_eq!(causes.len(), refused.len(), "{causes:?}");
        for (field, words) in refused {
            assert!(of(field).is_some_and(|c| c.message.contains(words)), "{field}: {words}: {causes:?}");
        }
    }

    #[test]
    fn a_rollout_of_daemons_has_either_fewer_pods_or_more() {
        check(json!({"maxUnavailable": 1, "maxSurge": 0}), &[]);
        check(json!({"maxUnavailable": "0%", "maxSurge": "30%"}), &[]);
        check(
            json!({"maxUnavailable": 1, "maxSurge": 1}),
            &[("maxSurge", "may not be set when maxUnavailable is non-zero")],
        );
        check(
            json!({"maxUnavailable": 0, "maxSurge": 0}),
            &[("maxUnavailable", "cannot be 0 when maxSurge is 0")],
        );
        check(json!({"maxUnavailable": "101%"}), &[("maxUnavailable", "must not be greater than 100%")]);
        check(json!({"maxUnavailable": "1"}), &[("maxUnavailable", "a valid percent string")]);
        let both = ["a valid percent string", "cannot be 0 when maxSurge is 0"];
        let causes = DAEMONS.validate(&daemon_set(
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "many"}}),
        ));
        assert!(causes.iter().zip(both).all(|(cause, words)| cause.message.contains(words)), "{causes:?}");
        check(json!({"maxUnavailable": -1}), &[("maxUnavailable", "must be greater than or equal to 0")]);
    }

    #[test]
    fn the_template_generation_counts_templates_and_nothing_else() {
        let generation = |o: &Object| o["metadata"]["annotations"][TEMPLATE_GENERATION].clone();
        let mut old = daemon_set(json!({"type": "OnDelete"}));
        DAEMONS.prepare_create(&mut old);
        assert_eq!(generation(&old), "1");
        let mut same = daemon_set(json!({"type": "RollingUpdate"}));
        DAEMONS.prepare_update(&mut same, &old);
        assert_eq!(generation(&same), "1", "a client that does not know it does not take it away");
        let mut other = daemon_set(json!({"type": "OnDelete"}));
        other["spec"]["template"]["spec"]["hostNetwork"] = true.into();
        DAEMONS.prepare_update(&mut other, &old);
        assert_eq!(generation(&other), "2");
    }
}
