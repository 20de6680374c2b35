//! What is kept of what is used: the last two points of each container and node. Pure.
//!
//! Source: metrics-server's `pkg/storage`.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;

/// Between two rounds, and the age up to which a container counts as new.
pub(super) const RESOLUTION_MS: i64 = 15_000;
/// What is younger has used too little for a rate of its whole life.
const MIN_AGE_MS: i64 = 10_000;

const NS_PER_S: f64 = 1e9;
const MS_PER_S: f64 = 1e3;

/// Seeded, so that nobody can choose names that come to the number of another's.
static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Stands for a container of a pod: names of all of them would be most of what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key(u64);

impl Key {
    pub(super) fn of(namespace: &str, pod: &str, container: &str) -> Key {
        Key(KEYS.hash_one((namespace, pod, container)))
    }
}

/// What was used at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Point {
    /// Of a node 0.
    pub(super) started_ms: i64,
    pub(super) at_ms: i64,
    /// Since it was started.
    pub(super) cpu_ns: u64,
    pub(super) memory_bytes: u64,
}

impl Point {
    /// Something is missing of what is counted from the first moment on.
    pub(super) fn is_incomplete(&self) -> bool {
        self.cpu_ns == 0 || self.memory_bytes == 0
    }
}

/// The last point, and the one that its rate counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) last: Point,
    before: Option<Point>,
}

/// What is used, on average over a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) at_ms: i64,
    pub(super) window_ms: i64,
    /// Billionths of a processor.
    pub(super) cpu_nanos: u64,
    pub(super) memory_bytes: u64,
}

impl Kept {
    /// What is to be kept once there is another point.
    pub(super) fn next(known: Option<&Kept>, new: Point) -> Kept {
        let age_ms = new.at_ms - new.started_ms;
        let before = if (MIN_AGE_MS..RESOLUTION_MS).contains(&age_ms) {
            // At its start it had used nothing.
            Some(Point { at_ms: new.started_ms, cpu_ns: 0, ..new })
        } else {
            // One that was started anew counts from nothing.
            let known = known.filter(|known| new.started_ms < known.last.at_ms);
            known.and_then(|known| match new.at_ms > known.last.at_ms {
                true => Some(known.last),
                false => known.before.filter(|before| before.at_ms < new.at_ms),
            })
        };
        Kept { last: new, before }
    }

    pub(super) fn has_rate(&self) -> bool {
        self.before.is_some()
    }

    /// `None` with one point only, or two that cannot be of the same.
    pub(super) fn used(&self) -> Option<Used> {
        let (last, before) = (self.last, self.before?);
        if last.started_ms < before.started_ms || last.at_ms <= before.at_ms {
            return None;
        }
        let (ns, window_ms) = (last.cpu_ns.checked_sub(before.cpu_ns)?, last.at_ms - before.at_ms);
        let rate = ns as f64 / NS_PER_S / (window_ms as f64 / MS_PER_S);
        let cpu_nanos = (rate * NS_PER_S) as u64;
        Some(Used { at_ms: last.at_ms, window_ms, cpu_nanos, memory_bytes: last.memory_bytes })
    }
}

/// What a node's page says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Page {
    pub(super) node: Option<Point>,
    /// In the order of their keys.
    pub(super) containers: Vec<(Key, Point)>,
}

/// What is kept of a node and of the containers on it.
#[derive(Debug, Default)]
pub(super) struct NodeUsage {
    pub(super) node: Option<Kept>,
    /// In the order of their keys.
    containers: Box<[(Key, Kept)]>,
}

impl NodeUsage {
    pub(super) fn next(known: Option<&NodeUsage>, page: Page) -> NodeUsage {
        let of = |key: Key| known.and_then(|known| known.container(key));
        let containers = page.containers.into_iter();
        NodeUsage {
            node: page.node.map(|new| Kept::next(known.and_then(|known| known.node.as_ref()), new)),
            containers: containers.map(|(key, new)| (key, Kept::next(of(key), new))).collect(),
        }
    }

    pub(super) fn container(&self, key: Key) -> Option<&Kept> {
        let at = self.containers.binary_search_by_key(&key, |(own, _)| *own).ok()?;
        Some(&self.containers[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(started_s: i64, at_s: i64, cpu_ms: u64) -> Point {
        Point {
            started_ms: started_s * 1000,
            at_ms: at_s * 1000,
            cpu_ns: cpu_ms * 1_000_000,
            memory_bytes: 4096,
        }
    }

    /// The rate in thousandths of a processor and the window in seconds after these points.
    #[track_caller]
    fn check(points: &[Point], wanted: Option<(u64, i64)>) {
        let kept = points.iter().fold(None, |kept: Option<Kept>, new| Some(Kept::next(kept.as_ref(), *new)));
        let used = kept.and_then(|kept| kept.used());
        assert_eq!(
            used.map(|used| (used.cpu_nanos / 1_000_000, used.window_ms / 1000)),
            wanted,
            "{points:?}"
        );
    }

    #[test]
    fn a_rate_is_between_the_last_two_points_that_differ() {
        check(&[point(0, 100, 10)], None);
        check(&[point(0, 100, 1000), point(0, 115, 4000)], Some((200, 15)));
        check(&[point(0, 100, 1000), point(0, 115, 4000), point(0, 130, 4000)], Some((0, 15)));
        // What a kubelet has not measured anew since is no point of its own.
        check(&[point(0, 100, 1000), point(0, 115, 4000), point(0, 115, 4000)], Some((200, 15)));
    }

    #[test]
    fn a_container_that_is_ten_seconds_old_has_the_rate_of_its_life() {
        check(&[point(100, 109, 900)], None);
        check(&[point(100, 110, 900)], Some((90, 10)));
        check(&[point(100, 115, 900)], None);
    }

    #[test]
    fn what_was_started_anew_or_goes_backwards_has_no_rate() {
        check(&[point(0, 100, 1000), point(101, 115, 4000)], Some((285, 14)));
        check(&[point(0, 100, 1000), point(101, 120, 4000)], None);
        check(&[point(0, 100, 1000), point(0, 115, 500)], None);
        check(&[point(0, 100, 1000), point(0, 90, 1500)], None);
    }

    #[test]
    fn a_node_keeps_what_its_last_page_named() {
        let [a, b] = ["a", "b"].map(|container| Key::of("ns", "pod", container));
        let page = |keys: &[Key], at_s, cpu_ms| {
            let mut containers: Vec<_> = keys.iter().map(|key| (*key, point(0, at_s, cpu_ms))).collect();
            containers.sort_unstable_by_key(|(key, _)| *key);
            Page { node: Some(point(0, at_s, cpu_ms)), containers }
        };
        let first = NodeUsage::next(None, page(&[a, b], 100, 1000));
        let second = NodeUsage::next(Some(&first), page(&[b], 115, 2500));
        assert_eq!(second.container(a), None);
        assert_eq!(second.container(b).and_then(Kept::used).map(|used| used.cpu_nanos), Some(100_000_000));
        assert_eq!(second.node.and_then(|node| node.used()).map(|used| used.window_ms), Some(15_000));
    }
}
