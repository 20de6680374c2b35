//! TLS, on both sides: rustls with aws-lc-rs, the provider given explicitly.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use thiserror::Error;
use tokio_rustls::TlsAcceptor;

use crate::auth::validity::Validity;
use crate::proxy::kubelet::KubeletConfig;

/// The server's certificate, and who vouches for clients. All PEM.
pub struct TlsConfig {
    pub certificate_chain_pem: Vec<u8>,
    pub key_pem: Vec<u8>,
    /// Client certificates signed by it are identities.
    pub client_ca_pem: Vec<u8>,
}

/// The front proxy: this server towards those that stand behind it, and others that stand before this one. All PEM.
pub struct FrontProxyConfig {
    /// What this server shows to those behind it.
    pub certificate_pem: Vec<u8>,
    pub key_pem: Vec<u8>,
    /// Who vouches for front proxies, and for nobody else.
    pub ca_pem: Vec<u8>,
    /// The common names of those that may say who asks; empty: all that it vouches for.
    pub allowed_names: Vec<String>,
}

#[derive(Debug, Error)]
pub enum TlsError {
    #[error("{what} is not PEM")]
    Pem { what: &'static str, source: rustls_pki_types::pem::Error },
    #[error("{what} holds no certificate")]
    Empty { what: &'static str },
    #[error("{what} cannot be used")]
    Unusable { what: &'static str, source: rustls::Error },
    #[error("client CA cannot be used")]
    ClientCa(#[source] rustls::server::VerifierBuilderError),
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem { what, source })?;
    if certificates.is_empty() { Err(TlsError::Empty { what }) } else { Ok(certificates) }
}

fn key(what: &'static str, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|source| TlsError::Pem { what, source })
}

fn roots(what: &'static str, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(what, pem)? {
        roots.add(certificate).map_err(|source| TlsError::Unusable { what, source })?;
    }
    Ok(roots)
}

/// A certificate and its key that new connections show. It may be changed at any time: a server outlives its certificates, and
/// clocks that are set make them worthless.
#[derive(Debug)]
pub(crate) struct Shown {
    what: &'static str,
    key: ArcSwap<CertifiedKey>,
}

impl Shown {
    fn new(what: &'static str, chain_pem: &[u8], key_pem: &[u8]) -> Result<Arc<Shown>, TlsError> {
        Ok(Arc::new(Shown { what, key: ArcSwap::from_pointee(certified(what, chain_pem, key_pem)?) }))
    }

    /// Connections from here on show this one. Where it cannot be used, the last one stays.
    pub(crate) fn replace(&self, chain_pem: &[u8], key_pem: &[u8]) -> Result<(), TlsError> {
        self.key.store(Arc::new(certified(self.what, chain_pem, key_pem)?));
        Ok(())
    }
}

fn certified(what: &'static str, chain_pem: &[u8], key_pem: &[u8]) -> Result<CertifiedKey, TlsError> {
    let (chain, key) = (certificates(what, chain_pem)?, key(what, key_pem)?);
    CertifiedKey::from_der(chain, key, &provider()).map_err(|source| TlsError::Unusable { what, source })
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.load_full())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.key.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What accepts connections.
#[derive(Clone)]
pub(crate) struct Accepting {
    pub(crate) acceptor: TlsAcceptor,
    /// What it shows.
    pub(crate) shown: Arc<Shown>,
    /// Whose clients it knows.
    pub(crate) authorities: Arc<Authorities>,
}

/// Who vouches for clients.
#[derive(Debug)]
pub(crate) struct Authorities {
    clients: ChainVerifier,
    front_proxies: Option<ChainVerifier>,
    hints: Vec<DistinguishedName>,
}

/// What a certificate that was let in may be taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vouched {
    pub(crate) as_client: bool,
    pub(crate) as_front_proxy: bool,
}

impl Authorities {
    fn new(client_ca_pem: &[u8], front_proxy_ca_pem: Option<&[u8]>) -> Result<Authorities, TlsError> {
        let clients = ChainVerifier::new("client CA", client_ca_pem)?;
        let front_proxies =
            front_proxy_ca_pem.map(|pem| ChainVerifier::new("front proxy CA", pem)).transpose()?;
        let all = [Some(&clients), front_proxies.as_ref()];
        let hints = all.into_iter().flatten().flat_map(|of| of.root_hint_subjects().iter().cloned());
        Ok(Authorities { hints: hints.collect(), clients, front_proxies })
    }

    /// Who vouches for a chain that one of them does vouch for.
    pub(crate) fn vouched(&self, chain: &[CertificateDer<'_>]) -> Vouched {
        let Some((leaf, others)) = chain.split_first() else {
            return Vouched { as_client: false, as_front_proxy: false };
        };
        let Some(front_proxies) = &self.front_proxies else {
            return Vouched { as_client: true, as_front_proxy: false };
        };
        let now = UnixTime::now();
        let as_front_proxy = front_proxies.verify_client_cert(leaf, others, now).is_ok();
        // Most are not: the handshake has looked at them already.
        let as_client = !as_front_proxy || self.clients.verify_client_cert(leaf, others, now).is_ok();
        Vouched { as_client, as_front_proxy }
    }
}

impl ClientCertVerifier for Authorities {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let refused = match self.clients.verify_client_cert(end_entity, intermediates, now) {
            Ok(verified) => return Ok(verified),
            Err(refused) => refused,
        };
        let Some(front_proxies) = &self.front_proxies else { return Err(refused) };
        front_proxies.verify_client_cert(end_entity, intermediates, now).map_err(|_| refused)
    }

    fn offer_client_auth(&self) -> bool {
        self.clients.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.clients.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}

/// Accepts TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1, with or without a client certificate.
pub(crate) fn server(
    config: &TlsConfig,
    front_proxy: Option<&FrontProxyConfig>,
) -> Result<Accepting, TlsError> {
    let unusable = |source| TlsError::Unusable { what: "server certificate", source };
    let authorities = Authorities::new(&config.client_ca_pem, front_proxy.map(|proxy| &*proxy.ca_pem))?;
    let authorities = Arc::new(authorities);
    let shown = Shown::new("server certificate", &config.certificate_chain_pem, &config.key_pem)?;
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(authorities.clone())
        .with_cert_resolver(shown.clone());
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Accepting { acceptor: TlsAcceptor::from(Arc::new(server)), shown, authorities })
}

/// Lets a client in whose certificate is only too old or too new: a handshake that fails tells a person nothing, so it is the
/// authenticator who refuses each of its requests, as upstream does. Everything else must hold now, or have held at the
/// end, or hold at the beginning, of the certificate's time: that a client authority of ours signed it for clients, and that
/// the client has its key.
#[derive(Debug)]
struct ChainVerifier(Arc<dyn ClientCertVerifier>);

impl ChainVerifier {
    fn new(what: &'static str, ca_pem: &[u8]) -> Result<ChainVerifier, TlsError> {
        let roots = Arc::new(roots(what, ca_pem)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).allow_unauthenticated();
        Ok(ChainVerifier(verifier.build().map_err(TlsError::ClientCa)?))
    }
}

impl ClientCertVerifier for ChainVerifier {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let refused = match self.0.verify_client_cert(end_entity, intermediates, now) {
            Ok(verified) => return Ok(verified),
            Err(refused) => refused,
        };
        // Where the certificate's own time is not what is wrong, nothing else may be.
        let then = Validity::of(end_entity).map(|validity| validity.nearest_to(now));
        let Some(then) = then.filter(|then| *then != now) else { return Err(refused) };
        self.0.verify_client_cert(end_entity, intermediates, then).map_err(|_| refused)
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Towards kubelets: HTTP/1.1 only, for the sake of upgrades. Also answers what it shows.
pub(crate) fn kubelet_client(config: &KubeletConfig) -> Result<(Arc<ClientConfig>, Arc<Shown>), TlsError> {
    let unusable = |source| TlsError::Unusable { what: "kubelet client certificate", source };
    let shown = Shown::new("kubelet client certificate", &config.certificate_pem, &config.key_pem)?;
    let client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(roots("kubelet CA", &config.ca_pem)?)
        .with_client_cert_resolver(shown.clone());
    Ok((Arc::new(client), shown))
}

/// What this server shows to those that stand behind it.
pub(crate) fn front_proxy_shown(config: &FrontProxyConfig) -> Result<Arc<Shown>, TlsError> {
    Shown::new("front proxy client certificate", &config.certificate_pem, &config.key_pem)
}

/// Towards API servers that stand behind this one: HTTP/1.1 only, for the sake of upgrades.
pub(crate) fn front_proxy_client(
    verifier: Arc<dyn ServerCertVerifier>,
    shown: Option<Arc<Shown>>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let unusable = |source| TlsError::Unusable { what: "TLS towards other API servers", source };
    let client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    Ok(Arc::new(match shown {
        Some(shown) => client.with_client_cert_resolver(shown),
        None => client.with_no_client_auth(),
    }))
}

/// Takes any certificate whose key the other side has.
pub(crate) fn any_certificate() -> Arc<dyn ServerCertVerifier> {
    Arc::new(AnyCertificate(provider()))
}

/// Towards pods, whose certificates nobody here vouches for: HTTP/1.1, encrypted, with any certificate and without
/// one of our own.
pub(crate) fn pod_client() -> Result<Arc<ClientConfig>, TlsError> {
    let unusable = |source| TlsError::Unusable { what: "TLS towards pods", source };
    let verifier = any_certificate();
    let client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(client))
}

/// Whoever answers at the address of a pod is the pod. That it holds the key of what it shows is still checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
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
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
