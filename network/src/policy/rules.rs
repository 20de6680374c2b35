//! NetworkPolicies as lists of what they let through. Pure.
//!
//! Source: the API's documentation of `NetworkPolicySpec`, and upstream's tests of network policies.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::selector::Selector;
use crate::proxy::sources::{self, Source, distinct};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As the API writes it; none is TCP.
    pub(crate) fn parse(text: Option<&str>) -> Option<Protocol> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }

    /// As nft writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(crate) const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

/// Pods of some namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Peer {
    pub(crate) namespaces: Namespaces,
    pub(crate) pods: Selector,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Namespaces {
    Only(Arc<str>),
    Selected(Selector),
}

impl Peer {
    pub(crate) fn everyone() -> Peer {
        Peer { namespaces: Namespaces::Selected(Selector::everything()), pods: Selector::everything() }
    }
}

/// The other side of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Who {
    Anyone,
    Pods(Peer),
    /// One of these ranges.
    Ranges(Vec<Source>),
    /// A range but for parts of it.
    RangeBut(Source, Vec<Source>),
}

/// What is asked of the destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum What {
    Anything,
    /// Ranges of ports in order that neither meet nor touch.
    Ports(Protocol, Vec<(u16, u16)>),
    /// Whatever number the destination's pod gives to the name.
    Named(Protocol, Arc<str>),
}

/// One thing that is let through.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Allow {
    pub(crate) who: Who,
    pub(crate) what: What,
}

/// A NetworkPolicy. `None` in a direction: it says nothing about that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) pods: Selector,
    pub(crate) ingress: Option<Vec<Allow>>,
    pub(crate) egress: Option<Vec<Allow>>,
}

impl Policy {
    /// Reads a policy. What cannot be read of it lets nothing through, and is told to `complain`.
    pub(crate) fn of(object: &NetworkPolicy, mut complain: impl FnMut(String)) -> Policy {
        let none = NetworkPolicySpec::default();
        let spec = object.spec.as_ref().unwrap_or(&none);
        let namespace: Arc<str> = object.metadata.namespace.as_deref().unwrap_or_default().into();
        let mut reader = Reader { namespace, complain: &mut complain };
        let pods = match spec.pod_selector.as_ref() {
            None => Selector::everything(),
            // It is about some pods of the namespace, who knows which: those that it is not about are closed as well.
            Some(selector) => Selector::of(selector).unwrap_or_else(|| {
                (reader.complain)("its podSelector cannot be read; it counts for all pods".into());
                Selector::everything()
            }),
        };
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let has_egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        let is_about = |direction: &str, by_default| match types {
            [] => by_default,
            types => types.iter().any(|type_| type_ == direction),
        };
        let ingress = is_about("Ingress", true).then(|| {
            let rules = spec.ingress.iter().flatten();
            allowed(rules.flat_map(|rule| reader.rule(rule.from.as_deref(), rule.ports.as_deref())))
        });
        let egress = is_about("Egress", has_egress).then(|| {
            let rules = spec.egress.iter().flatten();
            allowed(rules.flat_map(|rule| reader.rule(rule.to.as_deref(), rule.ports.as_deref())))
        });
        Policy { pods, ingress, egress }
    }

    pub(crate) fn of_direction(&self, direction: Direction) -> Option<&[Allow]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

fn allowed(allows: impl Iterator<Item = Allow>) -> Vec<Allow> {
    allows.collect::<BTreeSet<_>>().into_iter().collect()
}

struct Reader<'c> {
    namespace: Arc<str>,
    complain: &'c mut dyn FnMut(String),
}

impl Reader<'_> {
    fn rule(
        &mut self,
        peers: Option<&[NetworkPolicyPeer]>,
        ports: Option<&[NetworkPolicyPort]>,
    ) -> Vec<Allow> {
        let peers = match peers {
            None | Some([]) => vec![Who::Anyone],
            Some(peers) => self.peers(peers),
        };
        let ports = match ports {
            None | Some([]) => vec![What::Anything],
            Some(ports) => self.ports(ports),
        };
        let mut allows = Vec::new();
        for who in &peers {
            for what in &ports {
                if matches!((who, what), (Who::Ranges(_) | Who::RangeBut(..), What::Named(..))) {
                    // Nobody knows what an address that is no pod's calls its ports.
                    (self.complain)(
                        "a port with a name together with an ipBlock lets nothing through".into(),
                    );
                    continue;
                }
                allows.push(Allow { who: who.clone(), what: what.clone() });
            }
        }
        allows
    }

    fn peers(&mut self, peers: &[NetworkPolicyPeer]) -> Vec<Who> {
        let (mut found, mut whole) = (Vec::new(), Vec::new());
        for peer in peers {
            match &peer.ip_block {
                Some(block) => {
                    let Some(range) = self.range(&block.cidr) else { continue };
                    let except = block.except.iter().flatten().filter_map(|text| self.range(text));
                    let except = distinct(except.collect());
                    let is_all =
                        |part: &Source| part.prefix() <= range.prefix() && part.contains(range.network());
                    if except.iter().any(is_all) {
                        continue;
                    }
                    let except: Vec<Source> =
                        except.into_iter().filter(|part| range.contains(part.network())).collect();
                    match except.is_empty() {
                        true => whole.push(range),
                        false => found.push(Who::RangeBut(range, except)),
                    }
                }
                None => found.extend(self.pods(peer).map(Who::Pods)),
            }
        }
        if whole.iter().any(|range| range.prefix() == 0) {
            found.push(Who::Anyone);
        } else if !whole.is_empty() {
            found.push(Who::Ranges(distinct(whole)));
        }
        found
    }

    fn pods(&mut self, peer: &NetworkPolicyPeer) -> Option<Peer> {
        let mut read = |selector| {
            let read = Selector::of(selector);
            if read.is_none() {
                (self.complain)("a selector cannot be read; it lets nobody through".into());
            }
            read
        };
        let namespaces = match &peer.namespace_selector {
            Some(selector) => Namespaces::Selected(read(selector)?),
            // Neither: the API refuses that.
            None if peer.pod_selector.is_none() => return None,
            None => Namespaces::Only(self.namespace.clone()),
        };
        let pods = match &peer.pod_selector {
            Some(selector) => read(selector)?,
            None => Selector::everything(),
        };
        Some(Peer { namespaces, pods })
    }

    /// `None` also for IPv6, which no pod has.
    fn range(&mut self, text: &str) -> Option<Source> {
        match sources::parse(text.trim()) {
            Some(range) => range,
            None => {
                (self.complain)(format!("{text:?} is no range of addresses; it lets nobody through"));
                None
            }
        }
    }

    fn ports(&mut self, ports: &[NetworkPolicyPort]) -> Vec<What> {
        let mut found = BTreeSet::new();
        let mut numbers: Vec<(Protocol, (u16, u16))> = Vec::new();
        for port in ports {
            let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else {
                (self.complain)(format!(
                    "the protocol {:?} is none that policies know; it lets nothing through",
                    port.protocol.as_deref().unwrap_or_default()
                ));
                continue;
            };
            match (&port.port, port.end_port) {
                (None, None) => numbers.push((protocol, (0, u16::MAX))),
                (Some(IntOrString::String(name)), None) => {
                    found.insert(What::Named(protocol, name.as_str().into()));
                }
                (Some(IntOrString::Int(first)), last) => {
                    match (u16::try_from(*first), u16::try_from(last.unwrap_or(*first))) {
                        (Ok(first), Ok(last)) if first <= last => numbers.push((protocol, (first, last))),
                        _ => (self.complain)(format!(
                            "{first} to {} are no ports; they let nothing through",
                            last.unwrap_or(*first)
                        )),
                    }
                }
                (None | Some(IntOrString::String(_)), Some(_)) => {
                    (self.complain)(
                        "an endPort needs a port that is a number; it lets nothing through".into(),
                    );
                }
            }
        }
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let ranges = numbers.iter().filter(|(of, _)| *of == protocol).map(|(_, range)| *range);
            let ranges = merged(ranges.collect());
            if !ranges.is_empty() {
                found.insert(What::Ports(protocol, ranges));
            }
        }
        found.into_iter().collect()
    }
}

/// In order, with those that meet or touch made one.
fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut out: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match out.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
            _ => out.push((first, last)),
        }
    }
    out
}

/// Canonical: chains are named after it.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespaces {
            Namespaces::Only(namespace) => write!(f, "in {namespace}")?,
            Namespaces::Selected(selector) => write!(f, "of {}", selector.text())?,
        }
        write!(f, " pods {}", self.pods.text())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    fn check(spec: serde_json::Value, expected: Expect) {
        let object = json!({"metadata": {"name": "p", "namespace": "d"}, "spec": spec});
        let mut complaints = Vec::new();
        let policy = Policy::of(&serde_json::from_value(object).unwrap(), |text| complaints.push(text));
        let mut out = format!("pods {:?}\n", policy.pods);
        for direction in Direction::BOTH {
            let Some(allows) = policy.of_direction(direction) else { continue };
            out += direction.name();
            out.push('\n');
            for Allow { who, what } in allows {
                out += &format!("  {who:?} {what:?}\n");
            }
        }
        complaints.iter().for_each(|text| out += &format!("! {text}\n"));
        expected.assert_eq(&out);
    }

    #[test]
    fn types_follow_from_what_is_there_where_they_are_not_said() {
        check(
            json!({"podSelector": {}}),
            expect![[r#"
            pods {}
            ingress
        "#]],
        );
        check(
            json!({}),
            expect![[r#"
            pods {}
            ingress
        "#]],
        );
        check(
            json!({"podSelector": {}, "egress": []}),
            expect![[r#"
            pods {}
            ingress
        "#]],
        );
        check(
            json!({"podSelector": {"matchLabels": {"a": "b"}}, "egress": [{}]}),
            expect![[r#"
            pods {a In b;}
            ingress
            egress
              Anyone Anything
        "#]],
        );
        check(
            json!({"podSelector": {}, "policyTypes": ["Egress"]}),
            expect![[r#"
            pods {}
            egress
        "#]],
        );
        check(
            json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": [{}]}),
            expect![[r#"
            pods {}
            egress
        "#]],
        );
    }

    #[test]
    fn peers_are_pods_of_the_namespace_of_others_or_addresses() {
        check(
            json!({"podSelector": {}, "ingress": [{"from": [
                {"podSelector": {"matchLabels": {"a": "b"}}},
                {"namespaceSelector": {"matchExpressions": [{"key": "n", "operator": "In", "values": ["y", "x"]}]}},
                {"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": "k", "operator": "Exists"}]}},
                {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.1.2.0/24", "11.0.0.0/8"]}},
                {"ipBlock": {"cidr": "10.9.0.0/16"}},
                {"ipBlock": {"cidr": "10.9.1.0/24"}},
                {"ipBlock": {"cidr": "fd00::/8"}},
            ]}]}),
            expect![[r#"
                pods {}
                ingress
                  Pods(Peer { namespaces: Only("d"), pods: {a In b;} }) Anything
                  Pods(Peer { namespaces: Selected({}), pods: {k Exists ;} }) Anything
                  Pods(Peer { namespaces: Selected({n In x,y;}), pods: {} }) Anything
                  Ranges([Source { network: 10.9.0.0, prefix: 16 }]) Anything
                  RangeBut(Source { network: 10.0.0.0, prefix: 8 }, [Source { network: 10.1.0.0, prefix: 16 }]) Anything
            "#]],
        );
        check(
            json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}, {"from": []}]}),
            expect![[r#"
                pods {}
                ingress
                  Anyone Anything
            "#]],
        );
    }

    #[test]
    fn ports_are_numbers_ranges_names_or_all_of_a_protocol() {
        check(
            json!({"podSelector": {}, "ingress": [{"ports": [
                {"port": 80}, {"port": 81, "endPort": 90, "protocol": "TCP"}, {"port": 85}, {"port": "web"},
                {"port": 53, "protocol": "UDP"}, {"protocol": "SCTP"},
            ]}]}),
            expect![[r#"
                pods {}
                ingress
                  Anyone Ports(Tcp, [(80, 90)])
                  Anyone Ports(Udp, [(53, 53)])
                  Anyone Ports(Sctp, [(0, 65535)])
                  Anyone Named(Tcp, "web")
            "#]],
        );
    }

    #[test]
    fn what_cannot_be_read_lets_nothing_through_and_is_told() {
        check(
            json!({"podSelector": {"matchExpressions": [{"key": "k", "operator": "Near"}]}, "ingress": [
                {"from": [{"podSelector": {"matchExpressions": [{"key": "k", "operator": "Near"}]}}]},
                {"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]},
                {"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": "web"}]},
                {"ports": [{"port": 90, "endPort": 80}, {"port": "web", "endPort": 80}, {"protocol": "IPX"}]},
            ]}),
            expect![[r#"
                pods {}
                ingress
                ! its podSelector cannot be read; it counts for all pods
                ! a selector cannot be read; it lets nobody through
                ! "10.0.0.0" is no range of addresses; it lets nobody through
                ! a port with a name together with an ipBlock lets nothing through
                ! 90 to 80 are no ports; they let nothing through
                ! an endPort needs a port that is a number; it lets nothing through
                ! the protocol "IPX" is none that policies know; it lets nothing through
            "#]],
        );
    }
}
