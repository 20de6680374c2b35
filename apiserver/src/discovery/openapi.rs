//! `/openapi/v2` and `/openapi/v3`: made from the schema when asked for, held compressed for as long as a client takes to read
//! what it wants. What stays is their hashes.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use flate2::read::GzDecoder;
use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha512};
use skiff_api::{Kind, Kinds, Status, openapi};
use skiff_texts::Reader;

use crate::aggregation::Aggregated;
use crate::aggregation::told::merge_v2;
use crate::digest::hex_of;
use crate::request::Query;
use crate::respond::{self, Encoding, Response};

pub(crate) struct OpenApi {
    kinds: Kinds,
    v2: Arc<Kept>,
    v2_protobuf: Arc<Kept>,
    /// By path: `api/v1`, `apis/apps/v1`.
    v3: BTreeMap<String, Arc<OfVersion>>,
}

/// The document of a group and version.
struct OfVersion {
    group: String,
    version: String,
    kinds: Vec<Arc<Kind>>,
    document: Arc<Kept>,
}

impl OfVersion {
    fn make(&self) -> Document {
        Document::new(&openapi::v3(&self.kinds, &self.group, &self.version, &Reader::default()))
    }

    /// Whether it is about the very same kinds.
    fn is_about(&self, kinds: &[Arc<Kind>]) -> bool {
        self.kinds.len() == kinds.len() && self.kinds.iter().zip(kinds).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

#[derive(Clone)]
struct Document {
    gzip: Bytes,
    hash: Arc<str>,
    content_type: &'static str,
}

/// How long a document is held. A client reads several one after the other, and then none for hours.
const HELD_FOR: Duration = Duration::from_secs(60);

/// A document: its hash for good, the rest for a while.
#[derive(Default)]
struct Kept {
    hash: OnceLock<Arc<str>>,
    held: Mutex<Option<Document>>,
}

impl Kept {
    fn hash(self: &Arc<Self>, make: impl FnOnce() -> Document) -> Arc<str> {
        self.hash.get_or_init(|| self.document(make).hash).clone()
    }

    /// Makes it, once for all who ask meanwhile.
    fn document(self: &Arc<Self>, make: impl FnOnce() -> Document) -> Document {
        let mut held = self.held.lock();
        if let Some(document) = &*held {
            return document.clone();
        }
        let document = make();
        // Outside of a runtime nobody would let go of it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            *held = Some(document.clone());
            runtime.spawn(Kept::let_go(Arc::downgrade(self)));
        }
        document
    }

    async fn let_go(kept: Weak<Kept>) {
        tokio::time::sleep(HELD_FOR).await;
        if let Some(kept) = kept.upgrade() {
            *kept.held.lock() = None;
        }
    }
}

const JSON: &str = "application/json";
/// What a client asks for, in the old spelling and the new; it is answered in the new.
const PROTOBUF_V2: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
];

impl Document {
    fn new(value: &Value) -> Document {
        Document::of(&serde_json::to_vec(value).unwrap_or_default(), JSON)
    }

    fn of(bytes: &[u8], content_type: &'static str) -> Document {
        let hash = hex_of(&Sha512::digest(bytes)).to_uppercase().into();
        Document { gzip: respond::gzip(bytes).unwrap_or_default(), hash, content_type }
    }

    fn answer(&self, headers: &HeaderMap, gzip: bool) -> Result<Response, Status> {
        let tag = format!("\"{}\"", self.hash);
        let unchanged = headers.get(IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes());
        let mut response = Response::new(if unchanged {
            Body::empty()
        } else if gzip {
            Body::from(self.gzip.clone())
        } else {
            let mut plain = Vec::new();
            GzDecoder::new(&*self.gzip).read_to_end(&mut plain).map_err(Status::internal)?;
            Body::from(plain)
        });
        if unchanged {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        if gzip && !unchanged {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        headers.insert(ETAG, HeaderValue::from_str(&tag).map_err(Status::internal)?);
        Ok(response)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Protobuf,
}

/// The first form that is accepted: JSON, or of version 2 the protobuf that gnostic defines for it.
fn accepted(headers: &HeaderMap, offers_protobuf: bool) -> Option<Form> {
    let lines = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
    let mut clauses = lines.flat_map(|line| line.split(',')).peekable();
    if clauses.peek().is_none() {
        return Some(Form::Json);
    }
    clauses.find_map(|clause| match clause.split(';').next().unwrap_or_default().trim() {
        "" | "*" | "*/*" | "application/*" | JSON => Some(Form::Json),
        asked if offers_protobuf && PROTOBUF_V2.contains(&asked) => Some(Form::Protobuf),
        _ => None,
    })
}

/// The documents of version 2 of this server and of those behind it.
#[derive(Default)]
pub(crate) struct MergedV2 {
    json: Arc<Kept>,
    protobuf: Arc<Kept>,
}

impl OpenApi {
    /// What makes the document of this server and of those behind it; `None` where none of those has one.
    fn merged_v2<'o>(&'o self, aggregated: &'o Aggregated) -> Option<impl Fn() -> Value + 'o> {
        let parts: Vec<&Value> = aggregated.remotes().filter_map(|r| r.told.openapi.v2.as_deref()).collect();
        if parts.is_empty() {
            return None;
        }
        Some(move || {
            let mut whole = openapi::v2(&self.kinds, &Reader::default());
            parts.iter().for_each(|part| merge_v2(&mut whole, part));
            whole
        })
    }

    /// What was rendered `before` is kept for groups and versions whose kinds are the same.
    pub(super) fn new(kinds: &Kinds, before: Option<&OpenApi>) -> OpenApi {
        let mut versions: BTreeMap<String, Vec<Arc<Kind>>> = BTreeMap::new();
        for kind in kinds.iter() {
            let path = match kind.group.as_str() {
                "" => format!("api/{}", kind.version),
                group => format!("apis/{group}/{}", kind.version),
            };
            versions.entry(path).or_default().push(kind.clone());
        }
        let v3 = versions
            .into_iter()
            .filter_map(|(path, kinds)| {
                let known = before.and_then(|before| before.v3.get(&path));
                if let Some(known) = known.filter(|known| known.is_about(&kinds)) {
                    return Some((path, known.clone()));
                }
                let (group, version) =
                    kinds.first().map(|kind| (kind.group.clone(), kind.version.clone()))?;
                let document = Arc::default();
                Some((path, Arc::new(OfVersion { group, version, kinds, document })))
            })
            .collect();
        OpenApi { kinds: kinds.clone(), v2: Arc::default(), v2_protobuf: Arc::default(), v3 }
    }

    pub(crate) fn answer(
        &self,
        aggregated: &Aggregated,
        merged: &MergedV2,
        path: &str,
        query: &Query,
        headers: &HeaderMap,
        encoding: &Encoding,
    ) -> Option<Result<Response, Status>> {
        let rest = path.strip_prefix("/openapi/")?.trim_end_matches('/');
        let Some(form) = accepted(headers, rest == "v2") else {
            let offered: &[&str] = if rest == "v2" { &[JSON, PROTOBUF_V2[1]] } else { &[JSON] };
            return Some(Err(Status::not_acceptable(offered)));
        };
        match rest.split_once('/') {
            None if rest == "v2" && form == Form::Protobuf => {
                let encoded = |document: &Value| {
                    let encoded = openapi::gnostic::encode(document);
                    Document::of(&encoded, PROTOBUF_V2[1])
                };
                let document = match self.merged_v2(aggregated) {
                    Some(whole) => merged.protobuf.document(|| encoded(&whole())),
                    None => {
                        self.v2_protobuf.document(|| encoded(&openapi::v2(&self.kinds, &Reader::default())))
                    }
                };
                Some(document.answer(headers, encoding.gzip))
            }
            None if rest == "v2" => {
                let document = match self.merged_v2(aggregated) {
                    Some(whole) => merged.json.document(|| Document::new(&whole())),
                    None => self.v2.document(|| Document::new(&openapi::v2(&self.kinds, &Reader::default()))),
                };
                Some(document.answer(headers, encoding.gzip))
            }
            None if rest == "v3" => {
                let is_ours = |path: &str| aggregated.serving(path).is_none();
                let mut paths: serde_json::Map<String, Value> = self
                    .v3
                    .iter()
                    .filter(|(path, _)| is_ours(path))
                    .map(|(path, of_version)| {
                        let url = format!(
                            "/openapi/v3/{path}?hash={}",
                            of_version.document.hash(|| of_version.make())
                        );
                        (path.clone(), json!({"serverRelativeURL": url}))
                    })
                    .collect();
                for remote in aggregated.remotes() {
                    if let Some(url) = &remote.told.openapi.v3 {
                        let path = format!("apis/{}/{}", remote.group, remote.version);
                        paths.insert(path, json!({"serverRelativeURL": url}));
                    }
                }
                Some(Ok(respond::document_response(encoding, &[], 200, &json!({"paths": paths}))))
            }
            Some(("v3", path)) => {
                let of_version = self.v3.get(path)?;
                let document = of_version.document.document(|| of_version.make());
                // Another hash is of another version of the document; the newest is sent all the same.
                let known = query.get("hash").is_none_or(|hash| hash == &*document.hash);
                tracing::trace!(path, known, "openapi document");
                Some(document.answer(headers, encoding.gzip))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_document_is_made_once_for_all_who_ask_and_is_let_go_of_but_for_its_hash() {
        let kept = Arc::new(Kept::default());
        let n_made = AtomicUsize::new(0);
        let make = || {
            n_made.fetch_add(1, Ordering::Relaxed);
            Document::of(b"{}", JSON)
        };
        let hash = kept.hash(make);
        assert_eq!(kept.document(make).hash, hash);
        assert_eq!(n_made.load(Ordering::Relaxed), 1);
        tokio::time::sleep(HELD_FOR * 2).await;
        assert!(kept.held.lock().is_none());
        assert_eq!(kept.hash(make), hash);
        assert_eq!(n_made.load(Ordering::Relaxed), 1, "the hash was kept");
        assert_eq!(kept.document(make).hash, hash);
        assert_eq!(n_made.load(Ordering::Relaxed), 2);
    }
}
