//! Watches: the initial state if asked for, then every change, then bookmarks.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use rand::Rng;
use serde_json::{Value, json};
use skiff_api::encode::Ordered;
use skiff_api::{Kind, Status, protobuf};
use skiff_webhook::conversion::Converter;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::Registry;
use super::options::{ListOptions, revision};
use crate::cache::{Caches, Change, ChangeKind, Detail, Entry, Filter, Watcher};
use crate::call::Call;
use crate::convert::{asks_webhook, convert, is_same_version, needs_webhook};
use crate::metrics::Count;
use crate::respond::{self, Encoding, Response, Rows, Shape, Syntax};
use crate::store::Revision;
use crate::websocket::{Messages, Socket};

/// Upstream's `--min-request-timeout`: a watch without `timeoutSeconds` ends between this and twice this.
const MIN_TIMEOUT_S: u64 = 1800;
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

impl Registry {
    pub(super) async fn watch(&self, mut call: Call) -> Result<Response, Status> {
        let options = ListOptions::parse(&call)?;
        call.encoding.check_streams()?;
        let syntax = call.encoding.syntax;
        let socket = Socket::asked_for(&mut call, &self.shutdown).await?;
        let (watcher, initial_end) = match self.start_watch(&call, &options).await {
            Ok(started) => started,
            // As upstream: clients take a version that is too old from the stream, and list again.
            Err(status) if status.code == 410 => {
                let expired = futures::stream::iter([event("ERROR", &status.to_json(), syntax)]);
                return Ok(streamed(expired, syntax, socket));
            }
            Err(status) => return Err(status),
        };
        let cache = self.objects.lister.caches.of(&call.kind)?;
        let timeout_s = match options.timeout_s {
            Some(seconds) if seconds > 0 => seconds,
            _ => MIN_TIMEOUT_S + rand::rng().random_range(0..MIN_TIMEOUT_S),
        };
        let needs_webhook = needs_webhook(cache.kind(), &call.kind);
        let asks_webhook = asks_webhook(&call.kind);
        let converter =
            if asks_webhook { Some(self.objects.lister.table().converter(&call.kind)?) } else { None };
        // What a webhook has converted is as good as stored so.
        let stored = if needs_webhook { call.kind.clone() } else { cache.kind().clone() };
        let encoder = EventEncoder {
            kind: call.kind.clone(),
            as_stored: is_same_version(&stored, &call.kind),
            stored,
            printed: call.printed.clone(),
            encoding: call.encoding,
            syntax,
            detail: call.detail(),
            sent_columns: false,
        };
        let stream = WatchStream {
            backlog: watcher.backlog.into(),
            changes: watcher.changes,
            initial_end: initial_end.filter(|_| options.bookmarks),
            bookmark: options.bookmarks.then(|| Box::pin(sleep(BOOKMARK_INTERVAL))),
            end: Box::pin(sleep(Duration::from_secs(timeout_s))),
            caches: self.objects.lister.caches.clone(),
            shutdown: Box::pin(self.shutdown.clone().cancelled_owned()),
            pending_bookmark: None,
            converter,
            converts: needs_webhook,
            filter: options.filter.clone(),
            seen: HashSet::new(),
            looked_at: HashSet::new(),
            goes_on: !matches!(options.resource_version.as_str(), "" | "0"),
            has_failed: false,
            sent: self.objects.metrics.watch_events(&call.kind),
            encoder,
        };
        Ok(streamed(stream.into_stream(), syntax, socket))
    }

    /// Registers the watch. The second value is the revision of the bookmark that ends the initial events.
    async fn start_watch(
        &self,
        call: &Call,
        options: &ListOptions,
    ) -> Result<(Watcher, Option<Revision>), Status> {
        let cache = self.objects.lister.caches.of(&call.kind)?;
        let version = options.resource_version.as_str();
        // What has to be converted first is looked at afterwards.
        let filter = match needs_webhook(cache.kind(), &call.kind) {
            true => options.filter.without_fields(),
            false => options.filter.clone(),
        };
        match options.send_initial_events {
            Some(true) => {
                let reached = match version {
                    "" => self.objects.lister.caches.wait_for_newest().await?,
                    "0" => self.objects.lister.caches.applied(),
                    version => {
                        let revision = revision(version)?;
                        self.objects.lister.caches.wait_for(revision).await?;
                        revision
                    }
                };
                let watcher = cache.watch(filter, None)?;
                let end = reached.max(watcher.revision);
                Ok((watcher, Some(end)))
            }
            // Without initial events and a version it starts at what is newest.
            Some(false) if matches!(version, "" | "0") => {
                let newest = self.objects.lister.caches.wait_for_newest().await?;
                Ok((cache.watch(filter, Some(newest))?, None))
            }
            _ => match version {
                "" => {
                    self.objects.lister.caches.wait_for_newest().await?;
                    Ok((cache.watch(filter, None)?, None))
                }
                "0" => Ok((cache.watch(filter, None)?, None)),
                version => Ok((cache.watch(filter, Some(revision(version)?))?, None)),
            },
        }
    }
}

/// The answer that is `events`, each of them a message if there is a socket.
fn streamed(
    events: impl Stream<Item = Bytes> + Send + 'static,
    syntax: Syntax,
    socket: Option<Socket>,
) -> Response {
    if let Some(socket) = socket {
        return match syntax {
            // A message has a length of its own.
            Syntax::Protobuf => {
                let events =
                    events.map(|mut frame| Ok(frame.split_off(protobuf::FRAME_HEAD.min(frame.len()))));
                socket.events(Messages::Binary, events)
            }
            _ => socket.events(Messages::Text, events.map(Ok)),
        };
    }
    let mut response = Response::new(Body::from_stream(events.map(Ok::<_, Infallible>)));
    let headers = response.headers_mut();
    let media_type = match syntax {
        Syntax::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => "application/json",
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

struct WatchStream {
    backlog: VecDeque<Change>,
    changes: tokio::sync::mpsc::Receiver<Change>,
    initial_end: Option<Revision>,
    // These are kept from event to event: each timer that is set, and each wait for the end, takes a lock that all watches
    // share.
    bookmark: Option<Pin<Box<Sleep>>>,
    /// A bookmark that is due once everything received before it is sent.
    pending_bookmark: Option<Revision>,
    end: Pin<Box<Sleep>>,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    caches: Arc<Caches>,
    /// Who converts the objects, if that is a webhook.
    converter: Option<Arc<Converter>>,
    /// Another version is asked for than what is stored now.
    converts: bool,
    /// What is asked for, and the keys of what of it was sent: of what is converted only.
    filter: Filter,
    seen: HashSet<Arc<str>>,
    /// The keys of all that was looked at.
    looked_at: HashSet<Arc<str>>,
    /// It did not begin with all objects.
    goes_on: bool,
    /// The stream ends with what could not be converted.
    has_failed: bool,
    /// Counts what is sent.
    sent: Count,
    encoder: EventEncoder,
}

/// What comes next in a stream.
enum Step {
    Change(Change),
    Frame(Bytes),
}

impl WatchStream {
    fn into_stream(self) -> impl Stream<Item = Bytes> + Send {
        futures::stream::unfold(self, |mut stream| async move {
            let frame = stream.next().await?;
            Some((frame, stream))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        while !self.has_failed {
            let frame = match self.step().await? {
                Step::Frame(frame) => Some(frame),
                Step::Change(change) => self.encoded(change).await,
            };
            if frame.is_some() {
                self.sent.inc();
                return frame;
            }
        }
        None
    }

    /// A change as it is sent; `None` if nothing is asked for that it is about.
    async fn encoded(&mut self, change: Change) -> Option<Bytes> {
        let (kind, entry) = (&self.encoder.kind, &change.entry);
        let Some(converter) = self.converter.as_ref().filter(|_| self.converts || entry.is_foreign) else {
            return Some(self.encoder.change(&change));
        };
        match converter.convert(entry.parse(), &kind.api_version()).await {
            Ok(object) => {
                let entry = Arc::new(Entry::encode(kind, entry.key.clone(), object, entry.mod_revision).0);
                let kind = self.kind_seen(change.kind, &entry)?;
                Some(self.encoder.change(&Change::new(kind, entry)))
            }
            Err(error) => {
                self.has_failed = true;
                Some(event("ERROR", &Status::from(error).to_json(), self.encoder.syntax))
            }
        }
    }

    /// What a change is to who sees only what is asked for.
    fn kind_seen(&mut self, kind: ChangeKind, entry: &Entry) -> Option<ChangeKind> {
        if !self.filter.has_own_fields() {
            return Some(kind);
        }
        let is_first = self.looked_at.insert(entry.key.clone());
        let is_seen = kind != ChangeKind::Deleted && self.filter.matches(entry);
        let was_seen =
            if is_seen { !self.seen.insert(entry.key.clone()) } else { self.seen.remove(&entry.key) };
        match (was_seen, is_seen) {
            (false, true) => Some(ChangeKind::Added),
            (true, true) => Some(ChangeKind::Modified),
            (true, false) => Some(ChangeKind::Deleted),
            // Whoever goes on from a version may have seen it before: to be told in vain harms nobody.
            (false, false) if is_first && self.goes_on && kind != ChangeKind::Added => {
                Some(ChangeKind::Deleted)
            }
            (false, false) => None,
        }
    }

    async fn step(&mut self) -> Option<Step> {
        if let Some(change) = self.backlog.pop_front() {
            return Some(Step::Change(change));
        }
        if let Some(revision) = self.initial_end.take() {
            return Some(Step::Frame(self.encoder.bookmark(revision, true)));
        }
        if let Some(revision) = self.pending_bookmark {
            return match self.changes.try_recv() {
                Ok(change) => Some(Step::Change(change)),
                Err(TryRecvError::Empty) => {
                    self.pending_bookmark = None;
                    Some(Step::Frame(self.encoder.bookmark(revision, false)))
                }
                // Dropped by the cache: something is missing, and no bookmark may hide that.
                Err(TryRecvError::Disconnected) => None,
            };
        }
        // Each arm only waits: a change that is received is sent.
        tokio::select! {
            () = self.shutdown.as_mut() => None,
            () = self.end.as_mut() => None,
            () = due(&mut self.bookmark) => {
                if let Some(bookmark) = &mut self.bookmark {
                    bookmark.as_mut().reset(Instant::now() + BOOKMARK_INTERVAL);
                }
                // Whatever happened up to here is in the channel already: it goes first.
                let applied = self.caches.applied();
                match self.changes.try_recv() {
                    Ok(change) => {
                        self.pending_bookmark = Some(applied);
                        Some(Step::Change(change))
                    }
                    Err(TryRecvError::Empty) => Some(Step::Frame(self.encoder.bookmark(applied, false))),
                    Err(TryRecvError::Disconnected) => None,
                }
            }
            // `None`: too slow, and dropped by the cache.
            change = self.changes.recv() => change.map(Step::Change),
        }
    }
}

/// Waits for a timer, or for ever if there is none.
async fn due(timer: &mut Option<Pin<Box<Sleep>>>) {
    match timer {
        Some(timer) => timer.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Writes events in the shape that the client asked for.
struct EventEncoder {
    kind: Arc<Kind>,
    stored: Arc<Kind>,
    /// The version whose columns are printed.
    printed: Arc<Kind>,
    encoding: Encoding,
    syntax: Syntax,
    as_stored: bool,
    detail: Detail,
    sent_columns: bool,
}

impl EventEncoder {
    fn change(&mut self, change: &Change) -> Bytes {
        if self.encoding.shape == Shape::Object && self.as_stored {
            return match self.syntax {
                Syntax::Protobuf => change.protobuf_frame(&self.stored),
                _ => change.frame(self.detail),
            };
        }
        if self.encoding.shape == Shape::Metadata
            && self.as_stored
            && self.syntax != Syntax::Protobuf
            && let Some(metadata) =
                change.entry.metadata_json(&self.stored, self.encoding.meta_version, self.detail)
        {
            return crate::cache::frame(change.kind.as_str(), &metadata);
        }
        let object = self.shaped(&change.entry);
        event(change.kind.as_str(), &object, self.syntax)
    }

    fn shaped(&mut self, entry: &Entry) -> Value {
        let object = convert(&self.stored, &self.kind, entry.parse());
        match self.encoding.shape {
            Shape::Object => object,
            Shape::Metadata => respond::metadata_only(&object, self.encoding.meta_version),
            Shape::Table => {
                let row = self.rows().row(&object);
                self.table(vec![row], entry.mod_revision)
            }
        }
    }

    fn rows(&self) -> Rows<'_> {
        Rows::of(&self.encoding, &self.kind, &self.printed)
    }

    /// Only the first event of a watch carries the columns.
    fn table(&mut self, rows: Vec<Value>, revision: Revision) -> Value {
        let is_first = !std::mem::replace(&mut self.sent_columns, true);
        let columns = is_first.then_some(&*self.printed);
        self.rows().table(columns, rows, json!({"resourceVersion": revision.to_string()}))
    }

    fn bookmark(&mut self, revision: Revision, ends_initial_events: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if ends_initial_events {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let document =
            |kind: &str, version: &str| json!({"kind": kind, "apiVersion": version, "metadata": metadata});
        let object = match self.encoding.shape {
            Shape::Object => document(&self.kind.kind, &self.kind.api_version()),
            Shape::Metadata => document("PartialObjectMetadata", self.encoding.meta_version),
            Shape::Table => {
                let mut table = self.table(Vec::new(), revision);
                table["metadata"] = metadata;
                table
            }
        };
        event("BOOKMARK", &object, self.syntax)
    }
}

fn event(kind: &str, object: &Value, syntax: Syntax) -> Bytes {
    // Whatever is sent as protobuf has a type in it: tables are never asked for that way.
    if syntax == Syntax::Protobuf
        && let Some(object) = protobuf::document(object)
    {
        return protobuf::watch_frame(kind, &object);
    }
    crate::cache::frame(kind, &serde_json::to_vec(&Ordered(object)).unwrap_or_default())
}
