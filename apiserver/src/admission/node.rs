//! `NodeRestriction`: a node changes itself and the pods bound to it, nothing else.
//!
//! Source: upstream's admission plugin of that name; CVE-2025-5187 and CVE-2025-4563 for owner references and
//! mirror pods.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;
use skiff_api::meta::Meta;
use skiff_api::{Object, Status};

use super::pod_certificate;
use crate::auth::authorize::Authorization;
use crate::call::{Call, is_core};
use crate::lister::Lister;

pub(super) const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// How long a node lives on one renewal of its lease, where that does not say.
const LEASE_S: i64 = 40;
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

pub(super) async fn restrict_create(
    lister: &Lister,
    authorizer: &Authorization,
    call: &Call,
    object: &Object,
) -> Result<(), Status> {
    let Some(node) = call.user.node_name() else { return Ok(()) };
    let kind = &call.kind;
    if pod_certificate::is_request(kind) {
        return pod_certificate::restrict(lister, authorizer, call, node, object).await;
    }
    if is_core(kind, "Pod") {
        return match call.info.subresource.as_str() {
            "" => restrict_mirror(lister, call, node, object),
            "eviction" => restrict_own_pod(lister, call, node),
            other => {
                let only = "only 'status' and 'eviction' are allowed";
                Err(forbid(call, &format!("unexpected pod subresource {other:?}, {only}")))
            }
        };
    }
    if is_core(kind, "Node") {
        restrict_registration(call, node, object)?;
        return restrict_addresses(lister, call, node, object, &Value::Null);
    }
    if is_core(kind, "PersistentVolumeClaim") {
        return Err(forbid(call, "may only update PVC status"));
    }
    let (own, why) = match (kind.group.as_str(), kind.kind.as_str()) {
        ("coordination.k8s.io", "Lease") => {
            (object.name() == node, "can only access node lease with the same name as the requesting node")
        }
        ("storage.k8s.io", "CSINode") => {
            (object.name() == node, "can only access CSINode with the same name as the requesting node")
        }
        ("resource.k8s.io", "ResourceSlice") => (
            object["spec"]["nodeName"] == node,
            "can only create ResourceSlice with the same NodeName as the requesting node",
        ),
        _ => (true, ""),
    };
    if own { Ok(()) } else { Err(forbid(call, why)) }
}

pub(super) fn restrict_update(
    lister: &Lister,
    call: &Call,
    new: &Object,
    old: &Object,
) -> Result<(), Status> {
    let Some(node) = call.user.node_name() else { return Ok(()) };
    if is_core(&call.kind, "Pod") {
        return restrict_pod_update(call, node, new, old);
    }
    if is_core(&call.kind, "Node") {
        restrict_own_node(call, node, new, old)?;
        return restrict_addresses(lister, call, node, new, old);
    }
    if is_core(&call.kind, "PersistentVolumeClaim") {
        return restrict_claim_update(call, node, new, old);
    }
    if pod_certificate::is_request(&call.kind) {
        return Err(forbid(call, "unexpected operation UPDATE"));
    }
    Ok(())
}

pub(super) fn restrict_delete(call: &Call, object: &Object) -> Result<(), Status> {
    let Some(node) = call.user.node_name() else { return Ok(()) };
    if is_core(&call.kind, "Pod") && call.info.subresource.is_empty() && object["spec"]["nodeName"] != node {
        let why = format!("node {node:?} can only delete pods with spec.nodeName set to itself");
        return Err(forbid(call, &why));
    }
    if call.kind.kind == "ResourceSlice" && object["spec"]["nodeName"] != node {
        let why = "can only delete ResourceSlice with the same NodeName as the requesting node";
        return Err(forbid(call, why));
    }
    if pod_certificate::is_request(&call.kind) {
        return Err(forbid(call, "unexpected operation DELETE"));
    }
    Ok(())
}

/// An address that another living node has as its own is not claimed by this one: who does could stand in for the other,
/// or keep it from renewing its certificate. One that a dead node had may be taken.
fn restrict_addresses(
    lister: &Lister,
    call: &Call,
    node: &str,
    new: &Object,
    old: &Object,
) -> Result<(), Status> {
    let before = addresses(old, &["InternalIP", "ExternalIP"]);
    let claimed: BTreeSet<IpAddr> =
        addresses(new, &["InternalIP", "ExternalIP"]).difference(&before).copied().collect();
    if claimed.is_empty() {
        return Ok(());
    }
    let (_, nodes) = lister.caches.of(&call.kind)?.snapshot()?;
    for entry in nodes.values().filter(|entry| entry.name() != node) {
        let other = entry.parse();
        let own = addresses(&other, &["InternalIP"]);
        if let Some(address) = claimed.intersection(&own).next()
            && is_alive(lister, entry.name())?
        {
            let why =
                format!("node {node:?} is not allowed to claim address {address} of node {:?}", entry.name());
            return Err(forbid(call, &why));
        }
    }
    Ok(())
}

/// Whether a node has renewed its lease within the lease's time.
fn is_alive(lister: &Lister, node: &str) -> Result<bool, Status> {
    let leases = lister.cache("coordination.k8s.io", "v1", "leases")?;
    let Some(lease) = leases.get(&format!("kube-node-lease/{node}"))? else { return Ok(false) };
    let lease = lease.parse();
    let renewed: Option<jiff::Timestamp> = lease["spec"]["renewTime"].as_str().and_then(|at| at.parse().ok());
    let lasts_s = lease["spec"]["leaseDurationSeconds"].as_i64().unwrap_or(LEASE_S);
    let now_s = jiff::Timestamp::now().as_second();
    Ok(renewed.is_some_and(|at| now_s.saturating_sub(at.as_second()) <= lasts_s))
}

fn restrict_own_pod(lister: &Lister, call: &Call, node: &str) -> Result<(), Status> {
    let pod = lister.cached("pods", &call.key())?.ok_or_else(|| call.not_found())?;
    if pod.field("spec.nodeName") == node {
        return Ok(());
    }
    Err(forbid(call, &format!("node {node} can only evict pods with spec.nodeName set to itself")))
}

/// A node makes only pods that say what it runs anyway, and that give it nothing.
fn restrict_mirror(lister: &Lister, call: &Call, node: &str, pod: &Object) -> Result<(), Status> {
    let refuse = |why: String| Err(forbid(call, &why));
    if pod.meta()["annotations"][MIRROR_ANNOTATION].is_null() {
        return refuse(format!(
            "pod does not have {MIRROR_ANNOTATION:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if pod["spec"]["nodeName"] != node {
        return refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owners = pod.meta()["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    let owner = match owners {
        [owner] => owner,
        [] => {
            return refuse(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            ));
        }
        _ => {
            return refuse(format!(
                "node {node:?} can only create pods with a single owner reference set to itself"
            ));
        }
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
        return refuse(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if owner["controller"] != true {
        return refuse(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        ));
    }
    if owner["blockOwnerDeletion"] == true {
        return refuse(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let own = lister.cached("nodes", node)?.ok_or_else(|| Status::not_found("", "nodes", node))?.parse();
    if owner["uid"] != own.uid() {
        let uid = owner["uid"].as_str().unwrap_or_default();
        return refuse(format!("node {node} UID mismatch: expected {uid} got {}", own.uid()));
    }
    match referenced(pod) {
        Some(what) => refuse(format!("node {node:?} can not create pods that reference {what}")),
        None => Ok(()),
    }
}

/// The addresses of some types that a node declares.
fn addresses(node: &Object, types: &[&str]) -> BTreeSet<IpAddr> {
    let all = node["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of_types = all.iter().filter(|address| address["type"].as_str().is_some_and(|t| types.contains(&t)));
    let parse = |text: &str| text.parse().ok().map(|ip: IpAddr| ip.to_canonical());
    of_types.filter_map(|address| parse(address["address"].as_str()?)).collect()
}

/// What of the API's objects a pod refers to, if anything.
fn referenced(pod: &Object) -> Option<&'static str> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let spec = &pod["spec"];
    if spec["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        return Some("serviceaccounts");
    }
    if !list(&spec["imagePullSecrets"]).is_empty() {
        return Some("secrets");
    }
    if !list(&spec["resourceClaims"]).is_empty() {
        return Some("resourceclaims");
    }
    let containers = ["containers", "initContainers", "ephemeralContainers"];
    for container in containers.into_iter().flat_map(|field| list(&spec[field])) {
        let sources = list(&container["envFrom"]).into_iter();
        let values = list(&container["env"]).into_iter().map(|mut env| env["valueFrom"].take());
        for source in sources.chain(values) {
            if source["secretRef"].is_object() || source["secretKeyRef"].is_object() {
                return Some("secrets");
            }
            if source["configMapRef"].is_object() || source["configMapKeyRef"].is_object() {
                return Some("configmaps");
            }
        }
    }
    list(&spec["volumes"]).iter().find_map(|volume| {
        let is = |field: &str| !volume[field].is_null();
        let harmless = ["name", "emptyDir", "hostPath", "downwardAPI", "image"];
        let other = volume.as_object()?.keys().any(|key| !harmless.contains(&key.as_str()));
        match () {
            () if is("secret") => Some("secrets"),
            () if is("configMap") => Some("configmaps"),
            () if is("persistentVolumeClaim") || is("ephemeral") => Some("persistentvolumeclaims"),
            () if is("projected") => Some("projected volumes"),
            () if is("csi") => Some("csidrivers"),
            () if other => Some("secrets through a volume"),
            () => None,
        }
    })
}

fn restrict_pod_update(call: &Call, node: &str, new: &Object, old: &Object) -> Result<(), Status> {
    let refuse = |why: String| Err(forbid(call, &why));
    if call.info.subresource != "status" {
        return refuse(format!(
            "unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"
        ));
    }
    if old["spec"]["nodeName"] != node {
        return refuse(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    if new.meta()["labels"] != old.meta()["labels"] {
        return refuse(format!("node {node:?} cannot update labels through pod status"));
    }
    // Who may make a pod of its own out of somebody else's, or the other way round, gets what neither would.
    let mirrored = |pod: &Object| pod.meta()["annotations"][MIRROR_ANNOTATION].clone();
    if mirrored(new) != mirrored(old) {
        return refuse(format!(
            "node {node:?} cannot update annotation {MIRROR_ANNOTATION:?} through pod status"
        ));
    }
    if new["status"]["resourceClaimStatuses"] != old["status"]["resourceClaimStatuses"] {
        return refuse(format!("node {node:?} cannot update resource claim statues"));
    }
    if new["status"]["extendedResourceClaimStatus"] != old["status"]["extendedResourceClaimStatus"] {
        return refuse(format!("node {node:?} cannot update extended resource claim status"));
    }
    Ok(())
}

fn restrict_registration(call: &Call, node: &str, new: &Object) -> Result<(), Status> {
    if new.name() != node {
        let why = format!("node {node:?} is not allowed to modify node {:?}", new.name());
        return Err(forbid(call, &why));
    }
    if !new["spec"]["configSource"].is_null() {
        let why = format!("node {node:?} is not allowed to create pods with a non-nil configSource");
        return Err(forbid(call, &why));
    }
    let forbidden = forbidden_labels(new, &Value::Null);
    if forbidden.is_empty() {
        return Ok(());
    }
    let why = format!("node {node:?} is not allowed to set the following labels: {}", forbidden.join(", "));
    Err(forbid(call, &why))
}

fn restrict_own_node(call: &Call, node: &str, new: &Object, old: &Object) -> Result<(), Status> {
    let refuse = |what: &str| Err(forbid(call, &format!("node {node:?} is not allowed to {what}")));
    if old.name() != node {
        return refuse(&format!("modify node {:?}", old.name()));
    }
    let source = &new["spec"]["configSource"];
    if !source.is_null() && *source != old["spec"]["configSource"] {
        return refuse("update configSource to a new non-nil configSource");
    }
    if new["spec"]["taints"] != old["spec"]["taints"] {
        return refuse("modify taints");
    }
    if new.meta()["ownerReferences"] != old.meta()["ownerReferences"] {
        return refuse("modify ownerReferences");
    }
    let forbidden = forbidden_labels(new, old);
    if forbidden.is_empty() {
        return Ok(());
    }
    Err(forbid(call, &format!("is not allowed to modify labels: {}", forbidden.join(", "))))
}

/// A node tells how large a claim's volume has become, and nothing else of it.
fn restrict_claim_update(call: &Call, node: &str, new: &Object, old: &Object) -> Result<(), Status> {
    if call.info.subresource != "status" {
        return Err(forbid(call, "may only update PVC status"));
    }
    let rest = |claim: &Object| {
        let mut claim = claim.clone();
        for field in ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"] {
            if let Some(status) = claim["status"].as_object_mut() {
                status.remove(field);
            }
        }
        claim.meta_mut().remove("resourceVersion");
        claim
    };
    if rest(new) == rest(old) {
        return Ok(());
    }
    let why = "is not allowed to update fields other than status.quantity and status.conditions";
    Err(forbid(call, &format!("node {node:?} {why}")))
}

/// The labels that a node may not add, remove or change, sorted, of those that differ.
fn forbidden_labels(new: &Object, old: &Object) -> Vec<String> {
    let labels = |object: &Object| object["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let (new, old) = (labels(new), labels(old));
    let changed = new.keys().chain(old.keys()).filter(|key| new.get(*key) != old.get(*key));
    let forbidden: BTreeSet<&String> = changed.filter(|key| !is_own_label(key)).collect();
    forbidden.into_iter().cloned().collect()
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
