use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node};
use serde_json::{Value, json};
use skiff_client::ObjectKey;
use skiff_client::view::Pod;

use super::*;

pub(crate) fn pod(spec: Value) -> Pod {
    let mut spec = spec;
    if spec["containers"].is_null() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d"}, "spec": spec})).unwrap()
}

pub(crate) fn asking(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}}]})
}

/// A node and what is on it.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) node: Node,
    pub(crate) pods: Vec<Pod>,
}

pub(crate) fn node(name: &str, change: impl FnOnce(&mut Value)) -> Held {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"}},
    });
    change(&mut node);
    Held { node: serde_json::from_value(node).unwrap(), pods: Vec::new() }
}

pub(crate) fn plain(name: &str) -> Held {
    node(name, |_| {})
}

pub(crate) fn info(pod: &Pod) -> PodInfo {
    PodInfo::new(Arc::new(pod.clone()))
}

pub(crate) fn put(node: &mut Held, pod: Pod) {
    node.pods.push(pod);
}

pub(crate) fn cluster(nodes: &[Held]) -> Cluster {
    let mut cluster = Cluster::default();
    for (name, team) in [("d", "x"), ("other", "y")] {
        let namespace: Namespace =
            serde_json::from_value(json!({"metadata": {"labels": {"team": team}}})).unwrap();
        cluster.namespace_changed(name, Some(&namespace));
    }
    for (n, held) in nodes.iter().enumerate() {
        let name = held.node.metadata.name.as_deref().unwrap();
        cluster.node_changed(name, Some(&Arc::new(held.node.clone())));
        for (m, pod) in held.pods.iter().enumerate() {
            let key = ObjectKey::new("d", format!("{n}-{m}"));
            cluster.pod_on(&key, &Arc::new(pod.clone()), name);
        }
    }
    cluster.settle();
    cluster
}

#[track_caller]
fn check(pod: &Pod, nodes: &[Held], wanted: Result<&str, &str>) {
    let (info, cluster) = (info(pod), cluster(nodes));
    let found = decide(&info, &cluster, None, |_| 0);
    match (&found, wanted) {
        (Ok(decision), Ok(name)) => assert_eq!(decision.node.name(), name),
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
    put(&mut busy, pod(asking("1500m")));
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
    put(&mut taken, wants());
    check(&wants(), &[taken], Err("1 node(s) didn't have free ports for the requested pod ports"));
}

/// The whole message.
#[track_caller]
fn check_message(pod: &Pod, nodes: &[Held], wanted: &str) {
    assert_eq!(decide(&info(pod), &cluster(nodes), None, |_| 0).unwrap_err().message, wanted);
}

#[test]
fn the_message_ends_with_why_preemption_would_not_help() {
    let mut busy = plain("a");
    put(&mut busy, pod(asking("1500m")));
    let with = |field: &str, value: Value| {
        let mut spec = asking("1");
        spec[field] = value;
        pod(spec)
    };
    check_message(
        &pod(asking("1")),
        &[busy.clone()],
        "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.",
    );
    check_message(
        &pod(asking("3")),
        &[busy.clone()],
        "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
    );
    let cordoned = node("b", |n| n["spec"]["unschedulable"] = true.into());
    check_message(
        &pod(asking("1")),
        &[busy.clone(), cordoned],
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable. preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling.",
    );
    check_message(
        &with("preemptionPolicy", "Never".into()),
        &[busy.clone()],
        "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never.",
    );
    check_message(
        &with("priority", 10.into()),
        &[busy.clone()],
        // Room is being made.
        "0/1 nodes are available: 1 Insufficient cpu.",
    );
    let mut important = busy;
    let mut vital = pod(asking("1500m"));
    vital.spec.as_mut().unwrap().priority = Some(20);
    put(&mut important, vital);
    check_message(
        &with("priority", 10.into()),
        &[important],
        "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Insufficient cpu.",
    );
}

pub(crate) fn app(name: &str, spec: Value) -> Pod {
    let mut pod = pod(spec);
    pod.metadata.labels = Some([("app".to_owned(), name.to_owned())].into());
    pod
}

pub(crate) fn term(app: &str, key: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key})
}

pub(crate) fn near(term: Value) -> Value {
    json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
}

pub(crate) fn far(term: Value) -> Value {
    json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
}

pub(crate) const HOST: &str = "kubernetes.io/hostname";

pub(crate) fn zoned(name: &str, zone: &str) -> Held {
    node(name, |n| n["metadata"]["labels"]["zone"] = zone.into())
}

#[test]
fn a_pod_goes_where_the_pods_are_that_it_wants_to_be_near() {
    let mut with_db = zoned("b", "2");
    put(&mut with_db, app("db", json!({})));
    let nodes = [zoned("a", "1"), with_db, zoned("c", "2")];
    check(&app("web", near(term("db", HOST))), &nodes, Ok("b"));
    check(&app("web", near(term("db", "zone"))), &nodes, Ok("c"));
    check_message(
        &app("web", near(term("db", HOST))),
        &nodes[..1],
        "0/1 nodes are available: 1 node(s) didn't match pod affinity rules. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
    );
}

#[test]
fn the_first_of_pods_that_want_each_other_is_let_in_where_the_topology_is() {
    let alike = app("web", near(term("web", "zone")));
    check(&alike, &[plain("a"), zoned("b", "1")], Ok("b"));
    check(&alike, &[plain("a")], Err("1 node(s) didn't match pod affinity rules"));
    let mut one = zoned("b", "1");
    put(&mut one, app("web", json!({})));
    check(&alike, &[zoned("a", "2"), one], Ok("b"));
}

#[test]
fn pods_that_shun_each_other_do_so_in_both_directions() {
    let shy = || app("web", far(term("web", HOST)));
    let mut taken = plain("a");
    put(&mut taken, shy());
    check(&shy(), &[taken.clone(), plain("b")], Ok("b"));
    check(&shy(), &[taken.clone()], Err("1 node(s) didn't match pod anti-affinity rules"));
    check(
        &app("web", json!({})),
        &[taken.clone()],
        Err("1 node(s) didn't satisfy existing pods anti-affinity rules"),
    );
    check(&app("db", json!({})), &[taken], Ok("a"));
}

#[test]
fn a_term_is_about_its_pod_s_own_namespace_unless_it_says_otherwise() {
    let mut elsewhere = app("web", json!({}));
    elsewhere.metadata.namespace = Some("other".into());
    let mut taken = plain("a");
    put(&mut taken, elsewhere);
    check(&app("web", far(term("web", HOST))), &[taken.clone()], Ok("a"));
    let mut listed = term("web", HOST);
    listed["namespaces"] = json!(["other"]);
    check(&app("web", far(listed)), &[taken.clone()], Err("anti-affinity"));
    let mut selected = term("web", HOST);
    selected["namespaceSelector"] = json!({"matchLabels": {"team": "y"}});
    check(&app("web", far(selected.clone())), &[taken.clone()], Err("anti-affinity"));
    selected["namespaceSelector"] = json!({"matchLabels": {"team": "x"}});
    check(&app("web", far(selected)), &[taken], Ok("a"));
}

#[test]
fn a_preference_for_other_pods_decides_among_nodes_that_fit() {
    let prefers = |kind: &str| {
        app(
            "web",
            json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 50, "podAffinityTerm": term("db", HOST)}]}}}),
        )
    };
    let mut with_db = plain("a");
    put(&mut with_db, app("db", json!({})));
    let nodes = [with_db, plain("b")];
    check(&prefers("podAffinity"), &nodes, Ok("a"));
    check(&prefers("podAntiAffinity"), &nodes, Ok("b"));
}

pub(crate) fn spread(key: &str, max_skew: i32, change: impl FnOnce(&mut Value)) -> Pod {
    let mut constraint = json!({"maxSkew": max_skew, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}});
    change(&mut constraint);
    app("web", json!({"topologySpreadConstraints": [constraint]}))
}

pub(crate) fn with_pods(mut node: Held, count: usize) -> Held {
    (0..count).for_each(|_| put(&mut node, app("web", json!({}))));
    node
}

#[test]
fn pods_are_spread_no_more_unevenly_than_they_allow() {
    let plainly = || spread("zone", 1, |_| {});
    let nodes = [with_pods(zoned("a", "1"), 2), with_pods(zoned("b", "2"), 1)];
    check(&plainly(), &nodes, Ok("b"));
    let full = node("b", |n| {
        n["metadata"]["labels"]["zone"] = "2".into();
        n["status"]["allocatable"]["pods"] = "0".into();
    });
    check_message(
        &plainly(),
        &[nodes[0].clone(), full.clone()],
        "0/2 nodes are available: 1 Too many pods, 1 node(s) didn't match pod topology spread constraints. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.",
    );
    check(&spread("zone", 3, |_| {}), &[nodes[0].clone(), full], Ok("a"));
    check_message(
        &plainly(),
        &[plain("a")],
        "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label). preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
    );
}

#[test]
fn domains_that_are_still_missing_count_as_empty() {
    let one = [with_pods(zoned("a", "1"), 1)];
    check(&spread("zone", 1, |_| {}), &one, Ok("a"));
    check(&spread("zone", 1, |c| c["minDomains"] = 2.into()), &one, Err("topology spread constraints"));
}

#[test]
fn nodes_that_the_pod_cannot_be_on_do_not_hold_the_others_back() {
    let tainted = node("b", |n| {
        n["metadata"]["labels"]["zone"] = "2".into();
        n["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
    });
    let nodes = [with_pods(zoned("a", "1"), 1), tainted];
    check(&spread("zone", 1, |_| {}), &nodes, Err("topology spread constraints"));
    check(&spread("zone", 1, |c| c["nodeTaintsPolicy"] = "Honor".into()), &nodes, Ok("a"));
    let mut selecting = spread("zone", 1, |_| {});
    selecting.spec.as_mut().unwrap().node_selector = Some([(HOST.to_owned(), "a".to_owned())].into());
    check(&selecting, &nodes, Ok("a"));
}

#[test]
fn pods_that_say_nothing_are_spread_among_those_they_belong_to() {
    let siblings = LabelSelector::from_json(&json!({"matchLabels": {"app": "web"}})).unwrap();
    let mut other = plain("b");
    put(&mut other, app("db", json!({})));
    let cluster = cluster(&[with_pods(plain("a"), 1), other]);
    let info = info(&app("web", json!({})));
    let found = decide(&info, &cluster, Some(&siblings), |_| 0).unwrap();
    assert_eq!(found.node.name(), "b");
}

#[test]
fn in_a_large_cluster_enough_nodes_are_looked_at_and_the_next_pod_gets_others() {
    let nodes: Vec<Held> = (0..1000).map(|n| plain(&format!("n{n:04}"))).collect();
    let mut cluster = cluster(&nodes);
    let wants = info(&pod(asking("1")));
    let first = decide(&wants, &cluster, None, |_| 0).unwrap();
    assert_eq!((first.node.name(), first.n_looked_at), ("n0000", 420));
    cluster.go_on_after(900);
    let later = decide(&wants, &cluster, None, |n| n - 1).unwrap();
    assert_eq!((later.node.name(), later.n_looked_at), ("n0319", 420));
    assert_eq!([n_enough(1), n_enough(99), n_enough(100), n_enough(5000)], [1, 99, 100, 500]);
}

#[test]
fn where_nothing_fits_all_nodes_are_counted_however_many_there_are() {
    let mut nodes: Vec<Held> = (0..1000).map(|n| plain(&format!("n{n:04}"))).collect();
    nodes[7].node.spec.as_mut().unwrap().unschedulable = Some(true);
    check_message(
        &pod(asking("3")),
        &nodes,
        "0/1000 nodes are available: 1 node(s) were unschedulable, 999 Insufficient cpu. preemption: 0/1000 nodes are available: 1000 Preemption is not helpful for scheduling.",
    );
}

#[test]
fn a_node_asked_once_says_the_same_as_one_of_many() {
    let expression = |operator: &str, values: Value| json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "n", "operator": operator, "values": values}]}]});
    let required = |selector: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": selector}}});
    let by_name = json!({"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]});
    let wants = [
        json!({}),
        asking("3"),
        json!({"nodeSelector": {"n": "1"}}),
        json!({"nodeName": "c"}),
        json!({"tolerations": [{"operator": "Exists"}]}),
        json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}),
        required(expression("In", json!(["1", "2"]))),
        required(expression("NotIn", json!(["1"]))),
        required(expression("Exists", json!([]))),
        required(expression("DoesNotExist", json!([]))),
        required(expression("Gt", json!(["1"]))),
        required(expression("Lt", json!(["2"]))),
        required(by_name),
        required(json!({"nodeSelectorTerms": [{}]})),
    ];
    let label = |value: &'static str| move |n: &mut Value| n["metadata"]["labels"]["n"] = value.into();
    let mut busy = node("c", label("2"));
    put(&mut busy, pod(wants[5].clone()));
    let nodes = [
        plain("a"),
        node("b", label("1")),
        busy,
        node("d", |n| n["spec"]["taints"] = json!([{"key": "k", "effect": "NoExecute"}])),
        node("e", |n| n["spec"]["unschedulable"] = true.into()),
        node("f", |n| n["status"]["allocatable"]["pods"] = "0".into()),
    ];
    let cluster = cluster(&nodes);
    let mut n_fitting = 0;
    for wanted in wants {
        let info = info(&pod(wanted.clone()));
        let compiled = Wants::of(&info, &cluster);
        for node in cluster.nodes() {
            let fits = compiled.filter(node, &node.load).is_ok();
            assert_eq!(plugins::may_fit(&info, node), fits, "{wanted} on {}", node.name());
            n_fitting += usize::from(fits);
        }
    }
    assert!(n_fitting > 20, "{n_fitting}");
}
