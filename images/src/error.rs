use std::io;
use std::path::{Path, PathBuf};

/// What went wrong, worded so that a pod's event reads as it does with containerd.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("couldn't parse image name {name:?}: invalid reference format{detail}")]
    InvalidName { name: String, detail: &'static str },
    #[error("failed to pull and unpack image {name:?}: {cause}")]
    Pull { name: String, cause: PullCause },
    #[error("import image archive {path}: {cause}")]
    Import { path: PathBuf, cause: PullCause },
    #[error("image {name:?} not found")]
    NotFound { name: String },
    #[error("image {name:?} is not whole, and cannot be unpacked again: {cause}; pull it again")]
    Incomplete { name: String, cause: PullCause },
    #[error("image {name:?} is not a WebAssembly module")]
    NotWasm { name: String },
    #[error("image {name:?} has no file {path:?} that could be its WebAssembly module")]
    NoModule { name: String, path: String },
    #[error("registries file {path}: {detail}")]
    Registries { path: PathBuf, detail: String },
    #[error("image store: {operation} {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

/// Why an image could not be brought in.
#[derive(Debug, thiserror::Error)]
pub enum PullCause {
    #[error("failed to resolve reference {name:?}: {name}: not found")]
    NotFound { name: String },
    #[error(
        "failed to resolve reference {name:?}: pull access denied, repository does not exist or may require authorization: {detail}"
    )]
    AccessDenied { name: String, detail: String },
    #[error("failed to resolve reference {name:?}: failed to do request: {detail}")]
    Unreachable { name: String, detail: String },
    #[error(
        "failed to resolve reference {name:?}: unexpected status from GET request to {url}: {status}: {detail}"
    )]
    Status { name: String, url: String, status: u16, detail: String },
    #[error("failed to copy: blob {digest}: {detail}")]
    Fetch { digest: String, detail: String },
    #[error("no match for platform in manifest {digest}: not found")]
    NoPlatform { digest: String },
    #[error("invalid {what} {digest}: {detail}")]
    Invalid { what: &'static str, digest: String, detail: String },
    #[error("{what} {digest}: unexpected digest {found}")]
    WrongDigest { what: &'static str, digest: String, found: String },
    #[error("{what} exceeds the limit of {limit}")]
    TooLarge { what: String, limit: u64 },
    #[error("failed to extract layer {diff_id}: {detail}")]
    Unpack { diff_id: String, detail: String },
    #[error("{detail}")]
    Archive { detail: String },
    #[error("{operation} {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("a worker of the image store ended before its work")]
    Worker,
}

impl PullCause {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PullCause {
        let path = path.to_owned();
        move |source| PullCause::Io { operation, path, source }
    }
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { operation, path, source }
    }

    /// The reason that `state.waiting.reason` shows, where the kubelet has one of its own.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Error::InvalidName { .. } => Some("InvalidImageName"),
            Error::Pull { cause: PullCause::Unreachable { .. }, .. } => Some("RegistryUnavailable"),
            Error::Pull { .. } => Some("ErrImagePull"),
            _ => None,
        }
    }

    /// Whether there is no such image, here or at the registry.
    pub fn is_not_found(&self) -> bool {
        use PullCause::{NoPlatform, NotFound};
        matches!(
            self,
            Error::NotFound { .. } | Error::Pull { cause: NotFound { .. } | NoPlatform { .. }, .. }
        )
    }
}
