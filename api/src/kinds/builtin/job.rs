//! Jobs: how often a template is to succeed, and what becomes of pods that fail.
//!
//! Source: upstream's `pkg/apis/batch/validation` and the strategy of Jobs. Rules are checked in upstream's order.

mod policies;

use serde_json::{Value, json};

use super::{not_negative, pod, same_field};
use crate::strategy::Strategy;
use crate::table::cell::{int_at, items_at, str_at};
use crate::{Cause, LabelSelector, Object, name};
use policies::{validate_failure_policy, validate_success_policy};

pub(super) struct Jobs;

const SPEC: &str = "io.k8s.api.batch.v1.JobSpec";
const INDEXED: &str = "Indexed";
const IMMUTABLE: &str = "field is immutable";
/// Bounds of jobs with indexes: lists of those that are done, or that failed, must fit into a status.
const MAX_PARALLELISM: i64 = 100_000;
const MAX_FAILED_INDEXES: i64 = 100_000;
/// A job with more completions than this and its own limit for each index is bounded further.
const MANY_COMPLETIONS: i64 = 100_000;
const MAX_OF_MANY: i64 = 10_000;
const MAX_MANAGED_BY_BYTES: usize = 63;

const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
/// The labels by which a job knows its pods, without and with the prefix that older versions did not have; and of what in
/// its metadata they are.
const LABELS: [(&str, &str); 4] = [
    ("controller-uid", "uid"),
    ("job-name", "name"),
    (UID_LABEL, "uid"),
    ("batch.kubernetes.io/job-name", "name"),
];

impl Strategy for Jobs {
    fn default(&self, object: &mut Object) {
        let labels = object["spec"]["template"]["metadata"]["labels"].clone();
        if labels.is_object() && object["metadata"]["labels"].as_object().is_none_or(|l| l.is_empty()) {
            object["metadata"]["labels"] = labels;
        }
        default_spec(&mut object["spec"]);
    }

    /// A job that does not choose its own selector gets one over its UID. What it says of that itself stays, and is
    /// refused if it is wrong.
    fn prepare_create(&self, object: &mut Object) {
        object["status"] = json!({});
        if object["spec"]["manualSelector"] == true {
            return;
        }
        // Labels that a job has of its template are one with them, as upstream's are.
        let own = object["metadata"]["labels"].clone();
        let is_shared = own.is_null() || own == object["spec"]["template"]["metadata"]["labels"];
        let wanted = generated_labels(object);
        let labels = &mut object["spec"]["template"]["metadata"]["labels"];
        for (key, value) in wanted {
            if labels[key].is_null() {
                labels[key] = value;
            }
        }
        if is_shared {
            object["metadata"]["labels"] = object["spec"]["template"]["metadata"]["labels"].clone();
        }
        let uid = object["metadata"]["uid"].clone();
        let selected = &mut object["spec"]["selector"]["matchLabels"][UID_LABEL];
        if selected.is_null() {
            *selected = uid;
        }
    }

    fn validate(&self, object: &Object) -> Vec<Cause> {
        let spec = &object["spec"];
        let mut causes = validate_generated(object);
        causes.extend(validate_spec(spec, "spec"));
        causes.extend(validate_selector(spec));
        let last = int_at(spec, "/completions") - 1;
        if spec["completionMode"] == INDEXED && last >= 0 {
            let own = &object["metadata"]["name"];
            let host = format!("{}-{last}", str_at(own, ""));
            if name::dns_label_fault(&host).is_some() {
                let why = format!("will not able to create pod with invalid DNS label: {host}");
                causes.push(Cause::invalid("metadata.name", own, &why));
            }
        }
        causes
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let (spec, was) = (&new["spec"], &old["spec"]);
        let differs = |field: &str| !same_field(SPEC, field, &spec[field], &was[field]);
        let immutable = |field: &str| {
            differs(field).then(|| Cause::invalid(format!("spec.{field}"), &spec[field], IMMUTABLE))
        };
        let mut causes = Vec::new();
        if spec["completionMode"] != INDEXED {
            causes.extend(immutable("completions"));
        } else if differs("completions")
            && !spec["completions"].is_null()
            && spec["completions"] != spec["parallelism"]
        {
            let why = "can only be modified in tandem with spec.parallelism";
            causes.push(Cause::invalid("spec.completions", &spec["completions"], why));
        }
        causes.extend(immutable("selector"));
        causes.extend(validate_template_update(new, old));
        let fixed =
            ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"];
        causes.extend(fixed.into_iter().filter_map(immutable));
        causes
    }
}

/// One completion by one pod, unless the job says how many of either.
/// Only of a Job itself: in a CronJob's template nothing is filled in.
fn default_spec(spec: &mut Value) {
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

fn generated_labels(object: &Object) -> impl Iterator<Item = (&'static str, Value)> + use<> {
    let meta = object["metadata"].clone();
    LABELS.into_iter().map(move |(key, of)| (key, str_at(&meta[of], "").into()))
}

/// Where the selector is not the client's, the pods must be known by the job's UID and name.
fn validate_generated(object: &Object) -> Vec<Cause> {
    let spec = &object["spec"];
    if spec["manualSelector"] == true || spec["selector"].is_null() {
        return Vec::new();
    }
    let labels = &spec["template"]["metadata"]["labels"];
    let mut causes = Vec::new();
    for (key, wanted) in generated_labels(object) {
        let field = format!("spec.template.metadata.labels[{key}]");
        let why = format!("must be '{}'", str_at(&wanted, ""));
        match &labels[key] {
            Value::Null => causes.push(Cause::required(field, &why)),
            value if *value != wanted => causes.push(Cause::invalid(field, labels, &why)),
            _ => {}
        }
    }
    let expected: Vec<_> = generated_labels(object).collect();
    let value = |key: &str| expected.iter().find(|(k, _)| *k == key).and_then(|(_, value)| value.as_str());
    if LabelSelector::from_json(&spec["selector"]).is_ok_and(|selector| !selector.matches(value)) {
        causes.push(Cause::invalid("spec.selector", &spec["selector"], "`selector` not auto-generated"));
    }
    causes
}

fn validate_selector(spec: &Value) -> Vec<Cause> {
    let (selector, labels) = (&spec["selector"], &spec["template"]["metadata"]["labels"]);
    let mut causes = Vec::new();
    if selector.is_null() {
        causes.push(Cause::required("spec.selector", ""));
    }
    match LabelSelector::from_json(selector) {
        Ok(parsed) if parsed.matches(|key| labels[key].as_str()) => {}
        Ok(_) => {
            let why = "`selector` does not match template `labels`";
            causes.push(Cause::invalid("spec.template.metadata.labels", labels, why));
        }
        Err(error) => causes.push(Cause::invalid("spec.selector", selector, &error.message)),
    }
    causes
}

/// The spec of a Job, or of the template of one.
pub(super) fn validate_spec(spec: &Value, path: &str) -> Vec<Cause> {
    let numbers = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    let mut causes = not_negative(spec, path, &numbers);
    if !spec["maxFailedIndexes"].is_null() && spec["backoffLimitPerIndex"].is_null() {
        let field = format!("{path}.backoffLimitPerIndex");
        causes.push(Cause::required(field, "when maxFailedIndexes is specified"));
    }
    causes.extend(validate_manager(&spec["managedBy"], &format!("{path}.managedBy")));
    causes.extend(validate_completion_mode(spec, path));
    if !spec["podFailurePolicy"].is_null() {
        causes.extend(validate_failure_policy(spec, &format!("{path}.podFailurePolicy")));
    }
    let success = &spec["successPolicy"];
    if !success.is_null() {
        let field = format!("{path}.successPolicy");
        if spec["completionMode"] == INDEXED {
            causes.extend(validate_success_policy(success, int_at(spec, "/completions"), &field));
        } else {
            causes.push(Cause::invalid(field, success, "requires indexed completion mode"));
        }
    }
    causes.extend(validate_replacement(spec, &format!("{path}.podReplacementPolicy")));
    causes.extend(pod::validate_template(&spec["template"], &format!("{path}.template")));
    causes.extend(validate_restart_policy(spec, &format!("{path}.template.spec.restartPolicy")));
    causes
}

/// Who is to look after the job, if not the job controller.
fn validate_manager(value: &Value, field: &str) -> Vec<Cause> {
    let Some(manager) = value.as_str() else { return Vec::new() };
    let mut causes = Vec::new();
    match manager.split_once('/') {
        _ if manager.is_empty() => causes.push(Cause::required(field, "")),
        Some((domain, path)) if !domain.is_empty() && !path.is_empty() => {
            if let Some(fault) = name::dns_subdomain_fault(domain) {
                causes.push(Cause::invalid(field, &json!(domain), &fault));
            }
            if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
                let why = r"Invalid path (regex used for validation is '[A-Za-z0-9/\-._~%!$&'()*+,;=:]+')";
                causes.push(Cause::invalid(field, &json!(path), why));
            }
        }
        _ => {
            let why = r#"must be a domain-prefixed path (such as "acme.io/foo")"#;
            causes.push(Cause::invalid(field, value, why));
        }
    }
    if manager.len() > MAX_MANAGED_BY_BYTES {
        causes.push(Cause::too_long(field, MAX_MANAGED_BY_BYTES));
    }
    causes
}

fn validate_completion_mode(spec: &Value, path: &str) -> Vec<Cause> {
    let mode = &spec["completionMode"];
    let mut causes = Vec::new();
    match mode.as_str() {
        Some(INDEXED) => causes.extend(validate_indexed(spec, path)),
        None | Some("NonIndexed") => {
            for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
                if !spec[field].is_null() {
                    let why = "requires indexed completion mode";
                    causes.push(Cause::invalid(format!("{path}.{field}"), &spec[field], why));
                }
            }
        }
        _ => {
            let field = format!("{path}.completionMode");
            causes.push(Cause::not_supported(field, mode, &["NonIndexed", INDEXED]));
        }
    }
    causes
}

fn validate_indexed(spec: &Value, path: &str) -> Vec<Cause> {
    let at = |field: &str| format!("{path}.{field}");
    let number = |field: &str| spec[field].as_i64();
    let above = |field: &str, most: i64| number(field).is_some_and(|n| n > most);
    let refused = |field: &str, why: &str| Cause::invalid(at(field), &spec[field], why);
    let mut causes = Vec::new();
    if spec["completions"].is_null() {
        causes.push(Cause::required(at("completions"), "when completion mode is Indexed"));
    }
    if above("parallelism", MAX_PARALLELISM) {
        let why = format!("must be less than or equal to {MAX_PARALLELISM} when completion mode is Indexed");
        causes.push(refused("parallelism", &why));
    }
    if number("completions").is_some_and(|all| above("maxFailedIndexes", all)) {
        causes.push(refused("maxFailedIndexes", "must be less than or equal to completions"));
    }
    if above("maxFailedIndexes", MAX_FAILED_INDEXES) {
        causes.push(refused(
            "maxFailedIndexes",
            &format!("must be less than or equal to {MAX_FAILED_INDEXES}"),
        ));
    }
    if above("completions", MANY_COMPLETIONS) && !spec["backoffLimitPerIndex"].is_null() {
        if spec["maxFailedIndexes"].is_null() {
            let why = format!("must be specified when completions is above {MANY_COMPLETIONS}");
            causes.push(Cause::required(at("maxFailedIndexes"), &why));
        }
        let why = format!(
            "must be less than or equal to {MAX_OF_MANY} when completions are above {MANY_COMPLETIONS} and used with \
             backoff limit per index"
        );
        for field in ["parallelism", "maxFailedIndexes"] {
            if above(field, MAX_OF_MANY) {
                causes.push(refused(field, &why));
            }
        }
    }
    causes
}

fn validate_replacement(spec: &Value, field: &str) -> Option<Cause> {
    let policy = spec["podReplacementPolicy"].as_str()?;
    let known: &[&str] =
        if spec["podFailurePolicy"].is_null() { &["Failed", "TerminatingOrFailed"] } else { &["Failed"] };
    (!known.contains(&policy)).then(|| Cause::not_supported(field, &spec["podReplacementPolicy"], known))
}

fn validate_restart_policy(spec: &Value, field: &str) -> Option<Cause> {
    let policy = &spec["template"]["spec"]["restartPolicy"];
    match str_at(policy, "") {
        "" | "Always" => Some(Cause::required(field, r#"valid values: "OnFailure", "Never""#)),
        "OnFailure" if !spec["podFailurePolicy"].is_null() => {
            let why = r#"only "Never" is supported when podFailurePolicy is specified"#;
            Some(Cause::invalid(field, policy, why))
        }
        "OnFailure" | "Never" => None,
        _ => Some(Cause::not_supported(field, policy, &["OnFailure", "Never"])),
    }
}

/// A job that is suspended and has no pods may change what says where its pods go and what they need.
fn validate_template_update(new: &Object, old: &Object) -> Option<Cause> {
    let (template, was) = (&new["spec"]["template"], &old["spec"]["template"]);
    let differ = |a: &Value, b: &Value| !same_field(SPEC, "template", a, b);
    if !may_change_template(old) {
        return differ(template, was).then(|| Cause::invalid("spec.template", template, IMMUTABLE));
    }
    let (spec, mut allowed) = (&template["spec"], was["spec"].clone());
    allow_node_affinity(&mut allowed, &spec["affinity"]);
    for field in ["nodeSelector", "tolerations", "schedulingGates"] {
        allowed[field] = spec[field].clone();
    }
    for list in ["containers", "initContainers"] {
        let (now, before) = (spec[list].as_array(), allowed[list].as_array_mut());
        let (Some(now), Some(before)) = (now, before) else { continue };
        let pairs = now.iter().zip(before).filter(|(now, before)| now["name"] == before["name"]);
        pairs.for_each(|(now, before)| before["resources"] = now["resources"].clone());
    }
    let differ = differ(&json!({"spec": spec}), &json!({"spec": allowed}));
    differ.then(|| Cause::invalid("spec.template.spec", spec, IMMUTABLE))
}

/// Takes over the part of an affinity that is about nodes; an affinity of no other part may also go.
fn allow_node_affinity(allowed: &mut Value, affinity: &Value) {
    if allowed["affinity"].is_null() && affinity.is_null() {
        return;
    }
    allowed["affinity"]["nodeAffinity"] = affinity["nodeAffinity"].clone();
    let is_empty = |value: &Value| value.as_object().is_none_or(|parts| parts.values().all(Value::is_null));
    if affinity.is_null() && is_empty(&allowed["affinity"]) {
        allowed["affinity"] = Value::Null;
    }
}

fn may_change_template(job: &Object) -> bool {
    let is_suspended = |condition: &Value| condition["type"] == "Suspended" && condition["status"] == "True";
    let has_stopped = items_at(job, "/status/conditions").iter().any(is_suspended);
    job["spec"]["suspend"] == true
        && (job["status"]["startTime"].is_null() || has_stopped)
        && int_at(job, "/status/active") == 0
}

#[cfg(test)]
mod tests;
