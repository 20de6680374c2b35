//! Latencies by request: histograms of fixed size.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};

/// What was asked, as upstream's own latency metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Call {
    pub verb: &'static str,
    pub resource: &'static str,
}

impl Call {
    pub const fn new(verb: &'static str, resource: &'static str) -> Call {
        Call { verb, resource }
    }
}

/// Steps between a duration and its double: values are exact to about 3 %.
const STEPS: u64 = 32;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Durations up to 2^36 µs, which is most of a day.
const N_BUCKETS: usize = 32 * STEPS as usize;

#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    n: u64,
    max_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; N_BUCKETS], n: 0, max_us: 0 }
    }
}

impl Histogram {
    pub fn record(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(us)] += 1;
        self.n += 1;
        self.max_us = self.max_us.max(us);
    }

    pub fn n(&self) -> u64 {
        self.n
    }

    fn add(&mut self, other: &Histogram) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
        self.n += other.n;
        self.max_us = self.max_us.max(other.max_us);
    }

    /// The least duration that so much of a hundred of all was not above.
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        let rank = (self.n as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        let us = found.map_or(self.max_us, |at| highest(at).min(self.max_us));
        tenths(us as f64 / 1000.0)
    }

    pub fn document(&self) -> Value {
        let (p50, p99) = (self.percentile_ms(50.0), self.percentile_ms(99.0));
        json!({"n": self.n, "p50_ms": p50, "p99_ms": p99, "max_ms": tenths(self.max_us as f64 / 1000.0)})
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn bucket(us: u64) -> usize {
    let exponent = us.max(1).ilog2();
    let at = match exponent.checked_sub(STEP_BITS) {
        None => us,
        Some(shift) => (u64::from(shift) + 1) * STEPS + ((us >> shift) - STEPS),
    };
    (at as usize).min(N_BUCKETS - 1)
}

/// The highest duration, in microseconds, that falls into a bucket.
fn highest(at: usize) -> u64 {
    let (group, step) = (at as u64 / STEPS, at as u64 % STEPS);
    match group.checked_sub(1) {
        None => step,
        Some(shift) => ((STEPS + step + 1) << shift) - 1,
    }
}

#[derive(Clone, Debug, Default)]
struct Row {
    took: Histogram,
    /// By status code; 0 where there was no answer.
    failed: BTreeMap<u16, u64>,
}

/// Every request of a phase.
#[derive(Debug, Default)]
pub struct Latencies {
    rows: Mutex<BTreeMap<Call, Row>>,
}

impl Latencies {
    /// `outcome` is the status code of a refusal, 0 where there was no answer.
    pub fn record(&self, call: Call, took: Duration, outcome: Result<(), u16>) {
        let mut rows = self.rows.lock();
        let row = rows.entry(call).or_default();
        match outcome {
            Ok(()) => row.took.record(took),
            Err(code) => *row.failed.entry(code).or_default() += 1,
        }
    }

    /// What was recorded since it was last taken.
    pub fn take(&self) -> PhaseLatencies {
        PhaseLatencies { rows: std::mem::take(&mut *self.rows.lock()) }
    }
}

#[derive(Clone, Debug, Default)]
pub struct PhaseLatencies {
    rows: BTreeMap<Call, Row>,
}

/// One line of a table.
#[derive(Clone, Debug)]
pub struct Line {
    pub verb: &'static str,
    /// `*` for all of a verb.
    pub resource: &'static str,
    pub took: Histogram,
    pub failed: BTreeMap<u16, u64>,
}

impl Line {
    pub fn document(&self) -> Value {
        let mut document = self.took.document();
        document["verb"] = self.verb.into();
        document["resource"] = self.resource.into();
        if !self.failed.is_empty() {
            document["failed"] = json!(self.failed);
        }
        document
    }
}

impl PhaseLatencies {
    pub fn add(&mut self, other: &PhaseLatencies) {
        for (call, row) in &other.rows {
            let mine = self.rows.entry(*call).or_default();
            mine.took.add(&row.took);
            row.failed.iter().for_each(|(code, n)| *mine.failed.entry(*code).or_default() += n);
        }
    }

    /// A line a verb and resource, in this order.
    pub fn lines(&self) -> Vec<Line> {
        let line = |(call, row): (&Call, &Row)| Line {
            verb: call.verb,
            resource: call.resource,
            took: row.took.clone(),
            failed: row.failed.clone(),
        };
        self.rows.iter().map(line).collect()
    }

    /// A line a verb.
    pub fn by_verb(&self) -> Vec<Line> {
        let mut verbs: BTreeMap<&'static str, Line> = BTreeMap::new();
        for line in self.lines() {
            match verbs.get_mut(line.verb) {
                Some(sum) => {
                    sum.took.add(&line.took);
                    line.failed.iter().for_each(|(code, n)| *sum.failed.entry(*code).or_default() += n);
                }
                None => {
                    verbs.insert(line.verb, Line { resource: "*", ..line });
                }
            }
        }
        verbs.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_never_below_the_truth_and_at_most_a_step_above_it() {
        for us in [0, 1, 31, 32, 33, 63, 64, 1000, 12_345, 1_000_000, 59_999_999] {
            let mut histogram = Histogram::default();
            histogram.record(Duration::from_micros(us));
            // Something above it, so that the highest value does not bound it.
            histogram.record(Duration::from_secs(3000));
            let found_us = histogram.percentile_ms(50.0) * 1000.0;
            assert!(found_us + 50.0 >= us as f64, "{us}: {found_us}");
            assert!(found_us <= us as f64 * 1.04 + 50.0, "{us}: {found_us}");
        }
    }

    #[test]
    fn percentiles_are_those_of_the_ranks() {
        let mut histogram = Histogram::default();
        (1..=100).for_each(|ms| histogram.record(Duration::from_millis(ms)));
        let near =
            |found: f64, wanted: f64| assert!((found - wanted).abs() <= wanted * 0.04, "{found} {wanted}");
        near(histogram.percentile_ms(50.0), 50.0);
        near(histogram.percentile_ms(99.0), 99.0);
        assert_eq!(histogram.percentile_ms(100.0), 100.0);
    }

    #[test]
    fn what_takes_days_counts_as_the_longest_there_is() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_secs(u64::from(u32::MAX)));
        assert_eq!(histogram.n(), 1);
    }

    #[test]
    fn a_verb_is_the_sum_of_its_resources_and_failures_are_no_latencies() {
        let latencies = Latencies::default();
        let ms = Duration::from_millis;
        latencies.record(Call::new("GET", "pods"), ms(1), Ok(()));
        latencies.record(Call::new("GET", "nodes"), ms(3), Ok(()));
        latencies.record(Call::new("GET", "nodes"), ms(9), Err(429));
        let phase = latencies.take();
        let [get] = &phase.by_verb()[..] else { panic!("{phase:?}") };
        assert_eq!((get.took.n(), get.resource, get.failed.get(&429)), (2, "*", Some(&1)));
        assert!(latencies.take().lines().is_empty(), "taken twice");
    }
}
