//! What a watcher asked for, and what it gets.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use skiff_api::{FieldSelector, Kind, LabelSelector, protobuf};
use tokio::sync::mpsc;

use super::{Detail, Entry};
use crate::store::Revision;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

impl ChangeKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            ChangeKind::Added => "ADDED",
            ChangeKind::Modified => "MODIFIED",
            ChangeKind::Deleted => "DELETED",
        }
    }
}

/// One change as one watcher sees it.
#[derive(Clone)]
pub(crate) struct Change {
    pub(crate) kind: ChangeKind,
    pub(crate) entry: Arc<Entry>,
    frames: Arc<Frames>,
}

/// A change as it is sent, by how it is encoded.
#[derive(Default)]
struct Frames {
    json: OnceLock<Bytes>,
    /// Without managers.
    lean: OnceLock<Bytes>,
    /// What every node may see.
    for_nodes: OnceLock<Bytes>,
    protobuf: OnceLock<Bytes>,
}

impl Change {
    pub(crate) fn new(kind: ChangeKind, entry: Arc<Entry>) -> Change {
        Change { kind, entry, frames: Arc::default() }
    }

    /// The event as it is sent in plain JSON, encoded once for all watchers that see the same change.
    pub(crate) fn frame(&self, detail: Detail) -> Bytes {
        let of_detail = match detail {
            Detail::Whole => &self.frames.json,
            Detail::WithoutManagers => &self.frames.lean,
            Detail::ForNodes => &self.frames.for_nodes,
        };
        of_detail.get_or_init(|| frame(self.kind.as_str(), &self.entry.sent(detail))).clone()
    }

    /// The same in protobuf. `kind` is the kind that is stored.
    pub(crate) fn protobuf_frame(&self, kind: &Kind) -> Bytes {
        let encode = || {
            let message = self.entry.protobuf(kind);
            let object = protobuf::envelope(&kind.api_version(), &kind.kind, &message);
            protobuf::watch_frame(self.kind.as_str(), &object)
        };
        self.frames.protobuf.get_or_init(encode).clone()
    }
}

/// `{"type":…,"object":…}` and a line feed.
pub(crate) fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + kind.len() + 24);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}

/// Which objects a list or watch is about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// `None` is all namespaces.
    pub(crate) namespace: Option<String>,
    pub(crate) labels: LabelSelector,
    pub(crate) fields: FieldSelector,
}

impl Filter {
    /// Whether it asks for fields besides an object's name and namespace.
    pub(crate) fn has_own_fields(&self) -> bool {
        let is_own = |field: &str| !matches!(field, "metadata.name" | "metadata.namespace");
        self.fields.terms.iter().any(|(field, _, _)| is_own(field))
    }

    /// The same, whatever the fields.
    pub(crate) fn without_fields(&self) -> Filter {
        Filter { fields: FieldSelector::default(), ..self.clone() }
    }

    pub(crate) fn matches(&self, entry: &Entry) -> bool {
        self.namespace.as_deref().is_none_or(|ns| entry.namespace() == ns)
            && entry.matches(&self.labels, &self.fields)
    }

    pub(crate) fn has_selectors(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }

    /// The one object that this can match, if its key is given away.
    pub(crate) fn single_key(&self, namespaced: bool) -> Option<String> {
        let name = self.fields.required("metadata.name")?;
        if !namespaced {
            return Some(name.to_owned());
        }
        match (&self.namespace, self.fields.required("metadata.namespace")) {
            (Some(namespace), _) => Some(format!("{namespace}/{name}")),
            (None, Some(namespace)) => Some(format!("{namespace}/{name}")),
            (None, None) => None,
        }
    }

    pub(crate) fn node_name(&self) -> Option<&str> {
        self.fields.required("spec.nodeName").filter(|name| !name.is_empty())
    }
}

/// A change as it happened to the object, before any selector.
pub(crate) struct Happened {
    pub(crate) revision: Revision,
    pub(crate) at: Instant,
    /// The change for who sees both the old and the new state.
    pub(crate) change: Change,
    pub(crate) previous: Option<Arc<Entry>>,
    /// For who does not see the new state: the old object, as of the new revision.
    pub(crate) left: OnceLock<Change>,
    /// For who did not see the old state.
    pub(crate) entered: OnceLock<Change>,
}

impl Happened {
    /// About what it holds on to.
    pub(super) fn bytes(&self) -> usize {
        let previous = self.previous.as_ref().map_or(0, |previous| previous.weight());
        // The event, encoded once for all who watch, is as long as the document, which itself is the cache's for as long as it is
        // the newest, and after that the former state of the next event.
        self.change.entry.size() + previous + size_of::<Happened>() + size_of::<Entry>()
    }
}

/// A running watch of a cache.
pub(crate) struct Watcher {
    pub(crate) changes: mpsc::Receiver<Change>,
    /// Changes from before the watch that it starts with.
    pub(crate) backlog: Vec<Change>,
    /// The resource's last change that the backlog includes.
    pub(crate) revision: Revision,
}
