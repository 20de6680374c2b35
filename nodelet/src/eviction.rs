//! What gives way when the node runs short of memory or disk: first images that nobody uses, then pods, one at a time.
//!
//! ```text
//!  every 10 s: memory, disk ──▶ below what must be free?
//!                 │ conditions of the node, which stay for a while     no pods are taken meanwhile
//!                 │ disk: images that nobody uses go
//!                 ▼ still short
//!         pods by rank ──▶ the first that may go is told to ──▶ its worker ends it (`Failed`, reason `Evicted`)
//! ```
//!
//! Who uses more than it asked for goes first, then who is less important, then who is furthest above what it asked for.
//! Pods of the system and static pods stay. Thresholds, ranks and words are upstream's (`pkg/kubelet/eviction`); soft thresholds,
//! and disks that only images are on, are not known.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use skiff_api::quantity::{Quantity, Suffixes};
use skiff_cri::Cri;
use skiff_cri::v1::ListContainerStatsRequest;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use crate::config::Config;
use crate::event::{EventSink, EventType, node_ref};
use crate::node::pressure::EvictionHard;
use crate::node::status::{available_memory, pids_exhausted};
use crate::pod::{PodExt, containers, init_containers, is_terminal};
use crate::pods::PodIndex;
use crate::resources::{milli_value, pod_request_milli, request};
use crate::snapshot::{CONTAINER_NAME, POD_UID};
use crate::storage;
use crate::worker::Shared;

const PERIOD: Duration = Duration::from_secs(10);
/// A pod that was told to go has so long before another is told.
const CLEAN_UP: Duration = Duration::from_secs(30);
/// Pods of this priority or more are the system's.
const SYSTEM_CRITICAL: i32 = 2_000_000_000;
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Which pressures the node is under, for whoever takes pods or tells of the node.
#[derive(Debug, Default)]
pub(crate) struct Pressure {
    memory: AtomicBool,
    disk: AtomicBool,
    pids: AtomicBool,
}

impl Pressure {
    pub(crate) fn memory(&self) -> bool {
        self.memory.load(Ordering::Acquire)
    }

    pub(crate) fn disk(&self) -> bool {
        self.disk.load(Ordering::Acquire)
    }

    pub(crate) fn pids(&self) -> bool {
        self.pids.load(Ordering::Acquire)
    }

    fn set(&self, now: [bool; 3]) -> bool {
        let all = [&self.memory, &self.disk, &self.pids];
        let changed = all.into_iter().zip(now).map(|(flag, now)| flag.swap(now, Ordering::AcqRel) != now);
        changed.fold(false, |any, changed| any | changed)
    }

    /// Why a pod is not taken, if it is not.
    pub(crate) fn refusal(&self, pod: &Pod) -> Option<(String, String)> {
        let named =
            [("MemoryPressure", self.memory()), ("DiskPressure", self.disk()), ("PIDPressure", self.pids())];
        let under: Vec<&str> =
            named.into_iter().filter(|(_, is_under)| *is_under).map(|(name, _)| name).collect();
        if under.is_empty() || is_critical(pod) {
            return None;
        }
        let may_use_memory =
            crate::resources::qos_class(pod) != "BestEffort" || tolerates_memory_pressure(pod);
        if under == ["MemoryPressure"] && may_use_memory {
            return None;
        }
        Some(("Evicted".to_owned(), format!("The node had condition: [{}]. ", under.join(" "))))
    }
}

fn tolerates_memory_pressure(pod: &Pod) -> bool {
    let taint = k8s_openapi::api::core::v1::Taint {
        key: "node.kubernetes.io/memory-pressure".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Default::default()
    };
    let tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    tolerations.into_iter().any(|toleration| skiff_api::placement::tolerates(toleration, &taint))
}

fn is_critical(pod: &Pod) -> bool {
    let is_static = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR));
    is_static || pod.spec.as_ref().and_then(|s| s.priority).is_some_and(|p| p >= SYSTEM_CRITICAL)
}

/// Pods that were told to go, with the reason; their workers ask.
#[derive(Debug, Default)]
pub(crate) struct Evictions(Mutex<HashMap<String, String>>);

impl Evictions {
    pub(crate) fn of(&self, uid: &str) -> Option<String> {
        self.0.lock().get(uid).cloned()
    }
}

/// What of the node is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Memory,
    Disk,
    Inodes,
}

impl Resource {
    fn name(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::Disk => "ephemeral-storage",
            Resource::Inodes => "inodes",
        }
    }
}

/// What is free on the node, and how much there is.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    memory: Option<(u64, u64)>,
    disk: Option<(u64, u64)>,
    inodes: Option<(u64, u64)>,
    pids_are_short: bool,
}

impl Seen {
    fn read(config: &Config, memory_bytes: u64) -> Seen {
        let disk = rustix::fs::statvfs(&config.root_dir).ok();
        let disk = disk.as_ref();
        let inodes = disk.filter(|disk| disk.f_files > 0);
        Seen {
            memory: available_memory().map(|available| (available, memory_bytes)),
            disk: disk.map(|disk| (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize)),
            inodes: inodes.map(|disk| (disk.f_favail, disk.f_files)),
            pids_are_short: pids_exhausted().unwrap_or(false),
        }
    }

    /// What is below its least: the resource, the least, and what there is. The first is what eviction looks after first.
    fn short(&self, least: &EvictionHard) -> Vec<(Resource, u64, u64)> {
        let all = [
            (Resource::Memory, self.memory, least.memory()),
            (Resource::Disk, self.disk, least.disk()),
            (Resource::Inodes, self.inodes, least.inodes()),
        ];
        let short = all.into_iter().filter_map(|(resource, seen, least)| {
            let (available, total) = seen?;
            let wanted = least.of(total);
            (available < wanted).then_some((resource, wanted, available))
        });
        short.collect()
    }
}

/// When each pressure was last seen.
#[derive(Debug, Default)]
struct LastSeen([Option<Instant>; 3]);

impl LastSeen {
    /// The pressures to tell of: those that are there, and those that were there a moment ago.
    fn note(&mut self, there: [bool; 3], now: Instant, transition: Duration) -> [bool; 3] {
        for (last, there) in self.0.iter_mut().zip(there) {
            if there {
                *last = Some(now);
            }
        }
        self.0.map(|last| last.is_some_and(|last| last == now || now.duration_since(last) < transition))
    }
}

/// How to have images removed that nobody uses.
pub(crate) type Reclaim = mpsc::Sender<oneshot::Sender<()>>;

/// Watches the node, for as long as the nodelet runs.
pub(crate) struct Eviction {
    pub(crate) shared: Arc<Shared>,
    pub(crate) index: PodIndex,
    pub(crate) sink: Arc<dyn EventSink>,
    /// Rung when the node has something else to tell.
    pub(crate) look: Arc<Notify>,
    pub(crate) reclaim: Reclaim,
}

/// Looks once, so that the node's first status is right.
pub(crate) fn look(config: &Config, memory_bytes: u64, pressure: &Pressure) {
    let seen = Seen::read(config, memory_bytes);
    pressure.set(pressures(&seen, &config.eviction_hard));
}

fn pressures(seen: &Seen, least: &EvictionHard) -> [bool; 3] {
    let short = seen.short(least);
    let is_short = |wanted: &[Resource]| short.iter().any(|(resource, ..)| wanted.contains(resource));
    [is_short(&[Resource::Memory]), is_short(&[Resource::Disk, Resource::Inodes]), seen.pids_are_short]
}

impl Eviction {
    pub(crate) async fn run(self) {
        let mut last_seen = LastSeen::default();
        let mut going: Option<(String, Instant)> = None;
        loop {
            tokio::time::sleep(PERIOD).await;
            let (now, seen) = (Instant::now(), self.see());
            let config = &self.shared.config;
            let there = pressures(&seen, &config.eviction_hard);
            if self.shared.pressure.set(last_seen.note(there, now, config.pressure_transition)) {
                self.look.notify_one();
            }
            self.forget_gone();
            if going
                .as_ref()
                .is_some_and(|(uid, since)| now.duration_since(*since) < CLEAN_UP && self.is_active(uid))
            {
                continue;
            }
            going = self.relieve(&seen).await.map(|uid| (uid, now));
        }
    }

    fn see(&self) -> Seen {
        Seen::read(&self.shared.config, self.shared.memory_capacity.unsigned_abs())
    }

    /// Those that count: what has ended takes nothing that could be had back.
    fn active(&self) -> Vec<Arc<Pod>> {
        let all = self.index.read();
        all.values().filter(|pod| !is_terminal(pod.phase()) && !pod.is_deleting()).cloned().collect()
    }

    fn is_active(&self, uid: &str) -> bool {
        self.index.read().values().any(|pod| pod.uid() == uid && !is_terminal(pod.phase()))
    }

    fn forget_gone(&self) {
        let here: std::collections::HashSet<String> =
            self.index.read().values().map(|pod| pod.uid().to_owned()).collect();
        self.shared.evictions.0.lock().retain(|uid, _| here.contains(uid));
    }

    /// Does what can be done about what is short. Answers the pod that was told to go.
    async fn relieve(&self, seen: &Seen) -> Option<String> {
        let least = &self.shared.config.eviction_hard;
        let (resource, ..) = *seen.short(least).first()?;
        let message = format!("Attempting to reclaim {}", resource.name());
        self.node_event("EvictionThresholdMet", &message);
        if resource != Resource::Memory {
            self.remove_images().await;
        }
        let now = self.see();
        let (_, wanted, available) = *now.short(least).iter().find(|(short, ..)| *short == resource)?;
        let pods = self.active();
        let used = match resource {
            Resource::Memory => memory_used(&*self.shared.cri).await,
            Resource::Disk | Resource::Inodes => self.disk_used(&pods, resource).await,
        };
        let ranked = rank(pods, &used, resource);
        let Some(pod) = ranked.into_iter().find(|pod| !is_critical(pod)) else {
            tracing::warn!(resource = resource.name(), "the node is short of it, and no pod may be evicted");
            return None;
        };
        let message = message_of(&pod, used.get(pod.uid()), resource, (wanted, available));
        tracing::warn!(pod = %pod.describe(), resource = resource.name(), "evicting a pod");
        self.shared.evictions.0.lock().insert(pod.uid().to_owned(), message);
        self.shared.wakers.wake(pod.uid());
        Some(pod.uid().to_owned())
    }

    fn node_event(&self, reason: &str, message: &str) {
        self.sink.event(&node_ref(&self.shared.config.node_name), EventType::Warning, reason, message);
    }

    async fn remove_images(&self) {
        let (done, waiting) = oneshot::channel();
        if self.reclaim.send(done).await.is_ok() {
            // Nothing comes if the collection of images has ended.
            let _ended = waiting.await;
        }
    }

    async fn disk_used(&self, pods: &[Arc<Pod>], resource: Resource) -> HashMap<String, Used> {
        let mut all = HashMap::new();
        for pod in pods {
            let (total, containers) = storage::used(&self.shared, pod, resource == Resource::Inodes).await;
            all.insert(pod.uid().to_owned(), Used { total, containers });
        }
        all
    }
}

/// What a pod uses of a resource, and its containers by name.
#[derive(Clone, Debug, Default)]
struct Used {
    total: u64,
    containers: Vec<(String, u64)>,
}

/// The memory that cannot be taken back without ending somebody.
async fn memory_used(cri: &dyn Cri) -> HashMap<String, Used> {
    let stats = match cri.list_container_stats(ListContainerStatsRequest::default()).await {
        Ok(answer) => answer.stats,
        Err(error) => {
            tracing::warn!(%error, "cannot tell how much memory pods use; they go by priority");
            Vec::new()
        }
    };
    let mut all: HashMap<String, Used> = HashMap::new();
    for stat in stats {
        let labels = stat.attributes.map(|attributes| attributes.labels).unwrap_or_default();
        let Some(uid) = labels.get(POD_UID) else { continue };
        let bytes = stat.memory.and_then(|memory| memory.working_set_bytes).map_or(0, |bytes| bytes.value);
        let used = all.entry(uid.clone()).or_default();
        used.total = used.total.saturating_add(bytes);
        used.containers.push((labels.get(CONTAINER_NAME).cloned().unwrap_or_default(), bytes));
    }
    all
}

/// In bytes; of inodes nobody asks for any.
fn requested(pod: &Pod, resource: Resource) -> u64 {
    match resource {
        Resource::Inodes => 0,
        _ => (pod_request_milli(pod, resource.name()).max(0) / 1000).unsigned_abs(),
    }
}

/// The pods, the first to go first.
fn rank(mut pods: Vec<Arc<Pod>>, used: &HashMap<String, Used>, resource: Resource) -> Vec<Arc<Pod>> {
    pods.sort_by_cached_key(|pod| {
        let asked = requested(pod, resource);
        // One that nothing is known of may use anything.
        let uses = used.get(pod.uid()).map_or(u64::MAX, |used| used.total);
        let above = i128::from(uses) - i128::from(asked);
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or_default();
        (Reverse(uses > asked), priority, Reverse(above))
    });
    pods
}

/// An amount as upstream writes those that it measured.
fn shown(amount: u64, resource: Resource) -> String {
    let suffixes = if resource == Resource::Inodes { Suffixes::Decimal } else { Suffixes::Binary };
    Quantity::from_units(i64::try_from(amount).unwrap_or(i64::MAX), suffixes).to_string()
}

fn message_of(pod: &Pod, used: Option<&Used>, resource: Resource, (wanted, available): (u64, u64)) -> String {
    let name = resource.name();
    let (wanted, available) = (shown(wanted, resource), shown(available, resource));
    let mut message = format!(
        "The node was low on resource: {name}. Threshold quantity: {wanted}, available: {available}. "
    );
    if resource == Resource::Inodes {
        return message;
    }
    for (container, uses) in used.iter().flat_map(|used| &used.containers) {
        let all = containers(pod).iter().chain(init_containers(pod));
        let Some(spec) = all.into_iter().find(|c| c.name == *container) else { continue };
        let request = request(spec, name);
        if i128::from(*uses) * 1000 > request.map_or(0, |amount| i128::from(milli_value(amount))) {
            let request = request.map_or("0", |amount| amount.0.as_str());
            message += &format!(
                "Container {container} was using {}, request is {request}, has larger consumption of {name}. ",
                shown(*uses, resource)
            );
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{pod, typed};

    fn asks(name: &str, memory: &str, priority: i32) -> Arc<Pod> {
        let resources = json!({ "requests": { "memory": memory } });
        let containers = json!([{ "name": "app", "image": "app:1", "resources": resources }]);
        Arc::new(typed(pod(name, json!({ "priority": priority, "containers": containers }))))
    }

    fn names(pods: Vec<Arc<Pod>>) -> Vec<String> {
        pods.iter().map(|pod| pod.name().to_owned()).collect()
    }

    #[test]
    fn who_uses_more_than_it_asked_for_goes_first_then_the_less_important_then_who_uses_most() {
        let pods = vec![
            asks("within", "100Mi", 0),
            asks("important", "1Mi", 10),
            asks("small", "1Mi", 0),
            asks("large", "1Mi", 0),
        ];
        let mib = |n: u64| Used { total: n << 20, containers: Vec::new() };
        let used = HashMap::from([
            ("uid-within".to_owned(), mib(90)),
            ("uid-important".to_owned(), mib(500)),
            ("uid-small".to_owned(), mib(20)),
            ("uid-large".to_owned(), mib(80)),
        ]);
        assert_eq!(names(rank(pods, &used, Resource::Memory)), ["large", "small", "important", "within"]);
    }

    #[test]
    fn a_pod_is_told_what_was_short_and_which_container_used_it_in_upstreams_words() {
        let pod = asks("web", "1Mi", 0);
        let used = Used { total: 3 << 20, containers: vec![("app".to_owned(), 3 << 20)] };
        assert_eq!(
            message_of(&pod, Some(&used), Resource::Memory, (100 << 20, 90 << 20)),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. Container app was using \
             3Mi, request is 1Mi, has larger consumption of memory. "
        );
    }

    #[test]
    fn pressure_stays_for_a_while_after_it_was_last_seen() {
        let (mut last, start, transition) = (LastSeen::default(), Instant::now(), Duration::from_secs(300));
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(last.note([true, false, false], start, transition), [true, false, false]);
        assert_eq!(last.note([false, true, false], after(299), transition), [true, true, false]);
        assert_eq!(last.note([false, false, false], after(300), transition), [false, true, false]);
        assert_eq!(last.note([false, false, true], after(700), Duration::ZERO), [false, false, true]);
    }

    #[test]
    fn memory_is_looked_after_before_disks() {
        let least: EvictionHard =
            "memory.available<10,nodefs.available<10%,nodefs.inodesFree<5".parse().unwrap();
        let seen = Seen {
            memory: Some((9, 100)),
            disk: Some((9, 100)),
            inodes: Some((5, 100)),
            pids_are_short: false,
        };
        assert_eq!(seen.short(&least), [(Resource::Memory, 10, 9), (Resource::Disk, 10, 9)]);
        assert_eq!(pressures(&seen, &least), [true, true, false]);
    }

    #[test]
    fn under_pressure_of_memory_only_pods_that_asked_for_nothing_are_refused() {
        let pressure = Pressure::default();
        let plain = |spec: Value| typed(pod("p", spec));
        let asking = asks("q", "1Mi", 0);
        assert_eq!(pressure.refusal(&plain(json!({}))), None);
        pressure.set([true, false, false]);
        assert_eq!(pressure.refusal(&asking), None);
        let (reason, message) = pressure.refusal(&plain(json!({}))).unwrap();
        assert_eq!((&*reason, &*message), ("Evicted", "The node had condition: [MemoryPressure]. "));
        let tolerant =
            json!({ "tolerations": [{ "key": "node.kubernetes.io/memory-pressure", "operator": "Exists" }] });
        assert_eq!(pressure.refusal(&plain(tolerant)), None);
        pressure.set([true, true, false]);
        let (_, message) = pressure.refusal(&asking).unwrap();
        assert_eq!(message, "The node had condition: [MemoryPressure DiskPressure]. ");
        assert_eq!(pressure.refusal(&plain(json!({ "priority": 2_000_000_000 }))), None);
    }
}
