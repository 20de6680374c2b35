//! From a packet with a question to one with the answer.
//!
//! Aliases (Services of type ExternalName) are followed, inside the zone and beyond, until their end: most clients
//! take an answer that ends in an alias for "there is no such address".

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tracing::debug;

use super::MAX_PACKET_BYTES;
use super::zone::{Answer, Zone};

/// How long one resolver may take.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer may take, with all resolvers and aliases that it asks.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(8);
/// Aliases of aliases that are followed.
const MAX_ALIASES: usize = 8;
/// What a UDP client takes that does not say (RFC 1035, 4.2.1).
const MIN_UDP_BYTES: usize = 512;
/// What every path carries in one piece; larger answers are cut, so that clients ask again over TCP.
const MAX_UDP_BYTES: usize = 1232;
const HEADER_BYTES: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

pub(super) struct Resolver {
    pub(super) zone: Arc<RwLock<Zone>>,
    /// Of the moment.
    pub(super) upstreams: watch::Receiver<Vec<SocketAddr>>,
}

/// The resolvers outside did not answer, or the aliases never end.
struct Unresolved;

impl Resolver {
    /// The answer to one packet; `None` for what is no question at all.
    pub(super) async fn answer(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let Ok(question) = Message::from_vec(packet) else { return malformed(packet) };
        if question.metadata.message_type != MessageType::Query {
            return None;
        }
        let limit = limit(&question, transport);
        let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
        reply.metadata.recursion_desired = question.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.add_queries(question.queries.iter().cloned());
        reply.edns = question.edns.as_ref().map(ours);
        let code = match (question.metadata.op_code, question.queries.as_slice()) {
            _ if question.edns.as_ref().is_some_and(|edns| edns.version() > 0) => ResponseCode::BADVERS,
            (OpCode::Query, [query]) if query.query_class() != DNSClass::IN => ResponseCode::Refused,
            (OpCode::Query, [query]) => {
                let answer = self.zone.read().answer(query.name(), query.query_type());
                if matches!(answer, Answer::NotOurs) {
                    if let Some(answer) = self.forward(packet, transport).await {
                        return cut(answer, limit);
                    }
                    ResponseCode::ServFail
                } else {
                    let resolved = self.resolve(query, answer, &mut reply);
                    let resolved = tokio::time::timeout(QUESTION_TIMEOUT, resolved).await;
                    resolved.unwrap_or(Err(Unresolved)).unwrap_or(ResponseCode::ServFail)
                }
            }
            (OpCode::Query, _) => ResponseCode::FormErr,
            _ => ResponseCode::NotImp,
        };
        reply.metadata.response_code = code;
        fit(reply, limit)
    }

    /// Goes on from what the zone says of a name.
    async fn resolve(
        &self,
        query: &Query,
        mut answer: Answer,
        reply: &mut Message,
    ) -> Result<ResponseCode, Unresolved> {
        reply.metadata.authoritative = true;
        let type_ = query.query_type();
        let mut name = query.name().clone();
        for n_aliases in 0..=MAX_ALIASES {
            match answer {
                Answer::NoSuchName { soa } => {
                    reply.add_authority(soa);
                    let asked_for = n_aliases == 0;
                    return Ok(if asked_for { ResponseCode::NXDomain } else { ResponseCode::NoError });
                }
                Answer::Records { answers, additionals, soa } => {
                    if answers.is_empty() {
                        reply.add_authority(soa);
                    }
                    reply.add_answers(answers);
                    reply.add_additionals(additionals);
                    return Ok(ResponseCode::NoError);
                }
                Answer::Alias { record, target } => {
                    if reply.answers.iter().any(|r| r.name == record.name) {
                        return Err(Unresolved);
                    }
                    reply.add_answer(record);
                    name = target;
                    answer = self.zone.read().answer(&name, type_);
                }
                Answer::NotOurs => {
                    let found = self.look_up(&name, type_).await.ok_or(Unresolved)?;
                    reply.add_answers(found.answers);
                    return Ok(ResponseCode::NoError);
                }
            }
        }
        Err(Unresolved)
    }

    /// What the resolvers outside say of a name; `None` if none of them says anything.
    async fn look_up(&self, name: &Name, type_: RecordType) -> Option<Message> {
        let mut question = Message::query();
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(name.clone(), type_));
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_BYTES as u16);
        question.set_edns(edns);
        let packet = question.to_vec().ok()?;
        let mut found = Message::from_vec(&self.forward(&packet, Transport::Udp).await?).ok()?;
        if found.metadata.truncation {
            found = Message::from_vec(&self.forward(&packet, Transport::Tcp).await?).ok()?;
        }
        let said = [ResponseCode::NoError, ResponseCode::NXDomain].contains(&found.metadata.response_code);
        said.then_some(found)
    }

    /// Passes a question on, byte for byte.
    async fn forward(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let upstreams = self.upstreams.borrow().clone();
        for upstream in &upstreams {
            let asked = async {
                match transport {
                    Transport::Udp => ask_udp(*upstream, packet).await,
                    Transport::Tcp => ask_tcp(*upstream, packet).await,
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

/// How large the answer may be.
fn limit(question: &Message, transport: Transport) -> usize {
    match (transport, &question.edns) {
        (Transport::Tcp, _) => MAX_PACKET_BYTES,
        (Transport::Udp, None) => MIN_UDP_BYTES,
        (Transport::Udp, Some(edns)) => usize::from(edns.max_payload()).clamp(MIN_UDP_BYTES, MAX_UDP_BYTES),
    }
}

/// Our side of a client's EDNS (RFC 6891, 6.1.1; the DO bit is copied by RFC 3225).
fn ours(theirs: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP_BYTES as u16);
    edns.set_dnssec_ok(theirs.flags().dnssec_ok);
    edns
}

/// A question that cannot be read is said to be so, if it can be told from an answer.
fn malformed(packet: &[u8]) -> Option<Vec<u8>> {
    let header = packet.get(..HEADER_BYTES)?;
    let is_question = header[2] & 0x80 == 0;
    let id = u16::from_be_bytes([header[0], header[1]]);
    let reply = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    is_question.then(|| reply.to_vec().ok()).flatten()
}

/// Cuts somebody else's answer to what the client takes.
fn cut(answer: Vec<u8>, limit: usize) -> Option<Vec<u8>> {
    if answer.len() <= limit {
        return Some(answer);
    }
    fit(Message::from_vec(&answer).ok()?, limit)
}

/// Encodes as much of a reply as the client takes: additional records are left out first, which needs no mention, then
/// as many of the others as must be, which does.
fn fit(mut reply: Message, limit: usize) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    reply.additionals.clear();
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    reply.metadata.truncation = true;
    reply.authorities.clear();
    let answers = std::mem::take(&mut reply.answers);
    // With no answers at all, the question alone always fits.
    let mut fits = reply.to_vec().ok()?;
    let (mut n_fit, mut n_too_many) = (0, answers.len() + 1);
    while n_too_many - n_fit > 1 {
        let n_answers = n_fit.midpoint(n_too_many);
        reply.answers = answers[..n_answers].to_vec();
        let bytes = reply.to_vec().ok()?;
        if bytes.len() <= limit {
            (n_fit, fits) = (n_answers, bytes);
        } else {
            n_too_many = n_answers;
        }
    }
    Some(fits)
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
        if length >= HEADER_BYTES && buffer[..2] == packet[..2] {
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

#[cfg(test)]
mod tests;
