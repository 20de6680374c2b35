//! A scale run: a fleet, Deployments until it is full, probes meanwhile, and what all of it took.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::api::{Caller, code};
use crate::census::{Census, Counts, RUN_LABEL};
use crate::fleet::{FLEET_LABEL, Fleet, FleetOptions, WatchMode};
use crate::latency::{Call, Latencies};
use crate::probe::Probe;
use crate::process::Watched;
use crate::report::{Phase, Report};

const CREATE_NAMESPACE: Call = Call::new("POST", "namespaces");
const GET_NAMESPACE: Call = Call::new("GET", "namespaces");
const DELETE_NAMESPACE: Call = Call::new("DELETE", "namespaces");
const GET_ACCOUNT: Call = Call::new("GET", "serviceaccounts");
const CREATE_DEPLOYMENT: Call = Call::new("POST", "deployments");
/// Deployments that are made at a time.
const N_AT_ONCE: usize = 8;
const LOOK_AGAIN: Duration = Duration::from_millis(200);
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Requests of probes on their way at a time: what they measure must not be their own waiting.
const PROBE_PLACES: usize = 8;

#[derive(Clone, Debug)]
pub struct ScaleOptions {
    pub fleet: FleetOptions,
    pub n_pods: usize,
    pub per_deployment: usize,
    pub n_namespaces: usize,
    pub image: String,
    /// Requests for pods on their way at a time.
    pub n_places: usize,
    /// For each phase.
    pub timeout: Duration,
    /// How long the full cluster is looked at.
    pub steady: Duration,
    /// Whether what was made stays.
    pub cleanup: Cleanup,
    /// Names and process IDs of what is to be watched.
    pub processes: Vec<(String, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    Remove,
    Keep,
}

/// Runs it; tells how far it is on standard error. What goes wrong once there are nodes is a part of the report: what was
/// measured until then is worth as much.
pub async fn run(client: Client, options: &ScaleOptions) -> Result<Report> {
    let room = options.fleet.n_nodes as usize * usize::from(options.fleet.machine.n_pods);
    ensure!(options.n_pods <= room, "{} pods are more than the nodes' {room}", options.n_pods);
    ensure!(options.per_deployment > 0 && options.n_namespaces > 0, "pods need a Deployment in a namespace");
    let census = Arc::new(Census::new(&options.fleet.prefix));
    let caller = Caller::new(client, options.n_places, Arc::new(Latencies::default()));
    let run = Run { options, caller, census };
    let watched: Vec<Watched> =
        options.processes.iter().map(|(name, pid)| Watched::start(name, *pid)).collect::<Result<_>>()?;
    let mut phases = Vec::new();

    let fleet = run.phase("nodes", &mut phases, Box::pin(run.start_fleet())).await?;
    let filled = run.fill(&mut phases).await;
    let processes: Vec<Value> = watched.iter().map(Watched::document).collect();
    let pods = run.census.document();
    let ended = match options.cleanup {
        Cleanup::Remove => run.phase("cleanup", &mut phases, Box::pin(run.clean_up(fleet))).await,
        Cleanup::Keep => fleet.stop().await,
    };
    // What went wrong first is what matters.
    let failure = filled.and(ended).err().map(|error| format!("{error:#}"));
    let watch = match options.fleet.watch {
        WatchMode::Shared => "by one watch",
        WatchMode::PerNode => "by one watch a node",
    };
    let n_nodes = options.fleet.n_nodes;
    let processes = processes.into();
    Ok(Report { n_nodes, n_pods: options.n_pods, watch, phases, pods, processes, failure })
}

struct Run<'o> {
    options: &'o ScaleOptions,
    caller: Caller,
    census: Arc<Census>,
}

impl Run<'_> {
    /// Does one part of the run, in bounded time, and keeps the requests that it made.
    async fn phase<T>(
        &self,
        name: &'static str,
        phases: &mut Vec<Phase>,
        part: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        eprintln!("{name} …");
        let start = Instant::now();
        let outcome = match tokio::time::timeout(self.options.timeout, part).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let counts = *self.census.counts().borrow();
                Err(anyhow!("not done after {} s: {counts:?}", self.options.timeout.as_secs()))
            }
        };
        phases.push(Phase { name, took: start.elapsed(), latencies: self.caller.latencies().take() });
        eprintln!("{name}: {:.1} s", start.elapsed().as_secs_f64());
        outcome.with_context(|| format!("in the phase {name:?}"))
    }

    async fn start_fleet(&self) -> Result<Fleet> {
        Fleet::start(&self.options.fleet, self.caller.clone(), Some(self.census.clone())).await
    }

    fn namespace(&self, n: usize) -> String {
        format!("{}-{n}", self.options.fleet.prefix)
    }

    /// Makes the pods, and looks at the full cluster for a while, with probes all the time.
    async fn fill(&self, phases: &mut Vec<Phase>) -> Result<()> {
        self.phase("namespaces", phases, self.make_namespaces()).await?;
        let probe = Probe {
            caller: self.caller.apart(PROBE_PLACES),
            namespace: self.namespace(0),
            fleet: self.options.fleet.prefix.clone(),
            n_nodes: self.options.fleet.n_nodes,
            census: self.census.clone(),
        };
        let stop = CancellationToken::new();
        let probing = tokio::spawn(stop.clone().run_until_cancelled_owned(probe.run()));
        let filled = async {
            self.phase("pods", phases, self.make_pods()).await?;
            self.phase("steady", phases, self.keep_still()).await
        };
        let filled = filled.await;
        stop.cancel();
        probing.await.context("the probes failed")?;
        filled
    }

    async fn make_namespaces(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.caller.client());
        for n in 0..self.options.n_namespaces {
            let name = self.namespace(n);
            let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
            let params = PostParams::default();
            match self.caller.insist(CREATE_NAMESPACE, || namespaces.create(&params, &namespace)).await {
                Err(error) if code(&error) == 409 => bail!(
                    "the namespace {name} exists; delete what an earlier run has left, or choose another --prefix"
                ),
                created => created.with_context(|| format!("creating the namespace {name}"))?,
            };
            // No pod can be made in a namespace before it has its account.
            let accounts: Api<ServiceAccount> = Api::namespaced(self.caller.client(), &name);
            while self.caller.insist(GET_ACCOUNT, || accounts.get_opt("default")).await?.is_none() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }

    async fn make_pods(&self) -> Result<()> {
        let options = self.options;
        let n_deployments = options.n_pods.div_ceil(options.per_deployment);
        let create = |n: usize| async move {
            let n_replicas = options.per_deployment.min(options.n_pods - n * options.per_deployment);
            let deployment: Deployment = serde_json::from_value(self.deployment(n, n_replicas))?;
            let namespace = self.namespace(n % options.n_namespaces);
            let deployments: Api<Deployment> = Api::namespaced(self.caller.client(), &namespace);
            let params = PostParams::default();
            let created = self.caller.insist(CREATE_DEPLOYMENT, || deployments.create(&params, &deployment));
            created.await.with_context(|| format!("creating a deployment in {namespace}"))?;
            anyhow::Ok(())
        };
        let creates = futures::stream::iter((0..n_deployments).map(create));
        creates.buffer_unordered(N_AT_ONCE).try_collect::<()>().await?;
        self.until(|counts| counts.running >= options.n_pods).await
    }

    fn deployment(&self, n: usize, n_replicas: usize) -> Value {
        let (fleet, name) = (&self.options.fleet.prefix, format!("scale-{n}"));
        json!({
            "metadata": {"name": name},
            "spec": {
                "replicas": n_replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name, RUN_LABEL: fleet}},
                    "spec": {
                        // Real nodes of the cluster are left alone.
                        "nodeSelector": {FLEET_LABEL: fleet},
                        "automountServiceAccountToken": false,
                        "terminationGracePeriodSeconds": 1,
                        "containers": [{"name": "pause", "image": self.options.image,
                            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}],
                    },
                },
            },
        })
    }

    /// Waits, telling how far it is.
    async fn until(&self, reached: impl Fn(&Counts) -> bool) -> Result<()> {
        let mut counts = self.census.counts();
        let mut tell = tokio::time::interval(TELL_EVERY);
        loop {
            let now = *counts.borrow_and_update();
            if reached(&now) {
                return Ok(());
            }
            // Both arms only wait.
            tokio::select! {
                changed = counts.changed() => changed.context("the census has ended")?,
                _ = tell.tick() => eprintln!(
                    "  pods: {} pending, {} bound, {} running, {} ended", now.pending, now.bound, now.running, now.ended
                ),
            }
        }
    }

    async fn keep_still(&self) -> Result<()> {
        tokio::time::sleep(self.options.steady).await;
        let counts = *self.census.counts().borrow();
        ensure!(counts.running == self.options.n_pods, "pods that ran do so no longer: {counts:?}");
        Ok(())
    }

    /// Deletes all that the run made: the namespaces with their pods, then the nodes.
    async fn clean_up(&self, fleet: Fleet) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.caller.client());
        let names: Vec<String> = (0..self.options.n_namespaces).map(|n| self.namespace(n)).collect();
        for name in &names {
            let params = DeleteParams::default();
            match self.caller.insist(DELETE_NAMESPACE, || namespaces.delete(name, &params)).await {
                Err(error) if code(&error) == 404 => {}
                deleted => drop(deleted.with_context(|| format!("deleting the namespace {name}"))?),
            }
        }
        self.until(|counts| counts.all() == 0).await?;
        for name in &names {
            while self.caller.insist(GET_NAMESPACE, || namespaces.get_opt(name)).await?.is_some() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        fleet.remove().await
    }
}
