//! Quantities: `500m`, `1Gi`, `1e3`.
//!
//! Source: apimachinery's `resource.Quantity`. A value is kept in billionths, the finest that upstream keeps; that upstream has
//! two ways of keeping it is kept too, because only one of them can become an integer.

use std::cmp::Ordering;

use super::{Function, Host, Library, library, no_overload};
use crate::fault::Fault;
use crate::plan::Call;
use crate::run::Run;
use crate::value::Value;

const NANO: i32 = -9;
/// Upstream's largest value with a binary suffix, 2^63-1, in billionths.
const MAX_BINARY: i128 = i64::MAX as i128 * 1_000_000_000;
/// Larger values are refused. Upstream knows no bound here.
const MAX_NANOS: i128 = 10_i128.pow(37);
/// Digits that surely fit in 64 bits.
const MAX_DIGITS: usize = 18;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantity {
    pub(crate) nanos: i128,
    /// The power of ten that upstream counts in, where it counts in 64 bits.
    scale: Option<i32>,
}

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "quantity" => |call, args, _| match args {
            [Value::Text(text)] => library(Library::Quantity(Quantity::parse(text).map_err(Fault::other)?)),
            _ => Err(no_overload(call, args)),
        },
        "isQuantity" => |call, args, _| match args {
            [Value::Text(text)] => Ok(Value::Bool(Quantity::parse(text).is_ok())),
            _ => Err(no_overload(call, args)),
        },
        "sign" | "asInteger" | "isInteger" | "asApproximateFloat" => facts,
        "add" | "sub" => add,
        _ => return None,
    })
}

fn facts<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let [Value::Library(Library::Quantity(quantity))] = args else { return Err(no_overload(call, args)) };
    Ok(match &*call.name {
        "sign" => Value::Int(quantity.nanos.signum() as i64),
        "isInteger" => Value::Bool(quantity.integer().is_some()),
        "asInteger" => {
            Value::Int(quantity.integer().ok_or_else(|| Fault::other("cannot convert value to integer"))?)
        }
        _ => Value::Double(quantity.float()),
    })
}

fn add<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let (a, b) = match args {
        [Value::Library(Library::Quantity(a)), Value::Library(Library::Quantity(b))] => (*a, *b),
        [Value::Library(Library::Quantity(a)), Value::Int(b)] => {
            (*a, Quantity { nanos: i128::from(*b) * 1_000_000_000, scale: Some(0) })
        }
        _ => return Err(no_overload(call, args)),
    };
    let b = if &*call.name == "sub" { Quantity { nanos: -b.nanos, ..b } } else { b };
    let nanos = a.nanos.checked_add(b.nanos).filter(|nanos| nanos.abs() < MAX_NANOS);
    let nanos = nanos.ok_or(Fault::Overflow("quantity"))?;
    let scale = match (a.scale, b.scale) {
        (scale, Some(_)) if b.nanos == 0 => scale,
        (Some(_), scale) if a.nanos == 0 => scale,
        (Some(a), Some(b)) => Some(a.min(b)),
        _ => None,
    };
    let fits = |scale: &i32| i64::try_from(nanos / unit(*scale)).is_ok();
    library(Library::Quantity(Quantity { nanos, scale: scale.filter(fits) }))
}

/// What one of a power of ten is in billionths.
fn unit(scale: i32) -> i128 {
    10_i128.checked_pow((scale - NANO).clamp(0, 37) as u32).unwrap_or(i128::MAX)
}

impl Quantity {
    /// The value in billionths.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    pub(crate) fn compare(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }

    fn integer(&self) -> Option<i64> {
        self.scale.filter(|scale| *scale >= 0)?;
        i64::try_from(self.nanos / 1_000_000_000).ok()
    }

    fn float(&self) -> f64 {
        // As upstream counts: the digits, times a power of ten.
        let scale = self.scale.unwrap_or(NANO);
        let digits = (self.nanos / unit(scale)) as f64;
        match scale {
            0 => digits,
            _ => digits * format!("1e{scale}").parse::<f64>().unwrap_or(f64::NAN),
        }
    }

    fn parse(text: &str) -> Result<Quantity, &'static str> {
        const FORMAT: &str =
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
        let (is_negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if text.is_empty() {
            return Err(FORMAT);
        }
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, rest) = rest.split_at(digits(rest));
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_at(digits(rest)),
            None => ("", rest),
        };
        let letters = suffix.bytes().take_while(|byte| b"eEinumkKMGTP".contains(byte)).count();
        let power = suffix[letters..].strip_prefix(['-', '+']).unwrap_or(&suffix[letters..]);
        if !power.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(FORMAT);
        }
        let (base, exponent) = suffix_of(suffix).ok_or("unable to parse quantity's suffix")?;
        let whole = whole.trim_start_matches('0');
        if whole.is_empty() && fraction.is_empty() && suffix.is_empty() {
            // Upstream takes a sign alone for nothing, too.
            return Ok(Quantity { nanos: 0, scale: Some(0) });
        }
        let number = Number { whole, fraction, base, exponent };
        let (nanos, scale) = number.nanos().ok_or("unable to parse numeric part of quantity")?;
        Ok(Quantity { nanos: if is_negative { -nanos } else { nanos }, scale })
    }
}

struct Number<'t> {
    whole: &'t str,
    fraction: &'t str,
    base: u32,
    exponent: i32,
}

impl Number<'_> {
    /// In billionths, and the power of ten that is counted in where that is done in 64 bits.
    fn nanos(&self) -> Option<(i128, Option<i32>)> {
        let n_whole = self.whole.len().max(1);
        let n_fraction = self.fraction.len() as i32;
        if self.base == 2 {
            let is_short = 15 - n_whole as i32 - self.exponent * 3 / 10 > 0;
            let digits = self.digits(MAX_DIGITS * 2 - n_whole.min(MAX_DIGITS))?;
            let (digits, n_fraction) = digits;
            let scaled = digits.checked_mul(1_i128 << self.exponent)?.checked_mul(1_000_000_000)?;
            let nanos = up(scaled, 10_i128.checked_pow(n_fraction as u32)?);
            return Some((nanos.min(MAX_BINARY), (is_short && self.fraction.is_empty()).then_some(0)));
        }
        let (digits, n_kept) = self.digits(MAX_DIGITS * 2)?;
        let scale = self.exponent - n_fraction;
        let is_short = n_whole + self.fraction.len() <= MAX_DIGITS && scale >= NANO;
        let shift = self.exponent - n_kept - NANO;
        let nanos = if shift >= 0 {
            digits.checked_mul(
                10_i128.checked_pow(shift as u32).filter(|_| digits != 0).unwrap_or(i128::from(digits == 0)),
            )?
        } else {
            up(digits, 10_i128.checked_pow(shift.unsigned_abs().min(38)).unwrap_or(i128::MAX))
        };
        (nanos < MAX_NANOS).then_some((nanos, is_short.then_some(scale)))
    }

    /// The digits as one number, of the fraction as many as are of use, and how many of it.
    fn digits(&self, n_most: usize) -> Option<(i128, i32)> {
        if self.whole.len() > n_most {
            return None;
        }
        let n_kept = self.fraction.len().min(n_most - self.whole.len());
        let text = format!("0{}{}", self.whole, &self.fraction[..n_kept]);
        Some((text.parse().ok()?, n_kept as i32))
    }
}

/// A quotient, away from zero.
fn up(number: i128, by: i128) -> i128 {
    number / by + i128::from(number % by != 0)
}

/// The base of a suffix and its exponent.
fn suffix_of(suffix: &str) -> Option<(u32, i32)> {
    const DECIMAL: [(&str, i32); 10] = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some((10, *exponent));
    }
    if let Some(at) = BINARY.iter().position(|name| *name == suffix) {
        return Some((2, (at as i32 + 1) * 10));
    }
    let power = suffix.strip_prefix(['e', 'E'])?;
    Some((10, power.parse().ok()?))
}
