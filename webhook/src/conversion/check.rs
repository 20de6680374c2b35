//! What a webhook may have changed of an object.

use serde_json::Value;
use skiff_api::{Cause, Object, meta};

use super::{ConversionError, Form};
use crate::document::{TypeMeta, go_type, named, shortened};

/// What is wrong with a converted object, and how upstream comes to speak of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is no object at all.
    Unreadable(String),
    /// It is of another version or kind.
    Type(String),
    Object(String),
    Metadata(String),
}

impl Fault {
    pub(super) fn told(self, kind: String, form: Form, index: usize) -> ConversionError {
        let of_item = format!("invalid converted object at index {index}");
        let (what, why) = match (self, form) {
            (Fault::Unreadable(why), Form::Object) => return ConversionError::NoObject(why),
            (Fault::Type(why), Form::Object) => (format!("invalid object at index {index}"), why),
            (Fault::Object(why), Form::Object) => ("invalid object".into(), why),
            (Fault::Metadata(why), Form::Object) => ("invalid metadata".into(), why),
            (Fault::Unreadable(why) | Fault::Type(why) | Fault::Object(why), Form::List) => (of_item, why),
            (Fault::Metadata(why), Form::List) => {
                (format!("invalid metadata in object at index {index}"), why)
            }
        };
        ConversionError::Invalid { kind, what, why }
    }
}

/// The converted object with the metadata that it had, but for labels and annotations.
pub(super) fn checked(original: &Object, mut converted: Value, to: &str) -> Result<Object, Fault> {
    match &converted {
        Value::Object(_) => {}
        // Go keeps no null.
        Value::Null => return Err(Fault::Unreadable("unexpected end of JSON input".into())),
        other => {
            let why = format!(
                "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                named(other)
            );
            return Err(Fault::Unreadable(why));
        }
    }
    let (was, is) = (TypeMeta::of(original), TypeMeta::of(&converted));
    if is.kind.is_empty() {
        return Err(Fault::Unreadable("Object 'Kind' is missing".into()));
    }
    if is.api_version != to {
        let received = shortened(is.api_version);
        return Err(Fault::Type(format!("invalid groupVersion (expected {to}, received {received})")));
    }
    if is.kind != was.kind {
        let (expected, received) = (was.kind, shortened(is.kind));
        return Err(Fault::Type(format!("invalid kind (expected {expected}, received {received})")));
    }
    for (field, shown) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let of = |object: &Value| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (was, is) = (of(original), of(&converted));
        if was != is {
            return Err(Fault::Object(format!("must have the same {shown}: {was} != {}", shortened(&is))));
        }
    }
    restore_metadata(original, &mut converted).map_err(Fault::Metadata)?;
    Ok(converted)
}

fn restore_metadata(original: &Object, converted: &mut Value) -> Result<(), String> {
    let Some(given) = converted.get_mut("metadata").map(Value::take) else {
        return Err("missing metadata in converted object".into());
    };
    let Value::Object(mut given) = given else {
        return Err(format!("invalid metadata of type {} in converted object", go_type(&given)));
    };
    let mut metadata = match original.get("metadata") {
        None => serde_json::Map::new(),
        Some(Value::Object(metadata)) => metadata.clone(),
        Some(other) => return Err(format!("invalid metadata of type {} in input object", go_type(other))),
    };
    for field in ["labels", "annotations"] {
        match given.remove(field) {
            None | Some(Value::Null) => _ = metadata.remove(field),
            Some(texts) => {
                check_texts(field, metadata.get(field).unwrap_or(&Value::Null), &texts)?;
                metadata.insert(field.into(), texts);
            }
        }
    }
    converted["metadata"] = Value::Object(metadata);
    Ok(())
}

/// Labels and annotations are held against the rules only where they are not what they were.
fn check_texts(field: &str, were: &Value, are: &Value) -> Result<(), String> {
    let Value::Object(texts) = are else {
        return Err(format!("invalid metadata.{field} of type {} in converted object", go_type(are)));
    };
    if !were.is_object() && !were.is_null() {
        return Err(format!("invalid metadata.{field} of type {} in original object", go_type(were)));
    }
    if let Some((key, value)) = texts.iter().find(|(_, value)| !value.is_string()) {
        let (key, found) = (shortened(key), go_type(value));
        return Err(format!("metadata.{field}[{key}] must be a string, but is {found} in converted object"));
    }
    let is_same = were == are || (were.is_null() && texts.is_empty());
    let causes = match field {
        _ if is_same => Vec::new(),
        "labels" => meta::validate_labels(are, "metadata.labels"),
        // Upstream's name for it.
        _ => meta::validate_annotations(are, "metadata.annotation"),
    };
    let told = |cause: &Cause| format!("{}: {}", cause.field, cause.message);
    match causes.as_slice() {
        [] => Ok(()),
        [one] => Err(shortened(&told(one))),
        many => Err(shortened(&format!("[{}]", many.iter().map(told).collect::<Vec<_>>().join(", ")))),
    }
}
