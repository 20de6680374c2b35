//! From JSON to protobuf, written from the end to the beginning, so that the length of what is nested is known
//! when it is written.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::wire::{DELIMITED, FIXED64, VARINT};
use crate::duration::go_duration_ns;
use crate::schema::{Alternative, Field, Message, ObjectType, Presence, Schema, Shape, TypeId, What};
use crate::time::{Moment, Precision};

/// The message of a document that conforms to its type. What does not conform is left out.
pub(super) fn message(schema: &Schema, id: TypeId, document: &Value) -> Vec<u8> {
    let mut writer = Writer { schema, out: Vec::with_capacity(512) };
    writer.object(id, document.as_object());
    writer.out.reverse();
    writer.out
}

struct Writer<'s> {
    schema: &'s Schema,
    /// Back to front.
    out: Vec<u8>,
}

impl Writer<'_> {
    fn object(&mut self, id: TypeId, object: Option<&Map<String, Value>>) {
        let schema = self.schema;
        let type_ = schema.get(id);
        self.fields(type_, &type_.message, object);
    }

    /// In the order of their numbers, once the whole is turned around.
    fn fields(&mut self, type_: &ObjectType, message: &Message, object: Option<&Map<String, Value>>) {
        for slot in message.slots().iter().rev() {
            match &slot.what {
                What::Inlined(inner) => self.delimited(slot.number, |w| w.fields(type_, inner, object)),
                What::Field(at) => {
                    let field = &type_.fields[*at];
                    self.field(slot.number, field, object.and_then(|o| o.get(&*field.name)));
                }
            }
        }
    }

    fn field(&mut self, number: u16, field: &Field, value: Option<&Value>) {
        match value.filter(|value| !value.is_null()) {
            Some(value) => self.value(number, &field.node.shape, field.wrapped, value),
            None if field.presence != Presence::Optional => self.zero(number, &field.node.shape),
            None => {}
        }
    }

    fn value(&mut self, number: u16, shape: &Shape, wrapped: bool, value: &Value) {
        match shape {
            Shape::String => self.text(number, value.as_str().unwrap_or_default()),
            Shape::Int32 | Shape::Int64 => self.number(number, value.as_i64().unwrap_or_default() as u64),
            Shape::Bool => self.number(number, u64::from(value.as_bool().unwrap_or_default())),
            Shape::Double => self.double(number, value.as_f64().unwrap_or_default()),
            Shape::Bytes => {
                let bytes = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default();
                self.bytes(number, &bytes);
            }
            Shape::Quantity => self.delimited(number, |w| match value {
                Value::String(text) => w.text(1, text),
                other => w.text(1, &other.to_string()),
            }),
            Shape::IntOrString => self.int_or_string(number, value),
            Shape::Time => self.time(number, value, Precision::Seconds),
            Shape::MicroTime => self.time(number, value, Precision::Micros),
            Shape::Duration => {
                let ns = value.as_str().and_then(|text| go_duration_ns(text).ok()).unwrap_or_default();
                self.delimited(number, |w| w.number(1, ns as u64));
            }
            Shape::Any => {
                // Writing a `Value` to memory cannot fail.
                let json = serde_json::to_vec(value).unwrap_or_default();
                self.delimited(number, |w| w.bytes(1, &json));
            }
            Shape::SchemaOr(alternative, id) => {
                self.delimited(number, |w| w.schema_or(*alternative, *id, value));
            }
            Shape::Object(id) => self.delimited(number, |w| w.object(*id, value.as_object())),
            Shape::List(inner) if wrapped => self.delimited(number, |w| w.list(1, &inner.shape, value)),
            Shape::List(inner) => self.list(number, &inner.shape, value),
            Shape::Map(inner) => {
                for (key, value) in value.as_object().into_iter().flatten().rev() {
                    self.delimited(number, |w| {
                        w.value_or_zero(2, &inner.shape, wrapped, value);
                        w.text(1, key);
                    });
                }
            }
        }
    }

    fn list(&mut self, number: u16, inner: &Shape, value: &Value) {
        for item in value.as_array().into_iter().flatten().rev() {
            self.value_or_zero(number, inner, false, item);
        }
    }

    fn value_or_zero(&mut self, number: u16, shape: &Shape, wrapped: bool, value: &Value) {
        if value.is_null() { self.zero(number, shape) } else { self.value(number, shape, wrapped, value) }
    }

    /// What is on the wire of a value that is not set.
    fn zero(&mut self, number: u16, shape: &Shape) {
        match shape {
            Shape::List(_) | Shape::Map(_) | Shape::Bytes => {}
            Shape::Any | Shape::Time | Shape::MicroTime => self.bytes(number, &[]),
            Shape::Quantity => self.delimited(number, |w| w.text(1, "0")),
            // Of these the zero value is written like any other.
            scalar => self.value(number, scalar, false, &Value::Null),
        }
    }

    fn int_or_string(&mut self, number: u16, value: &Value) {
        let (kind, int, text) = match value {
            Value::String(text) => (1, 0, text.as_str()),
            other => (0, other.as_i64().unwrap_or_default(), ""),
        };
        self.delimited(number, |w| {
            w.text(3, text);
            w.number(2, int as u64);
            w.number(1, kind);
        });
    }

    fn time(&mut self, number: u16, value: &Value, precision: Precision) {
        // What is stored was read once before, by a server that may have taken other fractions.
        let text = value.as_str().unwrap_or_default();
        let parsed = Moment::parse(text, Precision::Seconds).ok();
        self.delimited(number, |w| {
            let Some(at) = parsed else { return };
            let micros = at.nanos() / 1000;
            if at.seconds_only().is_zero() && micros == 0 {
                return;
            }
            w.number(2, if precision == Precision::Micros { u64::from(micros) * 1000 } else { 0 });
            w.number(1, at.seconds() as u64);
        });
    }

    fn schema_or(&mut self, alternative: Alternative, id: TypeId, value: &Value) {
        match (alternative, value) {
            (Alternative::Bool, Value::Object(schema)) => {
                self.delimited(2, |w| w.object(id, Some(schema)));
                self.number(1, 1);
            }
            (Alternative::Bool, value) => self.number(1, u64::from(value.as_bool().unwrap_or_default())),
            (_, Value::Object(schema)) => self.delimited(1, |w| w.object(id, Some(schema))),
            (Alternative::Schemas, value) => self.list(2, &Shape::Object(id), value),
            (Alternative::Strings, value) => self.list(2, &Shape::String, value),
        }
    }

    fn text(&mut self, number: u16, text: &str) {
        self.bytes(number, text.as_bytes());
    }

    fn bytes(&mut self, number: u16, bytes: &[u8]) {
        self.delimited(number, |w| w.out.extend(bytes.iter().rev()));
    }

    fn delimited(&mut self, number: u16, content: impl FnOnce(&mut Self)) {
        let before = self.out.len();
        content(self);
        self.varint((self.out.len() - before) as u64);
        self.tag(number, DELIMITED);
    }

    fn number(&mut self, number: u16, value: u64) {
        self.varint(value);
        self.tag(number, VARINT);
    }

    fn double(&mut self, number: u16, value: f64) {
        self.out.extend(value.to_bits().to_be_bytes());
        self.tag(number, FIXED64);
    }

    fn tag(&mut self, number: u16, wire_type: u8) {
        self.varint(u64::from(number) << 3 | u64::from(wire_type));
    }

    fn varint(&mut self, value: u64) {
        let start = self.out.len();
        super::wire::put_varint(&mut self.out, value);
        self.out[start..].reverse();
    }
}
