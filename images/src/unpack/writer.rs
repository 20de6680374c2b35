//! Entries of a layer into files, each reached from the layer's own directory by opens that cannot leave
//! it: no `..`, no symbolic link on the way, whatever the archive made there before.
//!
//! Where a name leads through a symbolic link, of this layer or of one below, we follow it ourselves, name by name, with the layer's
//! directory as the root: as a program in a container would see it. What is opened afterwards holds no link any more.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::lower::{Below, Lower, is_opaque};
use super::tar_stream::{Entry, Kind, TarStream};
use crate::Caps;
use crate::blobs::LayerSize;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Other names with this prefix are aufs' own bookkeeping.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// How overlayfs marks a directory that hides what lies below it.
pub(super) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

const MAX_PATH_BYTES: usize = 4096;
/// Links that are followed for one name, as Linux does.
const MAX_LINKS: usize = 40;
pub(super) const MAX_XATTR_BYTES: usize = 64 << 10;

pub(super) struct LayerWriter<'a> {
    root: OwnedFd,
    lower: Lower,
    caps: &'a Caps,
    size: LayerSize,
    /// The directory of the last entry: archives list a directory's files together.
    parent: Option<Parent>,
    /// Directories get their times at the end, when nothing changes them any more.
    directory_times: Vec<(Vec<u8>, Timestamps)>,
}

struct Parent {
    /// As the archive names it.
    named: Vec<u8>,
    /// As it is reached without a link.
    path: Vec<u8>,
    directory: OwnedFd,
}

impl<'a> LayerWriter<'a> {
    pub(super) fn new(into: &Path, lower: &[PathBuf], caps: &'a Caps) -> io::Result<LayerWriter<'a>> {
        let root = rustix::fs::openat(CWD, into, directory_flags(), Mode::empty())?;
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755))?;
        let lower = Lower::open(lower)?;
        let (size, directory_times) = (LayerSize::default(), Vec::new());
        Ok(LayerWriter { root, lower, caps, size, parent: None, directory_times })
    }

    pub(super) fn add<R: Read>(&mut self, entry: &Entry, content: &mut TarStream<R>) -> io::Result<()> {
        self.count()?;
        let path = cleaned(&entry.path)?;
        // The root is as it is, whatever layers say of it: archives of a private directory would shut out every user but root.
        let Some((parent, name)) = split(&path) else { return Ok(()) };
        let (parent, mut path) = self.open_parent(parent)?;
        if name == OPAQUE {
            return set_opaque(&parent);
        }
        if name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            return self.whiteout(&parent, &path, hidden);
        }
        join(&mut path, name);
        self.make(entry, &parent, path, name, content)
    }

    /// One thing more in the layer, whether or not the archive has an entry for it.
    fn count(&mut self) -> io::Result<()> {
        self.size.n_entries += 1;
        if self.size.n_entries > self.caps.layer_entries {
            return Err(refused("layer has too many entries"));
        }
        Ok(())
    }

    pub(super) fn finish(self) -> io::Result<LayerSize> {
        let mut done = HashSet::new();
        // Of a directory that was named twice the last times count.
        for (path, times) in self.directory_times.iter().rev().filter(|(path, _)| done.insert(path)) {
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
        path: Vec<u8>,
        name: &[u8],
        content: &mut TarStream<R>,
    ) -> io::Result<()> {
        let name = OsStr::from_bytes(name);
        if entry.kind == Kind::Directory {
            if make_directory(parent, name)? == Made::InPlace {
                self.parent = None;
            }
            let directory = beneath(parent, name.as_bytes(), directory_flags())?;
            return self.finish_directory(&directory, path, entry);
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
                write_content(entry, content, &mut file)?;
                return set_metadata(&file.into(), entry);
            }
            Kind::Hardlink => return self.hard_link(entry, parent, name),
            Kind::Symlink => {
                let target = CString::new(entry.link.as_slice()).map_err(|_| refused("link holds a NUL"))?;
                rustix::fs::symlinkat(target.as_c_str(), parent, name)?;
            }
            Kind::CharDevice => make_node(parent, name, FileType::CharacterDevice, entry)?,
            Kind::BlockDevice => make_node(parent, name, FileType::BlockDevice, entry)?,
            Kind::Fifo => make_node(parent, name, FileType::Fifo, entry)?,
            Kind::Directory => {}
        }
        set_metadata_of(parent, name, entry)
    }

    /// Another name of a file of this layer, or of a symbolic link. What the entry says of owner, mode and times holds for the file,
    /// by all its names: the last entry counts, as with containerd.
    fn hard_link(&mut self, entry: &Entry, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let target = cleaned(&entry.link)?;
        let (target_parent, target_name) = split(&target).ok_or_else(|| refused("hard link to the root"))?;
        let resolved = self.resolve(target_parent, Missing::Refused)?;
        let target_parent = beneath(&self.root, &resolved, directory_flags())
            .map_err(|err| named("hard link to", &target, err))?;
        let target_name = OsStr::from_bytes(target_name);
        // Without AT_SYMLINK_FOLLOW: a link to a symbolic link, not through it.
        rustix::fs::linkat(&target_parent, target_name, parent, name, AtFlags::empty())
            .map_err(|err| named("hard link to", &target, err))?;
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return set_metadata_of(parent, name, entry);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        set_metadata(&rustix::fs::openat(parent, name, flags, Mode::empty())?, entry)
    }

    /// Hides `hidden` of the layers below: overlayfs wants a character device 0:0 in its place. Where there is nothing to be hidden,
    /// nothing is made: a directory that no other layer has would list it.
    fn whiteout(&mut self, parent: &OwnedFd, parent_path: &[u8], hidden: &[u8]) -> io::Result<()> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused("whiteout of no name"));
        }
        let mut path = parent_path.to_vec();
        join(&mut path, hidden);
        let name = OsStr::from_bytes(hidden);
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            // The layer itself puts something there: it hides what lies below, a directory if told to.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                set_opaque(&beneath(parent, name.as_bytes(), directory_flags())?)
            }
            Ok(_) => Ok(()),
            Err(Errno::NOENT) if matches!(self.below(&path)?, Below::Nothing) => Ok(()),
            Err(Errno::NOENT) => {
                rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)?;
                Ok(())
            }
            Err(err) => Err(err.into()),
        }
    }

    fn finish_directory(&mut self, directory: &OwnedFd, path: Vec<u8>, entry: &Entry) -> io::Result<()> {
        set_metadata(directory, entry)?;
        self.directory_times.push((path, times(entry)));
        Ok(())
    }

    /// The directory `named`, made with its parents where the archive left them out, and its path without links.
    fn open_parent(&mut self, named_: &[u8]) -> io::Result<(OwnedFd, Vec<u8>)> {
        if let Some(last) = self.parent.as_ref().filter(|last| last.named == named_) {
            return Ok((last.directory.try_clone()?, last.path.clone()));
        }
        let path = self.resolve(named_, Missing::Made)?;
        let directory =
            beneath(&self.root, &path, directory_flags()).map_err(|err| named("inside", &path, err))?;
        let parent = Parent { named: named_.to_vec(), path: path.clone(), directory: directory.try_clone()? };
        self.parent = Some(parent);
        Ok((directory, path))
    }

    /// The path of a directory without links, from the layer's root, which nothing leads out of.
    fn resolve(&mut self, path: &[u8], missing: Missing) -> io::Result<Vec<u8>> {
        let mut ahead: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect();
        let (mut resolved, mut n_links) = (Vec::new(), 0);
        while let Some(name) = ahead.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    let end = resolved.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                    resolved.truncate(end);
                    continue;
                }
                _ => {}
            }
            let before = resolved.len();
            join(&mut resolved, &name);
            if resolved.len() > MAX_PATH_BYTES {
                return Err(refused("path is too long"));
            }
            if let Some(target) = self.step(&resolved, missing)? {
                n_links += 1;
                if n_links > MAX_LINKS {
                    return Err(named("inside", path, Errno::LOOP));
                }
                let is_absolute = target.starts_with(b"/");
                resolved.truncate(if is_absolute { 0 } else { before });
                ahead.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
            }
        }
        Ok(resolved)
    }

    /// Makes sure that the last name of `path`, all of whose others are directories of the layer, is one, too; the target where it is a
    /// symbolic link.
    fn step(&mut self, path: &[u8], missing: Missing) -> io::Result<Option<Vec<u8>>> {
        let Some((parent, name)) = split(path) else { return Ok(None) };
        let parent =
            beneath(&self.root, parent, directory_flags()).map_err(|err| named("inside", path, err))?;
        let name = OsStr::from_bytes(name);
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => return Ok(None),
                FileType::Symlink => {
                    return Ok(Some(rustix::fs::readlinkat(&parent, name, Vec::new())?.into_bytes()));
                }
                // It was removed, and something is put in its place: that hides what lies below.
                _ if is_whiteout(&stat) && missing == Missing::Made => {
                    make_directory(&parent, name)?;
                    return Ok(None);
                }
                _ => return Err(named("inside", path, Errno::NOTDIR)),
            },
            Err(Errno::NOENT) => {}
            Err(err) => return Err(named("inside", path, err)),
        }
        match (self.below(path)?, missing) {
            (Below::Symlink(target), _) => Ok(Some(target)),
            (_, Missing::Refused) => Err(named("inside", path, Errno::NOENT)),
            // A file of a lower layer gives way.
            (below, Missing::Made) => {
                self.count()?;
                make_new_directory(&parent, name)?;
                if let Below::Directory { stat, xattrs } = below {
                    let directory = beneath(&parent, name.as_bytes(), directory_flags())?;
                    self.be_as_below(&directory, path, &stat, &xattrs)?;
                }
                Ok(None)
            }
        }
    }

    /// What the layers below show at a path of this one, which does not have it itself.
    fn below(&self, path: &[u8]) -> io::Result<Below> {
        if self.hides_below(path)? { Ok(Below::Nothing) } else { self.lower.look_up(path) }
    }

    /// Whether a directory of this layer on the way to `path` hides what lower layers have in it.
    fn hides_below(&self, path: &[u8]) -> io::Result<bool> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends {
            match beneath(&self.root, &path[..end], directory_flags()) {
                Ok(directory) if is_opaque(&directory) => return Ok(true),
                Ok(_) => {}
                Err(err) => return Err(named("inside", path, err)),
            }
        }
        Ok(false)
    }

    /// Overlayfs shows a directory with the owner, mode and attributes of the highest layer that has it. This one says nothing of it.
    fn be_as_below(
        &mut self,
        directory: &OwnedFd,
        path: &[u8],
        below: &Stat,
        xattrs: &BTreeMap<String, Vec<u8>>,
    ) -> io::Result<()> {
        let owner = (Some(Uid::from_raw(below.st_uid)), Some(Gid::from_raw(below.st_gid)));
        rustix::fs::fchown(directory, owner.0, owner.1)?;
        set_xattrs(directory, xattrs)?;
        rustix::fs::fchmod(directory, Mode::from_raw_mode(below.st_mode & 0o7777))?;
        let nanoseconds = i64::try_from(below.st_mtime_nsec).unwrap_or(0);
        let time = Timespec { tv_sec: below.st_mtime, tv_nsec: nanoseconds };
        self.directory_times.push((path.to_vec(), Timestamps { last_access: time, last_modification: time }));
        Ok(())
    }
}

/// What becomes of directories that are not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Made,
    Refused,
}

fn join(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// A file's content; of one with holes the fragments, each in its place.
fn write_content(entry: &Entry, content: &mut impl Read, file: &mut File) -> io::Result<()> {
    let Some(fragments) = &entry.sparse else { return io::copy(content, file).map(drop) };
    for fragment in fragments {
        file.seek(SeekFrom::Start(fragment.offset))?;
        if io::copy(&mut content.take(fragment.bytes), file)? != fragment.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    file.set_len(entry.size)
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

/// A path relative to the root without `.`, `..`, doubled slashes or a leading one; by its names alone, as containerd does.
fn cleaned(path: &[u8]) -> io::Result<Vec<u8>> {
    if path.len() > MAX_PATH_BYTES {
        return Err(refused("path is too long"));
    }
    let mut clean = Vec::with_capacity(path.len());
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                let end = clean.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                if clean.is_empty() {
                    return Err(refused("path leaves the layer"));
                }
                clean.truncate(end);
            }
            name if name.contains(&0) => return Err(refused("path holds a NUL")),
            name => join(&mut clean, name),
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    /// Or was there.
    Anew,
    /// Of something else.
    InPlace,
}

/// Makes a directory, or keeps the one that is there. One that replaces a whiteout hides what lies below.
fn make_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<Made> {
    let (mut opaque, mut made) = (false, Made::Anew);
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => return Ok(made),
        Ok(stat) => {
            (opaque, made) = (is_whiteout(&stat), Made::InPlace);
            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
        }
        Err(Errno::NOENT) => {}
        Err(err) => return Err(err.into()),
    }
    make_new_directory(parent, name)?;
    if opaque {
        set_opaque(&beneath(parent, name.as_bytes(), directory_flags())?)?;
    }
    Ok(made)
}

/// Whatever the umask is, and without the set-group-ID bit of the directory that it is made in.
fn make_new_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    rustix::fs::fchmod(beneath(parent, name.as_bytes(), directory_flags())?, Mode::from_raw_mode(0o755))?;
    Ok(())
}

/// Makes way for an entry of the same name: a directory goes with all that the layer has put into it.
fn replace(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => {
            let path = format!("/proc/self/fd/{}", parent.as_raw_fd());
            skiff_tree::remove(&Path::new(&path).join(name)).map_err(io::Error::other)
        }
        Err(err) => Err(err.into()),
    }
}

pub(super) fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn set_opaque(directory: &OwnedFd) -> io::Result<()> {
    rustix::fs::fsetxattr(directory, OPAQUE_XATTR, b"y", XattrFlags::empty()).map_err(Into::into)
}

fn make_node(parent: &OwnedFd, name: &OsStr, kind: FileType, entry: &Entry) -> io::Result<()> {
    let device = rustix::fs::makedev(entry.device.0, entry.device.1);
    rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(entry.mode), device).map_err(Into::into)
}

/// Of what is neither a regular file nor a directory: it is not opened. Owner before mode, as for files.
fn set_metadata_of(parent: &OwnedFd, name: &OsStr, entry: &Entry) -> io::Result<()> {
    let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
    rustix::fs::chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&node)?.st_mode) != FileType::Symlink {
        chmod_path(node.as_fd(), entry.mode)?;
    }
    rustix::fs::utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// `fchmod` refuses a descriptor that is only a path; by its magic link it goes.
fn chmod_path(node: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(Into::into)
}

/// Owner first, since changing it clears the set-user-ID bit and capabilities; mode last, since access control lists change it.
fn set_metadata(file: &OwnedFd, entry: &Entry) -> io::Result<()> {
    rustix::fs::fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    set_xattrs(file, &entry.xattrs)?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode))?;
    rustix::fs::futimens(file, &times(entry)).map_err(Into::into)
}

fn set_xattrs(file: &OwnedFd, xattrs: &BTreeMap<String, Vec<u8>>) -> io::Result<()> {
    for (name, value) in xattrs.iter().filter(|(name, _)| kept_xattr(name)) {
        if value.len() > MAX_XATTR_BYTES {
            return Err(refused("extended attribute is too large"));
        }
        match rustix::fs::fsetxattr(file, name.as_str(), value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}

/// Nothing that steers the host: overlayfs' own attributes would redirect it, labels belong to the host.
pub(super) fn kept_xattr(name: &str) -> bool {
    matches!(name, "security.capability" | "system.posix_acl_access" | "system.posix_acl_default")
        || (name.starts_with("user.") && !name.starts_with("user.overlay."))
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
