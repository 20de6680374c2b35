//! Makes sure a container's image is here: pull policies, pull secrets, back-off, events.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use skiff_cri::v1::{AuthConfig, Image, ImageSpec, ImageStatusRequest, PodSandboxConfig, PullImageRequest};
use skiff_cri::{Cri, CriError};

use crate::backoff::{Backoff, go_duration};
use crate::create::ImageInfo;
use crate::event::{EventType, PodEvents};
use crate::pod::PodExt;
use crate::pull_secrets::{self, Form};

/// Why a container was not started: shown as its waiting state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartFailure {
    pub(crate) reason: String,
    pub(crate) message: String,
    /// When it is worth trying again.
    pub(crate) retry_after: Duration,
}

const RETRY: Duration = Duration::from_secs(10);

impl StartFailure {
    pub(crate) fn new(reason: &str, message: impl Into<String>) -> StartFailure {
        StartFailure { reason: reason.to_owned(), message: message.into(), retry_after: RETRY }
    }
}

pub(crate) struct ImagePull<'a> {
    pub(crate) cri: &'a dyn Cri,
    pub(crate) events: &'a PodEvents,
    pub(crate) pod: &'a Pod,
    pub(crate) image: &'a str,
    pub(crate) policy: Option<&'a str>,
    /// Whom it is told of; the pod, where it is for a volume.
    pub(crate) container: Option<&'a Container>,
    pub(crate) handler: &'a str,
    pub(crate) sandbox_config: &'a PodSandboxConfig,
    pub(crate) secrets: &'a [Arc<Secret>],
}

/// Back-off of this pod's pulls, and what the last pull of each image said.
pub(crate) struct PullHistory {
    backoff: Backoff,
    messages: HashMap<String, String>,
}

impl Default for PullHistory {
    fn default() -> Self {
        let backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        PullHistory { backoff, messages: HashMap::new() }
    }
}

impl ImagePull<'_> {
    fn event(&self, type_: EventType, reason: &str, message: &str) {
        match self.container {
            Some(container) => self.events.container(self.pod, container, type_, reason, message),
            None => self.events.pod(self.pod, type_, reason, message),
        }
    }

    fn spec(&self) -> ImageSpec {
        ImageSpec {
            image: with_default_tag(self.image),
            annotations: self.pod.metadata.annotations.clone().unwrap_or_default(),
            runtime_handler: self.handler.to_owned(),
            ..ImageSpec::default()
        }
    }

    pub(crate) async fn ensure(&self, history: &mut PullHistory) -> Result<ImageInfo, StartFailure> {
        let name = self.image;
        if !is_reference(name) {
            let message = format!(
                "Failed to apply default image tag {name:?}: couldn't parse image name {name:?}: invalid reference format"
            );
            self.event(EventType::Warning, "InspectFailed", &message);
            return Err(StartFailure::new("InvalidImageName", message));
        }
        let policy = self.policy.unwrap_or("IfNotPresent");
        if policy == "Always" {
            return self.pull(name, history).await;
        }
        match self.inspect().await {
            Err(error) => {
                let message = format!("Failed to inspect image {name:?}: {error}");
                self.event(EventType::Warning, "InspectFailed", &message);
                Err(StartFailure::new("ImageInspectError", message))
            }
            Ok(Some(image)) => {
                let message = format!(
                    "Container image {name:?} already present on machine and can be accessed by the pod"
                );
                self.event(EventType::Normal, "Pulled", &message);
                Ok(image_info(image))
            }
            Ok(None) if policy == "Never" => {
                let message = format!("Container image {name:?} is not present with pull policy of Never");
                self.event(EventType::Warning, "ErrImageNeverPull", &message);
                Err(StartFailure::new("ErrImageNeverPull", message))
            }
            Ok(None) => self.pull(name, history).await,
        }
    }

    async fn inspect(&self) -> Result<Option<Image>, CriError> {
        let request = ImageStatusRequest { image: Some(self.spec()), verbose: false };
        Ok(self.cri.image_status(request).await?.image)
    }

    async fn pull(&self, name: &str, history: &mut PullHistory) -> Result<ImageInfo, StartFailure> {
        if let Some(left) = history.backoff.remaining_since_update(name) {
            let message = format!("Back-off pulling image {name:?}");
            self.event(EventType::Normal, "BackOff", &message);
            let message = match history.messages.get(name) {
                Some(earlier) => format!("{message}: {earlier}"),
                None => message,
            };
            return Err(StartFailure { retry_after: left, ..StartFailure::new("ImagePullBackOff", message) });
        }
        self.event(EventType::Normal, "Pulling", &format!("Pulling image {name:?}"));
        let started = Instant::now();
        match self.pull_with_credentials(name).await {
            Ok(image) => {
                let took = go_duration(Duration::from_millis(
                    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
                ));
                let message = format!(
                    "Successfully pulled image {name:?} in {took} ({took} including waiting). Image size: {} bytes.",
                    image.size
                );
                self.event(EventType::Normal, "Pulled", &message);
                history.messages.remove(name);
                Ok(image_info(image))
            }
            Err(error) => {
                self.event(EventType::Warning, "Failed", &format!("Failed to pull image {name:?}: {error}"));
                history.backoff.next(name, tokio::time::Instant::now());
                let reason = error.reason.unwrap_or("ErrImagePull");
                history.messages.insert(name.to_owned(), format!("{reason}: {error}"));
                let left = history.backoff.remaining_since_update(name).unwrap_or(RETRY);
                // Upstream shows the failure first and the back-off from its next pass on.
                Err(StartFailure {
                    retry_after: left.min(RETRY),
                    ..StartFailure::new(reason, error.to_string())
                })
            }
        }
    }

    async fn pull_with_credentials(&self, name: &str) -> Result<Image, CriError> {
        let mut candidates: Vec<Option<AuthConfig>> =
            self.secrets.iter().flat_map(|s| credentials(s, name)).map(Some).collect();
        candidates.push(None);
        let mut first_error = None;
        for auth in candidates {
            let request = PullImageRequest {
                image: Some(self.spec()),
                auth,
                sandbox_config: Some(self.sandbox_config.clone()),
            };
            match self.cri.pull_image(request).await {
                Ok(pulled) => {
                    let image = self.inspect().await?.unwrap_or_default();
                    return Ok(Image {
                        id: if image.id.is_empty() { pulled.image_ref } else { image.id.clone() },
                        ..image
                    });
                }
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| CriError::unknown("no credentials to pull with")))
    }
}

fn image_info(image: Image) -> ImageInfo {
    // An image that names no user runs as root.
    let uid = image.uid.map(|uid| uid.value).or_else(|| image.username.is_empty().then_some(0));
    ImageInfo { image_ref: image.id, uid, username: image.username }
}

/// Whether the name is an image reference: `[host[:port]/]path[:tag][@digest]`.
fn is_reference(name: &str) -> bool {
    let (name, digest) = match name.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (name, None),
    };
    let (path, tag) = split_tag(name);
    let (host, path) = split_host(path);
    let good_digest = digest.is_none_or(|d| {
        d.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit())
        })
    });
    let good_tag = tag.is_none_or(|t| {
        let first = t.bytes().next();
        (1..=128).contains(&t.len())
            && first.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
            && t.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    });
    let good_host = host.is_none_or(|h| {
        !h.is_empty()
            && h.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']' | b'_'))
    });
    good_digest && good_tag && good_host && path.len() <= 255 && path.split('/').all(is_path_component)
}

fn is_path_component(part: &str) -> bool {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
        && bytes.iter().all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'))
        && !part.contains("..")
        && !part.contains("___")
}

fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    }
}

fn split_host(path: &str) -> (Option<&str>, &str) {
    match path.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), rest),
        _ => (None, path),
    }
}

fn with_default_tag(name: &str) -> String {
    match name.contains('@') || split_tag(name).1.is_some() {
        true => name.to_owned(),
        false => format!("{name}:latest"),
    }
}

/// The credentials of a pull secret that fit the image's registry, the most specific first.
fn credentials(secret: &Secret, image: &str) -> Vec<AuthConfig> {
    let data = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|b| b.0.as_slice());
    let (form, bytes) = match (data(".dockerconfigjson"), data(".dockercfg")) {
        (Some(json), _) => (Form::DockerConfigJson, json),
        (None, Some(json)) => (Form::DockerCfg, json),
        (None, None) => return Vec::new(),
    };
    let (host, path) = split_host(split_tag(image.split('@').next().unwrap_or_default()).0);
    pull_secrets::credentials(form, bytes, host.unwrap_or("docker.io"), path)
}

/// The pod's pull secrets that exist, and the names of those that do not.
pub(crate) async fn pull_secrets(
    objects: &crate::objects::Objects,
    pod: &Pod,
) -> (Vec<Arc<Secret>>, Vec<String>) {
    let names = pod.spec.as_ref().and_then(|s| s.image_pull_secrets.as_deref()).unwrap_or_default();
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for reference in names.iter().filter(|r| !r.name.is_empty()) {
        match objects.secrets.get(pod.namespace(), &reference.name, pod.uid()).await {
            Ok(Some(secret)) => found.push(secret),
            _ => missing.push(reference.name.clone()),
        }
    }
    (found, missing)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn references_are_told_from_other_text() {
        for good in [
            "nginx",
            "nginx:alpine",
            "localhost:5000/a/b:1",
            "docker.io/library/nginx@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ] {
            assert!(is_reference(good), "{good}");
        }
        for bad in ["", "Nginx", "nginx:", "a//b", "nginx:tag with blank", "-a", "a@b", "http://x/y"] {
            assert!(!is_reference(bad), "{bad}");
        }
        assert_eq!(with_default_tag("localhost:5000/a"), "localhost:5000/a:latest");
        assert_eq!(with_default_tag("nginx:1"), "nginx:1");
    }

    #[test]
    fn pull_secrets_serve_their_own_registry_only() {
        let json = br#"{"auths":{"https://index.docker.io/v1/":{"auth":"bWU6cHc="},"example.com/team":{"username":"u","password":"p"}}}"#;
        let secret = Secret {
            data: Some(BTreeMap::from([(".dockerconfigjson".to_owned(), ByteString(json.to_vec()))])),
            ..Secret::default()
        };
        let names =
            |image: &str| credentials(&secret, image).into_iter().map(|a| a.username).collect::<Vec<_>>();
        assert_eq!(names("nginx:1"), ["me"]);
        assert_eq!(names("example.com/team/app"), ["u"]);
        assert!(names("example.com/teamster/app").is_empty());
        assert!(names("example.com.evil/team/app").is_empty());
    }

    #[test]
    fn an_image_without_a_user_runs_as_root() {
        let image = |uid: Option<i64>, username: &str| {
            let uid = uid.map(|value| skiff_cri::v1::Int64Value { value });
            image_info(Image { uid, username: username.to_owned(), ..Default::default() }).uid
        };
        assert_eq!(image(None, ""), Some(0));
        assert_eq!(image(Some(1000), ""), Some(1000));
        assert_eq!(image(None, "www"), None);
    }
}
