//! `fsGroup`: a volume's files belong to the pod's group.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, chmod, chownat, fchmod, fchown, fstat, openat2,
};
use rustix::io::Errno;
use skiff_tree::{Descend, Entry, Visitor};

use crate::volume::VolumeError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

/// Gives the directory `path` and all below it to `group`. New files in its directories will be the group's too.
pub(crate) fn give_to_group(path: &Path, group: u32, access: Access) -> Result<(), VolumeError> {
    let failed = || VolumeError::host("give to the pod's group", path);
    let mut give = Give { group: Gid::from_raw(group), access };
    let root = skiff_tree::open_root(path).map_err(|e| failed()(e.into()))?;
    let top = || -> Result<OwnedFd, Errno> {
        let stat = fstat(&root)?;
        fchown(&root, None, Some(give.group))?;
        fchmod(&root, give.mode(&stat))?;
        Ok(root)
    };
    let root = top().map_err(|e| failed()(e.into()))?;
    skiff_tree::walk(root, &mut give).map_err(|e| failed()(e.into()))
}

/// Whether the top of a volume is a group's already.
pub(crate) fn is_of_group(path: &Path, group: u32) -> bool {
    let is_its = |stat: Stat| stat.st_gid == group && Mode::from_raw_mode(stat.st_mode).contains(Mode::SGID);
    rustix::fs::stat(path).is_ok_and(is_its)
}

struct Give {
    group: Gid,
    access: Access,
}

impl Give {
    fn mode(&self, stat: &Stat) -> Mode {
        let bits = match self.access {
            Access::ReadOnly => 0o440,
            Access::ReadWrite => 0o660,
        };
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let bits = if is_dir { bits | 0o2110 } else { bits };
        Mode::from_raw_mode((stat.st_mode & 0o7777) | bits)
    }

    fn give(&self, entry: Entry<'_>) -> io::Result<()> {
        chownat(entry.parent, entry.name, None, Some(self.group), AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(entry.stat.st_mode) != FileType::Symlink {
            set_mode(entry.parent, entry.name, self.mode(entry.stat))?;
        }
        Ok(())
    }
}

/// `chmod` of exactly what has this name here, even if it became a link: `fchmodat` would follow it.
fn set_mode(parent: BorrowedFd<'_>, name: &CStr, mode: Mode) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let opened = openat2(parent, name, flags, Mode::empty(), resolve)?;
    if FileType::from_raw_mode(fstat(&opened)?.st_mode) == FileType::Symlink {
        return Err(Errno::LOOP);
    }
    chmod(format!("/proc/self/fd/{}", opened.as_raw_fd()), mode)
}

impl Visitor for Give {
    fn enter(&mut self, entry: Entry<'_>) -> io::Result<Descend> {
        self.give(entry).map(|()| Descend::Into)
    }

    fn file(&mut self, entry: Entry<'_>) -> io::Result<()> {
        self.give(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    #[test]
    fn a_deep_volume_is_given_to_the_group_and_what_its_links_name_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        fs::create_dir(&volume).unwrap();
        fs::write(&outside, "x").unwrap();
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).unwrap();
        let mut at = skiff_tree::open_root(&volume).unwrap();
        // Past `PATH_MAX`, and deeper than a thread's stack holds calls.
        const DEPTH: usize = 3000;
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&at, c"d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, c"d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        symlink(&outside, volume.join("link")).unwrap();
        give_to_group(&volume, 4321, Access::ReadWrite).unwrap();
        let deepest = fstat(&at).unwrap();
        assert_eq!((deepest.st_gid, deepest.st_mode & 0o7777), (4321, 0o2770));
        let top = fs::metadata(&volume).unwrap();
        assert_eq!((top.gid(), top.mode() & 0o2070), (4321, 0o2070));
        assert_eq!(volume.join("link").symlink_metadata().unwrap().gid(), 4321);
        let kept = fs::metadata(&outside).unwrap();
        assert_eq!((kept.gid(), kept.mode() & 0o777), (fs::metadata(dir.path()).unwrap().gid(), 0o600));
        crate::volume::mounts::remove_tree(&volume).unwrap();
        assert!(!volume.exists());
    }
}
