//! Protobuf, as upstream speaks it: every object in an envelope that names its kind.
//!
//! ```text
//! "k8s\0"  Unknown { 1: TypeMeta { 1: apiVersion, 2: kind }, 2: the object's message, 3: "", 4: "" }
//! ```
//!
//! There is no code per type: encoding and decoding walk the [`Schema`], whose fields know their numbers and
//! what is on the wire of a field that is not set. What [`encode`] writes is, byte for byte, what upstream's
//! generated code writes; [`decode`] takes whatever that code takes, but holds it to bounds on depth and number
//! of values.
//!
//! Source: apimachinery's `runtime/serializer/protobuf` and the `generated.pb.go` of each package.

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::Value;

use crate::schema::{Schema, TypeId};
use crate::{Kind, Object};

mod decode;
mod encode;
mod wire;

pub use wire::DecodeError;
pub(crate) use wire::{put_delimited, put_varint};

/// What every envelope starts with.
pub const MAGIC: [u8; 4] = *b"k8s\0";
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
/// Types that every group has, or that are asked for beside any kind.
const META_KINDS: &[&str] = &[
    "APIGroup",
    "APIGroupList",
    "APIResourceList",
    "APIVersions",
    "DeleteOptions",
    "PartialObjectMetadata",
    "PartialObjectMetadataList",
    "Status",
];

/// The built-in type of an object that says so of itself.
pub fn type_of(api_version: &str, kind: &str) -> Option<TypeId> {
    let schema = Schema::builtin();
    if META_KINDS.contains(&kind) {
        return schema.find(&format!("{META}.{kind}"));
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    schema.find(&format!("{}.{version}.{kind}", crate::kinds::package(group)?))
}

/// The message of an object, without its envelope.
pub fn message(id: TypeId, object: &Object) -> Bytes {
    // Kept with its object: what the vector has to spare would be kept too.
    encode::message(Schema::builtin(), id, object).into_boxed_slice().into()
}

/// Whether upstream's types hold the same for both: fields that are not set and those of zero value, lists and maps that are
/// not there and empty ones are one to them.
pub fn same(id: TypeId, a: &Object, b: &Object) -> bool {
    a == b || message(id, a) == message(id, b)
}

/// An object, or a list of objects, in its envelope; `None` if its type is unknown to protobuf.
pub fn document(object: &Object) -> Option<Bytes> {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if let Some(id) = type_of(api_version, kind) {
        return Some(envelope(api_version, kind, &message(id, object)));
    }
    let item = type_of(api_version, kind.strip_suffix("List")?)?;
    let items = object["items"].as_array().into_iter().flatten().map(|object| message(item, object));
    let list = List::new(api_version, kind, &object["metadata"], items.collect())?;
    Some(
        list.chunks(usize::MAX)
            .fold(BytesMut::new(), |mut whole, chunk| {
                whole.put_slice(&chunk);
                whole
            })
            .freeze(),
    )
}

/// A message in its envelope.
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + kind.len() + api_version.len() + 32);
    open_envelope(&mut out, api_version, kind, message.len());
    out.put_slice(message);
    out.put_slice(ENVELOPE_END);
    out.freeze()
}

/// `contentEncoding` and `contentType`, which are always there and always empty.
const ENVELOPE_END: &[u8] = &[0x1a, 0, 0x22, 0];

fn open_envelope(out: &mut BytesMut, api_version: &str, kind: &str, message_bytes: usize) {
    let mut type_meta = Vec::new();
    for (number, text) in [(1, api_version), (2, kind)] {
        wire::put_delimited(&mut type_meta, number, text.as_bytes());
    }
    let mut head = MAGIC.to_vec();
    wire::put_delimited(&mut head, 1, &type_meta);
    wire::put_length(&mut head, 2, message_bytes);
    out.put_slice(&head);
}

/// Bytes before each event of a stream: its length, big-endian.
pub const FRAME_HEAD: usize = 4;

/// An event of a watch as it is sent: four bytes of length, then the event around the enveloped object.
pub fn watch_frame(kind: &str, object: &[u8]) -> Bytes {
    let mut raw = Vec::with_capacity(object.len() + 8);
    wire::put_delimited(&mut raw, 1, object);
    let mut event = vec![0; FRAME_HEAD];
    wire::put_delimited(&mut event, 1, kind.as_bytes());
    wire::put_delimited(&mut event, 2, &raw);
    let length = u32::try_from(event.len() - FRAME_HEAD).unwrap_or(u32::MAX);
    event[..FRAME_HEAD].copy_from_slice(&length.to_be_bytes());
    event.into()
}

/// A list out of encoded messages.
pub struct List {
    head: BytesMut,
    items: Vec<Bytes>,
}

impl List {
    /// `None` if there is no such thing as the metadata of a list, which the built-in schema has.
    pub fn new(api_version: &str, kind: &str, metadata: &Value, items: Vec<Bytes>) -> Option<List> {
        let list_meta = Schema::builtin().find(&format!("{META}.ListMeta"))?;
        let mut meta = Vec::new();
        wire::put_delimited(&mut meta, 1, &message(list_meta, metadata));
        let items_bytes: usize = items.iter().map(|item| wire::delimited_bytes(item.len())).sum();
        let mut head = BytesMut::new();
        open_envelope(&mut head, api_version, kind, meta.len() + items_bytes);
        head.put_slice(&meta);
        Some(List { head, items })
    }

    pub fn size_bytes(&self) -> usize {
        let items: usize = self.items.iter().map(|item| wire::delimited_bytes(item.len())).sum();
        self.head.len() + items + ENVELOPE_END.len()
    }

    /// The list in pieces of about this size.
    pub fn chunks(self, chunk_bytes: usize) -> impl Iterator<Item = Bytes> + Send {
        let mut head = Some(self.head);
        let mut items = self.items.into_iter();
        std::iter::from_fn(move || {
            let mut chunk = head.take()?;
            while chunk.len() < chunk_bytes {
                let Some(item) = items.next() else {
                    chunk.put_slice(ENVELOPE_END);
                    return Some(chunk.freeze());
                };
                let mut prefix = Vec::new();
                wire::put_length(&mut prefix, 2, item.len());
                chunk.put_slice(&prefix);
                chunk.put_slice(&item);
            }
            head = Some(BytesMut::new());
            Some(chunk.freeze())
        })
    }
}

/// An object of `kind` out of its envelope, which may leave out what kind it is.
///
/// # Errors
/// Whatever is no envelope, or no message of the kind.
pub(crate) fn read(kind: &Kind, bytes: &[u8]) -> Result<Object, DecodeError> {
    let unknown = wire::Unknown::read(bytes)?;
    let (api_version, name) = unknown.or(&kind.api_version(), &kind.kind);
    // An object of another kind is refused by whoever asked, by its name.
    let is_of_kind = api_version == kind.api_version() && name == kind.kind;
    let schema = &kind.schema.schema;
    let mut object = match unknown.raw {
        Some(raw) if is_of_kind => decode::message(schema, kind.schema.id, raw)?,
        _ => Value::Object(serde_json::Map::new()),
    };
    object["apiVersion"] = api_version.into();
    object["kind"] = name.into();
    Ok(object)
}

/// An object of any built-in type out of its envelope; `api_version` and `kind` are what it is if it does not
/// say.
///
/// # Errors
/// As [`read`], and types that are unknown.
pub(crate) fn read_document(bytes: &[u8], api_version: &str, kind: &str) -> Result<Object, DecodeError> {
    let unknown = wire::Unknown::read(bytes)?;
    let (api_version, kind) = unknown.or(api_version, kind);
    let Some(id) = type_of(&api_version, &kind) else {
        return Err(DecodeError::UnknownKind { kind, api_version });
    };
    let mut object = decode::message(Schema::builtin(), id, unknown.raw.unwrap_or_default())?;
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.into();
    Ok(object)
}
