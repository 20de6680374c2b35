//! From protobuf to JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value};

use super::wire::{self, DecodeError, FieldBytes, Reader};
use crate::depth::{self, MAX_DEPTH};
use crate::duration::go_duration;
use crate::schema::{Alternative, Field, Message, ObjectType, Schema, Shape, TypeId, What};
use crate::time::{Moment, Precision};

/// How many values one message may hold: its smallest are two bytes on the wire and far more in memory.
const MAX_VALUES: usize = 250_000;

/// The document of a message. Unknown fields are passed over, as upstream does.
pub(super) fn message(schema: &Schema, id: TypeId, bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut decoder = Decoder { schema, depth: 0, left: MAX_VALUES };
    let mut object = Map::new();
    decoder.object(id, bytes, &mut object)?;
    Ok(Value::Object(object))
}

struct Decoder<'s> {
    schema: &'s Schema,
    depth: usize,
    /// Values that may still be made.
    left: usize,
}

impl Decoder<'_> {
    fn object(&mut self, id: TypeId, bytes: &[u8], into: &mut Map<String, Value>) -> Result<(), DecodeError> {
        let schema = self.schema;
        let type_ = schema.get(id);
        self.nested(|decoder| decoder.fields(type_, &type_.message, bytes, into))
    }

    fn nested<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        if self.depth == MAX_DEPTH {
            return Err(DecodeError::TooDeep(MAX_DEPTH));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn count(&mut self) -> Result<(), DecodeError> {
        self.left = self.left.checked_sub(1).ok_or(DecodeError::TooMany(MAX_VALUES))?;
        Ok(())
    }

    fn fields(
        &mut self,
        type_: &ObjectType,
        message: &Message,
        bytes: &[u8],
        into: &mut Map<String, Value>,
    ) -> Result<(), DecodeError> {
        let mut reader = Reader::new(bytes);
        while let Some(found) = reader.field(type_.short_name())? {
            match message.slot(found.number) {
                None => {}
                Some(What::Inlined(inner)) => {
                    let bytes = wire::delimited(&found, type_.short_name())?;
                    self.nested(|decoder| decoder.fields(type_, inner, bytes, into))?;
                }
                Some(What::Field(at)) => self.field(&type_.fields[*at], &found, into)?,
            }
        }
        Ok(())
    }

    /// One occurrence of a field: lists grow, messages merge, and of everything else the last one counts.
    fn field(
        &mut self,
        field: &Field,
        found: &FieldBytes<'_>,
        into: &mut Map<String, Value>,
    ) -> Result<(), DecodeError> {
        self.count()?;
        let name = &*field.name;
        match &field.node.shape {
            Shape::Object(id) => {
                let bytes = wire::delimited(found, name)?;
                self.object(*id, bytes, entry(into, name, Value::Object(Map::new()), Value::as_object_mut))
            }
            Shape::List(inner) => {
                let list = entry(into, name, Value::Array(Vec::new()), Value::as_array_mut);
                if field.wrapped {
                    let bytes = wire::delimited(found, name)?;
                    return self.wrapped_list(&inner.shape, bytes, name, list);
                }
                self.nested(|decoder| decoder.items(&inner.shape, found, name, list))
            }
            Shape::Map(inner) => {
                let bytes = wire::delimited(found, name)?;
                let map = entry(into, name, Value::Object(Map::new()), Value::as_object_mut);
                self.nested(|decoder| decoder.map_entry(&inner.shape, field.wrapped, bytes, name, map))
            }
            shape => {
                let value = self.single(shape, found, name)?;
                if value.is_null() || field.omits(&value) {
                    into.remove(name);
                } else {
                    into.insert(name.to_owned(), value);
                }
                Ok(())
            }
        }
    }

    /// The items in one occurrence of a repeated field: one, or many numbers packed together.
    fn items(
        &mut self,
        shape: &Shape,
        found: &FieldBytes<'_>,
        name: &str,
        list: &mut Vec<Value>,
    ) -> Result<(), DecodeError> {
        let packs = matches!(shape, Shape::Int32 | Shape::Int64 | Shape::Bool | Shape::Double);
        if !packs || found.wire_type != wire::DELIMITED {
            self.count()?;
            list.push(self.single(shape, found, name)?);
            return Ok(());
        }
        let mut reader = Reader::new(found.bytes);
        while !reader.is_empty() {
            self.count()?;
            let bits = if *shape == Shape::Double { reader.fixed64()? } else { reader.varint()? };
            list.push(number(shape, bits, name)?);
        }
        Ok(())
    }

    fn wrapped_list(
        &mut self,
        shape: &Shape,
        bytes: &[u8],
        name: &str,
        list: &mut Vec<Value>,
    ) -> Result<(), DecodeError> {
        let mut reader = Reader::new(bytes);
        while let Some(found) = reader.field(name)? {
            if found.number == 1 {
                self.nested(|decoder| decoder.items(shape, &found, name, list))?;
            }
        }
        Ok(())
    }

    fn map_entry(
        &mut self,
        shape: &Shape,
        wrapped: bool,
        bytes: &[u8],
        name: &str,
        map: &mut Map<String, Value>,
    ) -> Result<(), DecodeError> {
        let (mut key, mut value) = (String::new(), shape.zero());
        let mut reader = Reader::new(bytes);
        while let Some(found) = reader.field(name)? {
            match (found.number, shape) {
                (1, _) => key = wire::text(&found, name)?.to_owned(),
                (2, Shape::List(inner)) if wrapped => {
                    let mut list = Vec::new();
                    self.wrapped_list(&inner.shape, wire::delimited(&found, name)?, name, &mut list)?;
                    value = list.into();
                }
                (2, shape) => value = self.single(shape, &found, name)?,
                _ => {}
            }
        }
        map.insert(key, value);
        Ok(())
    }

    /// A value of which a field has one, an item of a list or a value of a map. `Null` is none.
    fn single(&mut self, shape: &Shape, found: &FieldBytes<'_>, name: &str) -> Result<Value, DecodeError> {
        Ok(match shape {
            Shape::String => wire::text(found, name)?.into(),
            Shape::Int32 | Shape::Int64 | Shape::Bool => {
                wire::expect(found, wire::VARINT, name)?;
                number(shape, found.bits, name)?
            }
            Shape::Double => {
                wire::expect(found, wire::FIXED64, name)?;
                number(shape, found.bits, name)?
            }
            Shape::Bytes => STANDARD.encode(wire::delimited(found, name)?).into(),
            Shape::Quantity => quantity(wire::delimited(found, name)?, name)?,
            Shape::IntOrString => int_or_string(wire::delimited(found, name)?, name)?,
            Shape::Time | Shape::MicroTime => time(shape, wire::delimited(found, name)?, name)?,
            Shape::Duration => duration(wire::delimited(found, name)?, name)?,
            Shape::Any => self.json(wire::delimited(found, name)?, name)?,
            Shape::SchemaOr(alternative, id) => {
                self.schema_or(*alternative, *id, wire::delimited(found, name)?, name)?
            }
            Shape::Object(id) => {
                let mut object = Map::new();
                self.object(*id, wire::delimited(found, name)?, &mut object)?;
                Value::Object(object)
            }
            // Neither Go nor the schema has lists of lists, or maps of maps.
            Shape::List(_) | Shape::Map(_) => Value::Null,
        })
    }

    /// A message that holds nothing but the bytes of a JSON document.
    fn json(&mut self, bytes: &[u8], name: &str) -> Result<Value, DecodeError> {
        let mut raw: &[u8] = &[];
        let mut reader = Reader::new(bytes);
        while let Some(found) = reader.field(name)? {
            if found.number == 1 {
                raw = wire::delimited(&found, name)?;
            }
        }
        if raw.is_empty() {
            return Ok(Value::Null);
        }
        let value: Value = serde_json::from_slice(raw)
            .map_err(|source| DecodeError::NotJson { field: name.to_owned(), source })?;
        let left = MAX_DEPTH.saturating_sub(self.depth);
        depth::levels(&value, left).map_err(|_| DecodeError::TooDeep(MAX_DEPTH))?;
        Ok(value)
    }

    fn schema_or(
        &mut self,
        alternative: Alternative,
        id: TypeId,
        bytes: &[u8],
        name: &str,
    ) -> Result<Value, DecodeError> {
        let (mut schema, mut allowed, mut others) = (None, false, Vec::new());
        let mut reader = Reader::new(bytes);
        while let Some(found) = reader.field(name)? {
            self.count()?;
            match (alternative, found.number) {
                (Alternative::Bool, 1) => {
                    wire::expect(&found, wire::VARINT, name)?;
                    allowed = found.bits != 0;
                }
                (Alternative::Bool, 2) | (Alternative::Schemas | Alternative::Strings, 1) => {
                    let bytes = wire::delimited(&found, name)?;
                    self.object(id, bytes, schema.get_or_insert_with(Map::new))?;
                }
                (Alternative::Schemas, 2) => {
                    others.push(self.nested(|decoder| decoder.single(&Shape::Object(id), &found, name))?);
                }
                (Alternative::Strings, 2) => others.push(wire::text(&found, name)?.into()),
                _ => {}
            }
        }
        Ok(match (alternative, schema) {
            (Alternative::Schemas | Alternative::Strings, _) if !others.is_empty() => others.into(),
            (_, Some(schema)) => Value::Object(schema),
            (Alternative::Bool, None) => allowed.into(),
            (_, None) => Value::Null,
        })
    }
}

/// The list or map of a field, made if it is not there yet.
fn entry<'m, T>(
    into: &'m mut Map<String, Value>,
    name: &str,
    empty: Value,
    of: impl Fn(&'m mut Value) -> Option<&'m mut T>,
) -> &'m mut T {
    let value = into.entry(name.to_owned()).or_insert(empty);
    of(value).unwrap_or_else(|| unreachable!("a field has one shape"))
}

fn number(shape: &Shape, bits: u64, name: &str) -> Result<Value, DecodeError> {
    Ok(match shape {
        Shape::Bool => (bits != 0).into(),
        // What does not fit is cut off, as Go does.
        Shape::Int32 => (bits as i32).into(),
        Shape::Double => {
            double(f64::from_bits(bits)).ok_or_else(|| DecodeError::NotFinite { field: name.to_owned() })?
        }
        _ => (bits as i64).into(),
    })
}

/// As Go writes it: a whole number has no fraction.
fn double(value: f64) -> Option<Value> {
    const EXACT: f64 = (1_u64 << 53) as f64;
    let whole = value.fract() == 0.0 && value.abs() < EXACT && !(value == 0.0 && value.is_sign_negative());
    if whole { Some((value as i64).into()) } else { Number::from_f64(value).map(Value::Number) }
}

fn quantity(bytes: &[u8], name: &str) -> Result<Value, DecodeError> {
    let mut text = "";
    let mut reader = Reader::new(bytes);
    while let Some(found) = reader.field(name)? {
        if found.number == 1 {
            text = wire::text(&found, name)?;
        }
    }
    Ok(if text.is_empty() { "0" } else { text }.into())
}

fn int_or_string(bytes: &[u8], name: &str) -> Result<Value, DecodeError> {
    let (mut is_text, mut int, mut text) = (false, 0, "");
    let mut reader = Reader::new(bytes);
    while let Some(found) = reader.field(name)? {
        match found.number {
            1 | 2 => {
                wire::expect(&found, wire::VARINT, name)?;
                if found.number == 1 { is_text = found.bits == 1 } else { int = found.bits as i32 }
            }
            3 => text = wire::text(&found, name)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { int.into() })
}

/// RFC 3339; no time at all is `Null`.
fn time(shape: &Shape, bytes: &[u8], name: &str) -> Result<Value, DecodeError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0_i64, 0_i32);
    let mut reader = Reader::new(bytes);
    while let Some(found) = reader.field(name)? {
        if matches!(found.number, 1 | 2) {
            wire::expect(&found, wire::VARINT, name)?;
            if found.number == 1 { seconds = found.bits as i64 } else { nanos = found.bits as i32 }
        }
    }
    let precision = if *shape == Shape::MicroTime { Precision::Micros } else { Precision::Seconds };
    let kept_ns = if precision == Precision::Micros { nanos / 1000 * 1000 } else { 0 };
    let at = u32::try_from(kept_ns).ok().and_then(|kept_ns| Moment::new(seconds, kept_ns));
    let at = at.ok_or_else(|| DecodeError::NoTime { field: name.to_owned(), seconds, nanos })?;
    Ok(if at.is_zero() { Value::Null } else { at.to_text(precision).into() })
}

/// A message of nanoseconds.
fn duration(bytes: &[u8], name: &str) -> Result<Value, DecodeError> {
    let mut ns = 0_i64;
    let mut reader = Reader::new(bytes);
    while let Some(found) = reader.field(name)? {
        if found.number == 1 {
            wire::expect(&found, wire::VARINT, name)?;
            ns = found.bits as i64;
        }
    }
    Ok(go_duration(ns).into())
}
