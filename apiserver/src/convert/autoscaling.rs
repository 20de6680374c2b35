//! `autoscaling/v2` and `autoscaling/v1`, which keeps in annotations what it has no field for.
//!
//! Source: upstream's `pkg/apis/autoscaling/v1/conversion.go`.

use serde_json::{Map, Value, json};
use skiff_api::decode;
use skiff_api::kinds::autoscaling::{
    BEHAVIOR_ANNOTATION, CONDITIONS_ANNOTATION, CURRENT_METRICS_ANNOTATION, METRICS_ANNOTATION,
};
use skiff_api::schema::Schema;

/// Never leave the server but as this conversion wrote them.
const ROUND_TRIP: [&str; 6] = [
    METRICS_ANNOTATION,
    BEHAVIOR_ANNOTATION,
    CURRENT_METRICS_ANNOTATION,
    CONDITIONS_ANNOTATION,
    "autoscaling.alpha.kubernetes.io/scale-down-tolerance",
    "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
];
/// What `autoscaling/v1` is taken to mean where it names no metric.
const DEFAULT_CPU_PERCENT: i64 = 80;

/// Where a value lies in `autoscaling/v2` (a JSON pointer within the member) and what `autoscaling/v1` calls it.
struct Move {
    v2: &'static str,
    v1: &'static str,
    /// `autoscaling/v1` cannot leave it out, and says 0.
    zero: bool,
}

const fn moved(v2: &'static str, v1: &'static str) -> Move {
    Move { v2, v1, zero: false }
}

const fn or_zero(v2: &'static str, v1: &'static str) -> Move {
    Move { v2, v1, zero: true }
}

/// The members of a metric, as it is wanted.
const SPECS: [(&str, &[Move]); 5] = [
    (
        "object",
        &[
            moved("/describedObject", "target"),
            moved("/metric/name", "metricName"),
            or_zero("/target/value", "targetValue"),
            moved("/metric/selector", "selector"),
            moved("/target/averageValue", "averageValue"),
        ],
    ),
    (
        "pods",
        &[
            moved("/metric/name", "metricName"),
            or_zero("/target/averageValue", "targetAverageValue"),
            moved("/metric/selector", "selector"),
        ],
    ),
    (
        "resource",
        &[
            moved("/name", "name"),
            moved("/target/averageUtilization", "targetAverageUtilization"),
            moved("/target/averageValue", "targetAverageValue"),
        ],
    ),
    (
        "containerResource",
        &[
            moved("/name", "name"),
            moved("/container", "container"),
            moved("/target/averageUtilization", "targetAverageUtilization"),
            moved("/target/averageValue", "targetAverageValue"),
        ],
    ),
    (
        "external",
        &[
            moved("/metric/name", "metricName"),
            moved("/metric/selector", "metricSelector"),
            moved("/target/value", "targetValue"),
            moved("/target/averageValue", "targetAverageValue"),
        ],
    ),
];

/// The members of a metric, as it was last seen.
const STATUSES: [(&str, &[Move]); 5] = [
    (
        "object",
        &[
            moved("/describedObject", "target"),
            moved("/metric/name", "metricName"),
            or_zero("/current/value", "currentValue"),
            moved("/metric/selector", "selector"),
            moved("/current/averageValue", "averageValue"),
        ],
    ),
    (
        "pods",
        &[
            moved("/metric/name", "metricName"),
            or_zero("/current/averageValue", "currentAverageValue"),
            moved("/metric/selector", "selector"),
        ],
    ),
    (
        "resource",
        &[
            moved("/name", "name"),
            moved("/current/averageUtilization", "currentAverageUtilization"),
            or_zero("/current/averageValue", "currentAverageValue"),
        ],
    ),
    (
        "containerResource",
        &[
            moved("/name", "name"),
            moved("/container", "container"),
            moved("/current/averageUtilization", "currentAverageUtilization"),
            or_zero("/current/averageValue", "currentAverageValue"),
        ],
    ),
    (
        "external",
        &[
            moved("/metric/name", "metricName"),
            moved("/metric/selector", "metricSelector"),
            or_zero("/current/value", "currentValue"),
            moved("/current/averageValue", "currentAverageValue"),
        ],
    ),
];

pub(super) fn to_v1(root: &mut Map<String, Value>) {
    let mut annotations = take_annotations(root);
    let mut annotate = |key: &str, value: Value| {
        annotations.insert(key.to_owned(), value.to_string().into());
    };
    if let Some(spec) = root.get_mut("spec").and_then(Value::as_object_mut) {
        let metrics = taken_list(spec, "metrics");
        let (cpu, others): (Vec<_>, Vec<_>) = metrics.into_iter().partition(is_cpu_utilization);
        if let Some(cpu) = cpu.first() {
            let percent = cpu["resource"]["target"]["averageUtilization"].clone();
            spec.insert("targetCPUUtilizationPercentage".into(), percent);
        }
        if !others.is_empty() {
            annotate(METRICS_ANNOTATION, others.iter().map(|m| metric_to_v1(m, &SPECS)).collect());
        }
        if let Some(behavior) = spec.remove("behavior") {
            // Upstream writes its internal type, whose fields have no names for JSON.
            annotate(BEHAVIOR_ANNOTATION, renamed(&behavior, char::to_ascii_uppercase));
        }
    }
    if let Some(status) = root.get_mut("status").and_then(Value::as_object_mut) {
        let current = taken_list(status, "currentMetrics");
        let cpu = current.iter().filter(|m| m["type"] == "Resource" && m["resource"]["name"] == "cpu");
        let mut percents = cpu.map(|m| &m["resource"]["current"]["averageUtilization"]);
        if let Some(percent) = percents.rfind(|percent| !percent.is_null()) {
            status.insert("currentCPUUtilizationPercentage".into(), percent.clone());
        }
        if !current.is_empty() {
            let current = current.iter().map(|m| metric_to_v1(m, &STATUSES)).collect();
            annotate(CURRENT_METRICS_ANNOTATION, current);
        }
        let conditions = taken_list(status, "conditions");
        if !conditions.is_empty() {
            annotate(CONDITIONS_ANNOTATION, conditions.into());
        }
    }
    put_annotations(root, annotations);
}

/// `schema` is the one that objects of `autoscaling/v2` conform to: an annotation that does not is as none.
pub(super) fn to_v2(root: &mut Map<String, Value>, schema: &Schema) {
    let annotations = take_annotations_of_round_trip(root);
    let read = |key: &str| -> Option<Value> { serde_json::from_str(annotations.get(key)?.as_str()?).ok() };
    let list_of = |key: &str, type_name: &str, make: &dyn Fn(&Value) -> Value| -> Option<Vec<Value>> {
        let id = schema.find(&format!("io.k8s.api.autoscaling.v2.{type_name}"))?;
        let items = read(key)?;
        items.as_array()?.iter().map(|item| decode::conform_to(schema, id, make(item)).ok()).collect()
    };
    if let Some(spec) = root.get_mut("spec").and_then(Value::as_object_mut) {
        let mut metrics = list_of(METRICS_ANNOTATION, "MetricSpec", &spec_to_v2).unwrap_or_default();
        match spec.remove("targetCPUUtilizationPercentage") {
            Some(percent) => metrics.push(cpu_utilization(percent)),
            None if metrics.is_empty() => metrics.push(cpu_utilization(DEFAULT_CPU_PERCENT.into())),
            None => {}
        }
        spec.insert("metrics".into(), metrics.into());
        let behavior =
            read(BEHAVIOR_ANNOTATION).map(|b| renamed(&b, char::to_ascii_lowercase)).and_then(|b| {
                let id = schema.find("io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerBehavior")?;
                decode::conform_to(schema, id, b)
                    .ok()
                    .filter(|b| b.as_object().is_some_and(|b| !b.is_empty()))
            });
        if let Some(behavior) = behavior {
            spec.insert("behavior".into(), behavior);
        }
    }
    let current = list_of(CURRENT_METRICS_ANNOTATION, "MetricStatus", &|m| metric_to_v2(m, &STATUSES));
    let conditions =
        list_of(CONDITIONS_ANNOTATION, "HorizontalPodAutoscalerCondition", &|condition| condition.clone());
    if current.is_some() || conditions.is_some() {
        root.entry("status").or_insert_with(|| json!({}));
    }
    let Some(status) = root.get_mut("status").and_then(Value::as_object_mut) else { return };
    if let Some(percent) = status.remove("currentCPUUtilizationPercentage") {
        let current = json!({"averageUtilization": percent});
        let metric = json!({"type": "Resource", "resource": {"name": "cpu", "current": current}});
        status.insert("currentMetrics".into(), json!([metric]));
    }
    // What the annotations say is more than what the field says.
    for (field, list) in [("currentMetrics", current), ("conditions", conditions)] {
        if let Some(list) = list {
            status.insert(field.into(), list.into());
        }
    }
}

fn is_cpu_utilization(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && !metric["resource"]["target"]["averageUtilization"].is_null()
}

fn cpu_utilization(percent: Value) -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": percent});
    json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})
}

fn metric_to_v1(metric: &Value, members: &[(&str, &[Move])]) -> Value {
    let mut out = json!({"type": metric["type"]});
    for (member, moves) in members {
        let Some(from) = metric.get(member) else { continue };
        let mut to = Map::new();
        for Move { v2, v1, zero } in *moves {
            match from.pointer(v2).filter(|value| !value.is_null()) {
                Some(value) => to.insert((*v1).to_owned(), value.clone()),
                None if *zero => to.insert((*v1).to_owned(), "0".into()),
                None => None,
            };
        }
        out[*member] = Value::Object(to);
    }
    out
}

fn metric_to_v2(metric: &Value, members: &[(&str, &[Move])]) -> Value {
    let mut out = json!({"type": metric["type"]});
    for (member, moves) in members {
        let Some(from) = metric.get(member).filter(|from| !from.is_null()) else { continue };
        let mut to = json!({});
        for Move { v2, v1, .. } in *moves {
            let Some(value) = from.get(v1).filter(|value| !value.is_null()) else { continue };
            let mut at = &mut to;
            for part in v2.split('/').skip(1) {
                at = &mut at[part];
            }
            *at = value.clone();
        }
        out[*member] = to;
    }
    out
}

fn spec_to_v2(metric: &Value) -> Value {
    let mut out = metric_to_v2(metric, &SPECS);
    for (member, _) in &SPECS {
        if let Some(metric) = out.get_mut(member) {
            complete_target(member, metric);
        }
    }
    out
}

/// `autoscaling/v1` does not say of which type a target is, and always says a value.
fn complete_target(member: &str, metric: &mut Value) {
    let target = &mut metric["target"];
    let has = |field: &str| !target[field].is_null();
    let kind = match member {
        "resource" | "containerResource" if has("averageUtilization") => "Utilization",
        "object" if !has("averageValue") => "Value",
        "external" if has("value") => "Value",
        _ => "AverageValue",
    };
    if kind == "AverageValue"
        && member == "object"
        && target["value"] == "0"
        && let Some(target) = target.as_object_mut()
    {
        target.remove("value");
    }
    target["type"] = kind.into();
}

/// The document with the first letter of each field changed, and nothing that is null.
fn renamed(value: &Value, first: fn(&char) -> char) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| {
                let mut rest = key.chars();
                let key = rest.next().map(|c| first(&c)).into_iter().chain(rest).collect::<String>();
                (key, renamed(value, first))
            })
            .collect(),
        Value::Array(items) => items.iter().map(|item| renamed(item, first)).collect(),
        other => other.clone(),
    }
}

fn taken_list(map: &mut Map<String, Value>, field: &str) -> Vec<Value> {
    match map.remove(field) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

/// All annotations but those of the round trip, taken out of the object.
fn take_annotations(root: &mut Map<String, Value>) -> Map<String, Value> {
    let metadata = root.get_mut("metadata").and_then(Value::as_object_mut);
    let mut annotations = match metadata.and_then(|metadata| metadata.remove("annotations")) {
        Some(Value::Object(annotations)) => annotations,
        _ => Map::new(),
    };
    annotations.retain(|key, _| !ROUND_TRIP.contains(&key.as_str()));
    annotations
}

fn put_annotations(root: &mut Map<String, Value>, annotations: Map<String, Value>) {
    if !annotations.is_empty()
        && let Some(metadata) = root.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("annotations".into(), annotations.into());
    }
}

/// The annotations of the round trip, taken out of the object.
fn take_annotations_of_round_trip(root: &mut Map<String, Value>) -> Map<String, Value> {
    let all = root.get("metadata").and_then(|metadata| metadata["annotations"].as_object());
    let found = all.into_iter().flatten().filter(|(key, _)| ROUND_TRIP.contains(&key.as_str()));
    let found = found.map(|(key, value)| (key.clone(), value.clone())).collect();
    let others = take_annotations(root);
    put_annotations(root, others);
    found
}
