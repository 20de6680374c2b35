//! What every store does, and what it is told and tells.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use thiserror::Error;
use tokio::sync::mpsc;

/// The number of a change; the first write of an empty store takes 2, as with etcd.
pub type Revision = u64;

/// The largest value that is stored: etcd's own default limit for a request.
pub const MAX_VALUE_BYTES: usize = 1_572_864;

/// Whether a value is what was written, by its checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Integrity {
    #[default]
    Sound,
    Damaged,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Arc<str>,
    pub value: Bytes,
    pub integrity: Integrity,
    pub create_revision: Revision,
    pub mod_revision: Revision,
}

/// What must hold of a key for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Any,
    Absent,
    /// The key exists and its last change is this one.
    ModRevision(Revision),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// With a `ttl` the key is deleted that long after the write, unless it is written again.
    Put { value: Bytes, ttl: Option<Duration> },
    /// Deleting an absent key is no change and takes no revision.
    Delete,
}

/// When a write outlives a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Before it is acknowledged.
    #[default]
    Now,
    /// The same; but where the disk does not take it, as with `Soon`. For what is said of a disk that is full.
    Preferably,
    /// With the next write that is durable, within a minute, or at a clean end. For what is soon written again and does no
    /// harm where its last state is missing, such as a heartbeat; the key must exist.
    Soon,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub key: String,
    pub expect: Expect,
    pub op: Op,
    pub durability: Durability,
}

impl Write {
    pub fn create(key: impl Into<String>, value: impl Into<Bytes>) -> Write {
        Write::put(key, value, Expect::Absent)
    }

    pub fn put(key: impl Into<String>, value: impl Into<Bytes>, expect: Expect) -> Write {
        let op = Op::Put { value: value.into(), ttl: None };
        Write { key: key.into(), expect, op, durability: Durability::Now }
    }

    pub fn delete(key: impl Into<String>, expect: Expect) -> Write {
        Write { key: key.into(), expect, op: Op::Delete, durability: Durability::Now }
    }

    pub fn with_durability(self, durability: Durability) -> Write {
        Write { durability, ..self }
    }

    pub fn with_ttl(mut self, after: Duration) -> Write {
        if let Op::Put { ttl, .. } = &mut self.op {
            *ttl = Some(after);
        }
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// The store's revision after the write.
    Done { revision: Revision },
    /// The expectation did not hold; what stands instead.
    Mismatch { current: Option<KeyValue> },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub prefix: String,
    /// Only keys at or after this one.
    pub start: Option<String>,
    /// The newest if unset.
    pub revision: Option<Revision>,
    pub limit: Option<usize>,
}

impl Range {
    pub fn prefix(prefix: impl Into<String>) -> Range {
        Range { prefix: prefix.into(), ..Range::default() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranged {
    /// The revision that was read.
    pub revision: Revision,
    /// In the order of their keys.
    pub items: Vec<KeyValue>,
    /// Whether `limit` cut the range short.
    pub more: bool,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub key: Arc<str>,
    /// `None` where the key was deleted or expired.
    pub value: Option<Bytes>,
    pub integrity: Integrity,
    pub mod_revision: Revision,
    pub create_revision: Revision,
}

/// Changes in order, and how far they reach: there is no other change of the prefix up to `revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub revision: Revision,
    pub events: Vec<Event>,
}

/// A running watch. Dropping it ends the watch.
pub struct Watch {
    pub(crate) batches: mpsc::Receiver<Result<Batch, StoreError>>,
}

impl Watch {
    /// The next batch; `None` once the store is closed or after an error was returned. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Batch, StoreError>> {
        self.batches.recv().await
    }
}

/// What a failure came from.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

#[derive(Clone, Debug, Error)]
pub enum StoreError {
    #[error("revision {requested} has been compacted; the oldest that can be read is {compacted}")]
    Compacted { requested: Revision, compacted: Revision },
    #[error("revision {requested} is in the future; the newest is {current}")]
    Future { requested: Revision, current: Revision },
    #[error("value of {key} has {bytes} bytes, more than {MAX_VALUE_BYTES}")]
    TooLarge { key: String, bytes: usize },
    #[error(
        "database {path} is corrupt; restore it from a backup, or move it and the record of its revision beside it away to start empty"
    )]
    Corrupt { path: PathBuf, source: Arc<rusqlite::Error> },
    #[error(
        "database {path} cannot be read from its disk, and may be sound: look at the disk, its cable and the kernel's log, and \
         leave the files where they are"
    )]
    Unreadable { path: PathBuf, source: Arc<std::io::Error> },
    #[error("{remedy}")]
    Full { remedy: &'static str, source: Cause },
    #[error(
        "database {path} is at revision {found} and was at {recorded} before: it was emptied, or replaced by an older copy; \
         restore a newer one, or remove {record} to go on with what there is"
    )]
    RolledBack { path: PathBuf, record: PathBuf, found: Revision, recorded: Revision },
    #[error("database {path} was written by a newer version (schema {found}, this program knows {known})")]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("database {path} is in use by another process")]
    InUse { path: PathBuf },
    #[error("cannot open database {path}")]
    Open { path: PathBuf, source: Arc<rusqlite::Error> },
    #[error("cannot prepare {path} for the database")]
    Directory { path: PathBuf, source: Arc<std::io::Error> },
    #[error("database failed to {operation}")]
    Failed { operation: &'static str, source: Arc<rusqlite::Error> },
    #[error("datastore endpoint {endpoint:?} cannot be used: {reason}")]
    Endpoint { endpoint: String, reason: String },
    #[error("etcd at {endpoint} is version {version}; 3.4.31, 3.5.13 or a newer one is needed")]
    TooOld { endpoint: String, version: String },
    #[error(
        "etcd at {endpoints} cannot be reached, has no leader, or hangs up; see that most of its members run, and that they accept \
         the certificate of this server"
    )]
    Away { endpoints: String, source: Cause },
    #[error("etcd at {endpoints} did not {operation} in time; a write may have happened")]
    TimedOut { endpoints: String, operation: &'static str },
    #[error(
        "etcd at {endpoints} refuses this server, or is refused by it: look at the datastore's CA, certificate and key, and at the \
         rights of the certificate's user"
    )]
    Refused { endpoints: String, source: Cause },
    #[error("etcd failed to {operation}")]
    Etcd { operation: &'static str, source: Cause },
    #[error("the store has more writes waiting than it can take")]
    Overloaded,
    #[error("the store is closed")]
    Closed,
}

/// Who writes a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// This server alone, for as long as it has it open.
    Exclusive,
    /// Other servers as well, at any time.
    Shared,
}

/// A store. Implementations are cheap to share behind an `Arc`.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest revision; every write acknowledged before the call is at or below it.
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// The oldest revision that can still be read.
    async fn compacted(&self) -> Result<Revision, StoreError>;

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError>;

    /// # Errors
    /// [`StoreError::Compacted`] and [`StoreError::Future`] for a revision that cannot be read.
    async fn range(&self, range: Range) -> Result<Ranged, StoreError>;

    async fn write(&self, write: Write) -> Result<Written, StoreError>;

    /// Every change after revision `after` of the keys that start with `prefix`.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if a change after `after` may be gone; also later, as the watch's last item.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;

    /// Forgets what was superseded at or before `revision` and gives its space back.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    fn sharing(&self) -> Sharing {
        Sharing::Exclusive
    }

    /// What the data takes on disk, in bytes.
    async fn size_bytes(&self) -> Result<u64, StoreError>;

    /// Finishes the writes that wait and closes; later calls fail with [`StoreError::Closed`].
    async fn close(&self);
}
