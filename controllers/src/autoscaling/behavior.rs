//! How fast the number of pods may follow what is proposed: windows, policies, limits. Pure; the clock is given.
//!
//! ```text
//!  proposed ─ stabilized: the most (or least) that was proposed within a window ─ limited: as much as policies allow ─ within min and max
//! ```
//!
//! Source: `normalizeDesiredReplicas` and `normalizeDesiredReplicasWithBehaviors` of upstream's controller.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// Upstream's `--horizontal-pod-autoscaler-downscale-stabilization`.
const DOWN_WINDOW: Duration = Duration::from_secs(300);
/// Without policies, so many times as many pods, or as many as `FREE_PODS`, may become of those that there are.
const MAX_FACTOR: i64 = 2;
const FREE_PODS: i64 = 4;
/// More than there are passes in the longest window, an hour.
const MAX_REMEMBERED: usize = 512;

/// What was proposed and done before, of one autoscaler.
#[derive(Debug, Default)]
pub(super) struct History {
    proposals: VecDeque<(Instant, i32)>,
    /// How many pods were added, and when.
    added: VecDeque<(Instant, i32)>,
    removed: VecDeque<(Instant, i32)>,
}

/// Between which numbers, and from which, the number of pods moves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) min: i32,
    pub(super) max: i32,
    pub(super) current: i32,
}

/// A condition's status, reason and message.
pub(super) type Told = (bool, &'static str, &'static str);

/// What became of a proposal, and how it is told.
#[derive(Debug, PartialEq)]
pub(super) struct Decision {
    pub(super) replicas: i32,
    pub(super) able: Told,
    pub(super) limited: Told,
}

const READY: Told = (true, "ReadyForNewScale", "recommended size matches current size");
const UP_STABILIZED: Told = (
    true,
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STABILIZED: Told = (
    true,
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const WITHIN: Told = (false, "DesiredWithinRange", "the desired count is within the acceptable range");
const UP_LIMIT: Told =
    (true, "ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: Told =
    (true, "ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const TOO_MANY: Told =
    (true, "TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: Told =
    (true, "TooFewReplicas", "the desired replica count is less than the minimum replica count");

impl History {
    /// The first number of pods that was seen counts as proposed.
    pub(super) fn begin(&mut self, current: i32, now: Instant) {
        if self.proposals.is_empty() {
            remember(&mut self.proposals, now, current);
        }
    }

    /// Of a proposal, what may be done now.
    pub(super) fn decide(
        &mut self,
        proposed: i32,
        bounds: Bounds,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        now: Instant,
    ) -> Decision {
        let (stabilized, able) = self.stabilized(proposed, bounds.current, behavior, now);
        let (replicas, reason) = match behavior {
            Some(behavior) => self.limited(stabilized, bounds, behavior, now),
            None => limited_without_policies(stabilized, bounds),
        };
        // What was not cut off is told with the same words, as a no.
        let limited = (replicas != stabilized, reason.1, reason.2);
        Decision { replicas, able, limited }
    }

    /// Notes that the number of pods was changed.
    pub(super) fn scaled(
        &mut self,
        from: i32,
        to: i32,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        now: Instant,
    ) {
        let Some(behavior) = behavior else { return };
        let (events, rules) = match to > from {
            true => (&mut self.added, behavior.scale_up.as_ref()),
            false => (&mut self.removed, behavior.scale_down.as_ref()),
        };
        let policies = rules.and_then(|rules| rules.policies.as_deref()).unwrap_or_default();
        let longest = policies.iter().map(|policy| seconds(policy.period_seconds)).max().unwrap_or_default();
        forget(events, longest, now);
        remember(events, now, to.saturating_sub(from).saturating_abs());
    }

    fn stabilized(
        &mut self,
        proposed: i32,
        current: i32,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        now: Instant,
    ) -> (i32, Told) {
        let window = |rules: Option<&HPAScalingRules>| {
            rules.and_then(|rules| rules.stabilization_window_seconds).map(seconds)
        };
        let up = behavior.and_then(|behavior| window(behavior.scale_up.as_ref())).unwrap_or_default();
        let down = behavior.and_then(|behavior| window(behavior.scale_down.as_ref())).unwrap_or(DOWN_WINDOW);
        let within =
            |window: Duration| self.proposals.iter().filter(move |(at, _)| now.duration_since(*at) < window);
        let least = within(up).fold(proposed, |least, (_, of)| least.min(*of));
        let most = within(down).fold(proposed, |most, (_, of)| most.max(*of));
        let stabilized = match behavior {
            Some(_) => current.max(least).min(most),
            None => most,
        };
        forget(&mut self.proposals, up.max(down), now);
        remember(&mut self.proposals, now, proposed);
        let told = match () {
            () if stabilized == proposed => READY,
            () if behavior.is_some() && proposed >= current => UP_STABILIZED,
            () => DOWN_STABILIZED,
        };
        (stabilized, told)
    }

    fn limited(
        &self,
        wanted: i32,
        bounds: Bounds,
        behavior: &HorizontalPodAutoscalerBehavior,
        now: Instant,
    ) -> (i32, Told) {
        let Bounds { min, max, current } = bounds;
        if wanted > current {
            // What was added already may be more than a policy allows by now.
            let limit = self.limit(current, behavior.scale_up.as_ref(), Direction::Up, now).max(current);
            let (most, reason) = if max > limit { (limit, UP_LIMIT) } else { (max, TOO_MANY) };
            return if wanted > most { (most, reason) } else { (wanted, WITHIN) };
        }
        if wanted < current {
            let limit = self.limit(current, behavior.scale_down.as_ref(), Direction::Down, now).min(current);
            let (least, reason) = if min < limit { (limit, DOWN_LIMIT) } else { (min, TOO_FEW) };
            return if wanted < least { (least, reason) } else { (wanted, WITHIN) };
        }
        (wanted, WITHIN)
    }

    /// How many pods the policies allow.
    fn limit(
        &self,
        current: i32,
        rules: Option<&HPAScalingRules>,
        direction: Direction,
        now: Instant,
    ) -> i32 {
        let Some(rules) = rules else { return current };
        let select = rules.select_policy.as_deref().unwrap_or("Max");
        if select == "Disabled" {
            return current;
        }
        let allowed = rules.policies.iter().flatten().map(|policy| {
            let period = seconds(policy.period_seconds);
            let changed = |events: &VecDeque<(Instant, i32)>| -> i64 {
                let recent = events.iter().filter(|(at, _)| now.duration_since(*at) < period);
                recent.map(|(_, n)| i64::from(*n)).sum()
            };
            let at_start = i64::from(current) - changed(&self.added) + changed(&self.removed);
            let (value, share) = (i64::from(policy.value), f64::from(policy.value) / 100.0);
            let n = match (policy.type_.as_str(), direction) {
                ("Pods", Direction::Up) => at_start + value,
                ("Pods", Direction::Down) => at_start - value,
                // Rounded up, so that few pods become more at all.
                (_, Direction::Up) => (at_start as f64 * (1.0 + share)).ceil() as i64,
                (_, Direction::Down) => (at_start as f64 * (1.0 - share)) as i64,
            };
            clamped(n)
        });
        // The policy that is chosen is the one that allows the largest change, or the smallest.
        let limit = match (select, direction) {
            ("Min", Direction::Up) | ("Max", Direction::Down) => allowed.min(),
            _ => allowed.max(),
        };
        limit.unwrap_or(current)
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Up,
    Down,
}

fn limited_without_policies(wanted: i32, bounds: Bounds) -> (i32, Told) {
    let limit = clamped((i64::from(bounds.current) * MAX_FACTOR).max(FREE_PODS));
    let (most, reason) = if bounds.max > limit { (limit, UP_LIMIT) } else { (bounds.max, TOO_MANY) };
    match () {
        () if wanted < bounds.min => (bounds.min, TOO_FEW),
        () if wanted > most => (most, reason),
        () => (wanted, WITHIN),
    }
}

fn seconds(seconds: i32) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn clamped(n: i64) -> i32 {
    i32::try_from(n).unwrap_or(if n < 0 { i32::MIN } else { i32::MAX })
}

fn forget(events: &mut VecDeque<(Instant, i32)>, after: Duration, now: Instant) {
    events.retain(|(at, _)| now.duration_since(*at) < after);
}

fn remember(events: &mut VecDeque<(Instant, i32)>, now: Instant, n: i32) {
    if events.len() >= MAX_REMEMBERED {
        events.pop_front();
    }
    events.push_back((now, n));
}

#[cfg(test)]
mod tests;
