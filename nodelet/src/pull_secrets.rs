//! The credentials of pull secrets: `.dockerconfigjson` and the older `.dockercfg`.
//!
//! Source: upstream's `pkg/credentialprovider`: keys may hold globs in their hosts, a path fits all paths below it, `auth` comes
//! before `username` and `password`, and the most specific key is tried first.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use skiff_cri::v1::AuthConfig;

/// Which of the two forms a secret is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `kubernetes.io/dockerconfigjson`: the registries are below `auths`.
    DockerConfigJson,
    /// `kubernetes.io/dockercfg`: the registries are the document.
    DockerCfg,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    #[serde(deserialize_with = "or_default")]
    username: String,
    #[serde(deserialize_with = "or_default")]
    password: String,
    #[serde(deserialize_with = "or_default")]
    auth: String,
    #[serde(rename = "identitytoken", deserialize_with = "or_default")]
    identity_token: String,
    #[serde(rename = "registrytoken", deserialize_with = "or_default")]
    registry_token: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    #[serde(deserialize_with = "or_default")]
    auths: BTreeMap<String, Option<Entry>>,
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// The credentials in a secret that fit an image of `registry`, the most specific first. What cannot be read holds none.
pub(crate) fn credentials(form: Form, secret: &[u8], registry: &str, repository: &str) -> Vec<AuthConfig> {
    let entries = match form {
        Form::DockerConfigJson => serde_json::from_slice::<Config>(secret).unwrap_or_default().auths,
        Form::DockerCfg => serde_json::from_slice(secret).unwrap_or_default(),
    };
    let mut fitting: Vec<(usize, AuthConfig)> = Vec::new();
    for (server, entry) in entries {
        let place = place_of(&server);
        if fits(&place, registry, repository) {
            fitting.push((place.len(), entry.unwrap_or_default().auth(server)));
        }
    }
    fitting.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    fitting.into_iter().map(|(_, auth)| auth).collect()
}

impl Entry {
    fn auth(self, server_address: String) -> AuthConfig {
        let decoded = STANDARD.decode(self.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        // What is encoded counts, if it is anything: `username` and `password` are for people to read.
        let (username, password) = match decoded.as_deref().and_then(|text| text.split_once(':')) {
            Some((username, password)) => (username.to_owned(), password.trim_end_matches('\0').to_owned()),
            None => (self.username, self.password),
        };
        AuthConfig {
            username,
            password,
            server_address,
            identity_token: self.identity_token,
            registry_token: self.registry_token,
            ..AuthConfig::default()
        }
    }
}

/// `registry.example.com:5000/path` of a server as secrets name it: with a scheme, a version, or Docker Hub's old name.
fn place_of(server: &str) -> String {
    let place = server.strip_prefix("https://").or(server.strip_prefix("http://")).unwrap_or(server);
    let place = place.trim_end_matches('/');
    let place = ["/v1", "/v2"].iter().find_map(|end| place.strip_suffix(end)).unwrap_or(place);
    let (host, path) = place.split_once('/').unwrap_or((place, ""));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    };
    if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") }
}

/// Whether a key is for an image: globs stand for parts of one label of a host each, and a path for all below it.
fn fits(place: &str, registry: &str, repository: &str) -> bool {
    let (host, path) = place.split_once('/').unwrap_or((place, ""));
    let split = |host: &str| match host.rsplit_once(':') {
        Some((host, port)) => (host.to_owned(), port.to_owned()),
        None => (host.to_owned(), String::new()),
    };
    let ((host, port), (registry, registry_port)) = (split(host), split(registry));
    let (wanted, found): (Vec<_>, Vec<_>) = (host.split('.').collect(), registry.split('.').collect());
    let below = path.is_empty()
        || repository.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    port == registry_port
        && wanted.len() == found.len()
        && wanted.iter().zip(found).all(|(glob, label)| is_match(glob.as_bytes(), label.as_bytes()))
        && below
}

/// `*` is any text, `?` any byte. Linear but for going back to the last star.
fn is_match(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[t] => {
                g += 1;
                t += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                g = at + 1;
                t = from + 1;
            }
        }
    }
    glob[g..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(secret: &str, registry: &str, repository: &str) -> Vec<String> {
        let found = credentials(Form::DockerConfigJson, secret.as_bytes(), registry, repository);
        found.into_iter().map(|auth| auth.server_address).collect()
    }

    #[test]
    fn keys_fit_by_globs_and_paths_and_the_most_specific_comes_first() {
        let keys = [
            "*.example.com",
            "registry.example.com/team",
            "https://registry.example.com/v1/",
            "registry.example.com:5000",
            "*.com",
            "reg?stry.example.com/team/app",
            "registry.example.com/te",
        ];
        let auths: Vec<String> =
            keys.iter().map(|key| format!(r#""{key}": {{"auth": "bWU6c2VjcmV0"}}"#)).collect();
        let secret = format!(r#"{{"auths": {{{}}}}}"#, auths.join(","));
        assert_eq!(
            servers(&secret, "registry.example.com", "team/app"),
            [
                "reg?stry.example.com/team/app",
                "registry.example.com/team",
                "https://registry.example.com/v1/",
                "*.example.com"
            ]
        );
        assert_eq!(servers(&secret, "registry.example.com:5000", "team/app"), ["registry.example.com:5000"]);
        assert!(servers(&secret, "a.b.example.com", "x").is_empty(), "a glob stands for one label");
        let hub = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "bWU6c2VjcmV0"}}}"#;
        assert_eq!(servers(hub, "docker.io", "nginx").len(), 1);
    }

    #[test]
    fn nulls_are_nothing_and_what_is_encoded_counts() {
        let secret = br#"{"auths": {"r.io": {"username": "other", "password": null, "auth": "bWU6c2VjcmV0", "email": null},
            "r.io/a": null, "r.io/a/b": {"identitytoken": "ID", "registrytoken": null}}, "credsStore": null}"#;
        let found = credentials(Form::DockerConfigJson, secret, "r.io", "a/b");
        let of = |at: usize| (found[at].username.as_str(), found[at].password.as_str());
        assert_eq!((of(0), found[0].identity_token.as_str()), (("", ""), "ID"));
        assert_eq!(of(1), ("", ""));
        assert_eq!(of(2), ("me", "secret"));
        assert!(credentials(Form::DockerConfigJson, br#"{"auths": null}"#, "r.io", "a").is_empty());
        assert!(credentials(Form::DockerConfigJson, b"nonsense", "r.io", "a").is_empty());
        let old = br#"{"r.io": {"username": "me", "password": "secret", "auth": ""}}"#;
        let old = credentials(Form::DockerCfg, old, "r.io", "a");
        assert_eq!((old[0].username.as_str(), old[0].password.as_str()), ("me", "secret"));
    }
}
