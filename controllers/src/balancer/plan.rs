//! Which Services of type LoadBalancer get addresses. Pure.
//!
//! All of them share the nodes' addresses, so that a port can be only one Service's, and none that the node itself
//! listens on. Where several claim a port, the oldest has it, whatever else becomes of it: so no Service ever loses
//! its addresses because another one went away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Node, Service};
use skiff_client::{ObjectKey, key_of};

/// Where people log in.
const SSH: i32 = 22;

/// Protocol and number.
pub(super) type Port = (String, i32);

/// A port that a Service cannot have, and who has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) port: Port,
    pub(super) holder: String,
}

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (protocol, number) = &self.port;
        write!(f, "port {number}/{protocol} of the nodes is taken by {}", self.holder)
    }
}

/// Wants addresses, and from us: a class names another load balancer.
pub(super) fn is_ours(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer") && s.load_balancer_class.is_none())
}

fn ports(service: &Service, number: fn(&k8s_openapi::api::core::v1::ServicePort) -> i32) -> BTreeSet<Port> {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let port = |p| (protocol(p), number(p));
    ports.map(port).filter(|(_, number)| *number > 0).collect()
}

fn protocol(port: &k8s_openapi::api::core::v1::ServicePort) -> String {
    port.protocol.clone().unwrap_or_else(|| "TCP".into())
}

/// The ports of the nodes that a Service claims.
pub(super) fn claims(service: &Service) -> BTreeSet<Port> {
    if is_ours(service) { ports(service, |p| p.port) } else { BTreeSet::new() }
}

/// The ports on which every node leads to a Service in any case.
pub(super) fn node_ports(service: &Service) -> BTreeSet<Port> {
    ports(service, |p| p.node_port.unwrap_or_default())
}

/// The internal address of a node that is ready.
pub(super) fn address(node: &Node) -> Option<String> {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    internal_address(node).filter(|_| ready).cloned()
}

fn internal_address(node: &Node) -> Option<&String> {
    let mut addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    addresses.find(|a| a.type_ == "InternalIP").map(|a| &a.address)
}

/// What the nodes themselves listen on. `api` are the endpoints of the API server, which may be on a node or elsewhere.
pub(super) fn reserved(nodes: &[Arc<Node>], api: Option<&Endpoints>) -> BTreeMap<Port, String> {
    let mut reserved = BTreeMap::new();
    let mut hold = |port: i32, holder: &str| reserved.insert(("TCP".to_owned(), port), holder.to_owned());
    hold(SSH, "the node's own SSH");
    for node in nodes {
        let endpoints = node.status.as_ref().and_then(|s| s.daemon_endpoints.as_ref());
        if let Some(kubelet) = endpoints.and_then(|e| e.kubelet_endpoint.as_ref()) {
            hold(kubelet.port, "the node's kubelet API");
        }
    }
    let here = |ip: &String| nodes.iter().any(|node| internal_address(node) == Some(ip));
    for subset in api.iter().flat_map(|e| e.subsets.iter().flatten()) {
        if subset.addresses.iter().flatten().any(|a| here(&a.ip)) {
            subset.ports.iter().flatten().for_each(|p| drop(hold(p.port, "the API server")));
        }
    }
    reserved
}

/// What keeps a Service from the nodes' addresses, if anything.
pub(super) fn conflict(
    service: &Service,
    all: &[Arc<Service>],
    reserved: &BTreeMap<Port, String>,
) -> Option<Conflict> {
    let key = key_of(service);
    let others: Vec<&Arc<Service>> = all.iter().filter(|other| key_of(&***other) != key).collect();
    claims(service).into_iter().find_map(|port| {
        if let Some(holder) = reserved.get(&port) {
            return Some(Conflict { holder: holder.clone(), port });
        }
        // What leads to it in any case is not another's.
        if node_ports(service).contains(&port) {
            return None;
        }
        let as_node_port = others.iter().find(|o| node_ports(o).contains(&port));
        let as_node_port = as_node_port.map(|o| format!("Service {} as its node port", key_of(&***o)));
        let holder = as_node_port.or_else(|| {
            let held = |o: &&&Arc<Service>| claims(o).contains(&port) && age(o) < age(service);
            let oldest = others.iter().filter(held).min_by_key(|o| age(o));
            oldest.map(|o| format!("Service {}", key_of(&***o)))
        });
        Some(Conflict { holder: holder?, port })
    })
}

/// The oldest first; Services that were made in the same second by name.
fn age(service: &Service) -> (Option<jiff::Timestamp>, ObjectKey) {
    (service.metadata.creation_timestamp.as_ref().map(|t| t.0), key_of(service))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(name: &str, created_s: i64, ports: &[i32]) -> Arc<Service> {
        let created = jiff::Timestamp::from_second(created_s).unwrap().to_string();
        let ports: Vec<_> = ports.iter().map(|p| json!({"port": p, "protocol": "TCP"})).collect();
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "d", "creationTimestamp": created},
                "spec": {"type": "LoadBalancer", "ports": ports},
            }))
            .unwrap(),
        )
    }

    fn node(name: &str, ip: &str) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name}, "status": {
                "addresses": [{"type": "InternalIP", "address": ip}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}}}))
            .unwrap(),
        )
    }

    #[track_caller]
    fn check(all: &[Arc<Service>], reserved: &BTreeMap<Port, String>, wanted: &[Option<&str>]) {
        let found: Vec<Option<String>> =
            all.iter().map(|s| conflict(s, all, reserved).map(|c| c.to_string())).collect();
        let found: Vec<Option<&str>> = found.iter().map(Option::as_deref).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn the_oldest_service_has_a_port_and_the_next_gets_it_when_it_goes() {
        let services =
            [service("new", 20, &[80]), service("old", 10, &[80, 443]), service("other", 5, &[81])];
        let none = BTreeMap::new();
        check(&services, &none, &[Some("port 80/TCP of the nodes is taken by Service d/old"), None, None]);
        check(&services[..1], &none, &[None]);
        let twins = [service("b", 10, &[80]), service("a", 10, &[80])];
        check(&twins, &none, &[Some("port 80/TCP of the nodes is taken by Service d/a"), None]);
    }

    #[test]
    fn protocols_and_services_of_another_class_do_not_collide() {
        let mut udp = (*service("udp", 20, &[80])).clone();
        udp.spec.as_mut().unwrap().ports.as_mut().unwrap()[0].protocol = Some("UDP".into());
        let mut foreign = (*service("foreign", 1, &[80])).clone();
        foreign.spec.as_mut().unwrap().load_balancer_class = Some("example.com/lb".into());
        check(&[service("tcp", 10, &[80]), Arc::new(udp), Arc::new(foreign)], &BTreeMap::new(), &[None; 3]);
    }

    #[test]
    fn what_the_node_listens_on_is_no_service_s() {
        let api: Endpoints = serde_json::from_value(json!({"metadata": {}, "subsets": [
            {"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 6443}]}]}))
        .unwrap();
        let reserved = |ip: &str| reserved(&[node("n", ip)], Some(&api));
        let services = [service("a", 1, &[6443]), service("b", 2, &[10250]), service("c", 3, &[22])];
        check(
            &services,
            &reserved("10.0.0.1"),
            &[
                Some("port 6443/TCP of the nodes is taken by the API server"),
                Some("port 10250/TCP of the nodes is taken by the node's kubelet API"),
                Some("port 22/TCP of the nodes is taken by the node's own SSH"),
            ],
        );
        assert_eq!(conflict(&services[0], &services, &reserved("10.0.0.2")), None, "the API is elsewhere");
    }

    #[test]
    fn a_node_port_of_another_service_is_taken_and_its_own_is_not() {
        let mut both = (*service("both", 20, &[30080])).clone();
        both.spec.as_mut().unwrap().ports.as_mut().unwrap()[0].node_port = Some(30080);
        let taken = Some("port 30080/TCP of the nodes is taken by Service d/both as its node port");
        check(&[Arc::new(both), service("a", 10, &[30080])], &BTreeMap::new(), &[None, taken]);
    }
}
