//! Between the versions of a kind. Most differ in nothing but their `apiVersion`.

mod autoscaling;

use serde_json::{Map, Value};
use skiff_api::kinds::Conversion;
use skiff_api::{Kind, Object};

/// Fields of `v1.Event` and what `events.k8s.io/v1` calls them.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Whether objects of one are objects of the other as they stand.
pub(crate) fn is_same_version(a: &Kind, b: &Kind) -> bool {
    a.group == b.group && a.version == b.version
}

/// Whether a webhook converts the objects of a kind.
pub(crate) fn asks_webhook(kind: &Kind) -> bool {
    kind.custom().is_some_and(|custom| *custom.conversion != Conversion::None)
}

/// Whether a webhook has to be asked.
pub(crate) fn needs_webhook(from: &Kind, to: &Kind) -> bool {
    !is_same_version(from, to) && asks_webhook(to)
}

/// The object as of kind `to`, where no webhook has to be asked; both kinds are versions of one resource.
pub(crate) fn convert(from: &Kind, to: &Kind, mut object: Object) -> Object {
    if is_same_version(from, to) {
        return object;
    }
    let Some(root) = object.as_object_mut() else { return object };
    match (from.kind.as_str(), from.group.as_str(), from.version.as_str(), to.version.as_str()) {
        ("Event", "", ..) => rename(root, EVENT_FIELDS.iter().copied()),
        ("Event", "events.k8s.io", ..) => rename(root, EVENT_FIELDS.iter().map(|(core, new)| (*new, *core))),
        ("HorizontalPodAutoscaler", _, "v1", "v2") => autoscaling::to_v2(root, &to.schema.schema),
        ("HorizontalPodAutoscaler", _, "v2", "v1") => autoscaling::to_v1(root),
        _ => {}
    }
    root.insert("apiVersion".into(), to.api_version().into());
    root.insert("kind".into(), to.kind.clone().into());
    object
}

fn rename<'a>(root: &mut Map<String, Value>, fields: impl Iterator<Item = (&'a str, &'a str)>) {
    for (old, new) in fields {
        if let Some(value) = root.remove(old) {
            root.insert(new.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests;
