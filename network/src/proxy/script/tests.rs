use std::sync::Arc;

use expect_test::{Expect, expect};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use super::*;
use crate::proxy::plan::plan;
use crate::proxy::{Node, is_stale};

fn node() -> Node {
    Node::new(ProxyConfig {
        node_name: "n1".into(),
        node_ips: vec!["192.0.2.1".parse().unwrap()],
        cluster_cidr: "10.42.0.0/16".into(),
        pod_cidr: "10.42.0.0/24".into(),
    })
}

fn service(spec: serde_json::Value) -> Arc<Service> {
    Arc::new(
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "d"}, "spec": spec})).unwrap(),
    )
}

/// A slice of the Service above with (address, node, ready) endpoints on port 8080.
fn slice(endpoints: &[(&str, &str, bool)]) -> Arc<EndpointSlice> {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(ip, node, ready)| json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": ready}}))
        .collect();
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": "s-1", "namespace": "d", "labels": {"kubernetes.io/service-name": "s"}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        }))
        .unwrap(),
    )
}

fn plan_of(spec: serde_json::Value, endpoints: &[(&str, &str, bool)]) -> Plan {
    plan(&node(), &[service(spec)], &[slice(endpoints)])
}

fn cluster_ip() -> serde_json::Value {
    json!({"clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"], "ports": [{"port": 80}]})
}

fn changes(before: &Plan, now: &Plan) -> String {
    difference(&Elements::of(before), &Elements::of(now))
}

fn check(before: &Plan, now: &Plan, wanted: Expect) {
    wanted.assert_eq(&changes(before, now));
}

#[test]
fn a_service_is_one_frontend_and_an_element_an_endpoint() {
    let now = plan_of(
        cluster_ip(),
        &[("10.42.0.7", "n1", true), ("10.42.0.8", "n1", true), ("10.42.0.9", "n1", false)],
    );
    check(
        &Plan::default(),
        &now,
        expect![[r#"
        add chain ip skiff_proxy endpoints_2
        add rule ip skiff_proxy endpoints_2 dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints
        add rule ip skiff_proxy endpoints_2 dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @udp_endpoints
        add element ip skiff_proxy frontends { 10.43.0.9 . tcp . 80 : goto endpoints_2 }
        add element ip skiff_proxy endpoints { 10.43.0.9 . tcp . 80 . 0 : 10.42.0.7 . 8080, 10.43.0.9 . tcp . 80 . 1 : 10.42.0.8 . 8080 }
        add element ip skiff_proxy hairpin { 10.42.0.7 . 10.42.0.7, 10.42.0.8 . 10.42.0.8 }
        add element ip skiff_proxy backends { 10.42.0.7 . tcp . 8080, 10.42.0.8 . tcp . 8080 }
    "#]],
    );
}

#[test]
fn one_more_endpoint_touches_its_service_only() {
    let other = json!({"clusterIP": "10.43.0.10", "ports": [{"port": 53, "protocol": "UDP"}]});
    let before = plan(
        &node(),
        &[service(cluster_ip()), service(other.clone())],
        &[slice(&[("10.42.0.7", "n1", true), ("10.42.0.8", "n1", true)])],
    );
    let now = plan(
        &node(),
        &[service(cluster_ip()), service(other)],
        &[slice(&[("10.42.0.7", "n1", true), ("10.42.0.8", "n1", true), ("10.42.0.9", "n1", true)])],
    );
    let script = changes(&before, &now);
    assert!(script.contains("10.43.0.9 . tcp . 80 . 2 : 10.42.0.9 . 8080"), "{script}");
    assert!(
        !script.contains("10.43.0.9 . tcp . 80 . 0"),
        "an endpoint that stayed was written again:\n{script}"
    );
}

#[test]
fn a_service_that_goes_takes_its_elements_and_chain_along() {
    let before = plan_of(cluster_ip(), &[("10.42.0.7", "n1", true)]);
    check(
        &before,
        &Plan::default(),
        expect![[r#"
        delete element ip skiff_proxy frontends { 10.43.0.9 . tcp . 80 }
        delete element ip skiff_proxy only_endpoint { 10.43.0.9 . tcp . 80 }
        delete element ip skiff_proxy hairpin { 10.42.0.7 . 10.42.0.7 }
        delete element ip skiff_proxy backends { 10.42.0.7 . tcp . 8080 }
        flush chain ip skiff_proxy endpoints_1
    "#]],
    );
}

#[test]
fn nothing_changes_between_equal_plans() {
    let spec = || json!({"clusterIP": "10.43.0.9", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
    let endpoints = [("10.42.0.7", "n1", true)];
    check(&plan_of(spec(), &endpoints), &plan_of(spec(), &endpoints), expect![""]);
}

#[test]
fn a_service_without_endpoints_is_refused_and_a_local_one_dropped() {
    let script = changes(&Plan::default(), &plan_of(cluster_ip(), &[]));
    assert!(script.contains("add element ip skiff_proxy no_endpoints { 10.43.0.9 . tcp . 80 }"), "{script}");
    let local = json!({"clusterIP": "10.43.0.9", "internalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    let script = changes(&Plan::default(), &plan_of(local, &[("10.42.1.7", "n2", true)]));
    assert!(script.contains("add element ip skiff_proxy local_only { 10.43.0.9 . tcp . 80 }"), "{script}");
}

#[test]
fn a_node_port_opens_on_the_node_s_address() {
    let spec =
        json!({"type": "NodePort", "clusterIP": "10.43.0.9", "ports": [{"port": 80, "nodePort": 30080}]});
    let plan = plan_of(spec, &[("10.42.0.7", "n1", true)]);
    let script = changes(&Plan::default(), &plan);
    assert!(script.contains("192.0.2.1 . tcp . 30080 : goto endpoints_1"), "{script}");
    assert!(script.contains("only_endpoint { 10.43.0.9 . tcp . 80 : 10.42.0.7 . 8080, 192.0.2.1 . tcp . 30080 : 10.42.0.7 . 8080 }"), "{script}");
}

#[test]
fn udp_flows_are_stale_once_nobody_serves_them() {
    let spec = || json!({"clusterIP": "10.43.0.9", "ports": [{"port": 53, "protocol": "UDP"}]});
    let mut slice = slice(&[("10.42.0.7", "n1", true), ("10.42.0.8", "n1", false)]);
    Arc::make_mut(&mut slice).ports.as_mut().unwrap()[0].protocol = Some("UDP".into());
    let ending = json!({"ready": false, "serving": true, "terminating": true});
    let endpoints = Arc::make_mut(&mut slice).endpoints.as_mut().unwrap();
    endpoints[1].conditions = serde_json::from_value(ending).unwrap();
    let plan = plan(&node(), &[service(spec())], &[slice]);
    let is_stale = |to: &str, by: &str| {
        let flow = crate::conntrack::Flow { to: to.parse().unwrap(), answered_by: by.parse().unwrap() };
        is_stale(&plan.udp, &flow)
    };
    assert!(!is_stale("10.43.0.9:53", "10.42.0.7:8080"));
    assert!(!is_stale("10.43.0.9:53", "10.42.0.8:8080"), "an ending endpoint keeps the flows it has");
    assert!(is_stale("10.43.0.9:53", "10.42.0.9:8080"));
    assert!(is_stale("10.43.0.9:53", "10.43.0.9:53"), "a flow from before the Service");
    assert!(!is_stale("10.43.0.1:53", "10.42.0.9:8080"), "a flow to somebody else");
}

/// A LoadBalancer Service of that name and age, at addresses, with one endpoint's worth of spec.
fn balancer(name: &str, created: &str, ips: &[&str], spec: serde_json::Value) -> Arc<Service> {
    let ingress: Vec<_> = ips.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
    let mut service = json!({
        "metadata": {"name": name, "namespace": "d", "creationTimestamp": created},
        "spec": {"type": "LoadBalancer"},
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    service["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    Arc::new(serde_json::from_value(service).unwrap())
}

fn owner_of(plan: &Plan, ip: &str, port: u16) -> Option<String> {
    let frontend = Frontend { ip: ip.parse().unwrap(), protocol: Protocol::Tcp, port };
    plan.frontends.get(&frontend).map(|balanced| balanced.service_port.to_string())
}

#[test]
fn an_address_and_port_belong_to_the_oldest_service_whatever_the_order() {
    let young = balancer(
        "a",
        "2026-01-02T00:00:00Z",
        &["192.0.2.1"],
        json!({"clusterIP": "10.43.0.8", "ports": [{"port": 80}, {"port": 81, "name": "b"}]}),
    );
    let old = balancer(
        "z",
        "2026-01-01T00:00:00Z",
        &["192.0.2.1"],
        json!({"clusterIP": "10.43.0.9", "ports": [{"port": 80}]}),
    );
    let plan = |services: [&Arc<Service>; 2]| plan(&node(), &services.map(Arc::clone), &[]);
    let found = plan([&young, &old]);
    assert_eq!(owner_of(&found, "192.0.2.1", 80).unwrap(), "d/z:80");
    assert_eq!(owner_of(&found, "192.0.2.1", 81).unwrap(), "d/a:b", "the loser keeps what is its own");
    assert_eq!(owner_of(&found, "10.43.0.8", 80).unwrap(), "d/a:80");
    assert_eq!(
        found.complaints.into_iter().collect::<Vec<_>>(),
        ["d/a:80: 192.0.2.1 tcp 80 belongs to d/z:80"]
    );
    assert_eq!(plan([&old, &young]), plan([&young, &old]));
}

#[test]
fn no_external_address_takes_a_cluster_address_or_the_node_s_own_port() {
    let thief = balancer(
        "a",
        "2026-01-01T00:00:00Z",
        &["192.0.2.1", "192.0.2.9", "10.42.0.1"],
        json!({"clusterIP": "10.43.0.8", "externalIPs": ["10.43.0.9"], "ports": [{"port": 6443}]}),
    );
    let victim = balancer(
        "b",
        "2026-01-02T00:00:00Z",
        &[],
        json!({"clusterIP": "10.43.0.9", "ports": [{"port": 6443}]}),
    );
    let found = plan(&node(), &[thief, victim], &[]);
    assert_eq!(owner_of(&found, "10.43.0.9", 6443).unwrap(), "d/b:6443");
    assert_eq!(owner_of(&found, "192.0.2.1", 6443), None);
    assert_eq!(owner_of(&found, "10.42.0.1", 6443), None, "the pods' gateway is the node too");
    assert_eq!(
        owner_of(&found, "192.0.2.9", 6443).unwrap(),
        "d/a:6443",
        "another machine's port 6443 is not ours"
    );
    assert!(found.complaints.contains("d/a:6443: 192.0.2.1 tcp 6443 is this node's own port"), "{found:?}");
}

#[test]
fn a_node_port_is_no_load_balancer_s_to_take() {
    let old = balancer(
        "a",
        "2026-01-01T00:00:00Z",
        &["192.0.2.1"],
        json!({"clusterIP": "10.43.0.8", "ports": [{"port": 30080}]}),
    );
    let young = balancer(
        "b",
        "2026-01-02T00:00:00Z",
        &[],
        json!({"clusterIP": "10.43.0.9", "ports": [{"port": 80, "nodePort": 30080}]}),
    );
    assert_eq!(owner_of(&plan(&node(), &[old, young], &[]), "192.0.2.1", 30080).unwrap(), "d/b:80");
}

#[test]
fn source_ranges_guard_the_load_balancer_s_address_only() {
    let guarded = balancer(
        "s",
        "2026-01-01T00:00:00Z",
        &["192.0.2.1"],
        json!({"clusterIP": "10.43.0.9", "externalIPs": ["192.0.2.7"], "loadBalancerSourceRanges": ["192.0.2.0/30", "nonsense"],
               "ports": [{"port": 80, "nodePort": 30080}]}),
    );
    let found = plan(&node(), &[guarded], &[slice(&[("10.42.0.7", "n1", true)])]);
    let script = changes(&Plan::default(), &found);
    assert!(script.contains("ip saddr != { 192.0.2.0/30 } drop"), "{script}");
    let firewall: Vec<&str> =
        script.lines().filter(|l| l.contains("element ip skiff_proxy firewall")).collect();
    assert_eq!(firewall.len(), 1, "{script}");
    assert!(firewall[0].contains("{ 192.0.2.1 . tcp . 80 : goto sources_"), "{script}");
    assert_eq!(firewall[0].matches("goto").count(), 1, "{script}");
    let complaints: Vec<String> = found.complaints.into_iter().collect();
    assert_eq!(complaints, [r#"d/s: loadBalancerSourceRanges: "nonsense" is no CIDR"#]);
}

#[test]
fn a_local_external_policy_is_for_those_outside() {
    let local = |endpoints: &[(&str, &str, bool)]| {
        let spec = json!({"clusterIP": "10.43.0.9", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
                          "ports": [{"port": 80}]});
        plan(&node(), &[balancer("s", "2026-01-01T00:00:00Z", &["192.0.2.9"], spec)], &[slice(endpoints)])
    };
    let here = local(&[("10.42.0.7", "n1", true), ("10.42.1.7", "n2", true)]);
    assert_eq!(here.health_checks[&31000].n_local_endpoints, 1);
    let script = changes(&Plan::default(), &here);
    for line in [
        "element ip skiff_proxy only_endpoint { 192.0.2.9 . tcp . 80 : 10.42.0.7 . 8080 }",
        "element ip skiff_proxy inside_endpoints { 192.0.2.9 . tcp . 80 . 0 : 10.42.0.7 . 8080, 192.0.2.9 . tcp . 80 . 1 : 10.42.1.7 . 8080 }",
    ] {
        assert!(script.contains(line), "{script}");
    }
    let elsewhere = local(&[("10.42.1.7", "n2", true)]);
    assert_eq!(elsewhere.health_checks[&31000].n_local_endpoints, 0);
    let script = changes(&Plan::default(), &elsewhere);
    for line in [
        "element ip skiff_proxy local_only { 192.0.2.9 . tcp . 80 }",
        "element ip skiff_proxy inside_only_endpoint { 192.0.2.9 . tcp . 80 : 10.42.1.7 . 8080 }",
    ] {
        assert!(script.contains(line), "{script}");
    }
    let script = changes(&Plan::default(), &local(&[]));
    assert!(script.contains("no_endpoints { 10.43.0.9 . tcp . 80, 192.0.2.9 . tcp . 80 }"), "{script}");
}

#[test]
fn a_client_s_endpoint_is_remembered_while_others_come_and_go() {
    let spec = || json!({"clusterIP": "10.43.0.9", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
    let before = plan_of(spec(), &[("10.42.0.7", "n1", true)]);
    let now = plan_of(spec(), &[("10.42.0.7", "n1", true), ("10.42.0.8", "n1", true)]);
    let script = changes(&before, &now);
    let stays = changes(&Plan::default(), &before);
    let set = stays.lines().find(|l| l.starts_with("add set")).unwrap().split(' ').nth(4).unwrap();
    assert!(!script.contains(&format!("add set ip skiff_proxy {set}")), "{script}");
    assert!(!script.contains("delete set"), "{script}");
}

#[test]
fn a_listing_names_what_comes_and_goes() {
    let json = br#"{"nftables": [{"metainfo": {}}, {"chain": {"name": "prerouting"}}, {"chain": {"name": "endpoints_2"}},
        {"set": {"name": "sticky_0_clients"}}, {"set": {"name": "hairpin"}}, {"map": {"name": "endpoints"}}]}"#;
    let found = Found::parse(json).unwrap();
    assert_eq!(found.chains.into_iter().collect::<Vec<_>>(), ["endpoints_2"]);
    assert_eq!(found.sets.into_iter().collect::<Vec<_>>(), ["sticky_0_clients"]);
    assert_eq!(Found::parse(b"nonsense"), None);
}
