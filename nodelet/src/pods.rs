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
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::runtime::watcher;
use parking_lot::RwLock;
use skiff_client::{Read, watched};
use skiff_cri::ContainerEvent;
use skiff_cri::v1::{ContainerFilter, ListContainersRequest};
use tokio::sync::{broadcast, watch};
use tokio::task::{Id, JoinError, JoinSet};

use crate::admission::{NODE_AFFINITY, NodeView, insufficient, refusal};
use crate::event::EventType;
use crate::given::{self, Given, Pending, Resize};
use crate::pod::{PodExt, find_container, is_terminal};
use crate::qos;
use crate::resources::{pod_request_milli, qos_class};
use crate::snapshot::{self, CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use crate::wake::Wakers;
use crate::worker::{Desired, Shared, Worker, end_orphan};

/// The pods that this node has, by namespace and name, for the node API.
pub(crate) type PodIndex = Arc<RwLock<BTreeMap<(String, String), Arc<Pod>>>>;

/// Pods wait for it, but for no longer.
const READ_LABELS: Duration = Duration::from_secs(5);

/// A worker that panicked is made anew after this, doubling.
const FIRST_REVIVAL: Duration = Duration::from_secs(1);
const MAX_REVIVAL: Duration = Duration::from_secs(300);
/// After so long without a panic the next one counts as the first.
const FORGET_PANICS: Duration = Duration::from_secs(600);

struct Handle {
    desired: watch::Sender<Desired>,
    /// As the API has it, while the worker is told what was allocated to it.
    asked: Arc<Pod>,
    allocated: Given,
    ended: Arc<AtomicBool>,
    started: Instant,
    n_panics: u32,
}

impl Handle {
    /// Whose change is looked at first: those of the least rank.
    fn rank(&self) -> (bool, i32, bool, Timestamp) {
        let more = |name: &str| {
            let allocated = self.desired.borrow().pod.clone();
            pod_request_milli(&self.asked, name) > pod_request_milli(&allocated, name)
        };
        let priority = self.asked.spec.as_ref().and_then(|s| s.priority).unwrap_or_default();
        let since = self.desired.borrow().resize.pending.as_ref().map(|pending| pending.since);
        let is_guaranteed = qos_class(&self.asked) == "Guaranteed";
        (
            more("cpu") || more("memory"),
            priority.saturating_neg(),
            !is_guaranteed,
            since.unwrap_or(Timestamp::MAX),
        )
    }

    /// How long to wait before the worker that just panicked is made anew.
    fn next_revival(&mut self) -> Duration {
        if self.started.elapsed() > FORGET_PANICS {
            self.n_panics = 0;
        }
        let wait = FIRST_REVIVAL.saturating_mul(1 << self.n_panics.min(9)).min(MAX_REVIVAL);
        self.n_panics = self.n_panics.saturating_add(1);
        wait
    }
}

pub(crate) struct Pods {
    shared: Arc<Shared>,
    /// The node's, as they were last read: its own, and those that others gave it.
    labels: BTreeMap<String, String>,
    index: PodIndex,
    handles: HashMap<String, Handle>,
    workers: JoinSet<()>,
    /// Whose worker each task is: a task that panicked cannot say so itself.
    tasks: HashMap<Id, String>,
    /// Pods whose worker panicked, each waiting for a new one.
    revivals: JoinSet<String>,
    /// The API's list of pods has been read once.
    listed: bool,
    /// What burstable pods ask for together, for whoever sets their group's weight.
    burstable_milli: watch::Sender<Option<i64>>,
}

impl Pods {
    pub(crate) fn new(
        shared: Arc<Shared>,
        labels: BTreeMap<String, String>,
        index: PodIndex,
        burstable_milli: watch::Sender<Option<i64>>,
    ) -> Pods {
        Pods {
            shared,
            labels,
            index,
            handles: HashMap::new(),
            workers: JoinSet::new(),
            tasks: HashMap::new(),
            revivals: JoinSet::new(),
            listed: false,
            burstable_milli,
        }
    }

    /// Runs until dropped; dropping it ends the workers and leaves all containers running.
    pub(crate) async fn run(mut self) {
        let api = Api::<Read<Pod>>::all(self.shared.client.clone());
        let config =
            watcher::Config::default().fields(&format!("spec.nodeName={}", self.shared.config.node_name));
        let stream = watched(api, config);
        futures::pin_mut!(stream);
        let mut listing = Vec::new();
        loop {
            // All arms only wait: an event that is taken is handled before the next is asked for.
            tokio::select! {
                event = stream.next() => match event {
                    Some(Ok(event)) => Box::pin(self.handle(event, &mut listing)).await,
                    Some(Err(error)) => tracing::warn!(%error, "cannot watch this node's pods, trying again"),
                    None => return,
                },
                Some(ended) = self.workers.join_next_with_id() => self.ended(ended),
                Some(due) = self.revivals.join_next() => if let Ok(uid) = due { self.work(&uid) },
            }
            self.resize();
            self.weigh();
        }
    }

    /// Adds up what the pods that run or are about to ask for. That one has ended is heard of with its last status.
    fn weigh(&self) {
        if !self.listed {
            return;
        }
        let pods: Vec<Arc<Pod>> = self.active().collect();
        let asked = Some(qos::burstable_milli(pods.iter().map(|pod| &**pod)));
        self.burstable_milli.send_if_modified(|known| std::mem::replace(known, asked) != asked);
    }

    /// The pods that take room here.
    fn active(&self) -> impl Iterator<Item = Arc<Pod>> {
        let live = self.handles.values().filter(|h| !h.ended.load(Ordering::Acquire));
        live.map(|h| h.desired.borrow().pod.clone()).filter(|pod| !is_terminal(pod.phase()))
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
        let remains = match self.listed {
            false => Remains::look(&self.shared).await,
            true => None,
        };
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
        self.listed = true;
        if let Some(remains) = remains {
            tokio::spawn(end_orphans(self.shared.clone(), remains, listed));
        }
    }

    async fn apply(&mut self, pod: Pod) {
        if pod.uid().is_empty() || pod.name().is_empty() {
            return;
        }
        let pod = Arc::new(pod);
        self.index.write().insert((pod.namespace().to_owned(), pod.name().to_owned()), pod.clone());
        if let Some(handle) = self.handles.get_mut(pod.uid()) {
            handle.asked = pod.clone();
            let allocated = handle.allocated.on(&pod);
            handle.desired.send_modify(|desired| {
                desired.pod = allocated;
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
        let allocated = Given::of_status(&pod);
        let told = Desired { pod: allocated.on(&pod), in_api: true, rejection, resize: Resize::default() };
        let (desired, _) = watch::channel(told);
        let handle = Handle {
            desired,
            asked: pod,
            allocated,
            ended: Arc::new(AtomicBool::new(false)),
            started: Instant::now(),
            n_panics: 0,
        };
        self.handles.insert(uid.clone(), handle);
        self.work(&uid);
    }

    /// Starts the worker of a pod that has a handle and no worker.
    fn work(&mut self, uid: &str) {
        let Some(handle) = self.handles.get_mut(uid) else { return };
        handle.started = Instant::now();
        let worker = Worker::new(self.shared.clone(), handle.desired.subscribe(), handle.ended.clone());
        let task = self.workers.spawn(worker.run());
        self.tasks.insert(task.id(), uid.to_owned());
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

    /// Allocates to pods what they ask for by now, where there is room for it. Who asks for less comes first, then who is
    /// more important, then who has waited for longest.
    fn resize(&mut self) {
        if !self.listed {
            return;
        }
        let waits = |handle: &Handle| {
            let has_ended = handle.ended.load(Ordering::Acquire) || is_terminal(handle.asked.phase());
            let is_rejected = handle.desired.borrow().rejection.is_some();
            !has_ended && !is_rejected && !handle.asked.is_deleting()
        };
        let changed = |handle: &Handle| {
            let desired = handle.desired.borrow();
            let is_same =
                Arc::ptr_eq(&desired.pod, &handle.asked) || handle.allocated.is_asked_by(&handle.asked);
            !is_same || desired.resize.pending.is_some()
        };
        let mut waiting: Vec<_> = self.handles.iter().filter(|(_, h)| changed(h) && waits(h)).collect();
        waiting.sort_by_key(|(_, handle)| handle.rank());
        let waiting: Vec<String> = waiting.into_iter().map(|(uid, _)| uid.clone()).collect();
        for uid in waiting {
            self.resize_one(&uid);
        }
    }

    fn resize_one(&mut self, uid: &str) {
        let Some(handle) = self.handles.get(uid) else { return };
        let asked = handle.asked.clone();
        if handle.allocated.is_asked_by(&asked) {
            // Taken back before there was room for it.
            return handle.desired.send_modify(|desired| desired.resize.pending = None);
        }
        let others: Vec<Arc<Pod>> = self.active().filter(|other| other.uid() != uid).collect();
        let others: Vec<&Pod> = others.iter().map(|p| &**p).collect();
        let config = &self.shared.config;
        let node =
            NodeView { name: &config.node_name, labels: &self.labels, allocatable: &self.shared.allocatable };
        let refused = insufficient(&node, &others, &asked);
        let Some(handle) = self.handles.get_mut(uid) else { return };
        let generation = asked.metadata.generation;
        let events = &self.shared.events;
        let Some((_, message)) = refused else {
            handle.allocated = Given::of_spec(&asked);
            handle.desired.send_modify(|desired| {
                desired.pod = asked.clone();
                desired.resize = Resize { pending: None, started: generation };
            });
            let message = given::told("Pod resize started", &asked, generation, "");
            return events.pod(&asked, EventType::Normal, "ResizeStarted", &message);
        };
        let before = handle.desired.borrow().resize.pending.clone();
        let is_news = before.as_ref().is_none_or(|before| before.generation != generation);
        let since = before.as_ref().map_or_else(Timestamp::now, |before| before.since);
        let pending = Some(Pending { message: message.clone(), generation, since });
        if before != pending {
            handle.desired.send_modify(|desired| desired.resize.pending = pending);
        }
        if is_news {
            let told = given::told("Pod resize Deferred", &asked, generation, &message);
            events.pod(&asked, EventType::Warning, "ResizeDeferred", &told);
        }
    }

    /// Only a pod that never started here is judged: one that did keeps its place.
    fn rejection(&self, pod: &Pod) -> Option<(String, String)> {
        let started = pod.status.as_ref().is_some_and(|s| s.start_time.is_some());
        if started || pod.is_deleting() || is_terminal(pod.phase()) {
            return None;
        }
        let desired: Vec<Arc<Pod>> = self.active().collect();
        let others: Vec<&Pod> = desired.iter().map(|p| &**p).collect();
        let config = &self.shared.config;
        let node =
            NodeView { name: &config.node_name, labels: &self.labels, allocatable: &self.shared.allocatable };
        self.shared.pressure.refusal(pod).or_else(|| refusal(&node, &others, pod))
    }

    fn deleted(&mut self, uid: &str, last: Option<&Pod>) {
        if let Some(handle) = self.handles.get(uid) {
            handle.desired.send_modify(|desired| {
                desired.in_api = false;
                if let Some(pod) = last {
                    desired.pod = handle.allocated.on(&Arc::new(pod.clone()));
                }
            });
        }
        self.index.write().retain(|_, pod| pod.uid() != uid);
    }

    /// A worker has finished with its pod, or panicked: then a new one reads all of the pod's state again.
    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
        let Some(uid) = self.tasks.remove(&id) else { return };
        let Err(error) = ended else { return drop(self.handles.remove(&uid)) };
        let Some(handle) = self.handles.get_mut(&uid) else { return };
        let wait = handle.next_revival();
        tracing::error!(uid, %error, wait_s = wait.as_secs(), "a pod's worker failed; it is made anew");
        self.revivals.spawn(async move {
            tokio::time::sleep(wait).await;
            uid
        });
    }
}

/// What was here of pods before the first worker began.
struct Remains {
    /// In the runtime: namespace and name by UID.
    pods: BTreeMap<String, (String, String)>,
    /// UIDs that have a directory.
    directories: Vec<String>,
    /// Directories of logs, by UID.
    logs: Vec<(String, PathBuf)>,
}

impl Remains {
    /// To be asked for before any worker runs: what a worker makes is never left over. `None` if the runtime does not say.
    async fn look(shared: &Shared) -> Option<Remains> {
        let pods = match snapshot::list_pods(&*shared.cri).await {
            Ok(pods) => pods,
            Err(error) => {
                tracing::warn!(%error, "cannot list the runtime's pods to find orphans");
                return None;
            }
        };
        let log_root = shared.config.log_root.clone();
        let logs = tokio::task::spawn_blocking(move || log_directories(&log_root)).await;
        Some(Remains {
            pods,
            directories: shared.volumes.pods_on_disk().await,
            logs: logs.unwrap_or_default(),
        })
    }
}

/// The directories of logs that are named as a pod's: `<namespace>_<name>_<uid>`.
fn log_directories(log_root: &Path) -> Vec<(String, PathBuf)> {
    let names = std::fs::read_dir(log_root).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let of_pod = |name: OsString| {
        let parts: Vec<&str> = name.to_str()?.split('_').collect();
        match parts[..] {
            [namespace, pod, uid] if ![namespace, pod, uid].contains(&"") => {
                Some((uid.to_owned(), log_root.join(&name)))
            }
            _ => None,
        }
    };
    names.filter_map(of_pod).collect()
}

/// Ends pods that were here and are not in the API, deleted while no nodelet ran, and removes what pods left that are
/// neither there nor in the runtime.
async fn end_orphans(shared: Arc<Shared>, remains: Remains, listed: HashSet<String>) {
    let Remains { pods, directories, logs } = remains;
    let is_gone = |uid: &String| !listed.contains(uid) && !pods.contains_key(uid);
    for uid in directories.iter().filter(|uid| is_gone(uid)) {
        if let Err(error) = shared.volumes.tear_down(uid).await {
            tracing::warn!(uid, %error, "cannot remove the directory of a pod that is gone");
        }
    }
    let gone: Vec<_> = logs.into_iter().filter(|(uid, _)| is_gone(uid)).collect();
    let removed = tokio::task::spawn_blocking(move || {
        for (uid, logs) in gone {
            tracing::info!(uid, logs = %logs.display(), "removing the logs of a pod that is gone");
            if let Err(error) = skiff_tree::remove(&logs) {
                tracing::warn!(uid, %error, "cannot remove the logs of a pod that is gone");
            }
        }
    });
    // Only a panic, which has been told, ends it early.
    let _ended = removed.await;
    let orphans = pods.into_iter().filter(|(uid, _)| !listed.contains(uid));
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

/// Has the pods' events say what the runtime tells of containers that are being created.
pub(crate) async fn tell_notices(shared: Arc<Shared>, index: PodIndex) {
    let mut notices = shared.cri.notices();
    loop {
        let notice = match notices.recv().await {
            Ok(notice) => notice,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            // This runtime tells nothing.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        };
        let filter = ContainerFilter { id: notice.container_id.clone(), ..ContainerFilter::default() };
        let listed = shared.cri.list_containers(ListContainersRequest { filter: Some(filter) }).await;
        let Some(labels) = listed.ok().and_then(|list| Some(list.containers.into_iter().next()?.labels))
        else {
            continue;
        };
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        let pod = index.read().get(&(label(POD_NAMESPACE), label(POD_NAME))).cloned();
        let Some(pod) = pod.filter(|pod| pod.uid() == label(POD_UID)) else { continue };
        if let Some(container) = find_container(&pod, &label(CONTAINER_NAME)) {
            shared.events.container(&pod, &container, EventType::Normal, notice.reason, &notice.message);
        }
    }
}
