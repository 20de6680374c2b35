//! Nodes.

use serde_json::{Value, json};

use super::kind as declare;
use crate::strategy::Strategy;
use crate::table::Column;
use crate::table::cell::{NONE, condition, items_at, str_at, text, text_or};
use crate::{Cause, Kind, Object};

pub(super) fn kind() -> Kind {
    let info = |name, cell| Column::new(name, "string", cell).wide();
    declare("", "v1", "Node", "nodes")
        .cluster()
        .short(&["no"])
        .folder("minions")
        .subresources(&["proxy", "status"])
        .fields(&["spec.unschedulable"])
        .strategy(&Nodes)
        .columns(vec![
            Column::name(),
            Column::new("Status", "string", |o, _| status(o)),
            Column::new("Roles", "string", |o, _| roles(o)),
            Column::age(),
            Column::new("Version", "string", |o, _| text(o, "/status/nodeInfo/kubeletVersion")),
            info("Internal-IP", |o, _| address(o, "InternalIP")),
            info("External-IP", |o, _| address(o, "ExternalIP")),
            info("OS-Image", |o, _| text_or(o, "/status/nodeInfo/osImage", UNKNOWN)),
            info("Kernel-Version", |o, _| text_or(o, "/status/nodeInfo/kernelVersion", UNKNOWN)),
            info("Container-Runtime", |o, _| text_or(o, "/status/nodeInfo/containerRuntimeVersion", UNKNOWN)),
        ])
}

const UNKNOWN: &str = "<unknown>";

fn status(node: &Object) -> Value {
    let mut parts = vec![match condition(node, "Ready").map(|c| str_at(c, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if node["spec"]["unschedulable"] == true {
        parts.push("SchedulingDisabled");
    }
    parts.join(",").into()
}

/// From the labels `node-role.kubernetes.io/<role>` and `kubernetes.io/role=<role>`.
fn roles(node: &Object) -> Value {
    let mut roles: Vec<&str> = node["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None => (key == "kubernetes.io/role").then(|| value.as_str().unwrap_or_default()),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { NONE.into() } else { roles.join(",").into() }
}

fn address(node: &Object, type_: &str) -> Value {
    let found = items_at(node, "/status/addresses").iter().find(|a| a["type"] == type_);
    found.map_or(NONE, |a| str_at(a, "/address")).into()
}

struct Nodes;

impl Strategy for Nodes {
    /// Allocatable starts as capacity where a node gives none.
    fn default(&self, object: &mut Object) {
        if object["status"]["allocatable"].is_null() && object["status"]["capacity"].is_object() {
            object["status"]["allocatable"] = object["status"]["capacity"].clone();
        }
        // The old field and the first of the new ones say the same.
        let spec = &mut object["spec"];
        let first = str_at(spec, "/podCIDRs/0").to_owned();
        match str_at(spec, "/podCIDR").to_owned() {
            old if old.is_empty() && !first.is_empty() => spec["podCIDR"] = first.into(),
            old if !old.is_empty() && old != first => spec["podCIDRs"] = json!([old]),
            _ => {}
        }
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let mut causes = Vec::new();
        let [is, was] = [new, old].map(|node| &node["spec"]);
        if !was["podCIDRs"].is_null() && is["podCIDRs"] != was["podCIDRs"] {
            let why = "node updates may not change podCIDR except from \"\" to valid";
            causes.push(Cause::forbidden("spec.podCIDRs", why));
        }
        if !str_at(was, "/providerID").is_empty() && is["providerID"] != was["providerID"] {
            let done = if str_at(is, "/providerID").is_empty() { "cleared" } else { "modified" };
            let why = format!("field cannot be {done} once set");
            causes.push(Cause::invalid("spec.providerID", &Value::Null, &why));
        }
        causes
    }

    fn field(&self, object: &Object, field: &str) -> String {
        match field {
            "spec.unschedulable" => (object["spec"]["unschedulable"] == true).to_string(),
            other => str_at(object, &format!("/{}", other.replace('.', "/"))).to_owned(),
        }
    }
}
