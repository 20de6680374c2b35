//! After how long somebody who was refused may come again: twice as long while many are refused, a second less while few are.
//!
//! Source: upstream's `dropped_requests_tracker`.

use std::collections::VecDeque;

const MAX_RETRY_S: u64 = 32;

#[derive(Debug)]
pub(crate) struct Dropped {
    /// Refusals of each second in which there were any, oldest first.
    history: VecDeque<(u64, u64)>,
    retry_after_s: u64,
    raised_at_s: Option<u64>,
}

impl Default for Dropped {
    fn default() -> Self {
        Dropped { history: VecDeque::new(), retry_after_s: 1, raised_at_s: None }
    }
}

impl Dropped {
    /// Notes a refusal in a second, and says how many seconds later to come again.
    pub(crate) fn note(&mut self, now_s: u64) -> u64 {
        match self.history.back_mut() {
            Some((second, refusals)) if *second == now_s => *refusals += 1,
            _ => {
                self.adjust(now_s);
                self.history.push_back((now_s, 1));
            }
        }
        self.retry_after_s
    }

    fn adjust(&mut self, now_s: u64) {
        let age = |second: u64| now_s.saturating_sub(second);
        while self.history.front().is_some_and(|(second, _)| age(*second) > MAX_RETRY_S) {
            self.history.pop_front();
        }
        let after = self.retry_after_s;
        let recent = self.history.iter().filter(|(second, _)| age(*second) <= after);
        let refusals: u64 = recent.map(|(_, refusals)| refusals).sum();
        if refusals >= 3 * after && self.raised_at_s.is_none_or(|at| age(at) >= after) {
            self.retry_after_s = (2 * after).min(MAX_RETRY_S);
            self.raised_at_s = Some(now_s);
        } else if refusals < after && after > 1 {
            self.retry_after_s -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_often_is_sent_away_for_longer_and_then_for_less() {
        let mut dropped = Dropped::default();
        let mut at = |second: u64, refusals: u64| (0..refusals).map(|_| dropped.note(second)).last();
        assert_eq!(at(100, 5), Some(1));
        assert_eq!(at(101, 20), Some(2), "doubled for what there was in the second before");
        assert_eq!(at(102, 20), Some(2), "not again so soon");
        assert_eq!(at(103, 1000), Some(4));
        for second in 104..200 {
            at(second, 1000);
        }
        assert_eq!(at(200, 1), Some(32));
        assert_eq!(at(300, 1), Some(31));
        assert_eq!(at(301, 1), Some(30));
    }
}
