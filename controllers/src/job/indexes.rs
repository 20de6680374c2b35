//! Sets of completion indexes, written as `1,3-5,7`.

use std::fmt;

/// Indexes of a job whose completions are told apart: ranges in order, each with a gap before the next. A range of two
/// thousand million is said in a few bytes, and costs no more here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes(Vec<Range>);

/// Both ends are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    first: i32,
    last: i32,
}

impl Range {
    fn len(self) -> i64 {
        i64::from(self.last) - i64::from(self.first) + 1
    }
}

impl Indexes {
    /// What is below `end` of a list of numbers and ranges; what cannot be read is left out.
    pub(super) fn parse(text: &str, end: i32) -> Indexes {
        let ranges = text.split(',').filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (i32, i32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            let (first, last) = (first.max(0), last.min(end.saturating_sub(1)));
            (first <= last).then_some(Range { first, last })
        });
        Indexes::of(ranges.collect())
    }

    fn of(mut ranges: Vec<Range>) -> Indexes {
        ranges.sort_unstable();
        ranges.dedup_by(|range, before| {
            let meets = range.first <= before.last.saturating_add(1);
            if meets {
                before.last = before.last.max(range.last);
            }
            meets
        });
        Indexes(ranges)
    }

    /// Where the first range is that does not end before an index.
    fn place(&self, index: i32) -> usize {
        self.0.partition_point(|range| range.last < index)
    }

    pub(super) fn has(&self, index: i32) -> bool {
        self.0.get(self.place(index)).is_some_and(|range| range.first <= index)
    }

    /// Answers whether it was not there yet.
    pub(super) fn insert(&mut self, index: i32) -> bool {
        if self.has(index) {
            return false;
        }
        let at = self.place(index);
        let follows = at.checked_sub(1).is_some_and(|before| self.0[before].last == index - 1);
        let leads = self.0.get(at).is_some_and(|range| range.first == index.saturating_add(1));
        match (follows, leads) {
            (true, true) => {
                self.0[at].first = self.0[at - 1].first;
                self.0.remove(at - 1);
            }
            (true, false) => self.0[at - 1].last = index,
            (false, true) => self.0[at].first = index,
            (false, false) => self.0.insert(at, Range { first: index, last: index }),
        }
        true
    }

    pub(super) fn len(&self) -> i32 {
        clamped(self.0.iter().map(|range| range.len()).sum())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many of these are also in `other`.
    pub(super) fn shared(&self, other: &Indexes) -> i32 {
        let both = self.0.iter().flat_map(|range| {
            let others = other.0[other.place(range.first)..].iter();
            let meeting = others.take_while(|other| other.first <= range.last);
            meeting.map(|other| {
                Range { first: range.first.max(other.first), last: range.last.min(other.last) }.len()
            })
        });
        clamped(both.sum())
    }

    pub(super) fn and(&self, other: &Indexes) -> Indexes {
        Indexes::of(self.0.iter().chain(&other.0).copied().collect())
    }

    /// Those from 0 to below `end` that are missing, in order.
    pub(super) fn missing(&self, end: i32) -> impl Iterator<Item = i32> + '_ {
        let starts = std::iter::once(0).chain(self.0.iter().map(|range| range.last.saturating_add(1)));
        let ends = self.0.iter().map(|range| range.first).chain(std::iter::once(end));
        starts.zip(ends).flat_map(move |(start, until)| start..until.min(end))
    }
}

fn clamped(n: i64) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for Range { first, last } in &self.0 {
            write!(f, "{separator}{first}")?;
            match last - first {
                0 => {}
                1 => write!(f, ",{last}")?,
                _ => write!(f, "-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn indexes_are_written_as_upstream_writes_them() {
        for text in ["", "0", "0,1", "0-2", "1,3-5,7", "1,3-5,7,8"] {
            assert_eq!(Indexes::parse(text, 100).to_string(), text);
        }
        assert_eq!(Indexes::parse("0-3,x,9", 3).to_string(), "0-2");
        assert_eq!(Indexes::parse("7,1-4,2,5", 9).to_string(), "1-5,7");
    }

    #[test]
    fn as_many_as_there_can_be_cost_no_more_than_one() {
        let all = Indexes::parse("0-2147483646", i32::MAX);
        assert_eq!((all.len(), all.0.len(), all.missing(i32::MAX).next()), (i32::MAX, 1, None));
        let half = Indexes::parse("1000000000-2147483646", i32::MAX);
        assert_eq!((all.shared(&half), half.missing(i32::MAX).next()), (1_147_483_647, Some(0)));
    }

    fn some() -> impl Strategy<Value = BTreeSet<i32>> {
        proptest::collection::btree_set(0..24, 0..16)
    }

    fn indexes(of: &BTreeSet<i32>) -> Indexes {
        let mut all = Indexes::default();
        // Every other one first, so that ranges grow at both ends and meet.
        let (even, odd): (Vec<i32>, Vec<i32>) = of.iter().partition(|index| **index % 2 == 0);
        for index in even.into_iter().rev().chain(odd) {
            assert!(all.insert(index) && !all.insert(index));
        }
        all
    }

    proptest! {
        #[test]
        fn they_are_what_a_plain_set_is(a in some(), b in some()) {
            let (x, y) = (indexes(&a), indexes(&b));
            prop_assert_eq!(&Indexes::parse(&x.to_string(), 24), &x);
            prop_assert_eq!(x.len(), i32::try_from(a.len()).unwrap());
            prop_assert!((-1..25).all(|index| x.has(index) == a.contains(&index)));
            prop_assert_eq!(x.shared(&y), i32::try_from(a.intersection(&b).count()).unwrap());
            prop_assert_eq!(x.and(&y), indexes(&a.union(&b).copied().collect()));
            let missing: Vec<i32> = (0..20).filter(|index| !a.contains(index)).collect();
            prop_assert_eq!(x.missing(20).collect::<Vec<_>>(), missing);
        }
    }
}
