use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};
use skiff_client::ObjectKey;
use skiff_client::view::Pod;

use super::*;
use crate::cluster::{Cluster, Load, PodInfo};
use crate::framework::tests::{
    HOST, Held, app, asking, cluster, far, info, near, node, plain, pod, put, spread, term, with_pods, zoned,
};
use crate::framework::{Nomination, Unschedulable, decide};

fn of(priority: i32, mut pod: Pod) -> Pod {
    pod.spec.as_mut().unwrap().priority = Some(priority);
    pod
}

/// A pod that asks for so much CPU.
fn cpu(priority: i32, amount: &str) -> Pod {
    of(priority, pod(asking(amount)))
}

fn with_status(mut pod: Pod, status: Value) -> Pod {
    pod.status = Some(serde_json::from_value(status).unwrap());
    pod
}

/// One that runs since a minute of an hour.
fn since(minute: u32, pod: Pod) -> Pod {
    with_status(pod, json!({"startTime": format!("2026-01-01T00:{minute:02}:00Z")}))
}

fn holding(mut node: Held, pods: impl IntoIterator<Item = Pod>) -> Held {
    pods.into_iter().for_each(|pod| put(&mut node, pod));
    node
}

fn refusal(pod: &Pod, cluster: &Cluster) -> Unschedulable {
    match decide(&info(pod), cluster, None, |_| 0) {
        Ok(decision) => panic!("it fits on {}", decision.node.name()),
        Err(why) => why,
    }
}

/// `node: victims`, these by the numbers of node and pod.
fn outcome(pod: &Pod, cluster: &Cluster) -> Result<String, String> {
    let why = refusal(pod, cluster);
    let Nomination::Node(preemption) = why.nomination else { return Err(why.message) };
    assert!(!why.message.contains("preemption"), "{}", why.message);
    let victims: Vec<&str> = preemption.victims.iter().map(|victim| victim.key.name.as_str()).collect();
    Ok(format!("{}: {}", preemption.node, victims.join(" ")))
}

#[track_caller]
fn check(pod: &Pod, nodes: &[Held], wanted: &str) {
    assert_eq!(outcome(pod, &cluster(nodes)).as_deref(), Ok(wanted));
}

/// Why the pod that is told to wait is.
#[track_caller]
fn check_refused(pod: &Pod, cluster: &Cluster, wanted: &str) {
    let message = outcome(pod, cluster).unwrap_err();
    assert!(message.ends_with(wanted), "{message}");
}

/// A pod that waits for a node.
fn waits(cluster: &mut Cluster, name: &str, node: &str, mut pod: Pod) {
    pod.metadata.uid = Some(name.to_owned());
    cluster.nominations.set(Tenant::of(&ObjectKey::new("d", name), &info(&pod)), node);
}

fn budget(cluster: &mut Cluster, app: &str, n_allowed: i32) {
    let budget: PodDisruptionBudget = serde_json::from_value(json!({
        "spec": {"selector": {"matchLabels": {"app": app}}},
        "status": {"disruptionsAllowed": n_allowed, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0},
    }))
    .unwrap();
    cluster.budgets.set(&ObjectKey::new("d", app), Some(&budget));
}

#[test]
fn those_who_need_not_go_are_let_off_the_most_important_first() {
    let three = || [cpu(1, "500m"), cpu(3, "500m"), cpu(2, "500m"), cpu(20, "500m")];
    check(&cpu(10, "500m"), &[holding(plain("a"), three())], "a: 0-0");
    check(&cpu(10, "1"), &[holding(plain("a"), three())], "a: 0-2 0-0");
    check(&cpu(10, "1500m"), &[holding(plain("a"), three())], "a: 0-1 0-2 0-0");
    check_refused(
        &cpu(10, "2"),
        &cluster(&[holding(plain("a"), three())]),
        "preemption: 0/1 nodes are available: 1 Insufficient cpu.",
    );
    let large_and_small = [cpu(5, "1900m"), cpu(1, "100m")];
    check(&cpu(10, "1"), &[holding(plain("a"), large_and_small)], "a: 0-0");
}

#[test]
fn of_pods_as_important_the_one_that_has_run_the_longest_is_let_off() {
    let pods = || [since(20, cpu(1, "1")), since(10, cpu(1, "1"))];
    check(&cpu(10, "1"), &[holding(plain("a"), pods())], "a: 0-0");
    let one_is_new = [cpu(1, "1"), since(10, cpu(1, "1"))];
    check(&cpu(10, "1"), &[holding(plain("a"), one_is_new)], "a: 0-0");
}

#[test]
fn whatever_keeps_the_pod_off_ends_with_those_who_cause_it() {
    let shy = || app("web", far(term("web", HOST)));
    let port =
        || pod(json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}));
    check(&of(10, port()), &[holding(plain("a"), [cpu(0, "1"), port()])], "a: 0-1");
    check(&of(10, shy()), &[holding(plain("a"), [app("db", json!({})), app("web", json!({}))])], "a: 0-1");
    check(&of(10, app("web", json!({}))), &[holding(plain("a"), [cpu(0, "1"), shy()])], "a: 0-1");
    let full = holding(
        node("a", |n| n["status"]["allocatable"]["pods"] = "2".into()),
        [cpu(2, "100m"), cpu(1, "100m")],
    );
    check(&cpu(10, "100m"), &[full], "a: 0-1");
    // One more in zone 1 and it would be two ahead of zone 2, where there is no room.
    let closed = node("b", |n| {
        n["metadata"]["labels"]["zone"] = "2".into();
        n["status"]["allocatable"]["pods"] = "0".into();
    });
    let uneven = [with_pods(zoned("a", "1"), 2), closed];
    check(&of(10, spread("zone", 1, |_| {})), &uneven, "a: 0-0 0-1");
    check(&of(10, spread("zone", 2, |_| {})), &uneven, "a: 0-1");
}

#[test]
fn what_pods_on_other_nodes_cause_stays() {
    let beside = holding(zoned("b", "1"), [app("db", json!({}))]);
    let shunning = holding(zoned("a", "1"), [of(10, app("web", far(term("web", "zone"))))]);
    check_refused(
        &of(10, app("web", json!({}))),
        &cluster(&[shunning, beside]),
        "1 No preemption victims found for incoming pod, 1 node(s) didn't satisfy existing pods anti-affinity rules.",
    );
}

#[test]
fn a_pod_that_wants_to_be_near_one_it_would_preempt_does_not() {
    let wanted = holding(plain("a"), [app("db", asking("2"))]);
    let mut near_db = near(term("db", HOST));
    near_db["containers"] = asking("1")["containers"].clone();
    check_refused(
        &of(10, app("web", near_db)),
        &cluster(&[wanted]),
        "preemption: 0/1 nodes are available: 1 node(s) didn't match pod affinity rules.",
    );
}

#[test]
fn nodes_that_would_not_do_without_any_pod_are_left_out() {
    let cordoned = || {
        let node = node("b", |n| n["spec"]["unschedulable"] = true.into());
        holding(node, [cpu(0, "2")])
    };
    check(&cpu(10, "1"), &[cordoned(), holding(plain("a"), [cpu(5, "2")])], "a: 1-0");
    check_refused(
        &cpu(10, "1"),
        &cluster(&[cordoned()]),
        "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
    );
}

/// Two nodes that only differ in what the pods on them are like: the second is to be chosen, though the first comes first.
#[track_caller]
fn check_choice(worse: impl IntoIterator<Item = Pod>, better: impl IntoIterator<Item = Pod>) {
    let nodes = [holding(plain("a"), worse), holding(plain("b"), better)];
    let mut cluster = cluster(&nodes);
    budget(&mut cluster, "dear", 0);
    let chosen = outcome(&cpu(10, "2"), &cluster).unwrap();
    assert!(chosen.starts_with("b:"), "{chosen}");
}

#[test]
fn the_node_is_chosen_where_preemption_does_the_least_harm() {
    let dear = |pod: Pod| Pod { metadata: app("dear", json!({})).metadata, ..pod };
    // The fewest that a budget cannot spare, however important.
    check_choice([dear(cpu(1, "1"))], [cpu(5, "1"), cpu(5, "1")]);
    check_choice([dear(cpu(1, "1")), dear(cpu(1, "1"))], [dear(cpu(5, "1")), cpu(5, "1")]);
    // The least important of the most important.
    check_choice([cpu(5, "1")], [cpu(4, "500m"), cpu(4, "500m"), cpu(4, "500m")]);
    // The smallest sum, where what is negative counts, too: more pods are not less.
    check_choice([cpu(4, "1"), cpu(3, "1")], [cpu(4, "1"), cpu(2, "1")]);
    check_choice([cpu(-4, "1"), cpu(-4, "1")], [cpu(-4, "1")]);
    // Those that have run the shortest, of the most important ones only.
    check_choice([since(10, cpu(4, "1"))], [since(20, cpu(4, "1"))]);
    check_choice(
        [since(10, cpu(4, "1")), since(40, cpu(3, "1"))],
        [since(20, cpu(4, "1")), since(5, cpu(3, "1"))],
    );
    // The first.
    check(&cpu(10, "2"), &[holding(plain("a"), [cpu(4, "1")]), holding(plain("b"), [cpu(4, "1")])], "a: 0-0");
}

#[test]
fn pods_that_a_budget_cannot_spare_are_let_off_before_more_important_ones() {
    let pods = || [of(1, app("dear", asking("1"))), cpu(5, "1")];
    let nodes = [holding(plain("a"), pods())];
    let mut spared = cluster(&nodes);
    assert_eq!(outcome(&cpu(10, "1"), &spared).as_deref(), Ok("a: 0-0"));
    budget(&mut spared, "dear", 0);
    assert_eq!(outcome(&cpu(10, "1"), &spared).as_deref(), Ok("a: 0-1"));
    budget(&mut spared, "dear", 1);
    assert_eq!(outcome(&cpu(10, "1"), &spared).as_deref(), Ok("a: 0-0"));
    budget(&mut spared, "dear", 0);
    assert_eq!(
        outcome(&cpu(10, "2"), &spared).as_deref(),
        Ok("a: 0-1 0-0"),
        "if need be they go all the same"
    );
}

#[test]
fn room_is_left_to_those_who_wait_for_the_node_unless_they_are_less_important() {
    let mut cluster = cluster(&[plain("a")]);
    let fits = |cluster: &Cluster, priority| decide(&info(&cpu(priority, "1")), cluster, None, |_| 0).is_ok();
    waits(&mut cluster, "w", "a", cpu(10, "1500m"));
    assert!(!fits(&cluster, 9) && !fits(&cluster, 10) && fits(&cluster, 11));
    check_refused(
        &cpu(9, "1"),
        &cluster,
        "1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.",
    );
    cluster.nominations.remove(&ObjectKey::new("d", "w"));
    assert!(fits(&cluster, 9));
    waits(&mut cluster, "w", "elsewhere", cpu(10, "1500m"));
    assert!(fits(&cluster, 9));
}

#[test]
fn victims_make_room_for_those_who_wait_for_the_node_as_well() {
    let pods = || [cpu(1, "500m"), cpu(2, "500m"), cpu(3, "500m"), cpu(4, "500m")];
    let mut cluster = cluster(&[holding(plain("a"), pods())]);
    assert_eq!(outcome(&cpu(10, "500m"), &cluster).as_deref(), Ok("a: 0-0"));
    waits(&mut cluster, "w", "a", cpu(10, "500m"));
    assert_eq!(outcome(&cpu(10, "500m"), &cluster).as_deref(), Ok("a: 0-1 0-0"));
    let displaced = |priority| -> Vec<String> {
        match refusal(&cpu(priority, "500m"), &cluster).nomination {
            Nomination::Node(preemption) => {
                preemption.displaced.iter().map(|pod| pod.key.name.clone()).collect()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(displaced(10), Vec::<String>::new());
    assert_eq!(displaced(11), ["w"]);
}

#[test]
fn a_pod_that_is_still_to_come_is_not_one_to_be_near_to() {
    let mut cluster = cluster(&[plain("a")]);
    waits(&mut cluster, "w", "a", of(10, app("db", json!({}))));
    let refused = decide(&info(&app("web", near(term("db", HOST)))), &cluster, None, |_| 0).unwrap_err();
    assert!(refused.message.contains("1 node(s) didn't match pod affinity rules"), "{}", refused.message);
    let refused = decide(&info(&app("web", far(term("db", HOST)))), &cluster, None, |_| 0).unwrap_err();
    assert!(
        refused.message.contains("1 node(s) didn't match pod anti-affinity rules"),
        "{}",
        refused.message
    );
    assert!(decide(&info(&app("web", json!({}))), &cluster, None, |_| 0).is_ok());
}

#[test]
fn a_pod_goes_to_the_node_that_was_made_free_for_it() {
    let busy = holding(plain("a"), [cpu(0, "1")]);
    let mut cluster = cluster(&[busy, plain("b")]);
    let mut own = info(&cpu(10, "1"));
    let chosen = |own: &PodInfo, cluster: &Cluster| {
        let decision = decide(own, cluster, None, |_| 0).unwrap();
        (decision.node.name().to_owned(), decision.n_looked_at)
    };
    assert_eq!(chosen(&own, &cluster), ("b".to_owned(), 2));
    cluster.nominations.set(Tenant::of(&ObjectKey::new("d", "p"), &own), "a");
    assert_eq!(chosen(&own, &cluster), ("a".to_owned(), 0));
    own = info(&cpu(10, "1500m"));
    assert_eq!(chosen(&own, &cluster), ("b".to_owned(), 2), "it is no longer free");
}

#[test]
fn a_pod_waits_while_those_that_make_room_for_it_are_going() {
    const WAITS: &str =
        "1 Insufficient cpu. preemption: not eligible due to a terminating pod on the nominated node.";
    let target = |reason: &str| {
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": reason});
        with_status(cpu(0, "1"), json!({"conditions": [condition]}))
    };
    let going = |mut pod: Pod| {
        let now = json!("2026-01-01T00:00:00Z");
        pod.metadata.deletion_timestamp = Some(serde_json::from_value(now).unwrap());
        pod
    };
    let own = cpu(10, "1500m");
    let waiting = |victim: Pod| {
        let mut cluster = cluster(&[holding(plain("a"), [victim])]);
        cluster.nominations.set(Tenant::of(&ObjectKey::new("d", "p"), &info(&own)), "a");
        cluster
    };
    let preempts = |cluster: &Cluster| outcome(&own, cluster).is_ok();
    check_refused(&own, &waiting(going(target("PreemptionByScheduler"))), WAITS);
    assert!(preempts(&waiting(target("PreemptionByScheduler"))), "it is not going");
    assert!(preempts(&waiting(going(target("EvictionByEvictionAPI")))), "it is not for the pod that it goes");
    assert!(preempts(&waiting(of(0, going(cpu(0, "1"))))));
    // What we have asked for counts before the API says so, until it fails.
    let mut cluster = waiting(cpu(0, "1"));
    let Nomination::Node(preemption) = refusal(&own, &cluster).nomination else { panic!("no preemption") };
    cluster.doom(&preemption.victims[0], true);
    check_refused(&own, &cluster, WAITS);
    cluster.doom(&preemption.victims[0], false);
    assert!(preempts(&cluster));
    // A node that is no longer one for the pod is not waited for.
    cluster.doom(&preemption.victims[0], true);
    let cordoned = node("a", |n| n["spec"]["unschedulable"] = true.into());
    cluster.node_changed("a", Some(&Arc::new(cordoned.node)));
    check_refused(
        &own,
        &cluster,
        "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
    );
}

#[test]
fn a_pod_that_is_not_to_preempt_keeps_what_it_waits_for_and_one_that_cannot_does_not() {
    let mut never = cpu(10, "1500m");
    never.spec.as_mut().unwrap().preemption_policy = Some("Never".into());
    let nodes = [holding(plain("a"), [cpu(0, "1")])];
    let why = refusal(&never, &cluster(&nodes));
    assert!(
        why.message.ends_with("preemption: not eligible due to preemptionPolicy=Never."),
        "{}",
        why.message
    );
    assert!(matches!(why.nomination, Nomination::Keep));
    assert!(matches!(refusal(&cpu(0, "1500m"), &cluster(&nodes)).nomination, Nomination::Clear));
    assert!(matches!(refusal(&cpu(0, "1"), &cluster(&[])).nomination, Nomination::Clear));
}

fn many(n_nodes: usize, pod: &Pod) -> Cluster {
    let nodes: Vec<Held> = (0..n_nodes).map(|n| holding(plain(&format!("n{n:04}")), [pod.clone()])).collect();
    cluster(&nodes)
}

#[test]
fn of_many_nodes_that_would_do_a_tenth_is_enough_beginning_anywhere() {
    assert_eq!([n_enough(0), n_enough(7), n_enough(999), n_enough(5000)], [0, 7, 100, 500]);
    let mut cluster = many(1200, &of(0, app("dear", asking("2"))));
    let preemptor = info(&cpu(10, "1"));
    let found = |cluster: &Cluster| {
        let nodes: Vec<&NodeInfo> = cluster.nodes().collect();
        let mut cycle = Cycle::new(&preemptor, cluster);
        let found = candidates(&mut cycle, &nodes, &mut Counted::default(), |_| 1150);
        let names: Vec<&str> = found.iter().map(|candidate| candidate.node.name()).collect();
        (names.len(), names[0].to_owned(), names[names.len() - 1].to_owned())
    };
    assert_eq!(found(&cluster), (120, "n1150".to_owned(), "n0069".to_owned()));
    // Where all overdraw a budget one that does not may be found yet.
    budget(&mut cluster, "dear", 0);
    assert_eq!(found(&cluster).0, 1200);
}

#[test]
fn among_pods_as_important_nobody_looks_for_victims() {
    let cluster = many(5000, &cpu(0, "2"));
    check_refused(
        &cpu(0, "1"),
        &cluster,
        "0/5000 nodes are available: 5000 Insufficient cpu. \
         preemption: 0/5000 nodes are available: 5000 No preemption victims found for incoming pod.",
    );
    assert!(!cluster.has_lower_than(0) && cluster.has_lower_than(1));
}

#[test]
fn looking_for_victims_leaves_what_was_counted_as_it_was() {
    let shy = || app("web", far(term("web", "zone")));
    let nodes = [
        holding(zoned("a", "1"), [shy(), app("web", asking("1"))]),
        holding(zoned("b", "2"), [app("web", json!({})), of(20, shy()), cpu(0, "2")]),
        holding(zoned("c", "2"), [app("web", json!({}))]),
    ];
    let mut cluster = cluster(&nodes);
    waits(&mut cluster, "w", "a", of(30, app("web", json!({}))));
    let mut wanted = spread("zone", 1, |_| {});
    wanted.spec.as_mut().unwrap().priority = Some(10);
    for wanted in [wanted, of(10, shy()), of(10, app("web", near(term("web", HOST))))] {
        let preemptor = info(&wanted);
        let mut cycle = Cycle::new(&preemptor, &cluster);
        let look = |cycle: &mut Cycle<'_>| -> Vec<_> {
            let empty = Load::default();
            cluster.nodes().map(|node| (cycle.filter(node, &empty), cycle.filter(node, &node.load))).collect()
        };
        let before = look(&mut cycle);
        for node in cluster.nodes() {
            let _ = candidate(&mut cycle, node);
        }
        assert_eq!(look(&mut cycle), before);
    }
}
