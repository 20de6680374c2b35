//! Moments as upstream reads and writes them: RFC 3339, years 0 to 9999.
//!
//! [`jiff::Timestamp`] ends a day before the year 9999 does, and people write its last second to mean "never".
//!
//! Source: Go's `time.Parse` with `time.RFC3339`, apimachinery's `Time` and `MicroTime`.

use jiff::civil::{Date, DateTime};

/// How finely a field keeps its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// `Time`: what is finer is cut off.
    Seconds,
    /// `MicroTime`: always written with six decimals, and read with nothing else.
    Micros,
}

/// A moment in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// Since 1970, negative before.
    seconds: i64,
    nanos: u32,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TimeError {
    #[error("parsing time {text:?} as {layout:?}: cannot parse {text:?}")]
    Malformed { text: String, layout: &'static str },
    #[error("time {text:?} lies outside of the years 0 to 9999 in UTC")]
    OutOfRange { text: String },
}

/// `0001-01-01T00:00:00Z`, which Go takes for no time at all.
const ZERO_S: i64 = -62_135_596_800;
const FIRST_S: i64 = -62_167_219_200;
const LAST_S: i64 = 253_402_300_799;

impl Precision {
    fn layout(self) -> &'static str {
        match self {
            Precision::Seconds => "2006-01-02T15:04:05Z07:00",
            Precision::Micros => "2006-01-02T15:04:05.000000Z07:00",
        }
    }
}

impl Moment {
    /// `None` outside of the years 0 to 9999.
    pub fn new(seconds: i64, nanos: u32) -> Option<Moment> {
        let in_range = (FIRST_S..=LAST_S).contains(&seconds) && nanos < 1_000_000_000;
        in_range.then_some(Moment { seconds, nanos })
    }

    /// Reads a time as a field of this precision is read.
    ///
    /// # Errors
    /// For what Go's layout does not take, and moments that have no four-digit year in UTC.
    pub fn parse(text: &str, precision: Precision) -> Result<Moment, TimeError> {
        let parsed = Reader { rest: text.as_bytes() }
            .moment(precision)
            .ok_or_else(|| TimeError::Malformed { text: shown(text), layout: precision.layout() })?;
        Moment::new(parsed.seconds, parsed.nanos).ok_or_else(|| TimeError::OutOfRange { text: shown(text) })
    }

    pub fn seconds(self) -> i64 {
        self.seconds
    }

    pub fn nanos(self) -> u32 {
        self.nanos
    }

    /// Go's zero time, which stands for no time.
    pub fn is_zero(self) -> bool {
        self.seconds == ZERO_S && self.nanos == 0
    }

    /// Without what is finer than a second.
    pub fn seconds_only(self) -> Moment {
        Moment { nanos: 0, ..self }
    }

    pub fn to_text(self, precision: Precision) -> String {
        let (days, of_day) = (self.seconds.div_euclid(86_400), self.seconds.rem_euclid(86_400));
        let date = civil_of_days(days);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        let (year, month, day) = date;
        let head = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
        match precision {
            Precision::Seconds => format!("{head}Z"),
            Precision::Micros => format!("{head}.{:06}Z", self.nanos / 1000),
        }
    }
}

/// Days since 1970 to a date. The calendar repeats every 400 years, of 146,097 days; counted from March, a leap day is
/// the last of its year.
fn civil_of_days(days: i64) -> (i64, i64, i64) {
    let from_march = days + 719_468;
    let (era, of_era) = (from_march.div_euclid(146_097), from_march.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// As much of a text as an error shows.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

struct Parsed {
    seconds: i64,
    nanos: u32,
}

struct Reader<'t> {
    rest: &'t [u8],
}

impl Reader<'_> {
    fn moment(mut self, precision: Precision) -> Option<Parsed> {
        let date = self.date()?;
        self.literal(b'T')?;
        let hour = self.hour()?;
        self.literal(b':')?;
        let minute = self.digits(2)?;
        self.literal(b':')?;
        let second = self.digits(2)?;
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let nanos = self.fraction(precision)?;
        let offset_s = self.offset()?;
        if !self.rest.is_empty() {
            return None;
        }
        let midnight: DateTime = date.at(0, 0, 0, 0);
        let since = midnight.duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0));
        let seconds = since.as_secs() + hour * 3600 + minute * 60 + second - offset_s;
        Some(Parsed { seconds, nanos })
    }

    fn date(&mut self) -> Option<Date> {
        let year = self.digits(4)?;
        self.literal(b'-')?;
        let month = self.digits(2)?;
        self.literal(b'-')?;
        let day = self.digits(2)?;
        Date::new(year.try_into().ok()?, month.try_into().ok()?, day.try_into().ok()?).ok()
    }

    /// Go takes an hour of one digit.
    fn hour(&mut self) -> Option<i64> {
        let one_digit = self.rest.get(1).is_none_or(|byte| !byte.is_ascii_digit());
        self.digits(if one_digit { 1 } else { 2 })
    }

    /// Seconds may have a fraction that their layout does not mention; that of microseconds has six digits.
    fn fraction(&mut self, precision: Precision) -> Option<u32> {
        let begins = matches!(self.rest, [b'.' | b',', digit, ..] if digit.is_ascii_digit());
        if !begins {
            return (precision == Precision::Seconds).then_some(0);
        }
        let digits = &self.rest[1..];
        let count = match precision {
            Precision::Seconds => digits.iter().take_while(|byte| byte.is_ascii_digit()).count(),
            Precision::Micros => 6,
        };
        let kept = digits.get(..count)?;
        if !kept.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let padded = kept.iter().copied().chain(std::iter::repeat(b'0')).take(9);
        let nanos = padded.fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0'));
        self.rest = &digits[count..];
        Some(nanos)
    }

    /// Seconds east of Greenwich.
    fn offset(&mut self) -> Option<i64> {
        if self.literal(b'Z').is_some() {
            return Some(0);
        }
        let sign = match self.rest.first()? {
            b'+' => 1,
            b'-' => -1,
            _ => return None,
        };
        self.rest = &self.rest[1..];
        let hours = self.digits(2)?;
        self.literal(b':')?;
        let minutes = self.digits(2)?;
        (hours <= 24 && minutes <= 60).then_some(sign * (hours * 3600 + minutes * 60))
    }

    fn digits(&mut self, count: usize) -> Option<i64> {
        let (digits, rest) = self.rest.split_at_checked(count)?;
        let all = digits.iter().all(u8::is_ascii_digit);
        self.rest = rest;
        all.then(|| digits.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0')))
    }

    fn literal(&mut self, byte: u8) -> Option<()> {
        self.rest = self.rest.strip_prefix(&[byte])?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> Option<String> {
        Moment::parse(text, Precision::Seconds).ok().map(|at| at.to_text(Precision::Seconds))
    }

    fn micros(text: &str) -> Option<String> {
        Moment::parse(text, Precision::Micros).ok().map(|at| at.to_text(Precision::Micros))
    }

    #[test]
    fn times_are_read_as_go_reads_them() {
        for (given, wanted) in [
            ("2026-02-28T01:02:03Z", Some("2026-02-28T01:02:03Z")),
            ("2026-02-28T01:02:03.999999999Z", Some("2026-02-28T01:02:03Z")),
            ("2026-02-28T01:02:03,5Z", Some("2026-02-28T01:02:03Z")),
            ("2026-02-28T1:02:03Z", Some("2026-02-28T01:02:03Z")),
            ("2026-02-28T01:02:03+02:30", Some("2026-02-27T22:32:03Z")),
            ("2024-02-29T00:00:00-00:00", Some("2024-02-29T00:00:00Z")),
            ("1969-12-31T23:59:59Z", Some("1969-12-31T23:59:59Z")),
            ("2026-02-29T00:00:00Z", None),
            ("2026-02-28t01:02:03Z", None),
            ("2026-02-28T01:02:03z", None),
            ("2026-02-28 01:02:03Z", None),
            ("2026-02-28T01:02Z", None),
            ("2026-02-28T24:00:00Z", None),
            ("2026-02-28T01:02:60Z", None),
            ("2026-02-28T01:02:03", None),
            ("2026-02-28T01:02:03.Z", None),
            ("2026-02-28T01:02:03+0230", None),
            ("2026-02-28T01:02:03+25:00", None),
            ("2026-02-28", None),
            ("", None),
            ("now", None),
        ] {
            assert_eq!(seconds(given).as_deref(), wanted, "{given}");
        }
    }

    #[test]
    fn the_last_second_of_the_year_9999_is_a_time_and_the_next_is_none() {
        assert_eq!(seconds("9999-12-31T23:59:59Z").as_deref(), Some("9999-12-31T23:59:59Z"));
        assert_eq!(seconds("0000-01-01T00:00:00Z").as_deref(), Some("0000-01-01T00:00:00Z"));
        for beyond in ["9999-12-31T23:59:59-00:01", "0000-01-01T00:00:00+00:01"] {
            let error = Moment::parse(beyond, Precision::Seconds).unwrap_err();
            assert_eq!(error, TimeError::OutOfRange { text: beyond.into() });
        }
    }

    #[test]
    fn a_micro_time_has_six_decimals_and_no_others() {
        assert_eq!(micros("2026-02-28T01:02:03.000001Z").as_deref(), Some("2026-02-28T01:02:03.000001Z"));
        for text in ["2026-02-28T01:02:03Z", "2026-02-28T01:02:03.1Z", "2026-02-28T01:02:03.1234567Z"] {
            assert_eq!(micros(text), None, "{text}");
        }
    }

    #[test]
    fn days_of_ten_thousand_years_are_written_as_they_were_read() {
        for days in ((FIRST_S / 86_400)..=(LAST_S / 86_400)).step_by(5) {
            let text = Moment::new(days * 86_400 + 7, 0).unwrap().to_text(Precision::Seconds);
            assert_eq!(Moment::parse(&text, Precision::Seconds).unwrap().seconds(), days * 86_400 + 7);
        }
    }
}
