//! The table of kinds, and how another takes its place.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use skiff_api::kinds::compare_versions;
use skiff_api::{Kind, Kinds, Status};
use skiff_webhook::conversion::Converter;
use tokio::sync::Notify;

use crate::aggregation::Aggregated;
use crate::discovery::{Discovery, MergedV2};

/// Everything that depends on which kinds there are.
pub(crate) struct Table {
    pub(crate) kinds: Arc<Kinds>,
    pub(crate) discovery: Arc<Discovery>,
    /// What others serve.
    pub(crate) aggregated: Arc<Aggregated>,
    /// OpenAPI of version 2 of this server and of the others, once somebody has asked.
    pub(crate) merged: MergedV2,
    /// The definitions whose objects may not be created any more, because they go themselves.
    pub(super) terminating: BTreeSet<Arc<str>>,
    /// Who converts the objects of definitions that say so.
    converters: BTreeMap<Arc<str>, Arc<Converter>>,
}

impl Table {
    /// Who converts the objects of a kind.
    pub(crate) fn converter(&self, kind: &Kind) -> Result<Arc<Converter>, Status> {
        let converter = kind.custom().and_then(|custom| self.converters.get(&custom.definition));
        let why = || {
            format!(
                "nobody converts objects of {}.{}: say clientConfig in its definition",
                kind.plural, kind.group
            )
        };
        converter.cloned().ok_or_else(|| Status::internal(why()))
    }

    /// Whether objects of a kind may still be created.
    pub(crate) fn is_terminating(&self, kind: &Kind) -> bool {
        kind.custom().is_some_and(|custom| self.terminating.contains(&custom.definition))
    }
}

pub(crate) struct Live {
    builtin: Kinds,
    table: ArcSwap<Table>,
    /// Held while a table is made of the one before.
    publishing: Mutex<()>,
    /// Rung when there are other kinds.
    published: Notify,
    /// Where the API is reached from outside, at the moment.
    address: Arc<RwLock<SocketAddr>>,
}

impl Live {
    pub(crate) fn new(builtin: Kinds, address: Arc<RwLock<SocketAddr>>) -> Live {
        let discovery = Arc::new(Discovery::new(&builtin, address.clone(), None));
        let (terminating, converters) = (BTreeSet::new(), BTreeMap::new());
        let kinds = Arc::new(builtin.clone());
        let (aggregated, merged) = (Arc::default(), MergedV2::default());
        let table = Table { kinds, discovery, aggregated, merged, terminating, converters };
        Live {
            builtin,
            table: ArcSwap::from_pointee(table),
            publishing: Mutex::default(),
            published: Notify::new(),
            address,
        }
    }

    /// What is known now.
    pub(crate) fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Publishes other custom kinds. `converters` are those of definitions, by their names; `terminating` are definitions that go.
    pub(super) fn publish(
        &self,
        mut custom: Vec<Arc<Kind>>,
        converters: BTreeMap<Arc<str>, Arc<Converter>>,
        terminating: BTreeSet<Arc<str>>,
    ) {
        let mut kinds = self.builtin.clone();
        custom.sort_by(|a, b| {
            let versions = || compare_versions(&a.version, &b.version);
            a.group.cmp(&b.group).then_with(versions).then_with(|| a.plural.cmp(&b.plural))
        });
        custom.into_iter().for_each(|kind| kinds.insert(kind));
        let _alone = self.publishing.lock();
        let before = self.table();
        let discovery = Arc::new(Discovery::new(&kinds, self.address.clone(), Some(&before.discovery)));
        let (kinds, aggregated) = (Arc::new(kinds), before.aggregated.clone());
        let merged = MergedV2::default();
        let table = Table { kinds, discovery, aggregated, merged, terminating, converters };
        self.table.store(Arc::new(table));
        self.published.notify_one();
    }

    /// Publishes what others serve, beside the kinds that there are.
    pub(crate) fn publish_aggregated(&self, aggregated: Aggregated) {
        let _alone = self.publishing.lock();
        let before = self.table();
        self.table.store(Arc::new(Table {
            kinds: before.kinds.clone(),
            discovery: before.discovery.clone(),
            aggregated: Arc::new(aggregated),
            merged: MergedV2::default(),
            terminating: before.terminating.clone(),
            converters: before.converters.clone(),
        }));
    }

    pub(super) fn is_builtin(&self, kind: &Kind) -> bool {
        self.builtin.iter().any(|known| known.group == kind.group && known.plural == kind.plural)
    }

    /// Waits until there are other kinds than at the last time. One waits at a time.
    pub(crate) async fn published(&self) {
        self.published.notified().await;
    }
}
