//! What runtimes keep on disk of their sandboxes and containers: files that are there whole, old or new, whenever the
//! power goes, and which boot of the machine they speak of.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// What a power cut right after a write may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The write, but not what was there before.
    Whole,
    /// Nothing.
    Durable,
}

const PARTIAL: &str = "partial";

/// Writes `bytes` to `path`, mode 0600. A reader sees all or nothing of them, and so does whoever comes after a power cut:
/// a file that is renamed before it is synced may have no content then. Blocks for the disk.
pub fn write(path: &Path, bytes: &[u8], keep: Keep) -> io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{n}.{PARTIAL}", std::process::id()));
    let partial = path.with_file_name(name);
    let attempt = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        match (keep, path.parent()) {
            (Keep::Durable, Some(directory)) => sync_directory(directory),
            _ => Ok(()),
        }
    };
    attempt().inspect_err(|_| _ = fs::remove_file(&partial))
}

/// Makes the names in a directory durable. Blocks for the disk.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Removes what writers left that died while they wrote. Those that live are left to finish.
pub fn remove_partials(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if writer(&path).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            match fs::remove_file(&path) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The process that writes, or wrote, a file that has not got its name yet.
fn writer(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?.strip_suffix(PARTIAL)?.strip_suffix('.')?;
    name.rsplit_once('.')?.1.split_once('-')?.0.parse().ok()
}

/// The identity of this boot of the machine. What lies in the kernel (namespaces, mounts, control groups, processes) does
/// not outlive it.
pub fn boot_id() -> io::Result<String> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(&path)?;
    match text.trim() {
        "" => Err(io::Error::other(format!("{} is empty", path.display()))),
        id => Ok(id.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("skiff-keep-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn a_written_file_is_private_and_leaves_nothing_beside_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = directory("written");
        let path = directory.join("a.json");
        for (text, keep) in [("one", Keep::Whole), ("two", Keep::Durable)] {
            write(&path, text.as_bytes(), keep).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        write(&directory.join("missing/b.json"), b"", Keep::Whole).unwrap_err();
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_a_dead_writer_left_goes_and_what_a_live_one_writes_stays() {
        let directory = directory("partial");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let dead = directory.join(format!("a.json.{}-0.{PARTIAL}", child.id()));
        let live = directory.join(format!("a.json.{}-7.{PARTIAL}", std::process::id()));
        let others = [directory.join("a.json"), directory.join("partial"), directory.join("x.1.partial")];
        for path in others.iter().chain([&dead, &live]) {
            fs::write(path, "").unwrap();
        }
        remove_partials(&directory).unwrap();
        assert!(!dead.exists() && live.exists() && others.iter().all(|path| path.exists()));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_boot_has_an_identity() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        assert!(boot_id().unwrap().len() >= 32);
    }
}
