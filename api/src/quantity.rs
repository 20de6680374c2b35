//! Quantities: `500m`, `1Gi`, `1e3`.
//!
//! Source: apimachinery's `resource.Quantity`. A value is kept in billionths, which is as fine as upstream
//! goes; what is finer is rounded up.

use std::fmt;
use std::str::FromStr;

/// The family of suffixes a quantity was written with, kept when it is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suffixes {
    /// `m`, `k`, `M`, …
    Decimal,
    /// `Ki`, `Mi`, …
    Binary,
    /// `1e3`.
    Exponent,
}

/// An exact decimal number with the suffix family it was written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantity {
    nanos: i128,
    suffixes: Suffixes,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct QuantityError;

/// In billionths.
const MILLI: i128 = 1_000_000;
const NANO: i128 = 1_000_000_000;
/// Larger values are cut to this: 10^28, which leaves room for sums. Upstream knows no bound here.
const MAX: i128 = 10_i128.pow(37);
/// Upstream's largest value with a binary suffix, 2^63-1.
const MAX_BINARY: i128 = i64::MAX as i128 * NANO;
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl Quantity {
    pub fn from_units(units: i64, suffixes: Suffixes) -> Self {
        Quantity { nanos: i128::from(units) * NANO, suffixes }
    }

    pub fn from_nanos(nanos: u64) -> Self {
        Quantity { nanos: i128::from(nanos), suffixes: Suffixes::Decimal }
    }

    pub fn from_millis(millis: i64) -> Self {
        Quantity { nanos: i128::from(millis) * 1_000_000, suffixes: Suffixes::Decimal }
    }

    pub fn written_as(self, suffixes: Suffixes) -> Self {
        Quantity { suffixes, ..self }
    }

    /// The value in whole units, rounded up (away from zero).
    pub fn units(self) -> i64 {
        i64::try_from(div_up(self.nanos, NANO)).unwrap_or(i64::MAX)
    }

    /// The value in thousandths, rounded up.
    pub fn millis(self) -> i64 {
        i64::try_from(div_up(self.nanos, 1_000_000)).unwrap_or(i64::MAX)
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// The next whole number of units.
    pub fn rounded_up(self) -> Quantity {
        Quantity { nanos: div_up(self.nanos, NANO) * NANO, suffixes: self.suffixes }
    }

    /// The next whole number of thousandths, away from zero.
    pub fn rounded_up_to_thousandths(self) -> Quantity {
        Quantity { nanos: div_up(self.nanos, MILLI) * MILLI, suffixes: self.suffixes }
    }

    /// The number without a suffix: `1.5`.
    pub fn to_decimal(self) -> String {
        let (sign, nanos) = (if self.nanos < 0 { "-" } else { "" }, self.nanos.unsigned_abs());
        let rest = format!("{:09}", nanos % NANO.unsigned_abs());
        let (units, rest) = (nanos / NANO.unsigned_abs(), rest.trim_end_matches('0'));
        let point = if rest.is_empty() { "" } else { "." };
        format!("{sign}{units}{point}{rest}")
    }

    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }
}

impl std::ops::Add for Quantity {
    type Output = Quantity;

    /// Keeps the left side's suffixes, as upstream does.
    fn add(self, other: Quantity) -> Quantity {
        let suffixes = if self.is_zero() { other.suffixes } else { self.suffixes };
        Quantity { nanos: (self.nanos + other.nanos).clamp(-MAX, MAX), suffixes }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Quantity;

    /// Keeps the left side's suffixes.
    fn sub(self, other: Quantity) -> Quantity {
        Quantity { nanos: (self.nanos - other.nanos).clamp(-MAX, MAX), suffixes: self.suffixes }
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.nanos.partial_cmp(&other.nanos)
    }
}

/// The text that a quantity is kept with: `1000m` is `1`, `1024Ki` is `1Mi`, `0.5` is `500m`. What looks canonical to upstream
/// stays as it was written: `+5`, `007`, `1.500`.
pub fn canonical(text: &str) -> Result<String, QuantityError> {
    let text = text.trim();
    let quantity: Quantity = text.parse()?;
    Ok(if Written::read(text)?.is_kept() { text.to_owned() } else { quantity.to_string() })
}

/// The text of a quantity as an amount of a resource, which has whole thousandths; `None` if it is kept.
pub fn rounded_up_to_thousandths(text: &str) -> Option<String> {
    let quantity: Quantity = text.parse().ok()?;
    let is_fine = Written::read(text).is_ok_and(|written| written.exponent() < -3);
    is_fine.then(|| quantity.rounded_up_to_thousandths().to_string())
}

/// The parts of a quantity's text.
struct Written<'t> {
    negative: bool,
    /// Without zeros in front; empty is zero.
    whole: &'t str,
    fraction: &'t str,
    scale: Scale,
    suffixes: Suffixes,
}

impl<'t> Written<'t> {
    fn read(text: &'t str) -> Result<Written<'t>, QuantityError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
            None => return Err(QuantityError),
        };
        let digits_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(digits_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') {
            return Err(QuantityError);
        }
        let (scale, suffixes) = scale(suffix)?;
        Ok(Written { negative, whole: whole.trim_start_matches('0'), fraction, scale, suffixes })
    }

    /// Of ten, of the last digit.
    fn exponent(&self) -> i32 {
        let suffix = match self.scale {
            Scale::Ten(exponent) => exponent,
            Scale::Two(_) => 0,
        };
        suffix - i32::try_from(self.fraction.len()).unwrap_or(i32::MAX)
    }

    /// Whether upstream takes the text for canonical already. It looks no closer than this.
    fn is_kept(&self) -> bool {
        let whole = if self.whole.is_empty() { "0" } else { self.whole };
        let digits = whole.len() + self.fraction.len();
        match self.scale {
            Scale::Ten(_) => {
                let last = format!("{whole}{}", self.fraction);
                let exponent = self.exponent();
                digits <= 18
                    && exponent >= -9
                    && exponent % 3 == 0
                    && !last.ends_with("000")
                    && !last.starts_with('0')
            }
            Scale::Two(shift) => {
                let room = 14 - i64::from(shift * 3 / 10);
                let value = whole.parse::<i64>().ok().filter(|value| value.checked_mul(1 << shift).is_some());
                self.fraction.is_empty()
                    && i64::try_from(digits).is_ok_and(|digits| digits <= room)
                    && value.is_some_and(|value| value & 7 != 0)
            }
        }
    }
}

fn div_up(value: i128, by: i128) -> i128 {
    let quotient = value / by;
    if value % by == 0 { quotient } else { quotient + value.signum() }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let written = Written::read(text)?;
        let magnitude = match written.scale {
            Scale::Ten(exponent) => decimal(written.whole, written.fraction, exponent + 9),
            Scale::Two(shift) => binary(written.whole, written.fraction, shift),
        };
        let nanos = magnitude.min(MAX);
        let suffixes = written.suffixes;
        Ok(Quantity { nanos: if written.negative { -nanos } else { nanos }, suffixes })
    }
}

enum Scale {
    /// Times ten to the power of.
    Ten(i32),
    /// Times two to the power of.
    Two(u32),
}

fn scale(suffix: &str) -> Result<(Scale, Suffixes), QuantityError> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((Scale::Ten(*exponent), Suffixes::Decimal));
    }
    if let Some(at) = BINARY.iter().position(|s| *s == suffix) {
        return Ok((Scale::Two(10 * (at as u32 + 1)), Suffixes::Binary));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError)?;
    let exponent: i32 = exponent.strip_prefix('+').unwrap_or(exponent).parse().map_err(|_| QuantityError)?;
    Ok((Scale::Ten(exponent.clamp(-40, 40)), Suffixes::Exponent))
}

/// `whole.fraction` × 10^`exponent`, rounded up, cut to [`MAX`].
fn decimal(whole: &str, fraction: &str, exponent: i32) -> i128 {
    // Digits past the twentieth only decide whether to round up.
    let (kept, rest) = fraction.split_at(fraction.len().min(20));
    let mut rest = rest.bytes().any(|digit| digit != b'0');
    let digits = whole.bytes().chain(kept.bytes());
    let mut value = digits.fold(0i128, |value, digit| {
        value.saturating_mul(10).saturating_add(i128::from(digit - b'0')).min(i128::MAX / 1000)
    });
    let exponent = exponent - kept.len() as i32;
    for _ in 0..exponent {
        value = value.saturating_mul(10).min(MAX);
    }
    for _ in exponent..0 {
        rest |= value % 10 != 0;
        value /= 10;
    }
    value + i128::from(rest)
}

/// `whole.fraction` × 2^`shift` in billionths, rounded up, cut to [`MAX_BINARY`].
fn binary(whole: &str, fraction: &str, shift: u32) -> i128 {
    /// Digits that are looked at; what comes after them only rounds up the last.
    const DIGITS: usize = 18;
    let whole = decimal(whole, "", 0).saturating_mul(1 << shift).saturating_mul(NANO);
    let kept: String = fraction.chars().chain(std::iter::repeat('0')).take(DIGITS).collect();
    let rest = fraction.bytes().skip(DIGITS).any(|digit| digit != b'0');
    // Below 10^18, and 2^60 at most.
    let fraction = (decimal(&kept, "", 0) + i128::from(rest)) << shift;
    whole.saturating_add(div_up(fraction, NANO)).min(MAX_BINARY)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        match self.suffixes {
            // Small values read better in decimal, and fractions would be lost; upstream switches as well.
            Suffixes::Binary if self.nanos.abs() >= 1024 * NANO && self.is_whole() => {
                let mut units = self.nanos / NANO;
                let mut at = 0;
                while units % 1024 == 0 && at < BINARY.len() {
                    units /= 1024;
                    at += 1;
                }
                write!(f, "{units}{}", if at == 0 { "" } else { BINARY[at - 1] })
            }
            Suffixes::Binary | Suffixes::Decimal => {
                let (value, at) = thousands(self.nanos);
                write!(f, "{value}{}", DECIMAL[at].0)
            }
            Suffixes::Exponent => {
                let (value, at) = thousands(self.nanos);
                match DECIMAL[at].1 {
                    0 => write!(f, "{value}"),
                    exponent => write!(f, "{value}e{exponent}"),
                }
            }
        }
    }
}

/// Takes out factors of a thousand; answers what is left and the place in [`DECIMAL`].
fn thousands(nanos: i128) -> (i128, usize) {
    let (mut value, mut at) = (nanos, 0);
    while value % 1000 == 0 && at + 1 < DECIMAL.len() {
        value /= 1000;
        at += 1;
    }
    (value, at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_are_written_as_upstream_writes_them() {
        for (given, wanted) in [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1500m", "1500m"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("64Mi", "64Mi"),
            ("1000", "1k"),
            ("100", "100"),
            ("1e3", "1e3"),
            ("1E3", "1E3"),
            ("1.10Ki", "1126400m"),
            ("12e6", "12e6"),
            ("0", "0"),
            ("0.0001", "100u"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("-5", "-5"),
            ("1.1n", "2n"),
            ("110", "110"),
            ("3Ei", "3Ei"),
        ] {
            assert_eq!(canonical(given).as_deref(), Ok(wanted), "{given}");
        }
    }

    /// Each line is a text, and what apimachinery v0.36.3 makes of it: its canonical form and that rounded up to
    /// thousandths, or `-` twice.
    #[test]
    fn quantities_are_read_written_and_rounded_as_upstream_does() {
        let mut differing = Vec::new();
        for line in include_str!("quantity.cases.tsv").lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [given, wanted, rounded] = fields[..] else { panic!("{line}") };
            let ours = canonical(given).unwrap_or("-".into());
            let ours_rounded = rounded_up_to_thousandths(&ours).unwrap_or(ours.clone());
            if (ours.as_str(), ours_rounded.as_str()) != (wanted, rounded) {
                differing.push(format!("{given}: {wanted} {rounded}, not {ours} {ours_rounded}"));
            }
        }
        assert!(differing.is_empty(), "{differing:#?}");
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "1x", "1..2", "1Kib", "0x10", "1 Gi", "1e", "--1"] {
            assert_eq!(canonical(text), Err(QuantityError), "{text}");
        }
    }

    #[test]
    fn values_round_up() {
        let value = |t: &str| t.parse::<Quantity>().unwrap();
        assert_eq!(value("1500m").units(), 2);
        assert_eq!(value("250m").millis(), 250);
        assert_eq!(value("1Gi").units(), 1 << 30);
        assert!(value("1Gi") > value("1G"));
    }

    proptest! {
        #[test]
        fn a_canonical_quantity_stays_as_it_is(number in -1_000_000_000i64..1_000_000_000, suffix in "(|m|k|M|Ki|Mi|Gi)") {
            let once = canonical(&format!("{number}{suffix}")).unwrap();
            prop_assert_eq!(canonical(&once).unwrap(), once);
        }

        #[test]
        fn no_text_panics(text in ".{0,20}") {
            let _ = canonical(&text);
        }
    }
}
