//! Reads the nodes while somebody asks.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Limited};
use jiff::Timestamp;
use parking_lot::RwLock;
use skiff_api::meta::Meta;
use skiff_api::{Object, Status};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::page::{self, PageError};
use super::points::{NodeUsage, Page, RESOLUTION_MS};
use crate::cache::Entry;
use crate::lister::Lister;
use crate::proxy::kubelet::Kubelet;

/// From the beginning of one round to that of the next: metrics-server's `--metric-resolution`.
const INTERVAL: Duration = Duration::from_millis(RESOLUTION_MS.unsigned_abs());
/// The second round comes sooner: a rate takes two.
const FIRST_WINDOW: Duration = Duration::from_secs(2);
/// So long after the last question nothing is read any more.
pub(super) const IDLE_AFTER: Duration = Duration::from_secs(120);
/// Who asks first waits no longer than this.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// A node has so long to answer: all of them are done within an interval, if one in eight does not answer at all.
const NODE_TIMEOUT: Duration = Duration::from_secs(6);
const NODES_TOGETHER: usize = 64;
/// A stock kubelet with 110 pods answers with some 150 KiB.
const MAX_PAGE_BYTES: usize = 4 << 20;
const PATH: &str = "/metrics/resource";

pub(super) type Nodes = HashMap<String, Arc<NodeUsage>>;

#[derive(Debug, thiserror::Error)]
enum ScrapeError {
    #[error(transparent)]
    Unreached(#[from] Status),
    #[error("GET {PATH} was answered with {0}")]
    Refused(http::StatusCode),
    #[error("the page broke off, or is larger than {MAX_PAGE_BYTES} bytes")]
    Cut,
    #[error("no answer within {NODE_TIMEOUT:?}")]
    TimedOut,
    #[error(transparent)]
    Page(#[from] PageError),
}

/// What is known of the nodes, and who keeps it.
pub(super) struct Scraper {
    lister: Lister,
    kubelet: Arc<Kubelet>,
    nodes: RwLock<Arc<Nodes>>,
    /// When somebody asked last.
    asked: watch::Sender<Option<Instant>>,
    /// How many rounds there were since somebody began to ask.
    rounds: watch::Sender<u64>,
}

impl Scraper {
    pub(super) fn new(lister: Lister, kubelet: Arc<Kubelet>) -> Scraper {
        Scraper {
            lister,
            kubelet,
            nodes: RwLock::default(),
            asked: watch::Sender::new(None),
            rounds: watch::Sender::new(0),
        }
    }

    /// What is known now; of who asks first, what two rounds have told.
    pub(super) async fn nodes(&self) -> Arc<Nodes> {
        self.asked.send_replace(Some(Instant::now()));
        let mut rounds = self.rounds.subscribe();
        // What is there after the time is what is answered with.
        _ = tokio::time::timeout(MAX_WAIT, rounds.wait_for(|rounds| *rounds >= 2)).await;
        self.nodes.read().clone()
    }

    fn is_asked(&self) -> bool {
        self.asked.borrow().is_some_and(|at| at.elapsed() < IDLE_AFTER)
    }

    /// Reads the nodes whenever somebody asks, until `shutdown`.
    pub(super) async fn run(&self, shutdown: CancellationToken) {
        let mut asked = self.asked.subscribe();
        // Somebody may have asked before.
        asked.mark_changed();
        // Each only waits, but for a round: one that is dropped is of a server that ends.
        while let Some(Ok(_)) = shutdown.run_until_cancelled(asked.changed()).await {
            while self.is_asked() {
                let started = Instant::now();
                if shutdown.run_until_cancelled(self.round()).await.is_none() {
                    return;
                }
                self.rounds.send_modify(|rounds| *rounds += 1);
                let pause = if *self.rounds.borrow() == 1 { FIRST_WINDOW } else { INTERVAL };
                let next = tokio::time::sleep_until(started + pause);
                if shutdown.run_until_cancelled(next).await.is_none() {
                    return;
                }
            }
            self.rounds.send_replace(0);
            *self.nodes.write() = Arc::default();
        }
    }

    /// All nodes once. Of one that does not answer nothing is known, as of one that is gone.
    async fn round(&self) {
        let nodes = match self.lister.cache("", "v1", "nodes") {
            Ok(cache) => cache.readable(),
            Err(status) => return tracing::warn!(%status, "the nodes cannot be read for their metrics"),
        };
        let read = nodes.values().cloned().map(|entry| self.read(entry));
        let read = stream::iter(read).buffer_unordered(NODES_TOGETHER).filter_map(std::future::ready);
        let read: HashSet<String> = read.collect().await;
        Arc::make_mut(&mut *self.nodes.write()).retain(|name, _| read.contains(name));
    }

    /// Reads one; answers its name. What it has told counts at once: another may take its whole time.
    async fn read(&self, entry: Arc<Entry>) -> Option<String> {
        let node = entry.parse();
        let name = node.name().to_owned();
        let page = tokio::time::timeout(NODE_TIMEOUT, self.page(&node)).await;
        match page.unwrap_or(Err(ScrapeError::TimedOut)) {
            Ok(page) => {
                let known = self.nodes.read().get(&name).cloned();
                let next = NodeUsage::next(known.as_deref(), page);
                Arc::make_mut(&mut *self.nodes.write()).insert(name.clone(), Arc::new(next));
                Some(name)
            }
            Err(error) => {
                tracing::debug!(node = name, %error, "cannot read what a node uses");
                None
            }
        }
    }

    async fn page(&self, node: &Object) -> Result<Page, ScrapeError> {
        let to = self.kubelet.address_of(node)?;
        let request = http::Request::get(PATH).body(Body::empty()).map_err(Status::internal)?;
        let answer = self.kubelet.send(to, request).await?;
        if answer.status() != http::StatusCode::OK {
            return Err(ScrapeError::Refused(answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_PAGE_BYTES).collect().await;
        let bytes = body.map_err(|_| ScrapeError::Cut)?.to_bytes();
        Ok(page::read(&bytes, Timestamp::now().as_millisecond())?)
    }
}
