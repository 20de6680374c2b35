//! The cluster's keys: made once, kept in files of mode 0600.
//!
//! One authority signs everything, but for what the API server shows as a front proxy to API servers that stand behind it: who may
//! say in whose name a request is sent is vouched for by an authority of its own. Certificates are made anew at each start and whenever the clock or an address has left what
//! they were made for (`upkeep`), so that a cluster may grow older than a certificate; only the authority and keys are kept.
//!
//! The authority lasts ten years by the clock it was made by, and every node trusts it by name: none is made by a clock that
//! shows a time before this program was built. [`rotate`] makes another certificate of it, with the key that it has: nodes and
//! tokens pin the key, and what it signed stays good. A running server takes that up ([`Pki::reload`]).

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use aws_lc_rs::encoding::{AsDer as _, EcPrivateKeyRfc5915Der};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use jiff::Timestamp;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use tracing::warn;

use crate::identity::Validity;

mod authority;

use authority::{Authority, CLUSTER, FRONT_PROXY};
pub(crate) use authority::{Clock, authority_file, authority_files, clock_fault, rotate};

const PEM_COLUMNS: usize = 64;
/// The one front proxy that there is, by kubeadm's name of it.
pub(crate) const FRONT_PROXY_NAME: &str = "front-proxy-client";
const DAY_S: i64 = 86_400;
const YEAR_S: i64 = 365 * DAY_S;
/// Certificates are good from a little before now, for clocks that are not quite equal.
pub(crate) const BACKDATE_S: i64 = 3600;

/// The authority and the keys that are kept.
pub(crate) struct Pki {
    directory: PathBuf,
    authority: ArcSwap<Authority>,
    front_proxy: ArcSwap<Authority>,
    pub(crate) service_account_private_pem: String,
    pub(crate) service_account_public_pem: String,
    admin_key: KeyPair,
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
        let (authority, front_proxy) = (CLUSTER.open(directory, clock)?, FRONT_PROXY.open(directory, clock)?);
        let account_key = key(&directory.join("sa.key"))?;
        let admin_key = key(&directory.join("admin.key"))?;
        Ok(Pki {
            directory: directory.to_owned(),
            authority: ArcSwap::from_pointee(authority),
            front_proxy: ArcSwap::from_pointee(front_proxy),
            service_account_private_pem: account_key.serialize_pem(),
            service_account_public_pem: account_key.public_key_pem(),
            admin_key,
        })
    }

    /// The authority's certificate of the moment.
    pub(crate) fn ca_pem(&self) -> String {
        self.authority.load().certificate_pem.clone()
    }

    pub(crate) fn ca_key_pem(&self) -> String {
        self.authority.load().key_pem.clone()
    }

    /// Of the authority for front proxies.
    pub(crate) fn front_proxy_ca_pem(&self) -> String {
        self.front_proxy.load().certificate_pem.clone()
    }

    /// Takes up the certificates that the authorities have been given meanwhile; answers whether one was given one.
    ///
    /// # Errors
    /// If one cannot be read or is not the authority's: the one that is known stays.
    pub(crate) fn reload(&self) -> Result<bool> {
        let mut has_changed = false;
        for (kind, known) in [(CLUSTER, &self.authority), (FRONT_PROXY, &self.front_proxy)] {
            if let Some(new) = kind.reload(&self.directory, &known.load())? {
                known.store(Arc::new(new));
                has_changed = true;
            }
        }
        Ok(has_changed)
    }

    /// Leaves a certificate that a process shows where `skiff certs check` finds it, without its key; answers how long it is
    /// good. That it cannot be written down is no reason not to show it.
    pub(crate) fn shows(&self, whose: &str, pair: &Pair) -> Result<Validity> {
        let directory = shown_directory(&self.directory);
        let write = || -> Result<()> {
            fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
            write_private(&directory.join(format!("{whose}.crt")), &pair.certificate_pem)
        };
        if let Err(error) = write() {
            warn!(whose, error = format!("{error:#}"), "a certificate is shown and not written down");
        }
        pair.validity()
    }

    /// The administrator's certificate from now on, with the one key that there is for it.
    pub(crate) fn administrator(&self) -> Result<Pair> {
        let (user, group) = ("kubernetes-admin", Some("system:masters"));
        let authority = self.authority.load();
        let certificate_pem =
            sign(&authority.issuer, &self.admin_key, user, group, Usage::Client, Vec::new())?;
        Ok(Pair { certificate_pem, key_pem: self.admin_key.serialize_pem() })
    }

    pub(crate) fn client(&self, user: &str, group: Option<&str>) -> Result<Pair> {
        self.issue(user, group, Usage::Client, Vec::new())
    }

    /// What the API server shows to those behind it.
    pub(crate) fn front_proxy(&self) -> Result<Pair> {
        let key = KeyPair::generate().context("making a key")?;
        let issuer = self.front_proxy.load();
        let certificate_pem = sign(&issuer.issuer, &key, FRONT_PROXY_NAME, None, Usage::Client, Vec::new())?;
        Ok(Pair { certificate_pem, key_pem: key.serialize_pem() })
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
        let certificate_pem = sign(&self.authority.load().issuer, &key, user, group, usage, sans)?;
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
            encode(&self.ca_pem()),
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

/// Where the certificates lie that a running server showed last.
pub(crate) fn shown_directory(directory: &Path) -> PathBuf {
    directory.join("shown")
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
        assert_eq!(first.ca_pem(), again.ca_pem());
        assert_eq!(first.front_proxy_ca_pem(), again.front_proxy_ca_pem());
        assert_ne!(first.ca_pem(), first.front_proxy_ca_pem());
        assert_eq!(first.service_account_private_pem, again.service_account_private_pem);
        for file in fs::read_dir(directory.path()).unwrap() {
            let mode = file.unwrap().metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600);
        }
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
