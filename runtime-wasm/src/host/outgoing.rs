//! `wasi:http/outgoing-handler` of WASI 0.2 and `wasi:http/client` of 0.3: requests that a guest sends, from within the pod's network namespace.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, timeout};
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody, WasiHttpHooks};

use super::descriptors::{Descriptors, One};
use super::written::Writings;

/// For the connection and for the answer's beginning, where the guest asks for no other. Between two parts of the answer any
/// time may pass unless it asks for one.
const PATIENCE: Duration = Duration::from_secs(600);

pub(crate) struct Outgoing {
    /// The container's: a connection takes one.
    pub(crate) descriptors: Arc<Descriptors>,
    /// The bodies that a guest of WASI 0.3 writes: of these requests, and of its response.
    pub(crate) writings: Writings,
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
        let request = request.map(|body| self.writings.begin(body).0.boxed_unsync());
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
    let (connect, first_byte, between_bytes) = match &options {
        Some(options) => (options.connect_timeout, options.first_byte_timeout, options.between_bytes_timeout),
        None => (None, None, None),
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
    let response = response.map(|body| match between_bytes {
        Some(patience) => Timely::new(body, patience).boxed_unsync(),
        None => body.map_err(Error::Hyper).boxed_unsync(),
    });
    Ok((response, Box::new(rest)))
}

/// An answer's body that fails if nothing comes for some time.
struct Timely {
    body: Incoming,
    patience: Duration,
    /// For the part that is waited for.
    late: Pin<Box<Sleep>>,
    is_waiting: bool,
}

impl Timely {
    fn new(body: Incoming, patience: Duration) -> Timely {
        Timely { body, patience, late: Box::pin(sleep(patience)), is_waiting: false }
    }
}

impl Body for Timely {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.is_waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(Error::Hyper)));
        }
        if !self.is_waiting {
            self.is_waiting = true;
            let deadline = Instant::now() + self.patience;
            self.late.as_mut().reset(deadline);
        }
        match self.late.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err(Error::ConnectionReadTimeout))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
