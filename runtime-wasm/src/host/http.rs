//! Serving a `wasi:http/proxy` component: HTTP/1.1 on the pod's address, a fresh instance a request.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::{Error as HttpError, WasiHttpView};

use super::guest::{ComponentState, Instances};
use super::log::Stream;
use super::ticker::Ticker;
use crate::compile::one_line;

const MAX_CONNECTIONS: usize = 1024;
/// Instances at once, so that one container does not use up its host's pool. Further requests wait.
const MAX_REQUESTS: usize = 128;
const MAX_HEADERS: usize = 128;
/// The request line and all headers.
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_BODY_BYTES: usize = 256 << 20;
const HEADER_PATIENCE: Duration = Duration::from_secs(30);
/// How long an instance may live, also after its response has been sent.
const REQUEST_PATIENCE: Duration = Duration::from_secs(900);
const BACKLOG: u32 = 1024;

type Body = UnsyncBoxBody<Bytes, HttpError>;

/// A component and what is needed to serve it.
pub(crate) struct Service {
    pub(crate) pre: ProxyPre<ComponentState>,
    pub(crate) instances: Instances,
    pub(crate) ticker: Ticker,
    requests: Semaphore,
}

impl Service {
    pub(crate) fn new(pre: ProxyPre<ComponentState>, instances: Instances, ticker: Ticker) -> Service {
        Service { pre, instances, ticker, requests: Semaphore::new(MAX_REQUESTS) }
    }
}

/// Listens on every address of the pod, IPv6 as well where the kernel has it.
pub(crate) fn listen(port: u16) -> std::io::Result<TcpListener> {
    let bind = |socket: std::io::Result<TcpSocket>, address: SocketAddr| {
        let socket = socket?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    // The IPv6 socket takes IPv4 too, unless the namespace says otherwise.
    let dual = std::fs::read_to_string("/proc/thread-self/net/if_inet6").is_ok_and(|text| !text.is_empty())
        && std::fs::read_to_string("/proc/sys/net/ipv6/bindv6only").is_ok_and(|text| text.trim() == "0");
    if dual && let Ok(listener) = bind(TcpSocket::new_v6(), (Ipv6Addr::UNSPECIFIED, port).into()) {
        return Ok(listener);
    }
    bind(TcpSocket::new_v4(), (Ipv4Addr::UNSPECIFIED, port).into())
}

/// Serves until `drain` turns true, then until the connections have ended that were open by then.
pub(crate) async fn serve(service: Arc<Service>, listener: TcpListener, mut drain: watch::Receiver<bool>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut open = JoinSet::new();
    let ended = |drain: &watch::Receiver<bool>| *drain.borrow();
    while !ended(&drain) {
        // All of these may be cancelled: a permit is given back, and no connection is taken that is not kept.
        let accepted = tokio::select! {
            accepted = async {
                let permit = connections.clone().acquire_owned().await;
                (listener.accept().await, permit)
            } => accepted,
            Some(_) = open.join_next() => continue,
            _ = drain.changed() => continue,
        };
        match accepted {
            (Ok((stream, _)), Ok(permit)) => {
                let (service, drain) = (service.clone(), drain.clone());
                open.spawn(async move {
                    _ = stream.set_nodelay(true);
                    connection(service, stream, drain).await;
                    drop(permit);
                });
            }
            // Out of descriptors, as a rule: what is open goes on, and new ones come when some have ended.
            (Err(err), _) => {
                tracing::warn!(%err, "accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            (Ok(_), Err(_)) => break,
        }
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

async fn connection(service: Arc<Service>, stream: tokio::net::TcpStream, mut drain: watch::Receiver<bool>) {
    let answer = service_fn(move |request| {
        let service = service.clone();
        async move { handle(service, request).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), answer);
    tokio::pin!(connection);
    tokio::select! {
        // A peer that breaks off or sends rubbish is its own business.
        _ = &mut connection => return,
        _ = drain.wait_for(|drain| *drain) => {}
    }
    connection.as_mut().graceful_shutdown();
    _ = connection.await;
}

async fn handle(service: Arc<Service>, request: Request<Incoming>) -> Result<Response<Body>, HttpError> {
    match respond(service.clone(), request).await {
        Ok(response) => Ok(response),
        Err(err) => {
            service.instances.log.say(Stream::Stderr, &format!("request failed: {}", one_line(&err)));
            let body = Full::new(Bytes::from_static(b"the Wasm component failed\n"));
            let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            Ok(response)
        }
    }
}

async fn respond(service: Arc<Service>, request: Request<Incoming>) -> wasmtime::Result<Response<Body>> {
    let mut store = service.instances.component_store()?;
    let too_large = |_| HttpError::HttpRequestBodySize(u64::try_from(MAX_BODY_BYTES).ok());
    let request = request.map(|body| Limited::new(body, MAX_BODY_BYTES).map_err(too_large));
    let (sender, receiver) = oneshot::channel();
    let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
    let out = store.data_mut().http().new_response_outparam(sender)?;

    let ticker = service.ticker.clone();
    // A task of its own: a guest may go on writing its body, and working, after the response has begun.
    let instance = tokio::spawn(async move {
        let _permit = service.requests.acquire().await?;
        let run = async {
            let proxy = service.pre.instantiate_async(&mut store).await?;
            proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out).await
        };
        tokio::time::timeout(REQUEST_PATIENCE, ticker.watch(run)).await?
    });
    // Until there is a response, a client that goes takes the instance along.
    let instance = AbortOnDropHandle::new(instance);
    match receiver.await {
        Ok(Ok(response)) => {
            instance.detach();
            Ok(response)
        }
        Ok(Err(code)) => Err(wasmtime::Error::msg(format!("the component answered with {code:?}"))),
        Err(_) => match instance.await {
            Ok(Ok(())) => Err(wasmtime::Error::msg("the component set no response")),
            Ok(Err(err)) => Err(err),
            Err(err) => Err(wasmtime::Error::msg(format!("the instance was ended: {err}"))),
        },
    }
}
