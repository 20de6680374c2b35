//! A connection: its socket, which its requests look at while hyper reads and writes it, and whether it has any.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a client of HTTP/2 with prior knowledge begins with. No method of HTTP/1 does.
const HTTP2: &[u8] = b"PRI ";
/// How soon it is looked for the rest of those four bytes; each time twice as much later.
const PREFACE_PAUSE: Duration = Duration::from_millis(5);
const MAX_PREFACE_PAUSE: Duration = Duration::from_secs(1);
/// What is read at once.
const READ_BYTES: usize = 8 << 10;

#[derive(Clone, Debug)]
pub(crate) struct Stream(Arc<TcpStream>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    There,
    /// It sends no more. Whether it still listens shows when something is sent to it.
    HalfClosed,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

impl Stream {
    pub(crate) fn new(stream: TcpStream) -> Stream {
        // Without it a small answer may wait; a socket that cannot have it is no reason to refuse a client.
        _ = stream.set_nodelay(true);
        Stream(Arc::new(stream))
    }

    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        self.0.local_addr().ok()
    }

    /// Waits for what the client says first; `None` if it goes without a word.
    pub(crate) async fn version(&self) -> Option<Version> {
        let mut first = [0; HTTP2.len()];
        let mut pause = PREFACE_PAUSE;
        loop {
            let n = self.0.peek(&mut first).await.ok().filter(|n| *n > 0)?;
            if first[..n] != HTTP2[..n] {
                return Some(Version::Http1);
            }
            if n == HTTP2.len() {
                return Some(Version::Http2);
            }
            // The bytes that are there make the socket readable.
            tokio::time::sleep(pause).await;
            pause = MAX_PREFACE_PAUSE.min(pause * 2);
        }
    }

    /// Looks whether the client is still there, without reading what it sent.
    pub(crate) fn client(&self) -> Client {
        let mut byte = [0];
        match rustix::net::recv(&*self.0, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => Client::HalfClosed,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Client::There,
            Err(_) => Client::Gone,
        }
    }

    /// The client is to see that what it got is not all: its connection is reset when it is closed.
    pub(crate) fn reset_when_closed(&self) {
        _ = rustix::net::sockopt::set_socket_linger(&*self.0, Some(Duration::ZERO));
    }
}

/// A connection as its server knows it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: Stream,
    /// Told when others need its place.
    pub(crate) gives_way: Notify,
    requests: Mutex<Requests>,
}

#[derive(Debug)]
struct Requests {
    n_under_way: usize,
    idle_since: Instant,
}

impl Connection {
    pub(crate) fn new(stream: Stream) -> Arc<Connection> {
        let requests = Mutex::new(Requests { n_under_way: 0, idle_since: Instant::now() });
        Arc::new(Connection { stream, gives_way: Notify::new(), requests })
    }

    /// Since when no request has been under way; `None` while one is.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let requests = self.requests.lock();
        (requests.n_under_way == 0).then_some(requests.idle_since)
    }

    pub(crate) fn request(self: &Arc<Self>) -> UnderWay {
        self.requests.lock().n_under_way += 1;
        UnderWay(self.clone())
    }
}

/// A request, until there is nobody more who works on its response. What is left to be sent by then is the client's to take,
/// who may have to do so soon: its connection is idle.
pub(crate) struct UnderWay(Arc<Connection>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut requests = self.0.requests.lock();
        requests.n_under_way -= 1;
        requests.idle_since = Instant::now();
    }
}

impl Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; READ_BYTES];
        let most = buffer.remaining().min(READ_BYTES);
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(&mut bytes[..most]) {
                Ok(n) => {
                    buffer.put_slice(&bytes[..n]);
                    return Poll::Ready(Ok(()));
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) => return Poll::Ready(Err(err)),
            }
        }
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write(bytes) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Write) {
            Err(Errno::NOTCONN) => Poll::Ready(Ok(())),
            done => Poll::Ready(done.map_err(io::Error::from)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write_vectored(parts) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}
