//! How many nodes are ready, and how fast pods may therefore be evicted from those that are not. Pure.
//!
//! Counts follow each node. What they decide is looked at again only when it changes: when a zone goes from one
//! [`State`] to another, or the last node of the cluster is lost or the first is back.
//!
//! Where no node of the cluster is ready, no pod is evicted: it is more likely then that this process has lost the nodes
//! than that all of them have failed at once, and to evict their pods would help nobody.
//!
//! Source: upstream's node lifecycle controller; its defaults.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;

use super::plan::ready_status;

/// Nodes with this label count neither way.
const NOT_COUNTED: &str = "node.kubernetes.io/exclude-disruption";
const REGION: [&str; 2] = ["failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"];
const ZONE: [&str; 2] = ["failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"];

/// Between two nodes of a zone whose pods begin to be evicted: `--node-eviction-rate` is 0.1 a second.
const EVICTION_EVERY: Duration = Duration::from_secs(10);
/// The same in a large zone of which too many nodes are not ready: `--secondary-node-eviction-rate` is 0.01 a second.
const SECONDARY_EVICTION_EVERY: Duration = Duration::from_secs(100);
/// `--large-cluster-size-threshold`: in a zone no larger than this of which too many are not ready nothing is evicted.
const LARGE_ZONE: usize = 50;
/// `--unhealthy-zone-threshold`, in percent; and how few nodes never are too many.
const UNHEALTHY_PERCENT: usize = 55;
const NEVER_TOO_MANY: usize = 2;

/// Region and zone; both are empty where nobody says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Zone {
    region: String,
    zone: String,
}

impl Zone {
    pub(super) fn of(node: &Node) -> Zone {
        let label = |keys: [&str; 2]| {
            let labels = node.metadata.labels.as_ref()?;
            keys.iter().find_map(|key| labels.get(*key)).cloned()
        };
        Zone { region: label(REGION).unwrap_or_default(), zone: label(ZONE).unwrap_or_default() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Normal,
    PartialDisruption,
    FullDisruption,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    ready: usize,
    not_ready: usize,
}

impl Counts {
    fn len(self) -> usize {
        self.ready + self.not_ready
    }

    fn slot(&mut self, is_ready: bool) -> &mut usize {
        if is_ready { &mut self.ready } else { &mut self.not_ready }
    }

    fn state(self) -> State {
        let is_too_many = self.not_ready > NEVER_TOO_MANY
            && self.not_ready.saturating_mul(100) >= self.len().saturating_mul(UNHEALTHY_PERCENT);
        match self {
            Counts { ready: 0, not_ready: 1.. } => State::FullDisruption,
            _ if is_too_many => State::PartialDisruption,
            _ => State::Normal,
        }
    }

    /// Between two nodes whose pods begin to be evicted; `None` where none may.
    fn evict_every(self) -> Option<Duration> {
        match self.state() {
            State::Normal | State::FullDisruption => Some(EVICTION_EVERY),
            State::PartialDisruption => (self.len() > LARGE_ZONE).then_some(SECONDARY_EVICTION_EVERY),
        }
    }
}

#[derive(Debug, Default)]
struct Eviction {
    counts: Counts,
    /// When pods last began to be evicted from one of its nodes.
    last: Option<Instant>,
}

/// How a node counts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counted {
    zone: Zone,
    is_ready: bool,
    is_counted: bool,
}

/// What a change of one node means for others.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Passed {
    Nothing,
    /// These nodes are not ready, and how fast pods are evicted from them is another matter now.
    Zone(Vec<String>),
    /// Whether any node of the cluster is ready has changed: all of them.
    Cluster(Vec<String>),
}

/// Whether pods may begin to be evicted from a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    Granted,
    /// Another node of the zone was granted it a moment ago.
    In(Duration),
    /// Not while its zone is as it is.
    Withheld,
}

#[derive(Debug, Default)]
pub(super) struct Zones {
    zones: HashMap<Zone, Eviction>,
    nodes: HashMap<String, Counted>,
    total: Counts,
    /// Nodes that were granted eviction, until they are ready again: a write that failed is not granted anew.
    granted: HashMap<String, Zone>,
}

impl Zones {
    /// Takes what is known of a node now; `None` if it is gone.
    pub(super) fn follow(&mut self, name: &str, node: Option<&Node>) -> Passed {
        let new = node.map(|node| Counted {
            zone: Zone::of(node),
            is_ready: ready_status(node) == Some("True"),
            is_counted: node.metadata.labels.as_ref().is_none_or(|l| !l.contains_key(NOT_COUNTED)),
        });
        if new.as_ref().is_none_or(|counted| counted.is_ready) {
            self.granted.remove(name);
        }
        if self.nodes.get(name) == new.as_ref() {
            return Passed::Nothing;
        }
        let old = match new.clone() {
            Some(new) => self.nodes.insert(name.to_owned(), new),
            None => self.nodes.remove(name),
        };
        let old = old.filter(|counted| counted.is_counted);
        let new = new.filter(|counted| counted.is_counted);
        let concerned: HashSet<&Zone> =
            [&old, &new].into_iter().flatten().map(|counted| &counted.zone).collect();
        let before: Vec<_> = concerned.into_iter().map(|zone| (zone, self.evict_every(zone))).collect();
        let was_lost = self.is_lost();
        if let Some(old) = &old {
            self.count(old, |n| n.saturating_sub(1));
        }
        if let Some(new) = &new {
            self.count(new, |n| n + 1);
        }
        let changed: Vec<&Zone> = before
            .iter()
            .filter(|(zone, every)| self.evict_every(zone) != *every)
            .map(|(zone, _)| *zone)
            .collect();
        self.zones.retain(|_, eviction| eviction.counts.len() > 0);
        if was_lost != self.is_lost() {
            return Passed::Cluster(self.nodes.keys().cloned().collect());
        }
        if changed.is_empty() {
            return Passed::Nothing;
        }
        let waits =
            |(_, counted): &(&String, &Counted)| !counted.is_ready && changed.contains(&&counted.zone);
        Passed::Zone(self.nodes.iter().filter(waits).map(|(name, _)| name.clone()).collect())
    }

    fn count(&mut self, counted: &Counted, change: impl Fn(usize) -> usize) {
        let eviction = self.zones.entry(counted.zone.clone()).or_default();
        for counts in [&mut eviction.counts, &mut self.total] {
            let slot = counts.slot(counted.is_ready);
            *slot = change(*slot);
        }
    }

    fn evict_every(&self, zone: &Zone) -> Option<Duration> {
        self.zones.get(zone).map_or_else(Counts::default, |eviction| eviction.counts).evict_every()
    }

    /// Whether no node of the cluster is ready.
    pub(super) fn is_lost(&self) -> bool {
        self.total.state() == State::FullDisruption
    }

    /// Asks for leave to begin to evict the pods of a node.
    pub(super) fn may_evict(&mut self, name: &str, zone: &Zone, now: Instant) -> Leave {
        if self.is_lost() {
            return Leave::Withheld;
        }
        if self.granted.get(name) == Some(zone) {
            return Leave::Granted;
        }
        let eviction = self.zones.entry(zone.clone()).or_default();
        let Some(every) = eviction.counts.evict_every() else { return Leave::Withheld };
        let left = eviction.last.map_or(Duration::ZERO, |last| (last + every).saturating_duration_since(now));
        if !left.is_zero() {
            return Leave::In(left);
        }
        eviction.last = Some(now);
        self.granted.insert(name.to_owned(), zone.clone());
        Leave::Granted
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(zone: &str, status: &str) -> Node {
        let labels = if zone.is_empty() { json!({}) } else { json!({"topology.kubernetes.io/zone": zone}) };
        let conditions =
            if status.is_empty() { json!([]) } else { json!([{"type": "Ready", "status": status}]) };
        serde_json::from_value(
            json!({"metadata": {"name": "n", "labels": labels}, "status": {"conditions": conditions}}),
        )
        .unwrap()
    }

    /// `n0`, `n1`, … of which as many are ready.
    fn cluster(zone: &str, n_ready: usize, n_not_ready: usize) -> Zones {
        let mut zones = Zones::default();
        for n in 0..n_ready + n_not_ready {
            let status = if n < n_ready { "True" } else { "Unknown" };
            zones.follow(&format!("{zone}n{n}"), Some(&node(zone, status)));
        }
        zones
    }

    fn zone(name: &str) -> Zone {
        Zone::of(&node(name, ""))
    }

    #[track_caller]
    fn check(n_ready: usize, n_not_ready: usize, state: State, every_s: Option<u64>) {
        let counts = Counts { ready: n_ready, not_ready: n_not_ready };
        assert_eq!(counts.state(), state);
        assert_eq!(counts.evict_every().map(|every| every.as_secs()), every_s);
    }

    #[test]
    fn the_more_of_a_zone_is_lost_the_slower_its_pods_are_evicted() {
        check(0, 0, State::Normal, Some(10));
        check(10, 2, State::Normal, Some(10));
        check(1, 2, State::Normal, Some(10));
        check(2, 3, State::PartialDisruption, None);
        check(46, 54, State::Normal, Some(10));
        check(45, 55, State::PartialDisruption, Some(100));
        check(22, 28, State::PartialDisruption, None);
        check(0, 3, State::FullDisruption, Some(10));
    }

    #[test]
    fn a_change_of_one_node_concerns_no_other_while_no_threshold_is_passed() {
        let mut zones = cluster("", 10, 0);
        for n in 0..5 {
            assert_eq!(
                zones.follow(&format!("n{n}"), Some(&node("", "Unknown"))),
                Passed::Nothing,
                "{n} of 10"
            );
        }
        assert_eq!(zones.follow("n0", Some(&node("", "Unknown"))), Passed::Nothing, "it was so already");
        let Passed::Zone(mut woken) = zones.follow("n5", Some(&node("", "False"))) else {
            panic!("six of ten are too many");
        };
        woken.sort();
        assert_eq!(woken, ["n0", "n1", "n2", "n3", "n4", "n5"], "only those that wait");
        assert_eq!(zones.follow("n6", Some(&node("", "False"))), Passed::Nothing);
    }

    #[test]
    fn all_nodes_are_concerned_when_the_last_one_is_lost_and_when_the_first_is_back() {
        let mut zones = cluster("", 1, 1);
        let is_all = |passed: Passed| matches!(passed, Passed::Cluster(nodes) if nodes.len() == 2);
        assert!(is_all(zones.follow("n0", Some(&node("", "Unknown")))));
        assert!(zones.is_lost());
        assert_eq!(zones.may_evict("n0", &zone(""), Instant::now()), Leave::Withheld);
        assert!(is_all(zones.follow("n0", Some(&node("", "True")))));
        assert!(!zones.is_lost());
        assert!(!Zones::default().is_lost(), "no node is lost where there is none");
    }

    #[test]
    fn a_node_that_is_not_counted_does_not_hold_up_the_others() {
        let mut zones = cluster("", 0, 1);
        let mut aside = node("", "True");
        aside.metadata.labels = Some([(NOT_COUNTED.to_owned(), String::new())].into());
        assert_eq!(zones.follow("aside", Some(&aside)), Passed::Nothing);
        assert!(zones.is_lost());
        zones.follow("n0", None);
        assert!(!zones.is_lost() && zones.zones.is_empty());
        assert_eq!(zones.may_evict("aside", &zone(""), Instant::now()), Leave::Granted);
    }

    #[test]
    fn pods_of_one_node_at_a_time_begin_to_be_evicted_in_each_zone() {
        let mut zones = cluster("a", 8, 2);
        zones.follow("b0", Some(&node("b", "True")));
        zones.follow("b1", Some(&node("b", "False")));
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        assert_eq!(zones.may_evict("an8", &zone("a"), at(0)), Leave::Granted);
        assert_eq!(zones.may_evict("an9", &zone("a"), at(4)), Leave::In(Duration::from_secs(6)));
        assert_eq!(
            zones.may_evict("b1", &zone("b"), at(4)),
            Leave::Granted,
            "zones do not wait for each other"
        );
        assert_eq!(zones.may_evict("an8", &zone("a"), at(5)), Leave::Granted, "what is granted stays so");
        assert_eq!(zones.may_evict("an9", &zone("a"), at(10)), Leave::Granted);
        zones.follow("an8", Some(&node("a", "True")));
        zones.follow("an8", Some(&node("a", "Unknown")));
        assert_eq!(
            zones.may_evict("an8", &zone("a"), at(15)),
            Leave::In(Duration::from_secs(5)),
            "it was ready since"
        );
    }

    #[test]
    fn a_zone_is_lost_alone_and_its_pods_go_to_the_others() {
        let mut zones = cluster("a", 0, 3);
        zones.follow("b0", Some(&node("b", "True")));
        assert!(!zones.is_lost());
        assert_eq!(zones.may_evict("an0", &zone("a"), Instant::now()), Leave::Granted);
    }

    #[test]
    fn a_node_that_moves_to_another_zone_counts_there() {
        let mut zones = cluster("a", 1, 0);
        zones.follow("an0", Some(&node("b", "True")));
        assert_eq!(zones.zones.keys().collect::<Vec<_>>(), [&zone("b")]);
        assert_eq!(zones.total, Counts { ready: 1, not_ready: 0 });
    }
}
