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

/// The columns that upstream's API server answers with, of each kind: name, type, format and priority.
const COLUMNS: &str = include_str!("columns.tsv");

#[test]
fn every_table_has_upstreams_columns_and_each_of_them_a_description() {
    let kinds = Kinds::builtin();
    let mut wrong = Vec::new();
    for line in COLUMNS.lines() {
        let mut fields = line.split('\t');
        let (version, name) = fields.next().and_then(|of| of.split_once(' ')).unwrap();
        let wanted: Vec<&str> = fields.collect();
        let Some(kind) = kinds.iter().find(|kind| kind.kind == name && kind.api_version() == version) else {
            panic!("no {version} {name}");
        };
        // What is printed are the columns of the version that is stored.
        let stored = kinds.stored().into_iter().find(|stored| stored.registry_folder == kind.registry_folder);
        let printed = stored.as_deref().unwrap_or(kind);
        let has: Vec<String> = printed
            .columns
            .iter()
            .map(|c| format!("{}|{}|{}|{}", c.name, c.kind, c.format, c.priority))
            .collect();
        if has != wanted {
            wrong.push(format!("{version} {name}: {has:?}\n    upstream: {wanted:?}"));
        }
    }
    for kind in kinds.iter() {
        let definitions = column_definitions(kind);
        let bare = definitions.as_array().unwrap().iter().filter(|c| c["description"] == "");
        wrong.extend(bare.map(|column| format!("{}: {} says nothing", kind.kind, column["name"])));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_component_is_healthy_unhealthy_or_unknown() {
    let component = |conditions: Value| json!({"metadata": {"name": "etcd-0"}, "conditions": conditions});
    let healthy = json!([{"type": "Healthy", "status": "True", "message": "ok"}]);
    check("ComponentStatus", component(healthy), &["etcd-0", "Healthy", "ok", ""]);
    let broken = json!([{"type": "Healthy", "status": "False", "message": "m", "error": "e"}]);
    check("ComponentStatus", component(broken), &["etcd-0", "Unhealthy", "m", "e"]);
    check("ComponentStatus", component(json!([])), &["etcd-0", "Unknown", "", ""]);
}

#[test]
fn a_flow_schema_says_whether_its_level_is_missing() {
    let mut schema = json!({
        "metadata": {"name": "f", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"matchingPrecedence": 5, "priorityLevelConfiguration": {"name": "p"}},
    });
    check("FlowSchema", schema.clone(), &["f", "p", "5", "<none>", "10m", "?"]);
    schema["status"] = json!({"conditions": [{"type": "Dangling", "status": "False"}]});
    check("FlowSchema", schema, &["f", "p", "5", "<none>", "10m", "False"]);
}

/// Objects as upstream's API server stored them, and the cells that it answered with.
const ROWS: &[u8] = include_bytes!("rows.jsonl.gz");
/// Which say how long ago something was.
const AGES: [&str; 5] = ["Age", "Last Seen", "First Seen", "Duration", "Last Schedule"];

#[test]
fn every_cell_is_upstreams() {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(ROWS), &mut text).unwrap();
    let (kinds, mut n_compared, mut wrong) = (Kinds::builtin(), 0, Vec::new());
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let (version, name) = line["of"].as_str().and_then(|of| of.split_once(' ')).unwrap();
        // Others are converted before they are printed.
        let kinds = kinds.stored();
        let Some(kind) = kinds.iter().find(|kind| kind.kind == name && kind.api_version() == version) else {
            continue;
        };
        let found = row(kind, &line["object"], &line["object"], IncludeObject::None, NOW_S);
        for (at, column) in kind.columns.iter().enumerate().filter(|(_, c)| !AGES.contains(&&*c.name)) {
            n_compared += 1;
            let (has, wanted) = (&found["cells"][at], &line["cells"][at]);
            if has != wanted {
                wrong.push(format!(
                    "{name} {}, {}: {has}, upstream {wanted}",
                    line["object"]["metadata"]["name"], column.name
                ));
            }
        }
    }
    assert!(n_compared > 200, "{n_compared}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
