//! When a node says that it is under pressure.

use std::fmt;
use std::str::FromStr;

use skiff_api::quantity::Quantity;

/// The least that must be free, in the form of the kubelet's flag `--eviction-hard`:
/// `memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%`.
///
/// A signal that is not named has no limit, as upstream has it. Signals of an image file system of its own are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvictionHard {
    memory_available: Least,
    nodefs_available: Least,
    nodefs_inodes_free: Least,
}

/// The least of something: an amount, or a part of all there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Least {
    Amount(u64),
    /// In thousandths of a percent.
    Part(u64),
}

const NOTHING: Least = Least::Amount(0);
/// All there is, in the unit of [`Least::Part`].
const WHOLE: u128 = 100_000;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EvictionHardError {
    #[error("{0:?} is not of the form SIGNAL<LEAST, such as nodefs.available<10%")]
    NoLimit(String),
    #[error("unknown signal {0:?}; known are memory.available, nodefs.available and nodefs.inodesFree")]
    UnknownSignal(String),
    #[error("{signal} is named twice")]
    Twice { signal: String },
    #[error(
        "the limit {limit:?} of {signal} is neither a quantity such as 100Mi nor a percentage from 0% to 100%"
    )]
    NoAmount { signal: String, limit: String },
}

impl Default for EvictionHard {
    /// Upstream's.
    fn default() -> EvictionHard {
        EvictionHard {
            memory_available: Least::Amount(100 << 20),
            nodefs_available: Least::Part(10_000),
            nodefs_inodes_free: Least::Part(5_000),
        }
    }
}

impl FromStr for EvictionHard {
    type Err = EvictionHardError;

    fn from_str(text: &str) -> Result<EvictionHard, EvictionHardError> {
        let mut limits = EvictionHard {
            memory_available: NOTHING,
            nodefs_available: NOTHING,
            nodefs_inodes_free: NOTHING,
        };
        let mut seen = Vec::new();
        for entry in text.split(',').filter(|entry| !entry.is_empty()) {
            let (signal, limit) =
                entry.split_once('<').ok_or_else(|| EvictionHardError::NoLimit(entry.to_owned()))?;
            let place = match signal {
                "memory.available" => &mut limits.memory_available,
                "nodefs.available" => &mut limits.nodefs_available,
                "nodefs.inodesFree" => &mut limits.nodefs_inodes_free,
                unknown => return Err(EvictionHardError::UnknownSignal(unknown.to_owned())),
            };
            if seen.contains(&signal) {
                return Err(EvictionHardError::Twice { signal: signal.to_owned() });
            }
            seen.push(signal);
            *place = Least::parse(limit).ok_or_else(|| EvictionHardError::NoAmount {
                signal: signal.to_owned(),
                limit: limit.to_owned(),
            })?;
        }
        Ok(limits)
    }
}

impl fmt::Display for EvictionHard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "memory.available<{},nodefs.available<{},nodefs.inodesFree<{}",
            self.memory_available, self.nodefs_available, self.nodefs_inodes_free
        )
    }
}

impl EvictionHard {
    pub(crate) fn memory(&self) -> Least {
        self.memory_available
    }

    pub(crate) fn disk(&self) -> Least {
        self.nodefs_available
    }

    pub(crate) fn inodes(&self) -> Least {
        self.nodefs_inodes_free
    }

    /// What of a node's memory is no pod's to ask for.
    pub(crate) fn reserved_memory(&self, total: u64) -> u64 {
        self.memory_available.of(total)
    }

    /// What of a node's storage is no pod's to ask for.
    pub(crate) fn reserved_storage(&self, total: u64) -> u64 {
        self.nodefs_available.of(total)
    }
}

impl Least {
    fn parse(text: &str) -> Option<Least> {
        if let Some(percent) = text.strip_suffix('%') {
            let thousandths = percent.parse::<Quantity>().ok()?.millis();
            return u64::try_from(thousandths)
                .ok()
                .filter(|part| u128::from(*part) <= WHOLE)
                .map(Least::Part);
        }
        let amount: Quantity = text.parse().ok()?;
        u64::try_from(amount.units()).ok().map(Least::Amount)
    }

    /// Of so many in all.
    pub(crate) fn of(self, total: u64) -> u64 {
        match self {
            Least::Amount(amount) => amount,
            Least::Part(part) => {
                u64::try_from(u128::from(total) * u128::from(part) / WHOLE).unwrap_or(u64::MAX)
            }
        }
    }
}

impl fmt::Display for Least {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Least::Amount(amount) => write!(f, "{amount}"),
            Least::Part(part) if part % 1000 == 0 => write!(f, "{}%", part / 1000),
            Least::Part(part) => write!(f, "{}.{:03}%", part / 1000, part % 1000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{EvictionHard, EvictionHardError, Least};

    const UPSTREAM: &str = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%";

    #[test]
    fn the_default_is_upstreams() {
        assert_eq!(UPSTREAM.parse(), Ok(EvictionHard::default()));
    }

    #[test]
    fn what_is_shown_is_what_is_read() {
        for text in [UPSTREAM, "nodefs.available<0.5%", "memory.available<0,nodefs.inodesFree<7"] {
            let limits: EvictionHard = text.parse().unwrap();
            assert_eq!(limits.to_string().parse(), Ok(limits), "{limits}");
        }
    }

    #[test]
    fn a_signal_without_a_limit_never_presses() {
        let limits: EvictionHard = "nodefs.available<1%".parse().unwrap();
        assert_eq!(limits.memory().of(1 << 30), 0);
        assert_eq!(limits.reserved_storage(200), 2);
    }

    #[test]
    fn a_part_is_of_all_and_does_not_overflow() {
        assert_eq!(Least::Part(10_000).of(u64::MAX), u64::MAX / 10);
        assert_eq!(Least::Part(500).of(1000), 5);
        assert_eq!(Least::Amount(7).of(1), 7);
    }

    #[test]
    fn what_is_no_limit_is_refused_by_name() {
        let refused = |text: &str| text.parse::<EvictionHard>().unwrap_err();
        assert_eq!(refused("nodefs.available"), EvictionHardError::NoLimit("nodefs.available".into()));
        assert_eq!(
            refused("imagefs.available<15%"),
            EvictionHardError::UnknownSignal("imagefs.available".into())
        );
        let twice = "memory.available<1Gi,memory.available<1%";
        assert_eq!(refused(twice), EvictionHardError::Twice { signal: "memory.available".into() });
        for limit in ["", "ten", "-1", "101%", "-1%", "%"] {
            let error = refused(&format!("memory.available<{limit}"));
            let signal = "memory.available".to_owned();
            assert_eq!(error, EvictionHardError::NoAmount { signal, limit: limit.to_owned() });
        }
    }
}
