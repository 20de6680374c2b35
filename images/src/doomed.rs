//! Directories that are removed with all that is in them unless they are kept: where content is unpacked that may turn out to be
//! nothing.

use std::io;
use std::path::{Path, PathBuf};

/// A directory that is removed once it is dropped, unless it is [kept](Doomed::keep).
#[derive(Debug)]
pub(crate) struct Doomed {
    path: Option<PathBuf>,
}

impl Doomed {
    /// Makes a directory of a name of its own in `parent`.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn new_in(parent: &Path) -> io::Result<Doomed> {
        // Only the choice of a free name is left to `tempfile`: its own removal recurses.
        let path = tempfile::TempDir::new_in(parent)?.keep();
        Ok(Doomed { path: Some(path) })
    }

    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// Leaves the directory where it is, or was moved to.
    pub(crate) fn keep(mut self) {
        self.path = None;
    }

    /// Removes it now.
    ///
    /// # Errors
    /// As [`remove`].
    pub(crate) fn close(mut self) -> io::Result<()> {
        self.path.take().map_or(Ok(()), |path| remove(&path))
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(err) = remove(&path)
        {
            tracing::warn!(%err, "a directory is left behind; it goes when the store is opened next");
        }
    }
}

/// Removes a tree that strangers made. Nothing there is success.
///
/// # Errors
/// What the file system says, and at which entry.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    skiff_tree::remove(path).map_err(|err| io::Error::new(err.kind(), err))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_goes_with_all_that_is_in_it() {
        let parent = tempfile::tempdir().expect("a folder");
        let doomed = Doomed::new_in(parent.path()).expect("makes");
        std::fs::create_dir_all(doomed.path().join("a/b")).expect("makes");
        drop(doomed);
        let kept = Doomed::new_in(parent.path()).expect("makes");
        let path = kept.path().to_owned();
        kept.keep();
        let left: Vec<_> =
            std::fs::read_dir(parent.path()).expect("reads").map(|e| e.expect("reads").path()).collect();
        assert_eq!(left, [path]);
    }
}
