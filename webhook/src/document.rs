//! Documents that webhooks answer, checked as a reader of Go's types would.
//!
//! A [`Shape`] is what a type takes; what does not fit is told in the words of Go's decoder, which people look for.

use serde_json::Value;
use skiff_api::depth;

/// A text of somebody else's that is passed on has no more bytes.
const MAX_MESSAGE_BYTES: usize = 32 << 10;

/// What a Go type reads.
pub(crate) enum Shape {
    /// With the name of the type.
    Text(&'static str),
    Bool,
    Int32,
    Int64,
    /// Base64.
    Bytes,
    Texts,
    TextByText,
    Object(&'static Struct),
    Objects(&'static Struct),
    /// A list of anything.
    Anything,
}

/// A Go struct: its name, with and without the package, and its fields.
pub(crate) struct Struct {
    pub(crate) name: &'static str,
    pub(crate) qualified: &'static str,
    pub(crate) fields: &'static [(&'static str, Shape)],
}

/// `metav1.Status`.
pub(crate) static STATUS: Struct = Struct {
    name: "Status",
    qualified: "v1.Status",
    fields: &[
        ("kind", Shape::Text("string")),
        ("apiVersion", Shape::Text("string")),
        ("metadata", Shape::Object(&LIST_META)),
        ("status", Shape::Text("string")),
        ("message", Shape::Text("string")),
        ("reason", Shape::Text("v1.StatusReason")),
        ("details", Shape::Object(&DETAILS)),
        ("code", Shape::Int32),
    ],
};

static LIST_META: Struct = Struct {
    name: "ListMeta",
    qualified: "v1.ListMeta",
    fields: &[
        ("selfLink", Shape::Text("string")),
        ("resourceVersion", Shape::Text("string")),
        ("continue", Shape::Text("string")),
        ("remainingItemCount", Shape::Int64),
    ],
};

static DETAILS: Struct = Struct {
    name: "StatusDetails",
    qualified: "v1.StatusDetails",
    fields: &[
        ("name", Shape::Text("string")),
        ("group", Shape::Text("string")),
        ("kind", Shape::Text("string")),
        ("uid", Shape::Text("types.UID")),
        ("causes", Shape::Objects(&CAUSE)),
        ("retryAfterSeconds", Shape::Int32),
    ],
};

static CAUSE: Struct = Struct {
    name: "StatusCause",
    qualified: "v1.StatusCause",
    fields: &[
        ("reason", Shape::Text("v1.CauseType")),
        ("message", Shape::Text("string")),
        ("field", Shape::Text("string")),
    ],
};

/// Reads JSON whose objects may be kept. No deeper than objects may be.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, String> {
    let unreadable = |why: &str| format!("couldn't get version/kind; json parse error: {why}");
    let document: Value = serde_json::from_slice(bytes).map_err(|error| {
        unreadable(&if error.is_eof() { "unexpected end of JSON input".into() } else { error.to_string() })
    })?;
    depth::check(&document).map_err(|error| unreadable(&error.to_string()))?;
    Ok(document)
}

/// The group, version and kind that a document says it is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TypeMeta<'v> {
    pub(crate) api_version: &'v str,
    pub(crate) kind: &'v str,
}

impl<'v> TypeMeta<'v> {
    pub(crate) fn of(document: &'v Value) -> TypeMeta<'v> {
        let text = |field: &str| document.get(field).and_then(Value::as_str).unwrap_or_default();
        TypeMeta { api_version: text("apiVersion"), kind: text("kind") }
    }

    /// As Go writes it: `example.com/v1, Kind=Gadget`.
    pub(crate) fn shown(&self) -> String {
        let (group, version) = split(self.api_version);
        format!("{group}/{version}, Kind={}", self.kind)
    }
}

/// `("apps", "v1")` of `apps/v1`, `("", "v1")` of `v1`.
pub(crate) fn split(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// What the document that is wanted is, and how it is read.
pub(crate) struct Wanted {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) shape: &'static Struct,
}

/// Whether a document is what is wanted, or says nothing of what it is.
///
/// # Errors
/// What upstream's decoder says of it.
pub(crate) fn check(document: &Value, wanted: &Wanted) -> Result<(), String> {
    const TYPE_META: &str = "struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \
                             \"json:\\\"kind,omitempty\\\"\" }";
    let unreadable = |why: String| format!("couldn't get version/kind; json parse error: {why}");
    if !document.is_object() && !document.is_null() {
        return Err(unreadable(format!(
            "json: cannot unmarshal {} into Go value of type {TYPE_META}",
            named(document)
        )));
    }
    for field in ["apiVersion", "kind"] {
        check_value(&document[field], &Shape::Text("string"), "", field).map_err(unreadable)?;
    }
    let said = TypeMeta::of(document);
    if said.api_version.matches('/').count() > 1 {
        return Err(format!("unexpected GroupVersion string: {}", shortened(said.api_version)));
    }
    let kind = if said.kind.is_empty() { wanted.shape.name } else { said.kind };
    let (group, version) = match said.api_version {
        "" => (wanted.group, wanted.version),
        given => split(given),
    };
    let into = format!("({}.{})", wanted.version, wanted.shape.name);
    match (group, version, kind) {
        ("", "v1", "Status") => return Err(format!("converting (v1.Status) to {into}: unknown conversion")),
        (group, version @ ("v1" | "v1beta1"), kind) if group == wanted.group && kind == wanted.shape.name => {
            if version != wanted.version {
                return Err(format!("converting ({version}.{kind}) to {into}: unknown conversion"));
            }
        }
        _ => {
            return Err(format!(
                "no kind {:?} is registered for version {:?} in scheme \"pkg/runtime/scheme.go:111\"",
                shortened(kind),
                shortened(&if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") })
            ));
        }
    }
    check_struct(document, wanted.shape, "")
}

/// `path` ends with a dot unless it is empty.
fn check_struct(value: &Value, of: &Struct, path: &str) -> Result<(), String> {
    for (field, shape) in of.fields {
        if let Some(value) = value.get(*field) {
            check_value(value, shape, of.name, &format!("{path}{field}"))?;
        }
    }
    Ok(())
}

fn check_value(value: &Value, shape: &Shape, owner: &str, path: &str) -> Result<(), String> {
    let refuse = |found: &str, type_: &str| {
        Err(format!("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {type_}"))
    };
    let wrong = |value: &Value, type_: &str| refuse(named(value), type_);
    let wrong_number = |value: &Value, type_: &str| match value {
        Value::Number(number) => refuse(&format!("number {number}"), type_),
        other => wrong(other, type_),
    };
    match (shape, value) {
        (_, Value::Null) | (Shape::Text(_), Value::String(_)) | (Shape::Bool, Value::Bool(_)) => Ok(()),
        (Shape::Text(type_), value) => wrong(value, type_),
        (Shape::Bool, value) => wrong(value, "bool"),
        (Shape::Int32, value) => match value.as_i64().and_then(|n| i32::try_from(n).ok()) {
            Some(_) => Ok(()),
            None => wrong_number(value, "int32"),
        },
        (Shape::Int64, value) if value.is_i64() => Ok(()),
        (Shape::Int64, value) => wrong_number(value, "int64"),
        (Shape::Bytes, Value::String(text)) => match base64_fault(text) {
            None => Ok(()),
            Some(at) => Err(format!("illegal base64 data at input byte {at}")),
        },
        (Shape::Bytes, Value::Array(items)) => match items.iter().find(|item| !item.is_number()) {
            Some(item) => wrong(item, "uint8"),
            None => wrong(value, "[]uint8"),
        },
        (Shape::Bytes, value) => wrong(value, "[]uint8"),
        (Shape::Texts, Value::Array(items)) => {
            items.iter().try_for_each(|item| check_value(item, &Shape::Text("string"), owner, path))
        }
        (Shape::Texts, value) => wrong(value, "[]string"),
        (Shape::TextByText, Value::Object(map)) => {
            map.values().try_for_each(|item| check_value(item, &Shape::Text("string"), owner, path))
        }
        (Shape::TextByText, value) => wrong(value, "map[string]string"),
        (Shape::Anything, Value::Array(_)) => Ok(()),
        (Shape::Anything, value) => wrong(value, "[]runtime.RawExtension"),
        (Shape::Object(of), Value::Object(_)) => check_struct(value, of, &format!("{path}.")),
        (Shape::Object(of), value) => wrong(value, of.qualified),
        (Shape::Objects(of), Value::Array(items)) => {
            items.iter().try_for_each(|item| check_value(item, &Shape::Object(of), owner, path))
        }
        (Shape::Objects(of), value) => wrong(value, &format!("[]{}", of.qualified)),
    }
}

/// Where a text stops being base64, counting as Go does.
fn base64_fault(text: &str) -> Option<usize> {
    use base64::DecodeError;
    use base64::Engine as _;
    let clean: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    match base64::engine::general_purpose::STANDARD.decode(&clean) {
        Ok(_) => None,
        Err(DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _)) => Some(at),
        Err(DecodeError::InvalidLength(_) | DecodeError::InvalidPadding) => Some(clean.len() / 4 * 4),
    }
}

/// What Go's decoder calls a value.
pub(crate) fn named(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The Go type of a value in a document without a schema.
pub(crate) fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_i64() => "int64",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A text of somebody else's, cut where it is longer than a message should be.
pub(crate) fn shortened(text: &str) -> String {
    if text.len() <= MAX_MESSAGE_BYTES {
        return text.to_owned();
    }
    let end = (0..=MAX_MESSAGE_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}
