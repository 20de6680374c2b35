//! When a Job counts as failed or as successful, if its author says so.

use std::collections::HashSet;

use serde_json::Value;

use super::not_negative;
use crate::table::cell::{items_at, str_at};
use crate::{Cause, name};

const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const MAX_INDEXES_BYTES: usize = 64 << 10;

pub(super) fn validate_failure_policy(spec: &Value, path: &str) -> Vec<Cause> {
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

pub(super) fn validate_success_policy(policy: &Value, completions: i64, path: &str) -> Vec<Cause> {
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
pub(super) fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
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
