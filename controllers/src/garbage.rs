//! The garbage collector: what has lost its owners is deleted.
//!
//! ```text
//!  watch of every kind's metadata ─► graph (uid → owners, dependents) ─► queue of uids ─► look, delete or let go
//! ```
//!
//! # Guarantees
//! - An object is deleted only after the API itself has said that none of its owners exists.
//! - An owner that is deleted in the foreground goes after the dependents that block it; one that orphans them goes
//!   after they have forgotten it.
//!
//! Source: upstream's garbage collector; "Garbage Collection" in the Kubernetes documentation.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_all};
use kube::{Api, Client, ResourceExt as _};
use parking_lot::Mutex;
use serde_json::json;
use skiff_api::kinds::Storage;
use skiff_api::{Kind, Kinds};
use skiff_client::WorkQueue;
use tokio::sync::watch as watch_channel;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::Context;
use crate::driver::{gone_is_fine, is_conflict};
use crate::namespace::resource;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
const WORKERS: usize = 4;
/// Kinds whose objects neither own nor are owned, and of which there are many.
const IGNORED: [&str; 1] = ["events"];

type Meta = PartialObjectMeta<DynamicObject>;

/// One object, as far as ownership goes.
#[derive(Clone)]
struct Entry {
    kind: Arc<Kind>,
    namespace: Option<String>,
    name: String,
    owners: Vec<OwnerReference>,
    deleting: bool,
    finalizers: Vec<String>,
}

#[derive(Default)]
struct Graph {
    entries: HashMap<String, Entry>,
    /// Owner's uid to its dependents' uids; an owner need not be known.
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    fn put(&mut self, uid: String, entry: Entry) {
        self.unlink(&uid);
        for owner in &entry.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        self.entries.insert(uid, entry);
    }

    fn remove(&mut self, uid: &str) {
        self.unlink(uid);
        self.entries.remove(uid);
    }

    fn unlink(&mut self, uid: &str) {
        let Some(old) = self.entries.get(uid) else { return };
        for owner in &old.owners {
            if let Some(set) = self.dependents.get_mut(&owner.uid) {
                set.remove(uid);
                if set.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    fn dependents_of(&self, uid: &str) -> Vec<(String, Entry)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|u| Some((u.clone(), self.entries.get(u)?.clone()))).collect()
    }
}

struct Collector {
    /// Kinds whose first list is not in yet: until it is, an object may seem to have no dependents.
    n_unlisted: watch_channel::Sender<usize>,
    client: Client,
    kinds: Kinds,
    graph: Mutex<Graph>,
    queue: WorkQueue<String>,
}

/// Collects until `shutdown`.
pub(crate) async fn run(context: Context, shutdown: CancellationToken) {
    let collector = Arc::new(Collector {
        n_unlisted: watch_channel::Sender::new(0),
        client: context.client.clone(),
        kinds: Kinds::builtin(),
        graph: Mutex::default(),
        queue: WorkQueue::default(),
    });
    let mut tasks = JoinSet::new();
    let watched = |k: &&Arc<Kind>| k.storage == Storage::Stored && !IGNORED.contains(&k.plural.as_str());
    let kinds: Vec<Arc<Kind>> = collector.kinds.iter().filter(watched).cloned().collect();
    collector.n_unlisted.send_replace(kinds.len());
    for kind in kinds {
        tasks.spawn(watch(collector.clone(), kind, shutdown.clone()));
    }
    for _ in 0..WORKERS {
        tasks.spawn(work(collector.clone(), shutdown.clone()));
    }
    shutdown.cancelled().await;
    collector.queue.close();
    while tasks.join_next().await.is_some() {}
}

async fn watch(collector: Arc<Collector>, kind: Arc<Kind>, shutdown: CancellationToken) {
    let api: Api<Meta> = Api::all_with(collector.client.clone(), &resource(&kind));
    let events = watch_all(api, watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut listed: Option<HashSet<String>> = None;
    let mut first = true;
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
                collector.seen(&kind, &object);
            }
            Some(Ok(Event::InitDone)) => {
                if let Some(listed) = listed.take() {
                    collector.forget_others(&kind, &listed);
                }
                if std::mem::take(&mut first) {
                    collector.n_unlisted.send_modify(|n| *n = n.saturating_sub(1));
                }
            }
            Some(Ok(Event::Apply(object))) => collector.seen(&kind, &object),
            Some(Ok(Event::Delete(object))) => {
                if let Some(uid) = object.uid() {
                    collector.gone(&uid);
                }
            }
            Some(Err(error)) => debug!(kind = kind.kind, %error, "the watch is interrupted; trying again"),
            None => return,
        }
    }
}

async fn work(collector: Arc<Collector>, shutdown: CancellationToken) {
    let mut unlisted = collector.n_unlisted.subscribe();
    tokio::select! {
        // Both only wait.
        _ = unlisted.wait_for(|n| *n == 0) => {}
        () = shutdown.cancelled() => return,
    }
    while let Some(uid) = collector.queue.get().await {
        let done = tokio::select! {
            // A look that is dropped is taken again by the next process.
            done = collector.look(&uid) => done,
            () = shutdown.cancelled() => return,
        };
        match done {
            Ok(()) => collector.queue.forget(&uid),
            Err(error) => {
                if !is_conflict(&error) {
                    warn!(uid, %error, "garbage could not be collected; trying again");
                }
                collector.queue.retry(uid.clone());
            }
        }
        collector.queue.done(&uid);
    }
}

impl Collector {
    fn seen(&self, kind: &Arc<Kind>, object: &Meta) {
        let Some(uid) = object.uid() else { return };
        let entry = Entry {
            kind: kind.clone(),
            namespace: object.namespace(),
            name: object.name_any(),
            owners: object.owner_references().to_vec(),
            deleting: object.metadata.deletion_timestamp.is_some(),
            finalizers: object.finalizers().to_vec(),
        };
        let owned = !entry.owners.is_empty();
        let waits = entry.deleting && entry.finalizers.iter().any(|f| f == FOREGROUND || f == ORPHAN);
        let owners: Vec<String> = entry.owners.iter().map(|o| o.uid.clone()).collect();
        let mut graph = self.graph.lock();
        graph.put(uid.clone(), entry);
        // An owner that waits in the foreground may be waiting for this one.
        let waiting: Vec<String> =
            owners.into_iter().filter(|o| graph.entries.get(o).is_some_and(|e| e.deleting)).collect();
        drop(graph);
        if owned || waits {
            self.queue.add(uid);
        }
        waiting.into_iter().for_each(|owner| self.queue.add(owner));
    }

    fn gone(&self, uid: &str) {
        let mut graph = self.graph.lock();
        let owners: Vec<String> = graph
            .entries
            .get(uid)
            .map(|e| e.owners.iter().map(|o| o.uid.clone()).collect())
            .unwrap_or_default();
        graph.remove(uid);
        let dependents: Vec<String> = graph.dependents.get(uid).into_iter().flatten().cloned().collect();
        let waiting: Vec<String> =
            owners.into_iter().filter(|o| graph.entries.get(o).is_some_and(|e| e.deleting)).collect();
        drop(graph);
        dependents.into_iter().chain(waiting).for_each(|uid| self.queue.add(uid));
    }

    /// After a broken watch: what a new list no longer holds is gone.
    fn forget_others(&self, kind: &Arc<Kind>, listed: &HashSet<String>) {
        let graph = self.graph.lock();
        let stale: Vec<String> = graph
            .entries
            .iter()
            .filter(|(uid, e)| Arc::ptr_eq(&e.kind, kind) && !listed.contains(*uid))
            .map(|(uid, _)| uid.clone())
            .collect();
        drop(graph);
        stale.iter().for_each(|uid| self.gone(uid));
    }

    fn api(&self, entry: &Entry) -> Api<DynamicObject> {
        let resource: ApiResource = resource(&entry.kind);
        match &entry.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    async fn look(&self, uid: &str) -> Result<(), kube::Error> {
        let Some(entry) = self.graph.lock().entries.get(uid).cloned() else { return Ok(()) };
        if entry.deleting {
            if entry.finalizers.iter().any(|f| f == ORPHAN) {
                return self.orphan(uid, &entry).await;
            }
            if entry.finalizers.iter().any(|f| f == FOREGROUND) {
                return self.foreground(uid, &entry).await;
            }
            return Ok(());
        }
        self.attempt_to_delete(uid, &entry).await
    }

    /// Deletes an object whose owners are all gone, and takes off references to those that are.
    async fn attempt_to_delete(&self, uid: &str, entry: &Entry) -> Result<(), kube::Error> {
        if entry.owners.is_empty() {
            return Ok(());
        }
        // Each kind has its own watch: the owner's end may be seen before the object's letting go of it.
        let live = match self.api(entry).get_metadata(&entry.name).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            other => other?,
        };
        if live.metadata.uid.as_deref() != Some(uid) || live.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let version = live.metadata.resource_version.clone();
        let entry = &Entry { owners: live.owner_references().to_vec(), ..entry.clone() };
        let (mut solid, mut waiting, mut dangling) = (0, 0, Vec::new());
        for owner in &entry.owners {
            match self.owner_state(entry, owner).await? {
                Owner::Solid => solid += 1,
                Owner::WaitsForDependents => waiting += 1,
                Owner::Gone => dangling.push(owner.uid.clone()),
            }
        }
        if entry.owners.is_empty() || (dangling.is_empty() && waiting == 0) {
            return Ok(());
        }
        if solid > 0 {
            return self.drop_references(uid, entry, &dangling).await;
        }
        let policy = if waiting > 0 && !self.graph.lock().dependents_of(uid).is_empty() {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        self.delete(uid, version, entry, policy).await
    }

    async fn delete(
        &self,
        uid: &str,
        resource_version: Option<String>,
        entry: &Entry,
        policy: PropagationPolicy,
    ) -> Result<(), kube::Error> {
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version }),
            ..DeleteParams::default()
        };
        debug!(kind = entry.kind.kind, name = entry.name, "deleting an object that has lost its owners");
        match self.api(entry).delete(&entry.name, &params).await {
            // It has changed since, or another object has the name: a conflict is looked at again.
            other => gone_is_fine(other),
        }
    }

    /// What the API says of an owner; the graph alone is not asked, for it may be behind.
    async fn owner_state(&self, entry: &Entry, owner: &OwnerReference) -> Result<Owner, kube::Error> {
        if let Some(known) = self.graph.lock().entries.get(&owner.uid) {
            let waits = known.deleting && known.finalizers.iter().any(|f| f == FOREGROUND);
            return Ok(if waits { Owner::WaitsForDependents } else { Owner::Solid });
        }
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        // A kind that is not known here may be another server's: its owner counts as there.
        let Some(kind) = self.kinds.by_kind(group, version, &owner.kind) else { return Ok(Owner::Solid) };
        let asked = Entry {
            kind: kind.clone(),
            namespace: entry.namespace.clone().filter(|_| kind.is_namespaced()),
            ..entry.clone()
        };
        match self.api(&asked).get_metadata(&owner.name).await {
            Ok(found) if found.metadata.uid.as_deref() == Some(&owner.uid) => Ok(Owner::Solid),
            Ok(_) => Ok(Owner::Gone),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Owner::Gone),
            Err(error) => Err(error),
        }
    }

    async fn drop_references(&self, uid: &str, entry: &Entry, owners: &[String]) -> Result<(), kube::Error> {
        if owners.is_empty() {
            return Ok(());
        }
        let references: Vec<_> = entry.owners.iter().filter(|o| !owners.contains(&o.uid)).collect();
        let patch = json!({"metadata": {"uid": uid, "ownerReferences": references}});
        gone_is_fine(self.api(entry).patch(&entry.name, &PatchParams::default(), &Patch::Merge(patch)).await)
    }

    /// Dependents that block go first, in the foreground themselves.
    async fn foreground(&self, uid: &str, entry: &Entry) -> Result<(), kube::Error> {
        let dependents = self.graph.lock().dependents_of(uid);
        let blocks =
            |e: &Entry| e.owners.iter().any(|o| o.uid == uid && o.block_owner_deletion == Some(true));
        if !dependents.iter().any(|(_, e)| blocks(e)) {
            return self.remove_finalizer(uid, entry, FOREGROUND).await;
        }
        for (dependent, _) in dependents.iter().filter(|(_, e)| !e.deleting) {
            self.queue.add(dependent.clone());
        }
        Ok(())
    }

    /// Dependents forget their owner, and stay.
    async fn orphan(&self, uid: &str, entry: &Entry) -> Result<(), kube::Error> {
        let dependents = self.graph.lock().dependents_of(uid);
        for (dependent, of) in dependents {
            self.drop_references(&dependent, &of, &[uid.to_owned()]).await?;
        }
        self.remove_finalizer(uid, entry, ORPHAN).await
    }

    async fn remove_finalizer(&self, uid: &str, entry: &Entry, finalizer: &str) -> Result<(), kube::Error> {
        let api = self.api(entry);
        let current = match api.get_metadata(&entry.name).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            other => other?,
        };
        if current.metadata.uid.as_deref() != Some(uid) {
            return Ok(());
        }
        let left: Vec<_> = current.finalizers().iter().filter(|f| *f != finalizer).collect();
        // The version keeps two writers from undoing each other's finalizers.
        let patch = json!({"metadata": {"uid": uid, "resourceVersion": current.metadata.resource_version, "finalizers": left}});
        gone_is_fine(api.patch(&entry.name, &PatchParams::default(), &Patch::Merge(patch)).await)
    }
}

enum Owner {
    Solid,
    /// Being deleted in the foreground.
    WaitsForDependents,
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(owners: &[&str]) -> Entry {
        let kinds = Kinds::builtin();
        let reference = |uid: &&str| OwnerReference { uid: (*uid).into(), ..OwnerReference::default() };
        Entry {
            kind: kinds.by_resource("", "v1", "pods").unwrap().clone(),
            namespace: None,
            name: "p".into(),
            owners: owners.iter().map(reference).collect(),
            deleting: false,
            finalizers: Vec::new(),
        }
    }

    #[test]
    fn the_graph_follows_changes_of_owners() {
        let mut graph = Graph::default();
        graph.put("pod".into(), entry(&["a", "b"]));
        assert_eq!(graph.dependents_of("a").len(), 1, "an owner need not be known");
        graph.put("pod".into(), entry(&["b"]));
        assert!(graph.dependents_of("a").is_empty());
        graph.remove("pod");
        assert!(graph.dependents.is_empty() && graph.entries.is_empty());
    }
}
