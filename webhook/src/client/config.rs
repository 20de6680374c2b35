//! Where a webhook is, as a configuration says it, and the address that this makes.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use base64::Engine as _;
use serde_json::Value;

/// Where a webhook is, and who vouches for it: `clientConfig` of a webhook.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientConfig {
    pub target: Target,
    /// PEM. Empty where the roots of the host decide.
    pub ca_bundle: Vec<u8>,
    /// What the webhook is shown of who calls. Those of admission are shown nothing.
    pub identity: Option<Arc<Identity>>,
}

/// Who calls, as a kubeconfig says it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// `User-Agent`.
    pub agent: String,
    /// Certificates and key, PEM.
    pub certificate: Option<(Vec<u8>, Vec<u8>)>,
    /// `Authorization`.
    pub authorization: Option<String>,
    /// The name that the webhook's certificate must be for, where it is not that of the URL.
    pub server_name: Option<String>,
}

/// Without what is secret.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("agent", &self.agent).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Url(String),
    Service { namespace: String, name: String, path: String, port: u16 },
}

/// Why a webhook cannot be called, whoever is there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("webhook configuration must have either service or URL")]
    NoTarget,
    #[error("Unparsable URL: {why}")]
    Url { why: String },
    #[error("the port of a service must be from 1 to 65535")]
    Port,
    #[error("caBundle is not base64")]
    CaBundle,
    #[error("unable to load root certificates: unable to parse bytes as PEM block")]
    NoCertificates,
    #[error(
        "caBundle is empty, and this server knows no other certificate authorities: set caBundle to the one of the webhook"
    )]
    NoRoots,
    #[error("TLS towards webhooks cannot be used: {0}")]
    Tls(String),
    #[error("the client certificate or its key cannot be read: {0}")]
    Identity(String),
}

const DEFAULT_PORT: u16 = 443;

impl ClientConfig {
    /// Reads the `clientConfig` of a webhook.
    ///
    /// # Errors
    /// For one that names neither a URL nor a Service, and for a CA bundle that is no base64.
    pub fn from_json(config: &Value) -> Result<ClientConfig, ConfigError> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let bundle = base64::engine::general_purpose::STANDARD
            .decode(config["caBundle"].as_str().unwrap_or_default())
            .map_err(|_| ConfigError::CaBundle)?;
        let is_blank = bundle.iter().all(u8::is_ascii_whitespace);
        let ca_bundle = if is_blank { Vec::new() } else { bundle };
        let (service, url) = (&config["service"], text(&config["url"]));
        let target = if service.is_object() {
            let port = match service["port"].as_i64() {
                None | Some(0) => DEFAULT_PORT,
                Some(port) => u16::try_from(port).map_err(|_| ConfigError::Port)?,
            };
            let (namespace, name) = (text(&service["namespace"]), text(&service["name"]));
            Target::Service { namespace, name, path: text(&service["path"]), port }
        } else if url.is_empty() {
            return Err(ConfigError::NoTarget);
        } else {
            Target::Url(url)
        };
        Ok(ClientConfig { target, ca_bundle, identity: None })
    }
}

/// How a webhook is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    Service { namespace: String, name: String },
    Host,
}

/// What of a target a request is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) way: Way,
    /// As it stands in the URL, with the port if one was given.
    pub(crate) authority: String,
    /// Without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Clean and escaped.
    pub(crate) path: String,
}

impl Address {
    pub(crate) fn of(target: &Target) -> Result<Address, ConfigError> {
        match target {
            Target::Service { namespace, name, path, port } => {
                let host = format!("{name}.{namespace}.svc");
                let authority = format!("{host}:{port}");
                let way = Way::Service { namespace: namespace.clone(), name: name.clone() };
                Ok(Address { way, authority, host, port: *port, path: escaped(&cleaned(path)) })
            }
            Target::Url(url) => Address::of_url(url),
        }
    }

    fn of_url(url: &str) -> Result<Address, ConfigError> {
        let fault = |why: &str| ConfigError::Url { why: format!("parse {url:?}: {why}") };
        let uri: http::Uri = url.parse().map_err(|_| fault("invalid URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(fault("the scheme must be https"));
        }
        let authority = uri.authority().filter(|authority| !authority.host().is_empty());
        let authority = authority.ok_or_else(|| fault("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(fault("user information is not permitted"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let path = decoded(uri.path()).ok_or_else(|| fault("invalid escape"))?;
        let port = authority.port_u16().unwrap_or(DEFAULT_PORT);
        let (authority, path) = (authority.as_str().into(), escaped(&cleaned(&path)));
        Ok(Address { way: Way::Host, authority, host, port, path })
    }

    /// With the time that there is for an answer, as the webhook is told it.
    pub(crate) fn url(&self, timeout_seconds: u64) -> String {
        format!("https://{}{}?timeout={timeout_seconds}s", self.authority, self.path)
    }
}

/// A path without empty and dotted steps and without a slash at its end, as upstream sends it.
fn cleaned(path: &str) -> String {
    let mut steps = Vec::new();
    for step in path.split('/') {
        match step {
            "" | "." => {}
            ".." => _ = steps.pop(),
            step => steps.push(step),
        }
    }
    format!("/{}", steps.join("/"))
}

fn decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

fn escaped(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte);
        if is_plain {
            out.push(char::from(byte));
        } else {
            _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_is_addressed_by_its_name_and_port() {
        let config = json!({"service": {"namespace": "system", "name": "hook", "path": "/a//b/../c d/", "port": 8443}});
        let config = ClientConfig::from_json(&config).expect("a config");
        let address = Address::of(&config.target).expect("an address");
        assert_eq!(address.url(10), "https://hook.system.svc:8443/a/c%20d?timeout=10s");
        assert_eq!((address.host.as_str(), address.port), ("hook.system.svc", 8443));
        let config = json!({"service": {"namespace": "system", "name": "hook"}});
        let config = ClientConfig::from_json(&config).expect("a config");
        assert_eq!(
            Address::of(&config.target).expect("an address").url(1),
            "https://hook.system.svc:443/?timeout=1s"
        );
    }

    #[test]
    fn a_url_is_addressed_as_it_is_written() {
        let url = |url: &str| Address::of(&Target::Url(url.into())).map(|address| address.url(5));
        assert_eq!(url("https://a.example/x/").as_deref(), Ok("https://a.example/x?timeout=5s"));
        assert_eq!(url("https://[::1]:9/%41'").as_deref(), Ok("https://[::1]:9/A%27?timeout=5s"));
        for wrong in ["http://a", "https://", "https://u:p@a", "a", "", "https://a/%zz"] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
        let address = Address::of(&Target::Url("https://[fd00::1]/".into())).expect("an address");
        assert_eq!((address.host.as_str(), address.port), ("fd00::1", 443));
    }

    #[test]
    fn a_config_names_a_url_or_a_service() {
        assert_eq!(ClientConfig::from_json(&json!({})), Err(ConfigError::NoTarget));
        assert_eq!(
            ClientConfig::from_json(&json!({"url": "https://a", "caBundle": "-"})),
            Err(ConfigError::CaBundle)
        );
        let blank = ClientConfig::from_json(&json!({"url": "https://a", "caBundle": "Cg=="}));
        assert_eq!(blank.expect("a config").ca_bundle, Vec::<u8>::new());
    }
}
