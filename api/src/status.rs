//! [`Status`]: every error that a client of the API sees, with upstream's codes, reasons and causes.
//!
//! Source: apimachinery's `errors` package and the API conventions, "Response Status Kind".

use std::fmt;

use serde_json::{Value, json};

/// One reason why an object was refused, with the field it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueRequired`, `FieldValueInvalid`, …; see the constructors.
    pub reason: &'static str,
    /// The sentence without the field, such as `Required value: must be set`.
    pub message: String,
    /// The field's path, such as `spec.containers[0].name`.
    pub field: String,
}

impl Cause {
    pub(crate) fn new(reason: &'static str, field: impl Into<String>, message: String) -> Self {
        Cause { reason, message, field: field.into() }
    }

    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let message =
            if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Cause::new("FieldValueRequired", field, message)
    }

    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Cause::new("FieldValueInvalid", field, format!("Invalid value: {value}: {detail}"))
    }

    /// Of a whole of several fields, which together are wrong: none of them is shown.
    pub fn invalid_together(field: impl Into<String>, detail: &str) -> Self {
        Cause::new("FieldValueInvalid", field, format!("Invalid value: {detail}"))
    }

    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Cause::new("FieldValueDuplicate", field, format!("Duplicate value: {value}"))
    }

    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Cause::new("FieldValueNotFound", field, format!("Not found: {value}"))
    }

    /// What upstream could not check.
    pub fn internal(field: impl Into<String>, detail: &str) -> Self {
        Cause::new("InternalError", field, format!("Internal error: {detail}"))
    }

    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        let message = if detail.is_empty() { "Forbidden".into() } else { format!("Forbidden: {detail}") };
        Cause::new("FieldValueForbidden", field, message)
    }

    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let supported = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
        let message = format!("Unsupported value: {value}: supported values: {supported}");
        Cause::new("FieldValueNotSupported", field, message)
    }

    pub fn too_long(field: impl Into<String>, max_bytes: usize) -> Self {
        let message = format!("Too long: may not be more than {max_bytes} bytes");
        Cause::new("FieldValueTooLong", field, message)
    }

    pub fn too_many(field: impl Into<String>, n: usize, most: usize) -> Self {
        let items = if most == 1 { "item" } else { "items" };
        let message = format!("Too many: {n}: must have at most {most} {items}");
        Cause::new("FieldValueTooMany", field, message)
    }

    /// What an applier may not change, because others own it.
    pub fn manager_conflict(field: impl Into<String>, message: String) -> Self {
        Cause::new("FieldManagerConflict", field, message)
    }

    /// A sentence alone.
    pub fn told(message: impl Into<String>) -> Self {
        Cause::new("", "", message.into())
    }

    fn to_json(&self) -> Value {
        let texts = [("reason", self.reason), ("message", &self.message), ("field", &self.field)];
        texts.into_iter().filter(|(_, text)| !text.is_empty()).collect()
    }

    pub fn type_invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Cause::new("FieldValueTypeInvalid", field, format!("Invalid value: {value}: {detail}"))
    }
}

/// A `v1.Status` with `status: Failure`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub code: u16,
    /// Empty where upstream sends none.
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Box<Details>>,
    /// The whole document, where somebody else has written it: it is sent as it is.
    pub document: Option<Box<Value>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    pub name: String,
    pub group: String,
    /// The resource or kind concerned: upstream is of two minds, and clients read both.
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: u32,
}

impl Status {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Status { code, reason, message: message.into(), details: None, document: None }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.details = Some(Box::new(Details {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            ..Details::default()
        }));
        self
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Status::new(400, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Status::new(401, "Unauthorized", "Unauthorized")
    }

    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", qualified(group, resource))
        } else {
            format!("{} {name:?} is forbidden: {why}", qualified(group, resource))
        };
        Status::new(403, "Forbidden", message).about(group, resource, name)
    }

    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(group, resource));
        Status::new(404, "NotFound", message).about(group, resource, name)
    }

    /// A path that leads to no resource at all.
    pub fn no_such_path() -> Self {
        Status::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub fn method_not_allowed(group: &str, resource: &str, verb: &str) -> Self {
        let message =
            format!("{verb} is not supported on resources of kind {:?}", qualified(group, resource));
        Status::new(405, "MethodNotAllowed", message).about(group, resource, "")
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Status::new(406, "NotAcceptable", message)
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(group, resource));
        Status::new(409, "AlreadyExists", message).about(group, resource, name)
    }

    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(group, resource));
        Status::new(409, "Conflict", message).about(group, resource, name)
    }

    /// The conflict of a writer that read an older version.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Status::conflict(group, resource, name, why)
    }

    /// The conflicts of an applier with others' fields.
    pub fn apply_conflict(message: String, causes: Vec<Cause>) -> Self {
        let mut status = Status::new(409, "Conflict", message);
        status.details = Some(Box::new(Details { causes, ..Details::default() }));
        status
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Status::new(410, "Expired", message)
    }

    pub fn gone(message: impl Into<String>) -> Self {
        Status::new(410, "Gone", message)
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Status::new(413, "RequestEntityTooLarge", message)
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Status::new(415, "UnsupportedMediaType", message)
    }

    /// An object that is well-formed but against its kind's rules. `kind` is the kind, not the resource.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let sentence = |c: &Cause| format!("{}: {}", c.field, c.message);
        let sentences = match causes.as_slice() {
            [] => String::new(),
            [one] => format!(": {}", sentence(one)),
            many => format!(": [{}]", many.iter().map(sentence).collect::<Vec<_>>().join(", ")),
        };
        let message = format!("{} {name:?} is invalid{sentences}", qualified(group, kind));
        let mut status = Status::new(422, "Invalid", message).about(group, kind, name);
        if let Some(details) = &mut status.details {
            details.causes = causes;
        }
        status
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let mut status = Status::new(429, "TooManyRequests", message);
        status.details = Some(Box::new(Details { retry_after_seconds, ..Details::default() }));
        status
    }

    pub fn internal(message: impl fmt::Display) -> Self {
        let mut status = Status::new(500, "InternalError", format!("Internal error occurred: {message}"));
        status.details = Some(Box::default());
        status
    }

    pub fn not_implemented(message: impl Into<String>) -> Self {
        Status::new(501, "NotImplemented", message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Status::new(503, "ServiceUnavailable", message)
    }

    pub fn timeout(message: impl Into<String>) -> Self {
        Status::new(504, "Timeout", message)
    }

    /// The document that is sent.
    pub fn to_json(&self) -> Value {
        if let Some(document) = &self.document {
            return (**document).clone();
        }
        let mut out = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            out["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            out["details"] = details.to_json();
        }
        out
    }
}

impl Details {
    fn to_json(&self) -> Value {
        let mut out = serde_json::Map::new();
        for (key, value) in
            [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)]
        {
            if !value.is_empty() {
                out.insert(key.into(), value.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            out.insert("causes".into(), self.causes.iter().map(Cause::to_json).collect());
        }
        if self.retry_after_seconds > 0 {
            out.insert("retryAfterSeconds".into(), self.retry_after_seconds.into());
        }
        Value::Object(out)
    }
}

/// `deployments.apps`, or plain `pods` in the core group.
fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.into() } else { format!("{resource}.{group}") }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}
