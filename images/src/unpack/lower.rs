//! What a layer will lie on: the layers below it as overlayfs will show them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::writer::{MAX_XATTR_BYTES, OPAQUE_XATTR, is_whiteout, kept_xattr};

/// The layers below, the highest first. They are complete and do not change.
pub(super) struct Lower {
    layers: Vec<OwnedFd>,
}

/// What lies below at a path.
pub(super) enum Below {
    Nothing,
    /// With the attributes that a layer may have.
    Directory {
        stat: Stat,
        xattrs: BTreeMap<String, Vec<u8>>,
    },
    /// With where it leads.
    Symlink(Vec<u8>),
    /// A file, a device or the like.
    Other,
}

enum Met {
    Found(Below),
    /// The layer does not have it. Whether it hides what the layers below it have.
    Missing {
        hides: bool,
    },
}

impl Lower {
    pub(super) fn open(layers: &[PathBuf]) -> io::Result<Lower> {
        let open = |path: &PathBuf| rustix::fs::openat(CWD, path, flags(), Mode::empty());
        let layers = layers.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Lower { layers })
    }

    /// What overlayfs will show of the layers below at `path`, which holds no links and no `..`.
    pub(super) fn look_up(&self, path: &[u8]) -> io::Result<Below> {
        for layer in &self.layers {
            match in_layer(layer, path)? {
                Met::Found(below) => return Ok(below),
                Met::Missing { hides: true } => return Ok(Below::Nothing),
                Met::Missing { hides: false } => {}
            }
        }
        Ok(Below::Nothing)
    }
}

fn in_layer(layer: &OwnedFd, path: &[u8]) -> io::Result<Met> {
    let mut names = path.split(|byte| *byte == b'/').peekable();
    let mut directory = layer.try_clone()?;
    let mut hides = false;
    while let Some(name) = names.next() {
        let name = OsStr::from_bytes(name);
        let stat = match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Met::Missing { hides }),
            Err(err) => return Err(err.into()),
        };
        let is_last = names.peek().is_none();
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                directory = rustix::fs::openat2(&directory, name, flags(), Mode::empty(), resolve)?;
                if is_last {
                    let xattrs = xattrs(&directory)?;
                    return Ok(Met::Found(Below::Directory { stat, xattrs }));
                }
                hides |= is_opaque(&directory);
            }
            _ if is_whiteout(&stat) => return Ok(Met::Missing { hides: true }),
            FileType::Symlink if is_last => {
                let target = rustix::fs::readlinkat(&directory, name, Vec::new())?;
                return Ok(Met::Found(Below::Symlink(target.into_bytes())));
            }
            _ if is_last => return Ok(Met::Found(Below::Other)),
            // Nothing lies inside of what is no directory, and it hides the directories of layers below it.
            _ => return Ok(Met::Missing { hides: true }),
        }
    }
    Ok(Met::Missing { hides })
}

pub(super) fn is_opaque(directory: impl AsFd) -> bool {
    let mut value = [0_u8; 1];
    rustix::fs::fgetxattr(directory, OPAQUE_XATTR, &mut value).is_ok_and(|n| n == 1 && value == *b"y")
}

/// Those that a layer may have.
fn xattrs(directory: &OwnedFd) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut names = vec![0; MAX_XATTR_BYTES];
    let n = match rustix::fs::flistxattr(directory, &mut names[..]) {
        Ok(n) => n,
        Err(Errno::OPNOTSUPP) => 0,
        Err(err) => return Err(err.into()),
    };
    let mut found = BTreeMap::new();
    for name in names[..n].split(|byte| *byte == 0) {
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| kept_xattr(name)) else { continue };
        let mut value = vec![0; MAX_XATTR_BYTES];
        let n = rustix::fs::fgetxattr(directory, name, &mut value[..])?;
        value.truncate(n);
        found.insert(name.to_owned(), value);
    }
    Ok(found)
}

fn flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}
