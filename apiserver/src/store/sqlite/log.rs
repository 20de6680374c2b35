//! The table and its statements: everything here runs on one connection and blocks.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, params};

use super::super::contract::{Batch, Event, Integrity, KeyValue, Range, Ranged, Revision, StoreError};
use super::held::{HeldRow, HeldSnapshot};
use super::reserve;

const SCHEMA_VERSION: i64 = 3;
/// Files up to this size are checked whole when they are opened; it takes some 20 ms.
const CHECK_BELOW_BYTES: u64 = 16 << 20;
/// How long a statement waits for another connection.
pub(super) const BUSY_WAIT: Duration = Duration::from_secs(5);

/// `prev_revision` is the change that a row supersedes, 0 for none: compaction follows it. `expires_ms` is
/// milliseconds since the epoch. `checksum` is of key and value; rows from before version 2 have none. Since version 3 `meta`
/// has what `reserve.rs` keeps there: an earlier program would give out revisions that are taken.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS kv (
    revision        INTEGER PRIMARY KEY,
    key             TEXT    NOT NULL,
    deleted         INTEGER NOT NULL,
    create_revision INTEGER NOT NULL,
    prev_revision   INTEGER NOT NULL,
    expires_ms      INTEGER,
    value           BLOB    NOT NULL,
    checksum        INTEGER
);
CREATE INDEX IF NOT EXISTS kv_key ON kv (key, revision);
CREATE INDEX IF NOT EXISTS kv_expires ON kv (expires_ms) WHERE expires_ms IS NOT NULL;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta (name, value) VALUES ('compacted', 1);
";

/// What a read inside a checked transaction may answer besides a failure of SQLite.
pub(super) enum ReadError {
    Sqlite(rusqlite::Error),
    Refused(StoreError),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        ReadError::Sqlite(error)
    }
}

/// Tells a corrupt file from other failures.
pub(super) fn classify(path: &Path, operation: &'static str, error: rusqlite::Error) -> StoreError {
    let source = Arc::new(error);
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            StoreError::Corrupt { path: path.into(), source }
        }
        Some(ErrorCode::DiskFull) => {
            StoreError::Full { remedy: "the disk under the database is full; free some space on it", source }
        }
        _ => StoreError::Failed { operation, source },
    }
}

/// What SQLite finds wrong with pages that the disk did not give it is no damage of the file: its checks tell it as that
/// all the same.
pub(super) fn blame_disk(path: &Path, error: StoreError) -> StoreError {
    if !matches!(error, StoreError::Corrupt { .. }) {
        return error;
    }
    match read_through(path) {
        Err(source) => StoreError::Unreadable { path: path.into(), source: Arc::new(source) },
        Ok(()) => error,
    }
}

/// Whether the disk gives every byte of a file.
fn read_through(path: &Path) -> std::io::Result<()> {
    let mut file = std::fs::File::open(path)?;
    std::io::copy(&mut file, &mut std::io::sink()).map(drop)
}

pub(super) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let size_bytes = std::fs::metadata(path).map(|m| m.len()).unwrap_or(0);
    let opened =
        Connection::open(path).map_err(|e| StoreError::Open { path: path.into(), source: Arc::new(e) })?;
    let sql = |e| classify(path, "prepare the database", e);
    // Only an empty file takes the vacuum mode; it must come before the first table and before WAL.
    opened.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(sql)?;
    opened.pragma_update(None, "journal_mode", "WAL").map_err(sql)?;
    opened.pragma_update(None, "synchronous", "FULL").map_err(sql)?;
    opened.pragma_update(None, "journal_size_limit", 16 << 20).map_err(sql)?;
    opened.pragma_update(None, "cache_size", -2048).map_err(sql)?;
    opened.pragma_update(None, "temp_store", "MEMORY").map_err(sql)?;
    opened.busy_timeout(BUSY_WAIT).map_err(sql)?;

    let version: i64 = opened.pragma_query_value(None, "user_version", |r| r.get(0)).map_err(sql)?;
    if version > SCHEMA_VERSION {
        return Err(StoreError::Newer { path: path.into(), found: version, known: SCHEMA_VERSION });
    }
    if size_bytes > 0 && size_bytes <= CHECK_BELOW_BYTES {
        check_soundness(path, &opened)?;
    }
    if version == 1 {
        let next = "BEGIN; ALTER TABLE kv ADD COLUMN checksum INTEGER; PRAGMA user_version = 2; COMMIT;";
        opened.execute_batch(next).map_err(sql)?;
    }
    opened.execute_batch(SCHEMA).map_err(sql)?;
    opened.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(sql)?;
    Ok(opened)
}

fn check_soundness(path: &Path, connection: &Connection) -> Result<(), StoreError> {
    let verdict: String = connection
        .query_row("PRAGMA quick_check(1)", [], |r| r.get(0))
        .map_err(|e| classify(path, "check the database", e))?;
    if verdict == "ok" {
        return Ok(());
    }
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    let source = Arc::new(rusqlite::Error::SqliteFailure(code, Some(verdict)));
    Err(StoreError::Corrupt { path: path.into(), source })
}

pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(path, flags)
        .map_err(|e| StoreError::Open { path: path.into(), source: Arc::new(e) })?;
    let sql = |e| classify(path, "prepare a reader", e);
    opened.pragma_update(None, "cache_size", -512).map_err(sql)?;
    opened.busy_timeout(BUSY_WAIT).map_err(sql)?;
    Ok(opened)
}

pub(super) fn compacted(connection: &Connection) -> rusqlite::Result<Revision> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE name = 'compacted'")?
        .query_row([], |r| r.get::<_, Revision>(0))
}

/// The newest revision that is logged. A compacted tombstone may have been the last row, and a crash may have lost some, so
/// these marks count too.
pub(super) fn newest(connection: &Connection) -> rusqlite::Result<Revision> {
    connection
        .prepare_cached(
            "SELECT max(coalesce((SELECT max(revision) FROM kv), 1),
                        (SELECT value FROM meta WHERE name = 'compacted'),
                        coalesce((SELECT value FROM meta WHERE name = 'lost_until'), 0))",
        )?
        .query_row([], |r| r.get::<_, Revision>(0))
}

/// What every statement that reads values selects first.
macro_rules! columns {
    () => {
        "kv.key, kv.value, kv.create_revision, kv.revision, kv.checksum, kv.deleted"
    };
}

fn key_value(row: &Row<'_>) -> rusqlite::Result<KeyValue> {
    // Whatever a damaged page makes of a column is damage to this row, and no reason to read none.
    let bytes = |column: usize| -> rusqlite::Result<&[u8]> {
        Ok(match row.get_ref(column)? {
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
            _ => &[],
        })
    };
    let (key, value) = (bytes(0)?, bytes(1)?);
    let is_sound = match row.get_ref(4)? {
        ValueRef::Null => std::str::from_utf8(key).is_ok(),
        ValueRef::Integer(sum) => sum == i64::from(checksum(key, value)),
        _ => false,
    };
    let integrity = if is_sound { Integrity::Sound } else { Integrity::Damaged };
    Ok(KeyValue {
        key: String::from_utf8_lossy(key).into(),
        value: Bytes::copy_from_slice(value),
        integrity,
        create_revision: row.get(2)?,
        mod_revision: row.get(3)?,
    })
}

/// The CRC-32 of a key and its value.
fn checksum(key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

pub(super) fn get(connection: &Connection, key: &str) -> rusqlite::Result<Option<KeyValue>> {
    let found = connection
        .prepare_cached(concat!(
            "SELECT ",
            columns!(),
            " FROM kv WHERE key = ?1 ORDER BY revision DESC LIMIT 1"
        ))?
        .query_row([key], |row| Ok((key_value(row)?, row.get::<_, bool>(5)?)))
        .optional()?;
    Ok(found.filter(|(_, deleted)| !deleted).map(|(kv, _)| kv))
}

/// The first key after all that start with `prefix`.
fn end_of(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

/// In the order of the index, so that a page costs what it returns and not what follows it.
const RANGE: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM kv INDEXED BY kv_key
     WHERE key >= ?1 AND key < ?2 AND revision <= ?3 AND deleted = 0
       AND NOT EXISTS (SELECT 1 FROM kv AS newer
                       WHERE newer.key = kv.key AND newer.revision > kv.revision AND newer.revision <= ?3)
     ORDER BY kv.key LIMIT ?4"
);

/// Refuses what is compacted and what a crash may have lost.
fn check_readable(connection: &Connection, revision: Revision) -> Result<(), ReadError> {
    let compacted = compacted(connection)?;
    if revision < compacted {
        return Err(ReadError::Refused(StoreError::Compacted { requested: revision, compacted }));
    }
    reserve::lost(connection)?.refuse(revision).map_err(ReadError::Refused)
}

/// With what was `held` before the connection began to read.
pub(super) fn range(
    connection: &Connection,
    range: &Range,
    held: &HeldSnapshot,
) -> Result<Ranged, ReadError> {
    let newest = newest(connection)?.max(held.revision);
    let revision = range.revision.unwrap_or(newest);
    check_readable(connection, revision)?;
    if revision > newest {
        return Err(ReadError::Refused(StoreError::Future { requested: revision, current: newest }));
    }
    let start = match &range.start {
        Some(start) if *start > range.prefix => start,
        _ => &range.prefix,
    };
    // Past every key where the prefix is empty.
    let end = end_of(&range.prefix).unwrap_or_else(|| char::MAX.to_string());
    let limit = range.limit.unwrap_or(usize::MAX - 1).min(i64::MAX as usize - 1);
    let mut statement = connection.prepare_cached(RANGE)?;
    let rows = statement.query_map(params![start, end, revision, limit as i64 + 1], key_value)?;
    let mut items = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    let more = items.len() > limit;
    items.truncate(limit);
    for item in &mut items {
        // A row that is held is of a key that is logged.
        if let Some((key, row)) = held.rows.get_key_value(&item.key)
            && row.mod_revision > item.mod_revision
            && row.mod_revision <= revision
        {
            *item = row.key_value(key);
        }
    }
    Ok(Ranged { revision, items, more })
}

/// The keys whose newest value is not what was written.
pub(super) fn damaged(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |r| r.get(0))?;
    if version < 2 {
        // Written by an earlier version, which kept no checksums.
        return Ok(Vec::new());
    }
    let mut statement = connection.prepare(RANGE)?;
    let mut rows = statement.query(params!["", char::MAX.to_string(), i64::MAX, i64::MAX])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let kv = key_value(row)?;
        if kv.integrity == Integrity::Damaged {
            found.push(kv.key.to_string());
        }
    }
    Ok(found)
}

/// The changes after `after`, at most `limit`, with what was `held` before the connection began to read. The batch reaches
/// to the newest revision, or to its last event if there is more.
pub(super) fn events(
    connection: &Connection,
    prefix: &str,
    after: Revision,
    limit: usize,
    held: &HeldSnapshot,
) -> Result<Batch, ReadError> {
    check_readable(connection, after)?;
    let logged = newest(connection)?;
    let mut statement = connection.prepare_cached(concat!(
        "SELECT ",
        columns!(),
        " FROM kv WHERE revision > ?1 AND substr(key, 1, ?2) = ?3 ORDER BY revision LIMIT ?4"
    ))?;
    let prefix_chars = prefix.chars().count() as i64;
    let rows = statement.query_map(params![after, prefix_chars, prefix, limit as i64], |row| {
        let kv = key_value(row)?;
        let deleted: bool = row.get(5)?;
        Ok(Event {
            key: kv.key,
            value: (!deleted).then_some(kv.value),
            integrity: kv.integrity,
            mod_revision: kv.mod_revision,
            create_revision: kv.create_revision,
        })
    })?;
    let mut events = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    // What is not newer than the log was logged meanwhile, or superseded by what was.
    let is_new = |row: &HeldRow| row.mod_revision > logged.max(after);
    let mut newer: Vec<Event> =
        held.rows.iter().filter(|(_, row)| is_new(row)).map(|(key, row)| row.event(key)).collect();
    newer.sort_unstable_by_key(|event| event.mod_revision);
    newer.truncate(limit.saturating_sub(events.len()));
    events.append(&mut newer);
    let revision = match events.last() {
        Some(last) if events.len() == limit => last.mod_revision,
        _ => logged.max(held.revision).max(after),
    };
    Ok(Batch { revision, events })
}

/// The newest row of a key, deleted or not.
pub(super) struct Head {
    pub(super) revision: Revision,
    pub(super) create_revision: Revision,
    pub(super) deleted: bool,
}

pub(super) fn head(connection: &Connection, key: &str) -> rusqlite::Result<Option<Head>> {
    connection
        .prepare_cached(
            "SELECT revision, create_revision, deleted FROM kv
             WHERE key = ?1 ORDER BY revision DESC LIMIT 1",
        )?
        .query_row([key], |row| {
            Ok(Head { revision: row.get(0)?, create_revision: row.get(1)?, deleted: row.get(2)? })
        })
        .optional()
}

pub(super) struct NewRow<'a> {
    pub(super) revision: Revision,
    pub(super) key: &'a str,
    pub(super) deleted: bool,
    pub(super) create_revision: Revision,
    pub(super) prev_revision: Revision,
    pub(super) expires_ms: Option<i64>,
    pub(super) value: &'a [u8],
}

pub(super) fn append(connection: &Connection, row: &NewRow<'_>) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO kv
                 (revision, key, deleted, create_revision, prev_revision, expires_ms, value, checksum)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            row.revision,
            row.key,
            row.deleted,
            row.create_revision,
            row.prev_revision,
            row.expires_ms,
            row.value,
            checksum(row.key.as_bytes(), row.value),
        ])?;
    Ok(())
}

/// A key whose newest row has expired, with that row's revision and time.
pub(super) struct Expired {
    pub(super) key: String,
    pub(super) revision: Revision,
    pub(super) at_ms: i64,
}

/// What expired after `after_ms` and up to `now_ms`, the earliest first.
pub(super) fn expired(
    connection: &Connection,
    after_ms: i64,
    now_ms: i64,
    limit: usize,
) -> rusqlite::Result<Vec<Expired>> {
    connection
        .prepare_cached(
            "SELECT key, revision, expires_ms FROM kv
             WHERE expires_ms > ?1 AND expires_ms <= ?2
               AND NOT EXISTS (SELECT 1 FROM kv AS newer
                               WHERE newer.key = kv.key AND newer.revision > kv.revision)
             ORDER BY expires_ms LIMIT ?3",
        )?
        .query_map(params![after_ms, now_ms, limit as i64], |row| {
            Ok(Expired { key: row.get(0)?, revision: row.get(1)?, at_ms: row.get(2)? })
        })?
        .collect()
}

/// Deletes what the changes in `(from, to]` superseded, and their tombstones; marks `to` as compacted.
pub(super) fn compact_step(connection: &Connection, from: Revision, to: Revision) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM kv WHERE revision IN
                 (SELECT prev_revision FROM kv WHERE revision > ?1 AND revision <= ?2 AND prev_revision > 0)",
        )?
        .execute(params![from, to])?;
    connection
        .prepare_cached("DELETE FROM kv WHERE revision > ?1 AND revision <= ?2 AND deleted = 1")?
        .execute(params![from, to])?;
    connection.prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'compacted'")?.execute(params![to])?;
    Ok(())
}

/// Whether a commit waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commits {
    Synced,
    /// With the next one that waits. Until then a power cut may take it, and what came after it.
    Unsynced,
}

pub(super) fn set_commits(connection: &Connection, commits: Commits) -> rusqlite::Result<()> {
    let mode = match commits {
        Commits::Synced => "FULL",
        Commits::Unsynced => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", mode)
}

/// Gives freed pages back to the file system, a bounded number at a time. Returns whether any are left.
pub(super) fn release_pages(connection: &Connection, pages: u32) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
    let mut rows = statement.query([])?;
    // The pragma frees one page a step.
    while rows.next()?.is_some() {}
    drop(rows);
    drop(statement);
    let free: i64 = connection.pragma_query_value(None, "freelist_count", |r| r.get(0))?;
    Ok(free > 0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::{RANGE, blame_disk, end_of, open_writer};
    use crate::store::StoreError;

    #[test]
    fn a_database_that_its_disk_does_not_give_is_not_called_corrupt() {
        let corrupt = |path: &Path| {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            let source = Arc::new(rusqlite::Error::SqliteFailure(code, None));
            blame_disk(path, StoreError::Corrupt { path: path.into(), source })
        };
        // Its first byte is an I/O error, as those of a disk with a loose cable are.
        let found = corrupt(Path::new("/proc/self/mem"));
        assert!(matches!(&found, StoreError::Unreadable { .. }), "{found:?}");
        let said = found.to_string();
        assert!(!said.contains("corrupt") && !said.contains("away"), "{said}");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.db");
        std::fs::write(&path, "no database").expect("writes");
        assert!(matches!(corrupt(&path), StoreError::Corrupt { .. }));
    }

    #[test]
    fn a_page_is_read_in_the_order_of_the_index() {
        let folder = tempfile::tempdir().expect("a folder");
        let connection = open_writer(&folder.path().join("state.db")).expect("opens");
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {RANGE}")).expect("prepares");
        let steps: Vec<String> = statement
            .query_map(rusqlite::params!["a", "b", 1, 1], |row| row.get(3))
            .expect("runs")
            .collect::<Result<_, _>>()
            .expect("rows");
        assert!(steps.iter().any(|step| step.contains("USING INDEX kv_key")), "{steps:?}");
        // Sorting, or grouping, would read all that is left for each page.
        assert!(!steps.iter().any(|step| step.contains("TEMP B-TREE") || step.contains("SCAN")), "{steps:?}");
    }

    #[test]
    fn the_end_of_a_prefix_is_past_all_its_keys() {
        assert_eq!(end_of("/registry/pods/").as_deref(), Some("/registry/pods0"));
        assert_eq!(end_of(""), None);
        let end = end_of("a\u{d7ff}").expect("has an end");
        assert!(end.as_str() > "a\u{d7ff}z" && end.as_str() <= "a\u{e000}");
    }
}
