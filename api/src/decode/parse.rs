//! JSON and YAML to a document, with the places of fields that stood twice.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::path::{Noted, Path, Steps};
use crate::depth::{self, MAX_DEPTH, TooDeep};

#[derive(Debug, thiserror::Error)]
pub(super) enum ParseError {
    #[error("invalid JSON: {0}")]
    Json(#[source] serde_json::Error),
    #[error("invalid YAML: {0}")]
    Yaml(String),
    #[error("{0}")]
    TooDeep(#[source] TooDeep),
    #[error("the body is empty")]
    Empty,
}

/// Formats that need no schema to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    Json,
    Yaml,
}

/// Parses one document. It nests at most [`MAX_DEPTH`] deep; YAML is held to a budget of nodes and aliases, too.
pub(super) fn parse(bytes: &[u8], format: Text) -> Result<(Value, Vec<Steps>), ParseError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(ParseError::Empty);
    }
    let mut duplicates = Noted::default();
    let value = match format {
        Text::Json => {
            let mut too_deep = None;
            let seed = Node {
                path: &Path::Root,
                left: MAX_DEPTH,
                too_deep: &mut too_deep,
                duplicates: &mut duplicates,
            };
            let mut json = serde_json::Deserializer::from_slice(bytes);
            let value = seed.deserialize(&mut json);
            if let Some(error) = too_deep {
                return Err(ParseError::TooDeep(error));
            }
            let value = value.map_err(ParseError::Json)?;
            json.end().map_err(ParseError::Json)?;
            value
        }
        Text::Yaml => yaml(bytes)?.0,
    };
    Ok((value, duplicates.places))
}

/// A YAML document, of whose keys that stand twice the last counts, and the first such key in Go's words.
pub(super) fn yaml(bytes: &[u8]) -> Result<(Value, Option<String>), ParseError> {
    let text = std::str::from_utf8(bytes).map_err(|e| ParseError::Yaml(e.to_string()))?;
    let (value, duplicate) = match serde_saphyr::from_str::<Value>(text) {
        Ok(value) => (value, None),
        Err(error) => {
            let serde_saphyr::Error::DuplicateMappingKey { key, location } = error.without_snippet() else {
                return Err(ParseError::Yaml(error.to_string()));
            };
            let key = key.as_deref().unwrap_or_default();
            let line = location.line();
            let duplicate = format!("yaml: unmarshal errors:\n  line {line}: key {key:?} already set in map");
            let options =
                serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
            let value = serde_saphyr::from_str_with_options::<Value>(text, options);
            (value.map_err(|e| ParseError::Yaml(e.to_string()))?, Some(duplicate))
        }
    };
    depth::check(&value).map_err(ParseError::TooDeep)?;
    Ok((value, duplicate))
}

struct Node<'p, 'd> {
    path: &'p Path<'p>,
    /// Levels that may still be opened.
    left: usize,
    /// Why reading ended, if it was this.
    too_deep: &'d mut Option<TooDeep>,
    duplicates: &'d mut Noted,
}

impl Node<'_, '_> {
    /// Levels that may still be opened once one more is.
    fn open<E: serde::de::Error>(&mut self) -> Result<usize, E> {
        self.left.checked_sub(1).ok_or_else(|| {
            *self.too_deep = Some(TooDeep);
            E::custom(TooDeep)
        })
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_, '_> {
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

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let left = self.open()?;
        let mut items = Vec::new();
        loop {
            let path = &Path::Item(self.path, items.len());
            let node = Node { path, left, too_deep: self.too_deep, duplicates: self.duplicates };
            match seq.next_element_seed(node)? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        let left = self.open()?;
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if key.len() > 1024 * 1024 {
                return Err(A::Error::custom("a field name of more than 1 MiB"));
            }
            let path = &Path::Field(self.path, &key);
            if map.contains_key(&key) {
                self.duplicates.note(path);
            }
            let node = Node { path, left, too_deep: self.too_deep, duplicates: self.duplicates };
            let value = access.next_value_seed(node)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
