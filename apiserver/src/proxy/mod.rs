//! The ways out: to nodes, with logs and exec for the kubelet of a pod's node; and to pods, Services and nodes
//! with whatever is asked of their `proxy`.
//!
//! Connections to nodes go to the node's `InternalIP`, over TLS verified against the cluster's CA, with the
//! server's own client certificate. Those to pods go to addresses that are pods' own. What the client asked for
//! was authorized before.

mod connect;
mod destination;
mod forward;
mod pod;
mod rewrite;
pub(crate) mod upgrade;

pub(crate) use destination::PodProxy;
pub(crate) use forward::{CORS, add_forwarded, strip, without_credentials};

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::RwLock;
use skiff_api::meta::Meta;
use skiff_api::{Object, Status};

/// What the server needs in order to reach kubelets.
pub struct KubeletConfig {
    /// The server's client certificate, its key, and the CA that signed the kubelets' certificates, in PEM.
    pub certificate_pem: Vec<u8>,
    pub key_pem: Vec<u8>,
    pub ca_pem: Vec<u8>,
    /// Lets a node's or pod's address be a loopback one: for tests, and for a host that has no other.
    pub allow_loopback: bool,
}

pub(crate) struct Kubelet {
    tls: Arc<rustls::ClientConfig>,
    allow_loopback: bool,
    /// Where each node's connections come from.
    origins: RwLock<HashMap<String, IpAddr>>,
}

/// More nodes than a cluster has; past them all are heard of anew.
const MAX_ORIGINS: usize = 10_000;

/// Where a node's kubelet listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NodeAddress {
    ip: IpAddr,
    port: u16,
    /// Where the node's own connections come from, if that is somewhere else.
    origin: Option<IpAddr>,
}

impl Kubelet {
    pub(crate) fn new(tls: Arc<rustls::ClientConfig>, allow_loopback: bool) -> Kubelet {
        Kubelet { tls, allow_loopback, origins: RwLock::default() }
    }

    /// Notes where a node has sent a request from.
    pub(crate) fn heard_from(&self, node: &str, origin: IpAddr) {
        if self.origins.read().get(node) == Some(&origin) {
            return;
        }
        let mut origins = self.origins.write();
        if origins.len() >= MAX_ORIGINS {
            origins.clear();
        }
        origins.insert(node.to_owned(), origin);
    }

    /// The address of a node's kubelet, as its status says. Checked here, and dialled as it was checked.
    fn address_of(&self, node: &Object) -> Result<NodeAddress, Status> {
        let name = node.name();
        let addresses = node["status"]["addresses"].as_array();
        let internal = addresses.into_iter().flatten().find(|a| a["type"] == "InternalIP");
        let ip: Option<IpAddr> = internal.and_then(|a| a["address"].as_str()?.parse().ok());
        let Some(ip) = ip else {
            return Err(Status::internal(format!(
                "no preferred addresses found for node {name:?}; known addresses: []"
            )));
        };
        if !is_allowed(ip, self.allow_loopback) {
            let why = format!("address {ip} of node {name} is not one that requests may be sent to");
            return Err(Status::bad_request(why));
        }
        let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
        let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0).unwrap_or(10250);
        let origin = self.origins.read().get(name).copied().filter(|origin| *origin != ip);
        Ok(NodeAddress { ip, port, origin })
    }
}

/// No loopback, link-local (and so no metadata service), multicast or unspecified addresses.
pub(crate) fn is_allowed(ip: IpAddr, allow_loopback: bool) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => {
            ip.is_unicast_link_local()
                || ip.to_ipv4_mapped().is_some_and(|ip| !is_allowed(ip.into(), allow_loopback))
        }
    };
    !link_local && !ip.is_multicast() && !ip.is_unspecified() && (allow_loopback || !ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    #[test]
    fn requests_are_never_sent_to_this_host_or_its_link() {
        for refused in
            ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "fe80::1", "::ffff:127.0.0.1"]
        {
            assert!(!is_allowed(refused.parse().expect("an address"), false), "{refused}");
        }
        for allowed in ["10.0.0.7", "192.168.1.2", "fd00::1"] {
            assert!(is_allowed(allowed.parse().expect("an address"), false), "{allowed}");
        }
    }
}
