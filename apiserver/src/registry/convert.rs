//! Between the versions of a kind. Most differ in nothing but their `apiVersion`.

use serde_json::{Map, Value, json};
use skiff_api::{Kind, Object};

/// Fields of `v1.Event` and what `events.k8s.io/v1` calls them.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// In this annotation `autoscaling/v1` carries the metrics that it has no field for.
const METRICS_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// The object as of kind `to`; both kinds are versions of one resource.
pub(crate) fn convert(from: &Kind, to: &Kind, mut object: Object) -> Object {
    if from.group == to.group && from.version == to.version {
        return object;
    }
    let Some(root) = object.as_object_mut() else { return object };
    match (from.kind.as_str(), from.group.as_str(), from.version.as_str(), to.version.as_str()) {
        ("Event", "", ..) => rename(root, EVENT_FIELDS.iter().copied()),
        ("Event", "events.k8s.io", ..) => rename(root, EVENT_FIELDS.iter().map(|(core, new)| (*new, *core))),
        ("HorizontalPodAutoscaler", _, "v1", "v2") => autoscaler_to_v2(root),
        ("HorizontalPodAutoscaler", _, "v2", "v1") => autoscaler_to_v1(root),
        _ => {}
    }
    root.insert("apiVersion".into(), to.api_version().into());
    root.insert("kind".into(), to.kind.clone().into());
    object
}

fn rename<'a>(root: &mut Map<String, Value>, fields: impl Iterator<Item = (&'a str, &'a str)>) {
    for (old, new) in fields {
        if let Some(value) = root.remove(old) {
            root.insert(new.to_owned(), value);
        }
    }
}

fn is_cpu_utilization(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && !metric["resource"]["target"]["averageUtilization"].is_null()
}

fn autoscaler_to_v1(root: &mut Map<String, Value>) {
    let Some(spec) = root.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let metrics = match spec.remove("metrics") {
        Some(Value::Array(metrics)) => metrics,
        _ => Vec::new(),
    };
    let behavior = spec.remove("behavior");
    let (cpu, others): (Vec<_>, Vec<_>) = metrics.into_iter().partition(is_cpu_utilization);
    if let Some(cpu) = cpu.first() {
        let target = cpu["resource"]["target"]["averageUtilization"].clone();
        spec.insert("targetCPUUtilizationPercentage".into(), target);
    }
    if !others.is_empty() {
        annotate(root, METRICS_ANNOTATION, &Value::Array(others));
    }
    if let Some(behavior) = behavior {
        annotate(root, BEHAVIOR_ANNOTATION, &behavior);
    }
    if let Some(status) = root.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("conditions");
        if let Some(Value::Array(current)) = status.remove("currentMetrics") {
            let cpu = current.iter().find(|m| m["resource"]["name"] == "cpu");
            if let Some(percent) = cpu.map(|m| m["resource"]["current"]["averageUtilization"].clone())
                && !percent.is_null()
            {
                status.insert("currentCPUUtilizationPercentage".into(), percent);
            }
        }
    }
}

fn autoscaler_to_v2(root: &mut Map<String, Value>) {
    let mut metrics = match take_annotation(root, METRICS_ANNOTATION) {
        Some(Value::Array(metrics)) => metrics,
        _ => Vec::new(),
    };
    let behavior = take_annotation(root, BEHAVIOR_ANNOTATION);
    if let Some(status) = root.get_mut("status").and_then(Value::as_object_mut)
        && let Some(percent) = status.remove("currentCPUUtilizationPercentage")
    {
        let current = json!({"averageUtilization": percent, "averageValue": "0"});
        let metric = json!({"type": "Resource", "resource": {"name": "cpu", "current": current}});
        status.insert("currentMetrics".into(), json!([metric]));
    }
    let Some(spec) = root.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(percent) = spec.remove("targetCPUUtilizationPercentage") {
        let target = json!({"type": "Utilization", "averageUtilization": percent});
        metrics.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
    }
    if !metrics.is_empty() {
        spec.insert("metrics".into(), Value::Array(metrics));
    }
    if let Some(behavior) = behavior {
        spec.insert("behavior".into(), behavior);
    }
}

fn annotate(root: &mut Map<String, Value>, key: &str, value: &Value) {
    if let Some(metadata) = root.get_mut("metadata").filter(|m| m.is_object()) {
        metadata["annotations"][key] = value.to_string().into();
    }
}

fn take_annotation(root: &mut Map<String, Value>, key: &str) -> Option<Value> {
    let annotations = root.get_mut("metadata")?.get_mut("annotations")?.as_object_mut()?;
    let text = annotations.remove(key)?;
    serde_json::from_str(text.as_str()?).ok()
}
