//! HTTP probes and hooks: one GET, with upstream's headers and words.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::probe::check::{Outcome, connect, join_host_port, resolve_port};
use crate::probe::url;

const MAX_BODY: usize = 10 * 1024;
const MAX_REDIRECTS: usize = 10;

/// What to ask, of whom.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    https: bool,
    host: String,
    port: u16,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Target {
    /// `purpose` is the User-Agent's: `probe` or `lifecycle`.
    pub(crate) fn new(
        get: &HTTPGetAction,
        container: &Container,
        pod_ip: &str,
        purpose: &str,
    ) -> Result<Target, String> {
        let mut headers = Vec::new();
        for header in get.http_headers.iter().flatten() {
            let invalid = |_| format!("invalid header {:?}", header.name);
            let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| invalid(()))?;
            headers.push((name, HeaderValue::from_str(&header.value).map_err(|_| invalid(()))?));
        }
        if !headers.iter().any(|(name, _)| name == http::header::USER_AGENT) {
            let agent = super::agent(purpose);
            headers
                .push((http::header::USER_AGENT, HeaderValue::from_str(&agent).map_err(|e| e.to_string())?));
        }
        if !headers.iter().any(|(name, _)| name == http::header::ACCEPT) {
            headers.push((http::header::ACCEPT, HeaderValue::from_static("*/*")));
        }
        headers.retain(|(name, value)| name != http::header::ACCEPT || !value.is_empty());
        let path = get.path.as_deref().unwrap_or_default();
        Ok(Target {
            https: get.scheme.as_deref() == Some("HTTPS"),
            host: get.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| pod_ip.to_owned()),
            port: resolve_port(&get.port, container)?,
            path: url::of_probe(path),
            headers,
        })
    }

    fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", join_host_port(&self.host, self.port), self.path)
    }

    /// Where a redirect leads, if it stays on the same host.
    fn redirected(&self, location: &str) -> Result<Option<Target>, String> {
        let Some((scheme, authority, path)) = url::split(location) else {
            return Ok(Some(Target { path: url::resolve(&self.path, location), ..self.clone() }));
        };
        let https = match scheme.map(str::to_ascii_lowercase).as_deref() {
            None => self.https,
            Some("http") => false,
            Some("https") => true,
            Some(other) => return Err(format!("unsupported protocol scheme {other:?}")),
        };
        let bad = || format!("failed to parse Location header {location:?}");
        let authority: http::uri::Authority = authority.parse().map_err(|_| bad())?;
        if !authority.host().trim_matches(['[', ']']).eq_ignore_ascii_case(&self.host) {
            return Ok(None);
        }
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        // The new address says whom it is of; a name that the probe gave was for the first one.
        let headers = self.headers.iter().filter(|(name, _)| name != http::header::HOST).cloned().collect();
        Ok(Some(Target { https, port, path: url::of_probe(path), headers, host: self.host.clone() }))
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    location: Option<String>,
    body: String,
}

pub(crate) async fn probe(target: &Target, timeout: Duration) -> Outcome {
    match get(target, timeout).await {
        Err(message) => Outcome::Failure(message),
        Ok(answer) if answer.status.is_success() => Outcome::Success,
        Ok(answer) if answer.status.is_redirection() => {
            Outcome::Warning(format!("Probe terminated redirects, Response body: {}", answer.body))
        }
        // The body may hold what must not be in an event.
        Ok(answer) => {
            Outcome::Failure(format!("HTTP probe failed with statuscode: {}", answer.status.as_u16()))
        }
    }
}

/// Asks, following redirects on the same host.
pub(crate) async fn get(target: &Target, timeout: Duration) -> Result<Answer, String> {
    let url = target.url();
    let late =
        || format!("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)");
    let answer = tokio::time::timeout(timeout, follow(target.clone(), timeout)).await.map_err(|_| late())?;
    answer.map_err(|error| format!("Get {url:?}: {error}"))
}

async fn follow(mut target: Target, timeout: Duration) -> Result<Answer, String> {
    for _ in 0..MAX_REDIRECTS {
        let answer = ask(&target, timeout).await?;
        let follows = matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308);
        let next = match answer.location.as_deref().filter(|_| follows) {
            Some(location) => target.redirected(location)?,
            None => None,
        };
        match next {
            Some(next) => target = next,
            None => return Ok(answer),
        }
    }
    Err("stopped after 10 redirects".to_owned())
}

async fn ask(target: &Target, timeout: Duration) -> Result<Answer, String> {
    let stream = connect(&target.host, target.port, timeout).await?;
    if !target.https {
        return exchange(TokioIo::new(stream), target).await;
    }
    let name = ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(unverified()?));
    let stream = connector.connect(name, stream).await.map_err(|e| format!("tls: {e}"))?;
    exchange(TokioIo::new(stream), target).await
}

async fn exchange<S>(io: TokioIo<S>, target: &Target) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
    let request = request(target)?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status();
        let location =
            response.headers().get(http::header::LOCATION).and_then(|v| v.to_str().ok()).map(str::to_owned);
        // More than the limit is not read, and is no failure either.
        let body = Limited::new(response.into_body(), MAX_BODY)
            .collect()
            .await
            .map(|b| b.to_bytes())
            .unwrap_or_default();
        Ok(Answer { status, location, body: String::from_utf8_lossy(&body).into_owned() })
    };
    // The connection's own end says nothing that the exchange does not.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = exchange => answer,
        () = drive => Err("EOF".to_owned()),
    }
}

fn request(target: &Target) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(&target.path);
    let named = target.headers.iter().any(|(name, _)| name == http::header::HOST);
    if !named {
        request = request.header(http::header::HOST, join_host_port(&target.host, target.port));
    }
    for (name, value) in &target.headers {
        request = request.header(name, value);
    }
    request.body(Empty::new()).map_err(|e| e.to_string())
}

/// A probe asks whether the pod answers, not who it is: certificates are not verified, as upstream. Not even the
/// handshake's signature is, for that would mean to read the certificate, and old or odd ones cannot be read.
fn unverified() -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config =
        config.map_err(|e| e.to_string())?.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer));
    Ok(config.with_no_client_auth())
}

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ECDSA_NISTP521_SHA512,
            SignatureScheme::ED25519,
            SignatureScheme::ED448,
            SignatureScheme::RSA_PSS_SHA256,
            SignatureScheme::RSA_PSS_SHA384,
            SignatureScheme::RSA_PSS_SHA512,
            SignatureScheme::RSA_PKCS1_SHA256,
            SignatureScheme::RSA_PKCS1_SHA384,
            SignatureScheme::RSA_PKCS1_SHA512,
            SignatureScheme::RSA_PKCS1_SHA1,
            SignatureScheme::ECDSA_SHA1_Legacy,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn server(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 1024];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        port
    }

    fn target(port: u16) -> Target {
        let get = HTTPGetAction {
            path: Some("/healthz".into()),
            port: IntOrString::Int(i32::from(port)),
            ..Default::default()
        };
        Target::new(&get, &Container::default(), "127.0.0.1", "probe").unwrap()
    }

    #[tokio::test]
    async fn answers_below_400_succeed_and_others_are_named() {
        let good = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(probe(&target(good), Duration::from_secs(1)).await, Outcome::Success);
        let bad = server("HTTP/1.1 503 Nope\r\ncontent-length: 6\r\n\r\nsecret").await;
        assert_eq!(
            probe(&target(bad), Duration::from_secs(1)).await,
            Outcome::Failure("HTTP probe failed with statuscode: 503".into())
        );
    }

    #[tokio::test]
    async fn redirects_to_other_hosts_are_not_followed() {
        let port =
            server("HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n")
                .await;
        let outcome = probe(&target(port), Duration::from_secs(1)).await;
        assert_eq!(outcome, Outcome::Warning("Probe terminated redirects, Response body: ".into()));
    }

    /// Answers each request with what stands for its path.
    async fn site(pages: &'static [(&'static str, &'static str)]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 1024];
                let n_read = stream.read(&mut buffer).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&buffer[..n_read]).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default();
                let page =
                    pages.iter().find(|(at, _)| *at == path).map_or("404 Not Found\r\n", |(_, page)| page);
                let _ =
                    stream.write_all(format!("HTTP/1.1 {page}content-length: 0\r\n\r\n").as_bytes()).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn redirects_on_the_same_host_are_followed_in_every_form() {
        let port = site(&[
            ("/healthz", "302 Found\r\nlocation: live/now\r\n"),
            ("/live/now", "307 Temporary Redirect\r\nlocation: ../a/./b?x=1\r\n"),
            ("/a/b?x=1", "301 Moved\r\nlocation: ?y=2\r\n"),
            ("/a/b?y=2", "303 See Other\r\nlocation: /end\r\n"),
            ("/end", "200 OK\r\n"),
        ])
        .await;
        assert_eq!(probe(&target(port), Duration::from_secs(5)).await, Outcome::Success);
        let missing = site(&[("/healthz", "302 Found\r\nlocation: gone\r\n")]).await;
        let failed = Outcome::Failure("HTTP probe failed with statuscode: 404".into());
        assert_eq!(probe(&target(missing), Duration::from_secs(5)).await, failed);
        let round = site(&[("/healthz", "302 Found\r\nlocation: healthz\r\n")]).await;
        let Outcome::Failure(message) = probe(&target(round), Duration::from_secs(5)).await else { panic!() };
        assert!(message.ends_with("stopped after 10 redirects"), "{message}");
    }

    #[test]
    fn where_a_redirect_leads_is_resolved_against_where_it_came_from() {
        let from = target(8080);
        let to = |location: &str| from.redirected(location).map(|to| to.map(|to| to.url()));
        let at = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(to("https://127.0.0.1:8443/x?y#z"), at("https://127.0.0.1:8443/x?y"));
        assert_eq!(to("//127.0.0.1:81"), at("http://127.0.0.1:81/"));
        assert_eq!(to("HTTP://127.0.0.1/x"), at("http://127.0.0.1:80/x"));
        assert_eq!(to("//example.org/x"), Ok(None));
        assert!(to("ftp://127.0.0.1/x").is_err());
        assert_eq!(to("x/../../../y"), at("http://127.0.0.1:8080/y"));
    }

    #[tokio::test]
    async fn any_certificate_will_do() {
        // What cannot even be read as a certificate stands for those of X.509 version 1 and the like.
        let key = rcgen::KeyPair::generate().unwrap();
        let signer =
            rustls::crypto::aws_lc_rs::sign::any_supported_type(&key.serialize_der().try_into().unwrap())
                .unwrap();
        let certified =
            rustls::sign::CertifiedKey::new(vec![CertificateDer::from(vec![48, 3, 2, 1, 1])], signer);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            let _ = stream.read(&mut [0; 1024]).await;
        });
        let target = Target { https: true, ..target(port) };
        assert_eq!(probe(&target, Duration::from_secs(5)).await, Outcome::Success);
    }

    #[tokio::test]
    async fn a_closed_port_reads_as_upstream_words_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let expected = format!(
            "Get \"http://127.0.0.1:{port}/healthz\": dial tcp 127.0.0.1:{port}: connect: connection refused"
        );
        assert_eq!(probe(&target(port), Duration::from_secs(1)).await, Outcome::Failure(expected));
    }
}
