//! The cluster's authorities: their certificates, made and made anew.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber};
use x509_parser::pem::Pem;

use super::{BACKDATE_S, DAY_S, YEAR_S, name, set_life, write_private};

const CA_YEARS: i64 = 10;
const SERIAL_BYTES: usize = 16;

/// Which authority it is.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    /// Of its files: `<file>.crt`, `<file>.key`.
    file: &'static str,
    name: &'static str,
}

/// Who signs everything.
pub(super) const CLUSTER: Kind = Kind { file: "ca", name: "skiff-ca" };
/// Who signs for front proxies, and nothing else.
pub(super) const FRONT_PROXY: Kind = Kind { file: "front-proxy-ca", name: "skiff-front-proxy-ca" };
const ALL: [Kind; 2] = [CLUSTER, FRONT_PROXY];

impl Kind {
    fn certificate(self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.crt", self.file))
    }

    fn key(self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.key", self.file))
    }

    /// The certificate that it had before.
    fn last(self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.last.crt", self.file))
    }

    /// Reads it, or makes it.
    pub(super) fn open(self, directory: &Path, clock: Clock) -> Result<Authority> {
        let (path, key) = (self.certificate(directory), super::key(&self.key(directory))?);
        let certificate_pem = super::kept(&path, || self.make(&key, clock))?;
        Authority::new(certificate_pem, key).with_context(|| format!("reading {}", path.display()))
    }

    /// It with the certificate that lies there now, if that is another.
    pub(super) fn reload(self, directory: &Path, known: &Authority) -> Result<Option<Authority>> {
        let path = self.certificate(directory);
        let reading = || format!("reading {}", path.display());
        let certificate_pem = fs::read_to_string(&path).with_context(reading)?;
        if certificate_pem == known.certificate_pem {
            return Ok(None);
        }
        let key = KeyPair::from_pem(&known.key_pem).context("reading the authority's key")?;
        Ok(Some(Authority::new(certificate_pem, key).with_context(reading)?))
    }
}

/// What signs, with the certificate that it has at the moment.
pub(super) struct Authority {
    pub(super) certificate_pem: String,
    pub(super) key_pem: String,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

/// Whether an authority may be made by whatever the clock shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    Checked,
    Accepted,
}

impl Clock {
    /// By the flag `--accept-clock`.
    pub(crate) fn of(is_accepted: bool) -> Clock {
        if is_accepted { Clock::Accepted } else { Clock::Checked }
    }
}

impl Authority {
    pub(super) fn new(certificate_pem: String, key: KeyPair) -> Result<Authority> {
        ensure!(has_key(&certificate_pem, &key)?, "the certificate is not of the key in ca.key");
        let key_pem = key.serialize_pem();
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).context("it cannot sign")?;
        Ok(Authority { certificate_pem, key_pem, issuer })
    }
}

fn has_key(certificate_pem: &str, key: &KeyPair) -> Result<bool> {
    let (pem, _) =
        Pem::read(std::io::Cursor::new(certificate_pem.as_bytes())).context("it holds no certificate")?;
    let certificate = pem.parse_x509().context("the certificate is damaged")?;
    Ok(certificate.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
}

impl Kind {
    /// A certificate that the authority signs for itself.
    fn make(self, key: &KeyPair, clock: Clock) -> Result<String> {
        let now = Timestamp::now();
        if let Some(fault) = clock_fault(now).filter(|_| clock == Clock::Checked) {
            bail!("{fault}");
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = name(self.name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        // Two certificates of one issuer must not have one number, and by itself the number would be made from the key.
        params.serial_number = Some(SerialNumber::from_slice(&rand::random::<[u8; SERIAL_BYTES]>()));
        set_life(&mut params, authority_life(now.as_second(), built_at_s()));
        Ok(params.self_signed(key).context("signing the authority's certificate")?.pem())
    }
}

/// Gives the authorities of a directory other certificates, with the keys that they have. The ones before stay beside them; that
/// of the cluster in the file that is answered.
pub(crate) fn rotate(directory: &Path, clock: Clock) -> Result<PathBuf> {
    let last = rotate_one(CLUSTER, directory, clock)?;
    // A cluster of an older program has none yet.
    if FRONT_PROXY.certificate(directory).exists() {
        rotate_one(FRONT_PROXY, directory, clock)?;
    }
    Ok(last)
}

fn rotate_one(kind: Kind, directory: &Path, clock: Clock) -> Result<PathBuf> {
    let (path, key_path, last) = (kind.certificate(directory), kind.key(directory), kind.last(directory));
    let read = |path: &Path| {
        fs::read_to_string(path)
            .with_context(|| format!("reading {}; is a server kept here?", path.display()))
    };
    let (before, key_pem) = (read(&path)?, read(&key_path)?);
    let key = KeyPair::from_pem(&key_pem).with_context(|| format!("reading {}", key_path.display()))?;
    let is_its_own = has_key(&before, &key).with_context(|| format!("reading {}", path.display()))?;
    ensure!(
        is_its_own,
        "{} is not of the key in {}: restore the two from one backup",
        path.display(),
        key_path.display()
    );
    let made = kind.make(&key, clock)?;
    write_private(&last, &before)?;
    write_private(&path, &made)?;
    Ok(last)
}

/// An authority is good from the day before this program was built on: a clock that is set back later, by no more than that,
/// does not undo it. It lasts from the later of now and then, so that a clock of 1970 makes none that ended long ago.
fn authority_life(now_s: i64, built_s: i64) -> (i64, i64) {
    ((built_s - DAY_S).min(now_s - BACKDATE_S), now_s.max(built_s) + CA_YEARS * YEAR_S)
}

/// When this program was built.
fn built_at_s() -> i64 {
    env!("SKIFF_BUILT_AT_S").parse().unwrap_or(0)
}

/// Why a clock cannot be right.
pub(crate) fn clock_fault(now: Timestamp) -> Option<String> {
    let built = Timestamp::from_second(built_at_s()).ok().filter(|built| now < *built)?;
    Some(format!(
        "this machine's clock shows {now:.0}, which is before this program was built ({built}): what the cluster trusts for ten \
         years is not made by it; set the clock, for example with systemd-timesyncd or chrony, or say --accept-clock"
    ))
}

/// Where the certificate of the cluster's authority lies.
pub(crate) fn authority_file(directory: &Path) -> PathBuf {
    CLUSTER.certificate(directory)
}

/// Where the certificates of all authorities lie, and those that they had before.
pub(crate) fn authority_files(directory: &Path) -> Vec<(PathBuf, PathBuf)> {
    ALL.iter().map(|kind| (kind.certificate(directory), kind.last(directory))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pki::{Pair, Pki};

    #[test]
    fn an_authority_outlives_a_clock_that_was_wrong_when_it_was_made() {
        let built = 1_800_000_000;
        let (from, until) = authority_life(0, built);
        assert!(from <= -BACKDATE_S, "it is not yet good by the clock that made it");
        assert_eq!(until, built + 10 * YEAR_S, "made in 1970, it has ended before the clock is right");
        let year_later = built + YEAR_S;
        let (from, until) = authority_life(year_later, built);
        assert_eq!(from, built - DAY_S, "a clock that is set back undoes it");
        assert_eq!(until, year_later + 10 * YEAR_S);
    }

    #[test]
    fn a_clock_that_shows_a_time_before_the_program_was_built_is_told_from_one_that_may_be_right() {
        let fault = clock_fault(Timestamp::UNIX_EPOCH).unwrap();
        assert!(fault.contains("1970-01-01T00:00:00Z") && fault.contains("--accept-clock"), "{fault}");
        assert_eq!(clock_fault(Timestamp::now()), None);
    }

    /// Whether an authority's certificate vouches for a client's.
    fn vouches(ca_pem: &str, pair: &Pair) -> bool {
        use rustls_pki_types::pem::PemObject as _;
        use rustls_pki_types::{CertificateDer, UnixTime};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let leaf = CertificateDer::from_pem_slice(pair.certificate_pem.as_bytes()).unwrap();
        verifier.unwrap().verify_client_cert(&leaf, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn a_new_certificate_of_the_authority_vouches_for_what_was_signed_before_and_is_pinned_by_the_same_hash()
    {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(directory.path(), Clock::Checked).unwrap();
        let (before, signed_before) = (pki.ca_pem(), pki.client("a", None).unwrap());
        assert!(!pki.reload().unwrap());
        let last = rotate(directory.path(), Clock::Checked).unwrap();
        assert_eq!(fs::read_to_string(last).unwrap(), before);
        assert!(pki.reload().unwrap(), "it is not taken up");
        assert!(!pki.reload().unwrap(), "it is taken up twice");
        let (now, signed_now) = (pki.ca_pem(), pki.client("a", None).unwrap());
        assert_ne!(now, before);
        for (ca_pem, pair) in [(&now, &signed_before), (&before, &signed_now), (&now, &signed_now)] {
            assert!(vouches(ca_pem, pair));
        }
        let hash = |pem: &str| crate::token::ca_hash(pem.as_bytes()).unwrap();
        assert_eq!(hash(&now), hash(&before));
        assert_ne!(serial(&now), serial(&before));
        assert_eq!(Pki::open(directory.path(), Clock::Checked).unwrap().ca_pem(), now, "after a restart");
    }

    #[test]
    fn front_proxies_have_an_authority_of_their_own_which_is_rotated_with_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(directory.path(), Clock::Checked).unwrap();
        let (before, signed_before) = (pki.front_proxy_ca_pem(), pki.front_proxy().unwrap());
        assert!(vouches(&before, &signed_before));
        assert!(!vouches(&pki.ca_pem(), &signed_before), "a front proxy is no client");
        assert!(!vouches(&before, &pki.client("a", None).unwrap()), "a client is no front proxy");
        rotate(directory.path(), Clock::Checked).unwrap();
        assert!(pki.reload().unwrap());
        let now = pki.front_proxy_ca_pem();
        assert_ne!(now, before);
        for (ca_pem, pair) in [(&now, &signed_before), (&before, &pki.front_proxy().unwrap())] {
            assert!(vouches(ca_pem, pair));
        }
        let last = directory.path().join("front-proxy-ca.last.crt");
        assert_eq!(fs::read_to_string(last).unwrap(), before);
    }

    fn serial(pem: &str) -> String {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        pem.parse_x509().unwrap().raw_serial_as_string()
    }

    #[test]
    fn a_certificate_of_another_key_is_neither_taken_up_nor_followed_by_a_new_one() {
        let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pki = Pki::open(ours.path(), Clock::Checked).unwrap();
        let before = pki.ca_pem();
        assert!(!vouches(
            &Pki::open(others.path(), Clock::Checked).unwrap().ca_pem(),
            &pki.client("a", None).unwrap()
        ));
        fs::copy(authority_file(others.path()), authority_file(ours.path())).unwrap();
        assert!(pki.reload().is_err());
        assert_eq!(pki.ca_pem(), before);
        let error = rotate(ours.path(), Clock::Checked).unwrap_err().to_string();
        assert!(error.contains("is not of the key in"), "{error}");
        let error = rotate(&ours.path().join("none"), Clock::Checked).unwrap_err().to_string();
        assert!(error.contains("is a server kept here?"), "{error}");
    }
}
