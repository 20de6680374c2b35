use std::ffi::{CStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// What went wrong at which entry. The entry is named by its last component: the whole path may be longer than
/// anyone wants to read.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {name:?}: {source}")]
pub struct Error {
    operation: &'static str,
    name: PathBuf,
    source: io::Error,
}

impl Error {
    pub(crate) fn at(
        operation: &'static str,
        name: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Error {
        Error { operation, name: name.into(), source: source.into() }
    }

    pub(crate) fn named(operation: &'static str, name: &CStr, source: impl Into<io::Error>) -> Error {
        Error::at(operation, OsString::from_vec(name.to_bytes().to_vec()), source)
    }

    /// The kind of the operating system's error.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        io::Error::new(error.kind(), error)
    }
}
