//! The service proxy: every Service's addresses lead to its endpoints, through nftables maps.
//!
//! [`plan`] turns Services and EndpointSlices into frontends (an address, protocol and port, and the endpoints
//! behind it); [`script`] writes the difference between two plans as one nft transaction. This file wakes on
//! changes, plans, and applies.
//!
//! ```text
//!  firewall:  ip . proto . port        → goto sources_X        (before translation; drops other clients)
//!  frontends: ip . proto . port        → goto endpoints_N      (N endpoints)
//!                                      → goto affinity_X       (session affinity: a chain and a set an endpoint)
//!  endpoints: ip . proto . port . 0..N → pod ip . pod port     (one rule a count picks at random)
//!  only_endpoint: ip . proto . port    → pod ip . pod port     (where there is nothing to pick)
//!  udp_endpoints: the same for UDP, which needs a map of its own
//!  inside_…: the same four for this node and its pods, where `externalTrafficPolicy: Local` is not for them
//! ```
//!
//! # Guarantees
//! - A change of one endpoint writes the elements of its Service only.
//! - After a restart, after a refused transaction, when others have flushed rules and once an hour, the whole table is written anew in one
//!   transaction, so that traffic never meets half of it. Clients keep the endpoints that they stick to.
//! - UDP flows to an endpoint that no longer serves are forgotten, also those from before a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use skiff_client::{Informer, Informers, WorkQueue};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::changes::LOOK_EVERY;
use crate::conntrack;
use crate::generation::generation;
use crate::ipam::Range;
use crate::nft;
use crate::peers::moved;
use plan::{Backend, Frontend, Plan, Protocol};
use script::{Elements, Found};

mod health;
pub(crate) mod plan;
pub(crate) mod script;
pub(crate) mod sources;

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

/// The node, as plans see it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) config: ProxyConfig,
    /// TCP ports on which the node itself listens.
    pub(crate) own_ports: BTreeSet<u16>,
}

impl Node {
    pub(crate) fn new(config: ProxyConfig) -> Node {
        Node { config, own_ports: OWN_PORTS.into() }
    }

    /// Whether a Service at the frontend would take the node's own traffic away.
    pub(crate) fn is_own(&self, frontend: &Frontend) -> bool {
        let gateway = Range::parse(&self.config.pod_cidr).ok().map(Range::gateway);
        let here = self.config.node_ips.contains(&frontend.ip) || gateway == Some(frontend.ip);
        (here || frontend.ip.is_loopback())
            && frontend.protocol == Protocol::Tcp
            && self.own_ports.contains(&frontend.port)
    }
}

/// SSH, the Kubernetes API and the node API: whoever may make a Service must not be able to take these over.
const OWN_PORTS: [u16; 3] = [22, 6443, 10250];

/// See the module's documentation.
pub struct ServiceProxy {
    node: Node,
    /// The node's address of the moment, where it may become another.
    node_ip: Option<watch::Receiver<Ipv4Addr>>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    queue: WorkQueue<()>,
}

/// Changes that come within this time of each other share a transaction.
const GATHER: Duration = Duration::from_millis(5);
/// How long emptied chains stay: before Linux 6.2, they count as used for a moment.
pub(crate) const CHAIN_REST: Duration = Duration::from_secs(2);
/// Others may change elements of the rules' sets, which is not looked for; upstream writes all anew as often.
const FULL_SYNC: Duration = Duration::from_secs(3600);

/// What nft holds.
pub(crate) struct Applied {
    /// When everything was written.
    at: Instant,
    elements: Elements,
    /// Emptied chains that are still to be deleted, and since when.
    pub(crate) resting: BTreeMap<String, Instant>,
    /// How many transactions of nft there had been when the rules were seen to be right.
    generation: Option<u32>,
}

impl Applied {
    /// Whether there were transactions since the last look.
    pub(crate) fn is_doubtful(&mut self) -> bool {
        let now = generation().ok();
        let last = std::mem::replace(&mut self.generation, now);
        now.is_none() || now != last
    }

    /// Whether the rules are still as they were written. Where that cannot be read, they are not.
    pub(crate) async fn stands(&self, config: &ProxyConfig) -> bool {
        match nft::list(script::TABLE).await {
            Ok(listing) => script::stands(config, &self.elements, &listing),
            Err(_) => false,
        }
    }
}

/// What has been told and cleaned up so far.
#[derive(Default)]
struct Done {
    udp: Option<BTreeMap<Frontend, BTreeSet<Backend>>>,
    complaints: BTreeSet<String>,
}

impl ServiceProxy {
    pub fn new(config: ProxyConfig, informers: &Informers) -> ServiceProxy {
        let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
        let queue = WorkQueue::default();
        let wake = queue.clone();
        services.on_change(move |_| wake.add_after((), GATHER));
        let wake = queue.clone();
        slices.on_change(move |_| wake.add_after((), GATHER));
        ServiceProxy { node: Node::new(config), node_ip: None, services, slices, queue }
    }

    /// Names the TCP ports on which the node itself listens, in place of 22, 6443 and 10250. No Service's external
    /// address takes them over.
    #[must_use]
    pub fn with_own_ports(mut self, ports: impl IntoIterator<Item = u16>) -> ServiceProxy {
        self.node.own_ports = ports.into_iter().collect();
        self
    }

    /// Opens NodePorts on an address that may change, in place of those in the configuration.
    #[must_use]
    pub fn following(mut self, node_ip: watch::Receiver<Ipv4Addr>) -> ServiceProxy {
        self.node_ip = Some(node_ip);
        self
    }

    /// Runs until `shutdown`. The rules stay, so that Services go on working while a new process starts.
    pub async fn run(mut self, shutdown: CancellationToken) {
        tokio::select! {
            () = self.informed() => {}
            () = shutdown.cancelled() => return,
        }
        let mut applied: Option<Applied> = None;
        let mut done = Done::default();
        let mut health = health::HealthServers::new(self.node.config.node_ips.clone());
        self.queue.add(());
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let key = tokio::select! {
                // Cancel-safe: see `WorkQueue::get`.
                key = self.queue.get() => key,
                // Only waits.
                _ = looks.tick() => {
                    if let Some(last) = &mut applied
                        && last.is_doubtful()
                        && !last.stands(&self.node.config).await
                    {
                        warn!("rules of Services have been changed by somebody else; writing all of them anew");
                        applied = None;
                        self.queue.add(());
                    }
                    continue;
                }
                () = moved(&mut self.node_ip) => {
                    self.queue.add(());
                    continue;
                }
                () = shutdown.cancelled() => return,
            };
            if key.is_none() {
                return;
            }
            if let Some(node_ip) = &mut self.node_ip {
                let node_ips = vec![*node_ip.borrow_and_update()];
                if self.node.config.node_ips != node_ips {
                    self.node.config.node_ips = node_ips;
                    // The rules that name the address are written with all the others; what serves on it begins anew.
                    applied = None;
                    health = health::HealthServers::new(self.node.config.node_ips.clone());
                }
            }
            let wanted = plan::plan(&self.node, &self.services.list(), &self.slices.list());
            health.serve(&wanted.health_checks).await;
            applied = self.sync(applied, wanted, &mut done).await;
            self.queue.done(&());
            match &applied {
                None => self.queue.retry(()),
                Some(applied) => {
                    self.queue.forget(&());
                    let next = if applied.resting.is_empty() { FULL_SYNC } else { CHAIN_REST };
                    self.queue.add_after((), next);
                }
            }
        }
    }

    async fn informed(&self) {
        self.services.synced().await;
        self.slices.synced().await;
    }

    /// Brings the node to a plan and answers what nft holds then; `None` if it has refused.
    async fn sync(&self, applied: Option<Applied>, wanted: Plan, done: &mut Done) -> Option<Applied> {
        for complaint in wanted.complaints.difference(&done.complaints) {
            warn!("a Service is not served as it asks: {complaint}");
        }
        done.complaints = wanted.complaints.clone();
        let n_failures = self.queue.n_failures(&());
        let mut applied = match apply(&self.node.config, applied, &wanted, n_failures).await {
            Ok(applied) => applied,
            Err(error) => {
                warn!(%error, n_failures, "service rules were refused; writing all of them anew");
                return None;
            }
        };
        delete_rested(&mut applied.resting).await;
        forget_stale_flows(&wanted, done).await;
        Some(applied)
    }

    /// Removes the proxy's rules. For the end of a node, not for a restart.
    pub async fn remove_rules() -> Result<(), nft::NftError> {
        nft::apply(&script::remove()).await
    }
}

/// Writes the difference, or everything where what stands is not known well enough.
pub(crate) async fn apply(
    config: &ProxyConfig,
    applied: Option<Applied>,
    wanted: &Plan,
    n_failures: u32,
) -> Result<Applied, nft::NftError> {
    let elements = Elements::of(wanted);
    let now = Instant::now();
    let (at, had, script, mut resting) = match applied.filter(|a| now.duration_since(a.at) < FULL_SYNC) {
        Some(applied) => {
            let script = script::difference(&applied.elements, &elements);
            (applied.at, applied.elements.chain_names(), script, applied.resting)
        }
        None => {
            let (found, script) = whole(config, &elements, n_failures).await;
            (now, found.chains, script, BTreeMap::new())
        }
    };
    let n_frontends = wanted.frontends.len();
    debug!(n_frontends, n_lines = script.lines().count(), "applying service rules");
    nft::apply(&script).await?;
    let has = elements.chain_names();
    resting.extend(had.difference(&has).map(|name| (name.clone(), now)));
    resting.retain(|name, _| !has.contains(name));
    Ok(Applied { at, elements, resting, generation: generation().ok() })
}

/// A script for the whole table, and what of an earlier table it goes on using. If that has been refused before, or
/// what stands cannot be read, from the ground up.
async fn whole(config: &ProxyConfig, elements: &Elements, n_failures: u32) -> (Found, String) {
    let found = match nft::list(script::TABLE).await {
        Ok(listing) if n_failures < 2 => Found::parse(&listing),
        _ => None,
    };
    match found {
        Some(found) => {
            let script = script::whole(config, elements, &found);
            (found, script)
        }
        None => {
            let found = Found::default();
            let script = script::remove() + &script::whole(config, elements, &found);
            (found, script)
        }
    }
}

/// Deletes the chains that have rested long enough. What is refused stays, empty, until everything is written anew:
/// that finds it again.
pub(crate) async fn delete_rested(resting: &mut BTreeMap<String, Instant>) {
    let now = Instant::now();
    let (due, rest) =
        std::mem::take(resting).into_iter().partition(|(_, at)| now.duration_since(*at) >= CHAIN_REST);
    *resting = rest;
    let due: BTreeMap<String, Instant> = due;
    if let Err(error) = nft::apply(&script::delete_chains(due.keys().map(String::as_str))).await {
        debug!(%error, n_chains = due.len(), "emptied chains are still in use");
    }
}

async fn forget_stale_flows(wanted: &Plan, done: &mut Done) {
    if done.udp.as_ref() == Some(&wanted.udp) {
        return;
    }
    let udp = wanted.udp.clone();
    let forgotten = conntrack::forget_udp(move |flow| is_stale(&udp, flow)).await;
    done.udp = match forgotten {
        Ok(n_flows) => {
            debug!(n_flows, "forgot UDP flows to endpoints that have gone");
            Some(wanted.udp.clone())
        }
        Err(error) => {
            warn!(%error, "UDP flows to endpoints that have gone end by their own time-out");
            None
        }
    };
}

/// Whether a flow to a Service is answered by somebody who does not serve it (any more).
pub(crate) fn is_stale(udp: &BTreeMap<Frontend, BTreeSet<Backend>>, flow: &conntrack::Flow) -> bool {
    let to = Frontend { ip: *flow.to.ip(), protocol: Protocol::Udp, port: flow.to.port() };
    let by = Backend { ip: *flow.answered_by.ip(), port: flow.answered_by.port() };
    udp.get(&to).is_some_and(|serving| !serving.contains(&by))
}
