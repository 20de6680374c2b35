//! [`ContainerRuntime`]: what one kind of container must do once its sandbox stands.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};
use crate::{ContainerEvent, CriError, ExecSession};

/// A standing pod sandbox, as container runtimes see it. Everything in it was made once for the pod,
/// whatever runs inside.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub id: String,
    pub config: PodSandboxConfig,
    /// The network namespace, held by a bind mount; `None` for a pod on the host's network.
    pub netns: Option<PathBuf>,
    /// IPC and UTS namespaces, held likewise; `None` where the pod shares the host's.
    pub ipcns: Option<PathBuf>,
    pub utsns: Option<PathBuf>,
    /// The pause process of a pod that shares one PID namespace; `None` so far, since such pods are refused.
    pub pause_pid: Option<u32>,
    /// The pod's cgroup, relative to every hierarchy's root, without a leading slash:
    /// `skiff/kubepods/burstable/pod<uid>`.
    pub cgroup: String,
    /// A directory of the sandbox's own, for runtimes to keep per-pod files in.
    pub directory: PathBuf,
}

/// An image that has been pulled: its digests and where its content store lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// The image's ID as CRI shows it: the digest of its config, `sha256:…`.
    pub id: String,
    /// The digest of its manifest, `sha256:…`.
    pub manifest: String,
    /// The reference it was asked for by.
    pub name: String,
}

/// A container to create. The caller has chosen the ID and resolved the image.
#[derive(Clone, Debug)]
pub struct CreateContainer {
    pub id: String,
    pub sandbox: Arc<Sandbox>,
    pub config: ContainerConfig,
    pub image: ImageRef,
    /// The RuntimeClass handler that was asked for, `""` for the default.
    pub handler: String,
    /// Where the log goes, absolute; `None` if the container's output is not kept.
    pub log_path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuntimeState {
    Created,
    Running,
    Exited,
    /// Nobody knows what became of it: it does not run.
    Unknown,
}

/// A container as its runtime sees it. Times are nanoseconds since the epoch, 0 for "not yet".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeContainer {
    pub id: String,
    pub sandbox_id: String,
    pub state: RuntimeState,
    pub pid: Option<u32>,
    pub created_at_ns: i64,
    pub started_at_ns: i64,
    pub finished_at_ns: i64,
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `ContainerCannotRun`, …; empty while it has not exited.
    pub reason: String,
    pub message: String,
}

/// What a container uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_usage_ns: u64,
    pub memory_usage_bytes: u64,
    /// Usage less what the kernel could reclaim at once: the figure that eviction and `kubectl top` use.
    pub memory_working_set_bytes: u64,
    /// What is no file's.
    pub memory_rss_bytes: u64,
    pub n_pids: u64,
    pub writable_layer_bytes: u64,
}

/// One kind of container. Implemented over runc and over wasmtime.
///
/// # Guarantees
/// - Containers outlive this object: a new one over the same state directory finds them again, running
///   ones still running.
/// - `stop` and `remove` of what is already stopped or gone succeed.
#[async_trait]
pub trait ContainerRuntime: Send + Sync + 'static {
    /// The name in a container's status and in metrics: `runc`, `wasmtime`.
    fn name(&self) -> &'static str;

    async fn create(&self, container: CreateContainer) -> Result<(), CriError>;
    async fn start(&self, id: &str) -> Result<(), CriError>;
    /// Sends the stop signal, waits up to `timeout`, then kills. Returns once the container has exited.
    async fn stop(&self, id: &str, timeout: Duration) -> Result<(), CriError>;
    async fn remove(&self, id: &str) -> Result<(), CriError>;
    async fn status(&self, id: &str) -> Result<RuntimeContainer, CriError>;
    async fn list(&self) -> Result<Vec<RuntimeContainer>, CriError>;
    async fn usage(&self, id: &str) -> Result<Usage, CriError>;
    async fn update_resources(&self, id: &str, resources: LinuxContainerResources) -> Result<(), CriError>;
    async fn reopen_log(&self, id: &str) -> Result<(), CriError>;
    /// Runs a process in the container. Runtimes that cannot answer with [`crate::Code::Unimplemented`].
    async fn exec(&self, id: &str, exec: ExecProcess) -> Result<ExecSession, CriError>;
    /// The streams of the container's own process, from now on. Runtimes that hold none answer with
    /// [`crate::Code::Unimplemented`].
    async fn attach(&self, id: &str, attach: Attach) -> Result<ExecSession, CriError>;
    /// Changes of this runtime's containers, from now on.
    fn events(&self) -> broadcast::Receiver<ContainerEvent>;
    /// What is to be told about a container while it is created, from now on. Most runtimes have nothing to tell.
    fn notices(&self) -> broadcast::Receiver<Notice> {
        broadcast::Sender::new(1).subscribe()
    }
}

/// What an event of the container's pod is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub sandbox_id: String,
    pub container_id: String,
    /// In one word, as events have it.
    pub reason: &'static str,
    pub message: String,
}

/// Which streams of a container are wanted. With a terminal there is one output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// A process to run in a container that runs already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecProcess {
    pub command: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}
