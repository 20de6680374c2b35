//! Read, decide, compare and swap, again on conflict: the one way in which stored objects change.

use skiff_api::meta::Meta;
use skiff_api::{Kind, Object, Status, apply};

use super::{heartbeat, store_failure};
use crate::api::{Api, key_of};
use crate::store::{Durability, Expect, Op, Revision, Write, Written};

/// How often a writer may lose before it gives up: others made progress each time.
const MAX_ATTEMPTS: usize = 32;

/// An object as it stands, in the version of the request.
pub(crate) struct Current {
    pub(crate) object: Object,
    pub(crate) revision: Revision,
}

/// What is to become of it.
#[derive(Debug)]
pub(crate) enum Next {
    Put(Object),
    /// Remove it; the object is what is answered.
    Delete(Object),
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// With its new `resourceVersion`; of a deleted object the last state.
    pub(crate) object: Object,
    pub(crate) deleted: bool,
}

impl Api {
    /// Changes a stored object. `decide` may run several times, each time on a newer state, and must not keep
    /// anything of an earlier run.
    pub(crate) async fn modify(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        dry_run: bool,
        mut decide: impl FnMut(&Current) -> Result<Next, Status>,
    ) -> Result<Outcome, Status> {
        let gone = || Status::not_found(&kind.group, &kind.plural, name);
        self.caches.wait_for_newest().await?;
        let entry = self.caches.of(kind)?.get(&key_of(kind, namespace, name))?.ok_or_else(gone)?;
        let mut current = Current { object: self.parsed(kind, &entry)?, revision: entry.mod_revision };
        drop(entry);
        for _ in 0..MAX_ATTEMPTS {
            let next = decide(&current)?;
            let (object, deleted) = match next {
                Next::Put(object) => (self.as_stored(kind, object)?, false),
                Next::Delete(object) => (object, true),
            };
            if !deleted && apply::differ_in_times_only(&object, &current.object) {
                return Ok(Outcome { object: with_revision(current.object, current.revision), deleted });
            }
            if dry_run {
                return Ok(Outcome { object: with_revision(object, current.revision), deleted });
            }
            let (op, durability) = if deleted {
                (Op::Delete, Durability::Now)
            } else {
                let value = self.encode_stored(kind, &object)?.into();
                let durability = heartbeat::durability(kind, &object, &current.object);
                (Op::Put { value, ttl: self.ttl_of(kind) }, durability)
            };
            let expect = Expect::ModRevision(current.revision);
            let write = Write { key: kind.key(namespace, name), expect, op, durability };
            match self.store.write(write).await.map_err(|e| store_failure(&e))? {
                Written::Done { revision } => {
                    return Ok(Outcome { object: with_revision(object, revision), deleted });
                }
                Written::Mismatch { current: None } => return Err(gone()),
                Written::Mismatch { current: Some(kv) } => {
                    current = Current { object: self.parsed_stored(kind, &kv)?, revision: kv.mod_revision };
                }
            }
        }
        Err(Status::modified(&kind.group, &kind.plural, name))
    }

    /// Writes a new object; `None` if one of its name exists.
    pub(crate) async fn insert(
        &self,
        kind: &Kind,
        object: Object,
        dry_run: bool,
    ) -> Result<Option<Object>, Status> {
        let object = self.as_stored(kind, object)?;
        let (namespace, name) = (object.namespace().to_owned(), object.name().to_owned());
        if dry_run {
            let exists = self.caches.of(kind)?.get(&key_of(kind, &namespace, &name))?.is_some();
            return Ok((!exists).then_some(object));
        }
        let value = self.encode_stored(kind, &object)?.into();
        let op = Op::Put { value, ttl: self.ttl_of(kind) };
        let key = kind.key(&namespace, &name);
        let write = Write { key, expect: Expect::Absent, op, durability: Durability::Now };
        match self.store.write(write).await.map_err(|e| store_failure(&e))? {
            Written::Done { revision } => Ok(Some(with_revision(object, revision))),
            Written::Mismatch { .. } => Ok(None),
        }
    }

    fn ttl_of(&self, kind: &Kind) -> Option<std::time::Duration> {
        kind.traits.expires.then_some(self.event_ttl)
    }
}

fn with_revision(mut object: Object, revision: Revision) -> Object {
    object.set_meta("resourceVersion", revision.to_string());
    object
}
