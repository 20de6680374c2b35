//! [`OciRuntime`]: the containers of one OCI runtime.
//!
//! ```text
//!   create ──▶ Created ──start──▶ Running ──▶ Exited ──remove──▶ gone
//!                 │                  └─ shim killed, reboot ─▶ Exited (ContainerStatusUnknown)
//!                 └──start fails──▶ Exited (StartError)
//! ```

mod found;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use skiff_cgroup::Group;
use skiff_cri::v1::{LinuxContainerResources, Signal};
use skiff_cri::{
    Attach, ContainerEvent, ContainerRuntime, CreateContainer, CriError, ExecProcess, ExecSession,
    RuntimeContainer, RuntimeState, Usage, keep::Keep,
};
use skiff_images::{Image, ImageKind};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;

use crate::bundle::{self, Bundle};
use crate::client::{self, ANSWER_TIME, ShimConnection};
use crate::host::Host;
use crate::protocol::{Answer, Exit, MAX_MESSAGE_BYTES, Request, ShimConfig};
use crate::record::{Record, StartError, now_ns, write_json};
use crate::runc::{self, RuncVersion};
use crate::spec::{self, PidNamespace};
use crate::{Error, OciConfig, apparmor, attach, exec};

/// For the OCI runtime to start a container: what the kubelet gives a runtime.
const START_TIME: Duration = Duration::from_secs(120);
/// From SIGKILL to the end.
const KILL_TIME: Duration = Duration::from_secs(10);
/// For a command of the OCI runtime that only changes something.
const COMMAND_TIME: Duration = Duration::from_secs(30);
/// How long the size of a writable layer, which is a walk over its files, holds.
const WRITABLE_AGE: Duration = Duration::from_secs(30);
/// Events a listener may fall behind.
const N_EVENTS: usize = 1024;
/// What the kubelet shows for a container that could not be started.
const START_FAILED: i32 = 128;

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// Linux containers over one OCI runtime's binary.
pub struct OciRuntime {
    config: OciConfig,
    host: Host,
    containers: RwLock<HashMap<String, Arc<Container>>>,
    events: broadcast::Sender<ContainerEvent>,
}

/// One container and the state of its life.
pub(crate) struct Container {
    bundle: Bundle,
    group: Group,
    id: String,
    /// Held over start and remove: one change at a time.
    changing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    ended: watch::Sender<bool>,
    writable: Mutex<Option<Writable>>,
    /// What was counted last, for those who come while it is counted again.
    writable_bytes: AtomicU64,
}

/// When the writable layer was counted last, and how long that took.
struct Writable {
    at: Instant,
    took: Duration,
}

struct State {
    record: Record,
    pid: Option<i32>,
    exit: Option<Exit>,
}

impl OciRuntime {
    /// Opens the state directory and finds the containers of an earlier life: those whose shim answers run
    /// on, those whose shim was killed are ended. Call it within a tokio runtime.
    pub async fn open(config: OciConfig) -> Result<Arc<OciRuntime>, Error> {
        for directory in [&config.state_dir, &config.root] {
            std::fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        }
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&config.state_dir, private)
            .map_err(Error::io("protect", &config.state_dir))?;
        let mut host = Host::detect(config.cgroups.version());
        host.has_default_profile = host.has_apparmor && apparmor::load().await;
        let (events, _) = broadcast::channel(N_EVENTS);
        let runtime = OciRuntime { config, host, containers: RwLock::default(), events };
        // There from the start: a shim that could not make it would stay where it was started.
        let shims = runtime.config.cgroups.group(&runtime.config.shim_cgroup)?;
        shims.create()?;
        let found = runtime.find().await?;
        let by_id = found.into_iter().map(|container| (container.id.clone(), container));
        *runtime.containers.write() = by_id.collect();
        Ok(Arc::new(runtime))
    }

    /// The installed binary's version. Logs a warning if it has known escapes.
    pub async fn version(&self) -> Result<RuncVersion, Error> {
        let mut command = Command::new(&self.config.runc);
        command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
        let output = match timeout(COMMAND_TIME, command.output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(_)) => return Err(Error::NoBinary { binary: self.config.runc.clone() }),
            Err(_) => return Err(self.timed_out("--version", "", COMMAND_TIME)),
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let version = RuncVersion::parse(&text).ok_or_else(|| Error::Runc {
            command: "--version",
            id: String::new(),
            detail: format!("unknown answer {:?}", text.chars().take(100).collect::<String>()),
        })?;
        if version.is_outdated() {
            tracing::warn!(
                "{version} has known container escapes unless its distribution patched them: 1.2.8 and 1.3.3 have the fixes"
            );
        }
        Ok(version)
    }

    fn get(&self, id: &str) -> Result<Arc<Container>, Error> {
        self.containers.read().get(id).cloned().ok_or_else(|| Error::NotFound { id: id.to_owned() })
    }

    fn timed_out(&self, operation: &'static str, id: &str, after: Duration) -> Error {
        Error::Timeout { operation, id: id.to_owned(), seconds: after.as_secs() }
    }

    async fn prepare(&self, create: CreateContainer) -> Result<(), Error> {
        let id = create.id.clone();
        // It names a directory, a cgroup and an argument of the OCI runtime.
        if id.is_empty() || id.len() > 128 || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Error::Spec { id, detail: "a container ID is letters and digits".to_owned() });
        }
        let image = self.config.images.resolve(&create.image.id);
        let image = image.ok_or_else(|| Error::NoImage { id: create.image.id.clone() })?;
        if image.kind != ImageKind::Linux {
            let detail = format!("image {:?} is a WebAssembly module", create.image.name);
            return Err(Error::Spec { id, detail });
        }
        let group = self.config.cgroups.group(&format!("{}/{id}", create.sandbox.cgroup))?;
        let bundle = Bundle { directory: self.config.state_dir.join(&id) };
        if self.containers.read().contains_key(&id) {
            return Err(Error::Exists { id });
        }
        let pid_namespace =
            spec::pid_namespace(&create.config, &create.sandbox, |target| self.pid_of(target))
                .map_err(|detail| Error::Spec { id: id.clone(), detail })?;
        let record = Record {
            id: id.clone(),
            sandbox_id: create.sandbox.id.clone(),
            cgroup: group.path().to_owned(),
            stop_signal: stop_signal(&create.config, &image),
            created_at_ns: now_ns(),
            start_attempted: false,
            started_at_ns: 0,
            start_error: None,
        };
        let layers = self.config.images.rootfs_layers(&image);
        let mounted = self.mounted_images(&create)?;
        let (config, host) = (self.config.clone(), self.host.clone());
        let container = blocking(move || {
            let made =
                make_bundle(&config, &host, &bundle, &create, &image, (&layers, &mounted), pid_namespace)
                    .and_then(|()| {
                        let written = record.write(&bundle.directory, Keep::Durable);
                        let kept = written.and_then(|()| found::sync_parent(&bundle.directory));
                        kept.map_err(Error::io("write", &bundle.directory))
                    });
            if let Err(err) = made {
                if let Err(leftover) = bundle.remove() {
                    tracing::warn!("after a failed create: {leftover}");
                }
                return Err(err);
            }
            Ok(Container::new(group, bundle, record, None))
        })
        .await?;
        let event = container.event();
        self.containers.write().insert(id, container);
        let _nobody_listens = self.events.send(event);
        Ok(())
    }

    /// The layers of the images that a container mounts.
    fn mounted_images(&self, create: &CreateContainer) -> Result<Vec<Vec<PathBuf>>, Error> {
        let images = create.config.mounts.iter().filter_map(|mount| mount.image.as_ref());
        let layers = images.map(|wanted| {
            let image = self.config.images.resolve(&wanted.image);
            let image = image.ok_or_else(|| Error::NoImage { id: wanted.image.clone() })?;
            if image.kind != ImageKind::Linux {
                let detail =
                    format!("image {:?} is a WebAssembly module, which no volume can be", wanted.image);
                return Err(Error::Spec { id: create.id.clone(), detail });
            }
            Ok(self.config.images.rootfs_layers(&image))
        });
        layers.collect()
    }

    fn pid_of(&self, id: &str) -> Option<u32> {
        let container = self.get(id).ok()?;
        let pid = container.running_pid()?;
        u32::try_from(pid).ok()
    }

    async fn start_container(&self, container: &Arc<Container>) -> Result<(), Error> {
        let id = &container.id;
        let _alone = container.changing.lock().await;
        let record = {
            let mut state = container.state.lock();
            if state.record.start_attempted {
                return Err(Error::State { id: id.clone(), state: state.name() });
            }
            state.record.start_attempted = true;
            state.record.clone()
        };
        container.write(record).await.map_err(Error::io("write", container.directory()))?;
        match self.run_shim(container).await {
            Ok(()) => {
                let _nobody_listens = self.events.send(container.event());
                Ok(())
            }
            Err(err) => {
                self.clean_up_failed(container, &err).await;
                Err(err)
            }
        }
    }

    async fn run_shim(&self, container: &Arc<Container>) -> Result<(), Error> {
        let id = &container.id;
        let shim = |detail: String| Error::Shim { id: id.clone(), detail };
        let (program, args) =
            self.config.shim_command.split_first().ok_or_else(|| shim("no command".to_owned()))?;
        let directory = container.directory();
        let errors =
            std::fs::File::create(directory.join("shim.log")).map_err(Error::io("create", directory))?;
        let mut command = Command::new(program);
        command.args(args).arg(directory);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().map_err(|err| shim(format!("start {program:?}: {err}")))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut stdout = BufReader::new(stdout.take(MAX_MESSAGE_BYTES as u64));
            match timeout(START_TIME, stdout.read_line(&mut line)).await {
                Ok(read) => read.map_err(|err| shim(err.to_string())).map(|_| ())?,
                Err(_) => {
                    let _gone = child.start_kill();
                    return Err(self.timed_out("start", id, START_TIME));
                }
            }
        }
        match serde_json::from_str(&line) {
            Ok(Answer::Running { pid, started_at_ns }) => {
                container.started(pid, started_at_ns).await;
                match timeout(ANSWER_TIME, watch_shim(directory)).await {
                    Ok(Ok((connection, ..))) => {
                        crate::watch::spawn(container.clone(), connection, Some(child), self.events.clone());
                    }
                    // It has ended already.
                    _ => {
                        container.ended(crate::watch::after_silence(container).await);
                        crate::watch::let_go(container).await;
                        let _reaped = child.wait().await;
                    }
                }
                Ok(())
            }
            Ok(Answer::Failed { message }) => {
                let _reaped = child.wait().await;
                if !is_installed(&self.config.runc) {
                    return Err(Error::NoBinary { binary: self.config.runc.clone() });
                }
                Err(Error::Start { detail: message })
            }
            _ => {
                let status =
                    child.wait().await.map_or_else(|err| err.to_string(), |status| status.to_string());
                Err(shim(format!("ended before the container ran: {status}")))
            }
        }
    }

    /// After a failed start nothing may be left but the record of it.
    async fn clean_up_failed(&self, container: &Arc<Container>, err: &Error) {
        if let Err(err) = self.delete(container).await {
            tracing::warn!("after a failed start: {err}");
        }
        let record = {
            let mut state = container.state.lock();
            state.record.start_error = Some(StartError { at_ns: now_ns(), message: err.to_string() });
            state.record.clone()
        };
        if let Err(err) = container.write(record).await {
            tracing::warn!(container = container.id, "record a failed start: {err}");
        }
        container.ended.send_replace(true);
        let _nobody_listens = self.events.send(container.event());
    }

    async fn stop_container(&self, container: &Arc<Container>, grace: Duration) -> Result<(), Error> {
        // Not over the wait: a second, more impatient caller must get through.
        drop(container.changing.lock().await);
        if container.running_pid().is_none() {
            return Ok(());
        }
        let mut ended = container.ended.subscribe();
        let mut has_ended = async move |within: Duration| {
            matches!(timeout(within, ended.wait_for(|end| *end)).await, Ok(Ok(_)))
        };
        if !grace.is_zero() {
            let signal = container.state.lock().record.stop_signal;
            self.signal(container, signal).await;
            if has_ended(grace).await {
                return Ok(());
            }
        }
        self.signal(container, SIGKILL).await;
        if has_ended(KILL_TIME).await {
            return Ok(());
        }
        // The shim does not answer: without it, by the cgroup.
        let group = container.group.clone();
        blocking(move || Ok(group.kill()?)).await?;
        if has_ended(KILL_TIME).await {
            Ok(())
        } else {
            Err(self.timed_out("stop", &container.id, KILL_TIME))
        }
    }

    async fn signal(&self, container: &Container, signal: i32) {
        if let Err(err) = client::call(container.directory(), &Request::Kill { signal }).await
            && container.running_pid().is_some()
        {
            tracing::warn!(container = container.id, "signal {signal}: {err}");
        }
    }

    /// Takes away what the OCI runtime and the kernel keep of the container.
    async fn delete(&self, container: &Container) -> Result<(), Error> {
        let mut command = Command::from(runc::command(&self.config.runc, &self.config.root, None));
        command.args(["delete", "--force", &container.id]);
        let output = run(command, None).await.map_err(|detail| Error::Runc {
            command: "delete",
            id: container.id.clone(),
            detail,
        });
        match output {
            Err(Error::Runc { detail, .. }) if detail.contains("does not exist") => {}
            Err(err) if is_installed(&self.config.runc) => return Err(err),
            _ => {}
        }
        let group = container.group.clone();
        blocking(move || {
            group.kill()?;
            Ok(group.remove()?)
        })
        .await
    }

    async fn remove_container(&self, container: &Arc<Container>) -> Result<(), Error> {
        self.stop_container(container, Duration::ZERO).await?;
        let _alone = container.changing.lock().await;
        let attempted = container.state.lock().record.start_attempted;
        if attempted {
            self.delete(container).await?;
        }
        let bundle = container.bundle.clone();
        blocking(move || bundle.remove()).await?;
        self.containers.write().remove(&container.id);
        let _nobody_listens = self.events.send(container.event());
        Ok(())
    }

    async fn update(&self, container: &Container, asked: LinuxContainerResources) -> Result<(), Error> {
        if container.running_pid().is_none() {
            return Err(Error::State { id: container.id.clone(), state: container.state.lock().name() });
        }
        let failed = |detail: String| Error::Runc { command: "update", id: container.id.clone(), detail };
        let resources = serde_json::to_vec(&spec::resources(&asked, &self.host))
            .map_err(|err| failed(err.to_string()))?;
        let mut command = Command::from(runc::command(&self.config.runc, &self.config.root, None));
        command.args(["update", "--resources", "-", &container.id]);
        run(command, Some(resources)).await.map_err(failed)
    }

    async fn ask(&self, container: &Container, request: &Request) -> Result<(), Error> {
        if container.running_pid().is_none() {
            return Err(Error::State { id: container.id.clone(), state: container.state.lock().name() });
        }
        let shim = |detail: String| Error::Shim { id: container.id.clone(), detail };
        match client::call(container.directory(), request).await {
            Ok(Answer::Ok) => Ok(()),
            Ok(Answer::Failed { message }) => Err(shim(message)),
            Ok(_) => Err(shim("gave an answer to another question".to_owned())),
            Err(err) => Err(shim(err.to_string())),
        }
    }

    async fn exec_in(&self, container: &Arc<Container>, exec: ExecProcess) -> Result<ExecSession, Error> {
        if container.running_pid().is_none() {
            return Err(Error::State { id: container.id.clone(), state: container.state.lock().name() });
        }
        if exec.command.is_empty() {
            return Err(Error::Exec { detail: "no command specified".to_owned() });
        }
        let bundle = container.bundle.clone();
        let own = blocking(move || bundle.process()).await?;
        exec::start(&container.id, container.directory(), &spec::exec_process(&own, &exec), &exec).await
    }
}

impl Container {
    fn new(group: Group, bundle: Bundle, record: Record, exit: Option<Exit>) -> Arc<Container> {
        let has_ended = exit.is_some() || record.start_error.is_some();
        Arc::new(Container {
            bundle,
            group,
            id: record.id.clone(),
            changing: tokio::sync::Mutex::default(),
            state: Mutex::new(State { record, pid: None, exit }),
            ended: watch::Sender::new(has_ended),
            writable: Mutex::default(),
            writable_bytes: AtomicU64::default(),
        })
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.bundle.directory
    }

    pub(crate) fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    pub(crate) fn started_at_ns(&self) -> i64 {
        self.state.lock().record.started_at_ns
    }

    pub(crate) fn event(&self) -> ContainerEvent {
        let sandbox_id = self.state.lock().record.sandbox_id.clone();
        ContainerEvent { sandbox_id, container_id: self.id.clone() }
    }

    fn running_pid(&self) -> Option<i32> {
        let state = self.state.lock();
        state.pid.filter(|_| state.exit.is_none())
    }

    async fn started(&self, pid: i32, started_at_ns: i64) {
        let record = {
            let mut state = self.state.lock();
            state.pid = Some(pid);
            let known = std::mem::replace(&mut state.record.started_at_ns, started_at_ns);
            (known != started_at_ns).then(|| state.record.clone())
        };
        let Some(record) = record else { return };
        if let Err(err) = self.write(record).await {
            // The shim knows it, too.
            tracing::warn!(container = self.id, "record the start: {err}");
        }
    }

    /// Writes how far the container has come. A power cut ends it, and may take this along.
    async fn write(&self, record: Record) -> io::Result<()> {
        let directory = self.bundle.directory.clone();
        let written = tokio::task::spawn_blocking(move || record.write(&directory, Keep::Whole)).await;
        written.map_err(io::Error::other)?
    }

    pub(crate) fn ended(&self, exit: Exit) {
        self.state.lock().exit = Some(exit);
        self.ended.send_replace(true);
    }

    fn status(&self) -> RuntimeContainer {
        self.state.lock().status()
    }
}

impl State {
    fn name(&self) -> &'static str {
        match self.status().state {
            RuntimeState::Created => "CONTAINER_CREATED",
            RuntimeState::Running => "CONTAINER_RUNNING",
            RuntimeState::Exited => "CONTAINER_EXITED",
            RuntimeState::Unknown => "CONTAINER_UNKNOWN",
        }
    }

    fn status(&self) -> RuntimeContainer {
        let record = &self.record;
        let mut status = RuntimeContainer {
            id: record.id.clone(),
            sandbox_id: record.sandbox_id.clone(),
            state: RuntimeState::Created,
            pid: None,
            created_at_ns: record.created_at_ns,
            started_at_ns: record.started_at_ns,
            finished_at_ns: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
        };
        if let Some(exit) = &self.exit {
            // How it ended is not known of one that was lost, but that it has ended is.
            status.state = RuntimeState::Exited;
            status.started_at_ns = status.started_at_ns.max(exit.started_at_ns);
            status.finished_at_ns = exit.finished_at_ns;
            status.exit_code = exit.exit_code;
            status.reason = match exit {
                Exit { lost: true, .. } => "ContainerStatusUnknown",
                Exit { oom_killed: true, .. } => "OOMKilled",
                Exit { exit_code: 0, .. } => "Completed",
                _ => "Error",
            }
            .to_owned();
            if exit.lost {
                status.message =
                    "the container's supervisor was gone, and the container was ended or gone with it"
                        .to_owned();
            }
        } else if let Some(error) = &record.start_error {
            status.state = RuntimeState::Exited;
            status.finished_at_ns = error.at_ns;
            status.exit_code = START_FAILED;
            status.reason = "StartError".to_owned();
            status.message.clone_from(&error.message);
        } else if let Some(pid) = self.pid {
            status.state = RuntimeState::Running;
            status.pid = u32::try_from(pid).ok();
        }
        status
    }
}

#[async_trait]
impl ContainerRuntime for OciRuntime {
    fn name(&self) -> &'static str {
        self.config.name
    }

    async fn create(&self, container: CreateContainer) -> Result<(), CriError> {
        Ok(self.prepare(container).await?)
    }

    async fn start(&self, id: &str) -> Result<(), CriError> {
        Ok(self.start_container(&self.get(id)?).await?)
    }

    async fn stop(&self, id: &str, timeout: Duration) -> Result<(), CriError> {
        match self.get(id) {
            Ok(container) => Ok(self.stop_container(&container, timeout).await?),
            Err(_) => Ok(()),
        }
    }

    async fn remove(&self, id: &str) -> Result<(), CriError> {
        match self.get(id) {
            Ok(container) => Ok(self.remove_container(&container).await?),
            Err(_) => Ok(()),
        }
    }

    async fn status(&self, id: &str) -> Result<RuntimeContainer, CriError> {
        Ok(self.get(id)?.status())
    }

    async fn list(&self) -> Result<Vec<RuntimeContainer>, CriError> {
        Ok(self.containers.read().values().map(|container| container.status()).collect())
    }

    async fn usage(&self, id: &str) -> Result<Usage, CriError> {
        let container = self.get(id)?;
        Ok(blocking(move || Ok(usage(&container))).await?)
    }

    async fn update_resources(&self, id: &str, resources: LinuxContainerResources) -> Result<(), CriError> {
        Ok(self.update(&*self.get(id)?, resources).await?)
    }

    async fn reopen_log(&self, id: &str) -> Result<(), CriError> {
        Ok(self.ask(&*self.get(id)?, &Request::ReopenLog).await?)
    }

    async fn exec(&self, id: &str, exec: ExecProcess) -> Result<ExecSession, CriError> {
        Ok(self.exec_in(&self.get(id)?, exec).await?)
    }

    async fn attach(&self, id: &str, attach: Attach) -> Result<ExecSession, CriError> {
        let container = self.get(id)?;
        if container.running_pid().is_none() {
            let state = container.state.lock().name();
            return Err(Error::State { id: container.id.clone(), state }.into());
        }
        Ok(attach::start(&container.id, container.directory(), attach).await?)
    }

    fn events(&self) -> broadcast::Receiver<ContainerEvent> {
        self.events.subscribe()
    }
}

fn usage(container: &Container) -> Usage {
    // A container that has ended has no group any more, but what it wrote.
    let used = container.group.usage().unwrap_or_default();
    // A container decides how long counting takes: it is given a tenth of the time, and nobody waits for another's count.
    if let Some(mut writable) = container.writable.try_lock()
        && writable.as_ref().is_none_or(|last| last.at.elapsed() >= WRITABLE_AGE.max(last.took * 10))
    {
        let begun = Instant::now();
        container.writable_bytes.store(container.bundle.writable_bytes(), Ordering::Relaxed);
        *writable = Some(Writable { at: Instant::now(), took: begun.elapsed() });
    }
    let writable_layer_bytes = container.writable_bytes.load(Ordering::Relaxed);
    Usage {
        cpu_usage_ns: used.cpu_ns,
        memory_usage_bytes: used.memory_bytes,
        memory_working_set_bytes: used.working_set_bytes,
        memory_rss_bytes: used.rss_bytes,
        n_pids: used.n_pids,
        writable_layer_bytes,
    }
}

fn make_bundle(
    config: &OciConfig,
    host: &Host,
    bundle: &Bundle,
    create: &CreateContainer,
    image: &Image,
    (layers, mounted): (&[PathBuf], &[Vec<PathBuf>]),
    pid_namespace: PidNamespace,
) -> Result<(), Error> {
    let failed = |detail: String| Error::Spec { id: create.id.clone(), detail };
    bundle::check_mounts(&create.config).map_err(failed)?;
    let devices = bundle::devices(&create.config).map_err(failed)?;
    let seccomp = spec::localhost_seccomp_path(&create.config);
    let localhost_seccomp = seccomp.as_deref().map(bundle::read_seccomp).transpose().map_err(failed)?;
    bundle.create(layers)?;
    let mut container = create.config.clone();
    let images = container.mounts.iter_mut().filter(|mount| mount.image.is_some());
    for (at, (mount, layers)) in images.zip(mounted).enumerate() {
        let path = bundle.mount_image(at, layers, &mount.image_sub_path)?;
        mount.host_path = path.to_string_lossy().into_owned();
        mount.readonly = true;
    }
    let volumes = image.config.config.volumes.keys().map(String::as_str);
    container.mounts.extend(bundle.image_volumes(volumes, &create.config.mounts)?);
    let spec = spec::build(&spec::Input {
        id: &create.id,
        config: &container,
        sandbox: &create.sandbox,
        image: &image.config.config,
        accounts: &bundle.accounts()?,
        rootfs: &bundle.rootfs(),
        pid_namespace,
        devices: &devices,
        localhost_seccomp,
        pids_limit: config.pids_limit,
        open_files: config.open_files,
        host,
    })
    .map_err(failed)?;
    bundle.write_spec(&spec)?;
    let shim = ShimConfig {
        id: create.id.clone(),
        runc: config.runc.clone(),
        runc_root: config.root.clone(),
        bundle: bundle.path(),
        cgroup: format!("{}/{}", create.sandbox.cgroup, create.id),
        log_path: create.log_path.clone(),
        tty: create.config.tty,
        stdin: create.config.stdin,
        stdin_once: create.config.stdin_once,
        shim_cgroup: config.shim_cgroup.clone(),
    };
    write_json(&bundle.directory, "shim.json", &shim, Keep::Whole)
        .map_err(Error::io("write shim.json in", &bundle.directory))
}

/// The pod's stop signal, else the image's, else SIGTERM.
fn stop_signal(config: &skiff_cri::v1::ContainerConfig, image: &Image) -> i32 {
    let of_pod = match config.stop_signal() {
        Signal::RuntimeDefault => None,
        signal => signal_number(&signal.as_str_name().replace("PLUS", "+").replace("MINUS", "-")),
    };
    of_pod.or_else(|| signal_number(&image.config.config.stop_signal)).unwrap_or(SIGTERM)
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
fn signal_number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let whole = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let real_time = |rest: &str, base: i32| {
        if rest.is_empty() { Some(base) } else { Some(base + rest.parse::<i32>().ok()?) }
    };
    if let Some(rest) = whole.strip_prefix("SIGRTMIN") {
        return real_time(rest, 34).filter(|number| (34..=64).contains(number));
    }
    if let Some(rest) = whole.strip_prefix("SIGRTMAX") {
        return real_time(rest, 64).filter(|number| (34..=64).contains(number));
    }
    whole.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

async fn watch_shim(directory: &Path) -> io::Result<(ShimConnection, i32, i64)> {
    let mut connection = ShimConnection::connect(directory).await?;
    connection.send(&Request::Watch, &[]).await?;
    match connection.receive().await? {
        Some(Answer::Running { pid, started_at_ns }) => Ok((connection, pid, started_at_ns)),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Runs a short command; the error is what it printed.
async fn run(mut command: Command, input: Option<Vec<u8>>) -> Result<(), String> {
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let work = async {
        let mut child = command.spawn().map_err(|err| err.to_string())?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            stdin.write_all(&input).await.map_err(|err| err.to_string())?;
        }
        let output = child.wait_with_output().await.map_err(|err| err.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        let printed: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(1000).collect();
        Err(if printed.is_empty() { output.status.to_string() } else { printed })
    };
    timeout(COMMAND_TIME, work).await.map_err(|_| format!("took longer than {} s", COMMAND_TIME.as_secs()))?
}

fn is_installed(binary: &Path) -> bool {
    if binary.components().count() > 1 {
        return binary.exists();
    }
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(binary).exists()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Worker)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_read_in_every_form_images_use() {
        for (name, number) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("37", Some(37)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("", None),
            ("0", None),
            ("99", None),
            ("SIGNONE", None),
            ("SIGRTMIN+99", None),
        ] {
            assert_eq!(signal_number(name), number, "{name}");
        }
    }
}
