use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> Pod {
    let mut spec = spec;
    if spec["containers"].is_null() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d"}, "spec": spec})).unwrap()
}

fn asking(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}}]})
}

fn node(name: &str, change: impl FnOnce(&mut Value)) -> NodeInfo {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"}},
    });
    change(&mut node);
    NodeInfo::new(Arc::new(serde_json::from_value(node).unwrap()))
}

fn plain(name: &str) -> NodeInfo {
    node(name, |_| {})
}

#[track_caller]
fn check(pod: &Pod, nodes: &[NodeInfo], wanted: Result<&str, &str>) {
    let found = decide(pod, nodes, |_| 0);
    match (&found, wanted) {
        (Ok(node), Ok(name)) => assert_eq!(node.name(), name),
        (Err(why), Err(reason)) => assert!(why.message.contains(reason), "{} lacks {reason}", why.message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_reasons_are_upstream_s() {
    let cordoned = node("a", |n| n["spec"]["unschedulable"] = true.into());
    check(&pod(json!({})), &[cordoned], Err("0/1 nodes are available: 1 node(s) were unschedulable."));
    let tainted =
        node("a", |n| n["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]));
    check(&pod(json!({})), &[tainted], Err("1 node(s) had untolerated taint(s)"));
    check(
        &pod(json!({"nodeSelector": {"disk": "ssd"}})),
        &[plain("a")],
        Err("1 node(s) didn't match Pod's node affinity/selector"),
    );
    check(&pod(asking("3")), &[plain("a"), plain("b")], Err("0/2 nodes are available: 2 Insufficient cpu."));
    check(&pod(json!({})), &[], Err("no nodes available to schedule pods"));
    let full = node("a", |n| n["status"]["allocatable"]["pods"] = "0".into());
    check(&pod(json!({})), &[full], Err("1 Too many pods"));
}

#[test]
fn a_toleration_lets_a_pod_through() {
    let tainted =
        || node("a", |n| n["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]));
    for (toleration, passes) in [
        (json!({"key": "k", "operator": "Equal", "value": "v"}), true),
        (json!({"key": "k", "operator": "Exists"}), true),
        (json!({"operator": "Exists"}), true),
        (json!({"key": "k", "value": "w"}), false),
        (json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), false),
    ] {
        let pod = pod(json!({"tolerations": [toleration]}));
        check(&pod, &[tainted()], if passes { Ok("a") } else { Err("untolerated") });
    }
}

#[test]
fn the_emptier_node_is_chosen() {
    let mut busy = plain("a");
    busy.add(&pod(asking("1500m")));
    check(&pod(asking("100m")), &[busy, plain("b")], Ok("b"));
}

#[test]
fn a_preferred_node_wins_over_an_equal_one() {
    let preferred = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 10, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z"]}]}}]}}});
    let zoned = node("b", |n| n["metadata"]["labels"]["zone"] = "z".into());
    check(&pod(preferred), &[plain("a"), zoned], Ok("b"));
}

#[test]
fn a_host_port_is_taken_once_a_node() {
    let wants =
        || pod(json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}));
    let mut taken = plain("a");
    taken.add(&wants());
    check(&wants(), &[taken], Err("1 node(s) didn't have free ports for the requested pod ports"));
}

#[test]
fn what_cannot_be_weighed_is_refused() {
    let anti = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname"}]}}});
    check(&pod(anti), &[plain("a")], Err("not supported"));
}
