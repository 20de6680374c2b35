//! The newest revision that the database is known to have had, in a small file beside it.
//!
//! A database that is behind its record was emptied, lost its WAL, or is an older copy. To go on with it would give out
//! revisions a second time, and have controllers delete what they take for garbage.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::contract::{Revision, StoreError};

pub(super) fn path_of(database: &Path) -> PathBuf {
    database.with_extension("revision")
}

/// Refuses a database that is behind its record.
pub(super) fn check(database: &Path, found: Revision) -> Result<(), StoreError> {
    let record = path_of(database);
    let text = match fs::read(&record) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StoreError::Directory { path: record, source: Arc::new(error) }),
    };
    match text.trim().parse::<Revision>() {
        Ok(recorded) if recorded > found => {
            Err(StoreError::RolledBack { path: database.into(), record, found, recorded })
        }
        Ok(_) => Ok(()),
        Err(_) => {
            tracing::warn!(record = %record.display(), "the record of the store's revision is unreadable; it is made anew");
            Ok(())
        }
    }
}

/// Replaces the record; it is the old one or the new one whatever happens meanwhile.
pub(super) fn write(database: &Path, revision: Revision) -> std::io::Result<()> {
    let record = path_of(database);
    let text = format!("{revision}\n");
    if fs::read_to_string(&record).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let next = record.with_extension("revision.next");
    let mut file = File::create(&next)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&next, &record)?;
    record.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
