//! Where a webhook is, and as whom it is called, from a kubeconfig.
//!
//! Source: client-go's `tools/clientcmd`; what of it would have the webhook trusted blindly, or run programs, is refused.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use skiff_webhook::{ClientConfig, Identity, Target};
use thiserror::Error;

/// No file that is read here is longer.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, Error)]
pub enum KubeconfigError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("it is no YAML document: {0}")]
    Syntax(String),
    #[error("its current-context {0:?} is not there")]
    NoContext(String),
    #[error("{what} {name:?} is not there")]
    Missing { what: &'static str, name: String },
    #[error("{field} is not base64")]
    Base64 { field: &'static str },
    #[error("{field} is not supported: {why}")]
    Refused { field: &'static str, why: &'static str },
    #[error(
        "its cluster names no server over https: a webhook is told who asks for what, which nobody else may read"
    )]
    NotHttps,
    #[error(
        "its cluster has neither certificate-authority nor certificate-authority-data: nobody else vouches for webhooks here"
    )]
    NoAuthority,
    #[error("a client certificate and its key come together")]
    HalfAnIdentity,
}

/// Reads a kubeconfig with all files that it names.
///
/// # Errors
/// If there is no webhook that could be called.
pub(crate) fn load(path: &Path) -> Result<ClientConfig, KubeconfigError> {
    let text = read(path)?;
    let text = String::from_utf8_lossy(&text);
    // A snippet of it would show its secrets.
    let syntax = |error: serde_saphyr::Error| KubeconfigError::Syntax(error.without_snippet().to_string());
    let config: Value = serde_saphyr::from_str(&text).map_err(syntax)?;
    let base = path.parent().unwrap_or(Path::new("/"));
    let current = config["current-context"].as_str().unwrap_or_default();
    let context =
        named(&config["contexts"], current).ok_or_else(|| KubeconfigError::NoContext(current.to_owned()))?;
    let of = |list: &str, key: &'static str| {
        let name = context["context"][key].as_str().unwrap_or_default();
        let found = named(&config[list], name);
        let missing = || KubeconfigError::Missing { what: key, name: name.to_owned() };
        found.map(|found| &found[key]).ok_or_else(missing)
    };
    let cluster = of("clusters", "cluster")?;
    let has_user = context["context"]["user"].as_str().is_some_and(|user| !user.is_empty());
    let user = if has_user { of("users", "user")? } else { &Value::Null };
    refuse(cluster, user)?;
    let server = cluster["server"].as_str().unwrap_or_default();
    if !server.starts_with("https://") {
        return Err(KubeconfigError::NotHttps);
    }
    let ca_bundle = data(cluster, base, "certificate-authority")?.ok_or(KubeconfigError::NoAuthority)?;
    let certificate = match (data(user, base, "client-certificate")?, data(user, base, "client-key")?) {
        (Some(chain), Some(key)) => Some((chain, key)),
        (None, None) => None,
        _ => return Err(KubeconfigError::HalfAnIdentity),
    };
    let server_name = cluster["tls-server-name"].as_str().filter(|name| !name.is_empty());
    let identity = Identity {
        agent: "kube-apiserver".to_owned(),
        certificate,
        authorization: authorization(user, base)?,
        server_name: server_name.map(str::to_owned),
    };
    let target = Target::Url(server.to_owned());
    Ok(ClientConfig { target, ca_bundle, identity: Some(Arc::new(identity)) })
}

fn named<'v>(list: &'v Value, name: &str) -> Option<&'v Value> {
    list.as_array()?.iter().find(|one| one["name"] == name).filter(|_| !name.is_empty())
}

fn refuse(cluster: &Value, user: &Value) -> Result<(), KubeconfigError> {
    let refused = [
        (cluster, "insecure-skip-tls-verify", "whoever answered in its place could allow everything"),
        (cluster, "proxy-url", "webhooks are called directly"),
        (user, "exec", "the server runs no programs for its credentials"),
        (user, "auth-provider", "the server runs no programs for its credentials"),
    ];
    for (of, field, why) in refused {
        if !matches!(of[field], Value::Null | Value::Bool(false)) {
            return Err(KubeconfigError::Refused { field, why });
        }
    }
    Ok(())
}

/// A file, or what stands in its place in the kubeconfig and comes first.
fn data(of: &Value, base: &Path, file: &'static str) -> Result<Option<Vec<u8>>, KubeconfigError> {
    let inline = format!("{file}-data");
    if let Some(encoded) = of[inline.as_str()].as_str().filter(|encoded| !encoded.is_empty()) {
        let encoded: String = encoded.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        return STANDARD.decode(encoded).map(Some).map_err(|_| KubeconfigError::Base64 { field: file });
    }
    match of[file].as_str().filter(|path| !path.is_empty()) {
        Some(path) => read(&base.join(path)).map(Some),
        None => Ok(None),
    }
}

fn authorization(user: &Value, base: &Path) -> Result<Option<String>, KubeconfigError> {
    let text = |field: &str| user[field].as_str().filter(|text| !text.is_empty());
    if let Some(file) = text("tokenFile") {
        let token = read(&base.join(file))?;
        return Ok(Some(format!("Bearer {}", String::from_utf8_lossy(&token).trim())));
    }
    if let Some(token) = text("token") {
        return Ok(Some(format!("Bearer {token}")));
    }
    let Some(name) = text("username") else { return Ok(None) };
    let pair = format!("{name}:{}", text("password").unwrap_or_default());
    Ok(Some(format!("Basic {}", STANDARD.encode(pair))))
}

fn read(path: &Path) -> Result<Vec<u8>, KubeconfigError> {
    let failed = |source| KubeconfigError::Read { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_BYTES {
        return Err(failed(io::Error::other(format!("it is longer than {MAX_BYTES} bytes"))));
    }
    std::fs::read(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn loaded(cluster: Value, user: Value) -> Result<ClientConfig, String> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), "authority").expect("a file");
        std::fs::write(folder.path().join("token"), "secret\n").expect("a file");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "hook", "cluster": cluster}],
            "users": [{"name": "api", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "hook", "user": "api"}}],
        });
        let path = folder.path().join("kubeconfig");
        std::fs::write(&path, config.to_string()).expect("a file");
        load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn files_are_beside_the_kubeconfig_and_what_stands_in_it_comes_first() {
        let cluster = json!({"server": "https://a/b", "certificate-authority": "ca.pem"});
        let config = loaded(cluster, json!({"tokenFile": "token", "token": "other"})).expect("a config");
        assert_eq!(config.ca_bundle, b"authority");
        let identity = config.identity.expect("an identity");
        assert_eq!(identity.authorization.as_deref(), Some("Bearer secret"));
        assert!(!format!("{identity:?}").contains("secret"));
        let inline = STANDARD.encode("inline");
        let cluster = json!({
            "server": "https://a", "certificate-authority": "ca.pem", "certificate-authority-data": inline,
        });
        let config = loaded(cluster, json!({"username": "u", "password": "p"})).expect("a config");
        assert_eq!(config.ca_bundle, b"inline");
        let identity = config.identity.expect("an identity");
        assert_eq!(identity.authorization.as_deref(), Some("Basic dTpw"));
    }

    #[test]
    fn what_cannot_be_read_of_a_kubeconfig_is_not_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kubeconfig");
        std::fs::write(&path, "users:\n- name: api\n  user:\n    token: c2VjcmV0\n   odd: [\n")
            .expect("a file");
        let error = load(&path).expect_err("no document");
        assert!(matches!(error, KubeconfigError::Syntax(_)));
        assert!(!format!("{error} {error:?}").contains("c2VjcmV0"), "{error}");
    }

    #[test]
    fn nobody_is_trusted_blindly_and_nothing_is_run() {
        let with = |field: &str, value: Value| {
            let mut cluster = json!({"server": "https://a", "certificate-authority": "ca.pem"});
            cluster[field] = value;
            loaded(cluster, Value::Null).expect_err("refused")
        };
        assert!(with("insecure-skip-tls-verify", true.into()).starts_with("insecure-skip-tls-verify"));
        assert!(with("server", "http://a".into()).contains("https"));
        assert!(with("certificate-authority", "".into()).contains("certificate-authority-data"));
        assert!(with("certificate-authority", "gone".into()).starts_with("cannot read"));
        let cluster = json!({"server": "https://a", "certificate-authority": "ca.pem"});
        let refused = loaded(cluster.clone(), json!({"exec": {"command": "x"}})).expect_err("refused");
        assert!(refused.starts_with("exec is not supported"), "{refused}");
        let half = loaded(cluster, json!({"client-certificate-data": "YQ=="})).expect_err("refused");
        assert_eq!(half, "a client certificate and its key come together");
    }
}
