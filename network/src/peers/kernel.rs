//! Interfaces, routes and neighbours, as the kernel has them and as they should be.

use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::{Handle, LinkUnspec, LinkVxlan, RouteMessageBuilder};

use super::plan::{PROTOCOL, Peer, Segment, tunnel_address, tunnel_mac};
use super::{PeersConfig, PeersError, Uplink};
use crate::ipam::Range;
use crate::pod::{errno, exists_is_fine, gone_is_fine};

/// The one network of the tunnel.
const VNI: u32 = 1;
/// Ethernet, VXLAN, UDP and IPv4 headers around each packet.
const TUNNEL_OVERHEAD: u32 = 50;

fn failed(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> PeersError {
    let action = action.into();
    move |source| PeersError::Netlink { action, source }
}

/// A netlink socket in the namespace of the calling thread.
pub(crate) fn open() -> Result<Handle, PeersError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(PeersError::Socket)?;
    tokio::spawn(connection);
    Ok(handle)
}

pub(crate) async fn uplink(handle: &Handle, node_ip: Ipv4Addr) -> Result<Uplink, PeersError> {
    let mut addresses = handle.address().get().set_address_filter(IpAddr::V4(node_ip)).execute();
    while let Some(found) = addresses.try_next().await.map_err(failed("list this machine's addresses"))? {
        let is_it = |a: &AddressAttribute| matches!(a, AddressAttribute::Local(ip) | AddressAttribute::Address(ip) if *ip == IpAddr::V4(node_ip));
        if !found.attributes.iter().any(is_it) {
            continue;
        }
        let index = found.header.index;
        let mut links = handle.link().get().match_index(index).execute();
        let link = links.try_next().await.map_err(failed(format!("look up interface {index}")))?;
        let mtu = link.iter().flat_map(|l| &l.attributes).find_map(|a| match a {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        let Some(mtu) = mtu else { continue };
        let segment = Segment { address: node_ip, prefix: found.header.prefix_len };
        return Ok(Uplink { index, mtu, segment });
    }
    Err(PeersError::NoUplink(node_ip))
}

async fn device_index(handle: &Handle, name: &str) -> Result<Option<u32>, PeersError> {
    match handle.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(link) => Ok(link.map(|l| l.header.index)),
        Err(error) if errno(&error) == libc::ENODEV => Ok(None),
        Err(error) => Err(failed(format!("look up {name}"))(error)),
    }
}

/// Answers whether there was one.
pub(crate) async fn remove_device(handle: &Handle, name: &str) -> Result<bool, PeersError> {
    let Some(index) = device_index(handle, name).await? else { return Ok(false) };
    let deleted = handle.link().del(index).execute().await;
    gone_is_fine(deleted).map_err(failed(format!("delete {name}")))?;
    Ok(true)
}

/// The tunnel's device, made if it is not there. One that was made for another address is made anew.
pub(crate) async fn make_device(
    handle: &Handle,
    config: &PeersConfig,
    uplink: Uplink,
    own: Range,
) -> Result<u32, PeersError> {
    let name = config.vxlan_device.as_str();
    let mtu = uplink.mtu.saturating_sub(TUNNEL_OVERHEAD);
    let build = || {
        LinkVxlan::new(name, VNI)
            .dev(uplink.index)
            .local(config.node_ip)
            .port(config.vxlan_port)
            .learning(false)
            .mtu(mtu)
            .address(tunnel_mac(own).to_vec())
            .up()
            .build()
    };
    let mut made = handle.link().add(build()).execute().await;
    if made.is_err() && device_index(handle, name).await?.is_some() {
        if is_for(handle, name, config, uplink).await? {
            made = Ok(());
        } else {
            remove_device(handle, name).await?;
            made = handle.link().add(build()).execute().await;
        }
    }
    exists_is_fine(made).map_err(failed(format!("make the tunnel {name}")))?;
    let index = device_index(handle, name).await?.ok_or_else(|| PeersError::NoLink(name.into()))?;
    if is_up(handle, name, mtu, &tunnel_mac(own)).await? {
        return Ok(index);
    }
    let set = LinkUnspec::new_with_index(index).mtu(mtu).address(tunnel_mac(own).to_vec()).up().build();
    handle.link().set(set).execute().await.map_err(failed(format!("bring {name} up")))?;
    Ok(index)
}

/// Whether a device is as it should be: to set it once more would be a change, and the reason for the next pass.
async fn is_up(handle: &Handle, name: &str, mtu: u32, mac: &[u8]) -> Result<bool, PeersError> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await.map_err(failed(format!("look up {name}")))?;
    Ok(link.is_some_and(|link| {
        link.header.flags.contains(LinkFlags::Up)
            && link.attributes.contains(&LinkAttribute::Mtu(mtu))
            && link.attributes.contains(&LinkAttribute::Address(mac.to_vec()))
    }))
}

/// Whether the device is a tunnel from this node's address.
async fn is_for(
    handle: &Handle,
    name: &str,
    config: &PeersConfig,
    uplink: Uplink,
) -> Result<bool, PeersError> {
    use netlink_packet_route::link::{InfoData, InfoVxlan, LinkInfo};
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await.map_err(failed(format!("look up {name}")))?;
    let infos = link.iter().flat_map(|l| &l.attributes).filter_map(|a| match a {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let vxlan: Vec<&InfoVxlan> = infos
        .flatten()
        .filter_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
            _ => None,
        })
        .flatten()
        .collect();
    let has = |wanted: &InfoVxlan| vxlan.contains(&wanted);
    Ok(has(&InfoVxlan::Id(VNI))
        && has(&InfoVxlan::Link(uplink.index))
        && has(&InfoVxlan::Local(config.node_ip))
        && has(&InfoVxlan::Port(config.vxlan_port)))
}

/// Where a tunnel's packets go: the node behind a hardware address, and the hardware address behind a tunnel address.
pub(crate) async fn set_neighbours(handle: &Handle, device: u32, peers: &[Peer]) -> Result<(), PeersError> {
    let listing = || failed("list the tunnel's neighbours");
    let mut found: Vec<NeighbourMessage> = Vec::new();
    for (family, flags) in
        [(AddressFamily::Inet, NeighbourFlags::empty()), (AddressFamily::Bridge, NeighbourFlags::Own)]
    {
        let all = handle.neighbours().get().set_address_family(family).execute();
        let all: Vec<NeighbourMessage> = all.try_collect().await.map_err(listing())?;
        let ours = |n: &NeighbourMessage| n.header.ifindex == device && n.header.flags.contains(flags);
        found.extend(all.into_iter().filter(ours));
    }
    for stale in found.into_iter().filter(|n| !peers.iter().any(|p| is_of(n, *p))) {
        let deleted = handle.neighbours().del(stale).execute().await;
        gone_is_fine(deleted).map_err(failed("delete a neighbour of the tunnel"))?;
    }
    for peer in peers {
        let (mac, action) = (tunnel_mac(peer.pods), format!("tell the tunnel of node {}", peer.node));
        let forwarding = handle
            .neighbours()
            .add_bridge(device, &mac)
            .destination(peer.node.into())
            .flags(NeighbourFlags::Own)
            .state(NeighbourState::Permanent)
            .replace();
        forwarding.execute().await.map_err(failed(action.clone()))?;
        let address = IpAddr::V4(tunnel_address(peer.pods));
        let resolved = handle.neighbours().add(device, address).link_layer_address(&mac).replace();
        resolved.execute().await.map_err(failed(action))?;
    }
    Ok(())
}

/// Whether an entry is one that the peer's is about to have; others of its addresses are in its way.
fn is_of(entry: &NeighbourMessage, peer: Peer) -> bool {
    let mac = tunnel_mac(peer.pods);
    let has_mac = |a: &NeighbourAttribute| matches!(a, NeighbourAttribute::LinkLayerAddress(m) if *m == mac);
    let leads = |to: Ipv4Addr| move |a: &NeighbourAttribute| matches!(a, NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) if *ip == to);
    let to = match entry.header.family {
        AddressFamily::Bridge => peer.node,
        _ => tunnel_address(peer.pods),
    };
    entry.attributes.iter().any(has_mac) && entry.attributes.iter().any(leads(to))
}

/// Brings the cluster's routes to the wanted ones. Answers whether any changed.
pub(crate) async fn set_routes(handle: &Handle, wanted: &[RouteMessage]) -> Result<bool, PeersError> {
    let any = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let all: Vec<RouteMessage> =
        handle.route().get(any).execute().try_collect().await.map_err(failed("list the routes"))?;
    let ours: Vec<RouteMessage> = all.into_iter().filter(|r| r.header.protocol == PROTOCOL).collect();
    let mut has_changed = false;
    for route in wanted.iter().filter(|w| !ours.iter().any(|o| facts(o) == facts(w))) {
        let added = handle.route().add(route.clone()).replace().execute().await;
        added.map_err(failed(format!("add a route to {:?}", facts(route).destination)))?;
        has_changed = true;
    }
    // Those to the same destination have just been replaced.
    let is_wanted = |r: &RouteMessage| wanted.iter().any(|w| facts(w).destination == facts(r).destination);
    for route in ours.into_iter().filter(|r| !is_wanted(r)) {
        let action = format!("delete the route to {:?}", facts(&route).destination);
        let deleted = handle.route().del(route).execute().await;
        gone_is_fine(deleted).map_err(failed(action))?;
        has_changed = true;
    }
    Ok(has_changed)
}

/// What tells two routes apart.
#[derive(Debug, PartialEq)]
struct RouteFacts<'r> {
    destination: (u8, Option<&'r RouteAttribute>),
    gateway: Option<&'r RouteAttribute>,
    interface: Option<&'r RouteAttribute>,
}

fn facts(route: &RouteMessage) -> RouteFacts<'_> {
    let find = |is: fn(&RouteAttribute) -> bool| route.attributes.iter().find(|a| is(a));
    RouteFacts {
        destination: (
            route.header.destination_prefix_length,
            find(|a| matches!(a, RouteAttribute::Destination(_))),
        ),
        gateway: find(|a| matches!(a, RouteAttribute::Gateway(_))),
        interface: find(|a| matches!(a, RouteAttribute::Oif(_))),
    }
}
