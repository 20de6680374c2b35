//! The control groups that all pods are in, and what each is given: what makes the requests of pods count when they contend.
//!
//! ```text
//!  <root>                   the node's processors: against what else runs on the machine
//!  └── kubepods             the node's processors and its allocatable memory
//!      ├── pod<uid>         of class Guaranteed: each its own request
//!      ├── burstable        the sum of its pods' requests, kept as they come and go
//!      └── besteffort       the least there is
//! ```
//!
//! The figures are upstream's kubelet's. The groups of pods and containers are made with theirs by the runtime.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use tokio::sync::watch;

use crate::resources::{MIN_SHARES, milli_value, pod_request_milli, qos_class, shares, value};

/// What a nodelet asks of the machine's control groups. A call may be repeated, and blocks for microseconds.
pub trait PodCgroups: Send + Sync + 'static {
    /// Makes the group at `path`, relative to every hierarchy's root, if it is not there, and gives it its shares of the
    /// processors and, if any is said, its limit of memory. Fails with a sentence that says what and why.
    fn set(&self, path: &str, cpu_shares: u64, memory_bytes: Option<i64>) -> Result<(), String>;
}

/// Someone else may have changed a group, or it could not be changed: memory that is in use cannot be taken away.
const AGAIN: Duration = Duration::from_secs(60);

/// What one group is given.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    path: String,
    cpu_shares: u64,
    memory_bytes: Option<i64>,
}

/// The groups of a node whose burstable pods ask for so much, the outermost first. While that is not known, those that run
/// keep the weight they had.
fn plan(root: &str, allocatable: &BTreeMap<String, Quantity>, burstable_milli: Option<i64>) -> Vec<Group> {
    let of_node = allocatable.get("cpu").map_or(0, milli_value);
    let memory = allocatable.get("memory").map(value).filter(|bytes| *bytes > 0);
    let root = root.trim_matches('/');
    let below = |name: &str| if root.is_empty() { name.to_owned() } else { format!("{root}/{name}") };
    let group = |path: String, cpu_shares: i64, memory_bytes: Option<i64>| Group {
        path,
        cpu_shares: cpu_shares.unsigned_abs(),
        memory_bytes,
    };
    let outermost = (!root.is_empty()).then(|| group(root.to_owned(), shares(of_node), None));
    let pods = group(below("kubepods"), shares(of_node), memory);
    let burstable = burstable_milli.map(|milli| group(below("kubepods/burstable"), shares(milli), None));
    let best_effort = group(below("kubepods/besteffort"), MIN_SHARES, None);
    outermost.into_iter().chain([pods]).chain(burstable).chain([best_effort]).collect()
}

/// What the burstable ones among these pods ask for together, in thousandths of a processor.
pub(crate) fn burstable_milli<'a>(pods: impl Iterator<Item = &'a Pod>) -> i64 {
    let burstable = pods.filter(|pod| qos_class(pod) == "Burstable");
    burstable.fold(0, |sum, pod| sum.saturating_add(pod_request_milli(pod, "cpu")))
}

/// Keeps the groups of one node.
pub(crate) struct QosGroups {
    cgroups: Arc<dyn PodCgroups>,
    root: String,
    allocatable: BTreeMap<String, Quantity>,
}

impl QosGroups {
    pub(crate) fn new(
        cgroups: Arc<dyn PodCgroups>,
        root: &str,
        allocatable: &BTreeMap<String, Quantity>,
    ) -> QosGroups {
        QosGroups { cgroups, root: root.to_owned(), allocatable: allocatable.clone() }
    }

    /// Sets all groups once. What fails is told, and is no reason to run no pods.
    pub(crate) async fn set(&self, burstable_milli: Option<i64>) {
        let (cgroups, groups) = (self.cgroups.clone(), plan(&self.root, &self.allocatable, burstable_milli));
        let set = tokio::task::spawn_blocking(move || {
            for Group { path, cpu_shares, memory_bytes } in groups {
                if let Err(error) = cgroups.set(&path, cpu_shares, memory_bytes) {
                    tracing::warn!(
                        cgroup = path,
                        error,
                        "cannot set what pods have together; trying again in a minute"
                    );
                }
            }
        });
        if let Err(error) = set.await {
            tracing::error!(%error, "setting the control groups of pods failed");
        }
    }

    /// Sets them whenever the burstable pods ask for something else, and every minute.
    pub(crate) async fn keep(self, mut burstable_milli: watch::Receiver<Option<i64>>) {
        loop {
            let now = *burstable_milli.borrow_and_update();
            self.set(now).await;
            // Both only wait. Once nobody tells of pods any more, the node ends.
            tokio::select! {
                changed = burstable_milli.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{pod, typed};
    use serde_json::json;

    fn allocatable() -> BTreeMap<String, Quantity> {
        let quantity = |text: &str| Quantity(text.to_owned());
        [("cpu".to_owned(), quantity("2")), ("memory".to_owned(), quantity("1048576Ki"))].into()
    }

    fn asks(name: &str, resources: serde_json::Value) -> Pod {
        typed(pod(name, json!({ "containers": [{ "name": "a", "image": "app:1", "resources": resources }] })))
    }

    #[test]
    fn the_groups_of_all_pods_have_upstreams_figures() {
        let groups = plan("/skiff/", &allocatable(), Some(1500));
        let group =
            |path: &str, cpu_shares, memory_bytes| Group { path: path.into(), cpu_shares, memory_bytes };
        assert_eq!(
            groups,
            [
                group("skiff", 2048, None),
                group("skiff/kubepods", 2048, Some(1 << 30)),
                group("skiff/kubepods/burstable", 1536, None),
                group("skiff/kubepods/besteffort", 2, None),
            ]
        );
        let paths: Vec<_> =
            plan("", &allocatable(), Some(0)).into_iter().map(|g| (g.path, g.cpu_shares)).collect();
        assert_eq!(paths[1], ("kubepods/burstable".to_owned(), 2));
        assert!(!plan("", &allocatable(), None).iter().any(|group| group.path.ends_with("burstable")));
    }

    #[test]
    fn only_burstable_pods_count_and_a_pods_own_request_is_that_of_all_its_containers() {
        let both = json!({ "requests": { "cpu": "700m", "memory": "1Mi" }, "limits": { "cpu": "700m", "memory": "1Mi" } });
        let mut pod_level = asks("d", json!({}));
        let request = json!({ "requests": { "cpu": "300m" } });
        pod_level.spec.as_mut().unwrap().resources = Some(serde_json::from_value(request).unwrap());
        let pods = [
            asks("a", json!({ "requests": { "cpu": "100m" } })),
            asks("b", both),
            asks("c", json!({})),
            pod_level,
        ];
        assert_eq!(burstable_milli(pods.iter()), 400);
    }
}
