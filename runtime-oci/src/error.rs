use std::io;
use std::path::{Path, PathBuf};

use skiff_cri::{Code, CriError, whole};

/// What can go wrong with a Linux container.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("container {id:?} not found")]
    NotFound { id: String },
    #[error("container {id:?} exists already")]
    Exists { id: String },
    #[error("container {id:?} is in {state} state")]
    State { id: String, state: &'static str },
    #[error("image {id:?} not found")]
    NoImage { id: String },
    #[error("failed to generate container {id:?} spec: {detail}")]
    Spec { id: String, detail: String },
    /// Worded as with containerd, whose words are what people search for.
    #[error(
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: {detail}"
    )]
    Start { detail: String },
    #[error("failed to exec in container: failed to start exec: OCI runtime exec failed: {detail}")]
    Exec { detail: String },
    #[error(
        "OCI runtime {binary} is not installed: install it (apt-get install runc) or name another by flag"
    )]
    NoBinary { binary: PathBuf },
    #[error("{command} of container {id:?}: {detail}")]
    Runc { command: &'static str, id: String, detail: String },
    #[error("shim of container {id:?}: {detail}")]
    Shim { id: String, detail: String },
    #[error("{operation} of container {id:?} took longer than {seconds} s")]
    Timeout { operation: &'static str, id: String, seconds: u64 },
    #[error(transparent)]
    Cgroup(#[from] skiff_cgroup::Error),
    #[error("{operation} {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("a worker of the runtime ended before its work")]
    Worker,
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { operation, path, source }
    }
}

impl From<Error> for CriError {
    fn from(err: Error) -> CriError {
        let code = match &err {
            Error::NotFound { .. } | Error::NoImage { .. } => Code::NotFound,
            Error::Exists { .. } => Code::AlreadyExists,
            Error::State { .. } => Code::FailedPrecondition,
            Error::Spec { .. } => Code::InvalidArgument,
            Error::Timeout { .. } => Code::DeadlineExceeded,
            Error::NoBinary { .. } => Code::Unavailable,
            _ => Code::Unknown,
        };
        CriError::new(code, whole(&err))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_answered_about_a_control_group_reaches_the_event() {
        let source = io::Error::from_raw_os_error(30);
        let write = skiff_cgroup::Error::Write { file: "/g/cpu.max".into(), value: "1".to_owned(), source };
        let told = CriError::from(Error::Cgroup(write)).message;
        assert_eq!(told, "write \"1\" to /g/cpu.max: Read-only file system (os error 30)");
    }

    #[test]
    fn a_cause_that_an_error_tells_itself_is_not_told_again() {
        let error = Error::io("create", Path::new("/x"))(io::Error::from_raw_os_error(30));
        assert_eq!(CriError::from(error).message, "create /x: Read-only file system (os error 30)");
    }
}
