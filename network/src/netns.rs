//! Network namespaces: made, entered and removed by path.
//!
//! A namespace is held by a bind mount, as `ip netns` does it, so that it outlives every process.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("cannot {action} the network namespace {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the thread that entered the network namespace {path} ended without an answer")]
    Thread { path: PathBuf },
}

/// Makes a new network namespace and holds it at `path`. Its loopback is still down.
///
/// Blocks for the time of a mount; makes a thread of its own, so that the caller's namespace never changes.
pub fn create(path: &Path) -> Result<(), NetnsError> {
    let error = |source: io::Error| NetnsError::Io { action: "create", path: path.into(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(error)?;
    }
    File::create(path).map_err(error)?;
    let target = path.to_owned();
    let made = std::thread::spawn(move || -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    })
    .join()
    .map_err(|_| NetnsError::Thread { path: path.into() })?;
    made.map_err(|source| {
        // Best effort: the mount failed, so this is an empty file.
        let _ = fs::remove_file(path);
        error(source)
    })
}

/// Lets go of a namespace. What is already gone is no error.
pub fn remove(path: &Path) -> Result<(), NetnsError> {
    let error = |source: io::Error| NetnsError::Io { action: "remove", path: path.into(), source };
    match umount2(path, MntFlags::MNT_DETACH) {
        // EINVAL: it was a plain file, never mounted.
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(errno) => return Err(error(errno.into())),
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error(source)),
        _ => Ok(()),
    }
}

/// Whether a namespace is held at `path`.
pub fn exists(path: &Path) -> bool {
    use nix::sys::statfs::{NSFS_MAGIC, statfs};
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC)
}

/// Runs `work` on a thread of its own inside the namespace and answers what it answers. The thread ends
/// afterwards, so that no thread is ever left in the wrong namespace.
pub fn within<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NetnsError> {
    let error = |source: io::Error| NetnsError::Io { action: "enter", path: path.into(), source };
    let namespace = File::open(path).map_err(error)?;
    std::thread::spawn(move || -> io::Result<T> {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
    .join()
    .map_err(|_| NetnsError::Thread { path: path.into() })?
    .map_err(error)
}
