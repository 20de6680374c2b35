//! Workloads: apps and batch.

use serde_json::{Value, json};

use super::{kind, pod};
use crate::strategy::Strategy;
use crate::table::Column;
use crate::table::cell::{
    self, bool_text, condition, containers, count, duration, int, int_at, items_at, labels, seconds,
    selector, since, str_at, text, text_or,
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
            .strategy(&Workload { name: "statefulset" })
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
        Column::new("Suspend", "string", |o, _| {
            let text = bool_text(o, "/spec/suspend");
            if text == "true" { "True".into() } else { "False".into() }
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

/// Deployments, ReplicaSets, DaemonSets and StatefulSets: a selector and a pod template.
struct Workload {
    name: &'static str,
}

impl Strategy for Workload {
    fn default(&self, object: &mut Object) {
        let strategy = match self.name {
            "deployment" => Some(("strategy", json!({"maxUnavailable": "25%", "maxSurge": "25%"}))),
            "daemonset" => Some(("updateStrategy", json!({"maxUnavailable": 1, "maxSurge": 0}))),
            "statefulset" => Some(("updateStrategy", json!({"partition": 0}))),
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
        pod::default_template(object, "/spec/template");
    }

    fn prepare_create(&self, object: &mut Object) {
        object["status"] = json!({});
    }

    fn validate(&self, object: &Object) -> Vec<Cause> {
        let mut causes = pod::validate_selector(object);
        let spec = &object["spec"];
        for field in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
            if spec[field].as_i64().is_some_and(|n| n < 0) {
                let why = "must be greater than or equal to 0";
                causes.push(Cause::invalid(format!("spec.{field}"), &spec[field], why));
            }
        }
        causes.extend(pod::validate_template(&spec["template"], "spec.template"));
        let policy = &spec["template"]["spec"]["restartPolicy"];
        if policy != "Always" && !policy.is_null() {
            let field = "spec.template.spec.restartPolicy";
            causes.push(Cause::not_supported(field, policy, &["Always"]));
        }
        if self.name == "deployment" {
            causes.extend(validate_deployment_strategy(&spec["strategy"]));
        }
        causes
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let mut causes = pod::immutable_selector(new, old);
        if self.name == "statefulset" {
            for field in ["serviceName", "podManagementPolicy", "volumeClaimTemplates"] {
                if new["spec"][field] != old["spec"][field] {
                    causes.push(Cause::forbidden(
                        "spec",
                        "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                         'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                         'minReadySeconds' are forbidden",
                    ));
                    break;
                }
            }
        }
        causes
    }
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
            let is_zero = |v: &Value| v == &json!(0) || v == "0%";
            if is_zero(&rolling["maxUnavailable"]) && is_zero(&rolling["maxSurge"]) {
                let field = format!("{path}.rollingUpdate.maxUnavailable");
                return vec![Cause::invalid(
                    field,
                    &rolling["maxUnavailable"],
                    "may not be 0 when `maxSurge` is 0",
                )];
            }
            Vec::new()
        }
        "Recreate" => Vec::new(),
        _ => vec![Cause::not_supported(
            format!("{path}.type"),
            &strategy["type"],
            &["Recreate", "RollingUpdate"],
        )],
    }
}

struct Jobs;

impl Strategy for Jobs {
    fn default(&self, object: &mut Object) {
        let labels = object["spec"]["template"]["metadata"]["labels"].clone();
        if labels.is_object() && object["metadata"]["labels"].as_object().is_none_or(|l| l.is_empty()) {
            object["metadata"]["labels"] = labels;
        }
        default_job_spec(&mut object["spec"]);
        pod::default_template(object, "/spec/template");
    }

    /// A job that does not choose its own selector gets one over its UID.
    fn prepare_create(&self, object: &mut Object) {
        object["status"] = json!({});
        if object["spec"]["manualSelector"] == true {
            return;
        }
        let (uid, name) = (object["metadata"]["uid"].clone(), object["metadata"]["name"].clone());
        let labels = &mut object["spec"]["template"]["metadata"]["labels"];
        for (key, value) in [("controller-uid", &uid), ("job-name", &name)] {
            labels[key] = value.clone();
            labels[format!("batch.kubernetes.io/{key}")] = value.clone();
        }
        object["spec"]["selector"] = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
    }

    fn validate(&self, object: &Object) -> Vec<Cause> {
        let template = &object["spec"]["template"];
        let mut causes = pod::validate_template(template, "spec.template");
        let policy = &template["spec"]["restartPolicy"];
        if policy != "OnFailure" && policy != "Never" {
            let field = "spec.template.spec.restartPolicy";
            causes.push(Cause::not_supported(field, policy, &["OnFailure", "Never"]));
        }
        causes
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let mut causes = pod::immutable_selector(new, old);
        for field in ["completions", "template", "completionMode"] {
            if new["spec"][field] != old["spec"][field] {
                causes.push(Cause::invalid(
                    format!("spec.{field}"),
                    &new["spec"][field],
                    "field is immutable",
                ));
            }
        }
        causes
    }
}

/// One completion by one pod, unless the job says how many of either.
/// Only of a Job itself: in a CronJob's template nothing is filled in.
fn default_job_spec(spec: &mut Value) {
    let unset = |v: &Value| v.is_null();
    if unset(&spec["completions"]) && unset(&spec["parallelism"]) {
        spec["completions"] = 1.into();
    }
    let per_index = !unset(&spec["backoffLimitPerIndex"]);
    let replaces = if unset(&spec["podFailurePolicy"]) { "TerminatingOrFailed" } else { "Failed" };
    for (field, value) in [
        ("parallelism", json!(1)),
        ("backoffLimit", if per_index { json!(i32::MAX) } else { json!(6) }),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("manualSelector", json!(false)),
        ("podReplacementPolicy", json!(replaces)),
    ] {
        if unset(&spec[field]) {
            spec[field] = value;
        }
    }
}

struct CronJobs;

impl Strategy for CronJobs {
    fn default(&self, object: &mut Object) {
        pod::default_template(object, "/spec/jobTemplate/spec/template");
    }

    fn validate(&self, object: &Object) -> Vec<Cause> {
        let mut causes = Vec::new();
        if str_at(object, "/spec/schedule").is_empty() {
            causes.push(Cause::required("spec.schedule", ""));
        }
        let template = &object["spec"]["jobTemplate"]["spec"]["template"];
        causes.extend(pod::validate_template(template, "spec.jobTemplate.spec.template"));
        causes
    }
}
