//! [`WasmRuntime`]: the calls of [`ContainerRuntime`], answered from records and by hosts.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use skiff_cgroup::Cgroups;
use skiff_cri::v1::{ContainerConfig, LinuxContainerResources};
use skiff_cri::{
    Attach, Code, ContainerEvent, ContainerRuntime, CreateContainer, CriError, ExecProcess, ExecSession,
    Notice, RuntimeContainer, RuntimeState, Usage,
};
use skiff_images::{Image, ImageKind, Images, WasmModule};
use tokio::sync::broadcast;

use crate::aot::{self, AotCache, AotError, FileVersion};
use crate::engine;
use crate::hosts::{HostError, Hosts, HostsConfig, Patience};
use crate::plan::{self, Source};
use crate::protocol::{FailureKind, Reply, Request};
use crate::record::{Record, RecordError, Records};

/// A listener that lags further behind must list.
const EVENT_BACKLOG: usize = 1024;
/// What `remove` gives a container that still runs.
const NO_GRACE: Duration = Duration::ZERO;

pub struct WasmConfig {
    /// Records and the AOT cache; must outlive a restart of nodelet.
    pub state_dir: PathBuf,
    /// Sockets, locks and logs of hosts; must outlive a restart of nodelet, but not a reboot. Its path must be
    /// short: a socket's may have 108 bytes.
    pub run_dir: PathBuf,
    pub images: Arc<Images>,
    /// The command that calls [`crate::host::main`] with what is appended to it.
    pub host_command: Vec<OsString>,
    /// The command that calls [`crate::compile::main`] with what is appended to it.
    pub compile_command: Vec<OsString>,
    /// The cgroup below which hosts have theirs, relative to the hierarchies' roots.
    pub cgroup_root: String,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("make the directory {path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("make a Wasm engine: {0}")]
    Engine(String),
    #[error(transparent)]
    Aot(#[from] AotError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Cgroup(#[from] skiff_cgroup::Error),
}

/// Wasm containers of this node.
pub struct WasmRuntime {
    images: Arc<Images>,
    aot: AotCache,
    compatibility: String,
    hosts: Arc<Hosts>,
    records: Records,
    cgroups: Cgroups,
    events: broadcast::Sender<ContainerEvent>,
    notices: broadcast::Sender<Notice>,
    /// Digests of module files by path and version, so that starting a container does not read them whole.
    digests: Mutex<HashMap<PathBuf, (FileVersion, String)>>,
}

impl WasmRuntime {
    /// Finds the containers and hosts that are there already.
    pub async fn open(config: WasmConfig) -> Result<Arc<WasmRuntime>, OpenError> {
        for path in [&config.state_dir, &config.run_dir] {
            let private = || {
                fs::create_dir_all(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            };
            private().map_err(|source| OpenError::Directory { path: path.clone(), source })?;
        }
        let engine = engine::compiler().map_err(|err| OpenError::Engine(format!("{err:#}")))?;
        let compatibility = engine::compatibility(&engine);
        let records = Records::open(&config.state_dir)?;
        records.sweep()?;
        let cgroups = Cgroups::detect()?;
        let events = broadcast::Sender::new(EVENT_BACKLOG);
        let hosts = Hosts::open(HostsConfig {
            run_dir: config.run_dir,
            state_dir: config.state_dir.clone(),
            command: config.host_command,
            cgroup_root: config.cgroup_root,
            cgroups: cgroups.clone(),
            records: records.clone(),
            events: events.clone(),
            patience: Patience::default(),
        })
        .await?;
        let runtime = WasmRuntime {
            images: config.images,
            aot: AotCache::open(&config.state_dir, compatibility.clone(), config.compile_command)?,
            compatibility,
            hosts,
            records,
            cgroups,
            events,
            notices: broadcast::Sender::new(EVENT_BACKLOG),
            digests: Mutex::default(),
        };
        let images = runtime.images.list();
        let plain = ContainerConfig::default();
        let wasm = images.iter().filter(|image| image.kind != ImageKind::Linux);
        let digests = wasm.filter_map(|image| Some(runtime.module(image, &plain).ok()?.1)).collect();
        runtime.aot.retain(&digests)?;
        Ok(Arc::new(runtime))
    }

    /// Ends all host processes and with them all containers, whose records stay.
    pub async fn shutdown_hosts(&self) -> Result<(), HostError> {
        let hosts = self.hosts.clone();
        match tokio::task::spawn_blocking(move || hosts.shut_down()).await {
            Ok(ended) => ended,
            Err(err) => std::panic::resume_unwind(err.into_panic()),
        }
    }

    fn record(&self, id: &str) -> Result<Record, CriError> {
        match self.records.load(id).map_err(CriError::of)? {
            Some(record) => self.hosts.settle(record).map_err(CriError::of),
            None => Err(CriError::not_found("container", id)),
        }
    }

    /// What a container of the image runs, and its digest.
    fn module(&self, image: &Image, config: &ContainerConfig) -> Result<(PathBuf, String), CriError> {
        let invalid = |err: skiff_images::Error| CriError::invalid(err.to_string());
        if let ImageKind::Wasm { module: WasmModule::Blob { digest } } = &image.kind {
            let path = self.images.wasm_module(image).map_err(invalid)?;
            return Ok((path, digest.hex().to_owned()));
        }
        let programs = plan::programs(&image.config.config, config);
        let mut found = programs.iter().map(|program| self.images.file(image, program));
        let path = match found.find_map(Result::ok) {
            Some(path) => path,
            // What the image itself would run says best what is missing.
            None => match programs.first() {
                Some(program) => self.images.file(image, program).map_err(invalid)?,
                None => self.images.wasm_module(image).map_err(invalid)?,
            },
        };
        let digest = self
            .digest(&path)
            .map_err(|err| CriError::unknown(format!("read the Wasm module {}: {err}", path.display())))?;
        Ok((path, digest))
    }

    /// Says so if it takes anything: a large module may take minutes.
    async fn compile(&self, container: &CreateContainer, path: &Path, digest: &str) -> Result<(), AotError> {
        let say = |reason, message| {
            tracing::info!(container = container.id, "{message}");
            let notice = Notice {
                sandbox_id: container.sandbox.id.clone(),
                container_id: container.id.clone(),
                reason,
                message,
            };
            // Nobody may listen.
            _ = self.notices.send(notice);
        };
        let name = &container.image.name;
        let begins = |bytes: u64| {
            say("Compiling", format!("Compiling the Wasm module of image {name:?} ({bytes} bytes)"));
        };
        if let Some(took) = self.aot.ensure(path, digest, begins).await? {
            let (wall, cpu) = (took.wall.as_secs_f64(), took.cpu.as_secs_f64());
            say(
                "Compiled",
                format!("Compiled the Wasm module of image {name:?} in {wall:.1} s ({cpu:.1} s of CPU time)"),
            );
        }
        Ok(())
    }

    fn digest(&self, path: &Path) -> io::Result<String> {
        let version = FileVersion::of(path)?;
        if let Some((known, digest)) = self.digests.lock().get(path)
            && *known == version
        {
            return Ok(digest.clone());
        }
        let digest = aot::digest(path)?;
        self.digests.lock().insert(path.to_owned(), (version, digest.clone()));
        Ok(digest)
    }

    /// Asks the host of a container that it has.
    async fn ask(&self, record: &Record, request: Request) -> Result<Reply, CriError> {
        let reply = self.hosts.ask(&record.host, &request).await;
        done(reply)
    }
}

fn done(reply: Result<Reply, HostError>) -> Result<Reply, CriError> {
    let failure = match reply {
        Ok(Reply::Failed(failure)) => failure,
        Ok(reply) => return Ok(reply),
        Err(err) => return Err(CriError::new(Code::Unavailable, err.to_string())),
    };
    let code = match failure.kind {
        FailureKind::NotFound => Code::NotFound,
        FailureKind::AlreadyExists => Code::AlreadyExists,
        FailureKind::State => Code::FailedPrecondition,
        FailureKind::Invalid => Code::InvalidArgument,
        FailureKind::Host => Code::Unknown,
    };
    Err(CriError::new(code, failure.message))
}

fn aot_error(err: AotError) -> CriError {
    let code = match err {
        AotError::Invalid(_) | AotError::Native(_) | AotError::TooLarge { .. } => Code::InvalidArgument,
        AotError::CpuTime | AotError::Stuck => Code::DeadlineExceeded,
        AotError::Compile(_) | AotError::Io { .. } => Code::Unknown,
    };
    CriError::new(code, err.to_string())
}

#[async_trait]
impl ContainerRuntime for WasmRuntime {
    fn name(&self) -> &'static str {
        "wasmtime"
    }

    async fn create(&self, container: CreateContainer) -> Result<(), CriError> {
        let reference = &container.image;
        let image = self
            .images
            .resolve(&reference.id)
            .or_else(|| self.images.resolve(&reference.name))
            .ok_or_else(|| CriError::not_found("image", &reference.name))?;
        let (path, digest) = self.module(&image, &container.config)?;
        self.compile(&container, &path, &digest).await.map_err(aot_error)?;
        // A source that is missing is made, as for other containers.
        let is_directory = |path: &str| match fs::metadata(path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map(|()| true)
            }
            found => Ok(found?.is_dir()),
        };
        let source = match &image.kind {
            ImageKind::Wasm { module: WasmModule::Blob { .. } } => Source::Artifact,
            _ => Source::Files,
        };
        let spec = plan::spec(&container, &image.config.config, source, digest, is_directory)?;
        let host = plan::host_name(&container.sandbox, &container.handler, &self.compatibility);
        let id = spec.id.clone();
        // A record of that name whose host is gone would be taken for the new container's.
        if let Some(record) = self.records.load(&id).map_err(CriError::of)?
            && !record.process.is_alive()
        {
            return Err(CriError::new(Code::AlreadyExists, format!("container {id:?} exists already")));
        }
        done(self.hosts.start_and_ask(&host, &Request::Create(Box::new(spec))).await)?;
        let event = ContainerEvent { sandbox_id: container.sandbox.id.clone(), container_id: id };
        _ = self.events.send(event);
        self.hosts.weigh();
        Ok(())
    }

    async fn start(&self, id: &str) -> Result<(), CriError> {
        let record = self.record(id)?;
        if record.container.state != RuntimeState::Created {
            let message = format!("container {id:?} is {:?}, not created", record.container.state);
            return Err(CriError::new(Code::FailedPrecondition, message));
        }
        self.ask(&record, Request::Start { id: id.to_owned() }).await.map(drop)
    }

    async fn stop(&self, id: &str, timeout: Duration) -> Result<(), CriError> {
        let record = match self.record(id) {
            Err(err) if err.code == Code::NotFound => return Ok(()),
            other => other?,
        };
        if !record.is_live() {
            return Ok(());
        }
        let grace_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        match self.ask(&record, Request::Stop { id: id.to_owned(), grace_ms }).await {
            // It died of something else meanwhile, and the container with it.
            Err(err) if err.code == Code::Unavailable && !self.record(id)?.is_live() => Ok(()),
            other => other.map(drop),
        }
    }

    async fn remove(&self, id: &str) -> Result<(), CriError> {
        let mut record = match self.record(id) {
            Err(err) if err.code == Code::NotFound => return Ok(()),
            other => other?,
        };
        if record.is_live() {
            self.stop(id, NO_GRACE).await?;
            record = self.record(id)?;
        }
        if record.process.is_alive() {
            match self.ask(&record, Request::Remove { id: id.to_owned() }).await {
                // The host ended for want of work between the two looks.
                Err(err) if err.code == Code::Unavailable && !record.process.is_alive() => {}
                other => return other.map(drop),
            }
        }
        let group = self.cgroups.group(&record.cgroup).map_err(CriError::of)?;
        if group.exists() {
            let removed = tokio::task::spawn_blocking(move || group.remove()).await;
            removed.map_err(CriError::of)?.map_err(CriError::of)?;
        }
        self.records.remove(id).map_err(CriError::of)
    }

    async fn status(&self, id: &str) -> Result<RuntimeContainer, CriError> {
        Ok(self.record(id)?.container)
    }

    async fn list(&self) -> Result<Vec<RuntimeContainer>, CriError> {
        let records = self.records.all().map_err(CriError::of)?;
        let settled = records.into_iter().map(|record| self.hosts.settle(record));
        let containers: Result<_, _> = settled.map(|record| record.map(|record| record.container)).collect();
        containers.map_err(CriError::of)
    }

    async fn usage(&self, id: &str) -> Result<Usage, CriError> {
        let record = self.record(id)?;
        if !record.is_live() {
            return Ok(Usage::default());
        }
        match self.ask(&record, Request::Usage { id: id.to_owned() }).await? {
            Reply::Usage { cpu_ns, memory_bytes } => Ok(Usage {
                cpu_usage_ns: cpu_ns,
                memory_usage_bytes: memory_bytes,
                memory_working_set_bytes: memory_bytes,
                memory_rss_bytes: memory_bytes,
                n_pids: 1,
                writable_layer_bytes: 0,
            }),
            reply => Err(CriError::unknown(format!("the Wasm host answered {reply:?}"))),
        }
    }

    async fn update_resources(&self, id: &str, resources: LinuxContainerResources) -> Result<(), CriError> {
        let record = self.record(id)?;
        let resources = plan::resources(&resources);
        self.ask(&record, Request::Update { id: id.to_owned(), resources }).await?;
        self.hosts.weigh();
        Ok(())
    }

    async fn reopen_log(&self, id: &str) -> Result<(), CriError> {
        let record = self.record(id)?;
        self.ask(&record, Request::ReopenLog { id: id.to_owned() }).await.map(drop)
    }

    async fn exec(&self, id: &str, _: ExecProcess) -> Result<ExecSession, CriError> {
        self.record(id)?;
        let message = "exec is not possible in a Wasm container: it holds one guest and no programs";
        Err(CriError::new(Code::Unimplemented, message))
    }

    async fn attach(&self, id: &str, _: Attach) -> Result<ExecSession, CriError> {
        self.record(id)?;
        let message = "a Wasm container's standard input cannot be attached to: its guest is given none; its output is in its log";
        Err(CriError::new(Code::Unimplemented, message))
    }

    fn events(&self) -> broadcast::Receiver<ContainerEvent> {
        self.events.subscribe()
    }

    fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }
}
