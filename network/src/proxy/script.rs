//! From plans to nft scripts. Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::ProxyConfig;
use super::plan::{Backend, Balanced, Frontend, Plan};

const TABLE: &str = "ip skiff_proxy";

/// The whole table, in place of whatever stands.
pub(crate) fn whole(config: &ProxyConfig, plan: &Plan) -> String {
    let ProxyConfig { cluster_cidr, pod_cidr, .. } = config;
    let mut out = format!(
        "table {TABLE}
delete table {TABLE}
table {TABLE} {{
  map frontends {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
  map endpoints {{
    typeof ip daddr . meta l4proto . tcp dport . numgen random mod 2 : ip daddr . tcp dport
  }}
  map only_endpoint {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  set no_endpoints {{ type ipv4_addr . inet_proto . inet_service; }}
  set local_only {{ type ipv4_addr . inet_proto . inet_service; }}
  set hairpin {{ type ipv4_addr . ipv4_addr; }}
  set external {{ type ipv4_addr; }}
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    ip daddr . meta l4proto . th dport vmap @frontends
  }}
  chain output {{
    type nat hook output priority -100;
    ip daddr . meta l4proto . th dport vmap @frontends
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat - 5;
    ct status dnat ip saddr . ip daddr @hairpin masquerade
    ct status dnat ip saddr != {cluster_cidr} ip daddr != {pod_cidr} ct original ip daddr @external masquerade
  }}
  chain refuse {{
    ip daddr . meta l4proto . th dport @local_only drop
    ip daddr . meta l4proto . th dport @no_endpoints reject with icmp port-unreachable
  }}
  chain input {{ type filter hook input priority filter; jump refuse; }}
  chain forward {{ type filter hook forward priority filter; jump refuse; }}
  chain local_output {{ type filter hook output priority filter; jump refuse; }}
}}
"
    );
    out.push_str(&difference(&Plan::default(), plan));
    out
}

pub(crate) fn remove() -> String {
    format!("table {TABLE}\ndelete table {TABLE}\n")
}

/// What must change between two plans, in an order that nft accepts: chains first, then elements taken away, then
/// elements put in, then chains that nothing leads to any more.
pub(crate) fn difference(before: &Plan, now: &Plan) -> String {
    let (had, has) = (Elements::of(before), Elements::of(now));
    let mut out = String::new();
    for chain in has.chains.difference(&had.chains) {
        chain.add(&mut out);
    }
    for (set, old, new) in had.sets(&has) {
        let gone: Vec<&str> = old.difference(new).map(|e| e.split(" : ").next().unwrap_or(e)).collect();
        elements(&mut out, "delete", set, &gone);
    }
    for (set, old, new) in had.sets(&has) {
        let added: Vec<&str> = new.difference(old).map(String::as_str).collect();
        elements(&mut out, "add", set, &added);
    }
    for chain in had.chains.difference(&has.chains) {
        chain.delete(&mut out);
    }
    out
}

fn elements(out: &mut String, verb: &str, set: &str, elements: &[&str]) {
    // A line of bounded length keeps nft's parser quick.
    for some in elements.chunks(500) {
        let _ = writeln!(out, "{verb} element {TABLE} {set} {{ {} }}", some.join(", "));
    }
}

/// The elements of every set and map, as text, and the chains that maps lead to.
#[derive(Default)]
struct Elements {
    frontends: BTreeSet<String>,
    endpoints: BTreeSet<String>,
    /// Of frontends with one endpoint, which need no choice.
    only_endpoint: BTreeSet<String>,
    no_endpoints: BTreeSet<String>,
    local_only: BTreeSet<String>,
    hairpin: BTreeSet<String>,
    external: BTreeSet<String>,
    chains: BTreeSet<Chain>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Chain {
    /// Picks one of so many endpoints at random.
    Random(usize),
    /// Picks as [`Chain::Random`], but keeps a client at its endpoint. One a frontend.
    Affine { frontend: Frontend, backends: Vec<Backend>, timeout_s: u32 },
}

impl Elements {
    fn of(plan: &Plan) -> Elements {
        let mut out = Elements::default();
        for (frontend, service) in &plan.frontends {
            out.add(frontend, service);
        }
        out
    }

    fn add(&mut self, frontend: &Frontend, service: &Balanced) {
        let key = key(frontend);
        if service.external {
            self.external.insert(frontend.ip.to_string());
        }
        for backend in &service.backends {
            self.hairpin.insert(format!("{} . {}", backend.ip, backend.ip));
        }
        match (service.backends.len(), service.affinity_s) {
            (0, _) if service.drop_if_empty => {
                self.local_only.insert(key);
            }
            (0, _) => {
                self.no_endpoints.insert(key);
            }
            (_, Some(timeout_s)) => {
                let chain =
                    Chain::Affine { frontend: *frontend, backends: service.backends.clone(), timeout_s };
                self.frontends.insert(format!("{key} : goto {}", chain.name()));
                self.chains.insert(chain);
            }
            (count, None) => {
                let chain = Chain::Random(count);
                self.frontends.insert(format!("{key} : goto {}", chain.name()));
                self.chains.insert(chain);
                if let [backend] = service.backends.as_slice() {
                    self.only_endpoint.insert(format!("{key} : {} . {}", backend.ip, backend.port));
                    return;
                }
                for (at, backend) in service.backends.iter().enumerate() {
                    self.endpoints.insert(format!("{key} . {at} : {} . {}", backend.ip, backend.port));
                }
            }
        }
    }

    /// Each set's name with its elements here and in `other`.
    fn sets<'e>(
        &'e self,
        other: &'e Elements,
    ) -> [(&'static str, &'e BTreeSet<String>, &'e BTreeSet<String>); 7] {
        [
            ("frontends", &self.frontends, &other.frontends),
            ("endpoints", &self.endpoints, &other.endpoints),
            ("only_endpoint", &self.only_endpoint, &other.only_endpoint),
            ("no_endpoints", &self.no_endpoints, &other.no_endpoints),
            ("local_only", &self.local_only, &other.local_only),
            ("hairpin", &self.hairpin, &other.hairpin),
            ("external", &self.external, &other.external),
        ]
    }
}

fn key(frontend: &Frontend) -> String {
    format!("{} . {} . {}", frontend.ip, frontend.protocol.name(), frontend.port)
}

impl Chain {
    /// A name that says what is in the chain, so that another content is another chain.
    fn name(&self) -> String {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        match self {
            Chain::Random(count) => format!("endpoints_{count}"),
            Chain::Affine { frontend, backends, timeout_s } => {
                let mut hasher = DefaultHasher::new();
                (frontend, backends, timeout_s).hash(&mut hasher);
                format!("affinity_{:016x}", hasher.finish())
            }
        }
    }

    fn add(&self, out: &mut String) {
        let name = self.name();
        match self {
            Chain::Random(1) => {
                let _ = writeln!(out, "add chain {TABLE} {name}");
                let rule = "dnat ip to ip daddr . meta l4proto . th dport map @only_endpoint";
                let _ = writeln!(out, "add rule {TABLE} {name} {rule}");
            }
            Chain::Random(count) => {
                let _ = writeln!(out, "add chain {TABLE} {name}");
                let _ = writeln!(
                    out,
                    "add rule {TABLE} {name} dnat ip to ip daddr . meta l4proto . th dport . numgen random mod \
                     {count} map @endpoints"
                );
            }
            Chain::Affine { frontend, backends, timeout_s } => {
                let protocol = frontend.protocol.name();
                let _ = writeln!(out, "add chain {TABLE} {name}");
                for (at, backend) in backends.iter().enumerate() {
                    let (ip, port) = (backend.ip, backend.port);
                    let flags = format!("type ipv4_addr; flags dynamic,timeout; timeout {timeout_s}s;");
                    let _ = writeln!(out, "add set {TABLE} {name}_{at} {{ {flags} }}");
                    let _ = writeln!(out, "add chain {TABLE} {name}_to_{at}");
                    let _ = writeln!(
                        out,
                        "add rule {TABLE} {name}_to_{at} update @{name}_{at} {{ ip saddr }} meta l4proto {protocol} \
                         dnat ip to {ip}:{port}"
                    );
                    let _ =
                        writeln!(out, "add rule {TABLE} {name} ip saddr @{name}_{at} goto {name}_to_{at}");
                }
                let picks: Vec<String> =
                    (0..backends.len()).map(|at| format!("{at} : goto {name}_to_{at}")).collect();
                let _ = writeln!(
                    out,
                    "add rule {TABLE} {name} numgen random mod {} vmap {{ {} }}",
                    backends.len(),
                    picks.join(", ")
                );
            }
        }
    }

    fn delete(&self, out: &mut String) {
        let name = self.name();
        let _ = writeln!(out, "flush chain {TABLE} {name}");
        let _ = writeln!(out, "delete chain {TABLE} {name}");
        if let Chain::Affine { backends, .. } = self {
            for at in 0..backends.len() {
                let _ = writeln!(out, "flush chain {TABLE} {name}_to_{at}");
                let _ = writeln!(out, "delete chain {TABLE} {name}_to_{at}");
                let _ = writeln!(out, "delete set {TABLE} {name}_{at}");
            }
        }
    }
}

#[cfg(test)]
mod tests;
