//! `wasi:http/outgoing-handler`: requests that a guest sends, from within the pod's network namespace.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use tokio::net::TcpStream;
use tokio::time::timeout;
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody, WasiHttpHooks};

use super::descriptors::{Descriptors, One};

/// Where the guest asks for no other.
const PATIENCE: Duration = Duration::from_secs(600);

pub(crate) struct Outgoing {
    /// The container's: a connection takes one.
    pub(crate) descriptors: Arc<Descriptors>,
}

type Sent = (Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Sent>> + Send> {
        let place = self.descriptors.one();
        Box::new(async move {
            let place = place.ok_or(Error::ConnectionLimitReached)?;
            send(request, options, place).await
        })
    }
}

async fn send(mut request: Request<WasiBody>, options: Option<RequestOptions>, place: One) -> Result<Sent> {
    // No TLS yet, and an answer in the clear is not what the guest asked for.
    if request.uri().scheme() == Some(&Scheme::HTTPS) {
        return Err(Error::TlsProtocolError);
    }
    let authority = request.uri().authority().ok_or(Error::HttpRequestUriInvalid)?;
    let address = (authority.host().trim_matches(['[', ']']).to_owned(), authority.port_u16().unwrap_or(80));
    let (connect, first_byte) = match &options {
        Some(options) => (options.connect_timeout, options.first_byte_timeout),
        None => (None, None),
    };
    let stream = timeout(connect.unwrap_or(PATIENCE), TcpStream::connect(address))
        .await
        .map_err(|_| Error::ConnectionTimeout)?
        .map_err(Error::Connect)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Error::Hyper)?;
    // A server is asked for a path; only a proxy would be asked for a whole URI.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;
    let mut connection = Box::pin(connection);
    let answer = async {
        tokio::select! {
            response = sender.send_request(request) => response.map_err(Error::Hyper),
            ended = &mut connection => Err(ended.err().map_or(Error::ConnectionTerminated, Error::Hyper)),
        }
    };
    let response =
        timeout(first_byte.unwrap_or(PATIENCE), answer).await.map_err(|_| Error::ConnectionReadTimeout)??;
    let rest = async move {
        let ended = connection.await.map_err(Error::Hyper);
        drop(place);
        ended
    };
    Ok((response.map(|body| body.map_err(Error::Hyper).boxed_unsync()), Box::new(rest)))
}
