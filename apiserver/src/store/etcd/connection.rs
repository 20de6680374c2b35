//! The members of an etcd cluster, and how they are called.
//!
//! One connection a member, made when it is first needed and again whenever it is gone. One member is spoken to for as long as
//! it answers. What cannot have reached a member is sent to the next one; what may have reached one is repeated only where that
//! does no harm.

use std::error::Error;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, ConnectError, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::super::contract::{Revision, StoreError};
use super::options::{EtcdOptions, EtcdTls};
use super::wire::{self, WatchRequest, WatchResponse};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one member may take for an answer. Tests wait less, and read less.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });
/// How long a call goes on after the first member failed it: an election takes about a second.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);
/// A connection that is silent is looked at this often: not more often than etcd lets a client.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// What an answer, or a piece of a watch, may have. What is larger is asked for in smaller parts.
pub(super) const MAX_ANSWER_BYTES: usize = if cfg!(test) { 8 << 20 } else { 64 << 20 };
/// What may be on its way: with less, long answers wait for the way there and back again and again.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const WATCH_REQUESTS: usize = 4;

/// Whether a call may be repeated after a member may have seen it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    Harmless,
    No,
}

pub(super) struct Cluster {
    members: Vec<Member>,
    chosen: AtomicUsize,
}

struct Member {
    url: String,
    channel: Channel,
}

impl Cluster {
    /// # Errors
    /// If an endpoint is no URL of etcd, or the TLS files are none.
    pub(super) fn new(options: &EtcdOptions) -> Result<Cluster, StoreError> {
        let members = options
            .endpoints
            .iter()
            .map(|url| member(url, options.tls.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        if members.is_empty() {
            return Err(StoreError::Endpoint { endpoint: String::new(), reason: "there is none".into() });
        }
        Ok(Cluster { members, chosen: AtomicUsize::new(0) })
    }

    fn endpoints(&self) -> String {
        self.members.iter().map(|member| member.url.as_str()).collect::<Vec<_>>().join(", ")
    }

    pub(super) async fn call<Q, A>(&self, path: &'static str, request: Q, repeat: Repeat) -> Result<A, Fault>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let mut started: Option<Instant> = None;
        let mut at = self.chosen.load(Ordering::Relaxed);
        let mut turns = 0;
        loop {
            let attempt = attempt(&self.members[at % self.members.len()], path, request.clone());
            let fault = match tokio::time::timeout(ATTEMPT_TIMEOUT, attempt).await {
                Ok(Ok(answer)) => {
                    self.chosen.store(at % self.members.len(), Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(fault)) => fault,
                Err(_) => Fault::TimedOut,
            };
            let is_harmless = match &fault {
                Fault::NotSent(_) => true,
                Fault::Away(_) | Fault::TimedOut => repeat == Repeat::Harmless,
                _ => false,
            };
            turns += 1;
            let since = *started.get_or_insert_with(Instant::now);
            if !is_harmless || (since.elapsed() >= PATIENCE && turns >= self.members.len()) {
                return Err(fault);
            }
            at += 1;
            if turns % self.members.len() == 0 {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// A stream of changes from one member, and the way to ask for more. The member is another one each time that one fails.
    pub(super) async fn watch(
        &self,
        first: WatchRequest,
    ) -> Result<(mpsc::Sender<WatchRequest>, Streaming<WatchResponse>), Fault> {
        let at = self.chosen.load(Ordering::Relaxed) % self.members.len();
        let opened = tokio::time::timeout(ATTEMPT_TIMEOUT, open_watch(&self.members[at], first)).await;
        let opened = opened.unwrap_or(Err(Fault::TimedOut));
        if opened.is_err() {
            self.leave(at);
        }
        opened
    }

    /// Has the next call begin with another member, where `at` is still the chosen one.
    fn leave(&self, at: usize) {
        let next = (at + 1) % self.members.len();
        // Lost only where another call has moved on already.
        let _ = self.chosen.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The error of a fault that no caller knows better.
    pub(super) fn error(&self, operation: &'static str, fault: Fault) -> StoreError {
        let endpoints = || self.endpoints();
        match fault {
            Fault::NotSent(source) | Fault::Away(source) => {
                StoreError::Away { endpoints: endpoints(), source }
            }
            Fault::TimedOut => StoreError::TimedOut { endpoints: endpoints(), operation },
            Fault::Refused(source) => StoreError::Refused { endpoints: endpoints(), source },
            Fault::Full(source) => StoreError::Full { remedy: FULL, source },
            Fault::Busy => StoreError::Overloaded,
            other => StoreError::Etcd { operation, source: Arc::new(other) },
        }
    }

    /// What each member says of itself that says anything.
    ///
    /// # Errors
    /// If none does.
    pub(super) async fn versions(&self) -> Result<Vec<(String, String)>, Fault> {
        let asked = self.members.iter().map(|member| async move {
            let status = attempt::<_, wire::StatusResponse>(member, wire::STATUS, wire::StatusRequest {});
            let status = tokio::time::timeout(CONNECT_TIMEOUT, status).await.unwrap_or(Err(Fault::TimedOut));
            (member.url.clone(), status)
        });
        let (mut versions, mut last) = (Vec::new(), Fault::TimedOut);
        for (url, status) in futures::future::join_all(asked).await {
            match status {
                Ok(status) => versions.push((url, status.version)),
                Err(fault) => last = fault,
            }
        }
        if versions.is_empty() { Err(last) } else { Ok(versions) }
    }
}

const FULL: &str = "etcd has reached its quota of space: compact and defragment it, then `etcdctl alarm disarm`, or raise \
                    --quota-backend-bytes";

fn member(url: &str, tls: Option<&EtcdTls>) -> Result<Member, StoreError> {
    let refuse = |reason: String| StoreError::Endpoint { endpoint: url.to_owned(), reason };
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    if !matches!(scheme, Some("http" | "https")) {
        return Err(refuse("it has to begin with https:// or http://".into()));
    }
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| refuse(innermost(&e).to_string()))?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let endpoint = match (scheme, tls) {
        (Some("https"), tls) => {
            let none = EtcdTls::default();
            endpoint
                .tls_config(tls_config(tls.unwrap_or(&none)))
                .map_err(|e| refuse(innermost(&e).to_string()))?
        }
        (_, Some(_)) => return Err(refuse("TLS files are given, and it begins with http://".into())),
        (_, None) => endpoint,
    };
    Ok(Member { url: url.to_owned(), channel: endpoint.connect_lazy() })
}

fn tls_config(tls: &EtcdTls) -> ClientTlsConfig {
    let mut config = ClientTlsConfig::new().timeout(CONNECT_TIMEOUT);
    if let Some(ca) = &tls.ca_pem {
        config = config.ca_certificate(Certificate::from_pem(ca));
    }
    if let Some((certificate, key)) = &tls.client_pem {
        config = config.identity(Identity::from_pem(certificate, key));
    }
    config
}

async fn attempt<Q, A>(member: &Member, path: &'static str, request: Q) -> Result<A, Fault>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let mut client =
        tonic::client::Grpc::new(member.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
    client.ready().await.map_err(|e| Fault::of(Status::from_error(Box::new(e))))?;
    let request = led(Request::new(request));
    let codec = ProstCodec::<Q, A>::default();
    let answer = client.unary(request, PathAndQuery::from_static(path), codec).await;
    answer.map(tonic::Response::into_inner).map_err(Fault::of)
}

async fn open_watch(
    member: &Member,
    first: WatchRequest,
) -> Result<(mpsc::Sender<WatchRequest>, Streaming<WatchResponse>), Fault> {
    let (asks, asked) = mpsc::channel(WATCH_REQUESTS);
    // There is room: it is the first.
    let _ = asks.try_send(first);
    let mut client =
        tonic::client::Grpc::new(member.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
    client.ready().await.map_err(|e| Fault::of(Status::from_error(Box::new(e))))?;
    let request = led(Request::new(ReceiverStream::new(asked)));
    let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
    let opened = client.streaming(request, PathAndQuery::from_static(wire::WATCH), codec).await;
    Ok((asks, opened.map_err(Fault::of)?.into_inner()))
}

/// A member that has lost its leader refuses, instead of waiting for it.
fn led<T>(mut request: Request<T>) -> Request<T> {
    if let Ok(value) = MetadataValue::from_str("true") {
        request.metadata_mut().insert("hasleader", value);
    }
    request
}

/// Why a call came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Fault {
    /// It cannot have been seen by the member.
    #[error("the member cannot be reached")]
    NotSent(#[source] Arc<dyn Error + Send + Sync>),
    /// The member, or the leader, went away; it may have been carried out.
    #[error("the member went away")]
    Away(#[source] Arc<dyn Error + Send + Sync>),
    #[error("the member did not answer in time")]
    TimedOut,
    #[error("the member refuses who asks")]
    Refused(#[source] Arc<dyn Error + Send + Sync>),
    #[error("there is no space")]
    Full(#[source] Arc<dyn Error + Send + Sync>),
    #[error("there are too many requests")]
    Busy,
    #[error("the request is too large")]
    TooLarge,
    /// The answer is larger than is read.
    #[error("the answer is too long")]
    TooLong,
    #[error("the revision has been compacted")]
    Compacted,
    #[error("the revision is in the future")]
    Future,
    #[error("there is no such lease")]
    NoLease,
    #[error(transparent)]
    Other(Arc<Status>),
}

impl Fault {
    /// etcd tells faults of one code apart by their text alone: it is part of its protocol (`rpctypes`), as its own client
    /// reads it.
    pub(super) fn of(status: Status) -> Fault {
        if let Some(fault) = Fault::of_transport(&status) {
            return fault;
        }
        let text = status.message();
        match status.code() {
            Code::Unavailable => Fault::Away(Arc::new(status)),
            Code::DeadlineExceeded => Fault::TimedOut,
            Code::PermissionDenied | Code::Unauthenticated => Fault::Refused(Arc::new(status)),
            Code::ResourceExhausted if text.contains("database space exceeded") => {
                Fault::Full(Arc::new(status))
            }
            Code::ResourceExhausted if text.contains("too many requests") => Fault::Busy,
            // What gRPC itself says of a message that is larger than etcd reads.
            Code::ResourceExhausted if text.contains("larger than max") => Fault::TooLarge,
            Code::InvalidArgument if text.contains("request is too large") => Fault::TooLarge,
            Code::OutOfRange if text.contains("has been compacted") => Fault::Compacted,
            Code::OutOfRange if text.contains("is a future revision") => Fault::Future,
            // What gRPC here says of an answer that is larger than is read.
            Code::OutOfRange if text.contains("decoded message length too large") => Fault::TooLong,
            Code::NotFound if text.contains("lease not found") => Fault::NoLease,
            _ => Fault::Other(Arc::new(status)),
        }
    }

    /// What did not come from a member.
    fn of_transport(status: &Status) -> Option<Fault> {
        let mut cause = status.source()?;
        let (mut is_unsent, mut refused) = (false, None);
        loop {
            is_unsent |= cause.is::<ConnectError>();
            let tls = cause.downcast_ref::<rustls::Error>().or_else(|| {
                let io = cause.downcast_ref::<std::io::Error>()?;
                io.get_ref()?.downcast_ref::<rustls::Error>()
            });
            refused = refused.or(tls);
            match cause.source() {
                Some(next) => cause = next,
                None => break,
            }
        }
        if let Some(tls) = refused {
            return Some(Fault::Refused(Arc::new(tls.clone())));
        }
        let source: Arc<dyn Error + Send + Sync> = Arc::new(Transport(innermost(status).to_string()));
        Some(if is_unsent { Fault::NotSent(source) } else { Fault::Away(source) })
    }

    pub(super) fn compacted(requested: Revision) -> StoreError {
        StoreError::Compacted { requested, compacted: requested + 1 }
    }
}

/// What a connection failed with, without what its layers say around it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Transport(String);

fn innermost<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: Code, text: &str, expected: &str) {
        let fault = Fault::of(Status::new(code, text));
        let name = format!("{fault:?}");
        assert!(name.starts_with(expected), "{code:?} {text:?}: {name}");
    }

    #[test]
    fn faults_of_etcd_are_told_apart_as_its_own_client_does() {
        check(Code::Unavailable, "etcdserver: no leader", "Away");
        check(Code::Unavailable, "etcdserver: request timed out", "Away");
        check(Code::PermissionDenied, "etcdserver: permission denied", "Refused");
        check(Code::Unauthenticated, "etcdserver: invalid auth token", "Refused");
        check(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", "Full");
        check(Code::ResourceExhausted, "etcdserver: too many requests", "Busy");
        check(Code::InvalidArgument, "etcdserver: request is too large", "TooLarge");
        check(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", "Compacted");
        check(Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision", "Future");
        check(Code::NotFound, "etcdserver: requested lease not found", "NoLease");
        check(Code::FailedPrecondition, "etcdserver: not capable", "Other");
    }

    #[tokio::test]
    async fn endpoints_that_are_none_are_refused_with_the_reason() {
        let open = |url: &str, tls| member(url, tls).map(|_| ()).expect_err("is refused").to_string();
        assert!(open("a:2379", None).contains("has to begin with https://"), "{}", open("a:2379", None));
        assert!(open("unix:///a", None).contains("has to begin with https://"));
        let tls = EtcdTls::default();
        assert!(open("http://127.0.0.1:1", Some(&tls)).contains("TLS files are given"));
    }
}
