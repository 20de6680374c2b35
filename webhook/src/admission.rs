//! Webhooks that admit requests, or change the objects of them first.
//!
//! ```text
//! configurations ─▶ Webhooks::compile ─▶ in order, each: rules, selectors, match conditions ─▶ Invocation
//!                                                                                                  │
//!                    Status, warnings, annotations ◀─ answer ◀─ Client ◀─ AdmissionReview ◀────────┘
//! ```
//!
//! [`Webhooks`] is made when configurations change and shared by all requests. [`Webhooks::validate`] asks all that apply at once,
//! [`Webhooks::mutate`] one after the other, each with what the last has made of the object; a second round is what
//! [`Reinvocation`] carries from the first to the second.
//!
//! # Guarantees
//! - What a webhook is sent is what the request is about: the object as it is now, and the old one as it is stored.
//! - Configurations and policies of admission are never shown to webhooks, which could otherwise lock their own removal out.
//! - A failure is an error of the request, or ignored where the webhook's `failurePolicy` says so. A denial never is.
//!
//! # Caveats
//! Of several denials that come at once, that of the first in order is told; upstream tells the fastest.
//!
//! Source: `k8s.io/apiserver/pkg/admission/plugin/webhook`.

mod applies;
mod call;
mod compile;
mod conditions;
mod mutate;
mod reinvocation;
mod rejected;
mod review;
mod rules;
mod validate;
mod warnings;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use skiff_api::{Object, name, patch};
use skiff_cel::Authorizer;
use tokio::time::Instant;

pub use applies::{Equivalents, Invocation, namespace_matches, object_matches};
pub use compile::Webhooks;
pub use conditions::request;
pub use reinvocation::Reinvocation;
pub use rejected::internal;
pub use rules::{Asked, Rule};
pub use warnings::warning_headers;

use crate::client::Client;
use crate::document::{self, split};

/// Which of the two kinds of configurations webhooks are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Mutating,
    Validating,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct GroupVersionKind {
    pub group: String,
    pub version: String,
    pub kind: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct GroupVersionResource {
    pub group: String,
    pub version: String,
    /// The plural.
    pub resource: String,
}

impl GroupVersionKind {
    /// Of the `apiVersion` and `kind` of an object.
    pub fn new(api_version: &str, kind: &str) -> GroupVersionKind {
        let (group, version) = split(api_version);
        GroupVersionKind { group: group.into(), version: version.into(), kind: kind.into() }
    }
}

impl GroupVersionResource {
    pub fn new(api_version: &str, resource: &str) -> GroupVersionResource {
        let (group, version) = split(api_version);
        GroupVersionResource { group: group.into(), version: version.into(), resource: resource.into() }
    }
}

/// Who makes a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UserInfo {
    #[serde(rename = "username", skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

/// A request, as admission sees it.
#[derive(Clone, Copy)]
pub struct Attributes<'a> {
    pub operation: Operation,
    /// The kind of the object that the request brings, which is `Scale` or `PodExecOptions` where the path says so.
    pub kind: &'a GroupVersionKind,
    pub resource: &'a GroupVersionResource,
    /// Empty if there is none.
    pub subresource: &'a str,
    /// Empty for what is in none. Of a Namespace it is its own name.
    pub namespace: &'a str,
    /// Empty where it is still to be generated.
    pub name: &'a str,
    pub user: &'a UserInfo,
    pub dry_run: bool,
    /// In the version of [`Attributes::kind`], as it would be sent to a client. `None` for a deletion. [`Webhooks::mutate`] is given
    /// it apart.
    pub object: Option<&'a Object>,
    /// As [`Attributes::object`]; `None` for a creation.
    pub old_object: Option<&'a Object>,
    /// `CreateOptions`, `UpdateOptions`, …, with `kind` and `apiVersion`.
    pub options: Option<&'a Object>,
    /// The Namespace that [`Attributes::namespace`] names; `None` if there is no such.
    pub namespace_object: Option<&'a Object>,
    /// Who answers what expressions ask of the requester's rights.
    pub authorizer: Option<&'a dyn Permissions>,
    /// When the request itself is given up.
    pub deadline: Option<Instant>,
}

impl Attributes<'_> {
    /// Whether expressions that were run have to be run once more: what they asked of rights was not known, and now is.
    pub async fn is_to_be_asked_again(&self) -> bool {
        match self.authorizer {
            Some(authorizer) => authorizer.find_out().await,
            None => false,
        }
    }
}

/// Who answers what expressions ask of the requester's rights. Expressions run at once, and an answer may have to be waited for:
/// whoever runs one gives the answers that there are, notes what is not known, finds that out, and runs it anew.
///
/// Each time one question more has its answer. As an expression may only cost so much, it asks few.
///
/// # Assumptions
/// What is run for one request is run one after the other: a question that is noted is that of whoever ran last.
#[async_trait]
pub trait Permissions: Authorizer + Send + Sync {
    /// Finds out what was asked for since the last time and is not known. Whether there was anything: then the expressions that
    /// asked have come to nothing.
    async fn find_out(&self) -> bool {
        false
    }
}

/// What of the kinds the host knows.
#[async_trait]
pub trait Host: Send + Sync {
    /// The resources that are the same objects as one: its other versions, and other groups that serve it. The order does not matter but
    /// where several fit one rule. May contain the resource itself.
    fn equivalents(&self, resource: &GroupVersionResource, subresource: &str) -> Vec<GroupVersionResource>;

    /// The kind of the objects of such a resource, or of its subresource.
    fn kind_for(&self, resource: &GroupVersionResource, subresource: &str) -> Option<GroupVersionKind>;

    /// The object as another kind that is equivalent. The sentence says why it cannot be.
    async fn convert(&self, object: Object, kind: &GroupVersionKind) -> Result<Object, String>;

    /// A patched object in the shape of its kind. The sentence says why it has none.
    fn decode(&self, kind: &GroupVersionKind, object: Object) -> Result<Object, String>;

    /// Sets the defaults of the kind, once more.
    fn default(&self, kind: &GroupVersionKind, object: &mut Object);

    /// A webhook was called. For metrics.
    fn called(&self, _call: &Called<'_>) {}
}

/// One call of a webhook, as upstream's `apiserver_admission_webhook_*` metrics count it.
#[derive(Clone, Copy, Debug)]
pub struct Called<'a> {
    pub webhook: &'a str,
    pub phase: Phase,
    pub operation: Operation,
    pub duration: Duration,
    pub end: CallEnd,
    /// The code of the error, or 200.
    pub code: u16,
}

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallEnd {
    Allowed,
    /// `error_type="no_error"`.
    Denied,
    /// `error_type="calling_webhook_error"`.
    Failed,
    /// It failed, and the request went on.
    FailedOpen,
    /// `error_type="apiserver_internal_error"`: what it wants of the object cannot be done, or it was not to be called in a dry run.
    Internal,
}

/// What calls are made with.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    pub client: &'a Client,
    pub host: &'a dyn Host,
}

/// From which audit level on an annotation is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuditLevel {
    Metadata,
    Request,
}

/// What webhooks have to say besides yes and no. It counts even where the request fails.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// For the `Warning` headers of the answer, which [`warning_headers`] makes of all that a request is warned of; errors have them,
    /// too. In order, and no more than [`MAX_WARNINGS`].
    pub warnings: Vec<String>,
    /// For the audit event, by key.
    pub annotations: BTreeMap<String, (AuditLevel, String)>,
}

/// As many warnings of one request are kept.
pub const MAX_WARNINGS: usize = 1000;
/// As many annotations of one request are kept.
const MAX_ANNOTATIONS: usize = 1000;

impl Record {
    pub fn warn(&mut self, warnings: impl IntoIterator<Item = String>) {
        let room = MAX_WARNINGS.saturating_sub(self.warnings.len());
        self.warnings.extend(warnings.into_iter().filter(|text| !text.is_empty()).take(room));
    }

    /// What is there stays; a key that is none is left out.
    pub fn annotate(&mut self, key: String, level: AuditLevel, value: String) {
        let is_key = key.split('/').count() == 2 && name::qualified_name_fault(&key).is_none();
        if !is_key || self.annotations.len() >= MAX_ANNOTATIONS {
            tracing::debug!(key, "an audit annotation is left out");
            return;
        }
        self.annotations.entry(key).or_insert((level, value));
    }

    fn add(&mut self, other: Record) {
        self.warn(other.warnings);
        for (key, (level, value)) in other.annotations {
            self.annotate(key, level, value);
        }
    }
}

/// What an answer to the request `uid` makes of an object, without a webhook that gives it.
///
/// # Errors
/// What is wrong with the answer.
#[doc(hidden)]
pub fn answered(bytes: &[u8], uid: &str, object: &Object) -> Result<Object, String> {
    let document = document::parse(bytes)?;
    let answer = review::answer(&document, review::Version::V1, Phase::Mutating, uid);
    let answer = answer.map_err(|fault| format!("{fault:?}"))?;
    let mut patched = object.clone();
    if !answer.patch.is_empty() {
        let operations = mutate::operations(&answer.patch)?;
        patch::apply_json(&mut patched, &operations).map_err(|error| error.to_string())?;
    }
    Ok(patched)
}
