//! A certificate of this node: kept in a file, renewed while it is in use.
//!
//! The one before is kept beside it. Whoever renews by a clock that is wrong, or is signed for by one, holds a certificate that
//! is good for nothing once the clock is right; of the two, the one that is good now is shown.

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

/// A certificate and its key, of which new connections always get the best.
pub(crate) struct Identity {
    /// Certificate and key in one file: never one without the other.
    path: Option<PathBuf>,
    /// The newest, and the one before it.
    held: ArcSwap<(Held, Option<Held>)>,
}

#[derive(Clone)]
struct Held {
    key: Arc<CertifiedKey>,
    validity: Validity,
    pem: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) from: Timestamp,
    pub(crate) until: Timestamp,
}

impl Validity {
    fn contains(self, now: Timestamp) -> bool {
        self.from <= now && now < self.until
    }

    /// Whether it is neither so young that clocks a little behind find it too early, nor so old that it ought to be renewed.
    /// Outside of that, either time has gone by or the clock was set.
    pub(crate) fn is_in_middle(self, now: Timestamp, youth: SignedDuration, jitter: f64) -> bool {
        let from = self.from.checked_add(youth).unwrap_or(self.until);
        from <= now && now < self.renew_at(jitter)
    }

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
    /// One that is kept nowhere: whoever has it can make another.
    pub(crate) fn fixed(pair: &Pair) -> Result<Arc<Identity>> {
        Ok(Identity::new(None, Held::parse(pair.pem())?, None))
    }

    fn new(path: Option<&Path>, newest: Held, last: Option<Held>) -> Arc<Identity> {
        Arc::new(Identity { path: path.map(Path::to_owned), held: ArcSwap::from_pointee((newest, last)) })
    }

    /// The one that is kept in a file, if there is one.
    pub(crate) fn load(path: &Path) -> Result<Option<Arc<Identity>>> {
        let Some(newest) = Held::read(path)? else { return Ok(None) };
        // It is no more than a help.
        let last = Held::read(&last(path)).unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "passing over the certificate before the last");
            None
        });
        Ok(Some(Identity::new(Some(path), newest, last)))
    }

    /// Keeps a new one in a file.
    pub(crate) fn create(path: &Path, pair: &Pair) -> Result<Arc<Identity>> {
        let newest = Held::parse(pair.pem())?;
        write_private(path, &newest.pem)?;
        Ok(Identity::new(Some(path), newest, None))
    }

    /// Connections from here on get this one.
    pub(crate) fn renew(&self, pair: &Pair) -> Result<()> {
        let newest = Held::parse(pair.pem())?;
        let before = self.best();
        if let Some(path) = &self.path {
            write_private(&last(path), &before.pem)?;
            write_private(path, &newest.pem)?;
        }
        self.held.store(Arc::new((newest, Some(before))));
        Ok(())
    }

    /// The newest that is good now; where none is, the newest.
    fn best(&self) -> Held {
        let (held, now) = (self.held.load(), Timestamp::now());
        let (newest, last) = &**held;
        match last {
            Some(last) if !newest.validity.contains(now) && last.validity.contains(now) => last.clone(),
            _ => newest.clone(),
        }
    }

    pub(crate) fn validity(&self) -> Validity {
        self.best().validity
    }

    /// Whether it is for a server at an address.
    pub(crate) fn has_address(&self, ip: std::net::Ipv4Addr) -> bool {
        use x509_parser::extensions::GeneralName;
        let best = self.best();
        let Some(leaf) = best.key.cert.first() else { return false };
        let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return false };
        let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
        let is_it = |name: &GeneralName<'_>| matches!(name, GeneralName::IPAddress(a) if *a == ip.octets());
        names.value.general_names.iter().any(is_it)
    }

    fn key(&self) -> Arc<CertifiedKey> {
        self.best().key
    }
}

/// Where the certificate before the one in `path` is kept.
pub(crate) fn last(path: &Path) -> PathBuf {
    path.with_extension("last.pem")
}

impl Held {
    fn read(path: &Path) -> Result<Option<Held>> {
        let reading = || format!("reading {}", path.display());
        match fs::read_to_string(path) {
            Ok(text) => Held::parse(text).map(Some).with_context(reading),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(reading),
        }
    }

    fn parse(pem: String) -> Result<Held> {
        let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .context("the certificate is damaged")?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).context("the key is damaged or missing")?;
        ensure!(!chain.is_empty(), "the certificate is missing");
        let validity = validity(&chain[0])?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key =
            CertifiedKey::from_der(chain, key, &provider).context("the key is not the certificate's")?;
        Ok(Held { key: Arc::new(key), validity, pem })
    }
}

impl Pair {
    fn pem(&self) -> String {
        format!("{}{}", self.certificate_pem, self.key_pem)
    }

    /// How long its certificate is good.
    pub(crate) fn validity(&self) -> Result<Validity> {
        let leaf = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes());
        validity(&leaf.context("the certificate is damaged")?)
    }
}

fn validity(certificate: &CertificateDer<'_>) -> Result<Validity> {
    let (_, certificate) = X509Certificate::from_der(certificate).context("the certificate is damaged")?;
    validity_of(&certificate)
}

pub(crate) fn validity_of(certificate: &X509Certificate<'_>) -> Result<Validity> {
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
    use crate::pki::{Clock, Pki};

    #[test]
    fn a_renewed_certificate_is_the_one_that_connections_get_and_that_a_restart_finds() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(&directory.path().join("pki"), Clock::Checked).unwrap();
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
    fn a_certificate_that_is_not_good_yet_does_not_take_the_place_of_one_that_is() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(&directory.path().join("pki"), Clock::Checked).unwrap();
        let path = directory.path().join("client.pem");
        let identity = Identity::create(&path, &pki.client("first", None).unwrap()).unwrap();
        // As a server signs it whose clock is a day ahead.
        identity.renew(&from_tomorrow("second")).unwrap();
        assert_eq!(subject(&identity), "CN=first");
        assert_eq!(subject(&Identity::load(&path).unwrap().unwrap()), "CN=first", "after a restart");
        assert!(identity.validity().contains(Timestamp::now()));
        identity.renew(&pki.client("third", None).unwrap()).unwrap();
        assert_eq!(subject(&identity), "CN=third");
    }

    fn from_tomorrow(user: &str) -> Pair {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, user);
        let day = std::time::Duration::from_secs(86_400);
        params.not_before = (std::time::SystemTime::now() + day).into();
        params.not_after = params.not_before + day;
        Pair { certificate_pem: params.self_signed(&key).unwrap().pem(), key_pem: key.serialize_pem() }
    }

    #[test]
    fn a_serving_certificate_is_for_its_addresses_only() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(directory.path(), Clock::Checked).unwrap();
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

    #[test]
    fn a_clock_that_is_set_leaves_the_middle_of_a_certificates_life_on_either_side() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let validity = Validity { from: at(0), until: at(1000) };
        let is_in_middle = |s| validity.is_in_middle(at(s), SignedDuration::from_secs(100), 0.0);
        for (second, wanted) in
            [(-1, false), (99, false), (100, true), (699, true), (700, false), (5000, false)]
        {
            assert_eq!(is_in_middle(second), wanted, "{second}");
        }
    }
}
