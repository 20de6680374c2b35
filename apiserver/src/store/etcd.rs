//! The store on etcd: for several servers over one cluster of it.
//!
//! ```text
//!  write() ──places──▶ one transaction: compare, put or delete, or read what stands instead
//!  get(), range() ───▶ linearizable ranges, in pages of one revision
//!  revision() ───────▶ barrier: one linearizable read for all who asked before it began ──▶ wanted
//!  watch() ──────────▶ follower: a stream that is taken up again, and asks for progress up to what is wanted
//!  compactor ────────▶ in turns with all other servers
//! ```
//!
//! # Guarantees
//! Those of the store. Every write is durable on a majority of members before it is acknowledged, whatever it asked for. etcd checks
//! what it stores itself, so that every value is sound.
//!
//! # Caveats
//! [`Store::compacted`] knows what the servers have compacted, not what an operator did by hand; reads of what is gone fail all the
//! same. A time to live is rounded up to seconds, and is up to a minute longer than it was asked for (`leases.rs`).

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch as wanting};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::contract::{
    Expect, Integrity, KeyValue, MAX_VALUE_BYTES, Op, Range, Ranged, Revision, Sharing, Store, StoreError,
    Watch, Write, Written,
};

mod barrier;
mod compactor;
mod connection;
mod keys;
mod leases;
pub(super) mod options;
mod watch;
mod wire;

use barrier::Barrier;
use compactor::Compactor;
use connection::{Cluster, Fault, Repeat};
use keys::{end_of, from_etcd, to_etcd};
use leases::Leases;
use options::EtcdOptions;
use wire::{
    Compare, DeleteRangeRequest, PutRequest, RANGE, RangeRequest, RangeResponse, Request, STATUS,
    StatusRequest, StatusResponse, TXN, Target, TxnRequest, TxnResponse, number, revision,
};

/// How many writes may be on their way, and how long one waits for a place among them.
const MAX_WRITES: usize = 1024;
const PLACE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the store's end waits for them.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How many keys are asked for at once.
const PAGE_KEYS: usize = 500;
const WATCH_BATCHES: usize = 16;
/// The first versions of etcd whose reports of progress are in order with events, as upstream has them; newer minor versions all are.
const OLDEST: [(u64, u64, u64); 2] = [(3, 4, 31), (3, 5, 13)];

pub struct EtcdStore {
    cluster: Arc<Cluster>,
    barrier: Barrier,
    /// The newest revision that anybody waits for.
    wanted: Arc<wanting::Sender<Revision>>,
    leases: Leases,
    /// What is known to be compacted.
    compacted: Arc<AtomicU64>,
    places: Semaphore,
    writes: TaskTracker,
    /// Where what goes on by itself runs.
    runtime: Handle,
    closed: CancellationToken,
}

impl EtcdStore {
    /// Speaks with the members, and takes part in compacting. Must be called within a tokio runtime, which has to outlive all others
    /// that the store is called from.
    ///
    /// # Errors
    /// [`StoreError::Endpoint`] if the options are wrong, [`StoreError::Away`] or [`StoreError::Refused`] if no member answers,
    /// [`StoreError::TooOld`] if one is.
    pub async fn open(options: EtcdOptions) -> Result<EtcdStore, StoreError> {
        let cluster = Arc::new(Cluster::new(&options)?);
        let versions =
            cluster.versions().await.map_err(|fault| cluster.error("ask for the version", fault))?;
        if let Some((endpoint, version)) = versions.into_iter().find(|(_, version)| is_too_old(version)) {
            return Err(StoreError::TooOld { endpoint, version });
        }
        let (runtime, closed, compacted) = (Handle::current(), CancellationToken::new(), Arc::default());
        if !options.compaction_interval.is_zero() {
            let (cluster, compacted, closed) = (cluster.clone(), Arc::clone(&compacted), closed.clone());
            runtime.spawn(Compactor::default().run(cluster, options.compaction_interval, compacted, closed));
        }
        Ok(EtcdStore {
            cluster,
            barrier: Barrier::new(runtime.clone()),
            wanted: Arc::new(wanting::Sender::new(0)),
            leases: Leases::default(),
            compacted,
            places: Semaphore::new(MAX_WRITES),
            writes: TaskTracker::new(),
            runtime,
            closed,
        })
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.closed.is_cancelled() { Err(StoreError::Closed) } else { Ok(()) }
    }

    async fn page(&self, request: RangeRequest, at: Option<Revision>) -> Result<RangeResponse, StoreError> {
        let mut request = request;
        loop {
            match self.cluster.call(RANGE, request.clone(), Repeat::Harmless).await {
                Ok(page) => return Ok(page),
                // Fewer of them fit; one alone always does.
                Err(Fault::TooLong) if request.limit > 1 => request.limit = (request.limit / 8).max(1),
                Err(fault) => return Err(self.range_error(fault, at).await),
            }
        }
    }

    async fn range_error(&self, fault: Fault, at: Option<Revision>) -> StoreError {
        match (fault, at) {
            (Fault::Compacted, Some(requested)) => {
                let compacted = self.compacted.load(Ordering::Acquire).max(requested + 1);
                StoreError::Compacted { requested, compacted }
            }
            (Fault::Future, Some(requested)) => match watch::newest(&self.cluster).await {
                Ok(current) => StoreError::Future { requested, current },
                Err(fault) => self.cluster.error("read the revision", fault),
            },
            (fault, _) => self.cluster.error("read a range", fault),
        }
    }

    /// The transaction of a write, once it has its lease.
    async fn transact(&self, write: &Write) -> Result<Written, Fault> {
        let key = Bytes::from(to_etcd(&write.key).into_owned());
        let lease = match &write.op {
            Op::Put { ttl: Some(ttl), .. } => self.leases.lease(&self.cluster, *ttl).await?,
            _ => 0,
        };
        let change = match &write.op {
            Op::Put { value, .. } => {
                Request::Put(PutRequest { key: key.clone(), value: value.clone(), lease })
            }
            Op::Delete => Request::DeleteRange(DeleteRangeRequest { key: key.clone() }),
        };
        let compare = match write.expect {
            Expect::Any => None,
            Expect::Absent => Some(Target::CreateRevision(0)),
            Expect::ModRevision(at) => Some(Target::ModRevision(number(at))),
        };
        let request = TxnRequest {
            compare: compare.map(|value| Compare::equal(key.clone(), value)).into_iter().collect(),
            success: vec![change.into()],
            failure: vec![Request::Range(RangeRequest { key, ..RangeRequest::default() }).into()],
        };
        match self.cluster.call::<_, TxnResponse>(TXN, request, Repeat::No).await {
            Ok(response) if response.succeeded => {
                Ok(Written::Done { revision: revision(response.header.as_ref()) })
            }
            Ok(response) => Ok(Written::Mismatch { current: response.into_found().map(key_value) }),
            Err(fault) => {
                if matches!(fault, Fault::NoLease) {
                    self.leases.forget(lease).await;
                }
                Err(fault)
            }
        }
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn revision(&self) -> Result<Revision, StoreError> {
        self.check_open()?;
        let (cluster, wanted) = (self.cluster.clone(), self.wanted.clone());
        let read = move || {
            let (cluster, wanted) = (cluster.clone(), wanted.clone());
            async move {
                let newest = watch::newest(&cluster).await;
                let newest = newest.map_err(|fault| cluster.error("read the revision", fault))?;
                wanted.send_if_modified(|wanted| newest > std::mem::replace(wanted, newest.max(*wanted)));
                Ok(newest)
            }
        };
        self.barrier.pass(read).await
    }

    async fn compacted(&self) -> Result<Revision, StoreError> {
        self.check_open()?;
        let told = compactor::compacted(&self.cluster).await;
        let told = told.map_err(|fault| self.cluster.error("read what is compacted", fault))?;
        // Nothing is before the first revision.
        Ok(self.compacted.fetch_max(told, Ordering::AcqRel).max(told).max(1))
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.check_open()?;
        let key = Bytes::from(to_etcd(key).into_owned());
        let request = RangeRequest { key, ..RangeRequest::default() };
        let found: Result<RangeResponse, _> = self.cluster.call(RANGE, request, Repeat::Harmless).await;
        let found = found.map_err(|fault| self.cluster.error("read a key", fault))?;
        Ok(found.kvs.into_iter().next().map(key_value))
    }

    async fn range(&self, range: Range) -> Result<Ranged, StoreError> {
        self.check_open()?;
        let prefix = to_etcd(&range.prefix);
        let end = Bytes::from(end_of(prefix.as_bytes()));
        let start = range.start.as_deref().map(to_etcd).filter(|start| **start > *prefix);
        let mut key = Bytes::from(start.unwrap_or(Cow::Borrowed(&*prefix)).into_owned());
        let mut at = range.revision;
        let mut items = Vec::new();
        loop {
            let left = range.limit.map(|limit| limit - items.len());
            let limit = left.unwrap_or(PAGE_KEYS).min(PAGE_KEYS);
            let request = RangeRequest {
                key: key.clone(),
                range_end: end.clone(),
                limit: i64::try_from(limit).unwrap_or(i64::MAX),
                revision: at.map_or(0, number),
                keys_only: false,
            };
            let page = self.page(request, at).await?;
            // What follows is of the same revision as what was read first.
            let at = *at.get_or_insert_with(|| revision(page.header.as_ref()));
            let Some(last) = page.kvs.last() else {
                return Ok(Ranged { revision: at, items, more: false });
            };
            key = [&last.key[..], b"\0"].concat().into();
            items.extend(page.kvs.into_iter().map(key_value));
            let is_enough = range.limit.is_some_and(|limit| items.len() >= limit);
            if !page.more || is_enough {
                return Ok(Ranged { revision: at, items, more: page.more });
            }
        }
    }

    async fn write(&self, write: Write) -> Result<Written, StoreError> {
        self.check_open()?;
        let bytes = match &write.op {
            Op::Put { value, .. } => value.len(),
            Op::Delete => 0,
        };
        if bytes > MAX_VALUE_BYTES {
            return Err(StoreError::TooLarge { bytes, key: write.key });
        }
        let _write = self.writes.token();
        let place = tokio::time::timeout(PLACE_TIMEOUT, self.places.acquire()).await;
        let _place = place.map_err(|_| StoreError::Overloaded)?.map_err(|_| StoreError::Closed)?;
        let mut written = self.transact(&write).await;
        if matches!(written, Err(Fault::NoLease)) {
            // It was refused as a whole; the next lease is a new one.
            written = self.transact(&write).await;
        }
        written.map_err(|fault| match fault {
            Fault::TooLarge => StoreError::TooLarge { key: write.key, bytes },
            fault => self.cluster.error("write", fault),
        })
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.check_open()?;
        let prefix = Bytes::from(to_etcd(prefix).into_owned());
        let readable = watch::readable(&self.cluster, &prefix, after).await;
        readable.map_err(|fault| self.cluster.error("begin a watch", fault))??;
        let (out, batches) = mpsc::channel(WATCH_BATCHES);
        let follower = watch::Follower {
            cluster: self.cluster.clone(),
            prefix,
            reached: after,
            wanted: self.wanted.subscribe(),
            out,
            closed: self.closed.clone(),
        };
        self.runtime.spawn(follower.run());
        Ok(Watch { batches })
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.check_open()?;
        let done = compactor::compact(&self.cluster, revision).await;
        done.map_err(|fault| self.cluster.error("compact", fault))?;
        self.compacted.fetch_max(revision, Ordering::AcqRel);
        Ok(())
    }

    async fn size_bytes(&self) -> Result<u64, StoreError> {
        self.check_open()?;
        let status: Result<StatusResponse, _> =
            self.cluster.call(STATUS, StatusRequest {}, Repeat::Harmless).await;
        let status = status.map_err(|fault| self.cluster.error("ask for the size", fault))?;
        Ok(status.size_bytes.unsigned_abs())
    }

    fn sharing(&self) -> Sharing {
        Sharing::Shared
    }

    async fn close(&self) {
        self.closed.cancel();
        self.writes.close();
        if tokio::time::timeout(CLOSE_TIMEOUT, self.writes.wait()).await.is_err() {
            tracing::warn!("writes were still on their way to etcd when the server ended");
        }
    }
}

fn key_value(kv: wire::KeyValue) -> KeyValue {
    KeyValue {
        key: from_etcd(&String::from_utf8_lossy(&kv.key)).into(),
        value: kv.value,
        integrity: Integrity::Sound,
        create_revision: kv.create_revision.unsigned_abs(),
        mod_revision: kv.mod_revision.unsigned_abs(),
    }
}

/// etcd counts revisions from 1, in signed numbers.
fn is_too_old(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let version = (next(), next(), next());
    let same = OLDEST.iter().find(|(major, minor, _)| (*major, *minor) == (version.0, version.1));
    match same {
        Some(oldest) => version < *oldest,
        None => version < OLDEST[0],
    }
}

#[cfg(test)]
mod tests;
