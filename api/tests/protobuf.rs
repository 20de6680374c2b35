//! Protobuf against bytes that upstream's own encoder wrote: `golden.jsonl.gz` holds, for every kind, an object
//! with every field set and one with none, as JSON and as protobuf. `cargo xtask codegen` makes it anew.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flate2::read::GzDecoder;
use proptest::prelude::*;
use serde_json::{Value, json};
use skiff_api::decode::{FieldValidation, Format, decode, document};
use skiff_api::schema::{Schema, Shape, TypeId};
use skiff_api::{Kinds, protobuf};

/// JSON as upstream writes it, and its protobuf.
fn golden() -> Vec<(Value, Vec<u8>)> {
    let mut text = String::new();
    let packed: &[u8] = include_bytes!("golden.jsonl.gz");
    GzDecoder::new(packed).read_to_string(&mut text).expect("a gzipped file");
    text.lines()
        .map(|line| {
            let (document, encoded) = line.split_once('\t').expect("two columns");
            let document: Value = serde_json::from_str(document).expect("JSON");
            (document, STANDARD.decode(encoded).expect("base64"))
        })
        .collect()
}

fn text<'v>(document: &'v Value, field: &str) -> &'v str {
    document[field].as_str().unwrap_or_default()
}

/// Without what upstream writes as null: what is not set. JSON that the schema does not look into stays.
fn without_nulls(id: TypeId, document: &mut Value) {
    fn walk(shape: &Shape, value: &mut Value) {
        match (shape, value) {
            (Shape::Object(id), value) => without_nulls(*id, value),
            (Shape::List(inner), Value::Array(items)) => items.iter_mut().for_each(|v| walk(&inner.shape, v)),
            (Shape::Map(inner), Value::Object(map)) => map.values_mut().for_each(|v| walk(&inner.shape, v)),
            (Shape::SchemaOr(_, id), Value::Object(map)) => {
                let mut schema = Value::Object(std::mem::take(map));
                without_nulls(*id, &mut schema);
                if let Value::Object(schema) = schema {
                    *map = schema;
                }
            }
            (Shape::SchemaOr(_, id), Value::Array(items)) => {
                items.iter_mut().filter(|item| item.is_object()).for_each(|v| without_nulls(*id, v));
            }
            _ => {}
        }
    }
    let type_ = Schema::builtin().get(id);
    let Value::Object(map) = document else { return };
    map.retain(|_, value| !value.is_null());
    for (name, value) in map {
        if let Some(field) = type_.field(name) {
            walk(&field.node.shape, value);
        }
    }
}

/// Every golden object with its type, as it would be stored.
fn objects() -> impl Iterator<Item = (TypeId, Value, Vec<u8>)> {
    golden().into_iter().filter_map(|(mut document, encoded)| {
        let name = format!("{} {}", text(&document, "apiVersion"), text(&document, "kind"));
        if name == "v1 PodList" {
            return None;
        }
        let id = protobuf::type_of(text(&document, "apiVersion"), text(&document, "kind"));
        let id = id.unwrap_or_else(|| panic!("no type for {name}"));
        without_nulls(id, &mut document);
        Some((id, document, encoded))
    })
}

#[test]
fn every_kind_has_golden_objects() {
    let golden = golden();
    for kind in Kinds::builtin().iter() {
        let of_kind = golden.iter().filter(|(document, _)| {
            text(document, "apiVersion") == kind.api_version() && text(document, "kind") == kind.kind
        });
        assert_eq!(of_kind.count(), 2, "{} {}", kind.api_version(), kind.kind);
    }
    assert!(golden.len() >= 2 * 80, "{}", golden.len());
}

#[test]
fn what_is_encoded_is_byte_for_byte_what_upstream_encodes() {
    for (_, document, encoded) in objects() {
        let ours = protobuf::document(&document).expect("a type");
        let name = format!("{} {}", text(&document, "apiVersion"), text(&document, "kind"));
        assert!(ours == encoded, "{name}: ours\n{:02x?}\nupstream's\n{encoded:02x?}\n{document}", &ours[..]);
    }
}

#[test]
fn what_is_decoded_is_what_upstream_decodes() {
    for (_, document, encoded) in objects() {
        let ours = skiff_api::decode::document(&encoded, Format::Protobuf, "", "").expect("a message");
        assert_eq!(ours, document);
    }
}

#[test]
fn objects_of_kinds_are_read_like_their_json() {
    let kinds = Kinds::builtin();
    for (_, document, encoded) in objects() {
        let api_version = text(&document, "apiVersion");
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let Some(kind) = kinds.by_kind(group, version, text(&document, "kind")) else { continue };
        let of_protobuf = decode(kind, &encoded, Format::Protobuf, FieldValidation::Strict);
        let json = document.to_string();
        let of_json = decode(kind, json.as_bytes(), Format::Json, FieldValidation::Strict);
        let name = format!("{api_version} {}", kind.kind);
        assert_eq!(
            of_protobuf.unwrap_or_else(|e| panic!("{name}: {e}")).object,
            of_json.unwrap_or_else(|e| panic!("{name}: {e}")).object,
            "{name}"
        );
    }
}

#[test]
fn a_list_is_what_upstream_makes_of_it() {
    let pod = Schema::builtin().find("io.k8s.api.core.v1.Pod").expect("pods");
    let mut n_lists = 0;
    for (mut document, encoded) in golden() {
        if text(&document, "kind") != "PodList" {
            continue;
        }
        n_lists += 1;
        if document["items"].is_null() {
            document["items"] = json!([]);
        }
        document["items"].as_array_mut().expect("items").iter_mut().for_each(|item| without_nulls(pod, item));
        assert_eq!(protobuf::document(&document).expect("a type"), encoded);
        let items = document["items"].as_array().expect("items").iter();
        let items: Vec<Bytes> = items.map(|item| protobuf::message(pod, item)).collect();
        let list = protobuf::List::new("v1", "PodList", &document["metadata"], items).expect("a list");
        assert_eq!(list.size_bytes(), encoded.len());
        assert_eq!(list.chunks(10).collect::<Vec<_>>().concat(), encoded);
    }
    assert_eq!(n_lists, 2);
}

#[test]
fn an_event_of_a_watch_is_framed_by_its_length() {
    let frame = protobuf::watch_frame("ADDED", b"k8s\0x");
    // The length, type 1: "ADDED", object 2: { raw 1: the bytes }.
    assert_eq!(frame[..], *b"\0\0\0\x10\x0a\x05ADDED\x12\x07\x0a\x05k8s\0x");
}

fn refused(bytes: &[u8]) -> String {
    document(bytes, Format::Protobuf, "v1", "Pod").expect_err("refused").message
}

/// A pod's message in an envelope that leaves its kind out.
fn enveloped(message: &[u8]) -> Vec<u8> {
    protobuf::envelope("", "", message).into()
}

#[test]
fn what_is_no_message_is_refused_by_its_fault() {
    let check = |bytes: &[u8], fault: &str| {
        assert_eq!(refused(bytes), format!("error decoding the request body: {fault}"), "{bytes:02x?}");
    };
    check(b"", "empty data");
    check(b"{}", "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]");
    check(b"k8s\0", "empty body");
    check(b"k8s\0\x0a\x05ab", "unexpected EOF");
    check(&enveloped(b"\x08\x01"), "proto: wrong wireType = 0 for field metadata");
    check(&enveloped(b"\x0a\x02\x0a\x05"), "unexpected EOF");
    check(&enveloped(b"\x0a\x03\x0a\x01\xff"), "proto: field name is no valid UTF-8");
    check(&enveloped(b"\x00"), "proto: Pod: illegal tag 0 (wire type 0)");
    check(&enveloped(&[0xff; 11]), "proto: integer overflow");
    check(&enveloped(b"\x0c"), "proto: unexpected end of group");
    check(&enveloped(b"\x0e"), "proto: illegal wireType 6");
    let other = protobuf::envelope("v9", "Nothing", b"");
    check(&other, "no kind \"Nothing\" is registered for version \"v9\"");
}

#[test]
fn unknown_fields_and_groups_are_passed_over() {
    // Field 900 as each wire type and as a group with a field and a group in it, then the name.
    let unknown =
        b"\xa0\x38\x01\xa1\x38\0\0\0\0\0\0\0\0\xa2\x38\x01x\xa5\x38\0\0\0\0\xa3\x38\x08\x01\x0b\x0c\xa4\x38";
    let bytes = enveloped(&[&unknown[..], b"\x0a\x03\x0a\x01n"].concat());
    let pod = document(&bytes, Format::Protobuf, "v1", "Pod").expect("a pod");
    assert_eq!(pod, json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "n"}}));
    let deep = enveloped(&[0x0b; 1000]);
    assert!(refused(&deep).ends_with("proto: messages are nested more than 32 deep"));
}

#[test]
fn numbers_may_be_packed_and_messages_may_come_in_parts() {
    // spec 2 { securityContext 14 { supplementalGroups 4: packed 1, 300; then 2 } }, in two parts.
    let message = b"\x12\x07\x72\x05\x22\x03\x01\xac\x02\x12\x04\x72\x02\x20\x02";
    let pod = document(&enveloped(message), Format::Protobuf, "v1", "Pod").expect("a pod");
    assert_eq!(pod["spec"]["securityContext"], json!({"supplementalGroups": [1, 300, 2]}));
}

#[test]
fn a_message_that_nests_or_holds_too_much_is_refused() {
    let crd = |message: &[u8]| {
        let bytes = protobuf::envelope("apiextensions.k8s.io/v1", "CustomResourceDefinition", message);
        document(&bytes, Format::Protobuf, "", "").expect_err("refused").message
    };
    // spec 2 { versions 7 { schema 4 { openAPIV3Schema 1 { not 28 { not 28 { … } } } } } }
    let delimited = |tag: &[u8], inner: Vec<u8>| {
        let mut out = tag.to_vec();
        let mut length = inner.len();
        while length >= 0x80 {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend(inner);
        out
    };
    let mut message = Vec::new();
    for _ in 0..200 {
        message = delimited(b"\xe2\x01", message);
    }
    for tag in [b"\x0a", b"\x22", b"\x3a", b"\x12"] {
        message = delimited(tag, message);
    }
    assert!(crd(&message).ends_with("proto: messages are nested more than 120 deep"), "{}", crd(&message));
    // metadata 1 { finalizers 14: "", 300,000 times }
    let wide = delimited(b"\x0a", b"\x72\0".repeat(300_000));
    assert!(crd(&wide).ends_with("proto: more than 250000 values"), "{}", crd(&wide));
    // A document of JSON may not take what is left of the depth and more: metadata 1 { managedFields 17 { fieldsV1 7 } }.
    let json = format!("{}{}", "[".repeat(118), "]".repeat(118)).into_bytes();
    let fields = delimited(b"\x0a", delimited(b"\x8a\x01", delimited(b"\x3a", delimited(b"\x0a", json))));
    assert!(crd(&fields).contains("nested more than 120 deep"), "{}", crd(&fields));
}

#[test]
fn an_object_of_another_kind_is_refused_by_its_kind() {
    let pods = Kinds::builtin();
    let pods = pods.by_kind("", "v1", "Pod").expect("pods");
    let deployment = protobuf::envelope("apps/v1", "Deployment", b"");
    let status = decode(pods, &deployment, Format::Protobuf, FieldValidation::Strict).expect_err("refused");
    assert!(status.message.starts_with("the object provided is unrecognized (must be of type Pod)"));
}

/// A change of valid bytes.
#[derive(Clone, Debug)]
enum Mutation {
    Set { at: prop::sample::Index, to: u8 },
    Insert { at: prop::sample::Index, byte: u8 },
    Remove { at: prop::sample::Index },
    Cut { at: prop::sample::Index },
    Repeat { from: prop::sample::Index, count: u8 },
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len();
        match self {
            Mutation::Set { at, to } => bytes[at.index(length)] = *to,
            Mutation::Insert { at, byte } => bytes.insert(at.index(length), *byte),
            Mutation::Remove { at } => _ = bytes.remove(at.index(length)),
            Mutation::Cut { at } => bytes.truncate(at.index(length)),
            Mutation::Repeat { from, count } => {
                let from = from.index(length);
                let part = bytes[from..length.min(from + usize::from(*count))].to_vec();
                bytes.splice(from..from, part);
            }
        }
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, to)| Mutation::Set { at, to }),
        (at(), any::<u8>()).prop_map(|(at, byte)| Mutation::Insert { at, byte }),
        at().prop_map(|at| Mutation::Remove { at }),
        at().prop_map(|at| Mutation::Cut { at }),
        (at(), any::<u8>()).prop_map(|(from, count)| Mutation::Repeat { from, count }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever bytes can be read can be written, and are then read as the same again.
    #[test]
    fn no_bytes_panic_and_what_is_read_is_stable(
        which in any::<prop::sample::Index>(),
        mutations in prop::collection::vec(mutation(), 1..8),
    ) {
        static GOLDEN: std::sync::LazyLock<Vec<(Value, Vec<u8>)>> = std::sync::LazyLock::new(golden);
        let (_, encoded) = &GOLDEN[which.index(GOLDEN.len())];
        let mut bytes = encoded.clone();
        mutations.iter().for_each(|mutation| mutation.apply(&mut bytes));
        if let Ok(read) = document(&bytes, Format::Protobuf, "v1", "Pod") {
            let written = protobuf::document(&read).expect("its type is known");
            let again = document(&written, Format::Protobuf, "", "").expect("what was written can be read");
            prop_assert_eq!(&protobuf::document(&again).expect("its type is known"), &written);
        }
    }
}
