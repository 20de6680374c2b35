//! The garbage collector: what has lost its owners is deleted.
//!
//! ```text
//!  watch of every kind ─► graph (uid → owners, dependents) ─► queue of uids ─► look, delete or let go
//! ```
//!
//! # Guarantees
//! - An object is deleted only after the API itself has said that none of its owners is there to stay, and only in
//!   the version that was looked at.
//! - An owner that is deleted in the foreground goes after the dependents that block it; one that orphans them goes
//!   after they have forgotten it. Both wait until every kind has been listed once: until then an object may only
//!   seem to have no dependents. A kind whose own API server does not list it is waited for no longer than [`FIRST_LISTS`].
//!
//! # Caveats
//! - A reference to a kind that is not served counts as one to an owner that stays.
//!
//! Source: upstream's garbage collector; "Garbage Collection" in the Kubernetes documentation.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_all};
use kube::{Api, Client, ResourceExt as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_client::{Discovery, EventRecorder, EventType, Resources, ServedResource, WorkQueue};
use tokio::sync::watch as watch_channel;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::Context;
use crate::deletions::Deletions;
use crate::driver::{self, Controller, Outcome, gone_is_fine, is_conflict, is_not_found, is_unsupported};

mod graph;
mod plan;

use graph::{Entry, Graph};
use plan::{Change, FOREGROUND, ORPHAN, Owner, Verdict};

/// Kinds whose objects neither own nor are owned, and of which there are many.
const IGNORED: [&str; 1] = ["events"];
/// What counts as not listed until it is known which kinds there are.
const DISCOVERY: &str = "discovery";
/// Collection begins after this long even if some kind cannot be listed: upstream's figure.
const FIRST_LISTS: Duration = Duration::from_secs(30);
/// What the server refuses that cannot read its store: whatever is in there may be a dependent.
const DAMAGED: &str = "StorageReadError";
/// How often an owner that waits is looked at while some kind has not been listed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

type Meta = PartialObjectMeta<DynamicObject>;

/// What the watches have seen.
struct Seen {
    graph: Mutex<Graph>,
    deletions: Deletions,
    queue: WorkQueue<String>,
    /// Kinds whose first list is not in yet.
    unlisted: watch_channel::Sender<BTreeSet<String>>,
}

struct Collector {
    client: Client,
    discovery: Discovery,
    seen: Arc<Seen>,
    events: EventRecorder,
}

/// Collects until `shutdown`.
pub(crate) async fn run(context: Context, shutdown: CancellationToken) {
    let seen = Arc::new(Seen {
        graph: Mutex::default(),
        deletions: context.deletions.clone(),
        queue: WorkQueue::default(),
        unlisted: watch_channel::Sender::new(BTreeSet::from([DISCOVERY.to_owned()])),
    });
    let mut tasks = JoinSet::new();
    let watching =
        Watching { client: context.client.clone(), seen: seen.clone(), shutdown: shutdown.clone() };
    tasks.spawn(watching.follow(context.discovery.clone()));
    let discovery = context.discovery.clone();
    let events = context.events("garbage-collector-controller");
    tasks.spawn(driver::run(Collector { client: context.client, discovery, seen, events }, shutdown));
    while let Some(ended) = tasks.join_next().await {
        if let Err(failed) = ended {
            error!(%failed, "a part of the garbage collector has ended");
        }
    }
}

/// The kinds that are watched, by group and plural, and what ends each watch.
type Watched = HashMap<(String, String), (Arc<ServedResource>, CancellationToken)>;

/// What garbage is collected of.
fn collected(resources: &Resources) -> HashMap<(String, String), &Arc<ServedResource>> {
    resources
        .preferred()
        .filter(|r| ["list", "watch", "delete"].into_iter().all(|verb| r.can(verb)))
        .filter(|r| !IGNORED.contains(&r.plural.as_str()))
        .map(|resource| ((resource.group.clone(), resource.plural.clone()), resource))
        .collect()
}

/// The watches of all kinds.
struct Watching {
    client: Client,
    seen: Arc<Seen>,
    shutdown: CancellationToken,
}

impl Watching {
    /// Begins and ends watches as kinds come and go.
    async fn follow(self, discovery: Discovery) {
        let mut watched = Watched::new();
        let mut changes = discovery.changes();
        // Only waits.
        while let Some(Some(resources)) = self.shutdown.run_until_cancelled(changes.next()).await {
            self.seen.forget_unserved(&resources, &mut watched);
            for (key, resource) in collected(&resources) {
                watched.entry(key).or_insert_with(|| {
                    let stop = self.shutdown.child_token();
                    self.watch(resource.clone(), stop.clone());
                    (resource.clone(), stop)
                });
            }
            self.seen.unlisted.send_if_modified(|kinds| kinds.remove(DISCOVERY));
        }
    }

    fn watch(&self, resource: Arc<ServedResource>, stop: CancellationToken) {
        self.seen.unlisted.send_modify(|kinds| _ = kinds.insert(resource.name()));
        let (client, seen) = (self.client.clone(), self.seen.clone());
        tokio::spawn(driver::restarted("garbage-collector", stop.clone(), move || {
            watch(client.clone(), seen.clone(), resource.clone(), stop.clone())
        }));
    }
}

async fn watch(client: Client, seen: Arc<Seen>, kind: Arc<ServedResource>, shutdown: CancellationToken) {
    let api: Api<Meta> = Api::all_with(client, &kind.described());
    let events = watch_all(api, watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut listed: Option<HashSet<String>> = None;
    let began = Instant::now();
    loop {
        let event = tokio::select! {
            // Both only wait.
            event = events.next() => event,
            () = shutdown.cancelled() => return,
        };
        match event {
            Some(Ok(Event::Init)) => listed = Some(HashSet::new()),
            Some(Ok(Event::InitApply(object))) => {
                if let (Some(listed), Some(uid)) = (&mut listed, object.uid()) {
                    listed.insert(uid);
                }
                seen.put(&kind, &object);
            }
            Some(Ok(Event::InitDone)) => {
                if let Some(listed) = listed.take() {
                    seen.forget_others(&kind, &listed);
                }
                seen.unlisted.send_if_modified(|kinds| kinds.remove(&kind.name()));
            }
            Some(Ok(Event::Apply(object))) => seen.put(&kind, &object),
            Some(Ok(Event::Delete(object))) => {
                if let Some(uid) = object.uid() {
                    seen.remove(&uid);
                }
            }
            Some(Err(error)) if seen.unlisted.borrow().contains(&kind.name()) => {
                let is_damaged = reason_of(&error).is_some_and(|reason| reason == DAMAGED);
                if !is_damaged && began.elapsed() >= FIRST_LISTS {
                    warn!(kind = kind.kind, %error, "a kind cannot be listed; garbage is collected without it");
                    seen.unlisted.send_if_modified(|kinds| kinds.remove(&kind.name()));
                } else {
                    warn!(kind = kind.kind, %error, "cannot list a kind, for which garbage collection waits; trying again");
                }
            }
            Some(Err(error)) => debug!(kind = kind.kind, %error, "the watch is interrupted; trying again"),
            None => return,
        }
    }
}

/// The reason of a refusal.
fn reason_of(error: &watcher::Error) -> Option<&str> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => Some(&status.reason),
        _ => None,
    }
}

impl Seen {
    fn put(&self, kind: &Arc<ServedResource>, object: &Meta) {
        let Some(uid) = object.uid() else { return };
        let entry = Entry {
            kind: kind.clone(),
            namespace: object.namespace(),
            name: object.name_any(),
            owners: object.owner_references().to_vec(),
            deleting: object.metadata.deletion_timestamp.is_some(),
            finalizers: object.finalizers().to_vec(),
        };
        let look = self.graph.lock().put(uid, entry);
        look.into_iter().for_each(|uid| self.queue.add(uid));
    }

    fn remove(&self, uid: &str) {
        let mut graph = self.graph.lock();
        let gone = graph.get(uid).map(|entry| (entry.kind.clone(), entry.namespace.clone()));
        let look = graph.remove(uid);
        drop(graph);
        if let Some((kind, namespace)) = gone {
            self.deletions.tell(&kind, namespace.as_deref().unwrap_or_default());
        }
        look.into_iter().for_each(|uid| self.queue.add(uid));
    }

    /// Ends the watches of kinds that are not served any more, and forgets what they saw. One whose server is away for a while is what
    /// it was, but nobody waits for it.
    fn forget_unserved(&self, resources: &Resources, watched: &mut Watched) {
        let served = collected(resources);
        watched.retain(|key, (resource, stop)| {
            if resources.stale().contains(&resource.api_version()) {
                self.unlisted.send_if_modified(|kinds| kinds.remove(&resource.name()));
                return true;
            }
            let stays = served.get(key).is_some_and(|now| ***now == **resource);
            if !stays {
                stop.cancel();
                self.forget_others(resource, &HashSet::new());
                self.unlisted.send_if_modified(|kinds| kinds.remove(&resource.name()));
            }
            stays
        });
    }

    /// After a broken watch: what a new list no longer holds is gone.
    fn forget_others(&self, kind: &Arc<ServedResource>, listed: &HashSet<String>) {
        let stale = self.graph.lock().not_among(kind, listed);
        stale.iter().for_each(|uid| self.remove(uid));
    }
}

impl Controller for Collector {
    const NAME: &'static str = "garbage-collector";
    const WORKERS: usize = 4;
    type Key = String;

    fn queue(&self) -> &WorkQueue<String> {
        &self.seen.queue
    }

    async fn synced(&self) {
        let mut unlisted = self.seen.unlisted.subscribe();
        let complete = tokio::time::timeout(FIRST_LISTS, unlisted.wait_for(BTreeSet::is_empty)).await.is_ok();
        if !complete {
            let kinds = self.seen.unlisted.borrow().iter().cloned().collect::<Vec<_>>().join(", ");
            warn!(
                kinds,
                "garbage is collected before these kinds could be listed; owners that wait for their dependents wait on"
            );
        }
    }

    async fn reconcile(&self, uid: &String) -> Result<Outcome, kube::Error> {
        let Some(entry) = self.seen.graph.lock().get(uid).cloned() else { return Ok(Outcome::Done) };
        if !entry.deleting {
            self.attempt_to_delete(uid, &entry).await?;
            return Ok(Outcome::Done);
        }
        if entry.waits_for_us() && !self.seen.unlisted.borrow().is_empty() {
            return Ok(Outcome::After(LOOK_AGAIN));
        }
        if entry.has_finalizer(ORPHAN) {
            self.orphan(uid, &entry).await?;
        } else if entry.has_finalizer(FOREGROUND) {
            self.foreground(uid, &entry).await?;
        }
        Ok(Outcome::Done)
    }
}

impl Collector {
    fn api(&self, entry: &Entry) -> Api<DynamicObject> {
        let resource: ApiResource = entry.kind.described();
        match &entry.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// Deletes an object whose owners are all gone, and lets go of those that are, or that wait for it, if others stay.
    async fn attempt_to_delete(&self, uid: &str, entry: &Entry) -> Result<(), kube::Error> {
        if entry.owners.is_empty() || self.seen.graph.lock().all_solid(entry) {
            return Ok(());
        }
        // Each kind has its own watch: the owner's end may be seen before the object's letting go of it.
        let live = match self.api(entry).get_metadata(&entry.name).await {
            Err(error) if is_not_found(&error) => return Ok(()),
            other => other?,
        };
        if live.metadata.uid.as_deref() != Some(uid) || live.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let entry = &Entry {
            owners: live.owner_references().to_vec(),
            finalizers: live.finalizers().to_vec(),
            ..entry.clone()
        };
        let mut owners = Vec::new();
        for owner in &entry.owners {
            self.tell_of_owner_elsewhere(uid, entry, owner);
            match self.owner_state(entry, owner).await? {
                Some(state) => owners.push((owner, state)),
                // No retry makes sense of it, and to guess would be to delete.
                None => return Ok(()),
            }
        }
        let (has_dependents, dependent_waits) = self.seen.graph.lock().below(uid);
        let version = live.metadata.resource_version.clone();
        match plan::verdict(&owners, &entry.finalizers, has_dependents, dependent_waits) {
            Verdict::Keep => Ok(()),
            Verdict::LetGo(owners) => self.change(uid, entry, &Change::LetGo(owners)).await.map(drop),
            Verdict::Delete(policy) => self.delete(uid, version, entry, policy).await,
            Verdict::UnblockAndDelete => {
                let Some(version) = self.change(uid, entry, &Change::Unblock).await? else {
                    return Ok(());
                };
                self.delete(uid, Some(version), entry, PropagationPolicy::Foreground).await
            }
        }
    }

    async fn delete(
        &self,
        uid: &str,
        resource_version: Option<String>,
        entry: &Entry,
        policy: PropagationPolicy,
    ) -> Result<(), kube::Error> {
        let params = |resource_version| DeleteParams {
            propagation_policy: Some(policy.clone()),
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version }),
            ..DeleteParams::default()
        };
        debug!(kind = entry.kind.kind, name = entry.name, "deleting an object that has lost its owners");
        let api = self.api(entry);
        let deleted = match api.delete(&entry.name, &params(resource_version)).await {
            Err(error) if is_conflict(&error) => {
                // An object whose status changes all the time must not escape by that: only its owners count.
                let live = match api.get_metadata(&entry.name).await {
                    Err(error) if is_not_found(&error) => return Ok(()),
                    other => other?,
                };
                if live.metadata.uid.as_deref() != Some(uid) || live.owner_references() != entry.owners {
                    return Err(error);
                }
                api.delete(&entry.name, &params(None)).await
            }
            other => other,
        };
        gone_is_fine(deleted)
    }

    /// A reference to an object of another namespace is to nothing, which is not what whoever wrote it meant.
    fn tell_of_owner_elsewhere(&self, uid: &str, entry: &Entry, owner: &OwnerReference) {
        let elsewhere = self.seen.graph.lock().get(&owner.uid).is_some_and(|known| {
            known.namespace.is_some() && known.namespace != entry.namespace && known.name == owner.name
        });
        if !elsewhere {
            return;
        }
        let namespace = entry.namespace.clone().unwrap_or_default();
        let OwnerReference { api_version, kind, name, uid: owner_uid, .. } = owner;
        let message = format!(
            "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {owner_uid}] does not exist in namespace {namespace:?}"
        );
        let about = ObjectReference {
            api_version: Some(entry.kind.api_version()),
            kind: Some(entry.kind.kind.clone()),
            namespace: entry.namespace.clone(),
            name: Some(entry.name.clone()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        self.events.event_about(about, EventType::Warning, "OwnerRefInvalidNamespace", &message);
    }

    /// How an owner is: that it is gone only the API says, for the graph may be behind. `None` if the reference makes no
    /// sense: an object of the cluster cannot have an owner in some namespace.
    async fn owner_state(&self, entry: &Entry, owner: &OwnerReference) -> Result<Option<Owner>, kube::Error> {
        let state = |waits: bool| Some(if waits { Owner::WaitsForDependents } else { Owner::Solid });
        if let Some(known) = self.seen.graph.lock().owner(entry, owner) {
            return Ok(state(known.waits_for_dependents()));
        }
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        // A kind that is not known here may be another server's: its owner counts as there.
        let resources = self.discovery.known().await;
        let Some(kind) = resources.by_kind(group, version, &owner.kind) else {
            return Ok(Some(Owner::Solid));
        };
        if kind.is_namespaced && entry.namespace.is_none() {
            return Ok(None);
        }
        let asked = Entry {
            kind: kind.clone(),
            namespace: entry.namespace.clone().filter(|_| kind.is_namespaced),
            ..entry.clone()
        };
        match self.api(&asked).get_metadata(&owner.name).await {
            Ok(found) if found.metadata.uid.as_deref() == Some(&owner.uid) => {
                let deleting = found.metadata.deletion_timestamp.is_some();
                Ok(state(deleting && found.finalizers().iter().any(|f| f == FOREGROUND)))
            }
            Ok(_) => Ok(Some(Owner::Gone)),
            Err(error) if is_not_found(&error) => Ok(Some(Owner::Gone)),
            Err(error) => Err(error),
        }
    }

    /// Answers the object's new version; `None` if it is gone. The uid in the patch holds off another of its name.
    async fn change(&self, uid: &str, entry: &Entry, change: &Change) -> Result<Option<String>, kube::Error> {
        let (api, params) = (self.api(entry), PatchParams::default());
        let strategic: Patch<Value> = Patch::Strategic(change.strategic(uid, &entry.owners));
        let patched = match api.patch(&entry.name, &params, &strategic).await {
            // Custom resources have no strategic patches.
            Err(error) if is_unsupported(&error) => {
                let live = match api.get_metadata(&entry.name).await {
                    Err(error) if is_not_found(&error) => return Ok(None),
                    other => other?,
                };
                let version = live.metadata.resource_version.as_deref();
                let merge: Patch<Value> = Patch::Merge(change.merged(uid, version, live.owner_references()));
                api.patch(&entry.name, &params, &merge).await
            }
            patched => patched,
        };
        match patched {
            Ok(patched) => Ok(patched.metadata.resource_version),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All dependents are looked at; those that block go first.
    async fn foreground(&self, uid: &str, entry: &Entry) -> Result<(), kube::Error> {
        let awaited = self.seen.graph.lock().awaited_by(uid);
        awaited.remaining.into_iter().for_each(|dependent| self.seen.queue.add(dependent));
        if awaited.blocks {
            return Ok(());
        }
        self.remove_finalizer(uid, entry, FOREGROUND).await
    }

    /// Dependents forget their owner, and stay.
    async fn orphan(&self, uid: &str, entry: &Entry) -> Result<(), kube::Error> {
        let dependents = self.seen.graph.lock().dependents_of(uid);
        for (dependent, of) in dependents {
            self.change(&dependent, &of, &Change::LetGo(vec![uid.to_owned()])).await?;
        }
        self.remove_finalizer(uid, entry, ORPHAN).await
    }

    async fn remove_finalizer(&self, uid: &str, entry: &Entry, finalizer: &str) -> Result<(), kube::Error> {
        let api = self.api(entry);
        let current = match api.get_metadata(&entry.name).await {
            Err(error) if is_not_found(&error) => return Ok(()),
            other => other?,
        };
        if current.metadata.uid.as_deref() != Some(uid)
            || !current.finalizers().iter().any(|f| f == finalizer)
        {
            return Ok(());
        }
        let left: Vec<_> = current.finalizers().iter().filter(|f| *f != finalizer).collect();
        // The version keeps two writers from undoing each other's finalizers.
        let patch = json!({"metadata": {"uid": uid, "resourceVersion": current.metadata.resource_version, "finalizers": left}});
        gone_is_fine(api.patch(&entry.name, &PatchParams::default(), &Patch::Merge(patch)).await)
    }
}

#[cfg(test)]
mod tests;
