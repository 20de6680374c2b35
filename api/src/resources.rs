//! Amounts of resources, by name, and what a pod asks for in sum.
//!
//! Source: component-helpers' `PodRequests` and `PodLimits` (KEP-753 for sidecars).

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::Object;
use crate::quantity::{Quantity, Suffixes};

/// `cpu`, `memory`, `requests.storage`, … with an amount of each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources(BTreeMap<String, Quantity>);

impl Resources {
    /// What cannot be read as a quantity is left out: validation refuses it elsewhere.
    pub fn from_json(list: &Value) -> Resources {
        let amounts = list.as_object().into_iter().flatten();
        let parsed =
            amounts.filter_map(|(name, amount)| Some((name.clone(), amount.as_str()?.parse().ok()?)));
        Resources(parsed.collect())
    }

    pub fn to_json(&self) -> Value {
        let amounts = self.0.iter().map(|(name, amount)| (name.clone(), amount.to_string().into()));
        Value::Object(amounts.collect())
    }

    pub fn get(&self, name: &str) -> Option<Quantity> {
        self.0.get(name).copied()
    }

    pub fn set(&mut self, name: impl Into<String>, amount: Quantity) {
        self.0.insert(name.into(), amount);
    }

    pub fn count(&mut self, name: impl Into<String>, number: i64) {
        self.set(name, Quantity::from_units(number, Suffixes::Decimal));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, Quantity)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn add(&mut self, other: &Resources) {
        for (name, amount) in other.iter() {
            let sum = self.get(name).map_or(amount, |own| own + amount);
            self.set(name, sum);
        }
    }

    /// Takes the greater of the two for each name.
    pub fn raise(&mut self, other: &Resources) {
        for (name, amount) in other.iter() {
            if self.get(name).is_none_or(|own| amount > own) {
                self.set(name, amount);
            }
        }
    }

    /// What is more than in `other`; nothing where it is less.
    pub fn beyond(&self, other: &Resources) -> Resources {
        let more = self.iter().filter_map(|(name, amount)| {
            let had = other.get(name).unwrap_or(Quantity::from_units(0, Suffixes::Decimal));
            (amount > had).then(|| (name.to_owned(), amount - had))
        });
        Resources(more.collect())
    }

    /// What is left without `other`, and never less than nothing.
    pub fn less(&self, other: &Resources) -> Resources {
        let zero = Quantity::from_units(0, Suffixes::Decimal);
        let left = self.iter().map(|(name, amount)| {
            let left = other.get(name).map_or(amount, |other| amount - other);
            (name.to_owned(), if left.is_negative() { zero } else { left })
        });
        Resources(left.collect())
    }

    /// Only what `keep` names.
    pub fn only(&self, keep: impl Fn(&str) -> bool) -> Resources {
        let kept = self.iter().filter(|(name, _)| keep(name));
        Resources(kept.map(|(name, amount)| (name.to_owned(), amount)).collect())
    }

    pub fn without_zeros(&self) -> Resources {
        Resources(
            self.0.iter().filter(|(_, amount)| !amount.is_zero()).map(|(n, a)| (n.clone(), *a)).collect(),
        )
    }
}

/// `cpu=1,memory=500Mi`
impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, amount)) in self.iter().enumerate() {
            let separator = if at == 0 { "" } else { "," };
            write!(f, "{separator}{name}={amount}")?;
        }
        Ok(())
    }
}

/// Whether what a runtime class adds to a pod counts as the pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overhead {
    Counted,
    Ignored,
}

/// What a pod asks for: its containers together, or more where an init container needs more.
pub fn pod_requests(pod: &Object, overhead: Overhead) -> Resources {
    let mut requests = pod_sum(pod, "requests");
    if overhead == Overhead::Counted {
        requests.add(&Resources::from_json(&pod["spec"]["overhead"]));
    }
    requests
}

/// What a pod may use at most, of what it is limited in.
pub fn pod_limits(pod: &Object, overhead: Overhead) -> Resources {
    let mut limits = pod_sum(pod, "limits");
    if overhead == Overhead::Counted {
        let added = Resources::from_json(&pod["spec"]["overhead"]);
        // Nothing is limited by what comes on top of it.
        let limited = limits.clone();
        limits.add(&added.only(|name| limited.get(name).is_some_and(|limit| !limit.is_zero())));
    }
    limits
}

fn pod_sum(pod: &Object, side: &str) -> Resources {
    let mut sum = sum_of_containers(pod, side);
    // What is said of the whole pod counts instead of its containers' sum.
    for (name, amount) in Resources::from_json(&pod["spec"]["resources"][side]).iter() {
        if matches!(name, "cpu" | "memory") || name.starts_with("hugepages-") {
            sum.set(name, amount);
        }
    }
    sum
}

/// Of the containers together, or more where an init container needs more.
pub(crate) fn sum_of_containers(pod: &Object, side: &str) -> Resources {
    let of = |container: &Value| Resources::from_json(&container["resources"][side]);
    let list = |field: &str| pod["spec"][field].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut sum = Resources::default();
    for container in list("containers") {
        sum.add(&of(container));
    }
    let (mut sidecars, mut init) = (Resources::default(), Resources::default());
    for container in list("initContainers") {
        // Sidecars that were started before run beside each later init container.
        let own = of(container);
        if container["restartPolicy"] == "Always" {
            sum.add(&own);
            sidecars.add(&own);
            init.raise(&sidecars);
        } else {
            let mut together = own;
            together.add(&sidecars);
            init.raise(&together);
        }
    }
    sum.raise(&init);
    sum
}

/// A resource that is not Kubernetes' own, such as `example.com/gpu`.
pub fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.")
}

/// A resource without a domain, or of a domain of Kubernetes.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(cpu: &str, memory: &str) -> Value {
        json!({"resources": {"requests": {"cpu": cpu, "memory": memory}}})
    }

    #[test]
    fn a_pod_asks_for_its_containers_or_its_greatest_init_container() {
        let mut sidecar = container("50m", "10Mi");
        sidecar["restartPolicy"] = "Always".into();
        let pod = json!({"spec": {
            "containers": [container("100m", "100Mi"), container("200m", "100Mi")],
            "initContainers": [sidecar, container("1", "50Mi")],
            "overhead": {"cpu": "10m"},
        }});
        assert_eq!(pod_requests(&pod, Overhead::Ignored).to_string(), "cpu=1050m,memory=210Mi");
        assert_eq!(pod_requests(&pod, Overhead::Counted).to_string(), "cpu=1060m,memory=210Mi");
        assert!(pod_limits(&pod, Overhead::Counted).is_empty(), "overhead alone limits nothing");
        let whole =
            json!({"spec": {"containers": [container("1", "1Gi")], "resources": {"requests": {"cpu": "2"}}}});
        assert_eq!(pod_requests(&whole, Overhead::Ignored).to_string(), "cpu=2,memory=1Gi");
    }

    #[test]
    fn what_is_beyond_or_left_is_never_negative() {
        let of = |list: Value| Resources::from_json(&list);
        let (new, old) = (of(json!({"a": "3", "b": "1"})), of(json!({"a": "1", "b": "2"})));
        assert_eq!(new.beyond(&old).to_string(), "a=2");
        assert_eq!(new.less(&old).to_string(), "a=2,b=0");
        assert_eq!(of(json!({"a": "0", "b": "1Gi"})).without_zeros().to_string(), "b=1Gi");
    }
}
