//! Reading and writing the files of a hierarchy, with errors that name the file.

use std::ffi::CStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags};
use skiff_tree::{Entry, Visitor};

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

pub(crate) fn require_writable(directory: &Path) -> Result<(), Error> {
    let asked = rustix::fs::access(directory, rustix::fs::Access::WRITE_OK);
    asked.map_err(|err| Error::NotWritable { root: directory.to_owned(), source: err.into() })
}

pub(crate) fn create(directory: &Path) -> Result<(), Error> {
    match fs::create_dir(directory) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::Create { path: directory.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// The groups right below `directory`; none if it is not there. A name that is no text is nobody's of ours.
pub(crate) fn children(directory: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::Read { file: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = match entry {
            // The group went while it was listed.
            Err(err) if matches!(err.raw_os_error(), Some(NO_DEVICE)) => break,
            other => other.map_err(failed)?,
        };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    Ok(names)
}

/// The process IDs in `directory` and below. What is below is the container's own making, as deep as it likes: it is
/// reached by descriptor, for its path may be longer than the system takes.
pub(crate) fn pids(directory: &Path) -> Result<Vec<u32>, Error> {
    let mut members = Members(Vec::new());
    let file = directory.join(MEMBERS);
    members.add(fs::File::open(&file)).map_err(|source| Error::Read { file, source })?;
    if let Some(root) = open(directory)? {
        let below = skiff_tree::walk(root, &mut members);
        below.map_err(|err| Error::Read { file: directory.to_owned(), source: err.into() })?;
    }
    let mut all = members.0;
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

const MEMBERS: &str = "cgroup.procs";

/// `None` if the group is not there.
fn open(directory: &Path) -> Result<Option<OwnedFd>, Error> {
    match skiff_tree::open_root(directory) {
        Ok(root) => Ok(Some(root)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(Error::Read { file: directory.to_owned(), source: err.into() }),
    }
}

struct Members(Vec<u32>);

impl Members {
    fn add(&mut self, file: io::Result<fs::File>) -> io::Result<()> {
        let mut text = String::new();
        match file.and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text)) {
            Ok(_) => self.0.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
            // The group is gone, before its file was opened or after.
            Err(err) if err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(NO_DEVICE) => {}
            // A threaded group lists its processes only in the domain above.
            Err(err) if err.raw_os_error() == Some(NOT_SUPPORTED) => {}
            Err(err) => return Err(err),
        }
        Ok(())
    }
}

const NO_DEVICE: i32 = 19;
const NOT_SUPPORTED: i32 = 95;

impl Visitor for Members {
    fn file(&mut self, entry: Entry<'_>) -> io::Result<()> {
        if entry.name.to_bytes() != MEMBERS.as_bytes() {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(entry.parent, entry.name, flags, Mode::empty());
        self.add(opened.map(fs::File::from).map_err(io::Error::from))
    }
}

/// Removes `directory` and every group below, the innermost first.
pub(crate) fn remove(directory: &Path) -> Result<(), Error> {
    let failed = |source| Error::Remove { path: directory.to_owned(), source };
    let mut removal = Removal { wait: Duration::from_millis(1), tries: 0 };
    if let Some(root) = open(directory)? {
        skiff_tree::walk(root, &mut removal).map_err(|err| failed(err.into()))?;
    }
    removal.remove(|| fs::remove_dir(directory)).map_err(failed)
}

/// A group is busy until the last of its processes has been reaped, which may take a moment after they were killed.
/// The tries are those of the whole tree.
struct Removal {
    wait: Duration,
    tries: u32,
}

impl Removal {
    fn remove(&mut self, attempt: impl Fn() -> io::Result<()>) -> io::Result<()> {
        while let Err(source) = attempt() {
            self.tries += 1;
            match source.kind() {
                io::ErrorKind::NotFound => break,
                io::ErrorKind::ResourceBusy if self.tries < N_REMOVE_TRIES => {
                    thread::sleep(self.wait);
                    self.wait = (self.wait * 2).min(Duration::from_millis(64));
                }
                _ => return Err(source),
            }
        }
        Ok(())
    }
}

impl Visitor for Removal {
    fn leave(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        self.remove(|| Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?))
    }
}
