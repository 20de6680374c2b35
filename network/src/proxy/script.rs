//! From plans to nft scripts. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use super::ProxyConfig;
use super::plan::{Backend, Balanced, Frontend, Plan, Protocol};
use super::sources::Source;
use crate::nft::{Listed, fingerprint};

pub(crate) const TABLE: &str = "ip skiff_proxy";

/// The sets and maps, by name, with their types. `typeof` with `th dport` nft cannot read back, and with `tcp dport` it lets
/// only TCP come to the map: UDP has maps of its own.
const SETS: [(Set, &str, &str); 13] = [
    (Set::Frontends, "map frontends", "type ipv4_addr . inet_proto . inet_service : verdict"),
    (Set::Endpoints, "map endpoints", PICKED),
    (Set::UdpEndpoints, "map udp_endpoints", PICKED_UDP),
    (Set::OnlyEndpoint, "map only_endpoint", TRANSLATED),
    (Set::InsideFrontends, "map inside_frontends", "type ipv4_addr . inet_proto . inet_service : verdict"),
    (Set::InsideEndpoints, "map inside_endpoints", PICKED),
    (Set::InsideUdpEndpoints, "map inside_udp_endpoints", PICKED_UDP),
    (Set::InsideOnlyEndpoint, "map inside_only_endpoint", TRANSLATED),
    (Set::Firewall, "map firewall", "type ipv4_addr . inet_proto . inet_service : verdict"),
    (Set::NoEndpoints, "set no_endpoints", "type ipv4_addr . inet_proto . inet_service"),
    (Set::LocalOnly, "set local_only", "type ipv4_addr . inet_proto . inet_service"),
    (Set::Hairpin, "set hairpin", "type ipv4_addr . ipv4_addr"),
    (Set::Backends, "set backends", "type ipv4_addr . inet_proto . inet_service"),
];
const PICKED: &str =
    "typeof ip daddr . meta l4proto . tcp dport . numgen random mod 2 : ip daddr . tcp dport";
const PICKED_UDP: &str =
    "typeof ip daddr . meta l4proto . udp dport . numgen random mod 2 : ip daddr . udp dport";
const TRANSLATED: &str = "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service";

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Set {
    Frontends,
    Endpoints,
    UdpEndpoints,
    /// Of frontends with one endpoint, which need no choice.
    OnlyEndpoint,
    InsideFrontends,
    InsideEndpoints,
    InsideUdpEndpoints,
    InsideOnlyEndpoint,
    /// Load balancers' addresses that not everyone may use.
    Firewall,
    NoEndpoints,
    LocalOnly,
    Hairpin,
    Backends,
}

impl Set {
    fn name(self) -> &'static str {
        let declared = SETS.iter().find(|(set, ..)| *set == self);
        declared.and_then(|(_, name, _)| name.split(' ').nth(1)).unwrap_or_default()
    }
}

/// The chains that packets come by, with their hooks and rules. Sources are looked at before anything is translated.
fn base_chains(config: &ProxyConfig) -> [(&'static str, &'static str, Vec<String>); 9] {
    let ProxyConfig { cluster_cidr, pod_cidr, .. } = config;
    let key = "ip daddr . meta l4proto . th dport";
    let all = format!("{key} vmap @frontends");
    let inside = format!("{key} vmap @inside_frontends");
    let firewall = format!("ct state new {key} vmap @firewall");
    let jump = || vec!["jump refuse".to_owned()];
    let from_pods = vec![format!("ip saddr {pod_cidr} {inside}"), all.clone()];
    let masquerade = vec![
        "ct status dnat ip saddr . ip daddr @hairpin masquerade".to_owned(),
        format!(
            "ct status dnat ip saddr != {cluster_cidr} ip daddr != {pod_cidr} {key} @backends masquerade"
        ),
    ];
    let refuse = vec![
        format!("{key} @local_only drop"),
        format!("{key} @no_endpoints reject with icmp port-unreachable"),
    ];
    [
        ("refuse", "", refuse),
        ("firewall_prerouting", "type filter hook prerouting priority dstnat - 10;", vec![firewall.clone()]),
        ("firewall_output", "type filter hook output priority -110;", vec![firewall]),
        ("prerouting", "type nat hook prerouting priority dstnat;", from_pods),
        ("output", "type nat hook output priority -100;", vec![inside, all]),
        ("postrouting", "type nat hook postrouting priority srcnat - 5;", masquerade),
        ("input", "type filter hook input priority filter;", jump()),
        ("forward", "type filter hook forward priority filter;", jump()),
        ("local_output", "type filter hook output priority filter;", jump()),
    ]
}

/// Chains and sets of an earlier process that go on being used: with them, clients keep the endpoints they stick to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) chains: BTreeSet<String>,
    pub(crate) sets: BTreeSet<String>,
}

impl Found {
    /// Reads what `nft -j list table` prints; `None` if it is no such thing.
    pub(crate) fn parse(json: &[u8]) -> Option<Found> {
        let Listed { sets, n_rules } = Listed::parse(json)?;
        let of_services = |name: &String| is_dynamic(name);
        Some(Found {
            chains: n_rules.into_keys().filter(of_services).collect(),
            sets: sets.into_iter().filter(of_services).collect(),
        })
    }
}

/// Whether a table that `nft -j list table` prints has all that was written: every set, every chain, and as many rules in each as it
/// should have. Elements are not looked at.
pub(crate) fn stands(config: &ProxyConfig, written: &Elements, json: &[u8]) -> bool {
    let Some(found) = Listed::parse(json) else { return false };
    let has_sets = SETS.iter().all(|(set, ..)| found.sets.contains(set.name()))
        && written.set_names().iter().all(|name| found.sets.contains(name));
    let chains = base_chains(config);
    let base = chains.iter().all(|(name, _, rules)| found.n_rules.get(*name) == Some(&rules.len()));
    let of_services = written.chain_names();
    let dynamic = of_services.iter().all(|name| found.n_rules.get(name).is_some_and(|n_rules| *n_rules > 0));
    has_sets && base && dynamic
}

/// Whether a chain or set is one that comes and goes with Services.
fn is_dynamic(name: &str) -> bool {
    let prefixes = ["endpoints_", "inside_endpoints_", "affinity_", "sticky_", "sources_"];
    prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// The whole table. What stands of it is written anew in place, so that `found` sets keep their elements.
pub(crate) fn whole(config: &ProxyConfig, now: &Elements, found: &Found) -> String {
    let chains = base_chains(config);
    let mut out = format!("table {TABLE} {{\n");
    for (_, name, type_) in SETS {
        let _ = writeln!(out, "  {name} {{\n    {type_}\n  }}");
    }
    for (name, hook, _) in &chains {
        let _ = writeln!(out, "  chain {name} {{ {hook} }}");
    }
    out.push_str("}\n");
    for (_, name, _) in SETS {
        let _ = writeln!(out, "flush {}", name.replacen(' ', &format!(" {TABLE} "), 1));
    }
    for name in chains.iter().map(|(name, ..)| *name).chain(found.chains.iter().map(String::as_str)) {
        let _ = writeln!(out, "flush chain {TABLE} {name}");
    }
    for (name, _, rules) in &chains {
        for rule in rules {
            let _ = writeln!(out, "add rule {TABLE} {name} {rule}");
        }
    }
    out.push_str(&difference(&Elements::default(), now));
    for set in found.sets.difference(&now.set_names()) {
        let _ = writeln!(out, "delete set {TABLE} {set}");
    }
    out
}

pub(crate) fn remove() -> String {
    format!("table {TABLE}\ndelete table {TABLE}\n")
}

/// What must change between two plans, in an order that nft accepts: chains first, then elements taken away, then
/// elements put in. Chains that nothing leads to any more are emptied; before Linux 6.2, they can only be deleted a
/// moment later (see [`delete_chains`]).
pub(crate) fn difference(before: &Elements, now: &Elements) -> String {
    let mut out = String::new();
    for chain in now.chains.difference(&before.chains) {
        chain.add(&mut out);
    }
    for (set, ..) in SETS {
        let gone = before.of_set(set).difference(now.of_set(set));
        let gone: Vec<&str> = gone.map(|e| e.split(" : ").next().unwrap_or(e)).collect();
        elements(&mut out, "delete", set, &gone);
    }
    for (set, ..) in SETS {
        let added = now.of_set(set).difference(before.of_set(set));
        let added: Vec<&str> = added.map(String::as_str).collect();
        elements(&mut out, "add", set, &added);
    }
    let gone: Vec<&Chain> = before.chains.difference(&now.chains).collect();
    for chain in &gone {
        let _ = writeln!(out, "flush chain {TABLE} {}", chain.name());
    }
    for set in gone.iter().filter_map(|chain| chain.set()) {
        let _ = writeln!(out, "delete set {TABLE} {set}");
    }
    out
}

/// Deletes chains that have been emptied before.
pub(crate) fn delete_chains<'n>(names: impl Iterator<Item = &'n str>) -> String {
    names.map(|name| format!("delete chain {TABLE} {name}\n")).collect()
}

fn elements(out: &mut String, verb: &str, set: Set, elements: &[&str]) {
    // A line of bounded length keeps nft's parser quick.
    for some in elements.chunks(500) {
        let _ = writeln!(out, "{verb} element {TABLE} {} {{ {} }}", set.name(), some.join(", "));
    }
}

/// The elements of every set and map, as text, and the chains that maps lead to.
#[derive(Debug, Default)]
pub(crate) struct Elements {
    sets: BTreeMap<Set, BTreeSet<String>>,
    chains: BTreeSet<Chain>,
}

impl std::fmt::Debug for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum View {
    Everyone,
    /// This node and its pods.
    Inside,
}

impl View {
    /// Of frontends, and of frontends with one endpoint.
    fn maps(self) -> (Set, Set) {
        match self {
            View::Everyone => (Set::Frontends, Set::OnlyEndpoint),
            View::Inside => (Set::InsideFrontends, Set::InsideOnlyEndpoint),
        }
    }

    /// Of frontends with several endpoints.
    fn endpoints(self, protocol: Protocol) -> Set {
        match (self, protocol) {
            (View::Everyone, Protocol::Tcp) => Set::Endpoints,
            (View::Everyone, Protocol::Udp) => Set::UdpEndpoints,
            (View::Inside, Protocol::Tcp) => Set::InsideEndpoints,
            (View::Inside, Protocol::Udp) => Set::InsideUdpEndpoints,
        }
    }
}

/// In this order, each leads only to those before it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Chain {
    /// Lets nobody else through.
    Sources(Vec<Source>),
    /// Picks one of so many endpoints at random.
    Random(View, usize),
    /// Remembers the client and leads it to one endpoint.
    Sticky(Affinity, Backend),
    /// Leads clients to the endpoint that remembers them, others to any.
    Affine(Affinity, Vec<Backend>),
}

/// Clients stick to the endpoints of a port of a Service, by whichever address they come.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Affinity {
    service_port: Arc<str>,
    protocol: Protocol,
    timeout_s: u32,
}

impl Elements {
    /// What the rules of a plan are made of.
    pub(crate) fn of(plan: &Plan) -> Elements {
        let mut out = Elements::default();
        for (frontend, service) in &plan.frontends {
            out.add(frontend, service);
        }
        out
    }

    pub(crate) fn chain_names(&self) -> BTreeSet<String> {
        self.chains.iter().map(Chain::name).collect()
    }

    fn set_names(&self) -> BTreeSet<String> {
        self.chains.iter().filter_map(Chain::set).collect()
    }

    fn of_set(&self, set: Set) -> &BTreeSet<String> {
        static NONE: BTreeSet<String> = BTreeSet::new();
        self.sets.get(&set).unwrap_or(&NONE)
    }

    fn insert(&mut self, set: Set, element: String) {
        self.sets.entry(set).or_default().insert(element);
    }

    fn add(&mut self, frontend: &Frontend, service: &Balanced) {
        let key = format!("{} . {} . {}", frontend.ip, frontend.protocol.name(), frontend.port);
        if let Some(sources) = &service.sources {
            let chain = Chain::Sources(sources.clone());
            self.insert(Set::Firewall, format!("{key} : goto {}", chain.name()));
            self.chains.insert(chain);
        }
        if service.backends.is_empty() {
            let refused = if service.drop_if_empty { Set::LocalOnly } else { Set::NoEndpoints };
            self.insert(refused, key.clone());
        }
        self.lead(View::Everyone, &key, frontend, service, &service.backends);
        if let Some(inside) = &service.inside {
            self.lead(View::Inside, &key, frontend, service, inside);
        }
    }

    /// Leads a frontend to backends, of which there may be none.
    fn lead(&mut self, view: View, key: &str, frontend: &Frontend, service: &Balanced, backends: &[Backend]) {
        for backend in backends {
            self.insert(Set::Hairpin, format!("{} . {}", backend.ip, backend.ip));
            let protocol = frontend.protocol.name();
            self.insert(Set::Backends, format!("{} . {protocol} . {}", backend.ip, backend.port));
        }
        let (frontends, only_endpoint) = view.maps();
        let endpoints = view.endpoints(frontend.protocol);
        let chain = match (backends, service.affinity_s) {
            ([], _) => return,
            (_, Some(timeout_s)) => {
                let service_port = service.service_port.clone();
                let affinity = Affinity { service_port, protocol: frontend.protocol, timeout_s };
                self.chains.extend(backends.iter().map(|b| Chain::Sticky(affinity.clone(), *b)));
                Chain::Affine(affinity, backends.to_vec())
            }
            ([backend], None) => {
                self.insert(only_endpoint, format!("{key} : {} . {}", backend.ip, backend.port));
                Chain::Random(view, 1)
            }
            (backends, None) => {
                for (at, backend) in backends.iter().enumerate() {
                    self.insert(endpoints, format!("{key} . {at} : {} . {}", backend.ip, backend.port));
                }
                Chain::Random(view, backends.len())
            }
        };
        self.insert(frontends, format!("{key} : goto {}", chain.name()));
        self.chains.insert(chain);
    }
}

impl Chain {
    /// A name that says what is in the chain, so that another content is another chain.
    fn name(&self) -> String {
        match self {
            Chain::Sources(sources) => {
                let text: Vec<String> = sources.iter().map(Source::to_string).collect();
                format!("sources_{}", fingerprint(&text.join(" ")))
            }
            Chain::Random(View::Everyone, count) => format!("endpoints_{count}"),
            Chain::Random(View::Inside, count) => format!("inside_endpoints_{count}"),
            Chain::Sticky(affinity, backend) => {
                format!("sticky_{}", fingerprint(&affinity.text(&[*backend])))
            }
            Chain::Affine(affinity, backends) => {
                format!("affinity_{}", fingerprint(&affinity.text(backends)))
            }
        }
    }

    /// The set that belongs to the chain.
    fn set(&self) -> Option<String> {
        matches!(self, Chain::Sticky(..)).then(|| format!("{}_clients", self.name()))
    }

    fn add(&self, out: &mut String) {
        let name = self.name();
        let _ = writeln!(out, "add chain {TABLE} {name}");
        match self {
            Chain::Sources(sources) => {
                let sources: Vec<String> = sources.iter().map(Source::to_string).collect();
                let _ =
                    writeln!(out, "add rule {TABLE} {name} ip saddr != {{ {} }} drop", sources.join(", "));
            }
            Chain::Random(view, count) => {
                let (_, only_endpoint) = view.maps();
                let of = |protocol| {
                    format!(". numgen random mod {count} map @{}", view.endpoints(protocol).name())
                };
                let maps = match count {
                    1 => vec![format!("map @{}", only_endpoint.name())],
                    _ => vec![of(Protocol::Tcp), of(Protocol::Udp)],
                };
                for map in maps {
                    let _ = writeln!(
                        out,
                        "add rule {TABLE} {name} dnat ip to ip daddr . meta l4proto . th dport {map}"
                    );
                }
            }
            Chain::Sticky(Affinity { protocol, timeout_s, .. }, Backend { ip, port }) => {
                let set = format!("{name}_clients");
                let type_ = format!("type ipv4_addr; flags dynamic,timeout; timeout {timeout_s}s;");
                let _ = writeln!(out, "add set {TABLE} {set} {{ {type_} }}");
                let _ = writeln!(
                    out,
                    "add rule {TABLE} {name} update @{set} {{ ip saddr }} meta l4proto {} dnat ip to {ip}:{port}",
                    protocol.name()
                );
            }
            Chain::Affine(affinity, backends) => {
                let sticky = backends.iter().map(|b| Chain::Sticky(affinity.clone(), *b).name());
                let sticky: Vec<String> = sticky.collect();
                for to in &sticky {
                    let _ = writeln!(out, "add rule {TABLE} {name} ip saddr @{to}_clients goto {to}");
                }
                let picks: Vec<String> =
                    sticky.iter().enumerate().map(|(at, to)| format!("{at} : goto {to}")).collect();
                let _ = writeln!(
                    out,
                    "add rule {TABLE} {name} numgen random mod {} vmap {{ {} }}",
                    sticky.len(),
                    picks.join(", ")
                );
            }
        }
    }
}

impl Affinity {
    fn text(&self, backends: &[Backend]) -> String {
        let mut out = format!("{} {} {}", self.service_port, self.protocol.name(), self.timeout_s);
        for Backend { ip, port } in backends {
            let _ = write!(out, " {ip}:{port}");
        }
        out
    }
}

#[cfg(test)]
mod tests;
