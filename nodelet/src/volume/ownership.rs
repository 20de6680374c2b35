//! `fsGroup`: a volume's files belong to the pod's group.

use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

use crate::volume::VolumeError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

/// Gives `path` and all below it to `group`. New files in its directories will be the group's too.
pub(crate) fn give_to_group(path: &Path, group: u32, access: Access) -> Result<(), VolumeError> {
    let failed = || VolumeError::host("give to the pod's group", path);
    let kind = fs::symlink_metadata(path).map_err(failed())?;
    lchown(path, None, Some(group)).map_err(failed())?;
    if kind.is_symlink() {
        return Ok(());
    }
    let mut bits = match access {
        Access::ReadOnly => 0o440,
        Access::ReadWrite => 0o660,
    };
    if kind.is_dir() {
        bits |= 0o2110;
        for entry in fs::read_dir(path).map_err(failed())? {
            give_to_group(&entry.map_err(failed())?.path(), group, access)?;
        }
    }
    let mode = (kind.permissions().mode() & 0o7777) | bits;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed())
}
