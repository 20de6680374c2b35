//! The node authorizer: a node reads what its pods need, and itself. What it may write of these objects is
//! narrowed further by admission (`admission/node.rs`), which sees the objects.
//!
//! Source: upstream's node authorizer with `AuthorizeNodeWithSelectors`.

use std::sync::Arc;

use skiff_api::Kinds;

use super::UserInfo;
use super::attributes::{Attributes, Authorizer, Decision, RuleList};
use super::node_index::{NodeIndex, Referred};
use super::rbac::PolicyRule;
use crate::cache::{Caches, Entry};

const LEASES: &str = "kube-node-lease";

pub(crate) struct NodeAuthorizer {
    pub(crate) caches: Arc<Caches>,
    pub(crate) kinds: Arc<Kinds>,
    pub(crate) nodes: Arc<NodeIndex>,
    /// What nodes may do without being looked at further: those of `system:node`.
    pub(crate) rules: Arc<[PolicyRule]>,
}

impl Authorizer for NodeAuthorizer {
    fn authorize(&self, asked: &Attributes<'_>) -> Decision {
        match asked.user.node_name() {
            Some(node) if asked.is_resource => self.authorize_node(node, asked),
            _ => Decision::none(""),
        }
    }

    /// What a node may do depends on what runs on it, and cannot be listed.
    fn rules_of(&self, user: &UserInfo, _: &str) -> RuleList {
        let is_node = user.node_name().is_some();
        let why = "node authorizer does not support user rule resolution";
        RuleList { incomplete: is_node, error: is_node.then(|| why.to_owned()), ..RuleList::default() }
    }
}

impl NodeAuthorizer {
    fn authorize_node(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        match (asked.group, asked.resource) {
            ("", "secrets" | "configmaps") => self.read_namespaced(node, asked),
            ("", "persistentvolumeclaims") if asked.subresource == "status" => match asked.verb {
                "update" | "patch" => self.related(node, asked),
                _ => Decision::none("can only get/update/patch this type"),
            },
            ("", "persistentvolumeclaims" | "persistentvolumes")
            | ("resource.k8s.io", "resourceclaims")
            | ("storage.k8s.io", "volumeattachments") => self.get_related(node, asked),
            ("", "serviceaccounts") => self.service_account(node, asked),
            ("coordination.k8s.io", "leases") => lease(node, asked),
            ("storage.k8s.io", "csinodes") => csi_node(node, asked),
            ("resource.k8s.io", "resourceslices") => self.resource_slice(node, asked),
            ("certificates.k8s.io", "podcertificaterequests") => self.pod_certificate(node, asked),
            ("", "nodes") => own_node(node, asked),
            ("", "pods") => self.pod(node, asked),
            _ if self.rules.iter().any(|rule| rule.allows(asked)) => Decision::allow("node"),
            _ => Decision::none(""),
        }
    }

    fn read_namespaced(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        if !matches!(asked.verb, "get" | "list" | "watch") {
            return Decision::none("can only read resources of this type");
        }
        if !asked.subresource.is_empty() {
            return Decision::none("cannot read subresource");
        }
        if asked.namespace.is_empty() {
            return Decision::none("can only read namespaced object of this type");
        }
        self.related(node, asked)
    }

    fn get_related(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        if asked.verb != "get" {
            return Decision::none("can only get individual resources of this type");
        }
        if !asked.subresource.is_empty() {
            return Decision::none("cannot get subresource");
        }
        self.related(node, asked)
    }

    fn service_account(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        if asked.verb == "get" && asked.subresource.is_empty() {
            return self.read_namespaced(node, asked);
        }
        if asked.verb != "create" || asked.name.is_empty() {
            return Decision::none("can only create tokens for individual service accounts");
        }
        if asked.subresource != "token" {
            return Decision::none("can only create token subresource of serviceaccount");
        }
        self.related(node, asked)
    }

    fn resource_slice(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        if !asked.subresource.is_empty() {
            return Decision::none("cannot authorize ResourceSlice subresources");
        }
        match asked.verb {
            // Admission sees which node it is of.
            "create" => Decision::allow("node"),
            "get" | "update" | "patch" | "delete" => self.related(node, asked),
            "watch" | "list" | "deletecollection" if selects(asked, "spec.nodeName", node) => {
                Decision::allow("node")
            }
            "watch" | "list" | "deletecollection" => Decision::none(
                "can only list/watch/deletecollection resourceslices with nodeName field selector",
            ),
            _ => Decision::none(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    /// What a node asks for in the name of its pods.
    fn pod_certificate(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        if !asked.subresource.is_empty() {
            let why = "nodes may not access the status subresource of PodCertificateRequests";
            return Decision::none(why);
        }
        match asked.verb {
            // Admission sees whose pod it is for.
            "create" => Decision::allow("node"),
            "get" => self.related(node, asked),
            "list" | "watch" if selects(asked, "spec.nodeName", node) => Decision::allow("node"),
            "list" | "watch" => {
                Decision::none("can only list/watch podcertificaterequests with nodeName field selector")
            }
            verb => Decision::none(format!("nodes may not {verb} podcertificaterequests")),
        }
    }

    fn pod(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        match (asked.subresource, asked.verb) {
            ("", "get") => self.get_related(node, asked),
            ("", "list" | "watch") if selects(asked, "spec.nodeName", node) => Decision::allow("node"),
            ("", "list" | "watch") if !asked.name.is_empty() => self.related(node, asked),
            ("", "list" | "watch") => {
                Decision::none("can only list/watch pods with spec.nodeName field selector")
            }
            // Admission sees whether they are this node's.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                Decision::allow("node")
            }
            _ => Decision::none(""),
        }
    }

    /// Whether one object has to do with the node.
    fn related(&self, node: &str, asked: &Attributes<'_>) -> Decision {
        if asked.name.is_empty() {
            return Decision::none("No Object name found");
        }
        if self.is_related(node, asked).unwrap_or(false) {
            return Decision::allow("related to the node");
        }
        Decision::none(format!("no relationship found between node '{node}' and this object"))
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
            "podcertificaterequests" => {
                let key = format!("{namespace}/{name}");
                let request = self.entry("certificates.k8s.io", "podcertificaterequests", &key)?;
                request.field("spec.nodeName") == node
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
        return Decision::none("can only get, create, update, patch, or delete a node lease");
    }
    if asked.namespace != LEASES {
        return Decision::none(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    // Of a new one only admission knows the name.
    if asked.verb != "create" && asked.name != node {
        return Decision::none("can only access node lease with the same name as the requesting node");
    }
    Decision::allow("node")
}

fn csi_node(node: &str, asked: &Attributes<'_>) -> Decision {
    if !matches!(asked.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Decision::none("can only get, create, update, patch, or delete a CSINode");
    }
    if !asked.subresource.is_empty() {
        return Decision::none("cannot authorize CSINode subresources");
    }
    if asked.verb != "create" && asked.name != node {
        return Decision::none("can only access CSINode with the same name as the requesting node");
    }
    Decision::allow("node")
}

/// Writing a node: that it is its own is for admission. A role lets all nodes read all of them.
fn own_node(node: &str, asked: &Attributes<'_>) -> Decision {
    match (asked.subresource, asked.verb) {
        ("", "get" | "list" | "watch") if asked.name == node => Decision::allow("node"),
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Decision::allow("node"),
        ("", "delete") => {
            Decision::none(format!("node '{node}' cannot delete nodes, only register and update its own"))
        }
        _ => Decision::none(""),
    }
}
