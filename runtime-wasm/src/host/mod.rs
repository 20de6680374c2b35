//! `skiff wasm-host --name NAME --state-dir DIR --run-dir DIR --cgroup PATH`: the process that runs the Wasm
//! containers of one trust domain.
//!
//! [`main`] binds the host's socket, leaves its parent behind and returns in the first process once the host
//! answers. The host ends by itself when it has run nothing for a while.
//!
//! - [`server`]: requests, records, events. [`container`]: a container's thread. [`guest`]: modules and
//!   components. [`log`]: output. [`ticker`]: epochs.
//! - [`http`]: a server's connections and requests; [`admission`]: who of them is let in; [`body`]: what they read and write;
//!   [`stream`]: their sockets. [`outgoing`]: requests that guests send. [`handler`] and [`written`]:
//!   what is different in WASI 0.3.
//! - [`budget`]: memory; [`heap`]: what of it the host holds for guests. [`descriptors`] and [`descriptors3`]: each container's share of the process's descriptors.
//! - [`root`]: what a container sees of the file system. [`identity`]: who it is there. [`seccomp`]: system calls that
//!   nobody here needs.
//!
//! # Assumptions
//! [`main`] runs before the process has a second thread: it forks.

mod admission;
mod body;
pub(crate) mod budget;
pub(crate) mod container;
pub(crate) mod descriptors;
mod descriptors3;
pub(crate) mod guest;
mod handler;
mod heap;
mod http;
mod identity;
pub(crate) mod log;
mod outgoing;
mod root;
mod seccomp;
mod server;
mod stream;
pub(crate) mod ticker;
mod written;

pub use self::heap::CountingAllocator;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use nix::unistd::{ForkResult, fork, setsid};
use rustix::process::{DumpableBehavior, Resource, Rlimit, setrlimit};
use rustix::thread::CapabilitySet;
use skiff_cgroup::{Cgroups, Limits};
use skiff_cri::keep::{self, Keep};

use self::seccomp::Filter;
use crate::hosts::{HostFiles, HostRecord};
use crate::process::ProcessId;
use crate::record::Records;
use crate::{engine, lock};

/// Descriptors that a host asks for: the kernel's own bound of a process, unless someone has changed it.
const WANTED_FILES: u64 = 1 << 20;
/// How long a host stays that has nothing to run.
const IDLE: Duration = Duration::from_secs(10);
/// A log that grew further is begun anew when its host starts.
const MAX_LOG_BYTES: u64 = 1 << 20;

/// Entering network namespaces, making mounts and becoming who a guest is to be, on top of what guests' threads may keep.
const HOST_CAPABILITIES: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::NET_BIND_SERVICE);

#[derive(Debug, thiserror::Error)]
enum HostStartError {
    #[error("usage: wasm-host --name NAME --state-dir DIR --run-dir DIR --cgroup PATH")]
    Usage,
    #[error("{operation} {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{operation}: {source}")]
    Process { operation: &'static str, source: io::Error },
    #[error("make a Wasm engine: {0}")]
    Engine(String),
    #[error(transparent)]
    Cgroup(#[from] skiff_cgroup::Error),
    #[error(transparent)]
    Record(#[from] crate::record::RecordError),
    #[error("{0}")]
    Child(String),
}

struct Args {
    files: HostFiles,
    state_dir: PathBuf,
    run_dir: PathBuf,
    cgroup: String,
}

/// Runs with the arguments after the subcommand's name.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let started = parse(args).and_then(|args| start(&args));
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{err}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Args, HostStartError> {
    let (mut name, mut state_dir, mut run_dir, mut cgroup) = (None, None, None, None);
    while let Some(flag) = args.next() {
        let value = args.next();
        match flag.to_str() {
            Some("--name") => name = value.and_then(|value| value.into_string().ok()),
            Some("--state-dir") => state_dir = value.map(PathBuf::from),
            Some("--run-dir") => run_dir = value.map(PathBuf::from),
            Some("--cgroup") => cgroup = value.and_then(|value| value.into_string().ok()),
            _ => return Err(HostStartError::Usage),
        }
    }
    match (name, state_dir, run_dir, cgroup) {
        (Some(name), Some(state_dir), Some(run_dir), Some(cgroup)) => {
            Ok(Args { files: HostFiles::new(&run_dir, &name), state_dir, run_dir, cgroup })
        }
        _ => Err(HostStartError::Usage),
    }
}

/// In the first process: until the host answers. In the host: until it ends.
fn start(args: &Args) -> Result<(), HostStartError> {
    let process = |operation| move |source: io::Error| HostStartError::Process { operation, source };
    close_inherited().map_err(process("close inherited descriptors"))?;
    let lock = lock::take(&args.files.lock);
    let io = |source| HostStartError::Io { operation: "lock", path: args.files.lock.clone(), source };
    let Some(lock) = lock.map_err(io)? else {
        // Another one started meanwhile; the caller finds its socket.
        return Ok(());
    };
    let listener = bind(&args.files.socket)?;
    let (ready, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|err| process("make a pipe")(err.into()))?;
    // SAFETY: there is one thread, so the child finds no lock held that it could wait for.
    match unsafe { fork() }.map_err(|err| process("fork")(err.into()))? {
        ForkResult::Parent { .. } => {
            drop((tell, listener));
            await_host(ready)
        }
        ForkResult::Child => {
            drop(ready);
            let mut tell = File::from(tell);
            match become_host(args, listener, &mut tell) {
                Ok(()) => {}
                // Once the caller has been told, the pipe is closed and this goes nowhere.
                Err(err) => _ = write!(tell, "{err}"),
            }
            drop(lock);
            Ok(())
        }
    }
}

/// The host says `+` when it answers, and otherwise why it does not.
fn await_host(ready: OwnedFd) -> Result<(), HostStartError> {
    let mut said = String::new();
    let read = File::from(ready).take(4096).read_to_string(&mut said);
    match (read, said.as_str()) {
        (Ok(_), "+") => Ok(()),
        (Ok(_), "") => Err(HostStartError::Child("the host ended before it answered".to_owned())),
        (Ok(_), _) => Err(HostStartError::Child(said)),
        (Err(source), _) => Err(HostStartError::Process { operation: "wait for the host", source }),
    }
}

fn become_host(args: &Args, listener: UnixListener, tell: &mut File) -> Result<(), HostStartError> {
    let process = |operation| move |source: io::Error| HostStartError::Process { operation, source };
    setsid().map_err(|err| process("leave the session")(err.into()))?;
    std::env::set_current_dir("/").map_err(process("change to /"))?;
    redirect(&args.files.log)?;
    harden().map_err(|err| process("harden the host")(err.into()))?;

    let cgroups = Cgroups::detect()?;
    let group = cgroups.group(&args.cgroup)?;
    group.adopt_this_process()?;
    // As a Linux container: no guest asks for swap.
    group.set(&Limits { swap_bytes: Some(0), ..Limits::default() })?;
    identity::keep_capabilities(HOST_CAPABILITIES).map_err(|err| process("drop capabilities")(err.into()))?;
    seccomp::install(Filter::Host).map_err(process("restrict system calls"))?;

    let engines = engine::runners().map_err(|err| HostStartError::Engine(format!("{err:#}")))?;
    let id = ProcessId::current().map_err(process("find this process"))?;
    let record = HostRecord { name: args.files.name.clone(), process: id, cgroup: args.cgroup.clone() };
    let file = &args.files.record;
    let io = |source| HostStartError::Io { operation: "write", path: file.clone(), source };
    let record = serde_json::to_vec(&record).map_err(|err| io(err.into()))?;
    keep::write(file, &record, Keep::Whole).map_err(io)?;

    if !heap::is_counted() {
        tracing::warn!("what guests make this host hold is not counted: the program has another allocator");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(process("start the runtime"))?;
    let (loader, loads) = guest::loader();
    let host = server::Host {
        name: args.files.name.clone(),
        process: id,
        state_dir: args.state_dir.clone(),
        run_dir: args.run_dir.clone(),
        compatibility: engine::compatibility(&engines.pooled),
        ticker: ticker::Ticker::start(engines.clone()).map_err(process("start the ticker"))?,
        engines,
        loader,
        records: Records::open(&args.state_dir)?,
        cgroups,
        group,
        containers: Default::default(),
        guests: Default::default(),
        pods: Default::default(),
        events: server::events(),
        n_busy: AtomicUsize::new(0),
        changed: tokio::sync::Notify::new(),
    };
    runtime.block_on(async {
        listener.set_nonblocking(true).map_err(process("listen"))?;
        let listener = tokio::net::UnixListener::from_std(listener).map_err(process("listen"))?;
        tell.write_all(b"+").map_err(process("tell that the host is ready"))?;
        *tell = OpenOptions::new().write(true).open("/dev/null").map_err(process("open /dev/null"))?;
        Arc::new(host).serve(listener, loads, IDLE).await;
        Ok::<(), HostStartError>(())
    })?;
    // Nodelet removes the rest when it sees that this process is gone.
    _ = fs::remove_file(&args.files.socket);
    Ok(())
}

/// Whatever nodelet had open is none of the host's business, and would keep its sockets alive.
fn close_inherited() -> io::Result<()> {
    // SAFETY: nothing in this process owns a descriptor above the standard three yet.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// With the lock held, a socket that lies there belongs to a host that is no more.
fn bind(socket: &Path) -> Result<UnixListener, HostStartError> {
    let io = |source| HostStartError::Io { operation: "bind", path: socket.to_owned(), source };
    match fs::remove_file(socket) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(io(err)),
        _ => {}
    }
    // Of this process, which is about to become the host; files it makes for itself are 0600 anyway.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let listener = UnixListener::bind(socket).map_err(io)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).map_err(io)?;
    Ok(listener)
}

/// Input from nowhere, output to the host's log.
fn redirect(log: &Path) -> Result<(), HostStartError> {
    let io = |source| HostStartError::Io { operation: "open", path: log.to_owned(), source };
    let is_full = fs::metadata(log).is_ok_and(|file| file.len() > MAX_LOG_BYTES);
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let log = match is_full {
        true => options.write(true).truncate(true).open(log),
        false => options.append(true).open(log),
    };
    let log = log.map_err(io)?;
    let null = File::open("/dev/null").map_err(io)?;
    let attempt = || -> nix::Result<()> {
        nix::unistd::dup2_stdin(null.as_fd())?;
        nix::unistd::dup2_stdout(log.as_fd())?;
        nix::unistd::dup2_stderr(log.as_fd())
    };
    attempt().map_err(|err| io(err.into()))
}

fn harden() -> Result<(), rustix::io::Errno> {
    // Nodelet protects itself from the kernel's OOM killer; its guests are not to inherit that. Raising one's
    // own score is always allowed, so a failure means that there is no such file here.
    _ = fs::write("/proc/self/oom_score_adj", "0");
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let files = rustix::process::getrlimit(Resource::Nofile);
    // Each container may take its share of this: where the kernel lets us, there is room for hundreds of them.
    let more = files.maximum.map(|maximum| maximum.max(WANTED_FILES));
    if setrlimit(Resource::Nofile, Rlimit { current: more, maximum: more }).is_err() {
        setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum })?;
    }
    // A user's threads on the node are no business of a guest that has his number.
    _ = setrlimit(Resource::Nproc, Rlimit { current: None, maximum: None });
    // SAFETY: sets a flag of this process. A page fault is then a page, which is how guests' memory is counted.
    _ = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    // SAFETY: changes a number inside the allocator. A heap a thread would cost far more than it saves here.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
    Ok(())
}
