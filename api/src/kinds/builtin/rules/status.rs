//! What others report of an object: its `status`, as it is written.

use std::cmp::Ordering;
use std::collections::HashSet;

use serde_json::{Value, json};

use super::format::{Format, parse_ip};
use super::path::{Faults, NOT_NEGATIVE, Path, entries, has, list, number, text};
use super::table::quantity;
use super::{amounts, certificates, devices, slices, storage};
use crate::{Kind, Object};

/// Counts that are never negative, by kind.
const COUNTS: [(&str, &[&str]); 6] = [
    (
        "Deployment",
        &[
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "collisionCount",
        ],
    ),
    (
        "ReplicaSet",
        &[
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "observedGeneration",
            "terminatingReplicas",
        ],
    ),
    (
        "ReplicationController",
        &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"],
    ),
    (
        "StatefulSet",
        &[
            "replicas",
            "readyReplicas",
            "currentReplicas",
            "updatedReplicas",
            "availableReplicas",
            "observedGeneration",
            "collisionCount",
        ],
    ),
    (
        "DaemonSet",
        &[
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ],
    ),
    ("PodDisruptionBudget", &["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"]),
];

/// Counts of pods that are among all, by kind; those that are available are among those that are ready.
const PARTS: [(&str, &[&str]); 4] = [
    ("Deployment", &["updatedReplicas", "readyReplicas", "availableReplicas"]),
    ("ReplicaSet", &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"]),
    ("ReplicationController", &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"]),
    ("StatefulSet", &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"]),
];

pub(super) fn check(kind: &Kind, new: &Object, old: &Object, faults: &mut Faults) {
    let (status, was) = (&new["status"], &old["status"]);
    let root = Path::ROOT;
    let path = root.child("status");
    counts(faults, &kind.kind, status, was, &path);
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Namespace") => {
            let is_ending = !new["metadata"]["deletionTimestamp"].is_null();
            let wanted = if is_ending { "Terminating" } else { "Active" };
            if text(status, "phase") != wanted {
                let why = format!("may only be '{wanted}' if `deletionTimestamp` is empty or not");
                faults.invalid(&path.child("Phase"), &json!(text(status, "phase")), &why);
            }
        }
        ("", "Node") => node(faults, status, &path),
        ("", "PersistentVolumeClaim") => claim(faults, status, &path),
        ("", "Pod") => pod(faults, new, old, &path),
        ("", "Service") => {
            balancer(
                faults,
                &status["loadBalancer"],
                &was["loadBalancer"],
                &new["spec"],
                &path.child("loadBalancer"),
            );
        }
        ("networking.k8s.io", "Ingress") => {
            let any = json!({"type": "LoadBalancer"});
            let field = path.child("loadBalancer");
            balancer(faults, &status["loadBalancer"], &was["loadBalancer"], &any, &field);
        }
        ("flowcontrol.apiserver.k8s.io", _) => {
            let (field, mut seen) = (path.child("conditions"), HashSet::new());
            for (at, condition) in list(status, "conditions").iter().enumerate() {
                let (path, type_) = (field.index(at), text(condition, "type"));
                if !seen.insert(type_) {
                    faults.duplicate(&path.child("type"), &type_.into());
                }
                if type_.is_empty() {
                    faults.required(&path.child("type"), "");
                }
            }
        }
        ("apiregistration.k8s.io", _) => {
            const STATUSES: [&str; 3] = ["True", "False", "Unknown"];
            let field = path.child("conditions");
            for (at, condition) in list(status, "conditions").iter().enumerate() {
                if !STATUSES.contains(&text(condition, "status")) {
                    faults.not_supported(&field.index(at).child("status"), &condition["status"], &STATUSES);
                }
            }
        }
        ("policy", "PodDisruptionBudget") => conditions(faults, status, &path.child("conditions")),
        ("certificates.k8s.io", "PodCertificateRequest") => certificates::answered(faults, new, old, &path),
        ("storagemigration.k8s.io", _) => storage::migrated(faults, status, was, &path),
        ("resource.k8s.io", "DeviceTaintRule") => {
            const MAX_CONDITIONS: usize = 8;
            let (field, n) = (path.child("conditions"), list(status, "conditions").len());
            conditions(faults, status, &field);
            if n > MAX_CONDITIONS {
                faults.too_many(&field, n, MAX_CONDITIONS);
            }
        }
        ("batch", "Job") => job(faults, status, &new["spec"], &path),
        ("resource.k8s.io", "ResourceClaim") => device_claim(faults, new, was, &path),
        _ => {}
    }
}

fn counts(faults: &mut Faults, kind: &str, status: &Value, was: &Value, path: &Path<'_>) {
    let of = |table: &[(&str, &'static [&'static str])]| -> &'static [&'static str] {
        table.iter().find(|(of, _)| *of == kind).map_or(&[], |(_, fields)| fields)
    };
    let all = of(&COUNTS);
    for field in all.iter().filter(|field| number(status, field) < 0) {
        faults.invalid(&path.child(field), &status[*field], NOT_NEGATIVE);
    }
    let parts = of(&PARTS);
    for field in parts.iter().filter(|field| number(status, field) > number(status, "replicas")) {
        faults.invalid(&path.child(field), &status[*field], "cannot be greater than status.replicas");
    }
    if !parts.is_empty() && number(status, "availableReplicas") > number(status, "readyReplicas") {
        let shown = &status["availableReplicas"];
        faults.invalid(&path.child("availableReplicas"), shown, "cannot be greater than readyReplicas");
    }
    if all.contains(&"collisionCount") && number(status, "collisionCount") < number(was, "collisionCount") {
        let shown = json!(number(status, "collisionCount"));
        faults.invalid(&path.child("collisionCount"), &shown, "cannot be decremented");
    }
}

/// Conditions of the form that all newer kinds have.
pub(super) fn conditions(faults: &mut Faults, holder: &Value, path: &Path<'_>) {
    const STATUSES: [&str; 3] = ["True", "False", "Unknown"];
    let mut seen = HashSet::new();
    for (at, condition) in list(holder, "conditions").iter().enumerate() {
        let (path, type_, reason) = (path.index(at), text(condition, "type"), text(condition, "reason"));
        if !seen.insert(type_) {
            faults.duplicate(&path.child("type"), &type_.into());
        }
        match type_ {
            "" => faults.required(&path.child("type"), "must be set"),
            type_ => {
                if let Some(fault) = Format::Qualified.fault(type_) {
                    faults.invalid(&path.child("type"), &type_.into(), &fault);
                }
            }
        }
        if !STATUSES.contains(&text(condition, "status")) {
            faults.not_supported(&path.child("status"), &json!(text(condition, "status")), &STATUSES);
        }
        if number(condition, "observedGeneration") < 0 {
            let shown = &condition["observedGeneration"];
            faults.invalid(&path.child("observedGeneration"), shown, NOT_NEGATIVE);
        }
        if !has(condition, "lastTransitionTime") {
            faults.required(&path.child("lastTransitionTime"), "must be set");
        }
        if reason.is_empty() {
            faults.required(&path.child("reason"), "must be set");
        } else if !is_reason(reason) {
            let why = "a condition reason must start with alphabetic character, optionally followed by a string of \
                       alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'";
            faults.invalid(&path.child("reason"), &reason.into(), why);
        }
    }
}

fn is_reason(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| is_word(b) || matches!(b, b',' | b':'))
        && text.bytes().last().is_some_and(is_word)
}

/// What a node has to give, and what it says it can do.
fn node(faults: &mut Faults, status: &Value, path: &Path<'_>) {
    const MAX_BYTES: usize = 253;
    for side in ["capacity", "allocatable"] {
        let field = path.child(side);
        for (name, amount) in entries(status, side) {
            amounts::resource_amount(name, amount, &field.child(name), faults);
        }
    }
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic()) && word.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let (field, mut before) = (path.child("declaredFeatures"), None);
    for (at, feature) in list(status, "declaredFeatures").iter().enumerate() {
        let (path, name) = (field.index(at), feature.as_str().unwrap_or_default());
        let is_capital = name.starts_with(|c: char| c.is_ascii_uppercase());
        if name.len() > MAX_BYTES || !is_capital || !name.split('/').all(is_word) {
            faults.invalid(
                &path,
                feature,
                "must be words of letters and digits, the first with a capital, with '/' between",
            );
        }
        match before.map(|before: &str| before.cmp(name)) {
            Some(Ordering::Equal) => faults.duplicate(&path, feature),
            Some(Ordering::Greater) => faults.invalid(&path, feature, "list must be sorted alphabetically"),
            _ => {}
        }
        before = Some(name);
    }
}

fn job(faults: &mut Faults, status: &Value, spec: &Value, path: &Path<'_>) {
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        if number(status, field) < 0 {
            faults.invalid(&path.child(field), &status[field], NOT_NEGATIVE);
        }
    }
    let (field, mut seen) = (path.child("uncountedTerminatedPods"), HashSet::new());
    for side in ["succeeded", "failed"] {
        let field = field.child(side);
        for (at, pod) in list(&status["uncountedTerminatedPods"], side).iter().enumerate() {
            let uid = pod.as_str().unwrap_or_default();
            if uid.is_empty() {
                faults.invalid(&field.index(at), &uid.into(), "must not be empty");
            } else if !seen.insert(uid) {
                faults.duplicate(&field.index(at), pod);
            }
        }
    }
    if has(status, "ready") && number(status, "ready") > number(status, "active") {
        faults.invalid(&path.child("ready"), &status["ready"], "cannot set more ready pods than active");
    }
    let is_complete = |condition: &Value| condition["type"] == "Complete" && condition["status"] == "True";
    if has(status, "completionTime") && !list(status, "conditions").iter().any(is_complete) {
        let why = "cannot set completionTime when there is no Complete=True condition";
        faults.invalid(&path.child("completionTime"), &status["completionTime"], why);
    }
    let is_indexed = spec["completionMode"] == "Indexed";
    let completed = text(status, "completedIndexes");
    if !completed.is_empty() && (!is_indexed || !are_indexes(completed)) {
        let why =
            "cannot set non-empty completedIndexes when non-indexed completion mode, or others than indexes";
        faults.invalid(&path.child("completedIndexes"), &completed.into(), why);
    }
    let failed = &status["failedIndexes"];
    if failed.as_str().is_some_and(|failed| !has(spec, "backoffLimitPerIndex") || !are_indexes(failed)) {
        let why =
            "cannot set non-null failedIndexes when backoffLimitPerIndex is null, or others than indexes";
        faults.invalid(&path.child("failedIndexes"), failed, why);
    }
}

/// `1,3-5`, or nothing.
fn are_indexes(text: &str) -> bool {
    let is_index = |text: &str| text.parse::<u32>().is_ok();
    text.is_empty()
        || text
            .split(',')
            .all(|part| part.split_once('-').map_or(is_index(part), |(a, b)| is_index(a) && is_index(b)))
}

fn claim(faults: &mut Faults, status: &Value, path: &Path<'_>) {
    const STATUSES: [&str; 5] = [
        "ControllerResizeInProgress",
        "ControllerResizeInfeasible",
        "NodeResizeInProgress",
        "NodeResizeInfeasible",
        "NodeResizePending",
    ];
    let is_negative = |amount: &Value| quantity(amount).is_some_and(|amount| amount.is_negative());
    let field = path.child("capacity");
    for (name, amount) in entries(status, "capacity").filter(|(_, amount)| is_negative(amount)) {
        faults.invalid(&field.key(name), amount, "must be a valid resource quantity");
    }
    let field = path.child("allocatedResourceStatuses");
    for (name, given) in entries(status, "allocatedResourceStatuses") {
        claim_resource(faults, name, &field);
        if !given.as_str().is_some_and(|given| STATUSES.contains(&given)) {
            faults.not_supported(&field, &name.as_str().into(), &STATUSES);
        }
    }
    let field = path.child("allocatedResources");
    for (name, amount) in entries(status, "allocatedResources") {
        if claim_resource(faults, name, &field) && is_negative(amount) {
            faults.invalid(&field.key(name), amount, "must be a valid resource quantity");
        }
    }
}

/// What of a claim is resized: its storage, or something of somebody else's.
fn claim_resource(faults: &mut Faults, name: &str, path: &Path<'_>) -> bool {
    if let Some(fault) = Format::Qualified.fault(name) {
        faults.invalid(path, &name.into(), &fault);
        return false;
    }
    let is_foreign = name.split_once('/').is_some_and(|(domain, _)| !domain.contains("kubernetes.io"));
    if name != "storage" && !is_foreign {
        faults.not_supported(path, &name.into(), &["storage"]);
        return false;
    }
    true
}

/// Where the states of containers are, and where the containers.
const CONTAINERS: [(&str, Option<&str>); 3] = [
    ("containerStatuses", Some("containers")),
    ("initContainerStatuses", Some("initContainers")),
    ("ephemeralContainerStatuses", None),
];

fn pod(faults: &mut Faults, new: &Object, old: &Object, path: &Path<'_>) {
    const SYSTEM: [&str; 3] = ["PodScheduled", "Ready", "Initialized"];
    let (status, was, spec) = (&new["status"], &old["status"], &new["spec"]);
    let field = path.child("conditions");
    for (at, condition) in list(status, "conditions").iter().enumerate() {
        let (path, type_) = (field.index(at), text(condition, "type"));
        if number(condition, "observedGeneration") < 0 {
            let shown = &condition["observedGeneration"];
            faults.invalid(&path.child("observedGeneration"), shown, "must be a non-negative integer");
        }
        if !SYSTEM.contains(&type_)
            && let Some(fault) = Format::Qualified.fault(type_)
        {
            faults.invalid(&path.child("Type"), &type_.into(), &fault);
        }
    }
    let (nominated, field) = (text(status, "nominatedNodeName"), path.child("nominatedNodeName"));
    if !nominated.is_empty() && nominated != text(was, "nominatedNodeName") {
        if let Some(fault) = Format::Subdomain.fault(nominated) {
            faults.invalid(&field, &nominated.into(), &fault);
        }
        if !text(&old["spec"], "nodeName").is_empty() {
            faults.forbidden(&field, "may not be set on pods that are already bound to a node");
        }
    }
    if number(status, "observedGeneration") < 0 {
        let shown = &status["observedGeneration"];
        faults.invalid(&path.child("observedGeneration"), shown, "must be a non-negative integer");
    }
    if text(status, "qosClass") != text(was, "qosClass") {
        faults.invalid(&path.child("qosClass"), &status["qosClass"], "field is immutable");
    }
    let (field, mut seen) = (path.child("resourceClaimStatuses"), HashSet::new());
    for (at, claim) in list(status, "resourceClaimStatuses").iter().enumerate() {
        let (path, name) = (field.index(at), text(claim, "name"));
        if !list(spec, "resourceClaims").iter().any(|claim| text(claim, "name") == name) {
            let why = "must match the name of an entry in `spec.resourceClaims`";
            faults.invalid(&path.child("name"), &name.into(), why);
        }
        if !seen.insert(name) {
            faults.duplicate(&path.child("name"), &name.into());
        }
        if let Some(fault) =
            claim["resourceClaimName"].as_str().and_then(|name| Format::Subdomain.fault(name))
        {
            faults.invalid(&path.child("resourceClaimName"), &claim["resourceClaimName"], &fault);
        }
    }
    if has(status, "extendedResourceClaimStatus") {
        let field = path.child("extendedResourceClaimStatus");
        extended_claim(faults, &status["extendedResourceClaimStatus"], spec, &field);
    }
    if let Some(first) = list(status, "hostIPs").first()
        && text(first, "ip") != text(status, "hostIP")
    {
        let field = path.child("hostIPs");
        faults.invalid(&field.index(0).child("ip"), &first["ip"], "must be equal to `hostIP`");
    }
    addresses(faults, list(status, "podIPs"), list(was, "podIPs"), &path.child("podIPs"));
    addresses(faults, list(status, "hostIPs"), list(was, "hostIPs"), &path.child("hostIPs"));
    for (statuses, containers) in CONTAINERS {
        let field = path.child(statuses);
        for (at, status) in list(status, statuses).iter().enumerate() {
            let path = field.index(at);
            container_user(faults, status, spec, &path);
            let field = path.child("allocatedResourcesStatus");
            allocated(faults, status, containers.map(|field| list(spec, field)), &field);
        }
    }
}

/// What a container runs as, on the system that its pod is for.
fn container_user(faults: &mut Faults, status: &Value, spec: &Value, path: &Path<'_>) {
    let (user, path) = (&status["user"]["linux"], path.child("user"));
    let path = path.child("linux");
    if user.is_null() {
        return;
    }
    match spec["os"]["name"].as_str().unwrap_or("linux") {
        "windows" => faults.forbidden(&path, "cannot be set for a windows pod"),
        "linux" => {
            let is_id = |id: i64| i32::try_from(id).is_ok_and(|id| id >= 0);
            let why = "must be between 0 and 2147483647, inclusive";
            for field in ["uid", "gid"] {
                if !is_id(number(user, field)) {
                    faults.invalid(&path.child(field), &user[field], why);
                }
            }
            let field = path.child("supplementalGroups");
            for (at, group) in list(user, "supplementalGroups").iter().enumerate() {
                if !group.as_i64().is_some_and(is_id) {
                    faults.invalid(&field.index(at), group, why);
                }
            }
        }
        _ => {}
    }
}

/// How the devices of a container are. One that came later (`containers` is none) has none.
fn allocated(faults: &mut Faults, status: &Value, containers: Option<&[Value]>, path: &Path<'_>) {
    const HEALTHS: [&str; 3] = ["Healthy", "Unhealthy", "Unknown"];
    const MAX_BYTES: usize = 1024;
    let given = list(status, "allocatedResourcesStatus");
    let Some(containers) = containers else {
        if !given.is_empty() {
            faults.forbidden(path, "must not be specified in container status");
        }
        return;
    };
    let container = containers.iter().find(|of| text(of, "name") == text(status, "name"));
    // Of containers that the pod does not have (any more), names are not known.
    let names: Option<HashSet<String>> = container.map(|container| {
        let claims = list(&container["resources"], "claims").iter().map(|claim| {
            let (name, request) = (text(claim, "name"), text(claim, "request"));
            if request.is_empty() { format!("claim:{name}") } else { format!("claim:{name}/{request}") }
        });
        let requests = entries(&container["resources"], "requests").map(|(name, _)| name.to_owned());
        claims.chain(requests.filter(|name| !name.starts_with("claim:"))).collect()
    });
    for (at, resource) in given.iter().enumerate() {
        let (path, name) = (path.index(at), text(resource, "name"));
        if names.as_ref().is_some_and(|names| !names.contains(name)) {
            let why = "must match one of the container's resource claims or requests";
            faults.invalid(&path.child("name"), &name.into(), why);
        }
        let (field, mut seen) = (path.child("resources"), HashSet::new());
        for (at, device) in list(resource, "resources").iter().enumerate() {
            let path = field.index(at);
            if !HEALTHS.contains(&text(device, "health")) {
                faults.not_supported(&path.child("health"), &device["health"], &HEALTHS);
            }
            match device["message"].as_str() {
                Some("") => faults.required(&path.child("message"), "must be non-empty if specified"),
                Some(message) if message.len() > MAX_BYTES => {
                    faults.too_long(&path.child("message"), MAX_BYTES);
                }
                _ => {}
            }
            let id = text(device, "resourceID");
            if !seen.insert(id) {
                faults.duplicate(&path.child("resourceID"), &id.into());
            }
        }
    }
}

/// Addresses of one thing: one of each family.
fn addresses(faults: &mut Faults, given: &[Value], before: &[Value], path: &Path<'_>) {
    for (at, address) in given.iter().enumerate() {
        let ip = text(address, "ip");
        let is_old = before.iter().any(|before| text(before, "ip") == ip);
        if let Some(fault) = Format::Ip.fault(ip).filter(|_| !is_old) {
            faults.invalid(&path.index(at), &ip.into(), &fault);
        }
    }
    let known: Vec<_> = given.iter().filter_map(|address| parse_ip(text(address, "ip"))).collect();
    if given.len() > 1 && known.len() < given.len() {
        faults.push(crate::Cause::internal(path.to_string(), "failed to check for dual stack"));
    }
    let families: HashSet<bool> = known.iter().map(|ip| ip.is_ipv4()).collect();
    if given.len() > 2 || (given.len() == 2 && (families.len() < 2 || known.len() < 2)) {
        let why = "may specify no more than one IP for each IP family";
        faults.invalid(path, &json!("addresses"), why);
    }
}

fn extended_claim(faults: &mut Faults, status: &Value, spec: &Value, path: &Path<'_>) {
    let (mappings, field) = (list(status, "requestMappings"), path.child("requestMappings"));
    if mappings.is_empty() {
        faults.required(&field, "at least one request mapping is required");
    }
    let containers = || ["initContainers", "containers"].into_iter().flat_map(|kind| list(spec, kind));
    let mut seen = HashSet::new();
    for (at, mapping) in mappings.iter().enumerate() {
        let key = ["containerName", "resourceName", "requestName"].map(|field| text(mapping, field));
        let (path_of, [container, resource, request]) = (field.index(at), key);
        match containers().find(|of| text(of, "name") == container) {
            None => {
                let why =
                    "must match the name of an entry in spec.initContainers.name or spec.containers.name";
                faults.invalid(&path_of.child("containerName"), &container.into(), why);
            }
            Some(of) if !has(&of["resources"]["requests"], resource) => {
                let why = "must match the extended resource name of an entry in spec.initContainers.resources.requests or \
                           spec.containers.resources.requests";
                faults.invalid(&path_of.child("resourceName"), &resource.into(), why);
            }
            Some(_) => {}
        }
        devices::label(faults, request, &path.child("requestName"));
        if !seen.insert(key) {
            for part in ["containerName", "resourceName", "requestName"] {
                faults.duplicate(&path_of.child(part), &mapping[part]);
            }
        }
    }
    let (name, field) = (text(status, "resourceClaimName"), path.child("resourceClaimName"));
    if name.is_empty() {
        faults.required(&field, "");
    } else if let Some(fault) = Format::Subdomain.fault(name) {
        faults.invalid(&field, &name.into(), &fault);
    }
}

/// Where a load balancer takes traffic in.
fn balancer(faults: &mut Faults, status: &Value, was: &Value, spec: &Value, path: &Path<'_>) {
    const MODES: [&str; 2] = ["Proxy", "VIP"];
    let (ingress, field) = (list(status, "ingress"), path.child("ingress"));
    if text(spec, "type") != "LoadBalancer" && !ingress.is_empty() {
        return faults.forbidden(&field, "may only be used when `spec.type` is 'LoadBalancer'");
    }
    // Of an Ingress there is no mode.
    let has_modes = spec.get("ports").is_some();
    for (at, one) in ingress.iter().enumerate() {
        let (path, ip, host) = (field.index(at), text(one, "ip"), text(one, "hostname"));
        let is_old = list(was, "ingress").iter().any(|before| text(before, "ip") == ip);
        if !ip.is_empty()
            && let Some(fault) = Format::Ip.fault(ip).filter(|_| !is_old)
        {
            faults.invalid(&path.child("ip"), &ip.into(), &fault);
        }
        match one["ipMode"].as_str().filter(|_| has_modes) {
            None if has_modes && !ip.is_empty() => {
                faults.required(&path.child("ipMode"), "must be specified when `ip` is set");
            }
            None => {}
            Some(_) if ip.is_empty() => {
                faults.forbidden(&path.child("ipMode"), "may not be specified when `ip` is not set");
            }
            Some(mode) if !MODES.contains(&mode) => {
                faults.not_supported(&path.child("ipMode"), &mode.into(), &MODES);
            }
            Some(_) => {}
        }
        if !host.is_empty() {
            if let Some(fault) = Format::Subdomain.fault(host) {
                faults.invalid(&path.child("hostname"), &host.into(), &fault);
            }
            if parse_ip(host).is_some() {
                let why = "must be a DNS name, not an IP address";
                faults.invalid(&path.child("hostname"), &host.into(), why);
            }
        }
    }
}

/// Who has a claim's devices, and what their drivers say of them.
fn device_claim(faults: &mut Faults, new: &Object, was: &Value, path: &Path<'_>) {
    const MAX_CONSUMERS: usize = 256;
    let status = &new["status"];
    let (consumers, field) = (list(status, "reservedFor"), path.child("reservedFor"));
    if consumers.len() > MAX_CONSUMERS {
        faults.too_many(&field, consumers.len(), MAX_CONSUMERS);
    } else {
        for (at, consumer) in consumers.iter().enumerate() {
            let path = field.index(at);
            for part in ["resource", "name", "uid"] {
                if text(consumer, part).is_empty() {
                    faults.required(&path.child(part), "");
                }
            }
        }
        slices::unique(faults, consumers, "uid", &field);
    }
    if !consumers.is_empty() && !has(status, "allocation") {
        faults.forbidden(&field, "may not be specified when `allocated` is not set");
    }
    if has(was, "allocation") && has(status, "allocation") && was["allocation"] != status["allocation"] {
        faults.invalid(&path.child("allocation"), &Value::Null, "field is immutable");
    }
    let id =
        |device: &Value| ["driver", "pool", "device", "shareID"].map(|part| text(device, part).to_owned());
    let allocated: HashSet<_> = list(&status["allocation"]["devices"], "results").iter().map(id).collect();
    let (field, mut seen) = (path.child("devices"), HashSet::new());
    for (at, device) in list(status, "devices").iter().enumerate() {
        let path = field.index(at);
        devices::driver(faults, text(device, "driver"), &path.child("driver"));
        slices::pool_name(faults, text(device, "pool"), &path.child("pool"));
        devices::label(faults, text(device, "device"), &path.child("device"));
        if device["shareID"].as_str().is_some_and(|share| !is_uuid(share)) {
            faults.invalid(&path.child("shareID"), &device["shareID"], "error validating uid");
        }
        if !allocated.contains(&id(device)) {
            faults.invalid(&path, &Value::Null, "must be an allocated device in the claim");
        }
        conditions(faults, device, &path.child("conditions"));
        if !seen.insert(id(device)) {
            faults.duplicate(&path, &Value::Null);
        }
    }
}

/// In small letters, with hyphens.
fn is_uuid(text: &str) -> bool {
    let parts: Vec<usize> = text.split('-').map(str::len).collect();
    parts == [8, 4, 4, 4, 12]
        && text.bytes().all(|b| b == b'-' || b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kinds;

    #[track_caller]
    fn check_all(kind: &str, new: Value, old: Value, wanted: &[(&str, &str)]) {
        let kinds = Kinds::builtin();
        let kind = kinds.iter().find(|found| found.kind == kind).unwrap();
        let mut faults = Faults::default();
        check(kind, &new, &old, &mut faults);
        let found: Vec<(&str, &str)> = faults
            .causes
            .iter()
            .map(|cause| (cause.field.as_str(), cause.reason.trim_start_matches("FieldValue")))
            .collect();
        assert_eq!(found, wanted, "{new}");
    }

    #[test]
    fn parts_of_all_pods_are_no_more_than_all() {
        let status = |status: Value| json!({ "status": status });
        let old = status(json!({"collisionCount": 2}));
        let good = json!({"replicas": 3, "readyReplicas": 2, "availableReplicas": 2, "collisionCount": 2});
        check_all("Deployment", status(good), old.clone(), &[]);
        let bad = json!({"replicas": 1, "readyReplicas": 1, "availableReplicas": 2, "collisionCount": 1});
        check_all(
            "Deployment",
            status(bad),
            old,
            &[
                ("status.availableReplicas", "Invalid"),
                ("status.availableReplicas", "Invalid"),
                ("status.collisionCount", "Invalid"),
            ],
        );
        check_all(
            "DaemonSet",
            status(json!({"numberReady": -1})),
            json!({}),
            &[("status.numberReady", "Invalid")],
        );
    }

    #[test]
    fn a_pod_has_one_address_of_each_family_and_keeps_its_class() {
        let pod = |ips: Value, class: &str| json!({"spec": {}, "status": {"podIPs": ips, "qosClass": class}});
        let both = json!([{"ip": "10.0.0.1"}, {"ip": "2001:db8::1"}]);
        check_all("Pod", pod(both, "Burstable"), pod(json!([]), "Burstable"), &[]);
        let twice = json!([{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]);
        check_all(
            "Pod",
            pod(twice, "Burstable"),
            pod(json!([]), "Burstable"),
            &[("status.podIPs", "Invalid")],
        );
        check_all(
            "Pod",
            pod(json!([{"ip": "010.0.0.1"}]), "BestEffort"),
            pod(json!([]), "Burstable"),
            &[("status.qosClass", "Invalid"), ("status.podIPs[0]", "Invalid")],
        );
    }
    #[test]
    fn what_containers_run_as_and_have_is_checked() {
        let device = |health: &str| json!({"resourceID": "d", "health": health});
        let claims = json!([{"name": "c", "request": "r"}]);
        let pod = |statuses: Value| {
            let mut status = json!({"qosClass": "BestEffort"});
            status.as_object_mut().unwrap().extend(statuses.as_object().unwrap().clone());
            json!({"spec": {"containers": [{"name": "a", "resources": {"claims": claims}}]}, "status": status})
        };
        let of = |resource: Value| json!([{"name": "a", "allocatedResourcesStatus": [resource]}]);
        let good = json!({"name": "claim:c/r", "resources": [device("Healthy")]});
        check_all("Pod", pod(json!({"containerStatuses": of(good.clone())})), pod(json!({})), &[]);
        let bad = json!({"name": "claim:c", "resources": [device("Healthy"), device("")]});
        let resource = "status.containerStatuses[0].allocatedResourcesStatus[0]";
        check_all(
            "Pod",
            pod(json!({"containerStatuses": of(bad)})),
            pod(json!({})),
            &[
                (&format!("{resource}.name"), "Invalid"),
                (&format!("{resource}.resources[1].health"), "NotSupported"),
                (&format!("{resource}.resources[1].resourceID"), "Duplicate"),
            ],
        );
        check_all(
            "Pod",
            pod(json!({"ephemeralContainerStatuses": of(good)})),
            pod(json!({})),
            &[("status.ephemeralContainerStatuses[0].allocatedResourcesStatus", "Forbidden")],
        );
        let user = json!([{"user": {"linux": {"uid": -1, "gid": 0, "supplementalGroups": [1, -1]}}}]);
        check_all(
            "Pod",
            pod(json!({"initContainerStatuses": user})),
            pod(json!({})),
            &[
                ("status.initContainerStatuses[0].user.linux.uid", "Invalid"),
                ("status.initContainerStatuses[0].user.linux.supplementalGroups[1]", "Invalid"),
            ],
        );
    }

    #[test]
    fn features_of_a_node_are_sorted_names_and_its_amounts_not_negative() {
        let node = |status: Value| json!({ "status": status });
        let good = json!({"declaredFeatures": ["A", "B/c"], "capacity": {"cpu": "1"}});
        check_all("Node", node(good), json!({}), &[]);
        check_all(
            "Node",
            node(json!({"declaredFeatures": ["B", "A", "A", "a"], "capacity": {"cpu": "-1"}})),
            json!({}),
            &[
                ("status.capacity.cpu", "Invalid"),
                ("status.declaredFeatures[1]", "Invalid"),
                ("status.declaredFeatures[2]", "Duplicate"),
                ("status.declaredFeatures[3]", "Invalid"),
            ],
        );
    }

    #[test]
    fn a_pod_that_is_counted_once_more_is_named_and_named_once() {
        let uncounted = json!({"succeeded": ["a", ""], "failed": ["a"]});
        check_all(
            "Job",
            json!({"status": {"uncountedTerminatedPods": uncounted, "active": -1}}),
            json!({}),
            &[
                ("status.active", "Invalid"),
                ("status.uncountedTerminatedPods.succeeded[1]", "Invalid"),
                ("status.uncountedTerminatedPods.failed[0]", "Duplicate"),
            ],
        );
    }
}
