//! Replaces all files of a directory at once, as upstream's `AtomicWriter` lays them out:
//!
//! ```text
//!  <volume>/..2026_11_21_05_01_02.123456789/a/b   the data
//!  <volume>/..data -> ..2026_11_21_05_01_02.123456789
//!  <volume>/a -> ..data/a                          what users see
//! ```
//!
//! # Guarantees
//! - A reader sees all old files or all new ones: the change is one `rename` of `..data`.
//! - An unchanged payload changes nothing on disk.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use crate::volume::VolumeError;
use crate::volume::payload::Payload;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";
const MAX_PATH: usize = 4096;
const MAX_NAME: usize = 255;

/// Writes the payload. `set_owner` is called with the new data's directory before it is shown.
pub(crate) fn write(
    volume: &Path,
    payload: &Payload,
    set_owner: impl FnOnce(&Path) -> Result<(), VolumeError>,
) -> Result<(), VolumeError> {
    payload.keys().try_for_each(|path| check_path(path))?;
    let old = read_data_link(volume)?;
    let unchanged = old.as_deref().is_some_and(|old| same_content(&volume.join(old), payload));
    let fresh = if unchanged { None } else { Some(write_data(volume, payload, set_owner)?) };
    if let Some(fresh) = &fresh {
        swap(volume, fresh)?;
    }
    let wanted = first_components(payload.keys().map(String::as_str));
    show(volume, &wanted)?;
    if let (Some(_), Some(old)) = (fresh, old) {
        hide_stale(volume, &wanted)?;
        let old = volume.join(old);
        let failed = VolumeError::host("remove the old data directory", &old);
        skiff_tree::remove(&old).map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), VolumeError> {
    let invalid = |why: &str| VolumeError::Content(format!("invalid path: {why}: {path}"));
    if path.is_empty() || path.len() > MAX_PATH {
        return Err(invalid("must have between 1 and 4096 characters"));
    }
    if path.starts_with("..") {
        return Err(invalid("must not start with '..'"));
    }
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) if name.len() <= MAX_NAME => {}
            Component::Normal(_) => return Err(invalid("filenames must not be longer than 255 characters")),
            _ => return Err(invalid("must be relative, without '.' and '..'")),
        }
    }
    Ok(())
}

fn read_data_link(volume: &Path) -> Result<Option<PathBuf>, VolumeError> {
    match fs::read_link(volume.join(DATA)) {
        // Only a name of our own making is followed.
        Ok(target) => {
            Ok(Some(target).filter(|t| t.components().count() == 1 && t.to_string_lossy().starts_with("..")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(VolumeError::host("read the data link of", volume)(error)),
    }
}

fn same_content(data: &Path, payload: &Payload) -> bool {
    let found = files(data);
    found.len() == payload.len()
        && payload.iter().all(|(path, file)| {
            found.contains(Path::new(path)) && fs::read(data.join(path)).is_ok_and(|bytes| bytes == file.data)
        })
}

/// The files below `root`, by their paths there: only what [`write_files`] made, so every path has a length that the
/// system takes.
fn files(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(below) = waiting.pop() {
        for entry in fs::read_dir(root.join(&below)).into_iter().flatten().flatten() {
            let path = below.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => waiting.push(path),
                _ => drop(found.insert(path)),
            }
        }
    }
    found
}

fn write_data(
    volume: &Path,
    payload: &Payload,
    set_owner: impl FnOnce(&Path) -> Result<(), VolumeError>,
) -> Result<PathBuf, VolumeError> {
    let stamp = jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S").to_string();
    let name = format!("..{stamp}.{:010}", rand::random::<u32>());
    let dir = volume.join(&name);
    let written = write_files(&dir, payload)
        .map_err(VolumeError::host("write the data of", volume))
        .and_then(|()| set_owner(&dir));
    if let Err(error) = written {
        // Leaving a half-written directory behind would only use space; the first error says more.
        let _ = skiff_tree::remove(&dir);
        return Err(error);
    }
    Ok(PathBuf::from(name))
}

fn write_files(dir: &Path, payload: &Payload) -> io::Result<()> {
    fs::create_dir(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        out.write_all(&file.data)?;
        // The mode of `open` is subject to the umask.
        out.set_permissions(fs::Permissions::from_mode(file.mode))?;
        if let Some(owner) = file.owner {
            chown(&path, Some(owner), None)?;
        }
    }
    Ok(())
}

fn swap(volume: &Path, fresh: &Path) -> Result<(), VolumeError> {
    let tmp = volume.join(DATA_TMP);
    // Left over from a nodelet that died right here.
    let _ = fs::remove_file(&tmp);
    let swapped = symlink(fresh, &tmp).and_then(|()| fs::rename(&tmp, volume.join(DATA)));
    swapped.map_err(VolumeError::host("replace the data of", volume))
}

fn first_components<'a>(paths: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    paths.filter_map(|path| path.split('/').next()).map(str::to_owned).collect()
}

fn show(volume: &Path, wanted: &BTreeSet<String>) -> Result<(), VolumeError> {
    for name in wanted {
        let link = volume.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new(DATA).join(name), &link).map_err(VolumeError::host("link", &link))?;
        }
    }
    Ok(())
}

fn hide_stale(volume: &Path, wanted: &BTreeSet<String>) -> Result<(), VolumeError> {
    let entries = fs::read_dir(volume).map_err(VolumeError::host("list", volume))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_link = entry.file_type().is_ok_and(|t| t.is_symlink());
        if is_link && !name.starts_with("..") && !wanted.contains(&name) {
            fs::remove_file(entry.path()).map_err(VolumeError::host("remove", &entry.path()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::payload::File;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File { data: data.as_bytes().to_vec(), mode: 0o640, owner: None };
        files.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
    }

    fn put(dir: &Path, files: &[(&str, &str)]) {
        write(dir, &payload(files), |_| Ok(())).unwrap();
    }

    #[test]
    fn a_changed_payload_replaces_every_file_at_once() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), &[("a", "1"), ("d/e", "2")]);
        let first = fs::read_link(dir.path().join(DATA)).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("d/e")).unwrap(), "2");
        assert_eq!(fs::read_link(dir.path().join("d")).unwrap(), Path::new("..data/d"));
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777, 0o640);

        put(dir.path(), &[("a", "3"), ("b", "4")]);
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "3");
        assert!(dir.path().join("d").symlink_metadata().is_err());
        assert!(!dir.path().join(first).exists());
    }

    #[test]
    fn an_unchanged_payload_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), &[("a", "1")]);
        let first = fs::read_link(dir.path().join(DATA)).unwrap();
        put(dir.path(), &[("a", "1")]);
        assert_eq!(fs::read_link(dir.path().join(DATA)).unwrap(), first);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["", "/etc/passwd", "../x", "a/../../x", "..data", "./a/../b"] {
            assert!(write(dir.path(), &payload(&[(path, "x")]), |_| Ok(())).is_err(), "{path}");
        }
    }
}
