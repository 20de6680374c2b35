use serde_json::json;

use super::*;
use crate::Kinds;

/// 2026-01-01T00:10:00Z.
const NOW_S: i64 = 1_767_226_200;

#[track_caller]
fn check(kind: &str, object: Object, wanted: &[&str]) {
    let kinds = Kinds::builtin();
    let kind = kinds.iter().find(|k| k.kind == kind).unwrap();
    let row = row(kind, &object, &object, IncludeObject::None, NOW_S);
    let cells: Vec<String> = row["cells"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned))
        .collect();
    assert_eq!(cells, wanted);
}

fn pod(status: Value) -> Object {
    json!({
        "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": "n1", "containers": [{"name": "a"}, {"name": "b"}]},
        "status": status,
    })
}

#[test]
fn a_running_pod_prints_as_upstream_prints_it() {
    let status = json!({
        "phase": "Running", "podIP": "10.42.0.7", "podIPs": [{"ip": "10.42.0.7"}],
        "containerStatuses": [
            {"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}},
            {"name": "b", "ready": true, "restartCount": 2, "state": {"running": {}},
             "lastState": {"terminated": {"finishedAt": "2026-01-01T00:09:00Z"}}},
        ],
    });
    check(
        "Pod",
        pod(status),
        &["web", "2/2", "Running", "2 (60s ago)", "10m", "10.42.0.7", "n1", "<none>", "<none>"],
    );
}

#[test]
fn a_pod_that_crashes_shows_the_container_s_reason() {
    let status = json!({
        "phase": "Running",
        "containerStatuses": [
            {"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}},
            {"name": "b", "ready": false, "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
        ],
    });
    check(
        "Pod",
        pod(status),
        &["web", "1/2", "CrashLoopBackOff", "1", "10m", "<none>", "n1", "<none>", "<none>"],
    );
}

#[test]
fn a_pod_in_its_init_containers_counts_them() {
    let mut object = pod(json!({"phase": "Pending", "initContainerStatuses": [
        {"name": "i", "restartCount": 0, "state": {"terminated": {"exitCode": 0}}},
        {"name": "j", "restartCount": 0, "state": {"running": {}}},
    ]}));
    object["spec"]["initContainers"] = json!([{"name": "i"}, {"name": "j"}]);
    check("Pod", object, &["web", "0/2", "Init:1/2", "0", "10m", "<none>", "n1", "<none>", "<none>"]);
}

#[test]
fn a_deployment_a_service_and_a_node_print_as_upstream_prints_them() {
    check(
        "Deployment",
        json!({
            "metadata": {"name": "web", "creationTimestamp": "2025-12-30T00:00:00Z"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
                     "template": {"spec": {"containers": [{"name": "c", "image": "nginx"}]}}},
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2},
        }),
        &["web", "2/3", "3", "2", "2d", "c", "nginx", "app=web"],
    );
    check(
        "Service",
        json!({
            "metadata": {"name": "s", "creationTimestamp": "2026-01-01T00:09:55Z"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.43.0.9", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]},
        }),
        &["s", "LoadBalancer", "10.43.0.9", "<pending>", "80:30080/TCP", "5s", "<none>"],
    );
    check(
        "Node",
        json!({
            "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}, "creationTimestamp": "2025-12-31T20:10:00Z"},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1"},
                       "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
        }),
        &[
            "n",
            "Ready,SchedulingDisabled",
            "control-plane",
            "4h",
            "v1",
            "10.0.0.1",
            "<none>",
            "<unknown>",
            "<unknown>",
            "<unknown>",
        ],
    );
}

#[test]
fn durations_are_as_short_as_upstream_s() {
    for (seconds, wanted) in [
        (-5, "<invalid>"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (185, "3m5s"),
        (3600, "60m"),
        (4 * 3600, "4h"),
        (7 * 3600 + 300, "7h5m"),
        (47 * 3600, "47h"),
        (50 * 3600, "2d2h"),
        (300 * 86400, "300d"),
        (800 * 86400, "2y70d"),
    ] {
        assert_eq!(cell::duration(seconds), wanted, "{seconds}");
    }
}
