//! The loop around decisions: informers in, bindings out.

use std::collections::BTreeMap;
use std::sync::Arc;

use indexmap::IndexSet;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use parking_lot::Mutex;
use serde_json::json;
use skiff_api::LabelSelector;
use skiff_client::view::Pod;
use skiff_client::{Change, EventType, Informer, Informers, ObjectKey, SeriesRecorder, key_of};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::writes::Report;
use crate::cluster::Tenant;
use crate::desk::{Desk, NAME, Next};
use crate::framework::{Nomination, Unschedulable};

mod volumes;
mod writes;

/// Bindings, reports and preemptions under way at once: more would not be faster, but would keep others from writing.
const MAX_WRITES: usize = 64;
/// Pods that wait at once for volumes that are being bound or made.
const MAX_VOLUME_WAITS: usize = 512;
/// Pods that are decided about before what has changed meanwhile is heard.
const PASS_PODS: usize = 64;

/// Schedules pods until `shutdown`: reads by the informers of the process, writes by its own client. Events say on which
/// `host` it runs; a host name has at most 64 bytes, and a reporter's 128.
///
/// # Panics
/// If a decision does.
pub async fn run(client: Client, informers: Informers, host: String, shutdown: CancellationToken) {
    let scheduler = Arc::new(Scheduler {
        pods: informers.of::<Pod>(),
        nodes: informers.of::<Node>(),
        namespaces: informers.of::<Namespace>(),
        services: informers.of::<Service>(),
        sets: informers.of::<ReplicaSet>(),
        budgets: informers.of::<PodDisruptionBudget>(),
        claims: informers.of::<PersistentVolumeClaim>(),
        volumes: informers.of::<PersistentVolume>(),
        classes: informers.of::<StorageClass>(),
        storage_changed: watch::Sender::new(()),
        volume_waits: Semaphore::new(MAX_VOLUME_WAITS),
        events: SeriesRecorder::new(client.clone(), NAME, &format!("{NAME}-{host}")),
        client,
        inbox: Mutex::default(),
        wake: Notify::new(),
        places: Arc::new(Semaphore::new(MAX_WRITES)),
    });
    scheduler.listen();
    tokio::select! {
        // Both only wait.
        () = scheduler.synced() => {}
        () = shutdown.cancelled() => return,
    }
    let mut desk = Desk::default();
    while !shutdown.is_cancelled() {
        // In a large cluster a pass takes milliseconds: requests are not to wait for it.
        let pass = tokio::task::spawn_blocking({
            let scheduler = scheduler.clone();
            move || {
                let rest = scheduler.pass(&mut desk);
                (desk, rest)
            }
        });
        let rest = match pass.await {
            Ok((back, rest)) => {
                desk = back;
                rest
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The process is ending.
            Err(_) => return,
        };
        tokio::select! {
            // Both only wait.
            () = scheduler.rest(rest) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// Why a pass is over.
enum Rest {
    /// It has gone on for long enough.
    None,
    /// As many writes are under way as may be.
    Writes,
    /// Nobody is left who could be placed before this time, or before something changes.
    Pods(Option<Instant>),
}

/// What has changed since the last pass, named only: the pass looks at what it is now. In the order in which it was heard
/// of first.
#[derive(Default)]
struct Inbox {
    pods: IndexSet<ObjectKey>,
    nodes: IndexSet<ObjectKey>,
    namespaces: IndexSet<ObjectKey>,
    budgets: IndexSet<ObjectKey>,
    claims: IndexSet<ObjectKey>,
    volumes: IndexSet<ObjectKey>,
    classes: IndexSet<ObjectKey>,
    /// Pods, with their UIDs, whose bindings failed: no more than [`MAX_WRITES`] at a time, as with the next.
    failed: Vec<(ObjectKey, String)>,
    /// Pods for which no room could be made, with those of which some are left.
    spared: Vec<(ObjectKey, Vec<Arc<Tenant>>)>,
}

struct Scheduler {
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    namespaces: Informer<Namespace>,
    services: Informer<Service>,
    sets: Informer<ReplicaSet>,
    budgets: Informer<PodDisruptionBudget>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    /// Told that a claim or a volume has changed.
    storage_changed: watch::Sender<()>,
    volume_waits: Semaphore,
    events: SeriesRecorder,
    client: Client,
    inbox: Mutex<Inbox>,
    wake: Notify,
    places: Arc<Semaphore>,
}

impl Scheduler {
    fn listen(self: &Arc<Self>) {
        let to = self.clone();
        self.pods.on_change(move |change| to.heard(change, |inbox| &mut inbox.pods));
        let to = self.clone();
        self.nodes.on_change(move |change| to.heard(change, |inbox| &mut inbox.nodes));
        let to = self.clone();
        self.namespaces.on_change(move |change| to.heard(change, |inbox| &mut inbox.namespaces));
        let to = self.clone();
        self.budgets.on_change(move |change| to.heard(change, |inbox| &mut inbox.budgets));
        let to = self.clone();
        self.claims.on_change(move |change| {
            to.heard(change, |inbox| &mut inbox.claims);
            to.storage_changed.send_replace(());
        });
        let to = self.clone();
        self.volumes.on_change(move |change| {
            to.heard(change, |inbox| &mut inbox.volumes);
            to.storage_changed.send_replace(());
        });
        let to = self.clone();
        self.classes.on_change(move |change| to.heard(change, |inbox| &mut inbox.classes));
    }

    fn heard<K: kube::Resource>(
        &self,
        change: &Change<K>,
        place: impl FnOnce(&mut Inbox) -> &mut IndexSet<ObjectKey>,
    ) {
        if let Some(object) = change.object() {
            place(&mut self.inbox.lock()).insert(key_of(&**object));
            self.wake.notify_one();
        }
    }

    async fn synced(&self) {
        self.nodes.synced().await;
        self.pods.synced().await;
        self.namespaces.synced().await;
        self.services.synced().await;
        self.sets.synced().await;
        self.budgets.synced().await;
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
    }

    /// Waits until there is something to do again.
    async fn rest(&self, rest: Rest) {
        match rest {
            Rest::None => {}
            // It is closed by nobody.
            Rest::Writes => drop(self.places.acquire().await),
            Rest::Pods(until) => {
                let due = async {
                    match until {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    // Both only wait.
                    () = self.wake.notified() => {}
                    () = due => {}
                }
            }
        }
    }

    /// Hears what has changed, and decides about as many pods as may be bound.
    fn pass(self: &Arc<Self>, desk: &mut Desk) -> Rest {
        self.hear(desk);
        for _ in 0..PASS_PODS {
            let Ok(place) = self.places.clone().try_acquire_owned() else { return Rest::Writes };
            // Writes run beside the next decision; the assumption keeps the room.
            match desk.next(|pod| self.siblings(pod), Instant::now()) {
                Next::Bind { key, pod, node, bindings } => {
                    tokio::spawn(self.clone().bind(pod, key, node, bindings, place));
                }
                Next::Refused { pod, why } => {
                    let Unschedulable { message, nomination, .. } = why;
                    let (reason, action) = ("FailedScheduling", "Scheduling");
                    self.events.event(&*pod, None, EventType::Warning, reason, action, &message);
                    let report = Report::new(&pod, message, &nomination);
                    if let Nomination::Node(preemption) = nomination {
                        tokio::spawn(self.clone().preempt(pod, report, preemption, place));
                    } else if report.status(&pod).is_some() {
                        tokio::spawn(self.clone().report(report, place));
                    }
                }
                Next::Later(until) => return Rest::Pods(until),
            }
        }
        Rest::None
    }

    fn hear(&self, desk: &mut Desk) {
        let inbox = std::mem::take(&mut *self.inbox.lock());
        let now = Instant::now();
        for key in &inbox.namespaces {
            desk.hear_namespace(&key.name, self.namespaces.get(key).as_deref(), now);
        }
        for key in &inbox.nodes {
            desk.hear_node(&key.name, self.nodes.get(key).as_ref(), now);
        }
        for key in &inbox.budgets {
            desk.hear_budget(key, self.budgets.get(key).as_deref());
        }
        for key in &inbox.classes {
            desk.hear_class(&key.name, self.classes.get(key).as_ref(), now);
        }
        for key in &inbox.volumes {
            desk.hear_volume(&key.name, self.volumes.get(key).as_ref(), now);
        }
        for key in &inbox.claims {
            desk.hear_claim(key, self.claims.get(key).as_ref(), now);
        }
        for (key, uid) in &inbox.failed {
            desk.hear_failure(key, uid, now);
        }
        for (key, victims) in &inbox.spared {
            desk.hear_spared(key, victims, now);
        }
        for key in &inbox.pods {
            desk.hear_pod(key, self.pods.get(key).as_ref(), now);
        }
    }

    /// Selects the pods that belong together with one: those of its Services and its ReplicaSet.
    fn siblings(&self, pod: &Pod) -> Option<LabelSelector> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let labels = pod.metadata.labels.as_ref();
        let mut all = BTreeMap::new();
        for service in self.services.list_in(namespace) {
            let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
            let Some(selector) = selector.filter(|s| !s.is_empty()) else { continue };
            if selector.iter().all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value)) {
                all.extend(selector.clone());
            }
        }
        let owners = pod.metadata.owner_references.iter().flatten();
        let owner = owners.into_iter().find(|r| r.controller == Some(true) && r.kind == "ReplicaSet");
        let set = owner.and_then(|owner| self.sets.get(&ObjectKey::new(namespace, &owner.name)));
        let of_set = set.map(|s| s.spec.selector.clone()).unwrap_or_default();
        all.extend(of_set.match_labels.unwrap_or_default());
        let selector = json!({"matchLabels": all, "matchExpressions": of_set.match_expressions});
        LabelSelector::from_json(&selector).ok()
    }
}
