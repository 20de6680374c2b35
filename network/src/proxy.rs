//! The service proxy: every Service's addresses lead to its endpoints, through nftables maps.
//!
//! [`plan`] turns Services and EndpointSlices into frontends (an address, protocol and port, and the endpoints
//! behind it); [`script`] writes the difference between two plans as one nft transaction. This file wakes on
//! changes, plans, and applies.
//!
//! ```text
//!  frontends: ip . proto . port        → goto endpoints_N      (N endpoints)
//!  endpoints: ip . proto . port . 0..N → pod ip . pod port     (one rule a count picks at random)
//!  only_endpoint: ip . proto . port    → pod ip . pod port     (where there is nothing to pick)
//! ```
//!
//! # Guarantees
//! - A change of one endpoint writes the elements of its Service only.
//! - After a restart, or if a transaction is refused, the whole table is written anew in one transaction, so that
//!   traffic never meets half of it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use skiff_client::{Informer, Informers, WorkQueue};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::nft;

mod conntrack;
pub(crate) mod plan;
pub(crate) mod script;

/// What the proxy must know of its node.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    pub node_name: String,
    /// Addresses on which NodePorts are open.
    pub node_ips: Vec<Ipv4Addr>,
    /// The cluster's pod range: traffic from outside of it to another node's pod must come back this way.
    pub cluster_cidr: String,
    /// This node's pod range.
    pub pod_cidr: String,
}

/// See the module's documentation.
pub struct ServiceProxy {
    config: ProxyConfig,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    queue: WorkQueue<()>,
}

/// Changes that come within this time of each other share a transaction.
const GATHER: Duration = Duration::from_millis(5);

impl ServiceProxy {
    pub fn new(config: ProxyConfig, informers: &Informers) -> ServiceProxy {
        let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
        let queue = WorkQueue::default();
        let wake = queue.clone();
        services.on_change(move |_| wake.add_after((), GATHER));
        let wake = queue.clone();
        slices.on_change(move |_| wake.add_after((), GATHER));
        ServiceProxy { config, services, slices, queue }
    }

    /// Runs until `shutdown`. The rules stay, so that Services go on working while a new process starts.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = self.informed() => {}
            () = shutdown.cancelled() => return,
        }
        let mut applied: Option<plan::Plan> = None;
        self.queue.add(());
        loop {
            let key = tokio::select! {
                // Cancel-safe: see `WorkQueue::get`.
                key = self.queue.get() => key,
                () = shutdown.cancelled() => return,
            };
            if key.is_none() {
                return;
            }
            let wanted = plan::plan(&self.config, &self.services.list(), &self.slices.list());
            match self.apply(applied.as_ref(), &wanted).await {
                Ok(()) => {
                    applied = Some(wanted);
                    self.queue.forget(&());
                }
                Err(error) => {
                    warn!(%error, "service rules were refused; writing all of them anew");
                    applied = None;
                    self.queue.retry(());
                }
            }
            self.queue.done(&());
        }
    }

    async fn informed(&self) {
        self.services.synced().await;
        self.slices.synced().await;
    }

    async fn apply(&self, before: Option<&plan::Plan>, wanted: &plan::Plan) -> Result<(), nft::NftError> {
        let script = match before {
            Some(before) => script::difference(before, wanted),
            None => script::whole(&self.config, wanted),
        };
        debug!(
            n_frontends = wanted.frontends.len(),
            n_lines = script.lines().count(),
            "applying service rules"
        );
        nft::apply(&script).await?;
        let stale: BTreeSet<plan::Frontend> =
            before.map(|before| plan::stale_udp(before, wanted)).unwrap_or_default();
        conntrack::forget(&stale).await;
        Ok(())
    }

    /// Removes the proxy's rules. For the end of a node, not for a restart.
    pub async fn remove_rules() -> Result<(), nft::NftError> {
        nft::apply(&script::remove()).await
    }
}
