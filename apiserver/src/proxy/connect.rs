//! One HTTP/1.1 request over one fresh connection, with or without TLS.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DIAL: &str = "dial tcp";

/// Where a request goes: an address that was checked, and is dialled as it was checked.
pub(super) struct Backend {
    pub(super) address: SocketAddr,
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
    /// How long the head of an answer may take.
    pub(super) response_timeout: Duration,
    /// Where the connections of the node come from that is asked, if that is somewhere else.
    pub(super) origin: Option<IpAddr>,
}

/// Why there is no answer. The causes are part of the sentences, which become those of a `Status`.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("dial tcp {address}: {cause}")]
    Dial { address: SocketAddr, cause: std::io::Error },
    #[error("TLS handshake with {address}: {cause}")]
    Tls { address: SocketAddr, cause: std::io::Error },
    #[error("{what} {address}: i/o timeout")]
    TimedOut { what: &'static str, address: SocketAddr },
    #[error("request to {address}: {cause}")]
    Http { address: SocketAddr, cause: hyper::Error },
}

impl SendError {
    /// Whether nobody, or somebody else, was met on the way.
    fn is_of_the_way(&self) -> bool {
        match self {
            SendError::Dial { .. } | SendError::Tls { .. } => true,
            SendError::TimedOut { what, .. } => *what == DIAL,
            SendError::Http { .. } => false,
        }
    }
}

impl Backend {
    /// Why there is no answer, and what of the way there is known.
    pub(super) fn explain(&self, error: &SendError) -> String {
        let origin = self.origin.filter(|_| error.is_of_the_way());
        let hint = origin.map(|origin| behind(self.address, origin));
        format!("{error}{}", hint.unwrap_or_default())
    }

    /// Sends the request and reads the head of the answer. The connection lives as long as the answer's body
    /// or the stream it is upgraded to.
    pub(super) async fn send(
        &self,
        request: http::Request<Body>,
    ) -> Result<http::Response<Incoming>, SendError> {
        let address = self.address;
        let http = |cause| SendError::Http { address, cause };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.connect()).await;
        let mut sender = connected.map_err(|_| SendError::TimedOut { what: DIAL, address })??;
        let answer = tokio::time::timeout(self.response_timeout, sender.send_request(request)).await;
        answer.map_err(|_| SendError::TimedOut { what: "awaiting headers of", address })?.map_err(http)
    }

    async fn connect(&self) -> Result<SendRequest<Body>, SendError> {
        let address = self.address;
        let dial = |cause| SendError::Dial { address, cause };
        let tcp = TcpStream::connect(address).await.map_err(dial)?;
        tcp.set_nodelay(true).map_err(dial)?;
        let opened = match &self.tls {
            None => open(tcp).await,
            Some(tls) => {
                let connector = tokio_rustls::TlsConnector::from(tls.clone());
                let name = ServerName::IpAddress(address.ip().into());
                let stream = connector.connect(name, tcp).await;
                open(stream.map_err(|cause| SendError::Tls { address, cause })?).await
            }
        };
        opened.map_err(|cause| SendError::Http { address, cause })
    }
}

async fn open<S>(stream: S) -> hyper::Result<SendRequest<Body>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer's body or the upgraded stream.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a backend");
        }
    });
    Ok(sender)
}

/// Why a node that reports may still not be reached, and what to do about it.
fn behind(address: SocketAddr, origin: IpAddr) -> String {
    format!(
        " (the node reaches this server from {origin}: it is behind NAT, which logs, exec and proxy cannot cross yet; route \
         {address} to the node, or give it an address with --node-ip that this server can reach)"
    )
}
