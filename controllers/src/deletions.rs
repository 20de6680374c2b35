//! Who wants to know that objects are gone, of whatever kind. The garbage collector watches all kinds, and tells.

use std::sync::Arc;

use parking_lot::RwLock;
use skiff_client::ServedResource;

type Listener = Box<dyn Fn(&ServedResource, &str) + Send + Sync>;

/// Cloning shares it.
#[derive(Clone, Default)]
pub(crate) struct Deletions(Arc<RwLock<Vec<Listener>>>);

impl Deletions {
    /// Calls `listener` with the kind and namespace (`""` for cluster-scoped objects) of what is gone. It must be
    /// quick and must not block.
    pub(crate) fn on_deletion(&self, listener: impl Fn(&ServedResource, &str) + Send + Sync + 'static) {
        self.0.write().push(Box::new(listener));
    }

    pub(crate) fn tell(&self, kind: &ServedResource, namespace: &str) {
        self.0.read().iter().for_each(|listener| listener(kind, namespace));
    }
}
