//! The command line.

use std::ffi::OsStr;
use std::io::IsTerminal as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::{CommandFactory as _, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::agent::{self, AgentArgs};
use crate::certs::{self, CertsCommand};
use crate::cluster::{self, Cluster};
use crate::image::{self, ImageCommand};
use crate::layout::Layout;
use crate::pki::Clock;
use crate::server::{self, ServerArgs};
use crate::services::{self, ServiceCommand};
use crate::token::{self, TokenCommand};
use crate::wasm::{self, WasmCommand};
use crate::{check, forward, node, turns};

/// How long whatever is still running when a command is done may take to end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// A Kubernetes-compatible cluster in one binary, for Linux containers and WebAssembly
#[derive(Parser, Debug)]
#[command(name = "skiff", version, propagate_version = true)]
struct Cli {
    /// What to log, such as `debug` or `skiff_nodelet=debug`
    #[arg(long, global = true, env = "SKIFF_LOG", default_value = "info,kube_client=off")]
    log: String,
    /// Threads that serve requests; what keeps a processor busy has threads of its own [default: one a processor, two at
    /// least]
    #[arg(long, global = true, env = "SKIFF_THREADS")]
    threads: Option<NonZeroUsize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the control plane and a node on this machine
    Server(Box<ServerArgs>),
    /// Start a throw-away cluster in a network namespace of its own
    Up {
        /// The cluster's name
        #[arg(long, default_value = "skiff")]
        name: String,
        /// Mirrors and credentials of registries, in k3s's format
        #[arg(long, default_value = "/etc/skiff/registries.yaml", env = "SKIFF_REGISTRIES")]
        registries: PathBuf,
        /// How many nodes, each in a network namespace of its own; may grow later [default: as many as there are, or 1]
        #[arg(long)]
        nodes: Option<u8>,
        /// Give each node a segment of its own, with a router between them: pods of different nodes meet in VXLAN
        #[arg(long)]
        routed: bool,
        /// Make the cluster's authority, which lasts ten years, though this machine's clock shows a time before this program
        /// was built
        #[arg(long)]
        accept_clock: bool,
    },
    /// Run a node of a cluster whose server is elsewhere
    Agent(Box<AgentArgs>),
    /// Make, list and delete the tokens that let nodes join
    Token {
        /// A throw-away cluster [default: the one that KUBECONFIG names, or the server on this machine]
        #[arg(long = "name", global = true)]
        cluster: Option<String>,
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Look at the certificates of this machine, and give the cluster's authority a new one
    Certs {
        /// A throw-away cluster, with all of its nodes [default: the server or agent on this machine]
        #[arg(long = "name", global = true)]
        cluster: Option<String>,
        #[command(flatten)]
        layout: Layout,
        #[command(subcommand)]
        command: CertsCommand,
    },
    /// Remove a throw-away cluster and every trace of it
    Down {
        #[arg(long, default_value = "skiff")]
        name: String,
    },
    /// Print a cluster's kubeconfig
    Kubeconfig {
        /// A throw-away cluster [default: the server on this machine]
        #[arg(long)]
        name: Option<String>,
    },
    /// Show where Services are published
    Service {
        /// A throw-away cluster [default: the server on this machine]
        #[arg(long = "name", global = true)]
        cluster: Option<String>,
        #[command(subcommand)]
        command: ServiceCommand,
    },
    /// Look at and change the images of this node
    Image {
        /// A throw-away cluster [default: the server on this machine]
        #[arg(long, global = true)]
        cluster: Option<String>,
        #[command(flatten)]
        layout: Layout,
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Look at Wasm files and images, and run them without a cluster
    Wasm {
        #[command(flatten)]
        layout: Layout,
        #[command(subcommand)]
        command: WasmCommand,
    },
    /// Ask all pods of this node to end, and end those that do not; for when the machine goes down. They start again with
    /// the node
    StopPods {
        #[command(flatten)]
        layout: Layout,
        /// Seconds that they have
        #[arg(long, default_value_t = 30)]
        grace: u32,
    },
    /// Say what this host lacks, and what to do about it
    Check {
        #[command(flatten)]
        layout: Layout,
    },
    /// Print a completion script
    Completion { shell: clap_complete::Shell },
    #[command(hide = true)]
    Forward {
        #[arg(long)]
        name: String,
    },
    #[command(hide = true)]
    Teardown {
        #[command(flatten)]
        layout: Layout,
    },
}

pub(crate) fn run() -> ExitCode {
    let cli = Cli::parse();
    match prepare(&cli).and_then(|()| execute(cli.command, cli.threads)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("skiff: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn prepare(cli: &Cli) -> Result<()> {
    let filter = EnvFilter::try_new(&cli.log).with_context(|| format!("--log {:?}", cli.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        // Said on standard error as well, which panics if it cannot be written: a full disk under the log would end
        // whatever logs.
        .log_internal_errors(false)
        .init();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("a TLS provider was installed before Skiff's own"))
}

fn execute(command: Command, threads: Option<NonZeroUsize>) -> Result<ExitCode> {
    match command {
        Command::Check { layout } => {
            return Ok(if check::run(&layout) { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Certs { cluster, layout, command } => {
            let layouts = match cluster {
                Some(name) => Cluster::open(&name)?.nodes().into_iter().map(|node| node.layout).collect(),
                None => vec![layout],
            };
            let is_well = certs::run(&command, &layouts)?;
            return Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Wasm { layout, command } => return wasm::run(command, &layout),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "skiff", &mut std::io::stdout());
            return Ok(ExitCode::SUCCESS);
        }
        Command::Kubeconfig { name } => {
            let path = kubeconfig(name.as_deref())?;
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            print!("{text}");
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    if matches!(command, Command::Server(_) | Command::Agent(_)) {
        turns::be_short();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.map_or_else(default_threads, NonZeroUsize::get))
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    let outcome = runtime.block_on(serve(command));
    // A piece of work on a thread of its own is not waited for without end.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    outcome.map(|()| ExitCode::SUCCESS)
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(2, NonZeroUsize::get).max(2)
}

async fn serve(command: Command) -> Result<()> {
    match command {
        Command::Server(args) => server::run(*args).await,
        Command::Agent(args) => Box::pin(agent::run(*args)).await,
        Command::Token { cluster, command } => {
            let named = std::env::var_os("KUBECONFIG").filter(|_| cluster.is_none());
            let kubeconfig = match named.as_deref().and_then(first_path) {
                Some(path) => path,
                None => kubeconfig(cluster.as_deref())?,
            };
            token::run(command, &kubeconfig).await
        }
        Command::Teardown { layout } => node::tear_down(&layout).await,
        Command::StopPods { layout, grace } => {
            node::stop_pods(&layout, Duration::from_secs(grace.into())).await
        }
        Command::Up { name, registries, nodes, routed, accept_clock } => {
            let clock = Clock::of(accept_clock);
            Box::pin(cluster::up(&name, &registries, nodes, routed, clock)).await
        }
        Command::Down { name } => cluster::down(&name).await,
        Command::Forward { name } => forward::run(&name).await,
        Command::Service { cluster, command } => {
            services::run(command, &kubeconfig(cluster.as_deref())?).await
        }
        Command::Image { cluster, layout, command } => {
            let layout = match cluster {
                Some(name) => Cluster::open(&name)?.layout(),
                None => layout,
            };
            image::run(command, &layout).await
        }
        Command::Check { .. }
        | Command::Completion { .. }
        | Command::Wasm { .. }
        | Command::Kubeconfig { .. }
        | Command::Certs { .. } => Ok(()),
    }
}

/// The first of several files, as kubectl takes what is in the first that has it.
fn first_path(named: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(named).find(|path| !path.as_os_str().is_empty())
}

fn kubeconfig(name: Option<&str>) -> Result<PathBuf> {
    if let Some(name) = name {
        return Ok(Cluster::open(name)?.kubeconfig());
    }
    let path = PathBuf::from("/etc/skiff/skiff.yaml");
    ensure!(
        path.exists(),
        "{} is not there; is a server running on this machine? for a throw-away cluster give --name",
        path.display()
    );
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_is_the_first_that_the_environment_names() {
        let first = |named: &str| first_path(OsStr::new(named));
        assert_eq!(first("/a/b:/c"), Some("/a/b".into()));
        assert_eq!(first(":/c"), Some("/c".into()));
        assert_eq!(first(""), None);
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
