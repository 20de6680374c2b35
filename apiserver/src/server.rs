//! The server: started from a [`Config`], served on a listener or called in process.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::DATE;
use http::{HeaderValue, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use parking_lot::{Mutex, RwLock};
use rustix::net::sockopt;
use rustls_pki_types::UnixTime;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::assembly;
use crate::auth::authenticate::{PeerAddress, PeerCertificate};
use crate::auth::{UserInfo, shared_keys};
use crate::bootstrap::{Bootstrap, Trusted};
use crate::cache::Detail;
use crate::config::{Config, Error};
use crate::lapsed::NodeCertificate;
use crate::limits::connections::{self, Connections, FIRST_REQUEST};
use crate::pipeline::Pipeline;
use crate::retry::follow;
use crate::servers::Advertised;
use crate::threads::{Class, Classes, Movable, Threads};
use crate::tls::{self, Accepting, FrontProxyConfig, Shown};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long requests may take to end once the server is told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Upstream's `--http2-max-streams-per-connection`.
const MAX_STREAMS: u32 = 250;
const MAX_HEADER_BYTES: u32 = 64 << 10;
/// Between signs of life, nine of which may be missed.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(15);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// A running API server. Cloning shares it.
#[derive(Clone)]
pub struct ApiServer {
    pipeline: Arc<Pipeline>,
    bootstrap: Arc<Bootstrap>,
    /// Ends watches and streams.
    shutdown: CancellationToken,
    tls: Option<Accepting>,
    /// What it shows to kubelets.
    kubelet_client: Arc<Shown>,
    /// What it shows to API servers behind it.
    front_proxy: Option<Arc<Shown>>,
    /// Where it was reached when it started.
    advertised: Advertised,
    /// Where it is reached now.
    address: Arc<RwLock<SocketAddr>>,
    /// Kept until the server is closed: a mutation goes on there when nobody waits for it.
    threads: Arc<Mutex<Vec<Threads>>>,
    on_long_thread: fn(),
    /// Ends the dispatcher of the caches.
    closed: CancellationToken,
}

impl ApiServer {
    /// Fills the caches and makes sure that the cluster's first objects exist. Answers in-process calls from
    /// then on; see [`ApiServer::serve`] for the network.
    pub async fn start(config: Config) -> Result<ApiServer, Error> {
        let on_long_thread = config.on_long_thread;
        let closed = CancellationToken::new();
        let address = Arc::new(RwLock::new(SocketAddr::new(config.advertise, config.port)));
        let advertised = Advertised { ip: config.advertise, port: config.port, cidr: config.service_cidr };
        let front_proxy = config.front_proxy.as_ref();
        let tls = config.tls.as_ref().map(|config| tls::server(config, front_proxy)).transpose()?;
        let client_ca = config.tls.as_ref().map(|tls| String::from_utf8_lossy(&tls.client_ca_pem));
        let published = client_ca.map(|client_ca| Trusted::new(&client_ca, front_proxy));
        let parts = assembly::assemble(config, &address, &closed).await?;
        parts.bootstrap.run(advertised, &parts.policy).await.map_err(Error::Bootstrap)?;
        if let Some(trusted) = published {
            parts.bootstrap.publish_trusted(&trusted).await.map_err(Error::Bootstrap)?;
        }
        // What was served before is served from the first request on.
        if let Err(status) = parts.definitions.serve(&closed).await {
            tracing::error!(%status, "not all custom resources are served yet");
        }
        if let Err(status) = parts.aggregator.keep(&closed).await {
            tracing::error!(%status, "not all APIServices are there yet");
        }
        let authorization = parts.pipeline.registry.authorizer.clone();
        tokio::spawn(parts.reload.follow(authorization, closed.clone()));
        tokio::spawn(follow(parts.definitions, closed.clone()));
        tokio::spawn(follow(parts.aggregator, closed.clone()));
        tokio::spawn(follow(parts.type_checks, closed.clone()));
        let (usage, stop) = (parts.usage, closed.clone());
        tokio::spawn(async move { usage.run(stop).await });
        tokio::spawn(follow(parts.bootstrap.flow.clone(), closed.clone()));
        let servers = parts.bootstrap.servers.clone();
        if let Some(after) = parts.keys_as_of {
            let registry = &parts.bootstrap.registry;
            let (store, tokens) = (registry.objects.store.clone(), parts.tokens);
            tokio::spawn(shared_keys::follow(store, tokens, after, closed.clone()));
            tokio::spawn(registry.services.clone().repair(closed.clone()));
            tokio::spawn(servers.keep_announcing(address.clone(), advertised, closed.clone()));
        }
        Ok(ApiServer {
            pipeline: parts.pipeline,
            bootstrap: Arc::new(parts.bootstrap),
            shutdown: parts.shutdown,
            tls,
            kubelet_client: parts.kubelet_client,
            front_proxy: parts.front_proxy,
            advertised,
            address,
            threads: Arc::default(),
            on_long_thread,
            closed,
        })
    }

    /// Serves HTTPS until `shutdown`, then lets requests end and watches be closed.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
        let accepting = self.tls.clone().ok_or(Error::NoTls)?;
        let threads = Threads::start(self.on_long_thread).map_err(Error::Threads)?;
        let classes = threads.classes.clone();
        self.threads.lock().push(threads);
        let connections = TaskTracker::new();
        let places = Arc::new(Connections::default());
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    let Some(place) = places.open(address.ip()) else {
                        tracing::debug!(%address, "too many connections");
                        continue;
                    };
                    let connection = Connection {
                        address: PeerAddress(address),
                        place,
                        pipeline: self.pipeline.clone(),
                        shutdown: shutdown.clone(),
                    };
                    let met =
                        connection.meet(accepting.clone(), stream, classes.clone(), connections.clone());
                    connections.spawn_on(met, &classes.doors);
                }
                Err(error) => {
                    // Out of descriptors, or a connection that went away: others may still come.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
        self.shutdown.cancel();
        connections.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
            tracing::warn!("requests were still running when the server stopped");
        }
        Ok(())
    }

    /// The same API in process, as `user`.
    pub fn service_for(&self, user: UserInfo) -> ApiService {
        ApiService { pipeline: self.pipeline.clone(), user, detail: Detail::Whole }
    }

    /// Shows another certificate to clients that connect from here on.
    ///
    /// # Errors
    /// Where it is not one with its key, or where the server listens nowhere; it then shows the last one.
    pub fn renew_serving(&self, certificate_chain_pem: &[u8], key_pem: &[u8]) -> Result<(), Error> {
        let accepting = self.tls.as_ref().ok_or(Error::NoTls)?;
        Ok(accepting.shown.replace(certificate_chain_pem, key_pem)?)
    }

    /// Has discovery and the endpoints of the `kubernetes` Service show another address: the machine has been renumbered.
    ///
    /// # Errors
    /// Where they cannot be written; they then show the last one.
    pub async fn advertise(&self, ip: IpAddr) -> Result<(), Error> {
        let advertised = Advertised { ip, ..self.advertised };
        let before = std::mem::replace(&mut *self.address.write(), SocketAddr::new(ip, advertised.port));
        self.bootstrap.servers.announce(advertised).await.map_err(Error::Bootstrap)?;
        if before.ip() != ip {
            self.bootstrap.servers.withdraw(Advertised { ip: before.ip(), ..advertised }).await;
        }
        Ok(())
    }

    /// Publishes whose certificates count here, for extension API servers: of clients, and of front proxies if there are any.
    ///
    /// # Errors
    /// Where it cannot be written; what was published last stays.
    pub async fn publish_authorities(
        &self,
        client_ca_pem: &str,
        front_proxy: Option<&FrontProxyConfig>,
    ) -> Result<(), Error> {
        self.bootstrap
            .publish_trusted(&Trusted::new(client_ca_pem, front_proxy))
            .await
            .map_err(Error::Bootstrap)
    }

    /// Shows another certificate to API servers behind this one from here on.
    ///
    /// # Errors
    /// Where it is not one with its key, or where the server has none to begin with; it then shows the last one.
    pub fn renew_front_proxy(&self, certificate_pem: &[u8], key_pem: &[u8]) -> Result<(), Error> {
        let shown = self.front_proxy.as_ref().ok_or(Error::NoFrontProxy)?;
        Ok(shown.replace(certificate_pem, key_pem)?)
    }

    /// Shows another certificate to kubelets from here on.
    ///
    /// # Errors
    /// Where it is not one with its key; it then shows the last one.
    pub fn renew_kubelet_client(&self, certificate_pem: &[u8], key_pem: &[u8]) -> Result<(), Error> {
        Ok(self.kubelet_client.replace(certificate_pem, key_pem)?)
    }

    /// Ends all watches, the caches and the store. Calls made later fail.
    pub async fn close(&self) {
        self.shutdown.cancel();
        // While the caches still follow: this is a write like others.
        let ip = self.address.read().ip();
        self.bootstrap.servers.withdraw(Advertised { ip, ..self.advertised }).await;
        self.closed.cancel();
        self.pipeline.registry.objects.store.close().await;
        self.threads.lock().clear();
    }
}

/// A client that is gone without a word is noticed: a watch or a stream may say nothing for hours.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, TCP_KEEP_ALIVE)?;
    Ok(sockopt::set_tcp_keepintvl(stream, TCP_KEEP_ALIVE)?)
}

/// One accepted connection.
struct Connection {
    address: PeerAddress,
    place: Arc<connections::Connection>,
    pipeline: Arc<Pipeline>,
    shutdown: CancellationToken,
}

impl Connection {
    /// Finds out who comes, and hands the connection to the threads of that class.
    async fn meet(self, accepting: Accepting, stream: TcpStream, classes: Classes, connections: TaskTracker) {
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "cannot set the options of a connection");
        }
        let handshake =
            tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting.acceptor.accept(Movable::new(stream)));
        let handshake = tokio::select! {
            () = self.place.ended.cancelled() => return tracing::debug!("a connection makes room for another"),
            handshake = handshake => handshake,
        };
        let mut stream = match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
            Err(_) => return tracing::debug!("TLS handshake timed out"),
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certificate = chain.first();
        let vouched = accepting.authorities.vouched(chain);
        let peer = certificate.map(|certificate| PeerCertificate::new(certificate, vouched));
        // A front proxy is no node, whatever its name.
        let certificate = certificate.filter(|_| vouched.as_client);
        let node = certificate.zip(peer.as_ref()).and_then(|(der, peer)| NodeCertificate::of(der, peer));
        let socket = match stream.get_mut().0.detach() {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!(%error, "cannot hand a connection over"),
        };
        let class = Class::of(peer.as_ref().and_then(|peer| peer.user_at(UnixTime::now())));
        connections.spawn_on(
            async move {
                match stream.get_mut().0.attach(socket) {
                    Ok(()) => self.run(stream, peer, node, class).await,
                    Err(error) => tracing::warn!(%error, "cannot hand a connection over"),
                }
            },
            classes.threads(class),
        );
    }

    async fn run(
        self,
        stream: TlsStream<Movable>,
        peer: Option<PeerCertificate>,
        node: Option<NodeCertificate>,
        class: Class,
    ) {
        let (pipeline, address, place) = (self.pipeline.clone(), self.address, self.place.clone());
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            place.note_request();
            let (pipeline, peer, node, place) = (pipeline.clone(), peer.clone(), node.clone(), place.clone());
            async move {
                let mut request = request.map(Body::new);
                // Nothing that comes from outside names itself.
                request.extensions_mut().remove::<UserInfo>();
                request.extensions_mut().insert(address);
                request.extensions_mut().insert(place);
                request.extensions_mut().insert(class);
                if let Some(peer) = peer {
                    request.extensions_mut().insert(peer);
                }
                if let Some(node) = node {
                    request.extensions_mut().insert(node);
                }
                let mut response = Box::pin(pipeline.serve(request)).await;
                if let Some(date) = date() {
                    response.headers_mut().entry(DATE).or_insert(date);
                }
                Ok::<_, Infallible>(response)
            }
        });
        let builder = http_builder();
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        // Whatever protocol it will speak: until a request has come, nothing else ends a connection that is silent.
        let silent = async {
            tokio::time::sleep(FIRST_REQUEST).await;
            if self.place.has_asked() {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = silent => return tracing::debug!("a connection without a request in time"),
            () = self.place.ended.cancelled() => {
                connection.as_mut().graceful_shutdown();
                // What it has asked is answered; it is not waited for without end.
                match tokio::time::timeout(DRAIN_TIMEOUT, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return tracing::debug!("a connection that had to make room did not end"),
                }
            }
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error = error.to_string(), "connection ended");
        }
    }
}

/// The time, as HTTP writes it. What the HTTP library would write it takes from a copy that it makes anew when that is a second
/// old: a clock that is set back by an hour leaves it wrong for an hour, and nodes go by it.
fn date() -> Option<HeaderValue> {
    const PRINTER: DateTimePrinter = DateTimePrinter::new();
    let text = PRINTER.timestamp_to_rfc9110_string(&Timestamp::now()).ok()?;
    HeaderValue::from_str(&text).ok()
}

fn http_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES as usize);
    builder
        .http2()
        .auto_date_header(false)
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        // Streams that a client resets at once still cost; past this many the connection is closed
        // (CVE-2023-44487).
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(256)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    builder
}

/// The API in process, for one user: a `tower` service, as kube's client takes it.
#[derive(Clone)]
pub struct ApiService {
    pipeline: Arc<Pipeline>,
    user: UserInfo,
    detail: Detail,
}

impl ApiService {
    /// The same, where lists and watches leave out `managedFields`: they are often half of an object, and informers drop them.
    #[must_use]
    pub fn without_managers(self) -> ApiService {
        ApiService { detail: Detail::WithoutManagers, ..self }
    }
}

impl<B> tower::Service<Request<B>> for ApiService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<tower::BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let pipeline = self.pipeline.clone();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.user.clone());
        request.extensions_mut().insert(self.detail);
        Box::pin(async move { Ok(Box::pin(pipeline.serve(request)).await) })
    }
}
