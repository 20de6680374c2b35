//! A caller's end of a shim's socket.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::protocol::{self, Answer, Request};

/// A shim answers at once, unless the whole machine is stuck.
pub(crate) const ANSWER_TIME: Duration = Duration::from_secs(10);

pub(crate) struct ShimConnection {
    stream: UnixStream,
    buffer: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl ShimConnection {
    /// Fails if no shim listens for the container any more.
    pub(crate) async fn connect(directory: &Path) -> io::Result<ShimConnection> {
        let directory = File::open(directory)?;
        let connecting = UnixStream::connect(protocol::socket_path(directory.as_fd(), "shim.sock"));
        let stream = timeout(ANSWER_TIME, connecting).await.map_err(|_| io::ErrorKind::TimedOut)??;
        Ok(ShimConnection { stream, buffer: Vec::new(), descriptors: Vec::new() })
    }

    /// Not cancel-safe: a message may be half sent. Drop the connection then.
    pub(crate) async fn send(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = protocol::frame(request)?;
        let mut sent = 0;
        while sent < bytes.len() {
            self.stream.writable().await?;
            let with = if sent == 0 { descriptors } else { &[] };
            let attempt =
                self.stream.try_io(Interest::WRITABLE, || protocol::send(&self.stream, &bytes[sent..], with));
            match attempt {
                Ok(n) => sent += n,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    /// The next answer; `None` once the shim has gone. Cancel-safe: what has come stays in the buffer.
    pub(crate) async fn receive(&mut self) -> io::Result<Option<Answer>> {
        loop {
            if let Some(answer) = protocol::unframe(&mut self.buffer)? {
                return Ok(Some(answer));
            }
            self.stream.readable().await?;
            let (stream, buffer, descriptors) = (&self.stream, &mut self.buffer, &mut self.descriptors);
            match stream.try_io(Interest::READABLE, || protocol::receive(stream, buffer, descriptors)) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) if err.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(err) => return Err(err),
            }
        }
    }

    /// A descriptor that came with an answer.
    pub(crate) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop()
    }
}

/// One question, one answer.
pub(crate) async fn call(directory: &Path, request: &Request) -> io::Result<Answer> {
    let exchange = async {
        let mut connection = ShimConnection::connect(directory).await?;
        connection.send(request, &[]).await?;
        connection.receive().await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    };
    timeout(ANSWER_TIME, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
