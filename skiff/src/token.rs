//! Tokens that let nodes join, and `skiff token`.
//!
//! ```text
//!  abcdef.0123456789abcdef@sha256:5f0c…     ID.SECRET@hash of the authority's public key
//! ```
//!
//! The server knows a token from the Secret `kube-system/bootstrap-token-ID`, as kubeadm keeps it. The hash, kubeadm's
//! `--discovery-token-ca-cert-hash`, is for the node: no other cluster can pass for the one that the token is of.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Subcommand;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::cluster::client;

const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const NAME_PREFIX: &str = "bootstrap-token-";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 16;
const HASH_PREFIX: &str = "sha256:";

#[derive(Subcommand, Debug)]
pub(crate) enum TokenCommand {
    /// Make a token that lets nodes join, and print it
    Create {
        /// How long it is good for, such as 30m or 24h; 0 for as long as it is not deleted
        #[arg(long, default_value = "24h")]
        ttl: String,
        /// What it is for
        #[arg(long, default_value = "")]
        description: String,
        /// Print the command that joins a node instead
        #[arg(long)]
        print_join_command: bool,
    },
    /// List the tokens, without their secrets
    #[command(visible_alias = "ls")]
    List,
    /// Delete tokens
    #[command(visible_alias = "rm")]
    Delete {
        /// Tokens, or the parts before the dot
        #[arg(required = true)]
        tokens: Vec<String>,
    },
}

/// What a node shows once, to get a certificate.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: String,
    secret: String,
    pub(crate) ca_hash: String,
}

/// Without the secret.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("id", &self.id).field("ca_hash", &self.ca_hash).finish_non_exhaustive()
    }
}

impl Token {
    fn random(ca_hash: String) -> Token {
        Token { id: letters(ID_BYTES), secret: letters(SECRET_BYTES), ca_hash }
    }

    /// What the server is shown.
    pub(crate) fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// All of it. For its owner's eyes.
    pub(crate) fn reveal(&self) -> String {
        format!("{}.{}@{}", self.id, self.secret, self.ca_hash)
    }
}

impl FromStr for Token {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Token> {
        // The text itself is a secret, and not repeated.
        let form = "the token has not the form ID.SECRET@sha256:HASH; make one on the server with: skiff token create";
        let (bearer, ca_hash) = text.trim().split_once('@').context(form)?;
        let (id, secret) = bearer.split_once('.').context(form)?;
        let fits = |part: &str, bytes| part.len() == bytes && part.bytes().all(is_letter);
        let is_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        let hash = ca_hash.strip_prefix(HASH_PREFIX).context(form)?;
        ensure!(fits(id, ID_BYTES) && fits(secret, SECRET_BYTES), form);
        ensure!(hash.len() == 64 && hash.bytes().all(is_hex), form);
        Ok(Token { id: id.into(), secret: secret.into(), ca_hash: ca_hash.into() })
    }
}

fn is_letter(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// Of a generator that is fit for keys, each letter as likely as any other.
fn letters(n: usize) -> String {
    use rand::Rng as _;
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = rand::rng();
    (0..n).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
}

/// The hash of an authority's public key, as kubeadm writes it.
pub(crate) fn ca_hash(ca_pem: &[u8]) -> Result<String> {
    let der = CertificateDer::from_pem_slice(ca_pem).context("the authority's certificate is damaged")?;
    let (_, certificate) =
        X509Certificate::from_der(&der).context("the authority's certificate is damaged")?;
    let digest = Sha256::digest(certificate.public_key().raw);
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!("{HASH_PREFIX}{hex}"))
}

pub(crate) async fn run(command: TokenCommand, kubeconfig: &Path) -> Result<()> {
    match command {
        TokenCommand::Create { ttl, description, print_join_command } => {
            let ttl = parse_ttl(&ttl)?;
            let kube = client(kubeconfig).await?;
            let token = create(&kube, &authority(kubeconfig)?, ttl, &description).await?;
            if print_join_command {
                println!("skiff agent --server {} --token {}", server(&kube).await?, token.reveal());
            } else {
                println!("{}", token.reveal());
            }
            Ok(())
        }
        TokenCommand::List => list(&client(kubeconfig).await?).await,
        TokenCommand::Delete { tokens } => delete(&client(kubeconfig).await?, &tokens).await,
    }
}

/// `None`: for ever.
fn parse_ttl(text: &str) -> Result<Option<SignedDuration>> {
    if text == "0" {
        return Ok(None);
    }
    let ttl: SignedDuration = text.parse().map_err(|_| anyhow!("--ttl {text:?}: write 30m, 24h or 0"))?;
    ensure!(ttl.is_positive(), "--ttl {text:?}: a token must be good for some time");
    Ok(Some(ttl))
}

/// The authority that a kubeconfig trusts.
fn authority(kubeconfig: &Path) -> Result<Vec<u8>> {
    use base64::Engine as _;
    let text = std::fs::read_to_string(kubeconfig)
        .with_context(|| format!("reading {}; is the server running?", kubeconfig.display()))?;
    let parsed = kube::config::Kubeconfig::from_yaml(&text)?;
    let data = parsed.clusters.iter().find_map(|c| c.cluster.as_ref()?.certificate_authority_data.clone());
    let data = data.with_context(|| format!("{} names no authority", kubeconfig.display()))?;
    base64::engine::general_purpose::STANDARD.decode(data).context("the kubeconfig's authority is damaged")
}

/// How nodes reach the API, as the cluster itself tells them.
async fn server(kube: &Client) -> Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(kube.clone(), "kube-public");
    let info = maps.get("cluster-info").await.context("reading kube-public/cluster-info")?;
    let text = info.data.unwrap_or_default().remove("kubeconfig").unwrap_or_default();
    let parsed = kube::config::Kubeconfig::from_yaml(&text).context("reading kube-public/cluster-info")?;
    let server = parsed.clusters.into_iter().find_map(|c| c.cluster?.server);
    server.context("kube-public/cluster-info names no server")
}

fn secrets(kube: &Client) -> Api<Secret> {
    Api::namespaced(kube.clone(), "kube-system")
}

/// Makes a token that the server will take.
pub(crate) async fn create(
    kube: &Client,
    ca_pem: &[u8],
    ttl: Option<SignedDuration>,
    description: &str,
) -> Result<Token> {
    let token = Token::random(ca_hash(ca_pem)?);
    let mut data = json!({
        "token-id": token.id,
        "token-secret": token.secret,
        "usage-bootstrap-authentication": "true",
        "usage-bootstrap-signing": "true",
    });
    if !description.is_empty() {
        data["description"] = description.into();
    }
    if let Some(ttl) = ttl {
        let end = Timestamp::now().checked_add(ttl).context("--ttl is too long")?;
        data["expiration"] = end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
    }
    let secret = json!({
        "metadata": {"name": format!("{NAME_PREFIX}{}", token.id)}, "type": SECRET_TYPE, "stringData": data,
    });
    let secret: Secret = serde_json::from_value(secret)?;
    secrets(kube).create(&PostParams::default(), &secret).await.context("making the token")?;
    Ok(token)
}

async fn list(kube: &Client) -> Result<()> {
    let only = ListParams::default().fields(&format!("type={SECRET_TYPE}"));
    let found = secrets(kube).list(&only).await.context("listing the tokens")?;
    println!("{:<8} {:<10} {:<22} DESCRIPTION", "ID", "TTL", "EXPIRES");
    for secret in found {
        let field = |key: &str| {
            let value = secret.data.as_ref()?.get(key)?;
            String::from_utf8(value.0.clone()).ok()
        };
        let Some(id) = field("token-id") else { continue };
        let end = field("expiration").unwrap_or_default();
        let left = match end.parse::<Timestamp>() {
            Ok(end) => ttl_text(end.duration_since(Timestamp::now())),
            Err(_) => "<forever>".into(),
        };
        let end = if end.is_empty() { "<never>" } else { &end };
        println!("{id:<8} {left:<10} {end:<22} {}", field("description").unwrap_or_default());
    }
    Ok(())
}

fn ttl_text(left: SignedDuration) -> String {
    match left.as_secs() {
        ..=0 => "<invalid>".into(),
        s @ 1..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s => format!("{}h", s / 3600),
    }
}

async fn delete(kube: &Client, tokens: &[String]) -> Result<()> {
    for token in tokens {
        let id = token.split('.').next().unwrap_or_default();
        ensure!(
            id.len() == ID_BYTES && id.bytes().all(is_letter),
            "give a token or its ID, the {ID_BYTES} letters before the dot"
        );
        let deleted = secrets(kube).delete(&format!("{NAME_PREFIX}{id}"), &DeleteParams::default()).await;
        match deleted {
            Ok(_) => println!("token {id} deleted"),
            Err(kube::Error::Api(status)) if status.code == 404 => bail!("there is no token {id}"),
            Err(error) => return Err(error).with_context(|| format!("deleting token {id}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_being_written_and_read() {
        let token = Token::random(format!("sha256:{}", "0a".repeat(32)));
        assert_eq!(token.reveal().parse::<Token>().unwrap(), token);
        assert!(!format!("{token:?}").contains(&token.secret));
    }

    #[test]
    fn what_is_no_token_is_refused_without_being_repeated() {
        let hash = format!("sha256:{}", "0a".repeat(32));
        for text in [
            String::new(),
            "abcdef.0123456789abcdef".into(),
            format!("abcdef.0123456789abcde@{hash}"),
            format!("ABCDEF.0123456789abcdef@{hash}"),
            "abcdef.0123456789abcdef@sha256:0a".into(),
            format!("abcdef.0123456789abcdef@{}", hash.replace("sha256", "md5")),
        ] {
            let error = text.parse::<Token>().unwrap_err().to_string();
            assert!(error.contains("skiff token create"), "{error}");
            assert!(!error.contains("0123456789"), "{error}");
        }
    }

    #[test]
    fn lives_are_read_and_zero_is_for_ever() {
        assert_eq!(parse_ttl("0").unwrap(), None);
        assert_eq!(parse_ttl("24h").unwrap(), Some(SignedDuration::from_hours(24)));
        assert_eq!(parse_ttl("30m").unwrap(), Some(SignedDuration::from_mins(30)));
        assert!(parse_ttl("-1h").is_err());
        assert!(parse_ttl("soon").is_err());
    }
}
