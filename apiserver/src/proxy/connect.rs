//! One HTTP/1.1 request over one fresh TLS connection to a kubelet.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use skiff_api::Status;
use tokio::net::TcpStream;

use super::{Kubelet, NodeAddress};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

impl Kubelet {
    /// Sends the request and reads the head of the answer. The connection lives as long as the answer's body
    /// or the stream it is upgraded to.
    pub(super) async fn send(
        &self,
        to: NodeAddress,
        mut request: http::Request<Body>,
    ) -> Result<http::Response<Incoming>, Status> {
        let address = SocketAddr::new(to.ip, to.port);
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Status::internal(format!("error dialing backend {address}: {what}: {error}"))
        };
        let connect = async {
            let tcp = TcpStream::connect(address).await.map_err(|e| failed("connect", &e))?;
            tcp.set_nodelay(true).map_err(|e| failed("connect", &e))?;
            let connector = tokio_rustls::TlsConnector::from(self.tls.clone());
            connector.connect(ServerName::IpAddress(to.ip.into()), tcp).await.map_err(|e| failed("tls", &e))
        };
        let timed_out = |what: &str| failed(what, &"i/o timeout");
        let tls =
            tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| timed_out("connect"))??;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(|e| failed("http", &e))?;
        // Ends with the answer's body or the upgraded stream.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a kubelet");
            }
        });
        let host = http::HeaderValue::from_str(&address.to_string()).map_err(Status::internal)?;
        request.headers_mut().insert(http::header::HOST, host);
        let answer = sender.send_request(request);
        tokio::time::timeout(RESPONSE_TIMEOUT, answer)
            .await
            .map_err(|_| timed_out("response"))?
            .map_err(|e| failed("request", &e))
    }
}
