//! The cluster's zone, answered from Services, EndpointSlices and the names of namespaces. Pure but for its own indexes.
//!
//! Source: "Kubernetes DNS-Based Service Discovery", schema version 1.1.0, and where that leaves room, what CoreDNS's plug-in
//! `kubernetes` answers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr as _;
use std::sync::Arc;

use hickory_proto::rr::rdata::{CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::{Namespace, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use skiff_client::{Change, ObjectKey, key_of};

/// Seconds that clients may keep an answer; CoreDNS's usual figure.
const TTL_S: u32 = 30;
const NEGATIVE_TTL_S: u32 = 5;
/// Of the version of the schema, which does not change.
const VERSION_TTL_S: u32 = 28_800;

pub(super) enum Answer {
    /// The name lies outside the cluster.
    NotOurs,
    NoSuchName {
        soa: Record,
    },
    /// The name is another one's; what was asked for is found there.
    Alias {
        record: Record,
        target: Name,
    },
    /// The name exists; without answers it has no record of that type.
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
        soa: Record,
    },
}

/// See the module's documentation.
pub(super) struct Zone {
    /// `["local", "cluster"]`: the domain's labels from the right.
    domain: Vec<String>,
    origin: Name,
    /// Where the zone is served.
    address: IpAddr,
    namespaces: HashSet<String>,
    services: HashMap<ObjectKey, Arc<Service>>,
    /// By Service, then by the slice's own name.
    slices: HashMap<ObjectKey, BTreeMap<String, Arc<EndpointSlice>>>,
    /// Which Services an address belongs to, for PTR.
    by_ip: HashMap<IpAddr, BTreeSet<ObjectKey>>,
}

/// What a name says, once the domain is taken off.
enum Asked<'n> {
    /// The domain itself.
    Origin,
    /// `svc` or `pod`: exists, but holds nothing.
    Empty,
    /// A namespace below them: holds nothing either.
    Namespace(&'n str),
    Version,
    /// `ns.dns`, whom the zone names as its server.
    NameServer,
    Service(ObjectKey, Part<'n>),
    Pod(&'n str, IpAddr),
    Nothing,
}

/// Which part of a Service.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part<'n> {
    Whole,
    /// `_port._protocol.service.namespace.svc`; what is empty may be any.
    Port(&'n str, &'n str),
    /// `endpoint.service.namespace.svc`.
    Endpoint(&'n str),
}

impl Zone {
    pub(super) fn new(domain: &str, address: IpAddr) -> Zone {
        let origin =
            Name::from_str(&format!("{}.", domain.trim_end_matches('.'))).unwrap_or_else(|_| Name::root());
        Zone {
            domain: domain.trim_matches('.').rsplit('.').map(str::to_lowercase).collect(),
            origin,
            address,
            namespaces: HashSet::new(),
            services: HashMap::new(),
            slices: HashMap::new(),
            by_ip: HashMap::new(),
        }
    }

    pub(super) fn namespace_changed(&mut self, change: &Change<Namespace>) {
        if let Some(name) = change.old.as_ref().and_then(|old| old.metadata.name.as_ref()) {
            self.namespaces.remove(name);
        }
        if let Some(name) = change.new.as_ref().and_then(|new| new.metadata.name.clone()) {
            self.namespaces.insert(name);
        }
    }

    pub(super) fn service_changed(&mut self, change: &Change<Service>) {
        if let Some(old) = &change.old {
            let key = key_of(&**old);
            cluster_ips(old).for_each(|ip| self.forget_ip(ip, &key));
            self.services.remove(&key);
        }
        if let Some(new) = &change.new {
            let key = key_of(&**new);
            for ip in cluster_ips(new) {
                self.by_ip.entry(ip).or_default().insert(key.clone());
            }
            self.services.insert(key, new.clone());
        }
    }

    pub(super) fn slice_changed(&mut self, change: &Change<EndpointSlice>) {
        if let Some(old) = &change.old
            && let Some(service) = service_of(old)
        {
            if let Some(slices) = self.slices.get_mut(&service) {
                slices.remove(old.metadata.name.as_deref().unwrap_or_default());
                if slices.is_empty() {
                    self.slices.remove(&service);
                }
            }
            // An endpoint may have moved to another slice of its Service, which is already known.
            let others = self.slices.get(&service).into_iter().flat_map(|s| s.values());
            let kept: BTreeSet<IpAddr> = others.flat_map(|slice| addresses(slice)).collect();
            addresses(old).filter(|ip| !kept.contains(ip)).for_each(|ip| self.forget_ip(ip, &service));
        }
        if let Some(new) = &change.new
            && let Some(service) = service_of(new)
        {
            for ip in addresses(new) {
                self.by_ip.entry(ip).or_default().insert(service.clone());
            }
            let name = new.metadata.name.clone().unwrap_or_default();
            self.slices.entry(service).or_default().insert(name, new.clone());
        }
    }

    fn forget_ip(&mut self, ip: IpAddr, service: &ObjectKey) {
        if let Some(services) = self.by_ip.get_mut(&ip) {
            services.remove(service);
            if services.is_empty() {
                self.by_ip.remove(&ip);
            }
        }
    }

    pub(super) fn answer(&self, name: &Name, type_: RecordType) -> Answer {
        let text = name.to_lowercase().to_ascii();
        let labels = labels(&text);
        if let Some(labels) = labels.strip_prefix(&["arpa", "in-addr"]) {
            return self.reverse(name, labels, type_);
        }
        let ours = labels.len() >= self.domain.len() && self.domain.iter().zip(&labels).all(|(a, b)| a == b);
        if !ours {
            return Answer::NotOurs;
        }
        let asked = asked(&labels[self.domain.len()..]);
        if let Asked::Service(key, Part::Whole) = &asked
            && ![RecordType::CNAME, RecordType::ANY].contains(&type_)
            && let Some(target) = self.alias(key)
        {
            let record = Record::from_rdata(name.clone(), TTL_S, RData::CNAME(CNAME(target.clone())));
            return Answer::Alias { record, target };
        }
        let mut records = Records { zone: self, name, type_, answers: Vec::new(), additionals: Vec::new() };
        let found = match asked {
            Asked::Origin => {
                if let RData::SOA(soa) = self.soa().data {
                    records.push(RecordType::SOA, RData::SOA(soa));
                }
                records.name_server();
                true
            }
            Asked::Empty => true,
            Asked::Namespace(namespace) => self.namespaces.contains(namespace),
            Asked::Nothing => false,
            Asked::Version => {
                records.push_for(VERSION_TTL_S, RecordType::TXT, RData::TXT(TXT::new(vec!["1.1.0".into()])));
                true
            }
            Asked::NameServer => {
                records.push_address(self.address);
                true
            }
            Asked::Pod(namespace, ip) => {
                records.push_address(ip);
                self.namespaces.contains(namespace)
            }
            Asked::Service(key, part) => records.service(&key, part),
        };
        let (answers, additionals) = (records.answers, records.additionals);
        let soa = self.soa();
        if found { Answer::Records { answers, additionals, soa } } else { Answer::NoSuchName { soa } }
    }

    /// Where a Service of type ExternalName leads.
    fn alias(&self, key: &ObjectKey) -> Option<Name> {
        let spec = self.services.get(key)?.spec.as_ref()?;
        let target = spec.external_name.as_deref().filter(|_| is_external(spec))?;
        // An address is no name to go on with.
        let is_name = target.parse::<IpAddr>().is_err();
        is_name.then(|| Name::from_str(&format!("{}.", target.trim_end_matches('.'))).ok()).flatten()
    }

    /// Names of two labels are prepended label by label: a dot within one would be part of it.
    fn below_origin(&self, labels: [&str; 2]) -> Name {
        let below =
            labels.iter().rev().try_fold(self.origin.clone(), |name, label| name.prepend_label(*label));
        below.unwrap_or_else(|_| self.origin.clone())
    }

    /// Who serves the zone: the Service that has the address, if there is one.
    fn server(&self) -> Name {
        let services = self.by_ip.get(&self.address).into_iter().flatten();
        let mut owners = services.filter(|key| {
            self.services.get(*key).is_some_and(|service| cluster_ips(service).any(|ip| ip == self.address))
        });
        owners
            .next()
            .and_then(|key| self.service_name(key))
            .unwrap_or_else(|| self.below_origin(["ns", "dns"]))
    }

    fn soa(&self) -> Record {
        let mailbox = self.origin.prepend_label("hostmaster").unwrap_or_else(|_| self.origin.clone());
        let server = self.below_origin(["ns", "dns"]);
        let soa = SOA::new(server, mailbox, 1, 7200, 1800, 86_400, NEGATIVE_TTL_S);
        Record::from_rdata(self.origin.clone(), NEGATIVE_TTL_S, RData::SOA(soa))
    }

    fn reverse(&self, name: &Name, labels: &[&str], type_: RecordType) -> Answer {
        let ip = labels.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
        let Some((ip, services)) = ip.and_then(|ip| Some((ip, self.by_ip.get(&ip)?))) else {
            return Answer::NotOurs;
        };
        let mut records = Records { zone: self, name, type_, answers: Vec::new(), additionals: Vec::new() };
        // A Service's own address is that Service; any other is the endpoint of whoever has it.
        let has = |key: &&ObjectKey| {
            self.services.get(*key).is_some_and(|service| cluster_ips(service).any(|own| own == ip))
        };
        let targets: Vec<Name> = match services.iter().find(has) {
            Some(key) => self.service_name(key).into_iter().collect(),
            None => services.iter().filter_map(|key| self.endpoint_name(ip, key)).collect(),
        };
        for target in targets {
            records.push(RecordType::PTR, RData::PTR(PTR(target)));
        }
        let soa = self.soa();
        if records.answers.is_empty() && type_ == RecordType::PTR {
            return Answer::NotOurs;
        }
        Answer::Records { answers: records.answers, additionals: Vec::new(), soa }
    }

    fn endpoint_name(&self, ip: IpAddr, key: &ObjectKey) -> Option<Name> {
        let endpoint = self.endpoints(key).find(|e| e.ip == ip)?;
        self.name_below(key, &endpoint.label)
    }

    fn service_name(&self, key: &ObjectKey) -> Option<Name> {
        Name::from_str(&format!("{}.{}.svc.{}", key.name, key.namespace, self.origin)).ok()
    }

    fn name_below(&self, key: &ObjectKey, label: &str) -> Option<Name> {
        Name::from_str(&format!("{label}.{}.{}.svc.{}", key.name, key.namespace, self.origin)).ok()
    }

    /// The endpoints of a Service that may be published.
    fn endpoints<'z>(&'z self, key: &ObjectKey) -> impl Iterator<Item = Published<'z>> + use<'z> {
        let all = self
            .services
            .get(key)
            .and_then(|s| s.spec.as_ref())
            .is_some_and(|s| s.publish_not_ready_addresses == Some(true));
        let slices = self.slices.get(key).into_iter().flat_map(|s| s.values());
        slices.flat_map(move |slice| {
            let published = slice.endpoints.iter().flatten().filter(move |e| all || is_ready(e));
            published.flat_map(move |e| {
                let ips = e.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
                ips.map(move |ip| Published { ip, label: label(e.hostname.as_deref(), ip), slice })
            })
        })
    }
}

/// An endpoint's hostname, or its address with dashes.
fn label(hostname: Option<&str>, ip: IpAddr) -> String {
    let dashed = || {
        let dashed = ip.to_string().replace(['.', ':'], "-");
        // No label ends with a dash.
        if dashed.ends_with('-') { dashed + "0" } else { dashed }
    };
    hostname.filter(|name| !name.is_empty()).map_or_else(dashed, str::to_owned)
}

struct Published<'z> {
    ip: IpAddr,
    /// Its hostname, or its address with dashes.
    label: String,
    slice: &'z EndpointSlice,
}

/// From the right.
fn labels(name: &str) -> Vec<&str> {
    name.trim_end_matches('.').rsplit('.').collect()
}

fn asked<'n>(labels: &[&'n str]) -> Asked<'n> {
    let service = |namespace: &str, name: &str, part| Asked::Service(ObjectKey::new(namespace, name), part);
    let plain = |label: &'n str| label.strip_prefix('_').unwrap_or(label);
    match *labels {
        [] => Asked::Origin,
        ["svc" | "pod"] => Asked::Empty,
        ["svc" | "pod", namespace] => Asked::Namespace(namespace),
        ["dns-version"] => Asked::Version,
        ["dns", "ns"] => Asked::NameServer,
        ["svc", namespace, name] => service(namespace, name, Part::Whole),
        ["svc", namespace, name, endpoint] => service(namespace, name, Part::Endpoint(endpoint)),
        ["svc", namespace, name, protocol, port] => {
            service(namespace, name, Part::Port(plain(port), plain(protocol)))
        }
        ["pod", namespace, ip] => pod_address(ip).map_or(Asked::Nothing, |ip| Asked::Pod(namespace, ip)),
        _ => Asked::Nothing,
    }
}

/// `10-42-0-7`, or an IPv6 address with dashes for its colons.
fn pod_address(label: &str) -> Option<IpAddr> {
    let is_v4 = label.matches('-').count() == 3 && !label.contains("--");
    label.replace('-', if is_v4 { "." } else { ":" }).parse().ok()
}

/// The records of one answer.
struct Records<'z> {
    zone: &'z Zone,
    name: &'z Name,
    type_: RecordType,
    answers: Vec<Record>,
    additionals: Vec<Record>,
}

/// What one port of one address of a Service comes to. Without ports there is one of none.
struct Found {
    target: Name,
    ip: IpAddr,
    port: Option<u16>,
}

impl Records<'_> {
    fn push(&mut self, type_: RecordType, data: RData) {
        self.push_for(TTL_S, type_, data);
    }

    fn push_for(&mut self, ttl_s: u32, type_: RecordType, data: RData) {
        if self.type_ == type_ || self.type_ == RecordType::ANY {
            self.answers.push(Record::from_rdata(self.name.clone(), ttl_s, data));
        }
    }

    fn push_address(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.push(RecordType::A, RData::A(ip.into())),
            IpAddr::V6(ip) => self.push(RecordType::AAAA, RData::AAAA(ip.into())),
        }
    }

    fn name_server(&mut self) {
        if self.type_ == RecordType::NS {
            let server = self.zone.server();
            self.additionals.push(address_record(server.clone(), self.zone.address));
            self.push(RecordType::NS, RData::NS(NS(server)));
        }
    }

    /// Whether there is such a part of such a Service.
    fn service(&mut self, key: &ObjectKey, part: Part<'_>) -> bool {
        let Some(service) = self.zone.services.get(key) else { return false };
        if service.spec.as_ref().is_some_and(is_external) {
            let target = self.zone.alias(key).filter(|_| part == Part::Whole);
            let Some(target) = target else { return false };
            self.push(RecordType::CNAME, RData::CNAME(CNAME(target)));
            return true;
        }
        // A headless Service without endpoints does not exist, as far as DNS goes.
        let found = match (part, is_headless(service)) {
            (Part::Endpoint(_), _) | (_, true) => self.endpoints(key, part),
            _ => self.cluster(key, service, part),
        };
        let ips: BTreeSet<IpAddr> = found.iter().map(|found| found.ip).collect();
        ips.into_iter().for_each(|ip| self.push_address(ip));
        if self.type_ == RecordType::SRV {
            self.push_ports(&found);
        }
        !found.is_empty()
    }

    fn cluster(&self, key: &ObjectKey, service: &Service, part: Part<'_>) -> Vec<Found> {
        let Some(target) = self.zone.service_name(key) else { return Vec::new() };
        let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
        let ports = ports.map(|port| (port.name.as_deref(), port.protocol.as_deref(), Some(port.port)));
        let ports = matching(ports.collect(), part);
        let (target, ports) = (&target, &ports);
        let found = |ip| ports.iter().map(move |port| Found { target: target.clone(), ip, port: *port });
        cluster_ips(service).flat_map(found).collect()
    }

    fn endpoints(&self, key: &ObjectKey, part: Part<'_>) -> Vec<Found> {
        let mut found = Vec::new();
        for endpoint in self.zone.endpoints(key) {
            if matches!(part, Part::Endpoint(label) if !endpoint.label.eq_ignore_ascii_case(label)) {
                continue;
            }
            let Some(target) = self.zone.name_below(key, &endpoint.label) else { continue };
            let ports = endpoint.slice.ports.iter().flatten();
            let ports = ports.map(|port| (port.name.as_deref(), port.protocol.as_deref(), port.port));
            for port in matching(ports.collect(), part) {
                found.push(Found { target: target.clone(), ip: endpoint.ip, port });
            }
        }
        found
    }

    /// All of them weigh a hundred together, but each at least one.
    fn push_ports(&mut self, found: &[Found]) {
        let weight = u16::try_from(100 / found.len().max(1)).unwrap_or(1).max(1);
        let (mut targets, mut addresses) = (HashSet::new(), HashSet::new());
        for Found { target, ip, port } in found {
            let Some(port) = *port else { continue };
            if targets.insert((target, port)) {
                self.push(RecordType::SRV, RData::SRV(SRV::new(0, weight, port, target.clone())));
            }
            if addresses.insert((target, ip)) {
                self.additionals.push(address_record(target.clone(), *ip));
            }
        }
    }
}

/// The ports that are asked for; without any there is one of none, whose name and protocol are empty.
fn matching(ports: Vec<(Option<&str>, Option<&str>, Option<i32>)>, part: Part<'_>) -> Vec<Option<u16>> {
    let has_none = ports.is_empty();
    let all = ports.into_iter().map(|(name, protocol, port)| (name, protocol.unwrap_or("TCP"), port));
    let none = has_none.then_some((None, "", None));
    let is_asked = |name: Option<&str>, protocol: &str| match part {
        Part::Port(wanted, of) => {
            let same = |wanted: &str, has: &str| wanted.is_empty() || wanted.eq_ignore_ascii_case(has);
            same(wanted, name.unwrap_or_default()) && same(of, protocol)
        }
        Part::Whole | Part::Endpoint(_) => true,
    };
    all.chain(none)
        .filter(|(name, protocol, _)| is_asked(*name, protocol))
        .map(|(_, _, port)| port.and_then(|port| u16::try_from(port).ok()))
        .collect()
}

fn address_record(name: Name, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(ip) => RData::A(ip.into()),
        IpAddr::V6(ip) => RData::AAAA(ip.into()),
    };
    Record::from_rdata(name, TTL_S, data)
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

fn is_external(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("ExternalName")
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|s| s.cluster_ip.as_deref() == Some("None"))
}

fn cluster_ips(service: &Service) -> impl Iterator<Item = IpAddr> {
    let spec = service.spec.as_ref();
    let all: BTreeSet<IpAddr> = spec
        .into_iter()
        .flat_map(|s| s.cluster_ips.iter().flatten().chain(&s.cluster_ip))
        .filter_map(|ip| ip.parse().ok())
        .collect();
    all.into_iter()
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
    Some(ObjectKey::new(slice.metadata.namespace.clone().unwrap_or_default(), name))
}

fn addresses(slice: &EndpointSlice) -> impl Iterator<Item = IpAddr> {
    slice
        .endpoints
        .iter()
        .flatten()
        .flat_map(|e| &e.addresses)
        .filter_map(|a| a.parse().ok())
        .collect::<Vec<_>>()
        .into_iter()
}

#[cfg(test)]
mod tests;
