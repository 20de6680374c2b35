use serde_json::json;

use super::*;
use crate::Kinds;

fn decode_as(kind: &str, text: &str, validation: FieldValidation) -> Result<Decoded, Status> {
    let kinds = Kinds::builtin();
    let kind = kinds.iter().find(|k| k.kind == kind).unwrap();
    decode(kind, text.as_bytes(), Format::Json, validation)
}

#[test]
fn unknown_and_duplicate_fields_are_named_by_their_path() {
    let text = r#"{"metadata": {"name": "a"}, "spec": {"replicas": 1, "replicas": 2, "replica": 3,
        "template": {"spec": {"containers": [{"name": "c", "img": "x"}]}}}}"#;
    let error = decode_as("Deployment", text, FieldValidation::Strict).unwrap_err();
    assert_eq!(error.code, 400);
    assert_eq!(
        error.message,
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: duplicate field \
         \"spec.replicas\", unknown field \"spec.replica\", unknown field \"spec.template.spec.containers[0].img\""
    );
    let decoded = decode_as("Deployment", text, FieldValidation::Warn).unwrap();
    assert_eq!(decoded.warnings.len(), 3);
    assert_eq!(decoded.object["spec"]["replicas"], 2);
    assert!(decoded.object["spec"].get("replica").is_none());
    assert!(decode_as("Deployment", text, FieldValidation::Ignore).unwrap().warnings.is_empty());
}

#[test]
fn faults_are_named_in_the_order_of_the_document_and_once() {
    let faults = |text: &str| {
        let error = decode_as("Deployment", text, FieldValidation::Strict).unwrap_err();
        error.message.split("strict decoding error: ").nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(
        faults(
            r#"{"metadata": {"name": "a"}, "spec": {"unknownField": "foo", "replicas": 2, "replicas": 3}}"#
        ),
        r#"unknown field "spec.unknownField", duplicate field "spec.replicas""#
    );
    assert_eq!(
        faults(
            r#"{"spec": {"b": 1, "a": {"x": 1, "x": 2}, "b": 2, "replicas": 1, "replicas": 1, "replicas": 2}}"#
        ),
        r#"unknown field "spec.b", unknown field "spec.a", duplicate field "spec.replicas""#,
        "each once, and nothing of what is inside an unknown field"
    );
    assert_eq!(
        faults(r#"{"metadata": {"labels": {"x": "1", "x": "2"}, "z": 0}, "a": 1}"#),
        r#"duplicate field "metadata.labels.x", unknown field "metadata.z", unknown field "a""#
    );
}

#[test]
fn a_value_of_the_wrong_type_is_refused_whatever_the_validation() {
    let error =
        decode_as("Deployment", r#"{"spec": {"replicas": "three"}}"#, FieldValidation::Ignore).unwrap_err();
    assert_eq!(
        error.message,
        "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go \
         struct field DeploymentSpec.spec.replicas of type int32"
    );
}

#[test]
fn quantities_and_times_become_canonical_and_nulls_go() {
    let text = r#"{"metadata": {"name": "p", "creationTimestamp": null}, "spec": {"containers": [{"name": "c",
        "resources": {"limits": {"cpu": 0.5, "memory": "1024Ki"}}}]}}"#;
    let object = decode_as("Pod", text, FieldValidation::Strict).unwrap().object;
    assert_eq!(
        object["spec"]["containers"][0]["resources"]["limits"],
        json!({"cpu": "500m", "memory": "1Mi"})
    );
    assert!(object["metadata"].get("creationTimestamp").is_none());
    assert_eq!(object["kind"], "Pod");
}

#[test]
fn another_kind_is_refused() {
    assert_eq!(decode_as("Pod", r#"{"kind": "Node"}"#, FieldValidation::Ignore).unwrap_err().code, 400);
}

#[test]
fn bombs_are_refused() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(parse(deep.as_bytes()).unwrap_err().code, 400);
    let mut laughs = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
    for (one, two) in "abcdefgh".chars().zip("bcdefghi".chars()) {
        laughs.push_str(&format!("{two}: &{two} [{}]\n", vec![format!("*{one}"); 9].join(",")));
    }
    assert_eq!(document(laughs.as_bytes(), Format::Yaml, "", "").unwrap_err().code, 400);
}

/// A name that makes any copy of the path of an element cost as much as the whole document does.
fn long_name() -> String {
    "n".repeat(500_000)
}

#[test]
fn reading_costs_no_more_for_the_length_of_the_names_around_a_value() {
    let items = vec!["0"; 200_000].join(",");
    let name = long_name();
    let text = format!(r#"{{"{name}": {{"{name}": [{items}]}}}}"#);
    assert_eq!(parse(text.as_bytes()).unwrap()[&name][&name].as_array().map(Vec::len), Some(200_000));
    // As strict decoding reads it, twice.
    let text = format!(r#"{{"kind": "Pod", "kind": "Pod", "{name}": {{"{name}": [{items}]}}}}"#);
    let decoded = decode_as("Pod", &text, FieldValidation::Warn).unwrap();
    assert_eq!(decoded.warnings.len(), 2);
}

#[test]
fn pruning_costs_no_more_for_the_length_of_the_names_around_a_value() {
    let (name, items) = (long_name(), vec![r#""x""#; 200_000].join(","));
    let text = format!(r#"{{"spec": {{"extra": {{"{name}": [{items}]}}}}}}"#);
    let decoded = decode_as("SubjectAccessReview", &text, FieldValidation::Strict).unwrap();
    assert_eq!(decoded.object["spec"]["extra"][&name].as_array().map(Vec::len), Some(200_000));
}

#[test]
fn what_is_said_of_faults_is_bounded_however_many_and_long_they_are() {
    let name = long_name();
    let fields: Vec<String> = (0..5).map(|n| format!(r#""{name}{n}": 1"#)).collect();
    let text = format!(r#"{{"metadata": {{{}}}}}"#, fields.join(","));
    let warnings = decode_as("Pod", &text, FieldValidation::Warn).unwrap().warnings;
    assert_eq!(warnings.len(), 1, "the first, and there is no room for more");
    let twice: Vec<String> = (0..5000).map(|n| format!(r#""f{n}": 1, "f{n}": 2"#)).collect();
    let warnings =
        decode_as("Pod", &format!("{{{}}}", twice.join(",")), FieldValidation::Warn).unwrap().warnings;
    assert_eq!(warnings.len(), 100);
}

#[test]
fn a_null_in_a_list_or_map_is_the_zero_value_of_its_type() {
    let text = r#"{"metadata": {"finalizers": [null, "a"], "labels": {"l": null}},
        "spec": {"containers": [null, {"name": "c", "args": [null], "resources": {"limits": {"cpu": null}}}]}}"#;
    let object = decode_as("Pod", text, FieldValidation::Strict).unwrap().object;
    assert_eq!(object["metadata"]["finalizers"], json!(["", "a"]));
    assert_eq!(object["metadata"]["labels"], json!({"l": ""}));
    assert_eq!(object["spec"]["containers"][0], json!({}));
    assert_eq!(object["spec"]["containers"][1]["args"], json!([""]));
    assert_eq!(object["spec"]["containers"][1]["resources"]["limits"], json!({"cpu": "0"}));
    let text = r#"{"binaryData": {"b": null}, "data": {"d": null}}"#;
    let object = decode_as("ConfigMap", text, FieldValidation::Strict).unwrap().object;
    assert_eq!((&object["binaryData"], &object["data"]), (&json!({"b": ""}), &json!({"d": ""})));
}

#[test]
fn a_time_in_the_year_9999_is_kept_also_through_protobuf() {
    let text = r#"{"metadata": {"name": "l"}, "spec": {"renewTime": "9999-12-31T23:59:59.000001Z"}}"#;
    let lease = decode_as("Lease", text, FieldValidation::Strict).unwrap().object;
    assert_eq!(lease["spec"]["renewTime"], "9999-12-31T23:59:59.000001Z");
    let encoded = protobuf::document(&lease).unwrap();
    assert_eq!(document(&encoded, Format::Protobuf, "", "").unwrap()["spec"], lease["spec"]);
    let text = r#"{"metadata": {"creationTimestamp": "9999-12-31T23:59:59Z"}}"#;
    let pod = decode_as("Pod", text, FieldValidation::Strict).unwrap().object;
    let encoded = protobuf::document(&pod).unwrap();
    let read = document(&encoded, Format::Protobuf, "", "").unwrap();
    assert_eq!(read["metadata"]["creationTimestamp"], "9999-12-31T23:59:59Z");
    for time in ["9999-12-31T23:59:59-01:00", "2026-01-01", "2026-01-01 00:00:00Z"] {
        let text = format!(r#"{{"metadata": {{"creationTimestamp": "{time}"}}}}"#);
        assert_eq!(decode_as("Pod", &text, FieldValidation::Ignore).unwrap_err().code, 400, "{time}");
    }
}

#[test]
fn nothing_that_nests_too_deep_is_taken_in_any_format() {
    let deep = |levels: usize| format!("{}{}{}", r#"{"a":"#.repeat(levels), "1", "}".repeat(levels));
    let error = document(deep(121).as_bytes(), Format::Json, "", "").unwrap_err();
    assert!(error.code == 400 && error.message.contains("exceeded max depth"), "{error}");
    assert!(document(deep(120).as_bytes(), Format::Json, "", "").is_ok());
    assert_eq!(document(deep(100_000).as_bytes(), Format::Json, "", "").unwrap_err().code, 400);
    assert_eq!(document(deep(100_000).as_bytes(), Format::Yaml, "", "").unwrap_err().code, 400);
    let kinds = Kinds::builtin();
    let revision = kinds.iter().find(|k| k.kind == "ControllerRevision").unwrap();
    for (levels, wanted) in [(119, true), (120, false)] {
        let object = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 1});
        let mut object = object;
        object["data"] = (0..levels).fold(json!(1), |inner, _| json!({"a": inner}));
        assert_eq!(conform(revision, object.clone(), FieldValidation::Ignore).is_ok(), wanted, "{levels}");
        let encoded = protobuf::document(&object).unwrap();
        assert_eq!(document(&encoded, Format::Protobuf, "", "").is_ok(), wanted, "{levels}");
    }
}

/// What is read and written again and again stays the number that it was.
#[test]
fn a_fraction_is_read_as_it_was_written() {
    // The steps of a small generator: all bits of a fraction are in use.
    let mut bits: u64 = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..20_000 {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = f64::from_bits(bits);
        if !number.is_finite() {
            continue;
        }
        let text = serde_json::to_string(&json!({ "a": number })).expect("is written");
        let read = parse(text.as_bytes()).expect("is read");
        assert_eq!(read["a"].as_f64().map(f64::to_bits), Some(number.to_bits()), "{text}");
    }
}
