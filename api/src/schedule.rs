//! When a CronJob runs.
//!
//! - Five fields: minute, hour, day of the month, month, day of the week. Each is a list of numbers, names, ranges and
//!   steps. Where both days are given, either will do.
//! - A word for such fields, such as `@hourly`; or `@every` and an interval.
//! - `TZ=` or `CRON_TZ=` and a zone before it, which only what was written long ago still has.
//!
//! Source: what upstream reads schedules with, robfig/cron v3, to the words of its errors.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _, Zoned};
use thiserror::Error;

/// How many years ahead a time is looked for.
const MAX_YEARS: i16 = 5;

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ScheduleError {
    #[error("empty spec string")]
    Empty,
    #[error("provided bad location {zone}: unknown time zone {zone}")]
    Zone { zone: String },
    #[error("invalid schedule format: a time zone and nothing else: {0}")]
    OnlyZone(String),
    #[error("expected exactly 5 fields, found {count}: [{fields}]")]
    Fields { count: usize, fields: String },
    #[error("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: {why}")]
    Number { text: String, why: &'static str },
    #[error("negative number ({number}) not allowed: {text}")]
    Negative { number: i64, text: String },
    #[error("too many hyphens: {0}")]
    Hyphens(String),
    #[error("too many slashes: {0}")]
    Slashes(String),
    #[error("beginning of range ({start}) below minimum ({min}): {text}")]
    BelowMinimum { start: u64, min: u64, text: String },
    #[error("end of range ({end}) above maximum ({max}): {text}")]
    AboveMaximum { end: u64, max: u64, text: String },
    #[error("beginning of range ({start}) beyond end of range ({end}): {text}")]
    Backwards { start: u64, end: u64, text: String },
    #[error("step of range should be a positive number: {0}")]
    Step(String),
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
    #[error("failed to parse duration {text}: {why}")]
    Interval { text: String, why: String },
}

/// A zone by its IANA name, spelled as IANA spells it. The names are built in: no machine lacks them.
pub fn time_zone(name: &str) -> Option<TimeZone> {
    if name.is_empty() || name == "UTC" {
        return Some(TimeZone::UTC);
    }
    TimeZone::get(name).ok().filter(|zone| zone.iana_name() == Some(name))
}

/// The values that a field may have.
struct Bounds {
    min: u64,
    max: u64,
    /// From `min` on.
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOURS: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAYS: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTHS: Bounds = Bounds {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Bounds = Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

/// The values of a field, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Values {
    bits: u64,
    /// Whether it says that any will do, in which case it does not make another field optional.
    is_any: bool,
}

impl Values {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|value| self.bits.checked_shr(value).unwrap_or(0) & 1 == 1)
    }

    fn parse(text: &str, bounds: &Bounds) -> Result<Values, ScheduleError> {
        let mut values = Values::default();
        for range in text.split(',').filter(|range| !range.is_empty()) {
            let Values { bits, is_any } = parse_range(range, bounds)?;
            values = Values { bits: values.bits | bits, is_any: values.is_any || is_any };
        }
        Ok(values)
    }
}

fn parse_range(text: &str, bounds: &Bounds) -> Result<Values, ScheduleError> {
    let (range, steps) = text.split_once('/').map_or((text, None), |(range, steps)| (range, Some(steps)));
    let mut is_any = false;
    let (start, mut end, is_single) = match range.split('-').collect::<Vec<_>>().as_slice() {
        ["*" | "?", rest @ ..] => {
            is_any = true;
            (bounds.min, bounds.max, rest.is_empty())
        }
        [start] => {
            let start = parse_value(start, bounds)?;
            (start, start, true)
        }
        [start, end] => (parse_value(start, bounds)?, parse_value(end, bounds)?, false),
        _ => return Err(ScheduleError::Hyphens(text.to_owned())),
    };
    if steps.is_some_and(|steps| steps.contains('/')) {
        return Err(ScheduleError::Slashes(text.to_owned()));
    }
    if steps.is_some() && is_single {
        end = bounds.max;
    }
    let step = steps.map_or(Ok(1), parse_number)?;
    let text = text.to_owned();
    if start < bounds.min {
        return Err(ScheduleError::BelowMinimum { start, min: bounds.min, text });
    }
    if end > bounds.max {
        return Err(ScheduleError::AboveMaximum { end, max: bounds.max, text });
    }
    if start > end {
        return Err(ScheduleError::Backwards { start, end, text });
    }
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    if step == 0 {
        return Err(ScheduleError::Step(text));
    }
    let bits = (start..=end).step_by(step).fold(0, |bits, value| bits | 1 << value);
    Ok(Values { bits, is_any: is_any && step == 1 })
}

fn parse_value(text: &str, bounds: &Bounds) -> Result<u64, ScheduleError> {
    let named = bounds.names.iter().zip(bounds.min..).find(|(name, _)| text.eq_ignore_ascii_case(name));
    named.map_or_else(|| parse_number(text), |(_, value)| Ok(value))
}

fn parse_number(text: &str) -> Result<u64, ScheduleError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let why = if is_number { "value out of range" } else { "invalid syntax" };
    let fault = || ScheduleError::Number { text: text.to_owned(), why };
    let number: i64 = text.parse().map_err(|_| fault())?;
    u64::try_from(number).map_err(|_| ScheduleError::Negative { number, text: text.to_owned() })
}

#[derive(Clone, Debug)]
enum When {
    Fields {
        minutes: Values,
        hours: Values,
        days: Values,
        months: Values,
        weekdays: Values,
    },
    /// In whole seconds.
    Every(SignedDuration),
}

/// When something is to happen, again and again.
#[derive(Clone, Debug)]
pub struct Schedule {
    when: When,
    /// If the schedule itself says so.
    zone: Option<TimeZone>,
}

impl Schedule {
    pub fn parse(text: &str) -> Result<Schedule, ScheduleError> {
        if text.is_empty() {
            return Err(ScheduleError::Empty);
        }
        let Some(zoned) = text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) else {
            return Ok(Schedule { when: parse_when(text)?, zone: None });
        };
        let (name, rest) = zoned.split_once(' ').ok_or_else(|| ScheduleError::OnlyZone(text.to_owned()))?;
        let zone = time_zone(name).ok_or_else(|| ScheduleError::Zone { zone: name.to_owned() })?;
        Ok(Schedule { when: parse_when(rest.trim())?, zone: Some(zone) })
    }

    /// The first time after another, in a zone unless the schedule has one of its own. `None` if there is none within
    /// years.
    ///
    /// An hour that a clock leaves out has no times, and one that it repeats has them twice.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match &self.when {
            When::Every(interval) => whole_second(after).checked_add(*interval).ok(),
            When::Fields { .. } => {
                self.next_of_fields(after.to_zoned(self.zone.as_ref().unwrap_or(zone).clone()))
            }
        }
    }

    fn next_of_fields(&self, after: Zoned) -> Option<Timestamp> {
        let When::Fields { minutes, hours, months, .. } = &self.when else { return None };
        if [minutes, hours, months].iter().any(|values| values.bits == 0) {
            return None;
        }
        let last_year = after.year().saturating_add(MAX_YEARS);
        let mut at = next_minute(&after)?;
        while at.year() <= last_year {
            if !months.has(at.month()) {
                let next = at.date().first_of_month().checked_add(1.month()).ok()?;
                at = start_of(next, &at)?;
            } else if !self.has_day(at.date()) {
                at = start_of(at.date().tomorrow().ok()?, &at)?;
            } else if !hours.has(at.hour()) {
                let to_next_hour = SignedDuration::from_mins(60 - i64::from(at.minute()));
                at = at.checked_add(to_next_hour).ok()?;
            } else if !minutes.has(at.minute()) {
                at = next_minute(&at)?;
            } else {
                return Some(at.timestamp());
            }
        }
        None
    }

    fn has_day(&self, date: Date) -> bool {
        let When::Fields { days, weekdays, .. } = &self.when else { return false };
        let by_day = days.has(date.day());
        let by_weekday = weekdays.has(date.weekday().to_sunday_zero_offset());
        match days.is_any || weekdays.is_any {
            true => by_day && by_weekday,
            false => by_day || by_weekday,
        }
    }
}

fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn next_minute(at: &Zoned) -> Option<Zoned> {
    let left = SignedDuration::from_secs(60 - i64::from(at.second()));
    at.checked_add(left - SignedDuration::from_nanos(at.subsec_nanosecond().into())).ok()
}

/// The first instant of a day, where `like` is.
fn start_of(date: Date, like: &Zoned) -> Option<Zoned> {
    date.to_zoned(like.time_zone().clone()).and_then(|day| day.start_of_day()).ok()
}

fn parse_when(text: &str) -> Result<When, ScheduleError> {
    if let Some(interval) = text.strip_prefix("@every ") {
        let fault = |why: String| ScheduleError::Interval { text: text.to_owned(), why };
        let interval = parse_duration(interval).map_err(fault)?;
        let seconds = i64::try_from(interval.as_secs()).unwrap_or(i64::MAX).max(1);
        return Ok(When::Every(SignedDuration::from_secs(seconds)));
    }
    let text = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ if text.starts_with('@') => return Err(ScheduleError::Descriptor(text.to_owned())),
        _ => text,
    };
    let fields: Vec<&str> = text.split_whitespace().collect();
    let [minutes, hours, days, months, weekdays] = fields[..] else {
        return Err(ScheduleError::Fields { count: fields.len(), fields: fields.join(" ") });
    };
    Ok(When::Fields {
        minutes: Values::parse(minutes, &MINUTES)?,
        hours: Values::parse(hours, &HOURS)?,
        days: Values::parse(days, &DAYS)?,
        months: Values::parse(months, &MONTHS)?,
        weekdays: Values::parse(weekdays, &WEEKDAYS)?,
    })
}

/// Numbers with units, as Go writes them: `1h30m`. One that is negative is none at all.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let is_negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let is_number = number.bytes().any(|b| b.is_ascii_digit()) && number.matches('.').count() <= 1;
        let number: f64 = number.parse().ok().filter(|_| is_number).ok_or_else(invalid)?;
        let unit_s = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            unit => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
        };
        let part = Duration::try_from_secs_f64(number * unit_s).map_err(|_| invalid())?;
        total = total
            .checked_add(part)
            .filter(|total| i64::try_from(total.as_nanos()).is_ok())
            .ok_or_else(invalid)?;
        rest = after;
    }
    Ok(if is_negative { Duration::ZERO } else { total })
}

#[cfg(test)]
mod tests;
