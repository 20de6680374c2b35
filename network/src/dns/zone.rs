//! The cluster's zone, answered from Services and EndpointSlices. Pure but for its own indexes.
//!
//! Source: "Kubernetes DNS-Based Service Discovery", schema version 1.1.0.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr as _;
use std::sync::Arc;

use hickory_proto::rr::rdata::{CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use skiff_client::{Change, ObjectKey, key_of};

/// Seconds that clients may keep an answer; CoreDNS's usual figure.
const TTL_S: u32 = 30;
const NEGATIVE_TTL_S: u32 = 5;

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
    /// `svc`, `pod` or a namespace below them: exists, but holds nothing.
    Empty,
    Version,
    Service(ObjectKey),
    /// `_port._protocol.service.namespace.svc`.
    Port(ObjectKey, &'n str, &'n str),
    /// `endpoint.service.namespace.svc`.
    Endpoint(ObjectKey, &'n str),
    Pod(Ipv4Addr),
    Nothing,
}

impl Zone {
    pub(super) fn new(domain: &str) -> Zone {
        let origin =
            Name::from_str(&format!("{}.", domain.trim_end_matches('.'))).unwrap_or_else(|_| Name::root());
        Zone {
            domain: domain.trim_matches('.').rsplit('.').map(str::to_lowercase).collect(),
            origin,
            services: HashMap::new(),
            slices: HashMap::new(),
            by_ip: HashMap::new(),
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
        if let Asked::Service(key) = &asked
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
                true
            }
            Asked::Empty => true,
            Asked::Nothing => false,
            Asked::Version => {
                records.push(RecordType::TXT, RData::TXT(TXT::new(vec!["1.1.0".into()])));
                true
            }
            Asked::Pod(ip) => {
                records.push(RecordType::A, RData::A(ip.into()));
                true
            }
            Asked::Service(key) => records.service(&key),
            Asked::Port(key, port, protocol) => records.ports(&key, port, protocol),
            Asked::Endpoint(key, endpoint) => records.endpoint(&key, endpoint),
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

    fn soa(&self) -> Record {
        let prefixed = |label: &str| self.origin.prepend_label(label).unwrap_or_else(|_| self.origin.clone());
        let soa = SOA::new(prefixed("ns.dns"), prefixed("hostmaster"), 1, 7200, 1800, 86_400, NEGATIVE_TTL_S);
        Record::from_rdata(self.origin.clone(), NEGATIVE_TTL_S, RData::SOA(soa))
    }

    fn reverse(&self, name: &Name, labels: &[&str], type_: RecordType) -> Answer {
        let ip = labels.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
        let Some((ip, services)) = ip.and_then(|ip| Some((ip, self.by_ip.get(&ip)?))) else {
            return Answer::NotOurs;
        };
        let mut records = Records { zone: self, name, type_, answers: Vec::new(), additionals: Vec::new() };
        for key in services {
            let Some(target) = self.reverse_target(ip, key) else { continue };
            records.push(RecordType::PTR, RData::PTR(PTR(target)));
        }
        let soa = self.soa();
        if records.answers.is_empty() && type_ == RecordType::PTR {
            return Answer::NotOurs;
        }
        Answer::Records { answers: records.answers, additionals: Vec::new(), soa }
    }

    /// The Service's own name for its cluster address; the endpoint's for a headless one.
    fn reverse_target(&self, ip: IpAddr, key: &ObjectKey) -> Option<Name> {
        let service = self.services.get(key)?;
        if cluster_ips(service).any(|c| c == ip) {
            return self.service_name(key);
        }
        if !is_headless(service) {
            return None;
        }
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
            published.filter_map(|e| {
                let ip: IpAddr = e.addresses.first()?.parse().ok()?;
                let label = e.hostname.clone().unwrap_or_else(|| ip.to_string().replace(['.', ':'], "-"));
                Some(Published { ip, label, slice })
            })
        })
    }
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
    let key = |namespace: &str, name: &str| ObjectKey::new(namespace, name);
    match labels {
        [] => Asked::Origin,
        ["svc" | "pod"] | ["svc" | "pod", _] => Asked::Empty,
        ["dns-version"] => Asked::Version,
        ["svc", namespace, service] => Asked::Service(key(namespace, service)),
        ["svc", namespace, service, protocol, port] if protocol.starts_with('_') && port.starts_with('_') => {
            Asked::Port(key(namespace, service), &port[1..], &protocol[1..])
        }
        ["svc", namespace, service, endpoint] => Asked::Endpoint(key(namespace, service), endpoint),
        ["pod", _, ip] => ip.replace('-', ".").parse().map_or(Asked::Nothing, Asked::Pod),
        _ => Asked::Nothing,
    }
}

/// The records of one answer.
struct Records<'z> {
    zone: &'z Zone,
    name: &'z Name,
    type_: RecordType,
    answers: Vec<Record>,
    additionals: Vec<Record>,
}

impl Records<'_> {
    fn push(&mut self, type_: RecordType, data: RData) {
        if self.type_ == type_ || self.type_ == RecordType::ANY {
            self.answers.push(Record::from_rdata(self.name.clone(), TTL_S, data));
        }
    }

    fn push_address(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.push(RecordType::A, RData::A(ip.into())),
            IpAddr::V6(ip) => self.push(RecordType::AAAA, RData::AAAA(ip.into())),
        }
    }

    fn service(&mut self, key: &ObjectKey) -> bool {
        let Some(service) = self.zone.services.get(key) else { return false };
        let spec = service.spec.as_ref();
        if spec.is_some_and(is_external) {
            let Some(target) = self.zone.alias(key) else { return false };
            self.push(RecordType::CNAME, RData::CNAME(CNAME(target)));
            return true;
        }
        if is_headless(service) {
            let ips: BTreeSet<IpAddr> = self.zone.endpoints(key).map(|e| e.ip).collect();
            // A headless Service without endpoints does not exist, as far as DNS goes.
            let found = !ips.is_empty();
            ips.into_iter().for_each(|ip| self.push_address(ip));
            if self.type_ == RecordType::SRV {
                self.headless_ports(key, None);
            }
            return found;
        }
        cluster_ips(service).for_each(|ip| self.push_address(ip));
        if self.type_ == RecordType::SRV {
            self.cluster_ports(key, service, None);
        }
        true
    }

    fn ports(&mut self, key: &ObjectKey, port: &str, protocol: &str) -> bool {
        let Some(service) = self.zone.services.get(key).cloned() else { return false };
        if service.spec.as_ref().is_some_and(is_external) {
            return false;
        }
        if is_headless(&service) {
            self.headless_ports(key, Some((port, protocol)))
        } else {
            self.cluster_ports(key, &service, Some((port, protocol)))
        }
    }

    fn cluster_ports(&mut self, key: &ObjectKey, service: &Service, only: Option<(&str, &str)>) -> bool {
        let Some(target) = self.zone.service_name(key) else { return false };
        let mut found = false;
        for port in service.spec.iter().flat_map(|s| s.ports.iter().flatten()) {
            let (name, protocol) = (port.name.as_deref(), port.protocol.as_deref());
            if !matches_port(name, protocol, only) {
                continue;
            }
            found = true;
            self.push_srv(port.port, &target);
        }
        if found && self.type_ == RecordType::SRV {
            for ip in cluster_ips(service) {
                self.additionals.push(address_record(target.clone(), ip));
            }
        }
        found
    }

    fn headless_ports(&mut self, key: &ObjectKey, only: Option<(&str, &str)>) -> bool {
        let zone = self.zone;
        let mut found = false;
        for endpoint in zone.endpoints(key) {
            let Some(target) = zone.name_below(key, &endpoint.label) else { continue };
            for port in endpoint.slice.ports.iter().flatten() {
                if !matches_port(port.name.as_deref(), port.protocol.as_deref(), only) {
                    continue;
                }
                found = true;
                self.push_srv(port.port.unwrap_or_default(), &target);
            }
            if found && self.type_ == RecordType::SRV {
                self.additionals.push(address_record(target, endpoint.ip));
            }
        }
        found
    }

    fn push_srv(&mut self, port: i32, target: &Name) {
        const WEIGHT: u16 = 100;
        if let Ok(port) = u16::try_from(port) {
            self.push(RecordType::SRV, RData::SRV(SRV::new(0, WEIGHT, port, target.clone())));
        }
    }

    fn endpoint(&mut self, key: &ObjectKey, label: &str) -> bool {
        let headless = self.zone.services.get(key).is_some_and(|s| is_headless(s));
        if !headless {
            return false;
        }
        let zone = self.zone;
        let ips: Vec<IpAddr> = zone.endpoints(key).filter(|e| e.label == label).map(|e| e.ip).collect();
        let found = !ips.is_empty();
        ips.into_iter().for_each(|ip| self.push_address(ip));
        found
    }
}

fn matches_port(name: Option<&str>, protocol: Option<&str>, only: Option<(&str, &str)>) -> bool {
    let Some((wanted_name, wanted_protocol)) = only else { return true };
    let protocol = protocol.unwrap_or("TCP");
    name == Some(wanted_name) && protocol.eq_ignore_ascii_case(wanted_protocol)
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
