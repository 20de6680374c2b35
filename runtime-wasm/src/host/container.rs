//! A container's thread: it enters the pod's network namespace and the container's CPU group, and runs the
//! guest there on a tokio runtime of its own.

use std::fs::File;
use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use skiff_cgroup::Group;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use wasmtime::Trap;
use wasmtime_wasi::I32Exit;

use super::budget::{LimitReached, Part};
use super::guest::{Guest, GuestError, Instances, Linked, Made};
use super::heap;
use super::http::{self, Service};
use super::identity;
use super::log::{ContainerLog, Stream, failure};
use super::root::{self, RootError};
use super::seccomp::{self, Filter};
use super::ticker::Ticker;
use crate::record::KILLED;

/// 128 and SIGTERM.
const TERMINATED: i32 = 143;
/// What containerd reports for a container that did not come to run.
const START_FAILED: i32 = 128;
/// Threads for file access and name lookups of one container.
const MAX_BLOCKING_THREADS: usize = 8;
/// How long a guest's file access under way may hold up its container's end.
const BLOCKING_PATIENCE: Duration = Duration::from_secs(2);

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

    fn out_of_memory(message: String) -> Ended {
        Ended { exit_code: KILLED, reason: "OOMKilled", message }
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
    #[error("become user {uid}: {source}")]
    Identity { uid: u32, source: rustix::io::Errno },
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
    let (runtime, listener) = match enter(&launch) {
        Ok(entered) => entered,
        Err(err) => {
            _ = ready.send(Err(err));
            return None;
        }
    };
    // From here on: what the thread needs for itself is not the guest's.
    let counted = launch.instances.budget.heap.enter();
    let ended = runtime.block_on(Box::pin(guest(launch, listener, ready)));
    drop(counted);
    // Before the end is told: whoever hears of it removes the cgroup these threads are in.
    runtime.shutdown_timeout(BLOCKING_PATIENCE);
    ended
}

/// A server's port is taken before the thread becomes the guest's user, who might not be allowed to.
fn enter(launch: &Launch) -> Result<(tokio::runtime::Runtime, Option<TcpListener>), StartError> {
    let spec = &launch.instances.spec;
    launch.cgroup.add_this_thread()?;
    if let Some(path) = &spec.netns {
        let netns =
            File::open(path).map_err(|source| StartError::OpenNetns { path: path.clone(), source })?;
        setns(&netns, CloneFlags::CLONE_NEWNET)
            .map_err(|source| StartError::EnterNetns { path: path.clone(), source })?;
    }
    root::enter(spec, &launch.scratch)?;
    let counter = launch.instances.budget.heap.clone();
    // It starts no thread before it is needed: they will all be the guest's user, too.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A busy guest yields every tick; each time its thread looks at its sockets and timers.
        .event_interval(1)
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(1))
        // SAFETY: the runtime keeps the counter with this function, and its threads the runtime, and they call the next one.
        .on_thread_start(move || unsafe { heap::enter_thread(&counter) })
        .on_thread_stop(heap::leave)
        .build()
        .map_err(StartError::Thread)?;
    let listener = match launch.guest.linked() {
        linked if linked.is_server() => {
            let (port, _runtime) = (spec.http_port, runtime.enter());
            Some(http::listen(port).map_err(|source| StartError::Listen { port, source })?)
        }
        _ => None,
    };
    identity::assume(&spec.identity)
        .map_err(|source| StartError::Identity { uid: spec.identity.uid, source })?;
    seccomp::install(Filter::Guest).map_err(StartError::Seccomp)?;
    Ok((runtime, listener))
}

async fn guest(
    launch: Launch,
    listener: Option<TcpListener>,
    ready: oneshot::Sender<Result<(), StartError>>,
) -> Option<Ended> {
    let mut phase = launch.phase.clone();
    let is_server = listener.is_some();
    let (drain, draining) = watch::channel(false);
    let Launch { guest, instances, ticker, .. } = launch;
    let mut work = match prepare(guest, instances, ticker, listener, draining) {
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
        asked = reached(&mut phase, Phase::Stop) => match asked {
            Phase::Stop if is_server => {
                drain.send_replace(true);
                tokio::select! {
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
    Some(ended)
}

/// Waits until the container is asked for `least` or more; a host that lets go of it asks for its end.
async fn reached(phase: &mut watch::Receiver<Phase>, least: Phase) -> Phase {
    phase.wait_for(|phase| *phase >= least).await.map_or(Phase::Kill, |phase| *phase)
}

type Work = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// The guest's run, or the server that makes an instance a request.
fn prepare(
    guest: Arc<Guest>,
    instances: Instances,
    ticker: Ticker,
    listener: Option<TcpListener>,
    draining: watch::Receiver<bool>,
) -> Result<Work, StartError> {
    // Volumes that cannot be opened fail the start, not what comes later.
    instances.check()?;
    if let Some(listener) = listener {
        let service = Arc::new(Service::new(guest, instances, ticker));
        return Ok(Box::pin(async move {
            http::serve(service, listener, draining).await;
            Ended::exited(0)
        }));
    }
    let part = Part::alone(&instances.budget);
    Ok(Box::pin(async move {
        let log = instances.log.clone();
        let run = ticker.watch(part.clone(), run_alone(&guest, &instances, &part));
        let result = run.await;
        ended(result, &part, &log)
    }))
}

/// Runs a guest on this thread, with what the process that it is in may do. `stop` ends a server when its requests have, and
/// a command at once.
pub(crate) async fn run_here(
    guest: Arc<Guest>,
    instances: Instances,
    ticker: Ticker,
    stop: impl Future<Output = ()>,
) -> Result<Ended, StartError> {
    let port = instances.spec.http_port;
    let listener = match guest.linked().is_server() {
        true => Some(http::listen(port).map_err(|source| StartError::Listen { port, source })?),
        false => None,
    };
    let is_server = listener.is_some();
    let (drain, draining) = watch::channel(false);
    let mut work = prepare(guest, instances, ticker, listener, draining)?;
    tokio::select! {
        ended = &mut work => return Ok(ended),
        () = stop => {}
    }
    if !is_server {
        return Ok(Ended::exited(TERMINATED));
    }
    drain.send_replace(true);
    Ok(work.await)
}

/// A module's or a command's exit code.
async fn run_alone(guest: &Guest, instances: &Instances, part: &Arc<Part>) -> wasmtime::Result<i32> {
    if let Linked::Module(_) = guest.linked() {
        let (mut store, instance) = guest.module(instances, part).await?;
        let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
        return start.call_async(&mut store, ()).await.map(|()| 0);
    }
    let (mut running, made) = guest.component(instances, part).await?;
    let result = match made {
        Made::Command(command) => command.wasi_cli_run().call_run(&mut running.store).await?,
        Made::Command3(command) => {
            let run = running.store.run_concurrent(async |accessor| {
                let result = command.wasi_cli_run().call_run(accessor).await?;
                // Its tasks may go on, as when it writes what it has to say.
                poll_fn(|context| accessor.poll_no_interesting_tasks(context)).await;
                Ok::<_, wasmtime::Error>(result)
            });
            run.await??
        }
        Made::Http(_) | Made::Http3(_) => return Err(GuestError::NoEntry.into()),
    };
    running.has_returned();
    Ok(if result.is_ok() { 0 } else { 1 })
}

fn ended(result: wasmtime::Result<i32>, part: &Part, log: &ContainerLog) -> Ended {
    let err = match result {
        Ok(exit_code) => return Ended::exited(exit_code),
        Err(err) => err,
    };
    if let Some(I32Exit(code)) = err.downcast_ref() {
        // As a process has it: the low eight bits.
        return Ended::exited(code & 0xff);
    }
    let failure = failure(&err);
    // A guest that was told that there is no more memory, and this is what it made of it.
    let is_told = part.was_refused() && err.is::<Trap>();
    let ended = if is_told {
        Ended::out_of_memory(format!("{LimitReached}: {}", failure.reason))
    } else if err.is::<LimitReached>() {
        Ended::out_of_memory(failure.reason)
    } else {
        Ended::error(1, failure.reason)
    };
    log.say(Stream::Stderr, &ended.message);
    log.say_all(Stream::Stderr, &failure.backtrace);
    ended
}
