//! The API objects that pods of this node refer to: Secrets and ConfigMaps, each kept current by a watch of its own. Services
//! are watched all together; RuntimeClasses are read when asked for, and remembered for a minute.
//!
//! A Secret or ConfigMap is watched from the first pod that refers to it to the last one that goes. When it changes, the pods
//! that refer to it are woken.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use skiff_client::{Read, watched};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::wake::Wakers;

/// How long a pod's pass waits for an object's first state.
const FIRST_STATE: Duration = Duration::from_secs(5);
const RUNTIME_CLASS_TTL: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ObjectError {
    #[error("cannot read {kind} {namespace}/{name}: {message}")]
    Unavailable { kind: &'static str, namespace: String, name: String, message: String },
    #[error("services have not yet been read at least once, cannot construct envvars")]
    ServicesNotRead,
    #[error("failed to get RuntimeClass {name}: {message}")]
    RuntimeClass { name: String, message: String },
}

pub(crate) struct Objects {
    pub(crate) config_maps: Cache<ConfigMap>,
    pub(crate) secrets: Cache<Secret>,
    services: watch::Receiver<Option<Arc<ServiceMap>>>,
    runtime_classes: Mutex<HashMap<String, (Instant, String)>>,
    client: Client,
    _stop: DropGuard,
}

pub(crate) type ServiceMap = BTreeMap<(String, String), Arc<Service>>;

impl Objects {
    pub(crate) fn start(client: Client, wakers: Arc<Wakers>) -> Objects {
        let stop = CancellationToken::new();
        let (services_tx, services) = watch::channel(None);
        let (stopped, api) = (stop.clone(), Api::<Read<Service>>::all(client.clone()));
        tokio::spawn(async move { stopped.run_until_cancelled(watch_services(api, services_tx)).await });
        Objects {
            config_maps: Cache::new("configmap", client.clone(), wakers.clone()),
            secrets: Cache::new("secret", client.clone(), wakers),
            services,
            runtime_classes: Mutex::default(),
            client,
            _stop: stop.drop_guard(),
        }
    }

    pub(crate) async fn services(&self) -> Result<Arc<ServiceMap>, ObjectError> {
        let mut services = self.services.clone();
        let read = tokio::time::timeout(FIRST_STATE, services.wait_for(Option::is_some)).await;
        match read {
            Ok(Ok(map)) => map.clone().ok_or(ObjectError::ServicesNotRead),
            _ => Err(ObjectError::ServicesNotRead),
        }
    }

    /// The handler that a RuntimeClass names.
    pub(crate) async fn runtime_handler(&self, name: &str) -> Result<String, ObjectError> {
        if let Some((read_at, handler)) = self.runtime_classes.lock().get(name)
            && read_at.elapsed() < RUNTIME_CLASS_TTL
        {
            return Ok(handler.clone());
        }
        let failed = |message: String| ObjectError::RuntimeClass { name: name.to_owned(), message };
        let api = Api::<RuntimeClass>::all(self.client.clone());
        let class = api.get_opt(name).await.map_err(|e| failed(e.to_string()))?;
        let class = class.ok_or_else(|| failed(format!("runtimeclass.node.k8s.io {name:?} not found")))?;
        let mut cache = self.runtime_classes.lock();
        cache.retain(|_, (read_at, _)| read_at.elapsed() < RUNTIME_CLASS_TTL);
        cache.insert(name.to_owned(), (Instant::now(), class.handler.clone()));
        Ok(class.handler)
    }

    /// The pod is gone: what only it referred to is no longer watched.
    pub(crate) fn release(&self, uid: &str) {
        self.config_maps.release(uid);
        self.secrets.release(uid);
    }
}

async fn watch_services(api: Api<Read<Service>>, out: watch::Sender<Option<Arc<ServiceMap>>>) {
    let stream = watched(api, watcher::Config::default());
    futures::pin_mut!(stream);
    let (mut map, mut listing) = (ServiceMap::new(), ServiceMap::new());
    let key = |s: &Service| {
        (s.metadata.namespace.clone().unwrap_or_default(), s.metadata.name.clone().unwrap_or_default())
    };
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => listing.clear(),
            Ok(watcher::Event::InitApply(service)) => {
                listing.insert(key(&service), Arc::new(service));
                continue;
            }
            Ok(watcher::Event::InitDone) => map = std::mem::take(&mut listing),
            Ok(watcher::Event::Apply(service)) => {
                map.insert(key(&service), Arc::new(service));
            }
            Ok(watcher::Event::Delete(service)) => {
                map.remove(&key(&service));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot watch services, trying again");
                continue;
            }
        }
        out.send_replace(Some(Arc::new(map.clone())));
    }
}

/// An object's state, once there is one: the object, or that there is none of that name.
type State<K> = Option<Result<Option<Arc<K>>, String>>;

struct Entry<K> {
    state: watch::Receiver<State<K>>,
    users: Arc<Mutex<HashSet<String>>>,
    _stop: DropGuard,
}

pub(crate) struct Cache<K> {
    kind: &'static str,
    client: Client,
    wakers: Arc<Wakers>,
    entries: Mutex<HashMap<(String, String), Entry<K>>>,
}

impl<K> Cache<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
{
    fn new(kind: &'static str, client: Client, wakers: Arc<Wakers>) -> Cache<K> {
        Cache { kind, client, wakers, entries: Mutex::default() }
    }

    /// The object, for pod `uid`; `None` if there is none of that name.
    pub(crate) async fn get(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<Option<Arc<K>>, ObjectError> {
        let mut state = self.subscribe(namespace, name, uid);
        let first = tokio::time::timeout(FIRST_STATE, state.wait_for(Option::is_some)).await;
        let failed = |message: &str| ObjectError::Unavailable {
            kind: self.kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            message: message.to_owned(),
        };
        match first {
            Ok(Ok(state)) => match &*state {
                Some(Ok(object)) => Ok(object.clone()),
                Some(Err(message)) => Err(failed(message)),
                None => Err(failed("no state")),
            },
            Ok(Err(_)) => Err(failed("the watch ended")),
            Err(_) => Err(failed("timed out waiting for the condition")),
        }
    }

    fn subscribe(&self, namespace: &str, name: &str, uid: &str) -> watch::Receiver<State<K>> {
        let mut entries = self.entries.lock();
        let entry = entries.entry((namespace.to_owned(), name.to_owned())).or_insert_with(|| {
            let (tx, state) = watch::channel(None);
            let users = Arc::new(Mutex::new(HashSet::new()));
            let stop = CancellationToken::new();
            let api = Api::<Read<K>>::namespaced(self.client.clone(), namespace);
            let task = watch_one(api, name.to_owned(), tx, users.clone(), self.wakers.clone());
            let stopped = stop.clone();
            tokio::spawn(async move { stopped.run_until_cancelled(task).await });
            Entry { state, users, _stop: stop.drop_guard() }
        });
        entry.users.lock().insert(uid.to_owned());
        entry.state.clone()
    }

    fn release(&self, uid: &str) {
        self.entries.lock().retain(|_, entry| {
            let mut users = entry.users.lock();
            users.remove(uid);
            !users.is_empty()
        });
    }
}

async fn watch_one<K>(
    api: Api<Read<K>>,
    name: String,
    out: watch::Sender<State<K>>,
    users: Arc<Mutex<HashSet<String>>>,
    wakers: Arc<Wakers>,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let stream = watched(api, config);
    futures::pin_mut!(stream);
    let mut listed = None;
    while let Some(event) = stream.next().await {
        let state = match event {
            Ok(watcher::Event::Init) => {
                listed = None;
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed = Some(Arc::new(object));
                continue;
            }
            Ok(watcher::Event::InitDone) => Ok(listed.take()),
            Ok(watcher::Event::Apply(object)) => Ok(Some(Arc::new(object))),
            Ok(watcher::Event::Delete(_)) => Ok(None),
            // A state that was read stays good while the API server is away.
            Err(_) if matches!(*out.borrow(), Some(Ok(_))) => continue,
            Err(error) => Err(error.to_string()),
        };
        out.send_replace(Some(state));
        for uid in users.lock().iter() {
            wakers.wake(uid);
        }
    }
}
