//! The nodelet: Skiff's kubelet.
//!
//! It turns pods that are bound to its node into containers, through [`skiff_cri::Cri`], and tells the
//! API what became of them. To the field and the reason string it does what upstream's kubelet does.
//!
//! ```text
//!                        API server
//!        ┌───────────────────┼─────────────────────────┐
//!     node.rs             pods.rs ── watch           objects.rs ── secrets, config maps, services
//!  Node, Lease, status       │ one worker a pod        │
//!                        worker.rs ◀────────── wakes ──┴── probe.rs, runtime events
//!            ┌───────────────┼──────────────┬─────────────┐
//!       snapshot.rs       plan.rs        volume.rs     status.rs ── one writer a pod
//!       what runs        what to do     files, mounts   what to say
//!            └───────────────┴── Cri ───────┘
//!  server.rs: the node API on :10250 (logs, exec, stats)
//! ```
//!
//! Tasks: one for the pods' watch and one a pod ([`worker`]), one a pod for its status, one a probe,
//! one a watched secret or config map, one each for runtime events, services, node status, lease, log
//! rotation, unused images and the node API. Workers are woken, never polled; a pass reads everything again.
//!
//! # Guarantees
//! - Ending nodelet, in any way, leaves every container running; the next one takes them over.
//! - Nothing of a pod is ended for being unknown before the API's whole list has been read.
//!
//! # Caveats
//! - No eviction under pressure yet; the pressure conditions are told, and images that nobody uses go ([`image_gc`]). Pods past
//!   their own limits of storage are evicted ([`storage`]).
//! - An exec whose client leaves goes on until its process ends; one with a terminal is hung up.
//! - Volumes other than emptyDir, hostPath, configMap, secret, downwardAPI and projected are refused
//!   with a `FailedMount` event.
//! - Ephemeral containers and static pods are not made.

mod config;
mod error;
mod event;
mod eviction;
mod given;

mod pods;
mod worker;

mod admission;
mod backoff;
mod create;
mod dns;
mod env;
mod hooks;
mod image_gc;
mod images;
mod local_volumes;
mod logs;
mod node;
mod objects;
mod plan;
mod pod;
mod probe;
mod pull_secrets;
mod qos;
mod resources;
mod server;
mod since;
mod snapshot;
mod status;
mod storage;
mod sysctl;
mod termination;
mod volume;
mod wake;

#[cfg(test)]
mod testing;

use std::net::SocketAddr;
use std::sync::Arc;

use kube::Client;
use skiff_cri::Cri;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::{Config, ServerTls};
pub use error::Error;
pub use event::{EventSink, EventType};
pub use image_gc::ImageGcPolicy;
pub use node::pressure::{EvictionHard, EvictionHardError};
pub use qos::PodCgroups;
pub use snapshot::RUNTIME_ANNOTATION;

use event::PodEvents;
use eviction::{Eviction, Evictions, Pressure};
use node::NodeAgent;
use node::machine::Machine;
use objects::Objects;
use pods::{PodIndex, Pods};
use qos::QosGroups;
use volume::Volumes;
use wake::Wakers;
use worker::Shared;

/// A nodelet that is registered and ready, and does nothing until it is run.
pub struct Nodelet {
    shared: Arc<Shared>,
    index: PodIndex,
    agent: Arc<NodeAgent>,
    node_uid: Option<String>,
    server: Option<server::Server>,
}

impl Nodelet {
    /// Registers the node, shows it as ready, and binds the node API's port.
    ///
    /// Fails if the machine, the runtime or the certificates are not usable, or if the API server
    /// refuses the node or stays away for about a minute.
    pub async fn start(
        config: Config,
        client: Client,
        cri: Arc<dyn Cri>,
        events: Arc<dyn EventSink>,
    ) -> Result<Nodelet, Error> {
        for path in [config.root_dir.join("pods"), config.log_root.clone()] {
            std::fs::create_dir_all(&path).map_err(|source| Error::Directory { path, source })?;
        }
        let config = Arc::new(config);
        let version = cri.version().await.map_err(Error::Runtime)?;
        let runtime = format!("{}://{}", version.runtime_name, version.runtime_version);
        let machine = Arc::new(Machine::read(&config.root_dir, runtime)?);
        let index = PodIndex::default();
        let server = match &config.tls {
            Some(tls) => Some(server::Server::bind(SocketAddr::new(config.bind, config.port), tls).await?),
            None => None,
        };
        let pressure = Arc::new(Pressure::default());
        eviction::look(&config, machine.memory_bytes, &pressure);
        let agent = Arc::new(NodeAgent {
            config: config.clone(),
            client: client.clone(),
            cri: cri.clone(),
            sink: events.clone(),
            machine: machine.clone(),
            port: server.as_ref().map_or(config.port, server::Server::port),
            pressure: pressure.clone(),
            look: Arc::default(),
        });
        let node = agent.register().await?;
        let node_uid = node.metadata.uid.clone();
        agent.announce(node).await?;
        let wakers = Arc::new(Wakers::default());
        let objects = Arc::new(Objects::start(client.clone(), wakers.clone()));
        let shared = Arc::new(Shared {
            volumes: Volumes::new(config.clone(), objects.clone(), client.clone()),
            events: PodEvents::new(events),
            runtime_name: version.runtime_name,
            memory_capacity: i64::try_from(machine.memory_bytes).unwrap_or(i64::MAX),
            allocatable: machine.allocatable(config.max_pods, &config.eviction_hard),
            config,
            client,
            cri,
            objects,
            wakers,
            pressure,
            evictions: Evictions::default(),
        });
        Ok(Nodelet { shared, index, agent, node_uid, server })
    }

    /// The node API's port, which is another than the configured one if that was 0.
    pub fn port(&self) -> u16 {
        self.agent.port
    }

    /// Runs until `shutdown`. Every container keeps running.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Nodelet { shared, index, agent, node_uid, server } = self;
        let mut tasks: JoinSet<&'static str> = JoinSet::new();
        let events = shared.cri.events();
        let wakers = shared.wakers.clone();
        let (burstable, asked) = watch::channel(None);
        if let Some(cgroups) = shared.config.pod_cgroups.clone() {
            let groups = QosGroups::new(cgroups, &shared.config.cgroup_root, &shared.allocatable);
            // Before the first pod runs.
            groups.set(None).await;
            tasks.spawn(async move {
                groups.keep(asked).await;
                "pods' control groups"
            });
        }
        tasks.spawn(async move {
            pods::forward_events(events, wakers).await;
            "runtime events"
        });
        let (told, known) = (shared.clone(), index.clone());
        tasks.spawn(async move {
            pods::tell_notices(told, known).await;
            "the runtime's notices"
        });
        let pods = Pods::new(shared.clone(), node::labels(&shared.config), index.clone(), burstable);
        tasks.spawn(async move {
            pods.run().await;
            "pods"
        });
        let cri = shared.cri.clone();
        tasks.spawn(async move {
            logs::rotate::run(&*cri).await;
            "log rotation"
        });
        let images = image_gc::ImageGc::new(
            shared.config.image_gc,
            shared.config.node_name.clone(),
            shared.cri.clone(),
            agent.sink.clone(),
        );
        let (reclaim, reclaims) = mpsc::channel(1);
        let eviction = Eviction {
            shared: shared.clone(),
            index: index.clone(),
            sink: agent.sink.clone(),
            look: agent.look.clone(),
            reclaim,
        };
        tasks.spawn(async move {
            eviction.run().await;
            "eviction"
        });
        tasks.spawn(async move {
            images.run(reclaims).await;
            "image garbage collection"
        });
        let lease = agent.clone();
        tasks.spawn(async move {
            lease.keep_lease(node_uid).await;
            "node lease"
        });
        tasks.spawn(async move {
            agent.keep_status().await;
            "node status"
        });
        if let Some(server) = server {
            let serving = server.serve(server::Api::new(shared, index));
            tasks.spawn(async move {
                serving.await;
                "node API"
            });
        }
        // Both arms only wait. Dropping the tasks ends the workers, not the containers.
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            Some(ended) = tasks.join_next() => Err(Error::TaskEnded(ended.unwrap_or("a panicked"))),
        }
    }
}
