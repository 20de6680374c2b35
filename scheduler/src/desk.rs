//! What the scheduler knows and who waits, in one hand: it hears what has changed, and decides about one pod after the
//! other. No IO.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use skiff_api::LabelSelector;
use skiff_client::ObjectKey;
use skiff_client::view::Pod;
use tokio::time::Instant;

use crate::cluster::{Cluster, NodeChange, PodInfo, Tenant, has_ended, node_of, nominated_node};
use crate::framework::{Nomination, Unschedulable, decide};
use crate::queue::{Event, Queue, Waiting};
use crate::volumes::Bindings;

/// The name in a pod's `spec.schedulerName`, and the component in its events.
pub(crate) const NAME: &str = "default-scheduler";

#[derive(Debug, Default)]
pub(crate) struct Desk {
    cluster: Cluster,
    queue: Queue,
}

/// What comes of asking for the next pod.
#[derive(Debug)]
pub(crate) enum Next {
    /// The pod counts on the node from now on.
    Bind { key: ObjectKey, pod: Arc<Pod>, node: String, bindings: Bindings },
    /// It waits; what `why` says of its nomination counts from now on.
    Refused { pod: Arc<Pod>, why: Unschedulable },
    /// There is none before this time, unless something changes.
    Later(Option<Instant>),
}

impl Desk {
    /// What the API says of a pod now; `None` if it is gone.
    pub(crate) fn hear_pod(&mut self, key: &ObjectKey, pod: Option<&Arc<Pod>>, now: Instant) {
        let Some(pod) = pod.filter(|pod| !has_ended(pod)) else {
            self.queue.remove(key);
            self.wait_for(key, None, now);
            return self.leave(key, now);
        };
        let was_placed = self.cluster.is_placed(key, pod);
        if let Some(node) = node_of(pod) {
            self.queue.remove(key);
            self.wait_for(key, None, now);
            if self.cluster.pod_on(key, pod, node) {
                self.queue.happened(Event::Others, now);
                if was_placed && let Some(node) = self.cluster.node_of(key) {
                    // It may ask for less than before.
                    self.queue.happened(Event::Room(node), now);
                }
            }
            return;
        }
        if !was_placed {
            // Another of its name may have been.
            self.leave(key, now);
        }
        match is_ours(pod) {
            false => {
                self.queue.remove(key);
                self.wait_for(key, None, now);
            }
            // An assumption stands until its binding fails.
            true if was_placed => {}
            true => {
                self.hear_nomination(key, pod, now);
                self.queue.add(key, pod.clone());
            }
        }
    }

    /// The API's word on which node a pod waits for counts when it is another than before: what we decide is not there yet.
    fn hear_nomination(&mut self, key: &ObjectKey, pod: &Arc<Pod>, now: Instant) {
        let before = self.queue.get(key).filter(|before| before.metadata.uid == pod.metadata.uid);
        let is_news = before.is_none_or(|before| nominated_node(before) != nominated_node(pod));
        let node = if is_news { nominated_node(pod) } else { self.cluster.nominations.node_of(key) };
        let node = node.map(str::to_owned);
        let tenant = node.map(|node| (Tenant::of(key, &PodInfo::new(pod.clone())), node));
        self.wait_for(key, tenant, now);
    }

    /// A pod waits for another node from now on, or for none: what it leaves may help others.
    fn wait_for(&mut self, key: &ObjectKey, node: Option<(Tenant, String)>, now: Instant) {
        let nominations = &mut self.cluster.nominations;
        let left = match node {
            Some((pod, node)) => nominations.set(pod, &node),
            None => nominations.remove(key),
        };
        if let Some(node) = left.and_then(|node| self.cluster.find(&node)) {
            self.queue.happened(Event::Room(node), now);
        }
    }

    /// Takes a pod off its node, if it had one.
    fn leave(&mut self, key: &ObjectKey, now: Instant) {
        if let Some(id) = self.cluster.remove(key) {
            let node = self.cluster.node(id);
            self.queue.happened(Event::Room(node), now);
            // What they wait for may have come, or another may have taken it.
            let waiting = self.cluster.nominations.on(node.name()).iter();
            waiting.for_each(|pod| self.queue.hurry(&pod.key, now));
        }
    }

    /// What the API says of a node now.
    pub(crate) fn hear_node(&mut self, name: &str, node: Option<&Arc<Node>>, now: Instant) {
        match self.cluster.node_changed(name, node) {
            NodeChange::None => return,
            NodeChange::Other(id) => self.queue.happened(Event::Node(self.cluster.node(id)), now),
            NodeChange::Gone => self.queue.happened(Event::NodeGone, now),
        }
        // Those that wait for it may do so in vain.
        let waiting = self.cluster.nominations.on(name).iter();
        waiting.for_each(|pod| self.queue.hurry(&pod.key, now));
    }

    /// What the API says of a PodDisruptionBudget now.
    pub(crate) fn hear_budget(&mut self, key: &ObjectKey, budget: Option<&PodDisruptionBudget>) {
        self.cluster.budgets.set(key, budget);
    }

    /// What the API says of a claim now.
    pub(crate) fn hear_claim(
        &mut self,
        key: &ObjectKey,
        claim: Option<&Arc<PersistentVolumeClaim>>,
        now: Instant,
    ) {
        self.cluster.storage.set_claim(key, claim);
        self.queue.happened(Event::Claim(key), now);
    }

    /// What the API says of a volume now.
    pub(crate) fn hear_volume(&mut self, name: &str, volume: Option<&Arc<PersistentVolume>>, now: Instant) {
        self.cluster.storage.set_volume(name, volume);
        self.queue.happened(Event::Volumes, now);
    }

    /// What the API says of a StorageClass now.
    pub(crate) fn hear_class(&mut self, name: &str, class: Option<&Arc<StorageClass>>, now: Instant) {
        self.cluster.storage.set_class(name, class);
        self.queue.happened(Event::Volumes, now);
    }

    /// What the API says of a namespace now: terms may select namespaces.
    pub(crate) fn hear_namespace(&mut self, name: &str, namespace: Option<&Namespace>, now: Instant) {
        if self.cluster.namespace_changed(name, namespace) {
            self.queue.happened(Event::Others, now);
        }
    }

    /// The binding of a pod has failed. One that is gone, or bound by another, leaves the queue by its own change.
    pub(crate) fn hear_failure(&mut self, key: &ObjectKey, uid: &str, now: Instant) {
        if let Some(node) = self.cluster.forget(key, uid) {
            self.queue.happened(Event::Room(self.cluster.node(node)), now);
        }
        self.queue.retry(key, uid, now);
    }

    /// Not all of those could be deleted that were to make room for a pod.
    pub(crate) fn hear_spared(&mut self, key: &ObjectKey, victims: &[Arc<Tenant>], now: Instant) {
        victims.iter().for_each(|victim| self.cluster.doom(victim, false));
        self.queue.hurry(key, now);
    }

    /// Decides about the next pod. `siblings` says what belongs together with one.
    pub(crate) fn next(
        &mut self,
        siblings: impl FnOnce(&Pod) -> Option<LabelSelector>,
        now: Instant,
    ) -> Next {
        let (key, pod) = match self.queue.pop(now) {
            Ok(next) => next,
            Err(until) => return Next::Later(until),
        };
        self.cluster.settle();
        let info = Arc::new(PodInfo::new(pod.clone()));
        let decision = decide(&info, &self.cluster, siblings(&pod).as_ref(), pick);
        let (id, bindings, n_looked_at) = match decision {
            Ok(decision) => (decision.node.id, decision.bindings, decision.n_looked_at),
            Err(why) => {
                self.nominate(&key, &info, &why.nomination, now);
                let waiting = Waiting { info, minds_others: why.minds_others };
                self.queue.put_off(&key, waiting, now);
                return Next::Refused { pod, why };
            }
        };
        self.cluster.go_on_after(n_looked_at);
        let node = self.cluster.node(id).name().to_owned();
        self.cluster.assume(&key, &info, id, bindings.clone());
        self.wait_for(&key, None, now);
        self.queue.happened(Event::Others, now);
        Next::Bind { key, pod, node, bindings }
    }

    fn nominate(&mut self, key: &ObjectKey, info: &PodInfo, nomination: &Nomination, now: Instant) {
        match nomination {
            Nomination::Keep => {}
            Nomination::Clear => self.wait_for(key, None, now),
            Nomination::Node(preemption) => {
                // Those that go already do so for another reason, or the API says for which.
                let doomed = preemption.victims.iter().filter(|victim| !victim.traits.going);
                doomed.for_each(|victim| self.cluster.doom(victim, true));
                for displaced in &preemption.displaced {
                    self.cluster.nominations.remove(&displaced.key);
                    self.queue.hurry(&displaced.key, now);
                }
                self.wait_for(key, Some((Tenant::of(key, info), preemption.node.clone())), now);
            }
        }
    }
}

/// Among equals any will do; the clock's lowest digits spread them.
fn pick(n: usize) -> usize {
    let nanos = jiff::Timestamp::now().subsec_nanosecond().unsigned_abs();
    nanos as usize / 100 % n.max(1)
}

/// Waits for this scheduler.
pub(crate) fn is_ours(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    node_of(pod).is_none()
        && pod.metadata.deletion_timestamp.is_none()
        && !has_ended(pod)
        && spec.scheduler_name.as_deref().is_none_or(|n| n == NAME)
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    struct Fixture {
        desk: Desk,
        now: Instant,
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("d", name)
    }

    /// Asks for a CPU.
    fn pod(name: &str, uid: &str, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "d", "uid": uid, "labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
        });
        change(&mut pod);
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn plain(name: &str) -> Arc<Pod> {
        pod(name, name, |_| {})
    }

    fn on(node: &str) -> impl FnOnce(&mut Value) {
        move |pod| pod["spec"]["nodeName"] = node.into()
    }

    impl Fixture {
        fn new() -> Fixture {
            Fixture { desk: Desk::default(), now: Instant::now() }
        }

        fn node(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
            let mut node =
                json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "1", "pods": "9"}}});
            change(&mut node);
            let node = Arc::new(serde_json::from_value(node).unwrap());
            self.desk.hear_node(name, Some(&node), self.now);
        }

        fn hear(&mut self, pod: &Arc<Pod>) {
            let key = skiff_client::key_of(&**pod);
            self.desk.hear_pod(&key, Some(pod), self.now);
        }

        fn gone(&mut self, name: &str) {
            self.desk.hear_pod(&key(name), None, self.now);
        }

        /// `pod on node`, `pod for victims on node`, `pod waits`, or nothing.
        fn next(&mut self) -> String {
            let name = |pod: &Pod| pod.metadata.name.clone().unwrap_or_default();
            match self.desk.next(|_| None, self.now) {
                Next::Bind { pod, node, .. } => format!("{} on {node}", name(&pod)),
                Next::Refused { pod, why } => match why.nomination {
                    Nomination::Node(preemption) => {
                        let victims: Vec<&str> =
                            preemption.victims.iter().map(|victim| victim.key.name.as_str()).collect();
                        format!("{} for {} on {}", name(&pod), victims.join(" "), preemption.node)
                    }
                    _ => format!("{} waits", name(&pod)),
                },
                Next::Later(_) => String::new(),
            }
        }

        fn later(&mut self) {
            self.now += std::time::Duration::from_secs(11);
        }

        fn waiting_for(&self, name: &str) -> Option<&str> {
            self.desk.cluster.nominations.node_of(&key(name))
        }
    }

    /// Asks for a CPU, and is more important than others.
    fn important(name: &str, priority: i32, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
        pod(name, name, |pod| {
            pod["spec"]["priority"] = priority.into();
            change(pod);
        })
    }

    fn nominated(node: &str) -> impl FnOnce(&mut Value) {
        move |pod| pod["status"] = json!({"nominatedNodeName": node})
    }

    #[test]
    fn a_pod_takes_its_room_before_the_api_says_so_and_gives_it_back_if_its_binding_fails() {
        let mut f = Fixture::new();
        f.node("n", |_| {});
        f.hear(&plain("a"));
        f.hear(&plain("b"));
        assert_eq!([f.next(), f.next(), f.next()], ["a on n", "b waits", ""]);
        f.hear(&plain("a"));
        assert_eq!(f.next(), "", "a change of its status while it is being bound");
        f.desk.hear_failure(&key("a"), "a", f.now);
        f.now += std::time::Duration::from_secs(1);
        assert_eq!([f.next(), f.next()].concat().matches("waits").count(), 1, "one of them has the room");
    }

    #[test]
    fn a_pod_that_leaves_makes_room_for_one_that_waits() {
        let mut f = Fixture::new();
        f.node("n", |_| {});
        f.hear(&pod("a", "a", on("n")));
        f.hear(&plain("b"));
        assert_eq!(f.next(), "b waits");
        f.now += std::time::Duration::from_secs(1);
        f.node("n", |n| n["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]));
        assert_eq!(f.next(), "", "a heartbeat helps nobody");
        f.hear(&pod("other", "o", on("n")));
        assert_eq!(f.next(), "", "nor does one more pod");
        f.gone("other");
        assert_eq!(f.next(), "", "nor one that left too little");
        f.hear(&pod("a", "a", |pod| pod["status"]["phase"] = "Succeeded".into()));
        assert_eq!(f.next(), "b on n");
    }

    #[test]
    fn a_pod_that_wants_to_be_near_another_waits_until_that_is_placed() {
        let mut f = Fixture::new();
        f.node("n", |n| {
            n["metadata"]["labels"] = json!({"kubernetes.io/hostname": "n"});
            n["status"]["allocatable"]["cpu"] = "4".into();
        });
        let term = json!([{"labelSelector": {"matchLabels": {"app": "b"}}, "topologyKey": "kubernetes.io/hostname"}]);
        f.hear(&pod("a", "a", |pod| {
            pod["spec"]["affinity"] =
                json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}});
        }));
        assert_eq!(f.next(), "a waits");
        f.now += std::time::Duration::from_secs(1);
        f.hear(&plain("b"));
        assert_eq!([f.next(), f.next()], ["b on n", "a on n"]);
    }

    #[test]
    fn a_pod_that_is_replaced_under_its_name_is_another() {
        let mut f = Fixture::new();
        f.node("n", |_| {});
        f.hear(&plain("a"));
        assert_eq!(f.next(), "a on n");
        f.hear(&pod("a", "second", |_| {}));
        assert_eq!(f.next(), "a on n", "the room of the first is the second's");
        f.desk.hear_failure(&key("a"), "a", f.now);
        f.now += std::time::Duration::from_secs(1);
        f.hear(&plain("b"));
        assert_eq!(f.next(), "b waits", "what became of the first is not the second's");
    }

    #[test]
    fn only_pods_of_this_scheduler_that_may_be_placed_are() {
        let mut f = Fixture::new();
        f.node("n", |n| n["status"]["allocatable"]["cpu"] = "9".into());
        for (field, value) in [("schedulerName", json!("other")), ("schedulingGates", json!([{"name": "g"}]))]
        {
            f.hear(&pod("a", "a", |pod| pod["spec"][field] = value));
            assert_eq!(f.next(), "");
        }
        f.hear(&plain("a"));
        f.hear(&pod("a", "a", |pod| pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into()));
        assert_eq!(f.next(), "", "it is being deleted");
    }

    #[test]
    fn a_pod_waits_for_the_room_that_is_made_for_it_and_others_leave_it_that() {
        let mut f = Fixture::new();
        f.node("n", |_| {});
        f.hear(&pod("a", "a", on("n")));
        f.hear(&important("b", 10, |_| {}));
        assert_eq!(f.next(), "b for a on n");
        assert_eq!(f.waiting_for("b"), Some("n"));
        f.hear(&important("b", 10, |pod| pod["status"] = json!({"qosClass": "Burstable"})));
        assert_eq!(f.waiting_for("b"), Some("n"), "the API does not say so yet");
        f.hear(&important("b", 10, nominated("n")));
        assert_eq!(f.next(), "", "what the API says of it is no news");
        f.hear(&important("c", 10, |_| {}));
        assert_eq!(f.next(), "c waits", "a makes room for one only");
        f.hear(&important("b", 10, |pod| {
            nominated("n")(pod);
            pod["metadata"]["labels"]["changed"] = "yes".into();
        }));
        assert_eq!(f.next(), "b waits", "a is still there, and enough");
        f.later();
        f.gone("a");
        f.hear(&plain("d"));
        let mut order = [f.next(), f.next(), f.next()];
        order.sort();
        assert_eq!(order, ["b on n", "c waits", "d waits"]);
        assert_eq!(f.waiting_for("b"), None);
    }

    #[test]
    fn a_pod_that_could_preempt_is_woken_by_a_node_where_it_can() {
        let mut f = Fixture::new();
        f.node("n", |n| n["spec"]["unschedulable"] = true.into());
        f.hear(&pod("a", "a", on("n")));
        f.hear(&important("b", 10, |_| {}));
        f.hear(&important("never", 10, |pod| pod["spec"]["preemptionPolicy"] = "Never".into()));
        f.hear(&plain("d"));
        let mut order = [f.next(), f.next(), f.next()];
        order.sort();
        assert_eq!(order, ["b waits", "d waits", "never waits"]);
        f.later();
        f.node("n", |_| {});
        assert_eq!([f.next(), f.next()], ["b for a on n", ""], "it is full for the others");
    }

    #[test]
    fn a_pod_that_leaves_something_that_may_be_preempted_wakes_who_may() {
        let mut f = Fixture::new();
        f.node("n", |n| n["status"]["allocatable"]["cpu"] = "2".into());
        f.hear(&pod("low", "low", on("n")));
        f.hear(&important("high", 20, on("n")));
        let two = |pod: &mut Value| {
            pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "2".into();
        };
        f.hear(&important("b", 10, two));
        assert_eq!(f.next(), "b waits");
        f.later();
        f.gone("high");
        assert_eq!(f.next(), "b for low on n");
    }

    #[test]
    fn a_victim_that_changes_before_it_is_deleted_is_still_one() {
        let mut f = Fixture::new();
        f.node("n", |_| {});
        f.node("m", |_| {});
        f.hear(&pod("a", "a", on("n")));
        f.hear(&important("other", 10, on("m")));
        f.hear(&important("b", 10, |_| {}));
        assert_eq!(f.next(), "b for a on n");
        f.hear(&pod("a", "a", |pod| {
            on("n")(pod);
            pod["metadata"]["labels"]["changed"] = "yes".into();
        }));
        f.later();
        f.hear(&important("b", 10, nominated("n")));
        f.hear(&important("b", 10, |pod| {
            nominated("n")(pod);
            pod["metadata"]["labels"]["changed"] = "yes".into();
        }));
        assert_eq!(f.next(), "b waits", "a is going for it");
    }

    #[test]
    fn a_less_important_pod_is_displaced_and_looks_for_another_node() {
        let mut f = Fixture::new();
        f.node("n", |_| {});
        f.hear(&pod("a", "a", on("n")));
        f.hear(&important("b", 10, |_| {}));
        assert_eq!(f.next(), "b for a on n");
        f.hear(&important("c", 20, |_| {}));
        assert_eq!(f.next(), "c for a on n");
        assert_eq!((f.waiting_for("b"), f.waiting_for("c")), (None, Some("n")));
        f.later();
        assert_eq!(f.next(), "b waits", "c is to have the room");
        f.gone("a");
        f.later();
        assert_eq!([f.next(), f.next()], ["c on n", "b waits"]);
    }

    #[test]
    fn a_pod_whose_victims_could_not_be_deleted_tries_again() {
        let mut f = Fixture::new();
        f.node("n", |_| {});
        f.hear(&pod("a", "a", on("n")));
        f.hear(&important("b", 10, |_| {}));
        let Next::Refused { why: Unschedulable { nomination: Nomination::Node(preemption), .. }, .. } =
            f.desk.next(|_| None, f.now)
        else {
            panic!("no preemption")
        };
        f.later();
        assert_eq!(f.next(), "");
        f.desk.hear_spared(&key("b"), &preemption.victims, f.now);
        assert_eq!(f.next(), "b for a on n");
    }

    #[test]
    fn the_room_that_a_pod_waits_for_is_that_of_others_once_it_does_not() {
        let leaving: [&dyn Fn(&mut Fixture); 4] = [
            &|f| f.gone("b"),
            &|f| f.hear(&important("b", 10, |_| {})),
            &|f| f.hear(&important("b", 10, nominated("elsewhere"))),
            &|f| f.hear(&important("b", 10, on("elsewhere"))),
        ];
        for leave in leaving {
            let mut f = Fixture::new();
            f.node("n", |_| {});
            // It is being decided about, and so out of the way.
            f.hear(&important("b", 10, nominated("n")));
            f.desk.queue.pop(f.now).unwrap();
            f.hear(&plain("c"));
            assert_eq!(f.next(), "c waits");
            f.later();
            assert_eq!(f.next(), "");
            leave(&mut f);
            assert_eq!(f.next(), "c on n");
        }
    }

    #[test]
    fn a_pod_is_woken_by_its_claim_and_its_volume_and_by_no_other_claim() {
        let mut f = Fixture::new();
        f.node("n", |_| {});
        f.hear(&pod("a", "a", |pod| {
            pod["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
        }));
        assert_eq!(f.next(), "a waits");
        f.later();
        let claim = |name: &str| {
            let claim = json!({"spec": {"volumeName": "v"}, "metadata": {"name": name, "namespace": "d",
                "annotations": {"pv.kubernetes.io/bind-completed": "yes"}}});
            Arc::new(serde_json::from_value::<PersistentVolumeClaim>(claim).unwrap())
        };
        f.desk.hear_claim(&key("other"), Some(&claim("other")), f.now);
        assert_eq!(f.next(), "");
        f.desk.hear_claim(&key("c"), Some(&claim("c")), f.now);
        assert_eq!(f.next(), "a waits", "its volume is not there");
        f.later();
        let volume = serde_json::from_value(json!({"metadata": {"name": "v"}})).unwrap();
        f.desk.hear_volume("v", Some(&Arc::new(volume)), f.now);
        assert_eq!(f.next(), "a on n");
    }

    #[test]
    fn a_pod_does_not_wait_for_a_node_that_is_no_longer_one_for_it() {
        let changes: [&dyn Fn(&mut Fixture); 2] = [&|f| f.desk.hear_node("n", None, f.now), &|f| {
            f.node("n", |node| node["spec"]["unschedulable"] = true.into())
        }];
        for change in changes {
            let mut f = Fixture::new();
            f.node("n", |_| {});
            f.hear(&pod("a", "a", on("n")));
            f.hear(&important("b", 10, |_| {}));
            assert_eq!(f.next(), "b for a on n");
            f.later();
            change(&mut f);
            assert_eq!(f.next(), "b waits");
            assert_eq!(f.waiting_for("b"), None);
        }
    }
}
