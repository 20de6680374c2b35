//! A process beside a container's own: its streams are the process's own pipes or terminal, made here and
//! handed to the shim, so that no byte passes through the shim.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use skiff_cri::{CriError, ExecProcess, ExecSession, TerminalSize};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::client::ShimConnection;
use crate::protocol::{Answer, Request};

/// For the OCI runtime to start the process.
const START_TIME: Duration = Duration::from_secs(30);
/// Sizes of the terminal that may wait; the last counts.
pub(crate) const N_SIZES: usize = 4;

/// The two ends of a stream, if it is wanted.
pub(crate) struct Stream {
    pub(crate) ours: Option<OwnedFd>,
    pub(crate) theirs: Option<OwnedFd>,
}

impl Stream {
    pub(crate) fn output(wanted: bool) -> io::Result<Stream> {
        if !wanted {
            return Ok(Stream { ours: None, theirs: None });
        }
        let (reader, writer) = io::pipe()?;
        Ok(Stream { ours: Some(reader.into()), theirs: Some(writer.into()) })
    }

    fn input(wanted: bool) -> io::Result<Stream> {
        let Stream { ours, theirs } = Stream::output(wanted)?;
        Ok(Stream { ours: theirs, theirs: ours })
    }
}

/// Starts the process and gives its session. `process` is its OCI spec.
pub(crate) async fn start(
    id: &str,
    directory: &Path,
    process: &oci_spec::runtime::Process,
    exec: &ExecProcess,
) -> Result<ExecSession, Error> {
    let shim = |detail: String| Error::Shim { id: id.to_owned(), detail };
    let broken = |err: io::Error| shim(err.to_string());
    let process = serde_json::to_string(process).map_err(|err| shim(err.to_string()))?;
    let stdin = Stream::input(exec.stdin && !exec.tty).map_err(broken)?;
    let stdout = Stream::output(exec.stdout && !exec.tty).map_err(broken)?;
    let stderr = Stream::output(exec.stderr && !exec.tty).map_err(broken)?;
    let request = Request::Exec {
        process,
        tty: exec.tty,
        stdin: stdin.theirs.is_some(),
        stdout: stdout.theirs.is_some(),
        stderr: stderr.theirs.is_some(),
    };
    let theirs: Vec<BorrowedFd<'_>> = [&stdin, &stdout, &stderr]
        .into_iter()
        .filter_map(|stream| stream.theirs.as_ref())
        .map(AsFd::as_fd)
        .collect();
    let mut connection = ShimConnection::connect(directory).await.map_err(broken)?;
    let exchange = async {
        connection.send(&request, &theirs).await?;
        connection.receive().await
    };
    let answer = tokio::time::timeout(START_TIME, exchange).await.map_err(|_| Error::Timeout {
        operation: "exec",
        id: id.to_owned(),
        seconds: START_TIME.as_secs(),
    })?;
    match answer.map_err(broken)? {
        Some(Answer::ExecStarted { .. }) => {}
        Some(Answer::Failed { message }) => return Err(Error::Exec { detail: message }),
        _ => return Err(shim("has gone".to_owned())),
    }
    let terminal = connection.take_descriptor();
    if exec.tty && terminal.is_none() {
        return Err(shim("sent no terminal".to_owned()));
    }
    session([stdin.ours, stdout.ours, stderr.ours], terminal, exec, connection).map_err(broken)
}

fn session(
    [stdin, stdout, stderr]: [Option<OwnedFd>; 3],
    terminal: Option<OwnedFd>,
    exec: &ExecProcess,
    connection: ShimConnection,
) -> io::Result<ExecSession> {
    let (resize, sizes) = mpsc::channel(N_SIZES);
    let (exit_sender, exit) = oneshot::channel();
    let mut session = ExecSession { stdin: None, stdout: None, stderr: None, resize, exit };
    match &terminal {
        Some(terminal) => {
            if exec.stdin {
                session.stdin = Some(Box::new(sender(terminal.try_clone()?)?));
            }
            if exec.stdout || exec.stderr {
                session.stdout = Some(Box::new(Output(receiver(terminal.try_clone()?)?)));
            }
        }
        None => {
            if let Some(stdin) = stdin {
                session.stdin = Some(Box::new(sender(stdin)?));
            }
            if let Some(stdout) = stdout {
                session.stdout = Some(Box::new(Output(receiver(stdout)?)));
            }
            if let Some(stderr) = stderr {
                session.stderr = Some(Box::new(Output(receiver(stderr)?)));
            }
        }
    }
    tokio::spawn(attend(connection, terminal, sizes, exit_sender));
    Ok(session)
}

/// Until the process ends or nobody wants its exit any more; dropping the connection then ends the process.
async fn attend(
    mut connection: ShimConnection,
    terminal: Option<OwnedFd>,
    mut sizes: mpsc::Receiver<TerminalSize>,
    mut exit: oneshot::Sender<Result<i32, CriError>>,
) {
    let mut may_resize = true;
    let result = loop {
        // All three are cancel-safe: a receive keeps what has come, the others only wait.
        tokio::select! {
            answer = connection.receive() => break match answer {
                Ok(Some(Answer::ExecExited { code })) => Ok(code),
                Ok(Some(Answer::Failed { message })) => Err(CriError::unknown(message)),
                Ok(Some(_)) => continue,
                // The container has ended, and its shim with it: so has the process.
                Ok(None) => Ok(137),
                Err(err) => Err(CriError::of(err)),
            },
            size = sizes.recv(), if may_resize => match (size, &terminal) {
                (Some(size), Some(terminal)) => set_size(terminal, size),
                (Some(_), None) => {}
                (None, _) => may_resize = false,
            },
            () = exit.closed() => return,
        }
    };
    let _nobody_waits = exit.send(result);
}

/// Of a terminal; one that is closed has none.
pub(crate) fn set_size(terminal: &OwnedFd, size: TerminalSize) {
    let size =
        rustix::termios::Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    let _closed = rustix::termios::tcsetwinsize(terminal, size);
}

pub(crate) fn sender(descriptor: OwnedFd) -> io::Result<pipe::Sender> {
    rustix::io::ioctl_fionbio(&descriptor, true)?;
    // A terminal is no pipe, but is written like one.
    pipe::Sender::from_owned_fd_unchecked(descriptor)
}

pub(crate) fn receiver(descriptor: OwnedFd) -> io::Result<pipe::Receiver> {
    rustix::io::ioctl_fionbio(&descriptor, true)?;
    pipe::Receiver::from_owned_fd_unchecked(descriptor)
}

/// A pipe or a terminal: one whose other side is closed answers EIO, which is its end.
pub(crate) struct Output(pub(crate) pipe::Receiver);

impl AsyncRead for Output {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.0).poll_read(context, buffer) {
            Poll::Ready(Err(err)) if err.raw_os_error() == Some(libc::EIO) => Poll::Ready(Ok(())),
            other => other,
        }
    }
}
