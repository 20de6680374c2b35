//! Volumes that this node makes for claims: a sparse file with a file system of the volume's size in it, mounted through a
//! loop device, so that the size is enforced whatever the disk below is.
//!
//! ```text
//!  <root>/volumes/<name>/image   the file
//!  <root>/volumes/<name>/data    where it is mounted, and what pods mount
//! ```
//!
//! Everything may be repeated. A volume that is not mounted, as after a restart of the machine, is mounted when a pod needs it.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::volume::mounts;
use crate::volume::{VolumeError, blocking};

/// A file system with a journal wants some room of its own.
const MIN_BYTES: u64 = 16 << 20;
/// Making a large file system, or growing one, writes a little for each group of blocks.
const COMMAND_TIME: Duration = Duration::from_secs(50);
const MAX_SAID: usize = 300;

/// What bounds a volume's size.
pub(crate) const LIMIT: &str = "LoopDevice";

#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalVolumeError {
    #[error("{0:?} is no name of a volume")]
    Name(String),
    #[error("volume {name} has {has} bytes and cannot be made smaller ({wanted} bytes)")]
    Smaller { name: String, has: u64, wanted: u64 },
    #[error("{wanted} bytes are wanted and {free} are free at {at}: make room there, or ask for less", at = .at.display())]
    NoRoom { wanted: u64, free: u64, at: PathBuf },
    #[error("volume {name} is in use by a pod of this node")]
    InUse { name: String },
    #[error("{program}: {said}")]
    Command { program: &'static str, said: String },
    #[error("{program} took longer than {} s", COMMAND_TIME.as_secs())]
    Late { program: &'static str },
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// A volume as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalVolume {
    pub(crate) path: PathBuf,
    pub(crate) capacity_bytes: u64,
    /// Of the disk, by the file.
    pub(crate) used_bytes: u64,
}

pub(crate) struct LocalVolumes {
    root: PathBuf,
    /// Held while a volume is made, changed or removed: they are few, and short.
    changing: tokio::sync::Mutex<()>,
}

impl LocalVolumes {
    pub(crate) fn new(root_dir: &Path) -> LocalVolumes {
        LocalVolumes { root: root_dir.join("volumes"), changing: tokio::sync::Mutex::default() }
    }

    /// Whether a path is that of a volume of this node's own making: its name.
    pub(crate) fn name_of<'p>(&self, path: &'p Path) -> Option<&'p str> {
        let below = path.strip_prefix(&self.root).ok()?;
        let mut parts = below.iter().map(OsStr::to_str);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(Some(name)), Some(Some("data")), None) if is_name(name) => Some(name),
            _ => None,
        }
    }

    fn place(&self, name: &str) -> Result<Place, LocalVolumeError> {
        if !is_name(name) {
            return Err(LocalVolumeError::Name(name.chars().take(64).collect()));
        }
        Ok(Place(self.root.join(name)))
    }

    /// `None` if there is none of that name.
    pub(crate) async fn get(&self, name: &str) -> Result<Option<LocalVolume>, LocalVolumeError> {
        let place = self.place(name)?;
        Ok(blocking(move || place.read()).await?)
    }

    /// Makes a volume, or sees to it that it is at least so large, and mounted.
    pub(crate) async fn make(&self, name: &str, bytes: u64) -> Result<LocalVolume, LocalVolumeError> {
        let place = self.place(name)?;
        let _changing = self.changing.lock().await;
        let wanted = bytes.max(MIN_BYTES).checked_next_multiple_of(4096).unwrap_or(u64::MAX);
        let read = place.clone();
        match blocking(move || read.read()).await? {
            None => self.make_new(&place, wanted).await?,
            Some(volume) if bytes < volume.capacity_bytes && wanted != volume.capacity_bytes => {
                let (name, has) = (name.to_owned(), volume.capacity_bytes);
                return Err(LocalVolumeError::Smaller { name, has, wanted: bytes });
            }
            Some(volume) => {
                place.mount().await?;
                let begun = place.growing();
                // The file may be long enough already, and what is in it not.
                let is_unfinished = blocking(move || Ok(begun.exists())).await?;
                if wanted > volume.capacity_bytes || is_unfinished {
                    self.check_room(wanted.saturating_sub(volume.capacity_bytes))?;
                    place.grow(wanted.max(volume.capacity_bytes)).await?;
                }
            }
        }
        let read = place.clone();
        let made = blocking(move || read.read()).await?;
        made.ok_or_else(|| VolumeError::Content(format!("volume {name} is gone again")).into())
    }

    /// Mounts a volume that is there.
    pub(crate) async fn mount(&self, name: &str) -> Result<PathBuf, LocalVolumeError> {
        let place = self.place(name)?;
        let _changing = self.changing.lock().await;
        place.mount().await?;
        Ok(place.data())
    }

    /// What is gone already is no error.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), LocalVolumeError> {
        let place = self.place(name)?;
        let _changing = self.changing.lock().await;
        let name = name.to_owned();
        let removed = blocking(move || {
            let data = place.data();
            // Files that a pod still has are not taken from it.
            let is_mounted = data.exists() && mounts::is_mounted(&data)?;
            if is_mounted && mounts::count_of(&mounts::source_of(&data)?)? > 1 {
                return Ok(false);
            }
            mounts::remove_tree(&place.0).map(|()| true)
        });
        if removed.await? { Ok(()) } else { Err(LocalVolumeError::InUse { name }) }
    }

    async fn make_new(&self, place: &Place, bytes: u64) -> Result<(), LocalVolumeError> {
        let root = self.root.clone();
        blocking(move || mounts::make_dir(&root, 0o700)).await?;
        self.check_room(bytes)?;
        // What an interrupted call left has no file under its last name.
        let (begun, left) = (place.clone(), place.0.clone());
        blocking(move || {
            mounts::remove_tree(&left)?;
            mounts::make_dir(&begun.0, 0o700)?;
            mounts::make_dir(&begun.data(), 0o700)?;
            let path = begun.0.join("image.new");
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            file.and_then(|file| file.set_len(bytes)).map_err(VolumeError::host("make", &path))
        })
        .await?;
        let new = place.0.join("image.new");
        let options = ["-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=1,root_owner=0:0"];
        run("mkfs.ext4", Command::new("mkfs.ext4").args(options).arg(&new)).await?;
        let image = place.image();
        blocking(move || {
            let kept = || -> io::Result<()> {
                File::open(&new)?.sync_all()?;
                fs::rename(&new, &image)?;
                File::open(image.parent().unwrap_or(&image))?.sync_all()
            };
            kept().map_err(VolumeError::host("keep", &image))
        })
        .await?;
        place.mount().await?;
        // Any user of a pod may write there, as in a directory made for it.
        let data = place.data();
        blocking(move || {
            let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o777);
            fs::set_permissions(&data, open).map_err(VolumeError::host("open", &data))
        })
        .await?;
        Ok(())
    }

    fn check_room(&self, wanted: u64) -> Result<(), LocalVolumeError> {
        let stat = rustix::fs::statvfs(&self.root);
        let stat = stat.map_err(|error| VolumeError::host("look at", &self.root)(error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if wanted > free {
            return Err(LocalVolumeError::NoRoom { wanted, free, at: self.root.clone() });
        }
        Ok(())
    }
}

/// Where a volume lies.
#[derive(Clone)]
struct Place(PathBuf);

impl Place {
    fn image(&self) -> PathBuf {
        self.0.join("image")
    }

    fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// Is there from before the file is made longer until the file system has all of it.
    fn growing(&self) -> PathBuf {
        self.0.join("growing")
    }

    fn read(&self) -> Result<Option<LocalVolume>, VolumeError> {
        let image = self.image();
        match fs::metadata(&image) {
            Ok(file) => Ok(Some(LocalVolume {
                path: self.data(),
                capacity_bytes: file.len(),
                used_bytes: file.blocks().saturating_mul(512),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(VolumeError::host("look at", &image)(error)),
        }
    }

    async fn mount(&self) -> Result<(), LocalVolumeError> {
        let data = self.data();
        if blocking(move || mounts::is_mounted(&data)).await? {
            return Ok(());
        }
        // A machine may have lost power, and a volume may have grown while a pod had it.
        self.check().await?;
        let mut command = Command::new("mount");
        command.args(["-t", "ext4", "-o", "loop,nodev"]).arg(self.image()).arg(self.data());
        run("mount", &mut command).await
    }

    /// Mends the file system as its journal says, and gives it all of the file. It must not be mounted.
    async fn check(&self) -> Result<(), LocalVolumeError> {
        // 1: mended.
        run_for("e2fsck", Command::new("e2fsck").args(["-f", "-p"]).arg(self.image()), &[0, 1]).await?;
        run("resize2fs", Command::new("resize2fs").arg(self.image())).await?;
        self.has_grown().await
    }

    async fn has_grown(&self) -> Result<(), LocalVolumeError> {
        let growing = self.growing();
        let removed = blocking(move || match fs::remove_file(&growing) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(VolumeError::host("remove", &growing)(error))
            }
            _ => Ok(()),
        });
        Ok(removed.await?)
    }

    /// The file first, then the file system: where nobody else has it, while it is not mounted; else in use, for which the
    /// kernel wants the right `CAP_SYS_RESOURCE`. Repeating it goes on where it stopped.
    async fn grow(&self, bytes: u64) -> Result<(), LocalVolumeError> {
        let (image, data, growing) = (self.image(), self.data(), self.growing());
        let (device, n_mounts) = blocking(move || {
            let noted = File::create(&growing)
                .and_then(|_| File::open(growing.parent().unwrap_or(&growing))?.sync_all());
            noted.map_err(VolumeError::host("note the growth at", &growing))?;
            let file = OpenOptions::new().write(true).open(&image);
            file.and_then(|file| file.set_len(bytes)).map_err(VolumeError::host("enlarge", &image))?;
            let device = mounts::source_of(&data)?;
            let n_mounts = mounts::count_of(&device)?;
            Ok((device, n_mounts))
        })
        .await?;
        if n_mounts > 1 {
            run("losetup", Command::new("losetup").arg("--set-capacity").arg(&device)).await?;
            run("resize2fs", Command::new("resize2fs").arg(&device)).await?;
            return self.has_grown().await;
        }
        let data = self.data();
        blocking(move || mounts::unmount_one(&data)).await?;
        self.mount().await
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && !text.starts_with('.')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
}

async fn run(program: &'static str, command: &mut Command) -> Result<(), LocalVolumeError> {
    run_for(program, command, &[0]).await
}

/// Runs a command that may end with any of these codes.
async fn run_for(program: &'static str, command: &mut Command, good: &[i32]) -> Result<(), LocalVolumeError> {
    command.stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(COMMAND_TIME, command.output()).await;
    let failed = |said: String| LocalVolumeError::Command { program, said };
    let output =
        output.map_err(|_| LocalVolumeError::Late { program })?.map_err(|error| failed(error.to_string()))?;
    if output.status.code().is_some_and(|code| good.contains(&code)) {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(MAX_SAID).collect();
    Err(failed(if said.is_empty() { output.status.to_string() } else { said }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_volume_holds_what_it_is_for_grows_is_not_taken_from_a_pod_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let volumes = LocalVolumes::new(&root);
        assert_eq!(volumes.get("pvc-1").await.unwrap(), None);
        let made = volumes.make("pvc-1", 32 << 20).await.unwrap();
        assert_eq!((made.capacity_bytes, volumes.name_of(&made.path)), (32 << 20, Some("pvc-1")));
        assert_eq!(volumes.make("pvc-1", 32 << 20).await.unwrap().path, made.path);
        assert!(made.used_bytes < made.capacity_bytes, "the file is sparse");

        let file = made.path.join("file");
        let full = fs::write(&file, vec![7; 40 << 20]).unwrap_err();
        assert_eq!(full.raw_os_error(), Some(libc_enospc()));
        fs::write(&file, b"kept").unwrap();
        let smaller = volumes.make("pvc-1", 16 << 20).await.unwrap_err();
        assert!(matches!(smaller, LocalVolumeError::Smaller { .. }), "{smaller}");
        assert_eq!(volumes.make("pvc-1", 64 << 20).await.unwrap().capacity_bytes, 64 << 20);
        fs::write(made.path.join("large"), vec![7; 40 << 20]).unwrap();

        // As after a growth that ended between the file and what is in it.
        let place = volumes.place("pvc-1").unwrap();
        File::create(place.growing()).unwrap();
        OpenOptions::new().write(true).open(place.image()).unwrap().set_len(96 << 20).unwrap();
        assert_eq!(volumes.make("pvc-1", 96 << 20).await.unwrap().capacity_bytes, 96 << 20);
        fs::write(made.path.join("larger"), vec![7; 30 << 20]).unwrap();
        assert!(!place.growing().exists());

        // As after a restart of the machine.
        rustix::mount::unmount(&made.path, rustix::mount::UnmountFlags::empty()).unwrap();
        assert!(!file.exists());
        assert_eq!(volumes.mount("pvc-1").await.unwrap(), made.path);
        assert_eq!(fs::read(&file).unwrap(), b"kept");

        let pod = root.join("pod");
        fs::create_dir(&pod).unwrap();
        mounts::bind(&made.path, &pod).unwrap();
        let error = volumes.remove("pvc-1").await.unwrap_err();
        assert!(matches!(error, LocalVolumeError::InUse { .. }), "{error}");
        assert_eq!(fs::read(pod.join("file")).unwrap(), b"kept");
        mounts::unmount_one(&pod).unwrap();

        volumes.remove("pvc-1").await.unwrap();
        volumes.remove("pvc-1").await.unwrap();
        assert!(!root.join("volumes/pvc-1").exists());
        assert!(mounts::mounts_below(&root).unwrap().is_empty());
    }

    fn libc_enospc() -> i32 {
        rustix::io::Errno::NOSPC.raw_os_error()
    }

    #[tokio::test]
    async fn what_there_is_no_room_for_and_names_that_lead_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = LocalVolumes::new(dir.path());
        let error = volumes.make("pvc-1", 1 << 60).await.unwrap_err();
        assert!(matches!(error, LocalVolumeError::NoRoom { .. }), "{error}");
        let error = volumes.make("pvc-1", u64::MAX).await.unwrap_err();
        assert!(matches!(error, LocalVolumeError::NoRoom { .. }), "{error}");
        for name in ["", ".", "..", "../pods", "a/b", "A"] {
            let error = volumes.make(name, 1).await.unwrap_err();
            assert!(matches!(error, LocalVolumeError::Name(_)), "{name}: {error}");
        }
        let below = |rest: &str| dir.path().join("volumes").join(rest);
        assert_eq!(volumes.name_of(&below("pvc-1/image")), None);
        assert_eq!(volumes.name_of(&below("pvc-1/data/x")), None);
        assert_eq!(volumes.name_of(Path::new("/mnt/pvc-1/data")), None);
    }
}
