//! Shared informers: a current copy of every object of a kind, kept by one watch.
//!
//! # Guarantees
//! - Listeners see every object at least once, and for one object never an older version after a newer one.
//! - When a listener runs, the copy already shows the change.
//! - Objects are kept by namespace: what asks for one namespace looks at no other. For what is asked otherwise and often
//!   there is [`Informer::index`].
//! - After a broken watch, objects that are gone are reported as deleted.
//! - Objects have no `managedFields`.
//!
//! # Caveats
//! - The copy lags behind the server. Whoever decides from it must bear a conflict.

use std::any::{Any, TypeId};
use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::read::{Read, watched};
use crate::{Index, kept};

/// Namespace (`""` for cluster-scoped objects) and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        ObjectKey { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// The key of an object.
pub fn key_of<K: Resource>(object: &K) -> ObjectKey {
    let meta = object.meta();
    ObjectKey::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// What happened to one object. At least one side is there.
#[derive(Clone, Debug)]
pub struct Change<K> {
    pub old: Option<Arc<K>>,
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The newest version known.
    pub fn object(&self) -> Option<&Arc<K>> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

type Listener<K> = Arc<dyn Fn(&Change<K>) + Send + Sync>;

/// The copy of one kind. Cloning shares it.
pub struct Informer<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer { inner: self.inner.clone() }
    }
}

/// Told the version that the copy held and the one that it holds.
type Follower<K> = Box<dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync>;

struct Inner<K> {
    /// By namespace.
    objects: RwLock<HashMap<String, HashMap<ObjectKey, Arc<K>>>>,
    /// Held while changes are reported, so that a new listener or index misses none.
    told: Mutex<Told<K>>,
    synced: signal::Sender<bool>,
}

/// Whom changes are reported to: indexes first.
struct Told<K> {
    indexes: Vec<Follower<K>>,
    listeners: Vec<Listener<K>>,
}

impl<K> Informer<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    fn new() -> Self {
        Informer {
            inner: Arc::new(Inner {
                objects: RwLock::default(),
                told: Mutex::new(Told { indexes: Vec::new(), listeners: Vec::new() }),
                synced: signal::Sender::new(false),
            }),
        }
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.inner.objects.read().get(&key.namespace)?.get(key).cloned()
    }

    /// All objects, in no order.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.inner.objects.read().values().flat_map(HashMap::values).cloned().collect()
    }

    /// All objects of a namespace, in no order. No object of another one is looked at.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.filter_in(namespace, |_| true)
    }

    /// Looks at every object.
    pub fn filter(&self, keep: impl Fn(&ObjectKey, &K) -> bool) -> Vec<Arc<K>> {
        let objects = self.inner.objects.read();
        objects.values().flatten().filter(|(k, o)| keep(k, o)).map(|(_, o)| o.clone()).collect()
    }

    /// Looks at every object of a namespace.
    pub fn filter_in(&self, namespace: &str, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let objects = self.inner.objects.read();
        objects.get(namespace).into_iter().flat_map(HashMap::values).filter(|o| keep(o)).cloned().collect()
    }

    /// Finds objects by what `values` answers for them, from now on and for those that are there already. It must answer
    /// the same for the same object every time, and must be quick: it is asked at every change.
    pub fn index<V>(&self, values: impl Fn(&K) -> Vec<V> + Send + Sync + 'static) -> Index<K, V>
    where
        V: Eq + std::hash::Hash + Send + Sync + 'static,
    {
        let index = Index::new(values);
        let mut told = self.inner.told.lock();
        self.list().iter().for_each(|object| index.replace(None, Some(object)));
        let follows = index.clone();
        told.indexes.push(Box::new(move |old, new| follows.replace(old, new)));
        index
    }

    /// Calls `listener` on every change from now on, and first for every object that is there already. It must be
    /// quick and must not block: typically it adds a key to a [`crate::WorkQueue`].
    pub fn on_change(&self, listener: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut told = self.inner.told.lock();
        for object in self.list() {
            listener(&Change { old: None, new: Some(object) });
        }
        told.listeners.push(Arc::new(listener));
    }

    /// Returns once the copy has been complete for the first time.
    pub async fn synced(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.inner.synced.subscribe().wait_for(|synced| *synced).await;
    }

    pub fn is_synced(&self) -> bool {
        *self.inner.synced.borrow()
    }

    /// Takes what was known before for what there is, until a list shows otherwise.
    fn recall(&self, objects: Vec<K>) {
        objects.into_iter().for_each(|object| self.apply(object));
        self.inner.synced.send_replace(true);
    }

    async fn run(self, api: Api<Read<K>>, config: watcher::Config, shutdown: CancellationToken) {
        let kind = std::any::type_name::<K>().rsplit("::").next().unwrap_or_default();
        let mut events = std::pin::pin!(watched(api, config));
        // The keys seen in a list that is still coming in.
        let mut listing: Option<HashSet<ObjectKey>> = None;
        loop {
            let event = tokio::select! {
                // Both only wait: the stream keeps its state between polls.
                event = events.next() => event,
                () = shutdown.cancelled() => return,
            };
            match event {
                Some(Ok(event)) => self.handle(event, &mut listing),
                Some(Err(error)) if is_expired(&error) => {
                    debug!(kind, "the watch has expired; listing again")
                }
                Some(Err(error)) => warn!(kind, %error, "the watch is interrupted; trying again"),
                None => return,
            }
        }
    }

    fn handle(&self, event: Event<K>, listing: &mut Option<HashSet<ObjectKey>>) {
        match event {
            Event::Init => *listing = Some(HashSet::new()),
            Event::InitApply(object) => {
                if let Some(listing) = listing {
                    listing.insert(key_of(&object));
                }
                self.apply(object);
            }
            Event::InitDone => {
                if let Some(listed) = listing.take() {
                    let gone: Vec<ObjectKey> = {
                        let objects = self.inner.objects.read();
                        let keys = objects.values().flat_map(HashMap::keys);
                        keys.filter(|key| !listed.contains(key)).cloned().collect()
                    };
                    gone.iter().for_each(|key| self.delete(key, None));
                }
                self.inner.synced.send_replace(true);
            }
            Event::Apply(object) => self.apply(object),
            Event::Delete(object) => {
                let key = key_of(&object);
                self.delete(&key, Some(object));
            }
        }
    }

    fn apply(&self, mut object: K) {
        // Who set which field is the API server's concern, and often longer than the object.
        object.meta_mut().managed_fields = None;
        let new = Arc::new(object);
        let told = self.inner.told.lock();
        let old = self.put(&new);
        told.indexes.iter().for_each(|index| index(old.as_ref(), Some(&new)));
        let same = old.as_ref().is_some_and(|o| {
            o.meta().resource_version == new.meta().resource_version && new.meta().resource_version.is_some()
        });
        if !same {
            let change = Change { old, new: Some(new) };
            told.listeners.iter().for_each(|listener| listener(&change));
        }
    }

    /// Answers the version that was there.
    fn put(&self, new: &Arc<K>) -> Option<Arc<K>> {
        let key = key_of(&**new);
        let mut objects = self.inner.objects.write();
        if let Some(of_namespace) = objects.get_mut(&key.namespace) {
            return of_namespace.insert(key, new.clone());
        }
        objects.insert(key.namespace.clone(), HashMap::from([(key, new.clone())]));
        None
    }

    fn take(&self, key: &ObjectKey) -> Option<Arc<K>> {
        let mut objects = self.inner.objects.write();
        let of_namespace = objects.get_mut(&key.namespace)?;
        let had = of_namespace.remove(key);
        if of_namespace.is_empty() {
            objects.remove(&key.namespace);
        }
        had
    }

    /// `last` is the version that was deleted, which may be newer than the copy's.
    fn delete(&self, key: &ObjectKey, last: Option<K>) {
        let told = self.inner.told.lock();
        let had = self.take(key);
        told.indexes.iter().for_each(|index| index(had.as_ref(), None));
        if let Some(old) = last.map(Arc::new).or(had) {
            let change = Change { old: Some(old), new: None };
            told.listeners.iter().for_each(|listener| listener(&change));
        }
    }
}

fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}

/// All informers of a process: asking for a kind twice gives the same one. Cloning shares them.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    shutdown: CancellationToken,
    running: Arc<Mutex<Running>>,
}

/// By type and field selector: an `Informer` of the type.
type Running = HashMap<(TypeId, String), Box<dyn Any + Send>>;

impl Informers {
    /// Informers run until `shutdown`.
    pub fn new(client: Client, shutdown: CancellationToken) -> Self {
        Informers { client, shutdown, running: Arc::default() }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The informer of all objects of a kind, started if it is not running.
    pub fn of<K>(&self) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        self.with_fields("")
    }

    /// The informer of the objects of a kind that a field selector lets through, `""` for all.
    pub fn with_fields<K>(&self, field_selector: &str) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        self.start(field_selector, |_| {})
    }

    /// The informer of all objects of a kind, which begins with what was last known of them where it is started by this, and
    /// keeps that in a file. `essence` is what of an object is kept: without what changes all the time and matters to nobody
    /// here.
    pub fn kept<K>(&self, path: PathBuf, essence: impl Fn(&K) -> K + Send + Sync + 'static) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static,
    {
        self.start("", |informer| {
            if let Some(objects) = kept::recall(&path) {
                informer.recall(objects);
            }
            let (changed, stop) = (Arc::new(Notify::new()), self.shutdown.clone());
            let told = changed.clone();
            informer.on_change(move |_| told.notify_one());
            let known = informer.clone();
            let objects = move || {
                let mut all = known.list();
                all.sort_by_cached_key(|object| key_of(&**object));
                all.iter().map(|object| essence(object)).collect()
            };
            tokio::spawn(kept::keep(path, objects, changed, stop));
        })
    }

    fn start<K>(&self, field_selector: &str, prepare: impl FnOnce(&Informer<K>)) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let mut running = self.running.lock();
        let id = (TypeId::of::<K>(), field_selector.to_owned());
        if let Some(informer) = running.get(&id).and_then(|i| i.downcast_ref::<Informer<K>>()) {
            return informer.clone();
        }
        let informer = Informer::<K>::new();
        prepare(&informer);
        let mut config = watcher::Config::default().streaming_lists();
        if !field_selector.is_empty() {
            config = config.fields(field_selector);
        }
        let api = Api::all(self.client.clone());
        tokio::spawn(informer.clone().run(api, config, self.shutdown.clone()));
        running.insert(id, Box::new(informer.clone()));
        informer
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn config_map(name: &str, version: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.into());
        object.metadata.namespace = Some("ns".into());
        object.metadata.resource_version = Some(version.into());
        object
    }

    fn recorded(informer: &Informer<ConfigMap>) -> Arc<Mutex<Vec<String>>> {
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let sink = log.clone();
        informer.on_change(move |change| {
            let name = change.object().and_then(|o| o.metadata.name.clone()).unwrap_or_default();
            let what = match (&change.old, &change.new) {
                (None, _) => "added",
                (_, None) => "deleted",
                _ => "changed",
            };
            sink.lock().push(format!("{what} {name}"));
        });
        log
    }

    #[test]
    fn a_repeated_list_reports_what_has_gone_and_nothing_that_stayed() {
        let informer = Informer::new();
        let mut listing = None;
        for event in [
            Event::Init,
            Event::InitApply(config_map("a", "1")),
            Event::InitApply(config_map("b", "2")),
            Event::InitDone,
        ] {
            informer.handle(event, &mut listing);
        }
        assert!(informer.is_synced());
        let log = recorded(&informer);
        log.lock().clear();
        for event in [Event::Init, Event::InitApply(config_map("b", "2")), Event::InitDone] {
            informer.handle(event, &mut listing);
        }
        assert_eq!(*log.lock(), ["deleted a"]);
        assert_eq!(informer.list().len(), 1);
    }

    #[test]
    fn what_was_known_before_is_there_at_once_and_goes_with_the_first_list_that_does_not_have_it() {
        let informer = Informer::new();
        informer.recall(vec![config_map("a", "1"), config_map("b", "2")]);
        assert!(informer.is_synced());
        let log = recorded(&informer);
        log.lock().sort_unstable();
        assert_eq!(*std::mem::take(&mut *log.lock()), ["added a", "added b"]);
        let mut listing = None;
        for event in [Event::Init, Event::InitApply(config_map("b", "2")), Event::InitDone] {
            informer.handle(event, &mut listing);
        }
        assert_eq!(*log.lock(), ["deleted a"]);
    }

    #[test]
    fn a_late_listener_hears_of_everything_there_is() {
        let informer = Informer::new();
        informer.handle(Event::Apply(config_map("a", "1")), &mut None);
        let log = recorded(&informer);
        informer.handle(Event::Apply(config_map("a", "2")), &mut None);
        informer.handle(Event::Delete(config_map("a", "3")), &mut None);
        assert_eq!(*log.lock(), ["added a", "changed a", "deleted a"]);
        assert!(informer.get(&ObjectKey::new("ns", "a")).is_none());
    }

    fn labelled(name: &str, version: &str, label: &str) -> ConfigMap {
        let mut object = config_map(name, version);
        object.metadata.labels = Some([("l".to_owned(), label.to_owned())].into());
        object
    }

    fn by_label(object: &ConfigMap) -> Vec<String> {
        object.metadata.labels.iter().flat_map(|labels| labels.values().cloned()).collect()
    }

    fn names(objects: Vec<Arc<ConfigMap>>) -> Vec<String> {
        let mut names: Vec<String> = objects.iter().filter_map(|o| o.metadata.name.clone()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn an_index_finds_what_is_there_already_and_follows_what_changes() {
        let informer = Informer::new();
        informer.handle(Event::Apply(labelled("a", "1", "x")), &mut None);
        let index = informer.index(by_label);
        informer.handle(Event::Apply(labelled("b", "2", "x")), &mut None);
        assert_eq!(names(index.get(&"x".into())), ["a", "b"]);
        informer.handle(Event::Apply(labelled("a", "3", "y")), &mut None);
        assert_eq!(
            (names(index.get(&"x".into())), names(index.get(&"y".into()))),
            (vec!["b".into()], vec!["a".into()])
        );
        // A repeated list shows the same version once more, as another object.
        informer.handle(Event::Apply(labelled("b", "2", "x")), &mut None);
        assert_eq!(index.count(&"x".into()), 1);
    }

    #[test]
    fn an_object_whose_last_version_says_something_new_leaves_nothing_in_an_index() {
        let informer = Informer::new();
        let index = informer.index(by_label);
        informer.handle(Event::Apply(labelled("a", "1", "x")), &mut None);
        informer.handle(Event::Apply(labelled("b", "2", "x")), &mut None);
        informer.handle(Event::Delete(labelled("a", "3", "z")), &mut None);
        assert_eq!(names(index.get(&"x".into())), ["b"]);
        for event in [Event::Init, Event::InitDone] {
            informer.handle(event, &mut Some(HashSet::new()));
        }
        assert!(index.is_empty(), "a list without it took nothing out");
    }

    #[test]
    fn a_listener_finds_the_change_that_it_is_told_of_in_every_index() {
        let informer = Informer::new();
        let index = informer.index(by_label);
        let seen: Arc<Mutex<Vec<usize>>> = Arc::default();
        let log = seen.clone();
        informer.on_change(move |_| log.lock().push(index.count(&"x".into())));
        informer.handle(Event::Apply(labelled("a", "1", "x")), &mut None);
        informer.handle(Event::Delete(labelled("a", "2", "x")), &mut None);
        assert_eq!(*seen.lock(), [1, 0]);
    }

    #[test]
    fn a_namespace_is_listed_without_the_others_and_forgotten_when_it_is_empty() {
        let informer = Informer::new();
        let mut elsewhere = config_map("b", "2");
        elsewhere.metadata.namespace = Some("other".into());
        informer.handle(Event::Apply(config_map("a", "1")), &mut None);
        informer.handle(Event::Apply(elsewhere.clone()), &mut None);
        assert_eq!(names(informer.list_in("ns")), ["a"]);
        assert_eq!(informer.list().len(), 2);
        informer.handle(Event::Delete(elsewhere), &mut None);
        assert!(informer.list_in("other").is_empty());
        assert_eq!(informer.inner.objects.read().len(), 1);
    }
}
