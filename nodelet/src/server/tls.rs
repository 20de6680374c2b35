//! TLS of the node API, and whose certificate a client has.

use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::ServerTls;
use crate::error::Error;
use crate::server::access::{self, Peer};

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
    // Who has no certificate may have a token.
    let verifier = verifier.allow_unauthenticated().build().map_err(unusable)?;
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(tls.certificate.clone());
    // WebSockets need HTTP/1.1, and one protocol is enough.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Who a verified certificate names; one that cannot be read names nobody.
pub(super) fn peer(chain: Option<&[CertificateDer<'_>]>) -> Peer {
    let Some(leaf) = chain.and_then(<[_]>::first) else { return Peer::Unknown };
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return Peer::Unknown };
    let subject = certificate.subject();
    let name = subject.iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok());
    let groups: Vec<String> = groups.map(str::to_owned).collect();
    if name == API_SERVER_NAME || groups.iter().any(|group| group == ADMINISTRATORS) {
        return Peer::Trusted;
    }
    match name {
        "" => Peer::Unknown,
        name => Peer::Certified(Arc::new(access::certified(name.to_owned(), groups))),
    }
}
