//! From Services and EndpointSlices to frontends. Pure.
//!
//! Who wants what somebody else has, loses: cluster addresses come first, then node ports, then load balancers' and
//! external addresses; among equals the oldest Service, then the name. The loser gets no rule, and the log says so.
//!
//! Source: kube-proxy's behaviour; KEPs 2086 (internalTrafficPolicy), 1669 (terminating endpoints).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::Node;
use super::sources::{self, Source};

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

    /// SCTP has no place here: the kernel of many nodes has no support for it.
    fn parse(name: Option<&str>) -> Option<Protocol> {
        match name {
            None | Some("TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some(_) => None,
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

impl std::fmt::Display for Frontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.ip, self.protocol.name(), self.port)
    }
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Backend {
    pub(crate) ip: Ipv4Addr,
    pub(crate) port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Balanced {
    /// `namespace/name:port`, which the frontends of one port of a Service share.
    pub(crate) service_port: Arc<str>,
    /// In a fixed order, so that equal Services compare equal.
    pub(crate) backends: Vec<Backend>,
    /// For this node and its pods, where that differs: `externalTrafficPolicy: Local` is for those outside, and the
    /// cluster's own do not go out to a load balancer and back in.
    pub(crate) inside: Option<Vec<Backend>>,
    /// `sessionAffinity: ClientIP` keeps a client at its endpoint for so many seconds.
    pub(crate) affinity_s: Option<u32>,
    /// The only clients that are let through.
    pub(crate) sources: Option<Vec<Source>>,
    /// With no backends, drop instead of reject: the endpoints are on other nodes.
    pub(crate) drop_if_empty: bool,
}

/// A load balancer asks on a port of the node whether the node has endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HealthCheck {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) n_local_endpoints: usize,
}

/// Everything the node's rules must say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) frontends: BTreeMap<Frontend, Balanced>,
    /// Who may answer on a UDP frontend. More than its backends: flows to an endpoint that is still serving go on,
    /// whatever the policies say by now.
    pub(crate) udp: BTreeMap<Frontend, BTreeSet<Backend>>,
    /// By `healthCheckNodePort`.
    pub(crate) health_checks: BTreeMap<u16, HealthCheck>,
    /// What cannot be done for whom, for the log.
    pub(crate) complaints: BTreeSet<String>,
}

pub(crate) fn plan(node: &Node, services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> Plan {
    let mut by_service: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let meta = &slice.metadata;
        let service = meta.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
        if let (Some(namespace), Some(service)) = (&meta.namespace, service) {
            by_service.entry((namespace, service)).or_default().push(slice);
        }
    }
    let mut services: Vec<&Service> = services.iter().map(|s| &**s).filter(|s| is_ours(s)).collect();
    services.sort_by_key(|s| (s.metadata.creation_timestamp.as_ref().map(|t| t.0), key_of(s)));
    let mut plan = Plan::default();
    let mut ports = Vec::new();
    for service in services {
        let slices = by_service.get(&key_of(service)).map_or(&[][..], Vec::as_slice);
        let of_service = Port::all(node, service, slices, &mut plan.complaints);
        if let Some((port, check)) = health_check(service, &of_service) {
            plan.health_checks.entry(port).or_insert(check);
        }
        ports.extend(of_service);
    }
    for port in &ports {
        for ip in &port.cluster_ips {
            plan.claim(port.at(*ip, port.port), port, port.internal());
        }
    }
    for port in &ports {
        for frontend in port.node_ports(node) {
            plan.claim_external(node, frontend, port, false);
        }
    }
    for port in &ports {
        for (frontend, is_balanced) in port.external_frontends() {
            plan.claim_external(node, frontend, port, is_balanced);
        }
    }
    plan
}

impl Plan {
    fn claim_external(&mut self, node: &Node, frontend: Frontend, port: &Port<'_>, is_balanced: bool) {
        if node.is_own(&frontend) {
            self.complaints.insert(format!("{}: {frontend} is this node's own port", port.name));
        } else {
            self.claim(frontend, port, port.external(is_balanced));
        }
    }

    fn claim(&mut self, frontend: Frontend, port: &Port<'_>, balanced: Balanced) {
        match self.frontends.entry(frontend) {
            Entry::Vacant(vacant) => {
                vacant.insert(balanced);
                if frontend.protocol == Protocol::Udp {
                    self.udp.insert(frontend, port.serving.clone());
                }
            }
            Entry::Occupied(taken) if taken.get().service_port != port.name => {
                let owner = &taken.get().service_port;
                self.complaints.insert(format!("{}: {frontend} belongs to {owner}", port.name));
            }
            Entry::Occupied(_) => {}
        }
    }
}

fn key_of(service: &Service) -> (&str, &str) {
    let meta = &service.metadata;
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

fn is_ours(service: &Service) -> bool {
    let labels = service.metadata.labels.as_ref();
    let handled_elsewhere =
        labels.is_some_and(|l| l.contains_key("service.kubernetes.io/service-proxy-name"));
    let has_cluster_ip = |spec: &ServiceSpec| !matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"));
    let proxied = |spec: &ServiceSpec| spec.type_.as_deref() != Some("ExternalName") && has_cluster_ip(spec);
    !handled_elsewhere && service.spec.as_ref().is_some_and(proxied)
}

/// One port of a Service, and what is behind it.
struct Port<'s> {
    name: Arc<str>,
    service: &'s Service,
    spec: &'s ServiceSpec,
    protocol: Protocol,
    port: u16,
    node_port: Option<u16>,
    cluster_ips: BTreeSet<Ipv4Addr>,
    affinity_s: Option<u32>,
    sources: Option<Vec<Source>>,
    /// Usable from anywhere.
    cluster: Vec<Backend>,
    /// Those on this node, which may be ending ones where others are not.
    local: Vec<Backend>,
    n_local_ready: usize,
    serving: BTreeSet<Backend>,
}

impl<'s> Port<'s> {
    fn all(
        node: &Node,
        service: &'s Service,
        slices: &[&EndpointSlice],
        complaints: &mut BTreeSet<String>,
    ) -> Vec<Port<'s>> {
        let Some(spec) = &service.spec else { return Vec::new() };
        let (namespace, name) = key_of(service);
        let affinity_s = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
            config.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok()).unwrap_or(10_800)
        });
        let ranges = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
        let sources = sources::allowed(ranges, |wrong| {
            complaints.insert(format!("{namespace}/{name}: loadBalancerSourceRanges: {wrong:?} is no CIDR"));
        });
        let sources = sources.map(|allowed| with_node(node, allowed, balancer_ips(service)));
        let cluster_ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let cluster_ips: BTreeSet<Ipv4Addr> = cluster_ips.filter_map(|ip| ip.parse().ok()).collect();
        let one = |port: &ServicePort| {
            let protocol = Protocol::parse(port.protocol.as_deref())?;
            let label = port.name.clone().unwrap_or_else(|| port.port.to_string());
            let endpoints = Endpoints::of(node, port, protocol, slices);
            Some(Port {
                name: format!("{namespace}/{name}:{label}").into(),
                service,
                spec,
                protocol,
                port: u16::try_from(port.port).ok()?,
                node_port: port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0),
                cluster_ips: cluster_ips.clone(),
                affinity_s,
                sources: sources.clone(),
                n_local_ready: endpoints.local_ready.len(),
                cluster: first_not_empty(endpoints.ready, endpoints.ending),
                local: first_not_empty(endpoints.local_ready, endpoints.local_ending),
                serving: endpoints.serving,
            })
        };
        spec.ports.iter().flatten().filter_map(one).collect()
    }

    fn balanced(&self, local: bool) -> Balanced {
        Balanced {
            service_port: self.name.clone(),
            backends: if local { self.local.clone() } else { self.cluster.clone() },
            inside: None,
            affinity_s: self.affinity_s,
            sources: None,
            drop_if_empty: local && !self.cluster.is_empty(),
        }
    }

    fn internal(&self) -> Balanced {
        self.balanced(self.spec.internal_traffic_policy.as_deref() == Some("Local"))
    }

    /// `is_balanced`: at a load balancer's address.
    fn external(&self, is_balanced: bool) -> Balanced {
        let local = is_external_local(self.spec);
        Balanced {
            inside: local.then(|| self.cluster.clone()),
            sources: self.sources.clone().filter(|_| is_balanced),
            ..self.balanced(local)
        }
    }

    fn at(&self, ip: Ipv4Addr, port: u16) -> Frontend {
        Frontend { ip, protocol: self.protocol, port }
    }

    fn node_ports(&self, node: &Node) -> Vec<Frontend> {
        let Some(port) = self.node_port else { return Vec::new() };
        node.config.node_ips.iter().map(|ip| self.at(*ip, port)).collect()
    }

    /// With whether it is at a load balancer's address.
    fn external_frontends(&self) -> Vec<(Frontend, bool)> {
        let balanced = balancer_ips(self.service).map(|ip| (self.at(ip, self.port), true));
        let external_ips = self.spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok());
        balanced.chain(external_ips.map(|ip| (self.at(ip, self.port), false))).collect()
    }
}

fn is_external_local(spec: &ServiceSpec) -> bool {
    spec.external_traffic_policy.as_deref() == Some("Local")
}

/// Addresses of load balancers that expect the node to answer for them.
fn balancer_ips(service: &Service) -> impl Iterator<Item = Ipv4Addr> {
    let balancer = service.status.iter().filter_map(|s| s.load_balancer.as_ref());
    let ingress = balancer.flat_map(|l| l.ingress.iter().flatten());
    ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref()?.parse().ok())
}

/// A node that may come in may do so by the balancer's own address too: where that is an address of the node, the
/// node's connections have it as their source.
fn with_node(
    node: &Node,
    mut allowed: Vec<Source>,
    balancer_ips: impl Iterator<Item = Ipv4Addr>,
) -> Vec<Source> {
    let node_ips = &node.config.node_ips;
    if allowed.iter().any(|source| node_ips.iter().any(|ip| source.contains(*ip))) {
        allowed.extend(balancer_ips.map(Source::host));
    }
    sources::distinct(allowed)
}

fn health_check(service: &Service, ports: &[Port<'_>]) -> Option<(u16, HealthCheck)> {
    let spec = service.spec.as_ref()?;
    let checked = spec.type_.as_deref() == Some("LoadBalancer") && is_external_local(spec);
    let port =
        spec.health_check_node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| checked && *p > 0)?;
    let (namespace, name) = key_of(service);
    let n_local_endpoints = ports.iter().map(|p| p.n_local_ready).max().unwrap_or_default();
    Some((port, HealthCheck { namespace: namespace.into(), name: name.into(), n_local_endpoints }))
}

/// The endpoints of one port, by what they may be used for.
#[derive(Default)]
struct Endpoints {
    ready: BTreeSet<Backend>,
    /// Used only where nothing is ready: better a pod that is ending than none.
    ending: BTreeSet<Backend>,
    local_ready: BTreeSet<Backend>,
    local_ending: BTreeSet<Backend>,
    serving: BTreeSet<Backend>,
}

impl Endpoints {
    fn of(node: &Node, port: &ServicePort, protocol: Protocol, slices: &[&EndpointSlice]) -> Endpoints {
        let mut out = Endpoints::default();
        let wanted = port.name.as_deref().unwrap_or_default();
        for slice in slices {
            let mut ports = slice.ports.iter().flatten();
            let found = ports.find(|p| {
                p.name.as_deref().unwrap_or_default() == wanted
                    && Protocol::parse(p.protocol.as_deref()) == Some(protocol)
            });
            let Some(number) = found.and_then(|p| p.port).and_then(|p| u16::try_from(p).ok()) else {
                continue;
            };
            for endpoint in slice.endpoints.iter().flatten() {
                let Some(ip) = endpoint.addresses.first().and_then(|a| a.parse().ok()) else { continue };
                let local = endpoint.node_name.as_deref() == Some(node.config.node_name.as_str());
                out.add(endpoint, Backend { ip, port: number }, local);
            }
        }
        out
    }

    fn add(&mut self, endpoint: &Endpoint, backend: Backend, local: bool) {
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let serving = conditions.and_then(|c| c.serving).unwrap_or(true);
        let ending = serving && conditions.and_then(|c| c.terminating).unwrap_or(false);
        if serving || ready {
            self.serving.insert(backend);
        }
        let (all, here) = if ready {
            (&mut self.ready, &mut self.local_ready)
        } else if ending {
            (&mut self.ending, &mut self.local_ending)
        } else {
            return;
        };
        all.insert(backend);
        if local {
            here.insert(backend);
        }
    }
}

fn first_not_empty(ready: BTreeSet<Backend>, ending: BTreeSet<Backend>) -> Vec<Backend> {
    if ready.is_empty() { ending.into_iter().collect() } else { ready.into_iter().collect() }
}
