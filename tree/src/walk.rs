use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, open, statat};
use rustix::io::Errno;

use crate::Error;
use crate::ladder::{Astray, Ladder};

/// Directories' names that are remembered of one directory before the walk goes into them.
const MAX_NAMES: usize = 1024;
/// Of all directories together. With more, one name at a time is taken.
const MAX_ALL_NAMES: usize = 64 * 1024;
/// What is deeper is told by [`Visitor::lost`]: the way up must fit in memory.
const MAX_DEPTH: usize = 1 << 20;

/// One entry of a tree.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    /// The directory that it is in.
    pub parent: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a CStr,
    /// What it was when it was looked at; links are not followed.
    pub stat: &'a Stat,
}

/// Whether what is in a directory is of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descend {
    /// Show it.
    Into,
    /// Go on beside it. `leave` is not called.
    Past,
}

/// Why a part of the tree was not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Directories were moved while the walk was in them.
    Moved,
    /// It is deeper than a million levels.
    TooDeep,
}

/// What is done at each entry. An error ends the walk.
pub trait Visitor {
    /// A directory, before what is in it.
    fn enter(&mut self, _entry: Entry<'_>) -> io::Result<Descend> {
        Ok(Descend::Into)
    }

    /// A directory, after all that is in it. It may be removed now.
    fn leave(&mut self, _parent: BorrowedFd<'_>, _name: &CStr) -> io::Result<()> {
        Ok(())
    }

    /// Anything else.
    fn file(&mut self, _entry: Entry<'_>) -> io::Result<()> {
        Ok(())
    }

    /// A part is left out. The walk goes on with what remains, or ends with the error.
    fn lost(&mut self, why: Lost) -> io::Result<()> {
        Err(io::Error::other(match why {
            Lost::Moved => "directories were moved meanwhile",
            Lost::TooDeep => "the directories are nested too deep",
        }))
    }
}

/// Opens the directory at `path`, for [`walk`]. The last component may be no link.
pub fn open_root(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|err| Error::at("open", path, err))
}

struct Level {
    /// In the directory above.
    name: CString,
    /// Directories in this one that are still to be entered.
    names: Vec<CString>,
    /// Where its listing goes on, unless it was read to the end.
    resume: Option<i64>,
}

/// Shows `visitor` all that is below `root`, which itself is not shown. Mount points are shown but not entered. What
/// vanishes meanwhile is left out.
pub fn walk(root: OwnedFd, visitor: &mut dyn Visitor) -> Result<(), Error> {
    let top = Level { name: CString::default(), names: Vec::new(), resume: Some(0) };
    let mut walk = Walk { ladder: Ladder::new(root), levels: vec![top], n_names: 0 };
    while let Some(level) = walk.levels.last_mut() {
        if let Some(name) = level.names.pop() {
            walk.n_names -= 1;
            walk.enter(name, visitor)?;
        } else if let Some(at) = level.resume.take() {
            walk.list(at, visitor)?;
        } else {
            walk.leave(visitor)?;
        }
    }
    Ok(())
}

struct Walk {
    ladder: Ladder,
    /// One more than the ladder has rungs: the first is the root.
    levels: Vec<Level>,
    /// In all levels.
    n_names: usize,
}

impl Walk {
    fn enter(&mut self, name: CString, visitor: &mut dyn Visitor) -> Result<(), Error> {
        let Some(stat) = look(self.ladder.here(), &name)? else { return Ok(()) };
        let entry = Entry { parent: self.ladder.here(), name: &name, stat: &stat };
        let told = |err| Error::named("visit", &name, err);
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return visitor.file(entry).map_err(told);
        }
        if visitor.enter(entry).map_err(told)? == Descend::Past {
            return Ok(());
        }
        if self.ladder.depth() >= MAX_DEPTH {
            visitor.lost(Lost::TooDeep).map_err(told)?;
            return visitor.leave(self.ladder.here(), &name).map_err(told);
        }
        match self.ladder.down(&name) {
            Ok(()) => {
                self.levels.push(Level { name, names: Vec::new(), resume: Some(0) });
                Ok(())
            }
            // Gone, replaced by something else, or a mount point.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                visitor.leave(self.ladder.here(), &name).map_err(told)
            }
            Err(err) => Err(Error::named("open", &name, err)),
        }
    }

    /// Reads on in the present directory until it ends or enough directories' names are known.
    fn list(&mut self, at: i64, visitor: &mut dyn Visitor) -> Result<(), Error> {
        let room = if self.n_names < MAX_ALL_NAMES { MAX_NAMES } else { 1 };
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        let here = self.ladder.here();
        let failed = |err: Errno| Error::named("list", &level.name, err);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // A descriptor for reading: the ladder's are only for names.
        let opened = rustix::fs::openat(here, c".", flags, Mode::empty()).and_then(Dir::new);
        let mut listing = match opened {
            Err(Errno::NOENT) => return Ok(()),
            opened => opened.map_err(failed)?,
        };
        if at != 0 {
            listing.seek(at).map_err(failed)?;
        }
        let mut found = Vec::new();
        while let Some(entry) = listing.read() {
            let entry = match entry {
                Err(Errno::NOENT) => break,
                entry => entry.map_err(failed)?,
            };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if entry.file_type() == FileType::Directory {
                found.push(name.to_owned());
            } else if let Some(stat) = look(here, name)? {
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    found.push(name.to_owned());
                } else {
                    let shown = visitor.file(Entry { parent: here, name, stat: &stat });
                    shown.map_err(|err| Error::named("visit", name, err))?;
                }
            }
            if found.len() >= room {
                level.resume = Some(entry.offset());
                break;
            }
        }
        self.n_names += found.len();
        level.names = found;
        Ok(())
    }

    fn leave(&mut self, visitor: &mut dyn Visitor) -> Result<(), Error> {
        let Some(level) = self.levels.pop() else { return Ok(()) };
        if self.levels.is_empty() {
            return Ok(());
        }
        let told = |err| Error::named("visit", &level.name, err);
        match self.ladder.up() {
            Ok(()) => visitor.leave(self.ladder.here(), &level.name).map_err(told),
            Err(Astray) => {
                visitor.lost(Lost::Moved).map_err(told)?;
                self.ladder.jump_to_root();
                self.levels.truncate(1);
                self.n_names = self.levels.iter().map(|level| level.names.len()).sum();
                Ok(())
            }
        }
    }
}

/// `None` if it has vanished.
fn look(parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<Stat>, Error> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(err) => Err(Error::named("look at", name, err)),
    }
}
