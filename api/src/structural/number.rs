//! Bounds of numbers.
//!
//! Source: `numberValidator` of kube-openapi's `pkg/validation/validate`, and go-openapi's `swag`.

use serde_json::{Number, Value};

use super::fault::{Fault, Found};
use super::part::Part;
use super::place::Place;
use super::words;

#[derive(Clone, Copy)]
enum Figure {
    Whole(i64),
    Float(f64),
}

impl Figure {
    fn float(self) -> f64 {
        match self {
            // Upstream compares so, too.
            Figure::Whole(number) => number as f64,
            Figure::Float(number) => number,
        }
    }

    fn text(self) -> String {
        match self {
            Figure::Whole(number) => number.to_string(),
            Figure::Float(number) => words::float(number),
        }
    }
}

/// A float as an integer, as the processors do that upstream runs on: what does not fit is the least of all.
pub(super) fn truncated(number: f64) -> i64 {
    if (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&number) {
        number as i64
    } else {
        i64::MIN
    }
}

/// The type and format that bounds are read in: only where the schema has just one type.
struct Range<'s> {
    type_: &'s str,
    format: &'s str,
}

impl Range<'_> {
    fn holds(&self, figure: Figure) -> bool {
        match (self.type_, self.format, figure) {
            ("integer", "int32", Figure::Whole(number)) => i32::try_from(number).is_ok(),
            ("integer", _, Figure::Whole(_)) => true,
            ("integer", "int32", Figure::Float(number)) => {
                number.fract() == 0.0 && (-2_147_483_648.0..=2_147_483_647.0).contains(&number)
            }
            ("integer", _, Figure::Float(number)) => {
                number.fract() == 0.0
                    && (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&number)
            }
            // What rounds to more than the largest.
            ("number", "float", figure) => (figure.float() as f32).is_finite(),
            _ => true,
        }
    }

    fn fault(&self, place: &Place<'_>, what: &str) -> Fault {
        let (type_, at) = (self.type_, place.checked());
        Fault::misplaced(match self.format {
            "" => format!("{what} value must be of type {type_} (default format) in {at}"),
            format => format!("{what} value must be of type {type_} with format {format} in {at}"),
        })
    }
}

/// Which of two bounds, with how upstream says it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Least,
    Most,
}

pub(super) fn check(part: Part<'_>, number: &Number, place: &Place<'_>, format: Option<&str>) -> Found {
    let figure = match number.as_i64() {
        Some(number) => Figure::Whole(number),
        None => Figure::Float(number.as_f64().unwrap_or_default()),
    };
    let range = match part.types() {
        [type_] if &**type_ == "integer" => Range {
            type_: "integer",
            format: format.filter(|f| matches!(*f, "int32" | "int64")).unwrap_or_default(),
        },
        [type_] if &**type_ == "number" => Range {
            type_: "number",
            format: format.filter(|f| matches!(*f, "float" | "double")).unwrap_or_default(),
        },
        _ => Range { type_: "", format: "" },
    };
    let mut found = Found::default();
    if !range.holds(figure) {
        found.add(range.fault(place, "Checked"));
    }
    let checks = part.checks();
    if let Some(factor) = checks.multiple_of {
        let (figure, factor) = as_read(&range, figure, factor, place, "MultipleOf", &mut found);
        multiple_of(figure, factor, place, &mut found);
    }
    for (bound, side, what) in
        [(checks.minimum, Side::Least, "Minimum boundary"), (checks.maximum, Side::Most, "Maximum boundary")]
    {
        if let Some(bound) = bound {
            let (figure, value) = as_read(&range, figure, bound.value, place, what, &mut found);
            within(figure, value, side, bound.is_exclusive, place, &mut found);
        }
    }
    found.n_matches += 1;
    found
}

/// A bound in the type of the value, unless it does not fit that: then both are floats.
fn as_read(
    range: &Range<'_>,
    figure: Figure,
    bound: f64,
    place: &Place<'_>,
    what: &str,
    found: &mut Found,
) -> (Figure, Figure) {
    if !range.holds(Figure::Float(bound)) {
        found.add(range.fault(place, what));
        return (Figure::Float(figure.float()), Figure::Float(bound));
    }
    match figure {
        Figure::Whole(_) => (figure, Figure::Whole(truncated(bound))),
        Figure::Float(_) => (figure, Figure::Float(bound)),
    }
}

fn multiple_of(figure: Figure, factor: Figure, place: &Place<'_>, found: &mut Found) {
    let is_positive = match factor {
        Figure::Whole(factor) => factor > 0,
        Figure::Float(factor) => factor > 0.0,
    };
    if !is_positive {
        let sentence =
            format!("factor MultipleOf declared for {} must be positive: {}", place.checked(), factor.text());
        found.add(Fault::sentence(place, factor.text(), sentence));
        return;
    }
    let is_multiple = match (figure, factor) {
        (Figure::Whole(number), Figure::Whole(factor)) => number % factor == 0,
        (figure, factor) => {
            let (number, factor) = (figure.float(), factor.float());
            is_whole(if factor < 1.0 { 1.0 / factor * number } else { number / factor })
        }
    };
    if !is_multiple {
        let why = format!("should be a multiple of {}", factor.text());
        found.add(Fault::invalid(place, figure.text(), &why));
    }
}

fn within(
    figure: Figure,
    bound: Figure,
    side: Side,
    is_exclusive: bool,
    place: &Place<'_>,
    found: &mut Found,
) {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let order = match (figure, bound) {
        (Figure::Whole(number), Figure::Whole(bound)) => Some(number.cmp(&bound)),
        (figure, bound) => figure.float().partial_cmp(&bound.float()),
    };
    let (is_outside, words) = match (side, is_exclusive) {
        (Side::Least, false) => (order == Some(Less), "greater than or equal to"),
        (Side::Least, true) => (matches!(order, Some(Less | Equal)), "greater than"),
        (Side::Most, false) => (order == Some(Greater), "less than or equal to"),
        (Side::Most, true) => (matches!(order, Some(Greater | Equal)), "less than"),
    };
    if is_outside {
        found.add(Fault::invalid(place, figure.text(), &format!("should be {words} {}", bound.text())));
    }
}

/// Whether a float counts as an integer, which those do that are very near to one.
pub(super) fn is_whole(number: f64) -> bool {
    const MOST: f64 = 9_007_199_254_740_991.0;
    if !(-MOST..=MOST).contains(&number) {
        return false;
    }
    if number.fract() == 0.0 {
        return true;
    }
    let whole = number.trunc();
    if whole == 0.0 || number < 0.0 {
        return false;
    }
    (number - whole).abs() / (number.abs() + whole.abs()) < 1e-9
}

/// Whether a value is one of an enum, as Go converts between their types.
pub(super) fn is_same(value: &Value, wanted: &Value) -> bool {
    match (value, wanted) {
        (Value::Number(number), Value::Number(wanted)) => match (number.as_i64(), wanted.as_i64()) {
            (Some(number), Some(wanted)) => number == wanted,
            (Some(number), None) => wanted.as_f64() == Some(number as f64),
            (None, Some(wanted)) => number.as_f64().is_some_and(|number| truncated(number) == wanted),
            (None, None) => number.as_f64() == wanted.as_f64(),
        },
        // An integer becomes the character that it is the code of.
        (Value::Number(number), Value::String(wanted)) => number.as_i64().is_some_and(|number| {
            let c =
                u32::try_from(number).ok().and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER);
            wanted.chars().eq([c])
        }),
        (value, wanted) => value == wanted,
    }
}
