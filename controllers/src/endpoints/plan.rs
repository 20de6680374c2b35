//! The slices and the Endpoints that a Service should have. Pure.
//!
//! Source: upstream's endpointslice and endpoints controllers; KEP-752, KEP-1672.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service, ServicePort,
};
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::objects::{controller_reference, has_ended, is_ready, template_hash};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Upstream's default.
const MAX_ENDPOINTS: usize = 100;

pub(super) fn is_ours(slice: &EndpointSlice) -> bool {
    slice.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).is_some_and(|m| m == MANAGER)
}

pub(super) fn service_of(slice: &EndpointSlice) -> String {
    slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME)).cloned().unwrap_or_default()
}

pub(super) fn has_selector(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|s| {
        s.selector.as_ref().is_some_and(|s| !s.is_empty()) && s.type_.as_deref() != Some("ExternalName")
    })
}

pub(super) fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    let labels = pod.metadata.labels.as_ref();
    selector.is_some_and(|s| !s.is_empty() && s.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v)))
}

/// Whether a change of a pod can change an endpoint.
pub(super) fn matters(old: Option<&Pod>, new: Option<&Pod>) -> bool {
    let (Some(old), Some(new)) = (old, new) else { return true };
    let seen = |pod: &Pod| {
        (
            pod.metadata.labels.clone(),
            ip(pod).map(str::to_owned),
            is_ready(pod),
            has_ended(pod),
            pod.metadata.deletion_timestamp.is_some(),
        )
    };
    seen(old) != seen(new)
}

fn ip(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref().filter(|ip| !ip.is_empty())
}

/// Pods that a Service can lead to: they have an address and have not ended.
fn reachable(pods: &[Arc<Pod>]) -> impl Iterator<Item = (&Arc<Pod>, &str)> {
    pods.iter().filter(|pod| !has_ended(pod)).filter_map(|pod| Some((pod, ip(pod)?)))
}

/// The number of a Service's target port in a pod; `None` if the pod has no port of that name.
fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        Some(IntOrString::Int(number)) if *number > 0 => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            ports
                .filter(|p| p.protocol.as_deref().unwrap_or("TCP") == protocol)
                .find(|p| p.name.as_deref() == Some(name))
                .map(|p| p.container_port)
        }
        _ => Some(port.port),
    }
}

/// (name, number, protocol, application protocol) of each port that leads to a pod.
type Ports = Vec<(String, i32, String, Option<String>)>;

fn ports_of(service: &Service, pod: &Pod) -> Ports {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            Some((
                port.name.clone().unwrap_or_default(),
                target_port(port, pod)?,
                protocol,
                port.app_protocol.clone(),
            ))
        })
        .collect()
}

fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// A pod has a name of its own below a Service of the name of its subdomain.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let named = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    spec.hostname.clone().filter(|h| named && !h.is_empty())
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|s| s.cluster_ip.as_deref() == Some("None"))
}

fn publishes_all(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|s| s.publish_not_ready_addresses == Some(true))
}

fn endpoint(service: &Service, pod: &Pod, ip: &str) -> Endpoint {
    let serving = is_ready(pod) || publishes_all(service);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    Endpoint {
        addresses: vec![ip.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(serving && (!terminating || publishes_all(service))),
            serving: Some(is_ready(pod)),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        target_ref: Some(pod_reference(pod)),
        ..Endpoint::default()
    }
}

/// All slices of a Service, in a fixed order and under fixed names, so that a pass that runs twice writes once.
pub(super) fn slices(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSlice> {
    let mut groups: BTreeMap<Ports, Vec<Endpoint>> = BTreeMap::new();
    for (pod, ip) in reachable(pods) {
        groups.entry(ports_of(service, pod)).or_default().push(endpoint(service, pod, ip));
    }
    if groups.is_empty() {
        // A Service without pods has one slice that says so.
        groups.insert(Vec::new(), Vec::new());
    }
    let mut out = Vec::new();
    for (ports, mut endpoints) in groups {
        endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
        let chunks: Vec<&[Endpoint]> =
            if endpoints.is_empty() { vec![&[]] } else { endpoints.chunks(MAX_ENDPOINTS).collect() };
        for (at, chunk) in chunks.into_iter().enumerate() {
            out.push(slice(service, &ports, at, chunk));
        }
    }
    out
}

fn slice(service: &Service, ports: &Ports, at: usize, endpoints: &[Endpoint]) -> EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    let identity = serde_json::json!([service.metadata.uid, ports, at]);
    let suffix: String = template_hash(&identity, 0).chars().take(5).collect();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let port =
        |(name, number, protocol, app): &(String, i32, String, Option<String>)| discovery::EndpointPort {
            name: Some(name.clone()),
            port: Some(*number),
            protocol: Some(protocol.clone()),
            app_protocol: app.clone(),
        };
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("{}-{suffix}", name.chars().take(57).collect::<String>())),
            generate_name: Some(format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: "IPv4".into(),
        endpoints: Some(endpoints.to_vec()),
        ports: Some(ports.iter().map(port).collect()),
    }
}

/// Whether a slice says what it should.
pub(super) fn same(have: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let empty_is_none = |slice: &EndpointSlice| {
        let endpoints = slice.endpoints.clone().filter(|e| !e.is_empty());
        (endpoints, slice.ports.clone().filter(|p| !p.is_empty()))
    };
    empty_is_none(have) == empty_is_none(wanted) && have.metadata.labels == wanted.metadata.labels
}

/// The older form: ready and other addresses, grouped by their ports.
pub(super) fn endpoints(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let mut groups: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    // Who reads the older form knows nothing of pods that are ending.
    let listed = |pod: &Pod| publishes_all(service) || pod.metadata.deletion_timestamp.is_none();
    for (pod, ip) in reachable(pods).filter(|(pod, _)| listed(pod)) {
        let ready = publishes_all(service) || is_ready(pod);
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: hostname(service, pod),
            node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
            target_ref: Some(pod_reference(pod)),
        };
        let (addresses, not_ready) = groups.entry(ports_of(service, pod)).or_default();
        if ready { addresses.push(address) } else { not_ready.push(address) }
    }
    let some = |mut list: Vec<EndpointAddress>| {
        list.sort_by(|a, b| a.ip.cmp(&b.ip));
        Some(list).filter(|l| !l.is_empty())
    };
    let subsets: Vec<EndpointSubset> = groups
        .into_iter()
        .map(|(ports, (addresses, not_ready))| EndpointSubset {
            addresses: some(addresses),
            not_ready_addresses: some(not_ready),
            ports: Some(ports.into_iter().map(old_port).collect()),
        })
        .collect();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert("endpoints.kubernetes.io/managed-by".into(), "endpoint-controller".into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        subsets: Some(subsets).filter(|s| !s.is_empty()),
    }
}

fn old_port((name, port, protocol, app_protocol): (String, i32, String, Option<String>)) -> EndpointPort {
    EndpointPort { name: Some(name).filter(|n| !n.is_empty()), port, protocol: Some(protocol), app_protocol }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(ports: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "d", "uid": "u"},
            "spec": {"selector": {"app": "a"}, "ports": ports}}))
        .unwrap()
    }

    fn pod(name: &str, ip: &str, ready: bool, port: i32) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "d", "labels": {"app": "a"}},
                "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
                "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
            }))
            .unwrap(),
        )
    }

    #[test]
    fn pods_that_name_a_port_differently_get_slices_of_their_own() {
        let service = service(json!([{"port": 80, "targetPort": "http"}]));
        let pods = [
            pod("a", "10.0.0.1", true, 8080),
            pod("b", "10.0.0.2", true, 9090),
            pod("c", "10.0.0.3", false, 8080),
        ];
        let slices = slices(&service, &pods);
        let shape: Vec<(i32, usize)> = slices
            .iter()
            .map(|s| (s.ports.as_ref().unwrap()[0].port.unwrap(), s.endpoints.as_ref().unwrap().len()))
            .collect();
        assert_eq!(shape, [(8080, 2), (9090, 1)]);
        let ready: Vec<bool> = slices[0]
            .endpoints
            .iter()
            .flatten()
            .map(|e| e.conditions.as_ref().unwrap().ready.unwrap())
            .collect();
        assert_eq!(ready, [true, false]);
    }

    #[test]
    fn names_are_the_same_in_every_pass() {
        let service = service(json!([{"port": 80}]));
        let names = |pods: &[Arc<Pod>]| {
            slices(&service, pods).iter().map(|s| s.metadata.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&[pod("a", "10.0.0.1", true, 1)]), names(&[pod("b", "10.0.0.2", true, 1)]));
    }

    #[test]
    fn more_than_a_hundred_endpoints_fill_several_slices() {
        let pods: Vec<_> =
            (0..150).map(|n| pod(&format!("p{n}"), &format!("10.0.1.{n}"), true, 80)).collect();
        let sizes: Vec<usize> = slices(&service(json!([{"port": 80}])), &pods)
            .iter()
            .map(|s| s.endpoints.as_ref().unwrap().len())
            .collect();
        assert_eq!(sizes, [100, 50]);
    }

    #[test]
    fn endpoints_hold_the_ready_and_the_others_apart() {
        let pods = [pod("a", "10.0.0.1", true, 80), pod("b", "10.0.0.2", false, 80)];
        let endpoints = endpoints(&service(json!([{"port": 80}])), &pods);
        let subset = &endpoints.subsets.unwrap()[0];
        assert_eq!(subset.addresses.as_ref().unwrap()[0].ip, "10.0.0.1");
        assert_eq!(subset.not_ready_addresses.as_ref().unwrap()[0].ip, "10.0.0.2");
    }

    #[test]
    fn a_pod_that_is_ending_is_in_the_slices_only_and_not_ready_there() {
        let mut ending = (*pod("a", "10.0.0.1", true, 80)).clone();
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH);
        ending.metadata.deletion_timestamp = Some(now);
        let (service, pods) = (service(json!([{"port": 80}])), [Arc::new(ending)]);
        assert_eq!(endpoints(&service, &pods).subsets, None);
        let slices = slices(&service, &pods);
        let conditions = slices[0].endpoints.as_ref().unwrap()[0].conditions.clone().unwrap();
        let shown = (conditions.ready, conditions.serving, conditions.terminating);
        assert_eq!(shown, (Some(false), Some(true), Some(true)));
    }
}
