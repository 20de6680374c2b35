use std::collections::HashMap;

use serde_json::json;

use super::*;
use crate::history::REVISION_HASH;

const NOW: i64 = 1000;

fn at(second: i64) -> String {
    Timestamp::from_second(second).unwrap().to_string()
}

/// A set of three with one claim each, of which a test changes what it is about.
fn set(change: Value) -> StatefulSet {
    let mut set = json!({
        "metadata": {"name": "web", "namespace": "n", "uid": "set", "generation": 7},
        "spec": {"replicas": 3, "serviceName": "svc", "selector": {"matchLabels": {"a": "1"}}, "minReadySeconds": 10,
            "podManagementPolicy": "OrderedReady",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"b": "2"}}, "spec": {}}],
            "template": {"metadata": {"labels": {"a": "1"}}, "spec": {"containers": []}}},
        "status": {"replicas": 0}});
    for (field, value) in change.as_object().into_iter().flatten() {
        set["spec"][field] = value.clone();
    }
    serde_json::from_value(set).unwrap()
}

fn revision(name: &str) -> Revision {
    let template = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": name}]}});
    let revision = json!({"metadata": {"name": name}, "revision": 1,
        "data": {"spec": {"template": template}}});
    Revision::new(&set(json!({})), &serde_json::from_value(revision).unwrap())
}

/// What a test says of a pod: its revision, whether it is ready (and for how long), its phase, whether it goes.
#[derive(Clone, Copy)]
struct Is {
    revision: &'static str,
    ready_s: Option<i64>,
    phase: &'static str,
    is_going: bool,
}

const NEW: Is = Is { revision: "new", ready_s: Some(60), phase: "Running", is_going: false };
const OLD: Is = Is { revision: "old", ..NEW };
const UNREADY: Is = Is { ready_s: None, ..NEW };
const TOO_YOUNG: Is = Is { ready_s: Some(4), ..NEW };
const PENDING: Is = Is { phase: "Pending", ..UNREADY };
const FAILED: Is = Is { phase: "Failed", ..UNREADY };
const SUCCEEDED: Is = Is { phase: "Succeeded", ..UNREADY };
const GOING: Is = Is { is_going: true, ..NEW };

fn pod(name: &str, is: Is) -> Pod {
    let ready =
        is.ready_s.map(|s| json!({"type": "Ready", "status": "True", "lastTransitionTime": at(NOW - s)}));
    let labels = json!({"a": "1", REVISION_HASH: is.revision, "statefulset.kubernetes.io/pod-name": name});
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "n", "uid": name, "labels": labels,
            "deletionTimestamp": is.is_going.then(|| at(NOW))},
        "spec": {"containers": [], "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": format!("data-{name}")}}]},
        "status": {"phase": is.phase, "conditions": ready.into_iter().collect::<Vec<_>>()}}))
    .unwrap()
}

fn claim(name: &str, owners: Value) -> PersistentVolumeClaim {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n", "ownerReferences": owners}}))
        .unwrap()
}

/// What there is: pods by number, and claims.
struct World {
    set: StatefulSet,
    current: Revision,
    update: Revision,
    pods: Vec<Arc<Pod>>,
    claims: HashMap<String, Arc<PersistentVolumeClaim>>,
}

fn world(set: StatefulSet, pods: &[(i64, Is)]) -> World {
    let pods = pods.iter().map(|(n, is)| Arc::new(pod(&format!("web-{n}"), *is))).collect();
    let named = (0..9).map(|n| format!("data-web-{n}"));
    let claims = named.map(|name| (name.clone(), Arc::new(claim(&name, json!([]))))).collect();
    World { set, current: revision("old"), update: revision("new"), pods, claims }
}

impl World {
    fn with<T>(&self, ask: impl FnOnce(&Facts<'_>) -> T) -> T {
        let claims = |name: &str| self.claims.get(name).cloned();
        ask(&Facts {
            set: &self.set,
            current: &self.current,
            update: &self.update,
            n_collisions: 0,
            pods: &self.pods,
            claims: &claims,
            now: Timestamp::from_second(NOW).unwrap(),
        })
    }

    /// The plan, in words.
    fn plan(&self) -> Vec<String> {
        let plan = self.with(|facts| facts.plan());
        let name = |pod: &Pod| pod.metadata.name.clone().unwrap();
        let new = |pod: &core::Pod| Pod::of(pod.metadata.clone());
        let word = |step: &Step| match step {
            Step::Make(pod) => format!("make {} of {}", name(&new(pod)), revision_of(&new(pod))),
            Step::Delete(pod) => format!("delete {}", name(pod)),
            Step::Claims(pod) => format!("claims of {}", name(pod)),
            Step::Repair(pod) => format!("repair {}", name(pod)),
        };
        let mut words: Vec<String> = plan.wanted.iter().flatten().map(word).collect();
        words.extend(plan.disowned.iter().map(|pod| format!("disown claims of {}", name(pod))));
        words.extend(plan.surplus.iter().map(|pod| format!("delete {}", name(pod))));
        words.extend(plan.outdated.iter().map(|pod| format!("replace {}", name(pod))));
        words.extend(plan.awaited.iter().map(|claim| format!("await {claim}")));
        words
    }
}

#[track_caller]
fn check(change: Value, pods: &[(i64, Is)], wanted: &[&str]) {
    assert_eq!(world(set(change), pods).plan(), wanted);
}

#[test]
fn pods_are_made_in_order_each_when_the_one_before_is_available() {
    check(json!({}), &[], &["make web-0 of new"]);
    for waiting in [UNREADY, TOO_YOUNG, GOING, PENDING] {
        check(json!({}), &[(0, waiting)], &[]);
    }
    check(json!({}), &[(0, NEW)], &["make web-1 of new"]);
    check(json!({}), &[(0, NEW), (2, NEW)], &["make web-1 of new"]);
    check(json!({}), &[(0, NEW), (1, NEW), (2, NEW)], &[]);
    check(json!({"ordinals": {"start": 5}}), &[(5, NEW)], &["make web-6 of new"]);
    check(json!({"replicas": 0}), &[], &[]);
}

#[test]
fn a_parallel_set_makes_all_at_once_and_waits_for_none_of_them() {
    let parallel = json!({"podManagementPolicy": "Parallel"});
    let all = ["make web-0 of new", "make web-1 of new", "make web-2 of new"];
    check(parallel.clone(), &[], &all);
    check(parallel.clone(), &[(0, UNREADY)], &all[1..]);
    check(
        parallel,
        &[(0, UNREADY), (1, NEW), (2, NEW), (3, NEW), (4, UNREADY), (5, GOING)],
        &["delete web-4", "delete web-3"],
    );
    let many = json!({"podManagementPolicy": "Parallel", "replicas": i32::MAX});
    assert_eq!(world(set(many), &[]).plan().len(), BURST);
}

#[test]
fn a_pod_that_ended_is_deleted_and_the_next_ones_wait() {
    for ended in [FAILED, SUCCEEDED] {
        check(json!({}), &[(0, NEW), (1, ended)], &["delete web-1"]);
        check(json!({}), &[(0, NEW), (1, Is { is_going: true, ..ended })], &[]);
    }
    let parallel = json!({"podManagementPolicy": "Parallel"});
    check(parallel, &[(0, FAILED), (1, NEW)], &["delete web-0", "make web-2 of new"]);
}

#[test]
fn pods_go_from_the_last_one_on_each_when_the_one_after_it_is_gone() {
    let two = json!({"replicas": 0});
    check(two.clone(), &[(0, NEW), (1, NEW), (2, NEW)], &["delete web-2"]);
    check(two.clone(), &[(0, NEW), (1, NEW), (2, GOING)], &[]);
    check(two.clone(), &[(0, NEW), (1, UNREADY), (2, NEW)], &["delete web-2"]);
    check(two.clone(), &[(0, NEW), (1, UNREADY), (2, UNREADY)], &[]);
    check(two, &[(0, NEW), (1, NEW), (2, UNREADY)], &["delete web-2"]);
    check(json!({"replicas": 1}), &[(0, UNREADY), (1, NEW)], &[]);
    check(json!({"ordinals": {"start": 1}, "replicas": 1}), &[(0, NEW), (1, NEW)], &["delete web-0"]);
}

#[test]
fn a_template_is_rolled_out_from_the_last_pod_on_one_at_a_time() {
    check(json!({}), &[(0, OLD), (1, OLD), (2, OLD)], &["replace web-2"]);
    check(json!({}), &[(0, OLD), (1, OLD)], &["make web-2 of new"]);
    check(json!({}), &[(0, OLD), (1, OLD), (2, NEW)], &["replace web-1"]);
    check(json!({}), &[(0, OLD), (1, OLD), (2, GOING)], &[]);
    let parallel = json!({"podManagementPolicy": "Parallel"});
    check(parallel.clone(), &[(0, OLD), (1, OLD), (2, UNREADY)], &[]);
    check(parallel, &[(0, OLD), (1, OLD), (2, OLD)], &["replace web-2"]);
    check(json!({"updateStrategy": {"type": "OnDelete"}}), &[(0, OLD), (1, OLD), (2, OLD)], &[]);
}

#[test]
fn a_rollout_takes_as_many_pods_as_may_be_missing() {
    let rolling = |most: Value, policy: &str| {
        let strategy =
            json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": most}});
        json!({"podManagementPolicy": policy, "updateStrategy": strategy})
    };
    let old = [(0, OLD), (1, OLD), (2, OLD)];
    check(rolling(json!(2), "OrderedReady"), &old, &["replace web-2", "replace web-1"]);
    // Rounded down, and one at least.
    check(rolling(json!("67%"), "OrderedReady"), &old, &["replace web-2", "replace web-1"]);
    check(rolling(json!("10%"), "OrderedReady"), &old, &["replace web-2"]);
    let one_unwell = [(0, OLD), (1, OLD), (2, UNREADY)];
    check(rolling(json!(2), "Parallel"), &one_unwell, &["replace web-1"]);
    check(rolling(json!(1), "Parallel"), &one_unwell, &[]);
}

#[test]
fn pods_below_the_partition_keep_and_get_the_old_template() {
    let canary = json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}});
    check(canary.clone(), &[(0, OLD), (1, OLD), (2, OLD)], &["replace web-2"]);
    check(canary.clone(), &[(0, OLD), (1, OLD), (2, NEW)], &[]);
    check(canary.clone(), &[(0, OLD)], &["make web-1 of old"]);
    check(canary, &[(0, OLD), (1, OLD)], &["make web-2 of new"]);
    check(json!({"updateStrategy": {"type": "OnDelete"}}), &[(0, OLD)], &["make web-1 of new"]);
}

#[test]
fn a_pod_is_who_its_name_says() {
    let mut world = world(set(json!({})), &[]);
    world.update = revision("new");
    let plan = world.with(|facts| facts.plan());
    let [Step::Make(pod)] = plan.wanted[0].as_slice() else { panic!("{:?}", plan.wanted) };
    let pod = serde_json::to_value(pod).unwrap();
    assert_eq!(pod["metadata"]["name"], "web-0");
    assert_eq!(pod["metadata"]["generateName"], "web-");
    assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], "set");
    let labels = json!({"a": "1", "statefulset.kubernetes.io/pod-name": "web-0", "apps.kubernetes.io/pod-index": "0",
        REVISION_HASH: "new"});
    assert_eq!(pod["metadata"]["labels"], labels);
    assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&json!("web-0"), &json!("svc")));
    assert_eq!(pod["spec"]["containers"][0]["name"], "new");
    let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}}]);
    assert_eq!(pod["spec"]["volumes"], volumes);
    let claims = crate::statefulset::identity::new_claims(&world.set, 0);
    let meta = serde_json::to_value(&claims[0].metadata).unwrap();
    assert_eq!(meta, json!({"name": "data-web-0", "namespace": "n", "labels": {"a": "1", "b": "2"}}));
}

#[test]
fn a_pod_that_lost_its_identity_or_its_storage_is_repaired_when_its_turn_comes() {
    let mut unlabelled = pod("web-0", NEW);
    unlabelled.metadata.labels.as_mut().unwrap().remove("statefulset.kubernetes.io/pod-name");
    let mut unmounted = pod("web-0", NEW);
    unmounted.spec.as_mut().unwrap().volumes = None;
    for broken in [unlabelled, unmounted] {
        let mut world = world(set(json!({"replicas": 1})), &[]);
        world.pods = vec![Arc::new(broken.clone())];
        assert_eq!(world.plan(), ["repair web-0"]);
        let mut unready = broken;
        unready.status = pod("web-0", UNREADY).status;
        world.pods = vec![Arc::new(unready)];
        assert_eq!(world.plan(), Vec::<String>::new());
    }
}

#[test]
fn a_pending_pod_gets_the_claims_that_it_lacks() {
    let mut world = world(set(json!({})), &[(0, PENDING)]);
    assert_eq!(world.plan(), Vec::<String>::new());
    world.claims.clear();
    assert_eq!(world.plan(), ["claims of web-0"]);
    let mut going = claim("data-web-0", json!([]));
    going.metadata.deletion_timestamp = serde_json::from_value(json!(at(NOW))).unwrap();
    world.claims.insert("data-web-0".into(), Arc::new(going));
    assert_eq!(world.plan(), ["claims of web-0", "await data-web-0"]);
}

/// What the claim of a pod of a number is owned by, for a set of one with this policy.
fn owners(when_deleted: &str, when_scaled: &str, ordinal: i64) -> Vec<String> {
    let policy = json!({"whenDeleted": when_deleted, "whenScaled": when_scaled});
    let set = set(json!({"replicas": 1, "persistentVolumeClaimRetentionPolicy": policy}));
    let pod = pod(&format!("web-{ordinal}"), NEW);
    let claim = claim("data-web-0", json!([]));
    let settled = claims::settled(&claim, &set, &pod);
    assert_eq!(claims::is_settled(&claim, &set, &pod), settled.is_empty());
    let after = PersistentVolumeClaim {
        metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
            owner_references: Some(settled.clone()),
            ..claim.metadata.clone()
        },
        ..claim
    };
    assert!(claims::is_settled(&after, &set, &pod), "what was done is done");
    assert!(settled.iter().all(|owner| owner.controller == Some(true)));
    settled.into_iter().map(|owner| owner.uid).collect()
}

#[test]
fn a_claim_is_owned_by_what_it_is_to_go_with() {
    for ordinal in [0, 1] {
        assert_eq!(owners("Retain", "Retain", ordinal), Vec::<String>::new());
        assert_eq!(owners("Delete", "Retain", ordinal), ["set"]);
    }
    assert_eq!(owners("Retain", "Delete", 0), Vec::<String>::new());
    assert_eq!(owners("Retain", "Delete", 1), ["web-1"]);
    assert_eq!(owners("Delete", "Delete", 0), ["set"]);
    assert_eq!(owners("Delete", "Delete", 1), ["web-1"]);
}

fn owner(kind: &str, name: &str, uid: &str, controls: bool) -> Value {
    let version = if kind == "Pod" { "v1" } else { "apps/v1" };
    json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": controls})
}

#[test]
fn claims_of_others_and_of_earlier_objects_are_left_alone() {
    let policy = json!({"whenDeleted": "Delete", "whenScaled": "Delete"});
    let (set, pod) =
        (set(json!({"replicas": 1, "persistentVolumeClaimRetentionPolicy": policy})), pod("web-0", NEW));
    let is_settled = |owners: Value| claims::is_settled(&claim("data-web-0", owners), &set, &pod);
    assert!(is_settled(json!([owner("StatefulSet", "web", "another", true)])));
    assert!(is_settled(json!([owner("Pod", "web-0", "another", true)])));
    assert!(is_settled(json!([owner("Else", "x", "y", true)])));
    let both = json!([owner("Else", "x", "y", true), owner("StatefulSet", "web", "set", true)]);
    assert!(!is_settled(both.clone()));
    let left = claims::settled(&claim("data-web-0", both), &set, &pod);
    assert_eq!(left.iter().map(|owner| owner.uid.as_str()).collect::<Vec<_>>(), ["y"]);
    assert!(!is_settled(json!([owner("StatefulSet", "web", "set", false)])), "it must control it");
}

#[test]
fn a_pod_does_not_take_a_claim_that_goes_with_the_pod_before_it() {
    let policy = json!({"whenDeleted": "Retain", "whenScaled": "Delete"});
    let mut world = world(set(json!({"replicas": 1, "persistentVolumeClaimRetentionPolicy": policy})), &[]);
    let of_earlier = claim("data-web-0", json!([owner("Pod", "web-0", "earlier", true)]));
    world.claims.insert("data-web-0".into(), Arc::new(of_earlier));
    assert_eq!(world.plan(), ["await data-web-0"]);
    world.claims.clear();
    assert_eq!(world.plan(), ["make web-0 of new"]);
}

#[test]
fn claims_of_surplus_pods_are_disowned_before_the_pods_go() {
    let policy = json!({"whenDeleted": "Retain", "whenScaled": "Delete"});
    let change = json!({"replicas": 1, "persistentVolumeClaimRetentionPolicy": policy});
    check(change, &[(0, NEW), (1, NEW)], &["disown claims of web-1", "delete web-1"]);
}

fn counts(status: &StatefulSetStatus) -> [i32; 5] {
    let or_none = |count: Option<i32>| count.unwrap_or(0);
    [
        status.replicas,
        or_none(status.ready_replicas),
        or_none(status.available_replicas),
        or_none(status.current_replicas),
        or_none(status.updated_replicas),
    ]
}

#[test]
fn the_status_counts_pods_and_says_which_template_they_are_of() {
    let world = world(set(json!({})), &[(0, OLD), (1, TOO_YOUNG), (2, UNREADY), (3, GOING)]);
    let status = world.with(|facts| facts.status(0));
    assert_eq!(counts(&status), [4, 3, 2, 1, 2]);
    assert_eq!(
        (status.current_revision.as_deref(), status.update_revision.as_deref()),
        (Some("old"), Some("new"))
    );
    assert_eq!((status.observed_generation, status.collision_count), (Some(7), Some(0)));
    assert_eq!(world.with(|facts| facts.look_again_in_s(&status)), Some(6));
    assert_eq!(counts(&world.with(|facts| facts.status(1)))[3], 0);
}

#[test]
fn a_rollout_is_complete_when_all_pods_are_ready_and_of_the_new_template() {
    let complete = world(set(json!({})), &[(0, NEW), (1, NEW), (2, NEW)]);
    let status = complete.with(|facts| facts.status(0));
    assert_eq!(counts(&status), [3, 3, 3, 3, 3]);
    assert_eq!(status.current_revision.as_deref(), Some("new"));
    for pods in [[(0, NEW), (1, NEW), (2, OLD)], [(0, NEW), (1, NEW), (2, UNREADY)]] {
        let status = world(set(json!({})), &pods).with(|facts| facts.status(0));
        assert_eq!(status.current_revision.as_deref(), Some("old"));
    }
    let on_delete = set(json!({"updateStrategy": {"type": "OnDelete"}}));
    let status = world(on_delete, &[(0, NEW), (1, NEW), (2, NEW)]).with(|facts| facts.status(0));
    assert_eq!(status.current_revision.as_deref(), Some("old"));
}

#[test]
fn a_status_is_written_when_it_says_something_new() {
    let world = world(set(json!({})), &[(0, OLD)]);
    let status = world.with(|facts| facts.status(0));
    assert!(is_news(&status, None));
    let with = |change: &dyn Fn(&mut StatefulSetStatus)| {
        let mut old = status.clone();
        change(&mut old);
        is_news(&status, Some(&old))
    };
    assert!(!with(&|_| {}));
    assert!(!with(&|old| old.conditions = Some(Vec::new())));
    assert!(!with(&|old| old.collision_count = None));
    assert!(!with(&|old| old.observed_generation = Some(8)));
    assert!(with(&|old| old.observed_generation = Some(6)));
    assert!(with(&|old| old.available_replicas = Some(0)));
    assert!(with(&|old| old.update_revision = None));
}

#[test]
fn the_oldest_revisions_go_that_nothing_is_of() {
    let revision = |name: &str| -> Arc<ControllerRevision> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "revision": 1})).unwrap())
    };
    let all: Vec<_> = ["a", "b", "old", "c", "d", "new"].map(revision).into();
    let pods = [Arc::new(pod("web-0", Is { revision: "b", ..NEW }))];
    let gone = |limit: i64| {
        let set = set(json!({"revisionHistoryLimit": limit}));
        let gone = surplus_revisions(&set, &all, &pods, ["old", "new"]);
        gone.iter().map(|r| r.metadata.name.clone().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(gone(3), Vec::<String>::new());
    assert_eq!(gone(1), ["a", "c"]);
    assert_eq!(gone(0), ["a", "c", "d"]);
    assert_eq!(gone(-1), Vec::<String>::new(), "all are kept");
}

#[test]
fn a_revision_without_a_template_leaves_that_of_the_set() {
    let image = json!({"metadata": {}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let set = set(json!({"template": image}));
    let empty: ControllerRevision =
        serde_json::from_value(json!({"metadata": {"name": "r"}, "revision": 1, "data": {}})).unwrap();
    let pod = new_stateful_pod(&set, &Revision::new(&set, &empty), 0);
    let containers = pod.spec.unwrap_or_default().containers;
    assert_eq!(containers.first().and_then(|c| c.image.as_deref()), Some("i"));
}
