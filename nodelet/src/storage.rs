//! What pods write to the node's disk, against the limits that they have.
//!
//! Upstream's kubelet evicts a pod whose emptyDir outgrows its `sizeLimit`, whose container outgrows its limit of
//! `ephemeral-storage`, or which as a whole outgrows the sum of them. Only pods that have such a limit are measured.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use skiff_cri::v1::{
    ContainerFilter, ContainerState, ContainerStatsFilter, ListContainerStatsRequest, ListContainersRequest,
};

use crate::pod::{PodExt, containers, init_containers, is_sidecar};
use crate::resources;
use crate::snapshot::{CONTAINER_NAME, POD_UID};
use crate::worker::Shared;

/// How often a pod is measured, as upstream's eviction manager looks.
pub(crate) const PERIOD: Duration = Duration::from_secs(10);

/// Whether there is anything that the pod could exceed.
pub(crate) fn has_limits(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let sized = volumes.filter_map(|v| v.empty_dir.as_ref()?.size_limit.as_ref()).any(is_positive);
    sized || all_containers(pod).any(|c| storage_limit(c).is_some())
}

fn all_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    containers(pod).iter().chain(init_containers(pod))
}

fn is_positive(quantity: &Quantity) -> bool {
    resources::value(quantity) > 0
}

fn storage_limit(container: &Container) -> Option<&Quantity> {
    resources::limit(container, "ephemeral-storage")
}

/// What a pod uses, in bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Used {
    /// By name, those on disk and those in memory.
    empty_dirs: Vec<(String, u64)>,
    /// Root file system and logs, by name.
    containers: Vec<(String, u64)>,
    /// Of volumes on disk.
    volumes: u64,
}

/// Why the pod must go, in upstream's words; `None` if it keeps to its limits.
pub(crate) async fn excess(shared: &Shared, pod: &Pod) -> Option<String> {
    let used = measure(shared, pod).await;
    verdict(pod, &used)
}

/// What a pod has of the node's disk, in bytes or in inodes, and its containers by name.
pub(crate) async fn used(shared: &Shared, pod: &Pod, in_inodes: bool) -> (u64, Vec<(String, u64)>) {
    if !in_inodes {
        let used = measure(shared, pod).await;
        let total = used.containers.iter().fold(used.volumes, |sum, (_, bytes)| sum.saturating_add(*bytes));
        return (total, used.containers);
    }
    let logs = shared.config.pod_log_dir(pod.namespace(), pod.name(), pod.uid());
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let on_disk = volumes.filter(|volume| {
        let medium = volume.empty_dir.as_ref().map(|e| e.medium.as_deref().unwrap_or_default());
        medium == Some("")
    });
    let paths: Vec<PathBuf> =
        on_disk.map(|volume| shared.volumes.empty_dir_path(pod, &volume.name)).chain([logs]).collect();
    let count = move || {
        let counted = paths.iter().filter_map(|path| skiff_tree::measure(path).ok());
        counted.fold(0_u64, |sum, usage| sum.saturating_add(usage.n_inodes))
    };
    (tokio::task::spawn_blocking(count).await.unwrap_or_default(), Vec::new())
}

fn verdict(pod: &Pod, used: &Used) -> Option<String> {
    let over = |used: u64, limit: &Quantity| i128::from(used) > i128::from(resources::value(limit));
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let Some(limit) = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref()) else { continue };
        let bytes = used.empty_dirs.iter().find(|(name, _)| *name == volume.name).map_or(0, |(_, b)| *b);
        if is_positive(limit) && over(bytes, limit) {
            let name = &volume.name;
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ", limit.0));
        }
    }
    let stay = containers(pod).iter().chain(init_containers(pod).iter().filter(|c| is_sidecar(c)));
    let limits: Vec<&Quantity> = stay.filter_map(storage_limit).collect();
    // Init containers run one after the other, and before the rest: the pod may have what the largest may.
    let before = init_containers(pod).iter().filter(|c| !is_sidecar(c)).filter_map(storage_limit);
    let before = before.max_by_key(|limit| resources::value(limit));
    if let Some(first) = limits.first().copied().or(before) {
        let limit = limits.iter().fold(0_i64, |sum, limit| sum.saturating_add(resources::value(limit)));
        let limit = limit.max(before.map_or(0, resources::value));
        let total = used.containers.iter().fold(used.volumes, |sum, (_, bytes)| sum.saturating_add(*bytes));
        if i128::from(total) > i128::from(limit) {
            let shown = canonical(limit, first);
            return Some(format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {shown}. "
            ));
        }
    }
    for container in containers(pod) {
        let bytes = used.containers.iter().find(|(name, _)| *name == container.name).map_or(0, |(_, b)| *b);
        if let Some(limit) = storage_limit(container).filter(|limit| over(bytes, limit)) {
            let name = &container.name;
            return Some(format!(
                "Container {name} exceeded its local ephemeral storage limit {:?}. ",
                limit.0
            ));
        }
    }
    None
}

/// An amount with the largest suffix that divides it, of the kind that `like` has.
fn canonical(amount: i64, like: &Quantity) -> String {
    let (base, suffixes) = match like.0.ends_with('i') {
        true => (1024, ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]),
        false => (1000, ["", "k", "M", "G", "T", "P", "E"]),
    };
    let mut rest = amount;
    let mut suffix = 0;
    while rest != 0 && rest % base == 0 && suffix + 1 < suffixes.len() {
        rest /= base;
        suffix += 1;
    }
    format!("{rest}{}", suffixes[suffix])
}

async fn measure(shared: &Shared, pod: &Pod) -> Used {
    let mut used = Used { containers: roots(shared, pod).await, ..Used::default() };
    let logs = shared.config.pod_log_dir(pod.namespace(), pod.name(), pod.uid());
    let logs: Vec<(String, PathBuf)> =
        all_containers(pod).map(|c| (c.name.clone(), logs.join(&c.name))).collect();
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let volumes: Vec<(String, PathBuf, bool)> = volumes
        .filter_map(|volume| {
            let on_disk = volume.empty_dir.as_ref()?.medium.as_deref().unwrap_or_default().is_empty();
            let path = shared.volumes.empty_dir_path(pod, &volume.name);
            Some((volume.name.clone(), path, on_disk))
        })
        .collect();
    let task = tokio::task::spawn_blocking(move || {
        let logs: Vec<_> = logs.into_iter().map(|(name, path)| (name, bytes(&path))).collect();
        let volumes: Vec<_> =
            volumes.into_iter().map(|(name, path, disk)| (name, bytes(&path), disk)).collect();
        (logs, volumes)
    });
    let Ok((logs, volumes)) = task.await else { return used };
    for (name, bytes) in logs {
        match used.containers.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum = sum.saturating_add(bytes),
            None => used.containers.push((name, bytes)),
        }
    }
    for (name, bytes, on_disk) in volumes {
        if on_disk {
            used.volumes = used.volumes.saturating_add(bytes);
        }
        used.empty_dirs.push((name, bytes));
    }
    used
}

/// How often a tree is counted that is moved about meanwhile.
const ATTEMPTS: usize = 3;

/// None where there is nothing yet, or nothing any more. A count from which a part was moved away is repeated, and the
/// largest counts: whoever moves directories to hide them would have to do so each time.
fn bytes(path: &Path) -> u64 {
    let mut most = 0;
    for _ in 0..ATTEMPTS {
        let Ok(usage) = skiff_tree::measure(path) else { return most };
        most = most.max(usage.bytes);
        if !usage.is_partial {
            return most;
        }
    }
    most
}

/// What containers that run wrote to their root file systems. What ended ones wrote goes with them.
async fn roots(shared: &Shared, pod: &Pod) -> Vec<(String, u64)> {
    let selector = [(POD_UID.to_owned(), pod.uid().to_owned())].into();
    let filter = ContainerStatsFilter { label_selector: selector, ..Default::default() };
    let of_pod = ContainerFilter { label_selector: filter.label_selector.clone(), ..Default::default() };
    let listed = shared.cri.list_containers(ListContainersRequest { filter: Some(of_pod) }).await;
    let running: HashSet<String> = listed
        .map(|answer| answer.containers)
        .unwrap_or_default()
        .into_iter()
        .filter(|container| container.state() == ContainerState::ContainerRunning)
        .map(|container| container.id)
        .collect();
    let answer = shared.cri.list_container_stats(ListContainerStatsRequest { filter: Some(filter) }).await;
    let stats = answer.map(|answer| answer.stats).unwrap_or_default();
    let of = |stat: skiff_cri::v1::ContainerStats| {
        let attributes = stat.attributes.filter(|attributes| running.contains(&attributes.id))?;
        let name = attributes.labels.get(CONTAINER_NAME)?.clone();
        Some((name, stat.writable_layer?.used_bytes?.value))
    };
    stats.into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{pod, typed};
    use serde_json::json;

    fn limited() -> Pod {
        let limit = json!({ "limits": { "ephemeral-storage": "1Ki" } });
        typed(pod(
            "web",
            json!({
                "volumes": [{ "name": "data", "emptyDir": { "sizeLimit": "1Mi" } }],
                "containers": [{ "name": "a", "resources": limit }, { "name": "b", "resources": limit }],
            }),
        ))
    }

    fn used(data: u64, a: u64, b: u64) -> Used {
        Used {
            empty_dirs: vec![("data".into(), data)],
            containers: vec![("a".into(), a), ("b".into(), b)],
            volumes: data,
        }
    }

    #[test]
    fn each_limit_is_told_in_upstreams_words() {
        let pod = limited();
        assert!(has_limits(&pod));
        assert_eq!(verdict(&pod, &used(0, 1024, 1024)), None);
        assert_eq!(
            verdict(&pod, &used((1 << 20) + 1, 0, 0)).unwrap(),
            "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". "
        );
        assert_eq!(
            verdict(&pod, &used(2000, 100, 0)).unwrap(),
            "Pod ephemeral local storage usage exceeds the total limit of containers 2Ki. "
        );
        assert_eq!(
            verdict(&pod, &used(0, 0, 1025)).unwrap(),
            "Container b exceeded its local ephemeral storage limit \"1Ki\". "
        );
    }

    #[test]
    fn a_pod_may_have_what_the_largest_of_its_init_containers_may() {
        let limit = |amount: &str| json!({ "limits": { "ephemeral-storage": amount } });
        let init = json!([{ "name": "i", "resources": limit("10Ki") }]);
        let spec = json!({ "initContainers": init, "containers": [{ "name": "a", "resources": limit("1Ki") }],
            "volumes": [{ "name": "data", "emptyDir": {} }] });
        let pod = typed(pod("web", spec));
        assert_eq!(verdict(&pod, &used(5 << 10, 0, 0)), None);
        let why = verdict(&pod, &used(11 << 10, 0, 0)).unwrap();
        assert_eq!(why, "Pod ephemeral local storage usage exceeds the total limit of containers 10Ki. ");
    }

    #[test]
    fn a_pod_without_limits_is_not_measured() {
        assert!(!has_limits(&typed(pod("web", json!({ "volumes": [{ "name": "d", "emptyDir": {} }] })))));
    }
}
