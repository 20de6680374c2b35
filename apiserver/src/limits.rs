//! What keeps one client from taking all: requests in flight, sizes, times.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use skiff_api::Status;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The largest body of a request, as upstream.
pub(crate) const MAX_BODY_BYTES: usize = 3 << 20;
/// How long a request that is no watch or stream may take, as upstream.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Upstream's defaults of `--max-requests-inflight` and `--max-mutating-requests-inflight`.
const READS: usize = 400;
const WRITES: usize = 200;
/// Watches and streams at once.
const LONG_RUNNING: usize = 10_000;

pub(crate) struct Limits {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    long_running: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Limits { reads: semaphore(READS), writes: semaphore(WRITES), long_running: semaphore(LONG_RUNNING) }
    }
}

impl Limits {
    /// A place for a request, held until the permit is dropped.
    ///
    /// # Errors
    /// 429 if there is none.
    pub(crate) fn admit(&self, verb: &str, long_running: bool) -> Result<OwnedSemaphorePermit, Status> {
        let places = match verb {
            _ if long_running => &self.long_running,
            "get" | "list" | "head" => &self.reads,
            _ => &self.writes,
        };
        places
            .clone()
            .try_acquire_owned()
            .map_err(|_| Status::too_many_requests("too many requests, please try again later", 1))
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
