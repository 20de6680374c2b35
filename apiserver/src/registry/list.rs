//! Lists: at which revision, which part, in which shape.

use std::ops::Bound;
use std::sync::Arc;

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderValue;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skiff_api::encode::Ordered;
use skiff_api::{Kind, Status, protobuf, table};
use std::io::Write;

use super::options::{ListOptions, VersionMatch, revision};
use crate::cache::{Detail, Entry, Filter, Snapshot};
use crate::call::Call;
use crate::convert::{convert, is_same_version, needs_webhook};
use crate::failure::store_failure;
use crate::heavy::HeavyWork;
use crate::objects::Objects;
use crate::respond::{self, Encoding, GZIP_FROM_BYTES, Response, Rows, Shape, Syntax};
use crate::store::{Range, Revision, StoreError};

const TOKEN_VERSION: &str = "meta.k8s.io/v1";
/// A list is sent in pieces of about this size.
const CHUNK_BYTES: usize = 64 << 10;
/// And of at most so many items: printing one may take much longer than what it prints is long.
const CHUNK_ITEMS: usize = 64;
const STORE_PAGE: usize = 500;

/// A `continue` token, as upstream encodes it. Revision -1 goes on with whatever stands now.
#[derive(Serialize, Deserialize)]
struct ContinueToken {
    v: String,
    rv: i64,
    start: String,
}

impl ContinueToken {
    fn encode(rv: i64, start: &str) -> String {
        let token = ContinueToken { v: TOKEN_VERSION.into(), rv, start: start.into() };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    fn decode(text: &str) -> Result<ContinueToken, Status> {
        let invalid = |why: &str| Status::bad_request(format!("continue key is not valid: {why}"));
        let bytes =
            URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| invalid("illegal base64 data"))?;
        let token: ContinueToken = serde_json::from_slice(&bytes).map_err(|_| invalid("illegal document"))?;
        if token.v != TOKEN_VERSION {
            return Err(invalid("server does not recognize this encoded version"));
        }
        if token.rv == 0 || token.rv < -1 {
            return Err(invalid("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
        }
        Ok(token)
    }
}

/// What a list answers, before it is encoded.
pub(super) struct Page {
    pub(super) revision: Revision,
    pub(super) entries: Vec<Arc<Entry>>,
    /// Where the next page starts.
    pub(super) next: Option<String>,
    pub(super) remaining: Option<usize>,
    /// The entries are in the version of the request already.
    pub(super) is_converted: bool,
}

/// The state that a list reads.
struct Source {
    revision: Revision,
    snapshot: Snapshot,
    /// Only keys from here on.
    start: Option<String>,
}

/// Reads and encodes lists.
pub(crate) struct Lists {
    pub(crate) objects: Arc<Objects>,
    pub(crate) heavy: Arc<HeavyWork>,
}

impl Lists {
    pub(super) async fn list(&self, call: Call) -> Result<Response, Status> {
        let options = ListOptions::parse(&call)?;
        let source = match self.source(&call, &options).await {
            Ok(source) => source,
            Err(refusal) => {
                let document = refusal.document();
                return Ok(respond::failure_document(&call.encoding, &refusal.status, &document));
            }
        };
        let (revision, snapshot) = (source.revision, source.snapshot.clone());
        let cache = self.objects.lister.caches.of(&call.kind)?;
        let late = needs_webhook(cache.kind(), &call.kind) && options.filter.has_own_fields();
        let source = if late {
            let snapshot =
                self.converted_snapshot(cache.kind(), &call.kind, &source.snapshot, &options.filter).await?;
            Source { snapshot, ..source }
        } else {
            source
        };
        let mut page = select(source, &options);
        page.is_converted = late;
        if page.next.is_some() {
            self.objects.lister.caches.of(&call.kind)?.keep_snapshot(revision, snapshot);
        }
        self.encode(call, page).await
    }

    async fn source(&self, call: &Call, options: &ListOptions) -> Result<Source, Refusal> {
        let cache = self.objects.lister.caches.of(&call.kind)?;
        if !options.continue_token.is_empty() {
            if !matches!(options.resource_version.as_str(), "" | "0") {
                let why = "specifying resource version is not allowed when using continue";
                return Err(Status::bad_request(why).into());
            }
            return self.continued(call, &options.continue_token).await;
        }
        let version = options.resource_version.as_str();
        let exact = options.version_match == VersionMatch::Exact
            || (options.version_match == VersionMatch::Unset
                && options.limit.is_some()
                && !matches!(version, "" | "0"));
        if exact {
            let revision = revision(version)?;
            return Ok(Source { revision, snapshot: self.snapshot_at(call, revision).await?, start: None });
        }
        let reached = match version {
            "" => self.objects.lister.caches.wait_for_newest().await?,
            "0" => self.objects.lister.caches.applied(),
            version => {
                self.objects.lister.caches.wait_for(revision(version)?).await?;
                self.objects.lister.caches.applied()
            }
        };
        let (changed, snapshot) =
            cache.snapshot_of(options.filter.namespace.as_deref()).map_err(Status::from)?;
        Ok(Source { revision: reached.max(changed), snapshot, start: None })
    }

    async fn continued(&self, call: &Call, text: &str) -> Result<Source, Refusal> {
        let token = ContinueToken::decode(text)?;
        let Ok(revision) = Revision::try_from(token.rv) else {
            let reached = self.objects.lister.caches.wait_for_newest().await?;
            let namespace = call.kind.is_namespaced().then_some(call.info.namespace.as_str());
            let namespace = namespace.filter(|namespace| !namespace.is_empty());
            let (changed, snapshot) =
                self.objects.lister.caches.of(&call.kind)?.snapshot_of(namespace).map_err(Status::from)?;
            return Ok(Source { revision: reached.max(changed), snapshot, start: Some(token.start) });
        };
        match self.snapshot_at(call, revision).await {
            Ok(snapshot) => Ok(Source { revision, snapshot, start: Some(token.start) }),
            Err(status) if status.code == 410 => Err(Refusal::expired(&token.start)),
            Err(status) => Err(status.into()),
        }
    }

    /// The objects as of a revision: kept from an earlier page, or read back from the store.
    async fn snapshot_at(&self, call: &Call, revision: Revision) -> Result<Snapshot, Status> {
        let cache = self.objects.lister.caches.of(&call.kind)?;
        if let Some(snapshot) = cache.kept_snapshot(revision) {
            return Ok(snapshot);
        }
        self.objects.lister.caches.wait_for(revision).await?;
        let prefix = cache.kind().prefix(None);
        let mut snapshot = Snapshot::new();
        let mut start = None;
        loop {
            let range = Range {
                prefix: prefix.clone(),
                start: start.take(),
                revision: Some(revision),
                limit: Some(STORE_PAGE),
            };
            let page = self.objects.store.range(range).await.map_err(|e| match e {
                StoreError::Future { .. } => Status::internal(e),
                e => store_failure(&e),
            })?;
            start = page.items.last().map(|kv| format!("{}\0", kv.key));
            for kv in page.items {
                let key = kv.key.strip_prefix(prefix.as_str()).unwrap_or(&kv.key);
                let decoded = cache.decode(key, &kv.value, kv.integrity, kv.mod_revision);
                let (entry, _) = decoded.map_err(|damage| cache.unreadable(key, damage))?;
                snapshot.insert(entry.key.clone(), Arc::new(entry));
            }
            if !page.more {
                return Ok(snapshot);
            }
        }
    }

    pub(super) async fn encode(&self, call: Call, mut page: Page) -> Result<Response, Status> {
        let mut metadata = json!({"resourceVersion": page.revision.to_string()});
        if let Some(next) = &page.next {
            metadata["continue"] = ContinueToken::encode(page.revision as i64, next).into();
        }
        if let Some(remaining) = page.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        let kind = call.kind.clone();
        let mut in_version = self.objects.lister.caches.of(&kind)?.kind().clone();
        if page.is_converted {
            in_version = kind.clone();
        } else if needs_webhook(&in_version, &kind) || page.entries.iter().any(|entry| entry.is_foreign) {
            page.entries = self.converted_entries(&in_version, &kind, page.entries).await?;
            in_version = kind.clone();
        }
        let as_stored = is_same_version(&in_version, &kind);
        if as_stored && call.encoding.is_protobuf() {
            let messages = self.messages(&call, page.entries).await?;
            let list = protobuf::List::new(&kind.api_version(), &kind.list_kind(), &metadata, messages);
            let list = list.ok_or_else(|| Status::internal("lists have no metadata"))?;
            let size_bytes = list.size_bytes();
            return Ok(streamed(&call, size_bytes, list.chunks(CHUNK_BYTES)));
        }
        let default = match call.encoding.shape {
            Shape::Table => table::default_of(&kind, page.entries.iter().map(|entry| entry.parse())),
            _ => None,
        };
        let (printed, encoding, detail) = (call.printed.clone(), call.encoding, call.detail());
        let items = Items { in_version, printed, encoding, as_stored, detail, kind, default };
        if call.encoding.syntax == Syntax::Json {
            return Ok(streamed_json(&call, items, metadata, page.entries));
        }
        // These have no form that could be sent item by item.
        let (few, heavy) = (page.entries.len() <= FEW, self.heavy.of(&call.user));
        let encode = move || {
            let mut document = items.list(metadata);
            let all = page.entries.iter().map(|entry| items.shaped(entry)).collect();
            document[items.field()] = Value::Array(all);
            respond::document_response(&call.encoding, &call.warnings, 200, &document)
        };
        if few { Ok(encode()) } else { heavy.run(encode).await }
    }

    /// The objects that a filter may be about, as a webhook converts them: what is asked for can be told of that only.
    pub(super) async fn converted_snapshot(
        &self,
        from: &Kind,
        to: &Kind,
        snapshot: &Snapshot,
        filter: &Filter,
    ) -> Result<Snapshot, Status> {
        let filter = filter.without_fields();
        let entries = snapshot.values().filter(|entry| filter.matches(entry)).cloned().collect();
        let converted = self.converted_entries(from, to, entries).await?;
        Ok(converted.into_iter().map(|entry| (entry.key.clone(), entry)).collect())
    }

    /// The entries as a webhook converts them: so many at a time, since it gets them in one document.
    async fn converted_entries(
        &self,
        from: &Kind,
        to: &Kind,
        entries: Vec<Arc<Entry>>,
    ) -> Result<Vec<Arc<Entry>>, Status> {
        let mut converted = Vec::with_capacity(entries.len());
        for some in entries.chunks(CONVERTED_TOGETHER) {
            let objects = some.iter().map(|entry| entry.parse()).collect();
            let objects = self.objects.all_converted(from, to, objects).await?;
            converted.extend(some.iter().zip(objects).map(|(entry, object)| {
                Arc::new(Entry::encode(to, entry.key.clone(), object, entry.mod_revision).0)
            }));
        }
        Ok(converted)
    }

    /// The objects in protobuf: all of them before the first is sent, since a list begins with its length.
    async fn messages(&self, call: &Call, entries: Vec<Arc<Entry>>) -> Result<Vec<Bytes>, Status> {
        let (few, kind) = (entries.len() <= FEW, call.kind.clone());
        let encode = move || entries.iter().map(|entry| entry.protobuf(&kind)).collect();
        if few { Ok(encode()) } else { self.heavy.of(&call.user).run(encode).await }
    }
}

/// As many objects a webhook is asked to convert at a time.
const CONVERTED_TOGETHER: usize = 500;
/// Encoding more than this many is too much for a thread that serves others.
const FEW: usize = 100;

/// How the items of a list are written.
struct Items {
    kind: Arc<Kind>,
    /// The version in which they are in the cache.
    in_version: Arc<Kind>,
    /// The version that rows are printed of.
    printed: Arc<Kind>,
    encoding: Encoding,
    /// Whether the cache holds the version that is asked for.
    as_stored: bool,
    detail: Detail,
    /// The name of the object that is told by a word in a table.
    default: Option<String>,
}

impl Items {
    /// The list without its items.
    fn list(&self, metadata: Value) -> Value {
        match self.encoding.shape {
            Shape::Object => json!({
                "kind": self.kind.list_kind(), "apiVersion": self.kind.api_version(), "metadata": metadata,
            }),
            Shape::Metadata => json!({
                "kind": "PartialObjectMetadataList", "apiVersion": self.encoding.meta_version, "metadata": metadata,
            }),
            Shape::Table => {
                let mut table = self.rows().table(Some(&self.printed), Vec::new(), metadata);
                if let Some(table) = table.as_object_mut() {
                    table.remove(self.field());
                }
                table
            }
        }
    }

    fn field(&self) -> &'static str {
        if self.encoding.shape == Shape::Table { "rows" } else { "items" }
    }

    fn rows(&self) -> Rows<'_> {
        Rows::of(&self.encoding, &self.kind, &self.printed)
    }

    fn shaped(&self, entry: &Entry) -> Value {
        let object = convert(&self.in_version, &self.kind, entry.parse());
        match self.encoding.shape {
            Shape::Object => object,
            Shape::Metadata => respond::metadata_only(&object, self.encoding.meta_version),
            Shape::Table => {
                let mut row = self.rows().row(&object);
                if self.default.as_deref() == Some(entry.name()) {
                    table::mark_default(&mut row);
                }
                row
            }
        }
    }

    fn json(&self, entry: &Entry) -> Bytes {
        if self.as_stored && self.encoding.shape == Shape::Object {
            return entry.sent(self.detail);
        }
        if self.as_stored
            && self.encoding.shape == Shape::Metadata
            && let Some(metadata) = entry.metadata_json(&self.kind, self.encoding.meta_version, self.detail)
        {
            return metadata;
        }
        // Writing a `Value` to memory cannot fail.
        serde_json::to_vec(&Ordered(&self.shaped(entry))).unwrap_or_default().into()
    }
}

/// The part of the snapshot that a list answers with.
fn select(source: Source, options: &ListOptions) -> Page {
    let filter = &options.filter;
    let namespace = filter.namespace.as_ref().map(|namespace| format!("{namespace}/"));
    let first = match (&source.start, &namespace) {
        (Some(start), Some(namespace)) => start.as_str().max(namespace),
        (Some(start), None) => start,
        (None, Some(namespace)) => namespace,
        (None, None) => "",
    };
    let within = |key: &str| namespace.as_deref().is_none_or(|namespace| key.starts_with(namespace));
    let mut matching = source
        .snapshot
        .range::<_, str>((Bound::Included(first), Bound::Unbounded))
        .take_while(|(key, _)| within(key))
        .filter(|(_, entry)| filter.matches(entry))
        .map(|(_, entry)| entry);
    let limit = options.limit.unwrap_or(usize::MAX);
    let entries: Vec<Arc<Entry>> = matching.by_ref().take(limit).cloned().collect();
    let remaining = matching.count();
    let next = (remaining > 0).then(|| entries.last().map(|last| format!("{}\0", last.key))).flatten();
    Page {
        revision: source.revision,
        remaining: (next.is_some() && !filter.has_selectors()).then_some(remaining),
        entries,
        next,
        is_converted: false,
    }
}

/// A list in JSON, written item by item.
fn streamed_json(call: &Call, items: Items, metadata: Value, entries: Vec<Arc<Entry>>) -> Response {
    let size_bytes: usize = entries.iter().map(|entry| entry.size() + 1).sum();
    let mut head = serde_json::to_vec(&Ordered(&items.list(metadata))).unwrap_or_default();
    head.pop();
    head.extend_from_slice(format!(",\"{}\":[", items.field()).as_bytes());
    let chunks = JsonChunks { head, items, entries: entries.into_iter(), first: true, done: false };
    streamed(call, size_bytes, chunks)
}

/// A list in pieces: at once if it is small, piece by piece if not.
fn streamed(
    call: &Call,
    size_bytes: usize,
    chunks: impl Iterator<Item = Bytes> + Send + 'static,
) -> Response {
    let gzip = call.encoding.gzip && size_bytes >= GZIP_FROM_BYTES;
    let body = if size_bytes <= CHUNK_BYTES {
        let mut whole = BytesMut::with_capacity(size_bytes + 256);
        chunks.for_each(|chunk| whole.extend_from_slice(&chunk));
        Body::from(whole.freeze())
    } else if gzip {
        let encoder = GzEncoder::new(Vec::new(), Compression::fast());
        stream(Gzipped { chunks, encoder: Some(encoder) })
    } else {
        stream(chunks)
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(respond::media_type(call.encoding.syntax)));
    if gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    respond::add_warnings(headers, &call.warnings);
    response
}

/// Pieces that are made as they are sent. Others get their turn between two of them.
fn stream(chunks: impl Iterator<Item = Bytes> + Send + 'static) -> Body {
    let stream = futures::stream::unfold(chunks, |mut chunks| async move {
        loop {
            tokio::task::yield_now().await;
            let chunk = chunks.next()?;
            // What is compressed comes out in larger pieces than it goes in.
            if !chunk.is_empty() {
                return Some((Ok::<Bytes, std::convert::Infallible>(chunk), chunks));
            }
        }
    });
    Body::from_stream(stream)
}

struct Gzipped<C> {
    chunks: C,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl<C: Iterator<Item = Bytes>> Iterator for Gzipped<C> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let encoder = self.encoder.as_mut()?;
        let chunk = match self.chunks.next() {
            Some(plain) => {
                // Writing to memory cannot fail; if it did, the cut stream would tell the client.
                encoder.write_all(&plain).ok()?;
                std::mem::take(encoder.get_mut())
            }
            None => self.encoder.take()?.finish().ok()?,
        };
        Some(chunk.into())
    }
}

struct JsonChunks {
    /// What is not sent yet of what stands before the items.
    head: Vec<u8>,
    items: Items,
    entries: std::vec::IntoIter<Arc<Entry>>,
    first: bool,
    done: bool,
}

impl Iterator for JsonChunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        chunk.put_slice(&std::mem::take(&mut self.head));
        let mut n_items = 0;
        while chunk.len() < CHUNK_BYTES && n_items < CHUNK_ITEMS {
            n_items += 1;
            let Some(entry) = self.entries.next() else {
                chunk.put_slice(b"]}\n");
                self.done = true;
                break;
            };
            if !std::mem::take(&mut self.first) {
                chunk.put_u8(b',');
            }
            chunk.put_slice(&self.items.json(&entry));
        }
        Some(chunk.freeze())
    }
}

/// A refused list; one that cannot be continued says how to go on regardless.
struct Refusal {
    status: Status,
    continue_token: Option<String>,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Refusal { status, continue_token: None }
    }
}

impl Refusal {
    fn expired(start: &str) -> Refusal {
        let message = "The provided continue parameter is too old to display a consistent list result. You can \
                       start a new list without the continue parameter, or use the continue token in this \
                       response to retrieve the remainder of the results. Continuing with the provided token \
                       results in an inconsistent list - objects that were created, modified, or deleted between \
                       the time the first chunk was returned and now may show up in the list.";
        Refusal { status: Status::expired(message), continue_token: Some(ContinueToken::encode(-1, start)) }
    }

    fn document(&self) -> Value {
        let mut document = self.status.to_json();
        if let Some(token) = &self.continue_token {
            document["metadata"]["continue"] = token.as_str().into();
        }
        document
    }
}
