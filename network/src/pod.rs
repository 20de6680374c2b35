//! The network of this node's pods.
//!
//! ```text
//!  pod: eth0 10.42.0.7/32 ─ veth ─ bridge skiff0 10.42.0.1 ─ routed ─ other pods, Services, uplink
//! ```
//!
//! A pod's address has a /32 mask and its default route leads to the bridge: even two pods on one bridge talk
//! through the node's routing, where connection tracking undoes a Service's translation on the way back, without
//! `br_netfilter`.
//!
//! # Guarantees
//! - `attach` and `detach` may be repeated, and finish what an interrupted call began.
//! - A host port leads to the one sandbox that has it; another is refused it, and takes nothing away when it goes.
//! - What no route claims of the pod and service ranges is unreachable; other nodes' ranges leave by the uplink, to those
//!   nodes only (`peers`).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use netlink_packet_route::route::{RouteScope, RouteType};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::changes::LOOK_EVERY;
use crate::conntrack;
use crate::generation::generation;
use crate::ipam::Range;
use crate::netns::{self, NetnsError};
use crate::nft::{self, NftError};
use crate::policy::{LocalPods, NotJudged, PodIdentity};
use crate::{HostPort, Ipam, IpamError};

#[derive(Clone, Debug)]
pub struct PodNetworkConfig {
    /// The bridge's name, at most 15 characters.
    pub bridge: String,
    /// This node's pod range, `10.42.0.0/24`.
    pub pod_cidr: String,
    /// The whole cluster's pod range: what no node claims of it is unreachable.
    pub cluster_cidr: String,
    pub service_cidr: String,
    pub mtu: u32,
    /// Where address records lie.
    pub state_directory: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum PodNetworkError {
    #[error("cannot {action}")]
    Netlink { action: String, source: rtnetlink::Error },
    #[error("cannot open a netlink socket")]
    Socket(#[source] std::io::Error),
    #[error("cannot set {path} to {value}")]
    Sysctl { path: String, value: &'static str, source: std::io::Error },
    #[error("the interface {0:?} has vanished")]
    NoLink(String),
    #[error(transparent)]
    Ipam(#[from] IpamError),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Nft(#[from] NftError),
    #[error(transparent)]
    NotJudged(#[from] NotJudged),
}

/// See the module's documentation.
pub struct PodNetwork {
    config: PodNetworkConfig,
    ipam: Ipam,
    handle: Handle,
    /// Another once somebody has deleted the bridge, and it was made anew.
    bridge_index: AtomicU32,
    mtu: AtomicU32,
    /// What all ports of the bridge are set to.
    bridged: parking_lot::Mutex<Bridged>,
    /// Held from a look at all open host ports until nft has them: a later change must not be undone by an earlier
    /// one that nft takes later.
    rules: tokio::sync::Mutex<Written>,
}

/// When the rules were looked at last, and how many transactions of nft there had been by then.
struct Written {
    at: Instant,
    generation: Option<u32>,
}

impl Written {
    fn now() -> Written {
        Written { at: Instant::now(), generation: generation().ok() }
    }

    /// Whether somebody may have changed rules since, and it is time to look.
    fn is_doubtful(&self, look_every: Duration) -> bool {
        self.at.elapsed() >= look_every && (self.generation.is_none() || self.generation != generation().ok())
    }
}

/// What becomes of a packet that the bridge itself would lead from one pod to another, past the node's routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bridged {
    /// It is dropped: no rule for IP would see it.
    Isolated,
    /// Rules for IP see it, as other software has asked for. What they have translated goes this way.
    Judged,
}

impl Bridged {
    fn of_this_machine() -> Bridged {
        match std::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables") {
            Ok(text) if text.trim() != "0" => Bridged::Judged,
            _ => Bridged::Isolated,
        }
    }
}

/// The table of the pods' own rules.
const TABLE: &str = "skiff_pods";

impl PodNetwork {
    /// Makes the bridge, its routes and the address translation for traffic that leaves the cluster.
    pub async fn open(config: PodNetworkConfig) -> Result<PodNetwork, PodNetworkError> {
        let ipam = Ipam::open(Range::parse(&config.pod_cidr)?, &config.state_directory)?;
        let (connection, handle, _) = rtnetlink::new_connection().map_err(PodNetworkError::Socket)?;
        tokio::spawn(connection);
        sysctl("net/ipv4/ip_forward", "1")?;
        let bridge_index = make_bridge(&handle, &config, ipam.range(), config.mtu).await?;
        // Pods on one bridge reach each other through the router on purpose.
        sysctl(&format!("net/ipv4/conf/{}/send_redirects", config.bridge), "0")?;
        sysctl("net/ipv4/conf/all/send_redirects", "0")?;
        let ports = ipam.open_ports(None);
        for cidr in [&config.cluster_cidr, &config.service_cidr] {
            add_unreachable(&handle, Range::parse(cidr)?).await?;
        }
        add_service_route(&handle, &config, bridge_index, ipam.range()).await?;
        nft::apply(&rules(&config, &ports)).await?;
        allow_loopback_ports(&config, ports.iter().map(|(port, _)| port))?;
        let rules = tokio::sync::Mutex::new(Written::now());
        let (mtu, bridge_index) = (AtomicU32::new(config.mtu), AtomicU32::new(bridge_index));
        let bridged = parking_lot::Mutex::new(Bridged::of_this_machine());
        let network = PodNetwork { config, ipam, handle, bridge_index, mtu, bridged, rules };
        // Those of an earlier process, which may have set them up otherwise.
        for name in network.ipam.sandboxes().iter().map(|sandbox_id| veth_name(sandbox_id)) {
            if let Some(index) = link_index(&network.handle, &name).await? {
                network.set_port(&name, index).await?;
            }
        }
        Ok(network)
    }

    /// The largest packet from now on, of pods that come. Those that are there learn it from the node, packet by packet.
    pub fn set_mtu(&self, mtu: u32) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Makes right what others did to the bridge, to its ports and to the routes: a link that was taken down and brought up has
    /// lost its routes. Changes nothing of these where all is right, so that it does not tell itself of a change. Rules that others may have
    /// flushed are written anew.
    pub async fn mend(&self) -> Result<(), PodNetworkError> {
        use netlink_packet_route::link::{LinkAttribute, LinkFlags};
        let (range, mtu) = (self.ipam.range(), self.mtu.load(Ordering::Relaxed));
        let links: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(netlink(|| "list this machine's links".into()))?;
        let named = |name: &str| {
            let wanted = LinkAttribute::IfName(name.to_owned());
            links.iter().find(|link| link.attributes.contains(&wanted))
        };
        let is_right = |bridge: &&netlink_packet_route::link::LinkMessage| {
            bridge.header.flags.contains(LinkFlags::Up)
                && bridge.attributes.contains(&LinkAttribute::Mtu(mtu))
        };
        let index = match named(&self.config.bridge).filter(is_right) {
            Some(bridge) => bridge.header.index,
            None => {
                tracing::info!(bridge = self.config.bridge, "bringing the pods' bridge back");
                make_bridge(&self.handle, &self.config, range, mtu).await?
            }
        };
        self.bridge_index.store(index, Ordering::Relaxed);
        let bridged = Bridged::of_this_machine();
        let are_set = *self.bridged.lock() == bridged;
        for sandbox_id in self.ipam.sandboxes() {
            let name = veth_name(&sandbox_id);
            let Some(link) = named(&name) else { continue };
            let is_port = link.attributes.contains(&LinkAttribute::Controller(index));
            if is_port && link.header.flags.contains(LinkFlags::Up) {
                if !are_set {
                    self.set_port(&name, link.header.index).await?;
                }
                continue;
            }
            let port = LinkUnspec::new_with_index(link.header.index).controller(index).up().build();
            let set = self.handle.link().set(port).execute().await;
            gone_is_fine(set).map_err(netlink(|| format!("attach {name} to the bridge")))?;
            self.set_port(&name, link.header.index).await?;
        }
        *self.bridged.lock() = bridged;
        for cidr in [&self.config.cluster_cidr, &self.config.service_cidr] {
            add_unreachable(&self.handle, Range::parse(cidr)?).await?;
        }
        let added = self.handle.address().add(index, range.gateway().into(), range.prefix).execute().await;
        let bridge = &self.config.bridge;
        exists_is_fine(added)
            .map_err(netlink(|| format!("give {bridge} the address {}", range.gateway())))?;
        add_service_route(&self.handle, &self.config, index, range).await?;
        self.mend_rules(LOOK_EVERY).await
    }

    pub(crate) async fn mend_rules(&self, look_every: Duration) -> Result<(), PodNetworkError> {
        let mut written = self.rules.lock().await;
        if written.is_doubtful(look_every) {
            nft::apply(&rules(&self.config, &self.ipam.open_ports(None))).await?;
            *written = Written::now();
        }
        Ok(())
    }

    /// As [`PodNetwork::attach`], once the rules of network policies stand for the pod.
    pub async fn attach_judged(
        &self,
        policies: &LocalPods,
        pod: PodIdentity,
        sandbox_id: &str,
        netns: &Path,
        host_ports: &[HostPort],
    ) -> Result<Ipv4Addr, PodNetworkError> {
        let address = self.ipam.allocate(sandbox_id, host_ports)?;
        policies.admit(sandbox_id, address, pod).await?;
        // What was let through to who had the address before is not for this one.
        let is_its = move |flow: &conntrack::Flow| [flow.to.ip(), flow.answered_by.ip()].contains(&&address);
        if let Err(error) = conntrack::forget_udp(is_its).await {
            tracing::warn!(%error, %address, "UDP flows of the pod that had an address before were not forgotten");
        }
        self.attach(sandbox_id, netns, host_ports).await
    }

    /// The address that a sandbox has or will have.
    #[cfg(test)]
    pub(crate) fn reserve(&self, sandbox_id: &str) -> Result<Ipv4Addr, PodNetworkError> {
        Ok(self.ipam.allocate(sandbox_id, &[])?)
    }

    /// Gives a sandbox's namespace an interface and an address, and opens its host ports. Answers the address.
    pub async fn attach(
        &self,
        sandbox_id: &str,
        netns: &Path,
        host_ports: &[HostPort],
    ) -> Result<Ipv4Addr, PodNetworkError> {
        let address = self.ipam.allocate(sandbox_id, host_ports)?;
        let inside = in_namespace(netns).await?;
        self.make_veth(sandbox_id, netns, address, &inside).await?;
        configure_inside(&inside, address, self.ipam.range().gateway(), self.mtu.load(Ordering::Relaxed))
            .await?;
        wait_until_up(&self.handle, &veth_name(sandbox_id)).await?;
        if !host_ports.is_empty() {
            let mut written = self.rules.lock().await;
            nft::apply(&rules(&self.config, &self.ipam.open_ports(None))).await?;
            *written = Written::now();
            // Only when the rules stand that keep pods from it.
            allow_loopback_ports(&self.config, host_ports)?;
            forget_flows(host_ports, move |flow| flow.answered_by == flow.to).await;
        }
        Ok(address)
    }

    /// Takes the interface, the address and the host ports that `attach` recorded away.
    pub async fn detach(&self, sandbox_id: &str) -> Result<(), PodNetworkError> {
        let name = veth_name(sandbox_id);
        if let Some(index) = link_index(&self.handle, &name).await? {
            self.delete_link(&name, index).await?;
        }
        let host_ports = self.ipam.host_ports(sandbox_id);
        // Until the ports are nobody's: an attach meanwhile would open them again.
        let _changing = self.rules.lock().await;
        if let Some(address) = self.ipam.get(sandbox_id)
            && !host_ports.is_empty()
        {
            nft::apply(&rules(&self.config, &self.ipam.open_ports(Some(sandbox_id)))).await?;
            forget_flows(&host_ports, move |flow| *flow.answered_by.ip() == address).await;
        }
        Ok(self.ipam.release(sandbox_id)?)
    }

    async fn delete_link(&self, name: &str, index: u32) -> Result<(), PodNetworkError> {
        let deleted = self.handle.link().del(index).execute().await;
        gone_is_fine(deleted).map_err(netlink(|| format!("delete {name}")))
    }

    pub fn address(&self, sandbox_id: &str) -> Option<Ipv4Addr> {
        self.ipam.get(sandbox_id)
    }

    /// The bridge's own address, the pods' gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        self.ipam.range().gateway()
    }

    /// Sandboxes that hold an address, for a check against those that exist.
    pub fn sandboxes(&self) -> Vec<String> {
        self.ipam.sandboxes()
    }

    /// Removes the bridge, the routes and the rules. For the end of a node, not for a restart.
    pub async fn close(&self) -> Result<(), PodNetworkError> {
        nft::apply(&format!("table ip {TABLE}\ndelete table ip {TABLE}\n")).await?;
        let deleted = self.handle.link().del(self.bridge_index.load(Ordering::Relaxed)).execute().await;
        gone_is_fine(deleted).map_err(netlink(|| format!("delete {}", self.config.bridge)))?;
        for cidr in [&self.config.cluster_cidr, &self.config.service_cidr] {
            let route = unreachable_route(Range::parse(cidr)?);
            let deleted = self.handle.route().del(route).execute().await;
            gone_is_fine(deleted).map_err(netlink(|| format!("delete the route of {cidr}")))?;
        }
        Ok(())
    }

    /// Makes the pair with one end in the pod already, so that the pod's `eth0` never shows up on the node.
    async fn make_veth(
        &self,
        sandbox_id: &str,
        netns: &Path,
        address: Ipv4Addr,
        inside: &Handle,
    ) -> Result<(), PodNetworkError> {
        use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute};
        use std::os::fd::AsRawFd as _;
        let name = veth_name(sandbox_id);
        if let Some(index) = link_index(&self.handle, &name).await? {
            if link_index(inside, "eth0").await?.is_some() {
                return self.set_port(&name, index).await;
            }
            // Its other end is in a namespace that this one has replaced, and that something still holds.
            self.delete_link(&name, index).await?;
        }
        let namespace = std::fs::File::open(netns).map_err(|source| NetnsError::Io {
            action: "open",
            path: netns.into(),
            source,
        })?;
        let peer = LinkUnspec::new_with_name("eth0")
            .mtu(self.mtu.load(Ordering::Relaxed))
            .address(hardware_address(address))
            .append_extra_attribute(LinkAttribute::NetNsFd(namespace.as_raw_fd()))
            .build();
        let veth = LinkVeth::new(&name, "eth0")
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .mtu(self.mtu.load(Ordering::Relaxed))
            .controller(self.bridge_index.load(Ordering::Relaxed))
            .up()
            .build();
        let made = self.handle.link().add(veth).execute().await;
        made.map_err(netlink(|| format!("make the veth pair {name}")))?;
        let index =
            link_index(&self.handle, &name).await?.ok_or_else(|| PodNetworkError::NoLink(name.clone()))?;
        self.set_port(&name, index).await
    }

    /// For a pod that meets itself behind a Service: where other software has turned on `bridge-nf-call-iptables`, the
    /// translated packet goes back out of the port it came in by. Where not, nothing of a pod's goes to another's port: by ARP or by
    /// IPv6's own addresses of the link, pods would meet past all rules.
    async fn set_port(&self, name: &str, index: u32) -> Result<(), PodNetworkError> {
        let is_isolated = Bridged::of_this_machine() == Bridged::Isolated;
        let port = LinkBridgePort::new(index).hairpin(true).isolated(is_isolated).build();
        let set = self.handle.link().set_port(port).execute().await;
        gone_is_fine(set).map_err(netlink(|| format!("set up {name} as a port of the bridge")))
    }
}

/// Unique per sandbox and short enough for an interface's name.
fn veth_name(sandbox_id: &str) -> String {
    format!("veth{}", sandbox_id.chars().take(11).collect::<String>())
}

fn netlink(action: impl Fn() -> String) -> impl Fn(rtnetlink::Error) -> PodNetworkError {
    move |source| PodNetworkError::Netlink { action: action(), source }
}

pub(crate) fn errno(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.raw_code().abs(),
        _ => 0,
    }
}

pub(crate) fn exists_is_fine(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if errno(&error) == libc::EEXIST => Ok(()),
        other => other,
    }
}

pub(crate) fn gone_is_fine(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if [libc::ENODEV, libc::ESRCH, libc::ENOENT].contains(&errno(&error)) => Ok(()),
        other => other,
    }
}

async fn link_index(handle: &Handle, name: &str) -> Result<Option<u32>, PodNetworkError> {
    match handle.link().get().match_name(name).execute().try_next().await {
        Ok(link) => Ok(link.map(|l| l.header.index)),
        Err(error) if errno(&error) == libc::ENODEV => Ok(None),
        Err(source) => Err(PodNetworkError::Netlink { action: format!("look up {name}"), source }),
    }
}

/// Waits until the bridge forwards to an interface, which is a moment after its other end has come up. The first
/// packet would be lost before that, and whoever sent it waits a second before the next.
async fn wait_until_up(handle: &Handle, name: &str) -> Result<(), PodNetworkError> {
    use netlink_packet_route::link::{LinkAttribute, State};
    const LOOKS: u32 = 200;
    const BETWEEN_LOOKS: Duration = Duration::from_millis(5);
    for _ in 0..LOOKS {
        let link = handle.link().get().match_name(name).execute().try_next().await;
        let link = link.map_err(netlink(|| format!("look up {name}")))?;
        let link = link.ok_or_else(|| PodNetworkError::NoLink(name.into()))?;
        if link.attributes.contains(&LinkAttribute::OperState(State::Up)) {
            return Ok(());
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    // The pod works all the same once the kernel gets to it.
    tracing::warn!(interface = name, "an interface does not come up");
    Ok(())
}

/// Follows from the address, so that what the node and the pods know of a neighbour also holds for the next one to
/// have the address. Locally administered, as CNI plugins make it.
fn hardware_address(ip: Ipv4Addr) -> Vec<u8> {
    [&[0x0a, 0x58], &ip.octets()[..]].concat()
}

async fn make_bridge(
    handle: &Handle,
    config: &PodNetworkConfig,
    range: Range,
    mtu: u32,
) -> Result<u32, PodNetworkError> {
    let name = config.bridge.as_str();
    let bridge = LinkBridge::new(name).mtu(mtu).up().build();
    let made = handle.link().add(bridge).execute().await;
    exists_is_fine(made).map_err(netlink(|| format!("make the bridge {name}")))?;
    let index = link_index(handle, name).await?.ok_or_else(|| PodNetworkError::NoLink(name.into()))?;
    // Left to itself, a bridge takes the lowest address of its ports and so another one whenever a pod comes or goes;
    // the other pods would send to the old one until they ask again.
    let hardware_address = hardware_address(range.gateway());
    let set = LinkUnspec::new_with_index(index).address(hardware_address).mtu(mtu).up().build();
    let up = handle.link().set(set).execute().await;
    up.map_err(netlink(|| format!("bring {name} up")))?;
    let added = handle.address().add(index, range.gateway().into(), range.prefix).execute().await;
    exists_is_fine(added).map_err(netlink(|| format!("give {name} the address {}", range.gateway())))?;
    Ok(index)
}

/// Lower than any route a person would add, so that it only catches what nothing else does.
const UNREACHABLE_PRIORITY: u32 = 4_294_967;

fn unreachable_route(range: Range) -> netlink_packet_route::route::RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(range.network, range.prefix)
        .kind(RouteType::Unreachable)
        .priority(UNREACHABLE_PRIORITY)
        .build()
}

async fn add_unreachable(handle: &Handle, range: Range) -> Result<(), PodNetworkError> {
    let added = handle.route().add(unreachable_route(range)).execute().await;
    exists_is_fine(added).map_err(netlink(|| format!("add an unreachable route for {range}")))
}

/// The node's own connections to Services are routed before they are translated, so the service range needs a route
/// that leads somewhere; the bridge is somewhere that never leaves the node. The pods' gateway becomes their source,
/// which every pod can answer.
async fn add_service_route(
    handle: &Handle,
    config: &PodNetworkConfig,
    bridge_index: u32,
    pods: Range,
) -> Result<(), PodNetworkError> {
    let services = Range::parse(&config.service_cidr)?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(services.network, services.prefix)
        .output_interface(bridge_index)
        .pref_source(pods.gateway())
        .scope(RouteScope::Link)
        .build();
    let added = handle.route().add(route).execute().await;
    exists_is_fine(added).map_err(netlink(|| format!("add a route for {services}")))
}

/// A netlink handle whose socket lives in another namespace.
async fn in_namespace(netns: &Path) -> Result<Handle, PodNetworkError> {
    let runtime = tokio::runtime::Handle::current();
    let path = netns.to_owned();
    let opened = tokio::task::spawn_blocking(move || {
        netns::within(&path, move || {
            let _guard = runtime.enter();
            rtnetlink::new_connection()
        })
    })
    .await
    .map_err(|_| NetnsError::Thread { path: netns.into() })??;
    let (connection, handle, _) = opened.map_err(PodNetworkError::Socket)?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn configure_inside(
    handle: &Handle,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    mtu: u32,
) -> Result<(), PodNetworkError> {
    for name in ["lo", "eth0"] {
        let index = link_index(handle, name).await?.ok_or_else(|| PodNetworkError::NoLink(name.into()))?;
        let mut link = LinkUnspec::new_with_index(index).up();
        if name == "eth0" {
            link = link.mtu(mtu);
        }
        let up = handle.link().set(link.build()).execute().await;
        up.map_err(netlink(|| format!("bring the pod's {name} up")))?;
        if name == "eth0" {
            let added = handle.address().add(index, address.into(), 32).execute().await;
            exists_is_fine(added).map_err(netlink(|| format!("give the pod the address {address}")))?;
            let to_gateway = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(gateway, 32)
                .output_interface(index)
                .scope(RouteScope::Link)
                .build();
            let default =
                RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).build();
            for route in [to_gateway, default] {
                let added = handle.route().add(route).execute().await;
                exists_is_fine(added).map_err(netlink(|| format!("route the pod through {gateway}")))?;
            }
        }
    }
    Ok(())
}

fn sysctl(name: &str, value: &'static str) -> Result<(), PodNetworkError> {
    let path = format!("/proc/sys/{name}");
    let current = std::fs::read_to_string(&path).unwrap_or_default();
    if current.trim() == value {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|source| PodNetworkError::Sysctl { path, value, source })
}

/// What the node asks a pod from loopback comes back to loopback, over the bridge: nothing that the kernel lets in
/// unasked. That no pod gets to the node's loopback by it is for the rules.
fn allow_loopback_ports<'p>(
    config: &PodNetworkConfig,
    ports: impl IntoIterator<Item = &'p HostPort>,
) -> Result<(), PodNetworkError> {
    if ports.into_iter().any(|port| port.host_ip.is_some_and(|ip| ip.is_loopback())) {
        sysctl(&format!("net/ipv4/conf/{}/route_localnet", config.bridge), "1")?;
    }
    Ok(())
}

/// Forgets UDP flows over host ports that have changed hands: a client that goes on sending would go on meeting
/// whoever answered before. Without it, flows end by their own time-out.
async fn forget_flows(ports: &[HostPort], stale: impl Fn(&conntrack::Flow) -> bool + Send + 'static) {
    let udp: Vec<u16> = ports.iter().filter(|p| p.protocol == "udp").map(|p| p.host_port).collect();
    if udp.is_empty() {
        return;
    }
    let forgotten = conntrack::forget_udp(move |flow| udp.contains(&flow.to.port()) && stale(flow)).await;
    if let Err(error) = forgotten {
        tracing::warn!(%error, "UDP flows over host ports were not forgotten");
    }
}

/// Pods leave the cluster with the node's address; host ports lead to pods. Running it again replaces everything, so
/// that it also mends what others have flushed.
fn rules(config: &PodNetworkConfig, host_ports: &[(HostPort, Ipv4Addr)]) -> String {
    let PodNetworkConfig { pod_cidr, cluster_cidr, service_cidr, .. } = config;
    // No Service has claimed the address, or it would have been translated by now. The node's own connections end
    // on the bridge, where nobody answers.
    let refuse_unclaimed = format!("ip daddr {service_cidr} reject with icmp host-unreachable");
    // The cluster's DNS address is the node's as well, and no pod's to take.
    let to_host_port = format!(
        "ip daddr != {service_cidr} fib daddr type local dnat ip to meta l4proto . th dport map @host_ports"
    );
    let to_host_port_at = "dnat ip to ip daddr . meta l4proto . th dport map @host_ports_at";
    let bridge = format!("{:?}", config.bridge);
    let mut out = format!(
        "table ip {TABLE} {{
  map host_ports {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map host_ports_at {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  set hairpin {{ type ipv4_addr . ipv4_addr; }}
  chain loopback {{ type filter hook prerouting priority raw; }}
  chain prerouting {{ type nat hook prerouting priority dstnat - 5; }}
  chain output {{ type nat hook output priority -105; }}
  chain postrouting {{ type nat hook postrouting priority srcnat; }}
  chain unclaimed_forward {{ type filter hook forward priority filter + 10; }}
}}
flush map ip {TABLE} host_ports
flush map ip {TABLE} host_ports_at
flush chain ip {TABLE} loopback
add rule ip {TABLE} loopback iifname {bridge} ip daddr 127.0.0.0/8 drop
add rule ip {TABLE} loopback iifname {bridge} ip saddr 127.0.0.0/8 drop
flush set ip {TABLE} hairpin
flush chain ip {TABLE} unclaimed_forward
add rule ip {TABLE} unclaimed_forward {refuse_unclaimed}
flush chain ip {TABLE} prerouting
flush chain ip {TABLE} output
flush chain ip {TABLE} postrouting
add rule ip {TABLE} prerouting {to_host_port_at}
add rule ip {TABLE} prerouting {to_host_port}
add rule ip {TABLE} output {to_host_port_at}
add rule ip {TABLE} output ip daddr != 127.0.0.0/8 {to_host_port}
add rule ip {TABLE} postrouting ct status dnat ip saddr . ip daddr @hairpin masquerade
add rule ip {TABLE} postrouting oifname {bridge} ip saddr 127.0.0.0/8 masquerade
add rule ip {TABLE} postrouting ip saddr {pod_cidr} ip daddr != {{ {cluster_cidr}, {service_cidr}, 224.0.0.0/4 }} masquerade
"
    );
    for (port, ip) in host_ports {
        let HostPort { protocol, host_ip, host_port, container_port } = port;
        let (map, at) = match host_ip {
            Some(host_ip) => ("host_ports_at", format!("{host_ip} . ")),
            None => ("host_ports", String::new()),
        };
        out.push_str(&format!(
            "add element ip {TABLE} {map} {{ {at}{protocol} . {host_port} : {ip} . {container_port} }}\n"
        ));
    }
    // A pod that meets itself would answer itself past the translation.
    for ip in host_ports.iter().map(|(_, ip)| ip).collect::<BTreeSet<_>>() {
        out.push_str(&format!("add element ip {TABLE} hairpin {{ {ip} . {ip} }}\n"));
    }
    out
}
