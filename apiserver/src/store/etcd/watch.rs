//! One watch: a stream from one member, taken up at another where it breaks.
//!
//! ```text
//!            ┌──────── broke, after a pause ────────┐
//!            ▼                                      │
//!  is `reached` still there? ─▶ stream from `reached` + 1 ─▶ batches, in order
//!            │                       ▲
//!            └─ compacted, future    └─ "how far are you?", when somebody waits for more than was reached
//! ```
//!
//! # Guarantees
//! A batch reaches no further than what was delivered: the revision of its last event, or that of a report of progress, which etcd
//! sends in order with events. Changes of one revision are delivered together, also where etcd sends them in pieces, so that none is
//! delivered twice when a stream breaks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::super::contract::{Batch, Event, Integrity, Revision, StoreError};
use super::connection::{Cluster, Fault, Repeat};
use super::keys::{end_of, from_etcd};
use super::wire::{
    self, Asked, DELETED, RANGE, RangeRequest, RangeResponse, WatchCreateRequest, WatchProgressRequest,
    WatchRequest, WatchResponse,
};
use super::wire::{number, revision};

/// Events are given so long to come by themselves before progress is asked for.
const ASK_AFTER: Duration = Duration::from_millis(2);
/// A member that still catches up does not answer.
const ASK_AGAIN: Duration = Duration::from_millis(25);
/// And now and then when nobody waits: what a watch has reached is not compacted under it.
const ASK_IDLE: Duration = Duration::from_secs(60);
const RESUME_DELAY_MIN: Duration = Duration::from_millis(50);
const RESUME_DELAY_MAX: Duration = Duration::from_secs(1);

pub(super) struct Follower {
    pub(super) cluster: Arc<Cluster>,
    /// As it lies in etcd.
    pub(super) prefix: Bytes,
    pub(super) reached: Revision,
    /// What somebody waits for.
    pub(super) wanted: watch::Receiver<Revision>,
    pub(super) out: mpsc::Sender<Result<Batch, StoreError>>,
    pub(super) closed: CancellationToken,
}

/// Why a stream came to its end.
enum Ended {
    /// Nobody reads any more.
    Unwanted,
    Broken(Fault),
    /// It cannot be taken up.
    Failed(StoreError),
}

impl From<Fault> for Ended {
    fn from(fault: Fault) -> Self {
        Ended::Broken(fault)
    }
}

impl Follower {
    pub(super) async fn run(mut self) {
        let (closed, out) = (self.closed.clone(), self.out.clone());
        // Both only wait; what `follow` holds is of no use once one of them is done.
        tokio::select! {
            () = closed.cancelled() => {}
            () = out.closed() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&mut self) {
        let mut delay = RESUME_DELAY_MIN;
        let mut is_told = false;
        loop {
            let before = self.reached;
            match self.follow_one().await {
                Ended::Unwanted => return,
                Ended::Failed(error) => {
                    let _ = self.out.send(Err(error)).await;
                    return;
                }
                Ended::Broken(fault) => {
                    if self.reached > before {
                        (delay, is_told) = (RESUME_DELAY_MIN, false);
                    }
                    if !std::mem::replace(&mut is_told, true) {
                        let error = &fault as &dyn std::error::Error;
                        tracing::warn!(
                            error,
                            after = self.reached,
                            "a watch of etcd broke, and is taken up again"
                        );
                    }
                }
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RESUME_DELAY_MAX);
        }
    }

    async fn follow_one(&mut self) -> Ended {
        if let Err(ended) = check(&self.cluster, &self.prefix, self.reached).await {
            return ended;
        }
        let create = WatchCreateRequest {
            key: self.prefix.clone(),
            range_end: end_of(&self.prefix).into(),
            start_revision: number(self.reached + 1),
            progress_notify: true,
            fragment: true,
        };
        let first = WatchRequest { asked: Some(Asked::Create(create)) };
        match self.cluster.watch(first).await {
            Ok((asks, stream)) => self.read(&asks, stream).await,
            Err(fault) => Ended::Broken(fault),
        }
    }

    async fn read(
        &mut self,
        asks: &mpsc::Sender<WatchRequest>,
        mut stream: Streaming<WatchResponse>,
    ) -> Ended {
        let mut pieces = Pieces::default();
        let mut ask_at = Instant::now() + ASK_IDLE;
        loop {
            // Each only waits: a message is taken whole or not at all.
            tokio::select! {
                message = stream.message() => {
                    let message = match message.map_err(Fault::of) {
                        Ok(Some(message)) => message,
                        Ok(None) => return Ended::Broken(Fault::of(tonic::Status::unavailable("the member ended the stream"))),
                        // What it would tell can be read in parts.
                        Err(Fault::TooLong) => return Ended::Failed(Fault::compacted(self.reached)),
                        Err(fault) => return Ended::Broken(fault),
                    };
                    if message.canceled {
                        return self.canceled(&message);
                    }
                    if let Some(batch) = pieces.add(message) {
                        self.reached = batch.revision.max(self.reached);
                        if self.out.send(Ok(Batch { revision: self.reached, ..batch })).await.is_err() {
                            return Ended::Unwanted;
                        }
                        ask_at = Instant::now() + if self.is_behind() { ASK_AFTER } else { ASK_IDLE };
                    }
                }
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return Ended::Unwanted;
                    }
                    if self.is_behind() {
                        ask_at = ask_at.min(Instant::now() + ASK_AFTER);
                    }
                }
                () = tokio::time::sleep_until(ask_at) => {
                    // One that waits to be sent asks the same.
                    let _ = asks.try_send(WatchRequest { asked: Some(Asked::Progress(WatchProgressRequest {})) });
                    ask_at = Instant::now() + if self.is_behind() { ASK_AGAIN } else { ASK_IDLE };
                }
            }
        }
    }

    fn is_behind(&mut self) -> bool {
        *self.wanted.borrow_and_update() > self.reached
    }

    fn canceled(&self, message: &WatchResponse) -> Ended {
        if message.compact_revision > 0 {
            let compacted = message.compact_revision.unsigned_abs();
            return Ended::Failed(StoreError::Compacted { requested: self.reached, compacted });
        }
        Ended::Broken(Fault::Other(Arc::new(tonic::Status::aborted(message.cancel_reason.clone()))))
    }
}

/// Whether changes after a revision can still be told, and it is not from a future that was lost.
async fn check(cluster: &Cluster, prefix: &Bytes, after: Revision) -> Result<(), Ended> {
    match readable(cluster, prefix, after).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Ended::Failed(error)),
        Err(fault) => Err(Ended::Broken(fault)),
    }
}

pub(super) async fn readable(
    cluster: &Cluster,
    prefix: &Bytes,
    at: Revision,
) -> Result<Result<(), StoreError>, Fault> {
    // 0 would be the newest.
    let request = RangeRequest {
        key: prefix.clone(),
        keys_only: true,
        revision: number(at.max(1)),
        ..RangeRequest::default()
    };
    match cluster.call::<_, RangeResponse>(RANGE, request, Repeat::Harmless).await {
        Ok(_) => Ok(Ok(())),
        Err(Fault::Compacted) => Ok(Err(Fault::compacted(at))),
        Err(Fault::Future) => Ok(Err(StoreError::Future { requested: at, current: newest(cluster).await? })),
        Err(fault) => Err(fault),
    }
}

pub(super) async fn newest(cluster: &Cluster) -> Result<Revision, Fault> {
    let key = Bytes::from_static(super::compactor::KEY);
    let request = RangeRequest { key, keys_only: true, ..RangeRequest::default() };
    let response: RangeResponse = cluster.call(RANGE, request, Repeat::Harmless).await?;
    Ok(revision(response.header.as_ref()))
}

/// Puts together what etcd sends in pieces.
#[derive(Default)]
struct Pieces {
    /// Changes of one revision, of which more may come.
    held: Vec<Event>,
}

impl Pieces {
    /// What is whole of it; `None` if nothing is.
    fn add(&mut self, message: WatchResponse) -> Option<Batch> {
        if message.events.is_empty() {
            // That a watch was made says nothing about how far it is.
            let is_progress = !message.created && self.held.is_empty();
            return is_progress
                .then(|| Batch { revision: revision(message.header.as_ref()), events: Vec::new() });
        }
        let mut events = std::mem::take(&mut self.held);
        events.extend(message.events.into_iter().filter_map(event));
        let last = events.last()?.mod_revision;
        let mut reached = last;
        if message.fragment {
            let whole = events.partition_point(|event| event.mod_revision < last);
            self.held = events.split_off(whole);
            reached = last - 1;
        }
        (!events.is_empty()).then_some(Batch { revision: reached, events })
    }
}

fn event(event: wire::Event) -> Option<Event> {
    let kv = event.kv?;
    let is_deleted = event.kind == DELETED;
    Some(Event {
        key: from_etcd(&String::from_utf8_lossy(&kv.key)).into(),
        value: (!is_deleted).then_some(kv.value),
        integrity: Integrity::Sound,
        mod_revision: kv.mod_revision.unsigned_abs(),
        create_revision: kv.create_revision.unsigned_abs(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(header: i64, events: &[(&'static str, i64)], fragment: bool) -> WatchResponse {
        let event = |(key, at): &(&'static str, i64)| wire::Event {
            kind: 0,
            kv: Some(wire::KeyValue {
                key: Bytes::from_static(key.as_bytes()),
                mod_revision: *at,
                ..Default::default()
            }),
        };
        WatchResponse {
            header: Some(wire::Header { revision: header }),
            events: events.iter().map(event).collect(),
            fragment,
            ..WatchResponse::default()
        }
    }

    fn seen(batch: Option<Batch>) -> Option<(Revision, Vec<String>)> {
        batch.map(|batch| {
            (batch.revision, batch.events.iter().map(|e| format!("{}@{}", e.key, e.mod_revision)).collect())
        })
    }

    #[test]
    fn a_batch_reaches_no_further_than_what_was_delivered() {
        let mut pieces = Pieces::default();
        let created = WatchResponse { created: true, ..message(90, &[], false) };
        assert_eq!(seen(pieces.add(created)), None);
        // While a watcher catches up, the header is ahead of the events.
        let caught = pieces.add(message(90, &[("a", 4), ("b", 7)], false));
        assert_eq!(seen(caught), Some((7, vec!["a@4".into(), "b@7".into()])));
        assert_eq!(seen(pieces.add(message(91, &[], false))), Some((91, vec![])));
    }

    #[test]
    fn changes_of_one_revision_are_delivered_together() {
        let mut pieces = Pieces::default();
        assert_eq!(seen(pieces.add(message(9, &[("a", 8), ("b", 9)], true))), Some((8, vec!["a@8".into()])));
        assert_eq!(seen(pieces.add(message(9, &[("c", 9)], true))), None);
        assert_eq!(
            seen(pieces.add(message(9, &[("d", 9)], false))),
            Some((9, vec!["b@9".into(), "c@9".into(), "d@9".into()]))
        );
    }
}
