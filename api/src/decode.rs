//! From a request's bytes to an object of a kind.
//!
//! Parsing knows no schema: it yields a JSON document and the paths of fields that stood twice. Conforming
//! then walks the document beside the schema: fields the schema lacks are pruned and noted, values of the
//! wrong type refused, quantities and times brought into canonical form. What upstream leaves out of JSON, such as
//! `hostNetwork: false`, is left out too: a client that reads and writes an object changes nothing.

use serde_json::Value;

use crate::schema::{Schema, Shape, TypeId};
use crate::{Kind, Object, Status, protobuf, quantity};

mod parse;

use parse::Fault;

/// What to do about unknown and duplicate fields: the `fieldValidation` parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
    Protobuf,
}

/// An object of a known shape, and the sentences for `Warning` headers.
#[derive(Debug)]
pub struct Decoded {
    pub object: Object,
    pub warnings: Vec<String>,
}

/// Reads an object of `kind`: unknown fields are pruned, values of the wrong type refused. Sets
/// `apiVersion` and `kind` where they are missing; refuses others than `kind`'s with a 400.
///
/// # Errors
/// A 400 `Status`, worded as upstream: `strict decoding error: unknown field "spec.foo"`.
pub fn decode(
    kind: &Kind,
    bytes: &[u8],
    format: Format,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let text = match format {
        Format::Json => parse::Text::Json,
        Format::Yaml => parse::Text::Yaml,
        Format::Protobuf => {
            let object = protobuf::read(kind, bytes).map_err(|e| cannot_be_handled(kind, &e.to_string()))?;
            // Its fields have numbers, so none can be unknown by its name.
            return conform(kind, object, FieldValidation::Ignore);
        }
    };
    let (object, duplicates) =
        parse::parse(bytes, text).map_err(|error| cannot_be_handled(kind, &error.to_string()))?;
    let source = (text == parse::Text::Json).then_some(bytes);
    finish(kind, object, Origin { source, duplicates }, validation)
}

/// Prunes and checks the shape of an object that is already parsed, such as the result of a patch.
pub fn conform(kind: &Kind, object: Object, validation: FieldValidation) -> Result<Decoded, Status> {
    finish(kind, object, Origin::default(), validation)
}

/// Parses JSON without a schema, under the same caps on size and depth. Used for patches.
pub fn parse(bytes: &[u8]) -> Result<Object, Status> {
    match parse::parse(bytes, parse::Text::Json) {
        Ok((object, _)) => Ok(object),
        Err(error) => Err(Status::bad_request(format!("error decoding the request body: {error}"))),
    }
}

/// Reads a document that is no object of the kind it is sent to, such as `DeleteOptions`, without a schema where
/// the format needs none. `api_version` and `kind` are what it is if it is protobuf that does not say.
pub fn document(bytes: &[u8], format: Format, api_version: &str, kind: &str) -> Result<Object, Status> {
    let read = match format {
        Format::Json => parse::parse(bytes, parse::Text::Json).map_err(|e| e.to_string()),
        Format::Yaml => parse::parse(bytes, parse::Text::Yaml).map_err(|e| e.to_string()),
        Format::Protobuf => {
            let document = protobuf::read_document(bytes, api_version, kind).map_err(|e| e.to_string());
            document.map(|document| (document, Vec::new()))
        }
    };
    let (object, _) =
        read.map_err(|error| Status::bad_request(format!("error decoding the request body: {error}")))?;
    Ok(object)
}

/// Prunes and checks a document of a type that is no kind of its own, such as `DeleteOptions`.
pub fn conform_to(schema: &Schema, id: TypeId, mut object: Object) -> Result<Object, Status> {
    let mut walk = Walk { schema, path: String::new(), unknown: Vec::new() };
    walk.object(id, &mut object, false).map_err(Status::bad_request)?;
    Ok(object)
}

/// Where an object came from, as far as its faults are concerned.
#[derive(Default)]
struct Origin<'s> {
    /// The JSON it was read from, which has the fields in the order of their author.
    source: Option<&'s [u8]>,
    duplicates: Vec<String>,
}

impl Origin<'_> {
    /// What strict decoding has against the document, in the order in which upstream meets it.
    fn faults(self, unknown: Vec<String>) -> Vec<String> {
        if unknown.is_empty() && self.duplicates.is_empty() {
            return Vec::new();
        }
        let faults = match self.source {
            Some(source) => parse::in_document_order(source, &unknown, &self.duplicates),
            None => unknown.into_iter().map(Fault::Unknown).collect(),
        };
        faults.iter().map(Fault::to_string).collect()
    }
}

fn finish(
    kind: &Kind,
    mut object: Object,
    origin: Origin<'_>,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let Value::Object(map) = &mut object else {
        return Err(cannot_be_handled(
            kind,
            "json: cannot unmarshal into Go value: the body is not an object",
        ));
    };
    for (field, wanted) in [("apiVersion", kind.api_version()), ("kind", kind.kind.clone())] {
        match map.get(field).and_then(Value::as_str) {
            None | Some("") => {
                map.insert(field.into(), wanted.into());
            }
            Some(found) if found == wanted => {}
            Some(found) => {
                return Err(Status::bad_request(format!(
                    "the object provided is unrecognized (must be of type {}): its {field} is {found:?}, \
                     expected {wanted:?}",
                    kind.kind
                )));
            }
        }
    }
    let mut walk = Walk { schema: &kind.schema.schema, path: String::new(), unknown: Vec::new() };
    walk.object(kind.schema.id, &mut object, true).map_err(|error| cannot_be_handled(kind, &error))?;
    if validation == FieldValidation::Ignore {
        return Ok(Decoded { object, warnings: Vec::new() });
    }
    let faults = origin.faults(walk.unknown);
    let warnings = match validation {
        FieldValidation::Strict if !faults.is_empty() => {
            let error = format!("strict decoding error: {}", faults.join(", "));
            return Err(cannot_be_handled(kind, &error));
        }
        FieldValidation::Warn => faults,
        FieldValidation::Strict | FieldValidation::Ignore => Vec::new(),
    };
    Ok(Decoded { object, warnings })
}

fn cannot_be_handled(kind: &Kind, error: &str) -> Status {
    let (name, version) = (&kind.kind, &kind.version);
    Status::bad_request(format!("{name} in version {version:?} cannot be handled as a {name}: {error}"))
}

/// One pass over a document, in step with its schema.
struct Walk<'s> {
    schema: &'s Schema,
    /// Where the walk is: `spec.containers[0].name`.
    path: String,
    unknown: Vec<String>,
}

/// Bounds what one bad document can make the server say.
const MAX_UNKNOWN: usize = 100;

impl Walk<'_> {
    /// `root` objects keep `apiVersion` and `kind` whether or not the type lists them.
    fn object(&mut self, id: TypeId, value: &mut Value, root: bool) -> Result<(), String> {
        let schema = self.schema;
        let type_ = schema.get(id);
        let Value::Object(map) = value else { return Err(self.mismatch(value, type_.short_name(), None)) };
        let mut failed = None;
        map.retain(|name, value| {
            if failed.is_some() || (root && matches!(name.as_str(), "apiVersion" | "kind")) {
                return true;
            }
            let depth = self.enter(name);
            let keep = match type_.field(name) {
                None => {
                    if self.unknown.len() < MAX_UNKNOWN {
                        self.unknown.push(self.path.clone());
                    }
                    false
                }
                Some(_) if value.is_null() => false,
                Some(field) => {
                    if let Err(error) = self.value(&field.shape, value, type_.short_name()) {
                        failed = Some(error);
                    }
                    !field.omits(value)
                }
            };
            self.path.truncate(depth);
            keep
        });
        failed.map_or(Ok(()), Err)
    }

    fn enter(&mut self, field: &str) -> usize {
        let depth = self.path.len();
        if depth > 0 {
            self.path.push('.');
        }
        self.path.push_str(field);
        depth
    }

    /// `owner` is the type whose field this is, for the message.
    fn value(&mut self, shape: &Shape, value: &mut Value, owner: &str) -> Result<(), String> {
        match shape {
            Shape::Any | Shape::SchemaOr(..) => Ok(()),
            Shape::Object(id) => self.object(*id, value, false),
            Shape::List(inner) => {
                let Value::Array(items) = value else { return Err(self.mismatch(value, owner, Some("[]"))) };
                items.retain(|item| !item.is_null());
                for (at, item) in items.iter_mut().enumerate() {
                    let depth = self.path.len();
                    self.path.push_str(&format!("[{at}]"));
                    self.value(inner, item, owner)?;
                    self.path.truncate(depth);
                }
                Ok(())
            }
            Shape::Map(inner) => {
                let Value::Object(map) = value else { return Err(self.mismatch(value, owner, Some("map"))) };
                for (key, value) in map.iter_mut() {
                    if value.is_null() && **inner == Shape::String {
                        *value = Value::String(String::new());
                    }
                    let depth = self.enter(key);
                    self.value(inner, value, owner)?;
                    self.path.truncate(depth);
                }
                Ok(())
            }
            scalar => self.scalar(scalar, value, owner),
        }
    }

    fn scalar(&mut self, shape: &Shape, value: &mut Value, owner: &str) -> Result<(), String> {
        let go_type = match (shape, &*value) {
            (Shape::String, Value::String(_)) | (Shape::Bool, Value::Bool(_)) => return Ok(()),
            (Shape::Double, Value::Number(_)) => return Ok(()),
            (Shape::Int64, Value::Number(n)) if n.is_i64() => return Ok(()),
            (Shape::Int32, Value::Number(n)) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {
                return Ok(());
            }
            (Shape::IntOrString, Value::String(_)) => return Ok(()),
            (Shape::IntOrString, Value::Number(n)) if n.is_i64() => return Ok(()),
            (Shape::Bytes, Value::String(text)) => return self.base64(text),
            (Shape::Quantity, Value::String(_) | Value::Number(_)) => return self.quantity(value),
            (Shape::Time | Shape::MicroTime, Value::String(text)) => {
                let canonical = time(text, *shape == Shape::MicroTime)?;
                *value = canonical.into();
                return Ok(());
            }
            (Shape::String, _) => "string",
            (Shape::Bool, _) => "bool",
            (Shape::Int32, _) => "int32",
            (Shape::Int64, _) => "int64",
            (Shape::Double, _) => "float64",
            (Shape::IntOrString, _) => "intstr.IntOrString",
            (Shape::Bytes, _) => "[]uint8",
            (Shape::Quantity, _) => "resource.Quantity",
            _ => "time.Time",
        };
        Err(self.mismatch(value, owner, Some(go_type)))
    }

    fn base64(&self, text: &str) -> Result<(), String> {
        use base64::Engine as _;
        match base64::engine::general_purpose::STANDARD.decode(text) {
            Ok(_) => Ok(()),
            Err(base64::DecodeError::InvalidByte(at, _)) => {
                Err(format!("illegal base64 data at input byte {at} ({})", self.path))
            }
            Err(_) => Err(format!("illegal base64 data at input byte {} ({})", text.len(), self.path)),
        }
    }

    fn quantity(&self, value: &mut Value) -> Result<(), String> {
        let text = match &*value {
            Value::String(text) => text.clone(),
            number => number.to_string(),
        };
        let canonical = quantity::canonical(&text).map_err(|error| format!("{}: {error}", self.path))?;
        *value = canonical.into();
        Ok(())
    }

    fn mismatch(&self, value: &Value, owner: &str, go_type: Option<&str>) -> String {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        match go_type {
            Some(go_type) => format!(
                "json: cannot unmarshal {found} into Go struct field {owner}.{} of type {go_type}",
                self.path
            ),
            None if self.path.is_empty() => {
                format!("json: cannot unmarshal {found} into Go value of type {owner}")
            }
            None => {
                format!("json: cannot unmarshal {found} into Go struct field {} of type {owner}", self.path)
            }
        }
    }
}

/// RFC 3339 in UTC: whole seconds for `Time`, always six decimals for `MicroTime`.
fn time(text: &str, micro: bool) -> Result<String, String> {
    let at: jiff::Timestamp = text.parse().map_err(|_| {
        format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?}")
    })?;
    let format = if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(at.strftime(format).to_string())
}

#[cfg(test)]
mod tests;
