//! What a CRI call answers when it fails: a gRPC code and a sentence.

use std::error::Error;
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

/// An error and all its causes in one sentence: what reaches a pod's event is all that an operator sees, and what the system
/// answered stands last. A cause that its error has already told is not told again.
pub fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
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

    /// The same of an error, with all its causes.
    pub fn of(error: impl Error) -> Self {
        CriError::new(Code::Unknown, whole(&error))
    }

    /// What failed, and why with all causes.
    pub fn caused(what: &str, error: &dyn Error) -> Self {
        CriError::new(Code::Unknown, format!("{what}: {}", whole(error)))
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

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("write \"1\" to memory.max")]
    struct Write(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("set the group: {0}")]
    struct Told(#[source] Write);

    #[test]
    fn an_error_says_what_the_system_answered_and_says_nothing_twice() {
        let write = || Write(io::Error::from_raw_os_error(30));
        let wanted = "write \"1\" to memory.max: Read-only file system (os error 30)";
        assert_eq!(CriError::of(write()).message, wanted);
        assert_eq!(CriError::of(Told(write())).message, format!("set the group: {wanted}"));
        assert_eq!(CriError::caused("failed", &write()).message, format!("failed: {wanted}"));
    }
}
