//! The file: YAML or JSON, of one kind, without a field that is not known.
//!
//! Source: `apis/apiserver/load` of apiserver, whose decoder is strict.

use serde_json::Value;

use super::BuiltIn;
use super::duration::Signed;

const GROUP: &str = "apiserver.config.k8s.io";
const KIND: &str = "AuthorizationConfiguration";
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
/// Nobody writes so many authorizers.
const MAX_BYTES: usize = 1 << 20;

/// What a field holds.
enum Shape {
    Text,
    Flag,
    Duration,
    Object(&'static [(&'static str, Shape)]),
    Objects(&'static [(&'static str, Shape)]),
}

static CONFIGURATION: &[(&str, Shape)] = &[
    ("apiVersion", Shape::Text),
    ("kind", Shape::Text),
    (
        "authorizers",
        Shape::Objects(&[("type", Shape::Text), ("name", Shape::Text), ("webhook", Shape::Object(WEBHOOK))]),
    ),
];

static WEBHOOK: &[(&str, Shape)] = &[
    ("authorizedTTL", Shape::Duration),
    ("cacheAuthorizedRequests", Shape::Flag),
    ("unauthorizedTTL", Shape::Duration),
    ("cacheUnauthorizedRequests", Shape::Flag),
    ("timeout", Shape::Duration),
    ("subjectAccessReviewVersion", Shape::Text),
    ("matchConditionSubjectAccessReviewVersion", Shape::Text),
    ("failurePolicy", Shape::Text),
    ("connectionInfo", Shape::Object(&[("type", Shape::Text), ("kubeConfigFile", Shape::Text)])),
    ("matchConditions", Shape::Objects(&[("expression", Shape::Text)])),
];

/// The document, each of whose fields is known and of its type.
///
/// # Errors
/// The sentence says why there is none.
pub(super) fn read(text: &[u8]) -> Result<Value, String> {
    if text.len() > MAX_BYTES {
        return Err(format!("the file is longer than {MAX_BYTES} bytes"));
    }
    // As upstream: nothing at all is a configuration without authorizers.
    if text.is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    let text = std::str::from_utf8(text).map_err(|_| "the file is not UTF-8".to_owned())?;
    let document: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let said = |field: &str| document[field].as_str().unwrap_or_default();
    let (version, kind) = (said("apiVersion"), said("kind"));
    for (field, value) in [("Kind", kind), ("apiVersion", version)] {
        if value.is_empty() {
            return Err(format!("Object '{field}' is missing"));
        }
    }
    let is_known = version
        .strip_prefix(GROUP)
        .and_then(|rest| rest.strip_prefix('/'))
        .is_some_and(|version| VERSIONS.contains(&version));
    if !is_known || kind != KIND {
        return Err(format!(
            "no kind {kind:?} is registered for version {version:?} (expected {KIND:?} of \"{GROUP}/v1\")"
        ));
    }
    let mut unknown = Vec::new();
    check_fields(&document, CONFIGURATION, "", &mut unknown)?;
    if unknown.is_empty() {
        return Ok(document);
    }
    let told: Vec<String> = unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
    Err(format!("strict decoding error: {}", told.join(", ")))
}

fn check_fields(
    object: &Value,
    fields: &[(&str, Shape)],
    path: &str,
    unknown: &mut Vec<String>,
) -> Result<(), String> {
    for (name, value) in object.as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match fields.iter().find(|(known, _)| known == name) {
            Some((_, shape)) => check(value, shape, &path, unknown)?,
            None => unknown.push(path),
        }
    }
    Ok(())
}

fn check(value: &Value, shape: &Shape, path: &str, unknown: &mut Vec<String>) -> Result<(), String> {
    match (shape, value) {
        (_, Value::Null) | (Shape::Text, Value::String(_)) | (Shape::Flag, Value::Bool(_)) => Ok(()),
        (Shape::Duration, Value::String(text)) => {
            Signed::parse(text).map(drop).map_err(|why| format!("{path}: {why}"))
        }
        (Shape::Object(fields), Value::Object(_)) => check_fields(value, fields, path, unknown),
        (Shape::Objects(fields), Value::Array(items)) => {
            for (at, item) in items.iter().enumerate() {
                check(item, &Shape::Object(fields), &format!("{path}[{at}]"), unknown)?;
            }
            Ok(())
        }
        (shape, value) => {
            let wanted = match shape {
                Shape::Text => "a text",
                Shape::Flag => "true or false",
                Shape::Duration => "a duration, such as \"30s\"",
                Shape::Object(_) => "an object",
                Shape::Objects(_) => "a list",
            };
            let found = match value {
                Value::Bool(_) => "bool",
                Value::Number(_) => "number",
                Value::String(_) => "string",
                Value::Array(_) => "array",
                _ => "object",
            };
            Err(format!("json: cannot unmarshal {found} into {path}, which must be {wanted}"))
        }
    }
}

/// Those that are built in and not called by their type: metrics and reasons go by names.
pub(super) fn misnamed(document: &Value) -> Vec<String> {
    let authorizers = document["authorizers"].as_array().into_iter().flatten();
    let wrong = authorizers.filter_map(|authorizer| {
        let built_in = BuiltIn::parse(authorizer["type"].as_str()?)?;
        let (name, expected) = (authorizer["name"].as_str().unwrap_or_default(), built_in.name());
        let type_ = built_in.as_str();
        (name != expected)
            .then(|| format!("expected name {expected} for authorizer {type_} instead of {name}"))
    });
    wrong.collect()
}
