//! Directories and mounts below a pod's directory.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::volume::VolumeError;

/// Makes the directory, with exactly this mode, and its parents.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<(), VolumeError> {
    if path.is_dir() {
        return Ok(());
    }
    let made =
        fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)));
    made.map_err(VolumeError::host("create the directory", path))
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(path);
    Ok(fs::symlink_metadata(path)?.dev() != fs::symlink_metadata(parent)?.dev())
}

/// Mounts a tmpfs at `path` unless one is there. Answers whether it did.
pub(crate) fn ensure_tmpfs(path: &Path, size_bytes: Option<i64>, mode: u32) -> Result<bool, VolumeError> {
    if is_mount_point(path).map_err(VolumeError::host("look at", path))? {
        return Ok(false);
    }
    let size = size_bytes.map(|size| format!(",size={size}")).unwrap_or_default();
    let options = CString::new(format!("mode={mode:o}{size}")).unwrap_or_default();
    let mounted = mount("tmpfs", path, "tmpfs", MountFlags::empty(), options.as_c_str());
    mounted.map_err(|e| VolumeError::host("mount a tmpfs at", path)(e.into()))?;
    Ok(true)
}

/// Whether something is mounted at `path`, also a directory of the same file system.
pub(crate) fn is_mounted(path: &Path) -> Result<bool, VolumeError> {
    let real = fs::canonicalize(path).map_err(VolumeError::host("look at", path))?;
    Ok(mounts_below(&real)?.contains(&real))
}

/// What is mounted at `path`: a device.
pub(crate) fn source_of(path: &Path) -> Result<PathBuf, VolumeError> {
    let real = fs::canonicalize(path).map_err(VolumeError::host("look at", path))?;
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read(table).map_err(VolumeError::host("read", table))?;
    let source = text.split(|b| *b == b'\n').rev().find_map(|line| {
        let mut fields = line.split(|b| *b == b' ');
        let is_it = fields.nth(4).is_some_and(|field| unescape(field) == real);
        // After the optional fields and a dash come the type and the source.
        let mut rest = fields.skip_while(|field| *field != b"-");
        is_it.then(|| rest.nth(2).map(unescape)).flatten()
    });
    source.ok_or_else(|| VolumeError::Content(format!("nothing is mounted at {}", path.display())))
}

/// How often a device is mounted here.
pub(crate) fn count_of(device: &Path) -> Result<usize, VolumeError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read(table).map_err(VolumeError::host("read", table))?;
    let is_it = |line: &&[u8]| {
        let mut rest = line.split(|b| *b == b' ').skip_while(|field| *field != b"-");
        rest.nth(2).is_some_and(|source| unescape(source) == device)
    };
    Ok(text.split(|b| *b == b'\n').filter(is_it).count())
}

/// Unmounts what nobody uses.
pub(crate) fn unmount_one(path: &Path) -> Result<(), VolumeError> {
    unmount(path, UnmountFlags::NOFOLLOW).map_err(|e| VolumeError::host("unmount", path)(e.into()))
}

/// Shows a directory at `target`, too. What is mounted below it is not shown.
pub(crate) fn bind(path: &Path, target: &Path) -> Result<(), VolumeError> {
    rustix::mount::mount_bind(path, target).map_err(|e| VolumeError::host("mount", path)(e.into()))
}

/// Removes a tree of ours: first whatever is mounted in it, then the files. If something cannot be
/// unmounted nothing is removed: the files below belong to someone.
pub(crate) fn remove_tree(dir: &Path) -> Result<(), VolumeError> {
    if dir.symlink_metadata().is_err() {
        return Ok(());
    }
    // The mount table has real paths.
    let dir = fs::canonicalize(dir).map_err(VolumeError::host("look at", dir))?;
    for point in mounts_below(&dir)? {
        let done = unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        done.map_err(|e| VolumeError::host("unmount", &point)(e.into()))?;
    }
    if let Some(left) = mounts_below(&dir)?.first() {
        return Err(VolumeError::Content(format!("{} is still mounted", left.display())));
    }
    skiff_tree::remove(&dir).map_err(|error| VolumeError::host("remove", &dir)(error.into()))
}

/// Mount points at or below `dir`, the newest first.
pub(crate) fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read(table).map_err(VolumeError::host("read", table))?;
    let points =
        text.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(4)).map(unescape);
    let mut points: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    points.reverse();
    Ok(points)
}

/// The mount table writes blanks and backslashes as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_with_mounts_is_unmounted_and_then_removed() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pod");
        let volume = pod.join("with blank");
        make_dir(&volume, 0o777).unwrap();
        assert!(ensure_tmpfs(&volume, Some(1 << 20), 0o777).unwrap());
        assert!(!ensure_tmpfs(&volume, Some(1 << 20), 0o777).unwrap());
        assert_eq!(mounts_below(&fs::canonicalize(&pod).unwrap()).unwrap().len(), 1);
        remove_tree(&pod).unwrap();
        assert!(!pod.exists());
        remove_tree(&pod).unwrap();
    }

    #[test]
    fn a_volume_of_sixty_thousand_nested_directories_is_removed_on_a_small_stack() {
        use rustix::fs::{Mode, OFlags, mkdirat, openat};
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        make_dir(&volume, 0o777).unwrap();
        // A tmpfs inside the volume would be unmounted with all that is in it: here it stands for the disk.
        assert!(ensure_tmpfs(&volume, None, 0o777).unwrap());
        let top = volume.join("top");
        fs::create_dir(&top).unwrap();
        let mut at = skiff_tree::open_root(&top).unwrap();
        for _ in 0..60_000 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        drop(at);
        let removed = std::thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            remove_tree(&top).unwrap();
            top.exists()
        });
        assert!(!removed.unwrap().join().unwrap());
        remove_tree(&volume).unwrap();
    }
}
