//! The cluster's keys: made once, kept in files of mode 0600.
//!
//! One authority signs everything. Certificates are made anew at each start and whenever the clock or an address has left what
//! they were made for (`upkeep`), so that a cluster may grow older than a certificate; only the authority and keys are kept.
//!
//! The authority lasts ten years by the clock it was made by, and every node trusts it by name: none is made by a clock that
//! shows a time before this program was built.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::encoding::{AsDer as _, EcPrivateKeyRfc5915Der};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

const PEM_COLUMNS: usize = 64;
const DAY_S: i64 = 86_400;
const YEAR_S: i64 = 365 * DAY_S;
const CA_YEARS: i64 = 10;
/// Certificates are good from a little before now, for clocks that are not quite equal.
pub(crate) const BACKDATE_S: i64 = 3600;

/// The authority and the keys that are kept.
pub(crate) struct Pki {
    pub(crate) ca_pem: String,
    pub(crate) ca_key_pem: String,
    issuer: Issuer<'static, KeyPair>,
    pub(crate) service_account_private_pem: String,
    pub(crate) service_account_public_pem: String,
    admin_key: KeyPair,
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

/// A certificate and its key, in PEM.
pub(crate) struct Pair {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

/// What a certificate is good for.
#[derive(Clone, Copy)]
enum Usage {
    Client,
    Server,
}

impl Pki {
    /// Reads the keys in a directory; makes those that are missing.
    pub(crate) fn open(directory: &Path, clock: Clock) -> Result<Pki> {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        let ca_key = key(&directory.join("ca.key"))?;
        let ca_pem = kept(&authority_file(directory), || {
            let now = Timestamp::now();
            if let Some(fault) = clock_fault(now).filter(|_| clock == Clock::Checked) {
                bail!("{fault}");
            }
            let mut params = CertificateParams::default();
            params.distinguished_name = name("skiff-ca", None);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![
                KeyUsagePurpose::KeyCertSign,
                KeyUsagePurpose::CrlSign,
                KeyUsagePurpose::DigitalSignature,
            ];
            set_life(&mut params, authority_life(now.as_second(), built_at_s()));
            Ok(params.self_signed(&ca_key)?.pem())
        })?;
        let ca_key_pem = ca_key.serialize_pem();
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).context("reading ca.crt")?;
        let account_key = key(&directory.join("sa.key"))?;
        let admin_key = key(&directory.join("admin.key"))?;
        Ok(Pki {
            service_account_private_pem: account_key.serialize_pem(),
            service_account_public_pem: account_key.public_key_pem(),
            admin_key,
            ca_pem,
            ca_key_pem,
            issuer,
        })
    }

    /// The administrator's certificate from now on, with the one key that there is for it.
    pub(crate) fn administrator(&self) -> Result<Pair> {
        let (user, group) = ("kubernetes-admin", Some("system:masters"));
        let certificate_pem = sign(&self.issuer, &self.admin_key, user, group, Usage::Client, Vec::new())?;
        Ok(Pair { certificate_pem, key_pem: self.admin_key.serialize_pem() })
    }

    pub(crate) fn client(&self, user: &str, group: Option<&str>) -> Result<Pair> {
        self.issue(user, group, Usage::Client, Vec::new())
    }

    pub(crate) fn server(
        &self,
        user: &str,
        group: Option<&str>,
        names: &[&str],
        ips: &[IpAddr],
    ) -> Result<Pair> {
        let mut sans: Vec<SanType> = ips.iter().copied().map(SanType::IpAddress).collect();
        for name in names {
            sans.push(SanType::DnsName(
                (*name).try_into().with_context(|| format!("{name:?} is no DNS name"))?,
            ));
        }
        self.issue(user, group, Usage::Server, sans)
    }

    fn issue(&self, user: &str, group: Option<&str>, usage: Usage, sans: Vec<SanType>) -> Result<Pair> {
        let key = KeyPair::generate().context("making a key")?;
        let certificate_pem = sign(&self.issuer, &key, user, group, usage, sans)?;
        Ok(Pair { certificate_pem, key_pem: key.serialize_pem() })
    }

    /// The administrator's kubeconfig for an API server at `server`.
    pub(crate) fn kubeconfig(&self, admin: &Pair, cluster: &str, server: &str) -> Result<String> {
        let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
        let key_pem = sec1(&admin.key_pem)?;
        Ok(format!(
            "apiVersion: v1
kind: Config
clusters:
- name: {cluster}
  cluster:
    server: {server}
    certificate-authority-data: {}
users:
- name: {cluster}
  user:
    client-certificate-data: {}
    client-key-data: {}
contexts:
- name: {cluster}
  context:
    cluster: {cluster}
    user: {cluster}
current-context: {cluster}
",
            encode(&self.ca_pem),
            encode(&admin.certificate_pem),
            encode(&key_pem),
        ))
    }
}

/// A P-256 key as `EC PRIVATE KEY` (RFC 5915), with its curve. Every client reads that; Java's of fabric8 no PKCS#8.
fn sec1(pkcs8_pem: &str) -> Result<String> {
    let pkcs8 = KeyPair::from_pem(pkcs8_pem).context("reading the administrator's key")?.serialize_der();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8)
        .context("the administrator's key is not of P-256")?;
    let der: EcPrivateKeyRfc5915Der<'_> =
        pair.private_key().as_der().context("writing the administrator's key")?;
    let text = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    let mut pem = String::from("-----BEGIN EC PRIVATE KEY-----\n");
    for at in (0..text.len()).step_by(PEM_COLUMNS) {
        pem.push_str(&text[at..text.len().min(at + PEM_COLUMNS)]);
        pem.push('\n');
    }
    pem.push_str("-----END EC PRIVATE KEY-----\n");
    Ok(pem)
}

fn sign(
    issuer: &Issuer<'_, KeyPair>,
    key: &KeyPair,
    user: &str,
    group: Option<&str>,
    usage: Usage,
    sans: Vec<SanType>,
) -> Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(user, group);
    params.subject_alt_names = sans;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match usage {
        Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
    }];
    let now = Timestamp::now().as_second();
    set_life(&mut params, (now - BACKDATE_S, now + YEAR_S));
    let certificate =
        params.signed_by(key, issuer).with_context(|| format!("signing the certificate of {user}"))?;
    Ok(certificate.pem())
}

/// Kubernetes reads the user from the common name and the groups from the organizations. One group: a name of `rcgen`
/// holds one value of each type.
fn name(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, user);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name
}

/// An authority is good from the day before this program was built on: a clock that is set back later, by no more than that,
/// does not undo it. It lasts from the later of now and then, so that a clock of 1970 makes none that ended long ago.
fn authority_life(now_s: i64, built_s: i64) -> (i64, i64) {
    ((built_s - DAY_S).min(now_s - BACKDATE_S), now_s.max(built_s) + CA_YEARS * YEAR_S)
}

/// From one second to another.
fn set_life(params: &mut CertificateParams, (from_s, until_s): (i64, i64)) {
    let at = |second: i64| {
        let moment = Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH);
        let moment = moment.to_zoned(jiff::tz::TimeZone::UTC);
        let (year, month, day) = (moment.year(), moment.month().unsigned_abs(), moment.day().unsigned_abs());
        let of_day = second.rem_euclid(DAY_S).unsigned_abs();
        rcgen::date_time_ymd(i32::from(year), month, day) + Duration::from_secs(of_day)
    };
    params.not_before = at(from_s);
    params.not_after = at(until_s);
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

/// Where the authority's certificate lies.
pub(crate) fn authority_file(directory: &Path) -> PathBuf {
    directory.join("ca.crt")
}

fn key(path: &Path) -> Result<KeyPair> {
    let pem = kept(path, || Ok(KeyPair::generate().context("making a key")?.serialize_pem()))?;
    KeyPair::from_pem(&pem).with_context(|| format!("reading {}", path.display()))
}

/// The content of a file; made and written if it is missing.
fn kept(path: &Path, make: impl FnOnce() -> Result<String>) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = make()?;
            write_private(path, &text)?;
            Ok(text)
        }
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    let partial = PathBuf::from(format!("{}.partial", path.display()));
    let write = || -> std::io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        // The name is the directory's, and as durable as that.
        match path.parent() {
            Some(directory) => fs::File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_are_kept_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let first = Pki::open(directory.path(), Clock::Checked).unwrap();
        let again = Pki::open(directory.path(), Clock::Checked).unwrap();
        assert_eq!(first.ca_pem, again.ca_pem);
        assert_eq!(first.service_account_private_pem, again.service_account_private_pem);
        for file in fs::read_dir(directory.path()).unwrap() {
            let mode = file.unwrap().metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600);
        }
    }

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

    #[test]
    fn the_key_of_a_kubeconfig_is_one_that_every_client_reads() {
        let key = KeyPair::generate().unwrap();
        let pem = sec1(&key.serialize_pem()).unwrap();
        let (_, parsed) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        assert_eq!(parsed.label, "EC PRIVATE KEY");
        // The name of the curve, without which no reader knows whose key it is; then the public half.
        let p256 = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
        assert!(parsed.contents.windows(p256.len()).any(|part| part == p256));
        let public = key.public_key_raw();
        assert!(parsed.contents.windows(public.len()).any(|part| part == public));
    }

    #[test]
    fn a_certificate_carries_user_groups_and_addresses() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(directory.path(), Clock::Checked).unwrap();
        let pair = pki
            .server("system:node:a", Some("system:nodes"), &["a"], &["192.0.2.1".parse().unwrap()])
            .unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pair.certificate_pem.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        assert_eq!(certificate.subject().to_string(), "CN=system:node:a, O=system:nodes");
        let sans = certificate.subject_alternative_name().unwrap().unwrap().value;
        assert_eq!(sans.general_names.len(), 2);
    }
}
