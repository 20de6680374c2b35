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
