//! What a client accepts, and what a request's body is.
//!
//! Source: apiserver's `endpoints/handlers/negotiation`.

use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue};
use skiff_api::decode::Format;
use skiff_api::protobuf;
use skiff_api::table::IncludeObject;
use skiff_api::{Kind, Status};

use crate::request::Query;

/// An `Accept` header has a handful of clauses; more is not looked at.
const MAX_CLAUSES: usize = 32;
/// In order of preference.
const MEDIA_TYPES: [(&str, Media); 3] = [
    ("application/json", Media::Json),
    ("application/yaml", Media::Yaml),
    (protobuf::CONTENT_TYPE, Media::Protobuf),
];
const META_V1: &str = "meta.k8s.io/v1";
const META_V1BETA1: &str = "meta.k8s.io/v1beta1";
const STREAM_TYPES: [&str; 2] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Media {
    Json,
    Yaml,
    Protobuf,
}

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
    Protobuf,
}

/// What the client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encoding {
    pub(crate) shape: Shape,
    pub(crate) syntax: Syntax,
    pub(crate) include: IncludeObject,
    /// The version of tables and of metadata.
    pub(crate) meta_version: &'static str,
    pub(crate) gzip: bool,
}

/// Which shapes an answer can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Objects, tables, metadata.
    Shapes,
    /// Objects and metadata: of what is answered and forgotten nothing is printed.
    NoTables,
    /// The same as of [`Offer::Shapes`], but that custom resources have no protobuf: only their metadata has.
    Custom,
    /// Only what it is: errors, discovery.
    AsItIs,
}

impl Encoding {
    /// Picks the best clause of `Accept` that can be served.
    ///
    /// # Errors
    /// 406 if none can.
    pub(crate) fn negotiate(headers: &HeaderMap, query: &Query, offer: Offer) -> Result<Encoding, Status> {
        let Some(Chosen { shape, media, pretty, meta_version }) = choose(headers, offer) else {
            return Err(Status::not_acceptable(&MEDIA_TYPES.map(|(name, _)| name)));
        };
        let include = match query.get("includeObject") {
            Some("None") => IncludeObject::None,
            Some("Object") => IncludeObject::Object,
            None | Some("" | "Metadata") => IncludeObject::Metadata,
            Some(other) => {
                return Err(Status::bad_request(format!("unrecognized includeObject value: {other:?}")));
            }
        };
        let syntax = syntax(media, pretty || wants_pretty(headers, query));
        Ok(Encoding { shape, syntax, include, meta_version, gzip: accepts_gzip(headers) })
    }

    /// What errors and other documents of no kind are answered in: JSON where the client accepts nothing else
    /// that they can be.
    pub(crate) fn of_documents(headers: &HeaderMap, query: &Query) -> Encoding {
        let Chosen { media, pretty, .. } = choose(headers, Offer::AsItIs).unwrap_or(Chosen::ANYTHING);
        let syntax = syntax(media, pretty || wants_pretty(headers, query));
        Encoding { syntax, gzip: accepts_gzip(headers), ..Encoding::plain() }
    }

    /// What errors are answered in when the request itself could not be understood.
    pub(crate) fn plain() -> Encoding {
        Encoding {
            shape: Shape::Object,
            syntax: Syntax::Json,
            include: IncludeObject::Metadata,
            meta_version: META_V1,
            gzip: false,
        }
    }

    /// The same for a stream, where a line is an event.
    pub(crate) fn of_stream(self) -> Encoding {
        let syntax = if self.syntax == Syntax::PrettyJson { Syntax::Json } else { self.syntax };
        Encoding { syntax, ..self }
    }

    /// Whether objects can be sent as the cache holds them in JSON.
    pub(crate) fn is_plain(&self) -> bool {
        self.shape == Shape::Object && self.syntax == Syntax::Json
    }

    /// Whether objects can be sent as the cache holds them in protobuf.
    pub(crate) fn is_protobuf(&self) -> bool {
        self.shape == Shape::Object && self.syntax == Syntax::Protobuf
    }

    /// # Errors
    /// 406 for what events cannot be streamed in.
    pub(crate) fn check_streams(&self) -> Result<(), Status> {
        if self.syntax == Syntax::Yaml { Err(Status::not_acceptable(&STREAM_TYPES)) } else { Ok(()) }
    }
}

fn syntax(media: Media, pretty: bool) -> Syntax {
    match (media, pretty) {
        (Media::Json, false) => Syntax::Json,
        (Media::Json, true) => Syntax::PrettyJson,
        (Media::Yaml, _) => Syntax::Yaml,
        (Media::Protobuf, _) => Syntax::Protobuf,
    }
}

/// Who says so, and else whoever reads it himself: a browser, or a program for the command line.
fn wants_pretty(headers: &HeaderMap, query: &Query) -> bool {
    if let Some(said) = query.non_empty("pretty") {
        return matches!(said, "1" | "t" | "T" | "true" | "TRUE" | "True");
    }
    let agent = headers.get(USER_AGENT).map(HeaderValue::as_bytes).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|reader| agent.starts_with(reader.as_bytes()))
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .any(|v| v.to_str().is_ok_and(|v| v.split(',').any(|e| e.trim().split(';').next() == Some("gzip"))))
}

/// What a clause asks for.
#[derive(Clone, Copy)]
struct Chosen {
    shape: Shape,
    media: Media,
    pretty: bool,
    meta_version: &'static str,
}

impl Chosen {
    const ANYTHING: Chosen =
        Chosen { shape: Shape::Object, media: Media::Json, pretty: false, meta_version: META_V1 };
}

/// The best clause that can be served.
fn choose(headers: &HeaderMap, offer: Offer) -> Option<Chosen> {
    let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let clauses = accept.iter().flat_map(|line| line.split(','));
    let mut clauses: Vec<Clause<'_>> =
        clauses.filter(|c| !c.trim().is_empty()).take(MAX_CLAUSES).map(Clause::parse).collect();
    if clauses.is_empty() {
        return Some(Chosen::ANYTHING);
    }
    // Of the same quality, what is named goes before what is any.
    clauses.sort_by_key(|clause| (std::cmp::Reverse(clause.quality), clause.media_type.matches('*').count()));
    clauses.iter().find_map(|clause| clause.served(offer))
}

/// One clause of an `Accept` header.
struct Clause<'h> {
    media_type: &'h str,
    /// In thousandths.
    quality: u16,
    parameters: Vec<(&'h str, &'h str)>,
}

impl<'h> Clause<'h> {
    fn parse(text: &'h str) -> Clause<'h> {
        let mut parts = text.split(';').map(str::trim);
        let media_type = match parts.next().unwrap_or_default() {
            "*" => "*/*",
            media_type => media_type,
        };
        let mut clause = Clause { media_type, quality: 1000, parameters: Vec::new() };
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            if key == "q" {
                let quality = value.parse::<f32>().unwrap_or(0.0).clamp(0.0, 1.0);
                clause.quality = (quality * 1000.0) as u16;
            } else {
                clause.parameters.push((key, value));
            }
        }
        clause
    }

    fn served(&self, offer: Offer) -> Option<Chosen> {
        let matches = |name: &str| match self.media_type {
            "*/*" | "application/*" => true,
            media_type => media_type == name,
        };
        MEDIA_TYPES.iter().filter(|(name, _)| matches(name)).find_map(|(_, media)| {
            let shape = self.shape(*media)?;
            let pretty = self.parameters.contains(&("pretty", "1"));
            let is_offered = match offer {
                Offer::Shapes => true,
                Offer::NoTables => shape != Shape::Table,
                Offer::Custom => *media != Media::Protobuf || shape == Shape::Metadata,
                Offer::AsItIs => !self.transforms(),
            };
            let meta_version = if self.parameter("v") == "v1beta1" { META_V1BETA1 } else { META_V1 };
            is_offered.then_some(Chosen { shape, media: *media, pretty, meta_version })
        })
    }

    fn parameter(&self, key: &str) -> &str {
        self.parameters.iter().find(|(k, _)| *k == key).map_or("", |(_, value)| value)
    }

    fn transforms(&self) -> bool {
        self.parameters.iter().any(|(key, _)| matches!(*key, "as" | "g" | "v"))
    }

    /// The shape that is asked for, if there is such a thing in this media type.
    fn shape(&self, media: Media) -> Option<Shape> {
        match self.parameter("stream") {
            "" => {}
            "watch" if media != Media::Yaml => {}
            _ => return None,
        }
        if !self.transforms() {
            return Some(Shape::Object);
        }
        let is_served = match (self.parameter("g"), self.parameter("v")) {
            ("meta.k8s.io", "v1") => true,
            ("meta.k8s.io", "v1beta1") => media != Media::Protobuf,
            _ => false,
        };
        if !is_served {
            return None;
        }
        match self.parameter("as") {
            "Table" if media != Media::Protobuf => Some(Shape::Table),
            "PartialObjectMetadata" | "PartialObjectMetadataList" => Some(Shape::Metadata),
            _ => None,
        }
    }
}

/// The format of a request's body.
///
/// # Errors
/// 415 for what is neither JSON nor YAML nor protobuf.
pub(crate) fn body_format(headers: &HeaderMap) -> Result<Format, Status> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match content_type.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" | "*/*" => Ok(Format::Json),
        "application/yaml" => Ok(Format::Yaml),
        protobuf::CONTENT_TYPE => Ok(Format::Protobuf),
        _ => Err(Status::unsupported_media_type(&MEDIA_TYPES.map(|(name, _)| name))),
    }
}

/// The same of an object of a kind. Custom resources have no protobuf.
pub(crate) fn object_format(kind: &Kind, headers: &HeaderMap) -> Result<Format, Status> {
    match body_format(headers) {
        Ok(Format::Protobuf) | Err(_) if kind.custom().is_some() => {
            Err(Status::unsupported_media_type(&[MEDIA_TYPES[0].0, MEDIA_TYPES[1].0]))
        }
        format => format,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(accept: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_str(accept).expect("a header"));
        headers
    }

    fn check(accept: &str, expected: Option<(Shape, Syntax)>) {
        let got = Encoding::negotiate(&headers(accept), &Query::default(), Offer::Shapes);
        assert_eq!(got.ok().map(|e| (e.shape, e.syntax)), expected, "{accept}");
    }

    #[test]
    fn the_best_clause_that_can_be_served_is_chosen() {
        check("application/json", Some((Shape::Object, Syntax::Json)));
        check("*/*", Some((Shape::Object, Syntax::Json)));
        check("application/yaml", Some((Shape::Object, Syntax::Yaml)));
        check("application/vnd.kubernetes.protobuf", Some((Shape::Object, Syntax::Protobuf)));
        check(
            "application/vnd.kubernetes.protobuf,application/json",
            Some((Shape::Object, Syntax::Protobuf)),
        );
        check("application/json,application/vnd.kubernetes.protobuf", Some((Shape::Object, Syntax::Json)));
        check("*/*,application/vnd.kubernetes.protobuf", Some((Shape::Object, Syntax::Protobuf)));
        check(
            "application/json;q=0.5,application/vnd.kubernetes.protobuf",
            Some((Shape::Object, Syntax::Protobuf)),
        );
        check("application/vnd.kubernetes.protobuf;stream=watch", Some((Shape::Object, Syntax::Protobuf)));
        check("application/vnd.kubernetes.protobuf;stream=other", None);
        check("application/cbor", None);
        check("text/html", None);
        check("application/json;q=0.1, application/yaml;q=0.9", Some((Shape::Object, Syntax::Yaml)));
    }

    #[test]
    fn tables_are_never_protobuf_and_metadata_may_be() {
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some((Shape::Table, Syntax::Json)),
        );
        check(
            "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1;g=meta.k8s.io",
            Some((Shape::Table, Syntax::Json)),
        );
        check("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", None);
        check("application/json;as=Table;v=v9;g=meta.k8s.io", None);
        check("application/json;as=Table;v=v1beta1;g=meta.k8s.io", Some((Shape::Table, Syntax::Json)));
        check(
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
            Some((Shape::Metadata, Syntax::Protobuf)),
        );
    }

    #[test]
    fn what_is_answered_and_forgotten_has_no_table() {
        let negotiate = |accept| Encoding::negotiate(&headers(accept), &Query::default(), Offer::NoTables);
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        assert_eq!(negotiate(table).expect_err("refused").code, 406);
        let both = negotiate("application/json;as=Table;v=v1;g=meta.k8s.io,application/json").expect("JSON");
        assert_eq!(both.shape, Shape::Object);
        let metadata = negotiate("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io");
        assert_eq!(metadata.expect("metadata").shape, Shape::Metadata);
    }

    #[test]
    fn errors_are_in_what_is_accepted_for_more_than_tables() {
        let syntax = |accept| Encoding::of_documents(&headers(accept), &Query::default()).syntax;
        assert_eq!(syntax("application/vnd.kubernetes.protobuf"), Syntax::Protobuf);
        assert_eq!(
            syntax("application/json;as=Table;v=v1;g=meta.k8s.io,application/vnd.kubernetes.protobuf"),
            Syntax::Protobuf
        );
        assert_eq!(syntax("text/html"), Syntax::Json);
    }

    #[test]
    fn what_is_not_accepted_is_answered_with_what_would_be() {
        let negotiate = |accept| Encoding::negotiate(&headers(accept), &Query::default(), Offer::Shapes);
        let status = negotiate("text/html").expect_err("refused");
        assert_eq!(
            status.message,
            "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
        );
        let yaml = negotiate("application/yaml").expect("YAML");
        assert_eq!(
            yaml.check_streams().expect_err("refused").message,
            "only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
        );
    }
}
