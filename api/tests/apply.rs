//! Server-side apply against histories that upstream's own field manager wrote: `apply.jsonl.gz` holds, for several kinds and
//! managers, what was done to an object step by step and what came of it. `cargo xtask codegen` makes it anew.

use std::io::Read;

use flate2::read::GzDecoder;
use serde_json::{Value, json};
use skiff_api::apply::{FieldManager, Force, OneVersion};
use skiff_api::decode::{FieldValidation, Format, decode};
use skiff_api::kinds::kinds_of;
use skiff_api::meta::Meta;
use skiff_api::{Kind, Kinds, Object, Status, default};

fn steps(packed: &[u8]) -> Vec<Value> {
    let mut text = String::new();
    GzDecoder::new(packed).read_to_string(&mut text).expect("a gzipped file");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn kind_of<'k>(kinds: &'k Kinds, step: &Value) -> &'k Kind {
    let name = step["kind"].as_str().expect("a kind");
    kinds.by_kind(if name == "Deployment" { "apps" } else { "" }, "v1", name).expect("a known kind")
}

/// What a step makes of an object, as it is answered.
fn take(kind: &Kind, live: Option<&Object>, step: &Value) -> Result<Object, Status> {
    let text = |field: &str| step[field].as_str().unwrap_or_default();
    let manager = FieldManager::new(kind, text("subresource"), &OneVersion);
    let mut object = if text("operation") == "apply" {
        let force = if step["force"] == true { Force::Yes } else { Force::No };
        manager.apply(live, &step["document"], text("manager"), force, text("now"))?
    } else {
        let body = step["document"].to_string();
        let mut object = decode(kind, body.as_bytes(), Format::Json, FieldValidation::Ignore)?.object;
        default::apply(kind, &mut object);
        manager.update(live, &mut object, text("manager"), text("now"));
        object
    };
    if object.uid().is_empty() {
        object.set_meta("uid", "11111111-1111-4111-8111-111111111111");
    }
    kind.write(&mut object);
    Ok(object)
}

/// A failure as the recorder tells it.
fn told(status: &Status) -> Value {
    let mut causes: Vec<[String; 3]> = status
        .details
        .iter()
        .flat_map(|details| &details.causes)
        .map(|cause| [cause.reason.to_owned(), cause.field.clone(), cause.message.clone()])
        .collect();
    causes.sort();
    json!({"code": status.code, "reason": status.reason, "message": status.message, "causes": causes})
}

/// Without nulls, and without what is empty and means the same.
fn pruned(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            map.iter().filter(|(_, v)| !v.is_null()).map(|(name, v)| (name.clone(), pruned(v))).collect()
        }
        Value::Array(items) => items.iter().map(pruned).collect(),
        other => other.clone(),
    }
}

/// What was played, and what came of it otherwise than upstream.
#[derive(Default)]
struct Played {
    n_steps: usize,
    n_conflicts: usize,
    n_failures: usize,
    wrong: Vec<String>,
}

fn play<'k>(steps: &[Value], kind_of: impl Fn(&Value) -> &'k Kind) -> Played {
    let mut live: Option<Object> = None;
    let mut played = Played::default();
    for (line, step) in steps.iter().enumerate() {
        if step["first"] == true {
            live = None;
        }
        played.n_steps += 1;
        let made = take(kind_of(step), live.as_ref(), step);
        let mut differs = |ours: &dyn std::fmt::Display| {
            played.wrong.push(format!("line {}: {step}\n   ours: {ours}", line + 1));
        };
        match (&made, step.get("error")) {
            (Ok(object), None) => {
                if pruned(object) != pruned(&step["object"]) {
                    differs(object);
                }
            }
            (Err(status), Some(error)) => {
                played.n_failures += 1;
                played.n_conflicts += usize::from(status.code == 409);
                if told(status) != *error {
                    differs(&told(status));
                }
            }
            (Ok(object), Some(_)) => differs(object),
            (Err(status), None) => differs(status),
        }
        if step.get("error").is_none() {
            // Each step by itself: what an earlier one got wrong is told once.
            live = Some(step["object"].clone());
        }
    }
    played
}

#[test]
fn every_step_of_every_history_makes_what_upstream_makes_of_it() {
    let kinds = Kinds::builtin();
    let played = play(&steps(include_bytes!("apply.jsonl.gz")), |step| kind_of(&kinds, step));
    let Played { n_steps, n_conflicts, n_failures, wrong } = played;
    assert!(
        wrong.is_empty(),
        "{} of {n_steps} steps:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(5)].join("\n")
    );
    assert!(
        n_steps > 1000 && n_conflicts > 100 && n_failures > n_conflicts,
        "{n_steps} {n_conflicts} {n_failures}"
    );
}

#[test]
fn custom_resources_are_owned_as_their_definitions_say() {
    let steps = steps(include_bytes!("owned.jsonl.gz"));
    let mut definition = steps[0]["definition"].clone();
    definition["status"]["acceptedNames"] = definition["spec"]["names"].clone();
    let kinds = kinds_of(&definition).expect("a sound definition");
    let Played { n_steps, n_conflicts, n_failures, wrong } = play(&steps[1..], |_| &kinds[0]);
    assert!(
        wrong.is_empty(),
        "{} of {n_steps} steps:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(5)].join("\n")
    );
    assert!(
        n_steps > 1000 && n_conflicts > 100 && n_failures > n_conflicts,
        "{n_steps} {n_conflicts} {n_failures}"
    );
}
