//! A container's thread: it enters the pod's network namespace and the container's CPU group, and runs the
//! guest there on a tokio runtime of its own.

use std::fs::File;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use rustix::thread::{CapabilitySet, CapabilitySets};
use skiff_cgroup::Group;
use tokio::sync::{oneshot, watch};
use wasmtime::{InstancePre, Store, Trap};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p2::bindings::CommandPre;

use super::guest::{ComponentState, Guest, GuestError, Instances, ModuleState};
use super::http::{self, Service};
use super::log::Stream;
use super::root::{self, RootError};
use super::seccomp::{self, Filter};
use super::ticker::Ticker;
use crate::compile::one_line;
use crate::record::KILLED;

/// 128 and SIGTERM.
const TERMINATED: i32 = 143;
/// What containerd reports for a container that did not come to run.
const START_FAILED: i32 = 128;
/// Threads for file access and name lookups of one container.
const MAX_BLOCKING_THREADS: usize = 8;
/// How long a guest's file access under way may hold up its container's end.
const BLOCKING_PATIENCE: Duration = Duration::from_secs(2);

/// Rights of the thread that runs guests: files of whoever owns a volume, and ports below 1024.
const GUEST_CAPABILITIES: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// What the container has been asked to do, in this order only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Phase {
    Run,
    /// SIGTERM, as far as a guest can have it: a server drains, a command ends.
    Stop,
    /// SIGKILL.
    Kill,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) exit_code: i32,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Ended {
    fn exited(exit_code: i32) -> Ended {
        let reason = if exit_code == 0 { "Completed" } else { "Error" };
        Ended { exit_code, reason, message: String::new() }
    }

    fn error(exit_code: i32, message: String) -> Ended {
        Ended { exit_code, reason: "Error", message }
    }

    fn out_of_memory() -> Ended {
        Ended { exit_code: KILLED, reason: "OOMKilled", message: String::new() }
    }

    pub(crate) fn not_started(message: String) -> Ended {
        Ended { exit_code: START_FAILED, reason: "StartError", message }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("start the container's thread: {0}")]
    Thread(std::io::Error),
    #[error("open the pod's network namespace {path}: {source}")]
    OpenNetns { path: PathBuf, source: std::io::Error },
    #[error("enter the pod's network namespace {path}: {source}")]
    EnterNetns { path: PathBuf, source: nix::Error },
    #[error("enter the container's cgroup: {0}")]
    Cgroup(#[from] skiff_cgroup::Error),
    #[error("make the container's file system: {0}")]
    Root(#[from] RootError),
    #[error("drop capabilities: {0}")]
    Capabilities(rustix::io::Errno),
    #[error("restrict system calls: {0}")]
    Seccomp(std::io::Error),
    #[error("listen on port {port} in the pod: {source}")]
    Listen { port: u16, source: std::io::Error },
    #[error(transparent)]
    Guest(#[from] GuestError),
}

pub(crate) struct Launch {
    pub(crate) guest: Arc<Guest>,
    pub(crate) instances: Instances,
    pub(crate) cgroup: Group,
    /// A directory that holds nothing a container needs; see [`root::enter`].
    pub(crate) scratch: PathBuf,
    pub(crate) ticker: Ticker,
    pub(crate) phase: watch::Receiver<Phase>,
}

/// A container's thread that runs its guest by now.
pub(crate) struct Running {
    pub(crate) thread: JoinHandle<()>,
    pub(crate) ended: oneshot::Receiver<Ended>,
}

/// Returns once the guest runs; a server listens by then.
pub(crate) async fn launch(launch: Launch) -> Result<Running, StartError> {
    let (ready_sender, ready) = oneshot::channel();
    let (end_sender, ended) = oneshot::channel();
    let id = &launch.instances.spec.id;
    let name = format!("wasm-{}", id.get(..10).unwrap_or(id));
    let thread = thread::Builder::new()
        .name(name)
        .spawn(move || {
            if let Some(ended) = run(launch, ready_sender) {
                _ = end_sender.send(ended);
            }
        })
        .map_err(StartError::Thread)?;
    match ready.await {
        Ok(Ok(())) => Ok(Running { thread, ended }),
        Ok(Err(err)) => Err(err),
        Err(_) => Err(StartError::Thread(std::io::Error::other("the thread panicked"))),
    }
}

/// The thread. `None` if the guest was never run; `ready` says why.
fn run(launch: Launch, ready: oneshot::Sender<Result<(), StartError>>) -> Option<Ended> {
    let runtime = match enter(&launch) {
        Ok(runtime) => runtime,
        Err(err) => {
            _ = ready.send(Err(err));
            return None;
        }
    };
    let ended = runtime.block_on(Box::pin(guest(launch, ready)));
    // Before the end is told: whoever hears of it removes the cgroup these threads are in.
    runtime.shutdown_timeout(BLOCKING_PATIENCE);
    ended
}

fn enter(launch: &Launch) -> Result<tokio::runtime::Runtime, StartError> {
    launch.cgroup.add_this_thread()?;
    if let Some(path) = &launch.instances.spec.netns {
        let netns =
            File::open(path).map_err(|source| StartError::OpenNetns { path: path.clone(), source })?;
        setns(&netns, CloneFlags::CLONE_NEWNET)
            .map_err(|source| StartError::EnterNetns { path: path.clone(), source })?;
    }
    root::enter(&launch.instances.spec, &launch.scratch)?;
    drop_capabilities(GUEST_CAPABILITIES).map_err(StartError::Capabilities)?;
    seccomp::install(Filter::Guest).map_err(StartError::Seccomp)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A busy guest yields every tick; each time its thread looks at its sockets and timers.
        .event_interval(1)
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .map_err(StartError::Thread)
}

/// Keeps at most `keep` of this thread's capabilities, for good: threads it starts have no more either.
pub(crate) fn drop_capabilities(keep: CapabilitySet) -> Result<(), rustix::io::Errno> {
    let now = rustix::thread::capabilities(None)?;
    let sets = CapabilitySets {
        effective: now.effective & keep,
        permitted: now.permitted & keep,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets)
}

async fn guest(launch: Launch, ready: oneshot::Sender<Result<(), StartError>>) -> Option<Ended> {
    let mut phase = launch.phase.clone();
    let budget = launch.instances.budget.clone();
    let log = launch.instances.log.clone();
    let guest = launch.guest.clone();
    let is_server = matches!(*guest, Guest::Http(_));
    let (drain, draining) = watch::channel(false);
    let mut work = match prepare(&guest, launch, draining) {
        Ok(work) => work,
        Err(err) => {
            _ = ready.send(Err(err));
            return None;
        }
    };
    _ = ready.send(Ok(()));

    // Whichever comes first; dropping `work` then unwinds the guest, wherever it is.
    let ended = tokio::select! {
        biased;
        () = budget.exceeding() => Ended::out_of_memory(),
        asked = reached(&mut phase, Phase::Stop) => match asked {
            Phase::Stop if is_server => {
                drain.send_replace(true);
                tokio::select! {
                    () = budget.exceeding() => Ended::out_of_memory(),
                    _ = reached(&mut phase, Phase::Kill) => Ended::exited(KILLED),
                    ended = &mut work => ended,
                }
            }
            // No signal reaches a command's guest, so waiting would change nothing.
            Phase::Stop => Ended::exited(TERMINATED),
            Phase::Run | Phase::Kill => Ended::exited(KILLED),
        },
        ended = &mut work => ended,
    };
    drop(work);
    let ended = if budget.is_exceeded() { Ended::out_of_memory() } else { ended };
    if !ended.message.is_empty() {
        log.say(Stream::Stderr, &ended.message);
    }
    Some(ended)
}

/// Waits until the container is asked for `least` or more; a host that lets go of it asks for its end.
async fn reached(phase: &mut watch::Receiver<Phase>, least: Phase) -> Phase {
    phase.wait_for(|phase| *phase >= least).await.map_or(Phase::Kill, |phase| *phase)
}

type Work = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// Makes the guest's instance, or the server that makes one a request.
fn prepare(guest: &Guest, launch: Launch, draining: watch::Receiver<bool>) -> Result<Work, StartError> {
    let Launch { instances, ticker, .. } = launch;
    match guest {
        Guest::Module(pre) => {
            let (mut store, pre) = (instances.module_store()?, pre.clone());
            Ok(Box::pin(ticker.watch(async move { ended(run_module(&mut store, &pre).await) })))
        }
        Guest::Command(pre) => {
            let (mut store, pre) = (instances.component_store()?, pre.clone());
            Ok(Box::pin(ticker.watch(async move {
                match run_command(&mut store, &pre).await {
                    Ok(Ok(())) => Ended::exited(0),
                    Ok(Err(())) => Ended::exited(1),
                    Err(err) => ended(Err(err)),
                }
            })))
        }
        Guest::Http(pre) => {
            // Volumes that cannot be opened fail the start, not each request.
            instances.component_store()?;
            let port = instances.spec.http_port;
            let listener = http::listen(port).map_err(|source| StartError::Listen { port, source })?;
            let service = Arc::new(Service::new(pre.clone(), instances, ticker));
            Ok(Box::pin(async move {
                http::serve(service, listener, draining).await;
                Ended::exited(0)
            }))
        }
    }
}

async fn run_command(
    store: &mut Store<ComponentState>,
    pre: &CommandPre<ComponentState>,
) -> wasmtime::Result<Result<(), ()>> {
    let command = pre.instantiate_async(&mut *store).await?;
    command.wasi_cli_run().call_run(&mut *store).await
}

async fn run_module(store: &mut Store<ModuleState>, pre: &InstancePre<ModuleState>) -> wasmtime::Result<()> {
    let instance = pre.instantiate_async(&mut *store).await?;
    let start = instance.get_typed_func::<(), ()>(&mut *store, "_start")?;
    start.call_async(&mut *store, ()).await
}

fn ended(result: wasmtime::Result<()>) -> Ended {
    let err = match result {
        Ok(()) => return Ended::exited(0),
        Err(err) => err,
    };
    if let Some(I32Exit(code)) = err.downcast_ref() {
        // As a process has it: the low eight bits.
        return Ended::exited(code & 0xff);
    }
    match err.downcast_ref::<Trap>() {
        Some(trap) => {
            let trap = trap.to_string();
            let trap = trap.strip_prefix("wasm trap: ").unwrap_or(&trap);
            Ended::error(1, format!("wasm trap: {trap}"))
        }
        None => Ended::error(1, one_line(&err)),
    }
}
