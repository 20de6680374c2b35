//! The store: a flat, ordered map of keys with one global revision, as etcd v3 has it.
//!
//! # Guarantees
//! - Every successful write takes the next revision; it is durable before it is acknowledged, unless it asked for less
//!   ([`Durability`]).
//! - No revision is given out twice, not even after a crash that lost writes of that kind.
//! - A compare and its write are one atomic step.
//! - A range sees one revision, even page by page, until that revision is compacted.
//! - A value that is not what was written is handed out as [`Integrity::Damaged`], never as something else.
//! - A watch delivers every change after its revision once and in order, or ends with an error.
//!
//! # Caveats
//! A write whose acknowledgement is an error other than [`StoreError::Overloaded`] may have happened. Of several writes of
//! one key with [`Durability::Soon`] only the last may be kept: a watch that lags, or a range at an older revision, may miss
//! those in between.

mod contract;
mod etcd;
pub mod sqlite;

pub use contract::{
    Batch, Cause, Durability, Event, Expect, Integrity, KeyValue, MAX_VALUE_BYTES, Op, Range, Ranged,
    Revision, Sharing, Store, StoreError, Watch, Write, Written,
};
pub use etcd::EtcdStore;
pub use etcd::options::{EtcdOptions, EtcdTls};
pub use sqlite::{SqliteOptions, SqliteStore};

#[cfg(test)]
mod tests;
