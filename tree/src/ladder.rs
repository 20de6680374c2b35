//! A way down a tree and up again that holds few descriptors.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2};
use rustix::io::Errno;

/// Levels above the present one that stay open; from further down the way up is `..`.
const N_HELD: usize = 16;

/// Opens the directory `name` in `parent`: no link, no mount point.
pub(crate) fn open_dir(parent: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    openat2(parent, name, flags, Mode::empty(), resolve)
}

struct Rung {
    /// Device and inode, by which the directory is known again.
    identity: (u64, u64),
    /// `None` once it is far above.
    descriptor: Option<OwnedFd>,
}

/// The directories from a root to where a walk is. The root and the last few are open.
pub(crate) struct Ladder {
    root: OwnedFd,
    rungs: Vec<Rung>,
}

/// The directory above is not the one that the walk came from: the tree was changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Astray;

impl Ladder {
    pub(crate) fn new(root: OwnedFd) -> Ladder {
        Ladder { root, rungs: Vec::new() }
    }

    /// The directory where the walk is.
    pub(crate) fn here(&self) -> BorrowedFd<'_> {
        // The last rung is always open: `down` opens it, `up` opens the next before it drops one.
        let last = self.rungs.last().and_then(|rung| rung.descriptor.as_ref());
        last.unwrap_or(&self.root).as_fd()
    }

    /// How far below the root.
    pub(crate) fn depth(&self) -> usize {
        self.rungs.len()
    }

    pub(crate) fn down(&mut self, name: &CStr) -> Result<(), Errno> {
        let descriptor = open_dir(self.here(), name, OFlags::PATH)?;
        let identity = identity(&fstat(&descriptor)?);
        self.rungs.push(Rung { identity, descriptor: Some(descriptor) });
        if let Some(far) = self.rungs.len().checked_sub(N_HELD + 1) {
            self.rungs[far].descriptor = None;
        }
        Ok(())
    }

    /// To the directory above. At the root there is none, and nothing happens.
    pub(crate) fn up(&mut self) -> Result<(), Astray> {
        let Some(left) = self.rungs.pop() else { return Ok(()) };
        let Some(above) = self.rungs.last_mut().filter(|rung| rung.descriptor.is_none()) else {
            return Ok(());
        };
        let child = left.descriptor.ok_or(Astray)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = openat(&child, c"..", flags, Mode::empty()).map_err(|_| Astray)?;
        let found = fstat(&parent).map_err(|_| Astray)?;
        if identity(&found) != above.identity {
            return Err(Astray);
        }
        above.descriptor = Some(parent);
        Ok(())
    }

    /// Straight to the root, which is always open.
    pub(crate) fn jump_to_root(&mut self) {
        self.rungs.clear();
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}
