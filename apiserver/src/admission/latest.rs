//! What is made of all objects of some kinds, and made again when they have changed, which the first request after that notices.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use skiff_api::{Object, Status};

use crate::cache::ResourceCache;
use crate::lister::Lister;
use crate::store::Revision;

/// Of kinds of the group for admission.
pub(super) struct Latest<T> {
    plurals: &'static [&'static str],
    /// Makes it of the objects of each kind, and of what there was before.
    make: fn(&[Vec<Object>], &T) -> T,
    current: ArcSwap<Made<T>>,
    /// Held while it is made: one request does, the others wait for it.
    turn: Mutex<()>,
}

/// What was made, as of a revision of each kind.
pub(super) struct Made<T> {
    revisions: Vec<Revision>,
    pub(super) value: T,
}

const GROUP: &str = "admissionregistration.k8s.io";

impl<T> Latest<T> {
    pub(super) fn new(
        plurals: &'static [&'static str],
        first: T,
        make: fn(&[Vec<Object>], &T) -> T,
    ) -> Latest<T> {
        let current = ArcSwap::from_pointee(Made { revisions: Vec::new(), value: first });
        Latest { plurals, make, current, turn: Mutex::default() }
    }

    pub(super) fn current(&self, lister: &Lister) -> Result<Arc<Made<T>>, Status> {
        let cache =
            |plural: &&str| -> Result<Arc<ResourceCache>, Status> { lister.cache(GROUP, "v1", plural) };
        let caches = self.plurals.iter().map(cache).collect::<Result<Vec<_>, Status>>()?;
        let is_current = |made: &Made<T>| {
            made.revisions.len() == caches.len()
                && caches.iter().zip(&made.revisions).all(|(cache, made)| cache.revision() == *made)
        };
        let current = self.current.load_full();
        if is_current(&current) {
            return Ok(current);
        }
        let _turn = self.turn.lock();
        let last = self.current.load_full();
        if is_current(&last) {
            return Ok(last);
        }
        let (mut revisions, mut all) = (Vec::new(), Vec::new());
        for cache in caches {
            // With one that cannot be read, nobody can say what is admitted.
            let (revision, objects) = cache.snapshot()?;
            revisions.push(revision);
            all.push(objects.values().map(|entry| entry.parse()).collect());
        }
        let made = Arc::new(Made { revisions, value: (self.make)(&all, &last.value) });
        self.current.store(made.clone());
        Ok(made)
    }
}
