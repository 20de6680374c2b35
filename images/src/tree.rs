//! Removing a tree that strangers made: as deep, wide and oddly named as they liked.
//!
//! Nothing here recurses, builds a path, follows a link or holds more than three descriptors, whatever is in the tree. A directory
//! that is not empty gives its own directories to the top of the tree and is then removed:
//!
//! ```text
//! top/a/b/c/…   →   top/0 (was a/b), a removed   →   top/0 (was b/c), b removed   →   …
//! ```
//!
//! # Guarantees
//! - Each entry is looked at a bounded number of times: the cost is linear in their number.
//! - What is mounted in the tree is not touched: [`remove`] ends with an error that says so.
//! - A removal that was interrupted is finished by calling [`remove`] again.
//!
//! # Caveats
//! - It ends once nobody adds entries faster than they go. End what writes there first.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Removes whatever is at `path`: a directory with all that is in it, or a file or link itself. Nothing there is success.
///
/// # Errors
/// What the file system says, with what was being done. What is mounted in the tree is an error, too. Whatever could be removed is
/// removed then, the rest stays.
pub fn remove(path: &Path) -> io::Result<()> {
    let failed = |doing: &'static str| move |err: Errno| named(doing, path, err);
    match rustix::fs::unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(err) => return Err(failed("remove")(err)),
    }
    let top = rustix::fs::openat(CWD, path, directory_flags(), Mode::empty()).map_err(failed("open"))?;
    let mut emptying = Emptying { top, n_given: 0 };
    while emptying.pass().map_err(failed("empty"))? == Found::Something {}
    rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR).map_err(failed("remove"))
}

/// A directory that is removed with all that is in it once it is dropped, unless it is [kept](Doomed::keep).
#[derive(Debug)]
pub struct Doomed {
    path: Option<PathBuf>,
}

impl Doomed {
    /// Makes a directory of a name of its own in `parent`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new_in(parent: &Path) -> io::Result<Doomed> {
        // Only the choice of a free name is left to `tempfile`: its own removal recurses.
        let path = tempfile::TempDir::new_in(parent)?.keep();
        Ok(Doomed { path: Some(path) })
    }

    pub fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// Leaves the directory where it is, or was moved to.
    pub fn keep(mut self) {
        self.path = None;
    }

    /// Removes it now.
    ///
    /// # Errors
    /// As [`remove`].
    pub fn close(mut self) -> io::Result<()> {
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Something,
}

struct Emptying {
    top: OwnedFd,
    /// Names that were tried for directories given to the top.
    n_given: u64,
}

impl Emptying {
    /// Removes what the top holds now. What its directories held in directories of their own is there afterwards.
    fn pass(&mut self) -> Result<Found, Errno> {
        let mut found = Found::Nothing;
        let mut entries = Dir::read_from(&self.top)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            found = Found::Something;
            if !remove_alone(&self.top, name, entry.file_type())? {
                self.flatten(name)?;
            }
        }
        Ok(found)
    }

    /// Removes a directory of the top; its own directories become the top's.
    fn flatten(&mut self, name: &CStr) -> Result<(), Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let directory = match rustix::fs::openat2(&self.top, name, directory_flags(), Mode::empty(), resolve)
        {
            Ok(directory) => directory,
            // Somebody else removed it.
            Err(Errno::NOENT) => return Ok(()),
            Err(err) => return Err(err),
        };
        let mut entries = Dir::read_from(&directory)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let inner = entry.file_name();
            if !is_dots(inner) && !remove_alone(&directory, inner, entry.file_type())? {
                self.give_to_top(&directory, inner)?;
            }
        }
        match rustix::fs::unlinkat(&self.top, name, AtFlags::REMOVEDIR) {
            // What was added meanwhile is found by the next pass.
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(err) => Err(err),
        }
    }

    fn give_to_top(&mut self, directory: &OwnedFd, inner: &CStr) -> Result<(), Errno> {
        loop {
            // A number, so no name that holds a NUL. Each may be taken by at most one entry of the top.
            let Ok(free) = CString::new(self.n_given.to_string()) else { return Err(Errno::INVAL) };
            self.n_given += 1;
            match rustix::fs::renameat(directory, inner, &self.top, &free) {
                // An empty directory of that name has given way: it was to go anyway.
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(err) => return Err(err),
            }
        }
    }
}

/// Removes an entry that has nothing in it; `false` if it is a directory that has.
fn remove_alone(directory: impl AsFd, name: &CStr, kind: FileType) -> Result<bool, Errno> {
    if kind != FileType::Directory {
        match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            // The kind may be unknown, or have changed.
            Err(Errno::ISDIR) => {}
            Err(err) => return Err(err),
        }
    }
    match rustix::fs::unlinkat(&directory, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        // It changed again: the next pass sees what it is.
        Err(Errno::NOTDIR) => Ok(true),
        Err(err) => Err(err),
    }
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn named(doing: &str, path: &Path, err: Errno) -> io::Error {
    let why = match err {
        Errno::XDEV | Errno::BUSY => "something is mounted in it; unmount that first".to_owned(),
        other => io::Error::from(other).to_string(),
    };
    let shown = String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned();
    io::Error::new(io::Error::from(err).kind(), format!("{doing} {shown}: {why}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Directories in one another, made without a path: each is opened from the one around it.
    fn chain(top: &Path, levels: usize) {
        let mut at = rustix::fs::openat(CWD, top, directory_flags(), Mode::empty()).unwrap();
        for level in 0..levels {
            let name = if level % 7 == 0 { "0".to_owned() } else { format!("d{}", level % 3) };
            rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o755)).unwrap();
            if level % 1000 == 0 {
                let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(&at, "file", flags, Mode::from_raw_mode(0o600)).unwrap();
            }
            at = rustix::fs::openat(&at, &name, directory_flags(), Mode::empty()).unwrap();
        }
    }

    fn n_descriptors() -> usize {
        fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn twenty_thousand_directories_in_one_another_are_removed_on_a_small_stack() {
        let parent = tempfile::tempdir().unwrap();
        let top = parent.path().join("top");
        fs::create_dir(&top).unwrap();
        chain(&top, 20_000);
        let before = n_descriptors();
        let removed = {
            let top = top.clone();
            std::thread::Builder::new().stack_size(128 << 10).spawn(move || remove(&top)).unwrap()
        };
        removed.join().unwrap().unwrap();
        assert!(!top.exists());
        assert!(n_descriptors() <= before + 8, "descriptors are given back");
    }

    #[test]
    fn a_tree_with_names_like_those_given_and_many_branches_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let top = parent.path().join("top");
        for a in 0..12 {
            for b in 0..12 {
                fs::create_dir_all(top.join(format!("{a}/{b}/{a}/x"))).unwrap();
                fs::write(top.join(format!("{a}/{b}/{}", a + b + 100)), "file").unwrap();
            }
        }
        fs::write(top.join("13"), "a file where a directory would be given").unwrap();
        remove(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn links_are_removed_and_what_they_lead_to_stays() {
        let parent = tempfile::tempdir().unwrap();
        let (top, kept) = (parent.path().join("top"), parent.path().join("kept"));
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        for link in ["link", "a/link", "a/b/0"] {
            symlink(&kept, top.join(link)).unwrap();
        }
        remove(&top).unwrap();
        assert!(!top.exists() && kept.join("file").exists());
        let link = parent.path().join("itself");
        symlink(&kept, &link).unwrap();
        remove(&link).unwrap();
        assert!(link.symlink_metadata().is_err() && kept.join("file").exists());
    }

    #[test]
    fn files_and_what_is_not_there_are_removed_too() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        fs::write(&file, "x").unwrap();
        remove(&file).unwrap();
        assert!(!file.exists());
        remove(&file).unwrap();
        let doomed = Doomed::new_in(parent.path()).unwrap();
        let path = doomed.path().to_owned();
        fs::create_dir_all(path.join("a/b/c")).unwrap();
        drop(doomed);
        assert!(!path.exists());
        let kept = Doomed::new_in(parent.path()).unwrap();
        let path = kept.path().to_owned();
        kept.keep();
        assert!(path.exists());
    }
}
