//! Ends a pod: its containers, its sandbox, its traces, and last its API object.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use skiff_cri::v1::{RemoveContainerRequest, RemovePodSandboxRequest, StopPodSandboxRequest};
use skiff_cri::{Cri, CriError};

use crate::event::EventType;
use crate::pod::{PodExt, is_terminal};
use crate::snapshot::{self, PodSnapshot, RunState};
use crate::status;
use crate::termination;
use crate::worker::{Desired, Next, RESYNC, Shared, Worker};

/// How long the last status may take to reach the API before the object is deleted regardless.
const LAST_STATUS: Duration = Duration::from_secs(5);
/// Upstream gives containers of a pod that nobody knows any more one second.
const ORPHAN_GRACE_S: i64 = 1;

impl Worker {
    pub(super) async fn end(&mut self, desired: &Desired) -> Result<Next, CriError> {
        let snapshot = self.read().await?;
        let is_live = snapshot.running().next().is_some() || snapshot.sandboxes.iter().any(|s| s.ready);
        let is_settled = self.over && !is_live && desired.rejection.is_none() && self.ended_before();
        if desired.rejection.is_none() && !is_settled {
            self.stop_all(desired, snapshot).await?;
        }
        self.set_over();
        self.publish();
        if !desired.must_end() {
            if let Err(error) = self.shared.volumes.remove_volumes(&self.uid).await {
                tracing::warn!(pod = %desired.pod.describe(), %error, "cannot remove an ended pod's volumes yet");
                return Ok(Next::Wait(self.next_retry()));
            }
            return Ok(Next::Wait(RESYNC * 10));
        }
        self.remove(desired).await
    }

    /// The last status was made already.
    fn ended_before(&self) -> bool {
        let over = |s: &k8s_openapi::api::core::v1::PodStatus| {
            let any_live = s
                .container_statuses
                .iter()
                .flatten()
                .any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()));
            is_terminal(s.phase.as_deref().unwrap_or_default()) && !any_live
        };
        self.status.as_ref().is_some_and(over)
    }

    async fn stop_all(&mut self, desired: &Desired, snapshot: PodSnapshot) -> Result<(), CriError> {
        let pod = &desired.pod;
        self.refresh_status(pod, &snapshot, false);
        self.publish_unfinished(pod);
        self.probes.stop_liveness_and_startup();
        let stopped = async {
            self.stop_containers(pod, &snapshot).await?;
            self.stop_sandboxes(&snapshot).await
        };
        if let Err(error) = stopped.await {
            let message = format!("error killing pod: {error}");
            self.shared.events.pod(pod, EventType::Warning, "FailedKillPod", &message);
            return Err(error);
        }
        self.probes.stop();
        let after = self.read().await?;
        if let Some(running) = after.containers.iter().find(|c| c.state == RunState::Running) {
            let message = format!("container {} still runs after it was stopped", running.full_id());
            return Err(CriError::unknown(message));
        }
        self.refresh_status(pod, &after, true);
        self.status = self.status.take().map(status::terminate);
        self.publish();
        Ok(())
    }

    /// Removes every trace of a deleted pod, then the API object.
    async fn remove(&mut self, desired: &Desired) -> Result<Next, CriError> {
        let pod = &desired.pod;
        if desired.in_api && !self.writer.flush(LAST_STATUS).await {
            tracing::warn!(pod = %pod.describe(), "the pod's last status did not reach the API");
        }
        remove_from_runtime(&*self.shared.cri, &self.uid).await?;
        if let Err(error) = remove_from_disk(&self.shared, pod.namespace(), pod.name(), &self.uid).await {
            tracing::warn!(pod = %pod.describe(), %error, "cannot remove the pod's directories yet");
            return Ok(Next::Wait(self.next_retry()));
        }
        if !desired.in_api {
            return Ok(Next::Finished);
        }
        match self.delete_object(pod).await {
            // The watch tells when the object is gone: finalizers may hold it.
            Ok(()) => Ok(Next::Wait(RESYNC)),
            Err(error) => {
                tracing::warn!(pod = %pod.describe(), %error, "cannot delete the pod's API object, trying again");
                Ok(Next::Wait(self.next_retry()))
            }
        }
    }

    async fn delete_object(&self, pod: &Pod) -> Result<(), kube::Error> {
        let api = Api::<Pod>::namespaced(self.shared.client.clone(), pod.namespace());
        let precondition = Preconditions { uid: Some(self.uid.clone()), resource_version: None };
        let params = DeleteParams::default().grace_period(0).preconditions(precondition);
        match api.delete(pod.name(), &params).await {
            Ok(_) => Ok(()),
            // Gone already, or another pod has the name now.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Removes a pod's containers and sandboxes, which are stopped.
pub(crate) async fn remove_from_runtime(cri: &dyn Cri, uid: &str) -> Result<(), CriError> {
    let snapshot = snapshot::read(cri, "", uid).await?;
    for container in &snapshot.containers {
        cri.remove_container(RemoveContainerRequest { container_id: container.id.clone() }).await?;
    }
    for sandbox in &snapshot.sandboxes {
        cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() }).await?;
    }
    Ok(())
}

async fn remove_from_disk(
    shared: &Shared,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<(), crate::volume::VolumeError> {
    shared.volumes.tear_down(uid).await?;
    let logs = shared.config.pod_log_dir(namespace, name, uid);
    crate::volume::blocking(move || {
        let failed = crate::volume::VolumeError::host("remove the logs in", &logs);
        skiff_tree::remove(&logs).map_err(|error| failed(error.into()))
    })
    .await
}

/// Ends a pod that the runtime has and the API has not. Only to be called once the API's whole list
/// of pods has been read.
pub(crate) async fn end_orphan(
    shared: &Shared,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<(), String> {
    let cri = &*shared.cri;
    let text = |e: CriError| e.to_string();
    let snapshot = snapshot::read(cri, "", uid).await.map_err(text)?;
    let live = snapshot.containers.iter().filter(|c| c.state != RunState::Exited);
    let stops = live.map(|c| termination::stop(cri, &c.id, ORPHAN_GRACE_S));
    futures::future::try_join_all(stops).await.map_err(text)?;
    for sandbox in &snapshot.sandboxes {
        cri.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() })
            .await
            .map_err(text)?;
    }
    remove_from_runtime(cri, uid).await.map_err(text)?;
    remove_from_disk(shared, namespace, name, uid).await.map_err(|e| e.to_string())
}
