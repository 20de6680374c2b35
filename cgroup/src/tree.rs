//! Reading and writing the files of a hierarchy, with errors that name the file.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::Error;

/// No file of a hierarchy that Skiff reads comes near; `cgroup.procs` of a group with a hundred thousand
/// processes is the largest.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// How often removing a busy group is tried again, waiting 1, 2, 4, … 64, 64 … ms: about two seconds.
const N_REMOVE_TRIES: u32 = 36;

/// How a file of threads is told of the one that writes.
pub(crate) const THIS_THREAD: &str = "0";

pub(crate) fn write(file: &Path, value: &str) -> Result<(), Error> {
    let attempt = || -> io::Result<()> {
        // One write call: the kernel takes each as a command.
        fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
    };
    attempt().map_err(|source| Error::Write { file: file.to_owned(), value: value.to_owned(), source })
}

pub(crate) fn read(file: &Path) -> Result<String, Error> {
    let attempt = || -> io::Result<String> {
        let mut text = String::new();
        fs::File::open(file)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
        Ok(text)
    };
    attempt().map_err(|source| Error::Read { file: file.to_owned(), source })
}

pub(crate) fn read_u64(file: &Path) -> Result<u64, Error> {
    let text = read(file)?;
    match text.trim() {
        "max" => Ok(u64::MAX),
        number => number.parse().map_err(|_| Error::Parse { file: file.to_owned(), wanted: "a number" }),
    }
}

/// The number after `key` in a file of `key number` lines, 0 if the key is not there.
pub(crate) fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
        .unwrap_or_default()
}

pub(crate) fn create(directory: &Path) -> Result<(), Error> {
    match fs::create_dir(directory) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::Create { path: directory.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// `directory` and every group below it, the innermost first. A group that vanishes meanwhile is left out.
pub(crate) fn innermost_first(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        if let Ok(entries) = fs::read_dir(&next) {
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    waiting.push(entry.path());
                }
            }
            found.push(next);
        }
    }
    found.reverse();
    found
}

/// The process IDs in `directory` and below.
pub(crate) fn pids(directory: &Path) -> Result<Vec<u32>, Error> {
    let mut all = Vec::new();
    for group in innermost_first(directory) {
        match read(&group.join("cgroup.procs")) {
            Ok(text) => all.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
            Err(err) if err.is_not_found() => {}
            // A threaded group lists its processes only in the domain above.
            Err(Error::Read { source, .. }) if source.raw_os_error() == Some(95) => {}
            Err(err) => return Err(err),
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// Removes `directory` and every group below. A group is busy until the last of its processes has been
/// reaped, which may take a moment after they were killed.
pub(crate) fn remove(directory: &Path) -> Result<(), Error> {
    let mut wait = Duration::from_millis(1);
    let mut tries = 0;
    for group in innermost_first(directory) {
        while let Err(source) = fs::remove_dir(&group) {
            tries += 1;
            match source.kind() {
                io::ErrorKind::NotFound => break,
                io::ErrorKind::ResourceBusy if tries < N_REMOVE_TRIES => {
                    thread::sleep(wait);
                    wait = (wait * 2).min(Duration::from_millis(64));
                }
                _ => return Err(Error::Remove { path: group, source }),
            }
        }
    }
    Ok(())
}
