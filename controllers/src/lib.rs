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
//! | `aggregation` | the rules of ClusterRoles that are made of others |
//! | `account` | the default service account and the CA bundle of each namespace |
//! | `certificates` | approves, signs and deletes certificate signing requests |
//! | `bootstrap` | `cluster-info` and its signatures; deletes bootstrap tokens that have expired |
//! | `node_ipam` | a range of pod addresses for each node |
//! | `volumes` | claims bound to volumes; volumes made, made larger, kept and removed |
//! | `autoscaling` | the number of pods that the metrics of a HorizontalPodAutoscaler ask for |
//! | `balancer` | addresses for Services of type LoadBalancer |

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use kube::Client;
use skiff_client::{Discovery, EventRecorder, Informers};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod account;
mod aggregation;
mod autoscaling;
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
mod selection;
mod statefulset;
mod strays;
#[cfg(test)]
mod testing;
mod volumes;

use deletions::Deletions;
use lookup::Pods;
use making::Making;
use replicaset::ReplicaSets;
use selection::Part;

pub use certificates::AuthorityError;
pub use joining::{Joining, JoiningError, JoiningOptions, Reached};
pub use node_ipam::RangeError;
pub use selection::{Selection, SelectionError};

/// Makes the clients that controllers act through, each under an account of its own in `kube-system`: upstream's controllers
/// with `--use-service-account-credentials`, and what its roles let those accounts do.
#[derive(Clone)]
pub struct Credentials(Arc<ClientOf>);

/// A client for a user of groups.
type ClientOf = dyn Fn(&str, &[&str]) -> Client + Send + Sync;

impl Credentials {
    /// `client` makes a client for a user of groups.
    pub fn new(client: impl Fn(&str, &[&str]) -> Client + Send + Sync + 'static) -> Credentials {
        Credentials(Arc::new(client))
    }

    fn client(&self, account: &str) -> Client {
        let user = format!("system:serviceaccount:kube-system:{account}");
        // The last is for where these controllers ask for something in another way than upstream's.
        let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", "skiff:controllers"];
        (self.0)(&user, &groups)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// Which controllers run, and how.
#[derive(Clone, Debug)]
pub struct Config {
    pub credentials: Credentials,
    /// Give Services of type LoadBalancer the addresses of nodes. Off where something else does.
    pub service_lb: bool,
    /// The StorageClass of volumes that are directories of nodes, made if it is not there; none where there is no name.
    pub local_storage_class: Option<String>,
    pub selection: Selection,
}

/// What every controller is made from.
#[derive(Clone)]
struct Context {
    client: Client,
    credentials: Credentials,
    informers: Informers,
    /// Which resources there are.
    discovery: Discovery,
    deletions: Deletions,
    pods: Pods,
    making: Making,
}

impl Context {
    fn new(credentials: Credentials, informers: Informers, discovery: Discovery) -> Context {
        let (client, pods) = (informers.client().clone(), Pods::new(&informers));
        let (deletions, making) = (Deletions::default(), Making::default());
        Context { client, credentials, informers, discovery, deletions, pods, making }
    }

    /// The same for the controller of an account. All see through the same informers.
    fn of(&self, account: &str) -> Context {
        Context { client: self.credentials.client(account), ..self.clone() }
    }

    fn events(&self, component: &str) -> EventRecorder {
        EventRecorder::new(self.client.clone(), component, "")
    }
}

/// Runs all controllers until `shutdown`, on what the informers see, each as itself. Without `joining`, for a cluster
/// of one node that none can join; with it, for one that nodes join over the network.
pub async fn run(
    config: Config,
    joining: Option<Joining>,
    ca_pem: String,
    informers: Informers,
    shutdown: CancellationToken,
) {
    let discovery = Discovery::start(informers.client().clone(), shutdown.clone());
    let context = Context::new(config.credentials.clone(), informers, discovery);
    let mut tasks = JoinSet::new();
    spawn_workloads(&config.selection, &context, &mut tasks, &shutdown);
    spawn_upkeep(&config, &context, ca_pem, &mut tasks, &shutdown);
    spawn_volumes(&config, &context, &mut tasks, &shutdown);
    if let Some(joining) = joining {
        joining.spawn(&config.selection, &context, &mut tasks, &shutdown);
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(failed) = ended {
            tracing::error!(%failed, "a controller has ended by itself");
        }
    }
}

/// Starts a controller, if it is to run.
fn spawn<C: driver::Controller>(
    is_on: bool,
    make: impl FnOnce() -> C,
    tasks: &mut JoinSet<()>,
    shutdown: &CancellationToken,
) {
    if is_on {
        tasks.spawn(driver::run(make(), shutdown.clone()));
    }
}

/// What makes pods, and what leads to them.
fn spawn_workloads(
    selection: &Selection,
    context: &Context,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) {
    let has = |part| selection.has(part);
    let of = |account| context.of(account);
    let make = || deployment::Deployments::new(&of("deployment-controller"));
    spawn(has(Part::Deployments), make, tasks, stop);
    let make = || ReplicaSets::<ReplicaSet>::new(&of("replicaset-controller"));
    spawn(has(Part::ReplicaSets), make, tasks, stop);
    let make = || ReplicaSets::<ReplicationController>::new(&of("replication-controller"));
    spawn(has(Part::ReplicationControllers), make, tasks, stop);
    let make = || daemonset::DaemonSets::new(&of("daemon-set-controller"));
    spawn(has(Part::DaemonSets), make, tasks, stop);
    let make = || statefulset::StatefulSets::new(&of("statefulset-controller"));
    spawn(has(Part::StatefulSets), make, tasks, stop);
    spawn(has(Part::Jobs), || job::Jobs::new(&of("job-controller")), tasks, stop);
    spawn(has(Part::CronJobs), || cronjob::CronJobs::new(&of("cronjob-controller")), tasks, stop);
    let make = || autoscaling::Autoscalers::new(&of("horizontal-pod-autoscaler"));
    spawn(has(Part::Autoscalers), make, tasks, stop);
    let make = || endpoints::EndpointSlices::new(&of("endpointslice-controller"));
    spawn(has(Part::Endpoints), make, tasks, stop);
    let make = || mirroring::Mirrors::new(&of("endpointslicemirroring-controller"));
    spawn(has(Part::Mirrors), make, tasks, stop);
}

/// What claims and volumes become.
fn spawn_volumes(config: &Config, context: &Context, tasks: &mut JoinSet<()>, stop: &CancellationToken) {
    let has = |part| config.selection.has(part);
    let of = |account| context.of(account);
    let make = || volumes::binder::Binder::new(&of("persistent-volume-binder"));
    spawn(has(Part::VolumeBinder), make, tasks, stop);
    let make = || volumes::protection::ClaimProtection::new(&of("pvc-protection-controller"));
    spawn(has(Part::ClaimProtection), make, tasks, stop);
    let make = || volumes::protection::VolumeProtection::new(&of("pv-protection-controller"));
    spawn(has(Part::VolumeProtection), make, tasks, stop);
    let make = || volumes::ephemeral::EphemeralVolumes::new(&of("ephemeral-volume-controller"));
    spawn(has(Part::EphemeralVolumes), make, tasks, stop);
    let make = || volumes::expansion::Expansion::new(&of("expand-controller"));
    spawn(has(Part::VolumeExpander), make, tasks, stop);
    let local = of("local-volume-provisioner");
    spawn(has(Part::VolumeBinder), || volumes::local::LocalVolumes::new(&local), tasks, stop);
    if let Some(class) = config.local_storage_class.clone().filter(|_| has(Part::VolumeBinder)) {
        tasks.spawn(volumes::local::class::ensure(local, class, stop.clone()));
    }
}

/// What keeps the cluster in order.
fn spawn_upkeep(
    config: &Config,
    context: &Context,
    ca_pem: String,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) {
    let has = |part| config.selection.has(part);
    let of = |account| context.of(account);
    let make = || namespace::Namespaces::new(&of("namespace-controller"));
    spawn(has(Part::Namespaces), make, tasks, stop);
    let make = || account::Accounts::new(&of("service-account-controller"), ca_pem);
    spawn(has(Part::Accounts), make, tasks, stop);
    let make = || aggregation::Aggregates::new(&of("clusterrole-aggregation-controller"));
    spawn(has(Part::Aggregation), make, tasks, stop);
    spawn(has(Part::Nodes), || node::Nodes::new(&of("node-controller")), tasks, stop);
    let budgets = of("disruption-controller");
    spawn(has(Part::Budgets), || disruption::Budgets::new(&budgets), tasks, stop);
    spawn(has(Part::Budgets), || disruption::stale::StaleDisruptions::new(&budgets), tasks, stop);
    spawn(has(Part::Quotas), || quota::Quotas::new(&of("resourcequota-controller")), tasks, stop);
    spawn(has(Part::Strays), || strays::Strays::new(&of("pod-garbage-collector")), tasks, stop);
    let balancers = config.service_lb && has(Part::Balancers);
    spawn(balancers, || balancer::Balancers::new(&of("service-controller")), tasks, stop);
    if has(Part::Garbage) {
        tasks.spawn(garbage::run(of("generic-garbage-collector"), stop.clone()));
    }
}
