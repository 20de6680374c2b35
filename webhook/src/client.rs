//! The client that calls webhooks: one `POST` of a JSON document, one document back.
//!
//! ```text
//! ClientConfig ─▶ Client ─ 200 peers, least recently used ─▶ Peer ─ idle connections ─ Connector ─▶ Resolver, TLS ─▶ webhook
//! ```
//!
//! # Guarantees
//! - A webhook that is away, slow, lying or endless costs the request that called it, and no more than its time-out and
//!   [`Limits::max_response_bytes`].
//! - No redirect is followed. An answer that is an error is never repeated, but for the message of a `Status`.
//! - Connections are HTTP/1.1, so that a Service spreads them, and kept for [`IDLE_TIMEOUT`].
//!
//! Source: `k8s.io/apiserver/pkg/util/webhook` and client-go's `rest`.

mod answer;
mod config;
mod connect;
mod fault;
mod tls;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::ServerName;
use tokio::time::Instant;

pub(crate) use answer::Answer;
pub use config::{ClientConfig, ConfigError, Identity, Target};
pub use connect::{ConnectError, Connector, DialError, Resolver, Stream, dial};
pub use fault::of_request;
pub(crate) use fault::{BodyError, CallError, PostError};
pub use tls::verifier;

use config::{Address, Way};

/// As many peers are remembered as upstream does.
const MAX_PEERS: usize = 200;
const MAX_IDLE_CONNECTIONS: usize = 25;
/// As long is a connection kept that nobody uses.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// A webhook that asks to be called again later is, as often as this, within the time of the call.
const MAX_RETRIES: usize = 10;
const AGENT: &str = "kube-apiserver-admission";

/// Calls webhooks. Cheap to share, and meant to be.
pub struct Client {
    resolver: Arc<dyn Resolver>,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    peers: Mutex<Peers>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// What one call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// When the answer must be there.
    pub(crate) deadline: Instant,
    pub(crate) max_response_bytes: usize,
}

/// The peers that were called last.
#[derive(Default)]
struct Peers {
    by_key: HashMap<PeerKey, (Arc<Peer>, u64)>,
    now: u64,
}

/// Whoever differs in this is another peer. Webhooks at several paths are one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PeerKey {
    way: Way,
    authority: String,
    ca_bundle: Vec<u8>,
    identity: Option<Arc<Identity>>,
}

/// Whom connections are made to.
struct Peer {
    http: HttpClient<Connector, Full<Bytes>>,
    identity: Option<Arc<Identity>>,
}

impl Client {
    /// A client that reaches webhooks through `resolver` and trusts nobody but the authorities of each webhook.
    pub fn new(resolver: Arc<dyn Resolver>, provider: Arc<CryptoProvider>) -> Client {
        Client { resolver, provider, roots: Arc::new(RootCertStore::empty()), peers: Mutex::default() }
    }

    /// Trusted for webhooks whose configuration has no CA bundle.
    pub fn roots(mut self, roots: RootCertStore) -> Client {
        self.roots = Arc::new(roots);
        self
    }

    /// Whether a webhook can be called at all.
    ///
    /// # Errors
    /// What every call would fail with, whoever is there.
    pub fn check(&self, config: &ClientConfig) -> Result<(), ConfigError> {
        self.peer(config, &Address::of(&config.target)?).map(drop)
    }

    /// Sends a document and reads the answer.
    pub(crate) async fn post(
        &self,
        config: &ClientConfig,
        body: Bytes,
        limits: Limits,
    ) -> Result<Answer, CallError> {
        let address = Address::of(&config.target)?;
        let peer = self.peer(config, &address)?;
        let left = limits.deadline.saturating_duration_since(Instant::now());
        let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        let url = address.url(seconds);
        let mut n_retries = 0;
        loop {
            let head =
                tokio::time::timeout_at(limits.deadline, peer.send(&url, &address.authority, body.clone()))
                    .await;
            let post = |cause| CallError::Post { url: url.clone(), cause };
            let head = head.map_err(|_| post(PostError::Deadline))?.map_err(post)?;
            match retry_after(&head) {
                Some(delay) if n_retries < MAX_RETRIES => {
                    n_retries += 1;
                    let again = Instant::now().checked_add(delay).filter(|again| *again < limits.deadline);
                    tokio::time::sleep_until(again.unwrap_or(limits.deadline)).await;
                    if again.is_none() {
                        return Err(post(PostError::Deadline));
                    }
                }
                _ => {
                    let read =
                        tokio::time::timeout_at(limits.deadline, read(head, limits.max_response_bytes));
                    return read.await.unwrap_or(Err(BodyError::Deadline)).map_err(CallError::Body);
                }
            }
        }
    }

    fn peer(&self, config: &ClientConfig, address: &Address) -> Result<Arc<Peer>, ConfigError> {
        let (way, authority) = (address.way.clone(), address.authority.clone());
        let (ca_bundle, identity) = (config.ca_bundle.clone(), config.identity.clone());
        let key = PeerKey { way, authority, ca_bundle, identity };
        let known = self.peers.lock().get(&key);
        if let Some(peer) = known {
            return Ok(peer);
        }
        // Made outside of the lock: reading certificates takes its time.
        let peer = Arc::new(self.connect_to(address, config)?);
        self.peers.lock().insert(key, peer.clone());
        Ok(peer)
    }

    fn connect_to(&self, address: &Address, config: &ClientConfig) -> Result<Peer, ConfigError> {
        let identity = config.identity.clone();
        let certificate = identity.as_deref().and_then(|identity| identity.certificate.as_ref());
        let tls = tls::config(&config.ca_bundle, &self.roots, certificate, &self.provider)?;
        let name = identity.as_deref().and_then(|identity| identity.server_name.as_ref());
        let name = name.unwrap_or(&address.host);
        let server_name = ServerName::try_from(name.clone()).map_err(|_| ConfigError::Url {
            why: format!("{name:?} is no name that a certificate could be for"),
        })?;
        let connector = Connector {
            resolver: self.resolver.clone(),
            way: Arc::new(address.way.clone()),
            host: address.host.as_str().into(),
            port: address.port,
            server_name,
            tls: tokio_rustls::TlsConnector::from(Arc::new(tls)),
        };
        let http = HttpClient::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
            .build(connector);
        Ok(Peer { http, identity })
    }
}

impl Peers {
    fn get(&mut self, key: &PeerKey) -> Option<Arc<Peer>> {
        self.now += 1;
        let (peer, used) = self.by_key.get_mut(key)?;
        *used = self.now;
        Some(peer.clone())
    }

    fn insert(&mut self, key: PeerKey, peer: Arc<Peer>) {
        if self.by_key.len() >= MAX_PEERS {
            let oldest = self.by_key.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.by_key.remove(&oldest);
            }
        }
        self.now += 1;
        self.by_key.insert(key, (peer, self.now));
    }
}

impl Peer {
    async fn send(
        &self,
        url: &str,
        authority: &str,
        body: Bytes,
    ) -> Result<http::Response<Incoming>, PostError> {
        let identity = self.identity.as_deref();
        let mut request = http::Request::post(url)
            .header(HOST, authority)
            .header(USER_AGENT, identity.map_or(AGENT, |identity| &identity.agent))
            .header(ACCEPT, "application/json, */*")
            .header(CONTENT_TYPE, "application/json");
        if let Some(authorization) = identity.and_then(|identity| identity.authorization.as_deref()) {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(body)).map_err(|error| PostError::Http(error.to_string()))?;
        self.http.request(request).await.map_err(|error| {
            let why = fault::of_request(&error);
            if fault::is_reset(&error) { PostError::Reset(why) } else { PostError::Http(why) }
        })
    }
}

/// How long an overloaded webhook asks to be left alone.
fn retry_after<B>(head: &http::Response<B>) -> Option<Duration> {
    let status = head.status().as_u16();
    if status != 429 && status < 500 {
        return None;
    }
    let seconds: i64 = head.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

async fn read(head: http::Response<Incoming>, max_bytes: usize) -> Result<Answer, BodyError> {
    let status = head.status().as_u16();
    let content_type = head.headers().get(CONTENT_TYPE);
    let content_type = content_type.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let body = Limited::new(head.into_body(), max_bytes).collect().await;
    let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
        Ok(error) => BodyError::Http(fault::of_http(&error, "unexpected EOF")),
        Err(error) if error.is::<LengthLimitError>() => BodyError::TooLarge { max_bytes },
        Err(error) => BodyError::Http(error.to_string()),
    })?;
    Ok(Answer { status, content_type, body: body.to_bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_that_was_not_called_for_longest_is_forgotten() {
        let mut peers = Peers::default();
        let address =
            |n: usize| Address::of(&Target::Url(format!("https://a{n}.example/"))).expect("an address");
        let key = |n: usize| {
            let Address { way, authority, .. } = address(n);
            PeerKey { way, authority, ca_bundle: Vec::new(), identity: None }
        };
        struct Nowhere;
        #[async_trait::async_trait]
        impl Resolver for Nowhere {
            async fn dial_service(&self, _: &str, _: &str, _: u16) -> Result<Box<dyn Stream>, DialError> {
                Err(DialError::Unresolved("nowhere".into()))
            }
        }
        let certificate =
            rcgen::generate_simple_self_signed(["a.example".to_owned()]).expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(certificate.cert.der().clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = Client::new(Arc::new(Nowhere), provider).roots(roots);
        let target = Target::Url("https://a0.example/".into());
        let config = ClientConfig { target, ca_bundle: Vec::new(), identity: None };
        let peer = Arc::new(client.connect_to(&address(0), &config).expect("a peer"));
        for n in 0..MAX_PEERS {
            peers.insert(key(n), peer.clone());
        }
        assert!(peers.get(&key(0)).is_some());
        peers.insert(key(MAX_PEERS), peer);
        assert_eq!(peers.by_key.len(), MAX_PEERS);
        assert!(peers.get(&key(0)).is_some());
        assert!(peers.get(&key(1)).is_none());
    }
}
