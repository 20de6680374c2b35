//! Why a call brought no document, in upstream's words.
//!
//! Nothing of a body that is no `Status` is ever repeated: who may write a configuration would read with it what only this
//! server can reach. Upstream repeats 2 KiB of texts.

use std::io;

use skiff_api::Status;

use super::config::ConfigError;
use super::connect::ConnectError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// No head of an answer came.
    #[error("Post {url:?}: {cause}")]
    Post { url: String, cause: PostError },
    #[error("unexpected error when reading response body. Please retry. Original error: {0}")]
    Body(BodyError),
    /// The answer was an error.
    #[error("{}", .0.message)]
    Answered(Box<Status>),
    /// The answer was no document of the kind that was wanted.
    #[error("{0}")]
    Undecodable(String),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PostError {
    #[error("context deadline exceeded")]
    Deadline,
    #[error("{0}")]
    Http(String),
    /// The other side has reset the connection.
    #[error("{0}")]
    Reset(String),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("context deadline exceeded")]
    Deadline,
    #[error("the response is larger than {max_bytes} bytes")]
    TooLarge { max_bytes: usize },
    #[error("{0}")]
    Http(String),
}

/// Upstream's words for an error of a connection.
pub(super) fn words(error: &io::Error) -> String {
    let words = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused",
        io::ErrorKind::ConnectionReset => "read: connection reset by peer",
        io::ErrorKind::BrokenPipe => "write: broken pipe",
        io::ErrorKind::HostUnreachable => "connect: no route to host",
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable",
        io::ErrorKind::TimedOut => "i/o timeout",
        io::ErrorKind::UnexpectedEof => "EOF",
        _ => return error.to_string(),
    };
    words.to_owned()
}

/// Upstream's words for a request that was not answered, over the connections of a [`Connector`](super::Connector).
pub fn of_request(error: &hyper_util::client::legacy::Error) -> String {
    let Some(source) = std::error::Error::source(error) else { return error.to_string() };
    if let Some(error) = source.downcast_ref::<ConnectError>() {
        return error.to_string();
    }
    match source.downcast_ref::<hyper::Error>() {
        Some(error) => of_http(error, "EOF"),
        None => source.to_string(),
    }
}

/// Whether a request was not answered because the connection was reset.
pub(super) fn is_reset(error: &hyper_util::client::legacy::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionReset) {
            return true;
        }
        source = error.source();
    }
    false
}

/// `end` is what is said where the connection ended.
pub(super) fn of_http(error: &hyper::Error, end: &str) -> String {
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return end.to_owned();
    }
    if error.is_parse() {
        return "net/http: HTTP/1.x transport connection broken: malformed HTTP response".into();
    }
    match std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(error) if error.kind() == io::ErrorKind::UnexpectedEof => end.to_owned(),
        Some(error) => words(error),
        None => error.to_string(),
    }
}
