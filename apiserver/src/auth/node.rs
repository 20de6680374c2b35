//! The node authorizer: a node reads what its pods need, and itself. What it may write of these objects is
//! narrowed further by admission (`admission/node.rs`), which sees the objects.
//!
//! Source: upstream's node authorizer with `AuthorizeNodeWithSelectors`. Where upstream keeps a graph, this looks
//! the pods of the node up in the cache.

use std::ops::Bound;
use std::sync::Arc;

use serde_json::Value;
use skiff_api::Object;

use super::authorize::{Attributes, ComponentAuthorizer, Decision};
use super::rules;
use crate::cache::{Entry, ResourceCache};

const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
const LEASES: &str = "kube-node-lease";

impl ComponentAuthorizer {
    pub(super) fn authorize_node(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        match (asked.group, asked.resource) {
            ("", "configmaps") if rules::NODE.iter().any(|rule| rule.covers(asked)) => {
                Decision::allow("the nodes' configuration")
            }
            ("", "secrets" | "configmaps") => self.read_namespaced(node, asked),
            ("", "persistentvolumeclaims") if asked.subresource == "status" => match asked.verb {
                "update" | "patch" => self.related(node, asked),
                _ => Decision::deny("can only get/update/patch this type"),
            },
            ("", "persistentvolumeclaims" | "persistentvolumes")
            | ("resource.k8s.io", "resourceclaims")
            | ("storage.k8s.io", "volumeattachments") => self.get_related(node, asked),
            ("", "serviceaccounts") => self.service_account(node, asked),
            ("coordination.k8s.io", "leases") => lease(node, asked),
            ("storage.k8s.io", "csinodes") => csi_node(node, asked),
            ("resource.k8s.io", "resourceslices") => self.resource_slice(node, asked),
            ("", "nodes") => own_node(node, asked),
            ("", "pods") => self.pod(node, asked),
            _ if rules::NODE.iter().any(|rule| rule.covers(asked)) => Decision::allow("node"),
            _ => Decision::deny(""),
        }
    }

    fn read_namespaced(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        if !matches!(asked.verb, "get" | "list" | "watch") {
            return Decision::deny("can only read resources of this type");
        }
        if !asked.subresource.is_empty() {
            return Decision::deny("cannot read subresource");
        }
        if asked.namespace.is_empty() {
            return Decision::deny("can only read namespaced object of this type");
        }
        self.related(node, asked)
    }

    fn get_related(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        if asked.verb != "get" {
            return Decision::deny("can only get individual resources of this type");
        }
        if !asked.subresource.is_empty() {
            return Decision::deny("cannot get subresource");
        }
        self.related(node, asked)
    }

    fn service_account(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        if asked.verb == "get" && asked.subresource.is_empty() {
            return self.read_namespaced(node, asked);
        }
        if asked.verb != "create" || asked.name.is_empty() {
            return Decision::deny("can only create tokens for individual service accounts");
        }
        if asked.subresource != "token" {
            return Decision::deny("can only create token subresource of serviceaccount");
        }
        self.related(node, asked)
    }

    fn resource_slice(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        if !asked.subresource.is_empty() {
            return Decision::deny("cannot authorize ResourceSlice subresources");
        }
        match asked.verb {
            // Admission sees which node it is of.
            "create" => Decision::allow("node"),
            "get" | "update" | "patch" | "delete" => self.related(node, asked),
            "watch" | "list" | "deletecollection" if selects(asked, "spec.nodeName", node) => {
                Decision::allow("node")
            }
            "watch" | "list" | "deletecollection" => Decision::deny(
                "can only list/watch/deletecollection resourceslices with nodeName field selector",
            ),
            _ => Decision::deny(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    fn pod(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        match (asked.subresource, asked.verb) {
            ("", "get") => self.get_related(node, asked),
            ("", "list" | "watch") if selects(asked, "spec.nodeName", node) => Decision::allow("node"),
            ("", "list" | "watch") if !asked.name.is_empty() => self.related(node, asked),
            ("", "list" | "watch") => {
                Decision::deny("can only list/watch pods with spec.nodeName field selector")
            }
            // Admission sees whether they are this node's.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                Decision::allow("node")
            }
            _ => Decision::deny(""),
        }
    }

    /// Whether one object has to do with the node.
    fn related(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        if asked.name.is_empty() {
            return Decision::deny("No Object name found");
        }
        if self.is_related(node, asked).unwrap_or(false) {
            return Decision::allow("related to the node");
        }
        Decision::deny(format!("no relationship found between node '{node}' and this object"))
    }

    fn is_related(&self, node: &str, asked: &Attributes<'_>) -> Option<bool> {
        let (namespace, name) = (asked.namespace, asked.name);
        Some(match asked.resource {
            "pods" => {
                let pod = self.cache("", "pods")?.get(&format!("{namespace}/{name}"))?;
                pod.field("spec.nodeName") == node
            }
            "persistentvolumes" => {
                let volume = self.cache("", "persistentvolumes")?.get(name)?.parse();
                let claim = &volume["spec"]["claimRef"];
                self.a_pod_refers(
                    node,
                    claim["namespace"].as_str()?,
                    "persistentvolumeclaims",
                    claim["name"].as_str()?,
                )?
            }
            "volumeattachments" => {
                self.cache("storage.k8s.io", "volumeattachments")?.get(name)?.parse()["spec"]["nodeName"]
                    == node
            }
            "resourceslices" => {
                self.cache("resource.k8s.io", "resourceslices")?.get(name)?.parse()["spec"]["nodeName"]
                    == node
            }
            resource => self.a_pod_refers(node, namespace, resource, name)?,
        })
    }

    /// Whether a pod on the node, in a namespace, refers to an object.
    fn a_pod_refers(&self, node: &str, namespace: &str, resource: &str, name: &str) -> Option<bool> {
        let (_, pods) = self.cache("", "pods")?.snapshot();
        let from = format!("{namespace}/");
        let here = pods
            .range::<_, str>((Bound::Included(from.as_str()), Bound::Unbounded))
            .map(|(_, entry)| entry)
            .take_while(|entry: &&Arc<Entry>| entry.namespace() == namespace);
        let mut here = here.filter(|entry| entry.field("spec.nodeName") == node);
        Some(here.any(|entry| refers(&entry.parse(), resource, name)))
    }

    fn cache(&self, group: &str, plural: &str) -> Option<&Arc<ResourceCache>> {
        self.caches.of(self.kinds.by_resource(group, "v1", plural)?).ok()
    }
}

/// Whether a collection is asked for with a selector that requires this value.
fn selects(asked: &Attributes<'_>, field: &str, value: &str) -> bool {
    asked.fields.iter().any(|(f, equal, v)| f == field && *equal && v == value)
}

fn lease(node: &str, asked: &Attributes<'_>) -> Decision {
    if !matches!(asked.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Decision::deny("can only get, create, update, patch, or delete a node lease");
    }
    if asked.namespace != LEASES {
        return Decision::deny(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    // Of a new one only admission knows the name.
    if asked.verb != "create" && asked.name != node {
        return Decision::deny("can only access node lease with the same name as the requesting node");
    }
    Decision::allow("node")
}

fn csi_node(node: &str, asked: &Attributes<'_>) -> Decision {
    if !matches!(asked.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Decision::deny("can only get, create, update, patch, or delete a CSINode");
    }
    if !asked.subresource.is_empty() {
        return Decision::deny("cannot authorize CSINode subresources");
    }
    if asked.verb != "create" && asked.name != node {
        return Decision::deny("can only access CSINode with the same name as the requesting node");
    }
    Decision::allow("node")
}

/// Writing a node; that it is its own is for admission. Reading them is `rules::NODE_SERVICES`.
fn own_node(node: &str, asked: &Attributes<'_>) -> Decision {
    match (asked.subresource, asked.verb) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Decision::allow("node"),
        ("", "delete") => {
            Decision::deny(format!("node '{node}' cannot delete nodes, only register and update its own"))
        }
        _ => Decision::deny(""),
    }
}

/// Whether a pod refers to an object of its namespace. A mirror pod, which a node can make itself, refers to none.
fn refers(pod: &Object, resource: &str, name: &str) -> bool {
    if !pod["metadata"]["annotations"][MIRROR_ANNOTATION].is_null() {
        return false;
    }
    match resource {
        "secrets" => names_in(pod, "secret").any(|one| one == name),
        "configmaps" => names_in(pod, "configMap").any(|one| one == name),
        "persistentvolumeclaims" => refers_to_claim(pod, name),
        "serviceaccounts" => pod["spec"]["serviceAccountName"] == name,
        "resourceclaims" => refers_to_resource_claim(pod, name),
        _ => false,
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn refers_to_claim(pod: &Object, name: &str) -> bool {
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    list(&pod["spec"]["volumes"]).any(|volume| {
        let of_its_own = volume["ephemeral"]["volumeClaimTemplate"].is_object()
            && volume["name"].as_str().is_some_and(|v| name == format!("{pod_name}-{v}"));
        of_its_own || volume["persistentVolumeClaim"]["claimName"] == name
    })
}

fn refers_to_resource_claim(pod: &Object, name: &str) -> bool {
    list(&pod["spec"]["resourceClaims"]).any(|claim| claim["resourceClaimName"] == name)
        || list(&pod["status"]["resourceClaimStatuses"]).any(|claim| claim["resourceClaimName"] == name)
        || pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"] == name
}

/// Names of secrets or config maps that a pod refers to, wherever in it they stand.
fn names_in<'p>(pod: &'p Object, what: &'static str) -> impl Iterator<Item = &'p str> {
    let spec = &pod["spec"];
    let containers = ["containers", "initContainers", "ephemeralContainers"].map(|field| list(&spec[field]));
    let mut names: Vec<&'p str> = Vec::new();
    let mut push = |value: &'p Value| names.extend(value.as_str());
    for container in containers.into_iter().flatten() {
        for from in list(&container["envFrom"]) {
            push(&from[format!("{what}Ref")]["name"]);
        }
        for env in list(&container["env"]) {
            push(&env["valueFrom"][format!("{what}KeyRef")]["name"]);
        }
    }
    for volume in list(&spec["volumes"]) {
        if what == "secret" {
            push(&volume["secret"]["secretName"]);
            push(&volume["csi"]["nodePublishSecretRef"]["name"]);
        } else {
            push(&volume["configMap"]["name"]);
        }
        for source in list(&volume["projected"]["sources"]) {
            push(&source[what]["name"]);
        }
    }
    if what == "secret" {
        for secret in list(&spec["imagePullSecrets"]) {
            push(&secret["name"]);
        }
    }
    names.into_iter()
}
