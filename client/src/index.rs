//! Objects found by something they say, such as the node that a pod is on, without a look at all the others.
//!
//! # Guarantees
//! - When a listener of the informer runs, the index already shows the change that it is told of.
//! - An entry costs one pointer: an object of an index is told apart by its address, not by its name.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use parking_lot::RwLock;

/// What an informer's objects are found by. Made by [`crate::Informer::index`]; cloning shares it.
pub struct Index<K, V> {
    inner: Arc<Inner<K, V>>,
}

impl<K, V> Clone for Index<K, V> {
    fn clone(&self) -> Self {
        Index { inner: self.inner.clone() }
    }
}

/// What an object says.
type Values<K, V> = dyn Fn(&K) -> Vec<V> + Send + Sync;

struct Inner<K, V> {
    values: Box<Values<K, V>>,
    found: RwLock<HashMap<V, HashSet<ByAddress<K>>>>,
}

/// An object that is held, so that no other can have its address.
struct ByAddress<K>(Arc<K>);

impl<K> PartialEq for ByAddress<K> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<K> Eq for ByAddress<K> {}

impl<K> Hash for ByAddress<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl<K, V: Eq + Hash> Index<K, V> {
    /// `values` must answer the same for the same object every time.
    pub(crate) fn new(values: impl Fn(&K) -> Vec<V> + Send + Sync + 'static) -> Self {
        Index { inner: Arc::new(Inner { values: Box::new(values), found: RwLock::default() }) }
    }

    /// The objects that say `value`, in no order.
    pub fn get(&self, value: &V) -> Vec<Arc<K>> {
        self.filter(value, |_| true)
    }

    /// Those of the objects that say `value` that are to be kept.
    pub fn filter(&self, value: &V, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let found = self.inner.found.read();
        let objects = found.get(value).into_iter().flatten();
        objects.filter(|object| keep(&object.0)).map(|object| object.0.clone()).collect()
    }

    /// How many objects say `value`.
    pub fn count(&self, value: &V) -> usize {
        self.inner.found.read().get(value).map_or(0, HashSet::len)
    }

    /// Whether nothing is left of any object.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.inner.found.read().is_empty()
    }

    /// Puts one version of an object in the place of another. Both must be the very ones that the copy held.
    pub(crate) fn replace(&self, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        let mut found = self.inner.found.write();
        // First what is added: a value that stays keeps its set.
        if let Some(new) = new {
            for value in (self.inner.values)(new) {
                found.entry(value).or_default().insert(ByAddress(new.clone()));
            }
        }
        let Some(old) = old else { return };
        for value in (self.inner.values)(old) {
            let Some(objects) = found.get_mut(&value) else { continue };
            objects.remove(&ByAddress(old.clone()));
            if objects.is_empty() {
                found.remove(&value);
            }
        }
    }
}
