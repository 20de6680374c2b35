//! From Services and EndpointSlices to frontends. Pure.
//!
//! Source: kube-proxy's behaviour; KEPs 2086 (internalTrafficPolicy), 1669 (terminating endpoints).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::ProxyConfig;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// What a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Frontend {
    pub(crate) ip: Ipv4Addr,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Backend {
    pub(crate) ip: Ipv4Addr,
    pub(crate) port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Balanced {
    /// In a fixed order, so that equal Services compare equal.
    pub(crate) backends: Vec<Backend>,
    /// `sessionAffinity: ClientIP` keeps a client at its endpoint for so many seconds.
    pub(crate) affinity_s: Option<u32>,
    /// Comes from outside the cluster: a NodePort or a load balancer's address.
    pub(crate) external: bool,
    /// With no backends, drop instead of reject: the endpoints are on other nodes.
    pub(crate) drop_if_empty: bool,
}

/// Everything the node's rules must say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) frontends: BTreeMap<Frontend, Balanced>,
}

pub(crate) fn plan(config: &ProxyConfig, services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> Plan {
    let mut by_service: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let meta = &slice.metadata;
        let service = meta.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
        if let (Some(namespace), Some(service)) = (&meta.namespace, service) {
            by_service.entry((namespace, service)).or_default().push(slice);
        }
    }
    let mut plan = Plan::default();
    for service in services {
        let meta = &service.metadata;
        let key = (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        let slices = by_service.get(&key).map_or(&[][..], Vec::as_slice);
        add_service(&mut plan, config, service, slices);
    }
    plan
}

fn add_service(plan: &mut Plan, config: &ProxyConfig, service: &Service, slices: &[&EndpointSlice]) {
    let Some(spec) = &service.spec else { return };
    let handled_elsewhere = service
        .metadata
        .labels
        .as_ref()
        .is_some_and(|l| l.contains_key("service.kubernetes.io/service-proxy-name"));
    if handled_elsewhere || spec.type_.as_deref() == Some("ExternalName") {
        return;
    }
    let affinity_s = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        config.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok()).unwrap_or(10_800)
    });
    let is_local = |policy: Option<&str>| policy == Some("Local");
    for port in spec.ports.iter().flatten() {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            // SCTP: the kernel of many nodes has no support for it.
            Some(_) => continue,
        };
        let publish_all = spec.publish_not_ready_addresses == Some(true);
        let behind = |local: bool| backends(config, port, slices, local, publish_all);
        let mut add = |ip: Ipv4Addr, port: i32, local: bool, external: bool| {
            let Ok(port) = u16::try_from(port) else { return };
            let service = Balanced { backends: behind(local), affinity_s, external, drop_if_empty: local };
            plan.frontends.insert(Frontend { ip, protocol, port }, service);
        };
        let internal_local = is_local(spec.internal_traffic_policy.as_deref());
        let cluster_ips = spec.cluster_ips.as_deref().unwrap_or_default();
        for ip in cluster_ips.iter().chain(&spec.cluster_ip).filter_map(|ip| ip.parse().ok()) {
            add(ip, port.port, internal_local, false);
        }
        let external_local = is_local(spec.external_traffic_policy.as_deref());
        for ip in external_ips(service) {
            add(ip, port.port, external_local, true);
        }
        if let Some(node_port) = port.node_port.filter(|p| *p > 0) {
            config.node_ips.iter().for_each(|ip| add(*ip, node_port, external_local, true));
        }
    }
}

/// Addresses of load balancers that expect the node to answer for them, and `externalIPs`.
fn external_ips(service: &Service) -> Vec<Ipv4Addr> {
    let ingress = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref())
        .and_then(|l| l.ingress.as_deref())
        .unwrap_or_default();
    let balanced =
        ingress.iter().filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref());
    let given = service.spec.iter().flat_map(|s| s.external_ips.iter().flatten());
    balanced.chain(given).filter_map(|ip| ip.parse().ok()).collect()
}

fn backends(
    config: &ProxyConfig,
    port: &ServicePort,
    slices: &[&EndpointSlice],
    local: bool,
    publish_all: bool,
) -> Vec<Backend> {
    let mut ready = BTreeSet::new();
    // Used only where nothing is ready: better a pod that is ending than none.
    let mut ending = BTreeSet::new();
    for slice in slices {
        let wanted = port.name.as_deref().unwrap_or_default();
        let number = slice
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref().unwrap_or_default() == wanted)
            .and_then(|p| p.port)
            .and_then(|p| u16::try_from(p).ok());
        let Some(number) = number else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            if local && endpoint.node_name.as_deref() != Some(config.node_name.as_str()) {
                continue;
            }
            let Some(ip) = endpoint.addresses.first().and_then(|a| a.parse().ok()) else { continue };
            let backend = Backend { ip, port: number };
            match usable(endpoint) {
                Usable::Ready => {
                    ready.insert(backend);
                }
                Usable::Ending => {
                    ending.insert(backend);
                }
                Usable::No if publish_all => {
                    ready.insert(backend);
                }
                Usable::No => {}
            }
        }
    }
    if ready.is_empty() { ending.into_iter().collect() } else { ready.into_iter().collect() }
}

enum Usable {
    Ready,
    /// Terminating, but still serving.
    Ending,
    No,
}

fn usable(endpoint: &Endpoint) -> Usable {
    let Some(conditions) = &endpoint.conditions else { return Usable::Ready };
    if conditions.ready.unwrap_or(true) {
        return Usable::Ready;
    }
    let serving = conditions.serving.unwrap_or(false);
    if serving && conditions.terminating == Some(true) { Usable::Ending } else { Usable::No }
}

/// UDP frontends that have lost a backend they had.
pub(crate) fn stale_udp(before: &Plan, now: &Plan) -> BTreeSet<Frontend> {
    before
        .frontends
        .iter()
        .filter(|(frontend, _)| frontend.protocol == Protocol::Udp)
        .filter(|(frontend, had)| match now.frontends.get(frontend) {
            None => true,
            Some(has) => had.backends.iter().any(|b| !has.backends.contains(b)) || had.backends.is_empty(),
        })
        .map(|(frontend, _)| *frontend)
        .collect()
}
