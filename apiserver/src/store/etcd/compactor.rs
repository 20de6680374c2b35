//! Who compacts: of all servers over one etcd, whoever is first after each interval.
//!
//! Source: upstream's `compact.go`, whose key this is, so that stock servers take turns with this one. The version of the key is
//! the time they agree on: who finds it as it knew it counts it up and compacts what was the newest revision an interval ago; who
//! does not takes it over. A crashed server is replaced after at most two intervals.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::super::contract::Revision;
use super::connection::{Cluster, Fault, Repeat};
use super::wire::{
    COMPACT, CompactionRequest, CompactionResponse, Compare, PutRequest, RANGE, RangeRequest, RangeResponse,
    Request, TXN, Target, TxnRequest, TxnResponse,
};
use super::wire::{number, revision};

pub(super) const KEY: &[u8] = b"compact_rev_key";

/// What one server knows of it.
#[derive(Default)]
pub(super) struct Compactor {
    /// The version of the key.
    time: i64,
    /// The newest revision at that time.
    then: Revision,
}

impl Compactor {
    /// One turn; answers what was compacted, if it was this server's.
    pub(super) async fn turn(&mut self, cluster: &Cluster) -> Result<Option<Revision>, Fault> {
        let key = Bytes::from_static(KEY);
        let value = self.then.to_string().into();
        let request = TxnRequest {
            compare: vec![Compare::equal(key.clone(), Target::Version(self.time))],
            success: vec![Request::Put(PutRequest { key: key.clone(), value, lease: 0 }).into()],
            failure: vec![Request::Range(RangeRequest { key, ..RangeRequest::default() }).into()],
        };
        let response: TxnResponse = cluster.call(TXN, request, Repeat::No).await?;
        let newest = revision(response.header.as_ref());
        let before = std::mem::replace(&mut self.then, newest);
        if !response.succeeded {
            self.time = response.into_found().map_or(0, |kv| kv.version);
            return Ok(None);
        }
        self.time += 1;
        if before == 0 {
            // This server has only begun, and does not know what is old.
            return Ok(None);
        }
        compact(cluster, before).await.map(|()| Some(before))
    }

    pub(super) async fn run(
        mut self,
        cluster: Arc<Cluster>,
        every: Duration,
        compacted: Arc<AtomicU64>,
        closed: CancellationToken,
    ) {
        while closed.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            let turn = closed.run_until_cancelled(self.turn(&cluster)).await;
            match turn {
                None | Some(Ok(None)) => {}
                Some(Ok(Some(revision))) => {
                    compacted.fetch_max(revision, Ordering::AcqRel);
                    tracing::debug!(revision, "compacted etcd");
                }
                Some(Err(fault)) => {
                    tracing::warn!(
                        error = &fault as &dyn std::error::Error,
                        "cannot compact etcd; tried again in a while"
                    );
                }
            }
        }
    }
}

/// # Errors
/// What is compacted already is no error.
pub(super) async fn compact(cluster: &Cluster, at: Revision) -> Result<(), Fault> {
    let request = CompactionRequest { revision: number(at) };
    match cluster.call::<_, CompactionResponse>(COMPACT, request, Repeat::Harmless).await {
        Ok(_) | Err(Fault::Compacted) => Ok(()),
        Err(fault) => Err(fault),
    }
}

/// What the servers have compacted, as far as they have told each other.
pub(super) async fn compacted(cluster: &Cluster) -> Result<Revision, Fault> {
    let request = RangeRequest { key: Bytes::from_static(KEY), ..RangeRequest::default() };
    let found: RangeResponse = cluster.call(RANGE, request, Repeat::Harmless).await?;
    let text = found.kvs.first().and_then(|kv| std::str::from_utf8(&kv.value).ok());
    Ok(text.and_then(|text| text.parse().ok()).unwrap_or(0))
}
