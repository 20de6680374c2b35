//! What each node holds, kept up to date by the informers. A snapshot, which decisions are made from, shares it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use skiff_client::{Change, ObjectKey, key_of};

use crate::affinity::Terms;
use crate::resources::{Resources, is_sidecar, pod_requests, pod_requests_for_scoring};

/// A pod, with what deciding about it, or beside it, asks for again and again.
#[derive(Debug)]
pub(crate) struct PodInfo {
    pub(crate) pod: Arc<Pod>,
    pub(crate) terms: Terms,
    pub(crate) requests: Resources,
    pub(crate) requests_for_scoring: Resources,
}

impl PodInfo {
    pub(crate) fn new(pod: Arc<Pod>) -> PodInfo {
        PodInfo {
            terms: Terms::of(&pod),
            requests: pod_requests(&pod),
            requests_for_scoring: pod_requests_for_scoring(&pod),
            pod,
        }
    }

    pub(crate) fn priority(&self) -> i32 {
        priority(&self.pod)
    }
}

pub(crate) fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or_default()
}

/// What a decision is made from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// In the order of their names.
    pub(crate) nodes: Vec<Arc<NodeInfo>>,
    /// Where to begin, so that all nodes get their turn where not all are looked at.
    pub(crate) first: usize,
    /// The labels of each.
    pub(crate) namespaces: Arc<BTreeMap<String, BTreeMap<String, String>>>,
}

/// One node and what is on it.
#[derive(Clone, Debug)]
pub(crate) struct NodeInfo {
    pub(crate) node: Arc<Node>,
    pub(crate) pods: Vec<Arc<PodInfo>>,
    pub(crate) allocatable: Resources,
    pub(crate) requested: Resources,
    pub(crate) requested_for_scoring: Resources,
    /// (host address, protocol, port) that pods have taken.
    pub(crate) ports: BTreeSet<HostPort>,
    /// Pods on it that care which others are near them.
    pub(crate) n_with_terms: usize,
}

pub(crate) type HostPort = (String, String, i32);

/// All nodes, and the pods on them, bound or assumed.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    nodes: BTreeMap<String, Held>,
    pods: HashMap<ObjectKey, Placed>,
    namespaces: Arc<BTreeMap<String, BTreeMap<String, String>>>,
    first: usize,
}

#[derive(Clone, Debug)]
struct Placed {
    info: Arc<PodInfo>,
    node: String,
}

/// A node, or only its pods: they may be heard of first, and last.
#[derive(Debug)]
struct Held {
    info: Arc<NodeInfo>,
    is_known: bool,
}

impl Cluster {
    pub(crate) fn node_changed(&mut self, change: &Change<Node>) {
        let Some(name) = change.object().and_then(|n| n.metadata.name.clone()) else { return };
        let held = self.held(&name);
        held.is_known = change.new.is_some();
        if let Some(new) = &change.new {
            Arc::make_mut(&mut held.info).set_node(new.clone());
        }
        self.let_go(&name);
    }

    fn held(&mut self, name: &str) -> &mut Held {
        let unknown = || Held { info: Arc::new(NodeInfo::new(Arc::default())), is_known: false };
        self.nodes.entry(name.to_owned()).or_insert_with(unknown)
    }

    /// Forgets a node that is gone, and its last pod with it.
    fn let_go(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|held| !held.is_known && held.info.pods.is_empty()) {
            self.nodes.remove(name);
        }
    }

    fn place(&mut self, key: ObjectKey, info: Arc<PodInfo>, node: &str) {
        self.displace(&key);
        Arc::make_mut(&mut self.held(node).info).add(info.clone());
        self.pods.insert(key, Placed { info, node: node.to_owned() });
    }

    fn displace(&mut self, key: &ObjectKey) {
        let Some(placed) = self.pods.remove(key) else { return };
        if let Some(held) = self.nodes.get_mut(&placed.node) {
            let rest = held.info.with_pods(|pod| pod.pod.metadata.uid != placed.info.pod.metadata.uid);
            held.info = Arc::new(rest);
        }
        self.let_go(&placed.node);
    }

    pub(crate) fn pod_changed(&mut self, change: &Change<Pod>) {
        let Some(pod) = change.object() else { return };
        let key = key_of(&**pod);
        match &change.new {
            None => self.displace(&key),
            Some(new) if has_ended(new) => self.displace(&key),
            Some(new) => {
                // Without a node it is still waiting, or assumed: the assumption stands until its binding fails.
                let known = self.pods.get(&key).map(|placed| &placed.info.pod);
                if let Some(node) = node_of(new).filter(|_| known.is_none_or(|old| differs(old, new))) {
                    self.place(key, Arc::new(PodInfo::new(new.clone())), node);
                }
            }
        }
    }

    pub(crate) fn namespace_changed(&mut self, change: &Change<Namespace>) {
        let Some(name) = change.object().and_then(|n| n.metadata.name.clone()) else { return };
        let all = Arc::make_mut(&mut self.namespaces);
        match &change.new {
            Some(new) => drop(all.insert(name, new.metadata.labels.clone().unwrap_or_default())),
            None => drop(all.remove(&name)),
        }
    }

    /// Counts a pod on a node before the API says so.
    pub(crate) fn assume(&mut self, info: Arc<PodInfo>, node: &str) {
        self.place(key_of(&*info.pod), info, node);
    }

    /// Takes an assumption back; another pod of the same name may have come since.
    pub(crate) fn forget(&mut self, pod: &Pod) {
        let key = key_of(pod);
        let is_it = |placed: &Placed| {
            placed.info.pod.metadata.uid == pod.metadata.uid && node_of(&placed.info.pod).is_none()
        };
        if self.pods.get(&key).is_some_and(is_it) {
            self.displace(&key);
        }
    }

    pub(crate) fn is_placed(&self, key: &ObjectKey) -> bool {
        self.pods.contains_key(key)
    }

    /// Everything as it is now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let known = self.nodes.values().filter(|held| held.is_known).map(|held| held.info.clone());
        Snapshot { nodes: known.collect(), first: self.first, namespaces: self.namespaces.clone() }
    }

    /// The next snapshot begins after so many more nodes.
    pub(crate) fn go_on_after(&mut self, n_looked_at: usize) {
        self.first = (self.first + n_looked_at) % self.nodes.len().max(1);
    }
}

/// Whether a pod counts otherwise than before: its status alone does not matter.
fn differs(old: &Pod, new: &Pod) -> bool {
    let going = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
    old.metadata.uid != new.metadata.uid
        || old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || going(old) != going(new)
}

impl NodeInfo {
    pub(crate) fn new(node: Arc<Node>) -> NodeInfo {
        NodeInfo {
            allocatable: allocatable(&node),
            node,
            pods: Vec::new(),
            requested: Resources::default(),
            requested_for_scoring: Resources::default(),
            ports: BTreeSet::new(),
            n_with_terms: 0,
        }
    }

    fn set_node(&mut self, node: Arc<Node>) {
        self.allocatable = allocatable(&node);
        self.node = node;
    }

    pub(crate) fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.requested_for_scoring.add(&pod.requests_for_scoring);
        self.ports.extend(host_ports(&pod.pod));
        self.n_with_terms += usize::from(!pod.terms.is_empty());
        self.pods.push(pod);
    }

    /// The node as it would be with only some of its pods.
    pub(crate) fn with_pods(&self, keep: impl Fn(&PodInfo) -> bool) -> NodeInfo {
        let mut info = NodeInfo::new(self.node.clone());
        self.pods.iter().filter(|pod| keep(pod)).for_each(|pod| info.add(pod.clone()));
        info
    }

    pub(crate) fn label(&self, key: &str) -> Option<&String> {
        self.node.metadata.labels.as_ref().and_then(|l| l.get(key))
    }

    pub(crate) fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }
}

fn allocatable(node: &Node) -> Resources {
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    allocatable.map(Resources::of).unwrap_or_default()
}

/// The ports of the node that a pod wants for as long as it runs.
pub(crate) fn host_ports(pod: &Pod) -> impl Iterator<Item = HostPort> {
    let containers = pod.spec.iter().flat_map(|s| {
        let sidecars = s.init_containers.iter().flatten().filter(|c| is_sidecar(c));
        s.containers.iter().chain(sidecars)
    });
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, uid: &str, node: &str) -> Arc<Pod> {
        let requests = json!({"requests": {"cpu": "1"}});
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "d", "uid": uid},
                "spec": {"nodeName": node, "containers": [{"name": "c", "resources": requests,
                         "ports": [{"containerPort": 80, "hostPort": 80}]}]},
            }))
            .unwrap(),
        )
    }

    fn node(cpu: &str) -> Arc<Node> {
        let status: Value = json!({"allocatable": {"cpu": cpu}});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": "n"}, "status": status})).unwrap())
    }

    fn added<K>(object: &Arc<K>) -> Change<K> {
        Change { old: None, new: Some(object.clone()) }
    }

    fn gone<K>(object: &Arc<K>) -> Change<K> {
        Change { old: Some(object.clone()), new: None }
    }

    /// Pods, CPU asked for, CPU there, and ports taken, of each node.
    #[track_caller]
    fn check(cluster: &Cluster, wanted: &[(usize, i64, i64, usize)]) {
        let seen = |n: &Arc<NodeInfo>| {
            (n.pods.len(), n.requested.get("cpu"), n.allocatable.get("cpu"), n.ports.len())
        };
        assert_eq!(cluster.snapshot().nodes.iter().map(seen).collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn pods_count_on_their_node_whichever_is_heard_of_first() {
        let mut cluster = Cluster::default();
        cluster.pod_changed(&added(&pod("a", "1", "n")));
        check(&cluster, &[]);
        cluster.node_changed(&added(&node("4")));
        check(&cluster, &[(1, 1000, 4000, 1)]);
        cluster.node_changed(&Change { old: Some(node("4")), new: Some(node("8")) });
        cluster.pod_changed(&added(&pod("a", "1", "n")));
        check(&cluster, &[(1, 1000, 8000, 1)]);
        cluster.node_changed(&gone(&node("8")));
        check(&cluster, &[]);
        cluster.pod_changed(&gone(&pod("a", "1", "n")));
        assert!(cluster.nodes.is_empty() && cluster.pods.is_empty());
    }

    #[test]
    fn an_assumed_pod_counts_until_its_binding_fails_and_another_of_its_name_is_not_touched() {
        let mut cluster = Cluster::default();
        cluster.node_changed(&added(&node("4")));
        let old = pod("a", "1", "");
        cluster.assume(Arc::new(PodInfo::new(old.clone())), "n");
        check(&cluster, &[(1, 1000, 4000, 1)]);
        cluster.pod_changed(&gone(&old));
        check(&cluster, &[(0, 0, 4000, 0)]);
        let new = pod("a", "2", "");
        cluster.assume(Arc::new(PodInfo::new(new.clone())), "n");
        cluster.forget(&old);
        check(&cluster, &[(1, 1000, 4000, 1)]);
        cluster.forget(&new);
        check(&cluster, &[(0, 0, 4000, 0)]);
    }
}
