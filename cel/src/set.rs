//! Constants that are asked for one of them.

use std::collections::BTreeSet;

use crate::value::{List, Scalar, Text, Value, whole, whole_positive};

/// Numbers that are equal are one, whatever their types.
#[derive(Debug, Default)]
pub(crate) struct Set {
    texts: BTreeSet<Text<'static>>,
    /// Numbers without a fraction are integers, without a sign only where they must be.
    scalars: BTreeSet<Scalar>,
    /// The bits of all other numbers, and of what integers become that a float cannot hold.
    doubles: BTreeSet<u64>,
}

impl Set {
    /// `None` where an item is of a type that upstream does not hash.
    pub(crate) fn of(list: &List<'static>) -> Option<Set> {
        let mut set = Set::default();
        for item in list.iter() {
            match item {
                Value::Text(text) => _ = set.texts.insert(text),
                Value::Double(number) => match integer(number) {
                    Some(scalar) => _ = set.scalars.insert(scalar),
                    None => _ = set.doubles.insert(number.to_bits()),
                },
                other => {
                    let scalar = scalar(&other)?;
                    let rounded = match scalar {
                        Scalar::Int(number) => number as f64,
                        Scalar::Uint(number) => number as f64,
                        Scalar::Bool(_) => f64::NAN,
                    };
                    if !rounded.is_nan() && integer(rounded) != Some(scalar) {
                        set.doubles.insert(rounded.to_bits());
                    }
                    set.scalars.insert(scalar);
                }
            }
        }
        Some(set)
    }

    pub(crate) fn contains(&self, value: &Value<'_>) -> bool {
        match value {
            Value::Text(text) => self.texts.contains::<str>(text),
            Value::Double(number) => {
                !number.is_nan()
                    && (self.doubles.contains(&number.to_bits())
                        || integer(*number).is_some_and(|scalar| self.scalars.contains(&scalar)))
            }
            other => scalar(other).is_some_and(|scalar| self.scalars.contains(&scalar)),
        }
    }
}

fn scalar(value: &Value<'_>) -> Option<Scalar> {
    Some(match value {
        Value::Bool(value) => Scalar::Bool(*value),
        Value::Int(number) => Scalar::Int(*number),
        Value::Uint(number) => i64::try_from(*number).map_or(Scalar::Uint(*number), Scalar::Int),
        _ => return None,
    })
}

fn integer(number: f64) -> Option<Scalar> {
    whole(number).map(Scalar::Int).or_else(|| whole_positive(number).map(Scalar::Uint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::equal;

    #[test]
    fn a_set_holds_what_is_equal_to_an_item() {
        let values = [
            Value::Int(0),
            Value::Int(1),
            Value::Int(-1),
            Value::Int(i64::MAX),
            Value::Int((1 << 53) + 1),
            Value::Uint(1),
            Value::Uint(u64::MAX),
            Value::Uint(1 << 63),
            Value::Double(1.0),
            Value::Double(-0.0),
            Value::Double(1.5),
            Value::Double(f64::NAN),
            Value::Double(f64::INFINITY),
            Value::Double(9_007_199_254_740_992.0),
            Value::Double(9_223_372_036_854_775_808.0),
            Value::Bool(true),
            Value::text("1"),
            Value::Null,
        ];
        for item in &values {
            let Some(set) = Set::of(&List::Owned(vec![item.clone()].into())) else {
                assert!(matches!(item, Value::Null));
                continue;
            };
            for value in &values {
                // A float that stands for many integers is not looked for among them; upstream does not do it either.
                let is_rounded = matches!((item, value), (Value::Double(number), Value::Int(_) | Value::Uint(_)) if number.abs() > 9e15);
                assert!(is_rounded || set.contains(value) == equal(item, value), "{value:?} in {item:?}");
            }
        }
    }
}
