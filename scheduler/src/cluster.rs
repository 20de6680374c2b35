//! What each node holds, as far as the one task that schedules has heard. Decisions are made from it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node};
use skiff_client::ObjectKey;
use skiff_client::view::{Pod, PodClaim};

use crate::affinity::{Labels, Terms};
use crate::alike::{ClassId, Classes, Traits};
use crate::budgets::Budgets;
use crate::nominations::Nominations;
use crate::resources::{Resources, is_sidecar, pod_requests_for_scoring, pod_taken};
use crate::topology::{Column, NodeId, Tally, Topology};
use crate::volumes::{Bindings, Storage};

/// A pod that is to be placed, with what deciding about it asks for again and again.
#[derive(Debug)]
pub(crate) struct PodInfo {
    pub(crate) pod: Arc<Pod>,
    pub(crate) traits: Arc<Traits>,
    pub(crate) terms: Arc<Terms>,
    pub(crate) requests: Resources,
    pub(crate) requests_for_scoring: Resources,
    pub(crate) claims: Vec<PodClaim>,
}

impl PodInfo {
    pub(crate) fn new(pod: Arc<Pod>) -> PodInfo {
        PodInfo {
            traits: Arc::new(Traits::of(&pod)),
            terms: Arc::new(Terms::of(&pod)),
            requests: pod_taken(&pod),
            requests_for_scoring: pod_requests_for_scoring(&pod),
            claims: pod.claims().collect(),
            pod,
        }
    }

    pub(crate) fn priority(&self) -> i32 {
        priority(&self.pod)
    }

    /// Whether it may have pods deleted that are less important.
    pub(crate) fn may_preempt(&self) -> bool {
        self.pod.spec.as_ref().is_none_or(|s| s.preemption_policy.as_deref() != Some("Never"))
    }
}

pub(crate) fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or_default()
}

/// What counts of a pod that is on a node, assumed there, or nominated to be. The pod itself is not kept.
#[derive(Clone, Debug)]
pub(crate) struct Tenant {
    pub(crate) key: Arc<ObjectKey>,
    pub(crate) uid: String,
    pub(crate) traits: Arc<Traits>,
    pub(crate) terms: Arc<Terms>,
    pub(crate) priority: i32,
    requests: Resources,
    requests_for_scoring: Resources,
    ports: Vec<HostPort>,
    /// Names of the claims that it uses.
    pub(crate) claims: Box<[String]>,
    /// When its kubelet took it on.
    pub(crate) started: Option<Timestamp>,
    /// The API says that it is being deleted to make room for another.
    is_preempted: bool,
}

impl Tenant {
    pub(crate) fn of(key: &ObjectKey, info: &PodInfo) -> Tenant {
        Tenant {
            key: Arc::new(key.clone()),
            uid: uid_of(&info.pod).to_owned(),
            traits: info.traits.clone(),
            terms: info.terms.clone(),
            priority: info.priority(),
            requests: info.requests.clone(),
            requests_for_scoring: info.requests_for_scoring.clone(),
            ports: host_ports(&info.pod).collect(),
            claims: info.claims.iter().map(|claim| claim.name.clone()).collect(),
            started: start_of(&info.pod),
            is_preempted: is_preempted(&info.pod),
        }
    }

    pub(crate) fn claim_keys(&self) -> impl Iterator<Item = ObjectKey> {
        self.claims.iter().map(|claim| ObjectKey::new(&self.key.namespace, claim))
    }
}

/// What pods take of a node together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load {
    pub(crate) n_pods: i64,
    pub(crate) requested: Resources,
    pub(crate) requested_for_scoring: Resources,
    pub(crate) ports: Vec<HostPort>,
}

impl Load {
    pub(crate) fn add(&mut self, tenant: &Tenant) {
        self.n_pods += 1;
        self.requested.add(&tenant.requests);
        self.requested_for_scoring.add(&tenant.requests_for_scoring);
        self.ports.extend(tenant.ports.iter().cloned());
    }
}

/// (host address, protocol, port)
pub(crate) type HostPort = (String, String, i32);

/// One node and what is on it.
#[derive(Clone, Debug)]
pub(crate) struct NodeInfo {
    pub(crate) id: NodeId,
    name: String,
    pub(crate) node: Arc<Node>,
    /// Else only its pods are: they may be heard of first, and last.
    is_known: bool,
    pub(crate) tenants: Vec<Arc<Tenant>>,
    pub(crate) allocatable: Resources,
    pub(crate) load: Load,
    pub(crate) is_cordoned: bool,
    /// It has taints that keep pods off, or away if there is another.
    pub(crate) has_taints: bool,
    pub(crate) has_soft_taints: bool,
}

/// All nodes, and the pods on them, bound or assumed.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    /// By their number. Those that are free are unknown and empty.
    nodes: Vec<NodeInfo>,
    ids: HashMap<String, NodeId>,
    free: Vec<NodeId>,
    pods: HashMap<Arc<ObjectKey>, Placed>,
    /// How many of them have each priority.
    priorities: BTreeMap<i32, usize>,
    pub(crate) nominations: Nominations,
    pub(crate) budgets: Budgets,
    pub(crate) storage: Storage,
    classes: Classes,
    topology: Topology,
    namespaces: HashMap<String, Labels>,
    /// The known nodes as they are looked at: zones take turns.
    order: Vec<NodeId>,
    order_is_stale: bool,
    /// Where in `order` to begin, so that all nodes get their turn where not all are looked at.
    first: usize,
}

#[derive(Debug)]
struct Placed {
    tenant: Arc<Tenant>,
    class: ClassId,
    node: NodeId,
    /// The API does not say so yet.
    is_assumed: bool,
    /// We are having it deleted to make room for another; the API does not say so yet.
    is_doomed: bool,
}

/// What a change of a node means for pods that wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NodeChange {
    /// Nothing, such as a heartbeat.
    None,
    /// Pods may fit that did not.
    Other(NodeId),
    Gone,
}

impl Cluster {
    /// What the API says of a node; `None` if it is gone.
    pub(crate) fn node_changed(&mut self, name: &str, new: Option<&Arc<Node>>) -> NodeChange {
        let Some(new) = new else { return self.node_gone(name) };
        let id = self.id_of(name);
        let info = &mut self.nodes[id.index()];
        let was = info.is_known.then(|| info.node.clone());
        info.is_known = true;
        info.set_node(new.clone());
        if was.as_ref().is_none_or(|old| old.metadata.labels != new.metadata.labels) {
            self.topology.set(id, Some(new));
            self.order_is_stale = true;
        }
        match was {
            Some(old) if !fits_otherwise(&old, new) => NodeChange::None,
            _ => NodeChange::Other(id),
        }
    }

    fn node_gone(&mut self, name: &str) -> NodeChange {
        let known = self.ids.get(name).copied().filter(|id| self.nodes[id.index()].is_known);
        let Some(id) = known else { return NodeChange::None };
        let info = &mut self.nodes[id.index()];
        info.is_known = false;
        info.set_node(Arc::default());
        self.topology.set(id, None);
        self.order_is_stale = true;
        self.let_go(id);
        NodeChange::Gone
    }

    /// The number of a node, which it gets if it has none.
    fn id_of(&mut self, name: &str) -> NodeId {
        if let Some(id) = self.ids.get(name) {
            return *id;
        }
        let id = self.free.pop().unwrap_or(NodeId(self.nodes.len() as u32));
        let info = NodeInfo::new(id, name);
        match self.nodes.get_mut(id.index()) {
            Some(place) => *place = info,
            None => self.nodes.push(info),
        }
        self.ids.insert(name.to_owned(), id);
        id
    }

    /// Forgets a node that is gone, and its last pod with it.
    fn let_go(&mut self, id: NodeId) {
        let info = &mut self.nodes[id.index()];
        if !info.is_known && info.tenants.is_empty() {
            self.ids.remove(&std::mem::take(&mut info.name));
            self.free.push(id);
        }
    }

    /// What the API says of a pod that is on a node. Answers whether others have to see it with new eyes.
    pub(crate) fn pod_on(&mut self, key: &ObjectKey, pod: &Arc<Pod>, node: &str) -> bool {
        let info = PodInfo::new(pod.clone());
        let is_known = self.pods.get(key).is_some_and(|placed| self.is_same(placed, &info, node));
        if is_known {
            self.refresh(key, pod);
            return false;
        }
        let known = self.pods.get(key).filter(|placed| placed.tenant.uid == uid_of(pod));
        let is_doomed = known.is_some_and(|placed| placed.is_doomed);
        self.remove(key);
        self.place(key, &info, node, false);
        if let Some(placed) = self.pods.get_mut(key) {
            placed.is_doomed = is_doomed;
        }
        true
    }

    /// A pod that is where it was, and asks for what it did, may have been started or condemned.
    fn refresh(&mut self, key: &ObjectKey, pod: &Pod) {
        let Some(placed) = self.pods.get_mut(key) else { return };
        placed.is_assumed = false;
        self.storage.forget(key);
        let (started, is_preempted) = (start_of(pod), is_preempted(pod));
        let old = placed.tenant.clone();
        if (old.started, old.is_preempted) != (started, is_preempted) {
            placed.tenant = Arc::new(Tenant { started, is_preempted, ..(*old).clone() });
            let mut tenants = self.nodes[placed.node.index()].tenants.iter_mut();
            if let Some(tenant) = tenants.find(|tenant| Arc::ptr_eq(tenant, &old)) {
                *tenant = placed.tenant.clone();
            }
        }
    }

    fn is_same(&self, placed: &Placed, info: &PodInfo, node: &str) -> bool {
        let Placed { tenant, node: at, .. } = placed;
        tenant.uid == uid_of(&info.pod)
            && self.nodes[at.index()].name == node
            && tenant.traits == info.traits
            && tenant.requests == info.requests
            && tenant.requests_for_scoring == info.requests_for_scoring
    }

    fn place(&mut self, key: &ObjectKey, info: &PodInfo, node: &str, is_assumed: bool) {
        let node = self.id_of(node);
        let class = self.classes.add(&info.traits, &info.terms, node);
        let mut tenant = Tenant::of(key, info);
        if let Some(class) = self.classes.get(class) {
            // Those that are alike share what makes them so.
            (tenant.traits, tenant.terms) = (class.traits.clone(), class.terms.clone());
        }
        let tenant = Arc::new(tenant);
        *self.priorities.entry(tenant.priority).or_default() += 1;
        self.storage.used_by(&tenant);
        self.nodes[node.index()].add(tenant.clone());
        let placed = Placed { tenant: tenant.clone(), class, node, is_assumed, is_doomed: false };
        self.pods.insert(tenant.key.clone(), placed);
    }

    /// Takes a pod off its node. Answers which that was.
    pub(crate) fn remove(&mut self, key: &ObjectKey) -> Option<NodeId> {
        let Placed { tenant, class, node, .. } = self.pods.remove(key)?;
        self.classes.remove(class, node);
        self.storage.left_by(&tenant);
        self.storage.forget(key);
        if let Some(count) = self.priorities.get_mut(&tenant.priority) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.priorities.remove(&tenant.priority);
            }
        }
        self.nodes[node.index()].take(&tenant);
        self.let_go(node);
        Some(node)
    }

    /// Whether any pod that has a node has a lower priority than this.
    pub(crate) fn has_lower_than(&self, priority: i32) -> bool {
        self.priorities.first_key_value().is_some_and(|(lowest, _)| *lowest < priority)
    }

    /// A pod is being deleted to make room for another, or could not be.
    pub(crate) fn doom(&mut self, victim: &Tenant, is_doomed: bool) {
        if let Some(placed) = self.pods.get_mut(&*victim.key).filter(|p| p.tenant.uid == victim.uid) {
            placed.is_doomed = is_doomed;
        }
    }

    /// Whether a pod is on its way out to make room for another, as far as we or the API know.
    pub(crate) fn is_being_preempted(&self, tenant: &Tenant) -> bool {
        tenant.is_preempted || self.pods.get(&*tenant.key).is_some_and(|placed| placed.is_doomed)
    }

    pub(crate) fn namespace_changed(&mut self, name: &str, new: Option<&Namespace>) -> bool {
        let labels = new.map(|new| new.metadata.labels.clone().unwrap_or_default());
        let before = match labels.clone() {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
        before != labels
    }

    /// Counts a pod on a node before the API says so, and its claims as bound.
    pub(crate) fn assume(&mut self, key: &ObjectKey, info: &PodInfo, node: NodeId, bindings: Bindings) {
        self.remove(key);
        let name = self.nodes[node.index()].name.clone();
        self.place(key, info, &name, true);
        self.storage.assume(key, bindings);
    }

    /// Takes an assumption back; another pod of the same name may have come since. Answers which node has room again.
    pub(crate) fn forget(&mut self, key: &ObjectKey, uid: &str) -> Option<NodeId> {
        self.pods.get(key).filter(|placed| placed.is_assumed && placed.tenant.uid == uid)?;
        self.remove(key)
    }

    /// Whether this very pod has a node.
    pub(crate) fn is_placed(&self, key: &ObjectKey, pod: &Pod) -> bool {
        self.pods.get(key).is_some_and(|placed| placed.tenant.uid == uid_of(pod))
    }

    /// The node that a pod counts on.
    pub(crate) fn node_of(&self, key: &ObjectKey) -> Option<&NodeInfo> {
        self.pods.get(key).map(|placed| self.node(placed.node))
    }

    /// To be called when nodes may have changed, before the next decision.
    pub(crate) fn settle(&mut self) {
        if !std::mem::take(&mut self.order_is_stale) {
            return;
        }
        let mut zones: BTreeMap<_, BTreeMap<&str, NodeId>> = BTreeMap::new();
        for info in self.nodes.iter().filter(|info| info.is_known) {
            let label = |key: &str| info.label(key).map(String::as_str).unwrap_or_default();
            let zone = (label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"));
            zones.entry(zone).or_default().insert(&info.name, info.id);
        }
        let mut zones: Vec<_> = zones.into_values().map(BTreeMap::into_values).collect();
        self.order.clear();
        while !zones.is_empty() {
            zones.retain_mut(|zone| zone.next().map(|id| self.order.push(id)).is_some());
        }
    }

    pub(crate) fn n_nodes(&self) -> usize {
        self.order.len()
    }

    /// All nodes, beginning where it is their turn.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        let (before, after) = self.order.split_at(self.first.min(self.order.len()));
        after.iter().chain(before).map(|id| &self.nodes[id.index()])
    }

    /// A node that there is.
    pub(crate) fn find(&self, name: &str) -> Option<&NodeInfo> {
        self.ids.get(name).map(|id| self.node(*id)).filter(|info| info.is_known)
    }

    pub(crate) fn node(&self, id: NodeId) -> &NodeInfo {
        &self.nodes[id.index()]
    }

    /// Numbers of nodes are below this.
    pub(crate) fn n_ids(&self) -> usize {
        self.nodes.len()
    }

    /// The next decision begins after so many more nodes.
    pub(crate) fn go_on_after(&mut self, n_looked_at: usize) {
        self.first = (self.first + n_looked_at) % self.order.len().max(1);
    }

    pub(crate) fn column(&self, key: &str) -> Arc<Column> {
        let known = self.nodes.iter().filter(|info| info.is_known);
        self.topology.column(key, known.map(|info| (info.id, &*info.node)))
    }

    pub(crate) fn tally(&self, key: &str) -> Tally {
        Tally::new(self.column(key))
    }

    pub(crate) fn classes(&self) -> &Classes {
        &self.classes
    }

    pub(crate) fn namespace_labels(&self, namespace: &str) -> Option<&Labels> {
        self.namespaces.get(namespace)
    }
}

/// Whether a node lets other pods in than before: its status alone does not matter, but what it has to give.
fn fits_otherwise(old: &Node, new: &Node) -> bool {
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    old.spec != new.spec || old.metadata.labels != new.metadata.labels || allocatable(old) != allocatable(new)
}

impl NodeInfo {
    fn new(id: NodeId, name: &str) -> NodeInfo {
        NodeInfo {
            id,
            name: name.to_owned(),
            node: Arc::default(),
            is_known: false,
            tenants: Vec::new(),
            allocatable: Resources::default(),
            load: Load::default(),
            is_cordoned: false,
            has_taints: false,
            has_soft_taints: false,
        }
    }

    fn set_node(&mut self, node: Arc<Node>) {
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        let allocatable = allocatable.into_iter().flatten().map(|(name, quantity)| (name.as_str(), quantity));
        self.allocatable = Resources::of(allocatable);
        let spec = node.spec.as_ref();
        let has = |effects: &[&str]| {
            let mut taints = spec.iter().flat_map(|s| s.taints.iter().flatten());
            taints.any(|taint| effects.contains(&taint.effect.as_str()))
        };
        self.is_cordoned = spec.is_some_and(|s| s.unschedulable == Some(true));
        self.has_taints = has(&["NoSchedule", "NoExecute"]);
        self.has_soft_taints = has(&["PreferNoSchedule"]);
        self.node = node;
    }

    fn add(&mut self, tenant: Arc<Tenant>) {
        self.load.add(&tenant);
        self.tenants.push(tenant);
    }

    fn take(&mut self, tenant: &Arc<Tenant>) {
        self.tenants.retain(|other| !Arc::ptr_eq(other, tenant));
        self.load = Load::default();
        self.tenants.iter().for_each(|tenant| self.load.add(tenant));
    }

    /// What pods of this priority and above take; `None` if it has no others.
    pub(crate) fn load_from(&self, priority: i32) -> Option<Load> {
        if self.tenants.iter().all(|tenant| tenant.priority >= priority) {
            return None;
        }
        let mut load = Load::default();
        self.tenants.iter().filter(|tenant| tenant.priority >= priority).for_each(|tenant| load.add(tenant));
        Some(load)
    }

    pub(crate) fn label(&self, key: &str) -> Option<&String> {
        self.node.metadata.labels.as_ref().and_then(|l| l.get(key))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
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

pub(crate) fn uid_of(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn start_of(pod: &Pod) -> Option<Timestamp> {
    Some(pod.status.as_ref()?.start_time.as_ref()?.0)
}

/// What the status of a pod says that is to make room for another.
pub(crate) const DISRUPTION_TARGET: &str = "DisruptionTarget";
pub(crate) const PREEMPTED: &str = "PreemptionByScheduler";

fn is_preempted(pod: &Pod) -> bool {
    let conditions = || pod.status.as_ref()?.conditions.as_ref();
    let target = || conditions()?.iter().find(|c| c.type_ == DISRUPTION_TARGET);
    pod.metadata.deletion_timestamp.is_some()
        && target().is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some(PREEMPTED))
}

/// The node that a pod without one waits for.
pub(crate) fn nominated_node(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.nominated_node_name.as_deref().filter(|n| !n.is_empty())
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

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("d", name)
    }

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

    fn node(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Node> {
        let mut node = json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "4"}}});
        change(&mut node);
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn plain() -> Arc<Node> {
        node("n", |_| {})
    }

    /// Pods, CPU asked for, CPU there, and ports taken, of each node.
    #[track_caller]
    fn check(cluster: &mut Cluster, wanted: &[(usize, i64, i64, usize)]) {
        cluster.settle();
        let seen = |n: &NodeInfo| {
            (n.tenants.len(), n.load.requested.get("cpu"), n.allocatable.get("cpu"), n.load.ports.len())
        };
        assert_eq!(cluster.nodes().map(seen).collect::<Vec<_>>(), wanted);
    }

    fn is_empty(cluster: &Cluster) -> bool {
        cluster.ids.is_empty()
            && cluster.pods.is_empty()
            && cluster.priorities.is_empty()
            && cluster.classes.is_empty()
    }

    #[test]
    fn pods_count_on_their_node_whichever_is_heard_of_first() {
        let mut cluster = Cluster::default();
        let bound = pod("a", "1", "n");
        assert!(cluster.pod_on(&key("a"), &bound, "n"));
        check(&mut cluster, &[]);
        cluster.node_changed("n", Some(&plain()));
        check(&mut cluster, &[(1, 1000, 4000, 1)]);
        cluster.node_changed("n", Some(&node("n", |n| n["status"]["allocatable"]["cpu"] = "8".into())));
        assert!(!cluster.pod_on(&key("a"), &bound, "n"), "nothing new");
        check(&mut cluster, &[(1, 1000, 8000, 1)]);
        assert_eq!(cluster.node_changed("n", None), NodeChange::Gone);
        check(&mut cluster, &[]);
        cluster.remove(&key("a"));
        assert!(is_empty(&cluster));
    }

    #[test]
    fn an_assumed_pod_counts_until_its_binding_fails_and_another_of_its_name_is_not_touched() {
        let mut cluster = Cluster::default();
        let NodeChange::Other(n) = cluster.node_changed("n", Some(&plain())) else { panic!("a node") };
        let old = pod("a", "1", "");
        cluster.assume(&key("a"), &PodInfo::new(old.clone()), n, Bindings::default());
        assert!(cluster.is_placed(&key("a"), &old));
        check(&mut cluster, &[(1, 1000, 4000, 1)]);
        assert_eq!(cluster.remove(&key("a")), Some(n));
        check(&mut cluster, &[(0, 0, 4000, 0)]);
        let new = pod("a", "2", "");
        cluster.assume(&key("a"), &PodInfo::new(new.clone()), n, Bindings::default());
        assert!(!cluster.is_placed(&key("a"), &old));
        assert_eq!(cluster.forget(&key("a"), "1"), None);
        check(&mut cluster, &[(1, 1000, 4000, 1)]);
        assert_eq!(cluster.forget(&key("a"), "2"), Some(n));
        check(&mut cluster, &[(0, 0, 4000, 0)]);
        cluster.assume(&key("a"), &PodInfo::new(new), n, Bindings::default());
        assert!(!cluster.pod_on(&key("a"), &pod("a", "2", "n"), "n"), "it is where it was assumed to be");
        assert_eq!(cluster.forget(&key("a"), "2"), None, "bound is bound");
        check(&mut cluster, &[(1, 1000, 4000, 1)]);
    }

    #[test]
    fn a_heartbeat_of_a_node_is_no_change() {
        let mut cluster = Cluster::default();
        assert!(matches!(cluster.node_changed("n", Some(&plain())), NodeChange::Other(_)));
        let beat = node("n", |n| n["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]));
        assert_eq!(cluster.node_changed("n", Some(&beat)), NodeChange::None);
        let tainted = node("n", |n| n["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]));
        assert!(matches!(cluster.node_changed("n", Some(&tainted)), NodeChange::Other(_)));
        assert_eq!(cluster.node_changed("other", None), NodeChange::None, "never known");
    }

    #[test]
    fn zones_take_turns() {
        let mut cluster = Cluster::default();
        for (name, zone) in [("a", "1"), ("b", "1"), ("c", "2"), ("d", "1"), ("e", "2")] {
            let zoned = |n: &mut Value| {
                n["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": zone});
            };
            cluster.node_changed(name, Some(&node(name, zoned)));
        }
        let order = |cluster: &Cluster| cluster.nodes().map(|n| n.name().to_owned()).collect::<String>();
        cluster.settle();
        assert_eq!(order(&cluster), "acbed");
        cluster.go_on_after(7);
        assert_eq!(order(&cluster), "bedac");
        cluster.node_changed("b", None);
        cluster.settle();
        assert_eq!(cluster.n_nodes(), 4);
    }
}
