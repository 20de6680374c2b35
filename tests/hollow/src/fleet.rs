//! A fleet: hollow nodes that live for as long as it does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1 as core;
use kube::Api;
use kube::api::DeleteParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{Caller, code};
use crate::census::Census;
use crate::heartbeat::{Heartbeat, Registered};
use crate::latency::Call;
use crate::node::{LEASE_NAMESPACE, MAX_NODES, MAX_PODS, Node};
use crate::pods::{Pods, until};

pub use crate::node::{FLEET_LABEL, Machine};
pub use crate::pods::WatchMode;

/// Requests of heartbeats on their way at a time; those of pods have places of their own. Kubelets share none: a slow
/// server must not have late leases for that alone.
const HEARTBEAT_PLACES: usize = 256;
/// Nodes that are registered or removed at a time.
const N_AT_ONCE: usize = 32;
const DELETE_NODE: Call = Call::new("DELETE", "nodes");
const DELETE_LEASE: Call = Call::new("DELETE", "leases");

#[derive(Clone, Debug)]
pub struct FleetOptions {
    pub n_nodes: u32,
    /// Nodes are called `PREFIX-00000` and so on.
    pub prefix: String,
    pub machine: Machine,
    pub watch: WatchMode,
    /// The time over which first heartbeats are spread.
    pub heartbeat_spread: Duration,
}

/// Running nodes. Dropping it ends them without a word, as a power cut would.
pub struct Fleet {
    caller: Caller,
    nodes: Vec<Arc<Node>>,
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Fleet {
    /// Registers all nodes; they are ready when this returns.
    pub async fn start(options: &FleetOptions, caller: Caller, census: Option<Arc<Census>>) -> Result<Fleet> {
        ensure!(options.n_nodes <= MAX_NODES, "at most {MAX_NODES} nodes have addresses of their own");
        ensure!(options.machine.n_pods <= MAX_PODS, "a node has addresses for at most {MAX_PODS} pods");
        let nodes: Vec<Arc<Node>> = (0..options.n_nodes)
            .map(|index| Arc::new(Node::new(&options.prefix, index, options.machine.clone())))
            .collect();
        let heartbeats = caller.apart(HEARTBEAT_PLACES);
        let since = Timestamp::now();
        let beat = |node: &Arc<Node>| Heartbeat {
            node: node.clone(),
            caller: heartbeats.clone(),
            look: Arc::new(Notify::new()),
            since,
        };
        let mut fleet = Fleet { caller, nodes, tasks: JoinSet::new(), shutdown: CancellationToken::new() };
        // The first alone: what is wrong with all of them is said once, and at once.
        let (first, others) = fleet.nodes.split_first().context("a fleet has at least one node")?;
        let first = futures::stream::iter([registered(beat(first)).await]);
        let others: Vec<_> = others.iter().map(|node| registered(beat(node))).collect();
        let mut registered = first.chain(futures::stream::iter(others).buffer_unordered(N_AT_ONCE));
        let mut looks = HashMap::new();
        // Each lives from then on: the last of many may be registered when the first's lease would be late.
        while let Some((heartbeat, registered)) = registered.try_next().await? {
            looks.insert(heartbeat.node.name.clone(), heartbeat.look.clone());
            let share = f64::from(heartbeat.node.index) / f64::from(options.n_nodes);
            let live = heartbeat.live(registered, options.heartbeat_spread.mul_f64(share));
            fleet.tasks.spawn(until(fleet.shutdown.clone(), live));
        }
        drop(registered);
        let watch = watch_nodes(fleet.caller.client(), options.prefix.clone(), looks);
        fleet.tasks.spawn(until(fleet.shutdown.clone(), watch));
        let pods = Pods::new(fleet.caller.clone(), &fleet.nodes, census);
        pods.start(options.watch, &mut fleet.tasks, &fleet.shutdown);
        Ok(fleet)
    }

    /// Runs until one of its parts fails, which none should.
    pub async fn run(&mut self) -> Result<()> {
        match self.tasks.join_next().await {
            Some(Err(error)) => Err(error).context("a part of the fleet failed"),
            Some(Ok(())) => Err(anyhow!("a part of the fleet has ended by itself")),
            None => Ok(()),
        }
    }

    /// Ends the nodes' processes; their objects stay, as those of a kubelet do.
    pub async fn stop(mut self) -> Result<()> {
        self.end().await
    }

    async fn end(&mut self) -> Result<()> {
        self.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a part of the fleet failed")?;
        }
        Ok(())
    }

    /// Ends the nodes and deletes their objects.
    pub async fn remove(mut self) -> Result<()> {
        self.end().await?;
        let nodes: Api<core::Node> = Api::all(self.caller.client());
        let leases: Api<Lease> = Api::namespaced(self.caller.client(), LEASE_NAMESPACE);
        let params = DeleteParams::default();
        let removals = self.nodes.iter().map(|node| async {
            let name = node.name.as_str();
            // In this order: the lease goes with its node, sooner or later.
            let deleted = self.caller.insist(DELETE_LEASE, || leases.delete(name, &params)).await.map(drop);
            gone_is_fine(deleted).with_context(|| format!("deleting the lease of {name}"))?;
            let deleted = self.caller.insist(DELETE_NODE, || nodes.delete(name, &params)).await.map(drop);
            gone_is_fine(deleted).with_context(|| format!("deleting the node {name}"))
        });
        futures::stream::iter(removals).buffer_unordered(N_AT_ONCE).try_collect::<()>().await
    }
}

async fn registered(heartbeat: Heartbeat) -> Result<(Heartbeat, Registered)> {
    let registered = heartbeat.register().await;
    let registered = registered.with_context(|| format!("registering the node {}", heartbeat.node.name))?;
    Ok((heartbeat, registered))
}

fn gone_is_fine(deleted: kube::Result<()>) -> kube::Result<()> {
    match deleted {
        Err(error) if code(&error) == 404 => Ok(()),
        deleted => deleted,
    }
}

/// Rings for each node that the API shows otherwise than ready, since the node controller marks those whose leases were
/// late, and for each that someone deleted.
async fn watch_nodes(client: kube::Client, fleet: String, looks: HashMap<String, Arc<Notify>>) {
    let config = watcher::Config::default().labels(&format!("{FLEET_LABEL}={fleet}"));
    let mut events = std::pin::pin!(watcher(Api::<core::Node>::all(client), config).default_backoff());
    while let Some(event) = events.next().await {
        let (node, is_there) = match event {
            Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node)) => (node, true),
            Ok(watcher::Event::Delete(node)) => (node, false),
            Ok(watcher::Event::Init | watcher::Event::InitDone) => continue,
            Err(error) => {
                tracing::warn!(%error, "the watch of nodes is interrupted, trying again");
                continue;
            }
        };
        let name = node.metadata.name.as_deref().unwrap_or_default();
        if !(is_there && is_ready(&node))
            && let Some(look) = looks.get(name)
        {
            look.notify_one();
        }
    }
}

pub(crate) fn is_ready(node: &core::Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}
