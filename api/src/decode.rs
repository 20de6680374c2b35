//! From a request's bytes to an object of a kind.
//!
//! Parsing knows no schema: it yields a JSON document and the paths of fields that stood twice. Conforming
//! then walks the document beside the schema: fields the schema lacks are pruned and noted, values of the
//! wrong type refused, quantities and times brought into canonical form. What upstream leaves out of JSON, such as
//! `hostNetwork: false`, is left out too: a client that reads and writes an object changes nothing.

use serde_json::Value;

use crate::duration::go_duration_ns;
use crate::schema::{Alternative, Schema, Shape, TypeId};
use crate::time::{Moment, Precision};
use crate::{Kind, Object, Status, depth, protobuf, quantity, structural};

mod order;
mod parse;
mod path;

pub(crate) use order::Fault;
use path::{Noted, Path, Steps};

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
    match format {
        Format::Json => {}
        Format::Yaml => {
            let (object, twice) =
                parse::yaml(bytes).map_err(|error| cannot_be_handled(kind, &error.to_string()))?;
            return finish(kind, object, Origin { twice, ..Origin::default() }, validation);
        }
        Format::Protobuf => {
            let object = protobuf::read(kind, bytes).map_err(|e| cannot_be_handled(kind, &e.to_string()))?;
            // Its fields have numbers, so none can be unknown by its name.
            return conform(kind, object, FieldValidation::Ignore);
        }
    }
    let (object, duplicates) = parse::parse(bytes, parse::Text::Json).map_err(|error| {
        unrecognized(kind, &format!("couldn't get version/kind; json parse error: {error}"), bytes)
    })?;
    finish(kind, object, Origin { source: Some(bytes), duplicates, twice: None }, validation)
}

/// Prunes and checks the shape of an object that is already parsed, such as a default of our own.
pub fn conform(kind: &Kind, object: Object, validation: FieldValidation) -> Result<Decoded, Status> {
    finish(kind, object, Origin::default(), validation)
}

/// An object in its shape, and the fields that its kind does not have.
pub(crate) struct Shaped {
    pub(crate) object: Object,
    pub(crate) unknown: Vec<Fault>,
}

/// As [`conform`], for who words errors and warnings itself.
///
/// # Errors
/// What a value of the wrong type is, in upstream's words.
pub(crate) fn shape(kind: &Kind, mut object: Object, numbers: Numbers) -> Result<Shaped, String> {
    depth::check(&object).map_err(|error| error.to_string())?;
    if kind.schema.schema.root().is_some() {
        let unknown = structural::prune(&kind.schema.schema, &mut object)?;
        return Ok(Shaped { object, unknown: unknown.into_iter().map(Fault::Unknown).collect() });
    }
    let mut walk = Walk::new(&kind.schema.schema, numbers);
    walk.object(kind.schema.id, &mut object, Place::Root, &Path::Root)?;
    let unknown = walk.unknown.places.iter().map(|place| Fault::Unknown(place.to_string())).collect();
    Ok(Shaped { object, unknown })
}

/// Parses JSON without a schema, under the same caps on size and depth. Used for patches.
pub fn parse(bytes: &[u8]) -> Result<Object, Status> {
    match parse::parse(bytes, parse::Text::Json) {
        Ok((object, _)) => Ok(object),
        Err(error) => Err(Status::bad_request(format!("error decoding the request body: {error}"))),
    }
}

/// A document without a schema, and the fields that stood twice in it.
pub(crate) fn parse_strictly(bytes: &[u8]) -> Result<Parsed<'_>, String> {
    let (document, duplicates) = parse::parse(bytes, parse::Text::Json).map_err(|error| error.to_string())?;
    Ok(Parsed { document, bytes, duplicates })
}

/// A YAML document without a schema, and what stands twice in it, in words.
pub(crate) fn parse_yaml(bytes: &[u8]) -> Result<(Object, Option<String>), String> {
    parse::yaml(bytes).map_err(|error| error.to_string())
}

pub(crate) struct Parsed<'b> {
    pub(crate) document: Object,
    bytes: &'b [u8],
    duplicates: Vec<Steps>,
}

impl Parsed<'_> {
    /// The fields that stood twice, and those that items of the document (a list of objects) have beside `known` ones, in
    /// the order of the document.
    pub(crate) fn faults(&self, known: Option<&[&str]>) -> Vec<Fault> {
        let mut unknown = Noted::default();
        if let (Some(known), Value::Array(items)) = (known, &self.document) {
            for (at, item) in items.iter().enumerate() {
                for name in item.as_object().into_iter().flatten().map(|(name, _)| name) {
                    if !known.contains(&name.as_str()) {
                        unknown.note(&Path::Field(&Path::Item(&Path::Root, at), name));
                    }
                }
            }
        }
        if unknown.places.is_empty() && self.duplicates.is_empty() {
            return Vec::new();
        }
        order::in_document_order(self.bytes, &unknown.places, &self.duplicates)
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
    depth::check(&object)?;
    let mut walk = Walk::new(schema, Numbers::Exact);
    walk.object(id, &mut object, Place::Inner, &Path::Root).map_err(Status::bad_request)?;
    Ok(object)
}

/// Where an object came from, as far as its faults are concerned.
#[derive(Default)]
struct Origin<'s> {
    /// The JSON it was read from, which has the fields in the order of their author.
    source: Option<&'s [u8]>,
    duplicates: Vec<Steps>,
    /// Of YAML, what stands twice, in words.
    twice: Option<String>,
}

impl Origin<'_> {
    /// What strict decoding has against the document, in the order in which upstream meets it.
    fn faults(self, unknown: &[Steps]) -> Vec<String> {
        if unknown.is_empty() && self.duplicates.is_empty() {
            return self.twice.into_iter().collect();
        }
        let faults = match self.source {
            Some(source) => order::in_document_order(source, unknown, &self.duplicates),
            None => unknown.iter().map(|place| Fault::Unknown(place.to_string())).collect(),
        };
        self.twice.into_iter().chain(faults.iter().map(Fault::to_string)).collect()
    }
}

fn finish(
    kind: &Kind,
    mut object: Object,
    origin: Origin<'_>,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    depth::check(&object).map_err(|error| cannot_be_handled(kind, &error.to_string()))?;
    let Value::Object(map) = &mut object else {
        return Err(cannot_be_handled(
            kind,
            "json: cannot unmarshal into Go value: the body is not an object",
        ));
    };
    for (field, wanted) in [("apiVersion", kind.api_version()), ("kind", kind.kind.clone())] {
        let found = map.get(field).unwrap_or(&Value::Null);
        if found.is_null() || found == "" {
            map.insert(field.into(), wanted.into());
        } else if *found != wanted {
            return Err(Status::bad_request(format!(
                "the object provided is unrecognized (must be of type {}): its {field} is {found}, expected {wanted:?}",
                kind.kind
            )));
        }
    }
    let faults = conformed(kind, &mut object, origin, validation)?;
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

/// Brings an object into the shape of its kind; what strict decoding has against it, if anybody wants to know.
fn conformed(
    kind: &Kind,
    object: &mut Object,
    origin: Origin<'_>,
    validation: FieldValidation,
) -> Result<Vec<String>, Status> {
    let schema = &kind.schema.schema;
    if schema.root().is_some() {
        // What values are is up to validation.
        let unknown = structural::prune(schema, object).map_err(|error| cannot_be_handled(kind, &error))?;
        if validation == FieldValidation::Ignore {
            return Ok(Vec::new());
        }
        let unknown = unknown.into_iter().map(|name| format!("unknown field \"{name}\""));
        return Ok(origin.faults(&[]).into_iter().chain(unknown).collect());
    }
    let mut walk = Walk::new(schema, Numbers::Exact);
    walk.object(kind.schema.id, object, Place::Root, &Path::Root)
        .map_err(|error| cannot_be_handled(kind, &error))?;
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        _ => Ok(origin.faults(&walk.unknown.places)),
    }
}

/// What is no document at all, and so of no kind. Upstream shows the beginning of it, in digits where it cannot be JSON.
fn unrecognized(kind: &Kind, error: &str, bytes: &[u8]) -> Status {
    const SHOWN_BYTES: usize = 30;
    let beginning = &bytes[..bytes.len().min(SHOWN_BYTES)];
    let more = if bytes.len() > SHOWN_BYTES { " ..." } else { "" };
    let shown = match beginning.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(beginning).into_owned(),
        Some(_) => beginning.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")),
    };
    let kind = &kind.kind;
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {error} ({shown}{more})"
    ))
}

fn cannot_be_handled(kind: &Kind, error: &str) -> Status {
    let (name, version) = (&kind.kind, &kind.version);
    Status::bad_request(format!("{name} in version {version:?} cannot be handled as a {name}: {error}"))
}

/// How numbers become those of their fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// What does not fit is refused, as by Go's decoder of JSON.
    Exact,
    /// The bits that fit are kept, and a number with a point is an integer if it is a whole one: strategic patches are merged
    /// into Go's types by conversion.
    ///
    /// Source: apimachinery's `runtime/converter.go`.
    Converted,
}

/// One pass over a document, in step with its schema.
struct Walk<'s> {
    schema: &'s Schema,
    numbers: Numbers,
    unknown: Noted,
    /// What is read by a Go type of its own is pruned all the same, but nobody is told.
    is_silent: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Keeps `apiVersion` and `kind` whether or not the type lists them.
    Root,
    Inner,
}

impl<'s> Walk<'s> {
    fn new(schema: &'s Schema, numbers: Numbers) -> Walk<'s> {
        Walk { schema, numbers, unknown: Noted::default(), is_silent: false }
    }

    fn object(&mut self, id: TypeId, value: &mut Value, place: Place, path: &Path<'_>) -> Result<(), String> {
        let schema = self.schema;
        let type_ = schema.get(id);
        let Value::Object(map) = value else {
            return Err(self
                .restored("struct from:", value)
                .unwrap_or_else(|| mismatch(value, type_.short_name(), None, path)));
        };
        let mut failed = None;
        map.retain(|name, value| {
            if failed.is_some() || (place == Place::Root && matches!(name.as_str(), "apiVersion" | "kind")) {
                return true;
            }
            let path = &Path::Field(path, name);
            match type_.field(name) {
                None => {
                    if !self.is_silent {
                        self.unknown.note(path);
                    }
                    false
                }
                Some(_) if value.is_null() => false,
                Some(field) => {
                    if let Err(error) = self.value(&field.node.shape, value, type_.short_name(), path) {
                        failed = Some(error);
                    }
                    !field.omits(value)
                }
            }
        });
        failed.map_or(Ok(()), Err)
    }

    /// What is said of a value of another shape where what a strategic patch made is converted, and nothing is decoded.
    fn restored(&self, what: &str, value: &Value) -> Option<String> {
        (self.numbers == Numbers::Converted).then(|| format!("cannot restore {what} {}", go_kind(value)))
    }

    /// `owner` is the type whose field this is, for the message.
    fn value(
        &mut self,
        shape: &Shape,
        value: &mut Value,
        owner: &str,
        path: &Path<'_>,
    ) -> Result<(), String> {
        match shape {
            Shape::Any => Ok(()),
            Shape::SchemaOr(alternative, id) => {
                let was_silent = std::mem::replace(&mut self.is_silent, true);
                let read = self.schema_or(*alternative, *id, value, path);
                self.is_silent = was_silent;
                read
            }
            Shape::Object(id) => self.object(*id, value, Place::Inner, path),
            Shape::List(inner) => {
                let Value::Array(items) = value else {
                    let restored = self.restored("slice from", value);
                    return Err(restored.unwrap_or_else(|| mismatch(value, owner, Some("[]"), path)));
                };
                for (at, item) in items.iter_mut().enumerate() {
                    self.element(&inner.shape, item, owner, &Path::Item(path, at))?;
                }
                Ok(())
            }
            Shape::Map(inner) => {
                let Value::Object(map) = value else {
                    let restored = self.restored("map from", value);
                    return Err(restored.unwrap_or_else(|| mismatch(value, owner, Some("map"), path)));
                };
                for (key, value) in map.iter_mut() {
                    self.element(&inner.shape, value, owner, &Path::Field(path, key))?;
                }
                Ok(())
            }
            scalar => {
                if self.numbers == Numbers::Converted {
                    convert(scalar, value);
                    unconverted(scalar, value)?;
                }
                scalar_value(scalar, value, owner, path)
            }
        }
    }

    fn schema_or(
        &mut self,
        alternative: Alternative,
        id: TypeId,
        value: &mut Value,
        path: &Path<'_>,
    ) -> Result<(), String> {
        match (alternative, value) {
            (_, value @ Value::Object(_)) => self.object(id, value, Place::Inner, path),
            (Alternative::Schemas, Value::Array(items)) => items
                .iter_mut()
                .enumerate()
                .filter(|(_, item)| item.is_object())
                .try_for_each(|(at, item)| self.object(id, item, Place::Inner, &Path::Item(path, at))),
            (Alternative::Bool, value) if !value.is_boolean() => {
                Err("boolean or JSON schema expected".into())
            }
            _ => Ok(()),
        }
    }

    /// Of a list or a map. There a null is the zero value of its type, as Go reads it.
    fn element(
        &mut self,
        shape: &Shape,
        value: &mut Value,
        owner: &str,
        path: &Path<'_>,
    ) -> Result<(), String> {
        if value.is_null() {
            *value = shape.zero();
            if value.is_null() {
                return Ok(());
            }
        }
        self.value(shape, value, owner, path)
    }
}

fn scalar_value(shape: &Shape, value: &mut Value, owner: &str, path: &Path<'_>) -> Result<(), String> {
    let go_type = match (shape, &*value) {
        (Shape::String, Value::String(_)) | (Shape::Bool, Value::Bool(_)) => return Ok(()),
        (Shape::Double, Value::Number(_)) => return Ok(()),
        (Shape::Int64, Value::Number(n)) if n.is_i64() => return Ok(()),
        (Shape::Int32, Value::Number(n)) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {
            return Ok(());
        }
        (Shape::IntOrString, Value::String(_)) => return Ok(()),
        (Shape::IntOrString, Value::Number(n)) if n.is_i64() => return Ok(()),
        (Shape::Bytes, Value::String(text)) => return base64(text, path),
        (Shape::Duration, Value::String(text)) => return go_duration_ns(text).map(drop),
        (Shape::Quantity, Value::String(_) | Value::Number(_)) => return quantity(value, path),
        (Shape::Time | Shape::MicroTime, Value::String(text)) => {
            let precision = if *shape == Shape::MicroTime { Precision::Micros } else { Precision::Seconds };
            let at = Moment::parse(text, precision).map_err(|error| error.to_string())?;
            *value = at.to_text(precision).into();
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
        (Shape::Duration, _) => "v1.Duration",
        _ => "time.Time",
    };
    Err(mismatch(value, owner, Some(go_type), path))
}

/// The kind that Go's reflection tells of a value.
fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "invalid",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    }
}

/// Refuses a value that cannot be converted to a simple type, in the words of upstream's converter.
fn unconverted(shape: &Shape, value: &Value) -> Result<(), String> {
    let wanted = match shape {
        Shape::String => "string",
        Shape::Bool => "bool",
        Shape::Int32 => "int32",
        Shape::Int64 => "int64",
        Shape::Double => "float64",
        _ => return Ok(()),
    };
    match (shape, value) {
        (Shape::String, Value::String(_)) | (Shape::Bool, Value::Bool(_)) => Ok(()),
        (Shape::Int32 | Shape::Int64, Value::Number(number)) if number.is_f64() => {
            Err(format!("cannot convert float64 to {wanted}"))
        }
        (Shape::Int32 | Shape::Int64 | Shape::Double, Value::Number(_)) => Ok(()),
        // To Go, an integer is a character.
        (Shape::String, Value::Number(number)) if !number.is_f64() => {
            Err(format!("cannot convert int64 to {wanted}"))
        }
        _ => Err(format!("unrecognized type: {wanted}")),
    }
}

/// Converts a number as Go does between its types.
fn convert(shape: &Shape, value: &mut Value) {
    let whole = |number: &serde_json::Number| match number.as_i64() {
        Some(integer) => Some(integer),
        // A cast keeps to the bounds, which is what the processors that Go runs on do, or near it.
        None => number.as_f64().filter(|number| number.fract() == 0.0).map(|number| number as i64),
    };
    let Value::Number(number) = &*value else { return };
    match (shape, whole(number)) {
        (Shape::Int32, Some(integer)) => *value = (integer as i32).into(),
        (Shape::Int64, Some(integer)) => *value = integer.into(),
        _ => {}
    }
}

fn base64(text: &str, path: &Path<'_>) -> Result<(), String> {
    use base64::Engine as _;
    match base64::engine::general_purpose::STANDARD.decode(text) {
        Ok(_) => Ok(()),
        Err(base64::DecodeError::InvalidByte(at, _)) => {
            Err(format!("illegal base64 data at input byte {at} ({path})"))
        }
        Err(_) => Err(format!("illegal base64 data at input byte {} ({path})", text.len())),
    }
}

fn quantity(value: &mut Value, path: &Path<'_>) -> Result<(), String> {
    let text = match &*value {
        Value::String(text) => text.clone(),
        number => number.to_string(),
    };
    let canonical = quantity::canonical(&text).map_err(|error| format!("{path}: {error}"))?;
    *value = canonical.into();
    Ok(())
}

fn mismatch(value: &Value, owner: &str, go_type: Option<&str>, path: &Path<'_>) -> String {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    match go_type {
        Some(go_type) => {
            format!("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {go_type}")
        }
        None if path.is_root() => format!("json: cannot unmarshal {found} into Go value of type {owner}"),
        None => format!("json: cannot unmarshal {found} into Go struct field {path} of type {owner}"),
    }
}

#[cfg(test)]
mod tests;
