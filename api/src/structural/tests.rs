//! Against what upstream has made of the same objects, see `xtask/structural`.

use std::io::Read as _;
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::schema::TypeId;

/// A schema of the recording, with its cases.
struct Recorded {
    name: String,
    kind_schema: TypeRef,
    #[expect(dead_code)]
    line: Value,
    cases: Vec<Value>,
}

fn recorded() -> Vec<Recorded> {
    let packed: &[u8] = include_bytes!("../../tests/structural.jsonl.gz");
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    let mut all: Vec<Recorded> = Vec::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["schema"].is_null() {
            all.last_mut().unwrap().cases.push(line);
            continue;
        }
        let schema = Schema::of_custom(&line["schema"]).unwrap();
        let id = root_id(&schema);
        let kind_schema = TypeRef { schema: Arc::new(schema), id };
        all.push(Recorded {
            name: line["name"].as_str().unwrap().into(),
            kind_schema,
            line,
            cases: Vec::new(),
        });
    }
    all
}

fn root_id(schema: &Schema) -> TypeId {
    match schema.root().unwrap().shape {
        Shape::Object(id) => id,
        ref other => panic!("{other:?}"),
    }
}

fn decoded(schema: &Schema, object: &Value) -> Result<(Value, Vec<String>), String> {
    let mut object = object.clone();
    let unknown = prune(schema, &mut object)?;
    Ok((object, unknown))
}

fn shown(causes: &[Cause]) -> Vec<Value> {
    causes.iter().map(|cause| json!([cause.reason, cause.field, cause.message])).collect()
}

/// What differs, in words; nothing if all is as recorded.
fn difference(recorded: &Recorded, case: &Value) -> Option<String> {
    let schema = &*recorded.kind_schema.schema;
    let (mut object, unknown) = match (decoded(schema, &case["object"]), case["error"].as_str()) {
        (Err(error), Some(wanted)) if same_error(&error, wanted) => return None,
        (Err(error), wanted) => return Some(format!("error {error}\n wanted {wanted:?}")),
        (Ok(_), Some(wanted)) => return Some(format!("no error, wanted {wanted}")),
        (Ok(decoded), None) => decoded,
    };
    let wanted = case["unknown"].as_array().cloned().unwrap_or_default();
    if unknown.iter().ne(wanted.iter().map(|name| name.as_str().unwrap())) {
        return Some(format!("unknown {unknown:?}\n wanted {wanted:?}"));
    }
    if object != case["pruned"] {
        return Some(format!("pruned {object}\n wanted {}", case["pruned"]));
    }
    default(schema, &mut object);
    if object != case["defaulted"] {
        return Some(format!("defaulted {object}\n wanted {}", case["defaulted"]));
    }
    complete(&mut object);
    let compared = |what: &str, found: &[Cause]| {
        let wanted = case[what].as_array().cloned().unwrap_or_default();
        let (mut found, mut sorted) = (shown(found), wanted);
        if case["ordered"] != true {
            found.sort_by_key(Value::to_string);
            sorted.sort_by_key(Value::to_string);
        }
        (found != sorted).then(|| {
            let lines = |list: &[Value], but: &[Value]| {
                list.iter()
                    .filter(|line| !but.contains(line))
                    .map(|line| format!("\n    {line}"))
                    .collect::<String>()
            };
            format!("{what}\n too much:{}\n missing:{}", lines(&found, &sorted), lines(&sorted, &found))
        })
    };
    if let Some(difference) = compared("create", &validate(&recorded.kind_schema, &object, None)) {
        return Some(difference);
    }
    if case["old"].is_null() {
        return None;
    }
    let Ok((mut old, _)) = decoded(schema, &case["old"]) else { return Some("the old one".into()) };
    default(schema, &mut old);
    complete(&mut old);
    if let Some(difference) = compared("update", &validate(&recorded.kind_schema, &object, Some(&old))) {
        return Some(difference);
    }
    let mut mixed = old.clone();
    match object.get("status") {
        Some(status) => mixed["status"] = status.clone(),
        None => _ = mixed.as_object_mut().unwrap().remove("status"),
    }
    compared("status", &validate_status(&recorded.kind_schema, &mixed, &old))
}

fn head(value: &Value) -> String {
    value.to_string().chars().take(1500).collect()
}

/// What the recorder adds to all objects before they are validated.
fn complete(object: &mut Value) {
    object["metadata"]["namespace"] = "default".into();
    object["metadata"]["resourceVersion"] = "1".into();
    if object["metadata"]["name"].as_str().is_none_or(str::is_empty) {
        object["metadata"]["name"] = "one".into();
    }
}

/// Of times that cannot be read the words are not all Go's, see [`crate::time`].
fn same_error(error: &str, wanted: &str) -> bool {
    let head = |text: &str| text.split(": cannot parse").next().unwrap_or_default().to_owned();
    error == wanted || wanted.contains("parsing time") && head(wanted).ends_with(&head(error))
}

#[test]
fn objects_become_and_are_told_what_upstream_makes_of_them() {
    let (mut n_cases, mut differences) = (0, Vec::new());
    for recorded in recorded() {
        for case in &recorded.cases {
            n_cases += 1;
            if let Some(difference) = difference(&recorded, case) {
                differences.push(format!(
                    "{}: {}\n old {}\n {difference}",
                    recorded.name,
                    head(&case["object"]),
                    head(&case["old"])
                ));
            }
        }
    }
    let shown: Vec<&String> = differences.iter().take(8).collect();
    assert!(
        differences.is_empty(),
        "{} of {n_cases} cases differ:\n{}",
        differences.len(),
        shown.into_iter().map(|text| format!("{text}\n\n")).collect::<String>()
    );
    assert!(n_cases > 1_000, "{n_cases} cases");
}
