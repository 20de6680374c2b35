//! Durations as Go writes and reads them: `1m30s`, `15.032s`, `20ms`.
//!
//! Source: Go's `time.ParseDuration` and `Duration.String`.

const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// How many nanoseconds a text says.
///
/// # Errors
/// Go's own sentence.
pub fn go_duration_ns(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut sum_ns: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(invalid());
        }
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        rest = after;
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {text:?}"));
        }
        let Some((_, unit_ns)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("time: unknown unit {unit:?} in duration {text:?}"));
        };
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        sum_ns += i128::from(whole) * i128::from(*unit_ns) + part_ns(fraction, *unit_ns);
        if sum_ns > i128::from(i64::MAX) {
            return Err(invalid());
        }
    }
    i64::try_from(sum_ns).map(|ns| sign * ns).map_err(|_| invalid())
}

/// What the digits behind the point of a unit are.
fn part_ns(fraction: &str, unit_ns: i64) -> i128 {
    // Finer than a billionth of the largest unit nothing is told apart.
    let digits = &fraction.as_bytes()[..fraction.len().min(18)];
    let value = digits.iter().fold(0_i128, |sum, digit| sum * 10 + i128::from(digit - b'0'));
    let digits = u32::try_from(digits.len()).unwrap_or_default();
    value * i128::from(unit_ns) / 10_i128.pow(digits)
}

/// So many nanoseconds, as Go writes them.
pub fn go_duration(ns: i64) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    let ns = ns.unsigned_abs();
    let (unit, name) = match ns {
        0 => return "0s".to_owned(),
        1..1_000 => (1, "ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    let (whole, part) = (ns / unit, ns % unit);
    let digits = unit.ilog10() as usize;
    let part = if part == 0 { String::new() } else { format!(".{part:0digits$}") };
    let part = part.trim_end_matches('0');
    match (whole / 3600, whole / 60 % 60) {
        _ if name != "s" => format!("{sign}{whole}{part}{name}"),
        (0, 0) => format!("{sign}{whole}{part}s"),
        (0, minutes) => format!("{sign}{minutes}m{}{part}s", whole % 60),
        (hours, minutes) => format!("{sign}{hours}h{minutes}m{}{part}s", whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them_and_read_again() {
        for (ns, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (15_000_000_000, "15s"),
            (15_032_000_000, "15.032s"),
            (60_000_000_000, "1m0s"),
            (3_600_500_000_000, "1h0m0.5s"),
            (-90_000_000_000, "-1m30s"),
        ] {
            assert_eq!(go_duration(ns), text);
            assert_eq!(go_duration_ns(text), Ok(ns), "{text}");
        }
    }

    #[test]
    fn what_go_does_not_read_is_refused() {
        for text in ["", "-", "1", "1x", ".s", "1..5s", "9223372037s"] {
            assert!(go_duration_ns(text).is_err(), "{text}");
        }
        assert_eq!(go_duration_ns("1.5h+"), Err("time: unknown unit \"h+\" in duration \"1.5h+\"".into()));
        assert_eq!(go_duration_ns("0"), Ok(0));
        assert_eq!(go_duration_ns(".5s"), Ok(500_000_000));
    }
}
