//! What validation has against values, gathered as upstream gathers it: each fault once, and how many checks there were, by which
//! the alternative is chosen that came nearest.
//!
//! Source: `Result` of kube-openapi's `pkg/validation/validate`, and `kubeOpenAPIResultToFieldErrors` of apiextensions-apiserver.

use std::collections::HashSet;

use serde_json::Value;

use super::place::Place;
use super::words;
use crate::Cause;

/// More faults of one sort are not told of an object.
pub(super) const MAX_FAULTS: usize = 10_000;

pub(super) struct Fault {
    /// By which it is the same as another: upstream's own sentence.
    sentence: String,
    /// `None` where upstream forgets where it was.
    place: Option<String>,
    kind: Kind,
}

enum Kind {
    Required,
    /// The value as it is shown, and the values that may be, in quotes.
    Enum(String, String),
    TooLong(i64),
    TooMany(i64, i64),
    Type(String),
    Invalid(String),
}

impl Fault {
    pub(super) fn required(place: &Place<'_>, name: &str) -> Fault {
        let at = match place {
            Place::Root => format!(".{name}"),
            place => format!("{}.{name}", place.checked()),
        };
        Fault { sentence: format!("{at} in body is required"), place: Some(at), kind: Kind::Required }
    }

    pub(super) fn not_one_of(place: &Place<'_>, value: &Value, values: &[Value]) -> Fault {
        let supported: Vec<String> = values
            .iter()
            .map(|value| match value {
                Value::String(text) => words::quoted(text),
                other => words::quoted(&words::json(other)),
            })
            .collect();
        let (at, supported) = (place.checked(), supported.join(", "));
        let sentence = format!("{at} in body should be one of {supported}");
        Fault { sentence, place: Some(at), kind: Kind::Enum(words::shown(value), supported) }
    }

    pub(super) fn too_long(place: &Place<'_>, most: i64) -> Fault {
        let at = place.checked();
        let sentence = format!("{at} in body should be at most {most} chars long");
        Fault { sentence, place: Some(at), kind: Kind::TooLong(most) }
    }

    /// `what` is `items` or `properties`.
    pub(super) fn too_many(place: &Place<'_>, n: i64, most: i64, what: &str) -> Fault {
        let at = place.checked();
        let sentence = format!("{at} in body should have at most {most} {what}");
        Fault { sentence, place: Some(at), kind: Kind::TooMany(n, most) }
    }

    /// `found` is what upstream calls the value, which is then shown as the value.
    pub(super) fn wrong_type(place: &Place<'_>, wanted: &str, found: &str) -> Fault {
        let (at, found) = (place.checked(), words::quoted(found));
        let sentence = format!("{at} in body must be of type {wanted}: {found}");
        Fault { sentence, place: Some(at), kind: Kind::Type(found) }
    }

    /// `why` follows the place; `value` as it is shown.
    pub(super) fn invalid(place: &Place<'_>, value: String, why: &str) -> Fault {
        let at = place.checked();
        Fault { sentence: format!("{at} in body {why}"), place: Some(at), kind: Kind::Invalid(value) }
    }

    /// A sentence of its own, of which upstream does not tell the place.
    pub(super) fn misplaced(sentence: String) -> Fault {
        Fault { sentence, place: None, kind: Kind::Invalid("\"\"".into()) }
    }

    /// A whole sentence of a place.
    pub(super) fn sentence(place: &Place<'_>, value: String, sentence: String) -> Fault {
        Fault { sentence, place: Some(place.checked()), kind: Kind::Invalid(value) }
    }

    /// `base` is where the object lies that was validated, if it is part of another.
    pub(super) fn into_cause(self, base: Option<&str>) -> Cause {
        let within = self.place.as_deref().map(|at| at.strip_prefix('.').unwrap_or(at)).unwrap_or_default();
        let field = match (base, within) {
            (None, "") => "<nil>".to_owned(),
            (None, within) => within.to_owned(),
            (Some(base), "") => base.to_owned(),
            (Some(base), within) => format!("{base}.{within}"),
        };
        let sentence = self.sentence;
        match self.kind {
            Kind::Required => Cause::required(field, ""),
            Kind::Enum(value, supported) => Cause::new(
                "FieldValueNotSupported",
                field,
                format!("Unsupported value: {value}: supported values: {supported}"),
            ),
            Kind::TooLong(most) => {
                let most = match most {
                    1 => "may not be more than 1 byte".to_owned(),
                    most if most < 0 => "value is too long".to_owned(),
                    most => format!("may not be more than {most} bytes"),
                };
                Cause::new("FieldValueTooLong", field, format!("Too long: {most}"))
            }
            Kind::TooMany(n, most) => {
                let most = match most {
                    1 => "must have at most 1 item".to_owned(),
                    most if most < 0 => "has too many items".to_owned(),
                    most => format!("must have at most {most} items"),
                };
                Cause::new("FieldValueTooMany", field, format!("Too many: {n}: {most}"))
            }
            Kind::Type(value) => {
                Cause::new("FieldValueTypeInvalid", field, format!("Invalid value: {value}: {sentence}"))
            }
            Kind::Invalid(value) => {
                Cause::new("FieldValueInvalid", field, format!("Invalid value: {value}: {sentence}"))
            }
        }
    }
}

/// Of one value, by one schema.
#[derive(Default)]
pub(super) struct Found {
    pub(super) faults: Vec<Fault>,
    pub(super) sentences: HashSet<String>,
    /// How many checks there were, as upstream counts them.
    pub(super) n_matches: usize,
    /// Whether the value, or a part of it, is known to be another than before.
    pub(super) differs: bool,
}

impl Found {
    pub(super) fn one(fault: Fault) -> Found {
        let mut found = Found::default();
        found.add(fault);
        found
    }

    pub(super) fn is_valid(&self) -> bool {
        self.faults.is_empty()
    }

    pub(super) fn add(&mut self, fault: Fault) {
        if self.faults.len() < MAX_FAULTS && self.sentences.insert(fault.sentence.clone()) {
            self.faults.push(fault);
        }
    }

    pub(super) fn merge(&mut self, other: Found) {
        self.n_matches += other.n_matches;
        if self.faults.is_empty() && self.sentences.is_empty() {
            (self.faults, self.sentences) = (other.faults, other.sentences);
        } else {
            other.faults.into_iter().for_each(|fault| self.add(fault));
        }
    }
}
