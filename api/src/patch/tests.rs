use serde_json::json;

use super::*;
use crate::Kinds;
use crate::depth::MAX_DEPTH;

/// A document, a patch and what upstream's own libraries made of them: `gopkg.in/evanphx/json-patch.v4` v4.13.0 and
/// apimachinery's `strategicpatch` v0.36.3.
#[derive(serde::Deserialize)]
struct Case {
    why: String,
    #[serde(default, rename = "type")]
    type_name: String,
    document: Value,
    patch: Value,
    #[serde(default)]
    result: Value,
    /// The code of the refusal. Upstream's panics are 422 here.
    refused: Option<u16>,
}

#[track_caller]
fn check_all(cases: &str, apply: impl Fn(&Case, &mut Value) -> Result<(), Status>) {
    let cases: Vec<Case> = serde_json::from_str(cases).unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let mut object = case.document.clone();
        match (apply(&case, &mut object), case.refused) {
            (Ok(()), None) => assert_eq!(object, case.result, "{}", case.why),
            (Err(status), Some(code)) => {
                assert_eq!(status.code, code, "{}: {status}", case.why);
                assert_eq!(object, case.document, "{}: left as it was", case.why);
            }
            (found, _) => panic!("{}: {found:?}, {object}", case.why),
        }
    }
}

#[test]
fn json_patches_do_what_upstreams_library_does() {
    check_all(include_str!("json.cases.json"), |case, object| json(object, &case.patch));
}

#[test]
fn merge_patches_do_what_upstreams_library_does() {
    check_all(include_str!("merge.cases.json"), |case, object| merge(object, &case.patch));
}

#[test]
fn strategic_patches_do_what_upstreams_library_does() {
    check_all(include_str!("strategic.cases.json"), |case, object| {
        let package = match case.type_name.as_str() {
            "Deployment" => "io.k8s.api.apps.v1",
            "ObjectMeta" => "io.k8s.apimachinery.pkg.apis.meta.v1",
            _ => "io.k8s.api.core.v1",
        };
        let schema = TypeRef::builtin(&format!("{package}.{}", case.type_name)).unwrap();
        strategic(&schema, object, &case.patch)
    });
}
fn kind(name: &str) -> std::sync::Arc<Kind> {
    Kinds::builtin().iter().find(|k| k.kind == name).unwrap().clone()
}

#[test]
fn copies_grow_a_document_by_three_mebibytes_in_all_and_no_more() {
    let doubling: Vec<Value> =
        (0..24).map(|n| json!({"op": "copy", "from": "/data", "path": format!("/data/x{n}")})).collect();
    let mut object = json!({"data": {"k": "v"}});
    let before = object.clone();
    let error = json(&mut object, &doubling.into()).unwrap_err();
    assert_eq!((error.code, error.reason), (422, "Invalid"), "{error}");
    assert!(error.message.contains("accumulated size increase"), "{error}");
    assert_eq!(object, before);

    // Of a text of one mebibyte, two copies fit; the third is too much.
    let copies = |count: usize| {
        let operations = (0..count).map(|n| json!({"op": "copy", "from": "/a", "path": format!("/c{n}")}));
        let mut object = json!({"a": "x".repeat((1 << 20) - 2)});
        let patch = Value::Array(operations.collect());
        json::apply(&mut object, patch.as_array().unwrap())
    };
    assert_eq!(copies(3), Ok(()));
    assert_eq!(copies(4), Err(json::Error::Copied));
}

#[test]
fn a_result_is_no_larger_than_a_request() {
    let large = "x".repeat(2 << 20);
    let mut object = json!({"a": large});
    for patch in [json!({"b": large}), json!({"b": {"c": [large]}})] {
        assert_eq!(merge(&mut object, &patch).unwrap_err().code, 413);
    }
    assert_eq!(
        json(&mut object, &json!([{"op": "add", "path": "/b", "value": large}])).unwrap_err().code,
        413
    );
    assert!(object.get("b").is_none());
}

#[test]
fn no_patch_makes_what_nests_too_deep_to_be_read_again() {
    let nested = |levels: usize| (0..levels).fold(json!({}), |inner, _| json!({"n": inner}));
    let pointer = |levels: usize| "/n".repeat(levels);
    // Each step doubles the depth.
    let copied = json!([
        {"op": "copy", "from": "/n", "path": format!("{}/n", pointer(60))},
        {"op": "copy", "from": "/n", "path": format!("{}/n", pointer(120))},
    ]);
    let added = json!([{"op": "add", "path": pointer(61), "value": nested(60)}]);
    let moved = json!([{"op": "move", "from": "/m", "path": pointer(61)}]);
    let replaced = json!([{"op": "replace", "path": pointer(60), "value": nested(60)}]);
    for patch in [copied, added, moved, replaced] {
        let mut object = nested(60);
        object["m"] = nested(60);
        let before = object.clone();
        let error = json(&mut object, &patch).unwrap_err();
        assert_eq!(error.code, 422, "{error}");
        assert!(error.message.contains("exceeded max depth"), "{error}");
        assert_eq!(object, before);
    }
    // What fits is made, and can be read: as deep as may be, and one less.
    for levels in [MAX_DEPTH - 62, MAX_DEPTH - 63] {
        let mut object = nested(60);
        json(&mut object, &json!([{"op": "add", "path": pointer(61), "value": nested(levels)}])).unwrap();
        decode::parse(object.to_string().as_bytes()).unwrap();
    }
}

#[test]
fn moving_to_and_fro_does_not_count_as_depth() {
    let operations: Vec<Value> = (0..1000)
        .map(|n| {
            let (from, to) = if n % 2 == 0 { ("/a", "/b/c/d") } else { ("/b/c/d", "/a") };
            json!({"op": "move", "from": from, "path": to})
        })
        .collect();
    let mut object = json!({"a": {"x": {"y": {"z": 1}}}, "b": {"c": {}}});
    json(&mut object, &operations.into()).unwrap();
    assert_eq!(object["a"]["x"]["y"]["z"], 1);
}

#[test]
fn insertions_in_front_of_a_long_list_are_bounded_by_what_they_shift() {
    let insertions = Value::Array(vec![json!({"op": "add", "path": "/l/0", "value": 0}); MAX_OPERATIONS]);
    let mut long = json!({"l": vec![0; 1_000_000]});
    assert_eq!(json(&mut long, &insertions).unwrap_err().code, 413);
    let mut short = json!({"l": vec![0; 1000]});
    json(&mut short, &insertions).unwrap();
    assert_eq!(short["l"].as_array().map(Vec::len), Some(11_000));
}

#[test]
fn a_patch_has_ten_thousand_operations_at_most() {
    let operations = |count: usize| {
        let patch = Value::Array(vec![json!({"op": "test", "path": "/a"}); count]);
        json(&mut json!({}), &patch)
    };
    assert_eq!(operations(MAX_OPERATIONS), Ok(()));
    let error = operations(MAX_OPERATIONS + 1).unwrap_err();
    assert_eq!((error.code, error.reason), (413, "RequestEntityTooLarge"));
}

/// Of lists this long, anything quadratic takes very long.
const LONG: usize = 60_000;

#[test]
fn very_long_lists_merge_at_once() {
    let schema = TypeRef::builtin("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap();
    let names = |from: usize| (from..from + LONG).map(|n| format!("f{n}")).collect::<Vec<_>>();
    let mut edited = json!({"finalizers": names(0)});
    let patch = json!({"finalizers": names(1), "$setElementOrder/finalizers": names(1)});
    let (target, patch) = (edited.as_object_mut().unwrap(), patch.as_object().unwrap());
    strategic::merge(&schema.schema, Some(schema.id), target, patch).unwrap();
    assert_eq!(edited["finalizers"].as_array().map(Vec::len), Some(LONG + 1));
    let patch = json!({"$deleteFromPrimitiveList/finalizers": names(1)});
    let (target, patch) = (edited.as_object_mut().unwrap(), patch.as_object().unwrap());
    strategic::merge(&schema.schema, Some(schema.id), target, patch).unwrap();
    assert_eq!(edited["finalizers"], json!(["f0"]));
}

#[test]
fn very_many_objects_merge_by_their_keys_at_once() {
    let schema = TypeRef::builtin("io.k8s.api.core.v1.PodSpec").unwrap();
    let volumes = |extra: Value| {
        let volume = |n: usize| {
            let mut volume = json!({"name": format!("v{n}")});
            volume.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap());
            volume
        };
        (0..LONG).map(volume).collect::<Vec<_>>()
    };
    let mut edited = json!({"volumes": volumes(json!({}))});
    for (patch, left) in [(json!({"emptyDir": {}}), LONG), (json!({"$patch": "delete"}), 0)] {
        let patch = json!({"volumes": volumes(patch)});
        let (target, patch) = (edited.as_object_mut().unwrap(), patch.as_object().unwrap());
        strategic::merge(&schema.schema, Some(schema.id), target, patch).unwrap();
        assert_eq!(edited["volumes"].as_array().map(Vec::len), Some(left));
    }
}

fn patched(patch_type: PatchType, patch: &str, validation: FieldValidation) -> Result<Decoded, Status> {
    let current = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "c"}]}}}});
    Patch::read(patch_type, patch.as_bytes(), validation)?.apply(&kind("Deployment"), &current)
}

/// The faults that strict decoding names, the same as warnings, and that nobody says a word who ignores them.
#[track_caller]
fn check_faults(patch_type: PatchType, patch: &str, faults: &[&str]) {
    let error = patched(patch_type, patch, FieldValidation::Strict).unwrap_err();
    assert_eq!((error.code, error.reason), (422, "Invalid"), "{error}");
    let causes = error.details.map(|details| details.causes).unwrap_or_default();
    let [cause] = causes.as_slice() else { panic!("{causes:?}") };
    assert_eq!((cause.reason, cause.field.as_str()), ("FieldValueInvalid", "patch"));
    let sentence = format!("strict decoding error: {}", faults.join(", "));
    assert!(cause.message.ends_with(&sentence), "{}", cause.message);
    assert!(error.message.starts_with(" \"\" is invalid: patch: Invalid value: "), "{}", error.message);
    assert_eq!(patched(patch_type, patch, FieldValidation::Warn).unwrap().warnings, faults);
    assert!(patched(patch_type, patch, FieldValidation::Ignore).unwrap().warnings.is_empty());
}

#[test]
fn what_strict_decoding_has_against_a_patch_is_said_for_all_three_kinds() {
    check_faults(
        PatchType::Json,
        r#"[{"op": "add", "path": "/spec/replica", "value": 1, "why": 2, "op": "add"},
            {"op": "add", "path": "/spec/paused", "value": true}]"#,
        &[
            r#"json patch unknown field "[0].why""#,
            r#"json patch duplicate field "[0].op""#,
            r#"unknown field "spec.replica""#,
        ],
    );
    check_faults(
        PatchType::Merge,
        r#"{"spec": {"replicas": 2, "replicas": 3, "replica": 4}}"#,
        &[r#"duplicate field "spec.replicas""#, r#"unknown field "spec.replica""#],
    );
    check_faults(
        PatchType::Strategic,
        r#"{"spec": {"replicas": 2, "replicas": 3, "template": {"spec": {"containers": [{"name": "c", "img": "x"}]}}}}"#,
        &[r#"duplicate field "spec.replicas""#, r#"unknown field "spec.template.spec.containers[0].img""#],
    );
}

#[test]
fn a_result_of_the_wrong_type_is_invalid_and_shows_what_was_patched() {
    for (patch_type, patch, shown) in [
        (
            PatchType::Json,
            r#"[{"op": "replace", "path": "/spec/replicas", "value": "x"}]"#,
            r#"\"replicas\":\"x\""#,
        ),
        (PatchType::Merge, r#"{"spec": {"replicas": "x"}}"#, r#"\"replicas\":\"x\""#),
        (PatchType::Strategic, r#"{"spec": {"replicas": "x"}}"#, "map[spec:map[replicas:x]]"),
    ] {
        let error = patched(patch_type, patch, FieldValidation::Ignore).unwrap_err();
        assert_eq!((error.code, error.reason), (422, "Invalid"), "{error}");
        let words = if patch_type == PatchType::Strategic {
            "unrecognized type: int32"
        } else {
            "cannot unmarshal string into Go struct field"
        };
        assert!(error.message.contains(words), "{error}");
        assert!(error.message.contains(shown), "{error}");
    }
}

/// Source: apimachinery's `runtime/converter.go`.
#[test]
fn what_a_strategic_patch_made_is_refused_in_the_words_of_a_conversion() {
    for (patch, words) in [
        (r#"{"metadata": {"labels": "x"}}"#, "cannot restore map from string"),
        (r#"{"metadata": {"labels": {"a": 1}}}"#, "cannot convert int64 to string"),
        (r#"{"metadata": {"labels": {"a": true}}}"#, "unrecognized type: string"),
        (r#"{"metadata": {"finalizers": 1.5}}"#, "cannot restore slice from float64"),
        (r#"{"spec": {"template": []}}"#, "cannot restore struct from: slice"),
        (r#"{"spec": {"replicas": 1.5}}"#, "cannot convert float64 to int32"),
        (r#"{"spec": {"paused": 1}}"#, "unrecognized type: bool"),
    ] {
        let error = patched(PatchType::Strategic, patch, FieldValidation::Ignore).unwrap_err();
        assert!(error.message.ends_with(words), "{patch}: {error}");
    }
}

#[test]
fn what_is_no_patch_of_its_type_is_a_bad_request() {
    for (patch_type, patch, codes) in [
        (PatchType::Json, r#"{"op": "add"}"#, [400, 400]),
        (PatchType::Json, r#"[{"op": 1, "path": "/a"}]"#, [400, 422]),
        (PatchType::Json, r#"["add"]"#, [400, 400]),
        (PatchType::Json, "[", [400, 400]),
        (PatchType::Json, "", [400, 400]),
        (PatchType::Merge, "[]", [400, 422]),
        (PatchType::Merge, "null", [400, 400]),
        (PatchType::Strategic, "[]", [400, 400]),
        (PatchType::Strategic, r#"{"spec": {"$patch": "x"}}"#, [500, 500]),
    ] {
        let code = |validation| patched(patch_type, patch, validation).unwrap_err().code;
        assert_eq!([code(FieldValidation::Strict), code(FieldValidation::Ignore)], codes, "{patch}");
    }
}

#[test]
fn only_a_strategic_patch_may_name_another_kind_for_it_is_not_heard() {
    let other = r#"{"kind": "Pod", "apiVersion": "v1"}"#;
    let object = patched(PatchType::Strategic, other, FieldValidation::Strict).unwrap().object;
    assert_eq!((&object["kind"], &object["apiVersion"]), (&json!("Deployment"), &json!("apps/v1")));
    assert_eq!(patched(PatchType::Merge, other, FieldValidation::Ignore).unwrap_err().code, 422);
    let other = r#"[{"op": "replace", "path": "/kind", "value": "Pod"}]"#;
    assert_eq!(patched(PatchType::Json, other, FieldValidation::Ignore).unwrap_err().code, 422);
}

#[test]
fn a_patch_does_not_come_back_to_one_element_without_end() {
    let many: Vec<Value> = (0..20_000).map(|n| json!({"name": format!("V{n}"), "value": "v"})).collect();
    let mut containers = vec![json!({"name": "c", "env": many})];
    containers.extend((0..20_000).map(|_| json!({"name": "c", "env": [{"name": "x", "value": "y"}]})));
    let patch = json!({"spec": {"template": {"spec": {"containers": containers}}}}).to_string();
    let error = patched(PatchType::Strategic, &patch, FieldValidation::Ignore).unwrap_err();
    assert!(error.message.contains("more than 16 elements of a patch"), "{error}");
}

#[test]
fn a_selector_of_a_budget_is_replaced_as_a_whole() {
    let current = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}}});
    let patch = Patch::read(
        PatchType::Strategic,
        br#"{"spec": {"selector": {"matchExpressions": [{"key": "c", "operator": "Exists"}]}}}"#,
        FieldValidation::Strict,
    );
    let patched = patch.unwrap().apply(&kind("PodDisruptionBudget"), &current).unwrap().object;
    let wanted = json!({"matchExpressions": [{"key": "c", "operator": "Exists"}]});
    assert_eq!(patched["spec"]["selector"], wanted);
}

#[test]
fn what_says_no_version_is_of_none_and_what_says_another_is_no_such_object() {
    for (patch_type, patch, code) in [
        (PatchType::Merge, r#"{"apiVersion": null}"#, 400),
        (PatchType::Json, r#"[{"op": "replace", "path": "/apiVersion", "value": ""}]"#, 400),
        (PatchType::Merge, r#"{"apiVersion": 5}"#, 422),
        (PatchType::Merge, r#"{"kind": "Other"}"#, 422),
        (PatchType::Strategic, r#"{"kind": 5}"#, 422),
    ] {
        let error = patched(patch_type, patch, FieldValidation::Ignore).unwrap_err();
        assert_eq!(error.code, code, "{patch}: {error}");
    }
    for (patch_type, patch) in [
        (PatchType::Merge, r#"{"kind": null}"#),
        (PatchType::Strategic, r#"{"apiVersion": "x", "kind": "Other"}"#),
    ] {
        assert!(patched(patch_type, patch, FieldValidation::Ignore).is_ok(), "{patch}");
    }
}

#[test]
fn numbers_of_a_strategic_patch_are_converted_as_go_does() {
    let replicas = |patch: &str| {
        let decoded = patched(PatchType::Strategic, patch, FieldValidation::Strict).unwrap();
        decoded.object["spec"]["replicas"].clone()
    };
    assert_eq!(replicas(r#"{"spec": {"replicas": 2147483648}}"#), json!(-2_147_483_648_i64));
    assert_eq!(replicas(r#"{"spec": {"replicas": 3.0}}"#), json!(3));
    let refused = patched(PatchType::Strategic, r#"{"spec": {"replicas": 1.5}}"#, FieldValidation::Strict);
    assert_eq!(refused.unwrap_err().code, 422);
    let exact = patched(PatchType::Merge, r#"{"spec": {"replicas": 2147483648}}"#, FieldValidation::Strict);
    assert_eq!(exact.unwrap_err().code, 422);
}
