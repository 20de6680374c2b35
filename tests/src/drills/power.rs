//! A disk whose power can be cut.
//!
//! To kill a process is no power cut: what it wrote is in the kernel's memory and gets to the disk. Here the file system itself is
//! shut down by the ioctl that there is for it, without its log being written (`xfs_io` sends it, to ext4 as well): what nobody
//! asked to have on the disk is lost, as with the power.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::{LOOK_AGAIN, PATIENCE};

/// XFS takes none that is smaller than 300 MiB. It is a hole until it is written.
const DISK_BYTES: u64 = 512 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    pub fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        }
    }

    fn make(self, image: &Path) -> Result<()> {
        let image = image.to_string_lossy();
        match self {
            FileSystem::Ext4 => run("mkfs.ext4", &["-q", "-F", &image]),
            FileSystem::Xfs => run("mkfs.xfs", &["-q", &image]),
        }
    }
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let hint = || format!("running {program}; install it with: cargo xtask setup");
    let output = Command::new(program).args(args).output().with_context(hint)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", args.join(" "), error.trim());
    Ok(())
}

/// Does something on a thread with mounts of its own: nobody else sees them, and they go with whoever was started there.
///
/// # Errors
/// Those of `work`, and where the thread gets no mounts of its own.
pub fn in_own_mounts<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let enter = || {
        unshare(CloneFlags::CLONE_NEWNS).context("making mounts of our own; are you root?")?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .context("keeping mounts to ourselves")?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter).join())
        .map_err(|_| anyhow!("what ran with mounts of its own panicked"))?
}

/// A file system in a file, mounted on a directory. Dropping it unmounts and removes it, unless that has been done.
#[derive(Debug)]
pub struct PowerDisk {
    folder: tempfile::TempDir,
    on: PathBuf,
}

impl PowerDisk {
    /// Mounts it on a directory, which is made if it is missing.
    pub fn mount(file_system: FileSystem, on: &Path) -> Result<PowerDisk> {
        let folder = tempfile::tempdir_in("/var/tmp").context("making a directory for a disk")?;
        let disk = PowerDisk { folder, on: on.to_owned() };
        let image = disk.image();
        File::create(&image)
            .and_then(|file| file.set_len(DISK_BYTES))
            .with_context(|| format!("creating {}", image.display()))?;
        file_system.make(&image)?;
        fs::create_dir_all(on).with_context(|| format!("creating {}", on.display()))?;
        disk.attach()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn attach(&self) -> Result<()> {
        run("mount", &["-o", "loop", &self.image().to_string_lossy(), &self.on.to_string_lossy()])
    }

    /// Cuts its power: nothing gets to it any more, nor from its log to where it belongs.
    pub fn cut(&self) -> Result<()> {
        run("xfs_io", &["-x", "-c", "shutdown", &self.on.to_string_lossy()])
    }

    /// Gives it its power back, once nobody has it open. Then it has what a disk has after that.
    pub fn give_back(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match umount2(&self.on, MntFlags::empty()) {
                Ok(()) => return self.attach(),
                // Whoever was killed may be closing its files.
                Err(nix::Error::EBUSY) if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
                Err(error) => bail!("unmounting {}: {error}", self.on.display()),
            }
        }
    }
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        // `skiff down` unmounts what is mounted in a cluster's directories.
        let _ = umount2(&self.on, MntFlags::MNT_DETACH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_leaves_what_was_synced_and_loses_what_was_not() {
        for file_system in [FileSystem::Ext4, FileSystem::Xfs] {
            in_own_mounts(|| {
                let folder = tempfile::tempdir()?;
                let on = folder.path().join("on");
                let disk = PowerDisk::mount(file_system, &on)?;
                fs::write(on.join("kept"), "x")?;
                File::open(on.join("kept"))?.sync_all()?;
                File::open(&on)?.sync_all()?;
                fs::write(on.join("lost"), "x")?;
                disk.cut()?;
                fs::write(on.join("after"), "x").unwrap_err();
                disk.give_back()?;
                assert_eq!(fs::read_to_string(on.join("kept"))?, "x");
                let lost = fs::read_to_string(on.join("lost")).unwrap_or_default();
                assert_eq!(lost, "", "{file_system:?}: a cut that loses nothing is none");
                assert!(!on.join("after").exists());
                Ok(())
            })
            .unwrap();
        }
    }
}
