use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, fgetxattr, flistxattr, fsetxattr, futimens, mkdirat, mknodat, openat, readlinkat, symlinkat,
    utimensat,
};
use rustix::io::Errno;

use crate::Error;
use crate::ladder::{Ladder, open_dir};
use crate::walk::{Descend, Entry, Visitor, open_root, walk};

/// The longest list of attributes' names and the longest value that Linux has.
const MAX_ATTRIBUTE_BYTES: usize = 64 * 1024;

/// Makes the directory `to`, which must be there and empty, a copy of the directory `from`: all that is in it, and its
/// owner, mode, times and extended attributes. Nobody else may write below `to` meanwhile. Sockets are left out; each
/// name of a file becomes a file of its own.
pub fn copy(from: BorrowedFd<'_>, to: &Path) -> Result<(), Error> {
    let source = openat(from, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|err| Error::named("open", c".", err))?;
    let stat = rustix::fs::fstat(&source).map_err(|err| Error::named("look at", c".", err))?;
    let target = open_root(to)?;
    let again = source.try_clone().map_err(|err| Error::named("open", c".", err))?;
    let mut copy = Copy { to: Ladder::new(target), made: Vec::new() };
    walk(source, &mut copy)?;
    let top = open_root(to)?;
    attributes(again.as_fd(), &top)
        .and_then(|()| finish(&top, &stat))
        .map_err(|err| Error::at("copy to", to, err))
}

struct Copy {
    to: Ladder,
    /// What the directories on the way down shall look like once they are filled.
    made: Vec<Looks>,
}

/// Of a directory: less than a `Stat`, for there may be many.
#[derive(Clone, Copy)]
struct Looks {
    uid: u32,
    gid: u32,
    mode: u32,
    mtime: (i64, i64),
}

impl Looks {
    fn of(stat: &Stat) -> Looks {
        let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or_default();
        Looks { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode, mtime: (stat.st_mtime, nanoseconds) }
    }

    fn times(self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime.0, tv_nsec: self.mtime.1 };
        Timestamps { last_access: time, last_modification: time }
    }

    fn owner(self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }

    /// The mode last: a change of owner takes the set-user-ID bit away.
    fn give(self, to: &OwnedFd) -> Result<(), Errno> {
        let (uid, gid) = self.owner();
        fchown(to, uid, gid)?;
        fchmod(to, Mode::from_raw_mode(self.mode & 0o7777))?;
        futimens(to, &self.times())
    }
}

fn finish(to: &OwnedFd, stat: &Stat) -> Result<(), Errno> {
    Looks::of(stat).give(to)
}

impl Visitor for Copy {
    fn enter(&mut self, entry: Entry<'_>) -> io::Result<Descend> {
        mkdirat(self.to.here(), entry.name, Mode::RWXU)?;
        let from = open_dir(entry.parent, entry.name, OFlags::RDONLY);
        self.to.down(entry.name)?;
        if let Ok(from) = from {
            attributes(from.as_fd(), &readable(self.to.here())?)?;
        }
        self.made.push(Looks::of(entry.stat));
        Ok(Descend::Into)
    }

    fn leave(&mut self, _parent: BorrowedFd<'_>, _name: &CStr) -> io::Result<()> {
        if let Some(looks) = self.made.pop() {
            looks.give(&readable(self.to.here())?)?;
        }
        self.to.up().map_err(|_astray| io::Error::other("the copy was changed meanwhile"))
    }

    fn file(&mut self, entry: Entry<'_>) -> io::Result<()> {
        let (to, looks) = (self.to.here(), Looks::of(entry.stat));
        match FileType::from_raw_mode(entry.stat.st_mode) {
            FileType::RegularFile => regular(entry, to)?,
            FileType::Socket => {}
            FileType::Symlink => {
                let target = readlinkat(entry.parent, entry.name, Vec::new())?;
                symlinkat(target, to, entry.name)?;
                let (uid, gid) = looks.owner();
                chownat(to, entry.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
                utimensat(to, entry.name, &looks.times(), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            kind => {
                mknodat(to, entry.name, kind, Mode::empty(), entry.stat.st_rdev)?;
                let (uid, gid) = looks.owner();
                chownat(to, entry.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
                // It was made just now and is no link.
                rustix::fs::chmodat(
                    to,
                    entry.name,
                    Mode::from_raw_mode(looks.mode & 0o7777),
                    AtFlags::empty(),
                )?;
            }
        }
        Ok(())
    }
}

fn regular(entry: Entry<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut from = File::from(openat(entry.parent, entry.name, read, Mode::empty())?);
    if !from.metadata()?.is_file() {
        return Err(io::Error::other("it was replaced meanwhile"));
    }
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut made = File::from(openat(to, entry.name, write, Mode::RUSR | Mode::WUSR)?);
    io::copy(&mut from, &mut made)?;
    let made = OwnedFd::from(made);
    finish(&made, entry.stat)?;
    // After the owner: a change of it takes a file's capabilities away.
    attributes(from.as_fd(), &made)?;
    Ok(())
}

/// The ladder's descriptors are only for names.
fn readable(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    openat(directory, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Copies extended attributes, as far as the target can hold them.
fn attributes(from: BorrowedFd<'_>, to: &OwnedFd) -> Result<(), Errno> {
    let mut names = vec![0u8; MAX_ATTRIBUTE_BYTES];
    let length = match flistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(err) => return Err(err),
    };
    if length == 0 {
        return Ok(());
    }
    let mut value = vec![0u8; MAX_ATTRIBUTE_BYTES];
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        // The overlay's own marks mean nothing elsewhere.
        if name.to_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        let Ok(length) = fgetxattr(from, name, &mut value[..]) else { continue };
        match fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}
