//! CustomResourceDefinitions against upstream's own strategy: `definitions.jsonl.gz` holds what it made of many of them, by hand and
//! changed at random. `xtask/definitions` makes it anew.

use std::collections::BTreeMap;
use std::io::Read;

use flate2::read::GzDecoder;
use serde_json::{Value, json};
use skiff_api::decode::{FieldValidation, Format, decode};
use skiff_api::{Kind, Kinds, Object, default};

fn lines() -> Vec<Value> {
    let mut text = String::new();
    let packed: &[u8] = include_bytes!("definitions.jsonl.gz");
    GzDecoder::new(packed).read_to_string(&mut text).expect("a gzipped file");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Sets what is at a JSON pointer, or takes it away; what is not there on the way becomes an object, and a list grows by one.
fn edit(document: &mut Value, edit: &Value) {
    let pointer = edit["at"].as_str().expect("a pointer");
    let steps: Vec<String> =
        pointer[1..].split('/').map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
    let (last, before) = steps.split_last().expect("a step");
    let mut at = document;
    for step in before {
        at = below(at, step);
    }
    if edit["gone"] == true {
        match at {
            Value::Array(items) => {
                let index: usize = last.parse().expect("an index");
                if index < items.len() {
                    items.remove(index);
                }
            }
            Value::Object(map) => _ = map.remove(last),
            _ => {}
        }
        return;
    }
    *below(at, last) = edit["value"].clone();
}

fn below<'v>(at: &'v mut Value, step: &str) -> &'v mut Value {
    if let Value::Array(items) = at {
        let index: usize = step.parse().expect("an index");
        if index == items.len() {
            items.push(Value::Null);
        }
        return &mut items[index];
    }
    &mut at[step]
}

struct Case<'c> {
    kind: &'c Kind,
    base: &'c Value,
    told: &'c Value,
}

/// What is made of a definition: the object, the faults and the warnings.
struct Made {
    object: Object,
    causes: Vec<String>,
    warnings: Vec<String>,
}

impl Case<'_> {
    fn document(&self, edits: &str) -> Result<Object, String> {
        let mut document = self.base.clone();
        self.told[edits].as_array().into_iter().flatten().for_each(|one| edit(&mut document, one));
        let body = document.to_string();
        let decoded = decode(self.kind, body.as_bytes(), Format::Json, FieldValidation::Ignore);
        let mut object = decoded.map_err(|status| status.message)?.object;
        default::apply(self.kind, &mut object);
        Ok(object)
    }

    fn make(&self) -> Result<Made, String> {
        let strategy = self.kind.strategy;
        let mut object = self.document("edits")?;
        let (causes, warnings) = if self.told["op"] == "create" {
            strategy.prepare_create(&mut object);
            (strategy.validate_create(&object), self.kind.warnings(&object, None))
        } else {
            let mut old = self.document("before")?;
            strategy.prepare_create(&mut old);
            if self.told["established"] == true {
                old["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
            }
            if self.told["op"] == "update" {
                strategy.prepare_update(&mut object, &old);
                (strategy.validate_update(&object, &old), self.kind.warnings(&object, Some(&old)))
            } else {
                object["spec"] = old["spec"].clone();
                (strategy.validate_status_update(&object, &old), Vec::new())
            }
        };
        let causes = causes.into_iter().map(|cause| format!("{}|{}", cause.field, cause.message)).collect();
        Ok(Made { object, causes, warnings })
    }
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(Into::into)).collect()
}

/// Without what is empty.
fn said(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().map(|(name, value)| (name.clone(), said(value)));
            let is_said = |value: &Value| {
                !(value.is_null() || *value == "" || *value == json!({}) || *value == json!([]))
            };
            kept.filter(|(_, value)| is_said(value)).collect()
        }
        Value::Array(items) => items.iter().map(said).collect(),
        Value::Null => json!({}),
        other => other.clone(),
    }
}

/// Where a fault is told otherwise, or only by upstream: the base, and where it is changed.
const OTHERWISE: [(&str, &str, &str); 9] = [
    // Rules in the metadata of embedded objects: what these restrict is kept without types.
    (
        "nested",
        "child/properties/metadata/properties/labels/additionalProperties/x-kubernetes-validations",
        "",
    ),
    // Schemas of one type that say what another has: the parts of that are not looked into.
    ("rules", "spec/properties/tags/type", "object"),
    ("rules", "spec/properties/items/type", "object"),
    ("rules", "spec/properties/items/x-kubernetes-int-or-string", ""),
    ("rules", "spec/properties/tags/x-kubernetes-int-or-string", ""),
    ("rules", "spec/additionalProperties", ""),
    // Types that there are not: refused, but what is in them or their defaults is told otherwise.
    ("rules", "spec/type", "any"),
    ("versions", "spec/properties/replicas/type", "null"),
    // No rule is asked about a default that has the wrong type.
    ("rules", "spec/properties/amount/default", ""),
];

fn is_otherwise(told: &Value) -> bool {
    let edits = told["edits"].as_array();
    OTHERWISE.iter().any(|(base, at, value)| {
        let is_it = |edit: &Value| {
            edit["at"].as_str().is_some_and(|place| place.ends_with(at))
                && (value.is_empty() || edit["value"] == *value)
        };
        told["from"] == *base && edits.is_some_and(|edits| edits.iter().any(is_it))
    })
}

const STRICTER: &str = "stricter";

/// On purpose: upstream takes any default for `x-kubernetes-int-or-string`, which no object could then be created with; and it looks
/// for unknown fields in lists where the type says that there is none.
fn is_stricter(causes: &[String], wanted: &[String]) -> bool {
    let more: Vec<_> = causes.iter().filter(|cause| !wanted.contains(cause)).collect();
    let is_known = |cause: &String| {
        cause.contains(".default")
            && (cause.contains("must be of type integer,string:")
                || cause.ends_with("]: must not have unknown fields"))
    };
    !more.is_empty() && wanted.iter().all(|cause| causes.contains(cause)) && more.into_iter().all(is_known)
}

/// How what we make differs from what upstream made, none if it does not.
fn difference(case: &Case<'_>) -> Option<String> {
    let told = case.told;
    let made = match case.make() {
        Ok(made) => made,
        Err(why) => return Some(format!("not decoded: {why}")),
    };
    let mut wanted: Vec<String> = texts(&told["causes"])
        .iter()
        .map(|cause| cause.split_once('|').map_or(&**cause, |(_, rest)| rest).to_owned())
        .collect();
    // That names do not change is a rule of all kinds.
    wanted.retain(|cause| !(cause.starts_with("metadata.name|") && cause.ends_with("field is immutable")));
    if wanted == ["panic"] {
        return made.causes.is_empty().then(|| "upstream fails, we see nothing".into());
    }
    let mut causes = made.causes;
    if told["ordered"] != true {
        causes.sort();
        wanted.sort();
    }
    if causes != wanted {
        if is_stricter(&causes, &wanted) {
            return Some(STRICTER.into());
        }
        let missing: Vec<_> = wanted.iter().filter(|cause| !causes.contains(cause)).collect();
        let more: Vec<_> = causes.iter().filter(|cause| !wanted.contains(cause)).collect();
        return Some(format!("missing {missing:#?}, more {more:#?}"));
    }
    let mut warnings = made.warnings;
    warnings.sort();
    if warnings != texts(&told["warnings"]) {
        return Some(format!("warnings {warnings:?} for {}", told["warnings"]));
    }
    let spec = &made.object["spec"];
    let parts = [
        ("names", &spec["names"]),
        ("conversion", &spec["conversion"]),
        ("generation", &made.object["metadata"]["generation"]),
    ];
    for (name, value) in parts {
        if told["op"] != "create" && name == "generation" {
            continue;
        }
        if said(value) != said(&told[name]) {
            return Some(format!("{name}: {value} for {}", told[name]));
        }
    }
    if said(&made.object["status"]) != said(&told["status"]) {
        return Some(format!("status: {} for {}", made.object["status"], told["status"]));
    }
    None
}

#[test]
fn definitions_are_refused_and_kept_as_upstream_does() {
    let kinds = Kinds::builtin();
    let kind = kinds.by_kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition").expect("a known kind");
    let lines = lines();
    let bases: BTreeMap<&str, &Value> =
        lines.iter().filter_map(|line| Some((line["base"].as_str()?, &line["document"]))).collect();
    let cases = lines.iter().filter(|line| line["base"].is_null());
    let (mut different, mut all, mut n_otherwise) = (Vec::new(), 0, 0);
    for told in cases {
        all += 1;
        let base = bases[told["from"].as_str().expect("a base")];
        if let Some(how) = difference(&Case { kind, base, told }) {
            if is_otherwise(told) {
                n_otherwise += 1;
                continue;
            }
            let shown = json!({"from": told["from"], "op": told["op"], "before": told["before"], "edits": told["edits"]});
            different.push(format!("{shown}\n{how}"));
        }
    }
    assert!(all > 5000, "{all} cases");
    let n_different = different.len();
    different.retain(|how| !how.ends_with(STRICTER));
    let show = std::env::var("SHOW").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let shown = different.iter().take(show).cloned().collect::<Vec<_>>().join("\n\n");
    assert!(different.is_empty(), "{} of {all} cases differ:\n{shown}", different.len());
    assert_eq!(n_otherwise, OTHERWISE.len(), "as many are told otherwise");
    assert_eq!(n_different, 5, "as many are stricter on purpose");
}
