//! What each node holds: the snapshot that decisions are made from, kept up to date by the informers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use skiff_client::{Change, ObjectKey, key_of};

use crate::resources::{Resources, pod_requests, pod_requests_for_scoring};

/// One node and what is on it.
#[derive(Clone, Debug)]
pub(crate) struct NodeInfo {
    pub(crate) node: Arc<Node>,
    pub(crate) allocatable: Resources,
    pub(crate) requested: Resources,
    pub(crate) requested_for_scoring: Resources,
    pub(crate) n_pods: i64,
    /// (host address, protocol, port) that pods have taken.
    pub(crate) ports: BTreeSet<HostPort>,
}

pub(crate) type HostPort = (String, String, i32);

/// All nodes, and the pods on them, bound or assumed.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    nodes: BTreeMap<String, Arc<Node>>,
    pods: HashMap<ObjectKey, Placed>,
}

#[derive(Clone, Debug)]
struct Placed {
    pod: Arc<Pod>,
    node: String,
}

impl Cluster {
    pub(crate) fn node_changed(&mut self, change: &Change<Node>) {
        if let Some(old) = &change.old {
            self.nodes.remove(old.metadata.name.as_deref().unwrap_or_default());
        }
        if let Some(new) = &change.new {
            self.nodes.insert(new.metadata.name.clone().unwrap_or_default(), new.clone());
        }
    }

    pub(crate) fn pod_changed(&mut self, change: &Change<Pod>) {
        let Some(pod) = change.object() else { return };
        let key = key_of(&**pod);
        match &change.new {
            None => drop(self.pods.remove(&key)),
            Some(new) if has_ended(new) => drop(self.pods.remove(&key)),
            Some(new) => {
                // Without a node it is still waiting, or assumed: the assumption stands until its binding fails.
                if let Some(node) = node_of(new) {
                    self.pods.insert(key, Placed { node: node.to_owned(), pod: new.clone() });
                }
            }
        }
    }

    /// Counts a pod on a node before the API says so.
    pub(crate) fn assume(&mut self, pod: &Arc<Pod>, node: &str) {
        self.pods.insert(key_of(&**pod), Placed { pod: pod.clone(), node: node.to_owned() });
    }

    /// Takes an assumption back.
    pub(crate) fn forget(&mut self, key: &ObjectKey) {
        if self.pods.get(key).is_some_and(|placed| node_of(&placed.pod).is_none()) {
            self.pods.remove(key);
        }
    }

    pub(crate) fn is_placed(&self, key: &ObjectKey) -> bool {
        self.pods.contains_key(key)
    }

    /// The nodes as they are now, in the order of their names.
    pub(crate) fn snapshot(&self) -> Vec<NodeInfo> {
        let mut infos: BTreeMap<&str, NodeInfo> =
            self.nodes.iter().map(|(name, node)| (name.as_str(), NodeInfo::new(node.clone()))).collect();
        for placed in self.pods.values() {
            if let Some(info) = infos.get_mut(placed.node.as_str()) {
                info.add(&placed.pod);
            }
        }
        infos.into_values().collect()
    }
}

impl NodeInfo {
    pub(crate) fn new(node: Arc<Node>) -> NodeInfo {
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        NodeInfo {
            allocatable: allocatable.map(Resources::of).unwrap_or_default(),
            node,
            requested: Resources::default(),
            requested_for_scoring: Resources::default(),
            n_pods: 0,
            ports: BTreeSet::new(),
        }
    }

    pub(crate) fn add(&mut self, pod: &Pod) {
        self.requested.add(&pod_requests(pod));
        self.requested_for_scoring.add(&pod_requests_for_scoring(pod));
        self.n_pods += 1;
        self.ports.extend(host_ports(pod));
    }

    pub(crate) fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }
}

/// The ports of the node that a pod wants.
pub(crate) fn host_ports(pod: &Pod) -> impl Iterator<Item = HostPort> {
    let containers = pod.spec.iter().flat_map(|s| &s.containers);
    containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|port| {
        let number = port.host_port.filter(|p| *p > 0)?;
        let ip = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
        Some((ip, port.protocol.clone().unwrap_or_else(|| "TCP".into()), number))
    })
}

pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

pub(crate) fn has_ended(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}
