/// What a group may use. `None` leaves a limit as it is; the kernel's default for a new group is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The share of CPU under contention, as cgroup v1 counts: 2 to 262144, 1024 for one CPU.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time a period; negative for no limit.
    pub cpu_quota_us: Option<i64>,
    /// The period in microseconds, 1000 to 1000000.
    pub cpu_period_us: Option<u64>,
    /// Bytes of memory; negative for no limit.
    pub memory_bytes: Option<i64>,
    /// Bytes of swap, on v2 only, where swap is not counted as memory; negative for no limit.
    pub swap_bytes: Option<i64>,
    /// The number of processes and threads; negative for no limit.
    pub pids: Option<i64>,
}

/// The period that CPU quotas refer to unless another is given, as everywhere in Kubernetes.
pub(crate) const DEFAULT_CPU_PERIOD_US: u64 = 100_000;

pub(crate) const MIN_SHARES: u64 = 2;
pub(crate) const MAX_SHARES: u64 = 262_144;

/// cgroup v2's `cpu.weight` for v1's `cpu.shares`.
///
/// The curve runs through (2, 1), (1024, 100) and (262144, 10000): minimum, default and maximum of the
/// one are those of the other, as opencontainers/cgroups has it since 0.0.5.
pub fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=MIN_SHARES => 1,
        MAX_SHARES.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minimum_default_and_maximum_shares_are_those_of_weight() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }

    #[test]
    fn more_shares_never_weigh_less() {
        let mut last = 0;
        for shares in 2..10_000 {
            let weight = weight_of_shares(shares);
            assert!(weight >= last, "{shares}");
            last = weight;
        }
    }
}
