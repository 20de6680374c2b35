//! A connection to a webhook: dialled by the host, then TLS under the name that the configuration says.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::config::{ConfigError, Way};
use super::tls;

/// A connection that TLS can be spoken over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Why nobody was reached. What it says becomes part of what the client of the API is told.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// There is nothing to dial, for the reason that is given, such as `service "a" not found`.
    #[error("{0}")]
    Unresolved(String),
    #[error("dial tcp {address}: {}", super::fault::words(source))]
    Refused { address: String, source: io::Error },
}

/// How the host reaches Services, whose pods may be behind a node's tunnel, and everything else.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// Connects to one of the endpoints of a Service's port.
    async fn dial_service(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Result<Box<dyn Stream>, DialError>;

    /// Connects to the host of a URL, a name or an address. Which addresses may be dialled is for the host to say: this dials
    /// all that it is given, as upstream does.
    async fn dial_host(&self, host: &str, port: u16) -> Result<Box<dyn Stream>, DialError> {
        let shown = host.to_owned();
        let addresses = tokio::net::lookup_host((host, port)).await;
        let addresses = addresses.map_err(|_| unknown_host(&shown))?;
        let mut last = unknown_host(&shown);
        for address in addresses.take(MAX_ADDRESSES) {
            match dial(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Of a name that stands for very many addresses no more are tried.
const MAX_ADDRESSES: usize = 16;

fn unknown_host(host: &str) -> DialError {
    DialError::Unresolved(format!("dial tcp: lookup {host}: no such host"))
}

/// Connects to an address by TCP.
///
/// # Errors
/// If nobody is there.
pub async fn dial(address: SocketAddr) -> Result<Box<dyn Stream>, DialError> {
    let refused = |source| DialError::Refused { address: address.to_string(), source };
    let stream = TcpStream::connect(address).await.map_err(refused)?;
    stream.set_nodelay(true).map_err(refused)?;
    Ok(Box::new(stream))
}

/// Why there is no connection, in upstream's words.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{0}")]
    Tls(String),
    #[error("net/http: TLS handshake timeout")]
    HandshakeTimeout,
    #[error("dial tcp: i/o timeout")]
    DialTimeout,
}

/// A connection that is made may outlive the request that it was made for, but not for long.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the connections to one peer, for a client of hyper.
#[derive(Clone)]
pub struct Connector {
    pub(super) resolver: Arc<dyn Resolver>,
    pub(super) way: Arc<Way>,
    pub(super) host: Arc<str>,
    pub(super) port: u16,
    pub(super) server_name: ServerName<'static>,
    pub(super) tls: tokio_rustls::TlsConnector,
}

impl Connector {
    /// Connections to a port of a Service, which must show a certificate for `<name>.<namespace>.svc`, as `tls` judges it.
    ///
    /// # Errors
    /// If that is no name that a certificate could be for.
    pub fn to_service(
        resolver: Arc<dyn Resolver>,
        namespace: &str,
        name: &str,
        port: u16,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Connector, ConfigError> {
        let host = format!("{name}.{namespace}.svc");
        let server_name = ServerName::try_from(host.clone()).map_err(|_| ConfigError::Url {
            why: format!("{host:?} is no name that a certificate could be for"),
        })?;
        let way = Way::Service { namespace: namespace.to_owned(), name: name.to_owned() };
        let (way, host) = (Arc::new(way), host.as_str().into());
        Ok(Connector { resolver, way, host, port, server_name, tls: tls.into() })
    }

    async fn connect(self) -> Result<Wire, ConnectError> {
        let dialled = tokio::time::timeout(DIAL_TIMEOUT, async {
            match &*self.way {
                Way::Service { namespace, name } => {
                    self.resolver.dial_service(namespace, name, self.port).await
                }
                Way::Host => self.resolver.dial_host(&self.host, self.port).await,
            }
        });
        let stream = dialled.await.map_err(|_| ConnectError::DialTimeout)??;
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.tls.connect(self.server_name, stream));
        let stream = handshake.await.map_err(|_| ConnectError::HandshakeTimeout)?;
        Ok(Wire(TokioIo::new(stream.map_err(|error| ConnectError::Tls(tls::words(&error)))?)))
    }
}

impl tower::Service<http::Uri> for Connector {
    type Response = Wire;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Wire, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    /// The URI says nothing that the peer does not.
    fn call(&mut self, _: http::Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

/// What HTTP is spoken over.
pub struct Wire(TokioIo<TlsStream<Box<dyn Stream>>>);

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
