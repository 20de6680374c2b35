//! How long to wait before the same thing is tried again: doubling, capped, forgotten after a while.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

/// Waits for one kind of failure, by key. Times are passed in: the decision is pure.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    wait: Duration,
    updated: Timestamp,
}

impl Backoff {
    pub(crate) fn new(first: Duration, max: Duration) -> Backoff {
        Backoff { first, max, entries: HashMap::new() }
    }

    /// The wait still ahead of something that failed at `since`, and the whole of it.
    pub(crate) fn remaining(
        &self,
        key: &str,
        since: Timestamp,
        now: Timestamp,
    ) -> Option<(Duration, Duration)> {
        let entry = self.entries.get(key)?;
        if self.expired(now, entry) {
            return None;
        }
        let left = entry.wait.checked_sub(elapsed(since, now))?;
        (!left.is_zero()).then_some((left, entry.wait))
    }

    /// The wait still ahead since the last failure that was recorded.
    pub(crate) fn remaining_since_update(&self, key: &str, now: Timestamp) -> Option<Duration> {
        let updated = self.entries.get(key)?.updated;
        self.remaining(key, updated, now).map(|(left, _)| left)
    }

    /// Records another try: the next wait is twice as long, unless the last one is long past.
    pub(crate) fn next(&mut self, key: &str, since: Timestamp, now: Timestamp) {
        let (first, max) = (self.first, self.max);
        let forget = self.entries.get(key).is_none_or(|e| self.expired(since, e));
        let entry = self.entries.entry(key.to_owned()).or_insert(Entry { wait: first, updated: now });
        entry.wait = if forget { first } else { (entry.wait * 2).min(max) };
        entry.updated = now;
    }

    fn expired(&self, now: Timestamp, entry: &Entry) -> bool {
        elapsed(entry.updated, now) > self.max * 2
    }
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// A duration as Go prints it, for messages that people and tools compare: `10s`, `1m20s`, `1.203s`.
pub(crate) fn go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let fraction = |value: u128, digits: usize| {
        let text = format!("{value:0digits$}");
        let trimmed = text.trim_end_matches('0');
        if trimmed.is_empty() { String::new() } else { format!(".{trimmed}") }
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}{}µs", nanos / 1_000, fraction(nanos % 1_000, 3)),
        1_000_000..1_000_000_000 => format!("{}{}ms", nanos / 1_000_000, fraction(nanos % 1_000_000, 6)),
        _ => {
            let (seconds, rest) = (duration.as_secs(), fraction(nanos % 1_000_000_000, 9));
            match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
                (0, 0, s) => format!("{s}{rest}s"),
                (0, m, s) => format!("{m}m{s}{rest}s"),
                (h, m, s) => format!("{h}h{m}m{s}{rest}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn backoff() -> Backoff {
        Backoff::new(Duration::from_secs(10), Duration::from_secs(300))
    }

    #[test]
    fn the_first_failure_waits_for_nothing_and_later_ones_twice_as_long_each() {
        let mut backoff = backoff();
        assert_eq!(backoff.remaining("a", at(0), at(0)), None);
        let mut waits = Vec::new();
        let mut now = 0;
        for _ in 0..7 {
            backoff.next("a", at(now), at(now));
            let (left, whole) = backoff.remaining("a", at(now), at(now)).unwrap();
            assert_eq!(left, whole);
            waits.push(whole.as_secs());
            now += i64::try_from(whole.as_secs()).unwrap();
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_minutes_of_running_forget_the_crashes() {
        let mut backoff = backoff();
        backoff.next("a", at(0), at(0));
        backoff.next("a", at(20), at(20));
        assert_eq!(backoff.remaining("a", at(700), at(700)), None);
        backoff.next("a", at(700), at(700));
        assert_eq!(backoff.remaining("a", at(700), at(700)).unwrap().1.as_secs(), 10);
    }

    #[test]
    fn durations_read_as_upstream_prints_them() {
        let millis = |ms| go_duration(Duration::from_millis(ms));
        assert_eq!(
            [
                millis(0),
                millis(250),
                millis(1203),
                millis(10_000),
                millis(80_000),
                millis(300_000),
                millis(3_600_500)
            ],
            ["0s", "250ms", "1.203s", "10s", "1m20s", "5m0s", "1h0m0.5s"]
        );
    }
}
