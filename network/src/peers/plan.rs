//! Which nodes there are, and how their pods are reached: a function of the nodes' objects.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::RouteMessageBuilder;

use super::{PeersConfig, TABLE};
use crate::ipam::{IpamError, Range};

/// The addresses that are reached without a router. Unlike a [`Range`], it may be of any size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
}

impl Segment {
    pub(crate) fn contains(self, other: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        self.address.to_bits() & mask == other.to_bits() & mask
    }
}

/// Another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) pods: Range,
    pub(crate) node: Ipv4Addr,
    /// Whether there is a router between.
    pub(crate) is_tunnelled: bool,
}

/// The tunnel's end at a node: its address follows from the node's range, so that nobody has to tell it.
pub(crate) fn tunnel_address(pods: Range) -> Ipv4Addr {
    pods.network
}

/// Locally administered, and not a pod's.
pub(crate) fn tunnel_mac(pods: Range) -> [u8; 6] {
    let [a, b, c, d] = pods.network.octets();
    [0x0a, 0x59, a, b, c, d]
}

#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// By range.
    pub(crate) peers: Vec<Peer>,
    pub(crate) complaints: Vec<String>,
}

/// What of a node matters here: its pods' range and its address, if it has both.
pub(crate) fn facts(node: &Node) -> Option<(&str, &str)> {
    let pods = node.spec.as_ref()?.pod_cidr.as_deref()?;
    let addresses = node.status.as_ref()?.addresses.iter().flatten();
    let internal = addresses.filter(|a| a.type_ == "InternalIP").map(|a| a.address.as_str());
    let ip = internal.into_iter().find(|a| a.parse::<Ipv4Addr>().is_ok())?;
    Some((pods, ip))
}

pub(crate) fn plan(config: &PeersConfig, segment: Segment, nodes: &[Arc<Node>]) -> Result<Plan, IpamError> {
    let own = Range::parse(&config.pod_cidr)?;
    let cluster = Range::parse(&config.cluster_cidr)?;
    let mut plan = Plan::default();
    let mut others: Vec<&Arc<Node>> =
        nodes.iter().filter(|n| n.metadata.name.as_deref() != Some(&config.node_name)).collect();
    // Of two that claim a range, the older has it.
    others.sort_by_key(|n| (n.metadata.creation_timestamp.as_ref().map(|t| t.0), n.metadata.name.clone()));
    for node in others {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let Some((pods, ip)) = facts(node) else { continue };
        let Ok(ip) = ip.parse::<Ipv4Addr>() else { continue };
        match fault(Range::parse(pods), ip, own, cluster, config.node_ip, &plan.peers) {
            Err(why) => {
                plan.complaints.push(format!("the pods of node {name} ({pods} at {ip}) get no route: {why}"))
            }
            Ok(pods) => plan.peers.push(Peer { pods, node: ip, is_tunnelled: !segment.contains(ip) }),
        }
    }
    plan.peers.sort_by_key(|p| p.pods.network);
    Ok(plan)
}

fn fault(
    pods: Result<Range, IpamError>,
    ip: Ipv4Addr,
    own: Range,
    cluster: Range,
    node_ip: Ipv4Addr,
    peers: &[Peer],
) -> Result<Range, String> {
    let pods = pods.map_err(|e| e.to_string())?;
    let overlap = |a: Range, b: Range| a.contains(b.network) || b.contains(a.network);
    if !(cluster.contains(pods.network) && pods.prefix >= cluster.prefix) {
        return Err("the range is not within the cluster's".into());
    }
    if overlap(pods, own) {
        return Err("this node has the range".into());
    }
    if let Some(other) = peers.iter().find(|p| overlap(p.pods, pods)) {
        return Err(format!("the node at {} has the range", other.node));
    }
    let is_usable = !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast());
    if !is_usable || ip == node_ip || cluster.contains(ip) {
        return Err("the address cannot be another node's".into());
    }
    Ok(pods)
}

/// Routes of this protocol are the cluster's, and nobody else's: the number is none of those in `rt_protos`.
pub(crate) const PROTOCOL: RouteProtocol = RouteProtocol::Other(83);

pub(crate) fn routes(
    peers: &[Peer],
    uplink: u32,
    device: Option<u32>,
    source: Ipv4Addr,
) -> Vec<RouteMessage> {
    let route = |peer: &Peer| {
        let builder = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(peer.pods.network, peer.pods.prefix)
            .protocol(PROTOCOL)
            .scope(RouteScope::Universe);
        match device.filter(|_| peer.is_tunnelled) {
            // What the node itself sends comes from the pods' gateway: its own address is no one's behind the tunnel.
            Some(device) => builder
                .gateway(tunnel_address(peer.pods))
                .output_interface(device)
                .pref_source(source)
                .onlink()
                .build(),
            None => builder.gateway(peer.node).output_interface(uplink).build(),
        }
    };
    peers.iter().map(route).collect()
}

/// TCP through the tunnel is told of its MTU; VXLAN from anybody but nodes is dropped.
pub(crate) fn rules(config: &PeersConfig, tunnelled: &[Peer]) -> String {
    let PeersConfig { vxlan_device: device, vxlan_port: port, .. } = config;
    let mut out = format!(
        "table ip {TABLE} {{
  set nodes {{ type ipv4_addr; }}
  chain forward {{ type filter hook forward priority mangle; }}
  chain output {{ type filter hook output priority mangle; }}
  chain input {{ type filter hook input priority filter; }}
}}
flush set ip {TABLE} nodes
flush chain ip {TABLE} forward
flush chain ip {TABLE} output
flush chain ip {TABLE} input
add rule ip {TABLE} forward oifname {device} tcp flags syn tcp option maxseg size set rt mtu
add rule ip {TABLE} output oifname {device} tcp flags syn tcp option maxseg size set rt mtu
add rule ip {TABLE} input udp dport {port} ip saddr != @nodes drop
"
    );
    for peer in tunnelled {
        let _infallible = writeln!(out, "add element ip {TABLE} nodes {{ {} }}", peer.node);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config() -> PeersConfig {
        PeersConfig {
            node_name: "a".into(),
            node_ip: Ipv4Addr::new(192, 0, 2, 1),
            pod_cidr: "10.42.0.0/24".into(),
            cluster_cidr: "10.42.0.0/16".into(),
            vxlan_device: "skiff-vxlan".into(),
            vxlan_port: 4789,
        }
    }

    const SEGMENT: Segment = Segment { address: Ipv4Addr::new(192, 0, 2, 1), prefix: 24 };

    fn node(name: &str, pods: &str, ip: &str) -> Arc<Node> {
        let node = json!({
            "metadata": {"name": name, "creationTimestamp": "2030-01-01T00:00:00Z"},
            "spec": {"podCIDR": pods},
            "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip}]},
        });
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn planned(nodes: &[Arc<Node>]) -> Plan {
        plan(&config(), SEGMENT, nodes).unwrap()
    }

    #[test]
    fn a_node_on_the_segment_is_routed_to_and_one_behind_a_router_tunnelled_to() {
        let plan = planned(&[
            node("a", "10.42.0.0/24", "192.0.2.1"),
            node("c", "10.42.2.0/24", "198.51.100.3"),
            node("b", "10.42.1.0/24", "192.0.2.2"),
        ]);
        let ways: Vec<_> = plan.peers.iter().map(|p| (p.pods.to_string(), p.node, p.is_tunnelled)).collect();
        let (b, c) = (Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(198, 51, 100, 3));
        assert_eq!(ways, [("10.42.1.0/24".into(), b, false), ("10.42.2.0/24".into(), c, true)]);
        assert!(plan.complaints.is_empty());
    }

    #[test]
    fn a_node_cannot_draw_to_itself_what_is_not_its_pods() {
        for (what, pods, ip) in [
            ("the whole internet", "0.0.0.0/8", "192.0.2.9"),
            ("the whole cluster", "10.42.0.0/15", "192.0.2.9"),
            ("another cluster", "10.44.0.0/24", "192.0.2.9"),
            ("this node's pods", "10.42.0.0/25", "192.0.2.9"),
            ("another node's pods", "10.42.1.0/25", "192.0.2.9"),
            ("nonsense", "pods", "192.0.2.9"),
            ("a pod as the node", "10.42.9.0/24", "10.42.9.9"),
            ("this node", "10.42.9.0/24", "192.0.2.1"),
            ("loopback", "10.42.9.0/24", "127.0.0.1"),
        ] {
            let plan = planned(&[node("b", "10.42.1.0/24", "192.0.2.2"), node("evil", pods, ip)]);
            assert_eq!(plan.peers.len(), 1, "{what}");
            assert_eq!(plan.complaints.len(), 1, "{what}");
        }
        let waits = planned(&[node("new", "", "192.0.2.9")]);
        assert!(waits.peers.is_empty());
    }

    #[test]
    fn the_older_of_two_nodes_keeps_a_range() {
        let mut young = (*node("b", "10.42.1.0/24", "192.0.2.3")).clone();
        young.metadata.creation_timestamp =
            Some(serde_json::from_value(json!("2031-01-01T00:00:00Z")).unwrap());
        let plan = planned(&[Arc::new(young), node("c", "10.42.1.0/24", "192.0.2.2")]);
        assert_eq!(plan.peers[0].node, Ipv4Addr::new(192, 0, 2, 2));
        assert_eq!(plan.peers.len(), 1);
    }

    #[test]
    fn segments_of_any_size_know_their_own() {
        let at = |prefix| Segment { address: Ipv4Addr::new(192, 0, 2, 1), prefix };
        assert!(at(0).contains(Ipv4Addr::new(8, 8, 8, 8)));
        assert!(at(31).contains(Ipv4Addr::new(192, 0, 2, 0)));
        assert!(at(32).contains(Ipv4Addr::new(192, 0, 2, 1)));
        assert!(!at(32).contains(Ipv4Addr::new(192, 0, 2, 0)));
    }
}
