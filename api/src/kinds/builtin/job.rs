//! Jobs: how often a template is to succeed, and what becomes of pods that fail.
//!
//! Source: upstream's `pkg/apis/batch/validation` and the strategy of Jobs. Rules are checked in upstream's order.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{not_negative, pod, same_field};
use crate::strategy::Strategy;
use crate::table::cell::{int_at, items_at, str_at};
use crate::{Cause, LabelSelector, Object, name};

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
const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const MAX_MANAGED_BY_BYTES: usize = 63;
const MAX_INDEXES_BYTES: usize = 64 << 10;

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

fn validate_failure_policy(spec: &Value, path: &str) -> Vec<Cause> {
    let rules = items_at(spec, "/podFailurePolicy/rules");
    let mut causes = Vec::new();
    if rules.len() > MAX_RULES {
        causes.push(Cause::too_many(format!("{path}.rules"), rules.len(), MAX_RULES));
    }
    let of_all = ["/template/spec/containers", "/template/spec/initContainers"];
    let names: HashSet<&str> =
        of_all.iter().flat_map(|list| items_at(spec, list)).map(|c| str_at(c, "/name")).collect();
    for (at, rule) in rules.iter().enumerate() {
        let path = format!("{path}.rules[{at}]");
        let action = format!("{path}.action");
        match str_at(rule, "/action") {
            "FailIndex" if spec["backoffLimitPerIndex"].is_null() => {
                let why = "requires the backoffLimitPerIndex to be set";
                causes.push(Cause::invalid(action, &rule["action"], why));
            }
            _ => {
                causes.extend(one_of(&rule["action"], &action, &["Count", "FailIndex", "FailJob", "Ignore"]))
            }
        }
        let (codes, conditions) = (&rule["onExitCodes"], items_at(rule, "/onPodConditions"));
        if !codes.is_null() {
            causes.extend(validate_exit_codes(codes, &format!("{path}.onExitCodes"), &names));
        }
        causes.extend(validate_pod_conditions(conditions, &format!("{path}.onPodConditions")));
        let why = match (codes.is_null(), conditions.is_empty()) {
            (false, false) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (true, true) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => continue,
        };
        causes.push(Cause::invalid_together(path, why));
    }
    causes
}

fn validate_exit_codes(codes: &Value, path: &str, containers: &HashSet<&str>) -> Vec<Cause> {
    let mut causes = Vec::new();
    causes.extend(one_of(&codes["operator"], &format!("{path}.operator"), &["In", "NotIn"]));
    let container = &codes["containerName"];
    if container.as_str().is_some_and(|name| !containers.contains(name)) {
        let why = "must be one of the container or initContainer names in the pod template";
        causes.push(Cause::invalid(format!("{path}.containerName"), container, why));
    }
    let (field, values) = (format!("{path}.values"), items_at(codes, "/values"));
    match values.len() {
        0 => causes.push(Cause::invalid(&field, &codes["values"], "at least one value is required")),
        n if n > MAX_EXIT_CODES => causes.push(Cause::too_many(&field, n, MAX_EXIT_CODES)),
        _ => {}
    }
    let mut seen = HashSet::new();
    for (at, value) in values.iter().enumerate() {
        let field = format!("{field}[{at}]");
        if codes["operator"] == "In" && *value == 0 {
            causes.push(Cause::invalid(&field, value, "must not be 0 for the In operator"));
        }
        if !seen.insert(value.as_i64()) {
            causes.push(Cause::duplicate(&field, value));
        }
    }
    if !values.is_sorted_by_key(Value::as_i64) {
        causes.push(Cause::invalid(&field, &codes["values"], "must be ordered"));
    }
    causes
}

fn validate_pod_conditions(patterns: &[Value], path: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    if patterns.len() > MAX_RULES {
        causes.push(Cause::too_many(path, patterns.len(), MAX_RULES));
    }
    for (at, pattern) in patterns.iter().enumerate() {
        let path = format!("{path}[{at}]");
        if let Some(fault) = name::qualified_name_fault(str_at(pattern, "/type")) {
            causes.push(Cause::invalid(format!("{path}.type"), &pattern["type"], &fault));
        }
        let status = format!("{path}.status");
        causes.extend(one_of(&pattern["status"], &status, &["False", "True", "Unknown"]));
    }
    causes
}

/// A word that must be there, and be a known one.
fn one_of(value: &Value, field: &str, known: &[&str]) -> Option<Cause> {
    let word = str_at(value, "");
    if known.contains(&word) {
        return None;
    }
    if !word.is_empty() {
        return Some(Cause::not_supported(field, value, known));
    }
    let words: Vec<String> = known.iter().map(|word| format!("{word:?}")).collect();
    Some(Cause::required(field, &format!("valid values: [{}]", words.join(" "))))
}

fn validate_success_policy(policy: &Value, completions: i64, path: &str) -> Vec<Cause> {
    let (field, rules) = (format!("{path}.rules"), items_at(policy, "/rules"));
    let mut causes = Vec::new();
    if rules.is_empty() {
        let why = "at least one rules must be specified when the successPolicy is specified";
        causes.push(Cause::required(&field, why));
    }
    if rules.len() > MAX_RULES {
        causes.push(Cause::too_many(&field, rules.len(), MAX_RULES));
    }
    for (at, rule) in rules.iter().enumerate() {
        causes.extend(validate_success_rule(rule, completions, &format!("{field}[{at}]")));
    }
    causes
}

fn validate_success_rule(rule: &Value, completions: i64, path: &str) -> Vec<Cause> {
    let (indexes, count) = (rule["succeededIndexes"].as_str(), rule["succeededCount"].as_i64());
    let mut causes = Vec::new();
    if indexes.is_none() && count.is_none() {
        let why = "at least one of succeededCount or succeededIndexes must be specified";
        causes.push(Cause::required(path, why));
    }
    let mut n_indexes = 0;
    if let Some(text) = indexes {
        let field = format!("{path}.succeededIndexes");
        if text.len() > MAX_INDEXES_BYTES {
            causes.push(Cause::too_long(&field, MAX_INDEXES_BYTES));
        }
        match count_indexes(text, completions) {
            Ok(n) => n_indexes = n,
            Err(fault) => {
                let why = format!("error parsing succeededIndexes: {fault}");
                causes.push(Cause::invalid(field, &rule["succeededIndexes"], &why));
            }
        }
    }
    let Some(count) = count else { return causes };
    causes.extend(not_negative(rule, path, &["succeededCount"]));
    let mut above = |most: i64, of: &str| {
        if count > most {
            let why = format!("must be less than or equal to {most} (the number of {of})");
            causes.push(Cause::invalid(format!("{path}.succeededCount"), &rule["succeededCount"], &why));
        }
    };
    above(completions, "specified completions");
    if indexes.is_some() {
        above(n_indexes, "indexes in the specified succeededIndexes field");
    }
    causes
}

/// How many indexes a list of numbers and ranges has, which must be in order and below `completions`.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let index = |part: &str| {
        let index: i64 =
            part.parse().map_err(|_| format!("cannot convert string to integer for index: {part:?}"))?;
        if index >= completions { Err(format!("too large index: {part:?}")) } else { Ok(index) }
    };
    let not_after = |previous: i64, current: i64| {
        format!("non-increasing order, previous: {previous}, current: {current}")
    };
    let (mut total, mut before) = (0, None);
    for part in text.split(',') {
        let limits: Vec<&str> = part.split('-').collect();
        let (first, last) = match limits[..] {
            [one] => (index(one)?, index(one)?),
            [first, last] => {
                let (first, last) = (index(first)?, index(last)?);
                if first >= last {
                    return Err(not_after(first, last));
                }
                (first, last)
            }
            _ => {
                return Err(format!(
                    "the fragment {part:?} violates the requirement that an index interval can have at most two parts \
                     separated by '-'"
                ));
            }
        };
        if let Some(before) = before.filter(|before| *before >= first) {
            return Err(not_after(before, first));
        }
        total += last - first + 1;
        before = Some(last);
    }
    Ok(total)
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
mod tests {
    use super::*;

    /// A Job as it is validated, with changes at paths within its spec.
    fn job(changes: Value) -> Object {
        let container = json!({"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"});
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
        check(
            rules(many.into()),
            &[("spec.podFailurePolicy.rules", "Too many: 21: must have at most 20 items")],
        );
        let on_failure =
            json!({"template/spec/restartPolicy": "OnFailure", "podFailurePolicy": {"rules": []}});
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
        assert!(
            causes.iter().any(|c| c.field == "metadata.name" && c.message.ends_with("nnn-10")),
            "{causes:?}"
        );
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
        assert_eq!(
            refused(&plain, |j| j["spec"]["completions"] = 4.into()).as_deref(),
            Some("spec.completions")
        );
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
        let an_empty_value =
            |j: &mut Object| j["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": ""});
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
}
