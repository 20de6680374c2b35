//! How answers are encoded: JSON, YAML or protobuf, whole objects, tables or metadata only, plain or gzipped.

use std::io::Write;

use axum::body::Body;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};
use skiff_api::table::{self, IncludeObject};
use skiff_api::{Kind, Object, Status, encode, protobuf};
use skiff_webhook::admission::warning_headers;

use crate::convert::{convert, is_same_version};

pub(crate) use crate::negotiate::{Encoding, Shape, Syntax};

pub(crate) type Response = http::Response<Body>;

/// Answers from this size on are gzipped for who accepts it, as upstream.
pub(crate) const GZIP_FROM_BYTES: usize = 128 << 10;

/// How the rows of a table are printed.
pub(crate) struct Rows<'k> {
    kind: &'k Kind,
    /// The version whose columns are printed.
    printed: &'k Kind,
    include: IncludeObject,
    meta_version: &'static str,
    now_s: i64,
}

impl<'k> Rows<'k> {
    pub(crate) fn of(encoding: &Encoding, kind: &'k Kind, printed: &'k Kind) -> Rows<'k> {
        let Encoding { include, meta_version, .. } = *encoding;
        Rows { kind, printed, include, meta_version, now_s: now_s() }
    }

    /// A table; without `columns` it has no column definitions, as in all events of a watch but the first.
    pub(crate) fn table(&self, columns: Option<&Kind>, rows: Vec<Value>, metadata: Value) -> Value {
        let columns = columns.map_or(Value::Array(Vec::new()), table::column_definitions);
        json!({
            "kind": "Table", "apiVersion": self.meta_version, "metadata": metadata,
            "columnDefinitions": columns, "rows": rows,
        })
    }

    /// The row of an object of `kind`.
    pub(crate) fn row(&self, object: &Object) -> Value {
        let mut row = if is_same_version(self.kind, self.printed) {
            table::row(self.kind, object, object, self.include, self.now_s)
        } else {
            let printed = convert(self.kind, self.printed, object.clone());
            table::row(self.printed, &printed, object, self.include, self.now_s)
        };
        if self.include == IncludeObject::Metadata {
            row["object"]["apiVersion"] = self.meta_version.into();
        }
        row
    }
}

pub(crate) fn metadata_only(object: &Object, version: &str) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": object["metadata"]})
}

pub(crate) fn now_s() -> i64 {
    jiff::Timestamp::now().as_second()
}

pub(crate) fn media_type(syntax: Syntax) -> &'static str {
    match syntax {
        Syntax::Json | Syntax::PrettyJson => "application/json",
        Syntax::Yaml => "application/yaml",
        Syntax::Protobuf => protobuf::CONTENT_TYPE,
    }
}

pub(crate) fn document_response(
    encoding: &Encoding,
    warnings: &[String],
    code: u16,
    document: &Value,
) -> Response {
    let as_json = || encode::json(document);
    let (syntax, bytes) = match encoding.syntax {
        Syntax::Json => (Syntax::Json, as_json()),
        Syntax::PrettyJson => (Syntax::PrettyJson, encode::pretty_json(document)),
        Syntax::Yaml => match serde_saphyr::to_string(document) {
            Ok(text) => (Syntax::Yaml, text.into_bytes()),
            Err(_) => (Syntax::Json, as_json()),
        },
        // What protobuf has no type for is JSON to everybody, such as the list of all paths.
        Syntax::Protobuf => match protobuf::document(document) {
            Some(bytes) => (Syntax::Protobuf, bytes.into()),
            None => (Syntax::Json, as_json()),
        },
    };
    finish(encoding, warnings, code, media_type(syntax), bytes.into())
}

/// A document of ours whose fields have an order; what is no JSON has its own.
pub(crate) fn document_in_order(
    encoding: &Encoding,
    document: &Value,
    top: &[&str],
    order: &[&str],
) -> Response {
    let bytes = match encoding.syntax {
        Syntax::Json => encode::json_in_order(document, top, order),
        Syntax::PrettyJson | Syntax::Yaml | Syntax::Protobuf => {
            return document_response(encoding, &[], 200, document);
        }
    };
    finish(encoding, &[], 200, media_type(encoding.syntax), bytes.into())
}

pub(crate) fn finish(
    encoding: &Encoding,
    warnings: &[String],
    code: u16,
    content_type: &'static str,
    bytes: Bytes,
) -> Response {
    let compressed = (encoding.gzip && bytes.len() >= GZIP_FROM_BYTES).then(|| gzip(&bytes)).flatten();
    let is_compressed = compressed.is_some();
    let mut response = Response::new(Body::from(compressed.unwrap_or(bytes)));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if is_compressed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    add_warnings(headers, warnings);
    response
}

pub(crate) fn gzip(bytes: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

/// RFC 7234 warnings, as upstream sends them: code 299, no agent, the text quoted, all of them bounded.
pub(crate) fn add_warnings(headers: &mut HeaderMap, warnings: &[String]) {
    for warning in warning_headers(warnings.iter().map(String::as_str)) {
        if let Ok(value) = HeaderValue::from_str(&warning) {
            headers.append(http::header::WARNING, value);
        }
    }
}

/// An error as the client gets it.
pub(crate) fn failure(encoding: &Encoding, status: &Status) -> Response {
    failure_document(encoding, status, &status.to_json())
}

pub(crate) fn failure_document(encoding: &Encoding, status: &Status, document: &Value) -> Response {
    let mut response = document_response(encoding, &[], status.code, document);
    let retry_s = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if retry_s > 0 {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry_s));
    }
    response
}

pub(crate) fn text(code: u16, text: impl Into<String>) -> Response {
    let mut response = Response::new(Body::from(text.into()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// `Success`, with what it is about in `details`.
pub(crate) fn success(details: Value) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_quoted() {
        let mut headers = HeaderMap::new();
        add_warnings(&mut headers, &[r#"unknown field "spec.foo""#.to_owned()]);
        assert_eq!(headers["warning"], r#"299 - "unknown field \"spec.foo\"""#);
    }
}
