//! Classes of storage, drivers and attachments.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::format::Format;
use super::path::{Faults, Path, entries, has, list, text};
use super::walk::{Below, Walk};
use crate::name;

/// The parameters that a driver is given.
fn parameters(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    const MAX_PARAMETERS: usize = 512;
    const MAX_BYTES: usize = 256 << 10;
    let n_parameters = entries(value, "parameters").count();
    if n_parameters > MAX_PARAMETERS {
        return faults.too_long(path, MAX_PARAMETERS);
    }
    let mut bytes = 0;
    for (key, value) in entries(value, "parameters") {
        if key.is_empty() {
            faults.invalid(path, &json!(""), "field can not be empty.");
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > MAX_BYTES {
        faults.too_long(path, MAX_BYTES);
    }
}

pub(super) fn class<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    let root = Path::ROOT;
    parameters(&mut walk.faults, value, &root.child("parameters"));
    let (field, mut seen) = (root.child("allowedTopologies"), HashSet::new());
    for (at, term) in list(value, "allowedTopologies").iter().enumerate() {
        // One without expressions is taken for a copy, as upstream does.
        let is_empty = list(term, "matchLabelExpressions").is_empty();
        if is_empty || !seen.insert(term.to_string()) {
            let field = field.index(at);
            walk.faults.duplicate(&field.child("matchLabelExpressions"), &json!(""));
        }
    }
    Below::All
}

pub(super) fn attributes<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    let root = Path::ROOT;
    let path = root.child("parameters");
    parameters(&mut walk.faults, value, &path);
    if entries(value, "parameters").next().is_none() {
        walk.faults.required(&path, "must contain at least one key/value pair");
    }
    Below::All
}

pub(super) fn driver<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    const MODES: [&str; 2] = ["Persistent", "Ephemeral"];
    let faults = &mut walk.faults;
    for mode in list(value, "volumeLifecycleModes") {
        if !mode.as_str().is_some_and(|mode| MODES.contains(&mode)) {
            faults.not_supported(&path.child("volumeLifecycleModes"), mode, &MODES);
        }
    }
    let (field, mut seen) = (path.child("tokenRequests"), HashSet::new());
    for (at, request) in list(value, "tokenRequests").iter().enumerate() {
        let (field, audience) = (field.index(at), text(request, "audience"));
        if !seen.insert(audience) {
            faults.duplicate(&field.child("audience"), &audience.into());
            continue;
        }
        let seconds = &request["expirationSeconds"];
        match seconds.as_i64() {
            Some(..600) => {
                let why = "may not specify a duration less than 10 minutes";
                faults.invalid(&field.child("expirationSeconds"), seconds, why);
            }
            Some(given) if given > 1 << 32 => {
                let why = "may not specify a duration larger than 2^32 seconds";
                faults.invalid(&field.child("expirationSeconds"), seconds, why);
            }
            _ => {}
        }
    }
    if has(value, "serviceAccountTokenInSecrets") && list(value, "tokenRequests").is_empty() {
        let why = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
        faults.invalid(
            &path.child("serviceAccountTokenInSecrets"),
            &value["serviceAccountTokenInSecrets"],
            why,
        );
    }
    Below::All
}

pub(super) fn node<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    const MAX_ID_BYTES: usize = 256;
    let (field, mut names, faults) = (path.child("drivers"), HashSet::new(), &mut walk.faults);
    for (at, driver) in list(value, "drivers").iter().enumerate() {
        let field = field.index(at);
        let (name, id) = (text(driver, "name"), text(driver, "nodeID"));
        if !names.insert(name) {
            faults.duplicate(&field.child("name"), &name.into());
        }
        if id.len() > MAX_ID_BYTES {
            let why = format!("must be {MAX_ID_BYTES} characters or less");
            faults.invalid(&field.child("nodeID"), &id.into(), &why);
        }
        // The keys are named by their driver, as upstream does.
        let mut keys = HashSet::new();
        for key in list(driver, "topologyKeys") {
            let key = key.as_str().unwrap_or_default();
            if key.is_empty() {
                faults.required(&field, "");
            }
            if !keys.insert(key) {
                faults.duplicate(&field, &key.into());
            }
            if let Some(fault) = Format::Qualified.fault(key) {
                faults.invalid(&field, &key.into(), &fault);
            }
        }
    }
    Below::All
}

pub(super) fn attachment<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let name = value["persistentVolumeName"].as_str();
    match (has(value, "inlineVolumeSpec"), name) {
        (false, None) => walk.faults.required(path, ONE),
        (true, Some(_)) => walk.faults.forbidden(path, ONE),
        (false, Some("")) => {
            let field = path.child("persistentVolumeName");
            walk.faults.required(&field, "must specify non empty persistentVolumeName");
        }
        _ => {}
    }
    if let Some(name) = name
        && let Some(fault) = Format::Subdomain.fault(name)
    {
        walk.faults.invalid(&path.child("persistentVolumeName"), &name.into(), &fault);
    }
    Below::But(vec!["inlineVolumeSpec"])
}

/// Which resource is to be stored in the present version of its kind.
pub(super) fn migration<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let (resource, field) = (&value["resource"], path.child("resource"));
    let (name, group) = (text(resource, "resource"), text(resource, "group"));
    if name.is_empty() {
        walk.faults.required(&field.child("resource"), "resource is required to be set");
    } else if let Some(fault) = name::dns1035_label_fault(name) {
        walk.faults.invalid(&field.child("resource"), &name.into(), &fault);
    }
    if let Some(fault) = Format::Subdomain.fault(group).filter(|_| !group.is_empty()) {
        walk.faults.invalid(&field.child("group"), &group.into(), &fault);
    }
    Below::Nothing
}

/// How a migration goes: what has ended has ended, in one way.
pub(super) fn migrated(faults: &mut Faults, status: &Value, was: &Value, path: &Path<'_>) {
    let field = path.child("resourceVersion");
    let (version, before) = (text(status, "resourceVersion"), text(was, "resourceVersion"));
    let is_number = version.bytes().all(|b| b.is_ascii_digit()) && !version.starts_with('0');
    if !version.is_empty() && !is_number {
        let why = format!("resource version is not well formed: {version}");
        faults.invalid(&field, &version.into(), &why);
    }
    let conditions = path.child("conditions");
    super::status::conditions(faults, status, &conditions);
    if !before.is_empty() && before != version {
        faults.invalid(&field, &version.into(), "field is immutable");
    }
    let is = |status: &Value, type_: &str| {
        let all = list(status, "conditions").iter();
        all.into_iter().find(|c| text(c, "type") == type_).is_some_and(|c| text(c, "status") == "True")
    };
    let shown = &status["conditions"];
    if is(status, "Succeeded") && is(status, "Failed") {
        let why = "Both success and failed conditions cannot be true at the same time";
        faults.invalid(&conditions, shown, why);
    }
    for (type_, word) in [("Succeeded", "Success"), ("Failed", "Failed")] {
        if is(was, type_) && !is(status, type_) {
            let why = format!("{word} condition cannot be set to false once it is true");
            faults.invalid(&conditions, shown, &why);
        }
    }
}
