//! Connections to ports of a pod, from inside its network namespace: what listens on its loopback alone is reached, too.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use skiff_cri::{Code, CriError, PodConnection};
use tokio::net::{TcpSocket, TcpStream};

const CONNECT_TIME: Duration = Duration::from_secs(10);

/// `localhost` as IPv4, then as IPv6. A pod on the host's network has the host's.
pub(crate) async fn connect(netns: Option<PathBuf>, port: u16) -> Result<PodConnection, CriError> {
    let mut refusals = Vec::new();
    for address in
        [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))]
    {
        let connecting = async {
            let socket = socket(netns.clone(), address.is_ipv4()).await?;
            socket.connect(address).await
        };
        let connected = tokio::time::timeout(CONNECT_TIME, connecting).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(connection) => return made(connection).map_err(CriError::of),
            Err(error) => refusals.push(format!("{address}: {error}")),
        }
    }
    let message = format!("failed to connect to localhost:{port} inside the pod: {}", refusals.join("; "));
    Err(CriError::new(Code::Unknown, message))
}

fn made(connection: TcpStream) -> io::Result<PodConnection> {
    connection.set_nodelay(true)?;
    Ok(Box::new(connection))
}

/// A socket stays in the namespace in which it was made, whoever uses it.
async fn socket(netns: Option<PathBuf>, is_ipv4: bool) -> io::Result<TcpSocket> {
    let new = move || if is_ipv4 { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    match netns {
        None => new(),
        Some(netns) => tokio::task::spawn_blocking(move || within(&netns, new))
            .await
            .map_err(|_| io::Error::other("the thread that makes a socket panicked"))?,
    }
}

/// On a thread of its own, which ends afterwards, so that no other is ever left in a pod's namespace.
fn within<T: Send>(netns: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(netns)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().map_err(|_| io::Error::other("the thread that entered the pod's network panicked"))?
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_port_of_the_hosts_own_network_is_reached_and_one_that_nobody_has_is_told_with_its_reasons() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        connect(None, port).await.unwrap();
        drop(listener);
        let error = connect(None, port).await.err().unwrap();
        assert!(error.message.contains(&format!("localhost:{port}")), "{error}");
        assert!(error.message.contains("127.0.0.1") && error.message.contains("[::1]"), "{error}");
    }

    #[test]
    fn a_namespace_that_is_gone_is_an_error() {
        let error = within(Path::new("/run/skiff/none"), || Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
