//! The streams of a container's own process. Its output comes through pipes that the shim writes to beside the log; its input
//! goes to the pipe or the terminal itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use skiff_cri::{Attach, CriError, ExecSession, TerminalSize};
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::client::{ANSWER_TIME, ShimConnection};
use crate::exec::{N_SIZES, Output, Stream, receiver, sender, set_size};
use crate::protocol::{Answer, Request};

pub(crate) async fn start(id: &str, directory: &Path, attach: Attach) -> Result<ExecSession, Error> {
    let shim = |detail: String| Error::Shim { id: id.to_owned(), detail };
    let broken = |err: io::Error| shim(err.to_string());
    let stdout = Stream::output(attach.stdout).map_err(broken)?;
    let stderr = Stream::output(attach.stderr).map_err(broken)?;
    let theirs: Vec<BorrowedFd<'_>> =
        [&stdout, &stderr].into_iter().filter_map(|stream| stream.theirs.as_ref()).map(AsFd::as_fd).collect();
    let mut connection = ShimConnection::connect(directory).await.map_err(broken)?;
    let Attach { stdin, stdout: with_stdout, stderr: with_stderr } = attach;
    let request = Request::Attach { stdin, stdout: with_stdout, stderr: with_stderr };
    let exchange = async {
        connection.send(&request, &theirs).await?;
        connection.receive().await
    };
    let answer = tokio::time::timeout(ANSWER_TIME, exchange).await.map_err(|_| Error::Timeout {
        operation: "attach",
        id: id.to_owned(),
        seconds: ANSWER_TIME.as_secs(),
    })?;
    match answer.map_err(broken)? {
        Some(Answer::Attached) => {}
        Some(Answer::Failed { message }) => return Err(shim(message)),
        _ => return Err(shim("has gone".to_owned())),
    }
    let input = connection.take_descriptor();
    session(connection, stdin, input, [stdout.ours, stderr.ours]).map_err(broken)
}

fn session(
    connection: ShimConnection,
    with_stdin: bool,
    input: Option<OwnedFd>,
    [stdout, stderr]: [Option<OwnedFd>; 2],
) -> io::Result<ExecSession> {
    let output = |from: Option<OwnedFd>| -> io::Result<Option<Box<dyn tokio::io::AsyncRead + Send + Unpin>>> {
        Ok(match from {
            Some(from) => Some(Box::new(Output(receiver(from)?))),
            None => None,
        })
    };
    let (stdout, stderr) = (output(stdout)?, output(stderr)?);
    let terminal = input.as_ref().filter(|input| rustix::termios::isatty(input));
    let terminal = terminal.map(OwnedFd::try_clone).transpose()?;
    let (ended, end_of_input) = oneshot::channel();
    let stdin: Option<Box<dyn AsyncWrite + Send + Unpin>> = match input.filter(|_| with_stdin) {
        Some(input) => Some(Box::new(Input { to: sender(input)?, _ended: ended })),
        None => None,
    };
    let (resize, sizes) = mpsc::channel(N_SIZES);
    let (exit_sender, exit) = oneshot::channel();
    let end_of_input = stdin.is_some().then_some(end_of_input);
    tokio::spawn(attend(connection, terminal, sizes, end_of_input, exit_sender));
    Ok(ExecSession { stdin, stdout, stderr, resize, exit })
}

/// Input; whoever drops it has ended it.
struct Input {
    to: pipe::Sender,
    _ended: oneshot::Sender<()>,
}

impl AsyncWrite for Input {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.to).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_shutdown(context)
    }
}

/// When the input ends, if there is one.
async fn ended(input: &mut Option<oneshot::Receiver<()>>) {
    match input {
        Some(input) => drop(input.await),
        None => std::future::pending().await,
    }
}

/// Until the container ends, or nobody wants its streams any more: dropping the connection then detaches.
async fn attend(
    mut connection: ShimConnection,
    terminal: Option<OwnedFd>,
    mut sizes: mpsc::Receiver<TerminalSize>,
    mut end_of_input: Option<oneshot::Receiver<()>>,
    mut exit: oneshot::Sender<Result<i32, CriError>>,
) {
    let mut may_resize = true;
    loop {
        // All are cancel-safe: a receive keeps what has come, the others only wait.
        tokio::select! {
            answer = connection.receive() => match answer {
                Ok(Some(_)) => {}
                // The container has ended, and its shim with it; or input has, and the shim has hung up.
                Ok(None) => break,
                Err(error) => {
                    let _nobody_waits = exit.send(Err(CriError::of(error)));
                    return;
                }
            },
            size = sizes.recv(), if may_resize => match (size, &terminal) {
                (Some(size), Some(terminal)) => set_size(terminal, size),
                (Some(_), None) => {}
                (None, _) => may_resize = false,
            },
            () = ended(&mut end_of_input) => {
                end_of_input = None;
                if let Err(error) = connection.send(&Request::CloseStdin, &[]).await {
                    tracing::debug!(%error, "telling a shim that input has ended");
                }
            }
            () = exit.closed() => return,
        }
    }
    let _nobody_waits = exit.send(Ok(0));
}
