//! A runtime in memory. Containers run until they are stopped or told to exit.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use skiff_cri::v1::*;
use skiff_cri::{Code, ContainerEvent, Cri, CriError, ExecSession, Notice, PodConnection};
use tokio::sync::broadcast;

use super::Labels;

#[derive(Default)]
struct State {
    clock: i64,
    next_id: u32,
    sandboxes: BTreeMap<String, PodSandboxStatus>,
    /// What resolvers the sandboxes were to have, in order.
    resolvers: Vec<Vec<String>>,
    containers: BTreeMap<String, (String, ContainerStatus)>,
    configs: HashMap<String, ContainerConfig>,
    images: Vec<String>,
    broken_images: HashMap<String, String>,
    /// What is listed, by ID, and where it lies.
    stored_images: Vec<Image>,
    image_disk: String,
    removed_images: Vec<String>,
    /// Commands that fail, by container name.
    failing_execs: HashMap<String, i32>,
    /// What creating a container of that name fails with.
    failing_creates: HashMap<String, String>,
    /// What making a sandbox fails with.
    failing_sandboxes: Option<String>,
    /// What `exec` fails with.
    refused_exec: Option<String>,
    /// Nothing can be attached to.
    has_only_logs: bool,
    /// How often a pod's state was read.
    n_passes: usize,
    /// The next creation panics, as a fault in a runtime would.
    panics: bool,
    log: Vec<String>,
    /// How much memory each container uses.
    used_bytes: u64,
}

pub(crate) struct FakeCri {
    state: Mutex<State>,
    /// How many bytes of input the last process read, once it has ended by itself.
    finished_exec: Arc<Mutex<Option<u64>>>,
    events: broadcast::Sender<ContainerEvent>,
    pub(crate) notices: broadcast::Sender<Notice>,
}

impl Default for FakeCri {
    fn default() -> Self {
        let state = State { images: vec!["app:1".to_owned(), "app:2".to_owned()], ..State::default() };
        let (events, notices) = (broadcast::channel(256).0, broadcast::channel(256).0);
        FakeCri { state: Mutex::new(state), finished_exec: Arc::default(), events, notices }
    }
}

impl State {
    /// The time, never the same twice.
    fn now(&mut self) -> i64 {
        let now = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap();
        self.clock = now.max(self.clock + 1);
        self.clock
    }

    fn id(&mut self, what: &str) -> (String, i64) {
        self.next_id += 1;
        (format!("{what}-{}", self.next_id), self.now())
    }
}

fn selected(labels: &Labels, selector: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

impl FakeCri {
    /// What was asked of the runtime, in order.
    pub(crate) fn log(&self) -> Vec<String> {
        self.state.lock().log.clone()
    }

    pub(crate) fn break_image(&self, image: &str, message: &str) {
        self.state.lock().broken_images.insert(image.to_owned(), message.to_owned());
    }

    pub(crate) fn give_images(&self, images: &[(&str, u64)], disk: &str) {
        let image =
            |(id, size): &(&str, u64)| Image { id: (*id).to_owned(), size: *size, ..Image::default() };
        let mut state = self.state.lock();
        state.stored_images = images.iter().map(image).collect();
        state.image_disk = disk.to_owned();
    }

    /// A container that has ended.
    pub(crate) fn give_container(&self, image: &str) {
        let status = ContainerStatus {
            id: "ended".to_owned(),
            image_ref: image.to_owned(),
            image_id: image.to_owned(),
            state: ContainerState::ContainerExited as i32,
            ..ContainerStatus::default()
        };
        self.state.lock().containers.insert("ended".to_owned(), ("sandbox".to_owned(), status));
    }

    pub(crate) fn have_only_logs(&self) {
        self.state.lock().has_only_logs = true;
    }

    pub(crate) fn use_memory(&self, bytes: u64) {
        self.state.lock().used_bytes = bytes;
    }

    pub(crate) fn removed_images(&self) -> Vec<String> {
        self.state.lock().removed_images.clone()
    }

    pub(crate) fn fail_exec(&self, container: &str, code: i32) {
        self.state.lock().failing_execs.insert(container.to_owned(), code);
    }

    pub(crate) fn fail_create(&self, container: &str, message: Option<&str>) {
        let mut state = self.state.lock();
        match message {
            Some(message) => drop(state.failing_creates.insert(container.to_owned(), message.to_owned())),
            None => drop(state.failing_creates.remove(container)),
        }
    }

    pub(crate) fn fail_sandboxes(&self, message: &str) {
        self.state.lock().failing_sandboxes = Some(message.to_owned());
    }

    pub(crate) fn refuse_exec(&self, message: &str) {
        self.state.lock().refused_exec = Some(message.to_owned());
    }

    pub(crate) fn finished_exec(&self) -> Option<u64> {
        *self.finished_exec.lock()
    }

    pub(crate) fn n_passes(&self) -> usize {
        self.state.lock().n_passes
    }

    /// An event of a sandbox that nobody knows, so that every worker looks.
    pub(crate) fn wake_all(&self) {
        self.tell("nobody's", "");
    }

    pub(crate) fn panic_once(&self) {
        self.state.lock().panics = true;
    }

    pub(crate) fn resolvers(&self) -> Vec<Vec<String>> {
        self.state.lock().resolvers.clone()
    }

    pub(crate) fn n_sandboxes(&self) -> usize {
        self.state.lock().sandboxes.len()
    }

    /// IDs of containers of that name, the oldest first.
    pub(crate) fn ids(&self, name: &str) -> Vec<String> {
        let state = self.state.lock();
        let mut found: Vec<_> =
            state.containers.values().filter(|(_, c)| c.metadata.as_ref().unwrap().name == name).collect();
        found.sort_by_key(|(_, c)| c.created_at);
        found.iter().map(|(_, c)| c.id.clone()).collect()
    }

    pub(crate) fn config(&self, id: &str) -> ContainerConfig {
        self.state.lock().configs[id].clone()
    }

    pub(crate) fn is_running(&self, id: &str) -> bool {
        self.state
            .lock()
            .containers
            .get(id)
            .is_some_and(|(_, c)| c.state == ContainerState::ContainerRunning as i32)
    }

    pub(crate) fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.sandboxes.is_empty() && state.containers.is_empty()
    }

    /// The newest container of that name ends by itself.
    pub(crate) fn exit(&self, name: &str, code: i32) {
        let id = self.ids(name).pop().unwrap();
        self.end(&id, code);
    }

    pub(crate) fn lose_sandbox(&self) {
        let mut ids = Vec::new();
        for sandbox in self.state.lock().sandboxes.values_mut() {
            sandbox.state = PodSandboxState::SandboxNotready.into();
            ids.push(sandbox.id.clone());
        }
        ids.into_iter().for_each(|id| self.tell(&id, ""));
    }

    /// All sandboxes are gone and nobody knows what became of the containers, as after a reboot.
    pub(crate) fn lose_everything(&self) {
        for (_, container) in self.state.lock().containers.values_mut() {
            container.state = ContainerState::ContainerUnknown.into();
        }
        self.lose_sandbox();
    }

    fn end(&self, id: &str, code: i32) {
        let mut state = self.state.lock();
        let now = state.now();
        let Some((sandbox, container)) = state.containers.get_mut(id) else { return };
        let has_ended = [ContainerState::ContainerExited as i32, ContainerState::ContainerUnknown as i32];
        if !has_ended.contains(&container.state) {
            container.state = ContainerState::ContainerExited.into();
            container.finished_at = now;
            container.exit_code = code;
            container.reason = if code == 0 { "Completed" } else { "Error" }.to_owned();
        }
        let sandbox = sandbox.clone();
        drop(state);
        self.tell(&sandbox, id);
    }

    fn tell(&self, sandbox: &str, container: &str) {
        let _ = self
            .events
            .send(ContainerEvent { sandbox_id: sandbox.to_owned(), container_id: container.to_owned() });
    }

    /// A pod that is here though the API does not know it.
    pub(crate) async fn plant(&self, name: &str) {
        let labels = Labels::from([
            ("io.kubernetes.pod.name".to_owned(), name.to_owned()),
            ("io.kubernetes.pod.namespace".to_owned(), "default".to_owned()),
            ("io.kubernetes.pod.uid".to_owned(), format!("uid-{name}")),
        ]);
        let config =
            PodSandboxConfig { labels, metadata: Some(PodSandboxMetadata::default()), ..Default::default() };
        self.run_pod_sandbox(RunPodSandboxRequest { config: Some(config), ..Default::default() })
            .await
            .unwrap();
    }
}

fn unimplemented<T>(what: &str) -> Result<T, CriError> {
    Err(CriError::new(Code::Unimplemented, format!("the tests' runtime has no {what}")))
}

#[async_trait]
impl Cri for FakeCri {
    async fn version(&self) -> Result<VersionResponse, CriError> {
        Ok(VersionResponse {
            runtime_name: "runc".into(),
            runtime_version: "0.1".into(),
            ..Default::default()
        })
    }

    async fn status(&self, _: StatusRequest) -> Result<StatusResponse, CriError> {
        let condition =
            |type_: &str| RuntimeCondition { r#type: type_.into(), status: true, ..Default::default() };
        let status = RuntimeStatus { conditions: vec![condition("RuntimeReady"), condition("NetworkReady")] };
        Ok(StatusResponse { status: Some(status), ..Default::default() })
    }

    async fn run_pod_sandbox(
        &self,
        request: RunPodSandboxRequest,
    ) -> Result<RunPodSandboxResponse, CriError> {
        let config = request.config.unwrap_or_default();
        let failing = self.state.lock().failing_sandboxes.clone();
        if let Some(message) = failing {
            self.state.lock().log.push("no sandbox".to_owned());
            self.tell("never-made", "");
            return Err(CriError::unknown(message));
        }
        let mut state = self.state.lock();
        let (id, now) = state.id("sandbox");
        state.resolvers.push(config.dns_config.unwrap_or_default().servers);
        let options = config.linux.and_then(|l| l.security_context).and_then(|s| s.namespace_options);
        let ip = format!("10.1.0.{}", state.next_id);
        let status = PodSandboxStatus {
            id: id.clone(),
            metadata: config.metadata,
            state: PodSandboxState::SandboxReady.into(),
            created_at: now,
            network: Some(PodSandboxNetworkStatus { ip, ..Default::default() }),
            linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options }) }),
            labels: config.labels,
            ..Default::default()
        };
        state.log.push("sandbox".to_owned());
        state.sandboxes.insert(id.clone(), status);
        Ok(RunPodSandboxResponse { pod_sandbox_id: id })
    }

    async fn stop_pod_sandbox(&self, request: StopPodSandboxRequest) -> Result<(), CriError> {
        let inside: Vec<String> = {
            let mut state = self.state.lock();
            if let Some(sandbox) = state.sandboxes.get_mut(&request.pod_sandbox_id) {
                sandbox.state = PodSandboxState::SandboxNotready.into();
                sandbox.network = None;
            }
            let inside =
                state.containers.iter().filter(|(_, (sandbox, _))| *sandbox == request.pod_sandbox_id);
            inside.map(|(id, _)| id.clone()).collect()
        };
        inside.iter().for_each(|id| self.end(id, 137));
        Ok(())
    }

    async fn remove_pod_sandbox(&self, request: RemovePodSandboxRequest) -> Result<(), CriError> {
        self.state.lock().sandboxes.remove(&request.pod_sandbox_id);
        Ok(())
    }

    async fn pod_sandbox_status(
        &self,
        request: PodSandboxStatusRequest,
    ) -> Result<PodSandboxStatusResponse, CriError> {
        let found = self.state.lock().sandboxes.get(&request.pod_sandbox_id).cloned();
        let status = found.ok_or_else(|| CriError::not_found("sandbox", &request.pod_sandbox_id))?;
        Ok(PodSandboxStatusResponse { status: Some(status), ..Default::default() })
    }

    async fn list_pod_sandbox(
        &self,
        request: ListPodSandboxRequest,
    ) -> Result<ListPodSandboxResponse, CriError> {
        let selector = request.filter.unwrap_or_default().label_selector;
        let state = self.state.lock();
        let items = state.sandboxes.values().filter(|s| selected(&s.labels, &selector)).map(|s| PodSandbox {
            id: s.id.clone(),
            state: s.state,
            labels: s.labels.clone(),
            ..Default::default()
        });
        Ok(ListPodSandboxResponse { items: items.collect() })
    }

    async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, CriError> {
        let config = request.config.unwrap_or_default();
        let mut state = self.state.lock();
        if std::mem::take(&mut state.panics) {
            drop(state);
            panic!("a test's panic");
        }
        let name = config.metadata.as_ref().unwrap().name.clone();
        if let Some(message) = state.failing_creates.get(&name).cloned() {
            state.log.push(format!("create {name}"));
            drop(state);
            // What was made of it is removed again, and that is told.
            self.tell(&request.pod_sandbox_id, "removed");
            return Err(CriError::unknown(message));
        }
        let (id, now) = state.id("container");
        let status = ContainerStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            state: ContainerState::ContainerCreated.into(),
            created_at: now,
            image: config.image.clone(),
            image_ref: "app@sha256:1".into(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            ..Default::default()
        };
        state.log.push(format!("create {}", config.metadata.as_ref().unwrap().name));
        state.configs.insert(id.clone(), config);
        state.containers.insert(id.clone(), (request.pod_sandbox_id, status));
        Ok(CreateContainerResponse { container_id: id })
    }

    async fn start_container(&self, request: StartContainerRequest) -> Result<(), CriError> {
        let mut state = self.state.lock();
        let now = state.now();
        let found = state.containers.get_mut(&request.container_id);
        let (_, container) = found.ok_or_else(|| CriError::not_found("container", &request.container_id))?;
        container.state = ContainerState::ContainerRunning.into();
        container.started_at = now;
        Ok(())
    }

    async fn stop_container(&self, request: StopContainerRequest) -> Result<(), CriError> {
        let name = {
            let mut state = self.state.lock();
            let Some((_, container)) = state.containers.get(&request.container_id) else { return Ok(()) };
            let name = container.metadata.as_ref().unwrap().name.clone();
            state.log.push(format!("stop {name}"));
            name
        };
        tracing::debug!(name, "stopped");
        self.end(&request.container_id, 143);
        Ok(())
    }

    async fn remove_container(&self, request: RemoveContainerRequest) -> Result<(), CriError> {
        self.state.lock().containers.remove(&request.container_id);
        Ok(())
    }

    async fn list_containers(
        &self,
        request: ListContainersRequest,
    ) -> Result<ListContainersResponse, CriError> {
        let selector = request.filter.unwrap_or_default().label_selector;
        let mut state = self.state.lock();
        // Of all containers nobody asks who looks after a pod.
        state.n_passes += usize::from(!selector.is_empty());
        let found = state.containers.values().filter(|(_, c)| selected(&c.labels, &selector));
        let containers = found.map(|(sandbox, c)| Container {
            id: c.id.clone(),
            pod_sandbox_id: sandbox.clone(),
            state: c.state,
            labels: c.labels.clone(),
            image_ref: c.image_ref.clone(),
            image_id: c.image_id.clone(),
            ..Default::default()
        });
        Ok(ListContainersResponse { containers: containers.collect() })
    }

    async fn container_status(
        &self,
        request: ContainerStatusRequest,
    ) -> Result<ContainerStatusResponse, CriError> {
        let found = self.state.lock().containers.get(&request.container_id).map(|(_, c)| c.clone());
        let status = found.ok_or_else(|| CriError::not_found("container", &request.container_id))?;
        Ok(ContainerStatusResponse { status: Some(status), ..Default::default() })
    }

    async fn update_container_resources(
        &self,
        request: UpdateContainerResourcesRequest,
    ) -> Result<(), CriError> {
        let mut state = self.state.lock();
        let resources = request.linux.unwrap_or_default();
        let said = format!("resize {} to {} bytes", request.container_id, resources.memory_limit_in_bytes);
        state.log.push(said);
        Ok(())
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: UpdatePodSandboxResourcesRequest,
    ) -> Result<(), CriError> {
        let mut state = self.state.lock();
        let resources = request.resources.unwrap_or_default();
        state.log.push(format!("resize sandbox to {} bytes", resources.memory_limit_in_bytes));
        Ok(())
    }

    async fn reopen_container_log(&self, _: ReopenContainerLogRequest) -> Result<(), CriError> {
        unimplemented("logs")
    }

    async fn container_stats(&self, _: ContainerStatsRequest) -> Result<ContainerStatsResponse, CriError> {
        let usage_bytes = Some(UInt64Value { value: self.state.lock().used_bytes });
        let memory = Some(MemoryUsage { usage_bytes, ..MemoryUsage::default() });
        Ok(ContainerStatsResponse { stats: Some(ContainerStats { memory, ..ContainerStats::default() }) })
    }

    async fn list_container_stats(
        &self,
        _: ListContainerStatsRequest,
    ) -> Result<ListContainerStatsResponse, CriError> {
        let state = self.state.lock();
        let memory =
            |value| MemoryUsage { working_set_bytes: Some(UInt64Value { value }), ..Default::default() };
        let stat = |status: &ContainerStatus| ContainerStats {
            attributes: Some(ContainerAttributes {
                id: status.id.clone(),
                labels: status.labels.clone(),
                ..ContainerAttributes::default()
            }),
            memory: Some(memory(state.used_bytes)),
            ..ContainerStats::default()
        };
        let stats = state.containers.values().map(|(_, status)| stat(status)).collect();
        Ok(ListContainerStatsResponse { stats })
    }

    async fn pod_sandbox_stats(
        &self,
        _: PodSandboxStatsRequest,
    ) -> Result<PodSandboxStatsResponse, CriError> {
        unimplemented("statistics")
    }

    async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse, CriError> {
        let state = self.state.lock();
        let found = state.containers.get(&request.container_id);
        let (_, container) = found.ok_or_else(|| CriError::not_found("container", &request.container_id))?;
        let name = &container.metadata.as_ref().unwrap().name;
        let exit_code = state.failing_execs.get(name).copied().unwrap_or(0);
        let stdout = format!("exit {exit_code}").into_bytes();
        Ok(ExecSyncResponse { exit_code, stdout, ..Default::default() })
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, CriError> {
        if let Some(message) = &self.state.lock().refused_exec {
            return Err(CriError::unknown(message));
        }
        let finished = self.finished_exec.clone();
        // `cat`: what comes in goes out; then it ends with 7.
        let (stdin, mut pipe) = tokio::io::duplex(1024);
        let (mut output, stdout) = tokio::io::duplex(1024);
        let (exit_tx, exit) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut output, request.cmd.join(" ").as_bytes()).await;
            let copied = tokio::io::copy(&mut pipe, &mut output).await;
            drop(output);
            if exit_tx.send(Ok(7)).is_ok() {
                *finished.lock() = copied.ok();
            }
        });
        let resize = tokio::sync::mpsc::channel(1).0;
        Ok(ExecSession {
            stdin: Some(Box::new(stdin)),
            stdout: Some(Box::new(stdout)),
            stderr: None,
            resize,
            exit,
        })
    }

    async fn attach(&self, request: AttachRequest) -> Result<ExecSession, CriError> {
        if self.state.lock().has_only_logs {
            return Err(CriError::new(Code::Unimplemented, "there is nothing but a log"));
        }
        let what = format!("stdin={} tty={} stderr={} ", request.stdin, request.tty, request.stderr);
        self.exec(ExecRequest { cmd: vec![what], ..ExecRequest::default() }).await
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<PodConnection, CriError> {
        let state = self.state.lock().sandboxes.get(sandbox_id).map(|sandbox| sandbox.state);
        if state != Some(PodSandboxState::SandboxReady as i32) {
            return Err(CriError::not_found("sandbox", sandbox_id));
        }
        let connection = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.map_err(CriError::of)?;
        Ok(Box::new(connection))
    }

    async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse, CriError> {
        let image = request.image.unwrap_or_default().image;
        let mut state = self.state.lock();
        state.log.push(format!("pull {image}"));
        if let Some(message) = state.broken_images.get(&image) {
            return Err(CriError::unknown(message));
        }
        state.images.push(image.clone());
        Ok(PullImageResponse { image_ref: image })
    }

    async fn image_status(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse, CriError> {
        let image = request.image.unwrap_or_default().image;
        let found = self.state.lock().images.contains(&image);
        let image = found.then(|| Image { id: format!("sha256:{image}"), size: 42, ..Default::default() });
        Ok(ImageStatusResponse { image, ..Default::default() })
    }

    async fn list_images(&self, _: ListImagesRequest) -> Result<ListImagesResponse, CriError> {
        Ok(ListImagesResponse { images: self.state.lock().stored_images.clone() })
    }

    async fn remove_image(&self, request: RemoveImageRequest) -> Result<(), CriError> {
        self.state.lock().removed_images.push(request.image.unwrap_or_default().image);
        Ok(())
    }

    async fn image_fs_info(&self) -> Result<ImageFsInfoResponse, CriError> {
        let disk = FilesystemIdentifier { mountpoint: self.state.lock().image_disk.clone() };
        let images = FilesystemUsage { fs_id: Some(disk), ..FilesystemUsage::default() };
        Ok(ImageFsInfoResponse { image_filesystems: vec![images], ..ImageFsInfoResponse::default() })
    }

    fn events(&self) -> broadcast::Receiver<ContainerEvent> {
        self.events.subscribe()
    }

    fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }
}
