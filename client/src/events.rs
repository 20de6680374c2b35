//! Events: what happened to an object, for a person to read.
//!
//! Two forms, as upstream's components write them; the same event about the same object does not make another object:
//! - [`EventRecorder`], of the kubelet and the controllers: raises a count. One source may not flood one object. Source:
//!   client-go's `tools/record`.
//! - [`SeriesRecorder`], of the scheduler: begins a series about one version of an object, of which the second event is
//!   written at once, and how many they are every six minutes; it is over when there was none for as long. Events also say
//!   what was done and what else they are about. Source: client-go's `tools/events`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
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

/// Reports events in series under one component's name; otherwise as an [`EventRecorder`]. Cloning shares it.
#[derive(Clone)]
pub struct SeriesRecorder(EventRecorder);

struct Occurrence {
    object: ObjectReference,
    related: Option<ObjectReference>,
    type_: EventType,
    reason: String,
    /// `""` of an event that is counted.
    action: &'static str,
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
/// The same of series, which upstream bounds by time only.
const MAX_SERIES: usize = 4096;
/// How many events one object gets at once, and the pause until the next is let through.
const BURST: f64 = 25.0;
const REFILL_S: f64 = 300.0;
/// After so long without another event a series is over, and so often its count is written until then.
const SERIES_ENDS: Duration = Duration::from_mins(6);
/// Kubernetes' limit on an event's message.
const MAX_MESSAGE_BYTES: usize = 1024;

impl EventRecorder {
    /// `component` and `host` become the event's source. Ends when the last clone is dropped.
    pub fn new(client: Client, component: &str, host: &str) -> Self {
        EventRecorder::start(client, Form::Counted, component, host)
    }

    fn start(client: Client, form: Form, component: &str, host: &str) -> Self {
        let writer = || {
            let (queue, occurrences) = mpsc::channel(MAX_QUEUED);
            let writer = Writer {
                client: client.clone(),
                form,
                component: component.into(),
                host: Some(host.to_owned()).filter(|h| !h.is_empty()),
                keys: RandomState::new(),
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
        self.report(Occurrence {
            object,
            related: None,
            type_,
            reason: reason.into(),
            action: "",
            message: truncated(message),
            at: Timestamp::now(),
        });
    }

    fn report(&self, occurrence: Occurrence) {
        if let Err(full) = self.queue_of(&occurrence.object).try_send(occurrence) {
            let reason = full.into_inner().reason;
            debug!(reason, "an event was dropped: too many are waiting to be written");
        }
    }

    /// The same one for all events of an object.
    fn queue_of(&self, object: &ObjectReference) -> &mpsc::Sender<Occurrence> {
        let mut hasher = DefaultHasher::new();
        (&object.uid, &object.namespace, &object.name).hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % N_WRITERS).unwrap_or(0);
        &self.queues[at]
    }
}

impl SeriesRecorder {
    /// `instance` tells several of one component apart.
    pub fn new(client: Client, component: &str, instance: &str) -> Self {
        SeriesRecorder(EventRecorder::start(client, Form::Series, component, instance))
    }

    /// Reports what was done about an object, and with which other.
    pub fn event<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        related: Option<ObjectReference>,
        type_: EventType,
        reason: &str,
        action: &'static str,
        message: &str,
    ) {
        self.0.report(Occurrence {
            object: reference(object),
            related,
            type_,
            reason: reason.into(),
            action,
            message: shortened(message),
            at: Timestamp::now(),
        });
    }
}

/// As upstream's scheduler cuts its messages.
fn shortened(message: &str) -> String {
    const ENDS: &str = " ...";
    if message.len() <= MAX_MESSAGE_BYTES {
        return message.to_owned();
    }
    format!("{}{ENDS}", &message[..message.floor_char_boundary(MAX_MESSAGE_BYTES - ENDS.len())])
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

/// How events are written that are the same as others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Counted,
    Series,
}

/// What makes two events the same, as a number: of most events nobody will ever say the same again.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Identity(u64);

/// An event that is there.
struct Known {
    namespace: String,
    name: String,
    count: i32,
    /// The count that the API has.
    written: i32,
    last: Timestamp,
    /// The same, by a clock that nobody sets.
    heard: Instant,
}

struct Budget {
    left: f64,
    at: Timestamp,
}

struct Writer {
    client: Client,
    form: Form,
    component: String,
    host: Option<String>,
    keys: RandomState,
    known: HashMap<Identity, Known>,
    order: VecDeque<Identity>,
    budgets: HashMap<String, Budget>,
}

impl Writer {
    async fn run(mut self, mut occurrences: mpsc::Receiver<Occurrence>) {
        let mut sweeps = tokio::time::interval(SERIES_ENDS);
        loop {
            let occurrence = tokio::select! {
                // Both only wait.
                occurrence = occurrences.recv() => occurrence,
                _ = sweeps.tick(), if self.form == Form::Series => {
                    self.sweep().await;
                    continue;
                }
            };
            let Some(occurrence) = occurrence else { return };
            if !self.within_budget(&occurrence) {
                continue;
            }
            let reason = occurrence.reason.clone();
            match self.write(occurrence).await {
                Ok(()) => {}
                // Of every pod in it: no news, and all that the log would grow by.
                Err(error) if goes_with_its_namespace(&error) => {
                    debug!(reason, %error, "an event goes with its namespace");
                }
                Err(error) => warn!(reason, %error, "an event could not be written"),
            }
        }
    }

    /// A token bucket for each object. A series needs none: it is one object, seldom written.
    fn within_budget(&mut self, occurrence: &Occurrence) -> bool {
        if self.form == Form::Series {
            return true;
        }
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
        let (identity, heard) = (self.identity(&occurrence), Instant::now());
        if let Some(known) = self.known.get_mut(&identity) {
            known.count = known.count.saturating_add(1);
            (known.last, known.heard) = (occurrence.at, heard);
            if self.form == Form::Series && known.count > 2 {
                return Ok(());
            }
            if self.recount(identity).await? {
                return Ok(());
            }
            // It has expired: make a new one.
            self.forget(identity);
        }
        let event = self.event(&occurrence);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let name = event.metadata.name.clone().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        events.create(&PostParams::default(), &event).await?;
        let known = Known { namespace, name, count: 1, written: 1, last: occurrence.at, heard };
        self.remember(identity, known).await;
        Ok(())
    }

    /// Writes the count of an event that is there; answers whether it still is.
    async fn recount(&mut self, identity: Identity) -> Result<bool, kube::Error> {
        let Some(known) = self.known.get_mut(&identity) else { return Ok(false) };
        let events: Api<Event> = Api::namespaced(self.client.clone(), &known.namespace);
        let patch = match self.form {
            Form::Counted => json!({"count": known.count, "lastTimestamp": Time(known.last)}),
            Form::Series => {
                json!({"series": {"count": known.count, "lastObservedTime": MicroTime(known.last)}})
            }
        };
        match events.patch(&known.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => {
                known.written = known.count;
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes the counts that have grown, and ends the series that are over.
    async fn sweep(&mut self) {
        let mut ended = HashSet::new();
        for identity in self.order.clone() {
            let is_over = self.known.get(&identity).is_none_or(|known| known.heard.elapsed() >= SERIES_ENDS);
            // One whose count cannot be written stays for the next time.
            match self.settle(identity).await {
                Ok(is_there) if is_over || !is_there => _ = ended.insert(identity),
                Ok(_) | Err(_) => {}
            }
        }
        self.order.retain(|identity| !ended.contains(identity));
        self.known.retain(|identity, _| !ended.contains(identity));
    }

    /// Writes a count that has grown since it was written; answers whether the event is still there.
    async fn settle(&mut self, identity: Identity) -> Result<bool, kube::Error> {
        if self.known.get(&identity).is_none_or(|known| known.count == known.written) {
            return Ok(true);
        }
        let written = self.recount(identity).await;
        if let Err(error) = &written {
            warn!(%error, "the count of an event could not be written");
        }
        written
    }

    async fn remember(&mut self, identity: Identity, known: Known) {
        let most = if self.form == Form::Series { MAX_SERIES } else { MAX_REMEMBERED };
        if self.order.len() >= most
            && let Some(oldest) = self.order.pop_front()
        {
            // Whether or not that worked, there is no room for it.
            _ = self.settle(oldest).await;
            self.known.remove(&oldest);
        }
        self.order.push_back(identity);
        self.known.insert(identity, known);
    }

    fn forget(&mut self, identity: Identity) {
        self.known.remove(&identity);
        self.order.retain(|other| *other != identity);
    }

    fn event(&self, occurrence: &Occurrence) -> Event {
        let object = &occurrence.object;
        // Events about cluster-scoped objects live in `default`.
        let namespace =
            object.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
        let name = format!("{}.{:x}", object.name.clone().unwrap_or_default(), occurrence.at.as_nanosecond());
        let event = Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: object.clone(),
            reason: Some(occurrence.reason.clone()),
            message: Some(occurrence.message.clone()),
            type_: Some(occurrence.type_.as_str().into()),
            reporting_component: Some(self.component.clone()),
            reporting_instance: self.host.clone(),
            ..Event::default()
        };
        match self.form {
            Form::Counted => Event {
                source: Some(EventSource {
                    component: Some(self.component.clone()),
                    host: self.host.clone(),
                }),
                first_timestamp: Some(Time(occurrence.at)),
                last_timestamp: Some(Time(occurrence.at)),
                count: Some(1),
                ..event
            },
            Form::Series => Event {
                event_time: Some(MicroTime(occurrence.at)),
                action: Some(occurrence.action.into()),
                related: occurrence.related.clone(),
                ..event
            },
        }
    }

    fn identity(&self, occurrence: &Occurrence) -> Identity {
        let named = |o: &ObjectReference| {
            [&o.uid, &o.kind, &o.namespace, &o.name, &o.field_path]
                .map(|text| text.clone().unwrap_or_default())
        };
        // A series is about one version of an object, in whatever words.
        let differs = match self.form {
            Form::Counted => Some(occurrence.message.as_str()),
            Form::Series => occurrence.object.resource_version.as_deref(),
        };
        let Occurrence { object, related, type_, reason, action, .. } = occurrence;
        let related = related.as_ref().map(|other| (named(other), &other.resource_version));
        Identity(self.keys.hash_one((named(object), related, type_, reason, action, differs)))
    }
}

/// Whether nothing can be made in a namespace any more, because it is being deleted or is gone.
fn goes_with_its_namespace(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 404 || (status.code == 403 && causes.any(|cause| cause.reason == "NamespaceTerminating"))
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, Response};
    use k8s_openapi::api::core::v1::Pod;
    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::Value;

    use super::*;

    /// What the API was asked for.
    type Asked = Arc<Mutex<Vec<(Method, Value)>>>;

    /// An API that takes every event.
    fn api() -> (Client, Asked) {
        let asked = Asked::default();
        let to = asked.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let to = to.clone();
            async move {
                let (head, body) = request.into_parts();
                let body: Value = serde_json::from_slice(&body.collect_bytes().await?).unwrap_or_default();
                to.lock().push((head.method, body));
                let event = serde_json::to_vec(&Event::default()).unwrap_or_default();
                Ok::<_, kube::Error>(Response::new(Body::from(event)))
            }
        });
        (Client::new(service, "default"), asked)
    }

    fn pod(version: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some("p".into());
        pod.metadata.namespace = Some("n".into());
        pod.metadata.resource_version = Some(version.into());
        pod
    }

    /// The API must have been asked so often by now; answers what was asked last.
    async fn asked_times(asked: &Asked, n: usize) -> (Method, Value) {
        // The writer is a task of this thread: it is done long before.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        let asked = asked.lock();
        assert_eq!(asked.len(), n, "{asked:?}");
        asked[n - 1].clone()
    }

    fn refuse(events: &SeriesRecorder, version: &str, message: &str) {
        events.event(&pod(version), None, EventType::Warning, "FailedScheduling", "Scheduling", message);
    }

    #[tokio::test(start_paused = true)]
    async fn a_series_is_written_when_it_begins_and_when_its_time_has_come() {
        let (client, asked) = api();
        let events = SeriesRecorder::new(client, "scheduler", "scheduler-host");
        refuse(&events, "1", "too small");
        let (method, event) = asked_times(&asked, 1).await;
        assert_eq!(
            (method, &event["action"], &event["series"]),
            (Method::POST, &json!("Scheduling"), &Value::Null)
        );
        assert!(
            event["eventTime"].is_string() && event["count"].is_null() && event["firstTimestamp"].is_null()
        );
        refuse(&events, "1", "still too small");
        let (method, patch) = asked_times(&asked, 2).await;
        assert_eq!((method, &patch["series"]["count"]), (Method::PATCH, &json!(2)));
        // The next ones are only counted.
        refuse(&events, "1", "too small");
        refuse(&events, "1", "too small");
        // Of another version: a series of its own, and a sign that those before have been heard.
        refuse(&events, "2", "too small");
        assert_eq!(asked_times(&asked, 3).await.0, Method::POST);
        tokio::time::advance(SERIES_ENDS).await;
        let (method, patch) = asked_times(&asked, 4).await;
        assert_eq!((method, &patch["series"]["count"]), (Method::PATCH, &json!(4)));
        // Nobody has said it for so long: it begins anew.
        refuse(&events, "1", "too small");
        assert_eq!(asked_times(&asked, 5).await.0, Method::POST);
    }

    #[tokio::test]
    async fn what_is_counted_is_the_same_whatever_has_become_of_the_object() {
        let (client, asked) = api();
        let events = EventRecorder::new(client, "kubelet", "host");
        let pulled = |version: &str| events.event(&pod(version), EventType::Normal, "Pulled", "it is there");
        pulled("1");
        let (method, event) = asked_times(&asked, 1).await;
        assert_eq!(
            (method, &event["count"], &event["source"]["host"]),
            (Method::POST, &json!(1), &json!("host"))
        );
        pulled("2");
        let (method, patch) = asked_times(&asked, 2).await;
        assert_eq!((method, &patch["count"]), (Method::PATCH, &json!(2)));
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        let long = shortened(&"é".repeat(600));
        assert!(long.len() <= MAX_MESSAGE_BYTES && long.ends_with("é ..."), "{}", long.len());
    }

    /// Counts what a log would show by default.
    #[derive(Clone, Default)]
    struct Warnings(Arc<std::sync::atomic::AtomicUsize>);

    impl tracing::Subscriber for Warnings {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() <= tracing::Level::INFO
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            if self.enabled(event.metadata()) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_go_with_their_namespace_leave_nothing_in_the_log() {
        for (code, cause, expected) in
            [(403, "NamespaceTerminating", 0), (404, "", 0), (403, "", 1), (500, "", 1)]
        {
            let service = tower::service_fn(move |_: Request<Body>| async move {
                let status = json!({"kind": "Status", "status": "Failure", "code": code, "message": "no", "reason": "",
                    "details": {"causes": [{"reason": cause}]}});
                let response =
                    Response::builder().status(code).body(Body::from(status.to_string().into_bytes()));
                Ok::<_, kube::Error>(response.expect("a response"))
            });
            let warnings = Warnings::default();
            let _log = tracing::subscriber::set_default(warnings.clone());
            let events = EventRecorder::new(Client::new(service, "default"), "kubelet", "n");
            events.event(&pod("1"), EventType::Normal, "Killing", "Stopping container c");
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            assert_eq!(warnings.0.load(std::sync::atomic::Ordering::Relaxed), expected, "{code} {cause}");
        }
    }
}
