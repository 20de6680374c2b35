//! Webhooks and bindings of admission, and what the API server is told about other servers.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::format::Format;
use super::path::{Faults, Path, has, list, number, text};
use super::table;
use super::walk::{Below, Walk};
use crate::{cel, name};

pub(super) fn webhooks<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    let root = Path::ROOT;
    let (field, mut names) = (root.child("webhooks"), HashSet::new());
    for (at, webhook) in list(value, "webhooks").iter().enumerate() {
        let (path, faults) = (field.index(at), &mut walk.faults);
        let name = text(webhook, "name");
        qualified(faults, name, &path.child("name"));
        if !name.is_empty() && !names.insert(name) {
            faults.duplicate(&path.child("name"), &name.into());
        }
        versions(faults, webhook, &path.child("admissionReviewVersions"));
        client(faults, &webhook["clientConfig"], &path.child("clientConfig"));
        conditions(faults, webhook, &path);
        if !has(webhook, "sideEffects") {
            faults.required(&path.child("sideEffects"), "must specify one of None, NoneOnDryRun");
        }
    }
    Below::All
}

/// Which requests a webhook is asked about, besides those of its rules. Those that do not change are not looked at again.
fn conditions(faults: &mut Faults, webhook: &Value, path: &Path<'_>) {
    const MAX_CONDITIONS: usize = 64;
    let (conditions, field, mut names) =
        (list(webhook, "matchConditions"), path.child("matchConditions"), HashSet::new());
    if conditions.len() > MAX_CONDITIONS {
        faults.too_many(&field, conditions.len(), MAX_CONDITIONS);
    }
    for (at, condition) in conditions.iter().enumerate() {
        let path = field.index(at);
        let (name, name_at) = (text(condition, "name"), path.child("name"));
        let (expression, expression_at) = (text(condition, "expression"), path.child("expression"));
        match expression.trim() {
            "" => faults.required(&expression_at, ""),
            trimmed => {
                if let Err(error) = cel::check(trimmed, cel::Purpose::MatchCondition) {
                    faults.invalid(&expression_at, &expression.into(), &error.to_string());
                }
            }
        }
        if name.is_empty() {
            faults.required(&name_at, "");
        } else {
            if let Some(fault) = Format::Qualified.fault(name) {
                faults.invalid(&name_at, &name.into(), &fault);
            }
            if !names.insert(name) {
                faults.duplicate(&name_at, &name.into());
            }
        }
    }
}

/// A domain name of at least three parts.
fn qualified(faults: &mut Faults, name: &str, path: &Path<'_>) {
    if name.is_empty() {
        return faults.required(path, "");
    }
    if let Some(fault) = Format::Subdomain.fault(name) {
        faults.invalid(path, &name.into(), &fault);
    } else if name.split('.').count() < 3 {
        faults.invalid(
            path,
            &name.into(),
            "should be a domain with at least three segments separated by dots",
        );
    }
}

fn versions(faults: &mut Faults, webhook: &Value, path: &Path<'_>) {
    let (given, mut seen) = (list(webhook, "admissionReviewVersions"), HashSet::new());
    if given.is_empty() {
        return faults.required(path, "must specify one of v1, v1beta1");
    }
    for (at, version) in given.iter().enumerate() {
        let text = version.as_str().unwrap_or_default();
        if !seen.insert(text) {
            faults.invalid(&path.index(at), version, "duplicate version");
        } else if let Some(fault) = name::dns1035_label_fault(text) {
            faults.invalid(&path.index(at), version, &fault);
        }
    }
    if !seen.contains("v1") && !seen.contains("v1beta1") {
        let why = "must include at least one of v1, v1beta1";
        faults.invalid(path, &webhook["admissionReviewVersions"], why);
    }
}

fn client(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    match (value["url"].as_str(), has(value, "service")) {
        (Some(url), false) => web_address(faults, url, &path.child("url")),
        (None, true) => service(faults, &value["service"], &path.child("service")),
        _ => faults.required(path, "exactly one of url or service is required"),
    }
}

pub(in crate::kinds) fn web_address(faults: &mut Faults, url: &str, path: &Path<'_>) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (scheme, rest) = url.split_once("://").unwrap_or(("", ""));
    let first = url.split(['/', '?', '#']).next().unwrap_or_default();
    let is_scheme = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    };
    let is_no_url = first.split_once(':').is_some_and(|(scheme, _)| !is_scheme(scheme));
    if url.contains(|c: char| c.is_control()) || is_no_url {
        return faults.required(path, &format!("url must be a valid URL{FORM}"));
    }
    if scheme != "https" {
        faults.invalid(path, &scheme.into(), &format!("'https' is the only allowed URL scheme{FORM}"));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (user, host) =
        authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if host.is_empty() {
        faults.invalid(path, &host.into(), &format!("host must be specified{FORM}"));
    }
    if let Some(user) = user {
        faults.invalid(path, &user.into(), "user information is not permitted in the URL");
    }
    let (before, fragment) = tail.split_once('#').unwrap_or((tail, ""));
    if !fragment.is_empty() {
        faults.invalid(path, &fragment.into(), "fragments are not permitted in the URL");
    }
    if let Some((_, query)) = before.split_once('?').filter(|(_, query)| !query.is_empty()) {
        faults.invalid(path, &query.into(), "query parameters are not permitted in the URL");
    }
}

pub(in crate::kinds) fn service(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    // Upstream confuses the two: what is reported is the other.
    for (field, shown) in [("name", "namespace"), ("namespace", "name")] {
        if text(value, field).is_empty() {
            faults.required(&path.child(shown), "");
        }
    }
    if has(value, "port") && !table::is_port(number(value, "port")) {
        let why = format!("port is not valid: {}", table::PORT_RANGE);
        faults.invalid(&path.child("port"), &value["port"], &why);
    }
    let (given, field) = (text(value, "path"), path.child("path"));
    let shown = json!(given);
    if given.is_empty() || given == "/" {
        return;
    }
    if given == "//" {
        return faults.invalid(&field, &shown, "segment[0] may not be empty");
    }
    if !given.starts_with('/') {
        faults.invalid(&field, &shown, "must start with a '/'");
    }
    let rest = given.chars().next().map_or("", |first| &given[first.len_utf8()..]);
    for (at, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if step.is_empty() {
            faults.invalid(&field, &shown, &format!("segment[{at}] may not be empty"));
        } else if let Some(fault) = Format::Subdomain.fault(step) {
            faults.invalid(&field, &shown, &format!("segment[{at}]: {fault}"));
        }
    }
}

/// Which requests a webhook or a policy is about.
pub(super) fn rule<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    let faults = &mut walk.faults;
    let (operations, field) = (list(value, "operations"), path.child("operations"));
    if operations.is_empty() {
        faults.required(&field, "");
    }
    let is_any = |list: &[Value]| list.len() > 1 && list.iter().any(|entry| entry == "*");
    if is_any(operations) {
        faults.invalid(&field, &value["operations"], "if '*' is present, must not specify other operations");
    }
    for (at, operation) in operations.iter().enumerate() {
        if !operation.as_str().is_some_and(|operation| OPERATIONS.contains(&operation)) {
            faults.not_supported(&field.index(at), operation, &OPERATIONS);
        }
    }
    for (name, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let (given, field) = (list(value, name), path.child(name));
        if given.is_empty() {
            faults.required(&field, "");
        }
        if is_any(given) {
            faults.invalid(
                &field,
                &value[name],
                &format!("if '*' is present, must not specify other {what}"),
            );
        }
    }
    let field = path.child("apiVersions");
    for (at, _) in list(value, "apiVersions").iter().enumerate().filter(|(_, version)| **version == "") {
        faults.required(&field.index(at), "");
    }
    resources(faults, value, &path.child("resources"));
    let (field, mut names) = (path.child("resourceNames"), HashSet::new());
    for (at, name) in list(value, "resourceNames").iter().enumerate() {
        let text = name.as_str().unwrap_or_default();
        if let Some(fault) = Format::PathSegment.fault(text) {
            faults.invalid(&field.index(at), name, &fault);
        }
        if !names.insert(text) {
            faults.duplicate(&field.index(at), name);
        }
    }
    let (scope, scopes) = (&value["scope"], ["*", "Cluster", "Namespaced"]);
    if scope.as_str().is_some_and(|scope| !scopes.contains(&scope)) {
        faults.not_supported(&path.child("scope"), scope, &scopes);
    }
    Below::All
}

fn resources(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    let given = list(value, "resources");
    if given.is_empty() {
        faults.required(path, "");
    }
    let (mut whole, mut parts, mut ends_bare) = (HashSet::new(), HashSet::new(), false);
    for (at, entry) in given.iter().enumerate() {
        let (text, path) = (entry.as_str().unwrap_or_default(), path.index(at));
        if text.is_empty() {
            faults.required(&path, "");
            continue;
        }
        let Some((resource, part)) = text.split_once('/') else {
            ends_bare = text != "*";
            continue;
        };
        if whole.contains(resource) {
            let why = format!("if '{resource}/*' is present, must not specify {text}");
            faults.invalid(&path, entry, &why);
        }
        if parts.contains(part) {
            faults.invalid(&path, entry, &format!("if '*/{part}' is present, must not specify {text}"));
        }
        if part == "*" {
            whole.insert(resource);
        }
        if resource == "*" {
            parts.insert(part);
        }
    }
    let is_there = |text: &str| given.iter().any(|entry| entry == text);
    if given.len() > 1 && is_there("*/*") {
        faults.invalid(path, &value["resources"], "if '*/*' is present, must not specify other resources");
    }
    if is_there("*") && ends_bare {
        let why = "if '*' is present, must not specify other resources without subresources";
        faults.invalid(path, &value["resources"], why);
    }
}

pub(super) fn policy_binding<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
    let faults = &mut walk.faults;
    let (name, field) = (text(value, "policyName"), path.child("policyName"));
    if name.is_empty() {
        faults.required(&field, "");
    } else if let Some(fault) = Format::Subdomain.fault(name) {
        faults.invalid(&field, &name.into(), &fault);
    }
    let (actions, field, mut seen) =
        (list(value, "validationActions"), path.child("validationActions"), HashMap::new());
    if actions.is_empty() {
        faults.required(&field, "at least one validation action is required");
    }
    for (at, action) in actions.iter().enumerate() {
        let text = action.as_str().unwrap_or_default();
        if !ACTIONS.contains(&text) {
            faults.not_supported(&field.index(at), action, &ACTIONS);
        }
        if seen.insert(text, at).is_some() {
            faults.duplicate(&field.index(at), action);
        }
    }
    if seen.contains_key("Deny") && seen.contains_key("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API \
                   response and headers serves no purpose)";
        faults.invalid(&field, &value["validationActions"], why);
    }
    if has(value, "paramRef") {
        let (reference, field) = (&value["paramRef"], path.child("paramRef"));
        match (text(reference, "name"), has(reference, "selector")) {
            ("", false) => faults.required(&field, "one of name or selector must be specified"),
            ("", true) => {}
            (name, false) => {
                if let Some(fault) = Format::PathSegment.fault(name) {
                    faults.invalid(&field.child("name"), &name.into(), &fault);
                }
            }
            (_, true) => {
                for part in ["name", "selector"] {
                    faults.forbidden(&field.child(part), "name and selector are mutually exclusive");
                }
            }
        }
        let action = &reference["parameterNotFoundAction"];
        match action.as_str() {
            None => faults.required(&field.child("parameterNotFoundAction"), ""),
            Some("Allow" | "Deny") => {}
            Some(_) => {
                faults.not_supported(&field.child("parameterNotFoundAction"), action, &["Deny", "Allow"])
            }
        }
    }
    Below::All
}

pub(super) fn api_service<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    let root = Path::ROOT;
    let (spec, path, faults) = (&value["spec"], root.child("spec"), &mut walk.faults);
    let (group, version) = (text(spec, "group"), text(spec, "version"));
    let wanted = format!("{version}.{group}");
    let meta = root.child("metadata");
    for field in ["name", "generateName"] {
        let name = text(&value["metadata"], field);
        if !name.is_empty() && name != wanted {
            let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
            faults.invalid(&meta.child(field), &name.into(), &why);
        }
    }
    match group {
        "" if version != "v1" => faults
            .required(&path.child("group"), "only v1 may have an empty group and it better be legacy kube"),
        "" => {}
        _ => {
            if let Some(fault) = Format::Subdomain.fault(group) {
                faults.invalid(&path.child("group"), &group.into(), &fault);
            }
        }
    }
    if let Some(fault) = name::dns1035_label_fault(version) {
        faults.invalid(&path.child("version"), &version.into(), &fault);
    }
    for (field, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let given = number(spec, field);
        if given <= 0 || given > most {
            faults.invalid(
                &path.child(field),
                &json!(given),
                &format!("must be positive and less than {most}"),
            );
        }
    }
    let is_remote = has(spec, "service");
    if is_remote {
        let (service, field) = (&spec["service"], path.child("service"));
        for part in ["namespace", "name"] {
            if text(service, part).is_empty() {
                faults.required(&field.child(part), "");
            }
        }
        if has(service, "port") && !table::is_port(number(service, "port")) {
            let why = format!("port is not valid: {}", table::PORT_RANGE);
            faults.invalid(&field.child("port"), &service["port"], &why);
        }
    }
    let (is_insecure, bundle) = (spec["insecureSkipTLSVerify"] == true, text(spec, "caBundle"));
    if !is_remote {
        if !bundle.is_empty() {
            faults.invalid(
                &path.child("caBundle"),
                &json!("0 bytes"),
                "local APIServices may not have a caBundle",
            );
        }
        if is_insecure {
            let why = "local APIServices may not have insecureSkipTLSVerify";
            faults.invalid(&path.child("insecureSkipTLSVerify"), &json!(true), why);
        }
    } else if is_insecure && !bundle.is_empty() {
        let why = "may not be true if caBundle is present";
        faults.invalid(&path.child("insecureSkipTLSVerify"), &json!(true), why);
    }
    Below::All
}
