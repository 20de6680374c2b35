//! What is asked of authorizers, and what they say.

use serde_json::{Value, json};
use skiff_api::Status;

use super::UserInfo;
use crate::request::{LabelTerm, RequestInfo};

/// What is to be decided about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a> {
    pub(crate) user: &'a UserInfo,
    pub(crate) verb: &'a str,
    /// Otherwise only `path` and `verb` count.
    pub(crate) is_resource: bool,
    pub(crate) group: &'a str,
    /// `*` where any is meant.
    pub(crate) version: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) path: &'a str,
    /// The terms of a collection's field selector: field, whether it must be equal, value.
    pub(crate) fields: &'a [(String, bool, String)],
    /// The requirements of a collection's label selector.
    pub(crate) labels: &'a [LabelTerm],
}

/// What an authorizer says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opinion {
    Allow,
    /// Nobody else is asked.
    Deny,
    /// Others may allow it.
    None,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) opinion: Opinion,
    /// Said to the client on a refusal, if not empty.
    pub(crate) reason: String,
    /// What went wrong on the way to the opinion, which counts all the same.
    pub(crate) error: Option<String>,
}

impl Decision {
    pub(super) fn allow(reason: impl Into<String>) -> Decision {
        Decision { opinion: Opinion::Allow, reason: reason.into(), error: None }
    }

    pub(super) fn none(reason: impl Into<String>) -> Decision {
        Decision { opinion: Opinion::None, reason: reason.into(), error: None }
    }

    pub(crate) fn is_allowed(&self) -> bool {
        self.opinion == Opinion::Allow
    }
}

/// What somebody may do, as a `SelfSubjectRulesReview` lists it.
#[derive(Clone, Debug, Default)]
pub(crate) struct RuleList {
    pub(crate) resources: Vec<Value>,
    pub(crate) paths: Vec<Value>,
    /// Whether there may be more.
    pub(crate) incomplete: bool,
    pub(crate) error: Option<String>,
}

impl RuleList {
    /// The `status` of a review.
    pub(crate) fn to_json(&self) -> Value {
        let mut status = json!({
            "resourceRules": self.resources, "nonResourceRules": self.paths, "incomplete": self.incomplete,
        });
        if let Some(error) = &self.error {
            status["evaluationError"] = error.as_str().into();
        }
        status
    }
}

/// Decides what a user may do, from what this server knows.
pub(crate) trait Authorizer: Send + Sync + 'static {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision;

    /// What a user may do in a namespace, as far as it is for this authorizer to say.
    fn rules_of(&self, user: &UserInfo, namespace: &str) -> RuleList;
}

impl<'a> Attributes<'a> {
    /// A verb on all of a resource, in any version.
    pub(crate) fn on(user: &'a UserInfo, verb: &'a str, group: &'a str, resource: &'a str) -> Attributes<'a> {
        Attributes {
            user,
            verb,
            is_resource: true,
            group,
            version: "*",
            resource,
            subresource: "",
            namespace: "",
            name: "",
            path: "",
            fields: &[],
            labels: &[],
        }
    }

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
            labels: &info.labels,
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
