//! The way to the pods of other nodes.
//!
//! ```text
//!  on this segment:  10.42.1.0/24 via 192.0.2.7 dev eth0                 as any router has it
//!  elsewhere:        10.42.2.0/24 via 10.42.2.0 dev skiff-vxlan onlink   in VXLAN, to the node's address
//! ```
//!
//! Each node is asked for on its own: one that shares this node's segment needs no tunnel, whatever the others do. What
//! goes into a tunnel loses 50 bytes of each packet to its headers: the device's MTU says so to the pods, and TCP is told
//! when it connects.
//!
//! # Guarantees
//! - What others do to links and routes is undone: a pass comes when the kernel tells of a change, and every ten seconds. A
//!   link that goes down takes the routes over it with it, and does not bring them back.
//! - A pass reads what the kernel has and changes only the routes, neighbours and devices that differ; the few nft rules are
//!   replaced in one transaction. Packets on their way to other nodes notice nothing.
//! - A node's range is believed only within the cluster's, and only while no earlier node has it.
//! - VXLAN is taken from the cluster's nodes only. It is neither encrypted nor signed: who can send with a node's
//!   address can send to pods.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use rtnetlink::Handle;
use skiff_client::{Informer, Informers, WorkQueue};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::changes::Changes;
use crate::ipam::{IpamError, Range};
use crate::nft::{self, NftError};
use plan::{Peer, Plan};

pub(crate) mod kernel;
#[cfg(test)]
mod kernel_tests;
pub(crate) mod plan;

/// What routes must know of this node and its cluster.
#[derive(Clone, Debug)]
pub struct PeersConfig {
    pub node_name: String,
    /// The address that other nodes send to, on an interface of this node.
    pub node_ip: Ipv4Addr,
    /// This node's pod range.
    pub pod_cidr: String,
    pub cluster_cidr: String,
    /// The tunnel's device, at most 15 characters.
    pub vxlan_device: String,
    pub vxlan_port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    #[error("cannot {action}")]
    Netlink { action: String, source: rtnetlink::Error },
    #[error("cannot open a netlink socket")]
    Socket(#[source] std::io::Error),
    #[error("no interface of this machine has the node's address {0}; give another --node-ip")]
    NoUplink(Ipv4Addr),
    #[error("the interface {0:?} has vanished")]
    NoLink(String),
    #[error(transparent)]
    Range(#[from] IpamError),
    #[error(transparent)]
    Nft(#[from] NftError),
}

/// The interface that a node's address is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub index: u32,
    pub mtu: u32,
    /// Who is in it is reached without a router.
    pub(crate) segment: plan::Segment,
}

impl Uplink {
    /// Looks up the interface that holds an address.
    pub async fn of(node_ip: Ipv4Addr) -> Result<Uplink, PeersError> {
        kernel::uplink(&kernel::open()?, node_ip).await
    }
}

/// Keeps the routes to other nodes' pods. See the module's documentation.
pub struct PeerRoutes {
    config: PeersConfig,
    /// The node's address of the moment, where it may become another.
    node_ip: Option<watch::Receiver<Ipv4Addr>>,
    nodes: Informer<Node>,
    queue: WorkQueue<()>,
}

/// Changes that come within this time of each other share a pass.
const GATHER: Duration = Duration::from_millis(5);
pub(crate) const TABLE: &str = "skiff_peers";

impl PeerRoutes {
    pub fn new(config: PeersConfig, informers: &Informers) -> PeerRoutes {
        let nodes = informers.of::<Node>();
        let queue = WorkQueue::default();
        let wake = queue.clone();
        nodes.on_change(move |change| {
            // Nodes report every few seconds; what matters here hardly ever changes.
            let old = change.old.as_deref().and_then(plan::facts);
            if old != change.new.as_deref().and_then(plan::facts) {
                wake.add_after((), GATHER);
            }
        });
        PeerRoutes { config, node_ip: None, nodes, queue }
    }

    /// Follows an address that may change.
    #[must_use]
    pub fn following(mut self, node_ip: watch::Receiver<Ipv4Addr>) -> PeerRoutes {
        self.node_ip = Some(node_ip);
        self
    }

    /// Runs until `shutdown`. The routes stay, so that pods go on meeting while a new process starts.
    pub async fn run(self, shutdown: CancellationToken) {
        let PeerRoutes { config, node_ip, nodes, queue } = self;
        tokio::select! {
            () = nodes.synced() => {}
            () = shutdown.cancelled() => return,
        }
        tokio::select! {
            // It never ends by itself; a pass that is dropped half-way is begun again by the next process.
            () = keep(config, node_ip, || nodes.list(), queue) => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Removes routes, tunnel and rules. For the end of a node, not for a restart.
    pub async fn remove(vxlan_device: &str) -> Result<(), PeersError> {
        let handle = kernel::open()?;
        kernel::set_routes(&handle, &[]).await?;
        kernel::remove_device(&handle, vxlan_device).await?;
        Ok(nft::apply(&remove_rules()).await?)
    }
}

/// Brings the kernel to what the nodes say, again and again.
pub(crate) async fn keep(
    mut config: PeersConfig,
    mut node_ip: Option<watch::Receiver<Ipv4Addr>>,
    nodes: impl Fn() -> Vec<Arc<Node>>,
    queue: WorkQueue<()>,
) {
    let (mut complaints, mut changes) = (Vec::new(), Changes::listen());
    queue.add(());
    loop {
        tokio::select! {
            // Cancel-safe: see `WorkQueue::get` and `Changes::next`.
            key = queue.get() => if key.is_none() { return },
            () = changes.next() => {
                queue.add(());
                continue;
            }
            () = moved(&mut node_ip) => {
                queue.add(());
                continue;
            }
        }
        if let Some(node_ip) = &mut node_ip {
            config.node_ip = *node_ip.borrow_and_update();
        }
        let result = apply(&config, &nodes(), &mut complaints).await;
        queue.done(&());
        match result {
            Ok(()) => queue.forget(&()),
            Err(error) => {
                let error = error_chain(&error);
                warn!(error, "the routes to other nodes' pods are not right; trying again");
                queue.retry(());
            }
        }
    }
}

/// Returns when the address may have changed; never where it cannot. Cancel-safe: what was not returned is seen again.
pub(crate) async fn moved(node_ip: &mut Option<watch::Receiver<Ipv4Addr>>) {
    let changed = match node_ip {
        Some(node_ip) => node_ip.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// One pass: brings the kernel to what the nodes say. `complaints` holds what has been said already.
pub(crate) async fn apply(
    config: &PeersConfig,
    nodes: &[Arc<Node>],
    complaints: &mut Vec<String>,
) -> Result<(), PeersError> {
    let handle = kernel::open()?;
    if nodes.iter().all(|n| n.metadata.name.as_deref() == Some(&config.node_name)) {
        // A node alone needs no interface but its bridge.
        kernel::set_routes(&handle, &[]).await?;
        return remove_tunnel(config, &handle).await;
    }
    let uplink = kernel::uplink(&handle, config.node_ip).await?;
    let plan = plan::plan(config, uplink.segment, nodes)?;
    for complaint in plan.complaints.iter().filter(|c| !complaints.contains(c)) {
        warn!("{complaint}");
    }
    complaints.clone_from(&plan.complaints);
    execute(config, &handle, uplink, &plan).await
}

async fn remove_tunnel(config: &PeersConfig, handle: &Handle) -> Result<(), PeersError> {
    if kernel::remove_device(handle, &config.vxlan_device).await? {
        nft::apply(&remove_rules()).await?;
    }
    Ok(())
}

fn remove_rules() -> String {
    // Made first, so that it is there to be deleted.
    format!("table ip {TABLE}\ndelete table ip {TABLE}\n")
}

async fn execute(
    config: &PeersConfig,
    handle: &Handle,
    uplink: Uplink,
    plan: &Plan,
) -> Result<(), PeersError> {
    let own = Range::parse(&config.pod_cidr)?;
    let tunnelled: Vec<Peer> = plan.peers.iter().copied().filter(|p| p.is_tunnelled).collect();
    let device = if tunnelled.is_empty() {
        remove_tunnel(config, handle).await?;
        None
    } else {
        // Before anything can be received.
        nft::apply(&plan::rules(config, &tunnelled)).await?;
        let device = kernel::make_device(handle, config, uplink, own).await?;
        kernel::set_neighbours(handle, device, &tunnelled).await?;
        Some(device)
    };
    let routes = plan::routes(&plan.peers, uplink.index, device, own.gateway());
    if kernel::set_routes(handle, &routes).await? {
        info!(
            n_direct = plan.peers.len() - tunnelled.len(),
            n_tunnelled = tunnelled.len(),
            "routes to other nodes"
        );
    }
    Ok(())
}
