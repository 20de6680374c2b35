//! Events: what happened to an object, for a person to read.
//!
//! Source: client-go's `tools/record`. The same event about the same object raises a count instead of making
//! another object; one source may not flood one object.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{debug, warn};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Reports events under one component's name. Never blocks: where events come faster than they can be written,
/// the newest are dropped. Cloning shares it.
#[derive(Clone)]
pub struct EventRecorder {
    /// One for each writer.
    queues: Arc<[mpsc::Sender<Occurrence>]>,
}

struct Occurrence {
    object: ObjectReference,
    type_: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Events are written in order for each object, and for so many objects at once: one that the server is slow to take, or an
/// object that has many, does not hold up the others.
const N_WRITERS: u64 = 8;
/// Events waiting for one writer.
const MAX_QUEUED: usize = 250;
/// Events that a writer remembers for counting: all together as many as upstream's cache.
const MAX_REMEMBERED: usize = 512;
/// How many events one object gets at once, and the pause until the next is let through.
const BURST: f64 = 25.0;
const REFILL_S: f64 = 300.0;
/// Kubernetes' limit on an event's message.
const MAX_MESSAGE_BYTES: usize = 1024;

impl EventRecorder {
    /// `component` and `host` become the event's source. Ends when the last clone is dropped.
    pub fn new(client: Client, component: &str, host: &str) -> Self {
        let source = EventSource {
            component: Some(component.into()),
            host: Some(host.to_owned()).filter(|h| !h.is_empty()),
        };
        let writer = || {
            let (queue, occurrences) = mpsc::channel(MAX_QUEUED);
            let writer = Writer {
                client: client.clone(),
                source: source.clone(),
                known: HashMap::new(),
                order: VecDeque::new(),
                budgets: HashMap::new(),
            };
            tokio::spawn(writer.run(occurrences));
            queue
        };
        EventRecorder { queues: (0..N_WRITERS).map(|_| writer()).collect() }
    }

    /// Reports an event about an object.
    pub fn event<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        type_: EventType,
        reason: &str,
        message: &str,
    ) {
        self.event_about(reference(object), type_, reason, message);
    }

    /// Reports an event about what a reference names, such as one container of a pod.
    pub fn event_about(&self, object: ObjectReference, type_: EventType, reason: &str, message: &str) {
        let occurrence = Occurrence {
            object,
            type_,
            reason: reason.into(),
            message: truncated(message),
            at: Timestamp::now(),
        };
        if self.queue_of(&occurrence.object).try_send(occurrence).is_err() {
            debug!(reason, "an event was dropped: too many are waiting to be written");
        }
    }
}

impl EventRecorder {
    /// The same one for all events of an object.
    fn queue_of(&self, object: &ObjectReference) -> &mpsc::Sender<Occurrence> {
        let mut hasher = DefaultHasher::new();
        (&object.uid, &object.namespace, &object.name).hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % N_WRITERS).unwrap_or(0);
        &self.queues[at]
    }
}

fn truncated(message: &str) -> String {
    let end = message.floor_char_boundary(MAX_MESSAGE_BYTES);
    message[..end].to_owned()
}

/// A reference to an object, as events carry it.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// What makes two events the same.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Identity {
    uid: String,
    object: String,
    field_path: String,
    type_: EventType,
    reason: String,
    message: String,
}

struct Known {
    namespace: String,
    name: String,
    count: i32,
}

struct Budget {
    left: f64,
    at: Timestamp,
}

struct Writer {
    client: Client,
    source: EventSource,
    known: HashMap<Identity, Known>,
    order: VecDeque<Identity>,
    budgets: HashMap<String, Budget>,
}

impl Writer {
    async fn run(mut self, mut occurrences: mpsc::Receiver<Occurrence>) {
        while let Some(occurrence) = occurrences.recv().await {
            if !self.within_budget(&occurrence) {
                continue;
            }
            let reason = occurrence.reason.clone();
            if let Err(error) = self.write(occurrence).await {
                warn!(reason, %error, "an event could not be written");
            }
        }
    }

    /// A token bucket for each object.
    fn within_budget(&mut self, occurrence: &Occurrence) -> bool {
        if self.budgets.len() >= MAX_REMEMBERED {
            self.budgets.clear();
        }
        let object = occurrence.object.uid.clone().unwrap_or_default();
        let budget = self.budgets.entry(object).or_insert(Budget { left: BURST, at: occurrence.at });
        let passed_s = occurrence.at.duration_since(budget.at).as_secs_f64().max(0.0);
        budget.left = (budget.left + passed_s / REFILL_S).min(BURST);
        budget.at = occurrence.at;
        if budget.left < 1.0 {
            return false;
        }
        budget.left -= 1.0;
        true
    }

    async fn write(&mut self, occurrence: Occurrence) -> Result<(), kube::Error> {
        let identity = identity(&occurrence);
        if let Some(known) = self.known.get_mut(&identity) {
            known.count += 1;
            let events: Api<Event> = Api::namespaced(self.client.clone(), &known.namespace);
            let patch = json!({"count": known.count, "lastTimestamp": Time(occurrence.at)});
            match events.patch(&known.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => return Ok(()),
                // It has expired: make a new one.
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    self.known.remove(&identity);
                }
                Err(error) => return Err(error),
            }
        }
        let event = self.event(&occurrence);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let name = event.metadata.name.clone().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        events.create(&PostParams::default(), &event).await?;
        self.remember(identity, Known { namespace, name, count: 1 });
        Ok(())
    }

    fn remember(&mut self, identity: Identity, known: Known) {
        if self.order.len() >= MAX_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(identity.clone());
        self.known.insert(identity, known);
    }

    fn event(&self, occurrence: &Occurrence) -> Event {
        let object = &occurrence.object;
        // Events about cluster-scoped objects live in `default`.
        let namespace =
            object.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
        let name = format!("{}.{:x}", object.name.clone().unwrap_or_default(), occurrence.at.as_nanosecond());
        Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: object.clone(),
            reason: Some(occurrence.reason.clone()),
            message: Some(occurrence.message.clone()),
            type_: Some(occurrence.type_.as_str().into()),
            source: Some(self.source.clone()),
            first_timestamp: Some(Time(occurrence.at)),
            last_timestamp: Some(Time(occurrence.at)),
            count: Some(1),
            reporting_component: self.source.component.clone(),
            reporting_instance: self.source.host.clone(),
            ..Event::default()
        }
    }
}

fn identity(occurrence: &Occurrence) -> Identity {
    let object = &occurrence.object;
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    Identity {
        uid: text(&object.uid),
        object: format!("{}/{}/{}", text(&object.kind), text(&object.namespace), text(&object.name)),
        field_path: text(&object.field_path),
        type_: occurrence.type_,
        reason: occurrence.reason.clone(),
        message: occurrence.message.clone(),
    }
}
