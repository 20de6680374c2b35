//! [`NodeRuntime`]: the calls of [`Cri`].

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::RwLock;
use skiff_cgroup::Cgroups;
use skiff_cri::v1::*;
use skiff_cri::{
    Attach, Code, ContainerEvent, ContainerRuntime, CreateContainer, Cri, CriError, ExecProcess, ExecSession,
    ImageRef, Notice, PodConnection, RuntimeContainer, RuntimeState, keep,
};
use skiff_images::{Auth, Image as StoredImage, Images};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::{Mutex, broadcast};
use tracing::warn;

use crate::dispatch::{Dispatch, RUNTIME_ANNOTATION};
use crate::forward;
use crate::images;
use crate::network::SandboxNetwork;
use crate::records::{ContainerRecord, Records, SandboxRecord, SandboxState};
use crate::sandbox::{self, Sandboxes};
use crate::usage::UsageRates;

/// What a node's runtime is made of.
pub struct RuntimeConfig {
    /// Records and files, kept across restarts of the machine.
    pub root: PathBuf,
    /// Held namespaces: a directory on a tmpfs.
    pub run: PathBuf,
    pub images: Arc<Images>,
    pub network: Arc<dyn SandboxNetwork>,
    /// Runtimes of Linux containers by handler.
    pub linux: BTreeMap<String, Arc<dyn ContainerRuntime>>,
    /// The cgroup that all pods are in, relative to every hierarchy's root. What is in it and belongs to no pod is removed.
    pub cgroup_root: String,
    /// The handler of pods without a RuntimeClass.
    pub default_handler: String,
    pub wasm: Arc<dyn ContainerRuntime>,
}

/// See the crate's documentation.
pub struct NodeRuntime {
    images: Arc<Images>,
    pub(crate) dispatch: Dispatch,
    pub(crate) sandboxes: Sandboxes,
    pub(crate) sandbox_records: Records,
    pub(crate) container_records: Records,
    pub(crate) state: Arc<RwLock<State>>,
    usage: UsageRates,
    pub(crate) cgroup_root: String,
    /// Held while a sandbox is changed, so that a stop does not cross a start. One lock serves all: the work under
    /// it is a few milliseconds.
    changing: Mutex<()>,
    events: broadcast::Sender<ContainerEvent>,
    notices: broadcast::Sender<Notice>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) sandboxes: HashMap<String, Arc<SandboxRecord>>,
    pub(crate) containers: HashMap<String, Arc<ContainerRecord>>,
}

/// Events that a slow listener may be behind.
const MAX_EVENTS: usize = 1024;
/// How much of each stream `exec_sync` keeps.
const MAX_EXEC_BYTES: usize = 16 * 1024 * 1024;

impl NodeRuntime {
    /// Opens the runtime over its directories. Sandboxes that a crash left half made are removed; those of an earlier
    /// boot, or that lack something, are no longer ready; what belongs to none is removed.
    pub async fn open(config: RuntimeConfig) -> Result<Arc<NodeRuntime>, CriError> {
        let cgroups = Cgroups::detect().map_err(CriError::of)?;
        let boot_id =
            keep::boot_id().map_err(|e| CriError::unknown(format!("cannot tell this boot: {e}")))?;
        let runtime = NodeRuntime {
            images: config.images,
            dispatch: Dispatch {
                linux: config.linux,
                default_handler: config.default_handler,
                wasm: config.wasm,
            },
            sandboxes: Sandboxes {
                root: config.root.join("sandboxes"),
                run: config.run,
                cgroups,
                network: config.network,
                boot_id,
            },
            cgroup_root: config.cgroup_root,
            sandbox_records: Records::open(config.root.join("sandbox-records"))?,
            container_records: Records::open(config.root.join("container-records"))?,
            state: Arc::default(),
            usage: UsageRates::default(),
            changing: Mutex::default(),
            events: broadcast::Sender::new(MAX_EVENTS),
            notices: broadcast::Sender::new(MAX_EVENTS),
        };
        runtime.load().await?;
        let runtime = Arc::new(runtime);
        for source in runtime.dispatch.all() {
            tokio::spawn(forward(source.events(), runtime.events.clone()));
            tokio::spawn(forward(source.notices(), runtime.notices.clone()));
        }
        tokio::spawn(images::keep_swept(runtime.images.clone(), Arc::downgrade(&runtime.state)));
        Ok(runtime)
    }

    fn sandbox(&self, id: &str) -> Result<Arc<SandboxRecord>, CriError> {
        self.state.read().sandboxes.get(id).cloned().ok_or_else(|| CriError::not_found("sandbox", id))
    }

    fn container(&self, id: &str) -> Result<Arc<ContainerRecord>, CriError> {
        self.state.read().containers.get(id).cloned().ok_or_else(|| CriError::not_found("container", id))
    }

    fn runtime_of(&self, id: &str) -> Result<(Arc<ContainerRecord>, &Arc<dyn ContainerRuntime>), CriError> {
        let record = self.container(id)?;
        let runtime = self.dispatch.named(&record.runtime)?;
        Ok((record, runtime))
    }

    fn containers_of(&self, sandbox_id: &str) -> Vec<Arc<ContainerRecord>> {
        self.state.read().containers.values().filter(|c| c.sandbox_id == sandbox_id).cloned().collect()
    }

    pub(crate) async fn save_sandbox(&self, record: SandboxRecord) -> Result<(), CriError> {
        self.sandbox_records.save(&record.id, record.clone()).await?;
        self.state.write().sandboxes.insert(record.id.clone(), Arc::new(record));
        Ok(())
    }

    fn announce(&self, sandbox_id: &str, container_id: &str) {
        // Nobody listening is fine.
        let _ = self
            .events
            .send(ContainerEvent { sandbox_id: sandbox_id.into(), container_id: container_id.into() });
    }

    fn resolve(&self, spec: Option<&ImageSpec>) -> Result<Arc<StoredImage>, CriError> {
        let name = spec.map(|s| s.image.as_str()).unwrap_or_default();
        self.images.resolve(name).ok_or_else(|| CriError::not_found("image", name))
    }

    async fn stop_containers(&self, sandbox_id: &str) -> Result<(), CriError> {
        for container in self.containers_of(sandbox_id) {
            self.dispatch.named(&container.runtime)?.stop(&container.id, Duration::ZERO).await?;
        }
        Ok(())
    }
}

/// Passes one runtime's events on. A listener that lags lists anyway, so lost events need no repair.
async fn forward<T: Clone>(mut from: broadcast::Receiver<T>, to: broadcast::Sender<T>) {
    loop {
        match from.recv().await {
            Ok(event) => drop(to.send(event)),
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

pub(crate) fn now_ns() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// 64 hexadecimal digits, as CRI clients expect an ID to look.
fn new_id() -> String {
    format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>())
}

fn container_state(state: RuntimeState) -> ContainerState {
    match state {
        RuntimeState::Created => ContainerState::ContainerCreated,
        RuntimeState::Running => ContainerState::ContainerRunning,
        RuntimeState::Exited => ContainerState::ContainerExited,
        RuntimeState::Unknown => ContainerState::ContainerUnknown,
    }
}

fn sandbox_state(state: SandboxState) -> PodSandboxState {
    match state {
        SandboxState::Ready => PodSandboxState::SandboxReady,
        SandboxState::Starting | SandboxState::Stopped => PodSandboxState::SandboxNotready,
    }
}

fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn annotations(record: &ContainerRecord) -> BTreeMap<String, String> {
    let mut out = record.config.annotations.clone();
    out.insert(RUNTIME_ANNOTATION.into(), record.runtime.clone());
    out
}

fn cri_image(image: &StoredImage) -> Image {
    let (uid, username) = image_user(&image.config.config.user);
    Image {
        id: image.id.clone(),
        repo_tags: image.names.iter().cloned().collect(),
        repo_digests: image.digests.iter().cloned().collect(),
        size: image.size_bytes,
        uid,
        username,
        ..Image::default()
    }
}

/// The user of an image's `USER`, which may name a group after a colon: a number, or else a name.
fn image_user(user: &str) -> (Option<Int64Value>, String) {
    let user = user.split(':').next().unwrap_or_default();
    match user.parse() {
        Ok(value) => (Some(Int64Value { value }), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

pub(crate) fn image_error(error: skiff_images::Error) -> CriError {
    let code = if error.is_not_found() { Code::NotFound } else { Code::Unknown };
    let reason = error.reason();
    let mut message = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    let out = CriError::new(code, message);
    match reason {
        Some(reason) => out.with_reason(reason),
        None => out,
    }
}

/// Reads a stream to its end, keeping no more than the cap.
async fn collect(stream: Option<Box<dyn AsyncRead + Send + Unpin>>) -> Vec<u8> {
    let Some(mut stream) = stream else { return Vec::new() };
    let mut kept = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        let room = MAX_EXEC_BYTES - kept.len();
        kept.extend_from_slice(&buffer[..length.min(room)]);
    }
    kept
}

#[async_trait]
impl Cri for NodeRuntime {
    async fn version(&self) -> Result<VersionResponse, CriError> {
        Ok(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "skiff".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn status(&self, _request: StatusRequest) -> Result<StatusResponse, CriError> {
        let ready = |name: &str| RuntimeCondition {
            r#type: name.into(),
            status: true,
            ..RuntimeCondition::default()
        };
        let handlers = self.dispatch.handlers().chain(std::iter::once(""));
        Ok(StatusResponse {
            status: Some(RuntimeStatus { conditions: vec![ready("RuntimeReady"), ready("NetworkReady")] }),
            runtime_handlers: handlers
                .map(|name| RuntimeHandler { name: name.into(), ..RuntimeHandler::default() })
                .collect(),
            ..StatusResponse::default()
        })
    }

    async fn run_pod_sandbox(
        &self,
        request: RunPodSandboxRequest,
    ) -> Result<RunPodSandboxResponse, CriError> {
        let config = request.config.ok_or_else(|| CriError::invalid("the request has no sandbox config"))?;
        let handler = request.runtime_handler;
        self.dispatch.check_handler(&handler)?;
        self.sandboxes.check(&config)?;
        let id = new_id();
        let mut record = SandboxRecord {
            id: id.clone(),
            config,
            handler,
            created_at_ns: now_ns(),
            state: SandboxState::Starting,
            ips: Vec::new(),
            boot_id: self.sandboxes.boot_id.clone(),
        };
        self.save_sandbox(record.clone()).await?;
        match self.sandboxes.create(&id, &record.config).await {
            Ok(ips) => {
                record.ips = ips;
                record.state = SandboxState::Ready;
                self.save_sandbox(record).await?;
                self.announce(&id, "");
                Ok(RunPodSandboxResponse { pod_sandbox_id: id })
            }
            Err(error) => {
                let undo = self.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.clone() });
                if let Err(error) = undo.await {
                    warn!(sandbox = id, %error, "a sandbox that could not be made could not be removed either");
                }
                Err(error)
            }
        }
    }

    async fn stop_pod_sandbox(&self, request: StopPodSandboxRequest) -> Result<(), CriError> {
        let Ok(record) = self.sandbox(&request.pod_sandbox_id) else { return Ok(()) };
        self.stop_containers(&record.id).await?;
        let _changing = self.changing.lock().await;
        self.sandboxes.stop(&record.id, &record.config).await?;
        self.save_sandbox(SandboxRecord { state: SandboxState::Stopped, ..(*record).clone() }).await?;
        // Nobody has heard of one that never stood: whoever is told of it would look at everything.
        if record.state != SandboxState::Starting {
            self.announce(&record.id, "");
        }
        Ok(())
    }

    async fn remove_pod_sandbox(&self, request: RemovePodSandboxRequest) -> Result<(), CriError> {
        let id = request.pod_sandbox_id;
        let Ok(record) = self.sandbox(&id) else { return Ok(()) };
        self.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
        for container in self.containers_of(&id) {
            self.remove_container(RemoveContainerRequest { container_id: container.id.clone() }).await?;
        }
        let _changing = self.changing.lock().await;
        let parent = |r: &SandboxRecord| r.config.linux.as_ref().map(|l| l.cgroup_parent.clone());
        let last_of_pod = !self
            .state
            .read()
            .sandboxes
            .values()
            .any(|other| other.id != id && parent(other) == parent(&record));
        self.sandboxes.remove(&id, &record.config, last_of_pod)?;
        self.sandbox_records.remove(&id)?;
        self.state.write().sandboxes.remove(&id);
        if record.state != SandboxState::Starting {
            self.announce(&id, "");
        }
        Ok(())
    }

    async fn pod_sandbox_status(
        &self,
        request: PodSandboxStatusRequest,
    ) -> Result<PodSandboxStatusResponse, CriError> {
        let record = self.sandbox(&request.pod_sandbox_id)?;
        let mut ips = record.ips.iter().map(ToString::to_string);
        let network = PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| PodIp { ip }).collect(),
        };
        let options = sandbox::namespace_options(&record.config);
        let status = PodSandboxStatus {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            state: sandbox_state(record.state).into(),
            created_at: record.created_at_ns,
            network: Some(network),
            linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options: Some(options) }) }),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
            runtime_handler: record.handler.clone(),
        };
        Ok(PodSandboxStatusResponse { status: Some(status), timestamp: now_ns(), ..Default::default() })
    }

    async fn list_pod_sandbox(
        &self,
        request: ListPodSandboxRequest,
    ) -> Result<ListPodSandboxResponse, CriError> {
        let filter = request.filter.unwrap_or_default();
        let wanted = |record: &SandboxRecord| {
            (filter.id.is_empty() || filter.id == record.id)
                && filter.state.as_ref().is_none_or(|s| s.state == i32::from(sandbox_state(record.state)))
                && selects(&filter.label_selector, &record.config.labels)
        };
        let items = self
            .state
            .read()
            .sandboxes
            .values()
            .filter(|record| wanted(record))
            .map(|record| PodSandbox {
                id: record.id.clone(),
                metadata: record.config.metadata.clone(),
                state: sandbox_state(record.state).into(),
                created_at: record.created_at_ns,
                labels: record.config.labels.clone(),
                annotations: record.config.annotations.clone(),
                runtime_handler: record.handler.clone(),
            })
            .collect();
        Ok(ListPodSandboxResponse { items })
    }

    async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, CriError> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        if sandbox.state != SandboxState::Ready {
            return Err(CriError::new(
                Code::FailedPrecondition,
                format!("sandbox {:?} is not ready", sandbox.id),
            ));
        }
        let mut config =
            request.config.ok_or_else(|| CriError::invalid("the request has no container config"))?;
        let image = self.resolve(config.image.as_ref())?;
        // Until the container is on record, nothing else says that its image is needed.
        let _held = self.images.hold(&image.id).ok_or_else(|| CriError::not_found("image", &image.id))?;
        self.images.ready(&image).await.map_err(image_error)?;
        let mut held = Vec::new();
        for wanted in config.mounts.iter_mut().filter_map(|mount| mount.image.as_mut()) {
            let image = self.resolve(Some(wanted))?;
            let missing = || CriError::not_found("image", &image.id);
            held.push(self.images.hold(&image.id).ok_or_else(missing)?);
            self.images.ready(&image).await.map_err(image_error)?;
            wanted.image.clone_from(&image.id);
        }
        let runtime = self.dispatch.pick(&image, &sandbox.handler, &sandbox.config.annotations, &config)?;
        if self.dispatch.is_wasm(runtime) && !held.is_empty() {
            let why = "a Wasm container mounts no images; give the module's own image the files, or use another volume";
            return Err(CriError::new(Code::Unimplemented, why));
        }
        let described = self.sandboxes.describe(&sandbox.id, &sandbox.config);
        config.mounts.extend(sandbox::file_mounts(&described, &config.mounts));
        let log_directory = &sandbox.config.log_directory;
        let log_path = (!log_directory.is_empty() && !config.log_path.is_empty())
            .then(|| PathBuf::from(log_directory).join(&config.log_path));
        let name = config.image.as_ref().map(|i| i.image.clone()).unwrap_or_default();
        let record = ContainerRecord {
            id: new_id(),
            sandbox_id: sandbox.id.clone(),
            config,
            image: ImageRef { id: image.id.clone(), manifest: image.manifest.clone(), name },
            runtime: runtime.name().to_owned(),
            created_at_ns: now_ns(),
            log_path,
        };
        self.container_records.save(&record.id, record.clone()).await?;
        self.state.write().containers.insert(record.id.clone(), Arc::new(record.clone()));
        let create = CreateContainer {
            id: record.id.clone(),
            sandbox: Arc::new(described),
            config: record.config,
            image: record.image,
            handler: sandbox.handler.clone(),
            log_path: record.log_path,
        };
        if let Err(error) = runtime.create(create).await {
            let undo = self.remove_container(RemoveContainerRequest { container_id: record.id.clone() });
            if let Err(error) = undo.await {
                warn!(container = record.id, %error, "a container that could not be made could not be removed either");
            }
            return Err(error);
        }
        Ok(CreateContainerResponse { container_id: record.id })
    }

    async fn start_container(&self, request: StartContainerRequest) -> Result<(), CriError> {
        let (record, runtime) = self.runtime_of(&request.container_id)?;
        runtime.start(&record.id).await?;
        self.announce(&record.sandbox_id, &record.id);
        Ok(())
    }

    async fn stop_container(&self, request: StopContainerRequest) -> Result<(), CriError> {
        let Ok((record, runtime)) = self.runtime_of(&request.container_id) else { return Ok(()) };
        let timeout = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        runtime.stop(&record.id, timeout).await
    }

    async fn remove_container(&self, request: RemoveContainerRequest) -> Result<(), CriError> {
        let Ok((record, runtime)) = self.runtime_of(&request.container_id) else { return Ok(()) };
        runtime.stop(&record.id, Duration::ZERO).await?;
        runtime.remove(&record.id).await?;
        self.container_records.remove(&record.id)?;
        self.state.write().containers.remove(&record.id);
        self.usage.forget(&record.id);
        self.announce(&record.sandbox_id, &record.id);
        Ok(())
    }

    async fn list_containers(
        &self,
        request: ListContainersRequest,
    ) -> Result<ListContainersResponse, CriError> {
        let filter = request.filter.unwrap_or_default();
        let states = self.dispatch.states().await?;
        let state_of = |id: &str| {
            // One that its runtime has lost is neither running nor known to have ended.
            i32::from(states.get(id).map_or(ContainerState::ContainerUnknown, |c| container_state(c.state)))
        };
        let wanted = |record: &ContainerRecord| {
            (filter.id.is_empty() || filter.id == record.id)
                && (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == record.sandbox_id)
                && filter.state.as_ref().is_none_or(|s| s.state == state_of(&record.id))
                && selects(&filter.label_selector, &record.config.labels)
        };
        let containers = self
            .state
            .read()
            .containers
            .values()
            .filter(|record| wanted(record))
            .map(|record| Container {
                id: record.id.clone(),
                pod_sandbox_id: record.sandbox_id.clone(),
                metadata: record.config.metadata.clone(),
                image: record.config.image.clone(),
                image_ref: record.image.id.clone(),
                image_id: record.image.id.clone(),
                state: state_of(&record.id),
                created_at: record.created_at_ns,
                labels: record.config.labels.clone(),
                annotations: annotations(record),
            })
            .collect();
        Ok(ListContainersResponse { containers })
    }

    async fn container_status(
        &self,
        request: ContainerStatusRequest,
    ) -> Result<ContainerStatusResponse, CriError> {
        let (record, runtime) = self.runtime_of(&request.container_id)?;
        let found = match runtime.status(&record.id).await {
            Ok(found) => found,
            Err(error) if error.code == Code::NotFound => lost(&record),
            Err(error) => return Err(error),
        };
        let image_ref = self
            .images
            .resolve(&record.image.id)
            .and_then(|image| image.digests.iter().next().cloned())
            .unwrap_or_else(|| record.image.id.clone());
        let status = ContainerStatus {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            state: container_state(found.state).into(),
            created_at: record.created_at_ns,
            started_at: found.started_at_ns,
            finished_at: found.finished_at_ns,
            exit_code: found.exit_code,
            image: record.config.image.clone(),
            image_ref,
            image_id: record.image.id.clone(),
            reason: found.reason,
            message: found.message,
            labels: record.config.labels.clone(),
            annotations: annotations(&record),
            mounts: record.config.mounts.clone(),
            log_path: record.log_path.as_ref().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default(),
            ..ContainerStatus::default()
        };
        Ok(ContainerStatusResponse { status: Some(status), ..ContainerStatusResponse::default() })
    }

    async fn update_container_resources(
        &self,
        request: UpdateContainerResourcesRequest,
    ) -> Result<(), CriError> {
        let (record, runtime) = self.runtime_of(&request.container_id)?;
        runtime.update_resources(&record.id, request.linux.unwrap_or_default()).await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: UpdatePodSandboxResourcesRequest,
    ) -> Result<(), CriError> {
        let record = self.sandbox(&request.pod_sandbox_id)?;
        let resources = request.resources.unwrap_or_default();
        let described = self.sandboxes.describe(&record.id, &record.config);
        self.sandboxes.resize(&described, &resources)?;
        // Its group is made anew from the record after a boot.
        let mut updated = SandboxRecord::clone(&record);
        updated.config.linux.get_or_insert_default().resources = Some(resources);
        self.sandbox_records.save(&updated.id, updated.clone()).await?;
        self.state.write().sandboxes.entry(updated.id.clone()).and_modify(|known| *known = Arc::new(updated));
        Ok(())
    }

    async fn reopen_container_log(&self, request: ReopenContainerLogRequest) -> Result<(), CriError> {
        let (record, runtime) = self.runtime_of(&request.container_id)?;
        runtime.reopen_log(&record.id).await
    }

    async fn container_stats(
        &self,
        request: ContainerStatsRequest,
    ) -> Result<ContainerStatsResponse, CriError> {
        let (record, runtime) = self.runtime_of(&request.container_id)?;
        let usage = runtime.usage(&record.id).await?;
        Ok(ContainerStatsResponse { stats: Some(self.usage.stats(&record, usage)) })
    }

    async fn list_container_stats(
        &self,
        request: ListContainerStatsRequest,
    ) -> Result<ListContainerStatsResponse, CriError> {
        let filter = request.filter.unwrap_or_default();
        let records: Vec<_> = self.state.read().containers.values().cloned().collect();
        let mut stats = Vec::new();
        for record in records {
            let wanted = (filter.id.is_empty() || filter.id == record.id)
                && (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == record.sandbox_id)
                && selects(&filter.label_selector, &record.config.labels);
            if !wanted {
                continue;
            }
            // One that has ended meanwhile has no usage.
            if let Ok(usage) = self.dispatch.named(&record.runtime)?.usage(&record.id).await {
                stats.push(self.usage.stats(&record, usage));
            }
        }
        Ok(ListContainerStatsResponse { stats })
    }

    async fn pod_sandbox_stats(
        &self,
        request: PodSandboxStatsRequest,
    ) -> Result<PodSandboxStatsResponse, CriError> {
        let record = self.sandbox(&request.pod_sandbox_id)?;
        let filter = ContainerStatsFilter { pod_sandbox_id: record.id.clone(), ..Default::default() };
        let containers =
            self.list_container_stats(ListContainerStatsRequest { filter: Some(filter) }).await?.stats;
        let linux = LinuxPodSandboxStats { containers, ..LinuxPodSandboxStats::default() };
        let attributes = PodSandboxAttributes {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        };
        let stats = PodSandboxStats { attributes: Some(attributes), linux: Some(linux) };
        Ok(PodSandboxStatsResponse { stats: Some(stats) })
    }

    async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse, CriError> {
        let (record, runtime) = self.runtime_of(&request.container_id)?;
        let command = request.cmd;
        let process =
            ExecProcess { command: command.clone(), tty: false, stdin: false, stdout: true, stderr: true };
        let session = runtime.exec(&record.id, process).await?;
        let run = async move {
            let (stdout, stderr, exit) =
                tokio::join!(collect(session.stdout), collect(session.stderr), session.exit);
            let exit_code = exit.map_err(|_| CriError::unknown("the process's end was lost"))??;
            Ok(ExecSyncResponse { stdout, stderr, exit_code })
        };
        match u64::try_from(request.timeout).ok().filter(|s| *s > 0) {
            None => run.await,
            // Dropping the session ends the process.
            Some(seconds) => {
                tokio::time::timeout(Duration::from_secs(seconds), run).await.unwrap_or_else(|_| {
                    Err(CriError::new(
                        Code::DeadlineExceeded,
                        format!("command {:?} timed out after {seconds}s", command.join(" ")),
                    ))
                })
            }
        }
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, CriError> {
        let (record, runtime) = self.runtime_of(&request.container_id)?;
        let process = ExecProcess {
            command: request.cmd,
            tty: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        runtime.exec(&record.id, process).await
    }

    async fn attach(&self, request: AttachRequest) -> Result<ExecSession, CriError> {
        let (record, runtime) = self.runtime_of(&request.container_id)?;
        let AttachRequest { stdin, stdout, stderr, .. } = request;
        runtime.attach(&record.id, Attach { stdin, stdout, stderr }).await
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<PodConnection, CriError> {
        let record = self.sandbox(sandbox_id)?;
        if record.state != SandboxState::Ready {
            return Err(CriError::new(
                Code::FailedPrecondition,
                format!("sandbox {sandbox_id:?} is not running"),
            ));
        }
        forward::connect(self.sandboxes.describe(&record.id, &record.config).netns, port).await
    }

    async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse, CriError> {
        let name = request.image.map(|i| i.image).unwrap_or_default();
        let auth = request.auth.map(|a| Auth {
            username: a.username,
            password: a.password,
            auth: a.auth,
            identity_token: a.identity_token,
            registry_token: a.registry_token,
        });
        let image = self.images.pull(&name, auth.as_ref(), None).await.map_err(image_error)?;
        Ok(PullImageResponse { image_ref: image.id.clone() })
    }

    async fn image_status(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse, CriError> {
        let name = request.image.map(|i| i.image).unwrap_or_default();
        let image = self.images.resolve(&name).map(|image| cri_image(&image));
        Ok(ImageStatusResponse { image, ..ImageStatusResponse::default() })
    }

    async fn list_images(&self, _request: ListImagesRequest) -> Result<ListImagesResponse, CriError> {
        Ok(ListImagesResponse { images: self.images.list().iter().map(|i| cri_image(i)).collect() })
    }

    async fn remove_image(&self, request: RemoveImageRequest) -> Result<(), CriError> {
        let name = request.image.map(|i| i.image).unwrap_or_default();
        match self.images.remove(&name) {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other.map_err(image_error)?,
        }
        images::sweep(self.images.clone(), self.state.clone()).await.map(drop)
    }

    async fn image_fs_info(&self) -> Result<ImageFsInfoResponse, CriError> {
        let images = self.images.clone();
        let usage = tokio::task::spawn_blocking(move || images.usage())
            .await
            .map_err(|e| CriError::unknown(format!("measuring the image store: {e}")))?;
        let filesystem = FilesystemUsage {
            timestamp: now_ns(),
            fs_id: Some(FilesystemIdentifier {
                mountpoint: self.images.root().to_string_lossy().into_owned(),
            }),
            used_bytes: Some(UInt64Value { value: usage.used_bytes }),
            inodes_used: Some(UInt64Value { value: usage.inodes_used }),
        };
        Ok(ImageFsInfoResponse {
            image_filesystems: vec![filesystem.clone()],
            container_filesystems: vec![filesystem],
        })
    }

    fn events(&self) -> broadcast::Receiver<ContainerEvent> {
        self.events.subscribe()
    }

    fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }
}

/// A container that its runtime no longer knows, as after its files were deleted by hand.
fn lost(record: &ContainerRecord) -> RuntimeContainer {
    RuntimeContainer {
        id: record.id.clone(),
        sandbox_id: record.sandbox_id.clone(),
        state: RuntimeState::Unknown,
        pid: None,
        created_at_ns: record.created_at_ns,
        started_at_ns: 0,
        finished_at_ns: 0,
        exit_code: 137,
        reason: "ContainerStatusUnknown".into(),
        message: "The container could not be located when the pod was terminated".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_user_is_a_number_or_a_name_without_its_group() {
        let number = |value| Some(Int64Value { value });
        assert_eq!(image_user("65535:65535"), (number(65535), String::new()));
        assert_eq!(image_user("0"), (number(0), String::new()));
        assert_eq!(image_user("nginx:www"), (None, "nginx".to_owned()));
        assert_eq!(image_user(""), (None, String::new()));
    }
}
