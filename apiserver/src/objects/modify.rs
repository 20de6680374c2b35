//! Read, decide, compare and swap, again on conflict: the one way in which stored objects change.

use std::time::Instant;

use skiff_api::meta::Meta;
use skiff_api::{Kind, Object, Status, apply};

use super::{Objects, heartbeat};
use crate::call::key_of;
use crate::failure::store_failure;
use crate::store::{Durability, Expect, Op, Revision, Write, Written};

/// How often a writer may lose before it gives up: others made progress each time.
pub(crate) const MAX_ATTEMPTS: usize = 32;

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

/// What came of an attempt to write.
pub(crate) enum Swapped {
    Done(Outcome),
    /// Somebody else was faster; this is how it stands now.
    Lost(Current),
}

impl Objects {
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
        let mut current = self.current(kind, namespace, name).await?;
        for _ in 0..MAX_ATTEMPTS {
            let next = decide(&current)?;
            match self.swap(kind, namespace, name, current, next, dry_run).await? {
                Swapped::Done(outcome) => return Ok(outcome),
                Swapped::Lost(newer) => current = newer,
            }
        }
        Err(Status::modified(&kind.group, &kind.plural, name))
    }

    /// An object as it stands, in the version of `kind`.
    pub(crate) async fn current(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Current, Status> {
        self.lister.caches.wait_for_newest().await?;
        let gone = || Status::not_found(&kind.group, &kind.plural, name);
        let entry = self.lister.caches.of(kind)?.get(&key_of(kind, namespace, name))?.ok_or_else(gone)?;
        Ok(Current { object: self.parsed(kind, &entry).await?, revision: entry.mod_revision })
    }

    /// Writes what is to become of an object, if it is still as it was looked at. Whoever decides asynchronously calls this in a
    /// loop of its own, at most [`MAX_ATTEMPTS`] times.
    pub(crate) async fn swap(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        current: Current,
        next: Next,
        dry_run: bool,
    ) -> Result<Swapped, Status> {
        let done = |object, deleted| Ok(Swapped::Done(Outcome { object, deleted }));
        let (mut object, deleted) = match next {
            Next::Put(object) => (self.as_stored(kind, object).await?, false),
            Next::Delete(object) => (object, true),
        };
        if !deleted && apply::differ_in_times_only(&object, &current.object) {
            return done(with_revision(current.object, current.revision), false);
        }
        if dry_run {
            return done(with_revision(object, current.revision), deleted);
        }
        let (op, durability) = if deleted {
            (Op::Delete, Durability::Now)
        } else {
            let durability = heartbeat::durability(kind, &object, &current.object);
            object.meta_mut().remove("resourceVersion");
            let value = self.encode_stored(kind, &object).await?.into();
            (Op::Put { value, ttl: self.ttl_of(kind) }, durability)
        };
        let expect = Expect::ModRevision(current.revision);
        let write = Write { key: kind.key(namespace, name), expect, op, durability };
        let operation = if deleted { "delete" } else { "update" };
        match self.write(operation, kind, write).await? {
            Written::Done { revision } => done(with_revision(object, revision), deleted),
            Written::Mismatch { current: None } => Err(Status::not_found(&kind.group, &kind.plural, name)),
            Written::Mismatch { current: Some(kv) } => {
                let object = self.parsed_stored(kind, &kv).await?;
                Ok(Swapped::Lost(Current { object, revision: kv.mod_revision }))
            }
        }
    }

    /// Writes a new object; `None` if one of its name exists.
    pub(crate) async fn insert(
        &self,
        kind: &Kind,
        object: Object,
        dry_run: bool,
    ) -> Result<Option<Object>, Status> {
        let object = self.as_stored(kind, object).await?;
        let (namespace, name) = (object.namespace().to_owned(), object.name().to_owned());
        if dry_run {
            let exists = self.lister.caches.of(kind)?.get(&key_of(kind, &namespace, &name))?.is_some();
            return Ok((!exists).then_some(object));
        }
        let value = self.encode_stored(kind, &object).await?.into();
        let op = Op::Put { value, ttl: self.ttl_of(kind) };
        let key = kind.key(&namespace, &name);
        let write = Write { key, expect: Expect::Absent, op, durability: Durability::Now };
        match self.write("create", kind, write).await? {
            Written::Done { revision } => Ok(Some(with_revision(object, revision))),
            Written::Mismatch { .. } => Ok(None),
        }
    }

    async fn write(&self, operation: &'static str, kind: &Kind, write: Write) -> Result<Written, Status> {
        let started = Instant::now();
        let written = self.store.write(write).await;
        self.metrics.wrote(operation, kind, started.elapsed());
        written.map_err(|error| store_failure(&error))
    }

    fn ttl_of(&self, kind: &Kind) -> Option<std::time::Duration> {
        kind.traits.expires.then_some(self.event_ttl)
    }
}

fn with_revision(mut object: Object, revision: Revision) -> Object {
    object.set_meta("resourceVersion", revision.to_string());
    object
}
