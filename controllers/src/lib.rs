//! The controllers: each brings one kind of object, and what hangs on it, to what its spec says.
//!
//! [`driver`] runs them all alike: keys come from informers, wait in a work queue, and are handed one at a time to
//! `reconcile`, which re-reads everything. A controller decides with pure functions (`plan.rs`) and carries out.
//!
//! One process carries thousands of nodes and tens of thousands of pods: what a change or a pass costs must not grow with
//! the cluster. [`lookup`] finds what concerns it; [`making`] bounds what is asked of the API at a time. What owners of
//! objects have in common is in [`claiming`], [`owned_pods`] and [`history`].
//!
//! | folder | what it does |
//! |---|---|
//! | `cronjob` | Jobs for a CronJob, when their time has come |
//! | `daemonset` | a pod on every node that a DaemonSet is for, rolled over as its strategy says |
//! | `deployment` | ReplicaSets for the revisions of a Deployment, rolled over as its strategy says |
//! | `disruption` | how many pods of a PodDisruptionBudget may go; takes back that a pod is to go which stays |
//! | `replicaset` | pods for a ReplicaSet or a ReplicationController |
//! | `statefulset` | pods and claims of a StatefulSet, each with a name and a number of its own |
//! | `endpoints` | EndpointSlices and Endpoints for a Service |
//! | `mirroring` | EndpointSlices for Endpoints that people write themselves |
//! | `namespace` | empties a namespace that is being deleted |
//! | `garbage` | deletes what has lost its owner; foreground deletion and orphaning |
//! | `job` | pods for a Job, until they have done what it is for |
//! | `node` | marks nodes that stopped reporting, taints nodes as their conditions say, and evicts their pods |
//! | `quota` | what is used of ResourceQuotas |
//! | `strays` | deletes pods whose node is gone, and the oldest of too many that have ended |
//! | `account` | the default service account and the CA bundle of each namespace |
//! | `certificates` | approves, signs and deletes certificate signing requests |
//! | `bootstrap` | `cluster-info` and its signatures; deletes bootstrap tokens that have expired |
//! | `node_ipam` | a range of pod addresses for each node |
//! | `unbuilt` | says of claims and CustomResourceDefinitions that this version does nothing with them |
//! | `balancer` | addresses for Services of type LoadBalancer |

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use kube::Client;
use skiff_client::{EventRecorder, Informers};
use tokio_util::sync::CancellationToken;

mod account;
mod balancer;
mod bootstrap;
mod certificates;
mod claiming;
mod cronjob;
mod daemonset;
mod deletions;
mod deployment;
mod disruption;
mod driver;
mod endpoints;
mod garbage;
mod history;
mod job;
mod joining;
mod lookup;
mod making;
mod mirroring;
mod namespace;
mod node;
mod node_ipam;
mod objects;
mod owned_pods;
mod quota;
mod replicaset;
mod statefulset;
mod strays;
#[cfg(test)]
mod testing;
mod unbuilt;

use deletions::Deletions;
use lookup::Pods;
use making::Making;
use replicaset::ReplicaSets;

pub use certificates::AuthorityError;
pub use joining::{Joining, JoiningError, JoiningOptions, Reached};
pub use node_ipam::RangeError;

/// Which controllers run, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// Give Services of type LoadBalancer the addresses of nodes. Off where something else does.
    pub service_lb: bool,
}

/// What every controller is made from.
#[derive(Clone)]
struct Context {
    client: Client,
    informers: Informers,
    deletions: Deletions,
    pods: Pods,
    making: Making,
}

impl Context {
    fn new(client: Client, informers: Informers) -> Context {
        let pods = Pods::new(&informers);
        Context { client, informers, deletions: Deletions::default(), pods, making: Making::default() }
    }

    fn events(&self, component: &str) -> EventRecorder {
        EventRecorder::new(self.client.clone(), component, "")
    }
}

/// Runs all controllers until `shutdown`, on what the informers see and as their client. Without `joining`, for a cluster
/// of one node that none can join; with it, for one that nodes join over the network.
pub async fn run(
    config: Config,
    joining: Option<Joining>,
    ca_pem: String,
    informers: Informers,
    shutdown: CancellationToken,
) {
    let context = Context::new(informers.client().clone(), informers);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(driver::run(deployment::Deployments::new(&context), shutdown.clone()));
    tasks.spawn(driver::run(ReplicaSets::<ReplicaSet>::new(&context), shutdown.clone()));
    tasks.spawn(driver::run(ReplicaSets::<ReplicationController>::new(&context), shutdown.clone()));
    tasks.spawn(driver::run(daemonset::DaemonSets::new(&context), shutdown.clone()));
    tasks.spawn(driver::run(statefulset::StatefulSets::new(&context), shutdown.clone()));
    tasks.spawn(driver::run(endpoints::EndpointSlices::new(&context), shutdown.clone()));
    tasks.spawn(driver::run(mirroring::Mirrors::new(&context), shutdown.clone()));
    tasks.spawn(driver::run(namespace::Namespaces::new(&context), shutdown.clone()));
    tasks.spawn(driver::run(account::Accounts::new(&context, ca_pem), shutdown.clone()));
    tasks.spawn(driver::run(node::Nodes::new(&context), shutdown.clone()));
    tasks.spawn(driver::run(disruption::Budgets::new(&context), shutdown.clone()));
    tasks.spawn(driver::run(disruption::stale::StaleDisruptions::new(&context), shutdown.clone()));
    tasks.spawn(driver::run(job::Jobs::new(&context), shutdown.clone()));
    tasks.spawn(driver::run(cronjob::CronJobs::new(&context), shutdown.clone()));
    tasks.spawn(driver::run(quota::Quotas::new(&context), shutdown.clone()));
    tasks.spawn(driver::run(strays::Strays::new(&context), shutdown.clone()));
    tasks.spawn(driver::run(unbuilt::Definitions::new(&context), shutdown.clone()));
    unbuilt::tell_of_claims(&context);
    tasks.spawn(garbage::run(context.clone(), shutdown.clone()));
    if config.service_lb {
        tasks.spawn(driver::run(balancer::Balancers::new(&context), shutdown.clone()));
    }
    if let Some(joining) = joining {
        joining.spawn(&context, &mut tasks, &shutdown);
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(failed) = ended {
            tracing::error!(%failed, "a controller has ended by itself");
        }
    }
}
