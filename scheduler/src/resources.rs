//! Amounts of resources: what a pod asks for, and what a node has.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts by resource name: CPU in thousandths, everything else in whole units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources(pub(crate) BTreeMap<String, i64>);

/// What a container that asks for nothing counts as when nodes are compared: upstream's figures.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

impl Resources {
    pub(crate) fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn of(quantities: &BTreeMap<String, Quantity>) -> Resources {
        Resources(quantities.iter().map(|(name, q)| (name.clone(), amount(name, q))).collect())
    }

    pub(crate) fn add(&mut self, other: &Resources) {
        for (name, amount) in &other.0 {
            let sum = self.0.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    fn raise(&mut self, other: &Resources) {
        for (name, amount) in &other.0 {
            let most = self.0.entry(name.clone()).or_default();
            *most = (*most).max(*amount);
        }
    }
}

fn amount(name: &str, quantity: &Quantity) -> i64 {
    // What is no quantity was refused by the API server.
    let Ok(quantity) = quantity.0.parse::<skiff_api::quantity::Quantity>() else { return 0 };
    if name == "cpu" { quantity.millis() } else { quantity.units() }
}

fn requests(container: &Container) -> Resources {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    requests.map(Resources::of).unwrap_or_default()
}

pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What a pod asks for: its containers and sidecars together, or the largest init container with the sidecars
/// started before it, whichever is more; and its overhead.
///
/// Source: KEP-753.
pub(crate) fn pod_requests(pod: &Pod) -> Resources {
    total(pod, requests)
}

/// The same, where containers that ask for nothing count as asking for a little.
pub(crate) fn pod_requests_for_scoring(pod: &Pod) -> Resources {
    total(pod, |container| {
        let mut requests = requests(container);
        requests.0.entry("cpu".into()).or_insert(DEFAULT_MILLI_CPU);
        requests.0.entry("memory".into()).or_insert(DEFAULT_MEMORY_BYTES);
        requests
    })
}

fn total(pod: &Pod, requests: impl Fn(&Container) -> Resources) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let mut running = Resources::default();
    spec.containers.iter().for_each(|c| running.add(&requests(c)));
    let (mut sidecars, mut starting) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let mut now = requests(container);
        if is_sidecar(container) {
            sidecars.add(&now);
            now = sidecars.clone();
        } else {
            now.add(&sidecars);
        }
        starting.raise(&now);
    }
    running.add(&sidecars);
    running.raise(&starting);
    // What the pod says for itself as a whole counts instead (KEP-2837).
    if let Some(own) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        running.0.extend(Resources::of(own).0);
    }
    if let Some(overhead) = &spec.overhead {
        running.add(&Resources::of(overhead));
    }
    running
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn init_containers_count_at_their_peak_and_sidecars_all_along() {
        let cpu = |name: &str, cpu: &str| json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = cpu("s", "100m");
        sidecar["restartPolicy"] = "Always".into();
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "containers": [cpu("a", "200m"), cpu("b", "300m")],
            "initContainers": [sidecar, cpu("i", "1")],
            "overhead": {"cpu": "50m"},
        }}))
        .unwrap();
        // The init container runs beside the sidecar: 1100m is more than the 600m that run later.
        assert_eq!(pod_requests(&pod).get("cpu"), 1150);
    }

    #[test]
    fn requests_of_the_pod_as_a_whole_count_instead_of_its_containers() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "200m", "example.com/gpu": "1"}}}],
            "resources": {"requests": {"cpu": "1"}}, "overhead": {"cpu": "50m"},
        }}))
        .unwrap();
        let requests = pod_requests(&pod);
        assert_eq!((requests.get("cpu"), requests.get("example.com/gpu")), (1050, 1));
    }
}
