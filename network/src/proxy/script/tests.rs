use std::sync::Arc;

use expect_test::{Expect, expect};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use super::*;
use crate::proxy::plan::{plan, stale_udp};

fn config() -> ProxyConfig {
    ProxyConfig {
        node_name: "n1".into(),
        node_ips: vec!["192.0.2.1".parse().unwrap()],
        cluster_cidr: "10.42.0.0/16".into(),
        pod_cidr: "10.42.0.0/24".into(),
    }
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
    plan(&config(), &[service(spec)], &[slice(endpoints)])
}

fn cluster_ip() -> serde_json::Value {
    json!({"clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"], "ports": [{"port": 80}]})
}

fn check(before: &Plan, now: &Plan, wanted: Expect) {
    wanted.assert_eq(&difference(before, now));
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
        add element ip skiff_proxy frontends { 10.43.0.9 . tcp . 80 : goto endpoints_2 }
        add element ip skiff_proxy endpoints { 10.43.0.9 . tcp . 80 . 0 : 10.42.0.7 . 8080, 10.43.0.9 . tcp . 80 . 1 : 10.42.0.8 . 8080 }
        add element ip skiff_proxy hairpin { 10.42.0.7 . 10.42.0.7, 10.42.0.8 . 10.42.0.8 }
    "#]],
    );
}

#[test]
fn one_more_endpoint_touches_its_service_only() {
    let other = json!({"clusterIP": "10.43.0.10", "ports": [{"port": 53, "protocol": "UDP"}]});
    let before = plan(
        &config(),
        &[service(cluster_ip()), service(other.clone())],
        &[slice(&[("10.42.0.7", "n1", true), ("10.42.0.8", "n1", true)])],
    );
    let now = plan(
        &config(),
        &[service(cluster_ip()), service(other)],
        &[slice(&[("10.42.0.7", "n1", true), ("10.42.0.8", "n1", true), ("10.42.0.9", "n1", true)])],
    );
    let script = difference(&before, &now);
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
        flush chain ip skiff_proxy endpoints_1
        delete chain ip skiff_proxy endpoints_1
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
    let script = difference(&Plan::default(), &plan_of(cluster_ip(), &[]));
    assert!(script.contains("add element ip skiff_proxy no_endpoints { 10.43.0.9 . tcp . 80 }"), "{script}");
    let local = json!({"clusterIP": "10.43.0.9", "internalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    let script = difference(&Plan::default(), &plan_of(local, &[("10.42.1.7", "n2", true)]));
    assert!(script.contains("add element ip skiff_proxy local_only { 10.43.0.9 . tcp . 80 }"), "{script}");
}

#[test]
fn a_node_port_opens_on_the_node_s_address() {
    let spec =
        json!({"type": "NodePort", "clusterIP": "10.43.0.9", "ports": [{"port": 80, "nodePort": 30080}]});
    let plan = plan_of(spec, &[("10.42.0.7", "n1", true)]);
    let script = difference(&Plan::default(), &plan);
    assert!(script.contains("192.0.2.1 . tcp . 30080 : goto endpoints_1"), "{script}");
    assert!(script.contains("external { 192.0.2.1 }"), "{script}");
}

#[test]
fn a_udp_service_that_loses_an_endpoint_forgets_its_flows() {
    let spec = || json!({"clusterIP": "10.43.0.9", "ports": [{"port": 53, "protocol": "UDP"}]});
    let before = plan_of(spec(), &[("10.42.0.7", "n1", true), ("10.42.0.8", "n1", true)]);
    let now = plan_of(spec(), &[("10.42.0.7", "n1", true)]);
    assert_eq!(stale_udp(&before, &now).len(), 1);
    assert!(stale_udp(&now, &before).is_empty(), "one that only gains keeps them");
}
