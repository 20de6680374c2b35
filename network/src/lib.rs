//! A node's network.
//!
//! - [`PodNetwork`]: a bridge, a veth pair and an address for each pod, and the routes that keep what nobody claims of the
//!   pod and service ranges from leaving.
//! - [`PeerRoutes`]: the way to other nodes' pods, by route or by tunnel.
//! - [`ServiceProxy`]: Services and their endpoints as nftables maps, changed element by element; who gets in, who
//!   sticks to which endpoint, whose address and port it is.
//! - [`PolicyEnforcer`]: NetworkPolicies as nftables maps, sets and chains, changed element by element. [`LocalPods`] keeps a
//!   pod from its network until its rules stand.
//! - [`ClusterDns`]: the names of Services and pods, with aliases followed; everything else is forwarded.
//!
//! [`Changes`] tells when links, addresses or routes have changed, so that what others did to them is undone.
//!
//! [`netns`] makes and enters network namespaces. Decisions (which address, which map element, which record) are
//! pure functions over snapshots; netlink, `nft` and sockets only carry them out.

pub mod netns;

mod changes;
mod conntrack;
mod dns;
mod generation;
mod ipam;
mod nft;
mod peers;
mod pod;
mod policy;
mod proxy;

#[cfg(test)]
mod kernel_tests;

pub use changes::{Changes, LOOK_EVERY};
pub use dns::{ClusterDns, DnsConfig, DnsError};
pub use ipam::{HostPort, Ipam, IpamError};
pub use nft::NftError;
pub use peers::{PeerRoutes, PeersConfig, PeersError, Uplink};
pub use pod::{PodNetwork, PodNetworkConfig, PodNetworkError};
pub use policy::{LocalPods, NotJudged, PodIdentity, PodSource, PolicyConfig, PolicyEnforcer};
pub use proxy::{ProxyConfig, ServiceProxy};
