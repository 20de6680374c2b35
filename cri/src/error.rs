//! What a CRI call answers when it fails: a gRPC code and a sentence.

use std::fmt;

/// The gRPC codes that CRI callers act upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    InvalidArgument,
    NotFound,
    AlreadyExists,
    /// The object is in a state that forbids the call, such as starting a container twice.
    FailedPrecondition,
    DeadlineExceeded,
    Unavailable,
    Unimplemented,
    ResourceExhausted,
    Unknown,
}

/// A failed CRI call. The message is what an operator reads in a pod's event, so it says what failed
/// and why, without a prefix of its own.
#[derive(Clone, Debug, thiserror::Error)]
pub struct CriError {
    pub code: Code,
    pub message: String,
    /// A reason for `state.waiting.reason` where the generic one (`CreateContainerError`, …) would say
    /// less, such as `ErrImageNeverPull` or `InvalidImageName`.
    pub reason: Option<&'static str>,
}

impl CriError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        CriError { code, message: message.into(), reason: None }
    }

    pub fn with_reason(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    pub fn not_found(what: &str, id: &str) -> Self {
        CriError::new(Code::NotFound, format!("{what} {id:?} not found"))
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        CriError::new(Code::InvalidArgument, message)
    }

    /// Any failure of the host or of a runtime that the caller cannot act upon.
    pub fn unknown(message: impl fmt::Display) -> Self {
        CriError::new(Code::Unknown, message.to_string())
    }
}

impl fmt::Display for CriError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
