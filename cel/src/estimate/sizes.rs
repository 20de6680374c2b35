//! From how much to how much something may be.

/// A least and a most; the most of what is not known is all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub min: u64,
    pub max: u64,
}

impl Range {
    pub const UNKNOWN: Range = Range { min: 0, max: u64::MAX };
    /// What a union begins with.
    pub(crate) const NOTHING: Range = Range { min: u64::MAX, max: 0 };

    pub const fn exactly(n: u64) -> Range {
        Range { min: n, max: n }
    }

    pub(crate) fn plus(self, other: Range) -> Range {
        Range { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    pub(crate) fn times(self, other: Range) -> Range {
        Range { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    pub(crate) fn scaled(self, factor: f64) -> Range {
        Range { min: scaled(self.min, factor), max: scaled(self.max, factor) }
    }

    pub(crate) fn union(self, other: Range) -> Range {
        Range { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// A product, rounded up; what does not fit is all.
pub(crate) fn scaled(n: u64, factor: f64) -> u64 {
    // A cast of a float keeps within what fits.
    (n as f64 * factor).ceil() as u64
}
