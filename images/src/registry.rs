//! One image's conversation with registries.

use std::error::Error as StdError;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use oci_distribution::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_distribution::errors::{OciDistributionError, OciErrorCode};
use oci_distribution::secrets::RegistryAuth;
use oci_distribution::{Client, Reference};

use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::name::{Digest, ImageName, Version};
use crate::registries::{Auth, Endpoint, Registries, Scheme};
use crate::{Caps, PullCause};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence on a connection for this long ends it.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// For a whole manifest, which is small.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of a registry's own words goes into an error.
const MAX_DETAIL_CHARS: usize = 256;

const MANIFEST_TYPES: &[&str] = &[OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// An endpoint that answered for an image.
pub(crate) struct Remote {
    client: Client,
    auth: RegistryAuth,
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
        let unreachable = |detail: String| PullCause::Unreachable { name: name.to_string(), detail };
        let settings = registries.config(&endpoint);
        let mut config = ClientConfig {
            protocol: match endpoint.scheme {
                Scheme::Http => ClientProtocol::Http,
                Scheme::Https => ClientProtocol::Https,
            },
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("skiff/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        if let Some(tls) = settings.and_then(|settings| settings.tls.as_ref()) {
            config.accept_invalid_certificates = tls.insecure_skip_verify;
            if let Some(path) = &tls.ca_file {
                let data = std::fs::read(path)
                    .map_err(|err| unreachable(format!("read {}: {err}", path.display())))?;
                config.extra_root_certificates.push(Certificate { encoding: CertificateEncoding::Pem, data });
            }
        }
        // The pull's own credentials are the registry's, not a mirror's: a mirror is given only its own.
        let own = settings.and_then(|settings| settings.auth.as_ref());
        let auth = match (&endpoint.mirror_of, auth) {
            (None, Some(given)) => credentials(given),
            _ => own.map_or(RegistryAuth::Anonymous, credentials),
        };
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // The program installs its provider first; a library's tests may not have.
            let _already_installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        let client = Client::try_from(config).map_err(|err| unreachable(chain(&err)))?;
        Ok(Remote { client, auth, endpoint, name: name.clone() })
    }

    fn reference(&self, version: &Version) -> Reference {
        let Endpoint { host, repository, mirror_of, .. } = &self.endpoint;
        let registry = mirror_of.as_ref().unwrap_or(host).clone();
        let mut reference = match version {
            Version::Tag(tag) => Reference::with_tag(registry, repository.clone(), tag.clone()),
            Version::Digest(digest) => {
                Reference::with_digest(registry, repository.clone(), digest.as_str().to_owned())
            }
        };
        if mirror_of.is_some() {
            reference.set_mirror_registry(host.clone());
        }
        reference
    }

    /// The manifest or index of a tag or digest, checked against the digest if that was given.
    pub(crate) async fn manifest(
        &self,
        version: &Version,
        caps: &Caps,
    ) -> Result<(Bytes, Digest), PullCause> {
        let reference = self.reference(version);
        let call = self.client.pull_manifest_raw(&reference, &self.auth, MANIFEST_TYPES);
        let (bytes, _header) = match tokio::time::timeout(MANIFEST_TIMEOUT, call).await {
            Ok(answer) => answer.map_err(|err| self.cause(err))?,
            Err(_) => return Err(self.unreachable("timed out reading the manifest".to_owned())),
        };
        if bytes.len() as u64 > caps.manifest_bytes {
            return Err(PullCause::TooLarge { what: "manifest".to_owned(), limit: caps.manifest_bytes });
        }
        let found = Digest::of(&bytes);
        match version {
            Version::Digest(digest) if *digest != found => Err(PullCause::WrongDigest {
                what: "manifest",
                digest: digest.to_string(),
                found: found.to_string(),
            }),
            _ => Ok((bytes, found)),
        }
    }

    /// A blob's bytes from `offset` on, or from the start if the registry cannot do ranges. Unchecked.
    pub(crate) async fn blob(&self, digest: &Digest, offset: u64) -> Result<BlobStream, PullCause> {
        use oci_distribution::client::BlobResponse;
        let reference = self.reference(&self.name.version);
        self.client.store_auth_if_needed(reference.resolve_registry(), &self.auth).await;
        let failed = |err: OciDistributionError| PullCause::Fetch {
            digest: digest.to_string(),
            detail: shortened(&chain(&err)),
        };
        if offset == 0 {
            let stream = self.client.pull_blob_stream(&reference, digest.as_str()).await.map_err(failed)?;
            return Ok(BlobStream { offset: 0, stream: stream.stream });
        }
        let response = self.client.pull_blob_stream_partial(&reference, digest.as_str(), offset, None).await;
        Ok(match response.map_err(failed)? {
            BlobResponse::Full(stream) => BlobStream { offset: 0, stream: stream.stream },
            BlobResponse::Partial(stream) => BlobStream { offset, stream: stream.stream },
        })
    }

    fn unreachable(&self, detail: String) -> PullCause {
        PullCause::Unreachable { name: self.name.to_string(), detail: shortened(&detail) }
    }

    fn cause(&self, err: OciDistributionError) -> PullCause {
        let name = self.name.to_string();
        match err {
            OciDistributionError::ImageManifestNotFoundError(_)
            | OciDistributionError::ServerError { code: 404, .. } => PullCause::NotFound { name },
            OciDistributionError::RegistryError { envelope, url } => {
                use OciErrorCode::{Denied, ManifestUnknown, NameUnknown, NotFound, Unauthorized};
                let has =
                    |codes: &[OciErrorCode]| envelope.errors.iter().any(|err| codes.contains(&err.code));
                if has(&[ManifestUnknown, NameUnknown, NotFound]) {
                    PullCause::NotFound { name }
                } else if has(&[Denied, Unauthorized]) {
                    PullCause::AccessDenied { name, detail: shortened(&envelope.to_string()) }
                } else {
                    PullCause::Status { name, url, status: 400, detail: shortened(&envelope.to_string()) }
                }
            }
            OciDistributionError::UnauthorizedError { .. } => {
                PullCause::AccessDenied { name, detail: "authorization failed".to_owned() }
            }
            OciDistributionError::AuthenticationFailure(detail) => {
                PullCause::AccessDenied { name, detail: shortened(&detail) }
            }
            OciDistributionError::ServerError { code, url, message } => {
                PullCause::Status { name, url, status: code, detail: shortened(&message) }
            }
            OciDistributionError::DigestError(err) => {
                PullCause::Invalid { what: "manifest", digest: name, detail: chain(&err) }
            }
            other => self.unreachable(chain(&other)),
        }
    }
}

fn credentials(auth: &Auth) -> RegistryAuth {
    if !auth.registry_token.is_empty() {
        return RegistryAuth::Bearer(auth.registry_token.clone());
    }
    match auth.basic() {
        Some((username, password)) => RegistryAuth::Basic(username, password),
        None => RegistryAuth::Anonymous,
    }
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
