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

const CONVERSION: &str = "unsupported conversion to ref.Val: (*errors.errorString)";

/// A value of a wrong type, which an update may keep, fails as soon as a rule looks at it. To upstream it also fails where it is part
/// of what is compared or summed as a whole; here a whole with such a part is another than all others.
fn without_parts_of_wrong_types(found: &mut Vec<Value>, wanted: &mut Vec<Value>) {
    wanted.retain(|line| {
        let message = line[2].as_str().unwrap_or_default();
        // Upstream's own panics among them.
        let is_of_a_part = ["(list)'", "hash of unhashable type"].iter().any(|words| message.contains(words));
        let rule = message.rsplit_once(" rule: ").map_or("", |(_, rule)| rule);
        if !is_of_a_part || found.contains(line) {
            return true;
        }
        let is_same_rule =
            |other: &Value| other[1] == line[1] && other[2].as_str().is_some_and(|text| text.ends_with(rule));
        found.retain(|other| !is_same_rule(other));
        false
    });
}

/// Why a text is no time is told in Go's words in part only, see [`crate::time`]. Of a value of a wrong type in an optional one
/// upstream says that it could not be taken for a value of its interpreter; here it is called what it is called elsewhere.
fn without_words_of_go(line: &mut Value) {
    let Some(message) = line.get_mut(2) else { return };
    let text = message.as_str().unwrap();
    if text.contains(CONVERSION) {
        *message = text.replace(CONVERSION, "").into();
        return;
    }
    if let Some((before, after)) = text.split_once(": parsing time") {
        let rule = after.split_once(" evaluating rule").map_or(after, |(_, rule)| rule);
        *message = format!("{before}{rule}").into();
    }
}

/// What differs of two lists, which are in the same order only if that matters.
fn compared(what: &str, mut found: Vec<Value>, wanted: &Value, ordered: bool) -> Option<String> {
    let mut wanted = wanted.as_array().cloned().unwrap_or_default();
    wanted.iter_mut().chain(&mut found).for_each(without_words_of_go);
    without_parts_of_wrong_types(&mut found, &mut wanted);
    // Of fields upstream goes through them in any order. Of one the order of its faults matters.
    let key = |line: &Value| match line[1].as_str() {
        Some(field) if ordered && field != "<nil>" => field.to_owned(),
        _ => line.to_string(),
    };
    found.sort_by_key(key);
    wanted.sort_by_key(key);
    (found != wanted).then(|| {
        if found.len() == wanted.len() && found.iter().all(|line| wanted.contains(line)) {
            return format!("{what}: the order of {found:?}\n wanted {wanted:?}");
        }
        let lines = |list: &[Value], but: &[Value]| {
            list.iter()
                .filter(|line| !but.contains(line))
                .map(|line| format!("\n    {line}"))
                .collect::<String>()
        };
        format!("{what}\n too much:{}\n missing:{}", lines(&found, &wanted), lines(&wanted, &found))
    })
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
    let ordered = case["ordered"] == true;
    let names = |path: &str| path.split('.').map(Box::from).collect();
    let scale = recorded.name.starts_with("scaled").then(|| Scaled {
        wanted: names("spec.replicas"),
        counted: names("status.replicas"),
        selector: Some(names("status.selector")),
    });
    let create = judge_after(&recorded.kind_schema, &object, None, Vec::new(), scale.as_ref());
    if let Some(difference) = compared("create", shown(&create.causes), &case["create"], ordered) {
        return Some(difference);
    }
    if case["old"].is_null() {
        return None;
    }
    let Ok((mut old, _)) = decoded(schema, &case["old"]) else { return Some("the old one".into()) };
    default(schema, &mut old);
    complete(&mut old);
    let update = judge_after(&recorded.kind_schema, &object, Some(&old), Vec::new(), scale.as_ref());
    let mut mixed = old.clone();
    match object.get("status") {
        Some(status) => mixed["status"] = status.clone(),
        None => _ = mixed.as_object_mut().unwrap().remove("status"),
    }
    let status = judge_status_after(&recorded.kind_schema, &mixed, &old, Vec::new(), scale.as_ref());
    let texts = |warnings: &[String]| warnings.iter().map(|text| json!(text)).collect();
    compared("update", shown(&update.causes), &case["update"], ordered)
        .or_else(|| compared("warnings", texts(&update.warnings), &case["warnings"], ordered))
        .or_else(|| compared("status", shown(&status.causes), &case["status"], ordered))
        .or_else(|| compared("status-warnings", texts(&status.warnings), &case["status-warnings"], false))
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
fn rules_of_definitions_are_refused_as_upstream_refuses_them() {
    let mut n_rules = 0;
    for recorded in recorded() {
        if !recorded.line["refused"].is_null() {
            continue;
        }
        let found = check_rules(&recorded.kind_schema.schema, "base");
        let mut found = shown(&found);
        for cause in &mut found {
            let below = cause[1].as_str().unwrap().strip_prefix("base").unwrap().to_owned();
            cause[1] = below.into();
            let message = cause[2]
                .as_str()
                .unwrap()
                .replace("schema within base", "schema within spec.validation.openAPIV3Schema");
            cause[2] = message.into();
        }
        n_rules += found.len();
        if let Some(difference) = compared("rules", found, &recorded.line["rules"], false) {
            panic!("{}: {difference}", recorded.name);
        }
    }
    assert!(n_rules > 30, "{n_rules} rules are refused");
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
