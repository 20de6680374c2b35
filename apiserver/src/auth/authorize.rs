//! Whether they may.

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_api::{Kinds, Object, Status};

use super::rules::{self, Rule};
use super::{AUTHENTICATED, MASTERS, UserInfo};
use crate::cache::{Caches, Entry};
use crate::request::RequestInfo;

/// What is to be decided about.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    pub user: &'a UserInfo,
    pub verb: &'a str,
    /// Otherwise only `path` and `verb` count.
    pub is_resource: bool,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub path: &'a str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    /// Said to the client on a refusal, if not empty.
    pub reason: String,
}

impl Decision {
    fn allow(reason: impl Into<String>) -> Decision {
        Decision { allowed: true, reason: reason.into() }
    }

    fn deny(reason: impl Into<String>) -> Decision {
        Decision { allowed: false, reason: reason.into() }
    }
}

/// Decides what a user may do.
pub trait Authorizer: Send + Sync + 'static {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision;

    /// The `status` of a `SelfSubjectRulesReview`.
    fn rules_of(&self, user: &UserInfo, namespace: &str) -> Value;
}

impl<'a> Attributes<'a> {
    pub(crate) fn of(user: &'a UserInfo, info: &'a RequestInfo) -> Attributes<'a> {
        Attributes {
            user,
            verb: &info.verb,
            is_resource: info.is_resource,
            group: &info.group,
            version: &info.version,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            path: &info.path,
        }
    }

    /// The refusal, worded as upstream.
    pub(crate) fn forbidden(&self, reason: &str) -> Status {
        let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let user = &self.user.name;
        if !self.is_resource {
            let message =
                format!("forbidden: User {user:?} cannot {} path {:?}{because}", self.verb, self.path);
            let mut status = Status::new(403, "Forbidden", message);
            status.details = Some(Box::default());
            return status;
        }
        let resource = if self.subresource.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        };
        let place = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", self.namespace)
        };
        let why = format!(
            "User {user:?} cannot {} resource {resource:?} in API group {:?} {place}{because}",
            self.verb, self.group
        );
        Status::forbidden(self.group, self.resource, self.name, &why)
    }
}

/// The interim authorizer: administrators, the cluster's own components by a table, nodes by what runs on
/// them; nobody else.
pub(crate) struct ComponentAuthorizer {
    pub(crate) caches: Arc<Caches>,
    pub(crate) kinds: Arc<Kinds>,
}

impl Authorizer for ComponentAuthorizer {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let user = attributes.user;
        if user.is_in(MASTERS) {
            return Decision::allow("system:masters");
        }
        if !attributes.is_resource {
            return authorize_path(attributes);
        }
        let covered = |rules: &[Rule]| {
            rules.iter().any(|rule| {
                rule.covers(
                    attributes.group,
                    attributes.resource,
                    attributes.subresource,
                    attributes.verb,
                    attributes.namespace,
                )
            })
        };
        if user.is_in(AUTHENTICATED) && covered(rules::BASIC) {
            return Decision::allow("every user may ask about themselves");
        }
        if rules::of_component(&user.name).is_some_and(covered) {
            return Decision::allow("component of the cluster");
        }
        if let Some(node) = user.node_name() {
            if !covered(rules::NODE) {
                return Decision::deny("");
            }
            return self.authorize_node(node, attributes);
        }
        Decision::deny("")
    }

    fn rules_of(&self, user: &UserInfo, _namespace: &str) -> Value {
        let as_json =
            |rule: &Rule| json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources});
        let mut resource_rules = Vec::new();
        let mut path_rules = vec![json!({"verbs": ["get"], "nonResourceURLs": rules::PUBLIC_PATHS})];
        if user.is_in(MASTERS) {
            resource_rules.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
            path_rules.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
        }
        if user.is_in(AUTHENTICATED) {
            resource_rules.extend(rules::BASIC.iter().map(as_json));
            path_rules.push(json!({"verbs": ["get"], "nonResourceURLs": rules::DISCOVERY_PATHS}));
        }
        resource_rules.extend(rules::of_component(&user.name).into_iter().flatten().map(as_json));
        if user.node_name().is_some() {
            resource_rules.extend(rules::NODE.iter().map(as_json));
        }
        json!({"resourceRules": resource_rules, "nonResourceRules": path_rules, "incomplete": false})
    }
}

fn authorize_path(attributes: &Attributes<'_>) -> Decision {
    let path = attributes.path;
    let any = |patterns: &[&str]| {
        patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => path == *pattern,
        })
    };
    let reads = matches!(attributes.verb, "get" | "head");
    let authenticated = attributes.user.is_in(AUTHENTICATED);
    if reads && (any(rules::PUBLIC_PATHS) || (authenticated && any(rules::DISCOVERY_PATHS))) {
        return Decision::allow("discovery");
    }
    Decision::deny("")
}

impl ComponentAuthorizer {
    /// A node reads secrets and configuration only of pods that are bound to it, and its own lease.
    fn authorize_node(&self, node: &str, attributes: &Attributes<'_>) -> Decision {
        let reads = matches!(attributes.verb, "get" | "list" | "watch");
        match (attributes.resource, attributes.subresource) {
            ("secrets" | "configmaps" | "persistentvolumeclaims" | "serviceaccounts", "") if reads => {
                if attributes.name.is_empty() || attributes.namespace.is_empty() {
                    return Decision::deny("can only list/watch a single object of this type");
                }
                self.referenced(node, attributes)
            }
            ("serviceaccounts", "token") => self.referenced(node, attributes),
            ("leases", _) if !attributes.name.is_empty() && attributes.name != node => {
                Decision::deny("can only access node lease with the same name as the requesting node")
            }
            _ => Decision::allow("node"),
        }
    }

    fn referenced(&self, node: &str, attributes: &Attributes<'_>) -> Decision {
        let wanted = |pod: &Object| match attributes.resource {
            "secrets" => names_in(pod, "secret").any(|name| name == attributes.name),
            "configmaps" => names_in(pod, "configMap").any(|name| name == attributes.name),
            "persistentvolumeclaims" => names_in(pod, "claim").any(|name| name == attributes.name),
            _ => pod["spec"]["serviceAccountName"] == attributes.name,
        };
        let on_node =
            |entry: &Entry| entry.field("spec.nodeName") == node && entry.namespace() == attributes.namespace;
        let pods = self.kinds.by_resource("", "v1", "pods").and_then(|kind| self.caches.of(kind).ok());
        let found = pods.is_some_and(|pods| {
            let (_, snapshot) = pods.snapshot();
            let namespace = format!("{}/", attributes.namespace);
            snapshot
                .range::<_, str>((std::ops::Bound::Included(namespace.as_str()), std::ops::Bound::Unbounded))
                .map(|(_, entry)| entry)
                .take_while(|entry| entry.namespace() == attributes.namespace)
                .any(|entry| on_node(entry) && wanted(&entry.parse()))
        });
        if found {
            return Decision::allow("referenced by a pod of the node");
        }
        Decision::deny(format!("no relationship found between node '{node}' and this object"))
    }
}

/// Names of secrets, config maps or claims that a pod refers to, wherever in it they stand.
fn names_in<'p>(pod: &'p Object, what: &'static str) -> impl Iterator<Item = &'p str> {
    let spec = &pod["spec"];
    let list = |value: &'p Value| value.as_array().map(Vec::as_slice).unwrap_or_default().iter();
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
        match what {
            "secret" => push(&volume["secret"]["secretName"]),
            "configMap" => push(&volume["configMap"]["name"]),
            _ => push(&volume["persistentVolumeClaim"]["claimName"]),
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
