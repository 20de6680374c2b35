//! What the runtime holds of one pod: its sandboxes and containers, read anew for every pass.
//!
//! The runtime is the only record of what runs. All that a later nodelet needs to know about a
//! container (which pod it is of, its hash, its restart count) is on it as labels and annotations,
//! under upstream's names.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Container, Pod};
use skiff_cri::v1::*;
use skiff_cri::{Code, Cri, CriError};

use crate::pod::{PodExt, hash_container};

pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
const POD_DELETION_GRACE: &str = "io.kubernetes.pod.deletionGracePeriod";
const POD_TERMINATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
const HASH: &str = "io.kubernetes.container.hash";
const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
const PORTS: &str = "io.kubernetes.container.ports";
/// Which runtime a container landed on (`runc`, `wasmtime`), where the implementation of `Cri` has
/// several: the scheme of the container's ID in the pod's status.
pub const RUNTIME_ANNOTATION: &str = "skiff.dev/runtime";

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PodSnapshot {
    /// Newest first.
    pub(crate) sandboxes: Vec<SandboxInfo>,
    /// Newest first, of all sandboxes.
    pub(crate) containers: Vec<ContainerInfo>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SandboxInfo {
    pub(crate) id: String,
    pub(crate) attempt: u32,
    pub(crate) ready: bool,
    pub(crate) host_network: bool,
    pub(crate) ips: Vec<String>,
    pub(crate) created_at_ns: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RunState {
    Created,
    Running,
    Exited,
    #[default]
    Unknown,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ContainerInfo {
    pub(crate) id: String,
    pub(crate) sandbox_id: String,
    pub(crate) name: String,
    pub(crate) runtime: String,
    pub(crate) image: String,
    pub(crate) image_ref: String,
    pub(crate) hash: u64,
    pub(crate) restart_count: i32,
    pub(crate) state: RunState,
    pub(crate) created_at_ns: i64,
    pub(crate) started_at_ns: i64,
    pub(crate) finished_at_ns: i64,
    pub(crate) exit_code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) user: Option<LinuxContainerUser>,
    pub(crate) log_path: String,
    /// Where the container may leave its last words: in the container, and on the host.
    pub(crate) message_path: String,
    pub(crate) message_file: Option<String>,
    pub(crate) message_falls_back_to_logs: bool,
}

impl ContainerInfo {
    /// The ID as a pod's status shows it: `runc://<id>`.
    pub(crate) fn full_id(&self) -> String {
        format!("{}://{}", self.runtime, self.id)
    }
}

impl PodSnapshot {
    /// The newest container of that name.
    pub(crate) fn container(&self, name: &str) -> Option<&ContainerInfo> {
        self.containers.iter().find(|c| c.name == name)
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = &ContainerInfo> {
        self.containers.iter().filter(|c| c.state == RunState::Running)
    }

    /// The newest sandbox's addresses, if it stands.
    pub(crate) fn pod_ips(&self) -> Vec<String> {
        self.sandboxes.first().filter(|s| s.ready).map(|s| s.ips.clone()).unwrap_or_default()
    }
}

/// Reads the state of pod `uid`.
pub(crate) async fn read(cri: &dyn Cri, default_runtime: &str, uid: &str) -> Result<PodSnapshot, CriError> {
    let selector = BTreeMap::from([(POD_UID.to_owned(), uid.to_owned())]);
    let sandbox_filter = PodSandboxFilter { label_selector: selector.clone(), ..Default::default() };
    let container_filter = ContainerFilter { label_selector: selector, ..Default::default() };
    let (sandboxes, containers) = futures::try_join!(
        cri.list_pod_sandbox(ListPodSandboxRequest { filter: Some(sandbox_filter) }),
        cri.list_containers(ListContainersRequest { filter: Some(container_filter) }),
    )?;
    let (sandboxes, containers) = futures::try_join!(
        try_join_all(sandboxes.items.into_iter().map(|s| read_sandbox(cri, s.id))),
        try_join_all(containers.containers.into_iter().map(|c| read_container(cri, default_runtime, c))),
    )?;
    let mut snapshot = PodSnapshot {
        sandboxes: sandboxes.into_iter().flatten().collect(),
        containers: containers.into_iter().flatten().collect(),
    };
    snapshot.sandboxes.sort_by_key(|s| Reverse((s.created_at_ns, s.attempt)));
    snapshot.containers.sort_by_key(|c| Reverse((c.created_at_ns, c.restart_count)));
    Ok(snapshot)
}

/// `None` if it went away between the listing and now, as another pass may have removed it.
fn gone_is_none<T>(result: Result<T, CriError>) -> Result<Option<T>, CriError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.code == Code::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) async fn read_sandbox(cri: &dyn Cri, id: String) -> Result<Option<SandboxInfo>, CriError> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id, ..Default::default() };
    let Some(status) = gone_is_none(cri.pod_sandbox_status(request).await)?.and_then(|r| r.status) else {
        return Ok(None);
    };
    let network = status.network.unwrap_or_default();
    let options = status.linux.and_then(|l| l.namespaces).and_then(|n| n.options).unwrap_or_default();
    let ips = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    Ok(Some(SandboxInfo {
        id: status.id,
        attempt: status.metadata.map(|m| m.attempt).unwrap_or_default(),
        ready: status.state == PodSandboxState::SandboxReady as i32,
        host_network: options.network == NamespaceMode::Node as i32,
        ips: ips.filter(|ip| ip.parse::<std::net::IpAddr>().is_ok()).collect(),
        created_at_ns: status.created_at,
    }))
}

async fn read_container(
    cri: &dyn Cri,
    default_runtime: &str,
    listed: skiff_cri::v1::Container,
) -> Result<Option<ContainerInfo>, CriError> {
    let request = ContainerStatusRequest { container_id: listed.id, ..Default::default() };
    let Some(status) = gone_is_none(cri.container_status(request).await)?.and_then(|r| r.status) else {
        return Ok(None);
    };
    Ok(Some(container_info(status, listed.pod_sandbox_id, default_runtime)))
}

fn container_info(status: ContainerStatus, sandbox_id: String, default_runtime: &str) -> ContainerInfo {
    let annotation = |name: &str| status.annotations.get(name).cloned().unwrap_or_default();
    let message_path = annotation(MESSAGE_PATH);
    let message_file =
        status.mounts.iter().find(|m| !message_path.is_empty() && m.container_path == message_path);
    let runtime =
        status.annotations.get(RUNTIME_ANNOTATION).cloned().unwrap_or_else(|| default_runtime.to_owned());
    ContainerInfo {
        runtime,
        sandbox_id,
        name: status.labels.get(CONTAINER_NAME).cloned().unwrap_or_default(),
        hash: u64::from_str_radix(&annotation(HASH), 16).unwrap_or(0),
        restart_count: annotation(RESTART_COUNT).parse().unwrap_or(0),
        state: match ContainerState::try_from(status.state) {
            Ok(ContainerState::ContainerCreated) => RunState::Created,
            Ok(ContainerState::ContainerRunning) => RunState::Running,
            Ok(ContainerState::ContainerExited) => RunState::Exited,
            _ => RunState::Unknown,
        },
        message_file: message_file.map(|m| m.host_path.clone()),
        message_falls_back_to_logs: annotation(MESSAGE_POLICY) == "FallbackToLogsOnError",
        message_path,
        image: status
            .image
            .map(|i| if i.user_specified_image.is_empty() { i.image } else { i.user_specified_image })
            .unwrap_or_default(),
        image_ref: status.image_ref,
        created_at_ns: status.created_at,
        started_at_ns: status.started_at,
        finished_at_ns: status.finished_at,
        exit_code: status.exit_code,
        reason: status.reason,
        message: status.message,
        user: status.user.and_then(|u| u.linux),
        log_path: status.log_path,
        id: status.id,
    }
}

/// Every pod the runtime knows of, by UID: its name, namespace and whether anything of it still runs.
pub(crate) async fn list_pods(cri: &dyn Cri) -> Result<BTreeMap<String, (String, String)>, CriError> {
    let (sandboxes, containers) = futures::try_join!(
        cri.list_pod_sandbox(ListPodSandboxRequest::default()),
        cri.list_containers(ListContainersRequest::default()),
    )?;
    let labels = sandboxes.items.into_iter().map(|s| s.labels);
    let labels = labels.chain(containers.containers.into_iter().map(|c| c.labels));
    let pods = labels.filter_map(|mut labels| {
        // Sandboxes without our labels are someone else's (crictl's, critest's).
        let uid = labels.remove(POD_UID)?;
        Some((uid, (labels.remove(POD_NAMESPACE)?, labels.remove(POD_NAME)?)))
    });
    Ok(pods.collect())
}

pub(crate) fn sandbox_labels(pod: &Pod) -> BTreeMap<String, String> {
    let mut labels = pod.metadata.labels.clone().unwrap_or_default();
    labels.extend(pod_labels(pod));
    labels
}

fn pod_labels(pod: &Pod) -> [(String, String); 3] {
    [
        (POD_NAME.to_owned(), pod.name().to_owned()),
        (POD_NAMESPACE.to_owned(), pod.namespace().to_owned()),
        (POD_UID.to_owned(), pod.uid().to_owned()),
    ]
}

pub(crate) fn container_labels(pod: &Pod, container: &Container) -> BTreeMap<String, String> {
    let name = (CONTAINER_NAME.to_owned(), container.name.clone());
    pod_labels(pod).into_iter().chain([name]).collect()
}

pub(crate) fn container_annotations(
    pod: &Pod,
    container: &Container,
    restart_count: i32,
) -> BTreeMap<String, String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut annotations = BTreeMap::from([
        (HASH.to_owned(), format!("{:x}", hash_container(container))),
        (RESTART_COUNT.to_owned(), restart_count.to_string()),
        (MESSAGE_PATH.to_owned(), text(&container.termination_message_path)),
        (MESSAGE_POLICY.to_owned(), text(&container.termination_message_policy)),
    ]);
    let mut add = |name: &str, value: Option<String>| value.map(|v| annotations.insert(name.to_owned(), v));
    add(POD_DELETION_GRACE, pod.metadata.deletion_grace_period_seconds.map(|s| s.to_string()));
    add(
        POD_TERMINATION_GRACE,
        pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).map(|s| s.to_string()),
    );
    add(
        PRE_STOP,
        container
            .lifecycle
            .as_ref()
            .and_then(|l| l.pre_stop.as_ref())
            .and_then(|p| serde_json::to_string(p).ok()),
    );
    add(
        PORTS,
        container.ports.as_ref().filter(|p| !p.is_empty()).and_then(|p| serde_json::to_string(p).ok()),
    );
    annotations
}
