//! The OpenAPI v2 document in protobuf, as client-go asks for it: gnostic's `openapi.v2.Document`.
//!
//! Maps are lists of named values, and what has no type of its own is YAML, which JSON is too. Only the fields that
//! [`super::v2`] makes are written, without the parameters, which nobody reads in this form.
//!
//! Source: gnostic-models' `openapiv2/OpenAPIv2.proto`.

use serde_json::Value;

use crate::protobuf::{put_delimited, put_varint};

/// Field numbers of `Schema`.
mod schema_field {
    pub(super) const REF: u16 = 1;
    pub(super) const FORMAT: u16 = 2;
    pub(super) const TITLE: u16 = 3;
    pub(super) const DESCRIPTION: u16 = 4;
    pub(super) const DEFAULT: u16 = 5;
    pub(super) const REQUIRED: u16 = 19;
    pub(super) const ENUM: u16 = 20;
    pub(super) const ADDITIONAL_PROPERTIES: u16 = 21;
    pub(super) const TYPE: u16 = 22;
    pub(super) const ITEMS: u16 = 23;
    pub(super) const ALL_OF: u16 = 24;
    pub(super) const PROPERTIES: u16 = 25;
    pub(super) const VENDOR_EXTENSION: u16 = 31;
}

/// Encodes a document that [`super::v2`] has made.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_text(&mut out, 1, &document["swagger"]);
    let mut info = Vec::new();
    put_text(&mut info, 1, &document["info"]["title"]);
    put_text(&mut info, 2, &document["info"]["version"]);
    put_delimited(&mut out, 2, &info);
    // No paths are described; that there are none is said.
    put_delimited(&mut out, 8, &[]);
    put_delimited(&mut out, 9, &named(&document["definitions"], 1, schema));
    out
}

fn put_text(out: &mut Vec<u8>, number: u16, value: &Value) {
    if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
        put_delimited(out, number, text.as_bytes());
    }
}

/// A map as a list: each value under `number`, with its name.
fn named(map: &Value, number: u16, encode: impl Fn(&Value) -> Vec<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in map.as_object().into_iter().flatten() {
        put_delimited(&mut out, number, &pair(name, &encode(value)));
    }
    out
}

fn pair(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_delimited(&mut out, 1, name.as_bytes());
    put_delimited(&mut out, 2, value);
    out
}

fn any(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_delimited(&mut out, 2, value.to_string().as_bytes());
    out
}

/// A message with one field.
fn one(number: u16, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_delimited(&mut out, number, content);
    out
}

fn schema(value: &Value) -> Vec<u8> {
    use schema_field::*;

    let mut out = Vec::new();
    let list = |field: &str| value[field].as_array().map(Vec::as_slice).unwrap_or_default();
    for (number, field) in [(REF, "$ref"), (FORMAT, "format"), (TITLE, "title"), (DESCRIPTION, "description")]
    {
        put_text(&mut out, number, &value[field]);
    }
    if let Some(default) = value.get("default") {
        put_delimited(&mut out, DEFAULT, &any(default));
    }
    list("required").iter().for_each(|name| put_text(&mut out, REQUIRED, name));
    list("enum").iter().for_each(|one| put_delimited(&mut out, ENUM, &any(one)));
    match value.get("additionalProperties") {
        None => {}
        Some(Value::Bool(allowed)) => {
            let mut boolean = Vec::new();
            put_varint(&mut boolean, 2 << 3);
            put_varint(&mut boolean, u64::from(*allowed));
            put_delimited(&mut out, ADDITIONAL_PROPERTIES, &boolean);
        }
        Some(of) => put_delimited(&mut out, ADDITIONAL_PROPERTIES, &one(1, &schema(of))),
    }
    if let Some(kind) = value["type"].as_str() {
        put_delimited(&mut out, TYPE, &one(1, kind.as_bytes()));
    }
    if let Some(items) = value.get("items") {
        put_delimited(&mut out, ITEMS, &one(1, &schema(items)));
    }
    list("allOf").iter().for_each(|of| put_delimited(&mut out, ALL_OF, &schema(of)));
    if value["properties"].is_object() {
        put_delimited(&mut out, PROPERTIES, &named(&value["properties"], 1, schema));
    }
    for (name, extension) in
        value.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-"))
    {
        put_delimited(&mut out, VENDOR_EXTENSION, &pair(name, &any(extension)));
    }
    out
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;

    /// The sample, and what gnostic's own parser and encoder make of it (`openapi_v2.ParseDocument`, then
    /// `proto.Marshal`, with extensions and defaults as the JSON they were).
    #[test]
    fn a_document_is_encoded_as_gnostic_encodes_it() {
        let sample: Value = serde_json::from_str(include_str!("sample.json")).expect("JSON");
        let golden = STANDARD.decode(include_str!("sample.pb.base64").trim()).expect("base64");
        let encoded = encode(&sample);
        assert_eq!(STANDARD.encode(encoded), STANDARD.encode(golden));
    }

    #[test]
    fn every_word_of_our_own_document_is_known_here() {
        const KNOWN: &[&str] = &[
            "$ref",
            "format",
            "title",
            "description",
            "default",
            "required",
            "enum",
            "additionalProperties",
            "type",
            "items",
            "allOf",
            "properties",
        ];
        fn check(schema: &Value) {
            for (word, value) in schema.as_object().expect("a schema") {
                assert!(KNOWN.contains(&word.as_str()) || word.starts_with("x-"), "{word}");
                match word.as_str() {
                    "properties" => value.as_object().expect("properties").values().for_each(check),
                    "items" => check(value),
                    "additionalProperties" if value.is_object() => check(value),
                    _ => {}
                }
            }
        }
        let document = crate::openapi::v2(&crate::Kinds::builtin(), &());
        document["definitions"].as_object().expect("definitions").values().for_each(check);
        assert_eq!(document["paths"], json!({}), "paths would have to be encoded");
    }
}
