//! How long to wait before the same thing is tried again: doubling, capped, forgotten after a while.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// Waits for one kind of failure, by key, on the monotonic clock.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    wait: Duration,
    updated: Instant,
    /// The failure that was heard of last: what it is known by, and when it was.
    failed: Option<(Timestamp, Instant)>,
}

impl Backoff {
    pub(crate) fn new(first: Duration, max: Duration) -> Backoff {
        Backoff { first, max, entries: HashMap::new() }
    }

    /// When something failed of which the wall clock's time is known. That clock may have been set since: the failure was
    /// after the try that was recorded last, and is no less long ago at a second look.
    pub(crate) fn failed(&mut self, key: &str, at: Timestamp, wall: Timestamp) -> Instant {
        let now = Instant::now();
        let Some(entry) = self.entries.get_mut(key) else { return now };
        if let Some((known, since)) = entry.failed
            && known == at
        {
            return since;
        }
        let age = Duration::try_from(wall.duration_since(at)).unwrap_or_default();
        let since = now.checked_sub(age).unwrap_or(entry.updated).max(entry.updated);
        entry.failed = Some((at, since));
        since
    }

    /// The wait still ahead of something that failed at `since`, and the whole of it.
    pub(crate) fn remaining(&self, key: &str, since: Instant) -> Option<(Duration, Duration)> {
        let entry = self.entries.get(key)?;
        if self.expired(Instant::now(), entry) {
            return None;
        }
        let left = entry.wait.checked_sub(since.elapsed())?;
        (!left.is_zero()).then_some((left, entry.wait))
    }

    /// The wait still ahead since the last failure that was recorded.
    pub(crate) fn remaining_since_update(&self, key: &str) -> Option<Duration> {
        let updated = self.entries.get(key)?.updated;
        self.remaining(key, updated).map(|(left, _)| left)
    }

    /// Records another try: the next wait is twice as long, unless the last one is long past.
    pub(crate) fn next(&mut self, key: &str, since: Instant) {
        let (first, max, now) = (self.first, self.max, Instant::now());
        let forget = self.entries.get(key).is_none_or(|e| self.expired(since, e));
        let entry =
            self.entries.entry(key.to_owned()).or_insert(Entry { wait: first, updated: now, failed: None });
        entry.wait = if forget { first } else { (entry.wait * 2).min(max) };
        entry.updated = now;
    }

    fn expired(&self, at: Instant, entry: &Entry) -> bool {
        at.saturating_duration_since(entry.updated) > self.max * 2
    }
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

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_failure_waits_for_nothing_and_later_ones_twice_as_long_each() {
        let mut backoff = backoff();
        assert_eq!(backoff.remaining("a", Instant::now()), None);
        let mut waits = Vec::new();
        for _ in 0..7 {
            backoff.next("a", Instant::now());
            let (left, whole) = backoff.remaining("a", Instant::now()).unwrap();
            assert_eq!(left, whole);
            waits.push(whole.as_secs());
            pass(whole.as_secs()).await;
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
    }

    #[tokio::test(start_paused = true)]
    async fn ten_minutes_of_running_forget_the_crashes() {
        let mut backoff = backoff();
        backoff.next("a", Instant::now());
        pass(20).await;
        backoff.next("a", Instant::now());
        pass(680).await;
        assert_eq!(backoff.remaining("a", Instant::now()), None);
        backoff.next("a", Instant::now());
        assert_eq!(backoff.remaining("a", Instant::now()).unwrap().1.as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_neither_ends_a_back_off_nor_prolongs_it() {
        for set_s in [-86_400, -3600, 3600, 86_400] {
            let mut backoff = backoff();
            let first = backoff.failed("a", at(0), at(0));
            backoff.next("a", first);
            pass(3).await;
            // It failed two seconds ago; the clock was set just after.
            let since = backoff.failed("a", at(1), at(3 + set_s));
            let left = backoff.remaining("a", since).unwrap().0.as_secs();
            assert!((7..=10).contains(&left), "{set_s}: {left} s");
            pass(left - 1).await;
            let again = backoff.failed("a", at(1), at(9));
            assert_eq!(again, since);
            assert_eq!(backoff.remaining("a", again).unwrap().0.as_secs(), 1, "{set_s}");
            pass(1).await;
            assert_eq!(backoff.remaining("a", again), None);
        }
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
