//! [`Cri`], the calls of CRI v1's RuntimeService and ImageService.

use async_trait::async_trait;
use tokio::sync::broadcast;

use crate::v1::*;
use crate::{CriError, ExecSession, Notice, PodConnection};

/// Something about a container or its sandbox changed: look at it again. Carries no state, so that a
/// listener that lags may simply list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerEvent {
    pub sandbox_id: String,
    /// Empty when the sandbox itself changed.
    pub container_id: String,
}

/// The container runtime interface, v1.
///
/// # Guarantees
/// - Every call may be repeated: stopping what is stopped and removing what is gone succeed.
/// - What was created survives the caller: a new implementation object over the same directories lists
///   the same sandboxes and containers.
/// - `list_*` and `*_status` never block on a running `create`, `start`, `stop` or pull.
#[async_trait]
pub trait Cri: Send + Sync + 'static {
    async fn version(&self) -> Result<VersionResponse, CriError>;
    async fn status(&self, request: StatusRequest) -> Result<StatusResponse, CriError>;

    async fn run_pod_sandbox(&self, request: RunPodSandboxRequest)
    -> Result<RunPodSandboxResponse, CriError>;
    async fn stop_pod_sandbox(&self, request: StopPodSandboxRequest) -> Result<(), CriError>;
    async fn remove_pod_sandbox(&self, request: RemovePodSandboxRequest) -> Result<(), CriError>;
    async fn pod_sandbox_status(
        &self,
        request: PodSandboxStatusRequest,
    ) -> Result<PodSandboxStatusResponse, CriError>;
    async fn list_pod_sandbox(
        &self,
        request: ListPodSandboxRequest,
    ) -> Result<ListPodSandboxResponse, CriError>;

    async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, CriError>;
    async fn start_container(&self, request: StartContainerRequest) -> Result<(), CriError>;
    async fn stop_container(&self, request: StopContainerRequest) -> Result<(), CriError>;
    async fn remove_container(&self, request: RemoveContainerRequest) -> Result<(), CriError>;
    async fn list_containers(
        &self,
        request: ListContainersRequest,
    ) -> Result<ListContainersResponse, CriError>;
    async fn container_status(
        &self,
        request: ContainerStatusRequest,
    ) -> Result<ContainerStatusResponse, CriError>;
    async fn update_container_resources(
        &self,
        request: UpdateContainerResourcesRequest,
    ) -> Result<(), CriError>;
    /// Changes what the pod's own group is given.
    async fn update_pod_sandbox_resources(
        &self,
        request: UpdatePodSandboxResourcesRequest,
    ) -> Result<(), CriError>;
    async fn reopen_container_log(&self, request: ReopenContainerLogRequest) -> Result<(), CriError>;
    async fn container_stats(
        &self,
        request: ContainerStatsRequest,
    ) -> Result<ContainerStatsResponse, CriError>;
    async fn list_container_stats(
        &self,
        request: ListContainerStatsRequest,
    ) -> Result<ListContainerStatsResponse, CriError>;
    async fn pod_sandbox_stats(
        &self,
        request: PodSandboxStatsRequest,
    ) -> Result<PodSandboxStatsResponse, CriError>;

    async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse, CriError>;
    /// CRI's Exec without the detour over a URL: a remote runtime dials the URL it is given.
    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, CriError>;
    /// CRI's Attach, likewise. Runtimes that hold no streams of a container answer with [`crate::Code::Unimplemented`]; its
    /// log is what there is then.
    async fn attach(&self, request: AttachRequest) -> Result<ExecSession, CriError>;
    /// CRI's PortForward for one connection: to a port that something in the pod listens on.
    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<PodConnection, CriError>;

    async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse, CriError>;
    async fn image_status(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse, CriError>;
    async fn list_images(&self, request: ListImagesRequest) -> Result<ListImagesResponse, CriError>;
    async fn remove_image(&self, request: RemoveImageRequest) -> Result<(), CriError>;
    async fn image_fs_info(&self) -> Result<ImageFsInfoResponse, CriError>;

    /// A receiver of changes, from now on. A lagging receiver loses the oldest ones and must list.
    fn events(&self) -> broadcast::Receiver<ContainerEvent>;

    /// What events of pods are to say of their containers while these are created, from now on. Most runtimes have nothing to tell.
    fn notices(&self) -> broadcast::Receiver<Notice> {
        broadcast::Sender::new(1).subscribe()
    }
}
