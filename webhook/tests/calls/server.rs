//! A webhook over TLS on a loopback address that answers as it is told, and keeps what it was asked.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::Deserialize;
use skiff_webhook::{Client, DialError, Resolver, Stream, dial};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What is answered at a path. `$UID` in its body is the request's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) body: String,
    #[serde(default)]
    pub(crate) hangup: bool,
    #[serde(default)]
    pub(crate) short: bool,
    #[serde(default)]
    pub(crate) then: Vec<Reply>,
    /// Never answers.
    #[serde(skip)]
    pub(crate) stalls: bool,
    /// Says in its head that there is a body, and sends none of it.
    #[serde(skip)]
    pub(crate) stalls_in_body: bool,
    /// Sent as it is instead of an HTTP answer.
    #[serde(skip)]
    pub(crate) raw: Option<Vec<u8>>,
}

impl Reply {
    pub(crate) fn json(body: impl Into<String>) -> Reply {
        let headers = [("Content-Type".to_owned(), "application/json".to_owned())].into();
        Reply { status: 200, headers, body: body.into(), ..Reply::default() }
    }
}

/// What was asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: serde_json::Value,
    pub(crate) uid: String,
}

#[derive(Default)]
struct Told {
    replies: HashMap<String, VecDeque<Reply>>,
    calls: Vec<Call>,
    called: Arc<Notify>,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) ca_pem: String,
    told: Arc<Mutex<Told>>,
    n_connections: Arc<AtomicUsize>,
}

pub(crate) const NAME: &str = "hook.system.svc";

impl Server {
    /// With a certificate for [`NAME`] of an authority of its own.
    pub(crate) async fn start() -> Server {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let ca = params.self_signed(&key).expect("a certificate");
        let issuer = rcgen::Issuer::new(params, key);
        let own = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).expect("parameters");
        let certificate = params.signed_by(&own, &issuer).expect("a certificate");
        Server::start_with(certificate.der().clone(), &own, ca.pem()).await
    }

    pub(crate) async fn start_with(
        certificate: rustls_pki_types::CertificateDer<'static>,
        key: &rcgen::KeyPair,
        ca_pem: String,
    ) -> Server {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a certificate with its key");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (told, n_connections) = (Arc::new(Mutex::new(Told::default())), Arc::new(AtomicUsize::new(0)));
        let (their_told, their_n) = (told.clone(), n_connections.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(acceptor.clone(), stream, their_told.clone(), their_n.clone()));
            }
        });
        Server { address, ca_pem, told, n_connections }
    }

    /// Sets what is answered, and forgets what was asked.
    pub(crate) fn answer<'p>(&self, replies: impl IntoIterator<Item = (&'p str, Reply)>) {
        let mut told = self.told.lock();
        told.calls.clear();
        told.replies.clear();
        for (path, mut reply) in replies {
            let then = std::mem::take(&mut reply.then);
            told.replies.insert(path.to_owned(), std::iter::once(reply).chain(then).collect());
        }
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.told.lock().calls.clone()
    }

    /// Waits until there is a call that nobody has waited for.
    pub(crate) async fn called(&self) {
        let called = self.told.lock().called.clone();
        called.notified().await;
    }

    /// How many connections TLS was spoken on.
    pub(crate) fn n_connections(&self) -> usize {
        self.n_connections.load(Ordering::SeqCst)
    }

    /// A client for whom this is every Service but `missing` and every host.
    pub(crate) fn client(&self) -> Arc<Client> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Arc::new(Client::new(Arc::new(Always(self.address)), provider))
    }
}

pub(crate) struct Always(pub(crate) SocketAddr);

#[async_trait]
impl Resolver for Always {
    async fn dial_service(&self, _: &str, name: &str, _: u16) -> Result<Box<dyn Stream>, DialError> {
        if name == "missing" {
            return Err(DialError::Unresolved("service \"missing\" not found".into()));
        }
        dial(self.0).await
    }

    async fn dial_host(&self, _: &str, _: u16) -> Result<Box<dyn Stream>, DialError> {
        dial(self.0).await
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, told: Arc<Mutex<Told>>, n: Arc<AtomicUsize>) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    n.fetch_add(1, Ordering::SeqCst);
    let mut stream = BufReader::new(stream);
    while let Some(call) = read(&mut stream).await {
        let reply = {
            let mut told = told.lock();
            let queue = told.replies.get_mut(&call.path);
            let reply = queue.and_then(|queue| match queue.len() {
                0 | 1 => queue.front().cloned(),
                _ => queue.pop_front(),
            });
            told.calls.push(call.clone());
            told.called.notify_one();
            reply.unwrap_or_else(|| Reply { status: 404, body: "nothing here".into(), ..Reply::default() })
        };
        if !respond(stream.get_mut(), &reply, &call.uid).await {
            return;
        }
    }
}

async fn read(stream: &mut BufReader<TlsStream<TcpStream>>) -> Option<Call> {
    let mut first = String::new();
    stream.read_line(&mut first).await.ok().filter(|n| *n > 0)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|n| *n > 0)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    stream.read_exact(&mut body).await.ok()?;
    let uri = first.split(' ').nth(1)?;
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let body: serde_json::Value = serde_json::from_slice(&body).ok()?;
    let uid = body["request"]["uid"].as_str().unwrap_or_default().to_owned();
    Some(Call { path: path.into(), query: query.into(), headers, body, uid })
}

/// Whether the connection stays.
async fn respond(stream: &mut TlsStream<TcpStream>, reply: &Reply, uid: &str) -> bool {
    if reply.hangup {
        return false;
    }
    if reply.stalls {
        std::future::pending::<()>().await;
    }
    if let Some(raw) = &reply.raw {
        _ = stream.write_all(raw).await;
        _ = stream.shutdown().await;
        return false;
    }
    let body = reply.body.replace("$UID", uid);
    let length = body.len() + if reply.short || reply.stalls_in_body { 10 } else { 0 };
    let mut text = format!("HTTP/1.1 {} X\r\nContent-Length: {length}\r\n", reply.status);
    for (name, value) in &reply.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    // A 304 has no body.
    if reply.status != 304 {
        text.push_str(&body);
    }
    if stream.write_all(text.as_bytes()).await.is_err() || stream.flush().await.is_err() {
        return false;
    }
    if reply.stalls_in_body {
        std::future::pending::<()>().await;
    }
    if reply.short {
        _ = stream.shutdown().await;
    }
    !reply.short
}
