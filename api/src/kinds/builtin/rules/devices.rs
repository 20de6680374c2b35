//! Devices: classes of them, what offers them and who claims them. Expressions are not looked into.

use std::collections::HashSet;

use serde_json::Value;

use super::format::Format;
use super::path::{Faults, NOT_NEGATIVE, Path, has, is_true, list, number, text};
use super::walk::{Below, Walk};
use crate::meta;

pub(super) fn claim<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    if walk.old.is_some() && walk.root["kind"] == "ResourceClaim" {
        return Below::Nothing; // What cannot change was checked when it was made.
    }
    let faults = &mut walk.faults;
    let (devices, path) = (&value["devices"], path.child("devices"));
    let (field, mut names) = (path.child("requests"), HashSet::new());
    for (at, request) in list(devices, "requests").iter().enumerate() {
        let path = field.index(at);
        let name = text(request, "name");
        label(faults, name, &path.child("name"));
        if !names.insert(name) {
            faults.duplicate(&path, &name.into());
        }
        match (has(request, "exactly"), !list(request, "firstAvailable").is_empty()) {
            (true, true) => {
                faults.invalid(&path, request, "exactly one of `exactly` or `firstAvailable` is required")
            }
            (false, false) => {
                faults.required(&path, "exactly one of `exactly` or `firstAvailable` is required")
            }
            (true, false) => exact(faults, &request["exactly"], &path.child("exactly")),
            (false, true) => {
                let field = path.child("firstAvailable");
                for (at, sub) in list(request, "firstAvailable").iter().enumerate() {
                    label(faults, text(sub, "name"), &field.index(at).child("name"));
                    exact(faults, sub, &field.index(at));
                }
            }
        }
    }
    let field = path.child("constraints");
    for (at, constraint) in list(devices, "constraints").iter().enumerate() {
        let path = field.index(at);
        requests(faults, constraint, &names, &path.child("requests"));
        match constraint["matchAttribute"].as_str() {
            Some(attribute) => attribute_name(faults, attribute, &path.child("matchAttribute")),
            None if !has(constraint, "distinctAttribute") => {
                faults.required(&path, "one of `matchAttribute`")
            }
            None => {}
        }
    }
    let field = path.child("config");
    for (at, config) in list(devices, "config").iter().enumerate() {
        let path = field.index(at);
        requests(faults, config, &names, &path.child("requests"));
        configuration(faults, config, &path);
    }
    Below::Nothing
}

fn label(faults: &mut Faults, name: &str, path: &Path<'_>) {
    if let Some(fault) = Format::Label.fault(name) {
        faults.invalid(path, &name.into(), &fault);
    }
}

/// Requests that are named elsewhere; one that may be met in several ways is named with which.
fn requests(faults: &mut Faults, holder: &Value, known: &HashSet<&str>, path: &Path<'_>) {
    let mut seen = HashSet::new();
    for (at, request) in list(holder, "requests").iter().enumerate() {
        let name = request.as_str().unwrap_or_default();
        if !known.contains(name.split('/').next().unwrap_or(name)) {
            let why = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
            faults.invalid(&path.index(at), request, why);
        }
        if !seen.insert(name) {
            faults.duplicate(&path.index(at), request);
        }
    }
}

fn exact(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    const MODES: [&str; 2] = ["All", "ExactCount"];
    let (class, field) = (text(value, "deviceClassName"), path.child("deviceClassName"));
    if class.is_empty() {
        faults.required(&field, "");
    } else if let Some(fault) = Format::Subdomain.fault(class) {
        faults.invalid(&field, &class.into(), &fault);
    }
    selectors(faults, value, &path.child("selectors"));
    let (mode, count) = (text(value, "allocationMode"), number(value, "count"));
    let field = path.child("count");
    match mode {
        "All" if count != 0 => {
            let why = "must not be specified when allocationMode is 'All'";
            faults.invalid(&field, &value["count"], why);
        }
        "ExactCount" | "" if has(value, "count") && count <= 0 => {
            faults.invalid(&field, &value["count"], "must be greater than zero");
        }
        "All" | "ExactCount" | "" => {}
        _ => faults.not_supported(&path.child("allocationMode"), &mode.into(), &MODES),
    }
}

fn selectors(faults: &mut Faults, holder: &Value, path: &Path<'_>) {
    for (at, selector) in list(holder, "selectors").iter().enumerate() {
        let path = path.index(at);
        let path = path.child("cel");
        if !has(selector, "cel") {
            faults.required(&path, "");
        } else if text(&selector["cel"], "expression").is_empty() {
            faults.required(&path.child("expression"), "");
        }
    }
}

fn configuration(faults: &mut Faults, config: &Value, path: &Path<'_>) {
    let (opaque, path) = (&config["opaque"], path.child("opaque"));
    if !has(config, "opaque") {
        return faults.required(&path, "");
    }
    driver(faults, text(opaque, "driver"), &path.child("driver"));
    let field = path.child("parameters");
    match &opaque["parameters"] {
        Value::Null => faults.required(&field, ""),
        Value::Object(_) => {}
        other => faults.invalid(&field, other, "must be a valid JSON object"),
    }
}

fn driver(faults: &mut Faults, name: &str, path: &Path<'_>) {
    const MAX_BYTES: usize = 63;
    if name.is_empty() {
        return faults.required(path, "");
    }
    if name.len() > MAX_BYTES {
        faults.too_long(path, MAX_BYTES);
    }
    if let Some(fault) = Format::SubdomainCaseless.fault(name) {
        faults.invalid(path, &name.into(), &fault);
    }
}

/// `example.com/name`, a C identifier below a domain.
fn attribute_name(faults: &mut Faults, name: &str, path: &Path<'_>) {
    let is_word = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    match name.split_once('/') {
        _ if name.is_empty() => faults.required(path, ""),
        None => faults.invalid(path, &name.into(), "must include a domain"),
        Some((domain, id)) => {
            if let Some(fault) = Format::Subdomain.fault(domain) {
                faults.invalid(path, &name.into(), &fault);
            }
            if !is_word(id) {
                faults.invalid(path, &name.into(), "must be a C identifier below a domain");
            }
        }
    }
}

/// The claim that is made of a template: labels and annotations are all its metadata.
pub(super) fn template<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let (own, field) = (&value["metadata"], path.child("metadata"));
    let labels = meta::validate_labels(&own["labels"], &field.child("labels").to_string());
    let notes = meta::validate_annotations(&own["annotations"], &field.child("annotations").to_string());
    labels.into_iter().chain(notes).for_each(|cause| walk.faults.push(cause));
    for (name, _) in own
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| !matches!(name.as_str(), "labels" | "annotations") && !value.is_null())
    {
        let shown = if name == "uid" { "uID" } else { name };
        walk.faults.forbidden(&field.child(shown), "cannot be set");
    }
    Below::But(vec!["metadata"])
}

pub(super) fn class<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    selectors(&mut walk.faults, value, &path.child("selectors"));
    let field = path.child("config");
    for (at, config) in list(value, "config").iter().enumerate() {
        configuration(&mut walk.faults, config, &field.index(at));
    }
    Below::Nothing
}

pub(super) fn slice<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let faults = &mut walk.faults;
    driver(faults, text(value, "driver"), &path.child("driver"));
    let (pool, field) = (&value["pool"], path.child("pool"));
    let name = text(pool, "name");
    if name.is_empty() {
        faults.required(&field.child("name"), "");
    } else if let Some(fault) = name.split('/').find_map(|part| Format::Subdomain.fault(part)) {
        faults.invalid(&field.child("name"), &name.into(), &fault);
    }
    if number(pool, "resourceSliceCount") <= 0 {
        let count = number(pool, "resourceSliceCount");
        faults.invalid(&field.child("resourceSliceCount"), &count.into(), "must be greater than zero");
    }
    if number(pool, "generation") < 0 {
        faults.invalid(&field.child("generation"), &pool["generation"], NOT_NEGATIVE);
    }
    let node = text(value, "nodeName");
    if has(value, "nodeName")
        && let Some(fault) = Format::Subdomain.fault(node)
    {
        faults.invalid(&path.child("nodeName"), &node.into(), &fault);
    }
    let where_ = [
        has(value, "nodeName"),
        has(value, "nodeSelector"),
        is_true(value, "allNodes"),
        is_true(value, "perDeviceNodeSelection"),
    ];
    match where_.iter().filter(|is_set| **is_set).count() {
        0 => faults.required(
            path,
            "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
        ),
        1 => {}
        _ => faults.invalid(
            path,
            value,
            "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
        ),
    }
    let (field, mut names) = (path.child("devices"), HashSet::new());
    for (at, device) in list(value, "devices").iter().enumerate() {
        let (path, name) = (field.index(at), text(device, "name"));
        label(faults, name, &path.child("name"));
        if !names.insert(name) {
            faults.duplicate(&path, &name.into());
        }
        let attributes = path.child("attributes");
        for (key, attribute) in device["attributes"].as_object().into_iter().flatten() {
            let n_values =
                ["int", "bool", "string", "version"].iter().filter(|kind| has(attribute, kind)).count();
            let field = attributes.key(key);
            match n_values {
                0 => faults.required(&field, "exactly one value must be specified"),
                1 => {}
                _ => faults.invalid(&field, attribute, "exactly one value must be specified"),
            }
        }
    }
    Below::Nothing
}
