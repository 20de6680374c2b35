//! DeviceTaintRules: since when there is a taint.
//!
//! Source: upstream's strategy and defaults of the kind.

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::Object;

use super::hooks::Hooks;
use crate::call::Part;
use crate::clock::now;

pub(super) struct TaintRules;

impl Hooks for TaintRules {
    /// Tolerations are for a while that begins when the taint came, and another effect is another taint. Who sets the time keeps it.
    fn prepare_update(&self, part: Part, new: &mut Object, old: &Object) {
        if part != Part::Main {
            return;
        }
        let before = &old["spec"]["taint"];
        let Some(taint) = new.pointer_mut("/spec/taint").filter(|taint| taint.is_object()) else { return };
        let has_changed = taint["effect"] != before["effect"];
        if taint["timeAdded"].is_null()
            || has_changed && is_same_time(&taint["timeAdded"], &before["timeAdded"])
        {
            taint["timeAdded"] = now();
        }
    }
}

fn is_same_time(a: &Value, b: &Value) -> bool {
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    a == b || time(a).is_some_and(|at| Some(at) == time(b))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const BEFORE: &str = "2026-01-01T00:00:00Z";

    fn updated(effect: &str, time: Value) -> Value {
        let rule = |effect: &str, time: Value| json!({"spec": {"taint": {"key": "k", "effect": effect, "timeAdded": time}}});
        let mut new = rule(effect, time);
        TaintRules.prepare_update(Part::Main, &mut new, &rule("NoSchedule", BEFORE.into()));
        new["spec"]["taint"]["timeAdded"].take()
    }

    #[test]
    fn a_taint_with_another_effect_is_there_since_now() {
        assert_eq!(updated("NoSchedule", BEFORE.into()), BEFORE);
        let is_now = |time: Value| {
            let at: Timestamp = time.as_str().expect("a time").parse().expect("a time");
            Timestamp::now().as_second() - at.as_second() < 60
        };
        assert!(is_now(updated("NoExecute", BEFORE.into())));
        assert!(is_now(updated("NoExecute", "2026-01-01T01:00:00+01:00".into())), "the same in other words");
        assert!(is_now(updated("NoSchedule", Value::Null)), "none is as on creation");
        let own = "2026-02-01T00:00:00Z";
        assert_eq!(updated("NoExecute", own.into()), own, "who sets it keeps it");
    }
}
