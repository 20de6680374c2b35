//! The credentials of pull secrets: `.dockerconfigjson` and the older `.dockercfg`.
//!
//! Source: upstream's `pkg/credentialprovider`: keys may hold globs in their hosts, a path fits all paths below it, `auth` comes
//! before `username` and `password`, and the most specific key is tried first.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::name::ImageName;
use crate::registries::Auth;

/// Which of the two forms a secret is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `kubernetes.io/dockerconfigjson`: the registries are below `auths`.
    DockerConfigJson,
    /// `kubernetes.io/dockercfg`: the registries are the document.
    DockerCfg,
}

/// Credentials with the server they are for, as the secret names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub server: String,
    pub auth: Auth,
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

/// The credentials in a secret that fit an image, the most specific first. What cannot be read holds none.
pub fn credentials(form: Form, secret: &[u8], image: &str) -> Vec<Credential> {
    let Ok(image) = ImageName::parse(image) else { return Vec::new() };
    let entries = match form {
        Form::DockerConfigJson => serde_json::from_slice::<Config>(secret).unwrap_or_default().auths,
        Form::DockerCfg => serde_json::from_slice(secret).unwrap_or_default(),
    };
    let mut fitting: Vec<(usize, Credential)> = Vec::new();
    for (server, entry) in entries {
        let place = place_of(&server);
        if fits(&place, &image.registry, &image.repository) {
            fitting.push((place.len(), Credential { server, auth: entry.unwrap_or_default().auth() }));
        }
    }
    fitting.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    fitting.into_iter().map(|(_, credential)| credential).collect()
}

impl Entry {
    fn auth(self) -> Auth {
        let own = Auth {
            auth: self.auth,
            identity_token: self.identity_token,
            registry_token: self.registry_token,
            ..Auth::default()
        };
        // What is encoded counts, if it is anything: `username` and `password` are for people to read.
        let (username, password) = own.basic().unwrap_or((self.username, self.password));
        Auth { username, password, auth: String::new(), ..own }
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

    fn servers(secret: &str, image: &str) -> Vec<String> {
        let found = credentials(Form::DockerConfigJson, secret.as_bytes(), image);
        found.into_iter().map(|credential| credential.server).collect()
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
            servers(&secret, "registry.example.com/team/app:1"),
            [
                "reg?stry.example.com/team/app",
                "registry.example.com/team",
                "https://registry.example.com/v1/",
                "*.example.com"
            ]
        );
        assert_eq!(servers(&secret, "registry.example.com:5000/team/app"), ["registry.example.com:5000"]);
        assert!(servers(&secret, "a.b.example.com/x").is_empty(), "a glob stands for one label");
        let hub = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "bWU6c2VjcmV0"}}}"#;
        assert_eq!(servers(hub, "nginx").len(), 1);
    }

    #[test]
    fn nulls_are_nothing_and_what_is_encoded_counts() {
        let secret = br#"{"auths": {"r.io": {"username": "other", "password": null, "auth": "bWU6c2VjcmV0", "email": null},
            "r.io/a": null, "r.io/a/b": {"identitytoken": "ID", "registrytoken": null}}, "credsStore": null}"#;
        let found = credentials(Form::DockerConfigJson, secret, "r.io/a/b:1");
        assert_eq!(found[0].auth, Auth { identity_token: "ID".into(), ..Auth::default() });
        assert_eq!(found[1].auth, Auth::default());
        let basic = Auth { username: "me".into(), password: "secret".into(), ..Auth::default() };
        assert_eq!(found[2].auth, basic);
        assert!(credentials(Form::DockerConfigJson, br#"{"auths": null}"#, "r.io/a").is_empty());
        assert!(credentials(Form::DockerConfigJson, b"nonsense", "r.io/a").is_empty());
        let old = credentials(
            Form::DockerCfg,
            br#"{"r.io": {"username": "me", "password": "secret", "auth": ""}}"#,
            "r.io/a",
        );
        assert_eq!(old[0].auth, basic);
    }

    proptest::proptest! {
        #[test]
        fn no_secret_makes_it_panic(text in ".{0,60}", image in ".{0,30}") {
            credentials(Form::DockerCfg, text.as_bytes(), &image);
            fits(&text, &image, &image);
        }
    }
}
