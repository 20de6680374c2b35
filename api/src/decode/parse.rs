//! JSON and YAML to a document, with the paths of fields that stood twice.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

#[derive(Debug, thiserror::Error)]
pub(super) enum ParseError {
    #[error("invalid JSON: {0}")]
    Json(#[source] serde_json::Error),
    #[error("invalid YAML: {0}")]
    Yaml(String),
    #[error("the body is empty")]
    Empty,
}

/// Formats that need no schema to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    Json,
    Yaml,
}

/// Parses one document. JSON nests at most 128 deep; YAML is held to a budget of nodes, aliases and depth.
pub(super) fn parse(bytes: &[u8], format: Text) -> Result<(Value, Vec<String>), ParseError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(ParseError::Empty);
    }
    let mut duplicates = Vec::new();
    let seed = Node { path: String::new(), duplicates: &mut duplicates };
    let value = match format {
        Text::Json => {
            let mut json = serde_json::Deserializer::from_slice(bytes);
            let value = seed.deserialize(&mut json).map_err(ParseError::Json)?;
            json.end().map_err(ParseError::Json)?;
            value
        }
        Text::Yaml => {
            let text = std::str::from_utf8(bytes).map_err(|e| ParseError::Yaml(e.to_string()))?;
            serde_saphyr::from_str::<Value>(text).map_err(|e| ParseError::Yaml(e.to_string()))?
        }
    };
    Ok((value, duplicates))
}

struct Node<'d> {
    path: String,
    duplicates: &'d mut Vec<String>,
}

/// Bounds what one bad document can make the server say.
const MAX_DUPLICATES: usize = 100;

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, items.len());
            match seq.next_element_seed(Node { path, duplicates: self.duplicates })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if key.len() > 1024 * 1024 {
                return Err(A::Error::custom("a field name of more than 1 MiB"));
            }
            let path = if self.path.is_empty() { key.clone() } else { format!("{}.{key}", self.path) };
            if map.contains_key(&key) && self.duplicates.len() < MAX_DUPLICATES {
                self.duplicates.push(path.clone());
            }
            let value = access.next_value_seed(Node { path, duplicates: self.duplicates })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// Orders faults as they stand in a JSON document. What is in an unknown field is not looked at, as upstream, so
/// fields that stand twice in there are no faults.
pub(super) fn in_document_order(bytes: &[u8], unknown: &[String], duplicates: &[String]) -> Vec<Fault> {
    let wanted = |paths: &[String]| paths.iter().cloned().collect::<HashSet<String>>();
    let mut order = Order { unknown: wanted(unknown), duplicates: wanted(duplicates), faults: Vec::new() };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    // The document was read once before, so it can be read again.
    let _ = Place { path: String::new(), order: &mut order }.deserialize(&mut json);
    order.faults
}

/// A field that is not as strict decoding wants it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fault {
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

/// As upstream.
const MAX_FAULTS: usize = 100;

struct Order {
    unknown: HashSet<String>,
    duplicates: HashSet<String>,
    faults: Vec<Fault>,
}

impl Order {
    fn note(&mut self, fault: Fault) {
        if self.faults.len() < MAX_FAULTS && !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }
}

/// Where the second reading is.
struct Place<'o> {
    path: String,
    order: &'o mut Order,
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
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
        let mut at = 0;
        while seq
            .next_element_seed(Place { path: format!("{}[{at}]", self.path), order: self.order })?
            .is_some()
        {
            at += 1;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let mut met = HashSet::new();
        while let Some(key) = access.next_key::<String>()? {
            let path = if self.path.is_empty() { key.clone() } else { format!("{}.{key}", self.path) };
            if self.order.unknown.contains(&path) {
                self.order.note(Fault::Unknown(path));
                access.next_value::<IgnoredAny>()?;
                continue;
            }
            if !met.insert(key) && self.order.duplicates.contains(&path) {
                self.order.note(Fault::Duplicate(path.clone()));
            }
            access.next_value_seed(Place { path, order: self.order })?;
        }
        Ok(())
    }
}
