//! What containers and the node use.

use std::collections::{BTreeMap, HashMap};

use futures::try_join;
use jiff::Timestamp;
use skiff_cri::CriError;
use skiff_cri::v1::{
    Container, ContainerState, ContainerStats, ListContainerStatsRequest, ListContainersRequest,
};

use crate::node::status::available_memory;
use crate::server::Api;
use crate::snapshot::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};

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
