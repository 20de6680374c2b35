//! A small file system that can be filled.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, umount2};
use rustix::mount::{MountFlags, mount, mount_remount};

/// Written at once while a disk is filled; the last pages one by one.
const STEP_BYTES: [usize; 2] = [1 << 20, 4096];
const FILLER: &str = "filler-of-the-drill";

/// A tmpfs of a fixed size. Dropping it unmounts it, unless that has been done.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

fn size(bytes: u64) -> Result<CString> {
    Ok(CString::new(format!("size={bytes},mode=755"))?)
}

impl SmallDisk {
    /// Mounts it on a directory, which is made if it is missing.
    pub fn mount(path: &Path, bytes: u64) -> Result<SmallDisk> {
        fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
        mount("drill", path, "tmpfs", MountFlags::empty(), Some(size(bytes)?.as_c_str()))
            .with_context(|| format!("mounting a small disk on {}", path.display()))?;
        Ok(SmallDisk { path: path.to_owned() })
    }

    /// Gives it another size, as one grows a disk that was too small.
    pub fn resize(&self, bytes: u64) -> Result<()> {
        mount_remount(&self.path, MountFlags::empty(), &*size(bytes)?)
            .with_context(|| format!("resizing the disk on {}", self.path.display()))
    }

    pub fn free_bytes(&self) -> Result<u64> {
        let found = rustix::fs::statvfs(&self.path)?;
        Ok(found.f_bavail * found.f_frsize)
    }

    /// Takes all that is left, until the guard is dropped.
    pub fn fill(&self) -> Result<Full> {
        let full = Full { filler: self.path.join(FILLER) };
        full.take_rest()?;
        Ok(full)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // `skiff down` unmounts what is mounted in a cluster's directories.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

/// A full disk. Dropping it frees what was taken.
#[derive(Debug)]
pub struct Full {
    filler: PathBuf,
}

impl Full {
    /// Takes what others have given back meanwhile.
    pub fn take_rest(&self) -> Result<()> {
        let failed = || format!("filling the disk with {}", self.filler.display());
        let mut file = File::options().create(true).append(true).open(&self.filler).with_context(failed)?;
        for step in STEP_BYTES {
            let zeroes = vec![0; step];
            loop {
                match file.write_all(&zeroes) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).with_context(failed),
                }
            }
        }
        Ok(())
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        // A process that another thread is just starting may have the file open for a moment: what is removed would go on
        // taking its room until then.
        let _ = File::create(&self.filler);
        let _ = fs::remove_file(&self.filler);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_full_until_its_guard_is_dropped_and_gone_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small");
        let disk = SmallDisk::mount(&path, 1 << 20).unwrap();
        fs::write(path.join("before"), "x").unwrap();
        let full = disk.fill().unwrap();
        assert_eq!(disk.free_bytes().unwrap(), 0);
        let refused = fs::write(path.join("after"), "x").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(fs::read_to_string(path.join("before")).unwrap(), "x");
        disk.resize(2 << 20).unwrap();
        fs::write(path.join("after"), "x").unwrap();
        full.take_rest().unwrap();
        assert_eq!(disk.free_bytes().unwrap(), 0);
        drop(full);
        assert!(disk.free_bytes().unwrap() > 1 << 20);
        drop(disk);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "it is still mounted");
    }
}
