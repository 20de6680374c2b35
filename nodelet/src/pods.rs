//! The pods of this node: one watch, one worker a pod.
//!
//! ```text
//!  watch spec.nodeName=<node> ──▶ Pods ──desired──▶ Worker (one task a pod)
//!                                   ▲                    │ ends
//!                                   └────────────────────┘
//! ```
//!
//! # Guarantees
//! - Nothing is taken for an orphan before the API's whole list of pods has been read.
//! - A pod of the same name and another UID is another pod.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use parking_lot::RwLock;
use skiff_cri::ContainerEvent;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

use crate::admission::{NODE_AFFINITY, NodeView, refusal};
use crate::event::EventType;
use crate::pod::{PodExt, is_terminal};
use crate::snapshot;
use crate::wake::Wakers;
use crate::worker::{Desired, Shared, Worker, end_orphan};

/// The pods that this node has, by namespace and name, for the node API.
pub(crate) type PodIndex = Arc<RwLock<BTreeMap<(String, String), Arc<Pod>>>>;

/// Pods wait for it, but for no longer.
const READ_LABELS: Duration = Duration::from_secs(5);

struct Handle {
    desired: watch::Sender<Desired>,
    ended: Arc<AtomicBool>,
}

pub(crate) struct Pods {
    shared: Arc<Shared>,
    /// The node's, as they were last read: its own, and those that others gave it.
    labels: BTreeMap<String, String>,
    index: PodIndex,
    handles: HashMap<String, Handle>,
    workers: JoinSet<String>,
    /// The API's list of pods has been read once.
    listed: bool,
}

impl Pods {
    pub(crate) fn new(shared: Arc<Shared>, labels: BTreeMap<String, String>, index: PodIndex) -> Pods {
        Pods { shared, labels, index, handles: HashMap::new(), workers: JoinSet::new(), listed: false }
    }

    /// Runs until dropped; dropping it ends the workers and leaves all containers running.
    pub(crate) async fn run(mut self) {
        let api = Api::<Pod>::all(self.shared.client.clone());
        let config =
            watcher::Config::default().fields(&format!("spec.nodeName={}", self.shared.config.node_name));
        let stream = watcher(api, config).default_backoff();
        futures::pin_mut!(stream);
        let mut listing = Vec::new();
        loop {
            // Both arms only wait: an event that is taken is handled before the next is asked for.
            tokio::select! {
                event = stream.next() => match event {
                    Some(Ok(event)) => Box::pin(self.handle(event, &mut listing)).await,
                    Some(Err(error)) => tracing::warn!(%error, "cannot watch this node's pods, trying again"),
                    None => return,
                },
                Some(ended) = self.workers.join_next() => self.forget(ended),
            }
        }
    }

    async fn handle(&mut self, event: watcher::Event<Pod>, listing: &mut Vec<Pod>) {
        match event {
            watcher::Event::Init => listing.clear(),
            watcher::Event::InitApply(pod) => listing.push(pod),
            watcher::Event::InitDone => self.replace_all(std::mem::take(listing)).await,
            watcher::Event::Apply(pod) => self.apply(pod).await,
            watcher::Event::Delete(pod) => self.deleted(pod.uid(), Some(&pod)),
        }
    }

    async fn replace_all(&mut self, mut pods: Vec<Pod>) {
        let listed: HashSet<String> = pods.iter().map(|p| p.uid().to_owned()).collect();
        let gone: Vec<String> = self.handles.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
        for uid in gone {
            self.deleted(&uid, None);
        }
        // In the order they were made, so that the same ones find room as before.
        pods.sort_by(|a, b| a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp));
        for pod in pods {
            self.apply(pod).await;
        }
        if !std::mem::replace(&mut self.listed, true) {
            tokio::spawn(end_orphans(self.shared.clone(), listed));
        }
    }

    async fn apply(&mut self, pod: Pod) {
        if pod.uid().is_empty() || pod.name().is_empty() {
            return;
        }
        let pod = Arc::new(pod);
        self.index.write().insert((pod.namespace().to_owned(), pod.name().to_owned()), pod.clone());
        if let Some(handle) = self.handles.get(pod.uid()) {
            handle.desired.send_modify(|desired| {
                desired.pod = pod.clone();
                desired.in_api = true;
            });
            return;
        }
        let mut rejection = self.rejection(&pod);
        if rejection.as_ref().is_some_and(|(reason, _)| reason == NODE_AFFINITY) && self.read_labels().await {
            rejection = self.rejection(&pod);
        }
        if let Some((reason, message)) = &rejection {
            self.shared.events.pod(&pod, EventType::Warning, reason, message);
        }
        let uid = pod.uid().to_owned();
        let (desired, desired_rx) = watch::channel(Desired { pod, in_api: true, rejection });
        let ended = Arc::new(AtomicBool::new(false));
        let worker = Worker::new(self.shared.clone(), desired_rx, ended.clone());
        let finished = uid.clone();
        self.workers.spawn(async move {
            worker.run().await;
            finished
        });
        self.handles.insert(uid, Handle { desired, ended });
    }

    /// Whoever bound the pod may have seen a label that this node has not heard of. Answers whether there was news.
    async fn read_labels(&mut self) -> bool {
        let nodes = Api::<Node>::all(self.shared.client.clone());
        let read = tokio::time::timeout(READ_LABELS, nodes.get_metadata(&self.shared.config.node_name));
        match read.await.map_err(|_| "no answer".to_owned()).and_then(|r| r.map_err(|e| e.to_string())) {
            Ok(node) => {
                let labels = node.metadata.labels.unwrap_or_default();
                std::mem::replace(&mut self.labels, labels.clone()) != labels
            }
            Err(error) => {
                tracing::warn!(error, "cannot read this node's labels to judge a pod by");
                false
            }
        }
    }

    /// Only a pod that never started here is judged: one that did keeps its place.
    fn rejection(&self, pod: &Pod) -> Option<(String, String)> {
        let started = pod.status.as_ref().is_some_and(|s| s.start_time.is_some());
        if started || pod.is_deleting() || is_terminal(pod.phase()) {
            return None;
        }
        let desired: Vec<Arc<Pod>> = self
            .handles
            .values()
            .filter(|h| !h.ended.load(Ordering::Acquire))
            .map(|h| h.desired.borrow().pod.clone())
            .filter(|p| !is_terminal(p.phase()))
            .collect();
        let others: Vec<&Pod> = desired.iter().map(|p| &**p).collect();
        let config = &self.shared.config;
        let node =
            NodeView { name: &config.node_name, labels: &self.labels, allocatable: &self.shared.allocatable };
        refusal(&node, &others, pod)
    }

    fn deleted(&mut self, uid: &str, last: Option<&Pod>) {
        if let Some(handle) = self.handles.get(uid) {
            handle.desired.send_modify(|desired| {
                desired.in_api = false;
                if let Some(pod) = last {
                    desired.pod = Arc::new(pod.clone());
                }
            });
        }
        self.index.write().retain(|_, pod| pod.uid() != uid);
    }

    fn forget(&mut self, ended: Result<String, tokio::task::JoinError>) {
        match ended {
            Ok(uid) => drop(self.handles.remove(&uid)),
            // A worker that panicked takes its pod's state with it; the next event makes a new one.
            Err(error) => {
                tracing::error!(%error, "a pod's worker failed");
                self.handles.retain(|_, handle| !handle.desired.is_closed());
            }
        }
    }
}

/// Ends pods that are here and not in the API: deleted while no nodelet ran.
async fn end_orphans(shared: Arc<Shared>, listed: HashSet<String>) {
    let known = match snapshot::list_pods(&*shared.cri).await {
        Ok(known) => known,
        Err(error) => return tracing::warn!(%error, "cannot list the runtime's pods to find orphans"),
    };
    for uid in shared.volumes.pods_on_disk().await {
        if listed.contains(&uid) || known.contains_key(&uid) {
            continue;
        }
        if let Err(error) = shared.volumes.tear_down(&uid).await {
            tracing::warn!(uid, %error, "cannot remove the directory of a pod that is gone");
        }
    }
    let orphans = known.into_iter().filter(|(uid, _)| !listed.contains(uid));
    let ends = orphans.map(|(uid, (namespace, name))| {
        let shared = shared.clone();
        async move {
            tracing::info!(uid, namespace, name, "ending a pod that is not in the API any more");
            if let Err(error) = end_orphan(&shared, &namespace, &name, &uid).await {
                tracing::warn!(uid, %error, "cannot end an orphaned pod");
            }
        }
    });
    futures::future::join_all(ends).await;
}

/// Wakes workers for what the runtime reports.
pub(crate) async fn forward_events(mut events: broadcast::Receiver<ContainerEvent>, wakers: Arc<Wakers>) {
    loop {
        match events.recv().await {
            Ok(event) => wakers.wake_sandbox(&event.sandbox_id),
            Err(broadcast::error::RecvError::Lagged(_)) => wakers.wake_all(),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
