//! What strict decoding has against a document, in the order of its author.
//!
//! A document is a map ordered by name once it is read. So the text is read a second time, beside a tree of the places that
//! matter; what lies off that tree is skipped.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::path::{Path, Step, Steps};

/// A field that is not as strict decoding wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Unknown(String),
    Duplicate(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Unknown(path) => write!(f, "unknown field {path:?}"),
            Fault::Duplicate(path) => write!(f, "duplicate field {path:?}"),
        }
    }
}

/// Orders faults as they stand in a JSON document. What is in an unknown field is not looked at, as upstream, so
/// fields that stand twice in there are no faults.
pub(super) fn in_document_order(bytes: &[u8], unknown: &[Steps], duplicates: &[Steps]) -> Vec<Fault> {
    let mut tree = Wanted::default();
    for place in unknown {
        tree.at(place).unknown = Sought::Yes;
    }
    for place in duplicates {
        tree.at(place).duplicate = Sought::Yes;
    }
    let mut faults = Vec::new();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    // The document was read once before, so it can be read again.
    let _ = Place { path: &Path::Root, wanted: &mut tree, faults: &mut faults }.deserialize(&mut json);
    faults
}

/// As upstream.
const MAX_FAULTS: usize = 100;

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Sought {
    #[default]
    No,
    Yes,
    /// Each fault is said once, however often its field stands there.
    Found,
}

impl Sought {
    fn take(&mut self) -> bool {
        let first = *self == Sought::Yes;
        if first {
            *self = Sought::Found;
        }
        first
    }
}

/// Which places below one are wanted.
#[derive(Default)]
struct Wanted {
    unknown: Sought,
    duplicate: Sought,
    fields: HashMap<String, Wanted>,
    items: HashMap<usize, Wanted>,
}

impl Wanted {
    fn at(&mut self, place: &Steps) -> &mut Wanted {
        place.0.iter().fold(self, |at, step| match step {
            Step::Field(name) => at.fields.entry(name.clone()).or_default(),
            Step::Item(index) => at.items.entry(*index).or_default(),
        })
    }
}

/// Where the second reading is.
struct Place<'p, 'o> {
    path: &'p Path<'p>,
    wanted: &'o mut Wanted,
    faults: &'o mut Vec<Fault>,
}

impl<'de> DeserializeSeed<'de> for Place<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for index in 0.. {
            let more = match self.wanted.items.get_mut(&index) {
                None => seq.next_element::<IgnoredAny>()?.is_some(),
                Some(wanted) => {
                    let place = Place { path: &Path::Item(self.path, index), wanted, faults: self.faults };
                    seq.next_element_seed(place)?.is_some()
                }
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let mut met = HashSet::new();
        while let Some(key) = access.next_key::<String>()? {
            let Some(wanted) = self.wanted.fields.get_mut(&key) else {
                access.next_value::<IgnoredAny>()?;
                continue;
            };
            let path = &Path::Field(self.path, &key);
            if wanted.unknown != Sought::No {
                if self.faults.len() < MAX_FAULTS && wanted.unknown.take() {
                    self.faults.push(Fault::Unknown(path.to_string()));
                }
                access.next_value::<IgnoredAny>()?;
                continue;
            }
            if self.faults.len() < MAX_FAULTS && met.contains(&key) && wanted.duplicate.take() {
                self.faults.push(Fault::Duplicate(path.to_string()));
            }
            access.next_value_seed(Place { path, wanted, faults: self.faults })?;
            met.insert(key);
        }
        Ok(())
    }
}
