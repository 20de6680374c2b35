//! What a binding adds to its policy: which of its requests it takes, and with which params.
//!
//! Source: `generic/policy_dispatcher.go` of upstream's policy plug-in.

use serde_json::Value as Json;
use skiff_api::{Object, Status};
use skiff_webhook::admission::{Attributes, Equivalents, GroupVersionKind};

use crate::compile::{Binding, Policy};
use crate::params::{Params, Scope};

/// The kind of the params of a policy that has some.
pub(crate) type ParamScope<'p> = Option<(&'p GroupVersionKind, Scope)>;

/// Where the params of a policy are. The sentence says that nobody knows their kind.
pub(crate) fn param_scope<'p>(policy: &'p Policy, params: &dyn Params) -> Result<ParamScope<'p>, String> {
    let Some(kind) = &policy.param_kind else { return Ok(None) };
    let Some(scope) = params.scope(kind) else {
        let GroupVersionKind { group, version, kind } = kind;
        let kind = format!("{group}/{version}, Kind={kind}");
        return Err(format!("failed to find resource referenced by paramKind: '{kind}'"));
    };
    Ok(Some((kind, scope)))
}

/// The params that a request is judged with, one after the other; null for none at all. `None` where the binding is not about it.
pub(crate) fn params(
    binding: &Binding,
    scope: ParamScope<'_>,
    params: &dyn Params,
    attributes: &Attributes<'_>,
    equivalents: &Equivalents<'_>,
) -> Result<Option<Vec<Json>>, String> {
    if let Some(resources) = &binding.resources
        && resources.invocation(attributes, equivalents)?.is_none()
    {
        return Ok(None);
    }
    match (scope, &binding.param_ref) {
        (Some((kind, scope)), Some(reference)) => {
            reference.collect(params, kind, scope, attributes.namespace).map(Some)
        }
        _ => Ok(Some(vec![Json::Null])),
    }
}

fn is_namespace(attributes: &Attributes<'_>) -> bool {
    let kind = attributes.kind;
    kind.group.is_empty() && kind.version == "v1" && kind.kind == "Namespace"
}

/// The Namespace that the request is in. A Namespace is in none.
pub(crate) fn namespace<'a>(attributes: &Attributes<'a>) -> Option<&'a Object> {
    attributes.namespace_object.filter(|_| !is_namespace(attributes))
}

/// A request in a namespace that is not known cannot be judged.
pub(crate) fn check_namespace(attributes: &Attributes<'_>) -> Result<(), Status> {
    let is_in_one = !attributes.namespace.is_empty() && !is_namespace(attributes);
    if is_in_one && attributes.namespace_object.is_none() {
        return Err(Status::not_found("", "namespaces", attributes.namespace));
    }
    Ok(())
}
