//! `skiff-hollow run` keeps hollow nodes alive; `skiff-hollow scale` fills them with pods and says what that took.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use skiff_hollow::api::{Caller, connect};
use skiff_hollow::fleet::{Fleet, FleetOptions, Machine, WatchMode};
use skiff_hollow::latency::Latencies;
use skiff_hollow::scale::{Cleanup, ScaleOptions};
use tokio::signal::unix::{SignalKind, signal};

/// Nodes that are nothing but what a kubelet tells the API
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Keep nodes alive until SIGINT or SIGTERM
    Run {
        #[command(flatten)]
        nodes: NodeArguments,
        /// Leave the nodes' objects, as kubelets that are stopped do
        #[arg(long)]
        keep: bool,
    },
    /// Fill nodes with the pods of Deployments, then remove all; a table to standard error, JSON to standard output
    Scale(ScaleArguments),
}

#[derive(Args)]
struct NodeArguments {
    /// The cluster, and who this is to it
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: PathBuf,
    /// How many nodes
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=32768))]
    nodes: u32,
    /// Nodes are called PREFIX-00000 and so on
    #[arg(long, default_value = "hollow")]
    prefix: String,
    /// CPUs of each
    #[arg(long, default_value = "4")]
    cpu: String,
    /// Memory of each
    #[arg(long, default_value = "32Gi")]
    memory: String,
    /// Most pods on each
    #[arg(long = "max-pods", default_value_t = 110, value_parser = clap::value_parser!(u8).range(1..=254))]
    max_pods: u8,
    /// Seconds over which the nodes' heartbeats are spread
    #[arg(long, default_value_t = 10)]
    heartbeat_spread: u64,
    /// One watch of pods a node, as kubelets have, in place of one for all
    #[arg(long)]
    watch_per_node: bool,
    /// Requests for pods on their way at a time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=512))]
    concurrency: u16,
}

#[derive(Args)]
struct ScaleArguments {
    #[command(flatten)]
    nodes: NodeArguments,
    /// How many pods
    #[arg(long, default_value_t = 3000)]
    pods: usize,
    /// Pods of each Deployment
    #[arg(long, default_value_t = 250)]
    per_deployment: usize,
    /// Namespaces that the Deployments are in
    #[arg(long, default_value_t = 10)]
    namespaces: usize,
    /// An image's name; nothing is pulled
    #[arg(long, default_value = "registry.k8s.io/pause:3.10.1")]
    image: String,
    /// Seconds that each phase may take
    #[arg(long, default_value_t = 1800)]
    timeout: u64,
    /// Seconds that the full cluster is looked at
    #[arg(long, default_value_t = 60)]
    steady: u64,
    /// Leave what was made
    #[arg(long)]
    keep: bool,
    /// A process whose time and memory to report, such as server=1234
    #[arg(long = "process", value_name = "NAME=PID", value_parser = process)]
    processes: Vec<(String, u32)>,
}

impl NodeArguments {
    fn options(&self) -> FleetOptions {
        FleetOptions {
            n_nodes: self.nodes,
            prefix: self.prefix.clone(),
            machine: Machine { cpu: self.cpu.clone(), memory: self.memory.clone(), n_pods: self.max_pods },
            watch: if self.watch_per_node { WatchMode::PerNode } else { WatchMode::Shared },
            heartbeat_spread: Duration::from_secs(self.heartbeat_spread),
        }
    }
}

fn process(text: &str) -> Result<(String, u32)> {
    let Some((name, pid)) = text.split_once('=') else { bail!("{text:?} is not NAME=PID") };
    Ok((name.to_owned(), pid.parse().with_context(|| format!("{pid:?} is no process ID"))?))
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| "warn,kube_client=off".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    let outcome = match Arguments::parse().command {
        Command::Run { nodes, keep } => run(&nodes, keep).await,
        Command::Scale(arguments) => scale(&arguments).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &NodeArguments, keep: bool) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let client = connect(&arguments.kubeconfig).await?;
    let caller = Caller::new(client, usize::from(arguments.concurrency), Arc::new(Latencies::default()));
    let mut fleet = Fleet::start(&arguments.options(), caller, None).await?;
    eprintln!("{} nodes are ready", arguments.nodes);
    let ended = tokio::select! {
        // All three only wait.
        ended = fleet.run() => ended,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    let removed = if keep { fleet.stop().await } else { fleet.remove().await };
    ended.and(removed)
}

async fn scale(arguments: &ScaleArguments) -> Result<()> {
    let options = ScaleOptions {
        fleet: arguments.nodes.options(),
        n_pods: arguments.pods,
        per_deployment: arguments.per_deployment,
        n_namespaces: arguments.namespaces,
        image: arguments.image.clone(),
        n_places: usize::from(arguments.nodes.concurrency),
        timeout: Duration::from_secs(arguments.timeout),
        steady: Duration::from_secs(arguments.steady),
        cleanup: if arguments.keep { Cleanup::Keep } else { Cleanup::Remove },
        processes: arguments.processes.clone(),
    };
    let client = connect(&arguments.nodes.kubeconfig).await?;
    let report = skiff_hollow::scale::run(client, &options).await?;
    eprint!("{}", report.table());
    println!("{}", report.document());
    match report.failure {
        Some(failure) => bail!(failure),
        None => Ok(()),
    }
}
