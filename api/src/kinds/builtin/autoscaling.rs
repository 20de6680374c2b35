//! Autoscaling: `autoscaling/v2`, which is stored, and `autoscaling/v1`, which keeps in annotations what it has
//! no field for.

use serde_json::{Map, Value, json};

use super::kind;
use crate::meta::Meta;
use crate::strategy::Strategy;
use crate::table::Column;
use crate::table::cell::{self, UNSET, int, int_at, int_or_string, items_at, str_at};
use crate::{Cause, Kind, Object, name};

/// Where `autoscaling/v1` keeps what `autoscaling/v2` has fields for.
pub const METRICS_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/metrics";
pub const BEHAVIOR_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/behavior";
pub const CURRENT_METRICS_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
pub const CONDITIONS_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/conditions";

const SPEC_ANNOTATIONS: [&str; 2] = [METRICS_ANNOTATION, BEHAVIOR_ANNOTATION];
const STATUS_ANNOTATIONS: [&str; 2] = [CURRENT_METRICS_ANNOTATION, CONDITIONS_ANNOTATION];

/// The newer version first: it is the one that discovery prefers.
pub(super) fn kinds() -> Vec<Kind> {
    let autoscaler = |version| {
        kind("autoscaling", version, "HorizontalPodAutoscaler", "horizontalpodautoscalers")
            .short(&["hpa"])
            .category("all")
            .subresources(&["status"])
            .columns(columns())
    };
    vec![autoscaler("v2").strategy(&Autoscalers), autoscaler("v1").strategy(&AutoscalersV1)]
}

/// Rows are printed of the stored version.
fn columns() -> Vec<Column> {
    vec![
        Column::name(),
        Column::new("Reference", "string", |o, _| {
            format!("{}/{}", str_at(o, "/spec/scaleTargetRef/kind"), str_at(o, "/spec/scaleTargetRef/name"))
                .into()
        }),
        Column::new("Targets", "string", |o, _| targets(o).into()),
        Column::new("MinPods", "string", |o, _| int_or_string(o, "/spec/minReplicas", UNSET).into()),
        Column::new("MaxPods", "string", |o, _| int(o, "/spec/maxReplicas")),
        Column::new("Replicas", "string", |o, _| int(o, "/status/currentReplicas")),
        Column::age(),
    ]
}

/// The first two metrics, each as what is now over what is wanted, and how many more there are.
fn targets(object: &Object) -> String {
    const SHOWN: usize = 2;
    let (metrics, current) = (items_at(object, "/spec/metrics"), items_at(object, "/status/currentMetrics"));
    if metrics.is_empty() {
        return cell::NONE.into();
    }
    let shown: Vec<String> =
        metrics.iter().take(SHOWN).enumerate().map(|(at, metric)| target(metric, current.get(at))).collect();
    let shown = shown.join(", ");
    match metrics.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

fn target(metric: &Value, status: Option<&Value>) -> String {
    let member = match str_at(metric, "/type") {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".into(),
    };
    let (metric, status) = (&metric[member], status.map_or(&Value::Null, |s| &s[member]));
    let of = |value: &Value, field: &str, otherwise: &str| match str_at(value, field) {
        "" => otherwise.to_owned(),
        text => text.to_owned(),
    };
    let average = !metric["target"]["averageValue"].is_null();
    let (now, wanted) = match member {
        "external" | "object" if !average => {
            (of(status, "/current/value", "<unknown>"), of(metric, "/target/value", "0"))
        }
        "resource" | "containerResource" if !average => {
            let percent = |value: &Value, otherwise: &str| match value["averageUtilization"].as_i64() {
                Some(percent) => format!("{percent}%"),
                None => otherwise.to_owned(),
            };
            (percent(&status["current"], "<unknown>"), percent(&metric["target"], "<auto>"))
        }
        _ => (of(status, "/current/averageValue", "<unknown>"), of(metric, "/target/averageValue", "0")),
    };
    match member {
        "external" | "object" if average => format!("{now}/{wanted} (avg)"),
        "resource" | "containerResource" => format!("{}: {now}/{wanted}", str_at(metric, "/name")),
        _ => format!("{now}/{wanted}"),
    }
}

/// What both versions demand.
fn faults(object: &Object) -> Vec<Cause> {
    let mut causes = Vec::new();
    let (min, max) = (object["spec"]["minReplicas"].as_i64(), int_at(object, "/spec/maxReplicas"));
    if let Some(min) = min.filter(|min| *min < 0) {
        let why = "must be greater than or equal to 0";
        causes.push(Cause::invalid("spec.minReplicas", &json!(min), why));
    }
    if max == 0 {
        causes.push(Cause::required("spec.maxReplicas", "must be set and greater than 0"));
    } else if max < 0 {
        let why = "must be greater than or equal to 1";
        causes.push(Cause::invalid("spec.maxReplicas", &json!(max), why));
    }
    if min.is_some_and(|min| max < min) {
        let why = "must be greater than or equal to `minReplicas`";
        causes.push(Cause::invalid("spec.maxReplicas", &json!(max), why));
    }
    for field in ["kind", "name"] {
        let (path, text) = (
            format!("spec.scaleTargetRef.{field}"),
            str_at(&object["spec"]["scaleTargetRef"], &format!("/{field}")),
        );
        if text.is_empty() {
            causes.push(Cause::required(path, ""));
        } else if let Some(fault) = name::path_segment_fault(text) {
            causes.push(Cause::invalid(path, &json!(text), &fault));
        }
    }
    causes
}

fn status_faults(object: &Object) -> Vec<Cause> {
    ["currentReplicas", "desiredReplicas"]
        .into_iter()
        .filter_map(|field| {
            let count = object["status"][field].as_i64().filter(|count| *count < 0)?;
            let why = "must be greater than or equal to 0";
            Some(Cause::invalid(format!("status.{field}"), &json!(count), why))
        })
        .collect()
}

struct Autoscalers;

impl Strategy for Autoscalers {
    fn default(&self, object: &mut Object) {
        let Some(spec) = object["spec"].as_object_mut() else { return };
        if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            let target = json!({"type": "Utilization", "averageUtilization": 80});
            let metric = json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
            spec.insert("metrics".into(), json!([metric]));
        }
        if let Some(behavior) = spec.get_mut("behavior").and_then(Value::as_object_mut) {
            fill_rules(behavior);
        }
    }

    fn validate(&self, object: &Object) -> Vec<Cause> {
        faults(object)
    }

    fn validate_status_update(&self, new: &Object, _old: &Object) -> Vec<Cause> {
        status_faults(new)
    }
}

/// Whoever says something about scaling says all of it: what is left out is upstream's default.
fn fill_rules(behavior: &mut Map<String, Value>) {
    let policy = |kind: &str, value: i64| json!({"type": kind, "value": value, "periodSeconds": 15});
    let up = json!({
        "stabilizationWindowSeconds": 0, "selectPolicy": "Max",
        "policies": [policy("Pods", 4), policy("Percent", 100)],
    });
    let down = json!({"selectPolicy": "Max", "policies": [policy("Percent", 100)]});
    for (direction, defaults) in [("scaleUp", up), ("scaleDown", down)] {
        let rules = behavior.entry(direction).or_insert_with(|| json!({}));
        let (Some(rules), Value::Object(defaults)) = (rules.as_object_mut(), defaults) else { continue };
        for (field, value) in defaults {
            rules.entry(field).or_insert(value);
        }
    }
}

/// The rules of a version of which part of `spec` and `status` lies in annotations.
struct AutoscalersV1;

impl Strategy for AutoscalersV1 {
    fn prepare_create(&self, object: &mut Object) {
        take_annotations(object, None, &STATUS_ANNOTATIONS);
    }

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        take_annotations(new, Some(old), &STATUS_ANNOTATIONS);
    }

    fn prepare_status_update(&self, new: &mut Object, old: &Object) {
        take_annotations(new, Some(old), &SPEC_ANNOTATIONS);
    }

    fn validate(&self, object: &Object) -> Vec<Cause> {
        faults(object)
    }

    fn validate_status_update(&self, new: &Object, _old: &Object) -> Vec<Cause> {
        status_faults(new)
    }
}

/// Makes these annotations what they are in `from`.
fn take_annotations(object: &mut Object, from: Option<&Object>, keys: &[&str]) {
    let mut annotations = match object.meta_mut().remove("annotations") {
        Some(Value::Object(annotations)) => annotations,
        _ => Map::new(),
    };
    for key in keys {
        match from.and_then(|from| from.meta()["annotations"].get(key)) {
            Some(value) => annotations.insert((*key).to_owned(), value.clone()),
            None => annotations.remove(*key),
        };
    }
    if !annotations.is_empty() {
        object.set_meta("annotations", annotations);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_worded_as_upstream_words_them() {
        let object = json!({
            "spec": {"metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}},
                {"type": "Pods", "pods": {"target": {"averageValue": "10"}}},
                {"type": "External", "external": {"target": {"value": "5"}}},
            ]},
            "status": {"currentMetrics": [
                {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 12}}},
            ]},
        });
        assert_eq!(targets(&object), "cpu: 12%/80%, <unknown>/10 + 1 more...");
        assert_eq!(targets(&json!({})), "<none>");
        let average = json!({"type": "Object", "object": {"target": {"averageValue": "2"}}});
        assert_eq!(target(&average, None), "<unknown>/2 (avg)");
    }

    #[test]
    fn a_behavior_that_says_a_little_says_all() {
        let mut object = json!({"spec": {"behavior": {"scaleDown": {"selectPolicy": "Disabled"}}}});
        Autoscalers.default(&mut object);
        let behavior = &object["spec"]["behavior"];
        assert_eq!(behavior["scaleUp"]["policies"][0]["value"], 4);
        assert_eq!(behavior["scaleDown"]["selectPolicy"], "Disabled");
        assert_eq!(behavior["scaleDown"]["policies"][0]["type"], "Percent");
        assert_eq!(object["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
    }
}
