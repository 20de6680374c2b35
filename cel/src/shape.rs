//! What a schema says of JSON: the types that expressions see, how large values may be, and how values are read.
//!
//! ```text
//! Shape ─┬─ Declared: Types, Sizes ─▶ compile, estimate
//!        └─ Value::of ─▶ run
//! ```
//!
//! Source: `SchemaDeclType` and `UnstructuredToVal` of `k8s.io/apiserver/pkg/cel/common`, `DeclType` of `k8s.io/apiserver/pkg/cel`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value as Json;

use crate::compare::{self, compared};
use crate::estimate::{Range, Sizes};
use crate::fault::Fault;
use crate::library::{self, time};
use crate::types::{Type, Types};
use crate::value::{JsonMap, Map, Text, Value};

/// Of a JSON value.
#[derive(Debug)]
pub struct Shape {
    parts: Parts,
    /// Most bytes of a text, items of a list, entries of a map.
    max_size: u64,
    /// Fewest bytes of its JSON.
    min_bytes: u64,
    is_nullable: bool,
    /// Whether expressions see it. They do not see what nothing is known of, nor lists and maps of that.
    is_seen: bool,
}

#[derive(Debug)]
enum Parts {
    Scalar(Type),
    /// A text that is a date, and to expressions a moment.
    Day,
    /// By the names that expressions call them by, and by their own names.
    Object {
        fields: BTreeMap<Box<str>, (Box<str>, Arc<Shape>)>,
        names: HashMap<Box<str>, Arc<Shape>>,
    },
    Map(Arc<Shape>),
    List(Arc<Shape>, Uniqueness),
    Unknown,
}

/// Whether order matters in a list, or which of its elements are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uniqueness {
    Ordered,
    Set,
    /// By the values of these fields.
    Keys(Box<[Box<str>]>),
}

impl Shape {
    pub fn scalar(type_: Type, max_size: u64, min_bytes: u64) -> Shape {
        Shape { parts: Parts::Scalar(type_), max_size, min_bytes, is_nullable: false, is_seen: true }
    }

    /// A text of the format `date`.
    pub fn day(bytes: u64) -> Shape {
        Shape { parts: Parts::Day, max_size: bytes, min_bytes: bytes, is_nullable: false, is_seen: true }
    }

    /// What nothing is known of.
    pub fn unknown() -> Shape {
        Shape { parts: Parts::Unknown, max_size: 0, min_bytes: 0, is_nullable: false, is_seen: false }
    }

    pub fn list(items: Arc<Shape>, uniqueness: Uniqueness, max_items: u64) -> Shape {
        let is_seen = items.is_seen;
        let parts = Parts::List(items, uniqueness);
        Shape { parts, max_size: max_items, min_bytes: 2, is_nullable: false, is_seen }
    }

    pub fn map(values: Arc<Shape>, max_entries: u64) -> Shape {
        let is_seen = values.is_seen;
        Shape { parts: Parts::Map(values), max_size: max_entries, min_bytes: 2, is_nullable: false, is_seen }
    }

    pub fn object(fields: impl IntoIterator<Item = (Box<str>, Arc<Shape>)>, min_bytes: u64) -> Shape {
        let names: HashMap<Box<str>, Arc<Shape>> = fields.into_iter().collect();
        let escaped = names.iter().filter_map(|(name, shape)| {
            let escaped = crate::escape(name)?;
            Some((escaped.into(), (name.clone(), shape.clone())))
        });
        let parts = Parts::Object { fields: escaped.collect(), names };
        Shape { parts, max_size: 0, min_bytes, is_nullable: false, is_seen: true }
    }

    /// The same, if null may stand in its place.
    pub fn nullable(self, is_nullable: bool) -> Shape {
        Shape { is_nullable, ..self }
    }

    pub fn is_seen(&self) -> bool {
        self.is_seen
    }

    pub fn min_bytes(&self) -> u64 {
        self.min_bytes
    }

    /// Of a field, by its own name.
    pub fn field(&self, name: &str) -> Option<&Arc<Shape>> {
        match &self.parts {
            Parts::Object { names, .. } => names.get(name),
            _ => None,
        }
    }

    /// Of the items of a list or the values of a map.
    pub fn element(&self) -> Option<&Arc<Shape>> {
        match &self.parts {
            Parts::List(inner, _) | Parts::Map(inner) => Some(inner),
            _ => None,
        }
    }

    /// Its type, where objects are called by where they lie below `name`.
    pub fn type_of(&self, name: &str) -> Option<Type> {
        if !self.is_seen {
            return None;
        }
        Some(match &self.parts {
            Parts::Scalar(type_) => type_.clone(),
            Parts::Day => Type::Timestamp,
            Parts::Object { .. } => Type::object(name),
            Parts::Map(values) => Type::map(Type::String, values.type_of(&format!("{name}.@elem"))?),
            Parts::List(items, _) => Type::list(items.type_of(&format!("{name}.@idx"))?),
            Parts::Unknown => return None,
        })
    }

    /// What a field of an object is, by the name that expressions call it by; with its own name.
    pub(crate) fn escaped(&self, name: &str) -> Option<(&str, &Arc<Shape>)> {
        match &self.parts {
            Parts::Object { fields, .. } => fields.get(name).map(|(name, shape)| (&**name, shape)),
            _ => None,
        }
    }
}

/// A variable whose shape is known: its type and those of its parts.
#[derive(Clone, Debug)]
pub struct Declared {
    name: Arc<str>,
    shape: Arc<Shape>,
}

impl Declared {
    /// Objects are called by where they lie below `name`.
    pub fn new(name: &str, shape: Arc<Shape>) -> Declared {
        Declared { name: name.into(), shape }
    }

    fn find(&self, object: &str) -> Option<&Shape> {
        let rest = object.strip_prefix(&*self.name)?;
        let mut shape = &*self.shape;
        let mut steps = rest.split('.');
        // The name itself ends where the first step begins.
        if !steps.next()?.is_empty() {
            return None;
        }
        for step in steps {
            shape = match (step, &shape.parts) {
                ("@elem", Parts::Map(inner)) | ("@idx", Parts::List(inner, _)) => inner,
                _ => shape.escaped(step)?.1,
            };
        }
        Some(shape)
    }
}

impl Types for Declared {
    fn field(&self, object: &str, field: &str) -> Option<Type> {
        let (_, shape) = self.find(object)?.escaped(field)?;
        shape.type_of(&format!("{object}.{field}"))
    }
}

impl Sizes for Declared {
    fn size(&self, path: &[Arc<str>], _: &Type) -> Option<Range> {
        let (_, steps) = path.split_first()?;
        let mut shape = &*self.shape;
        for (at, step) in steps.iter().enumerate() {
            shape = match (&**step, &shape.parts) {
                ("@items" | "@values", Parts::List(inner, _) | Parts::Map(inner)) => inner,
                // Of keys nothing is known, and upstream takes nothing for no size.
                ("@keys", Parts::Map(_)) if at + 1 == steps.len() => return Some(Range::exactly(0)),
                (step, Parts::Object { .. }) => {
                    shape.escaped(step).map(|(_, shape)| shape).filter(|s| s.is_seen)?
                }
                _ => return None,
            };
        }
        Some(Range { min: 0, max: shape.max_size })
    }
}

impl<'a> Value<'a> {
    /// What a JSON value of a known shape is to an expression; a fault where it is not as its shape says.
    pub fn of(json: &'a Json, shape: &Arc<Shape>) -> Value<'a> {
        match (&shape.parts, json) {
            (Parts::Unknown, json) => Value::from_json(json, &Type::Dyn),
            (_, Json::Null) if shape.is_nullable => Value::Null,
            (_, Json::Null) => wrong("invalid data, got null for schema with nullable=false".into()),
            (Parts::Scalar(type_), json) => scalar(json, type_),
            (Parts::Day, Json::String(text)) => day_of(text).unwrap_or_else(wrong),
            (Parts::Day, json) => wrong(format!("invalid data, expected string, got {}", go_type(json))),
            (Parts::List(..), Json::Array(items)) => {
                Value::List(crate::value::List::Shaped(items, shape.clone()))
            }
            (Parts::List(..), _) => {
                wrong("invalid data, expected an array for the provided schema with type=array".into())
            }
            (_, Json::Object(map)) => Value::Map(Map::Shaped(map, shape.clone())),
            _ => wrong("invalid data, expected a map for the provided schema with type=object".into()),
        }
    }
}

fn wrong<'a>(why: String) -> Value<'a> {
    Value::Fault(Fault::Other(why.into()))
}

fn scalar<'a>(json: &'a Json, type_: &Type) -> Value<'a> {
    let other = |wanted: &str| wrong(format!("invalid data, expected {wanted}, got {}", go_type(json)));
    match (type_, json) {
        (Type::Dyn, Json::String(text)) => Value::Text(Text::Borrowed(text)),
        (Type::Dyn | Type::Int, Json::Number(number)) if number.is_i64() => {
            Value::Int(number.as_i64().unwrap_or_default())
        }
        (Type::Dyn, _) => {
            wrong("invalid data, expected XIntOrString value to be either a string or integer".into())
        }
        (Type::Int, _) => other("int"),
        (Type::Double, Json::Number(number)) => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
        (Type::Double, _) => other("float"),
        (Type::Bool, Json::Bool(value)) => Value::Bool(*value),
        (Type::Bool, _) => other("bool"),
        (_, Json::String(text)) => match text_of(text, type_) {
            Ok(value) => value,
            Err(why) => wrong(why),
        },
        _ => other("string"),
    }
}

fn text_of<'a>(text: &'a str, type_: &Type) -> Result<Value<'a>, String> {
    use base64::Engine as _;
    Ok(match type_ {
        Type::Duration => Value::Duration(
            time::lax_duration(text)
                .ok_or_else(|| format!("Invalid duration {text}: unable to parse {text} as duration"))?,
        ),
        // Upstream takes nothing for the first moment of 1970.
        Type::Timestamp if text.is_empty() => {
            Value::Timestamp(crate::value::Timestamp { nanos: 0, offset_seconds: 0 })
        }
        Type::Timestamp => {
            // Without a zone it is in UTC.
            let found = time::timestamp(text).or_else(|_| time::timestamp(&format!("{text}Z")));
            Value::Timestamp(found.map_err(|_| {
                let text_shown = library::quoted(text);
                format!(
                    "Invalid date-time formatted string {text}: parsing time {text_shown} as \"2006-01-02T15:04:05\""
                )
            })?)
        }
        Type::Bytes => {
            // As upstream reads it, whose alphabet is that of URLs.
            let bytes = base64::engine::general_purpose::URL_SAFE.decode(text);
            Value::Bytes(bytes.map_err(|_| base64_fault(text))?.into())
        }
        _ => Value::Text(Text::Borrowed(text)),
    })
}

fn day_of<'a>(text: &str) -> Result<Value<'a>, String> {
    time::timestamp(&format!("{text}T00:00:00Z")).map(Value::Timestamp).map_err(|_| {
        let shown = library::quoted(text);
        format!("Invalid date formatted string {text}: parsing time {shown} as \"2006-01-02\"")
    })
}

/// With the place that Go's decoder stops at: the first letter that is none, or the last four if they are not whole.
fn base64_fault(text: &str) -> String {
    let bytes = text.as_bytes();
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let end = bytes.iter().position(|byte| !is_letter(*byte)).unwrap_or(bytes.len());
    let at = match bytes.get(end) {
        Some(b'=') if end % 4 >= 2 => bytes.len().min(end + 2),
        Some(_) => end,
        None => end - end % 4,
    };
    format!("Invalid byte formatted string {text}: illegal base64 data at input byte {at}")
}

fn go_type(json: &Json) -> &'static str {
    match json {
        Json::Null => "<nil>",
        Json::Bool(_) => "bool",
        Json::Number(number) if number.is_i64() => "int64",
        Json::Number(_) => "float64",
        Json::String(_) => "string",
        Json::Array(_) => "[]interface {}",
        Json::Object(_) => "map[string]interface {}",
    }
}

/// A value of a map or a field of an object. Fields that are null are as good as not there.
pub(crate) fn get<'a>(map: &'a JsonMap, shape: &Shape, name: &str) -> Option<Value<'a>> {
    match &shape.parts {
        Parts::Map(values) => map.get(name).map(|json| Value::of(json, values)),
        _ => {
            let (name, shape) = shape.escaped(name)?;
            map.get(name).filter(|json| !json.is_null()).map(|json| Value::of(json, shape))
        }
    }
}

/// A field of an object, by its own name.
pub(crate) fn field<'a>(map: &'a JsonMap, shape: &Shape, name: &str) -> Option<Value<'a>> {
    let shape = shape.field(name)?;
    map.get(name).filter(|json| !json.is_null()).map(|json| Value::of(json, shape))
}

pub(crate) fn entries<'m, 'a: 'm>(
    map: &'a JsonMap,
    shape: &'m Shape,
) -> Box<dyn Iterator<Item = (Value<'a>, Value<'a>)> + 'm> {
    match &shape.parts {
        Parts::Map(values) => Box::new(
            map.iter().map(|(name, json)| (Value::Text(Text::Borrowed(name)), Value::of(json, values))),
        ),
        Parts::Object { fields, .. } => Box::new(fields.iter().filter_map(|(escaped, (name, shape))| {
            let json = map.get(&**name).filter(|json| !json.is_null())?;
            Some((Value::text(&**escaped), Value::of(json, shape)))
        })),
        _ => Box::new(std::iter::empty()),
    }
}

/// Whether an object or map is the same as another that is as large; what the schema does not know is compared as JSON.
pub(crate) fn maps_compared(a: &JsonMap, shape: &Shape, other: &Map<'_>) -> Result<bool, Fault> {
    let json_of = |name: &str| match other {
        Map::Shaped(map, _) | Map::Json(map, _) => map.get(name),
        Map::Owned(_) => None,
    };
    let known = |inner: &Shape, value: Option<Value<'_>>, found: Option<Value<'_>>, name: &str| {
        if !inner.is_seen {
            return Ok(json_of(name) == a.get(name));
        }
        match (value, found) {
            (None, None) => Ok(true),
            (Some(value), Some(found)) => compared(&value, &found),
            _ => Ok(false),
        }
    };
    compare::all(a.iter().map(|(name, json)| match &shape.parts {
        Parts::Map(values) => {
            known(values, Some(Value::of(json, values)), other.find(&Value::text(name.as_str())), name)
        }
        Parts::Object { names, .. } => {
            let Some(inner) = names.get(&**name) else {
                return Ok(json_of(name).is_none_or(|other| other == json));
            };
            // Upstream looks the field up as if its name were one that expressions call it by.
            let Some(called) = crate::unescape(name) else { return Ok(true) };
            let found = match other {
                Map::Shaped(map, shape) => field(map, shape, &called),
                other => other.find(&Value::text(called.as_str())),
            };
            known(inner, field(a, shape, &called), found, name)
        }
        _ => Ok(json_of(name) == Some(json)),
    }))
}

/// Whether lists that are as long have the same elements, if it does not matter in which order.
pub(crate) fn same_elements(
    a: &[Json],
    shape: &Shape,
    other: &crate::value::List<'_>,
) -> Option<Result<bool, Fault>> {
    let Parts::List(items, uniqueness) = &shape.parts else { return None };
    match uniqueness {
        Uniqueness::Ordered => None,
        Uniqueness::Set => {
            let all: std::collections::HashSet<String> = a.iter().map(Json::to_string).collect();
            Some(Ok(other.iter().all(|value| value_key(&value).is_some_and(|key| all.contains(&key)))))
        }
        Uniqueness::Keys(keys) => {
            let key_of = |get: &dyn Fn(&str) -> Option<String>| -> Vec<Option<String>> {
                keys.iter().map(|key| get(key)).collect()
            };
            let by_key: HashMap<Vec<Option<String>>, &Json> =
                a.iter().map(|json| (key_of(&|key| json.get(key).map(Json::to_string)), json)).collect();
            Some(compare::all(other.iter().map(|value| {
                let Value::Map(map) = &value else { return Ok(false) };
                let key = key_of(&|key| match map {
                    Map::Shaped(map, _) | Map::Json(map, _) => map.get(key).map(Json::to_string),
                    map => map.find(&Value::text(key)).as_ref().and_then(value_key),
                });
                by_key.get(&key).map_or(Ok(false), |json| compared(&Value::of(json, items), &value))
            })))
        }
    }
}

/// How elements of lists are told apart: as JSON.
fn value_key(value: &Value<'_>) -> Option<String> {
    let json = match value {
        Value::Null => Json::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Double(value) => match crate::value::whole(*value) {
            Some(whole) => whole.into(),
            None => (*value).into(),
        },
        Value::Text(text) => (**text).into(),
        Value::Map(Map::Shaped(map, _) | Map::Json(map, _)) => Json::Object((*map).clone()),
        Value::List(crate::value::List::Shaped(items, _) | crate::value::List::Json(items, _)) => {
            Json::Array(items.to_vec())
        }
        _ => return None,
    };
    Some(json.to_string())
}
