//! What containers use, as CRI tells it: the runtimes' figures, and how fast the processors' time grows between two looks.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use skiff_cri::Usage;
use skiff_cri::v1::*;

use crate::cri::now_ns;
use crate::records::ContainerRecord;

/// Looks that are closer together are answered with the rate of before: over so little time a rate says nothing.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// A look at a container, and its rate then.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Look {
    at: Instant,
    cpu_ns: u64,
    /// Billionths of a processor; `None` after the first look.
    nano_cores: Option<u64>,
}

impl Look {
    fn next(last: Option<Look>, at: Instant, cpu_ns: u64) -> Look {
        let Some(last) = last else { return Look { at, cpu_ns, nano_cores: None } };
        let passed = at.saturating_duration_since(last.at);
        if passed < MIN_INTERVAL {
            return last;
        }
        let used = u128::from(cpu_ns.saturating_sub(last.cpu_ns));
        let rate = used.saturating_mul(1_000_000_000) / passed.as_nanos().max(1);
        Look { at, cpu_ns, nano_cores: Some(u64::try_from(rate).unwrap_or(u64::MAX)) }
    }
}

/// The last look at each container.
#[derive(Default)]
pub(crate) struct UsageRates(Mutex<HashMap<String, Look>>);

impl UsageRates {
    pub(crate) fn stats(&self, record: &ContainerRecord, usage: Usage) -> ContainerStats {
        let look = {
            let mut looks = self.0.lock();
            let look = Look::next(looks.get(&record.id).copied(), Instant::now(), usage.cpu_usage_ns);
            looks.insert(record.id.clone(), look);
            look
        };
        let timestamp = now_ns();
        let value = |value| Some(UInt64Value { value });
        ContainerStats {
            attributes: Some(ContainerAttributes {
                id: record.id.clone(),
                metadata: record.config.metadata.clone(),
                labels: record.config.labels.clone(),
                annotations: record.config.annotations.clone(),
            }),
            cpu: Some(CpuUsage {
                timestamp,
                usage_core_nano_seconds: value(usage.cpu_usage_ns),
                usage_nano_cores: look.nano_cores.and_then(value),
                ..CpuUsage::default()
            }),
            memory: Some(MemoryUsage {
                timestamp,
                working_set_bytes: value(usage.memory_working_set_bytes),
                usage_bytes: value(usage.memory_usage_bytes),
                rss_bytes: value(usage.memory_rss_bytes),
                ..MemoryUsage::default()
            }),
            writable_layer: Some(FilesystemUsage {
                timestamp,
                used_bytes: value(usage.writable_layer_bytes),
                ..FilesystemUsage::default()
            }),
            ..ContainerStats::default()
        }
    }

    pub(crate) fn forget(&self, id: &str) {
        self.0.lock().remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_between_looks_that_are_far_enough_apart() {
        let begun = Instant::now();
        let after = |ms| begun + Duration::from_millis(ms);
        let first = Look::next(None, begun, 500);
        assert_eq!(first.nano_cores, None);
        assert_eq!(Look::next(Some(first), after(900), 1_000_000), first);
        let second = Look::next(Some(first), after(2000), 1_000_000_500);
        assert_eq!(second.nano_cores, Some(500_000_000), "half a processor");
        // As of a container whose group was made anew.
        assert_eq!(Look::next(Some(second), after(4000), 7).nano_cores, Some(0));
    }
}
