//! A running `exec`: its streams, its terminal and its end.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

use crate::CriError;

/// The size of a terminal, in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// A process started in a container. Dropping the session ends the process.
///
/// With a terminal there is one output stream, `stdout`; `stderr` is `None`.
pub struct ExecSession {
    /// Closed by dropping it: the process then reads end of file.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Sizes for the terminal; ignored where there is none.
    pub resize: mpsc::Sender<TerminalSize>,
    /// The exit code, sent once, when the process has ended and its output has been written.
    pub exit: oneshot::Receiver<Result<i32, CriError>>,
}
