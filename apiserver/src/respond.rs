//! How answers are encoded: JSON or YAML, whole objects, tables or metadata only, plain or gzipped.

use std::io::Write;

use axum::body::Body;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};
use skiff_api::table::{self, IncludeObject};
use skiff_api::{Kind, Object, Status};

use crate::api::Call;
use crate::request::Query;

pub(crate) type Response = http::Response<Body>;

/// Answers from this size on are gzipped for who accepts it, as upstream.
pub(crate) const GZIP_FROM_BYTES: usize = 128 << 10;
/// An `Accept` header has a handful of clauses; more is not looked at.
const MAX_CLAUSES: usize = 32;
const ACCEPTED: &[&str] = &["application/json", "application/yaml"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Object,
    Table,
    Metadata,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syntax {
    Json,
    PrettyJson,
    Yaml,
}

/// What the client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encoding {
    pub(crate) shape: Shape,
    pub(crate) syntax: Syntax,
    pub(crate) include: IncludeObject,
    pub(crate) gzip: bool,
}

impl Encoding {
    /// Picks the best clause of `Accept` that can be served; protobuf is passed over.
    ///
    /// # Errors
    /// 406 if none can.
    pub(crate) fn negotiate(headers: &HeaderMap, query: &Query) -> Result<Encoding, Status> {
        let mut chosen = None;
        let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
        let clauses = accept.iter().flat_map(|line| line.split(',')).take(MAX_CLAUSES);
        for clause in clauses.map(str::trim).filter(|c| !c.is_empty()) {
            let Some((quality, shape, yaml)) = served(clause) else { continue };
            if chosen.is_none_or(|(best, _, _)| quality > best) {
                chosen = Some((quality, shape, yaml));
            }
        }
        let (shape, yaml) = match chosen {
            Some((_, shape, yaml)) => (shape, yaml),
            None if accept.iter().all(|line| line.trim().is_empty()) => (Shape::Object, false),
            None => return Err(Status::not_acceptable(ACCEPTED)),
        };
        let pretty = query.get("pretty").is_some_and(|v| matches!(v, "" | "1" | "true"));
        let gzip = headers.get_all(ACCEPT_ENCODING).iter().any(|v| {
            v.to_str().is_ok_and(|v| v.split(',').any(|e| e.trim().split(';').next() == Some("gzip")))
        });
        let include = match query.get("includeObject") {
            Some("None") => IncludeObject::None,
            Some("Object") => IncludeObject::Object,
            None | Some("" | "Metadata") => IncludeObject::Metadata,
            Some(other) => {
                return Err(Status::bad_request(format!("unrecognized includeObject value: {other:?}")));
            }
        };
        let syntax = match (yaml, pretty) {
            (true, _) => Syntax::Yaml,
            (false, true) => Syntax::PrettyJson,
            (false, false) => Syntax::Json,
        };
        Ok(Encoding { shape, syntax, include, gzip })
    }

    /// What errors are answered in when the request itself could not be understood.
    pub(crate) fn plain() -> Encoding {
        Encoding { shape: Shape::Object, syntax: Syntax::Json, include: IncludeObject::Metadata, gzip: false }
    }
}

/// Quality, shape and whether it is YAML of one clause, if this server can serve it.
fn served(clause: &str) -> Option<(u16, Shape, bool)> {
    let mut parts = clause.split(';').map(str::trim);
    let yaml = match parts.next()? {
        "application/json" | "application/*" | "*/*" => false,
        "application/yaml" => true,
        _ => return None,
    };
    let (mut quality, mut shape, mut group, mut version) = (1000, Shape::Object, "meta.k8s.io", "v1");
    for parameter in parts {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match key {
            "q" => quality = (value.parse::<f32>().ok()?.clamp(0.0, 1.0) * 1000.0) as u16,
            "as" => {
                shape = match value {
                    "Table" => Shape::Table,
                    "PartialObjectMetadata" | "PartialObjectMetadataList" => Shape::Metadata,
                    _ => return None,
                }
            }
            "g" => group = value,
            "v" => version = value,
            _ => {}
        }
    }
    (quality > 0 && (shape == Shape::Object || (group == "meta.k8s.io" && version == "v1")))
        .then_some((quality, shape, yaml))
}

/// Answers with one object in the shape that was asked for.
pub(crate) fn object(call: &Call, code: u16, object: Object) -> Result<Response, Status> {
    let document = shaped(call, &call.kind, object);
    Ok(document_response(&call.encoding, &call.warnings, code, &document))
}

/// Whether `object` is an object of a kind rather than a `Status` or another document about it.
fn is_of_kind(kind: &Kind, object: &Object) -> bool {
    object["kind"] == kind.kind.as_str() && object["apiVersion"] == kind.api_version()
}

pub(crate) fn shaped(call: &Call, kind: &Kind, object: Object) -> Value {
    match call.encoding.shape {
        _ if !is_of_kind(kind, &object) => object,
        Shape::Object => object,
        Shape::Metadata => metadata_only(&object),
        Shape::Table => {
            let revision = object["metadata"]["resourceVersion"].clone();
            let row = table::row(kind, &object, call.encoding.include, now_s());
            table_of(Some(kind), vec![row], json!({"resourceVersion": revision}))
        }
    }
}

/// A table; without `kind` it has no column definitions, as in all events of a watch but the first.
pub(crate) fn table_of(kind: Option<&Kind>, rows: Vec<Value>, metadata: Value) -> Value {
    let columns = kind.map_or(Value::Array(Vec::new()), table::column_definitions);
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns, "rows": rows,
    })
}

pub(crate) fn metadata_only(object: &Object) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

pub(crate) fn now_s() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Bytes that are JSON already, as they stand.
pub(crate) fn json_bytes(call: &Call, code: u16, json: Bytes) -> Response {
    finish(&call.encoding, &call.warnings, code, "application/json", json)
}

pub(crate) fn document_response(
    encoding: &Encoding,
    warnings: &[String],
    code: u16,
    document: &Value,
) -> Response {
    let (content_type, bytes) = match encoding.syntax {
        Syntax::Json => ("application/json", serde_json::to_vec(document).unwrap_or_default()),
        Syntax::PrettyJson => ("application/json", pretty(document)),
        Syntax::Yaml => match serde_saphyr::to_string(document) {
            Ok(text) => ("application/yaml", text.into_bytes()),
            Err(_) => ("application/json", pretty(document)),
        },
    };
    finish(encoding, warnings, code, content_type, bytes.into())
}

fn pretty(document: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(document).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

fn finish(
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

/// RFC 7234 warnings, as upstream sends them: code 299, no agent, the text quoted.
pub(crate) fn add_warnings(headers: &mut HeaderMap, warnings: &[String]) {
    const MAX_BYTES: usize = 4 << 10;
    let mut bytes = 0;
    for warning in warnings {
        let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"");
        bytes += escaped.len();
        if bytes > MAX_BYTES {
            return;
        }
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{escaped}\"")) {
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

    fn check(accept: &str, expected: Option<(Shape, Syntax)>) {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_str(accept).expect("a header"));
        let got = Encoding::negotiate(&headers, &Query::default()).ok().map(|e| (e.shape, e.syntax));
        assert_eq!(got, expected, "{accept}");
    }

    #[test]
    fn the_best_clause_that_can_be_served_is_chosen() {
        check("application/json", Some((Shape::Object, Syntax::Json)));
        check("*/*", Some((Shape::Object, Syntax::Json)));
        check("application/yaml", Some((Shape::Object, Syntax::Yaml)));
        check("application/vnd.kubernetes.protobuf", None);
        check("application/vnd.kubernetes.protobuf,application/json", Some((Shape::Object, Syntax::Json)));
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some((Shape::Table, Syntax::Json)),
        );
        check("application/json;as=Table;v=v9;g=meta.k8s.io", None);
        check(
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
            Some((Shape::Metadata, Syntax::Json)),
        );
        check("application/json;q=0.1, application/yaml;q=0.9", Some((Shape::Object, Syntax::Yaml)));
    }

    #[test]
    fn a_warning_is_quoted() {
        let mut headers = HeaderMap::new();
        add_warnings(&mut headers, &[r#"unknown field "spec.foo""#.to_owned()]);
        assert_eq!(headers["warning"], r#"299 - "unknown field \"spec.foo\"""#);
    }
}
