//! `NodeRestriction`: a node changes itself and the pods bound to it, nothing else.
//!
//! Source: upstream's admission plugin of that name; CVE-2025-5187 and CVE-2025-4563 for owner references and
//! mirror pods.

use serde_json::Value;
use skiff_api::meta::Meta;
use skiff_api::{Object, Status};

use crate::api::{Api, Call, is_core};

const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
const RESTRICTED_LABEL_DOMAIN: &str = "node-restriction.kubernetes.io";

/// Labels of the `kubernetes.io` domains that a node may set on itself.
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const OWN_LABEL_DOMAINS: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];

fn forbid(call: &Call, why: &str) -> Status {
    Status::forbidden(&call.kind.group, &call.kind.plural, &call.info.name, why)
}

impl Api {
    pub(super) fn restrict_node_create(&self, call: &Call, object: &Object) -> Result<(), Status> {
        let Some(node) = call.user.node_name() else { return Ok(()) };
        if is_core(&call.kind, "Pod") {
            return match call.info.subresource.as_str() {
                "" => restrict_mirror(call, node, object),
                "eviction" => self.restrict_own_pod(call, node),
                other => Err(forbid(call, &format!("unexpected pod subresource {other:?}"))),
            };
        }
        if is_core(&call.kind, "Node") {
            if object.name() != node {
                return Err(forbid(
                    call,
                    &format!("node {node:?} is not allowed to modify node {:?}", object.name()),
                ));
            }
            return restrict_labels(call, node, object, &Value::Null);
        }
        if call.kind.kind == "Lease" && object.name() != node {
            return Err(forbid(call, "can only access node lease with the same name as the requesting node"));
        }
        Ok(())
    }

    pub(super) fn restrict_node_update(&self, call: &Call, new: &Object, old: &Object) -> Result<(), Status> {
        let Some(node) = call.user.node_name() else { return Ok(()) };
        if is_core(&call.kind, "Pod") {
            if call.info.subresource != "status" {
                return Err(forbid(call, "nodes may only update the status of pods"));
            }
            if old["spec"]["nodeName"] != node {
                let why = format!(
                    "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                );
                return Err(forbid(call, &why));
            }
            if new.meta()["labels"] != old.meta()["labels"] {
                return Err(forbid(call, &format!("node {node:?} cannot update labels through pod status")));
            }
        }
        if is_core(&call.kind, "Node") {
            if old.name() != node {
                return Err(forbid(
                    call,
                    &format!("node {node:?} is not allowed to modify node {:?}", old.name()),
                ));
            }
            if new["spec"]["taints"] != old["spec"]["taints"] {
                return Err(forbid(call, &format!("node {node:?} is not allowed to modify taints")));
            }
            if new.meta()["ownerReferences"] != old.meta()["ownerReferences"] {
                return Err(forbid(call, &format!("node {node:?} is not allowed to modify ownerReferences")));
            }
            restrict_labels(call, node, new, old)?;
        }
        Ok(())
    }

    pub(super) fn restrict_node_delete(&self, call: &Call, object: &Object) -> Result<(), Status> {
        let Some(node) = call.user.node_name() else { return Ok(()) };
        if is_core(&call.kind, "Pod") && object["spec"]["nodeName"] != node {
            let why = format!("node {node:?} can only delete pods with spec.nodeName set to itself");
            return Err(forbid(call, &why));
        }
        Ok(())
    }

    fn restrict_own_pod(&self, call: &Call, node: &str) -> Result<(), Status> {
        let pod = self.cached("pods", &call.key())?;
        if pod.is_some_and(|pod| pod.field("spec.nodeName") == node) {
            return Ok(());
        }
        Err(forbid(call, &format!("node {node:?} can only evict pods with spec.nodeName set to itself")))
    }
}

fn restrict_mirror(call: &Call, node: &str, pod: &Object) -> Result<(), Status> {
    if pod.meta()["annotations"][MIRROR_ANNOTATION].is_null() {
        let why = format!(
            "pod does not have {MIRROR_ANNOTATION:?} annotation, node {node:?} can only create mirror pods"
        );
        return Err(forbid(call, &why));
    }
    if pod["spec"]["nodeName"] != node {
        let why = format!("node {node:?} can only create pods with spec.nodeName set to itself");
        return Err(forbid(call, &why));
    }
    let mut owners = pod.meta()["ownerReferences"].as_array().into_iter().flatten();
    if owners.any(|o| o["kind"] != "Node" || o["name"] != node || o["controller"] != true) {
        return Err(forbid(call, "node may only set a controller reference to itself on mirror pods"));
    }
    if pod["spec"]["resourceClaims"].as_array().is_some_and(|claims| !claims.is_empty()) {
        return Err(forbid(call, "a mirror pod may not reference resource claims"));
    }
    Ok(())
}

fn restrict_labels(call: &Call, node: &str, new: &Object, old: &Object) -> Result<(), Status> {
    let labels = |object: &Object| object["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let (new, old) = (labels(new), labels(old));
    let changed = new.keys().chain(old.keys()).filter(|key| new.get(*key) != old.get(*key));
    let forbidden: Vec<&str> = changed.map(String::as_str).filter(|key| !is_own_label(key)).collect();
    if forbidden.is_empty() {
        return Ok(());
    }
    let why = format!("is not allowed to modify labels: {}", forbidden.join(", "));
    Err(forbid(call, &format!("node {node:?} {why}")))
}

/// Labels outside the Kubernetes domains are free.
fn is_own_label(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let within = |of: &str| domain == of || domain.ends_with(&format!(".{of}"));
    if within(RESTRICTED_LABEL_DOMAIN) {
        return false;
    }
    let kubernetes = within("kubernetes.io") || within("k8s.io");
    !kubernetes || OWN_LABELS.contains(&key) || OWN_LABEL_DOMAINS.iter().any(|of| within(of))
}

#[cfg(test)]
mod tests {
    use super::is_own_label;

    #[test]
    fn a_node_labels_itself_only_with_what_it_may() {
        for own in [
            "kubernetes.io/hostname",
            "example.com/x",
            "plain",
            "node.kubernetes.io/x",
            "a.kubelet.kubernetes.io/x",
        ] {
            assert!(is_own_label(own), "{own}");
        }
        for other in
            ["node-restriction.kubernetes.io/x", "node-role.kubernetes.io/control-plane", "x.k8s.io/y"]
        {
            assert!(!is_own_label(other), "{other}");
        }
    }
}
