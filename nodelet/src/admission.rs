//! Whether this node takes a pod that was bound to it: the checks that a scheduler should have made,
//! made again against what really is here. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerPort, Pod};
use skiff_api::placement::{NodeFacts, selects_node};

use crate::pod::{containers, init_containers};
use crate::resources::{ResourceList, milli_value, pod_request_milli};
use crate::sysctl;

pub(crate) const NODE_AFFINITY: &str = "NodeAffinity";

pub(crate) struct NodeView<'a> {
    pub(crate) name: &'a str,
    pub(crate) labels: &'a BTreeMap<String, String>,
    pub(crate) allocatable: &'a ResourceList,
}

/// A reason and a message, as upstream's predicates word them; `None` if the pod is taken.
pub(crate) fn refusal(node: &NodeView<'_>, others: &[&Pod], pod: &Pod) -> Option<(String, String)> {
    let os = pod.spec.as_ref().and_then(|s| s.os.as_ref()).map(|os| os.name.as_str());
    if os.is_some_and(|os| os != "linux") {
        return Some((
            "PodOSNotSupported".into(),
            "Failed to admit pod as the OS field doesn't match node OS".into(),
        ));
    }
    sysctl::refusal(pod).or_else(|| insufficient(node, others, pod)).or_else(|| predicate(node, others, pod))
}

/// A reason and a message if there is no room for a pod beside the others.
pub(crate) fn insufficient(node: &NodeView<'_>, others: &[&Pod], pod: &Pod) -> Option<(String, String)> {
    let refused = |reason: &str, resource: &str, requested: i64, used: i64, capacity: i64| {
        let message = format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        Some((reason.to_owned(), message))
    };
    let capacity = |name: &str| node.allocatable.get(name).map_or(0, milli_value);
    let n_pods = i64::try_from(others.len()).unwrap_or(i64::MAX);
    if n_pods.saturating_add(1) > capacity("pods") / 1000 {
        return refused("OutOfpods", "pods", 1, n_pods, capacity("pods") / 1000);
    }
    for (name, reason) in
        [("cpu", "OutOfcpu"), ("memory", "OutOfmemory"), ("ephemeral-storage", "OutOfephemeral-storage")]
    {
        let requested = pod_request_milli(pod, name);
        let used = others.iter().fold(0_i64, |sum, other| sum.saturating_add(pod_request_milli(other, name)));
        if requested > 0 && used.saturating_add(requested) > capacity(name) {
            // CPU is counted in thousandths, everything else in whole units.
            let unit = if name == "cpu" { 1 } else { 1000 };
            return refused(reason, name, requested / unit, used / unit, capacity(name) / unit);
        }
    }
    None
}

fn predicate(node: &NodeView<'_>, others: &[&Pod], pod: &Pod) -> Option<(String, String)> {
    let failed = |name: &str, why: &str| Some((name.to_owned(), format!("Predicate {name} failed: {why}")));
    let facts = NodeFacts { name: node.name, labels: Some(node.labels) };
    if !pod.spec.as_ref().is_none_or(|spec| selects_node(spec, &facts)) {
        return failed(NODE_AFFINITY, "node(s) didn't match Pod's node affinity/selector");
    }
    let wanted = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or(node.name);
    if wanted != node.name {
        return failed("NodeName", "node(s) didn't match the requested node name");
    }
    let taken: Vec<_> = others.iter().flat_map(|other| host_ports(other)).collect();
    if host_ports(pod).iter().any(|port| taken.iter().any(|other| conflict(port, other))) {
        return failed("NodePorts", "node(s) didn't have free ports for the requested pod ports");
    }
    None
}

fn host_ports(pod: &Pod) -> Vec<ContainerPort> {
    let all = containers(pod).iter().chain(init_containers(pod)).flat_map(|c| c.ports.iter().flatten());
    all.filter(|p| p.host_port.is_some_and(|port| port > 0)).cloned().collect()
}

fn conflict(a: &ContainerPort, b: &ContainerPort) -> bool {
    let protocol = |p: &ContainerPort| p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let ip = |p: &ContainerPort| {
        p.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned())
    };
    let any = |ip: &str| ip == "0.0.0.0";
    a.host_port == b.host_port && protocol(a) == protocol(b) && (ip(a) == ip(b) || any(&ip(a)) || any(&ip(b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn pod(cpu: &str, host_port: Option<i32>) -> Pod {
        let requests = ResourceList::from([("cpu".to_owned(), Quantity(cpu.to_owned()))]);
        let container = Container {
            resources: Some(ResourceRequirements { requests: Some(requests), ..Default::default() }),
            ports: host_port.map(|port| vec![ContainerPort { host_port: Some(port), ..Default::default() }]),
            ..Container::default()
        };
        Pod { spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }), ..Pod::default() }
    }

    fn check(others: &[&Pod], pod: &Pod) -> Option<(String, String)> {
        let quantity = |q: &str| Quantity(q.to_owned());
        let allocatable = ResourceList::from([
            ("cpu".into(), quantity("2")),
            ("memory".into(), quantity("1Gi")),
            ("pods".into(), quantity("3")),
        ]);
        let labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
        refusal(&NodeView { name: "n", labels: &labels, allocatable: &allocatable }, others, pod)
    }

    #[test]
    fn a_pod_that_does_not_fit_is_refused_in_upstreams_words() {
        let big = pod("1500m", None);
        assert_eq!(check(&[], &big), None);
        let (reason, message) = check(&[&big], &big).unwrap();
        assert_eq!(reason, "OutOfcpu");
        assert_eq!(
            message,
            "Node didn't have enough resource: cpu, requested: 1500, used: 1500, capacity: 2000"
        );
        let small = pod("1m", None);
        assert_eq!(check(&[&small; 3], &small).unwrap().0, "OutOfpods");
    }

    #[test]
    fn selectors_and_ports_are_checked() {
        let mut picky = pod("1m", None);
        picky.spec.as_mut().unwrap().node_selector = Some(BTreeMap::from([("disk".into(), "hdd".into())]));
        assert_eq!(
            check(&[], &picky).unwrap(),
            (
                "NodeAffinity".into(),
                "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".into()
            )
        );
        let web = pod("1m", Some(80));
        assert_eq!(check(&[&web], &web).unwrap().0, "NodePorts");
        assert_eq!(check(&[&web], &pod("1m", Some(81))), None);
    }
}
