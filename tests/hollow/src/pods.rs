//! The pods of all nodes of a fleet.
//!
//! ```text
//!  watch (one, or one a node) ──▶ known: by key, whose node ──▶ queue of keys ──▶ N_WORKERS workers
//!                                                                                    │ next_step
//!                                                     PATCH status, DELETE ◀─────────┘
//! ```
//!
//! Workers are level-triggered: each looks at the newest version of a pod that is known, be it from the watch or from the
//! answer to what was written. A version that is older than what is known is passed over: it would be acted upon twice.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt as _;
use jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::{WatchStreamExt as _, watcher};
use parking_lot::Mutex;
use serde_json::Value;
use skiff_client::{ObjectKey, WorkQueue};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{Caller, is_gone};
use crate::census::Census;
use crate::latency::Call;
use crate::node::Node;
use crate::plan::{self, Outcome, Place, Step};
use crate::pod::Pod;

/// Pods that are looked at at a time; how many requests that makes is the caller's to bound.
const N_WORKERS: usize = 64;
const PATCH_STATUS: Call = Call::new("PATCH", "pods/status");
const DELETE: Call = Call::new("DELETE", "pods");

/// Who watches the pods of the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchMode {
    /// One watch of all pods, sorted here: what is measured is not the number of watches.
    Shared,
    /// One a node, of the pods bound to it, as kubelets watch.
    PerNode,
}

/// Cloning shares it.
#[derive(Clone)]
pub(crate) struct Pods {
    inner: Arc<Inner>,
}

struct Inner {
    caller: Caller,
    nodes: HashMap<String, Arc<Node>>,
    /// Pods of the nodes of the fleet.
    known: Mutex<HashMap<ObjectKey, Known>>,
    queue: WorkQueue<ObjectKey>,
    census: Option<Arc<Census>>,
}

/// A pod as last seen.
struct Known {
    pod: Arc<Pod>,
    /// It was deleted for good; the watch has yet to tell.
    is_removed: bool,
}

impl Pods {
    pub(crate) fn new(caller: Caller, nodes: &[Arc<Node>], census: Option<Arc<Census>>) -> Pods {
        let nodes = nodes.iter().map(|node| (node.name.clone(), node.clone())).collect();
        let (known, queue) = (Mutex::default(), WorkQueue::default());
        Pods { inner: Arc::new(Inner { caller, nodes, known, queue, census }) }
    }

    /// Starts the watches and the workers.
    pub(crate) fn start(&self, mode: WatchMode, tasks: &mut JoinSet<()>, shutdown: &CancellationToken) {
        for _ in 0..N_WORKERS {
            tasks.spawn(self.clone().work());
        }
        let (queue, closing) = (self.inner.queue.clone(), shutdown.clone());
        tasks.spawn(async move {
            closing.cancelled().await;
            queue.close();
        });
        let watched = watcher::Config::default();
        if mode == WatchMode::PerNode {
            for name in self.inner.nodes.keys() {
                let of_node = watched.clone().fields(&format!("spec.nodeName={name}"));
                let follow = self.clone().follow(of_node, Part::Node(name.clone()));
                tasks.spawn(until(shutdown.clone(), follow));
            }
            if self.inner.census.is_none() {
                return;
            }
        }
        // The census sees pods that no node has yet.
        let part = if mode == WatchMode::Shared { Part::All } else { Part::Census };
        tasks.spawn(until(shutdown.clone(), self.clone().follow(watched, part)));
    }

    async fn follow(self, config: watcher::Config, part: Part) {
        let api: Api<Pod> = Api::all(self.inner.caller.client());
        let mut events = std::pin::pin!(watcher(api, config).default_backoff());
        let mut listed = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(pod)) => {
                    listed.insert(pod.key());
                    self.apply(pod, &part);
                }
                Ok(watcher::Event::InitDone) => self.replaced(&std::mem::take(&mut listed), &part),
                Ok(watcher::Event::Apply(pod)) => self.apply(pod, &part),
                Ok(watcher::Event::Delete(pod)) => self.forget(&pod.key(), &part),
                Err(error) => tracing::warn!(?part, %error, "the watch of pods is interrupted, trying again"),
            }
        }
    }

    fn apply(&self, pod: Pod, part: &Part) {
        let key = pod.key();
        if let Some(census) = self.inner.census.as_ref().filter(|_| part.counts()) {
            census.seen(&key, &pod, Instant::now());
        }
        if part.acts() && self.inner.nodes.contains_key(&pod.spec.node_name) {
            self.learn(key.clone(), pod);
            self.inner.queue.add(key);
        }
    }

    /// Keeps a version of a pod unless a newer one is known.
    fn learn(&self, key: ObjectKey, pod: Pod) {
        let mut known = self.inner.known.lock();
        let newest = known.get(&key).filter(|known| known.pod.uid() == pod.uid());
        if newest.is_some_and(|known| known.is_removed || known.pod.version() >= pod.version()) {
            return;
        }
        if let Some(other) = known.insert(key, Known { pod: Arc::new(pod.clone()), is_removed: false })
            && other.pod.uid() != pod.uid()
            && let Some(node) = self.inner.nodes.get(&other.pod.spec.node_name)
        {
            node.release(other.pod.uid());
        }
    }

    /// A list is complete: what is not in it is gone.
    fn replaced(&self, listed: &HashSet<ObjectKey>, part: &Part) {
        if let Some(census) = self.inner.census.as_ref().filter(|_| part.counts()) {
            census.listed();
            census.keys().iter().filter(|key| !listed.contains(*key)).for_each(|key| census.gone(key));
        }
        let gone: Vec<ObjectKey> = {
            let known = self.inner.known.lock();
            let ours = known.iter().filter(|(_, known)| part.covers(&known.pod.spec.node_name));
            ours.map(|(key, _)| key).filter(|key| !listed.contains(*key)).cloned().collect()
        };
        gone.iter().for_each(|key| self.forget(key, part));
    }

    fn forget(&self, key: &ObjectKey, part: &Part) {
        if let Some(census) = self.inner.census.as_ref().filter(|_| part.counts()) {
            census.gone(key);
        }
        if !part.acts() {
            return;
        }
        if let Some(Known { pod, .. }) = self.inner.known.lock().remove(key)
            && let Some(node) = self.inner.nodes.get(&pod.spec.node_name)
        {
            node.release(pod.uid());
        }
    }

    /// Looks at one pod after the other until the queue is closed.
    async fn work(self) {
        while let Some(key) = self.inner.queue.get().await {
            match self.look_at(&key).await {
                Ok(()) => self.inner.queue.forget(&key),
                Err(error) => {
                    tracing::warn!(pod = %key, %error, "cannot write what became of a pod, trying again");
                    self.inner.queue.retry(key.clone());
                }
            }
            self.inner.queue.done(&key);
        }
    }

    async fn look_at(&self, key: &ObjectKey) -> kube::Result<()> {
        let known = self.inner.known.lock().get(key).filter(|k| !k.is_removed).map(|k| k.pod.clone());
        let Some(pod) = known else { return Ok(()) };
        let Some(node) = self.inner.nodes.get(&pod.spec.node_name) else { return Ok(()) };
        let now = Timestamp::now();
        match plan::next_step(&pod, pod.spec.host_network || node.has_room(pod.uid())) {
            Step::Nothing => Ok(()),
            step @ (Step::Start | Step::Repeat) => {
                let shown = pod.status.pod_ip.as_deref();
                let pod_ip =
                    if pod.spec.host_network { Some(node.ip()) } else { node.address(pod.uid(), shown) };
                // Another took the last one: the next look refuses it.
                let Some(pod_ip) = pod_ip else {
                    self.inner.queue.retry(key.clone());
                    return Ok(());
                };
                let is_new = step == Step::Start && pod.status.start_time.is_none();
                if is_new && !self.write(&pod, plan::creating(&pod, node.ip(), now)).await? {
                    return Ok(());
                }
                let place = Place { host_ip: node.ip(), pod_ip };
                self.write(&pod, plan::running(&pod, place, now)).await.map(drop)
            }
            Step::Refuse => {
                let refused = plan::refused(&pod, node.n_pods(), node.capacity(), now);
                self.write(&pod, refused).await.map(drop)
            }
            Step::Finish(outcome) => self.write(&pod, plan::ended(&pod, outcome, now)).await.map(drop),
            Step::End => {
                self.write(&pod, plan::ended(&pod, Outcome::Succeeded, now)).await?;
                self.remove(&pod).await
            }
            Step::Remove => self.remove(&pod).await,
        }
    }

    fn api(&self, pod: &Pod) -> Api<Pod> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.inner.caller.client(), namespace)
    }

    /// Answers whether the pod is still there.
    async fn write(&self, pod: &Pod, patch: Value) -> kube::Result<bool> {
        let (api, patch) = (self.api(pod), Patch::Strategic(patch));
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let params = PatchParams::default();
        match self.inner.caller.insist(PATCH_STATUS, || api.patch_status(name, &params, &patch)).await {
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
            Ok(written) => {
                self.learn(written.key(), written);
                Ok(true)
            }
        }
    }

    /// Deletes a pod for good.
    async fn remove(&self, pod: &Pod) -> kube::Result<()> {
        let api = self.api(pod);
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let only_it = Preconditions { uid: Some(pod.uid().to_owned()), resource_version: None };
        let params = DeleteParams { preconditions: Some(only_it), ..DeleteParams::default().grace_period(0) };
        match self.inner.caller.insist(DELETE, || api.delete(name, &params)).await {
            Err(error) if is_gone(&error) => {}
            deleted => drop(deleted?),
        }
        if let Some(known) = self.inner.known.lock().get_mut(&pod.key()).filter(|k| k.pod.uid() == pod.uid())
        {
            known.is_removed = true;
        }
        Ok(())
    }
}

/// What a watch is of.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    /// All pods: for the census and the nodes.
    All,
    /// All pods, only for the census.
    Census,
    Node(String),
}

impl Part {
    fn counts(&self) -> bool {
        matches!(self, Part::All | Part::Census)
    }

    fn acts(&self) -> bool {
        matches!(self, Part::All | Part::Node(_))
    }

    fn covers(&self, node: &str) -> bool {
        match self {
            Part::All => true,
            Part::Census => false,
            Part::Node(name) => name == node,
        }
    }
}

/// Runs something until the end of the fleet.
pub(crate) async fn until(shutdown: CancellationToken, run: impl Future<Output = ()>) {
    shutdown.run_until_cancelled_owned(run).await;
}
