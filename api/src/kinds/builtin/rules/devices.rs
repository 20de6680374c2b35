//! Devices: classes of them, and who claims them.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::format::Format;
use super::path::{Faults, Path, has, list, number, text};
use super::walk::{Below, Walk};
use super::{amounts, slices};
use crate::{cel, meta};

/// Of a claim's requests, constraints and configurations, and of a request's selectors.
const MAX_ENTRIES: usize = 32;
/// In which one request may be met.
const MAX_WAYS: usize = 8;
const MAX_EXPRESSION_BYTES: usize = 10 << 10;
const MAX_PARAMETERS_BYTES: usize = 10 << 10;

pub(super) fn claim<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    if walk.old.is_some() && walk.root["kind"] == "ResourceClaim" {
        return Below::Nothing; // What cannot change was checked when it was made.
    }
    let faults = &mut walk.faults;
    let (devices, path) = (&value["devices"], path.child("devices"));
    let known = Known::of(devices);
    bounded(faults, devices, "requests", &path, request);
    slices::unique(faults, within(list(devices, "requests"), MAX_ENTRIES), "name", &path.child("requests"));
    bounded(faults, devices, "constraints", &path, |faults, constraint, path| {
        references(faults, constraint, &known, path);
        match (constraint["matchAttribute"].as_str(), constraint["distinctAttribute"].as_str()) {
            (Some(name), _) => attribute_name(faults, name, &path.child("matchAttribute")),
            (None, Some(name)) => attribute_name(faults, name, &path.child("distinctAttribute")),
            (None, None) => {
                faults
                    .required(path, "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required");
            }
        }
    });
    bounded(faults, devices, "config", &path, |faults, config, path| {
        references(faults, config, &known, path);
        configuration(faults, config, path);
    });
    Below::Nothing
}

/// Runs the rules of a list's items, unless there are too many of them: then that is all that is wrong.
fn bounded(
    faults: &mut Faults,
    holder: &Value,
    field: &str,
    path: &Path<'_>,
    check: impl Fn(&mut Faults, &Value, &Path<'_>),
) {
    let (items, path) = (list(holder, field), path.child(field));
    if items.len() > MAX_ENTRIES {
        faults.too_many(&path, items.len(), MAX_ENTRIES);
    }
    for (at, item) in within(items, MAX_ENTRIES).iter().enumerate() {
        check(faults, item, &path.index(at));
    }
}

/// A list that is not too long, or none.
fn within(items: &[Value], most: usize) -> &[Value] {
    if items.len() > most { &[] } else { items }
}

/// The names of a claim's requests, and of the ways in which each may be met.
struct Known<'v>(HashMap<&'v str, HashSet<&'v str>>);

impl<'v> Known<'v> {
    fn of(devices: &'v Value) -> Known<'v> {
        let ways = |request: &'v Value| {
            list(request, "firstAvailable").iter().map(|way| text(way, "name")).collect()
        };
        Known(
            list(devices, "requests").iter().map(|request| (text(request, "name"), ways(request))).collect(),
        )
    }

    fn has(&self, name: &str) -> bool {
        match name.split_once('/') {
            None => self.0.contains_key(name),
            Some((request, way)) => self.0.get(request).is_some_and(|ways| ways.contains(way)),
        }
    }
}

fn request(faults: &mut Faults, request: &Value, path: &Path<'_>) {
    const WHY: &str = "exactly one of `exactly` or `firstAvailable` is required";
    label(faults, text(request, "name"), &path.child("name"));
    let ways = list(request, "firstAvailable");
    match (has(request, "exactly"), !ways.is_empty()) {
        (true, true) => faults.invalid(path, &Value::Null, WHY),
        (false, false) => faults.required(path, WHY),
        (true, false) => exact(faults, &request["exactly"], &path.child("exactly")),
        (false, true) => {
            let field = path.child("firstAvailable");
            if ways.len() > MAX_WAYS {
                return faults.too_many(&field, ways.len(), MAX_WAYS);
            }
            for (at, way) in ways.iter().enumerate() {
                label(faults, text(way, "name"), &field.index(at).child("name"));
                exact(faults, way, &field.index(at));
            }
            slices::unique(faults, ways, "name", &field);
        }
    }
}

pub(super) fn label(faults: &mut Faults, name: &str, path: &Path<'_>) {
    if let Some(fault) = Format::Label.fault(name) {
        faults.invalid(path, &name.into(), &fault);
    }
}

/// Requests that are named elsewhere; one that may be met in several ways is named with which.
fn references(faults: &mut Faults, holder: &Value, known: &Known<'_>, path: &Path<'_>) {
    const WHY: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    let mut seen = HashSet::new();
    let field = path.child("requests");
    bounded(faults, holder, "requests", path, |faults, request, path| {
        let name = request.as_str().unwrap_or_default();
        let parts = name.split('/').take(3);
        if parts.clone().count() < 3 {
            parts.for_each(|part| label(faults, part, path));
        }
        if !known.has(name) {
            faults.invalid(path, request, WHY);
        }
    });
    for (at, request) in within(list(holder, "requests"), MAX_ENTRIES).iter().enumerate() {
        if !seen.insert(request.as_str()) {
            faults.duplicate(&field.index(at), request);
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
    selectors(faults, value, Expressions::New, path);
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
    for (at, item) in list(value, "tolerations").iter().enumerate() {
        let field = path.child("tolerations");
        toleration(faults, item, &field.index(at));
    }
}

fn toleration(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    const OPERATORS: [&str; 2] = ["Equal", "Exists"];
    let key = text(value, "key");
    if !key.is_empty()
        && let Some(fault) = Format::Qualified.fault(key)
    {
        faults.invalid(&path.child("key"), &key.into(), &fault);
    }
    let (given, field) = (&value["value"], path.child("value"));
    match text(value, "operator") {
        "Exists" if !text(value, "value").is_empty() => {
            faults.invalid(&field, given, "must be empty for operator `Exists`");
        }
        "Exists" => {}
        // What is not said is this.
        "" | "Equal" => {
            if let Some(fault) = Format::LabelValue.fault(text(value, "value")) {
                faults.invalid(&field, given, &fault);
            }
        }
        operator => faults.not_supported(&path.child("operator"), &operator.into(), &OPERATORS),
    }
    let effect = text(value, "effect");
    if !effect.is_empty() && !slices::EFFECTS.contains(&effect) {
        faults.not_supported(&path.child("effect"), &effect.into(), &slices::EFFECTS);
    }
}

/// Whether expressions are as they were when they were written: then nothing is wrong with them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expressions {
    New,
    Stored,
}

fn selectors(faults: &mut Faults, holder: &Value, expressions: Expressions, path: &Path<'_>) {
    bounded(faults, holder, "selectors", path, |faults, selector, path| {
        let path = path.child("cel");
        if !has(selector, "cel") {
            return faults.required(&path, "");
        }
        if expressions == Expressions::Stored {
            return;
        }
        let (expression, path) = (text(&selector["cel"], "expression"), path.child("expression"));
        if expression.len() > MAX_EXPRESSION_BYTES {
            faults.too_long(&path, MAX_EXPRESSION_BYTES);
        } else if let Err(error) = cel::check(expression, cel::Purpose::Device) {
            match error {
                cel::Error::TooComplex => faults.forbidden(&path, &error.to_string()),
                error => faults.invalid(&path, &expression.into(), &error.to_string()),
            }
        }
    });
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
        parameters if parameters.to_string().len() > MAX_PARAMETERS_BYTES => {
            faults.too_long(&field, MAX_PARAMETERS_BYTES);
        }
        Value::Object(_) => {}
        other => faults.invalid(&field, other, "must be a valid JSON object"),
    }
}

pub(super) fn driver(faults: &mut Faults, name: &str, path: &Path<'_>) {
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

/// `example.com/name`, with a domain.
fn attribute_name(faults: &mut Faults, name: &str, path: &Path<'_>) {
    slices::qualified(faults, name, path);
    if !name.contains('/') {
        let why = "a fully qualified name must be a domain and a name separated by a slash";
        faults.invalid(path, &name.into(), why);
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
    let is_stored = walk.old.is_some_and(|old| old["spec"]["selectors"] == value["selectors"]);
    let expressions = if is_stored { Expressions::Stored } else { Expressions::New };
    selectors(&mut walk.faults, value, expressions, path);
    bounded(&mut walk.faults, value, "config", path, configuration);
    if let Some(name) = value["extendedResourceName"].as_str()
        && !amounts::is_extended(name)
    {
        let field = path.child("extendedResourceName");
        walk.faults.invalid(&field, &name.into(), "must be a valid extended resource name");
    }
    Below::Nothing
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{Kinds, Object};

    #[test]
    fn expressions_of_a_class_that_stay_as_they_were_are_not_read_again() {
        let kinds = Kinds::builtin();
        let kind = kinds.by_kind("resource.k8s.io", "v1", "DeviceClass").expect("a kind");
        let class = |expression: &str| -> Object {
            json!({"metadata": {"name": "c"}, "spec": {"selectors": [{"cel": {"expression": expression}}]}})
        };
        assert_eq!(kind.validate(&class("no cel at all"), None).len(), 1);
        assert_eq!(kind.validate(&class("no cel at all"), Some(&class("no cel at all"))), []);
        assert_eq!(kind.validate(&class("no cel at all"), Some(&class("true"))).len(), 1);
    }
}
