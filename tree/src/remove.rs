//! Removal in generations.
//!
//! ```text
//!  root ─┬─ a ─ b ─ … ─ (level 32) x        first: all down to level 32; x is renamed to root/.removing-0/0
//!        └─ .removing-0 ─┬─ 0 ─ … ─ y       then the same below .removing-0; y goes to root/.removing-1/0, …
//!                        └─ 1
//! ```
//!
//! So there is no way up from deep below to be found again, and each directory is renamed once in 32 levels.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, DirEntry, FileType, Mode, OFlags, RenameFlags};
use rustix::fs::{mkdirat, open, renameat_with, unlinkat};
use rustix::io::Errno;

use crate::Error;
use crate::ladder::open_dir;

/// Levels that are open at once.
const MAX_DEPTH: usize = 32;
/// How often a directory is read again that was not empty after all its entries were gone.
const N_READS: usize = 3;

/// Removes `path` and everything below it. What is gone already is fine. Of several errors the first is told, after
/// everything that could be removed has been.
pub fn remove(path: &Path) -> Result<(), Error> {
    let name = path.file_name().and_then(|name| CString::new(name.as_bytes()).ok());
    let Some(name) = name else { return Err(Error::at("remove", path, Errno::INVAL)) };
    let above = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match open(above, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened.map_err(|err| Error::at("open", above, err))?,
    };
    match take(parent.as_fd(), &name, FileType::Unknown) {
        Taken::Gone => return Ok(()),
        Taken::Failed(err) => return Err(Error::at("remove", path, err)),
        Taken::NotEmpty => {}
    }
    let root = open_dir(parent.as_fd(), &name, OFlags::RDONLY).map_err(|err| Error::at("open", path, err))?;
    let mut removal = Removal { root: root.as_fd(), yard: None, n_yards: 0, failure: None };
    removal.run()?;
    if let Some(failure) = removal.failure {
        return Err(failure);
    }
    match unlinkat(&parent, &name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(err) => Err(Error::at("remove", path, err)),
    }
}

enum Taken {
    Gone,
    /// A directory with something in it.
    NotEmpty,
    Failed(Errno),
}

/// Removes what is a file, a link, or an empty directory.
fn take(parent: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Taken {
    if kind != FileType::Directory {
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Taken::Gone,
            Err(Errno::ISDIR) => {}
            Err(err) => return Taken::Failed(err),
        }
    }
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Taken::Gone,
        Err(Errno::NOTEMPTY | Errno::EXIST) => Taken::NotEmpty,
        Err(err) => Taken::Failed(err),
    }
}

/// Where directories from too deep below are moved to.
struct Yard {
    name: CString,
    directory: OwnedFd,
    n_moved: u64,
}

struct Removal<'a> {
    root: BorrowedFd<'a>,
    /// For the next generation, once something had to be moved.
    yard: Option<Yard>,
    n_yards: u64,
    failure: Option<Error>,
}

struct Level {
    listing: Dir,
    /// In the directory above.
    name: CString,
    n_reads: usize,
    /// Something in it stays, so that it stays too.
    stays: bool,
}

impl Removal<'_> {
    fn run(&mut self) -> Result<(), Error> {
        let root = self.root.try_clone_to_owned().map_err(|err| Error::named("open", c".", err))?;
        self.clear(root)?;
        while let Some(yard) = self.yard.take() {
            self.clear(yard.directory)?;
            if let Err(err) = unlinkat(self.root, &yard.name, AtFlags::REMOVEDIR) {
                self.failed("remove", &yard.name, err);
            }
        }
        Ok(())
    }

    fn failed(&mut self, operation: &'static str, name: &CStr, err: Errno) {
        self.failure.get_or_insert_with(|| Error::named(operation, name, err));
    }

    /// Removes all that is in `directory`, down to a level; what lies deeper is moved to the next yard.
    fn clear(&mut self, directory: OwnedFd) -> Result<(), Error> {
        let listing = Dir::new(directory).map_err(|err| Error::named("list", c".", err))?;
        let mut levels = vec![Level { listing, name: CString::default(), n_reads: 0, stays: false }];
        while let Some(level) = levels.last_mut() {
            match level.listing.read() {
                Some(Ok(entry)) => {
                    if let Some(below) = self.entry(&levels, &entry) {
                        match below {
                            Ok(below) => levels.push(below),
                            Err(Stays) => levels.iter_mut().for_each(|level| level.stays = true),
                        }
                    }
                }
                Some(Err(err)) => {
                    let name = level.name.clone();
                    self.failed("list", &name, err);
                    levels.iter_mut().for_each(|level| level.stays = true);
                    levels.pop();
                }
                None => self.leave(&mut levels),
            }
        }
        Ok(())
    }

    /// Deals with one entry of the last level. Answers the level to go on with, if it is one.
    fn entry(&mut self, levels: &[Level], entry: &DirEntry) -> Option<Result<Level, Stays>> {
        let name = entry.file_name();
        let at_root = levels.len() == 1;
        let is_yard = at_root && self.yard.as_ref().is_some_and(|yard| yard.name.as_c_str() == name);
        if name == c"." || name == c".." || is_yard {
            return None;
        }
        let here = levels.last()?.listing.fd().ok()?;
        match take(here, name, entry.file_type()) {
            Taken::Gone => None,
            Taken::Failed(err) => {
                self.failed("remove", name, err);
                Some(Err(Stays))
            }
            Taken::NotEmpty if levels.len() >= MAX_DEPTH => match self.move_away(here, name) {
                Ok(()) => None,
                Err(err) => {
                    self.failed("move", name, err);
                    Some(Err(Stays))
                }
            },
            Taken::NotEmpty => match open_dir(here, name, OFlags::RDONLY).and_then(Dir::new) {
                Ok(listing) => Some(Ok(Level { listing, name: name.to_owned(), n_reads: 0, stays: false })),
                Err(err) => {
                    self.failed("open", name, err);
                    Some(Err(Stays))
                }
            },
        }
    }

    /// The last level has been read to its end: removes it from the one above.
    fn leave(&mut self, levels: &mut Vec<Level>) {
        let Some(mut level) = levels.pop() else { return };
        let Some(above) = levels.last().and_then(|above| above.listing.fd().ok()) else { return };
        if level.stays {
            return;
        }
        match unlinkat(above, &level.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Some file systems leave entries out of a listing that others were removed during.
            Err(Errno::NOTEMPTY | Errno::EXIST) if level.n_reads < N_READS => {
                level.n_reads += 1;
                level.listing.rewind();
                levels.push(level);
            }
            Err(err) => {
                self.failed("remove", &level.name, err);
                levels.iter_mut().for_each(|level| level.stays = true);
            }
        }
    }

    fn move_away(&mut self, from: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        if self.yard.is_none() {
            self.yard = Some(self.new_yard()?);
        }
        let Some(yard) = &mut self.yard else { return Err(Errno::NOENT) };
        let to = CString::new(yard.n_moved.to_string()).map_err(|_| Errno::INVAL)?;
        renameat_with(from, name, &yard.directory, &to, RenameFlags::NOREPLACE)?;
        yard.n_moved += 1;
        Ok(())
    }

    fn new_yard(&mut self) -> Result<Yard, Errno> {
        loop {
            let name = CString::new(format!(".removing-{}", self.n_yards)).map_err(|_| Errno::INVAL)?;
            self.n_yards += 1;
            match mkdirat(self.root, &name, Mode::RWXU) {
                Ok(()) => {
                    let directory = open_dir(self.root, &name, OFlags::RDONLY)?;
                    return Ok(Yard { name, directory, n_moved: 0 });
                }
                // The tree has an entry of this name: as many tries as it has such entries.
                Err(Errno::EXIST) => {}
                Err(err) => return Err(err),
            }
        }
    }
}

/// An entry could not be removed.
struct Stays;
