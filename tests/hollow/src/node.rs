//! A hollow node's own objects: what a kubelet writes of a machine that there is not.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// The version of kubelet whose behaviour this is.
const KUBELET_VERSION: &str = "v1.37.2+hollow";
pub(crate) const LEASE_NAMESPACE: &str = "kube-node-lease";
pub(crate) const LEASE_DURATION_S: i32 = 40;
/// A label of all nodes of a fleet, whose value is its prefix.
pub const FLEET_LABEL: &str = "hollow.skiff.dev/fleet";
/// Nodes have addresses out of 198.18.0.0/15, which is kept for measuring (RFC 2544) and routed nowhere.
const FIRST_NODE_IP: u32 = u32::from_be_bytes([198, 18, 0, 1]);
/// Their pods have addresses out of 10.128.0.0/9, a /24 a node.
const FIRST_POD_IP: u32 = u32::from_be_bytes([10, 128, 0, 0]);
pub(crate) const MAX_NODES: u32 = 1 << 15;
/// Of a /24 without its first and last.
pub(crate) const MAX_PODS: u8 = 254;

/// What each node of a fleet says it has.
#[derive(Clone, Debug)]
pub struct Machine {
    pub cpu: String,
    pub memory: String,
    pub n_pods: u8,
}

/// One node, and the addresses that its pods have.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) index: u32,
    fleet: String,
    machine: Machine,
    /// By the address, whose it is: one of a pod that has ended is free for another.
    addresses: Mutex<Vec<(u8, String)>>,
}

impl Node {
    pub(crate) fn new(fleet: &str, index: u32, machine: Machine) -> Node {
        let name = format!("{fleet}-{index:05}");
        Node { name, index, fleet: fleet.to_owned(), machine, addresses: Mutex::default() }
    }

    pub(crate) fn ip(&self) -> Ipv4Addr {
        Ipv4Addr::from(FIRST_NODE_IP + self.index)
    }

    fn pod_range(&self) -> u32 {
        FIRST_POD_IP + (self.index << 8)
    }

    pub(crate) fn capacity(&self) -> usize {
        usize::from(self.machine.n_pods)
    }

    /// How many pods have an address here.
    pub(crate) fn n_pods(&self) -> usize {
        self.addresses.lock().len()
    }

    /// Whether a pod may run here: it does already, or there is room.
    pub(crate) fn has_room(&self, uid: &str) -> bool {
        let addresses = self.addresses.lock();
        addresses.len() < self.capacity() || addresses.iter().any(|(_, of)| of == uid)
    }

    /// An address for a pod: its own if it has one, or shows one that nobody else has; else the lowest that is free.
    pub(crate) fn address(&self, uid: &str, shown: Option<&str>) -> Option<Ipv4Addr> {
        let mut addresses = self.addresses.lock();
        let of = |host: u8| Ipv4Addr::from(self.pod_range() + u32::from(host));
        if let Some((host, _)) = addresses.iter().find(|(_, owner)| owner == uid) {
            return Some(of(*host));
        }
        let taken: BTreeSet<u8> = addresses.iter().map(|(host, _)| *host).collect();
        let shown: Option<Ipv4Addr> = shown.and_then(|ip| ip.parse().ok());
        let free = (1..=MAX_PODS).filter(|host| !taken.contains(host));
        let host = free.clone().find(|host| Some(of(*host)) == shown).or_else(|| free.clone().next())?;
        addresses.push((host, uid.to_owned()));
        Some(of(host))
    }

    pub(crate) fn release(&self, uid: &str) {
        self.addresses.lock().retain(|(_, owner)| owner != uid);
    }

    /// The object that the node registers with.
    pub(crate) fn document(&self) -> Value {
        let range = format!("{}/24", Ipv4Addr::from(self.pod_range()));
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": {
                    "kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux",
                    "kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux",
                    "beta.kubernetes.io/arch": "amd64", FLEET_LABEL: self.fleet,
                },
                "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
            },
            // Its own, or the cluster's range, which is for real nodes, would be used up.
            "spec": {"podCIDR": range, "podCIDRs": [range]},
        })
    }

    /// The whole status, as at the start and every five minutes after it.
    pub(crate) fn status(&self, since: Timestamp, now: Timestamp) -> Value {
        let resources = json!({"cpu": self.machine.cpu, "memory": self.machine.memory,
            "pods": self.machine.n_pods.to_string(), "ephemeral-storage": "100Gi",
            "hugepages-1Gi": "0", "hugepages-2Mi": "0"});
        json!({"status": {
            "addresses": [{"type": "InternalIP", "address": self.ip()}, {"type": "Hostname", "address": self.name},
                          {"$patch": "replace"}],
            "capacity": resources, "allocatable": resources,
            "conditions": conditions(since, now),
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "architecture": "amd64", "bootID": self.name, "containerRuntimeVersion": "hollow://1",
                "kernelVersion": "6.1", "kubeProxyVersion": "", "kubeletVersion": KUBELET_VERSION,
                "machineID": self.name, "operatingSystem": "linux", "osImage": "hollow",
                "systemUUID": self.name,
            },
        }})
    }

    /// What of it is written when nothing but time has passed.
    pub(crate) fn heartbeat(&self, since: Timestamp, now: Timestamp) -> Value {
        json!({"status": {"conditions": conditions(since, now)}})
    }

    pub(crate) fn lease(&self, node_uid: Option<&str>, now: Timestamp) -> Value {
        let owner =
            node_uid.map(|uid| json!({"apiVersion": "v1", "kind": "Node", "name": self.name, "uid": uid}));
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": self.name, "namespace": LEASE_NAMESPACE,
                         "ownerReferences": owner.into_iter().collect::<Vec<_>>()},
            "spec": {"holderIdentity": self.name, "leaseDurationSeconds": LEASE_DURATION_S,
                     "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()},
        })
    }
}

fn conditions(since: Timestamp, now: Timestamp) -> Value {
    let text = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |type_: &str, status: &str, reason: &str, message: &str| {
        json!({"type": type_, "status": status, "reason": reason, "message": message,
               "lastHeartbeatTime": text(now), "lastTransitionTime": text(since)})
    };
    json!([
        condition(
            "MemoryPressure",
            "False",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available"
        ),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(index: u32, n_pods: u8) -> Node {
        Node::new("hollow", index, Machine { cpu: "4".into(), memory: "8Gi".into(), n_pods })
    }

    #[test]
    fn no_two_nodes_and_no_two_pods_have_the_same_address() {
        let (first, last) = (node(0, 110), node(MAX_NODES - 1, 110));
        assert_eq!(first.ip().to_string(), "198.18.0.1");
        assert_eq!(last.ip().to_string(), "198.18.128.0");
        assert_eq!(last.document()["spec"]["podCIDR"], "10.255.255.0/24");
        let found: BTreeSet<_> =
            (0..MAX_PODS).map(|n| first.address(&n.to_string(), None).unwrap()).collect();
        assert_eq!(found.len(), usize::from(MAX_PODS));
        assert_eq!(first.address("one more", None), None);
    }

    #[test]
    fn a_pod_keeps_the_address_that_it_shows_and_gives_it_back_at_its_end() {
        let node = node(1, 2);
        assert_eq!(node.address("a", Some("10.128.1.9")), node.address("a", None));
        assert_eq!(node.address("b", Some("10.128.1.9")).unwrap().to_string(), "10.128.1.1");
        assert!(node.has_room("a") && !node.has_room("c"));
        node.release("a");
        assert!(node.has_room("c"));
        assert_eq!(node.n_pods(), 1);
    }
}
