//! The rules of ResourceQuotas and LimitRanges.
//!
//! Source: upstream's `ValidateResourceQuota` and `ValidateLimitRange`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::quantity::Quantity;
use crate::resources::{Resources, is_extended};
use crate::strategy::Strategy;
use crate::table::cell::{items_at, str_at};
use crate::{Cause, Object, name};

const STANDARD: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];
/// Of which there are no fractions.
const COUNTED: &[&str] = &[
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
const OF_PODS: &[&str] =
    &["pods", "cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
const OF_CLAIMS: &[&str] = &["persistentvolumeclaims", "requests.storage"];
const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];
const EXCLUSIVE: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];

fn is_standard(resource: &str) -> bool {
    STANDARD.contains(&resource)
        || resource.strip_prefix("requests.").unwrap_or(resource).starts_with("hugepages-")
}

pub(super) struct ResourceQuotas;

impl Strategy for ResourceQuotas {
    fn validate(&self, object: &Object) -> Vec<Cause> {
        let mut causes = amounts(&object["spec"]["hard"], "spec.hard");
        causes.extend(scope_faults(&object["spec"]));
        causes.extend(selector_faults(&object["spec"]));
        causes
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let scopes = |object: &Object| -> BTreeSet<String> {
            items_at(object, "/spec/scopes").iter().filter_map(|s| s.as_str().map(str::to_owned)).collect()
        };
        if scopes(new) == scopes(old) {
            return Vec::new();
        }
        vec![Cause::invalid("spec.scopes", &new["spec"]["scopes"], "field is immutable")]
    }

    fn validate_status_update(&self, new: &Object, _old: &Object) -> Vec<Cause> {
        let mut causes = amounts(&new["status"]["hard"], "status.hard");
        causes.extend(amounts(&new["status"]["used"], "status.used"));
        causes
    }

    fn counts_generations(&self) -> bool {
        false
    }
}

fn amounts(list: &Value, path: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (resource, amount) in list.as_object().into_iter().flatten() {
        let field = format!("{path}[{resource}]");
        if let Some(fault) = name::qualified_name_fault(resource) {
            causes.push(Cause::invalid(field.clone(), &json!(resource), &fault));
        } else if !resource.contains('/') && !is_standard(resource) {
            causes.push(Cause::invalid(
                field.clone(),
                &json!(resource),
                "must be a standard resource for quota",
            ));
        }
        let Some(quantity) = amount.as_str().and_then(|text| text.parse::<Quantity>().ok()) else { continue };
        if quantity.is_negative() {
            causes.push(Cause::invalid(field.clone(), amount, "must be greater than or equal to 0"));
        }
        if (COUNTED.contains(&resource.as_str()) || is_extended(resource)) && !quantity.is_whole() {
            causes.push(Cause::invalid(field, amount, "must be an integer"));
        }
    }
    causes
}

/// Whether a scope says something about a resource.
fn is_scoped(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => OF_CLAIMS.contains(&resource),
        known if SCOPES.contains(&known) => OF_PODS.contains(&resource),
        _ => true,
    }
}

fn misapplied(spec: &Value, scope: &str) -> usize {
    let hard = spec["hard"].as_object().into_iter().flatten();
    hard.filter(|(resource, _)| is_standard(resource) && !is_scoped(scope, resource)).count()
}

fn conflicts(scopes: &[&str]) -> usize {
    EXCLUSIVE.iter().filter(|pair| pair.iter().all(|scope| scopes.contains(scope))).count()
}

fn scope_faults(spec: &Value) -> Vec<Cause> {
    let value = &spec["scopes"];
    let scopes: Vec<&str> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let invalid = |why: &str| Cause::invalid("spec.scopes", value, why);
    let mut causes = Vec::new();
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            causes.push(invalid("unsupported scope"));
        }
        causes.extend((0..misapplied(spec, scope)).map(|_| invalid("unsupported scope applied to resource")));
    }
    causes.extend((0..conflicts(&scopes)).map(|_| invalid("conflicting scopes")));
    causes
}

fn selector_faults(spec: &Value) -> Vec<Cause> {
    const PATH: &str = "spec.scopeSelector.matchExpressions";
    let mut causes = Vec::new();
    let mut scopes = Vec::new();
    for expression in spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten() {
        let scope = str_at(expression, "/scopeName");
        let operator = str_at(expression, "/operator");
        if !SCOPES.contains(&scope) {
            causes.push(Cause::invalid(format!("{PATH}.scopeName"), &json!(scope), "unsupported scope"));
        }
        let why = "unsupported scope applied to resource";
        let misapplied = misapplied(spec, scope);
        causes.extend((0..misapplied).map(|_| Cause::invalid(PATH, &spec["scopeSelector"], why)));
        let takes_no_values =
            SCOPES.contains(&scope) && !matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if takes_no_values && operator != "Exists" {
            let why = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
                       ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                       ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            causes.push(Cause::invalid(format!("{PATH}.operator"), &json!(operator), why));
        }
        let n_values = items_at(expression, "/values").len();
        match operator {
            "In" | "NotIn" if n_values == 0 => causes.push(Cause::required(
                format!("{PATH}.values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            )),
            "Exists" | "DoesNotExist" if n_values > 0 => causes.push(Cause::invalid(
                format!("{PATH}.values"),
                &expression["values"],
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => causes.push(Cause::invalid(
                format!("{PATH}.operator"),
                &json!(other),
                "not a valid selector operator",
            )),
        }
        scopes.push(scope);
    }
    let conflicts = conflicts(&scopes);
    causes.extend((0..conflicts).map(|_| Cause::invalid(PATH, &spec["scopes"], "conflicting scopes")));
    causes
}

pub(super) struct LimitRanges;

impl Strategy for LimitRanges {
    /// Of containers: the limit is the maximum where none is said; the request is the limit, or else the minimum.
    fn default(&self, object: &mut Object) {
        for item in object["spec"]["limits"].as_array_mut().into_iter().flatten() {
            if item["type"] != "Container" {
                continue;
            }
            for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
                for (resource, amount) in item[from].as_object().cloned().into_iter().flatten() {
                    if item[to][&resource].is_null() {
                        item[to][&resource] = amount;
                    }
                }
            }
        }
    }

    fn validate(&self, object: &Object) -> Vec<Cause> {
        let mut causes = Vec::new();
        let mut types = BTreeSet::new();
        for (at, item) in items_at(object, "/spec/limits").iter().enumerate() {
            let path = format!("spec.limits[{at}]");
            let kind = str_at(item, "/type");
            causes.extend(
                type_fault(kind).map(|why| Cause::invalid(format!("{path}.type"), &json!(kind), &why)),
            );
            if !types.insert(kind) {
                causes.push(Cause::duplicate(format!("{path}.type"), &json!(kind)));
            }
            causes.extend(item_faults(item, kind, &path));
        }
        causes
    }

    fn counts_generations(&self) -> bool {
        false
    }
}

fn type_fault(kind: &str) -> Option<String> {
    name::qualified_name_fault(kind).or_else(|| {
        let is_known = kind.contains('/') || matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim");
        (!is_known).then(|| "must be a standard limit type or fully qualified".to_owned())
    })
}

fn item_faults(item: &Value, kind: &str, path: &str) -> Vec<Cause> {
    const FIELDS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
    let mut causes = Vec::new();
    let mut resources = BTreeSet::new();
    for field in FIELDS {
        let amounts = item[field].as_object().filter(|amounts| !amounts.is_empty());
        if kind == "Pod" && field.starts_with("default") {
            let why = "may not be specified when `type` is 'Pod'";
            causes.extend(amounts.map(|_| Cause::forbidden(format!("{path}.{field}"), why)));
            continue;
        }
        for resource in amounts.into_iter().flatten().map(|(resource, _)| resource.as_str()) {
            let field = format!("{path}.{field}[{resource}]");
            causes.extend(
                resource_fault(kind, resource).map(|why| Cause::invalid(field, &json!(resource), &why)),
            );
            resources.insert(resource);
        }
    }
    if kind == "PersistentVolumeClaim" && item["min"]["storage"].is_null() && item["max"]["storage"].is_null()
    {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        causes.push(Cause::required(format!("{path}.limits"), why));
    }
    for resource in resources {
        causes.extend(order_faults(item, kind, resource, path));
    }
    causes
}

fn resource_fault(kind: &str, resource: &str) -> Option<String> {
    if let Some(fault) = name::qualified_name_fault(resource) {
        return Some(fault);
    }
    if resource.contains('/') {
        return None;
    }
    let of_container =
        matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    match kind {
        "Pod" | "Container" if !of_container => Some("must be a standard resource for containers".into()),
        "Pod" | "Container" => None,
        _ if resource == "storage" || is_standard(resource) => None,
        _ => Some("must be a standard resource type or fully qualified".into()),
    }
}

/// Amounts of one resource that are out of order.
fn order_faults(item: &Value, kind: &str, resource: &str, path: &str) -> Vec<Cause> {
    let of = |field: &str| Resources::from_json(&item[field]).get(resource);
    let (min, max) = (of("min"), of("max"));
    // Pods have none of these, which was said already.
    let defaults = |field: &str| of(field).filter(|_| kind != "Pod");
    let (limit, request) = (defaults("default"), defaults("defaultRequest"));
    let mut causes = Vec::new();
    let mut at_most = |lesser: Option<Quantity>,
                       greater: Option<Quantity>,
                       field: &str,
                       shown: Option<Quantity>,
                       what: [&str; 2]| {
        if let (Some(lesser), Some(greater), Some(shown)) = (lesser, greater, shown)
            && lesser > greater
        {
            let why = format!("{} value {lesser} is greater than {} value {greater}", what[0], what[1]);
            let field = format!("{path}.{field}[{resource}]");
            causes.push(Cause::invalid(field, &json!(shown.to_string()), &why));
        }
    };
    at_most(min, max, "min", min, ["min", "max"]);
    at_most(min, request, "defaultRequest", request, ["min", "default request"]);
    at_most(request, max, "defaultRequest", request, ["default request", "max"]);
    at_most(request, limit, "defaultRequest", request, ["default request", "default limit"]);
    at_most(min, limit, "default", min, ["min", "default"]);
    at_most(limit, max, "default", max, ["default", "max"]);
    let field = format!("{path}.maxLimitRequestRatio[{resource}]");
    if let Some(ratio) = of("maxLimitRequestRatio") {
        if ratio.millis() < 1000 {
            let why = format!("ratio {ratio} is less than 1");
            causes.push(Cause::invalid(field.clone(), &json!(ratio.to_string()), &why));
        }
        if let (Some(min), Some(max)) = (min, max) {
            let greatest = max.millis() as f64 / min.millis() as f64;
            if ratio.millis() as f64 / 1000.0 > greatest {
                let why = format!("ratio {ratio} is greater than max/min = {greatest:.6}");
                causes.push(Cause::invalid(field, &json!(ratio.to_string()), &why));
            }
        }
    }
    let is_overcommitted = !is_extended(resource) && !resource.starts_with("hugepages-");
    if let (false, Some(limit), Some(request)) = (is_overcommitted, limit, request)
        && (limit > request || request > limit)
    {
        let why = format!("default value {limit} must equal to defaultRequest value {request} in {resource}");
        let field = format!("{path}.defaultRequest[{resource}]");
        causes.push(Cause::invalid(field, &json!(request.to_string()), &why));
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(causes: Vec<Cause>) -> Vec<String> {
        causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    fn quota(spec: Value) -> Vec<String> {
        messages(ResourceQuotas.validate(&json!({"spec": spec})))
    }

    #[test]
    fn a_quota_is_of_known_resources_in_whole_numbers() {
        let good = json!({"cpu": "500m", "pods": "5", "count/replicasets.apps": "5",
            "requests.example.com/dongle": "3", "gold.storageclass.storage.k8s.io/requests.storage": "10Gi"});
        assert_eq!(quota(json!({"hard": good})), [""; 0]);
        assert_eq!(
            quota(json!({"hard": {"pods": "500m"}})),
            ["spec.hard[pods]: Invalid value: \"500m\": must be an integer"]
        );
        assert_eq!(
            quota(json!({"hard": {"cpu": "-1"}})),
            ["spec.hard[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"]
        );
        assert_eq!(
            quota(json!({"hard": {"apples": "1"}})),
            ["spec.hard[apples]: Invalid value: \"apples\": must be a standard resource for quota"]
        );
    }

    #[test]
    fn scopes_fit_their_resources_and_each_other_and_stay() {
        assert_eq!(quota(json!({"hard": {"pods": "1"}, "scopes": ["BestEffort", "Terminating"]})), [""; 0]);
        assert_eq!(quota(json!({"hard": {"cpu": "1"}, "scopes": ["BestEffort"]})).len(), 1);
        assert_eq!(quota(json!({"hard": {}, "scopes": ["BestEffort", "NotBestEffort"]})).len(), 1);
        let selector = |operator: &str, values: Value| {
            let expression = json!({"scopeName": "PriorityClass", "operator": operator, "values": values});
            quota(json!({"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [expression]}}))
        };
        assert_eq!(selector("In", json!(["high"])), [""; 0]);
        assert_eq!(selector("In", json!([])).len(), 1);
        assert_eq!(selector("Near", json!([])).len(), 1);
        let of = |scope: &str| json!({"spec": {"scopes": [scope]}});
        assert_eq!(ResourceQuotas.validate_update(&of("BestEffort"), &of("Terminating")).len(), 1);
        assert!(ResourceQuotas.validate_update(&of("BestEffort"), &of("BestEffort")).is_empty());
    }

    #[test]
    fn limits_of_containers_fill_each_other_in() {
        let mut range = json!({"spec": {"limits": [
            {"type": "Container", "min": {"cpu": "50m"}, "max": {"memory": "1Gi"}, "default": {"storage": "1"}},
            {"type": "Pod", "max": {"cpu": "1"}},
        ]}});
        LimitRanges.default(&mut range);
        assert_eq!(
            range["spec"]["limits"],
            json!([
                {"type": "Container", "min": {"cpu": "50m"}, "max": {"memory": "1Gi"},
                    "default": {"memory": "1Gi", "storage": "1"},
                    "defaultRequest": {"cpu": "50m", "memory": "1Gi", "storage": "1"}},
                {"type": "Pod", "max": {"cpu": "1"}},
            ])
        );
    }

    #[test]
    fn limits_are_in_order() {
        let faults = |item: Value| messages(LimitRanges.validate(&json!({"spec": {"limits": [item]}})));
        assert_eq!(faults(json!({"type": "Container", "min": {"cpu": "1"}, "max": {"cpu": "2"}})), [""; 0]);
        assert_eq!(
            faults(json!({"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}})),
            ["spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1"]
        );
        assert_eq!(
            faults(json!({"type": "Pod", "default": {"cpu": "1"}})),
            ["spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'"]
        );
        assert_eq!(faults(json!({"type": "PersistentVolumeClaim", "max": {"cpu": "1"}})).len(), 1);
        assert_eq!(faults(json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "500m"}})).len(), 1);
        assert_eq!(faults(json!({"type": "Box"})).len(), 1);
    }
}
