//! What an answer is: a document, or an error.
//!
//! Source: `rest.Result` of client-go, `NewGenericServerResponse` of apimachinery's `errors`.

use bytes::Bytes;
use serde_json::Value;
use skiff_api::Status;

use super::fault::CallError;
use crate::document;

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// `None` where there is no such header.
    pub(crate) content_type: Option<String>,
    pub(crate) body: Bytes,
}

const JSON: &str = "application/json";

impl Answer {
    /// The document of an answer that is one.
    pub(crate) fn document(&self) -> Result<Value, CallError> {
        let content_type = self.content_type.as_deref().filter(|text| !text.is_empty()).unwrap_or(JSON);
        if let Some(why) = media_type_fault(content_type) {
            return Err(CallError::Answered(Box::new(Status::internal(format!("mime: {why}")))));
        }
        if !(200..=206).contains(&self.status) {
            return Err(CallError::Answered(Box::new(self.error())));
        }
        if self.body.is_empty() {
            let status = self.status;
            return Err(CallError::Undecodable(format!(
                "0-length response with status code: {status} and content type: {content_type}"
            )));
        }
        document::parse(&self.body).map_err(CallError::Undecodable)
    }

    /// The error that an answer is: the `Status` in it, or what its code means.
    fn error(&self) -> Status {
        let told = document::parse(&self.body).ok().filter(|told| {
            let version = told["apiVersion"].as_str().unwrap_or_default();
            told["kind"] == "Status" && matches!(version, "" | "v1") && told["status"] == "Failure"
        });
        match told {
            Some(told) => {
                let message = document::shortened(told["message"].as_str().unwrap_or_default());
                Status::new(self.status, "", message)
            }
            None => Status::new(self.status, "", meaning(self.status)),
        }
    }
}

/// What a code means to upstream, which is told nothing else.
fn meaning(status: u16) -> String {
    let words = match status {
        400 => "the server rejected our request for an unknown reason",
        401 => "the server has asked for the client to provide credentials",
        403 | 415 => "unknown",
        404 => "the server could not find the requested resource",
        405 => "the server does not allow this method on the requested resource",
        406 => "the server was unable to respond with a content type that the client supports",
        409 => "the server reported a conflict",
        422 => "the server rejected our request due to an error in our request",
        429 => "the server has received too many requests and has asked us to try again later",
        503 => "the server is currently unable to handle the request",
        504 => {
            "the server was unable to return a response in the time allotted, but may still be processing the request"
        }
        500.. => "an error on the server (\"unknown\") has prevented the request from succeeding",
        _ => {
            return format!(
                "the server responded with the status code {status} but did not return more information"
            );
        }
    };
    words.to_owned()
}

/// What is wrong with a media type. Which one it is does not matter.
fn media_type_fault(content_type: &str) -> Option<&'static str> {
    let is_inside = |byte: &u8| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?=".contains(byte);
    let token = |text: &str| text.bytes().take_while(is_inside).count();
    let (base, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    let base = base.trim();
    if base.is_empty() {
        return Some("no media type");
    }
    let (kind, subtype) = base.split_once('/').map_or((base, None), |(kind, subtype)| (kind, Some(subtype)));
    if kind.is_empty() || token(kind) < kind.len() {
        return Some("expected slash after first token");
    }
    match subtype.map(|subtype| (token(subtype), subtype.len())) {
        Some((0, _)) => return Some("expected token after slash"),
        Some((n, len)) if n < len => return Some("unexpected content after media subtype"),
        _ => {}
    }
    let is_parameter = |text: &str| {
        let name = text.split_once('=').map(|(name, _)| name.trim());
        name.is_some_and(|name| !name.is_empty() && token(name) == name.len())
    };
    let wrong = parameters.split(';').any(|text| !text.trim().is_empty() && !is_parameter(text));
    wrong.then_some("invalid media parameter")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_read_as_upstream_reads_them() {
        for good in ["application/json", "a", "text/plain; charset=utf-8", "a/b;", "A/B+c ; q=\"x y\""] {
            assert_eq!(media_type_fault(good), None, "{good}");
        }
        for (bad, why) in [
            (";", "no media type"),
            ("a b", "expected slash after first token"),
            ("a/", "expected token after slash"),
            ("a/b c", "unexpected content after media subtype"),
            ("a/b; c", "invalid media parameter"),
            ("é", "expected slash after first token"),
            ("a/é", "expected token after slash"),
        ] {
            assert_eq!(media_type_fault(bad), Some(why), "{bad}");
        }
    }
}
