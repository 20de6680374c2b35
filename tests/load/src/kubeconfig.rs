//! What of a kubeconfig matters here: one server, its authority, a client certificate or a token.

use std::path::Path;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Kubeconfig {
    #[serde(rename = "current-context")]
    current_context: String,
    clusters: Vec<Named<ClusterEntry>>,
    contexts: Vec<Named<ContextEntry>>,
    users: Vec<Named<UserEntry>>,
}

/// An entry of one of the lists; each list has its own name for the second field.
#[derive(Debug, Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "cluster", alias = "context", alias = "user")]
    value: T,
}

#[derive(Debug, Deserialize)]
struct ClusterEntry {
    server: String,
    #[serde(rename = "certificate-authority-data")]
    certificate_authority_data: String,
}

#[derive(Debug, Deserialize)]
struct ContextEntry {
    cluster: String,
    user: String,
}

#[derive(Debug, Default, Deserialize)]
struct UserEntry {
    #[serde(rename = "client-certificate-data")]
    client_certificate_data: Option<String>,
    #[serde(rename = "client-key-data")]
    client_key_data: Option<String>,
    token: Option<String>,
}

/// How to reach one API server, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// `host:port`.
    pub authority: String,
    pub ca_pem: Vec<u8>,
    /// Certificate chain and key.
    pub identity_pem: Option<(Vec<u8>, Vec<u8>)>,
    pub token: Option<String>,
}

impl Access {
    pub fn read(path: &Path) -> Result<Access> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Access::parse(&text).with_context(|| format!("{} cannot be used", path.display()))
    }

    fn parse(text: &str) -> Result<Access> {
        let config: Kubeconfig = serde_saphyr::from_str(text)?;
        let context = find(&config.contexts, &config.current_context, "context")?;
        let cluster = find(&config.clusters, &context.cluster, "cluster")?;
        let user = find(&config.users, &context.user, "user")?;
        let authority = cluster
            .server
            .strip_prefix("https://")
            .with_context(|| format!("the server {:?} is not https", cluster.server))?
            .trim_end_matches('/');
        let decode =
            |text: &String, what: &str| STANDARD.decode(text).with_context(|| format!("decoding the {what}"));
        let identity_pem = match (&user.client_certificate_data, &user.client_key_data) {
            (Some(chain), Some(key)) => {
                Some((decode(chain, "client certificate")?, decode(key, "client key")?))
            }
            _ => None,
        };
        Ok(Access {
            authority: if authority.contains(':') {
                authority.to_owned()
            } else {
                format!("{authority}:443")
            },
            ca_pem: decode(&cluster.certificate_authority_data, "certificate authority")?,
            identity_pem,
            token: user.token.clone(),
        })
    }
}

fn find<'a, T>(all: &'a [Named<T>], name: &str, what: &str) -> Result<&'a T> {
    let found = all.iter().find(|entry| entry.name == name);
    found.map(|entry| &entry.value).with_context(|| format!("it has no {what} {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::Access;

    const TEXT: &str = "
apiVersion: v1
kind: Config
current-context: one
clusters: [{name: a, cluster: {server: 'https://127.0.0.1:6443', certificate-authority-data: Y2E=}}]
contexts: [{name: other, context: {cluster: x, user: x}}, {name: one, context: {cluster: a, user: u}}]
users: [{name: u, user: {client-certificate-data: Y2VydA==, client-key-data: a2V5}}]
";

    #[test]
    fn the_current_context_says_who_asks_whom() {
        let access = Access::parse(TEXT).expect("it is sound");
        assert_eq!(access.authority, "127.0.0.1:6443");
        assert_eq!(access.ca_pem, b"ca");
        assert_eq!(access.identity_pem, Some((b"cert".to_vec(), b"key".to_vec())));
    }

    #[test]
    fn a_context_that_is_not_there_is_named() {
        let text = TEXT.replace("current-context: one", "current-context: two");
        let error = Access::parse(&text).expect_err("there is no such context");
        assert_eq!(error.to_string(), "it has no context \"two\"");
    }
}
