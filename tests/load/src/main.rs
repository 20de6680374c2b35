//! `skiff-load`: one measurement, as one JSON object. `cargo xtask bench` runs it, once for each side and turn.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use skiff_load::client::Server;
use skiff_load::figures::Figures;
use skiff_load::kubeconfig::Access;
use skiff_load::measure::{
    abuse, access, apply, create, custom, dns, idle, list, pods, proxy, schedule, start, watch, web,
};
use skiff_load::meter::Groups;

/// Bounded load on a Kubernetes API server, and what it takes
#[derive(Parser)]
#[command(name = "skiff-load", version)]
struct Cli {
    /// Of the server that is asked
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    /// Enter this network namespace first, and wait for it if it is not there yet
    #[arg(long, global = true)]
    netns: Option<PathBuf>,
    /// A cgroup of the servers whose CPU and memory is reported; may be given several times
    #[arg(long = "group", global = true)]
    groups: Vec<PathBuf>,
    /// Bound on the whole measurement
    #[arg(long, global = true, default_value_t = 300)]
    timeout_seconds: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Wait until the API server is ready
    Ready,
    /// From the start of a cluster to its first pod
    Start(start::Options),
    /// CPU and memory with nothing to do
    Idle(idle::Options),
    /// Creates of pods
    Create(create::Options),
    /// Lists of pods
    List(list::Options),
    /// Watches of pods
    Watch(watch::Options),
    /// Reads that a role allows
    Access(access::Options),
    /// Make custom resources
    CustomFill(custom::FillOptions),
    /// Creates of custom resources that a webhook reviews, and lists of them
    Custom(custom::Options),
    /// Server-side apply by four managers
    Apply(apply::Options),
    /// Abuse of the API and of a node, with an administrator and a pod that are asked all the while
    Abuse(abuse::Options),
    /// Make nodes that are only objects
    Nodes(schedule::NodesOptions),
    /// Pods on such nodes
    Schedule(schedule::Options),
    /// Starts of real pods
    Pods(pods::Options),
    /// Make Services
    ProxyFill(proxy::FillOptions),
    /// One more endpoint
    Proxy(proxy::Options),
    /// Queries of Services' names
    Dns(dns::Options),
    /// Requests of one HTTP server
    Web(web::Options),
    /// Wait for HTTP servers
    WebReady { addresses: Vec<SocketAddr> },
    /// Make pods that serve HTTP
    WebPods(web::PodsOptions),
    /// Delete them
    WebPodsEnd(web::PodsOptions),
}

const NETNS_TIMEOUT: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Some(netns) = &cli.netns {
        // Before any other thread exists, so that all of them are inside.
        enter(netns)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let bound = Duration::from_secs(cli.timeout_seconds);
    let answer = runtime.block_on(async {
        let measured = tokio::time::timeout(bound, Box::pin(execute(&cli))).await;
        measured.with_context(|| format!("not done after {} s", bound.as_secs()))?
    })?;
    println!("{answer}");
    Ok(())
}

/// A namespace's file exists a moment before the namespace is mounted on it.
fn enter(netns: &Path) -> Result<()> {
    let end = Instant::now() + NETNS_TIMEOUT;
    loop {
        let entered = std::fs::File::open(netns)
            .map_err(anyhow::Error::from)
            .and_then(|file| Ok(setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?));
        match entered {
            Err(error) if Instant::now() > end => {
                return Err(error.context(format!("entering {}", netns.display())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
            Ok(()) => return Ok(()),
        }
    }
}

async fn execute(cli: &Cli) -> Result<Value> {
    let groups = Groups::new(cli.groups.clone());
    let kubeconfig = || cli.kubeconfig.as_deref().context("give the server's --kubeconfig");
    let server = || Server::new(&Access::read(kubeconfig()?)?);
    let values = |figures: Figures| json!({"values": figures.into_value()});
    Ok(match &cli.command {
        Command::Ready => {
            start::ready(kubeconfig()?).await?;
            json!({})
        }
        Command::Start(options) => values(start::run(kubeconfig()?, &groups, options).await?),
        Command::Idle(options) => {
            let (figures, parts) = idle::run(&groups, options).await?;
            json!({"values": figures.into_value(), "parts": parts})
        }
        Command::Create(options) => values(create::run(&server()?, &groups, options).await?),
        Command::List(options) => values(list::run(&server()?, &groups, options).await?),
        Command::Watch(options) => values(watch::run(&server()?, &groups, options).await?),
        Command::Access(options) => values(access::run(&server()?, &groups, options).await?),
        Command::CustomFill(options) => values(custom::fill(&server()?, options).await?),
        Command::Custom(options) => values(custom::run(&server()?, &groups, options).await?),
        Command::Apply(options) => values(apply::run(&server()?, &groups, options).await?),
        Command::Abuse(options) => json!({"cases": abuse::run(&server()?, &groups, options).await?}),
        Command::Nodes(options) => values(schedule::nodes(&server()?, options).await?),
        Command::Schedule(options) => values(schedule::run(&server()?, &groups, options).await?),
        Command::Pods(options) => values(pods::run(&server()?, &groups, options).await?),
        Command::ProxyFill(options) => values(proxy::fill(&server()?, options).await?),
        Command::Proxy(options) => values(proxy::run(&server()?, &groups, options).await?),
        Command::Dns(options) => values(dns::run(&groups, options).await?),
        Command::Web(options) => values(web::run(&groups, options).await?),
        Command::WebReady { addresses } => {
            for address in addresses {
                web::first_answer(*address).await?;
            }
            json!({})
        }
        Command::WebPods(options) => json!({"addresses": web::pods(&server()?, options).await?}),
        Command::WebPodsEnd(options) => {
            web::no_pods(&server()?, options).await?;
            json!({})
        }
    })
}
