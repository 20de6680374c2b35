//! Values of expressions. What comes from JSON is borrowed and looked at when it is asked for.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::fault::Fault;
use crate::library::{Library, time};
use crate::shape::{self, Shape};
use crate::types::Type;

pub(crate) type JsonMap = serde_json::Map<String, Json>;

#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Text<'a>),
    Bytes(Arc<[u8]>),
    /// In billionths of a second.
    Duration(i64),
    Timestamp(Timestamp),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Arc<Value<'a>>>),
    Type(Type),
    /// What Kubernetes' libraries know: addresses, quantities, URLs, …
    Library(Library),
    /// JSON that is not as a schema says. Whoever looks at it fails.
    Fault(Fault),
}

#[derive(Clone, Debug)]
pub enum Text<'a> {
    Borrowed(&'a str),
    Owned(Arc<str>),
}

/// A moment, and how far from UTC the text said it was that it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp {
    /// Billionths of a second since 1970.
    pub nanos: i128,
    pub offset_seconds: i32,
}

#[derive(Clone, Debug)]
pub enum List<'a> {
    /// With the type of its items.
    Json(&'a [Json], Type),
    /// With what a schema says of it.
    Shaped(&'a [Json], Arc<Shape>),
    Owned(Arc<Vec<Value<'a>>>),
    /// Two lists one after the other, which are not copied for it.
    Joined(Arc<Joined<'a>>),
}

#[derive(Debug)]
pub struct Joined<'a> {
    first: List<'a>,
    second: List<'a>,
    len: usize,
    depth: usize,
}

#[derive(Clone, Debug)]
pub enum Map<'a> {
    /// With its own type: a map, an object, or `dyn`.
    Json(&'a JsonMap, Type),
    /// With what a schema says of it: a map or an object.
    Shaped(&'a JsonMap, Arc<Shape>),
    Owned(Arc<Entries<'a>>),
}

/// Keys and values that an expression has made.
#[derive(Clone, Debug, Default)]
pub struct Entries<'a> {
    /// Of its type, where it is an object.
    pub(crate) name: Option<Arc<str>>,
    texts: BTreeMap<Text<'a>, Value<'a>>,
    scalars: BTreeMap<Scalar, Value<'a>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    Scalar(Scalar),
    Text(Text<'a>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scalar {
    Bool(bool),
    Int(i64),
    Uint(u64),
}

/// A list that is made has no more items than this: expressions can double what they are given for next to no cost.
const MAX_ITEMS: usize = 1_000_000;
/// A text that is made has no more bytes than this: what replaces parts of a text costs nothing, however large it is.
const MAX_TEXT_BYTES: usize = 32 << 20;
/// Lists that are joined more often than this are copied.
const MAX_JOINS: usize = 64;

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Text::Borrowed(text) => text,
            Text::Owned(text) => text,
        }
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text<'_> {}

impl PartialOrd for Text<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl Borrow<str> for Text<'_> {
    fn borrow(&self) -> &str {
        self
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Text::Owned(text.into())
    }
}

impl<'a> Value<'a> {
    pub fn text(text: impl Into<Arc<str>>) -> Value<'a> {
        Value::Text(Text::Owned(text.into()))
    }

    pub(crate) fn list(items: Vec<Value<'a>>) -> Value<'a> {
        Value::List(List::Owned(Arc::new(items)))
    }

    pub(crate) fn some(value: Value<'a>) -> Value<'a> {
        Value::Optional(Some(Arc::new(value)))
    }

    pub(crate) fn checked(self) -> Result<Value<'a>, Fault> {
        match self {
            Value::Fault(fault) => Err(fault),
            value => Ok(value),
        }
    }

    /// What a JSON value is to an expression that knows its type.
    pub fn from_json(json: &'a Json, type_: &Type) -> Value<'a> {
        match (json, type_) {
            (Json::Null, _) => Value::Null,
            (Json::Bool(value), _) => Value::Bool(*value),
            (Json::Number(number), Type::Double) => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
            (Json::Number(number), _) => match number.as_i64() {
                Some(value) => Value::Int(value),
                None => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            (Json::String(text), type_) => scalar(text, type_).unwrap_or(Value::Text(Text::Borrowed(text))),
            (Json::Array(items), Type::List(element)) => Value::List(List::Json(items, (**element).clone())),
            (Json::Array(items), _) => Value::List(List::Json(items, Type::Dyn)),
            (Json::Object(map), type_ @ (Type::Map(_) | Type::Object(_))) => {
                Value::Map(Map::Json(map, type_.clone()))
            }
            (Json::Object(map), _) => Value::Map(Map::Json(map, Type::Dyn)),
        }
    }

    pub(crate) fn type_of(&self) -> Type {
        match self {
            Value::Null => Type::Null,
            Value::Bool(_) => Type::Bool,
            Value::Int(_) => Type::Int,
            Value::Uint(_) => Type::Uint,
            Value::Double(_) => Type::Double,
            Value::Text(_) => Type::String,
            Value::Bytes(_) => Type::Bytes,
            Value::Duration(_) => Type::Duration,
            Value::Timestamp(_) => Type::Timestamp,
            Value::List(_) => Type::list(Type::Dyn),
            Value::Map(Map::Json(_, type_ @ Type::Object(_))) => type_.clone(),
            Value::Map(map) => map.object().map_or_else(|| Type::map(Type::Dyn, Type::Dyn), Type::object),
            Value::Optional(_) => Type::optional(Type::Dyn),
            Value::Type(_) => Type::AnyType,
            Value::Library(library) => library.type_of(),
            Value::Fault(_) => Type::Error,
        }
    }

    /// How large it is where costs are counted; 1 for all that has no size.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Value::Text(text) => text.chars().count() as u64,
            Value::Bytes(bytes) => bytes.len() as u64,
            Value::List(list) => list.len() as u64,
            Value::Map(map) => map.len() as u64,
            Value::Library(library) => library.size(),
            _ => 1,
        }
    }

    pub(crate) fn is_zero(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Bool(value) => !value,
            Value::Int(value) => *value == 0,
            Value::Uint(value) => *value == 0,
            Value::Double(value) => *value == 0.0,
            Value::Text(text) => text.is_empty(),
            Value::Bytes(bytes) => bytes.is_empty(),
            Value::Duration(value) => *value == 0,
            Value::Timestamp(time) => *time == Timestamp::ZERO,
            Value::List(list) => list.is_empty(),
            Value::Map(map) => map.is_empty(),
            Value::Optional(inner) => inner.is_none(),
            Value::Type(_) | Value::Library(_) | Value::Fault(_) => false,
        }
    }
}

/// A text whose type says that it is something else.
fn scalar<'a>(text: &str, type_: &Type) -> Option<Value<'a>> {
    use base64::Engine as _;
    match type_ {
        Type::Timestamp => time::timestamp(text).ok().map(Value::Timestamp),
        Type::Duration => time::duration(text).map(Value::Duration),
        Type::Bytes => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
            Some(Value::Bytes(bytes.into()))
        }
        _ => None,
    }
}

impl Timestamp {
    /// The beginning of the year 1.
    const ZERO: Timestamp = Timestamp { nanos: -62_135_596_800_000_000_000, offset_seconds: 0 };
}

impl<'a> List<'a> {
    pub fn len(&self) -> usize {
        match self {
            List::Json(items, _) | List::Shaped(items, _) => items.len(),
            List::Owned(items) => items.len(),
            List::Joined(joined) => joined.len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, mut at: usize) -> Option<Value<'a>> {
        let mut list = self;
        loop {
            match list {
                List::Json(items, type_) => return items.get(at).map(|item| Value::from_json(item, type_)),
                List::Shaped(items, shape) => {
                    let (item, shape) = (items.get(at)?, shape.element()?);
                    return Some(Value::of(item, shape));
                }
                List::Owned(items) => return items.get(at).cloned(),
                List::Joined(joined) => {
                    let n_first = joined.first.len();
                    (list, at) =
                        if at < n_first { (&joined.first, at) } else { (&joined.second, at - n_first) };
                }
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.len()).map_while(|at| self.get(at))
    }

    fn depth(&self) -> usize {
        if let List::Joined(joined) = self { joined.depth } else { 0 }
    }

    /// One list after the other.
    pub(crate) fn joined(first: List<'a>, second: List<'a>) -> Result<List<'a>, Fault> {
        let len = first.len() + second.len();
        has_room_for_items(len)?;
        match (first.len(), second.len()) {
            (_, 0) => return Ok(first),
            (0, _) => return Ok(second),
            _ => {}
        }
        let depth = first.depth().max(second.depth()) + 1;
        if depth > MAX_JOINS {
            return Ok(List::Owned(Arc::new(first.iter().chain(second.iter()).collect())));
        }
        Ok(List::Joined(Arc::new(Joined { first, second, len, depth })))
    }

    /// The list with one item more, in place where nobody else has it.
    pub(crate) fn pushed(self, value: Value<'a>) -> Result<List<'a>, Fault> {
        match self {
            List::Owned(mut items) => {
                Arc::make_mut(&mut items).push(value);
                Ok(List::Owned(items))
            }
            list => List::joined(list, List::Owned(Arc::new(vec![value]))),
        }
    }
}

impl<'a> Map<'a> {
    pub fn len(&self) -> usize {
        match self {
            Map::Json(map, _) | Map::Shaped(map, _) => map.len(),
            Map::Owned(map) => map.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name of the object's type, where an expression has made an object.
    pub fn object(&self) -> Option<&str> {
        match self {
            Map::Json(..) | Map::Shaped(..) => None,
            Map::Owned(entries) => entries.name.as_deref(),
        }
    }

    pub fn get(&self, key: &Key<'_>) -> Option<Value<'a>> {
        match self {
            Map::Json(map, type_) => match key {
                Key::Text(text) => map.get(&**text).map(|value| Value::from_json(value, values_of(type_))),
                _ => None,
            },
            Map::Shaped(map, shape) => match key {
                Key::Text(text) => shape::get(map, shape, text),
                Key::Scalar(_) => None,
            },
            Map::Owned(map) => map.get(key),
        }
    }

    /// What a key stands for; numbers that are equal are the same key.
    pub(crate) fn find(&self, key: &Value<'_>) -> Option<Value<'a>> {
        let (first, second) = keys_like(key);
        first.and_then(|key| self.get(&key)).or_else(|| second.and_then(|key| self.get(&key)))
    }

    /// All keys and values, in the order of the keys.
    pub fn iter(&self) -> Box<dyn Iterator<Item = (Value<'a>, Value<'a>)> + '_> {
        match self {
            Map::Json(map, type_) => Box::new(map.iter().map(move |(key, value)| {
                (Value::Text(Text::Borrowed(key)), Value::from_json(value, values_of(type_)))
            })),
            Map::Shaped(map, shape) => shape::entries(map, shape),
            Map::Owned(map) => Box::new(map.iter()),
        }
    }
}

/// Whether a list of so many items may be made.
pub(crate) fn has_room_for_items(n_items: usize) -> Result<(), Fault> {
    if n_items <= MAX_ITEMS {
        Ok(())
    } else {
        Err(Fault::other(format!("list has more than {MAX_ITEMS} items")))
    }
}

/// Whether a text of so many bytes may be made.
pub(crate) fn has_room_for_text(n_bytes: usize) -> Result<(), Fault> {
    if n_bytes <= MAX_TEXT_BYTES {
        return Ok(());
    }
    Err(Fault::other(format!("text has more than {MAX_TEXT_BYTES} bytes")))
}

fn values_of(type_: &Type) -> &Type {
    match type_ {
        Type::Map(both) => &both.1,
        _ => &Type::Dyn,
    }
}

impl<'a> Entries<'a> {
    fn len(&self) -> usize {
        self.texts.len() + self.scalars.len()
    }

    pub(crate) fn get(&self, key: &Key<'_>) -> Option<Value<'a>> {
        match key {
            Key::Text(text) => self.texts.get::<str>(text).cloned(),
            Key::Scalar(scalar) => self.scalars.get(scalar).cloned(),
        }
    }

    pub(crate) fn insert(&mut self, key: Key<'a>, value: Value<'a>) {
        match key {
            Key::Text(text) => _ = self.texts.insert(text, value),
            Key::Scalar(scalar) => _ = self.scalars.insert(scalar, value),
        }
    }

    pub(crate) fn remove(&mut self, key: &Key<'_>) {
        match key {
            Key::Text(text) => _ = self.texts.remove::<str>(text),
            Key::Scalar(scalar) => _ = self.scalars.remove(scalar),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (Value<'a>, Value<'a>)> + '_ {
        let scalars = self.scalars.iter().map(|(key, value)| ((*key).into(), value.clone()));
        scalars.chain(self.texts.iter().map(|(key, value)| (Value::Text(key.clone()), value.clone())))
    }
}

impl From<Scalar> for Value<'_> {
    fn from(scalar: Scalar) -> Self {
        match scalar {
            Scalar::Bool(value) => Value::Bool(value),
            Scalar::Int(value) => Value::Int(value),
            Scalar::Uint(value) => Value::Uint(value),
        }
    }
}

impl<'a> Key<'a> {
    pub(crate) fn of(value: Value<'a>) -> Result<Key<'a>, Fault> {
        Ok(match value {
            Value::Bool(value) => Key::Scalar(Scalar::Bool(value)),
            Value::Int(value) => Key::Scalar(Scalar::Int(value)),
            Value::Uint(value) => Key::Scalar(Scalar::Uint(value)),
            Value::Text(text) => Key::Text(text),
            other => return Err(Fault::other(format!("unsupported key type: {}", other.type_of().name()))),
        })
    }
}

/// The keys that a value may stand for: itself, and the same number of the other sign.
fn keys_like<'a>(value: &Value<'a>) -> (Option<Key<'a>>, Option<Key<'a>>) {
    let (int, uint) = match value {
        Value::Bool(value) => return (Some(Key::Scalar(Scalar::Bool(*value))), None),
        Value::Text(text) => return (Some(Key::Text(text.clone())), None),
        Value::Int(value) => (Some(*value), u64::try_from(*value).ok()),
        Value::Uint(value) => (i64::try_from(*value).ok(), Some(*value)),
        Value::Double(value) => (whole(*value), whole_positive(*value)),
        _ => (None, None),
    };
    (int.map(|int| Key::Scalar(Scalar::Int(int))), uint.map(|uint| Key::Scalar(Scalar::Uint(uint))))
}

/// A number that is whole, as such.
pub(crate) fn whole(value: f64) -> Option<i64> {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    (value.fract() == 0.0 && (-LIMIT..LIMIT).contains(&value)).then_some(value as i64)
}

pub(crate) fn whole_positive(value: f64) -> Option<u64> {
    const LIMIT: f64 = 18_446_744_073_709_551_616.0;
    (value.fract() == 0.0 && (0.0..LIMIT).contains(&value)).then_some(value as u64)
}
