//! Asking a webhook whether a request is allowed: one `SubjectAccessReview`, sent and answered.
//!
//! # Guarantees
//! Whatever is answered, or is not, is an answer or an [`Error`] by the deadline. Nothing is tried again here but what asks to be,
//! by `Retry-After`, within it.
//!
//! Source: `plugin/pkg/authorizer/webhook` and `util/webhook` of apiserver.

use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;

use crate::client::{BodyError, CallError, Client, ClientConfig, Limits, PostError};
use crate::document;

/// An answer repeats what was asked, which is no longer than a request's head.
const MAX_RESPONSE_BYTES: usize = 1 << 20;
const KIND: &str = "SubjectAccessReview";

/// What a webhook says of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub is_allowed: bool,
    /// Whatever others may say of it.
    pub is_denied: bool,
    pub reason: String,
}

/// Why there is no answer, in upstream's words.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Error {
    why: String,
    /// Whether the time was over.
    pub is_timeout: bool,
    /// Whether it may well work if it is tried again soon.
    pub is_passing: bool,
}

impl Error {
    /// Too many others are being asked already.
    pub fn crowded() -> Error {
        let why = "too many requests wait for the webhook".to_owned();
        Error { why, is_timeout: true, is_passing: false }
    }
}

/// Sends a review, which is a document of `version` of `authorization.k8s.io`, and reads its `status`.
///
/// # Errors
/// If there is no answer that could be read.
pub async fn review(
    client: &Client,
    config: &ClientConfig,
    version: &str,
    review: Bytes,
    deadline: Instant,
) -> Result<Answer, Error> {
    let limits = Limits { deadline, max_response_bytes: MAX_RESPONSE_BYTES };
    let answer = client.post(config, review, limits).await.and_then(|answer| answer.document());
    let document = answer.map_err(|error| failure(&error))?;
    read(&document, version).map_err(|why| Error { why, is_timeout: false, is_passing: false })
}

/// Of errors those pass that upstream's `DefaultShouldRetry` names.
fn failure(error: &CallError) -> Error {
    let (is_timeout, is_passing) = match error {
        CallError::Post { cause: PostError::Deadline, .. } | CallError::Body(BodyError::Deadline) => {
            (true, false)
        }
        CallError::Post { cause: PostError::Reset(_), .. } => (false, true),
        CallError::Answered(status) => (status.code == 504, matches!(status.code, 429 | 500 | 504)),
        _ => (false, false),
    };
    Error { why: error.to_string(), is_timeout, is_passing }
}

/// The sentence says why it is no answer.
fn read(document: &Value, version: &str) -> Result<Answer, String> {
    let said = |field: &str| document[field].as_str().unwrap_or_default();
    let expected = format!("authorization.k8s.io/{version}");
    let is_other = |said: &str, expected: &str| !said.is_empty() && said != expected;
    if is_other(said("apiVersion"), &expected) || is_other(said("kind"), KIND) {
        let told = document::shortened(&format!("{} {}", said("apiVersion"), said("kind")));
        return Err(format!("the webhook answered with {told}, not with {expected} {KIND}"));
    }
    let status = &document["status"];
    if !(status.is_null() || status.is_object()) {
        return Err("json: cannot unmarshal into Go struct field SubjectAccessReview.status".into());
    }
    let unfit = |field: &str| {
        format!("json: cannot unmarshal into Go struct field SubjectAccessReviewStatus.status.{field}")
    };
    let flag = |field: &str| match &status[field] {
        Value::Null => Ok(false),
        Value::Bool(flag) => Ok(*flag),
        _ => Err(unfit(field)),
    };
    let reason = match &status["reason"] {
        Value::Null => String::new(),
        Value::String(reason) => document::shortened(reason),
        _ => return Err(unfit("reason")),
    };
    Ok(Answer { is_allowed: flag("allowed")?, is_denied: flag("denied")?, reason })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_api::Status;

    use super::*;

    #[test]
    fn an_answer_is_read_whether_it_says_what_it_is_or_not() {
        let yes = Answer { is_allowed: true, ..Answer::default() };
        assert_eq!(read(&json!({"status": {"allowed": true}}), "v1"), Ok(yes.clone()));
        let whole = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": "u"},
            "status": {"allowed": true, "more": 1},
        });
        assert_eq!(read(&whole, "v1"), Ok(yes));
        assert_eq!(read(&json!({}), "v1"), Ok(Answer::default()), "no opinion");
        for wrong in [
            json!({"kind": "Pod"}),
            json!({"apiVersion": "authorization.k8s.io/v1beta1"}),
            json!({"status": "yes"}),
            json!({"status": {"allowed": "true"}}),
            json!({"status": {"reason": 1}}),
        ] {
            assert!(read(&wrong, "v1").is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_may_pass_is_worth_another_try() {
        let of = |code: u16| failure(&CallError::Answered(Box::new(Status::new(code, "", "")))).is_passing;
        assert_eq!([429, 500, 504, 503, 400, 403].map(of), [true, true, true, false, false, false]);
        let post = |cause| failure(&CallError::Post { url: "https://a/".into(), cause });
        assert!(post(PostError::Reset("r".into())).is_passing);
        assert!(!post(PostError::Http("connect: connection refused".into())).is_passing);
        let late = post(PostError::Deadline);
        assert!(late.is_timeout && !late.is_passing);
    }
}
