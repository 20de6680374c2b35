//! What keeps one client from taking all: requests in flight, bodies, sizes, times.
//!
//! Which request is served when is up to priority levels and their fair queues (`skiff-flow`), by the objects that `objects` follows;
//! what a request costs is estimated in `work`. A seat is taken once a request's body is there: a body that trickles in holds
//! nothing but its bytes.

pub(crate) mod connections;
pub(crate) mod objects;
mod report;
pub(crate) mod work;

pub(crate) use report::{Collected, dump};

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use skiff_api::Status;
use skiff_flow::{Classified, Control, LevelReport, Refused, Request, Seat, Work};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::auth::UserInfo;
use crate::request::RequestInfo;
use crate::threads::Class;

/// The largest body of a request, as upstream.
pub(crate) const MAX_BODY_BYTES: usize = 3 << 20;
/// How long a request that is no watch or stream may take, as upstream.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Seats of all levels together: upstream's defaults of `--max-requests-inflight` and `--max-mutating-requests-inflight`.
const SEATS: u32 = 400 + 200;
/// Watches and streams at once: some for each node of a large cluster.
const LONG_RUNNING: usize = 65_536;
/// Watches that begin are looked at so many at a time: of ten thousand that begin at once the rest do not stand before every
/// other request in the queues of the threads that serve.
const TURNS: usize = 16;
/// How long a request waits for a seat, as upstream: a quarter of what it may take.
const MAX_WAIT: Duration = Duration::from_secs(15);
/// How long a body waits for room.
const MAX_BODY_WAIT: Duration = Duration::from_secs(5);
/// What the bodies of one level may take at once. What is smaller than a heartbeat needs no room: nobody can keep it out.
const BODIES_KIB: usize = 32 << 10;
const SMALL_BODY_KIB: usize = 2;
/// Each piece of a body must come within this time, and in each such time so much of it.
const BODY_STALL: Duration = Duration::from_secs(10);
const BODY_MIN_BYTES: usize = 10 << 10;

pub(crate) struct Limits {
    flow: Arc<Control>,
    long_running: Arc<Semaphore>,
    /// Watches that begin at the same moment, of each class.
    turns: [Semaphore; Class::COUNT],
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            flow: Arc::new(Control::new(SEATS, BODIES_KIB)),
            long_running: Arc::new(Semaphore::new(LONG_RUNNING)),
            turns: std::array::from_fn(|_| Semaphore::new(TURNS)),
        }
    }
}

/// As upstream words it.
fn too_many(retry_after_s: u64) -> Status {
    let seconds = u32::try_from(retry_after_s).unwrap_or(u32::MAX);
    Status::too_many_requests("Too many requests, please try again later.", seconds)
}

fn refused(refused: &Refused) -> Status {
    tracing::debug!(%refused, "a request found no seat");
    too_many(refused.retry_after_s)
}

/// A body that was read, and the room that it takes.
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    pub(crate) room: Vec<OwnedSemaphorePermit>,
}

impl Limits {
    /// In whose queues a request waits.
    pub(crate) fn classify(&self, user: &UserInfo, info: &RequestInfo) -> Classified {
        self.flow.classify(&Request {
            user: &user.name,
            groups: &user.groups,
            verb: &info.verb,
            is_resource: info.is_resource,
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            path: &info.path,
        })
    }

    /// Seats for a request, held until they are dropped.
    ///
    /// # Errors
    /// 429 if there are none for so long, or if too many wait for them.
    pub(crate) async fn seat(&self, classified: &Classified, work: Work) -> Result<Seat, Status> {
        self.flow.seat(classified, work, MAX_WAIT).await.map_err(|why| refused(&why))
    }

    /// A place among watches and streams, held until it is dropped.
    ///
    /// # Errors
    /// 429 if there is none.
    pub(crate) fn long_running(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.long_running.clone().try_acquire_owned().map_err(|_| too_many(1))
    }

    pub(crate) fn report(&self) -> Vec<LevelReport> {
        self.flow.report()
    }

    /// What `/metrics` tells of it.
    pub(crate) fn collected(&self) -> Collected {
        Collected(self.flow.clone())
    }

    /// One's turn to begin a watch, until it is dropped; nobody keeps it while he waits for anything.
    pub(crate) async fn turn(&self, class: Class) -> Option<SemaphorePermit<'_>> {
        self.turns[class as usize].acquire().await.ok()
    }

    /// Reads a whole body, for as long as it comes fast enough.
    ///
    /// # Errors
    /// 413 past [`MAX_BODY_BYTES`], 504 for a body that trickles, 429 if the bodies of others take all room.
    pub(crate) async fn receive(&self, classified: &Classified, body: Body) -> Result<Received, Status> {
        let room = classified.bodies();
        let mut body = Limited::new(body, MAX_BODY_BYTES);
        let (mut bytes, mut held, mut held_kib) = (BytesMut::new(), Vec::new(), SMALL_BODY_KIB);
        let (mut since, mut bytes_then) = (Instant::now(), 0);
        loop {
            let frame = tokio::time::timeout(BODY_STALL, body.frame()).await.map_err(|_| too_slow())?;
            let Some(frame) = frame else { break };
            let Ok(data) = frame.map_err(|error| unreadable(&*error))?.into_data() else { continue };
            bytes.extend_from_slice(&data);
            if since.elapsed() > BODY_STALL {
                if bytes.len() - bytes_then < BODY_MIN_BYTES {
                    return Err(too_slow());
                }
                (since, bytes_then) = (Instant::now(), bytes.len());
            }
            let needed_kib = bytes.len().div_ceil(1024);
            if let Ok(more) = u32::try_from(needed_kib.saturating_sub(held_kib))
                && more > 0
            {
                let taken = room.clone().acquire_many_owned(more);
                let taken = tokio::time::timeout(MAX_BODY_WAIT, taken).await.map_err(|_| too_many(1))?;
                held.push(taken.map_err(|_| too_many(1))?);
                held_kib = needed_kib;
            }
        }
        Ok(Received { bytes: bytes.freeze(), room: held })
    }
}

fn too_slow() -> Status {
    Status::timeout("Timeout: the body of the request did not come fast enough")
}

fn unreadable(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Status {
    if error.is::<LengthLimitError>() {
        return Status::too_large(format!("Request entity too large: limit is {MAX_BODY_BYTES}"));
    }
    Status::bad_request(format!("unable to read the body of the request: {error}"))
}

/// Reads a body that the pipeline has received already.
///
/// # Errors
/// 413 past [`MAX_BODY_BYTES`].
pub(crate) async fn read_body(body: Body) -> Result<Bytes, Status> {
    let collected = Limited::new(body, MAX_BODY_BYTES).collect().await;
    collected.map(|collected| collected.to_bytes()).map_err(|error| unreadable(&*error))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::request::Query;

    fn of(limits: &Limits, user: &str, groups: &[&str]) -> Classified {
        let info = RequestInfo::parse("POST", "/api/v1/namespaces/a/pods", &Query::default());
        limits.classify(&UserInfo::new(user, groups), &info)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_given_up() {
        let limits = Limits::default();
        let jane = of(&limits, "jane", &[]);
        let second = |n: u8| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, std::convert::Infallible>(Bytes::from(vec![n]))
        };
        let trickle = futures::StreamExt::then(futures::stream::iter(0..60), second);
        let refused = limits.receive(&jane, Body::from_stream(trickle)).await.err().expect("refused");
        assert_eq!(refused.code, 504);
        let silent = Body::from_stream(futures::stream::pending::<Result<Bytes, std::convert::Infallible>>());
        let refused = limits.receive(&jane, silent).await.err().expect("refused");
        assert_eq!(refused.code, 504);
        // One that began with much has no credit for it.
        let begun = futures::stream::once(async { Ok(Bytes::from(vec![b'x'; 1 << 20])) });
        let trickle = futures::StreamExt::then(futures::stream::iter(0..60), second);
        let late = futures::StreamExt::chain(begun, trickle);
        let refused = limits.receive(&jane, Body::from_stream(late)).await.err().expect("refused");
        assert_eq!(refused.code, 504);
        let whole = limits.receive(&jane, Body::from(vec![b'x'; 5000])).await.expect("is read");
        let left = || jane.bodies().available_permits();
        assert_eq!((whole.bytes.len(), left()), (5000, BODIES_KIB + SMALL_BODY_KIB - 5));
        drop(whole);
        assert_eq!(left(), BODIES_KIB);
    }

    #[tokio::test(start_paused = true)]
    async fn the_bodies_of_one_level_leave_room_for_the_others() {
        const USERS: [(&str, &[&str]); 3] = [
            ("jane", &[]),
            ("admin", &["system:masters"]),
            ("system:serviceaccount:a:b", &["system:serviceaccounts"]),
        ];
        for flooding in USERS {
            let limits = Limits::default();
            let all = skiff_flow::bootstrap();
            limits.flow.configure(&skiff_flow::Config::read(&all.levels, &all.schemas));
            let of = |(user, groups): (&str, &[&str])| of(&limits, user, groups);
            let mut held = Vec::new();
            let body = || Body::from(vec![b'x'; 1 << 20]);
            while let Some(read) = limits.receive(&of(flooding), body()).now_or_never() {
                held.push(read.expect("is read"));
                assert!(held.len() <= BODIES_KIB / 1024 + 1, "there is an end");
            }
            let refused = limits.receive(&of(flooding), body()).await.err().expect("no room");
            assert_eq!(refused.code, 429);
            let small = of(flooding);
            let heartbeat = limits.receive(&small, Body::from(vec![b'x'; 1000])).now_or_never();
            heartbeat.expect("at once").expect("what is small needs no room");
            for other in USERS.into_iter().filter(|other| *other != flooding) {
                let other = of(other);
                let read = limits.receive(&other, body()).now_or_never();
                read.expect("no level keeps another out").expect("has room");
            }
        }
    }
}
