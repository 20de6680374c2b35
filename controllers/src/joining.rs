//! What nodes need that join over the network: `cluster-info` and tokens, certificates, ranges of pod addresses.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::certificates::{Authority, AuthorityError, SigningRequests};
use crate::node_ipam::{NodeCidrs, NodeRanges, RangeError};
use crate::{Context, bootstrap, certificates, driver};

/// What a cluster must be told to let nodes join.
pub struct JoiningOptions<'o> {
    /// `https://…`, as nodes and kubeconfigs reach the API server.
    pub server: &'o str,
    pub ca_pem: &'o str,
    pub ca_key_pem: &'o str,
    /// DNS names and addresses that no node's serving certificate may have: the API server's own.
    pub reserved_names: Vec<String>,
    pub reserved_ips: Vec<IpAddr>,
    pub cluster_cidr: &'o str,
    /// The size of each node's part of it, such as 24.
    pub node_prefix: u8,
    /// Left out where it lies within the cluster's range.
    pub service_cidr: Option<&'o str>,
}

#[derive(Debug, Error)]
pub enum JoiningError {
    #[error("cannot sign certificates of nodes")]
    Authority(#[from] AuthorityError),
    #[error("cannot give nodes ranges of pod addresses")]
    Ranges(#[from] RangeError),
}

/// Checked [`JoiningOptions`]. Cloning shares the key.
#[derive(Clone)]
pub struct Joining {
    server: String,
    ca_pem: String,
    authority: Arc<Authority>,
    reserved_names: Vec<String>,
    reserved_ips: Vec<IpAddr>,
    ranges: NodeRanges,
}

/// Without the key.
impl fmt::Debug for Joining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joining")
            .field("server", &self.server)
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}

impl Joining {
    pub fn new(options: JoiningOptions<'_>) -> Result<Joining, JoiningError> {
        Ok(Joining {
            server: options.server.to_owned(),
            ca_pem: options.ca_pem.to_owned(),
            authority: Arc::new(Authority::new(options.ca_pem, options.ca_key_pem)?),
            reserved_names: options.reserved_names,
            reserved_ips: options.reserved_ips,
            ranges: NodeRanges::new(options.cluster_cidr, options.node_prefix, options.service_cidr)?,
        })
    }

    /// Starts the controllers that joining needs.
    pub(crate) fn spawn(self, context: &Context, tasks: &mut JoinSet<()>, shutdown: &CancellationToken) {
        let info = bootstrap::Config { server: self.server, ca_pem: self.ca_pem };
        tasks.spawn(driver::run(bootstrap::ClusterInfo::new(context, &info), shutdown.clone()));
        tasks.spawn(driver::run(bootstrap::ExpiredTokens::new(context), shutdown.clone()));
        let config = certificates::Config {
            authority: self.authority,
            reserved_names: self.reserved_names,
            reserved_ips: self.reserved_ips,
            reserved_ranges: self.ranges.taken(),
        };
        tasks.spawn(driver::run(SigningRequests::new(context, config), shutdown.clone()));
        tasks.spawn(driver::run(NodeCidrs::new(context, self.ranges), shutdown.clone()));
    }
}
