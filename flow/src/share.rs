//! How many seats each level has: its nominal limit by its shares, and every ten seconds a limit of its own between what it does not
//! lend and what it may borrow, in proportion to what was wanted lately.
//!
//! Source: KEP-1040, "Dispatching", and upstream's `conc_alloc`.

use std::time::Duration;

use crate::config::{Level, Response};

/// How much of the smoothed demand outlives ten seconds: half is left after five minutes.
const SMOOTHING: f64 = 0.977;
/// Divides by no zero.
const MIN_TARGET: f64 = 0.001;

/// The bounds of a level's seats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Bounds {
    pub(crate) nominal: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

pub(crate) fn bounds(level: &Level, total: f64, shares: f64) -> Bounds {
    let nominal = if shares > 0.0 { (total * level.shares / shares).ceil() } else { 0.0 };
    let lendable = (nominal * level.lendable_percent / 100.0).round();
    let borrowed = level.borrowing_percent.map_or(total, |percent| (nominal * percent / 100.0).round());
    Bounds { nominal, min: nominal - lendable, max: nominal + borrowed }
}

/// How many seats were wanted at once, over time.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    wanted: f64,
    since: Duration,
    begun: Duration,
    sum: f64,
    squares: f64,
    high: f64,
    smoothed: f64,
}

impl Demand {
    pub(crate) fn set(&mut self, now: Duration, wanted: f64) {
        self.advance(now);
        self.wanted = wanted;
        self.high = self.high.max(wanted);
    }

    fn advance(&mut self, now: Duration) {
        let seconds = now.saturating_sub(self.since).as_secs_f64();
        self.sum += self.wanted * seconds;
        self.squares += self.wanted * self.wanted * seconds;
        self.since = now;
    }

    /// Ends a period: the most that was wanted at once in it, and the smoothed demand.
    pub(crate) fn end_period(&mut self, now: Duration) -> (f64, f64) {
        self.advance(now);
        let seconds = now.saturating_sub(self.begun).as_secs_f64();
        if seconds > 0.0 {
            let mean = self.sum / seconds;
            let deviation = (self.squares / seconds - mean * mean).max(0.0).sqrt();
            let envelope = mean + deviation;
            self.smoothed = envelope.max(SMOOTHING * self.smoothed + (1.0 - SMOOTHING) * envelope);
        }
        let high = self.high;
        (self.begun, self.sum, self.squares, self.high) = (now, 0.0, 0.0, self.wanted);
        (high, self.smoothed)
    }
}

/// What a level gets at least and at most, and what it would have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) target: f64,
}

/// One level, when seats are shared out.
pub(crate) struct Claim {
    pub(crate) bounds: Bounds,
    pub(crate) response: Response,
    /// The most seats wanted at once, and the smoothed demand.
    pub(crate) demand: (f64, f64),
}

/// The limit of each level from now on.
pub(crate) fn limits(claims: &[Claim]) -> Vec<f64> {
    let is_exempt = |claim: &Claim| claim.response == Response::Exempt;
    let total: f64 = claims.iter().map(|claim| claim.bounds.nominal).sum();
    let mut left = total;
    let mut wishes = Vec::new();
    for claim in claims {
        let (high, smoothed) = claim.demand;
        let Bounds { nominal, min, max } = claim.bounds;
        if is_exempt(claim) {
            left -= min.max(high);
        } else {
            let low = min.max(nominal.min(high));
            wishes.push(Wish { low, high: max, target: low.max(smoothed) });
        }
    }
    let least: f64 = wishes.iter().map(|wish| wish.low).sum();
    let mins: f64 = claims.iter().filter(|c| !is_exempt(c)).map(|c| c.bounds.min).sum();
    let shared = if left <= mins {
        // What is exempt takes all that could be lent.
        claims.iter().filter(|c| !is_exempt(c)).map(|c| c.bounds.min).collect()
    } else if left <= least {
        // Not even that much: what lies above what nobody lends is cut in proportion.
        let factor = if least > mins { (left - mins) / (least - mins) } else { 0.0 };
        let limited = claims.iter().filter(|c| !is_exempt(c));
        limited.zip(&wishes).map(|(c, wish)| c.bounds.min + (wish.low - c.bounds.min) * factor).collect()
    } else {
        allocate(total, &wishes)
    };
    let mut shared = shared.into_iter();
    let limit = |claim: &Claim| {
        if is_exempt(claim) {
            claim.bounds.min.max(claim.demand.0)
        } else {
            shared.next().unwrap_or(claim.bounds.min).round()
        }
    };
    claims.iter().map(limit).collect()
}

/// Shares `total` out so that each gets the same part of its target, within its bounds.
fn allocate(total: f64, wishes: &[Wish]) -> Vec<f64> {
    let given = |part: f64| -> Vec<f64> {
        wishes.iter().map(|wish| (part * wish.target.max(MIN_TARGET)).clamp(wish.low, wish.high)).collect()
    };
    // The sum grows with the part, in straight lines between these points.
    let mut points: Vec<f64> = wishes
        .iter()
        .flat_map(|wish| [wish.low / wish.target.max(MIN_TARGET), wish.high / wish.target.max(MIN_TARGET)])
        .collect();
    points.sort_by(f64::total_cmp);
    let mut below = (0.0, given(0.0).iter().sum::<f64>());
    for point in points {
        let sum: f64 = given(point).iter().sum();
        if sum >= total {
            let slope = sum - below.1;
            let way = if slope > 0.0 { (total - below.1).max(0.0) / slope } else { 0.0 };
            return given(below.0 + (point - below.0) * way);
        }
        below = (point, sum);
    }
    // Everybody has all that he may have.
    given(below.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(low: f64, target: f64, high: f64) -> Wish {
        Wish { low, high, target }
    }

    #[test]
    fn everybody_gets_the_same_part_of_what_he_would_have_within_his_bounds() {
        let close = |given: Vec<f64>, wanted: &[f64]| {
            assert_eq!(given.len(), wanted.len());
            for (given, wanted) in given.iter().zip(wanted) {
                assert!((given - wanted).abs() < 1e-6, "{given} {wanted}");
            }
        };
        close(allocate(20.0, &[wish(0.0, 10.0, 100.0), wish(0.0, 30.0, 100.0)]), &[5.0, 15.0]);
        close(allocate(20.0, &[wish(8.0, 10.0, 100.0), wish(0.0, 30.0, 100.0)]), &[8.0, 12.0]);
        close(allocate(20.0, &[wish(0.0, 10.0, 100.0), wish(0.0, 30.0, 9.0)]), &[11.0, 9.0]);
        close(allocate(200.0, &[wish(0.0, 10.0, 100.0), wish(0.0, 30.0, 9.0)]), &[100.0, 9.0]);
        close(allocate(10.0, &[wish(0.0, 0.0, 100.0), wish(0.0, 0.0, 100.0)]), &[5.0, 5.0]);
    }

    #[test]
    fn a_level_lends_what_it_may_and_no_more() {
        let bounds =
            |nominal: f64, lendable: f64| Bounds { nominal, min: nominal - lendable, max: nominal + 100.0 };
        let claim = |bounds, demand| Claim { bounds, response: Response::Reject, demand };
        let idle_and_busy = [claim(bounds(50.0, 20.0), (0.0, 0.0)), claim(bounds(50.0, 20.0), (90.0, 90.0))];
        assert_eq!(limits(&idle_and_busy), [30.0, 70.0]);
        let both_busy = [claim(bounds(50.0, 20.0), (90.0, 90.0)), claim(bounds(50.0, 20.0), (90.0, 90.0))];
        assert_eq!(limits(&both_busy), [50.0, 50.0]);
        let exempt = Claim { bounds: Bounds::default(), response: Response::Exempt, demand: (200.0, 200.0) };
        let flooded = [exempt, claim(bounds(50.0, 20.0), (9.0, 9.0)), claim(bounds(50.0, 10.0), (9.0, 9.0))];
        assert_eq!(limits(&flooded), [200.0, 30.0, 40.0]);
    }

    #[test]
    fn demand_is_smoothed_and_its_peak_is_of_the_period() {
        let at = Duration::from_secs;
        let mut demand = Demand::default();
        demand.set(at(0), 10.0);
        demand.set(at(5), 0.0);
        let (high, smoothed) = demand.end_period(at(10));
        assert!((high - 10.0).abs() < 1e-9 && (smoothed - 10.0).abs() < 1e-9, "5 on average, 5 around it");
        let (high, smoothed) = demand.end_period(at(20));
        assert!(high.abs() < 1e-9 && (smoothed - 9.77).abs() < 1e-9, "{smoothed}");
    }
}
