//! What keeps one client from taking all: requests in flight, sizes, times.
//!
//! A request that finds no place waits for one, for a while. Some places are kept for nodes, so that a burst of anybody else
//! does not make healthy nodes look dead: upstream's API Priority and Fairness (KEP-1040) with three levels and no queues for
//! each client.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use skiff_api::Status;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::auth::UserInfo;
use crate::request::RequestInfo;

/// The largest body of a request, as upstream.
pub(crate) const MAX_BODY_BYTES: usize = 3 << 20;
/// How long a request that is no watch or stream may take, as upstream.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Upstream's defaults of `--max-requests-inflight` and `--max-mutating-requests-inflight`, of which some are kept.
const READS: usize = 400;
const WRITES: usize = 200;
/// Of each of the two, for heartbeats alone and for nodes alone.
const KEPT_FOR_HEARTBEATS: usize = 40;
const KEPT_FOR_NODES: usize = 40;
/// Watches and streams at once: some for each node of a large cluster.
const LONG_RUNNING: usize = 65_536;
/// How long a request waits for a place, and how many of a level may. They hold little: their bodies are read later.
const MAX_WAIT: Duration = Duration::from_secs(5);
const MAX_WAITING: usize = 5000;

/// Who is let in before whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// What a node says to be alive: its lease, its object and that object's status (upstream's `node-high`).
    Heartbeat,
    /// Everything else from nodes (`system`).
    Node,
    Other,
}

impl Level {
    pub(crate) fn of(user: &UserInfo, info: &RequestInfo) -> Level {
        if user.node_name().is_none() {
            return Level::Other;
        }
        match (info.group.as_str(), info.resource.as_str()) {
            ("coordination.k8s.io", "leases") | ("", "nodes") => Level::Heartbeat,
            _ => Level::Node,
        }
    }
}

pub(crate) struct Limits {
    reads: Places,
    writes: Places,
    long_running: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            reads: Places::new(READS),
            writes: Places::new(WRITES),
            long_running: Arc::new(Semaphore::new(LONG_RUNNING)),
        }
    }
}

/// The places of one kind of requests.
struct Places {
    /// For everybody.
    common: Arc<Semaphore>,
    heartbeats: Arc<Semaphore>,
    nodes: Arc<Semaphore>,
    /// Places to wait in, of each level: one that waits is not to keep out those who go before it.
    waiting: [Semaphore; 3],
}

impl Places {
    fn new(n: usize) -> Places {
        let places = |n| Arc::new(Semaphore::new(n));
        Places {
            common: places(n - KEPT_FOR_HEARTBEATS - KEPT_FOR_NODES),
            heartbeats: places(KEPT_FOR_HEARTBEATS),
            nodes: places(KEPT_FOR_NODES),
            waiting: [(); 3].map(|()| Semaphore::new(MAX_WAITING)),
        }
    }

    fn kept(&self, level: Level) -> Option<&Arc<Semaphore>> {
        match level {
            Level::Heartbeat => Some(&self.heartbeats),
            Level::Node => Some(&self.nodes),
            Level::Other => None,
        }
    }

    fn take(&self, level: Level) -> Option<OwnedSemaphorePermit> {
        let places = [Some(&self.common), self.kept(level)];
        places.into_iter().flatten().find_map(|places| places.clone().try_acquire_owned().ok())
    }

    async fn wait(&self, level: Level) -> Option<OwnedSemaphorePermit> {
        let common = self.common.clone().acquire_owned();
        // They are closed by nobody.
        match self.kept(level) {
            None => common.await.ok(),
            Some(kept) => tokio::select! {
                // Both only wait, in the order in which requests came.
                place = common => place.ok(),
                place = kept.clone().acquire_owned() => place.ok(),
            },
        }
    }

    async fn admit(&self, level: Level) -> Result<OwnedSemaphorePermit, Status> {
        if let Some(place) = self.take(level) {
            return Ok(place);
        }
        let refused = || Status::too_many_requests("too many requests, please try again later", 1);
        let _waiting = self.waiting[level as usize].try_acquire().map_err(|_| refused())?;
        let place = tokio::time::timeout(MAX_WAIT, self.wait(level)).await;
        place.ok().flatten().ok_or_else(refused)
    }
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
            _ if long_running => self
                .long_running
                .clone()
                .try_acquire_owned()
                .map_err(|_| Status::too_many_requests("too many requests, please try again later", 1)),
            "get" | "list" | "head" => self.reads.admit(level).await,
            _ => self.writes.admit(level).await,
        }
    }
}

/// Reads a whole body.
///
/// # Errors
/// 413 past [`MAX_BODY_BYTES`].
pub(crate) async fn read_body(body: Body) -> Result<Bytes, Status> {
    match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Status::too_large(format!("Request entity too large: limit is {MAX_BODY_BYTES}")))
        }
        Err(error) => Err(Status::bad_request(format!("unable to read the body of the request: {error}"))),
    }
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

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_a_place_and_is_refused_only_when_none_comes() {
        let limits = Limits::default();
        let others = WRITES - KEPT_FOR_HEARTBEATS - KEPT_FOR_NODES;
        let mut held = taken(&limits, Level::Other, others).await;
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
    async fn nodes_keep_places_however_many_others_write() {
        let limits = Limits::default();
        let others = WRITES - KEPT_FOR_HEARTBEATS - KEPT_FOR_NODES;
        let _others = taken(&limits, Level::Other, others).await;
        let mut nodes = taken(&limits, Level::Node, KEPT_FOR_NODES).await;
        limits.admit(Level::Node, "update", false).await.expect_err("no node goes before others for long");
        let heartbeats = taken(&limits, Level::Heartbeat, KEPT_FOR_HEARTBEATS).await;
        let mut node = std::pin::pin!(limits.admit(Level::Node, "update", false));
        assert!(node.as_mut().now_or_never().is_none());
        drop(heartbeats);
        assert!(node.as_mut().now_or_never().is_none(), "those places are for heartbeats");
        nodes.pop();
        drop(node.await.expect("a node's place"));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_requests_wait_than_may() {
        let limits = Limits::default();
        let others = WRITES - KEPT_FOR_HEARTBEATS - KEPT_FOR_NODES;
        let _held = taken(&limits, Level::Other, others).await;
        let mut waiting: Vec<_> =
            (0..MAX_WAITING).map(|_| Box::pin(limits.admit(Level::Other, "create", false))).collect();
        assert!(waiting.iter_mut().all(|waits| waits.as_mut().now_or_never().is_none()));
        let refused = limits.admit(Level::Other, "create", false).now_or_never();
        assert_eq!(refused.expect("at once").expect_err("refused").code, 429);
        let heartbeat = limits.admit(Level::Heartbeat, "update", false).now_or_never();
        drop(heartbeat.expect("at once").expect("a place"));
    }

    #[test]
    fn what_a_node_says_to_be_alive_goes_first() {
        let level = |user: &UserInfo, method: &str, path: &str| {
            Level::of(user, &RequestInfo::parse(method, path, &Query::default()))
        };
        let node = UserInfo::new("system:node:n", &["system:nodes"]);
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n";
        assert_eq!(level(&node, "PUT", lease), Level::Heartbeat);
        assert_eq!(level(&node, "PATCH", "/api/v1/nodes/n/status"), Level::Heartbeat);
        assert_eq!(level(&node, "PATCH", "/api/v1/namespaces/a/pods/p/status"), Level::Node);
        let other = UserInfo::new("system:kube-scheduler", &[]);
        assert_eq!(level(&other, "PUT", lease), Level::Other);
        let pretender = UserInfo::new("system:node:n", &[]);
        assert_eq!(level(&pretender, "PUT", lease), Level::Other);
    }
}
