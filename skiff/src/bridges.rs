//! Adapters: what one crate asks for in its own small trait, done by another.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::ObjectReference;
use skiff_cgroup::{Cgroups, Limits};
use skiff_client::EventRecorder;
use skiff_cri::CriError;
use skiff_cri::v1::{PodSandboxConfig, PodSandboxMetadata};
use skiff_network::{HostPort, LocalPods, PodIdentity, PodNetwork, netns};
use skiff_runtime::{PortForward, SandboxNetwork};

/// The pod network, as the runtime asks for it.
pub(crate) struct Network {
    pub(crate) pods: PodNetwork,
    /// Who keeps a pod from it until network policies have been heard.
    pub(crate) policies: Arc<LocalPods>,
}

/// Whose a sandbox is. Its labels are those of its pod.
pub(crate) fn identity(
    metadata: Option<&PodSandboxMetadata>,
    labels: &BTreeMap<String, String>,
) -> PodIdentity {
    let metadata = metadata.cloned().unwrap_or_default();
    let PodSandboxMetadata { namespace, name, uid, .. } = metadata;
    PodIdentity { namespace, name, uid, labels: labels.clone() }
}

fn host_ports(ports: &[PortForward]) -> Vec<HostPort> {
    let ports = ports.iter().map(|port| {
        let PortForward { protocol, host_ip, host_port, container_port } = *port;
        HostPort { protocol, host_ip, host_port, container_port }
    });
    ports.collect()
}

fn failed(what: &str, error: &dyn std::error::Error) -> CriError {
    CriError::caused(&format!("failed to {what}"), error)
}

#[async_trait]
impl SandboxNetwork for Network {
    async fn up(
        &self,
        sandbox_id: &str,
        netns: &Path,
        ports: &[PortForward],
        pod: &PodSandboxConfig,
    ) -> Result<Vec<IpAddr>, CriError> {
        if !netns::exists(netns) {
            netns::create(netns).map_err(|e| failed("create the pod's network namespace", &e))?;
        }
        let pod = identity(pod.metadata.as_ref(), &pod.labels);
        let ports = host_ports(ports);
        let attached = self.pods.attach_judged(&self.policies, pod, sandbox_id, netns, &ports).await;
        attached.map(|ip| vec![ip.into()]).map_err(|e| failed("set up the pod's network", &e))
    }

    async fn down(&self, sandbox_id: &str, netns: &Path) -> Result<(), CriError> {
        // Closed before its address is anybody else's.
        self.policies.forget(sandbox_id);
        let detached = self.pods.detach(sandbox_id).await;
        detached.map_err(|e| failed("take down the pod's network", &e))?;
        netns::remove(netns).map_err(|e| failed("remove the pod's network namespace", &e))
    }

    fn holds(&self, netns: &Path) -> bool {
        netns::exists(netns)
    }
}

/// The machine's control groups, as nodelet asks for them.
pub(crate) struct PodGroups(pub(crate) Cgroups);

impl skiff_nodelet::PodCgroups for PodGroups {
    fn set(&self, path: &str, cpu_shares: u64, memory_bytes: Option<i64>) -> Result<(), String> {
        let limits = Limits { cpu_shares: Some(cpu_shares), memory_bytes, ..Limits::default() };
        match self.0.create(path, &limits) {
            Ok(_) => Ok(()),
            Err(error) => Err(failed("set a control group", &error).message),
        }
    }
}

/// The event recorder, as nodelet asks for it.
pub(crate) struct Events(pub(crate) EventRecorder);

impl skiff_nodelet::EventSink for Events {
    fn event(&self, object: &ObjectReference, type_: skiff_nodelet::EventType, reason: &str, message: &str) {
        let type_ = match type_ {
            skiff_nodelet::EventType::Normal => skiff_client::EventType::Normal,
            skiff_nodelet::EventType::Warning => skiff_client::EventType::Warning,
        };
        self.0.event_about(object.clone(), type_, reason, message);
    }
}
