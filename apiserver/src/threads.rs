//! The threads that serve connections: each class of clients has its own. What one class asks for never stands in a queue
//! before another's, and the kernel shares the processors among them.
//!
//! ```text
//! accepted ─▶ TLS, on the doors' thread ─┬─ administrators, components ─▶ the threads that serve() was called on
//!                                        ├─ nodes ─────────────────────▶ theirs
//!                                        └─ everybody else ────────────▶ theirs
//! ```
//!
//! A certificate says at once who comes. A token is known with its first request only, so its bearer is everybody else.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::auth::{MASTERS, UserInfo};

/// Threads for handshakes: what strangers can make the server do before it knows anything of them.
const DOOR_THREADS: usize = 1;

/// The runtimes of a server. Dropping it ends them without waiting for anything.
pub(crate) struct Threads {
    runtimes: Vec<Runtime>,
    pub(crate) classes: Classes,
}

/// Who shares threads with whom. A request that came over a connection has its class as an extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Administrators and the cluster's own components.
    Own,
    Nodes,
    Others,
}

impl Class {
    pub(crate) const COUNT: usize = 3;

    /// The class of somebody, or of somebody who has not said who he is.
    pub(crate) fn of(user: Option<&UserInfo>) -> Class {
        match user {
            Some(user) if user.node_name().is_some() => Class::Nodes,
            Some(user) if user.is_in(MASTERS) || user.is_component() || user.is_of_kube_system() => {
                Class::Own
            }
            Some(_) | None => Class::Others,
        }
    }
}

/// Where to run what for whom.
#[derive(Clone)]
pub(crate) struct Classes {
    pub(crate) doors: Handle,
    own: Handle,
    nodes: Handle,
    others: Handle,
}

impl Classes {
    pub(crate) fn threads(&self, class: Class) -> &Handle {
        match class {
            Class::Own => &self.own,
            Class::Nodes => &self.nodes,
            Class::Others => &self.others,
        }
    }
}

impl Threads {
    /// As many threads for each class as the runtime has that this is called on. Those of nodes and of everybody else call
    /// `on_long_thread` first.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(crate) fn start(on_long_thread: fn()) -> io::Result<Threads> {
        let own = Handle::current();
        let n = own.metrics().num_workers();
        let (doors, nodes, others) = (
            runtime("doors", DOOR_THREADS, || ())?,
            runtime("nodes", n, on_long_thread)?,
            runtime("others", n, on_long_thread)?,
        );
        let classes = Classes {
            doors: doors.handle().clone(),
            own,
            nodes: nodes.handle().clone(),
            others: others.handle().clone(),
        };
        Ok(Threads { runtimes: vec![doors, nodes, others], classes })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for runtime in self.runtimes.drain(..) {
            runtime.shutdown_background();
        }
    }
}

fn runtime(name: &str, threads: usize, on_start: fn()) -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .on_thread_start(on_start)
        .enable_all()
        .build()
}

/// A TCP stream that may move to the threads of another class: its readiness is looked for by the runtime it was made on.
pub(crate) struct Movable(Option<TcpStream>);

impl Movable {
    pub(crate) fn new(stream: TcpStream) -> Movable {
        Movable(Some(stream))
    }

    /// Takes the stream from the runtime that has it. Until it is [attached](Movable::attach) nothing can be read or written.
    pub(crate) fn detach(&mut self) -> io::Result<std::net::TcpStream> {
        self.0.take().ok_or_else(gone)?.into_std()
    }

    /// Gives the stream to the runtime that this is called on.
    pub(crate) fn attach(&mut self, stream: std::net::TcpStream) -> io::Result<()> {
        self.0 = Some(TcpStream::from_std(stream)?);
        Ok(())
    }

    fn stream(self: Pin<&mut Self>) -> io::Result<Pin<&mut TcpStream>> {
        self.get_mut().0.as_mut().map(Pin::new).ok_or_else(gone)
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the connection is between two runtimes")
}

impl AsyncRead for Movable {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(cx, into)
    }
}

impl AsyncWrite for Movable {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_class_whose_threads_are_all_busy_holds_up_no_other() {
        let threads = Threads::start(|| ()).expect("threads");
        let classes = &threads.classes;
        let users = [
            UserInfo::new("admin", &["system:masters"]),
            UserInfo::new("system:node:n", &["system:nodes"]),
            UserInfo::new("system:serviceaccount:a:b", &[]),
        ];
        let all = users.each_ref().map(|user| Class::of(Some(user)));
        assert_eq!(all, [Class::Own, Class::Nodes, Class::Others]);
        // What this test runs on is the administrator's: it is never kept busy here.
        for busy in [Class::Nodes, Class::Others] {
            let n = classes.threads(busy).metrics().num_workers();
            let held = std::sync::Arc::new(std::sync::Barrier::new(n + 1));
            for _ in 0..n {
                let held = held.clone();
                classes.threads(busy).spawn(async move { held.wait() });
            }
            for other in all.into_iter().filter(|other| *other != busy) {
                classes.threads(other).spawn(async {}).await.expect("it runs");
            }
            classes.doors.spawn(async {}).await.expect("it runs");
            held.wait();
        }
    }

    #[tokio::test]
    async fn a_stream_goes_on_where_it_is_put() {
        let threads = Threads::start(|| ()).expect("threads");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut client, mut moved) = (client.expect("connects"), Movable::new(accepted.expect("accepts").0));
        let stream = moved.detach().expect("it is there");
        let between = moved.write_all(b"x").await.expect_err("it is nowhere");
        assert_eq!(between.kind(), io::ErrorKind::NotConnected);
        let echo = threads.classes.threads(Class::of(None)).spawn(async move {
            moved.attach(stream).expect("it is put");
            let mut byte = [0];
            moved.read_exact(&mut byte).await.expect("reads");
            moved.write_all(&byte).await.expect("writes");
        });
        client.write_all(b"y").await.expect("writes");
        let mut byte = [0];
        client.read_exact(&mut byte).await.expect("reads");
        echo.await.expect("ends");
        assert_eq!(&byte, b"y");
    }
}
