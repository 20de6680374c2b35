//! One image's conversation with registries.

use std::error::Error as StdError;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::StatusCode;
use reqwest::Url;

use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::name::{Digest, ImageName, Version};
use crate::registries::{Auth, Endpoint, Registries, RegistryConfig, Scheme};
use crate::{Caps, PullCause};

mod challenge;
mod http_client;
mod reach;

use http_client::{Credentials, Http, HttpError, TlsSettings};
pub use reach::Range;
use reach::Reach;

/// For a whole manifest, which is small, with all that a busy registry may make us wait.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(120);
/// Source: the distribution specification, "Pulling manifests".
const DIGEST_HEADER: &str = "docker-content-digest";
/// How much of what the network says of itself goes into an error.
const MAX_DETAIL_CHARS: usize = 256;

/// An endpoint that answered for an image.
pub(crate) struct Remote {
    http: Http,
    endpoint: Endpoint,
    name: ImageName,
}

/// Bytes of a blob: from its start, or from where it was asked for.
pub(crate) struct BlobStream {
    pub(crate) offset: u64,
    pub(crate) stream: BoxStream<'static, Result<Bytes, std::io::Error>>,
}

/// Asks the endpoints of `name`'s registry, in order, what the name stands for.
pub(crate) async fn resolve(
    registries: &Registries,
    name: &ImageName,
    auth: Option<&Auth>,
    caps: &Caps,
) -> Result<(Remote, Bytes, Digest), PullCause> {
    let mut worst: Option<PullCause> = None;
    for endpoint in registries.endpoints(&name.registry, &name.repository) {
        let attempt = async {
            let remote = Remote::new(registries, endpoint, name, auth)?;
            let (bytes, digest) = remote.manifest(&name.version, caps).await?;
            Ok((remote, bytes, digest))
        };
        match attempt.await {
            Ok(found) => return Ok(found),
            Err(cause) if worst.as_ref().is_none_or(|before| weight(before) < weight(&cause)) => {
                worst = Some(cause)
            }
            Err(_) => {}
        }
    }
    Err(worst.unwrap_or(PullCause::NotFound { name: name.to_string() }))
}

/// Which of several endpoints' answers says most about what is wrong.
fn weight(cause: &PullCause) -> u8 {
    match cause {
        PullCause::Unreachable { .. } => 1,
        PullCause::NotFound { .. } => 2,
        _ => 3,
    }
}

impl Remote {
    fn new(
        registries: &Registries,
        endpoint: Endpoint,
        name: &ImageName,
        auth: Option<&Auth>,
    ) -> Result<Remote, PullCause> {
        let unreachable =
            |detail: String| PullCause::Unreachable { name: name.to_string(), detail: shortened(&detail) };
        let settings = registries.config(&endpoint);
        // The pull's own credentials are the registry's, not a mirror's: a mirror is given only its own.
        let own = settings.and_then(|settings| settings.auth.as_ref());
        let credentials = match (&endpoint.mirror_of, auth) {
            (None, Some(given)) => Credentials::of(given),
            _ => own.map_or(Credentials::None, Credentials::of),
        };
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // The program installs its provider first; a library's tests may not have.
            let _already_installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        let scheme = match endpoint.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        let base = Url::parse(&format!("{scheme}://{}/", endpoint.host))
            .map_err(|err| unreachable(format!("{}: {err}", endpoint.host)))?;
        let loopback = is_loopback(&base);
        // A registry of this machine may name other places here.
        let addresses = if loopback { Vec::new() } else { reach::elsewhere_than(&base, reach::addresses()) };
        let reach = Reach {
            own: registries.own_ranges.clone().into(),
            addresses: addresses.into(),
            configured: registries.hosts().into(),
            loopback,
            proxies: reach::proxies(|name| std::env::var(name).ok()).into(),
        };
        let of_host = |(host, config): (&String, &RegistryConfig)| Some((host.clone(), config.tls.clone()?));
        let tls = TlsSettings {
            own: settings.and_then(|settings| settings.tls.clone()),
            others: registries.configs.iter().filter_map(of_host).collect(),
        };
        let http = Http::new(base, &endpoint.repository, credentials, tls, reach).map_err(unreachable)?;
        Ok(Remote { http, endpoint, name: name.clone() })
    }

    /// A path below the repository. A mirror is told whom it stands for, as containerd does.
    fn path(&self, what: &str, of: &str) -> String {
        let Endpoint { repository, mirror_of, .. } = &self.endpoint;
        let path = format!("/v2/{repository}/{what}/{of}");
        mirror_of.as_ref().map_or(path.clone(), |registry| format!("{path}?ns={registry}"))
    }

    /// The manifest or index of a tag or digest, checked against the digest if that was given.
    pub(crate) async fn manifest(
        &self,
        version: &Version,
        caps: &Caps,
    ) -> Result<(Bytes, Digest), PullCause> {
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let path = match version {
            Version::Tag(tag) => self.path("manifests", tag),
            Version::Digest(digest) => self.path("manifests", digest.as_str()),
        };
        let call = async {
            let response = self.http.get(&path, &accept, 0).await?;
            let said =
                response.headers().get(DIGEST_HEADER).and_then(|value| Digest::parse(value.to_str().ok()?));
            Ok((http_client::read(response, caps.manifest_bytes).await?, said))
        };
        let (bytes, said) = match tokio::time::timeout(MANIFEST_TIMEOUT, call).await {
            Ok(answer) => answer.map_err(|err| self.cause(err))?,
            Err(_) => return Err(self.unreachable("timed out reading the manifest")),
        };
        let found = Digest::of(&bytes);
        // Of a tag the registry may say what it stands for. Something on the way that changes the bytes does not change that.
        let wanted = match version {
            Version::Digest(digest) => Some(digest),
            Version::Tag(_) => said.as_ref(),
        };
        match wanted {
            Some(digest) if *digest != found => Err(PullCause::WrongDigest {
                what: "manifest",
                digest: digest.to_string(),
                found: found.to_string(),
            }),
            _ => Ok((bytes, found)),
        }
    }

    /// A blob's bytes from `offset` on, or from the start if the registry cannot do ranges. Unchecked.
    pub(crate) async fn blob(&self, digest: &Digest, offset: u64) -> Result<BlobStream, PullCause> {
        let response = self.http.get(&self.path("blobs", digest.as_str()), "*/*", offset).await;
        let response = response.map_err(|err| match err {
            err @ HttpError::Denied(_) => self.cause(err),
            err => PullCause::Fetch { digest: digest.to_string(), detail: shortened(&err.to_string()) },
        })?;
        let offset = if response.status() == StatusCode::PARTIAL_CONTENT { offset } else { 0 };
        let stream = response
            .bytes_stream()
            .map(|chunk| chunk.map_err(|err| io::Error::other(shortened(&chain(&err.without_url())))));
        Ok(BlobStream { offset, stream: stream.boxed() })
    }

    fn unreachable(&self, detail: &str) -> PullCause {
        PullCause::Unreachable { name: self.name.to_string(), detail: shortened(detail) }
    }

    fn cause(&self, err: HttpError) -> PullCause {
        let name = self.name.to_string();
        match err {
            HttpError::Status(StatusCode::NOT_FOUND, _) => PullCause::NotFound { name },
            HttpError::Status(status, code) => PullCause::Status {
                name,
                url: self.endpoint.host.clone(),
                status: status.as_u16(),
                detail: code.or(status.canonical_reason()).unwrap_or("no reason given").to_owned(),
            },
            HttpError::Denied(why) => PullCause::AccessDenied { name, detail: why.to_owned() },
            HttpError::TooLong(limit) => PullCause::TooLarge { what: "manifest".to_owned(), limit },
            HttpError::Request(detail) => self.unreachable(&detail),
            err @ (HttpError::Led(_) | HttpError::Redirects) => self.unreachable(&err.to_string()),
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || literal.is_ok_and(|address| address.is_loopback())
}

/// An error with its causes: `reqwest` says what failed only at the end of the chain.
fn chain(err: &dyn StdError) -> String {
    let mut text = err.to_string();
    let mut next = err.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}

/// One line of bounded length: a registry's answer may end up in an event.
fn shortened(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.trim().chars().take(MAX_DETAIL_CHARS).collect()
}
