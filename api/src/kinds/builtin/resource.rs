//! Node, scheduling, flow control and dynamic resources.

use super::kind;
use crate::table::Column;
use crate::table::cell::{NONE, bool_text, count, int, str_at, text, text_or};
use crate::{Kind, Object};

pub(super) fn kinds() -> Vec<Kind> {
    let flow = |name: &str, plural: &str| kind("flowcontrol.apiserver.k8s.io", "v1", name, plural).cluster();
    let resource = |name: &str, plural: &str| kind("resource.k8s.io", "v1", name, plural);
    vec![
        kind("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses").cluster().columns(vec![
            Column::name(),
            Column::new("Handler", "string", |o, _| text(o, "/handler")),
            Column::age(),
        ]),
        kind("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses").cluster().short(&["pc"]).columns(
            vec![
                Column::name(),
                Column::new("Value", "integer", |o, _| int(o, "/value")),
                Column::new("Global-Default", "boolean", |o, _| bool_text(o, "/globalDefault")),
                Column::age(),
                Column::new("PreemptionPolicy", "string", |o, _| text(o, "/preemptionPolicy")),
            ],
        ),
        flow("FlowSchema", "flowschemas").subresources(&["status"]).columns(vec![
            Column::name(),
            Column::new("PriorityLevel", "string", |o, _| {
                text_or(o, "/spec/priorityLevelConfiguration/name", NONE)
            }),
            Column::new("MatchingPrecedence", "string", |o, _| int(o, "/spec/matchingPrecedence")),
            Column::new("DistinguisherMethod", "string", |o, _| {
                text_or(o, "/spec/distinguisherMethod/type", NONE)
            }),
            Column::age(),
        ]),
        flow("PriorityLevelConfiguration", "prioritylevelconfigurations").subresources(&["status"]).columns(
            vec![
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
            ],
        ),
        resource("DeviceClass", "deviceclasses").cluster(),
        resource("ResourceClaim", "resourceclaims").subresources(&["status"]).columns(vec![
            Column::name(),
            Column::new("State", "string", |o, _| claim_state(o).into()),
            Column::age(),
        ]),
        resource("ResourceClaimTemplate", "resourceclaimtemplates"),
        resource("ResourceSlice", "resourceslices")
            .cluster()
            .fields(&["spec.driver", "spec.nodeName"])
            .columns(vec![
                Column::name(),
                Column::new("Node", "string", |o, _| text_or(o, "/spec/nodeName", NONE)),
                Column::new("Driver", "string", |o, _| text(o, "/spec/driver")),
                Column::new("Pool", "string", |o, _| text(o, "/spec/pool/name")),
                Column::age(),
            ]),
    ]
}

fn limited(object: &Object, path: &str) -> serde_json::Value {
    object.pointer(path).map_or(NONE.into(), |v| v.to_string().into())
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
