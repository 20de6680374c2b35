//! Connections to the server that end when this machine is given another address.
//!
//! The kernel keeps a connection of an address that the machine no longer has, and nothing that is sent over it comes back. Left alone,
//! it would be noticed by pings that are not answered, half a minute later.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower::Service;

/// All connections of a client. Cloning shares them.
#[derive(Clone, Default)]
pub(crate) struct Connections(Arc<ArcSwap<CancellationToken>>);

impl Connections {
    /// Ends those that there are. Who waits for an answer over one is told that none comes, and may ask again.
    pub(crate) fn end(&self) {
        self.0.swap(Arc::default()).cancel();
    }
}

/// Makes connections that end with the others.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) tcp: HttpConnector,
    pub(super) connections: Connections,
}

impl Service<Uri> for Connector {
    type Response = Ending;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Ending, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        // Of before it is connected: the address may change meanwhile.
        let (connecting, end) = (self.tcp.call(to), self.connections.0.load_full());
        Box::pin(async move {
            let ended = Box::pin(CancellationToken::clone(&end).cancelled_owned());
            Ok(Ending { io: connecting.await?, ended })
        })
    }
}

/// A connection that fails once it is to end.
pub(super) struct Ending {
    io: TokioIo<TcpStream>,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Ending {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.ended.as_mut().poll(cx) {
            Poll::Ready(()) => {
                Err(io::Error::new(ErrorKind::ConnectionAborted, "this machine has another address"))
            }
            Poll::Pending => Ok(()),
        }
    }
}

impl Read for Ending {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for Ending {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }
}

impl Connection for Ending {
    fn connected(&self) -> Connected {
        self.io.connected()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn connections_of_the_address_that_a_machine_had_end_at_once_and_later_ones_live() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to: Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let connections = Connections::default();
        let mut connector = Connector { tcp: HttpConnector::new(), connections: connections.clone() };
        let mut before = TokioIo::new(connector.call(to.clone()).await.unwrap());
        let _silent = listener.accept().await.unwrap();
        let waiting = tokio::spawn(async move { before.read_u8().await });
        tokio::task::yield_now().await;
        connections.end();
        let told =
            tokio::time::timeout(SOON, waiting).await.expect("it waits for what will not come").unwrap();
        assert_eq!(told.unwrap_err().kind(), ErrorKind::ConnectionAborted);

        let mut after = TokioIo::new(connector.call(to).await.unwrap());
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_u8(7).await.unwrap();
        assert_eq!(tokio::time::timeout(SOON, after.read_u8()).await.unwrap().unwrap(), 7);
    }
}
