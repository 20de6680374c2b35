//! A node's taints and conditions, and which pods bear them. Pure.
//!
//! Source: upstream's node lifecycle and taint eviction controllers.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use skiff_api::placement::tolerates;
use skiff_client::view::Pod;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";

/// Condition, the status in which it is bad, and the taint that keeps pods away then.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

/// The status of the condition `Ready`; `None` while nobody has ever said.
pub(super) fn ready_status(node: &Node) -> Option<&str> {
    conditions(node).find(|c| c.type_ == "Ready").map(|c| c.status.as_str())
}

fn conditions(node: &Node) -> impl Iterator<Item = &NodeCondition> {
    node.status.iter().flat_map(|s| s.conditions.iter().flatten())
}

/// What becomes of the pods of a node that is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evicting {
    /// They stay, and those whose time was running out stay too.
    Stopped,
    /// As before: they stay if they were not being evicted.
    Unchanged,
    Begun,
}

/// The taint that evicts the pods of a node that is as its conditions say.
fn evicting_taint(node: &Node) -> Option<&'static str> {
    match ready_status(node) {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    }
}

fn is_evicted(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|t| t.effect == NO_EXECUTE && (t.key == NOT_READY || t.key == UNREACHABLE))
}

/// Whether the node's pods are to be evicted and are not yet.
pub(super) fn waits_for_eviction(node: &Node) -> bool {
    evicting_taint(node).is_some() && !is_evicted(node)
}

/// Whether pods that come to the node have to be looked at: it is not ready, or a taint may evict them.
pub(super) fn concerns_pods(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    evicting_taint(node).is_some() || taints.iter().any(|taint| taint.effect == NO_EXECUTE)
}

/// The node's taints, with those that are ours as its conditions want them.
pub(super) fn wanted_taints(node: &Node, evicting: Evicting, now: Timestamp) -> Vec<Taint> {
    let have = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let mut ours: Vec<(&str, &str)> = Vec::new();
    for condition in conditions(node) {
        let bad = BY_CONDITION.iter().find(|(t, s, _)| *t == condition.type_ && *s == condition.status);
        ours.extend(bad.map(|(_, _, key)| (*key, NO_SCHEDULE)));
    }
    if node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true)) {
        ours.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    // From one to the other there is no pause in which the pods would be safe.
    let evicts = match evicting {
        Evicting::Stopped => false,
        Evicting::Unchanged => is_evicted(node),
        Evicting::Begun => true,
    };
    ours.extend(evicting_taint(node).filter(|_| evicts).map(|key| (key, NO_EXECUTE)));
    let mut wanted: Vec<Taint> =
        have.iter().filter(|t| !is_ours(t) || ours.contains(&(&t.key, &t.effect))).cloned().collect();
    for (key, effect) in ours {
        if !wanted.iter().any(|t| t.key == key && t.effect == effect) {
            wanted.push(Taint {
                key: key.into(),
                effect: effect.into(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    wanted
}

fn is_ours(taint: &Taint) -> bool {
    let by_condition = || BY_CONDITION.iter().any(|(_, _, key)| *key == taint.key);
    match taint.effect.as_str() {
        NO_SCHEDULE => taint.key == UNSCHEDULABLE || by_condition(),
        NO_EXECUTE => taint.key == NOT_READY || taint.key == UNREACHABLE,
        _ => false,
    }
}

/// What is to be said of a node that has not reported for too long: that everything it reports is unknown.
pub(super) fn unknown_conditions(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let of = |type_: &str| match conditions(node).find(|c| c.type_ == type_) {
        Some(known) if known.status == "Unknown" => None,
        Some(known) => Some(NodeCondition {
            status: "Unknown".into(),
            reason: Some("NodeStatusUnknown".into()),
            message: Some("Kubelet stopped posting node status.".into()),
            last_transition_time: Some(Time(now)),
            ..known.clone()
        }),
        None => Some(NodeCondition {
            type_: type_.into(),
            status: "Unknown".into(),
            reason: Some("NodeStatusNeverUpdated".into()),
            message: Some("Kubelet never posted node status.".into()),
            last_heartbeat_time: node.metadata.creation_timestamp.clone(),
            last_transition_time: Some(Time(now)),
        }),
    };
    ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"].into_iter().filter_map(of).collect()
}

#[derive(Debug, PartialEq)]
pub(super) enum Bears {
    Forever,
    For(Duration),
}

/// A moment, by both clocks: the wall clock labels, and the other one measures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Moment {
    pub(super) wall: Timestamp,
    pub(super) steady: Instant,
}

impl Moment {
    pub(super) fn now() -> Moment {
        Moment { wall: Timestamp::now(), steady: Instant::now() }
    }
}

/// Since when each `NoExecute` taint of a node is known here. What a taint itself says of that counts once, when it is first
/// seen, as after a restart; from then on a wall clock that is set makes it neither older nor younger.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct FirstSeen(Vec<Seen>);

#[derive(Clone, Debug, PartialEq)]
struct Seen {
    key: String,
    added: Option<Timestamp>,
    at: Instant,
    /// How old it was by then.
    age: Duration,
}

impl FirstSeen {
    /// Takes note of what is there, and forgets what is not.
    pub(super) fn look(&mut self, taints: &[Taint], now: Moment) {
        let evicting: Vec<&Taint> = taints.iter().filter(|t| t.effect == NO_EXECUTE).collect();
        self.0.retain(|seen| evicting.iter().any(|taint| seen.is_of(taint)));
        for taint in evicting {
            if self.0.iter().any(|seen| seen.is_of(taint)) {
                continue;
            }
            let added = taint.time_added.as_ref().map(|t| t.0);
            let age = added.map_or(Duration::ZERO, |added| {
                Duration::try_from(now.wall.duration_since(added)).unwrap_or_default()
            });
            self.0.push(Seen { key: taint.key.clone(), added, at: now.steady, age });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn age(&self, taint: &Taint, now: Moment) -> Duration {
        let seen = self.0.iter().find(|seen| seen.is_of(taint));
        seen.map_or(Duration::ZERO, |seen| seen.age + now.steady.saturating_duration_since(seen.at))
    }
}

impl Seen {
    fn is_of(&self, taint: &Taint) -> bool {
        self.key == taint.key && self.added == taint.time_added.as_ref().map(|t| t.0)
    }
}

/// How long a pod bears the `NoExecute` taints of its node, of which it has had to since it was made at the earliest.
pub(super) fn bears_for(pod: &Pod, taints: &[Taint], seen: &FirstSeen, now: Moment) -> Bears {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    // One that was made in the future was made before the clock was set back; nothing is known of when.
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let lived = created.and_then(|created| Duration::try_from(now.wall.duration_since(created)).ok());
    let mut least: Option<Duration> = None;
    for taint in taints.iter().filter(|t| t.effect == NO_EXECUTE) {
        let Some(toleration) = tolerations.iter().find(|t| tolerates(t, taint)) else {
            return Bears::For(Duration::ZERO);
        };
        let Some(seconds) = toleration.toleration_seconds else { continue };
        let age = seen.age(taint, now);
        let borne = lived.map_or(age, |lived| lived.min(age));
        let tolerated = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let left = tolerated.saturating_sub(borne);
        least = Some(least.map_or(left, |l| l.min(left)));
    }
    least.map_or(Bears::Forever, Bears::For)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(conditions: &[(&str, &str)], have: &[Taint]) -> Node {
        let conditions: Vec<Value> =
            conditions.iter().map(|(t, s)| json!({"type": t, "status": s})).collect();
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": have},
            "status": {"conditions": conditions}}))
        .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn shown(taints: &[Taint]) -> Vec<String> {
        taints
            .iter()
            .map(|t| format!("{}:{}", t.key.trim_start_matches("node.kubernetes.io/"), t.effect))
            .collect()
    }

    #[track_caller]
    fn check(node: &Node, wanted: &[&str]) {
        let taints = wanted_taints(node, Evicting::Begun, at(0));
        assert_eq!(shown(&taints), wanted);
        let mut after = node.clone();
        after.spec.as_mut().unwrap().taints = Some(taints);
        assert_eq!(
            shown(&wanted_taints(&after, Evicting::Unchanged, at(1))),
            wanted,
            "a second pass changes nothing"
        );
    }

    #[test]
    fn taints_follow_the_conditions_and_leave_others_alone() {
        let own = Taint { key: "k".into(), effect: NO_SCHEDULE.into(), ..Taint::default() };
        let own = std::slice::from_ref(&own);
        check(&node(&[("Ready", "True")], own), &["k:NoSchedule"]);
        check(
            &node(&[("Ready", "False")], own),
            &["k:NoSchedule", "not-ready:NoSchedule", "not-ready:NoExecute"],
        );
        check(&node(&[("Ready", "Unknown")], &[]), &["unreachable:NoSchedule", "unreachable:NoExecute"]);
        check(&node(&[], &[]), &[]);
        let unreachable = wanted_taints(&node(&[("Ready", "Unknown")], own), Evicting::Begun, at(0));
        check(&node(&[("Ready", "True")], &unreachable), &["k:NoSchedule"]);
    }

    #[test]
    fn pressure_and_a_cordon_keep_pods_away_and_evict_none() {
        let bad = [
            ("Ready", "True"),
            ("MemoryPressure", "True"),
            ("DiskPressure", "True"),
            ("PIDPressure", "True"),
            ("NetworkUnavailable", "True"),
        ];
        let mut tainted = node(&bad, &[]);
        tainted.spec.as_mut().unwrap().unschedulable = Some(true);
        let wanted = [
            "memory-pressure:NoSchedule",
            "disk-pressure:NoSchedule",
            "pid-pressure:NoSchedule",
            "network-unavailable:NoSchedule",
            "unschedulable:NoSchedule",
        ];
        check(&tainted, &wanted);
        let taints = wanted_taints(&tainted, Evicting::Begun, at(0));
        check(
            &node(&[("Ready", "True"), ("MemoryPressure", "False"), ("DiskPressure", "Unknown")], &taints),
            &[],
        );
    }

    #[test]
    fn pods_are_evicted_once_it_has_begun_until_it_is_stopped() {
        let down = node(&[("Ready", "Unknown")], &[]);
        let with = |taints: &[Taint], status: &str| node(&[("Ready", status)], taints);
        let taints = |node: &Node, evicting: Evicting| wanted_taints(node, evicting, at(0));
        assert!(waits_for_eviction(&down));
        assert_eq!(shown(&taints(&down, Evicting::Unchanged)), ["unreachable:NoSchedule"]);
        let begun = taints(&down, Evicting::Begun);
        assert_eq!(shown(&begun), ["unreachable:NoSchedule", "unreachable:NoExecute"]);
        // Another kind of trouble needs no new leave.
        let back = with(&begun, "False");
        assert!(!waits_for_eviction(&back));
        assert_eq!(
            shown(&taints(&back, Evicting::Unchanged)),
            ["not-ready:NoSchedule", "not-ready:NoExecute"]
        );
        assert_eq!(shown(&taints(&with(&begun, "Unknown"), Evicting::Stopped)), ["unreachable:NoSchedule"]);
        assert_eq!(taints(&with(&begun, "True"), Evicting::Unchanged), []);
    }

    #[test]
    fn a_pod_that_comes_to_a_node_that_is_well_is_no_reason_to_look() {
        let own = Taint { key: "k".into(), effect: NO_EXECUTE.into(), ..Taint::default() };
        assert!(!concerns_pods(&node(&[("Ready", "True")], &[])));
        assert!(concerns_pods(&node(&[("Ready", "True")], &[own])));
        assert!(concerns_pods(&node(&[("Ready", "False")], &[])));
    }

    #[test]
    fn a_node_that_stops_reporting_is_unknown_in_all_it_reported_and_ought_to_have() {
        let silent = node(&[("Ready", "True"), ("MemoryPressure", "Unknown"), ("Custom", "True")], &[]);
        let unknown = unknown_conditions(&silent, at(5));
        let shown: Vec<(&str, &str)> =
            unknown.iter().map(|c| (c.type_.as_str(), c.reason.as_deref().unwrap())).collect();
        assert_eq!(
            shown,
            [
                ("Ready", "NodeStatusUnknown"),
                ("DiskPressure", "NodeStatusNeverUpdated"),
                ("PIDPressure", "NodeStatusNeverUpdated")
            ]
        );
    }

    fn pod(created: i64, toleration: Value) -> Pod {
        let meta = json!({"creationTimestamp": at(created).to_string()});
        serde_json::from_value(
            json!({"metadata": meta, "spec": {"containers": [], "tolerations": [toleration]}}),
        )
        .unwrap()
    }

    /// Both clocks go alike from 0 on.
    fn moments() -> impl Fn(u64) -> Moment {
        let start = Instant::now();
        move |second| Moment { wall: at(second.cast_signed()), steady: start + Duration::from_secs(second) }
    }

    fn seen(taints: &[Taint], now: Moment) -> FirstSeen {
        let mut seen = FirstSeen::default();
        seen.look(taints, now);
        seen
    }

    #[test]
    fn a_taint_that_does_not_say_since_when_it_is_there_counts_from_when_it_was_seen() {
        let taint = |key: &str| Taint { key: key.into(), effect: NO_EXECUTE.into(), ..Taint::default() };
        let (mut seen, moment) = (FirstSeen::default(), moments());
        let toleration = json!({"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        let bears = |seen: &FirstSeen, now: u64| {
            bears_for(&pod(10, toleration.clone()), &[taint("x"), taint("y")], seen, moment(now))
        };
        seen.look(&[taint("x")], moment(100));
        seen.look(&[taint("x"), taint("y")], moment(200));
        assert_eq!(bears(&seen, 200), Bears::For(Duration::from_secs(200)));
        assert_eq!(
            bears(&seen, 400),
            Bears::For(Duration::ZERO),
            "it is due though nobody said when it began"
        );
        seen.look(&[taint("y")], moment(300));
        seen.look(&[taint("x"), taint("y")], moment(350));
        assert_eq!(
            bears(&seen, 350),
            Bears::For(Duration::from_secs(150)),
            "one that was taken away begins anew"
        );
        seen.look(&[], moment(500));
        assert!(seen.is_empty());
    }

    #[test]
    fn a_pod_bears_a_taint_for_as_long_as_it_tolerates_it() {
        let taints = wanted_taints(&node(&[("Ready", "Unknown")], &[]), Evicting::Begun, at(100));
        let moment = moments();
        // First seen 50 s later, as by a process that has just started.
        let seen = seen(&taints, moment(150));
        let bears =
            |toleration: Value, now: u64| bears_for(&pod(10, toleration), &taints, &seen, moment(now));
        let tolerating = |seconds: i64| json!({"key": UNREACHABLE, "operator": "Exists", "effect": NO_EXECUTE, "tolerationSeconds": seconds});
        assert_eq!(bears(tolerating(300), 150), Bears::For(Duration::from_secs(250)));
        assert_eq!(bears(tolerating(300), 500), Bears::For(Duration::ZERO));
        assert_eq!(bears(tolerating(-1), 150), Bears::For(Duration::ZERO));
        assert!(matches!(bears(tolerating(i64::MAX), 150), Bears::For(left) if !left.is_zero()));
        assert_eq!(bears(json!({"operator": "Exists"}), 500), Bears::Forever);
        assert_eq!(bears(json!({"key": "other"}), 150), Bears::For(Duration::ZERO));
    }

    #[test]
    fn a_pod_that_came_after_the_taint_has_its_time_from_then_on() {
        let taints = wanted_taints(&node(&[("Ready", "Unknown")], &[]), Evicting::Begun, at(100));
        let moment = moments();
        let toleration = json!({"key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": 300});
        let seen = seen(&taints, moment(100));
        assert_eq!(
            bears_for(&pod(1000, toleration), &taints, &seen, moment(1100)),
            Bears::For(Duration::from_secs(200))
        );
    }

    #[test]
    fn a_wall_clock_that_is_set_takes_nothing_from_a_pods_time_and_adds_nothing() {
        let day_s = 86_400;
        let taints = wanted_taints(&node(&[("Ready", "Unknown")], &[]), Evicting::Begun, at(day_s + 100));
        let moment = moments();
        let toleration = json!({"key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": 300});
        let set = |second: u64, by_s: i64| {
            let moment = moment(second);
            Moment { wall: at(moment.wall.as_second() + by_s), ..moment }
        };
        let seen = seen(&taints, set(100, day_s));
        for by_s in [day_s, day_s + 3600, day_s - 3600, 2 * day_s, 401 * day_s, 0] {
            let bears = bears_for(&pod(day_s + 10, toleration.clone()), &taints, &seen, set(150, by_s));
            let off_s = by_s - day_s;
            assert_eq!(bears, Bears::For(Duration::from_secs(250)), "the clock was set by {off_s} s");
        }
    }
}
