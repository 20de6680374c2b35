//! Image names, normalised as Docker and containerd do.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Error;

const DEFAULT_REGISTRY: &str = "docker.io";
const MAX_NAME_LENGTH: usize = 255;

/// `sha256:` and 64 hexadecimal digits: checked, so that it may become a file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    pub fn parse(text: &str) -> Option<Digest> {
        let hex = text.strip_prefix("sha256:")?;
        let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (hex.len() == 64 && hex.bytes().all(lower_hex)).then(|| Digest(text.to_owned()))
    }

    pub(crate) fn of_hash(hash: &[u8]) -> Digest {
        Digest(format!("sha256:{}", hex::encode(hash)))
    }

    pub fn of(bytes: &[u8]) -> Digest {
        use sha2::Digest as _;
        Digest::of_hash(&sha2::Sha256::digest(bytes))
    }

    /// Of a layer on top of others, which is what it looks like unpacked: the OCI image spec's chain ID.
    pub(crate) fn chained(below: Option<&Digest>, diff_id: &Digest) -> Digest {
        below.map_or_else(|| diff_id.clone(), |below| Digest::of(format!("{below} {diff_id}").as_bytes()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn hex(&self) -> &str {
        self.0.strip_prefix("sha256:").unwrap_or(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Digest, String> {
        Digest::parse(&text).ok_or_else(|| format!("not a sha256 digest: {text:?}"))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

/// A whole image name: `docker.io/library/nginx:alpine`, or with a digest in place of the tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    pub registry: String,
    pub repository: String,
    pub version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    Tag(String),
    Digest(Digest),
}

impl ImageName {
    /// Adds what is left out: `docker.io`, `library/`, `:latest`. Where both are given, the digest counts
    /// and the tag is dropped.
    pub fn parse(text: &str) -> Result<ImageName, Error> {
        let invalid = |detail| Error::InvalidName { name: text.to_owned(), detail };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest).ok_or_else(|| invalid(""))?)),
            None => (text, None),
        };
        // A colon after the last slash starts a tag; any other belongs to a port.
        let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (rest, tag) = match rest[path_start..].find(':') {
            Some(colon) => {
                let (name, tag) = rest.split_at(path_start + colon);
                (name, Some(&tag[1..]))
            }
            None => (rest, None),
        };
        let (registry, repository) = split_registry(rest);
        if repository.len() + registry.len() >= MAX_NAME_LENGTH {
            return Err(invalid(": repository name must not be more than 255 characters"));
        }
        if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(invalid(": repository name must be lowercase"));
        }
        if !valid_registry(&registry) || !repository.split('/').all(valid_component) {
            return Err(invalid(""));
        }
        if !rest.contains('/') && rest.len() == 64 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid(": a name may not be 64 hexadecimal digits"));
        }
        if tag.is_some_and(|tag| !valid_tag(tag)) {
            return Err(invalid(""));
        }
        let version = match digest {
            Some(digest) => Version::Digest(digest),
            None => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(ImageName { registry, repository, version })
    }

    /// `docker.io/library/nginx`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ImageName { registry, repository, version } = self;
        match version {
            Version::Tag(tag) => write!(f, "{registry}/{repository}:{tag}"),
            Version::Digest(digest) => write!(f, "{registry}/{repository}@{digest}"),
        }
    }
}

/// The first component is a registry if it could not be anything else: it has a dot, a port or a capital,
/// or is `localhost`.
fn split_registry(name: &str) -> (String, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (if first == "index.docker.io" { DEFAULT_REGISTRY } else { first }, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    };
    if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        return (registry.to_owned(), format!("library/{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

fn valid_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            let address_ok = address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':');
            if address.is_empty() || !address_ok {
                return false;
            }
            ("ipv6", port.strip_prefix(':'))
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(label_ok) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Lowercase letters and digits, joined by one `.`, one or two `_`, or any number of `-`.
fn valid_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().copied().is_some_and(alphanumeric) || !bytes.last().copied().is_some_and(alphanumeric) {
        return false;
    }
    bytes.split(|byte| alphanumeric(*byte)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
    })
}

fn valid_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_are_completed_as_docker_does() {
        for (given, whole) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:alpine", "docker.io/library/nginx:alpine"),
            ("a/b", "docker.io/a/b:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:1", "localhost:5000/x:1"),
            ("[::1]:5000/x:1", "[::1]:5000/x:1"),
            ("ghcr.io/a/b/c:v1.2-rc_3", "ghcr.io/a/b/c:v1.2-rc_3"),
            ("a__b.c--d", "docker.io/library/a__b.c--d:latest"),
        ] {
            assert_eq!(ImageName::parse(given).unwrap().to_string(), whole);
        }
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        let name = ImageName::parse(&format!("nginx:alpine@sha256:{HEX}")).unwrap();
        assert_eq!(name.to_string(), format!("docker.io/library/nginx@sha256:{HEX}"));
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_kubelets_reason() {
        for bad in [
            "",
            ":",
            "/",
            "a:",
            "a:b:c",
            "Nginx",
            "a//b",
            "../x",
            "a/../b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a b",
            "nginx@sha256:12",
            "nginx@md5:12",
            "x.y:99999999/a",
            "a:.b",
            ".io/a",
            "[::g]/a",
            "a\nb",
            HEX,
        ] {
            let err = ImageName::parse(bad).unwrap_err();
            assert_eq!(err.reason(), Some("InvalidImageName"), "{bad:?}");
        }
        assert!(ImageName::parse(&"a".repeat(300)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics_and_is_idempotent(text in "\\PC{0,40}") {
            if let Ok(name) = ImageName::parse(&text) {
                let whole = name.to_string();
                proptest::prop_assert_eq!(ImageName::parse(&whole).unwrap().to_string(), whole);
            }
        }
    }
}
