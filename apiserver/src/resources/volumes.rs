//! Persistent volumes say since when they are in their phase.

use serde_json::Value;
use skiff_api::Object;

use super::hooks::Hooks;
use crate::call::Part;
use crate::clock::now;

pub(super) struct Volumes;

impl Hooks for Volumes {
    fn prepare_update(&self, part: Part, new: &mut Object, old: &Object) {
        if part == Part::Status && new["status"].is_object() {
            tell_phase_time(&mut new["status"], &old["status"]);
        }
    }
}

/// Since when a volume is in its phase, unless who writes it knows better.
fn tell_phase_time(status: &mut Value, old: &Value) {
    const SINCE: &str = "lastPhaseTransitionTime";
    let (given, before) = (status[SINCE].take(), old[SINCE].clone());
    let has_changed = status["phase"] != old["phase"];
    let since = match given {
        given if has_changed && (given.is_null() || given == before) => now(),
        Value::Null => before,
        given => given,
    };
    match (since, status.as_object_mut()) {
        (Value::Null, Some(status)) => _ = status.remove(SINCE),
        (since, Some(status)) => _ = status.insert(SINCE.into(), since),
        _ => {}
    }
}
