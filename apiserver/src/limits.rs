//! What keeps one client from taking all: requests in flight, bodies, sizes, times.
//!
//! A request that finds no place waits for one, for a while. Each level keeps some places for itself, so that a burst of one
//! neither makes healthy nodes look dead nor shuts the administrator out: upstream's API Priority and Fairness (KEP-1040)
//! without queues for each client.
//!
//! A place is taken once a request's body is there: a body that trickles in holds nothing but its bytes.

pub(crate) mod connections;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use skiff_api::Status;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::auth::{ANONYMOUS, MASTERS, SERVICE_ACCOUNT_PREFIX, UserInfo};
use crate::request::RequestInfo;
use crate::threads::Class;

/// The largest body of a request, as upstream.
pub(crate) const MAX_BODY_BYTES: usize = 3 << 20;
/// How long a request that is no watch or stream may take, as upstream.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// About upstream's defaults of `--max-requests-inflight` and `--max-mutating-requests-inflight`.
const READS: usize = 400;
const WRITES: usize = 300;
/// Watches and streams at once: some for each node of a large cluster.
const LONG_RUNNING: usize = 65_536;
/// Watches that begin are looked at so many at a time: of ten thousand that begin at once the rest do not stand before every
/// other request in the queues of the threads that serve.
const TURNS: usize = 16;
/// How long a request waits for a place, and how many of a level may.
const MAX_WAIT: Duration = Duration::from_secs(5);
const MAX_WAITING: usize = 5000;
/// What the bodies of one level may take at once. What is smaller than a heartbeat needs no room: nobody can keep it out.
const BODIES_KIB: usize = 32 << 10;
const SMALL_BODY_KIB: usize = 2;
/// Each piece of a body must come within this time, and in each such time so much of it.
const BODY_STALL: Duration = Duration::from_secs(10);
const BODY_MIN_BYTES: usize = 10 << 10;

/// Who is let in before whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Administrator,
    /// What a node says to be alive: its lease, its object and that object's status (upstream's `node-high`).
    Heartbeat,
    /// Everything else from nodes (`system`).
    Node,
    /// The cluster's own components, and service accounts of `kube-system` (`workload-high`).
    Component,
    /// All other service accounts (`workload-low`).
    ServiceAccount,
    /// Everybody else with a name (`global-default`).
    Other,
    /// Who has none (`catch-all`).
    Anonymous,
}

const LEVELS: [Level; 7] = [
    Level::Administrator,
    Level::Heartbeat,
    Level::Node,
    Level::Component,
    Level::ServiceAccount,
    Level::Other,
    Level::Anonymous,
];

impl Level {
    pub(crate) fn of(user: &UserInfo, info: &RequestInfo) -> Level {
        if user.node_name().is_some() {
            return match (info.group.as_str(), info.resource.as_str()) {
                ("coordination.k8s.io", "leases") | ("", "nodes") => Level::Heartbeat,
                _ => Level::Node,
            };
        }
        let account = user.name.strip_prefix(SERVICE_ACCOUNT_PREFIX);
        match () {
            () if user.is_in(MASTERS) => Level::Administrator,
            () if user.name == ANONYMOUS => Level::Anonymous,
            () if user.is_component() => Level::Component,
            () if account.is_some_and(|account| account.starts_with("kube-system:")) => Level::Component,
            () if account.is_some() => Level::ServiceAccount,
            () => Level::Other,
        }
    }

    /// Places for reads, and as many for writes, that nobody else gets.
    fn kept(self) -> usize {
        match self {
            Level::Heartbeat | Level::Node => 40,
            Level::Administrator | Level::Component => 20,
            Level::ServiceAccount | Level::Other => 10,
            Level::Anonymous => 5,
        }
    }

    fn may_borrow(self) -> bool {
        self != Level::Anonymous
    }

    fn is_trusted(self) -> bool {
        !matches!(self, Level::ServiceAccount | Level::Other | Level::Anonymous)
    }
}

pub(crate) struct Limits {
    reads: Places,
    writes: Places,
    long_running: Arc<Semaphore>,
    /// Watches that begin at the same moment, of each class.
    turns: [Semaphore; Class::COUNT],
    /// In KiB.
    bodies: [Arc<Semaphore>; LEVELS.len()],
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            reads: Places::new(READS),
            writes: Places::new(WRITES),
            long_running: Arc::new(Semaphore::new(LONG_RUNNING)),
            turns: std::array::from_fn(|_| Semaphore::new(TURNS)),
            bodies: LEVELS.map(|_| Arc::new(Semaphore::new(BODIES_KIB))),
        }
    }
}

/// The places of one kind of requests.
struct Places {
    /// For everybody who may borrow.
    common: Arc<Semaphore>,
    kept: [Arc<Semaphore>; LEVELS.len()],
    /// Places to wait in, of each level: one that waits is not to keep out those who go before it.
    waiting: [Semaphore; LEVELS.len()],
}

impl Places {
    fn new(n: usize) -> Places {
        let kept: usize = LEVELS.iter().map(|level| level.kept()).sum();
        Places {
            common: Arc::new(Semaphore::new(n.saturating_sub(kept))),
            kept: LEVELS.map(|level| Arc::new(Semaphore::new(level.kept()))),
            waiting: LEVELS.map(|_| Semaphore::new(MAX_WAITING)),
        }
    }

    fn take(&self, level: Level) -> Option<OwnedSemaphorePermit> {
        let own = self.kept[level as usize].clone().try_acquire_owned().ok();
        own.or_else(|| level.may_borrow().then(|| self.common.clone().try_acquire_owned().ok()).flatten())
    }

    async fn wait(&self, level: Level) -> Option<OwnedSemaphorePermit> {
        let own = self.kept[level as usize].clone().acquire_owned();
        // They are closed by nobody.
        if !level.may_borrow() {
            return own.await.ok();
        }
        tokio::select! {
            // Both only wait, in the order in which requests came.
            place = own => place.ok(),
            place = self.common.clone().acquire_owned() => place.ok(),
        }
    }

    async fn admit(&self, level: Level) -> Result<OwnedSemaphorePermit, Status> {
        if let Some(place) = self.take(level) {
            return Ok(place);
        }
        let _waiting = self.waiting[level as usize].try_acquire().map_err(|_| too_many())?;
        let place = tokio::time::timeout(MAX_WAIT, self.wait(level)).await;
        place.ok().flatten().ok_or_else(too_many)
    }
}

fn too_many() -> Status {
    Status::too_many_requests("too many requests, please try again later", 1)
}

/// A body that was read, and the room that it takes.
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    pub(crate) room: Vec<OwnedSemaphorePermit>,
}

impl Limits {
    /// A place for a request, held until the permit is dropped.
    ///
    /// # Errors
    /// 429 if there is none for so long, or if too many wait for one.
    pub(crate) async fn admit(
        &self,
        level: Level,
        verb: &str,
        long_running: bool,
    ) -> Result<OwnedSemaphorePermit, Status> {
        match verb {
            _ if long_running => self.long_running.clone().try_acquire_owned().map_err(|_| too_many()),
            "get" | "list" | "head" => self.reads.admit(level).await,
            _ => self.writes.admit(level).await,
        }
    }

    /// One's turn to begin a watch, until it is dropped; nobody keeps it while he waits for anything.
    pub(crate) async fn turn(&self, class: Class) -> Option<SemaphorePermit<'_>> {
        self.turns[class as usize].acquire().await.ok()
    }

    /// Reads a whole body, for as long as it comes fast enough.
    ///
    /// # Errors
    /// 413 past [`MAX_BODY_BYTES`], 504 for a body that trickles, 429 if the bodies of others take all room.
    pub(crate) async fn receive(&self, level: Level, body: Body) -> Result<Received, Status> {
        let room = &self.bodies[level as usize];
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
                let taken = tokio::time::timeout(MAX_WAIT, taken).await.map_err(|_| too_many())?;
                held.push(taken.map_err(|_| too_many())?);
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

    async fn taken(limits: &Limits, level: Level, n: usize) -> Vec<OwnedSemaphorePermit> {
        let mut places = Vec::new();
        for _ in 0..n {
            places.push(limits.admit(level, "create", false).await.expect("a place"));
        }
        places
    }

    /// All that a level may have while the others have nothing.
    async fn all_of(limits: &Limits, level: Level) -> Vec<OwnedSemaphorePermit> {
        let kept: usize = LEVELS.iter().map(|level| level.kept()).sum();
        taken(limits, level, WRITES - kept + level.kept()).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_a_place_and_is_refused_only_when_none_comes() {
        let limits = Limits::default();
        let mut held = all_of(&limits, Level::Other).await;
        let mut waits = std::pin::pin!(limits.admit(Level::Other, "create", false));
        assert!(waits.as_mut().now_or_never().is_none(), "it waits");
        held.pop();
        let place = waits.await.expect("the place that was given back");
        let status = limits.admit(Level::Other, "create", false).await.expect_err("none comes");
        assert_eq!((status.code, status.reason), (429, "TooManyRequests"));
        drop(limits.admit(Level::Other, "get", false).await.expect("reads have places of their own"));
        drop(place);
    }

    #[tokio::test(start_paused = true)]
    async fn no_level_takes_the_places_of_another() {
        for flooding in LEVELS {
            let limits = Limits::default();
            let held = all_of(&limits, flooding).now_or_never();
            // Who may not borrow has its own places only.
            let _held = match held {
                Some(held) => held,
                None => taken(&limits, flooding, flooding.kept()).await,
            };
            for level in LEVELS.into_iter().filter(|level| *level != flooding) {
                let places = taken(&limits, level, level.kept()).now_or_never();
                assert!(places.is_some(), "{flooding:?} keeps {level:?} out");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_requests_wait_than_may() {
        let limits = Limits::default();
        let _held = all_of(&limits, Level::Other).await;
        let mut waiting: Vec<_> =
            (0..MAX_WAITING).map(|_| Box::pin(limits.admit(Level::Other, "create", false))).collect();
        assert!(waiting.iter_mut().all(|waits| waits.as_mut().now_or_never().is_none()));
        let refused = limits.admit(Level::Other, "create", false).now_or_never();
        assert_eq!(refused.expect("at once").expect_err("refused").code, 429);
        let heartbeat = limits.admit(Level::Heartbeat, "update", false).now_or_never();
        drop(heartbeat.expect("at once").expect("a place"));
    }

    #[test]
    fn who_asks_decides_whose_places_are_taken() {
        let level = |user: &UserInfo, method: &str, path: &str| {
            Level::of(user, &RequestInfo::parse(method, path, &Query::default()))
        };
        let node = UserInfo::new("system:node:n", &["system:nodes"]);
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n";
        assert_eq!(level(&node, "PUT", lease), Level::Heartbeat);
        assert_eq!(level(&node, "PATCH", "/api/v1/nodes/n/status"), Level::Heartbeat);
        assert_eq!(level(&node, "PATCH", "/api/v1/namespaces/a/pods/p/status"), Level::Node);
        for (name, groups, expected) in [
            ("system:kube-scheduler", [].as_slice(), Level::Component),
            ("system:node:n", &[], Level::Other),
            ("admin", &["system:masters"], Level::Administrator),
            ("system:serviceaccount:kube-system:x", &["system:serviceaccounts"], Level::Component),
            ("system:serviceaccount:a:default", &["system:serviceaccounts"], Level::ServiceAccount),
            ("jane", &[], Level::Other),
        ] {
            assert_eq!(level(&UserInfo::new(name, groups), "PUT", lease), expected, "{name}");
        }
        assert_eq!(level(&UserInfo::anonymous(), "GET", "/version"), Level::Anonymous);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_given_up() {
        let limits = Limits::default();
        let second = |n: u8| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, std::convert::Infallible>(Bytes::from(vec![n]))
        };
        let trickle = futures::StreamExt::then(futures::stream::iter(0..60), second);
        let refused = limits.receive(Level::Other, Body::from_stream(trickle)).await.err().expect("refused");
        assert_eq!(refused.code, 504);
        let silent = Body::from_stream(futures::stream::pending::<Result<Bytes, std::convert::Infallible>>());
        let refused = limits.receive(Level::Other, silent).await.err().expect("refused");
        assert_eq!(refused.code, 504);
        // One that began with much has no credit for it.
        let begun = futures::stream::once(async { Ok(Bytes::from(vec![b'x'; 1 << 20])) });
        let trickle = futures::StreamExt::then(futures::stream::iter(0..60), second);
        let late = futures::StreamExt::chain(begun, trickle);
        let refused = limits.receive(Level::Other, Body::from_stream(late)).await.err().expect("refused");
        assert_eq!(refused.code, 504);
        let whole = limits.receive(Level::Other, Body::from(vec![b'x'; 5000])).await.expect("is read");
        let left = || limits.bodies[Level::Other as usize].available_permits();
        assert_eq!((whole.bytes.len(), left()), (5000, BODIES_KIB + SMALL_BODY_KIB - 5));
        drop(whole);
        assert_eq!(left(), BODIES_KIB);
    }

    #[tokio::test(start_paused = true)]
    async fn the_bodies_of_one_level_leave_room_for_the_others() {
        for flooding in LEVELS {
            let limits = Limits::default();
            let mut held = Vec::new();
            let body = || Body::from(vec![b'x'; 1 << 20]);
            while let Some(read) = limits.receive(flooding, body()).now_or_never() {
                held.push(read.expect("is read"));
                assert!(held.len() <= BODIES_KIB / 1024 + 1, "there is an end");
            }
            let refused = limits.receive(flooding, body()).await.err().expect("no room");
            assert_eq!(refused.code, 429);
            let heartbeat = limits.receive(flooding, Body::from(vec![b'x'; 1000])).now_or_never();
            heartbeat.expect("at once").expect("what is small needs no room");
            for level in LEVELS.into_iter().filter(|level| *level != flooding) {
                let other = limits.receive(level, body()).now_or_never();
                other.unwrap_or_else(|| panic!("{flooding:?} keeps {level:?} out")).expect("has room");
            }
        }
    }
}
