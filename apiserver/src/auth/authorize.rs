//! Whether they may.

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_api::{Kinds, Status};

use super::node_index::NodeIndex;
use super::rules::{self, Rule};
use super::{AUTHENTICATED, BOOTSTRAPPERS, MASTERS, SERVICE_ACCOUNTS, UserInfo};
use crate::cache::Caches;
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
    /// The terms of a collection's field selector: field, whether it must be equal, value.
    pub fields: &'a [(String, bool, String)],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    /// Said to the client on a refusal, if not empty.
    pub reason: String,
}

impl Decision {
    pub(super) fn allow(reason: impl Into<String>) -> Decision {
        Decision { allowed: true, reason: reason.into() }
    }

    pub(super) fn deny(reason: impl Into<String>) -> Decision {
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
            fields: &info.fields,
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
    pub(crate) nodes: Arc<NodeIndex>,
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
        let covered = |rules: &[Rule]| rules.iter().any(|rule| rule.covers(attributes));
        if user.is_in(AUTHENTICATED) && covered(rules::BASIC) {
            return Decision::allow("every user may ask about themselves");
        }
        if rules::of_component(&user.name).is_some_and(covered) {
            return Decision::allow("component of the cluster");
        }
        if user.is_in(BOOTSTRAPPERS) && covered(rules::BOOTSTRAPPER) {
            return Decision::allow("a node may join");
        }
        if let Some(node) = user.node_name() {
            if covered(rules::NODE_SERVICES) {
                return Decision::allow("a node's proxy and DNS");
            }
            return self.authorize_node(node, attributes);
        }
        Decision::deny("")
    }

    fn rules_of(&self, user: &UserInfo, _namespace: &str) -> Value {
        let as_json = |rule: &Rule| {
            let mut out = json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources});
            if let Some(name) = rule.name {
                out["resourceNames"] = json!([name]);
            }
            out
        };
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
        if user.is_in(BOOTSTRAPPERS) {
            resource_rules.extend(rules::BOOTSTRAPPER.iter().map(as_json));
        }
        // What a node may do depends on what runs on it, and cannot be listed.
        let is_node = user.node_name().is_some();
        if is_node {
            resource_rules.extend(rules::NODE_SERVICES.iter().chain(rules::NODE).map(as_json));
        }
        let mut status =
            json!({"resourceRules": resource_rules, "nonResourceRules": path_rules, "incomplete": is_node});
        if is_node {
            status["evaluationError"] = "node authorizer does not support user rule resolution".into();
        }
        status
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
    if reads && attributes.user.is_in(SERVICE_ACCOUNTS) && any(rules::ISSUER_PATHS) {
        return Decision::allow("the issuer of the tokens of service accounts");
    }
    Decision::deny("")
}
