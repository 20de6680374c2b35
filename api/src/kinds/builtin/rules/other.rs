//! Nodes, runtimes, budgets and rights.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::format::{Format, parse_cidr};
use super::path::{Path, entries, has, list, text};
use super::walk::{Below, Walk};
use super::{amounts, is_selector};
use crate::Cause;

pub(super) fn node<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    let (root, spec) = (Path::ROOT, &value["spec"]);
    let (meta, status, spec_at) = (root.child("metadata"), root.child("status"), root.child("spec"));
    for side in ["capacity", "allocatable"] {
        let field = status.child(side);
        for (name, amount) in entries(&value["status"], side) {
            amounts::resource_amount(name, amount, &field.child(name), &mut walk.faults);
        }
    }
    if walk.old.is_some_and(|old| text(&old["spec"], "externalID") != text(spec, "externalID")) {
        walk.faults.forbidden(&spec_at.child("externalID"), "may not be updated");
    }
    // Taints are named below the metadata, as upstream does.
    let (field, mut seen) = (meta.child("taints"), HashSet::new());
    for (at, taint) in list(spec, "taints").iter().enumerate() {
        let path = field.index(at);
        walk.value("core.v1.Taint", taint, &path);
        if !seen.insert((text(taint, "key"), text(taint, "effect"))) {
            walk.faults.duplicate(&path, taint);
        }
    }
    let cidrs = list(spec, "podCIDRs");
    let field = spec_at.child("podCIDRs");
    for (at, cidr) in cidrs.iter().enumerate() {
        if let Some(fault) = Format::Cidr.fault(cidr.as_str().unwrap_or_default()) {
            walk.faults.invalid(&field.index(at), cidr, &fault);
        }
    }
    let known: Vec<_> = cidrs.iter().filter_map(|cidr| parse_cidr(cidr.as_str()?)).collect();
    if cidrs.len() > 1 && known.len() < cidrs.len() {
        let why = "invalid PodCIDRs. failed to check with dual stack";
        walk.faults.push(Cause::internal(field.to_string(), why));
    }
    let families: HashSet<bool> = known.iter().map(|(address, _)| address.is_ipv4()).collect();
    if cidrs.len() > 2 || (cidrs.len() == 2 && (families.len() < 2 || known.len() < 2)) {
        let why = "may specify no more than one CIDR for each IP family";
        walk.faults.invalid(&field, &spec["podCIDRs"], why);
    }
    Below::But(vec!["spec"])
}

pub(super) fn namespace<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    let (root, finalizers) = (Path::ROOT, list(&value["spec"], "finalizers"));
    let (spec, field) = (root.child("spec"), "finalizers");
    for finalizer in finalizers {
        let text = finalizer.as_str().unwrap_or_default();
        let fault = Format::Qualified.fault(text).or_else(|| {
            let is_known =
                text.contains('/') || matches!(text, "kubernetes" | "orphan" | "foregroundDeletion");
            (!is_known).then(|| "name is neither a standard finalizer name nor is it fully qualified".into())
        });
        if let Some(fault) = fault {
            walk.faults.invalid(&spec.child(field), finalizer, &fault);
        }
    }
    Below::All
}

/// What cannot change was checked when it was made.
pub(super) fn priority<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    const POLICIES: [&str; 2] = ["Never", "PreemptLowerPriority"];
    let (root, policy) = (Path::ROOT, &value["preemptionPolicy"]);
    let field = root.child("preemptionPolicy");
    match policy.as_str().filter(|_| walk.old.is_none()) {
        None => {}
        Some("") => walk.faults.required(&field, ""),
        Some(policy) if POLICIES.contains(&policy) => {}
        Some(_) => walk.faults.not_supported(&field, policy, &POLICIES),
    }
    Below::All
}

pub(super) fn runtime_class<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    let root = Path::ROOT;
    let fixed = json!({"limits": value["overhead"]["podFixed"]});
    amounts::requirements(&fixed, &HashSet::new(), &root.child("overhead"), &mut walk.faults);
    let scheduling = root.child("scheduling");
    let (field, mut seen) = (scheduling.child("tolerations"), HashSet::new());
    for (at, toleration) in list(&value["scheduling"], "tolerations").iter().enumerate() {
        let key = ["key", "operator", "value", "effect"].map(|part| text(toleration, part));
        if !seen.insert(key) {
            walk.faults.duplicate(&field.index(at), toleration);
        }
    }
    Below::All
}

pub(super) fn budget<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    if has(value, "minAvailable") && has(value, "maxUnavailable") {
        walk.faults.invalid(path, value, "minAvailable and maxUnavailable cannot be both set");
    }
    Below::All
}

const RBAC: &str = "rbac.authorization.k8s.io";

/// A binding within a namespace may name a role of it.
pub(super) fn binding<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    let (root, role) = (Path::ROOT, &value["roleRef"]);
    let is_namespaced = value["kind"] == "RoleBinding";
    let kinds: &[&str] = if is_namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    let field = root.child("roleRef");
    if !kinds.contains(&text(role, "kind")) {
        walk.faults.not_supported(&field.child("kind"), &role["kind"], kinds);
    }
    let subjects = root.child("subjects");
    for (at, subject) in list(value, "subjects").iter().enumerate() {
        let (path, faults) = (subjects.index(at), &mut walk.faults);
        let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
        match text(subject, "kind") {
            "ServiceAccount" => {
                if !name.is_empty()
                    && let Some(fault) = Format::Subdomain.fault(name)
                {
                    faults.invalid(&path.child("name"), &name.into(), &fault);
                }
                if !group.is_empty() {
                    faults.not_supported(&path.child("apiGroup"), &group.into(), &[""]);
                }
                if !is_namespaced && text(subject, "namespace").is_empty() {
                    faults.required(&path.child("namespace"), "");
                }
            }
            "User" | "Group" => {
                if group != RBAC {
                    faults.not_supported(&path.child("apiGroup"), &group.into(), &[RBAC]);
                }
            }
            other => {
                let kinds = ["ServiceAccount", "User", "Group"];
                faults.not_supported(&path.child("kind"), &other.into(), &kinds);
            }
        }
    }
    Below::All
}

pub(super) fn role<'v>(walk: &mut Walk<'v>, value: &'v Value) -> Below {
    let root = Path::ROOT;
    let sum = root.child("aggregationRule");
    let field = sum.child("clusterRoleSelectors");
    for (at, selector) in list(&value["aggregationRule"], "clusterRoleSelectors").iter().enumerate() {
        if !is_selector(selector) {
            walk.faults.invalid(&field.index(at), selector, "invalid label selector.");
        }
    }
    let (field, is_namespaced) = (root.child("rules"), value["kind"] == "Role");
    for (at, rule) in list(value, "rules").iter().enumerate() {
        let (path, faults) = (field.index(at), &mut walk.faults);
        let is_empty = |name: &str| list(rule, name).is_empty();
        if is_empty("nonResourceURLs") {
            if is_empty("apiGroups") {
                faults
                    .required(&path.child("apiGroups"), "resource rules must supply at least one api group");
            }
            if is_empty("resources") {
                faults.required(&path.child("resources"), "resource rules must supply at least one resource");
            }
            continue;
        }
        let (urls, shown) = (path.child("nonResourceURLs"), &rule["nonResourceURLs"]);
        if is_namespaced {
            faults.invalid(&urls, shown, "namespaced rules cannot apply to non-resource URLs");
        }
        if !["apiGroups", "resources", "resourceNames"].iter().all(|name| is_empty(name)) {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            faults.invalid(&urls, shown, why);
        }
    }
    Below::All
}
