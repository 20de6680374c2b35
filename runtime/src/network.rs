//! What this crate needs of the node's network.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use async_trait::async_trait;
use skiff_cri::CriError;
use skiff_cri::v1::PodSandboxConfig;

/// A port of the node that leads to a port of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortForward {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The one address of the node that it is open on; `None` for all but loopback.
    pub host_ip: Option<Ipv4Addr>,
    pub host_port: u16,
    pub container_port: u16,
}

/// Makes and removes the network namespaces of sandboxes. Every call may be repeated.
#[async_trait]
pub trait SandboxNetwork: Send + Sync + 'static {
    /// Makes the namespace at `netns` if it is not there, and connects it. Answers its addresses. `pod` says whose it is.
    async fn up(
        &self,
        sandbox_id: &str,
        netns: &Path,
        ports: &[PortForward],
        pod: &PodSandboxConfig,
    ) -> Result<Vec<IpAddr>, CriError>;

    /// Disconnects and removes the namespace and gives the addresses back.
    async fn down(&self, sandbox_id: &str, netns: &Path) -> Result<(), CriError>;

    /// Whether the namespace still stands: after a restart of the machine it does not.
    fn holds(&self, netns: &Path) -> bool;
}
