//! Sets of numbers, by names that end in their unit.

use std::time::Duration;

use serde_json::{Map, Value};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures(Map<String, Value>);

impl Figures {
    /// Rounded to four significant digits: more is noise.
    pub fn set(&mut self, name: &str, value: f64) {
        self.0.insert(name.to_owned(), significant(value).into());
    }

    /// `NAME_p50_ms` and `NAME_p99_ms`; none of an empty set.
    pub fn percentiles(&mut self, name: &str, times: &mut [Duration]) {
        times.sort_unstable();
        for (suffix, share) in [("p50", 0.50), ("p99", 0.99)] {
            if let Some(time) = percentile(times, share) {
                self.set(&format!("{name}_{suffix}_ms"), time.as_secs_f64() * 1000.0);
            }
        }
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name)?.as_f64()
    }

    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }
}

/// Of a sorted set, by the nearest rank.
pub fn percentile(sorted: &[Duration], share: f64) -> Option<Duration> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

fn significant(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let digits = 3 - value.abs().log10().floor() as i32;
    let scale = 10f64.powi(digits.clamp(0, 9));
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(all: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        all.into_iter().map(Duration::from_millis).collect()
    }

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let mut figures = Figures::default();
        figures.percentiles("x", &mut ms((1..=200).rev()));
        assert_eq!(figures.get("x_p50_ms"), Some(100.0));
        assert_eq!(figures.get("x_p99_ms"), Some(198.0));
        assert_eq!(percentile(&ms([7]), 0.99), Some(Duration::from_millis(7)));
    }

    #[test]
    fn nothing_measured_gives_no_figure() {
        let mut figures = Figures::default();
        figures.percentiles("x", &mut []);
        assert_eq!(figures, Figures::default());
    }

    #[test]
    fn figures_keep_four_digits_and_all_before_the_point() {
        for (value, kept) in
            [(123_456.7, 123_457.0), (12.345_67, 12.35), (0.001_234_56, 0.001_235), (0.0, 0.0)]
        {
            assert_eq!(significant(value), kept);
        }
    }
}
