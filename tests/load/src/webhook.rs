//! A validating webhook that admits all it is asked about.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// More than any object of a bench, old and new.
const MAX_REVIEW_BYTES: usize = 1 << 20;

/// Answers for as long as this is held.
pub struct Webhook {
    /// Where it is, and who has signed its certificate: what a configuration says of a client.
    pub client: Value,
    n_asked: Arc<AtomicU64>,
    serving: AbortHandle,
}

impl Webhook {
    /// On loopback, as load and server share a network namespace.
    pub async fn start() -> Result<Webhook> {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listening")?;
        let n_asked = Arc::new(AtomicU64::new(0));
        let client = json!({
            "url": format!("https://{}/", listener.local_addr()?),
            "caBundle": BASE64_STANDARD.encode(made.cert.pem()),
        });
        let serving = tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), n_asked.clone()));
        Ok(Webhook { client, n_asked, serving: serving.abort_handle() })
    }

    pub fn n_asked(&self) -> u64 {
        self.n_asked.load(Ordering::Relaxed)
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Connections end with this task.
async fn serve(listener: TcpListener, acceptor: TlsAcceptor, n_asked: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(connection(stream, acceptor.clone(), n_asked.clone()));
    }
}

/// What goes wrong is seen by the server that asked.
async fn connection(stream: TcpStream, acceptor: TlsAcceptor, n_asked: Arc<AtomicU64>) {
    let Ok(()) = stream.set_nodelay(true) else { return };
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = hyper::service::service_fn(move |request| answer(request, n_asked.clone()));
    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

/// What is read of a review.
#[derive(Deserialize)]
struct Review<'r> {
    #[serde(borrow)]
    request: Asked<'r>,
}

#[derive(Deserialize)]
struct Asked<'r> {
    uid: &'r str,
}

async fn answer(request: Request<Incoming>, n_asked: Arc<AtomicU64>) -> Result<Response<Full<Bytes>>> {
    let body = Limited::new(request.into_body(), MAX_REVIEW_BYTES).collect().await;
    let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
    let review: Review<'_> = serde_json::from_slice(&body).context("reading a review")?;
    n_asked.fetch_add(1, Ordering::Relaxed);
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": {"uid": review.request.uid, "allowed": true},
    });
    let answer = Full::new(Bytes::from(answer.to_string()));
    Ok(Response::builder().header(CONTENT_TYPE, "application/json").body(answer)?)
}
