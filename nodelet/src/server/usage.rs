//! What containers and the node use.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use futures::try_join;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use skiff_cri::CriError;
use skiff_cri::v1::{
    Container, ContainerState, ContainerStats, ListContainerStatsRequest, ListContainersRequest,
};

use crate::node::status::available_memory;
use crate::pod::PodExt;
use crate::server::Api;
use crate::snapshot::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use crate::volume::mounts;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PodRef {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

pub(super) struct Used {
    pub(super) name: String,
    /// As with a kubelet over CRI this is when the container was made.
    pub(super) started_ns: i64,
    pub(super) stats: ContainerStats,
}

/// Of the containers that run, by their pods.
pub(super) async fn of_pods(api: &Api) -> Result<BTreeMap<PodRef, Vec<Used>>, CriError> {
    let (stats, containers) = try_join!(
        api.shared.cri.list_container_stats(ListContainerStatsRequest::default()),
        api.shared.cri.list_containers(ListContainersRequest::default()),
    )?;
    Ok(by_pod(stats.stats, containers.containers))
}

fn by_pod(stats: Vec<ContainerStats>, containers: Vec<Container>) -> BTreeMap<PodRef, Vec<Used>> {
    let running = containers.iter().filter(|c| c.state == ContainerState::ContainerRunning as i32);
    let started: HashMap<&str, i64> = running.map(|c| (c.id.as_str(), c.created_at)).collect();
    let mut pods: BTreeMap<PodRef, Vec<Used>> = BTreeMap::new();
    for stats in stats {
        let Some(attributes) = &stats.attributes else { continue };
        let Some(&started_ns) = started.get(attributes.id.as_str()) else { continue };
        let label = |name: &str| attributes.labels.get(name).cloned().unwrap_or_default();
        let pod = PodRef { namespace: label(POD_NAMESPACE), name: label(POD_NAME), uid: label(POD_UID) };
        if !pod.uid.is_empty() {
            pods.entry(pod).or_default().push(Used { name: label(CONTAINER_NAME), started_ns, stats });
        }
    }
    pods
}

impl Used {
    pub(super) fn cpu_ns(&self) -> Option<u64> {
        Some(self.stats.cpu.as_ref()?.usage_core_nano_seconds.as_ref()?.value)
    }

    pub(super) fn working_set_bytes(&self) -> Option<u64> {
        Some(self.stats.memory.as_ref()?.working_set_bytes.as_ref()?.value)
    }
}

/// Adds up one figure of all containers; `None` if no container has it.
pub(super) fn sum<T>(all: &[T], of: impl Fn(&T) -> Option<u64>) -> Option<u64> {
    all.iter().filter_map(of).reduce(u64::saturating_add)
}

pub(super) struct NodeUsage {
    pub(super) at: Timestamp,
    pub(super) cpu_ns: Option<u64>,
    pub(super) available_bytes: u64,
    pub(super) working_set_bytes: u64,
}

pub(super) fn of_node(api: &Api) -> NodeUsage {
    let total = u64::try_from(api.shared.memory_capacity).unwrap_or(0);
    let available_bytes = available_memory().unwrap_or(0);
    NodeUsage {
        at: Timestamp::now(),
        cpu_ns: node_cpu_ns(),
        available_bytes,
        working_set_bytes: total.saturating_sub(available_bytes),
    }
}

/// What of a file system is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FsUsage {
    pub(super) capacity_bytes: u64,
    pub(super) available_bytes: u64,
    pub(super) used_bytes: u64,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
}

impl FsUsage {
    fn of(path: &Path) -> Option<FsUsage> {
        let stat = rustix::fs::statvfs(path).ok()?;
        Some(FsUsage {
            capacity_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            used_bytes: stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize),
            inodes: stat.f_files,
            inodes_free: stat.f_ffree,
        })
    }
}

/// A claim that a pod has mounted.
pub(super) struct ClaimUsage {
    pub(super) pod: PodRef,
    pub(super) volume: String,
    pub(super) claim: String,
    pub(super) usage: FsUsage,
}

/// Of all claims that are mounted here, and of the disk that pods are on.
pub(super) async fn of_disks(api: &Api) -> (Vec<ClaimUsage>, Option<FsUsage>) {
    let pods: Vec<Arc<Pod>> = api.index.read().values().cloned().collect();
    let mounted = pods.iter().flat_map(|pod| {
        let owner = PodRef {
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
        };
        api.shared.volumes.claims(pod).into_iter().map(move |claim| (owner.clone(), claim))
    });
    let (mounted, root) = (mounted.collect::<Vec<_>>(), api.shared.config.root_dir.clone());
    let look = move || {
        let claims = mounted.into_iter().filter_map(|(pod, (volume, claim, path))| {
            // What is not mounted is a directory of the node's own disk.
            mounts::is_mounted(&path).ok().filter(|mounted| *mounted)?;
            Some(ClaimUsage { pod, volume, claim, usage: FsUsage::of(&path)? })
        });
        (claims.collect(), FsUsage::of(&root))
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

/// Processor time that this machine has spent on anything since it started.
fn node_cpu_ns() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<u64> =
        text.lines().next()?.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    let busy: u64 =
        fields.iter().take(8).enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, v)| v).sum();
    // The kernel counts in hundredths of a second towards user space, on every architecture.
    Some(busy.saturating_mul(10_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_has_ended_uses_nothing() {
        let labels: HashMap<String, String> =
            [(POD_UID, "u"), (POD_NAME, "p"), (POD_NAMESPACE, "n"), (CONTAINER_NAME, "c")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        let stats = |id: &str| ContainerStats {
            attributes: Some(skiff_cri::v1::ContainerAttributes {
                id: id.to_owned(),
                labels: labels.clone().into_iter().collect(),
                ..Default::default()
            }),
            ..ContainerStats::default()
        };
        let container = |id: &str, state: ContainerState| Container {
            id: id.to_owned(),
            state: state as i32,
            created_at: 5,
            ..Container::default()
        };
        let containers = vec![
            container("old", ContainerState::ContainerExited),
            container("new", ContainerState::ContainerRunning),
        ];
        let pods = by_pod(vec![stats("old"), stats("new"), stats("unknown")], containers);
        let used: Vec<&Used> = pods.values().flatten().collect();
        assert_eq!(used.len(), 1);
        assert_eq!((used[0].name.as_str(), used[0].started_ns), ("c", 5));
        assert_eq!(used[0].stats.attributes.as_ref().unwrap().id, "new");
    }
}
