//! The node authorizer: a node reads what its pods need, and itself. What it may write of these objects is
//! narrowed further by admission (`admission/node.rs`), which sees the objects.
//!
//! Source: upstream's node authorizer with `AuthorizeNodeWithSelectors`.

use std::sync::Arc;

use super::authorize::{Attributes, ComponentAuthorizer, Decision};
use super::node_index::Referred;
use super::rules;
use crate::cache::Entry;

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
                let pod = self.entry("", "pods", &format!("{namespace}/{name}"))?;
                pod.field("spec.nodeName") == node
            }
            "persistentvolumes" => {
                let volume = self.entry("", "persistentvolumes", name)?.parse();
                let claim = &volume["spec"]["claimRef"];
                let (namespace, name) = (claim["namespace"].as_str()?, claim["name"].as_str()?);
                self.nodes.refers(node, Referred::Claim, namespace, name)
            }
            "volumeattachments" => {
                self.entry("storage.k8s.io", "volumeattachments", name)?.parse()["spec"]["nodeName"] == node
            }
            "resourceslices" => {
                self.entry("resource.k8s.io", "resourceslices", name)?.parse()["spec"]["nodeName"] == node
            }
            resource => self.nodes.refers(node, Referred::of(resource)?, namespace, name),
        })
    }

    /// What cannot be read is related to nobody.
    fn entry(&self, group: &str, plural: &str, key: &str) -> Option<Arc<Entry>> {
        self.caches.of(self.kinds.by_resource(group, "v1", plural)?).ok()?.get(key).ok()?
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
