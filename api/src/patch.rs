//! The patches a client may send.
//!
//! A [`Patch`] is read once and applied as often as its object changes meanwhile. What it makes of an object is checked for its
//! depth and size before anything else looks at it, and worded as upstream words it: 400 for what is no patch, 413 for one that is
//! too long, 422 for one that does not apply, or whose result is no object of the kind.
//!
//! Source: apiserver's `endpoints/handlers/patch.go`.

use serde_json::{Map, Value};

use crate::decode::{self, Decoded, Fault, FieldValidation, Numbers};
use crate::depth;
use crate::schema::TypeRef;
use crate::{Cause, Kind, Object, Status};

mod json;
mod merge;
mod shown;
mod strategic;

/// Upstream's cap on one JSON patch.
const MAX_OPERATIONS: usize = 10_000;
/// What a patch may make of an object: as much as a request may bring.
pub const MAX_RESULT_BYTES: usize = 3 << 20;

/// Which of the patches a body is, as its content type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
}

impl PatchType {
    pub const MEDIA_TYPES: &[&str] = &[
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ];

    /// Those that a kind takes. What lists of custom resources merge by is said by their schemas, for server-side apply only.
    pub fn media_types(kind: &Kind) -> impl Iterator<Item = &'static str> {
        let is_taken = |patch: &PatchType| kind.custom().is_none() || *patch != PatchType::Strategic;
        let known = PatchType::MEDIA_TYPES.iter().copied();
        known.filter(move |name| PatchType::of_media_type(name).is_some_and(|patch| is_taken(&patch)))
    }

    /// `None` for other types.
    pub fn of_media_type(media_type: &str) -> Option<PatchType> {
        let at = PatchType::MEDIA_TYPES.iter().position(|known| *known == media_type)?;
        Some([PatchType::Json, PatchType::Merge, PatchType::Strategic][at])
    }
}

/// A patch as it was sent.
#[derive(Clone, Debug)]
pub struct Patch {
    patch_type: PatchType,
    document: Value,
    /// What strict decoding has against the patch itself.
    faults: Vec<String>,
    validation: FieldValidation,
}

impl Patch {
    /// Reads the body of a request. `validation` is the request's `fieldValidation`.
    ///
    /// # Errors
    /// 400 for what is no patch of its type, 413 for too many operations.
    pub fn read(patch_type: PatchType, bytes: &[u8], validation: FieldValidation) -> Result<Patch, Status> {
        let undecodable = |why: &str| Status::bad_request(format!("error decoding patch: {why}"));
        let parsed = decode::parse_strictly(bytes).map_err(|why| undecodable(&why))?;
        let is_strict = validation != FieldValidation::Ignore;
        let faults = match patch_type {
            PatchType::Json => {
                check_operations(&parsed.document, validation)?;
                parsed.faults(Some(&["op", "path", "from", "value"]))
            }
            PatchType::Merge => {
                let is_patch = match &parsed.document {
                    Value::Object(_) => true,
                    // It will be the result, which is no object.
                    Value::Array(_) => !is_strict,
                    _ => false,
                };
                if !is_patch {
                    return Err(undecodable("a merge patch must be an object"));
                }
                parsed.faults(None)
            }
            PatchType::Strategic => {
                if !matches!(&parsed.document, Value::Object(_) | Value::Null) {
                    return Err(undecodable("a strategic merge patch must be an object"));
                }
                parsed.faults(None)
            }
        };
        let prefix = if patch_type == PatchType::Json { "json patch " } else { "" };
        let faults = if is_strict {
            faults.iter().map(|fault| format!("{prefix}{fault}")).collect()
        } else {
            Vec::new()
        };
        Ok(Patch { patch_type, document: parsed.document, faults, validation })
    }

    /// What the patch makes of an object of `kind`, in its kind's shape, with the sentences for `Warning` headers.
    ///
    /// # Errors
    /// 422 for a patch that does not apply or whose result is no object of the kind, 413 where that is too large; 400 for
    /// directives that make no sense. `current` is left as it is.
    pub fn apply(&self, kind: &Kind, current: &Object) -> Result<Decoded, Status> {
        let object = self.edited(kind, current)?;
        // Upstream decodes it as no version of the kind, of which it then finds no name.
        let is_unversioned = self.patch_type != PatchType::Strategic
            && object.get("apiVersion").is_none_or(|version| version.is_null() || version == "");
        let conformed = self.conform(kind, object).map_err(|why| {
            let shown = match self.patch_type {
                PatchType::Strategic => shown::go_text(&self.document),
                // Made again, as what was made has been worked on, and this is rare.
                _ => self.edited(kind, current).map(|object| object.to_string()).unwrap_or_default(),
            };
            Status::invalid("", "", "", vec![Cause::invalid("patch", &shown.into(), &why)])
        })?;
        if is_unversioned {
            let name = current.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            return Err(Status::bad_request(format!(
                "the name of the object ({name} based on URL) was undeterminable: name must be provided"
            )));
        }
        Ok(conformed)
    }

    fn edited(&self, kind: &Kind, current: &Object) -> Result<Object, Status> {
        let mut object = current.clone();
        self.edit(Some(&kind.schema), &mut object)?;
        Ok(object)
    }

    /// Applies the patch to a document that is no object of a kind, such as a `Scale`. Without a schema a strategic patch is
    /// a merge patch.
    ///
    /// # Errors
    /// As [`Patch::apply`], but for the shape of the result. The document is then left as it was.
    pub fn edit(&self, schema: Option<&TypeRef>, object: &mut Object) -> Result<(), Status> {
        match (self.patch_type, schema) {
            (PatchType::Json, _) => json(object, &self.document),
            (PatchType::Merge, _) => merge(object, &self.document),
            (PatchType::Strategic, _) if self.document.is_null() => Ok(()),
            (PatchType::Strategic, Some(schema)) => strategic(schema, object, &self.document),
            (PatchType::Strategic, None) => merge(object, &self.document),
        }
    }

    /// The result in its kind's shape, or why it has none.
    fn conform(&self, kind: &Kind, mut object: Object) -> Result<Decoded, String> {
        if self.patch_type == PatchType::Strategic {
            // A strategic patch is merged into typed fields: what kind they are of, it cannot say, but in the words that it has.
            if ["apiVersion", "kind"]
                .iter()
                .any(|field| !object[*field].is_string() && !object[*field].is_null())
            {
                return Err("cannot convert apiVersion or kind to string".into());
            }
            object["apiVersion"] = kind.api_version().into();
            object["kind"] = kind.kind.as_str().into();
        }
        let Value::Object(map) = &mut object else {
            return Err("json: cannot unmarshal into Go value: the result is not an object".into());
        };
        for (field, wanted) in [("apiVersion", kind.api_version()), ("kind", kind.kind.clone())] {
            let found = map.get(field).unwrap_or(&Value::Null);
            if found.is_null() || found == "" {
                map.insert(field.into(), wanted.into());
            } else if *found != wanted {
                return Err(format!(
                    "no kind is registered here for {field} {found}: the object is a {}, of {}",
                    kind.kind,
                    kind.api_version()
                ));
            }
        }
        let numbers =
            if self.patch_type == PatchType::Strategic { Numbers::Converted } else { Numbers::Exact };
        let shaped = decode::shape(kind, object, numbers)?;
        let mut faults = self.faults.clone();
        if self.validation != FieldValidation::Ignore {
            faults.extend(shaped.unknown.iter().map(Fault::to_string));
        }
        if self.validation == FieldValidation::Strict && !faults.is_empty() {
            return Err(format!("strict decoding error: {}", faults.join(", ")));
        }
        Ok(Decoded { object: shaped.object, warnings: faults })
    }
}

/// What upstream's decoder of operations refuses.
fn check_operations(patch: &Value, validation: FieldValidation) -> Result<(), Status> {
    let undecodable = |why: String| Status::bad_request(format!("error decoding patch: {why}"));
    let operations = match patch {
        Value::Array(operations) => operations,
        Value::Null => return Ok(()),
        _ => return Err(undecodable("a JSON patch must be a list of operations".into())),
    };
    for (at, operation) in operations.iter().enumerate() {
        let fields = match operation {
            Value::Object(fields) => fields,
            Value::Null => continue,
            _ => return Err(undecodable(format!("operation {at} of the JSON patch is not an object"))),
        };
        let mut texts = ["op", "path", "from"].iter().filter_map(|field| Some((field, fields.get(*field)?)));
        let wrong = texts.find(|(_, value)| !matches!(value, Value::String(_) | Value::Null));
        if let (Some((field, _)), true) = (wrong, validation != FieldValidation::Ignore) {
            return Err(undecodable(format!("{field} of operation {at} of the JSON patch is not a string")));
        }
    }
    if operations.len() > MAX_OPERATIONS {
        return Err(Status::too_large(format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    Ok(())
}

/// RFC 6902. `patch` is the parsed list of operations.
///
/// # Errors
/// 400 for what is no patch, 413 for one that is too long, 422 for one that does not apply, such as a failed `test`. The object is
/// then left as it was.
pub fn json(object: &mut Object, patch: &Value) -> Result<(), Status> {
    check_operations(patch, FieldValidation::Ignore)?;
    let mut edited = object.clone();
    json::apply(&mut edited, patch.as_array().map(Vec::as_slice).unwrap_or_default()).map_err(|error| {
        match error {
            json::Error::Work => Status::too_large(format!("Request entity too large: {error}")),
            error => unprocessable(&error.to_string()),
        }
    })?;
    check_result(&edited)?;
    *object = edited;
    Ok(())
}

/// RFC 6902, for whoever tells of what does not apply otherwise than a request's own patch does. How long the result may be is for
/// the caller to say; deeper than objects may be it is not.
///
/// # Errors
/// If an operation does not apply. The object is then of no use.
pub fn apply_json(object: &mut Object, operations: &[Value]) -> Result<(), JsonPatchError> {
    json::apply(object, operations).map_err(JsonPatchError)
}

/// Why a JSON patch does not apply.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct JsonPatchError(json::Error);

impl JsonPatchError {
    /// Whether a value was not what a `test` wants it to be.
    pub fn is_test(&self) -> bool {
        matches!(self.0, json::Error::Test { .. })
    }
}

/// RFC 7386.
///
/// # Errors
/// 400 for what is no patch, 413 or 422 for a result that is too large or too deep. The object is then left as it was.
pub fn merge(object: &mut Object, patch: &Value) -> Result<(), Status> {
    let edited = match (&*object, patch) {
        (Value::Object(current), Value::Object(patch)) => {
            let mut edited = current.clone();
            merge::merge(&mut edited, patch);
            Value::Object(edited)
        }
        (_, Value::Object(_) | Value::Array(_)) => merge::without_nulls(patch),
        _ => return Err(Status::bad_request("Invalid JSON Patch")),
    };
    check_result(&edited)?;
    *object = edited;
    Ok(())
}

/// Kubernetes' strategic merge patch: lists merge by their keys, `$patch`, `$retainKeys`,
/// `$deleteFromPrimitiveList` and `$setElementOrder` direct it.
///
/// # Errors
/// 400 or 500 for a patch whose directives or shape make no sense, as upstream, 422 for what it does not merge, 413 or 422 for a result that is too
/// large or too deep. The object is then left as it was.
pub fn strategic(schema: &TypeRef, object: &mut Object, patch: &Value) -> Result<(), Status> {
    let Value::Object(patch) = patch else {
        return Err(Status::bad_request("error decoding patch: a strategic merge patch must be an object"));
    };
    let mut edited = object.as_object().cloned().unwrap_or_else(Map::new);
    strategic::merge(&schema.schema, Some(schema.id), &mut edited, patch).map_err(|error| {
        let why = format!("error applying strategic merge patch: {error}");
        match error.class() {
            strategic::Class::Unprocessable => unprocessable(&error.to_string()),
            strategic::Class::BadRequest => Status::bad_request(why),
            // Upstream does not tell these from its own failures; neither may we, for its clients.
            strategic::Class::Unknown => Status::new(500, "", why),
        }
    })?;
    let edited = Value::Object(edited);
    check_result(&edited)?;
    *object = edited;
    Ok(())
}

fn check_result(result: &Object) -> Result<(), Status> {
    depth::check(result).map_err(|error| unprocessable(&format!("the result of the patch {error}")))?;
    if shown::is_longer_than(result, MAX_RESULT_BYTES) {
        return Err(Status::too_large(format!(
            "Request entity too large: the result of the patch is larger than {MAX_RESULT_BYTES} bytes"
        )));
    }
    Ok(())
}

/// A request that was understood but cannot be done. Upstream does not say why; we do.
fn unprocessable(why: &str) -> Status {
    let message = format!("the server rejected our request due to an error in our request: {why}");
    let mut status = Status::new(422, "Invalid", message);
    status.details = Some(Box::default());
    status
}

#[cfg(test)]
mod tests;
