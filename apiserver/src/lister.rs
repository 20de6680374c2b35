//! What there is, for whoever only reads: the kinds that are known, and their objects as the caches have them.

use std::sync::Arc;

use skiff_api::{Kind, Status};

use crate::cache::{Caches, Entry, ResourceCache};
use crate::live::{Live, Table};

/// Cloning shares it.
#[derive(Clone)]
pub(crate) struct Lister {
    pub(crate) live: Arc<Live>,
    pub(crate) caches: Arc<Caches>,
}

impl Lister {
    /// The kinds that there are now.
    pub(crate) fn table(&self) -> Arc<Table> {
        self.live.table()
    }

    /// # Errors
    /// 404 if there is no such kind.
    pub(crate) fn kind(&self, group: &str, version: &str, plural: &str) -> Result<Arc<Kind>, Status> {
        let table = self.live.table();
        table.kinds.by_resource(group, version, plural).cloned().ok_or_else(Status::no_such_path)
    }

    /// The cache of a kind, by its name.
    ///
    /// # Errors
    /// 404 if there is no such kind.
    pub(crate) fn cache(
        &self,
        group: &str,
        version: &str,
        plural: &str,
    ) -> Result<Arc<ResourceCache>, Status> {
        self.caches.of(&*self.kind(group, version, plural)?)
    }

    /// The version of a kind that rows of tables are printed of.
    pub(crate) fn printed_kind(&self, kind: &Arc<Kind>) -> Arc<Kind> {
        if kind.custom().is_some() {
            return kind.clone();
        }
        self.caches.of(kind).map_or_else(|_| kind.clone(), |cache| cache.kind().clone())
    }

    /// An object of the core group out of the cache.
    pub(crate) fn cached(&self, plural: &str, key: &str) -> Result<Option<Arc<Entry>>, Status> {
        Ok(self.cache("", "v1", plural)?.get(key)?)
    }

    /// The same, but asks again with everything applied that was acknowledged before, if it is not there.
    pub(crate) async fn cached_or_newest(
        &self,
        plural: &str,
        key: &str,
    ) -> Result<Option<Arc<Entry>>, Status> {
        if let Some(entry) = self.cached(plural, key)? {
            return Ok(Some(entry));
        }
        self.caches.wait_for_newest().await?;
        self.cached(plural, key)
    }
}
