//! Cluster DNS: the names of Services and pods, and a forwarder for the rest.
//!
//! [`zone`] answers questions from what the informers hold; [`resolver`] makes answers of them and asks others; this
//! file owns the sockets. One task reads UDP, one accepts TCP; each question and each connection is a task of its
//! own, of which there is a bounded number.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;
use skiff_client::{Informer, Informers};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use resolver::{Resolver, Transport};
use zone::Zone;

mod resolver;
mod zone;

#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// Where to listen: the cluster's DNS address and port 53.
    pub bind: SocketAddr,
    /// `cluster.local`.
    pub domain: String,
    /// Resolvers for everything outside the cluster, tried in order; may be empty, and may become others.
    pub upstreams: watch::Receiver<Vec<SocketAddr>>,
}

/// See the module's documentation.
pub struct ClusterDns {
    zone: Arc<RwLock<Zone>>,
    namespaces: Informer<Namespace>,
    upstreams: watch::Receiver<Vec<SocketAddr>>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot listen for DNS on {address}")]
pub struct DnsError {
    address: SocketAddr,
    source: io::Error,
}

/// Questions over UDP that may be under way at once.
const MAX_QUESTIONS: usize = 1000;
const MAX_TCP_CONNECTIONS: usize = 100;
/// How long a client may be silent, or leave an answer unread.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Without free file descriptors or memory, a socket fails at once, again and again.
const SOCKET_REST: Duration = Duration::from_millis(50);
const MAX_PACKET_BYTES: usize = 65_535;

impl ClusterDns {
    /// Binds the sockets and follows the Services.
    pub async fn start(config: DnsConfig, informers: &Informers) -> Result<ClusterDns, DnsError> {
        let error = |source| DnsError { address: config.bind, source };
        let udp = Arc::new(UdpSocket::bind(config.bind).await.map_err(error)?);
        let tcp = TcpListener::bind(config.bind).await.map_err(error)?;
        let zone = Arc::new(RwLock::new(Zone::new(&config.domain, config.bind.ip())));
        let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
        let (namespaces, to) = (informers.of::<Namespace>(), zone.clone());
        namespaces.on_change(move |change| to.write().namespace_changed(change));
        let to = zone.clone();
        services.on_change(move |change| to.write().service_changed(change));
        let to = zone.clone();
        slices.on_change(move |change| to.write().slice_changed(change));
        let upstreams = config.upstreams;
        Ok(ClusterDns { zone, namespaces, services, slices, upstreams, udp, tcp })
    }

    /// Answers until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        // Until the zone is complete, a name that is missing proves nothing; questions wait in the sockets.
        tokio::select! {
            () = async {
                self.namespaces.synced().await;
                self.services.synced().await;
                self.slices.synced().await;
            } => {}
            () = shutdown.cancelled() => return,
        }
        let resolver = Arc::new(Resolver { zone: self.zone, upstreams: self.upstreams });
        tokio::select! {
            // Neither ends; what they have started goes on for as long as a question may take.
            () = serve_udp(self.udp, resolver.clone()) => {}
            () = accept_tcp(self.tcp, resolver) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, resolver: Arc<Resolver>) {
    let questions = Arc::new(Semaphore::new(MAX_QUESTIONS));
    let mut buffer = vec![0; MAX_PACKET_BYTES];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                debug!(%error, "receiving a DNS question");
                tokio::time::sleep(SOCKET_REST).await;
                continue;
            }
        };
        // A question too many is dropped: the client asks again.
        let Ok(permit) = questions.clone().try_acquire_owned() else { continue };
        let (question, resolver, socket) = (buffer[..length].to_vec(), resolver.clone(), socket.clone());
        tokio::spawn(async move {
            if let Some(answer) = resolver.answer(&question, Transport::Udp).await
                && let Err(error) = socket.send_to(&answer, client).await
            {
                debug!(%client, %error, "a DNS answer could not be sent");
            }
            drop(permit);
        });
    }
}

async fn accept_tcp(listener: TcpListener, resolver: Arc<Resolver>) {
    let connections = Arc::new(Semaphore::new(MAX_TCP_CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "accepting a DNS connection");
                tokio::time::sleep(SOCKET_REST).await;
                continue;
            }
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
        let resolver = resolver.clone();
        tokio::spawn(async move {
            if let Err(error) = serve_tcp(stream, &resolver).await {
                debug!(%error, "a DNS connection ended");
            }
            drop(permit);
        });
    }
}

/// Each message is preceded by its length in two bytes (RFC 1035, 4.2.2).
async fn serve_tcp(mut stream: TcpStream, resolver: &Resolver) -> io::Result<()> {
    loop {
        let length = match tokio::time::timeout(TCP_IDLE, stream.read_u16()).await {
            Ok(Ok(length)) => usize::from(length),
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        let mut question = vec![0; length];
        tokio::time::timeout(TCP_IDLE, stream.read_exact(&mut question)).await??;
        let Some(answer) = resolver.answer(&question, Transport::Tcp).await else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let message = [&length.to_be_bytes()[..], &answer].concat();
        // One that does not read must not hold a connection for ever.
        tokio::time::timeout(TCP_IDLE, stream.write_all(&message)).await??;
    }
}
