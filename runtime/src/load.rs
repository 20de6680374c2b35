//! What an earlier process, or an earlier boot of the machine, left: taken up where it stands, and removed where no
//! record names it.
//!
//! ```text
//!  records ──▶ sandboxes: Ready? made in this boot, and all it holds is there ──▶ goes on
//!                         else ──▶ Stopped: the pod's worker makes another
//!  what lies there ─▶ has it a record? ─ no ─▶ removed
//! ```
//!
//! # Guarantees
//! - What a record names is not touched, nor anything that might be named by a record that could not be read.
//! - That something cannot be removed holds nothing up: it is tried again at the next start.

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::Arc;

use skiff_cri::v1::*;
use skiff_cri::{Cri, CriError};
use tracing::{info, warn};

use crate::cri::NodeRuntime;
use crate::records::{ContainerRecord, SandboxRecord, SandboxState};

/// The groups of pods below the node's own, as nodelet names them.
const POD_PARENTS: [&str; 3] = ["kubepods", "kubepods/burstable", "kubepods/besteffort"];
const POD_PREFIX: &str = "pod";

/// IDs whose records could not be read: nobody knows what they name.
struct Unread {
    sandboxes: HashSet<String>,
    containers: HashSet<String>,
}

impl NodeRuntime {
    pub(crate) async fn load(&self) -> Result<(), CriError> {
        let containers = self.container_records.read::<ContainerRecord>()?;
        let sandboxes = self.sandbox_records.read::<SandboxRecord>()?;
        let by_id = containers.records.into_iter().map(|record| (record.id.clone(), Arc::new(record)));
        self.state.write().containers.extend(by_id);
        let mut half_made = Vec::new();
        for record in sandboxes.records {
            if record.state == SandboxState::Starting {
                half_made.push(record.id.clone());
            }
            self.take_up(record).await?;
        }
        for id in half_made {
            info!(sandbox = id, "removing a sandbox that was never finished");
            let request = RemovePodSandboxRequest { pod_sandbox_id: id.clone() };
            if let Err(error) = self.remove_pod_sandbox(request).await {
                told("remove a sandbox that was never finished", &id, error);
            }
        }
        self.sweep(&Unread { sandboxes: sandboxes.unread, containers: containers.unread }).await;
        Ok(())
    }

    async fn take_up(&self, mut record: SandboxRecord) -> Result<(), CriError> {
        if record.state == SandboxState::Ready {
            match self.sandboxes.lacks(&record) {
                None => self.sandboxes.keep_cgroup(&self.sandboxes.describe(&record.id, &record.config))?,
                Some(lacks) => {
                    info!(sandbox = record.id, "a sandbox does not stand any more: {lacks}");
                    record.state = SandboxState::Stopped;
                    return self.save_sandbox(record).await;
                }
            }
        }
        self.state.write().sandboxes.insert(record.id.clone(), Arc::new(record));
        Ok(())
    }

    /// Removes what no record names.
    async fn sweep(&self, unread: &Unread) {
        self.sweep_sandboxes(unread).await;
        self.sweep_containers(unread).await;
        self.sweep_cgroups(unread).await;
    }

    async fn sweep_sandboxes(&self, unread: &Unread) {
        let found = match self.sandboxes.on_disk() {
            Ok(found) => found,
            Err(error) => return told("look for sandboxes without a record", "", error),
        };
        for id in found {
            if self.state.read().sandboxes.contains_key(&id) || unread.sandboxes.contains(&id) {
                continue;
            }
            match self.sandboxes.discard(&id).await {
                Ok(()) => info!(sandbox = id, "removed what was left of a sandbox without a record"),
                Err(error) => told("remove what is left of a sandbox without a record", &id, error),
            }
        }
    }

    async fn sweep_containers(&self, unread: &Unread) {
        for runtime in self.dispatch.all() {
            let found = match runtime.list().await {
                Ok(found) => found,
                Err(error) => {
                    told("look for containers without a record", runtime.name(), error);
                    continue;
                }
            };
            for container in found {
                let id = &container.id;
                if self.state.read().containers.contains_key(id) || unread.containers.contains(id) {
                    continue;
                }
                match runtime.remove(id).await {
                    Ok(()) => info!(container = id, "removed a container without a record"),
                    Err(error) => told("remove a container without a record", id, error),
                }
            }
        }
        // Their sandbox is gone: nobody could start them, and nobody would ask for their removal.
        let containers: Vec<_> = self.state.read().containers.values().cloned().collect();
        for container in containers {
            let sandbox = &container.sandbox_id;
            if self.state.read().sandboxes.contains_key(sandbox) || unread.sandboxes.contains(sandbox) {
                continue;
            }
            let request = RemoveContainerRequest { container_id: container.id.clone() };
            match self.remove_container(request).await {
                Ok(()) => info!(container = container.id, "removed a container without a sandbox"),
                Err(error) => told("remove a container without a sandbox", &container.id, error),
            }
        }
    }

    /// Groups of pods that have no sandbox, and of containers that have no record in the pods that have one.
    async fn sweep_cgroups(&self, unread: &Unread) {
        if !unread.sandboxes.is_empty() || !unread.containers.is_empty() {
            return;
        }
        let (pods, containers) = {
            let state = self.state.read();
            let described = |r: &Arc<SandboxRecord>| self.sandboxes.describe(&r.id, &r.config).cgroup;
            let pods: HashSet<String> = state.sandboxes.values().map(described).collect();
            (pods, state.containers.keys().cloned().collect::<HashSet<String>>())
        };
        let (cgroups, root) = (self.sandboxes.cgroups.clone(), self.cgroup_root.trim_matches('/').to_owned());
        let swept = tokio::task::spawn_blocking(move || {
            let below = |parent: &str| match parent.is_empty() {
                true => Ok(Vec::new()),
                false => cgroups.group(parent)?.children(),
            };
            let mut leftover: Vec<String> = Vec::new();
            for parent in POD_PARENTS {
                let parent = if root.is_empty() { parent.to_owned() } else { format!("{root}/{parent}") };
                let found = below(&parent)?.into_iter().filter(|name| name.starts_with(POD_PREFIX));
                leftover.extend(found.map(|n| format!("{parent}/{n}")).filter(|path| !pods.contains(path)));
            }
            for pod in &pods {
                let found = below(pod)?.into_iter().filter(|name| !containers.contains(name));
                leftover.extend(found.map(|name| format!("{pod}/{name}")));
            }
            for path in leftover {
                let group = cgroups.group(&path)?;
                match group.kill().and_then(|()| group.remove()) {
                    Ok(()) => info!(cgroup = path, "removed a control group without a pod"),
                    Err(error) => told("remove a control group without a pod", &path, error),
                }
            }
            Ok::<(), skiff_cgroup::Error>(())
        });
        match swept.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => told("look for control groups without a pod", "", error),
            Err(error) => told("look for control groups without a pod", "", error),
        }
    }
}

fn told(what: &str, which: &str, error: impl Display) {
    warn!(which, %error, "cannot {what}; it is tried again at the next start");
}
