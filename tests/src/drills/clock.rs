//! Credentials as a machine signs them whose clock is off.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use crate::TestCluster;

/// How long what is signed is good for.
const VALID: Duration = Duration::from_secs(600);

/// A clock that is off by so much.
#[derive(Clone, Copy, Debug)]
pub enum ShiftedClock {
    Ahead(Duration),
    Behind(Duration),
}

/// A kubeconfig in a file of its own. Dropping it removes the file.
#[derive(Debug)]
pub struct Credential {
    path: PathBuf,
}

impl Credential {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Credential {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl ShiftedClock {
    /// What it shows now, since the epoch.
    fn now(self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        match self {
            ShiftedClock::Ahead(by) => now + by,
            ShiftedClock::Behind(by) => now.saturating_sub(by),
        }
    }

    /// An administrator's certificate, signed by the cluster's authority by this clock.
    pub fn certificate(self, cluster: &TestCluster) -> Result<Credential> {
        let pki = cluster.data_dir().join("pki");
        let read = |name: &str| {
            let path = pki.join(name);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let issuer = Issuer::from_ca_cert_pem(&read("ca.crt")?, KeyPair::from_pem(&read("ca.key")?)?)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "drill");
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + self.now();
        params.not_after = params.not_before + VALID;
        let certificate = params.signed_by(&key, &issuer)?.pem();
        let user = json!({"client-certificate-data": STANDARD.encode(certificate),
                          "client-key-data": STANDARD.encode(key.serialize_pem())});
        kubeconfig(cluster, user)
    }

    /// A token of the default service account, signed with the cluster's key by this clock.
    pub fn token(self, cluster: &TestCluster) -> Result<Credential> {
        let account = cluster.get(&["serviceaccount", "default"])?;
        // What differs between clusters is taken from a token that the server itself has signed.
        let signed = cluster.kubectl(&["create", "token", "default"])?;
        let mut claims = claims(signed.trim())?;
        let now = self.now().as_secs();
        claims["iat"] = now.into();
        claims["nbf"] = now.into();
        claims["exp"] = (now + VALID.as_secs()).into();
        claims["kubernetes.io"]["serviceaccount"]["uid"] = account["metadata"]["uid"].clone();
        let path = cluster.data_dir().join("pki/sa.key");
        let key = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let token =
            jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &EncodingKey::from_ec_pem(&key)?)?;
        kubeconfig(cluster, json!({"token": token}))
    }
}

fn claims(token: &str) -> Result<Value> {
    let payload = token.split('.').nth(1).context("no token")?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// The cluster's kubeconfig with another user.
fn kubeconfig(cluster: &TestCluster, user: Value) -> Result<Credential> {
    let mut config = serde_json::to_value(kube::config::Kubeconfig::read_from(cluster.kubeconfig())?)?;
    config["apiVersion"] = "v1".into();
    config["kind"] = "Config".into();
    config["users"][0]["user"] = user;
    let number = rand::random::<u32>();
    let path = std::env::temp_dir().join(format!("skiff-drill-{}-{number:08x}.yaml", std::process::id()));
    let credential = Credential { path };
    fs::write(&credential.path, serde_json::to_vec(&config)?)
        .with_context(|| format!("writing {}", credential.path.display()))?;
    Ok(credential)
}

/// A wall clock for processes that are started with it. It starts right; the monotonic clock is the machine's.
#[derive(Debug)]
pub struct OwnClock {
    file: tempfile::NamedTempFile,
    library: String,
}

impl OwnClock {
    pub fn new() -> Result<OwnClock> {
        let file = tempfile::NamedTempFile::new().context("making the clock's file")?;
        let of = |entry: std::fs::DirEntry| entry.path().join("faketime/libfaketimeMT.so.1");
        let libraries = std::fs::read_dir("/usr/lib").context("looking for libfaketime")?;
        let library = libraries.flatten().map(of).find(|path| path.exists());
        let library = library.context("libfaketime is not there; install it with: cargo xtask setup")?;
        let clock = OwnClock { file, library: library.to_string_lossy().into_owned() };
        clock.set("+0")?;
        Ok(clock)
    }

    /// Sets it to so much from the right time, such as `+400d` or `-1h`. Processes see it within a second.
    pub fn set(&self, shift: &str) -> Result<()> {
        std::fs::write(self.file.path(), format!("{shift}\n")).context("setting the clock")
    }

    /// What a process is started with to go by it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            pair("LD_PRELOAD", &self.library),
            pair("FAKETIME_TIMESTAMP_FILE", &self.file.path().to_string_lossy()),
            pair("FAKETIME_CACHE_DURATION", "1"),
            pair("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    }
}
