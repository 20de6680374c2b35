//! What nodes need that join over the network: `cluster-info` and tokens, certificates, ranges of pod addresses.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::certificates::{Authority, AuthorityError, SigningRequests};
use crate::node_ipam::{NodeCidrs, NodeRanges, RangeError};
use crate::selection::{Part, Selection};
use crate::{Context, bootstrap, certificates, driver};

/// What a cluster must be told to let nodes join.
pub struct JoiningOptions<'o> {
    /// Of the moment: a server may be renumbered.
    pub reached: watch::Receiver<Reached>,
    pub ca_pem: &'o str,
    pub ca_key_pem: &'o str,
    /// DNS names that no node's serving certificate may have: the API server's own.
    pub reserved_names: Vec<String>,
    pub cluster_cidr: &'o str,
    /// The size of each node's part of it, such as 24.
    pub node_prefix: u8,
    /// Left out where it lies within the cluster's range.
    pub service_cidr: Option<&'o str>,
}

/// How the API server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// `https://…`, as nodes and kubeconfigs have it.
    pub server: String,
    /// Its addresses: no node's serving certificate may have one.
    pub ips: Vec<IpAddr>,
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
    reached: watch::Receiver<Reached>,
    ca_pem: String,
    authority: Arc<Authority>,
    reserved_names: Vec<String>,
    ranges: NodeRanges,
}

/// Without the key.
impl fmt::Debug for Joining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joining")
            .field("reached", &*self.reached.borrow())
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}

impl Joining {
    pub fn new(options: JoiningOptions<'_>) -> Result<Joining, JoiningError> {
        Ok(Joining {
            reached: options.reached,
            ca_pem: options.ca_pem.to_owned(),
            authority: Arc::new(Authority::new(options.ca_pem, options.ca_key_pem)?),
            reserved_names: options.reserved_names,
            ranges: NodeRanges::new(options.cluster_cidr, options.node_prefix, options.service_cidr)?,
        })
    }

    /// Starts the controllers that joining needs.
    pub(crate) fn spawn(
        self,
        selection: &Selection,
        context: &Context,
        tasks: &mut JoinSet<()>,
        shutdown: &CancellationToken,
    ) {
        if selection.has(Part::BootstrapInfo) {
            let info = bootstrap::Config { reached: self.reached.clone(), ca_pem: self.ca_pem };
            let info = bootstrap::ClusterInfo::new(&context.of("bootstrap-signer"), info);
            let (moved, stop) = (info.moved(), shutdown.clone());
            tasks.spawn(async move {
                stop.run_until_cancelled(moved).await;
            });
            tasks.spawn(driver::run(info, shutdown.clone()));
        }
        if selection.has(Part::ExpiredTokens) {
            let tokens = bootstrap::ExpiredTokens::new(&context.of("token-cleaner"));
            tasks.spawn(driver::run(tokens, shutdown.clone()));
        }
        if selection.has(Part::SigningRequests) {
            let config = certificates::Config {
                authority: self.authority,
                reserved_names: self.reserved_names,
                reached: self.reached,
                reserved_ranges: self.ranges.taken(),
            };
            let requests = SigningRequests::new(&context.of("certificate-controller"), config);
            tasks.spawn(driver::run(requests, shutdown.clone()));
        }
        if selection.has(Part::NodeRanges) {
            let ranges = NodeCidrs::new(&context.of("node-controller"), self.ranges);
            tasks.spawn(driver::run(ranges, shutdown.clone()));
        }
    }
}
