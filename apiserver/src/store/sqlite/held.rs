//! Writes that were acknowledged and are not in the log yet: the newest of each key.
//!
//! The writer thread adds to them and takes them away once they are logged; readers look here first and read the log then,
//! so that they find a write that moves from one to the other meanwhile. All of them are newer than all that is logged.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use super::super::contract::{Event, Integrity, KeyValue, Revision};

/// Past this many bytes of values writes are logged at once.
const MAX_BYTES: usize = 4 << 20;

#[derive(Clone, Debug)]
pub(super) struct HeldRow {
    pub(super) value: Bytes,
    pub(super) create_revision: Revision,
    pub(super) mod_revision: Revision,
    /// The newest logged row of the key, which this one supersedes.
    pub(super) logged_revision: Revision,
}

impl HeldRow {
    pub(super) fn key_value(&self, key: &Arc<str>) -> KeyValue {
        KeyValue {
            key: key.clone(),
            value: self.value.clone(),
            integrity: Integrity::Sound,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
        }
    }

    pub(super) fn event(&self, key: &Arc<str>) -> Event {
        Event {
            key: key.clone(),
            value: Some(self.value.clone()),
            integrity: Integrity::Sound,
            mod_revision: self.mod_revision,
            create_revision: self.create_revision,
        }
    }
}

pub(super) type HeldRows = BTreeMap<Arc<str>, HeldRow>;

#[derive(Default)]
pub(super) struct Held(RwLock<State>);

#[derive(Default)]
struct State {
    rows: HeldRows,
    bytes: usize,
    /// That of the newest of them.
    revision: Revision,
}

/// What was held at one moment.
#[derive(Default)]
pub(super) struct HeldSnapshot {
    /// Of the prefix that was asked for.
    pub(super) rows: HeldRows,
    /// The newest of all, 0 if nothing was held.
    pub(super) revision: Revision,
}

impl Held {
    pub(super) fn get(&self, key: &str) -> Option<KeyValue> {
        let state = self.0.read();
        state.rows.get_key_value(key).map(|(key, row)| row.key_value(key))
    }

    pub(super) fn row(&self, key: &str) -> Option<HeldRow> {
        self.0.read().rows.get(key).cloned()
    }

    pub(super) fn snapshot(&self, prefix: &str) -> HeldSnapshot {
        let state = self.0.read();
        let from = state.rows.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let within = from.take_while(|(key, _)| key.starts_with(prefix));
        let rows = within.map(|(key, row)| (key.clone(), row.clone())).collect();
        HeldSnapshot { rows, revision: state.revision }
    }

    pub(super) fn rows(&self) -> HeldRows {
        self.0.read().rows.clone()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.read().rows.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.0.read().bytes < MAX_BYTES
    }

    pub(super) fn put(&self, key: &str, row: HeldRow) {
        let mut state = self.0.write();
        state.revision = row.mod_revision;
        state.bytes += row.value.len();
        if let Some(old) = state.rows.insert(key.into(), row) {
            state.bytes -= old.value.len();
        }
    }

    /// To be called once all of them are logged.
    pub(super) fn clear(&self) {
        *self.0.write() = State::default();
    }

    /// They are logged all at once or not at all.
    pub(super) fn forget_if_logged(&self, logged: Revision) {
        let mut state = self.0.write();
        if state.revision <= logged {
            *state = State::default();
        }
    }
}
