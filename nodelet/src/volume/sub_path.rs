//! A path below a volume, for `subPath`.
//!
//! A container may write the volume and plant symbolic links in it, even while this runs. So the path
//! is opened by the kernel beneath the volume's root (`openat2`, `RESOLVE_BENEATH`), and what was
//! opened is what is mounted: the name is never resolved a second time.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, open, openat2};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind_recursive, unmount};

use crate::volume::VolumeError;
use crate::volume::mounts::make_dir;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// Mounts `sub_path` of the volume at `target`, making the directory if it does not exist.
pub(crate) fn bind(volume: &Path, sub_path: &str, target: &Path) -> Result<(), VolumeError> {
    let path = Path::new(sub_path);
    if path.is_absolute() {
        return Err(VolumeError::Content(format!("error SubPath `{sub_path}` must not be an absolute path")));
    }
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(VolumeError::Content(format!(
            "unable to provision SubPath `{sub_path}`: must not contain '..'"
        )));
    }
    let source = open_beneath(volume, path)
        .map_err(|e| VolumeError::host("open the sub path in", volume)(e.into()))?;
    let failed = || VolumeError::host("mount the sub path at", target);
    let is_dir = FileType::from_raw_mode(fstat(&source).map_err(|e| failed()(e.into()))?.st_mode)
        == FileType::Directory;
    prepare_target(target, is_dir)?;
    let opened = format!("/proc/self/fd/{}", source.as_raw_fd());
    mount_bind_recursive(opened.as_str(), target).map_err(|e| failed()(e.into()))
}

fn open_beneath(volume: &Path, path: &Path) -> Result<OwnedFd, Errno> {
    let root = open(volume, OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty())?;
    match openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), BENEATH) {
        Err(Errno::NOENT) => make_beneath(root, path),
        opened => opened,
    }
}

/// Makes the directories of `path`, each in the one opened before it.
fn make_beneath(root: OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let mode = Mode::from_raw_mode(fstat(&root)?.st_mode & 0o7777);
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let mut done = std::path::PathBuf::new();
    let mut parent: Option<OwnedFd> = None;
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        done.push(name);
        let at = parent.as_ref().unwrap_or(&root).as_fd();
        let made = mkdirat(at, name, mode);
        if !matches!(made, Ok(()) | Err(Errno::EXIST)) {
            made?;
        }
        // From the root again, so that an existing link is followed only while it stays beneath it.
        let opened = openat2(&root, &done, flags, Mode::empty(), BENEATH)?;
        if made.is_ok() {
            // `mkdirat` is subject to the umask; the volume's own mode is what fsGroup arranged.
            let by_fd = format!("/proc/self/fd/{}", opened.as_raw_fd());
            rustix::fs::chmod(by_fd.as_str(), mode)?;
        }
        parent = Some(opened);
    }
    Ok(parent.unwrap_or(root))
}

fn prepare_target(target: &Path, is_dir: bool) -> Result<(), VolumeError> {
    // A mount of an earlier container of this name; running ones have their own copy.
    while unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
    if let Ok(kind) = target.symlink_metadata()
        && kind.is_dir() != is_dir
    {
        let removed = if kind.is_dir() { fs::remove_dir(target) } else { fs::remove_file(target) };
        removed.map_err(VolumeError::host("replace", target))?;
    }
    if is_dir {
        return make_dir(target, 0o750);
    }
    if let Some(parent) = target.parent() {
        make_dir(parent, 0o750)?;
    }
    let made = fs::OpenOptions::new().write(true).create(true).truncate(false).open(target);
    made.map(drop).map_err(VolumeError::host("create", target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn volume() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (volume, target) = (dir.path().join("volume"), dir.path().join("target"));
        fs::create_dir(&volume).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        (dir, volume, target)
    }

    #[test]
    fn a_missing_sub_path_is_made_and_mounted() {
        let (dir, volume, target) = volume();
        bind(&volume, "a/b", &target).unwrap();
        fs::write(target.join("f"), "x").unwrap();
        assert_eq!(fs::read_to_string(volume.join("a/b/f")).unwrap(), "x");
        bind(&volume, "a/b", &target).unwrap();
        crate::volume::mounts::remove_tree(dir.path()).unwrap();
    }

    #[test]
    fn a_single_file_is_mounted_as_a_file() {
        let (dir, volume, target) = volume();
        fs::write(volume.join("f"), "x").unwrap();
        symlink("f", volume.join("link")).unwrap();
        bind(&volume, "link", &target).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "x");
        crate::volume::mounts::remove_tree(dir.path()).unwrap();
    }

    #[test]
    fn links_that_leave_the_volume_are_refused() {
        let (dir, volume, target) = volume();
        symlink("../outside", volume.join("relative")).unwrap();
        symlink(dir.path().join("outside"), volume.join("absolute")).unwrap();
        symlink("/proc/self/root", volume.join("magic")).unwrap();
        for path in ["relative", "absolute", "magic", "relative/new", "absolute/new", "/etc", "../outside"] {
            assert!(bind(&volume, path, &target).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
        assert!(!target.exists());
    }
}
