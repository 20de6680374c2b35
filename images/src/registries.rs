//! `registries.yaml`, in k3s' format: mirrors, credentials and TLS of registries.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use regex::Regex;
use serde::Deserialize;

use crate::Error;
use crate::registry::Range;

const MAX_FILE_BYTES: u64 = 1 << 20;

/// Which endpoints stand for which registry, and how they are spoken to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registries {
    /// By registry, `docker.io`; `*` for all that have none of their own.
    pub mirrors: BTreeMap<String, Mirror>,
    /// By endpoint host, `registry.example.com:5000`.
    pub configs: BTreeMap<String, RegistryConfig>,
    /// Ranges of the cluster itself, of pods and services: no registry leads there. Not in the file.
    #[serde(skip)]
    pub own_ranges: Vec<Range>,
}

/// Endpoints to try, in order, before the registry itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mirror {
    /// `http://host:port` or `https://…/path`.
    pub endpoint: Vec<String>,
    /// Regular expressions for repositories, and what replaces them at the mirror.
    pub rewrite: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    pub auth: Option<Auth>,
    pub tls: Option<Tls>,
}

/// Credentials, as in CRI's `AuthConfig` and in `registries.yaml`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    pub username: String,
    pub password: String,
    /// `username:password` in base64.
    pub auth: String,
    pub identity_token: String,
    /// A bearer token for the registry itself.
    pub registry_token: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub insecure_skip_verify: bool,
}

/// Secrets stay out of logs.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Auth {
    /// The username and password, from `auth` if they are not given themselves.
    pub(crate) fn basic(&self) -> Option<(String, String)> {
        if !self.username.is_empty() {
            return Some((self.username.clone(), self.password.clone()));
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(self.auth.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (username, password) = text.trim_end_matches('\0').split_once(':')?;
        Some((username.to_owned(), password.to_owned()))
    }
}

/// Somewhere to ask for a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) scheme: Scheme,
    /// With the port, if one was given.
    pub(crate) host: String,
    pub(crate) repository: String,
    /// The registry it stands for, if it is a mirror.
    pub(crate) mirror_of: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Registries {
    /// Reads a file. One that does not exist says nothing: all registries are asked directly.
    pub fn load(path: &Path) -> Result<Registries, Error> {
        let fail = |detail: String| Error::Registries { path: path.to_owned(), detail };
        match std::fs::metadata(path) {
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(Registries::default()),
            Err(err) => return Err(fail(err.to_string())),
            Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
                return Err(fail(format!("is larger than {MAX_FILE_BYTES} bytes")));
            }
            Ok(_) => {}
        }
        let text = std::fs::read_to_string(path).map_err(|err| fail(err.to_string()))?;
        Registries::parse(&text).map_err(fail)
    }

    /// Reads YAML and checks all that can be checked without a network.
    pub fn parse(yaml: &str) -> Result<Registries, String> {
        if yaml.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Registries::default());
        }
        let registries: Registries = serde_saphyr::from_str(yaml).map_err(|err| err.to_string())?;
        for (registry, mirror) in &registries.mirrors {
            for endpoint in &mirror.endpoint {
                split_url(endpoint)
                    .ok_or_else(|| format!("mirrors.{registry}: {endpoint:?} is no http(s) URL"))?;
            }
            for pattern in mirror.rewrite.keys() {
                Regex::new(pattern).map_err(|err| format!("mirrors.{registry}.rewrite: {err}"))?;
            }
        }
        for (host, config) in &registries.configs {
            if config.tls.as_ref().is_some_and(|tls| tls.cert_file.is_some() || tls.key_file.is_some()) {
                return Err(format!("configs.{host}.tls: client certificates are not supported"));
            }
        }
        Ok(registries)
    }

    /// Where to ask for `repository` of `registry`: the mirrors, then the registry itself.
    pub(crate) fn endpoints(&self, registry: &str, repository: &str) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        if let Some(mirror) = self.mirrors.get(registry).or_else(|| self.mirrors.get("*")) {
            let rewritten = mirror.rewritten(repository);
            for url in &mirror.endpoint {
                let Some((scheme, host, path)) = split_url(url) else { continue };
                let repository =
                    if path.is_empty() { rewritten.clone() } else { format!("{path}/{rewritten}") };
                endpoints.push(Endpoint { scheme, host, repository, mirror_of: Some(registry.to_owned()) });
            }
        }
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let scheme = if is_loopback(host) && self.configs.get(host).is_none_or(|config| config.tls.is_none())
        {
            Scheme::Http
        } else {
            Scheme::Https
        };
        endpoints.push(Endpoint {
            scheme,
            host: host.to_owned(),
            repository: repository.to_owned(),
            mirror_of: None,
        });
        endpoints
    }

    /// All hosts that the file names, with their ports where it does.
    pub(crate) fn hosts(&self) -> Vec<String> {
        let mirrors = self.mirrors.values().flat_map(|mirror| &mirror.endpoint);
        let mirrors = mirrors.filter_map(|url| split_url(url).map(|(_, host, _)| host));
        self.configs.keys().cloned().chain(mirrors).collect()
    }

    /// The configuration of an endpoint: by its host, or by the registry's own name for Docker Hub.
    pub(crate) fn config(&self, endpoint: &Endpoint) -> Option<&RegistryConfig> {
        self.configs.get(&endpoint.host).or_else(|| match endpoint.host.as_str() {
            "registry-1.docker.io" => self.configs.get("docker.io"),
            _ => None,
        })
    }
}

impl Mirror {
    /// The first rule that matches applies.
    fn rewritten(&self, repository: &str) -> String {
        let rules = self.rewrite.iter().filter_map(|(from, to)| Some((Regex::new(from).ok()?, to)));
        rules
            .into_iter()
            .find(|(from, _)| from.is_match(repository))
            .map(|(from, to)| from.replace_all(repository, to.as_str()).into_owned())
            .unwrap_or_else(|| repository.to_owned())
    }
}

/// Scheme, host and what of the path follows `/v2`.
fn split_url(url: &str) -> Option<(Scheme, String, String)> {
    let (scheme, rest) = match url.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(_) => return None,
        None => (Scheme::Https, url),
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() || host.contains(['@', '?', '#', ' ']) || path.contains(['?', '#', ' ']) {
        return None;
    }
    let path = path.trim_matches('/');
    let path = path.strip_prefix("v2").map_or(path, |rest| rest.trim_start_matches('/'));
    Some((scheme, host.to_owned(), path.to_owned()))
}

fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost"
        || name == "[::1]"
        || name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const K3S: &str = r#"
mirrors:
  docker.io:
    endpoint:
      - "http://127.0.0.1:5000"
      - "https://harbor.example.com/v2/proxy"
    rewrite:
      "^library/(.*)": "hub/$1"
  "*":
    endpoint: ["https://all.example.com"]
configs:
  "127.0.0.1:5000":
    auth: {username: me, password: secret}
    tls: {insecure_skip_verify: true}
"#;

    #[test]
    fn mirrors_come_first_in_order_and_rewritten() {
        let registries = Registries::parse(K3S).unwrap();
        let endpoints: Vec<_> = registries
            .endpoints("docker.io", "library/nginx")
            .into_iter()
            .map(|endpoint| format!("{:?} {} {}", endpoint.scheme, endpoint.host, endpoint.repository))
            .collect();
        let expected = [
            "Http 127.0.0.1:5000 hub/nginx",
            "Https harbor.example.com proxy/hub/nginx",
            "Https registry-1.docker.io library/nginx",
        ];
        assert_eq!(endpoints, expected);
    }

    #[test]
    fn a_wildcard_serves_registries_without_a_mirror_of_their_own() {
        let registries = Registries::parse(K3S).unwrap();
        assert_eq!(registries.endpoints("ghcr.io", "a/b")[0].host, "all.example.com");
    }

    #[test]
    fn secrets_are_not_printed() {
        let registries = Registries::parse(K3S).unwrap();
        assert!(!format!("{registries:?}").contains("secret"));
    }

    #[test]
    fn a_wrong_file_is_refused_and_an_absent_one_is_empty() {
        for bad in [
            "mirrors: [1]",
            "mirror: {}",
            "mirrors: {a: {endpoint: ['ftp://x']}}",
            "mirrors: {a: {rewrite: {'(': x}}}",
            "configs: {a: {tls: {cert_file: /x}}}",
        ] {
            assert!(Registries::parse(bad).is_err(), "{bad}");
        }
        assert!(Registries::parse("# nothing\n").unwrap().mirrors.is_empty());
        assert!(Registries::load(Path::new("/nonexistent/registries.yaml")).unwrap().configs.is_empty());
    }

    #[test]
    fn credentials_may_come_in_base64() {
        let auth = Auth { auth: "bWU6c2VjcmV0OnNhdWNl".to_owned(), ..Auth::default() };
        assert_eq!(auth.basic(), Some(("me".to_owned(), "secret:sauce".to_owned())));
    }
}
