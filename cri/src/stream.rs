//! A running `exec` or `attach`: its streams, its terminal and its end. A connection to a port of a pod.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

use crate::CriError;

/// The size of a terminal, in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// A connection that was made inside a pod's network.
pub type PodConnection = Box<dyn Connection>;

/// What carries bytes both ways.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// The streams of a process started in a container, or of the container's own. Dropping the session ends the process; what
/// was attached is detached.
///
/// With a terminal there is one output stream, `stdout`; `stderr` is `None`.
pub struct ExecSession {
    /// Closed by dropping it: the process then reads end of file. A container's own does so only where it was to be closed
    /// with the first who attaches (`stdinOnce`).
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Sizes for the terminal; ignored where there is none.
    pub resize: mpsc::Sender<TerminalSize>,
    /// The exit code, sent once, when the process has ended and its output has been written; 0 when a container has that
    /// was attached to.
    pub exit: oneshot::Receiver<Result<i32, CriError>>,
}
