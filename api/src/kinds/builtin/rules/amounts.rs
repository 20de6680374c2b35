//! Lists of resources: their names and amounts.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::format::Format;
use super::path::{Faults, NOT_NEGATIVE, Path, entries, list, text};
use super::table::quantity;
use crate::quantity::Quantity;

const CONTAINER: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
const STANDARD: [&str; 21] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "requests.storage",
    "services.nodeports",
    "services.loadbalancers",
    "hugepages-",
];
const WHOLE: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
const HUGE_PAGES: &str = "hugepages-";

/// Kubernetes' own resources have no domain, or its.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

pub(super) fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && Format::Qualified.fault(&format!("requests.{name}")).is_none()
}

/// Whether a container may have it at all.
pub(super) fn is_container_resource(name: &str) -> bool {
    CONTAINER.contains(&name) || name.starts_with(HUGE_PAGES) || is_extended(name)
}

fn allows_overcommit(name: &str) -> bool {
    is_native(name) && !name.starts_with(HUGE_PAGES)
}

/// The name of any resource.
pub(super) fn resource_name(name: &str, path: &Path<'_>, faults: &mut Faults) -> bool {
    if let Some(fault) = Format::Qualified.fault(name) {
        faults.invalid(path, &name.into(), &fault);
        return false;
    }
    let is_standard =
        STANDARD.contains(&name) || name.starts_with(HUGE_PAGES) || name.starts_with("requests.hugepages-");
    if !name.contains('/') && !is_standard {
        faults.invalid(path, &name.into(), "must be a standard resource type or fully qualified");
        return false;
    }
    true
}

/// The name of a resource that a container may have.
pub(super) fn container_resource_name(name: &str, path: &Path<'_>, faults: &mut Faults) {
    resource_name(name, path, faults);
    if !name.contains('/') {
        if !CONTAINER.contains(&name) && !name.starts_with(HUGE_PAGES) {
            faults.invalid(path, &name.into(), "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        faults.invalid(path, &name.into(), "doesn't follow extended resource name standard");
    }
}

/// An amount of a resource.
pub(super) fn resource_amount(name: &str, value: &Value, path: &Path<'_>, faults: &mut Faults) {
    let Some(amount) = quantity(value) else { return };
    if amount.is_negative() {
        faults.invalid(path, value, NOT_NEGATIVE);
    }
    if (WHOLE.contains(&name) || is_extended(name)) && amount.millis() % 1000 != 0 {
        faults.invalid(path, value, "must be an integer");
    }
}

fn huge_page_fault(name: &str, amount: Quantity) -> Option<String> {
    let size: Quantity = name.strip_prefix(HUGE_PAGES)?.parse().ok()?;
    let (size, given) = (size.units(), amount.units());
    (size <= 0 || given <= 0 || given % size != 0)
        .then(|| format!("{amount} is not positive integer multiple of {name}"))
}

/// The requests and limits of a container; `claims` are those of its pod.
pub(super) fn requirements(value: &Value, claims: &HashSet<&str>, path: &Path<'_>, faults: &mut Faults) {
    let (limits, requests) = (path.child("limits"), path.child("requests"));
    let (mut n_compute, mut n_huge) = (0, 0);
    let mut count = |name: &str| {
        n_compute += usize::from(matches!(name, "cpu" | "memory"));
        n_huge += usize::from(name.starts_with(HUGE_PAGES));
    };
    for (side, path) in [("limits", &limits), ("requests", &requests)] {
        for (name, value) in entries(value, side) {
            let field = path.key(name);
            container_resource_name(name, &field, faults);
            resource_amount(name, value, &field, faults);
            count(name);
            if let Some(fault) = quantity(value).and_then(|amount| huge_page_fault(name, amount)) {
                faults.invalid(&field, value, &fault);
            }
        }
    }
    for (name, request) in entries(value, "requests") {
        let Some(limit) = value["limits"].get(name) else {
            if !allows_overcommit(name) {
                faults.required(&limits, "Limit must be set for non overcommitable resources");
            }
            continue;
        };
        let (Some(asked), Some(most)) = (quantity(request), quantity(limit)) else { continue };
        let shown = limit.as_str().unwrap_or_default();
        if !allows_overcommit(name) && asked.partial_cmp(&most) != Some(std::cmp::Ordering::Equal) {
            faults.invalid(&requests, request, &format!("must be equal to {name} limit of {shown}"));
        } else if asked > most {
            let why = format!("must be less than or equal to {name} limit of {shown}");
            faults.invalid(&requests, request, &why);
        }
    }
    if n_compute == 0 && n_huge > 0 {
        faults.forbidden(path, "HugePages require cpu or memory");
    }
    claim_names(value, claims, &path.child("claims"), faults);
}

fn claim_names(value: &Value, claims: &HashSet<&str>, path: &Path<'_>, faults: &mut Faults) {
    let mut seen: HashSet<(&str, &str)> = HashSet::new();
    for (at, claim) in list(value, "claims").iter().enumerate() {
        let (path, name, request) = (path.index(at), text(claim, "name"), text(claim, "request"));
        if name.is_empty() {
            faults.required(&path, "");
        } else {
            let whole = seen.contains(&(name, ""));
            let part = seen.iter().any(|(n, _)| *n == name);
            if whole || (request.is_empty() && part) || !seen.insert((name, request)) {
                faults.duplicate(&path, &name.into());
            }
            if let Some(fault) = Format::Label.fault(request).filter(|_| !request.is_empty()) {
                faults.invalid(&path.child("request"), &request.into(), &fault);
            }
        }
        if !claims.contains(name) {
            faults.not_found(&path, &json!(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(value: Value) -> Vec<String> {
        let mut faults = Faults::default();
        requirements(&value, &HashSet::new(), &Path::ROOT.child("resources"), &mut faults);
        faults.causes.into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn a_container_asks_for_what_a_node_can_have() {
        assert!(refused(json!({"limits": {"cpu": "1", "example.com/gpu": "2"}})).is_empty());
        assert_eq!(refused(json!({"limits": {"pods": "1"}})), ["resources.limits[pods]"]);
        assert_eq!(refused(json!({"limits": {"nonsense": "1"}})).len(), 2);
        assert_eq!(refused(json!({"limits": {"cpu": "-1"}})), ["resources.limits[cpu]"]);
        assert_eq!(
            refused(json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}})),
            ["resources.requests"]
        );
    }

    #[test]
    fn what_cannot_be_shared_is_asked_for_in_whole_and_limited_as_asked() {
        assert_eq!(refused(json!({"requests": {"example.com/gpu": "1"}})), ["resources.limits"]);
        let half = json!({"requests": {"example.com/gpu": "500m"}, "limits": {"example.com/gpu": "500m"}});
        assert_eq!(refused(half).len(), 2);
        let huge = json!({"limits": {"hugepages-2Mi": "3Mi", "cpu": "1"}});
        assert_eq!(refused(huge), ["resources.limits[hugepages-2Mi]"]);
        assert_eq!(refused(json!({"limits": {"hugepages-2Mi": "4Mi"}})), ["resources"]);
    }

    #[test]
    fn a_claim_is_one_of_the_pods_and_named_once() {
        let value = json!({"claims": [{"name": "a"}, {"name": "a", "request": "r"}, {"name": ""}]});
        let mut faults = Faults::default();
        requirements(&value, &HashSet::from(["a"]), &Path::ROOT, &mut faults);
        let reasons: Vec<&str> = faults.causes.iter().map(|cause| cause.reason).collect();
        assert_eq!(reasons, ["FieldValueDuplicate", "FieldValueRequired", "FieldValueNotFound"]);
    }
}
