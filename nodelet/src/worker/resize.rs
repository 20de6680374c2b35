//! Gives containers that run what was allocated to them since they were started.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use skiff_cri::v1::{
    ContainerStatsRequest, LinuxContainerResources, UpdateContainerResourcesRequest,
    UpdatePodSandboxResourcesRequest,
};

use super::{Desired, RESYNC, Worker};
use crate::event::EventType;
use crate::given::{Amounts, InProgress, told};
use crate::plan::Actions;
use crate::pod::{containers, init_containers};
use crate::resources::{container_resources, pod_resources};
use crate::snapshot::PodSnapshot;

/// A change that could not be made is tried again after this.
const AGAIN: Duration = Duration::from_secs(10);

/// A container that runs and is to be given something else.
struct Update<'p> {
    container: &'p Container,
    id: String,
    has: Amounts,
    wanted: Amounts,
}

impl Worker {
    /// Keeps up what is told of a change: that one was allocated, and that it is in force.
    pub(super) fn note_resize(&mut self, desired: &Desired, snapshot: &PodSnapshot) {
        let pod = &desired.pod;
        let now = Timestamp::now();
        if desired.resize.started != self.resized {
            self.resized = desired.resize.started;
            self.resizing = Some(InProgress { generation: self.resized, error: None, since: now });
        }
        if self.is_resizing(pod, snapshot) {
            let generation = pod.metadata.generation;
            self.resizing.get_or_insert(InProgress { generation, error: None, since: now });
        } else if let Some(done) = self.resizing.take() {
            let message = told("Pod resize completed", pod, done.generation, "");
            self.shared.events.pod(pod, EventType::Normal, "ResizeCompleted", &message);
        }
    }

    fn is_resizing(&self, pod: &Pod, snapshot: &PodSnapshot) -> bool {
        pod_resources(pod) != pod_resources(&self.given.in_place_of(pod))
            || !self.updates(pod, snapshot).is_empty()
    }

    fn updates<'p>(&self, pod: &'p Pod, snapshot: &PodSnapshot) -> Vec<Update<'p>> {
        let all = init_containers(pod).iter().chain(containers(pod));
        let update = |container: &'p Container| {
            let running = snapshot.running().find(|info| info.name == container.name)?;
            let (has, wanted) = self.given.change(pod, container)?;
            Some(Update { container, id: running.id.clone(), has, wanted })
        };
        all.filter_map(update).collect()
    }

    /// Brings the groups of a pod and its containers to what is allocated. Answers when to look again at the latest.
    pub(super) async fn resize(
        &mut self,
        pod: &Arc<Pod>,
        snapshot: &PodSnapshot,
        actions: &Actions,
    ) -> Duration {
        // A container that is to be started anew is given its own by that.
        let mut updates = self.updates(pod, snapshot);
        updates.retain(|update| !actions.kill.iter().any(|kill| kill.id == update.id));
        let (old, new) = (pod_resources(&self.given.in_place_of(pod)), pod_resources(pod));
        let Some(sandbox) = actions.sandbox_id.as_deref().filter(|_| !updates.is_empty() || old != new)
        else {
            return RESYNC;
        };
        match self.change(pod, sandbox, updates, (old, new)).await {
            Ok(()) => Duration::ZERO,
            Err(message) => {
                let generation = pod.metadata.generation;
                let fresh = InProgress { generation, error: None, since: Timestamp::now() };
                let resizing = self.resizing.get_or_insert(fresh);
                if resizing.error.as_ref() != Some(&message) {
                    let event = told("Pod resize error", pod, resizing.generation, &message);
                    self.shared.events.pod(pod, EventType::Warning, "ResizeError", &event);
                    resizing.since = Timestamp::now();
                }
                resizing.error = Some(message);
                AGAIN
            }
        }
    }

    /// In an order in which the containers never have more together than their pod: first it grows, last it shrinks, and
    /// containers that shrink make room for those that grow.
    async fn change(
        &mut self,
        pod: &Pod,
        sandbox: &str,
        mut updates: Vec<Update<'_>>,
        (old, new): (LinuxContainerResources, LinuxContainerResources),
    ) -> Result<(), String> {
        self.check_usage(&updates, &old, &new).await?;
        // A limit that the pod had stays where its containers do not all have one any more, as with the kubelet.
        let wider = LinuxContainerResources {
            cpu_quota: wider(old.cpu_quota, new.cpu_quota),
            memory_limit_in_bytes: wider(old.memory_limit_in_bytes, new.memory_limit_in_bytes),
            cpu_shares: old.cpu_shares.max(new.cpu_shares),
            ..new.clone()
        };
        if wider != old {
            self.update_sandbox(sandbox, wider.clone()).await?;
        }
        updates.sort_by_key(|update| update.wanted.memory_limit - update.has.memory_limit);
        for Update { container, id, .. } in updates {
            let resources = container_resources(pod, container, self.shared.memory_capacity);
            let request = UpdateContainerResourcesRequest {
                container_id: id,
                linux: Some(resources),
                ..UpdateContainerResourcesRequest::default()
            };
            self.shared.cri.update_container_resources(request).await.map_err(|e| e.to_string())?;
            self.given.set(container);
        }
        if new != wider {
            self.update_sandbox(sandbox, new).await?;
        }
        // Of the others, those that do not run are given theirs when they start.
        for container in init_containers(pod).iter().chain(containers(pod)) {
            if !self.given.needs_restart(pod, container) {
                self.given.set(container);
            }
        }
        self.given.set_pod(pod);
        Ok(())
    }

    async fn update_sandbox(&self, id: &str, resources: LinuxContainerResources) -> Result<(), String> {
        let request = UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: id.to_owned(),
            resources: Some(resources),
            ..UpdatePodSandboxResourcesRequest::default()
        };
        self.shared.cri.update_pod_sandbox_resources(request).await.map_err(|e| e.to_string())
    }

    /// A limit below what is in use would end the container.
    async fn check_usage(
        &self,
        updates: &[Update<'_>],
        old: &LinuxContainerResources,
        new: &LinuxContainerResources,
    ) -> Result<(), String> {
        let shrinks = |has: i64, wanted: i64| wanted != 0 && (has == 0 || wanted < has);
        let (has, wanted) = (old.memory_limit_in_bytes, new.memory_limit_in_bytes);
        let mut faults = Vec::new();
        let mut all = 0_u64;
        for Update { container, id, has, wanted } in updates {
            let used = self.memory_usage(id).await?;
            all = all.saturating_add(used);
            if shrinks(has.memory_limit, wanted.memory_limit) && used >= wanted.memory_limit.unsigned_abs() {
                faults.push(format!(
                    "attempting to set container {:?} memory limit ({}) below current usage ({used})",
                    container.name, wanted.memory_limit
                ));
            }
        }
        if shrinks(has, wanted) && all >= wanted.unsigned_abs() {
            faults.insert(
                0,
                format!("attempting to set pod memory limit ({wanted}) below current usage ({all})"),
            );
        }
        match faults.as_slice() {
            [] => Ok(()),
            [one] => Err(format!("cannot decrease memory limits: {one}")),
            several => Err(format!("cannot decrease memory limits: [{}]", several.join(", "))),
        }
    }

    async fn memory_usage(&self, id: &str) -> Result<u64, String> {
        let request = ContainerStatsRequest { container_id: id.to_owned() };
        let answer = self.shared.cri.container_stats(request).await.map_err(|e| e.to_string())?;
        let memory = answer.stats.and_then(|stats| stats.memory);
        Ok(memory.and_then(|memory| memory.usage_bytes).map_or(0, |bytes| bytes.value))
    }
}

/// The larger of two limits, of which zero or less is none.
fn wider(a: i64, b: i64) -> i64 {
    if a <= 0 || b <= 0 { 0 } else { a.max(b) }
}

#[cfg(test)]
#[path = "resize_tests.rs"]
mod tests;
