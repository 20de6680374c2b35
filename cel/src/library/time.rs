//! Moments and spans.
//!
//! Source: Go's `time.ParseDuration`, RFC 3339, and cel-go's `Timestamp`.

use super::{Function, Host, no_overload};
use crate::fault::Fault;
use crate::plan::Call;
use crate::run::Run;
use crate::value::{Timestamp, Value};

const NANOS: i128 = 1_000_000_000;
/// The years 1 to 9999, in seconds.
pub(crate) const RANGE: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

pub(super) fn function(name: &str) -> Option<Function> {
    matches!(
        name,
        "getFullYear"
            | "getMonth"
            | "getDayOfYear"
            | "getDayOfMonth"
            | "getDate"
            | "getDayOfWeek"
            | "getHours"
            | "getMinutes"
            | "getSeconds"
            | "getMilliseconds"
    )
    .then_some(part as Function)
}

fn part<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let (time, offset_seconds) = match args {
        [Value::Duration(nanos)] => return of_duration(call, *nanos),
        [Value::Timestamp(time)] => (time, 0),
        [Value::Timestamp(time), Value::Text(zone)] => (time, offset_of(zone, time)?),
        _ => return Err(no_overload(call, args)),
    };
    let there = civil(time.nanos, offset_seconds)?;
    Ok(Value::Int(match &*call.name {
        "getFullYear" => i64::from(there.year()),
        "getMonth" => i64::from(there.month()) - 1,
        "getDayOfYear" => i64::from(there.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(there.day()) - 1,
        "getDate" => i64::from(there.day()),
        "getDayOfWeek" => i64::from(there.weekday().to_sunday_zero_offset()),
        "getHours" => i64::from(there.hour()),
        "getMinutes" => i64::from(there.minute()),
        "getSeconds" => i64::from(there.second()),
        _ => i64::from(there.subsec_nanosecond()) / 1_000_000,
    }))
}

/// Date and time of day so far from UTC.
fn civil(nanos: i128, offset_seconds: i32) -> Result<jiff::civil::DateTime, Fault> {
    const DAY: i128 = 86_400 * NANOS;
    let nanos = nanos + i128::from(offset_seconds) * NANOS;
    let days = jiff::Span::new().try_days(nanos.div_euclid(DAY) as i64);
    let within = jiff::SignedDuration::from_nanos(nanos.rem_euclid(DAY) as i64);
    let day = days.and_then(|days| jiff::civil::date(1970, 1, 1).at(0, 0, 0, 0).checked_add(days));
    day.and_then(|day| day.checked_add(within)).map_err(|_| Fault::Overflow("timestamp"))
}

/// The moment of a date and a time of day so far from UTC.
fn moment(there: jiff::civil::DateTime, offset_seconds: i32) -> i128 {
    let epoch = jiff::civil::date(1970, 1, 1).at(0, 0, 0, 0);
    there.duration_since(epoch).as_nanos() - i128::from(offset_seconds) * NANOS
}

fn of_duration<'a>(call: &Call, nanos: i64) -> Run<'a> {
    Ok(Value::Int(match &*call.name {
        "getHours" => nanos / 3_600_000_000_000,
        "getMinutes" => nanos / 60_000_000_000,
        "getSeconds" => nanos / 1_000_000_000,
        "getMilliseconds" => nanos / 1_000_000,
        _ => return Err(no_overload(call, &[Value::Duration(nanos)])),
    }))
}

/// How far from UTC a zone is at a moment; it is called by its name, or by how far it is.
fn offset_of(name: &str, time: &Timestamp) -> Result<i32, Fault> {
    let unknown = || Fault::other(format!("unknown time zone {name}"));
    let Some((hours, minutes)) = name.split_once(':') else {
        if matches!(name, "" | "UTC") {
            return Ok(0);
        }
        // Names are told apart by case, as files are.
        let zone = jiff::tz::TimeZone::get(name).ok().filter(|zone| zone.iana_name() == Some(name));
        // Rules go on as they were at the ends of what is known.
        let (least, most) = (jiff::Timestamp::MIN.as_nanosecond(), jiff::Timestamp::MAX.as_nanosecond());
        let at = jiff::Timestamp::from_nanosecond(time.nanos.clamp(least, most)).map_err(|_| unknown())?;
        return zone.map(|zone| zone.to_offset(at).seconds()).ok_or_else(unknown);
    };
    let number = |text: &str| {
        text.parse::<i32>()
            .map_err(|_| Fault::other(format!("strconv.Atoi: parsing \"{text}\": invalid syntax")))
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let minutes = if name.starts_with('-') { -minutes } else { minutes };
    hours.checked_mul(60).and_then(|all| all.checked_add(minutes)?.checked_mul(60)).ok_or_else(unknown)
}

pub(super) fn in_range(time: Timestamp) -> Result<Timestamp, Fault> {
    let seconds = i64::try_from(time.nanos.div_euclid(NANOS)).unwrap_or(i64::MAX);
    if RANGE.contains(&seconds) { Ok(time) } else { Err(Fault::Overflow("timestamp")) }
}

pub(super) fn moved(time: Timestamp, by_nanos: i128) -> Result<Timestamp, Fault> {
    in_range(Timestamp { nanos: time.nanos + by_nanos, ..time })
}

/// `1h30m`, `-1.5s`, `100ms`, in billionths of a second.
pub(crate) fn duration(text: &str) -> Option<i64> {
    let (is_negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let (part, after) = duration_part(rest)?;
        nanos = nanos.checked_add(part)?;
        rest = after;
    }
    i64::try_from(if is_negative { -nanos } else { nanos }).ok()
}

/// As the format `duration` of schemas has it: as Go writes durations, or numbers before units anywhere in a text, `3 days`.
///
/// Source: `ParseDuration` of kube-openapi's `pkg/validation/strfmt`.
pub(crate) fn lax_duration(text: &str) -> Option<i64> {
    const UNITS: [(&[&str], &str, i64); 8] = [
        (&["ns"], "nano", 1),
        (&["us", "µs"], "micro", 1_000),
        (&["ms"], "milli", 1_000_000),
        (&["s"], "sec", 1_000_000_000),
        (&["m"], "min", 60_000_000_000),
        (&["h", "hr"], "hour", 3_600_000_000_000),
        (&["d"], "day", 86_400_000_000_000),
        (&["w", "wk"], "week", 604_800_000_000_000),
    ];
    if let Some(nanos) = duration(text) {
        return Some(nanos);
    }
    let (mut rest, mut found) = (text, None);
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        rest = &rest[start..];
        let n_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, after) = rest.split_at(n_digits);
        let unit = after.trim_start_matches([' ', '\t', '\n', '\x0c', '\r']);
        let end = unit.find(|c: char| !c.is_ascii_alphabetic() && c != 'µ').unwrap_or(unit.len());
        rest = after;
        if end == 0 {
            continue;
        }
        let (number, name) = (digits.parse::<i64>().ok()?, unit[..end].to_lowercase());
        for (names, prefix, nanos) in UNITS {
            if names.contains(&name.as_str()) || name.starts_with(prefix) {
                // What is too long wraps around, as Go's integers do.
                found = Some(found.unwrap_or(0_i64).wrapping_add(number.wrapping_mul(nanos)));
            }
        }
        rest = &unit[end..];
    }
    found
}

fn duration_part(text: &str) -> Option<(i128, &str)> {
    const UNITS: [(&str, i128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", NANOS),
        ("m", 60 * NANOS),
        ("h", 3600 * NANOS),
    ];
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = text.split_at(digits(text));
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(end);
    let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let mut nanos = if whole.is_empty() { 0 } else { i128::from(whole.parse::<i64>().ok()?) * scale };
    // What is finer than billionths is cut off.
    let fraction = &fraction[..fraction.len().min(18)];
    if !fraction.is_empty() {
        nanos += fraction.parse::<i128>().ok()? * scale / 10_i128.pow(fraction.len() as u32);
    }
    Some((nanos, rest))
}

pub(super) fn duration_text(nanos: i64) -> String {
    format!("{}s", (nanos / 1_000_000_000) as f64 + (nanos % 1_000_000_000) as f64 / 1e9)
}

/// A moment as RFC 3339 writes it; the fault is that of a moment that is too far away.
pub(crate) fn timestamp(text: &str) -> Result<Timestamp, Option<Fault>> {
    let (date, time, offset_seconds) = parts(text).ok_or(None)?;
    let nanos = moment(date.to_datetime(time), offset_seconds);
    in_range(Timestamp { nanos, offset_seconds }).map_err(Some)
}

fn parts(text: &str) -> Option<(jiff::civil::Date, jiff::civil::Time, i32)> {
    let number = |from: usize, to: usize| -> Option<i16> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let is = |at: usize, sign: char| text.get(at..).is_some_and(|rest| rest.starts_with(sign));
    if !(is(4, '-') && is(7, '-') && is(10, 'T') && is(13, ':') && is(16, ':')) {
        return None;
    }
    let small = |from: usize| number(from, from + 2).and_then(|n| i8::try_from(n).ok());
    let date = jiff::civil::Date::new(number(0, 4)?, small(5)?, small(8)?).ok()?;
    let second = small(17).filter(|second| *second < 60)?;
    let mut rest = &text[19..];
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let n_digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if n_digits == 0 {
            return None;
        }
        let digits = &fraction[..n_digits.min(9)];
        nanos = digits.parse::<i32>().ok()? * 10_i32.pow(9 - digits.len() as u32);
        rest = &fraction[n_digits..];
    }
    let time = jiff::civil::Time::new(small(11)?, small(14)?, second, nanos).ok()?;
    if rest == "Z" {
        return Some((date, time, 0));
    }
    let sign = match rest.bytes().next()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = rest.get(1..)?.split_once(':')?;
    let two = |text: &str| (text.len() == 2).then(|| text.parse::<u8>().ok()).flatten().map(i32::from);
    let (hours, minutes) = (two(hours).filter(|n| *n <= 24)?, two(minutes).filter(|n| *n < 60)?);
    Some((date, time, sign * (hours * 3600 + minutes * 60)))
}

pub(super) fn timestamp_text(time: Timestamp) -> String {
    let Ok(there) = civil(time.nanos, time.offset_seconds) else { return String::new() };
    let mut text = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        there.year(),
        there.month(),
        there.day(),
        there.hour(),
        there.minute(),
        there.second()
    );
    if there.subsec_nanosecond() != 0 {
        let digits = format!("{:09}", there.subsec_nanosecond());
        text = format!("{text}.{}", digits.trim_end_matches('0'));
    }
    match time.offset_seconds {
        0 => format!("{text}Z"),
        seconds => {
            let (sign, seconds) = if seconds < 0 { ('-', -seconds) } else { ('+', seconds) };
            format!("{text}{sign}{:02}:{:02}", seconds / 3600, seconds / 60 % 60)
        }
    }
}
