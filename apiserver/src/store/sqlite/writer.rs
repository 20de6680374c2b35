//! The writer thread: takes all that waits, commits it in one transaction or holds it, then answers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::super::contract::{
    Batch, Durability, Event, Expect, Integrity, Op, Revision, StoreError, Write, Written,
};
use super::held::{Held, HeldRow};
use super::log::{self, BUSY_WAIT, Commits, NewRow};
use super::record;
use super::reserve::{self, RESERVED_REVISIONS};

/// How many writes share one transaction at most.
const MAX_BATCH: usize = 512;
/// How many revisions one step of compaction covers: a few milliseconds.
const COMPACT_REVISIONS: u64 = 1000;
const VACUUM_PAGES: u32 = 256;
const EXPIRE_KEYS: usize = 256;
/// The WAL is folded in when it is larger than this, and now and then however small it is.
const FOLD_ABOVE_BYTES: u64 = 4 << 20;
const FOLD_AFTER: Duration = Duration::from_secs(5 * 60);
/// How long folding waits for a reader; writes wait as long.
const FOLD_WAIT: Duration = Duration::from_millis(100);

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Job {
    Write(Write, Answer<Written>),
    /// One step towards compacting to a revision; answers whether it is done.
    Compact(Revision, Answer<bool>),
    /// Deletes some of the keys that have expired; answers whether there may be more.
    Expire(Answer<bool>),
    /// Logs what is held, folds the WAL into the database if it is due, and records the revision beside it.
    Tend,
    /// As if the disk under the database were full, or had room again.
    #[cfg(test)]
    Fill(bool),
}

/// What the writer shares with readers and watches.
pub(super) struct Shared {
    pub(super) live: broadcast::Sender<Arc<Batch>>,
    pub(super) published: Arc<AtomicU64>,
    pub(super) held: Arc<Held>,
}

pub(super) struct Writer {
    connection: Connection,
    path: PathBuf,
    /// The newest that was given out.
    revision: Revision,
    /// Up to this one revisions may be given to writes that are held.
    reserved: Revision,
    queue: mpsc::Receiver<Job>,
    shared: Shared,
    commits: Commits,
    /// All that expired up to this time is deleted.
    expired_to_ms: i64,
    folded: Instant,
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        path: PathBuf,
        revision: Revision,
        queue: mpsc::Receiver<Job>,
        shared: Shared,
    ) -> rusqlite::Result<Writer> {
        connection.set_prepared_statement_cache_capacity(32);
        let reserved = reserve::reserved(&connection)?;
        let (expired_to_ms, folded) = (0, Instant::now());
        let commits = Commits::Synced;
        Ok(Writer { connection, path, revision, reserved, queue, shared, commits, expired_to_ms, folded })
    }

    /// Runs until every sender of the queue is gone and the queue is empty.
    pub(super) fn run(mut self) {
        let mut writes = Vec::new();
        while let Some(first) = self.queue.blocking_recv() {
            let mut next = Some(first);
            let mut other = None;
            while let Some(job) = next {
                match job {
                    Job::Write(write, answer) => writes.push((write, answer)),
                    job => other = Some(job),
                }
                let full = writes.len() == MAX_BATCH || other.is_some();
                next = if full { None } else { self.queue.try_recv().ok() };
            }
            if !writes.is_empty() {
                self.commit(std::mem::take(&mut writes));
            }
            match other {
                Some(Job::Compact(target, answer)) => {
                    let _ = answer.send(self.compact(target));
                }
                Some(Job::Expire(answer)) => {
                    let _ = answer.send(self.expire());
                }
                Some(Job::Tend) => self.tend(),
                #[cfg(test)]
                Some(Job::Fill(is_full)) => {
                    let pages = if is_full { 1 } else { u32::MAX - 1 };
                    self.connection
                        .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
                        .expect("a limit");
                }
                Some(Job::Write(..)) | None => {}
            }
        }
        // A clean end leaves one file; after a kill the WAL is replayed instead.
        self.give_back();
        self.fold();
        self.record();
    }

    fn tend(&mut self) {
        if let Err(error) = self.transact(&[]) {
            tracing::warn!(%error, "heartbeats of the last minute are not on the disk yet");
        }
        // The record goes with the fold: it is no finer than what a power cut may take of an older file system.
        if self.folded.elapsed() >= FOLD_AFTER || wal_bytes(&self.path) > FOLD_ABOVE_BYTES {
            self.fold();
            self.record();
        }
    }

    /// Logs what is held and gives back what was reserved, so that the next start goes on from the last revision.
    fn give_back(&mut self) {
        let given = self.transact(&[]).and_then(|_| {
            let given = if self.reserved > self.revision {
                reserve::reserve(&self.connection, self.revision)
            } else {
                Ok(())
            };
            given.map_err(|e| log::classify(&self.path, "give revisions back", e))
        });
        if let Err(error) = given {
            tracing::warn!(%error, "the last heartbeats are not on the disk; clients read anew after the next start");
        }
    }

    /// Moves what stands in the WAL into the database and empties it. A reader in the middle of something keeps it for
    /// another time.
    fn fold(&mut self) {
        self.folded = Instant::now();
        let folded = (|| {
            self.connection.busy_timeout(FOLD_WAIT)?;
            let busy = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
            self.connection.busy_timeout(BUSY_WAIT)?;
            busy
        })();
        match folded {
            Ok(false) => {}
            Ok(true) => tracing::debug!("the WAL of the store is being read; it is folded in later"),
            Err(error) => tracing::warn!(%error, "cannot fold the WAL of the store into the database"),
        }
    }

    /// Records what is logged, for what is held may be lost.
    fn record(&self) {
        let logged = log::newest(&self.connection);
        let recorded = logged.map_err(std::io::Error::other).and_then(|it| record::write(&self.path, it));
        if let Err(error) = recorded {
            tracing::warn!(%error, "cannot record the revision of the store beside it");
        }
    }

    fn commit(&mut self, writes: Vec<(Write, Answer<Written>)>) {
        let (writes, answers): (Vec<_>, Vec<_>) = writes.into_iter().unzip();
        let written = match self.hold(&writes, &[Durability::Soon]) {
            Ok(Some(results)) => Ok(results),
            Ok(None) => self.transact(&writes).or_else(|error| {
                // A node may say that the disk is full while it is.
                let held = self.hold(&writes, &[Durability::Soon, Durability::Preferably]);
                held.ok().flatten().ok_or(error)
            }),
            Err(error) => Err(log::classify(&self.path, "look up what is written", error)),
        };
        match written {
            Ok(results) => {
                for (answer, result) in answers.into_iter().zip(results) {
                    // The caller may have gone; its write stands.
                    let _ = answer.send(Ok(result));
                }
            }
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// Takes writes without logging them, if each may be and there is room. `None` if they are to be logged; nothing has
    /// happened then.
    fn hold(&mut self, writes: &[Write], may_be: &[Durability]) -> rusqlite::Result<Option<Vec<Written>>> {
        let is_reserved = self.revision + writes.len() as u64 <= self.reserved;
        if !is_reserved || !self.shared.held.has_room() {
            return Ok(None);
        }
        for write in writes {
            let may_wait =
                may_be.contains(&write.durability) && matches!(write.op, Op::Put { ttl: None, .. });
            if !may_wait || self.standing(&write.key)?.is_none() {
                return Ok(None);
            }
        }
        let mut events = Vec::with_capacity(writes.len());
        let results: rusqlite::Result<Vec<Written>> =
            writes.iter().map(|write| self.hold_one(write, &mut events)).collect();
        // Those before one that failed are held all the same.
        self.publish(events);
        results.map(Some)
    }

    fn hold_one(&mut self, write: &Write, events: &mut Vec<Event>) -> rusqlite::Result<Written> {
        let Some(standing) = self.standing(&write.key)? else {
            return Ok(Written::Mismatch { current: None });
        };
        let holds = match write.expect {
            Expect::Any => true,
            Expect::Absent => false,
            Expect::ModRevision(expected) => standing.mod_revision == expected,
        };
        let held = &self.shared.held;
        let value = match &write.op {
            Op::Put { value, .. } if holds => value.clone(),
            _ => {
                let current = match held.get(&write.key) {
                    Some(current) => Some(current),
                    None => log::get(&self.connection, &write.key)?,
                };
                return Ok(Written::Mismatch { current });
            }
        };
        self.revision += 1;
        let row = HeldRow { value, mod_revision: self.revision, ..standing };
        events.push(row.event(&write.key.as_str().into()));
        held.put(&write.key, row);
        Ok(Written::Done { revision: self.revision })
    }

    /// The revisions of a key that exists, held or logged.
    fn standing(&self, key: &str) -> rusqlite::Result<Option<HeldRow>> {
        if let Some(row) = self.shared.held.row(key) {
            return Ok(Some(row));
        }
        let head = log::head(&self.connection, key)?.filter(|head| !head.deleted);
        Ok(head.map(|head| HeldRow {
            value: Bytes::new(),
            create_revision: head.create_revision,
            mod_revision: head.revision,
            logged_revision: head.revision,
        }))
    }

    /// Logs what is held, then applies all writes, in one transaction, makes it durable and publishes it. All or none.
    fn transact(&mut self, writes: &[Write]) -> Result<Vec<Written>, StoreError> {
        if writes.is_empty() && self.shared.held.is_empty() {
            return Ok(Vec::new());
        }
        let mut revision = self.revision;
        let mut reserved = self.reserved;
        let mut events = Vec::with_capacity(writes.len());
        let outcome = (|| {
            self.set_commits(Commits::Synced)?;
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let now_ms = now_ms();
            log_held(&transaction, &self.shared.held)?;
            let results = writes
                .iter()
                .map(|write| apply(&transaction, write, &mut revision, now_ms, &mut events))
                .collect::<rusqlite::Result<Vec<_>>>()?;
            let wants_more = writes.iter().any(|write| write.durability == Durability::Soon);
            if wants_more && reserved < revision + RESERVED_REVISIONS / 2 {
                reserved = revision + RESERVED_REVISIONS;
                reserve::reserve(&transaction, reserved)?;
            }
            transaction.commit()?;
            Ok(results)
        })();
        match outcome {
            Ok(results) => {
                self.shared.held.clear();
                self.revision = revision;
                self.reserved = reserved;
                self.expired_to_ms = self.expired_to_ms.min(before_first_expiry_ms(writes));
                self.publish(events);
                Ok(results)
            }
            Err(error) => {
                // A commit that failed may still stand: never give its revisions out again.
                if let Ok(logged) = log::newest(&self.connection) {
                    self.revision = self.revision.max(logged);
                    self.shared.held.forget_if_logged(logged);
                }
                Err(log::classify(&self.path, "commit", error))
            }
        }
    }

    fn set_commits(&mut self, commits: Commits) -> rusqlite::Result<()> {
        if self.commits != commits {
            log::set_commits(&self.connection, commits)?;
            self.commits = commits;
        }
        Ok(())
    }

    fn publish(&self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        self.shared.published.store(self.revision, Ordering::Release);
        // No receiver is no watch.
        let _ = self.shared.live.send(Arc::new(Batch { revision: self.revision, events }));
    }

    fn compact(&mut self, target: Revision) -> Result<bool, StoreError> {
        let failed = |path: &PathBuf, e| log::classify(path, "compact", e);
        // What is held supersedes rows that are compacted once it is logged.
        let logged = log::newest(&self.connection).map_err(|e| failed(&self.path, e))?;
        let target = target.min(logged);
        let from = log::compacted(&self.connection).map_err(|e| failed(&self.path, e))?;
        if from >= target {
            return log::release_pages(&self.connection, VACUUM_PAGES)
                .map(|left| !left)
                .map_err(|e| failed(&self.path, e));
        }
        let to = target.min(from + COMPACT_REVISIONS);
        // Nothing is lost with a step that is lost: it is taken again.
        self.set_commits(Commits::Unsynced).map_err(|e| failed(&self.path, e))?;
        let step = (|| {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            log::compact_step(&transaction, from, to)?;
            transaction.commit()
        })();
        step.map_err(|e| failed(&self.path, e))?;
        Ok(false)
    }

    fn expire(&mut self) -> Result<bool, StoreError> {
        let now_ms = now_ms();
        // A clock that was set back: what was written since expires from then on.
        let after_ms = if self.expired_to_ms > now_ms { 0 } else { self.expired_to_ms };
        let expired = log::expired(&self.connection, after_ms, now_ms, EXPIRE_KEYS)
            .map_err(|e| log::classify(&self.path, "look for expired keys", e))?;
        let more = expired.len() == EXPIRE_KEYS;
        let reached_ms = match expired.last() {
            // Others may have expired in the same millisecond.
            Some(last) if more => last.at_ms - 1,
            _ => now_ms,
        };
        if !expired.is_empty() {
            let writes: Vec<Write> = expired
                .into_iter()
                .map(|one| Write::delete(one.key, Expect::ModRevision(one.revision)))
                .collect();
            self.transact(&writes)?;
        }
        self.expired_to_ms = reached_ms;
        Ok(more)
    }
}

fn apply(
    connection: &Connection,
    write: &Write,
    revision: &mut Revision,
    now_ms: i64,
    events: &mut Vec<Event>,
) -> rusqlite::Result<Written> {
    let head = log::head(connection, &write.key)?;
    let live = head.as_ref().filter(|h| !h.deleted);
    let holds = match write.expect {
        Expect::Any => true,
        Expect::Absent => live.is_none(),
        Expect::ModRevision(expected) => live.is_some_and(|h| h.revision == expected),
    };
    if !holds {
        let current = if live.is_some() { log::get(connection, &write.key)? } else { None };
        return Ok(Written::Mismatch { current });
    }
    let (value, ttl) = match &write.op {
        Op::Put { value, ttl } => (Some(value), *ttl),
        Op::Delete if live.is_none() => return Ok(Written::Done { revision: *revision }),
        Op::Delete => (None, None),
    };
    *revision += 1;
    let create_revision = live.map_or(*revision, |h| h.create_revision);
    let row = NewRow {
        revision: *revision,
        key: &write.key,
        deleted: value.is_none(),
        create_revision,
        // A tombstone is swept by itself, but a row that follows one must not keep it either.
        prev_revision: head.as_ref().map_or(0, |h| h.revision),
        expires_ms: ttl.map(|ttl| expires_ms(ttl, now_ms)),
        value: value.map_or(&[], |v| v),
    };
    log::append(connection, &row)?;
    events.push(Event {
        key: write.key.as_str().into(),
        value: value.cloned(),
        integrity: Integrity::Sound,
        mod_revision: *revision,
        create_revision,
    });
    Ok(Written::Done { revision: *revision })
}

fn log_held(connection: &Connection, held: &Held) -> rusqlite::Result<()> {
    if held.is_empty() {
        return Ok(());
    }
    // A commit that failed may have stood, and may have been unreadable then.
    let logged = log::newest(connection)?;
    for (key, row) in held.rows().iter().filter(|(_, row)| row.mod_revision > logged) {
        let row = NewRow {
            revision: row.mod_revision,
            key,
            deleted: false,
            create_revision: row.create_revision,
            prev_revision: row.logged_revision,
            expires_ms: None,
            value: &row.value,
        };
        log::append(connection, &row)?;
    }
    Ok(())
}

fn expires_ms(ttl: Duration, now_ms: i64) -> i64 {
    now_ms.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))
}

/// A time before all that was just written expires.
fn before_first_expiry_ms(writes: &[Write]) -> i64 {
    let ttls = writes.iter().filter_map(|write| match &write.op {
        Op::Put { ttl, .. } => *ttl,
        Op::Delete => None,
    });
    // The clock may have been set back since the times of the rows were taken; a second is more than a commit lasts.
    ttls.min().map_or(i64::MAX, |ttl| expires_ms(ttl, now_ms()).saturating_sub(1000))
}

fn wal_bytes(database: &Path) -> u64 {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    std::fs::metadata(name).map_or(0, |metadata| metadata.len())
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
