use std::sync::Arc;

use serde_json::{Value, json};
use skiff_api::{Kind, Kinds};

use super::convert;

fn kind(group: &str, version: &str, name: &str) -> Arc<Kind> {
    Kinds::builtin().by_kind(group, version, name).expect("a kind").clone()
}

fn autoscalers() -> (Arc<Kind>, Arc<Kind>) {
    let of = |version| kind("autoscaling", version, "HorizontalPodAutoscaler");
    (of("v1"), of("v2"))
}

#[test]
fn an_event_is_the_same_in_both_groups() {
    let (core, events) = (kind("", "v1", "Event"), kind("events.k8s.io", "v1", "Event"));
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod"}, "message": "m", "source": {"component": "c"}, "count": 2,
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:01Z", "reason": "r",
        "reportingComponent": "c", "eventTime": "2026-01-01T00:00:00.000000Z",
    });
    let converted = convert(&core, &events, event.clone());
    assert_eq!(
        converted,
        json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "regarding": {"kind": "Pod"}, "note": "m", "deprecatedSource": {"component": "c"},
            "deprecatedCount": 2, "deprecatedFirstTimestamp": "2026-01-01T00:00:00Z",
            "deprecatedLastTimestamp": "2026-01-01T00:00:01Z", "reason": "r", "reportingController": "c",
            "eventTime": "2026-01-01T00:00:00.000000Z",
        })
    );
    assert_eq!(convert(&events, &core, converted), event);
}

/// One metric of each type, as wanted and as seen, and everything else `autoscaling/v1` has no field for.
fn full_autoscaler() -> Value {
    let selector = json!({"matchLabels": {"a": "b"}});
    let object = json!({"kind": "Ingress", "name": "i", "apiVersion": "networking.k8s.io/v1"});
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "h", "annotations": {"kept": "yes"}},
        "spec": {
            "scaleTargetRef": {"kind": "Deployment", "name": "web", "apiVersion": "apps/v1"},
            "minReplicas": 1, "maxReplicas": 5,
            "metrics": [
                {"type": "Object", "object": {"describedObject": object, "metric": {"name": "m"},
                    "target": {"type": "Value", "value": "3"}}},
                {"type": "Object", "object": {"describedObject": object, "metric": {"name": "m"},
                    "target": {"type": "AverageValue", "averageValue": "3"}}},
                {"type": "Pods", "pods": {"metric": {"name": "m", "selector": selector},
                    "target": {"type": "AverageValue", "averageValue": "3"}}},
                {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c",
                    "target": {"type": "Utilization", "averageUtilization": 40}}},
                {"type": "External", "external": {"metric": {"name": "m", "selector": selector},
                    "target": {"type": "Value", "value": "7"}}},
                {"type": "Resource", "resource": {"name": "memory",
                    "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                {"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 60}}},
            ],
            "behavior": {"scaleUp": {"stabilizationWindowSeconds": 3, "selectPolicy": "Min", "tolerance": "50m",
                "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}},
        },
        "status": {
            "currentReplicas": 2, "desiredReplicas": 3, "observedGeneration": 1,
            "lastScaleTime": "2026-01-01T00:00:00Z",
            "currentMetrics": [
                {"type": "Resource", "resource": {"name": "cpu",
                    "current": {"averageUtilization": 12, "averageValue": "120m"}}},
                {"type": "Pods", "pods": {"metric": {"name": "m"}, "current": {"averageValue": "2"}}},
            ],
            "conditions": [{"type": "AbleToScale", "status": "True", "reason": "r", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        },
    })
}

#[test]
fn what_autoscaling_v1_has_no_field_for_survives_in_annotations() {
    let (v1, v2) = autoscalers();
    let full = full_autoscaler();
    let old = convert(&v2, &v1, full.clone());
    assert_eq!(old["spec"]["targetCPUUtilizationPercentage"], 60);
    assert!(old["spec"]["metrics"].is_null() && old["spec"]["behavior"].is_null());
    assert_eq!(old["status"]["currentCPUUtilizationPercentage"], 12);
    assert!(old["status"]["conditions"].is_null() && old["status"]["currentMetrics"].is_null());
    let annotation = |name: &str| -> Value {
        let text = &old["metadata"]["annotations"][format!("autoscaling.alpha.kubernetes.io/{name}")];
        serde_json::from_str(text.as_str().expect("an annotation")).expect("JSON")
    };
    assert_eq!(
        annotation("metrics")[2],
        json!({"type": "Pods", "pods": {
            "metricName": "m", "targetAverageValue": "3", "selector": {"matchLabels": {"a": "b"}},
        }})
    );
    assert_eq!(annotation("metrics")[1]["object"]["targetValue"], "0", "autoscaling/v1 cannot leave it out");
    assert_eq!(annotation("behavior")["ScaleUp"]["Policies"][0]["PeriodSeconds"], 15);
    assert_eq!(annotation("current-metrics")[0]["resource"]["currentAverageValue"], "120m");
    assert_eq!(annotation("conditions")[0]["type"], "AbleToScale");
    assert_eq!(convert(&v1, &v2, old), full);
}

#[test]
fn an_autoscaler_without_metrics_aims_at_80_percent() {
    let (v1, v2) = autoscalers();
    let annotations = json!({
        "autoscaling.alpha.kubernetes.io/metrics": "[{\"type\":\"Pods\",\"pods\":{\"metricName\":5}}]",
        "autoscaling.alpha.kubernetes.io/behavior": "no JSON",
    });
    let old = json!({"metadata": {"name": "h", "annotations": annotations}, "spec": {"maxReplicas": 2}});
    let new = convert(&v1, &v2, old);
    assert_eq!(new["metadata"], json!({"name": "h"}), "what cannot be read is as none");
    let target = json!({"type": "Utilization", "averageUtilization": 80});
    let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
    assert_eq!(new["spec"], json!({"maxReplicas": 2, "metrics": [cpu]}));
    assert!(new["status"].is_null());
}
