//! Quantities, quality of service, and the cgroup figures that follow from them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use skiff_api::quantity::Suffixes;
use skiff_cri::v1::LinuxContainerResources;

use crate::pod::{containers, init_containers, is_sidecar};

pub(crate) type ResourceList = BTreeMap<String, Quantity>;

const CPU_PERIOD_US: i64 = 100_000;
const MIN_QUOTA_US: i64 = 1_000;
pub(crate) const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;

/// An amount. What is no quantity counts as none: the API server admits no such thing.
fn parse(quantity: &Quantity) -> Option<skiff_api::quantity::Quantity> {
    quantity.0.parse().ok()
}

/// Whole units, rounded up.
pub(crate) fn value(quantity: &Quantity) -> i64 {
    parse(quantity).map_or(0, |q| q.units())
}

/// Thousandths, rounded up.
pub(crate) fn milli_value(quantity: &Quantity) -> i64 {
    parse(quantity).map_or(0, |q| q.millis())
}

/// A quantity in `divisor`s, rounded up: what the downward API shows. Its divisors are `1m` or more.
pub(crate) fn divided(quantity: &Quantity, divisor: &Quantity) -> Option<i64> {
    let divisor = match parse(divisor)?.millis() {
        0 => 1000,
        millis => millis,
    };
    let millis = parse(quantity)?.millis();
    Some(millis.checked_div(divisor)?.saturating_add(i64::from(millis % divisor > 0)))
}

fn get<'a>(list: Option<&'a ResourceList>, name: &str) -> Option<&'a Quantity> {
    list.and_then(|l| l.get(name))
}

pub(crate) fn request<'a>(container: &'a Container, name: &str) -> Option<&'a Quantity> {
    container.resources.as_ref().and_then(|r| get(r.requests.as_ref(), name))
}

pub(crate) fn limit<'a>(container: &'a Container, name: &str) -> Option<&'a Quantity> {
    container.resources.as_ref().and_then(|r| get(r.limits.as_ref(), name))
}

/// The pod's quality of service: `Guaranteed`, `Burstable` or `BestEffort`.
pub(crate) fn qos_class(pod: &Pod) -> &'static str {
    match pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        Some("Guaranteed") => return "Guaranteed",
        Some("Burstable") => return "Burstable",
        Some("BestEffort") => return "BestEffort",
        _ => {}
    }
    let pod_level = pod.spec.as_ref().and_then(|s| s.resources.as_ref());
    let parts: Vec<Option<&ResourceRequirements>> = match pod_level {
        Some(resources) => vec![Some(resources)],
        None => containers(pod).iter().chain(init_containers(pod)).map(|c| c.resources.as_ref()).collect(),
    };
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    let mut guaranteed = true;
    for part in parts {
        add_compute(&mut requests, part.and_then(|p| p.requests.as_ref()));
        let n_limits = add_compute(&mut limits, part.and_then(|p| p.limits.as_ref()));
        guaranteed &= n_limits == 2;
    }
    if requests.is_empty() && limits.is_empty() {
        "BestEffort"
    } else if guaranteed && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn add_compute(sums: &mut BTreeMap<&'static str, i128>, list: Option<&ResourceList>) -> usize {
    let mut n_positive = 0;
    for name in ["cpu", "memory"] {
        let amount = get(list, name).map_or(0, |q| i128::from(milli_value(q)));
        if amount > 0 {
            *sums.entry(name).or_insert(0) += amount;
            n_positive += 1;
        }
    }
    n_positive
}

/// What a pod asks of its node, in thousandths: the larger of its running containers' sum and any init
/// container's need beside the sidecars started before it, plus overhead.
pub(crate) fn pod_request_milli(pod: &Pod, name: &str) -> i64 {
    let of = |c: &Container| request(c, name).map_or(0, milli_value);
    let overhead = get(pod.spec.as_ref().and_then(|s| s.overhead.as_ref()), name).map_or(0, milli_value);
    let pod_level =
        pod.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| get(r.requests.as_ref(), name));
    if let Some(pod_level) = pod_level {
        return milli_value(pod_level).saturating_add(overhead);
    }
    let (mut sidecars, mut init_peak) = (0_i64, 0_i64);
    for container in init_containers(pod) {
        if is_sidecar(container) {
            sidecars = sidecars.saturating_add(of(container));
            init_peak = init_peak.max(sidecars);
        } else {
            init_peak = init_peak.max(sidecars.saturating_add(of(container)));
        }
    }
    let running = containers(pod).iter().fold(sidecars, |sum, c| sum.saturating_add(of(c)));
    running.max(init_peak).saturating_add(overhead)
}

/// All that a pod asks of its node.
pub(crate) fn pod_requests(pod: &Pod) -> ResourceList {
    let spec = pod.spec.as_ref();
    let lists = containers(pod).iter().chain(init_containers(pod)).map(|c| c.resources.as_ref());
    let lists = lists.chain([spec.and_then(|s| s.resources.as_ref())]);
    let lists = lists.filter_map(|resources| resources?.requests.as_ref());
    let names = lists.chain(spec.and_then(|s| s.overhead.as_ref())).flat_map(ResourceList::keys);
    let names: BTreeSet<&String> = names.collect();
    names.into_iter().map(|name| (name.clone(), written(name, pod_request_milli(pod, name)))).collect()
}

/// What the group of a pod is limited to.
pub(crate) fn pod_limits(pod: &Pod) -> ResourceList {
    let limits = pod_resources(pod);
    let amounts = [
        ("cpu", limits.cpu_quota.saturating_mul(1000) / CPU_PERIOD_US),
        ("memory", limits.memory_limit_in_bytes.saturating_mul(1000)),
    ];
    let amounts = amounts.into_iter().filter(|(_, millis)| *millis > 0);
    amounts.map(|(name, millis)| (name.to_owned(), written(name, millis))).collect()
}

/// Thousandths as people write amounts of this resource.
fn written(name: &str, millis: i64) -> Quantity {
    let quantity = match name {
        "memory" | "ephemeral-storage" => {
            skiff_api::quantity::Quantity::from_units(millis / 1000, Suffixes::Binary)
        }
        _ => skiff_api::quantity::Quantity::from_millis(millis),
    };
    Quantity(quantity.to_string())
}

/// How large a volume in memory may become: what the node gives pods at most, the pod's own limit if it has one, the
/// volume's if it is smaller still. `None` if nothing is known.
pub(crate) fn memory_volume_size(
    allocatable: Option<&Quantity>,
    pod: &Pod,
    size_limit: Option<i64>,
) -> Option<i64> {
    let of_node = allocatable.map(value);
    let of_pod = Some(pod_resources(pod).memory_limit_in_bytes);
    [of_node, of_pod, size_limit].into_iter().flatten().filter(|bytes| *bytes > 0).min()
}

pub(crate) fn shares(milli_cpu: i64) -> i64 {
    match milli_cpu {
        0 => MIN_SHARES,
        m => m.saturating_mul(1024).saturating_div(1000).clamp(MIN_SHARES, MAX_SHARES),
    }
}

fn quota_us(milli_cpu: i64) -> i64 {
    match milli_cpu {
        0 => 0,
        m => m.saturating_mul(CPU_PERIOD_US).saturating_div(1000).max(MIN_QUOTA_US),
    }
}

/// The cgroup figures of one container.
pub(crate) fn container_resources(
    pod: &Pod,
    container: &Container,
    memory_capacity: i64,
) -> LinuxContainerResources {
    let pod_limits = pod.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.limits.as_ref());
    let effective = |name| limit(container, name).or_else(|| get(pod_limits, name));
    let cpu_limit = effective("cpu").map_or(0, milli_value);
    let cpu_request = request(container, "cpu").map_or(cpu_limit, milli_value);
    LinuxContainerResources {
        cpu_period: CPU_PERIOD_US,
        cpu_quota: quota_us(cpu_limit),
        cpu_shares: shares(cpu_request),
        memory_limit_in_bytes: effective("memory").map_or(0, value),
        oom_score_adj: oom_score_adj(pod, container, memory_capacity),
        ..LinuxContainerResources::default()
    }
}

/// The pod's own cgroup: what the pod itself is limited to, else the sum of its containers where every one has a limit; and
/// overhead.
pub(crate) fn pod_resources(pod: &Pod) -> LinuxContainerResources {
    let spec = pod.spec.as_ref();
    let of_pod =
        |name: &str| get(spec.and_then(|s| s.resources.as_ref()).and_then(|r| r.limits.as_ref()), name);
    let overhead = |name: &str| get(spec.and_then(|s| s.overhead.as_ref()), name);
    let all: Vec<&Container> =
        containers(pod).iter().chain(init_containers(pod).iter().filter(|c| is_sidecar(c))).collect();
    let every = |name: &str| all.iter().all(|c| limit(c, name).is_some());
    let init_limit = |name: &str, of: fn(&Quantity) -> i64| {
        init_containers(pod).iter().filter_map(|c| limit(c, name)).map(of).max().unwrap_or(0)
    };
    let limit_of = |name: &str, of: fn(&Quantity) -> i64| {
        let of_all = match of_pod(name).map(of).filter(|amount| *amount > 0) {
            Some(amount) => amount,
            None if every(name) => sum(&all, name, of).max(init_limit(name, of)),
            None => 0,
        };
        if of_all > 0 { of_all.saturating_add(overhead(name).map_or(0, of)) } else { 0 }
    };
    LinuxContainerResources {
        cpu_period: CPU_PERIOD_US,
        cpu_quota: quota_us(limit_of("cpu", milli_value)),
        cpu_shares: shares(pod_request_milli(pod, "cpu")),
        memory_limit_in_bytes: limit_of("memory", value),
        ..LinuxContainerResources::default()
    }
}

fn sum(containers: &[&Container], name: &str, of: fn(&Quantity) -> i64) -> i64 {
    containers.iter().filter_map(|c| limit(c, name)).map(of).fold(0, i64::saturating_add)
}

/// How soon the kernel kills the container when memory runs out: -997 last, 1000 first.
fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    let critical =
        pod.spec.as_ref().and_then(|s| s.priority_class_name.as_deref()) == Some("system-node-critical");
    match qos_class(pod) {
        _ if critical => -997,
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let adjust =
                |bytes: i64| 1000 - (i128::from(bytes) * 1000 / i128::from(memory_capacity.max(1))) as i64;
            let mut score = adjust(request(container, "memory").map_or(0, value));
            if is_sidecar(container) {
                let least =
                    containers(pod).iter().map(|c| request(c, "memory").map_or(0, value)).min().unwrap_or(0);
                score = score.min(adjust(least));
            }
            score.clamp(3, 999)
        }
    }
}

/// The parent of all of a pod's cgroups, with a leading slash as CRI runtimes expect it.
pub(crate) fn cgroup_parent(cgroup_root: &str, pod: &Pod) -> String {
    use crate::pod::PodExt;
    let class = match qos_class(pod) {
        "Guaranteed" => "",
        "Burstable" => "/burstable",
        _ => "/besteffort",
    };
    let root = cgroup_root.trim_matches('/');
    let slash = if root.is_empty() { "" } else { "/" };
    format!("{slash}{root}/kubepods{class}/pod{}", pod.uid())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantity(s: &str) -> Quantity {
        Quantity(s.to_owned())
    }

    #[test]
    fn amounts_are_divided_rounding_up() {
        let divided = |amount: &str, by: &str| divided(&quantity(amount), &quantity(by));
        assert_eq!(divided("1500m", "1"), Some(2));
        assert_eq!(divided("1500m", "1m"), Some(1500));
        assert_eq!(divided("1.5Gi", "1Mi"), Some(1536));
        assert_eq!(divided("1", "0"), Some(1));
        assert_eq!(divided("banana", "1"), None);
    }

    #[test]
    fn shares_and_quotas_have_the_floors_of_the_kernel() {
        assert_eq!((shares(0), shares(1), shares(1000), shares(i64::MAX)), (2, 2, 1024, 262_144));
        assert_eq!((quota_us(0), quota_us(1), quota_us(500)), (0, 1000, 50_000));
    }

    fn pod(resources: &[(&str, &str, &str)]) -> Pod {
        let container = |(i, (kind, name, amount)): (usize, &(&str, &str, &str))| Container {
            name: format!("c{i}"),
            resources: Some({
                let list = Some(ResourceList::from([((*name).to_owned(), quantity(amount))]));
                match *kind {
                    "requests" => ResourceRequirements { requests: list, ..Default::default() },
                    _ => ResourceRequirements { limits: list, ..Default::default() },
                }
            }),
            ..Container::default()
        };
        let mut pod = Pod::default();
        pod.metadata.uid = Some("u".to_owned());
        pod.spec = Some(k8s_openapi::api::core::v1::PodSpec {
            containers: resources.iter().enumerate().map(container).collect(),
            ..Default::default()
        });
        pod
    }

    #[test]
    fn a_pod_without_figures_is_best_effort_and_dies_first() {
        let pod = pod(&[]);
        assert_eq!(qos_class(&pod), "BestEffort");
        assert_eq!(oom_score_adj(&pod, &Container::default(), 1 << 34), 1000);
        assert_eq!(cgroup_parent("/skiff/", &pod), "/skiff/kubepods/besteffort/podu");
        assert_eq!(cgroup_parent("", &pod), "/kubepods/besteffort/podu");
    }

    #[test]
    fn a_pod_with_some_figures_is_burstable() {
        let pod = pod(&[("requests", "cpu", "100m"), ("requests", "cpu", "200m")]);
        assert_eq!(qos_class(&pod), "Burstable");
        assert_eq!(pod_request_milli(&pod, "cpu"), 300);
        let resources = container_resources(&pod, &containers(&pod)[0], 1 << 34);
        assert_eq!((resources.cpu_shares, resources.cpu_quota, resources.oom_score_adj), (102, 0, 999));
    }

    #[test]
    fn what_a_pod_is_limited_to_as_a_whole_binds_all_its_containers() {
        let with =
            |of_pod: serde_json::Value, of_container: serde_json::Value, overhead: serde_json::Value| {
                let pod: Pod = serde_json::from_value(serde_json::json!({ "spec": {
                "overhead": overhead, "resources": of_pod,
                "containers": [{ "name": "a", "resources": of_container }, { "name": "b" }] } }))
                .unwrap();
                let resources = pod_resources(&pod);
                (resources.cpu_shares, resources.cpu_quota, resources.memory_limit_in_bytes)
            };
        let json = |text: &str| serde_json::from_str(text).unwrap();
        let none = || json("{}");
        let limits = r#"{"limits":{"cpu":"1","memory":"64Mi"},"requests":{"cpu":"500m"}}"#;
        assert_eq!(with(json(limits), none(), none()), (512, 100_000, 64 << 20));
        assert_eq!(with(none(), json(limits), none()), (512, 0, 0), "one container without a limit");
        let overhead = r#"{"cpu":"250m","memory":"16Mi"}"#;
        assert_eq!(with(json(limits), none(), json(overhead)), (768, 125_000, 80 << 20));
    }

    #[test]
    fn a_volume_in_memory_is_no_larger_than_its_pod_may_be_nor_than_the_node() {
        let node = Quantity("8Gi".into());
        let with_limit = |limit: Option<&str>| -> Pod {
            let limits = limit.map(|l| serde_json::json!({ "memory": l })).unwrap_or_default();
            serde_json::from_value(serde_json::json!({
                "spec": { "containers": [{ "name": "a", "resources": { "limits": limits } }] } }))
            .unwrap()
        };
        let size = |limit, wanted| memory_volume_size(Some(&node), &with_limit(limit), wanted).unwrap();
        assert_eq!(size(None, None), 8 << 30);
        assert_eq!(size(Some("1Gi"), None), 1 << 30);
        assert_eq!(size(Some("1Gi"), Some(4 << 30)), 1 << 30);
        assert_eq!(size(Some("1Gi"), Some(1 << 20)), 1 << 20);
        assert_eq!(size(None, Some(16 << 30)), 8 << 30);
        assert_eq!(size(None, Some(0)), 8 << 30);
    }
}
