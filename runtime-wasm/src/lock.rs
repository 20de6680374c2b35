//! The lock of a host's name: a host holds it for as long as it lives, whoever clears up after one while he does. So nobody
//! clears away what a successor has made.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::FlockOperation;

/// Each failed try is a whole life of another holder's.
const N_TRIES: u32 = 16;

/// `None` if another process holds it. It is let go with the file.
pub(crate) fn take(path: &Path) -> io::Result<Option<File>> {
    for _ in 0..N_TRIES {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            other => other?,
        }
        // Whoever held it may have removed the file meanwhile: the next one to come would lock another.
        let own = file.metadata()?;
        match fs::metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (own.dev(), own.ino()) => return Ok(Some(file)),
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
    }
    Err(io::Error::other("the lock is removed again and again"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_lock_is_held_by_one_and_never_on_a_file_that_was_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = take(&path).unwrap().unwrap();
        assert!(take(&path).unwrap().is_none());
        fs::remove_file(&path).unwrap();
        let next = take(&path).unwrap().unwrap();
        drop(held);
        assert!(take(&path).unwrap().is_none(), "the first one's end is not the second one's");
        drop(next);
        assert!(take(&path).unwrap().is_some());
    }

    #[test]
    fn of_those_who_come_while_one_goes_only_one_holds_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let (is_held, n_holders) = (AtomicBool::new(false), AtomicUsize::new(0));
        let come_and_go = || {
            for _ in 0..5_000 {
                // Whoever meets only locks that are removed under him has not got it either.
                let Ok(Some(lock)) = take(&path) else { continue };
                assert!(!is_held.swap(true, Ordering::SeqCst), "two hold it");
                n_holders.fetch_add(1, Ordering::SeqCst);
                // Who removes the file has let go of the name already.
                is_held.store(false, Ordering::SeqCst);
                fs::remove_file(&path).unwrap();
                drop(lock);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(come_and_go);
            }
        });
        assert!(n_holders.into_inner() > 0);
    }
}
