//! Entries of a layer into files, each reached from the layer's own directory by opens that cannot leave
//! it: no `..`, no symbolic link on the way, whatever the archive made there before.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::tar_stream::{Entry, Kind, TarStream};
use crate::Caps;
use crate::blobs::LayerSize;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Other names with this prefix are aufs' own bookkeeping.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// How overlayfs marks a directory that hides what lies below it.
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

const MAX_PATH_BYTES: usize = 4096;
const MAX_XATTR_BYTES: usize = 64 << 10;

pub(super) struct LayerWriter<'a> {
    root: OwnedFd,
    caps: &'a Caps,
    size: LayerSize,
    /// The directory of the last entry: archives list a directory's files together.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories get their times at the end, when nothing changes them any more.
    directory_times: Vec<(Vec<u8>, Timestamps)>,
}

impl<'a> LayerWriter<'a> {
    pub(super) fn new(into: &Path, caps: &'a Caps) -> io::Result<LayerWriter<'a>> {
        let root = rustix::fs::openat(CWD, into, directory_flags(), Mode::empty())?;
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755))?;
        Ok(LayerWriter { root, caps, size: LayerSize::default(), parent: None, directory_times: Vec::new() })
    }

    pub(super) fn add<R: Read>(&mut self, entry: &Entry, content: &mut TarStream<R>) -> io::Result<()> {
        self.size.n_entries += 1;
        if self.size.n_entries > self.caps.layer_entries {
            return Err(refused("layer has too many entries"));
        }
        let path = cleaned(&entry.path)?;
        let Some((parent, name)) = split(&path) else {
            // The layer's root itself.
            if entry.kind == Kind::Directory {
                let root = self.root.try_clone()?;
                return self.finish_directory(&root, Vec::new(), entry);
            }
            return Err(refused("an entry other than a directory for the root"));
        };
        let parent = self.open_parent(parent)?;
        if name == OPAQUE {
            return set_opaque(&parent);
        }
        if name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            return whiteout(&parent, hidden);
        }
        self.make(entry, &parent, &path, name, content)
    }

    pub(super) fn finish(self) -> io::Result<LayerSize> {
        for (path, times) in self.directory_times.iter().rev() {
            match beneath(&self.root, path, directory_flags()) {
                Ok(directory) => rustix::fs::futimens(&directory, times)?,
                // A later entry put something else there.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(err) => return Err(err.into()),
            }
        }
        Ok(self.size)
    }

    fn make<R: Read>(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        path: &[u8],
        name: &[u8],
        content: &mut TarStream<R>,
    ) -> io::Result<()> {
        let name = OsStr::from_bytes(name);
        if entry.kind == Kind::Directory {
            make_directory(parent, name)?;
            let directory = beneath(parent, name.as_bytes(), directory_flags())?;
            return self.finish_directory(&directory, path.to_vec(), entry);
        }
        replace(parent, name)?;
        self.parent = None;
        match entry.kind {
            Kind::File => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file =
                    File::from(rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
                let n_bytes = self.size.bytes.saturating_add(entry.size);
                if n_bytes > self.caps.layer_bytes {
                    return Err(refused("layer is too large"));
                }
                self.size.bytes = n_bytes;
                io::copy(content, &mut file)?;
                return set_metadata(&file.into(), entry);
            }
            Kind::Hardlink => {
                let target = cleaned(&entry.link)?;
                let (target_parent, target_name) =
                    split(&target).ok_or_else(|| refused("hard link to the root"))?;
                let target_parent = beneath(&self.root, target_parent, directory_flags())
                    .map_err(|err| named("hard link to", &target, err))?;
                let target_name = OsStr::from_bytes(target_name);
                // Without AT_SYMLINK_FOLLOW: a link to a symbolic link, not through it.
                return rustix::fs::linkat(&target_parent, target_name, parent, name, AtFlags::empty())
                    .map_err(|err| named("hard link to", &target, err));
            }
            Kind::Symlink => {
                let target = CString::new(entry.link.as_slice()).map_err(|_| refused("link holds a NUL"))?;
                rustix::fs::symlinkat(target.as_c_str(), parent, name)?;
            }
            Kind::CharDevice => make_node(parent, name, FileType::CharacterDevice, entry)?,
            Kind::BlockDevice => make_node(parent, name, FileType::BlockDevice, entry)?,
            Kind::Fifo => make_node(parent, name, FileType::Fifo, entry)?,
            Kind::Directory => {}
        }
        let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        rustix::fs::chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    fn finish_directory(&mut self, directory: &OwnedFd, path: Vec<u8>, entry: &Entry) -> io::Result<()> {
        set_metadata(directory, entry)?;
        self.directory_times.push((path, times(entry)));
        Ok(())
    }

    /// The directory `path`, made with its parents where the archive left them out.
    fn open_parent(&mut self, path: &[u8]) -> io::Result<OwnedFd> {
        if let Some((last, directory)) = &self.parent
            && last == path
        {
            return directory.try_clone();
        }
        let directory = match beneath(&self.root, path, directory_flags()) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => {
                let mut directory = self.root.try_clone()?;
                for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
                    match rustix::fs::mkdirat(&directory, OsStr::from_bytes(name), Mode::from_raw_mode(0o755))
                    {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(err) => return Err(err.into()),
                    }
                    directory = beneath(&directory, name, directory_flags())
                        .map_err(|err| named("inside", path, err))?;
                }
                directory
            }
            Err(err) => return Err(named("inside", path, err)),
        };
        self.parent = Some((path.to_vec(), directory.try_clone()?));
        Ok(directory)
    }
}

/// Opens below `root` without following any link and without leaving it.
fn beneath(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), resolve)
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// A path relative to the root without `.`, doubled slashes or a leading one.
fn cleaned(path: &[u8]) -> io::Result<Vec<u8>> {
    if path.len() > MAX_PATH_BYTES {
        return Err(refused("path is too long"));
    }
    let mut clean = Vec::with_capacity(path.len());
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(refused("path leaves the layer")),
            name if name.contains(&0) => return Err(refused("path holds a NUL")),
            name => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(name);
            }
        }
    }
    Ok(clean)
}

/// The directory and the last name; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

/// Makes a directory, or keeps the one that is there. One that replaces a whiteout hides what lies below.
fn make_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let mut opaque = false;
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => return Ok(()),
        Ok(stat) => {
            opaque = is_whiteout(&stat);
            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
        }
        Err(Errno::NOENT) => {}
        Err(err) => return Err(err.into()),
    }
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    if opaque {
        set_opaque(&beneath(parent, name.as_bytes(), directory_flags())?)?;
    }
    Ok(())
}

/// Makes way for an entry of the same name; only an empty directory gives way to something else.
fn replace(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?),
        Err(err) => Err(err.into()),
    }
}

/// Hides `name` of the layers below: overlayfs wants a character device 0:0 in its place.
fn whiteout(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    if matches!(name, b"" | b"." | b"..") {
        return Err(refused("whiteout of no name"));
    }
    let name = OsStr::from_bytes(name);
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        // The layer itself puts something there: it hides what lies below, a directory if told to.
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            set_opaque(&beneath(parent, name.as_bytes(), directory_flags())?)
        }
        Ok(_) => Ok(()),
        Err(Errno::NOENT) => {
            rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0).map_err(Into::into)
        }
        Err(err) => Err(err.into()),
    }
}

fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn set_opaque(directory: &OwnedFd) -> io::Result<()> {
    rustix::fs::fsetxattr(directory, OPAQUE_XATTR, b"y", XattrFlags::empty()).map_err(Into::into)
}

fn make_node(parent: &OwnedFd, name: &OsStr, kind: FileType, entry: &Entry) -> io::Result<()> {
    let device = rustix::fs::makedev(entry.device.0, entry.device.1);
    rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(entry.mode), device)?;
    // The mode above went through the umask. No link can be followed here: the node was just made.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    chmod_path(node.as_fd(), entry.mode)
}

/// `fchmod` refuses a descriptor that is only a path; by its magic link it goes.
fn chmod_path(node: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(Into::into)
}

/// Owner before mode, since changing the owner clears the set-user-ID bit; attributes after both, since
/// changing the owner clears capabilities, too.
fn set_metadata(file: &OwnedFd, entry: &Entry) -> io::Result<()> {
    rustix::fs::fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode))?;
    for (name, value) in &entry.xattrs {
        if !kept_xattr(name) {
            continue;
        }
        if value.len() > MAX_XATTR_BYTES {
            return Err(refused("extended attribute is too large"));
        }
        match rustix::fs::fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(err) => return Err(err.into()),
        }
    }
    rustix::fs::futimens(file, &times(entry)).map_err(Into::into)
}

/// Nothing that steers the host: overlayfs' own attributes would redirect it, labels belong to the host.
fn kept_xattr(name: &str) -> bool {
    name == "security.capability" || (name.starts_with("user.") && !name.starts_with("user.overlay."))
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime_s, tv_nsec: entry.mtime_ns };
    Timestamps { last_access: time, last_modification: time }
}

fn refused(detail: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail.to_owned())
}

fn named(what: &str, path: &[u8], err: Errno) -> io::Error {
    let detail = match err {
        Errno::LOOP => "a symbolic link is on the way".to_owned(),
        other => io::Error::from(other).to_string(),
    };
    io::Error::other(format!("{what} {:?}: {detail}", String::from_utf8_lossy(path)))
}
