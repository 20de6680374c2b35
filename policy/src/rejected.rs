//! The errors that requests fail with on account of policies.

use skiff_api::{Cause, Status};
use skiff_webhook::admission::{Attributes, GroupVersionKind};

/// Upstream's name for an object that has none yet.
fn shown_name<'a>(attributes: &Attributes<'a>) -> &'a str {
    if !attributes.name.is_empty() {
        return attributes.name;
    }
    let Some(object) = attributes.object else { return "Unknown" };
    let text = |field: &str| object["metadata"][field].as_str().filter(|text| !text.is_empty());
    text("name").or_else(|| text("generateName")).unwrap_or("Unknown")
}

/// A request that is forbidden for a reason of one's own.
pub(crate) fn denied(attributes: &Attributes<'_>, reason: &'static str, why: &str) -> Status {
    let resource = attributes.resource;
    let mut status = Status::forbidden(&resource.group, &resource.resource, shown_name(attributes), why);
    status.reason = reason;
    status.code = match reason {
        "Forbidden" => 403,
        "Unauthorized" => 401,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    status.details.get_or_insert_default().causes.push(Cause::told(why));
    status
}

/// What mutating policies have against a request, if they have anything: the first is told, all are causes.
pub(crate) fn by_policies(
    attributes: &Attributes<'_>,
    errors: &[(&str, Option<&'static str>)],
) -> Option<Status> {
    let (first, reason) = errors.first()?;
    let resource = attributes.resource;
    let mut status = Status::forbidden(&resource.group, &resource.resource, shown_name(attributes), first);
    status.message = (*first).to_owned();
    status.reason = reason.unwrap_or(status.reason);
    let causes = errors.iter().map(|(message, _)| Cause::told(*message));
    status.details.get_or_insert_default().causes.extend(causes);
    Some(status)
}

/// Nobody serves the kind that a policy mutates, at least not yet.
pub(crate) fn not_served(kind: &GroupVersionKind) -> Status {
    let GroupVersionKind { group, version, kind } = kind;
    Status::unavailable(format!(
        "Resource kind {group}/{version}, Kind={kind} not found. There can be a delay between when \
         CustomResourceDefinitions are created and when they are available."
    ))
}
