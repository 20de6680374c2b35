use std::io;
use std::path::Path;

use rustix::fs::Stat;

use crate::Error;
use crate::walk::{Descend, Entry, Lost, Visitor, open_root, walk};

/// What a tree occupies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of blocks in use, not of files' lengths: holes cost nothing.
    pub bytes: u64,
    /// Files, directories, links and all else.
    pub n_inodes: u64,
    /// Something was moved while it was counted, or is nested too deep: there is more.
    pub is_partial: bool,
}

/// Counts what is below the directory `root`, itself included.
pub fn measure(root: &Path) -> Result<Usage, Error> {
    let root_fd = open_root(root)?;
    let stat = rustix::fs::fstat(&root_fd).map_err(|err| Error::at("look at", root, err))?;
    let mut count = Count::default();
    count.add(&stat, 1);
    walk(root_fd, &mut count)?;
    Ok(Usage {
        bytes: u64::try_from(count.shares / SHARES).unwrap_or(u64::MAX),
        n_inodes: u64::try_from(count.inode_shares / SHARES).unwrap_or(u64::MAX),
        is_partial: count.is_partial,
    })
}

/// A byte is counted in so many parts: each of a file's names brings its share, so that all of them together make one
/// file, and nothing has to be remembered of those already seen.
const SHARES: u128 = 1 << 40;

#[derive(Default)]
struct Count {
    shares: u128,
    inode_shares: u128,
    is_partial: bool,
}

impl Count {
    fn add(&mut self, stat: &Stat, n_names: u128) {
        let n_names = n_names.max(1);
        let bytes = u128::from(u64::try_from(stat.st_blocks).unwrap_or_default()) * 512;
        // Rounded up, or three thirds would be less than one.
        self.shares += (bytes * SHARES).div_ceil(n_names);
        self.inode_shares += SHARES.div_ceil(n_names);
    }
}

impl Visitor for Count {
    fn enter(&mut self, entry: Entry<'_>) -> io::Result<Descend> {
        // A directory's links are its subdirectories.
        self.add(entry.stat, 1);
        Ok(Descend::Into)
    }

    fn file(&mut self, entry: Entry<'_>) -> io::Result<()> {
        self.add(entry.stat, u128::from(entry.stat.st_nlink));
        Ok(())
    }

    fn lost(&mut self, _why: Lost) -> io::Result<()> {
        self.is_partial = true;
        Ok(())
    }
}
