//! Node, scheduling, flow control and dynamic resources.

use super::kind;
use crate::strategy::Strategy;
use crate::table::Column;
use crate::table::cell::{NONE, bool, condition, count, int, since_text, str_at, text, text_or};
use crate::{Cause, Kind, Object};

pub(super) fn kinds() -> Vec<Kind> {
    let flow = |name: &str, plural: &str| kind("flowcontrol.apiserver.k8s.io", "v1", name, plural).cluster();
    let resource = |name: &str, plural: &str| kind("resource.k8s.io", "v1", name, plural);
    vec![
        kind("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses").cluster().columns(vec![
            Column::name(),
            Column::new("Handler", "string", |o, _| text(o, "/handler")),
            Column::age(),
        ]),
        kind("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses")
            .cluster()
            .short(&["pc"])
            .strategy(&PriorityClasses)
            .columns(vec![
                Column::name(),
                Column::new("Value", "integer", |o, _| int(o, "/value")),
                Column::new("Global-Default", "boolean", |o, _| bool(o, "/globalDefault")),
                Column::age(),
                Column::new("PreemptionPolicy", "string", |o, _| text(o, "/preemptionPolicy")),
            ]),
        flow("FlowSchema", "flowschemas").subresources(&["status"]).strategy(&FlowSchemas).columns(vec![
            Column::name(),
            Column::new("PriorityLevel", "string", |o, _| {
                text_or(o, "/spec/priorityLevelConfiguration/name", NONE)
            }),
            Column::new("MatchingPrecedence", "string", |o, _| int(o, "/spec/matchingPrecedence")),
            Column::new("DistinguisherMethod", "string", |o, _| {
                text_or(o, "/spec/distinguisherMethod/type", NONE)
            }),
            Column::age(),
            Column::new("MissingPL", "string", |o, _| {
                condition(o, "Dangling").map_or("?".into(), |dangling| text(dangling, "/status"))
            }),
        ]),
        flow("PriorityLevelConfiguration", "prioritylevelconfigurations")
            .subresources(&["status"])
            .strategy(&PriorityLevels)
            .columns(vec![
                Column::name(),
                Column::new("Type", "string", |o, _| text(o, "/spec/type")),
                Column::new("NominalConcurrencyShares", "string", |o, _| {
                    limited(o, "/spec/limited/nominalConcurrencyShares")
                }),
                Column::new("Queues", "string", |o, _| {
                    limited(o, "/spec/limited/limitResponse/queuing/queues")
                }),
                Column::new("HandSize", "string", |o, _| {
                    limited(o, "/spec/limited/limitResponse/queuing/handSize")
                }),
                Column::new("QueueLengthLimit", "string", |o, _| {
                    limited(o, "/spec/limited/limitResponse/queuing/queueLengthLimit")
                }),
                Column::age(),
            ]),
        resource("DeviceClass", "deviceclasses").cluster(),
        resource("DeviceTaintRule", "devicetaintrules")
            .cluster()
            .subresources(&["status"])
            .strategy(&TaintRules)
            .columns(vec![
                Column::name(),
                Column::new("Key", "string", |o, _| text(o, "/spec/taint/key")),
                Column::new("Value", "string", |o, _| text(o, "/spec/taint/value")),
                Column::new("Effect", "string", |o, _| text(o, "/spec/taint/effect")),
                Column::new("TimeAdded", "string", |o, now| match str_at(o, "/spec/taint/timeAdded") {
                    "" => "".into(),
                    time => since_text(time, now).into(),
                }),
                Column::age(),
            ]),
        resource("ResourceClaim", "resourceclaims").subresources(&["status"]).strategy(&Claims).columns(
            vec![Column::name(), Column::new("State", "string", |o, _| claim_state(o).into()), Column::age()],
        ),
        resource("ResourceClaimTemplate", "resourceclaimtemplates").strategy(&ClaimTemplates),
        resource("ResourceSlice", "resourceslices")
            .cluster()
            .fields(&["spec.driver", "spec.nodeName", "spec.pool.name"])
            .columns(vec![
                Column::name(),
                Column::new("Node", "string", |o, _| text_or(o, "/spec/nodeName", NONE)),
                Column::new("Driver", "string", |o, _| text(o, "/spec/driver")),
                Column::new("Pool", "string", |o, _| text(o, "/spec/pool/name")),
                Column::age(),
            ]),
    ]
}

fn set_if_zero(object: &mut serde_json::Value, field: &str, value: i64) {
    if object.is_object() && object[field].as_i64().unwrap_or(0) == 0 {
        object[field] = value.into();
    }
}

struct FlowSchemas;

impl Strategy for FlowSchemas {
    fn default(&self, object: &mut Object) {
        set_if_zero(&mut object["spec"], "matchingPrecedence", 1000);
    }
}

struct PriorityLevels;

impl Strategy for PriorityLevels {
    fn default(&self, object: &mut Object) {
        for (which, shares) in [("limited", 30), ("exempt", 0)] {
            let part = &mut object["spec"][which];
            if !part.is_object() {
                continue;
            }
            for (field, value) in [("nominalConcurrencyShares", shares), ("lendablePercent", 0)] {
                if part[field].is_null() {
                    part[field] = value.into();
                }
            }
        }
        if let Some(queuing) = object.pointer_mut("/spec/limited/limitResponse/queuing") {
            for (field, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                set_if_zero(queuing, field, value);
            }
        }
        prune(object, "limited");
        prune(object, "exempt");
    }
}

/// What was only looked at is not left behind.
fn prune(object: &mut Object, field: &str) {
    if let Some(spec) = object["spec"].as_object_mut()
        && spec.get(field).is_some_and(serde_json::Value::is_null)
    {
        spec.remove(field);
    }
}

/// A request says how many devices it wants: one, if it says nothing.
fn default_requests(devices: &mut serde_json::Value) {
    let default = |request: &mut serde_json::Value| {
        if !request.is_object() {
            return;
        }
        if str_at(request, "/allocationMode").is_empty() {
            request["allocationMode"] = "ExactCount".into();
        }
        if request["allocationMode"] == "ExactCount" {
            set_if_zero(request, "count", 1);
        }
    };
    for request in devices["requests"].as_array_mut().into_iter().flatten() {
        if let Some(exactly) = request.get_mut("exactly") {
            default(exactly);
        }
        request
            .get_mut("firstAvailable")
            .and_then(serde_json::Value::as_array_mut)
            .into_iter()
            .flatten()
            .for_each(default);
    }
}

struct TaintRules;

impl Strategy for TaintRules {
    /// Tolerations of a taint may be for a while, which begins when the taint came.
    fn prepare_create(&self, object: &mut Object) {
        let created = object["metadata"]["creationTimestamp"].clone();
        if let Some(taint) = object.pointer_mut("/spec/taint").filter(|taint| taint["timeAdded"].is_null()) {
            taint["timeAdded"] = created;
        }
    }
}

struct Claims;

impl Strategy for Claims {
    fn default(&self, object: &mut Object) {
        if let Some(devices) = object.pointer_mut("/spec/devices") {
            default_requests(devices);
        }
    }
}

struct ClaimTemplates;

impl Strategy for ClaimTemplates {
    fn default(&self, object: &mut Object) {
        if let Some(devices) = object.pointer_mut("/spec/spec/devices") {
            default_requests(devices);
        }
    }
}

fn limited(object: &Object, path: &str) -> serde_json::Value {
    object.pointer(path).cloned().unwrap_or_else(|| NONE.into())
}

fn claim_state(claim: &Object) -> String {
    let mut states = Vec::new();
    if !str_at(claim, "/metadata/deletionTimestamp").is_empty() {
        states.push("deleted");
    }
    if claim["status"]["allocation"].is_null() {
        if states.is_empty() {
            states.push("pending");
        }
    } else {
        states.push("allocated");
        states.push(if count(claim, "/status/reservedFor") > 0 { "reserved" } else { "" });
    }
    states.retain(|s| !s.is_empty());
    states.join(",")
}

const SYSTEM_PREFIX: &str = "system-";
const SYSTEM_CLASSES: [(&str, i64); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
const HIGHEST_OF_USERS: i64 = 1_000_000_000;

/// What a priority is worth stays, for pods have it by value.
struct PriorityClasses;

impl Strategy for PriorityClasses {
    fn validate_create(&self, object: &Object) -> Vec<Cause> {
        let (name, value) = (str_at(object, "/metadata/name"), object["value"].as_i64().unwrap_or(0));
        if !name.starts_with(SYSTEM_PREFIX) {
            let why = format!("maximum allowed value of a user defined priority is {HIGHEST_OF_USERS}");
            return (value > HIGHEST_OF_USERS).then(|| Cause::forbidden("value", &why)).into_iter().collect();
        }
        let known = SYSTEM_CLASSES.iter().find(|(of, _)| *of == name);
        let error = match known {
            None => format!("{name} is not a known system priority class"),
            Some((_, wanted)) if *wanted != value => {
                format!("value of {name} PriorityClass must be {wanted}")
            }
            Some(_) if object["globalDefault"] == true => {
                format!("globalDefault of {name} PriorityClass must be false")
            }
            Some(_) => return Vec::new(),
        };
        let why = format!(
            "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {error}"
        );
        vec![Cause::forbidden("metadata.name", &why)]
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let mut causes = Vec::new();
        if new["value"] != old["value"] {
            causes.push(Cause::forbidden("value", "may not be changed in an update."));
        }
        if new["preemptionPolicy"] != old["preemptionPolicy"] {
            let value = &new["preemptionPolicy"];
            causes.push(Cause::invalid("preemptionPolicy", value, "field is immutable"));
        }
        causes
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_priority_keeps_its_worth_and_the_highest_are_the_systems() {
        let class = |name: &str, value: i64| json!({"metadata": {"name": name}, "value": value});
        let faults = |class| PriorityClasses.validate_create(&class).len();
        assert_eq!(faults(class("high", HIGHEST_OF_USERS)), 0);
        assert_eq!(faults(class("higher", HIGHEST_OF_USERS + 1)), 1);
        assert_eq!(faults(class("system-mine", 1)), 1);
        assert_eq!(faults(class("system-node-critical", 2_000_001_000)), 0);
        assert_eq!(faults(class("system-node-critical", 1)), 1);
        let changed = PriorityClasses.validate_update(&class("high", 2), &class("high", 1));
        assert_eq!(changed[0].message, "Forbidden: may not be changed in an update.");
        assert!(PriorityClasses.validate_update(&class("high", 1), &class("high", 1)).is_empty());
    }
}
