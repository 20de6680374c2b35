//! Who may use the node API.

use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::ServerTls;
use crate::error::Error;

/// The API server's identity towards nodes.
const API_SERVER_NAME: &str = "kube-apiserver-kubelet-client";
const ADMINISTRATORS: &str = "system:masters";

fn unusable(error: impl std::fmt::Display) -> Error {
    Error::Certificate(error.to_string())
}

pub(super) fn server_config(tls: &ServerTls) -> Result<ServerConfig, Error> {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(&tls.client_ca_pem) {
        roots.add(authority.map_err(unusable)?).map_err(unusable)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let verifier = verifier.build().map_err(unusable)?;
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(tls.certificate.clone());
    // WebSockets need HTTP/1.1, and one protocol is enough.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Whether a verified certificate is the API server's.
pub(super) fn is_api_server(chain: Option<&[CertificateDer<'_>]>) -> bool {
    let Some(leaf) = chain.and_then(<[_]>::first) else { return false };
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return false };
    let subject = certificate.subject();
    let named = subject.iter_common_name().any(|name| name.as_str() == Ok(API_SERVER_NAME));
    named || subject.iter_organization().any(|group| group.as_str() == Ok(ADMINISTRATORS))
}
