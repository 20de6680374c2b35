//! The errors that requests fail with on account of webhooks.
//!
//! Source: `errors/statuserror.go` of upstream's webhook plug-in, apimachinery's `errors`.

use serde_json::{Map, Value, json};
use skiff_api::status::Details;
use skiff_api::{Cause, Status};

use crate::document::shortened;

/// Causes of a denial that are passed on.
const MAX_CAUSES: usize = 1000;

/// Upstream's `InternalError`.
pub fn internal(why: &str) -> Status {
    let mut status = Status::new(500, "InternalError", format!("Internal error occurred: {why}"));
    status.details = Some(Box::new(Details { causes: vec![Cause::told(why)], ..Details::default() }));
    status
}

/// The request was given up before the webhooks had answered.
pub(super) fn timed_out() -> Status {
    let message = "Timeout: request did not complete within requested timeout";
    let mut status = Status::timeout(message);
    status.details = Some(Box::default());
    status
}

/// A denial, with what the webhook has said of it.
pub(super) fn denied(webhook: &str, told: &Value) -> Status {
    let text = |field: &str| shortened(told[field].as_str().unwrap_or_default());
    let denied = format!("admission webhook {webhook:?} denied the request");
    let (message, reason) = (text("message"), text("reason"));
    let message = match (message.as_str(), reason.as_str()) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let code = told["code"].as_i64().filter(|code| *code >= 400).unwrap_or(400);
    let status = match text("status").as_str() {
        "" | "Success" => "Failure".to_owned(),
        status => status.to_owned(),
    };
    let mut document = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": metadata(&told["metadata"]),
        "status": status, "message": message, "code": code,
    });
    if !reason.is_empty() {
        document["reason"] = reason.as_str().into();
    }
    let mut details = None;
    if told["details"].is_object() {
        let shown = shown_details(&told["details"]);
        details = Some(Box::new(known_details(&shown)));
        document["details"] = shown;
    }
    // An answer's code has three digits, whatever stands in its document.
    let code = u16::try_from(code).ok().filter(|code| *code <= 599).unwrap_or(500);
    let mut denial = Status::new(code, known_reason(&reason), message);
    denial.details = details;
    denial.document = Some(Box::new(document));
    denial
}

fn metadata(told: &Value) -> Value {
    let mut out = Map::new();
    for field in ["selfLink", "resourceVersion", "continue"] {
        if let Some(text) = told[field].as_str().filter(|text| !text.is_empty()) {
            out.insert(field.into(), shortened(text).into());
        }
    }
    if told["remainingItemCount"].is_i64() {
        out.insert("remainingItemCount".into(), told["remainingItemCount"].clone());
    }
    Value::Object(out)
}

fn shown_details(told: &Value) -> Value {
    let texts = |of: &Value, fields: &[&str]| -> Map<String, Value> {
        let given = fields.iter().filter_map(|field| Some((*field, of[*field].as_str()?)));
        given
            .filter(|(_, text)| !text.is_empty())
            .map(|(field, text)| (field.to_owned(), shortened(text).into()))
            .collect()
    };
    let mut out = texts(told, &["name", "group", "kind", "uid"]);
    let causes = told["causes"].as_array().into_iter().flatten().take(MAX_CAUSES);
    let causes: Vec<Value> =
        causes.map(|cause| Value::Object(texts(cause, &["reason", "message", "field"]))).collect();
    if !causes.is_empty() {
        out.insert("causes".into(), Value::Array(causes));
    }
    if told["retryAfterSeconds"].as_i64().is_some_and(|seconds| seconds != 0) {
        out.insert("retryAfterSeconds".into(), told["retryAfterSeconds"].clone());
    }
    Value::Object(out)
}

/// What this server acts on of the details: the document has all of them.
fn known_details(shown: &Value) -> Details {
    let text = |field: &str| shown[field].as_str().unwrap_or_default().to_owned();
    let retry_after_seconds = shown["retryAfterSeconds"].as_u64().and_then(|n| u32::try_from(n).ok());
    Details {
        name: text("name"),
        group: text("group"),
        kind: text("kind"),
        uid: text("uid"),
        causes: Vec::new(),
        retry_after_seconds: retry_after_seconds.unwrap_or(0),
    }
}

/// A reason of upstream's own; webhooks make up others, which only the document has.
fn known_reason(reason: &str) -> &'static str {
    const KNOWN: &[&str] = &[
        "Unauthorized",
        "Forbidden",
        "NotFound",
        "AlreadyExists",
        "Conflict",
        "Gone",
        "Invalid",
        "ServerTimeout",
        "StoreReadError",
        "Timeout",
        "TooManyRequests",
        "BadRequest",
        "MethodNotAllowed",
        "NotAcceptable",
        "RequestEntityTooLarge",
        "UnsupportedMediaType",
        "InternalError",
        "Expired",
        "ServiceUnavailable",
    ];
    KNOWN.iter().find(|known| **known == reason).copied().unwrap_or_default()
}
