//! The endpoints of a Service's pods, and the Endpoints that it should have. Pure.
//!
//! Source: upstream's endpointslice and endpoints controllers; KEP-752, KEP-1672.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Service, ServicePort,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skiff_client::view::Pod;

use crate::objects::{has_ended, is_ready};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Upstream's limit on the addresses of the older form, and how it says that there are more.
const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

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

/// What the Service asks of its pods; `None` if it has none.
pub(super) fn selector(service: &Service) -> Option<LabelSelector> {
    let labels = service.spec.as_ref()?.selector.clone().filter(|labels| !labels.is_empty())?;
    Some(LabelSelector { match_labels: Some(labels), match_expressions: None })
}

/// Whether a change of a pod can change an endpoint. It has none before it has an address.
pub(super) fn matters(old: Option<&Pod>, new: Option<&Pod>) -> bool {
    fn seen(pod: &Pod) -> Option<(&str, bool, bool)> {
        let is_going = pod.metadata.deletion_timestamp.is_some();
        ip(pod).filter(|_| !has_ended(pod)).map(|ip| (ip, is_ready(pod), is_going))
    }
    let labels = |pod: Option<&'_ Pod>| pod.and_then(|pod| pod.metadata.labels.clone());
    let (before, after) = (old.and_then(seen), new.and_then(seen));
    // Labels of a pod that is no endpoint are of no account.
    before != after || (after.is_some() && labels(old) != labels(new))
}

fn ip(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref().filter(|ip| !ip.is_empty())
}

/// Pods that a Service can lead to: they have an address and have not ended.
pub(super) fn reachable(pods: &[Arc<Pod>]) -> impl Iterator<Item = (&Arc<Pod>, &str)> {
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
pub(super) type Ports = Vec<(String, i32, String, Option<String>)>;

pub(super) fn ports_of(service: &Service, pod: &Pod) -> Ports {
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

pub(super) fn endpoint(service: &Service, pod: &Pod, ip: &str) -> Endpoint {
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

/// The labels that each slice of a Service has.
pub(super) fn slice_labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
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
    let mut subsets: Vec<EndpointSubset> = groups
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
    let annotations = truncate(&mut subsets).then(|| [(OVER_CAPACITY.into(), "truncated".into())].into());
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations,
            ..ObjectMeta::default()
        },
        subsets: Some(subsets).filter(|s| !s.is_empty()),
    }
}

/// Whether Endpoints say what they should.
pub(super) fn same(have: &Endpoints, wanted: &Endpoints) -> bool {
    let is_over = |endpoints: &Endpoints| {
        endpoints.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(OVER_CAPACITY))
    };
    have.subsets == wanted.subsets
        && have.metadata.labels == wanted.metadata.labels
        && is_over(have) == is_over(wanted)
}

/// Leaves out what is beyond the limit, of each subset its share: first those that are not ready. Answers whether there
/// was anything to leave out.
fn truncate(subsets: &mut [EndpointSubset]) -> bool {
    fn of(subset: &mut EndpointSubset, is_ready: bool) -> &mut Option<Vec<EndpointAddress>> {
        if is_ready { &mut subset.addresses } else { &mut subset.not_ready_addresses }
    }
    fn total(subsets: &mut [EndpointSubset], is_ready: bool) -> usize {
        subsets.iter_mut().map(|subset| of(subset, is_ready).as_ref().map_or(0, Vec::len)).sum()
    }
    let (n_ready, n_others) = (total(subsets, true), total(subsets, false));
    if n_ready + n_others <= MAX_ADDRESSES {
        return false;
    }
    let cuts_ready = n_ready > MAX_ADDRESSES;
    let most = if cuts_ready { MAX_ADDRESSES } else { MAX_ADDRESSES - n_ready };
    let all = if cuts_ready { n_ready } else { n_others };
    let mut left = most;
    for subset in subsets {
        if cuts_ready {
            subset.not_ready_addresses = None;
        }
        let list = of(subset, cuts_ready);
        let n_here = list.as_ref().map_or(0, Vec::len);
        // Rounded.
        let share = ((2 * n_here * most + all) / (2 * all)).min(left);
        left -= share;
        *list = list.take().map(|mut list| {
            list.truncate(share);
            list
        });
        *list = list.take().filter(|list| !list.is_empty());
    }
    true
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
        let conditions = endpoint(&service, &pods[0], "10.0.0.1").conditions.unwrap();
        let shown = (conditions.ready, conditions.serving, conditions.terminating);
        assert_eq!(shown, (Some(false), Some(true), Some(true)));
    }

    #[test]
    fn the_older_form_leaves_out_what_is_beyond_its_limit_and_says_so() {
        let some = |count: usize, ready: bool, port: i32, from: usize| -> Vec<Arc<Pod>> {
            let ip = |n: usize| format!("10.{}.{}.{}", n / 65_536, n / 256 % 256, n % 256);
            (from..from + count).map(|n| pod(&format!("p{n}"), &ip(n), ready, port)).collect()
        };
        let service = service(json!([{"port": 80, "targetPort": "http"}]));
        let shape = |pods: &[Arc<Pod>]| {
            let endpoints = endpoints(&service, pods);
            let len = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
            let subsets = endpoints.subsets.iter().flatten();
            let sizes: Vec<_> = subsets.map(|s| (len(&s.addresses), len(&s.not_ready_addresses))).collect();
            (sizes, endpoints.metadata.annotations.is_some_and(|a| a[OVER_CAPACITY] == "truncated"))
        };
        assert_eq!(shape(&some(1000, true, 1, 0)), (vec![(1000, 0)], false));
        let mixed = [some(900, true, 1, 0), some(300, false, 1, 2000)].concat();
        assert_eq!(shape(&mixed), (vec![(900, 100)], true), "those that are ready stay");
        let two = [some(1500, true, 1, 0), some(500, true, 2, 2000), some(9, false, 2, 4000)].concat();
        assert_eq!(shape(&two), (vec![(750, 0), (250, 0)], true), "each subset has its share");
    }

    #[test]
    fn a_pod_matters_once_it_has_an_address_and_until_it_has_ended() {
        let (without, with) = (pod("a", "", false, 80), pod("a", "10.0.0.1", false, 80));
        let ready = pod("a", "10.0.0.1", true, 80);
        let mut ended = (*with).clone();
        ended.status.as_mut().unwrap().phase = Some("Failed".into());
        assert!(!matters(None, Some(&without)));
        assert!(matters(Some(&without), Some(&with)) && matters(Some(&with), Some(&ready)));
        assert!(matters(Some(&ready), Some(&ended)) && matters(Some(&ready), None));
        assert!(!matters(Some(&ended), None), "it was left out already");
    }
}
