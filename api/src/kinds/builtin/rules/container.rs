//! Containers: what they run, with which environment, mounts and rights.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::amounts;
use super::format::Format;
use super::path::{Faults, Path, has, is_true, list, text};
use super::pod::{Containers, Pod};
use super::table::quantity;
use super::walk::{Below, Walk};

pub(super) fn container<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let Some(pod) = walk.pod.clone() else { return Below::All };
    let faults = &mut walk.faults;
    let image = text(value, "image");
    if walk.is_pod && image.trim() != image {
        faults.invalid(&path.child("image"), &image.into(), "must not have leading or trailing whitespace");
    }
    port_names(faults, list(value, "ports"), &path.child("ports"));
    mounts(faults, value, &pod, &path.child("volumeMounts"));
    devices(faults, value, &pod, &path.child("volumeDevices"));
    amounts::requirements(&value["resources"], &pod.claims, &path.child("resources"), faults);
    resize(faults, value, &pod, &path.child("resizePolicy"));
    for (at, variable) in list(value, "env").iter().enumerate() {
        let field = path.child("env");
        exclusive_value(faults, variable, &field.index(at).child("valueFrom"));
    }
    let mut skip = match pod.containers {
        Containers::Main => {
            restart_policy(faults, value, path);
            Vec::new()
        }
        Containers::Init => init(faults, value, path),
        Containers::Ephemeral => ephemeral(faults, value, path),
    };
    if pod.containers != Containers::Ephemeral && !skip.contains(&"livenessProbe") {
        probes(faults, value, path);
    }
    skip.push("resources");
    Below::But(skip)
}

const RESTART_POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];

/// The policy of one container, and its rules for exits.
fn restart_policy(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    const ACTIONS: [&str; 2] = ["Restart", "RestartAllContainers"];
    const MAX_RULES: usize = 20;
    const MAX_CODES: usize = 255;
    let rules = list(value, "restartPolicyRules");
    if !has(value, "restartPolicy") {
        if rules.is_empty() {
            return;
        }
        let why = "must specify restartPolicy when restart rules are used";
        faults.required(&path.child("restartPolicy"), why);
    } else if !RESTART_POLICIES.contains(&text(value, "restartPolicy")) {
        faults.not_supported(&path.child("restartPolicy"), &value["restartPolicy"], &RESTART_POLICIES);
    }
    let field = path.child("restartPolicyRules");
    if rules.len() > MAX_RULES {
        faults.too_many(&field, rules.len(), MAX_RULES);
    }
    for (at, rule) in rules.iter().enumerate() {
        let path = field.index(at);
        if !ACTIONS.contains(&text(rule, "action")) {
            faults.not_supported(&path.child("action"), &text(rule, "action").into(), &ACTIONS);
        }
        let (codes, path) = (&rule["exitCodes"], path.child("exitCodes"));
        if codes.is_null() {
            faults.required(&path, "must be specified");
            continue;
        }
        let operator = text(codes, "operator");
        if !["In", "NotIn"].contains(&operator) {
            faults.not_supported(&path.child("operator"), &operator.into(), &["In", "NotIn"]);
        }
        let n_codes = list(codes, "values").len();
        if n_codes > MAX_CODES {
            faults.too_many(&path.child("values"), n_codes, MAX_CODES);
        }
    }
}

/// Init containers that end have no probes; those that stay are checked as all others.
fn init(faults: &mut Faults, value: &Value, path: &Path<'_>) -> Vec<&'static str> {
    const FIELDS: [&str; 4] = ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"];
    if has(value, "restartPolicy") {
        restart_policy(faults, value, path);
    } else if !list(value, "restartPolicyRules").is_empty() {
        let why = "must specify restartPolicy when restart rules are used";
        faults.required(&path.child("restartPolicy"), why);
    }
    if text(value, "restartPolicy") == "Always" {
        return Vec::new();
    }
    for field in FIELDS.iter().filter(|field| has(value, field)) {
        let why = "may not be set for init containers without restartPolicy=Always";
        faults.forbidden(&path.child(field), why);
    }
    let field = path.child("resizePolicy");
    for (at, policy) in list(value, "resizePolicy").iter().enumerate() {
        if text(policy, "restartPolicy") == "RestartContainer" {
            let why = "must not be set to 'RestartContainer' for non-sidecar initContainers";
            faults.invalid(&field.index(at).child("restartPolicy"), &policy["restartPolicy"], why);
        }
    }
    FIELDS.to_vec()
}

const NOT_EPHEMERAL: &str = "cannot be set for an Ephemeral Container";

fn ephemeral(faults: &mut Faults, value: &Value, path: &Path<'_>) -> Vec<&'static str> {
    const FORBIDDEN: [&str; 9] = [
        "ports",
        "resources",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
        "restartPolicy",
        "restartPolicyRules",
        "resizePolicy",
    ];
    let is_set = |field: &str| match &value[field] {
        Value::Null => false,
        Value::Object(map) if field == "resources" => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    };
    for field in FORBIDDEN.iter().filter(|field| is_set(field)) {
        faults.forbidden(&path.child(field), NOT_EPHEMERAL);
    }
    let mounts = path.child("volumeMounts");
    for (at, mount) in list(value, "volumeMounts").iter().enumerate() {
        for field in ["subPath", "subPathExpr"].into_iter().filter(|field| !text(mount, field).is_empty()) {
            faults.forbidden(&mounts.index(at).child(field), NOT_EPHEMERAL);
        }
    }
    vec!["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"]
}

fn probes(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    for probe in ["livenessProbe", "startupProbe"] {
        let threshold = &value[probe]["successThreshold"];
        if has(value, probe) && threshold != 1 {
            let field = path.child(probe);
            faults.invalid(&field.child("successThreshold"), threshold, "must be 1");
        }
    }
    let grace = &value["readinessProbe"]["terminationGracePeriodSeconds"];
    if !grace.is_null() {
        let field = path.child("readinessProbe");
        let why = "must not be set for readinessProbes";
        faults.invalid(&field.child("terminationGracePeriodSeconds"), grace, why);
    }
}

fn port_names(faults: &mut Faults, ports: &[Value], path: &Path<'_>) {
    let mut seen = HashSet::new();
    for (at, port) in ports.iter().enumerate() {
        let (name, path) = (text(port, "name"), path.index(at));
        if name.is_empty() {
            continue;
        }
        if let Some(fault) = Format::PortName.fault(name) {
            faults.invalid(&path.child("name"), &name.into(), &fault);
        } else if !seen.insert(name) {
            faults.duplicate(&path.child("name"), &name.into());
        }
    }
}

/// No two containers that run at once may have one port of the host.
pub(super) fn host_ports<'v>(
    faults: &mut Faults,
    container: &'v Value,
    seen: &mut HashSet<(&'v str, &'v str, i64)>,
    path: &Path<'_>,
) {
    let path = path.child("ports");
    for (at, port) in list(container, "ports").iter().enumerate() {
        let number = port["hostPort"].as_i64().unwrap_or(0);
        let key = (text(port, "protocol"), text(port, "hostIP"), number);
        if number != 0 && !seen.insert(key) {
            let shown = json!(format!("{}/{}/{number}", key.0, key.1));
            faults.duplicate(&path.index(at).child("hostPort"), &shown);
        }
    }
}

fn mounts(faults: &mut Faults, value: &Value, pod: &Pod<'_>, path: &Path<'_>) {
    let devices = list(value, "volumeDevices");
    let device_names: HashSet<&str> = devices.iter().map(|device| text(device, "name")).collect();
    let device_paths: HashSet<&str> = devices.iter().map(|device| text(device, "devicePath")).collect();
    let mut paths = HashSet::new();
    for (at, mount) in list(value, "volumeMounts").iter().enumerate() {
        let field = path.index(at);
        let (name, target) = (text(mount, "name"), text(mount, "mountPath"));
        let (name_at, path_at) = (field.child("name"), field.child("mountPath"));
        if name.is_empty() {
            faults.required(&name_at, "");
        }
        if !pod.volumes.contains_key(name) {
            faults.not_found(&name_at, &name.into());
        }
        if target.is_empty() {
            faults.required(&path_at, "");
        }
        if !paths.insert(target) {
            faults.invalid(&path_at, &target.into(), "must be unique");
        }
        if device_names.contains(name) {
            faults.invalid(&name_at, &name.into(), "must not already exist in volumeDevices");
        }
        if device_paths.contains(target) {
            faults.invalid(&path_at, &target.into(), "must not already exist as a path in volumeDevices");
        }
        mount_options(faults, value, mount, pod, path, &field);
    }
}

/// These are named by the list, without the index, as upstream does.
fn mount_options(
    faults: &mut Faults,
    value: &Value,
    mount: &Value,
    pod: &Pod<'_>,
    path: &Path<'_>,
    at: &Path<'_>,
) {
    let sub_paths = ["subPath", "subPathExpr"];
    if sub_paths.iter().all(|field| !text(mount, field).is_empty()) {
        let why = "subPathExpr and subPath are mutually exclusive";
        faults.invalid(&at.child("subPathExpr"), &mount["subPathExpr"], why);
    }
    for field in sub_paths {
        let given = text(mount, field);
        if let Some(fault) = Format::RelativePath.fault(given) {
            faults.invalid(&path.child(field), &given.into(), &fault);
        }
        if pod.containers == Containers::Ephemeral && !given.is_empty() {
            faults.forbidden(&at.child(field), "cannot be set for an Ephemeral Container");
        }
    }
    const PROPAGATIONS: [&str; 3] = ["Bidirectional", "HostToContainer", "None"];
    let (propagation, field) = (text(mount, "mountPropagation"), path.child("mountPropagation"));
    if has(mount, "mountPropagation") && !PROPAGATIONS.contains(&propagation) {
        faults.not_supported(&field, &propagation.into(), &PROPAGATIONS);
    }
    if propagation == "Bidirectional" && !is_true(&value["securityContext"], "privileged") {
        faults
            .forbidden(&field, "Bidirectional mount propagation is available only to privileged containers");
    }
    let field = path.child("recursiveReadOnly");
    match mount["recursiveReadOnly"].as_str() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !is_true(mount, "readOnly") {
                faults.forbidden(&field, "may only be specified when readOnly is true");
            }
            if has(mount, "mountPropagation") && propagation != "None" {
                let why = "may only be specified when mountPropagation is None or not specified";
                faults.forbidden(&field, why);
            }
        }
        Some(other) => faults.not_supported(&field, &other.into(), &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn devices(faults: &mut Faults, value: &Value, pod: &Pod<'_>, path: &Path<'_>) {
    let mounts = list(value, "volumeMounts");
    let mount_names: HashSet<&str> = mounts.iter().map(|mount| text(mount, "name")).collect();
    let mount_paths: HashSet<&str> = mounts.iter().map(|mount| text(mount, "mountPath")).collect();
    let (mut names, mut paths) = (HashSet::new(), HashSet::new());
    for (at, device) in list(value, "volumeDevices").iter().enumerate() {
        let field = path.index(at);
        let (name, target) = (text(device, "name"), text(device, "devicePath"));
        let (name_at, path_at) = (field.child("name"), field.child("devicePath"));
        if name.is_empty() {
            faults.required(&name_at, "");
        } else if !names.insert(name) {
            faults.invalid(&name_at, &name.into(), "must be unique");
        }
        match pod.volumes.get(name) {
            None => faults.not_found(&name_at, &name.into()),
            Some(source) if !has(source, "persistentVolumeClaim") && !has(source, "ephemeral") => {
                let why =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                faults.invalid(&name_at, &name.into(), why);
            }
            Some(_) => {}
        }
        if target.is_empty() {
            faults.required(&path_at, "");
        }
        if paths.contains(target) {
            faults.invalid(&path_at, &target.into(), "must be unique");
        }
        if Format::NoBacksteps.fault(target).is_some() {
            faults.invalid(&path_at, &target.into(), "can not contain backsteps ('..')");
        } else {
            paths.insert(target);
        }
        if mount_names.contains(name) {
            faults.invalid(&name_at, &name.into(), "must not already exist in volumeMounts");
        }
        if mount_paths.contains(target) {
            faults.invalid(&path_at, &target.into(), "must not already exist as a path in volumeMounts");
        }
    }
}

fn resize(faults: &mut Faults, value: &Value, pod: &Pod<'_>, path: &Path<'_>) {
    let mut seen = HashSet::new();
    for (at, policy) in list(value, "resizePolicy").iter().enumerate() {
        let (resource, restart) = (text(policy, "resourceName"), text(policy, "restartPolicy"));
        if !seen.insert(resource) {
            faults.duplicate(&path.index(at), &resource.into());
        }
        match resource {
            "cpu" | "memory" => {}
            "" => faults.required(path, ""),
            _ => faults.not_supported(path, &resource.into(), &["cpu", "memory"]),
        }
        match restart {
            "NotRequired" | "RestartContainer" => {}
            "" => faults.required(path, ""),
            _ => faults.not_supported(path, &restart.into(), &["NotRequired", "RestartContainer"]),
        }
        if text(pod.spec, "restartPolicy") == "Never" && restart != "NotRequired" {
            let why = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            faults.invalid(path, &restart.into(), why);
        }
    }
}

const SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];

fn exclusive_value(faults: &mut Faults, variable: &Value, path: &Path<'_>) {
    let from = &variable["valueFrom"];
    let n_sources = SOURCES.iter().filter(|source| has(from, source)).count();
    let why = match n_sources {
        _ if !has(variable, "valueFrom") => return,
        0 => {
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
        }
        _ if !text(variable, "value").is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    faults.invalid(path, &json!(""), why);
}

pub(super) fn value_from<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    const FIELDS: [&str; 9] = [
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    if has(value, "fieldRef") {
        field_ref(&mut walk.faults, &value["fieldRef"], &FIELDS, &path.child("fieldRef"));
    }
    if has(value, "resourceFieldRef") {
        let field = path.child("resourceFieldRef");
        resource_ref(&mut walk.faults, &value["resourceFieldRef"], false, &field);
    }
    Below::All
}

/// A field of the pod; `known` are those that may be had here.
pub(super) fn field_ref(faults: &mut Faults, value: &Value, known: &[&str], path: &Path<'_>) {
    let field = text(value, "fieldPath");
    if text(value, "apiVersion").is_empty() {
        return faults.required(&path.child("apiVersion"), "");
    }
    if field.is_empty() {
        return faults.required(&path.child("fieldPath"), "");
    }
    let subscript = field.strip_suffix("']").and_then(|rest| rest.split_once("['"));
    let base = subscript.map_or(field, |(base, _)| base);
    const LABELS: [&str; 10] = [
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
    ];
    let is_address = matches!(base, "status.hostIP" | "status.hostIPs" | "status.podIP" | "status.podIPs");
    let is_known =
        text(value, "apiVersion") == "v1" && (LABELS.contains(&base) || is_address || base == "spec.host");
    if !is_known {
        let why = format!("error converting fieldPath: field label not supported: {field}");
        return faults.invalid(&path.child("fieldPath"), &field.into(), &why);
    }
    match subscript {
        Some(("metadata.annotations", key)) => {
            if let Some(fault) = Format::QualifiedLower.fault(key) {
                faults.invalid(path, &key.into(), &fault);
            }
        }
        Some(("metadata.labels", key)) => {
            if let Some(fault) = Format::Qualified.fault(key) {
                faults.invalid(path, &key.into(), &fault);
            }
        }
        Some((base, _)) => faults.invalid(path, &base.into(), "does not support subscript"),
        None if !known.contains(&base) => {
            faults.not_supported(&path.child("fieldPath"), &base.into(), known);
        }
        None => {}
    }
}

/// A resource of a container, which a volume must name.
pub(super) fn resource_ref(faults: &mut Faults, value: &Value, is_volume: bool, path: &Path<'_>) {
    const RESOURCES: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let resource = text(value, "resource");
    let is_huge = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if is_volume && text(value, "containerName").is_empty() {
        faults.required(&path.child("containerName"), "");
    } else if resource.is_empty() {
        faults.required(&path.child("resource"), "");
    } else if !RESOURCES.contains(&resource) && !is_huge {
        faults.not_supported(&path.child("resource"), &resource.into(), &RESOURCES);
    }
    let Some(divisor) = quantity(&value["divisor"]).filter(|divisor| !divisor.is_zero()) else { return };
    let shown = divisor.to_string();
    let is_cpu = resource.ends_with(".cpu");
    const SUFFIXES: [&str; 13] = ["", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let is_fine = match is_cpu {
        true => shown == "1m" || shown == "1",
        false => shown.strip_prefix('1').is_some_and(|suffix| SUFFIXES.contains(&suffix)),
    };
    if (RESOURCES.contains(&resource) || is_huge) && !is_fine {
        let which =
            if is_cpu { "1m and 1" } else { "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei" };
        let what = resource.split_once('.').map_or(resource, |(_, what)| what);
        let why = format!("only divisor's values {which} are supported with the {what} resource");
        faults.invalid(&path.child("divisor"), &resource.into(), &why);
    }
}

pub(super) fn env_from<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let sources = [("configMapRef", &value["configMapRef"]), ("secretRef", &value["secretRef"])];
    let n_sources = sources.iter().filter(|(_, source)| !source.is_null()).count();
    // Named by the list, without the index, as upstream does.
    if n_sources == 0 {
        walk.faults.invalid(&path.parent(), &json!(""), "must specify one of: `configMapRef` or `secretRef`");
    } else if n_sources > 1 {
        walk.faults.invalid(
            &path.parent(),
            &json!(""),
            "may not have more than one field specified at a time",
        );
    }
    for (field, source) in sources {
        // What is named may be the beginning of a name, which may end with a dash.
        let name = text(source, "name");
        if !name.is_empty()
            && let Some(fault) =
                Format::Subdomain.fault(name.strip_suffix('-').map_or(name, |_| &name[..name.len() - 1]))
        {
            walk.faults.invalid(&path.child(field).child("name"), &name.into(), &fault);
        }
    }
    Below::All
}

/// Of a probe or a hook: exactly one way to do it.
pub(super) fn handler<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
    let given: Vec<&'static str> = HANDLERS.into_iter().filter(|handler| has(value, handler)).collect();
    let Some((first, others)) = given.split_first() else {
        walk.faults.required(path, "must specify a handler type");
        return Below::All;
    };
    for other in others {
        walk.faults.forbidden(&path.child(other), "may not specify more than 1 handler type");
    }
    if let (&"sleep", Some(grace)) = (first, walk.pod.as_ref().and_then(Pod::grace_seconds)) {
        let seconds = value["sleep"]["seconds"].as_i64().unwrap_or(0);
        if seconds < 0 || seconds > grace {
            let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
            walk.faults.invalid(&path.child("sleep"), &json!(seconds), &why);
        }
    }
    Below::But(others.to_vec())
}

pub(super) fn headers<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    for header in list(value, "httpHeaders") {
        let name = text(header, "name");
        if let Some(fault) = Format::HeaderName.fault(name) {
            walk.faults.invalid(&path.child("httpHeaders"), &name.into(), &fault);
        }
    }
    Below::All
}

pub(super) fn security<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let has_host_users = walk.pod.as_ref().is_none_or(Pod::has_host_users);
    if has_host_users && text(value, "procMount") == "Unmasked" {
        let why = "`hostUsers` must be false to use `Unmasked`";
        walk.faults.invalid(&path.child("procMount"), &value["procMount"], why);
    }
    if value.get("allowPrivilegeEscalation") == Some(&Value::Bool(false)) {
        if is_true(value, "privileged") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            walk.faults.invalid(path, value, why);
        }
        if list(&value["capabilities"], "add").iter().any(|capability| capability == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            walk.faults.invalid(path, value, why);
        }
    }
    Below::All
}

pub(super) fn seccomp<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let field = path.child("localhostProfile");
    match (text(value, "type"), value["localhostProfile"].as_str()) {
        ("Localhost", None) => {
            walk.faults.required(&field, "must be set when seccomp type is Localhost");
        }
        ("Localhost", Some(profile)) => {
            if let Some(fault) = Format::RelativePath.fault(profile) {
                walk.faults.invalid(&field, &profile.into(), &fault);
            }
        }
        (_, Some(_)) => {
            walk.faults.invalid(&field, value, "can only be set when seccomp type is Localhost");
        }
        (_, None) => {}
    }
    Below::All
}

pub(super) fn apparmor<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    const MAX_BYTES: usize = 4095;
    const NONE: &str = "must be set when AppArmor type is Localhost";
    let field = path.child("localhostProfile");
    match (text(value, "type"), value["localhostProfile"].as_str()) {
        ("Localhost", None | Some("")) => walk.faults.required(&field, NONE),
        ("Localhost", Some(profile)) => {
            if profile.trim() != profile {
                walk.faults.invalid(&field, &profile.into(), "must not be padded with whitespace");
            }
            if profile.len() > MAX_BYTES {
                walk.faults.too_long(&field, MAX_BYTES);
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(profile)) => {
            walk.faults.invalid(&field, &profile.into(), "can only be set when AppArmor type is Localhost");
        }
        _ => {}
    }
    Below::All
}
