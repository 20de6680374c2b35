//! Asking the authorizer from within an expression.
//!
//! Source: Kubernetes' `library/authz.go`.

use std::sync::Arc;

use super::{Function, Host, Library, library, no_overload};
use crate::fault::Fault;
use crate::plan::Call;
use crate::run::Run;
use crate::value::Value;

/// Who answers the questions of `authorizer`.
pub trait Authorizer {
    fn check(&self, check: &Check, verb: &str) -> Decision;
}

/// A question that is being put together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    pub(crate) stage: Stage,
    pub subject: Subject,
    /// Empty where a resource is asked for.
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
}

/// Whose rights are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Subject {
    /// Who makes the request.
    #[default]
    Requester,
    ServiceAccount {
        namespace: String,
        name: String,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub is_allowed: bool,
    pub reason: String,
    pub error: Option<String>,
}

/// How far a question is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    #[default]
    Authorizer,
    Path,
    Group,
    Resource,
}

impl Stage {
    pub(crate) fn type_name(self) -> &'static str {
        match self {
            Stage::Authorizer => "kubernetes.authorization.Authorizer",
            Stage::Path => "kubernetes.authorization.PathCheck",
            Stage::Group => "kubernetes.authorization.GroupCheck",
            Stage::Resource => "kubernetes.authorization.ResourceCheck",
        }
    }
}

impl Value<'_> {
    /// What the variable `authorizer` holds.
    pub fn authorizer() -> Value<'static> {
        Value::Library(Library::Check(Arc::default()))
    }

    /// What the variable `authorizer.requestResource` holds: a question about a resource that only lacks its verb.
    pub fn resource_check(check: Check) -> Value<'static> {
        Value::Library(Library::Check(Arc::new(Check { stage: Stage::Resource, ..check })))
    }
}

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "path" | "group" | "resource" | "subresource" | "namespace" | "name" | "fieldSelector"
        | "labelSelector" => narrow,
        "serviceAccount" => service_account,
        "check" => check,
        "allowed" | "reason" | "error" | "errored" => decision,
        _ => return None,
    })
}

fn narrow<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let [Value::Library(Library::Check(check)), Value::Text(text)] = args else {
        return Err(no_overload(call, args));
    };
    let mut check = (**check).clone();
    let refuse_empty = |what: &str| match text.trim().is_empty() {
        true => Err(Fault::other(format!("{what} must not be empty"))),
        false => Ok(()),
    };
    let field = match (&*call.name, check.stage) {
        ("path", Stage::Authorizer) => {
            refuse_empty("path")?;
            check.stage = Stage::Path;
            &mut check.path
        }
        ("group", Stage::Authorizer) => {
            check.stage = Stage::Group;
            &mut check.group
        }
        ("resource", Stage::Group) => {
            refuse_empty("resource")?;
            check.stage = Stage::Resource;
            &mut check.resource
        }
        ("subresource", Stage::Resource) => &mut check.subresource,
        ("namespace", Stage::Resource) => &mut check.namespace,
        ("name", Stage::Resource) => &mut check.name,
        ("fieldSelector", Stage::Resource) => &mut check.field_selector,
        ("labelSelector", Stage::Resource) => &mut check.label_selector,
        _ => return Err(no_overload(call, args)),
    };
    *field = text.to_string();
    library(Library::Check(Arc::new(check)))
}

fn service_account<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let [Value::Library(Library::Check(check)), Value::Text(namespace), Value::Text(name)] = args else {
        return Err(no_overload(call, args));
    };
    let is_part = |part: &str| {
        let is_inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        !part.is_empty()
            && part.bytes().all(|byte| is_inside(byte) || byte == b'-')
            && part.bytes().next().is_some_and(is_inside)
            && part.bytes().last().is_some_and(is_inside)
    };
    if name.len() > 253 || !name.split('.').all(is_part) {
        return Err(Fault::other("Invalid service account name"));
    }
    if namespace.len() > 63 || !is_part(namespace) {
        return Err(Fault::other("Invalid service account namespace"));
    }
    let subject = Subject::ServiceAccount { namespace: namespace.to_string(), name: name.to_string() };
    library(Library::Check(Arc::new(Check { subject, ..(**check).clone() })))
}

fn check<'a>(call: &Call, args: &[Value<'a>], host: &Host<'_>) -> Run<'a> {
    match args {
        [Value::Library(Library::Check(check)), Value::Text(verb)]
            if matches!(check.stage, Stage::Path | Stage::Resource) =>
        {
            let authorizer = host.authorizer.ok_or_else(|| Fault::other("there is no authorizer to ask"))?;
            library(Library::Decision(Arc::new(authorizer.check(check, verb))))
        }
        _ => Err(no_overload(call, args)),
    }
}

fn decision<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let [Value::Library(Library::Decision(decision))] = args else { return Err(no_overload(call, args)) };
    Ok(match &*call.name {
        "allowed" => Value::Bool(decision.is_allowed),
        "reason" => Value::text(decision.reason.as_str()),
        "error" => Value::text(decision.error.as_deref().unwrap_or_default()),
        _ => Value::Bool(decision.error.is_some()),
    })
}
