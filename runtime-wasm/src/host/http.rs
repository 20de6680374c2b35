//! Serving a component of `wasi:http`: HTTP/1 and HTTP/2 on the pod's address, a fresh instance a request.
//!
//! ```text
//!  listener ─▶ connection ─▶ request ─▶ admission ─▶ instance, a task of its own ─▶ response
//!              1,024;         400 if     a place and      ends with the guest, its      closed as incomplete
//!              the silent     its Host   memory, else     client, or the time it        unless the guest
//!              give way       is not     503              is given                      came to its end
//!                             right
//! ```
//!
//! # Guarantees
//! - Whoever gets a response that looks complete has all that the guest wrote. A guest that traps, is ended or takes too long
//!   after its response has begun leaves it cut: HTTP/1 without the last chunk or the promised length, HTTP/2 reset.
//! - A response may take for ever. Clients that say nothing, that hardly send or take anything or that have gone give way when
//!   others need their places, and not before.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, RETRY_AFTER};
use http::uri::Authority;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::{Error as HttpError, WasiBody, WasiHttpView};

use super::admission::{Admission, Full, Place};
use super::body::{Download, Exchange, Upload};
use super::budget::{LimitReached, Part, TooManyMemories};
use super::guest::{Guest, GuestError, Instances, Made};
use super::handler;
use super::log::{self, failure};
use super::stream::{Client, Connection, Stream, UnderWay, Version};
use super::ticker::Ticker;

const MAX_CONNECTIONS: usize = 1024;
const MAX_HEADERS: usize = 128;
/// The request line and all headers.
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEAD_BYTES_HTTP2: u32 = 64 << 10;
/// Requests at once on one connection of HTTP/2.
const MAX_STREAMS: u32 = 128;
/// What one may send before its guest reads it, on one stream of HTTP/2 and on all of a connection.
const WINDOW_BYTES: u32 = 256 << 10;
/// What is kept for it of a response that it does not take.
const MAX_UNSENT_BYTES: usize = 64 << 10;
/// How long a connection may be silent before its first and between its requests.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);
/// HTTP/2 has the other side say that it is there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long an instance may go on when its response is over, or when nobody takes it any more.
const AFTERWARDS: Duration = Duration::from_secs(60);
/// How long nothing may be sent to a client that sends no more itself: as a rule it is not there any more.
const HALF_CLOSED_PATIENCE: Duration = Duration::from_secs(30);
/// After this an instance is taken to have shown what it needs.
pub(crate) const SETTLED_AFTER: Duration = Duration::from_secs(5);
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// A full server says so once in this time.
const SAY_PAUSE: Duration = Duration::from_secs(10);
const BACKLOG: u32 = 1024;

type Body = UnsyncBoxBody<Bytes, HttpError>;

/// A component and what is needed to serve it.
pub(crate) struct Service {
    guest: Arc<Guest>,
    instances: Instances,
    ticker: Ticker,
    admission: Admission,
    request_timeout: Option<Duration>,
    /// Those under way.
    exchanges: Mutex<HashMap<u64, Arc<Exchange>>>,
    n_exchanges: AtomicU64,
    said_full: Mutex<Option<Instant>>,
}

impl Service {
    pub(crate) fn new(guest: Arc<Guest>, instances: Instances, ticker: Ticker) -> Service {
        Service {
            guest,
            admission: Admission::new(instances.budget.clone()),
            request_timeout: instances.spec.request_timeout_ms.map(Duration::from_millis),
            instances,
            ticker,
            exchanges: Mutex::default(),
            n_exchanges: AtomicU64::new(0),
            said_full: Mutex::default(),
        }
    }

    fn say(&self, line: &str) {
        self.instances.log.say(log::Stream::Stderr, line);
    }

    /// The client that has let its guest wait for the longest gives its place to one that waits for it.
    fn ask_to_give_way(&self) {
        let exchanges = self.exchanges.lock();
        let slow = exchanges.values().filter_map(|exchange| Some((exchange.slow_for()?, exchange)));
        if let Some((_, slowest)) = slow.max_by_key(|(waited, _)| *waited) {
            slowest.gives_way.notify_one();
        }
    }

    fn say_full(&self, full: &Full) {
        let mut said = self.said_full.lock();
        if said.is_none_or(|at| at.elapsed() > SAY_PAUSE) {
            *said = Some(Instant::now());
            self.say(&format!("request refused (503): {full}"));
        }
    }
}

/// An exchange under way, known to its server.
struct Registered {
    service: Arc<Service>,
    number: u64,
    exchange: Arc<Exchange>,
}

impl Registered {
    fn new(service: &Arc<Service>) -> Registered {
        let exchange = Arc::new(Exchange::default());
        let number = service.n_exchanges.fetch_add(1, Ordering::Relaxed);
        service.exchanges.lock().insert(number, exchange.clone());
        Registered { service: service.clone(), number, exchange }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.service.exchanges.lock().remove(&self.number);
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

/// The connections of a server.
#[derive(Default)]
struct Connections {
    open: Mutex<HashMap<u64, Arc<Connection>>>,
}

impl Connections {
    /// Closes the one that has been silent for the longest.
    fn ask_to_give_way(&self) {
        let open = self.open.lock();
        let idle = open.values().filter_map(|connection| Some((connection.idle_since()?, connection)));
        if let Some((_, longest)) = idle.min_by_key(|(since, _)| *since) {
            longest.gives_way.notify_one();
        }
    }

    async fn place(&self, places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        loop {
            match places.clone().try_acquire_owned() {
                Ok(place) => return Some(place),
                Err(_) => self.ask_to_give_way(),
            }
            match timeout(LOOK_PAUSE, places.clone().acquire_owned()).await {
                Ok(place) => return place.ok(),
                Err(_) => continue,
            }
        }
    }
}

/// Serves until `drain` turns true, then until the connections have ended that were open by then.
pub(crate) async fn serve(service: Arc<Service>, listener: TcpListener, mut drain: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = Arc::new(Connections::default());
    let mut open = JoinSet::new();
    let mut n_accepted: u64 = 0;
    // One that was accepted and has no place yet.
    let mut next: Option<TcpStream> = None;
    let ended = |drain: &watch::Receiver<bool>| *drain.borrow();
    while !ended(&drain) {
        // All of these may be cancelled: a connection is taken, and a place, only when they are returned.
        let place = tokio::select! {
            accepted = listener.accept(), if next.is_none() => {
                match accepted {
                    Ok((stream, _)) => next = Some(stream),
                    // Out of descriptors, as a rule: what is open goes on, and new ones come when some have ended.
                    Err(err) => {
                        tracing::warn!(%err, "accept");
                        sleep(Duration::from_millis(50)).await;
                    }
                }
                continue;
            }
            place = connections.place(&places), if next.is_some() => place,
            Some(_) = open.join_next() => continue,
            _ = drain.changed() => continue,
        };
        let (Some(place), Some(stream)) = (place, next.take()) else { break };
        n_accepted += 1;
        let (number, connection) = (n_accepted, Connection::new(Stream::new(stream)));
        connections.open.lock().insert(number, connection.clone());
        let (service, drain, connections) = (service.clone(), drain.clone(), connections.clone());
        open.spawn(async move {
            serve_one(service, connection, drain).await;
            connections.open.lock().remove(&number);
            drop(place);
        });
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

async fn serve_one(service: Arc<Service>, connection: Arc<Connection>, mut drain: watch::Receiver<bool>) {
    let gives_way = connection.gives_way.notified();
    tokio::pin!(gives_way);
    let version = tokio::select! {
        version = timeout(HEADER_PATIENCE, connection.stream.version()) => version,
        _ = drain.wait_for(|drain| *drain) => return,
        () = &mut gives_way => return,
    };
    let Ok(Some(version)) = version else { return };
    let stream = connection.stream.clone();
    let of_request = connection.clone();
    let answer = service_fn(move |request| {
        let (service, under_way) = (service.clone(), of_request.request());
        let stream = of_request.stream.clone();
        async move { Ok::<_, HttpError>(handle(service, stream, under_way, request).await) }
    });
    match version {
        Version::Http1 => {
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .half_close(true)
                .header_read_timeout(HEADER_PATIENCE)
                .max_headers(MAX_HEADERS)
                .max_buf_size(MAX_HEAD_BYTES)
                .serve_connection(stream, answer);
            drive(serving, |serving| serving.graceful_shutdown(), drain, gives_way).await;
        }
        Version::Http2 => {
            let serving = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .max_header_list_size(MAX_HEAD_BYTES_HTTP2)
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .max_send_buf_size(MAX_UNSENT_BYTES)
                .keep_alive_interval(PING_INTERVAL)
                .serve_connection(stream, answer);
            drive(serving, |serving| serving.graceful_shutdown(), drain, gives_way).await;
        }
    }
}

/// Until the connection ends, others need its place, or all requests are answered that it had when the server was to end.
async fn drive<C: Future>(
    serving: C,
    shut: impl FnOnce(Pin<&mut C>),
    mut drain: watch::Receiver<bool>,
    gives_way: impl Future<Output = ()>,
) {
    tokio::pin!(serving);
    tokio::select! {
        // A peer that breaks off or sends rubbish is its own business.
        _ = &mut serving => return,
        () = gives_way => return,
        _ = drain.wait_for(|drain| *drain) => {}
    }
    shut(serving.as_mut());
    _ = serving.await;
}

/// Why an instance was ended, or ended itself, before its guest was done.
#[derive(Debug)]
enum Cut {
    Failed(wasmtime::Error),
    TookTooLong(Duration),
    Afterwards,
    ClientGone,
    GaveWay,
}

impl Cut {
    /// What is said to a client that was told nothing yet.
    fn status(&self, exchange: &Exchange) -> (StatusCode, &'static str) {
        match self {
            Cut::Failed(err) if err.is::<LimitReached>() || err.is::<TooManyMemories>() => {
                (StatusCode::SERVICE_UNAVAILABLE, "the Wasm component has no memory for the request\n")
            }
            // The guest did what it could with what is no body.
            Cut::Failed(_) if exchange.is_broken() => {
                (StatusCode::BAD_REQUEST, "the request's body is malformed\n")
            }
            Cut::Failed(_) | Cut::Afterwards => {
                (StatusCode::INTERNAL_SERVER_ERROR, "the Wasm component failed\n")
            }
            Cut::TookTooLong(_) => (StatusCode::GATEWAY_TIMEOUT, "the Wasm component took too long\n"),
            Cut::ClientGone | Cut::GaveWay => {
                (StatusCode::REQUEST_TIMEOUT, "the request did not come in time\n")
            }
        }
    }

    fn say(&self, service: &Service, has_answered: bool) {
        let what = if has_answered { "response cut short" } else { "request failed" };
        match self {
            Cut::Failed(err) => {
                let failure = failure(err);
                service.say(&format!("{what}: {}", failure.reason));
                service.instances.log.say_all(log::Stream::Stderr, &failure.backtrace);
            }
            Cut::TookTooLong(timeout) => {
                service.say(&format!("{what}: it took longer than {} s", timeout.as_secs_f64()));
            }
            Cut::Afterwards => service
                .say(&format!("instance ended: it ran for {} s after its response", AFTERWARDS.as_secs())),
            Cut::GaveWay => service.say(&format!("{what}: its client was slow, and others waited")),
            Cut::ClientGone => {}
        }
    }
}

/// A response, or the error code that the guest answered with.
pub(super) type Answered = Result<Response<WasiBody>, String>;

async fn handle(
    service: Arc<Service>,
    stream: Stream,
    under_way: UnderWay,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let version = request.version();
    let mut response = match check_host(&mut request, &stream) {
        Ok(()) => respond(service, stream, under_way, request).await,
        Err(why) => plain(StatusCode::BAD_REQUEST, why),
    };
    if response.status() == StatusCode::REQUEST_TIMEOUT && version < http::Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// RFC 9112, 3.2: HTTP/1.1 says whom it asks, once. HTTP/1.0 need not, and asks whoever has the address then.
fn check_host(request: &mut Request<Incoming>, stream: &Stream) -> Result<(), &'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (host, further) = (hosts.next(), hosts.next());
    if further.is_some() {
        return Err("the request has more than one Host header\n");
    }
    if let Some(host) = host {
        let is_valid =
            |host: &str| host.is_empty() || (!host.contains('@') && host.parse::<Authority>().is_ok());
        return match host.to_str().is_ok_and(is_valid) {
            true => Ok(()),
            false => Err("the request's Host header names no host\n"),
        };
    }
    match request.version() {
        http::Version::HTTP_2 if request.uri().authority().is_some() => return Ok(()),
        http::Version::HTTP_09 | http::Version::HTTP_10 => {}
        _ => return Err("the request has no Host header\n"),
    }
    let address = stream.local_address().map_or_else(String::new, |address| address.to_string());
    let host = HeaderValue::from_str(&address).map_err(|_| "the request has no Host header\n")?;
    request.headers_mut().insert(HOST, host);
    Ok(())
}

async fn respond(
    service: Arc<Service>,
    stream: Stream,
    under_way: UnderWay,
    request: Request<Incoming>,
) -> Response<Body> {
    let place = match service.admission.enter(|| service.ask_to_give_way()).await {
        Ok(place) => place,
        Err(full) => {
            service.say_full(&full);
            let mut response =
                plain(StatusCode::SERVICE_UNAVAILABLE, "the Wasm component has its hands full\n");
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return response;
        }
    };
    let version = request.version();
    let registered = Registered::new(&service);
    let (exchange, held) = (registered.exchange.clone(), place.part.held.clone());
    let (sender, receiver) = oneshot::channel();
    let (over, is_over) = oneshot::channel();
    let progress = Arc::new(AtomicU64::new(0));
    let running = Running {
        service: service.clone(),
        place,
        registered,
        under_way,
        // HTTP/2 notices by itself.
        stream: (version < http::Version::HTTP_2).then(|| stream.clone()),
        progress: progress.clone(),
        is_over,
    };
    // A task of its own: a guest may go on writing its body, and working, after the response has begun. Until there is
    // one, a client that goes takes the instance along.
    let task = AbortOnDropHandle::new(tokio::spawn(running.run(request, sender)));
    match receiver.await {
        Ok(Ok(response)) => {
            task.detach();
            let to_the_end = (version < http::Version::HTTP_11).then_some(stream);
            response
                .map(|body| Download::new(body, to_the_end, progress, exchange, held, over).boxed_unsync())
        }
        Ok(Err(code)) => {
            service.say(&format!("request failed: the component answered with {code}"));
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the Wasm component failed\n")
        }
        Err(_) => {
            let (status, text) = match task.await {
                Ok(Err(cut)) => cut.status(&exchange),
                Ok(Ok(())) => {
                    service.say("request failed: the component set no response");
                    (StatusCode::INTERNAL_SERVER_ERROR, "the Wasm component failed\n")
                }
                Err(err) => {
                    service.say(&format!("request failed: the instance was ended: {err}"));
                    (StatusCode::INTERNAL_SERVER_ERROR, "the Wasm component failed\n")
                }
            };
            drop(over);
            plain(status, text)
        }
    }
}

/// What a request's instance is run with.
struct Running {
    service: Arc<Service>,
    place: Place,
    registered: Registered,
    under_way: UnderWay,
    stream: Option<Stream>,
    /// Grows when something is sent.
    progress: Arc<AtomicU64>,
    is_over: oneshot::Receiver<()>,
}

impl Running {
    async fn run(self, request: Request<Incoming>, sender: oneshot::Sender<Answered>) -> Result<(), Cut> {
        let Running { service, place, registered, under_way: _under_way, stream, progress, is_over } = self;
        let exchange = &registered.exchange;
        let request = request.map(|body| Upload::new(body, exchange.clone(), place.part.held.clone()));
        let has_answered = Arc::new(AtomicBool::new(false));
        let answered = has_answered.clone();
        let answer = move |answer| {
            answered.store(true, Ordering::Relaxed);
            // The client may have gone.
            _ = sender.send(answer);
        };
        let part = &place.part;
        let guest = async {
            let (mut running, made) = service.guest.component(&service.instances, part).await?;
            match made {
                Made::Http(proxy) => {
                    let mut view = running.store.data_mut().http();
                    let request = view.new_incoming_request(Scheme::Http, request)?;
                    let answer = |answered: Result<_, ErrorCode>| {
                        answer(answered.map_err(|code| format!("{code:?}")));
                    };
                    let out = view.new_response_outparam_from_callback(answer)?;
                    proxy.wasi_http_incoming_handler().call_handle(&mut running.store, request, out).await?;
                }
                Made::Http3(service) => {
                    handler::handle(&mut running, &service, request, answer, progress.clone()).await?;
                }
                Made::Command(_) | Made::Command3(_) => return Err(GuestError::NoEntry.into()),
            }
            running.has_returned();
            Ok(())
        };
        let mut guest = service.ticker.watch(part.clone(), guest);
        let result = tokio::select! {
            biased;
            done = &mut guest => done.map_err(Cut::Failed),
            () = exchange.gives_way.notified() => {
                Err(if exchange.is_gone() { Cut::ClientGone } else { Cut::GaveWay })
            }
            cut = too_long(service.request_timeout) => Err(cut),
            never = settle(part) => match never {},
            () = gone(stream, &progress, exchange) => Err(Cut::ClientGone),
            cut = afterwards(is_over) => Err(cut),
        };
        if let Err(cut) = &result {
            cut.say(&service, has_answered.load(Ordering::Relaxed));
        }
        result
    }
}

/// Never ends; an instance that lives for long gives back what it turned out not to need.
async fn settle(part: &Part) -> Infallible {
    sleep(SETTLED_AFTER).await;
    part.settle();
    std::future::pending().await
}

/// Never ends if nobody has asked for a limit.
async fn too_long(limit: Option<Duration>) -> Cut {
    match limit {
        Some(limit) => {
            sleep(limit).await;
            Cut::TookTooLong(limit)
        }
        None => std::future::pending().await,
    }
}

/// Begins when the response is over.
async fn afterwards(is_over: oneshot::Receiver<()>) -> Cut {
    // Nothing is ever sent: whoever could is dropped.
    _ = is_over.await;
    sleep(AFTERWARDS).await;
    Cut::Afterwards
}

/// Ends when the client is gone, or sends no more and is sent nothing.
async fn gone(stream: Option<Stream>, progress: &AtomicU64, exchange: &Exchange) {
    let Some(stream) = stream else { return std::future::pending().await };
    let mut silent: Option<(Instant, u64)> = None;
    loop {
        sleep(LOOK_PAUSE).await;
        let now = progress.load(Ordering::Relaxed);
        silent = match stream.client() {
            Client::There => None,
            Client::Gone => return,
            Client::HalfClosed => {
                silent.filter(|(_, then)| *then == now).or_else(|| Some((Instant::now(), now)))
            }
        };
        let since = silent.map(|(since, _)| since);
        exchange.half_closed(since);
        if since.is_some_and(|since| since.elapsed() >= HALF_CLOSED_PATIENCE) {
            return;
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let body = http_body_util::Full::new(Bytes::from_static(text.as_bytes()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
