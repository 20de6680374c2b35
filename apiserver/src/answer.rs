//! Answers to calls, in the shape and the syntax that each asked for.

use bytes::Bytes;
use serde_json::{Value, json};
use skiff_api::{Kind, Object};

use crate::call::Call;
use crate::negotiate::{Shape, Syntax};
use crate::respond::{Response, Rows, document_response, finish, media_type, metadata_only};

impl Call {
    /// Answers with one object in the shape that was asked for.
    pub(crate) fn object(&self, code: u16, object: Object) -> Response {
        let document = shaped(self, &self.kind, object);
        self.document(code, &document)
    }

    /// Answers with a document that has one shape only.
    pub(crate) fn document(&self, code: u16, document: &Value) -> Response {
        document_response(&self.encoding, &self.warnings, code, document)
    }
}

/// Whether `object` is an object of a kind rather than a `Status` or another document about it.
fn is_of_kind(kind: &Kind, object: &Object) -> bool {
    object["kind"] == kind.kind.as_str() && object["apiVersion"] == kind.api_version()
}

fn shaped(call: &Call, kind: &Kind, object: Object) -> Value {
    match call.encoding.shape {
        _ if !is_of_kind(kind, &object) => object,
        Shape::Object => object,
        Shape::Metadata => metadata_only(&object, call.encoding.meta_version),
        Shape::Table => {
            let revision = object["metadata"]["resourceVersion"].clone();
            let rows = Rows::of(&call.encoding, kind, &call.printed);
            rows.table(Some(&call.printed), vec![rows.row(&object)], json!({"resourceVersion": revision}))
        }
    }
}

/// An object that is encoded already, in JSON or in protobuf's envelope.
pub(crate) fn encoded(call: &Call, code: u16, mut bytes: Bytes) -> Response {
    if call.encoding.syntax == Syntax::Json {
        let mut line = Vec::with_capacity(bytes.len() + 1);
        line.extend_from_slice(&bytes);
        line.push(b'\n');
        bytes = line.into();
    }
    finish(&call.encoding, &call.warnings, code, media_type(call.encoding.syntax), bytes)
}

/// A list of objects that are no kind's in the store, in the shape that was asked for.
pub(crate) fn list(call: &Call, items: Vec<Object>) -> Response {
    let kind: &Kind = &call.kind;
    let (rows, metadata) = (Rows::of(&call.encoding, kind, kind), json!({}));
    let list = |name: &str, version: &str, items: Vec<Value>| json!({"kind": name, "apiVersion": version, "metadata": metadata, "items": items});
    let document = match call.encoding.shape {
        Shape::Object => list(&format!("{}List", kind.kind), &kind.api_version(), items),
        Shape::Metadata => {
            let version = call.encoding.meta_version;
            let items = items.iter().map(|item| metadata_only(item, version)).collect();
            list("PartialObjectMetadataList", version, items)
        }
        Shape::Table => {
            let items = items.iter().map(|item| rows.row(item)).collect();
            rows.table(Some(kind), items, metadata)
        }
    };
    document_response(&call.encoding, &call.warnings, 200, &document)
}
