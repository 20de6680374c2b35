//! The slices that mirror an Endpoints object. Pure.
//!
//! Source: upstream's endpointslicemirroring controller, and `RepackSubsets`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, Endpoints, Service};
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::objects::{controller_reference, template_hash};

pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations of the Endpoints that say nothing about the slices.
const NOT_MIRRORED: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];
/// Addresses mirrored of one set of ports: upstream's default, and a slice's limit.
pub(super) const MAX_PER_SUBSET: usize = 1000;

pub(super) fn is_ours(slice: &EndpointSlice) -> bool {
    slice.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).is_some_and(|m| m == MANAGER)
}

pub(super) fn service_of(slice: &EndpointSlice) -> Option<&String> {
    slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME))
}

/// Whether these Endpoints are a person's, for a Service that has no selector.
pub(super) fn should_mirror(endpoints: &Endpoints, service: &Service) -> bool {
    let (labels, annotations) = (endpoints.metadata.labels.as_ref(), endpoints.metadata.annotations.as_ref());
    service.spec.as_ref().is_none_or(|s| s.selector.is_none())
        && labels.and_then(|l| l.get(SKIP)).is_none_or(|skip| skip != "true")
        && annotations.is_none_or(|a| !a.contains_key(LEADER))
}

#[derive(Debug, Default)]
pub(super) struct Mirrored {
    pub(super) slices: Vec<EndpointSlice>,
    /// Addresses that are none.
    pub(super) n_invalid: usize,
    /// Addresses past the limit.
    pub(super) n_surplus: usize,
}

/// Name, number, protocol, application protocol. Without ports a subset leads to whole addresses.
type Port = (String, i32, String, Option<String>);

fn port(port: &EndpointPort) -> Port {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
    (port.name.clone().unwrap_or_default(), port.port, protocol, port.app_protocol.clone())
}

/// An address once for each pod behind it.
type Identity = (String, Option<String>);
/// Whether each is ready.
type Addresses<'e> = BTreeMap<Identity, (bool, &'e EndpointAddress)>;

/// Subsets in their plainest form: each port is in one group, with all its addresses.
fn repacked(endpoints: &Endpoints) -> Vec<(Vec<Port>, Addresses<'_>)> {
    let mut by_port: BTreeMap<Option<Port>, Addresses<'_>> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let mut ports: Vec<Option<Port>> = subset.ports.iter().flatten().map(|p| Some(port(p))).collect();
        if ports.is_empty() {
            ports.push(None);
        }
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let others = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
        for (address, ready) in ready.chain(others) {
            let uid = address.target_ref.as_ref().and_then(|r| r.uid.clone());
            for port in &ports {
                let known = by_port.entry(port.clone()).or_default();
                let entry = known.entry((address.ip.clone(), uid.clone())).or_insert((ready, address));
                // What is said to be ready and not is not.
                entry.0 &= ready;
            }
        }
    }
    let mut groups: Vec<(Vec<Port>, Addresses<'_>)> = Vec::new();
    for (port, addresses) in by_port {
        let same = |other: &Addresses<'_>| {
            other.len() == addresses.len()
                && other.iter().zip(&addresses).all(|((a, x), (b, y))| a == b && x.0 == y.0)
        };
        match groups.iter_mut().find(|(ports, known)| !ports.is_empty() && port.is_some() && same(known)) {
            Some((ports, _)) => ports.extend(port),
            None => groups.push((port.into_iter().collect(), addresses)),
        }
    }
    groups
}

pub(super) fn slices(endpoints: &Endpoints) -> Mirrored {
    let mut mirrored = Mirrored::default();
    for (ports, addresses) in repacked(endpoints) {
        let mut by_type: BTreeMap<&str, Vec<Endpoint>> = BTreeMap::new();
        let mut n_added = 0;
        // The ready ones first, should there be too many.
        let (ready, others): (Vec<_>, Vec<_>) = addresses.into_values().partition(|(ready, _)| *ready);
        for (ready, address) in ready.into_iter().chain(others) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                mirrored.n_invalid += 1;
                continue;
            };
            if n_added == MAX_PER_SUBSET {
                mirrored.n_surplus += 1;
                continue;
            }
            n_added += 1;
            let type_ = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            by_type.entry(type_).or_default().push(endpoint(address, ip, ready));
        }
        for (type_, list) in by_type {
            mirrored.slices.push(slice(endpoints, &ports, type_, list));
        }
    }
    mirrored
}

fn endpoint(address: &EndpointAddress, ip: IpAddr, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

/// Under a fixed name, so that a pass that runs twice writes once.
fn slice(endpoints: &Endpoints, ports: &[Port], type_: &str, list: Vec<Endpoint>) -> EndpointSlice {
    let name = endpoints.metadata.name.clone().unwrap_or_default();
    let identity = serde_json::json!([endpoints.metadata.uid, MANAGER, ports, type_]);
    let suffix: String = template_hash(&identity, 0).chars().take(5).collect();
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|name, _| !NOT_MIRRORED.contains(&name.as_str()));
    let port = |(name, number, protocol, app): &Port| discovery::EndpointPort {
        name: Some(name.clone()),
        port: Some(*number),
        protocol: Some(protocol.clone()),
        app_protocol: app.clone(),
    };
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("{}-{suffix}", name.chars().take(57).collect::<String>())),
            generate_name: Some(format!("{name}-")),
            namespace: endpoints.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations).filter(|a| !a.is_empty()),
            owner_references: Some(vec![controller_reference(endpoints)]),
            ..ObjectMeta::default()
        },
        address_type: type_.into(),
        endpoints: Some(list),
        ports: Some(ports.iter().map(port).collect()),
    }
}

/// Whether a slice says what it should.
pub(super) fn same(have: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let ports = |s: &EndpointSlice| s.ports.clone().filter(|p| !p.is_empty());
    let annotations = |s: &EndpointSlice| s.metadata.annotations.clone().filter(|a| !a.is_empty());
    have.endpoints == wanted.endpoints
        && ports(have) == ports(wanted)
        && have.metadata.labels == wanted.metadata.labels
        && annotations(have) == annotations(wanted)
        && have.metadata.owner_references == wanted.metadata.owner_references
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoints(subsets: Value) -> Endpoints {
        serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "d", "uid": "u", "labels": {"team": "x"},
                         "annotations": {"note": "n", NOT_MIRRORED[1]: "{}"}},
            "subsets": subsets,
        }))
        .unwrap()
    }

    /// Type, ports, and address with readiness, of each slice.
    #[track_caller]
    fn check(subsets: Value, wanted: &[&str]) -> Mirrored {
        let mirrored = slices(&endpoints(subsets));
        let shown: Vec<String> = mirrored
            .slices
            .iter()
            .map(|s| {
                let ports: Vec<String> =
                    s.ports.iter().flatten().map(|p| p.port.unwrap().to_string()).collect();
                let list: Vec<String> = s.endpoints.iter().flatten().map(shown).collect();
                format!("{} {} {}", s.address_type, ports.join(","), list.join(","))
            })
            .collect();
        assert_eq!(shown, wanted);
        mirrored
    }

    fn shown(endpoint: &Endpoint) -> String {
        let ready = endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(true);
        format!("{}{}", endpoint.addresses[0], if ready { "" } else { "!" })
    }

    #[test]
    fn a_slice_is_made_of_each_set_of_ports_and_each_family_of_addresses() {
        let ips = |ips: &[&str]| json!(ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>());
        check(
            json!([{"addresses": ips(&["10.0.0.1", "fd00::1"]), "notReadyAddresses": ips(&["10.0.0.2"]),
                    "ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "b"}]}]),
            &["IPv4 80,81 10.0.0.1,10.0.0.2!", "IPv6 80,81 fd00::1"],
        );
        check(
            json!([{"addresses": ips(&["10.0.0.1"]), "ports": [{"port": 80}]},
                   {"addresses": ips(&["10.0.0.2"]), "ports": [{"port": 80}]},
                   {"notReadyAddresses": ips(&["10.0.0.1"]), "ports": [{"port": 80}]}]),
            &["IPv4 80 10.0.0.2,10.0.0.1!"],
        );
        check(json!([{"addresses": ips(&["10.0.0.1"])}]), &["IPv4  10.0.0.1"]);
        check(json!([]), &[]);
    }

    #[test]
    fn labels_and_annotations_are_mirrored_and_the_slice_is_marked_as_ours() {
        let mirrored = check(json!([{"addresses": [{"ip": "10.0.0.1"}]}]), &["IPv4  10.0.0.1"]);
        let meta = &mirrored.slices[0].metadata;
        let labels = meta.labels.as_ref().unwrap();
        assert_eq!((labels["team"].as_str(), labels[SERVICE_NAME].as_str()), ("x", "db"));
        assert!(is_ours(&mirrored.slices[0]));
        assert_eq!(meta.annotations.as_ref().unwrap().keys().collect::<Vec<_>>(), ["note"]);
        assert_eq!(meta.owner_references.as_ref().unwrap()[0].kind, "Endpoints");
    }

    #[test]
    fn what_is_no_address_or_one_too_many_is_left_out_and_counted() {
        let mut addresses: Vec<Value> =
            (0..MAX_PER_SUBSET + 2).map(|n| json!({"ip": format!("10.1.{}.{}", n / 250, n % 250)})).collect();
        addresses.push(json!({"ip": "nowhere"}));
        let mirrored = slices(&endpoints(json!([{"addresses": addresses, "ports": [{"port": 80}]}])));
        assert_eq!((mirrored.n_invalid, mirrored.n_surplus), (1, 2));
        assert_eq!(mirrored.slices[0].endpoints.as_ref().unwrap().len(), MAX_PER_SUBSET);
    }

    #[test]
    fn only_endpoints_that_a_person_wrote_are_mirrored() {
        let service = |spec: Value| -> Service {
            serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
        };
        let plain = endpoints(json!([]));
        assert!(should_mirror(&plain, &service(json!({}))));
        assert!(!should_mirror(&plain, &service(json!({"selector": {"app": "a"}}))));
        let mut skipped = plain.clone();
        skipped.metadata.labels = Some([(SKIP.to_owned(), "true".to_owned())].into());
        assert!(!should_mirror(&skipped, &service(json!({}))));
        let mut leader = plain;
        leader.metadata.annotations = Some([(LEADER.to_owned(), "{}".to_owned())].into());
        assert!(!should_mirror(&leader, &service(json!({}))));
    }
}
