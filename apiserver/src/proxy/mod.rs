//! The ways out: to nodes, with logs and exec for the kubelet of a pod's node; and to pods, Services and nodes
//! with whatever is asked of their `proxy`.
//!
//! Connections to nodes go to the node's `InternalIP`, over TLS verified against the cluster's CA, with the
//! server's own client certificate. Those to pods go to addresses that are pods' own. What the client asked for
//! was authorized before.

pub(crate) mod allowed;
mod connect;
pub(crate) mod destination;
mod forward;
pub(crate) mod headers;
pub(crate) mod kubelet;
mod pod;
mod rewrite;
mod tunnel;
pub(crate) mod upgrade;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::auth::authorize::Authorization;
use destination::Destinations;

/// Sends calls on to nodes, pods and Services.
pub(crate) struct Proxies {
    pub(crate) destinations: Arc<Destinations>,
    pub(crate) authorizer: Arc<Authorization>,
    /// Ends streams.
    pub(crate) shutdown: CancellationToken,
}
