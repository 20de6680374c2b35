//! Revisions that are given out before they are logged.
//!
//! A write that is held is acknowledged, with its revision, before anything of it is on the disk, and a crash loses it. Its
//! revision must not be given out again for something else. So revisions are reserved, durably and many at a time, before
//! they are given to held writes. A store that ends cleanly gives back what it did not use; one that did not begins behind
//! what was reserved, and answers for what is between as for what was compacted: clients read anew.

use rusqlite::{Connection, TransactionBehavior, params};

use super::super::contract::{Revision, StoreError};
use super::log;

/// How many revisions are reserved at a time: with three nodes and nothing else to do, those of some hours.
pub(super) const RESERVED_REVISIONS: u64 = 10_000;

/// The revisions after `after` and before `until` that a crash may have lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    after: Revision,
    until: Revision,
}

impl Lost {
    /// # Errors
    /// If what was given out as `revision` may be lost.
    pub(super) fn refuse(self, revision: Revision) -> Result<(), StoreError> {
        if revision > self.after && revision < self.until {
            return Err(StoreError::Compacted { requested: revision, compacted: self.until });
        }
        Ok(())
    }
}

fn meta(connection: &Connection, name: &str) -> rusqlite::Result<Revision> {
    connection
        .prepare_cached("SELECT coalesce((SELECT value FROM meta WHERE name = ?1), 0)")?
        .query_row([name], |row| row.get(0))
}

fn set_meta(connection: &Connection, name: &str, value: Revision) -> rusqlite::Result<()> {
    let sql = "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2";
    connection.prepare_cached(sql)?.execute(params![name, value]).map(drop)
}

pub(super) fn lost(connection: &Connection) -> rusqlite::Result<Lost> {
    Ok(Lost { after: meta(connection, "lost_after")?, until: meta(connection, "lost_until")? })
}

pub(super) fn reserved(connection: &Connection) -> rusqlite::Result<Revision> {
    meta(connection, "reserved")
}

/// Within the transaction of whoever calls.
pub(super) fn reserve(connection: &Connection, until: Revision) -> rusqlite::Result<()> {
    set_meta(connection, "reserved", until)
}

/// Begins behind what was reserved and not given back. Answers the newest revision.
pub(super) fn begin(connection: &mut Connection) -> rusqlite::Result<Revision> {
    let (logged, reserved) = (log::newest(connection)?, reserved(connection)?);
    if reserved <= logged {
        return Ok(logged);
    }
    let before = lost(connection)?;
    // Two crashes soon after one another: what lies between them is refused, too.
    let after = if before.until > log::compacted(connection)? { before.after } else { logged };
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // The last one that was reserved may have been given out.
    let until = reserved + 1;
    set_meta(&transaction, "lost_after", after)?;
    set_meta(&transaction, "lost_until", until)?;
    transaction.commit()?;
    Ok(until)
}
