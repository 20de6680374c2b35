//! TLS towards webhooks: certificates that the CA bundle of the configuration vouches for, and what is said of others.

use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::config::ConfigError;

/// The configuration for a CA bundle, or for the roots of the host where that is empty.
pub(super) fn config(
    ca_bundle: &[u8],
    host_roots: &Arc<RootCertStore>,
    certificate: Option<&(Vec<u8>, Vec<u8>)>,
    provider: &Arc<CryptoProvider>,
) -> Result<rustls::ClientConfig, ConfigError> {
    let verifier = verifier(ca_bundle, host_roots, provider)?;
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let Some((chain, key)) = certificate else { return Ok(config.with_no_client_auth()) };
    let unreadable = |error: &dyn std::error::Error| ConfigError::Identity(error.to_string());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain.map_err(|error| unreadable(&error))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| unreadable(&error))?;
    config.with_client_auth_cert(chain, key).map_err(|error| unreadable(&error))
}

/// Who judges the certificates of servers that a CA bundle, or the host's roots where that is empty, vouches for.
///
/// # Errors
/// If there is no certificate to go by.
pub fn verifier(
    ca_bundle: &[u8],
    host_roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, ConfigError> {
    let unusable = |error: &dyn std::error::Error| ConfigError::Tls(error.to_string());
    let (roots, pinned) = if ca_bundle.is_empty() {
        (host_roots.clone(), Vec::new())
    } else {
        let (roots, certificates) = bundle(ca_bundle)?;
        (Arc::new(roots), certificates)
    };
    if roots.is_empty() {
        return Err(if ca_bundle.is_empty() { ConfigError::NoRoots } else { ConfigError::NoCertificates });
    }
    let chains = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
        .build()
        .map_err(|error| unusable(&error))?;
    Ok(Arc::new(Verifier { chains, pinned }))
}

/// The certificates of a bundle. What of it is none is passed over, as upstream does.
fn bundle(pem: &[u8]) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), ConfigError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.iter().cloned());
    if roots.is_empty() { Err(ConfigError::NoCertificates) } else { Ok((roots, certificates)) }
}

/// Chains as WebPKI has them, and one thing more: a certificate that stands in the bundle itself may be shown by the server, even
/// where it is that of an authority. Such are made by whoever makes a webhook's certificate by hand, and upstream takes them.
#[derive(Debug)]
struct Verifier {
    chains: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn is_pinned(&self, shown: &CertificateDer<'_>) -> bool {
        self.pinned.iter().any(|known| known.as_ref() == shown.as_ref())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if verified.is_ok() || !self.is_pinned(end_entity) {
            return verified;
        }
        rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        check_time(end_entity, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

fn check_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let (_, parsed) =
        X509Certificate::from_der(certificate.as_ref()).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// Why there is no TLS, in upstream's words where it has some.
pub(super) fn words(error: &io::Error) -> String {
    let Some(cause) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return super::fault::words(error);
    };
    match cause {
        rustls::Error::InvalidCertificate(fault) => {
            format!("tls: failed to verify certificate: x509: {}", of_certificate(fault))
        }
        rustls::Error::InvalidMessage(_) => "tls: first record does not look like a TLS handshake".into(),
        rustls::Error::AlertReceived(alert) => format!("remote error: tls: {alert:?}"),
        other => format!("tls: {other}"),
    }
}

fn of_certificate(fault: &CertificateError) -> String {
    match fault {
        // An authority of the same name with another key is unknown, too.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "certificate signed by unknown authority".into()
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            format!("certificate has expired or is not yet valid: {fault}")
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            if presented.is_empty() {
                return format!("certificate is not valid for any names, but wanted to match {expected}");
            }
            let names: Vec<&str> = presented.iter().map(|name| named(name)).collect();
            format!("certificate is valid for {}, not {expected}", names.join(", "))
        }
        other => other.to_string(),
    }
}

/// `a.example` of `DnsName("a.example")`.
fn named(presented: &str) -> &str {
    presented.split_once('"').and_then(|(_, rest)| rest.strip_suffix("\")")).unwrap_or(presented)
}
