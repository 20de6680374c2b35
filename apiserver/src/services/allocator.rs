//! Addresses and ports of Services: given out here, one at a time, remembered by the Services themselves.
//!
//! # Guarantees
//! Nothing is given out twice: all allocation is under one lock, and what is in use is read back from the
//! stored Services at start and whenever one changes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::Rng;
use serde_json::{Value, json};
use skiff_api::meta::Meta;
use skiff_api::{Cause, Kind, Object, Status};

use super::cidr::ServiceCidr;
use super::ports::{NODE_PORTS, Ports};
use crate::cache::ResourceCache;
use crate::call::is_core;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Held {
    Ip(Ipv4Addr),
    Port(u16, Protocol),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn of(port: &Value) -> Protocol {
        match port["protocol"].as_str() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        }
    }
}

/// Whether what is given out is also taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Real,
    Dry,
}

impl Write {
    pub(crate) fn of(dry_run: bool) -> Write {
        if dry_run { Write::Dry } else { Write::Real }
    }
}

pub(crate) struct ServiceAllocator {
    cidr: ServiceCidr,
    /// By whom; a Service is `<namespace>/<name>`.
    held: Arc<Mutex<HashMap<Held, String>>>,
    /// IPAddress objects: one that belongs to something else keeps its address from being given out.
    addresses: Option<Arc<ResourceCache>>,
    /// The Services: while one of them cannot be read, nobody knows which ports it has.
    services: Option<Arc<ResourceCache>>,
}

/// What one request took. Dropping it gives that back, unless it is kept.
pub(crate) struct Allocation {
    held: Arc<Mutex<HashMap<Held, String>>>,
    taken: Vec<Held>,
    /// Given back when the allocation is kept: what the Service no longer has.
    dropped: Vec<Held>,
    /// What all servers have given out of node ports, where there are several.
    ports_elsewhere: Option<Ports>,
    /// What was claimed in the store for this.
    pub(super) claimed: Vec<Held>,
    pub(super) claimed_ports: BTreeSet<u16>,
}

impl Allocation {
    /// The addresses that were given out and those that are to be given back.
    pub(crate) fn addresses(&self) -> (Vec<Ipv4Addr>, Vec<Ipv4Addr>) {
        let ips = |held: &[Held]| {
            let ips = held.iter().filter_map(|one| match one {
                Held::Ip(ip) => Some(*ip),
                Held::Port(..) => None,
            });
            ips.collect()
        };
        (ips(&self.taken), ips(&self.dropped))
    }

    /// Whether anything of it has been claimed in the store.
    pub(crate) fn is_claimed(&self) -> bool {
        !self.claimed.is_empty() || !self.claimed_ports.is_empty()
    }

    pub(super) fn ports(&self) -> BTreeSet<u16> {
        let ports = self.taken.iter().filter_map(|one| match one {
            Held::Port(port, _) => Some(*port),
            Held::Ip(_) => None,
        });
        ports.collect()
    }

    /// The numbers that the Service no longer has for any protocol.
    pub(super) fn dropped_ports(&self, service: &Object) -> BTreeSet<u16> {
        let kept = numbers(service);
        let dropped = self.dropped.iter().filter_map(|one| match one {
            Held::Port(port, _) => Some(*port),
            Held::Ip(_) => None,
        });
        dropped.filter(|port| !kept.contains(port)).collect()
    }

    /// Whether another server has given it out, or this one to another Service.
    fn is_elsewhere(&self, one: Held, before: &HashSet<Held>) -> bool {
        let (Held::Port(port, _), Some(ports)) = (one, &self.ports_elsewhere) else { return false };
        // A Service may have a number for several protocols.
        ports.has(port) && !before.iter().any(|had| matches!(had, Held::Port(number, _) if *number == port))
    }

    pub(crate) fn keep(&mut self) {
        self.taken.clear();
        let mut held = self.held.lock();
        for one in self.dropped.drain(..) {
            held.remove(&one);
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        for one in self.taken.drain(..) {
            held.remove(&one);
        }
    }
}

impl ServiceAllocator {
    /// Takes what the stored Services hold.
    pub(crate) fn new(cidr: ServiceCidr, stored: impl Iterator<Item = Object>) -> ServiceAllocator {
        let mut held = HashMap::new();
        for service in stored {
            for one in held_by(&service) {
                let owner = format!("{}/{}", service.namespace(), service.name());
                if let Some(other) = held.insert(one, owner.clone()) {
                    tracing::error!(?one, owner, other, "two Services hold the same address or port");
                }
            }
        }
        ServiceAllocator { cidr, held: Arc::new(Mutex::new(held)), addresses: None, services: None }
    }

    /// The same over what other servers do: what is in use is what [`super::seen::Seen`] sees.
    pub(crate) fn sharing(self, held: Arc<Mutex<HashMap<Held, String>>>) -> ServiceAllocator {
        ServiceAllocator { held, ..self }
    }

    /// Heeds addresses that IPAddress objects give to something else.
    pub(crate) fn heeding(self, addresses: Arc<ResourceCache>) -> ServiceAllocator {
        ServiceAllocator { addresses: Some(addresses), ..self }
    }

    /// Gives no port away while a Service cannot be read.
    pub(crate) fn knowing(self, services: Arc<ResourceCache>) -> ServiceAllocator {
        ServiceAllocator { services: Some(services), ..self }
    }

    fn is_reserved(&self, one: Held, service: &Object) -> bool {
        let (Held::Ip(ip), Some(addresses)) = (one, &self.addresses) else { return false };
        match addresses.get(&ip.to_string()) {
            Ok(entry) => entry.is_some_and(|entry| !is_of(&entry.parse(), service)),
            // Somebody has it, and it cannot be read who.
            Err(_) => true,
        }
    }

    /// Completes a Service with addresses and ports; of other kinds nothing is done.
    pub(crate) fn allocate(
        &self,
        kind: &Kind,
        service: &mut Object,
        old: Option<&Object>,
        write: Write,
        ports_elsewhere: Option<Ports>,
    ) -> Result<Allocation, Status> {
        let mut allocation = Allocation {
            held: self.held.clone(),
            taken: Vec::new(),
            dropped: Vec::new(),
            ports_elsewhere,
            claimed: Vec::new(),
            claimed_ports: BTreeSet::new(),
        };
        if !is_core(kind, "Service") {
            return Ok(allocation);
        }
        let name = service.name().to_owned();
        let refuse = |causes| Err(Status::invalid("", "Service", &name, causes));
        let before: HashSet<Held> = old.map(held_by).unwrap_or_default();
        let mut causes = Vec::new();
        self.cluster_ip(service, &before, &mut allocation, &mut causes);
        self.node_ports(service, &before, write, &mut allocation, &mut causes);
        self.health_check_port(service, &before, &mut allocation, &mut causes);
        if !causes.is_empty() {
            return refuse(causes);
        }
        if let Some(services) = &self.services
            && allocation.taken.iter().any(|one| matches!(one, Held::Port(..)))
        {
            services.snapshot()?;
        }
        let after = held_by(service);
        allocation.dropped = before.into_iter().filter(|one| !after.contains(one)).collect();
        Ok(allocation)
    }

    /// Gives back what a deleted Service held.
    pub(crate) fn release(&self, kind: &Kind, service: &Object) {
        if is_core(kind, "Service") {
            let mut held = self.held.lock();
            for one in held_by(service) {
                held.remove(&one);
            }
        }
    }

    fn take(&self, one: Held, service: &Object, before: &HashSet<Held>, allocation: &mut Allocation) -> bool {
        if before.contains(&one) {
            return true;
        }
        if self.is_reserved(one, service) || allocation.is_elsewhere(one, before) {
            return false;
        }
        let mut held = self.held.lock();
        if held.contains_key(&one) {
            return false;
        }
        held.insert(one, format!("{}/{}", service.namespace(), service.name()));
        allocation.taken.push(one);
        true
    }

    fn cluster_ip(
        &self,
        service: &mut Object,
        before: &HashSet<Held>,
        allocation: &mut Allocation,
        causes: &mut Vec<Cause>,
    ) {
        if service["spec"]["type"] == "ExternalName" {
            if let Some(spec) = service["spec"].as_object_mut() {
                for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                    spec.remove(field);
                }
            }
            return;
        }
        if service["spec"]["ipFamilies"].as_array().is_none_or(Vec::is_empty) {
            service["spec"]["ipFamilies"] = json!(["IPv4"]);
        }
        if service["spec"]["ipFamilyPolicy"].as_str().is_none_or(str::is_empty) {
            service["spec"]["ipFamilyPolicy"] = "SingleStack".into();
        }
        let families = &service["spec"]["ipFamilies"];
        if *families != json!(["IPv4"]) {
            let why = "not configured on this cluster";
            causes.push(Cause::invalid("spec.ipFamilies[0]", families, why));
            return;
        }
        if service["spec"]["ipFamilyPolicy"] == "RequireDualStack" {
            let why = "this cluster is not configured for dual-stack services";
            causes.push(Cause::invalid("spec.ipFamilyPolicy", &service["spec"]["ipFamilyPolicy"], why));
            return;
        }
        let first = service["spec"]["clusterIPs"][0].as_str();
        let wanted = service["spec"]["clusterIP"].as_str().filter(|ip| !ip.is_empty()).or(first);
        let wanted = wanted.unwrap_or_default().to_owned();
        if wanted == "None" {
            service["spec"]["clusterIP"] = "None".into();
            service["spec"]["clusterIPs"] = json!(["None"]);
            return;
        }
        match self.pick_ip(&wanted, service, before, allocation) {
            Ok(ip) => {
                service["spec"]["clusterIP"] = ip.to_string().into();
                service["spec"]["clusterIPs"] = json!([ip.to_string()]);
            }
            Err(why) => {
                let value = if wanted.is_empty() { Value::Null } else { json!([wanted]) };
                causes.push(Cause::invalid("spec.clusterIPs", &value, &why));
            }
        }
    }

    fn pick_ip(
        &self,
        wanted: &str,
        service: &Object,
        before: &HashSet<Held>,
        allocation: &mut Allocation,
    ) -> Result<Ipv4Addr, String> {
        if !wanted.is_empty() {
            let ip = match wanted.parse() {
                Ok(IpAddr::V4(ip)) => ip,
                _ => return Err("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()),
            };
            if !self.cidr.contains(ip) && !before.contains(&Held::Ip(ip)) {
                return Err(format!(
                    "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                    self.cidr
                ));
            }
            if self.take(Held::Ip(ip), service, before, allocation) {
                return Ok(ip);
            }
            return Err(format!("failed to allocate IP {ip}: provided IP is already allocated"));
        }
        let size = self.cidr.size();
        // The lower part of the range is for addresses that users choose, as upstream reserves it.
        let reserved = (size / 16).clamp(0, 256).min(size / 2);
        let start = rand::rng().random_range(reserved..size);
        let offsets = (start..size).chain(reserved..start).chain(0..reserved);
        for offset in offsets {
            let ip = Ipv4Addr::from(self.cidr.network + 1 + offset);
            if self.take(Held::Ip(ip), service, before, allocation) {
                return Ok(ip);
            }
        }
        Err("failed to allocate a serviceIP: range is full".into())
    }

    fn node_ports(
        &self,
        service: &mut Object,
        before: &HashSet<Held>,
        write: Write,
        allocation: &mut Allocation,
        causes: &mut Vec<Cause>,
    ) {
        let wants = needs_node_ports(service);
        let owner = service.clone();
        let mut mine: BTreeSet<(u16, Protocol)> = BTreeSet::new();
        // Looking through the whole range once is enough to know that it is full.
        let mut full: BTreeSet<Protocol> = BTreeSet::new();
        for (at, port) in service["spec"]["ports"].as_array_mut().into_iter().flatten().enumerate() {
            let protocol = Protocol::of(port);
            let field = format!("spec.ports[{at}].nodePort");
            let said = port["nodePort"].as_i64().unwrap_or(0);
            // What another type has no use for, its rules refuse. Nobody gives a dry run a port, so none is wrong.
            if !wants || (said != 0 && write == Write::Dry) {
                continue;
            }
            let given = u16::try_from(said).unwrap_or(u16::MAX);
            let taken = if given != 0 {
                if !NODE_PORTS.contains(&given) {
                    let why = format!(
                        "provided port is not in the valid range. The range of valid ports is {}-{}",
                        NODE_PORTS.start(),
                        NODE_PORTS.end()
                    );
                    causes.push(Cause::invalid(field, &json!(said), &why));
                    continue;
                }
                let free = mine.contains(&(given, protocol))
                    || self.take(Held::Port(given, protocol), &owner, before, allocation);
                free.then_some(given)
            } else if full.contains(&protocol) {
                None
            } else {
                self.pick_port(&owner, protocol, before, allocation)
            };
            match taken {
                None if given == 0 => {
                    full.insert(protocol);
                    causes.push(Cause::invalid(field, &json!(given), "provided port is already allocated"));
                }
                Some(number) => {
                    mine.insert((number, protocol));
                    port["nodePort"] = number.into();
                }
                None => {
                    causes.push(Cause::invalid(field, &json!(given), "provided port is already allocated"))
                }
            }
        }
    }

    fn pick_port(
        &self,
        owner: &Object,
        protocol: Protocol,
        before: &HashSet<Held>,
        allocation: &mut Allocation,
    ) -> Option<u16> {
        let start = rand::rng().random_range(NODE_PORTS);
        (start..=*NODE_PORTS.end())
            .chain(*NODE_PORTS.start()..start)
            .filter(|port| !before.contains(&Held::Port(*port, protocol)))
            .find(|port| self.take(Held::Port(*port, protocol), owner, &HashSet::new(), allocation))
    }

    /// A load balancer with local traffic policy answers health checks on a port of its own.
    fn health_check_port(
        &self,
        service: &mut Object,
        before: &HashSet<Held>,
        allocation: &mut Allocation,
        causes: &mut Vec<Cause>,
    ) {
        let spec = &service["spec"];
        let wants = spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local";
        let given = spec["healthCheckNodePort"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(0);
        if !wants {
            if let Some(spec) = service["spec"].as_object_mut() {
                spec.remove("healthCheckNodePort");
            }
            return;
        }
        let owner = service.clone();
        let taken = if given == 0 {
            self.pick_port(&owner, Protocol::Tcp, before, allocation)
        } else {
            self.take(Held::Port(given, Protocol::Tcp), &owner, before, allocation).then_some(given)
        };
        match taken {
            Some(port) => service["spec"]["healthCheckNodePort"] = port.into(),
            None => causes.push(Cause::invalid(
                "spec.healthCheckNodePort",
                &json!(given),
                "provided port is already allocated",
            )),
        }
    }
}

fn needs_node_ports(service: &Object) -> bool {
    let spec = &service["spec"];
    spec["type"] == "NodePort"
        || (spec["type"] == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"] != false)
}

/// What was allocated for another type goes with it, unless the client says something else, which validation refuses.
fn drop_addresses(service: &mut Object, old: &Object) {
    let of = |service: &Object, field: &str| service["spec"][field].clone();
    let is_same_ip = of(service, "clusterIP") == of(old, "clusterIP") || of(service, "clusterIP").is_null();
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let is_same = match field {
            "clusterIP" | "clusterIPs" => is_same_ip,
            _ => of(service, field) == of(old, field),
        };
        if is_same && let Some(spec) = service["spec"].as_object_mut() {
            spec.remove(field);
        }
    }
}

/// A port keeps the number of the one of its name, unless another of the new ones has it. What is given out twice that way is
/// told by [`repeated_port`], as upstream.
fn carry_ports_over(service: &mut Object, old: &Object) {
    let ports = |service: &Object| service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let name = |port: &Value| port["name"].as_str().unwrap_or_default().to_owned();
    let number = |port: &Value| port["nodePort"].as_i64().filter(|number| *number != 0);
    let kept: HashSet<i64> = ports(service).iter().filter_map(number).collect();
    let by_name: HashMap<String, Option<i64>> =
        ports(old).iter().map(|port| (name(port), number(port))).collect();
    for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
        let before = by_name.get(&name(port)).copied().flatten();
        if number(port).is_none()
            && let Some(before) = before.filter(|before| !kept.contains(before))
        {
            port["nodePort"] = before.into();
        }
    }
}

/// An update that gives two ports one number fails before anything else is looked at.
pub(crate) fn repeated_port(service: &Object) -> Option<Status> {
    let mut seen = HashSet::new();
    if !needs_node_ports(service) {
        return None;
    }
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let mut numbered = ports.filter(|port| port["nodePort"].as_i64().is_some_and(|number| number != 0));
    let repeated = numbered.find(|port| !seen.insert((Protocol::of(port), port["nodePort"].as_i64())))?;
    let protocol = repeated["protocol"].as_str().unwrap_or_default();
    Some(Status::new(500, "", format!("duplicate nodePort: {{{protocol} {}}}", repeated["nodePort"])))
}

/// Whoever knows only one address changes the list of all with it.
fn follow_address(service: &mut Object, old: &Object) {
    let ip = |service: &Object| service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    let ips = |service: &Object| service["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default();
    if ip(service) != ip(old) && ips(service) == ips(old) {
        service["spec"]["clusterIPs"] = match ip(service).as_str() {
            "" => json!([]),
            ip => json!([ip]),
        };
    }
}

/// An update that leaves out what was allocated keeps it, as long as the type still has it.
pub(crate) fn carry_over(service: &mut Object, old: &Object) {
    if service["spec"]["type"] == "ExternalName" {
        if old["spec"]["type"] != "ExternalName" {
            drop_addresses(service, old);
        }
        return;
    }
    if old["spec"]["type"] != "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let unset = match &service["spec"][field] {
                Value::Null => true,
                Value::String(text) => text.is_empty() && field != "ipFamilyPolicy",
                Value::Array(list) => list.is_empty(),
                _ => false,
            };
            if unset && !old["spec"][field].is_null() {
                service["spec"][field] = old["spec"][field].clone();
            }
        }
    }
    follow_address(service, old);
    if !needs_node_ports(service) {
        return;
    }
    if needs_node_ports(old) {
        carry_ports_over(service, old);
    }
    if service["spec"]["healthCheckNodePort"].is_null() && !old["spec"]["healthCheckNodePort"].is_null() {
        service["spec"]["healthCheckNodePort"] = old["spec"]["healthCheckNodePort"].clone();
    }
}

/// The node ports of a Service, whatever their protocol.
pub(super) fn numbers(service: &Object) -> BTreeSet<u16> {
    let ports = held_by(service).into_iter().filter_map(|one| match one {
        Held::Port(port, _) => Some(port),
        Held::Ip(_) => None,
    });
    ports.collect()
}

/// Whether an address belongs to a Service.
pub(super) fn is_of(address: &Object, service: &Object) -> bool {
    let of = &address["spec"]["parentRef"];
    of["group"].as_str().unwrap_or_default().is_empty()
        && of["resource"] == "services"
        && of["namespace"] == service.namespace()
        && of["name"] == service.name()
}

pub(super) fn held_by(service: &Object) -> HashSet<Held> {
    let spec = &service["spec"];
    let mut held = HashSet::new();
    if let Some(ip) = spec["clusterIP"].as_str().and_then(|ip| ip.parse().ok()) {
        held.insert(Held::Ip(ip));
    }
    let number = |value: &Value| value.as_u64().and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0);
    for port in spec["ports"].as_array().into_iter().flatten() {
        held.extend(number(&port["nodePort"]).map(|number| Held::Port(number, Protocol::of(port))));
    }
    held.extend(number(&spec["healthCheckNodePort"]).map(|port| Held::Port(port, Protocol::Tcp)));
    held
}

#[cfg(test)]
mod tests;
