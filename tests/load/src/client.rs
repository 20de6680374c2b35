//! HTTP/2 over TLS, without anything a client library would add.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::kubeconfig::Access;

pub const MERGE_PATCH: &str = "application/merge-patch+json";
const JSON: &str = "application/json";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Large enough that a long list is never held up by the client's window.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// Of an answer that is kept whole; lists are read as they come.
const MAX_ANSWER_BYTES: usize = 16 << 20;
const MAX_ERROR_CHARS: usize = 400;

/// One API server, and who asks it.
#[derive(Clone)]
pub struct Server {
    authority: String,
    name: ServerName<'static>,
    tls: TlsConnector,
    http1: TlsConnector,
    anonymous: TlsConnector,
    authorization: Option<HeaderValue>,
    access: Arc<Access>,
}

impl Server {
    /// The same server, asked by who has a certificate: chain and key.
    pub fn by_certificate(&self, identity_pem: (Vec<u8>, Vec<u8>)) -> Result<Server> {
        Server::new(&Access { identity_pem: Some(identity_pem), token: None, ..self.access.as_ref().clone() })
    }

    /// The same server, asked by who has a token.
    pub fn by_token(&self, token: &str) -> Result<Server> {
        let token = Some(token.to_owned());
        Server::new(&Access { identity_pem: None, token, ..self.access.as_ref().clone() })
    }

    /// A connection on which nothing was sent yet, for who wants to speak HTTP badly, and without a name.
    pub async fn raw(&self) -> Result<TlsStream<TcpStream>> {
        self.raw_with(&self.anonymous).await
    }

    /// The same for HTTP/1.1, with the server's own identity.
    pub async fn raw_http1(&self) -> Result<TlsStream<TcpStream>> {
        self.raw_with(&self.http1).await
    }

    async fn raw_with(&self, tls: &TlsConnector) -> Result<TlsStream<TcpStream>> {
        let connecting = async {
            let stream = TcpStream::connect(&self.authority).await?;
            anyhow::Ok(tls.connect(self.name.clone(), stream).await?)
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.context("timed out")?
    }

    /// The head of a request in HTTP/1.1, whose body is to follow.
    pub fn head_of_post(&self, path: &str, body_bytes: usize) -> String {
        let mut head = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: {JSON}\r\ncontent-length: {body_bytes}\r\n",
            self.authority
        );
        if let Some(value) = &self.authorization {
            head.push_str(&format!("authorization: {}\r\n", value.to_str().unwrap_or_default()));
        }
        head.push_str("\r\n");
        head
    }

    pub fn new(access: &Access) -> Result<Server> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&access.ca_pem) {
            roots.add(certificate.context("reading the certificate authority")?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut anonymous = builder.clone().with_no_client_auth();
        anonymous.alpn_protocols = vec![b"h2".to_vec()];
        let mut config = match &access.identity_pem {
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
                let chain = chain.context("reading the client certificate")?;
                let key = PrivateKeyDer::from_pem_slice(key).context("reading the client key")?;
                builder.with_client_auth_cert(chain, key)?
            }
            None => builder.with_no_client_auth(),
        };
        let mut http1 = config.clone();
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (host, _) = access.authority.rsplit_once(':').context("the server has no port")?;
        let authorization =
            access.token.as_ref().map(|token| HeaderValue::from_str(&format!("Bearer {token}")));
        Ok(Server {
            authority: access.authority.clone(),
            name: ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?,
            tls: TlsConnector::from(Arc::new(config)),
            http1: TlsConnector::from(Arc::new(http1)),
            anonymous: TlsConnector::from(Arc::new(anonymous)),
            authorization: authorization.transpose()?,
            access: Arc::new(access.clone()),
        })
    }

    pub async fn connect(&self) -> Result<Connection> {
        let connecting = async {
            let stream = TcpStream::connect(&self.authority).await?;
            stream.set_nodelay(true)?;
            let stream = self.tls.connect(self.name.clone(), stream).await?;
            ensure!(stream.get_ref().1.alpn_protocol() == Some(b"h2"), "the server does not speak HTTP/2");
            let (sender, connection) = Builder::new(TokioExecutor::new())
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .handshake(TokioIo::new(stream))
                .await?;
            // Ends with its last sender; what goes wrong is seen by the request it goes wrong for.
            tokio::spawn(connection);
            Ok(sender)
        };
        let sender = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .context("timed out")
            .flatten()
            .with_context(|| format!("connecting to {}", self.authority))?;
        Ok(Connection { sender, server: self.clone() })
    }

    /// So many connections that are up before a clock starts.
    pub async fn connections(&self, count: usize) -> Result<Vec<Connection>> {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            let connection = self.connect().await?;
            connection.get("/version").await?;
            connections.push(connection);
        }
        Ok(connections)
    }
}

/// One HTTP/2 connection; its clones share it.
#[derive(Clone)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    server: Server,
}

impl Connection {
    /// Sends a request and answers as soon as the head of an answer is there, whatever it says.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let what = || format!("{method} {path}");
        let mut request = Request::builder()
            .method(method.clone())
            .uri(format!("https://{}{path}", self.server.authority))
            .header(ACCEPT, JSON)
            .header(USER_AGENT, "skiff-load");
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, content_type);
        }
        if let Some(authorization) = &self.server.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(body)).with_context(what)?;
        let mut sender = self.sender.clone();
        sender.ready().await.with_context(what)?;
        sender.send_request(request).await.with_context(what)
    }

    /// The same where anything but a success is an error.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let what = || format!("{method} {path}");
        let response = self.send(method.clone(), path, content_type, body).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = keep(response).await.with_context(what)?;
        let text: String = String::from_utf8_lossy(&text).chars().take(MAX_ERROR_CHARS).collect();
        Err(Refused { what: what(), status: status.as_u16(), text }.into())
    }

    async fn answer(&self, method: Method, path: &str, kind: &'static str, body: Bytes) -> Result<Value> {
        let response = self.open(method, path, kind, body).await?;
        let bytes = keep(response).await.with_context(|| format!("reading {path}"))?;
        serde_json::from_slice(&bytes).with_context(|| format!("reading {path}"))
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.answer(Method::GET, path, JSON, Bytes::new()).await
    }

    pub async fn post(&self, path: &str, body: Bytes) -> Result<Value> {
        self.answer(Method::POST, path, JSON, body).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.answer(Method::PUT, path, JSON, body.to_string().into()).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Result<Value> {
        self.answer(Method::PATCH, path, MERGE_PATCH, body.to_string().into()).await
    }

    /// Without a grace period: there may be nobody who would see a pod to its end.
    pub async fn delete_now(&self, path: &str) -> Result<()> {
        let body =
            Bytes::from_static(br#"{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0}"#);
        discard(self.open(Method::DELETE, path, JSON, body).await?).await
    }

    pub async fn delete(&self, path: &str) -> Result<()> {
        discard(self.open(Method::DELETE, path, JSON, Bytes::new()).await?).await
    }

    /// Sends and reads to the end without looking at what comes.
    pub async fn fire(&self, method: Method, path: &str, kind: &'static str, body: Bytes) -> Result<()> {
        discard(self.open(method, path, kind, body).await?).await
    }

    /// Posts unless it is there.
    pub async fn ensure(&self, path: &str, body: &Value) -> Result<()> {
        match self.post(path, body.to_string().into()).await {
            Err(error) if is_status(&error, 409) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The version that a watch can start from.
    pub async fn version_of(&self, collection: &str) -> Result<String> {
        let list = self.get(&format!("{collection}?limit=1")).await?;
        let version = list["metadata"]["resourceVersion"].as_str();
        Ok(version.with_context(|| format!("{collection}: a list without a version"))?.to_owned())
    }
}

/// An answer that is not a success.
#[derive(Debug)]
struct Refused {
    what: String,
    status: u16,
    text: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} {}", self.what, self.status, self.text)
    }
}

impl std::error::Error for Refused {}

/// The status with which a request failed; 0 if there was no answer.
pub fn status_of(error: &anyhow::Error) -> u16 {
    error.downcast_ref::<Refused>().map_or(0, |refused| refused.status)
}

/// Whether a request failed with this status.
pub fn is_status(error: &anyhow::Error, status: u16) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == status)
}

async fn keep(response: Response<Incoming>) -> Result<Vec<u8>> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > MAX_ANSWER_BYTES {
            bail!("an answer of more than {MAX_ANSWER_BYTES} bytes");
        }
    }
    Ok(bytes)
}

async fn discard(response: Response<Incoming>) -> Result<()> {
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok(())
}

/// The lines of a watch as they arrive.
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    /// Where in `buffer` the next line begins.
    start: usize,
    /// Up to where there is no line's end.
    searched: usize,
}

const MAX_LINE_BYTES: usize = 4 << 20;

impl Lines {
    pub fn new(response: Response<Incoming>) -> Lines {
        Lines { body: response.into_body(), buffer: Vec::new(), start: 0, searched: 0 }
    }

    /// The next line, or `None` when the server has ended the watch.
    pub async fn next(&mut self) -> Result<Option<&[u8]>> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let (start, end) = (self.start, self.searched + at);
                self.start = end + 1;
                self.searched = self.start;
                return Ok(Some(&self.buffer[start..end]));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            self.searched = self.buffer.len();
            ensure!(self.buffer.len() <= MAX_LINE_BYTES, "an event of more than {MAX_LINE_BYTES} bytes");
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
