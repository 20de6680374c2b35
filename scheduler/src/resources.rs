//! What a pod asks for, and what a node has.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use skiff_client::view::{Container, Pod};

/// Amounts of resources: CPU in thousandths, everything else in whole units.
///
/// What every node has lies at a fixed place, since it is compared for each node of each decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    common: [i64; COMMON.len()],
    /// Extended resources and huge pages, sorted by name.
    others: Vec<(Box<str>, i64)>,
}

const COMMON: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pods"];
pub(crate) const CPU: usize = 0;
pub(crate) const MEMORY: usize = 1;
const PODS: usize = 3;

/// What a container that asks for nothing counts as when nodes are compared: upstream's figures.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

impl Resources {
    pub(crate) fn of<'q>(quantities: impl IntoIterator<Item = (&'q str, &'q Quantity)>) -> Resources {
        let mut all = Resources::default();
        quantities.into_iter().for_each(|(name, quantity)| *all.entry(name) = amount(name, quantity));
        all
    }

    /// Of one that every node has, by its place.
    pub(crate) fn common(&self, place: usize) -> i64 {
        self.common[place]
    }

    pub(crate) fn n_pods(&self) -> i64 {
        self.common[PODS]
    }

    pub(crate) fn get(&self, name: &str) -> i64 {
        if let Some(place) = COMMON.iter().position(|common| *common == name) {
            return self.common[place];
        }
        let found = self.others.binary_search_by(|(other, _)| (**other).cmp(name));
        found.map_or(0, |at| self.others[at].1)
    }

    fn entry(&mut self, name: &str) -> &mut i64 {
        if let Some(place) = COMMON.iter().position(|common| *common == name) {
            return &mut self.common[place];
        }
        let at = self.others.binary_search_by(|(other, _)| (**other).cmp(name)).unwrap_or_else(|at| {
            self.others.insert(at, (name.into(), 0));
            at
        });
        &mut self.others[at].1
    }

    pub(crate) fn add(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_add);
    }

    fn raise(&mut self, other: &Resources) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Resources, both: fn(i64, i64) -> i64) {
        for (mine, theirs) in self.common.iter_mut().zip(other.common) {
            *mine = both(*mine, theirs);
        }
        for (name, theirs) in &other.others {
            let mine = self.entry(name);
            *mine = both(*mine, *theirs);
        }
    }

    /// Which of these amounts are not left: their numbers for [`Resources::name`], and whether even an empty node has
    /// too little.
    pub(crate) fn lacking(&self, allocatable: &Resources, requested: &Resources) -> Vec<(u16, bool)> {
        let is_lacking = |wanted: i64, all: i64, taken: i64| wanted > 0 && wanted > all.saturating_sub(taken);
        let mut lacking = Vec::new();
        // How many pods a node takes is not asked for but counted.
        for place in 0..PODS {
            let (wanted, all) = (self.common[place], allocatable.common[place]);
            if is_lacking(wanted, all, requested.common[place]) {
                lacking.push((place as u16, wanted > all));
            }
        }
        for (at, (name, wanted)) in self.others.iter().enumerate() {
            let all = allocatable.get(name);
            if is_lacking(*wanted, all, requested.get(name)) {
                lacking.push((u16::try_from(COMMON.len() + at).unwrap_or(u16::MAX), *wanted > all));
            }
        }
        lacking
    }

    pub(crate) fn name(&self, number: u16) -> &str {
        let number = usize::from(number);
        let other = || self.others.get(number - COMMON.len()).map_or("resources", |(name, _)| name);
        COMMON.get(number).copied().unwrap_or_else(other)
    }
}

fn amount(name: &str, quantity: &Quantity) -> i64 {
    // What is no quantity was refused by the API server.
    let Ok(quantity) = quantity.0.parse::<skiff_api::quantity::Quantity>() else { return 0 };
    if name == "cpu" { quantity.millis() } else { quantity.units() }
}

fn requests(container: &Container) -> Resources {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    requests.map(|amounts| Resources::of(amounts.iter())).unwrap_or_default()
}

pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What a pod asks for: its containers and sidecars together, or the largest init container with the sidecars
/// started before it, whichever is more; and its overhead.
///
/// Source: KEP-753.
fn pod_requests(pod: &Pod) -> Resources {
    total(pod, requests)
}

/// What a pod takes of the node that it is on: what it asks for, and no less than what it was given.
pub(crate) fn pod_taken(pod: &Pod) -> Resources {
    let mut taken = pod_requests(pod);
    if let Some(allocated) = pod.status.as_ref().and_then(|status| status.allocated_resources.as_ref()) {
        taken.raise(&Resources::of(allocated.iter()));
    }
    taken
}

/// The same, where containers that ask for nothing count as asking for a little.
pub(crate) fn pod_requests_for_scoring(pod: &Pod) -> Resources {
    total(pod, |container| {
        let mut all = requests(container);
        let said = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        for (place, default) in [(CPU, DEFAULT_MILLI_CPU), (MEMORY, DEFAULT_MEMORY_BYTES)] {
            // Asking for nothing in so many words is not the same as not asking.
            if said.is_none_or(|said| !said.has(COMMON[place])) {
                all.common[place] = default;
            }
        }
        all
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
        own.iter().for_each(|(name, quantity)| *running.entry(name) = amount(name, quantity));
    }
    if let Some(overhead) = &spec.overhead {
        running.add(&Resources::of(overhead.iter()));
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
    fn a_pod_takes_no_less_than_its_node_has_set_aside_for_it() {
        let with = |cpu: &str, memory: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [
                {"name": "a", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]},
                "status": {"allocatedResources": {"cpu": "1", "memory": "1Gi"}}}))
            .unwrap()
        };
        let taken = pod_taken(&with("500m", "2Gi"));
        assert_eq!((taken.get("cpu"), taken.get("memory")), (1000, 2 << 30));
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
