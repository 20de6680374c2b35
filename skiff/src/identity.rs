//! A certificate of this node: kept in a file, renewed while it is in use.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::pki::{Pair, write_private};

/// A certificate and its key, of which new connections always get the newest.
pub(crate) struct Identity {
    /// Certificate and key in one file: never one without the other.
    path: Option<PathBuf>,
    current: ArcSwap<Current>,
}

struct Current {
    key: Arc<CertifiedKey>,
    validity: Validity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) from: Timestamp,
    pub(crate) until: Timestamp,
}

impl Validity {
    /// When to ask for the next one: as kubelets do it, at some moment between 70 and 90 % of its life, so that nodes that
    /// joined together do not all ask together.
    pub(crate) fn renew_at(self, jitter: f64) -> Timestamp {
        let life = self.until.duration_since(self.from);
        let share = 0.7 + 0.2 * jitter.clamp(0.0, 1.0);
        let after = SignedDuration::try_from_secs_f64(life.as_secs_f64() * share).unwrap_or(life);
        self.from.checked_add(after).unwrap_or(self.until)
    }
}

/// Names its certificate's life, never the key.
impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("path", &self.path).field("validity", &self.validity()).finish()
    }
}

impl Identity {
    /// One that is never renewed.
    pub(crate) fn fixed(pair: &Pair) -> Result<Arc<Identity>> {
        let current = Current::parse(&format!("{}{}", pair.certificate_pem, pair.key_pem))?;
        Ok(Arc::new(Identity { path: None, current: ArcSwap::from_pointee(current) }))
    }

    /// The one that is kept in a file, if there is one.
    pub(crate) fn load(path: &Path) -> Result<Option<Arc<Identity>>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let current = Current::parse(&text).with_context(|| format!("reading {}", path.display()))?;
        Ok(Some(Arc::new(Identity { path: Some(path.to_owned()), current: ArcSwap::from_pointee(current) })))
    }

    /// Keeps a new one in a file.
    pub(crate) fn create(path: &Path, pair: &Pair) -> Result<Arc<Identity>> {
        let text = format!("{}{}", pair.certificate_pem, pair.key_pem);
        let current = Current::parse(&text)?;
        write_private(path, &text)?;
        Ok(Arc::new(Identity { path: Some(path.to_owned()), current: ArcSwap::from_pointee(current) }))
    }

    /// Connections from here on get this one.
    pub(crate) fn renew(&self, pair: &Pair) -> Result<()> {
        let text = format!("{}{}", pair.certificate_pem, pair.key_pem);
        let current = Current::parse(&text)?;
        if let Some(path) = &self.path {
            write_private(path, &text)?;
        }
        self.current.store(Arc::new(current));
        Ok(())
    }

    pub(crate) fn validity(&self) -> Validity {
        self.current.load().validity
    }

    /// Whether it is for a server at an address.
    pub(crate) fn has_address(&self, ip: std::net::Ipv4Addr) -> bool {
        use x509_parser::extensions::GeneralName;
        let current = self.current.load();
        let Some(leaf) = current.key.cert.first() else { return false };
        let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return false };
        let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
        let is_it = |name: &GeneralName<'_>| matches!(name, GeneralName::IPAddress(a) if *a == ip.octets());
        names.value.general_names.iter().any(is_it)
    }

    fn key(&self) -> Arc<CertifiedKey> {
        self.current.load().key.clone()
    }
}

impl Current {
    fn parse(pem: &str) -> Result<Current> {
        let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .context("the certificate is damaged")?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).context("the key is damaged or missing")?;
        ensure!(!chain.is_empty(), "the certificate is missing");
        let validity = validity(&chain[0])?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key =
            CertifiedKey::from_der(chain, key, &provider).context("the key is not the certificate's")?;
        Ok(Current { key: Arc::new(key), validity })
    }
}

fn validity(certificate: &CertificateDer<'_>) -> Result<Validity> {
    let (_, certificate) = X509Certificate::from_der(certificate).context("the certificate is damaged")?;
    let at = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp());
    let validity = certificate.validity();
    Ok(Validity { from: at(validity.not_before)?, until: at(validity.not_after)? })
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.key())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Pki;

    #[test]
    fn a_renewed_certificate_is_the_one_that_connections_get_and_that_a_restart_finds() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(&directory.path().join("pki")).unwrap();
        let (first, second) = (pki.client("first", None).unwrap(), pki.client("second", None).unwrap());
        let path = directory.path().join("client.pem");
        assert!(Identity::load(&path).unwrap().is_none());
        let identity = Identity::create(&path, &first).unwrap();
        assert_eq!(subject(&identity), "CN=first");
        identity.renew(&second).unwrap();
        assert_eq!(subject(&identity), "CN=second");
        assert_eq!(subject(&Identity::load(&path).unwrap().unwrap()), "CN=second");
        let mixed = Pair { certificate_pem: first.certificate_pem, key_pem: second.key_pem };
        assert!(identity.renew(&mixed).is_err(), "another's key");
        assert_eq!(subject(&identity), "CN=second");
    }

    /// Of the certificate that a new connection shows.
    fn subject(identity: &Identity) -> String {
        let sent = ResolvesClientCert::resolve(identity, &[], &[]).unwrap();
        X509Certificate::from_der(&sent.cert[0]).unwrap().1.subject().to_string()
    }

    #[test]
    fn a_serving_certificate_is_for_its_addresses_only() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(directory.path()).unwrap();
        let pair = pki.server("n", None, &["n"], &["192.0.2.1".parse().unwrap()]).unwrap();
        let identity = Identity::fixed(&pair).unwrap();
        assert!(identity.has_address([192, 0, 2, 1].into()));
        assert!(!identity.has_address([192, 0, 2, 2].into()));
    }

    #[test]
    fn a_certificate_is_renewed_well_before_its_end() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let validity = Validity { from: at(0), until: at(1000) };
        assert_eq!(validity.renew_at(0.0), at(700));
        assert_eq!(validity.renew_at(1.0), at(900));
    }
}
