//! Events, and the references they carry.

use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};

use crate::pod::{PodExt, ephemeral_containers, init_containers};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Where events go. The call must not block: an event that cannot be recorded is dropped.
pub trait EventSink: Send + Sync + 'static {
    fn event(&self, object: &ObjectReference, type_: EventType, reason: &str, message: &str);
}

pub(crate) fn pod_ref(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: None,
    }
}

/// A reference to one container of a pod, as `kubectl describe` matches events to containers.
pub(crate) fn container_ref(pod: &Pod, container: &Container) -> ObjectReference {
    let list = if init_containers(pod).iter().any(|c| c.name == container.name) {
        "initContainers"
    } else if ephemeral_containers(pod).iter().any(|c| c.name == container.name) {
        "ephemeralContainers"
    } else {
        "containers"
    };
    ObjectReference { field_path: Some(format!("spec.{list}{{{}}}", container.name)), ..pod_ref(pod) }
}

pub(crate) fn node_ref(node_name: &str) -> ObjectReference {
    ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(node_name.to_owned()),
        // Upstream's kubelet does not know its Node's UID this early and uses the name.
        uid: Some(node_name.to_owned()),
        ..ObjectReference::default()
    }
}

/// Records events of one pod: what the worker and its helpers hold.
#[derive(Clone)]
pub(crate) struct PodEvents {
    sink: std::sync::Arc<dyn EventSink>,
}

impl PodEvents {
    pub(crate) fn new(sink: std::sync::Arc<dyn EventSink>) -> PodEvents {
        PodEvents { sink }
    }

    pub(crate) fn pod(&self, pod: &Pod, type_: EventType, reason: &str, message: &str) {
        tracing::debug!(pod = %pod.describe(), reason, message, "event");
        self.sink.event(&pod_ref(pod), type_, reason, message);
    }

    pub(crate) fn container(
        &self,
        pod: &Pod,
        container: &Container,
        type_: EventType,
        reason: &str,
        message: &str,
    ) {
        tracing::debug!(pod = %pod.describe(), container = %container.name, reason, message, "event");
        self.sink.event(&container_ref(pod, container), type_, reason, message);
    }
}
