//! Cluster DNS: the names of Services and pods, and a forwarder for the rest.
//!
//! [`zone`] answers questions from what the informers hold; this file owns the sockets. One task reads UDP, one
//! accepts TCP; each question is a task of its own, of which there is a bounded number.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;
use skiff_client::{Informer, Informers};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use zone::{Answer, Zone};

mod zone;

#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// Where to listen: the cluster's DNS address and port 53.
    pub bind: SocketAddr,
    /// `cluster.local`.
    pub domain: String,
    /// Resolvers for everything outside the cluster, tried in order; may be empty.
    pub upstreams: Vec<IpAddr>,
}

/// See the module's documentation.
pub struct ClusterDns {
    zone: Arc<RwLock<Zone>>,
    upstreams: Arc<[IpAddr]>,
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

/// Questions that may be under way at once.
const MAX_QUESTIONS: usize = 1000;
const MAX_TCP_CONNECTIONS: usize = 100;
/// How long one resolver may take.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Larger answers are cut, so that clients ask again over TCP; what every path carries.
const MAX_UDP_BYTES: usize = 1232;
const MAX_PACKET_BYTES: usize = 65_535;

impl ClusterDns {
    /// Binds the sockets and follows the Services.
    pub async fn start(config: DnsConfig, informers: &Informers) -> Result<ClusterDns, DnsError> {
        let error = |source| DnsError { address: config.bind, source };
        let udp = UdpSocket::bind(config.bind).await.map_err(error)?;
        let tcp = TcpListener::bind(config.bind).await.map_err(error)?;
        let zone = Arc::new(RwLock::new(Zone::new(&config.domain)));
        let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
        let to = zone.clone();
        services.on_change(move |change| to.write().service_changed(change));
        let to = zone.clone();
        slices.on_change(move |change| to.write().slice_changed(change));
        Ok(ClusterDns { zone, services, slices, upstreams: config.upstreams.into(), udp: Arc::new(udp), tcp })
    }

    /// Answers until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        // Until the zone is complete, a name that is missing proves nothing; questions wait in the sockets.
        tokio::select! {
            () = async { self.services.synced().await; self.slices.synced().await; } => {}
            () = shutdown.cancelled() => return,
        }
        let questions = Arc::new(Semaphore::new(MAX_QUESTIONS));
        let connections = Arc::new(Semaphore::new(MAX_TCP_CONNECTIONS));
        let resolver = Arc::new(Resolver { zone: self.zone, upstreams: self.upstreams });
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        loop {
            tokio::select! {
                // All arms only wait: a packet or connection is taken out when it is returned.
                received = self.udp.recv_from(&mut buffer) => match received {
                    Ok((length, client)) => {
                        // A question too many is dropped: the client asks again.
                        let Ok(permit) = questions.clone().try_acquire_owned() else { continue };
                        let (question, resolver, socket) = (buffer[..length].to_vec(), resolver.clone(), self.udp.clone());
                        tokio::spawn(async move {
                            if let Some(answer) = resolver.answer(&question, Transport::Udp).await
                                && let Err(error) = socket.send_to(&answer, client).await
                            {
                                debug!(%client, %error, "a DNS answer could not be sent");
                            }
                            drop(permit);
                        });
                    }
                    // ICMP errors of earlier answers surface here.
                    Err(error) => debug!(%error, "receiving a DNS question"),
                },
                accepted = self.tcp.accept() => match accepted {
                    Ok((stream, _)) => {
                        let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
                        let resolver = resolver.clone();
                        tokio::spawn(async move {
                            if let Err(error) = serve_tcp(stream, &resolver).await {
                                debug!(%error, "a DNS connection ended");
                            }
                            drop(permit);
                        });
                    }
                    Err(error) => warn!(%error, "accepting a DNS connection"),
                },
                () = shutdown.cancelled() => return,
            }
        }
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
        stream.write_u16(length).await?;
        stream.write_all(&answer).await?;
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Transport {
    Udp,
    Tcp,
}

struct Resolver {
    zone: Arc<RwLock<Zone>>,
    upstreams: Arc<[IpAddr]>,
}

impl Resolver {
    /// The answer to one packet; `None` for what is no question at all.
    async fn answer(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let question = Message::from_vec(packet).ok()?;
        if question.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
        reply.metadata.recursion_desired = question.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.add_queries(question.queries.iter().cloned());
        let code = match (question.metadata.op_code, question.queries.as_slice()) {
            (OpCode::Query, [query]) => {
                let answer = self.zone.read().answer(query.name(), query.query_type());
                match answer {
                    Answer::NotOurs => {
                        if let Some(answer) = self.forward(packet, transport).await {
                            return Some(answer);
                        }
                        ResponseCode::ServFail
                    }
                    Answer::NoSuchName { soa } => {
                        reply.metadata.authoritative = true;
                        reply.add_authority(soa);
                        ResponseCode::NXDomain
                    }
                    Answer::Records { answers, additionals, soa } => {
                        reply.metadata.authoritative = true;
                        if answers.is_empty() {
                            reply.add_authority(soa);
                        }
                        reply.add_answers(answers);
                        reply.add_additionals(additionals);
                        ResponseCode::NoError
                    }
                }
            }
            (OpCode::Query, _) => ResponseCode::FormErr,
            _ => ResponseCode::NotImp,
        };
        reply.metadata.response_code = code;
        let bytes = reply.to_vec().ok()?;
        if transport == Transport::Udp && bytes.len() > MAX_UDP_BYTES {
            return reply.truncate().to_vec().ok();
        }
        Some(bytes)
    }

    /// Passes a question on, byte for byte.
    async fn forward(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        for upstream in self.upstreams.iter() {
            let address = SocketAddr::new(*upstream, 53);
            let asked = async {
                match transport {
                    Transport::Udp => ask_udp(address, packet).await,
                    Transport::Tcp => ask_tcp(address, packet).await,
                }
            };
            match tokio::time::timeout(UPSTREAM_TIMEOUT, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => debug!(%upstream, %error, "a resolver did not answer"),
                Err(_) => debug!(%upstream, "a resolver did not answer in time"),
            }
        }
        None
    }
}

async fn ask_udp(address: SocketAddr, packet: &[u8]) -> io::Result<Vec<u8>> {
    let local: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    // A socket, and so a port, for each question: forged answers must guess both.
    let socket = UdpSocket::bind(local).await?;
    socket.connect(address).await?;
    socket.send(packet).await?;
    let mut buffer = vec![0; MAX_PACKET_BYTES];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // The first two bytes are the question's ID.
        if length >= 12 && buffer[..2] == packet[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(address: SocketAddr, packet: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_u16(u16::try_from(packet.len()).map_err(io::Error::other)?).await?;
    stream.write_all(packet).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
