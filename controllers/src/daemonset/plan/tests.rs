use serde_json::{Value, json};

use super::*;

const NOW: i64 = 1000;

/// What an informer holds of a new pod.
fn viewed(spec: Option<PodSpec>) -> Option<skiff_client::view::PodSpec> {
    serde_json::from_value(serde_json::to_value(spec).unwrap()).unwrap()
}

fn at(second: i64) -> String {
    Timestamp::from_second(second).unwrap().to_string()
}

fn set(rolling: Value) -> DaemonSet {
    let strategy = match rolling.is_null() {
        true => json!({"type": "OnDelete"}),
        false => json!({"type": "RollingUpdate", "rollingUpdate": rolling}),
    };
    serde_json::from_value(json!({
        "metadata": {"name": "d", "namespace": "n", "generation": 7,
            "annotations": {TEMPLATE_GENERATION_OF_SET: "3"}},
        "spec": {"selector": {"matchLabels": {"a": "1"}}, "updateStrategy": strategy, "minReadySeconds": 10,
            "template": {"metadata": {"labels": {"a": "1"}}, "spec": {"containers": []}}}}))
    .unwrap()
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
const NEW_UNREADY: Is = Is { ready_s: None, ..NEW };
const NEW_TOO_YOUNG: Is = Is { ready_s: Some(4), ..NEW };
const OLD: Is = Is { revision: "old", ..NEW };
const OLD_UNREADY: Is = Is { ready_s: None, ..OLD };
const FAILED: Is = Is { phase: "Failed", ready_s: None, ..NEW };
const GOING: Is = Is { is_going: true, ..NEW };

fn pod(name: &str, node: &str, is: Is) -> Arc<Pod> {
    let ready =
        is.ready_s.map(|s| json!({"type": "Ready", "status": "True", "lastTransitionTime": at(NOW - s)}));
    let pod = json!({
        "metadata": {"name": name, "namespace": "n", "labels": {"a": "1", REVISION_HASH: is.revision},
            "creationTimestamp": at(NOW - 100), "deletionTimestamp": is.is_going.then(|| at(NOW))},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": is.phase, "conditions": ready.into_iter().collect::<Vec<_>>()}});
    Arc::new(serde_json::from_value(pod).unwrap())
}

/// A cluster: each node with what the set thinks of it, and its pods, named after the node and their place on it.
struct Cluster {
    nodes: BTreeMap<String, Verdict>,
    pods: BTreeMap<String, OnNode>,
}

fn cluster(nodes: &[(&str, Verdict, &[Is])]) -> Cluster {
    let named = |node: &str, pods: &[Is]| -> Vec<Arc<Pod>> {
        pods.iter().enumerate().map(|(at, is)| pod(&format!("{node}{at}"), node, *is)).collect()
    };
    let pods: Vec<_> = nodes.iter().flat_map(|(node, _, pods)| named(node, pods)).collect();
    Cluster {
        nodes: nodes.iter().map(|(node, verdict, _)| ((*node).to_owned(), *verdict)).collect(),
        pods: by_node(&pods),
    }
}

impl Cluster {
    fn facts<'f>(&'f self, set: &'f DaemonSet) -> Facts<'f> {
        let now = Timestamp::from_second(NOW).unwrap();
        Facts { set, hash: "new", nodes: &self.nodes, pods: &self.pods, now }
    }
}

fn shown(changes: &Changes) -> (Vec<&str>, Vec<&str>) {
    let mut delete: Vec<&str> =
        changes.delete.iter().map(|pod| pod.metadata.name.as_deref().unwrap()).collect();
    delete.sort_unstable();
    (changes.make.iter().map(String::as_str).collect(), delete)
}

#[track_caller]
fn manages(rolling: Value, nodes: &[(&str, Verdict, &[Is])], make: &[&str], delete: &[&str]) {
    let (set, cluster) = (set(rolling), cluster(nodes));
    let changes = cluster.facts(&set).manage(&mut Backoffs::default());
    assert_eq!(shown(&changes), (make.to_vec(), delete.to_vec()));
}

#[track_caller]
fn rolls(rolling: Value, nodes: &[(&str, Verdict, &[Is])], make: &[&str], delete: &[&str]) {
    let (set, cluster) = (set(rolling), cluster(nodes));
    let changes = cluster.facts(&set).roll();
    assert_eq!(shown(&changes), (make.to_vec(), delete.to_vec()));
}

use Verdict::{Keep, No, Run};

#[tokio::test]
async fn every_node_that_the_set_is_for_gets_one_pod() {
    let down = || json!({"maxUnavailable": 1, "maxSurge": 0});
    manages(down(), &[("a", Run, &[]), ("b", Run, &[OLD]), ("c", Keep, &[]), ("d", No, &[])], &["a"], &[]);
    manages(down(), &[("a", Keep, &[NEW]), ("b", No, &[NEW, GOING])], &[], &["b0"]);
    manages(down(), &[("a", Run, &[NEW, NEW, OLD])], &[], &["a1", "a2"]);
    manages(down(), &[("a", Run, &[GOING])], &[], &[]);
}

#[tokio::test]
async fn a_pod_that_failed_is_deleted_and_the_next_only_after_a_while() {
    let (set, cluster) = (set(Value::Null), cluster(&[("a", Run, &[FAILED])]));
    let mut backoffs = Backoffs::default();
    let first = cluster.facts(&set).manage(&mut backoffs);
    assert_eq!(shown(&first), (vec![], vec!["a0"]));
    let message = "Found failed daemon pod n/a0 on node a, will try to kill it";
    assert_eq!(first.events, [(EventType::Warning, "FailedDaemonPod", message.to_owned())]);
    let second = cluster.facts(&set).manage(&mut backoffs);
    assert_eq!(shown(&second), (vec![], vec![]));
    assert!(second.look_again.is_some());
}

#[tokio::test]
async fn a_pod_that_waits_for_a_node_that_is_gone_is_deleted() {
    let set = set(Value::Null);
    let mut waiting = (*pod("w", "", NEW)).clone();
    waiting.spec = viewed(template_for(&template(&set), &set, "new", "gone").spec);
    let bound = pod("b", "gone", NEW);
    let pods = by_node(&[Arc::new(waiting), bound]);
    let cluster = Cluster { nodes: BTreeMap::new(), pods };
    assert_eq!(shown(&cluster.facts(&set).manage(&mut Backoffs::default())), (vec![], vec!["w"]));
}

#[tokio::test]
async fn with_a_surge_an_old_pod_stays_until_the_new_one_is_available() {
    let up = || json!({"maxUnavailable": 0, "maxSurge": 1});
    manages(up(), &[("a", Run, &[OLD, NEW_UNREADY])], &[], &[]);
    manages(up(), &[("a", Run, &[OLD, NEW_TOO_YOUNG])], &[], &[]);
    manages(up(), &[("a", Run, &[OLD, NEW])], &[], &["a0"]);
    manages(up(), &[("a", Run, &[OLD_UNREADY, NEW_UNREADY])], &[], &["a0"]);
    manages(up(), &[("a", Run, &[OLD, NEW_UNREADY, OLD])], &[], &["a2"]);
    manages(up(), &[("a", Run, &[GOING])], &["a"], &[]);
}

#[test]
fn no_more_pods_are_missing_during_a_rollout_than_may_be() {
    let down = |most: Value| json!({"maxUnavailable": most, "maxSurge": 0});
    let all_old: [(&str, Verdict, &[Is]); 4] =
        [("a", Run, &[OLD]), ("b", Run, &[OLD]), ("c", Run, &[OLD]), ("d", Run, &[OLD])];
    rolls(down(json!(1)), &all_old, &[], &["a0"]);
    rolls(down(json!("30%")), &all_old, &[], &["a0", "b0"]);
    rolls(Value::Null, &all_old, &[], &[]);
    rolls(down(json!(1)), &[("a", Run, &[NEW_TOO_YOUNG]), ("b", Run, &[OLD])], &[], &[]);
    rolls(down(json!(1)), &[("a", Run, &[]), ("b", Run, &[OLD])], &[], &[]);
    rolls(down(json!(1)), &[("a", Run, &[NEW]), ("b", Run, &[OLD])], &[], &["b0"]);
    // What is of no use anyway goes, however many are missing.
    rolls(
        down(json!(1)),
        &[("a", Run, &[OLD_UNREADY]), ("b", Run, &[OLD_UNREADY]), ("c", Run, &[OLD])],
        &[],
        &["a0", "b0"],
    );
}

#[test]
fn no_more_pods_are_added_during_a_rollout_than_may_be() {
    let up = |most: Value| json!({"maxUnavailable": 0, "maxSurge": most});
    let all_old: [(&str, Verdict, &[Is]); 3] = [("a", Run, &[OLD]), ("b", Run, &[OLD]), ("c", Run, &[OLD])];
    rolls(up(json!(1)), &all_old, &["a"], &[]);
    rolls(up(json!("50%")), &all_old, &["a", "b"], &[]);
    rolls(up(json!(1)), &[("a", Run, &[OLD, NEW_UNREADY]), ("b", Run, &[OLD])], &[], &[]);
    rolls(up(json!(1)), &[("a", Run, &[OLD, NEW]), ("b", Run, &[OLD])], &["b"], &["a0"]);
    rolls(up(json!(1)), &[("a", Run, &[OLD_UNREADY]), ("b", Run, &[OLD_UNREADY])], &["a", "b"], &[]);
    // Where the set is no more, a pod stays until one is available where it is.
    rolls(up(json!(1)), &[("a", Keep, &[OLD]), ("b", Run, &[])], &[], &[]);
    rolls(up(json!(1)), &[("a", Keep, &[OLD]), ("b", Run, &[NEW])], &[], &["a0"]);
}

#[test]
fn a_pod_of_an_older_client_is_known_by_how_often_the_template_had_changed() {
    let mut known = (*pod("a0", "a", OLD)).clone();
    known.metadata.labels.as_mut().unwrap().insert(TEMPLATE_GENERATION.into(), "3".into());
    let (set, pods) = (set(json!({"maxUnavailable": 1, "maxSurge": 0})), by_node(&[Arc::new(known)]));
    let cluster = Cluster { nodes: BTreeMap::from([("a".to_owned(), Run)]), pods };
    assert_eq!(shown(&cluster.facts(&set).roll()), (vec![], vec![]));
    assert_eq!(cluster.facts(&set).status(true).0.updated_number_scheduled, Some(1));
}

#[test]
fn the_status_counts_nodes_by_the_oldest_pod_of_each() {
    let set = set(json!({"maxUnavailable": 1, "maxSurge": 0}));
    let cluster = cluster(&[
        ("a", Run, &[NEW]),
        ("b", Run, &[NEW_TOO_YOUNG]),
        ("c", Run, &[OLD_UNREADY]),
        ("d", Run, &[]),
        ("e", Keep, &[OLD]),
        ("f", No, &[]),
    ]);
    let (status, look_again_s) = cluster.facts(&set).status(true);
    let counts =
        [status.desired_number_scheduled, status.current_number_scheduled, status.number_misscheduled];
    assert_eq!(counts, [4, 3, 1]);
    assert_eq!((status.number_ready, status.number_available), (2, Some(1)));
    assert_eq!((status.updated_number_scheduled, status.number_unavailable), (Some(2), Some(3)));
    assert_eq!((status.observed_generation, look_again_s), (Some(7), Some(6)));
    assert_eq!(cluster.facts(&set).status(false).0.observed_generation, None, "not acted on as it now is");
}

fn judged(pod: Value, labels: Value, taints: Value) -> Verdict {
    let mut set = set(Value::Null);
    let mut pod = pod;
    pod["containers"] = json!([]);
    set.spec.template.spec = Some(serde_json::from_value(pod).unwrap());
    let node = json!({"metadata": {"name": "a", "labels": labels}, "spec": {"taints": taints}});
    verdict(template(&set).spec.as_ref().unwrap(), &serde_json::from_value(node).unwrap())
}

#[test]
fn a_set_is_for_the_nodes_that_it_selects_and_whose_taints_it_bears() {
    let taint = |effect: &str| json!([{"key": "k", "effect": effect}]);
    assert_eq!(judged(json!({}), json!({}), json!([])), Run);
    assert_eq!(judged(json!({"nodeName": "b"}), json!({}), json!([])), No);
    assert_eq!(judged(json!({"nodeSelector": {"disk": "ssd"}}), json!({}), json!([])), No);
    assert_eq!(judged(json!({"nodeSelector": {"disk": "ssd"}}), json!({"disk": "ssd"}), json!([])), Run);
    assert_eq!(judged(json!({}), json!({}), taint("NoSchedule")), Keep);
    assert_eq!(judged(json!({}), json!({}), taint("NoExecute")), No);
    assert_eq!(judged(json!({}), json!({}), taint("PreferNoSchedule")), Run);
    assert_eq!(judged(json!({"tolerations": [{"operator": "Exists"}]}), json!({}), taint("NoExecute")), Run);
}

#[test]
fn daemons_run_on_nodes_that_are_ill_or_cordoned() {
    for (key, effect) in BORNE {
        assert_eq!(judged(json!({}), json!({}), json!([{"key": key, "effect": effect}])), Run, "{key}");
    }
    let no_network = json!([{"key": NO_NETWORK.0, "effect": NO_NETWORK.1}]);
    assert_eq!(judged(json!({}), json!({}), no_network.clone()), Keep);
    assert_eq!(judged(json!({"hostNetwork": true}), json!({}), no_network), Run);
}

#[test]
fn a_toleration_for_a_time_becomes_one_for_ever() {
    let mut set = set(Value::Null);
    let spec = json!({"containers": [], "tolerations": [
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}]});
    set.spec.template.spec = Some(serde_json::from_value(spec).unwrap());
    let tolerations = template(&set).spec.unwrap().tolerations.unwrap();
    assert_eq!(tolerations.len(), BORNE.len());
    assert!(tolerations.iter().all(|t| t.toleration_seconds.is_none()), "{tolerations:?}");
}

#[test]
fn a_pod_says_which_revision_it_is_of_and_which_node_it_is_for() {
    let mut set = set(Value::Null);
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms":
        [{"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]}}});
    let spec = json!({"containers": [], "affinity": affinity});
    set.spec.template.spec = Some(serde_json::from_value(spec).unwrap());
    let made = template_for(&template(&set), &set, "hash", "a");
    let labels = made.metadata.unwrap().labels.unwrap();
    assert_eq!((labels[REVISION_HASH].as_str(), labels[TEMPLATE_GENERATION].as_str()), ("hash", "3"));
    let waiting = Pod { spec: viewed(made.spec), ..Pod::default() };
    assert_eq!(target(&waiting), Some("a"));
}
