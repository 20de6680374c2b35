//! What a layer will lie on: the layers below it as overlayfs will show them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::writer::{OPAQUE_XATTR, is_whiteout};

/// The layers below, the highest first. They are complete and do not change.
pub(super) struct Lower {
    layers: Vec<OwnedFd>,
}

/// What lies below at a path.
pub(super) enum Below {
    Nothing,
    Directory(Stat),
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
            FileType::Directory if is_last => return Ok(Met::Found(Below::Directory(stat))),
            FileType::Directory => {
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                directory = rustix::fs::openat2(&directory, name, flags(), Mode::empty(), resolve)?;
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

fn flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}
