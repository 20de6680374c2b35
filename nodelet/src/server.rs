//! The node API: what the API server asks of a node, and what others ask that the API allows to (`access.rs`), over TLS. There is no
//! other port and no unauthenticated path.

mod access;
mod exposition;
mod logs;
mod pages;
mod places;
mod resource_metrics;
mod streams;
mod tls;
mod usage;
mod volumes;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{any, get};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::Pod;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::config::ServerTls;
use crate::error::Error;
use crate::pods::PodIndex;
use crate::worker::Shared;
use access::{Access, Peer};
use places::{Place, Places};

const HANDSHAKE: Duration = Duration::from_secs(10);
/// For the head of a request, and for the next one on a connection.
const HEAD: Duration = Duration::from_secs(60);
/// Between signs of life, nine of which may be missed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Of a request; only a volume's has one.
const MAX_BODY_BYTES: usize = 4 << 10;
/// More connections than this wait: the API server shares few.
const MAX_CONNECTIONS: usize = 1024;
/// Of those that are not the API server's; more are closed.
const MAX_OTHERS: usize = 256;

pub(crate) struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    port: u16,
}

/// What the handlers work on.
#[derive(Clone)]
pub(crate) struct Api {
    shared: Arc<Shared>,
    index: PodIndex,
}

impl Server {
    pub(crate) async fn bind(address: SocketAddr, tls: &ServerTls) -> Result<Server, Error> {
        let config = tls::server_config(tls)?;
        let listen = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let port = listener.local_addr().map_err(listen)?.port();
        Ok(Server { listener, acceptor: TlsAcceptor::from(Arc::new(config)), port })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) async fn serve(self, api: Api) {
        let router = router(api);
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let doors = Doors { places: Places::default(), others: Arc::new(Semaphore::new(MAX_OTHERS)) };
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let Some(place) = doors.places.take(peer.ip()) else {
                        tracing::debug!(%peer, "too many connections of one address to the node API");
                        continue;
                    };
                    let (acceptor, router, others) =
                        (self.acceptor.clone(), router.clone(), doors.others.clone());
                    tokio::spawn(async move {
                        if let Err(error) = connection(acceptor, stream, router, place, others).await {
                            tracing::debug!(%peer, error, "a connection to the node API failed");
                        }
                        drop(permit);
                    });
                }
                // Out of descriptors, most likely: accepting again at once would only spin.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the node API");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Where connections wait that are not the API server's.
struct Doors {
    places: Places,
    others: Arc<Semaphore>,
}

/// A client that is gone without a word is noticed: a stream may say nothing for hours.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
    Ok(sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE)?)
}

async fn connection(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    router: Router,
    place: Place,
    others: Arc<Semaphore>,
) -> Result<(), String> {
    prepare(&stream).map_err(|e| e.to_string())?;
    let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
    let stream =
        handshake.map_err(|_| "the TLS handshake took too long".to_owned())?.map_err(|e| e.to_string())?;
    let peer = tls::peer(stream.get_ref().1.peer_certificates());
    let _held = match peer {
        Peer::Trusted => {
            drop(place);
            None
        }
        Peer::Certified(_) | Peer::Unknown => {
            let other = others.try_acquire_owned().map_err(|_| "too many others are connected".to_owned())?;
            Some((place, other))
        }
    };
    let service = router.map_request(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        request
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    let serving =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    serving.await.map_err(|e| e.to_string())
}

fn router(api: Api) -> Router {
    let access = Arc::new(Access::new(api.shared.client.clone(), &api.shared.config.node_name));
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/pods", get(pages::pods))
        .route("/runningpods/", get(pages::running_pods))
        .route("/metrics", get(pages::metrics))
        .route("/metrics/resource", get(resource_metrics::page))
        .route("/stats/summary", get(pages::summary))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::container_logs))
        .route("/exec/{namespace}/{pod}/{container}", any(streams::exec::exec))
        .route("/attach/{namespace}/{pod}/{container}", any(streams::attach::attach))
        .route("/portForward/{namespace}/{pod}", any(streams::port_forward::port_forward))
        .route("/volumes/{name}", get(volumes::get).put(volumes::put).delete(volumes::delete))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(api)
        // What is not there needs permission too.
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(axum::middleware::from_fn_with_state(access, access::guard))
}

/// A boolean of a query, as the API's options are decoded: absent is false, and so are "false" in any case and "0".
/// Everything else is true, an empty value too.
fn query_flag(value: Option<&str>) -> bool {
    value.is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
}

/// A status and what the caller reads.
type Refusal = (StatusCode, String);

/// A container that a request names.
struct Found {
    pod: Arc<Pod>,
    container: String,
}

impl Api {
    pub(crate) fn new(shared: Arc<Shared>, index: PodIndex) -> Api {
        Api { shared, index }
    }

    fn find(&self, namespace: &str, pod: &str, container: &str) -> Result<Found, Refusal> {
        let found = self.index.read().get(&(namespace.to_owned(), pod.to_owned())).cloned();
        let missing = |text: String| (StatusCode::NOT_FOUND, text);
        let found =
            found.ok_or_else(|| missing(format!("pod {pod:?} not found in namespace {namespace:?}\n")))?;
        match crate::pod::find_container(&found, container) {
            Some(spec) => Ok(Found { container: spec.name.clone(), pod: found.clone() }),
            None => Err(missing(format!("container {container:?} not found in pod {pod:?}\n"))),
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
