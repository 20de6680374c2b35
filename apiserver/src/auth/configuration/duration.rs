//! Durations as Go reads and prints them.

use std::time::Duration;

use crate::request;

/// One that may be negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signed {
    pub(super) is_negative: bool,
    pub(super) size: Duration,
}

impl Signed {
    /// # Errors
    /// Go's own sentence.
    pub(super) fn parse(text: &str) -> Result<Signed, String> {
        // Asked as a whole, as the sentence repeats it.
        request::duration(text)?;
        let (is_negative, size) = match text.strip_prefix('-') {
            Some(rest) => (true, request::duration(rest)?),
            None => (false, request::duration(text)?),
        };
        Ok(Signed { is_negative: is_negative && !size.is_zero(), size })
    }

    /// As Go's `Duration.String`.
    pub(super) fn shown(self) -> String {
        let sign = if self.is_negative { "-" } else { "" };
        let (seconds, nanos) = (self.size.as_secs(), self.size.subsec_nanos());
        let fraction = |value: u64, width: usize| {
            let digits = format!("{value:0width$}");
            let digits = digits.trim_end_matches('0');
            if digits.is_empty() { String::new() } else { format!(".{digits}") }
        };
        let shown = match (seconds, nanos) {
            (0, 0) => "0s".to_owned(),
            (0, nanos) if nanos < 1_000 => format!("{nanos}ns"),
            (0, nanos) if nanos < 1_000_000 => {
                format!("{}{}µs", nanos / 1_000, fraction(u64::from(nanos % 1_000), 3))
            }
            (0, nanos) => {
                format!("{}{}ms", nanos / 1_000_000, fraction(u64::from(nanos % 1_000_000), 6))
            }
            (seconds, nanos) => {
                let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
                let hours_shown = if hours > 0 { format!("{hours}h") } else { String::new() };
                let minutes_shown =
                    if hours > 0 || minutes > 0 { format!("{minutes}m") } else { String::new() };
                format!("{hours_shown}{minutes_shown}{}{}s", seconds % 60, fraction(u64::from(nanos), 9))
            }
        };
        format!("{sign}{shown}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_go_prints_them() {
        for (text, shown) in [
            ("31s", "31s"),
            ("-5s", "-5s"),
            ("90m", "1h30m0s"),
            ("5m", "5m0s"),
            ("1500ms", "1.5s"),
            ("2ms", "2ms"),
            ("1.5ms", "1.5ms"),
            ("0", "0s"),
            ("-0s", "0s"),
        ] {
            assert_eq!(Signed::parse(text).map(Signed::shown), Ok(shown.to_owned()), "{text}");
        }
        assert_eq!(Signed::parse("-x").expect_err("none"), "time: invalid duration \"-x\"");
    }
}
