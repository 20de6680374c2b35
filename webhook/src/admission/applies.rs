//! Whether a webhook is asked about a request, and in which version.
//!
//! Source: `generic.ShouldCallHook` and `predicates` of upstream's webhook plug-in.

use std::sync::OnceLock;

use serde_json::Value;
use skiff_api::{LabelSelector, Object, Status};

use super::compile::{FailurePolicy, MatchPolicy, Webhook};
use super::conditions::{self, Condition, Matched};
use super::rules::Asked;
use super::{Attributes, GroupVersionKind, GroupVersionResource, Host, Operation, rejected};

/// What of a request a webhook has registered for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    pub resource: GroupVersionResource,
    pub kind: GroupVersionKind,
}

/// The resources that are the same as the request's, asked for when the first webhook wants to know.
pub struct Equivalents<'h> {
    pub host: &'h dyn Host,
    found: OnceLock<Vec<GroupVersionResource>>,
}

impl<'h> Equivalents<'h> {
    pub fn new(host: &'h dyn Host) -> Equivalents<'h> {
        Equivalents { host, found: OnceLock::new() }
    }

    /// Without the request's own.
    pub fn of(&self, attributes: &Attributes<'_>) -> &[GroupVersionResource] {
        self.found.get_or_init(|| {
            let mut all = self.host.equivalents(attributes.resource, attributes.subresource);
            all.retain(|other| other != attributes.resource);
            all
        })
    }
}

impl Webhook {
    /// What the webhook is asked about, if it is, its match conditions aside. `object` is the object as it is now.
    pub(super) fn invocation(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Object>,
        equivalents: &Equivalents<'_>,
    ) -> Result<Option<Invocation>, Status> {
        if !self.operations.has(attributes.operation) {
            return Ok(None);
        }
        // A selector that cannot be read is only of interest where the webhook would be asked.
        let of_namespace = namespace_matches(&self.namespace_selector, attributes, object);
        if matches!(of_namespace, Ok(false)) {
            return Ok(None);
        }
        let of_object = object_matches(&self.object_selector, attributes, object);
        if matches!(of_object, Ok(false)) {
            return Ok(None);
        }
        let Some(invocation) = self.registered(attributes, equivalents)? else { return Ok(None) };
        of_namespace?;
        of_object?;
        Ok(Some(invocation))
    }

    /// By the request's own resource, or by one that is equivalent.
    fn registered(
        &self,
        attributes: &Attributes<'_>,
        equivalents: &Equivalents<'_>,
    ) -> Result<Option<Invocation>, Status> {
        let asked = |resource| Asked {
            operation: attributes.operation,
            resource,
            subresource: attributes.subresource,
            namespace: attributes.namespace,
        };
        let own = asked(attributes.resource);
        if self.rules.iter().any(|rule| rule.matches(own)) {
            let (resource, kind) = (attributes.resource.clone(), attributes.kind.clone());
            return Ok(Some(Invocation { resource, kind }));
        }
        if self.match_policy == MatchPolicy::Exact {
            return Ok(None);
        }
        let others = equivalents.of(attributes);
        let found = self.rules.iter().find_map(|rule| others.iter().find(|other| rule.matches(asked(other))));
        let Some(resource) = found else { return Ok(None) };
        let kind = equivalents.host.kind_for(resource, attributes.subresource).ok_or_else(|| {
            let GroupVersionResource { group, version, resource } = resource;
            rejected::internal(&format!(
                "unable to convert to {group}/{version}, Resource={resource}: unknown kind"
            ))
        })?;
        Ok(Some(Invocation { resource: resource.clone(), kind }))
    }

    /// Whether the match conditions hold. `object` and `old_object` are of the kind that the webhook is sent.
    pub(super) async fn conditions_hold(
        &self,
        attributes: &Attributes<'_>,
        kind: &GroupVersionKind,
        object: Option<&Object>,
        old_object: Option<&Object>,
    ) -> Result<bool, Status> {
        if self.conditions.is_empty() {
            return Ok(true);
        }
        let matched = loop {
            let all = self.conditions.iter().map(|condition| -> &Condition { condition });
            let matched = conditions::matches(all, attributes, kind, object, old_object);
            if !attributes.is_to_be_asked_again().await {
                break matched;
            }
        };
        match matched {
            Matched::Yes => Ok(true),
            Matched::No => Ok(false),
            Matched::Failed(_) if self.failure_policy == FailurePolicy::Ignore => Ok(false),
            Matched::Failed(why) => {
                let GroupVersionResource { group, resource, .. } = attributes.resource;
                Err(Status::forbidden(group, resource, attributes.name, &why))
            }
        }
    }
}

/// Whether a selector of namespaces takes a request; `object` is the object as it is now.
pub fn namespace_matches(
    selector: &Result<LabelSelector, Status>,
    attributes: &Attributes<'_>,
    object: Option<&Object>,
) -> Result<bool, Status> {
    let is_namespace = attributes.resource.resource == "namespaces";
    if attributes.namespace.is_empty() && !is_namespace {
        return Ok(true);
    }
    let selector = read(selector)?;
    if selector.is_empty() {
        return Ok(true);
    }
    // What a Namespace is to become counts, but for one that goes.
    let is_written = matches!(attributes.operation, Operation::Create | Operation::Update);
    if is_namespace && attributes.subresource.is_empty() && is_written {
        return Ok(object.is_some_and(|object| has_labels(selector, object)));
    }
    match attributes.namespace_object {
        Some(namespace) => Ok(has_labels(selector, namespace)),
        None => Err(Status::not_found("", "namespaces", attributes.namespace)),
    }
}

/// Whether a selector of objects takes the object as it was, or as it is to become.
pub fn object_matches(
    selector: &Result<LabelSelector, Status>,
    attributes: &Attributes<'_>,
    object: Option<&Object>,
) -> Result<bool, Status> {
    let selector = read(selector)?;
    if selector.is_empty() {
        return Ok(true);
    }
    let has = |object: Option<&Object>| object.is_some_and(|object| has_labels(selector, object));
    Ok(has(object) || has(attributes.old_object))
}

fn read(selector: &Result<LabelSelector, Status>) -> Result<&LabelSelector, Status> {
    selector.as_ref().map_err(|error| rejected::internal(&error.message))
}

fn has_labels(selector: &LabelSelector, object: &Object) -> bool {
    let labels = &object["metadata"]["labels"];
    selector.matches(|key| labels.get(key).and_then(Value::as_str))
}
