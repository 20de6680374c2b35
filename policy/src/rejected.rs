//! The errors that requests fail with on account of policies.

use skiff_api::{Cause, Status};
use skiff_webhook::admission::Attributes;

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
